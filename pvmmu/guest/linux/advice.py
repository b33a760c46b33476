"""Advice on memory, and its age: madvise, clear_refs (mm/madvise.c, fs/proc/task_mmu.c)."""

from __future__ import annotations

import numpy as np

from pvmmu.errors import GuestError
from pvmmu.guest.linux import gather, ranges
from pvmmu.guest.linux.faults import VM_PFNMAP, VM_SOFTDIRTY
from pvmmu.guest.linux.mm import Mm
from pvmmu.guest.linux.profile_keys import Par, Step
from pvmmu.guest.linux.rows import EVERYTHING, flush_mm
from pvmmu.x86 import bits

_NO = np.bool_(False)


def dontneed(mm: Mm, cpu: int, at: int, pages: int) -> None:
    """Drop pages (madvise(MADV_DONTNEED), zap_page_range_single)."""
    caller = mm.caller("tlb_finish_mmu")
    for start, end in mm.parts("madvise", at, pages):
        gather.begin(mm.machine.s, np.int64(0))
        mm.zap(cpu, start, end, caller, reclaim=True)
        gather.finish(mm.machine.reserve(), cpu, mm.number, caller)


def cold(mm: Mm, cpu: int, at: int, pages: int) -> None:
    """Make pages old (madvise(MADV_COLD))."""
    if not mm.machine.profile.steps.get("cold_page"):
        raise GuestError(f"Linux {mm.machine.profile.kernel} has no MADV_COLD")
    caller = mm.caller("tlb_finish_mmu")
    steps = (Step.COLD_OPEN, Step.COLD_PAGE, Step.COLD_CLOSE)
    for start, end in mm.parts("madvise", at, pages):
        gather.begin(mm.machine.s, np.int64(0))
        _walk(mm, cpu, start, end, steps, ranges.SOLE_PAGES, bits.A)
        gather.finish(mm.machine.reserve(), cpu, mm.number, caller)


def clear_refs(mm: Mm, cpu: int) -> None:
    """Make all pages old (write 1 to /proc/PID/clear_refs)."""
    steps = (Step.AGE_OPEN, Step.AGE_PAGE, Step.AGE_CLOSE)
    for vma in mm.maps.table:
        if not vma["vm_flags"] & VM_PFNMAP:
            start, end = int(vma["start"]), int(vma["end"])
            _walk(mm, cpu, start, end, steps, ranges.PAGES, bits.A)
    if mm.machine.s.par[Par.AGE_FLUSHES]:
        caller = mm.caller("clear_refs_write")
        flush_mm(mm.machine.reserve(), cpu, mm.number, 0, EVERYTHING, 12, _NO, 0, caller)


def clear_soft_dirty(mm: Mm, cpu: int) -> None:
    """Make all pages clean and read-only (write 4 to /proc/PID/clear_refs)."""
    s = mm.machine.s
    soft_dirty = int(s.par[Par.SOFT_DIRTY])
    if not soft_dirty:
        raise GuestError(f"Linux {mm.machine.profile.kernel} has no soft-dirty bit")
    mm.maps.table["vm_flags"] &= ~VM_SOFTDIRTY
    steps = (Step.CLEAN_OPEN, Step.CLEAN_PAGE, Step.CLEAN_CLOSE)
    for vma in mm.maps.table:
        if not vma["vm_flags"] & VM_PFNMAP:
            start, end = int(vma["start"]), int(vma["end"])
            off = bits.RW | soft_dirty
            _walk(mm, cpu, start, end, steps, ranges.ANY_ENTRY, off)
    caller = mm.caller("clear_refs_write")
    flush_mm(mm.machine.reserve(), cpu, mm.number, 0, EVERYTHING, 12, _NO, 0, caller)


def _walk(
    mm: Mm, cpu: int, start: int, end: int, steps: tuple[Step, Step, Step], which: int, off: int
) -> None:
    opening, step, closing = map(int, steps)
    mm.machine.until(
        start, end,
        lambda s, at: ranges.walk_range(
            s, cpu, mm.number, at, end, opening, step, closing, which, off
        ),
    )  # fmt: skip
