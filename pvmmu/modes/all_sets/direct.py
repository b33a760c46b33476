"""Direct mode: what every class of a branch counts, from the kinds of pieces of a trace.

A piece heeds only the groups whose operations occur in it. So each kind is replayed under the
settings of these groups alone, kinds that heed the same ones together, and a class's counts are a
sum over tables of a few dimensions. See `pvmmu.modes.all_sets.segments`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.modes.all_sets.segments import (
    BEHIND,
    FIXED,
    N_CODES,
    PAIRS,
    Kinds,
    codes_of,
    kinds,
)
from pvmmu.modes.all_sets.segments_kernel import (
    Pieces,
    replay_pieces,
)
from pvmmu.modes.direct import Direct
from pvmmu.modes.direct.encode_trace import rows_of, walks_of
from pvmmu.modes.direct.kernel import Backend, Mechanism, Walks
from pvmmu.modes.direct.multicall import new_machine
from pvmmu.modes.direct.rules import RANGES
from pvmmu.modes.events import N_EVENTS
from pvmmu.modes.outcome import counts_of_rows
from pvmmu.modes.partition import Branch

#: Hook sets of one call of the kernel.
_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class Mechanisms:
    """What each setting of each group makes of each code, the others being as in `base`.

    Parameters
    ----------
    base : uint8[N_CODES]
        Under the first setting of every group.
    tables : list of uint8[setting, N_CODES]
        One for each group.
    ranged : list of bool[setting, N_CODES]
        Likewise: carried by a range call.
    heeds : list of bool[N_CODES]
        Codes that the group changes.
    multi : int
        Number of the group of flush_tlb_multi; -1 if there is no setting.
    """

    base: np.ndarray
    tables: list[np.ndarray]
    ranged: list[np.ndarray]
    heeds: list[np.ndarray]
    multi: int


def mechanisms_of(branch: Branch, table) -> Mechanisms:  # type: ignore[no-untyped-def]
    """Tabulate the groups of a branch.

    Parameters
    ----------
    branch : Branch
        The groups.
    table : callable
        Hook set -> uint8[N_OPS * 4], the mechanism of each operation in each state.

    Raises
    ------
    ValueError
        Two groups change one code: they are not independent.
    """
    rest = branch.setting.hooks
    for s in branch.groups:
        rest |= s.feasible[0].hooks
    tables, ranged, heeds, multi = [], [], [], -1
    for i, s in enumerate(branch.groups):
        others = rest - HookSet.of(*s.free)
        sets = [others | c.hooks for c in s.feasible]
        tables.append(np.stack([table(h) for h in sets]))
        ranged.append(np.stack([_ranged(h) for h in sets]))
        heeds.append((tables[i] != tables[i][0]).any(0) | (ranged[i] != ranged[i][0]).any(0))
        if "flush_tlb_multi" in s.free and len(s.feasible) > 1:
            multi = i
    if np.sum(heeds, axis=0).max(initial=0) > 1:
        raise ValueError("two groups change one operation")
    return Mechanisms(table(rest), tables, ranged, heeds, multi)


def _ranged(hooks: HookSet) -> np.ndarray:
    out = np.zeros(PAIRS, np.bool_)
    for name, op in RANGES:
        if name in hooks:
            out[op * 4 : op * 4 + 4] = True
    return out


def _tables_of_sets(
    c: Mechanisms, branch: Branch, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return mechanism and range call of each code under some hook sets.

    Parameters
    ----------
    c : Mechanisms
        The groups.
    branch : Branch
        Of these groups.
    chosen : int64[set, group]
        The setting of each group.

    Returns
    -------
    uint8[set, N_CODES], bool[set, N_CODES]
    """
    n = len(chosen)
    out, ranged = np.zeros((n, N_CODES), np.uint8), np.zeros((n, N_CODES), np.bool_)
    out[:, :PAIRS] = c.base
    out[:, FIXED:BEHIND] = np.arange(BEHIND - FIXED)
    for i, heeds in enumerate(c.heeds):
        out[:, :PAIRS][:, heeds] = c.tables[i][chosen[:, i]][:, heeds]
        ranged[:, :PAIRS] |= c.ranged[i][chosen[:, i]]
    names = [set(s.feasible[0].hooks) for s in branch.groups]
    always = any("flush_tlb_multi" in n for n in names)
    hooked = np.full(n, always)
    if c.multi >= 0:
        has = np.array(["flush_tlb_multi" in g.hooks for g in branch.groups[c.multi].feasible])
        hooked = has[chosen[:, c.multi]]
    out[:, BEHIND:] = np.where(hooked[:, None], Mechanism.NOTHING, out[:, :PAIRS])
    return out, ranged


def _projections(c: Mechanisms, codes: np.ndarray) -> list[np.ndarray]:
    """Return for each group which of its settings are one, as far as some codes are concerned.

    Parameters
    ----------
    c : Mechanisms
        The groups.
    codes : int16[...]
        Codes that occur.

    Returns
    -------
    list of int64[setting]
        Number of the group of each setting, from 0 in order of appearance; all zero where the group
        does not matter.
    """
    behind = codes[codes >= BEHIND] - BEHIND
    pairs = np.concatenate([codes[codes < PAIRS], behind])
    out = []
    for i, (table, ranged) in enumerate(zip(c.tables, c.ranged, strict=True)):
        if i == c.multi and len(behind):
            out.append(np.arange(len(table)))
            continue
        seen: dict[bytes, int] = {}
        cut = np.concatenate([table[:, pairs], ranged[:, pairs]], axis=1)
        out.append(np.array([seen.setdefault(row.tobytes(), len(seen)) for row in cut]))
    return out


def count_segments(
    trace: Trace, rows: np.ndarray, found: Kinds, branch: Branch, c: Mechanisms, walks: Walks,
    backend: Backend, limits: tuple[int, int, bool], batched: bool,
) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
    """Count every class of a branch.

    Parameters
    ----------
    trace : Trace
        The operations.
    rows : ROW[row]
        As the loop reads them.
    found : Kinds
        Of `kinds`.
    branch : Branch
        The groups.
    c : Mechanisms
        What they do.
    walks, backend, limits, batched
        As for `run_direct` and `new_machine`.

    Returns
    -------
    low, high : int64[class, N_EVENTS] or None
        In the order of `Partition.feasible`; None if a piece left something behind.
    """
    totals = []
    for times in counts_of_rows(trace):
        tables: dict[tuple[int, ...], np.ndarray] = {}
        for kind_numbers, maps in _groups(found, c):
            axes = tuple(i for i, m in enumerate(maps) if m.max() > 0)
            sets = np.array(list(product(*(range(m.max() + 1) for m in maps))), np.int64)
            firsts = [np.unique(m, return_index=True)[1] for m in maps]
            chosen = np.stack([f[sets[:, i]] for i, f in enumerate(firsts)], axis=1)
            counted = np.zeros((len(sets), N_EVENTS), np.int64)
            part = _part(found, kind_numbers)
            at = part.rows
            pieces = Pieces(
                rows[at], part.codes, times[at], part.starts, part.number, part.loaded, part.last
            )
            for a in range(0, len(sets), _AT_ONCE):
                machine = new_machine(trace.platform.vcpus, limits, batched)
                luts = _tables_of_sets(c, branch, chosen[a : a + _AT_ONCE])
                some = counted[a : a + _AT_ONCE]
                if not replay_pieces(pieces, *luts, walks, backend, machine, some):
                    return None
            shape = [m.max() + 1 for m in maps]
            full = _expand(counted, shape, maps, axes)
            tables[axes] = tables[axes] + full if axes in tables else full
        totals.append(_sum(branch, tables))
    return totals[0], totals[-1]


def count_direct(
    mode: Direct, trace: Trace, branch: Branch
) -> tuple[np.ndarray, np.ndarray] | None:
    """Count all classes of a branch in direct mode.

    Parameters
    ----------
    mode : Direct
        With its backend.
    trace : Trace
        The operations.
    branch : Branch
        Of the mode's partition.

    Returns
    -------
    low, high : int64[class, N_EVENTS] or None
        As of `count_segments`.
    """
    pins = branch.setting.hooks
    numbers, limits, batched = mode.machine(trace, pins)
    rows, walks = rows_of(trace), walks_of(trace)
    key = ("direct segments", mode.spec, pins.mask)
    if key not in trace.derived:
        codes = codes_of(trace, mode.kinds(trace, pins), mode.rules_on(trace), pins)
        trace.derived[key] = kinds(trace, rows, codes, walks, closed=batched)
    found: Kinds = trace.derived[key]

    def table(hooks: HookSet) -> np.ndarray:
        return mode.mechanism_table(trace, hooks)[0][:PAIRS]

    try:
        mechanisms = mechanisms_of(branch, table)
    except ValueError:  # pragma: no cover - groups are independent
        return None
    return count_segments(trace, rows, found, branch, mechanisms, walks, numbers, limits, batched)


def _expand(
    counted: np.ndarray, shape: Sequence[int], maps: list[np.ndarray], axes: tuple[int, ...]
) -> np.ndarray:
    """Return counts by the settings of the groups that matter."""
    out = counted.reshape(*(shape[i] for i in axes), N_EVENTS)
    for k, i in enumerate(axes):
        out = np.take(out, maps[i], axis=k)
    return out


def _groups(found: Kinds, c: Mechanisms):  # type: ignore[no-untyped-def]
    """Yield groups of kinds that heed the same settings: (int64[kind], projections)."""
    matters = np.flatnonzero(np.any(c.heeds, axis=0)) if c.heeds else np.zeros(0, np.int64)
    number = np.full(N_CODES, -1, np.int64)
    number[matters] = np.arange(len(matters))
    used = np.unique(found.codes[found.codes >= BEHIND])
    number[used] = len(matters) + np.arange(len(used))
    codes = np.concatenate([matters, used]).astype(np.int16)
    present = np.zeros((len(found.number), len(codes)), np.bool_)
    kind = np.repeat(np.arange(len(found.number)), np.diff(found.starts))
    of = number[found.codes]
    present[kind[of >= 0], of[of >= 0]] = True
    patterns, which = np.unique(present, axis=0, return_inverse=True)
    merged: dict[bytes, tuple[list[int], list[np.ndarray]]] = {}
    for p, pattern in enumerate(patterns):
        maps = _projections(c, codes[pattern])
        key = b"|".join(m.tobytes() for m in maps)
        merged.setdefault(key, ([], maps))[0].append(p)
    for numbers, maps in merged.values():
        yield np.flatnonzero(np.isin(which.ravel(), numbers)), maps


def _part(found: Kinds, numbers: np.ndarray) -> Kinds:
    """Return some of the kinds."""
    lengths = np.diff(found.starts)[numbers]
    begin = np.concatenate([[0], np.cumsum(lengths)])
    at = np.repeat(found.starts[numbers] - begin[:-1], lengths) + np.arange(begin[-1])
    return Kinds(
        found.rows[at],
        found.codes[at],
        begin,
        found.number[numbers],
        found.loaded[numbers],
        found.last[numbers],
    )


def _sum(branch: Branch, tables: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """Add up the tables over all classes of a branch: int64[class, N_EVENTS]."""
    out = np.zeros((*branch.shape, N_EVENTS), np.int64)
    for axes, table in tables.items():
        shape = [n if i in axes else 1 for i, n in enumerate(branch.shape)]
        out += table.reshape(*shape, N_EVENTS)
    return out.reshape(-1, N_EVENTS)
