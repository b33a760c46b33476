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
from enum import IntEnum
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.modes.base import one_of
from pvmmu.modes.outcome import Delays
from pvmmu.modes.rules import Table
from pvmmu.modes.shadow.engine import run_shadow
from pvmmu.modes.shadow.mechanisms import RULES, Mechanism
from pvmmu.modes.shadow.prepare import Rows, new_state
from pvmmu.modes.shadow.replayed import ShadowMode
from pvmmu.modes.shadow.rules import IMPLEMENTATIONS
from pvmmu.modes.shadow.state import State
from pvmmu.modes.shadow.substitutes import UNSEEN

#: Fewest shadow pages (KVM_MIN_ALLOC_MMU_PAGES, Linux 6.1 arch/x86/include/asm/kvm_host.h).
LEAST_PAGES: Final = 64
_DEFAULT: Final = "kvm-6.1"


@dataclass(frozen=True)
class Shadow(ShadowMode):
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
    rules: ClassVar[Table] = RULES
    mechanisms: ClassVar[type[IntEnum]] = Mechanism
    delays: ClassVar[Delays] = Delays(frozenset((Mechanism.CALL_STORE,)))
    spares: ClassVar[tuple[str, ...]] = ("flush_tlb_multi",)

    def __post_init__(self) -> None:
        one_of("shadow mode: code", self.code, tuple(IMPLEMENTATIONS))
        if not isinstance(self.pages, int) or (self.pages and self.pages < LEAST_PAGES):
            raise ModeError(f"shadow mode: pages must be 0 or at least {LEAST_PAGES}")

    def replayed(
        self, rows: Rows, mechanism: np.ndarray, log: bool = False, seen: np.ndarray = UNSEEN
    ) -> State:
        """Replay and return the state after the last row; see `ShadowMode.replayed`."""
        rules = IMPLEMENTATIONS[self.code]
        state = new_state(rows, mechanism, rules, log, self.pages or rules.pages)
        run_shadow(state.address, np.bool_(rows.trace.platform.pti), seen)
        return state
