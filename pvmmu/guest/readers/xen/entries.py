"""Events that write entries, make tables or dissolve them."""

from __future__ import annotations

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.xen.identity import PAGE_SHIFT, Page, Space, entry_index, table_base
from pvmmu.guest.readers.xen.state import FRAME_MASK, Row, State, Task, on
from pvmmu.guest.readers.xen.text import Line
from pvmmu.guest.vocabulary import ALLOC_OPS, RELEASE_OPS, SET_UPPER_OPS, Evidence, Flag, Op

_RW, _USER, _ACCESSED = 1 << 1, 1 << 2, 1 << 5
#: Of an entry that is not present: mapped without access, hence cleared like a present one.
_PROT_NONE = 1 << 8
#: The kernel's number of a level in the alloc and release tracepoints (PT_PGD ... PT_PTE).
_LEVEL = {"1": 4, "2": 3, "3": 2, "4": 1}
_FAULT_AROUND = ("do_set_pte", "set_pte_range")


@on("xen_mmu_set_pte", "xen_mmu_set_pte_at")
def set_pte(s: State, line: Line) -> None:
    """A store to one leaf entry."""
    f = line.fields()
    frame, index = s.cell(line, f, "ptep")
    page, task = s.page(frame, 1), s.task(line.pid)
    raw = s.number(line, f, "pteval")
    if raw & 1 and not raw & _USER:
        _place(page, s.kernel, None)
    _place_twin(task, page, index)
    _place_by_fault(task, page, index)
    _store(s, Op.SET_PTE, line, page, index, raw)


@on("xen_mmu_ptep_modify_prot_start", "xen_mmu_ptep_modify_prot_commit")
def modify_prot(s: State, line: Line) -> None:
    """Half of a protection change; the record names address space and address."""
    f = line.fields()
    frame, index = s.cell(line, f, "ptep")
    page, va = s.page(frame, 1), s.number(line, f, "addr")
    _place(page, s.space_of(s.number(line, f, "mm"), s.task(line.pid)), va)
    if line.event.endswith("start"):
        row = s.add(Op.MODIFY_PROT_START, line, page=page, index=index)
    else:
        row = _store(s, Op.MODIFY_PROT_COMMIT, line, page, index, s.number(line, f, "pteval"))
    row.va, row.place = va, Evidence.RECORDED


@on("X PTWR_EMULATION")
def trapped_store(s: State, line: Line) -> None:
    """A store that the hypervisor emulated: the only witness of read-modify-writes."""
    f = line.fields()
    frame, index = s.cell(line, f, "addr")
    raw, symbol = s.number(line, f, "pte"), f.get("in", "")
    page, task = s.page(frame, 1), s.task(s.running.get(line.cpu, -1))
    if "vunmap" in symbol:
        _place(page, s.kernel, None)
    _place_by_fault(task, page, index)
    op = _kind_of_rmw(raw, page.old(index), symbol)
    _store(s, op, line, page, index, raw).caller = symbol or None
    task.protected = (page, index) if op == Op.PTE_WRPROTECT else None


def _store(s: State, op: Op, line: Line, page: Page, index: int, raw: int) -> Row:
    """Append the row of a store to a leaf entry and keep the table's image."""
    value, flags = s.guest_value(raw)
    flags |= s.old_flags(page, index)
    page.entries[index] = value
    return s.add(op, line, page=page, index=index, value=value, flags=flags)


def _kind_of_rmw(raw: int, old: int | None, symbol: str) -> Op:
    """Name a read-modify-write by what it changed, else by the function that made it."""
    if raw == 0:
        absent = old is not None and not old & (1 | _PROT_NONE)
        return Op.PTE_CLEAR if absent else Op.PTE_GET_AND_CLEAR
    cleared = 0 if old is None else old & ~raw
    if cleared & _RW or symbol.startswith("copy_") or "wrprotect" in symbol:
        return Op.PTE_WRPROTECT
    young = any(word in symbol for word in ("young", "referenced", "clear_refs"))
    return Op.PTE_CLEAR_YOUNG if cleared & _ACCESSED or young else Op.PTE_RMW


# ---------------------------------------------------------------------- where tables belong
def _place(page: Page, space: Space | None, va: int | None) -> None:
    """Learn where a table page belongs, if that was not known."""
    if page.space is None:
        page.space = space
    if page.base is None and va is not None:
        page.base = table_base(va, page.level)


def _place_by_fault(task: Task, page: Page, index: int) -> None:
    """A store to the entry that maps a fault's address reveals its table; so does fault-around."""
    if page.space is not None or task.fault is None:
        return
    if task.caller in _FAULT_AROUND or index == entry_index(task.fault, 1):
        _place(page, task.space, task.fault)


def _place_twin(task: Task, page: Page, index: int) -> None:
    """Fork write-protects an entry of the parent, then fills that of the child."""
    if task.protected is not None and task.caller == "copy_page_range":
        parent, at = task.protected
        if at == index and parent is not page:
            _place(parent, task.space, page.va(index))
    task.protected = None


# ---------------------------------------------------------------------- tables
@on("xen_mmu_set_pmd", "xen_mmu_set_pud", "xen_mmu_set_p4d")
def set_upper(s: State, line: Line) -> None:
    """A store to an upper entry; after an allocation it hooks the new table in."""
    f = line.fields()
    name = line.event.removeprefix("xen_mmu_set_")
    op = Op[f"SET_{name.upper()}"]
    level = SET_UPPER_OPS.index(op) + 2
    frame, index = s.cell(line, f, f"{name}p")
    raw, task = s.number(line, f, f"{name}val"), s.task(line.pid)
    child = task.alloc if raw & 1 and task.alloc and task.alloc.level == level - 1 else None
    page = _upper_table(s, task, frame, level, child)
    if child is not None:
        _hook_in(s, task, page, index, child, raw)
        task.alloc = None
    value, flags = s.guest_value(raw, child)
    flags |= s.old_flags(page, index)
    s.add(op, line, page=page, index=index, value=value, flags=flags)
    page.entries[index] = value


def _upper_table(s: State, task: Task, frame: int, level: int, child: Page | None) -> Page:
    """Return the table that an upper entry is in; a top-level one is first heard of here."""
    if level == 4 and frame in s.pages:
        owner = s.pages[frame].space
        if owner is not None and owner.root() in s.exited:
            s.forget(owner.root())  # freed unseen, or taken for another: here it is used anew
    if level < 4 or frame in s.pages:
        return s.page(frame, level)
    space = child.space if child and child.space else task.exit.space if task.exit else task.space
    return s.root_table(space.root(), frame)


def _hook_in(s: State, task: Task, page: Page, index: int, child: Page, raw: int) -> None:
    """`child` becomes the table below an entry of `page`; each tells of the other."""
    if page.level < 4:  # a P4D's value is recorded before its frame is translated
        s.frame_of_machine[(raw & FRAME_MASK) >> PAGE_SHIFT] = child.frame
    _place(page, child.space, task.fault)
    base = page.va(index)
    child.base = None if base is None else base & (1 << 48) - 1


@on("fn:pte_alloc_one", "fn:__pmd_alloc", "fn:__pud_alloc")
def new_page(s: State, line: Line) -> None:
    """The next table that the task hooks in is a new page, not one that it moves."""
    s.task(line.pid).fresh = True


@on("xen_mmu_alloc_ptpage")
def alloc(s: State, line: Line) -> None:
    """A page becomes a table (or, when mremap moves a whole table, is one already)."""
    f = line.fields()
    task, frame, level = s.task(line.pid), s.number(line, f, "pfn"), _level(s, line, f)
    space = s.space_of(s.number(line, f, "mm"), task)
    known = s.pages.get(frame)
    again = known is not None and known.level == level
    again = again or (task.caller == "move_page_tables" and not task.fresh)
    page = Page(frame, level, space, born=not again)
    if known is not None and again:  # the same table at another address
        page.born, page.entries = known.born, known.entries
    s.pages[frame] = task.alloc = page
    task.fresh = False
    s.add(
        ALLOC_OPS[level - 1], line, page=page, space=space, place=Evidence.RECORDED,
        flags=int(Flag.ALREADY_TABLE) if again else 0,
    )  # fmt: skip


@on("xen_mmu_release_ptpage")
def release(s: State, line: Line) -> None:
    """A table becomes a page again."""
    f = line.fields()
    frame, level = s.number(line, f, "pfn"), _level(s, line, f)
    task = s.task(line.pid)
    page = s.pages.pop(frame, None) or Page(frame, level)
    _place(page, task.exit.space if task.exit else task.space, None)
    s.add(RELEASE_OPS[level - 1], line, page=page)


def _level(s: State, line: Line, f: dict[str, str]) -> int:
    """Return our level (1 = PTE table) of the kernel's number."""
    level = f.get("level")
    if level not in _LEVEL:
        where = f"{s.where}:{line.number}"
        raise RecordingError(f"{where}: {line.event} has level={level!r}, not 1 to 4")
    return _LEVEL[level]
