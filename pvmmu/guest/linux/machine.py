"""The arrays of one guest: made, grown, and handed to kernels until they are done."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Final

import numpy as np

from pvmmu.errors import GuestError
from pvmmu.guest.linux import tables
from pvmmu.guest.linux.gather import GATHERED_CAPACITY
from pvmmu.guest.linux.profile import Profile
from pvmmu.guest.linux.profile_keys import Par
from pvmmu.guest.linux.rows import ASIDS
from pvmmu.guest.linux.state import (
    BEYOND_FILE,
    CPU,
    END,
    ERROR,
    ERROR_AT,
    FILE,
    FINE,
    FRESH,
    MM,
    NO_ACCESS,
    NO_MAPPING,
    NO_MEMORY,
    ROW,
    ROWS,
    SLACK,
    State,
)
from pvmmu.guest.provenance import Platform
from pvmmu.x86 import formats

_FRAME_WORDS: Final = 512
_FORMATS: Final = {
    2: formats.TWO_LEVEL, 3: formats.PAE, 4: formats.FOUR_LEVEL, 5: formats.FIVE_LEVEL
}  # fmt: skip
_MOST_CPUS: Final = 62
_MOST_OF_FILES: Final = 1 << 25  # 128 GiB in all; eight bytes of ours for each page
_WORDS: Final = {
    NO_MEMORY: "out of memory: the guest has {frames:,} frames",
    NO_MAPPING: "nothing is mapped at {at:#x} (SIGSEGV)",
    NO_ACCESS: "the mapping at {at:#x} does not allow this (SIGSEGV)",
    BEYOND_FILE: "{at:#x} is behind the end of its file (SIGBUS)",
}


class Machine:
    """Memory, CPUs and rows of a guest.

    Parameters
    ----------
    profile : Profile
        Its kernel.
    platform : Platform
        What it sees.
    frames : int
        Its memory in frames of 4 KiB. Only tables are backed by memory of ours.
    touches : bool
        Whether touches become rows.
    """

    def __init__(self, profile: Profile, platform: Platform, frames: int, touches: bool) -> None:
        if platform.vcpus > _MOST_CPUS:
            raise GuestError(f"the model has at most {_MOST_CPUS} CPUs, not {platform.vcpus}")
        if not 64 <= frames <= 1 << 28:
            raise GuestError(f"a guest has 64 to 2**28 frames of memory, not {frames}")
        self.profile, self.platform, self.frames = profile, platform, frames
        self.callers: dict[str, int] = {}
        self.format = _FORMATS[platform.levels]
        par, steps = profile.pack(self.callers)
        _set_platform(par, platform, touches)
        words = _sparse_words(frames)
        cpus = platform.vcpus
        self.s = State(
            out=np.empty(1 << 14, ROW),
            n=np.zeros(8, np.int64),
            words=words,
            words32=words.view(np.uint32),
            fmt=tables.pack_format(self.format),
            kind=np.zeros(frames, np.uint8),
            maps=np.zeros(frames, np.int32),
            pool=np.zeros((2 * cpus, int(par[Par.HIGH] + par[Par.BATCH]) + 2), np.int64),
            pool_n=np.zeros(2 * cpus, np.int64),
            zone=np.array([2, frames, 0], np.int64),
            returned=np.empty(frames, np.int64),
            cpus=np.zeros(cpus, CPU),
            mms=np.zeros(64, MM),
            context_mm=np.full((cpus, ASIDS), -1, np.int32),
            context_generation=np.zeros((cpus, ASIDS), np.int64),
            cache=np.empty(0, np.int64),
            par=par,
            steps=steps,
            gather=np.zeros(8, np.int64),
            gathered=np.empty(GATHERED_CAPACITY, np.int64),
        )
        self.last_mm = 0  # init_mm
        # Frame 1 is the zero page; frame 0 is never used.
        if par[Par.ZERO_PAGE]:
            par[Par.ZERO_PAGE] = 1 << 12

    # ------------------------------------------------------------------ kernels
    def until(self, start: int, end: int, kernel: Callable[..., int]) -> None:
        """Call ``kernel(state, at)`` from `start` on until it has come to `end`.

        Raises
        ------
        GuestError
            It met what cannot be done.
        """
        at = start
        while at < end:
            if len(self.s.out) - self.s.n[ROWS] < 2 * SLACK:
                self._grow()
            at = kernel(self.s, at)
            self.check()

    def reserve(self) -> State:
        """Return the state with room for the rows of one step."""
        if len(self.s.out) - self.s.n[ROWS] < 2 * SLACK:
            self._grow()
        return self.s

    def _grow(self) -> None:
        bigger = np.empty(max(2 * len(self.s.out), 4 * SLACK), ROW)
        n = int(self.s.n[ROWS])
        bigger[:n] = self.s.out[:n]
        self.s = self.s._replace(out=bigger)

    def check(self) -> None:
        """Raise what a kernel noted.

        Raises
        ------
        GuestError
            Out of memory, or an access that the kernel answers with a signal.
        """
        error = int(self.s.n[ERROR])
        if error != FINE:
            self.s.n[ERROR] = FINE
            at = int(self.s.n[ERROR_AT])
            raise GuestError(_WORDS[error].format(frames=self.frames, at=at))

    # ------------------------------------------------------------------ what is in memory
    def new_mm(self) -> int:
        """Return the number of a new address space."""
        self.last_mm += 1
        if self.last_mm >= len(self.s.mms):
            self.s = self.s._replace(mms=np.concatenate([self.s.mms, np.zeros_like(self.s.mms)]))
        return self.last_mm

    def new_file(self, pages: int, cached: bool) -> int:
        """Return the place of a new file's first page in the page cache."""
        place = len(self.s.cache)
        first, end = int(self.s.zone[FRESH]), int(self.s.zone[END])
        if cached and first + pages > end:
            raise GuestError(_WORDS[NO_MEMORY].format(frames=self.frames))
        if place + pages > _MOST_OF_FILES:
            raise GuestError(
                f"the model's files have at most {_MOST_OF_FILES:,} pages together, not "
                f"{place + pages:,}"
            )
        frames = np.full(pages, -1, np.int64)
        if cached:
            frames = np.arange(first, first + pages)
            self.s.zone[FRESH] += pages
            self.s.kind[frames] = FILE
        self.s = self.s._replace(cache=np.concatenate([self.s.cache, frames]))
        return place


def _set_platform(par: np.ndarray, platform: Platform, touches: bool) -> None:
    par[Par.USER_GLOBAL] = platform.user_global
    par[Par.PCID] = platform.pcid
    par[Par.HIGH_TABLES] = platform.highpte
    par[Par.TABLES_BY_RCU] = platform.tables_by_rcu
    par[Par.TOUCHES] = touches
    if platform.levels == 2:
        par[Par.NO_EXECUTE] = 0  # entries of 32 bits have no such bit
    if platform.vcpus == 1 and par[Par.GATHER_AT_ONCE]:
        par[Par.GATHER_PAGES] = 0  # tlb_fast_mode
    par[Par.LAZY_MAX] *= int(platform.vcpus).bit_length()


def _sparse_words(frames: int) -> np.ndarray:
    """Return the words of memory, backed page by page as they are written."""
    size = frames * _FRAME_WORDS * 8
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    try:
        return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.int64)
    except OSError as e:
        raise GuestError(f"a guest of {frames:,} frames cannot be set up: {e.strerror}") from None
