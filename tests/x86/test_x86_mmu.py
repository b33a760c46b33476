"""MMUs against a slow twin, the rules of walk caches and nested TLBs, and the validator."""

import numpy as np
import pytest
from conftest import examples
from forests_x86 import Forest
from hypothesis import example, given, strategies as st
from naive_x86 import Guest, NaiveMmu
from test_x86_tlb import ODD
from test_x86_twins import twin_second

from pvmmu.guest.readers.memory.memory_trace import load_memory_trace
from pvmmu.x86 import (
    Count,
    Event,
    Memory,
    Mmu,
    Tables,
    Tlb,
    bits,
    formats,
    load_geometry,
    make_events,
    make_geometry,
    nest,
    walk_one,
)
from pvmmu.x86.errors import TlbError, WalkError
from pvmmu.x86.geometry import NestedTlb

CACHES = """
[[walk_cache]]
caches = "PDE"
entries = 8
ways = 2
[[walk_cache]]
caches = "PDPTE"
entries = 2
ways = 2
[[walk_cache]]
caches = "PML5E"
entries = 1
ways = 1
[nested_tlb]
entries = 8
ways = 2
"""
PCIDE = bits.CR4_PCIDE


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Few entries everywhere, so that everything is replaced all the time."""
    path = tmp_path_factory.mktemp("mmu") / "small.toml"
    path.write_text(ODD + CACHES)
    return load_geometry(path)


# ---------------------------------------------------------------- against the twin


class Pair:
    """A kernel and its twin, each with a copy of the same random memory."""

    def __init__(self, seed, mode, second, geometry, rough):
        self.forest = forest = Forest(seed, mode, second, rough)
        self.rng = rng = forest.rng
        if rng.random() < 0.7:
            cr4 = forest.registers.cr4 | PCIDE
            r = forest.registers
            forest.registers = type(r)(r.cr0, r.cr3, cr4, r.efer, r.maxphyaddr)
        r = forest.registers
        self.mmu = Mmu(forest.words, r, geometry, second=forest.second)
        guest = Guest(r.cr0, r.cr3, r.cr4, r.efer, r.maxphyaddr)
        self.twin = NaiveMmu(forest.words.copy(), guest, geometry, twin_second(forest.second))
        va, *_ = forest.accesses(12)
        # addresses near each other share tables, and entries of caches
        near = va[:4, None] + (np.arange(3, dtype=np.uint64) << np.uint64(12))
        self.pool = np.concatenate([va, near.ravel()])
        # where stores hurt: the entries of their walks
        self.entries = {v: [x.address for x in self._path(v)] for v in self.pool.tolist()}
        self.va, self.events = int(self.pool[0]), []

    def _path(self, va):
        try:
            return walk_one(
                self.forest.words, self.forest.registers, va, second=self.forest.second
            ).path
        except WalkError:  # outside of memory
            return ()

    def step(self):
        """Let a random event happen to both; return whether it did."""
        rng, twin = self.rng, self.twin
        what = rng.random()
        if rng.random() < 0.4:
            self.va = int(rng.choice(self.pool))
        va = self.va
        if what < 0.85:
            kind, user, ac = (int(rng.integers(k)) for k in (3, 2, 2))
            return self._both(
                (kind, va, user | ac << 1), lambda: twin.access(va, kind, bool(user), bool(ac))
            )
        if what < 0.93:
            at, bit = (
                int(rng.choice(self.entries[va] or [0])),
                int(rng.choice([1, 1, 2, 5, 6, 8, 63])),
            )
            new = int(twin.words[at // 8]) ^ 1 << bit
            return self._both((Event.STORE, at, new), lambda: twin.words.__setitem__(at // 8, new))
        return self._both(*self._flush(va))

    def _flush(self, va):
        rng, twin = self.rng, self.twin
        pcid, vpid = int(rng.integers(3)) if twin.g.cr4 & PCIDE else 0, int(rng.integers(3))
        fits = (va + (1 << twin.top * 9 + 11)) % (1 << 64) >> twin.top * 9 + 12 == 0
        own = max(vpid, 1)  # INVVPID of the host's fails
        root = int(rng.integers(4)) << 12 | (pcid if twin.g.cr4 & PCIDE else 0)
        keep = (int(rng.integers(2)) << 63) if twin.g.cr4 & PCIDE else 0
        choices = [
            ((Event.INVLPG, va), lambda: twin.invlpg(va)),
            *[
                ((Event.INVPCID_ADDRESS, va, pcid), lambda: twin.invpcid("address", pcid, va)),
                ((Event.INVVPID_ADDRESS, va, own), lambda: twin.invvpid("address", own, va)),
            ]
            * fits,
            ((Event.INVPCID_SINGLE, 0, pcid), lambda: twin.invpcid("single", pcid)),
            ((Event.INVPCID_ALL,), lambda: twin.invpcid("all")),
            ((Event.INVPCID_ALL_NONGLOBAL,), lambda: twin.invpcid("all nonglobal")),
            ((Event.TOGGLE_PGE,), lambda: twin.invpcid("all")),
            ((Event.LOAD_CR3, root | keep), lambda: twin.load_cr3(root | keep)),
            ((Event.ENTER, root, vpid), lambda: twin.enter(root, vpid)),
            ((Event.INVVPID_SINGLE, 0, own), lambda: twin.invvpid("single", own)),
            ((Event.INVVPID_SINGLE_NONGLOBAL, 0, own), lambda: twin.invvpid("nonglobal", own)),
            ((Event.INVVPID_ALL,), lambda: twin.invvpid("all")),
            ((Event.INVEPT,), twin.invept),
        ]
        return choices[int(rng.integers(len(choices)))]

    def _both(self, event, twins):
        self.events.append(event)
        try:
            twins()
        except IndexError:
            with pytest.raises(WalkError, match="outside"):
                self.mmu.do(*event)
            return False
        self.mmu.do(*event)
        return True

    def compare(self):
        got = {c.name: n for c, n in self.mmu.counts().items()}
        assert {name: got[name] for name in self.twin.n} == self.twin.n
        np.testing.assert_array_equal(self.forest.words, self.twin.words)
        rows = self.mmu.entries()
        sign = (rows["va"] << np.uint64(7)) >> np.uint64(7)
        pcid = ["global" if p < 0 else p for p in rows["pcid"]]
        columns = rows["structure"], rows["page"], sign, rows["global"], rows["vpid"], pcid
        assert sorted(zip(*columns, strict=True), key=str) == sorted(
            self.twin.tlb.contents(), key=str
        )


@pytest.mark.parametrize("second", [None, "EPT4", "EPT4-AD", "EPT5-AD"])
@pytest.mark.parametrize("mode", ["4-level", "5-level"])
@examples(6)
@given(seed=st.integers(0, 2**32 - 1))
@example(seed=1062)  # a fault in a large page, other parts of which are cached
def test_random_events_as_in_the_twin(small, mode, second, seed):
    """Accesses, stores to tables and every flush: counts, memory and what is left in the TLB."""
    pair = Pair(seed, mode, second, small, rough=0.08)
    for i in range(220):
        if not pair.step():
            break
        if i % 20 == 19:
            pair.compare()


def test_the_random_events_reach_everything(small):
    seen = dict.fromkeys(Pair(0, "4-level", None, small, 0.08).twin.n, 0)
    for seed, second in enumerate([None, "EPT4", "EPT4-AD"] * 4):
        pair = Pair(seed, "4-level", second, small, 0.08)
        for _ in range(300):
            if not pair.step():
                break
        pair.compare()
        for name, n in pair.twin.n.items():
            seen[name] += n
    assert all(seen.values()), seen


# ---------------------------------------------------------------- a tidy address space

PAGE, LARGE, HUGE = 1 << 12, 1 << 21, 1 << 30
BASE = 0x7F00_0000_0000
ALL_CACHES = """
name = "caches"
[[structure]]
entries = 16
ways = 4
[[walk_cache]]
caches = "PDE"
entries = 4
ways = 4
[[walk_cache]]
caches = "PDPTE"
entries = 2
ways = 2
[[walk_cache]]
caches = "PML4E"
entries = 2
ways = 2
"""


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """All walk caches, no nested TLB, one level of TLB."""
    path = tmp_path_factory.mktemp("mmu") / "caches.toml"
    path.write_text(ALL_CACHES)
    return load_geometry(path)


class Space:
    """An address space: a page at each of some addresses, mapped to frames 200 and up."""

    def __init__(self, where, geometry, fmt=formats.FOUR_LEVEL, flags=bits.CR4_PCIDE, **options):
        self.tables = t = Tables(Memory(512), fmt)
        self.where = np.asarray(where, np.uint64)
        self.frame = np.arange(200, 200 + self.where.size, dtype=np.uint64)
        t.map(self.where, self.frame << np.uint64(12))
        r = t.registers()
        cr4 = r.cr4 | (flags if fmt.canonical else 0)
        self.mmu = Mmu(t.memory.words, t.registers(cr4=cr4), geometry, **options)

    def read(self, va, kind=Event.READ, cpu=0):
        """Access an address; return what was counted then."""
        before = self.mmu.counts()
        self.mmu.access(va, kind, cpu=cpu)
        return {c: n - before[c] for c, n in self.mmu.counts().items() if n > before[c]}

    def store(self, va, change, level=1):
        """Change an entry as the kernel does, with no flush."""
        at = self.tables.entry_at(int(va), level)
        self.mmu.do(Event.STORE, at, change(self.tables.load(at)))

    def promise(self, first=0, end=1 << 47, root=0):
        self.mmu.do(Event.PROMISE, first, end, root)


# ---------------------------------------------------------------- walk caches


def test_walks_begin_where_the_walk_caches_lead(caches):
    """4 entries from the root; 1 in the same 2 MiB, 2 in the same GiB, 3 in the same 512 GiB."""
    where = [BASE, BASE + PAGE, BASE + LARGE, BASE + HUGE, BASE + 512 * HUGE]
    s = Space(where, caches)
    references = [s.read(va).get(Count.REFERENCES) for va in where]
    assert references == [4, 1, 2, 3, 4]
    counts = s.mmu.counts()
    assert counts[Count.WALK_CACHE_HITS] == 3
    assert counts[Count.LEVELS_SKIPPED] == 3 + 2 + 1
    assert Count.REFERENCES not in s.read(BASE)  # in the TLB


def test_entries_that_map_pages_are_in_no_walk_cache(caches):
    """A PDE that maps 2 MiB is for the TLB (SDM vol. 3A §4.10.3)."""
    s = Space([BASE], caches)
    s.tables.map(BASE + LARGE, 0, 21)
    assert s.read(BASE + LARGE)[Count.REFERENCES] == 3
    # the TLB has no place for such pages here: walked again, from the PDPTE's table
    again = s.read(BASE + LARGE)
    assert again[Count.REFERENCES] == 1 and again[Count.LEVELS_SKIPPED] == 2


def test_walk_caches_replace_what_was_used_least_recently(caches):
    """Of five PDEs four fit; a use keeps one there."""
    s = Space([BASE + r * LARGE + p * PAGE for r in range(5) for p in range(3)], caches)
    order = [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (4, 0), (0, 2), (2, 1), (1, 1)]
    got = [s.read(BASE + r * LARGE + p * PAGE)[Count.REFERENCES] for r, p in order]
    assert got == [4, 2, 2, 2, 1, 2, 1, 1, 2]


def test_pdptes_in_registers_are_in_no_walk_cache(caches):
    """PAE: a walk has two references; only PDEs are cached (SDM vol. 3A §4.10.3.2)."""
    s = Space([0x4000_0000, 0x4000_1000, 0x4020_0000], caches, formats.PAE)
    assert [s.read(va)[Count.REFERENCES] for va in s.where.tolist()] == [2, 1, 2]


@pytest.mark.parametrize(
    ("event", "keeps"),
    [
        ((Event.INVLPG, 0x1000), False),  # any address: all of the PCID
        ((Event.INVPCID_ADDRESS, BASE, 0), False),
        ((Event.INVPCID_ADDRESS, BASE + HUGE, 0), True),  # of that address only
        ((Event.INVPCID_ADDRESS, BASE, 1), True),
        ((Event.INVPCID_SINGLE, 0, 0), False),
        ((Event.INVPCID_SINGLE, 0, 1), True),
        ((Event.INVPCID_ALL,), False),
        ((Event.INVPCID_ALL_NONGLOBAL,), False),
        ((Event.TOGGLE_PGE,), False),
        ((Event.INVVPID_SINGLE, 0, 3), True),
        ((Event.INVVPID_ALL,), True),  # VPID 0 is the host's
        ((Event.INVEPT,), False),
    ],
)
def test_what_a_flush_does_to_walk_caches(caches, event, keeps):
    """SDM vol. 3A §4.10.4.1: a walk to the next page shows whether the PDE is still there."""
    s = Space([BASE, BASE + PAGE], caches)
    s.read(BASE)
    s.mmu.do(*event)
    assert s.read(BASE + PAGE)[Count.REFERENCES] == (1 if keeps else 4)


def test_cr3_loads_and_walk_caches(caches):
    s = Space([BASE, BASE + PAGE, BASE + 2 * PAGE], caches)
    root = s.tables.root
    s.read(BASE)
    s.mmu.do(Event.LOAD_CR3, root | 1)
    assert s.read(BASE + PAGE)[Count.REFERENCES] == 4  # of another PCID
    s.mmu.do(Event.LOAD_CR3, root | 1 << 63)
    assert s.read(BASE + PAGE)[Count.REFERENCES] == 1  # kept
    s.mmu.do(Event.LOAD_CR3, root)
    assert s.read(BASE + 2 * PAGE)[Count.REFERENCES] == 4


def test_global_pages_stay_and_their_tables_go(caches):
    """Walk caches know no global entries: the flush takes the tables, not the page."""
    s = Space([BASE, BASE + PAGE], caches)
    s.store(BASE, lambda e: e | bits.G)
    s.read(BASE)
    s.mmu.do(Event.INVPCID_ALL_NONGLOBAL)
    assert Count.WALKS not in s.read(BASE)
    assert s.read(BASE + PAGE)[Count.REFERENCES] == 4


def test_invlpg_takes_a_global_page_in_all_contexts(caches):
    """SDM vol. 3A §4.10.4.1: whatever PCID is current."""
    s = Space([BASE, BASE + PAGE], caches)
    for va in (BASE, BASE + PAGE):
        s.store(va, lambda e: e | bits.G)
        s.read(va)
    s.mmu.do(Event.LOAD_CR3, s.tables.root | 3)
    s.mmu.do(Event.INVLPG, BASE)
    assert Count.WALKS not in s.read(BASE + PAGE)
    assert s.read(BASE)[Count.WALKS] == 1


def test_a_fault_drops_what_was_cached_for_its_address(caches):
    """SDM vol. 3A §4.10.4.1: so a right that was given after a use is found at the next try."""
    s = Space([BASE], caches)
    s.store(BASE, lambda e: e & ~bits.RW, level=2)
    s.read(BASE)
    s.store(BASE, lambda e: e | bits.RW, level=2)
    again = s.read(BASE, Event.WRITE)
    assert again[Count.SPURIOUS_FAULTS] == 1 and Count.FAULTS not in again
    assert again[Count.REFERENCES] == 4
    assert Count.WALKS not in s.read(BASE, Event.WRITE)


def test_guest_tables_without_write_access_stay_so_in_walk_caches(caches):
    """Setting A in a table that EPT write-protects exits, whoever remembers where the table is."""
    guest, host = Memory(64), Memory(512)
    t = Tables(guest, formats.FOUR_LEVEL)
    t.map([BASE, BASE + PAGE], [0x1000, 0x2000])
    ept = nest(guest, host, formats.EPT_FOUR_LEVEL)
    page_table = t.entry_at(BASE, 1) & ~0xFFF
    m = Mmu(host.words, t.registers(), caches, second=ept.second(keeps_flags=False))
    m.access(BASE)
    at = ept.entry_at(page_table)
    m.do(Event.STORE, at, ept.load(at) & ~bits.RW)
    m.do(Event.INVEPT)
    m.access(BASE)  # A is set already: no write, and the walk caches learn of the table
    assert m.counts()[Count.EXITS] == 0
    m.access(BASE + PAGE)
    assert m.counts()[Count.EXITS] == 1
    assert m.counts()[Count.WALK_CACHE_HITS] == 1


# ---------------------------------------------------------------- nested TLBs


def nested_space(geometry, shift=12, **options):
    guest, host = Memory(512), Memory(2048)
    t = Tables(guest, formats.FOUR_LEVEL)
    t.map(BASE + PAGE * np.arange(8, dtype=np.uint64), PAGE * np.arange(100, 108, dtype=np.uint64))
    second = nest(guest, host, formats.EPT_FOUR_LEVEL, shift)
    return Mmu(host.words, t.registers(), geometry, second=second.second(), **options), second


def with_nested(entries, ways=None):
    g = make_geometry((4, 4))
    return g.model_copy(update={"nested_tlb": NestedTlb(entries=entries, ways=ways or entries)})


def references(mmu):
    c = mmu.counts()
    return c[Count.REFERENCES], c[Count.HOST_REFERENCES], c[Count.NESTED_HITS]


def test_a_nested_tlb_saves_the_walks_of_the_second_dimension():
    bare, _ = nested_space(make_geometry((4, 4)))
    bare.access(BASE)
    assert references(bare) == (24, 20, 0)
    mmu, _ = nested_space(with_nested(16))
    mmu.access(BASE)
    assert references(mmu) == (24, 20, 0)  # five different guest-physical pages
    mmu.access(BASE + PAGE)
    assert references(mmu) == (24 + 4 + 4, 24, 4)  # all tables known, the page itself is not


def test_large_pages_of_the_host_in_a_nested_tlb():
    mmu, _ = nested_space(with_nested(4), 21)
    mmu.access(BASE)
    assert references(mmu) == (3 + 4, 3, 4)  # one walk for 2 MiB serves all


def test_a_small_nested_tlb_forgets():
    mmu, _ = nested_space(with_nested(2))
    mmu.access(BASE)
    mmu.access(BASE + PAGE)  # needs the root's page first, of five only the last two are there
    assert references(mmu)[2] == 0


def test_invept_empties_it_and_other_flushes_do_not():
    for event, hits in ((Event.INVEPT, 0), (Event.INVPCID_ALL, 5), (Event.INVLPG, 4)):
        mmu, _ = nested_space(with_nested(16))
        mmu.access(BASE)
        mmu.do(event)
        mmu.access(BASE + (0 if hits == 5 else PAGE))
        assert references(mmu)[2] == hits


def test_dirty_flags_of_the_host_are_set_through_a_nested_tlb():
    mmu, second = nested_space(with_nested(16))
    mmu.access(BASE)
    at = second.entry_at(100 * PAGE)
    assert not second.load(at) & bits.EPT_D
    mmu.access(BASE, Event.WRITE)
    assert second.load(at) & bits.EPT_D
    assert mmu.counts()[Count.DIRTY_WALKS] == 1


# ---------------------------------------------------------------- an MMU and a TLB


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["cc1", "sort"])
def test_misses_are_those_of_a_tlb(name):
    """Real traces: page tables in front of it change nothing about a TLB's hits."""
    accesses = load_memory_trace(name).pages(fetches=False, limit=200_000)
    va = accesses.words << np.uint64(12)
    where = np.unique(va)
    memory = Memory(4096)
    t = Tables(memory, formats.FOUR_LEVEL)
    t.map(where, PAGE * (np.arange(where.size, dtype=np.uint64) + 2048))
    for geometry in ("skylake", make_geometry((16, 4), (128, 12))):
        mmu, tlb = Mmu(memory.words, t.registers(), geometry), Tlb(geometry)
        mmu.access(va)
        counts = mmu.counts()
        want = tlb.run(accesses)
        assert counts[Count.ACCESSES] == len(accesses)
        assert counts[Count.WALKS] == want.walks
        assert counts[Count.HITS_1] + counts[Count.HITS_2] == len(accesses) - want.walks
        assert counts[Count.FAULTS] == 0


# ---------------------------------------------------------------- what is refused


def one_page(**options):
    return Space([BASE], make_geometry((4, 4)), **options)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        ((99,), "no event has the number 99"),
        ((Event.READ, BASE, 8), "flags 8"),
        ((Event.STORE, 0x1004, 0), "store to 0x1004"),
        ((Event.STORE, 512 * 4096, 0), "store to 0x200000"),
        ((Event.STORE, 0, 0, 2), "a store of 2 bytes"),
        ((Event.INVPCID_SINGLE, 0, 4096), "PCID 4096"),
        ((Event.INVPCID_ADDRESS, 1 << 47, 0), "0x800000000000 is not canonical"),
        ((Event.INVVPID_ADDRESS, 1 << 62, 1), "is not canonical"),
        ((Event.INVVPID_ADDRESS, BASE, 0), "VPID 0"),
        ((Event.INVVPID_SINGLE, 0, 0), "VPID 0"),
        ((Event.INVVPID_SINGLE_NONGLOBAL, 0, 0), "VPID 0"),
        ((Event.INVVPID_SINGLE, 0, 16), "VPID 16"),
        ((Event.ENTER, 0x1000, 16), "VPID 16"),
        ((Event.FREE, 512), "frame 0x200"),
        ((Event.LOAD_CR3, 1 << 45), "CR3"),
    ],
)
def test_events_that_make_no_sense(event, says):
    s = one_page()
    with pytest.raises(TlbError, match=says) as e:
        s.mmu.do(*event)
    assert "event 0" in str(e.value)
    assert s.mmu.counts()[Count.ACCESSES] == 0


def test_pcids_need_pcide():
    """INVPCID of another PCID than 0 raises #GP without CR4.PCIDE (SDM vol. 2A, INVPCID)."""
    s = one_page(flags=0)
    for event in (Event.INVPCID_SINGLE, Event.INVPCID_ADDRESS):
        with pytest.raises(TlbError, match=r"PCID 1 without CR4\.PCIDE"):
            s.mmu.do(event, BASE, 1)
        s.mmu.do(event, BASE, 0)


def test_the_first_of_several_wrong_events_is_named():
    wrong = make_events([Event.READ, Event.READ, Event.READ], [BASE] * 3, [0, 9, 8])
    with pytest.raises(TlbError, match="event 1: flags 9"):
        one_page().mmu.run(wrong)


def test_the_last_vpid_is_one():
    s = one_page()
    s.mmu.do(Event.ENTER, s.tables.root, 15)
    s.read(BASE)
    s.mmu.do(Event.INVVPID_SINGLE, 0, 15)
    assert s.read(BASE)[Count.WALKS] == 1


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda s: s.mmu.access(BASE, 3), TlbError, "kind of access"),
        (lambda s: s.mmu.access(BASE, cpu=1), TlbError, "CPU 1; there are 1"),
        (lambda s: s.mmu.access(-1), TlbError, "a of events must be 0 to"),
        (lambda s: s.mmu.access([1.5]), TlbError, "integers"),
        (lambda s: s.mmu.run(np.zeros(3)), TlbError, "EVENT_DTYPE"),
        (lambda s: make_events([1, 2], [1, 2, 3]), TlbError, "differ in length"),
        (lambda s: Mmu(s.tables.memory.words, s.tables.registers(), 3), TlbError, "geometry"),
        (lambda s: Mmu(np.zeros(9), s.tables.registers(), "skylake"), WalkError, "uint64"),
        (lambda s: Mmu(s.tables.memory.words, 3, "skylake"), WalkError, "Registers"),
        (lambda s: one_page(cpus=65), TlbError, "cpus"),
    ],
)
def test_wrong_arguments(call, error, says):
    with pytest.raises(error, match=says):
        call(one_page())


def test_a_table_outside_of_memory_stops_the_run_and_names_the_event():
    s = one_page()
    s.store(BASE, lambda e: e & 0xFFF | 0x7FFF_F000, level=2)
    with pytest.raises(WalkError, match=r"event 1 .*outside of memory"):
        s.mmu.access([BASE + HUGE, BASE, BASE])
    assert s.mmu.counts()[Count.ACCESSES] == 2


def test_a_cr3_without_pdptes_is_refused():
    s = Space([0x4000_0000], make_geometry((4, 4)), formats.PAE)
    s.tables.memory.words[511 * 512] = 1 | 1 << 45
    with pytest.raises(WalkError, match="no PDPTEs"):
        s.mmu.do(Event.LOAD_CR3, 511 * 4096)


def test_32_bit_tables():
    """Entries of 4 bytes: stores of 4, large pages of 4 MiB, addresses of 32 bits."""
    s = Space([0x4000_0000, 0x4000_1000], "pentium4", formats.TWO_LEVEL)
    s.tables.map(0x8000_0000, 0, 22)
    assert s.read(0x4000_1000)[Count.REFERENCES] == 2
    s.store(0x4000_1000, lambda e: 0)
    s.mmu.do(Event.INVLPG, 0x4000_1000)
    assert s.read(0x4000_1000)[Count.FAULTS] == 1
    assert s.read(0x4000_0000)[Count.WALKS] == 1  # its neighbour in the word is as it was
    assert s.read(0x8012_3456)[Count.REFERENCES] == 1
    assert s.mmu.entries()["page"].tolist().count("4M") == 1
    with pytest.raises(TlbError, match="too wide"):
        s.read(1 << 32)
