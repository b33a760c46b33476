"""Sensitivity: draws within ranges, reproducible, and conclusions that turn where they must."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import recorded

from pvmmu.costs import CostTable, get_costs
from pvmmu.errors import CostError
from pvmmu.modes.events import N_EVENTS, Event, column
from pvmmu.replay import Counts, replay
from pvmmu.replay.sensitivity import METHODS, UNKNOWN_OPERATIONS, places, prices, sensitivity

P4 = get_costs("p4-2006")


def counts(low: dict[Event, int], high: dict[Event, int] | None = None) -> Counts:
    arrays = []
    for amounts in (low, high or low):
        a = np.zeros(N_EVENTS, np.int64)
        for event, n in amounts.items():
            a[event] = n
        arrays.append(a)
    return Counts("t", "h", "m", False, None, *arrays)


def table(**figures: tuple[float, float, float] | str) -> CostTable:
    """A table of priors (low, value, high), or followers of one."""
    events = {}
    for name, f in figures.items():
        follows = f if isinstance(f, str) else ""
        low, value, high = figures[follows] if isinstance(f, str) else f
        events[name] = {
            "value": value, "unit": "cycles", "kind": "prior", "range": (low, high),
            "source": "a test", "follows": follows,
        }  # fmt: skip
    return CostTable(title="t", cpu="none", year=2026, mhz=1000, events=events)


def fork_designs():
    t = recorded("fork.16")
    return {
        "today": replay(t, "linux-6.1", "direct"),
        "hooked": replay(t, "linux-6.1 +ptep_set_wrprotect", "direct"),
        "batched": replay(t, "linux-6.1", "direct:stores=batched"),
    }


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_a_function_of_the_seed(method):
    designs = fork_designs()
    a, b, c = (
        sensitivity(designs, "p4-2006", samples=64, seed=seed, method=method) for seed in (1, 1, 2)
    )
    assert all((a.draws[s] == b.draws[s]).all() for s in designs)
    assert a.ranks().equals(b.ranks())
    assert any((a.draws[s] != c.draws[s]).any() for s in designs)


@pytest.mark.parametrize("method", METHODS)
def test_prices_stay_in_their_ranges_and_fill_them(method):
    names = sorted({c.follows or n for n, c in P4.events.items() if c.range})
    drawn = prices(P4, places(names, 256, 3, method))
    low, high = P4.bounds()
    for name, c in P4.events.items():
        e = Event[name.upper()]
        assert (drawn[:, e] >= low[e] * (1 - 1e-12)).all()
        assert (drawn[:, e] <= high[e] * (1 + 1e-12)).all()
        if c.range and low[e]:
            spread = np.log(drawn[:, e].max() / drawn[:, e].min()) / np.log(high[e] / low[e])
            assert spread > 0.95
        elif not c.range:
            assert np.ptp(drawn[:, e]) == 0


def test_a_follower_moves_with_its_leader():
    t = table(mmu_update=(100, 200, 400), multicall="mmu_update", store=(1, 1, 9))
    drawn = prices(t, places(["mmu_update", "store"], 32, 0, "sobol"))
    assert np.allclose(drawn[:, Event.MMU_UPDATE], drawn[:, Event.MULTICALL])
    assert np.ptp(drawn[:, Event.MMU_UPDATE]) > 100


def test_cycles_are_counts_times_prices():
    """One draw priced by hand."""
    designs = fork_designs()
    s = sensitivity(designs, P4, samples=16, seed=4)
    where = places(s.unknowns, 16, 4, "latin-hypercube")
    low, high = P4.bounds()
    for label, c in designs.items():
        total = 0.0
        for event in Event:
            figure = P4.events.get(column(event))
            if not c.low[event] or figure is None:
                continue
            price = P4.vector[event]
            leader = figure.follows or column(event)
            if figure.range:
                u = where[leader][5]
                price = low[event] ** (1 - u) * high[event] ** u
            total += c.low[event] * price
        assert s.draws[label][5] == pytest.approx(total)
        assert s.nominal[label][0] == pytest.approx(P4.price(c.low))


def test_a_conclusion_turns_where_it_must():
    """100 traps against 100 calls: a call costs 10 to 1,000, a trap 100 to 200."""
    t = table(mmu_update=(10, 50, 1000), pte_emulation=(100, 150, 200))
    designs = {"trap": counts({Event.PTE_EMULATION: 100}), "call": counts({Event.MMU_UPDATE: 100})}
    s = sensitivity(designs, t, samples=256)
    found = s.stability(lambda c: c["call"] < c["trap"])
    assert found.holds
    assert found.flips == ("mmu_update",)
    # log-uniform from 10 to 1,000 lies below a trap with this probability
    assert found.share == pytest.approx(np.log(np.sqrt(100 * 200) / 10) / np.log(100), abs=0.02)
    assert found.word == "open"
    always = s.stability(lambda c: c["trap"] > 0)
    assert (always.share, always.flips, always.word) == (1.0, (), "stable")
    assert "open: so in" in str(found)
    assert "overturned by mmu_update alone" in str(found)
    opposite = s.stability(lambda c: c["call"] > c["trap"])
    assert not opposite.holds
    assert opposite.share == found.share


def test_another_cost_table_changes_the_conclusion():
    designs = {"trap": counts({Event.PTE_EMULATION: 10}), "call": counts({Event.MMU_UPDATE: 10})}
    cheap, dear = (
        table(mmu_update=(v, v, v), pte_emulation=(100, 100, 100)) for v in (50, 150)
    )  # fmt: skip
    conclusion = [
        sensitivity(designs, t).stability(lambda c: c["call"] < c["trap"]).holds
        for t in (cheap, dear)
    ]
    assert conclusion == [True, False]


def test_ranks_agree_with_pairs():
    s = sensitivity(fork_designs(), "p4-2006", samples=128)
    r = s.ranks()
    assert list(r["rank"]) == [1, 2, 3]
    assert r["best"].sum() == pytest.approx(1)
    assert (r["p5"] < r["cycles"]).all()
    assert (r["cycles"] < r["p95"]).all()
    wins = np.mean(s.draws["hooked"] < np.minimum(s.draws["today"], s.draws["batched"]))
    assert r.loc["hooked", "best"] == pytest.approx(wins)


def test_ratios_name_the_strongest_figure():
    s = sensitivity(fork_designs(), "p4-2006")
    ratios = s.ratios("hooked", "today")
    assert ratios.index[0] == "pte_emulation"
    assert ratios.attrs["nominal"] == pytest.approx(s.nominal["hooked"][0] / s.nominal["today"][0])


def test_designs_under_tables_of_their_own_share_unknowns():
    designs = fork_designs()
    costs = {"today": "p4-2006", "hooked": "p4-2006", "batched": "p4-2006-vtx"}
    s = sensitivity(designs, costs, samples=8)
    assert s.nominal["batched"][0] == pytest.approx(designs["batched"].cycles("p4-2006-vtx"))
    assert s.unknowns.count("tlb_flush") == 1


def test_operations_not_recorded_are_an_unknown():
    d = {
        "few": counts({Event.MMU_UPDATE: 10}),
        "unknown": counts({Event.MMU_UPDATE: 1}, {Event.MMU_UPDATE: 100}),
    }
    found = sensitivity(d, table(mmu_update=(100, 100, 100))).stability(
        lambda c: c["unknown"] < c["few"]
    )
    assert found.holds
    assert found.flips == (UNKNOWN_OPERATIONS,)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"method": "halton"}, "no method 'halton'"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"samples": 100, "method": "sobol"}, "samples must be a power of two"),
        ({"costs": {"a": "p4-2006"}}, "no cost table for 'b'"),
    ],
)
def test_wrong_parameters_are_one_line(kw, message):
    designs = {"a": counts({Event.STORE: 1}), "b": counts({Event.STORE: 2})}
    with pytest.raises(CostError, match=message):
        sensitivity(designs, kw.pop("costs", "p4-2006"), **kw)


def test_what_cannot_run_or_has_no_price():
    bad = replay(recorded("mmap.16"), "linux-6.1 -alloc_pte", "direct")
    with pytest.raises(CostError, match="'bad' cannot run"):
        sensitivity({"bad": bad}, "p4-2006")
    with pytest.raises(CostError, match="no price for 'multicall'"):
        sensitivity({"a": counts({Event.MULTICALL: 1})}, table(store=(1, 1, 1)))


def test_rank_of_a_random_field():
    """Nominal ranks are those of the prices, whatever they are."""
    r = random.Random(5)
    designs = {f"d{i}": counts({Event.STORE: r.randrange(1, 10**6)}) for i in range(9)}
    ranks = sensitivity(designs, "p4-2006", samples=4).ranks()
    want = sorted(designs, key=lambda s: designs[s].low[Event.STORE])
    assert list(ranks.index) == want
    assert (ranks["same_rank"] == 1).all()


def test_the_figure_shows_the_ranges():
    from pvmmu.figures import range_finding, sensitivity_figure

    s = sensitivity(fork_designs(), "p4-2006", samples=64)
    figure = sensitivity_figure(s, "today")
    assert figure.get_suptitle().replace("\n", " ") == range_finding(s, "hooked", "today")
    left, right = figure.axes
    assert left.get_xlim()[0] == 0
    assert [t.get_text() for t in left.get_yticklabels()] == list(s.ranks().index)
    bars = sorted(p.get_width() for p in right.patches)
    assert bars[-1] == pytest.approx(s.ratios("hooked", "today")["swing"].iloc[0])
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= 0
    assert box.x1 <= width
    assert box.y1 <= height
