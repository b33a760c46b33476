"""Which address space, which table: identities that a recording reveals only bit by bit.

A recording names an address space by its mm_struct, by the frame of its top-level table, or not at
all (only by the task that runs in it), and a table page by its frame, which is reused. The classes
here are born when first heard of and merged when two turn out to be one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE_SHIFT = 12
#: log2 of the bytes that one entry of a table of this level maps (level 1 = PTE table).
ENTRY_SHIFT = {1: 12, 2: 21, 3: 30, 4: 39, 5: 48}


@dataclass(eq=False)
class Space:
    """An address space, perhaps one whose mm_struct and top-level table are not known yet."""

    label: str
    older: bool  # it existed before the recording
    pointer: int | None = None  # mm_struct
    pgd: int | None = None  # frame of the top-level table
    exited: bool = False
    tables: list[Page] = field(default_factory=list)
    _is: Space | None = None

    def root(self) -> Space:
        """Return the address space that this one turned out to be."""
        s = self
        while s._is is not None:
            s = s._is
        return s

    def merge(self, other: Space) -> Space:
        """Two names, one address space: return the one that stands for both."""
        a, b = self.root(), other.root()
        if a is b:
            return a
        if b.pointer is not None and a.pointer is None:
            a, b = b, a
        b._is = a
        a.pointer = a.pointer if a.pointer is not None else b.pointer
        a.pgd = a.pgd if a.pgd is not None else b.pgd
        a.older = a.older and b.older
        a.tables += b.tables
        return a


@dataclass(eq=False)
class Page:
    """One life of a page-table page."""

    frame: int
    level: int
    space: Space | None = None
    base: int | None = None  # virtual address that its entry 0 maps
    born: bool = False  # inside the recording, so that every entry is known
    entries: dict[int, int] = field(default_factory=dict)  # known entries; 0 = not present

    def old(self, index: int) -> int | None:
        """Return what an entry holds, None if that is not known."""
        return self.entries.get(index, 0 if self.born else None)

    def va(self, index: int) -> int | None:
        """Return the (canonical) virtual address that an entry maps."""
        if self.base is None:
            return None
        return canonical(self.base + (index << ENTRY_SHIFT[self.level]))

    def live(self) -> list[int]:
        """Return the indices of the entries known to be in use, in order."""
        return sorted(i for i, v in self.entries.items() if v)


def canonical(va: int) -> int:
    """Sign-extend a 48-bit address (as an unsigned 64-bit number)."""
    va &= (1 << 48) - 1
    return va | 0xFFFF_0000_0000_0000 if va >> 47 else va


def entry_index(va: int, level: int) -> int:
    """Return the entry of a table of `level` that maps `va` (512 entries a table)."""
    return (va >> ENTRY_SHIFT[level]) & 511


def table_base(va: int, level: int) -> int:
    """Return the address that entry 0 of the table of `level` which maps `va` stands for."""
    return va & ~((1 << (ENTRY_SHIFT[level] + 9)) - 1) & ((1 << 48) - 1)
