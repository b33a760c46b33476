"""Panels: ipywidgets over the same functions that scripts call."""

from __future__ import annotations

from pvmmu.panels.designs import DesignPanel
from pvmmu.panels.reach import ReachPanel
from pvmmu.panels.reality import RealityPanel
from pvmmu.panels.search import SearchPanel
from pvmmu.panels.timeline import TimelinePanel
from pvmmu.panels.walks import WalkPanel

__all__ = ["DesignPanel", "ReachPanel", "RealityPanel", "SearchPanel", "TimelinePanel", "WalkPanel"]
