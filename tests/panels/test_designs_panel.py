"""The panel without a browser: state, redraws, errors, export."""

from __future__ import annotations

import json
import os

import pytest

from pvmmu.guest.load_trace import load_trace
from pvmmu.panels import DesignPanel
from pvmmu.panels.kit import Messages
from pvmmu.replay import replay


@pytest.fixture
def panel(tmp_path):
    return DesignPanel("fork.16", folder=tmp_path / "export")


def defects(panel):
    return [o["evalue"] for o in panel.messages.defects.outputs]


def test_a_toggle_redraws_once_and_tells_the_count(panel):
    assert panel.redraws == 1
    picture = panel.picture.image.value
    panel.matrix.boxes["ptep_set_wrprotect"].value = True
    assert panel.redraws == 2
    assert panel.picture.image.value != picture
    want = replay(load_trace("fork.16"), "linux-6.1 +ptep_set_wrprotect", "direct")
    assert f"{want.entries:,} entries" in panel.status.value
    assert f"{want.cycles('xen-2026'):,.0f} cycles" in panel.status.value
    assert not defects(panel)


def test_the_figure_is_one_and_its_box_fixed(panel):
    figure, layout = panel.figure.figure, panel.picture.widget.layout
    size = (layout.width, layout.height)
    panel.mode.value = "vmi"
    panel.workload.trace.value = "make"
    assert panel.figure.figure is figure
    assert (layout.width, layout.height) == size


def test_a_preset_redraws_once(panel):
    panel.matrix.presets.value = "vmi"
    assert panel.redraws == 2
    assert panel.matrix.value.short == "vmi"
    assert panel.matrix.presets.value == ""


def test_the_same_state_is_not_drawn_again(panel):
    panel.matrix.value = panel.matrix.value
    assert panel.redraws == 1


def test_idle_hooks_are_dimmed(panel):
    assert "pvmmu-idle" in panel.matrix.boxes["flush_tlb_multi"]._dom_classes
    assert "pvmmu-idle" not in panel.matrix.boxes["lazy_mmu"]._dom_classes
    panel.mode.value = "native"
    assert "pvmmu-idle" in panel.matrix.boxes["lazy_mmu"]._dom_classes


def test_an_infeasible_design_is_told_not_raised(panel):
    panel.matrix.boxes["pte_val"].value = False
    assert "cannot run" in panel.status.value
    assert "never translated" in panel.status.value
    assert not defects(panel)
    assert not panel.messages.line.value


def test_every_trace_and_mode_can_be_shown(panel):
    for trace in ("null.1", "smpmmap.16", "fork.1", "make"):
        panel.workload.trace.value = trace
        for _, mode in panel.mode.options:
            panel.mode.value = mode
            assert not defects(panel), (trace, mode)


def test_causes_lead_to_operations(panel):
    event = "pte_emulation"
    rows = panel.causes_of(event)
    want = replay(load_trace("fork.16"), "linux-6.1", "direct")
    assert rows[event].sum() == want[event]
    assert set(rows["op"]) == {"PTE_WRPROTECT", "PTE_GET_AND_CLEAR"}
    panel.cause.value = event
    assert "PTE_WRPROTECT" in panel.causes.value
    panel.matrix.boxes["set_ptes"].value = True
    assert panel.causes.value == ""


def test_state_can_be_copied_and_restored(panel, tmp_path):
    panel.matrix.boxes["set_ptes"].value = True
    panel.mode.value = "direct:stores=batched"
    state = panel.state()
    other = DesignPanel("make", folder=tmp_path)
    other.restore(json.dumps(state))
    assert other.state() == state
    assert other.status.value == panel.status.value


WRONG_STATES = [
    "not json",
    "{}",
    '{"hooks": "set_ptr", "trace": "fork.1", "mode": "vmi", "costs": "p4-2006"}',
    '{"hooks": "none", "trace": "fork.99", "mode": "vmi", "costs": "p4-2006"}',
]


@pytest.mark.parametrize("state", WRONG_STATES)
def test_a_wrong_state_is_one_line_in_the_panel(panel, state):
    before = panel.state()
    panel.restore(state)
    assert "&#9888;" in panel.messages.line.value
    assert not defects(panel)
    assert panel.state()["trace"] == before["trace"]


def test_export_writes_figure_and_report(panel, tmp_path):
    panel.export()
    names = {p.name for p in (tmp_path / "export").iterdir()}
    assert names == {f"fork.16-direct.{s}" for s in ("png", "svg", "pdf", "txt")}
    assert "written:" in panel.messages.line.value
    text = (tmp_path / "export" / "fork.16-direct.txt").read_text(encoding="ascii")
    entries = replay(load_trace("fork.16"), "linux-6.1", "direct").entries
    assert f"{entries} times" in " ".join(text.split())


def test_export_into_a_file_is_one_line_and_nothing_stays(panel, tmp_path):
    (tmp_path / "file").write_text("x")
    panel.folder_box.value = str(tmp_path / "file")
    panel.export()
    assert "cannot be made" in panel.messages.line.value
    assert not defects(panel)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_export_into_a_read_only_folder(panel, tmp_path):
    (tmp_path / "ro").mkdir(mode=0o500)
    panel.folder_box.value = str(tmp_path / "ro")
    panel.export()
    assert "cannot be written" in panel.messages.line.value
    assert not list((tmp_path / "ro").iterdir())


def test_a_defect_is_shown_and_found_by_a_scan(panel, monkeypatch):
    monkeypatch.setattr(panel.figure, "show", lambda c: 1 / 0)
    panel.mode.value = "vmi"
    assert defects(panel) == ["division by zero"]


def test_messages_are_escaped():
    m = Messages()
    m.say("<b>bold</b>")
    assert "<b>" not in m.line.value


def test_undo_and_reset(panel):
    first = panel.state()
    panel.matrix.boxes["set_ptes"].value = True
    second = panel.state()
    panel.mode.value = "vmi"
    panel.history.undo()
    assert panel.state() == second
    panel.history.undo()
    assert panel.state() == first
    panel.history.undo()  # nothing before
    assert panel.state() == first
    assert panel.history.undo_button.disabled
    panel.mode.value = "native"
    panel.mode.value = "vmi"
    panel.history.reset()
    assert panel.state() == first
    panel.history.undo()
    assert panel.mode.value == "vmi"


def test_the_line_of_text_goes_into_a_mail_and_comes_back(panel, tmp_path):
    panel.matrix.boxes["set_ptes"].value = True
    panel.keep()
    panel.matrix.boxes["ptep_set_wrprotect"].value = True
    text = panel.history.line.value
    assert text.isascii()
    other = DesignPanel("make", "vmi", "vmi", folder=tmp_path)
    before = other.redraws
    other.history.line.value = text  # what Enter does
    assert other.state() == panel.state()
    assert other.redraws == before + 1
    assert other.history.line.value == text
    assert other.table.value == panel.table.value.replace("against B", "against reference")


def test_compare_with_this_marks_differences(panel):
    panel.keep()
    marked = [n for n, b in panel.matrix.boxes.items() if "pvmmu-differs" in b._dom_classes]
    assert not marked
    entries = replay(load_trace("fork.16"), "linux-6.1", "direct").entries
    panel.matrix.boxes["ptep_set_wrprotect"].value = True
    marked = [n for n, b in panel.matrix.boxes.items() if "pvmmu-differs" in b._dom_classes]
    assert marked == ["ptep_set_wrprotect"]
    after = replay(load_trace("fork.16"), "linux-6.1 +ptep_set_wrprotect", "direct").entries
    assert f"{after - entries:+,}</td>" in panel.table.value


def test_a_text_that_does_not_fit_changes_nothing(panel):
    before, redraws = panel.state(), panel.redraws
    bad = before | {"trace": "fork.1", "costs": "p5"}
    panel.history.line.value = json.dumps(bad)
    assert panel.state() == before
    assert panel.redraws == redraws
    assert "&#9888;" in panel.messages.line.value


def test_ten_fast_moves_end_in_the_last_state(panel):
    names = list(panel.matrix.boxes)[:10]
    for name in names:
        panel.matrix.boxes[name].value = not panel.matrix.boxes[name].value
    want = replay(load_trace("fork.16"), panel.matrix.value, "direct")
    told = "cannot run" if want.infeasible else f"{want.entries:,} entries"
    assert told in panel.status.value
