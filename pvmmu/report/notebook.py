"""``proposal.ipynb``: the bundle's notebook, executed in the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pvmmu.errors import PvmmuError

_CELLS: Final = (
    ("markdown", "# A proposal\n\nThe numbers are replayed from `state.json` in this folder."),
    ("code", "from pvmmu.figures.workloads import workloads_figure\n"
             "from pvmmu.report import load_state, results\n"
             "from pvmmu.report.text import claim, text\n\n"
             'found = results(load_state("state.json"))\n'
             "print(claim(found.comparisons[0]))"),
    ("markdown", "Every design on every workload:"),
    ("code", 'columns = ["design", "mode", "hooks", "status", "entries", "cycles"]\n'
             'found.table.set_index("workload")[columns]'),
    ("markdown", "What the entries are made of, as in `workloads.pdf`:"),
    ("code", "workloads_figure(found.comparisons, claim(found.comparisons[0]))"),
    ("markdown", "The text of the mail:"),
    ("code", "print(text(found))"),
    ("markdown", "## Go on from here\n\nThe panel opens with the proposed design."),
    ("code", "from pvmmu.panels import DesignPanel\n\n"
             'panel = DesignPanel()\npanel.restore(open("state.json").read())\npanel'),
    ("markdown", "Without a kernel at hand, this is what the panel shows at first:"),
    ("code", "panel.figure.figure"),
)  # fmt: skip


def write_notebook(folder: Path) -> Path:
    """Write and execute the notebook of a bundle whose state is there.

    Raises
    ------
    PvmmuError
        A cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    make: dict[str, Any] = {
        "markdown": nbformat.v4.new_markdown_cell,
        "code": nbformat.v4.new_code_cell,
    }
    cells = [make[kind](source) for kind, source in _CELLS]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", store_widget_state=True,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as e:
        raise PvmmuError(f"proposal.ipynb: {e.ename}: {e.evalue}") from None
    target = folder / "proposal.ipynb"
    nbformat.write(notebook, target)
    return target
