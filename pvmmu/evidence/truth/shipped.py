"""The measurements that ship with the package, against the model, as tables for readers."""

from __future__ import annotations

import pandas as pd

from pvmmu.evidence.truth.measurements import compare_table, read_table
from pvmmu.paths import data_path

#: Tables in ``data/truth``.
TABLES = ("kernel_counts.csv.xz", "xen_pv_summary.csv")


def shipped_measurements(largest: int | None = None) -> pd.DataFrame:
    """Compare all tables that ship with the package with the model.

    Parameters
    ----------
    largest : int, optional
        Size (``n_pages``) above which rows are left out: large ones take longer.

    Returns
    -------
    DataFrame
        As `pvmmu.evidence.truth.compare_measurements`, with ``table`` and ``workload``.
    """
    out = []
    for name in TABLES:
        path = data_path("truth", name)
        table = read_table(path)
        if largest is not None:
            table = table[table["n_pages"].astype(int) <= largest].reset_index(drop=True)
        result = compare_table(path, table)
        workload = result["counter"].str.split(".").str[0]
        out.append(result.assign(table=name.split(".")[0], workload=workload))
    return pd.concat(out, ignore_index=True)


def summarise(measured: pd.DataFrame) -> pd.DataFrame:
    """Return by workload how many figures `measured` has, are exact, and agree."""
    table = measured.assign(
        exact=pd.to_numeric(measured["difference"]) == 0, agree=measured["verdict"] == "ok"
    )
    groups = table.groupby("workload")
    return pd.DataFrame(
        {"figures": groups.size(), "exact": groups["exact"].sum(), "agree": groups["agree"].sum()}
    )


def worst(measured: pd.DataFrame, rows: int = 10) -> pd.DataFrame:
    """Return so many `rows` of `measured`, the figures that are off most for their tolerance."""
    share = pd.to_numeric(measured["difference"]).abs() / pd.to_numeric(measured["tolerance"])
    order = share.sort_values(ascending=False, kind="stable").index[:rows]
    columns = ["counter", "measured", "predicted", "difference", "tolerance", "verdict"]
    return measured.loc[order, columns].set_index("counter")
