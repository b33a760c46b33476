"""The validator: are entries what the tables say now, and if not, is it harmful?

A design that flushes too little uses stale entries. Some stale use is legal (Linux does it for
speed), so it is judged by what the flushing operation promised: an entry that was stale when a
promise to flush it was given (`Event.PROMISE`), and that is used afterwards, is harmful if its
frame was given back since, if nothing or another frame is mapped there now, or if rights were taken
away. What a walk finds through a stale entry of a walk cache is as stale as that entry. Use before
the promise (the mmu_gather window), or of a range that is flushed late on purpose (lazy vunmap), is
counted apart, as are entries with fewer rights than the tables give, and entries whose accessed
flag was cleared.
"""

from __future__ import annotations

import numpy as np

from pvmmu._jit import part
from pvmmu.x86.bits import KEY, D
from pvmmu.x86.mmu_events import Count
from pvmmu.x86.mmu_state import (
    BORN,
    DIRTY_SET,
    FRAME_AT,
    HOST_RIGHTS_OF,
    LATE,
    MARKS,
    OVERDUE,
    OWN,
    PDPTES,
    RIGHTS_OF,
    ROOT_OF,
    SECOND_ROOT,
)
from pvmmu.x86.mmu_tlb import linear_of
from pvmmu.x86.plan import (
    ACCESS,
    COMMON,
    DIRTY,
    FETCH,
    LEAF_RIGHTS,
    LEVELS,
    NEED,
    READ,
    USER_FETCH,
    WRITABLE,
    WRITE,
)
from pvmmu.x86.tlb_sets import BASE, GLOBAL_BIT, INVALID, SET_MASK, STRIDE, WAYS
from pvmmu.x86.walk_kernel import reset, walk_first
from pvmmu.x86.walk_state import (
    ENTRY_RIGHTS,
    EXIT,
    HOST_DIRTY,
    HOST_RIGHTS,
    HOST_TABLE,
    LEAF_ENTRY,
    N_REACHED,
    N_UPDATES,
    OUT,
    OUTSIDE,
    PA,
    PAGE_SHIFT,
    RIGHTS,
    RIGHTS_AFTER,
    VECTOR,
)

# How an entry differs from the tables.
SAME, AGED, UPGRADED, REDUCED, MOVED, GONE = range(6)

_Z, _ONE, _12 = np.uint64(0), np.uint64(1), np.uint64(12)
_ONES, _INVALID, _GLOBAL = (np.uint64(i) for i in ((1 << 64) - 1, INVALID, GLOBAL_BIT))
_KEYS, _SHADOW = np.uint64(KEY), np.uint64(D)
_OVERDUE, _LATE, _DIRTY = np.uint64(OVERDUE), np.uint64(LATE), np.uint64(DIRTY_SET)
#: A supervisor's read with EFLAGS.AC set: no right is in its way.
_HARMLESS = np.int64(6 + READ)
_ROOT_ROW = np.int64(LEVELS)

_FREED, _GONE = int(Count.STALE_FREED), int(Count.STALE_GONE)
_MOVED, _REDUCED = int(Count.STALE_MOVED), int(Count.STALE_REDUCED)
_WINDOW, _LAZY = int(Count.STALE_WINDOW), int(Count.STALE_LAZY)
_UPGRADED, _AGED = int(Count.STALE_UPGRADED), int(Count.STALE_AGED)
_TABLE, _TABLE_WINDOW = int(Count.STALE_TABLE), int(Count.STALE_TABLE_WINDOW)


@part
def walk_afresh(words, first, second, control, cpus, cpu, root, va, s):  # type: ignore[no-untyped-def]
    """Walk the tables as they are now, past all caches and without setting flags."""
    reset(s.work, _Z)
    walk_first(
        words, first, root, cpus[cpu, PDPTES : PDPTES + 4], second, control[SECOND_ROOT], va,
        _HARMLESS, _ROOT_ROW, _ONES, s,
    )  # fmt: skip


@part
def difference(first, second, data, number, work):  # type: ignore[no-untyped-def]
    """How an entry of a TLB differs from the tables, after `walk_afresh`."""
    if work[OUT, VECTOR] | work[OUT, EXIT] | work[OUT, OUTSIDE] != _Z:
        return GONE
    if work[OUT, PA] >> data[number, OWN] << data[number, OWN] != data[number, FRAME_AT]:
        return MOVED
    # the rights that any access needs: U and R/W by a user's write, execution by a fetch
    rights = first[ACCESS + 3 + WRITE, NEED] | first[ACCESS + FETCH, NEED]
    rights |= first[COMMON, LEAF_RIGHTS] & _SHADOW
    host = second[ACCESS + WRITE, NEED] | second[ACCESS + FETCH, NEED] | second[ACCESS, NEED]
    host |= second[ACCESS + USER_FETCH, NEED]
    now, before = work[OUT, RIGHTS], data[number, RIGHTS_OF]
    host_now, host_before = work[OUT, HOST_RIGHTS], data[number, HOST_RIGHTS_OF]
    dirty = work[OUT, LEAF_ENTRY] & first[COMMON, DIRTY] != _Z
    dirty = dirty and (second.shape[0] == LEVELS or work[OUT, HOST_DIRTY] != _Z)
    lost = before & ~now & rights | host_before & ~host_now & host
    # keys are neither more nor less: another one is a right that the entry should not give
    rekeyed = (now ^ before) & first[COMMON, LEAF_RIGHTS] & _KEYS
    if lost | rekeyed != _Z or (data[number, MARKS] & _DIRTY != _Z and not dirty):
        return REDUCED
    if now & ~before & rights | host_now & ~host_before & host != _Z:
        return UPGRADED
    return AGED if work[OUT, N_UPDATES] != _Z else SAME


@part
def verdict(how, data, number, freed, work):  # type: ignore[no-untyped-def]
    """What the use of an entry counts as, a `Count`; -1 for nothing."""
    # one walk says all of an entry that is for no more than a page
    whole = work[OUT, PAGE_SHIFT] >= data[number, OWN]
    marks = data[number, MARKS]
    if how == SAME:
        if whole:
            data[number, MARKS] = marks & ~(_OVERDUE | _LATE)
        return -1
    if how == UPGRADED:
        return _UPGRADED
    if how == AGED:
        return _AGED
    if marks & _OVERDUE == _Z:
        return _LAZY if marks & _LATE != _Z else _WINDOW
    if _freed_since(data, number, freed):
        return _FREED
    if how == GONE:
        return _GONE
    return _MOVED if how == MOVED else _REDUCED


@part
def table_differs(first, second, data, number, d, work):  # type: ignore[no-untyped-def]
    """Whether an entry of a walk cache for row ``d`` differs, after `walk_afresh`.

    It does if a walk no longer reaches the table that it names: the entry, or one above, is absent
    or maps a page, or leads elsewhere. What that table holds for the address does not matter.
    """
    if LEVELS + np.int64(work[OUT, N_REACHED]) <= d + 1:
        return True
    lost = data[number, HOST_RIGHTS_OF] & ~work[d + 1, ENTRY_RIGHTS]
    moved = work[d + 1, HOST_TABLE] != data[number, FRAME_AT]
    if moved or lost & second[COMMON, WRITABLE] != _Z:
        return True
    rights = first[ACCESS + 3 + WRITE, NEED] | first[ACCESS + FETCH, NEED]
    return data[number, RIGHTS_OF] & ~work[d, RIGHTS_AFTER] & rights != _Z


@part
def table_verdict(differs, data, number, freed):  # type: ignore[no-untyped-def]
    """What the use of an entry of a walk cache counts as, a `Count`; -1 for nothing.

    A table that was given back is read as if it still were one: harmful, promise or not.
    """
    if not differs:
        data[number, MARKS] &= ~_OVERDUE
        return -1
    if _freed_since(data, number, freed):
        data[number, MARKS] |= _OVERDUE
    return _TABLE if data[number, MARKS] & _OVERDUE != _Z else _TABLE_WINDOW


@part
def _freed_since(data, number, freed):  # type: ignore[no-untyped-def]
    """Whether the frame that an entry leads to was given back after the entry was made."""
    frame = data[number, FRAME_AT] >> _12
    return frame < np.uint64(freed.size) and freed[frame] > data[number, BORN]


@part
def mark(m, sets, data, depths, cpu, begin, last, root, bit):  # type: ignore[no-untyped-def]
    """Mark a CPU's entries in a range that are stale now: their flush is overdue, or late.

    Parameters
    ----------
    m : State
        For its tables.
    sets, data
        TLBs or walk caches.
    depths : int64[structure]
        Of walk caches, the rows of their levels; TLBs have none.
    begin, last : uint64
        The range: first and last byte.
    root : uint64
        Only entries of this root table, and global ones; 0: all.
    bit : uint64
        The mark.
    """
    table, n, work = sets.table, sets.table.shape[0] // m.cpu.shape[0], m.fresh.work
    for k in range(cpu * n, cpu * n + n):
        for index in range(table[k, SET_MASK] + 1):
            base = table[k, BASE] + index * table[k, STRIDE]
            for slot in range(base, base + table[k, WAYS]):
                tag, number = sets.tags[slot], np.int64(sets.ids[slot])
                other = root != _Z and data[number, ROOT_OF] != root and tag & _GLOBAL == _Z
                if tag == _INVALID or other:
                    continue
                va = linear_of(tag, data[number, OWN])
                top = va + ((_ONE << data[number, OWN]) - _ONE)
                if va > last or top < begin:
                    continue
                whole, at, end, stale = (
                    begin <= va and top <= last,
                    max(va, begin),
                    min(top, last),
                    False,
                )
                while not stale:
                    walk_afresh(
                        m.words, m.first, m.second, m.control, m.cpu, cpu, data[number, ROOT_OF],
                        at, m.fresh,
                    )  # fmt: skip
                    if depths.size > 0:  # one table for all addresses of the entry
                        d = depths[k - cpu * n]
                        stale, whole = table_differs(m.first, m.second, data, number, d, work), True
                        break
                    stale = difference(m.first, m.second, data, number, work) >= REDUCED
                    # the entry may be for a large page that the tables now map in pieces
                    at |= (_ONE << max(work[OUT, PAGE_SHIFT], _12)) - _ONE
                    if at >= end:
                        break
                    at += _ONE
                if stale:
                    data[number, MARKS] = data[number, MARKS] & ~(_OVERDUE | _LATE) | bit
                elif whole:
                    data[number, MARKS] &= ~(_OVERDUE | _LATE)
