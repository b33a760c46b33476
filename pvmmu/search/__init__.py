"""Search of the whole design space: every hook set, in every mode, on every trace, exactly.

    found = search(["make", "shloop"], ["direct", "vmi"])
    found["make", "direct"].cycles("p4-2006")      # float64[class]
    found.save("results/search"); Search.load("results/search")

Sets that a mode cannot tell apart on a trace are one class (`pvmmu.modes.partition`), counted once;
`Partition.cube` says which class any hook set belongs to. What the classes are worth::

    b = DesignSpace(found, ["direct", "vmi"], {"make": 1, "shloop": 1}, "p4-2006")
    b.required                 # hooks that a mode cannot do without
    front(b)                   # exact Pareto front: cycles, regret, intrusiveness
    contributions(b, "direct") # what each optional hook is worth
    smallest_within(b, 0.05)   # the least interface within 5 % of the best in every mode
"""

from __future__ import annotations

from pvmmu.search.answers import (
    best_within,
    compare_interfaces,
    contributions,
    front,
    interactions,
    next_hooks,
    removable_hooks,
    smallest_within,
)
from pvmmu.search.cells import Cell
from pvmmu.search.design_space import DesignSpace
from pvmmu.search.engine import Search, all_modes, search
from pvmmu.search.intrusiveness import Intrusiveness, Weights
from pvmmu.search.pricing import Draws
from pvmmu.search.shapley import Orders

__all__ = [
    "Cell",
    "DesignSpace",
    "Draws",
    "Intrusiveness",
    "Orders",
    "Search",
    "Weights",
    "all_modes",
    "best_within",
    "compare_interfaces",
    "contributions",
    "front",
    "interactions",
    "next_hooks",
    "removable_hooks",
    "search",
    "smallest_within",
]  # fmt: skip
