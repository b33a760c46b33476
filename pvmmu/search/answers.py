"""Answers from a design space: fronts, contributions, smallest sets, next and superfluous hooks.

Every answer comes with its stability: the share of the draws of prices (`DesignSpace.prices`) in
which it is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pvmmu.errors import SearchError
from pvmmu.hooks import HookSet, interfaces
from pvmmu.search import shapley as values
from pvmmu.search.design_space import DesignSpace, regrets
from pvmmu.search.shapley import Orders


def nondominated(points: np.ndarray) -> np.ndarray:
    """Return which points no other point beats; less is better, ties are kept.

    Parameters
    ----------
    points : float64[point, objective]
        A point with a NaN or an infinite value is never on the front, and beats no other.

    Returns
    -------
    bool[point]
    """
    import moocore

    out: np.ndarray = np.isfinite(points).all(axis=1)
    if out.any():
        out[out] = moocore.is_nondominated(points[out], keep_weakly=True)
    return out


def objectives(b: DesignSpace, draw: int | None = None) -> np.ndarray:
    """Return cycles, regret and intrusiveness of the sets on `b`: float64[joint class, 3].

    `draw` is the number of a draw of prices; None takes the values of the tables.
    """
    by_class = b.by_class if draw is None else b.cycles_of_classes(draw)
    return np.column_stack([by_class.mean(axis=0), regrets(by_class).max(axis=0), b.least])


def front(b: DesignSpace) -> pd.DataFrame:
    """Return the exact Pareto front of cycles, regret and intrusiveness of the sets on `b`.

    Returns
    -------
    DataFrame
        One row for each point, least cycles first: ``cycles`` (per operation, mean over the
        modes), ``native`` (cycles over those on bare hardware, mean over the modes), ``regret``
        (greatest over the modes), ``intrusiveness``, ``n_hooks``, ``hooks`` (short form), ``mask``,
        ``verdict`` (how well it works, `pvmmu.modes.soundness`), ``tied_with`` (other hook sets
        with the same three values), ``stability``.
    """
    points = objectives(b)
    at = np.flatnonzero(nondominated(points))
    same = np.zeros(len(at))
    for draw in range(b.prices.draws.samples):
        same += nondominated(objectives(b, draw))[at]
    rows: dict[tuple[float, ...], dict[str, Any]] = {}
    for k, j in enumerate(at.tolist()):
        sets, key = b.members(j), tuple(points[j].tolist())
        if key in rows:
            rows[key]["tied_with"] += [s.short for s in sets]
            rows[key]["stability"] = max(rows[key]["stability"], _share(b, same[k]))
            continue
        rows[key] = _described(b, sets[0]) | {
            "cycles": key[0], "native": _over_native(b, b.by_class[:, j]), "regret": key[1],
            "intrusiveness": key[2],
            "tied_with": [s.short for s in sets[1:]], "stability": _share(b, same[k]),
        }  # fmt: skip
    out = pd.DataFrame(list(rows.values()))
    return out.sort_values(["cycles", "intrusiveness"], ignore_index=True)


def _described(b: DesignSpace, hooks: HookSet) -> dict[str, Any]:
    return {
        "hooks": hooks.short, "mask": hooks.mask, "n_hooks": len(hooks),
        "verdict": b.verdict_of(hooks),
    }  # fmt: skip


def _over_native(b: DesignSpace, cycles: np.ndarray) -> float:
    """Return cycles over those on bare hardware, mean over the modes."""
    return float(np.mean(cycles / b.native.to_numpy()))


def _share(b: DesignSpace, count: float) -> float:
    return count / b.prices.draws.samples if b.prices.draws.samples else np.nan


# ---------------------------------------------------------------------- one set
def _pick(b: DesignSpace, rank: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Return the set of least rank, ties and stability; `rank` takes float64[mode, class]."""

    def least(by_class: np.ndarray) -> int:
        r = rank(by_class)
        if not np.isfinite(r).any():
            return -1
        # of equal rank the least intrusive one
        return int(np.lexsort((b.least, np.where(np.isnan(r), np.inf, r)))[0])

    chosen = least(b.by_class)
    if chosen < 0:
        raise SearchError("no hook set on the board does what was asked")
    draws = range(b.prices.draws.samples)
    same = sum(least(b.cycles_of_classes(d)) == chosen for d in draws)
    sets = b.members(chosen)
    r = regrets(b.by_class)[:, chosen]
    return _described(b, sets[0]) | {
        "cycles": float(b.by_class[:, chosen].mean()),
        "native": _over_native(b, b.by_class[:, chosen]), "regret": float(r.max()),
        "intrusiveness": float(b.least[chosen]), "tied_with": [s.short for s in sets[1:]],
        "stability": _share(b, same),
    }  # fmt: skip


def best_within(b: DesignSpace, budget: float) -> dict[str, Any]:
    """Return the set on `b` of least regret whose intrusiveness is within `budget` (points).

    Raises
    ------
    SearchError
        None is.
    """
    return _pick(b, lambda c: np.where(b.least <= budget, regrets(c).max(axis=0), np.inf))


def smallest_within(b: DesignSpace, share: float) -> dict[str, Any]:
    """Return the least intrusive set within a share of the best in every mode.

    Parameters
    ----------
    b : DesignSpace
        The board.
    share : float
        0.05: at most 5 % more cycles than the mode's own best.

    Raises
    ------
    SearchError
        No set is.
    """
    return _pick(b, lambda c: np.where(regrets(c).max(axis=0) <= share + 1e-12, b.least, np.inf))


# ---------------------------------------------------------------------- hooks
def contributions(b: DesignSpace, mode: str) -> pd.DataFrame:
    """Return what each optional hook on `b` is worth in `mode`.

    Returns
    -------
    DataFrame
        Index: hook (or bundle). ``value``: cycles per operation that it spares, averaged over all
        orders of adding hooks (they sum to the effect of all together); ``share`` of that effect;
        ``first``: what it spares added to the base alone; ``last``: what taking it from all of
        them loses (NaN where a set cannot run); ``intrusiveness``; ``p5``, ``p95`` of the draws;
        ``stability``: share of the draws in which it has the same sign. ``attrs``: ``base`` and
        ``all`` (cycles per operation), ``orders`` (share of the orders in which every set works).
    """
    cycles = b.cycles(mode)
    orders = Orders.of(np.isfinite(cycles))
    n, top = len(b.players), len(cycles) - 1
    value = values.contributions(-cycles, orders)
    total = cycles[0] - cycles[top]
    bit = 1 << np.arange(n)
    drawn = np.array(
        [values.contributions(-b.cycles(mode, d), orders) for d in range(b.prices.draws.samples)]
    ).reshape(-1, n)
    out = pd.DataFrame(
        {
            "value": value + 0.0, "share": value / total if total else np.nan,
            "first": cycles[0] - cycles[bit], "last": cycles[top ^ bit] - cycles[top],
            "intrusiveness": [b.intrusiveness.of(p) for p in b.players],
        },
        index=pd.Index(b.names, name="hook"),
    )  # fmt: skip
    if len(drawn):
        out["p5"], out["p95"] = np.percentile(drawn, (5, 95), axis=0)
        out["stability"] = _same_sign(drawn, value)
    out.attrs = {"base": cycles[0], "all": cycles[top], "orders": orders.share, "mode": mode}
    return out.sort_values("value", ascending=False)


def interactions(b: DesignSpace, mode: str) -> pd.DataFrame:
    """Return what two hooks on `b` are worth in `mode` together beyond each without the other.

    Returns
    -------
    DataFrame
        Square, in cycles per operation spared: positive where they need each other, negative where
        one does the other's work, NaN on the diagonal. ``attrs["stability"]``: a DataFrame of the
        same shape, the share of the draws in which it has the same sign.
    """
    cycles = b.cycles(mode)
    orders = Orders.of(np.isfinite(cycles))
    pairs = values.interactions(-cycles, orders)
    drawn = [values.interactions(-b.cycles(mode, d), orders) for d in range(b.prices.draws.samples)]
    return _square(b, pairs, attrs={"stability": _square(b, _same_sign(drawn, pairs))})


def _square(b: DesignSpace, pairs: np.ndarray, attrs: dict[str, Any] | None = None) -> pd.DataFrame:
    np.fill_diagonal(pairs, np.nan)
    out = pd.DataFrame(pairs, index=b.names, columns=b.names)
    out.attrs = attrs or {}
    return out


def _same_sign(drawn: npt.ArrayLike, value: npt.ArrayLike) -> np.ndarray:
    """Return the share of the draws in which values have the same sign; NaN without draws."""
    drawn, value = np.asarray(drawn, float), np.asarray(value, float)
    if not len(drawn):
        return np.full(value.shape, np.nan)
    same: np.ndarray = np.mean(np.sign(drawn.round(12)) == np.sign(value.round(12)), axis=0)
    return same


def compare_interfaces(
    b: DesignSpace, sets: Mapping[str, HookSet | str] | None = None
) -> pd.DataFrame:
    """Return how interfaces stand: regret in each mode and altogether.

    Parameters
    ----------
    b : DesignSpace
        The board.
    sets : mapping of str to HookSet or str, optional
        By name; default: the interfaces of the past.

    Returns
    -------
    DataFrame
        Index: name. A column for each mode (regret; inf where it cannot run; negative where it has
        hooks that are not on the board and beats every set there), ``worst``, ``served``
        (modes in which it runs), ``p5``, ``p95`` (of the worst, over the draws), ``cycles`` (mean
        over the modes), ``native`` (cycles over those on bare hardware), ``intrusiveness``,
        ``n_hooks``, ``verdict`` (if all of it is used).
    """
    chosen = sets if sets is not None else {n: i.hooks for n, i in interfaces().items()}
    bests = [np.nanmin(b.cycles_of_classes(d), axis=1) for d in range(b.prices.draws.samples)]
    rows = {}
    for name, hooks in chosen.items():
        hooks = HookSet.parse(hooks)
        cycles = b.cycles_of(hooks)
        regret = _over(cycles, b.best)
        drawn = [_over(b.cycles_of(hooks, d), best).max() for d, best in enumerate(bests)]
        rows[name] = dict(zip(b.modes, regret, strict=True)) | {
            "worst": regret.max(), "served": int(np.isfinite(regret).sum()),
            "p5": _percentile(drawn, 5), "p95": _percentile(drawn, 95),
            "cycles": cycles.mean(skipna=False), "native": _over_native(b, cycles.to_numpy()),
            "intrusiveness": b.intrusiveness.of(hooks),
            "n_hooks": len(hooks), "verdict": b.verdict_of(hooks),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("interface")


def _over(cycles: pd.Series, best: pd.Series | np.ndarray) -> np.ndarray:
    """Return by how much cycles are over the best of each mode; inf where a mode cannot run."""
    out: np.ndarray = (cycles / best - 1).fillna(np.inf).to_numpy()
    return out


def _percentile(drawn: Sequence[float], share: int) -> float:
    return float(np.percentile(drawn, share, method="nearest")) if drawn else np.nan


def next_hooks(b: DesignSpace, hooks: HookSet | str) -> pd.DataFrame:
    """Return what one more hook than `hooks` would bring in the modes of `b`, the best first.

    Returns
    -------
    DataFrame
        Index: hook. ``saves`` (share of the cycles, mean over the modes that run),
        ``intrusiveness`` (what it adds), ``saving_per_hook`` (their ratio), ``makes_run`` (modes
        that run only with it),
        ``breaks``, ``stability`` (share of the draws in which it changes the cycles to the same
        side).
    """
    hooks = HookSet.parse(hooks)
    every = b.found.space.free | b.found.space.always
    rows = {name: _change(b, hooks, hooks | HookSet.of(name)) for name in every - hooks}
    return _bargains(rows, "makes_run")


def removable_hooks(b: DesignSpace, hooks: HookSet | str) -> pd.DataFrame:
    """Return what `hooks` would lose with each of them in the modes of `b`, the least loss first.

    Returns
    -------
    DataFrame
        Index: hook. ``loses`` (share of the cycles, mean over the modes; NaN where one no longer
        runs), ``intrusiveness`` (what goes with it), ``breaks`` (modes that need it),
        ``stability``.
    """
    hooks = HookSet.parse(hooks)
    rows = {name: _change(b, hooks, hooks - HookSet.of(name)) for name in hooks}
    out = pd.DataFrame.from_dict(rows, orient="index").rename_axis("hook")
    out["loses"], out["intrusiveness"] = -out.pop("saves"), -out["intrusiveness"]
    out.loc[out["breaks"] != "", "loses"] = np.nan
    order = ["loses", "intrusiveness", "breaks", "stability"]
    return out[order].sort_values(["loses", "intrusiveness"], ascending=[True, False])


def _bargains(rows: dict[str, dict[str, Any]], last: str) -> pd.DataFrame:
    out = pd.DataFrame.from_dict(rows, orient="index").rename_axis("hook")
    out["saving_per_hook"] = out["saves"] / out["intrusiveness"]
    order = ["saves", "intrusiveness", "saving_per_hook", last, "breaks", "stability"]
    return out[order].sort_values(["saving_per_hook", "saves"], ascending=False)


def _change(b: DesignSpace, before: HookSet, after: HookSet) -> dict[str, Any]:
    """Compare two sets: share of the cycles that the second one spares, and what runs."""
    old, new = b.cycles_of(before), b.cycles_of(after)
    both = old.notna() & new.notna()
    saves = _saved(old[both], new[both])
    draws = [
        _saved(b.cycles_of(before, d)[both], b.cycles_of(after, d)[both])
        for d in range(b.prices.draws.samples)
    ]
    return {
        "saves": saves, "intrusiveness": b.intrusiveness.of(after) - b.intrusiveness.of(before),
        "makes_run": " ".join(old.index[old.isna() & new.notna()]),
        "breaks": " ".join(old.index[old.notna() & new.isna()]),
        "stability": float(_same_sign(draws, saves)) if both.any() else np.nan,
    }  # fmt: skip


def _saved(old: pd.Series, new: pd.Series) -> float:
    """Return the share of the cycles that is spared, mean over the modes."""
    return float(np.mean(1 - new / old)) if len(old) else np.nan
