"""``pvmmu replay``: what a trace costs under a hook set in a mode."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from pvmmu.cli import common
from pvmmu.guest.load_trace import load_trace
from pvmmu.replay import Counts, causes, explain, replay


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu replay") -> int:
    """Run the command; return 1 if the design cannot run the trace."""
    p = common.parser(prog, "Replay a trace under a hook set in a paging mode and count events.")
    p.add_argument("trace", metavar="TRACE", help=common.TRACE)
    p.add_argument("--hooks", default=common.HOOKS, help="hook set (default %(default)s)")
    p.add_argument("--mode", default=common.MODE, help="paging mode (default %(default)s)")
    common.add_costs(p)
    p.add_argument("--causes", metavar="EVENT", help="list the operations behind an event")
    args, how = p.parsed(argv)
    trace = load_trace(args.trace, how)
    costs = common.costs_of(args.costs, trace, args.mode)
    counts = replay(trace, args.hooks, args.mode)
    document = common.document(counts, trace, costs) | common.versions()
    if args.causes and counts.infeasible is None:
        table = causes(explain(trace, args.hooks, args.mode), args.causes)
        document["causes"] = table.astype(object).to_dict(orient="records")
    if args.json:
        common.print_json(document)
    else:
        print(_text(counts, document, common.assumed(trace)))
    return int(counts.infeasible is not None)


def _text(counts: Counts, document: dict[str, object], assumed: str) -> str:
    """Return the document for a terminal."""
    mark = ", counterfactual" if counts.counterfactual else ""
    head = f"{document['trace']}: {document['operations']:,} operations"
    head += f"\n{counts.mode}: {counts.hooks}{mark}" + f"\n{assumed}" * bool(assumed)
    if counts.infeasible is not None:
        at = f" (operation {counts.infeasible.row})" if counts.infeasible.row >= 0 else ""
        return f"{head}\ncannot run: {counts.infeasible.reason}{at}"
    events = [(name, f"{n:,}") for name, n in counts.series().items()]
    body = tabulate(events, ["event", "count"], tablefmt="simple", disable_numparse=True,
                    colalign=("left", "right"))  # fmt: skip
    price = (
        f"{counts.entries:,} entries to the hypervisor; {document['cycles']:,.0f} "
        f"{document['unit']} ({document['cycles_low']:,.0f} to {document['cycles_high']:,.0f}, "
        f"{document['costs']})"
    )
    if document["anachronism"]:
        price += f"\n{document['anachronism']}"
    parts = [head, "", body, "", price, f"verdict on this trace: {counts.verdict.text}"]
    if document.get("causes"):
        parts += ["", tabulate(document["causes"], "keys", tablefmt="simple")]  # type: ignore[arg-type]
    return "\n".join(parts)
