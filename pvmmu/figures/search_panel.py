"""The figure of the search panel: drawn whole when the lattice changes, else only what moves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import Bbox
from PIL import Image

from pvmmu.figures.search import INK, shade
from pvmmu.figures.style import SMALL, WIDE, new_figure, style, wrapped
from pvmmu.hooks import HookSet
from pvmmu.search import DesignSpace


class SearchFigure:
    """The lattice on the left; on the right what each hook is worth, and which ones are chosen.

    Axes, ticks and labels are the ground, drawn only when they change; limits change when what is
    shown no longer fits well, not at each step of a slider.

    Attributes
    ----------
    figure : Figure
        Of fixed size.
    """

    def __init__(self) -> None:
        self.figure: Figure = new_figure(WIDE, 4.32)
        self.canvas = cast(FigureCanvasAgg, self.figure.canvas)
        self._ground: Any = None
        self._drawn: Any = None
        self._framed: tuple[Any, ...] = ()
        self._high: dict[str, float] = {"left": 0.0, "right": 0.0}
        with style():
            self.left, self.right = self.figure.subplots(1, 2, width_ratios=(1.25, 1))
            self.points = self.left.scatter(
                [0], [0], s=7, lw=0, c=[0.0], cmap="gray", vmin=0, vmax=1, animated=True
            )
            on_top = {"animated": True, "color": INK}
            (self.front,) = self.left.plot([], [], "o", ms=5, mfc="none", mec=INK, animated=True)
            self.budget = self.left.axvline(0, lw=0.9, ls="--", **on_top)
            (self.chosen,) = self.left.plot([], [], "D", ms=7, **on_top)
            (self.other,) = self.left.plot([], [], "s", ms=8, mfc="none", mew=1.4, **on_top)
            (self.dots,) = self.right.plot([], [], "o", ms=5, **on_top)
            (self.rings,) = self.right.plot([], [], "o", ms=9, mfc="none", **on_top)
            self.title = self.figure.text(0.01, 0.965, "", fontsize=8.5, va="top", animated=True)
            self.bars = LineCollection([], color="#BBBBBB", lw=8, capstyle="butt", animated=True)
            self.right.add_collection(self.bars)
            self.left.set_ylabel("cycles per operation, mean of the modes")
            self.right.tick_params(axis="y", length=0)
            self.right.grid(axis="y", visible=False)
            self.right.set_xlabel("cycles per operation spared\n(average over all orders)")
            for axes in (self.left, self.right):
                axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            self.left.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            self.figure.subplots_adjust(left=0.11, right=0.97, top=0.81, bottom=0.15, wspace=0.68)
        self.lattice = (self.points, self.front, self.bars)
        self.choice = (
            self.budget, self.chosen, self.other, self.dots, self.rings, self.title,
        )  # fmt: skip

    def show_lattice(
        self, b: DesignSpace, front: np.ndarray, worth: pd.DataFrame, mode: str
    ) -> None:
        """Draw another lattice, for `show_choice` to draw on.

        Parameters
        ----------
        b : DesignSpace
            The board.
        front : int64[...]
            Joint classes on the front.
        worth : DataFrame
            Of `pvmmu.search.contributions`, in the order of the board's players.
        mode : str
            Whose contributions they are.
        """
        works = np.isfinite(b.performance_by_class)
        regret = b.regret_by_class.max(axis=0)
        order = np.flatnonzero(works)[np.argsort(-regret[works])]
        x, y = b.least, b.performance_by_class
        self.points.set_offsets(np.column_stack([x[order], y[order]]))
        self.points.set_array(shade(regret[order]))
        self.front.set_data(x[front], y[front])
        values = worth["value"].to_numpy()
        self.bars.set_segments([[(0, k), (v, k)] for k, v in enumerate(values)])
        limits = (
            x[works].min() - 0.7, x[works].max() + 0.7, self._fit("left", y[works].max()),
            self._fit("right", values.max(initial=1.0)),
        )  # fmt: skip
        self._frame((*limits, tuple(worth.index), mode, b.intrusiveness.kernel))
        self._draw(self._ground, self.lattice)
        self._drawn = self.canvas.copy_from_bbox(self.figure.bbox)

    def _fit(self, which: str, most: float) -> float:
        """Return an upper limit: the last one, unless it is too low or much too high."""
        if not most <= self._high[which] <= 2.5 * most:
            self._high[which] = 1.25 * most
        return self._high[which]

    def _frame(self, frame: tuple[Any, ...]) -> None:
        """Draw axes, ticks and labels, if they have changed."""
        if frame == self._framed:
            return
        self._framed = frame
        low, high, top, right, names, mode, kernel = frame
        with style():
            self.left.set_xlim(low, high)
            self.left.set_ylim(0, top)
            self.left.set_xlabel(f"intrusiveness (Linux {kernel})")
            self.right.set_xlim(-0.08 * right, right)
            self.right.set_ylim(len(names) - 0.4, -0.6)
            self.right.set_yticks(range(len(names)), names, fontsize=SMALL)
            self.right.set_title(
                wrapped(f"worth in {mode}; dot: in the chosen set, ring: compared", 2.6, 8),
                fontsize=8, loc="right",
            )  # fmt: skip
            for artist in (*self.lattice, *self.choice):  # `whole` may have left them
                artist.set_animated(True)
            self.canvas.draw()
            self._ground = self.canvas.copy_from_bbox(self.figure.bbox)

    def rows(self, names: Sequence[str]) -> dict[str, Bbox]:
        """Return where the bar of each of `names` (hooks, from below) may reach, in dots."""
        low, high = self.right.get_xlim()
        ends = {n: [(low, k - 0.45), (high, k + 0.45)] for k, n in enumerate(names)}
        return {n: Bbox(np.sort(self.right.transData.transform(e), 0)) for n, e in ends.items()}

    def show_choice(
        self,
        b: DesignSpace,
        hooks: HookSet,
        budget: float,
        title: str,
        other: HookSet | None = None,
    ) -> None:
        """Draw the chosen set over the lattice.

        Parameters
        ----------
        b : DesignSpace
            The board that `show_lattice` took.
        hooks : HookSet
            The chosen set.
        budget : float
            Greatest intrusiveness, in points.
        title : str
            The finding.
        other : HookSet, optional
            A set to compare with: a square, if it runs, and rings.
        """
        number = b.number(hooks)
        j = b.joint[number]
        at = -0.04 * self._high["right"]
        inside, ringed = (
            [k for k, p in enumerate(b.players) if p <= s] for s in (hooks, other or HookSet())
        )
        self.rings.set_data([at] * len(ringed), ringed)
        place = (
            (b.intrusiveness.of(other), b.cycles_of(other).mean()) if other else (np.nan, np.nan)
        )
        self.other.set_data([place[0]], [place[1]])
        self.budget.set_xdata([budget + 0.25, budget + 0.25])
        self.chosen.set_data([b.intrusiveness_of_sets[number]], [b.performance_by_class[j]])
        self.dots.set_data([at] * len(inside), inside)
        self.title.set_text(wrapped(title, WIDE, 8.5))
        self._draw(self._drawn, self.choice)

    def _draw(self, ground: Any, artists: tuple[Artist, ...]) -> None:
        with style():
            self.canvas.restore_region(ground)
            for artist in artists:
                self.figure.draw_artist(artist)

    def png(self) -> bytes:
        """Return what is shown as PNG (8-bit palette: it is all greys)."""
        pixels = np.asarray(self.canvas.buffer_rgba())[:, :, 0]
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "png", compress_level=1)
        return out.getvalue()

    def whole(self) -> Figure:
        """Return the figure with all that moves in it, for files."""
        for artist in (*self.lattice, *self.choice):
            artist.set_animated(False)
        return self.figure
