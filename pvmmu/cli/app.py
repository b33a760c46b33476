"""``pvmmu app``: the design panel alone in a browser, without cells of code."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pvmmu.cli import common
from pvmmu.errors import PvmmuError
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode

#: What the page is made of: a notebook whose one cell shows the panel.
_CELL: Final = """from pvmmu.panels import DesignPanel

DesignPanel({trace!r}, {mode!r}, {hooks!r})"""


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu app") -> int:
    """Serve the panel until Ctrl-C."""
    p = argparse.ArgumentParser(
        prog=prog, description="Serve the panel of designs alone, on this machine only, and open "
        "it in a browser. Ctrl-C ends it.",
    )  # fmt: skip
    p.add_argument("trace", nargs="?", default="fork.64", metavar="TRACE", help=common.TRACE)
    p.add_argument("--hooks", default=common.HOOKS, help="hook set (default %(default)s)")
    p.add_argument("--mode", default=common.MODE, help="paging mode (default %(default)s)")
    p.add_argument("--port", type=int, default=8866,
                   help="or the next free one (default %(default)s)")  # fmt: skip
    p.add_argument("--no-browser", action="store_true", help="print the address only")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pvmmu-app-") as folder:
        page = Path(folder) / "pvmmu.ipynb"
        page.write_text(json.dumps(notebook(args.trace, args.mode, args.hooks)), encoding="utf-8")
        return _serve(command(page, args.port, not args.no_browser))


def _serve(words: list[str]) -> int:
    """Run the server until it ends; whatever ends this process ends it, too."""
    with subprocess.Popen(words) as server:
        before = signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        try:
            return server.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
            server.terminate()


def notebook(trace: str, mode: str, hooks: str) -> dict[str, object]:
    """Return a notebook that shows the panel with this design.

    Parameters
    ----------
    trace, mode, hooks : str
        As `pvmmu.panels.DesignPanel` takes them; a file is found from any folder.

    Raises
    ------
    PvmmuError
        There is no such mode or hook.
    """
    get_mode(mode), HookSet.parse(hooks)
    if Path(trace).is_file():
        trace = str(Path(trace).resolve())
    source = _CELL.format(trace=trace, mode=mode, hooks=hooks)
    cell: dict[str, object] = {"cell_type": "code", "id": "panel", "metadata": {}, "source": source,
            "execution_count": None, "outputs": []}  # fmt: skip
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {"cells": [cell], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def command(page: Path, port: int, browser: bool) -> list[str]:
    """Return the command that serves a notebook without its code, for whoever has the token.

    Parameters
    ----------
    page : Path
        The notebook.
    port : int
        TCP port; the next free one is taken if another program has it.
    browser : bool
        Whether a browser is opened.

    Raises
    ------
    PvmmuError
        The port is none.
    """
    if not 0 < port < 65536:
        raise PvmmuError(f"--port: {port} is not a port (1 to 65535)")
    words = [
        sys.executable, "-m", "voila", str(page), "--token", "--Voila.ip=127.0.0.1",
        f"--port={port}", "--theme=light", "--show_tracebacks=True", "--pool_size=0",
    ]  # fmt: skip
    return words if browser else [*words, "--no-browser"]
