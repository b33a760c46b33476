"""The bracket of set_ptes, 6.6 to 6.14: by hand, and against what was measured."""

from __future__ import annotations

import numpy as np
import pytest

from pvmmu.errors import TraceError
from pvmmu.evidence import set_ptes as module
from pvmmu.guest.rewrite import FAULT_AROUND, with_set_ptes
from pvmmu.guest.trace import Op
from pvmmu.guest.workloads import XEN_PV, run_workload
from pvmmu.replay import replay
from tests.conftest import recorded

_LAZY = (Op.LAZY_ENTER, Op.LAZY_LEAVE)


def by_hand(trace, pages, inner):
    """Rows as (operation, CPU), written from set_ptes() and xen_leave_lazy_mmu()."""
    out, depth = [], {}
    rows = list(zip(*(trace[c].tolist() for c in ("op", "cpu", "mm", "va", "caller")), strict=True))
    at = 0
    while at < len(rows):
        op, cpu, mm, va, caller = rows[at]
        depth[cpu] = depth.get(cpu, 0) + (op == Op.LAZY_ENTER) - (op == Op.LAZY_LEAVE)
        by = trace.callers[caller] if caller >= 0 else ""
        if op != Op.SET_PTE or by == "ptep_set_access_flags":
            out.append((op, cpu))
            at += 1
            continue
        end = at + 1
        while (
            end < len(rows) and by in FAULT_AROUND
            and rows[end][:3] == (op, cpu, mm) and rows[end][3] == rows[end - 1][3] + 4096
            and trace.callers[rows[end][4]] in FAULT_AROUND
            and rows[end][3] // 4096 // pages == va // 4096 // pages
        ):  # fmt: skip
            end += 1
        stores = [(op, cpu)] * (end - at)
        if not depth.get(cpu):
            out += [(Op.LAZY_ENTER, cpu), *stores, (Op.LAZY_LEAVE, cpu)]
        else:
            out += stores
            if inner == "sends":  # the inner end flushes, the outer bracket stays open
                out += [(Op.LAZY_LEAVE, cpu), (Op.LAZY_ENTER, cpu)]
        at = end
    return out


@pytest.mark.parametrize("name", ["fork.16", "filerd.16", "shloop", "bash-6.12", "smpfork.16"])
@pytest.mark.parametrize(("pages", "inner"), [(1, "sends"), (16, "sends"), (4, "keeps")])
def test_rows_are_those_of_the_source(name, pages, inner):
    trace = recorded(name)
    changed = with_set_ptes(trace, pages, inner)
    got = list(zip(changed["op"].tolist(), changed["cpu"].tolist(), strict=True))
    assert got == by_hand(trace, pages, inner)


def test_what_cannot_be_is_refused():
    for kw in ({"pages": 0}, {"inner": "waits"}):
        with pytest.raises(TraceError, match="at least 1; 'sends' or 'keeps'"):
            with_set_ptes(recorded("fork.0"), **kw)


def test_a_rewritten_stream_is_that_of_the_kernel_with_the_bracket():
    """The model of 6.12.19 makes what the rewriting makes of the model of 6.12.24."""
    for name in ("fork", "filerd", "mremap", "cow"):
        new, old = (run_workload(name, 16, k, XEN_PV) for k in ("6.12", "6.12.19"))
        changed = with_set_ptes(new)
        assert changed["op"].tolist() == old["op"].tolist(), name
        a, b = (replay(t, "linux-6.12", "direct").series() for t in (changed, old))
        assert (a == b).all(), name


def test_no_kernel_loses_a_request():
    for name in ("shloop", "forksnap"):
        totals = []
        for make in module.KERNELS.values():
            s = replay(make(recorded(name)), "linux-6.1", "direct").series()
            requests = ("mmu_update_requests", "sub_mmu_update_requests")
            totals.append(sum(int(s.get(r, 0)) for r in requests))
        assert len(set(totals)) == 1


@pytest.fixture(scope="module")
def table():
    return module.set_ptes_table([recorded("shloop"), recorded("forksnap")])


def test_the_bracket_hurt_forks_and_helped_large_folios(table):
    more = table.pivot(index="stream", columns="kernel", values="more")
    assert (more[module.TODAY] == 0).all()
    assert more.loc["forksnap", module.BEFORE] > 2  # three times the entries
    assert more.loc["shloop", module.BEFORE_LARGE] < -0.5
    assert (more[module.BRACKET] <= more[module.BEFORE_LARGE] + 1e-12).all()
    np.testing.assert_allclose(more[module.BOTH], more[module.BEFORE])  # an inner end sends
    price = table.pivot(index="stream", columns="kernel", values="price_more")
    assert (price.abs() <= more.abs() + 1e-12).all(axis=None)  # a call is not all of a request
    assert ((price > 0) == (more > 0)).all(axis=None)
    text = module.set_ptes_finding(table)
    assert "forksnap" in text and f"{1 / (1 + more.loc['forksnap', module.BEFORE]) - 1:.0%}" in text


def test_what_was_measured_of_the_bracket():
    found = module.measured_bracket()
    assert len(found) >= 6
    assert (found["native"] < found["bracketed"]).all()
    assert (found["bracketed"] <= found["xen"]).all()
    assert 0 < found["spared"].median() < 0.12
    assert (found["of_all"] < found["spared"]).all()
    assert found.loc["cmd_dash3", "xen"] == 8331039
    ratio = (found["predicted"] / found["measured"])[found["spared"] > 0.05]
    assert len(ratio) >= 4
    assert ratio.between(1, 1.3).all(), ratio.to_string()
