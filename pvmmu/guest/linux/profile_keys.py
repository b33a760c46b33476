"""Names of what a kernel profile says; their numbers are those that compiled kernels use.

What a profile says of each, with the kernel's file and function: ``data/kernels/*.toml`` (Linux).
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final


@unique
class Step(IntEnum):
    """Places in the kernel where a profile lists calls of MMU operations."""

    FAULT = 0
    FAULT_TABLE = 1
    FILE_TABLE = 2
    FORK_TABLE = 3
    MOVE_TABLE = 4
    KERNEL_TABLE = 5
    FREE_TABLE = 6
    MOVE_WHOLE = 7
    PREPARE_TABLE = 8
    ANON_WRITE = 9
    ANON_READ = 10
    FILE_MAP = 11
    FILE_COPY = 12
    FILE_WRITE = 13
    REUSE = 14
    COPY = 15
    FORK_OPEN = 16
    FORK_PAGE = 17
    FORK_CLOSE = 18
    ZAP_OPEN = 19
    ZAP_PAGE = 20
    ZAP_DYING = 21
    ZAP_CLOSE = 22
    PROTECT_OPEN = 23
    PROTECT_PAGE = 24
    PROTECT_CLOSE = 25
    MOVE_OPEN = 26
    MOVE_PAGE = 27
    MOVE_CLOSE = 28
    COLD_OPEN = 29
    COLD_PAGE = 30
    COLD_CLOSE = 31
    AGE_OPEN = 32
    AGE_PAGE = 33
    AGE_CLOSE = 34
    CLEAN_OPEN = 35
    CLEAN_PAGE = 36
    CLEAN_CLOSE = 37
    VMAP_OPEN = 38
    VMAP_PAGE = 39
    VMAP_CLOSE = 40
    VUNMAP_OPEN = 41
    VUNMAP_PAGE = 42
    VUNMAP_CLOSE = 43
    FORK_DONE = 44
    EXEC = 45
    EXIT = 46
    NEW_MM = 47
    GONE = 48
    RECLAIM_UNHOOK = 49
    RECLAIM_RELEASE = 50
    DROP_TABLE = 51


@unique
class Par(IntEnum):
    """Numbers and yes-or-no questions of a profile and a platform."""

    # of the kernel
    RANGED = 0
    CEILING = 1
    FAULT_AROUND = 2
    ZERO_PAGE = 3
    GATHER_PAGES = 4
    GATHER_AT_ONCE = 5
    ZAP_BLOCK = 6
    MOVE_BLOCK = 7
    MOVE_WHOLE_PMD = 8
    MOVE_WHOLE_PUD = 9
    TRY_WRITABLE = 10
    PROTECT_FLUSHES = 11
    DIRTY_FLUSHES = 12
    RECLAIM_TABLES = 13
    COLD_FLUSHES = 14
    CPUMASK_LAZY = 15
    BATCH = 16
    HIGH = 17
    LISTS = 18
    LAZY_MAX = 19
    EXEC_EARLY = 20
    EXEC_PROTECTS = 21
    HEAP_APART = 22
    AGE_FLUSHES = 37
    VVAR_PAGES = 38
    VDSO_PAGES = 39
    FREED_AT_ONCE = 40
    FORK_ALL = 41
    # bits of an entry
    SOFT_DIRTY = 24
    SPECIAL = 25
    PROT_NONE = 26
    INVERTED = 27
    NO_EXECUTE = 28
    # of the platform
    USER_GLOBAL = 32
    PCID = 33
    HIGH_TABLES = 34
    TABLES_BY_RCU = 35
    TOUCHES = 36


N_PARAMETERS: Final = 48
#: Calls of a step; the rest of its row is empty.
MOST_CALLS: Final = 6

# Which entry a call is about.
THIS, OTHER = 0, 1
# Under which condition it is made.
ALWAYS, WRITABLE, YOUNG, CHANGED = range(4)

# Calls that stand for an operation of the level in question, or for a whole function.
ALLOC, SET, CLEAR, RELEASE, FLUSH_PAGE, FLUSH_MM = range(200, 206)
