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

import dataclasses
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.guest.lifecycle import NEVER, lifecycle
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.base import one_of
from pvmmu.modes.direct.backends import Rules, backends
from pvmmu.modes.direct.encode_trace import folded_flushes, in_range_call, rows_of, walks_of
from pvmmu.modes.direct.kernel import Backend, Mechanism, run_direct
from pvmmu.modes.direct.multicall import new_machine
from pvmmu.modes.direct.rules import (
    BORN_PINNED,
    BORN_TWICE,
    CURRENT,
    FOLDED,
    FREED_PINNED,
    NATIVE_FLUSH_ONE,
    PINNED,
    PINNED_AT_LOAD,
    PINNED_LATE,
    PINNING,
    RANGES,
    UNPINNED,
    UNTRANSLATED,
    direct_table,
)
from pvmmu.modes.outcome import Delays, Infeasible, Outcome, counts_of_rows, outcome
from pvmmu.modes.rules import Step, Table, TableMode, native_rows_of

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


@dataclass(frozen=True)
class Direct(TableMode):
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
    mechanisms = Mechanism
    delays: ClassVar[Delays] = _DELAYS
    needs: ClassVar[Mapping[str, str]] = {"pte_val": UNTRANSLATED}
    pins: ClassVar[tuple[str, ...]] = PINNING
    spares: ClassVar[tuple[str, ...]] = ("flush_tlb_multi", "exit_mmap")

    def __post_init__(self) -> None:
        one_of("direct mode: backend", self.backend, tuple(BACKENDS))
        one_of("direct mode: stores", self.stores, STORES)
        one_of("direct mode: without", self.without, WITHOUT)

    @property
    def backend_rules(self) -> Rules:
        """The rules of the backend."""
        return BACKENDS[self.backend]

    def rules_on(self, trace: Trace) -> Table:
        """Return the table of the backend on the platform of `trace`."""
        return direct_table(trace.platform, self.backend_rules, self.stores == "refuse")

    def every_table(self, trace: Trace) -> list[Table]:
        """Return the tables of the backend on all platforms: they read different hooks."""
        platforms = [dataclasses.replace(trace.platform, levels=levels) for levels in (2, 3, 4)]
        refuse = self.stores == "refuse"
        return [direct_table(p, self.backend_rules, refuse) for p in platforms]

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        mechanism = self.mechanism_of_rows(trace, hooks)
        if isinstance(mechanism, Infeasible):
            return mechanism
        numbers, limits, batched = self.machine(trace, hooks)
        rows, in_range, walks = rows_of(trace), in_range_call(trace, hooks), walks_of(trace)
        results = []
        for times in counts_of_rows(trace):
            log_rows = 16 * len(trace) + 4096 if log else 0
            machine = new_machine(trace.platform.vcpus, limits, batched, log_rows)
            run_direct(rows, mechanism, times, in_range, walks, numbers, machine)
            results.append((machine.counts, machine.log))
        return outcome(results, mechanism, self.names, self.delays)

    def machine(self, trace: Trace, hooks: HookSet) -> tuple[Backend, tuple[int, int, bool], bool]:
        """Return the backend's numbers, its buffer's limits, and whether stores are batched.

        Parameters
        ----------
        trace : Trace
            The operations.
        hooks : HookSet
            Those that pin, at least.
        """
        from_birth = not _is_late(hooks) and self.without == "birth"
        by_store = from_birth and self.stores != "refuse"
        numbers = self.backend_rules.numbers(trace.platform, by_store=by_store)
        batched = self.stores == "batched" and trace.platform.vcpus == 1
        return numbers, self.backend_rules.limits, batched

    # ------------------------------------------------------------------ classes
    def pinned_as(self, trace: Trace, pins: HookSet) -> Hashable:
        """Return when address spaces are pinned, and what else depends on it."""
        pinned, unpinned = self._pinned_rows(trace, pins)
        return pinned.tobytes(), unpinned.tobytes(), self.machine(trace, pins)[0]

    def also(self, trace: Trace, hooks: HookSet, carried: Mapping[int, Step]) -> Hashable:
        """Return the operations whose requests a range call carries."""
        requests = {k // 4 for k, step in carried.items() if step == Mechanism.MMU_UPDATE}
        return tuple(int(op) for name, op in RANGES if name in hooks and int(op) in requests)

    # ------------------------------------------------------------------ kinds of rows
    def spared(self, trace: Trace, hook: str, kinds: np.ndarray) -> np.ndarray:
        """Return what the default of a hook makes; a folded flush is the update's in any case."""
        out: np.ndarray = super().spared(trace, hook, kinds) & (kinds != FOLDED)
        return out

    def kinds(self, trace: Trace, pins: HookSet) -> np.ndarray:
        """Return the kind of each row under the hooks that pin (kept with the trace)."""
        pinned, unpinned = self._pinned_rows(trace, pins)
        key = ("direct kinds", self.backend_rules.establish, pinned.tobytes(), unpinned.tobytes())
        if key not in trace.derived:
            states = self._states(trace, pinned, unpinned)
            out = trace["op"].astype(np.uint16) * np.uint16(4) + states
            self._moments(trace, pinned, unpinned, out)
            native = native_rows_of(trace, "flush_tlb_multi") & (trace["op"] == Op.FLUSH_ONE)
            out[native] = NATIVE_FLUSH_ONE
            if self.backend_rules.establish:
                out[folded_flushes(trace)] = FOLDED
            trace.derived[key] = out
        kinds: np.ndarray = trace.derived[key]
        return kinds

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

    def _states(self, trace: Trace, pinned: np.ndarray, unpinned: np.ndarray) -> np.ndarray:
        """Return for each row whether its table is pinned, and its address space the task's."""
        mm, row = trace["mm"], np.arange(len(trace))
        is_pinned = (mm < 0) | ((pinned[mm] < row) & (row < unpinned[mm]))
        current = ((trace["flags"] & Flag.CURRENT_MM) != 0) | (mm == 0)
        out: np.ndarray = (is_pinned * PINNED + current * CURRENT).astype(np.uint16)
        return out

    def _moments(
        self, trace: Trace, pinned: np.ndarray, unpinned: np.ndarray, out: np.ndarray
    ) -> None:
        """Fill in the rows at which address spaces are made, pinned and unpinned."""
        life = lifecycle(trace)
        for mm in range(1, len(trace.mms)):
            start, end, born = int(pinned[mm]), int(unpinned[mm]), int(life.born[mm])
            at_birth = start == born
            if 0 <= born < NEVER and trace.platform.user_root and not at_birth:
                out[born] = BORN_TWICE
            if 0 <= start < NEVER:
                load = trace["op"][start] == Op.LOAD_CR3
                late = PINNED_AT_LOAD if load else PINNED_LATE
                out[start] = BORN_PINNED if at_birth else late
            if 0 <= end < NEVER and start < end:
                out[end] = FREED_PINNED if end == life.freed[mm] else UNPINNED


def _is_late(hooks: HookSet) -> bool:
    """Whether tables are pinned late: when an address space is complete."""
    return "activate_mm" in hooks and "dup_mmap" in hooks
