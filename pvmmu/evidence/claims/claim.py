"""What a claim is, and all of them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pvmmu.evidence.claims.cycle_ratio import ClaimResult, CycleRatio


@dataclass(frozen=True)
class Claim:
    """A claim, or a judgement behind a decision.

    Parameters
    ----------
    name, text, asked : str
        `asked`: when, and where.
    test : callable
        Returns the verdict.
    """

    name: str
    text: str
    asked: str
    test: Callable[[], ClaimResult]


CLAIMS: Final[dict[str, Claim]] = {}


def claim(name: str, text: str, asked: str) -> Callable[[Callable[[], ClaimResult]], object]:
    """Make a function the test of a claim."""

    def keep(test: Callable[[], ClaimResult]) -> Callable[[], ClaimResult]:
        CLAIMS[name] = Claim(name, text, asked, test)
        return test

    return keep


def saves(c: CycleRatio, what: str) -> ClaimResult:
    """Return whether the first design of a comparison saves cycles, as the result of a claim."""
    return ClaimResult(c.saves, f"cycles {what}: {c.span}", c.word, c.table)
