"""Counting events in a kernel, and noting which row caused them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pvmmu._jit import kernel
from pvmmu.modes.events import N_EVENTS


class Tally(NamedTuple):
    """Counts of a replay; ``log`` collects (row, event, amount, CPU) as far as it has room."""

    counts: np.ndarray  # int64[N_EVENTS]
    log: np.ndarray  # int64[n, 4]
    used: np.ndarray  # int64[2]: rows of the log, and the CPU on which things happen now


def new_tally(log_rows: int = 0) -> Tally:
    """Return a tally of nothing, with room for some rows of log."""
    return Tally(
        np.zeros(N_EVENTS, np.int64), np.zeros((log_rows, 4), np.int64), np.zeros(2, np.int64)
    )


@kernel
def emit(tally, row, event, amount):  # type: ignore[no-untyped-def]
    """Count an event and, where there is a log, note the row that caused it."""
    tally.counts[event] += amount
    at = tally.used[0]
    if at < tally.log.shape[0]:
        tally.log[at, 0], tally.log[at, 1], tally.log[at, 2] = row, event, amount
        tally.log[at, 3] = tally.used[1]
        tally.used[0] = at + 1
