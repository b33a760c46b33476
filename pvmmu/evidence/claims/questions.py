"""The timeline as questions: what was known, what the model answers, what the community did."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass

import pandas as pd

from pvmmu.errors import PvmmuError
from pvmmu.evidence.claims.claim import CLAIMS
from pvmmu.evidence.claims.evaluate import evaluate
from pvmmu.paths import data_path


@dataclass(frozen=True)
class Question:
    """A question that the community decided.

    Parameters
    ----------
    date, question, known, community : str
        When, what, what was known then, what was done.
    claim : str
        Key of `CLAIMS`.
    did : bool, optional
        The community acted as if the claim held, or did not; None: the question is open.
    because : str
        Why the model may see it otherwise.
    """

    date: str
    question: str
    known: str
    community: str
    claim: str
    did: bool | None = None
    because: str = ""


@functools.cache
def questions() -> tuple[Question, ...]:
    """Return the questions, oldest first.

    Raises
    ------
    PvmmuError
        A question misses a field or names no claim.
    """
    path = data_path("history", "questions.toml")
    try:
        doc = tomllib.loads(path.read_text(encoding="utf-8"))
        found = tuple(Question(**table) for table in doc["question"])
    except (tomllib.TOMLDecodeError, TypeError, KeyError) as e:
        raise PvmmuError(f"{path}: {e}") from None
    for q in found:
        if q.claim not in CLAIMS:
            raise PvmmuError(f"{path}: {q.date}: no claim is named {q.claim!r}")
    return tuple(sorted(found, key=lambda q: q.date))


def evaluated_timeline() -> pd.DataFrame:
    """Return the questions with the model's answers.

    Returns
    -------
    DataFrame
        By date: ``question``, ``known`` (then), ``model`` (`ClaimResult.said` and stability),
        ``finding``, ``community``, ``agreement`` (``yes``; ``no``; ``open`` where costs or the
        reading of the claim leave it open; ``undecided`` where the community
        is; ``not testable yet``), ``because`` (where it is not ``yes``).
    """
    rows = []
    for q in questions():
        verdict = evaluate(q.claim)
        agree = None if verdict.holds is None else verdict.holds == q.did
        said = {True: "yes", False: "no", None: "not testable yet"}
        agreement = "open" if verdict.said.startswith("depends") else said[agree]
        agreement = "undecided" if q.did is None else agreement
        rows.append(
            {
                "date": q.date, "question": q.question, "known": q.known,
                "model": f"{verdict.said} ({verdict.word})", "finding": verdict.finding,
                "community": q.community, "agreement": agreement,
                "because": "" if agreement == "yes" else q.because,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("date")
