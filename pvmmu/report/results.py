"""The numbers of a proposal: every design on every workload."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

import pvmmu
from pvmmu._jit import fingerprint
from pvmmu.modes.events import Event, column
from pvmmu.modes.soundness import Verdict, soundness_over
from pvmmu.replay.compare import Comparison, Design
from pvmmu.replay.sensitivity import Stability, sensitivity
from pvmmu.report.state import State
from pvmmu.search.verdicts import witnesses


@dataclass(frozen=True)
class Results:
    """A proposal, replayed.

    Parameters
    ----------
    state : State
        What was asked.
    comparisons : tuple of Comparison
        One for each workload.
    """

    state: State
    comparisons: tuple[Comparison, ...]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per workload and design: counts, cycles and their range, status."""
        rows = []
        for c in self.comparisons:
            low, high = c.costs.bounds()
            for name, d, k in zip(c.names, c.designs, c.counts, strict=True):
                row: dict[str, Any] = {
                    "workload": c.trace.name, "operations": len(c.trace), "design": name,
                    "mode": d.mode, "hooks": d.hooks.short, "status": k.status,
                    "counterfactual": k.counterfactual, "verdict": k.verdict.words,
                    "costs": c.costs.name,
                }  # fmt: skip
                if k.infeasible is None:
                    row |= {
                        "entries": k.entries, "cycles": k.cycles(c.costs),
                        "cycles_low": float(np.nansum(k.low * low)),
                        "cycles_high": float(np.nansum(k.high * high)),
                    }  # fmt: skip
                    row |= {column(e): int(k.low[e]) for e in Event}
                rows.append(row)
        table = pd.DataFrame(rows)
        events = [column(e) for e in Event if column(e) in table]
        silent = [e for e in events if not table[e].fillna(0).any()]
        counted = [e for e in [*events, "entries"] if e in table and e not in silent]
        return table.drop(columns=silent).astype(dict.fromkeys(counted, "Int64"))

    @cached_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The verdict on each design, on the workloads and all shipped streams together."""
        streams = witnesses(c.trace for c in self.comparisons)
        return tuple(soundness_over(streams, d.hooks, d.mode) for d in self.comparisons[0].designs)

    def numbers(self) -> dict[str, int | None]:
        """Return entries by workload and design, what a later run is compared with."""
        return {
            f"{c.trace.name} {name}": None if k.infeasible is not None else k.entries
            for c in self.comparisons
            for name, k in zip(c.names, c.counts, strict=True)
        }

    def made(self) -> dict[str, Any]:
        """Return versions and numbers, for the state of the bundle."""
        return {
            "pvmmu": pvmmu.__version__,
            "model": fingerprint(),
            "traces": {c.trace.name: c.trace.fingerprint for c in self.comparisons},
            "entries": self.numbers(),
        }

    def change(self) -> str:
        """Return in words how these numbers compare with those of the state's own bundle."""
        before, now = self.state.made, self.made()
        if not before:
            return ""
        known = before.get("entries", {})
        other = [k for k, n in now["entries"].items() if k in known and known[k] != n]
        same = f"all {len(now['entries'])} numbers are the same"
        outcome = (
            f"{len(other)} of {len(now['entries'])} numbers differ ({other[0]}" if other else same
        )
        if other:
            outcome += f": {known[other[0]]} then, {now['entries'][other[0]]} now)"
        moved = [n for n, f in now["traces"].items() if before.get("traces", {}).get(n, f) != f]
        if moved:
            outcome += f"; trace {moved[0]} is another one"
        if before.get("model") == now["model"]:
            return f"Made again with the same model: {outcome}."
        versions = f"model {before.get('model')} of pvmmu {before.get('pvmmu')}"
        return f"Made again; the model has changed since ({versions}): {outcome}."

    def stability(self, c: Comparison) -> Stability | None:
        """Say whether A is cheaper than B in `c` over the costs' ranges; None if one cannot run."""
        a, b = c.counts[:2]
        if a.infeasible is not None or b.infeasible is not None:
            return None
        s = sensitivity({"A": a, "B": b}, c.costs, seed=1)
        cheaper = bool(s.nominal["A"][0] < s.nominal["B"][0])
        return s.stability(lambda x: (x["A"] < x["B"]) == cheaper)


def results(state: State) -> Results:
    """Replay the proposal of `state`.

    Raises
    ------
    PvmmuError
        Something that it names does not exist.
    """
    designs = tuple(Design.of(h, m, chr(ord("A") + i)) for i, (m, h) in enumerate(state.designs))
    costs = state.cost_table()
    traces = [state.trace(w) for w in state.workloads]
    return Results(state, tuple(Comparison(t, designs, costs) for t in traces))
