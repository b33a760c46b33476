"""The panels of walks and reach without a browser, and their figures."""

import time

import numpy as np
import pytest
from PIL import Image

from pvmmu.figures import refill_figure, save_figure, three_ways_figure
from pvmmu.figures.reach import reach_finding, refill_finding
from pvmmu.panels import ReachPanel, WalkPanel
from pvmmu.panels.reach import accesses_of, behind, reach_of
from pvmmu.x86 import Tlb, make_geometry
from pvmmu.x86.examples import FORMATS, SECONDS, WAYS, ExampleSpace
from pvmmu.x86.reach import first_data_levels
from pvmmu.x86.refill import DISTURBANCES, refill


def defects(panel):
    return [o["evalue"] for o in panel.messages.defects.outputs]


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


# ---------------------------------------------------------------- walks


@pytest.fixture
def walks():
    return WalkPanel()


def test_a_change_redraws_once_and_tells_the_outcome(walks):
    assert walks.redraws == 1
    picture = walks.picture.image.value
    walks.way.value = "native"
    assert walks.redraws == 2 and walks.picture.image.value != picture
    assert "4 references" in walks.finding.value
    walks.format.value = "5-level"  # changes places and address, too
    assert walks.redraws == 3
    assert "5 references" in walks.finding.value
    assert not defects(walks)


@pytest.mark.slow
def test_every_format_and_way_and_page_can_be_shown(walks):
    shown = 0
    for fmt in FORMATS:
        walks.format.value = fmt
        for second in list(SECONDS)[:: 3 if fmt != "PAE" else 1]:
            walks.second.value = second
            for way in WAYS:
                walks.way.value = way
                for place in walks.place.options:
                    walks.place.value = place
                    space = ExampleSpace(fmt, second)
                    want = space.walk(place, way=way)
                    assert want.verdict in walks.figure.title.get_text()
                    assert walks.walk().verdict == want.verdict
                    shown += 1
        assert not defects(walks), fmt
    assert shown > 100


def test_entries_are_in_figure_and_table(walks):
    walk = walks.walk()
    for r in walk.path:
        if r.dimension == 1:
            assert f"{r.entry:#x}" in texts(walks.figure.figure)
        assert f"{r.entry:#x}" in walks.table.value
    assert walk.references == 24
    numbers = {t.get_text() for t in walks.figure.axes.texts}
    assert {str(i) for i in range(1, 25)} <= numbers


def test_any_address_may_be_typed_and_garbage_is_one_line(walks):
    walks.address.value = "0x1000"
    assert "not present" in walks.finding.value
    before = walks.redraws
    for wrong in ("home", "", "1 << 3", "-5", "0x1" + "0" * 20):
        walks.address.value = wrong
        assert "&#9888;" in walks.messages.line.value, wrong
    assert walks.redraws == before and not defects(walks)
    walks.address.value = "0x2000"
    assert "&#9888;" not in walks.messages.line.value


def test_a_fault_has_the_colour_of_a_trap(walks):
    from matplotlib.colors import to_hex

    from pvmmu.figures.style import CATEGORY_COLOURS

    def faces():
        return {to_hex(p.get_facecolor()).upper() for p in walks.figure.axes.patches}

    assert CATEGORY_COLOURS["trap"] not in faces()
    walks.place.value = "nothing"
    assert CATEGORY_COLOURS["trap"] in faces()


def test_three_ways_side_by_side(tmp_path):
    space = ExampleSpace()
    figure = three_ways_figure({way: space.walk("a page", way=way) for way in WAYS})
    assert "4 native, 4 shadow, 24 nested" in texts(figure)
    files = save_figure(figure, tmp_path / "three")
    assert len(files) == 3 and all(f.stat().st_size for f in files)


# ---------------------------------------------------------------- reach


@pytest.fixture(scope="module")
def reach():
    return ReachPanel()


def test_what_is_told_is_what_a_separate_run_counts(reach):
    for values in ((16, 4, 128, 12), (64, 2, 256, 8), (1, 16, 16, 4)):
        for slider, value in zip(reach.sliders, values, strict=True):
            slider.value = value
        l1, l2 = values[:2], values[2:]
        want = Tlb(make_geometry(l1, l2)).run(accesses_of("cc1"))
        assert f"{want.misses[0]:,} misses" in reach.finding.value
        assert f"{want.walks:,} walks" in reach.finding.value
    assert not defects(reach)


def test_a_slider_answers_at_once(reach):
    """30 ms of CPU leave room for the way to the browser and back within 100 ms."""
    times, ways = [], reach.sliders[1]
    for value in (1, 2, 3, 5, 6, 7, 9, 10, 11):
        before, picture = reach.redraws, reach.picture.image.value
        start = time.thread_time()
        ways.value = value
        times.append(time.thread_time() - start)
        assert reach.redraws == before + 1 and reach.picture.image.value != picture
    assert np.median(times) < 0.06, times  # twice the measured figure: other tests run beside


def test_moved_parts_are_drawn_as_in_a_full_picture(reach):
    import io

    reach.sliders[1].value = 8
    moved = np.asarray(Image.open(io.BytesIO(reach.picture.image.value)), np.int16)
    reach.picture.show()
    full = np.asarray(Image.open(io.BytesIO(reach.picture.image.value)), np.int16)
    assert moved.shape == full.shape
    assert np.abs(moved - full).max() == 0
    # and a file of the figure has them, too: the title at least
    assert reach.figure.title.get_animated() is False


def test_every_trace_can_be_shown(reach):
    for name in reach.trace.options:
        reach.trace.value = name
        assert name in reach.figure.title.get_text()
        assert not defects(reach), name
    reach.trace.value = "cc1"


def test_first_levels_of_real_processors():
    levels = first_data_levels()
    assert levels["skylake"] == (16, 4)
    assert levels["pentium4"] == (1, 64)


def test_findings_are_computed():
    r = reach_of("cc1")
    text = reach_finding("cc1", r, behind("cc1", 16, 4), (16, 4), (128, 12))
    assert f"{1000 * r.misses(16, 4) / r.accesses:.3g} of 1,000" in text
    assert "each page is walked once" in text
    assert "also" in reach_finding("cc1", r, behind("cc1", 16, 4), (16, 4), (16, 4))
    data, other = accesses_of("cc1"), accesses_of("sort")
    results = [refill(data, "skylake", 50_000, d, other) for d in DISTURBANCES]
    figure = refill_figure(results, "cc1 on Skylake")
    assert f"costs {results[0].total:,.0f} walks" in refill_finding(results, "x")
    for result in results:
        assert f"{result.disturbance}: {result.total:,.1f}" in texts(figure)
    assert "next to nothing" in refill_finding(results[2:], "x")
