"""What becomes of a kernel under a design: the verdict of its streams, in the measurement's words.

==============================================  =================================================
sound, sound on one CPU, needs a new call       ``runs`` (the measured guest has one CPU)
warns                                           ``warns``
corrupts                                        ``crashes`` if each whole program loses an update,
                                                else ``corrupts``: pages are lost either way
dies                                            ``dies``
==============================================  =================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pvmmu.guest.trace import Trace
from pvmmu.modes.base import Mode
from pvmmu.modes.outcome import Infeasible, Outcome
from pvmmu.modes.soundness import Kind, Level, Verdict, judge, worst

_OUTCOME: Final = {
    Level.SOUND: "runs",
    Level.SOUND_ON_ONE_CPU: "runs",
    Level.NEEDS_A_NEW_CALL: "runs",
    Level.WARNS: "warns",
    Level.CORRUPTS: "corrupts",
    Level.DIES: "dies",
}
#: Which of several programs notice lost pages first is chance: these two agree with each other.
_LOSES_PAGES: Final = frozenset(("corrupts", "crashes"))


@dataclass(frozen=True)
class PredictedOutcome:
    """An outcome, and why.

    Parameters
    ----------
    outcome : str
        One of `pvmmu.evidence.truth.design_space_files.OUTCOMES`.
    verdict : Verdict
        Over all streams.
    """

    outcome: str
    verdict: Verdict

    def agrees(self, seen: str) -> bool:
        """Return whether the outcome that was `seen` is the predicted one."""
        return seen == self.outcome or {seen, self.outcome} <= _LOSES_PAGES


class Judge:
    """Collects the verdicts of a design over streams."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict] = {}

    def see(
        self, workload: str, trace: Trace, mode: Mode, result: Outcome | Infeasible
    ) -> None:  # fmt: skip
        """Judge the design on one stream.

        Parameters
        ----------
        workload : str
            The program; whole ones begin with ``cmd_``.
        trace : Trace
            The stream, with the design's brackets.
        mode : Mode
            The paging mode.
        result : Outcome or Infeasible
            What its ``run`` returned.
        """
        self.verdicts[workload] = judge(trace, mode, result)


def predicted_outcome(seen: Judge) -> PredictedOutcome:
    """Return what becomes of a design.

    Parameters
    ----------
    seen : Judge
        Its verdicts on all streams.
    """
    verdict = worst(seen.verdicts.values())
    outcome = _OUTCOME[verdict.level]
    programs = [v for name, v in seen.verdicts.items() if name.startswith("cmd_")]
    lost = [v for v in programs if any(f.kind is Kind.LOST_UPDATE for f in v.findings)]
    if verdict.level == Level.CORRUPTS and programs and len(lost) == len(programs):
        outcome = "crashes"
    return PredictedOutcome(outcome, verdict)
