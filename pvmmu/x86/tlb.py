"""A TLB that knows which pages are touched: hits, misses, and every kind of flush.

`Tlb` needs no page tables: the size of a page and whether it is global come with the access. For a
TLB in front of page tables, with walk caches, accessed flags and stale entries, see
`pvmmu.x86.mmu`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from pvmmu.x86.accesses import Pages
from pvmmu.x86.errors import TlbError
from pvmmu.x86.geometry import SHIFTS, SIZES, Geometry, shipped_geometry
from pvmmu.x86.tlb_run import commonest_depth, run_any, run_ladder, run_vector, switch_context
from pvmmu.x86.tlb_sets import (
    BASE,
    CONTEXT_MASK,
    CONTEXT_SHIFT,
    GLOBAL_BIT,
    INVALID,
    MAX_VPID,
    PAGE_MASK,
    SIZE_SHIFT,
    VPID_MASK,
    Sets,
    flush_page,
    flush_where,
    new_sets,
)

#: Accesses looked at to tell which of two kernels is the faster, and made with that one then.
_PROBE: Final = 1 << 15
_CHUNK: Final = 1 << 24
#: Share of one outcome from which on branches are predicted well enough (measured on an EPYC of
#: family 26: benchmarks/x86_tlb.py).
_PREDICTABLE: Final = 0.8
_MAX_PCID: Final = 0xFFF


@dataclass(frozen=True)
class TlbCounts:
    """What a run of accesses came to.

    Attributes
    ----------
    accesses : int
        How many there were.
    misses : int64[structure]
        Look-ups that failed, in the order of the geometry's structures.
    walks : int
        Accesses that no level had.
    """

    accesses: int
    misses: npt.NDArray[np.int64]
    walks: int


class Tlb:
    """TLBs of one processor.

    Parameters
    ----------
    geometry : Geometry or str
        The geometry, or the name of one that ships with the package.

    Attributes
    ----------
    geometry : Geometry
        The geometry.
    pcid, vpid : int
        What runs now.

    Notes
    -----
    A miss in level 1 is looked up in level 2; what is missing is inserted in both, and neither
    drops what the other does. Invalidations affect the running VPID (SDM vol. 3C §28.4.3.1) and
    nothing that they need not (a processor may always drop more). Matching is that of the SDM
    (vol. 3A §4.10.2): a global page belongs to all PCIDs. A page that is global in one access and
    not in another counts as two pages.
    """

    def __init__(self, geometry: Geometry | str) -> None:
        g = shipped_geometry(geometry) if isinstance(geometry, str) else geometry
        if not isinstance(g, Geometry):
            raise TlbError(f"not a geometry: {g!r}")
        self.geometry = g
        self.pcid = self.vpid = 0
        self._sets = new_sets(g.structure)
        self._route = route(g)
        self._coarse = coarse(g)

    # ------------------------------------------------------------------ accesses
    def run(self, accesses: Pages) -> TlbCounts:
        """Make `accesses` in order, and count what they miss."""
        fast = self._fast(accesses)
        if fast is None:
            return self._run(accesses, np.empty(0, np.uint8))
        misses = np.zeros(len(self.geometry.structure), np.int64)
        for start in range(0, len(accesses), _CHUNK):
            words = accesses.words[start : start + _CHUNK]
            kernel = run_ladder if self._predictable(fast[0], words) else run_vector
            misses[list(fast)] += kernel(self._sets.table, self._sets.tags, *fast, words)
        return TlbCounts(len(accesses), misses, int(misses[fast[1]]))

    def levels(self, accesses: Pages) -> npt.NDArray[np.uint8]:
        """Make `accesses` in order; return the level that had each, from 0 on: uint8[access].

        Those that no level had, and that need a walk, get the number of levels.
        """
        reached = np.empty(len(accesses), np.uint8)
        self._run(accesses, reached)
        return reached

    def _run(self, accesses: Pages, reached: npt.NDArray[np.uint8]) -> TlbCounts:
        misses = np.zeros(len(self.geometry.structure), np.int64)
        walks = run_any(self._sets, self._route, accesses.words, accesses.fetch, misses, reached)
        return TlbCounts(len(accesses), misses, int(walks))

    def _fast(self, accesses: Pages) -> tuple[int, int] | None:
        """Structures of both levels, where `run_vector` and `run_ladder` apply."""
        if not accesses.small or accesses.fetch.size != 1 or self._route.shape[0] != 2:
            return None
        k1, k2 = (int(k) for k in self._route[:, 4 * int(accesses.fetch[0]), 0])
        if k1 < 0 or k2 < 0:
            return None
        first, second = self.geometry.structure[k1], self.geometry.structure[k2]
        if first.ways != 4 or second.ways > 16 or "plru" in (first.policy, second.policy):
            return None
        return k1, k2

    def _predictable(self, k: int, words: npt.NDArray[np.uint64]) -> bool:
        """Whether the first accesses suggest that branches on the depth in a set are cheap."""
        if words.size < 4 * _PROBE:
            return False
        base, sets = int(self._sets.table[k, BASE]), self.geometry.structure[k].sets
        tags = self._sets.tags[base : base + 4 * sets].copy()
        return bool(commonest_depth(tags, sets, words[:_PROBE]) > _PREDICTABLE)

    # ------------------------------------------------------------------ what runs
    def load_cr3(self, pcid: int = 0, *, noflush: bool = False) -> int:
        """MOV to CR3 (SDM vol. 3A §4.10.4.1); return how many entries it removes.

        Parameters
        ----------
        pcid : int
            PCID that runs from now on; without CR4.PCIDE it is 0.
        noflush : bool
            Bit 63: keep the entries of that PCID.
        """
        self._run_context(self.vpid, _in_range("pcid", pcid, _MAX_PCID))
        return 0 if noflush else self._flush_where(GLOBAL_BIT | CONTEXT_MASK, self._context(pcid))

    def enter(self, vpid: int, pcid: int = 0) -> int:
        """VM entry or exit: another `vpid` (ASID; 0: the host's) and `pcid` run. Returns 0.

        Nothing is removed (SDM vol. 3C §28.4.3.1): a processor that runs guests without VPIDs
        also does `invvpid("single", 0)`.
        """
        self._run_context(_in_range("vpid", vpid, MAX_VPID), _in_range("pcid", pcid, _MAX_PCID))
        return 0

    def _run_context(self, vpid: int, pcid: int) -> None:
        shift = np.uint64(CONTEXT_SHIFT)
        vpids = np.uint64((self.vpid ^ vpid) << 12) << shift
        both = vpids ^ (np.uint64(self.pcid ^ pcid) << shift)
        if both:
            switch_context(self._sets.tags, (vpids, both))
        self.vpid, self.pcid = vpid, pcid

    def _context(self, pcid: int, vpid: int | None = None) -> int:
        """Bits of a context as they stand in tags, which are relative to the running one."""
        v = self.vpid if vpid is None else vpid
        return ((v ^ self.vpid) << 12 | (pcid ^ self.pcid)) << CONTEXT_SHIFT

    def _vpid_bits(self, vpid: int | None = None) -> int:
        v = self.vpid if vpid is None else vpid
        return (v ^ self.vpid) << 12 + CONTEXT_SHIFT

    # ------------------------------------------------------------------ invalidations
    def invlpg(self, va: int) -> int:
        """INVLPG of `va` (bytes): the page of the running PCID, and global; returns how many
        entries go.
        """
        own, all_pcids = GLOBAL_BIT | CONTEXT_MASK, GLOBAL_BIT | VPID_MASK
        removed = self._flush_page(va, own, self._context(self.pcid))
        return removed + self._flush_page(va, all_pcids, GLOBAL_BIT)

    def invpcid(self, kind: str, pcid: int = 0, va: int = 0) -> int:
        """INVPCID; returns how many entries it removes.

        Parameters
        ----------
        kind : {"address", "single", "all", "all nonglobal"}
            Types 0 to 3: a page of a PCID; a PCID; everything; everything but global pages. The
            first two leave global pages alone.
        pcid, va : int
            The descriptor's, as far as the type looks at them.

        Raises
        ------
        TlbError
            No such type, or an argument is out of range.
        """
        own = GLOBAL_BIT | CONTEXT_MASK
        context = self._context(_in_range("pcid", pcid, _MAX_PCID))
        if kind == "address":
            return self._flush_page(va, own, context)
        if kind == "single":
            return self._flush_where(own, context)
        if kind == "all":
            return self._flush_where(VPID_MASK, 0)
        if kind == "all nonglobal":
            return self._flush_where(GLOBAL_BIT | VPID_MASK, 0)
        raise TlbError(f"no INVPCID type is {kind!r}: address, single, all, all nonglobal")

    def toggle_pge(self) -> int:
        """MOV to CR4 that changes PGE: everything goes. Returns how many entries it removes."""
        return self._flush_where(VPID_MASK, 0)

    def invvpid(self, kind: str, vpid: int = 0, va: int = 0) -> int:
        """INVVPID (AMD: INVLPGA and TLB_CONTROL); returns how many entries it removes.

        Parameters
        ----------
        kind : {"address", "single", "all", "single nonglobal"}
            Types 0 to 3: a page of a VPID, in all its PCIDs; a VPID; all VPIDs but 0; a VPID but
            its global pages.
        vpid, va : int
            The descriptor's, as far as the type looks at them.

        Raises
        ------
        TlbError
            No such type, or an argument is out of range.
        """
        value = self._vpid_bits(_in_range("vpid", vpid, MAX_VPID))
        if kind == "address":
            return self._flush_page(va, VPID_MASK, value)
        if kind == "single":
            return self._flush_where(VPID_MASK, value)
        if kind == "single nonglobal":
            return self._flush_where(GLOBAL_BIT | VPID_MASK, value)
        if kind == "all":
            others = range(1, MAX_VPID + 1)
            return sum(self._flush_where(VPID_MASK, self._vpid_bits(v)) for v in others)
        raise TlbError(f"no INVVPID type is {kind!r}: address, single, all, single nonglobal")

    def clear(self) -> int:
        """Remove everything, as at reset; return how many entries that are."""
        return self._flush_where(0, 0)

    def _flush_where(self, mask: int, value: int) -> int:
        return int(flush_where(self._sets, np.uint64(mask), np.uint64(value)))

    def _flush_page(self, va: int, mask: int, value: int) -> int:
        if not 0 <= va < 1 << 64:
            raise TlbError(f"va {va:#x} does not fit into 64 bits")
        return int(
            flush_page(self._sets, self._coarse, np.uint64(va), np.uint64(mask), np.uint64(value))
        )

    # ------------------------------------------------------------------ what is there
    def entries(self) -> pd.DataFrame:
        """Return all entries: structure, address, size, global, VPID, PCID, and age in its set.

        Columns ``structure`` (name), ``va`` (uint64), ``page`` ("4K", ...), ``global``, ``vpid``,
        ``pcid`` (-1 for global pages), ``age`` (0 is the last one used; meaningless under PLRU).
        """
        return listing(self._sets, self.geometry, 0, self.vpid << 12 | self.pcid)[0]


def listing(
    sets: Sets, g: Geometry, row: int, running: int
) -> tuple[pd.DataFrame, npt.NDArray[np.int64]]:
    """Return the entries in structures from row `row` of the table on, and their slots.

    `running` is the context to which tags are relative.
    """
    rows, slots = [], []
    for k, s in enumerate(g.structure, row):
        base, stride = (int(x) for x in sets.table[k, :2])
        for index in range(s.sets):
            at = base + index * stride
            for way, tag in enumerate(sets.tags[at : at + s.ways].tolist()):
                if tag != INVALID:
                    rows.append((s.name, *_decoded(tag, running), way))
                    slots.append(at + way)
    names = ["structure", "va", "page", "global", "vpid", "pcid", "age"]
    table = pd.DataFrame(rows, columns=names).astype({"va": np.uint64})
    return table, np.array(slots, np.int64)


def _decoded(tag: int, running: int) -> tuple[int, str, bool, int, int]:
    size = tag >> SIZE_SHIFT & 3
    is_global = bool(tag & GLOBAL_BIT)
    va = (tag & PAGE_MASK) << SHIFTS[size]
    va |= -(va >> 56) << 57 & (1 << 64) - 1  # addresses are sign-extended
    context = tag >> CONTEXT_SHIFT ^ running
    return va, SIZES[size], is_global, context >> 12, -1 if is_global else context & _MAX_PCID


def route(g: Geometry) -> npt.NDArray[np.int64]:
    """Where each access goes: structure and page size, by level and page size + 4 * fetch."""
    levels = max(s.level for s in g.structure)
    out = np.full((levels, 8, 2), -1, np.int64)
    for level in range(levels):
        for row in range(8):
            k = g.home(level + 1, row % 4, row >= 4)
            if k >= 0:
                out[level, row] = k, g.structure[k].size_for(row % 4)
    return out


def coarse(g: Geometry) -> npt.NDArray[np.int64]:
    """Shift of the region that INVLPG clears, by structure and page size (`flush_page`)."""
    out = np.full((len(g.structure), 4), -1, np.int64)
    for k, s in enumerate(g.structure):
        for page in s.pages:
            out[k, SIZES.index(page)] = SHIFTS[SIZES.index(page)]
        for page in s.splits:
            out[k, s.size_for(SIZES.index(page))] = SHIFTS[SIZES.index(page)]
    return out


def _in_range(name: str, value: Any, top: int) -> int:
    if not isinstance(value, int | np.integer) or not 0 <= value <= top:
        raise TlbError(f"{name} must be 0 to {top}, not {value!r}")
    return int(value)
