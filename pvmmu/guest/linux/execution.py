"""execve: a new address space, and what the kernel and the program put into it at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from pvmmu.guest.linux import gather, mremap as moving, rows, tables
from pvmmu.guest.linux.faults import KERNEL, SINGLE, VM_GROWSDOWN, VM_PFNMAP, WRITE
from pvmmu.guest.linux.layout import File
from pvmmu.guest.linux.mm import Mm
from pvmmu.guest.linux.profile_keys import Par, Step
from pvmmu.guest.linux.program import Program
from pvmmu.guest.linux.vma import PAGE, new_vma, protection

if TYPE_CHECKING:
    from pvmmu.guest.linux.guest import Guest
    from pvmmu.guest.linux.process import Process

_PMD_SIZE: Final = 2 << 20
#: stack_expand of setup_arg_pages (fs/exec.c, 6.1).
_STACK_EXPAND: Final = 131072
#: Most pages that randomisation moves, in 64 and in 32 bits: the stack (STACK_RND_MASK of
#: arch/x86/include/asm/elf.h), mappings (mmap_rnd_bits of arch/x86/Kconfig), the heap (32 MiB,
#: arch_randomize_brk in arch/x86/kernel/process.c).
_STACK_RANDOM: Final = {True: 0x3F_FFFF, False: 0x7FF}
_MMAP_RANDOM: Final = {True: 1 << 28, False: 1 << 8}
_BRK_RANDOM: Final = 0x2000


def execve(guest: Guest, process: Process, program: Program | None) -> Mm:
    """Make the new address space and load it (bprm_mm_init, exec_mmap)."""
    cpu, name = process.cpu, program.name if program else process.name
    mm = guest.new_mm(cpu, f"{name}[{process.task}]")
    top = mm.layout.top
    flags = protection("rw") | VM_GROWSDOWN
    mm.maps.insert(new_vma(top - PAGE, top, flags, mm.entry_flags(flags)))
    s = guest.machine.reserve()
    early = bool(s.par[Par.EXEC_EARLY])
    if early:
        mm.populate(cpu, top - PAGE, 1, True)
    s = guest.machine.reserve()
    tables.moments(s, cpu, int(Step.EXEC), mm.number, mm.number, 0, 0, 0)
    s.cpus[cpu]["current"] = mm.number
    rows.load_mm(s, cpu, mm.number, 0, -1)
    if not early:
        mm.populate(cpu, top - PAGE, 1, True)
    return mm


def set_up(guest: Guest, process: Process, mm: Mm, program: Program | None) -> None:
    """Set up stack, segments and vDSO (setup_arg_pages, load_elf_binary)."""
    cpu = process.cpu
    _set_up_stack(guest, mm, cpu)
    _map_vdso(guest, mm)
    if program is not None:
        _map_segments(guest, process, mm, program)


def _set_up_stack(guest: Guest, mm: Mm, cpu: int) -> None:
    """Give the stack its flags, its place and its first size (setup_arg_pages)."""
    s = guest.machine.s
    if s.par[Par.EXEC_PROTECTS]:
        caller = mm.caller("tlb_finish_mmu")
        gather.begin(s, np.int64(0))
        mm.protect(cpu, mm.maps.table[-1])
        gather.finish(guest.machine.reserve(), cpu, mm.number, caller)
    if guest.platform.aslr:
        wide = mm.machine.format.width > 32
        stack, mappings, heap = (
            int(guest.random.integers(1, most)) * PAGE
            for most in (_STACK_RANDOM[wide], _MMAP_RANDOM[wide], _BRK_RANDOM)
        )
        moving.shift_stack(mm, cpu, stack)
        mm.layout.stack_random = stack
        # mappings begin below the lowest stack (mmap_base: pad)
        mm.layout.mmap_random = _STACK_RANDOM[wide] * PAGE + mappings
        mm.layout.brk_random = heap
    mm.maps.table[-1]["start"] -= _STACK_EXPAND


def _map_vdso(guest: Guest, mm: Mm) -> None:
    """Map the pages that the kernel shares with all programs (map_vdso)."""
    par = guest.machine.s.par
    vvar, vdso = int(par[Par.VVAR_PAGES]), int(par[Par.VDSO_PAGES])
    if "[vdso]" not in guest.programs:
        place = guest.machine.new_file(vvar + vdso, cached=True)
        guest.programs["[vdso]"] = File("[vdso]", vvar + vdso, place)
    file = guest.programs["[vdso]"]
    # With a random stack there is room above it in its last table (vdso_addr).
    wide = mm.machine.format.width > 32
    top = _above_stack(mm) if mm.layout.stack_random and wide else mm.layout.mmap_base
    at = mm.maps.gap((vvar + vdso) * PAGE, top)
    mm.layout.vdso_shift = at + (vvar + vdso) * PAGE - mm.layout.mmap_base - mm.layout.mmap_random
    last = file.place + file.pages - 1
    place = file.place
    for prot, extra, pages in (("r", VM_PFNMAP | SINGLE, vvar), ("rx", SINGLE, vdso)):
        if not pages:
            continue
        flags = protection(prot) | extra
        vma = new_vma(at, at + pages * PAGE, flags, mm.entry_flags(flags), place, last)
        mm.maps.insert(vma)
        at, place = at + pages * PAGE, place + pages


def _above_stack(mm: Mm) -> int:
    """Return the end of the 2 MiB that the end of the stack is in (vdso_addr)."""
    end = int(mm.maps.table[-1]["end"])
    return -(-end // _PMD_SIZE) * _PMD_SIZE


def _map_segments(guest: Guest, process: Process, mm: Mm, program: Program) -> None:
    """Map the segments of an executable and clear the end of its data (load_elf_binary)."""
    if program.name not in guest.programs:
        place = guest.machine.new_file(program.pages, cached=True)
        guest.programs[program.name] = File(program.name, program.pages, place)
    file = guest.programs[program.name]
    for x in program.segments:
        start, end = x.vaddr & -PAGE, -(-(x.vaddr + x.filesz) // PAGE) * PAGE
        mm.mmap(
            process.cpu, (end - start) // PAGE, start, x.prot, file=file, offset=x.offset // PAGE
        )
        beyond = -(-(x.vaddr + x.memsz) // PAGE) * PAGE
        if beyond > end:
            mm.mmap(process.cpu, (beyond - end) // PAGE, end, x.prot)
        if x.memsz > x.filesz and (x.vaddr + x.filesz) % PAGE:
            clear = np.array([x.vaddr + x.filesz], np.int64)
            mm.touch(process.cpu, clear, KERNEL | WRITE)  # padzero
        mm.layout.brk = max(mm.layout.brk, beyond)
    mm.layout.brk += mm.layout.brk_random
    mm.layout.heap = mm.layout.brk
