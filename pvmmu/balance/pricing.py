"""Prices of the cells of a board: those of the cost tables, and drawn within their ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pvmmu.costs import CostTable
from pvmmu.errors import SearchError
from pvmmu.search import Cell
from pvmmu.sensitivity import METHODS, UNKNOWN_OPERATIONS, leaders, places, prices


@dataclass(frozen=True)
class Draws:
    """How prices are drawn within their ranges; see `pvmmu.sensitivity`.

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
            (mode, c.trace): c.cycles(tables[mode]) for mode, some in cells.items() for c in some
        }
        self._drawn: dict[tuple[str, str], np.ndarray] = {}
        self._places: dict[str, np.ndarray] | None = None

    def of(self, mode: str, cell: Cell, draw: int | None = None) -> np.ndarray:
        """Return cycles of the classes of a cell: float64[class].

        Parameters
        ----------
        mode : str
            Of the cell.
        cell : Cell
            Of the board.
        draw : int, optional
            Number of a draw; default: the values of the table.
        """
        key = mode, cell.trace
        if draw is None:
            return self._nominal[key]
        if key not in self._drawn:
            self._drawn[key] = self._draw(mode, cell)
        out: np.ndarray = self._drawn[key][:, draw]
        return out

    def _draw(self, mode: str, cell: Cell) -> np.ndarray:
        """Return cycles in all draws: float64[class, draw]."""
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
