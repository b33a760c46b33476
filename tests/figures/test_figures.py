"""Figures: what they show is what was replayed, and files are the same every time."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import recorded
from matplotlib.figure import Figure
from pypdf import PdfReader

from pvmmu.costs import get_costs
from pvmmu.errors import PvmmuError
from pvmmu.figures import DesignFigure, debate_figure, new_figure, save_figure
from pvmmu.figures.mechanisms import BESIDE, STACK
from pvmmu.figures.style import CATEGORY_COLOURS, CATEGORY_HATCHES, CATEGORY_NAMES, png_bytes
from pvmmu.replay.compare import Comparison, Design, debate, debate_finding, savings


def comparison(*designs, name="fork.16"):
    return Comparison(
        recorded(name), tuple(Design.of(h, m, m) for h, m in designs), get_costs("p4-2006")
    )


THREE = (("linux-6.1 +ptep_set_wrprotect", "direct"), ("linux-6.1", "direct"), ("none", "native"))


def lengths(figure: DesignFigure) -> np.ndarray:
    """Lengths of the bars' parts, design by category."""
    return np.array([[p.get_width() for p in c] for c in figure.bars.patches.values()]).T


def test_bars_are_the_counts():
    c = comparison(*THREE)
    f = DesignFigure()
    f.show(c)
    want = [[k.by_category()[category] for category in STACK + BESIDE] for k in c.counts]
    want[2][STACK.index("trap")] = 0  # natively a fault is no entry to a hypervisor
    assert lengths(f).tolist() == want
    # the number at a bar's end is its length; what is no entry is beside it
    whole = lengths(f)[:, : len(STACK)].sum(axis=1)
    assert whole.tolist() == [k.entries for k in c.counts]
    assert f.bars.beside[1].get_text() == "62 shared a call, 10 flushes"
    assert [t.get_text() for t in f.bars.notes] == [
        f"{c.counts[0].entries:,} entries *", f"{c.counts[1].entries:,} entries", "0 entries",
    ]  # fmt: skip


def test_the_same_figure_shows_another_design():
    f = DesignFigure()
    f.show(comparison(*THREE))
    before, figure = lengths(f), f.figure
    f.show(comparison(("vmi", "vmi"), *THREE[1:]))
    assert f.figure is figure
    assert (lengths(f) != before).any()
    assert "more entries than linux-6.1" in f.title.get_text()


def test_an_infeasible_design_has_a_reason_and_no_bar():
    f = DesignFigure()
    f.show(comparison(("linux-6.1 -alloc_pte", "direct"), *THREE[1:], name="mmap.16"))
    assert lengths(f)[0].sum() == 0
    assert "never announced" in f.bars.notes[0].get_text().replace("\n", " ")
    assert "cannot run" in f.title.get_text()


def test_the_axis_starts_at_zero():
    f = DesignFigure()
    f.show(comparison(*THREE))
    assert f.axes.get_xlim()[0] == 0


def test_the_debate_says_what_it_shows():
    table = debate([recorded("fork.16"), recorded("shloop")])
    assert len(table) == 2 * 3 * 2
    saved = savings(table)
    assert saved.loc["fork.16"].between(0, 1).all()
    row = table[(table["trace"] == "fork.16") & (table["mode"] == "direct, each write emulated")]
    low, high = row["entries"]
    assert saved.loc["fork.16", "direct, each write emulated"] == pytest.approx(1 - high / low)
    figure = debate_figure(table)
    assert isinstance(figure, Figure)
    title = figure.get_suptitle().replace("\n", " ")
    assert title == debate_finding(table)
    assert f"{saved['direct, each write emulated'].max():.0%}" in title


def test_colours_mean_categories_and_hatches_tell_them_apart():
    assert len(set(CATEGORY_COLOURS.values())) == len(CATEGORY_COLOURS)
    assert set(CATEGORY_COLOURS) == set(CATEGORY_NAMES) == set(CATEGORY_HATCHES)
    stack = [CATEGORY_HATCHES[c] for c in STACK + BESIDE]
    assert len(set(stack)) == len(stack)


def test_files_are_identical_every_time(tmp_path):
    def make(folder):
        folder.mkdir()
        f = DesignFigure()
        f.show(comparison(*THREE))
        return {p.suffix: p.read_bytes() for p in save_figure(f.figure, folder / "f")}

    assert make(tmp_path / "a") == make(tmp_path / "b")


def test_vector_files_hold_text(tmp_path):
    f = DesignFigure()
    f.show(comparison(*THREE))
    _, svg, pdf = save_figure(f.figure, tmp_path / "f")
    assert "requests that shared a call" in svg.read_text()
    page = PdfReader(pdf).pages[0]
    assert "requests that shared a call" in page.extract_text()
    fonts = page["/Resources"]["/Font"]
    for font in fonts.values():
        descendant = font.get_object()["/DescendantFonts"][0].get_object()
        assert "/FontFile2" in descendant["/FontDescriptor"]


def test_nothing_is_clipped():
    """All that is drawn lies within the figure."""
    panel = DesignFigure()
    panel.show(comparison(("linux-6.1 -alloc_pte", "direct"), *THREE[1:], name="mmap.16"))
    traces = [recorded("fork.16"), recorded("make")]
    for figure in (panel.figure, debate_figure(debate(traces))):
        figure.canvas.draw()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_a_notebook_shows_a_figure_without_pyplot():
    png, _ = new_figure()._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert png == png_bytes(new_figure())
    assert len(io.BytesIO(png).read()) > 100


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(PvmmuError, match="cannot be written"):
        save_figure(new_figure(), tmp_path / "none" / "f")
    (tmp_path / "f.png").mkdir()
    with pytest.raises(PvmmuError, match="cannot be written"):
        save_figure(new_figure(), tmp_path / "f")
    assert {p.name for p in tmp_path.iterdir()} == {"f.png"}
