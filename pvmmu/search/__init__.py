"""Search of the whole design space: every hook set, in every mode, on every trace, exactly.

    found = search(["make", "shloop"], ["direct", "vmi"])
    found["make", "direct"].cycles("p4-2006")      # float64[class]
    found.save("results/search"); Search.load("results/search")

Sets that a mode cannot tell apart on a trace are one class (`pvmmu.modes.classes`), counted once;
`Partition.cube` says which class any hook set belongs to.
"""

from __future__ import annotations

from pvmmu.search.cells import Cell
from pvmmu.search.engine import Search, all_modes, search

__all__ = ["Cell", "Search", "all_modes", "search"]
