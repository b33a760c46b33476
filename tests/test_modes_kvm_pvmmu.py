"""KVM's pv mmu against its slow twin, and what its queue costs."""

from __future__ import annotations

import pytest
from conftest import recorded
from guests import random_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_told import NaiveKvm
from test_modes_told import built, guest, pte, seasoned, some_hooks

from pvmmu.errors import ModeError
from pvmmu.guest.ops import Flag, Op, Trace
from pvmmu.hooks import HookSet
from pvmmu.modes import KvmPvmmu, get_mode
from pvmmu.modes.events import Event
from pvmmu.replay import replay
from pvmmu.streams import stream

_NOT_COUNTED = {Event.QUEUED, Event.TLB_FLUSH}


def check(trace: Trace, hooks: HookSet, **kw) -> None:
    got = KvmPvmmu(**kw).run(trace, hooks)
    ours = {e: int(got.low[e]) for e in Event if got.low[e] and e not in _NOT_COUNTED}
    assert ours == {e: n for e, n in NaiveKvm(trace, hooks, **kw).run().items() if n}


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6), hooks=st.integers(0, 10**6), touches=st.booleans(),
    vcpus=st.sampled_from((1, 1, 2)), shadow=st.sampled_from(("2.6.27", "2.6.28")),
    queue=st.sampled_from((24, 64, 1024)), buffer=st.sampled_from((24, 40, 512)),
)  # fmt: skip
def test_equals_its_twin(seed, hooks, touches, vcpus, shadow, queue, buffer):
    trace = seasoned(random_trace(seed, 60, vcpus), seed, touches)
    check(trace, some_hooks(hooks), shadow=shadow, queue=queue, buffer=buffer)


@pytest.mark.parametrize("name", ["fork.16", "forkexec.0", "shloop", "mprotect.33", "smpmmap.16"])
@pytest.mark.parametrize("hooks", ["kvm-pvmmu", "none", "linux-6.1"])
@pytest.mark.parametrize("shadow", ["2.6.27", "2.6.28"])
def test_equals_its_twin_on_real_streams(name, hooks, shadow):
    check(recorded(name), HookSet.parse(hooks), shadow=shadow)


def test_equals_its_twin_with_touches():
    for name in ("fork.16@2.6.27", "compile.1@2.6.27"):
        check(stream(name), HookSet.parse("kvm-pvmmu"))


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


def test_a_release_does_not_wait_and_takes_nothing_along():
    b, mm = guest()
    b.add(Op.LAZY_ENTER)
    pte(b, mm, 1)
    b.add(Op.RELEASE_PTE, mm=mm, table=9)
    b.add(Op.LAZY_LEAVE)
    counts = replay(built(b), "kvm-pvmmu", "kvm-pvmmu")
    assert (counts["mmu_op"], counts["mmu_op_records"]) == (2, 2)


def test_three_writes_in_a_row_drop_the_shadow():
    b, mm = guest()
    b.add(Op.FAULT, mm=mm, va=0, value=6)
    for i in range(6):
        pte(b, mm, i, flags=int(Flag.CURRENT))
    counts = replay(built(b), "none", "kvm-pvmmu")
    # the first write precedes the shadow, which the access then makes; three are emulated
    assert (counts["pte_emulation"], counts["store"], counts["hidden_fault"]) == (3, 3, 1)


def test_out_of_sync_tables_spare_an_unmodified_guest_more():
    """What became of KVM's pv mmu in 2009."""
    trace = stream("cmd_shloop.4@2.6.27")
    gains = []
    for shadow in ("2.6.27", "2.6.28"):
        mode = f"kvm-pvmmu:shadow={shadow}"
        hooked, plain = (replay(trace, h, mode).entries for h in ("kvm-pvmmu", "none"))
        gains.append(plain - hooked)
    assert gains[0] > gains[1]


@pytest.mark.parametrize(
    "spec", ["kvm-pvmmu:queue=23", "kvm-pvmmu:buffer=99999", "kvm-pvmmu:shadow=2.6.29"]
)
def test_wrong_parameters(spec):
    with pytest.raises(ModeError, match="kvm-pvmmu mode"):
        get_mode(spec)
