"""What every paging mode offers to replay and sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import ENTRY_OPS, Evidence, Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.counters import USED, totals

if TYPE_CHECKING:
    from pvmmu.modes.classes import Partition, Space


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
    """

    low: np.ndarray
    high: np.ndarray
    mechanism: np.ndarray
    names: Mapping[int, str] = field(repr=False)
    log: np.ndarray = field(repr=False)


class Mode(Protocol):
    """A paging mode: how the hypervisor virtualizes the guest's tables."""

    name: ClassVar[str]

    @property
    def spec(self) -> str:
        """Text that `pvmmu.modes.get_mode` turns into this mode again."""

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to `trace`, if only its feasibility."""

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition the hook sets of `space` into classes that `trace` cannot tell apart."""

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay `trace` under `hooks`; return what happened, or why it cannot be.

        With `log`, the outcome tells row by row (`Outcome.log`).
        """


def covered_hooks(trace: Trace, names: tuple[str, ...]) -> HookSet:
    """Return those of the hooks called `names` that cover an operation of `trace`."""
    present = {Op(o) for o in np.unique(trace["op"])}
    return HookSet.of(*(n for n in names if present & set(catalogue()[n].operations)))


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


def choice(what: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is among the `allowed`; `what` it is a value of is named in the error.

    Raises
    ------
    ModeError
        It is not; lists what is.
    """
    if value not in allowed:
        raise ModeError(f"{what} {value!r} does not exist; there are {', '.join(allowed)}")
    return value


def outcome(
    runs: list[tuple[np.ndarray, np.ndarray]], mechanism: np.ndarray, names: Mapping[int, str]
) -> Outcome:
    """Return the outcome of a replay done once, or once with the least and once with the most.

    Parameters
    ----------
    runs : list of (int64[N_EVENTS + 2], int64[n, 4])
        Counts and log of each.
    mechanism, names
        As in `Outcome`.
    """
    counts, log = runs[0]
    return Outcome(totals(counts), totals(runs[-1][0]), mechanism, names, log[: counts[USED]])
