"""What a real kernel was counted to do (``counts.csv``), natively and under Xen, and the model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from pvmmu.errors import MeasurementError
from pvmmu.evidence.truth.xen_summary import FEW, ITERATIONS, SHARE, STEP, verdict
from pvmmu.guest.linux.profile import profile_names
from pvmmu.guest.provenance import Platform
from pvmmu.guest.trace import Flag, Op, Trace
from pvmmu.guest.workloads import WORKLOADS, XEN_PV, run_workload

COLUMNS: Final = frozenset(
    ["environment", "vcpus", "workload", "n_pages", "event", "count_per_iteration", "run",
     "phase", "scope", "kernel"]
)  # fmt: skip
_Count = Callable[[Trace], int]


def _ops(*ops: Op, by: str = "", with_flag: int = 0, without: int = 0) -> _Count:
    """Count rows of some operations, perhaps only those of one caller, or by flags."""

    def count(t: Trace) -> int:
        rows = np.isin(t["op"], ops)
        if by:
            number = t.callers.index(by) if by in t.callers else -2
            rows &= t["caller"] == number
        if with_flag:
            rows &= t["flags"] & with_flag != 0
        if without:
            rows &= t["flags"] & without == 0
        return int(rows.sum())

    return count


def _flushes(pages: int) -> _Count:
    """Count flushes on this CPU of so many pages; -1: of all."""

    def count(t: Trace) -> int:
        rows = (t["op"] == Op.FLUSH_RANGE) & (t["count"] == pages)
        return int((rows & (t["flags"] & Flag.FULLMM == 0)).sum())

    return count


_EVERYWHERE: Final[dict[str, _Count]] = {
    "page_fault_user": _ops(Op.FAULT, without=Flag.KERNEL_FAULT),
    "page_fault_kernel": _ops(Op.FAULT, with_flag=Flag.KERNEL_FAULT),
    "fn:flush_tlb_mm_range": _ops(Op.FLUSH_RANGE),
    "fn:pgd_alloc": _ops(Op.PGD_ALLOC),
    "fn:pte_alloc_one": _ops(Op.ALLOC_PTE),
    "fn:__pmd_alloc": _ops(Op.ALLOC_PMD),
    "fn:__pud_alloc": _ops(Op.ALLOC_PUD),
    "fn:___pte_free_tlb": _ops(Op.RELEASE_PTE),
    "fn:___pmd_free_tlb": _ops(Op.RELEASE_PMD),
    "fn:___pud_free_tlb": _ops(Op.RELEASE_PUD),
    "fn:ptep_clear_flush": _ops(Op.PTE_GET_AND_CLEAR, by="ptep_clear_flush"),
    "fn:wp_page_copy": _ops(Op.SET_PTE, by="wp_page_copy"),
    "fn:exit_mmap": _ops(Op.EXIT_MMAP),
    "tlb_flush:local_mm_shootdown;pages=all": _flushes(-1),
}
_UNDER_XEN: Final[dict[str, _Count]] = {
    "xen_mmu_set_pte": _ops(Op.SET_PTE),
    "xen_mmu_set_pmd": _ops(Op.SET_PMD),
    "xen_mmu_set_pud": _ops(Op.SET_PUD),
    "xen_mmu_set_p4d": _ops(Op.SET_P4D),
    "xen_mmu_alloc_ptpage": _ops(Op.ALLOC_PTE, Op.ALLOC_PMD, Op.ALLOC_PUD),
    "xen_mmu_release_ptpage": _ops(Op.RELEASE_PTE, Op.RELEASE_PMD, Op.RELEASE_PUD),
    "xen_mmu_ptep_modify_prot_start": _ops(Op.MODIFY_PROT_START),
    "xen_mmu_ptep_modify_prot_commit": _ops(Op.MODIFY_PROT_COMMIT),
    "xen_mmu_pgd_pin": _ops(Op.DUP_MMAP, Op.ACTIVATE_MM),
    "xen_mmu_pgd_unpin": _ops(Op.EXIT_MMAP),
    "xen_mmu_flush_tlb_one_user": _ops(Op.FLUSH_ONE, without=Flag.NATIVE_ONLY),
    "fn:paravirt_enter_lazy_mmu": _ops(Op.LAZY_ENTER),
}
_COUNTS: Final = {
    "native": {**_EVERYWHERE, **{f"tlb_flush:local_mm_shootdown;pages={n}": _flushes(n)
                                 for n in range(1, 34)}},
    "xen-pv": {**_EVERYWHERE, **_UNDER_XEN},
}  # fmt: skip


def compare(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Run the model guest for every workload and size and compare its operations.

    Only the workload's own work counts (``scope`` wl), over whole iterations (``phase`` all): how
    phases share it depends on who is scheduled first. With two vCPUs only differences between
    sizes are compared. An event never counted is 0 in the truth.

    Raises
    ------
    MeasurementError
        A figure is no number, or a row names an unknown environment or kernel.
    """
    table = table[(table["scope"] == "wl") & (table["phase"] == "all")]
    table = table.assign(**{f: _whole(path, table[f]) for f in ("vcpus", "n_pages")})
    out: list[dict[str, Any]] = []
    last: dict[tuple[str, str, int, str], tuple[int, dict[str, tuple[float, float]], Trace]] = {}
    keys = ["kernel", "environment", "vcpus", "workload", "n_pages"]
    for (kernel, environment, vcpus, name, n), rows in table.groupby(keys):
        label = f"{name}.{n} {kernel} {environment} {vcpus}v"
        if name not in WORKLOADS:
            continue
        real = _measured(path, rows, environment)
        trace = _model(path, kernel, environment, vcpus, name, n)
        series = (kernel, environment, vcpus, name)
        for event, count in _COUNTS[environment].items():
            low, high = real[event]
            ours = count(trace) / ITERATIONS
            if vcpus == 1 and (high or ours):
                few = max(FEW, SHARE * low)
                out.append(verdict(f"{label}: {event}", low, high, ours, few, ""))
            if series in last:
                n0, real0, trace0 = last[series]
                low, high = low - real0[event][1], high - real0[event][0]
                ours -= count(trace0) / ITERATIONS
                if high or ours:
                    text = f"{label}: {event} less that of {n0}"
                    out.append(verdict(text, low, high, ours, STEP, ""))
        last[series] = n, real, trace
    return pd.DataFrame(out)


def _whole(path: Path, column: pd.Series) -> pd.Series:
    """Return a column as whole numbers."""
    wrong = ~column.str.fullmatch(r"\d{1,9}")
    if wrong.any():
        row = wrong.idxmax()
        raise MeasurementError(f"{path}:{row + 2}: {column.name}={column[row]!r}: no whole number")
    return column.astype(int)


def _measured(path: Path, rows: pd.DataFrame, environment: str) -> dict[str, tuple[float, float]]:
    """Return the least and the most of each event over the runs in which it was looked for."""
    if environment not in _COUNTS:
        raise MeasurementError(f"{path}: environment={environment!r}: neither native nor xen-pv")
    rows = rows[rows["source"] == "ftrace"] if "source" in rows else rows
    runs = rows["run"].nunique()
    out = {}
    for event in _COUNTS[environment]:
        try:
            values = rows.loc[rows["event"] == event, "count_per_iteration"].astype(float)
        except ValueError as e:
            raise MeasurementError(f"{path}: count_per_iteration of {event}: {e}") from None
        per_run = values.to_list() + [0.0] * (runs - len(values))
        out[event] = min(per_run, default=0.0), max(per_run, default=0.0)
    return out


def _model(path: Path, kernel: str, environment: str, vcpus: int, name: str, n: int) -> Trace:
    profile = ".".join(kernel.split(".")[:2])
    if profile not in profile_names():
        raise MeasurementError(f"{path}: kernel={kernel!r}: there is no profile of it")
    return _run(profile, environment, vcpus, name, n)


@functools.cache
def _run(profile: str, environment: str, vcpus: int, name: str, n: int) -> Trace:
    xen = {f: getattr(XEN_PV, f) for f in ("guest", "pse", "pge", "user_global", "tables_by_rcu")}
    platform = Platform(vcpus=vcpus, **(xen if environment == "xen-pv" else {}))
    return run_workload(name, n, profile, platform, iterations=ITERATIONS)
