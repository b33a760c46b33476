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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, RMW_OPS, SET_UPPER_OPS, Flag, Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.base import covered_hooks
from pvmmu.modes.classes import make_partition
from pvmmu.modes.counters import new_counts, new_log
from pvmmu.modes.lguest_kernel import ROW, Mechanism, new_host, run_lguest
from pvmmu.modes.notifications import CHANGES, STORES, names_of, upper_hooks
from pvmmu.modes.outcome import Delays, Infeasible, Outcome, outcome
from pvmmu.modes.partition import Partition, Space

#: Entries of the ring (LHCALL_RING_SIZE), page directories that are shadowed (struct lguest).
RING, SLOTS = 64, 4
_NAMES: Final = names_of(Mechanism)
_TOLD: Final = frozenset((Mechanism.TELL, Mechanism.TELL_WITHOUT_ADDRESS, Mechanism.TELL_TABLE))
_FLUSHES: Final = frozenset((Mechanism.FLUSH_ONE, Mechanism.FLUSH_USER, Mechanism.FLUSH_ALL))
_DELAYS: Final = Delays(_TOLD | _FLUSHES | {Mechanism.NEW_TABLE}, _TOLD)
#: A row's address space is the loaded one, or one that was never loaded; or a shadow may be left.
_HERE, _ELSEWHERE = 0, 1
_PRIVILEGED: Final = {
    Op.READ_CR2: ("read_cr2", Mechanism.NOTHING),
    Op.READ_CR3: ("read_cr3", Mechanism.NOTHING),
    Op.LOAD_CR3: ("write_cr3", Mechanism.NEW_TABLE),
    Op.FLUSH_ONE: ("flush_tlb_one_user", Mechanism.FLUSH_ONE),
    Op.FLUSH_USER: ("flush_tlb_user", Mechanism.FLUSH_USER),
    Op.FLUSH_KERNEL: ("flush_tlb_kernel", Mechanism.FLUSH_ALL),
}
#: The hooks that lguest mode reads, in groups that act independently of each other.
SWITCHES: Final = (
    ("set_pte", "set_pte_at", "set_ptes", "pte_update", "ptep_get_and_clear", "get_and_clear_ptes",
     "ptep_set_wrprotect", "wrprotect_ptes", "ptep_test_and_clear_young", "pte_clear",
     "ptep_modify_prot"),
    ("set_pmd",), ("set_pud",), ("set_p4d",), ("write_cr3",), ("read_cr2",), ("read_cr3",),
    ("flush_tlb_user",), ("flush_tlb_kernel",), ("flush_tlb_one_user",), ("lazy_mmu",),
    ("context_switch",), ("exit_mmap",),
)  # fmt: skip
HOOKS: Final = tuple(name for switch in SWITCHES for name in switch)
_ONE_CPU: Final = "an lguest guest has one processor"


@dataclass(frozen=True)
class Lguest:
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

    def __post_init__(self) -> None:
        for what in ("ring", "slots", "working"):
            value = getattr(self, what)
            if not isinstance(value, int) or value < 1:
                raise ModeError(f"lguest mode: {what} must be a whole number from 1, not {value!r}")

    @property
    def spec(self) -> str:
        """``lguest``, followed by the parameters that differ from the default."""
        given = (
            ("ring", self.ring, RING), ("slots", self.slots, SLOTS), ("working", self.working, 64)
        )  # fmt: skip
        return "lguest" + "".join(f":{k}={v}" for k, v, default in given if v != default)

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        return covered_hooks(trace, HOOKS)

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition hook sets into classes that this mode carries alike on a trace."""
        if trace.platform.vcpus > 1:
            return make_partition(space, (), SWITCHES, lambda *_: Infeasible(_ONE_CPU))
        met = _meetings(trace)

        def signature(_: HookSet, switch: Sequence[str], subset: HookSet) -> object:
            table = mechanism_table(subset)
            covered = {int(op) for name in switch for op in catalogue()[name].operations}
            carried = {m: int(table[m]) for m in met if m[0] in covered}
            missing = [m[0] for m, c in carried.items() if c == Mechanism.MISSING]
            if missing:
                return Infeasible(_why(Op(missing[0])))
            return (*carried.values(), "exit_mmap" in subset and _moves_off(trace).any())

        return make_partition(space, (), SWITCHES, signature)

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        if trace.platform.vcpus > 1:
            return Infeasible(_ONE_CPU)
        mechanism = _mechanisms(trace, hooks)
        broken = np.flatnonzero(mechanism == Mechanism.MISSING)
        if len(broken):
            row = int(broken[0])
            return Infeasible(_why(Op(trace["op"][row])), row)
        rows, loaded, pages, regions = _rows(trace)
        touches_known = bool((trace["op"] == Op.TOUCH).any())
        runs = []
        for returns in (0,) if touches_known else (0, self.working):
            host = new_host(len(trace.mms), pages, regions, self.slots, loaded)
            counts, lines = new_counts(), new_log(6 * len(trace) + 64 if log else 0)
            run_lguest(rows, mechanism, host, self.ring, returns, counts, lines)
            runs.append((counts, lines))
        np.maximum(runs[0][0], runs[-1][0], out=runs[-1][0])
        return outcome(runs, mechanism, _NAMES, _DELAYS)


def mechanism_table(hooks: HookSet) -> np.ndarray:
    """Return the mechanism of each operation where the address space is loaded, and elsewhere.

    Returns
    -------
    uint8[N_OPS, 2]
        `Mechanism` numbers.
    """
    out = np.full((N_OPS, 2), Mechanism.NOTHING, np.uint8)
    have = set(hooks)
    for op, plain in ((Op.SET_PTE, Mechanism.STORE), *((o, Mechanism.LOCKED) for o in RMW_OPS)):
        told = have & set((STORES | CHANGES)[op])
        out[op] = Mechanism.TELL if told else (plain, Mechanism.MISSING)
    if "set_pte" in have and not have & {"set_pte_at", "set_ptes"}:
        out[Op.SET_PTE] = Mechanism.TELL_WITHOUT_ADDRESS
    out[Op.PTE_CLEAR] = Mechanism.TELL if "pte_clear" in have else Mechanism.STORE
    if "ptep_modify_prot" in have:
        out[Op.MODIFY_PROT_COMMIT] = Mechanism.TELL
    else:
        out[Op.MODIFY_PROT_START] = out[Op.PTE_GET_AND_CLEAR]
        out[Op.MODIFY_PROT_COMMIT] = out[Op.SET_PTE]
    for op in SET_UPPER_OPS:
        out[op] = Mechanism.TELL_TABLE if have & set(upper_hooks(op)) else Mechanism.STORE
    if "set_pmd" not in have:
        out[Op.SET_PMD, _ELSEWHERE] = Mechanism.MISSING
    for op, (name, hooked) in _PRIVILEGED.items():
        out[op] = hooked if name in have else Mechanism.MISSING
    out[Op.FAULT], out[Op.TOUCH], out[Op.EXIT_MMAP] = (
        Mechanism.FAULT,
        Mechanism.TOUCH,
        Mechanism.EXIT,
    )
    for hook, begin, end in (
        ("lazy_mmu", (Op.LAZY_ENTER, Op.LAZY_RESUME), (Op.LAZY_LEAVE, Op.LAZY_PAUSE)),
        ("context_switch", (Op.SWITCH_START,), (Op.SWITCH_END,)),
    ):
        if hook in have:
            out[list(begin)], out[list(end)] = Mechanism.BRACKET, Mechanism.BRACKET_END
    return out


def _moves_off(trace: Trace) -> np.ndarray:
    """Return the loads of CR3 that the hook exit_mmap makes unnecessary."""
    behind = (trace["flags"] & Flag.NATIVE_ONLY) != 0
    out: np.ndarray = behind & (trace["op"] == Op.LOAD_CR3)
    return out


def _mechanisms(trace: Trace, hooks: HookSet) -> np.ndarray:
    """Return the mechanism of each row."""
    out: np.ndarray = mechanism_table(hooks)[trace["op"], _elsewhere(trace)]
    out[_dying(trace)] = Mechanism.STORE
    if "exit_mmap" in hooks:
        out[_moves_off(trace)] = Mechanism.NOTHING
    return out


def _dying(trace: Trace) -> np.ndarray:
    """Return the clears of dying address spaces: plain stores, their tables are told of."""
    out: np.ndarray = np.isin(trace["op"], RMW_OPS) & ((trace["flags"] & Flag.FULLMM) != 0)
    return out


def _meetings(trace: Trace) -> set[tuple[int, int]]:
    """Return each (operation, place) that occurs."""
    rows = ~_dying(trace)
    pairs = np.unique(trace["op"][rows].astype(np.int64) * 2 + _elsewhere(trace)[rows])
    return {(int(p) // 2, int(p) % 2) for p in pairs}


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
    """Return 1 for a change of a present entry whose address space is shadowed but not loaded."""
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
        trace.derived["lguest elsewhere"] = (shadowed & ~gone & ~upper).astype(np.int64)
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


def _why(op: Op) -> str:
    """Say why an operation cannot be carried."""
    if op in _PRIVILEGED:
        return f"a privileged instruction that lguest does not emulate ({_PRIVILEGED[op][0]})"
    hook = "set_pmd" if op == Op.SET_PMD else (STORES | CHANGES).get(op, ("set_pte_at",))[0]
    return f"a shadow that is not loaded keeps what was changed: {op.name} ({hook})"
