"""Measured prices: fitted to a folder of measurements, judged by one that was not in the fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from pvmmu.costs.fit import Fit, document, fit_prices, left_out
from pvmmu.costs.table import CostTable
from pvmmu.evidence.truth.instructions import Observations, observe
from pvmmu.evidence.truth.kvm_instructions import fit_kvm, is_kvm_folder
from pvmmu.evidence.truth.price_terms import DIRECT, DIRECT_FREE
from pvmmu.modes.events import Event

#: Errors of what is added (relative): median and 95th percentile, of programs, of micro workloads.
LIMITS: Final = {"programs": (0.03, 0.08), "micro workloads": (0.05, 0.15)}
#: Least agreement of the order of designs.
RANK: Final = 0.98
#: Name of the table of direct paging.
DIRECT_NAME: Final = "xen-4.17-instructions"
_HEAD: Final = {
    "title": "Xen 4.17 PV (direct paging), Linux 6.1: instructions, measured",
    "cpu": "none: executed instructions, counted by QEMU 7.2 (TCG, -icount)",
    "hypervisor": "Xen 4.17.7 (Debian), XPTI off",
    "year": 2026,
    "notes": "Fitted by `pvmmu costs fit` to instructions of programs under 37 hook sets less the "
    "native ones; each price is of what Xen and the guest execute together. Ranges: two standard "
    "deviations (jackknife over programs). What nothing of the kind occurred in has no price here: "
    "interrupts between CPUs, batched writable tables.",
}
_COUNTS: Final = {
    "events": "replay of data/truth/designs under each design",
    "operations": "the streams of data/truth/designs",
    "context": "Xen's counts and the recorded streams of data/truth/designs",
}


class Judgement(NamedTuple):
    """What a table predicts for a folder of measurements.

    Parameters
    ----------
    rows : DataFrame
        Per (program, design): ``added`` and ``predicted`` (instructions), ``error`` (relative).
    ranks : DataFrame
        Per whole program: ``rank`` (Spearman, of designs by what they add), ``noise`` (relative
        difference of designs with equal counts), ``beyond`` (rank where designs that differ by less
        than that are not told apart).
    """

    rows: pd.DataFrame
    ranks: pd.DataFrame

    def errors(self, kind: str) -> pd.Series:
        """Return the errors' sizes of ``programs`` or ``micro workloads``: float64[row]."""
        whole = self.rows.index.get_level_values(0).str.startswith("cmd_")
        return self.rows["error"][whole == (kind == "programs")].abs()

    @property
    def rank(self) -> float:
        """Agreement of the order of designs (Spearman): the median over programs; NaN if none."""
        return float(self.ranks["rank"].median())

    def within(self) -> bool:
        """Whether all errors and the rank are within `LIMITS` and `RANK`."""
        for kind, (median, most) in LIMITS.items():
            errors = self.errors(kind)
            if len(errors) and (errors.median() > median or errors.quantile(0.95) > most):
                return False
        return not self.rank < RANK


def judge(seen: Observations, table: CostTable) -> Judgement:
    """Predict what designs add by a table of prices in instructions.

    Parameters
    ----------
    seen : Observations
        Of a folder; see `pvmmu.evidence.truth.instructions.observe`.
    table : CostTable
        Prices.

    Raises
    ------
    CostError
        An event occurred that the table does not price.
    """
    predicted = predict(seen.counts, table)
    rows = pd.DataFrame({"added": seen.added, "predicted": predicted})
    rows["error"] = rows["predicted"] / rows["added"] - 1
    ranks = {
        name: _ranks(part.droplevel(0))
        for name, part in rows[seen.whole].groupby(level=0)
        if len(part) > 2
    }
    names = ["rank", "noise", "beyond"]
    return Judgement(rows, pd.DataFrame.from_dict(ranks, orient="index", columns=names))


def predict(counts: pd.DataFrame, table: CostTable) -> pd.Series:
    """Return what the rows of `counts` cost by `table`, in its unit: float64[row]."""
    kept = [key for key in counts.columns if counts[key].any()]
    prices = [table.parts({key: 1.0}).sum() for key in kept]
    return pd.Series(counts[kept].to_numpy(float) @ np.array(prices), counts.index)


def _ranks(part: pd.DataFrame) -> tuple[float, float, float]:
    """Return rank, noise and rank beyond noise of the designs of one program."""
    added, predicted = part["added"], part["predicted"].round()
    same = added.groupby(predicted).agg(["min", "max", "size"])
    same = same[same["size"] > 1]
    noise = float((same["max"] / same["min"] - 1).max()) if len(same) else 0.0
    rank = float(added.rank().corr(predicted.rank()))
    order = added.sort_values()
    group, first = [], -np.inf
    for value in order:
        first = value if value > first * (1 + noise) else first
        group.append(first)
    groups = pd.Series(group, order.index)
    a, b = (s.rank().groupby(groups).transform("mean") for s in (added, predicted))
    return rank, noise, float(a.corr(b))


def price_report(seen: Observations, judged: Judgement) -> str:
    """Return a judgement for the terminal.

    Parameters
    ----------
    seen, judged
        Of `observe` and `judge`.

    Returns
    -------
    str
        A row per program (designs, native and added instructions, errors, ranks), what was set
        aside, and the summary; the last line is that of programs: ``added instructions: median x %,
        95 % within y %, rank r``.
    """
    lines = [
        f"  {'program':<16}{'designs':>8}{'native':>12}{'adds, least':>13}{'most':>12}"
        f"{'error':>8}{'95 %':>7}{'rank':>7}{'beyond noise':>14}"
    ]
    for name, part in judged.rows.groupby(level=0):
        errors = part["error"].abs()
        ranks = ""
        if name in judged.ranks.index:
            rank, noise, beyond = judged.ranks.loc[name]
            ranks = f"{rank:>7.3f}{beyond:>7.3f} ({noise:.1%})"
        lines.append(
            f"  {name:<16}{len(part):>8}{seen.native[name].iloc[0]:>12,.0f}"
            f"{part['added'].min():>13,.0f}{part['added'].max():>12,.0f}"
            f"{errors.median():>8.1%}{errors.quantile(0.95):>7.1%}{ranks}"
        )
    lines.append("")
    lines += [f"  left out: {where}: {why}" for where, why in seen.left.items()]
    lines.append(
        "  beyond noise: designs are not told apart whose measurements differ by less than those "
        "of designs with equal counts (in brackets)"
    )
    if len(judged.ranks):
        lines.append(f"  rank beyond noise: {judged.ranks['beyond'].median():.3f}")
    lines.append("")
    kinds = [k for k in ("micro workloads", "programs") if len(judged.errors(k))]
    for kind in kinds:
        errors, last = judged.errors(kind), kind == kinds[-1]
        label = "added instructions" if last else kind
        rank = f", rank {judged.rank:.3f}" if last and len(judged.ranks) else ""
        lines.append(
            f"{label}: median {errors.median():.1%}, 95 % within {errors.quantile(0.95):.1%}{rank}"
            .replace("%", " %").replace("95  %", "95 %")
        )  # fmt: skip
    return "\n".join(lines)


def fit_direct(folder: Path) -> tuple[Fit, Observations, dict[str, Any]]:
    """Fit the prices of direct paging to a folder of a measured design space.

    Parameters
    ----------
    folder : Path
        See `pvmmu.evidence.truth.instructions`.

    Returns
    -------
    Fit, Observations, dict
        The prices, what they were fitted to, and the cost table as a document.
    """
    seen = observe(folder)
    fitted = fit_prices(seen.counts, seen.added, seen.native, DIRECT)
    events = {e.name.lower() for e in Event}
    section = {
        key: "events" if key in events
        else "context" if key in ("system_calls", "switches", "entries_read") else "operations"
        for term in DIRECT for key in term.keys
    }  # fmt: skip
    off = left_out(seen.counts, seen.added, fitted)[seen.whole].abs()
    error = (round(float(off.median()), 4), round(float(off.quantile(0.95)), 4))
    doc: dict[str, Any] = {**_HEAD, "error": error, "free": DIRECT_FREE}
    doc |= document(section, fitted, _COUNTS)
    if fitted.tied:
        pairs = "; ".join(f"{a} and {b}" for a, b in fitted.tied)
        doc["notes"] = f"{doc['notes']} Read as sums: {pairs}."
    return fitted, seen, doc


class FittedTable(NamedTuple):
    """A table that was fitted to a folder.

    Parameters
    ----------
    fitted : Fit
        The prices.
    counts : DataFrame
        Per (program, design), what was counted.
    added : Series of float64[row]
        Instructions that each row adds to the native ones.
    document : dict
        The cost table, as `pvmmu.costs.files.write_costs` takes it.
    """

    fitted: Fit
    counts: pd.DataFrame
    added: pd.Series
    document: dict[str, Any]


def fit_folder(folder: Path) -> dict[str, FittedTable]:
    """Fit the tables that a folder of measurements has data for.

    Parameters
    ----------
    folder : Path
        A measured design space (`pvmmu.evidence.truth.instructions`), or KVM's instructions
        (`pvmmu.evidence.truth.kvm_instructions`).

    Returns
    -------
    dict of str to FittedTable
        By the table's name.

    Raises
    ------
    MeasurementError, RecordingError, CostError
        A file is missing or wrong (named), or there is too little for a fit.
    """
    if is_kvm_folder(folder):
        out = {}
        for environment in ("kvm-shadow", "kvm-nested"):
            name, *rest = fit_kvm(folder, environment)
            out[name] = FittedTable(*rest)
        return out
    fitted, seen, doc = fit_direct(folder)
    return {DIRECT_NAME: FittedTable(fitted, seen.counts, seen.added, doc)}
