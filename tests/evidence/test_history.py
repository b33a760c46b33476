"""Published results and the timeline: provenance, and no figure used twice."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from pvmmu.costs import cost_names, get_costs
from pvmmu.errors import PvmmuError
from pvmmu.evidence import history
from pvmmu.evidence.history import (
    PricedDesign,
    compared,
    implied_shares,
    not_predicted,
    predictions,
    published,
    shares,
    timeline,
)
from pvmmu.guest.load_trace import load_trace
from pvmmu.hooks import catalogue, interfaces, members
from pvmmu.paths import data_path
from pvmmu.replay import replay

KEY = ["group", "workload", "config"]
#: What a source can be found again by: commit, message, archive number, report, file of a release.
_ID = re.compile(
    r"\b[0-9a-f]{10,40}\b|\S+@\S+|lkml \d{4}\.\d/\d+|0805\.2/4026|thr3ads\.net.*\d{6}"
    r"|arXiv \d|NWU-EECS-\d\d-\d\d|doi 10\.|msg\d{5}|v2\.6\.\d+-rc\d"
)


def can_be_opened(source: str) -> bool:
    """Whether a source names something that can be opened again."""
    return bool(_ID.search(source))


def test_every_row_has_a_source_and_a_role():
    table = published()
    assert len(table) > 190
    assert (table["source"] != "").all()
    assert set(table["verified"]) == {"yes", "partly", "secondary", "no"}
    sure = table[table["verified"] == "yes"]["source"]
    assert sure.map(can_be_opened).all(), sure[~sure.map(can_be_opened)].tolist()
    assert set(table["role"]) == {"predicted", "share", "anchor", "calibrates", "context"}
    assert not table["source"].str.contains(r"\bid \d|stored|/work").any()


def test_no_row_calibrates_and_is_predicted():
    table = published().set_index(KEY)
    rows = [(p.group, p.workload, p.config) for p in predictions()]
    assert len(rows) == len(set(rows))
    assert set(rows) == set(table.index[table["role"] == "predicted"])
    anchors = {(p.group, p.workload, p.anchor) for p in predictions()}
    assert anchors <= set(table.index[table["role"] == "anchor"])
    for p in predictions():
        for side in (p.before, p.after):
            assert all(
                commit_of(p.group) not in c.source for c in get_costs(side.costs).events.values()
            )


def commit_of(group: str) -> str:
    """What a cost table would cite, had it been set with rows of this group."""
    row = published().query("group == @group").iloc[0]
    found = re.search(r"\b[0-9a-f]{8,12}\b", row["source"])
    return found[0] if found else row["source"]


def test_shares_of_benchmarks_are_neither():
    table = published().set_index(KEY)
    rows = [(p.group, p.workload, p.config) for p in shares()]
    assert sorted(rows) == sorted(table.index[table["role"] == "share"])
    for p, row in zip(shares(), rows, strict=True):
        text = table.loc[row, "ratio"] or ""
        assert not text or float(text) == pytest.approx(sum(p.published) / 2)


def test_an_implied_share_undoes_the_ratio():
    """By hand: (share of paging) x ratio + the rest = what was published."""
    table = implied_shares(samples=16)
    for row in table.itertuples():
        p = next(p for p in shares() if p.config == row.config and p.workload == row.workload)
        ends = (row.low, row.high) if p.published[1] < 1 else (row.high, row.low)
        for share, ratio, time in zip(
            (row.share_low, row.share_high), ends, p.published[::-1], strict=True
        ):
            if share == np.inf:
                assert (ratio < 1) != (time < 1)
            else:
                assert share * ratio + 1 - share == pytest.approx(time)
        assert row.low <= row.paging <= row.high
    assert table["possible"].all()


def test_late_pin_is_predicted_with_the_guest_of_its_time(table):
    late = table[table["group"].str.startswith("Xen late pin")]
    assert len(late) == 3
    assert late["provenance"].str.contains("backend=2005 under xenlinux-2005").all()
    # a shell of 2005 did more than today's dash: that row lies at the edge of the range
    over = (late["low"] - late["published"]).clip(lower=0) + (
        late["published"] - late["high"]
    ).clip(lower=0)
    assert (over < 0.02).all(), late.to_string()
    assert late.set_index("workload").loc[["fork proc", "exec proc"], "agrees"].all()


def test_tables_say_which_published_ratios_they_were_set_with():
    cited = {
        name: " ".join(c.source for c in get_costs(name).events.values()) for name in cost_names()
    }
    assert "lkml 2008-05-23" in cited["p4-2006"]
    assert "3.27 s -> 0.76 s" in cited["xen-2026"]
    set_with = published().query("role == 'calibrates'")
    assert set(set_with["group"]) == {"pvops Xen mprotect", "Xen PV RMW hook regret"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return compared(samples=64, seed=3)


def test_predictions_are_reproducible_and_bounded(table):
    again = compared(samples=64, seed=3)
    pd.testing.assert_frame_equal(table, again)
    assert (table["low"] <= table["predicted"]).all()
    assert (table["predicted"] <= table["high"]).all()
    inside = (table["low"] <= table["published"]) & (table["published"] <= table["high"])
    assert (inside == table["agrees"]).all()
    assert table["provenance"].str.contains("priced by").all()


def test_a_prediction_is_a_difference_of_cycles(table):
    """By hand: one stream, at the values of the cost table."""
    p = next(p for p in predictions() if p.workload == "page fault")
    [name] = p.streams
    cycles = [
        replay(load_trace(name), side.hooks, side.mode).cycles(side.costs)
        for side in (p.before, p.after)
    ]
    anchor = published().query("workload == 'page fault' and config == @p.anchor").iloc[0]
    want = 1 + (cycles[1] - cycles[0]) / p.per / (float(anchor["value"]) * p.mhz)
    got = table.set_index("workload").loc["page fault", "predicted"]
    assert got == pytest.approx(want)


def test_another_cost_table_gives_another_prediction(monkeypatch):
    p = next(p for p in predictions() if p.workload == "page fault")
    before = history.predicted_ratios(p, 8, 0)[0]
    other = PricedDesign(p.after.hooks, p.after.mode, "nehalem-2009")
    changed = history.Prediction(**{**p.__dict__, "after": other})
    assert not np.allclose(before, history.predicted_ratios(changed, 8, 0)[0])


def test_what_is_not_predicted_says_why():
    left = not_predicted()
    assert left["why"].notna().all()
    assert len(left) + len(predictions()) == (published()["ratio"] != "").sum()


def test_timeline_is_complete():
    events = timeline()
    assert len(events) == 60
    assert events["id"].is_unique
    assert set(events["verified"]) <= {"yes", "partly", "no"}
    sure = events[events["verified"] == "yes"]
    assert sure["source"].map(can_be_opened).all(), sure[~sure["source"].map(can_be_opened)]
    assert not events["source"].str.contains("memory").any()
    assert list(events["date"].str[:4]) == sorted(events["date"].str[:4])
    for event in ("VMI removed", "alloc/release_pt", "lazy MMU hooks"):
        assert events["event"].str.contains(event).any(), event


def test_nothing_is_unchecked():
    """Each row of the timeline, each hook, interface and member has the source that was opened."""
    parts = re.split(r"^## (\w+)$", data_path("history", "CHECKED.md").read_text(), flags=re.M)[1:]
    rows = {
        part: dict(re.findall(r"^\| ([\w.-]+) \| (.+) \| [\w -]+ \|$", text, re.M))
        for part, text in zip(parts[::2], parts[1::2], strict=True)
    }
    wanted = {
        "Timeline": timeline()["id"], "Hooks": catalogue(), "Interfaces": interfaces(),
        "Members": members(),
    }  # fmt: skip
    for part, names in wanted.items():
        assert set(rows[part]) - {"row"} == set(names), part
        assert all(text.strip() for text in rows[part].values())
    dates = re.findall(r"\| (\d{4}-\d\d-\d\d|not checked) \|$", "".join(parts), re.M)
    assert len(dates) == sum(len(list(names)) for names in wanted.values())


def test_a_prediction_of_nothing_is_refused():
    row = {"group": "x", "workload": "y", "config": "z", "anchor": "a", "mhz": 1, "streams": [],
           "before": {"hooks": "none", "mode": "native", "costs": "p4-2006"},
           "after": {"hooks": "none", "mode": "native", "costs": "p4-2006"},
           "assumes": ""}  # fmt: skip
    with pytest.raises(PvmmuError, match="x, y, z: 0 rows"):
        history._prediction(dict(row))
    del row["before"]
    with pytest.raises(PvmmuError, match=r"predictions\.toml: 'before'"):
        history._prediction(row)
