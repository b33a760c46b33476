"""Mixes like whole programs: a shell loop, a compiler, a kernel build, a forking server.

The shell loop is that of a recording. The others are synthetic; what they assume is said in their
docstrings, and their sizes are those that the recorded programs of the same kind have.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu.guest.linux.layout import File
from pvmmu.guest.linux.process import Process
from pvmmu.guest.linux.program import load_program
from pvmmu.guest.linux.vma import PAGE
from pvmmu.guest.workloads.loop import Loop, workload
from pvmmu.guest.workloads.wl import forked

_LIBRARY: Final = 480  # pages of a C library: text, data and the rest (glibc 2.36: 1.9 MB)


def _shell_loop(shell: Process, commands: int) -> None:
    """Run a static program so many times from a shell, each in a child of its own."""
    for _ in range(commands):
        child = shell.fork()
        shell.does("fork_parent")
        child.does("fork_child")
        child.does("exec_arguments")
        child.exec(load_program("true_s"))
        child.exit()
        shell.wait(child)
        shell.does("waited")


@workload("mix", unit="commands", n=50)
def cmd_shloop(loop: Loop) -> None:
    """Busybox's shell runs a static program n times (recorded as shloop with n = 20)."""
    p = loop.process
    for _ in loop:
        loop.phase(0)
        shell = forked(loop)
        shell.does("fork_child")
        shell.does("exec_arguments")
        shell.exec(load_program("busybox"))
        _shell_loop(shell, loop.n)
        shell.exit()
        p.wait(shell)


# ---------------------------------------------------------------------- dynamic programs
def _load_dynamic(p: Process, libraries: list[File], data_pages: int, text_pages: int) -> None:
    """Map shared libraries as a dynamic loader does, relocate their data, touch some text.

    Parameters
    ----------
    p : Process
        It has just been executed.
    libraries : list of File
        Each is mapped whole and read-only, then its text, then its data; a tenth is data.
    data_pages, text_pages : int
        Pages of each library's data that relocation writes, and of its text that are run.
    """
    for file in libraries:
        data = max(2, file.pages // 10)
        at = p.mmap(file.pages, prot="r", file=file)
        text = file.pages // 2
        p.mmap(text, at, "rx", file=file)
        writable = at + (file.pages - data) * PAGE
        p.mmap(data, writable, "rw", file=file, offset=file.pages - data)
        p.read(at)
        p.write(writable, min(data, data_pages))
        p.mprotect(writable, max(1, data // 2), "r")
        p.touch(at + PAGE * (np.arange(text_pages) * 7 % text), 2)


def _compile(
    p: Process, libraries: list[File], source: File, heap: int, random: np.random.Generator
) -> None:
    """Work as a compiler does: read a file, grow a heap, touch it in no order, map and unmap."""
    _load_dynamic(p, libraries, 4, 24)
    at = p.mmap(source.pages, prot="r", file=source)
    p.read(at, source.pages)
    done = 0
    while done < heap:
        chunk = min(heap - done, 256)
        block = p.mmap(chunk)
        p.write(block, chunk)
        p.touch(block + random.integers(0, chunk, chunk) * PAGE, 1)
        if random.random() < 0.3:
            p.munmap(block, chunk)
        done += chunk
    p.munmap(at, source.pages)


def _files(loop: Loop) -> tuple[list[File], File]:
    g = loop.guest
    libraries = [g.file(_LIBRARY, "libc.so"), g.file(_LIBRARY // 3, "libm.so")]
    return libraries, g.file(64, "source")


@workload("mix", unit="files", n=4)
def compile(loop: Loop) -> None:
    """A driver runs a compiler and an assembler for each of n files.

    Assumptions: vfork for each, libraries of the size of glibc's, 1,500 pages of heap for the
    compiler (a small C file under gcc), a third of them for the assembler.
    """
    p = loop.process
    libraries, source = _files(loop)
    random = np.random.default_rng(loop.guest.seed)
    for _ in loop:
        loop.phase(0)
        for _ in range(loop.n):
            for heap in (1500, 500):
                child = p.vfork()
                child.exec(load_program("true_s"))
                _compile(child, libraries, source, heap, random)
                child.exit()
                p.wait(child)


@workload("mix", unit="files", n=20)
def kernel_build(loop: Loop) -> None:
    """A make that runs, for each of n files, a shell which forks a compiler, and a small tool.

    Assumptions: as for `compile`, with a heap of 4,000 pages (kernel sources include a lot), a
    shell that forks (no vfork), and one small static program (in the place of fixdep) for each
    file.
    """
    p = loop.process
    libraries, source = _files(loop)
    random = np.random.default_rng(loop.guest.seed)
    for _ in loop:
        loop.phase(0)
        for _ in range(loop.n):
            shell = forked(loop)
            shell.does("fork_child")
            shell.exec(load_program("busybox"))
            compiler = shell.fork()
            shell.does("fork_parent")
            compiler.does("fork_child")
            compiler.exec(load_program("true_s"))
            _compile(compiler, libraries, source, 4000, random)
            compiler.exit()
            shell.wait(compiler)
            shell.does("waited")
            _shell_loop(shell, 1)
            shell.exit()
            p.wait(shell)


@workload("mix", unit="pages", n=2000)
def forking_server(loop: Loop) -> None:
    """A server of n pages forks 20 snapshots, one at a time, and goes on writing (forksnap).

    As the recorded program: a child reads all pages and writes 50, the parent writes 50 while the
    child lives; which, is random.
    """
    p = loop.process
    at = p.mmap(loop.n)
    p.write(at, loop.n)
    random = np.random.default_rng(loop.guest.seed)
    for _ in loop:
        loop.phase(0)
        for _ in range(20):
            child = forked(loop)
            child.does("fork_child")
            child.read(at, loop.n)
            child.touch(at + random.integers(0, loop.n, 50) * PAGE, 1)
            p.touch(at + random.integers(0, loop.n, 50) * PAGE, 1)
            child.exit()
            p.wait(child)
