"""Everything that reads what somebody else wrote, as functions of bytes, with seeds to begin from.

A reader either takes its input or raises `PvmmuError`; anything else is a finding.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import lzma
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from guests import random_trace

from pvmmu.costs import get_costs
from pvmmu.errors import PvmmuError
from pvmmu.evidence.truth.measurements import compare_measurements
from pvmmu.guest.readers.memory.memory_trace import MemoryTrace
from pvmmu.guest.readers.memory.read import read_accesses
from pvmmu.guest.readers.strace.reader import read_strace
from pvmmu.guest.readers.strace.touches import read_lackey
from pvmmu.guest.readers.xen.recording import read_recording
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.partition import Space
from pvmmu.paths import data_path
from pvmmu.report.state import State, load_state
from pvmmu.search import search
from pvmmu.search.files import read_cell
from pvmmu.x86 import load_geometry

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
RECORDINGS = HERE.parent / "data" / "xen_pv"
#: Where inputs are put for readers that take a path: memory, if there is a place.
_SHM = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())


@dataclass(frozen=True)
class Reader:
    """One reader.

    Parameters
    ----------
    read : callable
        Takes bytes.
    seeds : callable
        Returns inputs that it accepts, list of bytes.
    tries : int
        Changed inputs that the tests make: fewer where one takes long.
    """

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]
    tries: int = 120

    def accepts(self, data: bytes) -> bool:
        """Whether an input is taken; what is neither taken nor refused goes through."""
        try:
            self.read(data)
        except PvmmuError:
            return False
        return True


def _file(suffix: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Make a reader of files one of bytes."""
    path = _SHM / f"pvmmu-fuzz-{os.getpid()}{suffix}"

    def of_bytes(data: bytes) -> object:
        path.write_bytes(data)
        try:
            return read(path)
        finally:
            path.unlink()

    return of_bytes


def _text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    def of_bytes(data: bytes) -> object:
        return read(data.decode("utf-8", "replace"))

    return of_bytes


# ---------------------------------------------------------------------- seeds
def _lines(path: Path, *parts: slice) -> list[bytes]:
    lines = lzma.decompress(path.read_bytes()).splitlines(keepends=True)
    return [b"".join(lines[p]) for p in parts]


def _recordings() -> list[bytes]:
    parts = slice(0, 60), slice(0, 200), slice(300, 420)
    names = ("fork.1", "mprotect.1", "cmd_shloop")
    found = [p for n in names for p in RECORDINGS.glob(f"*{n}.txt.xz")]
    return [x for path in found for x in _lines(path, *parts)]


def _files(*patterns: str) -> Callable[[], list[bytes]]:
    def read() -> list[bytes]:
        return [p.read_bytes()[:20_000] for x in patterns for p in sorted(data_path().glob(x))]

    return read


def _calls() -> list[bytes]:
    files = sorted(data_path("strace").glob("*.strace"))
    forms = sorted((HERE.parent / "data" / "strace").glob("*.strace"))
    whole = [p.read_bytes() for p in forms]
    return [*(b"".join(p.read_bytes().splitlines(keepends=True)[:25]) for p in files), *whole]


def _touches() -> list[bytes]:
    return [p.read_bytes() for p in sorted(data_path("strace").glob("*.gz"))]


def _constant(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [t.encode() for t in texts]


_ACCESSES = {
    "lackey": " L 1ffeffe7e0,8\nI  04001000,3\n S 1ffeffe7d8,8\n M 0421c7cc,4\n==1== end\n",
    "din": "0 1ffeffe7e0\n1 421c7cc\n2 4001000\n",
    "drmemtrace": (
        "Output format:\n <--record#-> <--instr#->: <---tid---> <record details>\n"
        "           1           1:     1234567 ifetch       3 byte(s) @ 0x00007f6f ab\n"
        "           2           1:     1234567 read         8 byte(s) @ 0x00007ffe by PC 0x1\n"
    ),
    "csv": "address,kind,size\n0x1000,r,8\n4096,w,4\n",
    "pin": "#\n0x401000: R 0x401ab70\n0x401003: W 0x1fff000768 8\n#eof\n",
    "kind_first": "r 401ab70\nW 0x1fff000768\nl 0x4022ff8 16\n",
    "kind_last": "401ab70 R\n0x1fff000768 W\n",
    "gem5": "r,67218288,1,0,1000\n7: system.mem: Write of size 8 on address 0x40 data 0x1\n",
    "champsim": "idx=0 ip=0x1 src_mem=[0x40] dst_mem=[0x50,0x0]\n3659, 18, 401ab70, 400c1f, 0\n",
}  # fmt: skip


# ---------------------------------------------------------------------- Parquet of another make
@functools.cache
def _table() -> pa.Table:
    path = _SHM / f"pvmmu-fuzz-seed-{os.getpid()}.parquet"
    random_trace(1, 12).save(path)
    try:
        return pq.read_table(path)
    finally:
        path.unlink()


_TYPES = (pa.int64(), pa.uint8(), pa.float64(), pa.string(), pa.binary(), pa.bool_(), pa.null())


def foreign_table(data: bytes) -> bytes:
    """Return a Parquet file like that of a trace, changed as the bytes say.

    Each command takes four bytes: what, which column, two of a value.
    """
    table, meta = _table(), dict(_table().schema.metadata)
    for i in range(0, len(data) - 3, 4):
        what, column, low, high = data[i : i + 4]
        if table.num_columns == 0:
            break
        value, place = low | high << 8, column % table.num_columns
        with contextlib.suppress(pa.ArrowException, OverflowError, ValueError):
            table, meta = _changed(table, meta, what % 6, place, value)
    out = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(meta), out)
    return out.getvalue()


def _changed(
    table: pa.Table, meta: dict[bytes, bytes], what: int, place: int, value: int
) -> tuple[pa.Table, dict[bytes, bytes]]:
    if what == 0:
        return table.remove_column(place), meta
    if what == 1:
        cast = table.column(place).cast(_TYPES[value % len(_TYPES)], safe=False)
        return table.set_column(place, table.column_names[place], cast), meta
    if what == 2:
        return table.slice(value % 70, max(value >> 8, 1) % 70), meta
    if what == 3:
        values = table.column(place).to_pylist()
        if values:
            row = value % len(values)
            values[row] = None if value >> 15 else values[row - 1]
        column = pa.array(values, table.schema.field(place).type)
        return table.set_column(place, table.column_names[place], column), meta
    if what == 4:
        numbers = np.full(table.num_rows, value - 32768, np.int64)
        column = pa.array(numbers).cast(table.schema.field(place).type, safe=False)
        return table.set_column(place, table.column_names[place], column), meta
    key = sorted(meta)[place % len(meta)]
    text = bytearray(meta[key])
    if text:
        text[(value * 7919) % len(text)] = value % 128
    return table, {**meta, key: bytes(text)}


def _parquet_seeds() -> list[bytes]:
    return [b"", bytes([4, 3, 5, 0]), bytes([5, 1, 9, 9, 3, 2, 1, 0]), bytes([0, 2, 0, 0])]


@functools.cache
def _cell() -> tuple[pa.Table, bytes]:
    """The columns of a small search, and what its file says of them."""
    space = Space(HookSet.of("set_pte", "lazy_mmu"), HookSet.of("set_pmd", "flush_tlb_user"))
    found = search([random_trace(1, 12)], ["shadow"], space, progress=False)
    with tempfile.TemporaryDirectory(dir=_SHM) as folder:
        [path] = found.save(folder).glob("*.cell.parquet")
        table = pq.read_table(path)
    return table, table.schema.metadata[b"pvmmu.cell"]


def _described_cell(meta: bytes) -> bytes:
    """Return the file of a cell that says something else of itself."""
    out = io.BytesIO()
    pq.write_table(_cell()[0].replace_schema_metadata({b"pvmmu.cell": meta}), out)
    return out.getvalue()


_load_cell = _file(".cell.parquet", read_cell)


def _trace_bytes() -> list[bytes]:
    return [foreign_table(b"")]


def _compact() -> list[bytes]:
    path = _SHM / f"pvmmu-fuzz-seed-{os.getpid()}.mem.xz"
    kinds = np.array([0, 2, 3], np.uint8)
    trace = MemoryTrace("t", np.array([5, 9], np.uint64), np.array([0, 1, 1]), kinds)
    try:
        return [trace.save(path).read_bytes()]
    finally:
        path.unlink()


def _measurements() -> list[bytes]:
    """Head and two rows of each kind of table, for sizes that the model runs at once."""
    out = []
    for name, of in (("xen_pv_summary.csv", ",fork,0,"), ("shadow_summary.csv", ",mprotect,"),
                     ("kernel_counts.csv.xz", ",fork,0,")):  # fmt: skip
        data = data_path("truth", name).read_bytes()
        lines = (lzma.decompress(data) if name.endswith("xz") else data).decode().splitlines()
        out.append("\n".join([lines[0], *[x for x in lines if of in x][:2], ""]).encode())
    return out


_load_parquet = _file(".parquet", Trace.load)
_STATE = State.of("fork.1", ["direct=linux-6.1", "shadow=none"], "xen-2026").json()

#: All readers by name.
READERS: dict[str, Reader] = {
    "recording": Reader(_file(".txt", read_recording), _recordings),
    **{
        name: Reader(
            _file(f".{name}", lambda p, n=name: list(read_accesses(p, n, progress=False))),
            _constant(text),
        )
        for name, text in list(_ACCESSES.items())[:4]
    },
    "accesses": Reader(
        _file(".any", lambda p: list(read_accesses(p, progress=False))),
        _constant(*_ACCESSES.values()),
    ),
    "strace": Reader(_file(".strace", read_strace), _calls, tries=25),
    "touches": Reader(
        _file(".lackey", read_lackey),
        lambda: [gzip.decompress(x)[:2_000] for x in _touches()],
    ),
    "costs": Reader(_file(".toml", get_costs), _files("costs/*.toml")),
    "geometry": Reader(_file(".toml", load_geometry), _files("tlb/*.toml")),
    "measurements": Reader(_file(".csv", compare_measurements), _measurements, tries=25),
    "state": Reader(_file(".json", load_state), _constant(_STATE)),
    "hooks": Reader(
        _text(HookSet.parse), _constant("linux-6.1 +set_pte -lazy_mmu", "none", "0x1f")
    ),
    "mode": Reader(_text(get_mode), _constant("direct:backend=2.6.27,stores=batched", "shadow")),
    "trace": Reader(_load_parquet, _trace_bytes),
    "foreign": Reader(lambda data: _load_parquet(foreign_table(data)), _parquet_seeds),
    "cell": Reader(lambda data: _load_cell(_described_cell(data)), lambda: [_cell()[1]]),
    "compact": Reader(_file(".mem.xz", MemoryTrace.load), _compact),
}
