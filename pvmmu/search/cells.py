"""One cell of the design space: all hook sets in one mode on one trace, in columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pvmmu._jit import kernel
from pvmmu.costs import CostTable, get_costs
from pvmmu.guest.trace import Trace
from pvmmu.modes.all_sets.counting import ClassCounts
from pvmmu.modes.base import Mode
from pvmmu.modes.events import ENTRIES, N_EVENTS
from pvmmu.modes.partition import Partition


@dataclass(frozen=True)
class Cell:
    """What every hook set costs in events in one mode on one trace.

    Parameters
    ----------
    trace, trace_fingerprint, mode : str
        Which.
    kernel : str
        Of the guest that made the trace.
    operations : int
        Of the trace.
    partition : Partition
        The classes.
    events : int64[event]
        `Event` numbers that occur in any class, ascending.
    low, high : int32 or int64[class, event]
        Least and greatest counts of the feasible classes; one and the same array where they agree.
    failed : mapping of int to str
        Classes whose replay failed, and how; their counts mean nothing.
    """

    trace: str
    trace_fingerprint: str
    mode: str
    kernel: str
    operations: int
    partition: Partition = field(repr=False)
    events: np.ndarray = field(repr=False)
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)
    failed: Mapping[int, str] = field(repr=False)

    @classmethod
    def of(cls, trace: Trace, mode: Mode, partition: Partition, parts: list[ClassCounts]) -> Cell:
        """Put the counts of all branches together, in order.

        Parameters
        ----------
        trace : Trace
            What was replayed.
        mode : Mode
            In which mode.
        partition : Partition
            The classes of hook sets.
        parts : list of ClassCounts
            Counts of each branch.
        """
        nothing = np.zeros((0, N_EVENTS), np.int64)
        high = np.concatenate([nothing, *(p.high for p in parts)])
        same = all(p.low is p.high for p in parts)
        low = high if same else np.concatenate([nothing, *(p.low for p in parts)])
        status = [s for p in parts for s in p.status]
        return cls(
            trace.name, trace.fingerprint, mode.spec, trace.provenance.kernel, len(trace),
            partition, *in_columns(low, high),
            {i: s for i, s in enumerate(status) if s != "ok"},
        )  # fmt: skip

    def __len__(self) -> int:
        return self.partition.n

    @property
    def exact(self) -> bool:
        """Whether least and greatest counts agree everywhere."""
        return self.low is self.high

    @cached_property
    def works(self) -> np.ndarray:
        """bool[class]: the replay did not fail."""
        out = np.ones(len(self), np.bool_)
        out[list(self.failed)] = False
        return out

    def counts(self, number: int) -> np.ndarray:
        """Return the least counts of class `number`: int64[N_EVENTS]."""
        out = np.zeros(N_EVENTS, np.int64)
        out[self.events] = self.low[number]
        return out

    def entries(self) -> np.ndarray:
        """Return the least number of entries to the hypervisor: int64[class]."""
        calls = np.isin(self.events, [int(e) for e in ENTRIES])
        out: np.ndarray = self.low[:, calls].sum(axis=1, dtype=np.int64)
        return out

    def priced(self, prices: np.ndarray, *, most: bool = False) -> np.ndarray:
        """Return cycles under some price vectors.

        Parameters
        ----------
        prices : float64[vector, N_EVENTS]
            Cycles per event.
        most : bool
            Price the greatest counts; the default is the least.

        Returns
        -------
        float64[class, vector]
            NaN where the replay failed.
        """
        vectors = np.ascontiguousarray(np.nan_to_num(prices)[:, self.events].T)
        out = np.empty((len(self), len(prices)))
        price_rows(self.high if most else self.low, vectors, out)
        out[~self.works] = np.nan
        return out

    def cycles(self, costs: CostTable | str) -> np.ndarray:
        """Return cycles of the least counts by `costs`: float64[class], NaN where a replay failed.

        Raises
        ------
        CostError
            An event occurs that the table does not price.
        """
        table = get_costs(costs)
        table.require(self._occurring)
        out: np.ndarray = self.priced(table.vector[None])[:, 0]
        return out

    @cached_property
    def _occurring(self) -> np.ndarray:
        """int64[N_EVENTS]: not zero for each event that occurs."""
        out = np.zeros(N_EVENTS, np.int64)
        out[self.events] = 1
        return out


def in_columns(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the events that occur and compact counts of them.

    Parameters
    ----------
    low, high : int64[class, N_EVENTS]
        Least and greatest counts; they may be one array.

    Returns
    -------
    events : int64[event]
    low, high : int32 or int64[class, event]
        One array if they were, or are equal.
    """
    same = low is high or bool((low == high).all())
    events = np.flatnonzero(high.any(axis=0) | (low.any(axis=0) if not same else False))
    kind = np.int32 if high.max(initial=0) <= np.iinfo(np.int32).max else np.int64
    most = np.ascontiguousarray(high[:, events], dtype=kind)
    return events, most if same else np.ascontiguousarray(low[:, events], dtype=kind), most


@kernel
def price_rows(counts, prices, out):  # type: ignore[no-untyped-def]
    """Multiply counts by prices, in one pass over the counts.

    Parameters
    ----------
    counts : int32 or int64[class, event]
    prices : float64[event, vector]
    out : float64[class, vector]
        Receives the sums.
    """
    for c in range(counts.shape[0]):
        for v in range(prices.shape[1]):
            out[c, v] = 0.0
        for e in range(counts.shape[1]):
            n = counts[c, e]
            if n != 0:
                for v in range(prices.shape[1]):
                    out[c, v] += n * prices[e, v]
