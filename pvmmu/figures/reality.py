"""Measured against predicted: every figure of the measurements that ship."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pvmmu.figures.style import WIDE, new_figure, style

#: Tables -> how to call them.
_TABLES = {
    "kernel_counts": "the kernel's operations",
    "xen_pv_summary": "what Xen was asked",
}


class RealityFigure:
    """Predicted against measured, one panel for each table, both axes logarithmic.

    Parameters
    ----------
    names : sequence of str
        The tables.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.figure: Figure = new_figure(WIDE, 3.92)
        with style():
            axes = self.figure.subplots(1, len(names), squeeze=False)[0]
            self.axes = dict(zip(names, axes, strict=True))
            for ax in axes:
                ax.set(xscale="log", yscale="log", aspect="equal")
                ax.plot([0.5, 1e9], [0.5, 1e9], color="#BBBBBB", lw=0.8, zorder=0)
                ax.set_xlabel("measured per iteration, plus one half")
            plain = {"color": "#333333", "ls": ""}
            self.good, self.bad = (
                {n: ax.plot([], [], marker=m, ms=ms, **plain)[0] for n, ax in self.axes.items()}
                for m, ms in ((".", 3), ("x", 5))
            )
            axes[0].set_ylabel("predicted, plus one half")
            self.title = self.figure.suptitle("", x=0.02, ha="left", fontsize=9.5)
            self.figure.subplots_adjust(left=0.09, right=0.97, top=0.84, bottom=0.11, wspace=0.22)

    def show(self, measured: pd.DataFrame, share: float = 1.0) -> None:
        """Draw figures of the tables; those with another verdict than ``ok`` are crosses.

        Parameters
        ----------
        measured : DataFrame
            Of `pvmmu.evidence.truth.shipped_measurements`; differences between sizes are left out.
        share : float
            Part of the tolerance that the verdicts allow, a ratio from 0 to 1, for the title.
        """
        totals = measured[~measured["counter"].str.contains("less that of|per page fault")]
        agree = (measured["verdict"] == "ok").sum()
        with style():
            for name, ax in self.axes.items():
                rows = totals[totals["table"] == name]
                x, y = middle(rows["measured"]), pd.to_numeric(rows["predicted"]).to_numpy()
                good = (rows["verdict"] == "ok").to_numpy(bool)
                top = 2 * max(x.max(initial=1), y.max(initial=1))
                self.good[name].set_data(x[good] + 0.5, y[good] + 0.5)
                self.bad[name].set_data(x[~good] + 0.5, y[~good] + 0.5)
                ax.set(xlim=(0.4, top), ylim=(0.4, top))
                ax.set_title(f"{_TABLES.get(name, name)}: {len(rows):,} figures", loc="left")
            title = f"{agree:,} of {len(measured):,} measured figures agree with the model"
            within = "" if share == 1 else f", within {share:g} of the tolerance"
            self.title.set_text(title + within)


def reality_figure(measured: pd.DataFrame) -> Figure:
    """Return predicted against measured for the tables in `measured` (see `RealityFigure.show`)."""
    figure = RealityFigure(list(measured["table"].unique()))
    figure.show(measured)
    return figure.figure


def middle(text: pd.Series) -> np.ndarray:
    """Return the middle of ``LOW..HIGH``, or the number, of each `text`: float64[row]."""
    ends = text.str.split("..", regex=False)
    low, high = ends.str[0].astype(float), ends.str[-1].astype(float)
    out: np.ndarray = ((low + high) / 2).to_numpy()
    return out
