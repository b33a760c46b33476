"""Replay, explain and diff: conservation, drill-down, reasons."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from conftest import examples, recorded
from guests import random_trace
from hypothesis import given, strategies as st

from pvmmu.errors import ModeError, Unsupported
from pvmmu.guest.trace import Evidence, Op, Provenance, TraceBuilder
from pvmmu.hooks import HookSet
from pvmmu.modes import events, get_mode, mode_names
from pvmmu.modes.events import ENTRIES, EVENTS, N_EVENTS, Event, column
from pvmmu.modes.outcome import counts_of_rows
from pvmmu.replay import causes, diff, event_columns, explain, replay

DESIGNS = [
    ("linux-6.1", "direct"),
    ("linux-6.1 +ptep_get_and_clear +ptep_set_wrprotect", "direct"),
    ("linux-6.1 -lazy_mmu -set_pte", "direct:stores=batched"),
    ("xen-2.6.27", "direct:backend=2.6.27"),
    ("linux-6.1 +set_ptes", "direct"),
    ("vmi", "vmi"),
    ("none", "native"),
]


@pytest.mark.compiled
@pytest.mark.parametrize(("hooks", "mode"), DESIGNS)
@pytest.mark.parametrize("name", ["fork.16", "shloop", "smpmmap.16", "mprotect.33"])
def test_explained_events_sum_to_the_counts(name, hooks, mode):
    t = recorded(name)
    rows, counts = explain(t, hooks, mode), replay(t, hooks, mode)
    assert len(rows) == len(t)
    assert rows[event_columns(rows)].sum().sort_index().to_dict() == (
        counts.series().sort_index().to_dict()
    )


@examples(40)
@given(seed=st.integers(0, 10**6), design=st.sampled_from(DESIGNS), vcpus=st.sampled_from((1, 2)))
def test_so_they_do_for_random_guests(seed, design, vcpus):
    t = random_trace(seed, 30, vcpus)
    counts = replay(t, *design)
    if counts.infeasible is None:
        rows = explain(t, *design)
        assert rows[event_columns(rows)].sum().sort_index().to_dict() == (
            counts.series().sort_index().to_dict()
        )


def test_every_operation_has_one_mechanism():
    rows = explain(recorded("fork.16"), "linux-6.1", "direct")
    assert rows["mechanism"].notna().all()
    by_op = rows.groupby("op", observed=True)["mechanism"].agg(set)
    assert by_op["PTE_WRPROTECT"] == {"trap"}
    assert by_op["SET_PTE"] == {"mmu update"}
    assert by_op["PTE_GET_AND_CLEAR"] == {"trap", "locked"}  # COW break; tear-down


def test_native_operations_are_conserved():
    """Each entry operation is one store or one locked operation."""
    t = recorded("shloop")
    counts = replay(t, "none", "native")
    entries = sum(int((t["op"] == op).sum()) for op in Op if 1 <= op <= 13)
    assert counts["store"] + counts["locked"] == entries
    assert counts.entries == 0


def test_diff_says_what_a_hook_changes():
    t = recorded("fork.16")
    a, b = (explain(t, h, "direct") for h in ("linux-6.1", "linux-6.1 +ptep_set_wrprotect"))
    d = diff(a, b)
    moved = d[d["mechanism_a"] != d["mechanism_b"]]
    assert set(moved["op"]) == {"PTE_WRPROTECT"}
    assert d["pte_emulation"].sum() == (
        replay(t, "linux-6.1 +ptep_set_wrprotect", "direct")["pte_emulation"]
        - replay(t, "linux-6.1", "direct")["pte_emulation"]
    )
    assert diff(a, a).empty


def test_diff_refuses_different_traces():
    a = explain(recorded("fork.16"), "linux-6.1", "direct")
    b = explain(recorded("fork.1"), "linux-6.1", "direct")
    with pytest.raises(Unsupported, match="different traces"):
        diff(a, b)


INFEASIBLE = {
    ("fork.16", "linux-6.1 -pte_val", "direct"): "never translated",
    ("mmap.1", "linux-6.1 -set_pmd", "direct"): "upper-level table of a pinned tree (set_pmd)",
    ("mmap.1", "linux-6.1 -alloc_pte", "direct"): "a new PTE table is never announced (alloc_pte)",
    ("mmap.1", "linux-6.1 -release_pmd", "direct"): "a PMD table is freed while typed",
    ("fork.1", "linux-6.1 -pgd_alloc", "direct"): "a new top-level table is never announced",
    ("fork.1", "linux-6.1 -write_cr3", "direct"): "no instruction to trap (write_cr3)",
    ("mmap.1", "linux-6.1", "direct:stores=refuse"): "is refused (PTE_GET_AND_CLEAR)",
    ("fork.1", "vmi -pte_update", "vmi"): "a change that the shadow never learns of",
    ("fork.1", "vmi -alloc_pte", "vmi"): "a page-table page is never announced (alloc_pte)",
    ("fork.1", "vmi -release_pud", "vmi"): "a page-table page is never dismissed (release_pud)",
}


@pytest.mark.parametrize("design", INFEASIBLE, ids=lambda d: f"{d[0]}: {d[1]} in {d[2]}")
def test_infeasible_designs_have_a_reason_and_no_number(design):
    name, hooks, mode = design
    counts = replay(recorded(name), hooks, mode)
    assert INFEASIBLE[design] in counts.status
    assert counts.status.startswith("infeasible: ")
    assert np.isnan(counts.cycles("p4-2006"))
    with pytest.raises(Unsupported, match="it has no counts"):
        counts["mmu_update"]
    with pytest.raises(Unsupported):
        explain(recorded(name), hooks, mode)


def test_the_reason_names_the_operation():
    t = recorded("mmap.1")
    counts = replay(t, "linux-6.1 -alloc_pte", "direct")
    assert Op(t["op"][counts.infeasible.row]) == Op.ALLOC_PTE


def test_late_tables_are_free_until_pinned():
    """Unpinned tables are ordinary memory: an unhooked store to a child's table costs nothing."""
    t = recorded("fork.64")
    hooked, plain = replay(t, "linux-6.1", "direct"), replay(t, "linux-6.1 -set_pte", "direct")
    assert plain["store"] > hooked["store"] + 64
    assert plain["mmu_update_requests"] < hooked["mmu_update_requests"]


def test_unknown_counts_are_bounds():
    b = TraceBuilder()
    mm = b.mm("older", older=True)
    b.add(Op.PTE_GET_AND_CLEAR, mm=mm, table=7, count=512, evidence=Evidence.UNKNOWN)
    b.add(Op.FLUSH_USER, mm=mm)
    counts = replay(b.build(Provenance("unknown", "6.1.0")), "linux-6.1", "direct")
    assert not counts.exact
    assert counts["mmuext_op"] == 1
    with pytest.raises(Unsupported, match="known only within bounds: 0 to 512"):
        counts["pte_emulation"]


def test_categories_count_each_request_once():
    t = recorded("fork.64")
    counts = replay(t, "linux-6.1", "direct")
    by = counts.by_category()
    entries = by["hypercall"] + by["trap"] + by["emulation"]
    assert entries == counts.entries == sum(int(counts.low[e]) for e in ENTRIES)
    carried = by["hypercall"] + by["batched"]
    requests = (
        counts["mmu_update_requests"] + counts["mmuext_op_requests"] + counts["update_va_mapping"]
        if counts.low[Event.UPDATE_VA_MAPPING]
        else counts["mmu_update_requests"] + counts["mmuext_op_requests"]
    )
    assert carried == (
        requests + counts["sub_update_va_mapping"] + counts["sub_mmuext_op_requests"]
    )


def test_modes_are_named_and_parsed():
    assert {"native", "direct", "vmi"} <= set(mode_names())
    for spec in ("direct", "direct:backend=2.6.27,stores=batched", "vmi:queue=64", "native"):
        mode = get_mode(spec)
        assert get_mode(mode.spec) == mode
    assert get_mode("direct:backend=6.1").spec == "direct"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dirct", "did you mean 'direct'"),
        (
            "direct:backend=5.0",
            "backend '5.0' does not exist; there are 2005, 2006, 2007, 2.6.23, 2.6.27, 6.1",
        ),
        ("direct:stores=ignore", "stores 'ignore' does not exist"),
        ("direct:queue=3", "has no parameter 'queue'"),
        ("vmi:queue=0", "queue must be a whole number from 1"),
        ("vmi:queue=x", "queue must be a whole number from 1"),
        ("native:x=1", "has no parameter 'x' (it has none)"),
    ],
)
def test_wrong_modes(spec, message):
    with pytest.raises(ModeError) as e:
        get_mode(spec)
    assert message in str(e.value)


def test_the_default_of_a_hook_is_a_loop_of_others():
    """An mprotect without its transaction clears and stores, each hooked or not."""
    t = recorded("mprotect.33")
    base = HookSet.parse("linux-6.1 -ptep_modify_prot")
    trapped = replay(t, base, "direct")
    assert trapped["pte_emulation"] == 66
    assert trapped["mmu_update_requests"] == 66
    hooked = replay(t, base | HookSet.of("ptep_get_and_clear"), "direct")
    assert hooked["mmu_update_requests"] == 132
    assert not hooked.low[Event.PTE_EMULATION]


def test_a_range_call_carries_fault_around():
    """Sixteen stores of one fault: sixteen hypercalls one by one, one as a range."""
    t = recorded("filerd.16")
    one, ranged = (replay(t, h, "direct") for h in ("linux-6.1", "linux-6.1 +set_ptes"))
    assert one["mmu_update_requests"] == ranged["mmu_update_requests"]
    assert one["mmu_update"] - ranged["mmu_update"] == 15
    assert column(Event.QUEUED) in ranged.series()


def test_two_cpus_flush_by_interrupt_or_by_hypercall():
    t = recorded("smpmmap.1")
    hooked, bare = (replay(t, h, "direct") for h in ("linux-6.1", "linux-6.1 -flush_tlb_multi"))
    assert not hooked.low[Event.EVENT_CHANNEL_OP]
    assert bare["event_channel_op"] == 1
    assert bare["tlb_flush_one"] == 2


@pytest.mark.parametrize("mode", ["direct", "vmi", "lguest", "kvm-pvmmu", "shadow"])
def test_every_entry_is_a_call_or_a_trap(mode):
    """Batched requests enter with their call, native flushes and faults not at all."""
    hooks = {"direct": "linux-6.1", "shadow": "none"}.get(mode, mode)
    counts = replay(recorded("fork.1"), hooks, mode)
    by = counts.by_category()
    assert counts.entries == by["hypercall"] + by["trap"] + by["emulation"] > 0


@pytest.mark.parametrize("mode", [m for m in mode_names() if m != "native"])
def test_a_log_is_made_only_if_asked_for(mode):
    hooks = {"direct": "linux-6.1", "vmi": "vmi", "lguest": "lguest"}.get(mode, "none")
    run = get_mode(mode).run
    silent, told = (run(recorded("fork.1"), HookSet.parse(hooks), *log) for log in ((), (True,)))
    assert len(silent.log) == 0 < len(told.log)


def test_what_is_infeasible_as_such_names_no_row():
    t = recorded("fork.1")
    assert replay(t, "linux-6.1 -pte_val", "direct").infeasible.row == -1
    assert replay(t, "linux-6.1 -pgd_alloc", "direct").infeasible.row >= 0


def test_a_flush_of_everything_is_no_negative_number_of_operations():
    b = TraceBuilder()
    b.add(Op.FLUSH_USER, mm=b.mm("process"), count=-1)
    [n] = counts_of_rows(b.build(Provenance("flush", "6.1.0")))
    assert n.tolist() == [0]


def test_causes_are_operations_of_a_kind():
    rows = explain(recorded("fork.16"), "linux-6.1", "direct")
    by = causes(rows, "emulation")
    emulations = [c for c in event_columns(rows) if c.endswith("_emulation")]
    assert by["emulation"].sum() == rows[emulations].to_numpy().sum() > 0
    assert by["emulation"].is_monotonic_decreasing
    assert causes(rows, "pte_emulation")["pte_emulation"].sum() == rows["pte_emulation"].sum()
    with pytest.raises(ModeError, match=r"no event 'earthquake' here \(there are .*mmu_update"):
        causes(rows, "earthquake")


def test_a_difference_counts_what_one_side_never_does():
    t = recorded("fork.1")
    a, b = explain(t, "linux-6.1", "direct"), explain(t, "none", "native")
    assert diff(a, b)["mmu_update"].sum() == -a["mmu_update"].sum() < 0
    assert diff(b, a)["mmu_update"].sum() == a["mmu_update"].sum()


def test_results_cannot_be_changed():
    t = recorded("fork.1")
    mode = get_mode("direct")
    for x, name in ((mode, "backend"), (mode.run(t, HookSet.parse("linux-6.1")), "low"),
                    (mode.run(t, HookSet()), "reason")):  # fmt: skip
        with pytest.raises(FrozenInstanceError):
            setattr(x, name, None)


def test_an_empty_address_space_has_no_entries_to_drop():
    b = TraceBuilder()
    b.mm("older", older=True)
    mm = b.mm("child")
    for op in (Op.PGD_ALLOC, Op.ACTIVATE_MM, Op.EXIT_MMAP, Op.PGD_FREE):
        b.add(op, mm=mm, task=mm)
    counts = replay(b.build(Provenance("empty", "6.1.0")), "linux-6.1", "direct")
    assert counts["tables_pinned"] == counts["tables_unpinned"] > 0
    assert counts.low[Event.ENTRIES_VALIDATED] == counts.low[Event.ENTRIES_DROPPED] == 0


def test_requests_that_share_a_call_are_counted_in_every_mode():
    """Requests without the first of each call, summed by hand from the log."""
    trace = recorded("fork.64")
    for mode, hooks, request, call in (
        ("shadow", "kvm-pvmmu", Event.VMCALL_UPDATES, Event.VMCALL),
        ("kvm-pvmmu", "kvm-pvmmu", Event.MMU_OP_RECORDS, Event.MMU_OP),
        ("vmi", "vmi", Event.VMI_UPDATES, Event.VMI_CALL),
    ):
        counts = replay(trace, hooks, mode)
        want = counts[request] - counts[call]
        assert counts.by_category()["batched"] == want > 0, mode
    counts = replay(trace, "lguest", "lguest")
    assert counts.by_category()["batched"] == counts.low[Event.LGUEST_RING] > 0


def test_a_category_sums_all_of_its_events():
    counts = replay(recorded("fork.64"), "kvm-pvmmu", "shadow")
    by = counts.by_category()
    for category in set(by.index) - {"batched"}:
        events = [e for e in Event if EVENTS[e].category == category]
        assert by[category] == counts.low[events].sum(), category
    assert by["work"] > 0


def test_events_are_described_once_and_in_order():
    tree = ast.parse(Path(events.__file__).read_text(encoding="utf-8"))
    keys = next(
        [ast.unparse(k) for k in node.value.keys]
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "EVENTS"
    )
    assert sorted(keys) == sorted(f"Event.{e.name}" for e in Event), "each once"
    assert list(Event) == sorted(Event), "members in the order of their numbers"
    assert max(Event) < N_EVENTS
    for event, info in EVENTS.items():
        if info.shares is not None:
            assert info.category == "batched" and EVENTS[info.shares].sends, event
        if info.sends:
            assert info.category == "hypercall" and info.entry, event
