"""The loop of direct mode: one pass over a trace, each row carried by its mechanism."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from pvmmu._jit import NO, ONE, ZERO, kernel
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.events import Event
from pvmmu.modes.multicall import (
    MMU_UPDATE,
    MMU_UPDATE_BYTES,
    MMUEXT_OP,
    MMUEXT_OP_BYTES,
    UPDATE_VA_MAPPING,
    call,
    callback,
    entry,
    extend,
    flush,
)
from pvmmu.modes.ptwr import close_writable, fault_in_hole, write_to_table
from pvmmu.modes.tally import CPU, emit


class Carrier(IntEnum):
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
    TRAP = 20  # a store that faults: emulated, or the table becomes writable for a while
    PRIVOP = 21  # a privileged instruction that faults and is emulated
    FAULT = 22  # page fault passed on to the guest
    EVENT_CHANNEL = 23  # interrupt to another CPU, by hypercall
    MISSING = 30  # the design does not work: see the reason


class Backend(NamedTuple):
    """Numbers in which kernels' Xen backends differ; see `pvmmu.modes.direct.BACKENDS`."""

    extends_mmuext: int  # consecutive pins and CR3 requests merge into one call
    announces_in_bracket: int  # table pages are announced through the buffer, else by calls at once
    root_first: int  # a walk begins with the root
    split_ptlock: int  # PTE tables are pinned one by one
    user_root: int  # 64-bit: a second top-level table for user mode
    emulated_per_store: int  # traps for one store (2 for a 64-bit entry of a 32-bit guest)


#: A row of a trace as the loop reads it.
ROW = np.dtype(
    [
        ("op", "u1"),
        ("cpu", "u1"),
        ("level", "u1"),
        ("again", "?"),  # ALLOC of a page that is a table already
        ("drops", "?"),  # a present upper entry is replaced or cleared
        ("run_end", "?"),  # last row of a run that one range call covers
        ("slot", "i2"),  # entry of the table
        ("mm", "i4"),
        ("walk", "i4"),  # number of the walk over the address space's tables; -1 none
        ("table", "i8"),
        ("va", "u8"),
        ("present", "i8"),  # present entries of the address space; -1 unknown
    ]
)


class Walks(NamedTuple):
    """Table pages of an address space in the order of a walk; see `pvmmu.guest.lifecycle`."""

    start: np.ndarray  # int64[walk + 1]
    level: np.ndarray  # uint8[...]


_LAZY, _SWITCH = 1, 2


@kernel
def run_direct(rows, carrier, times, in_range, walks, backend, m):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    rows : ROW[row]
        The trace, bounds-checked.
    carrier : uint8[row]
        A `Carrier` for each row; none is `Carrier.MISSING`.
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
    for row in range(rows.shape[0]):
        how, r = carrier[row], rows[row]
        cpu = int(r.cpu)
        m.counts[CPU] = cpu
        if how == Carrier.STORE:
            emit(m.counts, m.log, row, Event.STORE, times[row])
        elif how == Carrier.LOCKED:
            emit(m.counts, m.log, row, Event.LOCKED, times[row])
        elif how == Carrier.MMU_UPDATE and r.level == 1 and not in_range[row]:
            _update_leaf(m, row, cpu, m.cpus[cpu].brackets)
        elif how == Carrier.MMU_UPDATE or how == Carrier.MMU_UPDATE_TWICE:
            waits = in_range[row] and not r.run_end
            twice = how == Carrier.MMU_UPDATE_TWICE
            _update(m, row, cpu, twice, waits, m.cpus[cpu].brackets)
            if r.drops:
                # Xen 4.17, arch/x86/mm.c: put_pt_page defers (PTF_defer) to old_guest_table, and
                # do_mmu_update continues in a new entry to release it.
                emit(m.counts, m.log, row, Event.CONTINUATION, 1 + twice)
        elif how == Carrier.UPDATE_VA:
            _update_by_address(m, row, cpu, m.cpus[cpu].brackets)
        elif how == Carrier.TRAP:
            _trap(m, row, cpu, r, backend.emulated_per_store * times[row])
        elif how == Carrier.LAZY_BRACKET:
            m.cpus[cpu].brackets |= _LAZY
        elif how == Carrier.LAZY_BRACKET_END:
            m.cpus[cpu].brackets &= ~_LAZY
            flush(m, cpu, row)
        elif how == Carrier.SWITCH_BRACKET:
            m.cpus[cpu].brackets |= _SWITCH
        elif how == Carrier.SWITCH_BRACKET_END:
            m.cpus[cpu].brackets &= ~_SWITCH
            flush(m, cpu, row)
        elif how == Carrier.FLUSH_CALL:
            for _ in range(times[row]):  # one that stands for several CPUs is made by each
                _flush_tlb(m, row, cpu, r.op == Op.FLUSH_ONE, MMUEXT_OP_BYTES, m.cpus[cpu].brackets)
        elif how == Carrier.FLUSH_CALL_MULTI:
            _flush_tlb(m, row, cpu, NO, MMUEXT_OP_BYTES + 8, m.cpus[cpu].brackets)
        elif how == Carrier.CR3_CALL:
            _load_cr3(backend, m, cpu, row, m.cpus[cpu].brackets)
        elif how == Carrier.ANNOUNCE or how == Carrier.DISMISS:
            pins = r.level == 1 and backend.split_ptlock != 0 and not r.again
            _announce(m, row, cpu, how == Carrier.ANNOUNCE, pins, backend, m.cpus[cpu].brackets)
        elif how == Carrier.PIN or how == Carrier.PIN_ROOT:
            _pin(walks, r.walk, r.present, backend, m, row, cpu)
            if r.op == Op.LOAD_CR3:
                _load_cr3(backend, m, cpu, row, m.cpus[cpu].brackets)
        elif how == Carrier.UNPIN or how == Carrier.UNPIN_ROOT:
            _move_off(r.mm, backend, m, row, cpu)
            _unpin(walks, r.walk, r.present, backend, m, row, cpu)
        elif how == Carrier.PRIVOP:
            close_writable(m.slots, m.counts, m.log, row)
            emit(m.counts, m.log, row, Event.PRIVOP_EMULATION, times[row])
        elif how == Carrier.FAULT:
            fault_in_hole(m.slots, m.counts, m.log, row, r.va, r.mm)
            emit(m.counts, m.log, row, Event.PAGE_FAULT, ONE)
        elif how == Carrier.EVENT_CHANNEL:
            emit(m.counts, m.log, row, Event.EVENT_CHANNEL_OP, times[row])
        if r.op == Op.LOAD_CR3 and how != Carrier.NOTHING:
            m.cpus[cpu].loaded = r.mm


@kernel
def _issue(m, cpu, row, bracket):  # type: ignore[no-untyped-def]
    """Send at once unless a bracket of the right kind is open (xen_mc_issue)."""
    if bracket == 0:
        flush(m, cpu, row)
    else:
        emit(m.counts, m.log, row, Event.QUEUED, ONE)


@kernel
def _update_leaf(m, row, cpu, brackets):  # type: ignore[no-untyped-def]
    """xen_set_pte: queued in a bracket, else a hypercall that leaves the buffer alone."""
    if brackets & _LAZY:
        _update(m, row, cpu, NO, NO, brackets)
    else:
        call(m, row, MMU_UPDATE, ONE)


@kernel
def _update(m, row, cpu, twice, waits, brackets):  # type: ignore[no-untyped-def]
    """A request (for both roots: two) through the buffer."""
    extend(m, cpu, row, MMU_UPDATE, MMU_UPDATE_BYTES)
    if twice:
        extend(m, cpu, row, MMU_UPDATE, MMU_UPDATE_BYTES)
    _issue(m, cpu, row, ONE if waits else brackets & _LAZY)


@kernel
def _update_by_address(m, row, cpu, brackets):  # type: ignore[no-untyped-def]
    """xen_set_pte_at of 2.6.27."""
    if brackets & _LAZY:
        entry(m, cpu, row, UPDATE_VA_MAPPING, ZERO)
        emit(m.counts, m.log, row, Event.QUEUED, ONE)
    else:
        call(m, row, UPDATE_VA_MAPPING, ONE)


@kernel
def _trap(m, row, cpu, r, stores):  # type: ignore[no-untyped-def]
    """A store to a typed table: it takes effect at once, whatever waits in the queue."""
    if m.cpus[cpu].entries > 0:
        emit(m.counts, m.log, row, Event.OVERTAKEN, ONE)
    if not write_to_table(
        m.slots, m.counts, m.log, row, r.table, r.slot, r.mm == m.cpus[cpu].loaded, r.va, r.mm
    ):
        emit(m.counts, m.log, row, Event.PTE_EMULATION, stores)


@kernel
def _flush_tlb(m, row, cpu, one, nbytes, brackets):  # type: ignore[no-untyped-def]
    """A flush is an mmuext_op of its own."""
    entry(m, cpu, row, MMUEXT_OP, nbytes)
    if one:
        emit(m.counts, m.log, row, Event.TLB_FLUSH_ONE, ONE)
    else:
        emit(m.counts, m.log, row, Event.TLB_FLUSH, ONE)
    _issue(m, cpu, row, brackets & _LAZY)


@kernel
def _mmuext(extends, m, cpu, row):  # type: ignore[no-untyped-def]
    """One mmuext_op request in the buffer (xen_do_pin, __xen_write_cr3)."""
    if extends:
        extend(m, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)
    else:
        entry(m, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)


@kernel
def _load_cr3(backend, m, cpu, row, brackets):  # type: ignore[no-untyped-def]
    """MMUEXT_NEW_BASEPTR and, for a 64-bit guest, MMUEXT_NEW_USER_BASEPTR."""
    _mmuext(backend.extends_mmuext, m, cpu, row)
    callback(m, cpu, row)
    if backend.user_root:
        _mmuext(backend.extends_mmuext, m, cpu, row)
    emit(m.counts, m.log, row, Event.TLB_FLUSH, ONE)
    _issue(m, cpu, row, brackets & _SWITCH)


@kernel
def _move_off(mm, backend, m, row, cpu):  # type: ignore[no-untyped-def]
    """xen_drop_mm_ref: this CPU, then by interrupt all others, load swapper_pg_dir."""
    for turn in range(m.cpus.shape[0]):
        c = (cpu + turn) % m.cpus.shape[0]
        if m.cpus[c].loaded == mm:
            if c != cpu:
                emit(m.counts, m.log, row, Event.EVENT_CHANNEL_OP, ONE)
            m.counts[CPU] = c
            _load_cr3(backend, m, c, row, ZERO)
            m.cpus[c].loaded = 0
    m.counts[CPU] = cpu


@kernel
def _announce(m, row, cpu, comes, pins, backend, brackets):  # type: ignore[no-untyped-def]
    """Make a table page read-only (and pin it), or (unpin it and make it) writable again."""
    emit(m.counts, m.log, row, Event.TABLES_PINNED if comes else Event.TABLES_UNPINNED, 1)
    for turn in range(2):
        remap = (turn == 0) == comes  # read-only before it is pinned, unpinned before writable
        if backend.announces_in_bracket and remap:
            entry(m, cpu, row, UPDATE_VA_MAPPING, ZERO)
        elif backend.announces_in_bracket and pins:
            entry(m, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)
        elif remap:
            call(m, row, UPDATE_VA_MAPPING, ONE)
        elif pins:
            call(m, row, MMUEXT_OP, ONE)
    if backend.announces_in_bracket:
        _issue(m, cpu, row, brackets & _LAZY)


@kernel
def _page(m, row, cpu, pins, unpins, extends):  # type: ignore[no-untyped-def]
    """xen_pin_page and xen_unpin_page: remap a table page; a PTE table is pinned by itself."""
    if unpins:
        _mmuext(extends, m, cpu, row)
    entry(m, cpu, row, UPDATE_VA_MAPPING, ZERO)
    if pins:
        _mmuext(extends, m, cpu, row)
    if pins or unpins:
        callback(m, cpu, row)


@kernel
def _pin(walks, walk, present, backend, m, row, cpu):  # type: ignore[no-untyped-def]
    """__xen_pgd_pin: walk over all table pages, then pin the root (and the user's)."""
    extends, split = backend.extends_mmuext, backend.split_ptlock != 0
    start, stop = (walks.start[walk], walks.start[walk + 1]) if walk >= 0 else (0, 0)
    if backend.root_first:
        _page(m, row, cpu, NO, NO, extends)
    for i in range(start, stop):
        _page(m, row, cpu, split and walks.level[i] == 1, NO, extends)
    if not backend.root_first:
        _page(m, row, cpu, NO, NO, extends)
    _mmuext(extends, m, cpu, row)
    if backend.user_root:
        _page(m, row, cpu, NO, NO, extends)
        _mmuext(extends, m, cpu, row)
    emit(m.counts, m.log, row, Event.TABLES_PINNED, stop - start + 1 + backend.user_root)
    emit(m.counts, m.log, row, Event.ENTRIES_VALIDATED, max(0, present))
    emit(m.counts, m.log, row, Event.TLB_FLUSH, ONE)  # UVMF_TLB_FLUSH on the root
    flush(m, cpu, row)


@kernel
def _unpin(walks, walk, present, backend, m, row, cpu):  # type: ignore[no-untyped-def]
    """__xen_pgd_unpin: unpin the root (and the user's), then walk."""
    extends, split = backend.extends_mmuext, backend.split_ptlock != 0
    start, stop = (walks.start[walk], walks.start[walk + 1]) if walk >= 0 else (0, 0)
    _mmuext(extends, m, cpu, row)
    if backend.user_root:
        _mmuext(extends, m, cpu, row)
        _page(m, row, cpu, NO, NO, extends)
    if backend.root_first:
        _page(m, row, cpu, NO, NO, extends)
    for i in range(start, stop):
        _page(m, row, cpu, NO, split and walks.level[i] == 1, extends)
    if not backend.root_first:
        _page(m, row, cpu, NO, NO, extends)
    emit(m.counts, m.log, row, Event.TABLES_UNPINNED, stop - start + 1 + backend.user_root)
    emit(m.counts, m.log, row, Event.ENTRIES_DROPPED, max(0, present))
    emit(m.counts, m.log, row, Event.TLB_FLUSH, ONE)
    flush(m, cpu, row)
