"""Speed of a replay, in one interleaved run, as ratios.

    python benchmarks/replay.py [--quick] [TRACE ...]

Each mode replays each trace under the hook set of Linux 6.1, shadow and nested paging without hooks
(a mode's name stands for all of a replay, ``kernel of`` for the loop of shadow mode alone); beside
it, for scale, one numpy pass over the column of operations (``np.bincount``) and, for the first
trace, the slow twin of direct mode in plain Python from ``tests/twins/naive.py``.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from common.measure import (
    Work,
    interleaved,
    keep_ratios,
    markdown,
    spread,
    verdicts,
    write_results,
)

from pvmmu import HookSet, Trace
from pvmmu.guest.load_trace import load_trace
from pvmmu.hooks import NO_HOOKS
from pvmmu.modes import get_mode
from pvmmu.modes.shadow import Shadow
from pvmmu.modes.shadow.engine import run_shadow
from pvmmu.modes.shadow.prepare import new_state, rows_of
from pvmmu.modes.shadow.rules import IMPLEMENTATIONS
from pvmmu.modes.shadow.substitutes import UNSEEN

MODES = ("native", "direct", "direct:backend=2.6.27,stores=batched", "vmi")
SHADOWS = ("shadow:code=kvm-6.1", "shadow:code=xen-4.17", "shadow:code=xen-2006", "nested")


def contenders(trace: Trace) -> dict[str, Work]:
    """Return what is compared on a trace."""
    hooks = HookSet.parse("linux-6.1")
    out: dict[str, Work] = {"bincount": lambda: np.bincount(trace["op"])}
    for spec in MODES:
        mode = get_mode(spec)
        out[spec] = lambda mode=mode: mode.run(trace, hooks)
    for spec in SHADOWS:
        mode = get_mode(spec)
        out[spec] = lambda mode=mode: mode.run(trace, NO_HOOKS)
        if isinstance(mode, Shadow):
            out[f"kernel of {mode.code}"] = shadow_kernel(trace, mode)
    return out


def against_the_twin(trace: Trace) -> float:
    """Return how many times as long the slow twin of direct mode takes; it counts the same."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "twins"))
    import naive

    hooks, mode = HookSet.parse("linux-6.1"), get_mode("direct")
    low = mode.run(trace, hooks).low
    twin = naive.NaiveXen(trace, hooks).run()
    assert all(low[e] == n for e, n in twin.items()), "the counts differ"
    work = {"ours": partial(mode.run, trace, hooks)}
    work["twin"] = lambda: naive.NaiveXen(trace, hooks).run()
    median = interleaved(work, 3).median()
    return float(median["twin"] / median["ours"])


def shadow_kernel(trace: Trace, mode: Shadow) -> Work:
    """Return the loop of shadow mode, on a state made for it."""
    rows, rules = rows_of(trace), IMPLEMENTATIONS[mode.code]
    mechanism = mode.mechanism_of_rows(trace, NO_HOOKS)
    pti = np.bool_(rows.trace.platform.pti)

    def run() -> None:
        state = new_state(rows, mechanism, rules, False, rules.pages)
        run_shadow(state.address, pti, UNSEEN)

    return run


def main() -> int:
    """Measure and write ``results/replay.md``."""
    parser = argparse.ArgumentParser(description="Speed of a replay, as ratios.")
    parser.add_argument("traces", nargs="*", default=["make", "forksnap", "kernel_build.10@6.1"])
    parser.add_argument("--quick", action="store_true", help="one trace, few rounds")
    args = parser.parse_args()
    if args.quick:
        args.traces = ["make"]
    columns, ratios = [], {}
    for i, name in enumerate(args.traces):
        trace = load_trace(name)
        times = interleaved(contenders(trace), 3 if args.quick else 9)
        median = times.median()
        ratios[f"{name}: direct / bincount"] = (median["direct"] / median["bincount"], "<=", 12)
        if i == 0:
            ratios[f"{name}: slow twin / direct"] = (against_the_twin(trace), ">=", 50)
        cells = {k: spread(times[k], len(trace)) for k in times}
        columns.append(pd.Series({"operations": f"{len(trace):,}", **cells}, name=name))
    keep_ratios("replay", ratios)
    parts = {
        "Ratios": markdown(verdicts(ratios)),
        "ns for an operation": markdown(pd.DataFrame(columns).T),
    }
    write_results("replay", "Speed of a replay", parts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
