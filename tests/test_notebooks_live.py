"""Front door and tutorial in a real JupyterLab: they run, react and export; no hidden error."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.harness import Notebook, chromium_page, jupyterlab
from conftest import ROOT

from pvmmu.library import load_trace
from pvmmu.replay import replay

pytestmark = pytest.mark.browser
PICTURE = ".jp-Notebook .widget-image"
#: Notebooks without a browser test of their own.
OTHERS = sorted(
    p.name for p in (ROOT / "notebooks").glob("*.ipynb")
    if not p.name.startswith("00-")
    and not (ROOT / "tests" / f"test_notebook_{p.name[:2]}.py").exists()
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, chromium: str) -> Iterator[tuple[str, str, Path]]:
    work = tmp_path_factory.mktemp("lab")
    root = work / "root"
    shutil.copytree(ROOT / "notebooks", root)  # JupyterLab saves what it serves
    with jupyterlab(root, work / "state") as (address, token):
        yield address, token, root


def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("BROWSER_REPORT", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def entries(page: Any, hooks: str) -> None:
    """Wait until the panel tells the entries of a hook set."""
    n = replay(load_trace("fork.64"), hooks, "direct").entries
    page.locator(".widget-html-content", has_text=f"{n:,} entries").first.wait_for(timeout=30_000)


def test_the_front_door(lab: tuple[str, str, Path], chromium: str, tmp_path: Path) -> None:
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
        second = line.input_value()
        assert "ptep_set_wrprotect" in second != first
        page.locator(".pvmmu-hooks").first.scroll_into_view_if_needed()
        page.screenshot(path=shots(tmp_path) / "front-door.png")

        page.get_by_role("button", name="Undo").click()
        entries(page, "linux-6.1")
        line.fill(second)
        line.press("Enter")
        entries(page, "linux-6.1 +ptep_set_wrprotect")
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
        page.screenshot(path=shots(tmp_path) / "front-door-dark.png")
        assert not page.problems, page.problems
    assert (root / "export" / "fork.64-direct.txt").is_file()


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_run(
    lab: tuple[str, str, Path], chromium: str, tmp_path: Path, name: str
) -> None:
    address, token, _ = lab
    with chromium_page(chromium) as page:
        nb = Notebook(page).open(address, token, name).run_all(600)
        nb.wait_idle()
        page.screenshot(path=shots(tmp_path) / f"{name[:2]}.png")
        assert page.locator(".jp-OutputArea img").count() > 0
        assert not page.problems, page.problems
