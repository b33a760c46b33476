"""Designs side by side on one trace: what figures, reports and panels show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import pandas as pd

from pvmmu.costs import CostTable
from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.events import EVENTS, column
from pvmmu.replay.counts import Counts, replay


@dataclass(frozen=True)
class Design:
    """A set of `hooks` in a `mode` (its full text), with a short `label` for tables."""

    hooks: HookSet
    mode: str
    label: str = ""

    @classmethod
    def of(cls, hooks: HookSet | str, mode: str, label: str = "") -> Design:
        """Return a design from texts: `hooks`, `mode` (see `pvmmu.modes.get_mode`) and a `label`
        for tables.
        """
        return cls(HookSet.parse(hooks), get_mode(mode).spec, label)

    @classmethod
    def parse(cls, text: str) -> Design:
        """Return a design from ``MODE=HOOKS``.

        Raises
        ------
        ModeError, HookError
            `text` is none; names the part at fault.
        """
        mode, equals, hooks = text.rpartition("=")
        if not equals or not hooks.strip() or not mode:
            raise ModeError(f"{text!r} is no design; write MODE=HOOKS, such as direct=linux-6.1")
        return cls.of(hooks, mode)


@dataclass(frozen=True)
class Comparison:
    """A trace under one design, and under others to compare with.

    Parameters
    ----------
    trace : Trace
        The operations.
    designs : tuple of Design
        The first one is the subject.
    costs : CostTable
        Prices.
    given : tuple of str
        How a command was told the trace, as words; its name by default.

    Attributes
    ----------
    counts : tuple of Counts
        Of each design.
    """

    trace: Trace
    designs: tuple[Design, ...]
    costs: CostTable
    given: tuple[str, ...] = ()
    counts: tuple[Counts, ...] = field(init=False)

    def __post_init__(self) -> None:
        counts = tuple(replay(self.trace, d.hooks, d.mode) for d in self.designs)
        object.__setattr__(self, "counts", counts)

    @property
    def names(self) -> list[str]:
        """A letter for each design, for column heads."""
        return [chr(ord("A") + i) for i in range(len(self.designs))]

    def claim(self) -> str:
        """Return the finding in a sentence, computed."""
        subject, a = self.counts[0], self.designs[0]
        what = f"{a.hooks.short} in mode {a.mode}"
        if subject.infeasible is not None:
            return f"{what} cannot run {self.trace.name}: {subject.infeasible.reason}."
        text = f"{what} enters the hypervisor {subject.entries:,} times for {self.trace.name}"
        others = [
            (d, c) for d, c in zip(self.designs[1:], self.counts[1:], strict=True)
            if c.infeasible is None and c.entries and d.mode.split(":")[0] == a.mode.split(":")[0]
        ]  # fmt: skip
        if others:
            design, counts = others[0]
            ratio = subject.entries / counts.entries
            text += f", {ratio:.2f} times as often as {design.hooks.short} in mode {design.mode}"
        return text + "."


def events_table(c: Comparison) -> pd.DataFrame:
    """Return the events of each design of the comparison `c`, and of the second how it differs.

    Returns
    -------
    DataFrame
        One row per event that occurs, then ``entries`` and ``cycles``; a column per design (its
        letter; least counts, missing where a design cannot run) and ``B - A``.
    """
    columns = {}
    for name, k in zip(c.names, c.counts, strict=True):
        if k.infeasible is not None:
            columns[name] = pd.Series(dtype=float)
            continue
        totals = pd.Series({"entries": k.entries, "cycles": k.cycles(c.costs)})
        columns[name] = pd.concat([k.series(), totals])
    order = [column(e) for e in EVENTS] + ["entries", "cycles"]
    table = pd.DataFrame(columns)
    for name, k in zip(c.names, c.counts, strict=True):
        if k.infeasible is None:
            table[name] = table[name].fillna(0.0)
    table = table.reindex([e for e in order if e in table.index])
    if len(c.designs) > 1:
        table.insert(2, "B - A", table["B"] - table["A"])
    return table.rename_axis("event")


#: The columns of the debate: name, mode, interface.
DEBATE: Final = (
    ("direct, writable tables batched", "direct:stores=batched", "linux-6.1"),
    ("direct, each write emulated", "direct", "linux-6.1"),
    ("shadow with notifications (VMI)", "vmi", "vmi"),
)


def debate(traces: Sequence[Trace]) -> pd.DataFrame:
    """Replay low-level hooks alone, then with the high-level ones, in each mode of the debate.

    Parameters
    ----------
    traces : sequence of Trace
        Workloads.

    Returns
    -------
    DataFrame
        One row per trace, mode and level: ``trace``, ``mode`` (a name for readers), ``level``
        (``low`` or ``low and high``), ``counts`` (`Counts`), ``entries`` and the categories of
        `Counts.by_category`.
    """
    rows = []
    for trace in traces:
        for name, mode, interface in DEBATE:
            hooks = HookSet.parse(interface)
            for level, chosen in (("low", hooks.low), ("low and high", hooks)):
                counts = replay(trace, chosen, mode)
                row = {"trace": trace.name, "mode": name, "level": level, "counts": counts}
                rows.append(row | {"entries": counts.entries} | dict(counts.by_category()))
    return pd.DataFrame(rows)


def savings(table: pd.DataFrame) -> pd.DataFrame:
    """Return by which share high-level hooks lower entries in `debate`'s `table`: trace by mode."""
    entries = table.pivot(index=["trace", "mode"], columns="level", values="entries")
    saved = 1 - entries["low and high"] / entries["low"]
    out: pd.DataFrame = saved.unstack("mode")[[name for name, _, _ in DEBATE]]
    return out


def debate_finding(table: pd.DataFrame) -> str:
    """Return the finding of `debate` (its `table`) in a sentence."""
    parts = []
    for mode, saved in savings(table).items():
        low, high = f"{saved.min():.0%}", f"{saved.max():.0%}"
        parts.append(f"{low if low == high else f'{low} to {high}'} ({mode})")
    return "High-level hooks spare entries to the hypervisor: " + "; ".join(parts)


def design_table(traces: Sequence[Trace], designs: Mapping[str, tuple[str, str]]) -> pd.DataFrame:
    """Return entries to the hypervisor of designs on some traces.

    Parameters
    ----------
    traces : sequence of Trace
        Rows.
    designs : mapping of str to (str, str)
        Title -> hook set and mode: columns.

    Returns
    -------
    DataFrame
        Text: the number, or why the design cannot run.
    """
    rows = {}
    for trace in traces:
        counts = {title: replay(trace, *design) for title, design in designs.items()}
        rows[trace.name] = {
            title: f"{n.entries:,}" if n.infeasible is None else f"no: {n.infeasible.reason}"
            for title, n in counts.items()
        }
    return pd.DataFrame.from_dict(rows, orient="index")
