"""Recorded calls, made by processes of the guest model."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.layout import File
from pvmmu.guest.linux.process import Process
from pvmmu.guest.linux.program import Program
from pvmmu.guest.readers.faults import Faults
from pvmmu.guest.readers.strace.assumed import Assumed, Space
from pvmmu.guest.readers.strace.changes import Changes
from pvmmu.guest.readers.strace.files import executable
from pvmmu.guest.readers.strace.images import Images
from pvmmu.guest.readers.strace.lines import EXECS, EXITS, WAITS, Call
from pvmmu.guest.readers.strace.placing import Placed
from pvmmu.guest.readers.strace.real import Real
from pvmmu.guest.readers.strace.recorded import Recorded
from pvmmu.guest.readers.strace.touches import Touch
from pvmmu.guest.readers.strace.touching import Touching

_CHILD: Final = re.compile(r"si_pid=(\d{1,10})")


@dataclass
class Task:
    """A process or thread, and what is known of it.

    Parameters
    ----------
    process : Process
        In the guest.
    life : int
        Its number among the tasks of the recording.
    group : int
        Life of the process that it is a thread of.
    image : int
        Number of its image.
    unheard : dict of int to Task
        Children that no line is of, by the number that their birth returned.
    next : list of Touch
        What a forked child is assumed to touch, from its parent's lackey trace.
    """

    process: Process
    life: int
    group: int
    image: int
    unheard: dict[int, Task] = field(default_factory=dict)
    next: list[Touch] = field(default_factory=list)


class Run:
    """Makes the calls of a recording on a guest.

    Parameters
    ----------
    r : Recorded
        The recording.
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
    faults : Faults, optional
        Page faults of the same run of the program: then nothing is assumed.
    """

    def __init__(
        self, r: Recorded, guest: Guest, files: tuple[dict[int, str], dict[str, int]],
        images: Images, told: dict[int, Placed], assume: str, faults: Faults | None = None,
    ) -> None:  # fmt: skip
        self.r, self.guest, self.images, self.told = r, guest, images, told
        self.named, self.sizes = files
        self.remarks: Counter[str] = Counter()
        self.assumed = Assumed(assume, 4 * guest.machine.frames, self.remarks)
        self.tasks: dict[int, Task] = {}
        self.spaces: dict[int, Space] = {}
        self.files: dict[str, File] = {}
        self.real = Real(self, faults) if faults is not None else None
        self.touching = Touching(self)
        self.changes = Changes(self)
        self._unseen = 0

    def space(self, task: Task) -> Space:
        """Return the address space of a task."""
        mm = task.process.mm
        if mm is None:
            raise RecordingError(f"{self.r.path}: task {task.life} has no address space")
        return self.spaces.setdefault(mm.number, Space())

    # ------------------------------------------------------------------ calls
    def feed(self, index: int, call: Call) -> None:
        """Make one call."""
        life = self.r.lives.of[index]
        if life < 0:  # the end of what was never heard of
            return
        task = self.tasks.get(life) or self._first(life, index, call)
        if not task.process.alive:
            return
        if task.process.waits_for is not None:
            self._release(task, index)
        self.touching.before(task, index, call)
        change = self.r.changes[index]
        if not call.name:
            task.process.system_calls(call.count)
        elif call.name == "+++" or call.name in EXITS:
            self._exits(task, call)
        elif call.name in EXECS and call.result == 0:
            self._exec(task, index, call)
        elif index in self.r.lives.child:
            self._clone(task, index, call)
        elif change is not None:
            self.changes.make(task, index, change)
        else:
            if call.name in WAITS:
                self._waited(task, call)
            task.process.system_calls(1)

    def finish(self) -> None:
        """Make what the recording's end leaves open: touches of those who live on."""
        for task in self.tasks.values():
            if task.process.alive and task.process.waits_for is None:
                self.touching.at_end(task)

    def _first(self, life: int, index: int, call: Call) -> Task:
        """Begin with a process that the recording does not see being made."""
        process = self.guest.spawn()
        if not self.tasks:
            self.guest.begin()
        image = self.images.begun.get(index, 0)
        task = self.tasks[life] = Task(process, life, life, image)
        if call.name not in EXECS:
            self._forget_vdso(task)
            self._unseen += 1
        return task

    def _release(self, task: Task, index: int) -> None:
        """Let a parent go on whose vfork child has become another program without a word."""
        child = next(t for t in self.tasks.values() if t.process is task.process.waits_for)
        self.remarks["vfork children whose exec or exit was not seen"] += 1
        if self.r.lives.all[child.life].heard and self.r.lives.last[child.life] > index:
            child.process.exec(Program("program"))
            self._forget_vdso(child)
        else:
            self._end(child)

    def _exits(self, task: Task, call: Call) -> None:
        whole = call.name == "exit_group"
        for other in list(self.tasks.values()) if whole else [task]:
            if other is task or (other.group == task.group and other.process.alive):
                self._end(other)

    def _end(self, task: Task) -> None:
        """End a task, and before it children that nobody has heard of."""
        if self.real is not None and task.process.alive:
            self.real.at_end(task)
        for child in task.unheard.values():
            self._end(child)
        task.unheard = {}
        if task.process.alive:
            if task.process.waits_for is not None:
                task.process.go_on()
            task.process.exit()

    def _waited(self, task: Task, call: Call) -> None:
        """End a child that was waited for and that no line is of."""
        m = _CHILD.search(call.arguments)
        number = int(m[1]) if m else call.result or 0
        for parent in [t for t in self.tasks.values() if t.group == task.group]:
            child = parent.unheard.pop(number, None)
            if child is not None:
                self._end(child)

    def _exec(self, task: Task, index: int, call: Call) -> None:
        for other in list(self.tasks.values()):  # threads do not survive it
            if other is not task and other.group == task.group and other.process.alive:
                self._end(other)
        task.image, task.group = self.images.begun[index], task.life
        task.process.exec(Program(PurePosixPath(executable(call)).name))
        self._forget_vdso(task)
        self.touching.begins(task)

    def _clone(self, task: Task, index: int, call: Call) -> None:
        p, flags, number = task.process, self.r.flags[index], self.r.lives.child[index]
        shared = "CLONE_VM" in flags
        heard = self.r.lives.all[number].heard
        if "CLONE_VFORK" in flags and shared:
            child = p.vfork()
        elif shared:
            child = p.thread()
        else:
            child = p.fork()
        group = task.group if "CLONE_THREAD" in flags else number
        image = task.image if shared else self.images.begun[index]
        made = self.tasks[number] = Task(child, number, group, image)
        if not shared:
            self.touching.forked(task, made, index)
        if not heard and p.waits_for is not None:  # execs or exits before its parent goes on
            self._end(made)
        elif not heard:
            task.unheard[call.result or 0] = made

    def _forget_vdso(self, task: Task) -> None:
        """Leave of a new address space only its stack: the recording has its own addresses."""
        mm = task.process.mm
        assert mm is not None
        mm.maps.table = mm.maps.table[-1:]

    # ------------------------------------------------------------------ what a reader should know
    def assumptions(self) -> tuple[str, ...]:
        """Return what is assumed, for wherever the numbers are shown."""
        lives = self.r.lives.all
        out = []
        if self.touching.assumes:
            out.append(f"touches assumed: {self.assumed.kind}")
        unheard = sum(not x.heard for x in lives)
        open_ = sum(
            x.heard and not x.ended and n in self.tasks and self.tasks[n].process.alive
            for n, x in enumerate(lives)
        )
        if open_:
            out.append(f"{open_} of {len(lives)} processes never seen to end")
        if unheard:
            out.append(
                f"{unheard} of {len(lives)} processes never heard of, their end assumed when they "
                "are waited for, or with their parent (record with -f)"
            )
        if self._unseen:
            out.append(f"{self._unseen} of {len(lives)} processes not seen to begin")
        return tuple(out)

    def notes(self) -> tuple[str, ...]:
        """Return what else a reader of the trace should know."""
        lost = sum(t.lost for t in self.told.values())
        notes = [f"strace of {self.r.path.name}, one vCPU, without huge pages"]
        notes.append(self.touching.source())
        if self.r.narrow:
            notes.append("a program of 32 bits, read as one of x86-64 (four levels)")
        if self.r.lives.renumbered:
            notes.append(
                f"processes known by another number (PID namespace): {self.r.lives.renumbered}"
            )
        if lost:
            notes.append(f"{lost} touches of memory without counterpart left out")
        counted = sorted((self.remarks + self.r.left_out).items())
        return (*notes, *(f"{text}: {n}" for text, n in counted))
