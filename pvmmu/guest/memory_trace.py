"""Memory traces: what a program touched, from the tools that people have.

`read_accesses` reads the text of valgrind's lackey, Dinero's din, DynamoRIO's drmemtrace (view
tool) and plain CSV piece by piece, so that memory stays bounded however long the trace is.
`MemoryTrace` holds a trace at page granularity, a few bytes for each access; two recorded ones ship
with the package.

>>> for piece in read_accesses("trace.txt.gz"):
...     tlb.run(piece.pages())
>>> reach = Reach().add(load_memory_trace("cc1").pages(fetches=False))
"""

from __future__ import annotations

import difflib
import gzip
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm

from pvmmu.errors import RecordingError, TraceError
from pvmmu.guest.memory_lines import (
    BAD_LINE,
    FETCH,
    MODIFY,
    READ,
    WRITE,
    Layout,
    parse,
    touched,
)
from pvmmu.paths import data_path
from pvmmu.x86.tlb import Pages, pages

KINDS: Final = ("read", "write", "fetch", "modify")
_OPENERS: Final[dict[str, Callable[..., Any]]] = {".gz": gzip.open, ".xz": lzma.open}
_BLOCK: Final = 1 << 22  # bytes read at a time
_MAX_LINE: Final = 1 << 16
_PIECE: Final = 1 << 20  # accesses of a piece
_COMPACT: Final = ".mem.xz"


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
        return _pages(words[:n], fetch[:n])


def _pages(va: npt.NDArray[np.uint64], fetch: npt.NDArray[np.uint8]) -> Pages:
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
        Text, plain or compressed as ``.gz`` or ``.xz``.
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
    try:
        size = path.stat().st_size
        with (
            path.open("rb") as raw,
            _opened(path, raw) as f,
            tqdm(
                total=size, unit="B", unit_scale=True, desc=path.name, disable=not progress, delay=1
            ) as bar,
        ):
            for part in _parts(path, f, known, piece):
                bar.update(raw.tell() - bar.n)
                total += len(part)
                yield part
    except FileNotFoundError:
        raise RecordingError(f"{path}: no such file") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as e:
        reason = "is cut short" if isinstance(e, EOFError) else f"is not {path.suffix[1:]} data"
        raise RecordingError(f"{path}: {reason} (after {total} accesses)") from None
    except OSError as e:
        raise RecordingError(f"{path}: cannot be read ({e.strerror or e})") from None
    if total == 0:
        raise RecordingError(f"{path}: no access in it")


def _opened(path: Path, raw: IO[bytes]) -> IO[bytes]:
    opener = _OPENERS.get(path.suffix)
    return raw if opener is None else opener(raw, "rb")


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


@dataclass(frozen=True)
class MemoryTrace:
    """A memory trace at page granularity, compact.

    Attributes
    ----------
    name : str
        Where it is from.
    table : uint64[p]
        Numbers of the different 4-KiB pages.
    index : uint16[n] or uint32[n]
        Page of each touch, an index into `table`.
    kind : uint8[n]
        0 read, 1 write, 2 fetch, 3 modify.
    """

    name: str
    table: npt.NDArray[np.uint64]
    index: npt.NDArray[Any]
    kind: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.index.shape != self.kind.shape or self.index.ndim != 1 or self.table.ndim != 1:
            raise TraceError(f"{self.name}: index and kind differ in length")
        if self.index.size and int(self.index.max()) >= self.table.size:
            raise TraceError(f"{self.name}: page {int(self.index.max())} of {self.table.size}")
        if self.kind.size and int(self.kind.max()) > MODIFY:
            raise TraceError(f"{self.name}: kind of access {int(self.kind.max())} is not 0 to 3")

    def __len__(self) -> int:
        return self.index.size

    def pages(self, data: bool = True, fetches: bool = True, limit: int | None = None) -> Pages:
        """Return the pages touched, in order, for a TLB.

        Parameters
        ----------
        data, fetches : bool
            Whether data accesses and instruction fetches count.
        limit : int, optional
            Only so many of them.
        """
        keep = np.array([data, data, fetches, data])[self.kind]
        index, kind = self.index[keep][:limit], self.kind[keep][:limit]
        return _pages(self.table[index] << np.uint64(12), (kind == FETCH).astype(np.uint8))

    @classmethod
    def read(cls, path: str | os.PathLike[str], layout: Layout | str | None = None) -> MemoryTrace:
        """Read a whole trace (`read_accesses`) into memory: 3 to 5 bytes for each access."""
        numbers: dict[int, int] = {}
        indices, kinds = [], []
        for part in read_accesses(path, layout):
            words, which = _touches(part)
            new, inverse = np.unique(words, return_inverse=True)
            own = [numbers.setdefault(int(p), len(numbers)) for p in new]
            indices.append(np.array(own, np.uint32)[inverse])
            kinds.append(which)
        index = np.concatenate(indices)
        small = index.astype(np.uint16) if len(numbers) <= 1 << 14 else index
        table = np.fromiter(numbers, np.uint64, len(numbers))
        return cls(Path(path).name, table, small, np.concatenate(kinds))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it in compact form, to a file whose name ends in ``.mem.xz``."""
        path = Path(path)
        if not path.name.endswith(_COMPACT):
            raise TraceError(f"{path}: the name of a compact memory trace ends in {_COMPACT}")
        wide = np.uint16 if self.table.size <= 1 << 14 else np.uint32
        symbols: npt.NDArray[Any] = self.index.astype(np.uint32) << np.uint32(2) | self.kind
        with lzma.open(path, "wb", preset=9) as f:
            np.save(f, self.table, allow_pickle=False)
            np.save(f, symbols.astype(wide), allow_pickle=False)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MemoryTrace:
        """Read a file that `save` has written.

        Raises
        ------
        RecordingError
            The file is missing or none of this kind.
        """
        path = Path(path)
        try:
            with lzma.open(path, "rb") as f:
                table = np.lib.format.read_array(f, allow_pickle=False)
                symbols = np.lib.format.read_array(f, allow_pickle=False)
        except FileNotFoundError:
            raise RecordingError(f"{path}: no such file") from None
        except (OSError, EOFError, ValueError, lzma.LZMAError) as e:
            raise RecordingError(f"{path}: not a compact memory trace ({e})") from None
        if table.dtype != np.uint64 or symbols.dtype not in (np.uint16, np.uint32):
            raise RecordingError(f"{path}: not a compact memory trace (wrong types)")
        name = path.name.removesuffix(_COMPACT)
        return cls(name, table, symbols >> 2, (symbols & 3).astype(np.uint8))


def _touches(part: Accesses) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Page and kind of each page that a piece touches."""
    size = np.maximum(part.size, 1).astype(np.uint64)
    first = part.address >> np.uint64(12)
    last = (part.address + size - np.uint64(1)) >> np.uint64(12)
    times = (last - first).astype(np.int64) + 1
    words, ends = np.repeat(first, times), np.cumsum(times)
    within = np.arange(words.size) - np.repeat(ends - times, times)
    return words + within.astype(np.uint64), np.repeat(part.kind, times)


def memory_trace_names() -> list[str]:
    """Names of the memory traces that ship with the package."""
    return sorted(p.name.removesuffix(_COMPACT) for p in data_path("memory").glob(f"*{_COMPACT}"))


def load_memory_trace(name: str) -> MemoryTrace:
    """Return a memory trace that ships with the package (`memory_trace_names`).

    Raises
    ------
    RecordingError
        There is none of that name; the message lists the nearest.
    """
    path = data_path("memory") / f"{name}{_COMPACT}"
    if not path.is_file():
        near = difflib.get_close_matches(name, memory_trace_names(), 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise RecordingError(f"no memory trace is named {name!r}{hint}")
    return MemoryTrace.load(path)


__all__ = [
    "FETCH",
    "KINDS",
    "MODIFY",
    "READ",
    "WRITE",
    "Accesses",
    "Layout",
    "MemoryTrace",
    "load_memory_trace",
    "memory_trace_names",
    "read_accesses",
]
