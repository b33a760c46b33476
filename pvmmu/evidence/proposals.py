"""Today's question: what would the proposals of recent years bring, on recorded streams?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from pvmmu.costs import CostTable, get_costs
from pvmmu.guest.rewrite import bracket_runs, join_brackets
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.replay import replay

#: What Linux 6.12 and 6.18 offer.
TODAY: Final = "linux-6.12"


@dataclass(frozen=True)
class Proposal:
    """A change to hooks or to what generic mm does.

    Parameters
    ----------
    name : str
        For tables and figures.
    hooks : str
        Hooks more than today's, as `HookSet.parse` takes them; empty: none.
    brackets : tuple of str
        ``fault-around`` (a bracket around what one fault maps), ``joined`` (brackets that nest).
    """

    name: str
    hooks: str = ""
    brackets: tuple[str, ...] = ()

    def rewrite(self, trace: Trace) -> Trace:
        """Return the stream of `trace` as it would be."""
        if "fault-around" in self.brackets:
            trace = bracket_runs(trace)
        return join_brackets(trace) if "joined" in self.brackets else trace


_RANGES: Final = "set_ptes+get_and_clear_ptes+wrprotect_ptes"
PROPOSALS: Final = (
    Proposal("hooked get_and_clear", "ptep_get_and_clear"),
    Proposal("range accessors hooked", _RANGES),
    Proposal("fault-around in a bracket", "", ("fault-around",)),
    Proposal("brackets that nest and pause", "", ("joined",)),
    Proposal("all brackets", "", ("fault-around", "joined")),
    Proposal("all of it", f"ptep_get_and_clear+{_RANGES}", ("fault-around", "joined")),
)


def proposals(
    traces: Sequence[Trace], mode: str = "direct", costs: CostTable | str = "xen-2026",
    today: HookSet | str = TODAY, what: Sequence[Proposal] = PROPOSALS,
) -> pd.DataFrame:  # fmt: skip
    """Replay streams as they are under today's hooks, and as each proposal would have them.

    Parameters
    ----------
    traces : sequence of Trace
        Recorded streams.
    mode : str
        Paging mode.
    costs : CostTable or str
        Prices.
    today : HookSet or str
        Hooks to start from.
    what : sequence of Proposal
        The changes, each alone.

    Returns
    -------
    DataFrame
        One row per trace and proposal: ``trace``, ``proposal``, ``hooks_more``, ``entries`` (to the
        hypervisor), ``cycles``, and ``entries_spared`` and ``cycles_spared`` (shares of today's).
    """
    today, table = HookSet.parse(today), get_costs(costs)
    rows = []
    for trace in traces:
        before = replay(trace, today, mode)
        for p in what:
            hooks = today | HookSet.parse(p.hooks) if p.hooks else today
            after = replay(p.rewrite(trace), hooks, mode)
            rows.append(
                {
                    "trace": trace.name, "proposal": p.name, "hooks_more": len(hooks - today),
                    "entries": after.entries, "cycles": after.cycles(table),
                    "entries_spared": 1 - after.entries / before.entries,
                    "cycles_spared": 1 - after.cycles(table) / before.cycles(table),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def proposals_finding(table: pd.DataFrame) -> str:
    """Return what `proposals` found (its `table`) in a sentence."""
    spared = table.groupby("proposal", sort=False)["entries_spared"]
    parts = [f"{low:.0%} to {high:.0%} ({name})" for name, low, high in
             zip(spared.min().index, spared.min(), spared.max(), strict=True)]  # fmt: skip
    return "Entries to the hypervisor spared: " + "; ".join(parts)
