"""What if the kernel had asked otherwise: recorded streams with other brackets.

A trace holds the brackets that its kernel opened. Two proposals for more batching can be tried on a
recorded stream without another kernel, because they change brackets only and no operation:

* `bracket_runs`: lazy MMU brackets where there are none, such as around the entries that one fault
  maps around it (``do_set_pte``, later ``set_pte_range``: Linux 6.1 and 6.12 store them one by one
  outside of brackets);
* `join_brackets`: brackets that may nest (2025), so that an outer one spans what is now a bracket
  for each PTE table. Where something between two brackets must find all updates visible, the outer
  one would have to pause, so that they stay two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np

from pvmmu.guest.provenance import Provenance
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import COLUMNS, Evidence, Op

#: Functions that store the entries of a fault-around, 6.1 and later.
FAULT_AROUND: Final = ("do_set_pte", "set_pte_range")
_OPEN, _CLOSE = (Op.LAZY_ENTER, Op.LAZY_RESUME), (Op.LAZY_LEAVE, Op.LAZY_PAUSE)
#: Where a 32-bit kernel maps a page for a moment (a fixed mapping); bits of a frame number.
_KMAP: Final = 0xFFF7_0000
_FRAMES: Final = (1 << 40) - 1
#: Operations after which, or before which, all updates must be visible.
_VISIBLE: Final = (
    Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.FLUSH_OTHERS, Op.SEND_IPI, Op.LOAD_CR3,
    Op.SWITCH_START, Op.FAULT, Op.KERNEL_EXIT, Op.PREEMPT, Op.DUP_MMAP, Op.ACTIVATE_MM,
    Op.EXIT_MMAP, Op.PGD_ALLOC, Op.PGD_FREE, Op.MARK,
)  # fmt: skip


def bracket_runs(
    trace: Trace, callers: Sequence[str] = FAULT_AROUND, name: str = "fault-around batched"
) -> Trace:
    """Return a trace with brackets around runs of stores that some functions make.

    Parameters
    ----------
    trace : Trace
        A stream.
    callers : sequence of str
        Functions whose SET_PTE operations are to be bracketed, two or more in a row on one CPU and
        in one address space, where no bracket is open.
    name : str
        Added to the trace's name.
    """
    known = [i for i, c in enumerate(trace.callers) if c in callers]
    mine = (trace["op"] == Op.SET_PTE) & np.isin(trace["caller"], known) & ~_in_bracket(trace)
    joined = mine[1:] & mine[:-1]
    for column in ("cpu", "mm"):
        joined &= trace[column][1:] == trace[column][:-1]
    first = mine & ~np.concatenate([[False], joined])
    last = mine & ~np.concatenate([joined, [False]])
    starts, stops = np.flatnonzero(first), np.flatnonzero(last)
    long = stops > starts
    return _with_brackets(trace, starts[long], stops[long], name)


def join_brackets(trace: Trace, name: str = "brackets joined") -> Trace:
    """Return a trace whose neighbouring brackets are one, where nothing between them forbids it.

    Parameters
    ----------
    trace : Trace
        A stream.
    name : str
        Added to the trace's name.
    """
    op, keep = trace["op"], np.ones(len(trace), np.bool_)
    barrier = np.cumsum(np.isin(op, _VISIBLE))
    for cpu in range(trace.platform.vcpus):
        at = np.flatnonzero((trace["cpu"] == cpu) & np.isin(op, (*_OPEN, *_CLOSE)))
        close, opened = at[1:-1:2], at[2::2]  # brackets of one CPU alternate
        same = (barrier[close] == barrier[opened]) & (trace["mm"][close] == trace["mm"][opened])
        keep[close[same]] = keep[opened[same]] = False
    columns = {c: trace[c][keep] for c in COLUMNS}
    return Trace(columns, trace.mms, trace.callers, _renamed(trace, name))


def with_high_memory(trace: Trace, name: str = "high memory") -> Trace:
    """Return a trace of a kernel whose pages are all in high memory.

    The kernel maps a page that it clears for a fault, and both pages that it copies, for a moment
    (kmap_atomic, kunmap_atomic; XenLinux clears the entry again at once): an entry of the kernel is
    stored before the fault's own and cleared behind it.

    Parameters
    ----------
    trace : Trace
        A stream.
    name : str
        Added to the trace's name.
    """
    maps = _pages_mapped(trace)
    times = np.repeat(np.arange(len(trace)), 2 * maps)
    second = (
        np.arange(len(times)) - np.repeat(np.cumsum(2 * maps) - 2 * maps, 2 * maps) >= maps[times]
    )
    new = {
        "op": np.where(second, Op.PTE_CLEAR, Op.SET_PTE),
        "mm": np.zeros(len(times)),
        "va": np.full(len(times), _KMAP, np.uint64),
        "table": np.full(len(times), trace["table"].max(initial=0) + 1),
        "index": np.full(len(times), _KMAP >> 12 & 511),
        "value": np.where(second, 0, 0x63),
        "evidence": np.full(len(times), Evidence.MODELLED),
    }
    columns = {}
    for column, (dtype, default, _) in COLUMNS.items():
        if column in ("cpu", "task", "tsc", "place"):
            values = trace[column][times]
        else:
            values = new.get(column, np.full(len(times), default))
        columns[column] = np.insert(trace[column], times, values.astype(dtype))
    return Trace(columns, trace.mms, trace.callers, _renamed(trace, name))


def _pages_mapped(trace: Trace) -> np.ndarray:
    """Return for each row how many pages the kernel maps for it: int64[row]."""
    by = np.array([*trace.callers, ""])[trace["caller"]]
    frame = trace["value"] >> 12 & _FRAMES
    out = np.zeros(len(trace), np.int64)
    held: dict[tuple[int, int], int] = {}
    writable = trace["value"] & 2 != 0
    for row in np.flatnonzero(np.isin(trace["op"], (Op.SET_PTE, Op.PTE_RMW))).tolist():
        at = int(trace["mm"][row]), int(trace["va"][row]) >> 12
        if by[row] == "do_anonymous_page" and writable[row]:
            out[row] = 1
        else:
            copies = trace["op"][row] == Op.PTE_RMW and held.get(at, frame[row]) != frame[row]
            out[row] = 2 * (copies or (by[row] == "__do_fault" and writable[row]))
        held[at] = int(frame[row])
    return out


def _in_bracket(trace: Trace) -> np.ndarray:
    """Return the rows whose CPU is in a bracket."""
    out, step = np.zeros(len(trace), np.bool_), np.zeros(len(trace), np.int64)
    step[np.isin(trace["op"], _OPEN)], step[np.isin(trace["op"], _CLOSE)] = 1, -1
    for cpu in range(trace.platform.vcpus):
        here = trace["cpu"] == cpu
        out[here] = np.cumsum(step[here]) > 0
    return out


def _with_brackets(trace: Trace, starts: np.ndarray, stops: np.ndarray, name: str) -> Trace:
    """Return a trace with a bracket around each stretch of rows."""
    # where a stretch follows another at once, its bracket opens after the other one's is closed
    at = np.concatenate([stops + 1, starts])
    order = np.argsort(at, kind="stable")
    new = {
        "op": np.repeat([Op.LAZY_LEAVE, Op.LAZY_ENTER], len(starts)),
        "evidence": np.full(len(at), Evidence.MODELLED),
    }
    like = np.concatenate([stops, starts])
    columns = {}
    for column, (dtype, default, _) in COLUMNS.items():
        if column in ("cpu", "task", "mm", "tsc", "place", "caller"):
            values = trace[column][like]
        else:
            values = new.get(column, np.full(len(at), default))
        columns[column] = np.insert(trace[column], at[order], values[order].astype(dtype))
    return Trace(columns, trace.mms, trace.callers, _renamed(trace, name))


def _renamed(trace: Trace, name: str) -> Provenance:
    return dataclasses.replace(trace.provenance, source=f"{trace.name}, {name}")
