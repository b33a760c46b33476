"""What if the kernel had asked otherwise: recorded streams with other brackets.

A trace holds the lazy MMU brackets that its kernel opened. What other kernels do with brackets, or
might do, can be tried on a recorded stream, because it changes brackets and no operation:

* `bracket_fault_around`: what one fault maps around it (``do_set_pte``, later ``set_pte_range``:
  Linux 6.1 and 6.12 store these entries one by one outside of brackets);
* `bracket_vmap`: entries of the kernel's own mappings, which vmalloc makes and removes (since Linux
  6.16, 44562c71e2cf);
* `with_set_ptes`: the bracket that ``set_ptes`` had from Linux 6.6 to 6.14 (bcc6cc832573,
  691ee97e1a9d), for folios of one page or more; within another bracket it nests, and its end sends
  what is queued;
* `join_brackets`: one bracket over neighbouring tables. No kernel has it and nobody proposed it: it
  would be held across the unlock of a table, so that other CPUs read entries that have not taken
  effect. (Brackets that nest, 5ab246749569, are something else: an inner bracket becomes legal, and
  none becomes larger.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np

from pvmmu.errors import TraceError
from pvmmu.guest.provenance import Provenance
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import COLUMNS, ENTRY_OPS, Evidence, Flag, Op

#: Functions that store the entries of a fault-around, 6.1 and later.
FAULT_AROUND: Final = ("do_set_pte", "set_pte_range")
#: Functions that store an entry without set_pte_at (x86: set_pte).
_DIRECT: Final = ("ptep_set_access_flags",)
_OPEN, _CLOSE = (Op.LAZY_ENTER, Op.LAZY_RESUME), (Op.LAZY_LEAVE, Op.LAZY_PAUSE)
#: Where a 32-bit kernel maps a page for a moment (a fixed mapping); bits of a frame number.
_KMAP: Final = 0xFFF7_0000
_FRAMES: Final = (1 << 40) - 1
#: Operations that end what the kernel does at a stretch, and before which updates must be visible.
_BOUNDARIES: Final = (
    Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.FLUSH_OTHERS, Op.SEND_IPI, Op.LOAD_CR3,
    Op.SWITCH_START, Op.SWITCH_END, Op.FAULT, Op.KERNEL_ENTRY, Op.KERNEL_EXIT, Op.PREEMPT,
    Op.DUP_MMAP, Op.ACTIVATE_MM, Op.EXIT_MMAP, Op.PGD_ALLOC, Op.PGD_FREE, Op.MARK,
)  # fmt: skip


def bracket_runs(trace: Trace, wanted: np.ndarray, name: str) -> Trace:
    """Return a trace with a bracket around each run of two or more of some rows.

    Parameters
    ----------
    trace : Trace
        A stream.
    wanted : bool[row]
        Rows that a bracket may hold; one that is in a bracket already stays there. A run is of one
        CPU and one address space, and ends at any other row.
    name : str
        Added to the trace's name.
    """
    mine = wanted & ~in_bracket(trace)
    joined = mine[1:] & mine[:-1]
    for column in ("cpu", "mm"):
        joined &= trace[column][1:] == trace[column][:-1]
    first = mine & ~np.concatenate([[False], joined])
    last = mine & ~np.concatenate([joined, [False]])
    starts, stops = np.flatnonzero(first), np.flatnonzero(last)
    long = stops > starts
    return _with_brackets(trace, starts[long], stops[long], name)


def bracket_fault_around(trace: Trace) -> Trace:
    """Return `trace` with a bracket around what one fault maps (`FAULT_AROUND`)."""
    known = [i for i, c in enumerate(trace.callers) if c in FAULT_AROUND]
    wanted = (trace["op"] == Op.SET_PTE) & np.isin(trace["caller"], known)
    return bracket_runs(trace, wanted, "fault-around batched")


def bracket_vmap(trace: Trace) -> Trace:
    """Return `trace` with brackets around changes of the kernel's own mappings."""
    entry = np.isin(trace["op"], [int(o) for o in ENTRY_OPS])
    return bracket_runs(trace, entry & (trace["mm"] == 0), "vmap batched")


def with_set_ptes(
    trace: Trace, pages: int = 1, inner: str = "sends", name: str = "set_ptes bracketed"
) -> Trace:
    """Return a trace of a kernel whose ``set_ptes`` has a bracket of its own (Linux 6.6 to 6.14).

    Parameters
    ----------
    trace : Trace
        A stream of a kernel whose ``set_pte_at`` opens none.
    pages : int
        Pages of a folio of the page cache: so many entries that one fault maps go in by one call.
    inner : str
        What the end of a bracket within another does: ``sends`` what is queued (Xen's backend of
        those kernels; the rule since 7.0), or ``keeps`` it (no kernel's rule).
    name : str
        Added to the trace's name.

    Raises
    ------
    TraceError
        `pages` is not positive, or `inner` neither of the two.
    """
    if pages < 1 or inner not in ("sends", "keeps"):
        raise TraceError(f"pages={pages}, inner={inner!r}: at least 1; 'sends' or 'keeps'")
    by = np.array([*trace.callers, ""])[trace["caller"]]
    mine = (trace["op"] == Op.SET_PTE) & ~np.isin(by, _DIRECT)
    page = trace["va"].astype(np.int64) >> 12
    joined = mine[1:] & mine[:-1] & np.isin(by, FAULT_AROUND)[1:]
    joined &= (page[1:] == page[:-1] + 1) & (page[1:] // pages == page[:-1] // pages)
    for column in ("cpu", "mm"):
        joined &= trace[column][1:] == trace[column][:-1]
    starts = np.flatnonzero(mine & ~np.concatenate([[False], joined]))
    stops = np.flatnonzero(mine & ~np.concatenate([joined, [False]]))
    nested = in_bracket(trace)[starts]
    out, behind = ~nested, nested & (inner == "sends")
    return _inserted(
        trace,
        np.concatenate([stops[out] + 1, stops[behind] + 1, stops[behind] + 1, starts[out]]),
        np.repeat(
            [Op.LAZY_LEAVE, Op.LAZY_LEAVE, Op.LAZY_ENTER, Op.LAZY_ENTER],
            [out.sum(), behind.sum(), behind.sum(), out.sum()],
        ),
        np.concatenate([stops[out], stops[behind], stops[behind], starts[out]]),
        name,
    )


def join_brackets(trace: Trace) -> Trace:
    """Return `trace` with neighbouring brackets as one, where nothing between them forbids it.

    Hypothetical, and unsafe where a table is unlocked between them (see the module): such rows bear
    `Flag.UNLOCKS`.
    """
    op, keep, flags = trace["op"], np.ones(len(trace), np.bool_), trace["flags"].copy()
    matters = np.isin(op, (*_OPEN, *_CLOSE, *_BOUNDARIES))
    for cpu in range(trace.platform.vcpus):
        rows = np.flatnonzero(matters & (trace["cpu"] == cpu))
        closed, opened = rows[:-1], rows[1:]
        same = np.isin(op[closed], _CLOSE) & np.isin(op[opened], _OPEN)
        same &= trace["mm"][closed] == trace["mm"][opened]
        keep[closed[same]] = keep[opened[same]] = False
        mine = np.flatnonzero(trace["cpu"] == cpu)
        before = np.searchsorted(mine, closed[same]) - 1
        flags[mine[before]] |= np.uint16(Flag.UNLOCKS)
    columns = {c: trace[c][keep] for c in COLUMNS} | {"flags": flags[keep]}
    return Trace(columns, trace.mms, trace.callers, _renamed(trace, "brackets joined"))


#: Other brackets, by name; in this order, if several.
REWRITES: Final[dict[str, Callable[[Trace], Trace]]] = {
    "fault-around": bracket_fault_around, "vmap": bracket_vmap, "joined": join_brackets,
}  # fmt: skip


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


def in_bracket(trace: Trace) -> np.ndarray:
    """Return the rows of `trace` whose CPU is in a bracket: bool[row]."""
    out, step = np.zeros(len(trace), np.bool_), np.zeros(len(trace), np.int64)
    step[np.isin(trace["op"], _OPEN)], step[np.isin(trace["op"], _CLOSE)] = 1, -1
    for cpu in range(trace.platform.vcpus):
        here = trace["cpu"] == cpu
        out[here] = np.cumsum(step[here]) > 0
    return out


def _with_brackets(trace: Trace, starts: np.ndarray, stops: np.ndarray, name: str) -> Trace:
    """Return a trace with a bracket around each stretch of rows."""
    ops = np.repeat([Op.LAZY_LEAVE, Op.LAZY_ENTER], len(starts))
    return _inserted(
        trace, np.concatenate([stops + 1, starts]), ops, np.concatenate([stops, starts]), name
    )


def _inserted(trace: Trace, at: np.ndarray, ops: np.ndarray, like: np.ndarray, name: str) -> Trace:
    """Return a trace with ends of brackets before the rows `at`, each `like` another row.

    Those for one place keep their order: a bracket opens after the one before it is closed.
    """
    order = np.argsort(at, kind="stable")
    columns = {}
    for column, (dtype, default, _) in COLUMNS.items():
        if column in ("cpu", "task", "mm", "tsc", "place", "caller"):
            values = trace[column][like]
        elif column == "op":
            values = ops
        else:
            values = np.full(len(at), Evidence.MODELLED if column == "evidence" else default)
        columns[column] = np.insert(trace[column], at[order], values[order].astype(dtype))
    return Trace(columns, trace.mms, trace.callers, _renamed(trace, name))


def _renamed(trace: Trace, name: str) -> Provenance:
    return dataclasses.replace(trace.provenance, source=f"{trace.name}, {name}")
