"""A trace as the loop of direct mode reads it."""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu.guest.lifecycle import lifecycle
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import (
    ALLOC_OPS,
    ENTRY_OPS,
    N_OPS,
    OPS,
    RELEASE_OPS,
    SET_UPPER_OPS,
    Flag,
    Op,
)
from pvmmu.hooks import HookSet
from pvmmu.modes.direct.kernel import ROW, Walks
from pvmmu.modes.direct.rules import RANGES

#: Operations that write both halves of a 64-bit entry of a 32-bit guest, by one store each.
_HALVES: Final = (Op.SET_PTE, Op.PTE_CLEAR, Op.MODIFY_PROT_COMMIT)
#: Operations that read and clear an entry: one access or two.
_CLEARS: Final = (Op.PTE_GET_AND_CLEAR, Op.MODIFY_PROT_START)
#: Numbers of the tables with the kernel's own entries for table pages, apart from those of frames.
_KERNEL_TABLES: Final = 1 << 40


def rows_of(trace: Trace) -> np.ndarray:
    """Return the rows of `trace` as the loop reads them, `ROW`[row] (kept with the trace)."""
    if "direct rows" not in trace.derived:
        life = lifecycle(trace)
        level = np.zeros(N_OPS, np.uint8)
        for op, info in OPS.items():
            level[op] = info.level
        rows = np.zeros(len(trace), ROW)
        for name in ("op", "cpu", "mm", "table", "va"):
            rows[name] = trace[name]
        rows["slot"], rows["level"] = trace["index"], level[trace["op"]]
        rows["again"] = (trace["flags"] & Flag.ALREADY_TABLE) != 0
        rows["drops"] = _drops(trace)
        rows["run_end"] = _run_ends(trace)
        rows["walk"], rows["present"] = life.walk_of, life.present
        rows["halves"] = np.isin(trace["op"], _HALVES) + 2 * np.isin(trace["op"], _CLEARS)
        _kernel_entries(trace, rows)
        trace.derived["direct rows"] = rows
    out: np.ndarray = trace.derived["direct rows"]
    return out


def _kernel_entries(trace: Trace, rows: np.ndarray) -> None:
    """For rows that make or free a table page: say where the kernel's own entry for it is."""
    frame = trace["table"].astype(np.int64)
    root = np.isin(trace["op"], (Op.PGD_ALLOC, Op.PGD_FREE))
    roots = np.array([m.pgd for m in trace.mms] or [-1], np.int64)
    frame = np.where(root & (frame < 0), roots[trace["mm"]], frame)
    which = np.flatnonzero((root | np.isin(trace["op"], (*ALLOC_OPS, *RELEASE_OPS))) & (frame >= 0))
    rows["table"][which] = _KERNEL_TABLES + frame[which] // trace.platform.entries
    rows["slot"][which] = frame[which] % trace.platform.entries


def folded_flushes(trace: Trace) -> np.ndarray:
    """Return the flushes of a page that directly follow a change of its access flags.

    An update by address takes such a flush with it (UVMF_INVLPG), if the address space is the
    running task's.
    """
    op, cpu = trace["op"], trace["cpu"]
    flush = np.isin(op, (Op.FLUSH_RANGE, Op.FLUSH_ONE, Op.FLUSH_OTHERS, Op.SEND_IPI))
    change = (op == Op.PTE_RMW) & ((trace["flags"] & Flag.CURRENT_MM) != 0)
    found = [np.zeros(0, np.int64)]
    for c in range(trace.platform.vcpus):
        rows = np.flatnonzero(cpu == c)
        before = np.maximum.accumulate(np.where(flush[rows], -1, np.arange(len(rows))))
        follows = flush[rows] & (before >= 0) & change[rows][before]
        found.append(rows[follows & (op[rows] != Op.FLUSH_RANGE)])
    return np.concatenate(found)


def walks_of(trace: Trace) -> Walks:
    """Return the walks over the tables of the address spaces of `trace`."""
    life = lifecycle(trace)
    return Walks(life.walk_start, life.walk_level)


def _drops(trace: Trace) -> np.ndarray:
    """Return the rows that replace or clear a present upper entry.

    Where the old content is unknown: Linux clears only present ones and fills only empty ones.
    """
    upper = np.isin(trace["op"], SET_UPPER_OPS)
    present = (trace["flags"] & Flag.OLD_PRESENT) != 0
    unknown = (trace["flags"] & Flag.OLD_KNOWN) == 0
    drops: np.ndarray = upper & (present | unknown & (trace["value"] & 1 == 0))
    return drops


def in_range_call(trace: Trace, hooks: HookSet) -> np.ndarray:
    """Return which rows of `trace` a range call among `hooks` carries: bool[row]."""
    ops = [int(op) for name, op in RANGES if name in hooks]
    return np.isin(trace["op"], ops) if ops else np.zeros(len(trace), np.bool_)


def _run_ends(trace: Trace) -> np.ndarray:
    """Return the rows at which a run of like operations on consecutive entries ends.

    A run goes on over operations on other entries, as fork alternates between parent and child.
    """
    op, cpu, table, index = (trace[name] for name in ("op", "cpu", "table", "index"))
    entry = np.isin(op, [int(o) for o in ENTRY_OPS])
    ends = np.ones(len(trace), np.bool_)
    for c in range(trace.platform.vcpus):
        here = cpu == c
        broken = np.cumsum(here & ~entry)
        for _, kind in RANGES:
            rows = np.flatnonzero(here & (op == kind))
            a, b = rows[:-1], rows[1:]
            goes_on = (table[a] == table[b]) & (index[a] + 1 == index[b]) & (broken[a] == broken[b])
            ends[a[goes_on]] = False
    return ends
