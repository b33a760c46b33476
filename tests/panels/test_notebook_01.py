"""The first notebook in a real JupyterLab: toggle a hook, see figure and count follow, export."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browser.harness import Notebook, chromium_page

from pvmmu.guest.load_trace import load_trace
from pvmmu.replay import replay

pytestmark = pytest.mark.browser
NAME = "01-hooks-and-hypercalls.ipynb"
PICTURE = ".jp-Notebook .widget-image"


def test_toggle_count_and_export(lab: tuple[str, str, Path], chromium: str, shots: Path):
    address, token, root = lab
    fork = load_trace("fork.64")
    with chromium_page(chromium) as page:
        nb = Notebook(page).open(address, token, NAME).run_all()
        page.wait_for_selector(PICTURE)
        nb.wait_idle()
        status = page.locator(".widget-html-content", has_text=re.compile("entries")).first
        before = replay(fork, "linux-6.1", "direct").entries
        assert f"{before:,} entries" in status.inner_text()
        old = nb.picture(PICTURE)
        status.scroll_into_view_if_needed()
        page.screenshot(path=shots / "before.png")

        page.locator(".widget-checkbox", has_text="ptep_set_wrprotect").locator("input").check()
        nb.wait_other_picture(old, PICTURE)
        after = replay(fork, "linux-6.1 +ptep_set_wrprotect", "direct").entries
        assert after < before
        page.locator(".widget-html-content", has_text=f"{after:,} entries").first.wait_for()
        page.screenshot(path=shots / "after.png")

        page.get_by_role("button", name="Export").click()
        page.locator(".widget-html-content", has_text="written:").first.wait_for(timeout=60_000)
        assert not page.problems, page.problems

    folder = root / "export"
    text = (folder / "fork.64-direct.txt").read_text(encoding="ascii")
    assert f"enters the hypervisor {after} times" in " ".join(text.split())
    assert "ptep_set_wrprotect" in text
    assert max(map(len, text.splitlines())) <= 72
    assert (folder / "fork.64-direct.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "fork.64-direct.pdf").read_bytes().startswith(b"%PDF")
    svg = (folder / "fork.64-direct.svg").read_text()
    assert f"{after:,} entries" in svg  # text stays text
