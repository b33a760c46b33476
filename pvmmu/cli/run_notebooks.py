"""Run every notebook without a browser: executed copies and figures go to a results folder.

    python -m pvmmu.cli.run_notebooks notebooks --out results

A notebook is run again only if it, the package or its data have changed since its copy was made.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pvmmu._jit import fingerprint
from pvmmu.errors import PvmmuError
from pvmmu.files import whole_file
from pvmmu.paths import data_path, notebooks_path


def _widget_errors(notebook: Any) -> Iterator[str]:
    """Yield the errors that callbacks left in the saved widgets of `notebook` (an nbformat node).

    An exception in a callback does not fail a cell: it sits in the state of an output widget.
    """
    widgets = notebook.metadata.get("widgets", {})
    states = widgets.get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    for model in states.values():
        for output in model.get("state", {}).get("outputs") or ():
            if output.get("output_type") == "error":
                yield f"{output['ename']}: {output['evalue']}"


def run_notebook(path: Path, out: Path, timeout: int = 900) -> list[str]:
    """Execute a notebook and write copy, HTML page and pictures.

    Parameters
    ----------
    path : Path
        The notebook; stays as it is.
    out : Path
        Folder for the executed copy (same name), an ``.html`` page and ``name-N.png`` pictures.
    timeout : int
        Seconds that one cell may take.

    Returns
    -------
    list of str
        What went wrong: the exception of a cell, or errors hidden in widgets.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from nbconvert import HTMLExporter

    notebook, errors = nbformat.read(path, as_version=4), []
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", store_widget_state=True,
        resources={"metadata": {"path": str(out)}},
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as e:
        errors.append(f"{e.ename}: {e.evalue}")
    errors += _widget_errors(notebook)
    if not errors:
        notebook.metadata["pvmmu"] = _key(path)
    with whole_file(out / path.name) as tmp:
        nbformat.write(notebook, tmp)
    page, _ = HTMLExporter().from_notebook_node(notebook)
    with whole_file(out / path.with_suffix(".html").name) as tmp:
        tmp.write_text(page, encoding="utf-8")
    for i, picture in enumerate(_pictures(notebook)):
        with whole_file(out / f"{path.stem}-{i}.png") as tmp:
            tmp.write_bytes(picture)
    return errors


def _pictures(notebook: Any) -> Iterator[bytes]:
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            picture = output.get("data", {}).get("image/png")
            if picture:
                yield base64.b64decode(picture)


def _key(path: Path) -> str:
    """Return a key that changes with the notebook, the package's sources or its data."""
    h = hashlib.sha256(fingerprint().encode() + path.read_bytes())
    for data in sorted(p for p in data_path().rglob("*") if p.is_file()):
        h.update(f"{data.name} {data.stat().st_size}".encode())
    return h.hexdigest()[:16]


def is_current(path: Path, out: Path) -> bool:
    """Whether the copy of notebook `path` in `out` is of the present notebook, package and data."""
    import nbformat

    copy = out / path.name
    if not copy.is_file():
        return False
    try:
        return bool(nbformat.read(copy, as_version=4).metadata.get("pvmmu") == _key(path))
    except (OSError, ValueError, nbformat.reader.NotJSONError):
        return False


def _run_and_say(book: Path, out: Path, timeout: int) -> bool:
    """Run a notebook and print how it went; return whether it failed."""
    start = time.monotonic()
    errors = run_notebook(book, out, timeout)
    end = "FAILED" if errors else "ok"
    print(f"{book.name}: {end}, {time.monotonic() - start:.0f} s", flush=True)
    for error in errors:
        print(f"    {book.name}: {error}", file=sys.stderr)
    return bool(errors)


def main(argv: Sequence[str] | None = None, prog: str = "python -m pvmmu.cli.run_notebooks") -> int:
    """Run the notebooks of a folder; return 1 if any of them fails, 2 for a wrong folder.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process by default.
    prog : str
        What the help calls the command.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description="Run every notebook; write executed copies, pages and "
        "figures. A notebook that has not changed is not run again.",
    )  # fmt: skip
    parser.add_argument(
        "folder", nargs="?", type=Path, default=notebooks_path(),
        help="folder of notebooks (default: those that ship with pvmmu)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the copies")
    parser.add_argument("--timeout", type=int, default=900, help="seconds that a cell may take")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default 1)")
    args = parser.parse_args(argv)
    books = sorted(args.folder.glob("*.ipynb"))
    try:
        if not books:
            raise PvmmuError(f"{args.folder}: no notebook in it")
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, PvmmuError) as e:
        print(f"{prog}: {e}", file=sys.stderr)
        return 2
    stale = [book for book in books if not is_current(book, args.out)]
    for book in set(books) - set(stale):
        print(f"{book.name}: unchanged", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = sum(pool.map(lambda book: _run_and_say(book, args.out, args.timeout), stale))
    print(f"executed notebooks, pages and figures are in {args.out.resolve()}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
