"""A real JupyterLab with a notebook in headless Chromium."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage",
]  # fmt: skip
_NAMES = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome-stable")
_SETTINGS = {
    # cells below the fold are in the page, and no news pop-up covers it
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True,
    },
}  # fmt: skip


def find_chromium() -> str | None:
    """Return the path of a Chromium, None if there is none."""
    return next((p for n in _NAMES if n and (p := shutil.which(n))), None)


@contextmanager
def jupyterlab(root: Path, state: Path) -> Iterator[tuple[str, str]]:
    """Run JupyterLab over a folder on a loopback port, with a token; yield (address, token)."""
    for name, values in _SETTINGS.items():
        f = state / "settings" / f"{name}.jupyterlab-settings"
        f.parent.mkdir(parents=True, exist_ok=True)
        f.write_text(json.dumps(values))
    token = secrets.token_hex(16)
    env = dict(
        os.environ, JUPYTER_TOKEN=token, JUPYTERLAB_SETTINGS_DIR=str(state / "settings"),
        JUPYTERLAB_WORKSPACES_DIR=str(state / "workspaces"),
        JUPYTER_RUNTIME_DIR=str(state / "runtime"), JUPYTER_CONFIG_DIR=str(state / "config"),
        IPYTHONDIR=str(state / "ipython"),
    )  # fmt: skip
    env.pop("MPLBACKEND", None)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    log = state / "jupyter.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield _address(server, state / "runtime", token, log), token
        finally:
            _stop(server)


def _address(server: subprocess.Popen[bytes], runtime: Path, token: str, log: Path) -> str:
    end = time.monotonic() + 90
    while server.poll() is None and time.monotonic() < end:
        for f in runtime.glob("jpserver-*.json"):
            try:
                address = f"http://127.0.0.1:{json.loads(f.read_text())['port']}/"
                urllib.request.urlopen(f"{address}api/status?token={token}", timeout=2)
            except (OSError, ValueError, KeyError):
                continue
            return address
        time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End the session that we began: server and kernels."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@contextmanager
def chromium_page(exe: str, width: int = 1500, height: int = 1100) -> Iterator[Any]:
    """Yield a page of a headless Chromium; ``page.problems`` collects its uncaught errors."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=exe, headless=True, args=CHROMIUM_FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            page.problems = []
            page.on("pageerror", lambda e: page.problems.append(str(e)))
            page.on("console", lambda m: _note(page, m))
            yield page
        finally:
            browser.close()


def _note(page: Any, message: Any) -> None:
    """Keep an error of the console; one of the page's own requests is JupyterLab's to make."""
    if message.type == "error" and "Failed to load resource" not in message.text:
        page.problems.append(message.text)


_JS = r"""
window.__nb = {
  panel() { return window.jupyterapp.shell.currentWidget; },
  status() { const k = this.panel()?.sessionContext?.session?.kernel; return k ? k.status : ''; },
  code() { return this.panel().content.widgets.filter(c => c.model.type === 'code'); },
  done() { return this.status() === 'idle' && this.code().every(c => c.model.executionCount); },
  errors() {
    const found = [];
    for (const c of this.code())
      for (let i = 0; i < c.model.outputs.length; i++) {
        const o = c.model.outputs.get(i).toJSON();
        if (o.output_type === 'error') found.push(o.ename + ': ' + o.evalue);
      }
    return found;
  },
  picture(selector) {
    const im = document.querySelector(selector);
    return im && im.complete && im.naturalWidth ? im.src : null;
  },
};
"""


class Notebook:
    """A notebook opened in JupyterLab."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def open(self, address: str, token: str, name: str, seconds: int = 90) -> Notebook:
        """Open a notebook and wait for its kernel."""
        url = f"{address}lab/tree/{name}?token={token}&reset"
        self.page.goto(url, wait_until="domcontentloaded")
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell?.currentWidget?.content?.widgets?.length > 0 && "
            "window.jupyterapp.shell.currentWidget.sessionContext?.session?.kernel?.status"
            " === 'idle'",
            timeout=seconds * 1000,
        )
        self.page.evaluate(_JS)
        return self

    def run_all(self, seconds: int = 240) -> Notebook:
        """Run all cells; no cell may fail."""
        self.page.evaluate(
            "async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )
        self.page.wait_for_function(
            "() => __nb.done() || __nb.errors().length", timeout=seconds * 1000
        )
        errors = self.page.evaluate("__nb.errors()")
        assert not errors, errors
        return self

    def wait_idle(self, seconds: int = 60) -> None:
        """Wait until the kernel has nothing to do."""
        self.page.wait_for_function("() => __nb.status() === 'idle'", timeout=seconds * 1000)

    def said(self, code: str) -> str:
        """Run code in the notebook's kernel and return what it printed, or how it failed."""
        return str(
            self.page.evaluate(
                """async code => {
                  const k = __nb.panel().sessionContext.session.kernel;
                  const f = k.requestExecute({code});
                  let text = '';
                  f.onIOPub = m => {
                    if (m.header.msg_type === 'stream') text += m.content.text;
                    if (m.header.msg_type === 'error') text += m.content.evalue;
                  };
                  await f.done;
                  return text.trim();
                }""",
                code,
            )
        )

    def picture(self, selector: str) -> str:
        """Return the source of a picture, once it is loaded."""
        self.page.wait_for_function("s => __nb.picture(s) !== null", arg=selector, timeout=60_000)
        return str(self.page.evaluate("s => __nb.picture(s)", selector))

    def wait_other_picture(self, old: str, selector: str, seconds: int = 30) -> str:
        """Wait until another picture than `old` is shown; return its source."""
        self.page.wait_for_function(
            "([s, old]) => { const n = __nb.picture(s); return n !== null && n !== old; }",
            arg=[selector, old], timeout=seconds * 1000,
        )  # fmt: skip
        return self.picture(selector)
