"""The notebook of the search in a real JupyterLab: from the slider to the picture."""

from __future__ import annotations

import itertools
import json
import os
import statistics
from pathlib import Path

import pytest
from browser.harness import Notebook, chromium_page
from browser.moves import Driver

pytestmark = pytest.mark.browser
NAME = "08-search"
PICTURE = ".jp-Notebook .widget-image"
MOVES = 30


def test_slider_to_picture(lab: tuple[str, str, Path], chromium: str, shots: Path):
    address, token, _ = lab
    with chromium_page(chromium) as page:
        nb = Notebook(page).open(address, token, f"{NAME}.ipynb").run_all(seconds=240)
        page.wait_for_selector(PICTURE)
        nb.wait_idle()
        panel = Driver(nb, NAME)
        page.screenshot(path=shots / "search-before.png")
        places, times, kernel = [panel.place()[0]], [], []
        for _ in range(MOVES):
            shown, computed = panel.move()
            times.append(shown)
            kernel.append(computed)
            places.append(panel.place()[0])
        assert {abs(b - a) for a, b in itertools.pairwise(places)} == {1}
        title = panel.ask("P.figure.title.get_text()")
        assert title.startswith(f"best within {places[-1]}:")
        page.screenshot(path=shots / "search-after.png")
        assert panel.errors() == []
    report = {
        "moves": MOVES, "slider_to_picture_ms": round(statistics.median(times), 1),
        "kernel_ms": round(statistics.median(kernel), 1), "worst_ms": round(max(times), 1),
        "load": os.getloadavg()[0], "cpus": os.cpu_count(),
    }  # fmt: skip
    (shots / "search-latency.json").write_text(json.dumps(report, indent=1))
    print(report)
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert report["slider_to_picture_ms"] < 150 * busy
