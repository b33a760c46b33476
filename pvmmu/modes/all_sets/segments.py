"""Direct mode under all hook sets at once, exactly: like pieces of a trace are replayed once.

Between brackets, and between the runs that a range call covers, the multicall buffers are empty
whatever is hooked. So a trace falls into pieces that do not know of each other but for what is in
CR3, and its counts are the sum of theirs. Pieces that are alike (the same operations on tables in
the same state) count alike; most of a trace is a few hundred kinds of them. A piece heeds only the
groups whose operations occur in it, so each kind is replayed under the settings of these groups
alone, and every class's counts are a sum over tables of a few dimensions.

With batched writable tables a piece ends only where all of these are hooked in again: at a flush or
CR3 load outside of brackets. Nothing here is assumed: each piece must leave the machine clean, else
`count_branch` gives up and the classes are replayed one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import ALLOC_OPS, ENTRY_OPS, N_OPS, RELEASE_OPS, Flag, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.all_sets.segments_kernel import (
    TOKEN,
    kinds_of_pieces,
    loaded_at,
    localise,
)
from pvmmu.modes.direct.kernel import Mechanism, Walks
from pvmmu.modes.direct.rules import NATIVE_FLUSH_ONE, RANGES
from pvmmu.modes.outcome import counts_of_rows
from pvmmu.modes.rules import Table, resolve

#: Codes of rows: (operation, state) pairs, then mechanisms that no hook changes, then pairs that a
#: hooked flush_tlb_multi makes superfluous.
PAIRS: Final = N_OPS * 4
FIXED, BEHIND, N_CODES = PAIRS, PAIRS + 64, PAIRS + 64 + PAIRS
_OPENS: Final = {
    Op.LAZY_ENTER: 1, Op.LAZY_RESUME: 1, Op.LAZY_LEAVE: -1, Op.LAZY_PAUSE: -1,
    Op.SWITCH_START: 1, Op.SWITCH_END: -1,
}  # fmt: skip
_CLOSES: Final = (Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.LOAD_CR3)
#: Operations that may store to the kernel's entry for a table page.
_PAGES: Final = (*ALLOC_OPS, *RELEASE_OPS, Op.PGD_ALLOC, Op.PGD_FREE)
_UNPINS: Final = (Mechanism.UNPIN, Mechanism.UNPIN_ROOT)


@dataclass(frozen=True)
class Kinds:
    """The kinds of pieces of a trace under a branch.

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
        behind = (trace["flags"] & Flag.NATIVE_ONLY) != 0
        was_open = np.concatenate([[0], depth[:-1]]) > 0
        closes = np.isin(op, _CLOSES) & ~behind & ~was_open
        # a context group loads CR3 in its bracket; sent there or at the end, if nothing is between
        ends = (op == Op.SWITCH_END) & np.concatenate([[False], (op == Op.LOAD_CR3) & ~behind])[:-1]
        clean &= closes | ends
    inside = np.flatnonzero(clean[:-1]) + 1
    return np.concatenate([[0], inside, [len(trace)]]).astype(np.int64)


def codes_of(trace: Trace, kinds: np.ndarray, rules: Table, pins: HookSet) -> np.ndarray:
    """Return the code of each row, int16[row].

    Parameters
    ----------
    trace : Trace
        The operations.
    kinds : uint16[row]
        Of direct mode, under the hooks that pin.
    rules : mapping
        Its table.
    pins : HookSet
        Those of the hooks that pin which are there.
    """
    behind, cr3 = (trace["flags"] & Flag.NATIVE_ONLY) != 0, trace["op"] == Op.LOAD_CR3
    out = kinds.astype(np.int64)
    out[out == NATIVE_FLUSH_ONE] = Op.FLUSH_ONE * 4  # see `BEHIND`
    for kind in np.unique(out[out >= PAIRS]).tolist():  # of a design that can run
        out[kinds == kind] = FIXED + int(resolve(rules, kind, HookSet.every()))  # type: ignore[arg-type]
    out = np.where(behind & ~cr3 & (out < PAIRS), BEHIND + out, out)
    if "exit_mmap" in pins:
        out[behind & cr3] = FIXED + Mechanism.NOTHING
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
    mechanism = np.where((codes >= FIXED) & (codes < BEHIND), codes - FIXED, Mechanism.STORE)
    mechanism = mechanism.astype(np.uint8)
    loaded = loaded_at(trace["op"], trace["cpu"], trace["mm"], mechanism, starts, vcpus)
    tokens, sizes = _tokens(trace, rows, codes, mechanism, walks, closed)
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
    trace: Trace, rows: np.ndarray, codes: np.ndarray, mechanism: np.ndarray, walks: Walks,
    stores: bool,
) -> tuple[np.ndarray, tuple[int, int, int]]:  # fmt: skip
    """Return what pieces are compared by, and the greatest numbers in it."""
    op, times = trace["op"], counts_of_rows(trace)
    moment = np.isin(mechanism, (Mechanism.PIN, Mechanism.PIN_ROOT, *_UNPINS))
    entry = np.isin(op, [int(o) for o in ENTRY_OPS])
    place = (entry | (op == Op.FAULT)) & stores
    out = np.zeros((len(trace), len(TOKEN)), np.int64)
    bits = rows["again"] * 1 | rows["drops"] * 2 | rows["run_end"] * 4
    what = codes.astype(np.int64) << 32 | op.astype(np.int64) << 16
    out[:, 0] = what | trace["cpu"].astype(np.int64) << 8 | bits
    out[:, 1], out[:, 2] = times[0], times[-1]
    out[:, 3] = np.where(moment, _shapes(walks)[rows["walk"]], 0)
    out[:, 4] = np.where(moment, rows["present"], 0)
    mm = (op == Op.LOAD_CR3) | np.isin(mechanism, _UNPINS) | place
    out[:, 5] = np.where(mm, trace["mm"].astype(np.int64) + 2, 0)
    tables, table = np.unique(rows["table"], return_inverse=True)
    stored = (entry | np.isin(op, _PAGES)) & stores
    out[:, 6] = np.where((rows["table"] >= 0) & stored, table + 1, 0)
    out[:, 7] = np.where(stored, rows["slot"], 0)
    regions, region = np.unique(trace["va"] >> np.uint64(21), return_inverse=True)
    out[:, 8] = np.where(place, region + 1, 0)
    return out, (len(trace.mms) + 2, len(tables), len(regions))


def _shapes(walks: Walks) -> np.ndarray:
    """Number walks by the levels of their tables; the last element is for rows without one."""
    seen: dict[bytes, int] = {}
    bounds = zip(walks.start[:-1].tolist(), walks.start[1:].tolist(), strict=True)
    numbers = [seen.setdefault(walks.level[a:b].tobytes(), len(seen) + 1) for a, b in bounds]
    return np.array([*numbers, 0], np.int64)
