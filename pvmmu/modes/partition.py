"""A partition of hook sets into classes: groups of hooks, their settings, and what they span.

Sets that a mode cannot tell apart on a trace form a class; `pvmmu.modes.classes` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product

import numpy as np

from pvmmu.errors import HookError
from pvmmu.hooks import NO_HOOKS, HookSet, catalogue


@dataclass(frozen=True)
class Space:
    """The hook sets to look at: some hooks are always there, some may be, the others never.

    Parameters
    ----------
    free : HookSet
        Hooks that may be there or not.
    always : HookSet
        Hooks that every set contains.
    """

    free: HookSet
    always: HookSet = NO_HOOKS

    @classmethod
    def all(cls) -> Space:
        """Every set of hooks of the catalogue."""
        return cls(HookSet.every())

    @property
    def size(self) -> int:
        """Number of hook sets."""
        return 1 << len(self.free - self.always)

    def of(self, names: Sequence[str]) -> tuple[tuple[str, ...], HookSet]:
        """Return which of the hooks called `names` are free, and the set of those always there."""
        named = HookSet.of(*names)
        return (named & self.free - self.always).names, named & self.always


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
class Setting:
    """One way to set a group.

    Parameters
    ----------
    hooks : HookSet
        The smallest subset of the group's hooks that sets it so.
    size : int
        How many subsets do.
    infeasible : str
        Why no trace can be replayed with it; empty if one can.
    """

    hooks: HookSet
    size: int
    infeasible: str = ""


@dataclass(frozen=True)
class HookGroup:
    """A group of hooks that act together, and the ways in which they can be set.

    Parameters
    ----------
    free : tuple of str
        Those of its hooks that may be there or not.
    settings : tuple of Setting
        What can be told apart.
    setting_of : int16[2**len(free)]
        Number of the setting that each subset makes; bit *i* of the index is ``free[i]``.
    """

    free: tuple[str, ...]
    settings: tuple[Setting, ...]
    setting_of: np.ndarray = field(repr=False, compare=False)

    @cached_property
    def feasible(self) -> list[Setting]:
        """Choices that work."""
        return [c for c in self.settings if not c.infeasible]

    @cached_property
    def feasible_index(self) -> np.ndarray:
        """int16[2**len(free)]: number among `feasible` of the setting of each subset; -1: none."""
        works = np.array([not c.infeasible for c in self.settings])
        number = np.where(works, np.cumsum(works) - 1, -1).astype(np.int16)
        out: np.ndarray = number[self.setting_of]
        return out

    @cached_property
    def required(self) -> HookSet:
        """Its hooks without which no setting works."""
        subsets = np.arange(len(self.feasible_index))
        names = [
            name for i, name in enumerate(self.free)
            if (self.feasible_index[subsets >> i & 1 == 0] < 0).all()
        ]  # fmt: skip
        return HookSet.of(*names)

    @cached_property
    def relevant_hooks(self) -> HookSet:
        """Its hooks that change the setting in some company."""
        subsets = np.arange(len(self.feasible_index))
        names = [
            name for i, name in enumerate(self.free)
            if (self.feasible_index != self.feasible_index[subsets ^ (1 << i)]).any()
        ]  # fmt: skip
        return HookSet.of(*names)


@dataclass(frozen=True)
class Branch:
    """One setting of the hooks that pin, and the groups as they are under it.

    Parameters
    ----------
    setting : Setting
        Of the hooks that pin.
    groups : tuple of HookGroup
        Each acts independently of the others.
    """

    setting: Setting
    groups: tuple[HookGroup, ...]

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Number of feasible settings of each group: the classes that work are their product."""
        return tuple(len(s.feasible) for s in self.groups)

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
    pinning : HookGroup
        Hooks that change what the others meet: they decide when tables are pinned.
    branches : tuple of Branch
        One for each setting of `pinning`.
    """

    space: Space
    read: HookSet
    pinning: HookGroup
    branches: tuple[Branch, ...]

    def __iter__(self) -> Iterator[HookClass]:
        """Yield the classes; the infeasible sets divided by the first group that fails."""
        for number in range(len(self.branches)):
            yield from self.infeasible(number)
            yield from self.feasible(number)

    @cached_property
    def starts(self) -> np.ndarray:
        """int64[branch + 1]: number of the first feasible class of each branch."""
        return np.concatenate([[0], np.cumsum([p.n for p in self.branches], dtype=np.int64)])

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
        """Yield the classes of branch `number` that do not work."""
        branch = self.branches[number]
        before = branch.setting.size * self._indifferent
        for i, s in enumerate(branch.groups):
            after = 2 ** sum(len(later.free) for later in branch.groups[i + 1 :])
            for c in s.settings:
                if c.infeasible:
                    hooks = self._rest | branch.setting.hooks | c.hooks
                    yield HookClass(hooks, before * c.size * after, c.infeasible)
            before *= sum(c.size for c in s.feasible)

    def feasible(self, number: int) -> Iterator[HookClass]:
        """Yield the classes of branch `number` that work, the last group changing fastest."""
        branch = self.branches[number]
        base, size = self._rest | branch.setting.hooks, branch.setting.size * self._indifferent
        for combination in product(*(s.feasible for s in branch.groups)):
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
            In the order in which `feasible` yields them, branch after branch.
        """
        masks, sizes = [], []
        for branch in self.branches:
            m = np.array([self._rest.mask | branch.setting.hooks.mask], np.int64)
            n = np.array([branch.setting.size * self._indifferent], np.int64)
            for s in branch.groups:
                m = (m[:, None] | np.array([c.hooks.mask for c in s.feasible], np.int64)).ravel()
                n = (n[:, None] * np.array([c.size for c in s.feasible], np.int64)).ravel()
            masks.append(m)
            sizes.append(n)
        return np.concatenate(masks), np.concatenate(sizes)

    @cached_property
    def required(self) -> HookSet:
        """Hooks without which no set of the space works (not those always there)."""
        needed = self.space.free
        for subset, number in enumerate(self.pinning.setting_of.tolist()):
            if self.branches[number].n:
                here = HookSet.of(*(n for i, n in enumerate(self.pinning.free) if subset >> i & 1))
                for s in self.branches[number].groups:
                    here |= s.required
                needed &= here
        return needed

    @cached_property
    def relevant_hooks(self) -> HookSet:
        """Hooks that change what happens, or whether a set works, under some branch that works."""
        out = HookSet.of(*self.pinning.free) if len(self.branches) > 1 else HookSet()
        for branch in self.branches:
            if branch.n:
                for s in branch.groups:
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
        first = [name for name in self.pinning.free if name in axis]
        left = [name for name in names if name not in first]
        for subset in range(2 ** len(first)):
            here = always | HookSet.of(*(n for i, n in enumerate(first) if subset >> i & 1))
            number = int(self.pinning.setting_of[index_in(self.pinning.free, here)])
            where: list[slice | int] = [slice(None)] * len(names)
            for i, name in enumerate(first):
                where[axis[name]] = subset >> i & 1
            branch = self.branches[number]
            out[tuple(where)] = _mixed_radix(branch, left, here, int(self.starts[number]))
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


def _mixed_radix(branch: Branch, names: Sequence[str], always: HookSet, start: int) -> np.ndarray:
    """Return the class of every set of a branch, as `Partition.cube`: int32[2, 2, ...]."""
    axis = {name: len(names) - 1 - i for i, name in enumerate(names)}
    number = np.full((2,) * len(names), start, np.int32)
    works = np.ones((2,) * len(names), np.bool_)
    stride = branch.n
    for s, feasible in zip(branch.groups, branch.shape, strict=True):
        stride //= max(feasible, 1)
        # a table of two by two by ... for the hooks that vary, its axes in the order of `number`
        mine = sorted((n for n in s.free if n in axis), key=lambda n: axis[n])
        subset = np.full((2,) * len(mine), index_in(s.free, always), np.int64)
        for a, name in enumerate(mine):
            bit = np.array([0, 1 << s.free.index(name)], np.int64)
            subset += bit.reshape([2 if b == a else 1 for b in range(len(mine))])
        table = s.feasible_index[subset].reshape([2 if n in mine else 1 for n in reversed(names)])
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
