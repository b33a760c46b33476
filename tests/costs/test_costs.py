"""Cost tables: validation with the path of the field, prices, ranges."""

from __future__ import annotations

import numpy as np
import pytest

from pvmmu.costs import CostTable, calibrate, calibration, cost_names, get_costs
from pvmmu.costs.files import copy_costs
from pvmmu.errors import CostError
from pvmmu.modes.events import EVENTS, N_EVENTS, Event, column

GOOD = """
title = "a test"
cpu = "none"
year = 2026
mhz = 1000
[free]
queued = "a remark"
[events.mmu_update]
value = 2
unit = "us"
kind = "prior"
range = [1, 4]
source = "a test"
[events.pte_emulation]
value = 500
unit = "cycles"
kind = "published"
source = "a test"
"""


def load(tmp_path, text):
    path = tmp_path / "t.toml"
    path.write_text(text)
    return get_costs(path)


WRONG = {
    "negative": (("value = 2", "value = -2"), "events.mmu_update.value: "),
    "not finite": (("value = 2", "value = inf"), "events.mmu_update.value: "),
    "no number": (("value = 2", 'value = "two"'), "events.mmu_update.value: "),
    "unit": (('unit = "us"', 'unit = "min"'), "events.mmu_update.unit: "),
    "kind": (('kind = "prior"', 'kind = "guess"'), "events.mmu_update.kind: "),
    "no range": (("range = [1, 4]", ""), "events.mmu_update: a prior needs a range"),
    "outside": (("range = [1, 4]", "range = [3, 4]"), "events.mmu_update: value 2 is outside"),
    "event": (("events.mmu_update", "events.mmu_updat"), "did you mean 'mmu_update'"),
    "no source": (('source = "a test"', 'source = ""'), "source: "),
    "extra": (("mhz = 1000", "mhz = 1000\nmips = 3"), "mips: "),
    "no clock": (("mhz = 1000", ""), "mhz: "),
    "clock": (("mhz = 1000", "mhz = 0"), "mhz: "),
    "twice": (("queued", "mmu_update"), "'mmu_update' is priced and free"),
    "no toml": (("[free]", "[free"), "not TOML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_field_is_named(case, tmp_path):
    (old, new), message = WRONG[case]
    with pytest.raises(CostError) as e:
        load(tmp_path, GOOD.replace(old, new))
    assert message in str(e.value)
    assert "t.toml" in str(e.value)
    assert "\n" not in str(e.value)


def test_units(tmp_path):
    t = load(tmp_path, GOOD)
    assert t.vector[Event.MMU_UPDATE] == 2000  # 2 us at 1,000 MHz
    assert t.vector[Event.PTE_EMULATION] == 500
    assert t.vector[Event.QUEUED] == 0
    low, high = t.bounds()
    assert (low[Event.MMU_UPDATE], high[Event.MMU_UPDATE]) == (1000, 4000)
    assert low[Event.PTE_EMULATION] == high[Event.PTE_EMULATION] == 500


def test_prices_are_linear(tmp_path):
    t = load(tmp_path, GOOD)
    counts = np.zeros(N_EVENTS, np.int64)
    counts[[Event.MMU_UPDATE, Event.PTE_EMULATION, Event.QUEUED]] = 3, 2, 9
    assert t.price(counts) == 3 * 2000 + 2 * 500


def test_an_event_without_price_is_an_error(tmp_path):
    t = load(tmp_path, GOOD)
    counts = np.zeros(N_EVENTS, np.int64)
    counts[Event.MULTICALL] = 1
    with pytest.raises(CostError, match="has no price for 'multicall'"):
        t.price(counts)


MEASURED = [n for n in cost_names() if get_costs(n).unit == "instructions"]


@pytest.mark.parametrize("name", MEASURED)
def test_measured_tables_price_nothing_that_was_not_measured(name):
    t = get_costs(name)
    priced = (*t.events.values(), *t.operations.values(), *t.context.values())
    assert {c.kind for c in priced} == {"measured"}
    assert all(c.range for c in priced)
    assert t.error[0] < t.error[1] < 0.1


def test_parts_of_a_whole_and_units_that_do_not_mix(tmp_path):
    t = get_costs("xen-4.17-instructions")
    parts = t.parts({"mmu_update": 2, "set_pte": 3, "system_calls": 1, "store": 9, "touch": 5})
    assert set(parts.index) == {"mmu_update", "set_pte", "system_calls"}
    assert parts["mmu_update"] == 2 * t.events["mmu_update"].value
    with pytest.raises(CostError, match="has no price for 'ipi'"):
        t.parts({"ipi": 1})
    counts = np.zeros(N_EVENTS, np.int64)
    counts[Event.MMU_UPDATE] = 2
    assert t.price(counts) == parts["mmu_update"]
    with pytest.raises(CostError, match="a table in instructions has no figures in other units"):
        load(tmp_path, GOOD.replace('"cycles"', '"instructions"', 1))
    with pytest.raises(CostError, match="no operation is named 'set_ptf'; did you mean 'set_pte'"):
        load(tmp_path, GOOD + '\n[operations.set_ptf]\nvalue = 1\nunit = "cycles"\n'
             'kind = "measured"\nsource = "a test"\n')  # fmt: skip


@pytest.mark.parametrize("name", [n for n in cost_names() if n not in MEASURED])
def test_shipped_tables_price_every_event(name):
    t = get_costs(name)
    priced = set(t.events) | set(t.free)
    assert priced == {column(e) for e in EVENTS}
    assert {c.kind for c in t.events.values()} <= {"measured", "published", "secondary", "prior"}
    assert t.frame().loc["mmu_update", "low"] < t.frame().loc["mmu_update", "high"]


def test_unknown_names():
    with pytest.raises(CostError, match="did you mean 'p4-2006'"):
        get_costs("p4-2007")
    with pytest.raises(CostError, match="cannot be read"):
        get_costs("/nonexistent/t.toml")


def test_a_table_cannot_be_changed(tmp_path):
    t = load(tmp_path, GOOD)
    assert isinstance(t, CostTable)
    with pytest.raises(ValueError, match="frozen"):
        t.mhz = 5


# ---------------------------------------------------------------- tables that build on others
LIKE = """
title = "a test"
cpu = "none"
year = 2026
mhz = 3800
like = "p4-2006"
[scale]
factor = 0.5
range = [0.25, 2.0]
source = "a test"
[events.pte_emulation]
value = 77
unit = "cycles"
kind = "published"
source = "a test"
"""


def test_a_table_builds_on_another(tmp_path):
    base, t = get_costs("p4-2006"), load(tmp_path, LIKE)
    assert t.vector[Event.PTE_EMULATION] == 77
    assert t.vector[Event.MMU_UPDATE] == 0.5 * base.vector[Event.MMU_UPDATE]
    (low, high), (base_low, base_high) = t.bounds(), base.bounds()
    assert low[Event.MMU_UPDATE] == 0.25 * base_low[Event.MMU_UPDATE]
    assert high[Event.MMU_UPDATE] == 2 * base_high[Event.MMU_UPDATE]
    assert t.events["mmu_update"].kind == "prior"
    assert "p4-2006, times 0.5 (a test)" in t.events["mmu_update"].source
    assert t.free == base.free
    plain = load(tmp_path, LIKE[: LIKE.index("[scale]")] + LIKE[LIKE.index("[events") :])
    assert plain.events["mmu_update"] == base.events["mmu_update"]


def test_a_table_builds_on_a_file_beside_it(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    base = load(tmp_path / "own", LIKE)
    (tmp_path / "own" / "u.toml").write_text(
        LIKE.replace("p4-2006", "t.toml").replace("value = 77", "value = 11")
    )
    monkeypatch.chdir(tmp_path)
    u = get_costs("own/u.toml")
    assert u.vector[Event.PTE_EMULATION] == 11
    assert u.vector[Event.MMU_UPDATE] == 0.5 * base.vector[Event.MMU_UPDATE]

    (tmp_path / "copy").mkdir()
    assert copy_costs(tmp_path / "own" / "u.toml", tmp_path / "copy") == "u.toml"
    copied = get_costs(tmp_path / "copy" / "u.toml")
    assert copied.events == u.events and copied.free == u.free
    np.testing.assert_array_equal(copied.vector, u.vector)
    assert "Built on t.toml" in copied.notes

    (tmp_path / "own" / "t.toml").write_text(LIKE.replace("p4-2006", "u.toml"))
    with pytest.raises(CostError, match=r"u\.toml: like: a table cannot build on itself"):
        get_costs("own/u.toml")


WRONG_LIKE = {
    "unknown": (('like = "p4-2006"', 'like = "p4-2005"'), "did you mean 'p4-2006'"),
    "itself": (('like = "p4-2006"', 'like = "t"'), "cannot build on itself"),
    "nothing": (('like = "p4-2006"', ""), "scale: there is nothing to scale"),
    "factor": (("factor = 0.5", "factor = 0"), "scale.factor: "),
    "range": (("range = [0.25, 2.0]", "range = [1, 2]"), "factor 0.5 is outside its range"),
    "leader": (("value = 77", 'value = 77\nfollows = "queued"'), "follows 'queued', which has no"),
    "follower": (("value = 77", 'value = 77\nfollows = "locked"'), "'locked' but has no range"),
}


@pytest.mark.parametrize("case", WRONG_LIKE)
def test_a_wrong_relation_is_named(case, tmp_path):
    (old, new), message = WRONG_LIKE[case]
    with pytest.raises(CostError) as e:
        load(tmp_path, LIKE.replace(old, new))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", cost_names())
def test_shipped_priors_say_what_they_are(name):
    for event, c in get_costs(name).events.items():
        assert c.kind != "prior" or c.range, event
        if c.kind == "secondary":
            assert "third-party" in c.source or "read in" in c.source, event


# ---------------------------------------------------------------- calibration
def timings(**changed):
    """Nanoseconds of a machine that is always equally fast."""
    even = {
        "touch_page": 900.0, "populate_page": 500.0, "mprotect_page": 30.0,
        "mprotect_page_flushed": 130.0, "munmap_page": 200.0, "fork_page": 80.0,
        "context_switch": 2000.0, "tlb_miss": 9.0,
    }  # fmt: skip
    return {k: [v - 1, v, v, v, v + 1] for k, v in (even | changed).items()}


def test_a_calibrated_table_is_marked_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "_timings", lambda n: timings())
    t = calibrate(tmp_path / "mine.toml", like="p4-2006", repetitions=5, mhz=2000)
    assert t.vector[Event.FAULT] == pytest.approx(400 * 2)  # ns at 2,000 MHz
    assert t.vector[Event.LOCKED] == pytest.approx(30 * 2)
    assert t.vector[Event.INVLPG] == pytest.approx(100 * 2)
    assert {n for n, c in t.events.items() if c.kind == "measured"} == {"fault", "locked", "invlpg"}
    assert t.events["mmu_update"] == get_costs("p4-2006").events["mmu_update"]
    assert t.measurements["tlb_miss"].value == 9
    assert get_costs(tmp_path / "mine.toml") == t


def test_a_difference_in_the_noise_stays_a_prior(monkeypatch):
    monkeypatch.setattr(calibration, "_timings", lambda n: timings(mprotect_page_flushed=20.0))
    t = calibrate(like="p4-2006", repetitions=5, mhz=2000)
    assert t.events["invlpg"].kind == "prior"
    without = timings()
    del without["populate_page"]  # a kernel before 5.14
    monkeypatch.setattr(calibration, "_timings", lambda n: without)
    assert calibrate(like="p4-2006", repetitions=5, mhz=2000).events["fault"].kind == "secondary"


def test_calibration_fails_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(CostError, match="at least 5 repetitions"):
        calibrate(repetitions=1)
    monkeypatch.setattr(calibration, "_timings", lambda n: timings())
    with pytest.raises(CostError, match="cannot be written"):
        calibrate(tmp_path / "none" / "t.toml", repetitions=5, mhz=1)


def test_this_machine_can_be_timed():
    t = calibrate(repetitions=5, mhz=2000)
    assert {"touch_page", "mprotect_page", "munmap_page", "context_switch"} <= set(t.measurements)
    touch, switch = t.measurements["touch_page"], t.measurements["context_switch"]
    assert 20 < touch.value < 1e6
    assert 100 < switch.value < 1e8
