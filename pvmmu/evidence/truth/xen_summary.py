"""Counts per iteration of a real Xen PV guest (``summary.csv``) against the model guest."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from pvmmu.errors import GuestError, MeasurementError, PvmmuError
from pvmmu.guest.linux.profile import profile_names
from pvmmu.guest.trace import Op
from pvmmu.guest.workloads import WORKLOADS, XEN_PV, run_workload
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Infeasible

#: Columns of the table, and the events that predict them. The others (iret, stack switches,
#: segments, event channels) are timer and scheduler noise.
EVENTS: Final = {
    "page_faults_to_guest": Event.PAGE_FAULT,
    "ptwr_emulations": Event.PTE_EMULATION,
    "mmu_update": Event.MMU_UPDATE,
    "mmu_update_requests": Event.MMU_UPDATE_REQUESTS,
    "update_va_mapping": Event.UPDATE_VA_MAPPING,
    "mmuext_op": Event.MMUEXT_OP,
    "mmuext_requests": Event.MMUEXT_OP_REQUESTS,
    "multicall": Event.MULTICALL,
    "subcall_update_va_mapping": Event.SUB_UPDATE_VA_MAPPING,
    "subcall_mmuext_op": Event.SUB_MMUEXT_OP,
    "subcall_mmuext_requests": Event.SUB_MMUEXT_OP_REQUESTS,
    "continuations": Event.CONTINUATION,
}
COLUMNS: Final = frozenset(["kernel", "vcpus", "workload", "n_pages", "phase", *EVENTS])
#: As measured: iterations in a row.
ITERATIONS: Final = 10
#: What a total may be off by: a share of it, or some events.
SHARE, FEW = 0.05, 3.0
#: What a difference between two sizes may be off by, beside the spread of the truth.
STEP = 1.0
#: Whole programs: what a ratio per page fault may be off by.
MACRO_SHARE = 0.15
#: Xen leaves a multicall, too, when an event (a timer's, say) is pending: in up to this share of
#: them in the measurements. No operation of the guest's causes it.
PREEMPTED = 0.1
_Key = tuple[str, int, str, int]


def compare(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Run the model guest for every row of a table and compare.

    Parameters
    ----------
    path : Path
        For errors.
    table : DataFrame
        Of str; the columns are `COLUMNS` and perhaps more.

    Returns
    -------
    DataFrame
        See `pvmmu.evidence.truth.compare_measurements`. Of a workload whose split into phases
        depends on who is scheduled first only ``all`` is compared; with two vCPUs only
        differences between sizes.
    """
    rows = [_read(path, i + 2, row) for i, row in enumerate(table.to_dict("records"))]
    out: list[dict[str, Any]] = []
    last: dict[tuple[str, int, str, str], tuple[dict[str, Any], Counter[Event]]] = {}
    for row in rows:
        key: _Key = (row["kernel"], row["vcpus"], row["workload"], row["n"])
        if _scheduled(row):
            continue
        if row["workload"] not in WORKLOADS:
            out.append(_unsupported(row))
            continue
        ours = predict(key)[row["phase"]]
        if row["macro"]:
            out += _ratios(row, ours)
            continue
        if row["vcpus"] == 1:
            out += [_total(row, name, ours) for name in EVENTS]
        series = (row["kernel"], row["vcpus"], row["workload"], row["phase"])
        if series in last:
            out += [_step(*last[series], row, ours, name) for name in EVENTS]
        last[series] = row, ours
    return pd.DataFrame(out)


def _read(path: Path, line: int, row: dict[str, Any]) -> dict[str, Any]:
    """Check and convert a row of the table."""

    def wrong(field: str, what: str) -> MeasurementError:
        return MeasurementError(f"{path}:{line}: {field}={row[field]!r}: {what}")

    kernel = ".".join(str(row["kernel"]).split(".")[:2])
    if kernel not in profile_names():
        raise wrong("kernel", f"no profile (there are {', '.join(profile_names())})")
    name = str(row["workload"])
    macro = name.startswith("cmd_")
    if name not in WORKLOADS:
        name = name.rstrip("0123456789")
    out: dict[str, Any] = {"kernel": kernel, "workload": name, "macro": macro, "line": line}
    try:
        out["vcpus"], out["n"] = int(row["vcpus"]), int(row["n_pages"])
    except ValueError:
        raise wrong("n_pages", "vcpus and n_pages are whole numbers") from None
    out["phase"] = str(row["phase"])
    out["label"] = f"{row['workload']}.{row['n_pages']} {row['kernel']} {row['vcpus']}v"
    for field in EVENTS:
        low, _, high = str(row[field]).partition("..")
        try:
            out[field] = float(low), float(high or low)
        except ValueError:
            raise wrong(field, "neither a number nor a range LOW..HIGH") from None
    return out


def _scheduled(row: dict[str, Any]) -> bool:
    """Whether a phase's share depends on who runs first."""
    forks = {"fork", "cow", "forkexec", "vforkexec", "smpfork", "cmd_shloop"}
    return row["phase"] != "all" and row["workload"] in forks


@functools.cache
def predict(key: _Key) -> dict[str, Counter[Event]]:
    """Return counts per iteration by phase.

    Parameters
    ----------
    key : tuple of (str, int, str, int)
        Kernel profile, vCPUs, workload, size.

    Raises
    ------
    GuestError
        The model cannot run it.
    """
    kernel, vcpus, name, n = key
    platform = dataclasses.replace(XEN_PV, vcpus=vcpus)
    iterations = 1 if WORKLOADS[name].suite == "mix" else ITERATIONS
    try:
        trace = run_workload(name, n, kernel, platform, iterations=iterations)
    except GuestError as e:
        raise GuestError(f"{name}.{n}: {e}") from None
    result = get_mode("direct").run(trace, HookSet.parse("linux-6.1"), log=True)
    if isinstance(result, Infeasible):
        raise PvmmuError(f"{name}.{n}: {result.reason} (row {result.row})")
    marks = np.flatnonzero(trace["op"] == Op.MARK)
    phase_of = np.r_[0, trace["value"][marks]]
    which = phase_of[np.searchsorted(marks, result.log[:, 0], "right")]
    out: dict[str, Counter[Event]] = {"all": Counter()}
    for phase, (_, event, amount, _) in zip(which.tolist(), result.log.tolist(), strict=True):
        for into in (str(phase), "all"):
            out.setdefault(into, Counter())[Event(event)] += amount
    for phase in set(map(str, phase_of)):
        out.setdefault(phase, Counter())
    return {
        phase: Counter({e: n / iterations for e, n in counts.items()})
        for phase, counts in out.items()
    }


def verdict(
    counter: str, low: float, high: float, ours: float, tolerance: float, note: str
) -> dict[str, Any]:
    """Return a row of a comparison: what was measured is between `low` and `high`."""
    difference = max(low - ours, 0.0) or min(high - ours, 0.0)
    return {
        "counter": counter,
        "measured": f"{low:g}" if low == high else f"{low:g}..{high:g}",
        "predicted": f"{ours:g}",
        "difference": round(-difference, 3) + 0.0,
        "tolerance": round(tolerance, 2),
        "verdict": "ok" if abs(difference) <= tolerance else "DIFFERS",
        "note": note,
    }


def _verdict(
    row: dict[str, Any], what: str, low: float, high: float, ours: float, tolerance: float
) -> dict[str, Any]:
    counter = f"{row['label']} {row['phase']}: {what}"
    return verdict(counter, low, high, ours, tolerance, f"line {row['line']}")


def _unsupported(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "counter": f"{row['label']} {row['phase']}", "measured": "", "predicted": "",
        "difference": "", "tolerance": "", "verdict": "unsupported",
        "note": f"line {row['line']}: the model has no program {row['workload']!r}",
    }  # fmt: skip


def _total(row: dict[str, Any], name: str, ours: Counter[Event]) -> dict[str, Any]:
    low, high = row[name]
    return _verdict(row, name, low, high, ours[EVENTS[name]], max(FEW, SHARE * low))


def _step(
    before: dict[str, Any], ours_before: Counter[Event], row: dict[str, Any],
    ours: Counter[Event], name: str,
) -> dict[str, Any]:  # fmt: skip
    """Compare the difference between two sizes."""
    (low0, high0), (low1, high1), event = before[name], row[name], EVENTS[name]
    return _verdict(
        row, f"{name} less that of {before['n']}", low1 - high0, high1 - low0,
        float(ours[event] - ours_before[event]), STEP,
    )  # fmt: skip


def _ratios(row: dict[str, Any], ours: Counter[Event]) -> list[dict[str, Any]]:
    """Compare a whole program by its ratios per page fault."""
    faults, real = ours[Event.PAGE_FAULT], row["page_faults_to_guest"]
    out = []
    for name, event in EVENTS.items():
        low, high = row[name][0] / real[1], row[name][1] / real[0]
        if name != "page_faults_to_guest" and high * real[1] > FEW:
            ratio = ours[event] / faults if faults else 0.0
            allowed = MACRO_SHARE * high
            if event == Event.CONTINUATION:
                allowed += PREEMPTED * row["multicall"][1] / real[0]
            out.append(_verdict(row, f"{name} per page fault", low, high, ratio, allowed))
    return out
