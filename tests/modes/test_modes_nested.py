"""Nested mode against dictionaries: what walks, and what nothing backs yet."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import examples, recorded
from guests_shadow import random_shadow_trace
from hypothesis import given, strategies as st

from pvmmu.guest.trace import Op, Platform, Provenance, TraceBuilder
from pvmmu.hooks import HookSet
from pvmmu.modes import Nested, get_mode
from pvmmu.modes.events import Event

SIZES = {"4k": (12, 24), "2m": (21, 19), "1g": (30, 14)}


def naive(trace, backing, fresh):
    """References and violations, with a dictionary for each vCPU's TLB."""
    shift, references = SIZES[backing]
    tlb = [set() for _ in range(trace.platform.vcpus)]
    frames, backed, walks, faults = {}, set(), 0, 0
    for i in range(len(trace)):
        op, cpu, mm, va, value = (int(trace[c][i]) for c in ("op", "cpu", "mm", "va", "value"))
        page = mm, va >> 12
        if op in (Op.SET_PTE, Op.MODIFY_PROT_COMMIT) and value & 1:
            frames[page] = (value & 0xF_FFFF_FFFF_F000) >> 12
        elif op == Op.FLUSH_ONE:
            tlb[cpu].discard(page)
        elif op in (Op.FLUSH_USER, Op.FLUSH_KERNEL) or (op == Op.LOAD_CR3 and not value >> 63):
            tlb[cpu].clear()
        elif op == Op.TOUCH and page not in tlb[cpu]:
            tlb[cpu].add(page)
            walks += 1
            region = frames[page] >> shift - 12 if page in frames else None
            if fresh and region is not None and region not in backed:
                backed.add(region)
                faults += 1
    return walks * references, faults


def compare(trace, backing, fresh):
    got = Nested(backing, fresh).run(trace, HookSet(), log=True)
    assert (got.low[Event.WALK_REFERENCES], got.low[Event.NESTED_FAULT]) == naive(
        trace, backing, fresh
    )
    assert len(got.log) and (got.log[:, 2] >= 0).all()
    return got


@examples(100)
@given(seed=st.integers(0, 10**6), backing=st.sampled_from(sorted(SIZES)),
       fresh=st.sampled_from((0, 1)))  # fmt: skip
def test_nested_equals_dictionaries(seed, backing, fresh):
    compare(random_shadow_trace(seed, 80), backing, fresh)


def touching(*, noflush=False):
    """Two address spaces with the same pages; frames far apart; a switch between them."""
    b = TraceBuilder()
    for mm, base in ((b.mm("a", pgd=9), 0), (b.mm("b", pgd=10), 5 << 17)):
        b.add(Op.LOAD_CR3, mm=mm, value=int(noflush) << 63)
        for i in range(3):
            entry = (base + (i << 17)) << 12 | 0x67
            op = Op.MODIFY_PROT_COMMIT if i == 2 else Op.SET_PTE
            b.add(op, mm=mm, table=5 + mm, index=i, va=i << 12, value=entry)
            b.add(Op.TOUCH, mm=mm, va=i << 12)
        b.add(Op.LOAD_CR3, mm=mm, value=int(noflush) << 63)
        b.add(Op.TOUCH, mm=mm, va=0)
    return b.build(Provenance("touches", "6.1.0", "tests", Platform(guest="hvm")))


@pytest.mark.parametrize("backing", sorted(SIZES))
def test_loads_of_cr3_that_flush_and_that_do_not(backing):
    flushed, kept = touching(), touching(noflush=True)
    for trace in (flushed, kept):
        compare(trace, backing, 1)
    walks = [naive(t, backing, 1)[0] // SIZES[backing][1] for t in (flushed, kept)]
    assert walks == [8, 6]


def test_names_of_designs():
    for mode in (Nested(), Nested("4k"), Nested("1g", 1), Nested(fresh=1)):
        assert get_mode(mode.spec) == mode
    assert Nested().spec == "nested"


@pytest.mark.parametrize("backing", sorted(SIZES))
def test_a_page_of_the_host_is_backed_once(backing):
    size = 1 << SIZES[backing][0] - 12
    b = TraceBuilder()
    mm = b.mm("process", pgd=9)
    for i, frame in enumerate((2 * size, 3 * size - 1, 3 * size)):
        b.add(Op.SET_PTE, mm=mm, table=5, index=i, va=i << 12, value=frame << 12 | 0x67)
        b.add(Op.TOUCH, mm=mm, va=i << 12)
    trace = b.build(Provenance("violations", "6.1.0", "tests", Platform(guest="hvm")))
    got = compare(trace, backing, 1)
    assert got.low[Event.NESTED_FAULT] == 2


def test_what_carries_flushes_of_other_processors():
    """By hypercall neither the flush nor its interrupt is native; all others stay what they are."""
    trace = recorded("smpmmap.1")
    told, native = (
        Nested().run(trace, HookSet.parse(hooks), log=True) for hooks in ("flush_tlb_multi", "none")
    )
    names = [{trace_op: set() for trace_op in np.unique(trace["op"])} for _ in range(2)]
    for got, by in zip((told, native), names, strict=True):
        for op, mechanism in zip(trace["op"], got.mechanism, strict=True):
            by[op].add(got.names[int(mechanism)])
    changed = {Op(o) for o in names[0] if names[0][o] != names[1][o]}
    assert changed == {Op.FLUSH_OTHERS, Op.SEND_IPI}
    assert names[0][Op.FLUSH_OTHERS] == {"hypercall"}


def test_pages_of_two_spaces_are_not_mixed_up():
    """The kernel's second page is not the process's first."""
    b = TraceBuilder()
    mm = b.mm("process", pgd=9)
    for page, space in ((2, 0), (1, mm), (3, 0), (2, mm)):
        b.add(Op.SET_PTE, mm=space, table=5, index=page, va=page << 12, value=page << 30 | 0x67)
        b.add(Op.TOUCH, mm=space, va=page << 12)
    compare(b.build(Provenance("spaces", "6.1.0", "tests", Platform(guest="hvm"))), "2m", 1)
