"""The page walk, `LANES` accesses in lockstep: the common case of `walk_kernel`, many times faster.

All accesses of a block go down one level together, so that their memory references overlap and
LLVM makes vectors of them; the upper levels at which all use the same entry are walked once. That
works for a block without surprises: each entry present and without reserved bits, rights
sufficient, flags set already, pages of one size. Any other block is left to the caller, to be
walked one by one.

Three conditions are stricter than the architecture's, which costs time and no accuracy: each entry
must grant what the access needs, an access forbidden to touch user pages (SMEP, SMAP) must not find
U set in the entry that maps the page, and no key may be forbidden to it for user or supervisor
pages. Shadow-stack and implicit accesses, and fetches under mode-based execute control, are left to
the caller altogether.
"""

from __future__ import annotations

import numpy as np

from pvmmu._jit import inner, part
from pvmmu.x86.bits import KEY_SHIFT
from pvmmu.x86.lanes import LANES
from pvmmu.x86.plan import (
    ACCESS,
    ACCESSED,
    BAD_RIGHTS,
    BAD_TYPES,
    COMMON,
    DIRTY,
    ENTRY_LOG,
    ENTRY_MASK,
    FETCH,
    FORBID,
    HIGH,
    INDEX,
    INVERT,
    KEYS,
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
    READ,
    REGISTER,
    SHIFT,
    TABLE,
    TABLE_KIND,
    TABLE_RESERVED,
    WIDTH,
    WRITE,
)
from pvmmu.x86.walk_kernel import reset
from pvmmu.x86.walk_second import read_entry, walk_second
from pvmmu.x86.walk_state import (
    EXIT,
    HOST_REFERENCES,
    N_UPDATES,
    OUT,
    OUTSIDE,
)

_Z, _ONE, _3, _4, _5, _7, _15, _16 = (np.uint64(i) for i in (0, 1, 3, 4, 5, 7, 15, 16))
_32, _LOW = np.uint64(32), np.uint64(0xFFFF)
_KEY_AT = np.uint64(KEY_SHIFT)
_ONES = np.uint64((1 << 64) - 1)
_PSE36 = np.uint64(PSE36_SHIFT)
_N = np.uint64(LANES)
_FETCH, _WRITE = np.uint64(FETCH), np.uint64(WRITE)


@part
def walk_prefix(words, first, root, second, second_root, va, spread, s):  # type: ignore[no-untyped-def]
    """Walk the levels at which all addresses of a block use the same entry.

    Parameters
    ----------
    spread : uint64
        Bits in which the addresses differ.

    Returns
    -------
    level, table, rights, references : int, uint64, uint64, uint64
        Where the walks part: the row of the first level with several entries (or one that is out
        of the ordinary), its table, rights and references up to there.
    """
    work = s.work
    d, table, rights, references = LEVELS, root, _ONES, _Z
    while first[d, REGISTER] == _Z and spread >> first[d, SHIFT] == _Z:
        reset(work, _Z)
        at = table + (((va >> first[d, SHIFT]) & first[d, INDEX]) << first[COMMON, ENTRY_LOG])
        kind = np.int64(second[COMMON, TABLE_KIND])
        at = walk_second(words, second, second_root, at, kind, first[d, NUMBER], s)
        entry = read_entry(words, first, at, work)
        must = first[COMMON, PRESENT] | first[d, ACCESSED]
        if work[OUT, EXIT] | work[OUT, OUTSIDE] | work[OUT, N_UPDATES] | (must & ~entry) != _Z:
            break
        if d + 1 == first.shape[0] or entry & (first[d, LEAF] | first[d, TABLE_RESERVED]) != _Z:
            break
        rights &= (entry ^ first[COMMON, INVERT]) | first[d, NEUTRAL]
        references += work[OUT, HOST_REFERENCES] + _ONE
        table = entry & first[d, TABLE]
        d += 1
    return d, table, rights, references


@inner
def needs(plan, access, user, ac, o, deny, clean, forbid):  # type: ignore[no-untyped-def]
    """What each access of a block needs.

    ``deny`` gets the bits of an entry that do not matter, ``clean`` all but the dirty flag that a
    write needs in the entry that maps the page, ``forbid`` bits that must not be set there.
    """
    need_user, need_fetch = plan[ACCESS + 3, NEED], plan[ACCESS + FETCH, NEED]
    write_supervisor = plan[ACCESS + WRITE, NEED]
    write_user = plan[ACCESS + 3 + WRITE, NEED] & ~need_user
    forbid_data, forbid_ac, forbid_fetch = (
        plan[ACCESS + READ, FORBID],
        plan[ACCESS + 6, FORBID],
        plan[ACCESS + FETCH, FORBID],
    )
    dirty = plan[COMMON, DIRTY]
    for j in range(_N):
        k, by_user, a = np.uint64(access[o + j]), _Z - np.uint64(user[o + j]), ac[o + j]
        write = write_supervisor ^ (by_user & (write_supervisor ^ write_user))
        need = write if k == _WRITE else (need_fetch if k == _FETCH else _Z)
        deny[j] = ~(need | (by_user & need_user))
        clean[j] = ~dirty if k == _WRITE else _ONES
        data = forbid_ac if a else forbid_data
        forbid[j] = (forbid_fetch if k == _FETCH else data) & ~by_user


@inner
def needs_second(plan, access, o, deny, clean):  # type: ignore[no-untyped-def]
    """What each access of a block needs of the second dimension."""
    need_read, need_write, need_fetch = (
        plan[ACCESS + READ, NEED],
        plan[ACCESS + WRITE, NEED],
        plan[ACCESS + FETCH, NEED],
    )
    dirty = plan[COMMON, DIRTY]
    for j in range(_N):
        k = np.uint64(access[o + j])
        deny[j] = ~(need_write if k == _WRITE else (need_fetch if k == _FETCH else need_read))
        clean[j] = ~dirty if k == _WRITE else _ONES


@inner
def load_entries(words, last, entry_mask, must, invert, neutral, deny, at, e):  # type: ignore[no-untyped-def]
    """Read an entry for each lane; return what is out of the ordinary, and the OR of entries."""
    bad, some = _Z, _Z
    for j in range(_N):
        a = at[j]
        bad |= np.uint64(a >> _3 > last)
        entry = (words[min(a >> _3, last)] >> ((a & _4) << _3)) & entry_mask
        some |= entry
        bad |= (must & ~entry) | ~((entry ^ invert) | deny[j] | neutral)
        e[j] = entry
    return bad, some


@inner
def all_leaves(e, leaf):  # type: ignore[no-untyped-def]
    """Whether the entries of all lanes map pages."""
    every = leaf
    for j in range(_N):
        every &= e[j]
    return every != _Z


@inner
def enter_tables(e, reserved, table, address, shift, index, log, at):  # type: ignore[no-untyped-def]
    """Addresses of the entries one level down; return reserved bits found."""
    bad = _Z
    for j in range(_N):
        bad |= e[j] & reserved
        at[j] = (e[j] & table) + (((address[j] >> shift) & index) << log)
    return bad


@inner
def enter_pages(e, plan, d, clean, forbid, address, out):  # type: ignore[no-untyped-def]
    """Physical addresses; return reserved bits found, flags not set, pages forbidden."""
    bad = _Z
    reserved, page, high = plan[d, PAGE_RESERVED], plan[d, PAGE], plan[d, HIGH]
    offset = (_ONE << plan[d, SHIFT]) - _ONE
    for j in range(_N):
        bad |= (e[j] & (reserved | forbid[j])) | ~(e[j] | clean[j])
        out[j] = (e[j] & page) | ((e[j] & high) << _PSE36) | (address[j] & offset)
    return bad


@inner
def keys_denied(e, plan, access, user, o):  # type: ignore[no-untyped-def]
    """Whether an entry that maps a page has a protection key that its access may not use."""
    bad = _Z
    # those of a supervisor's and a user's accesses, each for pages of both
    read, write = plan[ACCESS + READ, KEYS], plan[ACCESS + WRITE, KEYS]
    by_user_read, by_user_write = plan[ACCESS + 3 + READ, KEYS], plan[ACCESS + 3 + WRITE, KEYS]
    read = (read | read >> _16) & _LOW | (by_user_read | by_user_read >> _16) << _32
    write = (write | write >> _16) & _LOW | (by_user_write | by_user_write >> _16) << _32
    for j in range(_N):
        k, half = np.uint64(access[o + j]), np.uint64(user[o + j]) << _5
        keys = write if k == _WRITE else (_Z if k == _FETCH else read)
        bad |= keys >> (half + (e[j] >> _KEY_AT & _15))
    return bad & _ONE


@inner
def second_block(words, last, plan, root, deny, clean, allow, t, h, e):  # type: ignore[no-untyped-def]
    """Translate the guest-physical addresses ``t`` in place.

    Returns what is out of the ordinary, the references of each, and the page shift.
    """
    # an EPT entry is present if it grants anything, and something is needed
    present = plan[COMMON, PRESENT] if plan[COMMON, PRESENT] == _ONE else _Z
    bad_rights, by_user, bad_types, width, log = (
        plan[COMMON, BAD_RIGHTS],
        plan[COMMON, MODE_EXECUTE],
        plan[COMMON, BAD_TYPES],
        plan[COMMON, WIDTH],
        plan[COMMON, ENTRY_LOG],
    )
    shift, index = plan[LEVELS, SHIFT], plan[LEVELS, INDEX]
    bad = _Z
    for j in range(_N):
        bad |= t[j] >> width
        h[j] = root + (((t[j] >> shift) & index) << log)
    d = LEVELS
    while True:
        must = present | plan[d, ACCESSED]
        wrong, some = load_entries(
            words,
            last,
            plan[COMMON, ENTRY_MASK],
            must,
            plan[COMMON, INVERT],
            plan[d, NEUTRAL],
            deny,
            h,
            e,
        )
        bad |= wrong
        if bad_rights != _Z:
            for j in range(_N):
                bad |= (bad_rights >> (e[j] & _7 | (e[j] & by_user) >> _7)) & _ONE
        if d + 1 == plan.shape[0]:
            break
        if some & plan[d, LEAF] != _Z:
            if not all_leaves(e, plan[d, LEAF]):
                bad = _ONES
            break
        reserved, table = plan[d, TABLE_RESERVED], plan[d, TABLE]
        d += 1
        bad |= enter_tables(e, reserved, table, t, plan[d, SHIFT], plan[d, INDEX], log, h)
    if bad_types != _Z:
        for j in range(_N):
            bad |= (bad_types >> ((e[j] >> _3) & _7)) & _ONE
    bad |= enter_pages(e, plan, d, clean, allow, t, t)
    return bad, np.uint64(d + 1 - LEVELS), plan[d, SHIFT]
