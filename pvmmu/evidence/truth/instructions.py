"""Instructions that designs add, in a folder of measured designs, and how often things happen.

The streams of the folder (see `pvmmu.evidence.truth.design_space_files`) are replayed under each
design, and give the counts that prices are fitted to, or judged by. What else a program pays for
comes from the hypervisor's counts (system calls, context switches) and from the recordings (entries
read); where the streams are traces, a file ``context.csv`` says what their recordings showed:
``workload,system_calls,switches,entries_read``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.errors import MeasurementError
from pvmmu.evidence.truth.design_space_files import DesignFolder, MeasuredDesign, read_designs
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.readers.xen.context import CONTEXT, recording_context
from pvmmu.guest.readers.xen.recording import read_recording
from pvmmu.guest.trace import Trace
from pvmmu.replay.counts import replay
from pvmmu.replay.whole import things

#: Whole programs, as the recorder names them.
PROGRAM: Final = "cmd_"
#: A workload of system calls and nothing else needs no stream (``data/recorder/wl.c``).
_CALLS: Final = re.compile(r"^getppid\.(\d+)$")
#: Outcomes of designs whose guests keep their pages ("" is not said).
_ALIVE: Final = ("runs", "warns", "")
_NATIVE: Final = -1


@dataclass(frozen=True)
class Observations:
    """Programs under designs: what was counted, and what it added.

    Parameters
    ----------
    counts : DataFrame
        A row per (program, design): events of the replay by column name, operations of the stream
        (lower case), and context; see `pvmmu.guest.readers.xen.context`.
    added, native : Series of float64[row]
        Instructions beyond the native ones, and those.
    left : dict of str to str
        Rows and programs set aside, and why.
    """

    counts: pd.DataFrame
    added: pd.Series
    native: pd.Series
    left: dict[str, str]

    @property
    def whole(self) -> np.ndarray:
        """bool[row]: the row is of a whole program, not of a micro workload."""
        out: np.ndarray = self.counts.index.get_level_values(0).str.startswith(PROGRAM)
        return out


def observe(folder: Path) -> Observations:
    """Replay the streams of a measured design space under its designs.

    Parameters
    ----------
    folder : Path
        Of measured designs.

    Returns
    -------
    Observations
        Of the designs that run; without programs that let the CPU idle (idle time counts as
        instructions) and rows in which the kernel printed warnings.

    Raises
    ------
    MeasurementError
        A file is missing or wrong, or no stream is of a measured program; names it.
    RecordingError
        A stream cannot be read; names file and line.
    """
    found = read_designs(folder)
    spent = found.instructions.groupby(["workload", "hooks"])["min"].min()
    counted, known = _counted(found), _known_context(folder)
    idle = set(counted.index[counted["hypercall:sched_op"] > 0].get_level_values("workload"))
    alive = {m: d for m, d in found.designs.items() if d.outcome in _ALIVE}
    left: dict[str, str] = {}
    rows: dict[tuple[str, str], pd.Series] = {}
    for workload in spent.index.get_level_values("workload").unique():
        if (workload, _NATIVE) not in spent.index or workload.startswith("null."):
            continue
        if workload in idle:
            left[workload] = "the CPU idles in it"
            continue
        masks = {m: d for m, d in alive.items() if (workload, m) in spent.index}
        calls = _CALLS.match(workload)
        if calls:
            only = pd.Series({"system_calls": float(calls[1])})
            rows |= {(workload, f"{m:#x}"): only for m in masks}
        if workload not in found.streams:
            continue
        path = found.streams[workload]
        if path.suffix == ".parquet":
            trace, shown = load_trace(path), known.get(workload, {})
        else:
            trace = read_recording(path)
            shown = {k: float(v) for k, v in recording_context(path).items()}
        context = pd.Series(shown | _context(counted, workload), dtype=float)
        for mask, counts in _replayed(trace, masks):
            where = f"{workload} under {mask:#x}"
            if isinstance(counts, str):
                left[where] = counts
            elif (workload, mask) in counted.index and counted.loc[(workload, mask), "TRAP"] > 0:
                left[where] = "the kernel prints warnings in it"
            else:
                rows[workload, f"{mask:#x}"] = pd.concat([counts, context])
    if not rows:
        raise MeasurementError(f"{folder}: no stream is of a program measured natively, too")
    table = pd.DataFrame.from_dict(rows, orient="index").fillna(0.0)
    table.index = pd.MultiIndex.from_tuples(table.index, names=["program", "design"])
    native = pd.Series([spent[w, _NATIVE] for w, _ in table.index], table.index, dtype=float)
    total = pd.Series([spent[w, int(m, 16)] for w, m in table.index], table.index, dtype=float)
    return Observations(table, total - native, native, left)


def _counted(found: DesignFolder) -> pd.DataFrame:
    """Return Xen's counts per iteration: a row per (program, design), a column per event."""
    each = found.counts.assign(each=found.counts["count"] / found.counts["iterations"])
    out = each.pivot_table(index=["workload", "hooks"], columns="event", values="each").fillna(0.0)
    wanted = ("hypercall:iret", "hypercall:stack_switch", "hypercall:sched_op", "PAGE_FAULT",
              "marks", "TRAP")  # fmt: skip
    return out.reindex(columns=out.columns.union(list(wanted)), fill_value=0.0)


def _context(counted: pd.DataFrame, workload: str) -> dict[str, float]:
    """Return system calls and switches of an undisturbed iteration: the median over designs."""
    if workload not in counted.index.get_level_values("workload"):
        return {}
    mine = counted.loc[workload]
    mine = mine[mine["TRAP"] == 0] if (mine["TRAP"] == 0).any() else mine
    calls = mine["hypercall:iret"] - mine["PAGE_FAULT"] - mine["marks"]
    return {
        "system_calls": max(0.0, float(calls.median())),
        "switches": float(mine["hypercall:stack_switch"].median()),
    }


def _known_context(folder: Path) -> dict[str, dict[str, float]]:
    """Return what ``context.csv`` says, if there is one: by program, a number by name."""
    path = folder / "context.csv"
    if not path.is_file():
        return {}
    try:
        table = pd.read_csv(path).set_index("workload")[list(CONTEXT)].astype(float)
    except (OSError, ValueError, KeyError) as e:
        raise MeasurementError(f"{path}: {str(e).strip()}") from None
    return {str(w): {str(k): float(v) for k, v in row.items()} for w, row in table.iterrows()}


def _replayed(
    trace: Trace, designs: dict[int, MeasuredDesign]
) -> Iterator[tuple[int, pd.Series | str]]:
    """Yield the counts of `trace` under each design, or why there are none."""
    streams: dict[tuple[str, ...], Trace] = {(): trace}
    for mask, design in designs.items():
        if design.brackets not in streams:
            streams[design.brackets] = design.stream(trace)
        stream = streams[design.brackets]
        counts = replay(stream, design.hooks, "direct")
        if counts.infeasible is not None:
            yield mask, counts.status
        else:
            yield mask, pd.Series(things(stream, counts.low))
