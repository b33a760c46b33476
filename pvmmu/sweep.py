"""Sweeps: every design of a space, one tidy table.

    table = sweep(["fork.64", "make"], "all", ["direct", "vmi"], ["p4-2006"])

``"all"`` is every set of hooks of the catalogue. Sets that a mode cannot tell apart on a trace are
one row, with their number in ``hook_sets``: the numbers of a trace and mode add up to two to the
number of hooks, so nothing is sampled and nothing left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import pvmmu
from pvmmu._jit import fingerprint
from pvmmu.costs import CostTable, get_costs
from pvmmu.errors import PvmmuError
from pvmmu.guest.ops import Trace
from pvmmu.hooks import HookSet
from pvmmu.library import load_trace
from pvmmu.modes import Mode, get_mode
from pvmmu.modes.base import Infeasible
from pvmmu.modes.classes import HookClass, Space
from pvmmu.modes.events import ENTRIES, N_EVENTS, Event, column
from pvmmu.replay import shared_requests

#: Hook sets replayed by one task of the executor.
CHUNK = 64
Designs = str | Space | Sequence[HookSet | str]


def sweep(
    traces: Iterable[Trace | str],
    hook_sets: Designs,
    modes: Iterable[Mode | str],
    costs: Iterable[CostTable | str] = (),
    *,
    executor: Executor | None = None,
    progress: bool | None = None,
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
        Where the replays run; default: threads of this process (kernels release the GIL).
    progress : bool, optional
        Show a bar with rate and remaining time; default: for more than a second of work.

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
        ``complete`` is false if the sweep was interrupted.

    Raises
    ------
    PvmmuError
        A trace, hook, mode or cost table does not exist.
    """
    loaded = [t if isinstance(t, Trace) else load_trace(t) for t in traces]
    chosen, tables = [get_mode(m) for m in modes], [get_costs(c) for c in costs]
    work = [
        (trace, mode, list(part))
        for trace, mode in itertools.product(loaded, chosen)
        for part in _chunks(_classes(trace, mode, hook_sets))
    ]
    done, complete = _run(work, executor, progress)
    frames = [
        _frame(*w, counts) for w, counts in zip(work, done, strict=True) if counts is not None
    ]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    table = _priced(table, tables)
    table.attrs = {
        "pvmmu": pvmmu.__version__,
        "model": fingerprint(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "traces": {t.name: t.fingerprint for t in loaded},
        "costs": [c.name for c in tables],
        "complete": complete,
    }
    return table


def _classes(trace: Trace, mode: Mode, hook_sets: Designs) -> list[HookClass]:
    """Return the classes of hook sets to replay."""
    if isinstance(hook_sets, str) and hook_sets == "all":
        hook_sets = Space.all()
    if isinstance(hook_sets, Space):
        return list(mode.classes(trace, hook_sets))
    if isinstance(hook_sets, str):
        hook_sets = [hook_sets]
    return [HookClass(HookSet.parse(h), 1) for h in hook_sets]


def _chunks(classes: list[HookClass]) -> Iterable[list[HookClass]]:
    return (classes[i : i + CHUNK] for i in range(0, len(classes), CHUNK))


Part = tuple[list[str], np.ndarray, np.ndarray]


def replay_part(trace: Trace, mode: Mode, part: list[HookClass]) -> Part:
    """Replay some classes: statuses, least and greatest counts (int64[class, N_EVENTS])."""
    status = []
    low = np.zeros((len(part), N_EVENTS), np.int64)
    high = np.zeros_like(low)
    for i, c in enumerate(part):
        try:
            result = mode.run(trace, c.hooks)
        except PvmmuError as e:  # a design that fails is a row, not a dead sweep
            status.append(f"error: {e}")
            continue
        if isinstance(result, Infeasible):
            status.append(f"infeasible: {result.reason}")
        else:
            status.append("ok")
            low[i], high[i] = result.low, result.high
    return status, low, high


def _run(
    work: list[tuple[Trace, Mode, list[HookClass]]],
    executor: Executor | None,
    progress: bool | None,
) -> tuple[list[Part | None], bool]:
    """Run all parts; Ctrl-C keeps what is done."""
    done: list[Part | None] = [None] * len(work)
    own = executor is None
    pool = executor or ThreadPoolExecutor()
    total = sum(len(part) for _, _, part in work)
    bar = tqdm(total=total, unit="design", delay=1, disable=progress is False, leave=False)
    futures = {pool.submit(replay_part, *w): i for i, w in enumerate(work)}
    try:
        for future in as_completed(futures):
            i = futures[future]
            done[i] = future.result()
            bar.update(len(work[i][2]))
        return done, True
    except KeyboardInterrupt:
        for future in futures:
            future.cancel()
        return done, False
    finally:
        bar.close()
        if own:
            pool.shutdown(wait=False, cancel_futures=True)


def _frame(trace: Trace, mode: Mode, part: list[HookClass], result: Part) -> pd.DataFrame:
    """Return the rows of one part, not yet priced."""
    status, low, high = result
    provenance = trace.provenance
    head: dict[str, Any] = {
        "trace": trace.name,
        "kernel": provenance.kernel,
        "guest": provenance.platform.guest,
        "vcpus": provenance.platform.vcpus,
        "mode": mode.spec,
        "hooks": [c.hooks.short for c in part],
        "mask": [c.hooks.mask for c in part],
        "n_hooks": [len(c.hooks) for c in part],
        "members": [c.hooks.members for c in part],
        "counterfactual": [c.hooks.counterfactual(provenance) for c in part],
        "hook_sets": [c.size for c in part],
        "status": status,
        "exact": (low == high).all(axis=1),
        "entries": low[:, list(ENTRIES)].sum(axis=1),
        "shared": [shared_requests(row) for row in low],
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
