"""CR3, TLB flushes, and the top-level shadows that a CPU uses."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import kernel
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import links, pages, sync, zap
from pvmmu.modes.shadow.links import note
from pvmmu.modes.shadow.rules import EXIT_REGIONS, REGIONS, USER_REGIONS, Links, Rule
from pvmmu.modes.shadow.state import NONE, OBSOLETE, view

_HIDDEN, _SPURIOUS = np.int64(Event.SHADOW_FAULT), np.int64(Event.SPURIOUS_FAULT)
_COUNTED, _OUT_OF_SYNC, _ROOTS, _LINKS = (
    int(r) for r in (Rule.COUNTED, Rule.OUT_OF_SYNC, Rule.ROOTS, Rule.LINKS)
)
_IDENTICAL = int(Links.IDENTICAL_SPURIOUS)
_REGIONS, _WRITABLE = np.int64(len(REGIONS)), np.int64(sum(REGIONS.values()))
_USER_REGIONS, _EXIT_REGIONS = np.int64(len(USER_REGIONS)), np.int64(len(EXIT_REGIONS))
_LEVELS = 0


@kernel
def load(m, cpu, table, flush):  # type: ignore[no-untyped-def]
    """CR3 is loaded."""
    s = view(m)
    if s.rules[_COUNTED]:
        flush_all(s.m, cpu)
        _load_counted(s.m, cpu, table)
        return
    s.cpus[cpu].root = table
    root = s.roots[cpu, 0]
    if root < 0 or s.pages[root].table != table:
        flush = not _switch(s.m, cpu, table) or flush
    if flush:
        flush_all(s.m, cpu)


@kernel
def flush_all(m, cpu):  # type: ignore[no-untyped-def]
    """The guest flushes its TLB: what is out of sync must be brought back."""
    s = view(m)
    if s.rules[_OUT_OF_SYNC] == 0:
        return
    if s.rules[_COUNTED]:
        sync.resync_all(s.m, cpu)
    elif s.roots[cpu, 0] >= 0:
        sync.resync_below(s.m, np.int64(s.roots[cpu, 0]))


# ---------------------------------------------------------------------- KVM
@kernel
def _switch(m, cpu, table):  # type: ignore[no-untyped-def]
    """Use a remembered top-level shadow (true), or one found or made (kvm_mmu_new_pgd)."""
    s = view(m)
    remembered = s.rules[_ROOTS]
    at = NONE
    for k in range(1, remembered + 1):
        root = s.roots[cpu, k]
        if root >= 0 and s.pages[root].table == table and not s.pages[root].invalid:
            at = np.int64(k)
            break
    found = s.roots[cpu, at] if at >= 0 else NONE
    last = at if at >= 0 else remembered
    evicted = s.roots[cpu, last]
    for k in range(last, 0, -1):
        s.roots[cpu, k] = s.roots[cpu, k - 1]
    if at >= 0:
        s.roots[cpu, 0] = found
        s.pages[found].flood = 0
        return True
    if evicted >= 0:
        zap.put_root(s.m, np.int64(evicted))
    s.roots[cpu, 0] = _new_root(s.m, cpu, table)
    return False


@kernel
def _new_root(m, cpu, table):  # type: ignore[no-untyped-def]
    """Return the shadow of a top-level table; one that is new is soon linked to the kernel's."""
    s = view(m)
    level = s.shape[_LEVELS]
    root = links.find(s, table, level)
    if root < 0:
        root = pages.get_page(s.m, table, level)
        _link_kernel(s.m, cpu)
    s.pages[root].roots += 1
    return root


@kernel
def _link_kernel(m, cpu):  # type: ignore[no-untyped-def]
    """Each part of the kernel's half takes a fault when it is first met."""
    s = view(m)
    user = s.cpus[cpu].user != 0
    regions = _USER_REGIONS if user else _REGIONS
    changed = np.int64(0) if user else _WRITABLE
    if s.rules[_LINKS] != _IDENTICAL:
        changed = regions
    if changed:
        note(s, _HIDDEN, changed)
    if regions > changed:
        note(s, _SPURIOUS, regions - changed)


@kernel
def free_obsolete(m):  # type: ignore[no-untyped-def]
    """Let go of zapped top-level shadows; CPUs that use one load it anew."""
    s = view(m)
    s.n[OBSOLETE] = 0
    for cpu in range(s.roots.shape[0]):
        for k in range(s.roots.shape[1]):
            root = np.int64(s.roots[cpu, k])
            if root < 0 or not s.pages[root].invalid:
                continue
            zap.put_root(s.m, root)
            s.roots[cpu, k] = -1
            if k == 0:
                s.roots[cpu, 0] = _new_root(s.m, cpu, np.int64(s.cpus[cpu].root))


@kernel
def zap_user(m, table):  # type: ignore[no-untyped-def]
    """Zap all shadows below a top-level table, and its own unless it is in use."""
    s = view(m)
    root = links.find(s, table, s.shape[_LEVELS])
    if root < 0:
        return
    for i in range(s.pages.shape[0]):
        if i != root and s.pages[i].table >= 0 and links.is_below(s.m, np.int64(i), root):
            s.stack[i] = 1
        else:
            s.stack[i] = 0
    for i in range(s.pages.shape[0]):
        if s.stack[i] and s.pages[i].table >= 0:
            zap.zap(s.m, np.int64(i))
    if s.pages[root].roots == 0:
        zap.zap(s.m, root)


# ---------------------------------------------------------------------- Xen
@kernel
def _load_counted(m, cpu, table):  # type: ignore[no-untyped-def]
    """Use the pinned shadow of a top-level table; it is made if there is none (sh_update_cr3)."""
    s = view(m)
    s.cpus[cpu].root = table
    old = np.int64(s.roots[cpu, 0])
    root = links.find(s, table, s.shape[_LEVELS])
    if root >= 0 and root == old:
        return
    if root < 0:
        root = pages.get_page(s.m, table, s.shape[_LEVELS])
        _link_kernel(s.m, cpu)
    s.pages[root].pinned = 1
    s.pages[root].roots += 1
    s.roots[cpu, 0] = root
    if old >= 0:
        s.pages[old].roots -= 1
        zap.destroy(s.m, old)


@kernel
def unhook_user(m, cpu, table):  # type: ignore[no-untyped-def]
    """A process is announced to be dying: entries with the U bit go (sh_pagetable_dying).

    Linux sets U in the kernel's own top-level entries, too (_PAGE_TABLE, p4d_populate), so what is
    left of the exit meets them again if it runs on these tables.
    """
    s = view(m)
    root = links.find(s, table, s.shape[_LEVELS])
    if root < 0:
        return False
    for k in range(s.entries.shape[1]):
        zap.drop(s.m, root, np.int64(k))
    if s.roots[cpu, 0] == root:
        note(s, _HIDDEN, _EXIT_REGIONS)
    return True
