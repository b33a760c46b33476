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

import numpy as np

from pvmmu.guest.vocabulary import N_OPS, Op
from pvmmu.hooks import HookSet

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


NAMES: Final = {int(c): c.name.lower().replace("_", " ") for c in Mechanism}

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
_PLAIN: Final = {
    Op.ZERO_TABLE: Mechanism.ZERO,
    Op.PGD_ALLOC: Mechanism.ZERO,
    Op.TOUCH: Mechanism.TOUCH,
    Op.FAULT: Mechanism.FAULT,
    Op.LOAD_CR3: Mechanism.LOAD_CR3,
    Op.FLUSH_USER: Mechanism.FLUSH_ALL,
    Op.FLUSH_KERNEL: Mechanism.FLUSH_GLOBAL,
    Op.FLUSH_ONE: Mechanism.FLUSH_ONE,
    Op.READ_CR3: Mechanism.READ_CR3,
    Op.KERNEL_ENTRY: Mechanism.KERNEL_ENTRY,
    Op.KERNEL_EXIT: Mechanism.KERNEL_EXIT,
    Op.SEND_IPI: Mechanism.IPI,
}
#: Hook -> operations that it carries otherwise, and how.
_HOOKED: Final = {
    "release_pte": ((Op.RELEASE_PTE,), Mechanism.CALL_UNSHADOW),
    "release_pmd": ((Op.RELEASE_PMD,), Mechanism.CALL_UNSHADOW),
    "release_pud": ((Op.RELEASE_PUD, Op.RELEASE_P4D), Mechanism.CALL_UNSHADOW),
    "exit_mmap": ((Op.EXIT_MMAP,), Mechanism.CALL_DYING),
    "write_cr3": ((Op.LOAD_CR3,), Mechanism.CALL_LOAD_CR3),
    "read_cr3": ((Op.READ_CR3,), Mechanism.NOTHING),
    "flush_tlb_user": ((Op.FLUSH_USER,), Mechanism.CALL_FLUSH_ALL),
    "flush_tlb_kernel": ((Op.FLUSH_KERNEL,), Mechanism.CALL_FLUSH_ALL),
    "flush_tlb_one_user": ((Op.FLUSH_ONE,), Mechanism.CALL_FLUSH_ONE),
    "flush_tlb_multi": ((Op.FLUSH_OTHERS,), Mechanism.CALL_FLUSH_MULTI),
    "lazy_mmu": ((Op.LAZY_ENTER, Op.LAZY_RESUME), Mechanism.BRACKET),
}
_BRACKET_ENDS: Final = (Op.LAZY_LEAVE, Op.LAZY_PAUSE)
_PROTECT: Final = (Op.MODIFY_PROT_START, Op.MODIFY_PROT_COMMIT)

#: The hooks that shadow mode reads.
HOOKS: Final = (
    *dict.fromkeys(name for names in _STORES.values() for name in names),
    "ptep_modify_prot", *_HOOKED,
)  # fmt: skip


def mechanism_table(hooks: HookSet) -> np.ndarray:
    """Return the mechanism of each operation under `hooks`, uint8[N_OPS]."""
    out = np.full(N_OPS, Mechanism.NOTHING, np.uint8)
    have = set(hooks)
    for op, mechanism in _PLAIN.items():
        out[op] = mechanism
    for op, names in _STORES.items():
        out[op] = Mechanism.CALL_STORE if have & set(names) else Mechanism.STORE
    for name, (ops, mechanism) in _HOOKED.items():
        if name in have:
            out[list(ops)] = mechanism
    if "lazy_mmu" in have:
        out[list(_BRACKET_ENDS)] = Mechanism.BRACKET_END
    # the default of a protection change is a clear and a store, each hooked or not
    out[_PROTECT[0]], out[_PROTECT[1]] = out[Op.PTE_GET_AND_CLEAR], out[Op.SET_PTE]
    if "ptep_modify_prot" in have:
        out[_PROTECT[0]], out[_PROTECT[1]] = Mechanism.NOTHING, Mechanism.CALL_STORE
    return out
