"""Commands on files of one's own: what is assumed stands beside the numbers."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from pvmmu.cli import main
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.readers.memory.memory_trace import load_memory_trace
from pvmmu.replay import replay
from pvmmu.x86 import Reach, Tlb

CASE = ROOT / "tests" / "data" / "strace" / "w02-parent-renamed.strace"


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("my trace.log")
    path.write_bytes(CASE.read_bytes())
    return path


def run(capsys, *words):
    """Status, standard output and standard error of a command."""
    status = main(list(map(str, words)))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_what_is_assumed_stands_beside_the_numbers(file, capsys):
    assert load_trace(file).provenance.assumptions == ("touches assumed: data",)
    assert not replay(load_trace(file), "linux-6.1", "direct").exact
    for command in (["replay", file], ["compare", file, "direct=linux-6.1", "vmi=vmi"]):
        _, out, _ = run(capsys, *command)
        assert "assumed: touches assumed: data" in out
    _, out, _ = run(capsys, "replay", file, "--json")
    got = json.loads(out)
    assert got["exact"] is False
    assert got["assumptions"] == ["touches assumed: data"]
    _, out, _ = run(capsys, "sweep", file, "--hooks", "linux-6.1", "--json")
    assert json.loads(out)["best"][0]["exact"] is False
    _, out, _ = run(capsys, "report", file, "--assume", "none")
    assert "Touches assumed: none." in out
    _, out, _ = run(capsys, "replay", "fork.16", "--json")
    assert json.loads(out)["exact"] is True


def test_options_of_recordings(file, capsys):
    faults = []
    for words in (["--assume", "none"], [], ["--assume", "all"]):
        _, out, _ = run(
            capsys, "replay", file, "--mode", "native", "--hooks", "none", "--json", *words
        )
        faults.append(json.loads(out)["events"].get("fault", 0))
    assert faults[0] < faults[1] < faults[2]
    _, out, _ = run(capsys, "report", file, "--kernel", "2.6.27")
    assert "of Linux 2.6.27" in " ".join(out.split())
    with pytest.raises(SystemExit):
        main(["replay", str(file), "--frames", "8"])
    assert "64 to 2**28 frames, not '8'" in capsys.readouterr().err


def test_to_repeat_it_runs_as_printed(file, capsys):
    _, out, _ = run(capsys, "report", file, "--assume", "all", "--frames", 70000)
    said = out.split("To repeat it\n------------\n")[1].replace("\\\n", " ")
    words = shlex.split(said)
    assert words[:3] == ["pvmmu", "report", "my trace.log"]
    _, again, _ = run(capsys, *words[1:])
    assert again == out


def test_a_report_compares_a_design_with_another(file, capsys):
    _, out, _ = run(capsys, "report", file)
    assert "1.00 times" not in out
    lines = out.split("Designs\n-------\n")[1].split("\n\n")[0]
    assert len(set(lines.split("\n"))) == len(lines.split("\n"))
    assert "B  direct: linux-6.1 -" in lines


def test_a_proposal_of_a_file_is_whole(file, capsys):
    status, _, _ = run(capsys, "proposal", file, "--workload", "fork.1", "--no-notebook", "-o", "p")
    assert status == 0
    mail = Path("p/proposal.txt").read_text()
    assert "touches assumed: data" in " ".join(mail.split())
    file.unlink()  # the bundle has its own copy
    status, out, _ = run(capsys, "proposal", "--state", "p/state.json", "--no-notebook", "-o", "q")
    assert status == 0
    assert "all 8 numbers are the same" in out


def test_tlb_prints_what_the_models_count(capsys, tmp_path):
    trace = load_memory_trace("sort")
    path = tmp_path / "pin.out"
    pages = trace.pages(fetches=False, limit=20_000)
    lines = "".join(f"0x401000: R {int(v) << 12:#x}\n" for v in pages.words)
    path.write_text(f"#\n{lines}")
    status, out, _ = run(capsys, "tlb", path, "--json", "-q", "--figure", tmp_path / "reach")
    assert status == 0
    got = json.loads(out)
    reach = Reach().add(pages)
    assert (got["accesses"], got["pages"]) == (20_000, reach.pages)
    assert {x["processor"]: x["walks"] for x in got["processors"]}["zen"] == (
        Tlb("zen").run(pages).walks
    )
    curve = {x["entries"]: x["misses"] for x in got["miss_curve"]}
    assert curve[16] == reach.fully_associative()[16]
    assert (tmp_path / "reach.png").stat().st_size > 10_000
    status, out, _ = run(capsys, "tlb", path, "-q")
    assert "20,000 accesses to" in out and "fully associative" in out


WRONG = [
    (["tlb", str(CASE)], "strace, not a memory trace: pvmmu replay"),
    (["tlb", "nosuch"], "nosuch: no such file"),
    (["report", "fork.16", "--against", "foo"], "'foo' is no design; write MODE=HOOKS"),
    (["compare", "fork.16", "direct=", "vmi=vmi"], "'direct=' is no design"),
    (["proposal", "fork.16", "linux-6.1"], "'linux-6.1' is no design"),
    (["replay", "/etc/passwd"], "text of no known kind"),
]


@pytest.mark.parametrize(("words", "message"), WRONG)
def test_wrong_input_is_one_line(words, message, capsys):
    status, out, err = run(capsys, *words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_wrong_numbers_are_refused(capsys):
    with pytest.raises(SystemExit) as e:
        main(["sweep", "fork.1", "--best", "-1"])
    assert e.value.code == 2
    assert "a number of rows, not '-1'" in capsys.readouterr().err


def test_a_file_that_is_none_is_not_compared(capsys):
    status, out, err = run(capsys, "truth", "nosuch.txt")
    assert (status, out) == (2, "nothing was compared\n")
    assert "nosuch.txt: no such file" in err


@pytest.mark.parametrize("kind", ["hooks", "interfaces", "modes", "costs", "workloads", "kernels"])
def test_lists_have_a_line_each(kind, capsys):
    status, out, _ = run(capsys, "list", kind)
    assert status == 0
    rows = [line.split(None, 1) for line in out.splitlines()]
    assert all(len(row) == 2 for row in rows)
    _, out, _ = run(capsys, "list", kind, "--json")
    assert [x["name"] for x in json.loads(out)] == [row[0] for row in rows]


def test_a_full_disk_and_standard_input():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "pvmmu", "list", "costs"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "pvmmu list: output cannot be written (No space left on device)\n"
    words = [sys.executable, "-m", "pvmmu", "replay", "-", "--json"]
    done = subprocess.run(
        words, input=CASE.read_text(), capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout)["trace"] == "standard-input"
