"""Every figure, held by a picture; legible in print, in black and white, with real text.

New references: ``python tests/figures/gallery.py``, then look at them.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from gallery import GALLERY, REFERENCES, drawn, write
from matplotlib.colors import to_rgb
from matplotlib.legend import Legend
from matplotlib.patches import Patch
from matplotlib.testing.compare import compare_images
from pypdf import PdfReader

import pvmmu.figures
from pvmmu.figures.style import PRINT_WIDTH_IN, save_figure

#: Root mean square of differences in grey levels; another version of a font may move some edges.
TOLERANCE = 5.0
each = pytest.mark.parametrize("name", GALLERY)


def test_every_figure_is_in_the_gallery():
    source = (Path(__file__).parent / "gallery.py").read_text()
    folder = Path(pvmmu.figures.__file__).parent
    found = {
        name
        for path in folder.glob("*.py")
        for name in re.findall(r"^def (\w+_figure)\(", path.read_text(), re.M)
    }
    assert len(found) > 12
    for name in found - {"new_figure", "save_figure"}:
        assert f"{name}(" in source, f"{name} is not held by a picture"


@each
def test_it_looks_as_it_did(name, tmp_path):
    actual = write(name, tmp_path)
    different = compare_images(REFERENCES / f"{name}.png", actual, TOLERANCE)
    assert different is None, (
        f"{different}\nIf that is meant: python tests/figures/gallery.py {name}"
    )


def test_a_moved_label_would_be_seen(tmp_path):
    figure, _ = drawn("designs")
    figure.axes[0].set_xlabel("happenings, and many of them")
    try:
        assert compare_images(REFERENCES / "designs.png", write("designs", tmp_path), TOLERANCE)
    finally:
        figure.axes[0].set_xlabel("events")


def test_the_references_are_small():
    files = list(REFERENCES.glob("*.png"))
    assert {p.stem for p in files} == set(GALLERY)
    assert sum(p.stat().st_size for p in files) < 1_000_000


@each
def test_no_label_is_cut_off(name):
    figure, texts = drawn(name)
    width, height = figure.bbox.width, figure.bbox.height
    assert texts
    for text, box in texts:
        inside = box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1
        assert inside, f"{text.get_text()!r} reaches {box.extents} of {width:.0f} x {height:.0f}"


@each
def test_it_is_legible_at_12_cm(name):
    """Six points at least, when the figure is made as wide as a page's column."""
    figure, texts = drawn(name)
    scale = min(1.0, PRINT_WIDTH_IN / figure.get_figwidth())
    for text, _ in texts:
        size = text.get_fontsize() * scale
        assert size > 5.95, f"{text.get_text()!r} has {size:.1f} points"


def luminance(colour) -> float:
    r, g, b = to_rgb(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def seen(handle) -> tuple[object, ...]:
    """Return what tells a key of a legend from others in black and white."""
    if isinstance(handle, Patch):
        return handle.get_hatch(), luminance(handle.get_facecolor())
    line = handle
    return (
        (line.get_marker(), line.get_linestyle(), line.get_markerfacecolor() == "none"),
        luminance(line.get_color()),
    )


@each
def test_keys_differ_in_black_and_white(name):
    figure, _ = drawn(name)
    for legend in figure.findobj(Legend):
        keys = [seen(h) for h in legend.legend_handles if hasattr(h, "get_visible")]
        for (kind, dark), (other, light) in itertools.combinations(keys, 2):
            assert kind != other or abs(dark - light) > 0.1, f"two keys look alike: {kind}"


@each
def test_vector_files_have_text_and_its_fonts(name, tmp_path):
    figure, texts = drawn(name)
    svg, pdf = save_figure(figure, tmp_path / "f", ["svg", "pdf"])
    assert svg.read_text().count("<text") >= len(texts) / 2
    page = PdfReader(pdf).pages[0]
    for font in page["/Resources"]["/Font"].values():
        font = font.get_object()
        descendant = font.get("/DescendantFonts", [font])[0].get_object()
        assert "/FontFile2" in descendant["/FontDescriptor"], font
    words = "".join(page.extract_text().split())
    longest = max((t.get_text() for t, _ in texts if t.get_rotation() == 0), key=len)
    assert "".join(longest.splitlines()[0].split())[:20] in words
