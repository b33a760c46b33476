"""Which hooks tell a hypervisor of which change: common to the modes that want to be told.

The operations of each hook, with the kernel's file: ``data/hooks/hooks.toml`` (Linux).
"""

from __future__ import annotations

from typing import Final

from pvmmu.guest.vocabulary import Op

#: Stores: operation -> hooks that carry it.
STORES: Final = {
    Op.SET_PTE: ("set_pte", "set_pte_at", "set_ptes"),
    Op.SET_PMD: ("set_pmd",),
    Op.SET_PUD: ("set_pud",),
    Op.SET_P4D: ("set_p4d", "set_pud"),
    Op.SET_PGD: ("set_p4d", "set_pud"),
}
#: Changes in place: operation -> hooks that carry it, or tell of it afterwards.
CHANGES: Final = {
    Op.PTE_GET_AND_CLEAR: ("pte_update", "ptep_get_and_clear", "get_and_clear_ptes"),
    Op.PTE_WRPROTECT: ("pte_update", "ptep_set_wrprotect", "wrprotect_ptes"),
    Op.PTE_CLEAR_YOUNG: ("pte_update", "ptep_test_and_clear_young"),
    Op.PTE_CLEAR: ("pte_update", "pte_clear"),
    Op.PTE_RMW: ("pte_update",),
}
#: Table pages: operation -> hooks that tell of it.
TABLES: Final = {
    Op.ALLOC_PTE: ("alloc_pte",),
    Op.ALLOC_PMD: ("alloc_pmd",),
    Op.ALLOC_PUD: ("alloc_pud",),
    Op.ALLOC_P4D: ("alloc_pud",),
    Op.RELEASE_PTE: ("release_pte",),
    Op.RELEASE_PMD: ("release_pmd",),
    Op.RELEASE_PUD: ("release_pud",),
    Op.RELEASE_P4D: ("release_pud",),
    Op.PGD_ALLOC: ("alloc_pud", "pgd_alloc"),
    Op.PGD_FREE: ("release_pud", "pgd_alloc"),
}


def upper_hooks(op: Op) -> tuple[str, ...]:
    """Return the one hook of a store to an upper entry."""
    return STORES[op][:1]
