"""Verdicts on claims, each computed once."""

from __future__ import annotations

import functools

import pandas as pd

from pvmmu.errors import PvmmuError
from pvmmu.evidence.claims.claim import CLAIMS
from pvmmu.evidence.claims.cycle_ratio import ClaimResult


@functools.cache
def evaluate(name: str) -> ClaimResult:
    """Return the verdict on the claim called `name`, a key of `CLAIMS`.

    Raises
    ------
    PvmmuError
        There is no such claim.
    """
    if name not in CLAIMS:
        raise PvmmuError(f"no claim is named {name!r} (there are {', '.join(CLAIMS)})")
    return CLAIMS[name].test()


def verdicts(names: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return verdicts side by side.

    Parameters
    ----------
    names : tuple of str
        Of claims; default: all.

    Returns
    -------
    DataFrame
        By claim: ``claim``, ``asked``, ``verdict`` (`ClaimResult.said`), ``stability``,
        ``holds if`` (the rule), ``finding``.
    """
    rows = []
    for name in names or tuple(CLAIMS):
        claim, verdict = CLAIMS[name], evaluate(name)
        rows.append(
            {
                "name": name, "claim": claim.text, "asked": claim.asked,
                "verdict": verdict.said, "stability": verdict.word, "holds if": verdict.rule,
                "finding": verdict.finding,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("name")
