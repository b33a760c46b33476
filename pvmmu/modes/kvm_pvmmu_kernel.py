"""The loop of KVM's pv mmu: the queue of records, and a simple shadow."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.tally import CPU, emit


class Carrier(IntEnum):
    """What carries an operation under KVM's pv mmu."""

    NOTHING = 0
    WRITE = 1  # to a PTE; traps if the table is shadowed and in sync
    UPPER_WRITE = 2
    RECORD = 3  # KVM_MMU_OP_WRITE_PTE
    UPPER_RECORD = 4
    RELEASE = 5  # KVM_MMU_OP_RELEASE_PT, a call of its own
    FLUSH_RECORD = 6  # KVM_MMU_OP_FLUSH_TLB
    EXIT = 7
    EXIT_FLUSH = 8
    BRACKET = 9
    BRACKET_END = 10
    FAULT = 11
    TOUCH = 12
    IPI = 13


ROW: Final = np.dtype(
    [("table", "i4"), ("page", "i4"), ("region", "i4"), ("cpu", "u1"), ("present", "?")]
)
#: Bytes of records: a write of an entry, a flush, a release.
WRITE_BYTES, FLUSH_BYTES, RELEASE_BYTES = np.int64(24), np.int64(8), np.int64(16)
#: Writes in a row after which a table is taken for none (kvm_mmu_pte_write).
FLOOD: Final = 3
_CPUS: Final = 256
#: Most records that a queue of the greatest size holds.
_LONGEST: Final = 4096


@kernel
def run_kvm(rows, carrier, times, sizes, out_of_sync, counts, log):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    rows : ROW[row]
        What the loop needs of the trace.
    carrier : uint8[row]
        A `Carrier` for each row.
    times : int64[row]
        How often each operation is made.
    sizes : int64[5]
        Numbers of tables, pages and regions; bytes of queue and buffer.
    out_of_sync : bool
        Tables of PTEs may go out of sync.
    counts : int64[N_EVENTS + 2]
        Receives the counts.
    log : int64[n, 4]
        Receives the log.
    """
    capacity, buffer = sizes[3], sizes[4]
    made = np.zeros(sizes[0], np.int64)  # clock at which a table was shadowed; 0: it is not
    unsynced = np.zeros(sizes[0], np.bool_)
    filled = np.zeros(sizes[1], np.int64)  # clock of the fill of a page
    mapped = np.zeros(sizes[1], np.bool_)
    table_of = np.full(sizes[2], -1, np.int64)
    queue = np.zeros((_CPUS, _LONGEST), np.int64)  # sizes of the records that wait
    waiting = np.zeros((_CPUS, 2), np.int64)  # records, bytes
    lazy = np.zeros(_CPUS, np.bool_)
    last = np.full((_CPUS, 2), -1, np.int64)  # table written last, and how often in a row
    fault = np.full(_CPUS, -1, np.int64)
    clock = np.ones(1, np.int64)
    for row in range(rows.shape[0]):
        how, r, n = carrier[row], rows[row], times[row]
        c, t = r.cpu, np.int64(r.table)
        counts[CPU] = c
        if how == Carrier.NOTHING:
            continue
        if how == Carrier.WRITE or how == Carrier.RECORD:
            if t >= 0:
                table_of[r.region] = t
            if how == Carrier.RECORD:
                for _ in range(n):
                    _wait(queue, waiting, lazy, capacity, buffer, counts, log, row, c, WRITE_BYTES)
                _apply(made, filled, last, clock, r, c, True)
            elif t < 0 or made[t] == 0 or unsynced[t]:
                emit(counts, log, row, Event.STORE, n)
            elif out_of_sync:
                emit(counts, log, row, Event.HIDDEN_FAULT, ONE)
                unsynced[t] = True
                last[c, 0] = -1
            else:
                emit(counts, log, row, Event.PTE_EMULATION, n)
                _apply(made, filled, last, clock, r, c, True)
            mapped[r.page] = r.present
            if t >= 0 and (unsynced[t] or not r.present):
                filled[r.page] = 0
            if fault[c] == r.page and r.present:
                fault[c] = -1
                _touch(made, filled, last, clock, counts, log, row, r, t, c)
        elif how == Carrier.UPPER_RECORD:
            _wait(queue, waiting, lazy, capacity, buffer, counts, log, row, c, WRITE_BYTES)
            _apply(made, filled, last, clock, r, c, False)
        elif how == Carrier.UPPER_WRITE:
            if t >= 0 and made[t] > 0:
                emit(counts, log, row, Event.PTE_EMULATION, n)
                _apply(made, filled, last, clock, r, c, False)
            else:
                emit(counts, log, row, Event.STORE, n)
        elif how == Carrier.RELEASE:
            emit(counts, log, row, Event.MMU_OP, ONE)
            emit(counts, log, row, Event.MMU_OP_RECORDS, ONE)
            if t >= 0:
                made[t], unsynced[t] = 0, False
        elif how == Carrier.FLUSH_RECORD:
            for _ in range(n):
                _wait(queue, waiting, lazy, capacity, buffer, counts, log, row, c, FLUSH_BYTES)
            emit(counts, log, row, Event.TLB_FLUSH, n)
            _sync(unsynced)
        elif how == Carrier.EXIT or how == Carrier.EXIT_FLUSH:
            emit(counts, log, row, Event.PRIVOP_EMULATION, n)
            if how == Carrier.EXIT_FLUSH:
                _sync(unsynced)
        elif how == Carrier.BRACKET:
            lazy[c] = True
        elif how == Carrier.BRACKET_END:
            lazy[c] = False
            _send(queue, waiting, buffer, counts, log, row, c)
        elif how == Carrier.FAULT:
            emit(counts, log, row, Event.PAGE_FAULT, ONE)
            fault[c], last[c, 0] = r.page, -1
        elif how == Carrier.TOUCH:
            if mapped[r.page]:
                _touch(made, filled, last, clock, counts, log, row, r, table_of[r.region], c)
        elif how == Carrier.IPI:
            emit(counts, log, row, Event.EVENT_CHANNEL_OP, n)


@kernel
def _wait(queue, waiting, lazy, capacity, buffer, counts, log, row, cpu, size):  # type: ignore[no-untyped-def]
    """kvm_deferred_mmu_op: a record waits in a bracket, else it is a call."""
    if lazy[cpu] and waiting[cpu, 1] + size > capacity:
        _send(queue, waiting, buffer, counts, log, row, cpu)
    queue[cpu, waiting[cpu, 0]] = size
    waiting[cpu, 0] += 1
    waiting[cpu, 1] += size
    if lazy[cpu]:
        emit(counts, log, row, Event.QUEUED, ONE)
    else:
        _send(queue, waiting, buffer, counts, log, row, cpu)


@kernel
def _send(queue, waiting, buffer, counts, log, row, cpu):  # type: ignore[no-untyped-def]
    """kvm_mmu_op: the host takes whole records out of its buffer, the guest calls for the rest."""
    done = 0
    while done < waiting[cpu, 0]:
        room = buffer
        while done < waiting[cpu, 0] and queue[cpu, done] <= room:
            room -= queue[cpu, done]
            done += 1
        emit(counts, log, row, Event.MMU_OP, ONE)
    if done > 0:
        emit(counts, log, row, Event.MMU_OP_RECORDS, waiting[cpu, 0])
    waiting[cpu, 0] = 0
    waiting[cpu, 1] = 0


@kernel
def _apply(made, filled, last, clock, r, cpu, leaf):  # type: ignore[no-untyped-def]
    """kvm_mmu_pte_write: the shadow follows, unless writes come so often that it is dropped."""
    t = np.int64(r.table)
    if t < 0 or made[t] == 0:
        return
    last[cpu, 1] = last[cpu, 1] + 1 if last[cpu, 0] == t else 1
    last[cpu, 0] = t
    if last[cpu, 1] >= FLOOD:
        made[t] = 0
    elif leaf:
        clock[0] += 1
        filled[r.page] = clock[0] if r.present else 0


@kernel
def _touch(made, filled, last, clock, counts, log, row, r, t, cpu):  # type: ignore[no-untyped-def]
    """An access: a hidden fault if the shadow has no entry for it."""
    if t < 0 or (made[t] > 0 and filled[r.page] > made[t]):
        return
    emit(counts, log, row, Event.HIDDEN_FAULT, ONE)
    last[cpu, 0] = -1
    if made[t] == 0:
        clock[0] += 1
        made[t] = clock[0]
    clock[0] += 1
    filled[r.page] = clock[0]


@kernel
def _sync(unsynced):  # type: ignore[no-untyped-def]
    """At a flush the tables out of sync are compared, and protected again."""
    for t in range(unsynced.shape[0]):
        unsynced[t] = False
