"""What carried the operations: a bar of entries to the hypervisor, and a thin one of what is none.

Entries, TLB flushes and requests that shared a call are not alike: they are never added. The
length of a bar is the number at its end, that of entries; the thin bar below has the others.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from pvmmu.figures.style import (
    CATEGORY_COLOURS,
    CATEGORY_HATCHES,
    CATEGORY_NAMES,
    SMALL,
    WIDE,
    new_figure,
    style,
    wrapped,
)
from pvmmu.modes.events import ENTRIES, EVENTS
from pvmmu.replay import Counts
from pvmmu.replay.compare import debate_finding

#: Categories of entries to the hypervisor, from the axis outwards.
STACK: Final = ("hypercall", "emulation", "trap")
#: What is no entry: of the thin bar.
BESIDE: Final = ("batched", "flush")


@dataclass(frozen=True)
class Bar:
    """A design in a figure.

    Parameters
    ----------
    label : str
        What to write beside it.
    counts : Counts
        Its replay.
    """

    label: str
    counts: Counts


def _values(counts: Counts) -> np.ndarray:
    """Return the counts of `STACK` (entries alone) and `BESIDE`; zeros for an infeasible design."""
    if counts.infeasible is not None:
        return np.zeros(len(STACK + BESIDE))
    by = counts.by_category()
    entries = [counts.low[[e for e in ENTRIES if EVENTS[e].category == c]].sum() for c in STACK]
    return np.array([*entries, *(by[c] for c in BESIDE)], float)


def _longest(values: np.ndarray) -> float:
    """Return the length of the longest bar among rows of `_values`, at least 1."""
    n = len(STACK)
    return max(float(values[:, :n].sum(axis=1).max()), float(values[:, n:].sum(axis=1).max()), 1.0)


class MechanismBars:
    """Horizontal stacked bars whose lengths can be changed in place.

    Parameters
    ----------
    axes : Axes
        Where to draw.
    n : int
        Number of bars, the first one on top.
    narrow : bool
        The axes have no room for more than the number of entries, and few ticks.
    """

    def __init__(self, axes: Axes, n: int, *, narrow: bool = False) -> None:
        self.axes, self.n, self.narrow = axes, n, narrow
        self.patches: dict[str, list[Rectangle]] = {}
        for category in STACK + BESIDE:
            thin = category in BESIDE
            bars = axes.barh(
                np.arange(n) + (0.28 if thin else -0.08), np.zeros(n), 0.14 if thin else 0.5,
                color=CATEGORY_COLOURS[category], hatch=CATEGORY_HATCHES[category],
                edgecolor="white", linewidth=0.4,
            )  # fmt: skip
            self.patches[category] = list(bars)
        self.notes = [axes.text(0, i - 0.08, "", va="center", fontsize=SMALL) for i in range(n)]
        self.beside = [axes.text(0, i + 0.28, "", va="center", fontsize=SMALL) for i in range(n)]
        axes.set_ylim(n - 0.45, -0.55)
        axes.grid(axis="y", visible=False)
        axes.xaxis.set_major_locator(MaxNLocator(2 if narrow else 5, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.tick_params(axis="y", length=0)

    def show(self, bars: Sequence[Bar], limit: float | None = None) -> None:
        """Draw `bars`, as many as were announced; `limit` entries, or the longest, end the axis."""
        values = np.array([_values(b.counts) for b in bars])
        limit = limit or _longest(values)
        self.axes.set_xlim(0, (1.65 if self.narrow else 1.4) * limit)
        self.axes.set_yticks(range(self.n), [b.label for b in bars])
        for i, (bar, row) in enumerate(zip(bars, values, strict=True)):
            by = dict(zip(STACK + BESIDE, row, strict=True))
            ends = [self._lay(i, part, by) for part in (STACK, BESIDE)]
            for text, end in zip((self.notes[i], self.beside[i]), ends, strict=True):
                text.set_x(end + 0.015 * limit)
            self.notes[i].set_text(_note(bar.counts, self.narrow))
            self.beside[i].set_text("" if self.narrow else _note_beside(by))

    def _lay(self, i: int, categories: Sequence[str], by: dict[str, float]) -> float:
        """Lay out the parts of a bar, one after the other; return where it ends."""
        left = 0.0
        for category in categories:
            self.patches[category][i].set_x(left)
            self.patches[category][i].set_width(by[category])
            left += by[category]
        return left


def _note(counts: Counts, narrow: bool) -> str:
    """Return what stands at the end of a bar."""
    if counts.infeasible is not None:
        return textwrap.fill(f"cannot run: {counts.infeasible.reason}", 34 if narrow else 56)
    unit, mark = "" if narrow else " entries", " *" if counts.counterfactual else ""
    return f"{counts.entries:,}{unit}{mark}"


def _note_beside(by: dict[str, float]) -> str:
    """Return what stands at the end of a thin bar."""
    shared, flushes = (int(by[c]) for c in BESIDE)
    parts = [f"{shared:,} shared a call"] if shared else []
    if flushes:
        parts.append(f"{flushes:,} flush" + ("es" if flushes > 1 else ""))
    return ", ".join(parts)


def legend(figure: Figure, *, y: float = 0.0, counterfactual: bool = False) -> None:
    """Draw the key below the axes; an asterisk is explained if one is used."""
    handles: list[Any] = [
        Patch(
            facecolor=CATEGORY_COLOURS[c], hatch=CATEGORY_HATCHES[c], edgecolor="white",
            label=CATEGORY_NAMES[c],
        )
        for c in STACK + BESIDE
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="lower center", ncols=3, frameon=False,
        fontsize=min(SMALL, 7.7 * figure.get_figwidth() / 5.4),
        bbox_to_anchor=(0.5, y), handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip
    if counterfactual:
        text = "* counterfactual: no interface of the trace's kernel"
        figure.text(0.985, 0.012, text, fontsize=SMALL, ha="right", style="italic")


def debate_figure(table: pd.DataFrame) -> Figure:
    """Draw the debate: workloads (rows) against modes (columns), low-level hooks and all hooks.

    Parameters
    ----------
    table : DataFrame
        Of `pvmmu.replay.compare.debate`.

    Returns
    -------
    Figure
        Panels of a row share their scale, so that modes can be compared; the title is the finding.
    """
    rows, columns = list(dict.fromkeys(table["trace"])), list(dict.fromkeys(table["mode"]))
    levels = list(dict.fromkeys(table["level"]))
    figure = new_figure(WIDE, 1.75 + len(rows) * (0.5 + 0.36 * len(levels)))
    height = figure.get_figheight()
    with style():
        grid = figure.subplots(len(rows), len(columns), squeeze=False, sharey=True)
        for i, trace in enumerate(rows):
            of_trace = table[table["trace"] == trace]
            limit = _longest(np.array([_values(c) for c in of_trace["counts"]]))
            for j, mode in enumerate(columns):
                cell = of_trace[of_trace["mode"] == mode]
                bars = [Bar(r.level, r.counts) for r in cell.itertuples()]
                MechanismBars(grid[i, j], len(bars), narrow=True).show(bars, limit)
                if i == 0:
                    grid[i, j].set_title(wrapped(mode, 1.5, 8), fontsize=8, pad=5)
                if j == 0:
                    grid[i, j].set_ylabel(trace, fontsize=8, fontweight="bold")
        for axes in grid[-1]:
            axes.set_xlabel("entries")
        text = wrapped(debate_finding(table), WIDE)
        figure.suptitle(text, fontsize=9, x=0.02, y=1 - 0.08 / height, ha="left", va="top")
        legend(figure, y=0.025, counterfactual=any(c.counterfactual for c in table["counts"]))
        figure.subplots_adjust(
            left=0.19, right=0.985, top=1 - 1.0 / height, bottom=0.95 / height,
            wspace=0.06, hspace=0.5,
        )  # fmt: skip
    return figure
