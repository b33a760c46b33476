"""Every notebook in a real JupyterLab: it runs, its panel answers, exports, and stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from browser.harness import Notebook, chromium_page
from browser.moves import PANELS, Driver
from conftest import ROOT

pytestmark = pytest.mark.browser


def test_every_notebook_has_a_panel():
    assert set(PANELS) == {p.stem for p in (ROOT / "notebooks").glob("*.ipynb")}


@pytest.mark.parametrize("name", PANELS)
def test_the_panel(lab: tuple[str, str, Path], chromium: str, shots: Path, name: str) -> None:
    address, token, root = lab
    with chromium_page(chromium) as page:
        nb = Notebook(page).open(address, token, f"{name}.ipynb").run_all(900)
        page.wait_for_selector(".pvmmu-picture img")
        nb.wait_idle()
        assert page.locator(".jp-OutputArea img").count() > 0
        variable = PANELS[name][0]
        assert nb.said(f"print({variable}.redraws)") == "1", "showing the panel changed it"
        panel = Driver(nb, name)
        first, drawn = panel.seen(), panel.ask("P.redraws")
        panel.move()
        assert panel.seen() != first and panel.ask("P.redraws") > drawn
        panel.move_fast()
        page.screenshot(path=shots / f"{name}.png")

        # opened again, with the kernel alive: the front end writes nothing back
        drawn, state = panel.ask("P.redraws"), panel.ask("P.state()")
        page.evaluate("async () => { await jupyterapp.commands.execute('docmanager:save'); }")
        again = Notebook(page).open(address, token, f"{name}.ipynb")
        page.wait_for_selector(".pvmmu-picture img")
        again.wait_idle()
        page.wait_for_timeout(500)
        assert again.said(f"print({variable}.redraws)") == str(drawn)
        assert again.said(f"import json; print(json.dumps({variable}.state()))") == json.dumps(
            state
        )

        again.page.evaluate(
            "async () => { await jupyterapp.commands.execute('apputils:change-theme', "
            "{theme: 'JupyterLab Dark'}); }"
        )
        page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
        page.wait_for_selector("#jupyterlab-splash", state="detached")
        panel = Driver(again, name)
        area = page.locator(".jp-OutputArea-output", has=panel.handle)
        area.get_by_role("button", name="Export").last.click()
        area.locator(".widget-html-content", has_text="written:").first.wait_for(timeout=60_000)
        page.screenshot(path=shots / f"{name}-dark.png")
        assert panel.errors() == []
    exported = {p.suffix for p in (root / "export").iterdir()}
    assert {".png", ".svg", ".pdf"} <= exported
    shutil.rmtree(root / "export")
