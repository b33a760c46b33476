"""Compare what two checkouts of the package count, and name every design that differs.

    python tests/quality/compare_checkouts.py OLD NEW [--traces fork.16,make] [--sets 6]

Each checkout replays the recorded traces in every mode under the interfaces of the past and under
hook sets drawn at random (the same for both), in a process of its own. Compared are the counts, the
mechanism and the log of each row, the reason of a design that cannot run, the hooks that matter,
and the classes of all hook sets. Checkouts may have other module paths: see `_IMPORTS`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: Where the parts stood before the twelve rooms, and where they stand since.
_IMPORTS = """
try:
    from pvmmu.guest.load_trace import load_trace, trace_names
except ImportError:
    from pvmmu.library import load_trace, trace_names
try:
    from pvmmu.modes.known_modes import mode_variants
except ImportError:
    from pvmmu.variants import mode_variants
try:
    from pvmmu.modes.outcome import Infeasible
    from pvmmu.modes.partition import Space
except ImportError:
    from pvmmu.modes.base import Infeasible
    from pvmmu.modes.classes import Space
"""
_DUMP = """
import hashlib, json, random, sys
from pvmmu.hooks import HookSet, catalogue, interfaces
from pvmmu.modes import get_mode

def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]

def outcome(mode, trace, hooks):
    found = mode.run(trace, hooks, log=True)
    if isinstance(found, Infeasible):
        return {"reason": found.reason, "row": found.row}
    names = [found.names[int(m)] for m in found.mechanism]
    return {
        "low": digest(found.low.astype("i8")), "high": digest(found.high.astype("i8")),
        "mechanism": hashlib.sha256("|".join(names).encode()).hexdigest()[:16],
        "log": digest(found.log.astype("i8")),
    }

def classes(mode, trace):
    found = list(mode.classes(trace, Space.all()))
    works = sorted((c.hooks.mask, c.size) for c in found if not c.infeasible)
    return {
        "classes": len(works), "masks": hashlib.sha256(repr(works).encode()).hexdigest()[:16],
        "cannot run": sum(c.size for c in found if c.infeasible),
    }

wanted, sets = json.loads(sys.argv[1])
every = list(catalogue())
for name in wanted or trace_names():
    trace, r = load_trace(name), random.Random(name)
    drawn = [[h for h in every if r.random() < p] for p in ([0.5, 0.9, 0.97] * sets)[:sets]]
    designs = {n: i.hooks for n, i in interfaces().items()}
    designs |= {f"random {i}": HookSet.of(*names) for i, names in enumerate(drawn)}
    for spec in mode_variants():
        mode = get_mode(spec)
        levers = getattr(mode, "relevant_hooks", None) or mode.levers
        about = classes(mode, trace) | {"relevant": sorted(levers(trace).names)}
        print(json.dumps([name, spec, "", about]))
        for label, hooks in designs.items():
            print(json.dumps([name, spec, label, outcome(mode, trace, hooks)]))
"""


def dump(checkout: Path, traces: list[str], sets: int) -> dict[tuple[str, str, str], Any]:
    """Return what a checkout counts, by trace, mode and design."""
    env = os.environ | {"PYTHONPATH": str(checkout)}
    env.pop("PVMMU_DATA", None)
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS + _DUMP, json.dumps([traces, sets])], cwd=checkout,
        env=env, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    lines = map(json.loads, done.stdout.splitlines())
    return {(trace, mode, design): found for trace, mode, design, found in lines}


def main() -> int:
    """Compare; the exit status is 1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--traces", default="", help="names, with commas between; all by default")
    parser.add_argument("--sets", type=int, default=6, help="random hook sets for each trace")
    args = parser.parse_args()
    traces = [name for name in args.traces.split(",") if name]
    old, new = (dump(p.resolve(), traces, args.sets) for p in (args.old, args.new))
    differ = 0
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key, {}), new.get(key, {})
        fields = [f for f in sorted(a.keys() | b.keys()) if a.get(f) != b.get(f)]
        if fields:
            differ += 1
            changes = "; ".join(f"{f}: {a.get(f)} -> {b.get(f)}" for f in fields)
            print(f"{' '.join(key)}: {changes}")
    print(f"{len(old.keys() | new.keys())} compared, {differ} differ")
    return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
