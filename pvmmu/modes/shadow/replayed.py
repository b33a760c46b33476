"""What all modes on the shadow engine have in common: rows with touches, and the replay."""

from __future__ import annotations

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.modes.outcome import Infeasible, Outcome, outcome
from pvmmu.modes.rules import TableMode
from pvmmu.modes.shadow.prepare import Rows, first_rows, rows_of
from pvmmu.modes.shadow.state import State
from pvmmu.modes.shadow.substitutes import UNSEEN


class ShadowMode(TableMode):
    """A mode on the shadow engine: a table, and `replayed` with rules and kernel of its own."""

    def prepared(self, trace: Trace) -> Trace:
        """Return the trace with touches."""
        return rows_of(trace).trace

    def kinds(self, trace: Trace, pins: HookSet) -> np.ndarray:
        """Return the operations; what is about an entry not known is nothing."""
        out: np.ndarray = trace.derived["kinds of shadow mode"]
        return out

    def replayed(
        self, rows: Rows, mechanism: np.ndarray, log: bool = False, seen: np.ndarray = UNSEEN
    ) -> State:
        """Replay and return the state after the last row.

        Parameters
        ----------
        rows : Rows
            What is replayed.
        mechanism : uint8[row]
            What carries each.
        log : bool
            Keep what happens row by row.
        seen : int64[n, 2]
            See `pvmmu.modes.shadow.substitutes.watch`.
        """
        raise NotImplementedError

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay a trace under a hook set: all of them can run."""
        mechanism, rows = self.mechanism_of_rows(trace, hooks), rows_of(trace)
        if isinstance(mechanism, Infeasible):  # pragma: no cover - no rule says that one cannot
            return mechanism
        state = self.replayed(rows, mechanism, log)
        state.log[:, 0] = rows.order[state.log[:, 0]]
        mechanism = mechanism[first_rows(rows.order, len(trace))]
        return outcome([(state.counts, state.log)], mechanism, self.names, self.delays)
