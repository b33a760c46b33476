"""The command: what it prints is what the functions return; wrong input is one line."""

from __future__ import annotations

import json
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from conftest import RECORDINGS, ROOT

from pvmmu.cli import COMMANDS, main
from pvmmu.cli.lab import copy_notebooks
from pvmmu.guest.load_trace import load_trace
from pvmmu.replay import diff, explain, replay
from pvmmu.search.sweep import sweep


def run(capsys, *words):
    """Status, standard output and standard error of a command."""
    status = main(list(words))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_help_names_every_command(capsys):
    status, out, _ = run(capsys, "--help")
    assert status == 0
    for name in COMMANDS:
        assert f"  {name} " in out
    assert max(map(len, out.splitlines())) <= 88


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as e:
        main([name, "--help"])
    assert e.value.code == 0
    assert f"usage: pvmmu {name}" in capsys.readouterr().out


def test_replay_prints_what_replay_counts(capsys):
    counts = replay(load_trace("fork.16"), "linux-6.1", "direct")
    status, out, _ = run(capsys, "replay", "fork.16", "--json")
    got = json.loads(out)
    assert status == 0
    assert got["events"] == counts.series().to_dict()
    assert (got["entries"], got["cycles"]) == (counts.entries, counts.cycles("xen-2026"))
    assert got["cycles_low"] < got["cycles"] < got["cycles_high"]
    status, out, _ = run(capsys, "replay", "fork.16")
    assert f"{counts.entries:,} entries to the hypervisor" in out


def test_causes_add_up(capsys):
    _, out, _ = run(capsys, "replay", "fork.16", "--causes", "pte_emulation", "--json")
    got = json.loads(out)
    assert sum(c["pte_emulation"] for c in got["causes"]) == got["events"]["pte_emulation"]


def test_a_design_that_cannot_run_is_status_1(capsys):
    status, out, _ = run(capsys, "replay", "fork.16", "--hooks", "none")
    assert status == 1
    assert "cannot run: frames are never translated" in out
    status, out, _ = run(capsys, "replay", "fork.16", "--hooks", "none", "--json")
    assert status == 1
    assert json.loads(out)["status"].startswith("infeasible: ")
    status, out, _ = run(capsys, "compare", "fork.16", "direct=none", "vmi=vmi")
    assert status == 1
    assert "cannot run" in out


def test_compare_is_diff(capsys):
    a, b = "linux-6.1", "linux-6.1 +ptep_set_wrprotect"
    trace = load_trace("fork.16")
    want = diff(explain(trace, a, "direct"), explain(trace, b, "direct"))
    status, out, _ = run(capsys, "compare", "fork.16", f"direct={a}", f"direct={b}", "--json")
    got = json.loads(out)
    assert status == 0
    assert sum(c["operations"] for c in got["changes"]) == len(want)
    assert [d["entries"] for d in got["designs"]] == [
        replay(trace, h, "direct").entries for h in (a, b)
    ]
    _, out, _ = run(capsys, "compare", "fork.16", f"direct={a}", f"direct={b}")
    assert f"{len(want)} of {len(trace)} operations are carried otherwise" in out


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_sweep_writes_the_table(capsys, tmp_path, suffix):
    target = tmp_path / f"t.{suffix}"
    words = ["sweep", "fork.1", "--mode", "vmi", "--quiet", "-o", str(target), "--best", "2"]
    status, out, _ = run(capsys, *words)
    want = sweep(["fork.1"], "all", ["vmi"], ["xen-2026"], progress=False)
    got = pd.read_parquet(target) if suffix == "parquet" else pd.read_csv(target)
    assert status == 0
    assert len(got) == len(want)
    assert got["hook_sets"].sum() == want["hook_sets"].sum()
    best = want.loc[want["status"] == "ok", "cycles"].min()
    assert f"{best:,.0f}" in out
    status, out, _ = run(capsys, *words, "--json")
    document = json.loads(out)
    assert len(document["best"]) == 2
    assert document["best"][0]["cycles"] == best


def test_report_and_truth_are_the_modules_own(capsys):
    status, out, _ = run(capsys, "report", "fork.16")
    assert status == 0
    assert out.startswith("linux-6.1 in mode direct enters the hypervisor")
    path = str(next(RECORDINGS.glob("*fork.1.txt.xz")))
    status, out, _ = run(capsys, "truth", path, "--json")
    assert status == 0
    assert json.loads(out)["agree"] == json.loads(out)["total"] > 0


WRONG = [
    (["repley"], "did you mean 'replay'"),
    (["replay", "fork.17"], "did you mean 'fork.1"),
    (["replay", "fork.16", "--hooks", "set_ptr"], "did you mean 'set_pte'"),
    (["replay", "fork.16", "--mode", "dirct"], "did you mean 'direct'"),
    (["replay", "fork.16", "--costs", "p5"], "no cost table"),
    (["replay", "fork.16", "--causes", "x"], "no event 'x' here (there are store"),
    (["compare", "fork.16", "linux-6.1", "vmi=vmi"], "write MODE=HOOKS"),
    (["sweep", "fork.1", "-o", "t.xls"], "must end in .parquet or .csv"),
    (["sweep", "fork.1", "--hooks", "none", "-o", "/nonexistent/t.csv"], "cannot be written"),
    (["report", "fork.17"], "no trace named"),
    (["truth", "/nonexistent.txt"], "no such file"),
    (["notebooks", "/nonexistent"], "no notebook in it"),
    (["lab", "/dev/null/x"], "cannot be written"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=lambda x: " ".join(x)[:30])
def test_wrong_input_is_one_line(words, message, capsys):
    status, _, err = run(capsys, *words)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("pvmmu")


def test_lab_copies_and_keeps_what_is_the_users(tmp_path, capsys):
    status, out, _ = run(capsys, "lab", str(tmp_path / "nb"), "--copy-only")
    books = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert status == 0
    assert out.count(": copied") == len(books)
    mine = tmp_path / "nb" / books[0].name
    nb = nbformat.read(mine, as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell("1"))
    nbformat.write(nb, mine)
    before = mine.read_bytes()
    assert dict(copy_notebooks(mine.parent))[mine] == "kept (yours differs)"
    assert mine.read_bytes() == before
    assert dict(copy_notebooks(mine.parent, replace=True))[mine] == "replaced"
    assert mine.read_bytes() == books[0].read_bytes()


def test_as_a_process(tmp_path):
    """Without a terminal: a closed pipe is no traceback, and help needs none of the model."""
    pvmmu = [sys.executable, "-m", "pvmmu"]
    shell = subprocess.Popen([*pvmmu, "replay", "--list"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)  # fmt: skip
    shell.stdout.close()
    assert b"Traceback" not in shell.stderr.read()
    shell.wait()
    code = "import sys; from pvmmu.cli import main; main(['--help']); print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("False\n")
