"""Counting events in a kernel, and noting which row caused them."""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu._jit import lean
from pvmmu.modes.events import N_EVENTS

#: Elements of the counts after the events: rows of the log in use, and the CPU at work.
USED: Final = np.int64(N_EVENTS)
CPU: Final = np.int64(N_EVENTS + 1)


def new_counts() -> np.ndarray:
    """Return counts of nothing: int64[N_EVENTS + 2]."""
    return np.zeros(N_EVENTS + 2, np.int64)


def new_log(rows: int = 0) -> np.ndarray:
    """Return an empty log, int64[rows, 4]: (row, event, amount, CPU)."""
    return np.zeros((rows, 4), np.int64)


@lean
def emit(counts, log, row, event, amount):  # type: ignore[no-untyped-def]
    """Count an event and, as far as there is a log, note the row that caused it."""
    counts[event] += amount
    at = counts[USED]
    if at < log.shape[0]:
        log[at, 0], log[at, 1], log[at, 2], log[at, 3] = row, event, amount, counts[CPU]
        counts[USED] = at + 1


def totals(counts: np.ndarray) -> np.ndarray:
    """Return the events alone, int64[N_EVENTS], of `counts` (int64[N_EVENTS + 2])."""
    return counts[: len(counts) - 2]
