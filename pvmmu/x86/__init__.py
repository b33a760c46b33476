"""The hardware: page-table formats, walks, TLBs. Knows nothing of guests or hypervisors.

>>> from pvmmu.x86 import Registers, walk_many
>>> r = walk_many(words, Registers(cr0=.., cr3=.., cr4=.., efer=..), va, access, user, ac)

Nothing is compiled before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "Count": "pvmmu.x86.mmu_events",
    "Ept": "pvmmu.x86.registers",
    "Event": "pvmmu.x86.mmu_events",
    "ExampleSpace": "pvmmu.x86.examples",
    "Geometry": "pvmmu.x86.geometry",
    "Memory": "pvmmu.x86.memory",
    "MissStream": "pvmmu.x86.reach",
    "Mmu": "pvmmu.x86.mmu",
    "Npt": "pvmmu.x86.registers",
    "Pages": "pvmmu.x86.accesses",
    "Reach": "pvmmu.x86.reach",
    "Registers": "pvmmu.x86.registers",
    "Tables": "pvmmu.x86.memory",
    "Tlb": "pvmmu.x86.tlb",
    "geometry_names": "pvmmu.x86.geometry",
    "load_geometry": "pvmmu.x86.geometry",
    "make_events": "pvmmu.x86.mmu_events",
    "make_geometry": "pvmmu.x86.geometry",
    "nest": "pvmmu.x86.memory",
    "pages": "pvmmu.x86.accesses",
    "shipped_geometry": "pvmmu.x86.geometry",
    "walk_many": "pvmmu.x86.walk",
    "walk_nested_many": "pvmmu.x86.walk",
    "walk_one": "pvmmu.x86.explain",
    "warm_up": "pvmmu.x86.warm",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pvmmu.x86' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
