"""Arguments of walks: checked, and made into arrays that kernels take.

What LAM, UAI and LASS make of addresses: `pvmmu.x86.linear` (SDM vol. 3A §4.2, §4.4).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pvmmu.x86.bits import CR4_CET
from pvmmu.x86.errors import WalkError
from pvmmu.x86.formats import Format
from pvmmu.x86.linear import seen_addresses
from pvmmu.x86.plan import KINDS, SHADOW_READ, SHADOW_WRITE
from pvmmu.x86.registers import Registers
from pvmmu.x86.walk_run import Accesses


def check_words(words: Any) -> None:
    """Raise WalkError unless this is physical memory."""
    if not isinstance(words, np.ndarray) or words.dtype != np.uint64 or words.ndim != 1:
        what = f"{words.dtype} of {words.ndim} dimensions" if isinstance(words, np.ndarray) else ""
        raise WalkError(
            f"words must be a one-dimensional array of uint64, not {what or type(words).__name__}"
        )
    if words.size == 0:
        raise WalkError("words is empty: there is no memory")
    if not words.flags.c_contiguous or not words.flags.writeable or not words.flags.aligned:
        raise WalkError("words must be contiguous, aligned and writable (numpy.memmap: mode 'c')")


def check_owned(owned: Any, registers: Registers) -> np.ndarray | None:
    """Return what the reverse map says of frames (`owned`, bool[frames] or None) for kernels.

    Raises
    ------
    WalkError
        It has a wrong type, or `registers` are of a processor without one.
    """
    if owned is None:
        return None
    a = np.asarray(owned)
    if a.ndim != 1 or a.dtype.kind not in "bu":
        raise WalkError(f"owned must be bool[frames], not {a.dtype} of {a.ndim} dimensions")
    if registers.vendor != "AMD":
        raise WalkError("owned: only AMD's processors have a reverse map (vendor='AMD')")
    return np.ascontiguousarray(a != 0, np.uint8)


def accesses_of(
    fmt: Format, registers: Registers, va: Any, access: Any, user: Any, ac: Any
) -> Accesses:
    """Return accesses as kernels take them; the arguments are `walk_many`'s, `fmt` the format.

    Raises
    ------
    WalkError
        One has a wrong type, shape or value; names it.
    """
    addresses = _addresses(va)
    if not fmt.canonical and addresses.size and int(addresses.max()) >> fmt.width:
        i = int(np.flatnonzero(addresses >> np.uint64(fmt.width))[0])
        raise WalkError(
            f"va[{i}] is {int(addresses[i]):#x}: addresses of {fmt.name} paging have {fmt.width} "
            "bits"
        )
    n = addresses.size
    how = (
        small("access", access, n, len(KINDS) - 1),
        small("user", user, n, 1),
        small("ac", ac, n, 1),
    )
    check_kinds(how[0], registers)
    return Accesses(seen_addresses(registers, addresses, *how), *how)


def check_kinds(kinds: npt.NDArray[np.uint8], registers: Registers) -> None:
    """Raise `WalkError` for accesses (`kinds`: uint8[n]) to shadow stacks without CR4.CET."""
    shadow = (kinds == SHADOW_READ) | (kinds == SHADOW_WRITE)
    if not registers.cr4 & CR4_CET and shadow.any():
        i = int(np.flatnonzero(shadow)[0])
        raise WalkError(f"access {i} is a {KINDS[kinds[i]]}; CR4.CET is 0: there are none")


def _addresses(va: Any) -> np.ndarray:
    a = va if isinstance(va, np.ndarray) else _from_sequence(va)
    if a.ndim != 1:
        raise WalkError(f"va must have one dimension, not {a.ndim}")
    if a.dtype.kind not in "iu" and a.size:
        raise WalkError(f"va must be unsigned integers, not {a.dtype}")
    if a.dtype.kind == "i" and a.size and a.min() < 0:
        i = int(np.flatnonzero(a < 0)[0])
        raise WalkError(f"va[{i}] is negative ({a[i]}); va must be unsigned")
    return np.ascontiguousarray(a, np.uint64)


def _from_sequence(va: Any) -> np.ndarray:
    """Numpy would turn a list of large and small ints into floats."""
    a = np.asarray(va, object)
    for i, x in enumerate(a.ravel()):
        if not isinstance(x, int | np.integer) or not 0 <= x < 1 << 64:
            raise WalkError(f"va[{i}] is {x!r}, not an unsigned integer of 64 bits")
    return a.astype(np.uint64)


def small(name: str, values: Any, n: int, top: int) -> np.ndarray:
    """Return values from 0 to `top` as uint8[n], or say which is wrong."""
    a = np.asarray(values)
    if a.dtype.kind not in "biu":
        raise WalkError(f"{name} must be integers from 0 to {top}, not {a.dtype}")
    if a.shape not in ((), (n,)):
        raise WalkError(f"{name} has shape {a.shape}, va has ({n},)")
    if a.dtype.kind != "b" and a.size and (int(a.max()) > top or int(a.min()) < 0):
        if a.ndim == 0:
            raise WalkError(f"{name} is {a}, not 0 to {top}")
        i = int(np.flatnonzero((a < 0) | (a > top))[0])
        raise WalkError(f"{name}[{i}] is {a[i]}, not 0 to {top}")
    if a.ndim == 0:
        return np.full(n, a, np.uint8)
    return np.ascontiguousarray(a, np.uint8)
