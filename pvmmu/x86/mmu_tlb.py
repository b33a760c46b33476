"""The TLBs and walk caches of one CPU in front of page tables: look up, fill, invalidate."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import kernel
from pvmmu.x86.mmu_events import Count
from pvmmu.x86.mmu_state import (
    BORN,
    DIRTY_SET,
    FRAME_AT,
    HOST_RIGHTS_OF,
    MARKS,
    NOW,
    PAGE,
    PCID,
    RIGHTS_OF,
    ROOT,
    ROOT_OF,
    VPID,
)
from pvmmu.x86.plan import DIRTY, GLOBAL, SHIFT, WRITE
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
    find,
    insert,
    remove,
    size_shift,
    use,
)
from pvmmu.x86.walk_kernel import (
    GUEST_SHIFT,
    HOST_DIRTY,
    HOST_RIGHTS,
    HOST_TABLE,
    KEY,
    LEAF_ENTRY,
    N_TABLES,
    PA,
    PAGE_SHIFT,
    RIGHTS,
    RIGHTS_AFTER,
)

_Z, _ONE, _3, _20 = (np.uint64(i) for i in (0, 1, 3, 20))
_ONES, _INVALID = np.uint64((1 << 64) - 1), np.uint64(INVALID)
_PAGE, _SIZE, _GLOBAL = np.uint64(PAGE_MASK), np.uint64(SIZE_SHIFT), np.uint64(GLOBAL_BIT)
_CONTEXT, _VPID = np.uint64(CONTEXT_SHIFT), np.uint64(VPID_SHIFT)
_LINEAR, _SIGN = np.uint64((1 << 57) - 1), np.uint64(1 << 56)
_DIRTY, _HIGH = np.uint64(DIRTY_SET), np.uint64(GLOBAL_SHIFT)
_DROPPED = int(Count.ENTRIES_DROPPED)


@kernel
def context(m, cpu):  # type: ignore[no-untyped-def]
    """Context bits of tags of what runs on a CPU, and of its global pages."""
    vpid = m.cpu[cpu, VPID] << _VPID
    return vpid | m.cpu[cpu, PCID] << _CONTEXT, vpid | _GLOBAL


@kernel
def look_up(m, cpu, va, fetch):  # type: ignore[no-untyped-def]
    """Find a translation; what the second level has is put into the first, too.

    Returns
    -------
    (int, int, uint64)
        Level that had it, counted from 0 (-1: none), number of the entry and its tag.
    """
    own, shared = context(m, cpu)
    n = m.tlb.table.shape[0] // m.cpu.shape[0]
    for level in range(m.probe.shape[0]):
        i = 0
        while m.probe[level, fetch, i, 0] >= 0:
            k, size = cpu * n + m.probe[level, fetch, i, 0], np.uint64(m.probe[level, fetch, i, 1])
            page = (va & _LINEAR) >> size_shift(size) | size << _SIZE
            slot = find(m.tlb, k, page | own)
            if slot < 0:
                slot = find(m.tlb, k, page | shared)
            if slot >= 0:
                tag = m.tlb.tags[slot]
                number = m.tlb.ids[use(m.tlb, k, slot)]
                if level > 0:
                    number, tag = _copy(m, cpu, va, fetch, tag, number)
                return level, np.int64(number), tag
            i += 1
    return -1, np.int64(0), _Z


@kernel
def _copy(m, cpu, va, fetch, tag, number):  # type: ignore[no-untyped-def]
    """Put an entry of the second level into the first; return its number and tag there."""
    n = m.tlb.table.shape[0] // m.cpu.shape[0]
    row = np.int64(tag >> _SIZE & _3) + 4 * fetch
    if m.route[0, row, 0] < 0:
        return np.int64(number), tag
    size = np.uint64(m.route[0, row, 1])
    high = tag >> _HIGH << _HIGH
    key = (va & _LINEAR) >> size_shift(size) | size << _SIZE | high
    new = m.tlb.ids[insert(m.tlb, cpu * n + m.route[0, row, 0], key)]
    shift = size_shift(size)
    for column in range(m.data.shape[1]):
        m.data[new, column] = m.data[number, column]
    # a piece of a larger page begins where the piece is
    inside = va & ((_ONE << size_shift(tag >> _SIZE & _3)) - _ONE)
    m.data[new, FRAME_AT] += inside >> shift << shift
    return np.int64(new), key


@kernel
def fill(m, cpu, va, fetch, kind):  # type: ignore[no-untyped-def]
    """Keep the translation that a walk has found, in every level."""
    s, n = m.scratch, m.tlb.table.shape[0] // m.cpu.shape[0]
    out = s.out
    own, shared = context(m, cpu)
    high = shared if out[LEAF_ENTRY] & m.first.common[GLOBAL] != _Z else own
    number = _Z if out[PAGE_SHIFT] == np.uint64(12) else min(out[PAGE_SHIFT] - _20, _3)
    dirty = kind == WRITE or (
        out[LEAF_ENTRY] & m.first.common[DIRTY] != _Z
        and (m.second.level.shape[0] == 0 or out[HOST_DIRTY] != _Z)
    )
    for level in range(m.route.shape[0]):
        k = m.route[level, np.int64(number) + 4 * fetch, 0]
        if k < 0:
            continue
        size = np.uint64(m.route[level, np.int64(number) + 4 * fetch, 1])
        shift = size_shift(size)
        key = (va & _LINEAR) >> shift | size << _SIZE | high
        new = m.tlb.ids[insert(m.tlb, cpu * n + k, key)]
        row = m.data[new]
        row[FRAME_AT] = out[PA] >> shift << shift
        row[RIGHTS_OF], row[HOST_RIGHTS_OF] = out[RIGHTS], out[HOST_RIGHTS]
        row[ROOT_OF], row[BORN] = m.cpu[cpu, ROOT], np.uint64(m.control[NOW])
        row[MARKS], row[PAGE] = _DIRTY if dirty else _Z, out[GUEST_SHIFT]


@kernel
def walk_start(m, cpu, va):  # type: ignore[no-untyped-def]
    """Where a walk may begin: the deepest table that the walk caches know.

    Returns
    -------
    (int, int)
        Level to begin at, and number of the walk cache's entry; (0, -1): at the root.
    """
    own, _ = context(m, cpu)
    n, best, which = m.walk_depth.shape[0], -1, -1
    for k in range(n):
        d = m.walk_depth[k]
        if d > best:
            slot = find(m.walk, cpu * n + k, (va & _LINEAR) >> m.first.level[d, SHIFT] | own)
            if slot >= 0:
                best, which = d, m.walk.ids[use(m.walk, cpu * n + k, slot)]
    return best + 1, which


@kernel
def keep_tables(m, cpu, va, start):  # type: ignore[no-untyped-def]
    """Put the tables that a walk came by into the walk caches."""
    s, n = m.scratch, m.walk_depth.shape[0]
    own, _ = context(m, cpu)
    for k in range(n):
        d = m.walk_depth[k]
        if d < start or d + 1 >= np.int64(s.out[N_TABLES]):
            continue
        key = (va & _LINEAR) >> m.first.level[d, SHIFT] | own
        slot = find(m.walk, cpu * n + k, key)
        slot = insert(m.walk, cpu * n + k, key) if slot < 0 else slot
        row = m.walk_data[m.walk.ids[slot]]
        row[FRAME_AT], row[RIGHTS_OF] = s.tables[d + 1, HOST_TABLE], s.tables[d, RIGHTS_AFTER]
        row[HOST_RIGHTS_OF] = _ONES
        row[ROOT_OF], row[BORN] = m.cpu[cpu, ROOT], np.uint64(m.control[NOW])
        row[MARKS], row[PAGE] = _Z, m.first.level[d, SHIFT]


@kernel
def linear_of(tag):  # type: ignore[no-untyped-def]
    """Linear address that a tag of a TLB begins at."""
    va = (tag & _PAGE) << size_shift(tag >> _SIZE & _3)
    return va | (_ONES ^ _LINEAR) if va & _SIGN != _Z else va


@kernel
def end_of(sets, k):  # type: ignore[no-untyped-def]
    """The slot after the last one of a structure."""
    return sets.table[k, BASE] + (sets.table[k, SET_MASK] + 1) * sets.table[k, STRIDE]


@kernel
def drop_where(m, cpu, mask, value):  # type: ignore[no-untyped-def]
    """Remove a CPU's TLB entries whose tags equal ``value`` in the bits of ``mask``."""
    _drop(m, m.tlb, m.data, cpu, mask, value, _Z, False)


@kernel
def drop_page(m, cpu, va, mask, value):  # type: ignore[no-untyped-def]
    """The same for the page of an address, whole, however many pieces of it are cached."""
    _drop(m, m.tlb, m.data, cpu, mask, value, va, True)


@kernel
def _drop(m, sets, data, cpu, mask, value, va, page):  # type: ignore[no-untyped-def]
    """Remove entries of TLBs or of walk caches, of one page or of all."""
    n = sets.table.shape[0] // m.cpu.shape[0]
    for k in range(cpu * n, cpu * n + n):
        slot = end_of(sets, k) - 1
        while slot >= sets.table[k, BASE]:  # from the end: removing moves up those behind
            tag = sets.tags[slot]
            if tag != _INVALID and tag & mask == value:
                shift = data[sets.ids[slot], PAGE]
                if not page or (linear_of(tag) ^ va) & _LINEAR >> shift << shift == _Z:
                    remove(sets, k, slot)
                    m.counts[cpu, _DROPPED] += 1
            slot -= 1


@kernel
def drop_tables(m, cpu, mask, value):  # type: ignore[no-untyped-def]
    """Remove a CPU's walk-cache entries whose tags equal ``value`` in the bits of ``mask``."""
    _drop(m, m.walk, m.walk_data, cpu, mask, value, _Z, False)


@kernel
def drop_tables_of(m, cpu, va, mask, value):  # type: ignore[no-untyped-def]
    """The same for those that would be used for an address."""
    n = m.walk_depth.shape[0]
    for k in range(n):
        if m.walk_depth[k] < 0:
            continue
        page = (va & _LINEAR) >> m.first.level[m.walk_depth[k], SHIFT]
        slot = end_of(m.walk, cpu * n + k)
        while slot > m.walk.table[cpu * n + k, BASE]:
            slot -= 1
            tag = m.walk.tags[slot]
            if tag != _INVALID and tag & _PAGE == page and tag & mask == value:
                remove(m.walk, cpu * n + k, slot)
                m.counts[cpu, _DROPPED] += 1


@kernel
def drop_nested(m, cpu):  # type: ignore[no-untyped-def]
    """Empty a CPU's nested TLB."""
    cache = m.scratch.cache
    if cache.size == 0:
        return
    for index in range(cache.shape[1]):
        for way in range(cache.shape[2]):
            m.counts[cpu, _DROPPED] += np.int64(cache[cpu, index, way, KEY] != _ONES)
            cache[cpu, index, way, KEY] = _ONES
