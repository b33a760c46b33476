"""Timing what an unprivileged process can make its kernel do; run in a process of its own.

    python -m pvmmu.costs.timing 20

prints JSON: nanoseconds of each repetition by name. A fresh process has few mappings and one
thread, so that a fork is a fork of what was mapped for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

from pvmmu._jit import kernel

PAGE: Final = mmap.PAGESIZE
#: Linux 5.14: fault pages in for writing without touching them.
MADV_POPULATE_WRITE: Final = 23
#: Pages up to which Linux invalidates one by one (tlb_single_page_flush_ceiling).
FLUSH_CEILING: Final = 33
MANY: Final = 2048
FEW: Final = 32
LINES: Final = 8192
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def mapping(pages: int, present: bool = True) -> Iterator[tuple[mmap.mmap, np.ndarray]]:
    """Map anonymous memory of small pages: the mapping, and its bytes."""
    m = mmap.mmap(-1, pages * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        m.madvise(mmap.MADV_NOHUGEPAGE)
    view = np.frombuffer(m, np.uint8)
    if present:
        view[::PAGE] = 1
    try:
        yield m, view
    finally:
        del view
        with contextlib.suppress(BufferError, ValueError):  # it was closed, or the caller keeps it
            m.close()


def timed(call: Callable[[], object]) -> int:
    """Return the nanoseconds of a call."""
    start = time.perf_counter_ns()
    call()
    return time.perf_counter_ns() - start


def touch_page() -> float:
    """First write to a page: fault, allocation, zeroing."""
    with mapping(MANY, present=False) as (_, view):
        return timed(lambda: view.__setitem__(slice(None, None, PAGE), 1)) / MANY


def populate_page() -> float:
    """The same work without a fault (MADV_POPULATE_WRITE)."""
    with mapping(MANY, present=False) as (m, _):
        return timed(lambda: m.madvise(MADV_POPULATE_WRITE)) / MANY


def _protect(pages: int) -> float:
    with mapping(pages) as (_, view):
        address = ctypes.c_void_p(view.ctypes.data)
        length = ctypes.c_size_t(pages * PAGE)
        took = timed(lambda: _libc.mprotect(address, length, mmap.PROT_READ))
        _libc.mprotect(address, length, mmap.PROT_READ | mmap.PROT_WRITE)
        return took


def mprotect_page() -> float:
    """Mprotect to read-only, for each page more where the whole TLB is flushed anyway."""
    return (_protect(MANY) - _protect(2 * FLUSH_CEILING)) / (MANY - 2 * FLUSH_CEILING)


def mprotect_page_flushed() -> float:
    """The same for each page more where pages are invalidated one by one."""
    return (_protect(FEW) - _protect(1)) / (FEW - 1)


def munmap_page() -> float:
    """Munmap, for each present page (freed, too)."""
    m = mmap.mmap(-1, MANY * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        m.madvise(mmap.MADV_NOHUGEPAGE)
    np.frombuffer(m, np.uint8)[::PAGE] = 1
    return timed(m.close) / MANY


def _fork() -> int:
    start = time.perf_counter_ns()
    child = os.fork()
    if child == 0:
        os._exit(0)
    took = time.perf_counter_ns() - start
    os.waitpid(child, 0)
    return took


def fork_page() -> float:
    """Fork, for each private page more."""
    least = _fork()
    with mapping(MANY):
        return (_fork() - least) / MANY


def context_switch(rounds: int = 200) -> float:
    """One switch between two processes that share a CPU, by a byte in a pipe."""
    there, back = os.pipe(), os.pipe()
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    child = os.fork()
    if child == 0:
        for _ in range(rounds):
            os.read(there[0], 1)
            os.write(back[1], b"x")
        os._exit(0)
    start = time.perf_counter_ns()
    for _ in range(rounds):
        os.write(there[1], b"x")
        os.read(back[0], 1)
    took = time.perf_counter_ns() - start
    os.waitpid(child, 0)
    os.sched_setaffinity(0, cpus)
    for end in (*there, *back):
        os.close(end)
    return took / (2 * rounds)


@kernel
def chase(following, steps):  # type: ignore[no-untyped-def]
    """Follow a cycle of indices; each load depends on the one before."""
    at = np.int64(0)
    for _ in range(steps):
        at = following[at]
    return at


def _chase(stride: int) -> float:
    """Return nanoseconds of a load from a cycle over lines that are `stride` bytes apart."""
    order = np.random.default_rng(1).permutation(LINES)
    words = stride // 8
    # one line of each page, but not the same one: the cache's sets are used evenly
    place = order * words + (order % (PAGE // 64)) * 8 * (stride == PAGE)
    with mapping(LINES * stride // PAGE + 1) as (_, view):
        following = view.view(np.int64)
        following[place] = np.roll(place, -1)
        chase(following[: LINES * words], LINES)
        return timed(lambda: chase(following[: LINES * words], 4 * LINES)) / (4 * LINES)


def tlb_miss() -> float:
    """A dependent load from one line of each page, above one from as many lines side by side."""
    return _chase(PAGE) - _chase(64)


TIMINGS: Final[dict[str, Callable[[], float]]] = {
    f.__name__: f
    for f in (
        touch_page, populate_page, mprotect_page, mprotect_page_flushed, munmap_page, fork_page,
        context_switch, tlb_miss,
    )
}  # fmt: skip


def measure(repetitions: int) -> dict[str, list[float]]:
    """Return nanoseconds of each repetition, but for timings that the kernel does not allow."""
    out: dict[str, list[float]] = {}
    for name, timing in TIMINGS.items():
        with contextlib.suppress(OSError):
            timing()
            out[name] = [timing() for _ in range(repetitions)]
    return out


if __name__ == "__main__":
    json.dump(measure(int(sys.argv[1])), sys.stdout)
