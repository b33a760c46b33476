"""Paging formats as tables: what the walker knows of a format is what stands here.

A `Format` lists its levels from the root down; a `Level` says which bits of the address index its
table, whether its entries may map a page, and which of their bits are reserved. Ranges of bits are
written as in the manual, with ``M`` for MAXPHYADDR (`pvmmu.x86.bits.mask`). A new format is a new
table.

Sources: Intel SDM (edition 077, April 2022) vol. 3A §4.3 (32-bit), §4.4 (PAE), §4.5 (4-level and
5-level) with tables 4-3 to 4-20; vol. 3C §28.3 (EPT). AMD APM vol. 2 (24593) §15.25 (nested
paging), whose second dimension is one of the formats of the first; §5.3 (bit 8 of the upper
levels, which Intel's processors ignore).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True)
class Page:
    """What an entry looks like when it maps a page.

    Parameters
    ----------
    reserved, address : str
        Reserved bits; bits that hold the page's address.
    high : str
        Bits that hold address bits from 32 up (PSE-36); empty for none.
    feature : str
        Without this feature of the processor or bit of CR4 the entry maps no page: ``PSE``,
        ``PAGE1GB``; empty: always.
    otherwise : {"ignored", "reserved"}
        What the page-size bit is without the feature.
    """

    reserved: str
    address: str
    high: str = ""
    feature: str = ""
    otherwise: Literal["ignored", "reserved"] = "ignored"


@dataclass(frozen=True)
class Level:
    """One level of a format.

    Parameters
    ----------
    number : int
        1 is the level whose entries always map pages.
    entry : str
        The manual's name of its entries.
    shift, bits : int
        The address bits ``shift + bits - 1`` to ``shift`` index the table; a page mapped at this
        level has ``2 ** shift`` bytes.
    page : Page, optional
        Entries that map a page; none where the page-size bit is not defined.
    reserved, address : str
        Entries that reference a table.
    in_register : bool
        The entries are in registers, loaded with CR3, and have no rights and no accessed flag.
    rights, accessed : bool
        Whether the entries have access rights, and an accessed flag.
    reserved_amd : str
        Entries that reference a table: what AMD's processors reserve besides.
    """

    number: int
    entry: str
    shift: int
    bits: int
    page: Page | None
    reserved: str = ""
    address: str = "M-1:12"
    in_register: bool = False
    rights: bool = True
    accessed: bool = True
    reserved_amd: str = ""


@dataclass(frozen=True)
class Format:
    """A paging format.

    Parameters
    ----------
    name, source : str
        Name in this package; where it is defined.
    width : int
        Bits of an address that it translates.
    canonical : bool
        Whether the bits above must repeat the highest (#GP otherwise); else they must be 0.
    entry_bytes : int
        4 or 8.
    present : str
        An entry is present if any of these bits is set.
    write, user, execute, execute_user, no_execute, accessed, dirty, global_ : str
        The bit; empty where the format has none. ``execute_user`` counts under mode-based execute
        control only, and then a set one makes an entry present, too.
    levels : tuple of Level
        Root first.
    max_physical : int
        MAXPHYADDR counts at most this much.
    bad_rights, bad_types : tuple of int
        EPT: values of bits 10 and 2:0, and of bits 5:3 of an entry that maps a page, which are
        misconfigurations.
    """

    name: str
    source: str
    width: int
    levels: tuple[Level, ...]
    canonical: bool = False
    entry_bytes: int = 8
    present: str = "0"
    write: str = "1"
    user: str = "2"
    execute: str = ""
    execute_user: str = ""
    no_execute: str = "63"
    accessed: str = "5"
    dirty: str = "6"
    global_: str = "8"
    max_physical: int = 52
    bad_rights: tuple[int, ...] = ()
    bad_types: tuple[int, ...] = ()

    @property
    def references(self) -> int:
        """Memory references of a walk that ends at the last level."""
        return sum(not level.in_register for level in self.levels)


_4K = Page("51:M", "M-1:12")
_PAE_4K = Page("62:M", "M-1:12")
_2M = Page("51:M 20:13", "M-1:21")
_1G = Page("51:M 29:13", "M-1:30", feature="PAGE1GB", otherwise="reserved")

_FOUR: Final = (
    Level(4, "PML4E", 39, 9, None, "51:M 7", reserved_amd="8"),
    Level(3, "PDPTE", 30, 9, _1G, "51:M", reserved_amd="8"),
    Level(2, "PDE", 21, 9, _2M, "51:M"),
    Level(1, "PTE", 12, 9, _4K),
)

TWO_LEVEL: Final = Format(
    "32-bit",
    "SDM vol. 3A §4.3, tables 4-3 to 4-6",
    32,
    (
        Level(
            2,
            "PDE",
            22,
            10,
            Page("21:M-19", "31:22", high="M-20:13", feature="PSE"),
            address="31:12",
        ),
        Level(1, "PTE", 12, 10, Page("", "31:12")),
    ),
    entry_bytes=4,
    no_execute="",
    max_physical=40,
)

PAE: Final = Format(
    "PAE",
    "SDM vol. 3A §4.4, tables 4-7 to 4-11",
    32,
    (
        Level(
            3,
            "PDPTE",
            30,
            2,
            None,
            "63:M 8:5 2:1",
            in_register=True,
            rights=False,
            accessed=False,
        ),
        Level(2, "PDE", 21, 9, Page("62:M 20:13", "M-1:21"), "62:M"),
        Level(1, "PTE", 12, 9, _PAE_4K),
    ),
)

#: A PAE guest under AMD's nested paging reads its PDPTEs from memory (APM vol. 2 §15.25.10).
PAE_IN_MEMORY: Final = Format(
    "PAE, PDPTEs in memory",
    "SDM vol. 3A §4.4; AMD APM vol. 2 §15.25.10",
    32,
    (
        Level(3, "PDPTE", 30, 2, None, "63:M 8:5 2:1", rights=False, accessed=False),
        *PAE.levels[1:],
    ),
)

FOUR_LEVEL: Final = Format(
    "4-level", "SDM vol. 3A §4.5, tables 4-14 to 4-20", 48, _FOUR, canonical=True
)

FIVE_LEVEL: Final = Format(
    "5-level",
    "SDM vol. 3A §4.5, tables 4-13 to 4-20",
    57,
    (Level(5, "PML5E", 48, 9, None, "51:M 7", reserved_amd="8"), *_FOUR),
    canonical=True,
)

_EPT_FOUR: Final = (
    Level(4, "EPT PML4E", 39, 9, None, "51:M 7:3"),
    Level(
        3,
        "EPT PDPTE",
        30,
        9,
        Page("51:M 29:12", "M-1:30", feature="PAGE1GB", otherwise="reserved"),
        "51:M 6:3",
    ),
    Level(2, "EPT PDE", 21, 9, Page("51:M 20:12", "M-1:21"), "51:M 6:3"),
    Level(1, "EPT PTE", 12, 9, Page("51:M", "M-1:12")),
)

EPT_FOUR_LEVEL: Final = Format(
    "EPT, 4 levels",
    "SDM vol. 3C §28.3.2",
    48,
    _EPT_FOUR,
    present="2:0",
    user="",
    execute="2",
    execute_user="10",
    no_execute="",
    accessed="8",
    dirty="9",
    global_="",
    bad_rights=(0b0010, 0b0100, 0b0110, 0b1000, 0b1010, 0b1100, 0b1110),
    bad_types=(2, 3, 7),
)

EPT_FIVE_LEVEL: Final = Format(
    "EPT, 5 levels",
    "SDM vol. 3C §28.3.2",
    57,
    (Level(5, "EPT PML5E", 48, 9, None, "51:M 7:3"), *_EPT_FOUR),
    present="2:0",
    user="",
    execute="2",
    execute_user="10",
    no_execute="",
    accessed="8",
    dirty="9",
    global_="",
    bad_rights=(0b0010, 0b0100, 0b0110, 0b1000, 0b1010, 0b1100, 0b1110),
    bad_types=(2, 3, 7),
)

#: All formats by name.
FORMATS: Final = {
    f.name: f
    for f in (
        TWO_LEVEL,
        PAE,
        PAE_IN_MEMORY,
        FOUR_LEVEL,
        FIVE_LEVEL,
        EPT_FOUR_LEVEL,
        EPT_FIVE_LEVEL,
    )
}
