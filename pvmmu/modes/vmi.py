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

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, RMW_OPS, Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.counters import new_counts, new_log
from pvmmu.modes.notifications import CHANGES, STORES, TABLES
from pvmmu.modes.outcome import Delays
from pvmmu.modes.rules import As, Cannot, Rule, Table, TableMode
from pvmmu.modes.vmi_kernel import Mechanism as M, run_vmi

#: Values of ``queue`` worth trying: the smallest is Xen's, the largest a page of 8-byte records.
QUEUE_RANGE: Final = (32, 512)
#: Entries above PAGE_OFFSET (3 GiB) of a two-level page directory: KERNEL_PGD_PTRS.
CLONED: Final = 256
_FLUSHES: Final = (Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.LOAD_CR3)
# Kinds of rows beside operations: an upgrade of a present entry where a flush follows, by a store
# or in place; a clear in a dying address space.
_UPGRADE, _UPGRADE_IN_PLACE, _DYING = N_OPS, N_OPS + 1, N_OPS + 2
_IN_PLACE: Final = frozenset((M.UPDATE_PXE, M.UPDATE_PXE_DEFERRED))


def _unseen(op: Op, hooks: tuple[str, ...]) -> Cannot:
    return Cannot(f"a change that the shadow never learns of: {op.name} ({hooks[0]})")


def _page(op: Op, hooks: tuple[str, ...], call: M = M.PAGE_CALL) -> Rule:
    what = "announced" if op.name.startswith(("ALLOC", "PGD_ALLOC")) else "dismissed"
    return Rule(hooks, call, Cannot(f"a page-table page is never {what} ({hooks[0]})"))


_RULES: Final[Table] = {
    **{op: Rule(hooks, M.SET_PXE, _unseen(op, hooks)) for op, hooks in STORES.items()},
    **{
        op: Rule(hooks, Rule(("pte_update",), M.UPDATE_PXE, M.SET_PXE), _unseen(op, hooks))
        for op, hooks in CHANGES.items()
    },
    **{op: _page(op, hooks) for op, hooks in TABLES.items()},
    # the default of a protection change is a clear and a store, each hooked or not
    Op.MODIFY_PROT_START: Rule(("ptep_modify_prot",), M.NOTHING, As(Op.PTE_GET_AND_CLEAR)),
    Op.MODIFY_PROT_COMMIT: Rule(("ptep_modify_prot",), M.SET_PXE, As(Op.SET_PTE)),
    _UPGRADE: Rule(("pte_update",), M.UPDATE_PXE_DEFERRED, As(Op.SET_PTE)),
    _UPGRADE_IN_PLACE: Rule(("pte_update",), M.UPDATE_PXE_DEFERRED, As(Op.PTE_RMW)),
    _DYING: M.STORE,  # its shadows go with ReleasePage
    Op.READ_CR2: Rule(("read_cr2",), M.NOTHING, M.PRIVOP),
    Op.READ_CR3: Rule(("read_cr3",), M.NOTHING, M.PRIVOP),
    Op.LOAD_CR3: Rule(("write_cr3",), M.CR3_CALL, M.PRIVOP),
    Op.FLUSH_USER: Rule(("flush_tlb_user",), M.FLUSH_CALL, M.PRIVOP),
    Op.FLUSH_KERNEL: Rule(("flush_tlb_kernel",), M.FLUSH_CALL, M.PRIVOP),
    Op.FLUSH_ONE: Rule(("flush_tlb_one_user",), M.FLUSH_CALL, M.PRIVOP),
    Op.MAP_TABLE: Rule(
        ("kmap_atomic_pte",), M.MAPPING,
        Cannot("a table in high memory whose address the ROM never learns (kmap_atomic_pte)"),
    ),
    Op.SEND_IPI: M.IPI_CALL,
    Op.FAULT: M.FAULT,
    Op.LAZY_ENTER: Rule(("lazy_mmu",), M.LAZY_BRACKET, M.NOTHING),
    Op.LAZY_RESUME: As(Op.LAZY_ENTER),
    Op.LAZY_LEAVE: Rule(("lazy_mmu",), M.LAZY_BRACKET_END, M.NOTHING),
    Op.LAZY_PAUSE: As(Op.LAZY_LEAVE),
    Op.SWITCH_START: Rule(("context_switch",), M.SWITCH_BRACKET, M.NOTHING),
    Op.SWITCH_END: Rule(("context_switch",), M.SWITCH_BRACKET_END, M.NOTHING),
}  # fmt: skip
_CLONED: Final = _page(Op.PGD_ALLOC, TABLES[Op.PGD_ALLOC], M.CLONE_CALL)
_TWO_LEVELS: Final[Table] = {**_RULES, Op.PGD_ALLOC: _CLONED}


@dataclass(frozen=True)
class Vmi(TableMode):
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
    rules: ClassVar[Table] = _RULES
    mechanisms = M
    delays: ClassVar[Delays] = Delays(_IN_PLACE | {M.SET_PXE, M.CR3_CALL}, _IN_PLACE)

    def __post_init__(self) -> None:
        if not isinstance(self.queue, int) or self.queue < 1:
            raise ModeError(f"vmi mode: queue must be a whole number from 1, not {self.queue!r}")

    def rules_on(self, trace: Trace) -> Table:
        """Return the rules: a page directory of two levels is cloned."""
        return _TWO_LEVELS if trace.platform.levels == 2 else _RULES

    def kinds(self, trace: Trace, pins: HookSet) -> np.ndarray:
        """Return the operations; upgrades that may be deferred and dying tables are kinds."""
        if "vmi kinds" not in trace.derived:
            trace.derived["vmi kinds"] = _kinds(trace)
        out: np.ndarray = trace.derived["vmi kinds"]
        return out

    def count(
        self, trace: Trace, mechanism: np.ndarray, times: np.ndarray, log: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry the rows."""
        counts, lines = new_counts(), new_log(4 * len(trace) + 64 if log else 0)
        run_vmi(trace["op"], trace["cpu"], times, mechanism, self.queue, CLONED, counts, lines)
        return counts, lines


def _kinds(trace: Trace) -> np.ndarray:
    """Return the kind of each row, uint8[row]."""
    op, flags = trace["op"], trace["flags"]
    wanted = np.uint16(Flag.OLD_PRESENT | Flag.CURRENT_MM)
    upgrade = ((flags & wanted) == wanted) & _flush_is_next(trace)
    kinds = np.where(upgrade & (op == Op.SET_PTE), np.uint8(_UPGRADE), op)
    kinds = np.where(upgrade & (op == Op.PTE_RMW), np.uint8(_UPGRADE_IN_PLACE), kinds)
    return np.where(np.isin(op, RMW_OPS) & ((flags & Flag.FULLMM) != 0), np.uint8(_DYING), kinds)


def _flush_is_next(trace: Trace) -> np.ndarray:
    """Return the rows after which the same CPU flushes, before it does anything else of weight."""
    out = np.zeros(len(trace), np.bool_)
    for c in np.unique(trace["cpu"]):
        rows = np.flatnonzero((trace["cpu"] == c) & (trace["op"] != Op.FLUSH_RANGE))
        out[rows[:-1]] = np.isin(trace["op"][rows[1:]], _FLUSHES)
    return out
