"""Physical memory as words, and page tables built in it, in any format."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pvmmu.x86 import bits
from pvmmu.x86.bits import mask
from pvmmu.x86.errors import WalkError
from pvmmu.x86.formats import Format, Level, Page
from pvmmu.x86.registers import Ept, Npt, Registers

FRAME_BYTES = 4096
FRAME_WORDS = FRAME_BYTES // 8


class Memory:
    """Physical memory of whole frames.

    Parameters
    ----------
    frames : int
        Size.
    seed : int, optional
        Frames are handed out in a random order; without it from frame 1 up. Frame 0 is kept back.

    Attributes
    ----------
    words : uint64[512 * frames]
        Element *i* holds the bytes 8 *i* to 8 *i* + 7.
    """

    def __init__(self, frames: int, seed: int | None = None) -> None:
        if frames < 2:
            raise WalkError(f"a memory has at least 2 frames, not {frames}")
        self.words: npt.NDArray[np.uint64] = np.zeros(frames * FRAME_WORDS, np.uint64)
        self.frames = frames
        self._free = np.arange(frames - 1, 0, -1)
        if seed is not None:
            np.random.default_rng(seed).shuffle(self._free)

    def allocate(self, count: int = 1) -> npt.NDArray[np.int64]:
        """Return the numbers of `count` frames, zeroed, that are in no other use: int64[count].

        Raises
        ------
        WalkError
            There are not so many left.
        """
        if count > self._free.size:
            raise WalkError(
                f"no {count} frames left in a memory of {self.frames} ({self._free.size} are free)"
            )
        out = self._free[self._free.size - count :][::-1].copy()
        self._free = self._free[: self._free.size - count]
        self.words.reshape(-1, FRAME_WORDS)[out] = 0
        return out

    def release(self, frames: npt.ArrayLike) -> None:
        """Give `frames` (int64[n], or one) back; contents stay until they are handed out again."""
        self._free = np.append(self._free, np.atleast_1d(frames))

    @property
    def used(self) -> npt.NDArray[np.int64]:
        """Numbers of the frames handed out, ascending: int64[n]."""
        return np.setdiff1d(np.arange(1, self.frames), self._free)


class Tables:
    """Page tables of one address space.

    Parameters
    ----------
    memory : Memory
        Where they are, and where new tables are allocated.
    fmt : Format
        Their format.
    maxphyaddr : int
        Which address bits an entry has room for.

    Examples
    --------
    >>> tables = Tables(Memory(64), formats.FOUR_LEVEL)
    >>> tables.map(0x400000, 0x5000)
    >>> r = walk_many(tables.memory.words, tables.registers(), [0x400123])
    """

    def __init__(self, memory: Memory, fmt: Format, maxphyaddr: int = 40) -> None:
        self.memory, self.format, self.maxphyaddr = memory, fmt, maxphyaddr
        self.root = int(memory.allocate()[0]) * FRAME_BYTES
        self._m = min(maxphyaddr, fmt.max_physical)

    # ------------------------------------------------------------------ entries
    @property
    def all_rights(self) -> int:
        """Flags of an entry that allows everything."""
        f = self.format
        return mask(f"{f.present} {f.write} {f.user} {f.execute}") & ~mask(f.no_execute)

    def page_flags(self) -> int:
        """Flags that `map` gives an entry that maps a page, unless told otherwise."""
        write_back = 6 << 3 if self.format.bad_types else 0  # EPT: the memory type
        return self.all_rights | write_back

    def load(self, at: int) -> int:
        """Return the entry `at` a physical address (bytes)."""
        if self.format.entry_bytes == 4:
            return int(self.memory.words.view(np.uint32)[at // 4])
        return int(self.memory.words[at // 8])

    def store(self, at: npt.ArrayLike, entry: npt.ArrayLike) -> None:
        """Write `entry` (uint64[n], or one) `at` physical addresses (uint64[n] or one, bytes)."""
        if self.format.entry_bytes == 4:
            self.memory.words.view(np.uint32)[np.asarray(at, np.int64) // 4] = entry
        else:
            self.memory.words[np.asarray(at, np.int64) // 8] = entry

    def entry_at(self, va: int, level: int = 1) -> int:
        """Return the physical address (bytes) of the entry that translates `va` (bytes) at `level`.

        Raises
        ------
        WalkError
            There is no table at that level: an entry above is not present or maps a page.
        """
        table = self.root
        for x in self.format.levels:
            at = table + (va >> x.shift & (1 << x.bits) - 1) * self.format.entry_bytes
            if x.number == level:
                return at
            entry = self.load(at)
            if not entry & mask(self.format.present) or (x.page and entry & bits.PS):
                raise WalkError(
                    f"va {va:#x} has no table at level {level}: {x.entry} is {entry:#x}"
                )
            table = entry & mask(x.address, self._m)
        raise WalkError(f"{self.format.name} has no level {level}")

    # ------------------------------------------------------------------ mapping
    def map(
        self,
        va: npt.ArrayLike,
        pa: npt.ArrayLike,
        shift: int = 12,
        flags: int | None = None,
        table_flags: int | None = None,
    ) -> None:
        """Map pages; tables on the way are made where there are none.

        Parameters
        ----------
        va, pa : uint64[n] or int
            Addresses of the pages (bytes), aligned to their size.
        shift : int
            The pages have ``2 ** shift`` bytes: 12, 21 (22 in 32-bit paging) or 30.
        flags, table_flags : int, optional
            Flags of the entries that map the pages and of new tables; all rights by default.

        Raises
        ------
        WalkError
            The format has no such pages, an address is misaligned or too large, or a page is in
            the way of a table.
        """
        f = self.format
        target = next((x for x in f.levels if x.shift == shift and x.page), None)
        if target is None or target.page is None:
            raise WalkError(f"{f.name} paging has no pages of 2**{shift} bytes")
        vas = np.atleast_1d(np.asarray(va, np.uint64)) & np.uint64(mask(f"{f.width - 1}:0"))
        pas = np.broadcast_to(np.atleast_1d(np.asarray(pa, np.uint64)), vas.shape)
        self._check(target, target.page, vas, pas)
        tables = self._reach(vas, target, table_flags)
        flags = self.page_flags() if flags is None else flags
        if target.number > 1:
            flags |= bits.PS
        index = vas >> np.uint64(target.shift) & np.uint64((1 << target.bits) - 1)
        low = pas & np.uint64(mask(target.page.address, self._m))
        high = pas >> np.uint64(19) & np.uint64(mask(target.page.high, self._m))
        self.store(tables + index * np.uint64(f.entry_bytes), low | high | np.uint64(flags))

    def _check(self, level: Level, page: Page, vas: np.ndarray, pas: np.ndarray) -> None:
        room = mask(page.address, self._m) | mask(page.high, self._m) << 19
        for name, a, wrong in (
            ("va", vas, vas & np.uint64((1 << level.shift) - 1)),
            ("pa", pas, pas & np.uint64(bits.XD * 2 - 1 ^ room)),
        ):
            if wrong.any():
                i = int(np.flatnonzero(wrong)[0])
                raise WalkError(
                    f"{name}[{i}] is {int(a[i]):#x}: no address of a page of 2**{level.shift} bytes"
                )

    def _reach(self, vas: np.ndarray, target: Level, table_flags: int | None) -> np.ndarray:
        """Physical address of the table at the target's level for each address."""
        f = self.format
        tables = np.full(vas.shape, self.root, np.uint64)
        for x in f.levels:
            if x is target:
                break
            index = vas >> np.uint64(x.shift) & np.uint64((1 << x.bits) - 1)
            at, inverse = np.unique(tables + index * np.uint64(f.entry_bytes), return_inverse=True)
            entries = np.array([self.load(int(a)) for a in at], np.uint64)
            if x.page and (entries & np.uint64(bits.PS)).any():
                raise WalkError(f"a {x.entry} on the way maps a page")
            missing = np.flatnonzero(entries & np.uint64(mask(f.present)) == 0)
            flags = self.all_rights if table_flags is None else table_flags
            if not x.rights:
                flags &= mask(f.present)
            frames = self.memory.allocate(missing.size).astype(np.uint64)
            entries[missing] = frames * np.uint64(FRAME_BYTES) | np.uint64(flags)
            self.store(at[missing], entries[missing])
            tables = (entries & np.uint64(mask(x.address, self._m)))[inverse]
        return tables

    def unmap(self, va: int, level: int = 1) -> None:
        """Clear the entry that translates `va` (bytes) at `level`."""
        self.store(self.entry_at(va, level), 0)

    # ------------------------------------------------------------------ registers
    def registers(self, **changes: Any) -> Registers:
        """Return registers of a kernel that uses these tables; `changes` replace some.

        WP, NXE, SMEP, SMAP and PGE are on, as Linux has them.
        """
        f = self.format
        cr4 = bits.CR4_PSE | bits.CR4_PGE | bits.CR4_SMEP | bits.CR4_SMAP
        efer = 0
        if f.entry_bytes == 8:
            cr4, efer = cr4 | bits.CR4_PAE, bits.EFER_NXE
        if f.canonical:
            efer |= bits.EFER_LME | bits.EFER_LMA
            cr4 |= bits.CR4_LA57 if f.width == 57 else 0
        kept = {
            "cr0": bits.CR0_PG | bits.CR0_PE | bits.CR0_WP,
            "cr3": self.root,
            "cr4": cr4,
            "efer": efer,
            "maxphyaddr": self.maxphyaddr,
        }
        return Registers(**{**kept, **changes})

    def second(self, keeps_flags: bool = True) -> Ept | Npt:
        """Return the second dimension that these tables make.

        Parameters
        ----------
        keeps_flags : bool
            EPT: accessed and dirty flags are kept (NPT always keeps them).
        """
        if not self.format.bad_types:
            return Npt(self.registers())
        levels = len(self.format.levels) - 1
        flags = bits.EPTP_AD if keeps_flags else 0
        return Ept(self.root | levels << 3 | 6 | flags, self.maxphyaddr)


def nest(guest: Memory, host: Memory, fmt: Format, shift: int = 12, maxphyaddr: int = 40) -> Tables:
    """Put a guest's memory into a host's: copy it, and build the second dimension.

    Parameters
    ----------
    guest, host : Memory
        The guest's frames get frames of the host's, one by one or in pages of ``2 ** shift`` bytes.
    fmt : Format
        Format of the second dimension.
    shift : int
        Size of its pages; above 12 the host's pages are contiguous and aligned.
    maxphyaddr : int
        Physical-address bits of the second dimension.

    Returns
    -------
    Tables
        The second dimension, mapping guest-physical address 0 up.

    Raises
    ------
    WalkError
        The host's memory has not so many free frames, or runs of them.
    """
    per_page = 1 << shift - 12
    pages = -(-guest.frames // per_page)
    if shift == 12:
        first = host.allocate(pages)
    else:
        spare = np.setdiff1d(np.arange(1, host.frames), host.used)
        runs = spare.reshape(-1)[spare % per_page == 0]
        runs = np.array([r for r in runs if r + per_page <= host.frames][:pages], np.int64)
        if runs.size < pages:
            raise WalkError(f"no {pages} free runs of {per_page} frames in the host's memory")
        taken = (runs[:, None] + np.arange(per_page)).ravel()
        if np.setdiff1d(taken, spare).size:
            raise WalkError(f"no {pages} free runs of {per_page} frames in the host's memory")
        host._free = np.setdiff1d(host._free, taken)
        first = runs
    frames = (first[:, None] + np.arange(per_page)).ravel()[: guest.frames]
    host.words.reshape(-1, FRAME_WORDS)[frames] = guest.words.reshape(-1, FRAME_WORDS)
    tables = Tables(host, fmt, maxphyaddr)
    page = np.uint64(1 << shift)
    tables.map(
        np.arange(pages, dtype=np.uint64) * page, first.astype(np.uint64) * FRAME_BYTES, shift
    )
    return tables
