"""Panels: ipywidgets over the same functions that scripts call.

A panel is its controls by name and a `_draw`; state, undo, errors and export come from `Panel`. The
only room that imports ipywidgets.
"""

from __future__ import annotations

from pvmmu.panels.designs import DesignPanel
from pvmmu.panels.oops import OopsPanel
from pvmmu.panels.reach import ReachPanel
from pvmmu.panels.reality import RealityPanel
from pvmmu.panels.search import SearchPanel
from pvmmu.panels.timeline import TimelinePanel
from pvmmu.panels.walks import WalkPanel

__all__ = [
    "DesignPanel",
    "OopsPanel",
    "ReachPanel",
    "RealityPanel",
    "SearchPanel",
    "TimelinePanel",
    "WalkPanel",
]
