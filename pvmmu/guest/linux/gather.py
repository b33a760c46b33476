"""Tear-down: entries, tables, and the flush that frees what was gathered (mm/mmu_gather.c)."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import NO, ONE, YES, ZERO, lean, lean_part
from pvmmu.guest.linux import frames
from pvmmu.guest.linux.profile_keys import Par, Step
from pvmmu.guest.linux.rows import EVERYTHING, flush_mm
from pvmmu.guest.linux.state import (
    BLOCK,
    CLEARED,
    FILE,
    FRAMES,
    FREED_TABLES,
    FULL_MM,
    PAGES,
    ROWS,
    SLACK,
    START,
    STOP,
)
from pvmmu.guest.linux.tables import (
    ENTRY_BYTES,
    FRAME_MASK,
    LEVELS,
    SHIFTS,
    D,
    P,
    boundary,
    calls,
    entry_at,
    load,
    map_table,
    moments,
    next_table,
    page_frame,
    present,
    table_calls,
)
from pvmmu.guest.vocabulary import Flag

_LEAF, _PAGE_SHIFT = np.int64(1), np.int64(12)
_RANGED, _GATHER_PAGES, _AT_ONCE, _ZAP_BLOCK, _DIRTY_FLUSHES = (
    int(p)
    for p in (
        Par.RANGED, Par.GATHER_PAGES, Par.GATHER_AT_ONCE, Par.ZAP_BLOCK, Par.DIRTY_FLUSHES,
    )
)  # fmt: skip
_BY_RCU, _SPECIAL = int(Par.TABLES_BY_RCU), int(Par.SPECIAL)
_RECLAIM, _FREED_AT_ONCE = int(Par.RECLAIM_TABLES), int(Par.FREED_AT_ONCE)
_ZAP_OPEN, _ZAP_PAGE, _ZAP_DYING, _ZAP_CLOSE, _FREE_TABLE, _UNHOOK, _RELEASE = (
    np.int64(x)
    for x in (
        Step.ZAP_OPEN, Step.ZAP_PAGE, Step.ZAP_DYING, Step.ZAP_CLOSE, Step.FREE_TABLE,
        Step.RECLAIM_UNHOOK, Step.RECLAIM_RELEASE,
    )
)  # fmt: skip
_FULL = np.int64(Flag.FULLMM)
_FAR = np.int64(1) << np.int64(62)
#: Marks a table page among the frames gathered.
_IS_TABLE = np.int64(1) << np.int64(60)
#: Pages in the gather's own array, before any further batch (MMU_GATHER_BUNDLE).
_BUNDLE = np.int64(8)
#: A gathered page whose flush may wait until this many are left to gather.
GATHERED_CAPACITY = 1 << 15


@lean
def begin(s, full_mm):  # type: ignore[no-untyped-def]
    """Start gathering (tlb_gather_mmu, tlb_gather_mmu_fullmm)."""
    s.gather[:] = 0
    s.gather[FULL_MM] = full_mm
    s.gather[START] = _FAR


@lean_part
def gather_range(s, start, end, level):  # type: ignore[no-untyped-def]
    """Entries of some level were changed for addresses from `start` to `end`."""
    s.gather[START] = min(s.gather[START], start)
    s.gather[STOP] = max(s.gather[STOP], end)
    s.gather[CLEARED] |= 1 << level


@lean_part
def _flush_gathered(s, cpu, mm, caller):  # type: ignore[no-untyped-def]
    """Flush the TLB, if anything was changed (tlb_flush_mmu_tlbonly)."""
    g = s.gather
    if g[CLEARED] == 0 and g[FREED_TABLES] == 0:
        return
    flags = _FULL if g[FULL_MM] else ZERO
    if g[FULL_MM] or s.par[_RANGED] == 0:
        start, end, shift = ZERO, EVERYTHING, _PAGE_SHIFT
    else:
        level = 1
        while g[CLEARED] >> level & 1 == 0:
            level += 1
        start, end, shift = g[START], g[STOP], s.fmt[SHIFTS + level]
    flush_mm(s, cpu, mm, start, end, shift, g[FREED_TABLES] != 0, flags, caller)
    g[START], g[STOP], g[CLEARED], g[FREED_TABLES] = _FAR, 0, 0, 0


@lean_part
def _free_gathered(s, cpu):  # type: ignore[no-untyped-def]
    """Free the pages gathered (tlb_batch_pages_flush)."""
    total, once = s.gather[FRAMES], s.par[_FREED_AT_ONCE]
    start, size = ZERO, min(once, _BUNDLE)
    while start < total:
        stop = min(start + size, total)
        for i in range(stop - start):
            frame = s.gathered[stop - 1 - i if once else start + i]
            frames.release(s, cpu, frame & ~_IS_TABLE, frame & _IS_TABLE == 0)
        start, size = stop, max(once, ONE)
    s.gather[FRAMES] = s.gather[PAGES] = 0


@lean
def finish(s, cpu, mm, caller):  # type: ignore[no-untyped-def]
    """Flush, then free (tlb_finish_mmu)."""
    _flush_gathered(s, cpu, mm, caller)
    _free_gathered(s, cpu)


@lean_part
def _remove_page(s, cpu, frame):  # type: ignore[no-untyped-def]
    """Gather a page that is no longer mapped; true when no more can be gathered."""
    s.maps[frame] -= 1
    if s.maps[frame] == 0 and s.kind[frame] != FILE:
        if s.par[_GATHER_PAGES] == 0:  # tlb_fast_mode: one CPU, freed at once
            frames.release(s, cpu, frame, YES)
            return False
        s.gathered[s.gather[FRAMES]] = frame
        s.gather[FRAMES] += 1
    s.gather[PAGES] += 1
    return s.par[_GATHER_PAGES] != 0 and s.gather[PAGES] >= s.par[_GATHER_PAGES]


# ---------------------------------------------------------------------- entries
@lean
def zap_range(s, cpu, mm, start, end, caller, reclaim):  # type: ignore[no-untyped-def]
    """Clear the entries of a range (unmap_page_range).

    Parameters
    ----------
    start, end : int64
        Range, or what is left of it (bytes).
    caller : int64
        Name of the function that flushes at the end.
    reclaim : bool
        Tables that become empty go at once (CONFIG_PT_RECLAIM).

    Returns
    -------
    int64
        Address to go on with once there is room for rows; `end` when done.
    """
    va = start
    while va < end:
        if s.out.shape[0] - s.n[ROWS] < SLACK:
            return va
        va = next_table(s, mm, va, end)
        if va >= end or entry_at(s, mm, va, _LEAF) < 0:
            continue
        past = min(end, boundary(s, va, np.int64(2)))
        whole = reclaim and past - va == np.int64(1) << s.fmt[SHIFTS + 2]
        while va < past:
            va = _zap_table(s, cpu, mm, va, past, caller, whole and s.par[_RECLAIM] != 0)
    return va


@lean_part
def _zap_table(s, cpu, mm, start, end, caller, reclaim):  # type: ignore[no-untyped-def]
    """Clear entries of one level-1 table until no more can be gathered (zap_pte_range)."""
    at = entry_at(s, mm, start, _LEAF)
    upper_at = entry_at(s, mm, start, np.int64(2))
    frame = at >> 12
    dying = s.gather[FULL_MM] != 0
    step, flags = (_ZAP_DYING, _FULL) if dying else (_ZAP_PAGE, ZERO)
    map_table(s, cpu, mm, at, start)
    moments(s, cpu, _ZAP_OPEN, mm, mm, ZERO, ZERO, flags)
    va, full, dirty = start, False, False
    block = s.par[_ZAP_BLOCK]
    while va < end and not full:
        entry = load(s, at)
        if present(s, entry):
            page = va
            calls(s, cpu, step, mm, at, ZERO, mm, at, ZERO, page, flags)
            gather_range(s, page, page + 4096, _LEAF)
            full = _unmap(s, cpu, entry)
            shared_dirty = entry & D != 0 and s.kind[page_frame(s, entry)] == FILE
            dirty = dirty or (shared_dirty and s.par[_DIRTY_FLUSHES] != 0)
            if full and s.par[_AT_ONCE]:
                finish(s, cpu, mm, caller)
                full = False
            if block:
                s.gather[BLOCK] += 1
                full = full or s.gather[BLOCK] >= block
        va += 4096
        at += s.fmt[ENTRY_BYTES]
    reclaim = reclaim and not full
    if reclaim:
        table_calls(s, cpu, _UNHOOK, mm, start, upper_at, np.int64(2), frame, flags)
    moments(s, cpu, _ZAP_CLOSE, mm, mm, ZERO, ZERO, flags)
    if full or dirty:
        finish(s, cpu, mm, caller)
        s.gather[BLOCK] = 0
    if reclaim:
        table_calls(s, cpu, _RELEASE, mm, start, upper_at, np.int64(2), frame, flags)
        _gather_table(s, cpu, mm, start, np.int64(2), frame, caller)
    return va


@lean_part
def _unmap(s, cpu, entry):  # type: ignore[no-untyped-def]
    """Account for an entry that was cleared; true when no more can be gathered."""
    if s.par[_SPECIAL] and entry & s.par[_SPECIAL]:
        return False
    frame = page_frame(s, entry)
    if s.maps[frame] <= 0:
        return False
    return _remove_page(s, cpu, frame)


# ---------------------------------------------------------------------- tables
@lean_part
def _free_table(s, cpu, mm, va, level, caller):  # type: ignore[no-untyped-def]
    """Unhook and gather the table that an entry of some level refers to (free_pte_range)."""
    at = entry_at(s, mm, va, level)
    frame = (load(s, at) & FRAME_MASK) >> 12
    flags = _FULL if s.gather[FULL_MM] else ZERO
    table_calls(s, cpu, _FREE_TABLE, mm, va, at, level, frame, flags)
    _gather_table(s, cpu, mm, va, level, frame, caller)


@lean_part
def _gather_table(s, cpu, mm, va, level, frame, caller):  # type: ignore[no-untyped-def]
    """Gather a table page that nothing refers to any more (tlb_remove_table)."""
    s.mms[mm].tables -= 1
    base = va >> s.fmt[SHIFTS + level] << s.fmt[SHIFTS + level]
    gather_range(s, base, base + 4096, level)
    s.gather[FREED_TABLES] = 1
    if s.par[_GATHER_PAGES] == 0:
        frames.release(s, cpu, frame, NO)
        return
    s.gathered[s.gather[FRAMES]] = frame | _IS_TABLE
    s.gather[FRAMES] += 1
    if s.par[_BY_RCU]:
        return  # tlb_remove_table: not among the pages
    s.gather[PAGES] += 1
    if s.gather[PAGES] >= s.par[_GATHER_PAGES]:
        finish(s, cpu, mm, caller)


@lean
def free_tables(s, cpu, mm, start, end, floor, ceiling, caller, keep):  # type: ignore[no-untyped-def]
    """Free the tables that only a range used (free_pgd_range).

    Parameters
    ----------
    start, end : int64
        Range of mappings that go (bytes).
    floor, ceiling : int64
        End of the mapping before, start of the mapping behind (bytes; 0: none).
    caller : int64
        Name of the function that flushes.
    keep : int64
        Entries above this level keep their tables, which come and go with the top one.

    Returns
    -------
    int64
        Address to go on with once there is room for rows; `end` or more when done.
    """
    pmd = np.int64(1) << s.fmt[SHIFTS + 2]
    top = np.int64(1) << np.int64(62)
    ceiling = top if ceiling == 0 else ceiling & -pmd
    va = start & -pmd
    if va < floor:
        va += pmd
    last = end
    if last > ceiling:
        last = ((end + pmd - 1) & -pmd) - pmd
    while va < last:
        if s.out.shape[0] - s.n[ROWS] < SLACK:
            return va
        here = va
        past = next_table(s, mm, va, last)
        if past == va:
            _free_table(s, cpu, mm, va, np.int64(2), caller)
            past = min(last, boundary(s, va, np.int64(2)))
        va = past
        _free_upper(s, cpu, mm, here, va, last, floor, ceiling, caller, keep)
    return end


@lean_part
def _free_upper(s, cpu, mm, here, va, end, floor, ceiling, caller, keep):  # type: ignore[no-untyped-def]
    """Free upper tables behind which the walk has just come to `va`, the lowest first."""
    for level in range(3, s.fmt[LEVELS] + 1):
        size = np.int64(1) << s.fmt[SHIFTS + level]
        base = (va - 1) & -size
        if va != end and va & (size - 1) != 0:
            return
        if level > keep or base < floor or va > ceiling & -size:
            return
        at = entry_at(s, mm, base, np.int64(level))
        if at >= 0 and load(s, at) & P != 0:
            _free_table(s, cpu, mm, base, np.int64(level), caller)
