"""The claims of 2006 and the decisions since, as hypotheses that the model can refute.

    from pvmmu.evidence.claims import CLAIMS, judge
    judge("late-pin").finding

Each claim has a test on named streams, with named designs and cost tables; a verdict says whether
it holds, in numbers, and whether that depends on costs that nobody knows.
"""

from __future__ import annotations

from pvmmu.evidence.claims.claim import CLAIMS, Claim
from pvmmu.evidence.claims.contest import Contest, Verdict, contest
from pvmmu.evidence.claims.hypotheses import ERA
from pvmmu.evidence.claims.judgement import judge, verdicts
from pvmmu.evidence.claims.questions import judged_timeline
from pvmmu.evidence.claims.shadows import PROGRAMS

__all__ = [
    "CLAIMS", "ERA", "PROGRAMS", "Claim", "Contest", "Verdict", "contest", "judge",
    "judged_timeline", "verdicts",
]  # fmt: skip
