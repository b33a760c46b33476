"""The hardware: page-table formats, walks, TLBs. Knows nothing of guests or hypervisors.

>>> from pvmmu.x86 import Registers, walk_many
>>> r = walk_many(words, Registers(cr0=.., cr3=.., cr4=.., efer=..), va, access, user, ac)

Nothing is compiled before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Ept": "pvmmu.x86.registers",
    "Npt": "pvmmu.x86.registers",
    "Memory": "pvmmu.x86.memory",
    "Registers": "pvmmu.x86.registers",
    "Tables": "pvmmu.x86.memory",
    "nest": "pvmmu.x86.memory",
    "walk_many": "pvmmu.x86.walk",
    "walk_nested_many": "pvmmu.x86.walk",
    "walk_one": "pvmmu.x86.explain",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pvmmu.x86' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
