"""Prices fitted to measurements: recovered where they are known, and honest about what is not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from pvmmu.costs.fit import Term, fit_prices, left_out
from pvmmu.errors import CostError

TERMS = (Term("a", ("a", "a2"), "a and its twin"), Term("b", ("b",), "b"), Term("c", ("c",), "c"))


def made(noise: float = 0.0) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Eight programs under three designs, at prices 100, 2,000 and 0."""
    rng = np.random.default_rng(3)
    index = pd.MultiIndex.from_product([[f"p{i}" for i in range(8)], ["x", "y", "z"]])
    counts = pd.DataFrame(rng.integers(1, 50, (24, 4)), index, ["a", "a2", "b", "c"]).astype(float)
    added = 100 * (counts["a"] + counts["a2"]) + 2000 * counts["b"]
    added *= 1 + noise * rng.standard_normal(24)
    return counts, added, pd.Series(1e4, index)


def test_known_prices_are_recovered_and_none_is_negative() -> None:
    fitted = fit_prices(*made(), TERMS)
    np.testing.assert_allclose(fitted.prices, [100, 2000, 0], atol=1e-6)
    np.testing.assert_allclose(fitted.deviation, 0, atol=1e-6)


def test_ranges_hold_the_truth_and_grow_with_noise() -> None:
    few, many = (fit_prices(*made(noise), TERMS) for noise in (0.01, 0.1))
    assert (many.deviation[:2] > few.deviation[:2]).all()
    table = many.frame()
    assert table.loc["a", "low"] <= 100 <= table.loc["a", "high"]
    assert table.loc["b", "low"] <= 2000 <= table.loc["b", "high"]


def test_each_program_is_priced_without_itself() -> None:
    counts, added, native = made()
    added = added.where(added.index.get_level_values(0) != "p3", added * 2)
    fitted = fit_prices(counts, added, native, TERMS)
    off = left_out(counts, added, fitted)
    np.testing.assert_allclose(off["p3"], -0.5, atol=1e-3)  # the others know nothing of its double
    assert fitted.frame()["without"].isin(["p3"]).any()


def test_what_one_program_alone_pays_is_a_guess_of_half_its_price() -> None:
    counts, added, native = made()
    counts["c"] = np.where(counts.index.get_level_values(0) == "p0", 10.0, 0.0)
    fitted = fit_prices(counts, added + 50 * counts["c"], native, TERMS)
    assert fitted.prices[2] == pytest.approx(50)
    assert fitted.deviation[2] == pytest.approx(25)
    assert fitted.without["c"].isna().all()


def test_too_little_for_a_fit_is_told() -> None:
    counts, added, native = made()
    two = counts.index.get_level_values(0).isin(["p0", "p1"])
    with pytest.raises(CostError, match="at least three programs, not 2"):
        fit_prices(counts[two], added[two], native[two], TERMS)
    with pytest.raises(CostError, match="price of 'd': it occurs in no row"):
        fit_prices(counts, added, native, (*TERMS, Term("d", ("d",), "d")))
