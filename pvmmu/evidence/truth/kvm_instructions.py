"""A folder of instructions under KVM: nested and shadow paging, and KVM's own counts.

It holds ``instructions.csv`` (instructions of an iteration: natively, ``kvm-nested``,
``kvm-shadow``) and ``events.csv`` (KVM's counters in the same runs); see
``data/truth/kvm_instructions/README.md``. KVM's counters have names of its own; `COUNTERS` says
which events of the shadow engine they count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pandas as pd

from pvmmu.costs.fit import Fit, Term, document, fit_prices, left_out
from pvmmu.errors import MeasurementError
from pvmmu.evidence.truth.instructions import PROGRAM

#: KVM's counter (6.1) of each event.
COUNTERS: Final = {
    "page_fault": "stat.vcpu.pf_guest", "shadow_fault": "stat.vcpu.pf_fixed",
    "pte_emulation": "stat.vcpu.pf_emulate", "cr3_write_exit": "exit.WRITE_CR3",
    "cr3_read_exit": "exit.READ_CR3", "invlpg_exit": "exit.INVLPG",
    "resync": "fn.paging64_sync_page", "shadow_made": "stat.vm.mmu_cache_miss",
    "shadow_zapped": "stat.vm.mmu_shadow_zapped", "pte_writes_applied": "stat.vm.mmu_pte_write",
    "shadow_prefetched": "fn.paging64_prefetch_gpte", "exits": "exit.CPUID",
}  # fmt: skip
#: Sleeps; adds nothing but noise (its stream is of another kind); has no instructions of its own.
_LEFT: Final = ("cmd_thrfork", "clearrefs.16", "null.1", "getppid.10")
#: What a nested run may not be fitted to: the state of the kernel's free lists decides.
_LEFT_NESTED: Final = (*_LEFT, "mmap.1024")
SHADOW: Final = (
    Term("page_fault", ("page_fault",), "a fault reflected to the guest"),
    Term("shadow_fault", ("shadow_fault",), "a fault that fills a shadow entry"),
    Term("pte_emulation", ("pte_emulation",), "a write to an upper table, emulated"),
    Term("cr3_write_exit", ("cr3_write_exit",), "a CR3 load, intercepted"),
    Term("cr3_read_exit", ("cr3_read_exit",), "a CR3 read, intercepted"),
    Term("invlpg_exit", ("invlpg_exit",), "an INVLPG, intercepted"),
    Term("resync", ("resync",), "a level-1 table synced, with the entries built anew"),
    Term(
        "shadow_made", ("shadow_made", "shadow_zapped"), "a shadow page made, or zapped",
    ),
    Term("pte_writes_applied", ("pte_writes_applied",), "an emulated write carried to shadows"),
    Term("shadow_prefetched", ("shadow_prefetched",), "an entry looked at beside that of a fault"),
    Term("exits", ("exits",), "a CPUID exit (four per exec)"),
)  # fmt: skip
NESTED: Final = (Term("exits", ("exits",), "a CPUID exit (four per exec)"),)
_NATIVE: Final = "the guest executes it natively, too"
_FREE: Final = {
    "kvm-shadow": {
        "store": _NATIVE, "locked": _NATIVE, "spurious_fault": "cannot be told from zero",
        "unsync": "part of the fault that does it", "queued": "a remark, no work",
        "shadow_dropped": "with the page zapped or synced", "tlb_flush": "part of the exit",
        "tlb_flush_one": "part of the exit", "ipi": _NATIVE,
        "walk_references": "no instruction",
    },
    "kvm-nested": {
        "store": _NATIVE, "locked": _NATIVE, "fault": _NATIVE, "invlpg": _NATIVE,
        "cr3_load": _NATIVE, "flush_all": _NATIVE, "ipi": _NATIVE,
        "walk_references": "no instruction", "queued": "a remark, no work",
    },
}  # fmt: skip
_TABLES: Final = {
    "kvm-shadow": ("kvm-6.1-shadow-instructions", "KVM 6.1, shadow paging", SHADOW),
    "kvm-nested": ("kvm-6.1-nested-instructions", "KVM 6.1, nested paging", NESTED),
}


def is_kvm_folder(folder: Path) -> bool:
    """Return whether a folder holds KVM's counters beside instructions."""
    return any((folder / f"events.csv{end}").is_file() for end in ("", ".gz", ".xz"))


def observe_kvm(folder: Path, environment: str) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Return what KVM counted in an environment, and what it added.

    Parameters
    ----------
    folder : Path
        See the module.
    environment : str
        ``kvm-shadow`` or ``kvm-nested``.

    Returns
    -------
    DataFrame, Series, Series
        Per (program, environment): counts by event, instructions added, native instructions (means
        over the iterations: ticks are among the exits).

    Raises
    ------
    MeasurementError
        A file is missing, has not the columns wanted, or says nothing of the environment.
    """
    spent = _read(folder, "instructions.csv", ("environment", "workload", "mean"))
    events = _read(
        folder, "events.csv", ("environment", "workload", "counter", "count_per_iteration")
    )
    means = spent.drop_duplicates(["environment", "workload"]).set_index(
        ["environment", "workload"]
    )["mean"]
    if environment not in means.index:
        raise MeasurementError(f"{folder}: instructions.csv has no environment {environment!r}")
    counted = (
        events[events["environment"] == environment]
        .pivot_table(
            index="workload", columns="counter", values="count_per_iteration", aggfunc="first"
        )
        .fillna(0.0)
    )
    left = _LEFT_NESTED if environment == "kvm-nested" else _LEFT
    names = [
        w for w in means[environment].index
        if w in counted.index and w in means["native"].index and w not in left
    ]  # fmt: skip
    index = pd.MultiIndex.from_tuples(
        [(w, environment) for w in names], names=["program", "design"]
    )
    counts = pd.DataFrame(
        {
            event: counted.get(counter, pd.Series(0.0, counted.index)).loc[names].to_numpy()
            for event, counter in COUNTERS.items()
        },
        index,
    )
    native = pd.Series(means["native"][names].to_numpy(float), index)
    total = pd.Series(means[environment][names].to_numpy(float), index)
    return counts, total - native, native


def _read(folder: Path, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    found = [p for end in ("", ".gz", ".xz") if (p := folder / f"{name}{end}").is_file()]
    path = found[0] if found else folder / name
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError, EOFError) as e:
        raise MeasurementError(f"{path}: {str(e).strip()}") from None
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise MeasurementError(f"{path}: no column {missing[0]!r}")
    return table


def fit_kvm(
    folder: Path, environment: str
) -> tuple[str, Fit, pd.DataFrame, pd.Series, dict[str, Any]]:
    """Fit the prices of KVM's paging in an environment.

    Parameters
    ----------
    folder, environment
        As for `observe_kvm`.

    Returns
    -------
    str, Fit, DataFrame, Series, dict
        Name of the table, the prices, counts and what was added, the table as a document.
    """
    name, title, terms = _TABLES[environment]
    counts, added, native = observe_kvm(folder, environment)
    # what nested paging adds to the others is noise: a run of ticks more or less
    rows = added > 0.02 * native if environment == "kvm-nested" else added > 0
    counts, added, native = counts[rows], added[rows], native[rows]
    fitted = fit_prices(counts, added, native, terms)
    whole = counts.index.get_level_values(0).str.startswith(PROGRAM)
    off = left_out(counts, added, fitted)[whole].abs()
    events = {key: "context" if key == "exits" else "events" for t in terms for key in t.keys}
    doc: dict[str, Any] = {
        "title": f"{title}, Linux 6.1: instructions, measured",
        "cpu": "none: executed instructions, counted by QEMU 7.2 (TCG, -icount)",
        "hypervisor": "KVM of Linux 6.1.192, kvm-amd without NRIPS and decode assists",
        "year": 2026,
        "notes": "Fitted by `pvmmu costs fit` to KVM's own counters and instructions; a VM exit "
        "counts as one instruction, walks in two dimensions and refills as none, so that nested "
        "paging's figure is a lower bound. Ticks, four per mille of the whole, are not priced.",
        "error": (round(float(off.median()), 4), round(float(off.quantile(0.95)), 4)),
        "free": _FREE[environment],
    }
    sources = dict.fromkeys(("events", "context"), "counters in data/truth/kvm_instructions")
    doc |= document(events, fitted, sources)
    doc.setdefault("events", {})
    return name, fitted, counts, added, doc
