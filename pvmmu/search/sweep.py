"""Sweeps: every design of a space, one tidy table.

    table = sweep(["fork.64", "make"], "all", ["direct", "vmi"], ["p4-2006"])

``"all"`` is every set of hooks of the catalogue. Sets that a mode cannot tell apart on a trace are
one row, with their number in ``hook_sets``: the numbers of a trace and mode add up to two to the
number of hooks, so nothing is sampled and nothing left out. With ``store=`` the counts go to disk
as they come, and a sweep that was killed goes on where it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pvmmu.costs import CostTable, get_costs
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.modes import Mode, get_mode
from pvmmu.modes.all_sets.counting import ClassCounts
from pvmmu.modes.events import ENTRIES, N_EVENTS, Event, column, shared_requests
from pvmmu.modes.partition import HookClass, Space
from pvmmu.search.engine import provenance_of
from pvmmu.search.shards import Shard, all_shards_of, count_shard, run, shards_of_list
from pvmmu.search.store import Store, jobs_of, write_job

Designs = str | Space | Sequence[HookSet | str]


def sweep(
    traces: Iterable[Trace | str],
    hook_sets: Designs,
    modes: Iterable[Mode | str],
    costs: Iterable[CostTable | str] = (),
    *,
    executor: Executor | None = None,
    progress: bool | None = None,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Replay traces under hook sets in modes and price the events.

    Parameters
    ----------
    traces : iterable of Trace or str
        Traces, or names of those that ship with the package.
    hook_sets : "all", Space, or sequence of HookSet or str
        Every set of hooks; every set of a space; or the sets named.
    modes : iterable of Mode or str
        Paging modes.
    costs : iterable of CostTable or str
        Cost tables; none: events only.
    executor : concurrent.futures.Executor, optional
        Where the replays run; default: threads of this process (kernels release the GIL). Loky's
        ``get_reusable_executor()`` gives processes, Dask's ``client.get_executor()`` a cluster.
    progress : bool, optional
        Show a bar with rate and remaining time; default: for more than a second of work.
    store : path-like, optional
        Folder of a Parquet dataset (`pvmmu.search.store`) that receives the counts as they come; a
        sweep that was stopped there, however roughly, is continued. Workers of other processes
        must see it.

    Returns
    -------
    DataFrame
        One row per combination. Parameters: ``trace``, ``kernel``, ``guest``, ``vcpus``, ``mode``,
        ``hooks`` (short form of the smallest set of the class), ``mask``, ``n_hooks``, ``members``
        (of the ops structure), ``counterfactual``, ``costs``. Results: ``hook_sets`` (sets that the
        row stands for), ``status`` (``ok``, ``infeasible: why`` or ``error: what``), ``exact``,
        ``entries``, ``shared`` (requests that came with another one's call), a column for each
        event, ``cycles``, ``cycles_low`` and ``cycles_high`` (over the ranges of the cost table).
        Counts are the least ones where ``exact`` is false. ``attrs`` holds the provenance; its
        ``complete`` is false if the sweep was interrupted (Ctrl-C keeps what is done).

    Raises
    ------
    PvmmuError
        A trace, hook, mode or cost table does not exist.
    SearchError
        Workers died; or the store cannot be written, is being written by another sweep, or holds
        another one. What is done stays in the store.
    """
    loaded = [t if isinstance(t, Trace) else load_trace(t) for t in traces]
    chosen, tables = [get_mode(m) for m in modes], [get_costs(c) for c in costs]
    shards = [s for t, m in itertools.product(loaded, chosen) for s in _shards(t, m, hook_sets)]
    if store is None:
        frames, complete = _in_memory(shards, executor, progress)
    else:
        frames, complete = _in_store(shards, Path(store), executor, progress)
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    table = _priced(table, tables)
    table.attrs = provenance_of(loaded) | {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "costs": [c.name for c in tables],
        "complete": complete,
    }
    return table


def _shards(trace: Trace, mode: Mode, hook_sets: Designs) -> Iterator[Shard]:
    """Yield the work of a trace and a mode."""
    if isinstance(hook_sets, str) and hook_sets == "all":
        hook_sets = Space.all()
    if isinstance(hook_sets, Space):
        yield from all_shards_of(trace, mode, mode.classes(trace, hook_sets))
        return
    if isinstance(hook_sets, str):
        hook_sets = [hook_sets]
    yield from shards_of_list(trace, mode, [HookClass(HookSet.parse(h), 1) for h in hook_sets])


def _in_memory(
    shards: list[Shard], executor: Executor | None, progress: bool | None
) -> tuple[list[pd.DataFrame], bool]:
    """Count shards; return their frames in order, and whether they are all."""
    done: dict[int, ClassCounts] = {}
    complete = True
    try:
        for i, counts in run(shards, count_shard, executor, progress):
            done[i] = counts
    except KeyboardInterrupt:
        complete = False
    frames = []
    for i in sorted(done):
        s, counts = shards[i], done[i]
        assert isinstance(s.trace, Trace)
        masks, sizes = [c.hooks.mask for c in s.classes], [c.size for c in s.classes]
        columns = masks, sizes, counts.status, counts.low, counts.high
        frames.append(_frame(s.trace, s.mode.spec, *columns))
    return frames, complete


def _in_store(
    shards: list[Shard], folder: Path, executor: Executor | None, progress: bool | None
) -> tuple[list[pd.DataFrame], bool]:
    """Count what the store has not; return the frames of all its rows, and whether it has all."""
    store = Store(folder, jobs_of(shards))
    total = sum(map(len, store.jobs))
    complete = True
    with store.writing() as left:
        work = partial(write_job, folder.resolve())
        try:
            for _ in run(left, work, executor, progress, total - sum(map(len, left))):
                pass
        except KeyboardInterrupt:
            complete = False
    rows = store.rows()
    by_print = {s.trace.fingerprint: s.trace for s in shards if isinstance(s.trace, Trace)}
    frame = rows.to_pandas()
    low, high = (np.zeros((len(frame), N_EVENTS), np.int64) for _ in range(2))
    if len(frame):
        for e in Event:
            low[:, e], high[:, e] = frame[column(e)], frame[f"{column(e)}_high"]
    frames = []
    for (trace, mode), part in frame.groupby(["trace", "mode"], sort=False) if len(frame) else ():
        at = part.index.to_numpy()
        columns = part["mask"].tolist(), part["hook_sets"].tolist(), part["status"].tolist()
        frames.append(_frame(by_print[trace], mode, *columns, low[at], high[at]))
    return frames, complete


def _frame(
    trace: Trace, mode: str, masks: list[int], sizes: list[int], status: list[str],
    low: np.ndarray, high: np.ndarray,
) -> pd.DataFrame:  # fmt: skip
    """Return rows of one trace and mode, not yet priced."""
    provenance, sets = trace.provenance, [HookSet(m) for m in masks]
    head: dict[str, Any] = {
        "trace": trace.name,
        "kernel": provenance.kernel,
        "guest": provenance.platform.guest,
        "vcpus": provenance.platform.vcpus,
        "mode": mode,
        "hooks": [h.short for h in sets],
        "mask": masks,
        "n_hooks": [len(h) for h in sets],
        "members": [h.members for h in sets],
        "counterfactual": [h.counterfactual(provenance) for h in sets],
        "hook_sets": sizes,
        "status": status,
        "exact": (low == high).all(axis=1) & (not provenance.assumptions),
        "entries": low[:, list(ENTRIES)].sum(axis=1),
        "shared": shared_requests(low),
    }
    events = {column(e): low[:, e] for e in Event}
    high_events = {f"_high_{e.value}": high[:, e] for e in Event}
    return pd.DataFrame(head | events | high_events)


def _priced(table: pd.DataFrame, tables: list[CostTable]) -> pd.DataFrame:
    """Return one row per design and cost table, without events that never occur."""
    if table.empty:
        return table
    events = list(Event)
    low = np.zeros((len(table), N_EVENTS), np.int64)
    high = np.zeros_like(low)
    for e in events:
        low[:, e], high[:, e] = table[column(e)], table[f"_high_{e.value}"]
    never = [column(e) for e in events if not high[:, e].any()]
    table = table.drop(columns=[*never, *(f"_high_{e.value}" for e in events)])
    parts = []
    for costs in tables:
        costs.require(high)
        least, greatest = (np.nan_to_num(b) for b in costs.bounds())
        bad = (table["status"] != "ok").to_numpy()
        prices = {
            "cycles": low @ np.nan_to_num(costs.vector),
            "cycles_low": low @ least,
            "cycles_high": high @ greatest,
        }
        priced = {name: np.where(bad, np.nan, values) for name, values in prices.items()}
        parts.append(table.assign(costs=costs.name, **priced))
    return pd.concat(parts, ignore_index=True) if parts else table.assign(costs="")
