"""Lives of address spaces and their tables within a trace: what a mode needs to know of them.

All of it follows from the trace alone, so it is computed once and serves every hook set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pvmmu._jit import kernel
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import ENTRY_OPS, OPS, RELEASE_OPS, Evidence, Flag, Op

_MOMENTS = (Op.DUP_MMAP, Op.ACTIVATE_MM, Op.EXIT_MMAP, Op.LOAD_CR3, Op.PGD_FREE)
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Lifecycle:
    """Moments of each address space, and the tables it has at each.

    Parameters
    ----------
    born, finished, loaded, exits, freed : int64[mm]
        Rows of PGD_ALLOC, of DUP_MMAP or ACTIVATE_MM, of the first LOAD_CR3, of EXIT_MMAP and of
        PGD_FREE; -1 for a moment before the trace begins, `NEVER` for one that does not come.
    walk_of : int32[row]
        Number of the walk over an address space's tables at a moment's row; -1 elsewhere.
    walk_start : int64[walk + 1]
        Where a walk begins in ``walk_level``.
    walk_level : uint8[...]
        Levels of the table pages below the top one in the order of ``xen_pgd_walk``: each upper
        page before those below it.
    present : int64[row]
        Present entries in all tables of the address space at a moment's row; -1 if unknown.
    """

    born: np.ndarray
    finished: np.ndarray
    loaded: np.ndarray
    exits: np.ndarray
    freed: np.ndarray
    walk_of: np.ndarray
    walk_start: np.ndarray
    walk_level: np.ndarray
    present: np.ndarray


def lifecycle(trace: Trace) -> Lifecycle:
    """Return the lives of the address spaces of `trace` (kept with it)."""
    if "lifecycle" not in trace.derived:
        trace.derived["lifecycle"] = _lifecycle(trace)
    life: Lifecycle = trace.derived["lifecycle"]
    return life


def _lifecycle(trace: Trace) -> Lifecycle:
    older = np.array([m.older for m in trace.mms])
    born = _first(trace, (Op.PGD_ALLOC,), older)
    finished = _first(trace, (Op.DUP_MMAP, Op.ACTIVATE_MM), older)
    loaded = _first(trace, (Op.LOAD_CR3,), older)
    no_one = np.zeros_like(older)
    exits, freed = _first(trace, (Op.EXIT_MMAP,), no_one), _first(trace, (Op.PGD_FREE,), no_one)
    walk_of, walk_start, walk_level = _walks(trace, loaded)
    return Lifecycle(
        born, finished, loaded, exits, freed, walk_of, walk_start, walk_level,
        _present(trace, older),
    )  # fmt: skip


def _first(trace: Trace, ops: tuple[Op, ...], older: np.ndarray) -> np.ndarray:
    """Return the first row of some operations for each address space; -1 where it is older."""
    out = np.where(older, -1, NEVER).astype(np.int64)
    rows = np.flatnonzero(np.isin(trace["op"], ops) & (trace["mm"] >= 0))[::-1]
    first = np.full(len(out), NEVER)
    first[trace["mm"][rows]] = rows
    return np.where(older, out, first)


def _walks(trace: Trace, loaded: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follow the stores to upper entries; at each moment list the tables of its address space."""
    op, mm, va, value = (trace[name] for name in ("op", "mm", "va", "value"))
    level = {int(o): OPS[o].level for o in ENTRY_OPS}
    upper = [int(o) for o in ENTRY_OPS if OPS[o].group == "upper"]
    wanted = [*upper, *map(int, _MOMENTS)]
    kept: dict[int, set[tuple[int, int]]] = {}  # mm -> (address, -level) of its tables
    walk_of = np.full(len(trace), -1, np.int32)
    starts, levels = [0], bytearray()
    for row in np.flatnonzero(np.isin(op, wanted) & (mm >= 0)).tolist():
        o, m = int(op[row]), int(mm[row])
        tables = kept.setdefault(m, set())
        if o in upper:
            child = (int(va[row]), 1 - level[o])
            (tables.add if value[row] & 1 else tables.discard)(child)
        elif o in _MOMENTS and (o != Op.LOAD_CR3 or loaded[m] == row):
            walk_of[row] = len(starts) - 1
            if trace.mms[m].older:
                levels += bytes(_older_tables(trace, row, m))
            else:
                levels += bytes(-minus for _, minus in sorted(tables))
            starts.append(len(levels))
    return walk_of, np.array(starts, np.int64), np.frombuffer(bytes(levels), np.uint8)


def _older_tables(trace: Trace, row: int, mm: int) -> list[int]:
    """Return the levels of the tables that an older address space has when it exits.

    They are those released until its top-level table is freed, for none outlives it.
    """
    if trace["op"][row] != Op.EXIT_MMAP:
        return []
    later = slice(row, None)
    released = np.isin(trace["op"][later], RELEASE_OPS) & (trace["mm"][later] == mm)
    rows = np.flatnonzero(released) + row
    keys = sorted((int(trace["va"][r]), -OPS[Op(trace["op"][r])].level) for r in rows)
    return [-minus for _, minus in keys]


def _present(trace: Trace, older: np.ndarray) -> np.ndarray:
    """Count the present entries of an address space at each of its moments."""
    known = (trace["flags"] & Flag.OLD_KNOWN) != 0
    entry = np.isin(trace["op"], [int(o) for o in ENTRY_OPS - {Op.MODIFY_PROT_START}])
    new = (trace["value"] & 1).astype(np.int64)
    old = ((trace["flags"] & Flag.OLD_PRESENT) != 0).astype(np.int64)
    delta = np.where(entry & known, new - old, 0)
    blind = entry & (~known | (trace["evidence"] == Evidence.UNKNOWN)) & (trace["mm"] > 0)
    moment = np.isin(trace["op"], _MOMENTS)
    sums: np.ndarray = _running_sum(trace["mm"], delta, blind, moment, older)
    return sums


@kernel
def _running_sum(mm, delta, blind, moment, older):  # type: ignore[no-untyped-def]
    """Sum `delta` for each address space; -1 from where something about it is unknown."""
    total = np.zeros(older.shape[0], np.int64)
    unknown = older.copy()
    out = np.full(mm.shape[0], -1, np.int64)
    for row in range(mm.shape[0]):
        m = mm[row]
        if m < 0:
            continue
        total[m] += delta[row]
        unknown[m] |= blind[row]
        if moment[row] and not unknown[m]:
            out[row] = total[m]
    return out
