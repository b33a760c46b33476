"""What a recording has revealed so far, and the rows made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.xen.identity import PAGE_SHIFT, Page, Space
from pvmmu.guest.readers.xen.text import Line
from pvmmu.guest.vocabulary import Evidence, Flag, Op

#: Where 64-bit Linux (without KASLR) maps all of its memory: include/asm/page_64_types.h.
DIRECT_MAP = 0xFFFF_8880_0000_0000
#: More memory than that is rather a direct map at a random address.
_DIRECT_MAP_SIZE = 1 << 44
#: What Xen adds to the entries of a 64-bit PV guest: G in user entries, and its own
#: _PAGE_GUEST_KERNEL (Xen 4.17, xen/arch/x86/pv/mm.h, adjust_guest_l1e).
XEN_BITS = 1 << 8 | 1 << 52
FRAME_MASK = 0x000F_FFFF_FFFF_F000

#: Functions of generic mm that name the purpose of the stores after them.
CALLERS = frozenset(
    [
        "change_protection",
        "clear_refs_write",
        "copy_page_range",
        "do_set_pte",
        "exit_mmap",
        "filemap_map_pages",
        "free_pgd_range",
        "handle_mm_fault",
        "madvise_free_single_vma",
        "move_page_tables",
        "ptep_clear_flush",
        "ptep_set_access_flags",
        "setup_arg_pages",
        "set_pte_range",
        "unmap_page_range",
        "wp_page_copy",
        "zap_page_range_single",
    ]
)
#: Operations that reach other CPUs (EXIT_MMAP: Xen's hook moves them off the address space).
_INTERRUPTING = frozenset({Op.EXIT_MMAP, Op.FLUSH_OTHERS})
#: Those that begin work on a range: a fault handled before is over.
_RANGE_WORK = frozenset({"unmap_page_range", "copy_page_range", "change_protection"})


@dataclass(slots=True, eq=False)
class Row:
    """An operation whose address space and table may still turn out to be others."""

    op: Op
    tsc: int
    cpu: int
    task: int
    current: Space | None = None  # the task's own address space
    space: Space | None = None
    page: Page | None = None
    index: int = -1
    va: int | None = None
    value: int = 0
    count: int = 1
    flags: int = 0
    caller: str | None = None
    evidence: Evidence = Evidence.RECORDED
    place: Evidence | None = None  # None: as good as what is known of the page


@dataclass(slots=True, eq=False)
class Exit:
    """An exit_mmap under way."""

    row: Row
    space: Space
    vmas: int = 0
    brackets: list[tuple[int, Row, list[Row]]] = field(default_factory=list)
    left: bool = False  # all CPUs have moved off
    moved: bool = False  # and its own CPU was one of them
    cleared: bool = False  # the clears of its leaf entries have been inferred


@dataclass(slots=True, eq=False)
class Task:
    """What is known of a task."""

    space: Space
    comm: str = ""
    coming: Space | None = None  # made by pgd_alloc, for a fork or exec under way
    exec_begun: bool = False
    exit: Exit | None = None
    fault: int | None = None  # address of the fault it handles
    caller: str | None = None
    fresh: bool = False  # it has just taken a page for a new table
    alloc: Page | None = None  # table page announced, not yet hooked in
    protected: tuple[Page, int] | None = None  # entry just write-protected, waiting for its twin


class State:
    """Everything known so far; event handlers (see `on`) change it and add rows.

    Parameters
    ----------
    where : str
        The file's name, for errors.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.rows: list[Row | list[Row]] = []
        self.kernel = Space("init_mm", older=True)
        self.tasks: dict[int, Task] = {}
        self.running: dict[int, int] = {}  # CPU -> task
        self.loaded: dict[int, Space] = {}  # CPU -> address space in CR3
        self.by_pointer: dict[int, Space] = {}
        self.by_pgd: dict[int, Space] = {}
        self.pages: dict[int, Page] = {}
        self.frame_of_machine: dict[int, int] = {}
        self.leaving = 0  # exit_mmap calls whose address space is not unpinned yet
        self.exited: dict[Space, int] = {}  # exited, top-level table not freed yet -> last CPU
        self.switching: dict[int, Row] = {}  # CPU -> last row of the context switch under way
        self.lazy_family: str | None = None
        self.lazy_open: set[int] = set()  # CPUs in a lazy MMU bracket
        self.flush: dict[int, Row] = {}  # CPU -> flush decision under way
        self.vcpus = 1

    def feed(self, line: Line) -> None:
        """Take one record; records that are no input are passed over."""
        if line.source == "X":
            handler = _HANDLERS.get("X " + line.event)
        else:
            self.vcpus = max(self.vcpus, line.cpu + 1)
            if line.cpu not in self.switching:  # within a switch, records still name the old task
                self.running[line.cpu] = line.pid
            if line.event.startswith("fn:") and line.event[3:] in CALLERS:
                self._note_caller(line)
            handler = _HANDLERS.get(line.event)
        if handler:
            handler(self, line)

    def _note_caller(self, line: Line) -> None:
        task, name = self.task(line.pid), line.event[3:]
        task.caller = name
        if name in _RANGE_WORK:
            task.fault = None
        if name == "unmap_page_range" and task.exit:
            task.exit.vmas += 1

    def task(self, pid: int) -> Task:
        """Return the task of `pid`; a new one lives in an address space of its own."""
        if pid not in self.tasks:
            self.tasks[pid] = Task(Space(f"task {pid}", older=True))
        return self.tasks[pid]

    def add(self, op: Op, line: Line, **kw: Any) -> Row:
        """Append a row for what the running task does."""
        pid = self.running.get(line.cpu, -1)
        if op != Op.LOAD_CR3:
            self.end_switch(line.cpu)
        if op in _INTERRUPTING:
            self._end_completed_switches()
        task = self.task(pid)
        kw.setdefault("caller", task.caller)
        row = Row(op, line.tsc, line.cpu, pid, current=task.space, **kw)
        if task.exit:
            row.flags |= Flag.FULLMM
        self.rows.append(row)
        return row

    def _end_completed_switches(self) -> None:
        """An interrupt is taken only after a context switch, so those that loaded CR3 are over."""
        for cpu in [cpu for cpu, row in self.switching.items() if row.op == Op.LOAD_CR3]:
            self.end_switch(cpu)

    def end_switch(self, cpu: int) -> None:
        """Close the context switch under way: anything but a CR3 load belongs to the next task."""
        last = self.switching.pop(cpu, None)
        if last is not None:
            row = Row(Op.SWITCH_END, last.tsc, cpu, self.running[cpu], evidence=Evidence.INFERRED)
            self.rows.append(row)

    # ------------------------------------------------------------------ reading fields
    def number(self, line: Line, fields: dict[str, str], name: str) -> int:
        """Return a numeric field of a record (decimal or 0x...)."""
        try:
            return int(fields[name], 0)
        except (KeyError, ValueError):
            have = fields.get(name)
            what = f"has {name}={have!r}" if have is not None else f"has no field {name!r}"
            raise RecordingError(f"{self.where}:{line.number}: {line.event} {what}") from None

    def cell(self, line: Line, fields: dict[str, str], name: str) -> tuple[int, int]:
        """Return (frame, index) of the entry that a kernel virtual address points to."""
        at = self.number(line, fields, name) - DIRECT_MAP
        if not 0 <= at < _DIRECT_MAP_SIZE:
            raise RecordingError(
                f"{self.where}:{line.number}: {line.event} {name}={fields[name]} is not in the "
                f"direct map at {DIRECT_MAP:#x} (record with the boot option nokaslr)"
            )
        return at >> PAGE_SHIFT, (at & 0xFFF) >> 3

    def guest_value(self, raw: int, child: Page | None = None) -> tuple[int, int]:
        """Return (entry as the guest means it, flags): no Xen bits, table frames mapped back."""
        if not raw & 1:
            return raw, 0  # not present: the bits mean other things (PROT_NONE sits where G does)
        value = raw & ~XEN_BITS
        machine = (raw & FRAME_MASK) >> PAGE_SHIFT
        frame = child.frame if child else self.frame_of_machine.get(machine)
        if frame is None:
            return value, int(Flag.MACHINE)
        return value & ~FRAME_MASK | frame << PAGE_SHIFT, 0

    # ------------------------------------------------------------------ who is who
    def space_of(self, pointer: int, task: Task) -> Space:
        """Return the address space of an mm_struct, as named by a task."""
        known = self.by_pointer.get(pointer)
        space = known.root() if known is not None else None
        coming = task.coming
        if coming is not None and coming.pointer is None and (space is None or space.exited):
            space = coming
        elif space is None:
            space = task.space.root()
            if space.pointer is not None:  # a third address space, not the task's
                space = Space(f"mm {pointer:#x}", older=True)
        space.pointer = pointer
        self.by_pointer[pointer] = space
        return space

    def page(self, frame: int, level: int) -> Page:
        """Return the table page at `frame`; one never heard of is an older one."""
        if frame not in self.pages:
            self.pages[frame] = Page(frame, level)
        return self.pages[frame]

    def root_table(self, space: Space, frame: int) -> Page:
        """`frame` holds the top-level table of `space`."""
        space.pgd = frame
        self.by_pgd[frame] = space
        page = self.pages.get(frame)
        if page is None or page.level != 4 or page.space is None or page.space.root() is not space:
            page = self.pages[frame] = Page(frame, 4, space, 0, born=not space.older)
        return page

    def forget(self, space: Space) -> None:
        """The top-level table of an exited address space is free: its frame may be anyone's."""
        self.exited.pop(space, None)
        for known, key in ((self.by_pointer, space.pointer), (self.by_pgd, space.pgd)):
            if key is not None and key in known and known[key].root() is space:
                del known[key]
        if space.pgd is not None:
            self.pages.pop(space.pgd, None)

    def old_flags(self, page: Page, index: int) -> int:
        """Return what `Flag` says of the previous content of an entry."""
        old = page.old(index)
        if old is None:
            return 0
        return int(Flag.OLD_KNOWN | (Flag.OLD_PRESENT if old & 1 else 0))


_HANDLERS: dict[str, Callable[[State, Line], None]] = {}


def on(*events: str) -> Callable[[Callable[[State, Line], None]], Callable[[State, Line], None]]:
    """Register a function as the handler of some events (``X kind`` for hypervisor records)."""

    def register(handler: Callable[[State, Line], None]) -> Callable[[State, Line], None]:
        for event in events:
            _HANDLERS[event] = handler
        return handler

    return register


def handled() -> list[str]:
    """Return the events that are input."""
    return sorted(_HANDLERS)
