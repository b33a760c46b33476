"""What the measured tables price, and what goes together because the data cannot tell it apart.

Direct paging: the events are those of the replay, the operations those of the stream, whatever
carries them, and the context is what a program pays for beside its operations on the MMU.

* A page fault includes its return (iret) and the read of CR2; a request the check of an entry and
  its reference (entries validated and dropped go with the store that made or removed them); a call
  that flushes includes the flush.
* A table page is typed once and untyped once, under every design; Xen looks at its 512 entries both
  times. Both are priced together, on the operation that releases the page.
* A page that is walked over (``sub_update_va_mapping``) includes the loop over 512 entries with
  which the guest's own backend finds the next table.
* A context switch includes its three set_segment_base, its stack_switch and its CR3 load.
"""

from __future__ import annotations

from typing import Final

from pvmmu.costs.fit import Term

DIRECT: Final = (
    Term("page_fault", ("page_fault",), "fault passed on to the guest, with its iret"),
    Term("mmu_update", ("mmu_update",), "a mmu_update call"),
    Term(
        "mmu_update_requests", ("mmu_update_requests", "sub_mmu_update_requests"),
        "a request that mmu_update carries",
    ),
    Term("mmuext_op", ("mmuext_op",), "a mmuext_op call, with the flush that it asks for"),
    Term(
        "sub_update_va_mapping", ("sub_update_va_mapping",),
        "a table page walked over, remapped in a multicall, with the guest's loop over its entries",
    ),
    Term("pte_emulation", ("pte_emulation",), "a trapped store to a page table, emulated"),
    Term("privop_emulation", ("privop_emulation",), "a privileged instruction, emulated"),
    Term("set_pte", ("set_pte",), "an entry made, whatever carries the store"),
    Term(
        "pte_wrprotect", ("pte_wrprotect", "pte_clear_young"),
        "flags of an entry changed, beyond what carries the change",
    ),
    Term("modify_prot_commit", ("modify_prot_commit",), "both halves of a protection change"),
    Term("release_pte", ("release_pte",), "a level-1 table typed and untyped again"),
    Term("release_pmd", ("release_pmd", "release_pud"), "an upper table typed and untyped again"),
    Term("pgd_free", ("pgd_free",), "both top-level tables typed and untyped again"),
    Term("system_calls", ("system_calls",), "a system call through Xen, with its iret"),
    Term("switches", ("switches",), "a context switch, with its hypercalls and CR3 load"),
    Term("entries_read", ("entries_read",), "an entry read and translated by the guest's backend"),
)  # fmt: skip
#: Events of direct paging that have no price of their own, and why.
DIRECT_FREE: Final = {
    "store": "the guest executes it natively, too",
    "locked": "the guest executes it natively, too",
    "queued": "a remark; the call that sends it is priced",
    "reordered_write": "a remark, no work",
    "continuation": "cannot be told apart from the upper table that it frees",
    "update_va_mapping": "cannot be told apart from the table page that it remaps",
    "mmuext_op_requests": "with the call, and the pins with their tables",
    "multicall": "cannot be told apart from the table pages in it",
    "multicall_subcalls": "priced by kind",
    "sub_mmu_update": "by its requests",
    "sub_mmuext_op": "with the tables that it pins or unpins",
    "sub_mmuext_op_requests": "with the tables that they pin or unpin",
    "tlb_flush": "with the call, or the switch",
    "tlb_flush_one": "with the call",
    "entries_validated": "with the store that made the entry",
    "entries_dropped": "with the store that removed the entry",
    "tables_pinned": "with the operation that releases the table",
    "tables_unpinned": "with the operation that releases the table",
}
