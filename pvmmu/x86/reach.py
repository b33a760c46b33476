"""TLB reach: the misses of every geometry from one pass over the accesses.

A slider over geometries needs no recomputation: one pass gives the misses of 1, 2, 4, ... sets with
1 to 16 ways, and of a fully associative TLB of every size, exactly.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from pvmmu.x86.accesses import Pages
from pvmmu.x86.errors import TlbError
from pvmmu.x86.geometry import geometry_names, shipped_geometry
from pvmmu.x86.reach_kernel import (
    MAX_WAYS,
    NO_PAGE,
    Stack,
    every_geometry,
    every_size,
    missed_pages,
    rehash,
)

_MOST_SETS: Final = 1 << 14


class Reach:
    """Misses of all geometries; accesses may come in pieces of any length.

    Parameters
    ----------
    max_sets : int
        Most sets, a power of two.
    sizes : bool
        Also count for fully associative TLBs of every size (about as much work again).

    Attributes
    ----------
    accesses, pages : int
        Accesses so far, and different pages among them.

    Examples
    --------
    >>> r = Reach().add(pages(va))
    >>> r.misses(16, 4), r.misses(128, 12)
    """

    def __init__(self, max_sets: int = 1024, sizes: bool = True) -> None:
        if not 1 <= max_sets <= _MOST_SETS or max_sets & (max_sets - 1):
            raise TlbError(f"max_sets must be a power of two up to {_MOST_SETS}, not {max_sets}")
        self.max_sets, self.accesses = max_sets, 0
        levels = max_sets.bit_length()
        room = np.empty(MAX_WAYS * (2 * max_sets - 1) * 8 + 128, np.uint8)
        start = -room.ctypes.data % 128  # vectors should not cross cache lines
        self._tags = room[start : start + MAX_WAYS * (2 * max_sets - 1) * 8].view(np.uint64)
        self._tags[:] = NO_PAGE
        self._found = np.zeros((levels, MAX_WAYS + 1), np.int64)
        self._stack = _new_stack(1 << 12) if sizes else None
        self._distance = np.zeros(1 << 11, np.int64)

    def add(self, accesses: Pages) -> Reach:
        """Make `accesses`, in order; returns itself.

        Raises
        ------
        TlbError
            Not all pages have 4 KiB (of another size, give page numbers times 4096).
        """
        if not accesses.small:
            raise TlbError("reach is defined for pages of one size; some are not of 4 KiB")
        words = accesses.words
        every_geometry(words, self._tags, self._found)
        done = 0
        while self._stack and done < words.size:
            done = every_size(words, done, self._stack, self._distance)
            if done < words.size:
                self._stack = _grown(self._stack)
                self._distance = np.append(self._distance, np.zeros_like(self._distance))
        self.accesses += words.size
        return self

    @property
    def pages(self) -> int:
        """Different pages so far."""
        return int(self._stack.state[1]) if self._stack else -1

    def misses(self, sets: int, ways: int) -> int:
        """Return the misses of a TLB of so many sets and ways.

        Parameters
        ----------
        sets : int
            A power of two, up to `max_sets`.
        ways : int
            1 to 16; with 1 set any number.

        Raises
        ------
        TlbError
            The pass did not cover that geometry.
        """
        if sets == 1 and ways > MAX_WAYS and self._stack:
            return int(self.fully_associative()[min(ways, self.pages)])
        if sets < 1 or sets & (sets - 1) or sets > self.max_sets:
            raise TlbError(f"sets must be a power of two up to {self.max_sets}, not {sets}")
        if not 1 <= ways <= MAX_WAYS:
            raise TlbError(f"ways must be 1 to {MAX_WAYS}, not {ways}")
        return int(self._found[sets.bit_length() - 1, ways:].sum())

    def fully_associative(self) -> npt.NDArray[np.int64]:
        """Return the misses of fully associative TLBs of 0, 1, 2, ... entries: int64[pages + 1].

        The last element is for as many entries as there are pages: each is missed once.

        Raises
        ------
        TlbError
            Made with ``sizes=False``.
        """
        if self._stack is None:
            raise TlbError("made with sizes=False: stack distances were not counted")
        hits = np.cumsum(self._distance[: self.pages])
        return self.accesses - np.concatenate([np.zeros(1, np.int64), hits])

    def table(self) -> pd.DataFrame:
        """Return ``sets``, ``ways``, ``entries``, ``misses``, ``miss_ratio`` of all geometries."""
        rows = [
            (1 << level, ways, ways << level, self.misses(1 << level, ways))
            for level in range(self._found.shape[0])
            for ways in range(1, MAX_WAYS + 1)
        ]
        out = pd.DataFrame(rows, columns=["sets", "ways", "entries", "misses"])
        return out.assign(miss_ratio=out["misses"] / max(self.accesses, 1))


class MissStream:
    """The accesses that a first level misses: what a second level gets to see.

    All second levels behind one first level are then one `Reach` of this stream.

    Parameters
    ----------
    sets, ways : int
        The first level.
    """

    def __init__(self, sets: int, ways: int) -> None:
        if sets < 1 or sets & (sets - 1) or sets > _MOST_SETS or not 1 <= ways <= 1 << 12:
            raise TlbError(f"sets must be a power of two and ways positive, not {sets} and {ways}")
        self._tags = np.full(sets * ways, NO_PAGE, np.uint64)
        self.sets, self.ways = sets, ways

    def of(self, accesses: Pages) -> Pages:
        """Make `accesses`, in order; return those that miss.

        Raises
        ------
        TlbError
            Not all pages have 4 KiB.
        """
        if not accesses.small:
            raise TlbError("a miss stream is defined for pages of 4 KiB")
        out = np.empty(len(accesses), np.uint64)
        n = missed_pages(accesses.words, self._tags, self.sets, self.ways, out)
        return Pages(out[:n].copy(), np.zeros(1, np.uint8), True)


def _new_stack(capacity: int) -> Stack:
    """A stack with room for half as many pages."""
    slots = 2 * capacity
    return Stack(
        np.full(capacity, NO_PAGE, np.uint64),
        np.zeros(capacity, np.int64),
        np.zeros(slots, np.int64),
        np.zeros(slots // 64, np.uint64),
        np.zeros(slots // 64 + 1, np.int64),
        np.zeros(2, np.int64),
        np.full(1, NO_PAGE, np.uint64),
    )


def _grown(old: Stack) -> Stack:
    """A stack with twice the room and the same contents."""
    new = _new_stack(2 * old.keys.size)
    n = old.owner.size
    new.owner[:n] = old.owner
    new.alive[: n // 64] = old.alive
    new.state[:], new.last[:] = old.state, old.last
    rehash(old.keys, old.slots, new)
    counts = np.bitwise_count(new.alive).astype(np.int64)
    sums = np.concatenate([[0], np.cumsum(counts)])
    i = np.arange(1, new.tree.size)
    new.tree[1:] = sums[i] - sums[i & (i - 1)]
    return new


def first_data_levels() -> dict[str, tuple[int, int]]:
    """Return sets and ways of the first level for data of each processor that ships.

    Those are left out that `Reach` does not cover: many ways in several sets.
    """
    out = {}
    for name in geometry_names():
        g = shipped_geometry(name)
        s = g.structure[g.home(1, 0, False)]
        if s.sets == 1 or s.ways <= MAX_WAYS:
            out[name] = (s.sets, s.ways)
    return out
