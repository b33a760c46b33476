"""Which MMU operations should a guest kernel hook? Design exploration by replay.

The way of the data: a `Trace` of MMU operations (recorded from a real kernel, or made by the guest
model) is replayed under a `HookSet` and a paging mode into counts of events, a cost table turns
events into cycles, and a sweep does so for all hook sets.

    >>> from pvmmu import load_trace
    >>> from pvmmu.replay import replay
    >>> replay(load_trace("fork.64"), "linux-6.1", "direct").entries
    262
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` finds, for type checkers and editors
    from pvmmu.guest.linux.guest import Guest as Guest
    from pvmmu.guest.load_trace import load_trace as load_trace, trace_names as trace_names
    from pvmmu.guest.readers.strace import read_strace as read_strace
    from pvmmu.guest.readers.xen.recording import read_recording as read_recording
    from pvmmu.guest.trace import Trace as Trace
    from pvmmu.guest.workloads import run_workload as run_workload
    from pvmmu.hooks import HookSet as HookSet

__version__ = "0.1.0"

_HOME = {
    "Guest": "pvmmu.guest.linux.guest",
    "HookSet": "pvmmu.hooks",
    "Trace": "pvmmu.guest.trace",
    "load_trace": "pvmmu.guest.load_trace",
    "read_recording": "pvmmu.guest.readers.xen.recording",
    "read_strace": "pvmmu.guest.readers.strace",
    "run_workload": "pvmmu.guest.workloads",
    "trace_names": "pvmmu.guest.load_trace",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: `import pvmmu` itself compiles and loads nothing."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pvmmu' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
