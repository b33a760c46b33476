"""The programs of `wl` that were measured while a second thread runs on another CPU."""

from __future__ import annotations

from pvmmu.guest.workloads.loop import Loop, workload
from pvmmu.guest.workloads.wl import fork, mmap, mprotect, pthread


def _beside_a_spinner(loop: Loop) -> None:
    """Let a thread of the same process spin on CPU 1."""
    loop.guest.run(pthread(loop, cpu=1))
    loop.guest.run(loop.process)
    loop.variant = "_threads"


@workload("wl", n=64, vcpus=2)
def smpmmap(loop: Loop) -> None:
    """As mmap, while a thread runs on another CPU."""
    _beside_a_spinner(loop)
    mmap(loop)


@workload("wl", n=64, vcpus=2)
def smpmprotect(loop: Loop) -> None:
    """As mprotect, while a thread runs on another CPU."""
    _beside_a_spinner(loop)
    mprotect(loop)


@workload("wl", n=64, vcpus=2)
def smpfork(loop: Loop) -> None:
    """As fork, while a thread runs on another CPU."""
    _beside_a_spinner(loop)
    fork(loop)
