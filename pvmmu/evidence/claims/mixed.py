"""Which hooks does a guest want whose hypervisor keeps tables of its own? The search answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from pvmmu.evidence.claims.cycle_ratio import ClaimResult
from pvmmu.guest.load_trace import load_trace
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.partition import Space
from pvmmu.replay.sensitivity import LEANS, STABLE
from pvmmu.search import DesignSpace, Draws, Search, search, smallest_within

#: The shadow code of the message's date; kernels, programs and machines of its time.
THEN: Final = "shadow:code=xen-2006"
STREAMS_THEN: Final = (
    "cmd_shloop.4@2.6.22", "compile.1@2.6.22", "fork_exit.64@2.6.22", "forkexec.64@2.6.22",
)  # fmt: skip
TABLES_THEN: Final = ("p4-2006-shadow", "p4-2006-vtx", "core2-2007-vtx")
#: Range forms came with folios, in Linux 6.6: nobody could have hooked them then.
SPACE_THEN: Final = Space(
    HookSet.every() - HookSet.of("set_ptes", "get_and_clear_ptes", "wrprotect_ptes")
)
#: What is good enough: cycles over those of the best set.
GOOD: Final = 0.05


@dataclass(frozen=True)
class Answer:
    """What the search finds in one mode under one cost table.

    Parameters
    ----------
    mode, costs : str
        Which.
    hooks : HookSet
        The least intrusive set within `GOOD` of the best.
    saves : float
        Share of an unmodified guest's cycles that it saves.
    low, high : float
        How many more cycles than the best set the best one takes that has low-level hooks alone,
        or high-level hooks alone.
    stability, mixed_in : float
        Share of the draws of prices in which the same set is the answer; in which neither low-level
        nor high-level hooks alone are good enough.
    """

    mode: str
    costs: str
    hooks: HookSet
    saves: float
    low: float
    high: float
    stability: float
    mixed_in: float

    @property
    def mixed(self) -> bool:
        """Whether neither low-level nor high-level hooks alone are good enough."""
        return min(self.low, self.high) > GOOD


def search_then() -> Search:
    """Count every hook set under the shadow code of 2006, on streams of the time."""
    return search([load_trace(n) for n in STREAMS_THEN], [THEN], SPACE_THEN, progress=False)


def answer(found: Search, mode: str, costs: str, samples: int = 32) -> Answer:
    """Return what the search finds in a mode under a cost table.

    Parameters
    ----------
    found : Search
        Counts; all its traces weigh alike.
    mode, costs : str
        One of its modes; a cost table.
    samples : int
        Draws of prices from their ranges.
    """
    b = DesignSpace(found, [mode], costs=costs, draws=Draws(samples, seed=1))
    best = smallest_within(b, GOOD)
    without = {level: _without(b, level) for level in ("high", "low")}

    def regrets(draw: int | None = None) -> list[float]:
        cycles = b.cycles(mode, draw)
        least = np.nanmin(cycles)
        return [float(np.nanmin(cycles[sets]) / least) - 1 for sets in without.values()]

    low, high = regrets()
    drawn = [min(regrets(d)) > GOOD for d in range(samples)]
    nothing = b.cycles_of(HookSet()).iloc[0]
    return Answer(
        mode, costs, HookSet(best["mask"]), float(1 - best["cycles"] / nothing), low, high,
        best["stability"], float(np.mean(drawn)),
    )  # fmt: skip


def _without(b: DesignSpace, level: str) -> np.ndarray:
    """Return which sets have no hook of a level: bool[set]."""
    mine = (any(catalogue()[h].level == level for h in p) for p in b.players)
    mask = sum(1 << i for i, yes in enumerate(mine) if yes)
    out: np.ndarray = (np.arange(2 ** len(b.players)) & mask) == 0
    return out


def answers_table(answers: Iterable[Answer]) -> pd.DataFrame:
    """Return `answers` as a table.

    Returns
    -------
    DataFrame
        By ``mode`` and ``costs``: ``hooks`` (the answer), ``saves``, ``low alone``, ``high alone``,
        ``stability``, ``mixed in`` (see `Answer`).
    """
    rows: list[dict[str, Any]] = [
        {
            "mode": a.mode, "costs": a.costs, "hooks": a.hooks.short, "saves": a.saves,
            "low alone": a.low, "high alone": a.high, "stability": a.stability,
            "mixed in": a.mixed_in,
        }
        for a in answers
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index(["mode", "costs"])


def verdict(answers: Sequence[Answer]) -> ClaimResult:
    """Return whether a mix is wanted under every table, and how far that depends on prices."""
    share = min(a.mixed_in if a.mixed else 1 - a.mixed_in for a in answers)
    word = "stable" if share >= STABLE else "leans" if share >= LEANS else "open"
    wanted = all(a.mixed for a in answers)
    rule = "under each table of prices the best set has hooks of both kinds"
    return ClaimResult(wanted, mixed_finding(answers), word, answers_table(answers), rule)


def mixed_finding(answers: Iterable[Answer]) -> str:
    """Return what each kind of shadow wants, by `answers`, in a sentence."""
    parts = []
    for a in answers:
        what = ", ".join(a.hooks) or "no hook at all"
        parts.append(
            f"{a.mode} ({a.costs}) wants {what}: saves {a.saves:.0%} of the cycles, the answer in "
            f"{a.stability:.0%} of the draws of prices; one kind of hook alone falls short in "
            f"{a.mixed_in:.0%}"
        )
    return "; ".join(parts)
