"""Accesses through the shadow: those that need nothing, and hidden faults, which fill it."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, inner, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import links, pages, sync, zap
from pvmmu.modes.shadow.links import note
from pvmmu.modes.shadow.rules import Flood, Links, Rule
from pvmmu.modes.shadow.state import NONE, RW, UNKNOWN, A, D, P, view

_HIDDEN, _SPURIOUS, _FILLED = (
    np.int64(e) for e in (Event.SHADOW_FAULT, Event.SPURIOUS_FAULT, Event.SHADOW_PREFETCHED)
)
_COUNTED, _OUT_OF_SYNC, _WINDOW, _AHEAD, _LINKS = (
    int(r)
    for r in (Rule.COUNTED, Rule.OUT_OF_SYNC, Rule.WINDOW, Rule.WINDOW_AHEAD, Rule.LINKS)
)  # fmt: skip
_IDENTICAL = int(Links.IDENTICAL_SPURIOUS)
_FLOOD, _SINCE_FAULT = int(Rule.FLOOD), int(Flood.SINCE_FAULT)
_LAST_UNUSED = int(Flood.LAST_UNUSED)
_LEVELS, _ENTRIES, _SHIFT = 0, 1, 2


@inner
def _index_of(s, va, level):  # type: ignore[no-untyped-def]
    """Return the entry of a table of some level that translates an address."""
    return va >> s.shape[_SHIFT + level - 1] & (s.shape[_ENTRIES] - 1)


@inner
def _leaf_page(s, root, va):  # type: ignore[no-untyped-def]
    """Return the level-1 shadow that translates an address, -1 if a level above has none."""
    page = root
    level = s.shape[_LEVELS]
    while level > 1 and page >= 0:
        page = links.child_of(s, page, _index_of(s, va, level))
        level -= 1
    return page


@kernel
def access(m, cpu, va, write):  # type: ignore[no-untyped-def]
    """An access that the guest's own tables allow."""
    s = view(m)
    page = _leaf_page(s, np.int64(s.roots[cpu, 0]), va)
    if page >= 0:
        entry = s.entries[page, _index_of(s, va, ONE)]
        if entry & P and (not write or entry & RW):
            s.entries[page, _index_of(s, va, ONE)] = entry | A
            return
    if _walk_guest(s, cpu, va, write):
        _fill(s, cpu, va)
        other_fault(s, cpu)
    else:
        s.n[UNKNOWN] += 1
        note(s, _HIDDEN, ONE)


@inner
def other_fault(s, cpu):  # type: ignore[no-untyped-def]
    """A fault that is no emulated write: writes counted before it were no flood."""
    if s.rules[_COUNTED]:
        s.cpus[cpu].last = -1
    elif s.rules[_FLOOD] == _SINCE_FAULT or s.rules[_FLOOD] == _LAST_UNUSED:
        s.cpus[cpu].writes = 0


@inner
def _walk_guest(s, cpu, va, write):  # type: ignore[no-untyped-def]
    """Walk the guest's tables as hardware would, A and D included; false if that is not known."""
    table = s.cpus[cpu].root
    level = s.shape[_LEVELS]
    while level > 1:
        s.path[level] = table
        index = _index_of(s, va, level)
        if s.guest[table, index] & P == 0 or s.target[table, index] < 0:
            return False
        table = np.int64(s.target[table, index])
        level -= 1
    s.path[1] = table
    index = _index_of(s, va, ONE)
    entry = s.guest[table, index]
    if entry & P == 0 or (write and entry & RW == 0):
        return False
    s.guest[table, index] = entry | A | (D if write else np.int64(0))
    return True


@inner
def _fill(s, cpu, va):  # type: ignore[no-untyped-def]
    """Fill the shadow for an address after a walk of the guest's tables."""
    page = np.int64(s.roots[cpu, 0])
    level = s.shape[_LEVELS]
    if s.rules[_COUNTED]:
        _promote_path(s.m)
    linked = False
    while level > 1:
        s.pages[page].flood = 0
        index = _index_of(s, va, level)
        child = links.child_of(s, page, index)
        if child < 0:
            child = pages.get_page(s.m, np.int64(s.path[level - 1]), level - 1)
            if level > 2 and not s.rules[_COUNTED]:
                sync.resync_below(s.m, child)
            links.link(s.m, page, index, child)
            linked = linked or level > 2
        page = child
        level -= 1
    if linked and s.rules[_COUNTED] and s.rules[_OUT_OF_SYNC] > 0:
        sync.resync_all(s.m, cpu)
    s.pages[page].flood = 0
    _set_leaf(s, cpu, page, _index_of(s, va, ONE))


@kernel
def _promote_path(m):  # type: ignore[no-untyped-def]
    """Take write access to the tables of a walk (gw_remove_write_accesses)."""
    s = view(m)
    for level in range(s.shape[_LEVELS] - 1, 0, -1):
        table = np.int64(s.path[level])
        if level > 1:
            sync.resync_table(s.m, table)
        if s.first[table] < 0:
            links.protect(s.m, table)


@inner
def _set_leaf(s, cpu, page, index):  # type: ignore[no-untyped-def]
    """Set the entry of the fault, and those in the window around it."""
    table = np.int64(s.pages[page].table)
    target = np.int64(s.target[table, index])
    entry = s.guest[table, index]
    if target >= 0 and entry & RW:
        _was_a_table(s.m, target)
    new = links.leaf_entry(s, entry, target)
    same = new == s.entries[page, index] & ~A
    s.entries[page, index] = new | A
    if s.rules[_COUNTED]:
        _remember(s.m, cpu, table, index)
    if same and s.rules[_LINKS] == _IDENTICAL:
        note(s, _SPURIOUS, ONE)
        return
    note(s, _HIDDEN, ONE)
    _fill_window(s, cpu, page, index)


@kernel
def _was_a_table(m, table):  # type: ignore[no-untyped-def]
    """A program can write a page: whatever it was, it is no page table any more.

    The kernel has overwritten the page before it gave it to the program; that this unshadows it
    is left to the fault, which happens here.
    """
    s = view(m)
    while s.first[table] >= 0:
        page = np.int64(s.first[table])
        if s.rules[_COUNTED]:
            unhook(s.m, page)
            if s.first[table] == page:
                return
        else:
            zap.zap(s.m, page)


@kernel
def unhook(m, page):  # type: ignore[no-untyped-def]
    """Destroy a page by taking away its one known reference (sh_remove_shadows, fast)."""
    s = view(m)
    p = s.pages[page]
    p.pinned = 0
    if p.parent >= 0:
        zap.drop(s.m, np.int64(p.parent), np.int64(p.parent_index))
    elif p.parents == 0 and p.roots == 0:
        zap.destroy(s.m, page)


@kernel
def _remember(m, cpu, table, index):  # type: ignore[no-untyped-def]
    """What is shadowed anew needs no carrying over when its table comes back into sync."""
    s = view(m)
    place = sync.where_out(s.m, cpu, table)
    if place >= 0:
        s.snapshots[cpu, place, index] = s.guest[table, index]


@inner
def _fill_window(s, cpu, page, index):  # type: ignore[no-untyped-def]
    """Fill entries beside that of a fault (pte_prefetch, sh_prefetch)."""
    window = s.rules[_WINDOW]
    table = np.int64(s.pages[page].table)
    ahead = s.rules[_AHEAD] != 0
    first = index + 1 if ahead else index & -window
    last = min(index + window if ahead else first + window, s.shape[_ENTRIES])
    place = sync.where_out(s.m, cpu, table) if ahead else NONE
    for k in range(first, last):
        if k == index or (not ahead and s.entries[page, k] != 0):
            continue
        entry = s.guest[table, k]
        if ahead:
            late = entry & A == 0 or (entry & RW != 0 and entry & D == 0)
            if s.entries[page, k] != 0 or (entry & P and late):
                return
        elif entry & P == 0 or entry & A == 0:
            return
        s.entries[page, k] = links.leaf_entry(s, entry, np.int64(s.target[table, k]))
        if place >= 0:
            s.snapshots[cpu, place, k] = s.guest[table, k]
        if s.entries[page, k]:
            note(s, _FILLED, ONE)


@kernel
def invalidate(m, cpu, va, fills):  # type: ignore[no-untyped-def]
    """INVLPG: an entry of a table out of sync is dropped, or read anew."""
    s = view(m)
    page = _leaf_page(s, np.int64(s.roots[cpu, 0]), va)
    if page < 0 or not s.pages[page].unsync:
        return
    index = _index_of(s, va, ONE)
    s.entries[page, index] = 0
    if fills:
        table = np.int64(s.pages[page].table)
        s.entries[page, index] = links.leaf_entry(
            s, s.guest[table, index], np.int64(s.target[table, index])
        )
