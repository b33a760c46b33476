"""A mode of your own: a table that says what each operation becomes.

    from pvmmu.modes import register
    from pvmmu.modes.custom import CustomMode, Rule
    from pvmmu.guest.trace import Op

    @register
    class Shy(CustomMode):
        name = "shy"
        rules = {
            Op.SET_PTE: Rule(("set_pte", "set_pte_at"), "update", "trap"),
            Op.PTE_GET_AND_CLEAR: Rule(("ptep_get_and_clear",), "update", "trap"),
            Op.ALLOC_PTE: Rule(("alloc_pte",), "call", "cannot: a new table is never announced"),
            Op.LAZY_ENTER: Rule(("lazy_mmu",), "bracket"),
            Op.LAZY_LEAVE: Rule(("lazy_mmu",), "end"),
        }
        queue = 16

and ``replay(trace, "linux-6.1", "shy")``, `explain`, `sweep`, the search over all hook sets and
``truth.compare`` take it like any other mode. An operation that has no rule costs nothing.

What an operation becomes:

=============  ====================================================================================
``update``     an update for the hypervisor: a call, or in a bracket a place in the queue
``call``       a call that cannot wait, and takes the queue along
``trap``       a trap, emulated
``store``      a plain store
``fault``      a page fault that the guest gets
``nothing``    nothing
``bracket``    updates may wait from here on
``end``        ... up to here: the queue is sent
``cannot:``    and a reason: a design without the hook cannot run
=============  ====================================================================================

A hook of your own: `pvmmu.hooks.custom.register_hook`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import ClassVar, Final

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import Op
from pvmmu.hooks import HookSet
from pvmmu.modes import rules as table
from pvmmu.modes.counters import CPU, emit, new_counts, new_log
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Delays
from pvmmu.modes.rules import Cannot, Step, Table, TableMode


@unique
class Becomes(IntEnum):
    """What an operation becomes."""

    NOTHING = 0
    STORE = 1
    UPDATE = 2
    CALL = 3
    TRAP = 4
    FAULT = 5
    BRACKET = 6
    END = 7


_WORDS: Final = {b.name.lower(): b for b in Becomes}


@dataclass(frozen=True)
class Rule:
    """What an operation becomes.

    Parameters
    ----------
    hooks : tuple of str
        Any one of them carries it; none: it cannot be hooked.
    hooked, unhooked : str
        See the module.

    Raises
    ------
    ModeError, HookError
        A word or a hook does not exist.
    """

    hooks: tuple[str, ...] = ()
    hooked: str = "nothing"
    unhooked: str = "nothing"

    def __post_init__(self) -> None:
        HookSet.of(*self.hooks)
        for word in (self.hooked, self.unhooked):
            if word not in _WORDS and not word.startswith("cannot:"):
                known = ", ".join(_WORDS)
                raise ModeError(f"a rule says {word!r}; it may say {known} or 'cannot: why'")

    @property
    def step(self) -> Step:
        """The rule as the table of a mode says it."""
        hooked, unhooked = (
            Cannot(word.removeprefix("cannot:").strip())
            if word.startswith("cannot:")
            else _WORDS[word]
            for word in (self.hooked, self.unhooked)
        )
        return table.Rule(self.hooks, hooked, unhooked)


class CustomMode(TableMode):
    """A mode that a table of rules describes; derive a class and set its fields.

    Attributes
    ----------
    name : str
        Of the mode, without ``:``.
    title : str
        What to call it in lists; by default its name.
    rules : mapping of Op to Rule
        What operations become.
    queue : int
        Updates that a queue takes before a call sends it.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    rules: ClassVar[Mapping[Op, Rule]] = {}  # type: ignore[assignment]
    mechanisms = Becomes
    delays: ClassVar[Delays] = Delays(frozenset((Becomes.UPDATE,)))
    queue: ClassVar[int] = 32

    def __init__(self) -> None:
        if not self.name or not self.rules:
            raise ModeError(f"mode {type(self).__name__} has no name or no rules")
        if not isinstance(self.queue, int) or self.queue < 1:
            raise ModeError(f"mode {self.name!r}: queue must be a whole number from 1")

    @property
    def spec(self) -> str:
        """Name of the mode."""
        return self.name

    def rules_on(self, trace: Trace) -> Table:
        """Return the rules as a table of mechanisms."""
        return {op: rule.step for op, rule in self.rules.items()}

    def count(
        self, trace: Trace, mechanism: np.ndarray, times: np.ndarray, log: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry the rows."""
        counts, lines = new_counts(), new_log(3 * len(trace) + 64 if log else 0)
        _run_custom(mechanism, trace["cpu"], times, self.queue, counts, lines)
        return counts, lines


@kernel
def _run_custom(mechanism, cpu, times, capacity, counts, log):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    mechanism, cpu : uint8[row]
        A `Becomes` for each row; the CPU.
    times : int64[row]
        How often each operation is made.
    capacity : int
        Updates that a queue takes.
    counts : int64[N_EVENTS + 2]
        Receives the counts.
    log : int64[n, 4]
        Receives the log.
    """
    waiting = np.zeros(256, np.int64)
    lazy = np.zeros(256, np.bool_)
    for row in range(mechanism.shape[0]):
        how, c, n = mechanism[row], cpu[row], times[row]
        counts[CPU] = c
        if how == Becomes.STORE:
            emit(counts, log, row, Event.STORE, n)
        elif how == Becomes.TRAP:
            emit(counts, log, row, Event.CUSTOM_TRAP, n)
        elif how == Becomes.FAULT:
            emit(counts, log, row, Event.PAGE_FAULT, n)
        elif how == Becomes.UPDATE:
            emit(counts, log, row, Event.CUSTOM_UPDATES, n)
            for _ in range(n):
                waiting[c] += 1
                if not lazy[c] or waiting[c] >= capacity:
                    emit(counts, log, row, Event.CUSTOM_CALL, ONE)
                    waiting[c] = 0
        elif how == Becomes.CALL:
            emit(counts, log, row, Event.CUSTOM_CALL, n)
            waiting[c] = 0
        elif how == Becomes.BRACKET:
            lazy[c] = True
        elif how == Becomes.END:
            lazy[c] = False
            if waiting[c] > 0:
                emit(counts, log, row, Event.CUSTOM_CALL, ONE)
                waiting[c] = 0
