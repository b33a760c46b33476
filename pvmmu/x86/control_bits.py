"""Bits of control registers: which have an effect here, which none, which no processor takes.

Every bit of CR0, CR4 and EFER is in exactly one of `EFFECT`, `NO_EFFECT` and the reserved rest;
`refuse` names a register that has one of the rest. A test goes over all of them.

Sources: Intel SDM vol. 3A (325384, edition 083, March 2024) §2.5 with figure 2-7 (CR0, CR4), §2.2.1
(EFER), §4.1 and §4.6 (what paging does with them); AMD APM vol. 2 (24593) §3.1 (CR0, CR3, CR4,
EFER).
"""

from __future__ import annotations

from typing import Final, Literal

from pvmmu.x86.bits import (
    CR0_CD,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_CET,
    CR4_LA57,
    CR4_LAM_SUP,
    CR4_LASS,
    CR4_PAE,
    CR4_PCIDE,
    CR4_PGE,
    CR4_PKE,
    CR4_PKS,
    CR4_PSE,
    CR4_SMAP,
    CR4_SMEP,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_TCE,
    EFER_UAIE,
    mask,
)
from pvmmu.x86.errors import WalkError

Vendor = Literal["Intel", "AMD"]
VENDORS: Final[tuple[Vendor, ...]] = ("Intel", "AMD")

_INTEL_ONLY: Final = CR4_PKS | CR4_LASS | CR4_LAM_SUP

#: (register, vendor) -> bits that this package's walks, faults or flushes depend on.
EFFECT: Final[dict[tuple[str, str], int]] = {
    (register, vendor): bits_
    for vendor in VENDORS
    for register, bits_ in {
        "cr0": CR0_PE | CR0_PG | CR0_WP,
        "cr4": CR4_PSE | CR4_PAE | CR4_PGE | CR4_LA57 | CR4_PCIDE | CR4_SMEP | CR4_SMAP | CR4_PKE
        | CR4_CET | (_INTEL_ONLY if vendor == "Intel" else 0),
        "efer": EFER_LME | EFER_LMA | EFER_NXE
        | (EFER_TCE | EFER_UAIE if vendor == "AMD" else 0),
    }.items()
}  # fmt: skip

#: (register, vendor) -> bits that say nothing of the translation of addresses. CR0: MP, EM, TS, ET,
#: NE, AM, and the reserved ones below bit 32, which MOV ignores; NW and CD concern caches. CR4:
#: VME, PVI, TSD, DE, MCE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, OSXSAVE, FRED, and of Intel's
#: VMXE, SMXE, KL, UINTR. EFER: SCE, and of AMD's SVME, LMSLE, FFXSR, MCOMMIT, INTWB, AIBRSE.
NO_EFFECT: Final[dict[tuple[str, str], int]] = {
    ("cr0", "Intel"): mask("30:17 15:1"),
    ("cr0", "AMD"): mask("30:17 15:1"),
    ("cr4", "Intel"): mask("3:0 6 11:8 13 14 16 18 19 25 32"),
    ("cr4", "AMD"): mask("3:0 6 11:8 16 18 32"),
    ("efer", "Intel"): mask("0"),
    ("efer", "AMD"): mask("0 14:12 17 18 21"),
}


def refuse(register: str, value: int, vendor: str) -> None:
    """Raise `WalkError` if `value` has a bit that no processor of `vendor` takes.

    Parameters
    ----------
    register : {"cr0", "cr4", "efer"}
        Which.
    value : int
        What it is to hold.
    vendor : {"Intel", "AMD"}
        Whose processor.
    """
    name = register.upper()
    wrong = value & ~(EFFECT[register, vendor] | NO_EFFECT[register, vendor])
    if wrong:
        other = next(v for v in VENDORS if v != vendor)
        known = wrong & ~(EFFECT[register, other] | NO_EFFECT[register, other]) == 0
        hint = f" (vendor={other!r} has them)" if known else ""
        raise WalkError(f"{name} {value:#x}: bits {wrong:#x} are reserved on {vendor}{hint}")
    if register == "cr0" and value & CR0_NW and not value & CR0_CD:
        raise WalkError(f"CR0 {value:#x}: NW (bit 29) without CD (bit 30) raises #GP")
