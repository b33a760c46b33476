"""Panels: ipywidgets over the same functions that scripts call."""

from __future__ import annotations

from pvmmu.explorer.designs import DesignPanel

__all__ = ["DesignPanel"]
