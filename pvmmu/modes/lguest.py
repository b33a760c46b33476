"""lguest (2007): a hypervisor that shadows four address spaces, told by hypercall of what changes.

The guest's tables are ordinary memory. The host keeps shadows of the last four page directories
that the guest loaded, fills them when the processor faults, and drops what it is told about:
``SET_PTE`` (page directory, address, entry: drops the shadow's entry, or fills it if A or D is
set), ``SET_PMD`` (drops all below one upper entry), ``FLUSH_TLB`` (drops the user's part of the
loaded directory, or everything of all), ``NEW_PGTABLE`` (one of the four, else a random victim).

So a shadow is a TLB that survives loads of CR3. What the kernel flushes anyway need not be told of
by another hook; but a change to an address space that is shadowed and not loaded is never flushed,
and must be told. Two prices of an interface show here as nowhere else: a store hooked without
address (``set_pte``) makes the host drop everything, and the end of a bracket is a hypercall even
if the bracket was empty.

In a bracket, hypercalls wait in a ring of 64; the call that finds it full goes directly and takes
the ring along. What a program touches again after its entries were dropped is known only if the
trace has `Op.TOUCH`. Without, the least count has no such fault; the greatest has ``working`` of
them, an assumption, between a drop and the next fault or switch.

lguest was 32-bit, with two levels and one CPU. On a trace of more levels the upper ones are treated
as the PMD was. An instruction that no hook replaces is fatal: the host emulates IN and OUT only.

Source: Linux v2.6.27 arch/x86/lguest/boot.c, drivers/lguest/page_tables.c, hypercalls.c,
x86/core.c; ``pte_update``: v2.6.33-rc8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, RMW_OPS, SET_UPPER_OPS, Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.counters import new_counts, new_log
from pvmmu.modes.lguest_kernel import ROW, Mechanism as M, new_host, run_lguest
from pvmmu.modes.notifications import CHANGES, STORES, upper_hooks
from pvmmu.modes.outcome import Delays, Infeasible, Outcome, outcome
from pvmmu.modes.rules import As, Cannot, Rule, Step, Table, TableMode

#: Entries of the ring (LHCALL_RING_SIZE), page directories that are shadowed (struct lguest).
RING, SLOTS = 64, 4
#: Kind of a row: its operation, plus this where a shadow may be left that is not loaded.
_ELSEWHERE: Final = N_OPS
#: Kind of a clear in a dying address space: a plain store, its tables are told of.
_DYING: Final = 2 * N_OPS
_TOLD: Final = frozenset((M.TELL, M.TELL_WITHOUT_ADDRESS, M.TELL_TABLE))
_FLUSHES: Final = frozenset((M.FLUSH_ONE, M.FLUSH_USER, M.FLUSH_ALL))


def _unseen(op: Op, hook: str) -> Cannot:
    return Cannot(f"a shadow that is not loaded keeps what was changed: {op.name} ({hook})")


def _set_pte(unhooked: Step) -> Rule:
    """A store: by ``set_pte`` alone it says no address."""
    without = Rule(("set_pte",), M.TELL_WITHOUT_ADDRESS, unhooked)
    return Rule(("set_pte_at", "set_ptes"), M.TELL, without)


def _privileged(hook: str, hooked: M) -> Rule:
    why = f"a privileged instruction that lguest does not emulate ({hook})"
    return Rule((hook,), hooked, Cannot(why))


_RULES: Final[Table] = {
    Op.SET_PTE: _set_pte(M.STORE),
    **{op: Rule(CHANGES[op], M.TELL, M.LOCKED) for op in RMW_OPS},
    Op.PTE_CLEAR: Rule(("pte_clear",), M.TELL, M.STORE),
    # the default of a protection change is a clear and a store, each hooked or not
    Op.MODIFY_PROT_START: Rule(("ptep_modify_prot",), M.NOTHING, As(Op.PTE_GET_AND_CLEAR)),
    Op.MODIFY_PROT_COMMIT: Rule(("ptep_modify_prot",), M.TELL, As(Op.SET_PTE)),
    **{op: Rule(upper_hooks(op), M.TELL_TABLE, M.STORE) for op in SET_UPPER_OPS},
    Op.READ_CR2: _privileged("read_cr2", M.NOTHING),
    Op.READ_CR3: _privileged("read_cr3", M.NOTHING),
    Op.LOAD_CR3: _privileged("write_cr3", M.NEW_TABLE),
    Op.FLUSH_ONE: _privileged("flush_tlb_one_user", M.FLUSH_ONE),
    Op.FLUSH_USER: _privileged("flush_tlb_user", M.FLUSH_USER),
    Op.FLUSH_KERNEL: _privileged("flush_tlb_kernel", M.FLUSH_ALL),
    Op.FAULT: M.FAULT,
    Op.TOUCH: M.TOUCH,
    Op.EXIT_MMAP: M.EXIT,
    Op.LAZY_ENTER: Rule(("lazy_mmu",), M.BRACKET, M.NOTHING),
    Op.LAZY_RESUME: As(Op.LAZY_ENTER),
    Op.LAZY_LEAVE: Rule(("lazy_mmu",), M.BRACKET_END, M.NOTHING),
    Op.LAZY_PAUSE: As(Op.LAZY_LEAVE),
    Op.SWITCH_START: Rule(("context_switch",), M.BRACKET, M.NOTHING),
    Op.SWITCH_END: Rule(("context_switch",), M.BRACKET_END, M.NOTHING),
}
#: What the kernel does not flush must be told of.
_NOT_LOADED: Final[Table] = {
    Op.SET_PTE: _set_pte(_unseen(Op.SET_PTE, STORES[Op.SET_PTE][0])),
    **{op: Rule(CHANGES[op], M.TELL, _unseen(op, CHANGES[op][0])) for op in RMW_OPS},
    Op.MODIFY_PROT_START: Rule(
        ("ptep_modify_prot",), M.NOTHING, As(Op.PTE_GET_AND_CLEAR + _ELSEWHERE)
    ),
    Op.MODIFY_PROT_COMMIT: Rule(("ptep_modify_prot",), M.TELL, As(Op.SET_PTE + _ELSEWHERE)),
    Op.SET_PMD: Rule(upper_hooks(Op.SET_PMD), M.TELL_TABLE, _unseen(Op.SET_PMD, "set_pmd")),
}


@dataclass(frozen=True)
class Lguest(TableMode):
    """Shadow paging of four page directories, with notifications.

    Parameters
    ----------
    ring : int
        Hypercalls that wait in a bracket.
    slots : int
        Page directories that are shadowed.
    working : int
        Pages that a program touches between two of its faults (an assumption).

    Raises
    ------
    ModeError
        A number is below 1.
    """

    ring: int = RING
    slots: int = SLOTS
    working: int = 64
    name: ClassVar[str] = "lguest"
    title: ClassVar[str] = "shadow of four address spaces (lguest)"
    rules: ClassVar[Table] = {
        **_RULES,
        **{op + _ELSEWHERE: _NOT_LOADED.get(op, As(op)) for op in _RULES},
        _DYING: M.STORE,
    }
    mechanisms = M
    delays: ClassVar[Delays] = Delays(_TOLD | _FLUSHES | {M.NEW_TABLE}, _TOLD)
    spares: ClassVar[tuple[str, ...]] = ("exit_mmap",)

    def __post_init__(self) -> None:
        for what in ("ring", "slots", "working"):
            value = getattr(self, what)
            if not isinstance(value, int) or value < 1:
                raise ModeError(f"lguest mode: {what} must be a whole number from 1, not {value!r}")

    def refuses(self, trace: Trace) -> str:
        """Return why a guest of several processors cannot run."""
        return "an lguest guest has one processor" if trace.platform.vcpus > 1 else ""

    def kinds(self, trace: Trace, pins: HookSet) -> np.ndarray:
        """Return the operations, apart where a shadow may be left; clears of dying tables."""
        if "lguest kinds" not in trace.derived:
            kinds = trace["op"] + np.where(_elsewhere(trace), np.uint16(_ELSEWHERE), np.uint16(0))
            dying = np.isin(trace["op"], RMW_OPS) & ((trace["flags"] & Flag.FULLMM) != 0)
            trace.derived["lguest kinds"] = np.where(dying, np.uint16(_DYING), kinds)
        out: np.ndarray = trace.derived["lguest kinds"]
        return out

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set: with the least of faults, and with the most."""
        mechanism = self.mechanism_of_rows(trace, hooks)
        if isinstance(mechanism, Infeasible):
            return mechanism
        rows, loaded, pages, regions = _rows(trace)
        touches_known = bool((trace["op"] == Op.TOUCH).any())
        runs = []
        for returns in (0,) if touches_known else (0, self.working):
            host = new_host(len(trace.mms), pages, regions, self.slots, loaded)
            counts, lines = new_counts(), new_log(6 * len(trace) + 64 if log else 0)
            run_lguest(rows, mechanism, host, self.ring, returns, counts, lines)
            runs.append((counts, lines))
        np.maximum(runs[0][0], runs[-1][0], out=runs[-1][0])
        return outcome(runs, mechanism, self.names, self.delays)


def _loaded(trace: Trace) -> np.ndarray:
    """Return the address space that is loaded at each row (one CPU); -1 as long as unknown."""
    loads = trace["op"] == Op.LOAD_CR3
    known = np.flatnonzero(loads)
    own = np.flatnonzero(((trace["flags"] & Flag.CURRENT_MM) != 0) & (trace["mm"] > 0))
    first = int(trace["mm"][own[0]]) if len(own) else -1
    at = np.searchsorted(known, np.arange(len(trace)), side="right") - 1
    last = trace["mm"][known[np.maximum(at, 0)]] if len(known) else np.full(len(trace), first)
    out: np.ndarray = np.where(at >= 0, last, first)
    return out


def _elsewhere(trace: Trace) -> np.ndarray:
    """Return the changes of present entries whose address space is shadowed but not loaded."""
    if "lguest elsewhere" not in trace.derived:
        loaded, mm = _loaded(trace), trace["mm"]
        first = np.full(len(trace.mms), len(trace))
        older = np.array([m.older for m in trace.mms])
        seen, at = np.unique(loaded, return_index=True)
        first[seen[seen >= 0]] = at[seen >= 0]
        first[older] = -1
        shadowed = (mm > 0) & (first[mm] < np.arange(len(trace))) & (mm != loaded)
        gone = ((trace["flags"] & Flag.OLD_KNOWN) != 0) & ((trace["flags"] & Flag.OLD_PRESENT) == 0)
        upper = np.isin(trace["op"], SET_UPPER_OPS) & ((trace["value"] & 1) != 0)
        trace.derived["lguest elsewhere"] = shadowed & ~gone & ~upper
    out: np.ndarray = trace.derived["lguest elsewhere"]
    return out


def _rows(trace: Trace) -> tuple[np.ndarray, int, int, int]:
    """Return the rows as the loop reads them, what is loaded first, numbers of pages, regions."""
    if "lguest rows" not in trace.derived:
        reach = 22 if trace.platform.levels == 2 else 21
        rows = np.zeros(len(trace), ROW)
        for name in ("cpu", "mm", "count"):
            rows[name] = trace[name]
        rows["present"] = (trace["value"] & 1) != 0
        rows["used"] = (trace["value"] & 0x60) != 0
        pages, rows["page"] = _numbered(trace["mm"], trace["va"] >> np.uint64(12))
        regions, rows["region"] = _numbered(trace["mm"], trace["va"] >> np.uint64(reach))
        first = int(_loaded(trace)[0])
        trace.derived["lguest rows"] = (rows, first, pages, regions)
    out: tuple[np.ndarray, int, int, int] = trace.derived["lguest rows"]
    return out


def _numbered(mm: np.ndarray, place: np.ndarray) -> tuple[int, np.ndarray]:
    """Number the places of all address spaces: how many there are, and each row's number."""
    key = np.stack([mm.astype(np.int64), place.astype(np.int64)], axis=1)
    found, number = np.unique(key, axis=0, return_inverse=True)
    return len(found), number.reshape(-1)
