"""Entries to the hypervisor under direct and under shadow paging, measured and predicted.

Xen's direct paging and the shadow paging of KVM and Xen were measured with the same kernel and like
programs (see ``data/truth/README.md``); here they stand side by side.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from pvmmu.evidence.truth import shadow_summary, xen_summary
from pvmmu.evidence.truth.measurements import read_table
from pvmmu.evidence.truth.xen_summary import ITERATIONS
from pvmmu.guest.workloads import XEN_PV, run_workload
from pvmmu.modes.events import ENTRIES
from pvmmu.paths import data_path
from pvmmu.replay import replay

#: Columns of the direct side that are entries (the others are requests, or no paging).
_DIRECT: Final = (
    "page_faults_to_guest", "ptwr_emulations", "mmu_update", "update_va_mapping", "mmuext_op",
    "multicall", "continuations",
)  # fmt: skip
#: Xen's calls that announce dying processes are among those of its clock.
_SHADOW: Final = ("mmu_exits", "exit_vmmcall")
#: Environment -> run, and what readers call it.
SIDES: Final = {
    "direct": "direct (Xen 4.17, today's hooks)",
    "kvm-shadow": "shadow (KVM 6.1, no hooks)",
    "xen-pvh-shadow": "shadow (Xen 4.17, dying processes told)",
}
_RUNS: Final = {"kvm-shadow": "shadowA", "xen-pvh-shadow": "xenShadowA"}


@dataclass(frozen=True)
class ProgramPair:
    """A program under direct paging and its like under shadow paging.

    Parameters
    ----------
    name : str
        For readers.
    direct, shadow : str
        ``WORKLOAD.N`` in either table; without the former only a prediction stands beside the
        latter, for the same program.
    per : int
        Iterations of the shadow side in one of the direct side.
    """

    name: str
    direct: str
    shadow: str
    per: int = 1


PAIRS: Final = (
    ProgramPair("fork, exit, wait", "fork.0", "fork_exit.0"),
    ProgramPair("fork, exec of the same tiny program", "", "fork_exec_tiny.0"),
    ProgramPair("fork, exec of a like program", "forkexec.0", "fork_exec_tiny.0"),
    ProgramPair("map, write, unmap 1 page", "mmap.1", "mmap_touch_munmap.1"),
    ProgramPair("map, write, unmap 64 pages", "mmap.64", "mmap_touch_munmap.64"),
    ProgramPair("map, write, unmap 1,024 pages", "mmap.1024", "mmap_touch_munmap.1024"),
    ProgramPair("drop and write 1,024 pages", "dontneed.1024", "madv_dontneed_touch.1024"),
    ProgramPair("protect, unprotect 1 page", "mprotect.1", "mprotect.1"),
    ProgramPair("protect, unprotect 64 pages", "mprotect.64", "mprotect.64"),
    ProgramPair("protect, unprotect 1,024 pages", "mprotect.1024", "mprotect.1024"),
    ProgramPair("two switches of process", "pipe.100", "pipe_pingpong_roundtrip.0", per=100),
)


@functools.cache
def _sides() -> pd.DataFrame:
    rows = []
    for pair in PAIRS:
        rows.append(_row(pair, "direct", *_direct(pair)))
        rows += [_row(pair, side, *_shadow(pair, side)) for side in _RUNS]
    return pd.DataFrame(rows)


def direct_vs_shadow() -> pd.DataFrame:
    """Return the entries of both sides.

    Returns
    -------
    DataFrame
        ``workload``, ``side`` (key of `SIDES`), ``measured`` (NaN: not measured) and
        ``predicted`` entries to the hypervisor for each iteration.
    """
    return _sides().copy()


def _row(pair: ProgramPair, side: str, measured: float, predicted: float) -> dict[str, Any]:
    return {"workload": pair.name, "side": side, "measured": measured, "predicted": predicted}


def _split(name: str) -> tuple[str, int]:
    workload, _, n = name.rpartition(".")
    return workload, int(n)


@functools.cache
def _table(name: str) -> pd.DataFrame:
    return read_table(data_path("truth", name))


def _direct(pair: ProgramPair) -> tuple[float, float]:
    """Return entries for one iteration of the shadow side's like, measured and predicted."""
    if not pair.direct:
        return np.nan, _same_program(pair.shadow)
    workload, n = _split(pair.direct)
    table = _table("xen_pv_summary.csv")
    mine = (table["workload"] == workload) & (table["n_pages"] == str(n))
    mine &= (table["vcpus"] == "1") & table["kernel"].str.startswith("6.1.")
    ours = xen_summary.predict(("6.1", 1, workload, n))["all"]
    [row] = table[mine & (table["phase"] == "all")].to_dict("records")
    measured = sum(_middle(str(row[c])) for c in _DIRECT)
    return measured / pair.per, sum(ours[e] for e in ENTRIES) / pair.per


def _same_program(name: str) -> float:
    """Return what direct paging would make of a program measured under shadow paging."""
    workload, n = _split(name)
    trace = run_workload(workload, n, "6.1", XEN_PV, iterations=ITERATIONS)
    return replay(trace, "linux-6.1", "direct").entries / ITERATIONS


def _middle(text: str) -> float:
    low, _, high = text.partition("..")
    return (float(low) + float(high or low)) / 2


def _shadow(pair: ProgramPair, side: str) -> tuple[float, float]:
    workload, n = _split(pair.shadow)
    path, table = data_path("truth", "shadow_summary.csv"), _table("shadow_summary.csv")
    mine = (table["environment"] == side) & (table["run"] == _RUNS[side])
    mine &= (table["workload"] == workload) & (table["n_pages"] == str(n))
    [at] = table.index[mine]
    row = shadow_summary.read_row(path, at + 2, table.loc[at].to_dict())
    ours = shadow_summary.nearest(row)
    return sum(row[c] for c in _SHADOW), sum(ours[c] for c in _SHADOW)


def direct_vs_shadow_finding(table: pd.DataFrame) -> str:
    """Return where in `table` an unmodified guest's shadow makes fewer entries, measured."""
    wide = table.pivot(index="workload", columns="side", values="measured")
    wide = wide.loc[[p.name for p in PAIRS if p.direct]]
    shadow = wide[list(_RUNS)].max(axis=1)
    forks = [p.name for p in PAIRS if p.direct and p.name.startswith("fork")]
    parts = [f"{shadow[w]:.0f} for {wide.loc[w, 'direct']:.0f} ({w})" for w in forks]
    same = table[table["measured"].isna()]["predicted"]
    fewer = int((shadow < wide["direct"]).sum())
    off = (table["predicted"] / table["measured"] - 1).abs()
    return (
        f"Entries under shadow for those under direct paging: {', '.join(parts)}; the tiny program "
        f"itself is predicted to make {same.iloc[0]:.0f}; fewer in {fewer} of {len(wide)} "
        f"workloads measured; predictions are within {off.max():.0%}. An entry of one mode is not "
        f"one of the other (a hypercall, an exit): what costs more is said by instructions"
    )
