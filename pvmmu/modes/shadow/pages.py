"""Shadow pages are found again, or made; the oldest are recycled."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import sync, zap
from pvmmu.modes.shadow.links import find, note, protect
from pvmmu.modes.shadow.rules import Rule
from pvmmu.modes.shadow.state import BORN, FREE, NONE, view

_MADE = np.int64(Event.SHADOW_MADE)
_COUNTED = int(Rule.COUNTED)
_REUSED_SYNCED = int(Rule.REUSED_SYNCED)


@kernel
def get_page(m, table, level):  # type: ignore[no-untyped-def]
    """Return the shadow of a table at a level; it is made if there is none."""
    s = view(m)
    if s.rules[_COUNTED]:
        if level > 1:
            sync.resync_table(s.m, table)
    elif level > 1:
        _zap_unsynced(s.m, table, level)
    i = find(s, table, level)
    if i >= 0:
        s.pages[i].flood = 0
        if s.pages[i].unsync and not s.rules[_COUNTED]:
            if s.rules[_REUSED_SYNCED]:
                sync.resync(s.m, i)
            else:
                sync.refresh(s.m, i)
        return i
    return _make(s.m, table, level)


@kernel
def _zap_unsynced(m, table, level):  # type: ignore[no-untyped-def]
    """A table that becomes an upper one has no use for a shadow out of sync."""
    s = view(m)
    i = s.first[table]
    while i >= 0:
        following = s.pages[i].next
        if s.pages[i].unsync and s.pages[i].level != level:
            zap.zap(s.m, np.int64(i))
        i = following


@kernel
def _make(m, table, level):  # type: ignore[no-untyped-def]
    """Make a shadow page, and write-protect the table."""
    s = view(m)
    if s.n[FREE] == 0:
        _recycle(s.m)
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
    protect(s.m, table)
    note(s, _MADE, ONE)
    return np.int64(i)


@kernel
def _recycle(m):  # type: ignore[no-untyped-def]
    """Zap the oldest page that is no top-level table in use."""
    s = view(m)
    oldest = NONE
    for i in range(s.pages.shape[0]):
        p = s.pages[i]
        idle = p.table >= 0 and p.roots == 0 and (s.rules[_COUNTED] == 0 or p.pinned)
        if idle and (oldest < 0 or p.born < s.pages[oldest].born):
            oldest = np.int64(i)
    if oldest < 0:
        _unhook_roots(s.m)
    elif s.rules[_COUNTED]:
        s.pages[oldest].pinned = 0
        zap.destroy(s.m, oldest)
    else:
        zap.zap(s.m, oldest)


@kernel
def _unhook_roots(m):  # type: ignore[no-untyped-def]
    """Nothing else is left to recycle: what hangs below the tables in use (_shadow_prealloc)."""
    s = view(m)
    for cpu in range(s.roots.shape[0]):
        for k in range(s.entries.shape[1]):
            zap.drop(s.m, np.int64(s.roots[cpu, 0]), np.int64(k))
