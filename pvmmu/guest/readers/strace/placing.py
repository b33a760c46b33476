"""Where another run of a program has the memory that lackey saw touched.

Under valgrind a program has other addresses than by itself, so the two runs are matched call by
call; each call that names memory tells how far the addresses of that memory are apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final

from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.readers.strace.memory import Change
from pvmmu.guest.readers.strace.touches import Lackey, Touch

#: Where valgrind's client has its stack (64 bits), and how much of it counts as such.
_STACK_TOP: Final = 0x1FFF001000
_STACK_SIZE: Final = 8 << 20
#: Pages this near belong to one executable or library.
_NEAR: Final = 1 << 20


@dataclass
class Placed:
    """The touches of a run under lackey where another run of the program has its memory.

    Parameters
    ----------
    before : list of list of Touch
        For each change of the other run, and at last for its end: pages and kinds. Pages of the
        stack count from its end (below zero).
    image : list of Touch
        Pages of executable and libraries that no call mapped.
    lost : int
        Touches of memory that has no counterpart.
    matched : int
        Calls that the runs have in common.
    """

    before: list[list[Touch]]
    image: list[Touch]
    lost: int
    matched: int


def place(lackey: Lackey, changes: Sequence[Change]) -> Placed:
    """Match a run under lackey with the changes of another run of the program."""
    mine = _signatures([s.change for s in lackey.steps])
    theirs = _signatures([*changes, Change("end", 0, 0, 0)])
    blocks = SequenceMatcher(None, mine, theirs, autojunk=False).get_matching_blocks()
    partner = {b.a + i: b.b + i for b in blocks for i in range(b.size)}
    shifts = _Shifts(lackey, changes, partner)
    out = Placed([[] for _ in range(len(changes) + 1)], [], 0, len(partner))
    waiting: dict[Touch, None] = {}
    for i, step in enumerate(lackey.steps):
        for page, kind in step.touches:
            there = shifts.moved(page)
            if there is None:
                out.lost += 1
            else:
                waiting[there, kind] = None
        if i in partner:
            out.before[partner[i]] += waiting
            waiting = {}
            shifts.follow(step.change, partner[i])
    out.before[-1] += waiting
    out.image = sorted({(shifts.image[p], k) for s in lackey.steps for p, k in s.touches
                        if p in shifts.image})  # fmt: skip
    return out


def _signatures(changes: Sequence[Change]) -> list[tuple[object, ...]]:
    """Return what two runs of a program have in common; a heap by how far it grows."""
    out: list[tuple[object, ...]] = []
    brk = 0
    for c in changes:
        if c.kind == "brk":
            out.append(("brk", c.at == 0, (c.result - brk) // PAGE if c.at else 0))
            brk = c.result
        else:
            out.append(c.signature)
    return out


class _Shifts:
    """How far addresses of one run are from those of the other, as memory is mapped."""

    def __init__(self, lackey: Lackey, changes: Sequence[Change], partner: dict[int, int]) -> None:
        self.changes = changes
        self.areas: list[tuple[int, int, int]] = []  # first page, end, shift; the last one counts
        self.heap: tuple[int, int] | None = None  # first page, shift
        self.heap_end = max(
            (s.change.result // PAGE for s in lackey.steps if s.change.kind == "brk"), default=0
        )
        self.image = self._images(lackey, partner)

    def _images(self, lackey: Lackey, partner: dict[int, int]) -> dict[int, int]:
        """Return where the pages go that belong to executables which the kernel mapped.

        Their pages lie near memory that both runs protect or, for the executable, extend (brk).
        """
        mapped = [(c.result // PAGE, c.result // PAGE + c.pages) for c in self._mmaps(lackey)]
        brk = [s.change.result // PAGE for s in lackey.steps if s.change.kind == "brk"]
        mapped += [(min(brk), max(brk))] if brk else []
        anchors = [
            (lackey.steps[i].change.at // PAGE, self.changes[j].at // PAGE)
            for i, j in partner.items()
            if lackey.steps[i].change.kind == "mprotect"
            and not _inside(mapped, lackey.steps[i].change.at // PAGE)
        ]
        out, near = {}, _NEAR // PAGE
        for page in sorted({p for s in lackey.steps for p, _ in s.touches}):
            if _inside(mapped, page) or self._from_stack(page) is not None:
                continue
            around = [a for a in anchors if abs(a[0] - page) <= near]
            if around:
                mine, theirs = min(around, key=lambda a: abs(a[0] - page))
                out[page] = page - mine + theirs
        return out

    @staticmethod
    def _mmaps(lackey: Lackey) -> list[Change]:
        return [s.change for s in lackey.steps if s.change.kind == "mmap"]

    @staticmethod
    def _from_stack(page: int) -> int | None:
        behind = page - _STACK_TOP // PAGE
        return behind if -_STACK_SIZE // PAGE <= behind < 0 else None

    def follow(self, mine: Change, index: int) -> None:
        """Note what a call that both runs made has mapped."""
        theirs = self.changes[index] if index < len(self.changes) else None
        if theirs is None or mine.kind not in ("mmap", "mremap", "brk"):
            return
        first, shift = mine.result // PAGE, (theirs.result - mine.result) // PAGE
        if mine.kind == "brk":
            self.heap = (first, shift) if self.heap is None else (self.heap[0], shift)
        else:
            pages = mine.pages if mine.kind == "mmap" else mine.new_pages
            self.areas.append((first, first + pages, shift))

    def moved(self, page: int) -> int | None:
        """Return the page in the other run; pages of the stack count from its end, below zero."""
        behind = self._from_stack(page)
        if behind is not None:
            return behind
        for first, end, shift in reversed(self.areas):
            if first <= page < end:
                return page + shift
        if page in self.image:
            return self.image[page]
        if self.heap is not None and self.heap[0] <= page < self.heap_end:
            return page + self.heap[1]
        return None


def _inside(areas: Sequence[tuple[int, int]], page: int) -> bool:
    return any(first <= page < end for first, end in areas)
