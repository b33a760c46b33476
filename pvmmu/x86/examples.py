"""An address space with a page of every kind, in any format: native, nested and shadowed.

For looking at walks, and for trying things out. The same guest tables are walked in three ways: as
they are, on a machine of their own; through a second dimension; or not at all, where shadow tables
map the same pages straight to the host's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from pvmmu.x86 import bits
from pvmmu.x86.errors import WalkError
from pvmmu.x86.explain import Walk, walk_one
from pvmmu.x86.formats import (
    EPT_FIVE_LEVEL,
    EPT_FOUR_LEVEL,
    FIVE_LEVEL,
    FOUR_LEVEL,
    PAE,
    TWO_LEVEL,
    Format,
)
from pvmmu.x86.memory import FRAME_BYTES, Memory, Tables, nest
from pvmmu.x86.registers import Ept, Npt, Registers

#: Formats of the guest's tables, by name.
FORMATS: Final[dict[str, Format]] = {
    "32-bit": TWO_LEVEL, "PAE": PAE, "4-level": FOUR_LEVEL, "5-level": FIVE_LEVEL,
}  # fmt: skip
#: Formats of the second dimension, by name.
SECONDS: Final[dict[str, Format]] = {
    "EPT, 4 levels": EPT_FOUR_LEVEL,
    "EPT, 5 levels": EPT_FIVE_LEVEL,
    "NPT, 4 levels": FOUR_LEVEL,
    "NPT, PAE": PAE,
}
#: Ways in which a processor gets at a guest's page.
WAYS: Final = ("native", "shadow", "nested")

_USER: Final = bits.P | bits.RW | bits.US
_FRAMES: Final = 1024  # of the guest: 4 MiB, so that large pages have something to map
_SEED: Final = 7


@dataclass(frozen=True)
class Dimension:
    """Memory, and what a processor's registers say of it.

    Attributes
    ----------
    words : uint64[m]
        Physical memory.
    registers : Registers
        Control registers.
    second : Ept or Npt or None
        The second dimension, if there is one.
    """

    words: npt.NDArray[np.uint64]
    registers: Registers
    second: Ept | Npt | None


class ExampleSpace:
    """A guest's address space, to be walked in three ways.

    Parameters
    ----------
    fmt : {"32-bit", "PAE", "4-level", "5-level"}
        Format of the guest's tables (`FORMATS`).
    second : str
        Format of the second dimension (`SECONDS`).

    Attributes
    ----------
    places : dict
        Name -> linear address of a page of each kind.

    Raises
    ------
    WalkError
        There is no such format; the message lists them.

    Examples
    --------
    >>> print(ExampleSpace("PAE").walk("a page", way="nested"))
    """

    def __init__(self, fmt: str = "4-level", second: str = "EPT, 4 levels") -> None:
        self.format, second_format = _named(fmt, FORMATS), _named(second, SECONDS)
        guest, host = Memory(_FRAMES, _SEED), Memory(4 * _FRAMES, _SEED + 1)
        tables = Tables(guest, self.format)
        self.places = _populate(tables)
        nested = nest(guest, host, second_format)
        registers = tables.registers()
        self._ways = {
            "native": Dimension(guest.words, registers, None),
            "nested": Dimension(host.words, registers, nested.second()),
        }
        self._ways["shadow"] = Dimension(host.words, self._shadow(host), None)

    def _shadow(self, host: Memory) -> Registers:
        """Make tables in the host's memory that map what the guest's and the second map."""
        shadow = Tables(host, self.format)
        shift = np.uint64(12)
        for va in self.places.values():
            walk = self.walk(va, "read", user=False, ac=True, way="nested")
            if walk.vector or walk.exit_reason:
                continue
            guests = [r.entry for r in walk.path if r.dimension == 1 and r.level]
            rights = guests[-1] & (bits.RW | bits.US | bits.XD) | bits.P
            shadow.map(va >> 12 << 12, int(np.uint64(walk.pa) >> shift << shift), flags=rights)
        return shadow.registers()

    def dimension(self, way: str) -> Dimension:
        """Return memory and registers of the `way` in which the space is walked (`WAYS`)."""
        return _named(way, self._ways)

    def walk(
        self,
        va: int | str,
        access: str = "read",
        user: bool = True,
        ac: bool = False,
        way: str = "native",
    ) -> Walk:
        """Translate an address.

        Parameters
        ----------
        va : int or str
            Linear address (bytes), or the name of a place.
        access : {"read", "write", "fetch"}
            Kind of access.
        user, ac : bool
            Whether in user mode; EFLAGS.AC.
        way : {"native", "shadow", "nested"}
            Which tables are walked.

        Raises
        ------
        WalkError
            No such place or way, or the address has too many bits.
        """
        here = self.dimension(way)
        address = _named(va, self.places) if isinstance(va, str) else va
        return walk_one(here.words, here.registers, address, access, user, ac, second=here.second)


_T = TypeVar("_T")


def _named(name: str, known: Mapping[str, _T]) -> _T:
    if name not in known:
        raise WalkError(f"{name!r} is none of: {', '.join(known)}")
    return known[name]


def reference_table() -> pd.DataFrame:
    """Return the references of a walk to a 4-KiB page, counted, in all formats.

    A row for each format of the guest's tables; columns ``native``, ``shadow`` and one for each
    second dimension.
    """
    rows = {}
    for fmt in FORMATS:
        spaces = {second: ExampleSpace(fmt, second) for second in SECONDS}
        one = spaces["EPT, 4 levels"]
        row = {way: one.walk("a page", way=way).references for way in ("native", "shadow")}
        rows[fmt] = row | {
            second: space.walk("a page", way="nested").references
            for second, space in spaces.items()
        }
    return pd.DataFrame(rows).T.rename_axis("guest")


def _populate(t: Tables) -> dict[str, int]:
    """Map a page of each kind; return their addresses."""
    f = t.format
    user, kernel = (0x0804_8000, 0xC010_0000)
    if f.canonical:
        user, kernel = 0x7F12_3456_7000, (1 << 64) - (1 << f.width - 1) + 0x10_0000
    frames = iter(t.memory.allocate(8).tolist())

    def small(va: int, flags: int) -> int:
        t.map(va, next(frames) * FRAME_BYTES, flags=flags)
        return va

    places = {
        "a page": small(user, _USER) + 0xABC,
        "its neighbour": small(user + 0x1000, _USER | bits.A | bits.D) + 0x10,
        "a read-only page": small(user + 0x2000, _USER & ~bits.RW) + 0x20,
        "a page of the kernel": small(kernel, bits.P | bits.RW) + 0x30,
        "nothing": user + 0x40_0000,
    }
    large = next(x for x in f.levels if x.page and x.shift in (21, 22))
    far = user + 0x1000_0000 >> large.shift << large.shift
    t.map(far, 0, large.shift)
    places[f"a page of {1 << large.shift - 20} MiB"] = far + 0x12_3456
    if any(x.page and x.shift == 30 for x in f.levels):
        t.map(0x10_0000_0000, 0, 30)
        places["a page of 1 GiB"] = 0x10_0000_0000 + 0x23_4567
    if f.entry_bytes == 8:
        places["a page without execution"] = small(user + 0x3000, _USER | bits.XD) + 0x40
        broken = small(user + 0x4000, _USER | 1 << 45)
        places["a reserved bit"] = broken + 0x50
    if f.canonical:
        places["no canonical address"] = 1 << 62
    return places
