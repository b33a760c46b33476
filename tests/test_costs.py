"""Cost tables: validation with the path of the field, prices, ranges."""

from __future__ import annotations

import numpy as np
import pytest

from pvmmu.costs import CostTable, cost_names, get_costs
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


@pytest.mark.parametrize("name", cost_names())
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
