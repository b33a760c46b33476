"""Soundness: each kind has a short stream that shows it; random queues and traps against a twin."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import examples, recorded
from hypothesis import given, strategies as st
from naive_soundness import READING, Step, TwoImages

from pvmmu.errors import TraceError
from pvmmu.guest.promises import ClearedFor, promises
from pvmmu.guest.trace import Evidence, Flag, Op, Platform, Provenance, Trace, TraceBuilder
from pvmmu.guest.vocabulary import N_OPS
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.effects import Effect, effects_table
from pvmmu.modes.soundness import Kind, Level, judge, soundness, soundness_over
from pvmmu.modes.soundness_kernel import (
    APART,
    LOSES_DIRTY,
    LOST,
    READ_BACK,
    READS,
    STALE,
    UNLOCKS,
    WALKS,
    first_conflicts,
)

BASE = "linux-6.1"
CLEAN, DIRTY, READ_ONLY = 0x80000000_00001027, 0x80000000_00001067, 0x80000000_00001025
ENTRY = {"table": 9, "index": 3, "va": 0x3000}


def stream(*rows, vcpus=1, **mm) -> Trace:
    """Return a stream on one older address space: rows are (operation, columns)."""
    b = TraceBuilder()
    space = b.mm("a process", **{"older": True, **mm})
    for op, columns in rows:
        entry = ENTRY if op.name.startswith(("SET_PTE", "PTE_", "MODIFY")) else {}
        b.add(op, **{"mm": space, "flags": int(Flag.CURRENT_MM), **entry, **columns})
    platform = Platform(vcpus=vcpus)
    return b.build(Provenance("test", platform=platform))


def bracket(*rows, **kw) -> Trace:
    return stream((Op.LAZY_ENTER, {}), *rows, (Op.LAZY_LEAVE, {}), **kw)


CLEAR = (Op.PTE_GET_AND_CLEAR, {"value": 0})
STORE = (Op.SET_PTE, {"value": DIRTY})


# ---------------------------------------------------------------- each kind, in under ten rows
def test_lost_update():
    """A queued clear removes what a trapped store put there (madvise, exec's move of the stack)."""
    found = soundness(bracket(CLEAR, STORE), "linux-6.1 -set_pte -set_pte_at +ptep_get_and_clear",
                      "direct")  # fmt: skip
    assert found.level == Level.CORRUPTS and found.words == "corrupts"
    first = found.findings[0]
    assert (first.kind, first.row, first.other) == (Kind.LOST_UPDATE, 2, 1)
    assert "SET_PTE takes effect at once" in found.reason and "PTE_GET_AND_CLEAR" in found.reason


@pytest.mark.parametrize(
    "hooks",
    [
        "linux-6.1 +ptep_get_and_clear",  # both wait, in order
        "linux-6.1 -set_pte -set_pte_at",  # both at once
        "linux-6.1 -lazy_mmu -set_pte -set_pte_at +ptep_get_and_clear",  # nothing waits
    ],
)
def test_no_update_is_lost_in_order(hooks):
    assert Kind.LOST_UPDATE not in {f.kind for f in soundness(bracket(CLEAR, STORE), hooks,
                                                              "direct").findings}  # fmt: skip


def test_the_same_value_is_no_loss():
    clear = (Op.PTE_CLEAR, {"value": 0})
    assert soundness(bracket(clear, CLEAR), BASE + " +ptep_get_and_clear", "direct").level < (
        Level.CORRUPTS
    )


def test_stale_read_by_the_next_operation():
    found = soundness(bracket(STORE, (Op.PTE_WRPROTECT, {"value": READ_ONLY})),
                      BASE + " +ptep_set_wrprotect", "direct")  # fmt: skip
    assert found.level == Level.WARNS
    assert found.reason == "PTE_WRPROTECT reads an entry of which SET_PTE waits"


@pytest.mark.parametrize(("then", "warns"), [("unmap_page_range", True), ("free_pgd_range", False)])
def test_stale_read_back(then, warns):
    """MADV_DONTNEED reads back what it cleared, munmap does not: who flushes tells them apart."""
    clear = (Op.PTE_GET_AND_CLEAR, {"value": 0, "caller": "unmap_page_range"})
    trace = stream(
        (Op.LAZY_ENTER, {}), clear, (Op.LAZY_LEAVE, {}),
        (Op.FLUSH_RANGE, {"caller": "tlb_finish_mmu"}), (Op.FLUSH_ONE, {"caller": then}),
    )  # fmt: skip
    found = soundness(trace, BASE + " +ptep_get_and_clear", "direct")
    assert (found.level == Level.WARNS) is warns
    if warns:
        assert found.findings[0].evidence == Evidence.INFERRED
        assert found.reason.startswith("generic mm reads an entry back")
    assert soundness(trace, BASE, "direct").sound


@pytest.mark.parametrize("mode", ["direct", "vmi", "lguest", "kvm-pvmmu", "shadow"])
@pytest.mark.parametrize("op", [Op.TOUCH, Op.FAULT])
def test_the_processor_walks_to_an_entry_that_waits(mode, op):
    trace = bracket(STORE, (op, {"va": 0x3123}))
    hooks = HookSet.every() if mode != "shadow" else "kvm-pvmmu"
    assert soundness(trace, hooks, mode).level == Level.WARNS
    elsewhere = bracket(STORE, (op, {"va": 0x4123}))
    assert soundness(elsewhere, hooks, mode).sound


def test_release_of_the_lock_while_an_update_waits():
    unlocked = (Op.SET_PTE, {"value": DIRTY, "flags": int(Flag.CURRENT_MM | Flag.UNLOCKS)})
    found = soundness(bracket(unlocked), BASE, "direct")
    assert found.level == Level.WARNS and "lock" in found.reason
    assert soundness(bracket(unlocked), BASE + " -lazy_mmu", "direct").sound


@pytest.mark.parametrize("vcpus", [1, 2])
def test_dirty_bit_between_read_and_write(vcpus):
    trace = stream((Op.SET_PTE, {"value": CLEAN}), CLEAR, vcpus=vcpus)
    found = soundness(trace, BASE + " +ptep_get_and_clear", "direct")
    want = {1: (Level.SOUND_ON_ONE_CPU, Kind.AD_LOSS),
            2: (Level.NEEDS_A_NEW_CALL, Kind.NO_SUCH_CALL)}[vcpus]  # fmt: skip
    assert (found.level, found.findings[0].kind, found.findings[0].row) == (*want, 1)
    assert soundness(trace, BASE, "direct").sound  # the trap is emulated in one access


@pytest.mark.parametrize(
    ("before", "columns", "cleared_for"),
    [
        (DIRTY, {}, ClearedFor.LIVE),  # dirty already
        (READ_ONLY, {}, ClearedFor.LIVE),  # no CPU can write through it
        (CLEAN, {"flags": int(Flag.FULLMM)}, ClearedFor.DYING),
        (CLEAN, {"mm": 0}, ClearedFor.KERNEL),
        (CLEAN | 1 << 9, {}, ClearedFor.SPECIAL),
    ],
)
def test_clears_that_lose_nothing(before, columns, cleared_for):
    trace = stream((Op.SET_PTE, {"value": before}), (Op.PTE_GET_AND_CLEAR, columns), vcpus=2)
    assert promises(trace).cleared_for[1] == cleared_for
    assert soundness(trace, BASE + " +ptep_get_and_clear", "direct").sound


def test_xen_keeps_accessed_and_dirty_bits_of_a_write_protection():
    trace = stream((Op.SET_PTE, {"value": CLEAN}), (Op.PTE_WRPROTECT, {"value": READ_ONLY}),
                   vcpus=2)  # fmt: skip
    assert soundness(trace, BASE + " +ptep_set_wrprotect", "direct").sound
    older = "direct:backend=2.6.23"
    by_address = effects_table(get_mode(older))
    assert (by_address[Op.PTE_CLEAR_YOUNG] & Effect.APART).any()


def test_dies():
    trace = stream((Op.SET_PMD, {"table": 8, "index": 1, "value": 0x9067}))
    found = soundness(trace, BASE + " -set_pmd", "direct")
    assert (found.level, found.findings[0].row) == (Level.DIES, 0)
    assert (
        found.text == "dies: an unhooked store to an upper-level table of a pinned tree (set_pmd)"
    )


# ---------------------------------------------------------------- many streams, words
def test_the_worst_of_many_streams():
    sound = stream(STORE)
    lost = bracket(CLEAR, STORE)
    hooks = "linux-6.1 -set_pte -set_pte_at +ptep_get_and_clear"
    assert soundness_over([sound], hooks, "direct").sound
    found = soundness_over([sound, lost], hooks, "direct")
    assert found.level == Level.CORRUPTS
    json = found.to_json()
    assert json["verdict"] == "corrupts"
    assert [f["kind"] for f in json["findings"]] == [f.kind.words for f in found.findings]


def test_levels_are_spelled_as_they_read():
    for level in Level:
        assert Level.parse(level.words) is level
    assert Level.SOUND_ON_ONE_CPU.words == "sound on one CPU"
    with pytest.raises(TraceError, match="no verdict 'fine'"):
        Level.parse("fine")


def test_modes_without_a_queue_are_sound():
    trace = bracket(CLEAR, STORE, CLEAR)
    for mode in ("native", "nested"):
        assert not effects_table(get_mode(mode)).any()
        assert soundness(trace, HookSet.every(), mode).sound


def test_a_recording_under_its_own_hooks_is_sound():
    for name in ("fork.16", "mprotect.16", "dontneed.16", "make"):
        assert soundness(recorded(name), BASE, "direct").sound, name


def test_dontneed_reads_back_each_page():
    """TRAP records of a real guest (data/truth/designs): once per page of MADV_DONTNEED."""
    trace = recorded("dontneed.64")
    assert promises(trace).read_back.sum() == 64
    assert not promises(recorded("mmap.16")).read_back.any()


# ---------------------------------------------------------------- against the twin
WORDS = {e: e.name.lower() for e in Effect}
_step = st.fixed_dictionaries(
    {
        "cpu": st.integers(0, 1),
        "entry": st.sampled_from([None, 0, 1, 2]),
        "value": st.integers(0, 2),
        "how": st.sampled_from(
            [0, Effect.NOW, Effect.WAITS, Effect.WAITS | Effect.APART, Effect.TOLD, Effect.OPENS,
             Effect.OPENS, Effect.CLOSES, Effect.SENDS, Effect.PEEKS]
        ),
        **{k: st.sampled_from([False, False, False, True])
           for k in ("reads", "read_back", "walks", "unlocks", "loses_dirty", "commits")},
    }
)  # fmt: skip


@examples(400)
@given(st.lists(_step, max_size=30))
def test_random_queues_and_traps(rows):
    twin = TwoImages().run(
        Step(**r | {"how": frozenset(w for e, w in WORDS.items() if r["how"] & e)}) for r in rows
    )
    table = np.zeros((N_OPS, 256), np.uint8)
    commit = int(Op.MODIFY_PROT_COMMIT)
    table[0], table[commit] = np.arange(256), np.arange(256)
    bits = {"reads": READS, "read_back": READ_BACK, "walks": WALKS, "unlocks": UNLOCKS,
            "loses_dirty": LOSES_DIRTY}  # fmt: skip
    got = first_conflicts(
        table, np.array([commit * r["commits"] for r in rows], np.uint8),
        np.array([r["how"] for r in rows], np.uint8),
        np.array([sum(b for k, b in bits.items() if r[k]) for r in rows], np.uint8),
        np.array([-1 if r["entry"] is None else r["entry"] for r in rows], np.int32),
        np.array([r["value"] for r in rows], np.uint64),
        np.array([r["cpu"] for r in rows], np.uint8), 3, 2,
    )  # fmt: skip
    assert tuple(got[LOST]) == (twin.lost or (-1, -1))
    assert tuple(got[STALE]) == (twin.stale or (-1, -1))
    assert got[APART, 0] == (-1 if twin.apart is None else twin.apart)


#: What mechanisms of direct mode mean, said again in words.
DIRECT = {
    "store": {"now"}, "locked": {"now"}, "trap": {"now"}, "mmu update": {"waits"},
    "update va": {"waits"}, "lazy bracket": {"opens"}, "lazy bracket end": {"closes"},
}  # fmt: skip
_entry_ops = st.sampled_from(
    [Op.SET_PTE, Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.MODIFY_PROT_START,
     Op.MODIFY_PROT_COMMIT, Op.PTE_CLEAR, Op.LAZY_ENTER]
)  # fmt: skip
_hooks = st.sets(
    st.sampled_from(
        ["set_pte", "ptep_get_and_clear", "ptep_set_wrprotect", "ptep_modify_prot", "lazy_mmu"]
    )
)


@examples(150)
@given(
    st.lists(st.tuples(_entry_ops, st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=20),
    _hooks,
)
def test_random_streams_in_direct_mode(rows, hooks):
    b = TraceBuilder()
    mm = b.mm("a process", older=True)
    steps, is_open = [], False
    for op, index, value in rows:
        if op == Op.LAZY_ENTER:
            op = Op.LAZY_LEAVE if is_open else op
            is_open = not is_open
            b.add(op, mm=mm)
        else:
            value = 0 if op in (Op.PTE_GET_AND_CLEAR, Op.PTE_CLEAR) else value
            b.add(op, mm=mm, table=7, index=index, va=index << 12, value=value)
        steps.append((op, index, value))
    if is_open:
        b.add(Op.LAZY_LEAVE, mm=mm)
        steps.append((Op.LAZY_LEAVE, 0, 0))
    trace = b.build(Provenance("random"))
    hooked = HookSet.of("pte_val", *hooks)
    mode = get_mode("direct")
    outcome = mode.run(trace, hooked)
    twin = TwoImages().run(
        Step(
            entry=i if op.name.startswith(("SET", "PTE", "MODIFY")) else None, value=v,
            reads=op.name in READING,
            how=frozenset(DIRECT.get(outcome.names[int(m)], set())),
        )
        for (op, i, v), m in zip(steps, outcome.mechanism, strict=True)
    )  # fmt: skip
    found = {f.kind: (f.row, f.other) for f in judge(trace, mode, outcome).findings}
    assert found.get(Kind.LOST_UPDATE) == twin.lost
    assert found.get(Kind.STALE_READ) == twin.stale
