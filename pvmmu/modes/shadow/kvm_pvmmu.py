"""KVM's pv mmu (2008): shadow paging as before, and hypercalls for the stores that are hooked.

The host write-protects the tables that it shadows, so nothing must be told: an unhooked write
is noticed. A hooked store is a record of 24 bytes for ``KVM_HC_MMU_OP``, its table shadowed or not;
in a lazy MMU bracket records wait in a queue of 1,024 bytes, and the entries are written when they
are sent: an unhooked write in a bracket overtakes them. The host takes at most 512 bytes of a call
and says how many it used, and the guest calls again for the rest: a full queue of 42 stores is two
hypercalls. A flush is a record of 8 bytes and waits, too; the release of a table is a call of its
own that takes nothing along. Loads of CR3, INVLPG and flushes of global entries are not hooked:
they exit.

What the shadows do is up to the generation of KVM's code (``shadow``), by the rules of shadow mode:
2.6.20 and 2.6.23 emulate each write, from 2.6.28 on tables of PTEs go out of sync. The interface
was there with the second and third; under the others it is counterfactual.

Source: Linux v2.6.27 arch/x86/kernel/kvm.c, arch/x86/kvm/mmu.c (kvm_pv_mmu_op, mmu_unshadow),
include/asm-x86/kvm_para.h; the shadows: `pvmmu.modes.shadow.rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, SET_UPPER_OPS, Op
from pvmmu.hooks import NO_HOOKS, HookSet
from pvmmu.modes.all_sets.shadow import Interface, count_branch
from pvmmu.modes.base import covered_hooks, one_of
from pvmmu.modes.classes import by_mechanism
from pvmmu.modes.counters import totals
from pvmmu.modes.events import Event
from pvmmu.modes.notifications import STORES, TABLES, names_of, upper_hooks
from pvmmu.modes.outcome import Delays, Outcome, outcome
from pvmmu.modes.partition import Branch, Partition, Space
from pvmmu.modes.shadow.kvm_pvmmu_kernel import FLUSH_BYTES, WRITE_BYTES, Mechanism, run_kvm
from pvmmu.modes.shadow.mechanisms import NAMES, mechanism_table as unhooked
from pvmmu.modes.shadow.prepare import Rows, carried, first_rows, new_state, rows_of
from pvmmu.modes.shadow.rules import IMPLEMENTATIONS
from pvmmu.modes.shadow.state import State
from pvmmu.modes.shadow.substitutes import UNSEEN

#: Bytes of the guest's queue (MMU_QUEUE_SIZE), and of the host's buffer (kvm_pv_mmu_op_buffer).
QUEUE, BUFFER = 1024, 512
#: Greatest queue that a replay has room for.
LARGEST: Final = 32768
#: Generations of KVM's shadow code.
SHADOWS: Final = tuple(n.removeprefix("kvm-") for n in IMPLEMENTATIONS if n.startswith("kvm-"))
_DEFAULT: Final = "2.6.23"
_NAMES: Final = NAMES | names_of(Mechanism)
_DELAYS: Final = Delays(
    frozenset((Mechanism.RECORD, Mechanism.FLUSH_RECORD)), apart=frozenset((Mechanism.RELEASE,))
)
_RELEASED: Final = {op: names for op, names in TABLES.items() if op.name.startswith("RELEASE")}
#: The hooks that this mode reads, in groups that act independently of each other.
SWITCHES: Final = (
    ("set_pte", "set_pte_at", "set_ptes", "ptep_modify_prot"), ("pte_clear",), ("set_pmd",),
    ("set_pud",), ("set_p4d",), ("release_pte",), ("release_pmd",), ("release_pud",),
    ("flush_tlb_user",), ("lazy_mmu",),
)  # fmt: skip
HOOKS: Final = tuple(name for switch in SWITCHES for name in switch)


@dataclass(frozen=True)
class KvmPvmmu:
    """Shadow paging with hypercalls for stores.

    Parameters
    ----------
    shadow : str
        Generation of the shadow code: ``2.6.20``, ``2.6.23``, ``2.6.28`` or ``6.1``.
    queue, buffer : int
        Bytes that wait in the guest, and that the host takes of a call.

    Raises
    ------
    ModeError
        No such generation, or no room for a record.
    """

    shadow: str = _DEFAULT
    queue: int = QUEUE
    buffer: int = BUFFER
    name: ClassVar[str] = "kvm-pvmmu"
    title: ClassVar[str] = "shadow with batched stores (KVM, 2008)"

    def __post_init__(self) -> None:
        one_of("kvm-pvmmu mode: shadow", self.shadow, SHADOWS)
        for what, value in (("queue", self.queue), ("buffer", self.buffer)):
            if not isinstance(value, int) or not WRITE_BYTES <= value <= LARGEST:
                raise ModeError(
                    f"kvm-pvmmu mode: {what} must be {WRITE_BYTES} to {LARGEST} bytes, "
                    f"not {value!r}"
                )

    @property
    def spec(self) -> str:
        """``kvm-pvmmu``, followed by the parameters that differ from the default."""
        given = (
            ("shadow", self.shadow, _DEFAULT), ("queue", self.queue, QUEUE),
            ("buffer", self.buffer, BUFFER),
        )  # fmt: skip
        return "kvm-pvmmu" + "".join(f":{k}={v}" for k, v, default in given if v != default)

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
            SWITCHES, mechanism_table, replayed, Mechanism.RECORD, Mechanism.RELEASE, Event.MMU_OP,
            Event.MMU_OP_RECORDS, True, 0, True,
        )  # fmt: skip
        return count_branch(rows, branch, told)

    def _state(
        self, rows: Rows, mechanism: np.ndarray, log: bool = False, seen: np.ndarray = UNSEEN
    ) -> State:
        """Replay and return the state behind the last row."""
        rules = IMPLEMENTATIONS[f"kvm-{self.shadow}"]
        state = new_state(rows, mechanism, rules, log, rules.pages)
        cpus = rows.trace.platform.vcpus
        queue = np.zeros((cpus, self.queue // FLUSH_BYTES + 1), np.int64)
        run_kvm(
            state.address, np.bool_(rows.trace.platform.pti), seen,
            queue, np.zeros((cpus, 2), np.int64), np.array([self.queue, self.buffer], np.int64),
        )  # fmt: skip
        return state

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome:
        """Replay a trace under a hook set: all of them can run."""
        rows = rows_of(trace)
        mechanism = mechanisms_of_rows(rows, hooks)
        state = self._state(rows, mechanism, log)
        state.log[:, 0] = rows.order[state.log[:, 0]]
        mechanism = mechanism[first_rows(rows.order, len(trace))]
        return outcome([(state.counts, state.log)], mechanism, _NAMES, _DELAYS)


def mechanism_table(hooks: HookSet) -> np.ndarray:
    """Return the mechanism of each operation, uint8[N_OPS]: as in shadow mode if it is not told."""
    out, have = unhooked(NO_HOOKS), set(hooks)
    if have & set(STORES[Op.SET_PTE]):
        out[[Op.SET_PTE, Op.MODIFY_PROT_COMMIT]] = Mechanism.RECORD
    if "pte_clear" in have:
        out[Op.PTE_CLEAR] = Mechanism.RECORD
    if "ptep_modify_prot" in have:
        out[Op.MODIFY_PROT_START], out[Op.MODIFY_PROT_COMMIT] = 0, Mechanism.RECORD
    for op in SET_UPPER_OPS:
        if have & set(upper_hooks(op)):
            out[op] = Mechanism.RECORD
    for op, names in _RELEASED.items():
        if have & set(names):
            out[op] = Mechanism.RELEASE
    if "flush_tlb_user" in have:
        out[Op.FLUSH_USER] = Mechanism.FLUSH_RECORD
    if "lazy_mmu" in have:
        out[[Op.LAZY_ENTER, Op.LAZY_RESUME]] = Mechanism.BRACKET
        out[[Op.LAZY_LEAVE, Op.LAZY_PAUSE]] = Mechanism.BRACKET_END
    return out


def mechanisms_of_rows(rows: Rows, hooks: HookSet) -> np.ndarray:
    """Return what carries each row under a hook set, uint8[row]."""
    return carried(rows, mechanism_table(hooks))
