"""The page walk, one access at a time: one loop for each dimension.

`walk_first` follows the tables that CR3 names (SDM vol. 3A §4.3 to §4.8), `walk_second.walk_second`
translates one guest-physical address. A one-dimensional walk is a nested walk whose second
dimension has no levels.

The kernels do not write to memory. Accessed and dirty flags go to a list of new entries, which the
walk itself consults when it reads an entry again; `commit` writes them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pvmmu._jit import inner, kernel, part
from pvmmu.x86.bits import KEY_SHIFT, PF_PK, PF_RMP, RW, US, D
from pvmmu.x86.plan import (
    ACCESS,
    ACCESSED,
    CODE,
    CODE_PRESENT,
    CODE_RESERVED,
    COMMON,
    DIRTY,
    ENTRY_LOG,
    FETCH,
    FORBID,
    INDEX,
    INVERT,
    KEYS,
    LEAF,
    LEAF_RIGHTS,
    LEVELS,
    NEED,
    NEUTRAL,
    NUMBER,
    PAGE_RESERVED,
    PRESENT,
    REGISTER,
    SECOND_ROW,
    SHIFT,
    SIGN,
    TABLE,
    TABLE_KIND,
    TABLE_RESERVED,
    USER_FETCH,
    WIDTH,
    WRITABLE,
    WRITE,
    access_row,
)
from pvmmu.x86.walk_second import (
    note_entry,
    page_address,
    read_entry,
    set_flags,
    violation,
    walk_second,
)
from pvmmu.x86.walk_state import (
    CPU,
    ENTRY_AT,
    ENTRY_GPA,
    ENTRY_RIGHTS,
    ERROR,
    EXIT,
    FLAGS,
    GP,
    GPA,
    GUEST_SHIFT,
    HOST_RIGHTS,
    HOST_SHIFT,
    HOST_TABLE,
    LEAF_ENTRY,
    LEVEL,
    N_REACHED,
    N_TABLES,
    N_UPDATES,
    OUT,
    OUTSIDE,
    PA,
    PAGE_SHIFT,
    PF,
    REFERENCES,
    RIGHTS,
    RIGHTS_AFTER,
    UPDATE_MASK,
    UPDATE_PA,
    UPDATE_VALUE,
    UPDATES,
    VECTOR,
)

_Z, _ONE, _2, _3, _12, _15, _LOW = (np.uint64(i) for i in (0, 1, 2, 3, 12, 15, 0xFFF))
_RW, _USER, _DIRTY, _KEY_AT = (np.uint64(i) for i in (RW, US, D, KEY_SHIFT))
_KEY, _RMP, _2M = np.uint64(PF_PK), np.uint64(PF_RMP), np.uint64(21)
_WRITE, _USER_FETCH = np.int64(WRITE), np.int64(USER_FETCH)


#: `plan.access_row` for kernels.
row_of = inner(access_row)


@part
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
    write = first[ACCESS + row, SECOND_ROW] == _WRITE
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
            note_entry(s, _Z, first[d, NUMBER], first[d, NUMBER], index, entry, va)
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
            work[d, HOST_TABLE], work[d, ENTRY_RIGHTS] = at & ~_LOW, work[OUT, HOST_RIGHTS]
            work[OUT, N_REACHED] = np.uint64(d + 1 - LEVELS)
            work[OUT, REFERENCES] += _ONE
            note_entry(s, _ONE, first[d, NUMBER], first[d, NUMBER], at, entry, gpa)
        known = False
        work[OUT, LEVEL], above = first[d, NUMBER], rights
        if entry & first[COMMON, PRESENT] == _Z:
            work[OUT, VECTOR], work[OUT, ERROR] = PF, code
            return
        leaf = entry & first[d, LEAF] != _Z
        if entry & (first[d, PAGE_RESERVED] if leaf else first[d, TABLE_RESERVED]) != _Z:
            work[OUT, VECTOR], work[OUT, ERROR] = PF, code | first[COMMON, CODE_RESERVED]
            return
        rights &= (entry ^ first[COMMON, INVERT]) | first[d, NEUTRAL]
        work[d, RIGHTS_AFTER], work[d, ENTRY_AT], work[d, ENTRY_GPA] = rights, at, gpa
        work[d, FLAGS] = first[d, ACCESSED] | (first[COMMON, DIRTY] if leaf and write else _Z)
        work[OUT, N_TABLES] = np.uint64(d + 1 - LEVELS)
        if leaf:
            break
        table = entry & first[d, TABLE]
        d += 1
    if first[COMMON, LEAF_RIGHTS] != _Z:
        rights = leaf_rights(first, above, rights, entry)
    work[OUT, RIGHTS], work[OUT, LEAF_ENTRY] = rights, entry
    wrong = denied(first, row, rights)
    if wrong != _Z:
        work[OUT, VECTOR], work[OUT, ERROR] = PF, code | first[COMMON, CODE_PRESENT] | wrong & _KEY
        return
    if not _flags_of_first(words, first, second, start, np.int64(d), work):
        return
    gpa = page_address(entry, first, d, va)
    work[OUT, GUEST_SHIFT] = first[d, SHIFT]
    kind = second_row(first, row, rights)
    pa = walk_second(words, second, second_root, gpa, kind, _Z, s)
    if work[OUT, EXIT] != _Z or work[OUT, OUTSIDE] != _Z:
        return
    work[OUT, PA], work[OUT, GPA] = pa, gpa
    work[OUT, PAGE_SHIFT] = first[d, SHIFT]
    if second.shape[0] > LEVELS:
        work[OUT, PAGE_SHIFT] = min(first[d, SHIFT], work[OUT, HOST_SHIFT])
    if s.owned.size > 0:
        _check_owner(s.owned, pa, np.int64(min(first[d, SHIFT], _2M)), code, write, work)


@kernel
def denied(first, row, rights):  # type: ignore[no-untyped-def]
    """Whether rights do not suffice for an access: 0, or else the error code's bit 5 and a 1."""
    forbid, wrong = first[ACCESS + row, FORBID], _Z
    if first[ACCESS + row, NEED] & ~rights != _Z or (forbid != _Z and rights & forbid == forbid):
        wrong = _ONE
    keys = first[ACCESS + row, KEYS]
    if keys != _Z and (keys >> (rights >> _KEY_AT & _15 | (rights & _USER) << _2)) & _ONE != _Z:
        wrong |= _KEY | _ONE
    return wrong


@part
def second_row(first, row, rights):  # type: ignore[no-untyped-def]
    """Row of the second dimension's accesses; with which right one fetches depends on the page."""
    kind = np.int64(first[ACCESS + row, SECOND_ROW])
    return _USER_FETCH if kind == FETCH and rights & _USER != _Z else kind


@kernel
def leaf_rights(first, above, rights, entry):  # type: ignore[no-untyped-def]
    """Put rights that the last entry alone gives into the rights of all.

    In the dirty flag's place: whether the page is a shadow stack's, dirty and writable but for the
    last entry (SDM vol. 3A §4.6.1).
    """
    alone = first[COMMON, LEAF_RIGHTS]
    own = entry & alone
    if above & ~entry & _RW == _Z:
        own &= ~_DIRTY
    return rights & ~alone | own


@part
def _check_owner(owned, pa, shift, code, write, work):  # type: ignore[no-untyped-def]
    """RMP check of the host's writes, to a page and to entries whose flags change.

    A large page must belong to the host as a whole, in pieces of 2 MiB (APM vol. 2 §15.36.10).
    """
    wrong: Any = 0
    if write:
        begin = pa >> shift << shift >> _12
        for frame in range(begin, begin + (_ONE << (shift - 12))):
            wrong |= frame < np.uint64(owned.size) and owned[frame] != 0
    for i in range(UPDATES, UPDATES + np.int64(work[OUT, N_UPDATES])):
        frame = work[i, UPDATE_PA] >> _12
        wrong |= frame < np.uint64(owned.size) and owned[frame] != 0
    if wrong != 0:
        work[OUT, VECTOR], work[OUT, ERROR] = PF, code | _RMP | _ONE
        work[OUT, N_UPDATES] = work[OUT, PA] = work[OUT, PAGE_SHIFT] = work[OUT, GPA] = _Z


@part
def _flags_of_first(words, first, second, start, leaf, work):  # type: ignore[no-untyped-def]
    """Set accessed and dirty flags of the first dimension (SDM vol. 3A §4.8).

    Where the second dimension keeps no flags, reading the guest's tables is no write to it, but
    this is one (SDM vol. 3C §28.3.3.2): False if it does not allow the write. The qualification
    then names a read and a write: whether it names the read is left to the implementation (table
    27-7, note on bit 0); KVM and the processors that it runs on do.
    """
    for d in range(start, leaf + 1):
        at, flags = work[d, ENTRY_AT], work[d, FLAGS]
        if flags == _Z or flags & ~read_entry(words, first, at, work) == _Z:
            continue
        if second[COMMON, WRITABLE] & ~work[d, ENTRY_RIGHTS] != _Z:
            number, rights = first[d, NUMBER], work[d, ENTRY_RIGHTS]
            work[OUT, LEVEL] = number
            violation(second, work, work[d, ENTRY_GPA], _WRITE, number, rights, _ONE)
            return False
        set_flags(words, first, at, flags, work)
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


@part
def commit(words, work):  # type: ignore[no-untyped-def]
    """Write the list of new entries to memory."""
    for i in range(UPDATES, UPDATES + np.int64(work[OUT, N_UPDATES])):
        at = work[i, UPDATE_PA]
        shift = (at & np.uint64(4)) << _3
        word = words[at >> _3] & ~(work[i, UPDATE_MASK] << shift)
        words[at >> _3] = word | (work[i, UPDATE_VALUE] << shift)
