"""One access, explained: each entry read, each check, what comes of it.

The verdict is the kernels' own (`walk_kernel`); what is added here are names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from pvmmu.x86 import bits
from pvmmu.x86.bits import mask
from pvmmu.x86.checks import Check, Reference, checks_of
from pvmmu.x86.errors import WalkError
from pvmmu.x86.formats import Format, Level
from pvmmu.x86.linear import REFUSED, seen_addresses
from pvmmu.x86.plan import (
    EPT_MISCONFIGURATION,
    EPT_VIOLATION,
    KINDS,
    LEVELS,
    NO_PLAN,
    ONES,
    access_row,
    first_plan,
    second_plan,
)
from pvmmu.x86.registers import Ept, Npt, Registers
from pvmmu.x86.walk import guest_format, load_pdptes
from pvmmu.x86.walk_arguments import check_kinds, check_owned, check_words
from pvmmu.x86.walk_kernel import sort_updates, walk_first
from pvmmu.x86.walk_state import (
    ERROR,
    EXIT,
    GP,
    GPA,
    LEVEL,
    MAX_PATH,
    N_PATH,
    N_UPDATES,
    OUT,
    OUTSIDE,
    PA,
    PAGE_SHIFT,
    PF,
    QUALIFICATION,
    REFERENCES,
    UPDATES,
    VECTOR,
    new_scratch,
)

_SIZES: Final = {12: "4 KiB", 21: "2 MiB", 22: "4 MiB", 30: "1 GiB"}


@dataclass(frozen=True)
class Walk:
    """One access.

    Attributes
    ----------
    va, access, user, ac
        The access: ``access`` is one of `pvmmu.x86.plan.KINDS`.
    registers, second
        As given.
    vector, error_code, pa, page_shift, level, references
        As of `pvmmu.x86.walk.Walks`.
    exit_reason, exit_qualification, gpa
        As of `pvmmu.x86.walk.NestedWalks`; 0 in a one-dimensional walk.
    path : tuple of Reference
        Entries read, in order.
    checks : tuple of Check
        In the order in which they are made; after one that fails there is no other.
    updates : tuple of (int, int)
        Physical address and new value of entries whose accessed or dirty flags are set.
    """

    va: int
    access: str
    user: bool
    ac: bool
    registers: Registers
    second: Ept | Npt | None
    vector: int
    error_code: int
    pa: int
    page_shift: int
    level: int
    references: int
    exit_reason: int
    exit_qualification: int
    gpa: int
    path: tuple[Reference, ...]
    checks: tuple[Check, ...]
    updates: tuple[tuple[int, int], ...]

    @property
    def verdict(self) -> str:
        """One line: what comes of the access."""
        if self.exit_reason:
            name = {EPT_VIOLATION: "EPT violation", EPT_MISCONFIGURATION: "EPT misconfiguration"}
            what = name.get(self.exit_reason, "#NPF")
            return f"{what} at guest-physical {self.gpa:#x}, {self.exit_qualification:#x}"
        if self.vector == GP:
            return "#GP(0)"
        if self.vector < 0:
            return f"not known: no entry of level {self.level} is given"
        if self.vector == PF:
            return f"#PF, error code {self.error_code:#x} ({error_words(self.error_code)})"
        return f"{self.pa:#x}, in a page of {_SIZES[self.page_shift]}"

    def __str__(self) -> str:
        who = "user" if self.user else "supervisor"
        fmt = guest_format(self.registers, self.second)
        under = f" under {self.second.format.name}" if self.second else ""
        head = f"{who} {self.access} of {self.va:#x}, {fmt.name} paging{under}"
        names = {0: "the page"} | {x.number: x.entry for x in fmt.levels}
        rows = [
            (
                r.number or "",
                r.name if r.dimension == 1 else f"  {r.name}, to reach {names[r.guest_level]}",
                f"{r.address:#x}",
                f"{r.entry:#x}",
                r.flags,
            )
            for r in self.path
        ]
        table = tabulate(rows, ("#", "entry", "at", "value", "flags"), disable_numparse=True)
        marks = {True: "ok  ", False: "FAIL"}
        checks = "\n".join(f"  {marks[c.passed]} {c.what}: {c.because}" for c in self.checks)
        sets = "".join(f"\n  sets {at:#x} to {value:#x}" for at, value in self.updates)
        return f"{head}\n{table}\n{checks}\n-> {self.verdict}; {self.references} references{sets}"


def walk_one(
    words: npt.NDArray[np.uint64],
    registers: Registers,
    va: int,
    access: str | int = "read",
    user: bool = True,
    ac: bool = False,
    *,
    second: Ept | Npt | None = None,
    owned: npt.ArrayLike | None = None,
) -> Walk:
    """Translate one linear address and say how.

    Parameters
    ----------
    words : uint64[m]
        Physical memory (the host's, if there is a second dimension). It is not written to.
    registers : Registers
        Control registers.
    va : int
        Linear address (bytes).
    access : str or int
        Kind of access: one of `pvmmu.x86.plan.KINDS`, or its index.
    user, ac : bool
        Whether in user mode; EFLAGS.AC.
    second : Ept or Npt, optional
        The second dimension.
    owned : bool[frames], optional
        As of `pvmmu.x86.walk.walk_many`; without a second dimension.

    Returns
    -------
    Walk
        ``print`` shows the entries and the checks.

    Raises
    ------
    WalkError
        An argument is wrong, or a table lies outside of memory.
    """
    check_words(words)
    kind = KINDS.index(access) if access in KINDS else access
    if not isinstance(kind, int | np.integer) or not 0 <= kind < len(KINDS):
        raise WalkError(f"access must be one of {', '.join(KINDS)}, not {access!r}")
    fmt = guest_format(registers, second)
    if not 0 <= va < 1 << 64 or (not fmt.canonical and va >> fmt.width):
        raise WalkError(f"va {va:#x} has more bits than {fmt.name} paging takes")
    first = first_plan(registers, fmt)
    plan2 = NO_PLAN if second is None else second_plan(second)
    pdptes = np.array(registers.pdptes or load_pdptes(words, registers, second), np.uint64)
    if second is not None and owned is not None:
        raise WalkError("owned: RMP checks of a guest's accesses are not modelled")
    s = new_scratch(MAX_PATH, owned=check_owned(owned, registers))
    row = access_row(int(kind), int(bool(user)), int(bool(ac)))
    how = tuple(np.array([x], np.uint8) for x in (kind, user, ac))
    check_kinds(how[0], registers)
    seen = seen_addresses(registers, np.array([va], np.uint64), *how)[0]
    root2 = np.uint64(second.root if second else 0)
    walk_first(
        words, first, np.uint64(registers.root), pdptes, plan2, root2, seen, row,
        LEVELS, np.uint64(ONES), s,
    )  # fmt: skip
    out = s.work[OUT].tolist()
    if out[OUTSIDE]:
        at = out[OUTSIDE] & ~1
        raise WalkError(f"va {va:#x}: the entry at {at:#x} is outside of the memory")
    sort_updates(s.work)
    n = out[N_UPDATES]
    path = _path(s.path[: out[N_PATH]], fmt, second)
    return Walk(
        va=va,
        access=KINDS[int(kind)],
        user=bool(user),
        ac=bool(ac),
        registers=registers,
        second=second,
        vector=out[VECTOR],
        error_code=out[ERROR] if out[VECTOR] == PF else -1,
        pa=out[PA],
        page_shift=out[PAGE_SHIFT],
        level=out[LEVEL],
        references=out[REFERENCES],
        exit_reason=out[EXIT],
        exit_qualification=out[QUALIFICATION],
        gpa=out[GPA] if second else 0,
        path=path,
        checks=tuple(_checks(out, first, fmt, path, row, va, int(seen))),
        updates=tuple((at, value) for at, value, _ in s.work[UPDATES : UPDATES + n, :3].tolist()),
    )


def _checks(
    out: list[int],
    first: np.ndarray,
    fmt: Format,
    path: tuple[Reference, ...],
    row: int,
    va: int,
    seen: int,
) -> list[Check]:
    """Checks of a walk, and before them what LASS, LAM or UAI make of the address."""
    if seen == REFUSED != va:
        half = "upper" if va >> 63 else "lower"
        return [Check("LASS", False, f"{va:#x} is in the {half} half of all addresses")]
    checks = checks_of(out, first, fmt, path, row)
    if seen != va:
        checks.insert(0, Check("tag of the address", True, f"ignored: {seen:#x} is translated"))
    return checks


def error_words(code: int) -> str:
    """Return an error code (`code`) in the words of the SDM (vol. 3A §4.7)."""
    words = ["protection" if code & bits.PF_P else "not present"]
    words.append("user" if code & bits.PF_US else "supervisor")
    words.append("write" if code & bits.PF_WR else "fetch" if code & bits.PF_ID else "read")
    more = {
        bits.PF_RSVD: "reserved bit", bits.PF_PK: "protection key", bits.PF_SS: "shadow stack",
        bits.PF_RMP: "RMP violation",
    }  # fmt: skip
    return ", ".join(words + [name for bit, name in more.items() if code & bit])


def _path(rows: np.ndarray, fmt: Format, second: Ept | Npt | None) -> tuple[Reference, ...]:
    out: list[Reference] = []
    number = 0
    for dimension, guest_level, level, at, entry, address in rows.tolist():
        number += dimension > 0
        own = second.format if second and dimension == 2 else fmt
        x = next(x for x in own.levels if x.number == level)
        out.append(
            Reference(
                number if dimension else 0,
                max(1, dimension),
                level,
                guest_level if dimension == 2 else level,
                x.entry,
                at,
                entry,
                flags_of(own, x, entry),
                address,
            )
        )
    return tuple(out)


def flags_of(fmt: Format, level: Level, entry: int) -> str:
    """Flags of an entry in words; what a page-size bit means depends on the level."""
    if not entry & mask(fmt.present):
        return "not present"
    if fmt.execute:
        names = [("R", "0"), ("W", fmt.write), ("X", fmt.execute)]
    else:
        names = [("P", "0"), ("RW", fmt.write), ("US", fmt.user)] if level.rights else [("P", "0")]
    names += [("A", fmt.accessed)] * level.accessed
    leaf = level.number == 1 or (level.page is not None and bool(entry & bits.PS))
    if leaf:
        names += [("D", fmt.dirty), ("G", fmt.global_)]
    names += [("PS", "7")] * (level.number > 1) + [("XD", fmt.no_execute)] * level.rights
    return " ".join(name for name, bit in names if bit and entry & mask(bit))
