"""What the kernels of the mm model share: the guest's memory, frames, CPUs, and the rows so far.

Kernels are functions over arrays. A `State` bundles the arrays of one guest for them; the guest
(`pvmmu.guest.linux.guest.Guest`) owns them, makes them larger and hands out new bundles.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from pvmmu._jit import record

#: One operation, before it becomes a row of a `Trace` (all columns but those that a model leaves).
ROW: Final = record(
    ("va", "u8"), ("value", "u8"), ("table", "i8"), ("task", "i4"), ("mm", "i4"), ("count", "i4"),
    ("index", "i2"), ("flags", "u2"), ("caller", "i2"), ("op", "u1"), ("cpu", "u1"),
)  # fmt: skip

#: A CPU: the address space in CR3, whether it is only borrowed (lazy TLB), the running task and
#: its own address space (-1 for a kernel thread).
CPU: Final = record(
    ("mm", "i4"), ("lazy", "i4"), ("asid", "i4"), ("next_asid", "i4"), ("task", "i4"),
    ("current", "i4"),
)  # fmt: skip

#: An address space: physical address of its top-level table, CPUs that may have it in their TLBs,
#: its TLB generation, tables below the top one.
MM: Final = record(("root", "i8"), ("mask", "i8"), ("generation", "i8"), ("tables", "i8"))

#: A mapping, as far as faults need it. ``prot`` are the flags of an entry made here (vm_page_prot);
#: ``file`` is the place of its first page in `State.cache`, -1 for anonymous memory; ``last`` that
#: of the file's last page. ``anon`` is the number of its anon_vma, 0 if it has none.
VMA: Final = record(
    ("start", "i8"), ("end", "i8"), ("vm_flags", "i8"), ("prot", "i8"), ("file", "i8"),
    ("last", "i8"), ("anon", "i8"),
)  # fmt: skip

# Uses of a frame.
FREE, TABLE, SHARED_ANON, EXCLUSIVE_ANON, FILE = map(np.uint8, range(5))

# Elements of `State.n`.
ROWS, ERROR, ERROR_AT, ANON_VMAS = range(4)
# Values of its element ERROR.
FINE, NO_MEMORY, NO_MAPPING, NO_ACCESS, BEYOND_FILE = range(5)

#: A kernel stops before it has fewer free rows than this: one step needs no more.
SLACK: Final = 8192

# Elements of `State.zone`.
FRESH, END, RETURNED = 0, 1, 2

# Elements of `State.gather`, after struct mmu_gather.
FULL_MM, START, STOP, CLEARED, FREED_TABLES, PAGES, FRAMES, BLOCK = range(8)


class State(NamedTuple):
    """Arrays of one guest.

    Parameters
    ----------
    out : ROW[capacity]
        Operations; the first ``n[ROWS]`` are valid.
    n : int64[8]
        Number of rows, an error code and the address that it is about, anon_vmas so far.
    words, words32 : int64[...], uint32[...]
        Physical memory, in two views. Addresses and entries are int64 throughout: a uint64 beside
        an int64 is a float64 to numba.
    fmt : int64[32]
        The paging format, from `pack_format`.
    kind, maps : uint8[frame], int32[frame]
        Use of each frame; how many entries map it.
    pool, pool_n : int64[2 * cpu + type, capacity], int64[2 * cpu + type]
        Free frames of each CPU (``struct per_cpu_pages``), last in first out.
    zone, returned : int64[3], int64[frame]
        Free frames of the zone: never used from ``zone[FRESH]`` to ``zone[END]``, and a stack.
    cpus, mms : CPU[cpu], MM[mm]
        CPUs and address spaces; element 0 of the latter is init_mm.
    context_mm, context_generation : int32[cpu, asid], int64[cpu, asid]
        What each CPU's TLB holds under an ASID (``struct tlb_context``).
    cache : int64[page]
        The page cache: frame of each page of all files, -1 where it is not in memory.
    par, steps : int64[parameter], int16[step, call, 4]
        The kernel's profile, packed.
    gather, gathered : int64[8], int64[...]
        The mmu_gather in progress, and the frames that it will free.
    """

    out: Any
    n: Any
    words: Any
    words32: Any
    fmt: Any
    kind: Any
    maps: Any
    pool: Any
    pool_n: Any
    zone: Any
    returned: Any
    cpus: Any
    mms: Any
    context_mm: Any
    context_generation: Any
    cache: Any
    par: Any
    steps: Any
    gather: Any
    gathered: Any
