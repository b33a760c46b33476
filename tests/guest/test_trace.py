"""The trace: validation, immutability, files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import examples, recorded
from guests import random_trace
from hypothesis import given, strategies as st

from pvmmu.errors import TraceError
from pvmmu.guest.trace import (
    COLUMNS,
    OPS,
    Evidence,
    Op,
    Platform,
    Provenance,
    Trace,
    TraceBuilder,
)

HERE = Provenance("a test", "6.1.0")


def build(*rows: dict, mms: int = 1, platform: Platform | None = None) -> Trace:
    b = TraceBuilder()
    for i in range(mms):
        b.mm(f"mm {i}")
    for row in rows:
        b.add(**row)
    return b.build(Provenance("a test", "6.1.0", platform=platform or Platform()))


STORE = {"op": Op.SET_PTE, "mm": 1, "table": 7, "index": 3}


def test_every_operation_and_column_is_described():
    assert set(OPS) == set(Op)
    assert all(info.meaning and info.kernel for info in OPS.values())
    t = build(STORE)
    assert {name: t[name].dtype for name in COLUMNS} == {n: d for n, (d, _, _) in COLUMNS.items()}


WRONG = {
    "unknown mm": ([{**STORE, "mm": 2}], "row 0: address space 2 is unknown"),
    "entry outside": ([STORE, {**STORE, "index": 512}], "row 1: entry 512 is outside its table"),
    "no entry": ([{**STORE, "index": -1}], "row 0: entry -1 is outside its table"),
    "no table": ([{**STORE, "table": -1}], "row 0: SET_PTE names no table page"),
    "bracket open": ([{"op": Op.LAZY_ENTER}, STORE], "row 0: the lazy bracket opened here"),
    "bracket twice": ([{"op": Op.LAZY_ENTER}] * 2, "row 1: LAZY_ENTER inside an open lazy bracket"),
    "leave first": ([{"op": Op.LAZY_LEAVE}], "row 0: LAZY_LEAVE without an open lazy bracket"),
    "switch open": ([{"op": Op.SWITCH_START}], "row 0: the context switch opened here"),
    "unknown cpu": ([{**STORE, "cpu": 1}], "row 0: CPU 1 of a guest with 1"),
    "unknown evidence": ([{**STORE, "evidence": 4}], "row 0: evidence 4"),
    "allocated twice": ([{"op": Op.ALLOC_PTE, "mm": 1, "table": 9}] * 2, "row 1: ALLOC_PTE of"),
    "released twice": ([{"op": Op.RELEASE_PTE, "mm": 1, "table": 9}] * 2, "already released"),
    "too large": ([{**STORE, "task": 2**40}], "row 0: task = 1099511627776 does not fit int32"),
    "empty": ([], "empty trace"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_row_is_named(case):
    rows, message = WRONG[case]
    with pytest.raises(TraceError) as e:
        build(*rows)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_a_two_level_table_has_1024_entries():
    wide = Platform(levels=2)
    assert len(build({**STORE, "index": 1023}, platform=wide)) == 1
    with pytest.raises(TraceError, match="0 to 1023"):
        build({**STORE, "index": 1024}, platform=wide)


def test_nested_brackets_are_lawful_where_the_kernel_counts_depth():
    rows = [{"op": Op.LAZY_ENTER}] * 2 + [{"op": Op.LAZY_LEAVE}] * 2
    assert len(build(*rows, platform=Platform(lazy_nests=True))) == 4


def test_columns_are_checked():
    with pytest.raises(TraceError, match="unknown column 'pfn'"):
        Trace({"op": [1], "pfn": [2]}, build(STORE).mms, (), HERE)
    with pytest.raises(TraceError, match="has shape"):
        Trace({"op": [85, 85], "cpu": [0]}, build(STORE).mms, (), HERE)
    with pytest.raises(TraceError, match="not a whole number"):
        Trace({"op": [85], "cpu": [0.5]}, build(STORE).mms, (), HERE)


def test_a_trace_cannot_be_changed():
    t = build(STORE)
    with pytest.raises(ValueError, match="read-only"):
        t["mm"][0] = 0


def test_the_caller_may_change_his_own_arrays():
    op = np.array([85], np.uint8)
    t = Trace({"op": op}, build(STORE).mms, (), HERE)
    op[0] = 0
    assert t["op"][0] == 85


@examples(25)
@given(seed=st.integers(0, 10**6), vcpus=st.sampled_from((1, 2)))
def test_a_file_holds_the_whole_trace(tmp_path_factory, seed, vcpus):
    path = tmp_path_factory.mktemp("t") / "x.parquet"
    t = random_trace(seed, 30, vcpus)
    assert Trace.load(t.save(path)) == t


def test_a_real_trace_survives_its_file(tmp_path):
    t = recorded("forkexec.0")
    again = Trace.load(t.save(tmp_path / "x.parquet"))
    assert again == t
    assert again.provenance == t.provenance
    assert again.mms == t.mms
    pd.testing.assert_frame_equal(again.to_frame(), t.to_frame())


def test_the_file_is_readable_without_pvmmu(tmp_path):
    t = recorded("fork.1")
    frame = pd.read_parquet(t.save(tmp_path / "x.parquet"))
    assert set(frame["evidence"]) <= {e.name for e in Evidence}
    assert frame["op"].iloc[0] == "MARK"
    assert frame["caller"].eq("copy_page_range").any()


def test_foreign_files_are_refused(tmp_path):
    text, foreign = tmp_path / "a.parquet", tmp_path / "b.parquet"
    text.write_text("not parquet")
    pd.DataFrame({"x": [1]}).to_parquet(foreign)
    for path, message in (
        (text, "not a Parquet file"),
        (foreign, "no provenance"),
        (tmp_path / "none.parquet", "no such file"),
    ):
        with pytest.raises(TraceError, match=message) as e:
            Trace.load(path)
        assert str(path) in str(e.value)


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    import pvmmu.guest.provenance as p

    path = build(STORE).save(tmp_path / "x.parquet")
    monkeypatch.setattr(p, "FORMAT_VERSION", 99)
    with pytest.raises(TraceError, match="trace format 1, this pvmmu reads 99"):
        Trace.load(path)


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    import pvmmu.guest.trace as ops

    def full(*args, **kw):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ops.pq, "write_table", full)
    with pytest.raises(TraceError, match="No space left on device"):
        build(STORE).save(tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []


def test_an_old_file_outlives_a_failed_write(tmp_path, monkeypatch):
    import pvmmu.guest.trace as ops

    path = build(STORE).save(tmp_path / "x.parquet")
    before = path.read_bytes()
    monkeypatch.setattr(ops.pq, "write_table", lambda *a, **k: (_ for _ in ()).throw(OSError("x")))
    with pytest.raises(TraceError):
        build(STORE, STORE).save(path)
    assert path.read_bytes() == before


def test_phases_and_selections():
    t = recorded("fork.16")
    labels = [label for label, _ in t.phases()]
    assert labels == ["P0", "P1", "P2"]
    parts = [t.select(rows) for _, rows in t.phases()]
    assert sum(map(len, parts)) == len(t)
