"""Events in the life of tasks and address spaces."""

from __future__ import annotations

from pvmmu.guest.readers.xen.identity import PAGE_SHIFT, Page, Space
from pvmmu.guest.readers.xen.state import Exit, Row, State, Task, on
from pvmmu.guest.readers.xen.teardown import split_by_bracket
from pvmmu.guest.readers.xen.text import Line
from pvmmu.guest.vocabulary import Evidence, Flag, Op

_USER_TOP = 1 << 47


@on("MARK")
def mark(s: State, line: Line) -> None:
    """A mark of the recorder; phases (``s=P0`` ...) become rows."""
    task = s.task(line.pid)
    task.fault = task.caller = None
    phase = line.fields().get("s", "")
    if phase.startswith("P") and phase[1:].isdigit():
        s.add(Op.MARK, line, value=int(phase[1:]))


@on("page_fault_user", "page_fault_kernel")
def page_fault(s: State, line: Line) -> None:
    """A fault that reached the guest; reading CR2 is the handler's first act."""
    f = line.fields()
    va, code = s.number(line, f, "address"), s.number(line, f, "error_code")
    task, user = s.task(line.pid), line.event == "page_fault_user"
    task.caller = None
    if user:
        _runs_in_what_is_loaded(s, line.cpu, task)
    task.fault = va if va < _USER_TOP else None
    row = s.add(
        Op.FAULT, line, space=task.space, va=va, value=code, place=Evidence.RECORDED,
        flags=0 if user else int(Flag.KERNEL_FAULT),
    )  # fmt: skip
    s.rows.append(Row(Op.READ_CR2, row.tsc, row.cpu, row.task, evidence=Evidence.INFERRED))


def _runs_in_what_is_loaded(s: State, cpu: int, task: Task) -> None:
    loaded = s.loaded.get(cpu)
    if loaded is not None:
        task.space = task.space.merge(loaded)
    s.loaded[cpu] = task.space


@on("sched_switch")
def sched_switch(s: State, line: Line) -> None:
    """Begin of a context switch; it lasts until anything but a CR3 load happens on this CPU."""
    f = line.fields()
    following = s.number(line, f, "next_pid")
    s.task(s.number(line, f, "prev_pid")).comm = f.get("prev_comm", "")
    s.task(following).comm = f.get("next_comm", "")
    s.switching[line.cpu] = s.add(Op.SWITCH_START, line, caller=None)
    s.running[line.cpu] = following


@on("sched_process_fork")
def fork(s: State, line: Line) -> None:
    """A new task: in the copy that its parent made, else (thread, vfork) with its parent."""
    f = line.fields()
    parent, child = s.task(s.number(line, f, "parent_pid")), s.number(line, f, "child_pid")
    comm = f.get("child_comm", "")
    if parent.coming:
        parent.coming.label = f"{comm}[{child}]"
    s.tasks[child] = Task(parent.coming or parent.space, comm)
    parent.coming = None


@on("fn:pgd_alloc")
def pgd_alloc(s: State, line: Line) -> None:
    """Fork or exec makes an address space."""
    task = s.task(line.pid)
    task.coming = Space(f"{task.comm}[{line.pid}]", older=False)
    task.exec_begun = False
    s.add(Op.PGD_ALLOC, line, space=task.coming, place=Evidence.INFERRED)


@on("fn:begin_new_exec")
def begin_new_exec(s: State, line: Line) -> None:
    """Point of no return of an exec."""
    s.task(line.pid).exec_begun = True


@on("xen_mmu_pgd_pin")
def finished(s: State, line: Line) -> None:
    """An address space is ready for use: end of dup_mmap, or activate_mm of an exec."""
    f = line.fields()
    task = s.task(line.pid)
    space = s.space_of(s.number(line, f, "mm"), task)
    s.root_table(space, s.cell(line, f, "pgd")[0])
    op = Op.ACTIVATE_MM if task.exec_begun else Op.DUP_MMAP
    s.add(op, line, space=space, place=Evidence.RECORDED, caller=None)
    if task.exec_begun and task.coming is not None:
        task.space, task.coming, task.exec_begun = task.coming, None, False


@on("fn:exit_mmap")
def exit_mmap(s: State, line: Line) -> None:
    """The last user of an address space is gone; which one, `unpinned` will say."""
    task = s.task(line.pid)
    row = s.add(Op.EXIT_MMAP, line, space=task.space, caller=None, place=Evidence.INFERRED)
    task.exit = Exit(row, task.space.root())
    s.leaving += 1


@on("xen_mmu_pgd_unpin")
def unpinned(s: State, line: Line) -> None:
    """Names the address space of the exit_mmap under way."""
    f = line.fields()
    task = s.task(line.pid)
    space = s.space_of(s.number(line, f, "mm"), task)
    s.root_table(space, s.cell(line, f, "pgd")[0])
    if task.exit:
        task.exit.row.space = task.exit.space = space
        task.exit.row.place = Evidence.RECORDED
        _has_left(s, task.exit)


def _has_left(s: State, leaving: Exit) -> None:
    """No CPU uses the dying tables from here on."""
    if not leaving.left:
        leaving.left = True
        s.leaving -= 1


@on("fn:free_pgtables")
def all_cleared(s: State, line: Line) -> None:
    """Tear-down has cleared all leaf entries; now that its brackets are known, say where."""
    leaving = s.task(line.pid).exit
    if leaving is None or leaving.cleared:
        return
    leaving.cleared = True
    _has_left(s, leaving)
    space = leaving.space.root()
    pages = [p for p in s.pages.values() if p.level == 1 and p.space and p.space.root() is space]
    pages.sort(key=lambda p: (p.base if p.base is not None else -1, p.frame))
    if not leaving.brackets:
        here: list[Row] = []
        s.rows.append(here)
        leaving.brackets.append((0, leaving.row, here))
    shares = split_by_bracket([vma for vma, _, _ in leaving.brackets], pages)
    for (_, at, rows), share in zip(leaving.brackets, shares, strict=True):
        rows += [_clear(s, at, page, index) for page, index in share]
    rows = leaving.brackets[-1][2]
    rows += [_unknown_clears(leaving.row, page) for page in pages if not page.born]


def _clear(s: State, at: Row, page: Page, index: int) -> Row:
    flags = s.old_flags(page, index) | Flag.FULLMM
    page.entries[index] = 0
    return Row(
        Op.PTE_GET_AND_CLEAR, at.tsc, at.cpu, at.task, at.current, page=page, index=index,
        flags=flags, caller="unmap_page_range", evidence=Evidence.INFERRED,
    )  # fmt: skip


def _unknown_clears(at: Row, page: Page) -> Row:
    """Up to a table full of clears: the table is older than the recording."""
    return Row(
        Op.PTE_GET_AND_CLEAR, at.tsc, at.cpu, at.task, at.current, page=page, count=512,
        flags=int(Flag.FULLMM), caller="unmap_page_range", evidence=Evidence.UNKNOWN,
    )  # fmt: skip


@on("fn:tlb_finish_mmu")
def tlb_finish(s: State, line: Line) -> None:
    """End of a gather; that of exit_mmap ends the tear-down."""
    task = s.task(line.pid)
    if task.exit and line.fields().get("caller") == "exit_mmap":
        all_cleared(s, line)
        if task.exit.moved:
            # Without Xen's hook this CPU would still be there, lazily; the last flush moves it off
            # (flush_tlb_func: switch_mm_irqs_off to init_mm).
            s.add(
                Op.LOAD_CR3, line, space=s.kernel, caller="tlb_finish_mmu",
                evidence=Evidence.INFERRED, place=Evidence.INFERRED, flags=int(Flag.NATIVE_ONLY),
            )  # fmt: skip
        space = task.exit.space.root()
        space.exited = True
        s.exited[space] = line.cpu
        task.exit = task.caller = None


@on("fn:pgd_free")
def pgd_free(s: State, line: Line) -> None:
    """The top-level table of an address space that has exited is freed.

    The record does not say which: the task's own, else what last exited on this CPU (mmdrop in
    finish_task_switch).
    """
    own = s.task(line.pid).space.root()
    here = [space for space, cpu in s.exited.items() if cpu == line.cpu]
    space = own if own in s.exited else next(iter([*here, *s.exited]), None)
    place = Evidence.INFERRED if space else Evidence.UNKNOWN
    s.add(Op.PGD_FREE, line, space=space, caller=None, place=place)
    if space is not None:
        s.forget(space)


@on("xen_mmu_write_cr3")
def write_cr3(s: State, line: Line) -> None:
    """A load of the page-table base. Xen's second one, of the user table, is no operation."""
    f = line.fields()
    if f.get("kernel", "1") != "1":
        return
    pid = s.running[line.cpu]
    if line.pid == pid:
        s.end_switch(line.cpu)  # within a switch, records still name the old task
    task, frame = s.task(pid), s.number(line, f, "cr3") >> PAGE_SHIFT
    space = s.by_pgd.get(frame)
    if line.cpu not in s.switching and space is None:
        # Out of a context switch only exec loads a user's table, and that one is known by then.
        s.by_pgd[frame] = space = s.kernel
        s.kernel.pgd = frame
    if line.cpu not in s.switching and space is s.kernel and s.leaving:
        # Xen's own hook moves a CPU off an address space about to die: the mode makes this load.
        s.loaded[line.cpu] = s.kernel
        if task.exit:
            task.exit.moved = True
        return
    if space is None:
        space = task.space.root()
        if space.pgd is not None:
            space = Space(f"{task.comm}[{pid}]", older=True)
        s.root_table(space, frame)
    s.loaded[line.cpu] = space
    row = s.add(Op.LOAD_CR3, line, space=space, place=Evidence.RECORDED, caller=None)
    if line.cpu in s.switching:
        s.switching[line.cpu] = row
