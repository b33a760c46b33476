"""Operations by name: of a recorded guest, or of the guest model under a kernel of your choice.

stream("make")               # recorded, ships with the package
stream("fork.64@2.6.22")     # modelled: fork of 64 pages under Linux 2.6.22, with touches
stream("fork.64@2.6.22/2")   # ... with tables of two levels (no PAE)
"""

from __future__ import annotations

import dataclasses
import functools
import re

import numpy as np

from pvmmu.errors import TraceError
from pvmmu.guest.library import load_trace
from pvmmu.guest.linux.guest import default_platform
from pvmmu.guest.linux.profile import load_profile
from pvmmu.guest.readers.strace import read_example
from pvmmu.guest.rewrite import with_high_memory
from pvmmu.guest.trace import COLUMNS, Evidence, Flag, Mm, Op, Trace
from pvmmu.guest.workloads import run_workload

#: Whole programs that were recorded, 6.1, one CPU: what "real streams" means.
REAL_STREAMS = ("make", "redis", "python", "shloop", "dashloop", "forksnap")


#: Parts of a recorded program: a child that exits, one that becomes a program, a shell with one.
PARTS = ("fork", "exec", "sh")


@functools.lru_cache(maxsize=64)
def stream(name: str) -> Trace:
    """Return a trace by name.

    Parameters
    ----------
    name : str
        A trace that ships with the package, or ``WORKLOAD.N@KERNEL`` for the guest model, with
        ``/LEVELS`` where the kernel has a choice and ``+high`` for high memory; or
        ``EXAMPLE:PART@KERNEL`` for a part (`PARTS`) of a recorded program on the guest model.

    Raises
    ------
    TraceError, GuestError, ProfileError
        There is none of that name; no such workload or kernel.
    """
    if "@" not in name:
        return load_trace(name)
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
    own = ((trace["flags"] & Flag.CURRENT) != 0) & (trace["mm"] > 0)
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
