"""What holds in every mode: nothing is carried twice, nothing is lost, what begins ends."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import examples, recorded
from guests import random_trace
from hypothesis import given, strategies as st

from pvmmu.guest.trace import Op, Trace
from pvmmu.hooks import HookSet, catalogue, interfaces
from pvmmu.modes import get_mode, mode_names
from pvmmu.modes.events import ENTRIES, EVENTS, Event
from pvmmu.modes.outcome import Infeasible
from pvmmu.replay import event_columns, explain, replay

VARIANTS = ["direct:backend=2005", "direct:backend=2005,stores=batched", "direct:backend=2007",
            "direct:backend=2.6.23", "direct:backend=2.6.27", "direct:stores=batched",
            "direct:without=cr3", "vmi:queue=3", "lguest:slots=1"]  # fmt: skip
MODES = [*mode_names(), *VARIANTS]
ALL = list(catalogue())
STREAMS = ["fork.16", "forkexec.0", "mprotect.33", "shloop", "redis", "pipeline-6.12"]
INTERFACES = ["linux-6.1", "vmi", "lguest", "kvm-pvmmu"]
#: Each mode with four of these, so that each stream and each interface meets several modes.
SAMPLE = [
    (spec, STREAMS[(i + k) % len(STREAMS)], INTERFACES[(i // 2 + k) % len(INTERFACES)])
    for i, spec in enumerate(MODES)
    for k in range(4)
]


def mostly(seed: int) -> HookSet:
    r = np.random.default_rng(seed)
    return HookSet.of(*(n for n in ALL if r.random() < 0.97 or n == "pte_val"))


def check(trace: Trace, hooks: HookSet, spec: str) -> bool:
    result = get_mode(spec).run(trace, hooks, log=True)
    if isinstance(result, Infeasible):
        return False
    log, rows = result.log, len(trace)
    # every operation has one mechanism, and it has a name
    assert result.mechanism.shape == (rows,)
    assert set(np.unique(result.mechanism).tolist()) <= set(result.names)
    # what is logged is what is counted, and belongs to a row and a CPU of the trace
    total = np.zeros(len(result.low), np.int64)
    np.add.at(total, log[:, 1], log[:, 2])
    assert (total == result.low).all()
    assert (result.low >= 0).all()
    assert (result.low <= result.high).all()
    assert ((log[:, 0] >= 0) & (log[:, 0] < rows)).all()
    assert (log[:, 3] < trace.platform.vcpus).all()
    assert set(np.unique(log[:, 1]).tolist()) <= {int(e) for e in EVENTS}
    # a row of which the mode says that nothing carries it causes nothing
    nothing = [k for k, name in result.names.items() if name == "nothing"]
    idle = np.isin(result.mechanism[log[:, 0]], nothing)
    assert not log[idle, 2].any()
    # counting does not depend on whether a log is kept
    same = get_mode(spec).run(trace, hooks)
    assert (same.low == result.low).all()
    return True


@examples(60)
@given(seed=st.integers(0, 10**6), hooks=st.integers(0, 10**6), spec=st.sampled_from(MODES))
def test_explained_is_counted(seed, hooks, spec):
    check(random_trace(seed, 40), mostly(hooks), spec)


@pytest.mark.parametrize(("spec", "name", "interface"), SAMPLE)
def test_explained_is_counted_on_real_streams(spec, name, interface):
    check(recorded(name), interfaces()[interface].hooks, spec)


@pytest.mark.parametrize("spec", MODES)
def test_some_design_runs_in_every_mode(spec):
    hooks = HookSet.every()
    assert check(recorded("fork.16"), hooks, spec)
    rows = explain(recorded("fork.16"), hooks, spec)
    counts = replay(recorded("fork.16"), hooks, spec)
    assert {c: int(rows[c].sum()) for c in event_columns(rows)} == dict(counts.series())


@pytest.mark.parametrize("spec", MODES)
@pytest.mark.parametrize("name", ["fork.16", "shloop", "redis"])
def test_each_fault_of_the_program_is_one_fault(spec, name):
    """Whatever the mode, the guest's handler runs as often as it ran when recorded."""
    trace = recorded(name)
    result = get_mode(spec).run(trace, HookSet.every())
    assert not isinstance(result, Infeasible)
    given_to_guest = int(result.low[Event.PAGE_FAULT] + result.low[Event.FAULT])
    assert given_to_guest == int((trace["op"] == Op.FAULT).sum())


@pytest.mark.parametrize("name", ["fork.16", "forkexec.0", "shloop", "python", "bash-6.12"])
@pytest.mark.parametrize(
    ("spec", "event"),
    [
        ("direct", ("tables_pinned", "tables_unpinned")),
        ("vmi", ("vmi_pages", "vmi_pages")),
    ],
)
def test_every_table_announced_is_dismissed(name, spec, event):
    """For each address space that is born and freed within the trace."""
    trace = recorded(name)
    rows = explain(trace, HookSet.parse("linux-6.1" if spec == "direct" else "vmi"), spec)
    rows["space"], rows["number"] = trace["mm"], trace["op"]
    whole = set(trace["mm"][trace["op"] == Op.PGD_ALLOC]) & set(
        trace["mm"][trace["op"] == Op.PGD_FREE]
    )
    if spec == "direct":
        seen = rows.groupby("space")[list(dict.fromkeys(event))].sum()
        pairs = {m: (seen.loc[m, event[0]], seen.loc[m, event[1]]) for m in whole}
    else:
        alloc = rows["op"].astype(str).str.match("ALLOC|PGD_ALLOC")
        seen = rows["vmi_pages"] > 0
        pairs = {
            m: (
                rows.loc[seen & alloc & (rows["space"] == m), "vmi_pages"].sum(),
                rows.loc[seen & ~alloc & (rows["space"] == m), "vmi_pages"].sum(),
            )
            for m in whole
        }
    assert pairs
    assert sum(a for a, _ in pairs.values()) > 0
    for mm, (announced, dismissed) in pairs.items():
        assert announced == dismissed, mm


@pytest.mark.parametrize("spec", [m for m in MODES if m != "native"])
def test_entries_are_the_events_that_enter(spec):
    counts = replay(recorded("shloop"), HookSet.every(), spec)
    assert counts.entries == sum(int(counts.low[e]) for e in ENTRIES)
    by = counts.by_category()
    # under nested paging the guest takes its faults without the hypervisor
    own = int(counts.low[Event.FAULT]) if spec == "nested" else 0
    assert by["hypercall"] + by["trap"] + by["emulation"] == counts.entries + own
