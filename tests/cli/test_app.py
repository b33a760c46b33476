"""``pvmmu app``: the panel alone, on this machine only, behind a token."""

import re
import subprocess
import sys
import urllib.request
from urllib.error import URLError

import pytest
from browser.harness import chromium_page
from conftest import ROOT

from pvmmu.cli.app import command, notebook
from pvmmu.errors import PvmmuError


def test_the_page_shows_the_design_that_was_asked_for(tmp_path, monkeypatch):
    (tmp_path / "mine.strace").touch()
    monkeypatch.chdir(tmp_path)
    [cell] = notebook("mine.strace", "direct", "linux-6.1 -set_pte")["cells"]
    assert repr(str(tmp_path / "mine.strace")) in cell["source"]
    assert repr("linux-6.1 -set_pte") in cell["source"]
    for wrong in (("fork.64", "dirct", "linux-6.1"), ("fork.64", "direct", "linux-6.1 -set_pt")):
        with pytest.raises(PvmmuError, match="did you mean"):
            notebook(*wrong)


def test_it_is_served_to_this_machine_and_by_token():
    words = command(ROOT / "x.ipynb", 8866, browser=False)
    assert "--Voila.ip=127.0.0.1" in words and "--token" in words and "--no-browser" in words
    with pytest.raises(PvmmuError, match="65536 is not a port"):
        command(ROOT / "x.ipynb", 65536, browser=False)


@pytest.mark.browser
def test_a_reader_moves_a_hook_and_sees_the_picture_change(chromium, tmp_path):
    words = [sys.executable, "-m", "pvmmu", "app", "fork.16", "--no-browser"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as server:
        try:
            found = (re.search(r"http://127\.0\.0\.1:\d+/\?token=\w+", x) for x in server.stderr)
            address = next(m[0] for m in found if m)
            with urllib.request.urlopen(address.split("?")[0], timeout=60) as answer:
                assert "/login" in answer.url, "who has no token is asked for it"
            with chromium_page(chromium) as page:
                page.goto(address, timeout=180_000)
                picture = page.locator(".pvmmu-picture img")
                picture.wait_for(timeout=180_000)
                before = picture.evaluate("img => img.src")
                box = page.locator(".pvmmu-hooks .widget-checkbox", has_text="ptep_set_wrprotect")
                box.locator("input").click()
                page.wait_for_function(
                    "src => document.querySelector('.pvmmu-picture img').src != src", arg=before,
                    timeout=60_000,
                )  # fmt: skip
                told = ".pvmmu-alt[aria-label*='fewer entries']"
                page.wait_for_selector(told, state="attached", timeout=60_000)
                assert page.locator("text=DesignPanel(").count() == 0, "no code is shown"
        finally:
            server.terminate()
            server.wait(60)
    with pytest.raises(URLError, match="refused"):  # what served the page has ended, too
        urllib.request.urlopen(address, timeout=60)
    assert not list(tmp_path.iterdir()), "nothing is written into the reader's folder"
