"""The multicall buffer of a Xen guest kernel, one for each CPU.

Source: Linux arch/x86/xen/multicalls.c, v2.6.27 and 6.1.166. Entries are calls; consecutive
requests of one kind extend the last entry. The buffer is flushed when it is full, when a call is
issued outside of a bracket, and at the end of a bracket.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pvmmu._jit import ONE, lean, record
from pvmmu.modes.counters import emit, new_counts, new_log
from pvmmu.modes.direct.writable_tables import close_writable, new_slots
from pvmmu.modes.events import Event

# Kinds of calls, as logged.
MMU_UPDATE, UPDATE_VA_MAPPING, MMUEXT_OP = np.int64(0), np.int64(1), np.int64(2)
#: Bytes of one request in the argument area (struct mmu_update, struct mmuext_op; 64-bit).
MMU_UPDATE_BYTES, MMUEXT_OP_BYTES = np.int64(16), np.int64(24)
_MAX_ENTRIES = 64

#: State of one CPU.
CPU_STATE: Final = record(
    ("entries", "i8"),  # in the buffer
    ("bytes", "i8"),  # of its argument area
    ("callbacks", "i8"),
    ("brackets", "i8"),  # open ones, for the caller
    ("loaded", "i8"),  # address space in CR3, for the caller; -1 unknown
    ("kind", "i8", (_MAX_ENTRIES,)),
    ("requests", "i8", (_MAX_ENTRIES,)),  # of each entry
)
#: What a kernel's buffer is like.
LIMITS: Final = record(
    ("entries", "i8"),
    ("room", "i8"),  # bytes that the argument area takes
    ("bypass", "?"),  # a single call goes by itself
)


class Machine(NamedTuple):
    """CPUs with their buffers, the writable tables that a call closes, counts and log."""

    cpus: np.ndarray  # CPU_STATE[cpu]
    limits: np.ndarray  # LIMITS[1]
    slots: np.ndarray  # ptwr.SLOT[2]
    counts: np.ndarray  # int64[N_EVENTS + 2], see `pvmmu.modes.counters`
    log: np.ndarray  # int64[n, 4]: row, event, amount, CPU


def new_machine(
    cpus: int, limits: tuple[int, int, bool], batched_stores: bool = False, log_rows: int = 0
) -> Machine:
    """Return CPUs with empty buffers.

    Parameters
    ----------
    cpus : int
        CPUs of the guest.
    limits : (int, int, bool)
        See `LIMITS`; at most 64 entries.
    batched_stores : bool
        Stores to typed tables make them writable for a while (see `writable_tables`).
    log_rows : int
        Room of the log; 0 keeps none.
    """
    if not 1 <= limits[0] <= _MAX_ENTRIES:
        raise ValueError(f"a multicall buffer has 1 to {_MAX_ENTRIES} entries, not {limits[0]}")
    state = np.zeros(cpus, CPU_STATE)
    state["loaded"] = -1
    slots = new_slots(batched_stores)
    return Machine(state, np.array([limits], LIMITS), slots, new_counts(), new_log(log_rows))


@lean
def call(m, row, kind, size):  # type: ignore[no-untyped-def]
    """One hypercall of its own, with `size` requests."""
    close_writable(m.slots, m.counts, m.log, row)
    if kind == MMU_UPDATE:
        emit(m.counts, m.log, row, Event.MMU_UPDATE, ONE)
        emit(m.counts, m.log, row, Event.MMU_UPDATE_REQUESTS, size)
    elif kind == UPDATE_VA_MAPPING:
        emit(m.counts, m.log, row, Event.UPDATE_VA_MAPPING, ONE)
    else:
        emit(m.counts, m.log, row, Event.MMUEXT_OP, ONE)
        emit(m.counts, m.log, row, Event.MMUEXT_OP_REQUESTS, size)


@lean
def flush(m, cpu, row):  # type: ignore[no-untyped-def]
    """Send what waits in the buffer of a CPU (xen_mc_flush)."""
    c = m.cpus[cpu]
    if c.entries == 1 and m.limits[0].bypass:
        call(m, row, c.kind[0], c.requests[0])
    elif c.entries > 0:
        close_writable(m.slots, m.counts, m.log, row)
        emit(m.counts, m.log, row, Event.MULTICALL, ONE)
        emit(m.counts, m.log, row, Event.MULTICALL_SUBCALLS, c.entries)
        for i in range(c.entries):
            _subcall(m, row, c.kind[i], c.requests[i])
    c.entries = c.bytes = c.callbacks = 0


@lean
def _subcall(m, row, kind, size):  # type: ignore[no-untyped-def]
    if kind == MMU_UPDATE:
        emit(m.counts, m.log, row, Event.SUB_MMU_UPDATE, ONE)
        emit(m.counts, m.log, row, Event.SUB_MMU_UPDATE_REQUESTS, size)
    elif kind == UPDATE_VA_MAPPING:
        emit(m.counts, m.log, row, Event.SUB_UPDATE_VA_MAPPING, ONE)
    else:
        emit(m.counts, m.log, row, Event.SUB_MMUEXT_OP, ONE)
        emit(m.counts, m.log, row, Event.SUB_MMUEXT_OP_REQUESTS, size)


@lean
def entry(m, cpu, row, kind, nbytes):  # type: ignore[no-untyped-def]
    """Append an entry of one request (__xen_mc_entry), flushing a full buffer first."""
    c = m.cpus[cpu]
    if c.entries == m.limits[0].entries or c.bytes + nbytes > m.limits[0].room:
        flush(m, cpu, row)
    c.kind[c.entries], c.requests[c.entries] = kind, ONE
    c.entries += 1
    c.bytes += nbytes


@lean
def extend(m, cpu, row, kind, nbytes):  # type: ignore[no-untyped-def]
    """Append a request to the last entry if it is of the same kind and fits, else a new entry."""
    c = m.cpus[cpu]
    last = c.entries - 1
    if last >= 0 and c.kind[last] == kind and c.bytes + nbytes <= m.limits[0].room:
        c.requests[last] += 1
        c.bytes += nbytes
    else:
        entry(m, cpu, row, kind, nbytes)


@lean
def callback(m, cpu, row):  # type: ignore[no-untyped-def]
    """Note a callback for after the flush (xen_mc_callback); a full list forces one."""
    if m.cpus[cpu].callbacks == m.limits[0].entries:
        flush(m, cpu, row)
    m.cpus[cpu].callbacks += 1
