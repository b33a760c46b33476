"""Processes and threads: what a program asks of its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pvmmu.errors import GuestError
from pvmmu.guest.linux import advice, execution, mremap as moving, rows
from pvmmu.guest.linux.faults import READ, WRITE
from pvmmu.guest.linux.layout import File
from pvmmu.guest.linux.mm import Mm
from pvmmu.guest.linux.program import Program
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.trace import Op

if TYPE_CHECKING:
    from pvmmu.guest.linux.guest import Guest


class Process:
    """A process, or a thread of one.

    Every method runs on the process's own CPU: if another one was running there, the kernel
    switches first.

    Attributes
    ----------
    guest : Guest
        The guest that it is in.
    mm : Mm or None
        Its address space; None once it has exited.
    cpu, task : int
        The CPU on which it runs; its number.
    name : str
        For readers.
    program : Program or None
        What it runs.
    """

    def __init__(self, guest: Guest, mm: Mm | None, cpu: int, task: int, name: str) -> None:
        self.guest, self.mm, self.cpu, self.task, self.name = guest, mm, cpu, task, name
        self.program: Program | None = None
        self.alive = True
        self._waits_for: Process | None = None
        self._vfork_parent: Process | None = None

    def __repr__(self) -> str:
        state = "" if self.alive else ", exited"
        return f"<Process {self.task} {self.name}{state}>"

    def _on_cpu(self, call: str) -> Mm:
        """Switch to this process and return its address space."""
        if not self.alive:
            raise GuestError(f"{call}: process {self.task} ({self.name}) has exited")
        if self._waits_for is not None:
            raise GuestError(
                f"{call}: process {self.task} ({self.name}) waits for its vfork child "
                f"{self._waits_for.task} to exec or exit"
            )
        self.guest.run(self)
        if self.mm is None:
            raise GuestError(f"{call}: process {self.task} has no address space yet (exec first)")
        return self.mm

    # ------------------------------------------------------------------ memory
    def mmap(
        self, pages: int, at: int | None = None, prot: str = "rw", *, shared: bool = False,
        file: File | None = None, offset: int = 0, populate: bool = False, replace: bool = True,
    ) -> int:  # fmt: skip
        """Map memory.

        Parameters
        ----------
        pages : int
            Size.
        at : int, optional
            Address (MAP_FIXED, or MAP_FIXED_NOREPLACE with ``replace=False``); by default the
            kernel finds one.
        prot : str
            Of the letters r, w, x; ``"-"`` for no access.
        shared : bool
            MAP_SHARED; of a file.
        file, offset : File, int
            What is mapped, from which page on; anonymous memory without.
        populate, replace : bool
            MAP_POPULATE; whether what is mapped there goes.

        Returns
        -------
        int
            Address (bytes).
        """
        mm = self._on_cpu("mmap")
        with self._system_call():
            address = mm.mmap(self.cpu, pages, at, prot, shared, file, offset, replace)
            if populate:
                mm.populate(self.cpu, address, pages, "w" in prot and not shared)
        return address

    def munmap(self, at: int, pages: int) -> None:
        """Unmap so many `pages` `at` an address (bytes)."""
        mm = self._on_cpu("munmap")
        with self._system_call():
            mm.munmap(self.cpu, at, pages)

    def mprotect(self, at: int, pages: int, prot: str) -> None:
        """Change the protection of `pages` `at` an address (bytes) to `prot`, as of `mmap`."""
        mm = self._on_cpu("mprotect")
        with self._system_call():
            mm.mprotect(self.cpu, at, pages, prot)

    def mremap(
        self, at: int, pages: int, to: int | None = None, new_pages: int | None = None
    ) -> int:
        """Move `pages` `at` an address (MREMAP_MAYMOVE), which become `new_pages`, and return the
        new address.

        With `to`, it goes there (MREMAP_FIXED). Addresses are in bytes.
        """
        mm = self._on_cpu("mremap")
        with self._system_call():
            return moving.mremap(
                mm, self.cpu, at, pages, to, pages if new_pages is None else new_pages
            )

    def dontneed(self, at: int, pages: int) -> None:
        """Drop `pages` `at` an address (bytes): madvise(MADV_DONTNEED)."""
        mm = self._on_cpu("madvise")
        with self._system_call():
            advice.dontneed(mm, self.cpu, at, pages)

    def cold(self, at: int, pages: int) -> None:
        """Make `pages` `at` an address (bytes) old: madvise(MADV_COLD)."""
        mm = self._on_cpu("madvise")
        with self._system_call():
            advice.cold(mm, self.cpu, at, pages)

    def clear_refs(self, what: int = 1) -> None:
        """Write `what` to /proc/self/clear_refs: 1 (age all pages) or 4 (clear soft-dirty bits).

        Raises
        ------
        GuestError
            It is something else.
        """
        mm = self._on_cpu("clear_refs")
        if what not in (1, 4):
            raise GuestError(f"clear_refs: {what} is none of 1 and 4")
        with self._system_call():
            (advice.clear_refs if what == 1 else advice.clear_soft_dirty)(mm, self.cpu)

    # ------------------------------------------------------------------ accesses
    def read(self, at: int, pages: int = 1, stride: int = 1) -> None:
        """Read one byte of each of `pages` `at` an address (bytes), or of every `stride` pages."""
        self.touch(_pages(at, pages, stride), READ)

    def write(self, at: int, pages: int = 1, stride: int = 1) -> None:
        """Write one byte of each of `pages` `at` an address (bytes), or of every `stride` pages."""
        self.touch(_pages(at, pages, stride), WRITE)

    def touch(self, addresses: npt.ArrayLike, how: int = READ) -> None:
        """Access addresses in order.

        Parameters
        ----------
        addresses : int64[n]
            (bytes)
        how : int
            READ, WRITE or FETCH, plus KERNEL for an access that the kernel makes for the program
            (`pvmmu.guest.linux.faults`).
        """
        mm = self._on_cpu("touch")
        mm.touch(self.cpu, np.atleast_1d(np.asarray(addresses, np.int64)), how)

    def does(self, what: str) -> None:
        """Do what its program is known to do on an occasion.

        Parameters
        ----------
        what : str
            A key of `Program.does`, such as ``"start"``; nothing happens if it has none.
        """
        if self.program is None:
            return
        for action in self.program.does.get(what, ()):
            if action.kind == "touch":
                mm = self._on_cpu("touch")
                mm.touch(self.cpu, mm.layout.placed(np.array(action.numbers, np.int64)), action.how)
            elif action.kind == "brk":
                self._on_cpu("brk").grow_heap(self.cpu, action.numbers[0])
            else:
                self.mprotect(action.numbers[0], action.numbers[1], action.prot)

    # ------------------------------------------------------------------ life
    def fork(self) -> Process:
        """Make a child with a copy of the address space; it runs when asked to do something."""
        mm = self._on_cpu("fork")
        child = Process(self.guest, None, self.cpu, self.guest.next_task(), self.name)
        child.program = self.program
        with self._system_call():
            child.mm = self.guest.new_mm(self.cpu, f"{self.name}[{child.task}]")
            mm.fork(self.cpu, child.mm)
        return child

    def vfork(self) -> Process:
        """Make a child in the same address space; this process waits until it execs or exits."""
        child = self.thread()
        child._vfork_parent, self._waits_for = self, child
        return child

    def thread(self, cpu: int | None = None) -> Process:
        """Make a thread of this process, on `cpu` (by default its own)."""
        mm = self._on_cpu("clone")
        cpu = self.cpu if cpu is None else cpu
        self.guest._cpu(cpu)
        with self._system_call():
            mm.users += 1
        child = Process(self.guest, mm, cpu, self.guest.next_task(), self.name)
        child.program = self.program
        return child

    def exec(self, program: Program | None = None) -> None:
        """Run `program` (None: stack and vDSO only) in a new address space (execve).

        Raises
        ------
        GuestError
            The process has exited.
        """
        if not self.alive:
            raise GuestError(f"exec: process {self.task} ({self.name}) has exited")
        if program is not None and self.guest.machine.format.width == 32:
            program = program.in_32_bits()
        self.guest.run(self)
        with self._system_call():
            old = self.mm
            self.mm = execution.execve(self.guest, self, program)
            if old is not None:
                self._leave(old, switched=True)
            self._release_parent()
            execution.set_up(self.guest, self, self.mm, program)
        self.program = program
        self.name = program.name if program else self.name
        self.does("start")

    def exit(self) -> None:
        """End; the address space goes with its last user (do_exit, exit_mm)."""
        mm = self._on_cpu("exit")
        s = self.guest.machine.s
        s.cpus[self.cpu]["current"] = -1
        s.cpus[self.cpu]["lazy"] = 1
        rows.event(self.guest.machine.reserve(), self.cpu, int(Op.KERNEL_ENTRY), -1, 0, 0, 1, 0, -1)
        self._leave(mm, switched=False)
        self.mm, self.alive = None, False
        self._release_parent()

    def _leave(self, mm: Mm, switched: bool) -> None:
        """Stop using an address space (mmput)."""
        mm.users -= 1
        if mm.users:
            return
        mm.exit(self.cpu)
        if switched:
            mm.free(self.cpu)
        else:
            self.guest.free_after_switch(self.cpu, mm)

    def go_on(self) -> None:
        """Go on beside a vfork child, whose exec or exit nobody has told."""
        if self._waits_for is not None:
            self._waits_for._release_parent()

    @property
    def waits_for(self) -> Process | None:
        """The vfork child that must exec or exit first."""
        return self._waits_for

    def _release_parent(self) -> None:
        if self._vfork_parent is not None:
            self._vfork_parent._waits_for = None
            self._vfork_parent = None

    def wait(self, child: Process) -> None:
        """Wait for `child`, which has exited.

        Raises
        ------
        GuestError
            It has not: nothing else would run it.
        """
        if child.alive:
            raise GuestError(f"wait: process {child.task} is still alive and nobody runs it")
        self._on_cpu("wait")
        with self._system_call():
            pass

    def system_calls(self, count: int) -> None:
        """Make `count` system calls that do nothing to memory."""
        self._on_cpu("system call")
        self.guest.machine.until(
            0, count, lambda s, done: rows.system_calls(s, self.cpu, np.int64(done), count)
        )

    def _system_call(self) -> _SystemCall:
        return _SystemCall(self)


class _SystemCall:
    """Entry to the kernel and exit from it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def __enter__(self) -> None:
        self._row(Op.KERNEL_ENTRY)

    def __exit__(self, *_: object) -> None:
        self._row(Op.KERNEL_EXIT)

    def _row(self, op: Op) -> None:
        p = self._process
        rows.event(p.guest.machine.reserve(), p.cpu, int(op), -1, 0, 0, 1, 0, -1)


def _pages(at: int, pages: int, stride: int) -> np.ndarray:
    if pages < 0 or stride < 1:
        raise GuestError(f"{pages} pages with a stride of {stride}")
    return at + np.arange(0, pages * stride, stride, dtype=np.int64) * PAGE
