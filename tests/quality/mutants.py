"""A random sample of mutants of each area, run against the tests that reach the mutated line.

    python tests/quality/mutants.py [AREA ...] [--sample N] [--again]

``make mutants`` runs all areas of ``areas.toml`` and writes ``results/mutants.md``. In a copy of
the repository, an area's kernels run as plain Python or compiled anew. A mutant is killed if a test
fails or takes far too long; each that survives needs an explanation in ``survivors.toml``.
``--again`` repeats only what survived in the last run (``results/mutants.json``).
"""

from __future__ import annotations

import argparse
import ast
import datetime
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

import matplotlib.pyplot  # noqa: E402, F401 - what the package imports: once, before all forks
import mutation  # noqa: E402
import numba  # noqa: E402, F401
import one  # noqa: E402
import pandas  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401
import pydantic  # noqa: E402, F401
import scipy.stats  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

RESULTS = ROOT / "results" / "mutants.json"
PAGE = ROOT / "results" / "mutants.md"
#: Least share of an area's mutants to be killed.
SCORE = 0.85


#: Tests to run, a file and its text instead, seconds at most, what it is for.
Todo = tuple[list[str], tuple[str, str] | None, float, Any]
Result = dict[str, Any]


_DIED = json.dumps({"code": 3, "failed": ["(the process died)"]})


class Area(NamedTuple):
    """Part of the package: its files, and the tests that are to notice."""

    name: str
    files: list[str]
    tests: list[str]
    sample: int
    compiled: bool
    examples: float
    budget: float
    recompile: bool

    @property
    def plain(self) -> list[str]:
        """Files whose kernels are plain Python."""
        return [] if self.recompile else self.files


class Reached(NamedTuple):
    """What a run of an area's tests showed: lines that each test reaches, and its seconds."""

    lines: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]


def read_areas() -> tuple[int, list[Area]]:
    """Return the seed and the areas of ``areas.toml``."""
    table = tomllib.loads((HERE / "areas.toml").read_text())
    areas = []
    for name, area in table["area"].items():
        files = sorted({str(p.relative_to(ROOT)) for g in area["files"] for p in ROOT.glob(g)})
        given = table | area
        areas.append(Area(name, files, *(given[x] for x in Area._fields[2:])))
    return table["seed"], areas


def read_explanations() -> dict[str, str]:
    """Return the explanation of each surviving mutant, by its name."""
    table = tomllib.loads((HERE / "survivors.toml").read_text())
    return {name: e["why"] for e in table["survivor"] for name in e["mutants"]}


def is_there(name: str) -> bool:
    """Say whether the line that a mutant was made of still stands in its file."""
    file, _, rest = name.partition(" ")
    before = rest.partition(": ")[2].partition(" -> ")[0]
    path = ROOT / file
    return path.is_file() and before in " ".join(path.read_text().split())


def copied(place: Path) -> Path:
    """Copy what is tracked by git, and new files, to a place; data as a link."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "pvmmu", "tests", "pyproject.toml"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    for name in ("data", "notebooks"):
        (place / name).symlink_to(ROOT / name)
    return place


def fork(
    root: Path, files: list[str], tests: list[str], out: Path, mutant: tuple[str, str] | None
) -> int:
    """Start a process; return its number."""
    pid = os.fork()
    if pid == 0:
        one.run_here(root, files, tests, out, mutant)
    return pid


class Job(NamedTuple):
    """A process at work."""

    out: Path
    deadline: float
    what: Any


def run(
    todo: Iterator[Todo], root: Path, files: list[str], jobs: int
) -> Iterator[tuple[Any, Result | None]]:
    """Run processes, so many at a time; yield what each was for and its result (None: too slow)."""
    working: dict[int, Job] = {}
    with tempfile.TemporaryDirectory() as folder:
        number, left = 0, True
        while left or working:
            while left and len(working) < jobs:
                try:
                    tests, mutant, seconds, what = next(todo)
                except StopIteration:
                    left = False
                    break
                out, number = Path(folder) / f"{number}.json", number + 1
                pid = fork(root, files, tests, out, mutant)
                working[pid] = Job(out, time.monotonic() + seconds, what)
            for pid, job in list(working.items()):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    del working[pid]
                    text = job.out.read_text() if job.out.is_file() else _DIED
                    printed = job.out.with_suffix(".txt").read_text()[-1500:]
                    yield job.what, json.loads(text) | {"printed": printed}
                elif time.monotonic() > job.deadline:
                    os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    del working[pid]
                    yield job.what, None
            time.sleep(0.02)


def statement(source: str, line: int) -> range:
    """Return the lines of the innermost statement at a line; the head, of a compound one."""
    best = range(line, line + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            if line <= max(end, node.lineno):
                best = range(node.lineno, max(end, node.lineno) + 1)
    return best


def covering(m: mutation.Mutant, reached: Reached, root: Path, area: Area) -> list[str]:
    """Return the tests that reach the statement of a mutant, quickest first, within the budget."""
    known = reached.lines.get(m.file, {})
    found: set[str] = set()
    for i in statement((root / m.file).read_text(), m.line):
        found.update(known.get(str(i), []))
    if "" in found or m.function == "(module)" or (area.recompile and not found):
        # executed at import, or compiled, where no line can be followed
        found = set(reached.seconds)
    tests, total = [], 0.0
    for test in sorted(found, key=lambda t: reached.seconds.get(t, 0.0)):
        total += reached.seconds.get(test, 0.0)
        if total > area.budget and tests:
            break
        tests.append(test)
    return tests


def try_out(area: Area, chosen: list[mutation.Mutant], root: Path, jobs: int) -> list[Result]:
    """Run the mutants of an area; return a row for each."""
    # each file of tests by itself: what one leaves in a cache must not hide what another reaches
    reached = Reached({}, {})
    quick = [] if area.compiled else ["-m", "not compiled"]
    files = [([*shlex.split(t), *quick], None, 1200.0, t) for t in area.tests]
    if area.compiled:  # what compiles is not to count as the tests' time
        list(run(iter(files), root, area.plain, jobs))
    for what, result in run(iter(files), root, area.plain, jobs):
        if result is None or result["code"] != 0:
            printed = result["printed"] if result else "too slow"
            raise SystemExit(f"{area.name}: {what} fails without any mutant:\n{printed}")
        reached.seconds.update(result["seconds"])
        for file, lines in result["lines"].items():
            for line, tests in lines.items():
                reached.lines.setdefault(file, {}).setdefault(line, []).extend(tests)
    print(f"{area.name}: {len(reached.seconds)} tests, {sum(reached.seconds.values()):.0f} s",
          flush=True)  # fmt: skip
    rows = []

    def todo() -> Iterator[Any]:
        for m in chosen:
            tests = covering(m, reached, root, area)
            if tests:
                limit = 20 + 4 * sum(reached.seconds[t] for t in tests) + 600 * area.recompile
                yield tests, (m.file, m.source(root)), limit, (m, len(tests))
            else:
                rows.append(_row(area, m, "survived", "no test reaches it"))

    for (m, n), result in run(todo(), root, area.plain, jobs):
        if result is None:
            rows.append(_row(area, m, "timeout", ""))
        elif result["code"] == 0:
            rows.append(_row(area, m, "survived", f"{n} tests"))
        else:
            rows.append(_row(area, m, "killed", (result["failed"] or ["?"])[0]))
        print(f"{rows[-1]['outcome']:9s} {m.name[:150]}   [{rows[-1]['by'][:70]}]", flush=True)
    return rows


def _row(area: Area, m: mutation.Mutant, outcome: str, by: str) -> Result:
    return {"area": area.name, **m._asdict(), "name": m.name, "outcome": outcome, "by": by}


def interval(killed: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    found = scipy.stats.binomtest(killed, n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def page(seed: int, summary: Result, rows: list[Result]) -> str:
    """Return the page of results."""
    why = read_explanations()
    lines = [
        "# Mutants", "",
        f"`make mutants` wrote this on {datetime.date.today()}. From all edits that cosmic-ray "
        "knows (one or two replacements of each operator) a random sample of each area, seed "
        f"{seed}; its kernels as plain Python or compiled anew. Killed: a test failed, or took "
        "far too long (timeout). Equivalent: survived, and the explanation below shows that no "
        "test could tell. Score: killed of all but those, with Wilson's 95 % interval.", "",
        "| area | edits | sample | killed | timeout | survived | equivalent | score | interval |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for area, s in summary.items():
        lines.append(
            f"| {area} | {s['edits']} | {s['n']} | {s['killed']} | {s['timeout']} "
            f"| {s['survived']} | {s['equivalent']} | {s['score']:.0%} "
            f"| {s['low']:.0%} to {s['high']:.0%} |"
        )
    not_run = [a.name for a in read_areas()[1] if a.name not in summary]
    if not_run:
        lines += ["", f"Not run yet: {'; '.join(not_run)}."]
    lines += ["", "Drawn but left out, by rule: " + ", ".join(
        f"{rule} ({n})" for rule, n in sorted(_left_out(summary).items())) + ".", ""]  # fmt: skip
    lines += ["## Survivors", ""]
    for r in sorted((r for r in rows if r["outcome"] == "survived"), key=lambda r: r["name"]):
        lines.append(f"* `{r['file']}:{r['line']}` `{r['before']}` -> `{r['after']}`  ")
        lines.append(f"  {why.get(r['name'], '**Not explained.**')}")
    return "\n".join(lines) + "\n"


def _left_out(summary: Result) -> dict[str, int]:
    total: dict[str, int] = {}
    for s in summary.values():
        for rule, n in s["left_out"].items():
            total[rule] = total.get(rule, 0) + n
    return total


def summarize(area: Area, drawn: tuple[Any, int, dict[str, int]], rows: list[Result]) -> Result:
    """Return an area's figures."""
    why = read_explanations()
    of = [r for r in rows if r["area"] == area.name]
    n = {k: sum(r["outcome"] == k for r in of) for k in ("killed", "timeout", "survived")}
    same = sum(
        r["outcome"] == "survived" and why.get(r["name"], "").startswith("Equivalent") for r in of
    )
    dead, all_ = n["killed"] + n["timeout"], len(of) - same
    low, high = interval(dead, all_)
    return n | {
        "edits": drawn[1], "left_out": drawn[2], "n": len(of), "equivalent": same,
        "score": dead / all_, "low": low, "high": high,
    }  # fmt: skip


def run_area(area: Area, seed: int, args: argparse.Namespace) -> None:
    """Run the mutants of an area in this process's children; keep the rows."""
    settings.register_profile(
        "mutants", phases=[Phase.explicit, Phase.generate], database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    settings.load_profile("mutants")
    last = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    with tempfile.TemporaryDirectory() as folder:
        root = copied(Path(folder))
        chosen, _, _ = mutation.draw(root, area.files, args.sample or area.sample, seed)
        kept = []
        if args.again:
            now = {m.name for m in chosen}
            kept = [
                r for r in last
                if r["area"] == area.name and r["outcome"] != "survived" and r["name"] in now
            ]  # fmt: skip
            done = {r["name"] for r in kept}
            chosen = [m for m in chosen if m.name not in done]
        rows = kept + try_out(area, chosen, root, args.jobs)
    others = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []  # as they are now
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([r for r in others if r["area"] != area.name] + rows, indent=1))


def main() -> None:
    """Run the areas named, or all; write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("areas", nargs="*")
    parser.add_argument("--sample", type=int, help="mutants of each area")
    parser.add_argument("--again", action="store_true", help="only what survived in the last run")
    parser.add_argument("--page", action="store_true", help="only the page, of the last run")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    seed, areas = read_areas()
    chosen = [a for a in areas if a.name in args.areas or not args.areas]
    if args.here:
        return run_area(chosen[0], seed, args)
    for area in [] if args.page else chosen:  # numba is told at its import whether to compile
        env = os.environ | {"NUMBA_DISABLE_JIT": str(int(not area.compiled))}
        env["PVMMU_EXAMPLES"] = str(area.examples)
        options = [area.name, "--here", *(x for x in sys.argv[1:] if x not in args.areas)]
        command = [sys.executable, "-u", "-W", "ignore", __file__, *options]
        subprocess.run(command, env=env, check=True)
    rows, summary = json.loads(RESULTS.read_text()), {}
    for area in areas:
        if any(r["area"] == area.name for r in rows):
            drawn = mutation.draw(ROOT, area.files, args.sample or area.sample, seed)
            summary[area.name] = summarize(area, drawn, rows)
    PAGE.write_text(page(seed, summary, rows))
    why = read_explanations()
    bad = [r["name"] for r in rows if r["outcome"] == "survived" and r["name"] not in why]
    stale = [f"explained, but no longer there: {name}" for name in why if not is_there(name)]
    low = [f"{a}: {s['score']:.0%}" for a, s in summary.items() if s["score"] < SCORE]
    print("\n".join([*(f"not explained: {name}" for name in bad), *stale, *low]))
    return sys.exit(bool(bad or low))


if __name__ == "__main__":
    main()
