"""An oops explained: which bit of which entry is to blame, for which MAXPHYADDR, what is unknown.

Each hypothesis (registers that the log does not print, MAXPHYADDR) is walked by
`pvmmu.x86.entries.walk_entries`; those whose error code is the printed one remain. Error codes:
Intel SDM vol. 3A §4.7. What kernels print, and when: `pvmmu.guest.oops.text`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pvmmu.guest.oops.contradictions import contradictions
from pvmmu.guest.oops.text import Oops, OopsError
from pvmmu.x86 import bits
from pvmmu.x86.control_bits import EFFECT, NO_EFFECT
from pvmmu.x86.entries import UNKNOWN, walk_entries
from pvmmu.x86.errors import WalkError
from pvmmu.x86.explain import Walk, error_words
from pvmmu.x86.registers import Registers

WIDTHS: Final = range(32, 53)
#: What a log may leave open, and the bit: (name, register, bit), most of them set by any Linux.
_OPEN: Final = (
    ("EFER.NXE", "efer", bits.EFER_NXE),
    ("CR0.WP", "cr0", bits.CR0_WP),
    ("CR4.SMEP", "cr4", bits.CR4_SMEP),
    ("CR4.SMAP", "cr4", bits.CR4_SMAP),
    ("CR4.PKE", "cr4", bits.CR4_PKE),
    ("EFLAGS.AC", "flags", 1 << 18),
)
_USUAL: Final = frozenset({"EFER.NXE", "CR0.WP"})


@dataclass(frozen=True)
class Explanation:
    """What can be said of an oops.

    Attributes
    ----------
    oops : Oops
        As read.
    format : str
        Name of the paging format.
    walk : Walk or None
        The walk that gives the printed code (else the likeliest one); None without entries.
    holds : tuple of int
        MAXPHYADDR for which the printed entries give the printed code; all of `WIDTHS` without one.
    blame : str
        The bit and the entry.
    assumed : tuple of str
        Bits of registers that are not printed and without which the code cannot be.
    unknown, contradictions : tuple of str
        What the log does not tell; where it contradicts itself or the manual.
    """

    oops: Oops
    format: str
    walk: Walk | None
    holds: tuple[int, ...]
    blame: str
    assumed: tuple[str, ...]
    unknown: tuple[str, ...]
    contradictions: tuple[str, ...]

    def __str__(self) -> str:
        o = self.oops
        code = "not printed" if o.error_code is None else f"{o.error_code:#06x}"
        words = "" if o.error_code is None else f" ({error_words(o.error_code)})"
        out = [f"address {o.address:#x}, error code {code}{words}, {self.format} paging"]
        if self.walk is not None:
            out.append(str(self.walk))
        out.append(f"to blame: {self.blame}")
        if o.error_code is not None and self.walk is not None:
            fits = ranges(self.holds) or "no value"
            out.append(f"the printed code holds for MAXPHYADDR: {fits}")
        out += [f"assumed: {x}" for x in self.assumed]
        out += [f"contradiction: {x}" for x in self.contradictions]
        out += [f"not known: {x}" for x in self.unknown]
        return "\n".join(out)


def ranges(numbers: tuple[int, ...]) -> str:
    """Return `numbers` (ascending) as text, such as ``"32 to 43, 46"``."""
    out: list[str] = []
    for _, group in itertools.groupby(enumerate(numbers), lambda x: x[1] - x[0]):
        part = [n for _, n in group]
        out.append(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[-1]}")
    return ", ".join(out)


def levels_of(oops: Oops) -> tuple[str, dict[int, int], list[str]]:
    """Return the format's name, level -> entry, and remarks on the entries of `oops`.

    Raises
    ------
    OopsError
        Entries of different formats stand together.
    """
    e = dict(oops.entries)
    remarks: list[str] = []
    short = {k: v for k, v in e.items() if k.startswith("*")}
    if short and len(short) < len(e):
        raise OopsError(
            f"line {oops.line}: entries of 32-bit and of 64-bit kernels: {', '.join(e)}"
        )
    if short:
        pae = "*pdpt" in e or oops.digits.get("*pde", 8) > 8 or oops.digits.get("*pte", 8) > 8
        names = {"*pdpt": 3, "*pde": 2, "*pte": 1}
        return "PAE" if pae else "32-bit", {names[k]: v for k, v in e.items()}, remarks
    if "PML4" in e:  # x86-64 before 2.6.11: the page-directory-pointer table was called PGD
        names = {"PML4": 4, "PGD": 3, "PUD": 3, "PMD": 2, "PTE": 1}
        return "4-level", {names[k]: v for k, v in e.items()}, remarks
    names = {"PGD": 4, "PUD": 3, "PMD": 2, "PTE": 1}
    if _five(oops):
        names = {"PGD": 5, "P4D": 4, "PUD": 3, "PMD": 2, "PTE": 1}
    elif "P4D" in e:
        if e["P4D"] != e.get("PGD", e["P4D"]):
            remarks.append("PGD and P4D differ, though paging has 4 levels")
        e.setdefault("PGD", e["P4D"])
        del e["P4D"]
    return ("5-level" if _five(oops) else "4-level"), {names[k]: v for k, v in e.items()}, remarks


def _five(oops: Oops) -> bool:
    """Whether paging has five levels: CR4, an address that is canonical there only, or entries."""
    cr4 = oops.registers.get("cr4")
    if cr4 is not None:
        return bool(cr4 & bits.CR4_LA57)
    top = oops.address >> 47
    if oops.address >> 56 in (0, 0xFF) and top not in (0, (1 << 17) - 1):
        return True
    e = oops.entries
    return "P4D" in e and "PGD" in e and e["P4D"] != e["PGD"]


def explain(oops: Oops) -> Explanation:
    """Explain one oops.

    Parameters
    ----------
    oops : Oops
        Of `pvmmu.guest.oops.text.read_oopses`.

    Returns
    -------
    Explanation
        ``print`` says all of it.

    Raises
    ------
    OopsError
        Its entries are of several formats.
    """
    name, entries, remarks = levels_of(oops)
    found = _best(oops, name, entries)
    walk, holds, assumed = found
    against = tuple(remarks) + contradictions(oops, name, entries, walk, holds)
    return Explanation(
        oops, name, walk, holds, _blame(oops, name, entries, walk, holds), assumed,
        _unknown(oops, name, entries, walk, holds), against,
    )  # fmt: skip


def _best(
    oops: Oops, name: str, entries: dict[int, int]
) -> tuple[Walk | None, tuple[int, ...], tuple[str, ...]]:
    """The walk, the MAXPHYADDR and the fewest assumptions that give the printed code."""
    likeliest: Walk | None = None
    if not entries:
        return None, (), ()
    for settings, assumed in _hypotheses(oops):
        walks = {m: _walk(oops, name, entries, settings, m) for m in WIDTHS}
        known = {m: w for m, w in walks.items() if w is not None}
        if known and likeliest is None:
            likeliest = known[max(known)]
        if oops.error_code is None:
            return likeliest, tuple(known), ()
        fits = tuple(m for m, w in known.items() if _agrees(w, oops.error_code))
        if fits:
            return known[_typical(known, fits)], fits, assumed
    return likeliest, (), ()


def _agrees(walk: Walk, code: int) -> bool:
    """Whether a walk gives a code; where an entry is missing, whether it still can."""
    if walk.vector == UNKNOWN:
        return not code & bits.PF_RSVD
    return walk.error_code == code & ~bits.PF_RMP


def _typical(walks: dict[int, Walk], fits: tuple[int, ...]) -> int:
    """One of several MAXPHYADDR: the largest, whose blame is the lowest table's."""
    lowest = min(walks[m].level for m in fits)
    return max(m for m in fits if walks[m].level == lowest)


def _hypotheses(oops: Oops) -> Iterator[tuple[dict[str, int], tuple[str, ...]]]:
    """Registers that the log leaves open, with the fewest surprises first."""
    free = [x for x in _OPEN if x[1] not in oops.registers]
    base = {x[0]: int(x[0] in _USUAL) for x in free}
    for count in range(len(free) + 1):
        for changed in itertools.combinations(free, count):
            values = dict(base)
            for x in changed:
                values[x[0]] ^= 1
            settings = {name: 0 for _, name, _ in free}
            for name, register, bit in free:
                settings[register] |= bit * values[name]
            yield settings, tuple(f"{x[0]} is {values[x[0]]} (not printed)" for x in changed)


def _walk(
    oops: Oops, name: str, entries: dict[int, int], settings: dict[str, int], m: int
) -> Walk | None:
    """Walk under one hypothesis; None where the printed registers do not fit it."""
    code = oops.error_code or 0
    r = {**settings, **{k: v for k, v in oops.registers.items() if k in ("cr0", "cr4", "efer")}}
    long = name.endswith("level")
    cr4 = r.get("cr4", 0) & (EFFECT["cr4", "Intel"] | NO_EFFECT["cr4", "Intel"])
    cr4 &= ~(bits.CR4_PAE | bits.CR4_LA57 | bits.CR4_LASS | bits.CR4_LAM_SUP)
    if name != "32-bit":
        cr4 |= bits.CR4_PAE | (bits.CR4_LA57 if name == "5-level" else 0)
    elif "cr4" not in oops.registers:
        cr4 |= bits.CR4_PSE
    cr4 &= ~(0 if long else bits.CR4_PCIDE)
    cr0 = r.get("cr0", 0) | bits.CR0_PG | bits.CR0_PE | (bits.CR0_WP if cr4 & bits.CR4_CET else 0)
    cr0 &= ~bits.CR0_NW & 0xFFFF_FFFF
    efer = r.get("efer", 0) & bits.EFER_NXE | (bits.EFER_LME | bits.EFER_LMA if long else 0)
    key = oops.registers.get("pkru", 0xFFFF_FFFF if code & bits.PF_PK else 0)
    try:
        registers = Registers(cr0, oops.registers.get("cr3", 0), cr4, efer, maxphyaddr=m, pkru=key)
        return walk_entries(
            registers, oops.address, entries, _kind(code, cr4), bool(code & bits.PF_US),
            bool(oops.registers.get("flags", settings.get("flags", 0)) >> 18 & 1),
        )  # fmt: skip
    except WalkError:
        return None


def _kind(code: int, cr4: int) -> str:
    if code & bits.PF_ID:
        return "fetch"
    kind = "write" if code & bits.PF_WR else "read"
    return f"shadow-stack {kind}" if code & bits.PF_SS and cr4 & bits.CR4_CET else kind


_NAMES: Final = {
    "32-bit": {2: "*pde", 1: "*pte"},
    "PAE": {3: "*pdpt", 2: "*pde", 1: "*pte"},
    "4-level": {4: "PGD", 3: "PUD", 2: "PMD", 1: "PTE"},
    "5-level": {5: "PGD", 4: "P4D", 3: "PUD", 2: "PMD", 1: "PTE"},
}


def _blame(
    oops: Oops, name: str, entries: dict[int, int], walk: Walk | None, holds: tuple[int, ...]
) -> str:
    """The bit and the entry that the fault is due to."""
    if walk is None:
        return "not known: no entries are printed"
    names = _NAMES[name]
    if not holds:
        return "no entry explains the code (see the contradiction)"
    if walk.vector == UNKNOWN:
        return f"not known: the entry of level {walk.level} is not printed"
    last = walk.path[-1] if walk.path else None
    if last is None:
        return "the address: it is not canonical"
    code = walk.error_code
    if code < 0:
        return "nothing: the entries allow the access"
    entry, where = last.entry, names[last.level]
    if code & bits.PF_RSVD:
        return _reserved(walk, entry, where, holds)
    if not code & bits.PF_P:
        return f"bit 0 (P) of {where} is 0"
    failed = next((c for c in walk.checks if not c.passed), None)
    return _right(walk, failed.what if failed else "", names)


def _reserved(walk: Walk, entry: int, where: str, holds: tuple[int, ...]) -> str:
    wrong = [int(x, 0) for c in walk.checks if not c.passed for x in c.because.split()[:1]]
    found = [i for i in range(64) if wrong and wrong[0] >> i & 1]
    high = [i for i in range(32, 52) if entry >> i & 1]
    many = "s" * (len(found) != 1)
    text = f"reserved bit{many} {', '.join(map(str, found))} of {where} ({entry:#x})"
    if high and max(high) in found:
        text += f"; its highest address bit is {max(high)}, so MAXPHYADDR is at most {max(high)}"
    return text


def _right(walk: Walk, what: str, names: dict[int, str]) -> str:
    """Which entry lacks a right, or has one too many."""
    want = {"needs U/S": (bits.US, 0, "bit 2 (U/S)"), "needs R/W": (bits.RW, 0, "bit 1 (R/W)"),
            "may execute": (bits.XD, bits.XD, "bit 63 (XD)")}  # fmt: skip
    if what in want:
        bit, value, name = want[what]
        rights = [r for r in walk.path if r.number]
        guilty = [names[r.level] for r in rights if r.entry & bit == value]
        return f"{name} of {' and '.join(guilty)} is {1 if value else 0}"
    if what.startswith(("SMEP", "SMAP")):
        which = what[:4]
        kind = "fetches from" if which == "SMEP" else "accesses"
        return f"bit 2 (U/S) of all entries is 1: a supervisor {kind} a user page ({which})"
    key = walk.path[-1].entry >> bits.KEY_SHIFT & 15
    if what == "protection key":
        return f"bits 62:59 of {names[walk.path[-1].level]}: protection key {key} (PKRU forbids it)"
    return what


def _unknown(
    oops: Oops, name: str, entries: dict[int, int], walk: Walk | None, holds: tuple[int, ...]
) -> tuple[str, ...]:
    """What the log does not tell."""
    out, code = [], oops.error_code
    if code is None:
        out.append("the error code: it is not printed")
    if walk is None:
        out.append("the page-table entries: none are printed")
    elif walk.vector == UNKNOWN:
        why = "BAD: the kernel could not read that table" if oops.bad else (
            "a table in high memory, perhaps" if not name.endswith("level") else "cut off, perhaps"
        )  # fmt: skip
        out.append(f"the entry of level {walk.level} ({why})")
    if len(holds) > 1:
        out.append("MAXPHYADDR: the log does not print it; /proc/cpuinfo has it ('address sizes')")
    for register, what in (("cr4", "SMEP, SMAP, PKE, LA57"), ("cr0", "WP")):
        if register not in oops.registers:
            out.append(f"{register.upper()} ({what}): it is not printed")
    if "efer" not in oops.registers and name != "32-bit":
        out.append("EFER.NXE: no kernel prints it")
    cr4 = oops.registers.get("cr4", 0)
    if cr4 & bits.CR4_PKE and "pkru" not in oops.registers:
        out.append("PKRU: it is not printed")
    if oops.xen_pv:
        out.append(
            "what the processor saw: a PV guest of Xen's runs in ring 3, and Xen edits the code"
        )
    if code is not None and code & bits.PF_US and entries.get(max(entries, default=0), 0) & bits.XD:
        out.append("whether the process' own top table (page-table isolation) has the same entry")
    if name.endswith("level"):
        out.append("memory encryption (SME): a C-bit would be no address bit")
    out.append("whether an entry changed between the fault and its printing")
    return tuple(out)
