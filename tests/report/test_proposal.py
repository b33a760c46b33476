"""The proposal bundle: what a mailing list gets, and the same numbers when it is made again."""

from __future__ import annotations

import dataclasses
import json
import shutil

import nbformat
import pandas as pd
import pytest
from test_report import check

from pvmmu.cli import main
from pvmmu.errors import PvmmuError
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import COLUMNS
from pvmmu.guest.workloads import run_workload
from pvmmu.panels import DesignPanel
from pvmmu.replay import replay
from pvmmu.replay.whole import whole_program
from pvmmu.report import State, load_state, remake, results, write_bundle
from pvmmu.report.mail import LINES, mail
from pvmmu.report.text import text

HOOKED = "linux-6.1 +ptep_set_wrprotect"
NAMES = {
    "proposal.txt", "details.txt", "workloads.png", "workloads.svg", "workloads.pdf", "results.csv",
    "results.parquet", "state.json",
}  # fmt: skip


def state(*designs, trace="fork.16", workloads=("mmap.16",)):
    return State.of(
        trace, designs or [f"direct={HOOKED}", "direct=linux-6.1"], "p4-2006", workloads
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proposal") / "a"
    write_bundle(state(), folder, notebook=False)
    return folder


def test_a_bundle_is_made_again_byte_for_byte(bundle, tmp_path):
    assert {p.name for p in bundle.iterdir()} == NAMES
    files, change = remake(bundle / "state.json", tmp_path / "b", notebook=False)
    assert "same model: all 4 numbers are the same" in change
    for path in files:
        if path.name != "details.txt":  # which says that it was made again
            assert path.read_bytes() == (bundle / path.name).read_bytes(), path.name
    again = (tmp_path / "b" / "details.txt").read_text()
    assert change in " ".join(again.split())


def test_the_mail_says_what_a_receiver_asks(bundle):
    body = (bundle / "proposal.txt").read_text(encoding="ascii")
    wholes = [whole_program(load_trace("fork.16"), h) for h in ("linux-6.1", HOOKED)]
    share = wholes[0].change(wholes[1]).share
    assert 0.02 < share < 0.1
    assert body.startswith(f"+ptep_set_wrprotect: instructions of the run {-share:+.0%} to 0%\n")
    assert f"{-share:+.1%}" in body
    for needed in ("void (*ptep_set_wrprotect)(", "mmu_update (MMU_PT_UPDATE_PRESERVE_AD)",
                   "in generic code", "copy_page_range", "Safety: sound",
                   "no measurable difference",
                   "Linux 6.1", "1 vCPU", "no THP", "pvmmu proposal --state"):  # fmt: skip
        assert needed.lower() in " ".join(body.split()).lower(), needed


def test_the_second_line_says_if_a_design_does_not_work():
    pair = ["direct=linux-6.1 +ptep_get_and_clear", "direct=linux-6.1"]
    lines = mail(results(state(*pair, trace="dontneed.64"))).splitlines()
    assert lines[1].startswith("NOT SOUND, ")
    assert "It takes a new call" in "\n".join(lines)


def test_the_details_begin_with_the_number(bundle):
    body = (bundle / "details.txt").read_text(encoding="ascii")
    check(body)
    a, b = (replay(load_trace("fork.16"), h, "direct").entries for h in (HOOKED, "linux-6.1"))
    assert body.startswith(f"{1 - a / b:.0%} fewer entries to the hypervisor for fork.16 ({a}")
    for needed in ("+ ptep_set_wrprotect (low-level)", "calls in generic code", "never merged",
                   "mmap.16", "pvmmu proposal --state", "####", "draws from"):  # fmt: skip
        assert needed in body, needed


@pytest.mark.parametrize(
    "designs",
    [["direct=none", "direct=linux-6.1"], ["vmi=vmi"], [],
     ["direct=linux-6.1", "vmi=vmi", "native=none", "lguest=lguest", "direct=xen-2.6.27"],
     ["direct:stores=batched=linux-6.1 -lazy_mmu", "direct=linux-6.1"]],
)  # fmt: skip
def test_any_designs(designs):
    found = results(state(*designs, trace="make"))
    check(text(found))
    check(mail(found))
    assert len(mail(found).splitlines()) <= LINES


def test_data_are_those_of_replay(bundle):
    table, csv = pd.read_parquet(bundle / "results.parquet"), pd.read_csv(bundle / "results.csv")
    assert list(table.columns) == list(csv.columns)
    for row in table.itertuples():
        counts = replay(load_trace(row.workload), row.hooks, row.mode)
        assert row.entries == counts.entries
        assert row.pte_emulation == counts["pte_emulation"]
    assert (csv["cycles"] == table["cycles"]).all()


def test_a_changed_model_is_told(bundle, tmp_path):
    document = json.loads((bundle / "state.json").read_text())
    document["made"]["model"] = "0123456789abcdef"
    (tmp_path / "state.json").write_text(json.dumps(document))
    change = results(load_state(tmp_path)).change()
    assert "the model has changed since (model 0123456789abcdef" in change
    assert "all 4 numbers are the same" in change
    document["made"]["entries"]["fork.16 A"] += 1
    document["made"]["traces"]["fork.16"] = "0"
    (tmp_path / "state.json").write_text(json.dumps(document))
    change = results(load_state(tmp_path)).change()
    assert "1 of 4 numbers differ (fork.16 A:" in change
    assert "trace fork.16 is another one" in change


def test_a_trace_of_ones_own_goes_along(tmp_path):
    run_workload("mmap", 4).save(tmp_path / "mine.parquet")
    files = write_bundle(
        state(trace=str(tmp_path / "mine.parquet"), workloads=()), tmp_path / "b", notebook=False
    )
    moved = tmp_path / "elsewhere"
    (tmp_path / "b").rename(moved)
    (tmp_path / "mine.parquet").unlink()
    assert any(p.suffix == ".parquet" and p.stem.startswith("mm") for p in files)
    assert "are the same" in remake(moved, tmp_path / "c", notebook=False)[1]


def test_prices_of_ones_own_go_along_with_those_they_build_on(tmp_path):
    (tmp_path / "mine").mkdir()
    figure = 'value = {}\nunit = "cycles"\nkind = "published"\nsource = "a test"\n'
    head = 'title = "{0}"\ncpu = "x"\nyear = 2026\nmhz = 1000\nlike = "{1}"\n[events.mmu_update]\n'
    for name, like, value in (("a", "p4-2006", 5), ("b", "a.toml", 7)):
        table = head.format(name, like) + figure.format(value)
        (tmp_path / "mine" / f"{name}.toml").write_text(table)
    mine = dataclasses.replace(state(), costs=str(tmp_path / "mine" / "b.toml"))
    write_bundle(mine, tmp_path / "bundle", notebook=False)
    shutil.rmtree(tmp_path / "mine")
    _, change = remake(tmp_path / "bundle" / "state.json", tmp_path / "again", notebook=False)
    assert "all 4 numbers are the same" in change


@pytest.mark.parametrize("source", ["../../evil", "/evil", "..", "a/../../evil.parquet"])
def test_a_trace_cannot_choose_where_it_is_written(tmp_path, source):
    t = run_workload("mmap", 1)
    named = Trace(
        {c: t[c] for c in COLUMNS},
        t.mms,
        t.callers,
        dataclasses.replace(t.provenance, source=source),
    )
    named.save(tmp_path / "x.parquet")
    before = {p for p in tmp_path.rglob("*") if p.is_file()}
    inner = tmp_path / "one" / "two"
    inner.mkdir(parents=True)
    own = state(trace=str(tmp_path / "x.parquet"), workloads=())
    files = write_bundle(own, inner / "b", notebook=False)
    after = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert after - before == set(files)
    assert all(p.is_relative_to(inner / "b") for p in files)
    assert any(p.suffix == ".parquet" and p.name != "results.parquet" for p in files)


@pytest.mark.notebook
def test_its_notebook_is_executed(tmp_path, capsys):
    words = ["proposal", "fork.16", f"direct={HOOKED}", "--workload", "mmap.16"]
    assert main([*words, "-o", str(tmp_path / "b")]) == 0
    assert "proposal.ipynb" in capsys.readouterr().out
    nb = nbformat.read(tmp_path / "b" / "proposal.ipynb", as_version=4)
    outputs = [o for c in nb.cells if c.cell_type == "code" for o in c.outputs]
    assert "fewer entries" in outputs[0]["text"]
    assert "image/png" in outputs[-1]["data"]
    assert not [o for o in outputs if o.output_type == "error"]


WRONG = [
    ({}, "proposal: 1 is missing"),
    ({"mode": 3}, "mode: a text is needed"),
    ({"hooks": "set_ptr"}, "did you mean 'set_pte'"),
    ({"trace": "fork.17"}, "no trace named 'fork.17'"),
    ({"against": "x"}, "against: a list is needed"),
    ({"against": [["direct"]]}, "each is a mode and its hooks"),
    ({"against": []}, "compares 2 to 5 designs, not 1"),
    ({"costs": "p5"}, "no cost table"),
    ({"made": []}, "made: not a table"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=lambda x: str(x)[:25])
def test_a_wrong_state_names_file_and_field(bundle, tmp_path, change, message):
    document = json.loads((bundle / "state.json").read_text()) | change if change else {}
    (tmp_path / "state.json").write_text(json.dumps(document))
    with pytest.raises(PvmmuError) as e:
        load_state(tmp_path)
    assert message in str(e.value)
    assert "state.json: " in str(e.value)


def test_nothing_of_others_is_replaced_and_nothing_half_written_stays(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(PvmmuError, match="no bundle; name another folder"):
        write_bundle(state(), tmp_path / "mine", notebook=False)
    with pytest.raises(PvmmuError, match="cannot be made"):
        write_bundle(state(), "/dev/null/x", notebook=False)
    monkeypatch.setattr(
        "pvmmu.report.bundle.text", lambda r: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with pytest.raises(PvmmuError, match="full"):
        write_bundle(state(), tmp_path / "b", notebook=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_the_state_can_be_pasted_into_a_panel(bundle):
    panel = DesignPanel("make", "vmi", "vmi")
    panel.restore((bundle / "state.json").read_text())
    assert panel.state()["trace"] == "fork.16"
    assert panel.matrix.value.short == HOOKED


def test_the_button_writes_the_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr("pvmmu.report.bundle.write_notebook", lambda folder: None)
    panel = DesignPanel("fork.16", hooks=HOOKED, folder=tmp_path / "export")
    panel.propose()
    folder = tmp_path / "export" / "proposal-fork.16"
    assert {p.name for p in folder.iterdir()} == NAMES
    assert f"{folder}" in panel.messages.line.value
    assert load_state(folder).designs[0] == ("direct", HOOKED)
