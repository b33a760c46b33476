"""Touches of memory between the calls of a recording: told, or else assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from pvmmu.guest.linux.faults import FETCH, READ, VM_EXEC, VM_WRITE, WRITE
from pvmmu.guest.linux.layout import STACK_LIMIT
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.readers.strace.assumed import DATA, STACK, TEXT
from pvmmu.guest.readers.strace.lines import CLONES, EXECS, EXITS, Call
from pvmmu.guest.readers.strace.touches import Touch

if TYPE_CHECKING:
    from pvmmu.guest.readers.strace.run import Run, Task

_LETTER: Final = {READ: "r", WRITE: "w", FETCH: "x"}
#: Changes before which what waits is touched: they take memory away, or protect or copy it. New
#: mappings do not, so that a program can be loaded first.
_MATTERS: Final = frozenset({
    "munmap", "mprotect", "madvise", "mremap", "mlock", "mlockall", "shmdt", "+++",
}) | CLONES | EXECS | EXITS  # fmt: skip
#: Where an executable is assumed that no call names: 64 GiB, or 256 MiB in 32 bits.
_IMAGE: Final = {True: 0x10_0000_0000, False: 0x1000_0000}


class Touching:
    """Touches memory for the tasks of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._copied = 0

    @property
    def assumes(self) -> bool:
        """Whether any touch is assumed, or left out because none is."""
        known = self.run.told
        if self.run.real is not None:
            return False
        return any(t.image not in known for t in self.run.tasks.values()) or bool(self._copied)

    def source(self) -> str:
        """Return where touches are from, for a note."""
        told = len(self.run.told)
        if self.run.real is not None:
            real = self.run.real
            by = "time" if real.timed else "address"
            return (
                f"touches: {real.placed} of {len(real.faults)} page faults of "
                f"{real.faults.path.name}, placed by {by}; only what faulted is touched"
            )
        return f"touches: {told} runs by lackey, else assumed ({self.run.assumed.kind})"

    # ------------------------------------------------------------------ when
    def before(self, task: Task, index: int, call: Call) -> None:
        """Touch what was touched since the call before this one."""
        run, change = self.run, self.run.r.changes[index]
        if run.real is not None:
            run.real.before(task, index, call)
            return
        if task.image in run.told:
            place = run.images.place.get(index)
            if place is not None:
                self.touch(task, *columns(run.told[task.image].before[place[1]]))
            return
        if task.next:
            self.touch(task, *columns(task.next))
            task.next = []
        kind = change.kind if change is not None else call.name
        if kind == "brk" and change is not None and run.space(task).brk > change.result:
            kind = "munmap"
        if kind in _MATTERS:
            self.now(task)

    def now(self, task: Task) -> None:
        """Touch what waits to be touched."""
        space = self.run.space(task)
        if space.waiting:
            self.touch(task, *self.run.assumed.due(space))

    def at_end(self, task: Task) -> None:
        """Touch what waits when the recording ends."""
        if self.run.real is not None:
            self.run.real.at_end(task)
        elif task.image not in self.run.told:
            self.now(task)

    # ------------------------------------------------------------------ what is noted
    def mapped(
        self, task: Task, at: int, pages: int, prot: str, private: bool, reserve: bool = False
    ) -> None:
        """Note a new mapping (as `Assumed.mapped`) for what is assumed to be touched."""
        if self.run.real is None and task.image not in self.run.told:
            self.run.assumed.mapped(self.run.space(task), at, pages, prot, private, reserve)

    def made_writable(self, task: Task, at: int, end: int) -> None:
        """Note what mprotect is about to make writable."""
        mm = task.process.mm
        if self.run.real is None and task.image not in self.run.told and mm is not None:
            vmas = mm.maps.table[mm.maps.within(at, end)]
            self.run.assumed.made_writable(self.run.space(task), vmas, at, end)

    def forked(self, parent: Task, child: Task, index: int) -> None:
        """Note what a forked child, and its parent, touch again."""
        run = self.run
        run.space(child).brk = run.space(parent).brk
        run.space(child).attached = dict(run.space(parent).attached)
        if run.real is not None:
            return
        place = run.images.place.get(index)
        if parent.image in run.told and place is not None:
            child.next = list(run.told[parent.image].before[place[1] + 1])
            run.remarks["forked children assumed to touch what the parent touches next"] += 1
            self._copied += 1
            return
        mm = child.process.mm
        if mm is not None:
            run.assumed.forked(run.space(parent), run.space(child), mm.maps.table)

    def begins(self, task: Task) -> None:
        """Note what a new program touches of what exec has mapped."""
        run = self.run
        if run.real is not None:
            return
        if task.image in run.told:
            self._map_image(task, run.told[task.image].image)
            return
        if run.assumed.kind == "none":
            return
        run.remarks[f"touches of {task.process.name} assumed"] += 1
        if run.assumed.kind == "all":
            wide = run.guest.machine.format.width > 32
            at, quietly = _IMAGE[wide] // PAGE, run.changes.map_quietly
            quietly(task, at, TEXT, "rx", "text of executables (assumed)")
            quietly(task, at + TEXT, DATA, "rw", "data of executables (assumed)")
            mm = task.process.mm
            assert mm is not None
            stack = int(mm.maps.table[-1]["end"]) - STACK * PAGE
            for start, pages, prot in (
                (at * PAGE, TEXT, "rx"), ((at + TEXT) * PAGE, DATA, "rw"), (stack, STACK, "rw"),
            ):  # fmt: skip
                self.mapped(task, start, pages, prot, True)

    # ------------------------------------------------------------------ touches
    def touch(self, task: Task, pages: np.ndarray, kinds: np.ndarray) -> None:
        """Touch pages in order, as far as mappings allow it; below zero: of the stack."""
        mm = task.process.mm
        assert mm is not None
        top = int(mm.maps.table["end"].max(initial=0))
        at = np.where(pages < 0, top, 0) + pages * PAGE
        allowed = _allowed(mm.maps.table, top, at, kinds)
        at, kinds = at[allowed], kinds[allowed]
        for run in np.split(np.arange(len(at)), np.flatnonzero(np.diff(kinds)) + 1):
            if len(run):
                task.process.touch(at[run], int(kinds[run[0]]))
        if lost := len(allowed) - len(at):
            self.run.remarks["touches of memory that is not mapped then, left out"] += lost

    def _map_image(self, task: Task, pages: Sequence[Touch]) -> None:
        """Map executable and loader, which no recorded call does, as far as they are touched."""
        kinds: dict[int, str] = {}
        for page, kind in pages:
            kinds[page] = kinds.get(page, "r") + _LETTER[kind]
        prots = {p: "rw" if "w" in k else "rx" if "x" in k else "r" for p, k in kinds.items()}
        run: list[int] = []
        quietly = self.run.changes.map_quietly
        for page in sorted(prots):
            if run and (prots[page] != prots[run[0]] or page - run[-1] > 64):
                quietly(task, run[0], run[-1] + 1 - run[0], prots[run[0]])
                run = []
            run.append(page)
        if run:
            quietly(task, run[0], run[-1] + 1 - run[0], prots[run[0]])


def columns(touches: Sequence[Touch]) -> tuple[np.ndarray, np.ndarray]:
    """Return pages and kinds of `touches`."""
    both = np.array(touches, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _allowed(vmas: np.ndarray, top: int, at: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return which accesses mappings allow; the last of them ends at `top`, and is the stack."""
    out: np.ndarray = kinds != FETCH
    low = np.flatnonzero(at < top - STACK_LIMIT)
    vma = vmas[np.searchsorted(vmas["end"], at[low], "right")]  # there is one: that of the stack
    flags = vma["vm_flags"]
    wanted = np.where(kinds[low] == WRITE, VM_WRITE, np.where(kinds[low] == FETCH, VM_EXEC, 7))
    out[low] = (vma["start"] <= at[low]) & (flags & wanted != 0)
    return out
