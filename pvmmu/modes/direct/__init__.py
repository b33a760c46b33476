"""Direct paging (Xen): the guest's tables are the machine's, and the hypervisor checks each change.

A table page is *typed* while its address space is pinned: Xen has validated it, maps it read-only
to the guest, and every change goes through a hypercall or a trap. Otherwise it is ordinary memory.

When tables become typed depends on the hooks:

* ``activate_mm`` and ``dup_mmap`` both hooked: late, when an address space is complete;
* else, as in Xen 1 and 2, at birth (``pgd_alloc``), each table page as it is allocated; with
  ``without="cr3"`` at the first load of CR3 (which in reality runs under the scheduler's locks).

They stop being typed at ``exit_mmap``, if that is hooked, else when the root is freed.

Stores that no hook carries hit typed tables and fault. ``stores`` says what Xen makes of it:
``emulate`` each one (since 2006-08; L1 tables only), ``batched`` (writable page tables, 2004-2006,
see `pvmmu.modes.direct.writable_tables`), or ``refuse``. A hook that a backend does not implement
is carried as today's would: by an ``mmu_update`` request if the table is typed.

Sources: ``data/hooks/backends.toml`` (the guests'); Xen 4.17 xen/arch/x86/pv/ro-page-fault.c,
emul-priv-op.c. INVLPG is in none of Xen's lists of instructions that it emulates for a PV guest
(4.17.0, 4.17.5 and today: emul-priv-op.c, validate; 3.0.0, 4.2.0 and 4.8.0: traps.c,
emulate_privileged_op): the guest gets the general protection fault (4.17 traps.c,
do_general_protection: "Pass on GPF as is"), so that flush_tlb_one_user must be hooked at all times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

import numpy as np

from pvmmu.guest.lifecycle import NEVER, lifecycle
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import Flag, Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.all_sets.direct import count_branch, mechanisms_of
from pvmmu.modes.all_sets.segments import FIXED, Kinds, codes_of, kinds
from pvmmu.modes.base import covered_hooks, one_of
from pvmmu.modes.classes import make_partition
from pvmmu.modes.direct.backends import Rules, backends
from pvmmu.modes.direct.encode_trace import behind, folded_flushes, in_range_call, rows_of, walks_of
from pvmmu.modes.direct.kernel import Backend, Mechanism, run_direct
from pvmmu.modes.direct.multicall import new_machine
from pvmmu.modes.direct.rules import (
    CURRENT,
    HOOKS,
    PINNING,
    RANGES,
    SWITCHES,
    TYPED,
    UNTRANSLATED,
    mechanism_table,
    why_missing,
)
from pvmmu.modes.outcome import Delays, Infeasible, Outcome, counts_of_rows, outcome
from pvmmu.modes.partition import Branch, Partition, Space

#: Backends by name (``data/hooks/backends.toml``).
BACKENDS: Final = backends()
STORES: Final = ("emulate", "batched", "refuse")
WITHOUT: Final = ("birth", "cr3")

_DELAYS: Final = Delays(
    frozenset((
        Mechanism.MMU_UPDATE, Mechanism.MMU_UPDATE_TWICE, Mechanism.UPDATE_VA,
        Mechanism.UPDATE_VA_FLUSH, Mechanism.UPDATE_IF_CLEARS, Mechanism.UPDATE_IF_CLEARS_TWICE,
        Mechanism.FLUSH_CALL, Mechanism.FLUSH_CALL_MULTI, Mechanism.CR3_CALL,
    ))
)  # fmt: skip
#: Beside the state of a row: one that only a kernel without flush_tlb_multi has.
_BEHIND: Final = 4
_NAMES: Final = {int(c): c.name.lower().replace("_", " ") for c in Mechanism}


@dataclass(frozen=True)
class Direct:
    """Direct paging.

    Parameters
    ----------
    backend : str
        Whose rules the hooks follow: a key of `BACKENDS`, from ``2005`` (XenLinux) to ``6.1``.
    stores : str
        What Xen makes of stores that no hook carries: ``emulate``, ``batched`` or ``refuse``.
    without : str
        When tables become typed if address-space hooks are missing: at ``birth`` or first ``cr3``.

    Raises
    ------
    ModeError
        No such backend or policy.
    """

    backend: str = "6.1"
    stores: str = "emulate"
    without: str = "birth"
    name: ClassVar[str] = "direct"
    title: ClassVar[str] = "direct (Xen): unhooked writes emulated"

    def __post_init__(self) -> None:
        one_of("direct mode: backend", self.backend, tuple(BACKENDS))
        one_of("direct mode: stores", self.stores, STORES)
        one_of("direct mode: without", self.without, WITHOUT)

    @property
    def spec(self) -> str:
        """``direct``, followed by the parameters that differ from the default."""
        return "direct" + "".join(
            f":{k}={v}"
            for k, v, default in (
                ("backend", self.backend, "6.1"),
                ("stores", self.stores, "emulate"),
                ("without", self.without, "birth"),
            )
            if v != default
        )

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        return covered_hooks(trace, HOOKS) | HookSet.of("pte_val")

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        if "pte_val" not in hooks:
            return Infeasible(UNTRANSLATED)
        mechanism = self._mechanisms(trace, hooks)
        broken = np.flatnonzero(mechanism == np.uint8(Mechanism.MISSING))
        if len(broken):
            return Infeasible(why_missing(Op(trace["op"][broken[0]])), int(broken[0]))
        numbers, limits, batched = self._machine(trace, hooks)
        rows, in_range, walks = rows_of(trace), in_range_call(trace, hooks), walks_of(trace)
        results = []
        for times in counts_of_rows(trace):
            log_rows = 16 * len(trace) + 4096 if log else 0
            machine = new_machine(trace.platform.vcpus, limits, batched, log_rows)
            run_direct(rows, mechanism, times, in_range, walks, numbers, machine)
            results.append((machine.counts, machine.log))
        return outcome(results, mechanism, _NAMES, _DELAYS)

    @property
    def rules(self) -> Rules:
        """The rules of the backend."""
        return BACKENDS[self.backend]

    def _machine(self, trace: Trace, hooks: HookSet) -> tuple[Backend, tuple[int, int, bool], bool]:
        """Return the backend's numbers, its buffer's limits, and whether stores are batched."""
        from_birth = not _is_late(hooks) and self.without == "birth"
        by_store = from_birth and self.stores != "refuse"
        numbers = self.rules.numbers(trace.platform, by_store=by_store)
        return numbers, self.rules.limits, self.stores == "batched" and trace.platform.vcpus == 1

    # ------------------------------------------------------------------ all hook sets
    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition hook sets into classes that this mode carries alike on a trace."""
        met: dict[HookSet, dict[tuple[int, int], int]] = {}

        def signature(plan: HookSet, switch: Sequence[str], subset: HookSet) -> object:
            if switch is PINNING:
                pinned, unpinned = self._pinned_rows(trace, subset)
                return pinned.tobytes(), unpinned.tobytes(), self._machine(trace, subset)[0]
            if plan not in met:
                met[plan] = self._meetings(trace, plan)
            return self._signature(trace, plan, switch, subset, met[plan])

        return make_partition(space, PINNING, SWITCHES, signature)

    def count_branch(self, trace: Trace, branch: Branch) -> tuple[np.ndarray, np.ndarray] | None:
        """Count all classes of `branch` on `trace` at once (`pvmmu.modes.all_sets.counting`).

        Returns least and most, int64[class, N_EVENTS] each; None where that cannot be done at once.
        """
        numbers, limits, batched = self._machine(trace, branch.setting.hooks)
        rows, walks = rows_of(trace), walks_of(trace)
        found = self._kinds(trace, branch.setting.hooks, batched)
        try:
            mechanisms = mechanisms_of(branch, partial(self._table, trace))
        except ValueError:  # pragma: no cover - switches are independent
            return None
        return count_branch(trace, rows, found, branch, mechanisms, walks, numbers, limits, batched)

    def _kinds(self, trace: Trace, strategy: HookSet, batched: bool) -> Kinds:
        """Return the kinds of pieces under a strategy (kept with the trace)."""
        pinned, unpinned = self._pinned_rows(trace, strategy)
        key = ("direct pieces", batched, self.rules.establish, "exit_mmap" in strategy,
               pinned.tobytes(), unpinned.tobytes())  # fmt: skip
        if key not in trace.derived:
            moments = np.zeros(len(trace), np.uint8)
            self._moments(trace, strategy | HookSet.of("pgd_alloc", "write_cr3"), moments)
            codes = codes_of(trace, self._states(trace, strategy), moments, strategy)
            codes[self._folded(trace)] = FIXED + Mechanism.FOLDED
            rows, walks = rows_of(trace), walks_of(trace)
            trace.derived[key] = kinds(trace, rows, codes, walks, closed=batched)
        out: Kinds = trace.derived[key]
        return out

    def _meetings(self, trace: Trace, plan: HookSet) -> dict[tuple[int, int], int]:
        """Return each (operation, state | `_BEHIND`) under a strategy, with its first row."""
        op, state = trace["op"].astype(np.int64), self._states(trace, plan)
        made = ((trace["flags"] & Flag.NATIVE_ONLY) == 0) | (op != Op.LOAD_CR3)
        made |= "exit_mmap" not in plan
        made[self._folded(trace)] = False
        state = state.astype(np.int64)
        state[behind(trace)[0]] |= _BEHIND
        rows = np.flatnonzero(made)
        _, first = np.unique(op[rows] * 8 + state[rows], return_index=True)
        return {(int(op[r]), int(state[r])): int(r) for r in rows[first].tolist()}

    def _signature(
        self, trace: Trace, plan: HookSet, switch: Sequence[str], subset: HookSet,
        met: dict[tuple[int, int], int],
    ) -> object:  # fmt: skip
        """Return what carries the operations of a switch, or why it cannot be."""
        if "pte_val" in switch and "pte_val" not in subset:
            return Infeasible(UNTRANSLATED)
        hooks = plan | subset
        if "pgd_alloc" in switch:
            out = np.zeros(len(trace), np.uint8)
            self._moments(trace, hooks | HookSet.of("write_cr3"), out)
            broken = np.flatnonzero(out == Mechanism.MISSING)
            return Infeasible(why_missing(Op(trace["op"][broken[0]]))) if len(broken) else None
        table = self._table(trace, hooks)
        ops = {int(op) for name in switch for op in catalogue()[name].operations}
        if "pte_val" in switch:
            ops |= {int(Op.PTE_RMW)}  # whatever else is hooked, it is carried as it is
        spared = _BEHIND if "flush_tlb_multi" in subset else 0
        carried = {
            (op, state): int(table[op, state & ~_BEHIND])
            for op, state in met
            if op in ops and not state & spared
        }
        broken_at = [met[pair] for pair, c in carried.items() if c == Mechanism.MISSING]
        if broken_at:
            return Infeasible(why_missing(Op(trace["op"][min(broken_at)])))
        in_range = tuple(
            int(op)
            for name, op in RANGES
            if name in subset
            and any(p[0] == op and c == Mechanism.MMU_UPDATE for p, c in carried.items())
        )
        return tuple(carried.values()), in_range

    # ------------------------------------------------------------------ typed or not
    def _pinned_rows(self, trace: Trace, hooks: HookSet) -> tuple[np.ndarray, np.ndarray]:
        """Return for each address space the rows at which it is pinned and unpinned."""
        life = lifecycle(trace)
        older = np.array([m.older for m in trace.mms])
        if _is_late(hooks):
            start = life.finished
        else:
            start = life.born if self.without == "birth" else life.loaded
        end = life.exits if "exit_mmap" in hooks else life.freed
        return np.where(older, -1, start), np.where(np.arange(len(end)) == 0, NEVER, end)

    def _states(self, trace: Trace, hooks: HookSet) -> np.ndarray:
        """Return for each row whether its table is typed, and its address space the task's."""
        pinned, unpinned = self._pinned_rows(trace, hooks)
        mm, row = trace["mm"], np.arange(len(trace))
        typed = (mm < 0) | ((pinned[mm] < row) & (row < unpinned[mm]))
        current = ((trace["flags"] & Flag.CURRENT_MM) != 0) | (mm == 0)
        states: np.ndarray = typed * TYPED + current * CURRENT
        return states

    def _mechanisms(self, trace: Trace, hooks: HookSet) -> np.ndarray:
        """Return the mechanism of each row."""
        cell = self._cells(trace, hooks)
        out: np.ndarray = self._table(trace, hooks).reshape(-1).take(cell)
        self._moments(trace, hooks, out)
        flushes, loads = behind(trace)
        if "flush_tlb_multi" in hooks:
            out[flushes] = Mechanism.NOTHING
        if "exit_mmap" in hooks:
            out[loads] = Mechanism.NOTHING
        out[self._folded(trace)] = Mechanism.FOLDED
        return out

    def _folded(self, trace: Trace) -> np.ndarray:
        """Return the flushes that updates by address take with them."""
        return folded_flushes(trace) if self.rules.establish else np.zeros(0, np.int64)

    def _cells(self, trace: Trace, hooks: HookSet) -> np.ndarray:
        """Return the cell of the mechanism table that each row reads (kept with the trace)."""
        ends = self._pinned_rows(trace, hooks)
        key = ("direct cells", *(e.tobytes() for e in ends))
        if key not in trace.derived:
            states = self._states(trace, hooks).astype(np.uint16)
            trace.derived[key] = trace["op"].astype(np.uint16) * np.uint16(4) + states
        cells: np.ndarray = trace.derived[key]
        return cells

    def _table(self, trace: Trace, hooks: HookSet) -> np.ndarray:
        """Return the mechanism of each (operation, state)."""
        return mechanism_table(hooks, trace.platform, self.rules, refuse=self.stores == "refuse")

    def _moments(self, trace: Trace, hooks: HookSet, out: np.ndarray) -> None:
        """Fill in the rows at which address spaces are pinned and unpinned."""
        life = lifecycle(trace)
        pinned, unpinned = self._pinned_rows(trace, hooks)
        needs_root = trace.platform.user_root and "pgd_alloc" not in hooks
        at_birth = pinned == life.born
        for mm in range(1, len(trace.mms)):
            start, end, born = int(pinned[mm]), int(unpinned[mm]), int(life.born[mm])
            if 0 <= born < NEVER and (needs_root or (at_birth[mm] and "pgd_alloc" not in hooks)):
                out[born] = Mechanism.MISSING
            elif 0 <= start < NEVER:
                out[start] = Mechanism.PIN_ROOT if at_birth[mm] else Mechanism.PIN
                if trace["op"][start] == Op.LOAD_CR3 and "write_cr3" not in hooks:
                    out[start] = Mechanism.MISSING
            if 0 <= end < NEVER and start < end:
                last = end == life.freed[mm]
                out[end] = Mechanism.UNPIN_ROOT if last else Mechanism.UNPIN
                if last and "pgd_alloc" not in hooks:
                    out[end] = Mechanism.MISSING


def _is_late(hooks: HookSet) -> bool:
    """Whether tables become typed late: when an address space is complete."""
    return "activate_mm" in hooks and "dup_mmap" in hooks
