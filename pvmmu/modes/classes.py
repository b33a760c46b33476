"""All hook sets at once: sets that a mode cannot tell apart on a trace form a class.

With n hooks there are 2**n sets, but what happens to a trace depends on few of them: hooks that
cover none of its operations, or whose operations meet only ordinary memory, do not matter, and a
set without a hook that the trace cannot do without is infeasible whatever else it holds. So the
sets are partitioned exactly, nothing is sampled: one replay of a class stands for all its members.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from itertools import chain, combinations

import numpy as np

from pvmmu.hooks import NO_HOOKS, HookSet
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Branch, HookGroup, Partition, Setting, Space

#: (pinning set, group, subset of the group) -> equal for what is carried alike.
Signature = Callable[[HookSet, Sequence[str], HookSet], "Hashable | Infeasible"]


def subsets(names: Sequence[str]) -> Iterator[HookSet]:
    """Yield all subsets of some hooks, smaller ones first."""
    parts = (combinations(names, k) for k in range(len(names) + 1))
    for chosen in chain.from_iterable(parts):
        yield HookSet.of(*chosen)


def settings(
    names: Sequence[str], space: Space, signature: Callable[[HookSet], Hashable | Infeasible]
) -> HookGroup:
    """Group the subsets of some hooks by their signature."""
    free, always = space.of(names)
    found: dict[Hashable, Setting] = {}
    number: dict[Hashable, int] = {}
    setting_of = np.zeros(2 ** len(free), np.int16)
    for subset in subsets(free):
        s = signature(subset | always)
        bad = s.reason if isinstance(s, Infeasible) else ""
        key = ("infeasible", bad) if bad else s
        first = found.get(key)
        smallest = first.hooks if first else subset | always
        found[key] = Setting(smallest, (first.size if first else 0) + 1, bad)
        at = sum(1 << i for i, name in enumerate(free) if name in subset)
        setting_of[at] = number.setdefault(key, len(number))
    return HookGroup(free, tuple(found.values()), setting_of)


def make_partition(
    space: Space, pinning: Sequence[str], groups: Sequence[Sequence[str]], signature: Signature
) -> Partition:
    """Partition the hook sets of a space.

    Parameters
    ----------
    space : Space
        The sets.
    pinning : sequence of str
        Hooks that change what the others meet (when tables are typed).
    groups : sequence of sequence of str
        Disjoint groups of the other hooks that the mode reads; each acts independently of the
        others.
    signature : callable
        See `Signature`; called first with `pinning` itself as the group (and no hook of it set).

    Returns
    -------
    Partition
        Iterate over it for the classes.
    """
    read = HookSet.of(*pinning, *(name for s in groups for name in s))
    first = settings(pinning, space, partial(signature, NO_HOOKS, pinning))
    branches = tuple(
        Branch(c, tuple(settings(s, space, partial(signature, c.hooks, s)) for s in groups))
        for c in first.settings
    )
    return Partition(space, read, first, branches)
