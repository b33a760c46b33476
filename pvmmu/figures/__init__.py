"""Figures: a DataFrame or counts in, a matplotlib Figure out; no widgets, no global state."""

from __future__ import annotations

from pvmmu.figures.carriers import Bar, CarrierBars, debate_figure
from pvmmu.figures.designs import DesignFigure
from pvmmu.figures.ranges import range_finding, sensitivity_figure
from pvmmu.figures.reach import ReachFigure, refill_figure
from pvmmu.figures.style import CATEGORY_COLOURS, new_figure, save_figure
from pvmmu.figures.timeline import TimelineFigure, timeline_figure
from pvmmu.figures.walks import WalkFigure, three_ways_figure

__all__ = [
    "CATEGORY_COLOURS",
    "Bar",
    "CarrierBars",
    "DesignFigure",
    "ReachFigure",
    "TimelineFigure",
    "WalkFigure",
    "debate_figure",
    "new_figure",
    "range_finding",
    "refill_figure",
    "save_figure",
    "sensitivity_figure",
    "three_ways_figure",
    "timeline_figure",
]
