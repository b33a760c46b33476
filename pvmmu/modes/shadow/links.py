"""Shadow pages and what refers to them; the value of a shadow entry."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import inner, kernel
from pvmmu.modes.counters import emit
from pvmmu.modes.shadow.state import (
    FRAME_MASK,
    FREE,
    NONE,
    READ_ONLY,
    ROW,
    RW,
    WRITABLE,
    A,
    D,
    P,
    view,
)


@inner
def note(s, event, amount):  # type: ignore[no-untyped-def]
    """Count an event of the row at work."""
    emit(s.counts, s.log, s.n[ROW], event, amount)


@kernel
def shadowed_above(m, table):  # type: ignore[no-untyped-def]
    """Whether a table is shadowed at a level above 1: then each write to it is trapped."""
    s = view(m)
    i = s.first[table]
    while i >= 0:
        if s.pages[i].level > 1:
            return True
        i = s.pages[i].next
    return False


@inner
def _in_sync(s, table):  # type: ignore[no-untyped-def]
    """Whether a table has a shadow that is in sync."""
    i = s.first[table]
    while i >= 0:
        if not s.pages[i].unsync:
            return True
        i = s.pages[i].next
    return False


@inner
def leaf_entry(s, entry, target):  # type: ignore[no-untyped-def]
    """Return the shadow of a level-1 entry, 0 if it cannot be used before another fault.

    An entry never used must fault, so that the guest sees A; one that is clean must fault at the
    first write, so that it sees D; and a page table must not be written unnoticed.
    """
    if entry & P == 0 or entry & A == 0:
        return np.int64(0)
    out = entry & FRAME_MASK | P
    if entry & RW and entry & D and not (target >= 0 and _in_sync(s, target)):
        out |= RW
    return out


@inner
def find(s, table, level):  # type: ignore[no-untyped-def]
    """Return the shadow of a table at a level, -1 if there is none."""
    i = s.first[table]
    while i >= 0:
        if s.pages[i].level == level:
            return np.int64(i)
        i = s.pages[i].next
    return NONE


@kernel
def protect(m, table):  # type: ignore[no-untyped-def]
    """Take write access to a table from the guest's direct map."""
    s = view(m)
    if s.mapped[table] == WRITABLE:
        s.mapped[table] = READ_ONLY


@kernel
def link(m, parent, index, child):  # type: ignore[no-untyped-def]
    """Let an entry refer to a shadow page."""
    s = view(m)
    s.entries[parent, index] = (child + 1) << 12 | P
    c = s.pages[child]
    c.parent, c.parent_index = parent, index
    c.parents += 1


@inner
def child_of(s, page, index):  # type: ignore[no-untyped-def]
    """Return the page that an entry of an upper shadow refers to, -1 if none."""
    return (s.entries[page, index] >> 12) - 1


@kernel
def unlink(m, child, parent, index):  # type: ignore[no-untyped-def]
    """A page has a parent less."""
    s = view(m)
    c = s.pages[child]
    c.parents -= 1
    if c.parent == parent and c.parent_index == index:
        c.parent = -1


@kernel
def is_below(m, page, above):  # type: ignore[no-untyped-def]
    """Whether a page hangs below another, by the entries linked last."""
    s = view(m)
    i = page
    while i >= 0:
        if i == above:
            return True
        i = np.int64(s.pages[i].parent)
    return False


@kernel
def forget(m, i):  # type: ignore[no-untyped-def]
    """A page no longer is the shadow of its table."""
    s = view(m)
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
def give_back(m, i):  # type: ignore[no-untyped-def]
    """A page is free."""
    s = view(m)
    s.pages[i].table = -1
    s.free[s.n[FREE]] = i
    s.n[FREE] += 1
