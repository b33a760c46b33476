"""Speed of a replay, in one interleaved run, as ratios.

    python benchmarks/replay.py [--out FILE] [TRACE ...]

Each mode replays each trace under the hook set of Linux 6.1, shadow and nested paging without hooks
(a mode's name stands for all of a replay, ``kernel of`` for the loop of shadow mode alone); beside
it, for scale, one numpy pass over the column of operations (``np.bincount``) and, with ``--slow``,
the slow twin of direct mode in plain Python from ``tests/naive.py``. Times are CPU times of this
thread, medians of interleaved rounds: absolute figures depend on the machine, ratios hardly.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from common.measure import RESULTS, machine, markdown

from pvmmu import HookSet, Trace
from pvmmu.hooks import NO_HOOKS
from pvmmu.modes import get_mode
from pvmmu.modes.shadow import Shadow
from pvmmu.modes.shadow.engine import run_shadow
from pvmmu.modes.shadow.prepare import carriers, new_state, rows_of
from pvmmu.modes.shadow.rules import IMPLEMENTATIONS
from pvmmu.modes.shadow.watch import UNSEEN
from pvmmu.streams import stream

ROUNDS = 9
MODES = ("native", "direct", "direct:backend=2.6.27,stores=batched", "vmi")
SHADOWS = ("shadow:code=kvm-6.1", "shadow:code=xen-4.17", "shadow:code=xen-2006", "nested")


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
    for spec in SHADOWS:
        mode = get_mode(spec)
        out[spec] = lambda mode=mode: mode.run(trace, NO_HOOKS)
        if isinstance(mode, Shadow):
            out[f"kernel of {mode.code}"] = shadow_kernel(trace, mode)
    if slow:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        import naive

        out["slow twin"] = lambda: naive.NaiveXen(trace, hooks).run()
    return out


def shadow_kernel(trace: Trace, mode: Shadow) -> Callable[[], object]:
    """Return the loop of shadow mode, on a state made for it."""
    rows, rules = rows_of(trace), IMPLEMENTATIONS[mode.code]
    carrier = carriers(rows, NO_HOOKS)
    pti = np.bool_(rows.trace.platform.pti)

    def run() -> None:
        state = new_state(rows, carrier, rules, False, rules.pages)
        run_shadow(state.address, pti, UNSEEN)

    return run


def main() -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description="Speed of a replay, as ratios.")
    parser.add_argument("traces", nargs="*", default=["make", "forksnap", "kernel_build.10@6.1"])
    parser.add_argument("--out", type=Path, default=RESULTS / "replay.md", help="table")
    parser.add_argument("--slow", action="store_true", help="the slow twin of direct mode, too")
    args = parser.parse_args()
    rows = []
    for name in args.traces:
        trace = stream(name)
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
            | {f"{k} [M op/s]": len(trace) / median[k] / 1e6 for k in median if k != "bincount"}
            | {"direct / bincount": median["direct"] / median["bincount"]}
        )
    table = pd.DataFrame(rows).set_index("trace").T.map("{:,.1f}".format)
    text = f"# Speed of a replay\n\n{machine()}. CPU time of one thread, medians of "
    text += f"{ROUNDS} interleaved rounds; made by `benchmarks/replay.py`.\n\n{markdown(table)}\n"
    args.out.write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
