"""What a walk needs to know, as small arrays: a format with the registers' settings worked in.

The kernels see nothing but a plan. Access rights become two masks for each kind of access, to be
compared with the logical AND of all entries' rights (SDM vol. 3A §4.6): `NEED` must all be set,
`FORBID` must not all be set. Flags whose sense is inverted (XD) are inverted first, so that in all
formats a set bit grants. Two rights are the last entry's alone (`LEAF_RIGHTS`): its protection key,
and, in the place of the dirty flag, whether it maps a shadow stack (§4.6.1). `KEYS` has a bit for
each key that an access may not use: of supervisor pages from 0, of user pages from 16 up (§4.6.2).
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from pvmmu.x86 import bits, formats
from pvmmu.x86.bits import mask
from pvmmu.x86.formats import Format, Level
from pvmmu.x86.registers import Ept, Npt, Registers

ONES: Final = (1 << 64) - 1

# Rows of a plan: common fields; one for each kind of access; one for each level, root first.
COMMON, ACCESS, LEVELS = 0, 1, 19

# Columns of the rows of levels.
SHIFT, INDEX, NUMBER, LEAF, TABLE, PAGE, HIGH, TABLE_RESERVED, PAGE_RESERVED = range(9)
ACCESSED, NEUTRAL, REGISTER = range(9, 12)

# Columns of the common row.
PRESENT, INVERT, DIRTY, WIDTH, SIGN, ENTRY_LOG, ENTRY_MASK, GLOBAL = range(8)
BAD_RIGHTS, BAD_TYPES, WRITABLE, TABLE_KIND = range(8, 12)
CODE_PRESENT, CODE_RESERVED, CODE_FINAL, CODE_TABLE, REPORTED = range(12, 17)
EXIT_VIOLATION, EXIT_RESERVED, LEAF_RIGHTS, MODE_EXECUTE = range(17, 21)
_WIDTH: Final = 21

# Columns of the rows of accesses; SECOND_ROW: the second dimension's row of the page itself.
NEED, FORBID, CODE, KEYS, SECOND_ROW = range(5)

# Kinds of access. Implicit ones are the processor's own, to its tables: a supervisor's at any CPL,
# to which SMAP applies whatever EFLAGS.AC says (SDM vol. 3A §4.6).
READ, WRITE, FETCH, SHADOW_READ, SHADOW_WRITE, IMPLICIT_READ, IMPLICIT_WRITE = range(7)
KINDS: Final = (
    "read", "write", "fetch", "shadow-stack read", "shadow-stack write", "implicit read",
    "implicit write",
)  # fmt: skip
# Rows of a second dimension's accesses: the three plain kinds; the processor reads an entry of a
# guest's table; a fetch from what the guest's tables call a user page.
TABLE_READ, USER_FETCH = 3, 4
N_CLASSES: Final = 18


def access_row(kind: Any, user: Any, ac: Any) -> Any:
    """Row of an access among the plan's; neither mode nor AC matters to an implicit one."""
    if kind <= FETCH:
        return kind + 3 * user + 6 * ac
    if kind <= SHADOW_WRITE:
        return 12 + kind - SHADOW_READ + 2 * user
    return 16 + kind - IMPLICIT_READ


#: How a second dimension fails: VMX exit reasons (SDM vol. 3D app. C), SVM exit code (APM app. C).
EPT_VIOLATION, EPT_MISCONFIGURATION, NESTED_PAGE_FAULT = 48, 49, 0x400

#: Shift from bits 13 and up of a PDE to address bits 32 and up (PSE-36).
PSE36_SHIFT: Final = 19


#: A format with the registers' settings: uint64[LEVELS + levels, 21].
Plan = np.ndarray


@functools.lru_cache(64)
def first_plan(registers: Registers, fmt: Format | None = None) -> Plan:
    """Return the plan of the first dimension.

    Parameters
    ----------
    registers : Registers
        CR3 and PDPTEs are not looked at: the root is an argument of the kernels.
    fmt : Format, optional
        Another format than the registers'; the PAE guest of AMD's nested paging has one.
    """
    fmt = fmt or registers.format
    m = min(registers.physical_bits, fmt.max_physical)
    if not registers.pse36 and fmt is formats.TWO_LEVEL:
        m = 32
    level, common = _tables(fmt, m, registers)
    common[GLOBAL] = mask(fmt.global_) if registers.cr4 & bits.CR4_PGE else 0
    common[CODE_PRESENT], common[CODE_RESERVED] = bits.PF_P, bits.PF_P | bits.PF_RSVD
    if registers.cr4 & bits.CR4_CET:
        common[LEAF_RIGHTS] |= common[DIRTY]
    if registers.long and registers.cr4 & (bits.CR4_PKE | bits.CR4_PKS):
        common[LEAF_RIGHTS] |= np.uint64(bits.KEY)
    return _frozen(level, common, _guest_access(registers, common))


def _guest_access(registers: Registers, common: np.ndarray) -> np.ndarray:
    """Rights that each kind of access needs (SDM vol. 3A §4.6.1), and its error code (§4.7)."""
    write, user = mask("1"), mask("2")
    wp = bool(registers.cr0 & bits.CR0_WP)
    smep, smap = bool(registers.cr4 & bits.CR4_SMEP), bool(registers.cr4 & bits.CR4_SMAP)
    out = np.zeros((N_CLASSES, 5), np.uint64)
    for row, (kind, user_mode, ac) in _CLASSES.items():
        need = forbid = code = 0
        plain, shadow = _PLAIN[kind], kind in (SHADOW_READ, SHADOW_WRITE)
        if user_mode:
            need, code = user, bits.PF_US
        elif shadow or (smep if kind == FETCH else smap and not ac):
            forbid = user
        if shadow:  # writes to a shadow stack need no R/W: it is clear
            need |= mask("6")
            code |= bits.PF_SS
        elif plain == WRITE:
            need |= write if user_mode or wp else 0
        if plain == WRITE:
            code |= bits.PF_WR
        if kind == FETCH:
            need |= int(common[INVERT])
            code |= bits.PF_ID if registers.nxe or smep else 0
        keys = _keys(registers, plain, user_mode, user_mode or wp)
        out[row] = need, forbid, code, keys, plain
    return out


#: Kind, user mode and EFLAGS.AC of each row.
_CLASSES: Final = {
    access_row(kind, user, ac): (kind, bool(user), bool(ac))
    for kind in range(len(KINDS))
    for user in (0, 1)
    for ac in (0, 1)
    if kind <= SHADOW_WRITE or not (user or ac)
}
_PLAIN: Final = (READ, WRITE, FETCH, READ, WRITE, READ, WRITE)


def _keys(registers: Registers, plain: int, user_mode: bool, checked: bool) -> int:
    """Protection keys that an access may not use (SDM vol. 3A §4.6.2); fetches may use all.

    Writes are ``checked`` against the write-disable bits; those of a supervisor only with CR0.WP.
    """
    out = 0
    if plain == FETCH or not registers.long:
        return 0
    for on, rights, first in (
        (registers.cr4 & bits.CR4_PKS and not user_mode, registers.pkrs, 0),
        (registers.cr4 & bits.CR4_PKE, registers.pkru, 16),
    ):
        for key in range(16 if on else 0):
            no_access, no_write = rights >> 2 * key & 1, rights >> 2 * key + 1 & 1
            if no_access or (no_write and plain == WRITE and checked):
                out |= 1 << first + key
    return out


@functools.lru_cache(64)
def second_plan(second: Ept | Npt) -> Plan:
    """Return the plan of a second dimension."""
    return _ept_plan(second) if isinstance(second, Ept) else _npt_plan(second)


def _ept_plan(ept: Ept) -> Plan:
    """SDM vol. 3C §28.3.3 (violations, misconfigurations), §28.3.5 (flags), table 27-7 (codes)."""
    level, common = _tables(ept.format, ept.maxphyaddr, ept)
    r, w, x = bits.EPT_R, bits.EPT_W, bits.EPT_X
    if not ept.keeps_flags:
        level[:, ACCESSED] = 0
        common[DIRTY] = 0
    common[BAD_RIGHTS] = _bitmap(ept.format.bad_rights)
    if ept.execute_only:
        common[BAD_RIGHTS] &= np.uint64(ONES ^ _bitmap((0b0100, 0b1000, 0b1100)))
    by_user = mask(ept.format.execute_user) if ept.mode_based_execute else x
    common[MODE_EXECUTE] = by_user & ~x
    common[PRESENT] |= np.uint64(by_user)
    level[-1, LEAF] |= np.uint64(by_user)  # its entries map pages if they are present
    common[BAD_TYPES] = _bitmap(ept.format.bad_types)
    common[CODE_FINAL], common[CODE_TABLE] = 1 << 8 | 1 << 7, 1 << 7
    # the rights of all entries are in bits 5:3 of the qualification, a user's to execute in bit 6
    common[REPORTED] = r | w | x
    common[EXIT_VIOLATION], common[EXIT_RESERVED] = EPT_VIOLATION, EPT_MISCONFIGURATION
    common[TABLE_KIND] = TABLE_READ
    table = r | w if ept.keeps_flags else r
    access = [(r, 0, 1), (w, 0, 2), (x, 0, 4), (table, 0, table), (by_user, 0, 4)]
    return _frozen(level, common, np.array(access, np.uint64))


def _npt_plan(second: Npt) -> Plan:
    """APM vol. 2 §15.25.5 (rights), §15.25.6 (exit code and its information)."""
    host = second.host
    level, common = _tables(
        second.format, min(host.physical_bits, second.format.max_physical), host
    )
    common[CODE_PRESENT], common[CODE_RESERVED] = bits.PF_P, bits.PF_P | bits.PF_RSVD
    common[CODE_FINAL], common[CODE_TABLE] = 1 << 32, 1 << 33
    common[EXIT_VIOLATION] = common[EXIT_RESERVED] = NESTED_PAGE_FAULT
    common[TABLE_KIND] = WRITE
    user, write, code = mask("2"), mask("1"), bits.PF_US
    access = np.zeros((5, 3), np.uint64)
    access[READ] = user, 0, code
    access[WRITE] = access[TABLE_READ] = user | write, 0, code | bits.PF_WR
    # the bit depends on the host's registers as that of a page fault does (§15.25.6, SDM §4.7)
    fetch = bits.PF_ID if host.nxe or host.cr4 & bits.CR4_SMEP else 0
    access[FETCH] = access[USER_FETCH] = user | int(common[INVERT]), 0, code | fetch
    return _frozen(level, common, access)


def _tables(fmt: Format, m: int, owner: Registers | Ept) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the levels and the common fields that follow from the format alone."""
    xd, nxe = mask(fmt.no_execute), owner.nxe
    amd, features = owner.vendor == "AMD", owner.features()
    level = np.array(
        [_level(fmt, x, m, features, 0 if nxe else xd, amd) for x in fmt.levels], np.uint64
    )
    for column in (TABLE, PAGE, TABLE_RESERVED, PAGE_RESERVED):
        level[:, column] &= np.uint64(ONES ^ owner.encrypted)
    common = np.zeros(_WIDTH, np.uint64)
    common[PRESENT], common[DIRTY] = mask(fmt.present), mask(fmt.dirty)
    common[INVERT] = xd if nxe else 0
    common[WIDTH], common[SIGN] = fmt.width, 1 << fmt.width - 1 if fmt.canonical else 0
    common[ENTRY_LOG] = {4: 2, 8: 3}[fmt.entry_bytes]
    common[ENTRY_MASK] = (1 << 8 * fmt.entry_bytes) - 1
    common[WRITABLE] = mask(fmt.write)
    return level, common


def _level(
    fmt: Format, level: Level, m: int, features: frozenset[str], xd: int, amd: bool
) -> tuple[int, ...]:
    table_reserved = mask(level.reserved, m) | xd | (mask(level.reserved_amd) if amd else 0)
    leaf = page_address = high = page_reserved = 0
    page = level.page
    if page is not None:
        if not page.feature or page.feature in features:
            leaf = bits.PS if level.number > 1 else mask(fmt.present)
            page_address, high = mask(page.address, m), mask(page.high, m)
            page_reserved = mask(page.reserved, m) | xd
        elif page.otherwise == "reserved":
            table_reserved |= bits.PS
    return (
        level.shift,
        (1 << level.bits) - 1,
        level.number,
        leaf,
        mask(level.address, m),
        page_address,
        high,
        table_reserved,
        page_reserved,
        mask(fmt.accessed) if level.accessed else 0,
        0 if level.rights else ONES,
        int(level.in_register),
    )


def _bitmap(values: tuple[int, ...]) -> int:
    return sum(1 << v for v in values)


def _frozen(level: np.ndarray, common: np.ndarray, access: np.ndarray) -> Plan:
    """A plan is shared by all calls with these registers: nobody may write to it."""
    out = np.zeros((LEVELS + len(level), _WIDTH), np.uint64)
    out[COMMON] = common
    out[ACCESS : ACCESS + len(access), : access.shape[1]] = access
    out[LEVELS:, : level.shape[1]] = level
    out.setflags(write=False)
    return out


#: The second dimension of a walk that has none.
NO_PLAN: Final = _frozen(np.zeros((0, 12)), np.zeros(_WIDTH), np.zeros((5, 3)))
