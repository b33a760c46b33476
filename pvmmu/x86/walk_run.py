"""The walks of a whole array of accesses: blocks in lockstep, what is left one by one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pvmmu._jit import kernel
from pvmmu.x86.bits import KEY
from pvmmu.x86.lanes import LANES, lanes
from pvmmu.x86.plan import (
    ACCESS,
    ACCESSED,
    COMMON,
    DIRTY,
    ENTRY_LOG,
    ENTRY_MASK,
    INDEX,
    INVERT,
    LEAF,
    LEAF_RIGHTS,
    LEVELS,
    NEED,
    NEUTRAL,
    NUMBER,
    PRESENT,
    REGISTER,
    SHIFT,
    SIGN,
    TABLE,
    TABLE_KIND,
    TABLE_RESERVED,
    WIDTH,
    WRITABLE,
)
from pvmmu.x86.walk_block import (
    all_leaves,
    enter_pages,
    enter_tables,
    keys_denied,
    load_entries,
    needs,
    needs_second,
    second_block,
    walk_prefix,
)
from pvmmu.x86.walk_kernel import (
    commit,
    reset,
    row_of,
    sort_updates,
    walk_first,
)
from pvmmu.x86.walk_state import (
    ERROR,
    EXIT,
    GPA,
    LEVEL,
    MAX_UPDATES,
    N_UPDATES,
    OUT,
    OUTSIDE,
    PA,
    PAGE_SHIFT,
    PF,
    QUALIFICATION,
    REFERENCES,
    UPDATE_PA,
    UPDATE_VALUE,
    UPDATES,
    VECTOR,
)

_Z, _ONE, _ONES = np.uint64(0), np.uint64(1), np.uint64((1 << 64) - 1)
_N = np.uint64(LANES)
_NO_ERROR, _ROOT_ROW, _KEYS = np.int64(-1), np.int64(LEVELS), np.uint64(KEY)


class Accesses(NamedTuple):
    """Accesses to translate, of equal length."""

    va: np.ndarray  # uint64
    access: np.ndarray  # uint8: index in `KINDS`
    user: np.ndarray  # uint8: 1 in user mode
    ac: np.ndarray  # uint8: EFLAGS.AC


class Results(NamedTuple):
    """One element for each access."""

    vector: np.ndarray  # uint8
    error_code: np.ndarray  # int64
    pa: np.ndarray  # uint64
    page_shift: np.ndarray  # uint8
    level: np.ndarray  # uint8
    references: np.ndarray  # uint8


class Exits(NamedTuple):
    """What a nested walk adds; without a second dimension the arrays are empty."""

    reason: np.ndarray  # uint16: zeros at first
    qualification: np.ndarray  # uint64: zeros at first
    gpa: np.ndarray  # uint64


# Columns of the list of flags set.
LIST_ACCESS, LIST_PA, LIST_VALUE = range(3)


@kernel
def walk_blocks(words, first, root, pdptes, second, second_root, a, begin, r, gpa, s):  # type: ignore[no-untyped-def]
    """Walk as many accesses from ``begin`` on as go in lockstep; return where that ends."""
    va, access, user, ac = a.va, a.access, a.user, a.ac
    vector, error, pa, page_shift, levels, references = r
    nested = second.shape[0] > LEVELS
    keyed = first[COMMON, LEAF_RIGHTS] & _KEYS != _Z
    last = np.uint64(words.size) - _ONE
    linear, t, h, e = lanes(), lanes(), lanes(), lanes()
    deny, clean, forbid, deny2, clean2, allow = lanes(), lanes(), lanes(), lanes(), lanes(), lanes()
    deny_table, clean_table = lanes(), lanes()
    log, entry_mask, invert = (
        first[COMMON, ENTRY_LOG],
        first[COMMON, ENTRY_MASK],
        first[COMMON, INVERT],
    )
    sign, width, present = first[COMMON, SIGN], first[COMMON, WIDTH], first[COMMON, PRESENT]
    table_need = second[ACCESS + np.int64(second[COMMON, TABLE_KIND]), NEED]
    writes = table_need & second[COMMON, WRITABLE] != _Z
    table_clean = ~second[COMMON, DIRTY] if writes else _ONES
    for j in range(_N):
        allow[j], deny_table[j], clean_table[j] = _Z, ~table_need, table_clean
    # where the walks of the last block parted
    top, common_va, table, rights, above = LEVELS, _Z, root, _ONES, _Z

    o = np.uint64(begin)
    while o + _N <= np.uint64(va.size):
        bad, spread, moved = _Z, _Z, _Z
        v0 = va[o]
        for j in range(_N):
            v = va[o + j]
            bad |= (v + sign) >> width
            spread |= v ^ v0
            linear[j] = v
        moved = spread | (v0 ^ common_va)
        if top == LEVELS or moved >> first[top - 1, SHIFT] != _Z:
            common_va = v0
            top, table, rights, above = walk_prefix(
                words, first, root, second, second_root, v0, spread, s
            )
        needs(first, access, user, ac, o, deny, clean, forbid)
        d, refs = top, above
        shift, index = first[d, SHIFT], first[d, INDEX]
        for j in range(_N):
            bad |= ~(rights | deny[j])
            t[j] = table + (((linear[j] >> shift) & index) << log)
        if first[d, REGISTER] != _Z:
            for j in range(_N):
                e[j] = pdptes[(linear[j] >> shift) & index]
                bad |= present & ~e[j]
            reserved, address = first[d, TABLE_RESERVED], first[d, TABLE]
            d += 1
            shift, index = first[d, SHIFT], first[d, INDEX]
            bad |= enter_tables(e, reserved, address, linear, shift, index, log, t)
        guest_shift, host_shift, final = _Z, np.uint64(63), False
        while bad == _Z:
            if nested:
                if final:
                    for j in range(_N):
                        gpa[o + j] = t[j]
                    needs_second(second, access, o, deny2, clean2)
                else:
                    for j in range(_N):
                        deny2[j], clean2[j] = deny_table[j], clean_table[j]
                wrong, more, host_shift = second_block(
                    words, last, second, second_root, deny2, clean2, allow, t, h, e
                )
                bad |= wrong
                refs += more
            if final:
                break
            must = present | first[d, ACCESSED]
            wrong, some = load_entries(
                words, last, entry_mask, must, invert, first[d, NEUTRAL], deny, t, e
            )
            bad |= wrong
            refs += _ONE
            if d + 1 == first.shape[0] or (
                some & first[d, LEAF] != _Z and all_leaves(e, first[d, LEAF])
            ):
                final, guest_shift = True, first[d, SHIFT]
                if keyed:
                    bad |= keys_denied(e, first, access, user, o)
                bad |= enter_pages(e, first, d, clean, forbid, linear, t)
            elif some & first[d, LEAF] != _Z:
                bad = _ONES
            else:
                reserved, address = first[d, TABLE_RESERVED], first[d, TABLE]
                d += 1
                shift, index = first[d, SHIFT], first[d, INDEX]
                bad |= enter_tables(e, reserved, address, linear, shift, index, log, t)
        if bad != _Z:
            break
        for j in range(_N):
            pa[o + j] = t[j]
        shift8, level8 = np.uint8(min(guest_shift, host_shift)), np.uint8(first[d, NUMBER])
        refs8 = np.uint8(refs)
        for j in range(o, o + _N):
            page_shift[j] = shift8
        for j in range(o, o + _N):
            levels[j] = level8
        for j in range(o, o + _N):
            references[j] = refs8
        for j in range(o, o + _N):
            vector[j] = np.uint8(0)
        for j in range(o, o + _N):
            error[j] = _NO_ERROR
        o += _N
    return np.int64(o)


@kernel
def walk_run(words, first, root, pdptes, second, second_root, a, begin, end, apply, r, exits, u, s):  # type: ignore[no-untyped-def]
    """Walk the accesses from ``begin`` to ``end``, one by one.

    Parameters
    ----------
    apply : bool
        Write accessed and dirty flags to memory; else each access starts from the same tables.
    r : Results
        Filled in.
    exits : Exits
        Filled in for nested walks.
    u : uint64[rows, 3]
        List of accessed and dirty flags set: access, address of the entry, new entry. There must
        be room for `MAX_UPDATES` rows.
    s : Scratch
        ``work[OUT, OUTSIDE]`` is not 0 if a table lies outside of memory.

    Returns
    -------
    (int, int)
        The access at which it stopped (all done; no more room in ``u``; a table outside of
        memory), and the rows of ``u`` in use.
    """
    used, work = 0, s.work
    nested = second.shape[0] > LEVELS
    for k in range(begin, end):
        if used + MAX_UPDATES > u.shape[0]:
            return k, used
        row = row_of(np.int64(a.access[k]), np.int64(a.user[k]), np.int64(a.ac[k]))
        reset(work, _Z)
        walk_first(
            words, first, root, pdptes, second, second_root, a.va[k], row, _ROOT_ROW, _ONES, s
        )
        if work[OUT, OUTSIDE] != _Z:
            return k, used
        r.vector[k], r.pa[k], r.level[k] = work[OUT, VECTOR], work[OUT, PA], work[OUT, LEVEL]
        r.error_code[k] = work[OUT, ERROR] if work[OUT, VECTOR] == PF else _NO_ERROR
        r.page_shift[k], r.references[k] = work[OUT, PAGE_SHIFT], work[OUT, REFERENCES]
        if nested:
            exits.reason[k], exits.gpa[k] = work[OUT, EXIT], work[OUT, GPA]
            exits.qualification[k] = work[OUT, QUALIFICATION]
        sort_updates(work)
        for j in range(UPDATES, UPDATES + np.int64(work[OUT, N_UPDATES])):
            u[used, LIST_ACCESS] = k
            u[used, LIST_PA], u[used, LIST_VALUE] = work[j, UPDATE_PA], work[j, UPDATE_VALUE]
            used += 1
        if apply:
            commit(words, work)
    return end, used
