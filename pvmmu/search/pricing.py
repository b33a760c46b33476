"""Prices of the cells of a board: those of the cost tables, and drawn within their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pvmmu.costs import CostTable, get_costs
from pvmmu.errors import SearchError
from pvmmu.modes import get_mode
from pvmmu.replay.sensitivity import METHODS, UNKNOWN_OPERATIONS, leaders, places, prices
from pvmmu.search.cells import Cell
from pvmmu.search.engine import Search

Costs = str | CostTable


@dataclass(frozen=True)
class Draws:
    """How prices are drawn within their ranges; see `pvmmu.replay.sensitivity`.

    Parameters
    ----------
    samples : int
        Number of draws; 0: answers come without stability.
    seed : int
        Of the draws.
    method : str
        ``latin-hypercube`` or ``sobol``.
    """

    samples: int = 64
    seed: int = 0
    method: str = METHODS[0]

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise SearchError(f"draws: samples must not be negative, not {self.samples}")
        if self.method not in METHODS:
            raise SearchError(f"draws: no method {self.method!r} (there are {', '.join(METHODS)})")


class Prices:
    """Cycles of all classes of all cells, nominal and drawn.

    Parameters
    ----------
    cells : mapping of str to list of Cell
        By mode.
    tables : mapping of str to CostTable
        By mode. Figures of one name are one unknown, in whichever table.
    draws : Draws
        How prices are drawn.
    """

    def __init__(
        self, cells: Mapping[str, list[Cell]], tables: Mapping[str, CostTable], draws: Draws
    ) -> None:
        self.tables, self.draws = dict(tables), draws
        self._nominal = {
            (mode, c.trace): c.cycles(tables[mode])[:, None]
            for mode, some in cells.items()
            for c in some
        }
        self._drawn: dict[tuple[str, str], np.ndarray] = {}
        self._places: dict[str, np.ndarray] | None = None

    def nominal(self, mode: str, cell: Cell) -> np.ndarray:
        """Return cycles of the classes of a cell at the values of the table: float64[class, 1]."""
        return self._nominal[mode, cell.trace]

    def drawn(self, mode: str, cell: Cell) -> np.ndarray:
        """Return cycles of the classes of a cell in all draws: float64[class, draw]."""
        key = mode, cell.trace
        if key not in self._drawn:
            self._drawn[key] = self._draw(mode, cell)
        return self._drawn[key]

    def _draw(self, mode: str, cell: Cell) -> np.ndarray:
        if self._places is None:
            names = {leader for t in self.tables.values() for leader in leaders(t).values()}
            unknowns = [*sorted(names), UNKNOWN_OPERATIONS]
            d = self.draws
            self._places = places(unknowns, d.samples, d.seed, d.method)
        vectors = prices(self.tables[mode], self._places)
        low = cell.priced(vectors)
        if cell.exact:
            return low
        known = self._places[UNKNOWN_OPERATIONS]
        ranged: np.ndarray = low + known * (cell.priced(vectors, most=True) - low)
        return ranged


def weights_of(found: Search, workloads: Mapping[str, float] | None) -> dict[str, float]:
    """Return weights that add up to one."""
    chosen = dict(workloads) if workloads is not None else dict.fromkeys(found.traces, 1.0)
    for trace, weight in chosen.items():
        if not (np.isfinite(weight) and weight >= 0):
            raise SearchError(f"balance: the weight of {trace!r} is {weight!r}")
    total = sum(chosen.values())
    if not total > 0:
        raise SearchError("balance: no workload has a weight")
    return {trace: w / total for trace, w in chosen.items() if w > 0}


def tables_of(costs: Costs | Mapping[str, Costs], modes: list[str]) -> dict[str, CostTable]:
    """Return the cost table of each mode."""
    if not isinstance(costs, Mapping):
        return dict.fromkeys(modes, get_costs(costs))
    given = {get_mode(m).spec: get_costs(c) for m, c in costs.items()}
    missing = [m for m in modes if m not in given]
    if missing:
        raise SearchError(f"balance: no cost table for mode {missing[0]!r}")
    return {m: given[m] for m in modes}
