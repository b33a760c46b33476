"""Page tables: entries in the guest's memory, and the calls that a profile lists for a step."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import NO, ONE, ZERO, lean, lean_part
from pvmmu.guest.linux import frames
from pvmmu.guest.linux.profile_keys import (
    ALLOC,
    CHANGED,
    CLEAR,
    FLUSH_MM,
    FLUSH_PAGE,
    MOST_CALLS,
    OTHER,
    RELEASE,
    SET,
    WRITABLE,
    YOUNG,
    Par,
    Step,
)
from pvmmu.guest.linux.rows import EVERYTHING, event, flush_mm, flush_page, write_row
from pvmmu.guest.linux.state import TABLE
from pvmmu.guest.vocabulary import Flag, Op
from pvmmu.x86 import bits
from pvmmu.x86.formats import Format

P, RW, US, A, D = (np.int64(b) for b in (bits.P, bits.RW, bits.US, bits.A, bits.D))
FRAME_MASK = np.int64(0x000F_FFFF_FFFF_F000)
_CURRENT, _OLD_KNOWN, _OLD_PRESENT = map(
    np.int64, (Flag.CURRENT_MM, Flag.OLD_KNOWN, Flag.OLD_PRESENT)
)
_AGAIN = np.int64(Flag.ALREADY_TABLE)
_SET_PMD, _ALLOC_PTE, _RELEASE_PTE = (
    np.int64(o) for o in (Op.SET_PMD, Op.ALLOC_PTE, Op.RELEASE_PTE)
)
_ZERO_TABLE, _MAP_TABLE = np.int64(Op.ZERO_TABLE), np.int64(Op.MAP_TABLE)
_FIRST_EVENT = np.int64(Op.ZERO_TABLE)
_GET_AND_CLEAR, _WRPROTECT, _CLEAR_YOUNG, _START = (
    np.int64(o)
    for o in (Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG, Op.MODIFY_PROT_START)
)
_LAZY_ENTER, _LAZY_LEAVE = np.int64(Op.LAZY_ENTER), np.int64(Op.LAZY_LEAVE)
_HIGH_TABLES, _PROT_NONE, _INVERTED = (
    int(p) for p in (Par.HIGH_TABLES, Par.PROT_NONE, Par.INVERTED)
)
_FREE_TABLE, _MOVE_WHOLE = np.int64(Step.FREE_TABLE), np.int64(Step.MOVE_WHOLE)
_ALL = np.int64(4096)

# Elements of `State.fmt`: levels, bytes of an entry, flags of an entry that refers to a table at
# each level, and for each level the shift and mask of its index.
LEVELS, ENTRY_BYTES, TABLE_FLAGS, SHIFTS, MASKS = 0, 1, 2, 8, 16
#: _PAGE_TABLE (arch/x86/include/asm/pgtable_types.h): P, RW, US, A, D.
_PAGE_TABLE = 0x67


def pack_format(fmt: Format) -> np.ndarray:
    """Return a paging format as kernels use it: int64[32].

    Entries of a PAE guest's top-level table are present and nothing else (SDM vol. 3A table 4-8).
    """
    out = np.zeros(32, np.int64)
    out[LEVELS], out[ENTRY_BYTES] = len(fmt.levels), fmt.entry_bytes
    for x in fmt.levels:
        out[SHIFTS + x.number], out[MASKS + x.number] = x.shift, (1 << x.bits) - 1
        out[TABLE_FLAGS + x.number] = _PAGE_TABLE if x.rights else int(P)
    return out


# ---------------------------------------------------------------------- entries
@lean
def load(s, at):  # type: ignore[no-untyped-def]
    """Return the entry at a physical address."""
    if s.fmt[ENTRY_BYTES] == 4:
        return np.int64(s.words32[at >> 2])
    return s.words[at >> 3]


@lean_part
def store(s, at, entry):  # type: ignore[no-untyped-def]
    """Write the entry at a physical address."""
    if s.fmt[ENTRY_BYTES] == 4:
        s.words32[at >> 2] = np.uint32(entry)
    else:
        s.words[at >> 3] = entry


@lean
def entry_at(s, mm, va, level):  # type: ignore[no-untyped-def]
    """Return the physical address of an entry of some level, -1 if there is no table for it."""
    table = s.mms[mm].root
    i = s.fmt[LEVELS]
    while True:
        at = table + (va >> s.fmt[SHIFTS + i] & s.fmt[MASKS + i]) * s.fmt[ENTRY_BYTES]
        if i == level:
            return at
        entry = load(s, at)
        if entry & P == 0:
            return np.int64(-1)
        table = entry & FRAME_MASK
        i -= 1


@lean_part
def next_table(s, mm, va, end):  # type: ignore[no-untyped-def]
    """Return where the first level-1 table from `va` on may be: `va` itself, or past the hole."""
    i = s.fmt[LEVELS]
    while i > 1:
        if load(s, entry_at(s, mm, va, i)) & P == 0:
            return min(end, boundary(s, va, i))
        i -= 1
    return va


@lean_part
def boundary(s, va, level):  # type: ignore[no-untyped-def]
    """Return the end of what one entry of some level covers (pmd_addr_end and kin)."""
    shift = s.fmt[SHIFTS + level]
    return ((va >> shift) + 1) << shift


@lean_part
def present(s, entry):  # type: ignore[no-untyped-def]
    """Present to the kernel: mapped, if only without any access (pte_present)."""
    return entry & (P | s.par[_PROT_NONE]) != 0


@lean_part
def page_frame(s, entry):  # type: ignore[no-untyped-def]
    """Return the frame that a present entry maps (pte_pfn): without access it may be inverted."""
    if s.par[_INVERTED] and entry & P == 0:
        entry = ~entry
    return (entry & FRAME_MASK) >> 12


# ---------------------------------------------------------------------- calls of a step
@lean_part
def calls(s, cpu, step, mm, at, new, other_mm, other_at, other_new, va, flags):  # type: ignore[no-untyped-def]
    """Make the calls that the profile lists for a step on one entry, or two.

    Parameters
    ----------
    step : int64
        A number of `Step`.
    mm, at, new : int64
        Address space, physical address and new value of the entry that the step is about.
    other_mm, other_at, other_new : int64
        The same of a second one: the child's in fork, the new place in mremap.
    va : int64
        Address that the first entry translates (bytes).
    flags : int64
        Bits of `Flag` for the rows, beside those that follow from the entries.
    """
    old = load(s, at)
    writable, young, changed = old & RW != 0, old & A != 0, old != new
    for i in range(MOST_CALLS):
        call = s.steps[step, i]
        if call[0] == 0:
            return
        when = call[2]
        if (when == WRITABLE and not writable) or (when == YOUNG and not young):
            continue
        if when == CHANGED and not changed:
            continue
        op, caller = np.int64(call[0]), np.int64(call[3])
        if op == FLUSH_PAGE:
            flush_page(s, cpu, mm, va, caller)
        elif op in (_LAZY_ENTER, _LAZY_LEAVE):
            event(s, cpu, op, mm, ZERO, ZERO, ONE, ZERO, caller)
        elif call[1] == OTHER:
            _entry_call(s, cpu, op, other_mm, other_at, va, other_new, flags, caller)
        else:
            _entry_call(s, cpu, op, mm, at, va, new, flags, caller)


@lean_part
def _entry_call(s, cpu, op, mm, at, va, new, flags, caller):  # type: ignore[no-untyped-def]
    """Make one call on an entry: write its row, change the entry."""
    old = load(s, at)
    if op == _GET_AND_CLEAR:
        new = ZERO
    elif op == _WRPROTECT:
        new = old & ~RW
    elif op == _CLEAR_YOUNG:
        new = old & ~A
    elif op == _START:
        _entry_row(s, cpu, op, mm, at, va, ZERO, flags, caller)
        return
    flags |= _OLD_KNOWN | (_OLD_PRESENT if old & P else ZERO)
    _entry_row(s, cpu, op, mm, at, va, new, flags, caller)
    store(s, at, new)


@lean_part
def _entry_row(s, cpu, op, mm, at, va, value, flags, caller):  # type: ignore[no-untyped-def]
    index = (at & (_ALL - 1)) // s.fmt[ENTRY_BYTES]
    if s.cpus[cpu].current == mm:
        flags |= _CURRENT
    write_row(s, cpu, op, mm, at >> 12, index, va, value, ONE, flags, caller)


@lean
def moments(s, cpu, step, mm, old_mm, va, value, flags):  # type: ignore[no-untyped-def]
    """Make the calls of a step that are about no entry: brackets, moments, faults, full flushes."""
    for i in range(MOST_CALLS):
        call = s.steps[step, i]
        op = np.int64(call[0])
        if op == 0:
            return
        if op == FLUSH_MM:
            flush_mm(s, cpu, old_mm, ZERO, EVERYTHING, np.int64(12), NO, ZERO, np.int64(call[3]))
        else:
            event(s, cpu, op, mm, va, value, ONE, flags, np.int64(call[3]))
            va = value = flags = ZERO


# ---------------------------------------------------------------------- tables
@lean
def ensure(s, cpu, mm, va, level, step):  # type: ignore[no-untyped-def]
    """Return the physical address of an entry of some level; missing tables above are made."""
    table = s.mms[mm].root
    i = s.fmt[LEVELS]
    while True:
        at = table + (va >> s.fmt[SHIFTS + i] & s.fmt[MASKS + i]) * s.fmt[ENTRY_BYTES]
        if i == level:
            return at
        if load(s, at) & P == 0:
            _new_table(s, cpu, mm, va, at, i, step)
        table = load(s, at) & FRAME_MASK
        i -= 1


@lean_part
def _new_table(s, cpu, mm, va, at, level, step):  # type: ignore[no-untyped-def]
    """Make the table that the entry at `at`, of some level, refers to (__pte_alloc and kin)."""
    frame = frames.allocate(s, cpu, TABLE, NO)
    clear_frame(s, frame)
    s.mms[mm].tables += 1
    table_calls(s, cpu, step, mm, va, at, level, frame, ZERO)


@lean
def clear_frame(s, frame):  # type: ignore[no-untyped-def]
    """Zero a frame."""
    for i in range(frame * 512, frame * 512 + 512):
        s.words[i] = 0


@lean
def table_calls(s, cpu, step, mm, va, at, level, frame, flags):  # type: ignore[no-untyped-def]
    """Make the calls of a step about the table page `frame` below the entry at `at`."""
    shift = s.fmt[SHIFTS + level]
    base = va >> shift << shift
    entry = frame << 12 | s.fmt[TABLE_FLAGS + level]
    which = level - 2  # of the table: 0 for a PTE table
    current = _CURRENT if s.cpus[cpu].current == mm else ZERO
    for i in range(MOST_CALLS):
        call = s.steps[step, i]
        code, caller = np.int64(call[0]), np.int64(call[3])
        if code == 0:
            return
        if code in (SET, CLEAR):
            old = load(s, at)
            new = entry if code == SET else ZERO
            known = flags | _OLD_KNOWN | (_OLD_PRESENT if old & P else ZERO)
            _entry_row(s, cpu, _SET_PMD + which, mm, at, base, new, known, caller)
            store(s, at, new)
        elif code in (ALLOC, RELEASE):
            op = (_ALLOC_PTE if code == ALLOC else _RELEASE_PTE) + which
            write_row(s, cpu, op, mm, frame, np.int64(-1), base, ZERO, ONE, flags | current, caller)
        else:
            write_row(
                s, cpu, code, mm, frame, np.int64(-1), base, ZERO, ONE, flags | current, caller
            )


@lean_part
def move_table(s, cpu, mm, old_at, new_at, old_va, new_va, level):  # type: ignore[no-untyped-def]
    """Hook a whole table in elsewhere (move_normal_pmd, move_normal_pud)."""
    frame = (load(s, old_at) & FRAME_MASK) >> 12
    current = _CURRENT if s.cpus[cpu].current == mm else ZERO
    shift = s.fmt[SHIFTS + level]
    which = level - 2
    entry = load(s, old_at)
    caller = np.int64(s.steps[_MOVE_WHOLE, 0, 3])
    known = _OLD_KNOWN | _OLD_PRESENT
    old_base, new_base = old_va >> shift << shift, new_va >> shift << shift
    _entry_row(s, cpu, _SET_PMD + which, mm, old_at, old_base, ZERO, known, caller)
    store(s, old_at, ZERO)
    write_row(
        s, cpu, _ALLOC_PTE + which, mm, frame, np.int64(-1), new_base, ZERO, ONE,
        _AGAIN | current, caller,
    )  # fmt: skip
    _entry_row(s, cpu, _SET_PMD + which, mm, new_at, new_base, entry, _OLD_KNOWN, caller)
    store(s, new_at, entry)


@lean_part
def map_table(s, cpu, mm, at, va):  # type: ignore[no-untyped-def]
    """Map a table page in high memory before its entries are used (pte_offset_map)."""
    if s.par[_HIGH_TABLES]:
        write_row(s, cpu, _MAP_TABLE, mm, at >> 12, np.int64(-1), va, ZERO, ONE, ZERO, np.int64(-1))
