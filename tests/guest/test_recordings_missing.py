"""Recordings that lack an event: inferred where that is certain, else refused by its name."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import RECORDINGS

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.xen.missing import ENTER, LEAVE, missing_events
from pvmmu.guest.readers.xen.recording import trace_of_lines
from pvmmu.guest.readers.xen.text import read_lines
from pvmmu.guest.vocabulary import COLUMNS, Evidence, Op

COMMIT = "xen_mmu_ptep_modify_prot_commit"


def lines_of(name):
    return list(read_lines(RECORDINGS / f"xen1-both.{name}.txt.xz"))


def without(lines, *events):
    return [line for line in lines if line.event not in events]


@pytest.mark.parametrize("name", ["fork.16", "mprotect.16", "dontneed.16-6.12", "vforkexec.16"])
def test_brackets_without_their_entries_are_inferred_and_marked(name):
    lines = lines_of(name)
    whole, inferred = trace_of_lines(lines, name), trace_of_lines(without(lines, *ENTER), name)
    for column in set(COLUMNS) - {"evidence", "tsc"}:
        np.testing.assert_array_equal(whole[column], inferred[column], column)
    enters = inferred["op"] == Op.LAZY_ENTER
    assert enters.any()
    assert (inferred["evidence"][enters] == Evidence.INFERRED).all()
    assert (whole["evidence"][enters] == Evidence.RECORDED).all()


@pytest.mark.parametrize(
    ("lacks", "named"),
    [(LEAVE, "fn:xen_leave_lazy_mmu"), ((COMMIT,), COMMIT)],
)
def test_what_is_not_certain_is_refused_by_name(lacks, named):
    lines = without(lines_of("mprotect.16"), *lacks)
    assert any(named in text for text in missing_events(lines))
    with pytest.raises(RecordingError, match=named):
        trace_of_lines(lines, "some.txt")


def test_a_bracket_left_at_a_context_switch_is_refused():
    lines = without(lines_of("mprotect.16"), *ENTER)
    at = next(i for i, line in enumerate(lines) if line.event in LEAVE)
    lines[at] = lines[at]._replace(rest=["caller=xen_start_context_switch"])
    with pytest.raises(RecordingError, match=rf"some.txt:{lines[at].number}: .*enter_lazy_mmu"):
        trace_of_lines(lines, "some.txt")


def test_a_whole_recording_lacks_nothing():
    assert missing_events(lines_of("mprotect.16")) == []
