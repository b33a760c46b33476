"""The checks of a page walk in words, in the order in which a processor makes them.

Sources: SDM vol. 1 §3.3.7.1 (canonical addresses), vol. 3A §4.5 (reserved bits), §4.6 (rights),
§4.7 (page faults).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pvmmu.x86 import bits
from pvmmu.x86.formats import Format
from pvmmu.x86.plan import (
    ACCESS,
    COMMON,
    FETCH,
    FORBID,
    INVERT,
    KEYS,
    LEAF,
    LEAF_RIGHTS,
    LEVELS,
    NEED,
    PAGE_RESERVED,
    SECOND_ROW,
    TABLE_RESERVED,
    WRITE,
    Plan,
)
from pvmmu.x86.walk_state import ERROR, EXIT, GP, GPA, PF, RIGHTS, VECTOR


@dataclass(frozen=True)
class Reference:
    """One entry that the processor reads.

    Attributes
    ----------
    number : int
        Position in the walk, from 1; 0 for a PDPTE register, which is no reference.
    dimension : int
        1: the tables that CR3 names; 2: EPT or nested tables.
    level : int
        Level of the entry in its own tables.
    guest_level : int
        Dimension 2: level of the guest's entry whose address is translated; 0: the access's own.
    name : str
        The manual's name of the entry.
    address : int
        Physical address of the entry (bytes); number of the PDPTE register.
    entry : int
        What it holds.
    flags : str
        Its flags in words.
    address_for : int
        The address that it translates: linear in dimension 1 of a one-dimensional walk, else
        guest-physical.
    """

    number: int
    dimension: int
    level: int
    guest_level: int
    name: str
    address: int
    entry: int
    flags: str
    address_for: int


@dataclass(frozen=True)
class Check:
    """One check that the processor makes, and its outcome."""

    what: str
    passed: bool
    because: str


def checks_of(
    out: list[int],
    first: Plan,
    fmt: Format,
    path: tuple[Reference, ...],
    row: int,
) -> list[Check]:
    """Return the checks that a walk made, after which one that fails is the last.

    Parameters
    ----------
    out : list of int
        Results of the walk (`walk_state.OUT`).
    first : Plan
        The first dimension, in `fmt`.
    path : tuple of Reference
        Entries read.
    row : int
        The access's (`plan.access_row`).
    """
    checks = []
    if fmt.canonical:
        text = f"bits 63:{fmt.width - 1} are {'equal' if out[VECTOR] != GP else 'not equal'}"
        checks.append(Check("canonical address", out[VECTOR] != GP, text))
    own = [r for r in path if r.dimension == 1]
    for r in own:
        present = bool(r.entry & 1)
        checks.append(Check(f"{r.name} is present", present, f"bit 0 is {int(present)}"))
        if not present:
            return checks
        x = next(i for i, x in enumerate(fmt.levels) if x.number == r.level)
        leaf = bool(r.entry & int(first[LEVELS + x, LEAF]))
        wrong = r.entry & int(first[LEVELS + x, PAGE_RESERVED if leaf else TABLE_RESERVED])
        text = f"{wrong:#x} should be 0" if wrong else "all 0"
        checks.append(Check(f"{r.name}'s reserved bits", not wrong, text))
        if wrong:
            return checks
    if out[EXIT] and not out[RIGHTS]:
        return [*checks, Check("second dimension", False, f"no access to {out[GPA]:#x}")]
    if out[VECTOR] == PF and out[ERROR] & bits.PF_RMP:
        rights = _rights(out[RIGHTS], first, row)
        return [
            *checks,
            *rights,
            Check("reverse map", False, "the page is a guest's or firmware's"),
        ]
    if out[VECTOR] != GP:
        checks += _rights(out[RIGHTS], first, row)
    if out[EXIT]:
        checks.append(Check("second dimension", False, f"no access to {out[GPA]:#x}"))
    return checks


def _rights(rights: int, first: Plan, row: int) -> list[Check]:
    """Access rights: the logical AND of all entries against what the access needs."""
    need, forbid = int(first[ACCESS + row, NEED]), int(first[ACCESS + row, FORBID])
    out = []
    granted = {True: "set in all entries", False: "clear in at least one entry"}
    for name, bit in (("U/S", bits.US), ("R/W", bits.RW)):
        if need & bit:
            ok = bool(rights & bit)
            out.append(Check(f"needs {name}", ok, granted[ok]))
            if not ok:
                return out
    kind = int(first[ACCESS + row, SECOND_ROW])
    shadow = bits.D & need
    if forbid:
        ok = not rights & forbid
        why = "SMEP" if kind == FETCH else "a supervisor's shadow stack" if shadow else "SMAP"
        out.append(Check(f"{why}: no user page", ok, f"U/S is {granted[not ok]}"))
        if not ok:
            return out
    xd = int(first[COMMON, INVERT])
    if need & xd:
        ok = bool(rights & xd)
        out.append(Check("may execute", ok, "XD is " + ("clear in all" if ok else "set in one")))
        if not ok:
            return out
    if shadow:
        ok = bool(rights & shadow)
        text = "R/W is clear, and D set, in the last entry alone"
        out.append(Check("page of a shadow stack", ok, f"{'' if ok else 'not so: '}{text}"))
        if not ok:
            return out
    elif kind == WRITE and not need & bits.RW and not rights & bits.RW:
        out.append(Check("needs R/W", True, "clear, but CR0.WP is 0 and this is a supervisor"))
    if first[COMMON, LEAF_RIGHTS] & np.uint64(bits.KEY) and kind != FETCH:
        key, user = rights >> bits.KEY_SHIFT & 15, bool(rights & bits.US)
        ok = not int(first[ACCESS + row, KEYS]) >> key + 16 * user & 1
        name = "PKRU" if user else "PKRS"
        text = f"{name} {'allows' if ok else 'forbids'} it to key {key}"
        out.append(Check("protection key", ok, text))
    return out
