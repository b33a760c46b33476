"""Long runs: memory stays flat over accesses and operations (10^9 and 10^8 unless told otherwise).

    python benchmarks/soak.py [--accesses N] [--operations N] [--out FILE]

The accesses are lackey text, written into a pipe by a second process: those of the real trace of
cc1, again and again, each time at other addresses. They go through the reader, a two-level TLB and
a reach curve. The operations are a forking, mapping and exiting guest, whose stream is replayed in
direct and shadow mode. Resident memory is that of the kernel's own account (VmRSS), at 20 moments.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from common.measure import RESULTS, machine, memory_mib

from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.program import load_program
from pvmmu.guest.readers.memory.memory_trace import load_memory_trace
from pvmmu.guest.readers.memory.read import read_accesses
from pvmmu.hooks import HookSet, interfaces
from pvmmu.replay import replay
from pvmmu.x86 import Tlb, make_geometry

SAMPLES = 20
#: Moments at the start that are not held against the rest: compilation, first buffers.
WARM = 2
LIMIT_MIB, SPREAD = 1024.0, 0.05
_BLOCK = 200_000


def feed(path: str, total: int) -> None:
    """Write lackey text: blocks of a real trace, displaced by another distance each time."""
    trace = load_memory_trace("cc1").pages(fetches=False, limit=_BLOCK)
    pages = (trace.words & np.uint64((1 << 36) - 1)).astype(np.uint64) << np.uint64(12)
    rng = np.random.default_rng(1)
    with open(path, "w") as f:
        while total > 0:
            base = int(rng.integers(0, 1 << 30)) << 12
            text = "\n".join(f" L {(int(va) + base) & (1 << 46) - 1:x},8" for va in pages[:total])
            for _ in range(25):  # as a program dwells where it is
                if total > 0:
                    f.write(text + "\n")
                total -= len(pages)


def accesses(total: int) -> Iterator[int]:
    """Run accesses through reader and TLB; yield how many are done."""
    tlb = Tlb(make_geometry((16, 4), (128, 12)))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "pipe.lackey")
        os.mkfifo(path)
        writer = multiprocessing.get_context("spawn").Process(target=feed, args=(path, total))
        writer.start()
        done = 0
        for part in read_accesses(path, "lackey", progress=False):
            tlb.run(part.pages())
            done += len(part)
            yield done
        writer.join()


def operations(total: int) -> Iterator[int]:
    """Make streams of a guest and replay each; yield how many operations are done."""
    hooks, done = interfaces()["linux-6.1"].hooks, 0
    while done < total:
        guest = Guest("6.1", frames=1 << 20)
        parent = guest.spawn(load_program("wl"))
        parent.write(parent.mmap(50_000, 0x10000000000), 50_000)
        guest.begin()
        for _ in range(4):
            child = parent.fork()
            child.munmap(0x10000000000, 50_000)
            child.exit()
        trace = guest.trace()
        replay(trace, hooks, "direct")
        replay(trace, HookSet(), "shadow")
        done += len(trace)
        del guest, parent, child, trace
        gc.collect()  # few objects that hold much: the collector would come late
        yield done


def watched(run: Callable[[int], Iterator[int]], total: int) -> tuple[list[float], int, float]:
    """Return resident memory at moments, how many were done, and seconds."""
    out: list[float] = []
    start, done = time.monotonic(), 0
    for done in run(total):
        if done * SAMPLES >= (len(out) + 1) * total:
            out.append(memory_mib())
            print(f"{run.__name__}: {done:,}, {out[-1]:.0f} MiB", flush=True)
    return out, done, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accesses", type=int, default=10**9)
    parser.add_argument("--operations", type=int, default=10**8)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.md")
    args = parser.parse_args()
    lines = [
        f"# Long runs\n\n{__doc__.splitlines()[0]} Made by `benchmarks/soak.py`, "
        f"{time.strftime('%Y-%m-%d')}.\n\n{machine()}\n",
        "| what | how many | seconds | MiB, least | MiB, most | growth | limit |",
        "|---|---|---|---|---|---|---|",
    ]
    good = True
    for run, total in ((accesses, args.accesses), (operations, args.operations)):
        mib, done, seconds = watched(run, total)
        settled = np.array(mib[WARM:] or mib)
        growth = settled.max() / settled[0] - 1
        good &= bool(growth <= SPREAD) and (run is not accesses or settled.max() <= LIMIT_MIB)
        limit = f"{SPREAD:.0%}" + (f", {LIMIT_MIB:.0f} MiB" if run is accesses else "")
        lines.append(
            f"| {run.__name__} | {done:,} | {seconds:,.0f} | {settled.min():.0f} "
            f"| {settled.max():.0f} | {growth:.1%} | {limit} |"
        )
    args.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
