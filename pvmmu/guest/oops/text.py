"""The text of an oops: address, error code, control registers and page-table entries.

Sources, what kernels print: Linux arch/i386/mm/fault.c of 2.4.0 to 2.6.23 (``*pde``, ``*pdpt``,
``*pte``), arch/x86_64/mm/fault.c of 2.6.0 to 2.6.10 (``PML4``) and later, arch/x86/mm/fault.c of
2.6.24 to 6.18 (`dump_pagetable`, `show_fault_oops`), arch/x86/kernel/process_{32,64}.c (registers).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from pvmmu.errors import PvmmuError


class OopsError(PvmmuError, ValueError):
    """A text in which there is no page fault to explain; says what is missing."""


@dataclass(frozen=True)
class Oops:
    """What a log says of one page fault.

    Attributes
    ----------
    address : int
        The linear address (CR2).
    error_code : int or None
        As the processor gave it; None: not printed.
    entries : dict
        Name as printed (``"PGD"``, ..., ``"*pte"``) -> entry.
    digits : dict
        Name -> digits printed.
    bad : bool
        ``BAD``: the kernel could not read the next table.
    registers : dict
        ``"cr0"``, ``"cr2"``, ``"cr3"``, ``"cr4"``, ``"efer"``, ``"pkru"``, ``"flags"``, ``"cs"``:
        those that are printed.
    codes : tuple of int
        Every error code in the text.
    kernel : str
        Version, if printed.
    line : int
        Line at which it begins, from 1.
    text : str
        Its lines.
    """

    address: int
    error_code: int | None
    entries: dict[str, int]
    digits: dict[str, int]
    bad: bool
    registers: dict[str, int] = field(default_factory=dict)
    codes: tuple[int, ...] = ()
    kernel: str = ""
    line: int = 1
    text: str = ""

    @property
    def xen_pv(self) -> bool:
        """Whether the kernel is a guest of Xen's without hardware support (its code segment)."""
        return self.registers.get("cs", 0) & 0xFF00 == 0xE000


_HEX: Final = r"(?:0x)?([0-9a-fA-F]{1,16})\b"
_ADDRESS: Final = tuple(
    re.compile(p, re.IGNORECASE)
    for p in (
        rf"page fault for address:?\s*{_HEX}",
        rf"dereference, address:?\s*{_HEX}",
        r"(?:dereference|paging request)\s+at\s+(?:virtual address\s+|address\s+)?"
        rf"(?:\((null)\)|{_HEX})",
        rf"page table at (?:virtual )?address:?\s*{_HEX}",
        rf"segfault at\s+{_HEX}",
    )
)
_HEAD: Final = re.compile(
    r"unable to handle|NULL pointer dereference|corrupted page table at|\bsegfault at\s",
    re.IGNORECASE,
)
_CODES: Final = (
    re.compile(rf"error_code\({_HEX}\)"),
    re.compile(r"(?:Oops|Bad pagetable):\s*(?:0x)?([0-9a-fA-F]{1,8})\b(?![\w.:-])"),
    re.compile(r"segfault at .*\berror ([0-9a-fA-F]{1,8})\b"),
)
_LONG: Final = re.compile(rf"\b(PML4|PGD|P4D|PUD|PMD|PTE)\b[:=]?\s*(?:{_HEX}|(BAD)\b)")
_SHORT: Final = re.compile(rf"\*(pdpt|pde|pte)\s*=\s*(?:ma\s+)?{_HEX}", re.IGNORECASE)
_BAD: Final = re.compile(r"(?:^|[\s\]>])BAD\s*$", re.MULTILINE)
_REGISTERS: Final = re.compile(rf"\b(CR[0234]|EFER|PKRU|E?FLAGS|RFLAGS)\s*[:=]\s*{_HEX}")
_SEGMENT: Final = re.compile(r"\b[RE]IP:\s*([0-9a-fA-F]{4}):|\bCS:\s*([0-9a-fA-F]{4})\b")
_KERNEL: Final = re.compile(r"(?:Not tainted|Tainted:[A-Z() ]*?)[ ,]*\(?(\d+\.\d+[\w.+~-]*)")
_ENDS: Final = re.compile(r"Oops:|Bad pagetable:|Call Trace|Call trace|Code:")


def read_oopses(text: str) -> list[Oops]:
    """Return the page faults in a log, in order.

    Parameters
    ----------
    text : str
        A log, a mail, or the few lines that matter; prefixes of lines do not.

    Raises
    ------
    OopsError
        There is none, or one has no address or entries in hexadecimal.
    """
    lines = text.splitlines()
    heads = [i for i, line in enumerate(lines) if _HEAD.search(line)]
    starts = [i for k, i in enumerate(heads) if k == 0 or _begins(lines, heads[k - 1], i)]
    if not starts:
        if not (_LONG.search(text) or _SHORT.search(text)):
            raise OopsError(
                "no page fault in it: neither 'unable to handle', 'Corrupted page table' nor "
                "page-table entries (PGD ..., *pde = ...)"
            )
        starts = [0]
    ends = [*starts[1:], len(lines)]
    return [_one(lines[a:b], a + 1) for a, b in zip(starts, ends, strict=True)]


def _begins(lines: list[str], before: int, at: int) -> bool:
    """Whether a second line with a head is another fault: some print two lines for one."""
    return at - before > 3 or _address(lines[before]) is not None


def _one(lines: list[str], number: int) -> Oops:
    text = "\n".join(lines)
    registers: dict[str, int] = {}
    for name, value in _REGISTERS.findall(text):
        key = "flags" if name.endswith("FLAGS") else name.lower()
        registers.setdefault(key, int(value, 16))
    if (segment := _SEGMENT.search(text)) is not None:
        registers["cs"] = int(segment[1] or segment[2], 16)
    address = _address(text)
    if address is None:
        address = registers.get("cr2")
    if address is None:
        raise OopsError(f"line {number}: no address (a line 'unable to handle ...', or CR2)")
    codes = tuple(int(m[1], 16) for p in _CODES for m in p.finditer(text))
    entries, digits, bad = _entries(text)
    kernel = _KERNEL.search(text)
    return Oops(
        address, codes[0] if codes else None, entries, digits, bad, registers, codes,
        kernel[1] if kernel else "", number, text,
    )  # fmt: skip


def _address(text: str) -> int | None:
    for pattern in _ADDRESS:
        if (found := pattern.search(text)) is not None:
            value = found[found.lastindex or 0]
            return 0 if value == "(null)" or value.lower() == "null" else int(value, 16)
    return None


def _entries(text: str) -> tuple[dict[str, int], dict[str, int], bool]:
    """Entries by name, their digits, and whether the kernel could not read a table.

    They stand together, but lines of other processors and line breaks may come between.
    """
    entries: dict[str, int] = {}
    digits: dict[str, int] = {}
    bad = False
    first = _LONG.search(text) or _SHORT.search(text)
    if first is None:
        return entries, digits, bad
    end = _ENDS.search(text, first.start())
    part = text[first.start() : end.start() if end else len(text)]
    for m in _LONG.finditer(part):
        if m[3]:
            bad = True
        else:
            entries.setdefault(m[1], int(m[2], 16))
            digits.setdefault(m[1], len(m[2]))
    for m in _SHORT.finditer(part):
        entries.setdefault(f"*{m[1].lower()}", int(m[2], 16))
        digits.setdefault(f"*{m[1].lower()}", len(m[2]))
    return entries, digits, bad or _BAD.search(part) is not None
