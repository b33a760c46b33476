"""The second dimension: one guest-physical address to host-physical, and the nested TLB before it.

SDM vol. 3C §28.3.2 (EPT); APM vol. 2 §15.25.5 (nested paging). What both dimensions share is here,
too: reading an entry, and noting flags to set.
"""

from __future__ import annotations

import numpy as np

from pvmmu._jit import kernel, part
from pvmmu.x86.plan import (
    ACCESS,
    ACCESSED,
    BAD_RIGHTS,
    BAD_TYPES,
    CODE,
    CODE_FINAL,
    CODE_PRESENT,
    CODE_RESERVED,
    CODE_TABLE,
    COMMON,
    DIRTY,
    ENTRY_LOG,
    ENTRY_MASK,
    EXIT_RESERVED,
    EXIT_VIOLATION,
    HIGH,
    INDEX,
    INVERT,
    LEAF,
    LEVELS,
    MODE_EXECUTE,
    NEED,
    NEUTRAL,
    NUMBER,
    PAGE,
    PAGE_RESERVED,
    PRESENT,
    PSE36_SHIFT,
    REPORTED,
    SHIFT,
    TABLE,
    TABLE_RESERVED,
    WIDTH,
    WRITABLE,
)
from pvmmu.x86.tlb_sets import SIZE_SHIFT, size_shift
from pvmmu.x86.walk_state import (
    ADDRESS,
    CPU,
    DIMENSION,
    ENTRY,
    ENTRY_LEVEL,
    EXIT,
    FOR_ADDRESS,
    GPA,
    GUEST_LEVEL,
    HOST_DIRTY,
    HOST_PAGE,
    HOST_REFERENCES,
    HOST_RIGHTS,
    HOST_SHIFT,
    KEPT_DIRTY,
    KEPT_RIGHTS,
    KEY,
    N_PATH,
    N_UPDATES,
    NESTED_HITS,
    OUT,
    OUTSIDE,
    QUALIFICATION,
    REFERENCES,
    SECOND_AT,
    UPDATE_MASK,
    UPDATE_PA,
    UPDATE_VALUE,
    UPDATES,
)

_Z, _ONE, _ONES = np.uint64(0), np.uint64(1), np.uint64((1 << 64) - 1)
_2, _3, _4, _7 = (np.uint64(i) for i in (2, 3, 4, 7))
_PSE36 = np.uint64(PSE36_SHIFT)
_SIZE = np.uint64(SIZE_SHIFT)


@part
def read_entry(words, plan, at, work):  # type: ignore[no-untyped-def]
    """Entry at a physical address as this walk sees it; notes an address outside of memory."""
    if at >> _3 >= np.uint64(words.size):
        work[OUT, OUTSIDE] = at | _ONE  # the bit tells address 0 from none: entries are aligned
        return _Z
    for i in range(UPDATES, UPDATES + np.int64(work[OUT, N_UPDATES])):
        if work[i, UPDATE_PA] == at:
            return work[i, UPDATE_VALUE]
    # an entry of 4 bytes is the upper or lower half of a word
    return (words[at >> _3] >> ((at & np.uint64(4)) << _3)) & plan[COMMON, ENTRY_MASK]


@part
def set_flags(words, plan, at, flags, work):  # type: ignore[no-untyped-def]
    """Put an entry with more flags on the list, once for each entry, if they are new to it."""
    entry = read_entry(words, plan, at, work)
    if flags & ~entry == _Z:
        return
    end = UPDATES + np.int64(work[OUT, N_UPDATES])
    i = UPDATES
    while i < end and work[i, UPDATE_PA] != at:
        i += 1
    work[i, UPDATE_PA], work[i, UPDATE_VALUE] = at, entry | flags
    work[i, UPDATE_MASK] = plan[COMMON, ENTRY_MASK]
    if i == end:
        work[OUT, N_UPDATES] += _ONE


@part
def note_entry(s, dimension, guest_level, level, at, entry, address):  # type: ignore[no-untyped-def]
    """Log an entry that was read, where there is room."""
    n, path = s.work[OUT, N_PATH], s.path
    if n < np.uint64(path.shape[0]):
        path[n, DIMENSION], path[n, GUEST_LEVEL] = dimension, guest_level
        path[n, ENTRY_LEVEL], path[n, FOR_ADDRESS] = level, address
        path[n, ADDRESS], path[n, ENTRY] = at, entry
        s.work[OUT, N_PATH] = n + _ONE


@part
def violation(plan, work, gpa, kind, guest_level, rights, code):  # type: ignore[no-untyped-def]
    """The second dimension does not allow an access: what the hypervisor is told."""
    where = plan[COMMON, CODE_FINAL] if guest_level == _Z else plan[COMMON, CODE_TABLE]
    code |= where | plan[ACCESS + kind, CODE] | (rights & plan[COMMON, REPORTED]) << _3
    code |= (rights & plan[COMMON, MODE_EXECUTE]) >> _4
    work[OUT, EXIT], work[OUT, GPA] = plan[COMMON, EXIT_VIOLATION], gpa
    work[OUT, QUALIFICATION] = code


@part
def _misconfiguration(plan, work, gpa, kind, guest_level):  # type: ignore[no-untyped-def]
    """An entry of the second dimension has reserved bits."""
    violation(plan, work, gpa, kind, guest_level, _Z, plan[COMMON, CODE_RESERVED])
    if (
        plan[COMMON, EXIT_RESERVED] != plan[COMMON, EXIT_VIOLATION]
    ):  # EPT: an exit of its own, without qualification
        work[OUT, EXIT], work[OUT, QUALIFICATION] = plan[COMMON, EXIT_RESERVED], _Z


@kernel
def walk_second(words, plan, root, gpa, kind, guest_level, s):  # type: ignore[no-untyped-def]
    """Translate a guest-physical address.

    Parameters
    ----------
    words : uint64[:]
        Physical memory.
    plan : Plan
        The second dimension; without levels the address is returned as it is.
    root : uint64
        Physical address of its root table.
    gpa : uint64
        The address.
    kind : int
        Row of the plan's accesses.
    guest_level : int
        Level of the guest's entry that is read at this address; 0: the access itself.
    s : Scratch
        ``work[OUT, EXIT]`` or ``work[OUT, OUTSIDE]`` is not 0 if there is no translation.

    Returns
    -------
    uint64
        Host-physical address.
    """
    if plan.shape[0] == LEVELS:
        return gpa
    work = s.work
    if s.cache.size > 0:
        known = _cached(plan, gpa, kind, s)
        if known != _ONES:
            return known
    rights, table, entry, d = _ONES, root, _Z, LEVELS
    if (
        gpa >> plan[COMMON, WIDTH] != _Z
    ):  # more bits than the tables translate: nothing is mapped there
        violation(plan, work, gpa, kind, guest_level, _Z, _Z)
        return _Z
    while True:
        at = table + (((gpa >> plan[d, SHIFT]) & plan[d, INDEX]) << plan[COMMON, ENTRY_LOG])
        entry = read_entry(words, plan, at, work)
        if work[OUT, OUTSIDE] != _Z:
            return _Z
        work[OUT, REFERENCES] += _ONE
        work[OUT, HOST_REFERENCES] += _ONE
        note_entry(s, _2, guest_level, plan[d, NUMBER], at, entry, gpa)
        rights &= (entry ^ plan[COMMON, INVERT]) | plan[d, NEUTRAL]
        if entry & plan[COMMON, PRESENT] == _Z:
            violation(plan, work, gpa, kind, guest_level, rights, _Z)
            return _Z
        leaf = entry & plan[d, LEAF] != _Z
        wrong = entry & (plan[d, PAGE_RESERVED] if leaf else plan[d, TABLE_RESERVED])
        # rights to read, write and execute, and (bit 10) to execute by the user
        granted = entry & _7 | (entry & plan[COMMON, MODE_EXECUTE]) >> _7
        wrong |= (plan[COMMON, BAD_RIGHTS] >> granted) & _ONE
        if leaf:
            wrong |= (plan[COMMON, BAD_TYPES] >> ((entry >> _3) & _7)) & _ONE
        if wrong != _Z:
            _misconfiguration(plan, work, gpa, kind, guest_level)
            return _Z
        work[d, SECOND_AT] = at
        if leaf:
            break
        table = entry & plan[d, TABLE]
        d += 1
    if plan[ACCESS + kind, NEED] & ~rights != _Z:
        violation(plan, work, gpa, kind, guest_level, rights, plan[COMMON, CODE_PRESENT])
        return _Z
    for i in range(LEVELS, d + 1):
        flags = plan[i, ACCESSED]
        if i == d and plan[ACCESS + kind, NEED] & plan[COMMON, WRITABLE] != _Z:
            flags |= plan[COMMON, DIRTY]
        set_flags(words, plan, work[i, SECOND_AT], flags, work)
    work[OUT, HOST_SHIFT], work[OUT, HOST_RIGHTS] = plan[d, SHIFT], rights
    entry = read_entry(words, plan, work[d, SECOND_AT], work)
    work[OUT, HOST_DIRTY] = np.uint64(plan[COMMON, DIRTY] & ~entry == _Z)
    if s.cache.size > 0:
        _keep(s, gpa, plan[d, SHIFT], page_address(entry, plan, d, gpa))
    return page_address(entry, plan, d, gpa)


@part
def _cached(plan, gpa, kind, s):  # type: ignore[no-untyped-def]
    """Host-physical address from the nested TLB, if it has one that allows the access."""
    cache, work, need = s.cache, s.work, plan[ACCESS + kind, NEED]
    cpu = np.int64(work[OUT, CPU])
    dirty = need & plan[COMMON, WRITABLE] != _Z and plan[COMMON, DIRTY] != _Z
    sets = np.uint64(cache.shape[1])
    for size in range(4):
        shift = size_shift(np.uint64(size))
        page = gpa >> shift
        key, index = page | np.uint64(size) << _SIZE, np.int64(page & (sets - _ONE))
        for way in range(cache.shape[2]):
            if cache[cpu, index, way, KEY] != key:
                continue
            rights, is_dirty = (
                cache[cpu, index, way, KEPT_RIGHTS],
                cache[cpu, index, way, KEPT_DIRTY],
            )
            if need & ~rights != _Z or (dirty and is_dirty == _Z):
                break
            at = cache[cpu, index, way, HOST_PAGE] | (gpa & ((_ONE << shift) - _ONE))
            _to_front(cache, cpu, index, way)
            work[OUT, HOST_SHIFT], work[OUT, HOST_RIGHTS], work[OUT, HOST_DIRTY] = (
                shift,
                rights,
                is_dirty,
            )
            work[OUT, NESTED_HITS] += _ONE
            return at
    return _ONES


@part
def _keep(s, gpa, shift, at):  # type: ignore[no-untyped-def]
    """Put a translation into the nested TLB, in place of an older one for the same page or last."""
    cache, work = s.cache, s.work
    cpu = np.int64(work[OUT, CPU])
    size = _Z if shift == np.uint64(12) else min(shift - np.uint64(20), _3)
    page = gpa >> shift
    index, way = np.int64(page & np.uint64(cache.shape[1] - 1)), 0
    while way < cache.shape[2] - 1 and cache[cpu, index, way, KEY] != page | size << _SIZE:
        way += 1
    _to_front(cache, cpu, index, way)
    cache[cpu, index, 0, KEY], cache[cpu, index, 0, HOST_PAGE] = (
        page | size << _SIZE,
        at >> shift << shift,
    )
    cache[cpu, index, 0, KEPT_RIGHTS], cache[cpu, index, 0, KEPT_DIRTY] = (
        work[OUT, HOST_RIGHTS],
        work[OUT, HOST_DIRTY],
    )


@part
def _to_front(cache, cpu, index, way):  # type: ignore[no-untyped-def]
    """Move an entry of a nested TLB to the front of its set."""
    for c in range(4):
        last = cache[cpu, index, way, c]
        for i in range(way, 0, -1):
            cache[cpu, index, i, c] = cache[cpu, index, i - 1, c]
        cache[cpu, index, 0, c] = last


@part
def page_address(entry, plan, d, address):  # type: ignore[no-untyped-def]
    """Physical address of a byte in the page that an entry maps."""
    offset = address & ((_ONE << plan[d, SHIFT]) - _ONE)
    return (entry & plan[d, PAGE]) | ((entry & plan[d, HIGH]) << _PSE36) | offset
