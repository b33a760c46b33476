"""Geometries of TLBs: validated files, and ones made on the spot.

Shipped ones name their sources (CPUID leaves, vendors' manuals) in ``data/tlb``; what walk caches
may hold: SDM vol. 3A §4.10.3.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pvmmu.errors import did_you_mean
from pvmmu.files import read_toml, validated
from pvmmu.paths import data_path
from pvmmu.x86.errors import GeometryError

PageSize = Literal["4K", "2M", "4M", "1G"]
#: Page sizes by their number in a TLB's keys, and the shift of each.
SIZES: Final[tuple[PageSize, ...]] = ("4K", "2M", "4M", "1G")
SHIFTS: Final = (12, 21, 22, 30)
#: Levels of the entries that a walk cache may hold.
WALK_LEVELS: Final = {"PDE": 2, "PDPTE": 3, "PML4E": 4, "PML5E": 5}

Count = Annotated[int, Field(ge=1, le=1 << 20)]


class _Array(BaseModel):
    """Entries in sets of so many ways."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    entries: Count
    ways: Count

    @model_validator(mode="after")
    def _sets(self) -> Self:
        sets, rest = divmod(self.entries, self.ways)
        if rest or sets & (sets - 1):
            raise ValueError(
                f"{self.entries} entries in {self.ways} ways are {self.entries / self.ways:g} "
                "sets; the number of sets must be a power of two"
            )
        return self

    @property
    def sets(self) -> int:
        """Number of sets."""
        return self.entries // self.ways


class Structure(_Array):
    """One array of a TLB; see ``data/tlb/README.md`` for the fields."""

    name: str = ""
    level: Literal[1, 2] = 1
    holds: Literal["data", "instruction", "both"] = "both"
    pages: tuple[PageSize, ...] = ("4K",)
    splits: tuple[PageSize, ...] = ()
    policy: Literal["lru", "plru"] = "lru"
    note: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.pages:
            raise ValueError("pages is empty")
        if self.policy == "plru" and self.ways & (self.ways - 1):
            raise ValueError(f"tree-PLRU needs a power of two of ways, not {self.ways}")
        largest = max(SIZES.index(p) for p in self.pages)
        for p in self.splits:
            if SIZES.index(p) <= largest:
                raise ValueError(f"splits: pages of {p} are not larger than those it holds")
        return self

    def takes(self, fetch: bool) -> bool:
        """Whether it is looked up for fetches (or for data accesses)."""
        return self.holds in ("both", "instruction" if fetch else "data")

    def size_for(self, size: int) -> int:
        """Page size (number) under which it holds a page of some size; -1: not at all."""
        if SIZES[size] in self.pages:
            return size
        if SIZES[size] in self.splits:
            return max(SIZES.index(p) for p in self.pages if SIZES.index(p) < size)
        return -1


class WalkCache(_Array):
    """A paging-structure cache."""

    caches: Literal["PDE", "PDPTE", "PML4E", "PML5E"]
    source: str = ""


class NestedTlb(_Array):
    """Translations from guest-physical to host-physical addresses."""

    source: str = ""


class Geometry(BaseModel):
    """A processor's TLBs and walk caches.

    Raises
    ------
    GeometryError
        From `load_geometry` and `make_geometry`, with the path of the field.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    vendor: str = ""
    year: int = 0
    source: str = ""
    structure: tuple[Structure, ...] = Field(min_length=1)
    walk_cache: tuple[WalkCache, ...] = ()
    nested_tlb: NestedTlb | None = None

    @model_validator(mode="after")
    def _one_place_for_each_page(self) -> Self:
        for level in (1, 2):
            for fetch in (False, True):
                for size in range(len(SIZES)):
                    homes = [
                        s.name or f"structure {i}"
                        for i, s in enumerate(self.structure)
                        if s.level == level and s.takes(fetch) and s.size_for(size) >= 0
                    ]
                    if len(homes) > 1:
                        kind = "fetches" if fetch else "data"
                        raise ValueError(
                            f"level {level}: {SIZES[size]} pages of {kind} have two places, "
                            f"{homes[0]!r} and {homes[1]!r}"
                        )
        if all(s.level != 1 for s in self.structure):
            raise ValueError("no structure is at level 1")
        cached = [w.caches for w in self.walk_cache]
        if len(set(cached)) != len(cached):
            raise ValueError("two walk caches hold the same entries")
        return self

    def home(self, level: int, size: int, fetch: bool) -> int:
        """Index of the structure of a level that holds a page; -1 for none.

        Parameters
        ----------
        level : int
            Level of the TLB, from 1.
        size : int
            Index in `SIZES`.
        fetch : bool
            Of an instruction fetch.
        """
        for i, s in enumerate(self.structure):
            if s.level == level and s.takes(fetch) and s.size_for(size) >= 0:
                return i
        return -1


def geometry_names() -> list[str]:
    """Names of the geometries that ship with the package."""
    return sorted(p.stem for p in data_path("tlb").glob("*.toml"))


@functools.cache
def shipped_geometry(name: str) -> Geometry:
    """Return a geometry by its `name`, such as ``"skylake"``; see `geometry_names`.

    Raises
    ------
    GeometryError
        There is none of that name; the message lists the nearest.
    """
    path = data_path("tlb") / f"{name}.toml"
    if not path.is_file():
        hint = did_you_mean(name, geometry_names())
        raise GeometryError(f"no TLB geometry is named {name!r}{hint}")
    return load_geometry(path)


def load_geometry(path: str | os.PathLike[str]) -> Geometry:
    """Read a geometry from the TOML file `path` (``data/tlb/README.md``).

    Raises
    ------
    GeometryError
        The file is missing, no TOML, or breaks a rule; names the file and the field.
    """
    table = read_toml(Path(path), GeometryError)
    return validated(Geometry, table, os.fspath(path), GeometryError)


def make_geometry(
    l1: tuple[int, int], l2: tuple[int, int] | None = None, policy: str = "lru"
) -> Geometry:
    """Return a geometry for 4-KiB pages, data and fetches in the same arrays, without walk caches.

    Parameters
    ----------
    l1, l2 : (int, int)
        Sets and ways of each level; sets are a power of two.
    policy : {"lru", "plru"}
        Replacement in both.
    """
    structures = []
    for level, shape in enumerate((l1, l2), 1):
        if shape is not None:
            sets, ways = shape
            entries = sets * ways
            structures.append({"level": level, "entries": entries, "ways": ways, "policy": policy})
    table = {"name": f"{l1} {l2 or ''}".strip(), "structure": structures}
    return validated(Geometry, table, "geometry", GeometryError)
