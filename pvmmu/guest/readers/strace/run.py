"""Recorded calls, made by processes of the guest model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from pvmmu.guest.linux.faults import FETCH, READ, VM_WRITE, WRITE
from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.layout import STACK_LIMIT, File
from pvmmu.guest.linux.process import Process
from pvmmu.guest.linux.program import Program
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.readers.strace.files import executable
from pvmmu.guest.readers.strace.images import Images, shares_memory
from pvmmu.guest.readers.strace.lines import Call
from pvmmu.guest.readers.strace.memory import MEMORY, Change
from pvmmu.guest.readers.strace.placing import Placed
from pvmmu.guest.readers.strace.touches import CLONES, Touch

_LETTER: Final = {READ: "r", WRITE: "w", FETCH: "x"}


@dataclass
class _Task:
    """A process or thread, and what is known of it."""

    process: Process
    group: int  # the thread group
    image: int
    waiting: list[tuple[int, int, bool]] = field(default_factory=list)  # assumed: at, pages, write
    brk: int = 0
    next: list[Touch] = field(default_factory=list)  # of a forked child, assumed


class Run:
    """Makes the calls of a recording on a guest.

    Parameters
    ----------
    path : Path
        Of the recording.
    guest : Guest
        Where.
    files : (dict, dict)
        Of `files_of`.
    images : Images
        Of the recording.
    told : dict of int to Placed
        Touches by number of image.
    assume : str
        What is touched elsewhere.
    """

    def __init__(
        self, path: Path, guest: Guest, files: tuple[dict[int, str], dict[str, int]],
        images: Images, told: dict[int, Placed], assume: str,
    ) -> None:  # fmt: skip
        self.path, self.guest, self.images, self.told = path, guest, images, told
        self.named, self.sizes = files
        self.assume = assume
        self.tasks: dict[int, _Task] = {}
        self.files: dict[str, File] = {}
        self.remarks: Counter[str] = Counter()
        self._made: dict[str, Callable[[_Task, int, Change], None]] = {
            "mmap": self._mmap, "munmap": self._munmap, "mprotect": self._mprotect,
            "madvise": self._madvise, "mremap": self._mremap, "brk": self._brk,
        }  # fmt: skip

    # ------------------------------------------------------------------ calls
    def feed(self, index: int, call: Call) -> None:
        """Make one call."""
        task = self.tasks.get(call.pid) or self._first(index, call)
        if not task.process.alive:
            return
        self._touch_before(task, index, call)
        if call.name == "+++" or call.name == "exit":
            self._exit(call.pid)
        elif call.name == "exit_group":
            for pid in [p for p, t in self.tasks.items() if t.group == task.group]:
                self._exit(pid)
        elif call.name in ("execve", "execveat") and call.result == 0:
            self._exec(task, index, call)
        elif call.name in CLONES and call.result is not None and call.result > 0:
            self._clone(task, index, call)
        elif call.name in MEMORY and index in self.images.place:
            image, position = self.images.place[index]
            change = self.images.all[image].changes[position]
            self._made[call.name](task, index, change)
        else:
            task.process.system_calls(1)

    def _first(self, index: int, call: Call) -> _Task:
        """Begin with a process that the recording does not see being made."""
        process = self.guest.spawn()
        if not self.tasks:
            self.guest.begin()
        image = self.images.begun.get(index, 0)
        task = self.tasks[call.pid] = _Task(process, call.pid, image)
        if call.name not in ("execve", "execveat"):
            self._forget_vdso(task)
        return task

    def _exit(self, pid: int) -> None:
        task = self.tasks[pid]
        if task.process.alive:
            task.process.exit()

    def _exec(self, task: _Task, index: int, call: Call) -> None:
        task.image, task.group = self.images.begun[index], call.pid
        task.process.exec(Program(PurePosixPath(executable(call)).name))
        task.waiting, task.brk = [], 0
        self._forget_vdso(task)
        if task.image in self.told:
            self._map_image(task, self.told[task.image].image)
        elif self.assume != "none":
            self.remarks[f"touches of {task.process.name} assumed"] += 1

    def _clone(self, task: _Task, index: int, call: Call) -> None:
        p, shared = task.process, shares_memory(call)
        assert call.result is not None
        if call.name == "vfork" or "CLONE_VFORK" in call.arguments:
            child = p.vfork()
        elif shared:
            child = p.thread()
        else:
            child = p.fork()
        group = task.group if "CLONE_THREAD" in call.arguments else call.result
        image = task.image if shared else self.images.begun[index]
        made = self.tasks[call.result] = _Task(child, group, image, brk=task.brk)
        if not shared and task.image in self.told and index in self.images.place:
            after = self.images.place[index][1] + 1
            made.next = self.told[task.image].before[after]
            self.remarks["forked children assumed to touch what the parent touches next"] += 1

    # ------------------------------------------------------------------ memory
    def _mmap(self, task: _Task, index: int, c: Change) -> None:
        shared = bool(c.words & {"MAP_SHARED", "MAP_SHARED_VALIDATE"})
        file = None
        if c.fd >= 0 or shared:
            name = self.named.get(index, f"shared memory of line {index}")
            file = self._file(name, max(self.sizes.get(name, 0), c.offset + c.pages))
        populate = "MAP_POPULATE" in c.words
        offset = c.offset if c.fd >= 0 else 0
        task.process.mmap(
            c.pages, c.result, c.prot, shared=shared, file=file, offset=offset, populate=populate
        )
        self._assume(task, c.result, c.pages, c.prot, not shared)

    def _munmap(self, task: _Task, index: int, c: Change) -> None:
        task.process.munmap(c.at, c.pages)

    def _mprotect(self, task: _Task, index: int, c: Change) -> None:
        self._cover(task, c.at, c.pages)
        task.process.mprotect(c.at, c.pages, c.prot)

    def _madvise(self, task: _Task, index: int, c: Change) -> None:
        p, (advice,) = task.process, c.words
        makes = {"MADV_DONTNEED": p.dontneed, "MADV_COLD": p.cold}.get(advice)
        if makes is None or not c.pages:
            self.remarks[f"{advice} without effect"] += 1
            p.system_calls(1)
            return
        self._cover(task, c.at, c.pages)
        makes(c.at, c.pages)

    def _mremap(self, task: _Task, index: int, c: Change) -> None:
        p = task.process
        self._cover(task, c.at, c.pages)
        if c.result == c.at and c.new_pages > c.pages:  # grows in place: no entry changes
            prot = "rw" if self._writable(task, c.at) else "r"
            p.mmap(c.new_pages - c.pages, c.at + c.pages * PAGE, prot)
        else:
            p.mremap(c.at, c.pages, None if c.result == c.at else c.result, c.new_pages)
        if c.new_pages > c.pages:
            grown = c.result + c.pages * PAGE
            self._assume(task, grown, c.new_pages - c.pages, "rw", True)

    def _brk(self, task: _Task, index: int, c: Change) -> None:
        p, end = task.process, -(-c.result // PAGE) * PAGE
        mm = p.mm
        assert mm is not None
        before = task.brk or end
        if end > before:
            mm.layout.brk = before
            p.mmap((end - before) // PAGE, before, "rw")
            self._assume(task, before, (end - before) // PAGE, "rw", True)
        elif end < before:
            p.munmap(end, (before - end) // PAGE)
        else:
            p.system_calls(1)
        task.brk = mm.layout.brk = end

    # ------------------------------------------------------------------ touches
    def _touch_before(self, task: _Task, index: int, call: Call) -> None:
        """Touch what was touched since the call before this one."""
        place = self.images.place.get(index)
        if task.image in self.told:
            if place is not None:
                self._touch(task, *_columns(self.told[task.image].before[place[1]]))
            return
        if task.next:
            self._touch(task, *_columns(task.next))
            task.next = []
        if call.name in ("mmap", "openat", "open", "close", "mprotect", "brk"):
            return  # a program is still being loaded, most often
        for at, pages, write in task.waiting:
            kind = WRITE if write else READ
            self._touch(task, at // PAGE + np.arange(pages), np.full(pages, kind))
        task.waiting = []

    def _assume(self, task: _Task, at: int, pages: int, prot: str, private: bool) -> None:
        """Note a new mapping for what is assumed to be touched."""
        if task.image in self.told or self.assume == "none" or prot == "-":
            return
        if pages > self.guest.machine.frames:  # reserved, to be used in part
            self.remarks["pages of mappings larger than memory, assumed untouched"] += pages
            return
        write = "w" in prot and private
        if write or self.assume == "all":
            task.waiting.append((at, pages, write))

    def _touch(self, task: _Task, pages: np.ndarray, kinds: np.ndarray) -> None:
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
            self.remarks["touches of memory that is not mapped then, left out"] += lost

    def _writable(self, task: _Task, at: int) -> bool:
        mm = task.process.mm
        assert mm is not None
        found = mm.maps.table[mm.maps.within(at, at + 1)]
        return bool(len(found) and found[0]["vm_flags"] & VM_WRITE)

    # ------------------------------------------------------------------ what the kernel mapped
    def _forget_vdso(self, task: _Task) -> None:
        """Leave of a new address space only its stack: the recording has its own addresses."""
        mm = task.process.mm
        assert mm is not None
        mm.maps.table = mm.maps.table[-1:]

    def _map_image(self, task: _Task, pages: list[Touch]) -> None:
        """Map executable and loader, which no recorded call does, as far as they are touched."""
        kinds: dict[int, str] = {}
        for page, kind in pages:
            kinds[page] = kinds.get(page, "r") + _LETTER[kind]
        prots = {p: "rw" if "w" in k else "rx" if "x" in k else "r" for p, k in kinds.items()}
        run: list[int] = []
        for page in sorted(prots):
            if run and (prots[page] != prots[run[0]] or page - run[-1] > 64):
                self._map_quietly(task, run[0], run[-1] + 1 - run[0], prots[run[0]])
                run = []
            run.append(page)
        if run:
            self._map_quietly(task, run[0], run[-1] + 1 - run[0], prots[run[0]])

    def _cover(self, task: _Task, at: int, pages: int) -> None:
        """Map what a call names and no recorded call has mapped: parts of the executable."""
        mm, page = task.process.mm, at
        assert mm is not None
        end = at + pages * PAGE
        for start, stop in [
            (int(v["start"]), int(v["end"])) for v in mm.maps.table[mm.maps.within(at, end)]
        ] + [(end, end)]:
            if page < start:
                self._map_quietly(task, page // PAGE, (min(start, end) - page) // PAGE, "rw")
                if task.image not in self.told:
                    self._assume(task, page, (min(start, end) - page) // PAGE, "rw", True)
            page = max(page, stop)

    def _map_quietly(self, task: _Task, page: int, pages: int, prot: str) -> None:
        """Map a part of the executable without a system call."""
        mm = task.process.mm
        assert mm is not None
        file = self._file(f"{task.process.name} {page:x}", pages)
        mm.mmap(task.process.cpu, pages, page * PAGE, prot, file=file)
        self.remarks["pages of executables mapped by exec, inferred"] += pages

    def _file(self, name: str, pages: int) -> File:
        if name not in self.files:
            cached = pages <= self.guest.machine.frames // 4
            self.files[name] = self.guest.file(pages, name, cached)
            if not cached:
                self.remarks["files larger than a quarter of memory, not in the page cache"] += 1
        return self.files[name]

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of the trace should know."""
        lost = sum(t.lost for t in self.told.values())
        notes = [f"strace of {self.path.name}, one vCPU, without huge pages"]
        notes.append(f"touches: {len(self.told)} runs by lackey, else assumed ({self.assume})")
        if lost:
            notes.append(f"{lost} touches of memory without counterpart left out")
        return (*notes, *(f"{text}: {n}" for text, n in sorted(self.remarks.items())))


def _columns(touches: list[Touch]) -> tuple[np.ndarray, np.ndarray]:
    """Return pages and kinds of touches."""
    both = np.array(touches, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _allowed(vmas: np.ndarray, top: int, at: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return which accesses mappings allow; the last of them ends at `top`, and is the stack."""
    out: np.ndarray = kinds != FETCH
    low = np.flatnonzero(at < top - STACK_LIMIT)
    vma = vmas[np.searchsorted(vmas["end"], at[low], "right")]  # there is one: that of the stack
    writable = (vma["vm_flags"] & VM_WRITE) != 0
    out[low] = (vma["start"] <= at[low]) & ((kinds[low] != WRITE) | writable)
    return out
