"""The claims of 2006 and the decisions since, as hypotheses that the model can refute.

    from pvmmu.claims import CLAIMS, judge
    judge("late-pin").finding

Each claim has a test on named streams, with named designs and cost tables; a verdict says whether
it holds, in numbers, and whether that depends on costs that nobody knows.
"""

from __future__ import annotations

from pvmmu.claims.claim import CLAIMS, Claim
from pvmmu.claims.contest import Contest, Verdict, contest
from pvmmu.claims.hypotheses import ERA
from pvmmu.claims.judgement import judge, verdicts
from pvmmu.claims.questions import judged_timeline
from pvmmu.claims.shadows import PROGRAMS

__all__ = [
    "CLAIMS", "ERA", "PROGRAMS", "Claim", "Contest", "Verdict", "contest", "judge",
    "judged_timeline", "verdicts",
]  # fmt: skip
