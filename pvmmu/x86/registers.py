"""The registers that decide how an address is translated, checked as a processor would."""

from __future__ import annotations

import operator
from dataclasses import dataclass, fields
from typing import Any, Final

from pvmmu.errors import did_you_mean
from pvmmu.x86 import bits, formats
from pvmmu.x86.bits import mask
from pvmmu.x86.control_bits import VENDORS, Vendor, refuse
from pvmmu.x86.errors import WalkError
from pvmmu.x86.formats import Format

#: VM-execution controls that concern EPT and that walks know (SDM vol. 3C §25.6.2) ...
EPT_CONTROLS: Final = ("mode-based execute",)
#: ... and those that they do not, which are refused. Bits of entries that only these give a meaning
#: are ignored without them: 57, 58, 60, 61 and 63 (SDM vol. 3C tables 29-1 to 29-7).
NO_EPT_CONTROLS: Final = (
    "EPT-violation #VE", "sub-page write permissions", "paging-write", "guest-paging verification",
    "HLAT", "supervisor shadow-stack",
)  # fmt: skip


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
        Whose processor: AMD's reserve bit 8 in entries of the upper levels (`formats.Level`), have
        UAI and TCE, and know no PKS, LASS and LAM.
    pkru, pkrs : int
        Rights of protection keys, of user pages (with CR4.PKE) and supervisor pages (CR4.PKS): bit
        2k forbids data accesses to pages of key k, bit 2k + 1 writes. IA-32e mode only.
    c_bit, reduction : int
        AMD, SME and SEV: the bit of an entry that says that a page is encrypted, not address
        (CPUID 8000001FH:EBX[5:0]), 0 for none; by how much it shortens physical addresses
        (EBX[11:6]), whose bits are reserved then. `words` are memory as the processor reads it,
        decrypted.

    Raises
    ------
    WalkError
        Names the register and bit that no processor would take.

    Notes
    -----
    `pvmmu.x86.control_bits` says of each bit of CR0, CR4 and EFER whether it has an effect. Outside
    of IA-32e mode CR4.LA57, PKE, PKS, LASS and LAM_SUP have none. GMET and supervisor shadow stacks
    in nested tables are controls of a VMCB, taken as off.
    """

    cr0: int
    cr3: int
    cr4: int = 0
    efer: int = 0
    maxphyaddr: int = 40
    pse36: bool = True
    page1gb: bool = True
    pdptes: tuple[int, int, int, int] | None = None
    vendor: Vendor = "Intel"
    pkru: int = 0
    pkrs: int = 0
    c_bit: int = 0
    reduction: int = 0

    def __post_init__(self) -> None:
        integers(self, (
            "cr0", "cr3", "cr4", "efer", "maxphyaddr", "pkru", "pkrs", "c_bit", "reduction",
        ))  # fmt: skip
        if not 32 <= self.maxphyaddr <= 52:
            raise WalkError(f"maxphyaddr must be 32 to 52, not {self.maxphyaddr}")
        if self.vendor not in VENDORS:
            raise WalkError(f"vendor must be one of {', '.join(VENDORS)}, not {self.vendor!r}")
        for register in ("cr0", "cr4", "efer"):
            refuse(register, getattr(self, register), self.vendor)
        for name in ("pkru", "pkrs"):
            if getattr(self, name) >> 32:
                raise WalkError(f"{name} has 32 bits: {getattr(self, name):#x} does not fit")
        if not self.cr0 & bits.CR0_PG or not self.cr0 & bits.CR0_PE:
            raise WalkError(f"paging is off: CR0 {self.cr0:#x} lacks PG (bit 31) or PE (bit 0)")
        if self.long and not self.cr4 & bits.CR4_PAE:
            raise WalkError("no such paging mode: EFER.LMA is set, CR4.PAE is not")
        if self.cr4 & bits.CR4_PCIDE and not self.long:
            raise WalkError("CR4.PCIDE is set outside of IA-32e mode")
        if self.cr4 & bits.CR4_CET and not self.cr0 & bits.CR0_WP:
            raise WalkError("CR4.CET is set without CR0.WP: MOV raises #GP")
        self._check_encryption()
        if self.pdptes is not None:
            self._check_pdptes(self.pdptes)
        self.check_cr3(self.cr3)

    def check_cr3(self, cr3: int) -> None:
        """Raise `WalkError` if `cr3` has bits that this mode does not take.

        Bits below the address are flags, a PCID, or ignored (SDM vol. 3A tables 4-3, 4-7, 4-12).
        Bits 62:61 are LAM's, of Intel's processors (§4.4).
        """
        top = "M-1:12" if self.long else ("31:5" if self.format is formats.PAE else "31:12")
        wrong = cr3 & ~(mask(f"{top} 11:0", self.physical_bits) | self.encrypted)
        if self.long and self.vendor == "Intel":
            wrong &= ~(bits.CR3_LAM_U57 | bits.CR3_LAM_U48)
        if wrong:
            raise WalkError(
                f"CR3 {cr3:#x}: bits {wrong:#x} are neither the address of a table "
                f"({self.format.name} paging, MAXPHYADDR {self.physical_bits}: bits {top}) nor "
                "flags"
            )

    def _check_encryption(self) -> None:
        if (self.c_bit or self.reduction) and self.vendor != "AMD":
            raise WalkError("c_bit and reduction are of AMD's processors: vendor must be 'AMD'")
        if self.c_bit and self.format.entry_bytes != 8:
            raise WalkError(f"c_bit {self.c_bit}: entries of {self.format.name} paging have none")
        if self.c_bit and not 32 <= self.c_bit <= 51:
            raise WalkError(f"c_bit must be 32 to 51, not {self.c_bit}")
        if self.physical_bits < 32:
            raise WalkError(f"reduction {self.reduction} leaves {self.physical_bits} address bits")

    def _check_pdptes(self, pdptes: tuple[int, ...]) -> None:
        if self.format is not formats.PAE:
            raise WalkError(f"pdptes are given, but paging is {self.format.name}")
        if len(pdptes) != 4:
            raise WalkError(f"pdptes must be 4 entries, not {len(pdptes)}")
        self.check_pdptes(pdptes)

    def check_pdptes(self, pdptes: tuple[int, ...]) -> None:
        """Raise `WalkError` where MOV to CR3 of `pdptes` would raise #GP (SDM vol. 3A §4.4.1)."""
        reserved = mask(formats.PAE.levels[0].reserved, self.physical_bits) & ~self.encrypted
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
        return self.cr3 & self.root_mask

    @property
    def root_mask(self) -> int:
        """Bits of CR3 that are the address of the root table."""
        return mask("31:5" if self.format is formats.PAE else "51:12") & ~self.encrypted

    @property
    def physical_bits(self) -> int:
        """Bits of a physical address: MAXPHYADDR, less what memory encryption takes."""
        return self.maxphyaddr - self.reduction

    @property
    def encrypted(self) -> int:
        """Mask of the C-bit; 0 without memory encryption."""
        return 1 << self.c_bit if self.c_bit else 0

    @property
    def modifies_addresses(self) -> bool:
        """Whether LAM, UAI or LASS look at linear addresses before they are translated."""
        lam = self.cr3 & (bits.CR3_LAM_U57 | bits.CR3_LAM_U48)
        cr4 = self.cr4 & (bits.CR4_LASS | bits.CR4_LAM_SUP)
        return self.long and bool(lam | cr4 | self.efer & bits.EFER_UAIE)

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
    controls : tuple of str
        VM-execution controls that are on: ``"mode-based execute"`` makes bit 2 the right to fetch
        from supervisor pages of the guest, and bit 10 that for user pages.

    Raises
    ------
    WalkError
        VM entry would refuse the pointer, or a control is not modelled.
    """

    eptp: int
    maxphyaddr: int = 40
    execute_only: bool = True
    page1gb: bool = True
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        integers(self, ("eptp", "maxphyaddr"))
        for name in self.controls:
            if name in NO_EPT_CONTROLS:
                raise WalkError(f"EPT control {name!r} is not modelled")
            if name not in EPT_CONTROLS:
                raise WalkError(f"no EPT control {name!r}{did_you_mean(name, EPT_CONTROLS)}")
        if not 32 <= self.maxphyaddr <= 52:
            raise WalkError(f"maxphyaddr must be 32 to 52, not {self.maxphyaddr}")
        if self.eptp & 7 not in (0, 6):
            raise WalkError(f"EPTP {self.eptp:#x}: memory type (bits 2:0) must be 0 or 6")
        if self.eptp >> 3 & 7 not in (3, 4):
            raise WalkError(f"EPTP {self.eptp:#x}: bits 5:3 must be 3 (4 levels) or 4 (5 levels)")
        if self.eptp & bits.EPTP_SSS:
            raise WalkError(
                f"EPTP {self.eptp:#x}: supervisor shadow-stack control (bit 7) is not modelled"
            )
        wrong = self.eptp & mask("63:M 11:8", self.maxphyaddr)
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
    def mode_based_execute(self) -> bool:
        """Whether the right to execute depends on the page's being the guest user's."""
        return "mode-based execute" in self.controls

    @property
    def encrypted(self) -> int:
        """Mask of the C-bit: there is none."""
        return 0

    @property
    def nxe(self) -> bool:
        """EPT has no bit that forbids execution, so none that is reserved without NXE."""
        return True

    @property
    def vendor(self) -> Vendor:
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
