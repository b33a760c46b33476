"""TLBs against dictionaries in order of last use, peers, and the rules of every flush."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import examples
from hypothesis import given, strategies as st
from naive_x86 import NaiveTlb, misses_of

from pvmmu.errors import PvmmuError
from pvmmu.guest.readers.memory.memory_trace import load_memory_trace
from pvmmu.x86 import (
    Reach,
    Tlb,
    geometry_names,
    load_geometry,
    make_geometry,
    pages,
    shipped_geometry,
)
from pvmmu.x86.errors import GeometryError, TlbError
from pvmmu.x86.geometry import SHIFTS

few = examples(15)
seeds = st.integers(0, 2**32 - 1)

#: Small and odd, so that everything happens: splits, PLRU, separate and common arrays.
ODD = """
name = "odd"
[[structure]]
name = "i1"
holds = "instruction"
pages = ["4K", "2M"]
splits = ["1G"]
entries = 6
ways = 3
[[structure]]
name = "d1 small"
holds = "data"
entries = 8
ways = 4
policy = "plru"
[[structure]]
name = "d1 large"
holds = "data"
pages = ["2M", "4M"]
splits = ["1G"]
entries = 2
ways = 1
[[structure]]
name = "l2"
level = 2
pages = ["4K", "2M"]
entries = 40
ways = 5
[[structure]]
name = "l2 huge"
level = 2
pages = ["1G"]
entries = 2
ways = 2
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    path = tmp_path_factory.mktemp("tlb") / "odd.toml"
    path.write_text(ODD)
    return load_geometry(path)


def synthetic(seed=20240607, n=20000):
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, 4097)
    return {
        "uniform": rng.integers(0, 600, n).astype(np.uint64),
        "zipf": rng.choice(4096, n, p=weight / weight.sum()).astype(np.uint64),
        "stride": (np.arange(n) // 4 % 2048).astype(np.uint64),
        "few": rng.integers(0, 5, n).astype(np.uint64),
        "loops": (17 * np.tile(np.repeat(np.arange(90), 3), n // 270 + 1)[:n]).astype(np.uint64),
    }  # fmt: skip


def of(numbers, **kw):
    return pages(numbers << np.uint64(12), **kw)


# ---------------------------------------------------------------- counting misses


@pytest.mark.parametrize("name", synthetic())
@pytest.mark.parametrize("l2", [(128, 12), (16, 4), (64, 16), None])
def test_misses_are_those_of_dictionaries(name, l2):
    """Both fast kernels and the general one, against OrderedDict, which is Dinero's LRU."""
    numbers = synthetic()[name]
    g = make_geometry((16, 4), l2)
    naive, tlb, general = NaiveTlb(g), Tlb(g), Tlb(g)
    want = [naive.access(int(p) << 12) for p in numbers]
    got = tlb.run(of(numbers))
    assert got.accesses == len(numbers)
    assert got.walks == sum(x == (2 if l2 else 1) for x in want)
    assert got.misses[0] == sum(x > 0 for x in want)
    np.testing.assert_array_equal(general.levels(of(numbers)), want)
    same = ["va", "age"]
    assert tlb.entries()[same].equals(general.entries()[same])


@pytest.mark.parametrize("name", synthetic())
def test_both_fast_kernels_agree(name, monkeypatch):
    """Which one runs depends on the accesses; the results must not."""
    numbers, counts = synthetic()[name], []
    for share in (-1.0, 2.0):  # always the ladder, never the ladder
        monkeypatch.setattr("pvmmu.x86.tlb._PREDICTABLE", share)
        monkeypatch.setattr("pvmmu.x86.tlb._PROBE", 16)
        tlb = Tlb(make_geometry((16, 4), (128, 12)))
        counts.append([*tlb.run(of(numbers)).misses, *tlb.entries()["va"]])
    assert counts[0] == counts[1]


def test_runs_may_be_cut_anywhere():
    numbers = synthetic()["zipf"]
    whole, pieces = (Tlb("skylake") for _ in range(2))
    want = whole.run(of(numbers))
    got = [pieces.run(of(x)) for x in np.array_split(numbers, 7)]
    assert sum(x.walks for x in got) == want.walks
    assert (sum(x.misses for x in got) == want.misses).all()


def real_and_synthetic():
    cut = {n: load_memory_trace(n).pages(limit=200_000).words for n in ("cc1", "sort")}
    return synthetic() | cut


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["cc1", "sort"])
def test_misses_of_real_traces_are_those_of_dictionaries(name):
    numbers, g = real_and_synthetic()[name], make_geometry((16, 4), (128, 12))
    naive, tlb = NaiveTlb(g), Tlb(g)
    want = [naive.access(int(p) << 12) for p in numbers]
    got = tlb.run(of(numbers))
    assert got.misses[0] == sum(x > 0 for x in want)
    assert got.walks == sum(x == 2 for x in want)


@pytest.mark.compiled
def test_pycachesim_counts_the_same():
    if os.environ.get("REQUIRE_PEERS") != "1":
        pytest.importorskip("cachesim", reason="not installed (make peers)")
    import cachesim

    for numbers in real_and_synthetic().values():
        memory = cachesim.MainMemory()
        l2 = cachesim.Cache("L2", 128, 12, 1, "LRU")
        l1 = cachesim.Cache("L1", 16, 4, 1, "LRU", load_from=l2, store_to=l2)
        memory.load_to(l2)
        memory.store_from(l2)
        peer = cachesim.CacheSimulator(l1, memory)
        peer.load(numbers.tolist())
        stats = {s["name"]: s["MISS_count"] for s in peer.stats()}
        got = Tlb(make_geometry((16, 4), (128, 12))).run(of(numbers))
        assert [stats["L1"], stats["L2"]] == [got.misses[0], got.walks]


def test_libcachesim_counts_the_same(tmp_path):
    """It has no sets: fully associative LRU of any size, against one pass for all of them."""
    if os.environ.get("REQUIRE_PEERS") != "1":
        pytest.importorskip("libcachesim", reason="not installed (make peers)")
    from libcachesim import LRU, TraceReader, TraceType

    layout = np.dtype([("time", "<u4"), ("page", "<u8"), ("size", "<u4"), ("next", "<i8")])
    for name, numbers in real_and_synthetic().items():
        records = np.zeros(numbers.size, layout)
        records["page"], records["size"] = numbers + np.uint64(1), 1
        path = tmp_path / f"{name}.oracleGeneral"
        records.tofile(path)
        misses = Reach().add(of(numbers)).fully_associative()
        for entries in (1, 16, 64, 1536):
            reader = TraceReader(str(path), TraceType.ORACLE_GENERAL_TRACE)
            share, _ = LRU(entries, hashpower=12).process_trace(reader)
            assert round(share * numbers.size) == misses[min(entries, len(misses) - 1)]


@few
@given(seed=seeds)
def test_every_kind_of_page_and_every_flush(seed, odd):
    """Random accesses and invalidations, against sets of dictionaries."""
    rng = np.random.default_rng(seed)
    tlb, naive = Tlb(odd), NaiveTlb(odd)
    sizes = ["4K", "2M", "4M", "1G"]
    for _ in range(60):
        n = 40
        which = rng.integers(0, 4, n)
        va = rng.integers(0, 1 << 26, n).astype(np.uint64) << np.uint64(8)
        va |= rng.choice(np.array([0, 1 << 47, (1 << 64) - (1 << 47)], np.uint64), n)
        # a page is global or not, by its address
        is_global, fetch = (va >> np.uint64(22)) % np.uint64(3) == 0, rng.random(n) < 0.4
        got = tlb.levels(pages(va, np.array(SHIFTS)[which], is_global, fetch))
        mask = (1 << 57) - 1
        want = [
            naive.access(int(v) & mask, sizes[w], bool(g), bool(f))
            for v, w, g, f in zip(va, which, is_global, fetch, strict=True)
        ]
        np.testing.assert_array_equal(got, want)
        name, args = random_flush(rng, int(va[0]))
        assert getattr(tlb, name)(*args[0], **args[1]) >= getattr(naive, name)(
            *args[0], **args[1]
        ), name
        resync(tlb, naive, name)


def random_flush(rng, va):
    pcid, vpid = int(rng.integers(3)), int(rng.integers(3))
    return [
        ("invlpg", ((va,), {})),
        ("invpcid", (("address", pcid, va), {})),
        ("invpcid", (("single", pcid), {})),
        ("invpcid", (("all",), {})),
        ("invpcid", (("all nonglobal",), {})),
        ("load_cr3", ((pcid,), {"noflush": False})),
        ("load_cr3", ((pcid,), {"noflush": True})),
        ("toggle_pge", ((), {})),
        ("enter", ((vpid, pcid), {})),
        ("invvpid", (("address", vpid, va), {})),
        ("invvpid", (("single", vpid), {})),
        ("invvpid", (("all",), {})),
        ("invvpid", (("single nonglobal", vpid), {})),
    ][int(rng.integers(13))]


def contents(tlb):
    e = tlb.entries()
    mask = (1 << 57) - 1
    return sorted(
        (s, p, int(v) & mask, g, vp, "global" if g else pc)
        for s, v, p, g, vp, pc in zip(
            e["structure"], e["va"], e["page"], e["global"], e["vpid"], e["pcid"], strict=True
        )
    )


def resync(tlb, naive, name):
    """Same contents; where pieces of large pages are kept, INVLPG may drop more than it must."""
    ours, theirs = contents(tlb), naive.contents()
    extra = [x for x in theirs if x not in ours]
    assert not [x for x in ours if x not in theirs], name
    if extra:
        assert name in ("invlpg", "invpcid", "invvpid")
        assert {x[0] for x in extra} <= {"i1", "d1 large"}, extra
        names = [s.name for s in naive.geometry.structure]
        for structure, page, va, _, vpid, owner in extra:
            shift = dict(zip(("4K", "2M", "4M", "1G"), SHIFTS, strict=True))[page]
            naive.arrays[names.index(structure)].drop(
                lambda k, v, key=(page, va >> shift, vpid, owner): k == key
            )


def test_tree_plru_of_four_ways():
    """A B C D, then A again: the victim is in the other half, and there the older one."""
    tlb = Tlb(make_geometry((1, 4), policy="plru"))
    tlb.run(of(np.array([0, 1, 2, 3, 0, 4], np.uint64)))
    assert sorted(tlb.entries()["va"] >> np.uint64(12)) == [0, 1, 3, 4]
    lru = Tlb(make_geometry((1, 4)))
    lru.run(of(np.array([0, 1, 2, 3, 0, 4], np.uint64)))
    assert sorted(lru.entries()["va"] >> np.uint64(12)) == [0, 2, 3, 4]


# ---------------------------------------------------------------- flushes, one by one


def filled():
    """Pages 1 (PCID 1), 2 (PCID 2), 3 (global) of VPID 0; page 4 (PCID 1) of VPID 7."""
    tlb = Tlb("skylake")
    for vpid, pcid, page, g in (
        (7, 1, 4, False),
        (0, 2, 2, False),
        (0, 1, 3, True),
        (0, 1, 1, False),
    ):
        tlb.enter(vpid, pcid)
        tlb.run(of(np.array([page], np.uint64), global_=g))
    return tlb


def left(tlb):
    return sorted({int(v) >> 12 for v in tlb.entries()["va"]})


@pytest.mark.parametrize(
    ("flush", "remains"),
    [
        (lambda t: t.invlpg(1 << 12), [2, 3, 4]),
        (lambda t: t.invlpg(3 << 12), [1, 2, 4]),  # global pages, too
        (lambda t: t.invlpg(2 << 12), [1, 2, 3, 4]),  # another PCID's
        (lambda t: t.invpcid("address", 2, 2 << 12), [1, 3, 4]),
        (lambda t: t.invpcid("address", 1, 3 << 12), [1, 2, 3, 4]),  # not global pages
        (lambda t: t.invpcid("single", 2), [1, 3, 4]),
        (lambda t: t.invpcid("all"), [4]),
        (lambda t: t.invpcid("all nonglobal"), [3, 4]),
        (lambda t: t.load_cr3(2), [1, 3, 4]),
        (lambda t: t.load_cr3(2, noflush=True), [1, 2, 3, 4]),
        (lambda t: t.toggle_pge(), [4]),
        (lambda t: t.enter(7), [1, 2, 3, 4]),
        (lambda t: t.invvpid("address", 7, 4 << 12), [1, 2, 3]),
        (lambda t: t.invvpid("single", 0), [4]),
        (lambda t: t.invvpid("single nonglobal", 0), [3, 4]),
        (lambda t: t.invvpid("all"), [1, 2, 3]),
        (lambda t: t.clear(), []),
    ],
)
def test_what_each_flush_leaves(flush, remains):
    tlb = filled()
    assert left(tlb) == [1, 2, 3, 4]
    before = len(tlb.entries())
    removed = flush(tlb)
    assert left(tlb) == remains
    assert removed == before - len(tlb.entries())


def test_pcids_share_global_pages_and_nothing_else():
    tlb = Tlb("skylake")
    numbers = np.arange(10, dtype=np.uint64)
    own, shared = of(numbers), of(numbers + np.uint64(100), global_=True)
    tlb.load_cr3(1)
    assert tlb.run(own).walks == tlb.run(shared).walks == 10
    tlb.load_cr3(2)
    assert tlb.run(own).walks == 10 and tlb.run(shared).walks == 0
    tlb.load_cr3(1, noflush=True)
    assert tlb.run(own).walks == 0 and tlb.run(shared).walks == 0
    tlb.enter(3, 1)
    assert tlb.run(own).walks == tlb.run(shared).walks == 10
    tlb.enter(0, 1)
    assert tlb.run(own).walks == tlb.run(shared).walks == 0


def test_large_pages_reach_further_and_have_their_own_entries():
    va = np.arange(0, 64 << 20, 4096, dtype=np.uint64)
    small, large = Tlb("skylake"), Tlb("skylake")
    assert small.run(pages(va)).walks == va.size
    assert large.run(pages(va, 21)).walks == 32
    assert set(large.entries()["page"]) == {"2M"}


def test_fetches_and_data_have_their_own_first_levels():
    tlb = Tlb("skylake")
    numbers = np.arange(8, dtype=np.uint64)
    assert tlb.run(of(numbers)).walks == 8
    got = tlb.levels(of(numbers, fetch=True))
    assert set(got) == {1}  # the second level has them
    assert set(tlb.levels(of(numbers, fetch=True))) == {0}


# ---------------------------------------------------------------- other machines


@pytest.mark.compiled
def test_the_same_counts_without_avx512():
    """LLVM lowers the vectors of the kernels to what the processor has."""
    code = (
        "import numpy as np; from pvmmu.x86 import Tlb, make_geometry, pages, Reach;"
        "r = np.random.default_rng(3);"
        "p = pages(r.integers(0, 3000, 30000).astype('u8') << np.uint64(12));"
        "c = Tlb(make_geometry((16, 4), (128, 12))).run(p); q = Reach(64).add(p);"
        "print(*c.misses, q.misses(16, 4), q.misses(64, 16), q.fully_associative()[100])"
    )
    outputs = []
    for cpu in ("x86-64-v3", "x86-64"):
        env = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
        run = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        outputs.append(run.stdout.split())
    rng = np.random.default_rng(3)
    numbers = rng.integers(0, 3000, 30000).tolist()
    assert outputs[0] == outputs[1]
    assert int(outputs[0][0]) == int(outputs[0][2]) == misses_of(numbers, 16, 4)
    assert int(outputs[0][3]) == misses_of(numbers, 64, 16)
    assert int(outputs[0][4]) == misses_of(numbers, 1, 100)


# ---------------------------------------------------------------- geometries


def test_geometries_that_ship():
    assert {"pentium4", "core2", "nehalem", "skylake", "zen"} <= set(geometry_names())
    for name in geometry_names():
        g = shipped_geometry(name)
        assert g.source and g.year >= 1993
        assert all(w.source for w in g.walk_cache)
        assert g.home(1, 0, False) >= 0 and g.home(1, 0, True) >= 0
    assert [s.entries for s in shipped_geometry("skylake").structure if s.name == "STLB"] == [1536]


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (("entries = 64", "entries = 60"), r"structure\.2: .*sets"),
        (("ways = 4\n", "ways = 0\n"), r"structure\.2\.ways"),
        (("ways = 4\n", "ways = 4\nwhat = 1\n"), r"structure\.2\.what"),
        (('holds = "data"', 'holds = "date"'), r"structure\.2\.holds"),
        (('pages = ["2M", "4M"]\nentries = 32', 'pages = ["4K"]\nentries = 32'), "two places"),
        (('caches = "PDE"', 'caches = "PML4E"'), "two walk caches"),
        (('name = "Skylake"', "name = 3"), "name"),
        (("[[structure]]", "[[structure"), "toml"),
        (('policy = "lru"', 'policy = "lru"'), None),
    ],
)
def test_a_wrong_geometry_names_file_and_field(edit, says, tmp_path):
    from pvmmu.paths import data_path

    text = data_path("tlb", "skylake.toml").read_text()
    old, new = edit
    i = text.find(old, text.index('"DTLB, 4 KiB"') if "structure\\.2" in (says or "") else 0)
    path = tmp_path / "mine.toml"
    path.write_text(text if i < 0 else text[:i] + new + text[i + len(old) :])
    if says is None:
        load_geometry(path)
        return
    with pytest.raises(GeometryError, match=says) as e:
        load_geometry(path)
    assert "mine.toml" in str(e.value)


def test_wrong_geometry_names_suggest_the_nearest():
    with pytest.raises(GeometryError, match="skylake"):
        shipped_geometry("skylak")
    with pytest.raises(GeometryError, match="power of two"):
        make_geometry((3, 4))
    with pytest.raises(GeometryError, match="PLRU"):
        make_geometry((4, 3), policy="plru")
    with pytest.raises(GeometryError, match="No such file"):
        load_geometry("/nowhere/x.toml")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: pages(np.zeros(3)), "va"),
        (lambda: pages(np.array([-1])), "va"),
        (lambda: pages(np.zeros((2, 2), np.uint64)), "va"),
        (lambda: pages(np.zeros(2, np.uint64), 13), "page_shift"),
        (lambda: pages(np.zeros(2, np.uint64), [12, 31]), "page_shift"),
        (lambda: pages(np.zeros(2, np.uint64), 12, [True]), "global_"),
        (lambda: pages(np.zeros(2, np.uint64), fetch=0.5), "fetch"),
        (lambda: Tlb(3), "geometry"),
        (lambda: Tlb("skylake").load_cr3(4096), "pcid"),
        (lambda: Tlb("skylake").enter(16), "vpid"),
        (lambda: Tlb("skylake").invpcid("everything"), "INVPCID"),
        (lambda: Tlb("skylake").invvpid("everything"), "INVVPID"),
        (lambda: Tlb("skylake").invlpg(1 << 64), "va"),
    ],
)
def test_wrong_arguments(call, says):
    with pytest.raises(TlbError, match=says) as e:
        call()
    assert isinstance(e.value, PvmmuError)


def test_no_accesses():
    tlb = Tlb("zen")
    nothing = pages(np.zeros(0, np.uint64))
    assert tlb.run(nothing).walks == 0 and len(tlb.levels(nothing)) == 0


def test_the_level_of_a_single_access():
    t = Tlb(make_geometry((4, 4), (8, 4)))
    one = pages(np.array([5 << 12], np.uint64))
    assert t.levels(one).tolist() == [2]
    assert t.levels(one).tolist() == [0]


def test_invvpid_without_an_address_is_about_page_0():
    t = Tlb(make_geometry((4, 4)))
    t.run(pages(np.array([0, 1 << 12], np.uint64)))
    assert t.invvpid("address", 0) == 1
    assert t.levels(pages(np.array([1 << 12, 0], np.uint64))).tolist() == [0, 1]
