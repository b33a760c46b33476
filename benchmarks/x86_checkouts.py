"""Two checkouts of pvmmu: walks and MMUs of the one against the other, in one interleaved run.

    python benchmarks/x86_checkouts.py OTHER [--rounds N]

OTHER is a folder with another version of the package; a ratio above 1 says that this one is slower.
Each round is a process of its own in each checkout, in turn; the least CPU time of each counts. The
last rows are this checkout with protection keys on against itself with them off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
#: Measures what both versions have; keys only where there are any.
PROGRAM = """
import json, time, numpy as np
from pvmmu.x86 import Memory, Mmu, Tables, bits, formats, make_events, nest, walk_many
from pvmmu.x86 import walk_nested_many
flags = bits.P | bits.RW | bits.US | bits.A | bits.D
rng, n = np.random.default_rng(1), 1_000_000
guest = Memory(192, seed=1)
t = Tables(guest, formats.FOUR_LEVEL)
pages = np.arange(1 << 15, dtype=np.uint64) << np.uint64(12)
t.map(0x7F0000000000 + pages, pages & np.uint64(0x7F000), 12, flags, flags & ~bits.D)
va = np.uint64(0x7F0000000000) + rng.integers(0, 1 << 27, n).astype(np.uint64)
kind = rng.integers(0, 2, n).astype(np.uint8)
one = np.where(rng.random(n) < 0.3, va | np.uint64(1 << 30), va)
few = va[: n // 5] & np.uint64(0x7F0000FFFFFF)
registers = {"": t.registers()}
if hasattr(bits, "CR4_PKE"):
    cr4 = t.registers().cr4 | bits.CR4_PKE
    registers[", keys"] = t.registers(cr4=cr4, pkru=0x55555554)
host = Memory(1024, seed=2)
second = nest(guest, host, formats.EPT_FOUR_LEVEL).second()
work = {}
for name, r in registers.items():
    work["walks" + name] = lambda r=r: walk_many(t.memory.words, r, va, kind)
    work["walks one by one" + name] = lambda r=r: walk_many(t.memory.words, r, one, kind)
    work["nested walks" + name] = lambda r=r: walk_nested_many(host.words, r, second, va, kind)
    mmu = Mmu(t.memory.words.copy(), r, "skylake")
    events, hits = make_events(kind, va, 1), make_events(kind[: few.size], few, 1)
    work["MMU, misses" + name] = lambda mmu=mmu, events=events: mmu.run(events)
    work["MMU, hits" + name] = lambda mmu=mmu, hits=hits: mmu.run(hits)
best = {}
for name, run in work.items():
    run()
    times = []
    for _ in range(5):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    best[name] = min(times)
print(json.dumps(best))
"""


def measured(folder: Path) -> dict[str, float]:
    """Seconds of each piece of work in a checkout."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    best: dict[Path, dict[str, float]] = {HERE: {}, options.other.resolve(): {}}
    for _ in range(options.rounds):
        for folder, least in best.items():
            for name, seconds in measured(folder).items():
                least[name] = min(seconds, least.get(name, seconds))
    ours, other = best[HERE], best[options.other.resolve()]
    for name, seconds in other.items():
        print(f"{name:<24} {ours[name] / seconds:.3f} of the other's {seconds * 1e3:.1f} ms")
    for name, seconds in ours.items():
        if name.endswith(", keys"):
            print(f"{name:<24} {seconds / ours[name.removesuffix(', keys')]:.3f} of without keys")


if __name__ == "__main__":
    main()
