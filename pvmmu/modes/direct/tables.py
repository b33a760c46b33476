"""What direct mode does when tables become typed or cease to be, and at CR3 loads."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import NO, ONE, ZERO, lean
from pvmmu.modes.counters import CPU, emit
from pvmmu.modes.direct.multicall import (
    MMU_UPDATE,
    MMU_UPDATE_BYTES,
    MMUEXT_OP,
    MMUEXT_OP_BYTES,
    UPDATE_VA_MAPPING,
    call,
    callback,
    entry,
    extend,
    flush,
)
from pvmmu.modes.direct.writable_tables import write_to_table
from pvmmu.modes.events import Event

# Brackets that a CPU may be in.
LAZY, SWITCH = 1, 2


@lean
def issue(m, cpu, row, bracket):  # type: ignore[no-untyped-def]
    """Send at once unless a bracket of the right kind is open (xen_mc_issue)."""
    if bracket == 0:
        flush(m, cpu, row)
    else:
        emit(m.counts, m.log, row, Event.QUEUED, ONE)


@lean
def _mmuext(extends, m, cpu, row):  # type: ignore[no-untyped-def]
    """One mmuext_op request in the buffer (xen_do_pin, __xen_write_cr3)."""
    if extends:
        extend(m, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)
    else:
        entry(m, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)


@lean
def mmu_update(extends, m, cpu, row):  # type: ignore[no-untyped-def]
    """One mmu_update request in the buffer; before 2.6.27 each has an entry of its own."""
    if extends:
        extend(m, cpu, row, MMU_UPDATE, MMU_UPDATE_BYTES)
    else:
        entry(m, cpu, row, MMU_UPDATE, MMU_UPDATE_BYTES)


@lean
def trap(m, row, cpu, table, slot, in_use, va, mm, stores):  # type: ignore[no-untyped-def]
    """A store to a typed table: it takes effect at once, whatever waits in the queue."""
    if m.cpus[cpu].entries > 0:
        emit(m.counts, m.log, row, Event.REORDERED_WRITE, ONE)
    if not write_to_table(m.slots, m.counts, m.log, row, table, slot, in_use, va, mm):
        emit(m.counts, m.log, row, Event.PTE_EMULATION, stores)


@lean
def load_cr3(backend, m, cpu, row, brackets):  # type: ignore[no-untyped-def]
    """MMUEXT_NEW_BASEPTR and, for a 64-bit guest, MMUEXT_NEW_USER_BASEPTR."""
    _mmuext(backend.extends_mmuext, m, cpu, row)
    callback(m, cpu, row)
    if backend.user_root:
        _mmuext(backend.extends_mmuext, m, cpu, row)
    emit(m.counts, m.log, row, Event.TLB_FLUSH, ONE)
    issue(m, cpu, row, brackets & SWITCH)


@lean
def move_off(mm, backend, m, row, cpu):  # type: ignore[no-untyped-def]
    """xen_drop_mm_ref: this CPU, then by interrupt all others, load swapper_pg_dir."""
    for turn in range(m.cpus.shape[0]):
        c = (cpu + turn) % m.cpus.shape[0]
        if m.cpus[c].loaded == mm:
            if c != cpu:
                emit(m.counts, m.log, row, Event.EVENT_CHANNEL_OP, ONE)
            m.counts[CPU] = c
            load_cr3(backend, m, c, row, ZERO)
            m.cpus[c].loaded = 0
    m.counts[CPU] = cpu


@lean
def announce(m, row, cpu, comes, pins, backend, brackets):  # type: ignore[no-untyped-def]
    """Make a table page read-only (and pin it), or (unpin it and make it) writable again."""
    emit(m.counts, m.log, row, Event.TABLES_PINNED if comes else Event.TABLES_UNPINNED, 1)
    for turn in range(2):
        remap = (turn == 0) == comes  # read-only before it is pinned, unpinned before writable
        if backend.announces_in_bracket and remap:
            entry(m, cpu, row, UPDATE_VA_MAPPING, ZERO)
        elif backend.announces_in_bracket and pins:
            entry(m, cpu, row, MMUEXT_OP, MMUEXT_OP_BYTES)
        elif remap:
            call(m, row, UPDATE_VA_MAPPING, ONE)
        elif pins:
            call(m, row, MMUEXT_OP, ONE)
    if backend.announces_in_bracket:
        issue(m, cpu, row, brackets & LAZY)


@lean
def by_store(m, row, cpu, comes, n, table, slot, pins):  # type: ignore[no-untyped-def]
    """Early XenLinux: a store to the kernel's entry makes a page read-only; then it is pinned.

    Of a root there are two pages, one behind the other. The kernel's tables are part of all.
    """
    emit(m.counts, m.log, row, Event.TABLES_PINNED if comes else Event.TABLES_UNPINNED, n)
    for turn in range(2):
        for i in range(n):
            if (turn == 0) == comes:
                trap(m, row, cpu, table, slot + i, True, np.uint64(0), 0, ONE)
            elif pins:
                call(m, row, MMUEXT_OP, ONE)


@lean
def page(m, row, cpu, pins, unpins, extends):  # type: ignore[no-untyped-def]
    """xen_pin_page and xen_unpin_page: remap a table page; a PTE table is pinned by itself."""
    if unpins:
        _mmuext(extends, m, cpu, row)
    entry(m, cpu, row, UPDATE_VA_MAPPING, ZERO)
    if pins:
        _mmuext(extends, m, cpu, row)
    if pins or unpins:
        callback(m, cpu, row)


@lean
def pin(walks, walk, present, backend, m, row, cpu):  # type: ignore[no-untyped-def]
    """__xen_pgd_pin: walk over all table pages, then pin the root (and the user's)."""
    extends, split = backend.extends_mmuext, backend.split_ptlock != 0
    start, stop = (walks.start[walk], walks.start[walk + 1]) if walk >= 0 else (0, 0)
    emit(m.counts, m.log, row, Event.TABLES_PINNED, stop - start + 1 + backend.user_root)
    if backend.walks_by_calls:
        _calls(m, row, UPDATE_VA_MAPPING, stop - start + 1 + backend.user_root)
        _calls(m, row, MMUEXT_OP, 1 + backend.user_root)
    else:
        if backend.root_first:
            page(m, row, cpu, NO, NO, extends)
        for i in range(start, stop):
            page(m, row, cpu, split and walks.level[i] == 1, NO, extends)
        if not backend.root_first:
            page(m, row, cpu, NO, NO, extends)
        _mmuext(extends, m, cpu, row)
        if backend.user_root:
            page(m, row, cpu, NO, NO, extends)
            _mmuext(extends, m, cpu, row)
    emit(m.counts, m.log, row, Event.ENTRIES_VALIDATED, max(0, present))
    emit(m.counts, m.log, row, Event.TLB_FLUSH, ONE)  # UVMF_TLB_FLUSH on the root
    flush(m, cpu, row)


@lean
def unpin(walks, walk, present, backend, m, row, cpu):  # type: ignore[no-untyped-def]
    """__xen_pgd_unpin: unpin the root (and the user's), then walk."""
    extends, split = backend.extends_mmuext, backend.split_ptlock != 0
    start, stop = (walks.start[walk], walks.start[walk + 1]) if walk >= 0 else (0, 0)
    emit(m.counts, m.log, row, Event.TABLES_UNPINNED, stop - start + 1 + backend.user_root)
    if backend.walks_by_calls:
        _calls(m, row, MMUEXT_OP, 1 + backend.user_root)
        _calls(m, row, UPDATE_VA_MAPPING, stop - start + 1 + backend.user_root)
        _calls(m, row, MMUEXT_OP, 1 if backend.walks_by_calls == 2 else 0)
    else:
        _mmuext(extends, m, cpu, row)
        if backend.user_root:
            _mmuext(extends, m, cpu, row)
            page(m, row, cpu, NO, NO, extends)
        if backend.root_first:
            page(m, row, cpu, NO, NO, extends)
        for i in range(start, stop):
            page(m, row, cpu, NO, split and walks.level[i] == 1, extends)
        if not backend.root_first:
            page(m, row, cpu, NO, NO, extends)
    emit(m.counts, m.log, row, Event.ENTRIES_DROPPED, max(0, present))
    emit(m.counts, m.log, row, Event.TLB_FLUSH, ONE)
    flush(m, cpu, row)


@lean
def _calls(m, row, kind, n):  # type: ignore[no-untyped-def]
    """XenLinux: one hypercall for each page of a walk."""
    for _ in range(n):
        call(m, row, kind, ONE)
