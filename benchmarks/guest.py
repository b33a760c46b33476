"""The guest model: CPU time of a fork, its growth, a kernel-build-like mix.

    python benchmarks/guest.py [--quick] [--out FILE]

Thread CPU time, the least of three runs each, after compilation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from common.measure import RESULTS, keep_ratios

from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.program import load_program
from pvmmu.guest.workloads import run_workload


def fork_seconds(pages: int) -> tuple[float, int]:
    """Return CPU seconds and operations of a fork of so many pages."""
    guest = Guest("6.1", frames=1 << 22)
    p = guest.spawn(load_program("wl"))
    p.write(p.mmap(pages, 0x10000000000), pages)
    guest.begin()
    start = time.thread_time()
    p.fork()
    seconds = time.thread_time() - start
    return seconds, len(guest.trace())


def build_seconds(files: int) -> tuple[float, int]:
    """Return CPU seconds and operations of a kernel-build-like mix."""
    start = time.thread_time()
    trace = run_workload("kernel_build", files, warm=0)
    return time.thread_time() - start, len(trace)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--out", type=Path, default=RESULTS / "guest.md", help="table")
    args = parser.parse_args()
    runs = 1 if args.quick else 3
    sizes = [1_000, 10_000, 100_000] + ([] if args.quick else [300_000, 1_000_000])
    lines = [
        f"# The guest model\n\n{__doc__.splitlines()[0]} Made by `benchmarks/guest.py`.\n",
        "| what | CPU seconds | operations | operations per second |",
        "|---|---|---|---|",
    ]
    fork_seconds(100)
    times = []
    for pages in sizes:
        seconds, ops = min(fork_seconds(pages) for _ in range(runs))
        times.append(seconds)
        lines.append(
            f"| fork of {pages:,} pages | {seconds:.4f} | {ops:,} | {ops / seconds:,.0f} |"
        )
    files = 5 if args.quick else 50
    seconds, ops = min(build_seconds(files) for _ in range(runs))
    lines.append(
        f"| kernel build, {files} files | {seconds:.3f} | {ops:,} | {ops / seconds:,.0f} |"
    )
    big = slice(1, None)
    slope = np.polyfit(np.log(sizes[big]), np.log(times[big]), 1)[0]
    lines.append(f"\nGrowth of a fork above {sizes[1]:,} pages: time ~ pages^{slope:.2f}.")
    keep_ratios("guest", {"growth of a fork, exponent": (slope, "<=", 1.1)})
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
