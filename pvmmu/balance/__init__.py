"""The balance of performance, flexibility and intrusiveness over all hook sets of a search.

b = Balance(found, ["direct", "vmi"], {"make": 1, "shloop": 1}, "p4-2006")
b.required                 # hooks that a mode cannot do without
front(b)                   # exact Pareto front: cycles, regret, intrusiveness
contributions(b, "direct") # what each optional hook is worth
smallest_within(b, 0.05)   # the least interface within 5 % of the best in every mode
"""

from __future__ import annotations

from pvmmu.balance.answers import (
    best_within,
    contributions,
    front,
    interactions,
    next_hooks,
    removable_hooks,
    smallest_within,
    standing,
)
from pvmmu.balance.board import Balance
from pvmmu.balance.intrusion import Intrusion, Weights
from pvmmu.balance.pricing import Draws
from pvmmu.balance.today import PROPOSALS, Proposal, proposals, proposals_finding
from pvmmu.balance.turning import turning, turning_finding
from pvmmu.balance.values import Orders

__all__ = [
    "PROPOSALS", "Balance", "Draws", "Intrusion", "Orders", "Proposal", "Weights", "best_within",
    "contributions", "front", "interactions", "next_hooks", "proposals", "proposals_finding",
    "removable_hooks", "smallest_within", "standing", "turning", "turning_finding",
]  # fmt: skip
