"""One pass over accesses: stack distances, in every number of sets and in one big stack."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numba import types
from numba.core import config as numba_config
from numba.extending import intrinsic

from pvmmu._jit import kernel, part
from pvmmu.x86.vectors import move_to_front_16

#: Tags of a set: the most ways that one pass covers.
MAX_WAYS: Final = 16
#: A page number that no page has.
NO_PAGE: Final = (1 << 64) - 1

_Z, _ONE, _4, _6, _63 = (np.uint64(i) for i in (0, 1, 4, 6, 63))
_ONES, _NO_PAGE = np.uint64((1 << 64) - 1), np.uint64(NO_PAGE)
_TOP = np.uint64(1 << MAX_WAYS - 1)
#: 2**64 divided by the golden ratio: spreads page numbers over a hash table.
_SPREAD: Final = np.uint64(0x9E3779B97F4A7C15)


@intrinsic
def _ones_in_word(typingctx, word):  # type: ignore[no-untyped-def]
    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.ctpop(args[0])

    return types.uint64(types.uint64), build


def _ones_in_python(word: np.uint64) -> np.uint64:
    return np.uint64(int(word).bit_count())


_ones: Any = _ones_in_python if numba_config.DISABLE_JIT else _ones_in_word  # type: ignore[attr-defined]


@kernel
def every_geometry(pages, tags, found):  # type: ignore[no-untyped-def]
    """Count at which depth of its set each page is found, for 1, 2, 4, ... sets at once.

    A page that is first in its set is first in the smaller set that it belongs to among twice as
    many sets (Hill and Smith, "Evaluating associativity in CPU caches", IEEE Trans. Computers
    38(12), 1989), so the finer ones need no look.

    Parameters
    ----------
    pages : uint64[n]
        Page numbers.
    tags : uint64[16 * (2 * sets - 1)]
        Sets of 16, in order of last use, for 1 set, then for 2, ...
    found : int64[levels, 17]
        Added to: depth, 16 if it is more or the page is new; pages found first are not counted.
    """
    levels = np.uint64(found.shape[0])
    for i in range(np.uint64(pages.size)):
        page = pages[i]
        level = _Z
        while level < levels:
            below = (_ONE << level) - _ONE
            at = (below + (page & below)) << _4
            if tags[at] == page:
                break
            depth = min(move_to_front_16(tags, at, page, _TOP), np.uint64(MAX_WAYS))
            found[level, depth] += 1
            level += _ONE


class Stack(NamedTuple):
    """State of `every_size`: when each page was last used, and which of those times are alive.

    Time goes in slots; a slot is alive if a page was last used then. The number of live slots after
    a page's own is its stack distance (Bennett and Kruskal, "LRU stack processing", IBM J. Res.
    Dev. 19(4), 1975); they are counted by word of 64, with a Fenwick tree over words.
    """

    keys: np.ndarray  # uint64[capacity]: hash table of page numbers
    slots: np.ndarray  # int64[capacity]: slot of each
    owner: np.ndarray  # int64[slots]: where the page of a slot is in the hash table
    alive: np.ndarray  # uint64[slots / 64]
    tree: np.ndarray  # int64[slots / 64 + 1]
    state: np.ndarray  # int64[2]: next slot, pages
    last: np.ndarray  # uint64[1]: page of the last access


@part
def _compact(s):  # type: ignore[no-untyped-def]
    """Renumber live slots from 0 up; there are fewer of them than half of the slots."""
    slots, owner, alive, tree = s.slots, s.owner, s.alive, s.tree
    n = 0
    for slot in range(owner.size):
        if alive[slot >> 6] >> np.uint64(slot & 63) & _ONE:
            owner[n] = owner[slot]
            slots[owner[n]] = n
            n += 1
    for w in range(alive.size):
        full, part = w < n >> 6, w == n >> 6
        some = (_ONE << np.uint64(n & 63)) - _ONE
        alive[w] = _ONES if full else (some if part else _Z)
    tree[:] = 0
    for w in range(alive.size):
        tree[w + 1] += np.int64(_ones(alive[w]))
        up = w + 1 + ((w + 1) & -(w + 1))
        if up < tree.size:
            tree[up] += tree[w + 1]
    s.state[0] = n


@kernel
def every_size(pages, begin, s, distance):  # type: ignore[no-untyped-def]
    """Count stack distances: how many other pages were used since a page's last use.

    Parameters
    ----------
    pages : uint64[n]
        Page numbers.
    begin : int
        Where to begin.
    s : Stack
        State.
    distance : int64[pages]
        Added to; a first use is not counted.

    Returns
    -------
    int
        Where it stopped: at the end, or at a new page for which there is no room.
    """
    keys, slots, owner, alive, tree = s.keys, s.slots, s.owner, s.alive, s.tree
    mask, last, words = np.uint64(keys.size - 1), s.last[0], np.uint64(alive.size)
    now, room, seen = np.uint64(s.state[0]), np.uint64(owner.size), s.state[1]
    most = min(keys.size // 2, distance.size)
    n, i = np.uint64(pages.size), np.uint64(begin)
    while i < n:
        page = pages[i]
        if page == last:
            distance[0] += 1
            i += _ONE
            continue
        h = (page * _SPREAD) >> np.uint64(20) & mask
        while keys[h] != page and keys[h] != _NO_PAGE:
            h = (h + _ONE) & mask
        if keys[h] != page and seen == most:
            break
        last = page
        i += _ONE
        if now == room:
            _compact(s)
            now = np.uint64(s.state[0])
        if keys[h] == page:
            slot = np.uint64(slots[h])
            w, bit = slot >> _6, slot & _63
            before, j = np.int64(0), w
            while j > _Z:
                before += tree[j]
                j &= j - _ONE
            before += np.int64(_ones(alive[w] << (_63 - bit)))
            distance[seen - before] += 1
            alive[w] &= ~(_ONE << bit)
            j = w + _ONE
            while j <= words:
                tree[j] -= 1
                j += j & (~j + _ONE)
        else:
            keys[h] = page
            seen += 1
        slots[h], owner[now] = now, h
        alive[now >> _6] |= _ONE << (now & _63)
        j = (now >> _6) + _ONE
        while j <= words:
            tree[j] += 1
            j += j & (~j + _ONE)
        now += _ONE
    s.last[0], s.state[0], s.state[1] = last, now, seen
    return np.int64(i)


@kernel
def rehash(keys, slots, s):  # type: ignore[no-untyped-def]
    """Move all pages of an old hash table into the (larger, empty) one of ``s``."""
    mask = np.uint64(s.keys.size - 1)
    for i in range(keys.size):
        if keys[i] != _NO_PAGE:
            h = (keys[i] * _SPREAD) >> np.uint64(20) & mask
            while s.keys[h] != _NO_PAGE:
                h = (h + _ONE) & mask
            s.keys[h], s.slots[h] = keys[i], slots[i]
            s.owner[slots[i]] = np.int64(h)


@kernel
def missed_pages(pages, tags, sets, ways, out):  # type: ignore[no-untyped-def]
    """Pages of the accesses that one set-associative level misses; return how many.

    Parameters
    ----------
    tags : uint64[sets * ways]
        State of the level, in order of last use.
    out : uint64[n]
        Filled in.
    """
    mask, w = np.uint64(sets - 1), np.uint64(ways)
    n = _Z
    for i in range(np.uint64(pages.size)):
        page = pages[i]
        base = (page & mask) * w
        moved, way = tags[base], _Z
        if moved == page:
            continue
        tags[base] = page
        while moved != page and way + _ONE < w:
            way += _ONE
            moved, tags[base + way] = tags[base + way], moved
        if moved != page:
            out[n] = page
            n += _ONE
    return np.int64(n)
