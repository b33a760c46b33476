"""What comes of a replay in some mode: counts, or the reason why the design cannot run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import ENTRY_OPS, Evidence
from pvmmu.modes.counters import USED, totals


@dataclass(frozen=True)
class Infeasible:
    """A design which cannot run: a result with a reason, never a number.

    Parameters
    ----------
    reason : str
        One clause for tables, such as "a new PTE table is never announced".
    row : int
        First row of the trace where it breaks; -1 where it is the design as such.
    """

    reason: str
    row: int = -1


@dataclass(frozen=True)
class Delays:
    """Which mechanisms of a mode take effect later than at their row.

    Parameters
    ----------
    waits : frozenset of int
        They may wait in a queue of their CPU, for the first event at their row or after it that
        sends the queue (`pvmmu.modes.events.EventInfo.sends`).
    written : frozenset of int
        Those of them whose entry the guest has written itself: what waits is the notification, so
        that a guest that reads the entry finds what it wrote.
    apart : frozenset of int
        Calls of their own that leave the queue alone.
    """

    waits: frozenset[int] = frozenset()
    written: frozenset[int] = frozenset()
    apart: frozenset[int] = frozenset()


#: Everything takes effect at its row.
AT_ONCE: Final = Delays()


@dataclass(frozen=True)
class Outcome:
    """What a replay in some mode counted.

    Parameters
    ----------
    low, high : int64[N_EVENTS]
        Counts; they differ only where the trace does not know how often an operation was made.
    mechanism : uint8[row]
        What carried each row, a key of `names`.
    names : mapping of int to str
        Names of the mechanisms, for readers.
    log : int64[n, 4]
        (row, event, amount, CPU) in order, if asked for.
    delays : Delays
        Which mechanisms may wait in a queue.
    """

    low: np.ndarray
    high: np.ndarray
    mechanism: np.ndarray
    names: Mapping[int, str] = field(repr=False)
    log: np.ndarray = field(repr=False)
    delays: Delays = field(repr=False, default=AT_ONCE)


def outcome(
    runs: list[tuple[np.ndarray, np.ndarray]],
    mechanism: np.ndarray,
    names: Mapping[int, str],
    delays: Delays = AT_ONCE,
) -> Outcome:
    """Return the outcome of a replay done once, or once with the least and once with the most.

    Parameters
    ----------
    runs : list of (int64[N_EVENTS + 2], int64[n, 4])
        Counts and log of each.
    mechanism, names, delays
        As in `Outcome`.
    """
    counts, log = runs[0]
    return Outcome(
        totals(counts), totals(runs[-1][0]), mechanism, names, log[: counts[USED]], delays
    )


def counts_of_rows(trace: Trace) -> list[np.ndarray]:
    """Return how often the operation of each row of `trace` is made: int64[row], once if that is
    known for all, else the least and the most.
    """
    if "counts of rows" not in trace.derived:
        trace.derived["counts of rows"] = _counts_of_rows(trace)
    out: list[np.ndarray] = trace.derived["counts of rows"]
    return out


def _counts_of_rows(trace: Trace) -> list[np.ndarray]:
    ones = np.isin(trace["op"], [int(o) for o in ENTRY_OPS])
    high = np.maximum(np.where(ones, 1, trace["count"]), 0).astype(np.int64)
    unknown = trace["evidence"] == Evidence.UNKNOWN
    if not unknown.any():
        return [high]
    high = np.where(unknown, trace["count"], high)
    return [np.where(unknown, 0, high), high]
