"""The registers that decide how an address is translated, checked as a processor would."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from pvmmu.x86 import bits, formats
from pvmmu.x86.bits import mask
from pvmmu.x86.errors import WalkError
from pvmmu.x86.formats import Format

VENDORS: Final = ("Intel", "AMD")


def integers(obj: Any, names: tuple[str, ...]) -> None:
    """Turn fields of a frozen dataclass into unsigned 64-bit ints, or say which is none."""
    for name in names:
        try:
            value = operator.index(getattr(obj, name))
        except TypeError:
            raise WalkError(f"{name} is not an integer: {getattr(obj, name)!r}") from None
        if not 0 <= value < 1 << 64:
            raise WalkError(f"{name} does not fit into 64 bits: {value:#x}")
        object.__setattr__(obj, name, value)


@dataclass(frozen=True)
class Registers:
    """Control registers and what CPUID says of paging.

    Parameters
    ----------
    cr0, cr3, cr4, efer : int
        As in the processor. Paging must be on (CR0.PG and CR0.PE).
    maxphyaddr : int
        CPUID.80000008H:EAX[7:0], 32 to 52: address bits from here up are reserved.
    pse36, page1gb : bool
        CPUID: 4-MiB pages above 4 GiB in 32-bit paging; 1-GiB pages.
    pdptes : tuple of 4 int, optional
        PAE paging: the PDPTE registers. Without them they are loaded from memory at CR3, as MOV to
        CR3 does.

    vendor : {"Intel", "AMD"}
        Whose processor: AMD's reserve bit 8 in entries of the upper levels (`formats.Level`).

    Raises
    ------
    WalkError
        Names the register and bit that no processor would take.

    Notes
    -----
    Protection keys, CET and HLAT are not modelled: their bits of CR4 are ignored, which is right as
    long as PKRU is 0 and no shadow stack is used.
    """

    cr0: int
    cr3: int
    cr4: int = 0
    efer: int = 0
    maxphyaddr: int = 40
    pse36: bool = True
    page1gb: bool = True
    pdptes: tuple[int, int, int, int] | None = None
    vendor: Literal["Intel", "AMD"] = "Intel"

    def __post_init__(self) -> None:
        integers(self, ("cr0", "cr3", "cr4", "efer", "maxphyaddr"))
        if not 32 <= self.maxphyaddr <= 52:
            raise WalkError(f"maxphyaddr must be 32 to 52, not {self.maxphyaddr}")
        if self.vendor not in VENDORS:
            raise WalkError(f"vendor must be one of {', '.join(VENDORS)}, not {self.vendor!r}")
        if not self.cr0 & bits.CR0_PG or not self.cr0 & bits.CR0_PE:
            raise WalkError(f"paging is off: CR0 {self.cr0:#x} lacks PG (bit 31) or PE (bit 0)")
        if self.long and not self.cr4 & bits.CR4_PAE:
            raise WalkError("no such paging mode: EFER.LMA is set, CR4.PAE is not")
        if self.cr4 & bits.CR4_PCIDE and not self.long:
            raise WalkError("CR4.PCIDE is set outside of IA-32e mode")
        if self.pdptes is not None:
            self._check_pdptes(self.pdptes)
        self.check_cr3(self.cr3)

    def check_cr3(self, cr3: int) -> None:
        """Raise `WalkError` if `cr3` has bits that this mode does not take.

        Bits below the address are flags, a PCID, or ignored (SDM vol. 3A tables 4-3, 4-7, 4-12).
        """
        top = "M-1:12" if self.long else ("31:5" if self.format is formats.PAE else "31:12")
        wrong = cr3 & ~mask(f"{top} 11:0", self.maxphyaddr)
        if wrong:
            raise WalkError(
                f"CR3 {cr3:#x}: bits {wrong:#x} are neither the address of a table "
                f"({self.format.name} paging, MAXPHYADDR {self.maxphyaddr}: bits {top}) nor flags"
            )

    def _check_pdptes(self, pdptes: tuple[int, ...]) -> None:
        if self.format is not formats.PAE:
            raise WalkError(f"pdptes are given, but paging is {self.format.name}")
        if len(pdptes) != 4:
            raise WalkError(f"pdptes must be 4 entries, not {len(pdptes)}")
        self.check_pdptes(pdptes)

    def check_pdptes(self, pdptes: tuple[int, ...]) -> None:
        """Raise `WalkError` where MOV to CR3 of `pdptes` would raise #GP (SDM vol. 3A §4.4.1)."""
        reserved = mask(formats.PAE.levels[0].reserved, self.maxphyaddr)
        for i, e in enumerate(pdptes):
            if e & bits.P and e & reserved:
                raise WalkError(
                    f"PDPTE{i} is {e:#x}: reserved bits {e & reserved:#x} are set; MOV to CR3 "
                    "raises #GP"
                )

    @property
    def long(self) -> bool:
        """Whether IA-32e mode is active (EFER.LMA, which PG and LME imply)."""
        return bool(self.efer & (bits.EFER_LMA | bits.EFER_LME))

    @property
    def format(self) -> Format:
        """Format of the page tables (SDM vol. 3A §4.1.1)."""
        if self.long:
            return formats.FIVE_LEVEL if self.cr4 & bits.CR4_LA57 else formats.FOUR_LEVEL
        return formats.PAE if self.cr4 & bits.CR4_PAE else formats.TWO_LEVEL

    @property
    def root(self) -> int:
        """Physical address of the root table (bytes)."""
        return root_of(self.cr3, self.format)

    @property
    def pcid(self) -> int:
        """Process-context identifier in CR3; 0 without CR4.PCIDE."""
        return self.cr3 & 0xFFF if self.cr4 & bits.CR4_PCIDE else 0

    @property
    def nxe(self) -> bool:
        """Whether XD bits work: EFER.NXE, and entries of 8 bytes."""
        return bool(self.efer & bits.EFER_NXE) and self.format.entry_bytes == 8

    def features(self) -> frozenset[str]:
        """Names of the features on which `formats.Page` depends."""
        on = {"PSE": bool(self.cr4 & bits.CR4_PSE), "PAGE1GB": self.page1gb}
        return frozenset(name for name, present in on.items() if present)


def root_of(cr3: int, fmt: Format) -> int:
    """Return the physical address of the root table that CR3 names (bytes)."""
    return cr3 & (mask("31:5") if fmt.width == 32 and fmt.entry_bytes == 8 else mask("51:12"))


@dataclass(frozen=True)
class Ept:
    """Intel's second dimension: extended page tables (SDM vol. 3C §28.3).

    Parameters
    ----------
    eptp : int
        EPT pointer: bits 5:3 are the levels less one (3 or 4), bit 6 switches accessed and dirty
        flags on, the root's physical address starts at bit 12.
    maxphyaddr : int
        Of the host.
    execute_only, page1gb : bool
        IA32_VMX_EPT_VPID_CAP: entries may be executable and not readable; 1-GiB pages.

    Raises
    ------
    WalkError
        VM entry would refuse the pointer.
    """

    eptp: int
    maxphyaddr: int = 40
    execute_only: bool = True
    page1gb: bool = True

    def __post_init__(self) -> None:
        integers(self, ("eptp", "maxphyaddr"))
        if not 32 <= self.maxphyaddr <= 52:
            raise WalkError(f"maxphyaddr must be 32 to 52, not {self.maxphyaddr}")
        if self.eptp & 7 not in (0, 6):
            raise WalkError(f"EPTP {self.eptp:#x}: memory type (bits 2:0) must be 0 or 6")
        if self.eptp >> 3 & 7 not in (3, 4):
            raise WalkError(f"EPTP {self.eptp:#x}: bits 5:3 must be 3 (4 levels) or 4 (5 levels)")
        wrong = self.eptp & mask("63:M 11:7", self.maxphyaddr)
        if wrong:
            raise WalkError(f"EPTP {self.eptp:#x}: reserved bits {wrong:#x} are set")

    @property
    def format(self) -> Format:
        """Format of the tables."""
        return formats.EPT_FIVE_LEVEL if self.eptp >> 3 & 7 == 4 else formats.EPT_FOUR_LEVEL

    @property
    def root(self) -> int:
        """Physical address of the root table (bytes)."""
        return self.eptp & mask("51:12")

    @property
    def keeps_flags(self) -> bool:
        """Whether accessed and dirty flags are kept."""
        return bool(self.eptp & bits.EPTP_AD)

    @property
    def nxe(self) -> bool:
        """EPT has no bit that forbids execution, so none that is reserved without NXE."""
        return True

    @property
    def vendor(self) -> Literal["Intel"]:
        """EPT is Intel's."""
        return "Intel"

    def features(self) -> frozenset[str]:
        """Names of the features on which `formats.Page` depends."""
        return frozenset({"PAGE1GB"} if self.page1gb else ())


@dataclass(frozen=True)
class Npt:
    """AMD's second dimension: nested page tables (APM vol. 2 §15.25).

    Parameters
    ----------
    host : Registers
        The host's registers at VMRUN, with nCR3 as CR3: they choose the format of the nested
        tables. Accesses of the guest are user accesses to them, and accesses to the guest's tables
        are writes. The host is AMD's, whatever its ``vendor`` says.
    """

    host: Registers

    def __post_init__(self) -> None:
        if not isinstance(self.host, Registers):
            raise WalkError(f"Npt takes the host's Registers, not {type(self.host).__name__}")
        if self.host.vendor != "AMD":
            object.__setattr__(self, "host", replace(self.host, vendor="AMD"))

    @property
    def format(self) -> Format:
        """Format of the tables; PDPTEs of a PAE host are in memory, too."""
        return formats.PAE_IN_MEMORY if self.host.format is formats.PAE else self.host.format

    @property
    def root(self) -> int:
        """Physical address of the root table (bytes)."""
        return self.host.root


def replace(registers: Registers, **changes: Any) -> Registers:
    """Return registers with some changed; PDPTE registers are dropped when CR3 changes."""
    kept = {f.name: getattr(registers, f.name) for f in fields(registers)}
    if "cr3" in changes and "pdptes" not in changes:
        kept["pdptes"] = None
    return Registers(**{**kept, **changes})
