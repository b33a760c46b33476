"""The measured design space: every hook set and program, counts and outcomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import short_name

from pvmmu.errors import MeasurementError
from pvmmu.evidence.truth.__main__ import main
from pvmmu.evidence.truth.design_outcomes import PredictedOutcome
from pvmmu.evidence.truth.design_space import (
    CANNOT,
    ENOUGH,
    OTHER_WORK,
    UNEXPLAINED,
    agreement,
    compare_designs,
)
from pvmmu.evidence.truth.design_space_files import BASE, read_designs, shipped_designs
from pvmmu.evidence.truth.exit_clears import fewest_and_most, inferred_clears
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.readers.xen.recording import read_recording
from pvmmu.guest.vocabulary import COLUMNS, Op
from pvmmu.modes.soundness import Level, Verdict
from pvmmu.paths import data_path

RAW = sorted((Path(__file__).parents[1] / "data" / "designs").glob("*.txt.xz"))
#: Designs of small folders: nothing special, one that dies, one whose exits are requests.
SOME = (0x7C1FE, 0x781FF, 0x7C57F)


@pytest.fixture(scope="module")
def compared():
    return compare_designs(shipped_designs())


@pytest.fixture
def small(tmp_path):
    """A folder of a few designs of a small program."""
    shipped = shipped_designs()
    table = pd.read_csv(data_path("truth", "designs", "designs.csv"), dtype=str)
    masks = [f"{m:#x}" for m in (BASE, *SOME)]
    table[table["hooks"].isin(masks)].to_csv(tmp_path / "designs.csv", index=False)
    counts = shipped.counts[shipped.counts["workload"] == "fork.16"]
    counts = counts[counts["hooks"].isin((BASE, *SOME))]
    counts = counts.assign(hooks=counts["hooks"].map(hex))
    counts.to_csv(tmp_path / "counts.csv.gz", index=False)
    return tmp_path


def test_outcomes_and_counts_of_hook_sets_that_no_kernel_has(compared):
    counters, outcomes = compared
    text, enough = agreement(counters, outcomes)
    assert enough, text
    assert set(counters["hooks"]) == set(shipped_designs().counts["hooks"]) - {BASE}
    assert len(counters) > 9_000
    assert (outcomes["predicted"] == outcomes["measured"]).all(), outcomes.to_string()


def test_most_counters_need_no_allowance_and_none_is_hollow(compared):
    """Noise and other work explain a small part only, and less than the changes themselves."""
    counters, _ = compared
    assert (counters["note"] == "").mean() > 0.9
    assert (counters["note"] == OTHER_WORK).mean() < 0.02
    threads = counters["workload"].isin(("cmd_thrfork", "cmd_gcheap"))  # scheduled by chance
    changed = counters[(counters["change"].abs() > 10) & ~threads]
    assert len(changed) > 1_800
    sizes = changed["noise"] + changed["other_work"]
    assert (sizes < changed["change"].abs()).mean() > 0.9


def test_a_wrong_count_or_outcome_is_found(small, capsys):
    assert main([str(small)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("4 of 4 outcomes, ")
    path = small / "designs.csv"
    path.write_text(path.read_text().replace(",dies,", ",runs,"))
    assert main([str(small)]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 of 4 outcomes, ")
    path.unlink()
    counts = pd.read_csv(small / "counts.csv.gz")
    wrong = (counts["hooks"] == "0x7c1fe") & (counts["event"] == "PTWR_EMULATION")
    counts.loc[wrong, "count"] += 100
    counts.to_csv(small / "counts.csv.gz", index=False)
    assert main([str(small), "--json"]) == 1
    [found] = json.loads(capsys.readouterr().out)["folders"]
    differ = [r for r in found["counters"] if r["verdict"] == "DIFFERS"]
    assert [(r["hooks"], r["counter"], r["note"]) for r in differ] == [
        (0x7C1FE, "PTWR_EMULATION", UNEXPLAINED)
    ]
    assert found["result"].startswith("0 of 0 outcomes, ")
    assert {r["agrees"] for r in found["outcomes"]} == {"unknown"}


def test_a_design_predicted_not_to_run_that_was_counted_differs(small):
    counts = pd.read_csv(small / "counts.csv.gz")
    counts["hooks"] = counts["hooks"].replace("0x7c1fe", "0x7c1ef")
    counts.to_csv(small / "counts.csv.gz", index=False)
    counters, _ = compare_designs(small)
    assert set(counters.loc[counters["hooks"] == 0x7C1EF, "note"]) == {CANNOT}


def test_what_the_folder_lacks_comes_from_the_package(small):
    before, _ = compare_designs(small)
    counts = pd.read_csv(small / "counts.csv.gz")
    counts[counts["hooks"] != hex(BASE)].to_csv(small / "counts.csv.gz", index=False)
    after, _ = compare_designs(small)
    pd.testing.assert_frame_equal(before, after)
    counts["workload"] = "fork.17"
    counts.to_csv(small / "counts.csv.gz", index=False)
    with pytest.raises(MeasurementError, match=r"workload='fork\.17': no stream of it is known"):
        compare_designs(small)


def test_a_stream_of_the_folder_takes_the_place_of_the_shipped_one(small):
    (small / "streams").mkdir()
    other = read_designs(data_path("truth", "designs")).streams["null.1"]
    shutil.copy(other, small / "streams" / "fork.16.parquet")
    counters, _ = compare_designs(small)
    assert (counters["verdict"] == "DIFFERS").any()


@pytest.mark.parametrize("path", RAW, ids=lambda p: short_name(p))
def test_the_streams_are_those_of_the_recordings(path):
    name = path.name.removesuffix(".txt.xz").partition(".")[2]
    ours, theirs = load_trace(shipped_designs().streams[name]), read_recording(path)
    for column in COLUMNS:
        np.testing.assert_array_equal(ours[column], theirs[column])


def test_every_stream_has_its_recording():
    names = {p.name.removesuffix(".txt.xz").partition(".")[2] for p in RAW}
    assert names == set(shipped_designs().streams)


@pytest.mark.parametrize("name", ["fork.16", "vforkexec.16"])
def test_inferred_clears_in_other_brackets_are_the_same_clears(name):
    trace = load_trace(shipped_designs().streams[name])
    few, many = fewest_and_most(trace)
    mine = inferred_clears(trace)
    held = []
    for other in (few, trace, many):
        rows = inferred_clears(other)
        assert sorted(zip(other["table"][rows], other["index"][rows], strict=True)) == sorted(
            zip(trace["table"][mine], trace["index"][mine], strict=True)
        )
        bracket = np.cumsum(other["op"] == Op.LAZY_ENTER)
        held.append(len(np.unique(bracket[rows])))
    assert held[0] < held[1] <= held[2]


def test_lost_pages_and_dead_programs_are_one_kind_of_outcome():
    lost = PredictedOutcome("corrupts", Verdict(Level.CORRUPTS))
    assert lost.agrees("crashes")
    assert not lost.agrees("runs")
    assert not PredictedOutcome("warns", Verdict(Level.WARNS)).agrees("corrupts")
    assert 0.99 < ENOUGH < 1
