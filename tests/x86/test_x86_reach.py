"""One pass over the accesses against a separate run for every geometry."""

import numpy as np
import pytest
from conftest import LITTLE, examples
from hypothesis import given, strategies as st
from naive_x86 import misses_of
from test_x86_tlb import of, synthetic

from pvmmu.guest.readers.memory.memory_trace import load_memory_trace
from pvmmu.x86 import MissStream, Reach, Tlb, make_geometry, pages
from pvmmu.x86.errors import TlbError

GRID = [(1 << s, w) for s in range(11) for w in range(1, 17)]


@pytest.mark.compiled
@pytest.mark.parametrize("name", synthetic())
def test_every_geometry_as_separate_runs(name):
    """176 geometries, each against the kernel that runs one of them."""
    numbers = of(synthetic()[name])
    reach = Reach().add(numbers)
    assert len(GRID) >= 150
    for sets, ways in GRID:
        assert reach.misses(sets, ways) == Tlb(make_geometry((sets, ways))).run(numbers).walks


@pytest.mark.parametrize("name", ["cc1", "sort"])
def test_real_traces_as_separate_runs(name):
    numbers = load_memory_trace(name).pages(fetches=False, limit=3_000 if LITTLE else 300_000)
    reach = Reach().add(numbers)
    for sets, ways in GRID[::5]:
        assert reach.misses(sets, ways) == Tlb(make_geometry((sets, ways))).run(numbers).walks


@examples(20)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_size_as_dictionaries(seed):
    """Fully associative, all sizes at once; in pieces, so that the state has to grow and last."""
    rng = np.random.default_rng(seed)
    n, most = int(rng.integers(1, 3000)), int(rng.integers(1, 400))
    numbers = (rng.integers(0, most, n) ** 2 % 1009 * int(rng.integers(1, 1 << 30))).astype(
        np.uint64
    )
    reach = Reach(max_sets=8)
    for piece in np.array_split(numbers, int(rng.integers(1, 9))):
        reach.add(of(piece))
    assert reach.accesses == n and reach.pages == np.unique(numbers).size
    curve = reach.fully_associative()
    assert curve.size == reach.pages + 1
    assert curve[0] == n and curve[-1] == reach.pages
    assert (np.diff(curve) <= 0).all()
    pages_ = (numbers & np.uint64((1 << 45) - 1)).tolist()
    for entries in {1, 2, 3, 17, 100, reach.pages}:
        want = misses_of(pages_, 1, entries)
        assert int(curve[min(entries, reach.pages)]) == reach.misses(1, entries) == want
    for sets, ways in ((2, 1), (4, 3), (8, 16)):
        assert reach.misses(sets, ways) == misses_of(pages_, sets, ways)


def test_many_pages_make_the_state_grow():
    """More pages than there was room for at first, and time slots used many times over."""
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 30000, 200_000).astype(np.uint64)
    reach = Reach(max_sets=1).add(of(numbers))
    curve = reach.fully_associative()
    for entries in (1, 5000, 20000):
        assert curve[entries] == misses_of(numbers.tolist(), 1, entries)


def test_a_second_level_sees_what_the_first_misses():
    for name, numbers in synthetic().items():
        stream = MissStream(16, 4)
        left = [stream.of(of(x)) for x in np.array_split(numbers, 3)]
        reach = Reach()
        for x in left:
            reach.add(x)
        for sets, ways in ((128, 12), (64, 4), (16, 8)):
            got = Tlb(make_geometry((16, 4), (sets, ways))).run(of(numbers))
            assert reach.accesses == got.misses[0], name
            assert reach.misses(sets, ways) == got.walks, name


def test_the_table_has_every_geometry():
    reach = Reach(max_sets=4).add(of(synthetic()["zipf"]))
    t = reach.table()
    assert list(t.columns) == ["sets", "ways", "entries", "misses", "miss_ratio"]
    assert len(t) == 3 * 16
    row = t[(t.sets == 4) & (t.ways == 5)].iloc[0]
    assert row.misses == reach.misses(4, 5) and row.entries == 20
    assert row.miss_ratio == pytest.approx(row.misses / reach.accesses)


def test_nothing_touched():
    reach = Reach().add(of(np.zeros(0, np.uint64)))
    assert reach.fully_associative().tolist() == [0] and reach.misses(4, 4) == 0
    assert reach.table()["miss_ratio"].max() == 0


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Reach(max_sets=3), "max_sets"),
        (lambda: Reach(max_sets=1 << 20), "max_sets"),
        (lambda: Reach(max_sets=8).misses(16, 1), "sets"),
        (lambda: Reach().misses(3, 1), "sets"),
        (lambda: Reach().misses(2, 17), "ways"),
        (lambda: Reach().misses(2, 0), "ways"),
        (lambda: Reach(sizes=False).fully_associative(), "sizes"),
        (lambda: Reach().add(pages(np.zeros(1, np.uint64), 21)), "4 KiB"),
        (lambda: MissStream(3, 1), "power of two"),
        (lambda: MissStream(4, 0), "positive"),
        (lambda: MissStream(4, 1).of(pages(np.zeros(1, np.uint64), 21)), "4 KiB"),
    ],
)
def test_wrong_arguments(call, says):
    with pytest.raises(TlbError, match=says):
        call()
