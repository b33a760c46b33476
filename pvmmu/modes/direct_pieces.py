"""Direct mode under all hook sets at once, exactly: like pieces of a trace are replayed once.

Between brackets, and between the runs that a range call covers, the multicall buffers are empty
whatever is hooked. So a trace falls into pieces that do not know of each other but for what is in
CR3, and its counts are the sum of theirs. Pieces that are alike (the same operations on tables in
the same state) count alike; most of a trace is a few hundred kinds of them. A piece heeds only the
switches whose operations occur in it, so each kind is replayed under the choices of these switches
alone, and every class's counts are a sum over tables of a few dimensions.

With batched writable tables a piece ends only where all of these are hooked in again: at a flush or
CR3 load outside of brackets. Nothing here is assumed: each piece must leave the machine clean, else
`count_plan` gives up and the classes are replayed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final

import numpy as np

from pvmmu.guest.ops import Trace
from pvmmu.guest.vocabulary import ENTRY_OPS, N_OPS, Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.base import counts_of_rows
from pvmmu.modes.direct_kernel import Backend, Carrier, Walks
from pvmmu.modes.direct_rules import RANGES
from pvmmu.modes.events import N_EVENTS
from pvmmu.modes.lattice import Plan
from pvmmu.modes.multicall import new_machine
from pvmmu.modes.pieces_kernel import (
    TOKEN,
    Pieces,
    kinds_of_pieces,
    loaded_at,
    localise,
    replay_pieces,
)

#: Codes of rows: (operation, state) pairs, then carriers that no hook changes, then pairs that a
#: hooked flush_tlb_multi makes superfluous.
PAIRS: Final = N_OPS * 4
FIXED, BEHIND, N_CODES = PAIRS, PAIRS + 64, PAIRS + 64 + PAIRS
#: Hook sets of one call of the kernel.
_AT_ONCE: Final = 4096
_OPENS: Final = {
    Op.LAZY_ENTER: 1, Op.LAZY_RESUME: 1, Op.LAZY_LEAVE: -1, Op.LAZY_PAUSE: -1,
    Op.SWITCH_START: 1, Op.SWITCH_END: -1,
}  # fmt: skip
_CLOSES: Final = (Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.LOAD_CR3)
_UNPINS: Final = (Carrier.UNPIN, Carrier.UNPIN_ROOT)


@dataclass(frozen=True)
class Kinds:
    """The kinds of pieces of a trace under a plan.

    Parameters
    ----------
    rows : int64[...]
        Rows of one piece of each kind, one kind after the other.
    codes : int16[...]
        Their codes.
    starts : int64[kind + 1]
        Where a kind's rows begin.
    number : int64[kind]
        How many pieces are of it.
    loaded : int64[kind, vcpus]
        Address spaces in CR3 at its start.
    last : bool[kind]
        The piece with which the trace ends, a kind of its own.
    """

    rows: np.ndarray
    codes: np.ndarray
    starts: np.ndarray
    number: np.ndarray
    loaded: np.ndarray
    last: np.ndarray


def cuts(trace: Trace, rows: np.ndarray, closed: bool) -> np.ndarray:
    """Return the rows at which pieces begin, and the length: int64[piece + 1].

    Parameters
    ----------
    trace : Trace
        The operations.
    rows : ROW[row]
        As the loop of direct mode reads them.
    closed : bool
        A piece may only end where writable tables are hooked in again, whatever is hooked.
    """
    op, cpu = trace["op"], trace["cpu"]
    step = np.zeros(N_OPS, np.int64)
    for o, change in _OPENS.items():
        step[o] = change
    depth = np.cumsum(step[op])  # over all CPUs: zero only if no CPU is in a bracket
    pending = np.zeros(len(trace) + 1, np.int64)
    entry = np.isin(op, [int(o) for o in ENTRY_OPS])
    for c in range(trace.platform.vcpus):
        for _, kind in RANGES:
            # from a row that is not the end of its run up to the next row of the same kind
            at = np.flatnonzero((cpu == c) & (op == kind) & entry)
            open_ended = ~rows["run_end"][at[:-1]]
            np.add.at(pending, at[:-1][open_ended], 1)
            np.add.at(pending, at[1:][open_ended], -1)
    clean = (depth == 0) & (np.cumsum(pending)[:-1] == 0)
    if closed:
        behind = (trace["flags"] & Flag.BEHIND) != 0
        was_open = np.concatenate([[0], depth[:-1]]) > 0
        closes = np.isin(op, _CLOSES) & ~behind & ~was_open
        # a context switch loads CR3 in its bracket; sent there or at the end, if nothing is between
        ends = (op == Op.SWITCH_END) & np.concatenate([[False], (op == Op.LOAD_CR3) & ~behind])[:-1]
        clean &= closes | ends
    inside = np.flatnonzero(clean[:-1]) + 1
    return np.concatenate([[0], inside, [len(trace)]]).astype(np.int64)


def codes_of(trace: Trace, states: np.ndarray, moments: np.ndarray, plan: HookSet) -> np.ndarray:
    """Return the code of each row, int16[row].

    Parameters
    ----------
    trace : Trace
        The operations.
    states : int64[row]
        Of their tables.
    moments : uint8[row]
        `Carrier` numbers of pins and unpins, 0 elsewhere.
    plan : HookSet
        Hooks of the strategy.
    """
    pair = trace["op"].astype(np.int64) * 4 + states
    behind, cr3 = (trace["flags"] & Flag.BEHIND) != 0, trace["op"] == Op.LOAD_CR3
    out = np.where(moments > 0, FIXED + moments.astype(np.int64), pair)
    out = np.where(behind & ~cr3, BEHIND + pair, out)
    if "exit_mmap" in plan:
        out[behind & cr3] = FIXED + Carrier.NOTHING
    return out.astype(np.int16)


def kinds(
    trace: Trace, rows: np.ndarray, codes: np.ndarray, walks: Walks, *, closed: bool
) -> Kinds:
    """Cut a trace into pieces and find those that are alike.

    Parameters
    ----------
    trace : Trace
        The operations.
    rows : ROW[row]
        As the loop of direct mode reads them.
    codes : int16[row]
        Of `codes_of`.
    walks : Walks
        Over the tables of its address spaces.
    closed : bool
        As for `cuts`.
    """
    starts, vcpus = cuts(trace, rows, closed), trace.platform.vcpus
    carrier = np.where((codes >= FIXED) & (codes < BEHIND), codes - FIXED, Carrier.STORE)
    carrier = carrier.astype(np.uint8)
    loaded = loaded_at(trace["op"], trace["cpu"], trace["mm"], carrier, starts, vcpus)
    tokens, sizes = _tokens(trace, rows, codes, carrier, walks, closed)
    local = loaded + 2
    localise(tokens, starts, local, *sizes)
    tokens[starts[-2], 3] = -1  # the last piece is like no other
    first, number = kinds_of_pieces(tokens, starts, local)
    lengths = starts[first + 1] - starts[first]
    begin = np.concatenate([[0], np.cumsum(lengths)])
    at = np.repeat(starts[first] - begin[:-1], lengths) + np.arange(begin[-1])
    last = first == len(starts) - 2
    return Kinds(at, codes[at], begin, number, loaded[first], last)


def _tokens(
    trace: Trace, rows: np.ndarray, codes: np.ndarray, carrier: np.ndarray, walks: Walks,
    stores: bool,
) -> tuple[np.ndarray, tuple[int, int, int]]:  # fmt: skip
    """Return what pieces are compared by, and the greatest numbers in it."""
    op, times = trace["op"], counts_of_rows(trace)
    moment = np.isin(carrier, (Carrier.PIN, Carrier.PIN_ROOT, *_UNPINS))
    entry = np.isin(op, [int(o) for o in ENTRY_OPS])
    place = (entry | (op == Op.FAULT)) & stores
    out = np.zeros((len(trace), len(TOKEN)), np.int64)
    bits = rows["again"] * 1 | rows["drops"] * 2 | rows["run_end"] * 4
    what = codes.astype(np.int64) << 32 | op.astype(np.int64) << 16
    out[:, 0] = what | trace["cpu"].astype(np.int64) << 8 | bits
    out[:, 1], out[:, 2] = times[0], times[-1]
    out[:, 3] = np.where(moment, _shapes(walks)[rows["walk"]], 0)
    out[:, 4] = np.where(moment, rows["present"], 0)
    mm = (op == Op.LOAD_CR3) | np.isin(carrier, _UNPINS) | place
    out[:, 5] = np.where(mm, trace["mm"].astype(np.int64) + 2, 0)
    tables, table = np.unique(trace["table"], return_inverse=True)
    known = (trace["table"] >= 0) & entry & stores
    out[:, 6] = np.where(known, table + 1, 0)
    out[:, 7] = np.where(entry & stores, trace["index"], 0)
    regions, region = np.unique(trace["va"] >> np.uint64(21), return_inverse=True)
    out[:, 8] = np.where(place, region + 1, 0)
    return out, (len(trace.mms) + 2, len(tables), len(regions))


def _shapes(walks: Walks) -> np.ndarray:
    """Number walks by the levels of their tables; the last element is for rows without one."""
    seen: dict[bytes, int] = {}
    bounds = zip(walks.start[:-1].tolist(), walks.start[1:].tolist(), strict=True)
    numbers = [seen.setdefault(walks.level[a:b].tobytes(), len(seen) + 1) for a, b in bounds]
    return np.array([*numbers, 0], np.int64)


# ---------------------------------------------------------------------- hook sets
@dataclass(frozen=True)
class Carriers:
    """What each choice of each switch makes of each code, the others being as in `base`.

    Parameters
    ----------
    base : uint8[N_CODES]
        Under the first choice of every switch.
    tables : list of uint8[choice, N_CODES]
        One for each switch.
    ranged : list of bool[choice, N_CODES]
        Likewise: carried by a range call.
    heeds : list of bool[N_CODES]
        Codes that the switch changes.
    multi : int
        Number of the switch of flush_tlb_multi; -1 if there is no choice.
    """

    base: np.ndarray
    tables: list[np.ndarray]
    ranged: list[np.ndarray]
    heeds: list[np.ndarray]
    multi: int


def carriers_of(plan: Plan, table) -> Carriers:  # type: ignore[no-untyped-def]
    """Tabulate the switches of a plan.

    Parameters
    ----------
    plan : Plan
        The switches.
    table : callable
        Hook set -> uint8[N_OPS, 4], the carrier of each operation in each state.

    Raises
    ------
    ValueError
        Two switches change one code: they are not independent.
    """
    rest = plan.choice.hooks
    for s in plan.switches:
        rest |= s.good[0].hooks
    tables, ranged, heeds, multi = [], [], [], -1
    for i, s in enumerate(plan.switches):
        others = rest - HookSet.of(*s.free)
        sets = [others | c.hooks for c in s.good]
        tables.append(np.stack([table(h).ravel() for h in sets]))
        ranged.append(np.stack([_ranged(h) for h in sets]))
        heeds.append((tables[i] != tables[i][0]).any(0) | (ranged[i] != ranged[i][0]).any(0))
        if "flush_tlb_multi" in s.free and len(s.good) > 1:
            multi = i
    if np.sum(heeds, axis=0).max(initial=0) > 1:
        raise ValueError("two switches change one operation")
    return Carriers(table(rest).ravel(), tables, ranged, heeds, multi)


def _ranged(hooks: HookSet) -> np.ndarray:
    out = np.zeros(PAIRS, np.bool_)
    for name, op in RANGES:
        if name in hooks:
            out[op * 4 : op * 4 + 4] = True
    return out


def tables_of_sets(c: Carriers, plan: Plan, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return carrier and range call of each code under some hook sets.

    Parameters
    ----------
    c : Carriers
        The switches.
    plan : Plan
        Of these switches.
    chosen : int64[set, switch]
        The choice of each switch.

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
    names = [set(s.good[0].hooks) for s in plan.switches]
    always = any("flush_tlb_multi" in n for n in names)
    hooked = np.full(n, always)
    if c.multi >= 0:
        has = np.array(["flush_tlb_multi" in g.hooks for g in plan.switches[c.multi].good])
        hooked = has[chosen[:, c.multi]]
    out[:, BEHIND:] = np.where(hooked[:, None], Carrier.NOTHING, out[:, :PAIRS])
    return out, ranged


def projections(c: Carriers, codes: np.ndarray) -> list[np.ndarray]:
    """Return for each switch which of its choices are one, as far as some codes are concerned.

    Parameters
    ----------
    c : Carriers
        The switches.
    codes : int16[...]
        Codes that occur.

    Returns
    -------
    list of int64[choice]
        Number of the group of each choice, from 0 in order of appearance; all zero where the switch
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


def count_plan(
    trace: Trace, rows: np.ndarray, found: Kinds, plan: Plan, c: Carriers, walks: Walks,
    backend: Backend, limits: tuple[int, int, bool], batched: bool,
) -> tuple[np.ndarray, np.ndarray] | None:  # fmt: skip
    """Count every class of a plan.

    Parameters
    ----------
    trace : Trace
        The operations.
    rows : ROW[row]
        As the loop reads them.
    found : Kinds
        Of `kinds`.
    plan : Plan
        The switches.
    c : Carriers
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
                luts = tables_of_sets(c, plan, chosen[a : a + _AT_ONCE])
                some = counted[a : a + _AT_ONCE]
                if not replay_pieces(pieces, *luts, walks, backend, machine, some):
                    return None
            shape = [m.max() + 1 for m in maps]
            full = _expand(counted, shape, maps, axes)
            tables[axes] = tables[axes] + full if axes in tables else full
        totals.append(_sum(plan, tables))
    return totals[0], totals[-1]


def _expand(
    counted: np.ndarray, shape: Sequence[int], maps: list[np.ndarray], axes: tuple[int, ...]
) -> np.ndarray:
    """Return counts by the choices of the switches that matter."""
    out = counted.reshape(*(shape[i] for i in axes), N_EVENTS)
    for k, i in enumerate(axes):
        out = np.take(out, maps[i], axis=k)
    return out


def _groups(found: Kinds, c: Carriers):  # type: ignore[no-untyped-def]
    """Yield groups of kinds that heed the same choices: (int64[kind], projections)."""
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
        maps = projections(c, codes[pattern])
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


def _sum(plan: Plan, tables: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """Add up the tables over all classes of a plan: int64[class, N_EVENTS]."""
    out = np.zeros((*plan.shape, N_EVENTS), np.int64)
    for axes, table in tables.items():
        shape = [n if i in axes else 1 for i, n in enumerate(plan.shape)]
        out += table.reshape(*shape, N_EVENTS)
    return out.reshape(-1, N_EVENTS)
