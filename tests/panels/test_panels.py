"""What every panel has: state as text, undo, reset, errors in place, one redraw for a change."""

from __future__ import annotations

import json
import time

import pandas as pd
import pytest
from conftest import recorded

from pvmmu.errors import SearchError
from pvmmu.evidence.truth import shipped_measurements
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.trace import Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes import get_mode
from pvmmu.modes.direct.backends import backends
from pvmmu.modes.known_modes import mode_variants
from pvmmu.modes.shadow.rules import IMPLEMENTATIONS
from pvmmu.panels import (
    DesignPanel,
    OopsPanel,
    ReachPanel,
    RealityPanel,
    SearchPanel,
    TimelinePanel,
    WalkPanel,
)
from pvmmu.panels.oops import EXAMPLE
from pvmmu.replay import explain, replay
from pvmmu.search import search


@pytest.fixture(scope="module")
def found():
    return search([recorded("fork.16"), recorded("mmap.16")], ["direct", "vmi"], progress=False)


def panels(found):
    """Return each panel with a way to make it anew and moves of its controls."""
    return {
        "designs": (lambda: DesignPanel("fork.16"), [
            lambda p: p.matrix.boxes["set_ptes"].set_trait("value", True),
            lambda p: p.mode.set("shadow:code=xen-2006"),
            lambda p: p.workload.set("mmap.16"),
        ]),
        "walks": (WalkPanel, [
            lambda p: p.way.set_trait("value", "native"),
            lambda p: p.format.set_trait("value", "PAE"),
            lambda p: p.address.set("0x1234000"),
        ]),
        "oopses": (OopsPanel, [
            lambda p: p.text.set_trait("value", EXAMPLE.replace("0x000b", "0x0003")),
            lambda p: p.text.set_trait("value", EXAMPLE.replace("PTE 8", "PTE 0")),
            lambda p: p.text.set_trait("value", EXAMPLE.replace("PUD 3fd03c067", "PUD 0")),
        ]),
        "reach": (lambda: ReachPanel("sort"), [
            lambda p: p.sliders[1].set_trait("value", 8),
            lambda p: p.sliders[2].set_trait("value", 16),
            lambda p: p.sliders[0].set_trait("value", 32),
        ]),
        "timeline": (TimelinePanel, [
            lambda p: p.size.set_trait("value", 4),
            lambda p: p.kernels[0].set_trait("value", "6.1"),
            lambda p: p.workload.set_trait("value", "mmap"),
        ]),
        "reality": (lambda: RealityPanel(shipped_measurements(largest=16)), [
            lambda p: p.share.set_trait("value", 0.0),
            lambda p: p.workload.set_trait("value", "fork"),
            lambda p: p.share.set_trait("value", 0.25),
        ]),
        "search": (lambda: SearchPanel(found, ("direct", "vmi"), "p4-2006"), [
            lambda p: p.budget.set_trait("value", p.budget.min + 1),
            lambda p: p.weights["fork.16"].set_trait("value", 4),
            lambda p: p.against.set_trait("value", "linux-2.6.27"),
        ]),
    }  # fmt: skip


@pytest.fixture(params=["designs", "walks", "oopses", "reach", "timeline", "reality", "search"])
def made(request, found):
    make, moves = panels(found)[request.param]
    panel = make()
    assert (panel.redraws, panel.messages.defects.outputs) == (1, ())
    assert not panel.messages.line.value
    return panel, make, moves


def picture(panel):
    return panel.picture.image.value


def test_each_move_is_drawn_once_and_can_be_undone(made):
    panel, _, moves = made
    states, pictures = [panel.state()], [picture(panel)]
    for n, move in enumerate(moves, 2):
        move(panel)
        assert panel.redraws == n
        assert panel.state() not in states
        assert picture(panel) != pictures[-1]
        states.append(panel.state())
        pictures.append(picture(panel))
    for state, shown in zip(states[-2::-1], pictures[-2::-1], strict=True):
        panel.history.undo()
        assert panel.state() == state
        if not isinstance(panel, SearchPanel):  # whose axes keep their limits while these fit
            assert picture(panel) == shown
    assert panel.history.undo_button.disabled
    for move in moves:
        move(panel)
    panel.history.reset()
    assert panel.state() == states[0]
    panel.history.undo()
    assert panel.state() == states[-1]
    assert not panel.messages.defects.outputs


def test_the_text_comes_back_elsewhere(made):
    panel, make, moves = made
    for move in moves:
        move(panel)
    text = panel.history.line.value
    assert text.isascii() and json.loads(text) == panel.state()
    other = make()
    other.history.line.value = text  # what Enter does
    assert other.state() == panel.state()
    assert other.redraws == 2
    assert not other.messages.line.value


def test_a_text_that_does_not_fit_is_told_and_changes_nothing(made):
    panel, _, _ = made
    before, redraws = panel.state(), panel.redraws
    name = list(before)[-1]
    bad = [
        "x", "[]", "{}", json.dumps(before | {"colour": "red"}),
        *(json.dumps(before | {k: wrong}) for k in before for wrong in (None, "no such", [[1]])
          if not (k == "against" and wrong is None)),
        json.dumps({k: v for k, v in before.items() if k != name}),
    ]  # fmt: skip
    if name == "against":  # a design panel takes an older text without it
        bad.pop()
    for text in bad:
        panel.history.line.value = text
        assert panel.state() == before, text
        assert "&#9888;" in panel.messages.line.value, text
        assert not panel.messages.defects.outputs, text
    assert panel.redraws == redraws
    panel.history.line.value = json.dumps(before)


def test_what_is_shown_can_be_exported(made, tmp_path):
    panel, _, moves = made
    moves[0](panel)
    shown = picture(panel)
    panel.folder_box.value = str(tmp_path / "out")
    panel.export()
    assert panel.messages.line.value.startswith("<span>written: "), panel.messages.line.value
    files = {p.suffix: p for p in (tmp_path / "out").iterdir()}
    assert {".png", ".svg", ".pdf"} < files.keys() and len(files) == 4
    if ".json" in files:
        panel.history.reset()
        panel.restore(files[".json"].read_text())
    else:
        assert max(map(len, files[".txt"].read_text(encoding="ascii").splitlines())) <= 72
    if not isinstance(panel, SearchPanel):
        assert picture(panel) == shown
    (tmp_path / "file").write_text("x")
    panel.folder_box.value = str(tmp_path / "file")
    panel.export()
    assert "cannot be made" in panel.messages.line.value and not panel.messages.defects.outputs


def test_fast_moves_end_in_the_last_state(made):
    panel, make, moves = made
    for move in moves * 4:
        move(panel)
    other = make()
    other.restore(panel.state())
    assert other.state() == panel.state()
    for name in ("status", "table", "finding"):
        if hasattr(panel, name):
            assert getattr(other, name).value == getattr(panel, name).value


def test_every_backend_and_every_shadow_code_is_offered():
    variants = mode_variants()
    for name in backends():
        assert get_mode(f"direct:backend={name}").spec in variants
    for code in IMPLEMENTATIONS:
        assert get_mode(f"shadow:code={code}").spec in variants
    assert all(get_mode(spec).spec == spec for spec in variants)
    assert not any("of this session" in title for title in variants.values())
    offered = {spec for _, spec in DesignPanel("fork.16").mode.options}
    assert offered == set(variants)


def test_a_mode_of_ones_own_text_is_taken():
    panel = DesignPanel("fork.16", "direct:backend=2006:stores=refuse")
    assert panel.mode.value == "direct:backend=2006:stores=refuse"
    panel.restore(panel.state() | {"mode": "direct:backend=1999"})
    assert "1999" in panel.messages.line.value


def test_a_workload_on_a_modelled_kernel():
    panel = DesignPanel("fork.16")
    panel.workload.kernel.value = "2.6.22"
    panel.workload.workload.value = "mmap"
    panel.workload.size.value = 32
    assert panel.state()["trace"] == "mmap.32@2.6.22"
    want = replay(load_trace("mmap.32@2.6.22"), "linux-6.1", "direct")
    assert f"{want.entries:,} entries" in panel.status.value
    assert panel.workload.trace not in panel.workload.widget.children


def test_a_bar_leads_to_its_operations():
    panel = DesignPanel("fork.16", reference=("linux-2.6.27", "direct"))
    places = dict(zip(panel.spots._keys, panel.spots._buttons, strict=False))
    button = places[1, "emulation"]  # of the second bar
    button.click()
    rows = explain(load_trace("fork.16"), "linux-2.6.27", "direct")
    n = int(rows["pte_emulation"].sum())
    assert f"{n:,} by" in panel.causes.value and "PTE_WRPROTECT" in panel.causes.value
    patch = panel.figure.bars.patches["emulation"][1].get_window_extent()
    of_width = 100 / panel.figure.figure.bbox.width
    assert button.layout.left == f"{patch.x0 * of_width:.2f}cqw"
    assert button.layout.width == f"{patch.width * of_width:.2f}cqw"
    assert f"B: {n:,}" in button.tooltip
    for key in list(places):
        panel.spots.choose(key)
        assert not panel.messages.line.value and panel.causes.value, key


def test_who_makes_an_operation():
    panel = TimelinePanel("fork", 16)
    panel.cause.value = "PTE_WRPROTECT"
    assert "16 in A" in panel.callers.value or "in A" in panel.callers.value
    panel.size.value = 4
    assert panel.callers.value == ""


def test_a_search_takes_another_mode_and_compares(found):
    panel = SearchPanel(found, ("direct",), "p4-2006")
    panel.more.value = "direct:backend=2.6.27"
    assert panel.state()["modes"] == ["direct", "direct:backend=2.6.27"]
    assert not panel.messages.line.value
    panel.against.value = "linux-6.1"
    assert set(panel.current.modes) == {"direct", "direct:backend=2.6.27"}
    cycles = panel.current.cycles_of(HookSet.parse("linux-6.1"))["direct:backend=2.6.27"]
    assert f"{round(cycles, 2):,.6g}" in panel.table.value
    panel.show_hook(panel.current.names[0])
    assert "mmap.16" in panel.worth.value and "cannot run" not in panel.messages.line.value
    other = SearchPanel(found, ("direct",), "p4-2006")
    other.restore(panel.history.line.value)  # searches what it has not
    assert other.state() == panel.state()
    offered = panel.more.options
    panel.more.value = "lguest"
    assert panel.more.options == offered, "a place in the list would mean another mode"
    assert not {"native", "nested"} & {spec for _, spec in offered}, "no hook matters there"
    with pytest.raises(SearchError, match="no hook matters in mode native"):
        panel.add_mode("native")


def test_what_cannot_be_drawn_is_not_shown_as_if_it_were():
    panel = DesignPanel("fork.16")
    panel.against.value = "nonsense"
    assert "pvmmu-stale" in panel.picture.widget._dom_classes
    assert "not MODE=HOOKS" in panel.picture._unshown.value
    panel.against.value = "direct=linux-6.1"
    assert "pvmmu-stale" not in panel.picture.widget._dom_classes
    assert panel.picture._unshown.layout.display == "none"


def test_a_line_that_is_no_state_goes_with_undo_or_reset():
    for way in ("undo", "reset"):
        panel = DesignPanel("fork.16")
        shown = panel.history.line.value
        panel.history.line.value = "junk"
        assert panel.messages.line.value and not panel.history.undo_button.disabled
        getattr(panel.history, way)()
        assert panel.history.line.value == shown and not panel.messages.line.value


def test_pictures_and_hooks_say_what_they_are():
    panel = DesignPanel("fork.16")
    assert "as many entries as linux-6.1" in panel.picture.caption.value
    panel.matrix.value = HookSet.parse("linux-6.1 +ptep_set_wrprotect")
    assert "fewer entries than linux-6.1" in panel.picture.caption.value
    png, said = panel.figure.figure._repr_png_()
    assert png.startswith(b"\x89PNG") and "fewer entries than linux-6.1" in said["alt"]
    hook = catalogue()["ptep_set_wrprotect"]
    assert hook.meaning in panel._style.value, "the style sheet says it where the mouse is"


def test_shared_requests_are_told_apart_from_calls():
    panel = DesignPanel("fork.64")
    panel.show_causes(0, "batched")
    shared = replay(load_trace("fork.64"), "linux-6.1", "direct").by_category()["batched"]
    assert f"so that {shared:,} shared one" in panel.causes.value


def test_a_workload_that_would_take_minutes_is_refused_at_once():
    panel = DesignPanel("fork.16")
    start = time.perf_counter()
    panel.history.line.value = panel.history.line.value.replace("fork.16", "kernel_build.1024@6.1")
    assert "million operations; a panel shows 3 million" in panel.messages.line.value
    assert "pvmmu-stale" in panel.picture.widget._dom_classes
    assert time.perf_counter() - start < 60


def test_what_differs_between_two_designs_can_be_sorted_and_filtered():
    panel = DesignPanel("fork.64", hooks="linux-6.1 +ptep_set_wrprotect")
    panel.inspector.question.value = "differences"
    rows = panel.inspector.shown()
    [wrprotect] = rows[rows["op"] == "PTE_WRPROTECT"].to_dict(orient="records")
    trapped = replay(load_trace("fork.64"), "linux-6.1", "direct")["pte_emulation"]
    kept = replay(load_trace("fork.64"), "linux-6.1 +ptep_set_wrprotect", "direct")["pte_emulation"]
    assert wrprotect["pte_emulation"] == kept - trapped == -wrprotect["operations"]
    assert (wrprotect["mechanism_a"], wrprotect["mechanism_b"]) == ("mmu update", "trap")
    assert load_trace("fork.64")["op"][wrprotect["row"]] == Op.PTE_WRPROTECT
    panel.inspector.filter.value = "wrprotect"
    assert len(panel.inspector.shown()) == 1
    panel.inspector.filter.value = "nothing of the kind"
    assert panel.inspector.shown().empty and "nothing" in panel.inspector.answer.value
    panel.matrix.value = HookSet.parse("linux-6.1")
    assert panel.inspector.question.value == "" and panel.inspector.answer.value == ""


def test_what_each_hook_would_do_is_what_it_does():
    panel = DesignPanel("mmap.16")
    panel.inspector.question.value = "effects"
    rows = panel.inspector.shown().set_index("change")
    base = replay(load_trace("mmap.16"), "linux-6.1", "direct").entries
    with_hook = replay(load_trace("mmap.16"), "linux-6.1 +ptep_get_and_clear", "direct").entries
    assert rows.loc["+ptep_get_and_clear", "entries"] == with_hook - base < 0
    assert not rows.loc["+ptep_get_and_clear", "verdict"].startswith("sound:")
    assert pd.isna(rows.loc["-alloc_pte", "entries"])
    assert rows.loc["-alloc_pte", "verdict"].startswith("dies")


def test_a_hook_is_found_by_what_it_does():
    panel = DesignPanel("fork.16")
    panel.matrix.find.value = "wrprotect"
    seen = [n for n, box in panel.matrix.boxes.items() if box.layout.display != "none"]
    assert "ptep_set_wrprotect" in seen and "set_pte" not in seen
    panel.matrix.find.value = ""
    assert all(box.layout.display != "none" for box in panel.matrix.boxes.values())


def test_prices_are_of_the_kernels_era_and_a_change_is_a_share_of_the_run():
    panel = DesignPanel("fork.64", hooks="linux-6.1 +ptep_set_wrprotect")
    assert panel.costs.value == "xen-2026"
    assert "% of the whole program" in panel.status.value
    assert "anachronism" not in panel.status.value
    panel.costs.value = "p4-2006"
    assert "anachronism: prices of 2006" in panel.status.value
    panel.matrix.value = HookSet.parse("linux-6.1 +pte_clear")
    assert "no measurable difference" in panel.status.value
    assert DesignPanel("fork.16@2.6.18").costs.value == "p4-2006"
