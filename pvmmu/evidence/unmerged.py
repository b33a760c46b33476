"""What Linux 6.1 does not have: what each hook, or each bracket more, would save on real streams.

Today's interface is the guest's own (Linux 6.1 and 6.12 on Xen offer the same hooks). A `WhatIf`
adds hooks, or lets the kernel open lazy MMU brackets where it opens none (`pvmmu.guest.rewrite`).
The bracket of vmap is in Linux since 6.16; one over neighbouring tables was never proposed, and is
unsafe. What `set_ptes` had from 6.6 to 6.14 is in `pvmmu.evidence.set_ptes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.costs import CostTable
from pvmmu.guest.rewrite import REWRITES
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.modes.soundness import Level, Verdict, soundness_over
from pvmmu.replay import replay
from pvmmu.replay.sensitivity import sensitivity
from pvmmu.search.verdicts import witnesses

#: The interface, mode and cost table in question.
TODAY, MODE, COSTS = "linux-6.1", "direct", "xen-2026"
#: Shadow paging of today, with what its guests hook.
SHADOWS: Final = {"KVM 6.1": ("none", "shadow"), "Xen 4.17": ("exit_mmap", "shadow:code=xen-4.17")}


@dataclass(frozen=True)
class WhatIf:
    """A change to hooks, or to the brackets that generic mm opens.

    Parameters
    ----------
    name : str
        For tables and figures.
    hooks : str
        Hooks more than today's, as `HookSet.parse` takes them; empty: none.
    brackets : tuple of str
        Of `REWRITES`: ``fault-around``, ``vmap``, ``joined``.
    """

    name: str
    hooks: str = ""
    brackets: tuple[str, ...] = ()

    def rewrite(self, trace: Trace) -> Trace:
        """Return the stream of `trace` with the brackets that the kernel would open."""
        for name in self.brackets:
            trace = REWRITES[name](trace)
        return trace


_ENTRIES: Final = "ptep_get_and_clear+ptep_set_wrprotect+ptep_test_and_clear_young"
_RANGES: Final = "set_ptes+get_and_clear_ptes+wrprotect_ptes"
_BRACKETS: Final = ("fault-around", "vmap")
#: What can be tried, by name: single hooks, single brackets, combinations.
WHAT_IFS: Final = {
    w.name: w
    for w in (
        WhatIf("get_and_clear", "ptep_get_and_clear"),
        WhatIf("wrprotect", "ptep_set_wrprotect"),
        WhatIf("clear_young", "ptep_test_and_clear_young"),
        WhatIf("set_ptes (range)", "set_ptes"),
        WhatIf("get_and_clear_ptes (range)", "get_and_clear_ptes"),
        WhatIf("wrprotect_ptes (range)", "wrprotect_ptes"),
        WhatIf("fault-around in a bracket", brackets=("fault-around",)),
        WhatIf("vmap in a bracket", brackets=("vmap",)),
        WhatIf("one bracket over neighbouring tables", brackets=("joined",)),
        WhatIf("all ranges", _RANGES),
        WhatIf("all brackets", brackets=_BRACKETS),
        WhatIf("wrprotect, and fault-around in a bracket", "ptep_set_wrprotect", ("fault-around",)),
        WhatIf("all of these", f"{_ENTRIES}+{_RANGES}", _BRACKETS),
    )
}
#: One change each, that a kernel could make.
SINGLE: Final = tuple(WHAT_IFS)[:8]
#: What was asked for in recent years, or could be, least first.
PROPOSALS: Final = (
    "get_and_clear", "all ranges", "vmap in a bracket", "fault-around in a bracket", "all brackets",
    "all of these",
)  # fmt: skip
#: What may make direct paging cheaper than an unmodified guest's shadow.
AGAINST_SHADOW: Final = (
    "get_and_clear", "wrprotect", "fault-around in a bracket",
    "wrprotect, and fault-around in a bracket",
)  # fmt: skip


def what_if(
    traces: Sequence[Trace], names: Sequence[str] = (*SINGLE, "all of these"),
    costs: CostTable | str = COSTS, *, mode: str = MODE, samples: int = 256, seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Replay streams under today's hooks, and as each change would have them.

    Parameters
    ----------
    traces : sequence of Trace
        Recorded under today's interface.
    names : sequence of str
        Changes, of `WHAT_IFS`, each by itself.
    costs : CostTable or str
        Prices.
    mode : str
        Paging mode.
    samples, seed : int
        Of the draws from the ranges of prices.

    Returns
    -------
    DataFrame
        One row per stream and change: ``stream``, ``change``, ``hooks_more``, ``entries`` (to the
        hypervisor, today), ``entries_saved`` (number) and their share ``entries_share``;
        ``saved`` (share of the cycles), ``low`` and ``high`` (where 90 % of the draws lie),
        ``stability`` (of whether anything is saved); ``verdict`` of `pvmmu.modes.soundness` on
        these streams with the change and on all shipped streams with its hooks, and ``why``.
    """
    hooks, rows = HookSet.parse(TODAY), []
    verdicts = {name: _verdict(traces, WHAT_IFS[name], hooks, mode) for name in names}
    for trace in traces:
        today = replay(trace, hooks, mode)
        for change in (WHAT_IFS[name] for name in names):
            more = HookSet.parse(change.hooks or "none") - hooks
            counts = replay(change.rewrite(trace), hooks | more, mode)
            s = sensitivity({"today": today, "then": counts}, costs, samples=samples, seed=seed)
            low, high = np.percentile(1 - s.draws["then"] / s.draws["today"], [5, 95])
            fewer = today.entries - counts.entries
            rows.append(
                {
                    "stream": trace.name, "change": change.name, "hooks_more": len(more),
                    "entries": today.entries, "entries_saved": fewer,
                    "entries_share": fewer / max(1, today.entries),
                    "saved": float(1 - s.nominal["then"][0] / s.nominal["today"][0]),
                    "low": float(low), "high": float(high),
                    "stability": s.stability(lambda c: c["then"] < c["today"]).word,
                    "verdict": verdicts[change.name].words, "why": verdicts[change.name].reason,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _verdict(traces: Sequence[Trace], change: WhatIf, today: HookSet, mode: str) -> Verdict:
    """Return whether a change works: with other brackets on these streams, its hooks on all."""
    hooks = today | HookSet.parse(change.hooks or "none")
    changed = [change.rewrite(t) for t in traces] if change.brackets else []
    return soundness_over([*changed, *witnesses(traces)], hooks, mode)


def costliest_omission(table: pd.DataFrame) -> pd.Series:
    """Return for each stream of `table` (`what_if`) the single change that saves most cycles.

    Only changes that are sound count.
    """
    single = table[table["change"].isin(SINGLE) & (table["verdict"] == Level.SOUND.words)]
    best = single.loc[single.groupby("stream", sort=False)["saved"].idxmax()]
    out: pd.Series = best.set_index("stream")["change"]
    return out


def omission_finding(table: pd.DataFrame) -> str:
    """Return which omission of `table` (`what_if`) costs most cycles, in a sentence."""
    first = costliest_omission(table).value_counts()
    name, streams = first.index[0], table["stream"].nunique()
    of = table[table["change"] == name]["saved"]
    return (
        f"On {first.iloc[0]} of {streams} real streams the costliest omission of today's interface "
        f"that would work is {name}: it would save {of.min():.0%} to {of.max():.0%} of the "
        "modelled cycles of paging (not of run time)"
    )


def entries_finding(table: pd.DataFrame) -> str:
    """Return the entries to the hypervisor that the changes of `table` (`what_if`) save."""
    saved = table.groupby("change", sort=False)["entries_share"]
    words = table.groupby("change", sort=False)["verdict"].first()
    marks = {n: "" if w == Level.SOUND.words else f": {w}" for n, w in words.items()}
    parts = [f"{low:.0%} to {high:.0%} ({name}{marks[name]})" for name, low, high in
             zip(saved.min().index, saved.min(), saved.max(), strict=True)]  # fmt: skip
    return "Entries to the hypervisor saved: " + "; ".join(parts)


def against_shadow(traces: Sequence[Trace], names: Sequence[str] = AGAINST_SHADOW) -> pd.DataFrame:
    """Return entries under direct paging, today's and with changes, and under shadow paging.

    Parameters
    ----------
    traces : sequence of Trace
        Streams; under shadow paging they are replayed without hooks that need direct paging.
    names : sequence of str
        Changes to direct paging's interface, of `WHAT_IFS`.

    Returns
    -------
    DataFrame
        By stream: ``today``, a column for each change, and one for each of `SHADOWS`.
    """
    table = what_if(traces, names, samples=2)
    left = table.assign(left=table["entries"] - table["entries_saved"])
    out = left.pivot(index="stream", columns="change", values="left")
    out = out.loc[[t.name for t in traces], list(names)]
    out.insert(0, "today", table.groupby("stream")["entries"].first())
    for name, design in SHADOWS.items():
        out[name] = [replay(t, *design).entries for t in traces]
    return out.rename_axis(columns=None)


def against_shadow_finding(table: pd.DataFrame) -> str:
    """Return on how many streams of `table` (`against_shadow`) direct paging makes no more entries
    than either shadow.
    """
    shadow = table[list(SHADOWS)].min(axis=1)
    direct = table.drop(columns=list(SHADOWS))
    fewer = {name: int((entries <= shadow).sum()) for name, entries in direct.items()}
    parts = "; ".join(f"{n} ({name})" for name, n in fewer.items())
    today = np.exp(np.log(direct["today"] / shadow).mean())
    return (
        f"Direct paging makes {today:.1f} times the entries of the better shadow today; of "
        f"{len(table)} streams it makes no more on {parts}"
    )
