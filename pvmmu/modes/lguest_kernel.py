"""The loop of lguest mode: hypercalls and their ring, and what the four shadows hold.

Whether an entry is in a shadow follows from three clocks: when it was filled, and when its region,
its address space or everything was dropped last. A drop so costs the same whatever it drops.
"""

from __future__ import annotations

from enum import IntEnum, unique
from typing import Final, NamedTuple

import numpy as np

from pvmmu._jit import ONE, ZERO, lean, record
from pvmmu.modes.counters import emit
from pvmmu.modes.events import Event


@unique
class Mechanism(IntEnum):
    """What carries an operation under lguest."""

    NOTHING = 0
    STORE = 1  # plain, not told
    LOCKED = 2
    TELL = 3  # SET_PTE, after the store
    TELL_WITHOUT_ADDRESS = 4  # FLUSH_TLB of everything, after a store at no known address
    TELL_TABLE = 5  # SET_PMD
    FLUSH_ONE = 6  # SET_PTE of nothing in the loaded directory
    FLUSH_USER = 7
    FLUSH_ALL = 8
    NEW_TABLE = 9
    BRACKET = 10
    BRACKET_END = 11
    FAULT = 12
    TOUCH = 13
    EXIT = 14


ROW: Final = record(
    ("page", "i4"),  # number of (address space, page)
    ("region", "i4"),  # number of (address space, reach of a PTE table)
    ("mm", "i4"),
    ("count", "i4"),
    ("cpu", "u1"),
    ("present", "?"),  # the new entry is
    ("used", "?"),  # the new entry has A or D set
)


class Host(NamedTuple):
    """State of the host.

    Parameters
    ----------
    filled : int64[page]
        Clock of the fill; 0 never.
    mapped : bool[page]
        The guest's own entry is present.
    made, region_dropped : int64[region]
        Clocks of the first fill below it, and of the last drop.
    live_in : int64[region]
        Entries in the shadow; stale after a drop of the address space.
    mm_dropped : int64[mm]
        Clock of the last drop of the address space.
    live : int64[mm]
        Entries in its shadow.
    dying, gone : bool[mm]
        It exits; all of its shadow was dropped and may come back once the program runs.
    slots : int64[slot]
        Address spaces that are shadowed; -1 none.
    state : int64[6]
        Clock; clock of the last drop of everything; loaded address space; page of the fault that
        is being handled (-1 none); calls in the ring; whether a bracket is open.
    chance : uint64[1]
        State of the generator that picks victims.
    """

    filled: np.ndarray
    mapped: np.ndarray
    made: np.ndarray
    region_dropped: np.ndarray
    live_in: np.ndarray
    mm_dropped: np.ndarray
    live: np.ndarray
    dying: np.ndarray
    gone: np.ndarray
    slots: np.ndarray
    state: np.ndarray
    chance: np.ndarray


_CLOCK, _ALL, _LOADED, _FAULT, _RING, _LAZY = 0, 1, 2, 3, 4, 5
#: Multiplier and increment of a 32-bit linear congruential generator (Numerical Recipes).
_MULTIPLIER, _INCREMENT = np.uint64(1664525), np.uint64(1013904223)


def new_host(mms: int, pages: int, regions: int, slots: int, loaded: int) -> Host:
    """Return the host before the first row; the loaded address space has a shadow."""
    cached = np.full(slots, -1, np.int64)
    cached[0] = loaded
    return Host(
        np.zeros(pages, np.int64), np.zeros(pages, np.bool_), np.zeros(regions, np.int64),
        np.zeros(regions, np.int64), np.zeros(regions, np.int64), np.zeros(mms, np.int64),
        np.zeros(mms, np.int64), np.zeros(mms, np.bool_), np.zeros(mms, np.bool_), cached,
        np.array([1, 0, loaded, -1, 0, 0], np.int64), np.zeros(1, np.uint64),
    )  # fmt: skip


@lean
def run_lguest(rows, mechanism, host, ring, returns, counts, log):  # type: ignore[no-untyped-def]
    """Carry every row.

    Parameters
    ----------
    rows : ROW[row]
        What the loop needs of the trace.
    mechanism : uint8[row]
        A `Mechanism` for each row.
    host : Host
        State, changed.
    ring : int
        Calls that wait in a bracket.
    returns : int
        Of the entries that are dropped at once, so many are touched before the next fault or switch
        and filled again by faults; 0: none, the least count.
    counts : int64[N_EVENTS + 2]
        Receives the counts.
    log : int64[n, 4]
        Receives the log.
    """
    for row in range(rows.shape[0]):
        how, r = mechanism[row], rows[row]
        if how == Mechanism.NOTHING:
            continue
        if how == Mechanism.STORE or how == Mechanism.LOCKED:
            emit(counts, log, row, Event.STORE if how == Mechanism.STORE else Event.LOCKED, ONE)
            _guest_changes(host, r, returns > 0)
            _return_from_fault(host, counts, log, row, r)
        elif how == Mechanism.TELL:
            emit(counts, log, row, Event.STORE, ONE)
            _call(host, ring, counts, log, row)
            _guest_changes(host, r, False)
            _set_pte(host, counts, log, row, r, r.present and r.used, returns > 0)
            _return_from_fault(host, counts, log, row, r)
        elif how == Mechanism.TELL_WITHOUT_ADDRESS:
            emit(counts, log, row, Event.STORE, ONE)
            _call(host, ring, counts, log, row)
            _guest_changes(host, r, returns > 0)
            _drop_everything(host, counts, log, row, returns)
            _return_from_fault(host, counts, log, row, r)
        elif how == Mechanism.TELL_TABLE:
            emit(counts, log, row, Event.STORE, ONE)
            _call(host, ring, counts, log, row)
            _drop_region(host, counts, log, row, r)
        elif how == Mechanism.FLUSH_ONE:
            for _ in range(max(r.count, 1)):
                _call(host, ring, counts, log, row)
            _set_pte(host, counts, log, row, r, False, returns > 0)
        elif how == Mechanism.FLUSH_USER:
            for _ in range(max(r.count, 1)):
                _call(host, ring, counts, log, row)
            _drop_space(host, counts, log, row, host.state[_LOADED], returns)
        elif how == Mechanism.FLUSH_ALL:
            for _ in range(max(r.count, 1)):
                _call(host, ring, counts, log, row)
            _drop_everything(host, counts, log, row, returns)
        elif how == Mechanism.NEW_TABLE:
            _program_ran(host, counts, log, row, returns)
            _call(host, ring, counts, log, row)
            _new_table(host, counts, log, row, r.mm, returns)
        elif how == Mechanism.BRACKET:
            host.state[_LAZY] = 1
        elif how == Mechanism.BRACKET_END:
            host.state[_LAZY] = 0
            host.state[_RING] = 0
            emit(counts, log, row, Event.LGUEST_CALL, ONE)  # LHCALL_FLUSH_ASYNC, unconditionally
        elif how == Mechanism.FAULT:
            _program_ran(host, counts, log, row, returns)
            emit(counts, log, row, Event.PAGE_FAULT, ONE)
            host.state[_FAULT] = r.page
        elif how == Mechanism.TOUCH:
            _touch(host, counts, log, row, r)
        elif how == Mechanism.EXIT and r.mm >= 0:
            host.dying[r.mm] = True


@lean
def _call(host, ring, counts, log, row):  # type: ignore[no-untyped-def]
    """lazy_hcall: into the ring, or into the host with all that waits."""
    if host.state[_LAZY] == 1 and host.state[_RING] < ring:
        host.state[_RING] += 1
        emit(counts, log, row, Event.LGUEST_RING, ONE)
        emit(counts, log, row, Event.QUEUED, ONE)
    else:
        host.state[_RING] = 0
        emit(counts, log, row, Event.LGUEST_CALL, ONE)


@lean
def _is_filled(host, page, region, mm):  # type: ignore[no-untyped-def]
    last = max(host.region_dropped[region], host.mm_dropped[mm], host.state[_ALL])
    return host.filled[page] > last


@lean
def _is_made(host, region, mm):  # type: ignore[no-untyped-def]
    """Whether the shadow has a table page for a region."""
    last = max(host.region_dropped[region], host.mm_dropped[mm], host.state[_ALL])
    return host.made[region] > last


@lean
def _is_shadowed(host, mm):  # type: ignore[no-untyped-def]
    """Whether one of the slots shadows an address space (the kernel's is in all of them)."""
    if mm == 0:
        return True
    for slot in range(host.slots.shape[0]):  # noqa: SIM110 (a kernel has no generators)
        if host.slots[slot] == mm:
            return True
    return False


@lean
def _tick(host):  # type: ignore[no-untyped-def]
    host.state[_CLOCK] += 1
    return host.state[_CLOCK]


@lean
def _fill(host, page, region, mm):  # type: ignore[no-untyped-def]
    if not _is_made(host, region, mm):
        host.made[region] = _tick(host)
        host.live_in[region] = 0
    if not _is_filled(host, page, region, mm):
        host.filled[page] = _tick(host)
        host.live_in[region] += 1
        host.live[mm] += 1


@lean
def _empty(host, page, region, mm):  # type: ignore[no-untyped-def]
    host.filled[page] = 0
    host.live_in[region] -= 1
    host.live[mm] -= 1


@lean
def _guest_changes(host, r, forget):  # type: ignore[no-untyped-def]
    """The guest's own entry; `forget`: a shadow of nothing does not come back after a drop."""
    if r.mm < 0:
        return
    host.mapped[r.page] = r.present
    if forget and not r.present and _is_filled(host, r.page, r.region, r.mm):
        _empty(host, r.page, r.region, r.mm)


@lean
def _set_pte(host, counts, log, row, r, fill, returns):  # type: ignore[no-untyped-def]
    """LHCALL_SET_PTE: drop the entry, or put it in if the guest says that it is in use."""
    if r.mm < 0 or not _is_shadowed(host, r.mm) or not _is_made(host, r.region, r.mm):
        return
    if fill:
        _fill(host, r.page, r.region, r.mm)
    elif _is_filled(host, r.page, r.region, r.mm):
        emit(counts, log, row, Event.SHADOW_DROPPED, ONE)
        if returns and host.mapped[r.page] and not host.dying[r.mm]:
            emit(counts, log, row, Event.SHADOW_FAULT, ONE)
        else:
            _empty(host, r.page, r.region, r.mm)


@lean
def _return_from_fault(host, counts, log, row, r):  # type: ignore[no-untyped-def]
    """The access that faulted is made again once its entry is there."""
    if host.state[_FAULT] == r.page and r.present:
        host.state[_FAULT] = -1
        _touch(host, counts, log, row, r)


@lean
def _touch(host, counts, log, row, r):  # type: ignore[no-untyped-def]
    """demand_page: an access through an entry that the shadow does not have."""
    if r.mm < 0 or not host.mapped[r.page] or not _is_shadowed(host, r.mm):
        return
    if not _is_filled(host, r.page, r.region, r.mm):
        emit(counts, log, row, Event.SHADOW_FAULT, ONE)
        _fill(host, r.page, r.region, r.mm)


@lean
def _drop_region(host, counts, log, row, r):  # type: ignore[no-untyped-def]
    """LHCALL_SET_PMD."""
    if r.mm < 0 or not _is_made(host, r.region, r.mm):
        return
    amount = host.live_in[r.region]
    if amount > 0:
        emit(counts, log, row, Event.SHADOW_DROPPED, amount)
    host.live[r.mm] -= amount
    host.live_in[r.region] = 0
    host.region_dropped[r.region] = _tick(host)


@lean
def _drop_space(host, counts, log, row, mm, returns):  # type: ignore[no-untyped-def]
    """Drop the user's part of a directory, or the kernel's part of all."""
    if mm < 0 or host.live[mm] == 0 or host.gone[mm]:
        return
    emit(counts, log, row, Event.SHADOW_DROPPED, host.live[mm])
    if returns > 0 and not host.dying[mm]:
        host.gone[mm] = True
        return
    host.live[mm] = 0
    host.mm_dropped[mm] = _tick(host)


@lean
def _program_ran(host, counts, log, row, returns):  # type: ignore[no-untyped-def]
    """The program ran since its shadow was dropped, and touched what it works on."""
    for mm in (host.state[_LOADED], ZERO):
        if mm >= 0 and host.gone[mm]:
            host.gone[mm] = False
            emit(counts, log, row, Event.SHADOW_FAULT, min(host.live[mm], returns))


@lean
def _drop_everything(host, counts, log, row, returns):  # type: ignore[no-untyped-def]
    """guest_pagetable_clear_all."""
    for mm in range(host.live.shape[0]):
        _drop_space(host, counts, log, row, mm, returns)
    if returns == 0:
        host.state[_ALL] = _tick(host)


@lean
def _new_table(host, counts, log, row, mm, returns):  # type: ignore[no-untyped-def]
    """LHCALL_NEW_PGTABLE: one of the slots, else a victim at random."""
    host.state[_LOADED] = mm
    for slot in range(host.slots.shape[0]):
        if host.slots[slot] == mm:
            return
    host.chance[0] = (host.chance[0] * _MULTIPLIER + _INCREMENT) & np.uint64(0xFFFFFFFF)
    victim = np.int64(host.chance[0] >> np.uint64(16)) % host.slots.shape[0]
    if host.slots[victim] > 0:
        _drop_space(host, counts, log, row, host.slots[victim], returns)
    host.slots[victim] = mm
