"""Counts of all classes of hook sets: at once where the mode can, else one replay each."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pvmmu.errors import PvmmuError
from pvmmu.guest.trace import Trace
from pvmmu.modes.all_sets.engines import engine
from pvmmu.modes.base import Mode
from pvmmu.modes.events import N_EVENTS
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import HookClass, Partition


@dataclass(frozen=True)
class ClassCounts:
    """What classes of hook sets cost in events.

    Parameters
    ----------
    status : list of str
        ``ok``, ``infeasible: why`` or ``error: what`` for each class.
    low, high : int64[class, N_EVENTS]
        Least and greatest counts, zero where the status is not ``ok``; one and the same array
        where they agree.
    """

    status: list[str]
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)


def count_one_by_one(trace: Trace, mode: Mode, classes: list[HookClass]) -> ClassCounts:
    """Replay `trace` in `mode` for each of `classes`; a failure is a status, no dead search."""
    status = []
    low = np.zeros((len(classes), N_EVENTS), np.int64)
    high = np.zeros_like(low)
    for i, c in enumerate(classes):
        if c.infeasible:
            status.append(f"infeasible: {c.infeasible}")
            continue
        try:
            result = mode.run(trace, c.hooks)
        except Exception as e:
            name = "" if isinstance(e, PvmmuError) else f"{type(e).__name__}: "
            status.append(f"error: {name}{e}")
            continue
        if isinstance(result, Infeasible):
            status.append(f"infeasible: {result.reason}")
        else:
            status.append("ok")
            low[i], high[i] = result.low, result.high
    return ClassCounts(status, low, low if (low == high).all() else high)


def count_classes(trace: Trace, mode: Mode, partition: Partition, number: int) -> ClassCounts:
    """Count all feasible classes of a branch.

    At once where there is an engine for the mode and it can, else by a replay of each class.

    Parameters
    ----------
    trace : Trace
        The operations.
    mode : Mode
        Of `pvmmu.modes`.
    partition : Partition
        Of ``mode.classes``.
    number : int
        Which of its branches.
    """
    branch = partition.branches[number]
    if branch.n == 0:
        nothing = np.zeros((0, N_EVENTS), np.int64)
        return ClassCounts([], nothing, nothing)
    at_once = engine(mode)
    counted = at_once(trace, branch) if at_once else None
    if counted is None:
        return count_one_by_one(trace, mode, list(partition.feasible(number)))
    low, high = counted
    return ClassCounts(["ok"] * branch.n, low, low if (low == high).all() else high)
