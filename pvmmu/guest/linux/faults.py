"""Touches of memory and the page faults they take (mm/memory.c: handle_mm_fault and below)."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, YES, ZERO, lean, lean_part
from pvmmu.guest.linux import frames
from pvmmu.guest.linux.profile_keys import Par, Step
from pvmmu.guest.linux.rows import event
from pvmmu.guest.linux.state import (
    ANON_VMAS,
    BEYOND_FILE,
    ERROR,
    ERROR_AT,
    EXCLUSIVE_ANON,
    FILE,
    FINE,
    NO_ACCESS,
    NO_MAPPING,
    ROWS,
    SHARED_ANON,
    SLACK,
)
from pvmmu.guest.linux.tables import (
    ENTRY_BYTES,
    FRAME_MASK,
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
    store,
)
from pvmmu.guest.vocabulary import Flag, Op
from pvmmu.x86 import bits

# How an address is touched; bits of `touch_all`'s ``how``.
READ, WRITE, FETCH, KERNEL = 0, 1, 2, 4

# Flags of a mapping (include/linux/mm.h, 6.1); the last two are this model's: a mapping whose
# faults map one page, and the heap where it never merges with the bss.
VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 1, 2, 4, 8
VM_MAYWRITE, VM_GROWSDOWN, VM_PFNMAP = 0x20, 0x100, 0x400
VM_ACCOUNT, VM_SOFTDIRTY = 0x0010_0000, 0x0800_0000
SINGLE, HEAP = 1 << 41, 1 << 42

_READ, _WRITE, _EXEC, _SHARED = map(np.int64, (VM_READ, VM_WRITE, VM_EXEC, VM_SHARED))
_SINGLE, _PFNMAP = map(np.int64, (SINGLE, VM_PFNMAP))
_FAULT_AROUND, _ZERO_PAGE = int(Par.FAULT_AROUND), int(Par.ZERO_PAGE)
_SOFT_DIRTY, _SPECIAL, _TOUCHES = int(Par.SOFT_DIRTY), int(Par.SPECIAL), int(Par.TOUCHES)
_NO_EXECUTE = int(Par.NO_EXECUTE)
_TOUCH, _NONE = np.int64(Op.TOUCH), np.int64(-1)
_KERNEL_FAULT, _CURRENT = np.int64(Flag.KERNEL_FAULT), np.int64(Flag.CURRENT_MM)
_PAGE_MASK = np.int64(-4096)
_LEAF = np.int64(1)
_PF_P, _PF_WR, _PF_US, _PF_ID = map(np.int64, (bits.PF_P, bits.PF_WR, bits.PF_US, bits.PF_ID))
(
    _FAULT, _FAULT_TABLE, _FILE_TABLE, _ANON_WRITE, _ANON_READ, _FILE_MAP, _FILE_COPY,
    _FILE_WRITE, _REUSE, _COPY,
) = (
    np.int64(x)
    for x in (
        Step.FAULT, Step.FAULT_TABLE, Step.FILE_TABLE, Step.ANON_WRITE, Step.ANON_READ,
        Step.FILE_MAP, Step.FILE_COPY, Step.FILE_WRITE, Step.REUSE, Step.COPY,
    )
)  # fmt: skip


@lean
def touch_all(s, cpu, mm, vmas, addresses, how, start):  # type: ignore[no-untyped-def]
    """Touch addresses one after the other.

    Parameters
    ----------
    s : State
    cpu, mm : int64
        CPU and its address space.
    vmas : VMA[...]
        Mappings of `mm` in order of address; their flags change (anon_vma_prepare).
    addresses : int64[n]
        What to touch (bytes).
    how : int64
        `READ`, `WRITE` or `FETCH`, plus `KERNEL` for accesses by the kernel itself.
    start : int64
        Element to begin with.

    Returns
    -------
    int64
        Element to go on with once there is room for rows; n when done. ``s.n[ERROR]`` tells of an
        access that cannot be satisfied, ``s.n[ERROR_AT]`` of its address.
    """
    v = ZERO
    for i in range(start, addresses.shape[0]):
        if s.out.shape[0] - s.n[ROWS] < SLACK or frames.short(s, cpu):
            return np.int64(i)
        va = addresses[i]
        if vmas.shape[0] == 0 or not vmas[v].start <= va < vmas[v].end:
            v = find(vmas, va)
        if v < 0:
            v = ZERO
            s.n[ERROR], s.n[ERROR_AT] = NO_MAPPING, va
            return np.int64(i)
        _touch(s, cpu, mm, vmas, v, va, how)
        if s.n[ERROR] != FINE:
            s.n[ERROR_AT] = va
            return np.int64(i)
    return np.int64(addresses.shape[0])


@lean_part
def find(vmas, va):  # type: ignore[no-untyped-def]
    """Return the mapping that holds an address, -1 if none does."""
    lo, hi = 0, vmas.shape[0]
    while lo < hi:
        mid = (lo + hi) // 2
        if vmas[mid].end <= va:
            lo = mid + 1
        else:
            hi = mid
    if lo < vmas.shape[0] and vmas[lo].start <= va:
        return np.int64(lo)
    return np.int64(-1)


@lean_part
def _touch(s, cpu, mm, vmas, v, va, how):  # type: ignore[no-untyped-def]
    """One access: what the MMU does, and the fault if it cannot."""
    at = entry_at(s, mm, va, _LEAF)
    entry = load(s, at) if at >= 0 else ZERO
    if not _allowed(s, entry, how):
        _fault(s, cpu, mm, vmas, v, va, entry, how)
        if s.n[ERROR] != FINE:
            return
        at = entry_at(s, mm, va, _LEAF)
        entry = load(s, at)
    store(s, at, entry | A | (D if how & WRITE else ZERO))
    if s.par[_TOUCHES]:
        event(s, cpu, _TOUCH, mm, va, np.int64(how), ONE, _CURRENT, _NONE)


@lean_part
def _allowed(s, entry, how):  # type: ignore[no-untyped-def]
    if entry & P == 0 or (how & WRITE and entry & RW == 0):
        return False
    return not (how & FETCH and entry & s.par[_NO_EXECUTE] != 0)


@lean_part
def _fault(s, cpu, mm, vmas, v, va, entry, how):  # type: ignore[no-untyped-def]
    """Take a page fault (exc_page_fault): may the access be made at all?"""
    flags = vmas[v].vm_flags
    needed = _WRITE if how & WRITE else _EXEC if how & FETCH else _READ
    code = (_PF_P if entry & P else ZERO) | (_PF_WR if how & WRITE else ZERO)
    code |= (ZERO if how & KERNEL else _PF_US) | (_PF_ID if how & FETCH else ZERO)
    kernel_fault = _KERNEL_FAULT if how & KERNEL else ZERO
    moments(s, cpu, _FAULT, mm, mm, va, code, kernel_fault)
    if flags & needed == 0 and not (needed == _READ and flags & (_WRITE | _EXEC)):
        s.n[ERROR] = NO_ACCESS
        return
    handle(s, cpu, mm, vmas, v, va, how & WRITE != 0)


@lean_part
def handle(s, cpu, mm, vmas, v, va, write):  # type: ignore[no-untyped-def]
    """Make a page accessible (handle_mm_fault)."""
    vma = vmas[v]
    at = entry_at(s, mm, va, _LEAF)
    entry = load(s, at) if at >= 0 else ZERO
    if at >= 0:
        map_table(s, cpu, mm, at, va)
    if entry != 0:
        if write and entry & RW == 0:
            _write_protected(s, cpu, mm, vma, at, va, entry)
        return
    if vma.file < 0:
        at = ensure(s, cpu, mm, va, _LEAF, _FAULT_TABLE)
        _anonymous(s, cpu, mm, vma, at, va, write)
        return
    place = vma.file + ((va - vma.start) >> 12)
    if place > vma.last:
        s.n[ERROR] = BEYOND_FILE
        return
    ensure(s, cpu, mm, va, np.int64(2), _FAULT_TABLE)
    if not write:
        _map_file(s, cpu, mm, vma, va)
    elif vma.vm_flags & _SHARED:
        _write_file(s, cpu, mm, vma, va, place)
    else:
        _copy_file(s, cpu, mm, vma, va)


@lean_part
def _anonymous(s, cpu, mm, vma, at, va, write):  # type: ignore[no-untyped-def]
    """Give a page of zeroes (do_anonymous_page)."""
    page = va & _PAGE_MASK
    if not write and s.par[_ZERO_PAGE]:
        entry = vma.prot | s.par[_SPECIAL] | s.par[_ZERO_PAGE]
        calls(s, cpu, _ANON_READ, mm, at, entry, mm, at, entry, page, ZERO)
        return
    _prepare_anon(s, vma)
    frame = frames.allocate(s, cpu, EXCLUSIVE_ANON, YES)
    s.maps[frame] = 1
    entry = frame << 12 | vma.prot
    if vma.vm_flags & _WRITE:
        entry |= _dirty_writable(s)
    calls(s, cpu, _ANON_WRITE, mm, at, entry, mm, at, entry, page, ZERO)


@lean_part
def _prepare_anon(s, vma):  # type: ignore[no-untyped-def]
    """Remember that the mapping has anonymous pages (anon_vma_prepare)."""
    if vma.anon == 0:
        s.n[ANON_VMAS] += 1
        vma.anon = s.n[ANON_VMAS]


@lean_part
def _dirty_writable(s):  # type: ignore[no-untyped-def]
    """Flags of pte_mkwrite(pte_mkdirty(..))."""
    return RW | D | s.par[_SOFT_DIRTY]


# ---------------------------------------------------------------------- files
@lean_part
def _file_frame(s, cpu, place):  # type: ignore[no-untyped-def]
    """Return the frame of a page in the page cache; it is read in if it is not there."""
    frame = s.cache[place]
    if frame < 0:
        frame = frames.allocate(s, cpu, FILE, YES)
        s.cache[place] = frame
    return frame


@lean_part
def _map_file(s, cpu, mm, vma, va):  # type: ignore[no-untyped-def]
    """Map a page for reading, and cached pages around it (do_read_fault, filemap_map_pages)."""
    first = last = va & _PAGE_MASK
    around = s.par[_FAULT_AROUND] if vma.vm_flags & _SINGLE == 0 else ONE
    if around > 1:
        size = around << 12
        first = max(va & -size, vma.start)
        table = boundary(s, va, np.int64(2))
        end_of_file = vma.start + ((vma.last - vma.file + 1) << 12)
        last = min(min(first + size, table), min(vma.end, end_of_file)) - 4096
    here = va & _PAGE_MASK
    at = ensure(s, cpu, mm, va, _LEAF, _FILE_TABLE)
    at -= ((here - first) >> 12) * s.fmt[ENTRY_BYTES]
    page = first
    while page <= last:
        place = vma.file + ((page - vma.start) >> 12)
        if load(s, at) == 0 and (page == here or s.cache[place] >= 0):
            frame = _file_frame(s, cpu, place)
            if vma.vm_flags & _PFNMAP == 0:
                s.maps[frame] += 1
            entry = frame << 12 | vma.prot
            calls(s, cpu, _FILE_MAP, mm, at, entry, mm, at, entry, page, ZERO)
        page += 4096
        at += s.fmt[ENTRY_BYTES]


@lean_part
def _copy_file(s, cpu, mm, vma, va):  # type: ignore[no-untyped-def]
    """Give a private copy of a page that is not mapped yet (do_cow_fault)."""
    _prepare_anon(s, vma)
    frame = frames.allocate(s, cpu, EXCLUSIVE_ANON, YES)
    s.maps[frame] = 1
    entry = frame << 12 | vma.prot | _dirty_writable(s)
    at = ensure(s, cpu, mm, va, _LEAF, _FILE_TABLE)
    calls(s, cpu, _FILE_COPY, mm, at, entry, mm, at, entry, va & _PAGE_MASK, ZERO)


@lean_part
def _write_file(s, cpu, mm, vma, va, place):  # type: ignore[no-untyped-def]
    """Map a page of a shared file mapping for writing (do_shared_fault)."""
    frame = _file_frame(s, cpu, place)
    s.maps[frame] += 1
    entry = frame << 12 | vma.prot | _dirty_writable(s)
    at = ensure(s, cpu, mm, va, _LEAF, _FILE_TABLE)
    calls(s, cpu, _FILE_WRITE, mm, at, entry, mm, at, entry, va & _PAGE_MASK, ZERO)


# ---------------------------------------------------------------------- write to a read-only page
@lean_part
def _write_protected(s, cpu, mm, vma, at, va, entry):  # type: ignore[no-untyped-def]
    """Copy the page, or use it if nobody else does (do_wp_page)."""
    page = va & _PAGE_MASK
    frame = (entry & FRAME_MASK) >> 12
    special = s.par[_SPECIAL] != 0 and entry & s.par[_SPECIAL] != 0
    zero = s.par[_ZERO_PAGE] != 0 and entry & FRAME_MASK == s.par[_ZERO_PAGE] & FRAME_MASK
    anonymous = s.kind[frame] == SHARED_ANON or s.kind[frame] == EXCLUSIVE_ANON
    sole = anonymous and (s.kind[frame] == EXCLUSIVE_ANON or s.maps[frame] == 1)
    if not special and not zero and (sole or vma.vm_flags & _SHARED):
        if anonymous:
            s.kind[frame] = EXCLUSIVE_ANON
        entry |= A | _dirty_writable(s)
        calls(s, cpu, _REUSE, mm, at, entry, mm, at, entry, page, ZERO)
        return
    _prepare_anon(s, vma)
    copy = frames.allocate(s, cpu, EXCLUSIVE_ANON, YES)
    s.maps[copy] = 1
    if not (special or zero):
        drop(s, cpu, frame)
    new = copy << 12 | vma.prot | _dirty_writable(s)
    calls(s, cpu, _COPY, mm, at, new, mm, at, new, page, ZERO)


@lean_part
def drop(s, cpu, frame):  # type: ignore[no-untyped-def]
    """One entry less maps a frame; anonymous memory that nobody maps is free."""
    s.maps[frame] -= 1
    if s.maps[frame] == 0 and s.kind[frame] != FILE:
        frames.release(s, cpu, frame, YES)


# ---------------------------------------------------------------------- without an access
@lean
def populate(s, cpu, mm, vmas, start, end, write):  # type: ignore[no-untyped-def]
    """Make pages present without touching them (populate_vma_page_range, get_user_pages).

    Returns
    -------
    int64
        Address to go on with once there is room for rows; `end` when done.
    """
    va = start
    v = find(vmas, va)
    while va < end:
        if s.out.shape[0] - s.n[ROWS] < SLACK or frames.short(s, cpu):
            return va
        if v < 0 or va >= vmas[v].end:
            v = find(vmas, va)
            if v < 0:
                s.n[ERROR], s.n[ERROR_AT] = NO_MAPPING, va
                return va
        at = entry_at(s, mm, va, _LEAF)
        entry = load(s, at) if at >= 0 else ZERO
        if entry & P == 0 or (write and entry & RW == 0):
            handle(s, cpu, mm, vmas, v, va, write)
            if s.n[ERROR] != FINE:
                s.n[ERROR_AT] = va
                return va
        va += 4096
    return va
