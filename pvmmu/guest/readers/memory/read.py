"""Reading memory traces piece by piece, as text of the tools that people have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.memory.lines import (
    BAD_LINE,
    Layout,
    parse,
    touched,
)
from pvmmu.guest.readers.text_files import opened, reading
from pvmmu.x86.accesses import Pages, pages

KINDS: Final = ("read", "write", "fetch", "modify")
_BLOCK: Final = 1 << 22  # bytes read at a time
_MAX_LINE: Final = 1 << 16
_PIECE: Final = 1 << 20  # accesses of a piece


@dataclass(frozen=True)
class Accesses:
    """A piece of a memory trace.

    Attributes
    ----------
    address : uint64[n]
        Linear addresses.
    size : uint32[n]
        Bytes.
    kind : uint8[n]
        0 read, 1 write, 2 fetch, 3 modify (read and write).
    """

    address: npt.NDArray[np.uint64]
    size: npt.NDArray[np.uint32]
    kind: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return self.address.size

    def pages(self, data: bool = True, fetches: bool = True) -> Pages:
        """Return the 4-KiB pages touched, in order, for a TLB.

        An access that crosses a page boundary touches two pages, a long one more.

        Parameters
        ----------
        data, fetches : bool
            Whether data accesses and instruction fetches count.
        """
        keep = np.array([data, data, fetches, data])
        words, fetch = np.empty(len(self) + 64, np.uint64), np.empty(len(self) + 64, np.uint8)
        arguments = (self.address, self.size, self.kind, keep)
        n = touched(*arguments, words, fetch, np.uint64(12))
        if n > words.size:
            words, fetch = np.empty(n, np.uint64), np.empty(n, np.uint8)
            touched(*arguments, words, fetch, np.uint64(12))
        return as_pages(words[:n], fetch[:n])


def as_pages(va: npt.NDArray[np.uint64], fetch: npt.NDArray[np.uint8]) -> Pages:
    """A single flag where all accesses are alike: such runs are faster."""
    alike = fetch.size == 0 or bool((fetch == fetch[0]).all())
    return pages(va, fetch=bool(fetch[0]) if alike and fetch.size else (fetch if fetch.size else 0))


def read_accesses(
    path: str | os.PathLike[str],
    layout: Layout | str | None = None,
    *,
    piece: int = _PIECE,
    progress: bool = True,
) -> Iterator[Accesses]:
    """Read a memory trace piece by piece.

    Parameters
    ----------
    path : path-like
        Text, plain or compressed (gzip, xz, bzip2, zstd); a pipe will do.
    layout : Layout or str, optional
        ``"lackey"``, ``"din"``, ``"drmemtrace"`` or ``"csv"``; found out from the first lines if
        not given.
    piece : int
        Most accesses of a piece.
    progress : bool
        Show a bar if it takes longer than a second.

    Yields
    ------
    Accesses
        In order of the file.

    Raises
    ------
    RecordingError
        The file is missing, cut short, holds no access, or a line is of another form; names file
        and line.
    """
    path = Path(path)
    if piece < 1:
        raise RecordingError(f"a piece has at least one access, not {piece}")
    known = None if layout is None else _layout(layout)
    total = 0
    with reading(path, lambda: f"{total} accesses"):
        size = path.stat().st_size
        with (
            opened(path) as (f, raw),
            tqdm(
                total=size, unit="B", unit_scale=True, desc=path.name, disable=not progress, delay=1
            ) as bar,
        ):
            for part in _parts(path, f, known, piece):
                bar.update((raw.tell() if raw.seekable() else bar.n) - bar.n)
                total += len(part)
                yield part
    if total == 0:
        raise RecordingError(f"{path}: no access in it")


def _layout(name: Layout | str) -> Layout:
    if isinstance(name, Layout):
        return name
    try:
        return Layout[str(name).upper()]
    except KeyError:
        known = ", ".join(x.name.lower() for x in Layout)
        raise RecordingError(f"no layout of memory traces is named {name!r}: {known}") from None


def _parts(path: Path, f: IO[bytes], layout: Layout | None, piece: int) -> Iterator[Accesses]:
    """Pieces of a file, from blocks of whole lines."""
    rest, line = b"", 0
    while True:
        block = f.read(_BLOCK)
        text = rest + block
        if not block and text and not text.endswith(b"\n"):
            text += b"\n"  # the last line need not end
        if not text:
            return
        while layout is None and (cut := text.rfind(b"\n", 0, _MAX_LINE) + 1):
            layout = _guess(path, text[:cut], line)
            if layout is None:  # banners and comments only
                line, text = line + text.count(b"\n", 0, cut), text[cut:]
        if layout is None:
            rest = text
            _check_length(path, line, rest)
            if block:
                continue
            return
        if line == 0 and layout == Layout.CSV:
            text = _without_header(text)
        buffer, start, why = np.frombuffer(text, np.uint8), 0, -1
        while start < len(buffer) and why != 0:
            out = Accesses(
                np.empty(piece, np.uint64), np.empty(piece, np.uint32), np.empty(piece, np.uint8)
            )
            n, lines, stop, why = parse(
                int(layout), buffer[start:], out.address, out.size, out.kind
            )
            line, start = line + lines, start + stop
            if n:
                yield Accesses(out.address[:n], out.size[:n], out.kind[:n])
            if why == BAD_LINE:
                shown = text[start : start + 60].split(b"\n")[0].decode("ascii", "replace")
                name = layout.name.lower()
                raise RecordingError(f"{path}:{line + 1}: not a line of {name}: {shown!r}")
        rest = text[start:]
        _check_length(path, line, rest)
        if not block:
            return


def _check_length(path: Path, line: int, rest: bytes) -> None:
    if len(rest) > _MAX_LINE:
        raise RecordingError(f"{path}:{line + 1}: a line of more than {_MAX_LINE} bytes")


def _guess(path: Path, text: bytes, before: int) -> Layout | None:
    """Layout of the first line that holds an access; None if there is none yet.

    `before` is the number of lines before the text.
    """
    scratch = np.empty(1, np.uint64), np.empty(1, np.uint32), np.empty(1, np.uint8)
    for number, line in enumerate(text.split(b"\n")[:-1], before + 1):
        buffer = np.frombuffer(line + b"\n", np.uint8)
        fits = [x for x in Layout if parse(int(x), buffer, *scratch)[3] != BAD_LINE]
        sure = [x for x in fits if parse(int(x), buffer, *scratch)[0] == 1]
        if sure:
            return sure[0]
        if not fits and not (number == 1 and _is_header(line)):
            shown = line[:60].decode("ascii", "replace")
            raise RecordingError(f"{path}:{number}: not a line of any known layout: {shown!r}")
    return None


def _is_header(line: bytes) -> bool:
    """Whether a line of CSV names columns, in the order in which they are read."""
    names = [cell.strip().lower().decode("ascii", "replace") for cell in line.split(b",")]
    return names[0] in ("address", "addr", "va") and len(names) <= 3


def _without_header(text: bytes) -> bytes:
    """The line that names the columns becomes a comment: lines keep their numbers."""
    return b"#" + text if _is_header(text.split(b"\n", 1)[0]) else text
