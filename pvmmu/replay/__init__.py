"""A trace under a design: replay, explanation, comparison, ranges of prices, effects on the TLB.

Pure functions of a trace, a hook set, a mode and prices: nothing here knows a hypervisor's rules,
and every figure, table and search counts through `replay`.
"""

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
