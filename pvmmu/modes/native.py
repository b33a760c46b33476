"""No hypervisor: every operation is an instruction, whatever is hooked.

Comparisons between modes show this for the platform of the trace: a trace recorded under Xen PV is
that of a guest without PSE, PGE and PCID, with G in its user entries, which flushes a little more
than the same kernel does on bare hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique
from typing import ClassVar, Final

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, SET_UPPER_OPS, Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.counters import USED, new_counts, new_log
from pvmmu.modes.events import Event
from pvmmu.modes.rules import Table, TableMode

#: Kind of a clear in an address space that dies.
DYING: Final = N_OPS


@unique
class Instruction(IntEnum):
    """What an operation is natively."""

    NOTHING = 0
    STORE = 1
    LOCKED = 2
    INVLPG = 3
    CR3_LOAD = 4
    FLUSH_ALL = 5
    IPI = 6
    FAULT = 7


#: What is counted for each.
_EVENTS: Final = {
    Instruction.STORE: Event.STORE,
    Instruction.LOCKED: Event.LOCKED,
    Instruction.INVLPG: Event.INVLPG,
    Instruction.CR3_LOAD: Event.CR3_LOAD,
    Instruction.FLUSH_ALL: Event.FLUSH_ALL,
    Instruction.IPI: Event.IPI,
    Instruction.FAULT: Event.FAULT,
}
_RULES: Final[Table] = {
    Op.SET_PTE: Instruction.STORE,
    Op.PTE_CLEAR: Instruction.STORE,
    Op.MODIFY_PROT_START: Instruction.LOCKED,
    Op.MODIFY_PROT_COMMIT: Instruction.STORE,
    Op.PTE_GET_AND_CLEAR: Instruction.LOCKED,
    # zap of a dying address space needs no lock: native_local_ptep_get_and_clear
    DYING: Instruction.STORE,
    Op.PTE_WRPROTECT: Instruction.LOCKED,
    Op.PTE_CLEAR_YOUNG: Instruction.LOCKED,
    Op.PTE_RMW: Instruction.LOCKED,
    **dict.fromkeys(SET_UPPER_OPS, Instruction.STORE),
    Op.LOAD_CR3: Instruction.CR3_LOAD,
    Op.FLUSH_ONE: Instruction.INVLPG,
    Op.FLUSH_USER: Instruction.FLUSH_ALL,
    Op.FLUSH_KERNEL: Instruction.FLUSH_ALL,
    Op.SEND_IPI: Instruction.IPI,
    Op.FAULT: Instruction.FAULT,
}


@dataclass(frozen=True)
class Native(TableMode):
    """The guest kernel on bare hardware."""

    name: ClassVar[str] = "native"
    title: ClassVar[str] = "native"
    rules: ClassVar[Table] = _RULES
    mechanisms = Instruction

    def kinds(self, trace: Trace, pins: HookSet) -> np.ndarray:
        """Return the operation of each row; clears of a dying address space are apart."""
        dying = (trace["op"] == Op.PTE_GET_AND_CLEAR) & ((trace["flags"] & Flag.FULLMM) != 0)
        return np.where(dying, np.uint8(DYING), trace["op"])

    def count(
        self, trace: Trace, mechanism: np.ndarray, times: np.ndarray, log: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Count the rows that are anything at all."""
        counts, rows = new_counts(), np.flatnonzero(mechanism != Instruction.NOTHING)
        event = events_of_instructions()[mechanism[rows]]
        np.add.at(counts, event, times[rows])
        if not log:
            return counts, new_log()
        counts[USED] = len(rows)
        return counts, np.stack([rows, event, times[rows], trace["cpu"][rows]], axis=1)


def events_of_instructions() -> np.ndarray:
    """Return the event that is counted for each `Instruction`, int64[instruction]."""
    out = np.zeros(len(Instruction), np.int64)
    for instruction, event in _EVENTS.items():
        out[instruction] = event
    return out
