"""The comparison of measured designs as a text for the terminal."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pvmmu.evidence.truth.design_space_files import BASE


def design_space_text(path: Path, counters: pd.DataFrame, outcomes: pd.DataFrame) -> str:
    """Return outcomes of all designs, the counters that differ, and what the others needed.

    Parameters
    ----------
    path : Path
        The folder.
    counters, outcomes : DataFrame
        As `pvmmu.evidence.truth.design_space.compare_designs` returns them.
    """
    ok = counters[counters["verdict"] == "ok"].groupby("hooks").size()
    all_of = counters.groupby("hooks").size()
    lines = [
        str(path),
        f"  {'hooks':<9}{'seen':<10}{'predicted':<10}{'':<8}{'counters':>11}  design",
    ]
    for r in outcomes.itertuples():
        agree = f"{ok.get(r.hooks, 0)} of {all_of[r.hooks]}" if r.hooks in all_of else "-"
        agree = "base" if r.hooks == BASE else agree
        lines.append(
            f"  {r.hooks:#x}  {r.measured or '-':<10}{r.predicted:<10}{r.agrees:<8}{agree:>11}  "
            f"{r.design}"
        )
        if r.predicted != "runs":
            lines.append(f"{'':<11}{r.reason}")
    differ = counters[counters["verdict"] != "ok"]
    if len(differ):
        lines += [
            "",
            "  changes against the base that differ: measured, predicted, difference",
            "  (tolerance; noise of the base; what other work in that run explains)",
        ]
    for r in differ.itertuples():
        allowed = f"({r.tolerance:g}; {r.noise:g}; {r.other_work:g})"
        lines.append(
            f"  {r.hooks:#x}  {r.workload:<14}{r.counter:<28}{r.change:>9g}{r.predicted:>11}"
            f"{r.difference:>9g}  {allowed:<18} {r.note}"
        )
    lines += ["", *(f"  {text}" for text in explained(counters))]
    return "\n".join(lines)


def explained(counters: pd.DataFrame) -> list[str]:
    """Return in words how many of the `counters` that agree needed which allowance."""
    agree = counters[counters["verdict"] == "ok"]
    notes = agree["note"].value_counts()
    within = f"{notes.get('', 0):,} counters within 1 or 2 % of the measured change"
    rest = [f"{n:,} more, with {text} allowed for" for text, n in notes.items() if text]
    return [within, *rest]
