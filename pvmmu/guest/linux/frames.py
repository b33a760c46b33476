"""Page frames: per-CPU lists, last in first out, above a zone that hands out batches.

The order matters to a hypervisor that shadows tables: a table page that was freed is handed out
again soon. Sources: mm/page_alloc.c, 6.1: ``free_unref_page`` adds at the head of the list of its
migrate type, ``rmqueue_pcplist`` takes from the head, ``rmqueue_bulk`` refills with ``pcp->batch``
frames in ascending order, ``free_pcppages_bulk`` returns the oldest. The buddy lists below are a
simplification: frames that came back are handed out before new ones, last in first out; new ones
ascend.
"""

from __future__ import annotations

import numpy as np

from pvmmu._jit import lean, lean_part
from pvmmu.guest.linux.profile_keys import Par
from pvmmu.guest.linux.state import (
    END,
    ERROR,
    FREE,
    FRESH,
    NO_MEMORY,
    RETURNED,
)

_BATCH, _HIGH, _LISTS = int(Par.BATCH), int(Par.HIGH), int(Par.LISTS)

#: Frames that a step may need: those of a fault-around, and a table of each level.
_ONE_STEP = 32


@lean
def allocate(s, cpu, kind, movable):  # type: ignore[no-untyped-def]
    """Return a frame for some use; frame 0, and the error `NO_MEMORY`, if there is none."""
    which = _list_of(s, cpu, movable)
    if s.pool_n[which] == 0:
        _refill(s, which)
        if s.pool_n[which] == 0:
            s.n[ERROR] = NO_MEMORY
            return np.int64(0)
    s.pool_n[which] -= 1
    frame = s.pool[which, s.pool_n[which]]
    s.kind[frame] = kind
    s.maps[frame] = 0
    return frame


@lean_part
def short(s, cpu):  # type: ignore[no-untyped-def]
    """Whether memory may not last for one more step; then the error is `NO_MEMORY`.

    Asked between steps, so that none is left half done.
    """
    left = s.zone[END] - s.zone[FRESH] + s.zone[RETURNED]
    if left < _ONE_STEP:
        left += min(s.pool_n[_list_of(s, cpu, True)], s.pool_n[_list_of(s, cpu, False)])
        if left < _ONE_STEP:
            s.n[ERROR] = NO_MEMORY
            return True
    return False


@lean
def release(s, cpu, frame, movable):  # type: ignore[no-untyped-def]
    """Free a frame."""
    if frame == 0:
        return
    which = _list_of(s, cpu, movable)
    if s.pool_n[which] >= s.par[_HIGH]:
        _drain(s, which)
    s.kind[frame] = FREE
    s.pool[which, s.pool_n[which]] = frame
    s.pool_n[which] += 1


@lean_part
def _list_of(s, cpu, movable):  # type: ignore[no-untyped-def]
    """Return the list of a CPU for movable frames, or for others where the kernel keeps two."""
    return 2 * cpu + (0 if movable or s.par[_LISTS] == 1 else 1)


@lean_part
def _refill(s, which):  # type: ignore[no-untyped-def]
    """Take a batch from the zone; the lowest new frame will be the first to go."""
    back = min(s.zone[RETURNED], s.par[_BATCH])
    fresh = min(s.zone[END] - s.zone[FRESH], s.par[_BATCH] - back)
    at = 0
    for i in range(fresh):
        s.pool[which, at] = s.zone[FRESH] + fresh - 1 - i
        at += 1
    for i in range(back):
        s.pool[which, at] = s.returned[s.zone[RETURNED] - back + i]
        at += 1
    s.zone[FRESH] += fresh
    s.zone[RETURNED] -= back
    s.pool_n[which] = at


@lean_part
def _drain(s, which):  # type: ignore[no-untyped-def]
    """Give the oldest batch back to the zone."""
    count = min(s.par[_BATCH], s.pool_n[which])
    for i in range(count):
        s.returned[s.zone[RETURNED] + i] = s.pool[which, i]
    s.zone[RETURNED] += count
    for i in range(count, s.pool_n[which]):
        s.pool[which, i - count] = s.pool[which, i]
    s.pool_n[which] -= count
