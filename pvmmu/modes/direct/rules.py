"""The rules of direct mode: what carries each operation, hooked or not, on each kind of table."""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu.guest.provenance import Platform
from pvmmu.guest.vocabulary import ALLOC_OPS, N_OPS, OPS, RELEASE_OPS, Op
from pvmmu.hooks import HookSet
from pvmmu.modes.direct.backends import Rules
from pvmmu.modes.direct.kernel import Mechanism

#: Hooks that decide when tables are typed.
PINNING: Final = ("activate_mm", "dup_mmap", "exit_mmap")
#: The other hooks that direct mode reads, in groups that act independently of each other.
SWITCHES: Final = (
    ("pte_val",),
    ("pgd_alloc",),
    # the default of a protection change is a clear and a store, each hooked or not
    ("set_pte", "set_pte_at", "set_ptes", "ptep_get_and_clear", "get_and_clear_ptes",
     "ptep_modify_prot"),
    ("ptep_set_wrprotect", "wrprotect_ptes"),
    ("ptep_test_and_clear_young",), ("pte_clear",), ("set_pmd",), ("set_pud",), ("set_p4d",),
    ("alloc_pte",), ("alloc_pmd",), ("alloc_pud",), ("release_pte",), ("release_pmd",),
    ("release_pud",), ("write_cr3",), ("read_cr2",), ("read_cr3",), ("flush_tlb_user",),
    ("flush_tlb_kernel",), ("lazy_mmu",), ("context_switch",),
    # behind a flush of several CPUs stand flushes of pages
    ("flush_tlb_one_user", "flush_tlb_multi"),
)  # fmt: skip
HOOKS: Final = (*PINNING, *(name for switch in SWITCHES for name in switch))
#: A range hook, the operation it covers, and the hook of one entry that it stands for.
RANGES: Final = (
    ("set_ptes", Op.SET_PTE),
    ("get_and_clear_ptes", Op.PTE_GET_AND_CLEAR),
    ("wrprotect_ptes", Op.PTE_WRPROTECT),
)
_UPPER: Final = {
    Op.SET_PMD: "set_pmd", Op.SET_PUD: "set_pud", Op.SET_P4D: "set_p4d", Op.SET_PGD: "set_p4d",
}  # fmt: skip
_ALLOC: Final = dict(
    zip(ALLOC_OPS, ("alloc_pte", "alloc_pmd", "alloc_pud", "alloc_pud"), strict=True)
)
_RELEASE: Final = dict(
    zip(RELEASE_OPS, ("release_pte", "release_pmd", "release_pud", "release_pud"), strict=True)
)
UNTRANSLATED: Final = "frames are never translated to machine frames (pte_val, make_pte)"
# States of a row: bit 0, its table is typed; bit 1, the address space is the running task's.
TYPED, CURRENT = 1, 2


def mechanism_table(
    hooks: HookSet, platform: Platform, rules: Rules, *, refuse: bool
) -> np.ndarray:
    """Return the mechanism of each operation in each state.

    Parameters
    ----------
    hooks : HookSet
        What the kernel calls through the ops structure.
    platform : Platform
        What the guest sees.
    rules : Rules
        Of the backend.
    refuse : bool
        A store that no hook carries to a typed table is refused.

    Returns
    -------
    uint8[N_OPS, 4]
        `Mechanism` numbers; the second index is a sum of `TYPED` and `CURRENT`.
    """
    out = np.full((N_OPS, 4), Mechanism.NOTHING, np.uint8)
    trap = Mechanism.MISSING if refuse else Mechanism.TRAP

    def put(op: Op, plain: Mechanism, typed: Mechanism) -> None:
        out[op, [0, CURRENT]], out[op, [TYPED, TYPED | CURRENT]] = plain, typed

    addressed = rules.addressed(platform)

    def put_hooked(
        op: Op, name: str, ranged: str = "", plain: Mechanism = Mechanism.LOCKED
    ) -> None:
        """Fill in an operation on entries that has a hook, and perhaps one for a range."""
        put(op, plain, Mechanism.MMU_UPDATE if {name, ranged} & set(hooks) else trap)
        if name in hooks and op in addressed:
            put(op, plain, trap)
            out[op, [CURRENT, TYPED | CURRENT]] = Mechanism.UPDATE_VA

    if rules.update_by_request:
        put(Op.SET_PTE, Mechanism.STORE, trap)
        if {"set_pte", "set_ptes", "set_pte_at"} & set(hooks):
            put(Op.SET_PTE, Mechanism.MMU_UPDATE, Mechanism.MMU_UPDATE)
    else:  # a store by the pointer alone is a plain store
        put_hooked(Op.SET_PTE, "set_pte_at", "set_ptes", Mechanism.STORE)
    put_hooked(Op.PTE_GET_AND_CLEAR, "ptep_get_and_clear", "get_and_clear_ptes")
    put_hooked(Op.PTE_WRPROTECT, "ptep_set_wrprotect", "wrprotect_ptes")
    put_hooked(Op.PTE_CLEAR_YOUNG, "ptep_test_and_clear_young")
    put(Op.PTE_RMW, Mechanism.LOCKED, trap)
    if rules.establish:
        put(Op.PTE_RMW, Mechanism.MMU_UPDATE, Mechanism.MMU_UPDATE)
        out[Op.PTE_RMW, [CURRENT, TYPED | CURRENT]] = Mechanism.UPDATE_VA_FLUSH
    put(Op.PTE_CLEAR, Mechanism.STORE, trap)
    if rules.clear_by_request or Op.PTE_CLEAR in addressed:
        put_hooked(Op.PTE_CLEAR, "pte_clear", plain=Mechanism.STORE)
    if "ptep_modify_prot" in hooks:
        put(Op.MODIFY_PROT_COMMIT, Mechanism.MMU_UPDATE, Mechanism.MMU_UPDATE)
    else:  # the default: clear, then store, each hooked or not
        out[Op.MODIFY_PROT_START] = out[Op.PTE_GET_AND_CLEAR]
        out[Op.MODIFY_PROT_COMMIT] = out[Op.SET_PTE]
    for op, name in _UPPER.items():
        top = OPS[op].level == platform.levels and platform.user_root
        hooked = Mechanism.MMU_UPDATE_TWICE if top else Mechanism.MMU_UPDATE
        if_clears = Mechanism.UPDATE_IF_CLEARS_TWICE if top else Mechanism.UPDATE_IF_CLEARS
        untyped = {"store": Mechanism.STORE, "request": hooked, "clear": if_clears}[rules.upper]
        if name in hooks:
            put(op, untyped, hooked)
        else:
            put(op, Mechanism.STORE, Mechanism.MISSING)
    for op, name in _ALLOC.items():
        put(op, Mechanism.NOTHING, Mechanism.ANNOUNCE if name in hooks else Mechanism.MISSING)
    for op, name in _RELEASE.items():
        put(op, Mechanism.NOTHING, Mechanism.DISMISS if name in hooks else Mechanism.MISSING)
    _registers_and_flushes(hooks, platform, out)
    return out


def _registers_and_flushes(hooks: HookSet, platform: Platform, out: np.ndarray) -> None:
    """Fill in what does not depend on tables."""
    privileged = {
        Op.READ_CR2: ("read_cr2", Mechanism.NOTHING, Mechanism.PRIVOP),
        Op.READ_CR3: ("read_cr3", Mechanism.NOTHING, Mechanism.PRIVOP),
        # natively CR3 is read and written, or CR4 written twice (Linux 6.1 arch/x86/mm/tlb.c:
        # native_flush_tlb_local; arch/x86/include/asm/tlbflush.h: __native_tlb_flush_global)
        Op.FLUSH_USER: ("flush_tlb_user", Mechanism.FLUSH_CALL, Mechanism.PRIVOP_TWICE),
        Op.FLUSH_KERNEL: ("flush_tlb_kernel", Mechanism.FLUSH_CALL, Mechanism.PRIVOP_TWICE),
        Op.FLUSH_ONE: ("flush_tlb_one_user", Mechanism.FLUSH_CALL, Mechanism.MISSING),
        Op.LOAD_CR3: ("write_cr3", Mechanism.CR3_CALL, Mechanism.PRIVOP),
    }
    for op, (name, hooked, native) in privileged.items():
        out[op] = hooked if name in hooks else native
    if "write_cr3" not in hooks and platform.user_root:
        out[Op.LOAD_CR3] = Mechanism.MISSING
    if "flush_tlb_multi" in hooks:
        out[Op.FLUSH_OTHERS] = Mechanism.FLUSH_CALL_MULTI
    out[Op.SEND_IPI] = Mechanism.EVENT_CHANNEL
    out[Op.FAULT] = Mechanism.FAULT
    if "lazy_mmu" in hooks:
        out[[Op.LAZY_ENTER, Op.LAZY_RESUME]] = Mechanism.LAZY_BRACKET
        out[[Op.LAZY_LEAVE, Op.LAZY_PAUSE]] = Mechanism.LAZY_BRACKET_END
    if "context_switch" in hooks:
        out[Op.SWITCH_START] = Mechanism.SWITCH_BRACKET
        out[Op.SWITCH_END] = Mechanism.SWITCH_BRACKET_END


def why_missing(op: Op) -> str:
    """Say why an operation cannot be carried."""
    if op in _UPPER:
        return f"an unhooked store to an upper-level table of a pinned tree ({_UPPER[op]})"
    if op in _ALLOC:
        return f"a new {op.name[6:]} table is never announced ({_ALLOC[op]})"
    if op in _RELEASE:
        return f"a {op.name[8:]} table is freed while typed ({_RELEASE[op]})"
    if op == Op.FLUSH_ONE:
        return "INVLPG is not emulated: the guest gets the #GP (flush_tlb_one_user)"
    if op == Op.LOAD_CR3:
        return "a 64-bit guest's user page tables have no instruction to trap (write_cr3)"
    if op == Op.PGD_ALLOC:
        return "a new top-level table is never announced (pgd_alloc)"
    if op == Op.PGD_FREE:
        return "a pinned top-level table is freed (exit_mmap, pgd_alloc)"
    return f"a store to a typed table is refused ({op.name})"
