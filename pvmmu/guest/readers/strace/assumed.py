"""What is assumed of touches where nothing tells: each address space, and what waits to be touched.

What is assumed follows from calls that change memory, and from no others: it is the same whatever
else a recording holds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from pvmmu.guest.linux.faults import READ, VM_SHARED, VM_WRITE, WRITE
from pvmmu.guest.linux.vma import PAGE

#: What is assumed of touches where nothing tells them.
ASSUMPTIONS: Final = {
    "none": "nothing is touched but by the kernel (a lower bound)",
    "data": "pages of private writable mappings are written once, also those that mprotect makes "
    "writable",
    "all": "each page is read, private writable ones are written, again after a fork; executable "
    "and loader, too (an upper bound)",
}
#: A mapping of more pages at once, or with MAP_NORESERVE, is reserved to be used in part.
RESERVED: Final = 1 << 16
#: What "all" assumes of an executable that nobody has seen mapped, and its loader, in pages: as
#: much text as fault-around maps with 512 faults, 2 MiB of data.
TEXT, DATA, STACK = 8192, 512, 33
_FAULT_AROUND: Final = 16

#: Start and end of a range (bytes), and whether it is written.
Waiting = tuple[int, int, bool]


@dataclass
class Space:
    """An address space of the recording.

    Parameters
    ----------
    brk : int
        End of the heap; 0 unknown.
    locked : bool
        New mappings get their pages at once (mlockall, MCL_FUTURE).
    waiting : list of (int, int, bool)
        What is assumed to be touched before the next change that matters to it, in order.
    attached : dict of int to int
        Address of shared memory (shmat) -> pages.
    """

    brk: int = 0
    locked: bool = False
    waiting: list[Waiting] = field(default_factory=list)
    attached: dict[int, int] = field(default_factory=dict)


class Assumed:
    """What one assumption makes of mappings.

    Parameters
    ----------
    kind : str
        Key of `ASSUMPTIONS`.
    most : int
        Faults that it may lead to altogether.
    remarks : Counter
        What is not assumed after all is counted here.
    """

    def __init__(self, kind: str, most: int, remarks: Counter[str]) -> None:
        self.kind, self.left, self.remarks = kind, most, remarks
        self.used = False

    def mapped(
        self, space: Space, at: int, pages: int, prot: str, private: bool, reserve: bool = False
    ) -> None:
        """Note a new mapping; it takes the place of what was `at` that address."""
        self._forget(space, at, at + pages * PAGE)
        if self.kind == "none" or prot == "-":
            return
        if reserve or pages > RESERVED:
            self.remarks[
                "pages reserved (MAP_NORESERVE, or more than 256 MiB at once), assumed untouched"
            ] += pages
            return
        write = "w" in prot and private
        if write or self.kind == "all":
            self._wait(space, at, pages, write)

    def made_writable(self, space: Space, vmas: np.ndarray, at: int, end: int) -> None:
        """Note what mprotect makes writable of `vmas` (as they are before)."""
        if self.kind == "none":
            return
        for v in vmas:
            if not int(v["vm_flags"]) & (VM_WRITE | VM_SHARED):
                start, stop = max(at, int(v["start"])), min(end, int(v["end"]))
                if (stop - start) // PAGE <= RESERVED:
                    self._wait(space, start, (stop - start) // PAGE, True)

    def forked(self, parent: Space, child: Space, vmas: np.ndarray) -> None:
        """Note what parent and child touch again after a fork: copies on write."""
        if self.kind != "all":
            return
        for v in vmas:
            flags, start, end = (int(v[x]) for x in ("vm_flags", "start", "end"))
            if not flags & 7 or (end - start) // PAGE > RESERVED:
                continue
            write = bool(flags & VM_WRITE) and not flags & VM_SHARED
            self._wait(child, start, (end - start) // PAGE, write)
            if write:
                self._wait(parent, start, (end - start) // PAGE, True)

    def _wait(self, space: Space, at: int, pages: int, write: bool) -> None:
        cost = pages if write else pages // _FAULT_AROUND + 1
        if cost > self.left:
            self.remarks["pages beyond memory (--frames), assumed untouched"] += pages
            return
        self.left -= cost
        self.used = True
        space.waiting.append((at, at + pages * PAGE, write))

    @staticmethod
    def _forget(space: Space, at: int, end: int) -> None:
        """Leave out what a new mapping replaces before it was touched."""
        if all(stop <= at or start >= end for start, stop, _ in space.waiting):
            return
        rest = []
        for start, stop, write in space.waiting:
            if start < min(stop, at):
                rest.append((start, min(stop, at), write))
            if max(start, end) < stop:
                rest.append((max(start, end), stop, write))
        space.waiting = rest

    def due(self, space: Space) -> tuple[np.ndarray, np.ndarray]:
        """Return the pages that are touched now, in order, and how; nothing waits any more."""
        pages, kinds = [], []
        for start, end, write in space.waiting:
            these = np.arange(start // PAGE, end // PAGE)
            if self.kind == "all":
                pages.append(these)
                kinds.append(np.full(len(these), READ))
            if write:
                pages.append(these)
                kinds.append(np.full(len(these), WRITE))
        space.waiting = []
        if not pages:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(pages), np.concatenate(kinds)
