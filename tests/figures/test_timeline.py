"""Timelines, tables of designs, measured against predicted: what notebooks 03 to 05 show."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import recorded

from pvmmu.evidence.truth import shipped_measurements, summarise, worst
from pvmmu.figures import designs_figure, reality_figure, timeline_figure
from pvmmu.figures.timeline import TimelineFigure
from pvmmu.guest.timeline import operation_counts, rmw_share, timeline
from pvmmu.guest.trace import Op
from pvmmu.guest.workloads import run_workload
from pvmmu.panels import TimelinePanel
from pvmmu.replay import replay
from pvmmu.replay.compare import design_table


def test_every_operation_that_is_shown_has_a_place():
    trace = run_workload("fork", 16)
    line = timeline(trace)
    assert line.steps <= len(trace)
    for lane in line.lanes.values():
        assert (np.diff(lane) > 0).all() and (lane < line.steps).all()
    assert len(line.brackets) == (trace["op"] == Op.LAZY_ENTER).sum()
    assert (line.brackets[:, 0] < line.brackets[:, 1]).all()
    assert [number for _, number in line.phases] == [0, 1, 2]


def test_counts_side_by_side():
    table = operation_counts({"a": run_workload("fork", 16), "b": run_workload("mmap", 16)})
    assert table.loc["PTE_WRPROTECT", "b"] == 0 < table.loc["PTE_WRPROTECT", "a"]
    assert table["a"].sum() == len(run_workload("fork", 16))


def test_the_share_of_read_modify_writes():
    assert rmw_share(run_workload("mmap", 64)) == pytest.approx(0.5, abs=0.02)
    assert rmw_share(run_workload("filerd", 64)) == pytest.approx(0.5, abs=0.02)
    assert rmw_share(run_workload("getppid", 4)) == 0


def test_timelines_share_a_scale_and_are_drawn_again():
    traces = {"short": run_workload("mmap", 4), "long": run_workload("mmap", 64)}
    figure = timeline_figure(traces, "a title")
    limits = {ax.get_xlim() for ax in figure.axes}
    assert len(limits) == 1
    again = TimelineFigure(2)
    again.draw(traces)
    assert len(again.draw({"one": traces["long"]}).axes) == 1
    with pytest.raises(ValueError, match="there is room for 2"):
        again.draw({str(i): traces["short"] for i in range(3)})


def test_a_long_trace_is_drawn_as_shares():
    assert timeline_figure({"fork": run_workload("fork", 2048)}).axes


def test_the_panel_follows_and_says_what_it_has_not():
    panel = TimelinePanel("fork", 16)
    before = panel.picture.image.value
    assert "operations differ in number" in panel.table.value
    panel.size.value = 64
    assert panel.picture.image.value != before
    panel.kernels[1].value = "recorded"
    assert "recorded" in panel.figure.figure.axes[1].get_title(loc="left")
    assert panel.messages.line.value == ""
    panel.size.value = 32
    assert "no recording fork.32" in panel.messages.line.value
    assert not panel.messages.defects.outputs
    panel.kernels[1].value = "2.6.22"
    assert panel.messages.line.value == ""


def test_designs_side_by_side():
    designs = {"today": ("linux-6.1", "direct"), "nothing": ("none", "direct")}
    trace = recorded("fork.16")
    table = design_table([trace], designs)
    assert table.loc[trace.name, "today"] == f"{replay(trace, 'linux-6.1', 'direct').entries:,}"
    assert table.loc[trace.name, "nothing"].startswith("no: ")
    assert designs_figure(trace, designs).axes


def test_measured_against_predicted():
    measured = shipped_measurements(largest=2)
    summary = summarise(measured)
    assert summary["agree"].sum() == summary["figures"].sum() == len(measured)
    assert list(worst(measured, 3).columns)[-1] == "verdict"
    assert len(reality_figure(measured).axes) == 2
