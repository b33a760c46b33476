"""Folders of measured designs: what is read, and what each mistake in them says."""

from __future__ import annotations

import re

import pytest

from pvmmu.errors import MeasurementError
from pvmmu.evidence.truth.design_space_files import (
    BASE,
    MeasuredDesign,
    read_designs,
    shipped_designs,
)
from pvmmu.hooks import HookSet

DESIGNS = """hooks,design,changes,outcome,evidence
0x7c1ff,linux-6.1,,runs,no message
0x7eefa,linux-6.1 -set_pte -set_pte_at -ptep_modify_prot -dup_mmap -activate_mm \
+ptep_set_wrprotect +ptep_get_and_clear +ptep_test_and_clear_young,vmap in a bracket,crashes,"a, b"
"""
COUNTS = "hooks,workload,run,iterations,event,count\n0x7c1fe,fork.1,1,10,PAGE_FAULT,90\n"
INSTRUCTIONS = """environment,hooks,workload,run,iterations,min,median,mean
native,-,null.1,1,20,26,36,35
xen-pv,0x7c1fd,null.1,1,20,26.5,36,3e1
"""


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def test_a_mask_is_the_design_that_its_names_say(tmp_path):
    found = read_designs(write(tmp_path, designs=DESIGNS)).designs
    assert found[BASE].hooks == HookSet.parse("linux-6.1")
    crash = found[0x7EEFA]
    assert crash.outcome == "crashes"
    assert crash.evidence == "a, b"
    assert crash.brackets == ("vmap in a bracket",)
    assert "ptep_set_wrprotect" in crash.hooks
    assert "set_pte" not in crash.hooks
    assert HookSet.parse(crash.name.split(";")[0]) == crash.hooks


def test_files_may_be_absent_and_a_mask_without_row_is_a_design_without_outcome(tmp_path):
    found = read_designs(write(tmp_path, counts=COUNTS, instructions=INSTRUCTIONS))
    assert found.designs == {m: MeasuredDesign(m) for m in (0x7C1FE, 0x7C1FD)}
    assert found.instructions["hooks"].to_list() == [-1, 0x7C1FD]
    assert found.instructions["mean"].to_list() == [35, 30]
    assert found.streams == {}
    assert read_designs(write(tmp_path, designs=DESIGNS)).designs.keys() >= {BASE, 0x7C1FE}


def test_streams_are_found_by_workload(tmp_path):
    write(tmp_path, designs=DESIGNS)
    (tmp_path / "raw").mkdir()
    (tmp_path / "streams").mkdir()
    (tmp_path / "streams" / "mmap.16.parquet").touch()
    for name in ("xen1-both.fork.16.txt.gz", "xen1-both.cmd_dash3.txt"):
        (tmp_path / "raw" / name).touch()
    assert sorted(read_designs(tmp_path).streams) == ["cmd_dash3", "fork.16", "mmap.16"]
    (tmp_path / "raw" / "notes.txt").touch()
    with pytest.raises(MeasurementError, match=r"notes\.txt: a stream is named"):
        read_designs(tmp_path)


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("designs", "0x7c1ff", "0x7z", r"designs\.csv:2: hooks='0x7z': no mask"),
        ("designs", "0x7c1ff", "0x207c1ff", r"designs\.csv:2: hooks=.*bit 0x2000000 is no hook"),
        ("designs", "0x7c1ff", "0x7c1fd", r"designs\.csv:2: design and hooks=0x7c1fd differ in la"),
        ("designs", "6.1,", "6.1 -no_such,", r"designs\.csv:2: design=.*no hook"),
        ("designs", "6.1,,", "6.1,vmap in a bracket,", r"designs\.csv:2: changes='vmap"),
        ("designs", "runs", "flies", r"designs\.csv:2: outcome='flies': none of runs, warns"),
        ("designs", "outcome", "result", r"designs\.csv:1: column 'outcome' is missing"),
        ("designs", "0x7eefa", "0x7c1ff", r"designs\.csv:3: hooks=0x7c1ff: the design is there"),
        ("counts", "90", "many", r"counts\.csv:2: count='many': no whole number"),
        ("counts", ",10,", ",0,", r"counts\.csv:2: iterations='0'"),
        ("counts", ",90", "", r"counts\.csv:2: count='': no whole number"),
        ("instructions", "35", "x", r"instructions\.csv:2: mean='x': no number"),
        ("instructions", "xen-pv,0x7c1fd", "xen-pv,-", r"instructions\.csv:\d: hooks='-'"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_field(tmp_path, file, old, new, says):
    texts = {"designs": DESIGNS, "counts": COUNTS, "instructions": INSTRUCTIONS}
    write(tmp_path, **{file: texts[file].replace(old, new, 1)})
    with pytest.raises(MeasurementError, match=says):
        read_designs(tmp_path)


def test_a_folder_of_something_else_is_named(tmp_path):
    with pytest.raises(MeasurementError, match=re.escape(f"{tmp_path}: no measured designs")):
        read_designs(tmp_path)
    with pytest.raises(MeasurementError, match="no such folder"):
        read_designs(tmp_path / "none")


def test_what_ships_has_designs_counts_instructions_and_streams():
    """The public half of the measurement, whole; its numbers are those of its README."""
    found = shipped_designs()
    outcomes = [d.outcome for d in found.designs.values()]
    assert len(outcomes) == 44
    assert {o: outcomes.count(o) for o in set(outcomes)} == {
        "runs": 29, "warns": 8, "corrupts": 2, "crashes": 1, "dies": 4,
    }  # fmt: skip
    assert len(found.counts) == 17_465
    assert len(found.instructions) == 1_230
    assert len(found.streams) == 28
    assert set(found.streams) == set(found.counts["workload"])
