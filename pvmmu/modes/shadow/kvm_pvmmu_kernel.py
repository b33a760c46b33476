"""The loop of KVM's pv mmu: the queue of records over the engine of shadow mode."""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.modes.counters import CPU
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import registers, writes
from pvmmu.modes.shadow.engine import (
    AT_CPU,
    INDEX,
    KIND,
    TABLE,
    TARGET,
    TIMES,
    TWIN,
    VALUE,
    by_itself,
)
from pvmmu.modes.shadow.links import note
from pvmmu.modes.shadow.mechanisms import Mechanism as Alone
from pvmmu.modes.shadow.state import OBSOLETE, ROW, WRITABLE, view
from pvmmu.modes.shadow.substitutes import watch


@unique
class Mechanism(IntEnum):
    """What is told to KVM; the rest is carried as in shadow mode."""

    BRACKET = 30
    BRACKET_END = 31
    RECORD = 41  # KVM_MMU_OP_WRITE_PTE
    FLUSH_RECORD = 42  # KVM_MMU_OP_FLUSH_TLB
    RELEASE = 43  # KVM_MMU_OP_RELEASE_PT, a call of its own


#: Bytes of records: a write of an entry, a flush.
WRITE_BYTES: Final = np.int64(24)
FLUSH_BYTES: Final = np.int64(8)
_CALL, _RECORDS, _QUEUED, _FLUSH = (
    np.int64(e) for e in (Event.MMU_OP, Event.MMU_OP_RECORDS, Event.QUEUED, Event.TLB_FLUSH)
)
_ALONE: Final = int(Alone.CALL_STORE)


@kernel
def run_kvm(m, pti, seen, queue, waiting, limits):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    m, pti, seen
        As for `pvmmu.modes.shadow.engine.run_shadow`.
    queue : int64[cpu, n]
        Rows whose records wait.
    waiting : int64[cpu, 2]
        Records and bytes that wait.
    limits : int64[2]
        Bytes of the guest's queue and of the host's buffer.
    """
    s = view(m)
    for row in range(s.mechanism.shape[0]):
        how = s.mechanism[row]
        if seen.shape[0] and s.rows[row, KIND] >= 0:
            watch(s.m, s.rows[row, KIND], s.rows[row, TABLE], s.rows[row, TWIN], seen)
        if how == Alone.NOTHING:
            continue
        cpu, table = s.rows[row, AT_CPU], s.rows[row, TABLE]
        if how == Alone.STORE and s.mapped[table] == WRITABLE and s.rows[row, TWIN] < 0:
            writes.set_entry(s, table, s.rows[row, INDEX], s.rows[row, VALUE], s.rows[row, TARGET])
            continue
        s.n[ROW], s.counts[CPU] = row, cpu
        if how < _ALONE:
            by_itself(s.m, row, cpu, how, pti)
        elif how == Mechanism.BRACKET:
            s.cpus[cpu].lazy = 1
        elif how == Mechanism.BRACKET_END:
            s.cpus[cpu].lazy = 0
            _send(s.m, queue, waiting, limits, cpu)
        elif how == Mechanism.RELEASE:
            note(s, _CALL, ONE)
            note(s, _RECORDS, ONE)
            writes.unshadow(s.m, table)
        else:
            for _ in range(s.rows[row, TIMES]):
                _defer(s.m, queue, waiting, limits, cpu, row)
        if s.n[OBSOLETE]:
            registers.free_obsolete(s.m)


@kernel
def _defer(m, queue, waiting, limits, cpu, row):  # type: ignore[no-untyped-def]
    """kvm_deferred_mmu_op: a record waits in a bracket, else it is a call."""
    s = view(m)
    lazy = s.cpus[cpu].lazy != 0
    size = _size(s.mechanism[row])
    if lazy and waiting[cpu, 1] + size > limits[0]:
        _send(s.m, queue, waiting, limits, cpu)
    queue[cpu, waiting[cpu, 0]] = row
    waiting[cpu, 0] += 1
    waiting[cpu, 1] += size
    if lazy:
        note(s, _QUEUED, ONE)
    else:
        _send(s.m, queue, waiting, limits, cpu)


@kernel
def _size(how):  # type: ignore[no-untyped-def]
    return WRITE_BYTES if how == Mechanism.RECORD else FLUSH_BYTES


@kernel
def _send(m, queue, waiting, limits, cpu):  # type: ignore[no-untyped-def]
    """kvm_mmu_op: the host takes whole records out of its buffer, the guest calls for the rest."""
    s = view(m)
    records, done, room = waiting[cpu, 0], np.int64(0), np.int64(0)
    waiting[cpu, 0] = 0
    waiting[cpu, 1] = 0
    if records > 0:
        note(s, _RECORDS, records)
    while done < records:
        row = queue[cpu, done]
        if _size(s.mechanism[row]) > room:
            note(s, _CALL, ONE)
            room = limits[1]
        room -= _size(s.mechanism[row])
        _apply(s.m, row, cpu)
        done += 1


@kernel
def _apply(m, row, cpu):  # type: ignore[no-untyped-def]
    """kvm_pv_mmu_op_one: only now is the guest's entry written."""
    s = view(m)
    if s.mechanism[row] == Mechanism.RECORD:
        writes.ask(
            s.m, cpu, s.rows[row, TABLE], s.rows[row, INDEX], s.rows[row, VALUE],
            s.rows[row, TARGET],
        )  # fmt: skip
    else:
        note(s, _FLUSH, ONE)
        registers.flush_all(s.m, cpu)
