"""Reader of recordings: a real Xen PV guest's operations, rebuilt from its kernel's events.

Input is a merged text of kernel events and hypervisor records, one a line (`recording.text`).
Of the many events in such a file only these are input; `EVENTS` lists them by name:

* marks (``MARK s=P0``), ``page_fault_user``, ``page_fault_kernel``, ``sched_switch``,
  ``sched_process_fork``, ``tlb_flush``;
* tracepoints ``xen_mmu_*`` (``set_pte``, ``ptep_modify_prot_start`` and ``_commit``, ``set_pmd``,
  ``set_pud``, ``set_p4d``, ``alloc_ptpage``, ``release_ptpage``, ``pgd_pin``, ``pgd_unpin``,
  ``write_cr3``, ``flush_tlb_one_user``, ``flush_tlb_multi``), without their ``pinned=`` field;
* function tracer lines of generic mm (``fn:copy_page_range`` ...) and of lazy MMU enter and leave;
* hypervisor records ``PTWR_EMULATION``, the only witnesses of unhooked read-modify-writes.

What left no record is inferred and marked so: the clears of exit_mmap, the interrupts behind a
flush of several CPUs, reads of CR2, the address space and address of entries whose record names
only the entry. See ``data/traces/README.md`` for a recipe to record a guest of one's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from pvmmu.errors import PvmmuError, RecordingError, TraceError
from pvmmu.guest.readers.xen import entries, flushes, spaces
from pvmmu.guest.readers.xen.identity import Page, Space, canonical
from pvmmu.guest.readers.xen.missing import with_inferred
from pvmmu.guest.readers.xen.state import CALLERS, Row, State, handled
from pvmmu.guest.readers.xen.text import Line, read_lines
from pvmmu.guest.trace import Mm, Platform, Provenance, Trace
from pvmmu.guest.vocabulary import COLUMNS, Evidence, Flag

_HANDLER_MODULES = (entries, flushes, spaces)  # importing them registers their handlers
#: Names of the events that are input (hypervisor records begin with ``X``).
EVENTS = sorted({*handled(), *(f"fn:{name}" for name in CALLERS)})


def read_recording(
    path: str | os.PathLike[str], *, kernel: str = "6.1.192", recorder: str = "ftrace + xentrace"
) -> Trace:
    """Read a recording of a 64-bit Xen PV guest.

    Parameters
    ----------
    path : path-like
        Text, or text compressed as ``.gz`` or ``.xz``.
    kernel, recorder : str
        For the trace's provenance; the file does not say.

    Returns
    -------
    Trace
        In order of the recording; inferred rows stand where the kernel makes the operation.

    Raises
    ------
    RecordingError
        The file cannot be read, or a record lacks a field; names file and line.
    TraceError
        The operations do not fit together; names file and row.
    """
    return trace_of_lines(read_lines(path), path, kernel=kernel, recorder=recorder)


def trace_of_lines(
    lines: Iterable[Line],
    path: str | os.PathLike[str],
    *,
    kernel: str = "6.1.192",
    recorder: str = "ftrace + xentrace",
) -> Trace:
    """Rebuild a trace from records already read.

    Parameters
    ----------
    lines : iterable of Line
        The records, in order.
    path : path-like
        For provenance and errors.
    kernel, recorder : str
        For provenance: release of the guest, what recorded it.

    Raises
    ------
    RecordingError
        An event is missing that others imply (`pvmmu.guest.readers.xen.missing`); names it.
    TraceError
        The records contradict themselves; names file and row.
    """
    path = Path(path)
    state = _rebuild(with_inferred(lines, str(path)), str(path))
    notes = ("entries of Xen stripped of G and bit 52", "leaf frames are machine frames (MACHINE)")
    platform = Platform(
        guest="xen-pv", vcpus=state.vcpus, pse=False, pge=False, user_global=True,
        tables_by_rcu=True,
    )  # fmt: skip
    try:
        return _make_trace(state, Provenance(path.name, kernel, recorder, platform, notes))
    except TraceError as e:
        raise TraceError(f"{path}: {e}") from None


def _rebuild(lines: Iterable[Line], where: str) -> State:
    """Run the state machine over records; return its final state."""
    state, n = State(where), 0
    for line in lines:
        n += 1
        state.feed(line)
    for cpu in list(state.switching):
        state.end_switch(cpu)
    if not state.rows:
        raise RecordingError(
            f"{where}: no MMU operation among its {n} records (known events: see "
            f"pvmmu.guest.readers.xen.recording.EVENTS)"
        )
    return state


def _make_trace(state: State, provenance: Provenance) -> Trace:
    """Give every identity its number and return the trace."""
    rows = [r for item in state.rows for r in (item if isinstance(item, list) else [item])]
    number: dict[Space, int] = {state.kernel.root(): 0}
    callers = sorted({r.caller for r in rows if r.caller is not None})
    code: dict[str | None, int] = {None: -1} | {c: i for i, c in enumerate(callers)}
    columns: dict[str, list[int]] = {name: [] for name in COLUMNS}
    for r in rows:
        space, va, place = _placed(r)
        mm = -1 if space is None else number.setdefault(space, len(number))
        flags = int(r.flags)
        if r.page is not None and space is not None and r.current is not None:
            flags |= Flag.CURRENT_MM if space is r.current.root() else 0
        cells = (r.op, r.cpu, r.task, mm, r.page.frame if r.page else -1, r.index, va, r.value,
                 r.count, flags, code[r.caller], r.evidence, place, r.tsc)  # fmt: skip
        for column, cell in zip(columns.values(), cells, strict=True):
            column.append(int(cell))
    mms = tuple(Mm(_label(s, state), -1 if s.pgd is None else s.pgd, s.older) for s in number)
    return Trace(columns, mms, tuple(callers), provenance)


def _placed(r: Row) -> tuple[Space | None, int, Evidence]:
    """Return address space, address and how both are known."""
    space = r.space if r.space is not None else r.page.space if r.page else None
    space = None if space is None else space.root()
    va = r.va
    if va is None:
        va = _page_va(r.page, r.index)
    if r.place is not None:
        return space, canonical(va or 0), r.place
    if r.page is None:
        return space, va or 0, Evidence.RECORDED
    known = space is not None and va is not None
    return space, canonical(va or 0), Evidence.INFERRED if known else Evidence.UNKNOWN


def _page_va(page: Page | None, index: int) -> int | None:
    return None if page is None else page.va(max(index, 0))


def _label(space: Space, state: State) -> str:
    """Return the best name for an address space: the command that ran in it."""
    if space is state.kernel or not space.label.startswith("task "):
        return space.label
    for pid, task in state.tasks.items():
        if task.space.root() is space and task.comm:
            return f"{task.comm}[{pid}]"
    return space.label


def main(argv: Sequence[str] | None = None) -> int:
    """Convert recordings to traces (Parquet); return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pvmmu.guest.readers.xen.recording",
        description="Rebuild the MMU operations of recorded Xen PV guests; write one trace each.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="recording")
    parser.add_argument("-o", "--out", type=Path, default=Path(), help="folder for the traces")
    parser.add_argument("--kernel", default="6.1.192", help="version of the guest kernel")
    args = parser.parse_args(argv)
    status = 0
    for path in args.files:
        try:
            trace = read_recording(path, kernel=args.kernel)
            target = trace.save(args.out / f"{trace.name}.parquet")
        except PvmmuError as e:
            print(f"pvmmu.guest.readers.xen.recording: {e}", file=sys.stderr)
            status = 2
        else:
            print(f"{target}: {len(trace):,} operations")
    return status


if __name__ == "__main__":
    sys.exit(main())
