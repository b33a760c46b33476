"""``pvmmu report``: plain text for a mailing list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pvmmu.cli import common
from pvmmu.guest.load_trace import load_trace
from pvmmu.replay.compare import Comparison, Design
from pvmmu.report.run_report import against, report, write_report


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu report") -> int:
    """Run the command."""
    p = common.Options(prog, "Print a report of a design against others, for a mailing list.")
    p.add_argument("trace", metavar="TRACE", help=common.TRACE)
    p.add_argument("--hooks", default=common.HOOKS, help="hook set (default %(default)s)")
    p.add_argument("--mode", default=common.MODE, help="paging mode (default %(default)s)")
    common.add_costs(p)
    p.add_argument(
        "--against", action="append", metavar="MODE=HOOKS", help="design to compare with (repeat)"
    )
    p.add_argument("-o", "--out", type=Path, help="write to a file")
    args, how = p.parsed(argv)
    design = Design.of(args.hooks, args.mode)
    others = [Design.parse(text) for text in args.against or ()] or against(design)
    trace = load_trace(args.trace, how)
    costs = common.costs_of(args.costs, trace, design.mode)
    c = Comparison(trace, (design, *others), costs, common.given(args.trace, how))
    if args.out:
        write_report(c, args.out)
    else:
        print(report(c), end="")
    return 0
