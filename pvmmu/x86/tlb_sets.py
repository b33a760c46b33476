"""Sets of tags: look up, insert, remove, with true LRU or tree-PLRU.

A tag is one uint64: page number (45 bits, in pages of the entry's size), number of the page size
(2), global (1), context (16: VPID or ASID, 4 bits, and PCID, 12). All structures of a TLB share one
array of tags; a row of the table says where a structure's sets are. Under LRU the tags of a set
stand in order of last use, valid ones first; under PLRU they stay where they are. What belongs to
an entry is found through ``ids``, which moves with the tags; a TLB that keeps nothing else passes
an empty array.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pvmmu._jit import kernel, part
from pvmmu.x86.geometry import Structure

# Columns of a table of structures.
BASE, STRIDE, SET_MASK, WAYS, POLICY, TREE = range(6)
LRU, PLRU = 0, 1

SIZE_SHIFT, GLOBAL_SHIFT, CONTEXT_SHIFT, VPID_SHIFT = 45, 47, 48, 60
PAGE_MASK: Final = (1 << SIZE_SHIFT) - 1
GLOBAL_BIT: Final = 1 << GLOBAL_SHIFT
CONTEXT_MASK: Final = 0xFFFF << CONTEXT_SHIFT
VPID_MASK: Final = 0xF << VPID_SHIFT
#: No tag is all ones: there are not so many pages of 1 GiB.
INVALID: Final = (1 << 64) - 1
MAX_VPID: Final = 15

_Z, _ONE, _INVALID = np.uint64(0), np.uint64(1), np.uint64(INVALID)


class Sets(NamedTuple):
    """Structures and their state."""

    table: np.ndarray  # int64[structure, column]
    tags: np.ndarray  # uint64[slot]
    ids: np.ndarray  # int32[slot] or int32[0]
    tree: np.ndarray  # uint64[set]: inner nodes of the PLRU trees, node i is bit i, root 1


def new_sets(structures: tuple[Structure, ...], with_ids: bool = False) -> Sets:
    """Return empty structures.

    Sets of up to 4 ways at level 1 take 4 slots, others a multiple of 16, on addresses that suit
    the vectors of `pvmmu.x86.tlb_run`.
    """
    table, slot, tree = np.zeros((len(structures), 6), np.int64), 0, 0
    for row, s in zip(table, structures, strict=True):
        stride = 4 if s.ways <= 4 and s.level == 1 else -(-s.ways // 16) * 16
        row[:] = slot, stride, s.sets - 1, s.ways, PLRU if s.policy == "plru" else LRU, tree
        slot += -(-s.sets * stride // 16) * 16
        tree += s.sets
    room = np.empty(slot * 8 + 128, np.uint8)
    start = -room.ctypes.data % 128
    tags = room[start : start + slot * 8].view(np.uint64)
    tags[:] = INVALID
    ids = np.arange(slot if with_ids else 0, dtype=np.int32)
    return Sets(table, tags, ids, np.zeros(tree, np.uint64))


@part
def size_shift(size):  # type: ignore[no-untyped-def]
    """Shift of a page size given by its number."""
    if size == _Z:
        return np.uint64(12)
    return np.uint64(30) if size == np.uint64(3) else size + np.uint64(20)


@part
def find(sets, k, key):  # type: ignore[no-untyped-def]
    """Slot of a tag in structure ``k``, -1 if it is not there."""
    table, tags = sets.table, sets.tags
    index = key & np.uint64(table[k, SET_MASK])
    base = np.uint64(table[k, BASE]) + index * np.uint64(table[k, STRIDE])
    for slot in range(base, base + np.uint64(table[k, WAYS])):
        if tags[slot] == key:
            return np.int64(slot)
    return -1


@part
def _to_front(sets, base, slot):  # type: ignore[no-untyped-def]
    """Move a slot's tag to the front of its set."""
    tags, ids = sets.tags, sets.ids
    first, last = np.uint64(base), np.uint64(slot)
    tag, i = tags[last], last
    while i > first:
        tags[i] = tags[i - _ONE]
        i -= _ONE
    tags[first] = tag
    if ids.size > 0:
        number, i = ids[last], last
        while i > first:
            ids[i] = ids[i - _ONE]
            i -= _ONE
        ids[first] = number


@part
def _point_away(tree, s, way, ways):  # type: ignore[no-untyped-def]
    """Let the nodes above a way point to the other side."""
    node, half, bits = 1, ways >> 1, tree[s]
    while half > 0:
        right = way & half != 0
        bit = _ONE << np.uint64(node)
        bits = bits & ~bit if right else bits | bit
        node = 2 * node + (1 if right else 0)
        half >>= 1
    tree[s] = bits


@part
def _pointed_at(tree, s, ways):  # type: ignore[no-untyped-def]
    """Way that the nodes point to: the one to replace."""
    node, way, bits = np.int64(1), np.int64(0), tree[s]
    while node < ways:
        right = np.int64((bits >> np.uint64(node)) & _ONE)
        way = 2 * way + right
        node = 2 * node + right
    return way


@part
def use(sets, k, slot):  # type: ignore[no-untyped-def]
    """Note that a slot was used; return where its tag is now."""
    table = sets.table
    index = (slot - table[k, BASE]) // table[k, STRIDE]
    base = table[k, BASE] + index * table[k, STRIDE]
    if table[k, POLICY] == PLRU:
        _point_away(sets.tree, table[k, TREE] + index, slot - base, table[k, WAYS])
        return slot
    if slot > base:
        _to_front(sets, base, slot)
    return base


@part
def insert(sets, k, key):  # type: ignore[no-untyped-def]
    """Put a tag that is not there in place of an invalid one, or else of the policy's victim.

    Returns its slot.
    """
    table, tags = sets.table, sets.tags
    index = np.int64(key & np.uint64(table[k, SET_MASK]))
    ways = table[k, WAYS]
    base = table[k, BASE] + index * table[k, STRIDE]
    slot = base + ways - 1
    if table[k, POLICY] == PLRU:
        slot = base
        while slot < base + ways and tags[slot] != _INVALID:
            slot += 1
        if slot == base + ways:
            slot = base + _pointed_at(sets.tree, table[k, TREE] + index, ways)
    tags[slot] = key
    return use(sets, k, slot)


@part
def remove(sets, k, slot):  # type: ignore[no-untyped-def]
    """Make a slot invalid; under LRU those behind it move up."""
    table, tags, ids = sets.table, sets.tags, sets.ids
    if table[k, POLICY] == LRU:
        index = (slot - table[k, BASE]) // table[k, STRIDE]
        end = table[k, BASE] + index * table[k, STRIDE] + table[k, WAYS]
        number = ids[slot] if ids.size > 0 else 0
        while slot + 1 < end and tags[slot + 1] != _INVALID:
            tags[slot] = tags[slot + 1]
            if ids.size > 0:
                ids[slot] = ids[slot + 1]
            slot += 1
        if ids.size > 0:
            ids[slot] = number
    tags[slot] = _INVALID


@kernel
def flush_where(sets, mask, value):  # type: ignore[no-untyped-def]
    """Remove all entries whose tags equal ``value`` in the bits of ``mask``; return how many."""
    removed = 0
    for k in range(sets.table.shape[0]):
        removed += _flush_in(sets, k, mask, value)
    return removed


@part
def _flush_in(sets, k, mask, value):  # type: ignore[no-untyped-def]
    """`flush_where` in one structure."""
    table, tags, removed = sets.table, sets.tags, 0
    for index in range(table[k, SET_MASK] + 1):
        base = table[k, BASE] + index * table[k, STRIDE]
        slot = base
        while slot < base + table[k, WAYS]:
            tag = tags[slot]
            if tag != _INVALID and tag & mask == value:
                remove(sets, k, slot)
                removed += 1
                if table[k, POLICY] == LRU:
                    continue  # another tag has moved up
            slot += 1
    return removed


@kernel
def flush_page(sets, coarse, va, mask, value):  # type: ignore[no-untyped-def]
    """Remove the entries that translate an address; return how many.

    Parameters
    ----------
    sets : Sets
        Structures.
    coarse : int64[structure, size]
        Shift of the region to clear for entries of each size: that of the page, or of the largest
        page of which the structure holds pieces; -1 for sizes that it does not hold.
    va : uint64
        Linear address.
    mask, value : uint64
        Contexts: bits from `GLOBAL_SHIFT` up that matter, and what they must be.
    """
    removed = 0
    page_bits, size_bits = np.uint64(PAGE_MASK), np.uint64(SIZE_SHIFT)
    for k in range(coarse.shape[0]):
        for size in range(coarse.shape[1]):
            if coarse[k, size] < 0:
                continue
            number = np.uint64(size)
            shift = size_shift(number)
            wide = np.uint64(coarse[k, size])
            page = (va & np.uint64((1 << 57) - 1)) >> wide << (wide - shift)
            exact = (page_bits >> (wide - shift) << (wide - shift)) | np.uint64(3) << size_bits
            removed += _flush_in(sets, k, exact | mask, page | number << size_bits | value)
    return removed
