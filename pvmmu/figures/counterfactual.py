"""The measured design space: predicted against measured changes, and outcomes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pvmmu.evidence.truth.design_space_files import OUTCOMES
from pvmmu.figures.reality import middle
from pvmmu.figures.style import WIDE, new_figure, style

_GREY, _DARK = "#BBBBBB", "#333333"
#: Changes nearer to zero than this are drawn on a linear scale.
_LINEAR = 10.0


def counterfactual_figure(counters: pd.DataFrame, outcomes: pd.DataFrame) -> Figure:
    """Return changes under hook sets that no kernel has, and what became of them.

    Parameters
    ----------
    counters, outcomes : DataFrame
        As `pvmmu.evidence.truth.compare_designs` returns them.
    """
    figure: Figure = new_figure(WIDE, 3.9)
    with style():
        scatter, table = figure.subplots(1, 2, gridspec_kw={"width_ratios": (1.25, 1)})
        good = (counters["verdict"] == "ok").to_numpy(bool)
        x, y = counters["change"].to_numpy(float), middle(counters["predicted"])
        top = 2 * max(np.abs(x).max(initial=1), np.abs(y).max(initial=1))
        scatter.plot([-top, top], [-top, top], color=_GREY, lw=0.8, zorder=0)
        scatter.plot(x[good], y[good], ".", ms=2.5, color=_DARK)
        scatter.plot(x[~good], y[~good], "x", ms=5, color=_DARK)
        scatter.set_xscale("symlog", linthresh=_LINEAR)
        scatter.set_yscale("symlog", linthresh=_LINEAR)
        ticks = [s * 10.0**p for s in (-1, 1) for p in (2, 4)] + [0.0]
        for axis in (scatter.xaxis, scatter.yaxis):
            axis.set_ticks(ticks, [f"{t:+,.0f}" if t else "0" for t in ticks])
        scatter.set(xlim=(-top, top), ylim=(-top, top), aspect="equal")
        scatter.set_xlabel("measured change per iteration (logarithmic beyond 10)")
        scatter.set_ylabel("predicted change")
        scatter.set_title(f"{good.sum():,} of {len(good):,} counters agree", loc="left")
        right = _outcome_table(table, outcomes)
        designs = int((outcomes["measured"] != "").sum())
        figure.suptitle(
            f"Hook sets no kernel has: {right} of {designs} outcomes, {good.mean():.1%} of counts "
            "predicted",
            x=0.02, ha="left", fontsize=9.5,
        )  # fmt: skip
        figure.subplots_adjust(left=0.17, right=0.97, top=0.84, bottom=0.15, wspace=0.4)
    return figure


def _outcome_table(ax: Axes, outcomes: pd.DataFrame) -> int:
    """Draw how many designs were seen to end so, and predicted to; return how many agree."""
    seen = outcomes[outcomes["measured"] != ""]
    pairs = seen.groupby(["measured", "predicted"]).size()
    n = len(OUTCOMES)
    for (measured, predicted), count in pairs.items():
        at = OUTCOMES.index(predicted), OUTCOMES.index(measured)
        bold = "bold" if measured == predicted else "normal"
        ax.text(*at, str(count), ha="center", va="center", fontsize=10, fontweight=bold)
    for i in range(n):
        ax.add_patch(_cell(i))
    ax.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
    ax.set_xticks(range(n), OUTCOMES, rotation=30)
    ax.set_yticks(range(n), OUTCOMES)
    ax.tick_params(length=0)
    ax.set_xlabel("predicted")
    ax.set_ylabel("seen")
    ax.set_title("designs by outcome", loc="left")
    return int((seen["agrees"] == "ok").sum())


def _cell(i: int) -> Rectangle:
    return Rectangle((i - 0.5, i - 0.5), 1, 1, facecolor="#EEEEEE", edgecolor="none", zorder=0)
