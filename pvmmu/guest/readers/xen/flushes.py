"""Flushes, and the brackets that allow updates to be queued."""

from __future__ import annotations

from typing import Any

from pvmmu.guest.readers.xen.identity import PAGE_SHIFT
from pvmmu.guest.readers.xen.missing import ENTER, INFERRED, LEAVE
from pvmmu.guest.readers.xen.state import Row, State, on
from pvmmu.guest.readers.xen.text import Line
from pvmmu.guest.vocabulary import Evidence, Flag, Op

#: TLB_FLUSH_ALL (arch/x86/include/asm/tlbflush.h).
_ALL_PAGES = 0xFFFF_FFFF_FFFF_FFFF
#: TLB_FLUSH_ON_TASK_SWITCH (include/linux/mm_types.h): the flush that a CR3 load implies.
_TASK_SWITCH = 0


@on("fn:flush_tlb_mm_range")
def flush_range(s: State, line: Line) -> None:
    """The decision to flush; how much, the flush that follows will say."""
    task = s.task(line.pid)
    s.flush[line.cpu] = s.add(
        Op.FLUSH_RANGE, line, space=task.exit.space if task.exit else task.space, count=0,
        caller=line.fields().get("caller"), place=Evidence.INFERRED,
    )  # fmt: skip


def _of_decision(decision: Row | None) -> dict[str, Any]:
    """Return address space and evidence of a flush that carries out a decision."""
    if decision is None:
        return {"place": Evidence.UNKNOWN}
    return {"space": decision.space, "place": Evidence.INFERRED}


@on("xen_mmu_flush_tlb_one_user")
def flush_one(s: State, line: Line) -> None:
    """One page is invalidated on this CPU."""
    va = s.number(line, line.fields(), "addr")
    decision = s.flush.get(line.cpu)
    if decision is not None and decision.va is None:
        decision.va = va
    s.add(Op.FLUSH_ONE, line, va=va, **_of_decision(decision))


@on("tlb_flush")
def flushed(s: State, line: Line) -> None:
    """End of a flush on this CPU; a full one leaves no other trace."""
    f = line.fields()
    if s.number(line, f, "reason") == _TASK_SWITCH:
        return
    decision = s.flush.pop(line.cpu, None)
    pages = s.number(line, f, "pages")
    if decision is not None:
        decision.count = -1 if pages == _ALL_PAGES else pages
    if pages == _ALL_PAGES:
        s.add(Op.FLUSH_USER, line, **_of_decision(decision))


@on("fn:flush_tlb_all")
def flush_all(s: State, line: Line) -> None:
    """Kernel mappings changed: global entries go, too."""
    s.add(Op.FLUSH_KERNEL, line, space=s.kernel, place=Evidence.RECORDED)


@on("xen_mmu_flush_tlb_multi")
def flush_multi(s: State, line: Line) -> None:
    """One call flushes several CPUs; natively, interrupts and a flush on each stand behind it."""
    f = line.fields()
    cpus, va, end = (s.number(line, f, name) for name in ("ncpus", "addr", "end"))
    pointer = s.number(line, f, "mm")
    space = s.space_of(pointer, s.task(line.pid)) if pointer else s.kernel
    pages = -1 if end == _ALL_PAGES else max(1, (end - va) >> PAGE_SHIFT)
    decision = s.flush.pop(line.cpu, None)
    if decision is not None:
        decision.count, decision.va, decision.space = pages, va, space
    s.add(
        Op.FLUSH_OTHERS, line, space=space, va=va, count=cpus, value=pages & _ALL_PAGES,
        place=Evidence.RECORDED,
    )  # fmt: skip
    behind = {
        "space": space,
        "flags": int(Flag.NATIVE_ONLY),
        "evidence": Evidence.INFERRED,
        "place": Evidence.INFERRED,
    }
    s.add(Op.SEND_IPI, line, count=max(0, cpus - 1), **behind)
    if pages < 0:
        s.add(Op.FLUSH_USER, line, count=cpus, **behind)
    for i in range(pages):
        s.add(Op.FLUSH_ONE, line, va=va + (i << PAGE_SHIFT), count=cpus, **behind)


@on(*ENTER, *LEAVE)
def lazy(s: State, line: Line) -> None:
    """Lazy MMU enter and leave, under the names that this kernel gives them.

    In 6.1 Xen's own leave function calls the generic one, so that both are recorded; the family of
    the first enter counts.
    """
    family = line.event[3:].split("_", 1)[0]
    enters = line.event in ENTER
    if s.lazy_family is None and enters:
        s.lazy_family = family
    if family != s.lazy_family or enters == (line.cpu in s.lazy_open):
        return
    # A bracket is suspended while its task is switched out: such records still name the old task.
    switching = line.cpu in s.switching and line.pid != s.running[line.cpu]
    task = s.task(line.pid)
    space = task.exit.space if task.exit else task.space
    if enters:
        s.lazy_open.add(line.cpu)
        op = Op.LAZY_RESUME if switching else Op.LAZY_ENTER
        caller = line.fields().get("caller")
        evidence = Evidence.INFERRED if INFERRED in line.rest else Evidence.RECORDED
        row = s.add(
            op, line, space=space, place=Evidence.INFERRED, caller=caller, evidence=evidence
        )
        if task.exit:
            cleared: list[Row] = []  # to be filled when the tear-down is complete
            s.rows.append(cleared)
            task.exit.brackets.append((task.exit.vmas, row, cleared))
    else:
        s.lazy_open.discard(line.cpu)
        op = Op.LAZY_PAUSE if switching else Op.LAZY_LEAVE
        s.add(op, line, space=space, place=Evidence.INFERRED)
