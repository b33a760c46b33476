"""Panels: ipywidgets over the same functions that scripts call."""

from __future__ import annotations

from pvmmu.explorer.designs import DesignPanel
from pvmmu.explorer.reach import ReachPanel
from pvmmu.explorer.reality import RealityPanel
from pvmmu.explorer.search import SearchPanel
from pvmmu.explorer.timeline import TimelinePanel
from pvmmu.explorer.walks import WalkPanel

__all__ = ["DesignPanel", "ReachPanel", "RealityPanel", "SearchPanel", "TimelinePanel", "WalkPanel"]
