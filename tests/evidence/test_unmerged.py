"""What was never merged: each figure is a difference of replays."""

from __future__ import annotations

import pytest
from conftest import recorded
from matplotlib.text import Text

from pvmmu.evidence.unmerged import (
    PROPOSALS,
    SHADOWS,
    SINGLE,
    WHAT_IFS,
    against_shadow,
    against_shadow_finding,
    costliest_omission,
    entries_finding,
    omission_finding,
    what_if,
)
from pvmmu.figures import proposals_figure
from pvmmu.figures.claims import omissions_figure
from pvmmu.guest.rewrite import bracket_fault_around
from pvmmu.hooks import HookSet
from pvmmu.replay import replay


@pytest.fixture(scope="module")
def table():
    return what_if([recorded("shloop"), recorded("forksnap")], samples=32)


def test_what_is_saved_is_a_difference_of_replays(table):
    row = table.set_index(["stream", "change"]).loc[("shloop", "wrprotect")]
    trace = recorded("shloop")
    a, b = (replay(trace, h, "direct") for h in ("linux-6.1", "linux-6.1 +ptep_set_wrprotect"))
    assert row["entries_saved"] == a.entries - b.entries
    assert row["entries_share"] == pytest.approx(1 - b.entries / a.entries)
    assert row["saved"] == pytest.approx(1 - b.cycles("xen-2026") / a.cycles("xen-2026"))
    assert row["hooks_more"] == 1
    assert (table["low"] <= table["saved"] + 1e-12).all()
    assert len(table) == 2 * (len(SINGLE) + 1)
    everything = table[table["change"] == "all of these"].set_index("stream")["saved"]
    single = table[table["change"].isin(SINGLE)].groupby("stream")["saved"].max()
    assert (everything >= single[everything.index]).all()
    assert set(costliest_omission(table).index) == {"shloop", "forksnap"}


def test_combinations_are_of_what_is_tried_alone():
    hooks = {name: HookSet.parse(w.hooks or "none") for name, w in WHAT_IFS.items()}
    singly = HookSet.parse("none")
    for name in SINGLE:
        singly |= hooks[name]
    assert hooks["all of these"] == singly
    brackets = tuple(b for name in SINGLE for b in WHAT_IFS[name].brackets)
    assert WHAT_IFS["all of these"].brackets == WHAT_IFS["all brackets"].brackets == brackets


def test_other_brackets_are_other_streams():
    trace = recorded("filerd.64")
    table = what_if([trace], PROPOSALS, samples=2).set_index("change")
    assert list(table.index) == list(PROPOSALS)
    row = table.loc["fault-around in a bracket"]
    left = replay(bracket_fault_around(trace), "linux-6.1", "direct").entries
    assert row["entries"] - row["entries_saved"] == left
    text = entries_finding(table.reset_index())
    assert all(name in text for name in PROPOSALS)
    shown = " ".join(t.get_text() for t in proposals_figure(table.reset_index()).findobj(Text))
    assert "get_and_clear (+1 hooks)" in shown


def test_what_makes_direct_paging_cheaper_than_a_shadow():
    trace = recorded("forkexec.16")
    table = against_shadow([trace])
    [row] = table.to_dict("records")
    both = "wrprotect, and fault-around in a bracket"
    assert row["today"] > row["fault-around in a bracket"] > row[both]
    assert row[both] < min(row[name] for name in SHADOWS) < row["today"]
    again = replay(bracket_fault_around(trace), "linux-6.1 +ptep_set_wrprotect", "direct")
    assert row[both] == again.entries
    said = against_shadow_finding(table)
    assert "0 (today)" in said and f"1 ({both})" in said


def test_the_figure_shows_what_was_computed(table):
    figure = omissions_figure(table)
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01
    best = table.loc[table["saved"].idxmax(), "saved"]
    assert f"{best:.1%}" in {t.get_text() for t in figure.axes[0].texts}
    title = figure.get_suptitle().replace("-\n", "-").replace("\n", " ")
    assert omission_finding(table) in title
