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

import lzma
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from pvmmu.errors import RecordingError, TraceError, did_you_mean
from pvmmu.files import whole_file
from pvmmu.guest.readers.memory.lines import Layout
from pvmmu.guest.readers.memory.read import KINDS, Accesses, as_pages, read_accesses
from pvmmu.guest.readers.memory.scan import FETCH, MODIFY, READ, WRITE
from pvmmu.paths import data_path
from pvmmu.x86.accesses import Pages

_COMPACT: Final = ".mem.xz"
# Arrays of a compact file: numpy.lib.format, version 1.0.
_MAGIC: Final = b"\x93NUMPY\x01\x00"
_HEADER: Final = re.compile(
    r"\{'descr': '(<u[248])', 'fortran_order': False, 'shape': \((\d{1,12}),\), \}\s*"
)
_MOST_BYTES: Final = 1 << 30


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
        return as_pages(self.table[index] << np.uint64(12), (kind == FETCH).astype(np.uint8))

    @classmethod
    def read(cls, path: str | os.PathLike[str], layout: Layout | str | None = None) -> MemoryTrace:
        """Read all of `path` in `layout` (as `read_accesses`): 3 to 5 bytes for each access."""
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
        """Write it in compact form, whole or not at all.

        Parameters
        ----------
        path : path-like
            A name that ends in ``.mem.xz``.

        Raises
        ------
        TraceError
            The name ends otherwise, or the target cannot be written.
        """
        path = Path(path)
        if not path.name.endswith(_COMPACT):
            raise TraceError(f"{path}: the name of a compact memory trace ends in {_COMPACT}")
        wide = np.uint16 if self.table.size <= 1 << 14 else np.uint32
        symbols: npt.NDArray[Any] = self.index.astype(np.uint32) << np.uint32(2) | self.kind
        with whole_file(path, TraceError) as tmp, lzma.open(tmp, "wb", preset=9) as f:
            np.save(f, self.table, allow_pickle=False)
            np.save(f, symbols.astype(wide), allow_pickle=False)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MemoryTrace:
        """Read the file `path` that `save` has written.

        Raises
        ------
        RecordingError
            The file is missing or none of this kind.
        """
        path = Path(path)
        try:
            with lzma.open(path, "rb") as f:
                table, symbols = _read_array(f), _read_array(f)
        except FileNotFoundError:
            raise RecordingError(f"{path}: no such file") from None
        except (OSError, EOFError, ValueError, lzma.LZMAError) as e:
            raise RecordingError(f"{path}: not a compact memory trace ({e})") from None
        if table.dtype != np.uint64 or symbols.dtype not in (np.uint16, np.uint32):
            raise RecordingError(f"{path}: not a compact memory trace (wrong types)")
        name = path.name.removesuffix(_COMPACT)
        return cls(name, table, symbols >> 2, (symbols & 3).astype(np.uint8))


def _read_array(f: IO[bytes]) -> npt.NDArray[Any]:
    """Read an array as `numpy.save` writes it, without the evaluation of its header.

    Raises
    ------
    ValueError
        It is no vector of unsigned numbers, or of more than a GiB.
    """
    if f.read(8) != _MAGIC:
        raise ValueError("no array of numpy, format 1.0")
    header = f.read(int.from_bytes(f.read(2), "little")).decode("latin-1")
    m = _HEADER.fullmatch(header)
    if m is None:
        raise ValueError(f"not the header of a vector: {header[:60]!r}")
    dtype, n = np.dtype(m[1]), int(m[2])
    if n * dtype.itemsize > _MOST_BYTES:
        raise ValueError(f"a vector of {n} elements")
    data = f.read(n * dtype.itemsize)
    if len(data) != n * dtype.itemsize:
        raise ValueError("cut short")
    return np.frombuffer(data, dtype)


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
    """Return the memory trace called `name` that ships with the package (`memory_trace_names`).

    Raises
    ------
    RecordingError
        There is none of that name; the message lists the nearest.
    """
    path = data_path("memory") / f"{name}{_COMPACT}"
    if not path.is_file():
        hint = did_you_mean(name, memory_trace_names())
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
