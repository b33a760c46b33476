"""The loop over a trace's rows in shadow mode."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, lean
from pvmmu.guest.vocabulary import Flag
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import faults, registers, writes
from pvmmu.modes.shadow.carriers import QUEUE, Carrier
from pvmmu.modes.shadow.links import note
from pvmmu.modes.shadow.rules import Rule
from pvmmu.modes.shadow.state import EVER_DYING, OBSOLETE, ROW, TAGGED, WRITABLE
from pvmmu.modes.tally import CPU

(
    _FAULT, _CR3_WRITE, _CR3_READ, _CR4_WRITE, _INVLPG, _VMCALL, _UPDATES, _IPI, _FLUSH, _QUEUED,
) = (
    np.int64(e)
    for e in (
        Event.PAGE_FAULT, Event.CR3_WRITE_EXIT, Event.CR3_READ_EXIT, Event.CR4_WRITE_EXIT,
        Event.INVLPG_EXIT, Event.VMCALL, Event.VMCALL_UPDATES, Event.IPI_EXIT, Event.TLB_FLUSH,
        Event.QUEUED,
    )
)  # fmt: skip
_COUNTED, _FILLS_ON_INVLPG = int(Rule.COUNTED), int(Rule.FILLS_ON_INVLPG)
_KERNEL_FAULT, _WRITE, _KERNEL = int(Flag.KERNEL_FAULT), 1, 4
_NO_FLUSH = np.int64(-(1 << 63))
# Elements of `columns`: carrier, CPU, table, index, address, entry or value, target, times, flags,
# and for a store to a top-level table under PTI its twin for user mode (else -1).
CARRIER, AT_CPU, TABLE, INDEX, VA, VALUE, TARGET, TIMES, FLAGS, TWIN = range(10)
#: CR4 is written twice for a flush of global entries (native_flush_tlb_global).
_CR4_WRITES = np.int64(2)


@lean
def run_shadow(s, columns, pti):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    s : State
    columns : tuple of int64[row]
        See `CARRIER` and its neighbours.
    pti : bool
        Kernel and user mode have top-level tables of their own.
    """
    for row in range(columns[CARRIER].shape[0]):
        how = columns[CARRIER][row]
        if how == Carrier.NOTHING:
            continue
        cpu, table = columns[AT_CPU][row], columns[TABLE][row]
        if how == Carrier.STORE and s.mapped[table] == WRITABLE and columns[TWIN][row] < 0:
            index = columns[INDEX][row]
            s.guest[table, index] = columns[VALUE][row]
            s.target[table, index] = columns[TARGET][row]
            continue
        s.n[ROW], s.counts[CPU] = row, cpu
        if how < Carrier.CALL_STORE:
            by_itself(s, columns, row, cpu, how, pti)
        else:
            _call(s, columns, row, cpu, how)
        if s.n[OBSOLETE]:
            registers.free_obsolete(s)


@lean
def by_itself(s, columns, row, cpu, how, pti):  # type: ignore[no-untyped-def]
    """What the guest does without a call."""
    if how == Carrier.ZERO:
        writes.zero(s, cpu, columns[TABLE][row])
    elif how < Carrier.ZERO:
        _store(s, columns, row, cpu)
    elif how == Carrier.FAULT and not pti:
        note(s, _FAULT, ONE)
        faults.other_fault(s, cpu)
    elif how == Carrier.TOUCH and not pti:
        faults.access(s, cpu, columns[VA][row], columns[VALUE][row] & _WRITE != 0)
    else:
        _event(s, columns, row, cpu, how, pti)


@lean
def _store(s, columns, row, cpu):  # type: ignore[no-untyped-def]
    """A store to an entry, and to its twin for user mode."""
    index, value, target = columns[INDEX][row], columns[VALUE][row], columns[TARGET][row]
    writes.store(s, cpu, columns[TABLE][row], index, value, target)
    if columns[TWIN][row] >= 0:
        writes.store(s, cpu, columns[TWIN][row], index, value, target)


@lean
def _event(s, columns, row, cpu, how, pti):  # type: ignore[no-untyped-def]
    """What the guest does by itself, but for stores."""
    va, times = columns[VA][row], columns[TIMES][row]
    if how == Carrier.TOUCH:
        value = columns[VALUE][row]
        if pti and value & _KERNEL == 0:
            _leave_kernel(s, cpu)
        faults.access(s, cpu, va, value & _WRITE != 0)
    elif how == Carrier.FAULT:
        note(s, _FAULT, ONE)
        faults.other_fault(s, cpu)
        if pti and columns[FLAGS][row] & _KERNEL_FAULT == 0:
            _enter_kernel(s, cpu)
    elif how == Carrier.LOAD_CR3:
        note(s, _CR3_WRITE, ONE)
        _load(s, columns, row, cpu)
    elif how == Carrier.FLUSH_ALL:
        s.cpus[cpu].stale = 1
        note(s, _CR3_READ, times)
        note(s, _CR3_WRITE, times)
        registers.flush_all(s, cpu)
    elif how == Carrier.FLUSH_GLOBAL:
        note(s, _CR4_WRITE, _CR4_WRITES * times)
        registers.flush_all(s, cpu)
    elif how == Carrier.FLUSH_ONE:
        s.cpus[cpu].stale = 1
        note(s, _INVLPG, times)
        faults.invalidate(s, cpu, va, s.rules[_FILLS_ON_INVLPG] != 0)
    elif how == Carrier.READ_CR3:
        note(s, _CR3_READ, ONE)
    elif how == Carrier.IPI:
        note(s, _IPI, times)
    elif how == Carrier.KERNEL_ENTRY and pti:
        _enter_kernel(s, cpu)
    elif how == Carrier.KERNEL_EXIT and pti:
        _leave_kernel(s, cpu)


@lean
def _load(s, columns, row, cpu):  # type: ignore[no-untyped-def]
    """Load the tables of an address space."""
    c = s.cpus[cpu]
    c.kernel_root, c.user_root = columns[TABLE][row], columns[TARGET][row]
    flush = columns[VALUE][row] & _NO_FLUSH == 0
    if flush:
        c.stale = 1
    registers.load(s, cpu, c.kernel_root, flush)


@lean
def _enter_kernel(s, cpu):  # type: ignore[no-untyped-def]
    """Switch to the kernel's tables (SWITCH_TO_KERNEL_CR3)."""
    c = s.cpus[cpu]
    if c.user:
        c.user = 0
        note(s, _CR3_WRITE, ONE)
        registers.load(s, cpu, c.kernel_root, s.n[TAGGED] == 0)


@lean
def _leave_kernel(s, cpu):  # type: ignore[no-untyped-def]
    """Switch to the program's tables (SWITCH_TO_USER_CR3).

    With PCID that flushes only if the kernel has flushed meanwhile (user_pcid_flush_mask).
    """
    c = s.cpus[cpu]
    if not c.user and c.user_root >= 0:
        c.user = 1
        note(s, _CR3_WRITE, ONE)
        flush = s.n[TAGGED] == 0 or c.stale != 0
        c.stale = 0
        registers.load(s, cpu, c.user_root, flush)


# ---------------------------------------------------------------------- hooked
@lean
def _call(s, columns, row, cpu, how):  # type: ignore[no-untyped-def]
    """What the guest asks the hypervisor to do."""
    c = s.cpus[cpu]
    table = columns[TABLE][row]
    if how == Carrier.BRACKET:
        c.lazy = 1
    elif how == Carrier.BRACKET_END:
        c.lazy = 0
        _send(s, cpu)
    elif how == Carrier.CALL_STORE:
        index, value = columns[INDEX][row], columns[VALUE][row]
        writes.ask(s, cpu, table, index, value, columns[TARGET][row])
        _queue(s, cpu)
    else:
        _send(s, cpu)
        note(s, _VMCALL, ONE)
        _now(s, columns, row, cpu, how)


@lean
def _now(s, columns, row, cpu, how):  # type: ignore[no-untyped-def]
    """What a call that cannot wait does."""
    table, times = columns[TABLE][row], columns[TIMES][row]
    if how == Carrier.CALL_UNSHADOW:
        if s.rules[_COUNTED]:
            writes.unhook_all(s, table)
        else:
            writes.unshadow(s, table)
    elif how == Carrier.CALL_DYING:
        _dying(s, cpu, table)
    elif how == Carrier.CALL_LOAD_CR3:
        _load(s, columns, row, cpu)
    elif how == Carrier.CALL_FLUSH_ALL:
        note(s, _FLUSH, times)
        registers.flush_all(s, cpu)
    elif how == Carrier.CALL_FLUSH_MULTI:
        note(s, _FLUSH, times)
        for other in range(s.roots.shape[0]):
            registers.flush_all(s, np.int64(other))
    elif how == Carrier.CALL_FLUSH_ONE:
        faults.invalidate(s, cpu, columns[VA][row], s.rules[_FILLS_ON_INVLPG] != 0)


@lean
def _queue(s, cpu):  # type: ignore[no-untyped-def]
    """An update is sent, or waits in a bracket."""
    c = s.cpus[cpu]
    note(s, _UPDATES, ONE)
    c.queued += 1
    if c.lazy:
        note(s, _QUEUED, ONE)
    if not c.lazy or c.queued >= QUEUE:
        _send(s, cpu)


@lean
def _send(s, cpu):  # type: ignore[no-untyped-def]
    c = s.cpus[cpu]
    if c.queued > 0:
        c.queued = 0
        note(s, _VMCALL, ONE)


@lean
def _dying(s, cpu, table):  # type: ignore[no-untyped-def]
    """A process is about to be torn down."""
    if table < 0:
        return
    if s.rules[_COUNTED]:
        if registers.unhook_user(s, cpu, table):
            s.dying[table] = 1
        s.n[EVER_DYING] = 1
        s.cpus[cpu].dying = 1
    else:
        registers.zap_user(s, table)
