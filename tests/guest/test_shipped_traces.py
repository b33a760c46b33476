"""The model guest against the real kernel: operations of recordings, counts in tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, recorded, recording_paths, short_name

from pvmmu.errors import MeasurementError
from pvmmu.evidence.truth import compare_measurements
from pvmmu.guest.trace import Evidence, Op
from pvmmu.guest.workloads import WORKLOADS, XEN_PV, run_workload

TABLES = ROOT / "tests" / "data" / "xen_pv"
NAMES = [
    n for n in map(short_name, recording_paths())
    if WORKLOADS.get(n.split(".")[0]) and WORKLOADS[n.split(".")[0]].suite == "wl"
]  # fmt: skip
#: What a real scheduler adds: switches to kernel threads and back.
SCHEDULING = {Op.SWITCH_START, Op.SWITCH_END, Op.LAZY_PAUSE, Op.LAZY_RESUME, Op.LOAD_CR3}
#: What leaves no record: entry and exit of system calls, zeroing.
UNRECORDED = {Op.KERNEL_ENTRY, Op.KERNEL_EXIT, Op.ZERO_TABLE}
#: In 2-vCPU forks the other CPU had sometimes left the address space when the parent flushed: the
#: recordings of one workload have from 1 to 6 such calls.
NOISY = {"smpfork": {Op.FLUSH_OTHERS, Op.SEND_IPI, Op.FLUSH_ONE, Op.FLUSH_USER}}
ENTRY_OPS = {Op.SET_PTE, Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.SET_PMD, Op.SET_PUD,
             Op.SET_P4D, Op.ALLOC_PTE, Op.ALLOC_PMD, Op.ALLOC_PUD, Op.RELEASE_PTE, Op.RELEASE_PMD,
             Op.RELEASE_PUD, Op.MODIFY_PROT_START, Op.MODIFY_PROT_COMMIT}  # fmt: skip


def modelled(name):
    workload, size = name.removesuffix("-6.12").split(".")
    kernel = "6.12" if name.endswith("-6.12") else "6.1"
    return run_workload(workload, int(size), kernel, XEN_PV)


def counts(trace, name):
    noisy = NOISY.get(name.split(".")[0], set())
    c = Counter(Op(o) for o in trace["op"])
    return {o: n for o, n in c.items() if o not in SCHEDULING | UNRECORDED | noisy}


@pytest.mark.parametrize("name", NAMES)
def test_the_model_makes_the_operations_of_the_real_kernel(name):
    """Equal in number, operation by operation.

    Only brackets may be more: the kernel leaves one whenever it must reschedule (need_resched in
    zap_pte_range and copy_pte_range).
    """
    ours, real = counts(modelled(name), name), counts(recorded(name), name)
    for op in (Op.LAZY_ENTER, Op.LAZY_LEAVE):
        more = real.pop(op, 0) - ours.pop(op, 0)
        assert 0 <= more <= 2 + sum(real.values()) // 1000
    assert ours == real


@pytest.mark.parametrize("name", NAMES)
def test_and_on_the_same_addresses(name):
    """Each entry that the recording can place is changed as often, and by the same operation."""
    ours, real = modelled(name), recorded(name)
    known = (real["place"] != Evidence.UNKNOWN) & (real["va"] != 0)
    ours_at, real_at = Counter(places(ours)), Counter(places(real, known))
    if not real_at:
        pytest.skip("all tables are older than the recording: no address is known")
    assert not real_at - ours_at


def places(trace, rows=None):
    which = np.isin(trace["op"], list(ENTRY_OPS))
    which = which & rows if rows is not None else which
    return zip(trace["op"][which].tolist(), trace["va"][which].tolist(), strict=True)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if "fork" not in n and "cow" not in n.split(".")[0]]
)
def test_and_in_the_same_order(name):
    """Of one address space; with two, who runs first is the scheduler's choice."""
    ours, real = (order(t) for t in (modelled(name), recorded(name)))
    assert ours == real


def order(trace):
    return [Op(o).name for o in trace["op"].tolist() if o in ENTRY_OPS or o == Op.FAULT]


def test_kernel_counts_agree():
    """Natively and under Xen; all sizes up to 256 pages."""
    table = pd.read_csv(TABLES / "counts.csv.xz", dtype=str, keep_default_na=False)
    small = table[table["n_pages"].astype(int) <= 256]
    result = _compare(small)
    assert len(result) > 800
    assert result[result["verdict"] != "ok"].empty
    exact = result["difference"].astype(float) == 0
    assert exact.mean() > 0.9


def test_hypervisor_counts_agree():
    table = pd.read_csv(TABLES / "summary.csv", dtype=str, keep_default_na=False)
    small = table[table["n_pages"].astype(int) <= 64]
    result = _compare(small)
    assert len(result) > 1500
    assert result[result["verdict"] != "ok"].empty


def _compare(table):
    import tempfile

    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / "t.csv"
        table.to_csv(path, index=False)
        return compare_measurements(path)


def test_a_wrong_model_is_noticed(monkeypatch):
    """Without the fault-around of its kernel the model differs."""
    from pvmmu.guest.linux.profile import Profile

    right = Profile.pack

    def wrong(self, callers):
        numbers, steps = right(self, callers)
        numbers[2] = 1
        return numbers, steps

    monkeypatch.setattr(Profile, "pack", wrong)
    assert counts(modelled("filerd.16"), "filerd.16") != counts(recorded("filerd.16"), "filerd.16")


WRONG = {
    "a,b\n1,2\n": "no known table",
    "a,b\n1,2,3\n": ":2: more than the 2 fields",
    "a,b\n1,2\n1,2,3\n": "Expected 2 fields in line 3",
    "": "No columns",
    "kernel,vcpus,workload,n_pages,phase,page_faults_to_guest": "no known table",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_foreign_table_is_one_clear_error(text, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(MeasurementError) as e:
        compare_measurements(path)
    assert str(path) in str(e.value) and WRONG[text] in str(e.value)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [("n_pages", "many", "n_pages='many'"), ("kernel", "3.0", "no profile"),
     ("mmu_update", "1..x", "mmu_update='1..x'")],
)  # fmt: skip
def test_a_wrong_field_is_named(column, value, words, tmp_path):
    table = pd.read_csv(TABLES / "summary.csv", dtype=str, keep_default_na=False)
    table.loc[5, column] = value
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    with pytest.raises(MeasurementError) as e:
        compare_measurements(path)
    assert f"{path}:7: " in str(e.value) and words in str(e.value)
