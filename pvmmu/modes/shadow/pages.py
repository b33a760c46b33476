"""Shadow pages: found, made, linked, zapped, recycled; in and out of sync."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.shadow.rules import Flood, Rule
from pvmmu.modes.shadow.state import (
    BORN,
    FRAME_MASK,
    FREE,
    MOST_OUT,
    NONE,
    OBSOLETE,
    READ_ONLY,
    ROW,
    RW,
    UNSYNCED,
    WRITABLE,
    A,
    D,
    P,
)
from pvmmu.modes.tally import emit

_MADE, _ZAPPED, _UNSYNC, _RESYNC = (
    np.int64(e)
    for e in (Event.SHADOW_MADE, Event.SHADOW_ZAPPED, Event.UNSYNC, Event.RESYNC)
)
_COUNTED, _OUT_OF_SYNC, _REUSED_SYNCED, _RESYNC_FILLS, _FLOOD = (
    int(r)
    for r in (
        Rule.COUNTED, Rule.OUT_OF_SYNC, Rule.REUSED_SYNCED, Rule.RESYNC_FILLS, Rule.FLOOD,
    )
)  # fmt: skip
_DYING = int(Flood.DYING)


@kernel
def note(s, event, amount):  # type: ignore[no-untyped-def]
    """Count an event of the row at work."""
    emit(s.counts, s.log, s.n[ROW], event, amount)


@kernel
def shadowed_above(s, table):  # type: ignore[no-untyped-def]
    """Whether a table is shadowed at a level above 1: then each write to it is trapped."""
    i = s.first[table]
    while i >= 0:
        if s.pages[i].level > 1:
            return True
        i = s.pages[i].next
    return False


@kernel
def in_sync(s, table):  # type: ignore[no-untyped-def]
    """Whether a table has a shadow that is in sync."""
    i = s.first[table]
    while i >= 0:
        if not s.pages[i].unsync:
            return True
        i = s.pages[i].next
    return False


@kernel
def leaf_entry(s, entry, target):  # type: ignore[no-untyped-def]
    """Return the shadow of a level-1 entry, 0 if it cannot be used before another fault.

    An entry never used must fault, so that the guest sees A; one that is clean must fault at the
    first write, so that it sees D; and a page table must not be written unnoticed.
    """
    if entry & P == 0 or entry & A == 0:
        return np.int64(0)
    out = entry & FRAME_MASK | P
    if entry & RW and entry & D and not (target >= 0 and in_sync(s, target)):
        out |= RW
    return out


# ---------------------------------------------------------------------- found and made
@kernel
def find(s, table, level):  # type: ignore[no-untyped-def]
    """Return the shadow of a table at a level, -1 if there is none."""
    i = s.first[table]
    while i >= 0:
        if s.pages[i].level == level:
            return np.int64(i)
        i = s.pages[i].next
    return NONE


@kernel
def get_page(s, table, level):  # type: ignore[no-untyped-def]
    """Return the shadow of a table at a level; it is made if there is none."""
    if s.rules[_COUNTED]:
        if level > 1:
            resync_table(s, table)
    elif level > 1:
        _zap_unsynced(s, table, level)
    i = find(s, table, level)
    if i >= 0:
        s.pages[i].flood = 0
        if s.pages[i].unsync and not s.rules[_COUNTED]:
            if s.rules[_REUSED_SYNCED]:
                resync(s, i)
            else:
                refresh(s, i)
        return i
    return _make(s, table, level)


@kernel
def _zap_unsynced(s, table, level):  # type: ignore[no-untyped-def]
    """A table that becomes an upper one has no use for a shadow out of sync."""
    i = s.first[table]
    while i >= 0:
        following = s.pages[i].next
        if s.pages[i].unsync and s.pages[i].level != level:
            zap(s, np.int64(i))
        i = following


@kernel
def _make(s, table, level):  # type: ignore[no-untyped-def]
    """Make a shadow page, and write-protect the table."""
    if s.n[FREE] == 0:
        _recycle(s)
    s.n[FREE] -= 1
    i = s.free[s.n[FREE]]
    p = s.pages[i]
    if s.first[table] < 0:
        s.dying[table] = 0
    p.table, p.level, p.unsync, p.flood = table, level, 0, 0
    p.parent, p.parent_index, p.parents, p.roots = -1, -1, 0, 0
    p.pinned, p.invalid, p.next = 0, 0, s.first[table]
    p.born = s.n[BORN]
    s.n[BORN] += 1
    s.first[table] = i
    protect(s, table)
    note(s, _MADE, ONE)
    return np.int64(i)


@kernel
def protect(s, table):  # type: ignore[no-untyped-def]
    """Take write access to a table from the guest's direct map."""
    if s.mapped[table] == WRITABLE:
        s.mapped[table] = READ_ONLY


@kernel
def _recycle(s):  # type: ignore[no-untyped-def]
    """Zap the oldest page that is no top-level table in use."""
    oldest = NONE
    for i in range(s.pages.shape[0]):
        p = s.pages[i]
        if p.table >= 0 and p.roots == 0 and (s.rules[_COUNTED] == 0 or p.pinned):
            if oldest < 0 or p.born < s.pages[oldest].born:
                oldest = np.int64(i)
    if oldest < 0:
        _unhook_roots(s)
    elif s.rules[_COUNTED]:
        s.pages[oldest].pinned = 0
        destroy(s, oldest)
    else:
        zap(s, oldest)


@kernel
def _unhook_roots(s):  # type: ignore[no-untyped-def]
    """Nothing else is left to recycle: what hangs below the tables in use (_shadow_prealloc)."""
    for cpu in range(s.roots.shape[0]):
        for k in range(s.entries.shape[1]):
            drop(s, np.int64(s.roots[cpu, 0]), np.int64(k))


@kernel
def link(s, parent, index, child):  # type: ignore[no-untyped-def]
    """Let an entry refer to a shadow page."""
    s.entries[parent, index] = (child + 1) << 12 | P
    c = s.pages[child]
    c.parent, c.parent_index = parent, index
    c.parents += 1


@kernel
def child_of(s, page, index):  # type: ignore[no-untyped-def]
    """Return the page that an entry of an upper shadow refers to, -1 if none."""
    return (s.entries[page, index] >> 12) - 1


@kernel
def drop(s, page, index):  # type: ignore[no-untyped-def]
    """Clear an entry; what it referred to goes if nothing else does (where that is counted)."""
    if s.entries[page, index] == 0:
        return
    if s.pages[page].level == 1:
        s.entries[page, index] = 0
        return
    child = child_of(s, page, index)
    s.entries[page, index] = 0
    unlink(s, child, page, index)
    if s.rules[_COUNTED] and s.pages[child].parents == 0:
        destroy(s, child)


@kernel
def unlink(s, child, parent, index):  # type: ignore[no-untyped-def]
    """A page has a parent less."""
    c = s.pages[child]
    c.parents -= 1
    if c.parent == parent and c.parent_index == index:
        c.parent = -1


# ---------------------------------------------------------------------- zapped
@kernel
def _forget(s, i):  # type: ignore[no-untyped-def]
    """A page no longer is the shadow of its table."""
    table = s.pages[i].table
    if s.first[table] == i:
        s.first[table] = s.pages[i].next
        return
    before = s.first[table]
    while before >= 0 and s.pages[before].next != i:
        before = s.pages[before].next
    if before >= 0:
        s.pages[before].next = s.pages[i].next


@kernel
def _give_back(s, i):  # type: ignore[no-untyped-def]
    s.pages[i].table = -1
    s.free[s.n[FREE]] = i
    s.n[FREE] += 1


@kernel
def zap(s, page):  # type: ignore[no-untyped-def]
    """Zap a page, and what is out of sync below it (kvm_mmu_prepare_zap_page)."""
    if s.pages[page].level > 1:
        k = s.n[UNSYNCED] - 1
        while k >= 0:
            leaf = np.int64(s.unsynced[k])
            if is_below(s, leaf, page):
                _zap_one(s, leaf)
            k = min(k, s.n[UNSYNCED]) - 1
    _zap_one(s, page)


@kernel
def _zap_one(s, page):  # type: ignore[no-untyped-def]
    note(s, _ZAPPED, ONE)
    p = s.pages[page]
    for k in range(s.entries.shape[1]):
        if s.entries[page, k] != 0:
            if p.level > 1:
                unlink(s, child_of(s, page, k), page, np.int64(k))
            s.entries[page, k] = 0
    _unlink_parents(s, page)
    _forget(s, page)
    if p.unsync:
        _back_in_sync(s, page)
    if p.roots > 0:
        p.invalid = 1
        s.n[OBSOLETE] = 1
    else:
        _give_back(s, page)


@kernel
def _unlink_parents(s, page):  # type: ignore[no-untyped-def]
    """Clear the entries that refer to a page."""
    p = s.pages[page]
    if p.parents == 1 and p.parent >= 0:
        s.entries[p.parent, p.parent_index] = 0
        p.parents = 0
    wanted = (page + 1) << 12 | P
    for i in range(s.pages.shape[0]):
        if p.parents == 0:
            return
        if s.pages[i].table < 0 or s.pages[i].level != p.level + 1:
            continue
        for k in range(s.entries.shape[1]):
            if s.entries[i, k] == wanted:
                s.entries[i, k] = 0
                p.parents -= 1


@kernel
def put_root(s, page):  # type: ignore[no-untyped-def]
    """A CPU no longer uses, or remembers, a top-level shadow (mmu_free_root_page)."""
    p = s.pages[page]
    p.roots -= 1
    if p.roots == 0 and p.invalid:
        note(s, _ZAPPED, ONE)
        _give_back(s, page)


@kernel
def destroy(s, page):  # type: ignore[no-untyped-def]
    """Destroy a page to which nothing refers, and what it alone referred to (sh_destroy_shadow)."""
    if s.pages[page].pinned or s.pages[page].roots > 0:
        return
    s.stack[0] = page
    depth = 1
    while depth > 0:
        depth -= 1
        i = np.int64(s.stack[depth])
        note(s, _ZAPPED, ONE)
        _forget(s, i)
        _leave_out(s, s.pages[i].table)
        for k in range(s.entries.shape[1]):
            if s.entries[i, k] == 0:
                continue
            if s.pages[i].level > 1:
                child = child_of(s, i, k)
                unlink(s, child, i, np.int64(k))
                if s.pages[child].parents == 0:
                    s.stack[depth] = child
                    depth += 1
            s.entries[i, k] = 0
        _give_back(s, i)


# ---------------------------------------------------------------------- any number out of sync
@kernel
def is_below(s, page, above):  # type: ignore[no-untyped-def]
    """Whether a page hangs below another, by the entries linked last."""
    i = page
    while i >= 0:
        if i == above:
            return True
        i = np.int64(s.pages[i].parent)
    return False


@kernel
def unsync(s, page):  # type: ignore[no-untyped-def]
    """Let a level-1 table go out of sync (kvm_unsync_page)."""
    p = s.pages[page]
    p.unsync, p.place = 1, s.n[UNSYNCED]
    s.unsynced[s.n[UNSYNCED]] = page
    s.n[UNSYNCED] += 1
    note(s, _UNSYNC, ONE)


@kernel
def _back_in_sync(s, page):  # type: ignore[no-untyped-def]
    p = s.pages[page]
    p.unsync = 0
    s.n[UNSYNCED] -= 1
    last = s.unsynced[s.n[UNSYNCED]]
    s.unsynced[p.place] = last
    s.pages[last].place = p.place
    note(s, _RESYNC, ONE)


@kernel
def resync(s, page):  # type: ignore[no-untyped-def]
    """Write-protect a level-1 table and bring its shadow up to date (mmu_sync_children)."""
    protect(s, s.pages[page].table)
    _back_in_sync(s, page)
    refresh(s, page)


@kernel
def resync_below(s, page):  # type: ignore[no-untyped-def]
    """Bring everything below a page back into sync."""
    k = s.n[UNSYNCED] - 1
    while k >= 0:
        leaf = np.int64(s.unsynced[k])
        if is_below(s, leaf, page):
            resync(s, leaf)
        k = min(k, s.n[UNSYNCED]) - 1


@kernel
def refresh(s, page):  # type: ignore[no-untyped-def]
    """Correct the entries of a level-1 shadow by those of the guest (paging64_sync_page)."""
    table = s.pages[page].table
    for k in range(s.entries.shape[1]):
        old = s.entries[page, k]
        if old == 0:
            continue
        entry = s.guest[table, k]
        new = leaf_entry(s, entry, s.target[table, k])
        if (new ^ old) & FRAME_MASK:
            new = np.int64(0)
        s.entries[page, k] = new | old & A if new else new


# ---------------------------------------------------------------------- a few out of sync
@kernel
def where_out(s, cpu, table):  # type: ignore[no-untyped-def]
    """Return the place of a table among those of a CPU that are out of sync, -1 if it is not."""
    for k in range(MOST_OUT):
        if s.out[cpu, k] == table:
            return np.int64(k)
    return NONE


@kernel
def _leave_out(s, table):  # type: ignore[no-untyped-def]
    """A table that is no longer shadowed is not out of sync either (oos_hash_remove)."""
    for cpu in range(s.out.shape[0]):
        for k in range(MOST_OUT):
            if s.out[cpu, k] == table:
                s.out[cpu, k] = -1


@kernel
def put_out(s, cpu, page):  # type: ignore[no-untyped-def]
    """Let a level-1 table go out of sync; another one may have to come back (oos_hash_add)."""
    table = s.pages[page].table
    size = s.rules[_OUT_OF_SYNC]
    home = s.frames[table] % size
    at, table_at_home = home, np.int64(table)
    occupant = np.int64(s.out[cpu, home])
    swap = occupant >= 0 and s.frames[occupant] % size == home
    if swap:
        at, table_at_home = (home + 1) % size, occupant
    if s.out[cpu, at] >= 0:
        resync_out(s, cpu, at)
    if swap:
        s.snapshots[cpu, at] = s.snapshots[cpu, home]
        s.out[cpu, home] = table
    s.out[cpu, at] = table_at_home
    s.snapshots[cpu, home] = s.guest[table]
    s.pages[page].unsync = 1
    note(s, _UNSYNC, ONE)


@kernel
def resync_out(s, cpu, place):  # type: ignore[no-untyped-def]
    """Write-protect a table and carry over what has changed since it went out (_sh_resync)."""
    table = np.int64(s.out[cpu, place])
    s.out[cpu, place] = -1
    protect(s, table)
    note(s, _RESYNC, ONE)
    if s.rules[_FLOOD] == _DYING:
        s.cpus[cpu].dying = s.dying[table]
    page = find(s, table, ONE)
    s.pages[page].unsync = 0
    for k in range(s.entries.shape[1]):
        entry = s.guest[table, k]
        if entry != s.snapshots[cpu, place, k]:
            s.entries[page, k] = leaf_entry(s, entry, np.int64(s.target[table, k]))


@kernel
def resync_table(s, table):  # type: ignore[no-untyped-def]
    """Bring one table back into sync, whichever CPU put it out (sh_resync)."""
    for cpu in range(s.out.shape[0]):
        place = where_out(s, cpu, table)
        if place >= 0:
            resync_out(s, np.int64(cpu), place)


@kernel
def resync_all(s, cpu):  # type: ignore[no-untyped-def]
    """Bring everything that this CPU put out of sync back (sh_resync_all)."""
    for k in range(s.rules[_OUT_OF_SYNC]):
        if s.out[cpu, k] >= 0:
            resync_out(s, cpu, np.int64(k))
