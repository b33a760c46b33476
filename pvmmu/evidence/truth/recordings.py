"""Recordings of a real Xen PV guest against direct mode.

The operations of a recording are replayed under the hooks that it was recorded with, and what
direct mode predicts is compared with what the hypervisor itself recorded: calls, requests,
sub-calls, trapped writes, faults, and the order and size of all calls. The prediction never sees a
hypervisor record, but for the trapped writes: their equality is a check of the input.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pvmmu.errors import PvmmuError
from pvmmu.evidence.xentrace_counts import COUNTERS, SEQUENCE, Measured, measure
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.readers.xen.missing import missing_events
from pvmmu.guest.readers.xen.recording import EVENTS as INPUT_EVENTS, trace_of_lines
from pvmmu.guest.readers.xen.text import read_lines
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.events import EVENTS, Event, column
from pvmmu.modes.outcome import Infeasible, Outcome
from pvmmu.paths import data_path
from pvmmu.replay import replay

#: The hooks and the mode of the guests that were recorded.
HOOKS, MODE = "linux-6.1", "direct"
#: What is not predicted: the same records are input of the reader.
_INPUT = {Event.PTE_EMULATION: "input check", Event.PAGE_FAULT: "input check"}


def compare(path: Path, hooks: str = HOOKS, mode: str = MODE) -> pd.DataFrame:
    """Compare a recording's hypervisor records with the prediction from its kernel events.

    Parameters
    ----------
    path : Path
        A recording; see `pvmmu.guest.readers.xen.recording`.
    hooks, mode : str
        What the guest hooked, and under which mode it ran.

    Returns
    -------
    DataFrame
        One row per counter, and one for the order of calls: ``measured``, ``predicted`` (a number,
        or bounds where the trace leaves something unknown), ``difference``, ``tolerance``,
        ``verdict`` (``ok`` or ``DIFFERS``), ``note``.

    Raises
    ------
    RecordingError, TraceError
        The recording cannot be read.
    PvmmuError
        The recording's guest cannot run under these hooks in that mode.
    """
    lines = list(read_lines(path))
    trace, real = trace_of_lines(lines, path), measure(lines, str(path))
    result = get_mode(mode).run(trace, HookSet.parse(hooks), log=True)
    if isinstance(result, Infeasible):
        raise PvmmuError(f"{path}: {hooks} in {mode}: {result.reason} (row {result.row})")
    rows = [_counter(event, real, result) for event in COUNTERS]
    rows.append(_order(real, result))
    return pd.DataFrame(rows)


def events_of(path: Path) -> dict[str, list[str]]:
    """Return the events that are input and in the recording at `path`, and what it lacks.

    Returns
    -------
    dict of str to list of str
        ``events it has``, ``events it lacks``: the latter those that others imply; they were
        inferred.
    """
    lines = list(read_lines(path))
    seen = {f"X {line.event}" if line.source == "X" else line.event for line in lines}
    has = sorted(seen.intersection(INPUT_EVENTS))
    return {"events it has": has, "events it lacks": missing_events(lines)}


def shipped_comparison(traces: Iterable[str] | None = None) -> pd.DataFrame:
    """Compare the traces that ship with the package with what their hypervisor recorded.

    Parameters
    ----------
    traces : iterable of str, optional
        Names; default: all.

    Returns
    -------
    DataFrame
        One row per trace and counter: ``trace``, ``counter``, ``measured``, ``predicted``. Counters
        that are zero on both sides are left out.
    """
    measured = pd.read_csv(data_path("truth", "xen_pv_counts.csv")).set_index("trace")
    rows = []
    for name in traces if traces is not None else measured.index:
        counts = replay(load_trace(name), HOOKS, MODE)
        for event in COUNTERS:
            real, ours = int(measured.loc[name, column(event)]), counts[event]
            if real or ours:
                row = {"trace": name, "counter": column(event), "measured": real}
                rows.append(row | {"predicted": ours})
    return pd.DataFrame(rows)


def _counter(event: Event, real: Measured, result: Outcome) -> dict[str, Any]:
    low, high, measured = int(result.low[event]), int(result.high[event]), real.counts[event]
    difference = max(low - measured, 0) or min(high - measured, 0)
    return {
        "counter": column(event),
        "measured": measured,
        "predicted": low if low == high else f"{low}..{high}",
        "difference": difference,
        "tolerance": 0,
        "verdict": "DIFFERS" if difference else "ok",
        "note": _INPUT.get(event, EVENTS[event].meaning),
    }


def _order(real: Measured, result: Outcome) -> dict[str, Any]:
    """Compare the sequences of (call, size), CPU by CPU."""
    ours: dict[int, list[tuple[Event, int]]] = {}
    for _, event, amount, cpu in result.log.tolist():
        if Event(event) in SEQUENCE:
            ours.setdefault(cpu, []).append((Event(event), amount))
    wrong = 0
    first = "calls and sizes in order, each CPU by itself"
    for cpu in sorted(real.sequence.keys() | ours.keys()):
        a, b = real.sequence.get(cpu, []), ours.get(cpu, [])
        at = [i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y]
        differ = len(at) + abs(len(a) - len(b))
        if differ and not wrong:
            where = at[0] if at else min(len(a), len(b))
            first = f"CPU {cpu}, call {where}: {_at(a, where)} measured, {_at(b, where)} predicted"
        wrong += differ
    return {
        "counter": "order_of_calls",
        "measured": sum(map(len, real.sequence.values())),
        "predicted": sum(map(len, ours.values())),
        "difference": wrong,
        "tolerance": 0,
        "verdict": "DIFFERS" if wrong else "ok",
        "note": first,
    }


def _at(calls: Sequence[tuple[Event, int]], i: int) -> str:
    return f"{column(calls[i][0])} {calls[i][1]}" if i < len(calls) else "nothing"
