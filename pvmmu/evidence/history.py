"""Published results, and what the model predicts of them.

A prediction starts from one published time (the anchor) and adds the difference of cycles that the
model finds between two designs; it is compared as a ratio, with the range that the costs and the
assumed sizes leave. See ``data/history``.
"""

from __future__ import annotations

import functools
import itertools
import tomllib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from pvmmu.errors import PvmmuError
from pvmmu.guest.load_trace import load_trace
from pvmmu.paths import data_path
from pvmmu.replay import replay
from pvmmu.replay.sensitivity import Sensitivity, sensitivity

#: Percentiles of the draws between which a prediction is said to lie.
INTERVAL: Final = (5.0, 95.0)
_MICROSECONDS: Final = {"us": 1, "s": 1_000_000}
_KEY: Final = ["group", "workload", "config"]


@dataclass(frozen=True)
class PricedDesign:
    """A design, `hooks` in a `mode`, and the table of `costs` that prices it: names."""

    hooks: str
    mode: str
    costs: str


@dataclass(frozen=True)
class Prediction:
    """How a published result is predicted.

    Parameters
    ----------
    group, workload, config : str
        The row of ``published_results.csv``.
    anchor : str
        ``config`` of the row whose published time (in microseconds) it starts from.
    mhz : float
        Clock of the machine.
    streams : tuple of str
        Operations that stand for the published ones.
    before, after : PricedDesign
        Of the anchor and of the row.
    assumes : str
        What is not in the publication.
    per : int
        Operations in a stream.
    times : int
        Operations in the published time.
    modes : tuple of str
        Modes that take the place of both sides', each in turn.
    """

    group: str
    workload: str
    config: str
    anchor: str
    mhz: float
    streams: tuple[str, ...]
    before: PricedDesign
    after: PricedDesign
    assumes: str
    per: int = 1
    times: int = 1
    modes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Share:
    """A published change of a whole benchmark's time, whose paging the model knows and no more.

    Parameters
    ----------
    group, workload, config : str
        The row of ``published_results.csv``.
    published : tuple of float
        Its time, of that before: least and most.
    streams : tuple of str
        Operations that stand for the benchmark's.
    before, after : PricedDesign
        The two designs.
    assumes : str
        What is not in the publication.
    """

    group: str
    workload: str
    config: str
    published: tuple[float, float]
    streams: tuple[str, ...]
    before: PricedDesign
    after: PricedDesign
    assumes: str


@functools.cache
def _published() -> pd.DataFrame:
    return pd.read_csv(data_path("history", "published_results.csv"), dtype=str).fillna("")


def published() -> pd.DataFrame:
    """Return the published results, one row each; ``data/history/README.md`` names the columns."""
    return _published().copy()


def timeline() -> pd.DataFrame:
    """Return what was merged, removed and decided, oldest first."""
    return pd.read_csv(data_path("history", "timeline.csv"), dtype=str).fillna("")


@functools.cache
def predictions() -> tuple[Prediction, ...]:
    """Return what is predicted.

    Raises
    ------
    PvmmuError
        A prediction names no published row, or misses a field.
    """
    return tuple(_prediction(table) for table in _tables("prediction"))


def _tables(kind: str) -> list[dict[str, Any]]:
    """Return the tables of one kind, for the caller to take apart."""
    path = data_path("history", "predictions.toml")
    tables: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))[kind]
    return tables


def _prediction(table: dict[str, Any]) -> Prediction:
    try:
        before, after = PricedDesign(**table.pop("before")), PricedDesign(**table.pop("after"))
        streams = tuple(table.pop("streams"))
        modes = tuple(table.pop("modes", ()))
        p = Prediction(streams=streams, before=before, after=after, modes=modes, **table)
    except (KeyError, TypeError) as e:
        raise PvmmuError(f"data/history/predictions.toml: {e}") from None
    _row(p, p.config)
    _row(p, p.anchor)
    return p


def _row(p: Prediction | Share, config: str) -> pd.Series:
    """Return a published row."""
    table = _published()
    key = (table["group"] == p.group) & (table["workload"] == p.workload)
    found = table[key & (table["config"] == config)]
    if len(found) != 1:
        raise PvmmuError(f"data/history: {p.group}, {p.workload}, {config}: {len(found)} rows")
    return found.iloc[0]


@functools.cache
def shares() -> tuple[Share, ...]:
    """Return the benchmarks of which only the paging is modelled.

    Raises
    ------
    PvmmuError
        An entry names no published row, or misses a field.
    """
    out = []
    for table in _tables("share"):
        try:
            before, after = PricedDesign(**table.pop("before")), PricedDesign(**table.pop("after"))
            low, high = table.pop("published")
            streams = tuple(table.pop("streams"))
            out.append(Share(published=(low, high), streams=streams, before=before, after=after,
                             **table))  # fmt: skip
        except (KeyError, TypeError, ValueError) as e:
            raise PvmmuError(f"data/history/predictions.toml: {e}") from None
        _row(out[-1], out[-1].config)
    return tuple(out)


def implied_shares(samples: int = 256, seed: int = 0) -> pd.DataFrame:
    """Say what share of a benchmark's time its paging had to take for what was published.

    If paging shrinks (or grows) to a ratio *r*, and all of the time to *p*, it took (1 - p) /
    (1 - r) of it. More than 1 contradicts the model; nothing else does.

    Parameters
    ----------
    samples, seed : int
        Of the draws from the ranges of the costs.

    Returns
    -------
    DataFrame
        ``group``, ``workload``, ``config``, ``published`` (ratio of times, the middle), ``paging``
        (ratio of its cycles at the tables' values), ``low`` and ``high`` (90 % of the draws),
        ``share_low`` and ``share_high`` (implied, over both ranges; infinite if paging changes to
        the other side at that end), ``possible`` (somewhere in the ranges), ``provenance``.
    """
    rows = []
    for p in shares():
        nominal, drawn = [], []
        for name in p.streams:
            s = study(p, name, "", samples, seed)
            nominal.append(s.nominal["after"] / s.nominal["before"])
            drawn.append(s.draws["after"] / s.draws["before"])
        low, high = np.percentile(np.concatenate(drawn), INTERVAL)
        least, most = p.published
        ends = (low, high) if most < 1 else (high, low)
        implied = _share(most, ends[0]), _share(least, ends[1])
        rows.append(
            {
                "group": p.group, "workload": p.workload, "config": p.config,
                "published": (least + most) / 2, "paging": float(np.median(nominal)),
                "low": low, "high": high, "share_low": implied[0], "share_high": implied[1],
                "possible": implied[0] <= 1,
                "provenance": f"{', '.join(p.streams)}; {p.after.mode} under {p.after.hooks}, of "
                f"{p.before.mode} under {p.before.hooks}, priced by {p.after.costs}; {p.assumes}",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _share(time: float, ratio: float) -> float:
    """Return which share of the time changes to a ratio if all of it changes to another."""
    return (1 - time) / (1 - ratio) if (ratio < 1) == (time < 1) and ratio != 1 else float("inf")


def study(p: Prediction | Share, name: str, mode: str, samples: int, seed: int) -> Sensitivity:
    """Return both sides of a prediction on one stream, over the ranges of the costs.

    Parameters
    ----------
    p : Prediction or Share
        The prediction.
    name : str
        The stream (`pvmmu.load_trace`).
    mode : str
        Instead of that of both sides, if not empty.
    samples, seed : int
        Of the draws.
    """
    trace, sides = load_trace(name), {"before": p.before, "after": p.after}
    designs = {label: replay(trace, side.hooks, mode or side.mode) for label, side in sides.items()}
    costs = {label: side.costs for label, side in sides.items()}
    return sensitivity(designs, costs, samples=samples, seed=seed)


def predicted_ratios(p: Prediction, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ratio at the tables' values and in all draws, over all streams and modes.

    Parameters
    ----------
    p : Prediction
        What was predicted.
    samples, seed : int
        Of the draws.

    Returns
    -------
    float64[stream * mode], float64[stream * mode * samples]
        Time after over time before.
    """
    row = _row(p, p.anchor)
    time = float(row["value"]) * _MICROSECONDS[row["unit"]] * p.mhz / p.times
    nominal: list[np.ndarray] = []
    drawn: list[np.ndarray] = []
    for name, mode in itertools.product(p.streams, p.modes or ("",)):
        s = study(p, name, mode, samples, seed)
        for out, cycles in ((nominal, s.nominal), (drawn, s.draws)):
            out.append(1 + (cycles["after"] - cycles["before"]) / p.per / time)
    return np.concatenate(nominal), np.concatenate(drawn)


def compared(samples: int = 256, seed: int = 0) -> pd.DataFrame:
    """Compare the predictions with what was published.

    Parameters
    ----------
    samples, seed : int
        Of the draws from the ranges of the costs.

    Returns
    -------
    DataFrame
        One row per prediction: its key, ``verified``, ``published`` and ``predicted`` (ratios;
        the median over the streams), ``low`` and ``high`` (where 90 % of the draws lie, over all
        streams), ``agrees`` (the published ratio lies there), ``provenance``.
    """
    rows = []
    for p in predictions():
        row, (nominal, drawn) = _row(p, p.config), predicted_ratios(p, samples, seed)
        low, high = np.percentile(drawn, INTERVAL)
        ratio = float(row["ratio"])
        rows.append(
            {
                "group": p.group, "workload": p.workload, "config": p.config,
                "verified": row["verified"], "published": ratio,
                "predicted": float(np.median(nominal)), "low": low, "high": high,
                "agrees": bool(low <= ratio <= high),
                "provenance": f"{row['source']}; {', '.join(p.streams)}; {p.after.mode} under "
                f"{p.after.hooks}, priced by {p.after.costs}; {p.assumes}",
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def not_predicted() -> pd.DataFrame:
    """Return the published ratios that the model does not predict, and why."""
    table = _published()
    done = {(p.group, p.workload, p.config) for p in predictions()}
    new = np.array([tuple(r) not in done for r in table[_KEY].to_numpy()])
    left = table[new & (table["ratio"] != "").to_numpy()]
    why = {
        "calibrates": "a cost table was set with it",
        "anchor": "a prediction starts from it",
        "predicted": "predicted",
        "share": "a whole benchmark: the share of its paging is computed",
        "context": "most of its time is not paging, or its operations are not known",
    }
    return left.assign(why=left["role"].map(why)).reset_index(drop=True)
