"""The multicall buffer of a Xen guest kernel, one for each CPU.

Source: Linux arch/x86/xen/multicalls.c, v2.6.27 and 6.1.166. Entries are calls; consecutive
requests of one kind extend the last entry. The buffer is flushed when it is full, when a call is
issued outside of a bracket, and at the end of a bracket.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pvmmu._jit import ONE, inner, kernel
from pvmmu.modes.events import Event
from pvmmu.modes.ptwr import Ptwr, close_writable, new_ptwr
from pvmmu.modes.tally import Tally, emit, new_tally

# Kinds of calls, as logged.
MMU_UPDATE, UPDATE_VA_MAPPING, MMUEXT_OP = np.int64(0), np.int64(1), np.int64(2)
#: Bytes of one request in the argument area (struct mmu_update, struct mmuext_op; 64-bit).
MMU_UPDATE_BYTES, MMUEXT_OP_BYTES = np.int64(16), np.int64(24)
_MAX_ENTRIES = 64
# Fields of the per-CPU state.
_N, _BYTES, _CALLBACKS = 0, 1, 2
# Indices into limits.
_ENTRIES, _ROOM, _BYPASS = 0, 1, 2


class Buffer(NamedTuple):
    """Multicall buffers of all CPUs, the writable tables that a call closes, and the tally.

    ``limits`` is (entries, bytes, single-call bypass).
    """

    state: np.ndarray  # int64[cpu, 3]
    kind: np.ndarray  # int64[cpu, entry]
    size: np.ndarray  # int64[cpu, entry]: requests of an entry
    limits: np.ndarray  # int64[3]
    tally: Tally
    ptwr: Ptwr


def new_buffer(
    cpus: int, limits: tuple[int, int, int], batched_stores: bool = False, log_rows: int = 0
) -> Buffer:
    """Return empty buffers.

    Parameters
    ----------
    cpus : int
        CPUs of the guest.
    limits : (int, int, int)
        Entries of a buffer (at most 64), bytes that its argument area takes, and whether a single
        call bypasses the multicall (0 or 1).
    batched_stores : bool
        Stores to typed tables make them writable for a while (`pvmmu.modes.ptwr`).
    log_rows : int
        Room of the log; 0 keeps none.
    """
    if not 1 <= limits[0] <= _MAX_ENTRIES:
        raise ValueError(f"a multicall buffer has 1 to {_MAX_ENTRIES} entries, not {limits[0]}")
    return Buffer(
        np.zeros((cpus, 3), np.int64),
        np.zeros((cpus, _MAX_ENTRIES), np.int64),
        np.zeros((cpus, _MAX_ENTRIES), np.int64),
        np.array(limits, np.int64),
        new_tally(log_rows),
        new_ptwr(batched_stores),
    )


@kernel
def call(b, row, kind, size):  # type: ignore[no-untyped-def]
    """One hypercall of its own, with `size` requests."""
    close_writable(b.ptwr, b.tally, row)
    if kind == MMU_UPDATE:
        emit(b.tally, row, Event.MMU_UPDATE, ONE)
        emit(b.tally, row, Event.MMU_UPDATE_REQUESTS, size)
    elif kind == UPDATE_VA_MAPPING:
        emit(b.tally, row, Event.UPDATE_VA_MAPPING, ONE)
    else:
        emit(b.tally, row, Event.MMUEXT_OP, ONE)
        emit(b.tally, row, Event.MMUEXT_OP_REQUESTS, size)


@kernel
def flush(b, cpu, row):  # type: ignore[no-untyped-def]
    """Send what waits in the buffer of a CPU (xen_mc_flush)."""
    n = b.state[cpu, _N]
    if n == 1 and b.limits[_BYPASS]:
        call(b, row, b.kind[cpu, 0], b.size[cpu, 0])
    elif n > 0:
        close_writable(b.ptwr, b.tally, row)
        emit(b.tally, row, Event.MULTICALL, ONE)
        emit(b.tally, row, Event.MULTICALL_SUBCALLS, n)
        for i in range(n):
            kind, size = b.kind[cpu, i], b.size[cpu, i]
            if kind == MMU_UPDATE:
                emit(b.tally, row, Event.SUB_MMU_UPDATE, ONE)
                emit(b.tally, row, Event.SUB_MMU_UPDATE_REQUESTS, size)
            elif kind == UPDATE_VA_MAPPING:
                emit(b.tally, row, Event.SUB_UPDATE_VA_MAPPING, ONE)
            else:
                emit(b.tally, row, Event.SUB_MMUEXT_OP, ONE)
                emit(b.tally, row, Event.SUB_MMUEXT_OP_REQUESTS, size)
    b.state[cpu, _N] = 0
    b.state[cpu, _BYTES] = 0
    b.state[cpu, _CALLBACKS] = 0


@kernel
def entry(b, cpu, row, kind, nbytes):  # type: ignore[no-untyped-def]
    """Append an entry of one request (__xen_mc_entry), flushing a full buffer first."""
    if b.state[cpu, _N] == b.limits[_ENTRIES] or b.state[cpu, _BYTES] + nbytes > b.limits[_ROOM]:
        flush(b, cpu, row)
    n = b.state[cpu, _N]
    b.kind[cpu, n], b.size[cpu, n] = kind, 1
    b.state[cpu, _N] = n + 1
    b.state[cpu, _BYTES] += nbytes


@kernel
def extend(b, cpu, row, kind, nbytes):  # type: ignore[no-untyped-def]
    """Append a request to the last entry if it is of the same kind and fits, else a new entry."""
    n = b.state[cpu, _N]
    if n > 0 and b.kind[cpu, n - 1] == kind and b.state[cpu, _BYTES] + nbytes <= b.limits[_ROOM]:
        b.size[cpu, n - 1] += 1
        b.state[cpu, _BYTES] += nbytes
    else:
        entry(b, cpu, row, kind, nbytes)


@kernel
def callback(b, cpu, row):  # type: ignore[no-untyped-def]
    """Note a callback for after the flush (xen_mc_callback); a full list forces one."""
    if b.state[cpu, _CALLBACKS] == b.limits[_ENTRIES]:
        flush(b, cpu, row)
    b.state[cpu, _CALLBACKS] += 1


@inner
def waiting(b, cpu):  # type: ignore[no-untyped-def]
    """Entries that wait in the buffer of a CPU."""
    return b.state[cpu, _N]
