"""Where the parts of an address space are, and the files that are mapped into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pvmmu.guest.linux.machine import Machine
from pvmmu.guest.linux.profile_keys import Par
from pvmmu.guest.linux.vma import PAGE

#: Bytes a stack may grow to (RLIMIT_STACK, 8 MiB).
STACK_LIMIT: Final = 8 << 20
#: Bytes from the end of user addresses to where mappings begin (MIN_GAP, arch/x86/mm/mmap.c).
_MMAP_GAP: Final = 128 << 20


@dataclass(frozen=True)
class File:
    """A file that can be mapped.

    Parameters
    ----------
    name : str
        For messages.
    pages : int
        Its size.
    place : int
        Of its first page in the guest's page cache.
    notify : bool
        Its file system wants to hear of first writes to shared mappings (``page_mkwrite``).
    """

    name: str
    pages: int
    place: int
    notify: bool = False


@dataclass
class Layout:
    """Where the parts of an address space are (bytes).

    Parameters
    ----------
    top : int
        End of user addresses (TASK_SIZE): 3 GiB in 32-bit kernels.
    brk, heap : int
        End and start of the heap.
    vdso_size : int
        Of [vvar] and [vdso].
    stack_random, mmap_random, brk_random, vdso_shift : int
        How far randomisation moves stack and mappings down, heap and vDSO up.
    """

    top: int = (1 << 47) - PAGE
    brk: int = 0
    heap: int = 0
    vdso_size: int = 0
    stack_random: int = 0
    mmap_random: int = 0
    brk_random: int = 0
    vdso_shift: int = 0

    @property
    def mmap_base(self) -> int:
        """Where mappings go, downward (mmap_base of arch/x86/mm/mmap.c)."""
        return self.top - _MMAP_GAP - self.mmap_random

    def placed(self, addresses: np.ndarray) -> np.ndarray:
        """Return addresses of a layout without randomisation where randomisation has put them."""
        out = addresses.copy()
        out[addresses > self.top - STACK_LIMIT] -= self.stack_random
        heap = self.heap - self.brk_random
        out[(addresses >= heap) & (addresses < heap + (1 << 30))] += self.brk_random
        base = self.top - _MMAP_GAP
        vdso = base - self.vdso_size
        out[(addresses < base) & (addresses >= vdso)] += self.vdso_shift
        below = (addresses < vdso) & (addresses >= base - (1 << 36))
        out[below] += (self.vdso_size if self.stack_random else 0) - self.mmap_random
        return out


def new_layout(machine: Machine) -> Layout:
    """Return the layout of an address space of a guest before anything is in it."""
    par = machine.s.par
    size = int(par[Par.VVAR_PAGES] + par[Par.VDSO_PAGES]) * PAGE
    return Layout(0xC000_0000 if machine.format.width == 32 else Layout.top, vdso_size=size)
