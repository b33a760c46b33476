"""What lies behind a comparison: the operations that differ, and what each hook would do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import ipywidgets as W
import pandas as pd

from pvmmu.hooks import HookSet
from pvmmu.modes.soundness import soundness
from pvmmu.panels.kit import table_html, tip
from pvmmu.replay import diff, explain, replay
from pvmmu.replay.compare import Comparison

_BY: Final = ["op", "caller", "mechanism_a", "mechanism_b"]
#: Groups of operations that a table shows.
_ROWS: Final = 25


def differences(c: Comparison) -> pd.DataFrame:
    """Return the operations that the first two designs of a comparison carry otherwise.

    Parameters
    ----------
    c : Comparison
        Of at least two designs that can run.

    Returns
    -------
    DataFrame
        One row for each kind of operation, caller and pair of mechanisms: ``operations``, the first
        ``row`` of the trace, and for each event the change from B to A. Empty where one of both
        designs cannot run, or all is carried alike.
    """
    if any(k.infeasible is not None for k in c.counts[:2]):
        return pd.DataFrame()
    b, a = (explain(c.trace, d.hooks, d.mode) for d in (c.designs[1], c.designs[0]))
    rows = diff(b, a).rename(columns={"mechanism_a": "mechanism_b", "mechanism_b": "mechanism_a"})
    if rows.empty:
        return pd.DataFrame()
    events = [name for name in rows if name not in {*_BY, "task", "mm", "va"}]
    caller = rows["caller"].astype(object)
    rows = rows.assign(caller=caller.where(caller.notna(), ""), row=rows.index)
    groups = rows.groupby(_BY, observed=True, sort=False)
    out = groups["row"].agg(operations="size", row="min").join(groups[events].sum())
    return out.reset_index()


def effects(c: Comparison, names: Iterable[str]) -> pd.DataFrame:
    """Return what adding or removing each hook would do to the first design of a comparison.

    Parameters
    ----------
    c : Comparison
        Its first design is changed by one hook after the other.
    names : iterable of str
        The hooks, such as those that matter in the mode.

    Returns
    -------
    DataFrame
        By ``change`` (such as ``+pte_clear``): ``entries`` as a change (missing where the changed
        design cannot run), ``verdict`` of `pvmmu.modes.soundness` with its reason. The greatest
        savings first.
    """
    design, rows = c.designs[0], []
    before = c.counts[0].entries if c.counts[0].infeasible is None else None
    for name in names:
        sign = "-" if name in design.hooks else "+"
        changed = HookSet.parse(f"{design.hooks.short} {sign}{name}")
        counts = replay(c.trace, changed, design.mode)
        runs = counts.infeasible is None and before is not None
        entries = counts.entries - before if runs and before is not None else None
        text = soundness(c.trace, changed, design.mode).text
        rows.append({"change": sign + name, "entries": entries, "verdict": text})
    table = pd.DataFrame(rows, columns=["change", "entries", "verdict"])
    table["entries"] = table["entries"].astype("Int64")
    return table.sort_values("entries", kind="stable", na_position="last", ignore_index=True)


class Inspector:
    """Two questions about what a panel shows, answered when they are asked.

    Parameters
    ----------
    comparison : callable
        Returns what is shown.
    relevant : callable
        Returns the hooks that matter there.

    Attributes
    ----------
    widget : VBox
        Choice of the question, how the table is sorted, a filter, the table.
    """

    def __init__(
        self, comparison: Callable[[], Comparison], relevant: Callable[[Comparison], HookSet]
    ) -> None:
        self._comparison, self._relevant = comparison, relevant
        self._table = pd.DataFrame()
        self.question = W.Dropdown(
            options=[
                ("ask ...", ""),
                ("what differs between A and B?", "differences"),
                ("what would each hook do?", "effects"),
            ],
            layout=W.Layout(width="250px"),
        )
        self.sort = W.Dropdown(layout=W.Layout(width="190px"))
        self.filter = W.Text(placeholder="operation, caller, mechanism",
                             layout=W.Layout(width="220px"))  # fmt: skip
        tip(self.filter, "only rows in which this text stands")
        self.answer = W.HTML()
        self._more = W.HBox([self.sort, self.filter], layout=W.Layout(display="none"))
        head = W.HBox([self.question, self._more], layout=W.Layout(flex_flow="row wrap"))
        self.widget = W.VBox([head, self.answer])
        self.question.observe(lambda _: self._ask(), "value")
        self.sort.observe(lambda _: self._tell(), "value")
        self.filter.observe(lambda _: self._tell(), "value")

    def forget(self) -> None:
        """Another comparison is shown: the question may be asked anew."""
        self.question.value = ""

    def _ask(self) -> None:
        asked = self.question.value
        self._more.layout.display = "" if asked else "none"
        self._table = pd.DataFrame()
        if asked:
            c = self._comparison()
            answer = differences(c) if asked == "differences" else effects(c, self._relevant(c))
            numbers = [f"by {x}" for x in answer.select_dtypes("number")]
            self.sort.options = [("as it comes", ""), *((n, n[3:]) for n in numbers)]
            self._table = answer
        self._tell()

    def shown(self) -> pd.DataFrame:
        """Return the rows that pass the filter, as they are sorted."""
        table, text = self._table, self.filter.value.strip().lower()
        if text and len(table):
            words = table.select_dtypes(exclude="number").astype(str)
            found = words.apply(lambda x: x.str.lower().str.contains(text, regex=False))
            table = table[found.any(axis=1)]
        if self.sort.value in table:
            order = table[self.sort.value].abs().sort_values(ascending=False, kind="stable")
            table = table.loc[order.index]
        return table

    def _tell(self) -> None:
        if not self.question.value:
            self.answer.value = ""
            return
        rows = self.shown()
        n, most = len(rows), min(len(rows), _ROWS)
        note = f"{most} of {len(self._table)} rows" if n else "nothing"
        self.answer.value = table_html(rows.head(_ROWS), note)
