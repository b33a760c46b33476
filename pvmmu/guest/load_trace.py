"""The front door: a trace by name, of the guest model, or from any file that pvmmu reads.

load_trace("make")                # recorded, ships with the package
load_trace("fork.64@2.6.22")      # modelled: fork of 64 pages under Linux 2.6.22, with touches
load_trace("fork.64@2.6.22/2")    # ... with tables of two levels (no PAE)
load_trace("out.1234")            # a file: its content tells what it is
"""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path

import numpy as np

from pvmmu.errors import RecordingError, TraceError, did_you_mean
from pvmmu.guest.linux.guest import default_platform
from pvmmu.guest.linux.profile import load_profile
from pvmmu.guest.readers.sniff import STDIN, Kind, kind_of, local
from pvmmu.guest.readers.strace.folders import siblings
from pvmmu.guest.readers.strace.reader import (
    example_names,
    example_path,
    read_example,
    read_strace,
)
from pvmmu.guest.readers.text_files import without_compression
from pvmmu.guest.readers.xen.recording import read_recording
from pvmmu.guest.rewrite import with_high_memory
from pvmmu.guest.trace import COLUMNS, Evidence, Flag, Mm, Op, Trace
from pvmmu.guest.workloads import run_workload
from pvmmu.paths import data_path

__all__ = [
    "PARTS",
    "REAL_STREAMS",
    "Reading",
    "load_trace",
    "ships",
    "trace_names",
    "trace_path",
    "whole_program_names",
]  # fmt: skip

#: Whole programs that were recorded, 6.1, one CPU: what "real streams" means.
REAL_STREAMS = ("make", "redis", "python", "shloop", "dashloop", "forksnap")

#: Parts of a recorded program: a child that exits, one that becomes a program, a shell with one.
PARTS = ("fork", "exec", "sh")


@dataclasses.dataclass(frozen=True)
class Reading:
    """How recorded system calls are read.

    Parameters
    ----------
    kernel : str
        Kernel profile on which they run.
    assume : str
        What is touched where nothing tells (`pvmmu.guest.readers.strace.ASSUMPTIONS`).
    frames : int
        Memory of the guest, in frames of 4 KiB.
    """

    kernel: str = "6.1"
    assume: str = "data"
    frames: int = 1 << 20


def trace_names() -> list[str]:
    """Return the names of the traces that ship with the package."""
    return sorted(p.stem for p in data_path("traces").glob("*.parquet"))


def whole_program_names() -> list[str]:
    """Return the names of whole programs of the measured design space that `trace_names` lacks."""
    folder = data_path("truth", "designs", "streams")
    names = {p.stem.removeprefix("cmd_") for p in folder.glob("cmd_*.parquet")}
    return sorted(names - set(trace_names()))


def ships(name: str) -> bool:
    """Return whether the package has a trace called `name`."""
    return name in trace_names() or name in whole_program_names()


def trace_path(name: str) -> Path:
    """Return the file of the trace called `name` that ships with the package.

    Raises
    ------
    TraceError
        There is none of that name; the message lists the nearest.
    """
    path = data_path("traces") / f"{name}.parquet"
    if not path.is_file() and name in whole_program_names():
        path = data_path("truth", "designs", "streams", f"cmd_{name}.parquet")
    if not path.is_file():
        known = [*trace_names(), *whole_program_names()]
        hint = did_you_mean(name, known) or " (pvmmu list traces names them)"
        raise TraceError(f"no trace named {name!r} ships with pvmmu{hint}")
    return path


def load_trace(name: str | Path, how: Reading | None = None) -> Trace:
    """Return a trace.

    Parameters
    ----------
    name : str or Path
        A trace that ships with the package (`trace_names`, `whole_program_names`);
        ``WORKLOAD.N@KERNEL`` for the guest model, with ``/LEVELS`` where the kernel has a choice
        and ``+high`` for high memory;
        ``EXAMPLE:PART@KERNEL`` for a part (`PARTS`) of a recorded program on the guest model; or a
        file of whatever name, plain or compressed (gzip, xz, bzip2, zstd), ``"-"`` for standard
        input, whose content tells what it is: Parquet of pvmmu, strace, a folder (or the common
        beginning of the names) that ``strace -ff`` has written, or a merged Xen recording. A `Path`
        is always a file.
    how : Reading, optional
        How system calls are read.

    Raises
    ------
    TraceError, RecordingError, GuestError, ProfileError
        There is none of that name; no such workload or kernel; the file is none of these, or cannot
        be read: one line that tells what it looks like.
    """
    text = str(name)
    if isinstance(name, Path) or text == STDIN:
        return _from_file(local(name), how or Reading())
    if not ships(text):
        path = Path(text)
        if path.exists() or siblings(path):
            return _from_file(path, how or Reading())
        plain = without_compression(text).removesuffix(".strace")
        if plain != text and plain in example_names():
            return _from_file(example_path(plain), how or Reading())
        if _is_file_name(text):
            raise RecordingError(f"{text}: no such file")
    return _named(text)


def _is_file_name(text: str) -> bool:
    """Whether a text can only name a file."""
    plain = without_compression(text)
    return "@" not in text and (
        "/" in text or plain != text or plain.endswith((".parquet", ".strace", ".txt", ".log"))
    )


def _from_file(path: Path, how: Reading) -> Trace:
    """Return the trace in a file, by its content."""
    if path.is_dir() or not path.exists():
        if path.is_dir() or siblings(path):
            return read_strace(path, how.kernel, assume=how.assume, frames=how.frames)
        raise RecordingError(f"{path}: no such file")
    kind = kind_of(path)
    if kind is Kind.PARQUET:
        return Trace.load(path)
    if kind is Kind.XEN:
        return read_recording(path)
    if kind is Kind.STRACE:
        return read_strace(path, how.kernel, assume=how.assume, frames=how.frames)
    instead = (
        f"pvmmu tlb {path} tells what its TLB misses are"
        if kind is Kind.MEMORY
        else "it goes beside the strace of the same run, as NAME.faults beside NAME.strace"
    )
    raise RecordingError(f"{path}: {kind.value}, not operations of a kernel: {instead}")


@functools.lru_cache(maxsize=64)
def _named(name: str) -> Trace:
    """Return a trace that ships, or one of the guest model."""
    if "@" not in name:
        return Trace.load(trace_path(name))
    part = re.fullmatch(r"([^:]+):([a-z]+)@([^/]+)", name)
    if part and part[2] in PARTS:
        return _with_loaded_tables(_part(read_example(part[1], part[3]), part[2]))
    parts = re.fullmatch(r"(.+)\.(\d+)@([^/]+)(?:/([2345]))?(\+high)?", name)
    if parts is None:
        raise TraceError(f"{name!r} is not WORKLOAD.N@KERNEL, such as 'fork.64@2.6.22'")
    platform = default_platform(load_profile(parts[3]))
    if parts[4]:
        platform = dataclasses.replace(platform, levels=int(parts[4]))
    trace = run_workload(parts[1], int(parts[2]), parts[3], platform, touches=True)
    return _with_loaded_tables(with_high_memory(trace) if parts[5] else trace)


def _part(trace: Trace, part: str) -> Trace:
    """Return what one process of a recorded program did; the others' tables are older then."""
    spaces: dict[str, list[int]] = {}
    for number, mm in enumerate(trace.mms[1:], 1):
        spaces.setdefault(mm.label.partition("[")[2], []).append(number)
    born, exits, freed = (
        {int(trace["mm"][r]): int(r) for r in np.flatnonzero(trace["op"] == op)}
        for op in (Op.PGD_ALLOC, Op.EXIT_MMAP, Op.PGD_FREE)
    )
    first, *children = spaces.values()
    forks = [c for c in children if len(c) == 1]
    execs = [c for c in children if len(c) == 2]
    wanted = np.zeros(len(trace), np.bool_)
    if part == "sh":
        wanted[: freed[execs[0][-1]] + 1] = True
        wanted[exits[first[-1]] :] = True
    else:
        chosen = (forks if part == "fork" else execs)[-1]
        wanted[born[chosen[0]] : freed[chosen[-1]] + 1] = True
    mms = tuple(
        dataclasses.replace(m, older=m.older or not wanted[born.get(i, 0)])
        for i, m in enumerate(trace.mms)
    )
    columns = {name: trace[name][wanted] for name in COLUMNS}
    return Trace(columns, mms, trace.callers, trace.provenance)


def _with_loaded_tables(trace: Trace) -> Trace:
    """Return the trace after a load of its program's tables: every mode knows what is loaded."""
    own = ((trace["flags"] & Flag.CURRENT_MM) != 0) & (trace["mm"] > 0)
    if not own.any():
        return trace
    columns = {
        name: np.concatenate([np.array([default], dtype), trace[name]])
        for name, (dtype, default, _) in COLUMNS.items()
    }
    columns["op"][0], columns["mm"][0] = Op.LOAD_CR3, trace["mm"][own.argmax()]
    columns["evidence"][0] = columns["place"][0] = Evidence.MODELLED
    mms = tuple(Mm(m.label, int(m.pgd), bool(m.older)) for m in trace.mms)
    return Trace(columns, mms, trace.callers, trace.provenance)
