"""How CPU time and memory grow with the size of the work, from walks to Shapley values.

    python benchmarks/growth.py [--quick]

Sizes double (or so), rounds are interleaved; the exponent is that of time ~ size^e, fitted to the
medians by least squares on logarithms. Memory is what the largest size adds to what the process had
at its peak: Linux's high-water mark of resident memory, reset before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from common.measure import Work, keep_ratios, markdown, memory_mib, verdicts, write_results
from tlb import accesses
from walks import space, under_ept

from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.program import load_program
from pvmmu.guest.workloads import XEN_PV, run_workload
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes import get_mode
from pvmmu.modes.partition import Space
from pvmmu.search import search
from pvmmu.search.shapley import Orders, contributions
from pvmmu.x86 import Pages, Reach, Tlb, make_geometry, walk_many, walk_nested_many

PAGES = 1 << 14
SEED = 20240607


@dataclass
class Curve:
    """Something that is measured at several sizes.

    `seconds` runs it once at a size and returns CPU seconds; the fitted exponent may be up to
    `limit`.
    """

    unit: str
    sizes: list[int]
    seconds: Callable[[int], float]
    limit: float


def cpu(work: Work, clock: Callable[[], float] = time.thread_time) -> float:
    """Return the CPU seconds of some work."""
    start = clock()
    work()
    return clock() - start


def doubling(first: int, count: int) -> list[int]:
    """Return sizes, each twice the one before."""
    return [first << i for i in range(count)]


def hardware(count: int) -> dict[str, Curve]:
    """Walks and TLBs, by accesses."""
    s = space(PAGES)
    host, second = under_ept(s, PAGES)
    words, registers, ept = s.tables.memory.words, s.tables.registers(), second.second()
    walk_nested_many(host.words, registers, ept, s.va, apply=True)  # sets accessed flags
    va = np.tile(s.va, 4)
    p = accesses("zipf")
    tlb = Tlb(make_geometry((16, 4), (128, 12)))

    def part(n: int) -> Pages:
        return Pages(p.words[:n].copy(), p.fetch, p.small)

    sizes = doubling(125_000, count)
    return {
        "walks": Curve("accesses", sizes, lambda n: cpu(
            lambda: walk_many(words, registers, va[:n])), 1.1),
        "nested walks": Curve("accesses", sizes, lambda n: cpu(
            lambda: walk_nested_many(host.words, registers, ept, va[:n])), 1.1),
        "TLB": Curve("accesses", sizes, lambda n: cpu(lambda: tlb.run(part(n))), 1.1),
        "reach, all geometries and sizes": Curve("accesses", sizes, lambda n: cpu(
            lambda: Reach().add(part(n))), 1.2),
    }  # fmt: skip


def fork_seconds(pages: int) -> float:
    """Return the CPU seconds of a fork of so many pages."""
    guest = Guest("6.1", frames=1 << 22)
    p = guest.spawn(load_program("wl"))
    p.write(p.mmap(pages, 0x10000000000), pages)
    guest.begin()
    return cpu(p.fork)


def guests(count: int) -> dict[str, Curve]:
    """The mm model by pages and by operations; replays by operations."""
    files = doubling(2, count)
    traces = [run_workload("kernel_build", n, platform=XEN_PV, warm=0) for n in files]
    by_length = {len(t): t for t in traces}
    by_files = dict(zip(by_length, files, strict=True))
    lengths, hooks = list(by_length), HookSet.parse("linux-6.1")

    def build(operations: int) -> float:
        return cpu(lambda: run_workload("kernel_build", by_files[operations], warm=0))

    out = {
        "mm model, a fork": Curve("pages", doubling(20_000, count), fork_seconds, 1.1),
        "mm model, kernel_build": Curve("operations", lengths, build, 1.1),
    }
    for spec in ("direct", "shadow", "nested"):
        mode = get_mode(spec)

        def replayed(n: int, mode=mode) -> float:
            fresh = by_length[n].select(slice(None))  # remembers nothing of earlier replays
            return cpu(lambda: mode.run(fresh, hooks))

        out[f"replay, {spec}"] = Curve("operations", lengths, replayed, 1.15)
    return out


def designs(count: int) -> dict[str, Curve]:
    """Searches by hook sets and by operations; Shapley values by hook sets."""
    names = list(catalogue())
    order = np.random.default_rng(SEED).permutation(len(names))
    needed = get_mode("direct").classes(run_workload("cow", 256, platform=XEN_PV), Space.all())
    # Those that direct mode may do without come first: the others split nothing.
    names = sorted((names[i] for i in order), key=lambda n: n in set(needed.required))
    cow = {n: run_workload("cow", n, platform=XEN_PV) for n in doubling(1024, count)}
    by_length = {len(t): t for t in cow.values()}

    def searched(trace, space: Space) -> float:
        with ThreadPoolExecutor(1) as pool:
            work = lambda: search(  # noqa: E731
                [trace.select(slice(None))], ["direct", "vmi"], space, executor=pool, progress=False
            )
            return cpu(work, time.process_time)

    def by_sets(sets: int) -> float:
        free = HookSet.of(*names[: sets.bit_length() - 1])
        return searched(next(iter(cow.values())), Space(free, HookSet.every() - free))

    rng = np.random.default_rng(SEED)
    values = {1 << n: rng.random(1 << n) for n in range(10, 10 + 2 * count, 2)}

    def shapley(sets: int) -> float:
        works = np.ones(sets, np.bool_)
        return cpu(lambda: contributions(values[sets], Orders.of(works)))

    return {
        "search, by hook sets": Curve("hook sets", list(values), by_sets, 0.5),
        "search, by operations": Curve(
            "operations", list(by_length), lambda n: searched(by_length[n], Space.all()), 1.1
        ),
        "Shapley values": Curve("hook sets", list(values), shapley, 1.2),
    }  # fmt: skip


def extra_memory(work: Work) -> float:
    """Return MiB that some work adds at its peak; NaN where the mark cannot be reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return float("nan")
    before = memory_mib()
    work()
    return memory_mib("VmHWM") - before


def measured(curve: Curve, rounds: int) -> tuple[pd.Series, float, float]:
    """Return median seconds by size, the fitted exponent, and MiB that the largest size adds."""
    for n in curve.sizes[:2]:
        curve.seconds(n)  # compile
    memory = extra_memory(lambda: curve.seconds(curve.sizes[-1]))
    rows = [{n: curve.seconds(n) for n in curve.sizes} for _ in range(rounds)]
    median = pd.DataFrame(rows).median()
    exponent = np.polyfit(np.log(curve.sizes), np.log(median), 1)[0]
    return median, float(exponent), memory


def main() -> int:
    """Measure and write ``results/growth.md``."""
    parser = argparse.ArgumentParser(description="How CPU time and memory grow.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    args = parser.parse_args()
    count, rounds = (4, 3) if args.quick else (6, 5)
    curves = hardware(count) | guests(count) | designs(count)
    rows, ratios = [], {}
    for what, curve in curves.items():
        median, exponent, memory = measured(curve, rounds)
        ratios[f"{what}: exponent"] = (exponent, "<=", curve.limit)
        times = " ".join(f"{s * 1000:.3g}" for s in median)
        sizes = f"{curve.sizes[0]:,} to {curve.sizes[-1]:,} {curve.unit}"
        rows.append((what, sizes, times, f"{exponent:.2f}", f"{memory:.0f}"))
        print(rows[-1], flush=True)
    keep_ratios("growth", ratios)
    names = [
        "what",
        "sizes",
        "CPU time of each size [ms]",
        "exponent",
        "memory at the largest [MiB]",
    ]
    table = pd.DataFrame(rows, columns=names).set_index("what")
    parts = {"Exponents": markdown(verdicts(ratios)), "Curves": markdown(table)}
    write_results("growth", "Growth of time and memory", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
