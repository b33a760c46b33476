"""Claims about hypervisors that keep shadows of the guest's tables, and of those that need none."""

from __future__ import annotations

from typing import Final

from pvmmu.evidence.claims import mixed
from pvmmu.evidence.claims.claim import claim, saves
from pvmmu.evidence.claims.cycle_ratio import ClaimResult, cycle_ratio
from pvmmu.evidence.history import PricedDesign
from pvmmu.guest.load_trace import load_trace
from pvmmu.modes import get_mode

#: A shell and a compiler under the kernel that had KVM's hooks.
PROGRAMS: Final = ("cmd_shloop.4@2.6.27", "compile.1@2.6.27")
#: Programs and a loop for shadows of today; and where two vCPUs share an address space.
SHADOWED: Final = ("fork.64", "shloop", "python", "make")
SEVERAL: Final = ("smpmmap.16", "smpmprotect.16")


# ---------------------------------------------------------------------- the message of 2006
@claim("shadow-mix", "a shadow-mode Xen guest wants a mix", "2006-07, the message")
def _shadow_mix() -> ClaimResult:
    found = mixed.search_then()
    answers = [mixed.answer(found, mixed.THEN, costs) for costs in mixed.TABLES_THEN]
    return mixed.verdict(answers)


# ---------------------------------------------------------------------- decisions since
@claim("fill-on-write", "an emulated write should fill the shadow", "2007-07, Linux 2.6.23")
def _fill_on_write() -> ClaimResult:
    costs = "core2-2007-vtx"
    new, old = (PricedDesign("none", f"shadow:code=kvm-{n}", costs) for n in ("2.6.23", "2.6.20"))
    return saves(cycle_ratio(new, old, PROGRAMS), "with it, of those without")


@claim("kvm-2008", "KVM: hypercalls for stores beat faults", "2008-02-22, Linux 2.6.26")
def _kvm_2008() -> ClaimResult:
    return _kvm("2.6.23", "core2-2007-vtx")


@claim("nested", "nested paging wants no hook but flushes of other vCPUs", "2008-04, KVM")
def _nested() -> ClaimResult:
    used = {
        name: set(get_mode("nested").relevant_hooks(load_trace(name)))
        for name in (*SHADOWED, *SEVERAL)
    }
    asked = set().union(*used.values())
    hooked, plain = (
        PricedDesign(h, "nested", "epyc-2020-svm") for h in ("flush_tlb_multi", "none")
    )
    c = cycle_ratio(hooked, plain, SEVERAL)
    finding = (
        f"on {len(used)} streams nothing but {', '.join(sorted(asked))} changes what happens; "
        f"where vCPUs share an address space it leaves {c.span} of the cycles"
    )
    rule = "no other hook changes anything"
    return ClaimResult(asked == {"flush_tlb_multi"}, finding, "stable", c.table, rule)


@claim("nested-paging", "with nested paging no paravirtual MMU is worth it", "2008-04, KVM")
def _nested_paging() -> ClaimResult:
    costs = "nehalem-2009-vtx"
    sides = PricedDesign("none", "nested", costs), PricedDesign("kvm-pvmmu", "kvm-pvmmu", costs)
    c = cycle_ratio(*sides, PROGRAMS)
    return saves(c, "of paging with nested tables, of those with hypercalls for stores")


@claim("out-of-sync", "tables should go out of sync, not each write be emulated", "2008-06-20, Xen")
def _out_of_sync() -> ClaimResult:
    costs = "core2-2007-vtx"
    new, old = (PricedDesign("none", f"shadow:code=xen-{n}", costs) for n in ("2008", "2006"))
    return saves(cycle_ratio(new, old, PROGRAMS), "out of sync, of those of emulation")


@claim(
    "kvm-2009",
    "hypercalls for stores pay where tables go out of sync, too",
    "2009-10-01, Linux 2.6.33",
)
def _kvm_2009() -> ClaimResult:
    return _kvm("2.6.28", "nehalem-2009-vtx")


@claim("kvm-today", "hypercalls for stores would pay under today's KVM", "Linux 6.1, asked here")
def _kvm_today() -> ClaimResult:
    told, untold = (
        PricedDesign(h, "shadow:code=kvm-6.1", "epyc-2020-svm") for h in ("kvm-pvmmu", "none")
    )
    return saves(cycle_ratio(told, untold, SHADOWED), "with them, of those of an unmodified guest")


def _kvm(shadow: str, costs: str) -> ClaimResult:
    """Return the verdict on hypercalls for stores, under a generation of shadow paging."""
    mode = f"kvm-pvmmu:shadow={shadow}"
    c = cycle_ratio(
        PricedDesign("kvm-pvmmu", mode, costs), PricedDesign("none", mode, costs), PROGRAMS
    )
    told, untold = int(c.works["entries"].sum()), int(c.works["entries_other"].sum())
    finding = (
        f"cycles with them, of those of an unmodified guest: {c.span}; entries to the host "
        f"{told:,} and {untold:,}"
    )
    return ClaimResult(c.saves, finding, c.word, c.table)


@claim("dying", "a shadow-mode guest should announce a dying process", "2010-06-21, Xen 4.1")
def _dying() -> ClaimResult:
    mode, costs = "shadow:code=xen-4.17", "nehalem-2009-vtx"
    c = cycle_ratio(
        PricedDesign("exit_mmap", mode, costs), PricedDesign("none", mode, costs), PROGRAMS
    )
    return saves(c, "with the announcement, of those without")
