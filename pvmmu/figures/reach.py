"""TLBs drawn: misses of all geometries of a trace, and what a flush costs afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pvmmu.figures.style import CATEGORY_COLOURS, SMALL, WIDE, new_figure, style, wrapped
from pvmmu.x86.reach import Reach
from pvmmu.x86.reach_kernel import MAX_WAYS
from pvmmu.x86.refill import DISTURBANCES, Refill

_WALK, _FLUSH = CATEGORY_COLOURS["walk"], CATEGORY_COLOURS["flush"]
_WAYS: Final = ((1, ":", 1.0), (2, "--", 1.0), (4, "-.", 1.0))
_DASHES: Final = {"flush": "-", "switch": "--", "switch with PCIDs": ":"}


def _plain(x: float, _: Any = None) -> str:
    return f"{x:,.0f}" if x >= 1 else f"{x:.3g}"


class ReachFigure:
    """Misses against entries: of the first level, and of a second behind it.

    Attributes
    ----------
    figure : Figure
        Of fixed size.
    moving : list of Artist
        What changes when only the geometry does.
    """

    def __init__(self) -> None:
        self.figure: Figure = new_figure(WIDE, 4.0)
        with style():
            self.first, self.second = self.figure.subplots(1, 2)
            self.title = self.figure.suptitle("", x=0.02, y=0.985, ha="left", va="top", fontsize=9)
            for a, text in ((self.first, "first level"), (self.second, "second level")):
                a.set_xscale("log", base=2)
                a.set_yscale("log")
                a.set_xlabel(f"entries of the {text}")
                a.xaxis.set_major_formatter(FuncFormatter(_plain))
                a.yaxis.set_major_formatter(FuncFormatter(_plain))
                a.xaxis.set_minor_locator(NullLocator())
                a.xaxis.set_major_locator(LogLocator(base=4))
            self.first.set_ylabel("misses in 1,000 accesses\n(logarithmic)")
            self.figure.subplots_adjust(left=0.135, right=0.965, top=0.87, bottom=0.13, wspace=0.25)
            (self.here,) = self.first.plot([], [], "o", color=_WALK, ms=9, mec="black", zorder=5)
            (self.there,) = self.second.plot([], [], "o", color=_WALK, ms=9, mec="black", zorder=5)
            self._fixed: list[Artist] = []
            self.behind = [
                self.second.plot([], [], dashes, color="#444444", lw=width, label=_name(ways))[0]
                for ways, dashes, width in (*_WAYS, (MAX_WAYS, "-", 1.6))
            ]
            self.second.legend(loc="upper right", fontsize=SMALL, frameon=False)
        self.moving: list[Artist] = [self.there, *self.behind, self.here, self.title]

    def show_trace(self, reach: Reach, shipped: Mapping[str, tuple[int, int]]) -> None:
        """Draw the first level's curves of a trace.

        Parameters
        ----------
        reach : Reach
            All geometries, with all sizes.
        shipped : mapping
            Name of a processor -> sets and ways of its first level for data.
        """
        with style():
            for artist in self._fixed:
                artist.remove()
            a, per = self.first, 1000 / max(reach.accesses, 1)
            curve = reach.fully_associative()[1:] * per
            low = 0.7 * max(float(curve.min()), per)
            for axes in (self.first, self.second):
                axes.set_xlim(1, 1 << 15)
                axes.set_ylim(low, 1500)
            x = np.arange(1, curve.size + 1)
            keep = np.unique(np.geomspace(1, curve.size, 400).astype(int)) - 1
            self._fixed = []
            for ways, dashes, width in _WAYS:
                line = _line(reach, ways, per)
                self._fixed += a.plot(*line, dashes, color="#444444", lw=width, label=_name(ways))
            self._fixed += a.plot(
                x[keep], curve[keep], color="#444444", lw=1.6, label="fully associative"
            )
            self._fixed.append(a.legend(loc="upper right", fontsize=SMALL, frameon=False))
            left = 0  # labels of fully associative levels stand below each other
            for (sets, ways), names in sorted(_grouped(shipped).items()):
                y0 = reach.misses(sets, ways) * per
                self._fixed += a.plot(sets * ways, y0, "x", color="#222222", ms=6)
                side, above = (-9, -9 - 10 * left) if sets == 1 else (6, 4)
                left += sets == 1
                self._fixed.append(
                    a.annotate(
                        names, (sets * ways, y0), (side, above), textcoords="offset points",
                        fontsize=SMALL, ha="right" if sets == 1 else "left",
                    )
                )  # fmt: skip

    def show_geometry(
        self, name: str, reach: Reach, behind: Reach, l1: tuple[int, int], l2: tuple[int, int]
    ) -> None:
        """Move the marks to a geometry.

        Parameters
        ----------
        name : str
            Of the trace.
        reach, behind : Reach
            All geometries of the trace, and of what the first level misses.
        l1, l2 : (int, int)
            Sets and ways of both levels.
        """
        per = 1000 / max(reach.accesses, 1)
        first, second = reach.misses(*l1) * per, behind.misses(*l2) * per
        self.here.set_data([l1[0] * l1[1]], [first])
        self.there.set_data([l2[0] * l2[1]], [second])
        for line, ways in zip(self.behind, (*(w for w, *_ in _WAYS), MAX_WAYS), strict=True):
            line.set_data(*_line(behind, ways, per))
        self.title.set_text(wrapped(reach_finding(name, reach, behind, l1, l2), WIDE))


def _grouped(shipped: Mapping[str, tuple[int, int]]) -> dict[tuple[int, int], str]:
    """Names of the processors that share a geometry."""
    geometries = dict.fromkeys(shipped.values())
    return {g: ", ".join(n for n, own in shipped.items() if own == g) for g in geometries}


def _name(ways: int) -> str:
    return f"{ways} way{'s' * (ways > 1)}"


def _line(reach: Reach, ways: int, per: float) -> tuple[np.ndarray, np.ndarray]:
    sets = 1 << np.arange(reach.max_sets.bit_length())
    return sets * ways, np.array([reach.misses(int(s), ways) for s in sets]) * per


def reach_finding(
    name: str, reach: Reach, behind: Reach, l1: tuple[int, int], l2: tuple[int, int]
) -> str:
    """Return the finding: how many accesses miss both levels."""
    per = 1000 / max(reach.accesses, 1)
    both = behind.misses(*l2)
    miss = f"{name}: {reach.misses(*l1) * per:.3g} of 1,000 accesses miss {l1[0] * l1[1]:,} entries"
    if both <= reach.pages:
        return f"{miss}; with {l2[0] * l2[1]:,} behind them each page is walked once"
    return f"{miss}, and {both * per:.3g} also {l2[0] * l2[1]:,} behind them"


def refill_figure(results: Sequence[Refill], where: str) -> Figure:
    """Draw the extra walks after a disturbance, added up: a curve for each.

    Parameters
    ----------
    results : sequence of Refill
        Of the same program and TLB.
    where : str
        What to call them.
    """
    figure = new_figure(WIDE, 3.8)
    with style():
        a = figure.subplots()
        a.set_xscale("log")
        a.set_xlabel("accesses since the disturbance (logarithmic)")
        a.set_ylabel("walks more than undisturbed")
        top = max(max(r.total for r in results), 1.0)
        for i, r in enumerate(results):
            x = np.arange(1, r.extra.size + 1)
            keep = np.unique(np.geomspace(1, r.extra.size, 400).astype(int)) - 1
            a.plot(x[keep], r.extra[keep], _DASHES[r.disturbance], color=_FLUSH, lw=1.8)
            y = r.total + _lift(i, results, top)
            text = f"{r.disturbance}: {r.total:,.1f}"
            a.text(x[-1] * 1.06, y, text, fontsize=SMALL, va="center")
        a.set_ylim(0, 1.1 * top)
        a.set_xlim(1, results[0].extra.size)
        a.xaxis.set_major_formatter(FuncFormatter(_plain))
        title = wrapped(refill_finding(results, where), WIDE)
        figure.suptitle(title, x=0.02, y=0.985, ha="left", va="top", fontsize=9)
        notes = "; ".join(f"{r.disturbance}: {DISTURBANCES[r.disturbance]}" for r in results)
        figure.text(0.02, 0.015, wrapped(notes, WIDE, SMALL), fontsize=SMALL, color="#555555")
        figure.subplots_adjust(left=0.1, right=0.76, top=0.88, bottom=0.24)
    return figure


def _lift(i: int, results: Sequence[Refill], top: float) -> float:
    """Keep labels of curves that end at the same height apart."""
    below = sum(abs(results[k].total - results[i].total) < 0.06 * top for k in range(i))
    return -0.07 * top * below


def refill_finding(results: Sequence[Refill], where: str) -> str:
    """Return the finding about `where`: what the first of `results` costs, how soon it is paid."""
    r = results[0]
    if r.total < 0.5:
        return f"{where}: a {r.disturbance} costs next to nothing"
    price, half = f"{r.total:,.0f} walks", f"{r.accesses_until(0.5):,} accesses"
    return f"{where}: a {r.disturbance} costs {price}, half of them within {half}"
