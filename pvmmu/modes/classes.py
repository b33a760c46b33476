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
from itertools import chain, combinations

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.hooks import NO_HOOKS, HookSet, catalogue
from pvmmu.modes.base import Infeasible
from pvmmu.modes.partition import Choice, HookClass, Partition, Plan, Switch

__all__ = [
    "HookClass", "Partition", "Signature", "Space", "by_mechanism", "choices", "partition",
    "subsets",
]  # fmt: skip


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
        return 1 << len(self.free - self.always)

    def of(self, names: Sequence[str]) -> tuple[tuple[str, ...], HookSet]:
        """Return which of the hooks called `names` are free, and the set of those always there."""
        named = HookSet.of(*names)
        return (named & self.free - self.always).names, named & self.always


def subsets(names: Sequence[str]) -> Iterator[HookSet]:
    """Yield all subsets of some hooks, smaller ones first."""
    parts = (combinations(names, k) for k in range(len(names) + 1))
    for chosen in chain.from_iterable(parts):
        yield HookSet.of(*chosen)


def choices(
    names: Sequence[str], space: Space, signature: Callable[[HookSet], Hashable | Infeasible]
) -> Switch:
    """Group the subsets of some hooks by their signature."""
    free, always = space.of(names)
    found: dict[Hashable, Choice] = {}
    number: dict[Hashable, int] = {}
    choice_of = np.zeros(2 ** len(free), np.int16)
    for subset in subsets(free):
        s = signature(subset | always)
        bad = s.reason if isinstance(s, Infeasible) else ""
        key = ("infeasible", bad) if bad else s
        first = found.get(key)
        smallest = first.hooks if first else subset | always
        found[key] = Choice(smallest, (first.size if first else 0) + 1, bad)
        at = sum(1 << i for i, name in enumerate(free) if name in subset)
        choice_of[at] = number.setdefault(key, len(number))
    return Switch(free, tuple(found.values()), choice_of)


def partition(
    space: Space, strategy: Sequence[str], switches: Sequence[Sequence[str]], signature: Signature
) -> Partition:
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

    Returns
    -------
    Partition
        Iterate over it for the classes.
    """
    read = HookSet.of(*strategy, *(name for s in switches for name in s))
    first = choices(strategy, space, partial(signature, NO_HOOKS, strategy))
    plans = tuple(
        Plan(c, tuple(choices(s, space, partial(signature, c.hooks, s)) for s in switches))
        for c in first.choices
    )
    return Partition(space, read, first, plans)


def by_mechanism(
    trace: Trace,
    space: Space,
    switches: Sequence[Sequence[str]],
    mechanism_table: Callable[[HookSet], np.ndarray],
) -> Partition:
    """Partition hook sets by what carries the operations of a trace, for modes that need no hook.

    Parameters
    ----------
    trace : Trace
        Replayed.
    space : Space
        Hook sets to look at.
    switches : sequence of sequence of str
        Hooks that act on the same operations.
    mechanism_table : callable
        Returns what carries each operation under a hook set, an array by `Op`.
    """
    present = {int(o) for o in np.unique(trace["op"])}

    def signature(_: HookSet, switch: Sequence[str], subset: HookSet) -> object:
        table = mechanism_table(subset)
        covered = {int(op) for name in switch for op in catalogue()[name].operations}
        return tuple(int(table[op]) for op in sorted(covered & present))

    return partition(space, (), switches, signature)
