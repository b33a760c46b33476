"""Stores of the guest to its page tables, as far as the hypervisor notices them."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, ZERO, inner, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import links, sync, zap
from pvmmu.modes.shadow.faults import other_fault, unhook
from pvmmu.modes.shadow.links import note
from pvmmu.modes.shadow.rules import Flood, Rule
from pvmmu.modes.shadow.state import EVER_DYING, WRITABLE, A, P, view

_HIDDEN, _EMULATED, _APPLIED = (
    np.int64(e) for e in (Event.SHADOW_FAULT, Event.PTE_EMULATION, Event.PTE_WRITES_APPLIED)
)
_COUNTED, _OUT_OF_SYNC, _FLOOD, _LIMIT, _RETRY, _FILLS_ON_WRITE = (
    int(r)
    for r in (
        Rule.COUNTED, Rule.OUT_OF_SYNC, Rule.FLOOD, Rule.FLOOD_LIMIT, Rule.RETRY,
        Rule.FILLS_ON_WRITE,
    )
)  # fmt: skip
_PER_PAGE, _LAST_PAGE, _SINCE_FAULT, _LAST_UNUSED, _DYING = (
    int(f)
    for f in (Flood.PER_PAGE, Flood.LAST_PAGE, Flood.SINCE_FAULT, Flood.LAST_UNUSED, Flood.DYING)
)  # fmt: skip
_LEVELS = 0
_BYTES_OF_PAGE = 4096


@inner
def set_entry(s, table, index, entry, target):  # type: ignore[no-untyped-def]
    """Change an entry of the guest's."""
    s.guest[table, index] = entry
    s.target[table, index] = target


@kernel
def store(m, cpu, table, index, entry, target):  # type: ignore[no-untyped-def]
    """The guest writes one entry by an instruction that page-table code uses."""
    s = view(m)
    if s.mapped[table] == WRITABLE:
        set_entry(s, table, index, entry, target)
        return
    if not trapped(s.m, table):
        _let_write(s.m, cpu, table)
        set_entry(s, table, index, entry, target)
        return
    _emulate(s.m, cpu, table, index, entry, target)


@kernel
def zero(m, cpu, table):  # type: ignore[no-untyped-def]
    """The guest zeroes a frame that is to be a table (clear_page)."""
    s = view(m)
    if s.mapped[table] != WRITABLE:
        if trapped(s.m, table):
            _zero_trapped(s.m, cpu, table)
        if not trapped(s.m, table):
            _let_write(s.m, cpu, table)
    s.guest[table] = 0
    s.target[table] = -1


@kernel
def trapped(m, table):  # type: ignore[no-untyped-def]
    """Whether a write to a table that is not writable must be emulated."""
    s = view(m)
    if s.first[table] < 0:
        return False
    if s.rules[_OUT_OF_SYNC] == 0:
        return True
    return links.shadowed_above(s.m, table)


@kernel
def _let_write(m, cpu, table):  # type: ignore[no-untyped-def]
    """A hidden fault makes a frame writable: it is no table, or may go out of sync."""
    s = view(m)
    i = s.first[table]
    while i >= 0:
        following = s.pages[i].next
        if not s.pages[i].unsync:
            if s.rules[_COUNTED]:
                sync.put_out(s.m, cpu, np.int64(i))
            else:
                sync.unsync(s.m, np.int64(i))
        i = following
    s.mapped[table] = WRITABLE
    note(s, _HIDDEN, ONE)
    _use_root(s.m, cpu)
    other_fault(s, cpu)


@kernel
def _zero_trapped(m, cpu, table):  # type: ignore[no-untyped-def]
    """Zeroing of a frame that is still shadowed as the table that it was."""
    s = view(m)
    if s.rules[_RETRY]:
        note(s, _EMULATED, ONE)
        unshadow(s.m, table)
        return
    bytes_of_entry = _BYTES_OF_PAGE // s.entries.shape[1]
    for k in range(_BYTES_OF_PAGE // bytes_of_entry):
        if not trapped(s.m, table):
            return
        _emulate(s.m, cpu, table, np.int64(k), ZERO, np.int64(-1))


@kernel
def unshadow(m, table):  # type: ignore[no-untyped-def]
    """Zap all shadows of a frame (kvm_mmu_unprotect_page)."""
    s = view(m)
    while s.first[table] >= 0:
        zap.zap(s.m, np.int64(s.first[table]))


@kernel
def ask(m, cpu, table, index, entry, target):  # type: ignore[no-untyped-def]
    """The hypervisor writes an entry for the guest, and carries it over to the shadows."""
    s = view(m)
    before = s.guest[table, index]
    set_entry(s, table, index, entry, target)
    if s.first[table] < 0:
        return
    if not s.rules[_COUNTED]:
        _apply_write(s.m, cpu, table, index)
    elif before & P or entry & P:
        _validate_all(s.m, table, index, entry, target)


# ---------------------------------------------------------------------- emulated writes
@kernel
def _emulate(m, cpu, table, index, entry, target):  # type: ignore[no-untyped-def]
    """Emulate a write to a table, and carry it over to the shadows."""
    s = view(m)
    note(s, _EMULATED, ONE)
    if s.rules[_COUNTED]:
        _emulate_counted(s.m, cpu, table, index, entry, target)
        return
    _use_root(s.m, cpu)
    set_entry(s, table, index, entry, target)
    _apply_write(s.m, cpu, table, index)


@kernel
def _use_root(m, cpu):  # type: ignore[no-untyped-def]
    """A fault on the kernel's half is walked from the current top-level shadow.

    That clears its count of writes (shadow_page_table_clear_flood), so it cannot be flooded.
    """
    s = view(m)
    if s.rules[_FLOOD] == _PER_PAGE and s.roots[cpu, 0] >= 0:
        s.pages[s.roots[cpu, 0]].flood = 0


@kernel
def _apply_write(m, cpu, table, index):  # type: ignore[no-untyped-def]
    """Carry an entry over to the shadows of its table (kvm_mmu_pte_write)."""
    s = view(m)
    note(s, _APPLIED, ONE)
    flooded = _flooded(s.m, cpu, table, index)
    i = s.first[table]
    while i >= 0:
        page, following = np.int64(i), s.pages[i].next
        p = s.pages[page]
        if s.rules[_FLOOD] == _PER_PAGE and p.level > 1:
            p.flood += 1
            flooded = p.flood >= s.rules[_LIMIT]
        if flooded:
            zap.zap(s.m, page)
        else:
            zap.drop(s.m, page, index)
            if p.level == 1 and s.rules[_FILLS_ON_WRITE]:
                entry = s.guest[table, index]
                s.entries[page, index] = links.leaf_entry(
                    s, entry, np.int64(s.target[table, index])
                )
        i = following


@kernel
def _flooded(m, cpu, table, index):  # type: ignore[no-untyped-def]
    """Whether a frame was written too often in a row (last_pt_write_count)."""
    s = view(m)
    if s.rules[_FLOOD] not in (_LAST_PAGE, _SINCE_FAULT, _LAST_UNUSED):
        return False
    c = s.cpus[cpu]
    used = s.rules[_FLOOD] == _LAST_UNUSED and _last_used(s.m, cpu)
    if c.last == table and not used:
        c.writes += 1
    else:
        c.last, c.writes = table, 1
    c.last_index = index
    return c.writes >= s.rules[_LIMIT]


@kernel
def _last_used(m, cpu):  # type: ignore[no-untyped-def]
    """Whether the program used the entry written last (last_updated_pte_accessed)."""
    s = view(m)
    c = s.cpus[cpu]
    if c.last < 0:
        return False
    page = links.find(s, c.last, ONE)
    return page >= 0 and s.entries[page, c.last_index] & A != 0


@kernel
def _emulate_counted(m, cpu, table, index, entry, target):  # type: ignore[no-untyped-def]
    """Emulate a write where shadows go with their last reference (sh_page_fault, Xen)."""
    s = view(m)
    if s.dying[table] and s.cpus[cpu].root != table:
        unhook_all(s.m, table)
    before = s.guest[table, index]
    set_entry(s, table, index, entry, target)
    if entry == 0:
        _early_unshadow(s.m, cpu, table)
    else:
        s.cpus[cpu].last = -1
    if before & P == 0 and entry & P == 0:
        return
    _validate_all(s.m, table, index, entry, target)


@kernel
def _validate_all(m, table, index, entry, target):  # type: ignore[no-untyped-def]
    """Give all shadows of a table the new value of an entry (sh_validate_guest_entry)."""
    s = view(m)
    i = s.first[table]
    while i >= 0:
        page, following = np.int64(i), s.pages[i].next
        _validate(s.m, page, index, entry, target)
        i = following


@kernel
def _validate(m, page, index, entry, target):  # type: ignore[no-untyped-def]
    """Give a shadow the new value of an entry (validate_gl4e and its kin)."""
    s = view(m)
    note(s, _APPLIED, ONE)
    level = s.pages[page].level
    if level == 1:
        s.entries[page, index] = links.leaf_entry(s, entry, target)
        return
    child = np.int64(-1)
    if entry & P and target >= 0:
        child = links.find(s, target, level - 1)
    if child >= 0 and links.child_of(s, page, index) == child:
        return
    if child >= 0:
        s.pages[child].parents += 1
    zap.drop(s.m, page, index)
    if child >= 0:
        s.pages[child].parents -= 1
        links.link(s.m, page, index, child)


@kernel
def _early_unshadow(m, cpu, table):  # type: ignore[no-untyped-def]
    """Zeroes may mean that the table is dying or none (check_for_early_unshadow)."""
    s = view(m)
    c = s.cpus[cpu]
    told = s.rules[_FLOOD] == _DYING and s.n[EVER_DYING] != 0
    suspicious = c.dying != 0 if told else c.last == table
    if suspicious and s.first[table] >= 0:
        top = links.find(s, table, s.shape[_LEVELS]) >= 0
        if not top or (s.rules[_FLOOD] == _DYING and not told):
            unhook_all(s.m, table)
    c.last = table


@kernel
def unhook_all(m, table):  # type: ignore[no-untyped-def]
    """Remove the shadows of a table that one known reference holds (sh_remove_shadows, fast)."""
    s = view(m)
    i = s.first[table]
    while i >= 0:
        page, following = np.int64(i), s.pages[i].next
        unhook(s.m, page)
        i = following
