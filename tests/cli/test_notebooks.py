"""The notebooks: readable sources, and a run without a browser that hides no error."""

from __future__ import annotations

import statistics
import textwrap

import nbformat
import pytest
from conftest import ROOT

from pvmmu.cli import run_notebooks as lab

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RESULTS = ROOT / "results"


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_prose_with_calls(path):
    code, prose = cells(path, "code"), cells(path, "markdown")
    lines = [len([s for s in c.source.splitlines() if s.strip()]) for c in code]
    assert len(prose) >= len(code)
    assert statistics.median(lines) <= 5
    assert max(lines) <= 20
    assert sum(c.source.count("def ") for c in code) <= 1
    assert path.stat().st_size < 30_000


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_no_output_is_stored(path):
    for c in cells(path, "code"):
        assert not c.outputs
        assert c.execution_count is None
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


@pytest.mark.notebook
@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_hides_no_error(path):
    # where `make lab` puts its copies: neither runs again what the other has run
    RESULTS.mkdir(exist_ok=True)
    if not lab.is_current(path, RESULTS):
        assert lab.run_notebook(path, RESULTS) == []
    done = nbformat.read(RESULTS / path.name, as_version=4)
    for c in done.cells:
        for o in c.get("outputs", ()):
            text = "".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", ""))
            assert "it/s" not in text, "a progress bar was left behind"
            assert o.output_type != "error"
    last = [o for c in done.cells if c.cell_type == "code" for o in c.outputs][-1]
    assert "image/png" in last["data"], "a notebook ends in a picture for readers without a kernel"
    assert list(RESULTS.glob(f"{path.stem}*.png"))
    assert lab.is_current(path, RESULTS)


def make(path, source):
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(source))])
    nbformat.write(nb, path)


@pytest.mark.notebook
def test_an_error_in_a_callback_fails_the_run(tmp_path):
    """Such a notebook passes for nbclient: the exception sits in the state of a widget."""
    (tmp_path / "out").mkdir()
    make(
        tmp_path / "a.ipynb",
        """
        from pvmmu.panels import DesignPanel
        p = DesignPanel("fork.1")
        p.figure.show = lambda c: 1 / 0
        p.mode.value = "vmi"
        p
        """,
    )
    [error] = lab.run_notebook(tmp_path / "a.ipynb", tmp_path / "out")
    assert error == "ZeroDivisionError: division by zero"
    assert not lab.is_current(tmp_path / "a.ipynb", tmp_path / "out")


@pytest.mark.notebook
def test_the_command_runs_what_has_changed_only(tmp_path, capsys):
    books, out = tmp_path / "nb", tmp_path / "out"
    books.mkdir()
    make(books / "a.ipynb", "1 + 1")
    make(books / "b.ipynb", "2 + 2")
    assert lab.main([str(books), "--out", str(out), "--jobs", "2"]) == 0
    assert capsys.readouterr().out.count(": ok, ") == 2
    make(books / "b.ipynb", "raise ValueError('no')")
    assert lab.main([str(books), "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "a.ipynb: unchanged" in said.out
    assert "ValueError: no" in said.err
    assert lab.main([str(tmp_path / "none")]) == 2
    assert "no notebook in it" in capsys.readouterr().err
