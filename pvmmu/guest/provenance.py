"""Where a trace comes from, and what the guest saw while it was made."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from pvmmu.errors import TraceError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Platform:
    """What the hypervisor shows its guest, as far as it changes the guest's operations.

    Two traces of one workload on different platforms are different traces: a guest without PSE
    maps 4-KiB pages only, one without PCID reloads CR3 with a flush, a 64-bit Xen guest finds G in
    its user entries.

    Parameters
    ----------
    guest : str
        ``xen-pv``, ``native``, ``hvm``, ... : what the kernel believes to run on.
    levels : int
        Levels of the page table (2, 3, 4 or 5).
    vcpus : int
        Virtual CPUs.
    pse, pge, pcid, pti : bool
        Large pages, global pages, process-context identifiers, page-table isolation.
    shared_kernel_pmd : bool
        32-bit PAE only: all address spaces share the kernel's PMD.
    user_global : bool
        User entries read back with G set (64-bit Xen PV).
    split_ptlock : bool
        The kernel locks each PTE table by itself (``SPLIT_PTLOCKS``).
    lazy_nests : bool
        Lazy MMU brackets may nest (kernels that count depth); otherwise nesting is an error.
    highpte : bool
        32-bit only: table pages are in high memory and must be mapped to be written
        (``CONFIG_HIGHPTE``).
    tables_by_rcu : bool
        Freed table pages wait for a grace period (``tlb_remove_table``, as Xen PV and KVM ask) and
        are not among the gathered pages.
    aslr : bool
        Addresses of stack and mappings are random.
    """

    guest: str = "native"
    levels: int = 4
    vcpus: int = 1
    pse: bool = True
    pge: bool = True
    pcid: bool = False
    pti: bool = False
    shared_kernel_pmd: bool = False
    user_global: bool = False
    split_ptlock: bool = True
    lazy_nests: bool = False
    highpte: bool = False
    tables_by_rcu: bool = False
    aslr: bool = False

    def __post_init__(self) -> None:
        if self.levels not in (2, 3, 4, 5):
            raise TraceError(f"platform: levels must be 2, 3, 4 or 5, not {self.levels!r}")
        if not 1 <= self.vcpus <= 255:
            raise TraceError(f"platform: vcpus must be 1 to 255, not {self.vcpus!r}")

    @property
    def entries(self) -> int:
        """Entries of one table page (1,024 in the 32-bit two-level format, else 512)."""
        return 1024 if self.levels == 2 else 512

    @property
    def user_root(self) -> bool:
        """A Xen guest of this platform has a second top-level table for user mode (x86-64)."""
        return self.levels >= 4


@dataclass(frozen=True)
class Mm:
    """An address space of a trace.

    Parameters
    ----------
    label : str
        For readers, such as ``"wl[487]"``.
    pgd : int
        Frame number of its top-level table; -1 unknown.
    older : bool
        It existed before the trace begins, so its tables' contents are not all known.
    """

    label: str
    pgd: int = -1
    older: bool = False


@dataclass(frozen=True)
class Provenance:
    """Source of a trace; part of its identity.

    Parameters
    ----------
    source : str
        File, workload or paper that the trace stands for.
    kernel : str
        Version of the guest kernel, such as ``"6.1.192"``.
    recorder : str
        What made the trace: a recorder and its version, or the model and its version.
    platform : Platform
        What the guest saw.
    notes : tuple of str
        Remarks that a reader of results should see.
    assumptions : tuple of str
        What the rows rest on that nothing has told, such as ``"touches assumed: data"``: shown
        wherever numbers are, which then are not exact.
    format_version : int
        Of trace files.
    """

    source: str
    kernel: str = "unknown"
    recorder: str = "unknown"
    platform: Platform = field(default_factory=Platform)
    notes: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    format_version: int = FORMAT_VERSION

    @property
    def assumed(self) -> str:
        """What is assumed, for a caption: `` [touches assumed: data]``; empty if nothing is."""
        return f" [{'; '.join(self.assumptions)}]" if self.assumptions else ""

    @property
    def kernel_version(self) -> tuple[int, ...]:
        """The kernel's version as numbers, empty where it is unknown: ``(6, 1, 192)``."""
        parts = self.kernel.split("-")[0].split(".")
        return tuple(int(p) for p in parts) if all(p.isdigit() for p in parts) else ()


def to_json(provenance: Provenance, mms: tuple[Mm, ...], callers: tuple[str, ...]) -> str:
    """Return provenance, address spaces and names of callers as one line of JSON, keys sorted."""
    doc = dataclasses.asdict(provenance)
    if not provenance.assumptions:  # most traces rest on none
        del doc["assumptions"]
    doc |= {"mms": [dataclasses.asdict(m) for m in mms], "callers": list(callers)}
    return json.dumps(doc, sort_keys=True, separators=(",", ":"))


def from_json(text: str | bytes, where: str) -> tuple[Provenance, tuple[Mm, ...], tuple[str, ...]]:
    """Read what `to_json` wrote.

    Raises
    ------
    TraceError
        The text is not such a document, or of a newer format; the message begins with `where`.
    """
    try:
        doc: dict[str, Any] = json.loads(text)
        version = doc["format_version"]
        if version != FORMAT_VERSION:
            raise TraceError(f"{where}: trace format {version}, this pvmmu reads {FORMAT_VERSION}")
        mms = tuple(Mm(**m) for m in doc.pop("mms"))
        callers = tuple(map(str, doc.pop("callers")))
        platform = Platform(**doc.pop("platform"))
        notes, assumptions = tuple(doc.pop("notes")), tuple(map(str, doc.pop("assumptions", ())))
        known = Provenance(platform=platform, notes=notes, assumptions=assumptions, **doc)
        return known, mms, callers
    except (ValueError, TypeError, KeyError) as e:
        if isinstance(e, TraceError):
            raise
        raise TraceError(f"{where}: its provenance is not that of a pvmmu trace ({e})") from None
