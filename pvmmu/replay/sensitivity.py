"""Does a conclusion hold wherever the costs may lie within their ranges?

    s = sensitivity({"today": replay(...), "hooked": replay(...)}, "p4-2006", seed=1)
    s.ranks()                                             # who is cheapest, in which share of draws
    s.stability(lambda c: c["hooked"] < c["today"])       # a conclusion of your own

Most prices of a cost table are priors with a range. Two things are done with them: each figure
alone goes to either end of its range while the others stay (*one at a time*), and all of them are
drawn at once, by Latin hypercube or Sobol sampling (`scipy.stats.qmc`), log-uniformly within their
ranges. Draws are a function of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.costs import CostTable, get_costs
from pvmmu.errors import CostError
from pvmmu.modes.events import EVENTS, N_EVENTS, column
from pvmmu.replay.counts import Counts

METHODS: Final = ("latin-hypercube", "sobol")
#: Share of the draws in which a conclusion must hold to be called stable; below the second one it
#: is open.
STABLE, LEANS = 0.95, 0.75
#: Name of the unknown that stands for operations whose number the trace does not know.
UNKNOWN_OPERATIONS: Final = "(operations not recorded)"
_EVENT_OF: Final = {column(e): int(e) for e in EVENTS}

Costs = str | CostTable
#: Cycles by label (each a number, or one for each draw) -> whether the conclusion holds.
Conclusion = Callable[[Mapping[str, np.ndarray]], "np.ndarray | bool"]


@dataclass(frozen=True)
class Stability:
    """How far a conclusion depends on costs that nobody knows.

    Parameters
    ----------
    holds : bool
        It holds at the values of the cost tables.
    share : float
        Share of the draws in which it is as it is at those values.
    flips : tuple of str
        Figures which alone, at an end of their range, overturn it.
    samples, seed, method
        How the draws were made.
    """

    holds: bool
    share: float
    flips: tuple[str, ...]
    samples: int
    seed: int
    method: str

    @property
    def word(self) -> str:
        """``stable``, ``leans`` (most draws, or one figure can overturn it) or ``open``."""
        if self.share >= STABLE and not self.flips:
            return "stable"
        return "leans" if self.share >= LEANS else "open"

    def __str__(self) -> str:
        flips = f"; overturned by {', '.join(self.flips)} alone" if self.flips else ""
        return f"{self.word}: so in {self.share:.0%} of {self.samples} draws{flips}"


def leaders(table: CostTable) -> dict[str, str]:
    """Return the figures of `table` that have a range, each with the unknown that it stands for."""
    return {name: c.follows or name for name, c in table.events.items() if c.range}


def places(names: list[str], samples: int, seed: int, method: str) -> dict[str, np.ndarray]:
    """Draw where in its range each unknown lies.

    Parameters
    ----------
    names : list of str
        The unknowns.
    samples, seed, method
        As in `sensitivity`.

    Returns
    -------
    dict of str to float64[samples]
        Between 0 (least price) and 1 (greatest).
    """
    from scipy.stats import qmc  # takes half a second to import

    make = qmc.LatinHypercube if method == "latin-hypercube" else qmc.Sobol
    unit = make(d=max(len(names), 1), rng=np.random.default_rng(seed)).random(samples)
    return {name: unit[:, i] for i, name in enumerate(names)}


def prices(table: CostTable, where: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return prices at given places of the ranges: float64[draw, N_EVENTS].

    Parameters
    ----------
    table : CostTable
        Its figures without range, and unknowns that `where` does not name, stay as they are.
    where : mapping of str to float64[draw]
        Places, of one length.
    """
    n = len(next(iter(where.values()))) if where else 1
    out = np.tile(np.nan_to_num(table.vector), (n, 1))
    low, high = table.bounds()
    for name, leader in leaders(table).items():
        if leader in where:
            e = _EVENT_OF[name]
            out[:, e] = between(low[e], high[e], where[leader])
    return out


def between(low: float, high: float, where: np.ndarray) -> np.ndarray:
    """Return what lies at a place of a range, log-uniform where the range allows it.

    Parameters
    ----------
    low, high : float
        Ends of the range, in any unit.
    where : float64[n]
        Places, 0 to 1.

    Returns
    -------
    float64[n]
        In the unit of the ends.
    """
    if low > 0:
        return np.asarray(low * (high / low) ** where)
    return np.asarray(low + (high - low) * where)


class Sensitivity:
    """Designs, priced everywhere in the ranges of the costs.

    Parameters
    ----------
    designs : mapping of str to Counts
        Counts of designs, by label.
    costs : mapping of str to CostTable
        The table that prices each.
    samples, seed, method
        As in `sensitivity`.
    """

    def __init__(
        self, designs: Mapping[str, Counts], costs: Mapping[str, CostTable],
        samples: int, seed: int, method: str,
    ) -> None:  # fmt: skip
        self.designs, self.costs = dict(designs), dict(costs)
        self.samples, self.seed, self.method = samples, seed, method
        for label, counts in designs.items():
            if counts.infeasible is not None:
                raise CostError(f"sensitivity: {label!r} cannot run ({counts.infeasible.reason})")
            costs[label].require(counts.high)

    @cached_property
    def unknowns(self) -> list[str]:
        """Names of what is drawn: figures that price something here, operations not recorded."""
        used = np.zeros(N_EVENTS, bool)
        for counts in self.designs.values():
            used |= counts.high > 0
        names = {
            leader for table in self.costs.values() for name, leader in leaders(table).items()
            if used[_EVENT_OF[name]]
        }  # fmt: skip
        inexact = any((c.low != c.high).any() for c in self.designs.values())
        return sorted(names) + ([UNKNOWN_OPERATIONS] if inexact else [])

    def _cycles(self, where: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the cycles of each design at some places."""
        known = where.get(UNKNOWN_OPERATIONS, np.zeros(1))[:, None]
        out = {}
        for label, counts in self.designs.items():
            amount = counts.low + known * (counts.high - counts.low)
            out[label] = (amount * prices(self.costs[label], where)).sum(axis=1)
        return out

    @cached_property
    def nominal(self) -> dict[str, np.ndarray]:
        """Cycles at the values of the tables, float64[1] by label."""
        return self._cycles({})

    @cached_property
    def draws(self) -> dict[str, np.ndarray]:
        """Cycles of each design in each draw, float64[samples] by label."""
        return self._cycles(places(self.unknowns, self.samples, self.seed, self.method))

    @cached_property
    def single(self) -> dict[tuple[str, str], dict[str, np.ndarray]]:
        """Cycles of each design (float64[1]) with one unknown at an end: by (unknown, end)."""
        return {
            (name, end): self._cycles({name: np.array([place])})
            for name in self.unknowns
            for end, place in (("low", 0.0), ("high", 1.0))
        }

    def stability(self, conclusion: Conclusion) -> Stability:
        """Try a conclusion everywhere.

        Parameters
        ----------
        conclusion : callable
            Takes cycles by label and says whether it holds, for numbers and for arrays of draws.
        """
        holds = bool(np.all(conclusion(self.nominal)))
        agree = np.broadcast_to(np.asarray(conclusion(self.draws), bool) == holds, self.samples)
        flips = [
            name for (name, _), cycles in self.single.items()
            if bool(np.all(conclusion(cycles))) != holds
        ]  # fmt: skip
        share = float(agree.mean())
        return Stability(
            holds, share, tuple(dict.fromkeys(flips)), self.samples, self.seed, self.method
        )

    def ranks(self) -> pd.DataFrame:
        """Return who is cheapest, and how surely.

        Returns
        -------
        DataFrame
            By label, cheapest first: ``cycles`` (at the tables' values), ``p5`` and ``p95`` of the
            draws, ``rank``, ``same_rank`` (share of the draws that give it this rank), ``best``
            (share in which it is the cheapest).
        """
        labels = list(self.designs)
        nominal = np.array([self.nominal[s][0] for s in labels])
        drawn = np.array([self.draws[s] for s in labels])
        rank, ranks = nominal.argsort().argsort(), drawn.argsort(axis=0).argsort(axis=0)
        table = pd.DataFrame(
            {
                "cycles": nominal, "p5": np.percentile(drawn, 5, axis=1),
                "p95": np.percentile(drawn, 95, axis=1), "rank": rank + 1,
                "same_rank": (ranks == rank[:, None]).mean(axis=1),
                "best": (ranks == 0).mean(axis=1),
            },
            index=pd.Index(labels, name="design"),
        )  # fmt: skip
        return table.sort_values("rank")

    def ratios(self, of: str, to: str) -> pd.DataFrame:
        """Return how each unknown alone moves the cycles `of` one label over those `to` another.

        Returns
        -------
        DataFrame
            By unknown, the strongest first: ``low``, ``high`` (the ratio at either end), ``swing``;
            the ratio at the tables' values is in ``attrs["nominal"]``.
        """
        rows = {
            name: [float((self.single[name, end][of] / self.single[name, end][to])[0])
                   for end in ("low", "high")]
            for name in self.unknowns
        }  # fmt: skip
        table = pd.DataFrame.from_dict(rows, orient="index", columns=["low", "high"])
        table["swing"] = (table["high"] - table["low"]).abs()
        table.attrs["nominal"] = float((self.nominal[of] / self.nominal[to])[0])
        return table.sort_values("swing", ascending=False).rename_axis("figure")


def sensitivity(
    designs: Mapping[str, Counts], costs: Costs | Mapping[str, Costs], *, samples: int = 512,
    seed: int = 0, method: str = "latin-hypercube",
) -> Sensitivity:  # fmt: skip
    """Price designs everywhere in the ranges of the costs.

    Parameters
    ----------
    designs : mapping of str to Counts
        Of `pvmmu.replay.replay`, by label.
    costs : str, CostTable, or mapping of str to either
        One table for all, or one for each label (a mode under its own hypervisor). Figures of the
        same name are the same unknown.
    samples : int
        Draws; for ``sobol`` a power of two.
    seed : int
        Of the draws.
    method : str
        ``latin-hypercube`` or ``sobol``.

    Raises
    ------
    CostError
        A design cannot run, an event has no price, or a parameter is wrong.
    """
    if method not in METHODS:
        raise CostError(f"sensitivity: no method {method!r} (there are {', '.join(METHODS)})")
    if samples < 1 or (method == "sobol" and samples & (samples - 1)):
        kind = "a power of two" if method == "sobol" else "at least 1"
        raise CostError(f"sensitivity: samples must be {kind}, not {samples}")
    if isinstance(costs, Mapping):
        missing = [s for s in designs if s not in costs]
        if missing:
            raise CostError(f"sensitivity: no cost table for {missing[0]!r}")
        tables = {s: get_costs(costs[s]) for s in designs}
    else:
        tables = dict.fromkeys(designs, get_costs(costs))
    return Sensitivity(designs, tables, samples, seed, method)
