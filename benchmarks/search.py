"""The exhaustive search: what it takes, how it grows, against naive replay, and on a cluster.

    python benchmarks/search.py [--quick] [--out benchmarks/results/search.md]

Everything is measured in this run, after one small search that compiles and loads the kernels.
Wall times depend on what else the machine does (the load is printed); ratios hardly. The cost of
naive replay is that of a stated sample of designs, replayed one by one and extrapolated to the
whole space.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from common.measure import RESULTS, keep_ratios

from pvmmu import HookSet, Trace, load_trace
from pvmmu.guest.workloads import run_workload
from pvmmu.guest.workloads.run import XEN_PV
from pvmmu.hooks import catalogue
from pvmmu.modes import get_mode
from pvmmu.modes.partition import Space
from pvmmu.search import Search, all_modes, search
from pvmmu.search.shards import count_shard, shards_of
from pvmmu.search.sweep import sweep

RECORDED = ["make", "redis", "forksnap", "shloop", "dashloop", "python", "bash-6.12"]
MODELLED = {"compile": 4, "forking_server": 2000, "cow": 2048}
PLANNED, CORES = 10**9, 1000
SAMPLE = 30


def timed(work: Callable[[], object]) -> tuple[object, float, float]:
    """Return result, wall seconds and CPU seconds of this process (all threads)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def quiet(traces: list[Trace], modes: list[str], space: Space | None = None, threads: int = 2):
    with ThreadPoolExecutor(threads) as pool:
        return search(traces, modes, space, executor=pool, progress=False)


def fresh(traces: list[Trace]) -> list[Trace]:
    """Return copies that remember nothing of earlier searches."""
    return [t.select(slice(None)) for t in traces]


def whole_space(traces: list[Trace], modes: list[str]) -> tuple[Search, pd.Series, pd.DataFrame]:
    """Search everything, mode after mode; return it and what it took."""
    copies, cells, rows = fresh(traces), {}, []
    for mode in modes:
        part, wall, cpu = timed(lambda mode=mode: quiet(copies, [mode]))
        assert isinstance(part, Search)
        cells |= part.cells
        rows.append({"mode": mode, "wall [s]": wall, "CPU [s]": cpu})
        print(rows[-1], flush=True)
    each = pd.DataFrame(rows)
    found = Search(part.space, cells, part.provenance)
    wall, cpu = each["wall [s]"].sum(), each["CPU [s]"].sum()
    for cost in ("p4-2006", "xen-2026"):
        _, price, _ = timed(lambda cost=cost: found.cycles(cost))
    with tempfile.TemporaryDirectory() as folder:
        _, save, _ = timed(lambda: found.save(folder))
        size = sum(p.stat().st_size for p in Path(folder).iterdir())
        _, load, _ = timed(lambda: Search.load(folder))
    table = {
        "hooks": len(catalogue()), "traces": len(found.traces), "modes": len(found.modes),
        "designs": float(found.designs), "classes": sum(map(len, found.cells.values())),
        "wall [s]": wall, "CPU [s]": cpu, "re-pricing all [s]": price, "counts in memory [MB]":
        found.nbytes / 1e6, "greatest memory of the process [MB]":
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "Parquet [MB]": size / 1e6, "saving [s]": save, "loading [s]": load,
    }  # fmt: skip
    return found, pd.Series(table, name="value"), each


def naive(found: Search, traces: list[Trace], seconds: float) -> pd.DataFrame:
    """Replay a sample of designs of each mode one by one and extrapolate to all hook sets."""
    r, rows = random.Random(1), []
    for spec in found.modes:
        mode, total, n = get_mode(spec), 0.0, 0
        for trace in traces:
            cell = found[trace.name, spec]
            masks, _ = cell.partition.masks_and_sizes()
            for i in r.sample(range(len(masks)), min(SAMPLE // len(traces) + 1, len(masks))):
                one = partial(mode.run, trace, HookSet(int(masks[i])))
                got, _, cpu = timed(one)
                assert (got.low == cell.counts(i)).all(), (spec, trace.name, i)
                total, n = total + cpu, n + 1
        rows.append({"mode": spec, "sample": n, "one replay [ms]": 1000 * total / n})
    table = pd.DataFrame(rows)
    by_mode = found.summary().groupby("mode", sort=False)
    each = table["one replay [ms]"] / 1000
    table["feasible designs"] = table["mode"].map(by_mode["feasible"].sum()).astype(float)
    table["a replay for each [s]"] = each * table["feasible designs"]
    table["classes"] = table["mode"].map(by_mode["classes"].sum())
    table["a replay for each class [s]"] = each * table["classes"]
    matters = table["mode"] != "native"  # where no hook does anything, nobody would replay sets
    table.attrs["ratio"] = table["a replay for each [s]"][matters].sum() / seconds
    table.attrs["class ratio"] = table["a replay for each class [s]"].sum() / seconds
    return table


def growth(traces: list[Trace], modes: list[str]) -> dict[str, pd.DataFrame]:
    """Return how the time grows with hooks, workloads, trace length, cores."""
    partition = get_mode("direct").classes(traces[0], Space.all())
    optional = partition.relevant_hooks - partition.required
    # first those that the mode may do without, in an order that mixes what they do
    names = random.Random(2).sample(list(optional), len(optional)) + list(partition.required)
    rest = HookSet.every()

    def measure(label: str, value: object, work: Callable[[], object]) -> dict[str, object]:
        found, wall, cpu = timed(work)
        assert isinstance(found, Search)
        classes = sum(map(len, found.cells.values()))
        return {label: value, "classes": classes, "wall [s]": wall, "CPU [s]": cpu}

    hooks = []
    for n in (10, 12, 14, 16, 18, 20):
        free = HookSet.of(*names[:n])
        space = Space(free, rest - free)
        hooks.append(measure("hooks", n, lambda s=space: quiet(fresh(traces[:2]), modes, s)))
    work = [
        measure("workloads", n, lambda n=n: quiet(fresh(traces[:n]), modes)) for n in (1, 2, 4, 6)
    ]
    length = []
    for pages in (512, 1024, 2048, 4096):
        t = run_workload("cow", pages, platform=XEN_PV)
        length.append(measure("operations", len(t), lambda t=t: quiet(fresh([t]), modes)))
    cores = [
        measure("threads", n, lambda n=n: quiet(fresh(traces[:4]), modes, threads=n))
        for n in (1, 2)
    ]
    return {
        "hooks": pd.DataFrame(hooks), "workloads": pd.DataFrame(work),
        "trace length": pd.DataFrame(length), "cores": pd.DataFrame(cores),
    }  # fmt: skip


def dask_against_threads(traces: list[Trace], modes: list[str]) -> pd.DataFrame:
    """Sweep to disk by two threads and by two worker processes of Dask, both warm."""
    from distributed import Client, LocalCluster

    rows = []

    def stored(name: str, executor: object) -> None:
        with tempfile.TemporaryDirectory() as folder:
            sweep(["fork.1"], "all", modes, executor=executor, progress=False, store=f"{folder}/w")
            run = lambda: sweep(  # noqa: E731
                fresh(traces), "all", modes, executor=executor, progress=False, store=f"{folder}/s"
            )
            table, wall, _ = timed(run)
            rows.append({"executor": name, "rows": len(table), "wall [s]": wall})

    with (
        LocalCluster(2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        for turn in range(2):  # interleaved, so that a busy minute hits both
            with ThreadPoolExecutor(2) as pool:
                stored(f"two threads, round {turn + 1}", pool)
            stored(f"Dask, two processes, round {turn + 1}", client.get_executor(pure=False))
    return pd.DataFrame(rows)


def plan(found: Search, traces: list[Trace], modes: list[str]) -> pd.DataFrame:
    """Measure the shards of each mode, and plan a search of a billion designs."""
    rows = []
    for spec in modes:
        mode, seconds, designs = get_mode(spec), [], 0
        for trace in fresh(traces):
            partition = mode.classes(trace, Space.all())
            for shard in shards_of(trace, mode, partition):
                _, _, cpu = timed(lambda s=shard: count_shard(s))
                seconds.append(cpu)
                designs += sum(c.size for c in shard.classes)
        rows.append(
            {
                "mode": spec, "shards": len(seconds), "median shard [s]": float(np.median(seconds)),
                "longest shard [s]": max(seconds), "CPU [s]": sum(seconds),
                "feasible designs": float(designs),
                "classes": sum(len(found[t.name, spec]) for t in traces),
            }
        )  # fmt: skip
    table = pd.DataFrame(rows)
    per_class = table["CPU [s]"] / table["classes"]
    table[f"{PLANNED:.0e} classes on {CORES:,} cores [s]"] = per_class * PLANNED / CORES
    return table


def page(parts: dict[str, pd.DataFrame | pd.Series | str]) -> str:
    """Return the results as Markdown."""
    load = ", ".join(f"{x:.1f}" for x in os.getloadavg())
    head = (
        "# The exhaustive search\n\n`python benchmarks/search.py` wrote this; load of the machine "
        f"at the end: {load}, {os.cpu_count()} cores.\n"
    )
    out = [head]
    for title, part in parts.items():
        out.append(f"\n## {title}\n")
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, pd.Series):
            out.append(part.map("{:,.4g}".format).to_frame().to_markdown())
        else:
            out.append(part.to_markdown(index=False, floatfmt=",.4g"))
    return "\n".join(out) + "\n"


def main() -> int:
    """Measure everything and write one page."""
    parser = argparse.ArgumentParser(description="The exhaustive search.")
    parser.add_argument("--quick", action="store_true", help="small traces, to try the script")
    parser.add_argument("--out", type=Path, default=RESULTS / "search.md")
    args = parser.parse_args()
    recorded = ["dashtrue", "gcheap-6.12"] if args.quick else RECORDED
    traces = [load_trace(n) for n in recorded]
    if not args.quick:
        traces += [run_workload(n, k, platform=XEN_PV) for n, k in MODELLED.items()]
    modes = all_modes()
    quiet([load_trace("fork.1"), load_trace("smpmmap.16")], modes)
    lengths = ", ".join(f"{t.name} {len(t):,}" for t in traces)
    found, took, each = whole_space(traces, modes)
    print(took, flush=True)
    few = [t for t in traces if len(t) < 40_000][:6]
    by_naive = naive(found, few, float(took["wall [s]"]))
    parts: dict[str, pd.DataFrame | pd.Series | str] = {
        "Operations of the traces": lengths,
        "Every set of hooks, in every mode, on every trace": took,
        "Mode by mode": each,
        "Against naive replay": by_naive,
        "Ratio": f"Replaying each feasible design by itself would take "
        f"{by_naive.attrs['ratio']:,.0f} times as long (without native mode; at the cost of one "
        "replay above, which favours it: the sample is of the shorter traces); replaying each "
        f"class once would take {by_naive.attrs['class ratio']:,.1f} times as long.",
    }
    direct = ["direct", "direct:stores=batched", "vmi"]
    for title, table in growth(few, direct).items():
        parts[f"Growth with {title}"] = table
        print(title, table, flush=True)
    parts["Dask against threads"] = dask_against_threads(traces, [*direct, "shadow"])
    parts[f"Planning {PLANNED:.0e} on {CORES:,} cores"] = plan(found, few[:3], direct)
    parts["What the plan says"] = (
        "A design here is a class of hook sets: hook sets alike are counted once. Shards are the "
        "plans of a mode on a trace, or two million operations replayed one by one; none of those "
        "measured is longer than the longest above, so that the last core finishes at most that "
        "much after the others. Parts are written by the workers; the scheduler handles only their "
        "names."
    )
    ratio = by_naive.attrs["class ratio"]
    keep_ratios("search", {"a replay for each class / search": (ratio, ">=", 3)})
    text = page(parts)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
