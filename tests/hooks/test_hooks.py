"""The catalogue, sets of hooks, and the interfaces of the past."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from pvmmu.errors import HookError
from pvmmu.guest.trace import Op, Provenance
from pvmmu.hooks import HookSet, catalogue, interfaces, member_table, members
from pvmmu.hooks.callsites import callsite_kernels, callsites
from pvmmu.hooks.catalogue import release_number

NAMES = list(catalogue())
sets = st.integers(0, 2 ** len(NAMES) - 1).map(HookSet)


@given(a=sets, b=sets)
def test_algebra_is_that_of_sets(a, b):
    x, y = set(a), set(b)
    assert set(a | b) == x | y
    assert set(a & b) == x & y
    assert set(a - b) == x - y
    assert set(a ^ b) == x ^ y
    assert (a <= b) == (x <= y)
    assert len(a) == len(x)
    assert all((n in a) == (n in x) for n in NAMES)


@given(a=sets)
def test_every_set_can_be_written_and_read(a):
    assert HookSet.parse(a.short) == a
    assert HookSet.parse(f"{a.mask:#x}") == a
    assert HookSet.parse(list(a)) == a


def test_masks_are_stable():
    """Stored results depend on these numbers."""
    assert [h.bit for h in catalogue().values()] == list(range(35))
    assert HookSet.of("set_pte", "exit_mmap").mask == 1 | 1 << 33
    assert HookSet.parse("linux-6.1").mask == 0x3FFFFFC01


def test_parsing():
    low = HookSet.parse("linux-6.1 +ptep_get_and_clear -lazy_mmu")
    assert "ptep_get_and_clear" in low
    assert "lazy_mmu" not in low
    assert HookSet.parse("set_pte+set_pmd") == HookSet.of("set_pte", "set_pmd")
    assert HookSet.parse("set_pte + set_pmd - set_pte").names == ("set_pmd",)
    assert HookSet.parse("flush_tlb_others") == HookSet.of("flush_tlb_multi")
    assert HookSet.parse("enter_mmap").names == ("activate_mm", "dup_mmap")
    assert HookSet.parse("none") == HookSet()
    assert HookSet.parse("arch_enter_lazy_mmu_mode").names == ("lazy_mmu",)


@pytest.mark.parametrize(
    ("text", "near"), [("set_ptr", "set_pte"), ("linux-6.2", "linux-6."), ("lazy", "lazy_mmu")]
)
def test_an_unknown_name_gets_the_nearest(text, near):
    with pytest.raises(HookError, match="did you mean") as e:
        HookSet.parse(text)
    assert near in str(e.value)


def test_masks_outside_the_catalogue_are_refused():
    with pytest.raises(HookError, match="no hook"):
        HookSet(1 << 60)
    with pytest.raises(HookError, match="no hook"):
        HookSet(-1)


def test_every_hook_says_what_where_and_since_when():
    for hook in catalogue().values():
        assert hook.level in ("low", "high")
        assert hook.operations
        assert hook.source
        assert hook.meaning
        assert all(d in catalogue() for d in hook.default)
        assert hook.implementers or not hook.was_merged or hook.name == "pte_clear"


def test_what_was_never_hooked_is_there():
    never = {n for n, h in catalogue().items() if not h.was_merged}
    assert never == {
        "set_ptes", "ptep_get_and_clear", "get_and_clear_ptes", "ptep_set_wrprotect",
        "wrprotect_ptes", "ptep_test_and_clear_young",
    }  # fmt: skip


def test_every_operation_but_events_is_covered_by_some_hook():
    covered = {op for h in catalogue().values() for op in h.operations}
    bare = {
        Op.ZERO_TABLE, Op.FLUSH_RANGE, Op.SEND_IPI, Op.FAULT, Op.KERNEL_ENTRY,
        Op.KERNEL_EXIT, Op.PREEMPT, Op.TOUCH, Op.MARK,
    }  # fmt: skip
    assert set(Op) - covered == bare - {Op.PTE_RMW}


def test_interfaces_of_the_past():
    have = set(interfaces())
    assert have >= {
        "none", "vmi", "xen-2.6.23", "xen-2.6.27", "kvm-pvmmu", "lguest", "linux-2.6.20",
        "linux-2.6.21", "linux-2.6.22", "linux-2.6.27", "linux-6.1", "linux-6.12",
    }  # fmt: skip
    era = {n: tuple(map(int, i.kernel.split("."))) for n, i in interfaces().items() if i.kernel}
    for name, interface in interfaces().items():
        assert interface.source
        outside = name.startswith("xenlinux")  # of the kernel: some of its accessors never came in
        for hook in interface.hooks:
            assert catalogue()[hook].was_merged or outside, (name, hook)
    assert era["vmi"] < era["xen-2.6.27"] < era["linux-6.1"]
    assert interfaces()["xen-2.6.23"].hooks | HookSet.of("ptep_modify_prot") == (
        interfaces()["xen-2.6.27"].hooks
    )


def test_counterfactual():
    modern, old = Provenance("x", "6.1.192-2"), Provenance("x", "2.6.27")
    assert not HookSet.parse("linux-6.1").counterfactual(modern)
    assert HookSet.parse("vmi").counterfactual(modern)  # pte_update is gone
    assert HookSet.parse("ptep_get_and_clear").counterfactual(modern)  # never merged
    assert HookSet.parse("ptep_modify_prot").counterfactual(Provenance("x", "2.6.22"))
    assert not HookSet.parse("ptep_modify_prot").counterfactual(old)
    assert not HookSet().counterfactual(modern)
    assert HookSet.parse("set_pte").counterfactual(Provenance("x"))  # an unknown kernel


def test_call_sites():
    kernels = callsite_kernels()
    assert kernels[0] == "2.6.18"
    assert kernels[-1] == "6.18.35"
    sites = callsites("set_pte_at+lazy_mmu", "2.6.27")
    assert sites.loc["set_pte_at", "generic"] == 22 + 1 + 4
    assert sites.loc["lazy_mmu"].to_dict() == {"generic": 10, "x86": 6, "files": 3, "members": 3}
    with pytest.raises(HookError, match="were not counted"):
        callsites("set_pte", "5.4")
    assert callsites("none").empty


def test_low_level_part():
    low = HookSet.parse("linux-6.1").low
    assert "set_pte" in low
    assert not set(low) & {"lazy_mmu", "exit_mmap", "dup_mmap", "flush_tlb_multi"}


def test_members_and_hooks_tell_one_story():
    """A hook lives from the first of its members to the last."""
    everything = members()
    for name, hook in catalogue().items():
        mine = [m for m in everything.values() if name in m.hooks and m.merged != "never"]
        if not hook.was_merged:
            assert not mine, name
            continue
        assert min((m.merged for m in mine), key=release_number) == hook.merged, name
        gone = "" if any(not m.removed for m in mine) else max(
            (m.removed for m in mine), key=release_number
        )  # fmt: skip
        assert gone == hook.removed, name
        for member in hook.members:
            short = member.removeprefix("lazy_mode.") if member.startswith("lazy_mode") else member
            assert short in everything or member.startswith("lazy_mode"), member


def test_members_say_by_what_they_came_and_went():
    table = member_table()
    assert len(table) == 70
    for name, m in members().items():
        assert all(h in catalogue() for h in m.hooks), name
        assert m.by or "not" in m.remark, f"{name}: no commit, and no word of it"
        assert m.removed_by or not m.removed or "not" in m.remark, name
        if m.removed and m.merged != "never":
            assert release_number(m.merged) < release_number(m.removed), name
    assert members()["pte_update"].removed == "4.14"
    assert members()["pte_update_defer"].removed == "4.5"
    assert members()["ptep_get_and_clear"].implementers == ("xen-rfc-2007",)
    assert members()["set_fixmap"].life == "Linux 2.6.27 to today"


def test_members_are_understood_as_their_hooks():
    assert HookSet.parse("set_pmd_at").names == ("set_pmd",)
    assert HookSet.parse("pmd_update+set_pte_atomic").names == ("set_pte", "pte_update")
    with pytest.raises(HookError, match=r"set_fixmap is a member .*2\.6\.27 to today.* no"):
        HookSet.parse("set_fixmap")
