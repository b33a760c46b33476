"""Claims about hypervisors that keep shadows of the guest's tables, and of those that need none."""

from __future__ import annotations

from typing import Final

import pandas as pd

from pvmmu.balance import Balance, Draws, smallest_within
from pvmmu.claims.claim import claim, pays
from pvmmu.claims.contest import MATERIAL, Verdict, contest
from pvmmu.claims.hypotheses import ERA
from pvmmu.history import Side
from pvmmu.hooks import HookSet
from pvmmu.search import search
from pvmmu.sensitivity import LEANS, STABLE
from pvmmu.streams import stream

#: A shell and a compiler under the kernel that had KVM's hooks.
PROGRAMS: Final = ("cmd_shloop.4@2.6.27", "compile.1@2.6.27")
_XEN_SHADOW: Final = "shadow:code=xen-2006"


# ---------------------------------------------------------------------- the message of 2006
@claim("shadow-mix", "a shadow-mode Xen guest wants a mix", "2006-07, the message")
def _shadow_mix() -> Verdict:
    return shadow_mix("p4-2006")


def shadow_mix(costs: str) -> Verdict:
    """Return the verdict that the best interface holds hooks of both levels, each of which pays.

    Parameters
    ----------
    costs : str
        Cost table.
    """
    found = search([stream(name) for name in ERA], [_XEN_SHADOW], progress=False)
    board = Balance(found, [_XEN_SHADOW], costs=costs, draws=Draws(64, seed=0))
    answer = smallest_within(board, MATERIAL)
    best = HookSet(answer["mask"])
    parts = {"low": best.low, "high": best - best.low}
    sides = {k: Side(v.short, _XEN_SHADOW, costs) for k, v in {"all": best, **parts}.items()}
    without_low = contest(sides["all"], sides["high"], ERA)
    without_high = contest(sides["all"], sides["low"], ERA)
    finding = (
        f"within {MATERIAL:.0%} of the best are {', '.join(best)} ({len(parts['low'])} low-level, "
        f"{len(parts['high'])} high-level); cycles with the low-level ones, of those without: "
        f"{without_low.span}; with the high-level ones: {without_high.span}"
    )
    share = float(answer["stability"])
    word = "stable" if share >= STABLE else "leans" if share >= LEANS else "open"
    table = pd.concat({"low": without_low.table, "high": without_high.table}, names=["part"])
    return Verdict(without_low.pays and without_high.pays, finding, word, table)


# ---------------------------------------------------------------------- decisions since
@claim("fill-on-write", "an emulated write should fill the shadow", "2007-07, Linux 2.6.23")
def _fill_on_write() -> Verdict:
    costs = "core2-2007-vtx"
    new, old = (Side("none", f"shadow:code=kvm-{n}", costs) for n in ("2.6.23", "2.6.20"))
    return pays(contest(new, old, PROGRAMS), "with it, of those without")


@claim("kvm-2008", "KVM: hypercalls for stores beat faults", "2008-02-22, Linux 2.6.26")
def _kvm_2008() -> Verdict:
    return _kvm("2.6.23", "core2-2007-vtx")


@claim("nested", "with nested paging no paravirtual MMU is worth it", "2008-04, KVM")
def _nested() -> Verdict:
    costs = "nehalem-2009-vtx"
    sides = Side("none", "nested", costs), Side("kvm-pvmmu", "kvm-pvmmu", costs)
    c = contest(*sides, PROGRAMS)
    return pays(c, "of paging with nested tables, of those with hypercalls for stores")


@claim("out-of-sync", "tables should go out of sync, not each write be emulated", "2008-06-20, Xen")
def _out_of_sync() -> Verdict:
    costs = "core2-2007-vtx"
    new, old = (Side("none", f"shadow:code=xen-{n}", costs) for n in ("2008", "2006"))
    return pays(contest(new, old, PROGRAMS), "out of sync, of those of emulation")


@claim("kvm-2009", "they still do where tables go out of sync", "2009-10-01, Linux 2.6.33")
def _kvm_2009() -> Verdict:
    return _kvm("2.6.28", "nehalem-2009-vtx")


def _kvm(shadow: str, costs: str) -> Verdict:
    """Return the verdict on hypercalls for stores, under a generation of shadow paging."""
    mode = f"kvm-pvmmu:shadow={shadow}"
    c = contest(Side("kvm-pvmmu", mode, costs), Side("none", mode, costs), PROGRAMS)
    told, untold = int(c.works["entries"].sum()), int(c.works["entries_other"].sum())
    finding = (
        f"cycles with them, of those of an unmodified guest: {c.span}; entries to the host "
        f"{told:,} and {untold:,}"
    )
    return Verdict(c.pays, finding, c.word, c.table)


@claim("dying", "a shadow-mode guest should announce a dying process", "2010, Xen 4.1")
def _dying() -> Verdict:
    mode, costs = "shadow:code=xen-4.17", "nehalem-2009-vtx"
    c = contest(Side("exit_mmap", mode, costs), Side("none", mode, costs), PROGRAMS)
    return pays(c, "with the announcement, of those without")
