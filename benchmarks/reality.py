"""Model against measurement, for every workload, size and environment: a table for the repository.

    python benchmarks/reality.py [--quick] [--out FILE]

`pvmmu truth data/truth/*.csv*` prints each figure.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from pvmmu.evidence.truth import shipped_measurements

RESULTS = Path(__file__).parent / "results" / "reality.md"


def by_workload(measured: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each workload, size, kernel and environment."""
    difference = pd.to_numeric(measured["difference"]).abs()
    table = measured.assign(
        what=measured["counter"].str.replace(r"( (all|\d+|0))?: .*", "", regex=True),
        exact=difference == 0,
        ok=measured["verdict"] == "ok",
        off=difference / pd.to_numeric(measured["tolerance"]),
    )
    groups = table.groupby(["table", "what"], sort=False)
    out = pd.DataFrame(
        {"figures": groups.size(), "exact": groups["exact"].sum(), "agree": groups["ok"].sum(),
         "largest residual / tolerance": groups["off"].max().round(2)}
    )  # fmt: skip
    return out.reset_index()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"table (default {RESULTS})")
    args = parser.parse_args()
    measured = shipped_measurements(8 if args.quick else None)
    agree, total = (measured["verdict"] == "ok").sum(), len(measured)
    text = (
        "# The model against real Xen and the real kernel\n\n"
        f"{agree:,} of {total:,} figures agree. Made by `benchmarks/reality.py`; tolerances: three "
        "events or 5 %, for differences between sizes the truth's own spread or one event.\n\n"
        + tabulate(by_workload(measured), headers="keys", tablefmt="github", showindex=False)
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
