"""Measured designs against the model: every hook set and program, counts and outcomes.

The streams that a kernel made under its own hooks are replayed under each measured hook set. The
*change* against the base is compared: measured, and predicted.

A change agrees within 1 for each iteration or 2 % of what was measured, beyond two allowances that
the measurement itself gives, and that are listed wherever they are needed:

* the base's noise: how far its counts are apart in its two runs and the recorded iteration, the
  most of any counter that carries the same operations;
* other work: faults reach the guest under any hook set alike, so that a run with more or less of
  them than the base's is one in which the program did something else. Each may store and clear 16
  entries (``fault_around_bytes``) and flush twice.

Xen counts sub-calls of context switches (descriptors, stacks) in ``multicall.subcalls``, too; a
trace does not hold them (Linux 6.1 arch/x86/xen/enlighten_pv.c: xen_load_tls, xen_load_sp0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from pvmmu.errors import MeasurementError
from pvmmu.evidence.truth.design_outcomes import Judge, predicted_outcome
from pvmmu.evidence.truth.design_space_files import (
    BASE,
    DesignFolder,
    MeasuredDesign,
    read_designs,
    shipped_designs,
)
from pvmmu.evidence.truth.exit_clears import fewest_and_most, inferred_clears
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.trace import Trace
from pvmmu.modes import get_mode
from pvmmu.modes.base import Mode
from pvmmu.modes.direct.kernel import Mechanism
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Infeasible

MODE: Final = "direct"
#: Counters of xentrace, and ours; what carries the same operations shares a group.
COUNTERS: Final[Mapping[str, tuple[Event, str]]] = {
    "hypercall:mmu_update": (Event.MMU_UPDATE, "entries"),
    "mmu_update.requests": (Event.MMU_UPDATE_REQUESTS, "entries"),
    "subcall:mmu_update": (Event.SUB_MMU_UPDATE, "entries"),
    "subcall:mmu_update.requests": (Event.SUB_MMU_UPDATE_REQUESTS, "entries"),
    "PTWR_EMULATION": (Event.PTE_EMULATION, "entries"),
    "hypercall:update_va_mapping": (Event.UPDATE_VA_MAPPING, "calls"),
    "hypercall:mmuext_op": (Event.MMUEXT_OP, "calls"),
    "mmuext_op.requests": (Event.MMUEXT_OP_REQUESTS, "calls"),
    "hypercall:multicall": (Event.MULTICALL, "calls"),
    "multicall.subcalls": (Event.MULTICALL_SUBCALLS, "calls"),
    "subcall:update_va_mapping": (Event.SUB_UPDATE_VA_MAPPING, "calls"),
    "subcall:mmuext_op": (Event.SUB_MMUEXT_OP, "calls"),
    "subcall:mmuext_op.requests": (Event.SUB_MMUEXT_OP_REQUESTS, "calls"),
    "EMULATE_PRIVOP": (Event.PRIVOP_EMULATION, "instructions"),
}
#: Faults are input of the reader of recordings; here they tell what a run did.
FAULTS: Final = "PAGE_FAULT"
_OURS: Final = ("subcall:mmu_update", "subcall:update_va_mapping", "subcall:mmuext_op")
#: The most that a fault more or less changes: 16 entries stored and cleared; a flush here and one
#: when the page goes; its address read, and two accesses for each flush.
_OF_A_FAULT: Final = {"entries": 2 * 16, "calls": 2, "instructions": 5}
#: Instructions are emulated in place of calls that flush, and of reads of CR2.
_NOISE_OF: Final = {
    "entries": ("entries",),
    "calls": ("calls",),
    "instructions": ("calls", "instructions", "faults"),
}
_COLUMNS: Final = (
    "hooks", "design", "workload", "counter", "base", "measured", "change", "predicted",
    "difference", "tolerance", "noise", "other_work", "verdict", "note",
)  # fmt: skip
# Notes: what a difference beyond its tolerance needed.
NOISE: Final = "the base's noise"
OTHER_WORK: Final = "other work of the run"
UNEXPLAINED: Final = "more than noise and other work explain"
CANNOT: Final = "predicted not to run"
#: What a change may differ by: so many, or a share of it.
SLACK, SHARE = 1.0, 0.02
#: How far a recorded iteration may be from the mean of many (``data/truth/designs/README.md``).
ONE_ITERATION: Final = 0.2
#: The share of counters that must agree.
ENOUGH: Final = 0.995


class _Range(NamedTuple):
    """A count for each iteration that is known only within bounds."""

    low: float
    high: float


class _Replay:
    """Counts of a stream under designs, with what became of the design."""

    def __init__(self, workload: str, trace: Trace, mode: Mode) -> None:
        self.workload, self.trace, self.mode = workload, trace, mode

    def run(self, design: MeasuredDesign, judge: Judge) -> dict[str, _Range] | None:
        """Return the counters; None if the design cannot run."""
        trace = design.stream(self.trace)
        result = self.mode.run(trace, design.hooks)
        judge.see(self.workload, trace, self.mode, result)
        if isinstance(result, Infeasible):
            return None
        low, high = result.low, result.high
        rows = inferred_clears(trace)
        if np.any(result.mechanism[rows] == Mechanism.MMU_UPDATE) and "lazy_mmu" in design.hooks:
            for other in fewest_and_most(trace):
                bound = self.mode.run(other, design.hooks)
                if not isinstance(bound, Infeasible):
                    low, high = np.minimum(low, bound.low), np.maximum(high, bound.high)
        return {name: _Range(low[e], high[e]) for name, (e, _) in COUNTERS.items()}


def compare_designs(folder: DesignFolder | Path | str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compare every measured design with the model.

    Parameters
    ----------
    folder : DesignFolder, Path or str
        The measurement. Programs of which it has no stream take the one that ships with pvmmu,
        those whose base it did not count the counts that ship.

    Returns
    -------
    counters : DataFrame
        One row per design, program and counter that is not zero throughout: ``hooks`` (mask),
        ``design``, ``workload``, ``counter``, ``base``, ``measured`` (counts per iteration),
        ``change``, ``predicted`` (changes; ``LOW..HIGH`` where the stream leaves it open),
        ``difference`` (0 inside bounds), ``tolerance``, ``noise``, ``other_work`` (allowances),
        ``verdict`` (``ok`` or ``DIFFERS``), ``note``.
    outcomes : DataFrame
        One row per design: ``hooks``, ``design``, ``measured`` (as in ``designs.csv``),
        ``predicted``, ``verdict``, ``reason``, ``agrees`` (``ok``, ``DIFFERS``, or ``unknown``
        where none was measured).

    Raises
    ------
    MeasurementError
        The folder cannot be read, or neither it nor pvmmu has a program's stream or base.
    """
    if not isinstance(folder, DesignFolder):
        folder = read_designs(folder)
    mode, measured = get_mode(MODE), _with_base(folder)
    judges = {mask: Judge() for mask in folder.designs}
    rows: list[dict[str, Any]] = []
    for workload, path in _streams(folder).items():
        replayed = _Replay(workload, load_trace(path), mode)
        counts = {mask: replayed.run(d, judges[mask]) for mask, d in folder.designs.items()}
        if not any(key[2] == workload for key in measured):
            continue
        ours = counts.get(BASE) or replayed.run(MeasuredDesign(BASE), Judge())
        assert ours is not None  # the base runs
        base = [measured[k] for r in (1, 2) if (k := (BASE, r, workload)) in measured]
        for (mask, _, name), real in measured.items():
            if name == workload and mask in counts and mask != BASE:
                design = folder.designs[mask]
                rows += _rows(design, workload, real, base, counts[mask], ours)
    return pd.DataFrame(rows, columns=_COLUMNS), _outcomes(folder, judges)


def agreement(counters: pd.DataFrame, outcomes: pd.DataFrame) -> tuple[str, bool]:
    """Return ``N of M outcomes, N of M counters``, and whether that is enough.

    Parameters
    ----------
    counters, outcomes : DataFrame
        As `compare_designs` returns them.
    """
    seen = outcomes[outcomes["agrees"] != "unknown"]
    right, agree = int((seen["agrees"] == "ok").sum()), int((counters["verdict"] == "ok").sum())
    enough = right == len(seen) and agree >= ENOUGH * len(counters)
    text = f"{right:,} of {len(seen):,} outcomes, {agree:,} of {len(counters):,} counters"
    return text, enough


def _streams(folder: DesignFolder) -> dict[str, Path]:
    """Return the stream of every program, counted or not: all of them judge a design."""
    streams = shipped_designs().streams | folder.streams
    unknown = sorted(set(folder.counts["workload"]) - streams.keys())
    if unknown:
        raise MeasurementError(f"{folder.path}: workload={unknown[0]!r}: no stream of it is known")
    return streams


def _with_base(folder: DesignFolder) -> dict[tuple[int, int, str], dict[str, _Range]]:
    """Return what was counted, with the base of each program."""
    out = _measured(folder)
    shipped = {k: v for k, v in _measured(shipped_designs()).items() if k[0] == BASE}
    for workload in sorted({key[2] for key in out}):
        if not any((BASE, run, workload) in out for run in (1, 2)):
            out |= {k: v for k, v in shipped.items() if k[2] == workload}
        if not any((BASE, run, workload) in out for run in (1, 2)):
            where = f"{folder.path}: workload={workload!r}"
            raise MeasurementError(f"{where}: its counts under hooks={BASE:#x} are missing")
    return out


def _measured(folder: DesignFolder) -> dict[tuple[int, int, str], dict[str, _Range]]:
    """Return counts per iteration by (mask, run, workload)."""
    out: dict[tuple[int, int, str], dict[str, _Range]] = {}
    keys = ["hooks", "run", "workload"]
    for key, table in folder.counts.groupby(keys):
        of = dict(zip(table["event"], table["count"] / table["iterations"], strict=True))
        found = {name: _Range(of.get(name, 0.0), of.get(name, 0.0)) for name in (*COUNTERS, FAULTS)}
        subcalls = sum(of.get(name, 0.0) for name in _OURS)
        others = max(0.0, of.get("multicall.subcalls", 0.0) - subcalls)
        calls = of.get("hypercall:multicall", 0.0)
        found["multicall.subcalls"] = _Range(subcalls, subcalls)
        # a multicall of which none is the MMU's holds two others at least
        found["hypercall:multicall"] = _Range(max(0.0, calls - others / 2), calls)
        out[int(key[0]), int(key[1]), str(key[2])] = found
    return out


def _rows(
    design: MeasuredDesign, workload: str, real: dict[str, _Range], base: list[dict[str, _Range]],
    predicted: dict[str, _Range] | None, ours: dict[str, _Range],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the rows of one design and program."""
    spread = {name: _noise([b[name] for b in base], ours.get(name)) for name in (*COUNTERS, FAULTS)}
    groups = {"faults": spread[FAULTS]}
    for name, (_, group) in COUNTERS.items():
        groups[group] = max(groups.get(group, 0.0), spread[name])
    faults = [b[FAULTS].low for b in base]
    extra = max(0.0, min(faults) - real[FAULTS].low, real[FAULTS].low - max(faults))
    out = []
    for name, (_, group) in COUNTERS.items():
        first, now, o = base[0][name], real[name], ours[name]
        p = o if predicted is None else predicted[name]
        if not (first.high or now.high or p.high or o.high):
            continue
        change = _Range(now.low - first.high, now.high - first.low)
        moved = _Range(p.low - o.high, p.high - o.low)
        middle = (change.low + change.high) / 2
        tolerance = max(SLACK, SHARE * abs(middle))
        noise = max(groups[g] for g in _NOISE_OF[group])
        work = extra * _OF_A_FAULT[group]
        off = max(0.0, moved.low - change.high) or min(0.0, moved.high - change.low)
        note = _note(abs(off) - tolerance - 1e-9, noise, work) if predicted else CANNOT
        cells = (
            design.mask, design.name, workload, name, first.high, now.high, middle, _text(moved),
            off, tolerance, noise, work, "DIFFERS" if note in (CANNOT, UNEXPLAINED) else "ok", note,
        )  # fmt: skip
        out.append(dict(zip(_COLUMNS, cells, strict=True)))
    return out


def _note(beyond: float, noise: float, work: float) -> str:
    """Say what explains a difference beyond its tolerance."""
    if beyond <= 0:
        return ""
    if beyond <= noise:
        return NOISE
    return OTHER_WORK if beyond <= noise + work else UNEXPLAINED


def _noise(base: list[_Range], recorded: _Range | None) -> float:
    """Return how far the base's runs and its recorded iteration are apart."""
    runs = [b.high for b in base]
    if recorded is None:
        return max(runs) - min(runs)
    slack = ONE_ITERATION * max(runs)
    known = min(max(recorded.high, min(runs) - slack), max(runs) + slack)
    return max(*runs, known) - min(*runs, known)


def _text(r: _Range) -> str:
    return f"{r.low:g}" if r.low == r.high else f"{r.low:g}..{r.high:g}"


def _outcomes(folder: DesignFolder, judges: Mapping[int, Judge]) -> pd.DataFrame:
    """Return the table of outcomes."""
    rows = []
    for mask, design in folder.designs.items():
        predicted = predicted_outcome(judges[mask])
        agrees = "unknown"
        if design.outcome:
            agrees = "ok" if predicted.agrees(design.outcome) else "DIFFERS"
        rows.append({
            "hooks": mask, "design": design.name, "measured": design.outcome,
            "predicted": predicted.outcome, "verdict": predicted.verdict.words,
            "reason": predicted.verdict.reason, "agrees": agrees,
        })  # fmt: skip
    return pd.DataFrame(rows)
