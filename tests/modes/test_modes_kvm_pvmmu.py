"""KVM's pv mmu against its slow twin, and what its queue costs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import examples, recorded
from guests_shadow import random_shadow_trace
from hypothesis import given, strategies as st
from naive_kvm import NaiveKvm
from test_modes_lguest_vmi import built, guest, pte

from pvmmu.errors import ModeError
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.trace import COLUMNS, Op, Trace
from pvmmu.hooks import HookSet
from pvmmu.modes import KvmPvmmu, get_mode
from pvmmu.modes.all_sets.counting import count_one_by_one
from pvmmu.modes.all_sets.engines import engine
from pvmmu.modes.events import Event
from pvmmu.modes.partition import Space
from pvmmu.modes.rules import hooks_read
from pvmmu.modes.shadow.kvm_pvmmu import SHADOWS, TOLD
from pvmmu.modes.shadow.touches import with_touches
from pvmmu.replay import explain, replay

#: Hooks that the mode reads.
HOOKS = hooks_read(TOLD).names

_NOT_COUNTED = {Event.QUEUED, Event.SHADOW_PREFETCHED}


def check(trace: Trace, hooks: HookSet, **kw) -> None:
    got = KvmPvmmu(**kw).run(trace, hooks)
    ours = {e: int(got.low[e]) for e in Event if got.low[e] and e not in _NOT_COUNTED}
    assert ours == dict(NaiveKvm(with_touches(trace)[0], hooks, **kw).run())


_NEXT = {
    None: (Op.LAZY_ENTER,),
    Op.LAZY_ENTER: (Op.LAZY_LEAVE, Op.LAZY_PAUSE),
    Op.LAZY_PAUSE: (Op.LAZY_RESUME,),
    Op.LAZY_RESUME: (Op.LAZY_LEAVE, Op.LAZY_PAUSE),
    Op.LAZY_LEAVE: (Op.LAZY_ENTER,),
}


def with_brackets(trace: Trace, seed: int) -> Trace:
    """Put brackets in at random places, each closed, some paused."""
    r = random.Random(seed)
    order, ops, last = [], [], None
    for row in range(len(trace)):
        while r.random() < 0.2:
            last = r.choice(_NEXT[last])
            order.append(row)
            ops.append(last)
        order.append(row)
        ops.append(Op(trace["op"][row]))
    while last not in (None, Op.LAZY_LEAVE):
        last = _NEXT[last][0]
        order.append(len(trace) - 1)
        ops.append(last)
    columns = {name: trace[name][order] for name in COLUMNS}
    columns["op"][:] = ops
    return Trace(columns, trace.mms, trace.callers, trace.provenance)


@pytest.mark.parametrize("shadow", SHADOWS)
@examples(60)
@given(
    seed=st.integers(0, 10**6), hooked=st.integers(0, 10**6), brackets=st.booleans(),
    queue=st.sampled_from((24, 64, 1024)), buffer=st.sampled_from((24, 40, 512)),
)  # fmt: skip
def test_equals_its_twin(shadow, seed, hooked, brackets, queue, buffer):
    r = random.Random(hooked)
    hooks = HookSet.of(*r.sample(HOOKS, r.choice((0, 1, 3, 6, len(HOOKS)))))
    trace = random_shadow_trace(seed, 80)
    if brackets:
        trace = with_brackets(trace, seed)
    check(trace, hooks, shadow=shadow, queue=queue, buffer=buffer)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ["fork.16", "forkexec.0", "mprotect.33", "filecow.16"])
@pytest.mark.parametrize("shadow", SHADOWS)
def test_equals_its_twin_on_real_streams(name, shadow):
    for hooks in ("kvm-pvmmu", "linux-6.1"):
        check(recorded(name), HookSet.parse(hooks), shadow=shadow)


@pytest.mark.compiled
def test_equals_its_twin_on_modelled_streams():
    check(load_trace("fork.16@2.6.27"), HookSet.parse("kvm-pvmmu"))


@pytest.mark.compiled
@pytest.mark.parametrize("shadow", SHADOWS)
@pytest.mark.parametrize("name", ["fork.16", "mprotect.33", "smpmmap.16"])
def test_without_hooks_it_is_shadow_mode(name, shadow):
    mine, plain = (
        replay(recorded(name), "none", mode)
        for mode in (f"kvm-pvmmu:shadow={shadow}", f"shadow:code=kvm-{shadow}")
    )
    assert (mine.low == plain.low).all() and mine.entries > 0


def test_a_full_queue_is_two_hypercalls():
    """42 records of 24 bytes fit in the guest's 1,024, 21 of them in the host's 512."""
    b, mm = guest()
    b.add(Op.LAZY_ENTER)
    for i in range(42):
        pte(b, mm, i)
    b.add(Op.LAZY_LEAVE)
    trace = built(b)
    counts = replay(trace, "kvm-pvmmu", "kvm-pvmmu")
    assert (counts["mmu_op"], counts["mmu_op_records"]) == (2, 42)
    assert replay(trace, "kvm-pvmmu", "kvm-pvmmu:buffer=1024")["mmu_op"] == 1
    assert replay(trace, "kvm-pvmmu -lazy_mmu", "kvm-pvmmu")["mmu_op"] == 42


def test_each_processor_has_a_queue():
    b, mm = guest()
    for cpu in (0, 1):
        b.add(Op.LAZY_ENTER, cpu=cpu)
    for i in range(6):
        pte(b, mm, i, cpu=i % 2)
    for cpu in (0, 1):
        b.add(Op.LAZY_LEAVE, cpu=cpu)
    trace = built(b, vcpus=2)
    rows = explain(trace, "kvm-pvmmu", "kvm-pvmmu")
    ends = rows[rows["op"] == "LAZY_LEAVE"]
    assert list(ends["mmu_op"]) == [1, 1] and list(ends["mmu_op_records"]) == [3, 3]
    log = KvmPvmmu().run(trace, HookSet.parse("kvm-pvmmu"), log=True).log
    assert (trace["cpu"][log[:, 0]] == log[:, 3]).all() and set(log[:, 3]) == {0, 1}


def test_an_empty_bracket_is_nothing():
    b, mm = guest()
    b.add(Op.LAZY_ENTER)
    b.add(Op.LAZY_LEAVE)
    assert len(KvmPvmmu().run(built(b), HookSet.parse("kvm-pvmmu"), log=True).log) == 0
    pte(b, mm, 1)
    log = KvmPvmmu().run(built(b), HookSet.parse("kvm-pvmmu"), log=True).log
    assert set(log[:, 0]) == {2} and (log[:, 2] > 0).all()


def test_the_smallest_records_fill_the_queue():
    b, mm = guest()
    b.add(Op.LAZY_ENTER)
    for _ in range(3):
        b.add(Op.FLUSH_USER, mm=mm)
    b.add(Op.LAZY_LEAVE)
    counts = replay(built(b), "kvm-pvmmu", "kvm-pvmmu:queue=24")
    assert (counts["mmu_op"], counts["mmu_op_records"]) == (1, 3)


def test_few_classes_at_once_are_those_one_by_one():
    trace, mode = random_shadow_trace(4, 80), get_mode("kvm-pvmmu")
    assert {Op.SET_PTE, Op.RELEASE_PTE} <= {Op(o) for o in trace["op"]}
    partition = mode.classes(trace, Space(HookSet.of("set_pte", "release_pte", "set_pmd")))
    at_once = engine(mode)(trace, partition.branches[0])
    one_by_one = count_one_by_one(trace, mode, list(partition.feasible(0)))
    assert len(one_by_one.low) == 8
    np.testing.assert_array_equal(at_once[0], one_by_one.low)


def test_names_of_designs():
    assert KvmPvmmu().spec == "kvm-pvmmu"
    for mode in (KvmPvmmu(), KvmPvmmu(queue=64), KvmPvmmu(shadow="6.1", buffer=40)):
        assert get_mode(mode.spec) == mode


def test_a_release_does_not_wait_and_takes_nothing_along():
    b, mm = guest()
    b.add(Op.LAZY_ENTER)
    pte(b, mm, 1)
    b.add(Op.RELEASE_PTE, mm=mm, table=9)
    b.add(Op.LAZY_LEAVE)
    rows = explain(built(b), "kvm-pvmmu", "kvm-pvmmu").set_index("op")["mmu_op"]
    assert rows["RELEASE_PTE"] == rows["LAZY_LEAVE"] == 1 and rows.sum() == 2


@pytest.mark.compiled
def test_the_advantage_shrinks_from_generation_to_generation():
    """Why KVM first offered its pv mmu, and then no more: cycles spared on demand faults."""
    trace = load_trace("compile.1@2.6.27")
    gains = []
    for shadow in ("2.6.23", "2.6.28", "6.1"):
        hooked, plain = (
            replay(trace, h, f"kvm-pvmmu:shadow={shadow}").cycles("nehalem-2009-vtx")
            for h in ("kvm-pvmmu", "none")
        )
        gains.append(1 - hooked / plain)
    assert gains[0] > gains[1] > 0 > gains[2]


@pytest.mark.parametrize(
    "spec", ["kvm-pvmmu:queue=23", "kvm-pvmmu:buffer=32769", "kvm-pvmmu:shadow=2.6.29"]
)
def test_wrong_parameters(spec):
    with pytest.raises(ModeError, match="kvm-pvmmu mode"):
        get_mode(spec)
