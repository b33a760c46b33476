"""The claims of 2006 and the decisions since, as hypotheses that the model can refute.

    from pvmmu.evidence.claims import CLAIMS, evaluate
    evaluate("late-pin").finding

Each claim has a test on named streams, with named designs and cost tables; a verdict says whether
it holds, in numbers, and whether that depends on costs that nobody knows.
"""

from __future__ import annotations

from pvmmu.evidence.claims.claim import CLAIMS, Claim
from pvmmu.evidence.claims.cycle_ratio import ClaimResult, CycleRatio, cycle_ratio
from pvmmu.evidence.claims.evaluate import evaluate, verdicts
from pvmmu.evidence.claims.hypotheses import ERA
from pvmmu.evidence.claims.questions import evaluated_timeline
from pvmmu.evidence.claims.shadows import PROGRAMS

__all__ = [
    "CLAIMS",
    "ERA",
    "PROGRAMS",
    "Claim",
    "ClaimResult",
    "CycleRatio",
    "cycle_ratio",
    "evaluate",
    "evaluated_timeline",
    "verdicts",
]  # fmt: skip
