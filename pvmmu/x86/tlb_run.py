"""Runs of accesses through a TLB: which are found, at which level.

`run_any` does every geometry. Most first levels have 4 ways and most second levels at most 16, with
true LRU; for accesses to 4-KiB pages by way of one structure at each level there are `run_vector`
and `run_ladder`, alike but for the first level: a ladder of branches is faster where it is easy to
predict how deep in its set a page is found.
"""

from __future__ import annotations

import numpy as np

from pvmmu._jit import kernel
from pvmmu.x86.tlb_sets import (
    BASE,
    GLOBAL_SHIFT,
    LRU,
    PAGE_MASK,
    POLICY,
    SET_MASK,
    SIZE_SHIFT,
    STRIDE,
    WAYS,
    find,
    insert,
    size_shift,
    use,
)
from pvmmu.x86.vectors import move_to_front_4, move_to_front_16

_Z, _ONE, _2, _3, _4, _12 = (np.uint64(i) for i in (0, 1, 2, 3, 4, 12))
_MISSED = np.uint64(64)
_PAGE = np.uint64(PAGE_MASK)
_SIZE, _GLOBAL = np.uint64(SIZE_SHIFT), np.uint64(GLOBAL_SHIFT)
_8 = np.uint64(8)


@kernel
def run_any(sets, route, words, fetch, misses, reached):  # type: ignore[no-untyped-def]
    """Look up accesses in order and insert what is missing.

    Parameters
    ----------
    sets : Sets
        The TLB. The context of tags is relative to the running one.
    route : int64[level, 8, 2]
        For page size + 4 * fetch: structure (-1 none) and number of the page size it uses.
    words : uint64[n]
        Number of the 4-KiB page, page size, global bit (`tlb.Pages`).
    fetch : uint8[n] or uint8[1]
        Whether the access is a fetch; a single element stands for all.
    misses : int64[structure]
        Added to.
    reached : uint8[n] or uint8[0]
        Level that had the page, counted from 0; the number of levels if none had.

    Returns
    -------
    int
        Accesses that no level had.
    """
    levels, walks = route.shape[0], 0
    table, tags = sets.table, sets.tags
    for i in range(words.size):
        word = words[i]
        size = (word >> _SIZE) & _3
        row = np.int64(size) + 4 * np.int64(fetch[i if fetch.size > 1 else 0])
        level = 0
        while level < levels:
            k = route[level, row, 0]
            if k >= 0:
                own = np.uint64(route[level, row, 1])
                page = (word & _PAGE) >> (size_shift(own) - _12)
                key = page | own << _SIZE | (word >> _GLOBAL & _ONE) << _GLOBAL
                index = key & np.uint64(table[k, SET_MASK])
                front = np.uint64(table[k, BASE]) + index * np.uint64(table[k, STRIDE])
                if tags[front] == key and table[k, POLICY] == LRU:
                    break
                slot = find(sets, k, key)
                if slot >= 0:
                    use(sets, k, slot)
                    break
                misses[k] += 1
                insert(sets, k, key)
            level += 1
        walks += level == levels
        if reached.size > 0:
            reached[i] = level
    return walks


@kernel
def commonest_depth(tags, sets, words):  # type: ignore[no-untyped-def]
    """How predictable are accesses whose page is not the last one used in its set of 4?

    Parameters
    ----------
    tags : uint64[4 * sets]
        A copy of the first level's; changed.

    Returns
    -------
    float
        Share of the commoner of two outcomes: the page is the last but one, or not there.
    """
    mask = np.uint64(sets - 1)
    missed, deep, second = 0, 0, 0
    for i in range(words.size):
        key = words[i]
        at = (key & mask) << _2
        if tags[at] != key:
            way = move_to_front_4(tags, at, key, _8)
            deep += 1
            second += way == _ONE
            missed += way == _MISSED
    return max(second, missed) / max(deep, 1)


@kernel
def run_vector(table, tags, k1, k2, words):  # type: ignore[no-untyped-def]
    """4-KiB pages through a first level ``k1`` of 4 ways and a second ``k2`` of 16 slots a set.

    Returns the misses of both levels.
    """
    mask1, mask2 = np.uint64(table[k1, SET_MASK]), np.uint64(table[k2, SET_MASK])
    base1, base2 = np.uint64(table[k1, BASE]), np.uint64(table[k2, BASE])
    top2 = _ONE << np.uint64(table[k2, WAYS] - 1)
    missed1, missed2 = _Z, _Z
    for i in range(np.uint64(words.size)):
        key = words[i]
        at = base1 + ((key & mask1) << _2)
        if tags[at] == key:
            continue
        # no branch on how deep in the set the page is
        if move_to_front_4(tags, at, key, _8) == _MISSED:
            missed1 += _ONE
            if move_to_front_16(tags, base2 + ((key & mask2) << _4), key, top2) == _MISSED:
                missed2 += _ONE
    return np.int64(missed1), np.int64(missed2)


@kernel
def run_ladder(table, tags, k1, k2, words):  # type: ignore[no-untyped-def]
    """As `run_vector`, with a branch for each way of the first level."""
    mask1, mask2 = np.uint64(table[k1, SET_MASK]), np.uint64(table[k2, SET_MASK])
    base1, base2 = np.uint64(table[k1, BASE]), np.uint64(table[k2, BASE])
    top2 = _ONE << np.uint64(table[k2, WAYS] - 1)
    missed1, missed2 = _Z, _Z
    for i in range(np.uint64(words.size)):
        key = words[i]
        at = base1 + ((key & mask1) << _2)
        a = tags[at]
        if a == key:
            continue
        # what is in front moves back one by one until the page is found
        b = tags[at + _ONE]
        tags[at], tags[at + _ONE] = key, a
        if b == key:
            continue
        c = tags[at + _2]
        tags[at + _2] = b
        if c == key:
            continue
        d = tags[at + _3]
        tags[at + _3] = c
        if d == key:
            continue
        missed1 += _ONE
        if move_to_front_16(tags, base2 + ((key & mask2) << _4), key, top2) == _MISSED:
            missed2 += _ONE
    return np.int64(missed1), np.int64(missed2)


@kernel
def switch_context(tags, change):  # type: ignore[no-untyped-def]
    """Tags are relative to the running context: make another one run.

    Global pages belong to all PCIDs: of their context only the VPID changes.

    Parameters
    ----------
    change : (uint64, uint64)
        Bits of the context field that change, in tags of global pages and in others.
    """
    for i in range(tags.size):
        tag = tags[i]
        if ~tag != _Z:
            tags[i] = tag ^ (change[0] if tag >> _GLOBAL & _ONE else change[1])
