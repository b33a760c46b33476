"""Mappings of the kernel itself: vmalloc and vfree (mm/vmalloc.c)."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import ZERO, lean
from pvmmu.guest.linux.frames import short
from pvmmu.guest.linux.profile_keys import Step
from pvmmu.guest.linux.state import ROWS, SLACK
from pvmmu.guest.linux.tables import (
    ENTRY_BYTES,
    boundary,
    calls,
    ensure,
    entry_at,
    load,
    moments,
)

_INIT_MM, _LEAF = np.int64(0), np.int64(1)
_TABLE, _MAP_OPEN, _MAP_PAGE, _MAP_CLOSE, _UNMAP_OPEN, _UNMAP_PAGE, _UNMAP_CLOSE = (
    np.int64(x)
    for x in (
        Step.KERNEL_TABLE, Step.VMAP_OPEN, Step.VMAP_PAGE, Step.VMAP_CLOSE, Step.VUNMAP_OPEN,
        Step.VUNMAP_PAGE, Step.VUNMAP_CLOSE,
    )
)  # fmt: skip


@lean
def map_kernel(s, cpu, start, frames, first, flags):  # type: ignore[no-untyped-def]
    """Map frames at consecutive kernel addresses (vmap_pages_pte_range).

    Parameters
    ----------
    start : int64
        Address of the first page (bytes).
    frames : int64[n]
        What to map.
    first : int64
        Element to begin with.
    flags : int64
        Flags of the entries.

    Returns
    -------
    int64
        Element to go on with once there is room for rows; n when done.
    """
    i = first
    while i < frames.shape[0]:
        if s.out.shape[0] - s.n[ROWS] < SLACK or short(s, cpu):
            return i
        va = start + (i << 12)
        at = ensure(s, cpu, _INIT_MM, va, _LEAF, _TABLE)
        count = min((boundary(s, va, np.int64(2)) - va) >> 12, frames.shape[0] - i)
        moments(s, cpu, _MAP_OPEN, _INIT_MM, _INIT_MM, ZERO, ZERO, ZERO)
        for k in range(i, i + count):
            entry = frames[k] << 12 | flags
            page = np.int64(start + (k << 12))
            calls(s, cpu, _MAP_PAGE, _INIT_MM, at, entry, _INIT_MM, at, entry, page, ZERO)
            at += s.fmt[ENTRY_BYTES]
        moments(s, cpu, _MAP_CLOSE, _INIT_MM, _INIT_MM, ZERO, ZERO, ZERO)
        i += count
    return i


@lean
def unmap_kernel(s, cpu, start, end):  # type: ignore[no-untyped-def]
    """Clear the entries of kernel addresses; their tables stay (__vunmap_range_noflush).

    Returns
    -------
    int64
        Address to go on with once there is room for rows; `end` when done.
    """
    va = start
    while va < end:
        if s.out.shape[0] - s.n[ROWS] < SLACK:
            return va
        at = entry_at(s, _INIT_MM, va, _LEAF)
        past = min(end, boundary(s, va, np.int64(2)))
        moments(s, cpu, _UNMAP_OPEN, _INIT_MM, _INIT_MM, ZERO, ZERO, ZERO)
        for page in range(va, past, 4096):
            if load(s, at) != 0:
                calls(
                    s, cpu, _UNMAP_PAGE, _INIT_MM, at, ZERO, _INIT_MM, at, ZERO, np.int64(page),
                    ZERO,
                )  # fmt: skip
            at += s.fmt[ENTRY_BYTES]
        moments(s, cpu, _UNMAP_CLOSE, _INIT_MM, _INIT_MM, ZERO, ZERO, ZERO)
        va = past
    return va
