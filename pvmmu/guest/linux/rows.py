"""Kernels that write down operations, and flushes of the TLB as each kernel decides them."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import NO, ONE, ZERO, lean, lean_part
from pvmmu.guest.linux.profile_keys import Par
from pvmmu.guest.linux.state import ROWS, SLACK
from pvmmu.guest.vocabulary import Flag, Op

_FLUSH_RANGE, _FLUSH_ONE, _FLUSH_USER, _FLUSH_KERNEL, _FLUSH_OTHERS, _SEND_IPI, _LOAD_CR3 = (
    np.int64(o)
    for o in (
        Op.FLUSH_RANGE, Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.FLUSH_OTHERS,
        Op.SEND_IPI, Op.LOAD_CR3,
    )
)  # fmt: skip
_ENTRY, _EXIT = np.int64(Op.KERNEL_ENTRY), np.int64(Op.KERNEL_EXIT)
_BEHIND, _FULL_MM = np.int64(Flag.NATIVE_ONLY), np.int64(Flag.FULLMM)
_RANGED, _CEILING, _PCID = int(Par.RANGED), int(Par.CEILING), int(Par.PCID)
_CPUMASK_LAZY = int(Par.CPUMASK_LAZY)
#: End of a flush of everything (TLB_FLUSH_ALL), and what ``count`` is then.
EVERYTHING = np.int64(-1)
_NO_TABLE = np.int64(-1)
#: TLB_NR_DYN_ASIDS (arch/x86/include/asm/tlbflush.h, 6.1).
ASIDS = 6
_PAGE = np.int64(4096)
_PAGE_SHIFT = np.int64(12)
#: Bit 63 of CR3: keep what the TLB holds under this PCID (SDM vol. 3A §4.10.4.1).
_NO_FLUSH = np.int64(-(1 << 63))


@lean_part
def write_row(s, cpu, op, mm, table, index, va, value, count, flags, caller):  # type: ignore[no-untyped-def]
    """Append one operation."""
    i = s.n[ROWS]
    s.n[ROWS] = i + 1
    r = s.out[i]
    r.op, r.cpu, r.task, r.mm = op, cpu, s.cpus[cpu].task, mm
    r.table, r.index, r.va, r.value = table, index, va, value
    r.count, r.flags, r.caller = count, flags, caller


@lean
def event(s, cpu, op, mm, va, value, count, flags, caller):  # type: ignore[no-untyped-def]
    """Append an operation that writes no entry."""
    write_row(s, cpu, op, mm, _NO_TABLE, _NO_TABLE, va, value, count, flags, caller)


@lean
def system_calls(s, cpu, done, count):  # type: ignore[no-untyped-def]
    """Append entry and exit of calls that do nothing to memory, as far as there is room for rows.

    Parameters
    ----------
    done, count : int64
        Calls made before, and altogether.

    Returns
    -------
    int64
        Calls made so far.
    """
    while done < count and s.out.shape[0] - s.n[ROWS] >= SLACK:
        event(s, cpu, _ENTRY, _NO_TABLE, ZERO, ZERO, ONE, ZERO, _NO_TABLE)
        event(s, cpu, _EXIT, _NO_TABLE, ZERO, ZERO, ONE, ZERO, _NO_TABLE)
        done += 1
    return done


# ---------------------------------------------------------------------- what a CPU has loaded
@lean
def load_mm(s, cpu, mm, flags, caller):  # type: ignore[no-untyped-def]
    """Load CR3 with the tables of `mm`, switch_mm_irqs_off; do nothing if they are loaded."""
    c = s.cpus[cpu]
    before, was_lazy = c.mm, c.lazy
    c.lazy = 0
    generation = s.mms[mm].generation
    asid, flush = c.asid, True
    if before == mm:
        if was_lazy == 0 or s.context_generation[cpu, asid] == generation:
            return
    else:
        if before > 0 and s.par[_CPUMASK_LAZY] == 0:
            s.mms[before].mask &= ~(np.int64(1) << cpu)
        if mm > 0:
            s.mms[mm].mask |= np.int64(1) << cpu
        asid, flush = _choose_asid(s, cpu, mm, generation)
    value = asid if s.par[_PCID] else np.int64(0)
    if flush:
        s.context_mm[cpu, asid] = mm
        s.context_generation[cpu, asid] = generation
    else:
        value |= _NO_FLUSH
    c.mm, c.asid = mm, asid
    event(s, cpu, _LOAD_CR3, np.int64(mm), ZERO, value, ONE, flags, caller)


@lean_part
def _choose_asid(s, cpu, mm, generation):  # type: ignore[no-untyped-def]
    """Return an ASID for `mm` and whether its entries must go (choose_new_asid)."""
    if s.par[_PCID] == 0:
        return np.int64(0), True
    for asid in range(ASIDS):
        if s.context_mm[cpu, asid] == mm:
            return np.int64(asid), s.context_generation[cpu, asid] < generation
    c = s.cpus[cpu]
    asid = c.next_asid
    c.next_asid = asid + 1
    if asid >= ASIDS:
        asid, c.next_asid = 0, 1
    return np.int64(asid), True


# ---------------------------------------------------------------------- flushes
@lean
def flush_mm(s, cpu, mm, start, end, shift, freed_tables, flags, caller):  # type: ignore[no-untyped-def]
    """Flush pages of an address space wherever it is in use (flush_tlb_mm_range).

    Parameters
    ----------
    start, end : int64
        Addresses (bytes); `end` `EVERYTHING` for all.
    shift : int64
        Size of a page, binary logarithm (bytes).
    freed_tables : bool
        Table pages go, so CPUs that only borrow the address space must drop it, too.
    flags : int64
        Bits of `Flag` for the rows.
    """
    ranged = s.par[_RANGED] != 0
    pages = EVERYTHING
    if end != EVERYTHING:
        pages = (end - start) >> shift
        if (ranged and pages > s.par[_CEILING]) or (not ranged and pages > 1):
            pages = EVERYTHING
    va = ZERO if pages == EVERYTHING else start
    s.mms[mm].generation += 1
    event(s, cpu, _FLUSH_RANGE, mm, va, ZERO, pages, flags, caller)
    here = np.int64(1) << cpu
    if s.mms[mm].mask & ~here:
        if not ranged and s.cpus[cpu].mm == mm:
            _flush_here(s, cpu, mm, va, pages, shift, flags, caller)
        _flush_others(s, cpu, mm, va, pages, shift, freed_tables, ranged, flags, caller)
    elif s.cpus[cpu].mm == mm:
        _flush_here(s, cpu, mm, va, pages, shift, flags, caller)


@lean_part
def _flush_here(s, cpu, mm, va, pages, shift, flags, caller):  # type: ignore[no-untyped-def]
    """Flush on this CPU (flush_tlb_func), or leave an address space that is only borrowed."""
    c = s.cpus[cpu]
    if c.lazy:
        left = flags | _BEHIND if flags & _FULL_MM else flags
        load_mm(s, cpu, ZERO, left, caller)
        return
    pages = _catch_up(s, cpu, mm, pages)
    if pages == EVERYTHING:
        event(s, cpu, _FLUSH_USER, mm, ZERO, ZERO, ONE, flags, caller)
    for i in range(_steps(pages)):
        event(s, cpu, _FLUSH_ONE, mm, va + (i << shift), ZERO, ONE, flags, caller)


@lean_part
def _steps(pages):  # type: ignore[no-untyped-def]
    """Pages that a flush names; where only tables went, part of a page still counts as one."""
    return ZERO if pages == EVERYTHING else max(pages, ONE)


@lean_part
def _catch_up(s, cpu, mm, pages):  # type: ignore[no-untyped-def]
    """Bring a CPU to the latest generation; more than one behind, it must flush everything."""
    asid = s.cpus[cpu].asid
    behind = s.mms[mm].generation - s.context_generation[cpu, asid]
    s.context_generation[cpu, asid] = s.mms[mm].generation
    return pages if behind == 1 else EVERYTHING


@lean_part
def _flush_others(s, cpu, mm, va, pages, shift, freed_tables, ranged, flags, caller):  # type: ignore[no-untyped-def]
    """Flush on several CPUs: one call if it is hooked, else interrupts and what they do there."""
    mask = s.mms[mm].mask
    here = np.int64(1) << cpu
    if not ranged:
        mask &= ~here  # native_flush_tlb_others of 2.6: this CPU has done its part
    asked = interrupted = partly = wholly = ZERO
    for other in range(s.cpus.shape[0]):
        if not mask >> other & 1:
            continue
        asked += 1
        o = s.cpus[other]
        lazy = o.lazy != 0
        if lazy and ranged and not freed_tables:
            continue  # it will notice at its next switch (should_flush_tlb)
        if other != cpu:
            interrupted += 1
        if o.mm != mm or lazy:
            continue
        if _catch_up(s, other, mm, pages) == EVERYTHING:
            wholly += 1
        else:
            partly += 1
    event(s, cpu, _FLUSH_OTHERS, mm, va, pages, asked, flags, caller)
    behind = flags | _BEHIND
    if interrupted:
        event(s, cpu, _SEND_IPI, mm, ZERO, ZERO, interrupted, behind, caller)
    if wholly:
        event(s, cpu, _FLUSH_USER, mm, ZERO, ZERO, wholly, behind, caller)
    if partly:
        for i in range(_steps(pages)):
            event(s, cpu, _FLUSH_ONE, mm, va + (i << shift), ZERO, partly, behind, caller)
    _leave_lazily(s, cpu, mm, mask, freed_tables or not ranged, behind, caller)


@lean_part
def _leave_lazily(s, cpu, mm, mask, interrupted, flags, caller):  # type: ignore[no-untyped-def]
    """Interrupted CPUs that only borrow `mm` switch to init_mm; those that left it forget it."""
    if not interrupted:
        return
    for other in range(s.cpus.shape[0]):
        if not mask >> other & 1 or other == cpu:
            continue
        o = s.cpus[other]
        if o.mm != mm:
            s.mms[mm].mask &= ~(np.int64(1) << other)
        elif o.lazy:
            load_mm(s, np.int64(other), ZERO, flags, caller)


@lean_part
def flush_page(s, cpu, mm, va, caller):  # type: ignore[no-untyped-def]
    """Flush one page (flush_tlb_page)."""
    flush_mm(s, cpu, mm, va, va + _PAGE, _PAGE_SHIFT, NO, ZERO, caller)


@lean
def flush_kernel(s, cpu, start, end, caller):  # type: ignore[no-untyped-def]
    """Flush kernel mappings on all CPUs (flush_tlb_kernel_range)."""
    pages = (end - start) >> _PAGE_SHIFT
    cpus = np.int64(s.cpus.shape[0])
    if cpus > 1:
        event(s, cpu, _SEND_IPI, ZERO, ZERO, ZERO, cpus - 1, ZERO, caller)
    if s.par[_RANGED] == 0 or pages > s.par[_CEILING]:
        event(s, cpu, _FLUSH_KERNEL, ZERO, ZERO, ZERO, cpus, ZERO, caller)
        return
    for i in range(pages):
        event(s, cpu, _FLUSH_ONE, ZERO, start + (i << _PAGE_SHIFT), ZERO, cpus, ZERO, caller)
