"""Example spaces, and what a flush costs afterwards."""

import numpy as np
import pytest
from naive_x86 import NaiveTlb

from pvmmu.x86 import make_geometry, pages
from pvmmu.x86.errors import TlbError, WalkError
from pvmmu.x86.examples import FORMATS, SECONDS, WAYS, ExampleSpace, reference_table
from pvmmu.x86.refill import DISTURBANCES, flush_references, refill

# ---------------------------------------------------------------- example spaces


@pytest.mark.parametrize("second", SECONDS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_shadow_tables_lead_where_nested_ones_do(fmt, second):
    space = ExampleSpace(fmt, second)
    for name in space.places:
        shadow = space.walk(name, way="shadow", user=False, ac=True)
        nested = space.walk(name, way="nested", user=False, ac=True)
        assert (shadow.vector > 0) == (nested.vector > 0), name
        assert shadow.pa == nested.pa, name
        if shadow.pa:
            assert shadow.references == len(space.format.levels) - (fmt == "PAE")


def test_places_are_what_they_are_called():
    space = ExampleSpace("4-level")
    faults = {
        "a page": ("write", True, -1),
        "a read-only page": ("write", True, 7),
        "a page of the kernel": ("read", True, 5),
        "nothing": ("read", True, 4),
        "a page without execution": ("fetch", True, 0x15),
        "a reserved bit": ("read", True, 0xD),
    }
    for name, (access, user, code) in faults.items():
        for way in ("native", "nested"):
            assert space.walk(name, access, user, way=way).error_code == code, name
    assert space.walk("no canonical address").vector == 13
    assert space.walk("a page of 2 MiB").page_shift == 21
    assert space.walk("a page of 1 GiB").page_shift == 30
    assert ExampleSpace("32-bit").walk("a page of 4 MiB").page_shift == 22


def test_references_of_all_formats():
    """(g+1)(h+1)-1, g and h the levels in memory."""
    table = reference_table()
    levels = {"32-bit": 2, "PAE": 2, "4-level": 4, "5-level": 5}
    depth = {"EPT, 4 levels": 4, "EPT, 5 levels": 5, "NPT, 4 levels": 4, "NPT, PAE": 3}
    for fmt, g in levels.items():
        assert table.loc[fmt, "native"] == table.loc[fmt, "shadow"] == g
        for second, h in depth.items():
            own = 3 if fmt == "PAE" and second.startswith("NPT") else g
            assert table.loc[fmt, second] == (own + 1) * (h + 1) - 1


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: ExampleSpace("6-level"), "6-level.*none of: 32-bit"),
        (lambda: ExampleSpace("PAE", "EPT"), "EPT, 4 levels"),
        (lambda: ExampleSpace().walk("home"), "a page"),
        (lambda: ExampleSpace().walk("a page", way="direct"), "native"),
        (lambda: ExampleSpace("PAE").walk(1 << 40), "more bits"),
    ],
)
def test_spaces_that_do_not_exist(call, says):
    with pytest.raises(WalkError, match=says):
        call()
    assert WAYS == ("native", "shadow", "nested")


# ---------------------------------------------------------------- refill


def accesses(n=900, most=40, seed=1):
    numbers = np.random.default_rng(seed).integers(0, most, n).astype(np.uint64)
    return numbers, pages(numbers << np.uint64(12))


def naive_refill(numbers, g, period, visitor, visit, keep):
    """Two dictionaries side by side."""
    plain, other, extra, at = NaiveTlb(g), NaiveTlb(g), np.zeros(period), 0
    top = max(s.level for s in g.structure)
    plain.pcid = other.pcid = 1
    rounds = len(numbers) // period
    for i in range(rounds):
        for k, page in enumerate(numbers[i * period : (i + 1) * period].tolist()):
            a, b = (t.access(page << 12) == top for t in (plain, other))
            extra[k] += (b - a) if i else 0
        if visitor is None:
            other.invpcid("all")
            continue
        at = at if at + visit <= len(visitor) else 0
        other.load_cr3(2 if keep else 1, noflush=keep)
        for page in visitor[at : at + visit].tolist():
            other.access(page << 12)
        other.load_cr3(1, noflush=keep)
        at += visit
    return np.cumsum(extra) / (rounds - 1)


@pytest.mark.parametrize("disturbance", DISTURBANCES)
@pytest.mark.parametrize("l2", [None, (8, 4)])
@pytest.mark.parametrize("visit", [30, 100])  # the visitor begins again where 100 have been left
def test_extra_walks_are_those_of_dictionaries(disturbance, l2, visit):
    numbers, data = accesses()
    visitor, theirs = accesses(400, 60, 2)
    g = make_geometry((4, 4), l2)
    got = refill(data, g, 100, disturbance, theirs, visit)
    own = None if disturbance == "flush" else visitor
    want = naive_refill(numbers, g, 100, own, visit, disturbance == "switch with PCIDs")
    np.testing.assert_allclose(got.extra, want)
    assert got.intervals == 8
    assert got.total == pytest.approx(want[-1])


def test_a_flush_costs_a_walk_for_each_page_that_is_used_again():
    numbers = np.tile(np.arange(10, dtype=np.uint64), 100)
    got = refill(pages(numbers << np.uint64(12)), make_geometry((4, 4)), 50)
    assert got.misses == 0
    assert got.extra[:10].tolist() == list(range(1, 11))
    assert got.total == 10
    assert got.accesses_until(0.5) == 5 and got.accesses_until(1) == 10


def test_pcids_spare_what_the_other_program_leaves():
    _, data = accesses(most=10)
    _, few = accesses(400, 4, 2)
    g = make_geometry((16, 4))
    kept, flushed = (
        refill(data, g, 100, d, few, 30).total for d in ("switch with PCIDs", "switch")
    )
    assert kept == 0 and flushed == pytest.approx(10, abs=0.1)
    assert refill(data, g, 100, "switch with PCIDs", few, 30).accesses_until(0.5) == 0


def test_references_of_a_flush():
    """Without walk caches a walk has 4 or 24 references."""
    numbers = np.tile(np.arange(10, dtype=np.uint64), 100)
    data = pages(numbers << np.uint64(12))
    g = make_geometry((4, 4))
    # the last interval's flush costs nothing any more: nothing follows
    assert flush_references(data, g, 50) == pytest.approx(4 * 10)
    assert flush_references(data, g, 50, nested=True) == pytest.approx(24 * 10)
    assert flush_references(data, "skylake", 50) == pytest.approx(4 + 9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"disturbance": "earthquake"}, "earthquake.*flush"),
        ({"period": 0}, "two intervals"),
        ({"period": 600}, "900 accesses are no two intervals of 600"),
        ({"disturbance": "switch"}, "another program"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(TlbError, match=says):
        refill(accesses()[1], make_geometry((4, 4)), **{"period": 100, **arguments})
    if "disturbance" not in arguments:
        with pytest.raises(TlbError, match="two intervals"):
            flush_references(accesses()[1], make_geometry((4, 4)), arguments["period"])
