"""Shadow paging: the hypervisor builds tables of its own and keeps them like the guest's.

The guest's tables are write-protected while they are shadowed, so the hypervisor sees all changes,
hooked or not: it emulates a write to an upper table; a level-1 table it lets go out of sync, until
the guest flushes its TLB. What the guest does with its memory takes hidden faults, which fill the
shadow, besides those that are reflected to the guest. Which of this happens when differs between
implementations: see `pvmmu.modes.shadow.rules`.

What is not in a trace is assumed:

* the kernel's direct map is shadowed before the trace begins; tables are written through it
  alone;
* of the kernel's half each new top-level shadow meets `REGIONS`, at once; kernel tables below are
  shared, and shadowed already;
* user tables grant all rights above level 1, so that a table has one shadow per level;
* consecutive frames are consecutive in the machine (Xen's hash of tables out of sync);
* rows without ``TOUCH`` (recordings) touch what they fault on, when the fault is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS
from pvmmu.hooks import HookSet
from pvmmu.modes.all_sets.shadow import Interface, count_branch
from pvmmu.modes.base import covered_hooks, one_of
from pvmmu.modes.classes import by_mechanism
from pvmmu.modes.counters import totals
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Delays, Infeasible, Outcome, outcome
from pvmmu.modes.partition import Branch, Partition, Space
from pvmmu.modes.shadow.engine import run_shadow
from pvmmu.modes.shadow.mechanisms import HOOKS, NAMES, QUEUE, Mechanism, mechanism_table
from pvmmu.modes.shadow.prepare import Rows, first_rows, mechanisms_of_rows, new_state, rows_of
from pvmmu.modes.shadow.rules import IMPLEMENTATIONS
from pvmmu.modes.shadow.state import State
from pvmmu.modes.shadow.substitutes import UNSEEN

#: Fewest shadow pages (KVM_MIN_ALLOC_MMU_PAGES, Linux 6.1 arch/x86/include/asm/kvm_host.h).
LEAST_PAGES: Final = 64
_DEFAULT: Final = "kvm-6.1"
_DELAYS: Final = Delays(frozenset((Mechanism.CALL_STORE,)))
#: Hooks that act on the same operations, and the others, each by itself.
_TOGETHER: Final = (
    "set_pte", "set_pte_at", "set_ptes", "ptep_get_and_clear", "get_and_clear_ptes",
    "ptep_set_wrprotect", "wrprotect_ptes", "ptep_test_and_clear_young", "pte_clear",
    "ptep_modify_prot",
)  # fmt: skip
SWITCHES: Final = (_TOGETHER, *((h,) for h in HOOKS if h not in _TOGETHER))


@dataclass(frozen=True)
class Shadow:
    """Shadow paging as some hypervisor does it.

    Parameters
    ----------
    code : str
        Whose rules: a key of `pvmmu.modes.shadow.rules.IMPLEMENTATIONS`.
    pages : int
        Shadow pages before old ones are recycled; 0: as many as the implementation has.

    Raises
    ------
    ModeError
        There is no such implementation, or too few pages.
    """

    code: str = _DEFAULT
    pages: int = 0
    name: ClassVar[str] = "shadow"
    title: ClassVar[str] = "shadow"

    def __post_init__(self) -> None:
        one_of("shadow mode: code", self.code, tuple(IMPLEMENTATIONS))
        if not isinstance(self.pages, int) or (self.pages and self.pages < LEAST_PAGES):
            raise ModeError(f"shadow mode: pages must be 0 or at least {LEAST_PAGES}")

    @property
    def spec(self) -> str:
        """``shadow``, and what is not the default."""
        parts = [f"code={self.code}"] if self.code != _DEFAULT else []
        parts += [f"pages={self.pages}"] if self.pages else []
        return "shadow" + (":" + ",".join(parts) if parts else "")

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        return covered_hooks(trace, HOOKS)

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition hook sets into classes that this mode carries alike on a trace."""
        return by_mechanism(trace, space, SWITCHES, mechanism_table)

    def count_branch(self, trace: Trace, branch: Branch) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the counts of all classes of `branch` on `trace`, see `all_sets.counting`.

        Least and most, int64[class, N_EVENTS] each; None where they cannot be counted at once.
        """
        rows = rows_of(trace)

        def replayed(hooks: HookSet) -> tuple[np.ndarray, np.ndarray]:
            seen = np.zeros((N_OPS, 2), np.int64)
            return totals(
                self._state(rows, mechanisms_of_rows(rows, hooks), seen=seen).counts
            ), seen

        told = Interface(
            SWITCHES, mechanism_table, replayed, Mechanism.CALL_STORE, Mechanism.CALL_UNSHADOW,
            Event.VMCALL, Event.VMCALL_UPDATES, False, QUEUE, False,
        )  # fmt: skip
        return count_branch(rows, branch, told)

    def _state(
        self, rows: Rows, mechanism: np.ndarray, log: bool = False, seen: np.ndarray = UNSEEN
    ) -> State:
        """Replay and return the state behind the last row."""
        rules = IMPLEMENTATIONS[self.code]
        state = new_state(rows, mechanism, rules, log, self.pages or rules.pages)
        pti = np.bool_(rows.trace.platform.pti)
        run_shadow(state.address, pti, seen)
        return state

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        rows = rows_of(trace)
        mechanism = mechanisms_of_rows(rows, hooks)
        state = self._state(rows, mechanism, log)
        state.log[:, 0] = rows.order[state.log[:, 0]]
        mechanism = mechanism[first_rows(rows.order, len(trace))]
        return outcome([(state.counts, state.log)], mechanism, NAMES, _DELAYS)
