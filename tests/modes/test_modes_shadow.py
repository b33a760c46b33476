"""Shadow and nested mode: against a slow twin, against real counts, and rule by rule."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import pandas as pd
import pytest
from conftest import examples, recorded
from guests_shadow import random_shadow_trace
from hypothesis import given, strategies as st
from naive_shadow import NaiveShadow

from pvmmu.errors import MeasurementError, ModeError
from pvmmu.evidence.truth.measurements import compare_table
from pvmmu.evidence.truth.shadow_summary import between_marks
from pvmmu.guest.trace import Op, Platform, Provenance, TraceBuilder
from pvmmu.guest.workloads import run_workload
from pvmmu.hooks import HookSet
from pvmmu.modes import Nested, Shadow, get_mode
from pvmmu.modes.events import ENTRIES, Event
from pvmmu.modes.partition import Space
from pvmmu.modes.rules import hooks_read
from pvmmu.modes.shadow.mechanisms import RULES
from pvmmu.modes.shadow.rules import IMPLEMENTATIONS
from pvmmu.modes.shadow.touches import with_touches
from pvmmu.replay import explain, replay

#: Hooks that the mode reads.
HOOKS = hooks_read(RULES).names

_TODAY = ("kvm-6.1", "xen-4.17")
_NOT_COUNTED = {Event.SHADOW_PREFETCHED, Event.QUEUED}


def counts(trace, hooks, code):
    got = Shadow(code).run(trace, hooks)
    return {e: int(got.low[e]) for e in Event if got.low[e] and e not in _NOT_COUNTED}


@pytest.mark.parametrize("code", IMPLEMENTATIONS)
@examples(60)
@given(seed=st.integers(0, 10**6), hooked=st.integers(0, 10**6))
def test_shadow_equals_its_twin(code, seed, hooked):
    r = random.Random(hooked)
    hooks = HookSet.of(*r.sample(HOOKS, r.choice((0, 0, 1, 3, 8))))
    trace = random_shadow_trace(seed, 80)
    assert counts(trace, hooks, code) == dict(NaiveShadow(trace, hooks, code).run())


# ---------------------------------------------------------------------- against real hypervisors
@pytest.fixture(scope="module")
def measured():
    from pvmmu.evidence.truth.measurements import read_table
    from pvmmu.paths import data_path

    return read_table(data_path("truth", "shadow_summary.csv"))


@pytest.mark.compiled
def test_real_kvm_and_xen_agree(measured):
    """Run A of each hypervisor, but for the largest size: every figure within its tolerance."""
    rows = measured[measured["run"].str.endswith("A") & (measured["n_pages"] != "2048")]
    got = compare_table(Path("shadow"), rows.reset_index(drop=True))
    off = got[got["verdict"] != "ok"]
    assert len(got) > 1000 and off.empty, off.to_string()
    shadow = got[got["counter"].str.contains("shadow ")]
    exact = pd.to_numeric(shadow["difference"]).abs() < 1
    assert exact.mean() > 0.9


def test_the_table_is_checked(measured):
    row = measured.iloc[[0]].assign(environment="vmware")
    with pytest.raises(MeasurementError, match=r"t.csv:2: environment='vmware'"):
        compare_table(Path("t.csv"), row)
    row = measured.iloc[[0]].assign(unsync="many")
    with pytest.raises(MeasurementError, match="unsync='many': not a number"):
        compare_table(Path("t.csv"), row)
    row = measured.iloc[[0]].assign(workload="tetris")
    assert compare_table(Path("t.csv"), row)["verdict"].tolist() == ["unsupported"]


@functools.cache
def workload(name, n, **platform):
    return run_workload(
        name, n, platform=Platform(guest="hvm", **platform), iterations=4, warm=2, whole=True,
        touches=True, frames=1 << 15,
    )  # fmt: skip


def per_iteration(name, n, code="kvm-6.1", hooks="none", **platform):
    found = between_marks(workload(name, n, **platform), f"shadow:code={code}", hooks) / 4
    return {e: found[e] for e in Event}


def exits(found):
    return sum(found[e] for e in ENTRIES)


# ---------------------------------------------------------------------- the rules, one by one
@pytest.mark.compiled
def test_a_fault_takes_three_exits_then_two():
    """The store of the guest's handler traps; since 2.6.23 it fills the shadow, too."""
    n = 1024
    old = per_iteration("madv_dontneed_touch", n, "kvm-2.6.20")
    new = per_iteration("madv_dontneed_touch", n, "kvm-2.6.23")
    for found in (old, new):
        assert found[Event.PAGE_FAULT] == n and found[Event.PTE_EMULATION] > n / 2
    assert new[Event.SHADOW_FAULT] < 8 < n / 2 < old[Event.SHADOW_FAULT]


def test_out_of_sync_tables_replace_emulation():
    before = per_iteration("mmap_touch_munmap_keeptables", 64, "xen-2006")
    after = per_iteration("mmap_touch_munmap_keeptables", 64, "xen-2008")
    assert before[Event.PTE_EMULATION] > 64 and after[Event.PTE_EMULATION] == 0
    assert before[Event.UNSYNC] == 0 < after[Event.UNSYNC]


def test_reuse_of_table_frames_costs_kvm_more_than_xen():
    """KVM finds the dead shadow when the frame is zeroed; Xen's went with its last reference."""
    kvm, xen = (per_iteration("mmap_touch_munmap", 1, code, aslr=True) for code in _TODAY)
    assert kvm[Event.SHADOW_ZAPPED] == xen[Event.SHADOW_ZAPPED] == 3
    assert (kvm[Event.PTE_EMULATION], xen[Event.PTE_EMULATION]) == (6, 4)


@pytest.mark.compiled
def test_few_pages_are_recycled():
    trace = workload("fork_exit", 256)
    few = Shadow(pages=64).run(trace, HookSet())
    many = Shadow().run(trace, HookSet())
    assert few.low[Event.SHADOW_MADE] >= many.low[Event.SHADOW_MADE]
    with pytest.raises(ModeError, match="at least 64"):
        Shadow(pages=3)
    with pytest.raises(ModeError, match="kvm-7"):
        Shadow(code="kvm-7")


def test_page_table_isolation_multiplies_cr3_loads():
    plain = per_iteration("madv_dontneed_touch", 64)
    isolated = per_iteration("madv_dontneed_touch", 64, pti=True)
    assert plain[Event.CR3_WRITE_EXIT] == 1
    # each of 64 faults enters and leaves the kernel, and so does the system call
    assert isolated[Event.CR3_WRITE_EXIT] >= 2 * 64
    # each return brings the table back into sync, so each store traps again
    assert isolated[Event.UNSYNC] >= 63 > 2 > plain[Event.UNSYNC]


def test_pcid_saves_resynchronization():
    trace = workload("pipe_pingpong_roundtrip", 0, pcid=True)
    plain = Shadow().run(workload("pipe_pingpong_roundtrip", 0), HookSet())
    tagged = Shadow().run(trace, HookSet())
    assert tagged.low[Event.RESYNC] <= plain.low[Event.RESYNC]


# ---------------------------------------------------------------------- hooks
@pytest.mark.compiled
def test_updates_by_hypercall_do_not_pay_once_tables_go_out_of_sync():
    """KVM's pv mmu against nothing: fewer exits per demand fault before, more today."""
    gain = {}
    for code in ("kvm-2.6.20", "kvm-2.6.28", "kvm-6.1"):
        plain = exits(per_iteration("madv_dontneed_touch", 1024, code))
        hooked = exits(per_iteration("madv_dontneed_touch", 1024, code, "kvm-pvmmu"))
        gain[code] = 1 - hooked / plain
    assert abs(gain["kvm-2.6.28"]) < 0.02 and gain["kvm-6.1"] < -0.2, gain


def test_a_bracket_shares_calls_and_is_bounded():
    single = per_iteration("shadow/mprotect", 64, hooks="ptep_modify_prot")
    shared = per_iteration("shadow/mprotect", 64, hooks="ptep_modify_prot+lazy_mmu")
    assert single[Event.VMCALL] == single[Event.VMCALL_UPDATES] == 128
    assert shared[Event.VMCALL_UPDATES] == 128 and shared[Event.VMCALL] == 2 * 2  # 42 + 22


def test_a_hooked_flush_is_one_entry_for_two():
    plain = per_iteration("shadow/mprotect", 64)
    hooked = per_iteration("shadow/mprotect", 64, hooks="flush_tlb_user")
    assert exits(plain) - exits(hooked) == 2
    assert hooked[Event.UNSYNC] == plain[Event.UNSYNC]


@pytest.mark.parametrize("hooks", ["alloc_pte+alloc_pmd+alloc_pud", "pte_update", "read_cr2"])
def test_some_announcements_are_nothing_to_a_shadow(hooks):
    assert per_iteration("fork_exit", 0) == per_iteration("fork_exit", 0, hooks=hooks)
    assert not Shadow().relevant_hooks(workload("fork_exit", 0)) & HookSet.parse(hooks)


def test_a_dying_process_is_told_to_xen():
    silent = per_iteration("fork_exit", 0, "xen-4.17")
    told = per_iteration("fork_exit", 0, "xen-4.17", "exit_mmap")
    assert told[Event.VMCALL] == 1
    assert told[Event.PTE_EMULATION] < silent[Event.PTE_EMULATION]


def test_classes_partition_all_sets():
    trace = workload("shadow/mprotect", 1)
    for mode in (Shadow(), Nested()):
        space = Space.all()
        classes = list(mode.classes(trace, space))
        assert sum(c.size for c in classes) == space.size
        assert not any(c.infeasible for c in classes)


# ---------------------------------------------------------------------- recordings, replay
@pytest.mark.compiled
@pytest.mark.parametrize("name", ["fork.16", "mmap.16", "shloop"])
def test_recordings_touch_what_they_fault_on(name):
    trace = recorded(name)
    rows, _ = with_touches(trace)
    faults = int((trace["op"] == Op.FAULT).sum())
    assert int((rows["op"] == Op.TOUCH).sum()) == faults and len(rows) == len(trace) + faults
    assert (rows["op"][rows["op"] != Op.TOUCH] == trace["op"]).all()
    explained = explain(trace, "none", "shadow")
    found = replay(trace, "none", "shadow")
    assert explained["shadow_fault"].sum() == found[Event.SHADOW_FAULT] > 0
    assert found[Event.PAGE_FAULT] == faults


# ---------------------------------------------------------------------- nested
def test_nested_makes_no_exit_for_the_guests_own_work():
    found = replay(workload("fork_exit", 0), "none", "nested")
    assert found.entries == 0 and found[Event.WALK_REFERENCES] > 0
    native = replay(workload("fork_exit", 0), "none", "native")
    assert found[Event.STORE] == native[Event.STORE]


@pytest.mark.parametrize(("backing", "references"), [("4k", 24), ("2m", 19), ("1g", 14)])
def test_nested_violations_and_walks(backing, references):
    b = TraceBuilder()
    mm = b.mm("process", pgd=9)
    b.add(Op.LOAD_CR3, mm=mm)
    for i, frame in enumerate((512, 513, 1024)):
        b.add(Op.SET_PTE, mm=mm, table=5, index=i, va=i << 12, value=frame << 12 | 0x67)
        b.add(Op.TOUCH, mm=mm, va=i << 12)
        b.add(Op.TOUCH, mm=mm, va=i << 12)
    b.add(Op.FLUSH_ONE, mm=mm, va=0)
    b.add(Op.TOUCH, mm=mm, va=0)
    trace = b.build(Provenance("violations", "6.1.0", "tests", Platform(guest="hvm")))
    found = replay(trace, "none", f"nested:backing={backing},fresh=1")
    assert found[Event.NESTED_FAULT] == {"4k": 3, "2m": 2, "1g": 1}[backing]
    assert found[Event.WALK_REFERENCES] == 4 * references


def test_nested_wants_nothing_but_remote_flushes():
    trace = workload("fork_exit", 16)
    assert Nested().relevant_hooks(trace) == HookSet()
    remote = recorded("smpmmap.16")
    assert Nested().relevant_hooks(remote).names == ("flush_tlb_multi",)
    plain = replay(remote, "none", "nested")
    hooked = replay(remote, "flush_tlb_multi", "nested")
    assert plain[Event.IPI_EXIT] > 0 == hooked[Event.IPI_EXIT]
    assert hooked[Event.VMCALL] > 0
    with pytest.raises(ModeError, match="backing"):
        Nested(backing="8k")
    with pytest.raises(ModeError, match="fresh"):
        Nested(fresh=2)


def test_specs_round_trip():
    for mode in (Shadow(), Shadow("xen-2006", 128), Nested(), Nested("4k", 1)):
        assert get_mode(mode.spec) == mode
