"""An address space and the system calls that change it (mm/mmap.c, mprotect.c, mremap.c, ...)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from pvmmu.errors import GuestError
from pvmmu.guest.linux import faults, frames, gather, ranges, tables
from pvmmu.guest.linux.faults import HEAP, VM_ACCOUNT, VM_GROWSDOWN, VM_PFNMAP, VM_SHARED, VM_WRITE
from pvmmu.guest.linux.layout import STACK_LIMIT, File, Layout, new_layout
from pvmmu.guest.linux.machine import Machine
from pvmmu.guest.linux.profile_keys import Par, Step
from pvmmu.guest.linux.rows import flush_mm
from pvmmu.guest.linux.state import ANON_VMAS, ERROR, ERROR_AT, FINE, NO_MAPPING, TABLE
from pvmmu.guest.linux.vma import PAGE, Mappings, entry_flags, new_vma, protection
from pvmmu.x86 import bits

_NO: Final = np.bool_(False)


@dataclass
class Mm:
    """An address space.

    Parameters
    ----------
    machine : Machine
        The guest that it is in.
    number : int
        Index of its record in ``State.mms``, and of its ``Mm`` in a trace.
    label : str
        For readers.
    maps : Mappings
        What is mapped where.
    users : int
        Threads that run in it.
    layout : Layout
        Where its parts begin.
    """

    machine: Machine
    number: int
    label: str
    maps: Mappings = field(default_factory=Mappings)
    users: int = 1
    layout: Layout = field(default_factory=Layout)

    # ------------------------------------------------------------------ life
    @classmethod
    def new(cls, machine: Machine, cpu: int, label: str) -> Mm:
        """Make an empty address space of `machine` on `cpu`, called `label` (mm_alloc)."""
        mm = cls(machine, machine.new_mm(), label, layout=new_layout(machine))
        s = machine.reserve()
        frame = int(frames.allocate(s, cpu, TABLE, _NO))
        machine.check()
        tables.clear_frame(s, frame)
        s.mms[mm.number]["root"] = frame << 12
        s.mms[mm.number]["generation"] = 1
        mm._moment(cpu, Step.NEW_MM)
        if mm.tables_with_root:
            unshared = 3 if machine.platform.shared_kernel_pmd else 4
            for i in range(unshared):
                tables.ensure(s, cpu, mm.number, i << 30, 2, int(Step.PREPARE_TABLE))
            machine.check()
        return mm

    @property
    def tables_with_root(self) -> bool:
        """PMD tables of a PAE guest come and go with the top-level one (pgd_alloc, i386)."""
        return self.machine.platform.levels == 3

    def exit(self, cpu: int) -> None:
        """Unmap everything on `cpu` (exit_mmap); the top-level table stays until `free`."""
        m = self.machine
        self._moment(cpu, Step.EXIT)
        gather.begin(m.s, np.int64(1))
        caller = self.caller("tlb_finish_mmu")
        for vma in self.maps.table:
            self.zap(cpu, int(vma["start"]), int(vma["end"]), caller)
        self.free_tables(cpu, self.maps.table, 0, 0, caller)
        gather.finish(m.reserve(), cpu, self.number, caller)
        self.maps = Mappings()

    def free(self, cpu: int) -> None:
        """Free the top-level table on `cpu` (mmdrop)."""
        s = self.machine.reserve()
        self._moment(cpu, Step.GONE)
        if self.tables_with_root:
            self._free_prepared(cpu)
        frames.release(s, cpu, int(s.mms[self.number]["root"]) >> 12, _NO)

    def _free_prepared(self, cpu: int) -> None:
        """Free the PMD tables that a PAE guest made with the top-level table (pgd_free)."""
        s = self.machine.s
        for i in range(3 if self.machine.platform.shared_kernel_pmd else 4):
            at = tables.entry_at(s, self.number, i << 30, 3)
            frame = (int(tables.load(s, at)) & int(tables.FRAME_MASK)) >> 12
            tables.table_calls(s, cpu, int(Step.DROP_TABLE), self.number, i << 30, at, 3, frame, 0)
            frames.release(s, cpu, frame, _NO)

    def fork(self, cpu: int, child: Mm) -> None:
        """Copy mappings and entries to `child` on `cpu` (dup_mmap)."""
        m = self.machine
        child.maps = self.maps.copy()
        child.layout = replace(self.layout)
        for vma in child.maps.table:
            start, end, flags = int(vma["start"]), int(vma["end"]), int(vma["vm_flags"])
            if not (vma["anon"] or flags & VM_PFNMAP or m.s.par[Par.FORK_ALL]):
                continue
            m.until(
                start, end,
                lambda s, at, end=end, flags=flags: ranges.copy_range(
                    s, cpu, self.number, child.number, at, end, flags
                ),
            )  # fmt: skip
        for i in np.flatnonzero(child.maps.table["anon"]):
            m.s.n[ANON_VMAS] += 1
            child.maps.table[i]["anon"] = m.s.n[ANON_VMAS]
        s = m.reserve()
        tables.moments(s, cpu, int(Step.FORK_DONE), child.number, self.number, 0, 0, 0)

    # ------------------------------------------------------------------ mappings
    def mmap(
        self, cpu: int, pages: int, at: int | None = None, prot: str = "rw",
        shared: bool = False, file: File | None = None, offset: int = 0, replace: bool = True,
        extra: int = 0,
    ) -> int:  # fmt: skip
        """Map memory on `cpu` (do_mmap) and return its address; arguments as of `Process.mmap`.

        (`pages`, `at`, `prot`, `shared`, `file`, `offset`, `replace`); `extra` are more VM_ flags.

        Raises
        ------
        GuestError
            No page, an address that is no page's or out of bounds, one that is taken and may not
            be replaced, or an offset behind the end of the file.
        """
        size = self.size("mmap", pages)
        if at is None:
            at = self.maps.gap(size, self.layout.mmap_base)
        self.check_range("mmap", at, size)
        taken = self.maps.within(at, at + size)
        if taken.start != taken.stop:
            if not replace:
                raise GuestError(f"mmap: {at:#x} is mapped already (EEXIST)")
            self.munmap(cpu, at, pages)
        flags = protection(prot) | (VM_SHARED if shared else 0) | extra
        place, last, notify = -1, -1, False
        if file is not None:
            if offset < 0:
                raise GuestError(f"mmap: offset {offset} in {file.name}")
            place, last, notify = file.place + offset, file.place + file.pages - 1, file.notify
        elif shared:
            raise GuestError("mmap: shared anonymous memory needs a file (make one with `file`)")
        prot_bits = self.entry_flags(flags, notify)
        self.maps.insert(new_vma(at, at + size, flags, prot_bits, place, last))
        return at

    def munmap(self, cpu: int, at: int, pages: int) -> None:
        """Unmap so many `pages` `at` an address, on `cpu` (do_munmap)."""
        size = self.size("munmap", pages)
        self.check_range("munmap", at, size)
        gone = self.maps.remove(at, at + size)
        if len(gone) == 0:
            return
        m = self.machine
        before, behind = self.maps.neighbours(at, at + size)
        caller = self.caller("tlb_finish_mmu")
        gather.begin(m.s, np.int64(0))
        for vma in gone:
            self.zap(cpu, int(vma["start"]), int(vma["end"]), caller)
        self.free_tables(cpu, gone, before, behind, caller)
        gather.finish(m.reserve(), cpu, self.number, caller)

    def mprotect(self, cpu: int, at: int, pages: int, prot: str, extra: int = 0) -> None:
        """Change the protection of `pages` `at` an address to `prot`, on `cpu` (do_mprotect_pkey).

        `extra` are VM_ flags that no letter of `prot` stands for.

        Raises
        ------
        GuestError
            A part of the range is not mapped.
        """
        size = self.size("mprotect", pages)
        self.check_range("mprotect", at, size)
        end = at + size
        self.check_covered("mprotect", at, end)
        self.maps.split(at)
        self.maps.split(end)
        which = self.maps.within(at, end)
        always = bool(self.machine.s.par[Par.PROTECT_FLUSHES])
        caller = self.caller("tlb_finish_mmu")
        gather.begin(self.machine.s, np.int64(0))
        for vma in self.maps.table[which]:
            old = int(vma["vm_flags"])
            new = old & ~7 & ~extra | protection(prot)
            if new == old:
                continue
            if new & VM_WRITE and not old & (VM_SHARED | VM_WRITE):
                new |= VM_ACCOUNT  # it stays: pages written may be there from now on
            vma["vm_flags"] = new
            vma["prot"] = np.uint64(self.entry_flags(new) & bits.XD * 2 - 1).astype(np.int64)
            self.protect(cpu, vma)
            if always:
                start, stop = int(vma["start"]), int(vma["end"])
                s = self.machine.reserve()
                flush_mm(s, cpu, self.number, start, stop, 12, _NO, 0, caller)
        gather.finish(self.machine.reserve(), cpu, self.number, caller)
        self.maps.merge(at, end)

    def protect(self, cpu: int, vma: np.void) -> None:
        """Give the entries of `vma` (a `VMA`) its protection on `cpu` (change_protection)."""
        prot, flags, end = int(vma["prot"]), int(vma["vm_flags"]), int(vma["end"])
        self.machine.until(
            int(vma["start"]), end,
            lambda s, at: ranges.protect_range(s, cpu, self.number, at, end, prot, flags),
        )  # fmt: skip

    def grow_heap(self, cpu: int, pages: int) -> None:
        """Extend the heap by so many `pages`, on `cpu` (brk)."""
        extra = HEAP if self.machine.s.par[Par.HEAP_APART] else 0
        self.mmap(cpu, pages, self.layout.brk, extra=extra)
        self.layout.brk += pages * PAGE

    # ------------------------------------------------------------------ accesses
    def touch(self, cpu: int, addresses: np.ndarray, how: int) -> None:
        """Access `addresses` (int64[n]) on `cpu`, one after the other; a stack grows where it may.

        `how` is READ, WRITE or FETCH of `pvmmu.guest.linux.faults`, perhaps plus KERNEL.

        Raises
        ------
        GuestError
            An access that the kernel answers with a signal, or no memory.
        """
        m, at, n = self.machine, 0, len(addresses)
        while at < n:
            s = m.reserve()
            at = int(faults.touch_all(s, cpu, self.number, self.maps.table, addresses, how, at))
            missing = s.n[ERROR] == NO_MAPPING and self._grow_stack(int(s.n[ERROR_AT]))
            if missing:
                s.n[ERROR] = FINE
            m.check()

    def populate(self, cpu: int, at: int, pages: int, write: bool) -> None:
        """Make `pages` `at` an address present on `cpu`, to `write` or to read (get_user_pages)."""
        end = at + pages * PAGE
        self.machine.until(
            at, end,
            lambda s, va: faults.populate(
                s, cpu, self.number, self.maps.table, va, end, np.bool_(write)
            ),
        )  # fmt: skip

    def present(self, va: int, writable: bool = False) -> bool:
        """Whether the page of an address `va` (bytes) is mapped, and `writable`, by its entry."""
        s = self.machine.s
        at = tables.entry_at(s, self.number, va & -PAGE, 1)
        wanted = bits.P | (bits.RW if writable else 0)
        return bool(at >= 0 and int(tables.load(s, at)) & wanted == wanted)

    def _grow_stack(self, va: int) -> bool:
        """Extend the stack down to an address, if it may be (expand_stack)."""
        i = int(np.searchsorted(self.maps.table["end"], va, "right"))
        if i == len(self.maps.table):
            return False
        vma = self.maps.table[i]
        start = va & -PAGE
        if not vma["vm_flags"] & VM_GROWSDOWN or int(vma["end"]) - start > STACK_LIMIT:
            return False
        vma["start"] = start
        return True

    # ------------------------------------------------------------------ parts of the above
    def zap(self, cpu: int, start: int, end: int, caller: int, reclaim: bool = False) -> None:
        """Clear the entries from `start` to `end` on `cpu` (unmap_page_range).

        `caller` is the number of the function that flushes; `reclaim` frees empty tables, too.
        """
        self.machine.until(
            start, end,
            lambda s, at: gather.zap_range(
                s, cpu, self.number, at, end, caller, np.bool_(reclaim)
            ),
        )  # fmt: skip

    def free_tables(
        self, cpu: int, gone: np.ndarray, floor: int, ceiling: int, caller: int
    ) -> None:
        """Free tables of mappings, near ones together, on `cpu` (free_pgtables).

        `gone` are `VMA`[n]; others end at `floor` and begin at `ceiling`; `caller`: as of `zap`.
        """
        keep = 2 if self.tables_with_root else self.machine.platform.levels
        i = 0
        while i < len(gone):
            start, end = int(gone[i]["start"]), int(gone[i]["end"])
            pmd = 1 << self.machine.s.fmt[tables.SHIFTS + 2]
            while i + 1 < len(gone) and int(gone[i + 1]["start"]) <= end + pmd:
                i += 1
                end = int(gone[i]["end"])
            i += 1
            top = int(gone[i]["start"]) if i < len(gone) else ceiling
            self.machine.until(
                start, end,
                lambda s, at, end=end, top=top: gather.free_tables(
                    s, cpu, self.number, at, end, floor, top, caller, keep
                ),
            )  # fmt: skip

    def parts(self, call: str, at: int, pages: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of the mappings in `pages` `at` an address, for `call`."""
        end = at + self.size(call, pages)
        self.check_range(call, at, end - at)
        self.check_covered(call, at, end)
        for vma in self.maps.table[self.maps.within(at, end)]:
            yield max(at, int(vma["start"])), min(end, int(vma["end"]))

    def check_covered(self, call: str, start: int, end: int) -> None:
        """Raise `GuestError`, naming `call`, unless all from `start` to `end` is mapped."""
        for vma in self.maps.table[self.maps.within(start, end)]:
            if int(vma["start"]) > start:
                break
            start = int(vma["end"])
        if start < end:
            raise GuestError(f"{call}: nothing is mapped at {start:#x} (ENOMEM)")

    def size(self, call: str, pages: int) -> int:
        """Return the bytes of `pages`; raise `GuestError`, naming `call`, if there is none."""
        if pages <= 0:
            raise GuestError(f"{call}: {pages} pages (EINVAL)")
        return pages * PAGE

    def check_range(self, call: str, at: int, size: int) -> None:
        """Raise `GuestError`, naming `call`, unless `size` bytes `at` an address are user pages."""
        if at % PAGE:
            raise GuestError(f"{call}: {at:#x} is not the address of a page (EINVAL)")
        if at < 0 or at + size > self.layout.top:
            raise GuestError(f"{call}: {at:#x} and {size // PAGE} pages are no user addresses")

    def entry_flags(self, flags: int, notify: bool = False) -> int:
        """Return the flags of an entry for VM_ `flags` (vm_page_prot); `notify`: see `File`."""
        par = self.machine.s.par
        no_execute = int(par[Par.NO_EXECUTE])
        return entry_flags(flags, no_execute, int(par[Par.PROT_NONE]), notify)

    def _moment(self, cpu: int, step: Step) -> None:
        tables.moments(self.machine.reserve(), cpu, int(step), self.number, self.number, 0, 0, 0)

    def caller(self, name: str) -> int:
        """Return the number that stands for the function `name` in traces."""
        return self.machine.callers.setdefault(name, len(self.machine.callers))
