"""TLBs and walk caches in front of page tables: look up, fill, drop."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import part
from pvmmu.x86.mmu_state import (
    BORN,
    DIRTY_SET,
    FRAME_AT,
    HOST_RIGHTS_OF,
    MARKS,
    OWN,
    PAGE,
    PCID,
    PROBES,
    RIGHTS_OF,
    ROOT_OF,
    VPID,
)
from pvmmu.x86.plan import COMMON, DIRTY, GLOBAL, LEVELS, SHIFT, WRITE
from pvmmu.x86.tlb_sets import (
    BASE,
    CONTEXT_SHIFT,
    GLOBAL_BIT,
    GLOBAL_SHIFT,
    INVALID,
    PAGE_MASK,
    SET_MASK,
    SIZE_SHIFT,
    STRIDE,
    VPID_SHIFT,
    WAYS,
    find,
    insert,
    remove,
    size_shift,
    use,
)
from pvmmu.x86.walk_state import (
    ENTRY_RIGHTS,
    GUEST_SHIFT,
    HOST_DIRTY,
    HOST_RIGHTS,
    HOST_TABLE,
    KEY,
    LEAF_ENTRY,
    N_TABLES,
    OUT,
    PA,
    PAGE_SHIFT,
    RIGHTS,
    RIGHTS_AFTER,
)

_Z, _ONE, _3, _20 = (np.uint64(i) for i in (0, 1, 3, 20))
_ONES, _INVALID = np.uint64((1 << 64) - 1), np.uint64(INVALID)
_PAGE, _SIZE, _GLOBAL = np.uint64(PAGE_MASK), np.uint64(SIZE_SHIFT), np.uint64(GLOBAL_BIT)
_CONTEXT, _VPID, _HIGH = (np.uint64(i) for i in (CONTEXT_SHIFT, VPID_SHIFT, GLOBAL_SHIFT))
_LINEAR, _SIGN = np.uint64((1 << 57) - 1), np.uint64(1 << 56)
_DIRTY = np.uint64(DIRTY_SET)


@part
def context(cpus, cpu):  # type: ignore[no-untyped-def]
    """Context bits of tags of what runs on a CPU, and of its global pages."""
    vpid = cpus[cpu, VPID] << _VPID
    return vpid | cpus[cpu, PCID] << _CONTEXT, vpid | _GLOBAL


@part
def look_up(tlb, data, places, cpu, n, own, shared, va, fetch):  # type: ignore[no-untyped-def]
    """Find a translation; what the second level has is put into the first, too.

    Parameters
    ----------
    tlb, data, places
        As of `State`.
    cpu, n : int
        The CPU, and the structures of each.
    own, shared : uint64
        Its context (`context`).

    Returns
    -------
    (int, int)
        Level that had it, counted from 0 (-1: none), and number of the entry.
    """
    for level in range(places.shape[0]):
        i = 0
        while places[level, fetch, i, 0] >= 0:
            k, size = cpu * n + places[level, fetch, i, 0], np.uint64(places[level, fetch, i, 1])
            page = (va & _LINEAR) >> size_shift(size) | size << _SIZE
            slot = find(tlb, k, page | own)
            if slot < 0:
                slot = find(tlb, k, page | shared)
            if slot >= 0:
                high = tlb.tags[slot] >> _HIGH << _HIGH
                number = np.int64(tlb.ids[use(tlb, k, slot)])
                to = places[0, fetch, PROBES + np.int64(size), 0]
                if level > 0 and to >= 0:
                    size = np.uint64(places[0, fetch, PROBES + np.int64(size), 1])
                    number = _copy(tlb, data, cpu * n + to, size, high, va, number)
                return level, number
            i += 1
    return -1, np.int64(0)


@part
def _copy(tlb, data, k, size, high, va, number):  # type: ignore[no-untyped-def]
    """Put an entry into another structure, too; return its number there."""
    shift = size_shift(size)
    key = (va & _LINEAR) >> shift | size << _SIZE | high
    new = np.int64(tlb.ids[insert(tlb, k, key)])
    for column in range(data.shape[1]):
        data[new, column] = data[number, column]
    # of a larger region the piece that the address is in
    inside = va & ((_ONE << data[number, OWN]) - _ONE)
    data[new, FRAME_AT] += inside >> shift << shift
    data[new, OWN] = shift
    return new


@part
def fill(tlb, data, places, k0, high, va, fetch, kind, first, nested, work, root, born, marks):  # type: ignore[no-untyped-def]
    """Keep the translation that a walk has found, in every level.

    Parameters
    ----------
    k0 : int
        First structure of the CPU.
    high : uint64
        Context bits of the tag.
    kind : int
        Read, write or fetch.
    nested : bool
        There is a second dimension.
    work : uint64[:, :]
        Results of the walk.
    root, born, marks : uint64
        Root table; number of the event and marks, of the stale walk cache if the walk used one.
    """
    shift = work[OUT, PAGE_SHIFT]
    number = _Z if shift == np.uint64(12) else min(shift - _20, _3)
    dirty = work[OUT, LEAF_ENTRY] & first[COMMON, DIRTY] != _Z
    dirty = kind == WRITE or (dirty and (not nested or work[OUT, HOST_DIRTY] != _Z))
    for level in range(places.shape[0]):
        k = places[level, fetch, PROBES + np.int64(number), 0]
        if k < 0:
            continue
        size = np.uint64(places[level, fetch, PROBES + np.int64(number), 1])
        shift = size_shift(size)
        new = tlb.ids[insert(tlb, k0 + k, (va & _LINEAR) >> shift | size << _SIZE | high)]
        data[new, FRAME_AT] = work[OUT, PA] >> shift << shift
        data[new, RIGHTS_OF], data[new, HOST_RIGHTS_OF] = work[OUT, RIGHTS], work[OUT, HOST_RIGHTS]
        data[new, ROOT_OF], data[new, BORN] = root, born
        data[new, MARKS] = marks | (_DIRTY if dirty else _Z)
        data[new, OWN], data[new, PAGE] = shift, work[OUT, GUEST_SHIFT]


@part
def is_global(first, work):  # type: ignore[no-untyped-def]
    """Whether the page that a walk has found is global."""
    return work[OUT, LEAF_ENTRY] & first[COMMON, GLOBAL] != _Z


@part
def walk_start(walk, depths, cpu, first, own, va):  # type: ignore[no-untyped-def]
    """Where a walk may begin: the deepest table that the walk caches know.

    Returns
    -------
    (int, int)
        Row of the level to begin at, and number of the walk cache's entry; (LEVELS, -1): the root.
    """
    n, best, at, where = depths.shape[0], LEVELS - 1, -1, -1
    for k in range(n):
        if depths[k] > best:
            key = (va & _LINEAR) >> first[depths[k], SHIFT] | own
            slot = find(walk, cpu * n + k, key)
            if slot >= 0:
                best, at, where = depths[k], slot, cpu * n + k
    which = np.int64(walk.ids[use(walk, where, at)]) if at >= 0 else np.int64(-1)
    return best + 1, which


@part
def keep_tables(walk, data, depths, cpu, first, own, va, start, work, root, born, marks):  # type: ignore[no-untyped-def]
    """Put the tables that a walk came by, from row ``start`` on, into the walk caches (`fill`)."""
    n = depths.shape[0]
    for k in range(n):
        d = depths[k]
        if d < start or d + 1 >= LEVELS + np.int64(work[OUT, N_TABLES]):
            continue
        key = (va & _LINEAR) >> first[d, SHIFT] | own
        slot = find(walk, cpu * n + k, key)
        slot = insert(walk, cpu * n + k, key) if slot < 0 else slot
        new = walk.ids[slot]
        data[new, FRAME_AT], data[new, RIGHTS_OF] = work[d + 1, HOST_TABLE], work[d, RIGHTS_AFTER]
        data[new, HOST_RIGHTS_OF], data[new, MARKS] = work[d + 1, ENTRY_RIGHTS], marks
        data[new, ROOT_OF], data[new, BORN] = root, born
        data[new, OWN], data[new, PAGE] = first[d, SHIFT], first[d, SHIFT]


@part
def linear_of(tag, own):  # type: ignore[no-untyped-def]
    """Linear address that an entry begins at."""
    va = (tag & _PAGE) << own & _LINEAR
    return va | (_ONES ^ _LINEAR) if va & _SIGN != _Z else va


@part
def drop(sets, data, cpu, n, mask, value, other, va, page):  # type: ignore[no-untyped-def]
    """Remove entries of a CPU; return how many.

    Parameters
    ----------
    sets, data
        TLBs or walk caches.
    cpu, n : int
        The CPU, and the structures of each.
    mask, value, other : uint64
        Those whose tags, in the bits of ``mask``, equal one of the two values.
    va : uint64
        Linear address.
    page : bool
        Only those for the page of that address, whole, however many pieces of it there are.
    """
    table, tags, removed = sets.table, sets.tags, 0
    for k in range(cpu * n, cpu * n + n):
        for index in range(table[k, SET_MASK] + 1):
            base = table[k, BASE] + index * table[k, STRIDE]
            # from the end: removing one moves up those behind it
            for slot in range(base + table[k, WAYS] - 1, base - 1, -1):
                tag = tags[slot]
                if tag == _INVALID or (tag & mask != value and tag & mask != other):
                    continue
                row = sets.ids[slot]
                if page and (linear_of(tag, data[row, OWN]) ^ va) >> data[row, PAGE] != _Z:
                    continue
                remove(sets, k, slot)
                removed += 1
    return removed


@part
def drop_nested(cache, cpu):  # type: ignore[no-untyped-def]
    """Empty a CPU's nested TLB; return how many entries it had."""
    removed = 0
    if cache.size > 0:
        for index in range(cache.shape[1]):
            for way in range(cache.shape[2]):
                removed += cache[cpu, index, way, KEY] != _ONES
                cache[cpu, index, way, KEY] = _ONES
    return removed
