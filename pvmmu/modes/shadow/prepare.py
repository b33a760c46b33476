"""From a trace to the arrays of a replay in shadow mode."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import ENTRY_OPS, N_OPS, Flag, Op
from pvmmu.modes.counters import new_counts, new_log
from pvmmu.modes.outcome import counts_of_rows
from pvmmu.modes.shadow.rules import Rules
from pvmmu.modes.shadow.state import (
    CPU_STATE,
    FRAME_MASK,
    FREE,
    MOST_OUT,
    MOST_ROOTS,
    PAGE,
    TAGGED,
    WRITABLE,
    P,
    State,
    addresses,
)
from pvmmu.modes.shadow.substitutes import RELEASE_OPS, STORE_OPS
from pvmmu.modes.shadow.touches import with_touches

#: Kind of a row that no rule is for.
UNKNOWN: Final = N_OPS
#: Numbers for top-level tables whose frame is unknown, and for those of user mode (PTI): beyond
#: any frame (52 bits of address).
_NO_FRAME: Final = 1 << 41
_USER_HALF: Final = 1 << 42
#: Shifts of the levels from 1 on, and entries, by levels of the format (SDM vol. 3A §4.3 to §4.5).
_SHIFTS: Final = {2: (12, 22), 3: (12, 21, 30), 4: (12, 21, 30, 39), 5: (12, 21, 30, 39, 48)}
#: Rows of a log for each row of the trace, and besides.
_LOG_ROWS: Final = (16, 1 << 14)
_WATCHED: Final = [int(o) for o in (*STORE_OPS, *RELEASE_OPS)]
_OF_ROOT: Final = (Op.LOAD_CR3, Op.PGD_ALLOC, Op.EXIT_MMAP)


def roots(trace: Trace) -> np.ndarray:
    """Return the frame of each address space's top-level table, int64[mm]."""
    known = np.array([m.pgd for m in trace.mms], np.int64)
    return np.where(known >= 0, known, _NO_FRAME + np.arange(len(known)))


def tables(trace: Trace) -> np.ndarray:
    """Return the frames that hold a table at some time, in ascending order."""
    used = trace["table"][trace["table"] >= 0]
    tops = roots(trace)
    twins = tops + _USER_HALF if trace.platform.pti else tops[:0]
    return np.unique(np.concatenate([used, tops, twins]))


class Rows(NamedTuple):
    """What a replay reads of a trace whatever is hooked.

    Parameters
    ----------
    trace : Trace
        With touches.
    order : int64[row]
        Row of the original trace for each.
    frames : int64[table]
        Frame of each table.
    columns : int64[row, 10]
        What `run_shadow` reads, but for the mechanism.
    unknown, behind : bool[row]
        Changes of an entry that is not known; what only a kernel without ``flush_tlb_multi`` does.
    """

    trace: Trace
    order: np.ndarray
    frames: np.ndarray
    columns: np.ndarray
    unknown: np.ndarray
    behind: np.ndarray


def rows_of(trace: Trace) -> Rows:
    """Return the rows of `trace` as shadow mode replays them; kept with it."""
    if "rows of shadow mode" not in trace.derived:
        rows = _rows_of(*with_touches(trace))
        trace.derived["rows of shadow mode"] = rows
        rows.trace.derived["kinds of shadow mode"] = _kinds(rows)
    out: Rows = trace.derived["rows of shadow mode"]
    return out


def _rows_of(trace: Trace, order: np.ndarray) -> Rows:
    op, frames = trace["op"], tables(trace)
    is_entry = np.isin(op, [int(o) for o in ENTRY_OPS])
    unknown = is_entry & ((trace["table"] < 0) | (trace["index"] < 0))
    behind = ((trace["flags"] & Flag.NATIVE_ONLY) != 0) & (op != Op.LOAD_CR3)
    top, mm = roots(trace), trace["mm"]
    table = np.where(trace["table"] >= 0, np.searchsorted(frames, trace["table"]), -1)
    of_root = np.isin(op, [int(o) for o in _OF_ROOT]) & (mm >= 0)
    table[of_root] = np.searchsorted(frames, top[mm[of_root]])
    value = trace["value"].view(np.int64)
    target = _targets(value, is_entry, frames)
    twin = np.full(len(trace), -1, np.int64)
    if trace.platform.pti:
        _pair_with_user_tables(trace, frames, table, target, twin)
    times = counts_of_rows(trace)[-1]
    columns = np.column_stack((
        trace["cpu"].astype(np.int64), table, trace["index"].astype(np.int64),
        trace["va"].view(np.int64), value, target, times, trace["flags"].astype(np.int64), twin,
        np.where(np.isin(op, _WATCHED) & (table >= 0) & ~unknown, op.astype(np.int64), -1),
    ))  # fmt: skip
    return Rows(trace, order, frames, columns, unknown, behind)


def _kinds(rows: Rows) -> np.ndarray:
    """Return the kind of each row: its operation; `UNKNOWN` if it is about an entry not known."""
    op = rows.trace["op"]
    no_table = (rows.columns[:, 1] < 0) & np.isin(op, _NEED_TABLE)
    return np.where(rows.unknown | no_table, np.uint8(UNKNOWN), op)


def first_rows(order: np.ndarray, rows: int) -> np.ndarray:
    """Return where each of so many `rows` of the trace stands in `order` (int64[n], the row of each
    row with touches): int64[rows].
    """
    out = np.zeros(rows, np.int64)
    out[order[::-1]] = np.arange(len(order))[::-1]
    return out


_NEED_TABLE: Final = [
    int(o)
    for o in (
        Op.ZERO_TABLE, Op.PGD_ALLOC, Op.LOAD_CR3, Op.RELEASE_PTE, Op.RELEASE_PMD, Op.RELEASE_PUD,
        Op.RELEASE_P4D,
    )
]  # fmt: skip


def _targets(value: np.ndarray, is_entry: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Return the table that each entry stored points to, -1 if to none."""
    frame = (value & FRAME_MASK) >> 12
    at = np.minimum(np.searchsorted(frames, frame), len(frames) - 1)
    points = is_entry & ((value & P) != 0) & (frames[at] == frame)
    return np.where(points, at, -1)


def _pair_with_user_tables(
    trace: Trace, frames: np.ndarray, table: np.ndarray, target: np.ndarray, twin: np.ndarray
) -> None:
    """Under PTI a load of CR3 names two tables; top-level user entries are stored twice."""
    of_mm = np.searchsorted(frames, roots(trace) + _USER_HALF)
    load = (trace["op"] == Op.LOAD_CR3) & (trace["mm"] > 0)
    target[load] = of_mm[trace["mm"][load]]
    levels = trace.platform.levels
    top = {2: Op.SET_PMD, 3: Op.SET_PUD, 4: Op.SET_P4D, 5: Op.SET_PGD}[levels]
    user_half = trace["va"] >> np.uint64(_SHIFTS[levels][-1] + 8) == 0
    store = (trace["op"] == top) & user_half & (table >= 0)
    user = np.searchsorted(frames, frames[table[store]] + _USER_HALF)
    known = frames[np.minimum(user, len(frames) - 1)] == frames[table[store]] + _USER_HALF
    twin[np.flatnonzero(store)[known]] = user[known]


def new_state(rows: Rows, mechanism: np.ndarray, rules: Rules, log: bool, pages: int) -> State:
    """Return the state before the first row: nothing is shadowed, every frame is writable.

    Parameters
    ----------
    rows : Rows
        What is replayed.
    mechanism : uint8[row]
        What carries each row.
    rules : Rules
        Of the implementation.
    log : bool
        Keep what happens row by row.
    pages : int
        Shadow pages before old ones are recycled.
    """
    trace, frames = rows.trace, rows.frames
    cpus, entries, shifts = trace.platform.vcpus, trace.platform.entries, _SHIFTS
    levels = trace.platform.levels
    # more cannot be in use: one for each table and level, and zapped ones that a CPU still uses
    pages = min(pages, len(frames) * levels + cpus * MOST_ROOTS)
    cpu_state = np.zeros(cpus, CPU_STATE)
    for name in ("root", "last", "kernel_root", "user_root"):
        cpu_state[name] = -1
    n = np.zeros(8, np.int64)
    n[FREE], n[TAGGED] = pages, trace.platform.pcid
    records = np.zeros(pages, PAGE)
    records["table"] = -1
    count = len(frames)
    a, b = _LOG_ROWS
    s = State(
        m=None,
        rules=rules.pack(),
        n=n,
        shape=np.array([levels, entries, *shifts[levels], *[0] * (6 - levels)], np.int64),
        frames=frames,
        guest=np.zeros((count, entries), np.int64),
        target=np.full((count, entries), -1, np.int32),
        mapped=np.full(count, WRITABLE, np.uint8),
        first=np.full(count, -1, np.int32),
        dying=np.zeros(count, np.uint8),
        pages=records,
        entries=np.zeros((pages, entries), np.int64),
        free=np.arange(pages, dtype=np.int32)[::-1].copy(),
        unsynced=np.zeros(pages, np.int32),
        stack=np.zeros(pages, np.int32),
        roots=np.full((cpus, MOST_ROOTS), -1, np.int32),
        out=np.full((cpus, MOST_OUT), -1, np.int32),
        snapshots=np.zeros((cpus, MOST_OUT, entries), np.int64),
        path=np.zeros(8, np.int64),
        cpus=cpu_state,
        counts=new_counts(),
        log=new_log(a * len(trace) + b if log else 0),
        mechanism=mechanism,
        rows=rows.columns,
    )
    return s._replace(m=addresses(s))
