"""Figures: a DataFrame or counts in, a matplotlib Figure out; no widgets, no global state."""

from __future__ import annotations

from pvmmu.figures.carriers import Bar, CarrierBars, debate_figure
from pvmmu.figures.designs import DesignFigure
from pvmmu.figures.ranges import range_finding, sensitivity_figure
from pvmmu.figures.style import CATEGORY_COLOURS, new_figure, save_figure

__all__ = [
    "CATEGORY_COLOURS",
    "Bar",
    "CarrierBars",
    "DesignFigure",
    "debate_figure",
    "new_figure",
    "range_finding",
    "save_figure",
    "sensitivity_figure",
]
