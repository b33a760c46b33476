"""The rules of direct mode: what carries each operation, hooked or not, on each kind of table.

The kind of a row is its operation and the state of its table: pinned or not, of the running task's
address space or not. Rows at which an address space is pinned or unpinned are kinds of their own.

Source: Linux 6.1 arch/x86/xen/mmu_pv.c; Xen 4.17 xen/arch/x86/pv/ro-page-fault.c; older backends:
data/hooks/backends.toml.
"""

from __future__ import annotations

import functools
from typing import Final

from pvmmu.guest.provenance import Platform
from pvmmu.guest.vocabulary import ALLOC_OPS, N_OPS, OPS, RELEASE_OPS, Op
from pvmmu.modes.direct.backends import Rules
from pvmmu.modes.direct.kernel import Mechanism as M
from pvmmu.modes.rules import As, Cannot, Rule, Step, Table

#: Hooks that decide when tables are pinned.
PINNING: Final = ("activate_mm", "dup_mmap", "exit_mmap")
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
#: States of a row: bit 0, its table is pinned; bit 1, the address space is the running task's.
PINNED, CURRENT = 1, 2
STATES: Final = (0, PINNED, CURRENT, PINNED | CURRENT)
# Kinds beside those of (operation, state): a root is pinned as it is made, or made with one for
# user mode; tables are pinned when they are complete, or at the first load of CR3; unpinned when
# the process exits, or as the root is freed; a flush that an update took with it; a flush of a page
# that only a kernel without flush_tlb_multi has.
(
    BORN_PINNED, BORN_TWICE, PINNED_LATE, PINNED_AT_LOAD, UNPINNED, FREED_PINNED, FOLDED,
    NATIVE_FLUSH_ONE,
) = range(4 * N_OPS, 4 * N_OPS + 8)  # fmt: skip
_NO_LOAD: Final = Cannot(
    "a 64-bit guest's user page tables have no instruction to trap (write_cr3)"
)
_NO_INVLPG: Final = Cannot("INVLPG is not emulated: the guest gets the #GP (flush_tlb_one_user)")
_NO_ROOT: Final = Cannot("a new top-level table is never announced (pgd_alloc)")


def kind(op: Op, state: int) -> int:
    """Return the kind of a row of `op` on a table in `state`."""
    return 4 * int(op) + state


def _by_state(op: Op, plain: Step, pinned: Step) -> dict[int, Step]:
    return {kind(op, s): pinned if s & PINNED else plain for s in STATES}


def _always(op: Op, step: Step) -> dict[int, Step]:
    return _by_state(op, step, step)


class _Entries:
    """Rules of operations on entries of level 1 for a backend, on a platform."""

    def __init__(self, platform: Platform, rules: Rules, refuse: bool) -> None:
        self.rules, self.refuse = rules, refuse
        self.addressed = rules.addressed(platform)

    def trap(self, op: Op) -> Step:
        """What a store that no hook carries becomes on a pinned table."""
        return Cannot(f"a store to a typed table is refused ({op.name})") if self.refuse else M.TRAP

    def hooked(self, op: Op, plain: M, name: str, ranged: str = "", as_op: Op | None = None
               ) -> dict[int, Step]:  # fmt: skip
        """An operation with a hook, and perhaps one for a range: by request, or by address.

        `as_op` says whose rules they are, if `op` is carried as another operation.
        """
        trap = self.trap(op)
        request = Rule((name, ranged) if ranged else (name,), M.MMU_UPDATE, trap)
        if (as_op or op) not in self.addressed:
            return _by_state(op, plain, request)
        in_range = Rule((ranged,), M.MMU_UPDATE, trap) if ranged else trap
        return {
            kind(op, 0): plain,
            kind(op, CURRENT): Rule((name,), M.UPDATE_VA, plain),
            kind(op, PINNED): Rule((name,), trap, in_range),
            kind(op, PINNED | CURRENT): Rule((name,), M.UPDATE_VA, in_range),
        }

    def store(self, op: Op) -> dict[int, Step]:
        """A store, pinned table or not: the backend's set_pte, or its set_pte_at."""
        if self.rules.update_by_request:
            names = ("set_pte", "set_ptes", "set_pte_at")
            plain, trap = Rule(names, M.MMU_UPDATE, M.STORE), self.trap(op)
            return _by_state(op, plain, Rule(names, M.MMU_UPDATE, trap))
        # a store by the pointer alone is a plain store
        return self.hooked(op, M.STORE, "set_pte_at", "set_ptes", Op.SET_PTE)

    def clear(self, op: Op) -> dict[int, Step]:
        """Read an entry and clear it."""
        hooks = ("ptep_get_and_clear", "get_and_clear_ptes")
        return self.hooked(op, M.LOCKED, *hooks, Op.PTE_GET_AND_CLEAR)

    def in_place(self) -> dict[int, Step]:
        """A change in place that no hook covers."""
        if not self.rules.establish:
            return _by_state(Op.PTE_RMW, M.LOCKED, self.trap(Op.PTE_RMW))
        by_address = {kind(Op.PTE_RMW, s): M.UPDATE_VA_FLUSH for s in STATES if s & CURRENT}
        return _always(Op.PTE_RMW, M.MMU_UPDATE) | by_address

    def table(self) -> dict[int, Step]:
        """All of them."""
        prot = Rule(("ptep_modify_prot",), M.MMU_UPDATE, M.NOTHING)
        out = self.store(Op.SET_PTE) | self.clear(Op.PTE_GET_AND_CLEAR) | self.in_place()
        out |= self.hooked(Op.PTE_WRPROTECT, M.LOCKED, "ptep_set_wrprotect", "wrprotect_ptes")
        out |= self.hooked(Op.PTE_CLEAR_YOUNG, M.LOCKED, "ptep_test_and_clear_young")
        if self.rules.clear_by_request or Op.PTE_CLEAR in self.addressed:
            out |= self.hooked(Op.PTE_CLEAR, M.STORE, "pte_clear")
        else:
            out |= _by_state(Op.PTE_CLEAR, M.STORE, self.trap(Op.PTE_CLEAR))
        # the default of a protection change: clear, then store, each hooked or not
        for k, step in self.clear(Op.MODIFY_PROT_START).items():
            out[k] = Rule(prot.hooks, M.NOTHING, step)
        for k, step in self.store(Op.MODIFY_PROT_COMMIT).items():
            out[k] = Rule(prot.hooks, M.MMU_UPDATE, step)
        return out


def _upper(op: Op, name: str, platform: Platform, rules: Rules) -> dict[int, Step]:
    """A store to an upper entry: a 64-bit guest has two top-level tables."""
    top = OPS[op].level == platform.levels and platform.user_root
    hooked = M.MMU_UPDATE_TWICE if top else M.MMU_UPDATE
    if_clears = M.UPDATE_IF_CLEARS_TWICE if top else M.UPDATE_IF_CLEARS
    plain = {"store": M.STORE, "request": hooked, "clear": if_clears}[rules.upper]
    why = Cannot(f"an unhooked store to an upper-level table of a pinned tree ({name})")
    return _by_state(op, Rule((name,), plain, M.STORE), Rule((name,), hooked, why))


def _pages() -> dict[int, Step]:
    """Table pages that come and go in a pinned tree."""
    out: dict[int, Step] = {}
    for op, name in _ALLOC.items():
        why = Cannot(f"a new {op.name[6:]} table is never announced ({name})")
        out |= _by_state(op, M.NOTHING, Rule((name,), M.ANNOUNCE, why))
    for op, name in _RELEASE.items():
        why = Cannot(f"a {op.name[8:]} table is freed while typed ({name})")
        out |= _by_state(op, M.NOTHING, Rule((name,), M.DISMISS, why))
    return out


def _registers_and_flushes(platform: Platform) -> dict[int, Step]:
    """What does not depend on tables."""
    load = _NO_LOAD if platform.user_root else M.PRIVOP
    steps: dict[Op, Step] = {
        Op.READ_CR2: Rule(("read_cr2",), M.NOTHING, M.PRIVOP),
        Op.READ_CR3: Rule(("read_cr3",), M.NOTHING, M.PRIVOP),
        # natively CR3 is read and written, or CR4 written twice (Linux 6.1 arch/x86/mm/tlb.c:
        # native_flush_tlb_local; arch/x86/include/asm/tlbflush.h: __native_tlb_flush_global)
        Op.FLUSH_USER: Rule(("flush_tlb_user",), M.FLUSH_CALL, M.PRIVOP_TWICE),
        Op.FLUSH_KERNEL: Rule(("flush_tlb_kernel",), M.FLUSH_CALL, M.PRIVOP_TWICE),
        Op.FLUSH_ONE: Rule(("flush_tlb_one_user",), M.FLUSH_CALL, _NO_INVLPG),
        Op.LOAD_CR3: Rule(("write_cr3",), M.CR3_CALL, load),
        Op.FLUSH_OTHERS: Rule(("flush_tlb_multi",), M.FLUSH_CALL_MULTI, M.NOTHING),
        Op.SEND_IPI: M.EVENT_CHANNEL,
        Op.FAULT: M.FAULT,
        Op.SWITCH_START: Rule(("context_switch",), M.SWITCH_BRACKET, M.NOTHING),
        Op.SWITCH_END: Rule(("context_switch",), M.SWITCH_BRACKET_END, M.NOTHING),
    }
    steps |= dict.fromkeys(
        (Op.LAZY_ENTER, Op.LAZY_RESUME), Rule(("lazy_mmu",), M.LAZY_BRACKET, M.NOTHING)
    )
    steps |= dict.fromkeys(
        (Op.LAZY_LEAVE, Op.LAZY_PAUSE), Rule(("lazy_mmu",), M.LAZY_BRACKET_END, M.NOTHING)
    )
    out: dict[int, Step] = {}
    for op, step in steps.items():
        out |= _always(op, step)
    return out


@functools.cache
def direct_table(platform: Platform, rules: Rules, refuse: bool) -> Table:
    """Return the table of direct mode.

    Parameters
    ----------
    platform : Platform
        What the guest sees.
    rules : Rules
        Of the backend.
    refuse : bool
        A store that no hook carries to a pinned table is refused.
    """
    out = _Entries(platform, rules, refuse).table() | _pages() | _registers_and_flushes(platform)
    for op, name in _UPPER.items():
        out |= _upper(op, name, platform, rules)
    why = Cannot("a pinned top-level table is freed (exit_mmap, pgd_alloc)")
    return out | {
        BORN_PINNED: Rule(("pgd_alloc",), M.PIN_ROOT, _NO_ROOT),
        BORN_TWICE: Rule(("pgd_alloc",), M.NOTHING, _NO_ROOT),
        PINNED_LATE: M.PIN,
        PINNED_AT_LOAD: Rule(("write_cr3",), M.PIN, _NO_LOAD),
        UNPINNED: M.UNPIN,
        FREED_PINNED: Rule(("pgd_alloc",), M.UNPIN_ROOT, why),
        FOLDED: M.FOLDED,
        NATIVE_FLUSH_ONE: Rule(("flush_tlb_multi",), M.NOTHING, As(kind(Op.FLUSH_ONE, 0))),
    }
