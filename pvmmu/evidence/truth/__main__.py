"""Command line: ``pvmmu truth FILE...``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pvmmu.costs import get_costs
from pvmmu.errors import PvmmuError
from pvmmu.evidence.truth.design_space import agreement, compare_designs
from pvmmu.evidence.truth.design_space_text import design_space_text
from pvmmu.evidence.truth.instructions import observe
from pvmmu.evidence.truth.measurements import compare_measurements, is_measurement
from pvmmu.evidence.truth.prices import DIRECT_NAME, judge, price_report
from pvmmu.evidence.truth.recordings import HOOKS, MODE, compare, events_of


def _text(path: Path, table: pd.DataFrame) -> str:
    """Return a table for the terminal; a note only where something differs."""
    lines = [
        str(path),
        f"  {'counter':<26}{'measured':>10}{'predicted':>12}{'difference':>12}"
        f"{'tolerance':>11}  verdict",
    ]
    for r in table.itertuples():
        note = f"  ({r.note})" if r.verdict != "ok" else ""
        lines.append(
            f"  {r.counter:<26}{r.measured:>10}{r.predicted:>12}{r.difference:>12}"
            f"{r.tolerance:>11}  {r.verdict}{note}"
        )
    return "\n".join(lines)


def _judge_prices(folders: Sequence[Path], table: str, prog: str) -> int:
    """Compare folders of a measured design space with what a cost table predicts."""
    status = 0
    for folder in folders:
        try:
            seen = observe(folder)
            judged = judge(seen, get_costs(table))
        except PvmmuError as e:
            print(f"{prog}: {e}", file=sys.stderr)
            status = 2
            continue
        print(f"{folder}: instructions that designs add to the native ones, by {table}\n")
        print(price_report(seen, judged), flush=True)
        status = max(status, int(not judged.within()))
    return status


def _compare_folder(path: Path, as_json: bool) -> tuple[dict[str, Any], bool]:
    """Compare a folder of measured designs; return its JSON, and whether enough agrees."""
    counters, outcomes = compare_designs(path)
    line, enough = agreement(counters, outcomes)
    if not as_json:
        print(design_space_text(path, counters, outcomes), line, sep="\n\n", flush=True)
    document = {
        "folder": str(path), "result": line, "agrees": enough,
        "outcomes": outcomes.to_dict("records"), "counters": counters.to_dict("records"),
    }  # fmt: skip
    return document, enough


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu truth") -> int:
    """Run the command; return its exit status (0 all agree, 1 something differs, 2 bad input)."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Compare real measurements with what the model predicts: recordings of Xen PV "
        "guests (replayed), tables of counts per iteration (run on the model guest), and folders "
        "of measured designs (streams of the base replayed under each hook set).",
        epilog="exit status: 0 if all counters agree (of a folder all outcomes and 99.5 %% of the "
        "counters), 1 if any differs, 2 if a file cannot be read",
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE",
        help="recording (.txt, .gz, .xz), table of counts (.csv, .csv.gz), or folder of designs",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--hooks", default=HOOKS, help=f"hooks of the guest (default {HOOKS})")
    parser.add_argument("--mode", default=MODE, help=f"its paging mode (default {MODE})")
    parser.add_argument(
        "--prices", action="store_true",
        help="of folders of measured designs: predict the instructions that designs add; the exit "
        "status is 1 outside the limits",
    )  # fmt: skip
    parser.add_argument(
        "--costs", default=DIRECT_NAME, help=f"cost table for --prices (default {DIRECT_NAME})"
    )
    args = parser.parse_args(argv)
    if args.prices:
        return _judge_prices(args.files, args.costs, prog)
    agree = total = 0
    status, documents = 0, []
    folders: list[dict[str, Any]] = []
    for path in args.files:
        try:
            if path.is_dir():
                document, enough = _compare_folder(path, args.json)
                folders.append(document)
                status = status or int(not enough)
                continue
            events: dict[str, list[str]] = {}
            if is_measurement(path):
                table = compare_measurements(path)
            else:
                table = compare(path, args.hooks, args.mode)
                events = events_of(path)
        except PvmmuError as e:
            print(f"{prog}: {e}", file=sys.stderr)
            status = 2
            continue
        ok = int((table["verdict"] == "ok").sum())
        agree, total = agree + ok, total + len(table)
        counters = table.to_dict("records")
        documents.append({"file": str(path), "agree": ok, **events, "counters": counters})
        if not args.json:
            print(_text(path, table), end="\n")
            for word, names in events.items():
                print(f"  {word}: {', '.join(names) or 'none'}")
            print(flush=True)
    if args.json:
        found = {"files": documents, "folders": folders, "agree": agree, "total": total}
        print(json.dumps(found, indent=1))
    elif documents or not folders:
        print(f"{agree} of {total} agree" if documents else "nothing was compared")
    return status or int(agree != total)


if __name__ == "__main__":
    sys.exit(main())
