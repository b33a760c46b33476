"""Measured against predicted: every figure of the measurements that ship."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pvmmu.figures.style import new_figure, style

#: Tables -> how to call them.
_TABLES = {
    "kernel_counts": "the kernel's operations",
    "xen_pv_summary": "what Xen was asked",
}


def reality_figure(measured: pd.DataFrame) -> Figure:
    """Return predicted against measured, one panel for each table, both axes logarithmic.

    Parameters
    ----------
    measured : DataFrame
        From `pvmmu.truth.shipped_measurements`; differences between sizes are left out.
    """
    totals = measured[~measured["counter"].str.contains("less that of|per page fault")]
    agree = (measured["verdict"] == "ok").sum()
    names = [n for n in totals["table"].unique()]
    figure = new_figure(7.2, 4.2)
    with style():
        axes = figure.subplots(1, len(names), squeeze=False)[0]
        for ax, name in zip(axes, names, strict=True):
            rows = totals[totals["table"] == name]
            x, y = _middle(rows["measured"]), pd.to_numeric(rows["predicted"]).to_numpy()
            good = (rows["verdict"] == "ok").to_numpy()
            top = 2 * max(x.max(), y.max(), 1)
            ax.plot([0.5, top], [0.5, top], color="#BBBBBB", lw=0.8, zorder=0)
            ax.plot(x[good] + 0.5, y[good] + 0.5, ".", ms=3, color="#333333")
            ax.plot(x[~good] + 0.5, y[~good] + 0.5, "x", ms=5, color="#333333")
            ax.set(xscale="log", yscale="log", xlim=(0.4, top), ylim=(0.4, top), aspect="equal")
            ax.set_xlabel("measured per iteration, plus one half")
            ax.set_title(f"{_TABLES.get(name, name)}: {len(rows):,} figures", loc="left")
        axes[0].set_ylabel("predicted, plus one half")
        title = f"{agree:,} of {len(measured):,} measured figures agree with the model"
        figure.suptitle(title, x=0.02, ha="left", fontsize=9.5)
        figure.tight_layout()
    return figure


def _middle(text: pd.Series) -> np.ndarray:
    """Return the middle of ``LOW..HIGH``, or the number."""
    ends = text.str.split("..", regex=False)
    low, high = ends.str[0].astype(float), ends.str[-1].astype(float)
    out: np.ndarray = ((low + high) / 2).to_numpy()
    return out
