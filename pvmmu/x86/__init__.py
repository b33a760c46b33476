"""The hardware: page-table formats, walks, TLBs. Knows nothing of guests or hypervisors.

Written from the manuals, and alone: it imports nothing of the other rooms. A paging format is a
table in `formats`, a TLB a TOML file in ``data/tlb``; kernels may change if their twins agree.

>>> from pvmmu.x86 import Registers, walk_many
>>> r = walk_many(words, Registers(cr0=.., cr3=.., cr4=.., efer=..), va, access, user, ac)

Nothing is compiled before it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` finds, for type checkers and editors
    from pvmmu.x86.accesses import Pages as Pages, pages as pages
    from pvmmu.x86.examples import ExampleSpace as ExampleSpace
    from pvmmu.x86.explain import walk_one as walk_one
    from pvmmu.x86.geometry import (
        Geometry as Geometry,
        geometry_names as geometry_names,
        load_geometry as load_geometry,
        make_geometry as make_geometry,
        shipped_geometry as shipped_geometry,
    )
    from pvmmu.x86.memory import Memory as Memory, Tables as Tables, nest as nest
    from pvmmu.x86.mmu import Mmu as Mmu
    from pvmmu.x86.mmu_events import Count as Count, Event as Event, make_events as make_events
    from pvmmu.x86.reach import MissStream as MissStream, Reach as Reach
    from pvmmu.x86.registers import Ept as Ept, Npt as Npt, Registers as Registers
    from pvmmu.x86.tlb import Tlb as Tlb
    from pvmmu.x86.walk import walk_many as walk_many, walk_nested_many as walk_nested_many
    from pvmmu.x86.warm import warm_up as warm_up

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

__all__ = [
    "Count",
    "Ept",
    "Event",
    "ExampleSpace",
    "Geometry",
    "Memory",
    "MissStream",
    "Mmu",
    "Npt",
    "Pages",
    "Reach",
    "Registers",
    "Tables",
    "Tlb",
    "geometry_names",
    "load_geometry",
    "make_events",
    "make_geometry",
    "nest",
    "pages",
    "shipped_geometry",
    "walk_many",
    "walk_nested_many",
    "walk_one",
    "warm_up",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'pvmmu.x86' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
