"""VMI and lguest against their slow twins, and what only they show."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from conftest import LITTLE, examples, recorded
from guests import random_trace
from hypothesis import example, given, strategies as st
from naive import CannotRun
from naive_told import NaiveLguest

from pvmmu.errors import ModeError
from pvmmu.guest.trace import COLUMNS, Flag, Op, Platform, Provenance, Trace, TraceBuilder
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes import Lguest, get_mode
from pvmmu.modes.classes import subsets
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Space
from pvmmu.replay import explain, replay

ALL = list(catalogue())
_REMARKS = {Event.QUEUED, Event.REORDERED_WRITE}


def seasoned(trace: Trace, seed: int, touches: bool) -> Trace:
    """A trace with what is known of old entries, A and D in new ones, and (maybe) touches."""
    r = np.random.default_rng(seed)
    columns = {name: trace[name].copy() for name in COLUMNS}
    n = len(trace)
    known = r.choice([0, int(Flag.OLD_KNOWN), int(Flag.OLD_KNOWN | Flag.OLD_PRESENT)], n)
    entry = np.isin(columns["op"], [int(Op.SET_PTE), int(Op.PTE_GET_AND_CLEAR), int(Op.SET_PMD)])
    columns["flags"][entry] |= known[entry].astype(columns["flags"].dtype)
    some = (columns["op"] == Op.SET_PTE) & (r.random(n) < 0.3) & (columns["value"] != 0)
    columns["value"][some] &= ~np.uint64(0x60)
    if touches:
        faults = np.flatnonzero(columns["op"] == Op.READ_CR2)
        columns["op"][faults] = Op.TOUCH
        columns["mm"][faults], columns["va"][faults] = (
            columns[c][faults - 1] for c in ("mm", "va")
        )
    return Trace(columns, trace.mms, trace.callers, trace.provenance)


def some_hooks(seed: int) -> HookSet:
    r = random.Random(seed)
    missing = r.sample(ALL, r.choice((0, 0, 1, 2, 4, 30)))
    needed = {"write_cr3", "read_cr2", "flush_tlb_user", "flush_tlb_kernel", "flush_tlb_one_user"}
    return HookSet.of(*(n for n in ALL if n not in missing or n in needed))


def check_lguest(trace, hooks, ring=64, slots=4, working=64) -> bool:
    got = Lguest(ring=ring, slots=slots, working=working).run(trace, hooks)
    exact = bool((trace["op"] == Op.TOUCH).any())
    try:
        least = NaiveLguest(trace, hooks, ring, slots).run()
        most = least if exact else NaiveLguest(trace, hooks, ring, slots, working).run()
    except CannotRun:
        assert isinstance(got, Infeasible), "the twin cannot run this design"
        return False
    assert not isinstance(got, Infeasible), got
    for counts, want in ((got.low, least), (got.high, least | most)):
        ours = {e: int(counts[e]) for e in Event if counts[e] and e not in _REMARKS}
        assert ours == {e: n for e, n in want.items() if n}
    return True


@examples(300)
@given(
    seed=st.integers(0, 10**6), hooks=st.integers(0, 10**6), touches=st.booleans(),
    ring=st.sampled_from((1, 3, 64)), slots=st.sampled_from((1, 2, 4)),
    working=st.sampled_from((1, 8, 10**6)),
)  # fmt: skip
@example(seed=9939, hooks=0, touches=False, ring=1, slots=1, working=1)  # a load left out by a hook
def test_lguest_equals_its_twin(seed, hooks, touches, ring, slots, working):
    trace = seasoned(random_trace(seed, 60), seed, touches)
    check_lguest(trace, some_hooks(hooks), ring, slots, working)


@pytest.mark.compiled
def test_enough_random_designs_run_under_lguest():
    ran = [
        check_lguest(seasoned(random_trace(s, 60), s, bool(s % 2)), some_hooks(s))
        for s in range(80)
    ]
    assert sum(ran) > 30


@pytest.mark.compiled
@pytest.mark.parametrize(
    "name", ["fork.16", "forkexec.0", "shloop", "mprotect.33", "pipeline-6.12"]
)
@pytest.mark.parametrize(
    "hooks", ["lguest", "linux-6.1", "lguest -set_pte_at", "lguest -pte_update"]
)
def test_lguest_equals_its_twin_on_real_streams(name, hooks):
    check_lguest(recorded(name), HookSet.parse(hooks))


def guest() -> tuple[TraceBuilder, int]:
    b = TraceBuilder()
    return b, b.mm("a")


def built(b: TraceBuilder, **platform) -> Trace:
    return b.build(Provenance("test", "2.6.27", "tests", Platform(**platform)))


def pte(b, mm, index, value=0x67, op=Op.SET_PTE, **kw):
    kw = {"flags": int(Flag.CURRENT_MM)} | kw
    b.add(op, mm=mm, table=9, index=index, va=index << 12, value=value, **kw)


def test_the_end_of_an_empty_bracket_is_a_hypercall():
    """lguest_leave_lazy_mode calls the host whether anything waits or not."""
    b, _ = guest()
    b.add(Op.LAZY_ENTER)
    b.add(Op.LAZY_LEAVE)
    assert replay(built(b), "lguest", "lguest")["lguest_call"] == 1
    assert replay(built(b), "lguest -lazy_mmu", "lguest").entries == 0


def test_the_call_that_finds_the_ring_full_takes_it_along():
    b, mm = guest()
    b.add(Op.LAZY_ENTER)
    for i in range(66):
        pte(b, mm, i)
    b.add(Op.LAZY_LEAVE)
    counts = replay(built(b), "lguest", "lguest")
    assert counts["lguest_ring"] == 65  # 64, and the one after the direct call
    assert counts["lguest_call"] == 2  # the 65th store, the end


def test_a_store_without_address_drops_everything():
    b, mm = guest()
    for i in range(8):
        b.add(Op.FAULT, mm=mm, va=i << 12, value=6)
        pte(b, mm, i)
    with_address, without = (
        replay(built(b), hooks, "lguest") for hooks in ("lguest", "lguest -set_pte_at")
    )
    assert with_address["shadow_fault"] == 1  # the first, which makes the shadow's table
    assert without.low[Event.SHADOW_FAULT] == 8
    assert without.low[Event.SHADOW_DROPPED] == 7


def test_a_fifth_page_directory_costs_a_shadow():
    b = TraceBuilder()
    spaces = [b.mm(str(i)) for i in range(5)]
    for mm in spaces:
        b.add(Op.LOAD_CR3, mm=mm)
        b.add(Op.FAULT, mm=mm, va=0x1000, value=6)
        pte(b, mm, 1)
    for mm in spaces:
        b.add(Op.LOAD_CR3, mm=mm)
        b.add(Op.TOUCH, mm=mm, va=0x1000)
    few, enough = (replay(built(b), "lguest", f"lguest:slots={n}") for n in (4, 64))
    assert enough["shadow_fault"] == 5
    assert few["shadow_fault"] > 5


def test_a_victim_loses_what_its_shadow_holds():
    b = TraceBuilder()
    for mm in (b.mm("first"), b.mm("second")):
        b.add(Op.LOAD_CR3, mm=mm)
        b.add(Op.FAULT, mm=mm, va=0x1000, value=6)
        pte(b, mm, 1)
    dropped = [replay(built(b), "lguest", f"lguest:slots={n}")["shadow_dropped"] for n in (1, 64)]
    assert dropped == [1, 0]


def test_a_table_that_is_dropped_takes_its_entries_along():
    """Three of one region; what is left is dropped by the flush."""
    b, mm = guest()
    b.add(Op.LOAD_CR3, mm=mm)
    for i in (1, 2, 3, 600):
        b.add(Op.SET_PTE, mm=mm, table=9 + i // 512, index=i % 512, va=i << 12, value=0x67,
              flags=int(Flag.CURRENT_MM))  # fmt: skip
        b.add(Op.TOUCH, mm=mm, va=i << 12)
    b.add(Op.SET_PMD, mm=mm, table=8, index=0, va=0, value=0)
    b.add(Op.FLUSH_USER, mm=mm)
    rows = explain(built(b), "lguest", "lguest").set_index("op")["shadow_dropped"]
    assert (rows["SET_PMD"], rows["FLUSH_USER"]) == (3, 1)


def test_kernel_pages_that_a_flush_drops_may_be_touched_again():
    b, mm = guest()
    b.add(Op.LOAD_CR3, mm=mm)
    for va in (0x1000, 0x2000):
        b.add(Op.FAULT, mm=0, va=va, value=2)
        pte(b, 0, va >> 12)
    b.add(Op.FLUSH_KERNEL)
    b.add(Op.FAULT, mm=mm, va=0x5000, value=6)
    counts = replay(built(b), "lguest", "lguest:working=1")
    assert counts.low[Event.SHADOW_DROPPED] == 2
    assert counts.high[Event.SHADOW_FAULT] - counts.low[Event.SHADOW_FAULT] == 1


def test_what_no_flush_reaches_must_be_told():
    b = TraceBuilder()
    here, there = b.mm("here"), b.mm("there")
    for mm in (there, here):
        b.add(Op.LOAD_CR3, mm=mm)
        pte(b, mm, 1)
    pte(b, there, 1, value=0, op=Op.PTE_GET_AND_CLEAR, flags=0)
    pte(b, here, 1, value=0, op=Op.PTE_GET_AND_CLEAR)
    trace = built(b)
    assert replay(trace, "lguest", "lguest").status == "ok"
    bad = replay(trace, "lguest -pte_update", "lguest")
    assert bad.infeasible is not None
    assert bad.infeasible.row == 4
    assert "keeps what was changed: PTE_GET_AND_CLEAR" in bad.status


@pytest.mark.parametrize("hook", ["write_cr3", "read_cr2", "flush_tlb_one_user"])
def test_lguest_emulates_no_privileged_instruction(hook):
    b, mm = guest()
    b.add(Op.LOAD_CR3, mm=mm)
    b.add(Op.FAULT, mm=mm, va=0, value=4)
    b.add(Op.READ_CR2)
    b.add(Op.FLUSH_ONE, mm=mm)
    bad = replay(built(b), f"lguest -{hook}", "lguest")
    assert bad.status == (
        f"infeasible: a privileged instruction that lguest does not emulate ({hook})"
    )


def test_lguest_has_one_processor():
    assert "one processor" in replay(recorded("smpmmap.16"), "lguest", "lguest").status


@pytest.mark.parametrize("spec", ["lguest:ring=0", "lguest:slots=0", "lguest:working=x"])
def test_wrong_numbers_of_lguest(spec):
    with pytest.raises(ModeError, match="must be a whole number from 1"):
        get_mode(spec)


# ---------------------------------------------------------------- VMI
def test_vmi_defers_an_upgrade_to_the_flush_that_follows():
    """ptep_set_access_flags of v2.6.22: store, pte_update_defer, flush_tlb_page."""
    b, mm = guest()
    upgrade = int(Flag.CURRENT_MM | Flag.OLD_KNOWN | Flag.OLD_PRESENT)
    for flush in (True, False):
        pte(b, mm, 1, flags=upgrade)
        if flush:
            b.add(Op.FLUSH_ONE, mm=mm, va=1 << 12)
    counts = replay(built(b), "vmi", "vmi")
    assert counts["vmi_updates"] == 2
    assert counts["vmi_call"] == 2  # the flush with the first, the second by itself
    assert replay(built(b), "vmi -pte_update", "vmi")["vmi_call"] == 3


def test_vmi_clones_the_kernel_part_of_a_page_directory():
    b = TraceBuilder()
    b.add(Op.PGD_ALLOC, mm=b.mm("a"))
    hooks = "vmi +pgd_alloc"
    assert replay(built(b, levels=2), hooks, "vmi")["vmi_cloned"] == 256
    assert replay(built(b, levels=4), hooks, "vmi").low[Event.VMI_CLONED] == 0
    assert replay(built(b, levels=2), hooks, "vmi")["vmi_pages"] == 1


def test_vmi_must_know_where_tables_in_high_memory_are():
    b, mm = guest()
    b.add(Op.MAP_TABLE, mm=mm, table=9)
    assert replay(built(b, levels=2, highpte=True), "vmi", "vmi")["vmi_mappings"] == 1
    bad = replay(built(b, levels=2, highpte=True), "vmi -kmap_atomic_pte", "vmi")
    assert "whose address the ROM never learns" in bad.status


@pytest.mark.parametrize("spec", ["lguest", "vmi", "kvm-pvmmu"])
@pytest.mark.parametrize(
    "name",
    ["fork.1", *(pytest.param(n, marks=pytest.mark.compiled)
                 for n in ("mprotect.16", "forkexec.0", "smpmmap.16", "filerd.16"))],
)  # fmt: skip
def test_classes_are_exact(spec, name):
    """Every set of a random space, one by one, against its class: the same outcomes as often."""
    trace, mode = recorded(name), get_mode(spec)
    r = random.Random(f"{spec} {name}")

    def outcome(hooks):
        result = mode.run(trace, hooks)
        return "infeasible" if isinstance(result, Infeasible) else tuple(result.low)

    for _ in range(1 if LITTLE else 3):
        free = HookSet.of(*r.sample(ALL, 3 if LITTLE else 6))
        always = HookSet.of(*(n for n in ALL if r.random() < 0.9)) - free
        one_by_one = Counter(outcome(s | always) for s in subsets(free.names))
        by_class: Counter = Counter()
        for c in mode.classes(trace, Space(free, always)):
            found = outcome(c.hooks)
            assert (found == "infeasible") == bool(c.infeasible), c
            by_class[found] += c.size
        assert by_class == one_by_one
    assert sum(c.size for c in mode.classes(trace, Space.all())) == 2 ** len(ALL)
