"""Changes to ranges of entries: fork, protection, age, mremap (one kernel for each)."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import NO, ZERO, lean, lean_part
from pvmmu.guest.linux.faults import VM_SHARED, VM_SOFTDIRTY, VM_WRITE
from pvmmu.guest.linux.frames import short
from pvmmu.guest.linux.gather import gather_range
from pvmmu.guest.linux.profile_keys import Par, Step
from pvmmu.guest.linux.rows import flush_mm
from pvmmu.guest.linux.state import (
    EXCLUSIVE_ANON,
    FILE,
    ROWS,
    SHARED_ANON,
    SLACK,
)
from pvmmu.guest.linux.tables import (
    ENTRY_BYTES,
    FRAME_MASK,
    LEVELS,
    RW,
    A,
    D,
    P,
    boundary,
    calls,
    ensure,
    entry_at,
    load,
    map_table,
    moments,
    move_table,
    next_table,
    page_frame,
    present,
)
from pvmmu.x86 import bits

_LEAF, _PAGE_SHIFT = np.int64(1), np.int64(12)
_SHARED, _WRITE, _SOFTDIRTY = map(np.int64, (VM_SHARED, VM_WRITE, VM_SOFTDIRTY))
_SOFT_DIRTY, _SPECIAL, _PROT_NONE, _INVERTED, _USER_GLOBAL = (
    int(p) for p in (Par.SOFT_DIRTY, Par.SPECIAL, Par.PROT_NONE, Par.INVERTED, Par.USER_GLOBAL)
)
_TRY_WRITABLE, _PROTECT_FLUSHES, _COLD_FLUSHES, _MOVE_BLOCK = (
    int(p) for p in (Par.TRY_WRITABLE, Par.PROTECT_FLUSHES, Par.COLD_FLUSHES, Par.MOVE_BLOCK)
)
_MOVE_PMD, _MOVE_PUD = int(Par.MOVE_WHOLE_PMD), int(Par.MOVE_WHOLE_PUD)
(
    _FORK_TABLE, _FORK_OPEN, _FORK_PAGE, _FORK_CLOSE, _PROTECT_OPEN, _PROTECT_PAGE,
    _PROTECT_CLOSE, _MOVE_TABLE, _MOVE_OPEN, _MOVE_PAGE, _MOVE_CLOSE, _MOVE_WHOLE,
) = (
    np.int64(x)
    for x in (
        Step.FORK_TABLE, Step.FORK_OPEN, Step.FORK_PAGE, Step.FORK_CLOSE, Step.PROTECT_OPEN,
        Step.PROTECT_PAGE, Step.PROTECT_CLOSE, Step.MOVE_TABLE, Step.MOVE_OPEN, Step.MOVE_PAGE,
        Step.MOVE_CLOSE, Step.MOVE_WHOLE,
    )
)  # fmt: skip
#: Which entries `walk_range` is about.
ANY_ENTRY, PAGES, SOLE_PAGES = range(3)
_G = np.int64(bits.G)
_XD = np.int64(-(1 << 63))
#: Bits of an entry whose change is no reason to flush, but for those that are only set
#: (pte_flags_need_flush, arch/x86/include/asm/tlbflush.h, 6.1).
_FLUSH_ON_CLEAR = D | P
_FLUSH_ON_CHANGE = np.int64(bits.RW | bits.US | bits.PWT | bits.PCD | bits.PS | bits.G | 0xF << 59)


# ---------------------------------------------------------------------- fork
@lean
def copy_range(s, cpu, src, dst, start, end, flags):  # type: ignore[no-untyped-def]
    """Copy the entries of one mapping to a child (copy_page_range).

    Parameters
    ----------
    src, dst : int64
        Address spaces of parent and child.
    start, end : int64
        The mapping, or what is left of it (bytes).
    flags : int64
        Flags of the mapping.

    Returns
    -------
    int64
        Address to go on with once there is room for rows; `end` when done.
    """
    va = start
    while va < end:
        if s.out.shape[0] - s.n[ROWS] < SLACK or short(s, cpu):
            return va
        level = s.fmt[LEVELS]
        while level > 1:
            if load(s, entry_at(s, src, va, level)) & P == 0:
                break
            ensure(s, cpu, dst, va, level - 1, _FORK_TABLE)
            level -= 1
        past = min(end, boundary(s, va, max(level, np.int64(2))))
        if level == 1:
            _copy_table(s, cpu, src, dst, va, past, flags)
        va = past
    return va


@lean_part
def _copy_table(s, cpu, src, dst, start, end, flags):  # type: ignore[no-untyped-def]
    """Copy entries of one level-1 table (copy_pte_range)."""
    at, child_at = entry_at(s, src, start, _LEAF), entry_at(s, dst, start, _LEAF)
    map_table(s, cpu, dst, child_at, start)
    map_table(s, cpu, src, at, start)
    moments(s, cpu, _FORK_OPEN, src, src, ZERO, ZERO, ZERO)
    cow = flags & (_SHARED | np.int64(0x20)) == np.int64(0x20)  # is_cow_mapping: VM_MAYWRITE
    for va in range(start, end, 4096):
        entry = load(s, at)
        if present(s, entry):
            child = entry & ~A
            if cow:
                child &= ~RW
            if flags & _SHARED:
                child &= ~D
            _share(s, entry)
            calls(
                s, cpu, _FORK_PAGE, src, at, entry & ~RW, dst, child_at, child, np.int64(va), ZERO
            )
        at += s.fmt[ENTRY_BYTES]
        child_at += s.fmt[ENTRY_BYTES]
    moments(s, cpu, _FORK_CLOSE, src, src, ZERO, ZERO, ZERO)


@lean_part
def frame_of(s, entry):  # type: ignore[no-untyped-def]
    """Return the frame of an entry, -1 if it is no page with a reference count."""
    if s.par[_SPECIAL] and entry & s.par[_SPECIAL]:
        return np.int64(-1)
    frame = page_frame(s, entry)
    counted = s.kind[frame] == EXCLUSIVE_ANON or s.kind[frame] == SHARED_ANON
    return frame if counted or s.kind[frame] == FILE else np.int64(-1)


@lean_part
def _share(s, entry):  # type: ignore[no-untyped-def]
    frame = frame_of(s, entry)
    if frame < 0:
        return
    s.maps[frame] += 1
    if s.kind[frame] == EXCLUSIVE_ANON:
        s.kind[frame] = SHARED_ANON


# ---------------------------------------------------------------------- protection
@lean
def protect_range(s, cpu, mm, start, end, prot, flags):  # type: ignore[no-untyped-def]
    """Change the protection of entries (change_protection).

    Parameters
    ----------
    start, end : int64
        Range, or what is left of it (bytes).
    prot : int64
        Flags of an entry of the mapping from now on (vm_page_prot).
    flags : int64
        Flags of the mapping from now on.

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
        at = entry_at(s, mm, va, _LEAF)
        map_table(s, cpu, mm, at, va)
        moments(s, cpu, _PROTECT_OPEN, mm, mm, ZERO, ZERO, ZERO)
        for page in range(va, past, 4096):
            old = load(s, at)
            if present(s, old):
                new = _protected(s, old, prot, flags)
                calls(s, cpu, _PROTECT_PAGE, mm, at, new, mm, at, new, np.int64(page), ZERO)
                if s.par[_PROTECT_FLUSHES] == 0 and _needs_flush(s, old, new):
                    gather_range(s, np.int64(page), np.int64(page) + 4096, _LEAF)
            at += s.fmt[ENTRY_BYTES]
        moments(s, cpu, _PROTECT_CLOSE, mm, mm, ZERO, ZERO, ZERO)
        va = past
    return va


@lean_part
def _protected(s, old, prot, flags):  # type: ignore[no-untyped-def]
    """Return an entry with other protection bits (pte_modify), writable if it may be at once."""
    kept = A | D | s.par[_SOFT_DIRTY] | s.par[_SPECIAL]
    address = (~old if s.par[_INVERTED] and old & P == 0 else old) & FRAME_MASK
    if s.par[_INVERTED] and prot & P == 0:
        address = ~address & FRAME_MASK
    new = address | (old & kept) | prot
    if s.par[_TRY_WRITABLE] == 0 or flags & _WRITE == 0 or new & (RW | P) != P:
        return new
    if new & D == 0 or (flags & _SOFTDIRTY == 0 and new & s.par[_SOFT_DIRTY] == 0):
        return new
    if flags & _SHARED == 0:
        frame = frame_of(s, new)
        if frame < 0 or s.kind[frame] != EXCLUSIVE_ANON:
            return new
    return new | RW


@lean_part
def _needs_flush(s, old, new):  # type: ignore[no-untyped-def]
    """Whether a TLB may hold what is no longer true (pte_needs_flush)."""
    if old & P == 0:
        return False
    if s.par[_USER_GLOBAL]:
        old |= _G  # Xen shows its guests G in user entries; pte_modify drops it
    if (old ^ new) & FRAME_MASK:
        return True
    changed = old ^ new
    return changed & old & _FLUSH_ON_CLEAR != 0 or changed & (_FLUSH_ON_CHANGE | _XD) != 0


# ---------------------------------------------------------------------- age, soft-dirty
@lean
def walk_range(s, cpu, mm, start, end, opening, step, closing, which, off):  # type: ignore[no-untyped-def]
    """Make a step's calls on present entries (madvise, clear_refs).

    Parameters
    ----------
    opening, step, closing : int64
        Numbers of `Step`: before a level-1 table, for each page, after the table.
    which : int64
        `ANY_ENTRY`, `PAGES` (no special mappings), or `SOLE_PAGES` (mapped once).
    off : int64
        Bits that the step takes from an entry.

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
        at = entry_at(s, mm, va, _LEAF)
        map_table(s, cpu, mm, at, va)
        moments(s, cpu, opening, mm, mm, ZERO, ZERO, ZERO)
        for page in range(va, past, 4096):
            old = load(s, at)
            if present(s, old) and _wanted(s, old, which):
                new = old & ~off
                calls(s, cpu, step, mm, at, new, mm, at, new, np.int64(page), ZERO)
                if s.par[_COLD_FLUSHES] and which == SOLE_PAGES and old & A:
                    gather_range(s, np.int64(page), np.int64(page) + 4096, _LEAF)
            at += s.fmt[ENTRY_BYTES]
        moments(s, cpu, closing, mm, mm, ZERO, ZERO, ZERO)
        va = past
    return va


@lean_part
def _wanted(s, entry, which):  # type: ignore[no-untyped-def]
    if which == ANY_ENTRY:
        return True
    frame = frame_of(s, entry)
    return frame >= 0 and (which == PAGES or s.maps[frame] == 1)


# ---------------------------------------------------------------------- mremap
@lean
def move_range(s, cpu, mm, old, end, new):  # type: ignore[no-untyped-def]
    """Move entries to another address (move_page_tables).

    Returns
    -------
    int64
        Old address to go on with once there is room for rows; `end` when done.
    """
    while old < end:
        if s.out.shape[0] - s.n[ROWS] < SLACK or short(s, cpu):
            return old
        step = _move_upper(s, cpu, mm, old, end, new)
        if step == 0:
            step = _extent(s, old, end, new, np.int64(2))
            if s.par[_MOVE_BLOCK]:
                step = min(step, s.par[_MOVE_BLOCK] << 12)
            at = ensure(s, cpu, mm, new, _LEAF, _MOVE_TABLE)
            _move_entries(s, cpu, mm, old, old + step, at)
        old += step
        new += step
    return old


@lean_part
def _extent(s, old, end, new, level):  # type: ignore[no-untyped-def]
    """Bytes until an entry of some level ends, in the old place or the new (get_extent)."""
    return min(min(end, boundary(s, old, level)) - old, boundary(s, new, level) - new)


@lean_part
def _move_upper(s, cpu, mm, old, end, new):  # type: ignore[no-untyped-def]
    """Skip a hole, or move a whole table; return the bytes done, 0 if entries must be moved."""
    level = s.fmt[LEVELS]
    while level > 1:
        at = entry_at(s, mm, old, level)
        extent = _extent(s, old, end, new, level)
        if load(s, at) & P == 0:
            return extent
        ensure(s, cpu, mm, new, level, _MOVE_TABLE)
        whole = extent == np.int64(1) << s.fmt[8 + level]
        may = (level == 2 and s.par[_MOVE_PMD] != 0) or (level == 3 and s.par[_MOVE_PUD] != 0)
        if whole and may:
            to = entry_at(s, mm, new, level)
            if load(s, to) & P == 0:
                move_table(s, cpu, mm, at, to, old, new, level)
                caller = np.int64(s.steps[_MOVE_WHOLE, 0, 3])
                flush_mm(s, cpu, mm, old, old + extent, _PAGE_SHIFT, NO, ZERO, caller)
                return extent
        level -= 1
    return ZERO


@lean_part
def _move_entries(s, cpu, mm, old, end, to):  # type: ignore[no-untyped-def]
    """Move entries within one level-1 table to one other (move_ptes)."""
    at = entry_at(s, mm, old, _LEAF)
    map_table(s, cpu, mm, at, old)
    moments(s, cpu, _MOVE_OPEN, mm, mm, ZERO, ZERO, ZERO)
    moved = False
    for page in range(old, end, 4096):
        entry = load(s, at)
        if entry != 0:
            moved = moved or entry & P != 0
            new = entry | s.par[_SOFT_DIRTY]
            calls(s, cpu, _MOVE_PAGE, mm, at, ZERO, mm, to, new, np.int64(page), ZERO)
        at += s.fmt[ENTRY_BYTES]
        to += s.fmt[ENTRY_BYTES]
    moments(s, cpu, _MOVE_CLOSE, mm, mm, ZERO, ZERO, ZERO)
    if moved and s.par[_MOVE_BLOCK] == 0:
        caller = np.int64(s.steps[_MOVE_PAGE, 0, 3])
        flush_mm(s, cpu, mm, old, end, _PAGE_SHIFT, NO, ZERO, caller)
