"""Walks against a slow twin on random tables: one- and two-dimensional, single and many."""

import contextlib

import numpy as np
import pytest
from conftest import examples
from forests_x86 import FRAMES, MODES, SECONDS, Forest, twin_of
from hypothesis import given, strategies as st
from naive_x86 import Access, EptTables, Guest, NptTables, judge
from numba.core import config as numba_config

from pvmmu.x86 import Memory, Tables, bits, formats, nest, walk_many, walk_nested_many, walk_one
from pvmmu.x86.errors import WalkError
from pvmmu.x86.plan import NO_PLAN, first_plan, second_plan
from pvmmu.x86.registers import Ept, replace
from pvmmu.x86.walk import guest_format, load_pdptes
from pvmmu.x86.walk_run import Accesses, Results, walk_blocks
from pvmmu.x86.walk_state import new_scratch

seeds = st.integers(0, 2**32 - 1)
few = examples(12)


def twin_guest(forest: Forest) -> Guest:
    r = forest.registers
    in_registers = r.format.name == "PAE" and (
        forest.second is None or isinstance(forest.second, Ept)
    )
    pdptes = load_pdptes(forest.words, r, forest.second) if in_registers else None
    return twin_of(r, pdptes)


def twin_second(second):
    if second is None:
        return None
    if isinstance(second, Ept):
        return EptTables(
            second.eptp, second.maxphyaddr, second.execute_only, second.mode_based_execute
        )
    return NptTables(twin_of(second.host))


def run(forest, va, kind, user, ac, **options):
    if forest.second is None:
        return walk_many(forest.words, forest.registers, va, kind, user, ac, **options)
    return walk_nested_many(
        forest.words, forest.registers, forest.second, va, kind, user, ac, **options
    )


def compare(forest, n):
    """All accesses of a forest at once; those that leave the memory must be refused by name."""
    g, second = twin_guest(forest), twin_second(forest.second)
    va, kind, user, ac = forest.accesses(n)
    want, outside = [], []
    for i in range(n):
        a = Access(int(kind[i]), bool(user[i]), bool(ac[i]))
        try:
            want.append(judge(forest.words, g, int(va[i]), a, second))
        except IndexError:
            outside.append(i)
    inside = np.setdiff1d(np.arange(n), outside)
    r = run(forest, va[inside], kind[inside], user[inside], ac[inside])
    columns = {
        "vector": r.vector, "error": r.error_code, "pa": r.pa, "shift": r.page_shift,
        "level": r.level, "references": r.references,
    }  # fmt: skip
    if forest.second is not None:
        columns |= {"reason": r.exit_reason, "qualification": r.exit_qualification}
    for name, got in columns.items():
        expected = np.array([w[name] for w in want], object)
        wrong = np.flatnonzero(got.astype(object) != expected)
        assert not len(wrong), (name, want[wrong[0]], got[wrong[0]], hex(va[inside][wrong[0]]))
    updates = [[] for _ in want]
    for k, at, value in zip(r.update_access, r.update_pa, r.update_value, strict=True):
        updates[k].append((int(at), int(value)))
    assert updates == [w["updates"] for w in want]
    for i, w in enumerate(want):
        if forest.second is not None:
            assert int(r.gpa[i]) == w["gpa"]
    for i in outside[:2]:
        with pytest.raises(WalkError, match="outside"):
            run(forest, va[i : i + 1], kind[i : i + 1], user[i : i + 1], ac[i : i + 1])
    return want


@pytest.mark.parametrize("mode", MODES)
@few
@given(seed=seeds)
def test_one_dimension(mode, seed):
    compare(Forest(seed, mode), 150)


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("mode", MODES)
@examples(4)
@given(seed=seeds)
def test_two_dimensions(mode, second, seed):
    try:
        forest = Forest(seed, mode, second)
        twin_guest(forest)
    except WalkError:  # the second dimension does not map the PDPTEs
        return
    compare(forest, 100)


def test_the_random_tables_reach_everything():
    """The comparison above means something only if all outcomes occur."""
    vectors, reasons, codes, shifts = set(), set(), set(), set()
    for seed in range(14):
        for mode in MODES:
            for second in (None, *SECONDS):
                try:
                    want = compare(Forest(seed, mode, second), 60)
                except WalkError:
                    continue
                vectors |= {w["vector"] for w in want}
                reasons |= {w["reason"] for w in want}
                codes |= {w["error"] for w in want}
                shifts |= {w["shift"] for w in want}
    assert vectors == {0, 13, 14}
    assert reasons == {0, 48, 49, 0x400}
    assert shifts == {0, 12, 21, 22, 30}
    assert codes >= {-1, 0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 16, 17, 20, 21, 25, 29}
    assert codes >= {33, 35, 37, 39, 64, 65, 66, 67, 68, 69, 70, 71}  # keys, shadow stacks


@pytest.mark.parametrize("mode", ["4-level", "5-level", "PAE"])
def test_frames_that_belong_to_guests(mode):
    """RMP violations (APM vol. 2 §15.36.10), of accesses and of the flags that they set."""
    faults = 0
    for seed in range(6):
        forest = Forest(seed, mode, None, 0.3)
        forest.registers = replace(forest.registers, vendor="AMD", cr4=MODES[mode][0])
        g, owned = twin_guest(forest), np.zeros(FRAMES, bool)
        owned[forest.rng.integers(0, FRAMES, 6)] = True
        va, kind, user, ac = forest.accesses(150)
        want, kept = [], []
        for i in range(va.size):
            a = Access(int(kind[i]), bool(user[i]), bool(ac[i]))
            with contextlib.suppress(IndexError):
                want.append(judge(forest.words, g, int(va[i]), a, None, owned))
                kept.append(i)
        how = va[kept], kind[kept], user[kept], ac[kept]
        r = walk_many(forest.words, forest.registers, *how, owned=owned)
        assert r.error_code.tolist() == [w["error"] for w in want]
        assert r.pa.tolist() == [w["pa"] for w in want]
        updates = [(k, *u) for k, w in enumerate(want) for u in w["updates"]]
        assert updates == list(zip(r.update_access, r.update_pa, r.update_value, strict=True))
        faults += sum(w["error"] >> 31 == 1 for w in want)
        i = next(i for i, w in zip(kept, want, strict=True) if w["error"] >> 31 == 1)
        w = walk_one(forest.words, forest.registers, int(va[i]), int(kind[i]), user[i], ac[i],
                     owned=owned)  # fmt: skip
        assert w.error_code >> 31 == 1 and [c.what for c in w.checks if not c.passed] == [
            "reverse map"
        ]
    assert faults > 20


@pytest.mark.parametrize("second", [None, "EPT4-AD", "EPT5-AD", "NPT 4-level"])
@pytest.mark.parametrize("mode", MODES)
def test_lockstep_blocks_agree_with_the_twin(mode, second):
    """Tidy tables, so that blocks are walked in lockstep; then with rare surprises."""
    for seed, rough in ((1, 0.0), (2, 0.0), (3, 0.004)):
        forest = Forest(seed, mode, second, rough)
        settle(forest)
        compare(forest, 256)


def settle(forest):
    """Make all accesses once, so that accessed and dirty flags are set."""
    va, kind, user, ac = (np.tile(x, 3) for x in Forest.accesses(forest, 256))
    state = forest.rng.bit_generator.state
    for _ in range(3):
        run(forest, va, np.ones_like(kind), user, ac, apply=True)
    forest.rng.bit_generator.state = state


@pytest.mark.parametrize("shift", [12, 21, 30, 39])
@pytest.mark.parametrize("second", [None, "EPT4-AD"])
def test_blocks_really_go_in_lockstep(second, shift):
    """Wherever the walks of a block part: one by one they would be ten times as slow."""
    forest = Forest(5, "4-level", second, 0.0)
    settle(forest)
    n = 256
    va, *_ = forest.accesses(n)
    low, part = np.uint64(shift), np.arange(n, dtype=np.uint64)
    va[:] = va[0] & np.uint64((1 << 47) - 1) & ~(np.uint64(0xFF) << low) | part << low
    zeros, ones = np.zeros(n, np.uint8), np.ones(n, np.uint8)
    run(forest, va, ones, ones, zeros, apply=True)
    fmt = guest_format(forest.registers, forest.second)
    plan = NO_PLAN if second is None else second_plan(forest.second)
    root2 = np.uint64(forest.second.root if second else 0)
    r = Results(
        *(np.zeros(n, t) for t in (np.uint8, np.int64, np.uint64, np.uint8, np.uint8, np.uint8))
    )
    done = walk_blocks(
        forest.words, first_plan(forest.registers, fmt), np.uint64(forest.registers.root),
        np.zeros(4, np.uint64), plan, root2, Accesses(va, zeros, ones, zeros), 0, r,
        np.zeros(n, np.uint64), new_scratch(),
    )  # fmt: skip
    assert done == n


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("second", [None, "EPT4-AD", "NPT 4-level"])
def test_applied_updates_are_seen_by_later_accesses(mode, second):
    for seed in range(3):
        forest = Forest(seed, mode, second, 0.3)
        try:
            g = twin_guest(forest)
        except WalkError:
            continue
        va, kind, user, ac = forest.accesses(120)
        twin, words = twin_second(forest.second), forest.words.copy()
        expected, keep = [], []
        for i in range(len(va)):
            a = Access(int(kind[i]), bool(user[i]), bool(ac[i]))
            try:
                w = judge(words, g, int(va[i]), a, twin)
            except IndexError:
                continue
            keep.append(i)
            for at, value in w["updates"]:
                expected.append((len(keep) - 1, at, value))
                store(words, at, value, forest, at >> 12 >= 32)
        r = run(forest, va[keep], kind[keep], user[keep], ac[keep], apply=True)
        got = list(zip(r.update_access, r.update_pa, r.update_value, strict=True))
        assert got == expected
        assert np.array_equal(forest.words, words)


def store(words, at, value, forest, second):
    fmt = forest.second.format if second else forest.registers.format
    if fmt.entry_bytes == 4:
        words.view(np.uint32)[at // 4] = value
    else:
        words[at // 8] = value


@pytest.mark.parametrize("second", [None, "EPT5-AD", "NPT PAE"])
@pytest.mark.parametrize("mode", MODES)
def test_a_single_walk_says_the_same_and_shows_every_reference(mode, second):
    shown = set()
    for seed in range(4):
        forest = Forest(seed, mode, second)
        try:
            g = twin_guest(forest)
        except WalkError:
            continue
        for va, kind, user, ac in zip(*forest.accesses(40), strict=True):
            a = Access(int(kind), bool(user), bool(ac))
            try:
                want = judge(forest.words, g, int(va), a, twin_second(forest.second))
            except IndexError:
                continue
            w = walk_one(
                forest.words, forest.registers, int(va), int(kind), user, ac, second=forest.second
            )
            got = (w.vector, w.error_code, w.pa, w.page_shift, w.exit_reason, w.exit_qualification)
            assert got == tuple(
                want[k] for k in ("vector", "error", "pa", "shift", "reason", "qualification")
            )
            assert list(w.updates) == want["updates"]
            in_memory = [r for r in w.path if r.number]
            assert len(in_memory) == w.references == want["references"]
            assert [r.number for r in in_memory] == list(range(1, len(in_memory) + 1))
            failed = [c for c in w.checks if not c.passed]
            assert len(failed) == (1 if w.vector or w.exit_reason else 0), str(w)
            assert w.verdict in str(w)
            shown |= {c.what for c in failed}
    assert len(shown) >= 4


# ---------------------------------------------------------------- blocks with one odd access

RESERVED = 1 << 45


def streets(nested):
    """Tables with one region for each thing that may happen; flags are set everywhere."""
    guest = Memory(256, seed=3)
    t = Tables(guest, formats.FOUR_LEVEL)
    pages, flags = 4096 * np.arange(128, dtype=np.uint64), bits.P | bits.RW | bits.US
    done = flags | bits.A | bits.D
    regions = {"plain": 0x10_0000_0000, "far": 0x7F00_0000_0000, "reserved": 0x20_0000_0000,
               "table reserved": 0x28_0000_0000, "clean": 0x30_0000_0000, "old": 0x38_0000_0000,
               "read-only": 0x40_0000_0000, "supervisor": 0x48_0000_0000, "absent": 0x50_0000_0000,
               "no execute": 0x58_0000_0000, "large": 0x60_0000_0000, "huge": 0x68_0000_0000,
               "high": 0xFFFF_8800_0000_0000}  # fmt: skip
    own = {"clean": done & ~bits.D, "old": done & ~bits.A, "read-only": done & ~bits.RW,
           "supervisor": done & ~bits.US, "high": done & ~bits.US, "absent": done & ~bits.P,
           "reserved": done | RESERVED, "no execute": done | bits.XD}  # fmt: skip
    for name, va in regions.items():
        shift = {"large": 21, "huge": 30}.get(name, 12)
        at = np.uint64(va) + (pages << np.uint64(shift - 12))[: 128 if shift == 12 else 2]
        pa = (pages if shift == 12 else (pages[:2] << np.uint64(shift - 12)) * 0)[: at.size]
        t.map(at, pa, shift, own.get(name, done), flags | bits.A)
    t.store(x := t.entry_at(regions["table reserved"], 2), t.load(x) | RESERVED)
    if not nested:
        return t.memory.words, t, None, regions
    host = Memory(1024, seed=4)
    second = nest(guest, host, formats.EPT_FOUR_LEVEL)
    ept = second.second()
    warm = np.concatenate([np.uint64(va) + pages[:64] for va in regions.values()])
    walk_nested_many(
        host.words, t.registers(cr0=1 << 31 | 1), ept, warm, 1, False, True, apply=True
    )
    return host.words, t, ept, regions


class Street:
    """Stands in for a Forest in `compare`."""

    def __init__(self, words, registers, second, va, kind, user, ac):
        self.words, self.registers, self.second = words, registers, second
        self._all = va, kind, user, ac

    def accesses(self, n):
        return tuple(x[:n] for x in self._all)


@pytest.mark.parametrize("nested", [False, True])
def test_blocks_with_odd_accesses_among_plain_ones(nested):
    words, t, second, regions = streets(nested)
    rng = np.random.default_rng(1)
    n = 192
    everything = [(name, kind, user, ac) for name in regions for kind in range(3)
                  for user in (0, 1) for ac in (0, 1)]  # fmt: skip
    if nested or numba_config.DISABLE_JIT:
        everything = everything[::3]
    for smap in (True, False):
        r = t.registers() if smap else t.registers(cr4=bits.CR4_PAE, cr0=1 << 31 | 1)
        for name, kind, user, ac in everything:
            base = "plain" if user else "high"
            va = np.uint64(regions[base]) + rng.integers(0, 64 * 4096, n).astype(np.uint64)
            kinds = rng.integers(0, 2, n).astype(np.uint8)
            users, acs = np.full(n, user, np.uint8), np.full(n, ac, np.uint8)
            j = rng.integers(64, 128)  # one odd access in the second of three blocks
            va[j], kinds[j] = regions[name] + 4096 * int(rng.integers(64)), kind
            compare(Street(words, r, second, va, kinds, users, acs), n)


@pytest.mark.parametrize("nested", [False, True])
def test_blocks_of_odd_accesses_only(nested):
    """All accesses alike, region after region: what blocks share must not outlive them."""
    words, t, second, regions = streets(nested)
    rng = np.random.default_rng(2)
    for kind in range(3):
        for user in (0, 1):
            va = np.concatenate([
                np.uint64(start) + rng.integers(0, 64 * 4096, 64).astype(np.uint64)
                for start in regions.values()
            ])  # fmt: skip
            n = va.size
            same = [np.full(n, x, np.uint8) for x in (kind, user, 0)]
            compare(Street(words, t.registers(), second, va, *same), n)


def test_a_block_of_mixed_page_sizes():
    """A page table at 4 KiB looks like a 2-MiB page at 0 with PAT, but for the page-size bit."""
    words = np.zeros(8 * 512, np.uint64)
    table, page = bits.P | bits.RW | bits.US | bits.A, bits.D
    words[2 * 512], words[3 * 512] = 0x3000 | table, 0x4000 | table
    words[4 * 512 : 4 * 512 + 2] = 0x1000 | table, table | page | bits.PS
    words[512:1024] = (np.arange(512, dtype=np.uint64)[::-1] << np.uint64(12)) | table | page
    r = Tables(Memory(2), formats.FOUR_LEVEL).registers(cr3=0x2000)
    va = np.random.default_rng(1).integers(0, 1 << 22, 128).astype(np.uint64)
    zeros, ones = np.zeros(128, np.uint8), np.ones(128, np.uint8)
    compare(Street(words, r, None, va, zeros, ones, zeros), 128)


def test_a_block_whose_addresses_differ_at_the_top_only():
    """Sixty-four regions of 512 GiB, each with a page of its own: nothing of the walk is shared."""
    t = Tables(Memory(256, seed=5), formats.FOUR_LEVEL)
    va = (np.arange(64, dtype=np.uint64) << np.uint64(39)) | np.uint64(0x40_1000)
    done = bits.P | bits.RW | bits.US | bits.A | bits.D
    t.map(va, 4096 * np.arange(64, dtype=np.uint64), 12, done, done & ~bits.D)
    va = np.concatenate([va, va])
    same = [np.full(128, x, np.uint8) for x in (0, 1, 0)]
    compare(Street(t.memory.words, t.registers(), None, va, *same), 128)


def test_a_block_with_a_memory_type_that_does_not_exist():
    words, t, ept, regions = streets(True)
    va = np.uint64(regions["plain"]) + 4096 * (np.arange(128, dtype=np.uint64) % np.uint64(64))
    same = [np.full(128, x, np.uint8) for x in (0, 1, 0)]
    assert not walk_nested_many(words, t.registers(), ept, va, *same).exit_reason.any()
    page = next(i for i in range(64) if i not in t.memory.used)  # no table of the guest
    place, at = 0, ept.root
    for level in ept.format.levels:
        place = at + 8 * (4096 * page >> level.shift & 511)
        at = int(words[place // 8]) & 0xF_FFFF_FFFF_F000
    words[place // 8] ^= np.uint64(4 << 3)  # write-back is 6; there is no 2
    r = walk_nested_many(words, t.registers(), ept, va, *same)
    assert np.flatnonzero(r.exit_reason == 49).tolist() == [page, page + 64]
    compare(Street(words, t.registers(), ept, va, *same), 128)
