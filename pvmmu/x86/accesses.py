"""Accesses as TLBs and `pvmmu.x86.reach` take them: page by page."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pvmmu.x86.errors import TlbError
from pvmmu.x86.geometry import SHIFTS
from pvmmu.x86.tlb_sets import GLOBAL_BIT, SIZE_SHIFT


@dataclass(frozen=True)
class Pages:
    """Accesses, page by page.

    Attributes
    ----------
    words : uint64[n]
        Number of the 4-KiB page (bits 44:0), number of the page size (46:45: 4K, 2M, 4M, 1G),
        global (47).
    fetch : uint8[n] or uint8[1]
        1 for instruction fetches; one element stands for all.
    small : bool
        All pages have 4 KiB.
    """

    words: npt.NDArray[np.uint64]
    fetch: npt.NDArray[np.uint8]
    small: bool

    def __len__(self) -> int:
        return self.words.size


def pages(
    va: npt.ArrayLike,
    page_shift: npt.ArrayLike = 12,
    global_: npt.ArrayLike = False,
    fetch: npt.ArrayLike = False,
) -> Pages:
    """Return accesses for `Tlb.run`.

    Parameters
    ----------
    va : uint64[n]
        Linear addresses (bytes).
    page_shift : int[n] or int
        The page has ``2 ** page_shift`` bytes: 12, 21, 22 or 30.
    global_, fetch : bool[n] or bool
        Whether the page is global (G and CR4.PGE are set); whether it is an instruction fetch.

    Raises
    ------
    TlbError
        A wrong dtype, shape or page size; names the argument.
    """
    addresses = np.asarray(va)
    if addresses.ndim != 1 or addresses.dtype.kind not in "iu":
        raise TlbError(
            f"va must be one-dimensional unsigned integers, not {addresses.dtype} of "
            f"{addresses.ndim} dimensions"
        )
    if addresses.dtype.kind == "i" and addresses.size and addresses.min() < 0:
        raise TlbError("va has negative elements; it must be unsigned")
    words = (addresses.astype(np.uint64) & np.uint64((1 << 57) - 1)) >> np.uint64(12)
    shifts = _like("page_shift", page_shift, words.size)
    small = bool((shifts == 12).all())
    if not small:
        sizes = np.searchsorted(SHIFTS, shifts)
        wrong = np.flatnonzero(np.asarray((*SHIFTS, 0))[sizes] != shifts)
        if wrong.size:
            raise TlbError(f"page_shift has {shifts[wrong[0]]}; pages have 2 to the 12, 21, 22, 30")
        words |= sizes.astype(np.uint64) << np.uint64(SIZE_SHIFT)
    words |= _like("global_", global_, words.size).astype(bool) * np.uint64(GLOBAL_BIT)
    kinds = _like("fetch", fetch, words.size).astype(bool).astype(np.uint8)
    if kinds.size == 0:
        kinds = np.zeros(1, np.uint8)
    return Pages(words, kinds, small)


def _like(name: str, x: npt.ArrayLike, n: int) -> np.ndarray:
    a = np.asarray(x)
    if a.dtype.kind not in "biu":
        raise TlbError(f"{name} must be integers, not {a.dtype}")
    if a.shape not in ((), (n,)):
        raise TlbError(f"{name} has shape {a.shape}, va has ({n},)")
    return np.atleast_1d(a)
