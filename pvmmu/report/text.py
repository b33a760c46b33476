"""``details.txt``: what a mail leaves out, in pure ASCII of at most 72 columns."""

from __future__ import annotations

from pvmmu.hooks import HookSet, catalogue
from pvmmu.hooks.callsites import callsites
from pvmmu.replay import Counts
from pvmmu.replay.compare import Comparison
from pvmmu.report.results import Results
from pvmmu.report.run_report import (
    bars,
    design_list,
    hook_table,
    method,
    plain_ascii,
    section,
    stability,
    text_table,
    wrap,
)


def text(r: Results) -> str:
    """Return the text of a proposal."""
    first = r.comparisons[0]
    parts = [
        wrap(claim(first)),
        section("Designs", design_list(first)),
        section("What A changes against B", changes(first)),
        section("Entries to the hypervisor", _entries(r)),
        section(f"Entries for {first.trace.name}", bars(first)),
        section("Cycles, in thousands", _cycles(r)),
        section("How sure that is", _sure(r)),
        section("All hooks of design A", hook_table(first.designs[0].hooks)),
        section("Method and versions", "\n".join(method(c) for c in r.comparisons[:1])
                + _others(r)),
        section("To repeat it", _repeat(r)),
    ]  # fmt: skip
    return plain_ascii("\n\n".join(parts) + "\n")


def claim(c: Comparison) -> str:
    """Return the finding in one sentence, its number first."""
    a, b = c.counts[:2]
    what = f"{c.designs[0].hooks.short} in mode {c.designs[0].mode}"
    other = f"{c.designs[1].hooks.short} in mode {c.designs[1].mode}"
    if a.infeasible is not None:
        return f"Cannot run: {what} on {c.trace.name} ({a.infeasible.reason})."
    if b.infeasible is not None or not b.entries:
        return f"{a.entries:,} entries to the hypervisor for {c.trace.name}: {what}."
    share = a.entries / b.entries - 1
    word = "fewer" if share < 0 else "more"
    return (
        f"{abs(share):.0%} {word} entries to the hypervisor for {c.trace.name} ({a.entries:,} "
        f"instead of {b.entries:,}): {what}, against {other}."
    )


def changes(c: Comparison) -> str:
    """Tell each hook that one of the first two designs has and the other has not."""
    a, b = c.designs[0].hooks, c.designs[1].hooks
    lines = []
    for sign, names in (("+", HookSet(a.mask & ~b.mask)), ("-", HookSet(b.mask & ~a.mask))):
        lines += [_hook(sign, name) for name in names]
    if c.designs[0].mode != c.designs[1].mode:
        lines.append(wrap(f"mode {c.designs[0].mode} instead of {c.designs[1].mode}"))
    return "\n".join(lines) or "Nothing."


def _hook(sign: str, name: str) -> str:
    """Tell what a hook means, whom it concerns and where it is called."""
    hook, sites = catalogue()[name], callsites(HookSet.of(name)).iloc[0]
    covers = ", ".join(op.name.lower() for op in hook.operations)
    since = f"merged in {hook.merged}" if hook.was_merged else "never merged"
    used = ", ".join(hook.implementers) or "nobody"
    calls = f"{sites['generic']} calls in generic code, {sites['x86']} in x86"
    body = f"{hook.meaning}. Covers {covers}. {since}, used by {used}; {calls}."
    return f"{sign} {name} ({hook.level}-level)\n{wrap(body, '    ')}"


def _cell(k: Counts, value: float) -> str:
    return "cannot run" if k.infeasible is not None else f"{value:,.0f}"


def _entries(r: Results) -> str:
    head = ["workload", *r.comparisons[0].names]
    rows = [[c.trace.name, *(_cell(k, k.entries) for k in c.counts)] for c in r.comparisons]
    return text_table(rows, head)


def _cycles(r: Results) -> str:
    rows = []
    for name, group in r.table.groupby("workload", sort=False):
        for label, what in ((name, "cycles"), (". least", "cycles_low"), (". most", "cycles_high")):
            cells = ["-" if v != v else f"{v / 1000:,.0f}" for v in group[what].astype(float)]
            rows.append([str(label), *cells])
    costs = r.comparisons[0].costs
    kinds = [cost.kind for cost in costs.events.values()]
    made_of = ", ".join(f"{kinds.count(k)} {k}" for k in sorted(set(kinds)))
    note = f"Cost table {costs.name}: {costs.title}. Figures: {made_of}. least and most: all "
    note += "figures at that end of their ranges."
    head = ["workload", *r.comparisons[0].names]
    return "\n\n".join([text_table(rows, head), wrap(note)])


def _sure(r: Results) -> str:
    lines = [stability(r.comparisons[0])]
    for c in r.comparisons:
        s = r.stability(c)
        if s is None:
            continue
        a, b = (k.cycles(c.costs) for k in c.counts[:2])
        word = "cheaper" if a < b else "dearer" if a > b else "not cheaper"
        flips = f"; alone overturned by {', '.join(s.flips)}" if s.flips else ""
        lines.append(
            wrap(f"{c.trace.name}: A is {word} than B in {s.share:.0%} of {s.samples} draws from "
                 f"the ranges of the costs{flips}.")
        )  # fmt: skip
    return "\n".join(lines)


def _others(r: Results) -> str:
    lines = [
        wrap(f"Also: trace {c.trace.name} [{c.trace.fingerprint}], {len(c.trace):,} operations, "
             f"Linux {c.trace.provenance.kernel}, {c.trace.provenance.platform.guest}.")
        for c in r.comparisons[1:]
    ]  # fmt: skip
    if r.change():
        lines.append(wrap(r.change()))
    return "".join(f"\n{line}" for line in lines)


def _repeat(r: Results) -> str:
    return "    pvmmu proposal --state state.json --out again\n\n" + wrap(
        "state.json lies beside this text, results.csv and results.parquet hold all counts, "
        "proposal.ipynb is the notebook that made the figures."
    )
