"""The loop of direct mode: one pass over a trace, each row carried by its mechanism."""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final, NamedTuple

import numpy as np

from pvmmu._jit import NO, ONE, ZERO, inner, lean, record
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.counters import CPU, emit
from pvmmu.modes.direct.multicall import (
    MMU_UPDATE,
    MMU_UPDATE_BYTES,
    MMUEXT_OP,
    MMUEXT_OP_BYTES,
    UPDATE_VA_MAPPING,
    call,
    entry,
    flush,
)
from pvmmu.modes.direct.tables import (
    LAZY,
    SWITCH,
    announce,
    by_store,
    issue,
    load_cr3,
    mmu_update,
    move_off,
    pin,
    trap,
    unpin,
)
from pvmmu.modes.direct.writable_tables import close_writable, fault_in_hole
from pvmmu.modes.events import Event


@unique
class Mechanism(IntEnum):
    """What carries an operation in direct mode."""

    NOTHING = 0  # costs the hypervisor nothing, and the guest next to nothing
    STORE = 1  # plain store to ordinary memory
    LOCKED = 2  # locked read-modify-write of ordinary memory
    MMU_UPDATE = 3  # a request, queued in a bracket
    MMU_UPDATE_TWICE = 4  # for the kernel's and the user's top-level table
    UPDATE_VA = 5  # by address, queued in a bracket
    FLUSH_CALL = 6  # an mmuext_op of its own
    FLUSH_CALL_MULTI = 7  # with a mask of CPUs
    CR3_CALL = 8  # new base pointers
    ANNOUNCE = 9  # a page becomes a table: read-only, and pinned if it is a PTE table
    DISMISS = 10  # and back
    PIN = 11  # walk over all tables, then pin the root
    UNPIN = 12  # move off, unpin the root, walk
    PIN_ROOT = 13  # of an address space that has no other table yet
    UNPIN_ROOT = 14
    SWITCH_BRACKET = 15
    SWITCH_BRACKET_END = 16
    LAZY_BRACKET = 17
    LAZY_BRACKET_END = 18
    PRIVOP_TWICE = 19  # two privileged instructions that fault and are emulated
    TRAP = 20  # a store that faults: emulated, or the table becomes writable for a while
    PRIVOP = 21  # a privileged instruction that faults and is emulated
    FAULT = 22  # page fault passed on to the guest
    EVENT_CHANNEL = 23  # interrupt to another CPU, by hypercall
    UPDATE_VA_FLUSH = 24  # by address, and the flush of the page with it
    FOLDED = 25  # a flush that the update before it took with it
    UPDATE_IF_CLEARS = 26  # a request where it clears an entry, else a store to ordinary memory
    UPDATE_IF_CLEARS_TWICE = 27


class Backend(NamedTuple):
    """Numbers in which kernels' Xen backends differ; see ``data/hooks/backends.toml``."""

    extends_updates: int  # neighbouring mmu_update requests share an entry of the buffer
    extends_mmuext: int  # neighbouring mmuext_op requests do
    announces_in_bracket: int  # table pages are announced through the buffer, else at once
    root_first: int  # a walk begins with the root
    split_ptlock: int  # PTE tables are pinned one by one
    user_root: int  # 64-bit: a second top-level table for user mode
    walks_by_calls: int  # 0: a walk makes multicalls; 1: calls; 2: and a flush after an unpin
    births_by_store: int  # a table typed from birth becomes read-only by a store that traps
    halves: int  # 32-bit guests with 64-bit entries: bits of `ROW` whose stores are two
    defers: int  # Xen continues a request that drops a present upper entry in a new entry


#: A row of a trace as the loop reads it.
ROW: Final = record(
    ("op", "u1"),
    ("cpu", "u1"),
    ("level", "u1"),
    ("again", "?"),  # ALLOC of a page that is a table already
    ("drops", "?"),  # a present upper entry is replaced or cleared
    ("run_end", "?"),  # last row of a run that one range call covers
    ("slot", "i2"),  # entry of the table
    ("mm", "i4"),
    ("walk", "i4"),  # number of the walk over the address space's tables; -1 none
    ("table", "i8"),  # of a page made or freed: the one with the kernel's entry for it
    ("va", "u8"),
    ("present", "i8"),  # present entries of the address space; -1 unknown
    ("halves", "u1"),  # 1: stores both halves of an entry; 2: reads and clears both
)


class Walks(NamedTuple):
    """Table pages of an address space in the order of a walk; see `pvmmu.guest.lifecycle`."""

    start: np.ndarray  # int64[walk + 1]
    level: np.ndarray  # uint8[...]


@lean
def run_direct(rows, mechanism, times, in_range, walks, backend, m):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    rows : ROW[row]
        The trace, bounds-checked.
    mechanism : uint8[row]
        A `Mechanism` for each row.
    times : int64[row]
        How often each operation is made.
    in_range : bool[row]
        The row is part of a range call: its request waits for the end of the run.
    walks : Walks
        Indexed by ``rows.walk``.
    backend : Backend
        The kernel's backend.
    m : Machine
        CPUs with empty multicall buffers; receives counts and log.
    """
    quick = m.log.shape[0] == 0 and not m.slots[0].enabled
    for row in range(rows.shape[0]):
        how = mechanism[row]
        if quick and _simple(m, rows, row, how, times, in_range, backend):
            continue
        r = rows[row]
        cpu = int(r.cpu)
        m.counts[CPU] = cpu
        if how == Mechanism.STORE:
            emit(m.counts, m.log, row, Event.STORE, times[row])
        elif how == Mechanism.LOCKED:
            emit(m.counts, m.log, row, Event.LOCKED, times[row])
        elif how == Mechanism.MMU_UPDATE and r.level == 1 and not in_range[row]:
            _update_leaf(m, row, cpu, backend, m.cpus[cpu].brackets)
        elif how >= Mechanism.UPDATE_IF_CLEARS and not r.drops:
            emit(m.counts, m.log, row, Event.STORE, times[row])
        elif (
            how == Mechanism.MMU_UPDATE
            or how == Mechanism.MMU_UPDATE_TWICE
            or how >= Mechanism.UPDATE_IF_CLEARS
        ):
            waits = in_range[row] and not r.run_end
            twice = how == Mechanism.MMU_UPDATE_TWICE or how == Mechanism.UPDATE_IF_CLEARS_TWICE
            _update(m, row, cpu, twice, waits, backend, m.cpus[cpu].brackets)
            if r.drops and backend.defers:
                # Xen 4.17, arch/x86/mm.c: put_pt_page defers (PTF_defer) to old_guest_table, and
                # do_mmu_update continues in a new entry to release it.
                emit(m.counts, m.log, row, Event.CONTINUATION, 1 + twice)
        elif how == Mechanism.UPDATE_VA:
            _update_by_address(m, row, cpu, m.cpus[cpu].brackets)
        elif how == Mechanism.UPDATE_VA_FLUSH:
            emit(m.counts, m.log, row, Event.TLB_FLUSH_ONE, ONE)
            _update_by_address(m, row, cpu, m.cpus[cpu].brackets)
        elif how == Mechanism.TRAP:
            _trap(m, row, cpu, r, (2 if r.halves & backend.halves else 1) * times[row])
        elif how == Mechanism.LAZY_BRACKET:
            m.cpus[cpu].brackets |= LAZY
        elif how == Mechanism.LAZY_BRACKET_END:
            m.cpus[cpu].brackets &= ~LAZY
            flush(m, cpu, row)
        elif how == Mechanism.SWITCH_BRACKET:
            m.cpus[cpu].brackets |= SWITCH
        elif how == Mechanism.SWITCH_BRACKET_END:
            m.cpus[cpu].brackets &= ~SWITCH
            flush(m, cpu, row)
        elif how == Mechanism.FLUSH_CALL:
            for _ in range(times[row]):  # one that stands for several CPUs is made by each
                _flush_tlb(m, row, cpu, r.op == Op.FLUSH_ONE, MMUEXT_OP_BYTES, m.cpus[cpu].brackets)
        elif how == Mechanism.FLUSH_CALL_MULTI:
            _flush_tlb(m, row, cpu, NO, MMUEXT_OP_BYTES + 8, m.cpus[cpu].brackets)
        elif how == Mechanism.CR3_CALL:
            load_cr3(backend, m, cpu, row, m.cpus[cpu].brackets)
        elif how == Mechanism.ANNOUNCE or how == Mechanism.DISMISS:
            comes = how == Mechanism.ANNOUNCE
            if backend.births_by_store:
                by_store(m, row, cpu, comes, ONE, r.table, r.slot, not r.again)
            else:
                pins = r.level == 1 and backend.split_ptlock != 0 and not r.again
                announce(m, row, cpu, comes, pins, backend, m.cpus[cpu].brackets)
        elif how == Mechanism.PIN_ROOT and backend.births_by_store:
            by_store(m, row, cpu, True, 1 + backend.user_root, r.table, r.slot, True)
        elif how == Mechanism.PIN or how == Mechanism.PIN_ROOT:
            pin(walks, r.walk, r.present, backend, m, row, cpu)
            if r.op == Op.LOAD_CR3:
                load_cr3(backend, m, cpu, row, m.cpus[cpu].brackets)
        elif how == Mechanism.UNPIN or how == Mechanism.UNPIN_ROOT:
            move_off(r.mm, backend, m, row, cpu)
            if how == Mechanism.UNPIN_ROOT and backend.births_by_store:
                by_store(m, row, cpu, False, 1 + backend.user_root, r.table, r.slot, True)
            else:
                unpin(walks, r.walk, r.present, backend, m, row, cpu)
        elif how == Mechanism.PRIVOP or how == Mechanism.PRIVOP_TWICE:
            close_writable(m.slots, m.counts, m.log, row)
            accesses = 2 if how == Mechanism.PRIVOP_TWICE else 1
            emit(m.counts, m.log, row, Event.PRIVOP_EMULATION, times[row] * accesses)
        elif how == Mechanism.FAULT:
            fault_in_hole(m.slots, m.counts, m.log, row, r.va, r.mm)
            emit(m.counts, m.log, row, Event.PAGE_FAULT, ONE)
        elif how == Mechanism.EVENT_CHANNEL:
            emit(m.counts, m.log, row, Event.EVENT_CHANNEL_OP, times[row])
        if r.op == Op.LOAD_CR3 and how != Mechanism.NOTHING:
            m.cpus[cpu].loaded = r.mm


@inner
def _simple(m, rows, row, how, times, in_range, backend):  # type: ignore[no-untyped-def]
    """Carry one of the commonest rows, if nobody wants a log; say whether it is done."""
    if how == Mechanism.NOTHING:
        return True
    if how == Mechanism.STORE:
        m.counts[Event.STORE] += times[row]
        return True
    if how == Mechanism.LOCKED:
        m.counts[Event.LOCKED] += times[row]
        return True
    if how == Mechanism.FAULT:
        m.counts[Event.PAGE_FAULT] += 1
        return True
    c = m.cpus[rows[row].cpu]
    if how == Mechanism.TRAP:
        stores = 2 if rows[row].halves & backend.halves else 1
        m.counts[Event.PTE_EMULATION] += stores * times[row]
        m.counts[Event.REORDERED_WRITE] += c.entries > 0
        return True
    if how == Mechanism.LAZY_BRACKET:
        c.brackets |= LAZY
        return True
    if how == Mechanism.LAZY_BRACKET_END:
        if c.entries > 1 or (c.entries == 1 and not m.limits[0].bypass):
            return False
        c.brackets &= ~LAZY
        if c.entries == 1 and c.kind[0] != MMU_UPDATE:
            return False
        m.counts[Event.MMU_UPDATE] += c.entries
        m.counts[Event.MMU_UPDATE_REQUESTS] += c.requests[0] * c.entries
        c.entries = c.bytes = c.callbacks = 0
        return True
    if how != Mechanism.MMU_UPDATE or rows[row].level != 1 or in_range[row]:
        return False
    if not c.brackets & LAZY:
        m.counts[Event.MMU_UPDATE] += 1
        m.counts[Event.MMU_UPDATE_REQUESTS] += 1
        return True
    last = c.entries - 1
    if last < 0 or c.kind[last] != MMU_UPDATE or not backend.extends_updates:
        return False
    if c.bytes + MMU_UPDATE_BYTES > m.limits[0].room:
        return False
    c.requests[last] += 1
    c.bytes += MMU_UPDATE_BYTES
    m.counts[Event.QUEUED] += 1
    return True


@lean
def _update_leaf(m, row, cpu, backend, brackets):  # type: ignore[no-untyped-def]
    """xen_set_pte: queued in a bracket, else a hypercall that leaves the buffer alone."""
    if brackets & LAZY:
        _update(m, row, cpu, NO, NO, backend, brackets)
    else:
        call(m, row, MMU_UPDATE, ONE)


@lean
def _update(m, row, cpu, twice, waits, backend, brackets):  # type: ignore[no-untyped-def]
    """A request (for both roots: two) through the buffer."""
    mmu_update(backend.extends_updates, m, cpu, row)
    if twice:
        if backend.walks_by_calls:  # XenLinux: a call for each root
            issue(m, cpu, row, ONE if waits else brackets & LAZY)
        mmu_update(backend.extends_updates, m, cpu, row)
    issue(m, cpu, row, ONE if waits else brackets & LAZY)


@lean
def _update_by_address(m, row, cpu, brackets):  # type: ignore[no-untyped-def]
    """set_pte_at of XenLinux, xen_set_pte_at of 2.6.23 and 2.6.27."""
    if brackets & LAZY:
        entry(m, cpu, row, UPDATE_VA_MAPPING, ZERO)
        emit(m.counts, m.log, row, Event.QUEUED, ONE)
    else:
        call(m, row, UPDATE_VA_MAPPING, ONE)


@lean
def _trap(m, row, cpu, r, stores):  # type: ignore[no-untyped-def]
    """A store to a typed table."""
    in_use = r.mm == m.cpus[cpu].loaded
    trap(m, row, cpu, r.table, r.slot, in_use, r.va, r.mm, stores)


@lean
def _flush_tlb(m, row, cpu, one, nbytes, brackets):  # type: ignore[no-untyped-def]
    """A flush is an mmuext_op of its own."""
    entry(m, cpu, row, MMUEXT_OP, nbytes)
    if one:
        emit(m.counts, m.log, row, Event.TLB_FLUSH_ONE, ONE)
    else:
        emit(m.counts, m.log, row, Event.TLB_FLUSH, ONE)
    issue(m, cpu, row, brackets & LAZY)
