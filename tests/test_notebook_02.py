"""The second notebook in a real JupyterLab: walks of other formats, and sliders that answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser.harness import Notebook, chromium_page, jupyterlab
from conftest import ROOT

from pvmmu.explorer.reach import accesses_of
from pvmmu.x86 import Tlb, make_geometry, warm_up

pytestmark = pytest.mark.browser
NAME = "02-walks-and-tlb.ipynb"
PICTURES = ".jp-Notebook .widget-image"

# From a key press to the first frame with another picture.
_LATENCY = """async ([index, key]) => {
  const slider = document.querySelectorAll('.widget-slider .noUi-handle')[index];
  const image = document.querySelectorAll('.jp-Notebook .widget-image')[1];
  const before = image.src, start = performance.now();
  slider.focus();
  slider.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
  while (image.src === before) {
    if (performance.now() - start > 20000) return -1;
    await new Promise(requestAnimationFrame);
  }
  return performance.now() - start;
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[tuple[str, str]]:
    warm_up()
    work = tmp_path_factory.mktemp("lab")
    (work / "root").mkdir()
    shutil.copy(ROOT / "notebooks" / NAME, work / "root")  # JupyterLab saves what it serves
    with jupyterlab(work / "root", work / "state") as (address, token):
        yield address, token


def test_walks_and_sliders(lab: tuple[str, str], chromium: str, tmp_path: Path) -> None:
    shots = Path(os.environ.get("BROWSER_REPORT", tmp_path))
    shots.mkdir(parents=True, exist_ok=True)
    with chromium_page(chromium) as page:
        nb = Notebook(page).open(*lab, NAME).run_all()
        page.wait_for_selector(PICTURES)
        nb.wait_idle()
        # showing the panels has not changed them
        assert nb.said("print(walk.redraws, reach.redraws)") == "1 1"
        outcome = page.locator(".widget-html-content", has_text="after 24 references").first
        outcome.wait_for()

        old = nb.picture(PICTURES)
        page.locator(".widget-dropdown", has_text="walk").locator("select").first.select_option(
            label="shadow: the hypervisor's tables"
        )
        nb.wait_other_picture(old, PICTURES)
        page.locator(".widget-html-content", has_text="after 4 references").first.wait_for()
        box = page.locator(".widget-text", has_text="address").locator("input").first
        box.fill("0x123456789")
        box.press("Enter")
        page.locator(".widget-html-content", has_text="#PF, error code").first.wait_for()
        page.locator(PICTURES).first.scroll_into_view_if_needed()
        page.screenshot(path=shots / "walk.png")

        page.locator(PICTURES).nth(1).scroll_into_view_if_needed()
        times = [
            page.evaluate(_LATENCY, [1, key]) for key in ["ArrowRight"] * 6 + ["ArrowLeft"] * 4
        ]
        page.screenshot(path=shots / "reach.png")
        assert min(times) > 0, times
        median = sorted(times)[len(times) // 2]
        print(f"slider to picture: median {median:.0f} ms of {[round(t) for t in times]}")
        # 40 to 60 ms on an idle machine; a busy one needs several times that
        assert median < 400, times
        want = Tlb(make_geometry((16, 6), (128, 12))).run(accesses_of("cc1"))
        told = f"96 entries: {want.misses[0]:,} misses"
        page.locator(".widget-html-content", has_text=told).first.wait_for()
        assert not page.problems, page.problems
