"""One design against others on one trace: the figure of the first panel."""

from __future__ import annotations

from matplotlib.figure import Figure

from pvmmu.compare import Comparison
from pvmmu.figures.carriers import Bar, CarrierBars, legend
from pvmmu.figures.style import new_figure, style


class DesignFigure:
    """A figure with a bar for each of three designs, changed in place.

    Attributes
    ----------
    figure : Figure
        Of fixed size.
    """

    def __init__(self, bars: int = 3) -> None:
        self.figure: Figure = new_figure(5.6, 3.4)
        with style():
            self.axes = self.figure.subplots()
            self.bars = CarrierBars(self.axes, bars)
            self.axes.set_xlabel("events")
            self.title = self.figure.suptitle("", x=0.02, ha="left", fontsize=9.5)
            self.remark = self.figure.text(0.985, 0.012, "", fontsize=6.5, ha="right")
            legend(self.figure, y=0.015)
            self.figure.subplots_adjust(left=0.17, right=0.98, top=0.88, bottom=0.33)

    def show(self, comparison: Comparison) -> None:
        """Draw a comparison of as many designs as there are bars."""
        c = comparison
        with style():
            labels = [f"{d.label}\n({d.mode})" for d in c.designs]
            self.bars.show([Bar(s, k) for s, k in zip(labels, c.counts, strict=True)])
            self.title.set_text(headline(c))
            counterfactual = any(k.counterfactual for k in c.counts)
            remark = "* counterfactual: no interface of the trace's kernel"
            self.remark.set_text(remark if counterfactual else "")


def headline(c: Comparison) -> str:
    """Return the finding: how the first design compares with the second."""
    subject, reference = c.counts[0], c.counts[1]
    where = f"{c.trace.name} ({len(c.trace):,} operations)"
    if subject.infeasible is not None:
        return f"{where}: this design cannot run"
    if reference.infeasible is not None or not reference.entries:
        return f"{where}: {subject.entries:,} entries to the hypervisor"
    change = subject.entries / reference.entries - 1
    if change == 0:
        return f"{where}: as many entries as {reference.hooks}"
    word = "more" if change > 0 else "fewer"
    return f"{where}: {abs(change):.0%} {word} entries than {reference.hooks}"
