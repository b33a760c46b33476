"""A trace under a design: replay, explanation, comparison, ranges of prices, effects on the TLB."""

from __future__ import annotations

from pvmmu.replay.counts import (
    Counts,
    causes,
    causing,
    diff,
    event_columns,
    explain,
    replay,
)

__all__ = ["Counts", "causes", "causing", "diff", "event_columns", "explain", "replay"]
