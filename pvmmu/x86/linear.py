"""What a processor makes of a linear address before it walks: LAM, UAI and LASS.

Linear-address masking (SDM vol. 3A §4.4) and AMD's upper-address ignore (APM vol. 2 §5.10) let data
accesses carry a tag in the upper bits; linear-address-space separation (§4.2) tells user from
supervisor addresses by bit 63, without tables. All three are of 64-bit mode.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from pvmmu.x86 import bits
from pvmmu.x86.plan import FETCH, IMPLICIT_READ
from pvmmu.x86.registers import Registers

#: Not canonical in any mode: stands for an address that LASS refuses, for #GP it is, too.
REFUSED: Final = 1 << 63
_TOP: Final = np.uint64(1 << 63)


def seen_addresses(
    registers: Registers,
    va: npt.NDArray[np.uint64],
    kind: npt.NDArray[np.uint8],
    user: npt.NDArray[np.uint8],
    ac: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint64]:
    """Return the addresses that are checked for being canonical and translated: uint64[n].

    Parameters
    ----------
    registers : Registers
        With CR3 as it is at these accesses.
    va : uint64[n]
        Addresses as instructions give them.
    kind, user, ac : uint8[n]
        As of `pvmmu.x86.walk.walk_many`. `REFUSED` stands for those that LASS refuses.
    """
    if not registers.modifies_addresses:
        return va
    out = np.where(kind == FETCH, va, _untagged(registers, va))
    if registers.cr4 & bits.CR4_LASS:
        out = np.where(lass_violations(registers, va, kind, user, ac), np.uint64(REFUSED), out)
    return np.ascontiguousarray(out)


def _untagged(registers: Registers, va: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Replace a tag by copies of the bit below it.

    Bit 63 says whose address it is, and must equal that bit under LAM: it is left alone.
    """
    if registers.efer & bits.EFER_UAIE:
        return _signed(va, 57, _TOP)
    high = va & _TOP != 0
    five = bool(registers.cr4 & bits.CR4_LA57)
    low, out = _user_bits(registers), va
    if low:
        out = np.where(high, out, _signed(va, low, np.uint64(0)))
    if registers.cr4 & bits.CR4_LAM_SUP:
        out = np.where(high, _signed(va, 57 if five else 48, np.uint64(0)), out)
    return out


def _user_bits(registers: Registers) -> int:
    """Bits that LAM leaves of a user's address; 0: it is off."""
    if registers.cr3 & bits.CR3_LAM_U57:
        return 57
    return 48 if registers.cr3 & bits.CR3_LAM_U48 else 0


def _signed(va: npt.NDArray[np.uint64], width: int, top: np.uint64) -> npt.NDArray[np.uint64]:
    """Copy bit width - 1 to bits 62 and up to `width`, and to bit 63 if `top` has it."""
    field = np.uint64(bits.mask(f"62:{width}")) | top
    sign = va >> np.uint64(width - 1) & np.uint64(1) != 0
    return np.where(sign, va | field, va & ~field)


def lass_violations(
    registers: Registers,
    va: npt.NDArray[np.uint64],
    kind: npt.NDArray[np.uint8],
    user: npt.NDArray[np.uint8],
    ac: npt.NDArray[np.uint8],
) -> npt.NDArray[np.bool_]:
    """Return which accesses LASS refuses: bool[n].

    A user may use the lower half only, a supervisor fetch from the upper half only; a supervisor's
    data accesses to the lower half are refused where SMAP is on and EFLAGS.AC is no excuse.

    Parameters
    ----------
    registers, va, kind, user, ac
        As of `seen_addresses`.
    """
    if not registers.long or not registers.cr4 & bits.CR4_LASS:
        return np.zeros(va.shape, np.bool_)
    implicit = kind >= IMPLICIT_READ
    by_user = (user != 0) & ~implicit
    upper = va & _TOP != 0
    smap = bool(registers.cr4 & bits.CR4_SMAP)
    checked = (kind == FETCH) | (smap & ((ac == 0) | implicit))
    return np.asarray(np.where(by_user, upper, ~upper & checked), np.bool_)
