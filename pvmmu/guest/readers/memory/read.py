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
from pvmmu.guest.readers.memory import textual
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
_IN_KERNELS: Final = tuple(x for x in Layout if x not in (Layout.GEM5, Layout.CHAMPSIM))


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
        Name of a `Layout`, such as ``"lackey"``; found out from the first lines if not given.
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


class _Parser:
    """Reads whole lines, once it is known whose they are.

    Parameters
    ----------
    path : Path
        The file, for messages.
    layout : Layout or None
        None: the first line that holds an access tells.
    """

    def __init__(self, path: Path, layout: Layout | None) -> None:
        self.path, self.layout = path, layout
        self.columns: tuple[int, int, int] | None = None
        self._begun = False

    def find_out(self, text: bytes, before: int) -> tuple[int, bool]:
        """Look at lines for the layout; `before` is the number of lines before them.

        Returns
        -------
        int, bool
            Bytes of lines that are done with; whether the layout is known.
        """
        if not self._begun:
            self._begun = True
            first, _, _ = text.partition(b"\n")
            head = first.decode("ascii", "replace")
            named = textual.header(head)
            if named is not None and self.layout in (None, Layout.CSV):
                self.layout = Layout.CSV
                self.columns = None if textual.plain(named, head) else named
                return len(first) + 1, True
        if self.layout is None:
            self.layout = _guess(self.path, text, before)
        return (0, True) if self.layout is not None else (len(text), False)

    def __call__(self, text: bytes, out: Accesses) -> tuple[int, int, int, int]:
        layout = self.layout
        assert layout is not None
        if layout in (Layout.GEM5, Layout.CHAMPSIM) or self.columns is not None:
            read = textual.reader(layout, self.columns)
            return textual.parse_text(read, text, out.address, out.size, out.kind)
        n, lines, stop, why = parse(
            int(layout), np.frombuffer(text, np.uint8), out.address, out.size, out.kind
        )
        return int(n), int(lines), int(stop), int(why)


def _parts(path: Path, f: IO[bytes], layout: Layout | None, piece: int) -> Iterator[Accesses]:
    """Pieces of a file, from blocks of whole lines."""
    rest, line, parser, known = b"", 0, _Parser(path, layout), False
    while True:
        block = f.read(_BLOCK)
        text = rest + block
        if not block and text and not text.endswith(b"\n"):
            text += b"\n"  # the last line need not end
        if not text:
            return
        while not known and (cut := text.rfind(b"\n", 0, _MAX_LINE) + 1):
            done, known = parser.find_out(text[:cut], line)
            line, text = line + text.count(b"\n", 0, done), text[done:]
        if not known:
            rest = text
            _check_length(path, line, rest)
            if block:
                continue
            return
        start, why = 0, -1
        while start < len(text) and why != 0:
            out = Accesses(
                np.empty(piece, np.uint64), np.empty(piece, np.uint32), np.empty(piece, np.uint8)
            )
            n, lines, stop, why = parser(text[start:], out)
            line, start = line + lines, start + stop
            if n:
                yield Accesses(out.address[:n], out.size[:n], out.kind[:n])
            if why == BAD_LINE:
                shown = text[start : start + 60].split(b"\n")[0].decode("ascii", "replace")
                name = parser.layout.name.lower() if parser.layout is not None else ""
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
    for number, line in enumerate(text.split(b"\n")[:-1], before + 1):
        found, may_be = layout_of(line)
        if found is not None:
            return found
        if not may_be:
            shown = line[:60].decode("ascii", "replace")
            raise RecordingError(f"{path}:{number}: not a line of any known layout: {shown!r}")
    return None


def layout_of(line: bytes) -> tuple[Layout | None, bool]:
    """Return the layout of a line that holds an access, and whether it may be one of any at all."""
    scratch = np.empty(1, np.uint64), np.empty(1, np.uint32), np.empty(1, np.uint8)
    buffer = np.frombuffer(line + b"\n", np.uint8)
    may_be = False
    for layout in _IN_KERNELS:
        n, _, _, why = parse(int(layout), buffer, *scratch)
        if why != BAD_LINE and n == 1:
            return layout, True
        may_be = may_be or why != BAD_LINE
    text = line.decode("ascii", "replace").strip()
    found = textual.fits(text)
    return found, may_be or found is not None or textual.other(text)
