"""The vocabulary of MMU operations.

An operation is one call that the guest kernel makes on its MMU, whoever carries it: a store to a
page-table entry, a flush, a bracket, a moment in the life of an address space. `Op` names them
after the kernel's own accessors (Linux 6.1 spelling, x86-64; older spellings in `OPS`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag, unique
from typing import Final

import numpy as np


@unique
class Op(IntEnum):
    """Operations of a guest kernel on its MMU. The numbers are part of the file format."""

    # one leaf entry
    SET_PTE = 1
    PTE_GET_AND_CLEAR = 2
    PTE_WRPROTECT = 3
    PTE_CLEAR_YOUNG = 4
    PTE_CLEAR = 5
    MODIFY_PROT_START = 6
    MODIFY_PROT_COMMIT = 7
    PTE_RMW = 8
    # one upper entry
    SET_PMD = 10
    SET_PUD = 11
    SET_P4D = 12
    SET_PGD = 13
    # table pages
    ALLOC_PTE = 20
    ALLOC_PMD = 21
    ALLOC_PUD = 22
    ALLOC_P4D = 23
    RELEASE_PTE = 24
    RELEASE_PMD = 25
    RELEASE_PUD = 26
    RELEASE_P4D = 27
    PGD_ALLOC = 28
    PGD_FREE = 29
    ZERO_TABLE = 30
    MAP_TABLE = 31
    # values and registers
    PTE_VAL = 40
    MAKE_PTE = 41
    READ_CR2 = 42
    READ_CR3 = 43
    LOAD_CR3 = 44
    # flushes
    FLUSH_RANGE = 50
    FLUSH_ONE = 51
    FLUSH_USER = 52
    FLUSH_KERNEL = 53
    FLUSH_OTHERS = 54
    SEND_IPI = 55
    # brackets
    LAZY_ENTER = 60
    LAZY_LEAVE = 61
    LAZY_PAUSE = 62
    LAZY_RESUME = 63
    SWITCH_START = 64
    SWITCH_END = 65
    # moments of an address space
    DUP_MMAP = 70
    ACTIVATE_MM = 71
    EXIT_MMAP = 72
    # the rest of the machine, as far as an MMU sees it
    FAULT = 80
    KERNEL_ENTRY = 81
    KERNEL_EXIT = 82
    PREEMPT = 83
    TOUCH = 84
    MARK = 85


@unique
class Evidence(IntEnum):
    """How a row, or a row's place, is known."""

    UNKNOWN = 0
    INFERRED = 1
    RECORDED = 2
    MODELLED = 3


class Flag(IntFlag):
    """Bits of the column ``flags``."""

    CURRENT_MM = 1  # the address space is the running task's own (current->mm)
    OLD_KNOWN = 2  # what the entry held before is known ...
    OLD_PRESENT = 4  # ... and it was present
    FULLMM = 8  # tear-down of a whole address space (mmu_gather.fullmm)
    NATIVE_ONLY = (
        16  # made only by a kernel that hooks not FLUSH_OTHERS (for a LOAD_CR3: EXIT_MMAP)
    )
    ALREADY_TABLE = 32  # ALLOC of a page that is a table already (mremap moving a whole table)
    MACHINE = 64  # the frame in ``value`` is a machine frame: right as an identity, not as a number
    KERNEL_FAULT = 128  # FAULT taken in kernel mode
    UNLOCKS = 256  # the page-table lock is released after the row, within a bracket


@dataclass(frozen=True)
class OpInfo:
    """What an operation is.

    Parameters
    ----------
    group : str
        ``entry``, ``upper``, ``table``, ``value``, ``register``, ``flush``, ``bracket``, ``moment``
        or ``event``.
    level : int
        Level of the table that is written, allocated or released (1 = PTE table ... 5 = PGD of a
        five-level guest, 4 = P4D level); 0 where it does not apply.
    kernel : str
        The accessor of Linux 6.1 (x86-64), with the older name where it differs.
    meaning : str
        One line for readers.
    """

    group: str
    level: int
    kernel: str
    meaning: str


OPS: Final[dict[Op, OpInfo]] = {
    Op.SET_PTE: OpInfo("entry", 1, "set_pte, set_pte_at", "store one PTE"),
    Op.PTE_GET_AND_CLEAR: OpInfo(
        "entry", 1, "ptep_get_and_clear(_full)", "read one PTE and clear it (xchg)"
    ),
    Op.PTE_WRPROTECT: OpInfo("entry", 1, "ptep_set_wrprotect", "clear RW in one PTE (locked)"),
    Op.PTE_CLEAR_YOUNG: OpInfo(
        "entry", 1, "ptep_test_and_clear_young", "test and clear A in one PTE (locked)"
    ),
    Op.PTE_CLEAR: OpInfo("entry", 1, "pte_clear", "clear a PTE that is not present (plain store)"),
    Op.MODIFY_PROT_START: OpInfo(
        "entry", 1, "ptep_modify_prot_start", "begin of a protection change: read one PTE"
    ),
    Op.MODIFY_PROT_COMMIT: OpInfo(
        "entry", 1, "ptep_modify_prot_commit", "end of a protection change: write it, keep A and D"
    ),
    Op.PTE_RMW: OpInfo("entry", 1, "(locked cmpxchg)", "another read-modify-write of one PTE"),
    Op.SET_PMD: OpInfo("upper", 2, "set_pmd (pmd_populate, pmd_clear)", "store one PMD"),
    Op.SET_PUD: OpInfo("upper", 3, "set_pud", "store one PUD"),
    Op.SET_P4D: OpInfo("upper", 4, "set_p4d (set_pgd of 4-level kernels)", "store one P4D"),
    Op.SET_PGD: OpInfo("upper", 5, "set_pgd", "store one PGD of a five-level guest"),
    Op.ALLOC_PTE: OpInfo("table", 1, "paravirt_alloc_pte (alloc_pt)", "a page becomes a PTE table"),
    Op.ALLOC_PMD: OpInfo("table", 2, "paravirt_alloc_pmd (alloc_pd)", "a page becomes a PMD table"),
    Op.ALLOC_PUD: OpInfo("table", 3, "paravirt_alloc_pud", "a page becomes a PUD table"),
    Op.ALLOC_P4D: OpInfo("table", 4, "paravirt_alloc_p4d", "a page becomes a P4D table"),
    Op.RELEASE_PTE: OpInfo("table", 1, "paravirt_release_pte", "a PTE table becomes a page again"),
    Op.RELEASE_PMD: OpInfo("table", 2, "paravirt_release_pmd", "a PMD table becomes a page again"),
    Op.RELEASE_PUD: OpInfo("table", 3, "paravirt_release_pud", "a PUD table becomes a page again"),
    Op.RELEASE_P4D: OpInfo("table", 4, "paravirt_release_p4d", "a P4D table becomes a page again"),
    Op.PGD_ALLOC: OpInfo("moment", 0, "pgd_alloc", "an address space is made"),
    Op.PGD_FREE: OpInfo("moment", 0, "pgd_free", "its top-level table is freed"),
    Op.ZERO_TABLE: OpInfo("table", 0, "clear_page", "a new table page is zeroed"),
    Op.MAP_TABLE: OpInfo("table", 0, "kmap_atomic_pte", "a highmem table page is mapped"),
    Op.PTE_VAL: OpInfo("value", 0, "pte_val and kin", "entry to value (frame translated)"),
    Op.MAKE_PTE: OpInfo("value", 0, "__pte and kin", "value to entry (frame translated)"),
    Op.READ_CR2: OpInfo("register", 0, "read_cr2", "read the address of a fault"),
    Op.READ_CR3: OpInfo("register", 0, "read_cr3", "read the page-table base"),
    Op.LOAD_CR3: OpInfo("register", 0, "write_cr3 (load_cr3)", "load the page-table base"),
    Op.FLUSH_RANGE: OpInfo(
        "flush", 0, "flush_tlb_mm_range", "decision to flush ``count`` pages (-1: everything)"
    ),
    Op.FLUSH_ONE: OpInfo("flush", 0, "flush_tlb_one_user", "invalidate one page on this CPU"),
    Op.FLUSH_USER: OpInfo(
        "flush", 0, "flush_tlb_local (flush_tlb_user)", "invalidate all but global entries here"
    ),
    Op.FLUSH_KERNEL: OpInfo(
        "flush", 0, "flush_tlb_global (flush_tlb_kernel)", "invalidate global entries too"
    ),
    Op.FLUSH_OTHERS: OpInfo(
        "flush", 0, "flush_tlb_multi (flush_tlb_others)", "invalidate on ``count`` CPUs at once"
    ),
    Op.SEND_IPI: OpInfo("flush", 0, "smp_call_function_many", "interrupt ``count`` other CPUs"),
    Op.LAZY_ENTER: OpInfo("bracket", 0, "arch_enter_lazy_mmu_mode", "updates may be queued"),
    Op.LAZY_LEAVE: OpInfo("bracket", 0, "arch_leave_lazy_mmu_mode", "all updates must be visible"),
    Op.LAZY_PAUSE: OpInfo("bracket", 0, "lazy_mmu_mode_pause", "bracket suspended"),
    Op.LAZY_RESUME: OpInfo("bracket", 0, "lazy_mmu_mode_resume", "bracket resumed"),
    Op.SWITCH_START: OpInfo("bracket", 0, "arch_start_context_switch", "context switch begins"),
    Op.SWITCH_END: OpInfo("bracket", 0, "arch_end_context_switch", "context switch ends"),
    Op.DUP_MMAP: OpInfo("moment", 0, "arch_dup_mmap", "fork has filled the child's tables"),
    Op.ACTIVATE_MM: OpInfo("moment", 0, "activate_mm", "exec is about to use the new tables"),
    Op.EXIT_MMAP: OpInfo("moment", 0, "arch_exit_mmap", "the last user is gone, all still mapped"),
    Op.FAULT: OpInfo("event", 0, "exc_page_fault", "page fault; ``value`` is the error code"),
    Op.KERNEL_ENTRY: OpInfo("event", 0, "entry_SYSCALL_64", "user to kernel"),
    Op.KERNEL_EXIT: OpInfo("event", 0, "iret, sysret", "kernel to user"),
    Op.PREEMPT: OpInfo("event", 0, "(scheduling of the vCPU)", "the vCPU loses its CPU"),
    Op.TOUCH: OpInfo("event", 0, "(load or store)", "the program touches a page"),
    Op.MARK: OpInfo("event", 0, "trace_marker", "the recorder's mark; ``value`` is the phase"),
}

#: Operations that write one entry of a table, hence carry ``table`` and ``index``.
ENTRY_OPS: Final = frozenset(op for op, info in OPS.items() if info.group in ("entry", "upper"))
ALLOC_OPS: Final = (Op.ALLOC_PTE, Op.ALLOC_PMD, Op.ALLOC_PUD, Op.ALLOC_P4D)
RELEASE_OPS: Final = (Op.RELEASE_PTE, Op.RELEASE_PMD, Op.RELEASE_PUD, Op.RELEASE_P4D)
SET_UPPER_OPS: Final = (Op.SET_PMD, Op.SET_PUD, Op.SET_P4D, Op.SET_PGD)
#: Read-modify-writes of a leaf entry: the dividing line of the debate.
RMW_OPS: Final = (Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG, Op.PTE_RMW)

N_OPS: Final = 128

#: Columns of a trace: name -> (dtype, value where a row has none, meaning).
COLUMNS: Final[dict[str, tuple[np.dtype, int, str]]] = {
    "op": (np.dtype("u1"), 0, "the operation, a number of `Op`"),
    "cpu": (np.dtype("u1"), 0, "virtual CPU"),
    "task": (np.dtype("i4"), -1, "process id of the running task; -1 unknown"),
    "mm": (np.dtype("i4"), -1, "address space, an index into `Trace.mms`; 0 is init_mm, -1 none"),
    "table": (np.dtype("i8"), -1, "frame number of the table page; -1 none"),
    "index": (np.dtype("i2"), -1, "entry within the table; -1 none"),
    "va": (np.dtype("u8"), 0, "virtual address that the entry, fault or flush is about (bytes)"),
    "value": (np.dtype("u8"), 0, "new entry (guest view), error code of a fault, phase of a mark"),
    "count": (np.dtype("i4"), 1, "pages of a flush (-1 all), CPUs of a FLUSH_OTHERS or SEND_IPI"),
    "flags": (np.dtype("u2"), 0, "bits of `Flag`"),
    "caller": (
        np.dtype("i2"),
        -1,
        "function of generic mm, an index into `Trace.callers`; -1 unknown",
    ),
    "evidence": (np.dtype("u1"), 2, "how the operation is known, a number of `Evidence`"),
    "place": (np.dtype("u1"), 2, "how ``mm`` and ``va`` are known, a number of `Evidence`"),
    "tsc": (np.dtype("i8"), 0, "time stamp of the recording (cycles from its first mark)"),
}
