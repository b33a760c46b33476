"""The walks of a whole array of accesses: blocks in lockstep, what is left one by one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pvmmu._jit import kernel
from pvmmu.x86.lanes import LANES, lanes
from pvmmu.x86.plan import (
    ACCESSED,
    DIRTY,
    ENTRY_LOG,
    ENTRY_MASK,
    INDEX,
    INVERT,
    LEAF,
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
    load_entries,
    needs,
    needs_second,
    second_block,
    walk_prefix,
)
from pvmmu.x86.walk_kernel import (
    ERROR,
    EXIT,
    GPA,
    LEVEL,
    MAX_UPDATES,
    N_UPDATES,
    OUTSIDE,
    PA,
    PAGE_SHIFT,
    PF,
    QUALIFICATION,
    REFERENCES,
    VECTOR,
    commit,
    reset,
    sort_updates,
    walk_first,
)

_Z, _ONE, _ONES = np.uint64(0), np.uint64(1), np.uint64((1 << 64) - 1)
_N = np.uint64(LANES)
_NO_ERROR = np.int16(-1)


class Accesses(NamedTuple):
    """Accesses to translate, of equal length."""

    va: np.ndarray  # uint64
    access: np.ndarray  # uint8: 0 read, 1 write, 2 fetch
    user: np.ndarray  # uint8: 1 in user mode
    ac: np.ndarray  # uint8: EFLAGS.AC


class Results(NamedTuple):
    """One element for each access."""

    vector: np.ndarray  # uint8
    error_code: np.ndarray  # int16
    pa: np.ndarray  # uint64
    page_shift: np.ndarray  # uint8
    level: np.ndarray  # uint8
    references: np.ndarray  # uint8


class Exits(NamedTuple):
    """What a nested walk adds; arrays of length 0 otherwise."""

    reason: np.ndarray  # uint16
    qualification: np.ndarray  # uint64
    gpa: np.ndarray  # uint64


class Updates(NamedTuple):
    """List of accessed and dirty flags set."""

    access: np.ndarray  # int64
    pa: np.ndarray  # uint64
    value: np.ndarray  # uint64


@kernel
def walk_blocks(words, first, root, pdptes, second, second_root, a, begin, r, s):  # type: ignore[no-untyped-def]
    """Walk as many accesses from ``begin`` on as go in lockstep; return where that ends."""
    va, access, user, ac = a.va, a.access, a.user, a.ac
    vector, error, pa, page_shift, levels, references = r
    level, c, rows = first.level, first.common, first.access
    level2, c2, rows2 = second.level, second.common, second.access
    n, n2 = level.shape[0], level2.shape[0]
    last = np.uint64(words.size) - _ONE
    linear, t, h, e = lanes(), lanes(), lanes(), lanes()
    deny, clean, forbid, deny2, clean2, allow = lanes(), lanes(), lanes(), lanes(), lanes(), lanes()
    deny_table, clean_table = lanes(), lanes()
    log, entry_mask, invert, sign, width = c[ENTRY_LOG], c[ENTRY_MASK], c[INVERT], c[SIGN], c[WIDTH]
    dirty, present = c[DIRTY], c[PRESENT]
    table_need = rows2[np.int64(c2[TABLE_KIND]), NEED]
    table_clean = ~c2[DIRTY] if table_need & c2[WRITABLE] != _Z else _ONES
    for j in range(_N):
        allow[j], deny_table[j], clean_table[j] = _Z, ~table_need, table_clean
    # where the walks of the last block parted
    top, common_va, table, rights, above = 0, _Z, root, _ONES, _Z

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
        if top == 0 or moved >> level[top - 1, SHIFT] != _Z:
            common_va = v0
            top, table, rights, above = walk_prefix(
                words, first, root, second, second_root, v0, spread, s
            )
        needs(rows, dirty, access, user, ac, o, deny, clean, forbid)
        d, refs = top, above
        shift, index = level[d, SHIFT], level[d, INDEX]
        for j in range(_N):
            bad |= ~(rights | deny[j])
            t[j] = table + (((linear[j] >> shift) & index) << log)
        if level[d, REGISTER] != _Z:
            for j in range(_N):
                e[j] = pdptes[(linear[j] >> shift) & index]
                bad |= present & ~e[j]
            reserved, address = level[d, TABLE_RESERVED], level[d, TABLE]
            d += 1
            shift, index = level[d, SHIFT], level[d, INDEX]
            bad |= enter_tables(e, reserved, address, linear, shift, index, log, t)
        guest_shift, host_shift, final = _Z, np.uint64(63), False
        while bad == _Z:
            if n2 > 0:
                if final:
                    needs_second(rows2, c2[DIRTY], access, o, deny2, clean2)
                else:
                    for j in range(_N):
                        deny2[j], clean2[j] = deny_table[j], clean_table[j]
                wrong, more, host_shift = second_block(
                    words, last, level2, c2, second_root, deny2, clean2, allow, t, h, e
                )
                bad |= wrong
                refs += more
            if final:
                break
            must = present | level[d, ACCESSED]
            wrong, some = load_entries(
                words, last, entry_mask, must, invert, level[d, NEUTRAL], deny, t, e
            )
            bad |= wrong
            refs += _ONE
            if d + 1 == n or (some & level[d, LEAF] != _Z and all_leaves(e, level[d, LEAF])):
                final, guest_shift = True, level[d, SHIFT]
                bad |= enter_pages(e, level, d, clean, forbid, linear, t)
            elif some & level[d, LEAF] != _Z:
                bad = _ONES
            else:
                reserved, address = level[d, TABLE_RESERVED], level[d, TABLE]
                d += 1
                shift, index = level[d, SHIFT], level[d, INDEX]
                bad |= enter_tables(e, reserved, address, linear, shift, index, log, t)
        if bad != _Z:
            break
        for j in range(_N):
            pa[o + j] = t[j]
        shift8, level8 = np.uint8(min(guest_shift, host_shift)), np.uint8(level[d, NUMBER])
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
def walk_run(words, first, root, pdptes, second, second_root, a, begin, apply, r, exits, u, s):  # type: ignore[no-untyped-def]
    """Walk the accesses from ``begin`` on, in order.

    Parameters
    ----------
    apply : bool
        Write accessed and dirty flags to memory; else each access starts from the same tables.
    r, exits, u : Results, Exits, Updates
        Filled in. ``u`` must have room for `MAX_UPDATES` rows.
    s : Scratch
        ``out[OUTSIDE]`` is not 0 if a table lies outside of memory.

    Returns
    -------
    (int, int)
        The access at which it stopped (all done; no more room in ``u``; a table outside of
        memory), and the rows of ``u`` in use.
    """
    n, used, i = a.va.size, 0, begin
    nested = second.level.shape[0] > 0
    while i < n:
        block = walk_blocks(words, first, root, pdptes, second, second_root, a, i, r, s)
        if nested:
            for k in range(i, block):
                exits.reason[k], exits.qualification[k], exits.gpa[k] = 0, 0, 0
        i = block
        for k in range(i, min(i + LANES, n)):
            if used + MAX_UPDATES > u.access.size:
                return k, used
            row = np.int64(a.access[k] + 3 * a.user[k] + 6 * a.ac[k])
            reset(s)
            walk_first(words, first, root, pdptes, second, second_root, a.va[k], row, (0, _ONES), s)
            out = s.out
            if out[OUTSIDE] != _Z:
                return k, used
            r.vector[k], r.pa[k], r.level[k] = out[VECTOR], out[PA], out[LEVEL]
            r.error_code[k] = out[ERROR] if out[VECTOR] == PF else _NO_ERROR
            r.page_shift[k], r.references[k] = out[PAGE_SHIFT], out[REFERENCES]
            if nested:
                exits.reason[k], exits.gpa[k] = out[EXIT], out[GPA]
                exits.qualification[k] = out[QUALIFICATION]
            sort_updates(s)
            for j in range(out[N_UPDATES]):
                u.access[used], u.pa[used], u.value[used] = k, s.update_pa[j], s.update_value[j]
                used += 1
            if apply:
                commit(words, s)
            i = k + 1
    return i, used
