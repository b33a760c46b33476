"""The validator: are entries what the tables say now, and if not, is it harmful?

A design that flushes too little uses stale entries. Some stale use is legal (Linux does it for
speed), so it is judged by what the flushing operation promised: an entry that was stale when a
promise to flush it was given (`Event.PROMISE`), and that is used afterwards, is harmful if its
frame was given back since, if nothing or another frame is mapped there now, or if rights were taken
away. Use before the promise (the mmu_gather window), or of a range that is flushed late on purpose
(lazy vunmap), is counted apart, as are entries with fewer rights than the tables give, and entries
whose accessed flag was cleared.
"""

from __future__ import annotations

import numpy as np

from pvmmu._jit import kernel
from pvmmu.x86.mmu_events import Count
from pvmmu.x86.mmu_state import (
    BORN,
    DIRTY_SET,
    FRAME_AT,
    HOST_RIGHTS_OF,
    LATE,
    LOG_COUNT,
    LOG_CPU,
    LOG_EVENT,
    LOG_VA,
    LOGGED,
    MARKS,
    NOW,
    OVERDUE,
    RIGHTS_OF,
    ROOT,
    ROOT_OF,
)
from pvmmu.x86.mmu_tlb import end_of, linear_of
from pvmmu.x86.plan import DIRTY, FETCH, NEED, READ, SHIFT, WRITE
from pvmmu.x86.tlb_sets import BASE, GLOBAL_BIT, INVALID, PAGE_MASK, SIZE_SHIFT, size_shift
from pvmmu.x86.walk_kernel import (
    EXIT,
    HOST_DIRTY,
    HOST_RIGHTS,
    HOST_TABLE,
    LEAF_ENTRY,
    N_TABLES,
    N_UPDATES,
    OUTSIDE,
    PA,
    RIGHTS,
    RIGHTS_AFTER,
    VECTOR,
    reset,
    walk_first,
)

# How an entry differs from the tables.
SAME, GONE, MOVED, REDUCED, UPGRADED, AGED = range(6)

_Z, _ONE, _3, _12 = (np.uint64(i) for i in (0, 1, 3, 12))
_ONES, _INVALID = np.uint64((1 << 64) - 1), np.uint64(INVALID)
_LINEAR, _SIGN = np.uint64((1 << 57) - 1), np.uint64(1 << 56)
_SIZE, _PAGE = np.uint64(SIZE_SHIFT), np.uint64(PAGE_MASK)
_GLOBAL = np.uint64(GLOBAL_BIT)
_OVERDUE, _LATE, _DIRTY = np.uint64(OVERDUE), np.uint64(LATE), np.uint64(DIRTY_SET)
#: A supervisor's read with EFLAGS.AC set: no right is in its way.
_HARMLESS = np.int64(6 + READ)

_FREED, _GONE = int(Count.STALE_FREED), int(Count.STALE_GONE)
_MOVED, _REDUCED = int(Count.STALE_MOVED), int(Count.STALE_REDUCED)
_WINDOW, _LAZY = int(Count.STALE_WINDOW), int(Count.STALE_LAZY)
_UPGRADED, _AGED = int(Count.STALE_UPGRADED), int(Count.STALE_AGED)
_TABLE, _TABLE_WINDOW = int(Count.STALE_TABLE), int(Count.STALE_TABLE_WINDOW)


@kernel
def walk_afresh(m, cpu, root, va):  # type: ignore[no-untyped-def]
    """Walk the tables as they are now, past all caches and without setting flags."""
    reset(m.fresh)
    walk_first(
        m.words, m.first, root, m.pdptes[cpu], m.second, m.second_root, va, _HARMLESS, (0, _ONES),
        m.fresh,
    )  # fmt: skip


@kernel
def difference(m, row, shift):  # type: ignore[no-untyped-def]
    """How an entry of a TLB differs from the tables, after `walk_afresh`."""
    out, first, second = m.fresh.out, m.first, m.second
    if out[VECTOR] | out[EXIT] | out[OUTSIDE] != _Z:
        return GONE
    if out[PA] >> shift << shift != row[FRAME_AT]:
        return MOVED
    # the rights that any access needs: U and R/W by a user's write, execution by a fetch
    rights = first.access[3 + WRITE, NEED] | first.access[FETCH, NEED]
    host = _Z
    if second.level.shape[0] > 0:
        host = second.access[WRITE, NEED] | second.access[FETCH, NEED] | second.access[READ, NEED]
    now, before = out[RIGHTS] & rights, row[RIGHTS_OF] & rights
    host_now, host_before = out[HOST_RIGHTS] & host, row[HOST_RIGHTS_OF] & host
    dirty = out[LEAF_ENTRY] & first.common[DIRTY] != _Z and (
        second.level.shape[0] == 0 or out[HOST_DIRTY] != _Z
    )
    if before & ~now | host_before & ~host_now != _Z or (row[MARKS] & _DIRTY != _Z and not dirty):
        return REDUCED
    if now & ~before | host_now & ~host_before != _Z:
        return UPGRADED
    return AGED if out[N_UPDATES] != _Z else SAME


@kernel
def judge_hit(m, cpu, va, number, tag):  # type: ignore[no-untyped-def]
    """Judge the use of an entry of a TLB."""
    row = m.data[number]
    shift = size_shift(tag >> _SIZE & _3)
    walk_afresh(m, cpu, m.cpu[cpu, ROOT], va)
    how = difference(m, row, shift)
    if how == SAME:
        row[MARKS] &= ~(_OVERDUE | _LATE)
    elif how == UPGRADED:
        m.counts[cpu, _UPGRADED] += 1
    elif how == AGED:
        m.counts[cpu, _AGED] += 1
    elif row[MARKS] & _OVERDUE == _Z:
        m.counts[cpu, _LAZY if row[MARKS] & _LATE != _Z else _WINDOW] += 1
    else:
        frame = row[FRAME_AT] >> _12
        freed = frame < np.uint64(m.freed.size) and m.freed[frame] > np.int64(row[BORN])
        what = _GONE if how == GONE else (_MOVED if how == MOVED else _REDUCED)
        _harm(m, cpu, va, _FREED if freed else what)


@kernel
def _harm(m, cpu, va, what):  # type: ignore[no-untyped-def]
    """Count and log a harmful use."""
    m.counts[cpu, what] += 1
    used = m.control[LOGGED]
    if used < m.log.shape[0]:
        m.log[used, LOG_EVENT], m.log[used, LOG_CPU] = np.uint64(m.control[NOW] - 1), np.uint64(cpu)
        m.log[used, LOG_VA], m.log[used, LOG_COUNT] = va, np.uint64(what)
        m.control[LOGGED] = used + 1


@kernel
def _table_differs(m, row, d):  # type: ignore[no-untyped-def]
    """Whether an entry of a walk cache for level ``d`` differs, after `walk_afresh`."""
    if np.int64(m.fresh.out[N_TABLES]) <= d or m.fresh.out[OUTSIDE] != _Z:
        return True
    below = d + 1 < np.int64(m.fresh.out[N_TABLES])
    if below and m.fresh.tables[d + 1, HOST_TABLE] != row[FRAME_AT]:
        return True
    rights = m.first.access[3 + WRITE, NEED] | m.first.access[FETCH, NEED]
    return row[RIGHTS_OF] & ~m.fresh.tables[d, RIGHTS_AFTER] & rights != _Z


@kernel
def judge_start(m, cpu, va, number, d):  # type: ignore[no-untyped-def]
    """Judge the use of an entry of a walk cache for level ``d``."""
    row = m.walk_data[number]
    walk_afresh(m, cpu, m.cpu[cpu, ROOT], va)
    if not _table_differs(m, row, d):
        row[MARKS] &= ~_OVERDUE
    elif row[MARKS] & _OVERDUE != _Z:
        _harm(m, cpu, va, _TABLE)
    else:
        m.counts[cpu, _TABLE_WINDOW] += 1


@kernel
def mark(m, cpu, begin, last, root, bit):  # type: ignore[no-untyped-def]
    """Mark a CPU's entries in a range that are stale now: their flush is overdue, or late."""
    tlb, n = m.tlb, m.tlb.table.shape[0] // m.cpu.shape[0]
    for k in range(cpu * n, cpu * n + n):
        for slot in range(tlb.table[k, BASE], end_of(tlb, k)):
            tag = tlb.tags[slot]
            if tag == _INVALID:
                continue
            row, va, shift = m.data[tlb.ids[slot]], linear_of(tag), size_shift(tag >> _SIZE & _3)
            other = root != _Z and row[ROOT_OF] != root and tag & _GLOBAL == _Z
            if other or va > last or va + ((_ONE << shift) - _ONE) < begin:
                continue
            walk_afresh(m, cpu, row[ROOT_OF], va)
            how = difference(m, row, shift)
            stale = how == GONE or how == MOVED or how == REDUCED
            row[MARKS] = (row[MARKS] & ~(_OVERDUE | _LATE)) | (bit if stale else _Z)
    walk, n = m.walk, m.walk_depth.shape[0]
    for k in range(cpu * n, cpu * n + n):
        d = m.walk_depth[k - cpu * n]
        for slot in range(walk.table[k, BASE], end_of(walk, k)):
            tag = walk.tags[slot]
            if tag == _INVALID or d < 0:
                continue
            row, shift = m.walk_data[walk.ids[slot]], m.first.level[d, SHIFT]
            va = (tag & _PAGE) << shift
            va = va | (_ONES ^ _LINEAR) if va & _SIGN != _Z else va
            other = root != _Z and row[ROOT_OF] != root
            if other or va > last or va + ((_ONE << shift) - _ONE) < begin:
                continue
            walk_afresh(m, cpu, row[ROOT_OF], max(va, begin))
            overdue = bit & _OVERDUE if _table_differs(m, row, d) else _Z
            row[MARKS] = (row[MARKS] & ~_OVERDUE) | overdue
