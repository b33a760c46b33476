"""Prices with their ranges: who is cheapest, how surely, and which figure could change it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pvmmu.figures.style import CATEGORY_COLOURS, CATEGORY_HATCHES, WIDE, new_figure, style, wrapped
from pvmmu.modes.events import EVENTS, column
from pvmmu.replay.sensitivity import Sensitivity

_CATEGORY = {column(e): info.category for e, info in EVENTS.items()}
#: Figures shown of those that move a ratio.
STRONGEST = 6


def sensitivity_figure(s: Sensitivity, reference: str, subject: str = "") -> Figure:
    """Draw the cycles of designs over the ranges of the costs, relative to one of them.

    Parameters
    ----------
    s : Sensitivity
        Of some designs.
    reference : str
        Label of the design that is 1; the ratio is taken draw by draw, so that what makes both
        dearer does not blur it.
    subject : str
        Label of the design whose ratio is taken apart on the right; default: the cheapest other.

    Returns
    -------
    Figure
        Left: for each design the ratio at the tables' values (dot), and where 90 % of the draws
        lie; right: how far the strongest single figures move the subject's ratio.
    """
    labels = list(s.ranks().index)
    subject = subject or next(label for label in labels if label != reference)
    figure = new_figure(WIDE, 1.5 + 0.3 * max(len(labels), STRONGEST))
    height = figure.get_figheight()
    with style():
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        _intervals(left, s, labels, reference)
        _swings(right, s, subject, reference)
        text = wrapped(range_finding(s, subject, reference), WIDE)
        figure.suptitle(text, fontsize=9, x=0.02, y=1 - 0.07 / height, ha="left", va="top")
        figure.subplots_adjust(
            left=0.16, right=0.985, top=1 - 0.5 / height, bottom=0.78 / height, wspace=0.72
        )
    return figure


def range_finding(s: Sensitivity, subject: str, reference: str) -> str:
    """Return how `subject` compares with `reference` over the ranges of `s`, in a sentence."""
    ratio = float(s.nominal[subject][0] / s.nominal[reference][0])
    cheaper = ratio < 1
    found = s.stability(lambda c: (c[subject] < c[reference]) == cheaper)
    word = "cheaper" if cheaper else "dearer"
    return (
        f"{subject} is {abs(1 - ratio):.0%} {word} than {reference}, and {word} in "
        f"{found.share:.0%} of {s.samples} draws from the ranges of the costs ({found.word})"
    )


def _intervals(axes: Axes, s: Sensitivity, labels: list[str], reference: str) -> None:
    for i, label in enumerate(labels):
        drawn = s.draws[label] / s.draws[reference]
        low, high = np.percentile(drawn, [5, 95])
        axes.plot([low, high], [i, i], color="black", linewidth=1.4, solid_capstyle="butt")
        axes.plot([s.nominal[label][0] / s.nominal[reference][0]], [i], "o", color="black", ms=4.5)
    axes.axvline(1, color="#777777", linewidth=0.8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"cycles, {reference} = 1\n(dot: at the tables' values;\nline: 90 % of draws)")
    axes.grid(axis="y", visible=False)


def _swings(axes: Axes, s: Sensitivity, subject: str, reference: str) -> None:
    table = s.ratios(subject, reference)
    middle = table.attrs["nominal"]
    table = table.head(STRONGEST)
    for i, (name, row) in enumerate(table.iterrows()):
        category = _CATEGORY.get(str(name), "work")
        low, high = sorted((row["low"], row["high"]))
        axes.barh(
            i, high - low, 0.6, left=low, color=CATEGORY_COLOURS[category],
            hatch=CATEGORY_HATCHES[category], edgecolor="white", linewidth=0.4,
        )  # fmt: skip
    axes.axvline(middle, color="black", linewidth=0.8)
    axes.axvline(1, color="#777777", linewidth=0.8, linestyle=":")
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.set_yticks(range(len(table)), [str(n) for n in table.index])
    axes.use_sticky_edges = False  # the strongest bar ends inside the axes
    axes.margins(x=0.08)
    axes.set_xlabel(f"{subject} / {reference},\none figure over its range\n(not from 0)")
    axes.grid(axis="y", visible=False)
