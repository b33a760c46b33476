"""Recorded streams with other brackets: no operation changes, and nothing waits that must not."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import recorded

from pvmmu.guest.rewrite import (
    REWRITES,
    bracket_fault_around,
    bracket_runs,
    bracket_vmap,
    in_bracket,
    join_brackets,
)
from pvmmu.guest.trace import Op
from pvmmu.replay import replay

BRACKETS = (Op.LAZY_ENTER, Op.LAZY_LEAVE)


def order(trace):
    return [(Op(o).name, int(c)) for o, c in zip(trace["op"], trace["cpu"], strict=True)]


def brackets(trace):
    return int((trace["op"] == Op.LAZY_ENTER).sum())


@pytest.mark.parametrize("name", ["filerd.16", "shloop", "bash-6.12", "mmap.16"])
def test_brackets_are_added_around_runs_only(name):
    """Slow twin: walk the rows, open before the second of a run, never inside another bracket."""
    trace = recorded(name)
    wanted = trace["op"] == Op.SET_PTE
    inside, depth = [], dict.fromkeys(range(trace.platform.vcpus), 0)
    for o, c in zip(trace["op"], trace["cpu"], strict=True):
        depth[int(c)] += {Op.LAZY_ENTER: 1, Op.LAZY_LEAVE: -1}.get(Op(o), 0)
        inside.append(depth[int(c)] > 0)
    out, row, rows, mm = [], 0, order(trace), trace["mm"]
    while row < len(rows):
        end, cpu = row, rows[row][1]
        while (
            end < len(rows) and wanted[end] and not inside[end]
            and rows[end][1] == cpu and mm[end] == mm[row]
        ):  # fmt: skip
            end += 1
        run = rows[row : max(end, row + 1)]
        out += [("LAZY_ENTER", cpu), *run, ("LAZY_LEAVE", cpu)] if len(run) > 1 else run
        row += len(run)
    assert order(bracket_runs(trace, wanted, "x")) == out


@pytest.mark.parametrize("rewrite", REWRITES.values())
@pytest.mark.parametrize("name", ["filerd.64", "fork.64", "bash-6.12", "smpmmap.16", "redis"])
def test_only_brackets_change(name, rewrite):
    trace = recorded(name)
    changed = rewrite(trace)
    old, new = (~np.isin(t["op"], BRACKETS) for t in (trace, changed))
    for column in ("op", "va", "table", "value", "cpu"):
        np.testing.assert_array_equal(changed[column][new], trace[column][old])
    assert changed.name.startswith(f"{name}, ")
    natively = [replay(t, "none", "native").series().to_dict() for t in (trace, changed)]
    assert natively[0] == natively[1]


def test_fault_around_is_batched_and_no_request_more():
    trace = recorded("filerd.64")
    changed = bracket_fault_around(trace)
    assert brackets(changed) > brackets(trace)
    a, b = (replay(t, "linux-6.1", "direct") for t in (trace, changed))
    requests = ("mmu_update_requests", "sub_mmu_update_requests")
    total = [sum(int(c.series().get(r, 0)) for r in requests) for c in (a, b)]
    assert total[0] == total[1]
    assert b.entries < a.entries


@pytest.mark.parametrize("name", ["fork.64", "bash-6.12", "smpmmap.16"])
def test_joined_brackets(name):
    """Fewer brackets; what must be visible never lies within a bracket that grew."""
    trace = recorded(name)
    joined = join_brackets(trace)
    gone = brackets(trace) - brackets(joined)
    assert len(joined) == len(trace) - 2 * gone
    assert brackets(join_brackets(joined)) == brackets(joined)
    assert (
        replay(joined, "linux-6.1", "direct").entries
        <= replay(trace, "linux-6.1", "direct").entries
    )
    if name == "bash-6.12":
        assert gone > 0
    visible = np.isin(joined["op"], (Op.LOAD_CR3, Op.SWITCH_START, Op.EXIT_MMAP))
    assert not (in_bracket(joined) & visible).any()


def test_kernel_mappings_alone_are_in_the_bracket_of_vmap():
    trace = recorded("redis")
    changed = bracket_vmap(trace)
    inside = in_bracket(changed) & ~np.isin(changed["op"], BRACKETS)
    before = in_bracket(trace) & ~np.isin(trace["op"], BRACKETS)
    added = inside.sum() - before.sum()
    assert added == ((changed["mm"] == 0) & inside).sum() - ((trace["mm"] == 0) & before).sum() > 0
