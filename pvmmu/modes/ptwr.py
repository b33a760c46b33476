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

from typing import NamedTuple

import numpy as np

from pvmmu._jit import ONE, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.tally import emit

_REGION = 21  # log2 of the bytes that one PTE table maps (PAE and 64-bit)
ACTIVE, INACTIVE = np.int64(0), np.int64(1)
_TABLE, _CHANGED, _BASE, _MM = 0, 1, 2, 3


class Ptwr(NamedTuple):
    """State of the two writable pages."""

    enabled: np.ndarray  # bool[1]
    slot: np.ndarray  # int64[2, 4]: table (-1 none), entries changed, region, address space
    changed: np.ndarray  # bool[2, 1024]


def new_ptwr(enabled: bool) -> Ptwr:
    """Return the state without any writable page."""
    slot = np.zeros((2, 4), np.int64)
    slot[:, _TABLE] = -1
    return Ptwr(np.array([enabled]), slot, np.zeros((2, 1024), np.bool_))


@kernel
def write_to_table(p, tally, row, table, index, in_use, va, mm):  # type: ignore[no-untyped-def]
    """A store to a typed table; return whether the batch carries it (else it is emulated)."""
    if not p.enabled[0] or table < 0 or index < 0:
        return False
    for which in (ACTIVE, INACTIVE):
        if p.slot[which, _TABLE] == table:
            _note(p, tally, row, which, index)
            return True
    which = ACTIVE if in_use else INACTIVE
    _close(p, tally, row, which)
    p.slot[which, _TABLE] = table
    p.slot[which, _BASE] = np.int64(va >> np.uint64(_REGION))
    p.slot[which, _MM] = mm
    emit(tally, row, Event.PTWR_OPEN, ONE)
    if which == ACTIVE:
        emit(tally, row, Event.TLB_FLUSH, ONE)
    _note(p, tally, row, which, index)
    return True


@kernel
def _note(p, tally, row, which, index):  # type: ignore[no-untyped-def]
    emit(tally, row, Event.STORE, ONE)
    if not p.changed[which, index]:
        p.changed[which, index] = True
        p.slot[which, _CHANGED] += 1


@kernel
def _close(p, tally, row, which):  # type: ignore[no-untyped-def]
    if p.slot[which, _TABLE] >= 0:
        emit(tally, row, Event.PTWR_FLUSH, ONE)
        emit(tally, row, Event.PTWR_ENTRIES, p.slot[which, _CHANGED])
        emit(tally, row, Event.TLB_FLUSH_ONE, ONE)
        p.slot[which, _TABLE] = -1
        p.slot[which, _CHANGED] = 0
        p.changed[which, :] = False


@kernel
def close_writable(p, tally, row):  # type: ignore[no-untyped-def]
    """An event that needs the truth: both pages are checked and read-only again."""
    if p.enabled[0]:
        _close(p, tally, row, ACTIVE)
        _close(p, tally, row, INACTIVE)


@kernel
def fault_in_hole(p, tally, row, va, mm):  # type: ignore[no-untyped-def]
    """A fault: if it goes through the unhooked page, Xen takes it first and hooks the page in."""
    if p.enabled[0] and p.slot[ACTIVE, _TABLE] >= 0:
        same = p.slot[ACTIVE, _BASE] == np.int64(va >> np.uint64(_REGION))
        if same and p.slot[ACTIVE, _MM] == mm:
            emit(tally, row, Event.PTWR_HOLE_FAULT, ONE)
            _close(p, tally, row, ACTIVE)
