"""The programs that were measured under shadow and nested paging, by the same names.

The program is the guest's init. Each workload warms up twice; a mark of the recorder is an OUT
instruction and touches no memory.
"""

from __future__ import annotations

from typing import Final

from pvmmu.guest.linux.process import Process
from pvmmu.guest.linux.program import load_program
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.workloads.loop import Loop, workload

_INIT: Final = "l2x_init"
_MIB: Final = 256


def _anon(loop: Loop, pages: int | None = None) -> int:
    """Map and write memory where the kernel likes."""
    at = loop.process.mmap(loop.n if pages is None else pages)
    _write(loop.process, at, loop.n if pages is None else pages)
    return at


def _write(p: Process, at: int, pages: int) -> None:
    p.does("write")  # the value written is a variable of the program's own
    p.write(at, pages)


def _reap(p: Process, child: Process) -> None:
    p.wait(child)
    p.does("waited")


def _forked(loop: Loop) -> Process:
    child = loop.process.fork()
    loop.process.does("fork_parent")
    child.does("fork_child")
    return child


def _fork_exit(loop: Loop, redirty: bool) -> None:
    p = loop.process
    at = _anon(loop) if loop.n else 0
    for _ in loop:
        child = _forked(loop)
        child.exit()
        _reap(p, child)
        if redirty and loop.n:
            _write(p, at, loop.n)


@workload("shadow", n=256, program=_INIT)
def fork_exit(loop: Loop) -> None:
    """Fork a child that exits at once."""
    _fork_exit(loop, redirty=False)


@workload("shadow", n=256, program=_INIT)
def fork_exit_redirty(loop: Loop) -> None:
    """Fork a child that exits at once, then write the pages again."""
    _fork_exit(loop, redirty=True)


def _fork_exec(loop: Loop, program: str, vfork: bool = False) -> None:
    p = loop.process
    for _ in loop:
        child = p.vfork() if vfork else _forked(loop)
        child.does("exec_arguments")
        child.exec(load_program(program))
        child.exit()
        _reap(p, child)


@workload("shadow", unit="nothing", n=0, program=_INIT)
def fork_exec_tiny(loop: Loop) -> None:
    """Fork and exec of a static program without a C library."""
    _fork_exec(loop, "tiny")


@workload("shadow", unit="nothing", n=0, program=_INIT)
def fork_exec_glibc_static(loop: Loop) -> None:
    """Fork and exec of a static program with a C library."""
    _fork_exec(loop, "true_s")


@workload("shadow", unit="nothing", n=0, program=_INIT)
def vfork_exec_tiny(loop: Loop) -> None:
    """Vfork and exec of a static program without a C library."""
    _fork_exec(loop, "tiny", vfork=True)


@workload("shadow", n=64, program=_INIT)
def mmap_touch_munmap(loop: Loop) -> None:
    """Map, write, unmap."""
    p = loop.process
    for _ in loop:
        at = p.mmap(loop.n)
        _write(p, at, loop.n)
        p.munmap(at, loop.n)


def _aligned_area(loop: Loop, pages: int) -> int:
    """Reserve address space and return the first 2 MiB boundary in it."""
    area = loop.process.mmap(pages, prot="-")
    return -(-area // (512 * PAGE)) * 512 * PAGE


@workload("shadow", n=64, program=_INIT)
def mmap_touch_munmap_keeptables(loop: Loop) -> None:
    """Map, write, unmap between neighbours that keep the tables alive."""
    p = loop.process
    base = _aligned_area(loop, 16 * _MIB) + 32 * PAGE
    at, top = base + PAGE, base + (1 + loop.n) * PAGE
    for neighbour in (base, top):
        p.mprotect(neighbour, 1, "rw")
        _write(p, neighbour, 1)
    for _ in loop:
        p.mmap(loop.n, at)
        _write(p, at, loop.n)
        p.munmap(at, loop.n)


@workload("shadow", n=1024, program=_INIT)
def mmap_populate_munmap(loop: Loop) -> None:
    """Map with MAP_POPULATE, unmap."""
    p = loop.process
    for _ in loop:
        p.munmap(p.mmap(loop.n, populate=True), loop.n)


@workload("shadow", n=1024, program=_INIT)
def madv_dontneed_touch(loop: Loop) -> None:
    """madvise(MADV_DONTNEED), write."""
    p = loop.process
    at = p.mmap(loop.n)
    for _ in loop:
        p.dontneed(at, loop.n)
        _write(p, at, loop.n)


@workload("shadow", n=1024, program=_INIT)
def touch_resident(loop: Loop) -> None:
    """Write pages that are there."""
    at = _anon(loop)
    for _ in loop:
        _write(loop.process, at, loop.n)


def _protect(loop: Loop, touch: bool) -> None:
    p, at = loop.process, _anon(loop)
    for _ in loop:
        p.mprotect(at, loop.n, "r")
        if touch:
            p.read(at, loop.n)
        p.mprotect(at, loop.n, "rw")
        if touch:
            _write(p, at, loop.n)


# wl.py has programs named `mprotect` and `mremap`, too: other memory, other order.
@workload("shadow", n=64, program=_INIT, name="shadow/mprotect")
def _mprotect_anon(loop: Loop) -> None:
    """Protect against writes, unprotect (measured as `mprotect`, too)."""
    _protect(loop, touch=False)


@workload("shadow", n=64, program=_INIT)
def mprotect_touch(loop: Loop) -> None:
    """Protect against writes, read, unprotect, write."""
    _protect(loop, touch=True)


@workload("shadow", n=64, program=_INIT)
def cow_child(loop: Loop) -> None:
    """Fork a child that writes the pages."""
    p, at = loop.process, _anon(loop)
    for _ in loop:
        child = _forked(loop)
        _write(child, at, loop.n)
        child.exit()
        _reap(p, child)


@workload("shadow", unit="nothing", n=0, program=_INIT)
def pipe_pingpong_roundtrip(loop: Loop) -> None:
    """A byte to another process and back."""
    child = _forked(loop)
    for _ in loop:
        loop.process.system_calls(2)
        child.system_calls(2)


@workload("shadow", unit="nothing", n=0, program=_INIT)
def pipe_pingpong_samemm(loop: Loop) -> None:
    """A byte to another thread and back."""
    thread = loop.process.thread()
    for _ in loop:
        loop.process.system_calls(2)
        thread.system_calls(2)


@workload("shadow", unit="nothing", n=0, program=_INIT)
def pipe_self_noswitch(loop: Loop) -> None:
    """A byte to oneself."""
    for _ in loop:
        loop.process.system_calls(2)


@workload("shadow", unit="nothing", n=0, program=_INIT)
def null_syscall(loop: Loop) -> None:
    """A system call that does nothing."""
    for _ in loop:
        loop.process.system_calls(1)


@workload("shadow", unit="nothing", n=0, program=_INIT)
def signal_self(loop: Loop) -> None:
    """A signal to oneself."""
    for _ in loop:
        loop.process.does("write")
        loop.process.system_calls(2)


@workload("shadow", unit="nothing", n=0, program=_INIT)
def spin_user_Minsn(loop: Loop) -> None:
    """Compute."""
    for _ in loop:
        loop.process.does("write")


@workload("shadow", unit="nothing", n=0, program=_INIT)
def empty(loop: Loop) -> None:
    """Nothing but the marks."""
    for _ in loop:
        pass


@workload("shadow", n=64, program=_INIT)
def file_read_fault(loop: Loop) -> None:
    """Map a file privately, read, unmap."""
    p, file = loop.process, loop.guest.file(1024, "/data")
    for _ in loop:
        at = p.mmap(loop.n, prot="r", file=file)
        p.read(at, loop.n)
        p.munmap(at, loop.n)


def _mremap(loop: Loop, aligned: bool, touch: bool) -> None:
    p = loop.process
    base = _aligned_area(loop, 32 * _MIB) + (0 if aligned else 16 * PAGE)
    here, there = base, base + 16 * _MIB * PAGE
    p.mmap(loop.n, here)
    _write(p, here, loop.n)
    for _ in loop:
        p.mremap(here, loop.n, there)
        if touch:
            _write(p, there, loop.n)
        here, there = there, here


@workload("shadow", n=64, program=_INIT, name="shadow/mremap")
def _mremap_move(loop: Loop) -> None:
    """Move memory, not aligned to a table (measured as `mremap`)."""
    _mremap(loop, aligned=False, touch=False)


@workload("shadow", n=64, program=_INIT)
def mremap_touch(loop: Loop) -> None:
    """Move memory, not aligned to a table, and write it."""
    _mremap(loop, aligned=False, touch=True)


@workload("shadow", n=1024, program=_INIT, name="mremap_2Maligned")
def _mremap_aligned(loop: Loop) -> None:
    """Move memory, aligned to tables."""
    _mremap(loop, aligned=True, touch=False)


@workload("shadow", n=1024, program=_INIT, name="mremap_2Maligned_touch")
def _mremap_aligned_touch(loop: Loop) -> None:
    """Move memory, aligned to tables, and write it."""
    _mremap(loop, aligned=True, touch=True)
