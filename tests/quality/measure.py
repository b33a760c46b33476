"""Branch coverage: ``make coverage`` writes ``results/coverage.md``, and fails below 95 %.

Compiled code leaves no trace, so kernels are measured as plain Python, by their own tests with
fewer random cases. The tests of all that is built on kernels take them compiled: as plain Python
their recorded programs would take hours. A line of a kernel counts only if plain Python came by.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "results" / "coverage.md"
LEAST = 95.0
#: Tests of kernels; those marked `compiled` are left out.
KERNELS = (
    "x86/test_x86_[!e]*.py", "modes/test_modes_*.py", "replay/test_replay.py",
    "hooks/test_custom_hooks_and_modes.py", "guest/test_trace.py", "guest/test_guest_linux.py",
    "guest/test_memory_trace.py", "search/test_design_space.py",
)  # fmt: skip
#: Of these, what is run compiled, too: much of it is no kernel.
COMPILED_TOO = KERNELS[-3:]
#: What starts browsers, compiles everything anew, or looks at the repository.
NOT_HERE = (
    "project/test_packaging.py", "project/test_project.py", "project/test_jit.py",
    "x86/test_x86_environments.py", "panels/test_notebook*.py",
)  # fmt: skip
#: Every notebook, a quarter of an hour: what it executes is tested by itself.
TOO_LONG = "tests/cli/test_notebooks.py::test_a_notebook_runs_and_hides_no_error"


def chosen(patterns: tuple[str, ...]) -> list[str]:
    """Return the files of tests that match."""
    return sorted(str(p.relative_to(ROOT)) for x in patterns for p in (ROOT / "tests").glob(x))


def run(data: Path, tests: list[str], plain: bool, jobs: int) -> None:
    """Run tests and keep what they reach; a failure ends the run."""
    env = os.environ | {"NUMBA_DISABLE_JIT": str(int(plain)), "COVERAGE_FILE": str(data)}
    env["PVMMU_EXAMPLES"] = "0.1" if plain else "0.4"
    words = "not browser and not package" + " and not compiled" * plain
    command = [
        sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-m", words, "-n", str(jobs),
        "--dist", "worksteal", "--deselect", TOO_LONG, "--cov",
        f"--cov-config={HERE / 'coverage.toml'}", "--cov-report=", *tests,
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=env, check=True)


def combined(folder: Path) -> dict[str, Any]:
    """Combine both runs; return coverage's figures."""
    out = folder / "all.json"
    env = os.environ | {"COVERAGE_FILE": str(folder / "all")}
    rc = f"--rcfile={HERE / 'coverage.toml'}"
    runs = folder / "plain", folder / "compiled"
    for command in (["combine", "--keep", rc, *runs], ["json", rc, "-q", "-o", out]):
        subprocess.run([sys.executable, "-m", "coverage", *command], cwd=ROOT, env=env, check=True)
    return dict(json.loads(out.read_text()))


def share(figures: dict[str, int]) -> float:
    """Return the share of lines and branches that were reached, in percent."""
    done = figures["covered_lines"] + figures["covered_branches"]
    return 100 * done / max(1, figures["num_statements"] + figures["num_branches"])


def page(found: dict[str, Any], how: str) -> str:
    """Return the page: each room's figures, and what is left of each file."""
    rooms: dict[str, collections.Counter[str]] = {}
    names = ("num_statements", "covered_lines", "num_branches", "covered_branches")
    for file, what in found["files"].items():
        parts = Path(file).parts
        room = "/".join(parts[: 2 if len(parts) > 2 else 1])
        rooms.setdefault(room, collections.Counter()).update({n: what["summary"][n] for n in names})
    lines = [
        "# Coverage", "",
        f"`make coverage` wrote this on {datetime.date.today()}{how}. Lines and branches of the "
        f"package: {share(found['totals']):.1f} % (at least {LEAST:.0f}). Kernels count as plain "
        "Python only (`NUMBA_DISABLE_JIT=1`), reached by their own tests less those marked "
        "`compiled`, whose data would take hours; all other code counts in either run, and the "
        "tests of it take kernels compiled. Subprocesses count, too. Browsers, whole notebooks and "
        "packaging are tested elsewhere.", "",
        "| room | lines | reached | branches | reached | share |", "|---|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for room, s in sorted(rooms.items()):
        lines.append(
            "| " + " | ".join([room, *(str(s[n]) for n in names), f"{share(s):.1f} %"]) + " |"
        )
    lines += ["", "Not reached (lines; branches):", ""]
    for file, what in sorted(found["files"].items()):
        missing = ", ".join(map(str, what["missing_lines"]))
        branches = ", ".join(f"{a}->{max(b, 0) or 'exit'}" for a, b in what["missing_branches"])
        if missing or branches:
            lines.append(f"* `{file}` {missing}; {branches}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the page, and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data", type=Path, help="a folder with both runs: only the page")
    args = parser.parse_args()
    kernels = chosen(KERNELS)
    others = set(chosen(("*/test_*.py",))) - set(kernels) - set(chosen(NOT_HERE))
    others |= set(chosen(COMPILED_TOO))
    with tempfile.TemporaryDirectory() as folder:
        if args.data is None:
            run(Path(folder) / "plain", kernels, True, args.jobs)
            run(Path(folder) / "compiled", sorted(others), False, args.jobs)
        found = combined(args.data or Path(folder))
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(found, ", of runs made in pieces" if args.data else ""))
    total = share(found["totals"])
    print(f"{total:.1f} % of lines and branches")
    sys.exit(total < LEAST)


if __name__ == "__main__":
    main()
