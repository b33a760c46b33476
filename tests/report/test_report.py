"""The plain text: what a mail program and a reader need of it."""

from __future__ import annotations

import re
import shlex

import pytest
from conftest import examples, recorded
from hypothesis import given, strategies as st

from pvmmu.cli import main as pvmmu_main
from pvmmu.cli.report import main
from pvmmu.costs import get_costs
from pvmmu.errors import PvmmuError
from pvmmu.hooks import HookSet, catalogue
from pvmmu.replay import replay
from pvmmu.replay.compare import Comparison, Design
from pvmmu.report import run_report as module
from pvmmu.report.run_report import WIDTH, command, report, write_report


def comparison(hooks="linux-6.1", mode="direct", name="fork.16", against=module.AGAINST):
    designs = [Design.of(hooks, mode), *(Design.of(*d) for d in against)]
    return Comparison(recorded(name), tuple(designs), get_costs("p4-2006"))


def check(text: str) -> None:
    assert text.isascii()
    assert "\t" not in text
    assert text.endswith("\n")
    for line in text.splitlines():
        assert len(line) <= WIDTH, line
        assert line == line.rstrip()


@pytest.mark.parametrize("name", ["fork.16", "make", "smpmmap.16", "null.1"])
@pytest.mark.parametrize(
    ("hooks", "mode"),
    [("linux-6.1", "direct"), ("none", "native"), ("vmi", "vmi"), ("none", "direct"),
     ("xen-2.6.27", "direct:backend=2.6.27,stores=batched")],
)  # fmt: skip
def test_every_report_fits_a_mail(name, hooks, mode):
    check(report(comparison(hooks, mode, name)))


@examples(25)
@given(mask=st.integers(0, 2 ** len(catalogue()) - 1))
def test_whatever_the_hooks(mask):
    text = report(comparison(HookSet(mask)))
    check(text)


def test_it_names_all_that_a_reader_needs():
    c = comparison("linux-6.1 +ptep_set_wrprotect")
    text = report(c)
    trace = c.trace
    for needed in (
        "fork.16", trace.fingerprint, "linux-6.1 +ptep_set_wrprotect", "p4-2006", "pvmmu 0.1.0",
        module.fingerprint(), "counterfactual", "6.1.192", "recorded", "inferred", "prior",
    ):  # fmt: skip
        assert needed in text, needed


def test_the_claim_is_computed():
    c = comparison("linux-6.1 +ptep_set_wrprotect")
    ours = replay(c.trace, "linux-6.1 +ptep_set_wrprotect", "direct").entries
    theirs = replay(c.trace, "linux-6.1", "direct").entries
    first = " ".join(report(c).split("\n\n")[0].split())
    assert f"enters the hypervisor {ours:,} times for fork.16" in first
    assert f"{ours / theirs:.2f} times as often as linux-6.1" in first


def test_its_numbers_are_those_of_replay():
    c = comparison()
    table = {m[0]: m[1] for m in re.findall(r"^(\w+) +([\d,]+) ", report(c), re.M)}
    for name, n in c.counts[0].series().items():
        assert table[name] == f"{n:,}"


def test_an_infeasible_design_says_why():
    text = report(comparison("linux-6.1 -alloc_pte", name="mmap.16"))
    assert "cannot run: a new PTE table is never announced (alloc_pte)" in text
    check(text)


def test_stability_over_the_ranges_of_the_costs():
    text = " ".join(report(comparison("linux-6.1 +ptep_set_wrprotect")).split())
    assert "A is cheaper than B whatever the figures are within their ranges." in text
    assert "A is dearer than D whatever the figures are within their ranges." in text
    assert "A against C depends on priors, most of all on" in text


def test_the_same_text_every_time():
    assert report(comparison()) == report(comparison())


@pytest.mark.parametrize(
    "hooks", ["linux-6.1 -lazy_mmu", "set_pte+set_pmd", "vmi +ptep_set_wrprotect"]
)
def test_the_command_prints_the_same_report(hooks, capsys):
    c = comparison(hooks)
    words = command(c)
    assert words[:2] == ["pvmmu", "report"]
    assert main(words[2:]) == 0
    printed = capsys.readouterr().out
    assert printed == report(c)
    said = printed.split("To repeat it\n------------\n")[1]
    assert shlex.split(said.replace("\\\n", " ")) == words


def test_wrong_arguments_are_one_line(capsys):
    for args, message in (
        (["fork.17"], "no trace named 'fork.17' ships with pvmmu; did you mean"),
        (["fork.16", "--hooks", "set_ptr"], "did you mean 'set_pte'"),
        (["fork.16", "--costs", "p5"], "no cost table"),
        (["fork.16", "--mode", "x"], "no mode is named"),
        (["fork.16", "-o", "/nonexistent/dir/x.txt"], "cannot be written"),
        (["/etc/passwd.parquet"], "no such file"),
    ):
        assert pvmmu_main(["report", *args]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_report(comparison(), tmp_path / "r.txt")
    before = path.read_text()
    monkeypatch.setattr(
        "pathlib.Path.write_text", lambda *a, **k: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(PvmmuError, match="full"):
        write_report(comparison("vmi", "vmi"), path)
    monkeypatch.undo()
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
