"""The modes against their slow twins, on random guests and random hook sets."""

from __future__ import annotations

import random

import naive
import numpy as np
import pytest
from conftest import examples, recorded
from guests import random_trace
from hypothesis import given, strategies as st

from pvmmu.evidence.xentrace_counts import SEQUENCE
from pvmmu.guest.load_trace import load_trace
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes import Direct, Vmi
from pvmmu.modes.direct import BACKENDS
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Infeasible

ALL = list(catalogue())
#: Events that the twin does not count: work of the hypervisor, and remarks.
_NOT_COUNTED = {
    Event.TLB_FLUSH, Event.TLB_FLUSH_ONE, Event.ENTRIES_VALIDATED, Event.ENTRIES_DROPPED,
    Event.TABLES_PINNED, Event.TABLES_UNPINNED, Event.QUEUED, Event.REORDERED_WRITE,
}  # fmt: skip


def some_hooks(seed: int) -> HookSet:
    """Many hooks, so that a good part of the designs can run."""
    r = random.Random(seed)
    missing = r.sample(ALL, r.choice((0, 1, 2, 4, 8, 16)))
    return HookSet.of(*(n for n in ALL if n not in missing or n == "pte_val"))


def check_direct(trace, hooks, **kw):
    try:
        twin = naive.NaiveXen(trace, hooks, **kw)
        want = twin.run()
    except naive.CannotRun:
        want = None
    got = Direct(**kw).run(trace, hooks, log=True)
    if want is None:
        assert isinstance(got, Infeasible), "the twin cannot run this design"
        return False
    assert not isinstance(got, Infeasible), got
    counts = {e: int(got.low[e]) for e in Event if got.low[e] and e not in _NOT_COUNTED}
    assert counts == {e: n for e, n in want.items() if n}
    np.testing.assert_array_equal(Direct(**kw).run(trace, hooks).low, got.low)  # the quick way
    ours = [(cpu, Event(e), n) for _, e, n, cpu in got.log.tolist() if Event(e) in SEQUENCE]
    assert ours == twin.calls
    return True


@examples(250)
@given(
    seed=st.integers(0, 10**6), hooks=st.integers(0, 10**6), vcpus=st.sampled_from((1, 1, 2)),
    backend=st.sampled_from(tuple(BACKENDS)), without=st.sampled_from(("birth", "cr3")),
    stores=st.sampled_from(("emulate", "batched", "refuse")),
)  # fmt: skip
def test_direct_equals_its_twin(seed, hooks, vcpus, backend, without, stores):
    trace = random_trace(seed, 40, vcpus)
    check_direct(trace, some_hooks(hooks), backend=backend, without=without, stores=stores)


@pytest.mark.compiled
@pytest.mark.parametrize("backend", BACKENDS)
def test_enough_random_designs_can_run(backend):
    """Else the property test above compares nothing but failures."""
    ran = sum(check_direct(random_trace(s), some_hooks(s), backend=backend) for s in range(60))
    assert ran > 25


@pytest.mark.parametrize(
    "name",
    ["fork.16", "forkexec.0", "mprotect.33", "smpmmap.16",
     pytest.param("shloop", marks=pytest.mark.compiled)],
)  # fmt: skip
@pytest.mark.parametrize("stores", ["emulate", "batched"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_direct_equals_its_twin_on_real_streams(name, backend, stores):
    trace = recorded(name)
    hooks = some_hooks(len(backend + stores) * 7 + len(name))
    check_direct(trace, hooks | HookSet.of("pte_val"), backend=backend, stores=stores)


@pytest.mark.compiled
@pytest.mark.parametrize("stores", ["emulate", "batched"])
@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "name", ["cmd_shloop.1@2.6.12", "cow.16@2.6.18/2", "cow.16@2.6.18/3", "mprotect.16@2.6.22/3"]
)
def test_direct_equals_its_twin_on_streams_of_the_time(name, backend, late, stores):
    """With the kernels, and the formats, that the old backends were made for."""
    hooks = HookSet.parse("xenlinux-2007" if backend == "2007" else "xen-2.6.23")
    hooks = hooks if late else hooks - HookSet.of("activate_mm", "dup_mmap", "exit_mmap")
    assert check_direct(load_trace(name), hooks, backend=backend, stores=stores)


@examples(150)
@given(
    seed=st.integers(0, 10**6), hooks=st.integers(0, 10**6), capacity=st.sampled_from((1, 3, 512)),
    vcpus=st.sampled_from((1, 2)),
)  # fmt: skip
def test_vmi_equals_its_twin(seed, hooks, capacity, vcpus):
    trace, chosen = random_trace(seed, 40, vcpus), some_hooks(hooks)
    got = Vmi(queue=capacity).run(trace, chosen)
    try:
        want = naive.vmi_calls(trace, chosen, capacity)
    except naive.CannotRun:
        assert isinstance(got, Infeasible)
        return
    assert not isinstance(got, Infeasible), got
    assert (int(got.low[Event.VMI_CALL]), int(got.low[Event.VMI_UPDATES])) == want


@pytest.mark.parametrize("name", ["fork.64", pytest.param("shloop", marks=pytest.mark.compiled)])
def test_vmi_equals_its_twin_on_real_streams(name):
    trace, hooks = recorded(name), HookSet.parse("vmi")
    got = Vmi().run(trace, hooks)
    want = naive.vmi_calls(trace, hooks, 512)
    assert (int(got.low[Event.VMI_CALL]), int(got.low[Event.VMI_UPDATES])) == want


def test_bounds_enclose_what_is_unknown():
    """A table whose contents nobody knows: between none and a table full of clears."""
    from pvmmu.guest.trace import Evidence, Op, Provenance, TraceBuilder

    b = TraceBuilder()
    mm = b.mm("older", older=True)
    b.add(Op.PTE_GET_AND_CLEAR, mm=mm, table=7, count=512, evidence=Evidence.UNKNOWN)
    trace = b.build(Provenance("unknown", "6.1.0"))
    got = Direct().run(trace, HookSet.parse("linux-6.1"))
    assert (got.low[Event.PTE_EMULATION], got.high[Event.PTE_EMULATION]) == (0, 512)
    others = [e for e in Event if e != Event.PTE_EMULATION]
    assert not np.any(got.high[others])
