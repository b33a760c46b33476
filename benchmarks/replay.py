"""Speed of a replay, in one interleaved run, as ratios.

    python benchmarks/replay.py [TRACE ...]

Each mode replays each trace under the hook set of Linux 6.1; beside it, for scale, one numpy pass
over the column of operations (``np.bincount``) and, with ``--slow``, the slow twin of direct mode
in plain Python from ``tests/naive.py``. Times are CPU times of this thread, medians of interleaved
rounds: absolute figures depend on the machine, ratios hardly.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from pvmmu import HookSet, Trace, load_trace
from pvmmu.modes import get_mode

ROUNDS = 9
MODES = ("native", "direct", "direct:backend=2.6.27,stores=batched", "vmi")


def cpu_time(work: Callable[[], object]) -> float:
    """Return the CPU seconds that `work` took."""
    t0 = time.thread_time()
    work()
    return time.thread_time() - t0


def contenders(trace: Trace, slow: bool) -> dict[str, Callable[[], object]]:
    """Return what is compared on a trace."""
    hooks = HookSet.parse("linux-6.1")
    out: dict[str, Callable[[], object]] = {"bincount": lambda: np.bincount(trace["op"])}
    for spec in MODES:
        mode = get_mode(spec)
        out[spec] = lambda mode=mode: mode.run(trace, hooks)
    if slow:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        import naive

        out["slow twin"] = lambda: naive.NaiveXen(trace, hooks).run()
    return out


def main() -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description="Speed of a replay, as ratios.")
    parser.add_argument("traces", nargs="*", default=["fork.256", "make", "forksnap"])
    parser.add_argument("--slow", action="store_true", help="the slow twin of direct mode, too")
    args = parser.parse_args()
    rows = []
    for name in args.traces:
        trace = load_trace(name)
        work = contenders(trace, args.slow)
        for run in work.values():
            run()  # compile, derive what belongs to the trace
        times = {k: [] for k in work}
        for _ in range(ROUNDS):
            for k, run in work.items():
                times[k].append(cpu_time(run))
        median = {k: float(np.median(t)) for k, t in times.items()}
        rows.append(
            {"trace": name, "operations": len(trace)}
            | {f"{k} [ns/op]": t / len(trace) * 1e9 for k, t in median.items()}
            | {"direct / bincount": median["direct"] / median["bincount"]}
        )
    print(pd.DataFrame(rows).set_index("trace").T.to_string(float_format="{:,.1f}".format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
