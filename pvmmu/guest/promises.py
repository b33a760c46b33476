"""What the kernel relies on when it changes an entry, row by row of a trace.

A change need not take effect at once, but generic mm makes assumptions: an entry that it reads is
the one that it wrote last; a bit that the processor sets in an entry (A, D) is not lost between a
read and the write that follows; at the release of a page-table lock others see what was done under
it (include/linux/pgtable.h on lazy MMU mode: "read hazards" are to be removed by its users). All of
this follows from the trace alone, so it is computed once and serves every design.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final

import numpy as np

from pvmmu.guest.lifecycle import lifecycle
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import ENTRY_OPS, RMW_OPS, Flag, Op


@unique
class ClearedFor(IntEnum):
    """What an entry is cleared for; only the last can lose a dirty bit that somebody needs."""

    NOT_CLEARED = 0
    DYING = 1  # its address space is torn down: no CPU runs in it
    KERNEL = 2  # the kernel's own mapping: nobody asks for its dirty bits
    SPECIAL = 3  # a foreign or special page (_PAGE_SPECIAL): not tracked
    LIVE = 4  # a user's entry that other CPUs may write through


#: Operations that read the entry which they change.
READS: Final = (*RMW_OPS, Op.MODIFY_PROT_START)
#: Operations that write the column ``value`` into the entry; the others that touch it clear it.
_WRITES: Final = (
    Op.SET_PTE, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG, Op.MODIFY_PROT_COMMIT, Op.PTE_RMW,
)  # fmt: skip
#: Operations that read an entry and write it in one atomic access natively.
_ATOMIC: Final = (*READS, Op.MODIFY_PROT_COMMIT)
_PRESENT, _RW, _DIRTY, _SPECIAL = (np.uint64(1 << bit) for bit in (0, 1, 6, 9))
#: mm/memory.c, zap_pte_range; its caller is inlined or not.
_ZAP: Final = ("unmap_page_range", "zap_pte_range")
#: What follows a zap within the same call: the flush; then munmap frees tables.
_GATHER: Final = (*_ZAP, "tlb_finish_mmu", "tlb_flush_mmu")
_FREES: Final = ("free_pgd_range", "free_pgtables")


@dataclass(frozen=True)
class Promises:
    """What the kernel relies on at each row.

    Parameters
    ----------
    entry : int32[row]
        Number of the page-table entry that the row changes; of a touch or a fault the one that
        maps its page; -1 none, or never changed in this trace.
    reads : bool[row]
        The operation reads the entry before it changes it.
    read_back : bool[row]
        Generic mm reads the entry again, before its bracket ends. Inferred: ``zap_pte_range`` of
        Linux 6.1 warns if an entry that it cleared is not none (include/linux/mm_inline.h:
        pte_install_uffd_wp_if_needed), unless its caller drops markers, as munmap and exit do.
    cleared_for : uint8[row]
        A `ClearedFor`.
    loses_dirty : bool[row]
        A dirty bit that another CPU sets between a read and a later write would be lost.
    walks : bool[row]
        A touch, or a fault: the processor walks the tables.
    unlocks : bool[row]
        The page-table lock is released after the row within a bracket (`Flag.UNLOCKS`).
    written_by : int64[row]
        Row that wrote what the entry holds before this row; -1 where the trace does not show it.
    entries : int
        Number of different entries.
    """

    entry: np.ndarray
    reads: np.ndarray
    read_back: np.ndarray
    cleared_for: np.ndarray
    loses_dirty: np.ndarray
    walks: np.ndarray
    unlocks: np.ndarray
    written_by: np.ndarray
    entries: int


def promises(trace: Trace) -> Promises:
    """Return what the kernel of `trace` relies on (kept with it)."""
    if "promises" not in trace.derived:
        trace.derived["promises"] = _promises(trace)
    out: Promises = trace.derived["promises"]
    return out


def _promises(trace: Trace) -> Promises:
    op, flags = trace["op"], trace["flags"]
    walks = (op == Op.TOUCH) | (op == Op.FAULT)
    entry = _entries(trace, walks)
    written_by = _written_by(trace, entry)
    known = written_by >= 0
    value = np.where(np.isin(op, _WRITES), trace["value"], np.uint64(0))
    before = np.where(known, value[written_by], np.uint64(0))
    cleared_for = _cleared_for(trace, before, known)
    clean = ~known | ((before & _RW != 0) & (before & _DIRTY == 0) & (before & _PRESENT != 0))
    absent = ((flags & Flag.OLD_KNOWN) != 0) & ((flags & Flag.OLD_PRESENT) == 0)
    loses = np.isin(op, _ATOMIC) & (cleared_for == ClearedFor.LIVE) & clean & ~absent
    return Promises(
        entry, np.isin(op, READS), _read_back(trace), cleared_for, loses, walks,
        (flags & Flag.UNLOCKS) != 0, written_by, int(entry.max(initial=-1)) + 1,
    )  # fmt: skip


def _entries(trace: Trace, walks: np.ndarray) -> np.ndarray:
    """Number the entries; a walk takes the entry that its page had last."""
    out = np.full(len(trace), -1, np.int32)
    rows = np.flatnonzero(np.isin(trace["op"], [int(o) for o in ENTRY_OPS]))
    if not len(rows):
        return out
    placed = trace["table"][rows] >= 0
    page = (trace["va"] >> np.uint64(12)).astype(np.int64)
    place = np.stack(
        [
            np.where(placed, trace["table"][rows], -2 - trace["mm"][rows].astype(np.int64)),
            np.where(placed, trace["index"][rows], page[rows]),
        ],
        axis=1,
    )
    out[rows] = np.unique(place, axis=0, return_inverse=True)[1].reshape(-1)
    leaf = rows[trace["op"][rows] < Op.SET_PMD]
    where = np.concatenate([leaf, np.flatnonzero(walks)])
    where = where[np.lexsort((where, page[where], trace["mm"][where]))]
    last = np.maximum.accumulate(np.where(walks[where], -1, np.arange(len(where))))
    found = np.maximum(last, 0)
    same = (last >= 0) & (page[where[found]] == page[where])
    same &= trace["mm"][where[found]] == trace["mm"][where]
    walk = walks[where] & same
    out[where[walk]] = out[where[found[walk]]]
    return out


def _written_by(trace: Trace, entry: np.ndarray) -> np.ndarray:
    """Return the row that changed the entry of each row last: int64[row]; -1 none did."""
    op, out = trace["op"], np.full(len(trace), -1, np.int64)
    changes = np.isin(op, [int(o) for o in ENTRY_OPS - {Op.MODIFY_PROT_START}])
    rows = np.flatnonzero((entry >= 0) & (changes | (op == Op.MODIFY_PROT_START)))
    if len(rows):
        rows = rows[np.lexsort((rows, entry[rows]))]
        last = np.maximum.accumulate(np.where(changes[rows], np.arange(len(rows)), -1))
        last = np.concatenate([[-1], last[:-1]])
        source = rows[np.maximum(last, 0)]
        out[rows] = np.where((last >= 0) & (entry[source] == entry[rows]), source, -1)
    return out


def _cleared_for(trace: Trace, before: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Say for each change that natively is one access what it is made for."""
    mm = trace["mm"]
    exits = lifecycle(trace).exits
    dying = (trace["flags"] & Flag.FULLMM) != 0
    dying |= (mm > 0) & (np.arange(len(trace)) > exits[mm])
    out = np.full(len(trace), ClearedFor.LIVE, np.uint8)
    out[known & (before & _SPECIAL != 0)] = ClearedFor.SPECIAL
    out[mm == 0] = ClearedFor.KERNEL
    out[dying] = ClearedFor.DYING
    out[~np.isin(trace["op"], _ATOMIC)] = ClearedFor.NOT_CLEARED
    return out


def _read_back(trace: Trace) -> np.ndarray:
    """Return the clears of zap_pte_range whose caller keeps markers: neither munmap nor exit."""
    names = [*trace.callers, ""]
    zap, gather, frees = (
        np.isin(trace["caller"], [i for i, n in enumerate(names[:-1]) if n in known])
        for known in (_ZAP, _GATHER, _FREES)
    )
    out: np.ndarray = (
        zap & (trace["op"] == Op.PTE_GET_AND_CLEAR) & ((trace["flags"] & Flag.FULLMM) == 0)
    )
    if not out.any():
        return out
    # What the same address space does next outside of the gather decides; so does the flush at its
    # end, which bears the name of what was called last: free_pgd_range where tables may go.
    decides = (~gather & (trace["caller"] >= 0)) | (trace["op"] == Op.FAULT) | _last_flush(trace)
    rows = np.flatnonzero(out | decides)
    rows = rows[np.lexsort((rows, trace["mm"][rows]))]
    at = np.where(decides[rows], np.arange(len(rows)), len(rows) - 1)
    at = np.minimum.accumulate(at[::-1])[::-1]
    munmap = frees[rows[at]] & (trace["mm"][rows[at]] == trace["mm"][rows])
    out[rows[munmap]] = False
    return out


def _last_flush(trace: Trace) -> np.ndarray:
    """Return the flushes that tlb_finish_mmu decided upon, if nothing was called in between."""
    names = [*trace.callers, ""]
    by = np.array([n in _ZAP for n in names])[trace["caller"]]
    finish = np.array([n == "tlb_finish_mmu" for n in names])[trace["caller"]]
    out = np.zeros(len(trace), np.bool_)
    for cpu in range(trace.platform.vcpus):
        rows = np.flatnonzero(trace["cpu"] == cpu)
        decided = finish[rows] & (trace["op"][rows] == Op.FLUSH_RANGE)
        out[rows[1:]] = decided[:-1] & by[rows[1:]]
    return out
