"""The page walk, one access at a time: one loop for each dimension.

`walk_first` follows the tables that CR3 names (SDM vol. 3A §4.3 to §4.8), `walk_second` translates
one guest-physical address (SDM vol. 3C §28.3.2; APM vol. 2 §15.25.5). A one-dimensional walk is a
nested walk whose second dimension has no levels.

The kernels do not write to memory. Accessed and dirty flags go to a list of new entries, which the
walk itself consults when it reads an entry again; `commit` writes them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from pvmmu._jit import kernel
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
    FORBID,
    HIGH,
    INDEX,
    INVERT,
    LEAF,
    LEVELS,
    NEED,
    NEUTRAL,
    NUMBER,
    PAGE,
    PAGE_RESERVED,
    PRESENT,
    PSE36_SHIFT,
    REGISTER,
    REPORTED,
    SHIFT,
    SIGN,
    TABLE,
    TABLE_KIND,
    TABLE_RESERVED,
    WIDTH,
    WRITABLE,
    WRITE,
)
from pvmmu.x86.tlb_sets import SIZE_SHIFT, size_shift

# Rows of Scratch.work: results; tables that the walk came by, in the rows that their levels have in
# the plan; entries whose flags change.
OUT, UPDATES = 0, LEVELS + 5

# Columns of the results.
VECTOR, ERROR, PA, PAGE_SHIFT, LEVEL, REFERENCES, EXIT, QUALIFICATION, GPA = range(9)
GUEST_SHIFT, HOST_SHIFT, RIGHTS, LEAF_ENTRY, OUTSIDE, N_UPDATES, N_PATH, N_TABLES = range(9, 17)
HOST_RIGHTS, HOST_REFERENCES, HOST_DIRTY, NESTED_HITS, CPU = range(17, 22)
_WIDTH: Final = 22

# Columns of the tables: where the table is in (host-)physical memory, the rights after its entry,
# where the entry is, which flags it must have, the second dimension's rights there, the
# guest-physical address. The last one is walk_second's: its entries, by its own levels.
HOST_TABLE, RIGHTS_AFTER, ENTRY_AT, FLAGS, ENTRY_RIGHTS, ENTRY_GPA, SECOND_AT = range(7)

# Columns of the updates: physical address of the entry, its new value, the mask of its width.
UPDATE_PA, UPDATE_VALUE, UPDATE_MASK = range(3)

# Columns of Scratch.path: one row for each entry read.
DIMENSION, GUEST_LEVEL, ENTRY_LEVEL, ADDRESS, ENTRY, FOR_ADDRESS = range(6)

# Columns of Scratch.cache: page number and size (all ones: none), host-physical address, rights,
# whether the dirty flag is set.
KEY, HOST_PAGE, KEPT_RIGHTS, KEPT_DIRTY = range(4)

GP, PF = 13, 14

#: Updates that one walk can make: 5 guest entries, and 6 translations of at most 5 entries.
MAX_UPDATES: Final = 40
#: Entries that one walk can read: (5 + 1) * (5 + 1) - 1, and 4 PDPTE registers to be safe.
MAX_PATH: Final = 40

_Z, _ONE, _ONES = np.uint64(0), np.uint64(1), np.uint64((1 << 64) - 1)
_2, _3, _7 = np.uint64(2), np.uint64(3), np.uint64(7)
_PSE36 = np.uint64(PSE36_SHIFT)
_WRITE, _SIZE = np.int64(WRITE), np.uint64(SIZE_SHIFT)


class Scratch(NamedTuple):
    """Where a walk puts its results; made once, used for many walks."""

    work: np.ndarray  # uint64[UPDATES + MAX_UPDATES, 22]
    path: np.ndarray  # uint64[rows, 6]: entries read, as far as there is room
    cache: np.ndarray  # uint64[cpu, set, way, 4]: nested TLBs, in order of last use


def new_scratch(path_rows: int = 0, nested: tuple[int, int, int] = (0, 0, 0)) -> Scratch:
    """Return room for the results of one walk.

    Parameters
    ----------
    path_rows : int
        Room for the entries read.
    nested : (int, int, int)
        CPUs, sets and ways of nested TLBs.
    """
    cache = np.zeros((*nested, 4), np.uint64)
    cache[..., KEY] = _ONES
    return Scratch(
        np.zeros((UPDATES + MAX_UPDATES, _WIDTH), np.uint64),
        np.zeros((path_rows, 6), np.uint64),
        cache,
    )


@kernel
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


@kernel
def _set_flags(words, plan, at, flags, work):  # type: ignore[no-untyped-def]
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


@kernel
def _note(s, dimension, guest_level, level, at, entry, address):  # type: ignore[no-untyped-def]
    """Log an entry that was read, where there is room."""
    n, path = s.work[OUT, N_PATH], s.path
    if n < np.uint64(path.shape[0]):
        path[n, DIMENSION], path[n, GUEST_LEVEL] = dimension, guest_level
        path[n, ENTRY_LEVEL], path[n, FOR_ADDRESS] = level, address
        path[n, ADDRESS], path[n, ENTRY] = at, entry
        s.work[OUT, N_PATH] = n + _ONE


@kernel
def _violation(plan, work, gpa, kind, guest_level, rights, code):  # type: ignore[no-untyped-def]
    """The second dimension does not allow an access: what the hypervisor is told."""
    where = plan[COMMON, CODE_FINAL] if guest_level == _Z else plan[COMMON, CODE_TABLE]
    code |= where | plan[ACCESS + kind, CODE] | (rights & plan[COMMON, REPORTED]) << _3
    work[OUT, EXIT], work[OUT, GPA] = plan[COMMON, EXIT_VIOLATION], gpa
    work[OUT, QUALIFICATION] = code


@kernel
def _misconfiguration(plan, work, gpa, kind, guest_level):  # type: ignore[no-untyped-def]
    """An entry of the second dimension has reserved bits."""
    _violation(plan, work, gpa, kind, guest_level, _Z, plan[COMMON, CODE_RESERVED])
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
        _violation(plan, work, gpa, kind, guest_level, _Z, _Z)
        return _Z
    while True:
        at = table + (((gpa >> plan[d, SHIFT]) & plan[d, INDEX]) << plan[COMMON, ENTRY_LOG])
        entry = read_entry(words, plan, at, work)
        if work[OUT, OUTSIDE] != _Z:
            return _Z
        work[OUT, REFERENCES] += _ONE
        work[OUT, HOST_REFERENCES] += _ONE
        _note(s, _2, guest_level, plan[d, NUMBER], at, entry, gpa)
        rights &= (entry ^ plan[COMMON, INVERT]) | plan[d, NEUTRAL]
        if entry & plan[COMMON, PRESENT] == _Z:
            _violation(plan, work, gpa, kind, guest_level, rights, _Z)
            return _Z
        leaf = entry & plan[d, LEAF] != _Z
        wrong = entry & (plan[d, PAGE_RESERVED] if leaf else plan[d, TABLE_RESERVED])
        wrong |= (plan[COMMON, BAD_RIGHTS] >> (entry & _7)) & _ONE
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
        _violation(plan, work, gpa, kind, guest_level, rights, plan[COMMON, CODE_PRESENT])
        return _Z
    for i in range(LEVELS, d + 1):
        flags = plan[i, ACCESSED]
        if i == d and plan[ACCESS + kind, NEED] & plan[COMMON, WRITABLE] != _Z:
            flags |= plan[COMMON, DIRTY]
        _set_flags(words, plan, work[i, SECOND_AT], flags, work)
    work[OUT, HOST_SHIFT], work[OUT, HOST_RIGHTS] = plan[d, SHIFT], rights
    entry = read_entry(words, plan, work[d, SECOND_AT], work)
    work[OUT, HOST_DIRTY] = np.uint64(plan[COMMON, DIRTY] & ~entry == _Z)
    if s.cache.size > 0:
        _keep(s, gpa, plan[d, SHIFT], page_address(entry, plan, d, gpa))
    return page_address(entry, plan, d, gpa)


@kernel
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


@kernel
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


@kernel
def _to_front(cache, cpu, index, way):  # type: ignore[no-untyped-def]
    """Move an entry of a nested TLB to the front of its set."""
    for c in range(4):
        last = cache[cpu, index, way, c]
        for i in range(way, 0, -1):
            cache[cpu, index, i, c] = cache[cpu, index, i - 1, c]
        cache[cpu, index, 0, c] = last


@kernel
def page_address(entry, plan, d, address):  # type: ignore[no-untyped-def]
    """Physical address of a byte in the page that an entry maps."""
    offset = address & ((_ONE << plan[d, SHIFT]) - _ONE)
    return (entry & plan[d, PAGE]) | ((entry & plan[d, HIGH]) << _PSE36) | offset


@kernel
def reset(work, cpu):  # type: ignore[no-untyped-def]
    """Forget the last walk; `cpu` makes the next."""
    for i in range(CPU):
        work[OUT, i] = _Z
    work[OUT, CPU] = cpu


@kernel
def walk_first(words, first, root, pdptes, second, second_root, va, row, start, rights, s):  # type: ignore[no-untyped-def]
    """Translate a linear address.

    Parameters
    ----------
    words : uint64[:]
        Physical memory (the host's, where there is a second dimension).
    first, second : Plan
        Formats; `plan.NO_PLAN` is the second of a one-dimensional walk.
    root, second_root : uint64
        Physical address of the root tables (guest-physical, host-physical). Where the walk starts
        at a deeper level, ``root`` is the host-physical address of that level's table.
    pdptes : uint64[4]
        PDPTE registers.
    va : uint64
        Linear address.
    row : int
        kind + 3 * user + 6 * ac, a row of the plan's accesses.
    start : int
        Row of the level to start at: `LEVELS` is the root.
    rights : uint64
        Rights of the levels above it; all bits set for none.
    s : Scratch
        Results, after `reset`.
    """
    work = s.work
    write = row % 3 == WRITE
    code = first[ACCESS + row, CODE]
    if (va + first[COMMON, SIGN]) >> first[COMMON, WIDTH] != _Z:
        work[OUT, VECTOR] = GP
        return
    d = start
    table, entry, known = root, _Z, d > LEVELS
    while True:
        index = (va >> first[d, SHIFT]) & first[d, INDEX]
        at, gpa = _Z, _Z
        if first[d, REGISTER] != _Z:
            entry = pdptes[index]
            _note(s, _Z, first[d, NUMBER], first[d, NUMBER], index, entry, va)
        else:
            gpa = table + (index << first[COMMON, ENTRY_LOG])
            at = gpa
            if not known:
                kind = np.int64(second[COMMON, TABLE_KIND])
                at = walk_second(words, second, second_root, gpa, kind, first[d, NUMBER], s)
                if work[OUT, EXIT] != _Z or work[OUT, OUTSIDE] != _Z:
                    return
            entry = read_entry(words, first, at, work)
            if work[OUT, OUTSIDE] != _Z:
                return
            work[OUT, REFERENCES] += _ONE
            _note(s, _ONE, first[d, NUMBER], first[d, NUMBER], at, entry, gpa)
        known = False
        work[OUT, LEVEL] = first[d, NUMBER]
        if entry & first[COMMON, PRESENT] == _Z:
            work[OUT, VECTOR], work[OUT, ERROR] = PF, code
            return
        leaf = entry & first[d, LEAF] != _Z
        if entry & (first[d, PAGE_RESERVED] if leaf else first[d, TABLE_RESERVED]) != _Z:
            work[OUT, VECTOR], work[OUT, ERROR] = PF, code | first[COMMON, CODE_RESERVED]
            return
        rights &= (entry ^ first[COMMON, INVERT]) | first[d, NEUTRAL]
        work[d, HOST_TABLE], work[d, RIGHTS_AFTER] = (
            at & ~np.uint64(0xFFF),
            rights,
        )
        work[d, ENTRY_AT], work[d, ENTRY_GPA] = at, gpa
        work[d, ENTRY_RIGHTS] = work[OUT, HOST_RIGHTS]
        work[d, FLAGS] = first[d, ACCESSED] | (first[COMMON, DIRTY] if leaf and write else _Z)
        work[OUT, N_TABLES] = np.uint64(d + 1 - LEVELS)
        if leaf:
            break
        table = entry & first[d, TABLE]
        d += 1
    work[OUT, RIGHTS], work[OUT, LEAF_ENTRY] = rights, entry
    forbid = first[ACCESS + row, FORBID]
    if first[ACCESS + row, NEED] & ~rights != _Z or (forbid != _Z and rights & forbid == forbid):
        work[OUT, VECTOR], work[OUT, ERROR] = PF, code | first[COMMON, CODE_PRESENT]
        return
    if not _flags_of_first(words, first, second, start, np.int64(d), work):
        return
    gpa = page_address(entry, first, d, va)
    work[OUT, GUEST_SHIFT] = first[d, SHIFT]
    pa = walk_second(words, second, second_root, gpa, np.int64(row % 3), _Z, s)
    if work[OUT, EXIT] != _Z or work[OUT, OUTSIDE] != _Z:
        return
    work[OUT, PA], work[OUT, GPA] = pa, gpa
    work[OUT, PAGE_SHIFT] = first[d, SHIFT]
    if second.shape[0] > LEVELS:
        work[OUT, PAGE_SHIFT] = min(first[d, SHIFT], work[OUT, HOST_SHIFT])


@kernel
def _flags_of_first(words, first, second, start, leaf, work):  # type: ignore[no-untyped-def]
    """Set accessed and dirty flags of the first dimension (SDM vol. 3A §4.8).

    Where the second dimension keeps no flags, reading the guest's tables is no write to it, but
    this is one (SDM vol. 3C §28.3.3.2): False if it does not allow the write.
    """
    for d in range(start, leaf + 1):
        at, flags = work[d, ENTRY_AT], work[d, FLAGS]
        if flags == _Z or flags & ~read_entry(words, first, at, work) == _Z:
            continue
        if second[COMMON, WRITABLE] & ~work[d, ENTRY_RIGHTS] != _Z:
            number, rights = first[d, NUMBER], work[d, ENTRY_RIGHTS]
            work[OUT, LEVEL] = number
            _violation(second, work, work[d, ENTRY_GPA], _WRITE, number, rights, _Z)
            return False
        _set_flags(words, first, at, flags, work)
    return True


@kernel
def sort_updates(work):  # type: ignore[no-untyped-def]
    """Put the list of new entries in order of their addresses."""
    for i in range(UPDATES + 1, UPDATES + np.int64(work[OUT, N_UPDATES])):
        j = i
        while j > UPDATES and work[j - 1, UPDATE_PA] > work[j, UPDATE_PA]:
            for c in range(3):
                work[j - 1, c], work[j, c] = work[j, c], work[j - 1, c]
            j -= 1


@kernel
def commit(words, work):  # type: ignore[no-untyped-def]
    """Write the list of new entries to memory."""
    for i in range(UPDATES, UPDATES + np.int64(work[OUT, N_UPDATES])):
        at = work[i, UPDATE_PA]
        shift = (at & np.uint64(4)) << _3
        word = words[at >> _3] & ~(work[i, UPDATE_MASK] << shift)
        words[at >> _3] = word | (work[i, UPDATE_VALUE] << shift)
