"""Excerpts of streams that show a design everything that could break it.

Whether a hook set works depends on which operations a stream makes on tables in which state, and on
what follows what within a bracket, not on how often. So of many streams a few hundred rows are
enough: the first of each kind, with the moments of its address space, its bracket, and the flush
behind it. Judging them is judging all streams (`pvmmu.search.verdicts`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from pvmmu.guest.lifecycle import lifecycle
from pvmmu.guest.promises import Promises, promises
from pvmmu.guest.provenance import Platform
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import ALLOC_OPS, COLUMNS, RELEASE_OPS, Flag, Op

_MOMENTS: Final = (
    Op.PGD_ALLOC, Op.DUP_MMAP, Op.ACTIVATE_MM, Op.EXIT_MMAP, Op.PGD_FREE,
)  # fmt: skip
_FLUSHES: Final = (Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.LOAD_CR3)
#: Operations that open (+1) and close (-1) a bracket of either kind.
_BRACKETS: Final = (
    ((Op.LAZY_ENTER, Op.LAZY_RESUME), (Op.LAZY_LEAVE, Op.LAZY_PAUSE)),
    ((Op.SWITCH_START,), (Op.SWITCH_END,)),
)
#: Where the tables that a stream allocates are numbered from: none is allocated twice.
_NEW_TABLES: Final = 1 << 44


def excerpts(traces: Iterable[Trace]) -> tuple[Trace, ...]:
    """Return excerpts of some streams that together show whatever any of the streams shows.

    Parameters
    ----------
    traces : iterable of Trace
        Streams; what a short one shows is not taken from a longer one again.

    Returns
    -------
    tuple of Trace
        One for each platform among them: excerpts of its streams, one after the other.
    """
    by_platform: dict[Platform, list[Trace]] = {}
    for trace in sorted(traces, key=len):
        by_platform.setdefault(trace.platform, []).append(trace)
    out = []
    for some in by_platform.values():
        seen: set[int] = set()
        runs: set[tuple[int, ...]] = set()
        taken = [(t, _new_rows(t, seen, runs)) for t in some]
        out.append(_joined([_excerpt(t, rows) for t, rows in taken if len(rows)]))
    return tuple(out)


def _joined(parts: Sequence[Trace]) -> Trace:
    """Return streams of one platform, one after the other, their address spaces and tables apart.

    Each begins with a load of the address space that is loaded at its first row.
    """
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    mms, callers = [parts[0].mms[0]], sorted({c for t in parts for c in t.callers})
    for number, t in enumerate(parts):
        mm = t["mm"]
        own = np.flatnonzero(((t["flags"] & Flag.CURRENT_MM) != 0) & (mm > 0))
        first = {"op": int(Op.LOAD_CR3), "mm": mm[own[0]] if len(own) else 0}
        code = np.array([*(callers.index(c) for c in t.callers), -1])
        for name, (dtype, default, _) in COLUMNS.items():
            a = np.concatenate([[np.asarray(first.get(name, default), dtype)], t[name]])
            if name == "mm":
                a = np.where(a > 0, a + len(mms) - 1, a)
            elif name == "table":
                a = np.where(a >= 0, a + number * (_NEW_TABLES << 4), a)
            elif name == "caller":
                a = code[a]
            columns[name].append(a.astype(dtype))
        mms += t.mms[1:]
    source = dataclasses.replace(parts[0].provenance, source="excerpts of all streams")
    return Trace(
        {name: np.concatenate(a) for name, a in columns.items()}, tuple(mms), tuple(callers), source
    )


def _new_rows(trace: Trace, seen: set[int], runs: set[tuple[int, ...]]) -> np.ndarray:
    """Return the rows of kinds that were not seen before, and note them."""
    kept = promises(trace)
    lazy = _bracket_numbers(trace, *_BRACKETS[0])
    kinds = _kinds(trace, kept, lazy)
    found, first = np.unique(kinds, return_index=True)
    new = [r for k, r in zip(found.tolist(), first.tolist(), strict=True) if k not in seen]
    seen.update(found.tolist())
    # what is done to one entry within one bracket, in order
    rows = np.flatnonzero((kept.entry >= 0) & (lazy >= 0))
    rows = rows[np.lexsort((rows, kept.entry[rows], lazy[rows]))]
    starts = np.flatnonzero(
        np.concatenate([[True], (np.diff(lazy[rows]) != 0) | (np.diff(kept.entry[rows]) != 0)])
    ) if len(rows) else np.zeros(0, np.int64)  # fmt: skip
    ends = np.append(starts[1:], len(rows))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        run = tuple(kinds[rows[start:end]].tolist())
        if run not in runs:
            runs.add(run)
            new += rows[start:end].tolist()
    return np.unique(np.array(new, np.int64))


def _kinds(trace: Trace, kept: Promises, lazy: np.ndarray) -> np.ndarray:
    """Return a number for each row: equal for rows that no mode and no kernel tells apart."""
    life, mm, row = lifecycle(trace), trace["mm"], np.arange(len(trace))
    older = np.array([m.older for m in trace.mms])
    moments = (life.born, life.finished, life.loaded, life.exits, life.freed)
    marks = [
        *(row > at[mm] for at in moments), older[mm], mm < 0, mm == 0, _loaded(trace) == mm,
        _flush_is_next(trace), trace["value"] & np.uint64(1) != 0, lazy >= 0, kept.read_back,
        kept.loses_dirty, kept.unlocks, kept.walks & (kept.entry >= 0),
        trace["cpu"] > 0,
    ]  # fmt: skip
    out = trace["op"].astype(np.int64) << 16 | trace["flags"].astype(np.int64)
    for mark in marks:
        out = out << 1 | mark
    return out


def _loaded(trace: Trace) -> np.ndarray:
    """Return the address space that the row's CPU loaded last; -2 unknown."""
    out = np.full(len(trace), -2, np.int64)
    for cpu in range(trace.platform.vcpus):
        rows = np.flatnonzero(trace["cpu"] == cpu)
        loads = trace["op"][rows] == Op.LOAD_CR3
        at = np.maximum.accumulate(np.where(loads, np.arange(len(rows)), -1))
        known = at >= 0
        out[rows[known]] = trace["mm"][rows[at[known]]]
    return out


def _flush_is_next(trace: Trace) -> np.ndarray:
    """Return the rows after which their CPU flushes next."""
    out = np.zeros(len(trace), np.bool_)
    for cpu in range(trace.platform.vcpus):
        rows = np.flatnonzero((trace["cpu"] == cpu) & (trace["op"] != Op.FLUSH_RANGE))
        out[rows[:-1]] = np.isin(trace["op"][rows[1:]], _FLUSHES)
    return out


def _bracket_numbers(trace: Trace, opens: Sequence[Op], closes: Sequence[Op]) -> np.ndarray:
    """Return the number of the bracket that each row is in, with the rows that open and close it.

    -1 outside. Brackets of all CPUs are numbered; one that is paused goes on.
    """
    out = np.full(len(trace), -1, np.int64)
    first = 0
    for cpu in range(trace.platform.vcpus):
        rows = np.flatnonzero(trace["cpu"] == cpu)
        opening, closing = (np.isin(trace["op"][rows], ops) for ops in (opens, closes))
        depth = np.cumsum(opening.astype(np.int64) - closing)
        inside = (depth > 0) | closing
        number = first + np.cumsum(opening & (depth == 1))
        out[rows[inside]] = number[inside]
        first = int(number[-1]) + 1 if len(rows) else first
    return out


def _excerpt(trace: Trace, wanted: np.ndarray) -> Trace:
    """Return the rows in `wanted` with what decides how they are carried."""
    keep = np.zeros(len(trace), np.bool_)
    keep[wanted] = True
    keep[_next_of_cpu(trace, wanted)] = True
    written_by = promises(trace).written_by[wanted]
    keep[written_by[written_by >= 0]] = True
    mine = np.unique(trace["mm"][keep])
    keep |= np.isin(trace["op"], _MOMENTS) & np.isin(trace["mm"], mine)
    keep[_loads(trace, np.flatnonzero(keep), mine)] = True
    for opens, closes in _BRACKETS:
        number = _bracket_numbers(trace, opens, closes)
        edges = np.isin(trace["op"], (*opens, *closes))
        keep |= edges & np.isin(number, np.unique(number[keep & (number >= 0)]))
    rows = np.flatnonzero(keep)
    columns = {name: trace[name][rows].copy() for name in COLUMNS}
    made = np.isin(columns["op"], (*ALLOC_OPS, *RELEASE_OPS))
    columns["table"][made] = _NEW_TABLES + rows[made]
    return Trace(columns, trace.mms, trace.callers, trace.provenance)


def _next_of_cpu(trace: Trace, wanted: np.ndarray) -> np.ndarray:
    """Return the flush that directly follows each of some rows on its CPU."""
    out = [np.zeros(0, np.int64)]
    for cpu in range(trace.platform.vcpus):
        rows = np.flatnonzero((trace["cpu"] == cpu) & (trace["op"] != Op.FLUSH_RANGE))
        at = np.searchsorted(rows, wanted[trace["cpu"][wanted] == cpu]) + 1
        after = rows[at[at < len(rows)]]
        out.append(after[np.isin(trace["op"][after], _FLUSHES)])
    return np.concatenate(out)


def _loads(trace: Trace, rows: np.ndarray, mms: np.ndarray) -> np.ndarray:
    """Return the first load of CR3 of some address spaces, and the last before each row."""
    out = [np.zeros(0, np.int64)]
    for cpu in range(trace.platform.vcpus):
        loads = np.flatnonzero((trace["cpu"] == cpu) & (trace["op"] == Op.LOAD_CR3))
        at = np.searchsorted(loads, rows[trace["cpu"][rows] == cpu], side="right") - 1
        out.append(loads[np.unique(at[at >= 0])])
    loads = np.flatnonzero((trace["op"] == Op.LOAD_CR3) & np.isin(trace["mm"], mms))
    _, first = np.unique(trace["mm"][loads], return_index=True)
    return np.concatenate([*out, loads[first]])
