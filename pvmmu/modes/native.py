"""No hypervisor: every operation is an instruction, whatever is hooked.

Comparisons between modes show this for the platform of the trace: a trace recorded under Xen PV is
that of a guest without PSE, PGE and PCID, with G in its user entries, which flushes a little more
than the same kernel does on bare hardware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import ClassVar, Final

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, SET_UPPER_OPS, Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.classes import make_partition
from pvmmu.modes.counters import USED, new_counts, new_log
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Infeasible, Outcome, counts_of_rows, outcome
from pvmmu.modes.partition import Partition, Space


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


_EVENT: Final = {
    Instruction.STORE: Event.STORE,
    Instruction.LOCKED: Event.LOCKED,
    Instruction.INVLPG: Event.INVLPG,
    Instruction.CR3_LOAD: Event.CR3_LOAD,
    Instruction.FLUSH_ALL: Event.FLUSH_ALL,
    Instruction.IPI: Event.IPI,
    Instruction.FAULT: Event.FAULT,
}
_OF_OP: Final = {
    Op.SET_PTE: Instruction.STORE,
    Op.PTE_CLEAR: Instruction.STORE,
    Op.MODIFY_PROT_START: Instruction.LOCKED,
    Op.MODIFY_PROT_COMMIT: Instruction.STORE,
    Op.PTE_GET_AND_CLEAR: Instruction.LOCKED,
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
_NAMES: Final = {int(i): i.name.lower().replace("_", " ") for i in Instruction}


@dataclass(frozen=True)
class Native:
    """The guest kernel on bare hardware."""

    name: ClassVar[str] = "native"
    title: ClassVar[str] = "native"

    @property
    def spec(self) -> str:
        """``native``."""
        return "native"

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return no hook: none changes anything."""
        return HookSet()

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Return the one class of all hook sets."""
        return make_partition(space, (), (), lambda *_: None)

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace; the hook set does not matter."""
        mechanism, event, names = mechanisms(trace)
        carried = native_rows(mechanism)
        runs = [_count(event, n, carried, trace["cpu"], log) for n in counts_of_rows(trace)]
        return outcome(runs, mechanism, names)


def mechanisms(trace: Trace) -> tuple[np.ndarray, np.ndarray, Mapping[int, str]]:
    """Return the instruction and the event of each row, and names of the instructions."""
    table = np.zeros(N_OPS, np.uint8)
    for op, instruction in _OF_OP.items():
        table[op] = instruction
    mechanism = table[trace["op"]]
    # zap of a dying address space needs no lock: native_local_ptep_get_and_clear
    dying = (trace["op"] == Op.PTE_GET_AND_CLEAR) & ((trace["flags"] & Flag.FULLMM) != 0)
    mechanism[dying] = Instruction.STORE
    event = np.zeros(len(Instruction), np.int64)
    for instruction, e in _EVENT.items():
        event[instruction] = e
    return mechanism, event[mechanism], _NAMES


def native_rows(mechanism: np.ndarray) -> np.ndarray:
    """Return which rows are anything at all natively."""
    out: np.ndarray = mechanism != Instruction.NOTHING
    return out


def _count(
    event: np.ndarray, amount: np.ndarray, carried: np.ndarray, cpu: np.ndarray, log: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and log of the rows in `carried`."""
    counts, rows = new_counts(), np.flatnonzero(carried)
    np.add.at(counts, event[rows], amount[rows])
    if not log:
        return counts, new_log()
    counts[USED] = len(rows)
    return counts, np.stack([rows, event[rows], amount[rows], cpu[rows]], axis=1)
