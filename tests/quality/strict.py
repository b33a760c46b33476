"""Kernels once more, without mercy: ``make strict`` writes ``results/strict.md``.

Three runs: hardware, guest and modes with numba's bounds checks and five times the usual number of
random cases, other ones each time; the twins of hardware as plain Python; the package broken on
purpose. A run that fails ends it; the page is written only if all passed.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "results" / "strict.md"
# Not test_x86_environments.py: it measures how long compilation takes.
_CHECKED = (
    "x86/test_x86_[!e]*.py", "guest/test_memory_trace.py", "guest/test_guest_linux.py",
    "modes/test_*.py",
)  # fmt: skip
_PLAIN = ("x86/test_x86_twins.py", "x86/test_x86_mmu.py", "x86/test_x86_stale.py")


class Run(NamedTuple):
    """One run: what it is, its command and what it needs in the environment."""

    what: str
    command: list[str]
    env: dict[str, str]


def runs(jobs: int, cache: str) -> list[Run]:
    """Return the runs; kernels with bounds checks are kept in a cache of their own."""
    pytest = [sys.executable, "-W", "ignore", "-m", "pytest", "-q"]
    spread = ["-n", str(jobs), "--dist", "worksteal"]
    checks = {"NUMBA_BOUNDSCHECK": "1", "PVMMU_EXAMPLES": "5", "PVMMU_CACHE_DIR": cache}
    return [
        Run("bounds checked, five times the random cases", [*pytest, *spread, *found(_CHECKED)],
            checks),
        Run("twins of the hardware, nothing compiled", [*pytest, *found(_PLAIN)],
            {"NUMBA_DISABLE_JIT": "1"}),
        Run("hardware broken on purpose", [sys.executable, "tests/quality/mutants_x86.py"], {}),
    ]  # fmt: skip


def found(patterns: tuple[str, ...]) -> list[str]:
    """Return the files of tests that match."""
    return sorted(str(p.relative_to(ROOT)) for x in patterns for p in (ROOT / "tests").glob(x))


def row(run: Run) -> str:
    """Run it, and return its row of the table; end with its status if it fails."""
    start = time.monotonic()
    with subprocess.Popen(
        run.command, cwd=ROOT, env=os.environ | run.env, stdout=subprocess.PIPE, text=True
    ) as process:
        lines = []
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(process.returncode)
    [said] = re.findall(r"^(?:=+ )?(\d+ (?:of|passed).*?)(?: in [\d.]+s.*)?$", lines[-1])
    return f"| {run.what} | {said} | {(time.monotonic() - start) / 60:.0f} |"


def main() -> None:
    """Run all, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        rows = [row(run) for run in runs(args.jobs, cache)]
    load = os.getloadavg()[0]
    lines = [
        "# Kernels once more", "",
        f"`make strict` wrote this on {datetime.date.today()}, Python {platform.python_version()}, "
        f"{args.jobs} processes on {os.cpu_count()} processors (load at the end {load:.1f}). "
        "All of it passed, else there would be no page.", "",
        "| run | result | minutes |", "|---|---|---:|", *rows,
    ]  # fmt: skip
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
