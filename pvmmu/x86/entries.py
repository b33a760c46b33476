"""A walk of entries that somebody has read already: a dump, a log.

`walk_entries` makes the checks of `pvmmu.x86.walk_kernel` without a memory to read from: each level
has one entry, wherever it is (SDM vol. 3A ch. 4). Tests hold the two against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from pvmmu.x86.checks import Check, Reference, checks_of
from pvmmu.x86.errors import WalkError
from pvmmu.x86.explain import Walk, flags_of
from pvmmu.x86.formats import Format
from pvmmu.x86.plan import (
    ACCESS,
    CODE,
    CODE_PRESENT,
    CODE_RESERVED,
    COMMON,
    HIGH,
    INVERT,
    KINDS,
    LEAF,
    LEVELS,
    NEUTRAL,
    ONES,
    PAGE,
    PAGE_RESERVED,
    PRESENT,
    PSE36_SHIFT,
    TABLE,
    TABLE_RESERVED,
    Plan,
    access_row,
    first_plan,
)
from pvmmu.x86.registers import Registers
from pvmmu.x86.walk_kernel import denied, leaf_rights
from pvmmu.x86.walk_state import CPU, ERROR, GP, PF, RIGHTS, VECTOR

#: `Walk.vector` of a walk that needs an entry which is not known.
UNKNOWN: Final = -1


def walk_entries(
    registers: Registers,
    va: int,
    entries: Mapping[int, int],
    access: str = "read",
    user: bool = True,
    ac: bool = False,
) -> Walk:
    """Walk entries that are known; nothing is read from a memory and no flags are set.

    Parameters
    ----------
    registers : Registers
        Control registers; CR3 says where the first entry is.
    va : int
        Linear address (bytes).
    entries : mapping
        Level (1: the page table) -> the entry that translates `va` there.
    access : str
        One of `pvmmu.x86.plan.KINDS`.
    user, ac : bool
        Whether in user mode; EFLAGS.AC.

    Returns
    -------
    Walk
        Its ``vector`` is -1 (`UNKNOWN`) where an entry would have to be read that is not in
        `entries`; ``level`` says which.

    Raises
    ------
    WalkError
        The address has more bits than the format takes, or `access` is no kind of access.
    """
    if access not in KINDS:
        raise WalkError(f"access must be one of {', '.join(KINDS)}, not {access!r}")
    fmt, plan = registers.format, first_plan(registers)
    if not fmt.canonical and va >> fmt.width:
        raise WalkError(f"va {va:#x} has more bits than {fmt.name} paging takes")
    row = access_row(KINDS.index(access), int(user), int(ac))
    out = [0] * (CPU + 1)
    path, pa, level = _follow(plan, fmt, registers.root, va, entries, row, out)
    checks: list[Check] = []
    if out[VECTOR] != UNKNOWN:
        checks = checks_of(out, plan, fmt, path, row)
    return Walk(
        va=va, access=access, user=user, ac=ac, registers=registers, second=None,
        vector=out[VECTOR], error_code=out[ERROR] if out[VECTOR] == PF else -1,
        pa=0 if out[VECTOR] else pa, page_shift=0 if out[VECTOR] else _shift(fmt, level),
        level=level, references=sum(r.number > 0 for r in path), exit_reason=0,
        exit_qualification=0, gpa=0, path=path, checks=tuple(checks), updates=(),
    )  # fmt: skip


def _shift(fmt: Format, level: int) -> int:
    return next(x.shift for x in fmt.levels if x.number == level)


def _follow(
    plan: Plan,
    fmt: Format,
    table: int,
    va: int,
    entries: Mapping[int, int],
    row: int,
    out: list[int],
) -> tuple[tuple[Reference, ...], int, int]:
    """Entries used, physical address, and the last level; verdict and rights go to `out`."""
    code = int(plan[ACCESS + row, CODE])
    path: list[Reference] = []
    sign = 1 << fmt.width - 1 if fmt.canonical else 0
    if (va + sign) % (1 << 64) >> fmt.width:
        out[VECTOR] = GP
        return (), 0, 0
    rights, number = ONES, 0
    for d, level in enumerate(fmt.levels, LEVELS):
        if level.number not in entries:
            out[VECTOR] = UNKNOWN
            return tuple(path), 0, level.number
        entry, index = entries[level.number], va >> level.shift & (1 << level.bits) - 1
        number += not level.in_register
        at = index if level.in_register else table + index * fmt.entry_bytes
        path.append(
            Reference(
                0 if level.in_register else number, 1, level.number, level.number, level.entry, at,
                entry, flags_of(fmt, level, entry), va if level.in_register else at,
            )
        )  # fmt: skip
        field = {i: int(plan[d, i]) for i in range(plan.shape[1])}
        leaf = bool(entry & field[LEAF])
        if not entry & int(plan[COMMON, PRESENT]):
            out[VECTOR], out[ERROR] = PF, code
        elif entry & field[PAGE_RESERVED if leaf else TABLE_RESERVED]:
            out[VECTOR], out[ERROR] = PF, code | int(plan[COMMON, CODE_RESERVED])
        if out[VECTOR]:
            return tuple(path), 0, level.number
        above, rights = rights, rights & ((entry ^ int(plan[COMMON, INVERT])) | field[NEUTRAL])
        if leaf:
            break
        table = entry & field[TABLE]
    rights = int(leaf_rights(plan, *(np.uint64(x) for x in (above, rights, entry))))
    out[RIGHTS] = rights
    wrong = int(denied(plan, row, np.uint64(rights)))
    if wrong:
        out[VECTOR], out[ERROR] = PF, code | int(plan[COMMON, CODE_PRESENT]) | wrong & ~1
    offset = va & (1 << level.shift) - 1
    pa = entry & field[PAGE] | (entry & field[HIGH]) << PSE36_SHIFT | offset
    return tuple(path), pa, level.number
