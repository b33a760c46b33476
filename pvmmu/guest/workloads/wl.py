"""The programs that were measured under Xen PV (``data/recorder/wl.c``), by the same names."""

from __future__ import annotations

from typing import Final

from pvmmu.guest.linux.process import Process
from pvmmu.guest.linux.program import load_program
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.workloads.loop import Loop, workload

#: Far from everything else: each has a top-level entry of its own (wl.c).
BASE: Final = 0x100_0000_0000
BASE2: Final = 0x100_4000_0000
#: The same in 32 bits, where only tables of the last level can be one's own.
BASE_32: Final = 0x4000_0000
BASE2_32: Final = 0x6000_0000
_STACK: Final = 2048


def _bases(loop: Loop) -> tuple[int, int]:
    """Return the two places where workloads map their memory."""
    wide = loop.guest.machine.format.width > 32
    return (BASE, BASE2) if wide else (BASE_32, BASE2_32)


def resident(loop: Loop, at: int | None = None, pages: int | None = None) -> int:
    """Map and write memory, as most programs do before they start."""
    p, pages = loop.process, loop.n if pages is None else pages
    at = p.mmap(max(pages, 1), _bases(loop)[0] if at is None else at)
    p.write(at, pages)
    return at


@workload("wl", unit="nothing", n=1)
def null(loop: Loop) -> None:
    """Nothing but the marks."""
    for _ in loop:
        loop.phase(0)


@workload("wl", unit="system calls", n=100)
def getppid(loop: Loop) -> None:
    """System calls that do nothing."""
    for _ in loop:
        loop.phase(0)
        loop.process.system_calls(loop.n)


def forked(loop: Loop) -> Process:
    """Fork; the parent goes on first."""
    child = loop.process.fork()
    loop.process.does("fork_parent" + loop.variant)
    return child


@workload("wl", n=64)
def fork(loop: Loop) -> None:
    """Fork a child that exits at once; then write the pages again."""
    p, at = loop.process, resident(loop)
    for _ in loop:
        loop.phase(0)
        child = forked(loop)
        loop.phase(1)
        child.does("fork_child" + loop.variant)
        child.exit()
        p.wait(child)
        loop.phase(2)
        p.write(at, loop.n)


@workload("wl", n=64)
def cow(loop: Loop) -> None:
    """Fork a child that writes the pages; then write them again."""
    p, at = loop.process, resident(loop)
    for _ in loop:
        loop.phase(0)
        child = forked(loop)
        loop.phase(1)
        child.does("fork_child")
        loop.phase(2, child)
        child.write(at, loop.n)
        loop.phase(3, child)
        child.exit()
        p.wait(child)
        loop.phase(4)
        p.write(at, loop.n)


@workload("wl", n=64)
def forkexec(loop: Loop) -> None:
    """Fork, execve of a static program that exits; then write the pages again."""
    p, at = loop.process, resident(loop)
    for _ in loop:
        loop.phase(0)
        child = forked(loop)
        loop.phase(1)
        child.does("fork_child")
        loop.phase(2, child)
        _exec_true(child)
        p.wait(child)
        loop.phase(3)
        p.write(at, loop.n)


@workload("wl", n=64)
def vforkexec(loop: Loop) -> None:
    """Vfork, execve of a static program that exits."""
    p = loop.process
    resident(loop)
    for _ in loop:
        loop.phase(0)
        child = p.vfork()
        _exec_true(child)
        p.wait(child)


def _exec_true(child: Process) -> None:
    child.does("exec_arguments")
    child.exec(load_program("true_s"))
    child.exit()


@workload("wl", n=64)
def mmap(loop: Loop) -> None:
    """Map, write, unmap."""
    p, base = loop.process, _bases(loop)[0]
    for _ in loop:
        loop.phase(0)
        p.mmap(loop.n, base)
        loop.phase(1)
        p.write(base, loop.n)
        loop.phase(2)
        p.munmap(base, loop.n)


@workload("wl", n=64)
def mmaprd(loop: Loop) -> None:
    """Map, read (the zero page), write, unmap."""
    p, base = loop.process, _bases(loop)[0]
    for _ in loop:
        loop.phase(0)
        p.mmap(loop.n, base)
        loop.phase(1)
        p.read(base, loop.n)
        loop.phase(2)
        p.write(base, loop.n)
        loop.phase(3)
        p.munmap(base, loop.n)


@workload("wl", n=64)
def populate(loop: Loop) -> None:
    """Map with MAP_POPULATE, unmap."""
    p, base = loop.process, _bases(loop)[0]
    for _ in loop:
        loop.phase(0)
        p.mmap(loop.n, base, populate=True)
        loop.phase(1)
        p.munmap(base, loop.n)


@workload("wl", unit="tables", n=8)
def sparse(loop: Loop) -> None:
    """Map, write one page in 2 MiB, unmap."""
    p, base = loop.process, _bases(loop)[0]
    for _ in loop:
        loop.phase(0)
        p.mmap(loop.n * 512, base)
        loop.phase(1)
        p.write(base, loop.n, stride=512)
        loop.phase(2)
        p.munmap(base, loop.n * 512)


def _protected(loop: Loop, prot: str) -> None:
    p, at = loop.process, resident(loop)
    for _ in loop:
        loop.phase(0)
        p.mprotect(at, loop.n, prot)
        loop.phase(1)
        p.mprotect(at, loop.n, "rw")
        loop.phase(2)
        p.write(at, loop.n)


@workload("wl", n=64)
def mprotect(loop: Loop) -> None:
    """Protect against writes, unprotect, write."""
    _protected(loop, "r")


@workload("wl", n=64)
def protnone(loop: Loop) -> None:
    """Protect against all access, unprotect, write."""
    _protected(loop, "-")


@workload("wl", n=64)
def dontneed(loop: Loop) -> None:
    """Write, madvise(MADV_DONTNEED)."""
    p = loop.process
    at = p.mmap(loop.n, _bases(loop)[0])
    for _ in loop:
        loop.phase(0)
        p.write(at, loop.n)
        loop.phase(1)
        p.dontneed(at, loop.n)


@workload("wl", n=64)
def cold(loop: Loop) -> None:
    """Write, madvise(MADV_COLD), write."""
    p = loop.process
    at = p.mmap(loop.n, _bases(loop)[0])
    for _ in loop:
        loop.phase(0)
        p.write(at, loop.n)
        loop.phase(1)
        p.cold(at, loop.n)
        loop.phase(2)
        p.write(at, loop.n)


def _cleared(loop: Loop, what: int) -> None:
    p, at = loop.process, resident(loop)
    for _ in loop:
        loop.phase(0)
        p.does("clear_refs")
        p.clear_refs(what)
        p.does("call")
        loop.phase(1)
        p.write(at, loop.n)


@workload("wl", n=64)
def clearrefs(loop: Loop) -> None:
    """Age all pages (/proc/PID/clear_refs), write."""
    _cleared(loop, 1)


@workload("wl", n=64)
def softdirty(loop: Loop) -> None:
    """Clear all soft-dirty bits (/proc/PID/clear_refs), write."""
    _cleared(loop, 4)


@workload("wl", n=64)
def mremap(loop: Loop) -> None:
    """Move memory there and back, not aligned to a table: page by page."""
    p, (base, base2) = loop.process, _bases(loop)
    at, to = base + PAGE, base2 + 3 * PAGE
    resident(loop, at)
    for neighbour in (base - 8 * PAGE, base2 - 8 * PAGE):
        p.mmap(1, neighbour)
        p.write(neighbour)
    _moved(loop, at, to)


@workload("wl", n=512)
def mremap2m(loop: Loop) -> None:
    """Move memory there and back, aligned to tables: whole tables."""
    at, to = _bases(loop)
    resident(loop, at)
    _moved(loop, at, to)


def _moved(loop: Loop, at: int, to: int) -> None:
    p = loop.process
    for _ in loop:
        loop.phase(0)
        p.mremap(at, loop.n, to)
        loop.phase(1)
        p.mremap(to, loop.n, at)


def _file(loop: Loop, prot: str, shared: bool) -> None:
    p, base = loop.process, _bases(loop)[0]
    file = loop.guest.file(loop.n, "/tmp/f")
    for _ in loop:
        loop.phase(0)
        p.mmap(loop.n, base, prot, shared=shared, file=file)
        loop.phase(1)
        (p.write if "w" in prot else p.read)(base, loop.n)
        loop.phase(2)
        p.munmap(base, loop.n)


@workload("wl", n=64)
def filerd(loop: Loop) -> None:
    """Map a file (tmpfs) shared, read, unmap."""
    _file(loop, "r", shared=True)


@workload("wl", n=64)
def filewr(loop: Loop) -> None:
    """Map a file (tmpfs) shared, write, unmap."""
    _file(loop, "rw", shared=True)


@workload("wl", n=64)
def filecow(loop: Loop) -> None:
    """Map a file (tmpfs) privately, write, unmap."""
    _file(loop, "rw", shared=False)


def _round_trips(loop: Loop, other: Process) -> None:
    p = loop.process
    for _ in loop:
        loop.phase(0)
        for _ in range(loop.n):
            p.system_calls(2)
            other.system_calls(2)


@workload("wl", unit="round trips", n=16)
def pipe(loop: Loop) -> None:
    """A byte to another process and back."""
    child = forked(loop)
    child.does("fork_child")
    _round_trips(loop, child)


@workload("wl", unit="round trips", n=16)
def thpipe(loop: Loop) -> None:
    """A byte to another thread and back."""
    _round_trips(loop, pthread(loop))


def pthread(loop: Loop, cpu: int = 0) -> Process:
    """Make a thread with a stack of 8 MiB below a guard page (glibc's pthread_create)."""
    p = loop.process
    at = p.mmap(_STACK + 1, prot="-")
    p.mprotect(at + PAGE, _STACK, "rw")
    p.write(at + _STACK * PAGE)
    return p.thread(cpu)
