"""TLBs and reach against C, pycachesim, libcachesim and dictionaries, as ratios.

    python benchmarks/tlb.py [--rounds N] [TRACE ...]

Ours are the calls that users make: `Tlb.run`, with a PCID and global pages, and `Reach.add`. The C
versions are in ``common/reference.c``; the best of them on a trace is what counts. pycachesim and
libcachesim run if they are installed (``make peers``). libcachesim has no sets: its answers for
fully associative TLBs of two sizes are compared with a reach, which has them for every size.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from collections import OrderedDict

import numpy as np
import pandas as pd
from common.measure import (
    Work,
    compiled,
    interleaved,
    keep_ratios,
    markdown,
    pointer,
    spread,
    verdicts,
    write_results,
)

from pvmmu.guest.readers.memory.memory_trace import load_memory_trace, memory_trace_names
from pvmmu.x86 import Pages, Reach, Tlb, make_geometry, pages

ACCESSES, FEW = 4_000_000, 500_000
L1, L2 = (16, 4), (128, 12)
GRID = [(1 << s, w) for s in range(11) for w in range(1, 17)]
#: Entries of fully associative TLBs, for libcachesim: as many as levels 1 and 2 have.
FULL = (L1[0] * L1[1], L2[0] * L2[1])
#: What libcachesim reads fastest, its format oracleGeneral.
RECORD = np.dtype([("time", "<u4"), ("page", "<u8"), ("size", "<u4"), ("next", "<i8")])
SEED = 20240607
SYNTHETIC = ("zipf", "uniform")


def accesses(name: str) -> Pages:
    """Data accesses of a real trace, or synthetic ones; one page in eight is global."""
    if name in memory_trace_names():
        va = load_memory_trace(name).pages(fetches=False, limit=ACCESSES).words << np.uint64(12)
    else:
        rng = np.random.default_rng(SEED)
        weight = 1 / np.arange(1, 32769)
        weight /= weight.sum()
        n = ACCESSES
        numbers = rng.integers(0, 4096, n) if name == "uniform" else rng.choice(32768, n, p=weight)
        va = numbers.astype(np.uint64) << np.uint64(12)
    return pages(va, global_=(va >> np.uint64(12)) % np.uint64(8) == 0)


def running(words: np.ndarray) -> Work:
    """Our TLB, in which some PCID runs."""
    tlb = Tlb(make_geometry(L1, L2))
    tlb.load_cr3(pcid=5)
    p = Pages(words, np.zeros(1, np.uint8), True)

    def run() -> object:
        tlb.clear()
        return tlb.run(p)

    return run


def in_c(lib: ctypes.CDLL, words: np.ndarray) -> dict[str, Work]:
    """All C versions."""
    names = ["search", "search_skip", "carry", "carry_skip"]
    if lib.has_vectors():
        names += ["vector", "vector_skip", "first_vector", "hybrid", "hybrid_skip"]
    room = np.empty((16 * 4 + 128 * 16) * 8 + 64, np.uint8)
    room = room[-room.ctypes.data % 64 :][: (16 * 4 + 128 * 16) * 8].view(np.uint64)
    l1, l2, out = room[:64], room[64:], np.zeros(2, np.uint64)

    def work(name: str) -> Work:
        function = getattr(lib, f"tlb_{name}")

        def run() -> object:
            room[:] = np.uint64(2**64 - 1)
            function(pointer(words), ctypes.c_size_t(words.size), *map(pointer, (l1, l2, out)))
            return tuple(out.tolist())

        return run

    return {f"C {name}": work(name) for name in names}


def dictionaries(words: np.ndarray) -> Work:
    """OrderedDict for each set."""
    numbers = words.tolist()

    def run() -> tuple[int, int]:
        first = [OrderedDict() for _ in range(L1[0])]
        second = [OrderedDict() for _ in range(L2[0])]
        m1 = m2 = 0
        for page in numbers:
            s = first[page & 15]
            if page in s:
                s.move_to_end(page)
                continue
            m1 += 1
            s[page] = None
            if len(s) > L1[1]:
                s.popitem(False)
            s = second[page & 127]
            if page in s:
                s.move_to_end(page)
                continue
            m2 += 1
            s[page] = None
            if len(s) > L2[1]:
                s.popitem(False)
        return m1, m2

    return run


def pycachesim(words: np.ndarray) -> Work | None:
    """Its batch interface; None if it is not installed."""
    try:
        import cachesim
    except ImportError:
        return None
    numbers = (words & np.uint64((1 << 40) - 1)).tolist()

    def run() -> tuple[int, int]:
        memory = cachesim.MainMemory()
        l2 = cachesim.Cache("L2", *L2, 1, "LRU")
        l1 = cachesim.Cache("L1", *L1, 1, "LRU", load_from=l2, store_to=l2)
        memory.load_to(l2)
        memory.store_from(l2)
        peer = cachesim.CacheSimulator(l1, memory)
        peer.load(numbers)
        misses = {s["name"]: s["MISS_count"] for s in peer.stats()}
        return misses["L1"], misses["L2"]

    return run


def libcachesim(words: np.ndarray) -> Work | None:
    """Its LRU caches of both sizes, from a file, with small hash tables; None if not installed."""
    try:
        from libcachesim import LRU, TraceReader, TraceType
    except ImportError:
        return None
    records = np.zeros(words.size, RECORD)
    records["page"] = (words & np.uint64((1 << 40) - 1)) + np.uint64(1)
    records["size"], records["next"] = 1, -1
    with tempfile.NamedTemporaryFile(suffix=".oracleGeneral") as file:
        records.tofile(file)
        file.flush()
        reader = TraceReader(file.name, TraceType.ORACLE_GENERAL_TRACE)  # maps it into memory

    def run() -> list[int]:
        misses = []
        for entries in FULL:
            reader.reset()
            share, _ = LRU(entries, hashpower=12).process_trace(reader)
            misses.append(round(share * words.size))
        return misses

    return run


def two_levels(lib: ctypes.CDLL, name: str, rounds: int) -> tuple[pd.Series, dict]:
    """Compare the two-level TLB on a trace."""
    words = accesses(name).words
    ours = running(words)
    work = {"pvmmu": ours, **in_c(lib, words)}
    misses = {k: run() for k, run in work.items()}
    counts = tuple(misses.pop("pvmmu").misses.tolist())
    assert set(misses.values()) == {counts}, (name, counts, misses)
    times = interleaved(work, rounds)

    few = words[:FEW].copy()
    peers = {"pvmmu (short)": running(few), "OrderedDict": dictionaries(few)}
    peer = pycachesim(few)
    if peer:
        peers["pycachesim"] = peer
    counts_few = tuple(peers["pvmmu (short)"]().misses.tolist())
    for k in set(peers) - {"pvmmu (short)"}:
        assert peers[k]() == counts_few, (name, k)
    slow = interleaved(peers, max(3, rounds // 3))
    column = pd.Series(
        {"misses": f"{counts[0]} / {counts[1]}"}
        | {k: spread(times[k], words.size) for k in times}
        | {k: spread(slow[k], few.size) for k in slow},
        name=name,
    )
    median = times.median()
    best = median.drop("pvmmu").min()
    short = slow.median()
    ratios = {f"{name}: pvmmu / best C": (median["pvmmu"] / best, "<=", 1.0)}
    if peer:
        ratio = short["pycachesim"] / short["pvmmu (short)"]
        ratios[f"{name}: pycachesim / pvmmu"] = (ratio, ">=", 6)
    ratio = short["OrderedDict"] / short["pvmmu (short)"]
    ratios[f"{name}: OrderedDict / pvmmu"] = (ratio, ">=", 40)
    return column, ratios


def one_pass(lib: ctypes.CDLL, name: str, rounds: int, few: bool) -> tuple[pd.Series, dict]:
    """Compare all geometries at once with a run of C for each."""
    p = accesses(name)
    p = Pages(p.words[: ACCESSES // (4 if few else 2)].copy(), p.fetch, p.small)
    lib.tlb_one.restype = ctypes.c_uint64

    def separate() -> list[int]:
        misses = []
        for sets, ways in GRID:
            tags = np.full(sets * ways, 2**64 - 1, np.uint64)
            arguments = ctypes.c_size_t(len(p)), pointer(tags), ctypes.c_uint64(sets), ways
            misses.append(lib.tlb_one(pointer(p.words), *arguments))
        return misses

    def once() -> Reach:
        return Reach(sizes=False).add(p)

    reach = once()
    assert separate() == [reach.misses(*g) for g in GRID], name
    all_sizes = lambda: Reach().add(p)  # noqa: E731
    work = {"one pass": once, "and all sizes": all_sizes, "176 runs of C": separate}
    peer = libcachesim(p.words)
    if peer:
        misses = all_sizes().fully_associative()
        assert peer() == [misses[min(size, len(misses) - 1)] for size in FULL], name
        work["libcachesim"] = peer
    times = interleaved(work, rounds)
    column = pd.Series({k: spread(times[k], len(p)) for k in times}, name=name)
    median = times.median()
    ratios = {}
    ratio = median["176 runs of C"] / median["one pass"]
    ratios[f"{name}: 176 runs of C / one pass"] = (ratio, ">=", 17)
    if peer:
        ratio = median["libcachesim"] / median["and all sizes"]
        ratios[f"{name}: libcachesim, 2 sizes / one pass, all sizes"] = (ratio, ">=", 1)
    return column, ratios


def main() -> int:
    """Measure and write ``results/tlb.md``."""
    parser = argparse.ArgumentParser(description="TLBs against C and peers, as ratios.")
    names = [*memory_trace_names(), *SYNTHETIC]
    parser.add_argument("traces", nargs="*", default=names, help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--quick", action="store_true", help="one real and one synthetic trace")
    args = parser.parse_args()
    if args.quick:
        args.traces, args.rounds = ["sort", "zipf"], 3
    lib = compiled("reference.c")
    columns, passes, ratios = [], [], {}
    for name in args.traces:
        column, more = two_levels(lib, name, args.rounds)
        columns.append(column)
        ratios |= more
        column, more = one_pass(lib, name, max(3, args.rounds // 3), args.quick)
        passes.append(column)
        ratios |= more
    keep_ratios("tlb", ratios)
    geometry = "level 1: 16 sets of 4 ways, level 2: 128 sets of 12 ways"
    write_results(
        "tlb",
        "TLBs and reach against C and peers",
        {
            "Ratios": markdown(verdicts(ratios)),
            f"Two-level TLB, ns for an access ({geometry})": markdown(pd.DataFrame(columns).T),
            "All 176 geometries of 1 to 1024 sets and 1 to 16 ways, ns for an access "
            f"(libcachesim: fully associative, {FULL[0]} and {FULL[1]} entries)": markdown(
                pd.DataFrame(passes).T
            ),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
