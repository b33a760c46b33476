"""``pvmmu sweep``: all designs of some traces and modes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pvmmu.cli import common
from pvmmu.errors import PvmmuError
from pvmmu.files import whole_file
from pvmmu.guest.load_trace import load_trace
from pvmmu.search.sweep import sweep

_SUFFIXES = (".parquet", ".csv")


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu sweep") -> int:
    """Run the command; return 130 if it was interrupted (what is done is kept)."""
    p = common.parser(
        prog, "Replay traces under every hook set (or those named) in some modes. Sets that are "
        "carried alike are one row; hook_sets is their number.",
    )  # fmt: skip
    p.add_argument("traces", nargs="+", metavar="TRACE", help=common.TRACE)
    p.add_argument("--mode", action="append", help="paging mode (repeat; default direct)")
    p.add_argument("--hooks", action="append", help="hook set (repeat; default: every one)")
    p.add_argument(
        "--costs", action="append",
        help="cost table (repeat; default: that of the first trace's era and the first mode)",
    )  # fmt: skip
    p.add_argument("--best", type=_rows, default=10, help="rows to print per trace and mode")
    p.add_argument("-o", "--out", type=Path, help="write all rows to a .parquet or .csv file")
    p.add_argument("--store", type=Path, help="folder that keeps counts; a stopped sweep goes on")
    p.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    args, how = p.parsed(argv)
    if args.out and args.out.suffix not in _SUFFIXES:
        raise PvmmuError(f"{args.out}: the name must end in {' or '.join(_SUFFIXES)}")
    traces = [load_trace(t, how) for t in args.traces]
    modes = args.mode or [common.MODE]
    table = sweep(
        traces, args.hooks or "all", modes,
        args.costs or [common.costs_of(None, traces[0], modes[0])],
        progress=False if args.quiet or args.json else None,
        store=args.store,
    )  # fmt: skip
    if args.out:
        write_table(table, args.out)
    best = _best(table, args.best)
    if args.json:
        rows = best.to_dict(orient="records")
        common.print_json({**table.attrs, "rows": len(table), "best": rows})
    else:
        print(_text(table, best, args.out))
        for trace in traces:
            if trace.provenance.assumptions:
                print(f"\n{trace.name}, {common.assumed(trace)}")
    if not table.attrs["complete"]:
        print(f"{prog}: stopped; the table holds what was done", file=sys.stderr)
        return 130
    return 0


def _rows(text: str) -> int:
    """Return a number of rows."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a number of rows, not {text!r}")
    return int(text)


def write_table(table: pd.DataFrame, path: Path) -> Path:
    """Write a table as Parquet or CSV (by the suffix), whole or not at all.

    Raises
    ------
    PvmmuError
        The file cannot be written.
    """
    with whole_file(path) as tmp:
        if path.suffix == ".csv":
            table.to_csv(tmp, index=False, lineterminator="\n")
        else:
            table.to_parquet(tmp, index=False)
    return path


def _best(table: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the cheapest designs that can run, of each trace, mode and cost table."""
    if table.empty:
        return table
    works = table[table["status"] == "ok"].sort_values(["cycles", "n_hooks"], kind="stable")
    out: pd.DataFrame = works.groupby(["trace", "mode", "costs"], sort=False).head(n)
    return out.sort_values(["trace", "mode", "costs"], kind="stable")


def _text(table: pd.DataFrame, best: pd.DataFrame, out: Path | None) -> str:
    if table.empty:
        return "nothing was swept"
    lines = [f"{int(table['hook_sets'].sum()):,} designs, {len(table):,} kinds"]
    for (trace, mode, costs), group in best.groupby(["trace", "mode", "costs"], sort=False):
        mine = table[["trace", "mode", "costs"]].eq([trace, mode, costs]).all(axis=1)
        of = table[mine]
        can, total = (int(n["hook_sets"].sum()) for n in (of[of["status"] == "ok"], of))
        head = f"{'cycles':>14} {'entries':>9} {'hooks':>5}  smallest set of its kind"
        lines += ["", f"{trace}, {mode}, {costs}: {can:,} of {total:,} can run", head]
        lines += [
            f"{r.cycles:>14,.0f} {r.entries:>9,} {r.n_hooks:>5}  {r.hooks}"
            for r in group.itertuples()
        ]
    if out:
        lines += ["", f"all rows: {out}"]
    return "\n".join(lines)
