"""Replay: a trace under a hook set in a paging mode, and what each operation became.

counts = replay(trace, "linux-6.1", "direct")
rows = explain(trace, "linux-6.1", "direct")       # one row per operation
changed = diff(rows, explain(trace, "linux-6.1 +ptep_get_and_clear", "direct"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import pandas as pd

from pvmmu._jit import fingerprint
from pvmmu.costs import CostTable, get_costs
from pvmmu.errors import ModeError, Unsupported
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.modes import Mode, get_mode
from pvmmu.modes.events import (
    CATEGORIES,
    ENTRIES,
    EVENTS,
    N_EVENTS,
    Event,
    column,
    shared_requests,
)
from pvmmu.modes.outcome import Infeasible, Outcome
from pvmmu.modes.soundness import Verdict, judge


@dataclass(frozen=True)
class Counts:
    """What a design costs in events.

    Parameters
    ----------
    trace, hooks, mode : str
        The design: name of the trace, short form of the hook set, text of the mode.
    counterfactual : bool
        The hook set is not one of the trace's era.
    infeasible : Infeasible or None
        Why the design cannot run; then there are no counts.
    low, high : int64[N_EVENTS]
        Least and greatest counts; equal unless the trace leaves something unknown.
    assumptions : tuple of str
        What the trace rests on (`pvmmu.guest.provenance.Provenance`); the counts then are not
        exact.
    judged : callable, optional
        Judges the replay when `verdict` is asked for.
    """

    trace: str
    hooks: str
    mode: str
    counterfactual: bool
    infeasible: Infeasible | None
    low: np.ndarray = field(repr=False)
    high: np.ndarray = field(repr=False)
    assumptions: tuple[str, ...] = ()
    judged: Callable[[], Verdict] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def verdict(self) -> Verdict:
        """Whether the design works on this trace (`pvmmu.modes.soundness`).

        Raises
        ------
        Unsupported
            These counts are of no replay.
        """
        if self.judged is None:
            raise Unsupported("these counts are of no replay: nothing says whether it is sound")
        return self.judged()

    @property
    def status(self) -> str:
        """``ok``, or ``infeasible: `` and the reason."""
        return "ok" if self.infeasible is None else f"infeasible: {self.infeasible.reason}"

    @property
    def exact(self) -> bool:
        """Whether least and greatest counts agree, and nothing in the trace is assumed."""
        return not self.assumptions and bool((self.low == self.high).all())

    def __getitem__(self, event: Event | str) -> int:
        """Return the count of an event.

        Raises
        ------
        Unsupported
            The design cannot run, or the count is only known within bounds.
        """
        event = Event[event.upper()] if isinstance(event, str) else event
        if self.infeasible is not None:
            raise Unsupported(f"{self.status}: it has no counts")
        if self.low[event] != self.high[event]:
            bounds = f"{self.low[event]} to {self.high[event]}"
            raise Unsupported(f"{column(event)} is known only within bounds: {bounds}")
        return int(self.low[event])

    @property
    def entries(self) -> int:
        """Entries to the hypervisor: calls, traps, emulations (least count)."""
        return int(self.low[list(ENTRIES)].sum())

    def cycles(self, costs: str | CostTable) -> float:
        """Return the price by `costs` of all events (least counts) in cycles; NaN if infeasible."""
        if self.infeasible is not None:
            return float("nan")
        return get_costs(costs).price(self.low)

    def series(self) -> pd.Series:
        """Return the events that occurred, by column name (least counts)."""
        return pd.Series(
            {column(e): int(self.low[e]) for e in Event if self.high[e]}, dtype="int64"
        )

    def by_category(self) -> pd.Series:
        """Return counts summed over the categories of figures (least counts).

        ``hypercall`` are calls, ``batched`` the requests and sub-calls that shared one, so that no
        request appears twice.
        """
        out = dict.fromkeys(CATEGORIES, 0)
        for event, info in EVENTS.items():
            out[info.category] += int(self.low[event])
        out["batched"] = int(shared_requests(self.low))
        return pd.Series(out)


def replay(trace: Trace, hooks: HookSet | str, mode: Mode | str) -> Counts:
    """Replay a trace under a hook set in a mode.

    Parameters
    ----------
    trace : Trace
        Operations of the guest.
    hooks : HookSet or str
        What its kernel calls through the ops structure; see `HookSet.parse`.
    mode : Mode or str
        How the hypervisor virtualizes paging; see `pvmmu.modes.get_mode`.

    Returns
    -------
    Counts
        Events, or the reason why the design cannot run.
    """
    hooks, mode = HookSet.parse(hooks), get_mode(mode)
    return _counts_of(trace, hooks, mode, mode.run(trace, hooks))


def _counts_of(trace: Trace, hooks: HookSet, mode: Mode, result: Outcome | Infeasible) -> Counts:
    """Return the counts of `result`, which ``run`` of `mode` returned for `trace` and `hooks`."""
    design = (trace.name, hooks.short, mode.spec, hooks.counterfactual(trace.provenance))
    judged = partial(judge, trace, mode, result)
    if isinstance(result, Infeasible):
        nothing = np.zeros(N_EVENTS, np.int64)
        return Counts(*design, result, nothing, nothing, judged=judged)
    made = trace.provenance.assumptions
    return Counts(*design, None, result.low, result.high, made, judged)


def explain(trace: Trace, hooks: HookSet | str, mode: Mode | str) -> pd.DataFrame:
    """Replay a trace and return what each operation became.

    Parameters
    ----------
    trace, hooks, mode
        As for `replay`.

    Returns
    -------
    DataFrame
        One row per operation: the operation itself (``op``, ``task``, ``mm``, ``va``, ``caller``,
        ``evidence``, ``tsc``), ``mechanism``, and a column for each event that occurs, whose sum is
        the count of `replay`. An event stands at the operation that caused it: a batch is sent by
        the operation that ends its bracket or finds the buffer full.

    Raises
    ------
    Unsupported
        The design cannot run; names reason and row.
    """
    hooks, mode = HookSet.parse(hooks), get_mode(mode)
    result = mode.run(trace, hooks, log=True)
    if isinstance(result, Infeasible):
        at = f" (row {result.row})" if result.row >= 0 else ""
        raise Unsupported(f"{hooks.short} in {mode.spec}: {result.reason}{at}")
    frame = trace.to_frame()
    out = frame[["op", "task", "mm", "va", "caller", "evidence", "tsc"]].copy()
    labels = [m.label for m in trace.mms]
    out["mm"] = pd.Categorical.from_codes(trace["mm"], [f"{i} {s}" for i, s in enumerate(labels)])
    used = sorted(result.names)
    codes = np.searchsorted(used, result.mechanism)
    out["mechanism"] = pd.Categorical.from_codes(codes, [result.names[i] for i in used])
    for event in np.unique(result.log[:, 1]).tolist():
        part = result.log[result.log[:, 1] == event]
        amount = np.zeros(len(trace), np.int64)
        np.add.at(amount, part[:, 0], part[:, 2])
        if amount.any():
            out[column(Event(event))] = amount
    out.attrs = {
        "trace": trace.name, "trace_fingerprint": trace.fingerprint, "hooks": hooks.short,
        "mode": mode.spec, "model": fingerprint(),
        "counterfactual": hooks.counterfactual(trace.provenance),
    }  # fmt: skip
    return out.rename_axis("row")


def event_columns(rows: pd.DataFrame) -> list[str]:
    """Return the event columns of `rows`, a table that `explain` made."""
    names = {column(e) for e in Event}
    return [c for c in rows.columns if c in names]


def causing(rows: pd.DataFrame, what: str) -> pd.Series:
    """Return how often each operation of `explain` caused something.

    Parameters
    ----------
    rows : DataFrame
        Of `explain`.
    what : str
        A column of an event, or a category of them (`pvmmu.modes.events.CATEGORIES`). Of
        ``batched`` these are all requests, so that the first of each call is among them.

    Raises
    ------
    ModeError
        It does not occur; lists what does.
    """
    events = event_columns(rows)
    of_kind = [e for e in events if EVENTS[Event[e.upper()]].category == what]
    chosen = [what] if what in events else of_kind
    if not chosen:
        raise ModeError(f"no event {what!r} here (there are {', '.join(events)})")
    out: pd.Series = rows[chosen].sum(axis=1).rename(what)
    return out


def causes(rows: pd.DataFrame, what: str) -> pd.DataFrame:
    """Return which operations, called by whom and carried how, caused something; most first.

    Parameters
    ----------
    rows, what
        As for `causing`.

    Returns
    -------
    DataFrame
        ``op``, ``caller`` (empty where unknown), ``mechanism``, a column named `what`,
        ``operations``.
    """
    amount = causing(rows, what)
    some = rows.assign(**{what: amount})[amount != 0]
    by = some.groupby(["op", "caller", "mechanism"], observed=True, dropna=False)[what]
    table = by.agg(["sum", "size"]).sort_values("sum", ascending=False).reset_index()
    table = table.rename(columns={"sum": what, "size": "operations"})
    table["caller"] = table["caller"].astype(object).where(table["caller"].notna(), "")
    return table


def diff(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Compare two designs on one trace, operation by operation.

    Parameters
    ----------
    a, b : DataFrame
        Of `explain`, for the same trace.

    Returns
    -------
    DataFrame
        The operations carried otherwise: ``op``, ``caller``, ``mechanism_a``, ``mechanism_b``, and
        for each event the change from a to b (events that change nowhere are left out).

    Raises
    ------
    Unsupported
        The tables are of different traces.
    """
    if a.attrs.get("trace_fingerprint") != b.attrs.get("trace_fingerprint"):
        raise Unsupported("diff: the two tables are of different traces")
    events = list(dict.fromkeys(event_columns(a) + event_columns(b)))
    change = b.reindex(columns=events, fill_value=0) - a.reindex(columns=events, fill_value=0)
    change = change.loc[:, (change != 0).any()]
    differs = (a["mechanism"].astype(str) != b["mechanism"].astype(str)) | (change != 0).any(axis=1)
    out = a.loc[differs, ["op", "task", "mm", "va", "caller"]].copy()
    out["mechanism_a"] = a.loc[differs, "mechanism"].astype(str)
    out["mechanism_b"] = b.loc[differs, "mechanism"].astype(str)
    out = pd.concat([out, change.loc[differs]], axis=1)
    out.attrs = {"a": dict(a.attrs), "b": dict(b.attrs)}
    return out
