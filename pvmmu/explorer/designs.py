"""The first panel: toggle hooks, choose mode and trace, see what carries the operations."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import ipywidgets as W
import pandas as pd

from pvmmu.compare import Comparison, Design, events_table
from pvmmu.costs import cost_names, get_costs
from pvmmu.errors import PvmmuError
from pvmmu.explorer.history import History
from pvmmu.explorer.kit import HookMatrix, Messages, Picture, guarded
from pvmmu.figures.designs import DesignFigure
from pvmmu.figures.style import save_figure
from pvmmu.hooks import HookSet
from pvmmu.library import load_trace, trace_names
from pvmmu.modes import get_mode
from pvmmu.modes.events import EVENTS, Event, column
from pvmmu.proposal import State, write_bundle
from pvmmu.replay import Counts, event_columns, explain
from pvmmu.report import write_report

#: Modes offered: text of the mode -> what to call it.
MODES = {
    "direct": "direct (Xen): unhooked writes emulated",
    "direct:stores=batched": "direct (Xen): batched writable tables, 2004-06",
    "direct:stores=refuse": "direct (Xen): unhooked writes refused",
    "direct:backend=2.6.27": "direct (Xen), backend of Linux 2.6.27",
    "vmi": "shadow with notifications (VMI)",
    "kvm-pvmmu": "shadow with batched stores (KVM, 2008)",
    "lguest": "shadow of four address spaces (lguest)",
    "native": "native",
}


class DesignPanel:
    """A panel over `replay`: hooks, mode, trace and cost table in; figure, counts and export out.

    Parameters
    ----------
    trace, mode, hooks, costs : str
        What to show at first.
    reference : (str, str)
        Hook set and mode to compare with: the second bar.
    folder : path-like
        Where Export writes.
    """

    def __init__(
        self, trace: str = "fork.64", mode: str = "direct", hooks: str = "linux-6.1",
        costs: str = "p4-2006", *, reference: tuple[str, str] = ("linux-6.1", "direct"),
        folder: str | Path = "export",
    ) -> None:  # fmt: skip
        self.messages = Messages()
        self.folder, self.reference = Path(folder), Design.of(*reference, label="reference")
        self.figure = DesignFigure()
        self.picture = Picture(self.figure.figure, "stacked bars of what carried the operations")
        self.redraws = 0
        self._shown: dict[str, str] = {}
        self._make_controls(trace, mode, costs)
        self.history = History(self.restore)
        self._quiet = False
        self.matrix = HookMatrix(self._redraw, HookSet.parse(hooks))
        for control in (self.trace, self.mode, self.costs):
            control.observe(lambda _: self._redraw(), "value")
        self.cause.observe(lambda _: self._list_causes(), "value")
        self.export_button.on_click(lambda _: self.export())
        self.propose_button.on_click(lambda _: self.propose())
        self.keep_button.on_click(lambda _: self.keep())
        self.view = self._view()
        self._redraw()

    def _make_controls(self, trace: str, mode: str, costs: str) -> None:
        wide = W.Layout(width="98%")
        kw: dict[str, Any] = {"layout": wide, "style": {"description_width": "52px"}}
        self.trace = W.Dropdown(options=trace_names(), value=trace, description="trace", **kw)
        modes = [(title, spec) for spec, title in MODES.items()]
        self.mode = W.Dropdown(options=modes, value=mode, description="mode", **kw)
        self.costs = W.Dropdown(options=cost_names(), value=costs, description="costs", **kw)
        self.cause = W.Dropdown(options=[("causes of ...", "")], layout=W.Layout(width="340px"))
        self.status = W.HTML()
        self.table, self.causes = W.HTML(), W.HTML()
        self.export_button = W.Button(description="Export", icon="download")
        self.propose_button = W.Button(
            description="Proposal",
            icon="envelope",
            tooltip="a folder to send: text, figures, data, notebook",
        )
        self.keep_button = W.Button(
            description="Compare with this", icon="columns", layout=W.Layout(width="170px"),
            tooltip="the design shown becomes B; hooks that differ from it are underlined",
        )  # fmt: skip
        self.folder_box = W.Text(
            value=str(self.folder), description="into", layout=W.Layout(width="300px"),
            style={"description_width": "32px"},
        )  # fmt: skip

    def _view(self) -> W.VBox:
        left = W.VBox(
            [self.trace, self.mode, self.costs, self.matrix.widget],
            layout=W.Layout(width="530px", flex="0 0 auto"),
        )
        right = W.VBox([self.picture.widget, self.status, self.table])
        foot = W.HBox([self.cause, self.keep_button, self.export_button, self.propose_button,
                       self.folder_box])  # fmt: skip
        top = W.HBox([left, right])
        return W.VBox([top, foot, self.history.widget, self.messages.widget, self.causes])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view)

    # ------------------------------------------------------------------ state
    def state(self) -> dict[str, str]:
        """Return what the panel shows, as text that `restore` takes."""
        return {
            "trace": self.trace.value, "mode": self.mode.value,
            "hooks": self.matrix.value.short, "costs": self.costs.value,
            "against": f"{self.reference.mode}={self.reference.hooks.short}",
        }  # fmt: skip

    @guarded
    def restore(self, state: str | dict[str, str]) -> None:
        """Show a state again, whole or not at all.

        Parameters
        ----------
        state : str or dict
            From `state`, as it is or as JSON; or the ``state.json`` of a proposal.
        """
        before = self.state()
        self._quiet = True
        try:
            self._set(json.loads(state) if isinstance(state, str) else dict(state))
        except Exception as e:
            self._set(before)
            if isinstance(e, PvmmuError):
                raise
            raise PvmmuError(f"not the state of this panel: {e}") from None
        finally:
            self._quiet = False
        self._redraw()

    def _set(self, values: dict[str, Any]) -> None:
        """Set the controls; raises whatever a value that does not fit raises."""
        hooks = HookSet.parse(values["hooks"])
        against = values.get("against")
        if isinstance(against, list):  # of a proposal: pairs of mode and hooks
            against = "=".join(against[0])
        if against:
            mode, _, other = against.rpartition("=")
            self.reference = Design.of(other, mode, label=self.reference.label)
        self.trace.value, self.mode.value = values["trace"], values["mode"]
        self.costs.value = values["costs"]
        self.matrix.value = hooks

    @guarded
    def keep(self) -> None:
        """Make the design that is shown the one to compare with."""
        self.reference = Design(self.matrix.value, self.mode.value, "B")
        self._redraw()

    # ------------------------------------------------------------------ pictures and numbers
    def _comparison(self) -> Comparison:
        trace, costs = load_trace(self.trace.value), get_costs(self.costs.value)
        design = Design(self.matrix.value, self.mode.value, "your design")
        native = Design.of("none", "native", "native")
        return Comparison(trace, (design, self.reference, native), costs)

    @guarded
    def _redraw(self) -> None:
        """Replay and draw, if anything has changed."""
        if not hasattr(self, "matrix") or self._quiet:
            return  # still being made, or set
        state = self.state()
        if state == self._shown:
            return
        self._shown = state
        self.messages.clear()
        self.history.note(state)
        c = self._comparison()
        self.matrix.mark(self.reference.hooks)
        self.figure.show(c)
        self.picture.show()
        self.redraws += 1
        self._tell(c)
        self._offer_causes(c.counts[0])
        mode = get_mode(self.mode.value)
        self.matrix.dim(set(self.matrix.boxes) - set(mode.levers(c.trace)))

    def _tell(self, c: Comparison) -> None:
        """Write the numbers below the picture."""
        counts, trace = c.counts[0], c.trace
        if counts.infeasible is not None:
            where = f" (operation {counts.infeasible.row})" if counts.infeasible.row >= 0 else ""
            text = f"cannot run: {html.escape(counts.infeasible.reason)}{where}"
            self.status.value = f'<b style="color:#D55E00">{text}</b>'
            self.table.value = ""
            return
        mark = "; counterfactual" if counts.counterfactual else ""
        self.status.value = (
            f"<b>{counts.entries:,} entries</b>, {counts.cycles(c.costs):,.0f} cycles for "
            f"{len(trace):,} operations ({html.escape(counts.hooks)}{mark})"
        )
        self.table.value = _counts_table(c)

    def _offer_causes(self, counts: Counts) -> None:
        events = [e for e in EVENTS if counts.infeasible is None and counts.low[e]]
        options = [(f"causes of {column(e)} ({counts.low[e]:,})", column(e)) for e in events]
        self.cause.options = [("causes of ...", ""), *options]
        self.cause.value = ""
        self.causes.value = ""

    @guarded
    def _list_causes(self) -> None:
        """List the operations behind a count: by kind, and the first ones of each."""
        event = self.cause.value
        if not event:
            self.causes.value = ""
            return
        rows = self.causes_of(event)
        kinds = rows.groupby(["op", "caller", "mechanism"], observed=True, dropna=False)[event]
        summary = kinds.agg(["sum", "size"]).sort_values("sum", ascending=False).head(12)
        summary.columns = [event, "operations"]
        first = rows.head(15).assign(va=rows["va"].head(15).map(hex))
        self.causes.value = summary.to_html() + first.to_html()

    def causes_of(self, event: Event | str) -> pd.DataFrame:
        """Return the operations that caused an event, in order (a part of `explain`)."""
        name = column(event) if isinstance(event, Event) else event
        rows = explain(load_trace(self.trace.value), self.matrix.value, self.mode.value)
        other = [c for c in event_columns(rows) if c != name]
        out: pd.DataFrame = rows[rows[name] != 0].drop(columns=other)
        return out

    # ------------------------------------------------------------------ export
    @guarded
    def export(self) -> None:
        """Write figure (PNG, SVG, PDF) and report into the folder."""
        self.messages.clear()
        files = self.write(Path(self.folder_box.value))
        self.messages.say("written: " + ", ".join(map(str, files)))

    def write(self, folder: Path) -> list[Path]:
        """Write figure and report of what is shown; return the files.

        Raises
        ------
        PvmmuError
            The folder cannot be made or written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise PvmmuError(f"{folder}: cannot be made ({e.strerror or e})") from None
        c = self._comparison()
        stem = folder / f"{self.trace.value}-{self.mode.value.replace(':', '-')}"
        report = stem.with_name(f"{stem.name}.txt")
        return [*save_figure(self.figure.figure, stem), write_report(c, report)]

    @guarded
    def propose(self) -> None:
        """Write the proposal bundle of what is shown into the folder."""
        folder = Path(self.folder_box.value) / f"proposal-{self.trace.value}"
        self.messages.say("making the proposal ...")
        designs = [f"{d.mode}={d.hooks.short}" for d in self._comparison().designs]
        state = State.of(self.trace.value, designs, self.costs.value)
        files = write_bundle(state, folder)
        self.messages.say(f"{len(files)} files in {folder}")


def _counts_table(c: Comparison) -> str:
    """Return events of the design and of the one it is compared with; differences are bold."""
    table = events_table(c).fillna(0)
    table = table[(table[["A", "B"]] != 0).any(axis=1)]
    cells = []
    for name, row in table.iterrows():
        other = f"{row['A'] - row['B']:+,.0f}" if row["A"] != row["B"] else ""
        style = "text-align:right;padding:0 8px" + (";font-weight:bold" if other else "")
        numbers = "".join(f"<td style='{style}'>{t}</td>" for t in (f"{row['A']:,.0f}", other))
        cells.append(f"<tr><td style='padding:0 8px'>{name}</td>{numbers}</tr>")
    label = html.escape(c.designs[1].label or "B")
    note = f"<i>bold: change against {label} ({html.escape(c.designs[1].hooks.short)})</i>"
    compact = "font-size:12px;line-height:1.35"
    return f"{note}<div style='{compact}'><table>{''.join(cells)}</table></div>"
