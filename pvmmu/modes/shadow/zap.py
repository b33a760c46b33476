"""Shadow pages that go: zapped (KVM), or destroyed with the last reference to them (Xen)."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import sync
from pvmmu.modes.shadow.links import child_of, forget, give_back, is_below, note, unlink
from pvmmu.modes.shadow.rules import Rule
from pvmmu.modes.shadow.state import OBSOLETE, UNSYNCED, P, view

_ZAPPED = np.int64(Event.SHADOW_ZAPPED)
_COUNTED = int(Rule.COUNTED)


@kernel
def drop(m, page, index):  # type: ignore[no-untyped-def]
    """Clear an entry; what it referred to goes if nothing else does (where that is counted)."""
    s = view(m)
    if s.entries[page, index] == 0:
        return
    if s.pages[page].level == 1:
        s.entries[page, index] = 0
        return
    child = child_of(s, page, index)
    s.entries[page, index] = 0
    unlink(s.m, child, page, index)
    if s.rules[_COUNTED] and s.pages[child].parents == 0:
        destroy(s.m, child)


@kernel
def zap(m, page):  # type: ignore[no-untyped-def]
    """Zap a page, and what is out of sync below it (kvm_mmu_prepare_zap_page)."""
    s = view(m)
    if s.pages[page].level > 1:
        k = s.n[UNSYNCED] - 1
        while k >= 0:
            leaf = np.int64(s.unsynced[k])
            if is_below(s.m, leaf, page):
                _zap_one(s.m, leaf)
            k = min(k, s.n[UNSYNCED]) - 1
    _zap_one(s.m, page)


@kernel
def _zap_one(m, page):  # type: ignore[no-untyped-def]
    s = view(m)
    note(s, _ZAPPED, ONE)
    p = s.pages[page]
    for k in range(s.entries.shape[1]):
        if s.entries[page, k] != 0:
            if p.level > 1:
                unlink(s.m, child_of(s, page, k), page, np.int64(k))
            s.entries[page, k] = 0
    _unlink_parents(s.m, page)
    forget(s.m, page)
    if p.unsync:
        sync.back_in_sync(s.m, page)
    if p.roots > 0:
        p.invalid = 1
        s.n[OBSOLETE] = 1
    else:
        give_back(s.m, page)


@kernel
def _unlink_parents(m, page):  # type: ignore[no-untyped-def]
    """Clear the entries that refer to a page."""
    s = view(m)
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
def put_root(m, page):  # type: ignore[no-untyped-def]
    """A CPU no longer uses, or remembers, a top-level shadow (mmu_free_root_page)."""
    s = view(m)
    p = s.pages[page]
    p.roots -= 1
    if p.roots == 0 and p.invalid:
        note(s, _ZAPPED, ONE)
        give_back(s.m, page)


@kernel
def destroy(m, page):  # type: ignore[no-untyped-def]
    """Destroy a page to which nothing refers, and what it alone referred to (sh_destroy_shadow)."""
    s = view(m)
    if s.pages[page].pinned or s.pages[page].roots > 0:
        return
    s.stack[0] = page
    depth = 1
    while depth > 0:
        depth -= 1
        i = np.int64(s.stack[depth])
        note(s, _ZAPPED, ONE)
        forget(s.m, i)
        sync.leave_out(s.m, s.pages[i].table)
        for k in range(s.entries.shape[1]):
            if s.entries[i, k] == 0:
                continue
            if s.pages[i].level > 1:
                child = child_of(s, i, k)
                unlink(s.m, child, i, np.int64(k))
                if s.pages[child].parents == 0:
                    s.stack[depth] = child
                    depth += 1
            s.entries[i, k] = 0
        give_back(s.m, i)
