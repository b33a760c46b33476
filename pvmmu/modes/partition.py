"""What a partition of hook sets is made of: switches, plans, and the classes they span.

Sets that a mode cannot tell apart on a trace form a class; see `pvmmu.modes.classes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from pvmmu.errors import HookError
from pvmmu.hooks import HookSet, catalogue

if TYPE_CHECKING:
    from pvmmu.modes.classes import Space


@dataclass(frozen=True)
class HookClass:
    """Hook sets that are carried alike.

    Parameters
    ----------
    hooks : HookSet
        The smallest member, which stands for all.
    size : int
        Number of members.
    infeasible : str
        Why none of them works; empty if they do.
    """

    hooks: HookSet
    size: int
    infeasible: str = ""


@dataclass(frozen=True)
class Choice:
    """One way to set a switch.

    Parameters
    ----------
    hooks : HookSet
        The smallest subset of the switch's hooks that sets it so.
    size : int
        How many subsets do.
    infeasible : str
        Why no trace can be replayed with it; empty if one can.
    """

    hooks: HookSet
    size: int
    infeasible: str = ""


@dataclass(frozen=True)
class Switch:
    """A group of hooks that act together, and the ways in which they can be set.

    Parameters
    ----------
    free : tuple of str
        Those of its hooks that may be there or not.
    choices : tuple of Choice
        What can be told apart.
    choice_of : int16[2**len(free)]
        Number of the choice that each subset makes; bit *i* of the index is ``free[i]``.
    """

    free: tuple[str, ...]
    choices: tuple[Choice, ...]
    choice_of: np.ndarray = field(repr=False, compare=False)

    @cached_property
    def good(self) -> list[Choice]:
        """Choices that work."""
        return [c for c in self.choices if not c.infeasible]

    @cached_property
    def good_of(self) -> np.ndarray:
        """int16[2**len(free)]: number among `good` of the choice of each subset; -1: none."""
        works = np.array([not c.infeasible for c in self.choices])
        number = np.where(works, np.cumsum(works) - 1, -1).astype(np.int16)
        out: np.ndarray = number[self.choice_of]
        return out

    @cached_property
    def required(self) -> HookSet:
        """Its hooks without which no choice works."""
        subsets = np.arange(len(self.good_of))
        names = [
            name for i, name in enumerate(self.free)
            if (self.good_of[subsets >> i & 1 == 0] < 0).all()
        ]  # fmt: skip
        return HookSet.of(*names)

    @cached_property
    def relevant_hooks(self) -> HookSet:
        """Its hooks that change the choice in some company."""
        subsets = np.arange(len(self.good_of))
        names = [
            name for i, name in enumerate(self.free)
            if (self.good_of != self.good_of[subsets ^ (1 << i)]).any()
        ]  # fmt: skip
        return HookSet.of(*names)


@dataclass(frozen=True)
class Plan:
    """One choice of the strategy, and the switches as they are under it.

    Parameters
    ----------
    choice : Choice
        Of the strategy.
    switches : tuple of Switch
        Each acts independently of the others.
    """

    choice: Choice
    switches: tuple[Switch, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of good choices of each switch: the classes that work are their product."""
        return tuple(len(s.good) for s in self.switches)

    @property
    def n(self) -> int:
        """Number of classes that work."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Partition:
    """The classes of a space: disjoint, their sizes add up to the size of the space.

    Parameters
    ----------
    space : Space
        The hook sets.
    read : HookSet
        Hooks that the mode reads at all.
    strategy : Switch
        Hooks that change what the others meet.
    plans : tuple of Plan
        One for each choice of the strategy.
    """

    space: Space
    read: HookSet
    strategy: Switch
    plans: tuple[Plan, ...]

    def __iter__(self) -> Iterator[HookClass]:
        """Yield the classes; the infeasible sets divided by the first switch that fails."""
        for number in range(len(self.plans)):
            yield from self.infeasible(number)
            yield from self.feasible(number)

    @cached_property
    def starts(self) -> np.ndarray:
        """int64[plan + 1]: number of the first feasible class of each plan."""
        return np.concatenate([[0], np.cumsum([p.n for p in self.plans], dtype=np.int64)])

    @property
    def n(self) -> int:
        """Number of classes that work."""
        return int(self.starts[-1])

    @cached_property
    def _rest(self) -> HookSet:
        return self.space.always - self.read

    @cached_property
    def _indifferent(self) -> int:
        """Number of subsets of the hooks that the mode does not read."""
        return 1 << len(self.space.free - self.space.always - self.read)

    def infeasible(self, number: int) -> Iterator[HookClass]:
        """Yield the classes of plan `number` that do not work."""
        plan = self.plans[number]
        before = plan.choice.size * self._indifferent
        for i, s in enumerate(plan.switches):
            after = 2 ** sum(len(later.free) for later in plan.switches[i + 1 :])
            for c in s.choices:
                if c.infeasible:
                    hooks = self._rest | plan.choice.hooks | c.hooks
                    yield HookClass(hooks, before * c.size * after, c.infeasible)
            before *= sum(c.size for c in s.good)

    def feasible(self, number: int) -> Iterator[HookClass]:
        """Yield the classes of plan `number` that work, the last switch changing fastest."""
        plan = self.plans[number]
        base, size = self._rest | plan.choice.hooks, plan.choice.size * self._indifferent
        for combination in product(*(s.good for s in plan.switches)):
            mask, members = base.mask, size
            for c in combination:
                mask |= c.hooks.mask
                members *= c.size
            yield HookClass(HookSet(mask), members)

    def masks_and_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return smallest member and number of members of each feasible class.

        Returns
        -------
        masks, sizes : int64[class]
            In the order in which `feasible` yields them, plan after plan.
        """
        masks, sizes = [], []
        for plan in self.plans:
            m = np.array([self._rest.mask | plan.choice.hooks.mask], np.int64)
            n = np.array([plan.choice.size * self._indifferent], np.int64)
            for s in plan.switches:
                m = (m[:, None] | np.array([c.hooks.mask for c in s.good], np.int64)).ravel()
                n = (n[:, None] * np.array([c.size for c in s.good], np.int64)).ravel()
            masks.append(m)
            sizes.append(n)
        return np.concatenate(masks), np.concatenate(sizes)

    @cached_property
    def required(self) -> HookSet:
        """Hooks without which no set of the space works (not those always there)."""
        needed = self.space.free
        for subset, number in enumerate(self.strategy.choice_of.tolist()):
            if self.plans[number].n:
                here = HookSet.of(*(n for i, n in enumerate(self.strategy.free) if subset >> i & 1))
                for s in self.plans[number].switches:
                    here |= s.required
                needed &= here
        return needed

    @cached_property
    def relevant_hooks(self) -> HookSet:
        """Hooks that change what happens, or whether a set works, under some plan that works."""
        out = HookSet.of(*self.strategy.free) if len(self.plans) > 1 else HookSet()
        for plan in self.plans:
            if plan.n:
                for s in plan.switches:
                    out |= s.relevant_hooks
        return out

    def cube(self, names: Sequence[str], always: HookSet) -> np.ndarray:
        """Return the class of every set between `always` and `always` with all of some hooks.

        Parameters
        ----------
        names : sequence of str
            Free hooks of the space, each once.
        always : HookSet
            Hooks that every set contains; neither there nor in `names`: hooks that none contains.

        Returns
        -------
        int32[2**len(names)]
            Number of the feasible class, -1 where the set cannot run; bit *i* of the index is
            ``names[i]``.

        Raises
        ------
        HookError
            A hook is not free in this space, or named twice.
        """
        _check_cube(self.space, names, always)
        out = np.empty((2,) * len(names), np.int32)
        axis = {name: len(names) - 1 - i for i, name in enumerate(names)}
        first = [name for name in self.strategy.free if name in axis]
        left = [name for name in names if name not in first]
        for subset in range(2 ** len(first)):
            here = always | HookSet.of(*(n for i, n in enumerate(first) if subset >> i & 1))
            number = int(self.strategy.choice_of[index_in(self.strategy.free, here)])
            where: list[slice | int] = [slice(None)] * len(names)
            for i, name in enumerate(first):
                where[axis[name]] = subset >> i & 1
            plan = self.plans[number]
            out[tuple(where)] = _mixed_radix(plan, left, here, int(self.starts[number]))
        return out.ravel()


def _check_cube(space: Space, names: Sequence[str], always: HookSet) -> None:
    chosen = HookSet.of(*names)
    if len(chosen) != len(names):
        raise HookError("a hook is named twice among those to vary")
    outside = chosen - (space.free - space.always)
    if outside:
        raise HookError(f"{next(iter(outside))!r} does not vary in this search")
    if chosen & always:
        raise HookError(f"{next(iter(chosen & always))!r} is to vary and to be always there")
    missing = space.always - always
    if missing:
        raise HookError(f"{next(iter(missing))!r} is always there in this search")


def _mixed_radix(plan: Plan, names: Sequence[str], always: HookSet, start: int) -> np.ndarray:
    """Return the class of every set of a plan, as `Partition.cube`: int32[2, 2, ...]."""
    axis = {name: len(names) - 1 - i for i, name in enumerate(names)}
    number = np.full((2,) * len(names), start, np.int32)
    works = np.ones((2,) * len(names), np.bool_)
    stride = plan.n
    for s, good in zip(plan.switches, plan.shape, strict=True):
        stride //= max(good, 1)
        # a table of two by two by ... for the hooks that vary, its axes in the order of `number`
        mine = sorted((n for n in s.free if n in axis), key=lambda n: axis[n])
        subset = np.full((2,) * len(mine), index_in(s.free, always), np.int64)
        for a, name in enumerate(mine):
            bit = np.array([0, 1 << s.free.index(name)], np.int64)
            subset += bit.reshape([2 if b == a else 1 for b in range(len(mine))])
        table = s.good_of[subset].reshape([2 if n in mine else 1 for n in reversed(names)])
        number += (table * np.int64(stride)).astype(np.int32)
        works &= table >= 0
    return np.where(works, number, np.int32(-1))


def class_of(partition: Partition, hooks: HookSet) -> int:
    """Return the number of the feasible class that a hook set belongs to; -1 if it cannot run."""
    return int(partition.cube((), hooks | partition.space.always)[0])


def index_in(names: Sequence[str], hooks: HookSet) -> int:
    """Return the hooks of `hooks` as bits in the order of `names`."""
    bits = catalogue()
    return sum((hooks.mask >> bits[name].bit & 1) << i for i, name in enumerate(names))
