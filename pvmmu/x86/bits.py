"""Names of bits, as in the Intel SDM vol. 3A (edition 077, April 2022), ch. 2 and 4.

`mask` reads bit ranges the way the manual's tables write them, so that formats can be typed in
from the tables: ``mask("51:M 7", 40)`` is bits 51 to 40 and bit 7.
"""

from __future__ import annotations

import re
from typing import Final

CR0_PE: Final = 1 << 0
CR0_WP: Final = 1 << 16
CR0_NW: Final = 1 << 29
CR0_CD: Final = 1 << 30
CR0_PG: Final = 1 << 31

CR3_LAM_U57: Final = 1 << 61
CR3_LAM_U48: Final = 1 << 62
CR3_NOFLUSH: Final = 1 << 63

CR4_PSE: Final = 1 << 4
CR4_PAE: Final = 1 << 5
CR4_PGE: Final = 1 << 7
CR4_LA57: Final = 1 << 12
CR4_PCIDE: Final = 1 << 17
CR4_SMEP: Final = 1 << 20
CR4_SMAP: Final = 1 << 21
CR4_PKE: Final = 1 << 22
CR4_CET: Final = 1 << 23
CR4_PKS: Final = 1 << 24
CR4_LASS: Final = 1 << 27
CR4_LAM_SUP: Final = 1 << 28

EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NXE: Final = 1 << 11
EFER_TCE: Final = 1 << 15
EFER_UAIE: Final = 1 << 20

# Entries of the formats that a kernel uses (SDM vol. 3A, figures 4-4, 4-7, 4-11).
P: Final = 1 << 0
RW: Final = 1 << 1
US: Final = 1 << 2
PWT: Final = 1 << 3
PCD: Final = 1 << 4
A: Final = 1 << 5
D: Final = 1 << 6
PS: Final = 1 << 7
G: Final = 1 << 8
XD: Final = 1 << 63
#: Protection key of an entry that maps a page, and where it begins.
KEY_SHIFT: Final = 59
KEY: Final = 0xF << KEY_SHIFT

# Entries of EPT (SDM vol. 3C §28.3.2).
EPT_R: Final = 1 << 0
EPT_W: Final = 1 << 1
EPT_X: Final = 1 << 2
EPT_A: Final = 1 << 8
EPT_D: Final = 1 << 9
EPTP_AD: Final = 1 << 6
EPTP_SSS: Final = 1 << 7

# Error code of a page fault (SDM vol. 3A §4.7).
PF_P: Final = 1 << 0
PF_WR: Final = 1 << 1
PF_US: Final = 1 << 2
PF_RSVD: Final = 1 << 3
PF_ID: Final = 1 << 4
PF_PK: Final = 1 << 5
PF_SS: Final = 1 << 6
PF_RMP: Final = 1 << 31  # APM vol. 2 §8.4.2

_WORD = re.compile(r"(M|\d+)(-\d+)?(?::(M|\d+)(-\d+)?)?")


def mask(ranges: str, m: int = 52) -> int:
    """Return the mask of some bits.

    Parameters
    ----------
    ranges : str
        ``high:low`` or single bits, separated by blanks; a bit is a number, ``M``, or ``M`` less a
        number. A range whose low end is above its high end has no bits.
    m : int
        What ``M`` stands for: MAXPHYADDR.
    """
    out = 0
    for word in ranges.split():
        part = _WORD.fullmatch(word)
        if part is None:
            raise ValueError(f"not a bit range: {word!r}")
        high = _bit(part[1], part[2], m)
        low = high if part[3] is None else _bit(part[3], part[4], m)
        out |= sum(1 << b for b in range(low, high + 1))
    return out


def _bit(base: str, less: str | None, m: int) -> int:
    return (m if base == "M" else int(base)) + int(less or 0)
