"""Prices fitted to what was measured: events times prices are what a design adds.

A row of measurements is one program under one design: how often each thing happened, and what it
added to the program's native cost. The fit is weighted, nonnegative least squares:

* errors are relative to what was added (but not below 2 % of the native cost, where noise is all);
* the rows of one program share an error (`SHARED`) beside each row's own (`OWN`): what a price list
  misses of a program, it misses under every design.

What a price is worth says the jackknife over programs: the fit is repeated without each program.
Its covariance is that of clusters; a price's range is two standard deviations either way. Prices
whose errors go along with each other can only be read as a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.errors import CostError

#: Relative errors: of all rows of a program alike, and of each row.
SHARED: Final = 0.01
OWN: Final = 0.03
#: What was added is held to be at least this share of the native cost.
LEAST: Final = 0.02
_TIED: Final = 0.9


@dataclass(frozen=True)
class Term:
    """Things that are priced together.

    Parameters
    ----------
    name : str
        The one that leads: the others follow its price.
    keys : tuple of str
        Columns of the counts, `name` first.
    meaning : str
        What the price holds, for readers of the table.
    """

    name: str
    keys: tuple[str, ...]
    meaning: str


@dataclass(frozen=True)
class Fit:
    """A fitted list of prices.

    Parameters
    ----------
    terms : tuple of Term
        What is priced.
    prices, deviation : float64[term]
        Price of each, and its standard deviation, in the unit of what was added.
    without : DataFrame
        Prices without each program: a row per program, a column per term; NaN for a term that
        occurs in a single one.
    tied : tuple of (str, str)
        Terms whose errors are correlated by more than 0.9 either way.
    """

    terms: tuple[Term, ...]
    prices: np.ndarray
    deviation: np.ndarray
    without: pd.DataFrame
    tied: tuple[tuple[str, str], ...]

    def predict(self, counts: pd.DataFrame) -> pd.Series:
        """Return what the rows of `counts` add, in the unit of the fit: float64[row]."""
        return pd.Series(matrix(counts, self.terms) @ self.prices, counts.index)

    def frame(self) -> pd.DataFrame:
        """Return a row per term: price, range, the greatest change without one program, which."""
        rows = []
        for i, term in enumerate(self.terms):
            change = (self.without[term.name] - self.prices[i]).fillna(0.0)
            worst = str(change.abs().idxmax())
            rows.append(
                {
                    "term": term.name, "price": self.prices[i],
                    "low": max(0.0, self.prices[i] - 2 * self.deviation[i]),
                    "high": self.prices[i] + 2 * self.deviation[i],
                    "worst_change": float(change[worst]), "without": worst,
                }
            )  # fmt: skip
        return pd.DataFrame(rows).set_index("term")


def matrix(counts: pd.DataFrame, terms: Sequence[Term]) -> np.ndarray:
    """Return how often each of `terms` occurs in the rows of `counts`: float64[row, term]."""
    out = [counts.reindex(columns=list(t.keys), fill_value=0.0).sum(axis=1) for t in terms]
    return np.stack([c.to_numpy(float) for c in out], axis=1)


def fit_prices(
    counts: pd.DataFrame, added: pd.Series, native: pd.Series, terms: Sequence[Term],
    *, shared: float = SHARED, own: float = OWN,
) -> Fit:  # fmt: skip
    """Fit prices to what programs cost more than natively.

    Parameters
    ----------
    counts : DataFrame
        Counts of things by the keys of `terms`; a row per (program, design), which are the levels
        of its index.
    added, native : Series of float64[row]
        What a row cost beyond the native cost of its program, and that cost (one unit, such as
        instructions).
    terms : sequence of Term
        What is priced.
    shared, own : float
        Relative errors of a program's rows, and of each row.

    Returns
    -------
    Fit
        Prices that are not negative, with ranges.

    Raises
    ------
    CostError
        There are fewer than three programs, or a term occurs nowhere.
    """
    programs = counts.index.get_level_values(0)
    if programs.nunique() < 3:
        raise CostError(f"a fit needs at least three programs, not {programs.nunique()}")
    x = matrix(counts, terms)
    missing = [t.name for t, column in zip(terms, x.T, strict=True) if not column.any()]
    if missing:
        raise CostError(f"nothing is known of the price of {missing[0]!r}: it occurs in no row")
    y, least = added.to_numpy(float), LEAST * native.to_numpy(float)
    parts = {
        name: _whitened(x[rows], y[rows], least[rows], shared, own)
        for name in programs.unique()
        for rows in [np.flatnonzero(programs == name)]
    }
    prices = _solve(list(parts.values()))
    without = {
        name: _solve([part for other, part in parts.items() if other != name]) for name in parts
    }
    names = [t.name for t in terms]
    table = pd.DataFrame.from_dict(without, orient="index", columns=names)
    table[[n for n, column in zip(names, x.T, strict=True) if _one(column, programs)]] = np.nan
    return Fit(tuple(terms), prices, _deviation(table, prices), table, _ties(table))


def _one(column: np.ndarray, programs: pd.Index) -> bool:
    """Whether a term occurs in one program only: without it nothing is known of its price."""
    return int(programs[column != 0].nunique()) == 1


def _whitened(
    x: np.ndarray, y: np.ndarray, least: np.ndarray, shared: float, own: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return a program's rows in units of their errors, which are then independent."""
    scale = np.maximum(y, least)
    covariance = np.eye(len(y)) * own**2 + shared**2
    root = np.linalg.cholesky(covariance)
    return np.linalg.solve(root, x / scale[:, None]), np.linalg.solve(root, y / scale)


def _solve(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the prices that fit all parts."""
    from scipy.optimize import nnls

    x = np.vstack([part[0] for part in parts])
    y = np.concatenate([part[1] for part in parts])
    norm = np.sqrt((x**2).sum(axis=0))
    norm[norm == 0] = 1.0  # a term that does not occur here: its price is 0
    prices: np.ndarray = nnls(x / norm, y, maxiter=100 * x.shape[1])[0] / norm
    return prices


def _deviation(without: pd.DataFrame, prices: np.ndarray) -> np.ndarray:
    """Return the standard deviation of each price (jackknife over programs; of one known from a
    single program, half of it).
    """
    n, values = len(without), without.to_numpy()
    out = np.sqrt((n - 1) / n * ((values - values.mean(axis=0)) ** 2).sum(axis=0))
    deviation: np.ndarray = np.where(np.isnan(out), prices / 2, out)
    return deviation


def _ties(without: pd.DataFrame) -> tuple[tuple[str, str], ...]:
    """Return the pairs of terms whose prices move together when a program is left out."""
    moving = without.loc[:, without.std() > 0]
    r = np.corrcoef(moving.to_numpy().T) if moving.shape[1] > 1 else np.eye(moving.shape[1])
    first, second = np.nonzero(np.triu(np.abs(r) > _TIED, 1))
    names = list(moving.columns)
    return tuple((names[i], names[j]) for i, j in zip(first, second, strict=True))


def left_out(
    counts: pd.DataFrame, added: pd.Series, fitted: Fit
) -> pd.Series:  # fmt: skip
    """Return the relative error of each row, priced without its program: float64[row].

    A term that occurs in one program only keeps its price: there is no other.

    Parameters
    ----------
    counts, added, fitted
        As for `fit_prices`, and its result.
    """
    x, programs = matrix(counts, fitted.terms), counts.index.get_level_values(0)
    prices = fitted.without.loc[programs].to_numpy()
    prices = np.where(np.isnan(prices), fitted.prices, prices)
    return pd.Series((x * prices).sum(axis=1), counts.index) / added - 1


def document(
    head: Mapping[str, object], fitted: Fit, sources: Mapping[str, str]
) -> dict[str, dict[str, object]]:
    """Return sections of a cost table of `fitted` prices: a figure per key.

    Parameters
    ----------
    head : mapping
        Section of each key: ``events``, ``operations`` or ``context``.
    fitted : Fit
        The prices.
    sources : mapping of str to str
        By section, where the counts come from.
    """
    out: dict[str, dict[str, object]] = {}
    prices = fitted.frame()
    for term in fitted.terms:
        row = prices.loc[term.name]
        for key in term.keys:
            section = str(head[key])
            figure: dict[str, object] = {
                "value": round(float(row["price"]), 1), "unit": "instructions",
                "kind": "measured",
                "range": (round(float(row["low"]), 1), round(float(row["high"]), 1)),
                "source": f"{term.meaning}; {sources[section]}; without {row['without']}: "
                f"{row['price'] + row['worst_change']:,.0f}",
            }  # fmt: skip
            if key != term.name:
                figure["follows"] = term.name
            out.setdefault(section, {})[key] = figure
    return out
