"""One design against others on one trace: the figure of the first panel."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from matplotlib.figure import Figure

from pvmmu.figures.mechanisms import Bar, MechanismBars, legend
from pvmmu.figures.style import SMALL, WIDE, new_figure, style, wrapped
from pvmmu.guest.trace import Trace
from pvmmu.replay import replay
from pvmmu.replay.compare import Comparison


class DesignFigure:
    """A figure with a bar for each of some designs, changed in place.

    Parameters
    ----------
    bars : int
        How many designs.

    Attributes
    ----------
    figure : Figure
        Of fixed size.
    moving : tuple of Artist
        What `show` changes; the rest is drawn once.
    """

    def __init__(self, bars: int = 3) -> None:
        self.figure: Figure = new_figure(5.6, 3.7)
        with style():
            self.axes = self.figure.subplots()
            self.bars = MechanismBars(self.axes, bars)
            self.axes.set_xlabel("entries to the hypervisor (thin bars: what is no entry)")
            self.title = self.figure.suptitle("", x=0.02, y=0.985, ha="left", va="top", fontsize=9)
            self.remark = self.figure.text(0.02, 0.015, "", fontsize=SMALL, va="bottom")
            legend(self.figure, y=0.11)
            self.figure.subplots_adjust(left=0.2, right=0.98, top=0.87, bottom=0.4)
        self.moving = (self.axes, self.title, self.remark)

    def show(self, comparison: Comparison) -> None:
        """Draw `comparison`, of as many designs as there are bars."""
        c = comparison
        with style():
            labels = [f"{d.label}\n({d.mode.replace(':', chr(10))})" for d in c.designs]
            self.bars.show([Bar(s, k) for s, k in zip(labels, c.counts, strict=True)])
            self.title.set_text(_headline(c))
            self.remark.set_text(_conditions(c))


def _conditions(c: Comparison) -> str:
    """Return what the bars are of, in two lines: designs, kernel, what an asterisk means."""
    p = c.trace.provenance
    vcpus = len(set(c.trace["cpu"].tolist())) or 1
    parts = [f"{name}: {d.hooks.short}" for name, d in zip(c.names, c.designs, strict=True)]
    parts.append(f"Linux {p.kernel}, {vcpus} vCPU" + "s" * (vcpus > 1))
    if any(k.counterfactual for k in c.counts):
        parts.append("* counterfactual: no interface of that kernel")
    lines = textwrap.wrap("; ".join(parts), 88, break_long_words=True)
    return "\n".join(lines[:2]) + (" ..." if len(lines) > 2 else "")


def _headline(c: Comparison) -> str:
    """Return the finding: how the first design compares with the second."""
    subject, reference = c.counts[0], c.counts[1]
    where = f"{c.trace.name} ({len(c.trace):,} operations){c.trace.provenance.assumed}"
    if subject.infeasible is not None:
        return f"{where}: this design cannot run"
    if reference.infeasible is not None or not reference.entries:
        return f"{where}: {subject.entries:,} entries to the hypervisor"
    change = subject.entries / reference.entries - 1
    other = reference.hooks
    if c.designs[0].mode != c.designs[1].mode:
        other += f" in {c.designs[1].mode}"
    if change == 0:
        return wrapped(f"{where}: as many entries as {other}", 5.6)
    word = "more" if change > 0 else "fewer"
    return wrapped(f"{where}: {abs(change):.0%} {word} entries than {other}", 5.6)


def designs_figure(trace: Trace, designs: Mapping[str, tuple[str, str]]) -> Figure:
    """Return a bar for each of some designs on one trace.

    Parameters
    ----------
    trace : Trace
        What is replayed.
    designs : mapping of str to (str, str)
        Title -> hook set and mode.
    """
    counts = [replay(trace, *design) for design in designs.values()]
    figure = new_figure(WIDE, 0.55 * len(counts) + 1.7)
    with style():
        axes = figure.subplots()
        bars = MechanismBars(axes, len(counts))
        bars.show([Bar(title, n) for title, n in zip(designs, counts, strict=True)])
        axes.set_xlabel("entries to the hypervisor (thin bars: what is no entry)")
        runs = [n.entries for n in counts if n.infeasible is None]
        most = f"; at worst {max(runs) / runs[0]:.1f} times those of the first" if runs else ""
        title = f"{trace.name}: {counts[0].entries:,} entries to the hypervisor{most}"
        title += trace.provenance.assumed
        height = figure.get_size_inches()[1]
        figure.suptitle(
            wrapped(title, WIDE), x=0.02, y=1 - 0.07 / height, ha="left", va="top", fontsize=9
        )
        legend(figure, y=0.015)
        figure.subplots_adjust(left=0.23, right=0.97, top=1 - 0.5 / height, bottom=1.05 / height)
    return figure
