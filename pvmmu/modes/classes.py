"""All hook sets at once: sets that a mode cannot tell apart on a trace form a class.

With n hooks there are 2**n sets, but what happens to a trace depends on few of them: hooks that
cover none of its operations, or whose operations meet only ordinary memory, do not matter, and a
set without a hook that the trace cannot do without is infeasible whatever else it holds. So the
sets are partitioned exactly, nothing is sampled: one replay of a class stands for all its members.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations, product

from pvmmu.hooks import NO_HOOKS, HookSet
from pvmmu.modes.base import Infeasible


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
    """One way to set a switch: the smallest subset of its hooks, and how many do the same."""

    hooks: HookSet
    size: int
    infeasible: str = ""


#: (strategy set, switch, subset of the switch) -> equal for what is carried alike.
Signature = Callable[[HookSet, Sequence[str], HookSet], "Hashable | Infeasible"]


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
        return 2 ** len(self.free - self.always)

    def of(self, names: Sequence[str]) -> tuple[tuple[str, ...], HookSet]:
        """Return which of some hooks are free, and the set of those always there."""
        named = HookSet.of(*names)
        return (named & self.free - self.always).names, named & self.always


def subsets(names: Sequence[str]) -> Iterator[HookSet]:
    """Yield all subsets of some hooks, smaller ones first."""
    parts = (combinations(names, k) for k in range(len(names) + 1))
    for chosen in chain.from_iterable(parts):
        yield HookSet.of(*chosen)


def choices(
    names: Sequence[str], space: Space, signature: Callable[[HookSet], Hashable | Infeasible]
) -> list[Choice]:
    """Group the subsets of some hooks by their signature."""
    free, always = space.of(names)
    found: dict[Hashable, Choice] = {}
    for subset in subsets(free):
        s = signature(subset | always)
        bad = s.reason if isinstance(s, Infeasible) else ""
        key = ("infeasible", bad) if bad else s
        first = found.get(key)
        smallest = first.hooks if first else subset | always
        found[key] = Choice(smallest, (first.size if first else 0) + 1, bad)
    return list(found.values())


def partition(
    space: Space, strategy: Sequence[str], switches: Sequence[Sequence[str]], signature: Signature
) -> Iterator[HookClass]:
    """Partition the hook sets of a space.

    Parameters
    ----------
    space : Space
        The sets.
    strategy : sequence of str
        Hooks that change what the others meet (when tables are typed).
    switches : sequence of sequence of str
        Disjoint groups of the other hooks that the mode reads; each acts independently of the
        others.
    signature : callable
        See `Signature`; called with the strategy itself as first switch (and no strategy set).

    Yields
    ------
    HookClass
        Disjoint classes whose sizes add up to the size of the space. The infeasible sets are
        divided by the first switch that does not work.
    """
    read = HookSet.of(*strategy, *(name for s in switches for name in s))
    indifferent = 2 ** len(space.free - space.always - read)
    rest = space.always - read
    for plan in choices(strategy, space, partial(signature, NO_HOOKS, strategy)):
        options = [choices(s, space, partial(signature, plan.hooks, s)) for s in switches]
        good = [[c for c in option if not c.infeasible] for option in options]
        before = plan.size * indifferent
        for i, option in enumerate(options):
            after = 2 ** sum(len(space.of(s)[0]) for s in switches[i + 1 :])
            for c in option:
                if c.infeasible:
                    hooks = rest | plan.hooks | c.hooks
                    yield HookClass(hooks, before * c.size * after, c.infeasible)
            before *= sum(c.size for c in good[i])
        if all(good):
            yield from _feasible(rest | plan.hooks, good, plan.size * indifferent)


def _feasible(base: HookSet, good: list[list[Choice]], size: int) -> Iterator[HookClass]:
    """Yield a class for each combination of choices that work."""
    for combination in product(*good):
        mask, members = base.mask, size
        for c in combination:
            mask |= c.hooks.mask
            members *= c.size
        yield HookClass(HookSet(mask), members)
