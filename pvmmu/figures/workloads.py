"""Some designs on some workloads: entries to the hypervisor and what they are made of."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from pvmmu.figures.mechanisms import Bar, MechanismBars, legend
from pvmmu.figures.style import PRINT_WIDTH_IN, new_figure, style
from pvmmu.replay.compare import Comparison


def workloads_figure(comparisons: Sequence[Comparison], title: str) -> Figure:
    """Draw designs by workload, for print at 12 cm.

    Parameters
    ----------
    comparisons : sequence of Comparison
        Of the same designs, one for each workload; each workload has its own scale.
    title : str
        The finding.
    """
    bars = len(comparisons[0].designs)
    head, foot, each = 0.62, 1.0, 0.34 + 0.32 * bars
    height = head + foot + each * len(comparisons)
    figure = new_figure(PRINT_WIDTH_IN, height)
    with style():
        grid = figure.subplots(len(comparisons), 1, squeeze=False)[:, 0]
        for axes, c in zip(grid, comparisons, strict=True):
            labels = [f"{d.label} {d.mode.split(':')[0]}" for d in c.designs]
            MechanismBars(axes, bars).show(
                [Bar(s, k) for s, k in zip(labels, c.counts, strict=True)]
            )
            axes.set_title(
                textwrap.shorten(c.trace.name + c.trace.provenance.assumed, 90),
                fontsize=8,
                loc="left",
                pad=3,
                fontweight="bold",
            )
        grid[-1].set_xlabel("entries to the hypervisor (thin bars: what is no entry)")
        figure.suptitle(
            textwrap.fill(title, 74), fontsize=8, x=0.02, y=1 - 0.05 / height, ha="left", va="top"
        )
        marked = any(k.counterfactual for c in comparisons for k in c.counts)
        legend(figure, y=0.06 / height, counterfactual=marked)
        figure.subplots_adjust(
            left=0.17, right=0.94, top=1 - head / height, bottom=foot / height, hspace=0.75
        )
    return figure
