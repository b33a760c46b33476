"""The claims, each with its test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pandas as pd

from pvmmu.evidence.claims.claim import claim, saves
from pvmmu.evidence.claims.cycle_ratio import ClaimResult, cycle_ratio
from pvmmu.evidence.history import PricedDesign
from pvmmu.evidence.unmerged import costliest_omission, omission_finding, what_if
from pvmmu.guest.load_trace import REAL_STREAMS, load_trace
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes import get_mode
from pvmmu.modes.partition import Space
from pvmmu.replay import explain, replay

#: Streams of the era, by the guest model: small programs, a shell, a compiler.
ERA: Final = (
    "fork.64@2.6.22", "fork_exit.64@2.6.22", "forkexec.64@2.6.22", "mmap.64@2.6.22",
    "cow.64@2.6.22", "cmd_shloop.4@2.6.22", "compile.1@2.6.22",
)  # fmt: skip
#: What ran under XenLinux: small programs; whole programs, modelled and recorded; loops.
XENLINUX: Final = (
    "fork.64@2.6.12", "fork_exit.64@2.6.12", "forkexec.64@2.6.12", "mmap.64@2.6.12",
    "cow.64@2.6.12", "shell:fork@2.6.12", "shell:exec@2.6.12", "cmd_shloop.4@2.6.12",
    "compile.1@2.6.12",
)  # fmt: skip
WHOLE: Final = (
    "cmd_shloop.4@2.6.18/2", "compile.1@2.6.18/2", "shell:sh@2.6.12", *REAL_STREAMS
)  # fmt: skip
LOOPS: Final = ("fork.64@2.6.18/2", "mmap.512@2.6.18/2", "mprotect.512@2.6.18/2")
PROTECTION: Final = ("mprotect.64@2.6.27", "mprotect.512@2.6.27", "redis")
_P4: Final = "p4-2006"
#: Xen's guest as it was when a question was asked: XenLinux, outside the kernel, until 2.6.23.
_XENLINUX: Final = "direct:backend=2006"
_BATCHED: Final = "direct:backend=2006,stores=batched"
_XENLINUX_2005: Final = ("direct:backend=2005,stores=batched", "direct:backend=2005")
_XEN: Final = "direct:backend=2.6.23"
_XEN_2008: Final = "direct:backend=2.6.27"
#: Stores of all levels, and registers: what the message calls set_pte, and privileged instructions.
_STORES: Final = "set_pte+set_pte_at+set_pmd+set_pud+set_p4d+pte_clear+pte_val"
_REGISTERS: Final = "write_cr3+read_cr2+read_cr3+flush_tlb_user+flush_tlb_kernel+flush_tlb_one_user"
_LATE_PIN: Final = "activate_mm+dup_mmap+exit_mmap"
#: What tells of table pages: part of "register before switching", in one reading of the message.
_ANNOUNCED: Final = HookSet.of(
    *(f"{what}_{level}" for what in ("alloc", "release") for level in ("pte", "pmd", "pud")),
    "pgd_alloc",
)


def _runs(hooks: str, mode: str, streams: Sequence[str]) -> pd.Series:
    """Return the status of a design on each stream."""
    return pd.Series({name: replay(load_trace(name), hooks, mode).status for name in streams})


# ---------------------------------------------------------------------- the message of 2006
@claim("vmi-low-level", "VMI needs only low-level operations", "2006-07, the message")
def _vmi_low_level() -> ClaimResult:
    low = HookSet.parse("vmi").low
    status = _runs(low.short, "vmi", ERA)
    c = cycle_ratio(PricedDesign(low.short, "vmi", _P4), PricedDesign("vmi", "vmi", _P4), ERA)
    finding = (
        f"{len(low)} low-level hooks run {int((status == 'ok').sum())} of {len(status)} streams; "
        f"without the two brackets cycles are {c.span} of those with them"
    )
    runs = bool((status == "ok").all())
    return ClaimResult(runs, finding, c.word, c.table, "every stream runs")


@claim(
    "two-abstractions", "set_pte and two abstractions suffice for writable page tables",
    "2006-07, the message",
)  # fmt: skip
def _two_abstractions() -> ClaimResult:
    claimed = HookSet.parse(f"{_STORES}+{_REGISTERS}+{_LATE_PIN}")
    status = _runs(claimed.short, _BATCHED, XENLINUX)
    needed = HookSet()
    for name in XENLINUX:
        trace = load_trace(name)
        needed |= get_mode(_BATCHED).classes(trace, Space(HookSet.every())).required
    missing = needed - claimed
    without = f"xenlinux-2005 -{' -'.join(HookSet.parse(_LATE_PIN))}"
    c = cycle_ratio(
        PricedDesign("xenlinux-2005", _BATCHED, _P4), PricedDesign(without, _BATCHED, _P4), XENLINUX
    )
    told = _runs((claimed | _ANNOUNCED).short, _BATCHED, XENLINUX)
    finding = f"{int((status == 'ok').sum())} of {len(status)} streams run"
    if missing:
        finding += f"; no design runs without {', '.join(missing)} as well"
    finding += (
        f"; where registering a table page is part of the abstraction {int((told == 'ok').sum())} "
        f"run; the two abstractions leave {c.span} of the cycles"
    )
    readings = {
        "announcing a table page is a hook of its own": bool((status == "ok").all()),
        "announcing a table page is part of the abstraction": bool((told == "ok").all()),
    }
    return ClaimResult(
        all(readings.values()), finding, c.word, c.table, "every stream runs", readings
    )


@claim("vmi-flushes", "VMI flushes where Xen batches", "2006-07, the message")
def _vmi_flushes() -> ClaimResult:
    rows = []
    for name in ERA:
        trace = load_trace(name)
        for mode, hooks in (("vmi", "vmi"), (_XEN, "xen-2.6.23")):
            rows.append(
                {"stream": name, "mode": mode.split(":")[0], **_carried(trace, hooks, mode)}
            )
    table = pd.DataFrame(rows)
    share = table.groupby("mode")[["by_flush", "in_bracket"]].mean()
    vmi, xen = share.loc["vmi"], share.loc["direct"]
    finding = (
        f"of the changes that wait for a call, VMI carries {vmi['by_flush']:.0%} with a flush, Xen "
        f"{xen['by_flush']:.0%}; with the end of a bracket {vmi['in_bracket']:.0%} and "
        f"{xen['in_bracket']:.0%}"
    )
    holds = vmi["by_flush"] > xen["by_flush"]
    rule = "VMI carries more with flushes than Xen"
    return ClaimResult(bool(holds), finding, "stable", table.set_index("stream"), rule)


def _carried(trace: Trace, hooks: str, mode: str) -> dict[str, float]:
    """Return how the entries of a design come about: at flushes, at ends of brackets, elsewhere."""
    rows = explain(trace, hooks, mode)
    waits = rows.get("queued", pd.Series(0, index=rows.index))
    op = rows["op"].astype(str)
    where = pd.Series("elsewhere", index=rows.index)
    where[op.str.startswith("FLUSH") | (op == "LOAD_CR3")] = "by_flush"
    where[op == "LAZY_LEAVE"] = "in_bracket"
    sent = pd.Series(0, index=rows.index)
    for event in ("vmi_call", "mmu_update", "multicall", "mmuext_op", "update_va_mapping"):
        if event in rows:
            sent += rows[event]
    total, carried = 0, {"by_flush": 0, "in_bracket": 0, "elsewhere": 0}
    for n, k, w in zip(waits.to_numpy(), sent.to_numpy(), where.to_numpy(), strict=True):
        total += n
        if k and total:
            carried[w] += total
            total = 0
    number = max(sum(carried.values()), 1)
    return {k: v / number for k, v in carried.items()}


@claim(
    "defaults", "high-level operations cost nobody who keeps the default", "2006-07, the message"
)
def _defaults() -> ClaimResult:
    rows = []
    for mode, costs, hooks in (
        ("native", _P4, "none"), (_XEN, _P4, "xen-2.6.23"), ("vmi", "p4-2006-bt", "vmi"),
        ("lguest", "core2-2007-lguest", "lguest"),
    ):  # fmt: skip
        for name, default in _with_default():
            with_hook, plain = f"{hooks} +{name}", f"{hooks} -{name} +{default}"
            if not HookSet.parse(with_hook) <= HookSet.every():
                continue
            c = cycle_ratio(
                PricedDesign(plain, mode, costs),
                PricedDesign(with_hook, mode, costs),
                PROTECTION[:2],
            )
            row = {"mode": mode.split(":")[0], "hook": name, "default": default}
            rows.append(row | {"ratio": c.ratio, "word": c.word})
    table = pd.DataFrame(rows)
    native = table[table["mode"] == "native"]["ratio"]
    worst = table.loc[table["ratio"].idxmax()]
    finding = (
        f"natively the default costs {native.max():.2f} of the operation itself; most it costs "
        f"{worst['mode']}: {worst['hook']} as {worst['default']} takes {worst['ratio']:.1f} times "
        "the cycles"
    )
    free = bool((native == 1).all())
    return ClaimResult(free, finding, "stable", table, "natively the default costs nothing")


def _with_default() -> list[tuple[str, str]]:
    return [(h.name, " +".join(h.default)) for h in catalogue().values() if h.default]


# ---------------------------------------------------------------------- decisions since
@claim("late-pin", "pinning late and unpinning early pays", "2005-08-26, xen-devel")
def _late_pin() -> ClaimResult:
    without = "xenlinux-2005 -activate_mm -dup_mmap -exit_mmap"
    batched, emulated = (
        cycle_ratio(
            PricedDesign("xenlinux-2005", mode, _P4), PricedDesign(without, mode, _P4), XENLINUX
        )
        for mode in _XENLINUX_2005
    )
    finding = (
        f"cycles with both abstractions, of those without: {batched.span} with writes batched, "
        f"{emulated.span} with each emulated"
    )
    word = max(batched.word, emulated.word, key=("stable", "leans", "open").index)
    table = pd.concat({"batched": batched.table, "emulated": emulated.table}, names=["stores"])
    pay = batched.saves and emulated.saves
    return ClaimResult(pay, finding, word, table, f"{ClaimResult.rule} either way")


@claim(
    "writable-tables", "batched writable page tables pay outside synthetic loops",
    "2004 to 2006-08-11, Xen",
)  # fmt: skip
def _writable_tables() -> ClaimResult:
    a, b = (PricedDesign("xenlinux-2005", mode, _P4) for mode in (_BATCHED, _XENLINUX))
    c, loops = cycle_ratio(a, b, WHOLE), cycle_ratio(a, b, LOOPS)
    finding = f"cycles batched, of each write emulated: {c.span}; of synthetic loops {loops.span}"
    return ClaimResult(c.saves, finding, c.word, pd.concat([c.table, loops.table]))


@claim("mprotect", "the transaction for protection changes pays", "2008-06-16, Linux 2.6.27")
def _mprotect() -> ClaimResult:
    c = cycle_ratio(
        PricedDesign("xen-2.6.27", _XEN_2008, _P4),
        PricedDesign("xen-2.6.23", _XEN_2008, _P4),
        PROTECTION,
    )
    return saves(c, "with it, of those without")


@claim(
    "bracket", "a bracket in generic code pays for all that are told", "2006-09-30, Linux 2.6.19"
)
def _bracket() -> ClaimResult:
    sides = (
        ("vmi", "vmi", _P4), (_XEN, "xen-2.6.23", _P4), ("lguest", "lguest", "core2-2007-lguest")
    )  # fmt: skip
    ratios = {
        mode.split(":")[0]: cycle_ratio(
            PricedDesign(hooks, mode, costs), PricedDesign(f"{hooks} -lazy_mmu", mode, costs), ERA
        )
        for mode, hooks, costs in sides
    }
    finding = "cycles with the bracket, of those without: " + "; ".join(
        f"{mode} {c.span}" for mode, c in ratios.items()
    )
    words = [c.word for c in ratios.values()]
    least = next(w for w in ("open", "leans", "stable") if w in words)
    table = pd.concat({m: c.table for m, c in ratios.items()}, names=["mode"])
    pay = all(c.saves for c in ratios.values())
    return ClaimResult(pay, finding, least, table, f"{ClaimResult.rule} for each")


@claim(
    "get-and-clear", "the costliest omission of today's interface is an unhooked get_and_clear",
    "asked here; 2026-02-12, xen-devel",
)  # fmt: skip
def _get_and_clear() -> ClaimResult:
    table = what_if([load_trace(name) for name in REAL_STREAMS])
    first = costliest_omission(table)
    holds = bool((first.value_counts().index[0]).startswith("get_and_clear"))
    best = table[table["change"].isin(set(first))]
    word = "stable" if (best["stability"] == "stable").all() else "leans"
    rule = "it costs most on more streams than any other"
    return ClaimResult(holds, omission_finding(table), word, table, rule)


@claim(
    "notices", "notices after the fact serve only those who do not write-protect tables",
    "2007-05-02, Linux 2.6.22",
)  # fmt: skip
def _notices() -> ClaimResult:
    rows = []
    for name in ERA:
        for mode in ("vmi", "lguest", _XEN):
            relevant_hooks = get_mode(mode).classes(load_trace(name), Space.all()).relevant_hooks
            rows.append(
                {
                    "stream": name,
                    "mode": mode.split(":")[0],
                    "lever": "pte_update" in relevant_hooks,
                }
            )
    table = pd.DataFrame(rows)
    reads = table.groupby("mode")["lever"].any()
    finding = "pte_update changes what happens under " + ", ".join(reads[reads].index)
    holds = bool(reads["vmi"] and reads["lguest"] and not reads["direct"])
    rule = "VMI and lguest read them, Xen does not"
    return ClaimResult(holds, finding, "stable", table, rule)


@claim("page-types", "a page that becomes a table must be announced", "2007-02-13, Linux 2.6.21")
def _page_types() -> ClaimResult:
    needs = {
        mode.split(":")[0]: any(
            "alloc_pte" in get_mode(mode).classes(load_trace(name), Space.all()).required
            for name in ERA
        )
        for mode in ("vmi", _XEN, "lguest")
    }  # fmt: skip
    finding = "on some stream no design works without alloc_pte under " + ", ".join(
        m for m, n in needs.items() if n
    )
    rule = "VMI and Xen cannot do without it"
    return ClaimResult(needs["vmi"] and needs["direct"], finding, "stable", rule=rule)


@claim("address", "a store hook must know address space and address", "2007-07-17, lguest")
def _address() -> ClaimResult:
    costs = "core2-2007-lguest"
    c = cycle_ratio(
        PricedDesign("lguest", "lguest", costs),
        PricedDesign("lguest -set_pte_at", "lguest", costs),
        ERA,
    )
    return saves(c, "with address, of those without (lguest)")
