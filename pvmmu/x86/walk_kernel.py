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
    ACCESSED,
    BAD_RIGHTS,
    BAD_TYPES,
    CODE,
    CODE_FINAL,
    CODE_PRESENT,
    CODE_RESERVED,
    CODE_TABLE,
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

# Fields of Scratch.out.
VECTOR, ERROR, PA, PAGE_SHIFT, LEVEL, REFERENCES, EXIT, QUALIFICATION, GPA = range(9)
GUEST_SHIFT, HOST_SHIFT, RIGHTS, LEAF_ENTRY, OUTSIDE, N_UPDATES, N_PATH, N_TABLES = range(9, 17)
HOST_RIGHTS, HOST_REFERENCES = 17, 18
N_OUT: Final = 19

# Columns of Scratch.path: one row for each entry read.
DIMENSION, GUEST_LEVEL, ENTRY_LEVEL, ADDRESS, ENTRY, FOR_ADDRESS = range(6)

# Columns of Scratch.tables, one row for each level of the first dimension: where its table is in
# (host-)physical memory, the rights after its entry, where the entry is, which flags it must have,
# the second dimension's rights there.
HOST_TABLE, RIGHTS_AFTER, ENTRY_AT, FLAGS, ENTRY_RIGHTS, ENTRY_GPA = range(6)

GP, PF = 13, 14

#: Updates that one walk can make: 5 guest entries, and 6 translations of at most 5 entries.
MAX_UPDATES: Final = 40
#: Entries that one walk can read: (5 + 1) * (5 + 1) - 1, and 4 PDPTE registers to be safe.
MAX_PATH: Final = 40

_Z, _ONE, _ONES = np.uint64(0), np.uint64(1), np.uint64((1 << 64) - 1)
_2, _3, _7 = np.uint64(2), np.uint64(3), np.uint64(7)
_PSE36 = np.uint64(PSE36_SHIFT)
_WRITE = np.int64(WRITE)


class Scratch(NamedTuple):
    """Where a walk puts its results; made once, used for many walks."""

    out: np.ndarray  # uint64[N_OUT]
    update_pa: np.ndarray  # uint64[MAX_UPDATES]: address of an entry whose flags change
    update_value: np.ndarray  # uint64[MAX_UPDATES]: the new entry
    update_mask: np.ndarray  # uint64[MAX_UPDATES]: its width
    tables: np.ndarray  # uint64[5, 6]
    second_at: np.ndarray  # uint64[5]: entries of the present translation of walk_second
    path: np.ndarray  # uint64[rows, 6]: entries read, as far as there is room


def new_scratch(path_rows: int = 0) -> Scratch:
    """Return room for the results of one walk; `path_rows` for the entries read."""
    return Scratch(
        np.zeros(N_OUT, np.uint64),
        np.zeros(MAX_UPDATES, np.uint64),
        np.zeros(MAX_UPDATES, np.uint64),
        np.zeros(MAX_UPDATES, np.uint64),
        np.zeros((5, 6), np.uint64),
        np.zeros(5, np.uint64),
        np.zeros((path_rows, 6), np.uint64),
    )


@kernel
def read_entry(words, common, at, s):  # type: ignore[no-untyped-def]
    """Entry at a physical address as this walk sees it; notes an address outside of memory."""
    if at >> _3 >= np.uint64(words.size):
        s.out[OUTSIDE] = at | _ONE  # the bit tells address 0 from none: entries are aligned
        return _Z
    for i in range(s.out[N_UPDATES]):
        if s.update_pa[i] == at:
            return s.update_value[i]
    # an entry of 4 bytes is the upper or lower half of a word
    return (words[at >> _3] >> ((at & np.uint64(4)) << _3)) & common[ENTRY_MASK]


@kernel
def _set_flags(words, common, at, flags, s):  # type: ignore[no-untyped-def]
    """Put an entry with more flags on the list, once for each entry, if they are new to it."""
    entry = read_entry(words, common, at, s)
    if flags & ~entry == _Z:
        return
    n = s.out[N_UPDATES]
    i = _Z
    while i < n and s.update_pa[i] != at:
        i += _ONE
    s.update_pa[i], s.update_value[i] = at, entry | flags
    s.update_mask[i] = common[ENTRY_MASK]
    if i == n:
        s.out[N_UPDATES] = n + _ONE


@kernel
def _note(s, dimension, guest_level, level, at, entry, address):  # type: ignore[no-untyped-def]
    """Log an entry that was read, where there is room."""
    n = s.out[N_PATH]
    if n < np.uint64(s.path.shape[0]):
        s.path[n, DIMENSION], s.path[n, GUEST_LEVEL] = dimension, guest_level
        s.path[n, ENTRY_LEVEL], s.path[n, FOR_ADDRESS] = level, address
        s.path[n, ADDRESS], s.path[n, ENTRY] = at, entry
        s.out[N_PATH] = n + _ONE


@kernel
def _violation(plan, s, gpa, kind, guest_level, rights, code):  # type: ignore[no-untyped-def]
    """The second dimension does not allow an access: what the hypervisor is told."""
    c = plan.common
    where = c[CODE_FINAL] if guest_level == _Z else c[CODE_TABLE]
    s.out[EXIT], s.out[GPA] = c[EXIT_VIOLATION], gpa
    s.out[QUALIFICATION] = code | where | plan.access[kind, CODE] | (rights & c[REPORTED]) << _3


@kernel
def _misconfiguration(plan, s, gpa, kind, guest_level):  # type: ignore[no-untyped-def]
    """An entry of the second dimension has reserved bits."""
    c = plan.common
    _violation(plan, s, gpa, kind, guest_level, _Z, c[CODE_RESERVED])
    if c[EXIT_RESERVED] != c[EXIT_VIOLATION]:  # EPT: an exit of its own, without qualification
        s.out[EXIT], s.out[QUALIFICATION] = c[EXIT_RESERVED], _Z


@kernel
def walk_second(words, plan, root, gpa, kind, guest_level, s):  # type: ignore[no-untyped-def]
    """Translate a guest-physical address.

    Parameters
    ----------
    words : uint64[:]
        Physical memory.
    plan : Plan
        The second dimension; with no levels the address is returned as it is.
    root : uint64
        Physical address of its root table.
    gpa : uint64
        The address.
    kind : int
        Row of ``plan.access``.
    guest_level : int
        Level of the guest's entry that is read at this address; 0: the access itself.
    s : Scratch
        ``out[EXIT]`` or ``out[OUTSIDE]`` is not 0 if there is no translation.

    Returns
    -------
    uint64
        Host-physical address.
    """
    n = plan.level.shape[0]
    if n == 0:
        return gpa
    c, level, out = plan.common, plan.level, s.out
    rights, table, entry, d = _ONES, root, _Z, 0
    if gpa >> c[WIDTH] != _Z:  # more bits than the tables translate: nothing is mapped there
        _violation(plan, s, gpa, kind, guest_level, _Z, _Z)
        return _Z
    while True:
        at = table + (((gpa >> level[d, SHIFT]) & level[d, INDEX]) << c[ENTRY_LOG])
        entry = read_entry(words, c, at, s)
        if out[OUTSIDE] != _Z:
            return _Z
        out[REFERENCES] += _ONE
        out[HOST_REFERENCES] += _ONE
        _note(s, _2, guest_level, level[d, NUMBER], at, entry, gpa)
        rights &= (entry ^ c[INVERT]) | level[d, NEUTRAL]
        if entry & c[PRESENT] == _Z:
            _violation(plan, s, gpa, kind, guest_level, rights, _Z)
            return _Z
        leaf = entry & level[d, LEAF] != _Z
        wrong = entry & (level[d, PAGE_RESERVED] if leaf else level[d, TABLE_RESERVED])
        wrong |= (c[BAD_RIGHTS] >> (entry & _7)) & _ONE
        if leaf:
            wrong |= (c[BAD_TYPES] >> ((entry >> _3) & _7)) & _ONE
        if wrong != _Z:
            _misconfiguration(plan, s, gpa, kind, guest_level)
            return _Z
        s.second_at[d] = at
        if leaf:
            break
        table = entry & level[d, TABLE]
        d += 1
    if plan.access[kind, NEED] & ~rights != _Z:
        _violation(plan, s, gpa, kind, guest_level, rights, c[CODE_PRESENT])
        return _Z
    for i in range(d + 1):
        flags = level[i, ACCESSED]
        if i == d and plan.access[kind, NEED] & c[WRITABLE] != _Z:
            flags |= c[DIRTY]
        _set_flags(words, c, s.second_at[i], flags, s)
    out[HOST_SHIFT], out[HOST_RIGHTS] = level[d, SHIFT], rights
    return page_address(entry, level, d, gpa)


@kernel
def page_address(entry, level, d, address):  # type: ignore[no-untyped-def]
    """Physical address of a byte in the page that an entry maps."""
    offset = address & ((_ONE << level[d, SHIFT]) - _ONE)
    return (entry & level[d, PAGE]) | ((entry & level[d, HIGH]) << _PSE36) | offset


@kernel
def reset(s):  # type: ignore[no-untyped-def]
    """Forget the last walk."""
    for i in range(N_OUT):
        s.out[i] = _Z


@kernel
def walk_first(words, first, root, pdptes, second, second_root, va, row, start, s):  # type: ignore[no-untyped-def]
    """Translate a linear address.

    Parameters
    ----------
    words : uint64[:]
        Physical memory (the host's, where there is a second dimension).
    first, second : Plan
        Formats; ``second`` has no levels in a one-dimensional walk.
    root, second_root : uint64
        Physical address of the root tables (guest-physical, host-physical). Where the walk starts
        at a deeper level, ``root`` is the host-physical address of that level's table.
    pdptes : uint64[4]
        PDPTE registers.
    va : uint64
        Linear address.
    row : int
        kind + 3 * user + 6 * ac, a row of ``first.access``.
    start : (int, uint64)
        Level (0: the root) to start at, and rights of the levels above (all bits: none).
    s : Scratch
        Results, after `reset`.
    """
    c, level, out, tables = first.common, first.level, s.out, s.tables
    write = row % 3 == WRITE
    code = first.access[row, CODE]
    if (va + c[SIGN]) >> c[WIDTH] != _Z:
        out[VECTOR] = GP
        return
    d, rights = start
    table, entry, known = root, _Z, d > 0
    while True:
        index = (va >> level[d, SHIFT]) & level[d, INDEX]
        at, gpa = _Z, _Z
        if level[d, REGISTER] != _Z:
            entry = pdptes[index]
            _note(s, _Z, level[d, NUMBER], level[d, NUMBER], index, entry, va)
        else:
            gpa = table + (index << c[ENTRY_LOG])
            at = gpa
            if not known:
                kind = np.int64(second.common[TABLE_KIND])
                at = walk_second(words, second, second_root, gpa, kind, level[d, NUMBER], s)
                if out[EXIT] != _Z or out[OUTSIDE] != _Z:
                    return
            entry = read_entry(words, c, at, s)
            if out[OUTSIDE] != _Z:
                return
            out[REFERENCES] += _ONE
            _note(s, _ONE, level[d, NUMBER], level[d, NUMBER], at, entry, gpa)
        known = False
        out[LEVEL] = level[d, NUMBER]
        if entry & c[PRESENT] == _Z:
            out[VECTOR], out[ERROR] = PF, code
            return
        leaf = entry & level[d, LEAF] != _Z
        if entry & (level[d, PAGE_RESERVED] if leaf else level[d, TABLE_RESERVED]) != _Z:
            out[VECTOR], out[ERROR] = PF, code | c[CODE_RESERVED]
            return
        rights &= (entry ^ c[INVERT]) | level[d, NEUTRAL]
        tables[d, HOST_TABLE], tables[d, RIGHTS_AFTER] = at & ~np.uint64(0xFFF), rights
        tables[d, ENTRY_AT], tables[d, ENTRY_GPA] = at, gpa
        tables[d, ENTRY_RIGHTS] = out[HOST_RIGHTS]
        tables[d, FLAGS] = level[d, ACCESSED] | (c[DIRTY] if leaf and write else _Z)
        out[N_TABLES] = np.uint64(d + 1)
        if leaf:
            break
        table = entry & level[d, TABLE]
        d += 1
    out[RIGHTS], out[LEAF_ENTRY] = rights, entry
    forbid = first.access[row, FORBID]
    if first.access[row, NEED] & ~rights != _Z or (forbid != _Z and rights & forbid == forbid):
        out[VECTOR], out[ERROR] = PF, code | c[CODE_PRESENT]
        return
    if not _flags_of_first(words, first, second, np.int64(start[0]), np.int64(d), s):
        return
    gpa = page_address(entry, level, d, va)
    out[GUEST_SHIFT] = level[d, SHIFT]
    pa = walk_second(words, second, second_root, gpa, np.int64(row % 3), _Z, s)
    if out[EXIT] != _Z or out[OUTSIDE] != _Z:
        return
    out[PA], out[GPA] = pa, gpa
    out[PAGE_SHIFT] = level[d, SHIFT]
    if second.level.shape[0] > 0:
        out[PAGE_SHIFT] = min(level[d, SHIFT], out[HOST_SHIFT])


@kernel
def _flags_of_first(words, first, second, start, leaf, s):  # type: ignore[no-untyped-def]
    """Set accessed and dirty flags of the first dimension (SDM vol. 3A §4.8).

    Where the second dimension keeps no flags, reading the guest's tables is no write to it, but
    this is one (SDM vol. 3C §28.3.3.2): False if it does not allow the write.
    """
    tables = s.tables
    for d in range(start, leaf + 1):
        at, flags = tables[d, ENTRY_AT], tables[d, FLAGS]
        if flags == _Z or flags & ~read_entry(words, first.common, at, s) == _Z:
            continue
        if second.common[WRITABLE] & ~tables[d, ENTRY_RIGHTS] != _Z:
            number, rights = first.level[d, NUMBER], tables[d, ENTRY_RIGHTS]
            s.out[LEVEL] = number
            _violation(second, s, tables[d, ENTRY_GPA], _WRITE, number, rights, _Z)
            return False
        _set_flags(words, first.common, at, flags, s)
    return True


@kernel
def sort_updates(s):  # type: ignore[no-untyped-def]
    """Put the list of new entries in order of their addresses."""
    for i in range(1, s.out[N_UPDATES]):
        at, value, mask = s.update_pa[i], s.update_value[i], s.update_mask[i]
        j = i
        while j > 0 and s.update_pa[j - 1] > at:
            s.update_pa[j], s.update_value[j] = s.update_pa[j - 1], s.update_value[j - 1]
            s.update_mask[j] = s.update_mask[j - 1]
            j -= 1
        s.update_pa[j], s.update_value[j], s.update_mask[j] = at, value, mask


@kernel
def commit(words, s):  # type: ignore[no-untyped-def]
    """Write the list of new entries to memory."""
    for i in range(s.out[N_UPDATES]):
        at = s.update_pa[i]
        shift = (at & np.uint64(4)) << _3
        word = words[at >> _3] & ~(s.update_mask[i] << shift)
        words[at >> _3] = word | (s.update_value[i] << shift)
