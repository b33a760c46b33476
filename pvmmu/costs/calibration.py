"""A cost table of the machine at hand: what an unprivileged process can measure; else priors."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pvmmu.costs.files import get_costs, write_costs
from pvmmu.costs.table import Cost, CostTable, Measurement
from pvmmu.errors import CostError

_MEANING: Final = {
    "touch_page": "first write to an anonymous page: fault, allocation, zeroing",
    "populate_page": "the same without a fault (MADV_POPULATE_WRITE)",
    "mprotect_page": "mprotect to read-only, each page more beyond 66 (one flush for all)",
    "mprotect_page_flushed": "mprotect to read-only, each page more up to 32 (invalidated singly)",
    "munmap_page": "munmap, each present page (freed, too)",
    "fork_page": "fork, each private page more",
    "context_switch": "switch between two processes on one CPU, by a byte in a pipe",
    "tlb_miss": "dependent load from a page that the TLB does not hold, above one that it holds",
}
#: Events whose price follows from two timings: the first, less the second.
_DERIVED: Final = {
    "fault": ("touch_page", "populate_page"),
    "locked": ("mprotect_page", ""),
    "invlpg": ("mprotect_page_flushed", "mprotect_page"),
}
#: Repetitions without which quartiles say nothing.
LEAST_REPETITIONS: Final = 5


def calibrate(
    path: str | os.PathLike[str] | None = None, *, like: str = "xen-2026", repetitions: int = 25,
    mhz: float | None = None,
) -> CostTable:  # fmt: skip
    """Measure on this machine what an unprivileged process can, and return a cost table.

    Native prices follow from timings: a fault is a first touch less the same work without a fault;
    a locked read-modify-write is what mprotect adds for a page; INVLPG is what it adds on top where
    Linux invalidates page by page. What only a hypervisor could measure is taken from `like`.

    Parameters
    ----------
    path : path-like, optional
        Where to write the table (``.toml``); `get_costs` reads it.
    like : str
        Table that the other figures come from.
    repetitions : int
        Of each timing.
    mhz : float, optional
        Clock (MHz); default: what the kernel says of the first CPU.

    Returns
    -------
    CostTable
        Measured figures are marked ``measured``, with the quartiles as range; ``measurements``
        holds the timings of whole operations.

    Raises
    ------
    CostError
        Too few repetitions, no clock, the timings fail, or the file cannot be written.

    Notes
    -----
    In a virtual machine the figures are those of its paging mode: under nested paging close to
    native, but for TLB misses.
    """
    if repetitions < LEAST_REPETITIONS:
        raise CostError(f"calibrate: at least {LEAST_REPETITIONS} repetitions, not {repetitions}")
    doc = _document(_timings(repetitions), get_costs(like), mhz or _clock(), repetitions)
    if path is not None:
        write_costs(doc, Path(path))
    return CostTable(name=Path(path).stem if path else "measured", **doc)


def _timings(repetitions: int) -> dict[str, list[float]]:
    """Run the timings in a process of their own."""
    command = [sys.executable, "-m", "pvmmu.costs.timing", str(repetitions)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CostError(f"calibrate: the timings failed ({last})")
    out: dict[str, list[float]] = json.loads(done.stdout)
    return out


def _clock() -> float:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return float(re.findall(r"cpu MHz\s*:\s*([\d.]+)", text)[0])
    except (OSError, IndexError):
        raise CostError("calibrate: this machine does not tell its clock; pass mhz") from None


def _cpu_model() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1] if found else "unknown"


def _document(
    timings: Mapping[str, Sequence[float]], base: CostTable, mhz: float, repetitions: int
) -> dict[str, Any]:
    """Return the table as a document."""
    quartiles = {name: statistics.quantiles(t, n=4) for name, t in timings.items()}
    events = {name: cost.model_dump() for name, cost in base.events.items()}
    for name, (more, less) in _DERIVED.items():
        cost = _difference(quartiles.get(more), quartiles.get(less) if less else [0.0] * 3)
        if cost:
            how = f"{more} less {less}" if less else more
            source = f"median of {repetitions} repetitions on this machine: {how}"
            events[name] = Cost(kind="measured", source=source, **cost).model_dump()
    return {
        "title": "Measured on this machine",
        "cpu": _cpu_model(),
        "hypervisor": base.hypervisor,
        "year": datetime.now(UTC).year,
        "mhz": mhz,
        "notes": f"Figures that no unprivileged process can measure are those of {base.name}.",
        "events": {
            n: {k: v for k, v in e.items() if v not in (None, "")} for n, e in events.items()
        },
        "free": dict(base.free),
        "measurements": {
            name: Measurement(
                value=max(q[1], 0), spread=(q[2] - q[0]) / 2, meaning=_MEANING[name]
            ).model_dump()
            for name, q in quartiles.items()
        },
    }


def _difference(more: list[float] | None, less: list[float] | None) -> dict[str, Any] | None:
    """Return value and range of a difference of medians; None if it drowns in the noise."""
    if more is None or less is None or more[1] <= less[1]:
        return None
    low, high = max(more[0] - less[2], 0.0), more[2] - less[0]
    return {"value": more[1] - less[1], "unit": "ns", "range": (low, high)}
