"""Hooks that were never merged: what each would have saved on real streams.

Today's interface is the guest's own (Linux 6.1 on Xen). A regret adds a hook, or lets the kernel
open a bracket where it opens none:

* ``get_and_clear``, ``wrprotect``, ``clear_young``: the read-modify-writes of an entry as hooks,
  batched in the brackets that exist;
* the range forms (``set_ptes`` and kin): one call for neighbouring entries;
* ``fault-around in a bracket``: the entries that one fault maps around it;
* ``vmap in a bracket``: entries of the kernel that vmalloc makes and removes (merged in 6.18);
* ``brackets that nest``: one bracket for a whole operation of the kernel, instead of one for each
  table that it works on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.guest.trace import COLUMNS, Evidence, Op, Trace
from pvmmu.guest.vocabulary import ENTRY_OPS
from pvmmu.replay import Counts, replay
from pvmmu.replay.sensitivity import sensitivity

#: The interface, mode and cost table in question.
TODAY, MODE, COSTS = "linux-6.1", "direct", "xen-2026"

#: Operations that end what the kernel does at a stretch: after one, nothing may wait.
_BOUNDARIES: Final = (
    Op.FAULT, Op.SWITCH_START, Op.SWITCH_END, Op.LOAD_CR3, Op.MARK, Op.KERNEL_ENTRY,
    Op.KERNEL_EXIT, Op.DUP_MMAP, Op.ACTIVATE_MM, Op.EXIT_MMAP, Op.PGD_FREE, Op.FLUSH_ONE,
    Op.FLUSH_USER, Op.FLUSH_KERNEL, Op.FLUSH_OTHERS, Op.SEND_IPI,
)  # fmt: skip
_OPEN: Final = (Op.LAZY_ENTER, Op.LAZY_LEAVE)


@dataclass(frozen=True)
class Regret:
    """Something that was never merged.

    Parameters
    ----------
    name : str
        For tables.
    hooks : str
        What it adds to today's interface.
    changes : callable, optional
        The trace with the brackets that the kernel would have.
    """

    name: str
    hooks: str = ""
    changes: Callable[[Trace], Trace] | None = None


def _rows(trace: Trace, order: np.ndarray, new: np.ndarray) -> Trace:
    """Return a trace of rows in an order; those at `new` become brackets (operation, CPU)."""
    columns = {name: trace[name][order].copy() for name in COLUMNS}
    for at, op, cpu in new.tolist():
        for name, (_, default, _meaning) in COLUMNS.items():
            columns[name][at] = default
        columns["op"][at], columns["cpu"][at] = op, cpu
        columns["evidence"][at] = Evidence.INFERRED
    return Trace(columns, trace.mms, trace.callers, trace.provenance)


def bracketed(trace: Trace, wanted: np.ndarray) -> Trace:
    """Return a trace with a bracket around each run of two or more of some rows.

    Parameters
    ----------
    trace : Trace
        The operations.
    wanted : bool[row]
        Rows that a bracket may hold; one that is in a bracket already stays there.

    Notes
    -----
    A run ends at an operation that is not wanted, and at another CPU's.
    """
    cpu = trace["cpu"].astype(np.int64)
    inside = wanted & ~_in_bracket(trace)
    follows = inside[1:] & inside[:-1] & (cpu[1:] == cpu[:-1])
    starts = np.flatnonzero(inside & ~np.concatenate([[False], follows]))
    ends = np.flatnonzero(inside & ~np.concatenate([follows, [False]]))
    long = ends > starts
    starts, ends = starts[long], ends[long]
    at = np.sort(np.concatenate([np.arange(len(trace)), starts - 0.5, ends + 0.5]))
    order = np.ceil(at).astype(np.int64).clip(0, len(trace) - 1)
    made = np.flatnonzero(at != np.floor(at))
    ops = [int(_OPEN[0]), int(_OPEN[1])] * len(starts)
    cpus = np.stack([cpu[starts], cpu[ends]], axis=1).ravel()
    new = np.array([made, ops, cpus], np.int64).T if len(made) else np.zeros((0, 3), np.int64)
    return _rows(trace, order, new)


def _in_bracket(trace: Trace) -> np.ndarray:
    """Return the rows whose CPU has a bracket open."""
    out = np.zeros(len(trace), np.bool_)
    for c in np.unique(trace["cpu"]):
        rows = np.flatnonzero(trace["cpu"] == c)
        step = np.isin(trace["op"][rows], [Op.LAZY_ENTER, Op.LAZY_RESUME]).astype(np.int64)
        step -= np.isin(trace["op"][rows], [Op.LAZY_LEAVE, Op.LAZY_PAUSE])
        out[rows] = np.cumsum(step) > 0
    return out


def with_fault_around(trace: Trace) -> Trace:
    """Return `trace` with a bracket around what one fault maps."""
    return bracketed(trace, (trace["op"] == Op.SET_PTE) & (trace["mm"] > 0))


def with_vmap(trace: Trace) -> Trace:
    """Return `trace` with brackets around changes of the kernel's own mappings."""
    entry = np.isin(trace["op"], [int(o) for o in ENTRY_OPS])
    return bracketed(trace, entry & (trace["mm"] == 0))


def with_nesting(trace: Trace) -> Trace:
    """Return `trace` with the brackets of one operation of the kernel as one."""
    op, keep = trace["op"], np.ones(len(trace), np.bool_)
    matters = np.isin(op, [int(o) for o in (*_OPEN, *_BOUNDARIES)])
    for c in np.unique(trace["cpu"]):
        rows = np.flatnonzero(matters & (trace["cpu"] == c))
        left, entered = rows[:-1], rows[1:]
        again = (op[left] == Op.LAZY_LEAVE) & (op[entered] == Op.LAZY_ENTER)
        keep[left[again]] = keep[entered[again]] = False
    return trace.select(keep)


#: What is tried, each by itself; the last one all together.
REGRETS: Final = (
    Regret("get_and_clear", "+ptep_get_and_clear"),
    Regret("wrprotect", "+ptep_set_wrprotect"),
    Regret("clear_young", "+ptep_test_and_clear_young"),
    Regret("set_ptes (range)", "+set_ptes"),
    Regret("get_and_clear_ptes (range)", "+get_and_clear_ptes"),
    Regret("wrprotect_ptes (range)", "+wrprotect_ptes"),
    Regret("fault-around in a bracket", changes=with_fault_around),
    Regret("vmap in a bracket", changes=with_vmap),
    Regret("brackets that nest", changes=with_nesting),
    Regret(
        "all of these",
        "+ptep_get_and_clear +ptep_set_wrprotect +ptep_test_and_clear_young +set_ptes "
        "+get_and_clear_ptes +wrprotect_ptes",
        lambda trace: with_nesting(with_vmap(with_fault_around(trace))),
    ),
)


def _regretted(trace: Trace, regret: Regret) -> Counts:
    """Return the counts of `trace` had what `regret` names been merged."""
    changed = regret.changes(trace) if regret.changes else trace
    return replay(changed, f"{TODAY} {regret.hooks}".strip(), MODE)


def regrets(
    traces: Sequence[Trace], costs: str = COSTS, *, samples: int = 256, seed: int = 0
) -> pd.DataFrame:
    """Try what was never merged on some streams.

    Parameters
    ----------
    traces : sequence of Trace
        Recorded under today's interface.
    costs : str
        Cost table.
    samples, seed : int
        Of the draws from its ranges.

    Returns
    -------
    DataFrame
        One row per stream and regret: ``stream``, ``regret``, ``entries`` (today's), ``spared``
        (entries), ``saved`` (share of the cycles), ``low`` and ``high`` (where 90 % of the draws
        lie), ``stability`` (of whether anything is saved).
    """
    rows = []
    for trace in traces:
        today = replay(trace, TODAY, MODE)
        for regret in REGRETS:
            counts = _regretted(trace, regret)
            s = sensitivity({"today": today, "then": counts}, costs, samples=samples, seed=seed)
            saved = 1 - s.draws["then"] / s.draws["today"]
            low, high = np.percentile(saved, [5, 95])
            nominal = float(1 - s.nominal["then"][0] / s.nominal["today"][0])
            stability = s.stability(lambda c: c["then"] < c["today"])
            rows.append(
                {
                    "stream": trace.name, "regret": regret.name, "entries": today.entries,
                    "spared": today.entries - counts.entries, "saved": nominal,
                    "low": float(low), "high": float(high), "stability": stability.word,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def costliest(table: pd.DataFrame) -> pd.Series:
    """Return for each stream of `table` (`regrets`) the omission whose hook saves most cycles."""
    single = table[table["regret"] != REGRETS[-1].name]
    best = single.loc[single.groupby("stream", sort=False)["saved"].idxmax()]
    out: pd.Series = best.set_index("stream")["regret"]
    return out


def regret_finding(table: pd.DataFrame) -> str:
    """Return the finding of `regrets` (its `table`) in a sentence."""
    first = costliest(table).value_counts()
    name, streams = first.index[0], table["stream"].nunique()
    of = table[table["regret"] == name]["saved"]
    return (
        f"On {first.iloc[0]} of {streams} real streams the costliest omission of today's interface "
        f"is {name}: it would save {of.min():.0%} to {of.max():.0%} of the paging cycles"
    )
