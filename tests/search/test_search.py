"""The exhaustive engine: classes of hook sets counted at once, against one replay for each."""

from __future__ import annotations

import random
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import naive
import numpy as np
import pytest
from conftest import examples, recorded
from guests import random_trace
from hypothesis import given, strategies as st
from test_modes_direct_vmi import _NOT_COUNTED

from pvmmu.costs import get_costs
from pvmmu.errors import CostError, HookError, PvmmuError, SearchError
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes import Direct, get_mode
from pvmmu.modes.all_sets.counting import count_classes, count_one_by_one
from pvmmu.modes.all_sets.engines import engine
from pvmmu.modes.direct.kernel import ROW
from pvmmu.modes.direct.rules import PINNING
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Space, class_of
from pvmmu.replay import replay
from pvmmu.search import Search, all_modes, search

NAMES = list(catalogue())
DIRECT = [
    "direct", "direct:backend=2.6.27", "direct:stores=batched", "direct:stores=refuse",
    "direct:without=cr3", "direct:backend=2.6.27,stores=batched", "direct:backend=2.6.23",
    "direct:backend=2005", "direct:backend=2005,stores=batched", "direct:backend=2007",
]  # fmt: skip
#: Hooks that make designs differ in pinning, brackets and what becomes of writes.
STRATA = (*PINNING, "lazy_mmu", "context_switch", "ptep_get_and_clear", "ptep_set_wrprotect",
          "set_pte", "ptep_modify_prot", "set_ptes", "wrprotect_ptes", "set_pmd", "release_pte",
          "release_pmd", "exit_mmap", "flush_tlb_user")  # fmt: skip


def stratified(trace, mode, n, seed=0):
    """Feasible designs that differ in as many of the strata as can be."""
    partition = mode.classes(trace, Space.all())
    masks, _ = partition.masks_and_sizes()
    bits = HookSet.of(*STRATA).mask
    order = random.Random(seed).sample(range(len(masks)), len(masks))
    first, rest, seen = [], [], set()
    for i in order:
        key = int(masks[i]) & bits
        (rest if key in seen else first).append(i)
        seen.add(key)
    return partition, (first + rest)[:n]


# ---------------------------------------------------------------------- exactness
@pytest.mark.compiled
@pytest.mark.parametrize("spec", DIRECT)
@pytest.mark.parametrize(
    "name", ["fork.1", "mprotect.33", "forkexec.0", "smpmmap.16", "filecow.16"]
)
def test_all_at_once_equals_one_by_one(spec, name):
    """Every class of a plan, not a sample."""
    trace, mode = recorded(name), get_mode(spec)
    partition = mode.classes(trace, Space.all())
    number = random.Random(f"{spec}{name}").randrange(len(partition.branches))
    at_once = count_classes(trace, mode, partition, number)
    one_by_one = count_one_by_one(trace, mode, list(partition.feasible(number)))
    assert at_once.status == one_by_one.status
    np.testing.assert_array_equal(at_once.low, one_by_one.low)
    np.testing.assert_array_equal(at_once.high, one_by_one.high)
    if partition.branches[number].n:
        assert engine(mode)(trace, partition.branches[number]) is not None, "the fast way gave up"


@pytest.mark.parametrize("spec", ["direct", "direct:backend=2.6.27", "direct:stores=batched"])
@pytest.mark.parametrize("name", ["fork.1", "forkexec.0", "smpmmap.1", "mprotect.33"])
def test_all_at_once_on_a_recording_and_few_hooks(spec, name):
    """Few enough for plain Python; real streams repeat themselves, random ones hardly."""
    trace, mode = recorded(name), get_mode(spec)
    free = HookSet.of("set_pte", "lazy_mmu", "ptep_get_and_clear", "flush_tlb_multi")
    partition = mode.classes(trace, Space(free, HookSet.parse("linux-6.1") - free))
    for number in range(len(partition.branches)):
        at_once = count_classes(trace, mode, partition, number)
        one_by_one = count_one_by_one(trace, mode, list(partition.feasible(number)))
        assert at_once.status == one_by_one.status
        np.testing.assert_array_equal(at_once.low, one_by_one.low)
        np.testing.assert_array_equal(at_once.high, one_by_one.high)


@examples(60)
@given(
    seed=st.integers(0, 10**6), vcpus=st.sampled_from((1, 1, 2, 3)), spec=st.sampled_from(DIRECT)
)
def test_all_at_once_on_random_guests(seed, vcpus, spec):
    trace, mode = random_trace(seed, 40, vcpus), get_mode(spec)
    r = random.Random(seed)
    free = HookSet.of(*r.sample([n for n in NAMES if n != "pte_val"], 7))
    space = Space(free, HookSet.every() - free)
    partition = mode.classes(trace, space)
    for number in range(len(partition.branches)):
        at_once = count_classes(trace, mode, partition, number)
        one_by_one = count_one_by_one(trace, mode, list(partition.feasible(number)))
        np.testing.assert_array_equal(at_once.low, one_by_one.low)
        np.testing.assert_array_equal(at_once.high, one_by_one.high)


@pytest.mark.compiled
@pytest.mark.parametrize(
    "spec", ["direct", "direct:stores=batched", "direct:backend=2.6.27", "direct:backend=2005"]
)
def test_the_slow_twin_agrees_with_the_engine(spec):
    """Two hundred designs per mode, event for event and in the twin's own words."""
    mode, done = get_mode(spec), 0
    for name, n in (("fork.16", 100), ("forkexec.0", 80), ("mprotect.16", 60), ("cow.16", 60)):
        trace = recorded(name)
        cell = search([trace], [mode], progress=False)[name, spec]
        partition, chosen = stratified(trace, mode, n)
        masks, _ = partition.masks_and_sizes()
        for i in chosen:
            hooks = HookSet(int(masks[i]))
            twin = naive.NaiveXen(trace, hooks, backend=mode.backend, stores=mode.stores).run()
            low = cell.counts(i)
            mine = {e: int(low[e]) for e in Event if low[e] and e not in _NOT_COUNTED}
            assert mine == {e: c for e, c in twin.items() if c}, hooks.short
            done += 1
    assert done >= 200


@pytest.mark.compiled
@pytest.mark.parametrize("spec", all_modes())
def test_replays_of_a_whole_program_agree_with_the_engine(spec):
    """Two hundred designs of each mode (all, where it has fewer) on recorded programs."""
    mode = get_mode(spec)
    for name, n in (("dashtrue", 150), ("gcheap-6.12", 50)):
        trace = recorded(name)
        cell = search([trace], [mode], progress=False)[name, spec]
        partition, chosen = stratified(trace, mode, n)
        masks, _ = partition.masks_and_sizes()
        for i in chosen:
            got = mode.run(trace, HookSet(int(masks[i])))
            np.testing.assert_array_equal(cell.counts(i), got.low)
            assert cell.entries()[i] == replay(trace, HookSet(int(masks[i])), mode).entries


def test_pieces_are_compared_by_all_that_the_loop_reads():
    """A new field of a row must go into `direct_pieces._tokens`, or unlike pieces are merged."""
    by_token = {"op", "cpu", "again", "drops", "run_end", "slot", "mm", "walk", "table", "va"}
    by_code = {"level", "halves"}  # functions of the operation
    assert set(ROW.names) == by_token | by_code | {"present"}


# ---------------------------------------------------------------------- which class
@pytest.mark.compiled
@pytest.mark.parametrize("spec", [*DIRECT, "vmi", "native"])
def test_any_hook_set_is_found_in_its_class(spec):
    trace, mode = recorded("forkexec.0"), get_mode(spec)
    partition, r = mode.classes(trace, Space.all()), random.Random(spec)
    masks, _ = partition.masks_and_sizes()
    classes = list(c for c in partition if not c.infeasible)
    assert [c.hooks.mask for c in classes] == masks.tolist()
    worked = 0
    for _ in range(60):
        missing = r.sample(NAMES, r.choice((0, 1, 2, 4, 30)))
        hooks = HookSet.of(*(n for n in NAMES if n not in missing or n == "pte_val"))
        number, got = class_of(partition, hooks), mode.run(trace, hooks)
        assert (number < 0) == isinstance(got, Infeasible)
        if number >= 0:
            worked += 1
            np.testing.assert_array_equal(got.low, mode.run(trace, classes[number].hooks).low)
    assert worked > 10


def test_a_cube_is_the_classes_of_its_sets():
    trace = recorded("forkexec.0")
    partition = Direct().classes(trace, Space.all())
    names = ("lazy_mmu", "set_pte", "dup_mmap", "alloc_pte", "activate_mm", "ptep_modify_prot")
    always = HookSet.parse("linux-6.1") - HookSet.of(*names)
    cube = partition.cube(names, always)
    assert (cube < 0).any() and (cube >= 0).any()
    for i, number in enumerate(cube.tolist()):
        hooks = always | HookSet.of(*(n for b, n in enumerate(names) if i >> b & 1))
        assert class_of(partition, hooks) == number


def test_required_hooks_and_levers():
    """By trying: nothing works without a required hook; what is no lever changes nothing."""
    trace = recorded("forkexec.0")
    for spec in ("direct", "vmi"):
        partition = get_mode(spec).classes(trace, Space.all())
        for name in catalogue():
            without = Space(HookSet.every() - HookSet.of(name))
            works = get_mode(spec).classes(trace, without).n > 0
            assert works == (name not in partition.required), name
        idle = HookSet.every() - partition.relevant_hooks
        r = random.Random(1)
        for _ in range(20):
            hooks = HookSet.of(*r.sample(NAMES, 28)) | partition.required
            assert class_of(partition, hooks) == class_of(partition, hooks | idle)


@pytest.mark.parametrize(
    ("names", "always", "message"),
    [
        (["set_pte", "set_pte"], "none", "named twice"),
        (["set_pte"], "set_pte", "to vary and to be always there"),
        (["set_pte"], "none", "'pte_val' is always there"),
        (["pte_val"], "none", "'pte_val' does not vary"),
    ],
)
def test_wrong_cubes(names, always, message):
    space = Space(HookSet.every() - HookSet.of("pte_val"), HookSet.of("pte_val"))
    partition = Direct().classes(recorded("fork.1"), space)
    with pytest.raises(HookError, match=message):
        partition.cube(names, HookSet.parse(always))


# ---------------------------------------------------------------------- prices and files
@pytest.fixture(scope="module")
def found():
    return search(["fork.1", "mmap.16"], ["direct", "vmi", "native"], progress=False)


def test_prices_are_those_of_the_cost_table(found):
    costs = get_costs("p4-2006")
    for cell in found.cells.values():
        cycles = cell.cycles(costs)
        for i in range(0, len(cell), max(1, len(cell) // 40)):
            assert cycles[i] == pytest.approx(costs.price(cell.counts(i)), rel=1e-12)


def test_an_event_without_a_price_is_an_error(found):
    doc = get_costs("p4-2006").model_dump()
    del doc["events"]["page_fault"]
    with pytest.raises(CostError, match="no price for 'page_fault'"):
        found["fork.1", "direct"].cycles(type(get_costs("p4-2006"))(**doc))


def test_a_search_survives_its_files(found, tmp_path):
    found.save(tmp_path / "s")
    again = Search.load(tmp_path / "s")
    assert set(again.cells) == set(found.cells)
    assert again.provenance == found.provenance
    for key, cell in found.cells.items():
        assert again[key].partition == cell.partition
        np.testing.assert_array_equal(again[key].low, cell.low)
        np.testing.assert_array_equal(again[key].cycles("p4-2006"), cell.cycles("p4-2006"))


def test_every_design_is_accounted_for(found):
    table = found.summary()
    assert found.designs == 6 * 2 ** len(NAMES)
    assert table["hook_sets"].eq(2 ** len(NAMES)).all()
    for key, cell in found.cells.items():
        infeasible = sum(c.size for c in cell.partition if c.infeasible)
        _, sizes = cell.partition.masks_and_sizes()
        assert sizes.sum() + infeasible == 2 ** len(NAMES), key


def test_a_design_that_fails_is_a_status_and_has_no_price(monkeypatch, tmp_path):
    mode = get_mode("vmi")
    original = type(mode).run

    def fails(self, trace, hooks, log=False):
        if "lazy_mmu" in hooks:
            raise ZeroDivisionError("oops")
        return original(self, trace, hooks, log)

    monkeypatch.setattr(type(mode), "run", fails)
    found = search(["fork.1"], ["vmi"], progress=False)
    cell = found["fork.1", "vmi"]
    masks, _ = cell.partition.masks_and_sizes()
    bad = np.array(["lazy_mmu" in HookSet(int(m)) for m in masks])
    assert set(cell.failed.values()) == {"error: ZeroDivisionError: oops"}
    np.testing.assert_array_equal(np.isnan(cell.cycles("p4-2006")), bad)
    found.save(tmp_path)
    assert Search.load(tmp_path)["fork.1", "vmi"].failed == cell.failed


def test_unknown_counts_are_bounds():
    from pvmmu.guest.trace import Evidence, Op, Provenance, TraceBuilder

    b = TraceBuilder()
    mm = b.mm("older", older=True)
    b.add(Op.PTE_GET_AND_CLEAR, mm=mm, table=7, count=512, evidence=Evidence.UNKNOWN)
    cell = search([b.build(Provenance("unknown", "6.1.0"))], ["direct"])["unknown", "direct"]
    assert not cell.exact
    at = class_of(cell.partition, HookSet.parse("linux-6.1"))
    [column] = np.flatnonzero(cell.events == Event.PTE_EMULATION)
    assert (cell.low[at, column], cell.high[at, column]) == (0, 512)


def test_workers_that_die_are_one_clear_error():
    class Dead(ThreadPoolExecutor):
        def submit(self, *args, **kw):
            future: Future = Future()
            future.set_exception(BrokenProcessPool("a child was killed"))
            return future

    with pytest.raises(SearchError, match=r"the workers died \(a child was killed\)"):
        search(["fork.1"], ["vmi"], executor=Dead())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, p: search(["fork.11"], ["direct"]), "no trace named 'fork.11'"),
        (lambda f, p: search(["fork.1"], ["shadw"]), "no mode is named 'shadw'"),
        (lambda f, p: f["make", "direct"], "trace 'make' in mode 'direct' was not searched"),
        (lambda f, p: Search.load(p), "no search was saved here"),
        (lambda f, p: (p / "a.cell.parquet").write_text("x") and Search.load(p), "not a cell"),
        (lambda f, p: (p / "f").write_text("x") and f.save(p / "f"), "cannot be written"),
    ],
)
def test_wrong_input_is_one_clear_error(found, tmp_path, call, message):
    with pytest.raises(PvmmuError, match=message):
        call(found, tmp_path)
