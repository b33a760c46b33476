"""``proposal.txt``: a mail of at most 40 lines and 72 columns, for people with no time.

What a receiver asks, in the order in which he asks it: what is gained and where not, what the
change is, which call carries it, whether it is safe, how it was measured, and how to make the
numbers again. All else is attached (`pvmmu.report.text`).
"""

from __future__ import annotations

from typing import Final

from pvmmu.costs import get_costs
from pvmmu.hooks import HookSet
from pvmmu.hooks.callsites import callsites, files_touched
from pvmmu.hooks.prototypes import prototypes
from pvmmu.modes.soundness import Level, Verdict
from pvmmu.replay import diff, explain
from pvmmu.replay.compare import Comparison
from pvmmu.replay.whole import MATERIAL, TABLES, change_of_run
from pvmmu.report.results import Results
from pvmmu.report.run_report import plain_ascii, text_table, wrap

#: Lines of a mail, and its columns.
LINES, WIDTH = 40, 72
#: Hooks of a change that are shown with their prototype.
_SHOWN: Final = 2


def mail(r: Results) -> str:
    """Return the text of a mail, pure ASCII.

    Parameters
    ----------
    r : Results
        A proposal: its first design against its second one, on its workloads.
    """
    verdict = r.verdicts[0]
    parts = [
        headline(r) + _unsound(verdict),
        problem(r.comparisons[0]),
        _change(r.comparisons[0]),
        _table(r) + "\n" + _losers(r),
        _safety(verdict),
        _measured(r),
        _again(),
    ]
    return plain_ascii("\n\n".join(p for p in parts if p) + "\n")


def headline(r: Results) -> str:
    """Return the first line: what changes, and by how much at most and at least."""
    c = r.comparisons[0]
    name = _named(c)
    wholes = [-x.share for x in map(change_of_run, r.comparisons) if x is not None]
    shares = wholes or [s for s in map(_share, r.comparisons) if s is not None]
    what = "instructions of the run" if wholes else "entries"
    if not shares:
        return f"{name}: cannot be compared on {c.trace.name}"[:WIDTH]
    least, most = min(shares), max(shares)
    if least > -MATERIAL and most < MATERIAL:
        return f"{name}: no measurable difference in {what}"[:WIDTH]
    return f"{name}: {what} {_percent(least)} to {_percent(most)}"[:WIDTH]


def _percent(share: float, digits: int = 0) -> str:
    """Return a change in per cent; one that rounds to nothing has no sign."""
    text = f"{share:+.{digits}%}"
    return text[1:] if not float(text[1:-1]) else text


def _named(c: Comparison) -> str:
    """Name the change: its hooks, or the two modes."""
    a, b = c.designs[0], c.designs[1]
    if a.mode != b.mode:
        return f"{a.mode} instead of {b.mode}"
    signs = [*(f"+{h}" for h in a.hooks - b.hooks), *(f"-{h}" for h in b.hooks - a.hooks)]
    shown = " ".join(signs[:_SHOWN]) or "nothing changed"
    return shown + (f" and {len(signs) - _SHOWN} more" if len(signs) > _SHOWN else "")


def _unsound(verdict: Verdict) -> str:
    """Return the second line, if the design does not work."""
    if verdict.level <= Level.SOUND_ON_ONE_CPU:
        return ""
    return "\n" + wrap(f"NOT SOUND, {verdict.text}.")


def _share(c: Comparison) -> float | None:
    """Return the change in entries as a share; None where a design cannot run or enters never."""
    a, b = c.counts[:2]
    if a.infeasible is not None or b.infeasible is not None or not b.entries:
        return None
    return a.entries / b.entries - 1


def problem(c: Comparison) -> str:
    """Return in a sentence which entries of the second design the first one carries otherwise."""
    a, b = c.counts[:2]
    for counts, design in ((a, c.designs[0]), (b, c.designs[1])):
        if counts.infeasible is not None:
            reason = counts.infeasible.reason
            return wrap(f"{design.hooks.short} in {design.mode} cannot run: {reason}.")
    rows = diff(*(explain(c.trace, d.hooks, d.mode) for d in c.designs[1::-1]))
    if rows.empty:
        return wrap(f"On {c.trace.name} both designs carry every operation alike.")
    caller = rows["caller"].astype(object).where(rows["caller"].notna(), "the kernel")
    kinds = rows.assign(caller=caller).groupby(["op", "caller"], observed=True).size()
    (op, by), n = kinds.idxmax(), int(kinds.max())
    first = rows[(rows["op"] == op) & (caller == by)].iloc[0]
    return wrap(
        f"On {c.trace.name} {b.entries:,} entries to the hypervisor become {a.entries:,}. "
        f"{len(rows):,} of {len(c.trace):,} operations are carried otherwise, most of them {op} by "
        f"{by} ({n:,}): {first['mechanism_b']} instead of {first['mechanism_a']}."
    )


def _change(c: Comparison) -> str:
    """Return prototypes, call sites and calls of the hooks in which the two designs differ."""
    a, b = c.designs[0].hooks, c.designs[1].hooks
    new, gone = a - b, b - a
    lines = []
    known = [h for h in new if h in prototypes()]
    for name in known[:_SHOWN]:
        p, sites = prototypes()[name], callsites(HookSet.of(name)).iloc[0]
        of_tests = {"debug_vm_pgtable.c"}
        files = ", ".join(sorted(files_touched(name) - of_tests)[:3])
        lines += [f"    {line}" for line in p.prototype.split("\n")]
        files = ", ".join(sorted(files_touched(name) - {"debug_vm_pgtable.c"})[:3])
        carried = f"Carried by {p.carried or 'the guest itself'}"
        if not p.exists:
            carried = f"It takes a new call: {p.carried}"
        where = f" ({files})" if files else ""
        calls = f"Called {sites['generic']} times in generic code{where}, {sites['x86']} in x86."
        lines.append(wrap(f"{carried}. {calls}", "    "))
    rest = [f"+{h}" for h in new if h not in known[:_SHOWN]] + [f"-{h}" for h in gone]
    if rest:
        lines.append(wrap(f"and {' '.join(rest[:6])}" + " ..." * (len(rest) > 6), "    "))
    return "The change to pv_mmu_ops:\n" + "\n".join(lines) if lines else ""


def _table(r: Results) -> str:
    """Return the workloads: entries under both designs, their change, that of the whole run."""
    rows = []
    for c in r.comparisons[:6]:
        a, b = c.counts[:2]
        share = _share(c)
        word = "cannot run" if share is None else _percent(share, 1)
        cells = ["-" if k.infeasible is not None else f"{k.entries:,}" for k in (b, a)]
        whole = change_of_run(c)
        run = "-" if whole is None else _percent(-whole.share, 1)
        rows.append([c.trace.name, f"{len(c.trace):,}", *cells, word, run])
    return text_table(rows, ["workload", "operations", "entries", "with it", "change", "run"])


def _losers(r: Results) -> str:
    """Say who does not gain: of the run where that is known, else of the entries."""
    shares = {}
    for c in r.comparisons:
        whole = change_of_run(c)
        shares[c.trace.name] = _share(c) if whole is None else -whole.share
    same = [n for n, s in shares.items() if s is not None and abs(s) < MATERIAL]
    worse = [n for n, s in shares.items() if s is not None and s >= MATERIAL]
    parts = [f"no measurable difference (below {MATERIAL:.0%}): {', '.join(same)}"] if same else []
    parts += [f"worse: {', '.join(worse)}"] if worse else []
    return wrap("; ".join(parts).capitalize() + ".") if parts else ""


def _safety(verdict: Verdict) -> str:
    """Say whether the design keeps its pages, and on how many CPUs."""
    if verdict.sound:
        return wrap(
            "Safety: sound on these and all shipped streams; no update is lost, read back or seen "
            "late."
        )
    return wrap(f"Safety: {verdict.text}.")


def _measured(r: Results) -> str:
    """Say how it was measured, and what entries are not."""
    p = r.comparisons[0].trace.provenance
    kernels = sorted({c.trace.provenance.kernel for c in r.comparisons})
    cpus = max(len(set(c.trace["cpu"].tolist())) for c in r.comparisons)
    text = (
        f"Replayed from operations of Linux {', '.join(kernels)} ({p.platform.guest}, {cpus} vCPU"
        f"{'s' * (cpus > 1)}, no THP)."
    )
    for c in r.comparisons:
        if c.trace.provenance.assumptions:
            text += f" {c.trace.name}: {'; '.join(c.trace.provenance.assumptions)}."
    if any(change_of_run(c) for c in r.comparisons):
        error = get_costs(TABLES["direct"]).error
        within = f", within {error[1]:.0%} of what Xen adds" if error else ""
        text += (
            " run: instructions of the whole run, guest and hypervisor (Xen 4.17 under TCG; "
            f"measured prices{within}), not cycles."
        )
    else:
        text += " Entries are counts, not time; details.txt prices them, with a range."
    return wrap(f"{text} Natively nothing is added but the patched call of each hook.")


def _again() -> str:
    """Say how to make the numbers again."""
    return (
        "To repeat it: pvmmu proposal --state state.json --out again\n"
        "Attached: details.txt, results.csv, workloads.png"
    )
