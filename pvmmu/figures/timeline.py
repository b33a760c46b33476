"""Timelines: every operation that a kernel makes on its MMU, in order, in lanes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from pvmmu.figures.style import CATEGORY_COLOURS, SMALL, WIDE, new_figure, style
from pvmmu.guest.timeline import LANES, Timeline, timeline
from pvmmu.guest.trace import Trace

#: What carries an operation on bare hardware, for colours; the rest are plain stores.
_CATEGORY = {"fault": "trap", "flush": "flush", "switch, CR3": "flush"}
#: More steps than this are drawn as shares of columns of pixels.
_DENSE = 3000


class TimelineFigure:
    """A figure of one or more timelines, one above the other, drawn again and again.

    Parameters
    ----------
    rows : int
        Timelines at most.
    """

    def __init__(self, rows: int = 2) -> None:
        self.rows = rows
        self.figure = new_figure(WIDE, 0.5 + 2.25 * rows)

    def draw(self, traces: Mapping[str, Trace], title: str = "") -> Figure:
        """Draw `traces` (title -> trace) under a `title`; all share the scale of the longest.

        Raises
        ------
        ValueError
            More traces than the figure has room for.
        """
        if len(traces) > self.rows:
            raise ValueError(f"{len(traces)} timelines, there is room for {self.rows}")
        lines = {name: timeline(t) for name, t in traces.items()}
        used = [n for n in LANES if any(len(line.lanes[n]) for line in lines.values())]
        most = max(line.steps for line in lines.values())
        self.figure.clear()
        with style():
            axes = self.figure.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0]
            for ax, (name, line) in zip(axes, lines.items(), strict=True):
                _lanes(ax, line, used)
                ax.set_title(f"{name}: {line.steps:,} operations", loc="left")
                ax.set_xlim(-0.01 * most, 1.01 * most)
            axes[-1].set_xlabel("operations in order; grey bars: lazy MMU brackets")
            if title:
                self.figure.suptitle(title, fontsize=9.5, x=0.01, ha="left", fontweight="bold")
            width, height = self.figure.get_size_inches()
            self.figure.subplots_adjust(
                left=1.15 / width, right=1 - 0.1 / width, bottom=0.45 / height,
                top=1 - (0.5 if title else 0.28) / height, hspace=0.2,
            )  # fmt: skip
        return self.figure


def _lanes(ax: Axes, line: Timeline, used: list[str]) -> None:
    """Draw the lanes of one timeline."""
    for first, last in line.brackets:
        ax.axvspan(first, max(last, first + line.steps / 800), color="#E4E4E4", lw=0, zorder=0)
    for i, name in enumerate(used):
        y = len(used) - 1 - i
        colour = CATEGORY_COLOURS[_CATEGORY[name]] if name in _CATEGORY else "#333333"
        x, share = _columns(line.lanes[name], line.steps)
        half = 0.1 + 0.32 * share
        segments = np.stack(
            [np.stack([x, y - half], axis=1), np.stack([x, y + half], axis=1)], axis=1
        )
        ax.add_collection(LineCollection(list(segments), colors=colour, linewidths=0.8))
    for step, number in line.phases:
        ax.axvline(step, color="#888888", lw=0.6, ls=":")
        if number < 10:
            ax.annotate(f"P{number}", (step, len(used) - 0.42), fontsize=SMALL, color="#555555")
    ax.set_yticks(range(len(used)), used[::-1])
    ax.set_ylim(-0.6, len(used) - 0.3)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)


def _columns(steps: np.ndarray, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Return places and heights (0 to 1) of ticks: each operation, or the share of a column."""
    if total <= _DENSE:
        return steps.astype(np.float64), np.ones(len(steps))
    width = total / 900
    column, number = np.unique((steps / width).astype(np.int64), return_counts=True)
    return (column + 0.5) * width, np.minimum(number / width, 1.0)


def timeline_figure(traces: Mapping[str, Trace], title: str = "") -> Figure:
    """Return timelines of `traces` (title -> trace), one above the other, under a `title`."""
    return TimelineFigure(len(traces)).draw(traces, title)
