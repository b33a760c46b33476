"""Where an oops contradicts itself or the manual, and what is known to do that.

Sources: Intel SDM vol. 3A §4.7; QEMU 7.2, whose TCG reports reserved bits without P (measured:
``tests/data/walk/README.md``); Linux 4.8 arch/x86/include/asm/pgtable_64.h, `pte_none` (processors
that set A and D in entries that are not present).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pvmmu.guest.oops.text import Oops
from pvmmu.x86 import bits
from pvmmu.x86.explain import Walk

_WORDS: Final = (
    ("not-present page", bits.PF_P, 0),
    ("permissions violation", bits.PF_P | bits.PF_RSVD, bits.PF_P),
    ("reserved bit violation", bits.PF_RSVD, bits.PF_RSVD),
    ("protection keys violation", bits.PF_PK, bits.PF_PK),
    ("#PF: user ", bits.PF_US, bits.PF_US),
    ("#PF: supervisor ", bits.PF_US, 0),
    ("write access in", bits.PF_WR, bits.PF_WR),
    ("read access in", bits.PF_WR | bits.PF_ID, 0),
    ("instruction fetch in", bits.PF_ID, bits.PF_ID),
)
_MAPS_A_PAGE: Final = {"32-bit": (2,), "PAE": (2,), "4-level": (3, 2), "5-level": (3, 2)}


def contradictions(
    oops: Oops, name: str, entries: dict[int, int], walk: Walk | None, holds: tuple[int, ...]
) -> tuple[str, ...]:
    """Return what does not go together, in words.

    Parameters
    ----------
    oops : Oops
        As read.
    name : str
        Of the paging format.
    entries : dict
        Level -> entry.
    walk : Walk or None
        Of these entries.
    holds : tuple of int
        MAXPHYADDR for which the printed code follows from the entries.
    """
    out = [*_of_code(oops), *_of_registers(oops, name), *_of_entries(name, entries)]
    code = oops.error_code
    if code is not None and walk is not None and not holds:
        out.append(_of_walk(code, walk, entries))
    return tuple(out)


def _of_code(oops: Oops) -> Iterator[str]:
    code = oops.error_code
    if code is None:
        return
    if len(set(oops.codes)) > 1:
        printed = ", ".join(f"{c:#x}" for c in dict.fromkeys(oops.codes))
        yield f"several error codes are printed: {printed}"
    if code & bits.PF_RSVD and not code & bits.PF_P:
        yield (
            "error code: a reserved bit (bit 3) without P (bit 0); the manual sets both (SDM "
            "§4.7). QEMU's TCG is known to leave P out"
        )
    if code & bits.PF_WR and code & bits.PF_ID:
        yield "error code: a write (bit 1) that is a fetch (bit 4)"
    if code & bits.PF_PK and (not code & bits.PF_P or code & bits.PF_ID):
        yield "error code: a protection key (bit 5) needs P, and is never a fetch's"
    for words, mask, value in _WORDS:
        if words in oops.text and code & mask != value:
            yield f"the text says {words.strip()!r}, the error code {code:#x} does not"


def _of_registers(oops: Oops, name: str) -> Iterator[str]:
    cr2, cr3, cr4 = (oops.registers.get(x) for x in ("cr2", "cr3", "cr4"))
    if cr2 is not None and cr2 != oops.address:
        yield f"CR2 is {cr2:#x}, the address {oops.address:#x} (another fault came between)"
    if cr4 is not None and bool(cr4 & bits.CR4_PAE) != (name != "32-bit"):
        yield f"CR4 {cr4:#x} is not that of {name} paging"
    width = {"4-level": 48, "5-level": 57}.get(name)
    if width and (oops.address + (1 << width - 1)) % (1 << 64) >> width:
        yield f"the address is not canonical in {name} paging: a processor raises #GP, not #PF"
    if width is None and oops.address >> 32:
        yield f"the address has more than the 32 bits of {name} paging"
    if cr3 is not None and width is None and cr3 >> 32:
        yield f"CR3 {cr3:#x} has more than 32 bits"


def _of_entries(name: str, entries: dict[int, int]) -> Iterator[str]:
    for level in sorted(entries, reverse=True):
        entry, below = entries[level], [x for x in entries if x < level]
        if not below:
            continue
        if not entry & bits.P:
            yield (
                f"the entry of level {level} ({entry:#x}) is not present, yet one of level "
                f"{max(below)} is printed"
            )
        elif entry & bits.PS and level in _MAPS_A_PAGE[name]:
            yield (
                f"the entry of level {level} ({entry:#x}) maps a large page; what is printed for "
                f"level {max(below)} is no entry (kernels before 2.6.25 read on)"
            )


def _of_walk(code: int, walk: Walk, entries: dict[int, int]) -> str:
    """The entries do not give the code: how, and the usual reasons."""
    last = walk.path[-1].entry if walk.path else 0
    changed = "they were changed after the fault, or the processor used a stale translation"
    if walk.error_code < 0 and walk.vector == 0:
        return f"the entries allow the access: {changed}; Linux calls such a fault spurious"
    if code & bits.PF_P and walk.error_code >= 0 and not walk.error_code & bits.PF_P:
        text = f"the code says that all entries are present, but one is {last:#x}: {changed}"
        if last and not last & ~(bits.A | bits.D):
            text += " (A or D alone: an erratum that Linux 4.8 works around)"
        return text
    if not code & bits.PF_P and walk.error_code & bits.PF_P:
        return f"the code says that an entry is not present, but all are: {changed}"
    if code & bits.PF_RSVD:
        return "the code says that a reserved bit is set; no entry has one, whatever MAXPHYADDR"
    if walk.error_code >= 0 and walk.error_code & bits.PF_RSVD:
        return f"the entries have reserved bits, which the code does not report: {changed}"
    return f"the entries give {walk.error_code:#x}, not {code:#x}: {changed}"
