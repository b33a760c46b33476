"""VMI (VMware, 2006): the hypervisor shadows the guest's tables and asks to be told of changes.

The guest's own tables are ordinary memory; the processor walks shadows of them, which the ROM keeps
up to date through calls: ``SetPxE`` (store an entry), ``UpdatePxE`` (one was changed in place),
``AllocatePage`` and ``ReleasePage`` (a page becomes a table, and no longer is one), ``SetCR3``,
``FlushTLB``, ``InvalPage``. Tables are not write-protected (Amsden, lkml 2008-05-23), so a change
that no hook tells of leaves a stale shadow: such designs do not work. The clears of a dying address
space are not told: its shadows go with ``ReleasePage``.

In a lazy MMU bracket the ROM queues updates and enters the hypervisor once, at the end, when the
queue is full, or with a call that cannot wait. Its capacity was never published: ``queue`` is an
assumption, by default so large that no bracket over one PTE table fills it.

VMI was 32-bit. On a trace of four levels the upper two are treated as the PMD was.

Source: Linux v2.6.22 arch/i386/kernel/vmi.c, include/asm-i386/vmi.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.errors import ModeError
from pvmmu.guest.ops import Trace
from pvmmu.guest.vocabulary import N_OPS, RMW_OPS, Flag, Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.base import Infeasible, Outcome, counts_of_rows, covered_hooks, outcome
from pvmmu.modes.classes import Partition, Space, partition
from pvmmu.modes.events import Event
from pvmmu.modes.tally import CPU, emit, new_counts, new_log

#: Values of ``queue`` worth trying: the smallest is Xen's, the largest a page of 8-byte records.
QUEUE_RANGE: Final = (32, 512)


class Carrier(IntEnum):
    """What carries an operation under VMI."""

    NOTHING = 0
    STORE = 1
    LOCKED = 2
    UPDATE = 3  # SetPxE, or UpdatePxE after a change in place; may wait
    CALL = 4  # a call that cannot wait
    FLUSH_CALL = 5
    CR3_CALL = 6  # may wait in the bracket of a context switch
    LAZY_BRACKET = 7
    LAZY_BRACKET_END = 8
    SWITCH_BRACKET = 9
    SWITCH_BRACKET_END = 10
    PRIVOP = 11
    FAULT = 12
    MISSING = 30


_NAMES: Final = {int(c): c.name.lower().replace("_", " ") for c in Carrier}
_STORES: Final = {
    Op.SET_PTE: ("set_pte", "set_pte_at", "set_ptes"),
    Op.SET_PMD: ("set_pmd",),
    Op.SET_PUD: ("set_pud",),
    Op.SET_P4D: ("set_p4d", "set_pud"),
    Op.SET_PGD: ("set_p4d", "set_pud"),
}
_CHANGES: Final = {
    Op.PTE_GET_AND_CLEAR: ("pte_update", "ptep_get_and_clear", "get_and_clear_ptes"),
    Op.PTE_WRPROTECT: ("pte_update", "ptep_set_wrprotect", "wrprotect_ptes"),
    Op.PTE_CLEAR_YOUNG: ("pte_update", "ptep_test_and_clear_young"),
    Op.PTE_CLEAR: ("pte_update", "pte_clear"),
    Op.PTE_RMW: ("pte_update",),
}
_TABLES: Final = {
    Op.ALLOC_PTE: ("alloc_pte",),
    Op.ALLOC_PMD: ("alloc_pmd",),
    Op.ALLOC_PUD: ("alloc_pud",),
    Op.ALLOC_P4D: ("alloc_pud",),
    Op.RELEASE_PTE: ("release_pte",),
    Op.RELEASE_PMD: ("release_pmd",),
    Op.RELEASE_PUD: ("release_pud",),
    Op.RELEASE_P4D: ("release_pud",),
    Op.PGD_ALLOC: ("alloc_pud", "pgd_alloc"),
    Op.PGD_FREE: ("release_pud", "pgd_alloc"),
}
_REGISTERS: Final = {
    Op.READ_CR2: ("read_cr2", Carrier.NOTHING),
    Op.READ_CR3: ("read_cr3", Carrier.NOTHING),
    Op.LOAD_CR3: ("write_cr3", Carrier.CR3_CALL),
    Op.FLUSH_USER: ("flush_tlb_user", Carrier.FLUSH_CALL),
    Op.FLUSH_KERNEL: ("flush_tlb_kernel", Carrier.FLUSH_CALL),
    Op.FLUSH_ONE: ("flush_tlb_one_user", Carrier.FLUSH_CALL),
}
#: The hooks that VMI mode reads, in groups that act independently of each other.
SWITCHES: Final = (
    # the default of a protection change is a clear and a store, each hooked or not
    ("set_pte", "set_pte_at", "set_ptes", "pte_update", "ptep_get_and_clear", "get_and_clear_ptes",
     "ptep_set_wrprotect", "wrprotect_ptes", "ptep_test_and_clear_young", "pte_clear",
     "ptep_modify_prot"),
    ("set_pmd",), ("set_pud", "set_p4d"), ("alloc_pte",), ("alloc_pmd",), ("release_pte",),
    ("release_pmd",), ("alloc_pud", "release_pud", "pgd_alloc"), ("write_cr3",), ("read_cr2",),
    ("read_cr3",), ("flush_tlb_user",), ("flush_tlb_kernel",), ("flush_tlb_one_user",),
    ("lazy_mmu",), ("context_switch",),
)  # fmt: skip
HOOKS: Final = tuple(name for switch in SWITCHES for name in switch)


@dataclass(frozen=True)
class Vmi:
    """Shadow paging with notifications.

    Parameters
    ----------
    queue : int
        Updates that the ROM queues in a bracket before it enters the hypervisor (an assumption).

    Raises
    ------
    ModeError
        The queue holds nothing.
    """

    queue: int = QUEUE_RANGE[1]
    name: ClassVar[str] = "vmi"

    def __post_init__(self) -> None:
        if not isinstance(self.queue, int) or self.queue < 1:
            raise ModeError(f"vmi mode: queue must be a whole number from 1, not {self.queue!r}")

    @property
    def spec(self) -> str:
        """``vmi``, and the queue's capacity if it is not the default."""
        return "vmi" if self.queue == QUEUE_RANGE[1] else f"vmi:queue={self.queue}"

    def levers(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        return covered_hooks(trace, HOOKS)

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition hook sets into classes that this mode carries alike on a trace."""
        present = {Op(o) for o in np.unique(trace["op"][~_is_dying(trace)])}

        def signature(_: HookSet, switch: Sequence[str], subset: HookSet) -> object:
            table = _table(subset)
            covered = {op for name in switch for op in catalogue()[name].operations}
            carried = {op: int(table[op]) for op in sorted(covered & present)}
            missing = [op for op, c in carried.items() if c == Carrier.MISSING]
            return Infeasible(_why(missing[0])) if missing else tuple(carried.values())

        return partition(space, (), SWITCHES, signature)

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        carrier = _carriers(trace, hooks)
        broken = np.flatnonzero(carrier == Carrier.MISSING)
        if len(broken):
            row = int(broken[0])
            return Infeasible(_why(Op(trace["op"][row])), row)
        runs = []
        for times in counts_of_rows(trace):
            runs.append((new_counts(), new_log(4 * len(trace) + 64 if log else 0)))
            run_vmi(trace["op"], trace["cpu"], times, carrier, self.queue, *runs[-1])
        return outcome(runs, carrier, _NAMES)


def _table(hooks: HookSet) -> np.ndarray:
    """Return the carrier of each operation."""
    table = np.zeros(N_OPS, np.uint8)
    have = set(hooks)
    for op, names in {**_STORES, **_CHANGES}.items():
        table[op] = Carrier.UPDATE if have & set(names) else Carrier.MISSING
    for op, names in _TABLES.items():
        table[op] = Carrier.CALL if have & set(names) else Carrier.MISSING
    for op, (name, hooked) in _REGISTERS.items():
        table[op] = hooked if name in have else Carrier.PRIVOP
    if "ptep_modify_prot" in have:
        table[Op.MODIFY_PROT_COMMIT] = Carrier.UPDATE
    else:
        table[Op.MODIFY_PROT_START] = table[Op.PTE_GET_AND_CLEAR]
        table[Op.MODIFY_PROT_COMMIT] = table[Op.SET_PTE]
    table[Op.SEND_IPI] = Carrier.CALL
    table[Op.FAULT] = Carrier.FAULT
    if "lazy_mmu" in have:
        table[[Op.LAZY_ENTER, Op.LAZY_RESUME]] = Carrier.LAZY_BRACKET
        table[[Op.LAZY_LEAVE, Op.LAZY_PAUSE]] = Carrier.LAZY_BRACKET_END
    if "context_switch" in have:
        table[Op.SWITCH_START] = Carrier.SWITCH_BRACKET
        table[Op.SWITCH_END] = Carrier.SWITCH_BRACKET_END
    return table


def _is_dying(trace: Trace) -> np.ndarray:
    """Return the clears of dying address spaces, which are not told."""
    out: np.ndarray = np.isin(trace["op"], RMW_OPS) & ((trace["flags"] & Flag.FULLMM) != 0)
    return out


def _carriers(trace: Trace, hooks: HookSet) -> np.ndarray:
    """Return the carrier of each row."""
    out: np.ndarray = _table(hooks)[trace["op"]]
    out[_is_dying(trace)] = Carrier.STORE
    return out


def _why(op: Op) -> str:
    """Say why an operation cannot be carried."""
    if op in _TABLES:
        what = "announced" if op.name.startswith(("ALLOC", "PGD_ALLOC")) else "dismissed"
        return f"a page-table page is never {what} ({_TABLES[op][0]})"
    hook = {**_STORES, **_CHANGES}.get(op, ("set_pte",))[0]
    return f"a change that the shadow never learns of: {op.name} ({hook})"


@kernel
def run_vmi(op, cpu, times, carrier, capacity, counts, log):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    op, cpu : uint8[row]
        Columns of the trace.
    times : int64[row]
        How often each operation is made.
    carrier : uint8[row]
        A `Carrier` for each row; none is `Carrier.MISSING`.
    capacity : int
        Updates that a queue takes.
    counts : int64[N_EVENTS + 2]
        Receives the counts.
    log : int64[n, 4]
        Receives the log.
    """
    waiting = np.zeros(256, np.int64)  # updates and calls in the queue of each CPU
    lazy = np.zeros(256, np.bool_)
    switching = np.zeros(256, np.bool_)
    for row in range(op.shape[0]):
        how, c = carrier[row], cpu[row]
        counts[CPU] = c
        if how == Carrier.NOTHING:
            continue
        if how == Carrier.STORE:
            emit(counts, log, row, Event.STORE, times[row])
        elif how == Carrier.UPDATE:
            emit(counts, log, row, Event.VMI_UPDATES, times[row])
            waiting[c] += times[row]
            if not lazy[c]:
                _enter(counts, log, row, waiting, c)
            else:
                emit(counts, log, row, Event.QUEUED, times[row])
                if waiting[c] >= capacity:
                    _enter(counts, log, row, waiting, c)
        elif how == Carrier.CALL or how == Carrier.FLUSH_CALL:
            for _ in range(times[row]):
                waiting[c] += 1
                _enter(counts, log, row, waiting, c)
            if how == Carrier.FLUSH_CALL:
                one = op[row] == Op.FLUSH_ONE
                emit(counts, log, row, Event.TLB_FLUSH_ONE if one else Event.TLB_FLUSH, times[row])
        elif how == Carrier.CR3_CALL:
            waiting[c] += 1
            emit(counts, log, row, Event.TLB_FLUSH, ONE)
            if not switching[c]:
                _enter(counts, log, row, waiting, c)
        elif how == Carrier.LAZY_BRACKET:
            lazy[c] = True
        elif how == Carrier.LAZY_BRACKET_END:
            lazy[c] = False
            _enter(counts, log, row, waiting, c)
        elif how == Carrier.SWITCH_BRACKET:
            switching[c] = True
        elif how == Carrier.SWITCH_BRACKET_END:
            switching[c] = False
            _enter(counts, log, row, waiting, c)
        elif how == Carrier.PRIVOP:
            emit(counts, log, row, Event.PRIVOP_EMULATION, times[row])
        elif how == Carrier.FAULT:
            emit(counts, log, row, Event.PAGE_FAULT, ONE)


@kernel
def _enter(counts, log, row, waiting, cpu):  # type: ignore[no-untyped-def]
    """Enter the hypervisor with whatever waits."""
    if waiting[cpu] > 0:
        emit(counts, log, row, Event.VMI_CALL, ONE)
        waiting[cpu] = 0
