"""The panel of designs: toggle hooks, choose mode and workload, see what carries the operations."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ipywidgets as W
import pandas as pd
from matplotlib.transforms import BboxBase

from pvmmu._jit import fingerprint
from pvmmu.costs import get_costs
from pvmmu.costs.default import anachronism, default_costs
from pvmmu.errors import PvmmuError
from pvmmu.figures.designs import DesignFigure
from pvmmu.figures.mechanisms import STACK
from pvmmu.figures.style import CATEGORY_NAMES, save_figure
from pvmmu.guest.load_trace import load_trace
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.events import ENTRIES, EVENTS, Event, column
from pvmmu.panels.blit import MovingPicture
from pvmmu.panels.controls import Line, WorkloadChoice, cost_choice, mode_choice, shown_stream
from pvmmu.panels.history import State
from pvmmu.panels.inspect import Inspector
from pvmmu.panels.kit import Spots, button, guarded, table_html, tip
from pvmmu.panels.matrix import HookMatrix
from pvmmu.panels.panel import Control, Panel
from pvmmu.replay import Counts, causes, causing, event_columns, explain
from pvmmu.replay.compare import Comparison, Design, events_table
from pvmmu.replay.whole import change_of_run
from pvmmu.report import State as Proposal, read_state, write_bundle
from pvmmu.report.run_report import write_report

#: What a bar is called, from the top.
LETTERS: Final = "ABC"


class DesignPanel(Panel):
    """A panel over `replay`: hooks, mode, workload and cost table in; figure, counts, export out.

    Parameters
    ----------
    trace, mode, hooks, costs : str
        What to show at first; a trace as `pvmmu.load_trace` takes it; prices, unless named, are
        those of its kernel's era and the mode.
    reference : (str, str)
        Hook set and mode to compare with: the second bar.
    folder : path-like
        Where Export writes.
    """

    def __init__(
        self, trace: str = "fork.64", mode: str = "direct", hooks: str = "linux-6.1",
        costs: str = "", *, reference: tuple[str, str] = ("linux-6.1", "direct"),
        folder: str | Path = "export",
    ) -> None:  # fmt: skip
        super().__init__(folder)
        self._news = ""
        costs = costs or default_costs(load_trace(trace).provenance.kernel, mode)
        self.figure = DesignFigure()
        self.picture = MovingPicture(
            self.figure.figure, self.figure.moving, "stacked bars of what carried the operations"
        )
        self.spots = Spots(self.picture, lambda key: self.show_causes(*key))
        kw: dict[str, Any] = {
            "layout": W.Layout(width="98%"), "style": {"description_width": "62px"},
        }  # fmt: skip
        self.workload = WorkloadChoice(trace, **kw)
        self.mode, self.costs = mode_choice(mode, **kw), cost_choice(costs, **kw)
        against = Design.of(*reference)
        self.against = Line(
            _design, f"{against.mode}={against.hooks.short}", description="against", **kw
        )
        tip(self.against, "MODE=HOOKS of the second bar, B")
        self.matrix = HookMatrix(HookSet.parse(hooks))
        self.status, self.table, self.causes = W.HTML(), W.HTML(), W.HTML()
        self.cause = W.Dropdown(options=[("causes of ...", "")], layout=W.Layout(width="340px"))
        self.cause.observe(lambda _: self._list_causes(), "value")
        self.inspector = Inspector(self.comparison, self._relevant)
        controls: dict[str, Control] = {
            "trace": self.workload, "mode": self.mode, "hooks": self.matrix,
            "costs": self.costs, "against": self.against,
        }  # fmt: skip
        keep = button("Compare with this", "columns", self.keep, "170px",
                      "the design shown becomes B; differing hooks are underlined")  # fmt: skip
        propose = button("Proposal", "envelope", self.propose, "110px",
                         "a folder to send: text, figures, data, notebook")  # fmt: skip
        self.begin(controls, self._rows(), [keep, propose])

    def _rows(self) -> list[W.Widget]:
        left = W.VBox(
            [self.workload.widget, self.mode, self.costs, self.against, self.matrix.widget],
            layout=W.Layout(width="530px", flex="0 0 auto"),
        )
        # what a click on a bar lists comes where the eye is: below the picture
        right = W.VBox(
            [
                self.picture.widget,
                self.status,
                self.inspector.widget,
                self.cause,
                self.causes,
                self.table,
            ],
            layout=W.Layout(flex="1 1 420px", min_width="400px"),
        )
        return [W.HBox([left, right], layout=W.Layout(flex_flow="row wrap"))]

    def _read(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take the state of a proposal, too: its first two designs, and what it defines."""
        if "proposal" in document:
            given = read_state(dict(document))
            (mode, hooks), against = given.designs[:2]
            if given.made.get("model", fingerprint()) != fingerprint():
                self._news = "the model has changed since this proposal was made"
            document = {
                "trace": given.workloads[0], "mode": mode, "hooks": hooks, "costs": given.costs,
                "against": "=".join(against),
            }  # fmt: skip
        if "against" not in document:
            document = {**document, "against": self.against.value}
        return super()._read(document)

    @guarded
    def keep(self) -> None:
        """Make the design that is shown the one to compare with."""
        self.against.value = f"{self.mode.value}={self.matrix.value.short}"

    # ------------------------------------------------------------------ pictures and numbers
    def comparison(self) -> Comparison:
        """Return what is shown: the design, the one to compare with, and native."""
        trace, costs = shown_stream(self.workload.value), get_costs(self.costs.value)
        design = Design(self.matrix.value, self.mode.value, "A: your design")
        native = Design.of("none", "native", "C: native")
        return Comparison(trace, (design, _design(self.against.value), native), costs)

    def _draw(self, state: State, before: State) -> None:
        if "@" in state["trace"] and "@" not in before.get("trace", ""):
            self.status.value = "<i>running the model (compiled at its first use: a minute) ...</i>"
        c = self.comparison()
        self.matrix.mark(c.designs[1].hooks)
        self.figure.show(c)
        self.picture.move()
        self.spots.show(self._bars(c))
        self._tell(c)
        self._offer_causes(c.counts[0])
        self.inspector.forget()
        self.matrix.dim(set(self.matrix.boxes) - set(self._relevant(c)))
        if self._news:
            self.messages.say(self._news)
            self._news = ""

    def _relevant(self, c: Comparison) -> HookSet:
        return get_mode(c.designs[0].mode).relevant_hooks(c.trace)

    def _bars(self, c: Comparison) -> dict[tuple[int, str], tuple[BboxBase, str]]:
        """Return the parts of bars that can be chosen: (design, category) -> where, what."""
        found: dict[tuple[int, str], tuple[BboxBase, str]] = {}
        for category, patches in self.figure.bars.patches.items():
            for i, patch in enumerate(patches):
                if patch.get_width():
                    name = f"{LETTERS[i]}: {patch.get_width():,.0f} {CATEGORY_NAMES[category]}"
                    text = f"{name}; choose for the operations behind them"
                    found[i, category] = (patch.get_window_extent(), text)
        return found

    def _tell(self, c: Comparison) -> None:
        """Write the numbers below the picture."""
        counts, trace = c.counts[0], c.trace
        if counts.infeasible is not None:
            where = f" (operation {counts.infeasible.row})" if counts.infeasible.row >= 0 else ""
            text = f"cannot run: {html.escape(counts.infeasible.reason)}{where}"
            self.status.value = f'<span class="pvmmu-wrong">{text}</span>'
            self.table.value = ""
            return
        mark = "; counterfactual" if counts.counterfactual else ""
        self.status.value = (
            f"<b>{counts.entries:,} entries</b>, {counts.cycles(c.costs):,.0f} {c.costs.unit} for "
            f"{len(trace):,} operations ({html.escape(counts.hooks)}{mark})"
        )
        change, far = change_of_run(c), anachronism(c.costs, trace.provenance.kernel)
        if change is not None:
            self.status.value += f"<br>Against B: {change.text()}, by measured instructions"
        if far:
            self.status.value += f"<br><i>{html.escape(far)}</i>"
        if not counts.verdict.sound:
            why = html.escape(counts.verdict.text)
            self.status.value += f'<br><span class="pvmmu-wrong">{why}</span>'
        self.table.value = _counts_table(c)

    # ------------------------------------------------------------------ the operations behind it
    def _offer_causes(self, counts: Counts) -> None:
        events = [e for e in EVENTS if counts.infeasible is None and counts.low[e]]
        options = [(f"causes of {column(e)} ({counts.low[e]:,})", column(e)) for e in events]
        self.cause.options = [("causes of ...", ""), *options]
        self.cause.value = ""
        self.causes.value = ""

    @guarded
    def _list_causes(self) -> None:
        self.causes.value = ""
        if self.cause.value:
            self.show_causes(0, self.cause.value)

    @guarded
    def show_causes(self, design: int, what: str) -> None:
        """List the operations behind a bar: by kind, and the first ones.

        Parameters
        ----------
        design : int
            Which bar, from the top.
        what : str
            Column of an event, or a category.
        """
        rows = self.causes_of(what, design)
        kinds = causes(self._behind(what, design), what).head(12)
        first = rows.head(15).assign(va=rows["va"].head(15).map(hex)).drop(columns="tsc")
        named = CATEGORY_NAMES.get(what, what)
        note = f"{LETTERS[design]}, {named}: {rows[what].sum():,} by {len(rows):,} operations"
        if what == "batched":
            shared = self.comparison().counts[design].by_category()["batched"]
            calls = rows[what].sum() - shared
            note = (
                f"{LETTERS[design]}: {rows[what].sum():,} requests and sub-calls by {len(rows):,} "
                f"operations in {calls:,} calls, so that {shared:,} shared one"
            )
        self.causes.value = table_html(kinds, note) + table_html(first, "the first of them")

    def causes_of(self, event: Event | str, design: int = 0) -> pd.DataFrame:
        """Return the operations that caused an event, in order (a part of `explain`).

        Parameters
        ----------
        event : Event or str
            An event, its column, or a category.
        design : int
            Of which bar, from the top.
        """
        what = column(event) if isinstance(event, Event) else event
        rows = self._behind(what, design)
        amount = causing(rows, what)
        other = [e for e in event_columns(rows) if e != what]
        out: pd.DataFrame = rows.drop(columns=other).assign(**{what: amount})[amount != 0]
        return out

    def _behind(self, what: str, design: int) -> pd.DataFrame:
        """Return what `explain` says of a design; for a bar of entries, without other events."""
        c = self.comparison()
        rows = explain(c.trace, c.designs[design].hooks, c.designs[design].mode)
        if what not in STACK:
            return rows
        others = [column(e) for e in EVENTS if e not in ENTRIES]
        return rows.drop(columns=[name for name in others if name in rows])

    # ------------------------------------------------------------------ export
    def write(self, folder: Path) -> list[Path]:
        """Write figure (PNG, SVG, PDF) and report into `folder`; return the files."""
        c = self.comparison()
        stem = folder / f"{_file_name(self.workload.value)}-{_file_name(self.mode.value)}"
        report = stem.with_name(f"{stem.name}.txt")
        return [*save_figure(self.figure.figure, stem), write_report(c, report)]

    @guarded
    def propose(self) -> None:
        """Write the proposal bundle of what is shown into the folder."""
        folder = Path(self.folder_box.value) / f"proposal-{_file_name(self.workload.value)}"
        self.messages.say("making the proposal ...")
        designs = [f"{d.mode}={d.hooks.short}" for d in self.comparison().designs]
        state = Proposal.of(self.workload.value, designs, self.costs.value)
        files = write_bundle(state, folder)
        self.messages.say(f"{len(files)} files in {folder}")


def _design(text: str) -> Design:
    """Return the design to compare with, from ``MODE=HOOKS``."""
    if not isinstance(text, str) or "=" not in text:
        raise PvmmuError(f"{text!r} is not MODE=HOOKS, such as direct=linux-6.1")
    mode, _, hooks = text.rpartition("=")
    return Design.of(hooks, mode, "B: reference")


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in ".-=" else "-" for c in Path(text).name)


def _counts_table(c: Comparison) -> str:
    """Return events of the design and of the one it is compared with; differences are bold."""
    table = events_table(c)
    table = table[(table[["A", "B"]].fillna(0) != 0).any(axis=1)]
    b = c.designs[1]
    cells = []
    for name, row in table.iterrows():
        change = row["A"] - row["B"]
        other = f"{change:+,.0f}" if change else ""
        style = " style='font-weight:bold'" if other and change == change else ""
        texts = (f"{row[x]:,.0f}" if row[x] == row[x] else "" for x in "AB")
        numbers = "".join(f"<td{style}>{t}</td>" for t in (*texts, other.replace("+nan", "")))
        cells.append(f"<tr><td>{name}</td>{numbers}</tr>")
    head = "<tr><th></th><th>A</th><th>B</th><th>A - B</th></tr>"
    note = f"<i>B: {html.escape(b.hooks.short)} in {html.escape(b.mode)}; bold: differs</i>"
    return f"{note}<div class='pvmmu-table'><table>{head}{''.join(cells)}</table></div>"
