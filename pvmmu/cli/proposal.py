"""``pvmmu proposal``: a folder to send."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pvmmu.cli import common
from pvmmu.errors import PvmmuError
from pvmmu.report.bundle import remake, write_bundle
from pvmmu.report.state import WORKLOADS, State


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu proposal") -> int:
    """Run the command."""
    p = common.Options(
        prog, "Write a proposal: text for a mail, figures, data, state and an executed notebook. A "
        "design is MODE=HOOKS; the first is proposed, the second is what it is measured by.",
    )  # fmt: skip
    p.add_argument("trace", nargs="?", metavar="TRACE", help="what the claim is about")
    p.add_argument("designs", nargs="*", metavar="DESIGN", help="such as direct=linux-6.1")
    common.add_costs(p)
    p.add_argument("--workload", action="append", metavar="TRACE",
                   help=f"more traces (repeat; default {', '.join(WORKLOADS)})")  # fmt: skip
    p.add_argument("--state", type=Path, help="make a bundle again from its state.json")
    p.add_argument("--no-notebook", action="store_true", help="without the executed notebook")
    p.add_argument("-o", "--out", type=Path, default=Path("proposal"), help="folder")
    args, how = p.parsed(argv)
    if (args.state is None) == (args.trace is None):
        raise PvmmuError("name either a TRACE and designs, or --state FILE")
    notebook = not args.no_notebook
    if args.state:
        files, change = remake(args.state, args.out, notebook=notebook)
        print(change)
    else:
        state = State.of(
            args.trace, args.designs, args.costs or "", args.workload or WORKLOADS, how
        )
        files = write_bundle(state, args.out, notebook=notebook)
    print("\n".join(map(str, files)))
    return 0
