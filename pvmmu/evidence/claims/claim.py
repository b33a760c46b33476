"""What a claim is, and all of them by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pvmmu.evidence.claims.contest import Contest, Verdict


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
    test: Callable[[], Verdict]


CLAIMS: Final[dict[str, Claim]] = {}


def claim(name: str, text: str, asked: str) -> Callable[[Callable[[], Verdict]], object]:
    """Make a function the test of a claim."""

    def keep(test: Callable[[], Verdict]) -> Callable[[], Verdict]:
        CLAIMS[name] = Claim(name, text, asked, test)
        return test

    return keep


def pays(c: Contest, what: str) -> Verdict:
    """Return the verdict that the first design of a contest pays."""
    return Verdict(c.pays, f"cycles {what}: {c.span}", c.word, c.table)
