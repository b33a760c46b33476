"""Whole programs, native = 1: direct paging as it is and at its best, shadow and nested paging.

One unit for all: executed instructions, measured under each, and predicted from counts: of replays
under direct paging, of KVM's own counters under shadow and nested paging.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pvmmu.costs import get_costs
from pvmmu.evidence.truth.design_space_files import BASE, read_designs
from pvmmu.evidence.truth.instructions import PROGRAM, Observations, observe
from pvmmu.evidence.truth.kvm_instructions import observe_kvm
from pvmmu.evidence.truth.prices import predict
from pvmmu.paths import data_path
from pvmmu.replay.whole import TABLES, Whole

TODAY, BEST, SHADOW, NESTED = "Xen PV today", "Xen PV, best", "KVM shadow", "KVM nested"


def program_rows(folder: Path) -> pd.DataFrame:
    """Return what ``data/truth/programs.csv`` holds, from a folder of measured designs.

    Parameters
    ----------
    folder : Path
        Of measured designs.

    Returns
    -------
    DataFrame
        By the name of the program's trace: ``native`` (instructions), ``system_calls``,
        ``switches``, ``entries_read``.
    """
    seen = observe(folder)
    first = seen.counts.groupby(level=0).first()
    out = first[["system_calls", "switches", "entries_read"]].copy()
    out.insert(0, "native", seen.native.groupby(level=0).first())
    out.index = out.index.str.removeprefix(PROGRAM).rename("program")
    return out.round(1)


Row = tuple[str, Whole, float]


def native_one(designs: Path | None = None, kvm: Path | None = None) -> list[Row]:
    """Return each whole program under four designs: predicted, and as measured.

    Parameters
    ----------
    designs, kvm : Path, optional
        Folders of measurements (`pvmmu.evidence.truth.instructions`,
        `pvmmu.evidence.truth.kvm_instructions`); by default those that ship.

    Returns
    -------
    list of (str, Whole, float)
        Name of the design (`TODAY`, `BEST`: of the measured hook sets without a message of the
        kernel the one that adds least by prediction, `SHADOW`, `NESTED`), what it is predicted to
        add, and what it adds by measurement, relative to the native instructions.
    """
    designs = designs or data_path("truth", "designs")
    kvm = kvm or data_path("truth", "kvm_instructions")
    seen = observe(designs)
    found = read_designs(designs).designs
    silent = [f"{m:#x}" for m, d in found.items() if d.outcome == "runs"]
    best = _best(seen, silent)
    columns = {TODAY: f"{BASE:#x}", BEST: best}
    labels = {f"{m:#x}": d.name for m, d in found.items()}
    shadow, nested = (observe_kvm(kvm, e) for e in ("kvm-shadow", "kvm-nested"))
    out = []
    for program in seen.added[seen.whole].index.get_level_values(0).unique():
        for name, mask in columns.items():
            if (program, mask) in seen.added.index:
                parts = (seen.counts.loc[(program, mask)], seen.added, seen.native, mask)
                out.append((name, *_whole(program, labels[mask], "direct", *parts)))
        for name, mode, (counts, added, native) in (
            (SHADOW, "shadow", shadow), (NESTED, "nested", nested)
        ):  # fmt: skip
            key = f"kvm-{mode}"
            if (program, key) in added.index:
                parts = (counts.loc[(program, key)], added, native, key)
                out.append((name, *_whole(program, "none", mode, *parts)))
    return out


def _best(seen: Observations, masks: list[str]) -> str:
    """Return the design that adds least, in the mean over whole programs that all were run on."""
    share = (predict(seen.counts, get_costs(TABLES["direct"])) / seen.native)[seen.whole]
    wide = share.unstack().reindex(columns=masks).dropna(axis=1)
    return str(wide.mean().idxmin())


def _whole(
    program: str, hooks: str, mode: str, counts: pd.Series, added: pd.Series, native: pd.Series,
    key: str,
) -> tuple[Whole, float]:  # fmt: skip
    table, own = get_costs(TABLES[mode]), float(native[program, key])
    error = table.error[1] if table.error else 0.0
    parts = table.parts(counts[counts != 0].to_dict())
    whole = Whole(program.removeprefix(PROGRAM), hooks, mode, own, parts, error)
    return whole, float(added[program, key]) / own


def native_one_finding(rows: list[Row]) -> str:
    """Return the finding of `native_one` (its `rows`) in a sentence."""
    table = pd.DataFrame([(w.program, name, m) for name, w, m in rows],
                         columns=["program", "design", "adds"])  # fmt: skip
    wide = table.pivot(index="program", columns="design", values="adds").dropna() + 1
    dearer = int((wide[SHADOW] > wide[TODAY]).sum())
    return (
        f"By instructions executed shadow paging is dearer than today's direct paging for "
        f"{dearer} of {len(wide)} whole programs ({wide[SHADOW].min():.1f} to "
        f"{wide[SHADOW].max():.1f} times native, against {wide[TODAY].min():.1f} to "
        f"{wide[TODAY].max():.1f})"
    )
