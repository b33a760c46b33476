"""Page walks against C, volatility3 and plain Python, as ratios.

    python benchmarks/walks.py [--rounds N]

Ours are the calls that users make, `walk_many` and `walk_nested_many`, with everything that they
report; the C versions (``common/reference.c``) know one format, check presence only and return
addresses, and so do those in Python. volatility3's layer for Intel's 4-level paging runs if it is
installed (``make peers``); it has no nested walks. Accessed and dirty flags are set before, as they
are in a machine that runs for a while.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from dataclasses import dataclass

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

from pvmmu.x86 import Memory, Tables, bits, formats, walk_many, walk_nested_many

ACCESSES, FEW = 1_000_000, 20_000
BASE = 0x7F00_0000_0000
SEED = 20240607
#: Name of an address space -> its pages.
SPACES = {"64 MiB": 1 << 14, "1 GiB": 1 << 18, "8 GiB": 1 << 21}
#: The one in which slow walkers take part.
SMALL = "64 MiB"
FLAGS = bits.P | bits.RW | bits.US | bits.A | bits.D


@dataclass
class Space:
    """Page tables in a memory of their own, and random accesses to the pages that they map."""

    tables: Tables
    va: np.ndarray
    write: np.ndarray


def space(page_count: int) -> Space:
    """So many pages in a row, mapped in random order to the frames behind the tables."""
    memory = Memory(page_count // 512 + 64, seed=1)
    t = Tables(memory, formats.FOUR_LEVEL)
    rng = np.random.default_rng(SEED)
    where = np.arange(page_count, dtype=np.uint64) << np.uint64(12)
    frame = memory.frames + rng.permutation(page_count)
    t.map(
        np.uint64(BASE) + where, frame.astype(np.uint64) << np.uint64(12), flags=FLAGS,
        table_flags=FLAGS & ~bits.D,
    )  # fmt: skip
    va = np.uint64(BASE) + rng.integers(0, page_count << 12, ACCESSES).astype(np.uint64)
    return Space(t, va, rng.integers(0, 2, ACCESSES).astype(np.uint8))


def under_ept(s: Space, page_count: int) -> tuple[Memory, Tables]:
    """Host memory with the guest's tables in it, and EPT that map these and the guest's pages."""
    guest = s.tables.memory
    everything = guest.frames + page_count
    host = Memory(guest.frames + everything // 512 + 64, seed=2)
    rng = np.random.default_rng(SEED + 1)
    frames = np.concatenate(
        [host.allocate(guest.frames), host.frames + rng.permutation(page_count)]
    ).astype(np.uint64)
    host.words.reshape(-1, 512)[frames[: guest.frames]] = guest.words.reshape(-1, 512)
    second = Tables(host, formats.EPT_FOUR_LEVEL)
    gpa = np.arange(everything, dtype=np.uint64) << np.uint64(12)
    second.map(gpa, frames << np.uint64(12))
    return host, second


def checked(work: dict[str, Work], pa: np.ndarray, ours: np.ndarray) -> dict[str, Work]:
    """All C versions must find the same addresses."""
    for name, run in work.items():
        if name != "pvmmu":
            pa[:] = 0
            run()
            assert np.array_equal(ours, pa), name
    return work


def volatility(s: Space) -> Work | None:
    """Translations by volatility3's layer, one by one; None if it is not installed."""
    try:
        from volatility3.framework.contexts import Context
        from volatility3.framework.layers.intel import Intel32e
        from volatility3.framework.layers.physical import BufferDataLayer
    except ImportError:
        return None

    class Frames(BufferDataLayer):
        """Physical memory: the tables, and behind them pages whose content nobody reads."""

        def is_valid(self, offset: int, length: int = 1) -> bool:
            return True

    context = Context()
    memory = s.tables.memory.words.tobytes()
    context.add_layer(Frames(context, "frames", "physical", memory))
    context.config["walker.memory_layer"] = "physical"
    context.config["walker.page_map_offset"] = int(s.tables.root)
    va = s.va[:FEW].tolist()

    def run() -> list[int]:
        layer = Intel32e(context, "walker", "linear")  # anew: it remembers what it translated
        return [layer.translate(a)[0] for a in va]

    return run


def walk_in_python(words: list[int], root: int, va: int) -> int:
    """Return the physical address, as the C version does: four levels, presence only."""
    table = root
    for shift in (39, 30, 21, 12):
        entry = words[(table >> 3) + (va >> shift & 511)]
        if not entry & 1:
            raise ValueError(f"{va:#x} is not mapped")
        table = entry & 0xFFFFFFFFFF000
    return table | va & 0xFFF


def nested_in_python(words: list[int], ept: int, root: int, va: int) -> int:
    """Return the host's address, as the C version does: 4 levels under 4 levels."""
    table = root
    for shift in (39, 30, 21, 12):
        at = walk_in_python(words, ept, table + (va >> shift & 511) * 8)
        entry = words[at >> 3]
        if not entry & 1:
            raise ValueError(f"{va:#x} is not mapped")
        table = entry & 0xFFFFFFFFFF000
    return walk_in_python(words, ept, table | va & 0xFFF)


def slow_ones(title: str, fast: Work, slow: dict[str, Work], rounds: int) -> tuple[str, dict]:
    """Compare a walk's time with those that are too slow for more than the first `FEW` addresses.

    All must find the same addresses.
    """
    want = fast().pa[:FEW].tolist()
    for name, run in slow.items():
        assert run() == want, name
    times = interleaved({"pvmmu": fast, **slow}, max(3, rounds // 3))
    each = {k: times[k].median() / (ACCESSES if k == "pvmmu" else FEW) for k in times}
    limits = {"volatility3": 1000, "Python": 80}
    ratios = {
        f"{title}, {SMALL}: {k} / pvmmu": (each[k] / each["pvmmu"], ">=", limits[k]) for k in slow
    }
    rows = {k: spread(times[k], ACCESSES if k == "pvmmu" else FEW) for k in times}
    return markdown(pd.DataFrame({SMALL: rows})), ratios


def one_dimension(lib: ctypes.CDLL, page_count: int) -> tuple[dict[str, Work], dict[str, Work]]:
    """Walks in 4-level tables: of all addresses, and the slow ones of a few."""
    s = space(page_count)
    words, registers = s.tables.memory.words, s.tables.registers()
    pa = np.zeros(ACCESSES, np.uint64)
    here = pointer(words), ctypes.c_uint64(s.tables.root), pointer(s.va)
    n = ctypes.c_size_t(ACCESSES)
    work: dict[str, Work] = {
        "pvmmu": lambda: walk_many(words, registers, s.va, s.write),
        "C": lambda: lib.walk(*here, pointer(s.write), n, pointer(pa)),
        "C, no flags": lambda: lib.walk_bare(*here, n, pointer(pa)),
    }
    ours = walk_many(words, registers, s.va, s.write)
    assert not ours.vector.any() and ours.update_pa.size == 0 and (ours.references == 4).all()
    slow: dict[str, Work] = {}
    if page_count == SPACES[SMALL]:
        peer = volatility(s)
        if peer:
            slow["volatility3"] = peer
        listed, root, addresses = words.tolist(), int(s.tables.root), s.va[:FEW].tolist()
        slow["Python"] = lambda: [walk_in_python(listed, root, a) for a in addresses]
    return checked(work, pa, ours.pa), slow


def two_dimensions(lib: ctypes.CDLL, page_count: int) -> tuple[dict[str, Work], dict[str, Work]]:
    """Nested walks: 4-level tables under 4-level EPT that keep flags; as `one_dimension`."""
    s = space(page_count)
    host, second = under_ept(s, page_count)
    words, registers, ept = host.words, s.tables.registers(), second.second()
    walk_nested_many(words, registers, ept, s.va, 1, apply=True)
    pa = np.zeros(ACCESSES, np.uint64)
    roots = ctypes.c_uint64(second.root), ctypes.c_uint64(s.tables.root)
    rest = pointer(words), *roots, pointer(s.va), pointer(s.write)
    n = ctypes.c_size_t(ACCESSES)
    work: dict[str, Work] = {
        "pvmmu": lambda: walk_nested_many(words, registers, ept, s.va, s.write),
        "C": lambda: lib.walk_nested(*rest, n, pointer(pa)),
        "C, no flags": lambda: lib.walk_nested_bare(*rest, n, pointer(pa)),
    }
    ours = walk_nested_many(words, registers, ept, s.va, s.write)
    assert not (ours.vector.any() or ours.exit_reason.any()) and ours.update_pa.size == 0
    assert (ours.references == 24).all()
    slow: dict[str, Work] = {}
    if page_count == SPACES[SMALL]:
        listed, addresses = words.tolist(), s.va[:FEW].tolist()
        top, root = int(second.root), int(s.tables.root)
        slow["Python"] = lambda: [nested_in_python(listed, top, root, a) for a in addresses]
    return checked(work, pa, ours.pa), slow


def main() -> int:
    """Measure and write ``results/walks.md``."""
    parser = argparse.ArgumentParser(description="Page walks against C and peers, as ratios.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="the smallest space only")
    args = parser.parse_args()
    spaces = dict([*SPACES.items()][:1]) if args.quick else SPACES
    lib = compiled("reference.c")
    parts, ratios = {}, {}
    for title, make, limit in (
        ("One dimension: 4 references", one_dimension, 1.1),
        ("Two dimensions: 24 references", two_dimensions, 0.5),
    ):
        columns = []
        for name, page_count in spaces.items():
            work, slow = make(lib, page_count)
            times = interleaved(work, args.rounds)
            columns.append(pd.Series({k: spread(times[k], ACCESSES) for k in times}, name=name))
            median = times.median()
            ratios[f"{title}, {name}: pvmmu / C"] = (median["pvmmu"] / median["C"], "<=", limit)
            if slow:
                text, more = slow_ones(title, work["pvmmu"], slow, args.rounds)
                parts[f"{title}: slow ones, {FEW:,} of the addresses, ns for a walk"] = text
                ratios |= more
        parts[f"{title}, random addresses, ns for a walk"] = markdown(pd.DataFrame(columns).T)
    keep_ratios("walks", ratios)
    head = "Page walks against C and peers"
    write_results("walks", head, {"Ratios": markdown(verdicts(ratios)), **parts})
    return 0


if __name__ == "__main__":
    sys.exit(main())
