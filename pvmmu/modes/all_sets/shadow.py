"""Counts of all classes of hook sets, from few replays.

A replay under some hooks sees which hooks make no difference to the states that it goes through
(`pvmmu.modes.shadow.substitutes`): it speaks for all hook sets that differ in those alone. What
differs are the calls, which follow from the trace, and the emulations, which the replay counts.
Hooks that put a call in the place of an exit are replayed once each and added.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.all_sets.shadow_brackets import Brackets, brackets
from pvmmu.modes.counters import totals
from pvmmu.modes.events import N_EVENTS, Event
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Branch
from pvmmu.modes.shadow import Shadow
from pvmmu.modes.shadow.engine import TIMES
from pvmmu.modes.shadow.kvm_pvmmu import KvmPvmmu
from pvmmu.modes.shadow.kvm_pvmmu_kernel import Mechanism as Told
from pvmmu.modes.shadow.mechanisms import QUEUE, Mechanism
from pvmmu.modes.shadow.prepare import Rows, rows_of
from pvmmu.modes.shadow.substitutes import ANY, DIFFERS, RELEASE_OPS, STORE_OPS, TRAPPED

#: Hooks that put a call in the place of an exit and change nothing else.
SUBSTITUTES: Final = (
    "write_cr3", "read_cr3", "flush_tlb_user", "flush_tlb_kernel", "flush_tlb_one_user",
)  # fmt: skip
_STORES, _RELEASES = [int(o) for o in STORE_OPS], [int(o) for o in RELEASE_OPS]
_BRACKETS: Final = [
    int(o) for o in (Op.LAZY_ENTER, Op.LAZY_RESUME, Op.LAZY_LEAVE, Op.LAZY_PAUSE)
]  # fmt: skip


@dataclass(frozen=True)
class Interface:
    """How a mode is told of what its hooks cover.

    Parameters
    ----------
    groups : sequence of sequence of str
        Of the mode.
    mechanisms : callable
        Returns what carries each operation under a hook set, uint8[N_OPS].
    replayed : callable
        Returns counts, int64[N_EVENTS], and what was seen, int64[N_OPS, 2], of a replay.
    store, release : int
        Mechanisms of a hooked store, and of a hooked release of a table.
    call, update : Event
        A call, and an update that it carries.
    releases_are_updates : bool
        Whether a release counts as an update as well.
    most : int
        Updates in a call.
    deferred : bool
        What waits in a bracket takes effect when it is sent; otherwise at once.
    """

    groups: Sequence[Sequence[str]]
    mechanisms: Callable[[HookSet], np.ndarray]
    replayed: Callable[[HookSet], tuple[np.ndarray, np.ndarray]]
    store: int
    release: int
    call: Event
    update: Event
    releases_are_updates: bool
    most: int
    deferred: bool


def count_by_replays(
    rows: Rows, branch: Branch, interface: Interface
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the counts of all classes of a branch.

    Parameters
    ----------
    rows : Rows
        Of the trace.
    branch : Branch
        Of the mode's partition.
    interface : Interface
        Of the mode.

    Returns
    -------
    (int64[class, N_EVENTS], int64[class, N_EVENTS]) or None
        None if a call that cannot wait may meet updates that do, or a substitute is none.
    """
    known = rows.columns[:, -1] >= 0
    platform = rows.trace.platform
    # with both, a hooked flush is not noted for the return to user mode: it is no mere substitute
    if platform.pti and platform.pcid:
        return None
    if _may_meet(rows, interface) or known[rows.behind].any():
        return None
    total = np.zeros((*branch.shape, N_EVENTS), np.int64)
    simple = [set(s) <= set(SUBSTITUTES) for s in interface.groups]
    _add_substitutes(total, branch, simple, interface)
    found, designs = brackets(rows.trace, known), _designs(branch, simple, interface)
    # those with many hooked stores first: see `watch`
    told = (designs.tables[:, _STORES] == interface.store).sum(axis=1)
    left = np.argsort(-told, kind="stable")
    while len(left):
        left = _one_replay(total, designs, left, found, interface)
    counts = total.reshape(-1, N_EVENTS)
    return counts, counts


def count_shadow(
    mode: Shadow | KvmPvmmu, trace: Trace, branch: Branch
) -> tuple[np.ndarray, np.ndarray] | None:
    """Count all classes of a branch in a mode on the shadow engine.

    Parameters
    ----------
    mode : Shadow or KvmPvmmu
        The mode.
    trace : Trace
        The operations.
    branch : Branch
        Of the mode's partition.

    Returns
    -------
    low, high : int64[class, N_EVENTS] or None
        As of `count_by_replays`.
    """
    rows = rows_of(trace)

    def replayed(hooks: HookSet) -> tuple[np.ndarray, np.ndarray]:
        seen = np.zeros((N_OPS, 2), np.int64)
        mechanism = mode.mechanism_of_rows(trace, hooks)
        assert not isinstance(mechanism, Infeasible)
        return totals(mode.replayed(rows, mechanism, seen=seen).counts), seen

    def table(hooks: HookSet) -> np.ndarray:
        return mode.mechanism_table(trace, hooks)[0][:N_OPS]

    if isinstance(mode, KvmPvmmu):
        interface = Interface(
            mode.groups(trace), table, replayed, store=Told.RECORD, release=Told.RELEASE,
            call=Event.MMU_OP, update=Event.MMU_OP_RECORDS, releases_are_updates=True, most=0,
            deferred=True,
        )  # fmt: skip
    else:
        interface = Interface(
            mode.groups(trace), table, replayed, store=Mechanism.CALL_STORE,
            release=Mechanism.CALL_UNSHADOW, call=Event.VMCALL, update=Event.VMCALL_UPDATES,
            releases_are_updates=False, most=QUEUE, deferred=False,
        )  # fmt: skip
    return count_by_replays(rows, branch, interface)


def _may_meet(rows: Rows, interface: Interface) -> bool:
    """Whether a call that cannot wait may meet updates that do, or a flush may be none."""
    covered = {op for s in interface.groups for n in s for op in catalogue()[n].operations}
    inside = brackets(rows.trace, np.ones(len(rows.trace), np.bool_)).inside
    now = [int(op) for op in covered - set(STORE_OPS) - {Op(o) for o in _BRACKETS}]
    flushes = rows.trace["op"] == Op.FLUSH_USER
    return bool(inside[now].any() or (rows.columns[flushes, TIMES] == 0).any())


def _add_substitutes(
    total: np.ndarray, branch: Branch, simple: list[bool], interface: Interface
) -> None:
    """Replay each substitute alone, and add what it changes."""
    remote = [i for i, s in enumerate(interface.groups) if s == ("flush_tlb_multi",)]
    companies = [c.hooks for c in branch.groups[remote[0]].feasible] if remote else [HookSet()]
    for number, hooks in enumerate(companies):
        without, _ = interface.replayed(hooks)
        for axis in (i for i, one in enumerate(simple) if one):
            for k, c in enumerate(branch.groups[axis].feasible):
                at: list[int | slice] = [slice(None)] * len(branch.shape)
                at[axis] = k
                if remote:
                    at[remote[0]] = number
                total[tuple(at)] += interface.replayed(c.hooks | hooks)[0] - without


@dataclass(frozen=True)
class _Designs:
    """A setting for each group but the substitutes', in all combinations.

    Parameters
    ----------
    at : list of tuple
        Their places among the classes.
    hooks : list of HookSet
        Which hooks.
    tables : uint8[design, N_OPS]
        What they carry.
    lazy : bool[design]
        With a bracket.
    """

    at: list[tuple[int | slice, ...]]
    hooks: list[HookSet]
    tables: np.ndarray
    lazy: np.ndarray


def _designs(branch: Branch, simple: list[bool], interface: Interface) -> _Designs:
    at, hooks = [], []
    ranges = (range(1 if one else n) for one, n in zip(simple, branch.shape, strict=True))
    for numbers in product(*ranges):
        chosen = list(zip(numbers, simple, branch.groups, strict=True))
        masks = (group.feasible[n].hooks.mask for n, one, group in chosen if not one)
        hooks.append(HookSet(functools.reduce(operator.or_, masks, 0)))
        at.append(tuple(slice(None) if one else n for n, one, _ in chosen))
    tables = np.array([interface.mechanisms(h) for h in hooks])
    return _Designs(at, hooks, tables, np.array(["lazy_mmu" in h for h in hooks]))


def _one_replay(
    total: np.ndarray, designs: _Designs, left: np.ndarray, found: Brackets, interface: Interface
) -> np.ndarray:
    """Replay the first design left, add the counts of all it speaks for, return the others."""
    one = left[0]
    hooks, first = designs.hooks[one], designs.tables[one]
    lazy = bool(designs.lazy[one]) and interface.deferred
    counts, seen = interface.replayed(hooks if lazy else hooks - HookSet.of("lazy_mmu"))
    same = _same(seen)
    if lazy:
        same &= found.inside == 0
    trapped = np.where(same, seen[:, TRAPPED], 0)
    base = counts - _calls(first, lazy, found, interface)
    base[Event.PTE_EMULATION] -= trapped[first == Mechanism.STORE].sum()
    spoken = _spoken_for(first, designs.tables[left], same, found, interface)
    for i in left[spoken].tolist():
        table = designs.tables[i]
        counts = base + _calls(table, bool(designs.lazy[i]), found, interface)
        counts[Event.PTE_EMULATION] += trapped[table == Mechanism.STORE].sum()
        total[designs.at[i]] += counts
    silent: np.ndarray = left[~spoken]
    return silent


def _same(seen: np.ndarray) -> np.ndarray:
    """Return the operations that leave the same state behind, told or not: bool[N_OPS]."""
    out = np.zeros(N_OPS, np.bool_)
    out[_STORES + _RELEASES] = seen[_STORES + _RELEASES, DIFFERS] == 0
    if seen[ANY, DIFFERS]:
        out &= seen[:, TRAPPED] == 0
    return out


def _spoken_for(
    first: np.ndarray, tables: np.ndarray, same: np.ndarray, found: Brackets, interface: Interface
) -> np.ndarray:
    """Return which designs go through the states of the first one: bool[design]."""
    equal = (first == tables) | ~found.present
    equal |= same & (first == interface.store) & (tables == Mechanism.STORE)
    equal[:, _RELEASES] |= same[_RELEASES]
    if not interface.deferred:
        equal[:, _BRACKETS] = True
    out: np.ndarray = equal.all(axis=1)
    return out


def _calls(table: np.ndarray, lazy: bool, found: Brackets, interface: Interface) -> np.ndarray:
    """Return the events of hooked stores and releases; what is deferred in brackets left out."""
    told, released = np.zeros(N_OPS, np.bool_), np.zeros(N_OPS, np.bool_)
    told[_STORES] = table[_STORES] == interface.store
    released[_RELEASES] = table[_RELEASES] == interface.release
    releases, outside = found.outside[released].sum(), found.outside[told].sum()
    waiting = found.inside[told].sum()
    out = np.zeros(N_EVENTS, np.int64)
    out[interface.call] = out[interface.update] = outside
    if not lazy:
        out[interface.call] += waiting
        out[interface.update] += waiting
    elif not interface.deferred:
        out[interface.call] += found.calls(told, interface.most)
        out[interface.update] += waiting
        out[Event.QUEUED] = waiting
    out[interface.call] += releases
    out[interface.update] += releases if interface.releases_are_updates else 0
    return out
