"""What distinguishes one shadow implementation from another, as data.

A rule has a source in the code of that release. What a release does not differ in, such as that
a page which becomes a table is write-protected, is in the kernels themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum, unique
from typing import Final

import numpy as np


@unique
class Flood(IntEnum):
    """When so many writes go to a table that it is taken for no table any more."""

    NEVER = 0
    PER_PAGE = 1  # upper tables only: writes since a walk last came through the shadow
    LAST_PAGE = 2  # writes to the same frame in a row, whatever comes between
    SINCE_FAULT = 3  # the same, but no other fault may come between
    LAST_UNUSED = 4  # the same, and the entry written last must not have been used meanwhile
    TWO_ZEROS = 5  # zeroes written to the same frame in a row, no fault between them
    DYING = 6  # as before until the guest has told of a dying process, then zeroes of such


@unique
class Links(IntEnum):
    """What a walk of the kernel's half of a new top-level table finds (see `REGIONS`)."""

    COUNTED = 0  # a fault each
    IDENTICAL_SPURIOUS = 1  # a fault each; spurious where the leaf entry does not change


@dataclass(frozen=True)
class Rules:
    """The rules of one implementation.

    Parameters
    ----------
    name, title, source : str
        `source` names file and release that the rules were read in.
    counted : bool
        A shadow page goes with the last reference to it (Xen); otherwise it stays, to be found
        again by its frame and level, until it is zapped (KVM).
    out_of_sync : int
        Level-1 tables that a CPU may have out of sync: 0 none, -1 any number.
    window : int
        Entries that one hidden fault fills (1: only its own).
    window_ahead : bool
        The window begins at the faulting entry; otherwise it is aligned.
    flood : Flood
        When a table is unshadowed because it is written to.
    flood_limit : int
        Writes until then.
    retry : bool
        A write by an instruction that page-table code does not use (``rep stos``) unshadows the
        page and is tried again, instead of being emulated.
    fills_on_write : bool
        An emulated write to a level-1 table fills the shadow entry, too.
    fills_on_invlpg : bool
        INVLPG of an entry in a table out of sync reads it anew; otherwise the entry is dropped.
    reused_synced : bool
        A table out of sync that gets a parent again is synchronized for good; otherwise only
        its contents are, and it stays writable.
    roots : int
        Shadows of top-level tables that a CPU remembers beside the current one.
    links : Links
        How walks of the kernel's half are answered.
    pages : int
        Shadow pages before old ones are recycled.
    """

    name: str
    title: str
    source: str
    counted: bool
    out_of_sync: int
    window: int
    window_ahead: bool
    flood: Flood
    flood_limit: int
    retry: bool
    fills_on_write: bool
    fills_on_invlpg: bool
    reused_synced: bool
    roots: int
    links: Links
    pages: int

    def pack(self) -> np.ndarray:
        """Return the rules as kernels read them, int64[`Rule`]."""
        return np.array([int(getattr(self, r.name.lower())) for r in Rule], np.int64)


@unique
class Rule(IntEnum):
    """Places of the packed rules."""

    COUNTED = 0
    OUT_OF_SYNC = 1
    WINDOW = 2
    WINDOW_AHEAD = 3
    FLOOD = 4
    FLOOD_LIMIT = 5
    RETRY = 6
    FILLS_ON_WRITE = 7
    FILLS_ON_INVLPG = 8
    REUSED_SYNCED = 9
    ROOTS = 10
    LINKS = 11
    PAGES = 12


assert {r.name.lower() for r in Rule} == {f.name for f in fields(Rules)} - {
    "name", "title", "source"
}  # fmt: skip

#: Parts of the kernel's half of the address space that every process meets, one top-level entry
#: each (Linux Documentation/x86/x86_64/mm.rst, 6.1), and whether their leaf entries are writable:
#: text (fetched), cpu_entry_area (IDT, GDT: read-only), the direct map (per-CPU data), struct
#: pages, and the stack in vmalloc space.
REGIONS: Final = {
    "text": False,
    "cpu_entry_area": False,
    "direct map": True,
    "vmemmap": True,
    "vmalloc": True,
}

#: Those that the rest of a dying process's exit meets again: no interrupt or fault is delivered.
EXIT_REGIONS: Final = ("text", "direct map", "vmemmap", "vmalloc")
#: Those which the tables of user mode hold under page-table isolation (arch/x86/mm/pti.c, 6.1).
USER_REGIONS: Final = ("text", "cpu_entry_area")

#: KVM as merged, and what changed since.
_KVM: Final = Rules(
    name="kvm-2.6.20",
    title="KVM as merged: three exits a fault",
    source="Linux v2.6.20 drivers/kvm/mmu.c (kvm_mmu_pre_write), kvm.h (KVM_NUM_MMU_PAGES)",
    counted=False,
    out_of_sync=0,
    window=1,
    window_ahead=False,
    flood=Flood.LAST_PAGE,
    flood_limit=3,
    retry=False,
    fills_on_write=False,
    fills_on_invlpg=False,
    reused_synced=True,
    roots=0,
    links=Links.COUNTED,
    pages=256,
)
#: Xen's second shadow code, and what changed since.
_XEN: Final = Rules(
    name="xen-2006",
    title="Xen's second shadow code: each write emulated",
    source="Xen 3.0.3 xen/arch/x86/mm/shadow/multi.c (check_for_early_unshadow)",
    counted=True,
    out_of_sync=0,
    window=1,
    window_ahead=True,
    flood=Flood.TWO_ZEROS,
    flood_limit=2,
    retry=False,
    fills_on_write=True,
    fills_on_invlpg=False,
    reused_synced=True,
    roots=0,
    links=Links.COUNTED,
    pages=1024,
)
_ALL: Final = (
    _KVM,
    replace(
        _KVM,
        name="kvm-2.6.23",
        title="KVM that fills an entry as it is written: two exits a fault",
        source="Linux v2.6.23 drivers/kvm/mmu.c (kvm_mmu_pte_write, mmu_pte_write_new_pte), kvm.h, "
        "paging_tmpl.h (page_fault)",
        flood=Flood.SINCE_FAULT,
        fills_on_write=True,
        pages=1024,
    ),
    replace(
        _KVM,
        name="kvm-2.6.28",
        title="KVM with tables out of sync",
        source="Linux v2.6.28-rc4 arch/x86/kvm/mmu.c (kvm_unsync_page, kvm_mmu_get_page, "
        "kvm_mmu_pte_write); pages: KVM_PERMILLE_MMU_PAGES of a guest of 256 MiB",
        out_of_sync=-1,
        flood=Flood.LAST_UNUSED,
        fills_on_write=True,
        pages=1310,
    ),
    replace(
        _KVM,
        name="kvm-6.1",
        title="KVM of Linux 6.1",
        source="Linux 6.1.166 arch/x86/kvm/mmu/mmu.c, paging_tmpl.h; x86.c (retry_instruction); "
        "pages: KVM_PERMILLE_MMU_PAGES of a guest of 256 MiB",
        out_of_sync=-1,
        window=8,
        flood=Flood.PER_PAGE,
        retry=True,
        fills_on_invlpg=True,
        reused_synced=False,
        roots=3,
        links=Links.IDENTICAL_SPURIOUS,
        pages=1310,
    ),
    _XEN,
    replace(
        _XEN,
        name="xen-2008",
        title="Xen with level-1 tables out of sync",
        source="Xen 3.3 xen/arch/x86/mm/shadow (common.c, multi.c), asm-x86/domain.h "
        "(SHADOW_OOS_PAGES)",
        out_of_sync=3,
        window=32,
    ),
    replace(
        _XEN,
        name="xen-4.17",
        title="Xen 4.17",
        source="Xen 4.17.5 xen/arch/x86/mm/shadow (common.c, multi.c, hvm.c), asm/domain.h "
        "(SHADOW_OOS_PAGES)",
        out_of_sync=3,
        window=32,
        flood=Flood.DYING,
    ),
)

#: The implementations, by name.
IMPLEMENTATIONS: Final = {r.name: r for r in _ALL}
