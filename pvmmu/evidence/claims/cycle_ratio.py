"""One design against another on some streams: the ratio of their cycles, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.evidence.history import PricedDesign
from pvmmu.guest.load_trace import load_trace
from pvmmu.replay import replay
from pvmmu.replay.sensitivity import LEANS, STABLE, sensitivity

#: A design saves something if it saves at least this share of the cycles (an assumption).
MATERIAL: Final = 0.02


@dataclass(frozen=True)
class ClaimResult:
    """What became of a claim.

    Parameters
    ----------
    holds : bool or None
        Whether `rule` is met at the tables' values; None: this version of the model cannot tell.
    finding : str
        In numbers, computed.
    word : str
        ``stable``, ``leans`` or ``open``: how far it depends on the costs' ranges.
    table : DataFrame
        What it rests on.
    rule : str
        What it was decided by: the claim holds if this is so.
    readings : mapping of str to bool
        Where the claim can be read in several ways: whether it holds in each.
    """

    holds: bool | None
    finding: str
    word: str = "stable"
    table: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    rule: str = f"mean < {1 - MATERIAL:.2f}"
    readings: Mapping[str, bool] = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The verdict in a word or two: none where a reading, or the range of a price, turns it."""
        if self.holds is None:
            return "not testable yet"
        if len(set(self.readings.values())) > 1:
            return "depends on the reading"
        if self.word == "open":
            return "depends on prices"
        return "holds" if self.holds else "fails"


@dataclass(frozen=True)
class CycleRatio:
    """A design against another one.

    Parameters
    ----------
    table : DataFrame
        By stream: ``ratio`` of the cycles at the tables' values, ``low`` and ``high`` (90 % of the
        draws), ``share`` of the draws in which the first is cheaper if it is at the tables' values
        (else dearer), ``word``, ``entries`` and ``entries_other``; ``status`` of what cannot run.
    """

    table: pd.DataFrame

    @property
    def works(self) -> pd.DataFrame:
        """The streams on which both designs can run."""
        return self.table[self.table["status"] == "ok"]

    @property
    def ratio(self) -> float:
        """Geometric mean of the ratios."""
        return float(np.exp(np.log(self.works["ratio"]).mean()))

    @property
    def saves(self) -> bool:
        """Whether the first design saves something material on the whole."""
        return len(self.works) > 0 and self.ratio < 1 - MATERIAL

    @property
    def word(self) -> str:
        """How far the sign of the difference depends on the costs, on the least sure stream."""
        moved = self.works[(self.works["ratio"] - 1).abs() >= MATERIAL]
        least = float(moved["share"].min()) if len(moved) else 1.0
        return "stable" if least >= STABLE else "leans" if least >= LEANS else "open"

    @property
    def span(self) -> str:
        """The ratios in words."""
        low, high = self.works["ratio"].min(), self.works["ratio"].max()
        return f"{low:.2f} to {high:.2f} (mean {self.ratio:.2f})"


def cycle_ratio(
    a: PricedDesign, b: PricedDesign, streams: Sequence[str], *, samples: int = 128, seed: int = 0
) -> CycleRatio:
    """Compare two designs on some streams.

    Parameters
    ----------
    a, b : PricedDesign
        Hooks, mode and cost table of each.
    streams : sequence of str
        See `pvmmu.load_trace`.
    samples, seed : int
        Of the draws from the costs' ranges.
    """
    rows = [_row(a, b, name, samples, seed) for name in streams]
    return CycleRatio(pd.DataFrame(rows).set_index("stream"))


def _row(a: PricedDesign, b: PricedDesign, name: str, samples: int, seed: int) -> dict[str, object]:
    trace = load_trace(name)
    designs = {"a": replay(trace, a.hooks, a.mode), "b": replay(trace, b.hooks, b.mode)}
    bad = [d.status for d in designs.values() if d.infeasible is not None]
    if bad:
        return {"stream": name, "status": bad[0], "ratio": np.nan, "low": np.nan, "high": np.nan,
                "share": np.nan, "word": "", "entries": 0, "entries_other": 0}  # fmt: skip
    s = sensitivity(designs, {"a": a.costs, "b": b.costs}, samples=samples, seed=seed)
    drawn = s.draws["a"] / s.draws["b"]
    ratio = float(s.nominal["a"][0] / s.nominal["b"][0])
    found = s.stability(lambda c: c["a"] < c["b"])
    low, high = np.percentile(drawn, [5, 95])
    return {
        "stream": name, "status": "ok", "ratio": ratio, "low": float(low), "high": float(high),
        "share": found.share, "word": found.word, "entries": designs["a"].entries,
        "entries_other": designs["b"].entries,
    }  # fmt: skip
