"""Figures of interfaces: their regret in each mode, and what proposals would spare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from pvmmu.figures.search import INK, shade
from pvmmu.figures.style import SMALL, WIDE, new_figure, style, wrapped

_MID = "#888888"


def interfaces_figure(standing: pd.DataFrame, modes: Sequence[str], title: str) -> Figure:
    """Draw a table of regrets: interfaces by modes, a pale cell where it cannot run.

    Parameters
    ----------
    standing : DataFrame
        Of `pvmmu.search.compare_interfaces`.
    modes : sequence of str
        Its columns of modes.
    title : str
        The finding.
    """
    figure = new_figure(2.1 + 1.05 * (len(modes) + 1), 1.2 + 0.24 * len(standing))
    height = figure.get_figheight()
    columns = [*modes, "worst"]
    with style():
        axes = figure.subplots()
        for i, name in enumerate(standing.index):
            for j, mode in enumerate(columns):
                _cell(axes, j, i, float(standing.loc[name, mode]))
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(standing) - 0.5, -0.5)
        axes.set_yticks(range(len(standing)), standing.index, fontsize=SMALL)
        names = [m.replace(":", "\n", 1) for m in columns]
        axes.set_xticks(range(len(columns)), names, fontsize=SMALL)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        figure.suptitle(title, fontsize=8.5, x=0.02, y=1 - 0.07 / height, ha="left", va="top")
        figure.subplots_adjust(left=1.25 / figure.get_figwidth(), right=0.99,
                               top=1 - 0.62 / height, bottom=0.05 / height)  # fmt: skip
    return figure


def _cell(axes: Axes, x: float, y: float, regret: float) -> None:
    runs = np.isfinite(regret)
    grey = float(shade(np.array([regret]))[0]) if runs else 1.0
    axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, color=str(grey), lw=0))
    text = f"{regret:+.0%}" if runs else "cannot run"
    axes.text(x, y, text, ha="center", va="center", fontsize=SMALL,
              color="white" if grey < 0.5 else _MID if not runs else INK)  # fmt: skip


def proposals_figure(table: pd.DataFrame) -> Figure:
    """Draw the entries that each proposal saves: rows are proposals, a dot for each stream.

    Parameters
    ----------
    table : DataFrame
        Of `pvmmu.evidence.unmerged.what_if`.
    """
    names = list(dict.fromkeys(table["change"]))
    traces = list(dict.fromkeys(table["stream"]))
    marks: dict[str, Any] = dict(zip(traces, "osD^vPX*<>h", strict=False))
    figure = new_figure(WIDE, 1.5 + 0.36 * len(names))
    height = figure.get_figheight()
    with style():
        axes = figure.subplots()
        for i, name in enumerate(names):
            part = table[table["change"] == name]
            axes.hlines(i, part["entries_share"].min(), part["entries_share"].max(), color=_MID)
            for row in part.itertuples():
                axes.plot(row.entries_share, i, marks.get(row.stream, "o"), color=INK, ms=4.5,
                          mfc="white", label=row.stream if i == 0 else None)  # fmt: skip
        hooks = table.groupby("change", sort=False)["hooks_more"].first()
        labels = [wrapped(f"{n} ({hooks[n]:+d} hooks)", 2.1, 8) for n in names]
        axes.set_yticks(range(len(names)), labels)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=min(0.0, float(table["entries_share"].min()) * 1.1))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("entries to the hypervisor saved")
        best = table.groupby("change", sort=False)["entries_share"].median()
        single = best.drop([n for n in names if n.startswith("all")], errors="ignore")
        title = f"Of single proposals, {single.idxmax()} saves most: {single.max():.0%} (median)"
        figure.suptitle(wrapped(title, WIDE), fontsize=9, x=0.02, ha="left")
        figure.legend(loc="lower center", ncols=6, frameon=False, fontsize=SMALL, numpoints=1)
        figure.subplots_adjust(left=0.35, right=0.97, top=1 - 0.4 / height, bottom=0.85 / height)
    return figure
