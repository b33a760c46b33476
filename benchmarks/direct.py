"""Direct mode against straightforward C: the same rows and mechanisms, the same counts, CPU time.

python benchmarks/direct.py [--quick] [--out FILE]
"""

from __future__ import annotations

import argparse
import ctypes
from pathlib import Path

import numpy as np
from common.measure import RESULTS, compiled, interleaved, keep_ratios, pointer, spread

from pvmmu import HookSet, Trace, run_workload
from pvmmu.guest.trace import Op
from pvmmu.guest.workloads import XEN_PV
from pvmmu.modes import get_mode
from pvmmu.modes.direct.encode_trace import in_range_call, rows_of, walks_of
from pvmmu.modes.direct.kernel import run_direct
from pvmmu.modes.direct.multicall import new_machine
from pvmmu.modes.events import N_EVENTS
from pvmmu.modes.outcome import counts_of_rows


def kernels(trace: Trace) -> dict:
    """Return the two contenders on a trace; they leave their counts in ``results``."""
    mode, hooks = get_mode("direct"), HookSet.parse("linux-6.1")
    rows, walks = rows_of(trace), walks_of(trace)
    mechanism, in_range = mode.mechanism_of_rows(trace, hooks), in_range_call(trace, hooks)
    numbers, limits, _ = mode.machine(trace, hooks)
    [times] = counts_of_rows(trace)
    assert not in_range.any() and limits[2]
    c, results = compiled("direct.c"), {}
    assert rows.itemsize == c.row_size(), "the rows of direct.c are others"
    start, level = walks.start.astype(np.int64), walks.level.astype(np.uint8)

    def ours() -> None:
        machine = new_machine(trace.platform.vcpus, limits)
        run_direct(rows, mechanism, times, in_range, walks, numbers, machine)
        results["ours"] = machine.counts[:N_EVENTS]

    def reference() -> None:
        counts = np.zeros(N_EVENTS, np.int64)
        i64 = ctypes.c_int64
        c.run(
            pointer(rows), pointer(mechanism), pointer(times), i64(len(rows)), pointer(start),
            pointer(level), i64(trace.platform.vcpus), i64(limits[0]), i64(limits[1]),
            int(Op.LOAD_CR3), int(Op.FLUSH_ONE), pointer(counts),
        )  # fmt: skip
        results["C"] = counts

    def whole() -> None:
        mode.run(trace, hooks)

    return {"kernel": ours, "C": reference, "replay, all of it": whole, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small traces, few rounds")
    parser.add_argument("--out", type=Path, default=RESULTS / "direct.md", help="table")
    args = parser.parse_args()
    small, large = {"fork": 1000, "kernel_build": 2}, {"fork": 50_000, "kernel_build": 30}
    sizes = small if args.quick else large
    columns = ("trace", "operations", "kernel", "C", "ratio", "all of a replay", "M operations/s")
    lines = [
        "# Direct mode against C\n",
        f"{__doc__.splitlines()[0]} Made by `benchmarks/direct.py`.",
        "\nNanoseconds for each operation: least / median / most of the rounds; ratio of medians\n",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    ratios: dict[str, tuple[float, str, float]] = {}
    for name, n in sizes.items():
        trace = run_workload(name, n, "6.1", XEN_PV, warm=0)
        work = kernels(trace)
        results = work.pop("results")
        seconds = interleaved(work, 3 if args.quick else 15)
        assert (results["ours"] == results["C"]).all(), "the counts differ"
        ratio = seconds["kernel"].median() / seconds["C"].median()
        rate = len(trace) / seconds["replay, all of it"].median() / 1e6
        ratios[f"{name}: pvmmu / C"] = (ratio, "<=", 1.3)
        cells = [spread(seconds[k], len(trace)) for k in ("kernel", "C")]
        all_of_it = spread(seconds["replay, all of it"], len(trace))
        lines.append(
            f"| {name}.{n} | {len(trace):,} | {cells[0]} | {cells[1]} | {ratio:.2f} | {all_of_it} "
            f"| {rate:.0f} |"
        )
    keep_ratios("direct", ratios)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
