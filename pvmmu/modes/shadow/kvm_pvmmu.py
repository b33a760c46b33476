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
from enum import IntEnum
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.vocabulary import SET_UPPER_OPS, Op
from pvmmu.modes.base import one_of
from pvmmu.modes.notifications import STORES, TABLES, upper_hooks
from pvmmu.modes.outcome import Delays
from pvmmu.modes.rules import As, Rule, Table, no_hooks
from pvmmu.modes.shadow.kvm_pvmmu_kernel import FLUSH_BYTES, WRITE_BYTES, Mechanism as M, run_kvm
from pvmmu.modes.shadow.mechanisms import RULES, Mechanism
from pvmmu.modes.shadow.prepare import Rows, new_state
from pvmmu.modes.shadow.replayed import ShadowMode
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
_ALONE: Final = no_hooks(RULES)


def _told(op: Op, hooks: tuple[str, ...], told: M = M.RECORD) -> Rule:
    """Told if a hook carries it, else as in shadow mode without hooks."""
    return Rule(hooks, told, _ALONE.get(op, Mechanism.NOTHING))


#: Shadow mode without hooks, but for what the interface tells.
TOLD: Final[Table] = {
    **_ALONE,
    Op.SET_PTE: _told(Op.SET_PTE, STORES[Op.SET_PTE]),
    Op.PTE_CLEAR: _told(Op.PTE_CLEAR, ("pte_clear",)),
    # the default of a protection change is a clear and a store, the latter hooked or not
    Op.MODIFY_PROT_START: Rule(("ptep_modify_prot",), Mechanism.NOTHING, Mechanism.STORE),
    Op.MODIFY_PROT_COMMIT: Rule(("ptep_modify_prot",), M.RECORD, As(Op.SET_PTE)),
    **{op: _told(op, upper_hooks(op)) for op in SET_UPPER_OPS},
    **{
        op: _told(op, hooks, M.RELEASE) for op, hooks in TABLES.items()
        if op.name.startswith("RELEASE")
    },
    Op.FLUSH_USER: _told(Op.FLUSH_USER, ("flush_tlb_user",), M.FLUSH_RECORD),
    Op.LAZY_ENTER: Rule(("lazy_mmu",), M.BRACKET, Mechanism.NOTHING),
    Op.LAZY_LEAVE: Rule(("lazy_mmu",), M.BRACKET_END, Mechanism.NOTHING),
    Op.LAZY_RESUME: As(Op.LAZY_ENTER),
    Op.LAZY_PAUSE: As(Op.LAZY_LEAVE),
}  # fmt: skip


@dataclass(frozen=True)
class KvmPvmmu(ShadowMode):
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
    rules: ClassVar[Table] = TOLD
    mechanisms: ClassVar[type[IntEnum]] = M
    delays: ClassVar[Delays] = Delays(
        frozenset((M.RECORD, M.FLUSH_RECORD)), apart=frozenset((M.RELEASE,))
    )
    spares: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        one_of("kvm-pvmmu mode: shadow", self.shadow, SHADOWS)
        for what, value in (("queue", self.queue), ("buffer", self.buffer)):
            if not isinstance(value, int) or not WRITE_BYTES <= value <= LARGEST:
                raise ModeError(
                    f"kvm-pvmmu mode: {what} must be {WRITE_BYTES} to {LARGEST} bytes, "
                    f"not {value!r}"
                )

    @property
    def names(self) -> dict[int, str]:
        """Names of the mechanisms: those of shadow mode, and what is told."""
        alone = {int(m): m.name.lower().replace("_", " ") for m in Mechanism}
        return alone | super().names

    def replayed(
        self, rows: Rows, mechanism: np.ndarray, log: bool = False, seen: np.ndarray = UNSEEN
    ) -> State:
        """Replay and return the state after the last row; see `ShadowMode.replayed`."""
        rules = IMPLEMENTATIONS[f"kvm-{self.shadow}"]
        state = new_state(rows, mechanism, rules, log, rules.pages)
        cpus = rows.trace.platform.vcpus
        queue = np.zeros((cpus, self.queue // FLUSH_BYTES + 1), np.int64)
        run_kvm(
            state.address, np.bool_(rows.trace.platform.pti), seen,
            queue, np.zeros((cpus, 2), np.int64), np.array([self.queue, self.buffer], np.int64),
        )  # fmt: skip
        return state
