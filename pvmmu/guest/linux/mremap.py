"""Memory that moves: mremap, and the stack of a new program (mm/mremap.c, fs/exec.c)."""

from __future__ import annotations

import numpy as np

from pvmmu.errors import GuestError
from pvmmu.guest.linux import gather, ranges
from pvmmu.guest.linux.mm import Mm
from pvmmu.guest.linux.vma import PAGE


def shift_stack(mm: Mm, cpu: int, size: int) -> None:
    """Move the new program's stack down (shift_arg_pages)."""
    stack = mm.maps.table[-1]
    start, end = int(stack["start"]), int(stack["end"])
    stack["start"], stack["end"] = start - size, end - size
    _move_entries(mm, cpu, start, end, start - size)
    caller = mm.caller("tlb_finish_mmu")
    gather.begin(mm.machine.s, np.int64(0))
    gone = np.zeros(1, mm.maps.table.dtype)
    gone["start"], gone["end"] = start, end
    mm.free_tables(cpu, gone, end - size, 0, caller)
    gather.finish(mm.machine.reserve(), cpu, mm.number, caller)


def mremap(mm: Mm, cpu: int, at: int, pages: int, to: int | None, new_pages: int) -> int:
    """Move memory, perhaps to another size (mremap with MREMAP_MAYMOVE) and return where to.

    Raises
    ------
    GuestError
        The range is not one mapping, or old and new place overlap.
    """
    size, new_size = mm.size("mremap", pages), mm.size("mremap", new_pages)
    mm.check_range("mremap", at, size)
    which = mm.maps.within(at, at + size)
    if which.stop - which.start != 1:
        raise GuestError(f"mremap: {at:#x} and {pages} pages are not one mapping (EFAULT)")
    if to is None:
        if new_size <= size:
            if new_size < size:
                mm.munmap(cpu, at + new_size, pages - new_pages)
            return at
        to = mm.maps.gap(new_size, mm.layout.mmap_base)
    mm.check_range("mremap", to, new_size)
    if to < at + size and at < to + new_size:
        raise GuestError(f"mremap: {to:#x} overlaps the old place {at:#x} (EINVAL)")
    taken = mm.maps.within(to, to + new_size)
    if taken.start != taken.stop:
        mm.munmap(cpu, to, new_pages)
    if new_size < size:
        mm.munmap(cpu, at + new_size, pages - new_pages)
        size, pages = new_size, new_pages
    _move(mm, cpu, at, size, to, new_size)
    mm.munmap(cpu, at, pages)
    return to


def _move(mm: Mm, cpu: int, at: int, size: int, to: int, new_size: int) -> None:
    """Put a mapping like the old one at the new place and move the entries (move_vma)."""
    i = mm.maps.within(at, at + size).start
    vma = mm.maps.table[i : i + 1].copy()
    vma["start"], vma["end"] = to, to + new_size
    if vma[0]["file"] >= 0:
        vma["file"] += (at - int(mm.maps.table[i]["start"])) // PAGE
    mm.maps.insert(vma[0])
    _move_entries(mm, cpu, at, at + size, to)


def _move_entries(mm: Mm, cpu: int, at: int, end: int, to: int) -> None:
    mm.machine.until(
        at, end,
        lambda s, old: ranges.move_range(s, cpu, mm.number, old, end, old - at + to),
    )  # fmt: skip
