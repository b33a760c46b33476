"""Figures: a DataFrame or counts in, a matplotlib Figure out; no widgets, no global state.

A figure shows what it is given, under a title that is computed from it; how it looks is said once,
in `style`. Each has an example in ``tests/figures/gallery.py``.
"""

from __future__ import annotations

from pvmmu.figures.counterfactual import counterfactual_figure
from pvmmu.figures.designs import DesignFigure, designs_figure
from pvmmu.figures.direct_vs_shadow import direct_vs_shadow_figure
from pvmmu.figures.interfaces import interfaces_figure, proposals_figure
from pvmmu.figures.mechanisms import Bar, MechanismBars, debate_figure
from pvmmu.figures.native_one import native_one_figure
from pvmmu.figures.ranges import range_finding, sensitivity_figure
from pvmmu.figures.reach import ReachFigure, refill_figure
from pvmmu.figures.reality import reality_figure
from pvmmu.figures.search import (
    contribution_figure,
    contribution_finding,
    dot_matrix_figure,
    interaction_figure,
    lattice_figure,
    lattice_finding,
)
from pvmmu.figures.style import CATEGORY_COLOURS, new_figure, save_figure
from pvmmu.figures.timeline import TimelineFigure, timeline_figure
from pvmmu.figures.walks import WalkFigure, three_ways_figure

__all__ = [
    "CATEGORY_COLOURS",
    "Bar",
    "DesignFigure",
    "MechanismBars",
    "ReachFigure",
    "TimelineFigure",
    "WalkFigure",
    "contribution_figure",
    "contribution_finding",
    "counterfactual_figure",
    "debate_figure",
    "designs_figure",
    "direct_vs_shadow_figure",
    "dot_matrix_figure",
    "interaction_figure",
    "interfaces_figure",
    "lattice_figure",
    "lattice_finding",
    "native_one_figure",
    "new_figure",
    "proposals_figure",
    "range_finding",
    "reality_figure",
    "refill_figure",
    "save_figure",
    "sensitivity_figure",
    "three_ways_figure",
    "timeline_figure",
]
