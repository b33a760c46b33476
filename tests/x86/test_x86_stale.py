"""The validator: which uses of stale translations are harmful, and which the kernel may allow."""

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, strategies as st
from test_x86_mmu import ALL_CACHES, BASE, PAGE, Space, nested_space

from pvmmu.x86 import (
    Count,
    Event,
    Memory,
    Mmu,
    Tables,
    bits,
    formats,
    load_geometry,
    make_events,
    make_geometry,
)
from pvmmu.x86.mmu_events import HARMFUL

WHERE = [BASE + i * PAGE for i in range(8)]


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    path = tmp_path_factory.mktemp("mmu") / "caches.toml"
    path.write_text(ALL_CACHES)
    return load_geometry(path)


@pytest.fixture(params=["walk caches", "none"])
def space(request, caches):
    geometry = caches if request.param == "walk caches" else make_geometry((4, 4))
    return Space(WHERE, geometry, validate=True)


def stale(counts):
    return {c.name: n for c, n in counts.items() if c.name.startswith("STALE")}


def gone(e):
    return 0


def other_frame(e):
    return e ^ 7 << 12


def read_only(e):
    return e & ~bits.RW


CHANGES = {"STALE_GONE": gone, "STALE_MOVED": other_frame, "STALE_REDUCED": read_only}


@pytest.mark.parametrize(("why", "change"), CHANGES.items())
def test_use_after_the_promised_flush_is_harmful(space, why, change):
    space.read(BASE, Event.WRITE)
    space.store(BASE, change)
    assert stale(space.read(BASE)) == {"STALE_WINDOW": 1}  # before the promise: legal
    assert space.mmu.harmful == 0
    space.promise()
    assert stale(space.read(BASE)) == {why: 1}
    assert space.mmu.harmful == 1
    rows = space.mmu.harmful_uses()
    assert rows["va"].tolist() == [BASE]
    assert rows["why"].tolist() == [why.lower()]
    assert rows["event"].tolist() == [4]


@pytest.mark.parametrize("change", CHANGES.values())
@pytest.mark.parametrize(
    "flush",
    [
        (Event.INVLPG, BASE),
        (Event.INVPCID_ADDRESS, BASE, 0),
        (Event.INVPCID_SINGLE, 0, 0),
        (Event.INVPCID_ALL,),
        (Event.TOGGLE_PGE,),
    ],
)
def test_a_flush_in_time_is_enough(space, change, flush):
    space.read(BASE, Event.WRITE)
    space.store(BASE, change)
    space.mmu.do(*flush)
    space.promise()
    assert stale(space.read(BASE)) == {}


@pytest.mark.parametrize(
    "flush",
    [(Event.INVLPG, BASE + PAGE), (Event.INVPCID_ADDRESS, BASE, 1), (Event.INVPCID_SINGLE, 0, 1)],
)
def test_a_flush_of_something_else_is_not(space, flush):
    space.read(BASE)
    space.store(BASE, gone)
    space.mmu.do(*flush)
    space.promise()
    assert stale(space.read(BASE)) == {"STALE_GONE": 1}


def test_a_frame_that_was_given_back_is_the_worst(space):
    space.read(BASE)
    frame = int(space.frame[0])
    space.store(BASE, gone)
    space.mmu.do(Event.FREE, frame)
    assert stale(space.read(BASE)) == {"STALE_WINDOW": 1}
    space.promise()
    assert stale(space.read(BASE)) == {"STALE_FREED": 1}


def test_a_frame_given_back_before_the_entry_was_made_is_not_meant(space):
    space.mmu.do(Event.FREE, int(space.frame[0]))
    space.read(BASE)
    space.store(BASE, gone)
    space.promise()
    assert stale(space.read(BASE)) == {"STALE_GONE": 1}


def test_more_rights_need_no_flush(space):
    space.store(BASE, read_only)
    space.read(BASE)
    space.store(BASE, lambda e: e | bits.RW)
    space.promise()
    assert stale(space.read(BASE)) == {"STALE_UPGRADED": 1}
    # the write faults spuriously, and finds the right then
    assert space.read(BASE, Event.WRITE)[Count.SPURIOUS_FAULTS] == 1
    assert stale(space.read(BASE, Event.WRITE)) == {}
    assert space.mmu.harmful == 0


def test_a_cleared_accessed_flag_needs_no_flush_and_a_dirty_one_does(space):
    space.read(BASE, Event.WRITE)
    space.store(BASE, lambda e: e & ~bits.A)
    space.promise()
    assert stale(space.read(BASE)) == {"STALE_AGED": 1}
    space.store(BASE, lambda e: e & ~bits.D)
    assert stale(space.read(BASE)) == {"STALE_WINDOW": 1}
    space.promise()
    assert stale(space.read(BASE)) == {"STALE_REDUCED": 1}  # a write would be lost


def test_ranges_that_are_flushed_late_on_purpose(space):
    space.read(BASE)
    space.store(BASE, gone)
    space.mmu.do(Event.LAZY, BASE, BASE + PAGE)
    assert stale(space.read(BASE)) == {"STALE_LAZY": 1}
    space.promise()
    assert stale(space.read(BASE)) == {"STALE_GONE": 1}


def test_a_promise_is_for_a_range_and_a_root(space):
    space.read(BASE)
    space.store(BASE, gone)
    space.promise(BASE + PAGE, BASE + 2 * PAGE)
    space.promise(0, BASE)
    space.promise(root=0x5000)
    assert stale(space.read(BASE)) == {"STALE_WINDOW": 1}
    space.promise(BASE, BASE + 1, space.tables.root)
    assert stale(space.read(BASE)) == {"STALE_GONE": 1}


def test_a_change_after_the_promise_is_not_meant(space):
    space.read(BASE)
    space.promise()
    space.store(BASE, gone)
    assert stale(space.read(BASE)) == {"STALE_WINDOW": 1}


def test_what_was_put_back_is_not_stale(space):
    space.read(BASE)
    at = space.tables.entry_at(BASE)
    before = space.tables.load(at)
    space.store(BASE, gone)
    space.promise()
    space.mmu.do(Event.STORE, at, before)
    assert stale(space.read(BASE)) == {}


def test_global_pages_outlive_their_root(space):
    space.store(BASE, lambda e: e | bits.G)
    space.read(BASE)
    space.store(BASE, gone)
    space.mmu.do(Event.LOAD_CR3, space.tables.root | 1)
    space.promise(root=0x5000)
    assert stale(space.read(BASE)) == {"STALE_GONE": 1}


def test_each_processor_has_to_be_flushed(caches):
    """A shootdown that misses one processor."""
    s = Space(WHERE, caches, validate=True, cpus=3)
    for cpu in range(3):
        s.read(BASE, cpu=cpu)
    s.store(BASE, gone)
    for cpu in (0, 2):
        s.mmu.do(Event.INVLPG, BASE, cpu=cpu)
    s.promise()
    for cpu in range(3):
        s.read(BASE, cpu=cpu)
    assert s.mmu.harmful == 1
    assert s.mmu.counts(1)[Count.STALE_GONE] == 1
    assert s.mmu.harmful_uses()["cpu"].tolist() == [1]
    assert s.mmu.count_table()["stale_gone"].tolist() == [0, 1, 0]


def test_a_walk_cache_that_leads_to_a_table_given_back(caches):
    """Freeing page tables needs a flush, too, even where no page was mapped any more."""
    s = Space(WHERE, caches, validate=True)
    s.read(BASE)
    s.store(BASE + PAGE, gone, level=2)
    assert stale(s.read(BASE + PAGE)) == {"STALE_TABLE_WINDOW": 1}
    s.promise()
    assert stale(s.read(BASE + 2 * PAGE)) == {"STALE_TABLE": 1}
    assert s.mmu.harmful == 1
    s.mmu.do(Event.INVLPG, BASE)
    assert stale(s.read(BASE + 3 * PAGE)) == {}


LARGE = 1 << 21


def _walked(geometry, cpus=1):
    """A space whose PDE is in a walk cache, and whose last pages no TLB holds."""
    s = Space(WHERE, geometry, validate=True, cpus=cpus)
    s.read(BASE)
    return s


def leaf(e):
    """A collapse: the entry maps a large page now."""
    return 0x40_0000 | e & 0xFFF | bits.PS | bits.D


def another_table(e):
    """A table of zeros: nothing is mapped there."""
    return 300 << 12 | e & 0xFFF


@pytest.mark.parametrize("change", [leaf, another_table, gone, read_only])
@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_walk_cache_that_leads_elsewhere(caches, change, level):
    """What a walk finds through it is stale from the start, and so are further walk caches."""
    if change is leaf and level == 4:
        pytest.skip("a PML4E maps no page")
    s = _walked(caches)
    s.store(BASE, change, level)
    assert stale(s.read(BASE + PAGE)) == {"STALE_TABLE_WINDOW": 1}  # before the promise: legal
    s.promise(BASE, BASE + 2 * PAGE)  # no address of the entry but the first two is named
    assert stale(s.read(BASE + 2 * PAGE)) == {"STALE_TABLE": 1}
    again = stale(s.read(BASE + 2 * PAGE))  # from the TLB, which was filled after the promise
    assert set(again) <= {"STALE_MOVED", "STALE_GONE", "STALE_REDUCED"} and again
    assert s.mmu.harmful == 2
    s.mmu.do(Event.INVPCID_ALL)
    assert stale(s.read(BASE + 3 * PAGE)) == {}


def test_an_unflushed_collapse_into_a_large_page(caches):
    """khugepaged without its flush: the page table is freed, and walked all the same."""
    s = _walked(caches)
    table = s.tables.load(s.tables.entry_at(BASE, 2)) >> 12 & 0xFFFFF
    s.store(BASE, leaf, 2)
    s.promise(BASE, BASE + LARGE)
    s.mmu.do(Event.FREE, table)
    s.mmu.do(Event.FREE, int(s.frame[1]))
    assert stale(s.read(BASE + PAGE, Event.WRITE)) == {"STALE_TABLE": 1}
    assert stale(s.read(BASE + PAGE, Event.WRITE)) == {"STALE_FREED": 1}


@pytest.mark.parametrize("flush", [Event.INVLPG, Event.INVPCID_ALL, Event.TOGGLE_PGE])
@pytest.mark.parametrize("change", [leaf, another_table, gone, read_only])
def test_a_flush_drops_the_walk_cache_in_time(caches, change, flush):
    s = _walked(caches)
    s.store(BASE, change, 2)
    s.mmu.do(flush, BASE)
    s.promise()
    assert stale(s.read(BASE + PAGE)) == {}


def test_a_table_that_was_given_back_needs_no_promise(caches):
    """No kernel may free a table that a processor still walks."""
    s = _walked(caches)
    table = s.tables.load(s.tables.entry_at(BASE, 2)) >> 12 & 0xFFFFF
    s.store(BASE, gone, level=2)
    s.mmu.do(Event.FREE, table)
    assert stale(s.read(BASE + PAGE)) == {"STALE_TABLE": 1}


def test_every_address_of_a_large_entry_counts_at_a_promise():
    """A large page was split, and one of its pieces unmapped: not the first."""
    t = Tables(Memory(2048), formats.FOUR_LEVEL)
    t.map(0x80_0000, 0x40_0000, 21)
    mmu = Mmu(t.memory.words, t.registers(), "skylake", validate=True)
    mmu.access(0x80_0000, Event.WRITE)
    pde, table = t.entry_at(0x80_0000, 2), int(t.memory.allocate()[0]) << 12
    flags = t.load(pde) & 0xFFF & ~bits.PS
    for i in range(512):
        mmu.do(Event.STORE, table + 8 * i, 0 if i == 7 else 0x40_0000 + i * PAGE | flags)
    mmu.do(Event.STORE, pde, table | flags & ~bits.D)
    mmu.do(Event.PROMISE, 0x80_0000, 0x80_0000 + 2 * PAGE)
    mmu.access(0x80_0000 + 7 * PAGE)
    assert mmu.harmful == 0  # the promise was for other pages
    mmu.do(Event.PROMISE, 0x80_0000, 0x80_0000 + LARGE)
    mmu.access(0x80_0000)  # this piece is as it was; it does not make the others right
    mmu.access(0x80_0000 + 7 * PAGE)
    assert mmu.harmful == 1
    mmu.do(Event.PROMISE, 0x80_0000, 0x80_0000 + PAGE)  # nor does a later promise for it
    mmu.access(0x80_0000 + 7 * PAGE)
    assert mmu.harmful == 2


def test_tables_of_the_second_dimension_count_too():
    mmu, ept = nested_space(make_geometry((4, 4)), validate=True)
    mmu.access(BASE)
    at = ept.entry_at(100 * PAGE)
    mmu.do(Event.STORE, at, ept.load(at) & ~2)  # EPT: no writes any more
    mmu.access(BASE)
    assert mmu.counts()[Count.STALE_WINDOW] == 1
    mmu.do(Event.PROMISE, 0, 1 << 47)
    mmu.access(BASE)
    assert mmu.harmful == 1
    mmu.do(Event.INVEPT)
    mmu.access(BASE)
    assert mmu.harmful == 1


def test_the_log_has_room_for_so_many(caches):
    s = Space(WHERE, caches, validate=True, log_rows=2)
    s.mmu.access(s.where)
    for va in WHERE:
        s.store(va, gone)
    s.promise()
    s.mmu.access(s.where)
    assert s.mmu.harmful == 8
    assert len(s.mmu.harmful_uses()) == 2


def test_validation_changes_no_other_count(caches):
    order = np.random.default_rng(3).permuted(np.repeat(WHERE, 50)).astype(np.uint64)
    with_, without = (Space(WHERE, caches, validate=x) for x in (True, False))
    for s in (with_, without):
        s.mmu.access(order, Event.WRITE)
        s.store(BASE, gone)
        s.mmu.access(order)
    counts = {c: n for c, n in with_.mmu.counts().items() if not c.name.startswith("STALE")}
    assert counts.items() <= without.mmu.counts().items()
    assert with_.mmu.counts()[Count.STALE_WINDOW]


class Kernel:
    """A kernel that unmaps, protects and remaps pages, and flushes every CPU that may know them."""

    CPUS = 3

    def __init__(self, seed, geometry):
        self.rng = np.random.default_rng(seed)
        self.space = Space(WHERE, geometry, validate=True, cpus=self.CPUS)
        self.events = []
        self.flushes = []  # numbers of the events that are flushes
        self.entry = {va: self.space.tables.load(self._at(va)) for va in WHERE}

    def _at(self, va):
        return self.space.tables.entry_at(va)

    def do(self, *event, cpu=0):
        self.events.append((*event, *(0,) * (4 - len(event)), cpu))

    def work(self, steps):
        for _ in range(steps):
            va = int(self.rng.choice(WHERE))
            for cpu in range(self.CPUS):
                self.do(Event.WRITE, va, 1, cpu=cpu)  # now it has the page with all rights
            change = list(CHANGES.values())[int(self.rng.integers(3))]
            self.do(Event.STORE, self._at(va), change(self.entry[va] | bits.A | bits.D), 8)
            for cpu in range(self.CPUS):
                self.flushes.append(len(self.events))
                self.do(Event.INVLPG, va, cpu=cpu)
            self.do(Event.PROMISE, va, va + PAGE)
            for cpu in range(self.CPUS):
                self.do(Event.READ, va, 1, cpu=cpu)
            self.do(Event.STORE, self._at(va), self.entry[va], 8)
            for cpu in range(self.CPUS):
                self.do(Event.INVPCID_ALL, cpu=cpu)  # each round begins afresh

    def run(self, without=-1):
        kept = [e for i, e in enumerate(self.events) if i != without]
        op, a, b, c, cpu = (np.array(x, np.uint64) for x in zip(*kept, strict=True))
        self.space.mmu.run(make_events(op, a, b, c, cpu))
        return self.space.mmu.harmful


@examples(6)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_design_that_skips_a_flush_it_needs_is_found_out(caches, seed):
    """All flushes: nothing harmful. Without any one of them: something is."""

    def kernel():
        k = Kernel(seed, caches)
        k.work(6)
        return k

    whole = kernel()
    assert whole.run() == 0
    for i in whole.flushes:
        assert kernel().run(without=i) > 0


def test_the_harmful_counts_are_named():
    assert {c.name for c in HARMFUL} == {
        "STALE_FREED", "STALE_GONE", "STALE_MOVED", "STALE_REDUCED", "STALE_TABLE",
    }  # fmt: skip
