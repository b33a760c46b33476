"""Counts per iteration of unmodified guests under shadow and nested paging against the model.

The schema is that of the measurements in ``data/truth/shadow_summary.csv``: KVM and Xen, each with
shadow and with nested paging, one vCPU. The model runs the guest for every row, starting with the
program's exec, and replays all of it in the mode that the row's environment stands for; what lies
between the marks is compared.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from pvmmu.errors import GuestError, MeasurementError, PvmmuError
from pvmmu.evidence.truth.xen_summary import verdict
from pvmmu.guest.trace import Op, Platform, Trace
from pvmmu.guest.workloads import BEGIN, END, WORKLOADS, run_workload
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.events import N_EVENTS, Event
from pvmmu.modes.outcome import Infeasible

#: Environment of a row -> mode, and hooks of its guest: Linux as a Xen HVM guest announces dying
#: address spaces if paging is not nested (arch/x86/xen/mmu_hvm.c), as a KVM guest with one vCPU it
#: hooks nothing of its MMU.
ENVIRONMENTS: Final = {
    "kvm-shadow": ("shadow:code=kvm-6.1", "none"),
    "kvm-npt": ("nested", "none"),
    "xen-pvh-shadow": ("shadow:code=xen-4.17", "exit_mmap"),
    "xen-pvh-hap": ("nested", "none"),
}
_PAGE_FAULTS: Final = (
    Event.PAGE_FAULT, Event.SHADOW_FAULT, Event.PTE_EMULATION, Event.SPURIOUS_FAULT,
)  # fmt: skip
_CR3: Final = (Event.CR3_WRITE_EXIT, Event.CR3_READ_EXIT)
#: Columns, and the events whose sum predicts them. Calls of Xen's clock are in ``exit_vmmcall``,
#: so it is compared by the dying processes alone, which `_NOISE` allows for.
EVENTS: Final[dict[str, tuple[Event, ...]]] = {
    "mmu_exits": (
        *_PAGE_FAULTS, Event.NESTED_FAULT, *_CR3, Event.INVLPG_EXIT, Event.CR4_WRITE_EXIT,
    ),
    "exit_page_fault": _PAGE_FAULTS,
    "exit_nested_fault": (Event.NESTED_FAULT,),
    "exit_write_cr3": (Event.CR3_WRITE_EXIT,),
    "exit_read_cr3": (Event.CR3_READ_EXIT,),
    "exit_invlpg": (Event.INVLPG_EXIT,),
    "exit_vmmcall": (Event.VMCALL,),
    "fault_reflected": (Event.PAGE_FAULT,),
    "fault_hidden": (Event.SHADOW_FAULT,),
    "write_emulated": (Event.PTE_EMULATION,),
    "fault_spurious": (Event.SPURIOUS_FAULT,),
    "unsync": (Event.UNSYNC,),
    "resync": (Event.RESYNC,),
    "shadow_made": (Event.SHADOW_MADE,),
    "shadow_zapped": (Event.SHADOW_ZAPPED,),
    "pte_write_applied": (Event.PTE_WRITES_APPLIED,),
}  # fmt: skip
#: Columns that an environment does not count.
_NOT_COUNTED: Final = {
    "xen-pvh-shadow": ("fault_spurious", "pte_write_applied"),
}
COLUMNS: Final = frozenset(["environment", "workload", "n_pages", "iterations", *EVENTS])
#: What a total may be off by: a share of it, or some events.
SHARE, FEW = 0.08, 5.0
#: What a difference between two sizes may be off by for each page, beside the truth's spread.
STEP_PER_PAGE = 2 / 1024
#: Timer and clock of the hypervisor make calls of their own: up to this share of a page's faults.
_CLOCK: Final = 0.03
ITERATIONS, WARM = 8, 2
#: Rows that are no workload of one's own choosing.
_EXCLUDED: Final = ("l2_boot_to_init",)
#: Layouts of the address space that a workload may meet (ASLR), by seed of the model.
LAYOUTS: Final = (0, 1, 2)
_FRAMES: Final = 1 << 16
#: What stands before and behind a feature that a variant's name denies.
_NOT: Final = (("no", ""), ("no_", ""), ("", "=off"), ("", "_off"))
_Key = tuple[str, str, int, str]


def compare(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Run the model guest for every row of a table and compare.

    Parameters
    ----------
    path : Path
        For errors.
    table : DataFrame
        Of str; the columns are `COLUMNS` and perhaps ``run`` and ``variant``.

    Returns
    -------
    DataFrame
        See `pvmmu.evidence.truth.compare_measurements`. The kernel puts stack and mappings at
        random places, which decides how many tables a mapping has to itself; the prediction is
        that of the layout, among `LAYOUTS`, that comes nearest, the same for all columns of a row.
    """
    out: list[dict[str, Any]] = []
    last: dict[tuple[str, ...], dict[str, Any]] = {}
    for i, record in enumerate(table.to_dict("records")):
        row = read_row(path, i + 2, {str(k): v for k, v in record.items()})
        if row["workload"] in _EXCLUDED:
            continue
        if row["name"] not in WORKLOADS:
            out.append(_unsupported(row))
            continue
        row["ours"] = nearest(row)
        out += _totals(row)
        series = (row["environment"], row["run"], row["variant"], row["workload"])
        if series in last:
            out += _steps(last[series], row)
        last[series] = row
    return pd.DataFrame(out)


def read_row(path: Path, line: int, record: dict[str, Any]) -> dict[str, Any]:
    """Check and convert a row of the table."""

    def wrong(field: str, what: str) -> MeasurementError:
        return MeasurementError(f"{path}:{line}: {field}={record[field]!r}: {what}")

    row: dict[str, Any] = {"line": line, "workload": record["workload"]}
    row["environment"] = record["environment"]
    if row["environment"] not in ENVIRONMENTS:
        raise wrong("environment", f"none of {', '.join(ENVIRONMENTS)}")
    for field in ("n_pages", *EVENTS):
        try:
            row[field] = float(record[field])
        except ValueError:
            raise wrong(field, "not a number") from None
    if not row["n_pages"].is_integer():
        raise wrong("n_pages", "no whole number")
    row["n"] = int(row["n_pages"])
    row["run"], row["variant"] = record.get("run", ""), record.get("variant", "base")
    twin = f"shadow/{row['workload']}"
    row["name"] = twin if twin in WORKLOADS else row["workload"]
    row["label"] = f"{row['workload']}.{row['n']} {row['environment']} {row['run']}".strip()
    return row


def _measured_columns(environment: str) -> Iterator[str]:
    """Yield the columns that an environment counts."""
    absent = _NOT_COUNTED.get(environment, ())
    return (name for name in EVENTS if name not in absent)


# ---------------------------------------------------------------------- the model
@functools.lru_cache(maxsize=4)
def trace_of(name: str, n: int, variant: str, layout: int) -> Trace:
    """Return the trace of a workload, from the program's start to the last iteration."""
    platform = Platform(
        guest="hvm", pti=_offers(variant, "pti"), pcid=_offers(variant, "pcid"), aslr=True
    )
    try:
        return run_workload(
            name, n, "6.1", platform, iterations=ITERATIONS, warm=WARM, whole=True, seed=layout,
            touches=True, frames=_FRAMES,
        )  # fmt: skip
    except GuestError as e:
        raise GuestError(f"{name}.{n}: {e}") from None


def _offers(variant: str, what: str) -> bool:
    """Whether the name of a variant says that its guests have something."""
    return what in variant and not any(f"{a}{what}{b}" in variant for a, b in _NOT)


@functools.cache
def predict(key: _Key, layout: int) -> dict[str, float]:
    """Return counts per iteration, by column.

    Parameters
    ----------
    key : tuple of (str, str, int, str)
        Environment, workload, size, variant.
    layout : int
        Which random layout of the address space.
    """
    environment, name, n, variant = key
    trace = trace_of(name, n, variant, layout)
    counts = between_marks(trace, *_mode(environment, variant)) / ITERATIONS
    return {c: float(counts[list(events)].sum()) for c, events in EVENTS.items()}


def _mode(environment: str, variant: str) -> tuple[str, str]:
    """Return mode and hooks of an environment and variant."""
    mode, hooks = ENVIRONMENTS[environment]
    if mode == "nested" and "4k" in variant:
        mode = "nested:backing=4k"
    return mode, hooks


def between_marks(trace: Trace, mode: str, hooks: str) -> np.ndarray:
    """Return the counts between the marks of a trace, int64[N_EVENTS]."""
    result = get_mode(mode).run(trace, HookSet.parse(hooks), log=True)
    if isinstance(result, Infeasible):
        raise PvmmuError(f"{trace.name}: {result.reason} (row {result.row})")
    mark = trace["op"] == Op.MARK
    begin = int(np.flatnonzero(mark & (trace["value"] == BEGIN))[0])
    end = int(np.flatnonzero(mark & (trace["value"] == END))[0])
    log = result.log[(result.log[:, 0] > begin) & (result.log[:, 0] < end)]
    counts = np.zeros(N_EVENTS, np.int64)
    np.add.at(counts, log[:, 1], log[:, 2])
    return counts


def nearest(row: dict[str, Any]) -> dict[str, float]:
    """Return the prediction of the layout that comes nearest to a row."""
    key = row["environment"], row["name"], row["n"], row["variant"]

    def distance(ours: dict[str, float]) -> float:
        return float(sum(abs(ours[c] - row[c]) for c in _measured_columns(row["environment"])))

    return min((predict(key, layout) for layout in LAYOUTS), key=distance)


# ---------------------------------------------------------------------- verdicts
def _totals(row: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for name in _measured_columns(row["environment"]):
        measured, tolerance = row[name], max(FEW, SHARE * row[name])
        if name == "exit_vmmcall":
            tolerance += _CLOCK * row["n"]
        counter, note = f"{row['label']}: {name}", f"line {row['line']}"
        out.append(verdict(counter, measured, measured, row["ours"][name], tolerance, note))
    return out


def _steps(before: dict[str, Any], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Compare the difference between two sizes."""
    out = []
    pages = abs(row["n"] - before["n"])
    for name in _measured_columns(row["environment"]):
        if name == "exit_vmmcall":
            continue
        measured = row[name] - before[name]
        ours = row["ours"][name] - before["ours"][name]
        counter = f"{row['label']}: {name} less that of {before['n']}"
        tolerance = max(FEW, STEP_PER_PAGE * pages)
        out.append(verdict(counter, measured, measured, ours, tolerance, f"line {row['line']}"))
    return out


def _unsupported(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "counter": row["label"], "measured": "", "predicted": "", "difference": "",
        "tolerance": "", "verdict": "unsupported",
        "note": f"line {row['line']}: the model has no program {row['workload']!r}",
    }  # fmt: skip
