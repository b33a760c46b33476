"""Stores of the guest to its page tables, as far as the hypervisor notices them."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ONE, ZERO, inner, lean
from pvmmu.modes.events import Event
from pvmmu.modes.shadow import links, sync, zap
from pvmmu.modes.shadow.faults import other_fault, unhook
from pvmmu.modes.shadow.links import note
from pvmmu.modes.shadow.rules import Flood, Rule
from pvmmu.modes.shadow.state import EVER_DYING, WRITABLE, A, P

_HIDDEN, _EMULATED, _APPLIED = (
    np.int64(e) for e in (Event.HIDDEN_FAULT, Event.PTE_EMULATION, Event.PTE_WRITES_APPLIED)
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


@lean
def store(s, cpu, table, index, entry, target):  # type: ignore[no-untyped-def]
    """The guest writes one entry by an instruction that page-table code uses."""
    if s.mapped[table] == WRITABLE:
        set_entry(s, table, index, entry, target)
        return
    if not trapped(s, table):
        _let_write(s, cpu, table)
        set_entry(s, table, index, entry, target)
        return
    _emulate(s, cpu, table, index, entry, target)


@lean
def zero(s, cpu, table):  # type: ignore[no-untyped-def]
    """The guest zeroes a frame that is to be a table (clear_page)."""
    if s.mapped[table] != WRITABLE:
        if trapped(s, table):
            _zero_trapped(s, cpu, table)
        if not trapped(s, table):
            _let_write(s, cpu, table)
    s.guest[table] = 0
    s.target[table] = -1


@lean
def trapped(s, table):  # type: ignore[no-untyped-def]
    """Whether a write to a table that is not writable must be emulated."""
    if s.first[table] < 0:
        return False
    if s.rules[_OUT_OF_SYNC] == 0:
        return True
    return links.shadowed_above(s, table)


@lean
def _let_write(s, cpu, table):  # type: ignore[no-untyped-def]
    """A hidden fault makes a frame writable: it is no table, or may go out of sync."""
    i = s.first[table]
    while i >= 0:
        following = s.pages[i].next
        if not s.pages[i].unsync:
            if s.rules[_COUNTED]:
                sync.put_out(s, cpu, np.int64(i))
            else:
                sync.unsync(s, np.int64(i))
        i = following
    s.mapped[table] = WRITABLE
    note(s, _HIDDEN, ONE)
    _use_root(s, cpu)
    other_fault(s, cpu)


@lean
def _zero_trapped(s, cpu, table):  # type: ignore[no-untyped-def]
    """Zeroing of a frame that is still shadowed as the table that it was."""
    if s.rules[_RETRY]:
        note(s, _EMULATED, ONE)
        unshadow(s, table)
        return
    bytes_of_entry = _BYTES_OF_PAGE // s.entries.shape[1]
    for k in range(_BYTES_OF_PAGE // bytes_of_entry):
        if not trapped(s, table):
            return
        _emulate(s, cpu, table, np.int64(k), ZERO, np.int64(-1))


@lean
def unshadow(s, table):  # type: ignore[no-untyped-def]
    """Zap all shadows of a frame (kvm_mmu_unprotect_page)."""
    while s.first[table] >= 0:
        zap.zap(s, np.int64(s.first[table]))


@lean
def ask(s, cpu, table, index, entry, target):  # type: ignore[no-untyped-def]
    """The hypervisor writes an entry for the guest, and carries it over to the shadows."""
    before = s.guest[table, index]
    set_entry(s, table, index, entry, target)
    if s.first[table] < 0:
        return
    if not s.rules[_COUNTED]:
        apply_write(s, cpu, table, index)
    elif before & P or entry & P:
        _validate_all(s, table, index, entry, target)


# ---------------------------------------------------------------------- emulated writes
@lean
def _emulate(s, cpu, table, index, entry, target):  # type: ignore[no-untyped-def]
    """Emulate a write to a table, and carry it over to the shadows."""
    note(s, _EMULATED, ONE)
    if s.rules[_COUNTED]:
        _emulate_counted(s, cpu, table, index, entry, target)
        return
    _use_root(s, cpu)
    set_entry(s, table, index, entry, target)
    apply_write(s, cpu, table, index)


@lean
def _use_root(s, cpu):  # type: ignore[no-untyped-def]
    """A fault on the kernel's half is walked from the current top-level shadow.

    That clears its count of writes (shadow_page_table_clear_flood), so it cannot be flooded.
    """
    if s.rules[_FLOOD] == _PER_PAGE and s.roots[cpu, 0] >= 0:
        s.pages[s.roots[cpu, 0]].flood = 0


@lean
def apply_write(s, cpu, table, index):  # type: ignore[no-untyped-def]
    """Carry an entry over to the shadows of its table (kvm_mmu_pte_write)."""
    note(s, _APPLIED, ONE)
    flooded = _flooded(s, cpu, table, index)
    i = s.first[table]
    while i >= 0:
        page, following = np.int64(i), s.pages[i].next
        p = s.pages[page]
        if s.rules[_FLOOD] == _PER_PAGE and p.level > 1:
            p.flood += 1
            flooded = p.flood >= s.rules[_LIMIT]
        if flooded:
            zap.zap(s, page)
        else:
            zap.drop(s, page, index)
            if p.level == 1 and s.rules[_FILLS_ON_WRITE]:
                entry = s.guest[table, index]
                s.entries[page, index] = links.leaf_entry(
                    s, entry, np.int64(s.target[table, index])
                )
        i = following


@lean
def _flooded(s, cpu, table, index):  # type: ignore[no-untyped-def]
    """Whether a frame was written too often in a row (last_pt_write_count)."""
    if s.rules[_FLOOD] not in (_LAST_PAGE, _SINCE_FAULT, _LAST_UNUSED):
        return False
    c = s.cpus[cpu]
    used = s.rules[_FLOOD] == _LAST_UNUSED and _last_used(s, cpu)
    if c.last == table and not used:
        c.writes += 1
    else:
        c.last, c.writes = table, 1
    c.last_index = index
    return c.writes >= s.rules[_LIMIT]


@lean
def _last_used(s, cpu):  # type: ignore[no-untyped-def]
    """Whether the program used the entry written last (last_updated_pte_accessed)."""
    c = s.cpus[cpu]
    if c.last < 0:
        return False
    page = links.find(s, c.last, ONE)
    return page >= 0 and s.entries[page, c.last_index] & A != 0


@lean
def _emulate_counted(s, cpu, table, index, entry, target):  # type: ignore[no-untyped-def]
    """Emulate a write where shadows go with their last reference (sh_page_fault, Xen)."""
    if s.dying[table] and s.cpus[cpu].root != table:
        unhook_all(s, table)
    before = s.guest[table, index]
    set_entry(s, table, index, entry, target)
    if entry == 0:
        _early_unshadow(s, cpu, table)
    else:
        s.cpus[cpu].last = -1
    if before & P == 0 and entry & P == 0:
        return
    _validate_all(s, table, index, entry, target)


@lean
def _validate_all(s, table, index, entry, target):  # type: ignore[no-untyped-def]
    """Give all shadows of a table the new value of an entry (sh_validate_guest_entry)."""
    i = s.first[table]
    while i >= 0:
        page, following = np.int64(i), s.pages[i].next
        _validate(s, page, index, entry, target)
        i = following


@lean
def _validate(s, page, index, entry, target):  # type: ignore[no-untyped-def]
    """Give a shadow the new value of an entry (validate_gl4e and its kin)."""
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
    zap.drop(s, page, index)
    if child >= 0:
        s.pages[child].parents -= 1
        links.link(s, page, index, child)


@lean
def _early_unshadow(s, cpu, table):  # type: ignore[no-untyped-def]
    """Zeroes may mean that the table is dying or none (check_for_early_unshadow)."""
    c = s.cpus[cpu]
    told = s.rules[_FLOOD] == _DYING and s.n[EVER_DYING] != 0
    suspicious = c.dying != 0 if told else c.last == table
    if suspicious and s.first[table] >= 0:
        top = links.find(s, table, s.shape[_LEVELS]) >= 0
        if not top or (s.rules[_FLOOD] == _DYING and not told):
            unhook_all(s, table)
    c.last = table


@lean
def unhook_all(s, table):  # type: ignore[no-untyped-def]
    """Remove the shadows of a table that one known reference holds (sh_remove_shadows, fast)."""
    i = s.first[table]
    while i >= 0:
        page, following = np.int64(i), s.pages[i].next
        unhook(s, page)
        i = following
