"""A guest: a Linux kernel of some version on some platform, and the programs that run on it.

>>> guest = Guest("6.1")
>>> with guest.process() as p:
...     a = p.mmap(64)
...     p.write(a, 64)
...     child = p.fork()
...     child.exit()
...     p.wait(child)
>>> trace = guest.trace("my workload")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from pvmmu.errors import GuestError
from pvmmu.guest import provenance
from pvmmu.guest.linux import frames, kernel_space, rows, tables
from pvmmu.guest.linux.layout import File
from pvmmu.guest.linux.machine import Machine
from pvmmu.guest.linux.mm import Mm
from pvmmu.guest.linux.process import Process
from pvmmu.guest.linux.profile import Profile, load_profile
from pvmmu.guest.linux.profile_keys import Par
from pvmmu.guest.linux.program import Program
from pvmmu.guest.linux.state import ROWS
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.trace import Evidence, Op, Platform, Provenance, Trace
from pvmmu.x86 import bits

#: Task number of the idle task of each CPU.
IDLE = 0
_KERNEL_MM = 0
#: Where vmalloc begins: x86-64 with four levels, i386 (arch/x86/mm, VMALLOC_START).
_VMALLOC = {True: -0x3700_0000_0000, False: 0xF880_0000}
_VERSION = "1"


class Guest:
    """A Linux guest.

    Parameters
    ----------
    kernel : str or Profile
        Name of a kernel profile (`pvmmu.guest.linux.profile.profile_names`).
    platform : Platform, optional
        What the guest sees; by default bare hardware with the kernel's usual table levels.
    frames : int
        Memory, in frames of 4 KiB.
    seed : int
        Of everything random (addresses, if the platform has ASLR).
    touches : bool
        Whether touches of memory become rows (for TLB models).

    Attributes
    ----------
    files : dict of str to File
        Files made so far.
    """

    def __init__(
        self,
        kernel: str | Profile = "6.1",
        platform: Platform | None = None,
        frames: int = 1 << 20,
        seed: int = 0,
        touches: bool = False,
    ) -> None:
        self.profile = load_profile(kernel) if isinstance(kernel, str) else kernel
        self.platform = platform or default_platform(self.profile)
        _check_platform(self.profile, self.platform)
        self.machine = Machine(self.profile, self.platform, frames, touches)
        self.random = np.random.default_rng(seed)
        self.seed = seed
        self.files: dict[str, File] = {}
        self.programs: dict[str, File] = {}
        self.mms: list[provenance.Mm] = [provenance.Mm("init_mm", older=True)]
        self._running: list[Process | None] = [None] * self.platform.vcpus
        self._doomed: list[Mm | None] = [None] * self.platform.vcpus
        self._tasks = 0
        self._began = 0
        self._vmalloc_next = _VMALLOC[self.machine.format.width > 32]
        self._vmalloced: dict[int, np.ndarray] = {}
        self._unflushed: list[tuple[int, int]] = []
        self._start_kernel()

    def _start_kernel(self) -> None:
        """Give init_mm its top-level table; it is loaded everywhere."""
        s = self.machine.s
        frame = int(frames.allocate(s, 0, np.uint8(1), np.bool_(False)))
        tables.clear_frame(s, frame)
        s.mms[_KERNEL_MM]["root"] = frame << 12
        self.mms[_KERNEL_MM] = provenance.Mm("init_mm", frame, older=True)
        s.cpus["current"] = -1
        s.cpus["next_asid"] = 1

    # ------------------------------------------------------------------ programs
    @contextmanager
    def process(self, program: Program | None = None, cpu: int = 0) -> Iterator[Process]:
        """Run `program` (None: stack and vDSO only) on `cpu`; it exits at the end of the block."""
        p = self.spawn(program, cpu)
        yield p
        if p.alive:
            p.exit()

    def spawn(self, program: Program | None = None, cpu: int = 0) -> Process:
        """Start `program` on `cpu` from nothing, as a kernel thread execs init."""
        self._cpu(cpu)
        p = Process(self, None, cpu, self.next_task(), program.name if program else "process")
        p.exec(program)
        return p

    def next_task(self) -> int:
        """Return a new process number."""
        self._tasks += 1
        return self._tasks

    def new_mm(self, cpu: int, label: str) -> Mm:
        """Make an address space on `cpu`; `label` is its name in traces."""
        mm = Mm.new(self.machine, cpu, label)
        root = int(self.machine.s.mms[mm.number]["root"])
        self.mms.append(provenance.Mm(label, root >> 12))
        return mm

    def file(self, pages: int, name: str = "", cached: bool = True, notify: bool = False) -> File:
        """Make a file of so many `pages`, by default with all of them in the page cache.

        `name` is its name in traces. Without `cached`, pages are read in by their first fault.
        `notify`: a shared mapping of it is write-protected to learn of writes
        (vma_wants_writenotify).

        Raises
        ------
        GuestError
            No page, or no memory.
        """
        if pages <= 0:
            raise GuestError(f"file: {pages} pages")
        name = name or f"file {len(self.files) + 1}"
        place = self.machine.new_file(pages, cached)
        self.files[name] = File(name, pages, place, notify)
        return self.files[name]

    # ------------------------------------------------------------------ the scheduler
    def run(self, task: Process | None, cpu: int | None = None) -> None:
        """Let `task` run on its CPU; nothing happens if it does. None: the idle task, on `cpu`."""
        cpu = task.cpu if task is not None else cpu or 0
        if self._running[cpu] is task:
            return
        s = self.machine.reserve()
        record = s.cpus[cpu]
        rows.event(s, cpu, int(Op.SWITCH_START), -1, 0, 0, 1, 0, -1)
        record["task"] = task.task if task is not None else IDLE
        if task is None or task.mm is None:
            record["current"] = -1
            if record["mm"] != _KERNEL_MM:
                record["lazy"] = 1
        else:
            record["current"] = task.mm.number
            rows.load_mm(s, cpu, task.mm.number, 0, -1)
        rows.event(s, cpu, int(Op.SWITCH_END), -1, 0, 0, 1, 0, -1)
        self._running[cpu] = task
        doomed, self._doomed[cpu] = self._doomed[cpu], None
        if doomed is not None:
            doomed.free(cpu)

    def free_after_switch(self, cpu: int, mm: Mm) -> None:
        """Free `mm` when `cpu` has left it (finish_task_switch, mmdrop)."""
        self._doomed[cpu] = mm

    def running(self, cpu: int) -> Process | None:
        """Return what runs on `cpu`, None for the idle task."""
        return self._running[cpu]

    def _cpu(self, cpu: int) -> None:
        if not 0 <= cpu < self.platform.vcpus:
            raise GuestError(f"CPU {cpu}: the guest has CPUs 0 to {self.platform.vcpus - 1}")

    # ------------------------------------------------------------------ the kernel's own memory
    def vmalloc(self, pages: int, cpu: int = 0) -> int:
        """Map `pages` of kernel memory on `cpu` (vmalloc); return the address (int64: negative).

        Raises
        ------
        GuestError
            No page, or no memory.
        """
        if pages <= 0:
            raise GuestError(f"vmalloc: {pages} pages")
        s = self.machine.reserve()
        taken = [frames.allocate(s, cpu, np.uint8(4), np.bool_(False)) for _ in range(pages)]
        self.machine.check()
        at = self._vmalloc_next
        self._vmalloc_next += (pages + 1) * PAGE  # a guard page behind each area
        flags = bits.P | bits.RW | bits.A | bits.D | bits.G
        flags |= int(s.par[Par.NO_EXECUTE])
        array = np.array(taken, np.int64)
        self.machine.until(
            0, pages, lambda s, i: kernel_space.map_kernel(s, cpu, at, array, i, flags)
        )
        self._vmalloced[at] = array
        return at

    def vfree(self, at: int, cpu: int = 0) -> None:
        """Unmap on `cpu` what `vmalloc` put `at` an address; the flush is lazy (lazy_max_pages).

        Raises
        ------
        GuestError
            Nothing is mapped there.
        """
        if at not in self._vmalloced:
            raise GuestError(f"vfree: {at:#x} was not given by vmalloc")
        array = self._vmalloced.pop(at)
        end = at + len(array) * PAGE
        self.machine.until(at, end, lambda s, va: kernel_space.unmap_kernel(s, cpu, va, end))
        s = self.machine.reserve()
        self._unflushed.append((at, end))
        if sum(b - a for a, b in self._unflushed) // PAGE > s.par[Par.LAZY_MAX]:
            start, stop = min(a for a, _ in self._unflushed), max(b for _, b in self._unflushed)
            caller = self.machine.callers.setdefault(
                "__purge_vmap_area_lazy", len(self.machine.callers)
            )
            rows.flush_kernel(s, cpu, start, stop, caller)
            self._unflushed.clear()
        for frame in array:
            frames.release(s, cpu, int(frame), np.bool_(False))

    # ------------------------------------------------------------------ the trace
    def mark(self, phase: int = 0, cpu: int = 0) -> None:
        """Put a mark of `phase` into the trace, on `cpu`, as a recorder would."""
        rows.event(self.machine.reserve(), cpu, int(Op.MARK), -1, 0, phase, 1, 0, -1)

    def begin(self) -> None:
        """Forget what was done so far: the trace begins here, with what is alive."""
        self.machine.s.n[ROWS] = 0
        self._began = len(self.mms)

    def trace(
        self, source: str = "model", notes: tuple[str, ...] = (), assumptions: tuple[str, ...] = ()
    ) -> Trace:
        """Return the operations since `begin` as a trace, of whose provenance `source`, `notes` and
        `assumptions` are.

        Raises
        ------
        TraceError
            There is none.
        """
        s = self.machine.s
        out = s.out[: s.n[ROWS]]
        columns: dict[str, np.ndarray] = {name: out[name] for name in out.dtype.names or ()}
        used = np.unique(out["mm"])
        used = np.union1d(used[used > 0], [_KERNEL_MM])
        number = np.full(len(self.mms) + 1, -1, np.int32)
        number[used] = np.arange(len(used))
        columns["mm"] = number[out["mm"]]
        columns["evidence"] = np.full(len(out), Evidence.MODELLED, np.uint8)
        columns["place"] = columns["evidence"]
        mms = [self.mms[i] for i in used]
        mms = [
            provenance.Mm(m.label, m.pgd, older=bool(i < self._began))
            for i, m in zip(used, mms, strict=True)
        ]
        what = f"pvmmu guest model {_VERSION}, profile {self.profile.kernel}"
        origin = Provenance(source, self.profile.kernel, what, self.platform, notes, assumptions)
        return Trace(columns, tuple(mms), tuple(self.machine.callers), origin)


def default_platform(profile: Profile) -> Platform:
    """Return bare hardware of the time and architecture of `profile`."""
    if profile.arch == "i386":
        return Platform("native", levels=3)
    return Platform("native", levels=4)


def _check_platform(profile: Profile, platform: Platform) -> None:
    narrow = profile.arch == "i386"
    if narrow != (platform.levels in (2, 3)):
        raise GuestError(
            f"Linux {profile.kernel} ({profile.arch}) has no {platform.levels}-level page tables"
        )
    if platform.pcid and not profile.parameters["ranged"][0]:
        raise GuestError(f"Linux {profile.kernel} does not use PCIDs")
