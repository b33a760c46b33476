"""All benchmarks, one page: ``RESULTS.md``, and a comparison with the last ratios that were kept.

    python benchmarks/run.py [--quick] [--keep]

Every script measures ratios of CPU time within one interleaved run, so they may be compared
between machines of one kind. A ratio that is worse than the kept one by more than 15 % is measured
again; if it is worse both times, the exit status is 1. ``--quick`` uses small sizes, leaves out the
search of the whole space, and writes no page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.measure import machine, verdict

HERE = Path(__file__).parent
KEPT = HERE / "results" / "kept.json"
PAGE = HERE / "RESULTS.md"
SCRIPTS = ("walks", "tlb", "direct", "replay", "growth")
SLOW = ("search",)
WORSE = 1.15


def measured(script: str, quick: bool) -> tuple[list[dict], float, float]:
    """Run a script; return its ratios, wall seconds and greatest resident memory [MiB]."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "BENCH_RATIOS": folder, **({"BENCH_RESULTS": folder} if quick else {})}
        start = time.monotonic()
        command = [sys.executable, str(HERE / f"{script}.py"), *(["--quick"] if quick else [])]
        child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{script}.py failed")
        rows = json.loads((Path(folder) / f"{script}.json").read_text(encoding="utf-8"))
    return rows, seconds, usage.ru_maxrss / 1024


def worse(row: dict, kept: dict[str, float]) -> bool:
    """Whether a ratio is worse than the kept one by more than it may."""
    before = kept.get(f"{row['benchmark']}: {row['what']}")
    if before is None:
        return False
    change = row["ratio"] / before if row["relation"] == "<=" else before / row["ratio"]
    return bool(change > WORSE)


def page(rows: list[dict], costs: dict[str, tuple[float, float]]) -> str:
    """Return the page."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    lines = [
        "# Benchmarks\n",
        f"`make bench` wrote this on {time.strftime('%Y-%m-%d')}. {machine()}; "
        f"{os.cpu_count()} processors, load at the end {load}. Ratios of medians of CPU time "
        "within one interleaved run; each script's own table, with spreads, is in `results/`.\n",
        "| benchmark | what | ratio | limit | |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for r in rows:
        met = verdict(r["ratio"], r["relation"], r["limit"])
        lines.append(
            f"| {r['benchmark']} | {r['what']} | {r['ratio']:.2f} "
            f"| {r['relation']} {r['limit']:g} | {met} |"
        )
    lines += ["\n| benchmark | seconds | MiB at most |", "|---|---|---|"]
    lines += [f"| {k} | {s:.0f} | {m:.0f} |" for k, (s, m) in costs.items()]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, no page")
    parser.add_argument("--keep", action="store_true", help="keep these ratios to compare with")
    args = parser.parse_args()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
    rows, costs, bad = [], {}, []
    for script in SCRIPTS if args.quick else SCRIPTS + SLOW:
        found, seconds, mib = measured(script, args.quick)
        costs[script] = (seconds, mib)
        if not args.quick and any(worse(r, kept) for r in found):
            again = {r["what"]: r for r in measured(script, args.quick)[0]}
            bad += [r for r in found if worse(r, kept) and worse(again[r["what"]], kept)]
        rows += found
        print(f"{script}: {seconds:.0f} s", flush=True)
    text = page(rows, costs)
    print(text)
    if not args.quick:
        PAGE.write_text(text, encoding="utf-8")
    if args.keep:
        ratios = {f"{r['benchmark']}: {r['what']}": round(r["ratio"], 4) for r in rows}
        KEPT.write_text(json.dumps(ratios, indent=1) + "\n", encoding="utf-8")
    for r in bad:
        before = kept[f"{r['benchmark']}: {r['what']}"]
        print(f"WORSE, twice: {r['benchmark']}: {r['what']}: {r['ratio']:.2f}, kept {before:.2f}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
