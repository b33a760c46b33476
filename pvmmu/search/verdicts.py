"""Which hook sets work in a mode: a verdict for every set, over many streams together.

A set dies, or loses pages, on some stream or on none: that a search looks at two streams which
never free a table does not make a set that cannot free tables work. So every set is judged on
excerpts of all shipped streams (`pvmmu.guest.excerpts`) beside those searched. Nothing is sampled:
what carries a row depends on one group of hooks and on when tables are pinned, so the sets are
judged by what their settings mean for the rows of the excerpts, each combination once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from pvmmu.errors import SearchError
from pvmmu.guest.excerpts import excerpts
from pvmmu.guest.load_trace import load_trace, trace_names
from pvmmu.guest.provenance import Platform
from pvmmu.guest.trace import Trace
from pvmmu.hooks import NO_HOOKS, HookSet
from pvmmu.modes.base import Mode
from pvmmu.modes.effects import effects_table
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Branch, Partition, Space, index_in
from pvmmu.modes.soundness import Level, Verdict, judge_effects, worst
from pvmmu.search.cheapest_subset import Layout


@dataclass(frozen=True)
class Verdicts:
    """The verdict on every hook set of a space in a mode.

    Parameters
    ----------
    mode : str
        Text of the mode.
    partition : Partition
        Sets that nothing tells apart; the infeasible ones die on some stream.
    levels : uint8[class]
        A `Level` for each feasible class.
    verdicts : tuple of Verdict
        Those that occur.
    number : int32[class]
        Which of them each class has.
    """

    mode: str
    partition: Partition = field(repr=False)
    levels: np.ndarray = field(repr=False)
    verdicts: tuple[Verdict, ...] = field(repr=False)
    number: np.ndarray = field(repr=False)

    def admits(self, level: Level) -> np.ndarray:
        """Return which classes are no worse than `level`: bool[class]."""
        out: np.ndarray = self.levels <= level
        return out

    def level_of(self, hooks: HookSet) -> Level:
        """Return how well `hooks` work."""
        found = self._class_of(hooks)
        return Level.DIES if found < 0 else Level(int(self.levels[found]))

    def of(self, hooks: HookSet) -> Verdict | None:
        """Return the verdict on `hooks`; None if they die (`pvmmu.modes.soundness` says why)."""
        found = self._class_of(hooks)
        return None if found < 0 else self.verdicts[int(self.number[found])]

    def _class_of(self, hooks: HookSet) -> int:
        space = self.partition.space
        return int(self.partition.cube((), hooks & space.free | space.always)[0])


def witnesses(traces: Iterable[Trace]) -> tuple[Trace, ...]:
    """Return excerpts of some streams, and of all that ship with the package for such a guest.

    Parameters
    ----------
    traces : iterable of Trace
        Streams of a search. Shipped ones count if their platform is that of one of these, but for
        the number of CPUs.
    """
    traces = list(traces)
    wanted = {_guest(t) for t in traces}
    known = [t for t in _shipped() if _guest(t) in wanted]
    names = {t.name for t in known}
    return excerpts([*known, *(t for t in traces if t.name not in names)])


def _guest(trace: Trace) -> Platform:
    return dataclasses.replace(trace.platform, vcpus=1)


@functools.cache
def _shipped() -> tuple[Trace, ...]:
    """Return excerpts of all shipped streams, of each guest apart."""
    by_guest: dict[Platform, list[Trace]] = {}
    for name in trace_names():
        trace = load_trace(name)
        by_guest.setdefault(_guest(trace), []).append(trace)
    return tuple(e for some in by_guest.values() for e in excerpts(some))


def judge_all(mode: Mode, streams: Sequence[Trace], space: Space) -> Verdicts:
    """Judge every hook set of a space in a mode.

    Parameters
    ----------
    mode : Mode
        The paging mode.
    streams : sequence of Trace
        Every set is judged on all of them. A stream that no set can run in this mode (lguest has
        one CPU) says nothing of hooks and is left out.
    space : Space
        The hook sets.

    Raises
    ------
    SearchError
        There is no stream.
    """
    if not streams:
        raise SearchError("verdicts: there is no stream to judge by")
    judged = [_Stream.of(mode, t, space) for t in streams]
    judged = [s for s in judged if s.partition.n] or judged[:1]
    layout = Layout.of(judged[0].partition)

    def group(pinning: int, number: int, at: int) -> tuple[int, ...] | None:
        marks = [s.mark(pinning, number, at) for s in judged]
        return None if min(marks) < 0 else tuple(marks)

    partition = layout.partition(
        space, lambda p: tuple(int(s.partition.pinning.setting_of[p]) for s in judged), group
    )
    verdicts: dict[Verdict, int] = {}
    number = np.array(
        [verdicts.setdefault(v, len(verdicts)) for v in _verdicts(partition, layout, judged)],
        np.int32,
    )
    found = tuple(verdicts)
    levels = np.array([v.level for v in found], np.uint8)
    return Verdicts(mode.spec, partition, levels[number] if len(found) else levels, found, number)


def _verdicts(partition: Partition, layout: Layout, judged: Sequence[_Stream]) -> Iterator[Verdict]:
    """Yield the verdict of each feasible class."""
    for branch in partition.branches:
        pinning = index_in(layout.pinning, branch.setting.hooks)
        at = [
            [index_in(names, s.hooks) for s in g.feasible]
            for names, g in zip(layout.groups, branch.groups, strict=True)
        ]
        for combination in product(*at):
            yield worst(s.judge(pinning, combination) for s in judged)


class _Stream:
    """A stream under all hook sets: what each setting of a group means for its rows."""

    def __init__(self, mode: Mode, trace: Trace, partition: Partition) -> None:
        self.mode, self.trace, self.partition = mode, trace, partition
        self.table = effects_table(mode)
        self._effects: dict[tuple[int, int], tuple[list[int], np.ndarray]] = {}
        self._base: dict[int, np.ndarray] = {}
        self._known: dict[tuple[int, ...], Verdict] = {}

    @classmethod
    def of(cls, mode: Mode, trace: Trace, space: Space) -> _Stream:
        return cls(mode, trace, mode.classes(trace, space))

    def mark(self, pinning: int, number: int, at: int) -> int:
        """Return a number for a subset of a group, equal for equal effects; -1: it cannot run."""
        branch = int(self.partition.pinning.setting_of[pinning])
        setting = int(self.partition.branches[branch].groups[number].feasible_index[at])
        if setting < 0 or not self.partition.branches[branch].n:
            return -1 if setting < 0 else 0
        return self._of_group(branch, number)[0][setting]

    def judge(self, pinning: int, combination: Sequence[int]) -> Verdict:
        """Return the verdict on a setting of each group."""
        branch = int(self.partition.pinning.setting_of[pinning])
        marks = [self.mark(pinning, number, at) for number, at in enumerate(combination)]
        key = (branch, *marks)
        if key not in self._known:
            effect = self._base_of(branch).copy()
            for number, mark in enumerate(marks):
                mine = self._of_group(branch, number)[1][mark]
                changed = mine != self._base_of(branch)
                effect[changed] = mine[changed]
            self._known[key] = judge_effects(self.trace, effect)
        return self._known[key]

    def _base_of(self, branch: int) -> np.ndarray:
        """Return the effects with each group at its first setting that works."""
        if branch not in self._base:
            self._base[branch] = self._effect(branch, -1, NO_HOOKS)
        return self._base[branch]

    def _of_group(self, branch: int, number: int) -> tuple[list[int], np.ndarray]:
        """Return the mark of each feasible setting of a group, and the effects for each mark."""
        key = branch, number
        if key not in self._effects:
            settings = self._branch(branch).groups[number].feasible
            rows = [self._effect(branch, number, s.hooks) for s in settings]
            found: dict[bytes, int] = {}
            marks = [found.setdefault(r.tobytes(), len(found)) for r in rows]
            kept = [rows[marks.index(m)] for m in range(len(found))]
            self._effects[key] = marks, np.array(kept)
        return self._effects[key]

    def _branch(self, number: int) -> Branch:
        return self.partition.branches[number]

    def _effect(self, branch: int, number: int, hooks: HookSet) -> np.ndarray:
        """Return what each row means with one group set so, the others at their first setting."""
        if not self.table.any():
            return np.zeros(len(self.trace), np.uint8)
        here = self._branch(branch)
        chosen = hooks | here.setting.hooks | self.partition.space.always
        for i, g in enumerate(here.groups):
            if i != number:
                chosen |= g.feasible[0].hooks
        outcome = self.mode.run(self.trace, chosen)
        if isinstance(outcome, Infeasible):
            raise SearchError(f"{self.mode.spec}: {chosen.short} was to work on {self.trace.name}")
        out: np.ndarray = self.table[self.trace["op"], outcome.mechanism]
        return out
