"""Bounds for what tear-down's inferred clears cost: which bracket each is in is not recorded.

The clears of exit_mmap leave no record (`pvmmu.guest.readers.xen.teardown`): their entries are
known, and so are the brackets, one for each VMA and table; which entry is cleared in which bracket
is inferred. Where a design sends them as requests, the number of calls depends on it.
"""

from __future__ import annotations

import numpy as np

from pvmmu.guest.rewrite import in_bracket
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import COLUMNS, Evidence, Op


def inferred_clears(trace: Trace) -> np.ndarray:
    """Return the rows of clears whose bracket is inferred: int64[n]."""
    rows = (trace["op"] == Op.PTE_GET_AND_CLEAR) & (trace["evidence"] == Evidence.INFERRED)
    return np.flatnonzero(rows & in_bracket(trace))


def fewest_and_most(trace: Trace) -> tuple[Trace, Trace]:
    """Return the trace with its inferred clears in as few brackets as can be, and in as many.

    Parameters
    ----------
    trace : Trace
        A recorded stream.

    Returns
    -------
    tuple of Trace
        Few: all clears of a table in the first of its brackets. Many: one in each bracket
        of its address space's tear-down, and what is left over in the last (a call takes 31).
    """
    clears = inferred_clears(trace)
    few, many = np.arange(len(trace), dtype=np.float64), np.arange(len(trace), dtype=np.float64)
    for mm in np.unique(trace["mm"][clears]).tolist():
        mine = clears[trace["mm"][clears] == mm]
        tables = trace["table"][mine]
        first = {int(t): int(mine[tables == t][0]) for t in np.unique(tables)}
        small = np.arange(1, len(mine) + 1) / (len(mine) + 2)  # keeps them in order
        few[mine] = [first[int(t)] for t in tables] + small
        enters = _enters(trace, mm)
        many[mine] = enters[np.minimum(np.arange(len(mine)), len(enters) - 1)] + small
    return _ordered(trace, few), _ordered(trace, many)


def _enters(trace: Trace, mm: int) -> np.ndarray:
    """Return where the brackets of an address space's tear-down begin: int64[bracket]."""
    exits = np.flatnonzero((trace["op"] == Op.EXIT_MMAP) & (trace["mm"] == mm))
    enters = np.flatnonzero((trace["op"] == Op.LAZY_ENTER) & (trace["mm"] == mm))
    return enters[enters > exits[0]] if len(exits) else enters


def _ordered(trace: Trace, key: np.ndarray) -> Trace:
    order = np.argsort(key, kind="stable")
    columns = {c: trace[c][order] for c in COLUMNS}
    return Trace(columns, trace.mms, trace.callers, trace.provenance)
