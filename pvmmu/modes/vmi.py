"""VMI (VMware, 2006): the hypervisor shadows the guest's tables and asks to be told of changes.

The guest's own tables are ordinary memory; the processor walks shadows of them, which the ROM keeps
up to date through calls: ``SetPxE`` (store an entry), ``UpdatePxE`` (one was changed in place),
``AllocatePage`` and ``ReleasePage`` (a page becomes a table, and no longer is one; the kernel's
part of a 32-bit page directory is cloned from another one), ``SetLinearMapping`` (where a table in
high memory is mapped), ``SetCR3``, ``FlushTLB``, ``InvalPage``. Tables are not write-protected
(Amsden, lkml 2008-05-23), so a change that no hook tells of leaves a stale shadow: such designs do
not work. The clears of a dying address space are not told: its shadows go with ``ReleasePage``.

In a lazy MMU bracket the ROM queues updates and enters the hypervisor once, at the end, when the
queue is full, or with a call that cannot wait. Its capacity was never published: ``queue`` is an
assumption, by default so large that no bracket over one PTE table fills it.

An upgrade of a present entry in place (``ptep_set_access_flags``) is told with ``VMI_PAGE_DEFER``:
it waits for the flush that the kernel makes next, and costs no call of its own. A kernel that makes
no flush there, as x86 since 2.6.x tolerates the spurious fault, cannot defer; then it is an update
like others.

VMI was 32-bit. On a trace of four levels the upper two are treated as the PMD was.

Source: Linux v2.6.22 arch/i386/kernel/vmi.c, include/asm-i386/vmi.h, arch/i386/mm/pgtable.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, RMW_OPS, Flag, Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.base import covered_hooks
from pvmmu.modes.classes import make_partition
from pvmmu.modes.counters import new_counts, new_log
from pvmmu.modes.notifications import CHANGES, STORES, TABLES, names_of
from pvmmu.modes.outcome import Delays, Infeasible, Outcome, counts_of_rows, outcome
from pvmmu.modes.partition import Partition, Space
from pvmmu.modes.vmi_kernel import Mechanism, run_vmi

#: Values of ``queue`` worth trying: the smallest is Xen's, the largest a page of 8-byte records.
QUEUE_RANGE: Final = (32, 512)
#: Entries above PAGE_OFFSET (3 GiB) of a two-level page directory: KERNEL_PGD_PTRS.
CLONED: Final = 256
#: Stand for an upgrade of a present entry where a flush follows: by a store, or in place.
_UPGRADE, _UPGRADE_IN_PLACE = N_OPS - 1, N_OPS - 2

_NAMES: Final = names_of(Mechanism)
_IN_PLACE: Final = frozenset((Mechanism.UPDATE_PXE, Mechanism.UPDATE_PXE_DEFERRED))
_DELAYS: Final = Delays(_IN_PLACE | {Mechanism.SET_PXE, Mechanism.CR3_CALL}, _IN_PLACE)
_REGISTERS: Final = {
    Op.READ_CR2: ("read_cr2", Mechanism.NOTHING),
    Op.READ_CR3: ("read_cr3", Mechanism.NOTHING),
    Op.LOAD_CR3: ("write_cr3", Mechanism.CR3_CALL),
    Op.FLUSH_USER: ("flush_tlb_user", Mechanism.FLUSH_CALL),
    Op.FLUSH_KERNEL: ("flush_tlb_kernel", Mechanism.FLUSH_CALL),
    Op.FLUSH_ONE: ("flush_tlb_one_user", Mechanism.FLUSH_CALL),
}
_FLUSHES: Final = (Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.LOAD_CR3)
#: The hooks that VMI mode reads, in groups that act independently of each other.
SWITCHES: Final = (
    # the default of a protection change is a clear and a store, each hooked or not
    ("set_pte", "set_pte_at", "set_ptes", "pte_update", "ptep_get_and_clear", "get_and_clear_ptes",
     "ptep_set_wrprotect", "wrprotect_ptes", "ptep_test_and_clear_young", "pte_clear",
     "ptep_modify_prot"),
    ("set_pmd",), ("set_pud", "set_p4d"), ("alloc_pte",), ("alloc_pmd",), ("release_pte",),
    ("release_pmd",), ("alloc_pud", "release_pud", "pgd_alloc"), ("write_cr3",), ("read_cr2",),
    ("read_cr3",), ("flush_tlb_user",), ("flush_tlb_kernel",), ("flush_tlb_one_user",),
    ("lazy_mmu",), ("context_switch",), ("kmap_atomic_pte",),
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
    title: ClassVar[str] = "shadow with notifications (VMI)"

    def __post_init__(self) -> None:
        if not isinstance(self.queue, int) or self.queue < 1:
            raise ModeError(f"vmi mode: queue must be a whole number from 1, not {self.queue!r}")

    @property
    def spec(self) -> str:
        """``vmi``, and the queue's capacity if it is not the default."""
        return "vmi" if self.queue == QUEUE_RANGE[1] else f"vmi:queue={self.queue}"

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        return covered_hooks(trace, HOOKS)

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition hook sets into classes that this mode carries alike on a trace."""
        present = set(np.unique(_kinds(trace)[~_is_dying(trace)]).tolist())

        def signature(_: HookSet, switch: Sequence[str], subset: HookSet) -> object:
            table = _table(subset, trace)
            covered = {int(op) for name in switch for op in catalogue()[name].operations}
            if "pte_update" in switch:
                covered |= {_UPGRADE, _UPGRADE_IN_PLACE}
            carried = {op: int(table[op]) for op in sorted(covered & present)}
            missing = [op for op, c in carried.items() if c == Mechanism.MISSING]
            return Infeasible(_why(missing[0])) if missing else tuple(carried.values())

        return make_partition(space, (), SWITCHES, signature)

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        mechanism = _table(hooks, trace)[_kinds(trace)]
        mechanism[_is_dying(trace)] = Mechanism.STORE
        broken = np.flatnonzero(mechanism == Mechanism.MISSING)
        if len(broken):
            row = int(broken[0])
            return Infeasible(_why(int(_kinds(trace)[row])), row)
        runs = []
        for times in counts_of_rows(trace):
            runs.append((new_counts(), new_log(4 * len(trace) + 64 if log else 0)))
            run_vmi(trace["op"], trace["cpu"], times, mechanism, self.queue, CLONED, *runs[-1])
        return outcome(runs, mechanism, _NAMES, _DELAYS)


def _table(hooks: HookSet, trace: Trace) -> np.ndarray:
    """Return the mechanism of each operation."""
    table = np.zeros(N_OPS, np.uint8)
    have = set(hooks)
    for op, names in STORES.items():
        table[op] = Mechanism.SET_PXE if have & set(names) else Mechanism.MISSING
    for op, names in CHANGES.items():
        in_place = Mechanism.UPDATE_PXE if "pte_update" in have else Mechanism.SET_PXE
        table[op] = in_place if have & set(names) else Mechanism.MISSING
    for op, names in TABLES.items():
        table[op] = Mechanism.PAGE_CALL if have & set(names) else Mechanism.MISSING
    if trace.platform.levels == 2 and table[Op.PGD_ALLOC] == Mechanism.PAGE_CALL:
        table[Op.PGD_ALLOC] = Mechanism.CLONE_CALL
    for op, (name, hooked) in _REGISTERS.items():
        table[op] = hooked if name in have else Mechanism.PRIVOP
    for kind, otherwise in ((_UPGRADE, Op.SET_PTE), (_UPGRADE_IN_PLACE, Op.PTE_RMW)):
        deferred = "pte_update" in have
        table[kind] = Mechanism.UPDATE_PXE_DEFERRED if deferred else table[otherwise]
    if "ptep_modify_prot" in have:
        table[Op.MODIFY_PROT_COMMIT] = Mechanism.SET_PXE
    else:
        table[Op.MODIFY_PROT_START] = table[Op.PTE_GET_AND_CLEAR]
        table[Op.MODIFY_PROT_COMMIT] = table[Op.SET_PTE]
    table[Op.MAP_TABLE] = Mechanism.MAPPING if "kmap_atomic_pte" in have else Mechanism.MISSING
    table[Op.SEND_IPI] = Mechanism.IPI_CALL
    table[Op.FAULT] = Mechanism.FAULT
    if "lazy_mmu" in have:
        table[[Op.LAZY_ENTER, Op.LAZY_RESUME]] = Mechanism.LAZY_BRACKET
        table[[Op.LAZY_LEAVE, Op.LAZY_PAUSE]] = Mechanism.LAZY_BRACKET_END
    if "context_switch" in have:
        table[Op.SWITCH_START] = Mechanism.SWITCH_BRACKET
        table[Op.SWITCH_END] = Mechanism.SWITCH_BRACKET_END
    return table


def _is_dying(trace: Trace) -> np.ndarray:
    """Return the clears of dying address spaces, which are not told."""
    out: np.ndarray = np.isin(trace["op"], RMW_OPS) & ((trace["flags"] & Flag.FULLMM) != 0)
    return out


def _kinds(trace: Trace) -> np.ndarray:
    """Return the operation of each row; upgrades that may be deferred are kinds of their own."""
    if "vmi kinds" not in trace.derived:
        op, flags = trace["op"], trace["flags"]
        wanted = np.uint16(Flag.OLD_PRESENT | Flag.CURRENT_MM)
        upgrade = ((flags & wanted) == wanted) & _flush_is_next(trace)
        kinds = np.where(upgrade & (op == Op.SET_PTE), np.uint8(_UPGRADE), op)
        in_place = upgrade & (op == Op.PTE_RMW)
        trace.derived["vmi kinds"] = np.where(in_place, np.uint8(_UPGRADE_IN_PLACE), kinds)
    out: np.ndarray = trace.derived["vmi kinds"]
    return out


def _flush_is_next(trace: Trace) -> np.ndarray:
    """Return the rows after which the same CPU flushes, before it does anything else of weight."""
    out = np.zeros(len(trace), np.bool_)
    for c in np.unique(trace["cpu"]):
        rows = np.flatnonzero((trace["cpu"] == c) & (trace["op"] != Op.FLUSH_RANGE))
        out[rows[:-1]] = np.isin(trace["op"][rows[1:]], _FLUSHES)
    return out


def _why(kind: int) -> str:
    """Say why an operation cannot be carried."""
    if kind == Op.MAP_TABLE:
        return "a table in high memory whose address the ROM never learns (kmap_atomic_pte)"
    op = {_UPGRADE: Op.SET_PTE, _UPGRADE_IN_PLACE: Op.PTE_RMW}.get(kind) or Op(kind)
    if op in TABLES:
        what = "announced" if op.name.startswith(("ALLOC", "PGD_ALLOC")) else "dismissed"
        return f"a page-table page is never {what} ({TABLES[op][0]})"
    hook = {**STORES, **CHANGES}.get(op, ("set_pte",))[0]
    return f"a change that the shadow never learns of: {op.name} ({hook})"
