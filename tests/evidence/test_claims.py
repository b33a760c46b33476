"""Claims: verdicts are computed, change with what they rest on."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from pvmmu.errors import PvmmuError
from pvmmu.evidence.claims import CLAIMS, cycle_ratio, evaluate, evaluated_timeline, mixed, verdicts
from pvmmu.evidence.claims.questions import questions
from pvmmu.evidence.history import PricedDesign, compared
from pvmmu.figures.claims import (
    claims_figure,
    claims_finding,
    predictions_figure,
)
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.readers.strace import read_example
from pvmmu.guest.trace import Op
from pvmmu.guest.vocabulary import N_OPS
from pvmmu.hooks import HookSet
from pvmmu.modes.partition import Space
from pvmmu.replay import replay
from pvmmu.search import search

#: What the model says, once looked at; a change of any is news and must be looked at again.
EXPECTED = {
    "vmi-low-level": True, "two-abstractions": False, "vmi-flushes": True, "defaults": True,
    "late-pin": True, "writable-tables": False, "mprotect": True, "bracket": False,
    "get-and-clear": False, "notices": True, "page-types": True, "address": True,
    "kvm-2008": True, "kvm-2009": True, "kvm-today": False, "shadow-mix": True,
    "nested": True, "nested-paging": True, "fill-on-write": True, "out-of-sync": True,
    "dying": True,
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_verdicts(name):
    verdict = evaluate(name)
    assert verdict.holds is EXPECTED[name], verdict.finding
    assert verdict.word in ("stable", "leans", "open")
    assert any(c.isdigit() for c in verdict.finding) or name in ("notices", "page-types")


def test_the_mixed_set_of_2006_comes_out_of_the_search():
    table = evaluate("shadow-mix").table
    assert len(table) == len(mixed.TABLES_THEN)
    for (_, costs), row in table.iterrows():
        answer = HookSet.parse(row["hooks"])
        assert HookSet.of("set_pte", "lazy_mmu", "exit_mmap") <= answer, costs
        assert min(row["low alone"], row["high alone"]) > mixed.GOOD


def test_what_shadow_mode_wants_turns_with_the_price_of_a_call():
    """Beside cheap hypercalls and traps the announcement is enough; beside world switches not."""
    found = mixed.search_then()
    cheap, dear = (
        mixed.answer(found, mixed.THEN, costs, samples=4) for costs in ("p4-2006", "p4-2006-vtx")
    )
    assert not cheap.mixed and cheap.hooks.names == ("exit_mmap",)
    assert dear.mixed and {"set_pte", "exit_mmap"} <= set(dear.hooks)


def test_an_answer_is_what_replays_say():
    """The best set of the board and those of one level alone, by replay of each set."""
    trace = load_trace("fork_exit.16@2.6.22")
    free = HookSet.of("set_pte", "release_pte", "flush_tlb_user", "lazy_mmu", "exit_mmap")
    found = search([trace], [mixed.THEN], Space(free), progress=False)
    a = mixed.answer(found, mixed.THEN, "p4-2006-vtx", samples=4)

    def least(hooks):
        sets = (HookSet.of(*s) for n in range(6) for s in itertools.combinations(hooks, n))
        return min(replay(trace, s, mixed.THEN).cycles("p4-2006-vtx") for s in sets)

    best, none = least(free), replay(trace, "none", mixed.THEN).cycles("p4-2006-vtx")
    assert a.low == pytest.approx(least(free.low) / best - 1)
    assert a.high == pytest.approx(least(free - free.low) / best - 1)
    mine = replay(trace, a.hooks, mixed.THEN).cycles("p4-2006-vtx")
    assert a.saves == pytest.approx(1 - mine / none) and mine <= best * (1 + mixed.GOOD)


def test_every_claim_is_expected_and_asked():
    assert set(EXPECTED) == set(CLAIMS)
    table = verdicts(("late-pin", "mprotect"))
    assert list(table["verdict"]) == ["holds", "holds"]
    assert claims_finding(table).startswith("2 of 2 claims hold")
    with pytest.raises(PvmmuError, match="no claim is named"):
        evaluate("late-pint")


def test_the_timeline_agrees_or_says_why():
    table = evaluated_timeline()
    assert len(table) == len(questions()) >= 10
    assert set(table["agreement"]) <= {"yes", "no", "open", "undecided"}
    said_open = table["model"].str.contains("depends")
    assert (said_open == (table["agreement"] == "open")).all()
    assert table.loc["2026-02-12", "agreement"] == "undecided"
    disagree = table[table["agreement"] != "yes"]
    assert (disagree["because"] != "").all()
    assert (table["agreement"] == "no").sum() <= 2 < 10 < (table["agreement"] == "yes").sum()
    assert "not testable yet" not in set(verdicts()["verdict"])


def test_a_verdict_says_what_it_was_decided_by():
    table = verdicts()
    assert table["holds if"].str.len().min() > 5
    for name in CLAIMS:
        v = evaluate(name)
        assert v.said == table.loc[name, "verdict"]
        if v.word == "open":
            assert v.said == "depends on prices", "no verdict on prices whose range turns it"
        ratios = v.table["ratio"].dropna() if "ratio" in v.table and "low" in v.table else None
        if v.rule == "mean < 0.98" and "status" in v.table and name != "writable-tables":
            assert v.holds == (np.exp(np.log(ratios).mean()) < 0.98), name
    both = evaluate("two-abstractions")
    assert list(both.readings.values()) == [False, True]
    assert both.said == "depends on the reading"


def test_a_contest_turns_with_the_costs():
    """Where emulation is as cheap as in a software VMM, the transaction saves less."""
    new, old = ("xen-2.6.27", "xen-2.6.23")
    mode, names = "direct:backend=2.6.27", ("mprotect.64@2.6.27",)
    dear = cycle_ratio(
        PricedDesign(new, mode, "p4-2006"), PricedDesign(old, mode, "p4-2006"), names
    )
    cheap = cycle_ratio(
        PricedDesign(new, mode, "p4-2006-bt"), PricedDesign(old, mode, "p4-2006-bt"), names
    )
    assert dear.saves
    assert dear.ratio < cheap.ratio
    again = cycle_ratio(
        PricedDesign(new, mode, "p4-2006"), PricedDesign(old, mode, "p4-2006"), names
    )
    pd.testing.assert_frame_equal(dear.table, again.table)


def test_a_contest_with_what_cannot_run():
    a, b = PricedDesign("none", "direct", "p4-2006"), PricedDesign("linux-6.1", "direct", "p4-2006")
    c = cycle_ratio(a, b, ("mmap.16",))
    assert not c.saves
    assert c.table.loc["mmap.16", "status"].startswith("infeasible")


def test_figures_show_what_was_computed():
    figures = {
        "claims": claims_figure({n: evaluate(n) for n in ("late-pin", "mprotect")}, "a title"),
        "predictions": predictions_figure(compared(samples=16)),
    }
    for figure in figures.values():
        figure.canvas.draw()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) >= -0.01
        assert box.x1 <= width + 0.01
        assert box.y1 <= height + 0.01


def test_streams_begin_with_what_is_loaded():
    t = load_trace("fork.16@2.6.22/2")
    assert t["op"][0] == Op.LOAD_CR3
    assert t.platform.levels == 2
    assert t.fingerprint
    with pytest.raises(PvmmuError, match=r"is not WORKLOAD\.N@KERNEL"):
        load_trace("fork@2.6.22")


def test_parts_of_a_recorded_program():
    whole = read_example("shell", "2.6.12")
    parts = {name: load_trace(f"shell:{name}@2.6.12") for name in ("fork", "exec", "sh")}
    n = {name: np.bincount(t["op"], minlength=N_OPS) for name, t in parts.items()}
    assert {k: int(v[Op.DUP_MMAP]) for k, v in n.items()} == {"fork": 1, "exec": 1, "sh": 1}
    assert {k: int(v[Op.ACTIVATE_MM]) for k, v in n.items()} == {"fork": 0, "exec": 1, "sh": 2}
    assert {k: int(v[Op.EXIT_MMAP]) for k, v in n.items()} == {"fork": 1, "exec": 2, "sh": 4}
    for trace in parts.values():
        assert len(trace) < len(whole) + 1
        born = set(trace["mm"][trace["op"] == Op.PGD_ALLOC].tolist())
        used = set(trace["mm"].tolist()) - {-1}
        assert all(trace.mms[m].older == (m not in born) for m in used)


def test_fork_of_2_6_12_copies_file_mappings_too():
    """Since 2.6.14 it leaves out what a fault can fill."""
    old, new = (load_trace(f"shell:fork@{k}") for k in ("2.6.12", "2.6.27"))
    copied = [int(((t["op"] == Op.SET_PTE) & (t["mm"] == t["mm"][1])).sum()) for t in (old, new)]
    assert copied[0] > 1.5 * copied[1] > 0


def test_high_memory_maps_each_page_that_is_cleared_or_copied():
    low, high = load_trace("cow.16@2.6.18/3"), load_trace("cow.16@2.6.18/3+high")
    kernel = high["mm"] == 0
    added = high.select(kernel & np.isin(high["op"], (Op.SET_PTE, Op.PTE_CLEAR)))
    assert len(high) - len(low) == len(added) > 2 * 16
    assert (added["op"][added["value"] != 0] == Op.SET_PTE).all()
    # each copy on write: two pages mapped and unmapped before the entry is stored
    changes = np.flatnonzero(high["op"] == Op.PTE_RMW)
    copies = changes[high["op"][changes - 1] == Op.PTE_CLEAR]
    assert len(copies) >= 16
    for row in copies:
        assert list(high["op"][row - 4 : row]) == [Op.SET_PTE] * 2 + [Op.PTE_CLEAR] * 2
    same = ~(kernel & np.isin(high["op"], (Op.SET_PTE, Op.PTE_CLEAR)))
    np.testing.assert_array_equal(high["op"][same], low["op"])
