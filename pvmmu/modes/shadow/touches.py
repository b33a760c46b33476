"""Touches of memory that a trace does not have, taken from its faults.

A recording has faults but no touches. After a fault the program makes its access again: when the
kernel has returned to it. Kernels record no row for that; it is taken to happen before the next
thing that the program, not the kernel's fault handler, brings about.
"""

from __future__ import annotations

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import COLUMNS, Flag, Op
from pvmmu.x86 import bits

#: What the fault handler does not do: before these rows the access has been made again.
_LATER = (
    Op.FAULT, Op.KERNEL_ENTRY, Op.KERNEL_EXIT, Op.SWITCH_START, Op.PGD_ALLOC, Op.DUP_MMAP,
    Op.ACTIVATE_MM, Op.EXIT_MMAP, Op.PGD_FREE, Op.LOAD_CR3, Op.MARK,
)  # fmt: skip
_WRITE, _FETCH, _KERNEL = 1, 2, 4


def with_touches(trace: Trace) -> tuple[Trace, np.ndarray]:
    """Return a trace with touches, and for each of its rows the row of the original.

    Parameters
    ----------
    trace : Trace
        If it has touches, it is returned as it is.

    Returns
    -------
    (Trace, int64[row])
    """
    op = trace["op"]
    faults = np.flatnonzero(op == Op.FAULT)
    if len(faults) == 0 or (op == Op.TOUCH).any():
        return trace, np.arange(len(trace))
    if "with touches" not in trace.derived:
        trace.derived["with touches"] = _insert(trace, faults)
    out: tuple[Trace, np.ndarray] = trace.derived["with touches"]
    return out


def _insert(trace: Trace, faults: np.ndarray) -> tuple[Trace, np.ndarray]:
    """Insert a touch behind each fault, before the next row that is later on its CPU."""
    before = np.full(len(faults), len(trace), np.int64)
    for cpu in np.unique(trace["cpu"]):
        later = np.flatnonzero(np.isin(trace["op"], _LATER) & (trace["cpu"] == cpu))
        mine = trace["cpu"][faults] == cpu
        at = np.searchsorted(later, faults[mine] + 1)
        before[mine] = np.append(later, len(trace))[at]
    order = np.concatenate([np.arange(len(trace)), faults])
    place = np.concatenate([np.arange(len(trace)) + 0.5, before + 0.0])
    order_of = np.argsort(place, kind="stable")
    source = order[order_of]
    new = order_of >= len(trace)
    columns = {name: trace[name][source] for name in COLUMNS}
    code = columns["value"][new]
    kernel = (columns["flags"][new] & Flag.KERNEL_FAULT) != 0
    how = ((code & np.uint64(bits.PF_WR)) != 0) * _WRITE
    how += ((code & np.uint64(bits.PF_ID)) != 0) * _FETCH + kernel * _KERNEL
    columns["op"] = np.where(new, np.uint8(Op.TOUCH), columns["op"])
    columns["value"][new] = how.astype(np.uint64)
    return Trace(columns, trace.mms, trace.callers, trace.provenance), source
