"""The front door in a real JupyterLab: it runs, reacts, goes back, compares and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser.harness import Notebook, chromium_page

from pvmmu.guest.load_trace import load_trace
from pvmmu.replay import replay

pytestmark = pytest.mark.browser
PICTURE = ".jp-Notebook .widget-image"


def entries(page: Any, hooks: str) -> None:
    """Wait until the panel tells the entries of a hook set."""
    n = replay(load_trace("fork.64"), hooks, "direct").entries
    page.locator(".widget-html-content", has_text=f"{n:,} entries").first.wait_for(timeout=120_000)


def assert_all_is_in_sight(page: Any) -> None:
    """The picture ends where the page ends, and the bars that can be chosen lie in it."""
    box, room, *bars = (
        page.locator(what).first.bounding_box()
        for what in (".pvmmu-picture", ".jp-OutputArea-output:has(.pvmmu-picture)", ".pvmmu-spot")
    )
    assert box["width"] < 750 and box["x"] + box["width"] <= room["x"] + room["width"]
    for bar in bars:
        assert box["x"] <= bar["x"] < bar["x"] + bar["width"] <= box["x"] + box["width"]
        assert box["y"] <= bar["y"] < bar["y"] + bar["height"] <= box["y"] + box["height"]


def test_the_front_door(lab: tuple[str, str, Path], chromium: str, shots: Path) -> None:
    address, token, root = lab
    with chromium_page(chromium) as page:
        nb = Notebook(page).open(address, token, "00-start-here.ipynb").run_all()
        page.wait_for_selector(PICTURE)
        nb.wait_idle()
        entries(page, "linux-6.1")
        line = page.locator(".widget-text", has_text="state").locator("input").first
        first, old = line.input_value(), nb.picture(PICTURE)

        box = page.locator(".widget-checkbox", has_text="ptep_set_wrprotect").locator("input")
        box.focus()
        page.keyboard.press("Space")  # without a mouse
        nb.wait_other_picture(old, PICTURE)
        entries(page, "linux-6.1 +ptep_set_wrprotect")
        page.wait_for_function(
            "e => e.value.includes('ptep_set_wrprotect')", arg=line.element_handle()
        )
        second = line.input_value()
        assert second != first
        page.locator(".pvmmu-hooks").first.scroll_into_view_if_needed()
        assert_all_is_in_sight(page)
        page.screenshot(path=shots / "front-door.png")

        page.get_by_role("button", name="Undo").click()
        entries(page, "linux-6.1")
        page.get_by_role("button", name="Compare with this").click()
        page.locator(".widget-html-content", has_text="bold: differs").first.wait_for()
        page.get_by_role("button", name="Export").click()
        page.locator(".widget-html-content", has_text="written:").first.wait_for(timeout=60_000)

        page.evaluate(
            "async () => { await jupyterapp.commands.execute('apputils:change-theme', "
            "{theme: 'JupyterLab Dark'}); }"
        )
        page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        page.screenshot(path=shots / "front-door-dark.png")
        assert not page.problems, page.problems
    assert (root / "export" / "fork.64-direct.txt").is_file()
