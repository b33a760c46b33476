"""The loop over a trace's rows in shadow mode."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.guest.vocabulary import Flag
from pvmmu.modes.counters import CPU
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import faults, registers, writes
from pvmmu.modes.shadow.links import note
from pvmmu.modes.shadow.mechanisms import QUEUE, Mechanism
from pvmmu.modes.shadow.rules import Rule
from pvmmu.modes.shadow.state import EVER_DYING, OBSOLETE, ROW, TAGGED, WRITABLE, view
from pvmmu.modes.shadow.substitutes import watch

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
# Elements of a row: CPU, table, index, address, entry or value, target, times, flags,
# for a store to a top-level table under PTI its twin for user mode (else -1), and the operation if
# it is one to watch (else -1).
AT_CPU, TABLE, INDEX, VA, VALUE, TARGET, TIMES, FLAGS, TWIN, KIND = range(10)
#: CR4 is written twice for a flush of global entries (native_flush_tlb_global).
_CR4_WRITES = np.int64(2)


@kernel
def run_shadow(m, pti, seen):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    m : int
        `State.address`; the caller keeps the state.
    pti : bool
        Kernel and user mode have top-level tables of their own.
    seen : int64[n, 2]
        See `watch`; of no rows: nothing is watched.
    """
    s = view(m)
    for row in range(s.mechanism.shape[0]):
        how = s.mechanism[row]
        if seen.shape[0] and s.rows[row, KIND] >= 0:
            watch(s.m, s.rows[row, KIND], s.rows[row, TABLE], s.rows[row, TWIN], seen)
        if how == Mechanism.NOTHING:
            continue
        cpu, table = s.rows[row, AT_CPU], s.rows[row, TABLE]
        if how == Mechanism.STORE and s.mapped[table] == WRITABLE and s.rows[row, TWIN] < 0:
            writes.set_entry(s, table, s.rows[row, INDEX], s.rows[row, VALUE], s.rows[row, TARGET])
            continue
        s.n[ROW], s.counts[CPU] = row, cpu
        if how < Mechanism.CALL_STORE:
            by_itself(s.m, row, cpu, how, pti)
        else:
            _call(s.m, row, cpu, how)
        if s.n[OBSOLETE]:
            registers.free_obsolete(s.m)


@kernel
def by_itself(m, row, cpu, how, pti):  # type: ignore[no-untyped-def]
    """What the guest does without a call."""
    s = view(m)
    if how == Mechanism.ZERO:
        writes.zero(s.m, cpu, s.rows[row, TABLE])
    elif how < Mechanism.ZERO:
        _store(s.m, row, cpu)
    elif how == Mechanism.FAULT and not pti:
        note(s, _FAULT, ONE)
        faults.other_fault(s, cpu)
    elif how == Mechanism.TOUCH and not pti:
        faults.access(s.m, cpu, s.rows[row, VA], s.rows[row, VALUE] & _WRITE != 0)
    else:
        _event(s.m, row, cpu, how, pti)


@kernel
def _store(m, row, cpu):  # type: ignore[no-untyped-def]
    """A store to an entry, and to its twin for user mode."""
    s = view(m)
    index, value, target = s.rows[row, INDEX], s.rows[row, VALUE], s.rows[row, TARGET]
    writes.store(s.m, cpu, s.rows[row, TABLE], index, value, target)
    if s.rows[row, TWIN] >= 0:
        writes.store(s.m, cpu, s.rows[row, TWIN], index, value, target)


@kernel
def _event(m, row, cpu, how, pti):  # type: ignore[no-untyped-def]
    """What the guest does by itself, but for stores."""
    s = view(m)
    va, times = s.rows[row, VA], s.rows[row, TIMES]
    if how == Mechanism.TOUCH:
        value = s.rows[row, VALUE]
        if pti and value & _KERNEL == 0:
            _leave_kernel(s.m, cpu)
        faults.access(s.m, cpu, va, value & _WRITE != 0)
    elif how == Mechanism.FAULT:
        note(s, _FAULT, ONE)
        faults.other_fault(s, cpu)
        if pti and s.rows[row, FLAGS] & _KERNEL_FAULT == 0:
            _enter_kernel(s.m, cpu)
    elif how == Mechanism.LOAD_CR3:
        note(s, _CR3_WRITE, ONE)
        _load(s.m, row, cpu)
    elif how == Mechanism.FLUSH_ALL:
        s.cpus[cpu].stale = 1
        note(s, _CR3_READ, times)
        note(s, _CR3_WRITE, times)
        registers.flush_all(s.m, cpu)
    elif how == Mechanism.FLUSH_GLOBAL:
        note(s, _CR4_WRITE, _CR4_WRITES * times)
        registers.flush_all(s.m, cpu)
    elif how == Mechanism.FLUSH_ONE:
        s.cpus[cpu].stale = 1
        note(s, _INVLPG, times)
        faults.invalidate(s.m, cpu, va, s.rules[_FILLS_ON_INVLPG] != 0)
    elif how == Mechanism.READ_CR3:
        note(s, _CR3_READ, ONE)
    elif how == Mechanism.IPI:
        note(s, _IPI, times)
    elif how == Mechanism.KERNEL_ENTRY and pti:
        _enter_kernel(s.m, cpu)
    elif how == Mechanism.KERNEL_EXIT and pti:
        _leave_kernel(s.m, cpu)


@kernel
def _load(m, row, cpu):  # type: ignore[no-untyped-def]
    """Load the tables of an address space."""
    s = view(m)
    c = s.cpus[cpu]
    c.kernel_root, c.user_root = s.rows[row, TABLE], s.rows[row, TARGET]
    flush = s.rows[row, VALUE] & _NO_FLUSH == 0
    if flush:
        c.stale = 1
    registers.load(s.m, cpu, c.kernel_root, flush)


@kernel
def _enter_kernel(m, cpu):  # type: ignore[no-untyped-def]
    """Switch to the kernel's tables (SWITCH_TO_KERNEL_CR3)."""
    s = view(m)
    c = s.cpus[cpu]
    if c.user:
        c.user = 0
        note(s, _CR3_WRITE, ONE)
        registers.load(s.m, cpu, c.kernel_root, s.n[TAGGED] == 0)


@kernel
def _leave_kernel(m, cpu):  # type: ignore[no-untyped-def]
    """Switch to the program's tables (SWITCH_TO_USER_CR3).

    With PCID that flushes only if the kernel has flushed meanwhile (user_pcid_flush_mask).
    """
    s = view(m)
    c = s.cpus[cpu]
    if not c.user and c.user_root >= 0:
        c.user = 1
        note(s, _CR3_WRITE, ONE)
        flush = s.n[TAGGED] == 0 or c.stale != 0
        c.stale = 0
        registers.load(s.m, cpu, c.user_root, flush)


# ---------------------------------------------------------------------- hooked
@kernel
def _call(m, row, cpu, how):  # type: ignore[no-untyped-def]
    """What the guest asks the hypervisor to do."""
    s = view(m)
    c = s.cpus[cpu]
    table = s.rows[row, TABLE]
    if how == Mechanism.BRACKET:
        c.lazy = 1
    elif how == Mechanism.BRACKET_END:
        c.lazy = 0
        _send(s.m, cpu)
    elif how == Mechanism.CALL_STORE:
        index, value = s.rows[row, INDEX], s.rows[row, VALUE]
        writes.ask(s.m, cpu, table, index, value, s.rows[row, TARGET])
        _queue(s.m, cpu)
    else:
        _send(s.m, cpu)
        note(s, _VMCALL, ONE)
        _now(s.m, row, cpu, how)


@kernel
def _now(m, row, cpu, how):  # type: ignore[no-untyped-def]
    """What a call that cannot wait does."""
    s = view(m)
    table, times = s.rows[row, TABLE], s.rows[row, TIMES]
    if how == Mechanism.CALL_UNSHADOW:
        if s.rules[_COUNTED]:
            writes.unhook_all(s.m, table)
        else:
            writes.unshadow(s.m, table)
    elif how == Mechanism.CALL_DYING:
        _dying(s.m, cpu, table)
    elif how == Mechanism.CALL_LOAD_CR3:
        _load(s.m, row, cpu)
    elif how == Mechanism.CALL_FLUSH_ALL:
        note(s, _FLUSH, times)
        registers.flush_all(s.m, cpu)
    elif how == Mechanism.CALL_FLUSH_MULTI:
        note(s, _FLUSH, times)
        for other in range(s.roots.shape[0]):
            registers.flush_all(s.m, np.int64(other))
    elif how == Mechanism.CALL_FLUSH_ONE:
        faults.invalidate(s.m, cpu, s.rows[row, VA], s.rules[_FILLS_ON_INVLPG] != 0)


@kernel
def _queue(m, cpu):  # type: ignore[no-untyped-def]
    """An update is sent, or waits in a bracket."""
    s = view(m)
    c = s.cpus[cpu]
    note(s, _UPDATES, ONE)
    c.queued += 1
    if c.lazy:
        note(s, _QUEUED, ONE)
    if not c.lazy or c.queued >= QUEUE:
        _send(s.m, cpu)


@kernel
def _send(m, cpu):  # type: ignore[no-untyped-def]
    s = view(m)
    c = s.cpus[cpu]
    if c.queued > 0:
        c.queued = 0
        note(s, _VMCALL, ONE)


@kernel
def _dying(m, cpu, table):  # type: ignore[no-untyped-def]
    """A process is about to be torn down."""
    s = view(m)
    if table < 0:
        return
    if s.rules[_COUNTED]:
        if registers.unhook_user(s.m, cpu, table):
            s.dying[table] = 1
        s.n[EVER_DYING] = 1
        s.cpus[cpu].dying = 1
    else:
        registers.zap_user(s.m, table)
