"""Batched writable page tables: Xen's answer to unhooked stores from July 2004 to August 2006.

The first store to a page-table page traps; Xen takes a snapshot, makes the page writable and, if it
is part of the tables in use, unhooks it from its L2 slot, so that nothing can be translated through
it. Further stores to it are free. At the next event that needs the truth the page is compared with
the snapshot, changed entries are checked, and it is hooked in again.

Source: Xen 228f081e08^ (2006-08-11), xen/arch/x86/mm.c. At most one page that is in use (ACTIVE)
and one that is not (INACTIVE). Guests with several CPUs batch only pages that are referenced once
(7b3cc673ac, 2006-06-18); with split page-table locks every PTE table is pinned by itself and so
referenced twice, hence their stores are emulated.

A trace does not hold every access of the program, so accesses through the hole are seen only where
they also fault: `Event.PTWR_HOLE_FAULT` is a lower bound.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu._jit import ONE, lean, record
from pvmmu.modes.counters import emit
from pvmmu.modes.events import Event

_REGION = 21  # log2 of the bytes that one PTE table maps (PAE and 64-bit)
ACTIVE, INACTIVE = np.int64(0), np.int64(1)
#: One of the two writable pages.
SLOT: Final = record(
    ("enabled", "i8"),
    ("table", "i8"),  # -1: none
    ("entries", "i8"),  # changed so far
    ("region", "i8"),
    ("mm", "i8"),
    ("changed", "u1", (1024,)),
)


def new_slots(enabled: bool) -> np.ndarray:
    """Return the state without any writable page: SLOT[2]."""
    slots = np.zeros(2, SLOT)
    slots["table"] = -1
    slots["enabled"] = enabled
    return slots


@lean
def write_to_table(slots, counts, log, row, table, index, in_use, va, mm):  # type: ignore[no-untyped-def]
    """A store to a typed table; return whether the batch carries it (else it is emulated)."""
    if not slots[0].enabled or table < 0 or index < 0:
        return False
    for which in (ACTIVE, INACTIVE):
        if slots[which].table == table:
            _note(slots, counts, log, row, which, index)
            return True
    which = ACTIVE if in_use else INACTIVE
    _close(slots, counts, log, row, which)
    slots[which].table = table
    slots[which].region = np.int64(va >> np.uint64(_REGION))
    slots[which].mm = mm
    emit(counts, log, row, Event.PTWR_OPEN, ONE)
    if which == ACTIVE:
        emit(counts, log, row, Event.TLB_FLUSH, ONE)
    _note(slots, counts, log, row, which, index)
    return True


@lean
def _note(slots, counts, log, row, which, index):  # type: ignore[no-untyped-def]
    emit(counts, log, row, Event.STORE, ONE)
    if slots[which].changed[index] == 0:
        slots[which].changed[index] = 1
        slots[which].entries += 1


@lean
def _close(slots, counts, log, row, which):  # type: ignore[no-untyped-def]
    if slots[which].table >= 0:
        emit(counts, log, row, Event.PTWR_FLUSH, ONE)
        emit(counts, log, row, Event.PTWR_ENTRIES, slots[which].entries)
        emit(counts, log, row, Event.TLB_FLUSH_ONE, ONE)
        slots[which].table = -1
        slots[which].entries = 0
        slots[which].changed[:] = 0


@lean
def close_writable(slots, counts, log, row):  # type: ignore[no-untyped-def]
    """An event that needs the truth: both pages are checked and read-only again."""
    if slots[0].enabled:
        _close(slots, counts, log, row, ACTIVE)
        _close(slots, counts, log, row, INACTIVE)


@lean
def fault_in_hole(slots, counts, log, row, va, mm):  # type: ignore[no-untyped-def]
    """A fault: if it goes through the unhooked page, Xen takes it first and hooks the page in."""
    if not slots[0].enabled or slots[ACTIVE].table < 0 or slots[ACTIVE].mm != mm:
        return
    if slots[ACTIVE].region == np.int64(va >> np.uint64(_REGION)):
        emit(counts, log, row, Event.PTWR_HOLE_FAULT, ONE)
        _close(slots, counts, log, row, ACTIVE)
