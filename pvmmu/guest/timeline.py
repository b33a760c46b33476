"""What a trace does, in a form for readers: lanes of a timeline, counts by operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.guest.trace import OPS, Op, Trace
from pvmmu.guest.vocabulary import RMW_OPS

#: Lanes of a timeline, top first: title -> operations.
LANES: Final[dict[str, tuple[Op, ...]]] = {
    "moments": (Op.MARK, Op.PGD_ALLOC, Op.DUP_MMAP, Op.ACTIVATE_MM, Op.EXIT_MMAP, Op.PGD_FREE),
    "fault": (Op.FAULT,),
    "switch, CR3": (Op.SWITCH_START, Op.LOAD_CR3),
    "upper tables": (
        Op.SET_PMD, Op.SET_PUD, Op.SET_P4D, Op.SET_PGD, Op.ALLOC_PTE, Op.ALLOC_PMD, Op.ALLOC_PUD,
        Op.ALLOC_P4D, Op.RELEASE_PTE, Op.RELEASE_PMD, Op.RELEASE_PUD, Op.RELEASE_P4D,
    ),
    "set_pte": (Op.SET_PTE, Op.PTE_CLEAR),
    "clear": (Op.PTE_GET_AND_CLEAR,),
    "wrprotect": (Op.PTE_WRPROTECT,),
    "young, other RMW": (Op.PTE_CLEAR_YOUNG, Op.PTE_RMW),
    "modify_prot": (Op.MODIFY_PROT_START, Op.MODIFY_PROT_COMMIT),
    "flush": (Op.FLUSH_ONE, Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.FLUSH_OTHERS),
}  # fmt: skip
#: Left out of timelines: what follows from the rows beside it, or is no change of tables.
_HIDDEN: Final = (
    Op.READ_CR2, Op.ZERO_TABLE, Op.SWITCH_END, Op.KERNEL_ENTRY, Op.KERNEL_EXIT, Op.FLUSH_RANGE,
    Op.SEND_IPI, Op.TOUCH, Op.MAP_TABLE,
)  # fmt: skip
_OPEN, _CLOSE = (Op.LAZY_ENTER, Op.LAZY_RESUME), (Op.LAZY_LEAVE, Op.LAZY_PAUSE)


@dataclass(frozen=True)
class Timeline:
    """A trace as lanes.

    Parameters
    ----------
    steps : int
        Length: operations that are shown.
    lanes : dict of str to int64[n]
        Where (0 to steps - 1) each lane has an operation.
    brackets : int64[n, 2]
        First and last step of each lazy MMU bracket.
    phases : list of (int, int)
        Step and number of each mark.
    """

    steps: int
    lanes: Mapping[str, np.ndarray]
    brackets: np.ndarray
    phases: list[tuple[int, int]]


def timeline(trace: Trace) -> Timeline:
    """Return `trace` as lanes of a timeline; one step for each operation that is shown."""
    op = trace["op"]
    shown = ~np.isin(op, _HIDDEN)
    step = np.cumsum(shown) - 1
    lanes = {name: step[np.isin(op, ops)] for name, ops in LANES.items()}
    marks = np.flatnonzero(op == Op.MARK)
    phases = [(int(step[i]), int(trace["value"][i])) for i in marks]
    pairs = []
    for cpu in range(trace.platform.vcpus):
        here = trace["cpu"] == cpu
        first = step[here & np.isin(op, _OPEN)]
        last = step[here & np.isin(op, _CLOSE)]
        pairs.append(np.stack([first[: len(last)], last[: len(first)]], axis=1))
    return Timeline(int(shown.sum()), lanes, np.concatenate(pairs), phases)


def operation_counts(traces: Mapping[str, Trace]) -> pd.DataFrame:
    """Return how often each operation occurs in some traces.

    Parameters
    ----------
    traces : mapping of str to Trace
        Column titles and traces.

    Returns
    -------
    DataFrame
        int64; one row per operation that any of them has, in the order of the vocabulary.
    """
    columns = {}
    for title, trace in traces.items():
        ops, numbers = np.unique(trace["op"], return_counts=True)
        columns[title] = pd.Series(numbers, index=[Op(o).name for o in ops])
    table = pd.DataFrame(columns).fillna(0).astype(np.int64)
    return table.loc[[op.name for op in OPS if op.name in table.index]]


def rmw_share(trace: Trace) -> float:
    """Return which share of the changes of leaf entries in `trace` are read-modify-writes."""
    rmw = np.isin(trace["op"], RMW_OPS).sum()
    stores = np.isin(trace["op"], (Op.SET_PTE, Op.PTE_CLEAR, Op.MODIFY_PROT_COMMIT)).sum()
    return float(rmw / max(1, rmw + stores))
