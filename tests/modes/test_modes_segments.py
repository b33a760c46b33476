"""Like pieces of a trace, and counts of many hook sets at once: the parts, each by itself."""

from __future__ import annotations

import random

import numpy as np
import pytest
from conftest import examples, recorded
from hypothesis import given, strategies as st

from pvmmu.guest.trace import Flag, Op, Provenance, TraceBuilder
from pvmmu.hooks import HookSet
from pvmmu.modes import Vmi, get_mode
from pvmmu.modes.all_sets import counting
from pvmmu.modes.all_sets.counting import count_classes, count_one_by_one
from pvmmu.modes.all_sets.engines import engine
from pvmmu.modes.all_sets.segments_kernel import TOKEN, kinds_of_pieces, localise
from pvmmu.modes.direct.encode_trace import folded_flushes
from pvmmu.modes.direct.rules import PINNING
from pvmmu.modes.events import Event
from pvmmu.modes.outcome import Infeasible
from pvmmu.modes.partition import Space


# ---------------------------------------------------------------------- which pieces are alike
def name_of(seen, number):
    """A number's name in its piece: how many others came before; zeros do not matter."""
    return seen.setdefault(number, len(seen)) if number > 0 else -1


_upto3, _spaces = st.integers(0, 3), st.tuples(st.integers(1, 4), st.integers(1, 4))
_pieces = st.lists(
    st.tuples(_spaces, st.lists(st.tuples(_upto3, _upto3, _upto3, _upto3), max_size=4)),
    min_size=1, max_size=12,
)  # fmt: skip
#: The same two rows, with other tables and another program; init_mm (2) is not any other.
_TWINS = [
    ((1, 3), [(0, 1, 1, 2), (0, 3, 2, 1)]),
    ((4, 3), [(0, 4, 3, 1), (0, 3, 1, 3)]),
    ((2, 3), [(0, 2, 3, 1), (0, 3, 1, 3)]),
    ((1, 3), [(0, 1, 1, 2), (0, 1, 2, 1)]),
]


def kinds_by_names(pieces):
    """How many pieces there are of each kind, and the first of it."""
    number, first = {}, {}
    for i, (loaded, rows) in enumerate(pieces):
        mms, tables, regions = {2: 0}, {}, {}
        here = tuple(name_of(mms, c) for c in loaded)
        renamed = tuple(
            (what, name_of(mms, mm), name_of(tables, table), name_of(regions, region))
            for what, mm, table, region in rows
        )
        number[here, renamed] = number.get((here, renamed), 0) + 1
        first.setdefault((here, renamed), i)
    return list(first.values()), list(number.values())


def found_kinds(pieces):
    starts = np.cumsum([0, *(len(rows) for _, rows in pieces)])
    tokens = np.zeros((starts[-1], len(TOKEN)), np.int64)
    columns = [TOKEN.index(x) for x in ("what", "mm", "table", "region")]
    tokens[:, columns] = np.array([t for _, rows in pieces for t in rows]).reshape(-1, 4)
    loaded = np.array([spaces for spaces, _ in pieces])
    localise(tokens, starts, loaded, 4, 3, 3)
    first, number = kinds_of_pieces(tokens, starts, loaded)
    return first.tolist(), number.tolist()


@examples(200)
@given(_pieces)
def test_pieces_are_alike_up_to_the_names_of_spaces_tables_and_regions(pieces):
    assert found_kinds(pieces) == kinds_by_names(pieces)


def test_names_do_not_make_pieces_unlike_but_places_do():
    assert found_kinds([*_TWINS, _TWINS[1]]) == ([0, 2, 3], [3, 1, 1])


# ---------------------------------------------------------------------- classes of small spaces
MANY = (*PINNING, "alloc_pte", "alloc_pmd", "release_pte", "set_pmd", "write_cr3")


@pytest.mark.parametrize("mode", ["direct", "vmi", "native"])
def test_classes_of_a_space_are_all_its_sets(mode):
    space = Space(HookSet.of("lazy_mmu", "set_pte", "pte_val"), HookSet.every())
    assert space.size == 1 and get_mode(mode).classes(recorded("fork.1"), space).n == 1
    space = Space(space.free, space.always - space.free)
    assert space.size == sum(c.size for c in get_mode(mode).classes(recorded("fork.1"), space)) == 8


def test_required_hooks_of_spaces_without_alternatives():
    """By trying each hook; where few are free, hooks of the strategy are required, too."""
    trace, mode, r, found = recorded("fork.1"), get_mode("direct"), random.Random(1), HookSet()
    for _ in range(60):
        never = HookSet.of(*r.sample(MANY, 2))
        free = HookSet.of(*r.sample(MANY, 4), "set_pte", "lazy_mmu") - never
        always = HookSet.every() - free - never
        partition = mode.classes(trace, Space(free, always))
        assert sum(c.size for c in partition) == 2 ** len(free)
        if partition.n:
            want = [
                x for x in free if not mode.classes(trace, Space(free - HookSet.of(x), always)).n
            ]
            assert partition.required == HookSet.of(*want)
            found |= partition.required
    assert found & HookSet.of(*PINNING)


# ---------------------------------------------------------------------- many hook sets at once
@pytest.mark.parametrize("in_use", [True, False])
def test_what_the_last_piece_leaves_writable_is_not_the_next_hook_sets(in_use):
    b = TraceBuilder()
    here, there = (b.mm(name, older=True, pgd=i) for i, name in enumerate(("here", "there"), 1))
    b.add(Op.LOAD_CR3, mm=here)
    place = {"mm": here if in_use else there, "table": 7}
    for op, value in ((Op.PTE_GET_AND_CLEAR, 0), (Op.SET_PTE, 0x1067)):
        b.add(op, index=1, va=1 << 12, value=value, **place)
    trace, mode = b.build(Provenance("open", "2.6.27")), get_mode("direct:stores=batched")
    free = HookSet.of("set_pte", "set_pte_at", "ptep_get_and_clear")
    partition = mode.classes(trace, Space(free, HookSet.parse("linux-6.1") - free))
    one_by_one = count_one_by_one(trace, mode, list(partition.feasible(0)))
    opened, closed = (one_by_one.low[:, e] for e in (Event.PTWR_OPEN, Event.PTWR_FLUSH))
    assert np.count_nonzero(opened > closed) > 1, "it is writable where the trace ends"
    np.testing.assert_array_equal(count_classes(trace, mode, partition, 0).low, one_by_one.low)


def test_pieces_differ_by_slots_and_by_what_is_loaded():
    """What a writable page costs: how many entries of it changed, and whether it is in use."""
    b = TraceBuilder()
    here, there = (b.mm(name, older=True, pgd=i) for i, name in enumerate(("here", "there"), 1))
    for loaded, slots in ((here, (1, 1)), (here, (1, 5)), (there, (1, 5)), (there, (1, 1))):
        b.add(Op.LOAD_CR3, mm=loaded)
        for i in slots:
            b.add(Op.SET_PTE, mm=here, table=7, index=i, va=i << 12, value=0x1067)
        b.add(Op.FLUSH_USER)
    trace, mode = b.build(Provenance("few", "2.6.27")), get_mode("direct:stores=batched")
    free = HookSet.of("set_pte", "set_pte_at", "lazy_mmu")
    partition = mode.classes(trace, Space(free, HookSet.parse("linux-6.1") - free))
    one_by_one = count_one_by_one(trace, mode, list(partition.feasible(0)))
    low, _ = engine(mode)(trace, partition.branches[0])
    np.testing.assert_array_equal(low, one_by_one.low)
    assert low[:, Event.PTWR_OPEN].max() == 4
    assert low[:, Event.PTWR_ENTRIES].max() == 6


def test_a_flush_before_the_change_is_not_folded_into_it():
    b = TraceBuilder()
    mm = b.mm("process", older=True, pgd=1)
    entry = {"mm": mm, "table": 7, "index": 1, "va": 1 << 12, "flags": int(Flag.CURRENT_MM)}
    for op in (Op.FLUSH_ONE, Op.PTE_RMW, Op.FLUSH_ONE, Op.LOAD_CR3, Op.FLUSH_ONE):
        b.add(op, **entry if op == Op.PTE_RMW else {"mm": mm, "va": 1 << 12})
    assert folded_flushes(b.build(Provenance("flushes", "6.1.0"))).tolist() == [2]


def test_each_class_is_replayed_where_a_mode_cannot_count_all_at_once(monkeypatch):
    trace, mode, found = recorded("fork.1"), Vmi(), None
    partition = mode.classes(trace, Space(HookSet.of("lazy_mmu", "set_pte"), HookSet.parse("vmi")))
    for at_once in (None, lambda _trace, _branch: found):
        monkeypatch.setattr(counting, "engine", lambda _, at_once=at_once: at_once)
        replayed = count_classes(trace, mode, partition, 0)
        for c, low in zip(partition.feasible(0), replayed.low, strict=True):
            result = Vmi().run(trace, c.hooks)
            assert not isinstance(result, Infeasible)
            np.testing.assert_array_equal(low, result.low)
    found = replayed.low + 1, replayed.low + 2
    counts = count_classes(trace, mode, partition, 0)
    np.testing.assert_array_equal(counts.low, replayed.low + 1)
    np.testing.assert_array_equal(counts.high, replayed.low + 2)
    assert repr(counts) == f"ClassCounts(status={counts.status})", "no arrays"
