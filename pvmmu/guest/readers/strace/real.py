"""Real page faults beside a recording of system calls: what perf saw, where the model has it."""

from __future__ import annotations

import zlib
from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from pvmmu.guest.linux.faults import FETCH, READ, VM_EXEC, VM_SHARED, VM_WRITE, WRITE
from pvmmu.guest.linux.layout import STACK_LIMIT
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.readers.faults import UNKNOWN, Fault, Faults
from pvmmu.guest.readers.strace.lines import CLONES, EXECS, Call, seconds

if TYPE_CHECKING:
    from pvmmu.guest.linux.mm import Mm
    from pvmmu.guest.readers.strace.recorded import Recorded
    from pvmmu.guest.readers.strace.run import Run, Task

#: Parts of an executable or loader lie this near to each other (bytes).
_NEAR: Final = 64 << 20
#: Pages of the file that stands for executables which no call has mapped.
_IMAGE: Final = 1 << 14
#: Where files are put that no call has mapped and whose addresses nobody tells: 128 GiB.
_FILES: Final = 0x20_0000_0000
#: What records, and is no part of the program.
_TOOLS: Final = ("strace", "perf", "perf-exec")
#: Clocks that differ by whole quarters of an hour differ by their time zone (seconds).
_ZONE, _ALIKE = 900.0, 120.0


class Real:
    """Touches memory where perf has seen page faults.

    Parameters
    ----------
    run : Run
        Whose tasks.
    faults : Faults
        Of the same run of the program.
    """

    def __init__(self, run: Run, faults: Faults) -> None:
        self.run, self.faults = run, faults
        self.waiting: dict[int, deque[Fault]] = {}
        self.placed = 0
        threads = _threads(run, faults)
        self._shift = _shift(run.r.calls, faults)
        if self._shift is None:
            self._shift = _by_births(run.r, faults, threads)
        self._near: dict[int, list[int]] = {}
        self._last: dict[int, int] = {}
        self._coming: dict[int, list[tuple[int, int, int]]] = {}
        for life, tid in threads.items():
            self.waiting[life] = deque(faults.of[tid])
        if self._shift is None:
            self._note_mappings()

    @property
    def timed(self) -> bool:
        """Whether times tell between which calls a fault was; else addresses do."""
        return self._shift is not None

    def _note_mappings(self) -> None:
        """Note for each task what its calls map: index of the call, start, end."""
        for i, c in enumerate(self.run.r.changes):
            if self.run.r.calls[i].name in CLONES or c is not None:
                self._last[self.run.r.lives.of[i]] = i
            if c is not None and c.kind in ("mmap", "mremap", "brk"):
                pages = c.new_pages or c.pages
                start, end = c.result, c.result + pages * PAGE
                if c.kind == "brk":
                    start, end = c.result - _NEAR, c.result
                self._coming.setdefault(self.run.r.lives.of[i], []).append((i, start, end))

    # ------------------------------------------------------------------ when
    def before(self, task: Task, index: int, call: Call) -> None:
        """Touch what faulted before a call."""
        waiting = self.waiting.get(task.life)
        if not waiting:
            return
        now = seconds(call.time)
        first = self.run.r.lives.all[task.life].first == index
        if self._shift is not None and now is not None:
            due = []
            while waiting and waiting[0].time + self._shift < now:
                due.append(waiting.popleft())
            if not (first and call.name in EXECS):  # before it, it was strace itself
                self._touch(task, due)
            return
        mm = task.process.mm
        if mm is None or (first and call.name in EXECS):
            return
        while waiting and self._is_due(task, mm, index, waiting[0]):
            self._touch(task, [waiting.popleft()])

    def _is_due(self, task: Task, mm: Mm, index: int, fault: Fault) -> bool:
        """Whether a fault was before a call, as its address tells."""
        if fault.path:
            return self._placed_file(mm, fault) is not None
        which = mm.maps.within(fault.at, fault.at + 1)
        if which.start < which.stop:
            # what is writable faults again only after a call that changes that
            return not mm.present(fault.at, writable=True) or index > self._last.get(task.life, -1)
        if any(i >= index and a <= fault.at < b for i, a, b in self._coming.get(task.life, ())):
            return False
        known = self._near.setdefault(mm.number, [])
        return not known or any(abs(fault.at - x) < _NEAR for x in known) or len(known) < 3

    def at_end(self, task: Task) -> None:
        """Touch what is left when a task ends, or the recording."""
        waiting = self.waiting.get(task.life)
        if waiting and task.process.mm is not None:
            self._touch(task, list(waiting))
            waiting.clear()

    # ------------------------------------------------------------------ where
    def _touch(self, task: Task, faults: list[Fault]) -> None:
        mm = task.process.mm
        for fault in faults:
            if mm is None:
                return
            at = self._placed_file(mm, fault) if fault.path else fault.at
            if at is None:  # executable or loader: somewhere of its own
                at = _FILES + _number(fault.path) * _IMAGE * PAGE + fault.at
            which = mm.maps.within(at, at + 1)
            if which.start == which.stop:
                if at < 1 << 16 or at >= mm.layout.top - PAGE:
                    continue
                self._map(task, mm, at)
                which = mm.maps.within(at, at + 1)
            kind = self._kind(task, mm, mm.maps.table[which][0], at, fault.kind)
            if kind is None:
                continue
            task.process.touch(np.array([at & -PAGE], np.int64), kind)
            self.placed += 1

    def _placed_file(self, mm: Mm, fault: Fault) -> int | None:
        """Return the address of a page of a file in this address space."""
        file = self.run.files.get(fault.path)
        if file is None:
            return None
        place = file.place + fault.at // PAGE
        for v in mm.maps.table:
            first = int(v["file"])
            if first >= 0 and first <= place < first + (int(v["end"]) - int(v["start"])) // PAGE:
                return int(v["start"]) + (place - first) * PAGE
        return None

    def _map(self, task: Task, mm: Mm, at: int) -> None:
        """Map a page that no call has mapped: of the stack, or of an executable or loader."""
        page = at & -PAGE
        mapped = mm.maps.table[:-1]
        far = len(mapped) > 0 and page > int(mapped["end"].max()) + _NEAR
        self._near.setdefault(mm.number, []).append(page)
        if far and page < mm.layout.top - STACK_LIMIT:
            mm.mmap(task.process.cpu, 1, page, "rw")
            return
        file = self.run.changes.file("executables, as far as they were touched", _IMAGE)
        offset = (page // PAGE) % _IMAGE
        mm.mmap(task.process.cpu, 1, page, "rwx", file=file, offset=offset)

    def _kind(self, task: Task, mm: Mm, vma: np.void, at: int, told: int) -> int | None:
        """Return how a page was touched; None if its mapping allows no access."""
        flags = int(vma["vm_flags"])
        if not flags & 7:
            return None
        if told == UNKNOWN:
            private = bool(flags & VM_WRITE) and not flags & VM_SHARED
            written = private and (int(vma["file"]) < 0 or not flags & VM_EXEC)
            again = bool(flags & VM_WRITE) and mm.present(at)
            return WRITE if written or again else READ
        if told == WRITE and not flags & VM_WRITE:
            return None
        return READ if told == FETCH and not flags & VM_EXEC else told


def _number(path: str) -> int:
    """Return a small number for a path, the same in every process."""
    return zlib.crc32(path.encode("utf-8", "replace")) % 4096


def _threads(run: Run, faults: Faults) -> dict[int, int]:
    """Return the thread of perf of each task."""
    out: dict[int, int] = {}
    unnamed = [n for n, x in enumerate(run.r.lives.all) if x.heard and x.pid not in faults.of]
    for n, life in enumerate(run.r.lives.all):
        if life.pid in faults.of and life.pid not in (run.r.lives.all[i].pid for i in out):
            out[n] = life.pid
    free = [t for t in faults.of if t not in out.values() and faults.names[t] not in _TOOLS]
    if run.r.known_as:
        said = next(iter(run.r.known_as))
        unnamed = [n for n in unnamed if run.r.lives.all[n].pid == 0]
        free = [said] if said in faults.of else free
    for n, tid in zip(unnamed[:1], free[:1], strict=False):
        out[n] = tid
    return out


def _by_births(r: Recorded, faults: Faults, threads: dict[int, int]) -> float | None:
    """Return what to add to perf's times of another clock; None if nothing tells.

    A child faults at once when it is made, and not before: the kernel writes its number. Without
    children, no task faults after its last call.
    """
    born = [
        faults.of[threads[n]][0].time - t
        for i, n in r.lives.child.items()
        if n in threads and (t := seconds(r.calls[i].time)) is not None
    ]
    if born:
        return -min(born)
    last = [
        faults.of[tid][-1].time - t
        for n, tid in threads.items()
        if (t := seconds(r.calls[r.lives.last[n]].time)) is not None
    ]
    return -max(last) if last else None


def _shift(calls: list[Call], faults: Faults) -> float | None:
    """Return what to add to perf's times for those of strace; None if clocks cannot be matched."""
    times = [t for c in calls if (t := seconds(c.time)) is not None]
    seen = [f.time for own in faults.of.values() for f in own]
    if not times or not seen:
        return None
    difference = min(times) - min(seen)
    if min(times) < 86_400:  # a time of day
        difference = min(times) - min(seen) % 86_400
    zone = round(difference / _ZONE) * _ZONE if min(times) < 86_400 else 0.0
    if abs(difference - zone) > _ALIKE:
        return None
    return zone if min(times) >= 86_400 else zone - (min(seen) // 86_400) * 86_400
