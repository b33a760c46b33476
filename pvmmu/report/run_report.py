"""Plain text for a mailing list: pure ASCII, at most 72 columns, with what it takes to repeat it.

    pvmmu report fork.64 --mode direct --hooks linux-6.1 --costs xen-2026

prints what the Export button of the notebooks writes.
"""

from __future__ import annotations

import contextlib
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

import pvmmu
from pvmmu._jit import fingerprint
from pvmmu.costs.default import anachronism
from pvmmu.errors import CostError
from pvmmu.files import whole_file
from pvmmu.hooks import HookSet, catalogue
from pvmmu.hooks.callsites import callsites
from pvmmu.modes.events import EVENTS, Event, column
from pvmmu.replay.compare import Comparison, Design
from pvmmu.replay.whole import TABLES, known_programs, whole_program

WIDTH = 72
_BAR = 34
#: Designs that a report compares with, unless others are named: (hooks, mode).
AGAINST = (("linux-6.1", "direct"), ("vmi", "vmi"), ("none", "native"))


def against(design: Design) -> list[Design]:
    """Return what a `design` is compared with, unless others are named.

    First what a kernel has today; that itself is measured by its low-level hooks alone, in its
    mode.
    """
    today, *others = (Design.of(hooks, mode) for hooks, mode in AGAINST)
    same = (design.hooks, design.mode) == (today.hooks, today.mode)
    first = Design.of(design.hooks.low, design.mode) if same else today
    return [first, *(d for d in others if (d.hooks, d.mode) != (design.hooks, design.mode))]


def report(comparison: Comparison) -> str:
    """Return the text of a comparison.

    Parameters
    ----------
    comparison : Comparison
        What to report.

    Returns
    -------
    str
        ASCII lines of at most 72 columns, without tabs and trailing blanks, the same whenever the
        numbers are.
    """
    c = comparison
    parts = [
        wrap(c.claim()),
        section("Designs", design_list(c)),
        section("Entries to the hypervisor", bars(c)),
        section("Events", events(c)),
        section("Price", _price(c)),
        section("Hooks of design A", hook_table(c.designs[0].hooks)),
        section("Method and versions", method(c)),
        section("To repeat it", _command(c)),
    ]
    text = "\n\n".join(parts) + "\n"
    return plain_ascii(text)


def wrap(text: str, indent: str = "") -> str:
    """Return `text` as paragraphs of the width of a mail, each line behind `indent`."""
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=True,
        break_on_hyphens=False,
    )  # fmt: skip


def section(title: str, body: str) -> str:
    """Return a section: `title` as its heading, then `body`."""
    return f"{title}\n{'-' * len(title)}\n{body}"


def plain_ascii(text: str) -> str:
    """Return `text` such that a mail program has nothing to spoil."""
    lines = [line.rstrip() for line in text.replace("\t", " ").split("\n")]
    clean = "\n".join(lines).encode("ascii", "replace").decode()
    longest = max(map(len, clean.split("\n")))
    if longest > WIDTH:
        raise AssertionError(f"a report line has {longest} columns")
    return clean


def design_list(c: Comparison) -> str:
    """Return the names of the designs of `c`, and why one cannot run."""
    out = []
    for name, d, counts in zip(c.names, c.designs, c.counts, strict=True):
        mark = (
            " (counterfactual: no interface of the trace's kernel)" if counts.counterfactual else ""
        )
        out.append(wrap(f"{name}  {d.mode}: {d.hooks.short}{mark}"))
        if counts.infeasible is not None:
            out.append(wrap(f"cannot run: {counts.infeasible.reason}", "   "))
        elif not counts.verdict.sound:
            out.append(wrap(counts.verdict.text, "   "))
    return "\n".join(out)


def bars(c: Comparison) -> str:
    """Return entries to the hypervisor of the designs of `c` as bars of characters."""
    most = max([k.entries for k in c.counts] + [1])
    lines = []
    for name, counts in zip(c.names, c.counts, strict=True):
        if counts.infeasible is not None:
            lines.append(f"{name}  cannot run")
            continue
        bar = "#" * round(_BAR * counts.entries / most)
        lines.append(f"{name}  {counts.entries:>11,}  {bar}")
    return "\n".join(lines)


def events(c: Comparison) -> str:
    """Return the table of events of `c`."""
    shown = [e for e in EVENTS if any(k.high[e] for k in c.counts)]
    rows = []
    for e in shown:
        cells: list[str] = []
        for k in c.counts:
            if k.infeasible is not None:
                cells.append("-")
            elif k.low[e] == k.high[e]:
                cells.append(f"{k.low[e]:,}")
            else:
                cells.append(f"{k.low[e]:,}..{k.high[e]:,}")
        rows.append([column(e), *cells])
    return text_table(rows, ["event", *c.names])


def text_table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """Return `rows` under a `head`, the first column to the left and the others to the right."""
    align = ("left", *["right"] * (len(head) - 1))
    return tabulate(list(rows), head, tablefmt="simple", colalign=align, disable_numparse=True)


def _price(c: Comparison) -> str:
    costs = c.costs
    kinds = [cost.kind for cost in costs.events.values()]
    made_of = ", ".join(f"{kinds.count(k)} {k}" for k in sorted(set(kinds)))
    low, high = costs.bounds()
    rows = []
    for name, k in zip(c.names, c.counts, strict=True):
        if k.infeasible is not None:
            rows.append([name, "-", "-", "-", "cannot run"])
            continue
        least, most = np.nansum(k.low * low), np.nansum(k.high * high)
        per = k.cycles(costs) / len(c.trace)
        rows.append(
            [name, f"{k.cycles(costs):,.0f}", f"{least:,.0f}", f"{most:,.0f}", f"{per:,.0f}"]
        )
    head = ["", "cycles", "least", "most", "per operation"]
    note = f"Cost table {costs.name}: {costs.title}. Figures: {made_of}."
    remark = anachronism(costs, c.trace.provenance.kernel)
    note += f" An {remark}." if remark else ""
    parts = [text_table(rows, head), wrap(note), stability(c), whole_text(c)]
    return "\n\n".join(part for part in parts if part)


def whole_text(c: Comparison) -> str:
    """Return what the designs of the comparison `c` add to the whole program, by instructions.

    Empty if nothing was measured of the program or the modes.
    """
    known = c.trace.name in known_programs().index
    found = {}
    for name, d, k in zip(c.names, c.designs, c.counts, strict=True):
        if known and k.infeasible is None and d.mode in TABLES:
            with contextlib.suppress(CostError):  # an event of which no price was measured
                found[name] = whole_program(c.trace, d.hooks, d.mode)
    if not found:
        return ""
    native = next(iter(found.values())).native
    lines = [f"The whole program executes {native:,.0f} instructions natively (measured)."]
    for name, whole in found.items():
        low, high = whole.range
        lines.append(f"{name} adds {whole.share:.0%} ({low:.0%} to {high:.0%}).")
    if {"A", "B"} <= found.keys():
        lines.append(f"From B to A: {found['B'].change(found['A']).text()}.")
    return wrap(" ".join(lines))


def stability(c: Comparison) -> str:
    """Return whether A in `c` is cheaper or dearer than the others over all ranges of the costs."""
    low, high = (np.nan_to_num(b) for b in c.costs.bounds())
    lines = []
    for name, other in zip(c.names[1:], c.counts[1:], strict=True):
        if c.counts[0].infeasible is not None or other.infeasible is not None:
            continue
        difference = (c.counts[0].low - other.low).astype(float)
        least = np.where(difference > 0, difference * low, difference * high).sum()
        most = np.where(difference > 0, difference * high, difference * low).sum()
        if least >= 0 or most <= 0:
            word = "costs the same as" if least == most == 0 else "dearer than"
            word = "cheaper than" if most <= 0 and least < 0 else word
            lines.append(wrap(f"A is {word} {name} whatever the figures are within their ranges."))
        else:
            swing = np.abs(difference * (high - low))
            names = ", ".join(column(Event(int(e))) for e in np.argsort(-swing)[:3] if swing[e])
            lines.append(wrap(f"A against {name} depends on priors, most of all on {names}."))
    return "\n".join(lines) or "Nothing to compare."


def hook_table(hooks: HookSet) -> str:
    """Return `hooks` with their level, first kernel and call sites."""
    if not hooks:
        return "none"
    sites = callsites(hooks)
    rows = [
        [name, catalogue()[name].level, catalogue()[name].merged, f"{r.generic}", f"{r.x86}"]
        for name, r in zip(sites.index, sites.itertuples(), strict=True)
    ]
    total = f"{len(hooks)} hooks, {hooks.members} members of the ops structure"
    note = "Calls in generic code and in x86, counted in Linux 6.18.35, +-2."
    head = ["hook", "level", "since", "generic", "x86"]
    return f"{text_table(rows, head)}\n\n{wrap(f'{total}. {note}')}"


def method(c: Comparison) -> str:
    """Return what the numbers of `c` rest on, and of which versions they are."""
    p = c.trace.provenance
    kinds = c.trace["evidence"]
    known = f"{int((kinds == 2).sum()):,} recorded, {int((kinds == 1).sum()):,} inferred"
    unknown = int((kinds == 0).sum())
    known += f", {unknown:,} unknown" if unknown else ""
    lines = [
        f"Trace {c.trace.name} [{c.trace.fingerprint}]: {len(c.trace):,} operations ({known}) of "
        f"Linux {p.kernel}, {p.platform.guest}, {p.platform.vcpus} vCPU, from {p.source} "
        f"({p.recorder}).",
        *(f"{text[0].upper()}{text[1:]}." for text in p.assumptions),
        "Every operation is replayed under each design; nothing is sampled or fitted.",
        f"pvmmu {pvmmu.__version__}, model {fingerprint()}.",
    ]
    return "\n".join(wrap(line) for line in lines)


def command(c: Comparison) -> list[str]:
    """Return the command that prints the report of `c` again, as words."""
    a = c.designs[0]
    words = ["pvmmu", "report", *(c.given or (c.trace.name,)), "--mode", a.mode]
    words += ["--hooks", _spelled(a), "--costs", c.costs.name]
    for d in c.designs[1:]:
        words += ["--against", f"{d.mode}={_spelled(d)}"]
    return words


def _spelled(design: Design) -> str:
    """Return a hook set by name, or by its mask where names do not fit a line."""
    fits = len(design.mode) + len(design.hooks.short) < WIDTH - 12
    return design.hooks.short if fits else f"0x{design.hooks.mask:x}"


def _command(c: Comparison) -> str:
    """Return the command over several lines."""
    lines = [""]
    for word in map(shlex.quote, command(c)):
        if len(lines[-1]) + len(word) > WIDTH - 3:
            lines[-1] += "\\"
            lines.append("    ")
        lines[-1] += f"{word} "
    return "\n".join(lines)


def write_report(comparison: Comparison, path: Path) -> Path:
    """Write the text of `comparison` to `path`, whole or not at all.

    Raises
    ------
    PvmmuError
        The file cannot be written.
    """
    text = report(comparison)
    with whole_file(path) as tmp:
        tmp.write_text(text, encoding="ascii")
    return path
