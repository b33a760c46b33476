"""All classes of hook sets counted at once, under shadows: against a replay for each."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import LITTLE, examples, recorded
from guests_shadow import random_shadow_trace
from hypothesis import given, strategies as st
from test_modes_kvm_pvmmu import with_brackets

from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.trace import COLUMNS, Op, Platform, Provenance, Trace, TraceBuilder
from pvmmu.guest.workloads import run_workload
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.all_sets import shadow as counting
from pvmmu.modes.all_sets.counting import count_classes, count_one_by_one
from pvmmu.modes.all_sets.engines import engine
from pvmmu.modes.all_sets.shadow_brackets import brackets
from pvmmu.modes.partition import Space
from pvmmu.modes.rules import hooks_read
from pvmmu.modes.shadow.mechanisms import RULES
from pvmmu.modes.shadow.prepare import _SHIFTS
from pvmmu.modes.shadow.touches import with_touches
from pvmmu.x86.formats import FIVE_LEVEL, FOUR_LEVEL, PAE, TWO_LEVEL

#: Hooks that the mode reads.
HOOKS = hooks_read(RULES).names

MODES = (
    "shadow:code=kvm-2.6.20", "shadow:code=kvm-2.6.28", "shadow", "shadow:code=xen-2006",
    "shadow:code=xen-4.17", "kvm-pvmmu", "kvm-pvmmu:shadow=2.6.28", "kvm-pvmmu:shadow=6.1",
)  # fmt: skip


def hostile(trace: Trace, seed: int) -> Trace:
    """Brackets around stores alone, so that nothing in them makes the fast way give up."""
    r = random.Random(seed)
    order, ops, opened = [], [], False
    for row in range(len(trace)):
        op = Op(trace["op"][row])
        store = op.name.startswith(("SET_P", "PTE_", "MODIFY"))
        if opened and (not store or r.random() < 0.2):
            order.append(row)
            ops.append(Op.LAZY_LEAVE)
            opened = False
        if store and not opened and r.random() < 0.5:
            order.append(row)
            ops.append(Op.LAZY_ENTER)
            opened = True
        order.append(row)
        ops.append(op)
    columns = {name: trace[name][order] for name in COLUMNS}
    columns["op"][:] = ops
    return Trace(columns, trace.mms, trace.callers, trace.provenance)


def differences(trace, mode, space, every=1):
    """Return classes whose counts differ from a replay's, and whether the fast way was taken."""
    partition = mode.classes(trace, space)
    at_once = count_classes(trace, mode, partition, 0)
    classes = list(partition.feasible(0))
    some = list(range(0, len(classes), every))
    one_by_one = count_one_by_one(trace, mode, [classes[i] for i in some])
    bad = (at_once.low[some] != one_by_one.low).any(axis=1)
    return [classes[some[i]].hooks.names for i in np.flatnonzero(bad)]


@pytest.mark.parametrize("spec", MODES)
@examples(25)
@given(seed=st.integers(0, 10**6))
def test_all_at_once_on_random_guests(spec, seed):
    """Every class of a random space of nine hooks (five, where little must do)."""
    r, mode = random.Random(seed), get_mode(spec)
    trace = hostile(random_shadow_trace(seed, 80), seed)
    some = r.sample(HOOKS, 1 if LITTLE else 5)
    free = HookSet.of(*some, "lazy_mmu", "set_pmd", "set_pte", "release_pte")
    space = Space(free, HookSet.of(*(h for h in HOOKS if r.random() < 0.3)) - free)
    assert engine(mode)(trace, mode.classes(trace, space).branches[0]) is not None
    assert differences(trace, mode, space) == []


@pytest.mark.compiled
@pytest.mark.parametrize("spec", MODES)
@pytest.mark.parametrize("name", ["fork.1", "mprotect.33", "forkexec.0", "filecow.16"])
def test_all_at_once_on_recordings(spec, name):
    trace, mode = recorded(name), get_mode(spec)
    n = mode.classes(trace, Space.all()).n
    assert differences(trace, mode, Space.all(), max(1, n // 60)) == []


@pytest.mark.compiled
def test_two_processors_and_touches():
    for trace in (recorded("smpmmap.16"), load_trace("fork.16@2.6.27")):
        assert differences(trace, get_mode("shadow"), Space.all(), 499) == []


@pytest.mark.compiled
def test_one_replay_speaks_for_many(monkeypatch):
    """A bracket and stores to upper tables, which always trap, need no replay of their own."""
    calls = []
    original = counting._one_replay
    monkeypatch.setattr(counting, "_one_replay", lambda *args: calls.append(1) or original(*args))
    trace, mode = recorded("fork.16"), get_mode("shadow")
    space = Space(HookSet.of("set_pte", "set_pmd", "set_pud", "set_p4d", "lazy_mmu"))
    low, _ = engine(mode)(trace, mode.classes(trace, space).branches[0])
    assert len(low) == 32 >= 4 * len(calls)
    assert len(np.unique(low, axis=0)) > 16


@pytest.mark.parametrize("spec", ["shadow", "kvm-pvmmu"])
def test_where_a_call_may_meet_what_waits_each_class_is_replayed(spec):
    trace, mode = with_brackets(random_shadow_trace(3, 80), 3), get_mode(spec)
    space = Space(HookSet.of("set_pte", "release_pte", "lazy_mmu", "flush_tlb_user"))
    assert engine(mode)(trace, mode.classes(trace, space).branches[0]) is None
    assert differences(trace, mode, space) == []


def test_with_isolation_and_tags_each_class_is_replayed():
    platform = Platform(guest="hvm", pti=True, pcid=True)
    trace = run_workload(
        "madv_dontneed_touch", 4, platform=platform, iterations=1, warm=0, whole=True, touches=True,
        frames=1 << 15,
    )  # fmt: skip
    mode, space = get_mode("shadow"), Space(HookSet.of("flush_tlb_one_user", "set_pte"))
    assert engine(mode)(trace, mode.classes(trace, space).branches[0]) is None
    assert differences(trace, mode, space) == []


# ---------------------------------------------------------------------- parts
def small(*ops: tuple[Op, int]) -> Trace:
    b = TraceBuilder()
    mm = b.mm("process", pgd=9)
    for i, (op, cpu) in enumerate(ops):
        entry = {"table": 5, "index": i} if op == Op.SET_PTE else {}
        b.add(op, cpu=cpu, mm=mm, va=i << 12, **entry)
    return b.build(Provenance("small", "6.1.0", "tests", Platform(guest="hvm", vcpus=2)))


ENTER, STORE, LEAVE = Op.LAZY_ENTER, Op.SET_PTE, Op.LAZY_LEAVE


def test_brackets_of_two_processors_and_their_calls():
    """Two on each, the last closed by the last row; one to four stores in each."""
    rows = [(STORE, 0)]
    for n, cpu in ((1, 0), (2, 0), (3, 1), (4, 1)):
        rows += [(ENTER, cpu), *[(STORE, cpu)] * n, (LEAVE, cpu)]
    trace = small(*rows)
    found = brackets(trace, np.ones(len(trace), bool))
    assert sorted(found.kinds[:, STORE].tolist()) == [1, 2, 3, 4]
    assert found.closed.all() and found.times.tolist() == [1] * 4
    assert found.outside[STORE] == 1 and found.inside[STORE] == 10
    told = np.isin(np.arange(len(found.present)), [int(STORE)])
    assert [found.calls(told, most) for most in (1, 2, 3)] == [10, 6, 5]


def test_the_access_that_faulted_is_made_before_the_next():
    trace, source = with_touches(small((Op.FAULT, 0), (STORE, 0), (Op.FAULT, 0), (STORE, 0)))
    assert [Op(o) for o in trace["op"]] == [Op.FAULT, STORE, Op.TOUCH] * 2
    assert source[[2, 5]].tolist() == [0, 2]


@pytest.mark.parametrize("fmt", [TWO_LEVEL, PAE, FOUR_LEVEL, FIVE_LEVEL])
def test_tables_cover_what_the_format_says(fmt):
    shifts = sorted(level.shift for level in fmt.levels)
    assert list(_SHIFTS[len(shifts)]) == shifts


@pytest.mark.parametrize("platform", [{"pti": True}, {"pcid": True}])
def test_isolation_or_tags_alone_are_counted_at_once(platform):
    trace = run_workload(
        "madv_dontneed_touch", 4, platform=Platform(guest="hvm", **platform), iterations=1, warm=0,
        whole=True, touches=True, frames=1 << 15,
    )  # fmt: skip
    mode, space = get_mode("shadow"), Space(HookSet.of("set_pte"))
    assert engine(mode)(trace, mode.classes(trace, space).branches[0]) is not None
    assert differences(trace, mode, space) == []
