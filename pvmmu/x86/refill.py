"""What a flush costs afterwards: the walks that refill a TLB.

A program runs undisturbed, and once more with a disturbance at regular intervals; the walks that
the second run has more, by the number of accesses since the disturbance, are its price.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pvmmu.x86.accesses import Pages
from pvmmu.x86.errors import TlbError
from pvmmu.x86.formats import EPT_FOUR_LEVEL, FOUR_LEVEL
from pvmmu.x86.geometry import Geometry
from pvmmu.x86.memory import FRAME_BYTES, Memory, Tables, nest
from pvmmu.x86.mmu import Mmu
from pvmmu.x86.mmu_events import Count, Event
from pvmmu.x86.tlb import Tlb

#: What may happen at the end of each interval.
DISTURBANCES: Final = {
    "flush": "everything is flushed",
    "switch": "another program runs; both CR3 loads flush",
    "switch with PCIDs": "another program runs; nothing is flushed",
}
_OWN, _OTHER = 1, 2


@dataclass(frozen=True)
class Refill:
    """The price of a disturbance.

    Attributes
    ----------
    disturbance : str
        Which one.
    extra : float64[period]
        Walks more than undisturbed, in the first 1, 2, 3, ... accesses afterwards; the mean of all
        intervals.
    intervals : int
        How many there were.
    misses : float
        Walks of an undisturbed interval, the mean.
    """

    disturbance: str
    extra: npt.NDArray[np.float64]
    intervals: int
    misses: float

    @property
    def total(self) -> float:
        """Extra walks of a whole interval, a count."""
        return float(self.extra[-1])

    def accesses_until(self, share: float) -> int:
        """Return after how many accesses a `share` (0 to 1) of the price has been paid."""
        if self.total <= 0:
            return 0
        return int(np.flatnonzero(self.extra >= share * self.total)[0]) + 1


def refill(
    accesses: Pages,
    geometry: Geometry | str,
    period: int = 20_000,
    disturbance: str = "flush",
    other: Pages | None = None,
    visit: int = 5_000,
) -> Refill:
    """Measure what a disturbance costs.

    Parameters
    ----------
    accesses : Pages
        The program.
    geometry : Geometry or str
        The TLB.
    period : int
        Accesses from one disturbance to the next.
    disturbance : {"flush", "switch", "switch with PCIDs"}
        See `DISTURBANCES`.
    other : Pages, optional
        The other program of a switch; it runs on from where it was.
    visit : int
        Its accesses at each switch.

    Raises
    ------
    TlbError
        No such disturbance, no other program, or fewer accesses than two intervals.
    """
    if disturbance not in DISTURBANCES:
        raise TlbError(f"no disturbance is {disturbance!r}: {', '.join(DISTURBANCES)}")
    if period < 1 or len(accesses) < 2 * period:
        raise TlbError(f"{len(accesses)} accesses are no two intervals of {period}")
    if disturbance != "flush" and (other is None or visit < 1 or len(other) < visit):
        raise TlbError(f"a switch needs another program of at least {visit} accesses")
    count = len(accesses) // period
    undisturbed, disturbed = Tlb(geometry), Tlb(geometry)
    top = max(s.level for s in disturbed.geometry.structure)
    extra, misses, at = np.zeros(period, np.int64), 0, 0
    for tlb in (undisturbed, disturbed):
        tlb.load_cr3(_OWN)
    for i in range(count):
        piece = _cut(accesses, i * period, period)
        plain = undisturbed.levels(piece) == top
        walks = disturbed.levels(piece) == top
        if i:  # before the first disturbance both are cold
            extra += walks.astype(np.int64) - plain
            misses += int(plain.sum())
        if other is None or disturbance == "flush":
            disturbed.invpcid("all")
        else:
            at = at if at + visit <= len(other) else 0
            keep = disturbance == "switch with PCIDs"
            _switch(disturbed, _cut(other, at, visit), keep)
            at += visit
    n = count - 1
    return Refill(disturbance, np.cumsum(extra) / n, n, misses / n)


def _cut(p: Pages, start: int, length: int) -> Pages:
    end = start + length
    fetch = p.fetch if p.fetch.size == 1 else p.fetch[start:end]
    return Pages(p.words[start:end], fetch, p.small)


def _switch(tlb: Tlb, visitor: Pages, keep: bool) -> None:
    """Another program runs for a while; its PCID is 0, like everybody's, where there are none."""
    if keep:
        tlb.load_cr3(_OTHER, noflush=True)
        tlb.run(visitor)
        tlb.load_cr3(_OWN, noflush=True)
    else:
        tlb.load_cr3(_OWN)
        tlb.run(visitor)
        tlb.load_cr3(_OWN)


def flush_references(
    accesses: Pages, geometry: Geometry | str, period: int = 20_000, nested: bool = False
) -> float:
    """Return the references to page tables that one flush of everything costs in the end.

    The program's pages are mapped by 4-level tables, natively or under 4-level EPT, and walked with
    the walk caches and the nested TLB of the geometry, which the flush empties, too.

    Parameters
    ----------
    accesses, geometry, period
        As of `refill`.
    nested : bool
        Whether every walk is a nested one.

    Raises
    ------
    TlbError
        There are fewer accesses than two intervals.
    """
    if period < 1 or len(accesses) < 2 * period:
        raise TlbError(f"{len(accesses)} accesses are no two intervals of {period}")
    va = (accesses.words & np.uint64((1 << 45) - 1)) << np.uint64(12)
    kind = np.where(accesses.fetch == 1, Event.FETCH, Event.READ).astype(np.uint8)
    count, totals = len(accesses) // period, []
    for disturbed in (False, True):
        mmu = _mmu(np.unique(va), geometry, nested)
        for i in range(count):
            own = kind if kind.size == 1 else kind[i * period : (i + 1) * period]
            mmu.access(va[i * period : (i + 1) * period], own if own.size > 1 else int(own[0]))
            if disturbed:
                mmu.do(Event.INVEPT if nested else Event.INVPCID_ALL)
        totals.append(mmu.counts()[Count.REFERENCES])
    return (totals[1] - totals[0]) / (count - 1)


def _mmu(where: npt.NDArray[np.uint64], geometry: Geometry | str, nested: bool) -> Mmu:
    """An MMU in front of tables that map some pages."""
    n = where.size
    tables = Tables(Memory(4 * n + 64), FOUR_LEVEL)
    frames = np.arange(n, dtype=np.uint64) + np.uint64(3 * n + 64)
    tables.map(where, frames * np.uint64(FRAME_BYTES))
    if not nested:
        return Mmu(tables.memory.words, tables.registers(), geometry)
    guest = tables.memory
    host = Memory(guest.frames + guest.frames // 256 + 64)
    second = nest(guest, host, EPT_FOUR_LEVEL)
    return Mmu(host.words, tables.registers(), geometry, second=second.second())
