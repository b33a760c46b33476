"""The second notebook in a real JupyterLab: walks of other formats, and sliders that answer."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from browser.harness import Notebook, chromium_page
from browser.moves import Driver

from pvmmu.panels.reach import accesses_of
from pvmmu.x86 import Tlb, make_geometry

pytestmark = pytest.mark.browser
NAME = "02-walks-and-tlb.ipynb"
PICTURES = ".jp-Notebook .widget-image"


def test_walks_and_sliders(lab: tuple[str, str, Path], chromium: str, shots: Path) -> None:
    address, token, _ = lab
    with chromium_page(chromium) as page:
        nb = Notebook(page).open(address, token, NAME).run_all()
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

        page.locator(PICTURES).nth(2).scroll_into_view_if_needed()
        panel = Driver(nb, "02-walks-and-tlb")
        times = [panel.move()[0] for _ in range(10)]
        page.screenshot(path=shots / "reach.png")
        print(f"slider to picture: median {statistics.median(times):.0f} ms of {times}")
        # 40 to 60 ms on an idle machine; a busy one needs several times that
        assert statistics.median(times) < 400, times
        ways = panel.ask("P.state()['1st: ways']")
        want = Tlb(make_geometry((16, ways), (128, 12))).run(accesses_of("cc1"))
        told = f"{16 * ways} entries: {want.misses[0]:,} misses"
        page.locator(".widget-html-content", has_text=told).first.wait_for()
        assert panel.errors() == []
