"""Run a workload on a guest."""

from __future__ import annotations

import dataclasses

from pvmmu.errors import GuestError, did_you_mean
from pvmmu.guest.linux.guest import Guest, default_platform
from pvmmu.guest.linux.profile import Profile, load_profile
from pvmmu.guest.linux.program import load_program
from pvmmu.guest.trace import Platform, Trace
from pvmmu.guest.workloads.loop import WORKLOADS, Loop, Workload

#: What Xen shows a 64-bit PV guest (`pvmmu.guest.readers.xen.recording`).
XEN_PV = Platform(
    guest="xen-pv", pse=False, pge=False, user_global=True, tables_by_rcu=True, split_ptlock=True
)


def _find_workload(name: str) -> Workload:
    """Return a workload by its name.

    Raises
    ------
    GuestError
        There is none; the message names the nearest.
    """
    if name not in WORKLOADS:
        hint = did_you_mean(name, WORKLOADS) or f" (there are {', '.join(WORKLOADS)})"
        raise GuestError(f"no workload is named {name!r}{hint}")
    return WORKLOADS[name]


def run_workload(
    name: str,
    n: int | None = None,
    kernel: str | Profile = "6.1",
    platform: Platform | None = None,
    *,
    iterations: int = 1,
    warm: int = 3,
    whole: bool = False,
    seed: int = 0,
    touches: bool = False,
    frames: int = 1 << 20,
) -> Trace:
    """Return the trace of a workload.

    Parameters
    ----------
    name : str
        Key of `WORKLOADS`.
    n : int, optional
        Size in the workload's unit; its own default otherwise.
    kernel : str or Profile
        Kernel profile.
    platform : Platform, optional
        What the guest sees; bare hardware by default. It gets as many vCPUs as the workload needs.
    iterations, warm : int
        Iterations in the trace, and before it.
    whole : bool
        Keep what comes before the measured iterations, which are then between marks (`Loop`).
    seed : int
        Of everything random.
    touches : bool
        Whether touches become rows.
    frames : int
        Memory, in frames of 4 KiB.

    Raises
    ------
    GuestError
        No such workload, a size below 0, no iteration, or memory exhausted.
    """
    what = _find_workload(name)
    n = what.n if n is None else n
    if n < 0 or iterations < 1 or warm < 0:
        raise GuestError(f"workload {name}: n={n}, {iterations} iterations, {warm} to warm up")
    profile = load_profile(kernel) if isinstance(kernel, str) else kernel
    platform = platform or default_platform(profile)
    if platform.vcpus < what.vcpus:
        platform = dataclasses.replace(platform, vcpus=what.vcpus)
    guest = Guest(profile, platform, frames, seed, touches)
    loop = Loop(guest, guest.spawn(load_program(what.program)), n, iterations, warm, whole)
    loop.source = f"{name}.{n}"
    what.function(loop)
    if loop.trace is None:
        raise GuestError(f"workload {name} has no loop")
    return loop.trace
