"""A mode and a hook of one's own: defined in a few lines, they take part in everything."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from conftest import examples, recorded, recording_paths, short_name
from guests import random_trace
from hypothesis import given, strategies as st

from pvmmu import modes
from pvmmu.errors import HookError, ModeError
from pvmmu.evidence.truth.recordings import compare
from pvmmu.guest.trace import Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.hooks.custom import register_hook, unregister_hook
from pvmmu.modes.classes import subsets
from pvmmu.modes.custom import CustomMode, Rule
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Space
from pvmmu.replay import event_columns, explain, replay
from pvmmu.replay.sensitivity import sensitivity
from pvmmu.search.sweep import sweep

MINE = {
    Op.SET_PTE: Rule(("set_pte", "set_pte_at"), "update", "trap"),
    Op.PTE_GET_AND_CLEAR: Rule(("ptep_get_and_clear",), "update", "trap"),
    Op.ALLOC_PTE: Rule(("alloc_pte",), "call", "cannot: a table is never announced"),
    Op.LOAD_CR3: Rule(("write_cr3",), "call", "trap"),
    Op.FAULT: Rule((), unhooked="fault"),
    Op.LAZY_ENTER: Rule(("lazy_mmu",), "bracket"),
    Op.LAZY_LEAVE: Rule(("lazy_mmu",), "end"),
}


@pytest.fixture
def unmap_range():
    """What a user of a notebook would write: a hook, and a mode that reads it."""
    register_hook("unmap_range", [Op.PTE_GET_AND_CLEAR], level="high", meaning="clear a range")
    rule = Rule(("ptep_get_and_clear", "unmap_range"), "update", "trap")

    @modes.register
    class Shy(CustomMode):
        name = "shy"
        queue = 16
        rules = MINE | {Op.PTE_GET_AND_CLEAR: rule}

    yield Shy
    modes.unregister("shy")
    unregister_hook("unmap_range")


def naive(trace, hooks, capacity):
    """The table above, read row by row with lists."""
    counts, queue, lazy = Counter(), Counter(), set()

    def update(cpu):
        counts[Event.CUSTOM_UPDATES] += 1
        queue[cpu] += 1
        if cpu not in lazy or queue[cpu] == capacity:
            counts[Event.CUSTOM_CALL] += 1
            queue[cpu] = 0

    for row in range(len(trace)):
        op, cpu = Op(trace["op"][row]), int(trace["cpu"][row])
        if op in (Op.SET_PTE, Op.PTE_GET_AND_CLEAR):
            told = {"set_pte", "set_pte_at"}
            if op == Op.PTE_GET_AND_CLEAR:
                told = {"ptep_get_and_clear", "unmap_range"}
            if told & set(hooks):
                update(cpu)
            else:
                counts[Event.CUSTOM_TRAP] += 1
        elif op == Op.ALLOC_PTE:
            if "alloc_pte" not in hooks:
                return None
            counts[Event.CUSTOM_CALL] += 1
            queue[cpu] = 0
        elif op == Op.LOAD_CR3 and "write_cr3" in hooks:
            counts[Event.CUSTOM_CALL] += 1
            queue[cpu] = 0
        elif op == Op.LOAD_CR3:
            counts[Event.CUSTOM_TRAP] += 1
        elif op == Op.FAULT:
            counts[Event.PAGE_FAULT] += 1
        elif op == Op.LAZY_ENTER and "lazy_mmu" in hooks:
            lazy.add(cpu)
        elif op == Op.LAZY_LEAVE and "lazy_mmu" in hooks:
            lazy.discard(cpu)
            if queue[cpu]:
                counts[Event.CUSTOM_CALL] += 1
                queue[cpu] = 0
    return counts


@examples(80)
@given(seed=st.integers(0, 10**6), missing=st.integers(0, 6))
def test_a_table_equals_its_twin(seed, missing):
    class Mine(CustomMode):
        name = "mine"
        queue = 5
        rules = MINE

    r = random.Random(seed)
    trace = random_trace(seed, 40, r.choice((1, 2)))
    read = ["set_pte", "set_pte_at", "ptep_get_and_clear", "alloc_pte", "write_cr3", "lazy_mmu"]
    hooks = HookSet.of(*(n for n in read if n not in r.sample(read, missing)))
    got, want = Mine().run(trace, hooks), naive(trace, hooks, 5)
    if want is None:
        assert isinstance(got, Infeasible)
        return
    assert not isinstance(got, Infeasible)
    assert {e: int(got.low[e]) for e in Event if got.low[e]} == {e: n for e, n in want.items() if n}


@pytest.mark.usefixtures("unmap_range")
def test_it_takes_part_in_replay_and_explain():
    trace = recorded("mmap.64")
    plain, told = (replay(trace, h, "shy") for h in ("linux-6.1", "linux-6.1 +unmap_range"))
    assert plain["custom_trap"] > 0
    assert told.low[Event.CUSTOM_TRAP] == 0
    assert told.counterfactual
    calls_and_traps = told.by_category()[["hypercall", "trap", "emulation"]]
    assert told.entries == calls_and_traps.sum() and told["custom_call"] > 0
    rows = explain(trace, "linux-6.1 +unmap_range", "shy")
    assert {c: int(rows[c].sum()) for c in event_columns(rows)} == dict(told.series())
    assert {"update", "fault", "bracket"} <= set(rows["mechanism"].astype(str))
    bad = replay(trace, "none", "shy")
    assert bad.status == "infeasible: a table is never announced"
    s = sensitivity({"plain": plain, "told": told}, "p4-2006")
    assert s.stability(lambda c: c["told"] < c["plain"]).word == "stable"


@pytest.mark.usefixtures("unmap_range")
def test_it_takes_part_in_a_sweep():
    names = ("set_pte", "ptep_get_and_clear", "unmap_range", "alloc_pte", "lazy_mmu", "set_pmd")
    trace, space = recorded("mmap.16"), Space(HookSet.of(*names))
    table = sweep([trace], space, ["shy"], ["p4-2006"], progress=False)
    assert table["hook_sets"].sum() == 2 ** len(names)
    one_by_one = Counter(replay(trace, s, "shy").entries for s in subsets(names))
    by_class: Counter = Counter()
    for row in table.itertuples():
        by_class[row.entries] += row.hook_sets
    assert by_class == one_by_one
    everything = sweep([trace], "all", ["shy"], progress=False)
    assert everything["hook_sets"].sum() == 2 ** len(catalogue())


@pytest.mark.usefixtures("unmap_range")
def test_it_takes_part_in_the_truth():
    """Compared with a real Xen it is wrong, and is told so."""
    [path] = [p for p in recording_paths() if short_name(p) == "mmap.16"]
    table = compare(path, "linux-6.1", "shy")
    assert (table["verdict"] == "DIFFERS").any()
    assert (table.loc[table["counter"] == "page_fault", "verdict"] == "ok").all()


@pytest.mark.usefixtures("unmap_range")
def test_a_hook_of_ones_own_has_a_bit_and_goes_again():
    hook = catalogue()["unmap_range"]
    assert hook.bit not in {h.bit for n, h in catalogue().items() if n != "unmap_range"}
    assert HookSet.parse("linux-6.1 +unmap_range").members == HookSet.parse("linux-6.1").members + 1
    unregister_hook("unmap_range")
    with pytest.raises(HookError, match="'unmap_range'"):
        HookSet.parse("unmap_range")
    assert catalogue().keys() == {h for h in catalogue() if h != "unmap_range"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: register_hook("set_pte", [Op.SET_PTE]), "the name is taken"),
        (lambda: register_hook("vmi", [Op.SET_PTE]), "the name is taken"),
        (lambda: register_hook("a b", [Op.SET_PTE]), "the name is taken, or no name"),
        (lambda: register_hook("mine", [Op.SET_PTE], level="mid"), "level must be"),
        (lambda: register_hook("mine", [Op.SET_PTE], default=["set_ptr"]), "did you mean"),
    ],
)
def test_wrong_hooks_are_one_line(call, message):
    with pytest.raises(HookError, match=message):
        call()
    assert "mine" not in catalogue()


def test_wrong_rules_are_one_line():
    with pytest.raises(ModeError, match="a rule says 'hypercall'"):
        Rule(("set_pte",), "hypercall")
    with pytest.raises(HookError, match="did you mean 'set_pte'"):
        Rule(("set_ptr",), "update")
    with pytest.raises(ModeError, match="no name or no rules"):
        CustomMode()
    empty = type("Q", (CustomMode,), {"name": "q", "queue": 0, "rules": {Op.SET_PTE: Rule()}})
    with pytest.raises(ModeError, match="queue must be"):
        empty()
