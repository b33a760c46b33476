"""The TLB in the account: no feasible design is harmful, and a bad one is found out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pvmmu.account import design_on_hardware, tlb_account, when
from pvmmu.guest.hardware import FLUSHES, on_hardware
from pvmmu.guest.workloads import WORKLOADS, XEN_PV, run_workload
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.base import Infeasible

DESIGNS = [
    ("linux-6.1", "native"), ("linux-6.1", "direct"), ("linux-6.1 -lazy_mmu", "direct"),
    ("linux-6.1 +ptep_get_and_clear +ptep_set_wrprotect", "direct"),
    ("linux-6.1 -flush_tlb_multi", "direct"), ("linux-6.1 -flush_tlb_one_user", "direct"),
    ("linux-2.6.27", "direct:backend=2.6.27"), ("linux-6.1", "direct:stores=batched"),
    ("vmi", "vmi"),
]  # fmt: skip


def touched(name, n=24):
    platform = dataclasses.replace(XEN_PV, vcpus=WORKLOADS[name].vcpus)
    return run_workload(name, n, "6.1", platform, touches=True, whole=True, warm=1)


@pytest.mark.parametrize("name", [n for n, w in WORKLOADS.items() if w.suite == "wl"])
def test_no_feasible_design_is_harmful(name):
    table = tlb_account(touched(name), DESIGNS)
    runs = table[table["status"] == "ok"]
    assert len(runs) >= 7
    assert (runs["harmful"] == 0).all(), runs
    assert (runs["accesses"] == runs["accesses"].iloc[0]).all()


@pytest.mark.parametrize("name", ["mmap", "mprotect_touch", "dontneed"])
def test_a_flush_that_waits_too_long_is_found_out(name):
    """As if a bracket went on over the end of the system call that promised the flush."""
    trace = touched(name)
    order = when(trace, get_mode("direct").run(trace, HookSet.parse("linux-6.1"), log=True))
    assert on_hardware(trace, **order).harmful == 0
    flush = np.isin(trace["op"], list(FLUSHES))
    late = np.where(flush, len(trace), order["effect"])
    assert on_hardware(trace, **{**order, "effect": late}).harmful > 0


def test_pinning_a_forks_tables_flushes_what_the_fork_must_flush():
    """So that under Xen, unlike natively, dup_mmap's own flush could be spared."""
    trace = touched("fork")
    order = when(trace, get_mode("direct").run(trace, HookSet.parse("linux-6.1"), log=True))
    left_out = {**order, "without": np.isin(trace["op"], list(FLUSHES))}
    assert on_hardware(trace, **left_out).harmful == 0
    assert on_hardware(trace, **{**left_out, "flushed": order["flushed"][:0]}).harmful > 0


def test_more_flushes_cost_more_walks():
    trace = touched("cow")
    table = tlb_account(trace, [("linux-6.1", "direct"), ("linux-6.1", "direct:stores=batched")])
    emulated, batched = table["walks"]
    assert batched > emulated, "each writable page in use costs a flush of the whole TLB"


def test_an_infeasible_design_says_why():
    trace = touched("fork")
    assert isinstance(design_on_hardware(trace, "none", "direct"), Infeasible)
    table = tlb_account(trace, [("none", "direct")])
    assert table["status"].iloc[0].startswith("infeasible: ")
