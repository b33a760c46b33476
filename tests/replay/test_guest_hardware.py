"""Modelled kernels on modelled processors: nobody uses a translation that should be gone."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import recorded

from pvmmu.errors import GuestError, TraceError
from pvmmu.guest.trace import Op, Platform
from pvmmu.guest.workloads import WORKLOADS, run_workload
from pvmmu.replay.hardware import FLUSHES, on_hardware
from pvmmu.x86.mmu_events import Count

KERNELS = [
    ("2.6.22", Platform(levels=2)), ("2.6.22", Platform(levels=3)), ("2.6.27", Platform(vcpus=2)),
    ("6.1", Platform()), ("6.12", Platform(vcpus=2)), ("6.18", Platform(levels=5)),
]  # fmt: skip


def touched(name, kernel="6.1", platform=None, n=24):
    return run_workload(name, n, kernel, platform, touches=True, whole=True, warm=1)


@pytest.mark.parametrize("name", [n for n, w in WORKLOADS.items() if w.suite != "mix"])
def test_no_workload_uses_a_harmful_translation(name):
    """And just those accesses fault that the model says."""
    for kernel, platform in KERNELS:
        try:
            trace = touched(name, kernel, platform)
        except GuestError:
            assert kernel.startswith("2.6") and name in ("cold", "softdirty")
            continue
        mmu = on_hardware(trace)
        assert mmu.harmful == 0, (kernel, mmu.harmful_uses())
        touches, faults = (int((trace["op"] == op).sum()) for op in (Op.TOUCH, Op.FAULT))
        assert mmu.counts()[Count.FAULTS] == faults
        assert mmu.counts()[Count.ACCESSES] == touches + faults


#: Workloads that use again what a flush has to remove, and the operation that then goes wrong.
CAUGHT = ["fork", "cow", "forkexec", "mmap", "mmaprd", "sparse", "dontneed", "filecow", "smpmmap",
          "mprotect_touch", "madv_dontneed_touch", "cow_child"]  # fmt: skip


@pytest.mark.parametrize("name", CAUGHT)
@pytest.mark.parametrize("kernel", ["2.6.27", "6.1", "6.18"])
def test_a_flush_that_is_forgotten_is_found_out(name, kernel):
    trace = touched(name, kernel)
    without = np.isin(trace["op"], list(FLUSHES))
    assert on_hardware(trace, without=without).harmful > 0


def test_the_flush_at_the_end_of_a_fork_is_needed():
    """Left out, the parent writes through rights that it no longer has (dup_mmap)."""
    trace = touched("fork")
    by = trace["caller"] == trace.callers.index("dup_mmap")
    full = np.flatnonzero((trace["op"] == Op.FLUSH_USER) & by)
    assert len(full)
    for row in full:
        without = np.zeros(len(trace), bool)
        without[row] = True
        assert on_hardware(trace, without=without).harmful > 0


def test_ageing_without_a_flush_is_benign():
    counts = on_hardware(touched("clearrefs")).counts()
    assert counts[Count.STALE_AGED] > 0


@pytest.mark.parametrize(
    ("trace", "words"),
    [(lambda: recorded("fork.16"), "modelled from its start"),
     (lambda: run_workload("fork", 4), "modelled from its start"),
     (lambda: touched("fork", platform=Platform(pcid=True)), "PCIDs")],
)  # fmt: skip
def test_what_cannot_run_is_one_clear_error(trace, words):
    with pytest.raises(TraceError, match=words):
        on_hardware(trace())
