"""Which MMU operations should a guest kernel hook? Design exploration by replay.

The way of the data: a `Trace` of MMU operations (recorded from a real kernel, or made by the guest
model) is replayed under a `HookSet` and a paging mode into counts of events, a cost table turns
events into cycles, and a sweep does so for all hook sets.

    >>> import pvmmu as pv
    >>> from pvmmu.replay import replay
    >>> replay(pv.load_trace("fork.64"), "linux-6.1", "direct").entries
    262

What a session needs most is at hand as ``pv.NAME``, imported at its first use; the rest is in the
rooms (``pvmmu.replay``, ``pvmmu.search``, ...), whose first lines say what lives there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` finds, for type checkers and editors
    from pvmmu.costs import get_costs as get_costs
    from pvmmu.evidence.claims import verdicts as verdicts
    from pvmmu.evidence.truth import shipped_comparison as shipped_comparison
    from pvmmu.evidence.unmerged import what_if as what_if
    from pvmmu.guest.linux.guest import Guest as Guest
    from pvmmu.guest.load_trace import load_trace as load_trace, trace_names as trace_names
    from pvmmu.guest.readers.strace import read_strace as read_strace
    from pvmmu.guest.readers.xen.recording import read_recording as read_recording
    from pvmmu.guest.trace import Op as Op, Trace as Trace
    from pvmmu.guest.workloads import run_workload as run_workload
    from pvmmu.hooks import HookSet as HookSet, interfaces as interfaces
    from pvmmu.hooks.custom import register_hook as register_hook
    from pvmmu.modes import get_mode as get_mode
    from pvmmu.modes.custom import CustomMode as CustomMode
    from pvmmu.panels import (
        DesignPanel as DesignPanel,
        RealityPanel as RealityPanel,
        SearchPanel as SearchPanel,
        TimelinePanel as TimelinePanel,
        WalkPanel as WalkPanel,
    )
    from pvmmu.replay import diff as diff, explain as explain
    from pvmmu.replay.compare import Comparison as Comparison, Design as Design
    from pvmmu.replay.sensitivity import sensitivity as sensitivity
    from pvmmu.search import (
        DesignSpace as DesignSpace,
        Draws as Draws,
        best_within as best_within,
        contributions as contributions,
        front as front,
        next_hooks as next_hooks,
        removable_hooks as removable_hooks,
    )
    from pvmmu.search.sweep import sweep as sweep

__version__ = "0.1.0"

_HOME = {
    "Comparison": "pvmmu.replay.compare",
    "CustomMode": "pvmmu.modes.custom",
    "Design": "pvmmu.replay.compare",
    "DesignPanel": "pvmmu.panels",
    "DesignSpace": "pvmmu.search",
    "Draws": "pvmmu.search",
    "Guest": "pvmmu.guest.linux.guest",
    "HookSet": "pvmmu.hooks",
    "Op": "pvmmu.guest.trace",
    "RealityPanel": "pvmmu.panels",
    "SearchPanel": "pvmmu.panels",
    "TimelinePanel": "pvmmu.panels",
    "Trace": "pvmmu.guest.trace",
    "WalkPanel": "pvmmu.panels",
    "best_within": "pvmmu.search",
    "contributions": "pvmmu.search",
    "diff": "pvmmu.replay",
    "explain": "pvmmu.replay",
    "front": "pvmmu.search",
    "get_costs": "pvmmu.costs",
    "get_mode": "pvmmu.modes",
    "interfaces": "pvmmu.hooks",
    "load_trace": "pvmmu.guest.load_trace",
    "next_hooks": "pvmmu.search",
    "read_recording": "pvmmu.guest.readers.xen.recording",
    "read_strace": "pvmmu.guest.readers.strace",
    "register_hook": "pvmmu.hooks.custom",
    "removable_hooks": "pvmmu.search",
    "run_workload": "pvmmu.guest.workloads",
    "sensitivity": "pvmmu.replay.sensitivity",
    "shipped_comparison": "pvmmu.evidence.truth",
    "sweep": "pvmmu.search.sweep",
    "trace_names": "pvmmu.guest.load_trace",
    "verdicts": "pvmmu.evidence.claims",
    "what_if": "pvmmu.evidence.unmerged",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `import pvmmu` itself compiles and loads nothing."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pvmmu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
