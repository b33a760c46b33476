"""``pvmmu compare``: two designs on one trace, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from tabulate import tabulate

from pvmmu.cli import common
from pvmmu.guest.load_trace import load_trace
from pvmmu.replay import diff, explain
from pvmmu.replay.compare import Comparison, Design, events_table


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu compare") -> int:
    """Run the command; return 1 if one of the designs cannot run the trace."""
    p = common.parser(
        prog, "Compare designs on one trace. A design is MODE=HOOKS, such as direct=linux-6.1 or "
        "'direct=linux-6.1 +ptep_set_wrprotect'.",
    )  # fmt: skip
    p.add_argument("trace", metavar="TRACE", help=common.TRACE)
    p.add_argument("a", metavar="A", help="first design")
    p.add_argument("b", metavar="B", help="second design")
    common.add_costs(p)
    args, how = p.parsed(argv)
    trace = load_trace(args.trace, how)
    designs = (Design.parse(args.a), Design.parse(args.b))
    costs = common.costs_of(args.costs, trace, designs[0].mode)
    c = Comparison(trace, designs, costs)
    can = all(k.infeasible is None for k in c.counts)
    changes = _operations_changed(c) if can else None
    if args.json:
        both = [common.document(k, trace, costs) for k in c.counts]
        rows = changes.to_dict(orient="records") if changes is not None else None
        common.print_json(
            common.versions() | {"claim": c.claim(), "designs": both, "changes": rows}
        )
    else:
        print(_text(c, changes))
    return int(not can)


def _operations_changed(c: Comparison) -> pd.DataFrame:
    """Return how many operations two designs carry otherwise, by kind and caller."""
    a, b = (explain(c.trace, d.hooks, d.mode) for d in c.designs[:2])
    changed = diff(a, b)
    by = changed.groupby(
        ["op", "caller", "mechanism_a", "mechanism_b"], observed=True, dropna=False
    )
    table = by.size().rename("operations").reset_index()
    table["caller"] = table["caller"].astype(object).where(table["caller"].notna(), "")
    table["op"] = table["op"].astype(str)
    out: pd.DataFrame = table.sort_values("operations", ascending=False, ignore_index=True)
    return out


def _text(c: Comparison, changes: pd.DataFrame | None) -> str:
    parts = [c.claim(), *filter(None, [common.assumed(c.trace)])]
    for name, d, k in zip(c.names, c.designs, c.counts, strict=True):
        parts.append(f"{name}  {d.mode}: {d.hooks.short}")
        if k.infeasible is not None:
            parts.append(f"   cannot run: {k.infeasible.reason}")
        else:
            parts.append(f"   verdict on this trace: {k.verdict.text}")
    table = events_table(c)
    rows = [
        [event, *("-" if pd.isna(n) else f"{n:,.0f}" for n in row)]
        for event, *row in table.itertuples()
    ]
    shown = tabulate(
        rows, ["event", *table.columns], tablefmt="simple", disable_numparse=True,
        colalign=["left", *["right"] * len(table.columns)],
    )  # fmt: skip
    parts += ["", shown]
    if changes is not None:
        total = int(changes["operations"].sum())
        parts += ["", f"{total:,} of {len(c.trace):,} operations are carried otherwise"]
        if total:
            parts.append(tabulate(changes, "keys", tablefmt="simple", showindex=False))
    return "\n".join(parts)
