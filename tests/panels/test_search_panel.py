"""Figures and panel of a search."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import recorded
from matplotlib.text import Text
from PIL import Image

from pvmmu.figures import (
    contribution_figure,
    dot_matrix_figure,
    interaction_figure,
    interfaces_figure,
    lattice_figure,
    save_figure,
)
from pvmmu.figures.style import SCREEN_DPI
from pvmmu.hooks import HookSet
from pvmmu.panels import SearchPanel
from pvmmu.search import (
    DesignSpace,
    Draws,
    best_within,
    compare_interfaces,
    contributions,
    front,
    interactions,
    search,
)

TRACES = ["fork.16", "mmap.16"]


@pytest.fixture(scope="module")
def found():
    traces = [recorded(t) for t in TRACES]
    return search(traces, ["direct", "vmi", "native"], progress=False)


@pytest.fixture(scope="module")
def board(found):
    return DesignSpace(found, ["direct", "vmi"], draws=Draws(4))


def test_the_title_of_a_mode_with_a_long_name_is_whole(found):
    panel = SearchPanel(found, ("direct",))
    worth = contributions(panel.current, "direct").loc[panel.current.names]
    panel.figure.show_lattice(
        panel.current, np.array([0]), worth, "shadow:code=xen-2006,pages=4096"
    )
    figure = panel.figure.figure
    [title] = [t for t in figure.findobj(Text) if t.get_text().startswith("worth in")]
    box = title.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


# ---------------------------------------------------------------------- figures
def test_figures_say_what_the_tables_say(board, tmp_path):
    edge, past = front(board), compare_interfaces(board)
    worth = [contributions(board, m) for m in board.modes]
    pairs = interactions(board, "direct")
    figures = {
        "lattice": lattice_figure(board, edge, past),
        "worth": contribution_figure(worth),
        "pairs": interaction_figure(pairs, "direct"),
        "regret": interfaces_figure(past, board.modes, "who runs"),
        "dots": dot_matrix_figure(
            {"a": HookSet.of("set_pte"), "b": HookSet.of("set_ptes")}, {}, "t"
        ),
    }
    for name, figure in figures.items():
        [png] = save_figure(figure, tmp_path / name, ["png"])
        assert np.asarray(Image.open(png).convert("L")).std() > 5, "an empty picture"
    assert f"{len(edge)} points are on the front" in texts(figures["lattice"])
    assert "linux-2.6.27" in texts(figures["lattice"])  # the only one that runs in both
    assert worth[0].index[0] in texts(figures["worth"])
    assert (
        texts(figures["regret"]).count("cannot run")
        == np.isinf(past[[*board.modes, "worst"]].to_numpy()).sum()
    )


def test_filled_dots_are_hooks_in_use():
    sets = {"a": HookSet.of("set_pte", "lazy_mmu"), "b": HookSet.of("set_pte", "set_ptes")}
    axes = dot_matrix_figure(sets, {}, "t").axes[0]
    rows = [t.get_text() for t in axes.get_yticklabels()]
    assert sorted(rows) == ["lazy_mmu", "set_ptes"]  # set_pte is in all: named below
    filled = {
        (int(x), rows[int(y)])
        for line in axes.lines
        if line.get_color() == "#222222" and line.get_marker() == "o"
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert filled == {(0, "lazy_mmu"), (1, "set_ptes")}


# ---------------------------------------------------------------------- the panel
@pytest.fixture
def panel(found):
    p = SearchPanel(found, ("direct", "vmi"), "p4-2006")
    assert not p.messages.defects.outputs, p.messages.defects.outputs
    return p


def test_the_panel_shows_the_best_set_within_the_budget(found, panel):
    b = DesignSpace(found, ["direct", "vmi"], costs="p4-2006", draws=Draws(0))
    for budget in (panel.budget.min, panel.budget.max):
        panel.budget.value = budget
        best = best_within(b, budget)
        assert best["hooks"] in panel.status.value
        assert f"best within {budget}: {best['n_hooks']} hooks" in panel.figure.title.get_text()


def test_every_control_changes_picture_and_board(found, panel):
    def pixels():
        return np.asarray(Image.open(io.BytesIO(panel.picture.image.value)))

    old, redraws = pixels(), panel.redraws
    assert (panel.figure.whole().get_size_inches() * SCREEN_DPI == old.shape[::-1]).all()
    for change in (
        lambda: setattr(panel.budget, "value", panel.budget.min),
        lambda: setattr(panel.weights["fork.16"], "value", 5),
        lambda: setattr(panel.parts["files"], "value", 2),
        lambda: setattr(panel.costs, "value", "xen-2026"),
        lambda: setattr(panel.modes["vmi"], "value", False),
    ):
        change()
        redraws += 1
        assert panel.redraws == redraws
        assert not panel.messages.defects.outputs
        assert old.shape != pixels().shape or (old != pixels()).any()
        old = pixels()
    fresh = DesignSpace(
        found, ["direct"], {"fork.16": 5, "mmap.16": 1}, "xen-2026", draws=Draws(0),
        intrusiveness=panel.current.intrusiveness,
    )  # fmt: skip
    np.testing.assert_allclose(panel.current.cycles("direct"), fresh.cycles("direct"))
    np.testing.assert_allclose(panel.current.intrusiveness_of_sets, fresh.intrusiveness_of_sets)


def test_backends_that_use_all_are_another_board(found, panel):
    panel.backend.value = "all"
    assert not panel.messages.defects.outputs
    want = DesignSpace(found, ["direct", "vmi"], costs="p4-2006", draws=Draws(0), backend="all")
    np.testing.assert_allclose(panel.current.regret, want.regret)
    assert panel.state()["backend"] == "all"
    panel.backend.value = "free"
    assert panel.current.backend == "free"


def test_wrong_choices_are_one_line(panel):
    for box in panel.modes.values():
        box.value = False
    assert "check a mode" in panel.messages.line.value
    panel.modes["direct"].value = True
    assert panel.messages.line.value == ""
    for slider in panel.weights.values():
        slider.value = 0
    assert "no workload has a weight" in panel.messages.line.value
    assert not panel.messages.defects.outputs


def test_revised_boards_equal_new_ones(found, board):
    changed = board.revised({"fork.16": 1, "mmap.16": 4}, "xen-2026")
    new = DesignSpace(found, ["direct", "vmi"], {"fork.16": 1, "mmap.16": 4}, "xen-2026")
    for mode in board.modes:
        np.testing.assert_allclose(changed.cycles(mode), new.cycles(mode))
    assert changed.best.to_numpy() == pytest.approx(new.best.to_numpy())
    assert board.best.to_numpy() != pytest.approx(new.best.to_numpy())  # the old one stays
