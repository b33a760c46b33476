"""Mappings of an address space: the VMAs, what splits and what merges them."""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu.errors import GuestError
from pvmmu.guest.linux.faults import (
    VM_ACCOUNT,
    VM_EXEC,
    VM_MAYWRITE,
    VM_READ,
    VM_SHARED,
    VM_SOFTDIRTY,
    VM_WRITE,
)
from pvmmu.guest.linux.state import VMA
from pvmmu.x86 import bits

PAGE: Final = 4096
_PROTECTIONS: Final = {"r": VM_READ, "w": VM_WRITE, "x": VM_EXEC, "-": 0}


def protection(text: str) -> int:
    """Return VM_READ, VM_WRITE and VM_EXEC of a text such as ``"rw"``; ``"-"`` for none.

    Raises
    ------
    GuestError
        It has another letter.
    """
    flags = 0
    for letter in text:
        if letter not in _PROTECTIONS:
            raise GuestError(f"protection {text!r}: letters are r, w and x, or - for none")
        flags |= _PROTECTIONS[letter]
    return flags


def entry_flags(flags: int, no_execute: int, prot_none: int, notify: bool = False) -> int:
    """Return the flags of an entry of a mapping (vm_get_page_prot, protection_map).

    Parameters
    ----------
    flags : int
        Flags of the mapping.
    no_execute, prot_none : int
        These bits of an entry (0: it has none).
    notify : bool
        The file wants to hear of first writes (vma_wants_writenotify).
    """
    if not flags & (VM_READ | VM_WRITE | VM_EXEC):
        return prot_none | bits.A
    out = bits.P | bits.US | bits.A
    if flags & VM_WRITE and flags & VM_SHARED and not notify:
        out |= bits.RW
    return out if flags & VM_EXEC else out | no_execute


class Mappings:
    """The VMAs of one address space, in order of address.

    Attributes
    ----------
    table : VMA[n]
        Kernels read it, and note there which mappings have anonymous pages.
    """

    def __init__(self, table: np.ndarray | None = None) -> None:
        self.table = np.zeros(0, VMA) if table is None else table

    def copy(self) -> Mappings:
        """Return an independent copy."""
        return Mappings(self.table.copy())

    def within(self, start: int, end: int) -> slice:
        """Return which mappings overlap a range."""
        table = self.table
        first = int(table["end"].searchsorted(start, "right"))
        last = int(table["start"].searchsorted(end, "left"))
        return slice(first, max(first, last))

    def split(self, at: int) -> None:
        """Let no mapping cross an address (split_vma)."""
        i = self.within(at, at + 1)
        if i.start == i.stop or self.table[i.start]["start"] == at:
            return
        upper = self.table[i].copy()
        upper["start"] = at
        if upper[0]["file"] >= 0:
            upper["file"] += (at - int(self.table[i.start]["start"])) // PAGE
        self.table[i.start]["end"] = at
        self._put(i.start + 1, upper)

    def insert(self, vma: np.ndarray) -> None:
        """Add a mapping where there is none, merged with its neighbours where they are alike."""
        i = int(self.table["start"].searchsorted(vma["start"]))
        self._put(i, vma)
        self.merge(int(vma["start"]), int(vma["end"]))

    def merge(self, start: int, end: int) -> None:
        """Join neighbours that are alike at the edges of a range and within (vma_merge)."""
        i = max(self.within(start, end).start - 1, 0)
        while i + 1 < len(self.table) and self.table[i]["end"] <= end:
            if _alike(self.table[i], self.table[i + 1]):
                self.table[i]["end"] = self.table[i + 1]["end"]
                self.table[i]["anon"] = self.table[i]["anon"] or self.table[i + 1]["anon"]
                self._drop(slice(i + 1, i + 2))
            else:
                i += 1

    def remove(self, start: int, end: int) -> np.ndarray:
        """Take out what is mapped in a range and return it."""
        self.split(start)
        self.split(end)
        which = self.within(start, end)
        gone = self.table[which].copy()
        self._drop(which)
        return gone

    def _put(self, i: int, vma: np.ndarray) -> None:
        """Put a mapping before the one at an index."""
        self.table = np.concatenate([self.table[:i], vma.reshape(1), self.table[i:]])

    def _drop(self, which: slice) -> None:
        """Take out mappings."""
        if which.start < which.stop:
            self.table = np.concatenate([self.table[: which.start], self.table[which.stop :]])

    def neighbours(self, start: int, end: int) -> tuple[int, int]:
        """Return the end of the mapping before a range and the start of that behind, 0 if none."""
        i = int(np.searchsorted(self.table["end"], start, "right")) - 1
        j = int(np.searchsorted(self.table["start"], end, "left"))
        before = int(self.table[i]["end"]) if i >= 0 else 0
        return before, int(self.table[j]["start"]) if j < len(self.table) else 0

    def gap(self, size: int, top: int) -> int:
        """Return the highest free address below `top` with room (arch_get_unmapped_area_topdown).

        Raises
        ------
        GuestError
            There is none.
        """
        for vma in self.table[::-1]:
            if vma["end"] <= top - size:
                return top - size
            top = min(top, int(vma["start"]))
        if top - size < 0x10000:  # vm.mmap_min_addr
            raise GuestError(f"mmap: no room for {size:,} bytes in the address space")
        return top - size


def _alike(a: np.void, b: np.void) -> bool:
    """Whether two neighbours may be one mapping (can_vma_merge_after)."""
    if a["end"] != b["start"] or (a["vm_flags"] ^ b["vm_flags"]) & ~VM_SOFTDIRTY:
        return False
    if a["anon"] and b["anon"] and a["anon"] != b["anon"]:
        return False
    if a["file"] < 0:
        return bool(b["file"] < 0)
    pages = (int(a["end"]) - int(a["start"])) // PAGE
    return bool(a["file"] + pages == b["file"] and a["last"] == b["last"])


def new_vma(
    start: int, end: int, flags: int, prot: int, file: int = -1, last: int = -1
) -> np.ndarray:
    """Return a mapping (VMA scalar)."""
    flags |= VM_SOFTDIRTY
    if not flags & VM_SHARED:
        flags |= VM_MAYWRITE | (VM_ACCOUNT if flags & VM_WRITE else 0)
    prot = int(np.uint64(prot & 0xFFFF_FFFF_FFFF_FFFF).astype(np.int64))
    return np.array((start, end, flags, prot, file, last, 0), VMA)
