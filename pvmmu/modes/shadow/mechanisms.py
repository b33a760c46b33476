"""What each operation is to a hypervisor that shadows tables, hooked or not.

A hook is taken as the cooperative interfaces of the past implemented it:

* a hooked store or change of an entry is a hypercall, which carries the entry over to the shadow
  (KVM_HC_MMU_OP, MMU_OP_WRITE_PTE); in a lazy MMU bracket it waits in a queue of 42 (1024 bytes of
  24-byte requests, Linux v2.6.27 arch/x86/kernel/kvm.c);
* a released table is unshadowed (MMU_OP_RELEASE_PT);
* an announced table (``alloc_pte`` and kin) is nothing to a shadow: the announcement comes when the
  page is zeroed already, and nobody has shadowed it yet. Nor is ``pte_update``, which tells of what
  was done in place: a table that is write-protected has trapped, one that is not will be
  synchronized. No backend for shadows with write protection implemented either;
* a hooked flush or load of CR3 is a hypercall instead of one or two intercepted instructions;
  ``read_cr3`` and ``read_cr2`` are read from memory that guest and hypervisor share;
* ``exit_mmap`` announces a dying process (HVMOP_pagetable_dying, Linux 6.1 arch/x86/xen/mmu_hvm.c).
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final

from pvmmu.guest.vocabulary import Op
from pvmmu.modes.rules import As, Rule, Table

#: Requests that the queue of a lazy MMU bracket takes (Linux v2.6.27 arch/x86/kernel/kvm.c).
QUEUE: Final = 42


@unique
class Mechanism(IntEnum):
    """What carries an operation in shadow mode."""

    NOTHING = 0
    STORE = 1
    ZERO = 2
    TOUCH = 3
    FAULT = 4
    LOAD_CR3 = 5
    FLUSH_ALL = 6
    FLUSH_GLOBAL = 7
    FLUSH_ONE = 8
    READ_CR3 = 9
    KERNEL_ENTRY = 10
    KERNEL_EXIT = 11
    IPI = 12
    CALL_STORE = 21
    CALL_UNSHADOW = 22
    CALL_DYING = 23
    CALL_LOAD_CR3 = 24
    CALL_FLUSH_ALL = 25
    CALL_FLUSH_ONE = 26
    CALL_FLUSH_MULTI = 27
    BRACKET = 30
    BRACKET_END = 31


_STORES: Final = {
    Op.SET_PTE: ("set_pte", "set_pte_at", "set_ptes"),
    Op.PTE_CLEAR: ("pte_clear",),
    Op.PTE_GET_AND_CLEAR: ("ptep_get_and_clear", "get_and_clear_ptes"),
    Op.PTE_WRPROTECT: ("ptep_set_wrprotect", "wrprotect_ptes"),
    Op.PTE_CLEAR_YOUNG: ("ptep_test_and_clear_young",),
    Op.PTE_RMW: (),
    Op.SET_PMD: ("set_pmd",),
    Op.SET_PUD: ("set_pud",),
    Op.SET_P4D: ("set_p4d",),
    Op.SET_PGD: ("set_p4d",),
}


def _hooked(hook: str, hooked: Mechanism, unhooked: Mechanism = Mechanism.NOTHING) -> Rule:
    return Rule((hook,), hooked, unhooked)


RULES: Final[Table] = {
    **{op: Rule(hooks, Mechanism.CALL_STORE, Mechanism.STORE) for op, hooks in _STORES.items()},
    # the default of a protection change is a clear and a store, each hooked or not
    Op.MODIFY_PROT_START: Rule(("ptep_modify_prot",), Mechanism.NOTHING, As(Op.PTE_GET_AND_CLEAR)),
    Op.MODIFY_PROT_COMMIT: Rule(("ptep_modify_prot",), Mechanism.CALL_STORE, As(Op.SET_PTE)),
    Op.ZERO_TABLE: Mechanism.ZERO,
    Op.PGD_ALLOC: Mechanism.ZERO,
    Op.RELEASE_PTE: _hooked("release_pte", Mechanism.CALL_UNSHADOW),
    Op.RELEASE_PMD: _hooked("release_pmd", Mechanism.CALL_UNSHADOW),
    Op.RELEASE_PUD: _hooked("release_pud", Mechanism.CALL_UNSHADOW),
    Op.RELEASE_P4D: _hooked("release_pud", Mechanism.CALL_UNSHADOW),
    Op.EXIT_MMAP: _hooked("exit_mmap", Mechanism.CALL_DYING),
    Op.TOUCH: Mechanism.TOUCH,
    Op.FAULT: Mechanism.FAULT,
    Op.KERNEL_ENTRY: Mechanism.KERNEL_ENTRY,
    Op.KERNEL_EXIT: Mechanism.KERNEL_EXIT,
    Op.LOAD_CR3: _hooked("write_cr3", Mechanism.CALL_LOAD_CR3, Mechanism.LOAD_CR3),
    Op.READ_CR3: _hooked("read_cr3", Mechanism.NOTHING, Mechanism.READ_CR3),
    Op.FLUSH_USER: _hooked("flush_tlb_user", Mechanism.CALL_FLUSH_ALL, Mechanism.FLUSH_ALL),
    Op.FLUSH_KERNEL: _hooked("flush_tlb_kernel", Mechanism.CALL_FLUSH_ALL, Mechanism.FLUSH_GLOBAL),
    Op.FLUSH_ONE: _hooked("flush_tlb_one_user", Mechanism.CALL_FLUSH_ONE, Mechanism.FLUSH_ONE),
    Op.FLUSH_OTHERS: _hooked("flush_tlb_multi", Mechanism.CALL_FLUSH_MULTI),
    Op.SEND_IPI: Mechanism.IPI,
    Op.LAZY_ENTER: _hooked("lazy_mmu", Mechanism.BRACKET),
    Op.LAZY_RESUME: As(Op.LAZY_ENTER),
    Op.LAZY_LEAVE: _hooked("lazy_mmu", Mechanism.BRACKET_END),
    Op.LAZY_PAUSE: As(Op.LAZY_LEAVE),
}
