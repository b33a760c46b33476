"""Level-1 tables out of sync, and back.

KVM marks the shadow page and lists any number of them; Xen keeps a hash of three tables for each
CPU, with snapshots that tell later what has changed.
"""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.shadow.links import find, is_below, leaf_entry, note, protect
from pvmmu.modes.shadow.rules import Flood, Rule
from pvmmu.modes.shadow.state import FRAME_MASK, MOST_OUT, NONE, UNSYNCED, A, view

_UNSYNC = np.int64(Event.UNSYNC)
_RESYNC = np.int64(Event.RESYNC)
_OUT_OF_SYNC = int(Rule.OUT_OF_SYNC)
_FLOOD = int(Rule.FLOOD)
_DYING = int(Flood.DYING)


@kernel
def unsync(m, page):  # type: ignore[no-untyped-def]
    """Let a level-1 table go out of sync (kvm_unsync_page)."""
    s = view(m)
    p = s.pages[page]
    p.unsync, p.place = 1, s.n[UNSYNCED]
    s.unsynced[s.n[UNSYNCED]] = page
    s.n[UNSYNCED] += 1
    note(s, _UNSYNC, ONE)


@kernel
def back_in_sync(m, page):  # type: ignore[no-untyped-def]
    """A page is out of sync no longer (kvm_unlink_unsync_page)."""
    s = view(m)
    p = s.pages[page]
    p.unsync = 0
    s.n[UNSYNCED] -= 1
    last = s.unsynced[s.n[UNSYNCED]]
    s.unsynced[p.place] = last
    s.pages[last].place = p.place
    note(s, _RESYNC, ONE)


@kernel
def resync(m, page):  # type: ignore[no-untyped-def]
    """Write-protect a level-1 table and bring its shadow up to date (mmu_sync_children)."""
    s = view(m)
    protect(s.m, s.pages[page].table)
    back_in_sync(s.m, page)
    refresh(s.m, page)


@kernel
def resync_below(m, page):  # type: ignore[no-untyped-def]
    """Bring everything below a page back into sync."""
    s = view(m)
    k = s.n[UNSYNCED] - 1
    while k >= 0:
        leaf = np.int64(s.unsynced[k])
        if is_below(s.m, leaf, page):
            resync(s.m, leaf)
        k = min(k, s.n[UNSYNCED]) - 1


@kernel
def refresh(m, page):  # type: ignore[no-untyped-def]
    """Correct the entries of a level-1 shadow by those of the guest (paging64_sync_page)."""
    s = view(m)
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


@kernel
def where_out(m, cpu, table):  # type: ignore[no-untyped-def]
    """Return the place of a table among those of a CPU that are out of sync, -1 if it is not."""
    s = view(m)
    for k in range(MOST_OUT):
        if s.out[cpu, k] == table:
            return np.int64(k)
    return NONE


@kernel
def leave_out(m, table):  # type: ignore[no-untyped-def]
    """A table that is no longer shadowed is not out of sync either (oos_hash_remove)."""
    s = view(m)
    for cpu in range(s.out.shape[0]):
        for k in range(MOST_OUT):
            if s.out[cpu, k] == table:
                s.out[cpu, k] = -1


@kernel
def put_out(m, cpu, page):  # type: ignore[no-untyped-def]
    """Let a level-1 table go out of sync; another one may have to come back (oos_hash_add)."""
    s = view(m)
    table = s.pages[page].table
    size = s.rules[_OUT_OF_SYNC]
    home = s.frames[table] % size
    at, table_at_home = home, np.int64(table)
    occupant = np.int64(s.out[cpu, home])
    swap = occupant >= 0 and s.frames[occupant] % size == home
    if swap:
        at, table_at_home = (home + 1) % size, occupant
    if s.out[cpu, at] >= 0:
        resync_out(s.m, cpu, at)
    if swap:
        s.out[cpu, home] = table
    s.out[cpu, at] = table_at_home
    for k in range(s.entries.shape[1]):
        if swap:
            s.snapshots[cpu, at, k] = s.snapshots[cpu, home, k]
        s.snapshots[cpu, home, k] = s.guest[table, k]
    s.pages[page].unsync = 1
    note(s, _UNSYNC, ONE)


@kernel
def resync_out(m, cpu, place):  # type: ignore[no-untyped-def]
    """Write-protect a table and carry over what has changed since it went out (_sh_resync)."""
    s = view(m)
    table = np.int64(s.out[cpu, place])
    s.out[cpu, place] = -1
    protect(s.m, table)
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
def resync_table(m, table):  # type: ignore[no-untyped-def]
    """Bring one table back into sync, whichever CPU put it out (sh_resync)."""
    s = view(m)
    for cpu in range(s.out.shape[0]):
        place = where_out(s.m, cpu, table)
        if place >= 0:
            resync_out(s.m, np.int64(cpu), place)


@kernel
def resync_all(m, cpu):  # type: ignore[no-untyped-def]
    """Bring everything that this CPU put out of sync back (sh_resync_all)."""
    s = view(m)
    for k in range(s.rules[_OUT_OF_SYNC]):
        if s.out[cpu, k] >= 0:
            resync_out(s.m, cpu, np.int64(k))
