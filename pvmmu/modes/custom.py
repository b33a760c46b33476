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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import ClassVar, Final

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.base import covered_hooks
from pvmmu.modes.classes import make_partition
from pvmmu.modes.counters import CPU, emit, new_counts, new_log
from pvmmu.modes.events import Event
from pvmmu.modes.notifications import names_of
from pvmmu.modes.outcome import Delays, Infeasible, Outcome, counts_of_rows, outcome
from pvmmu.modes.partition import Partition, Space


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
    CANNOT = 30


_NAMES: Final = names_of(Becomes)
_DELAYS: Final = Delays(frozenset((Becomes.UPDATE,)))
_WORDS: Final = {b.name.lower(): b for b in Becomes if b != Becomes.CANNOT}


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

    def becomes(self, hooks: HookSet) -> tuple[Becomes, str]:
        """Return what the operation becomes under `hooks`, and why not."""
        word = self.hooked if any(name in hooks for name in self.hooks) else self.unhooked
        if word.startswith("cannot:"):
            return Becomes.CANNOT, word.removeprefix("cannot:").strip()
        return _WORDS[word], ""


class CustomMode:
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
    rules: ClassVar[Mapping[Op, Rule]] = {}
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

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        names = {name for rule in self.rules.values() for name in rule.hooks}
        return covered_hooks(trace, tuple(names))

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition hook sets into classes that this mode carries alike on a trace."""
        present = {Op(o) for o in np.unique(trace["op"])}

        def signature(_: HookSet, switch: Sequence[str], subset: HookSet) -> object:
            found = []
            for op in sorted(present & self.rules.keys()):
                if set(self.rules[op].hooks) & set(switch):
                    becomes, why = self.rules[op].becomes(subset)
                    if becomes == Becomes.CANNOT:
                        return Infeasible(why)
                    found.append(int(becomes))
            return tuple(found)

        return make_partition(space, (), _independent(self.rules.values()), signature)

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set."""
        table, reasons = np.zeros(N_OPS, np.uint8), {}
        for op, rule in self.rules.items():
            table[op], reasons[op] = rule.becomes(hooks)
        mechanism = table[trace["op"]]
        broken = np.flatnonzero(mechanism == Becomes.CANNOT)
        if len(broken):
            row = int(broken[0])
            return Infeasible(reasons[Op(trace["op"][row])], row)
        runs = []
        for times in counts_of_rows(trace):
            runs.append((new_counts(), new_log(3 * len(trace) + 64 if log else 0)))
            _run_custom(mechanism, trace["cpu"], times, self.queue, *runs[-1])
        return outcome(runs, mechanism, _NAMES, _DELAYS)


def _independent(rules: Iterable[Rule]) -> tuple[tuple[str, ...], ...]:
    """Return groups of hooks that share no operation."""
    groups: list[set[str]] = []
    for rule in rules:
        mine = set(rule.hooks)
        joined = [g for g in groups if g & mine]
        groups = [g for g in groups if not g & mine] + [mine.union(*joined)]
    order = list(catalogue())
    return tuple(tuple(sorted(g, key=order.index)) for g in groups if g)


@kernel
def _run_custom(mechanism, cpu, times, capacity, counts, log):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    mechanism, cpu : uint8[row]
        A `Becomes` for each row, none of them ``CANNOT``; the CPU.
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
