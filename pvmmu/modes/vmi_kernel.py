"""The loop of VMI mode: what waits in the ROM, and what enters the hypervisor."""

from __future__ import annotations

from enum import IntEnum, unique

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.counters import CPU, emit
from pvmmu.modes.events import Event


@unique
class Mechanism(IntEnum):
    """What carries an operation under VMI."""

    NOTHING = 0
    STORE = 1
    LOCKED = 2
    SET_PXE = 3  # the ROM stores the entry and updates the shadow; may wait
    PAGE_CALL = 4  # AllocatePage, ReleasePage: cannot wait
    FLUSH_CALL = 5
    CR3_CALL = 6  # may wait in the bracket of a context switch
    LAZY_BRACKET = 7
    LAZY_BRACKET_END = 8
    SWITCH_BRACKET = 9
    SWITCH_BRACKET_END = 10
    PRIVOP = 11
    FAULT = 12
    UPDATE_PXE = 13  # an entry was changed in place; may wait
    UPDATE_PXE_DEFERRED = 14  # waits for the flush that the kernel makes next
    CLONE_CALL = 15  # AllocatePage with the kernel's part cloned
    MAPPING = 16  # SetLinearMapping
    IPI_CALL = 17


@kernel
def run_vmi(op, cpu, times, mechanism, capacity, cloned, counts, log):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    op, cpu : uint8[row]
        Columns of the trace.
    times : int64[row]
        How often each operation is made.
    mechanism : uint8[row]
        A `Mechanism` for each row.
    capacity : int
        Updates that a queue takes.
    cloned : int
        Entries of the kernel in a page directory.
    counts : int64[N_EVENTS + 2]
        Receives the counts.
    log : int64[n, 4]
        Receives the log.
    """
    waiting = np.zeros(256, np.int64)  # updates and calls in the queue of each CPU
    lazy = np.zeros(256, np.bool_)
    switching = np.zeros(256, np.bool_)
    for row in range(op.shape[0]):
        how, c, n = mechanism[row], cpu[row], times[row]
        counts[CPU] = c
        if how == Mechanism.NOTHING:
            continue
        if how == Mechanism.STORE:
            emit(counts, log, row, Event.STORE, n)
        elif how == Mechanism.SET_PXE or how == Mechanism.UPDATE_PXE:
            emit(counts, log, row, Event.VMI_UPDATES, n)
            waiting[c] += n
            if lazy[c]:
                emit(counts, log, row, Event.QUEUED, n)
            if not lazy[c] or waiting[c] >= capacity:
                _enter(counts, log, row, waiting, c)
        elif how == Mechanism.UPDATE_PXE_DEFERRED:
            emit(counts, log, row, Event.VMI_UPDATES, n)
            emit(counts, log, row, Event.QUEUED, n)
            waiting[c] += n
        elif how == Mechanism.PAGE_CALL or how == Mechanism.CLONE_CALL or how == Mechanism.IPI_CALL:
            for _ in range(n):
                waiting[c] += 1
                _enter(counts, log, row, waiting, c)
            if how != Mechanism.IPI_CALL:
                emit(counts, log, row, Event.VMI_PAGES, n)
            if how == Mechanism.CLONE_CALL:
                emit(counts, log, row, Event.VMI_CLONED, n * cloned)
        elif how == Mechanism.FLUSH_CALL:
            for _ in range(n):
                waiting[c] += 1
                _enter(counts, log, row, waiting, c)
            one = op[row] == Op.FLUSH_ONE
            emit(counts, log, row, Event.TLB_FLUSH_ONE if one else Event.TLB_FLUSH, n)
        elif how == Mechanism.CR3_CALL:
            waiting[c] += 1
            emit(counts, log, row, Event.TLB_FLUSH, ONE)
            if not switching[c]:
                _enter(counts, log, row, waiting, c)
        elif how == Mechanism.MAPPING:
            emit(counts, log, row, Event.VMI_MAPPINGS, n)
        elif how == Mechanism.LAZY_BRACKET:
            lazy[c] = True
        elif how == Mechanism.LAZY_BRACKET_END:
            lazy[c] = False
            _enter(counts, log, row, waiting, c)
        elif how == Mechanism.SWITCH_BRACKET:
            switching[c] = True
        elif how == Mechanism.SWITCH_BRACKET_END:
            switching[c] = False
            _enter(counts, log, row, waiting, c)
        elif how == Mechanism.PRIVOP:
            emit(counts, log, row, Event.PRIVOP_EMULATION, n)
        elif how == Mechanism.FAULT:
            emit(counts, log, row, Event.PAGE_FAULT, ONE)


@kernel
def _enter(counts, log, row, waiting, cpu):  # type: ignore[no-untyped-def]
    """Enter the hypervisor with whatever waits."""
    if waiting[cpu] > 0:
        emit(counts, log, row, Event.VMI_CALL, ONE)
        waiting[cpu] = 0
