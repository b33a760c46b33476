"""Kernels that find like pieces of a trace of direct mode, and replay each kind once."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pvmmu._jit import kernel
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.direct.kernel import Mechanism, run_direct
from pvmmu.modes.events import N_EVENTS

#: A row as two pieces are compared by it; what cannot matter is zero.
TOKEN: Final = ("what", "times", "most", "walk", "present", "mm", "table", "slot", "region")


@kernel
def loaded_at(op, cpu, mm, mechanism, starts, vcpus):  # type: ignore[no-untyped-def]
    """Return the address space in each CPU's CR3 before each piece: int64[piece, vcpus].

    Parameters
    ----------
    op, cpu : uint8[row]
    mm : int32[row]
        Columns of the trace.
    mechanism : uint8[row]
        `Mechanism` numbers under any hook set of the plan.
    starts : int64[piece + 1]
        First row of each piece.
    vcpus : int
        CPUs.
    """
    pieces = starts.shape[0] - 1
    out = np.full((pieces, vcpus), -1, np.int64)
    loaded = np.full(vcpus, -1, np.int64)
    for piece in range(pieces):
        out[piece] = loaded
        for row in range(starts[piece], starts[piece + 1]):
            how = mechanism[row]
            if how == Mechanism.UNPIN or how == Mechanism.UNPIN_ROOT:
                for c in range(vcpus):
                    if loaded[c] == mm[row]:
                        loaded[c] = 0
            if op[row] == Op.LOAD_CR3 and how != Mechanism.NOTHING:
                loaded[cpu[row]] = mm[row]
    return out


@kernel
def localise(tokens, starts, loaded, n_mms, n_tables, n_regions):  # type: ignore[no-untyped-def]
    """Number address spaces, tables and regions in each piece anew, in order of appearance.

    Parameters
    ----------
    tokens : int64[row, 9]
        `TOKEN`; ``mm``, ``table`` and ``region`` are numbers from 1 (0: does not matter), changed
        in place.
    starts : int64[piece + 1]
        First row of each piece.
    loaded : int64[piece, vcpus]
        Address spaces in the CPUs' CR3, numbered like ``mm``; changed in place.
    n_mms, n_tables, n_regions : int
        Greatest numbers.
    """
    mm_seen, mm_as = np.full(n_mms + 1, -1, np.int64), np.zeros(n_mms + 1, np.int64)
    table_seen, table_as = np.full(n_tables + 1, -1, np.int64), np.zeros(n_tables + 1, np.int64)
    region_seen, region_as = np.full(n_regions + 1, -1, np.int64), np.zeros(n_regions + 1, np.int64)
    for piece in range(starts.shape[0] - 1):
        # init_mm (number 2) keeps its number: an unpinned address space leaves it in CR3
        mm_seen[2], mm_as[2] = piece, 2
        mms, tables, regions = 3, 1, 1
        for c in range(loaded.shape[1]):
            mms = _rename(mm_seen, mm_as, loaded[piece, c], piece, mms)
            loaded[piece, c] = mm_as[loaded[piece, c]]
        for row in range(starts[piece], starts[piece + 1]):
            t = tokens[row]
            if t[5] > 0:
                mms = _rename(mm_seen, mm_as, t[5], piece, mms)
                t[5] = mm_as[t[5]]
            if t[6] > 0:
                tables = _rename(table_seen, table_as, t[6], piece, tables)
                t[6] = table_as[t[6]]
            if t[8] > 0:
                regions = _rename(region_seen, region_as, t[8], piece, regions)
                t[8] = region_as[t[8]]


@kernel
def _rename(seen, named, number, piece, free):  # type: ignore[no-untyped-def]
    """Give a number its name in this piece; return the next free name."""
    if seen[number] == piece:
        return free
    seen[number], named[number] = piece, free
    return free + 1


@kernel
def kinds_of_pieces(tokens, starts, loaded):  # type: ignore[no-untyped-def]
    """Find the pieces that are alike.

    Parameters
    ----------
    tokens : int64[row, 9]
        After `localise`.
    starts : int64[piece + 1]
        First row of each piece.
    loaded : int64[piece, vcpus]
        After `localise`.

    Returns
    -------
    first, number : int64[kind]
        A piece of each kind, and how many there are of it.
    """
    pieces = starts.shape[0] - 1
    size = 4
    while size < 2 * pieces:
        size *= 2
    slots = np.full(size, -1, np.int64)
    first, number = np.empty(pieces, np.int64), np.zeros(pieces, np.int64)
    hashes = np.zeros(pieces, np.uint64)
    kinds = 0
    for piece in range(pieces):
        h = np.uint64(14695981039346656037)
        for row in range(starts[piece], starts[piece + 1]):
            for k in range(tokens.shape[1]):
                h = (h ^ np.uint64(tokens[row, k])) * np.uint64(1099511628211)
        h ^= h >> np.uint64(29)
        at = np.int64(h & np.uint64(size - 1))
        while slots[at] >= 0:
            kind = slots[at]
            if hashes[kind] == h and _alike(tokens, starts, loaded, first[kind], piece):
                break
            at = (at + 1) & (size - 1)
        if slots[at] < 0:
            slots[at] = kinds
            first[kinds], hashes[kinds] = piece, h
            kinds += 1
        number[slots[at]] += 1
    return first[:kinds], number[:kinds]


@kernel
def _alike(tokens, starts, loaded, a, b):  # type: ignore[no-untyped-def]
    """Whether two pieces are the same, row for row."""
    length = starts[a + 1] - starts[a]
    if starts[b + 1] - starts[b] != length:
        return False
    for c in range(loaded.shape[1]):
        if loaded[a, c] != loaded[b, c]:
            return False
    for i in range(length):
        for k in range(tokens.shape[1]):
            if tokens[starts[a] + i, k] != tokens[starts[b] + i, k]:
                return False
    return True


class Pieces(NamedTuple):
    """Pieces to replay, one after the other."""

    rows: np.ndarray  # ROW[row]
    codes: np.ndarray  # int16[row]: index into the tables of mechanisms
    times: np.ndarray  # int64[row]: how often each operation is made
    starts: np.ndarray  # int64[piece + 1]
    weight: np.ndarray  # int64[piece]: how often it occurs
    loaded: np.ndarray  # int64[piece, vcpus]: address spaces in the CPUs' CR3 at its start
    last: np.ndarray  # bool[piece]: the trace ends with it, in whatever state


@kernel
def replay_pieces(p, tables, ranged, walks, backend, m, out):  # type: ignore[no-untyped-def]
    """Replay pieces under many hook sets and add up what they count.

    Parameters
    ----------
    p : Pieces
        Checked.
    tables : uint8[set, code]
        `Mechanism` of each code under each hook set.
    ranged : bool[set, code]
        A range call carries it.
    walks, backend : NamedTuple
        As for `run_direct`.
    m : Machine
        CPUs with empty buffers.
    out : int64[set, N_EVENTS]
        Receives the sums.

    Returns
    -------
    bool
        Every piece left the machine as clean as it found it; if not, ``out`` means nothing.
    """
    n = p.rows.shape[0]
    mechanism, in_range = np.empty(n, np.uint8), np.empty(n, np.bool_)
    for s in range(tables.shape[0]):
        for row in range(n):
            mechanism[row], in_range[row] = tables[s, p.codes[row]], ranged[s, p.codes[row]]
        for piece in range(p.starts.shape[0] - 1):
            a, b = p.starts[piece], p.starts[piece + 1]
            for c in range(m.cpus.shape[0]):
                m.cpus[c].loaded = p.loaded[piece, c]
            m.counts[:] = 0
            run_direct(p.rows[a:b], mechanism[a:b], p.times[a:b], in_range[a:b], walks, backend, m)
            for e in range(N_EVENTS):
                out[s, e] += p.weight[piece] * m.counts[e]
            if p.last[piece]:
                _wipe(m)
            elif not _is_clean(m):
                return False
    return True


@kernel
def _is_clean(m):  # type: ignore[no-untyped-def]
    """Whether nothing waits, no bracket is open and no table is writable."""
    for c in range(m.cpus.shape[0]):
        if m.cpus[c].entries != 0 or m.cpus[c].brackets != 0:
            return False
    return m.slots[0].table < 0 and m.slots[1].table < 0


@kernel
def _wipe(m):  # type: ignore[no-untyped-def]
    """Make the machine clean without counting anything."""
    for c in range(m.cpus.shape[0]):
        cpu = m.cpus[c]
        cpu.entries = cpu.bytes = cpu.callbacks = cpu.brackets = 0
    for which in range(2):
        m.slots[which].table = -1
        m.slots[which].entries = 0
        m.slots[which].changed[:] = 0
