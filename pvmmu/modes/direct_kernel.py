"""The loop of direct mode: one pass over a trace, each row carried by its mechanism."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from pvmmu._jit import kernel
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
    emit,
    entry,
    extend,
    flush,
    waiting,
)
from pvmmu.modes.ptwr import close_writable, fault_in_hole, write_to_table


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


class Rows(NamedTuple):
    """Columns of a trace that the loop reads, bounds-checked by the caller."""

    op: np.ndarray  # uint8[row]
    cpu: np.ndarray  # uint8[row]
    mm: np.ndarray  # int32[row]
    table: np.ndarray  # int64[row]
    slot: np.ndarray  # int16[row]: entry of the table
    va: np.ndarray  # uint64[row]
    times: np.ndarray  # int64[row]
    again: np.ndarray  # bool[row]
    level: np.ndarray  # uint8[row]
    run_end: np.ndarray  # bool[row]: last row of a run that one range call covers
    walk_of: np.ndarray  # int32[row]
    walk_start: np.ndarray  # int64[walk + 1]
    walk_level: np.ndarray  # uint8[...]
    present: np.ndarray  # int64[row]


_OPEN_LAZY, _OPEN_SWITCH = 1, 2


@kernel
def run_direct(rows, carrier, backend, b, ptwr, range_call, loaded):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    rows : Rows
        The trace.
    carrier : uint8[row]
        A `Carrier` for each row; none is `Carrier.MISSING`.
    backend : Backend
        The kernel's backend.
    b : Buffer
        Empty multicall buffers; receives counts and log.
    ptwr : Ptwr
        State of the batched writable page tables; inactive if its slots are none.
    range_call : bool[row]
        The row is part of a range call: its request waits for the end of the run.
    loaded : int32[cpu]
        Address space in CR3 of each CPU; -1 unknown. Changed.
    """
    open_brackets = np.zeros(loaded.shape[0], np.int64)
    for row in range(rows.op.shape[0]):
        how = carrier[row]
        if how == 0:
            if rows.op[row] == Op.LOAD_CR3:
                loaded[rows.cpu[row]] = rows.mm[row]
            continue
        cpu = int(rows.cpu[row])
        brackets = open_brackets[cpu]
        if how == Carrier.STORE:
            emit(b, row, Event.STORE, rows.times[row])
        elif how == Carrier.LOCKED:
            emit(b, row, Event.LOCKED, rows.times[row])
        elif (
            how == Carrier.MMU_UPDATE or how == Carrier.MMU_UPDATE_TWICE or how == Carrier.UPDATE_VA
        ):
            close_writable(ptwr, b, row)
            _update(rows, how, b, row, cpu, brackets, range_call[row])
        elif how == Carrier.TRAP:
            if waiting(b, cpu) > 0:
                emit(b, row, Event.OVERTAKEN, 1)
            in_use = rows.mm[row] == loaded[cpu]
            if not write_to_table(
                ptwr, b, row, rows.table[row], rows.slot[row], in_use, rows.va[row], rows.mm[row]
            ):
                emit(b, row, Event.PTE_EMULATION, backend.emulated_per_store * rows.times[row])
        elif how == Carrier.LAZY_BRACKET:
            open_brackets[cpu] = brackets | _OPEN_LAZY
        elif how == Carrier.LAZY_BRACKET_END:
            open_brackets[cpu] = brackets & ~_OPEN_LAZY
            if waiting(b, cpu) > 0:
                close_writable(ptwr, b, row)
                flush(b, cpu, row)
        elif how == Carrier.FAULT:
            fault_in_hole(ptwr, b, row, rows.va[row], rows.mm[row])
            emit(b, row, Event.PAGE_FAULT, 1)
        elif how == Carrier.FLUSH_CALL or how == Carrier.FLUSH_CALL_MULTI:
            close_writable(ptwr, b, row)
            nbytes = MMUEXT_OP_BYTES + (8 if how == Carrier.FLUSH_CALL_MULTI else 0)
            # a FLUSH_ONE that stands for several CPUs is made by each of them
            for _ in range(rows.times[row] if how == Carrier.FLUSH_CALL else 1):
                entry(b, cpu, row, MMUEXT_OP, nbytes)
                emit(
                    b,
                    row,
                    Event.TLB_FLUSH_ONE if rows.op[row] == Op.FLUSH_ONE else Event.TLB_FLUSH,
                    1,
                )
                _issue(b, cpu, row, brackets & _OPEN_LAZY)
        elif how == Carrier.CR3_CALL:
            close_writable(ptwr, b, row)
            _load_cr3(backend, b, cpu, row)
            _issue(b, cpu, row, brackets & _OPEN_SWITCH)
            loaded[cpu] = rows.mm[row]
        elif how == Carrier.ANNOUNCE or how == Carrier.DISMISS:
            close_writable(ptwr, b, row)
            _announce(rows, how, backend, b, row, cpu, brackets)
        elif how == Carrier.PIN or how == Carrier.PIN_ROOT:
            close_writable(ptwr, b, row)
            _pin(rows, backend, b, row, cpu)
            if rows.op[row] == Op.LOAD_CR3:
                _load_cr3(backend, b, cpu, row)
                _issue(b, cpu, row, brackets & _OPEN_SWITCH)
                loaded[cpu] = rows.mm[row]
        elif how == Carrier.UNPIN or how == Carrier.UNPIN_ROOT:
            close_writable(ptwr, b, row)
            if loaded[cpu] == rows.mm[row]:
                _load_cr3(backend, b, cpu, row)
                flush(b, cpu, row)
                loaded[cpu] = 0
            _unpin(rows, backend, b, row, cpu)
        elif how == Carrier.SWITCH_BRACKET:
            open_brackets[cpu] = brackets | _OPEN_SWITCH
        elif how == Carrier.SWITCH_BRACKET_END:
            open_brackets[cpu] = brackets & ~_OPEN_SWITCH
            flush(b, cpu, row)
        elif how == Carrier.PRIVOP:
            close_writable(ptwr, b, row)
            emit(b, row, Event.PRIVOP_EMULATION, rows.times[row])
            if rows.op[row] == Op.LOAD_CR3:
                loaded[cpu] = rows.mm[row]
        elif how == Carrier.EVENT_CHANNEL:
            emit(b, row, Event.EVENT_CHANNEL_OP, rows.times[row])


@kernel
def _issue(b, cpu, row, bracket):  # type: ignore[no-untyped-def]
    """Send at once unless a bracket of the right kind is open (xen_mc_issue)."""
    if bracket == 0:
        flush(b, cpu, row)
    else:
        emit(b, row, Event.QUEUED, 1)


@kernel
def _update(rows, how, b, row, cpu, brackets, in_range):  # type: ignore[no-untyped-def]
    """A request for one entry: queued in a bracket or a range call, else a call of its own."""
    lazy = brackets & _OPEN_LAZY
    if how == Carrier.UPDATE_VA:
        if lazy:
            entry(b, cpu, row, UPDATE_VA_MAPPING, 0)
            emit(b, row, Event.QUEUED, 1)
        else:
            call(b, row, UPDATE_VA_MAPPING, 1)
        return
    direct = how == Carrier.MMU_UPDATE and rows.level[row] == 1 and not in_range
    if direct and not lazy:
        call(b, row, MMU_UPDATE, 1)
        return
    extend(b, cpu, row, MMU_UPDATE, MMU_UPDATE_BYTES)
    if how == Carrier.MMU_UPDATE_TWICE:
        extend(b, cpu, row, MMU_UPDATE, MMU_UPDATE_BYTES)
    if in_range and not rows.run_end[row]:
        emit(b, row, Event.QUEUED, 1)
    else:
        _issue(b, cpu, row, lazy)


@kernel
def _mmuext(backend, b, cpu, row):  # type: ignore[no-untyped-def]
    """One mmuext_op request in the buffer (xen_do_pin, __xen_write_cr3)."""
    if backend.extends_mmuext:
        extend(b, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)
    else:
        entry(b, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)


@kernel
def _load_cr3(backend, b, cpu, row):  # type: ignore[no-untyped-def]
    """MMUEXT_NEW_BASEPTR and, for a 64-bit guest, MMUEXT_NEW_USER_BASEPTR."""
    _mmuext(backend, b, cpu, row)
    callback(b, cpu, row)
    if backend.user_root:
        _mmuext(backend, b, cpu, row)
    emit(b, row, Event.TLB_FLUSH, 1)


@kernel
def _announce(rows, how, backend, b, row, cpu, brackets):  # type: ignore[no-untyped-def]
    """Make a table page read-only (and pin it), or writable again (and unpin it before)."""
    pins = rows.level[row] == 1 and backend.split_ptlock
    if how == Carrier.ANNOUNCE:
        emit(b, row, Event.TABLES_PINNED, 1)
        pins = pins and not rows.again[row]
    else:
        emit(b, row, Event.TABLES_UNPINNED, 1)
    if not backend.announces_in_bracket:
        call(b, row, UPDATE_VA_MAPPING, 1)
        if pins:
            call(b, row, MMUEXT_OP, 1)
        return
    if how == Carrier.ANNOUNCE:
        entry(b, cpu, row, UPDATE_VA_MAPPING, 0)
        if pins:
            entry(b, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)
    else:
        if pins:
            entry(b, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)
        entry(b, cpu, row, UPDATE_VA_MAPPING, 0)
    _issue(b, cpu, row, brackets & _OPEN_LAZY)


@kernel
def _pin_page(backend, b, cpu, row, level):  # type: ignore[no-untyped-def]
    """xen_pin_page: read-only, and under split locks a PTE table is pinned by itself."""
    emit(b, row, Event.TABLES_PINNED, 1)
    entry(b, cpu, row, UPDATE_VA_MAPPING, 0)
    if level == 1 and backend.split_ptlock:
        _mmuext(backend, b, cpu, row)
        callback(b, cpu, row)


@kernel
def _unpin_page(backend, b, cpu, row, level):  # type: ignore[no-untyped-def]
    """xen_unpin_page: the converse."""
    emit(b, row, Event.TABLES_UNPINNED, 1)
    if level == 1 and backend.split_ptlock:
        _mmuext(backend, b, cpu, row)
    entry(b, cpu, row, UPDATE_VA_MAPPING, 0)
    if level == 1 and backend.split_ptlock:
        callback(b, cpu, row)


@kernel
def _pin(rows, backend, b, row, cpu):  # type: ignore[no-untyped-def]
    """__xen_pgd_pin: walk, then pin the root (and the user's)."""
    walk = rows.walk_of[row]
    start, stop = (rows.walk_start[walk], rows.walk_start[walk + 1]) if walk >= 0 else (0, 0)
    if backend.root_first:
        _pin_page(backend, b, cpu, row, 4)
    for i in range(start, stop):
        _pin_page(backend, b, cpu, row, rows.walk_level[i])
    if not backend.root_first:
        _pin_page(backend, b, cpu, row, 4)
    _mmuext(backend, b, cpu, row)
    if backend.user_root:
        _pin_page(backend, b, cpu, row, 4)
        _mmuext(backend, b, cpu, row)
    emit(b, row, Event.ENTRIES_VALIDATED, max(0, rows.present[row]))
    flush(b, cpu, row)


@kernel
def _unpin(rows, backend, b, row, cpu):  # type: ignore[no-untyped-def]
    """__xen_pgd_unpin: unpin the root (and the user's), then walk."""
    walk = rows.walk_of[row]
    start, stop = (rows.walk_start[walk], rows.walk_start[walk + 1]) if walk >= 0 else (0, 0)
    _mmuext(backend, b, cpu, row)
    if backend.user_root:
        _mmuext(backend, b, cpu, row)
        _unpin_page(backend, b, cpu, row, 4)
    if backend.root_first:
        _unpin_page(backend, b, cpu, row, 4)
    for i in range(start, stop):
        _unpin_page(backend, b, cpu, row, rows.walk_level[i])
    if not backend.root_first:
        _unpin_page(backend, b, cpu, row, 4)
    emit(b, row, Event.ENTRIES_DROPPED, max(0, rows.present[row]))
    flush(b, cpu, row)
