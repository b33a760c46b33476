"""What an interface costs in a mode, when the hypervisor's backend picks from what is offered.

A hook that a kernel offers need not be used: pv_ops start as the native operations, and a backend
overrides those that pay (arch/i386/kernel/paravirt.c of Linux 2.6.20, arch/x86/kernel/paravirt.c
from 2.6.24 on). So an interface costs a mode what the best of its subsets costs. That is a minimum
over subsets of every set; it is taken over classes of sets, for what the subsets of an interface
reach is a product of what they reach in each group of the mode's partition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from pvmmu._jit import kernel
from pvmmu.errors import SearchError
from pvmmu.hooks import HookSet
from pvmmu.modes.classes import make_partition
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Branch, Partition, Space, index_in

#: ``free``: a backend leaves native what does not pay; ``all``: it uses all that it is offered.
BACKENDS: Final = ("free", "all")


class Offers:
    """Interfaces that a mode carries alike on all traces of a mix, and their cost.

    Parameters
    ----------
    partitions : sequence of Partition
        Of the mode on each trace.
    backend : str
        One of `BACKENDS`.
    admitted : (Partition, bool[class]), optional
        Sets that may compete at all; default: all that work on the traces.

    Raises
    ------
    SearchError
        No such backend, or the partitions have different groups.
    """

    def __init__(
        self, partitions: Sequence[Partition], backend: str,
        admitted: tuple[Partition, np.ndarray] | None = None,
    ) -> None:  # fmt: skip
        if backend not in BACKENDS:
            raise SearchError(f"backends: no {backend!r} (there are {', '.join(BACKENDS)})")
        judge = [] if admitted is None else [admitted[0]]
        self._used, self._of_trace = _together([*partitions, *judge])
        self._barred = np.zeros(self._used.n, np.bool_)
        if admitted is not None:
            self._barred = ~admitted[1][self._of_trace.pop()]
        self._reach = _Reach(self._used) if backend == "free" else None
        #: The classes.
        self.partition = self._used if self._reach is None else self._reach.offered

    @cached_property
    def _works(self) -> np.ndarray:
        """bool[class + 1]: some subset works; the last is the class of what never does."""
        free = np.where(self._barred, np.inf, 0.0)[:, None]
        least = free if self._reach is None else self._reach.least(free)
        return np.append(np.isfinite(least[:, 0]), False)

    def cube(self, names: Sequence[str], always: HookSet) -> np.ndarray:
        """Return the class of every set, -1 where it cannot run; see `Partition.cube`."""
        space = self.partition.space
        classes = self.partition.cube(names, always & space.free | space.always)
        return np.where(self._works[classes], classes, np.int32(-1))

    def least(self, prices: Sequence[np.ndarray]) -> np.ndarray:
        """Return the cost of each class.

        Parameters
        ----------
        prices : sequence of float64[class, vector]
            Cost of the classes of each trace, weighted; NaN where the replay failed.

        Returns
        -------
        float64[class, vector]
            Sums over the traces: of the subset for which it is least, if the backend is free.
            NaN where none works.
        """
        total = np.zeros((self._used.n, prices[0].shape[1]))
        for price, classes in zip(prices, self._of_trace, strict=True):
            total += price[classes]
        total[self._barred] = np.nan
        if self._reach is None:
            return total
        out = self._reach.least(np.where(np.isnan(total), np.inf, total))
        return np.where(np.isinf(out), np.nan, out)


@dataclass(frozen=True)
class Layout:
    """Names of the hooks that pin and of groups; lists, told apart by identity."""

    pinning: list[str]
    groups: list[list[str]]

    @classmethod
    def of(cls, p: Partition) -> Layout:
        """Return the layout of a mode's partition."""
        return cls(list(p.pinning.free), [list(s.free) for s in p.branches[0].groups])

    def partition(
        self, space: Space, branch: Callable[[int], Hashable],
        group: Callable[[int, int, int], Hashable],
    ) -> Partition:  # fmt: skip
        """Partition the sets of a space by other marks than a mode's.

        Parameters
        ----------
        branch : callable
            Takes a subset of the pinning hooks (bit *i* is its hook *i*); equal for what is alike.
        group : callable
            Takes a subset of the pinning hooks, the number of a group, a subset of that; ``None``
            where it does not work.
        """

        def signature(pinning: HookSet, names: Sequence[str], subset: HookSet) -> object:
            at = index_in(names, subset)
            if names is self.pinning:
                return branch(at)
            number = next(i for i, s in enumerate(self.groups) if s is names)
            mark = group(index_in(self.pinning, pinning), number, at)
            return Infeasible("no subset works") if mark is None else mark

        return make_partition(space, self.pinning, self.groups, signature)


def _together(partitions: Sequence[Partition]) -> tuple[Partition, list[np.ndarray]]:
    """Return the sets that are carried alike on all traces, and their class on each.

    Returns
    -------
    Partition
        Sets work if they work on every trace.
    list of int64[class]
        For each trace.
    """
    layout = Layout.of(partitions[0])
    if any(Layout.of(p) != layout for p in partitions):
        raise SearchError("partitions with different groups cannot be put together")

    def group(pinning: int, number: int, at: int) -> Hashable:
        feasible = [
            int(p.branches[p.pinning.setting_of[pinning]].groups[number].feasible_index[at])
            for p in partitions
        ]
        return None if min(feasible) < 0 else tuple(feasible)

    joint = layout.partition(
        partitions[0].space,
        lambda s: tuple(int(p.pinning.setting_of[s]) for p in partitions),
        group,
    )
    return joint, [np.concatenate(list(_classes(joint, p))) for p in partitions]


def _classes(joint: Partition, p: Partition) -> Iterator[np.ndarray]:
    """Yield for each branch of the joint partition the classes of one trace: int64[class]."""
    for branch in joint.branches:
        number = int(p.pinning.setting_of[index_in(p.pinning.free, branch.setting.hooks)])
        out, stride = np.full(1, p.starts[number]), p.branches[number].n
        for s, one in zip(branch.groups, p.branches[number].groups, strict=True):
            stride //= max(len(one.feasible), 1)
            at = [int(one.feasible_index[index_in(s.free, c.hooks)]) for c in s.feasible]
            out = (out[:, None] + stride * np.array(at, np.int64)).ravel()
        yield out


class _Reach:
    """Which classes the subsets of a set reach, as a partition of sets that reach the same.

    Parameters
    ----------
    used : Partition
        Of the sets that a backend uses.

    Attributes
    ----------
    offered : Partition
        Of the sets that an interface offers.
    """

    def __init__(self, used: Partition) -> None:
        self.used, layout = used, Layout.of(used)
        branches = _reached(used.pinning.setting_of)
        reach = [[_reached(s.feasible_index) for s in p.groups] for p in used.branches]

        def group(pinning: int, number: int, at: int) -> Hashable:
            mark = tuple(reach[p][number][at] for p in _members(branches[pinning]))
            return mark if any(mark) else None

        self.offered = layout.partition(used.space, lambda s: branches[s], group)
        self._ways = [
            [
                (p, _passes(branch, used.branches[p], reach[p]))
                for p in _members(branches[index_in(layout.pinning, branch.setting.hooks)])
            ]
            for branch in self.offered.branches
        ]

    def least(self, cost: np.ndarray) -> np.ndarray:
        """Return the least cost that each class of `offered` reaches.

        Parameters
        ----------
        cost : float64[class, vector]
            Of the classes of `used`; inf where it does not work.

        Returns
        -------
        float64[class, vector]
        """
        parts = [np.zeros((0, cost.shape[1]))]
        for branch, ways in zip(self.offered.branches, self._ways, strict=True):
            out = np.full((*branch.shape, cost.shape[1]), np.inf)
            for number, groups in ways:
                mine = cost[self.used.starts[number] : self.used.starts[number + 1]]
                shape = [*self.used.branches[number].shape, cost.shape[1]]
                for axis, reached in groups:
                    before, after = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
                    mine = mine.reshape(before, shape[axis], after)
                    shape[axis] = len(reached)
                    least = np.empty((before, len(reached), after))
                    _least_along(mine, reached, least)
                    mine = least
                mine = mine.reshape(out.shape)
                np.minimum(out, mine, out=out)
            parts.append(out.reshape(branch.n, -1))
        return np.concatenate(parts)


def _reached(number_of: np.ndarray) -> list[int]:
    """Return what the subsets of each subset make: bits of their numbers; -1 is no number."""
    out = [1 << n if n >= 0 else 0 for n in number_of.tolist()]
    for bit in range(len(out).bit_length() - 1):
        for s in range(len(out)):
            if s >> bit & 1:
                out[s] |= out[s ^ (1 << bit)]
    return out


def _members(bits: int) -> list[int]:
    return [i for i in range(bits.bit_length()) if bits >> i & 1]


def _passes(offer: Branch, used: Branch, reach: list[list[int]]) -> list[tuple[int, np.ndarray]]:
    """Return axes of a branch's classes, and what offers reach along each; growing ones last."""
    out = []
    for axis, (s, mine, numbers) in enumerate(zip(offer.groups, used.groups, reach, strict=True)):
        reached = [numbers[index_in(s.free, c.hooks)] for c in s.feasible]
        if reached != [1 << i for i in range(len(mine.feasible))]:  # else each reaches its own
            out.append((axis, _padded(reached)))
    return sorted(out, key=lambda one: len(one[1]) / max(len(used.groups[one[0]].feasible), 1))


def _padded(reached: list[int]) -> np.ndarray:
    """Return the numbers in each set of bits, filled up with -1."""
    members = [_members(bits) for bits in reached]
    out = np.full((len(members), max(map(len, members), default=0)), -1)
    for row, numbers in zip(out, members, strict=True):
        row[: len(numbers)] = numbers
    return out


@kernel
def _least_along(cost, reached, out):  # type: ignore[no-untyped-def]
    """Take the least cost over what is reached along an axis.

    Parameters
    ----------
    cost : float64[before, number, after]
    reached : int64[kind, n]
        Numbers; negative: none.
    out : float64[before, kind, after]
        Receives least costs; inf where nothing is reached.
    """
    for b in range(cost.shape[0]):
        for k in range(reached.shape[0]):
            for a in range(cost.shape[2]):
                out[b, k, a] = np.inf
            for number in reached[k]:
                if number >= 0:
                    for a in range(cost.shape[2]):
                        out[b, k, a] = min(out[b, k, a], cost[b, number, a])
