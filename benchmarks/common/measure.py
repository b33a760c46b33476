"""Timing that means something on a busy machine: interleaved, CPU time of this thread, medians."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numba
import numpy as np
import pandas as pd

#: Where tables go: beside the benchmarks, unless ``benchmarks/run.py --quick`` says otherwise.
RESULTS = Path(os.environ.get("BENCH_RESULTS") or Path(__file__).parents[1] / "results")
_FLAGS = ("-O3", "-march=native", "-shared", "-fPIC")
Work = Callable[[], object]


def compiled(source: str) -> ctypes.CDLL:
    """Return the library that a C file beside this module makes, compiled for this processor."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "reference.so"
        path = Path(__file__).with_name(source)
        subprocess.run(["gcc", *_FLAGS, "-o", target, path], check=True)
        return ctypes.CDLL(str(target))


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    """Return the address of an array's elements, which somebody else has to keep alive."""
    return ctypes.c_void_p(array.ctypes.data)


def interleaved(work: Mapping[str, Work], rounds: int) -> pd.DataFrame:
    """Run everything once to warm up, then in rounds; return CPU seconds, a column for each.

    Each round begins elsewhere, so that nobody always runs after the same neighbour.
    """
    names = list(work)
    for name in names:
        work[name]()
    rows = []
    for i in range(rounds):
        order = names[i % len(names) :] + names[: i % len(names)]
        row = {}
        for name in order:
            start = time.thread_time()
            work[name]()
            row[name] = time.thread_time() - start
        rows.append(row)
    return pd.DataFrame(rows)[names]


def spread(seconds: pd.Series, per: int) -> str:
    """Return minimum, median and maximum in nanoseconds for each of so many things."""
    ns = seconds / per * 1e9
    return f"{ns.min():.2f} / {ns.median():.2f} / {ns.max():.2f}"


def memory_mib(what: str = "VmRSS") -> float:
    """Return resident memory of this process [MiB], or with ``VmHWM`` the most since its reset."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{what}:")[1].split()[0]) / 1024


def machine() -> str:
    """One line: processor, compiler, versions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    gcc = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True, check=False)
    return (
        f"{cpu}; gcc {gcc.stdout.strip()}; Python {platform.python_version()}; "
        f"numba {numba.__version__}; numpy {np.__version__}"
    )


def markdown(table: pd.DataFrame, index: bool = True) -> str:
    """Return a table in Markdown."""
    return table.to_markdown(index=index, disable_numparse=True)


def write_results(name: str, title: str, parts: Mapping[str, str]) -> Path:
    """Write tables to ``benchmarks/results/NAME.md`` and show them."""
    text = f"# {title}\n\n{machine()}.\nCPU time of one thread, interleaved rounds"
    text += "; minimum / median / maximum unless said otherwise.\n"
    text += "".join(f"\n## {head}\n\n{part}\n" for head, part in parts.items())
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text(text, encoding="utf-8")
    print(text)
    return path


def keep_ratios(name: str, ratios: Mapping[str, tuple[float, str, float]]) -> None:
    """Write ratios where ``benchmarks/run.py`` finds them: what -> (ratio, relation, limit)."""
    folder = os.environ.get("BENCH_RATIOS")
    if folder:
        rows = [
            {"benchmark": name, "what": what, "ratio": float(r), "relation": rel, "limit": limit}
            for what, (r, rel, limit) in ratios.items()
        ]
        Path(folder, f"{name}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def verdict(ratio: float, relation: str, limit: float) -> str:
    """Return ``met`` or ``MISSED``."""
    return "met" if (ratio <= limit if relation == "<=" else ratio >= limit) else "MISSED"


def verdicts(ratios: Mapping[str, tuple[float, str, float]]) -> pd.DataFrame:
    """Return a table of ratios with their limits.

    Parameters
    ----------
    ratios : mapping
        What -> (ratio, ``"<="`` or ``">="``, limit).
    """
    rows = []
    for what, (ratio, relation, limit) in ratios.items():
        rows.append(
            (what, f"{ratio:.2f}", f"{relation} {limit:g}", verdict(ratio, relation, limit))
        )
    return pd.DataFrame(rows, columns=["ratio of medians", "measured", "limit", ""]).set_index(
        "ratio of medians"
    )
