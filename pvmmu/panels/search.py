"""The panel over a search: modes, workloads, weights, prices and a budget in; front and set out."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import ipywidgets as W
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pvmmu.errors import SearchError
from pvmmu.figures.search_panel import SearchFigure
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet, catalogue, interfaces
from pvmmu.hooks.callsites import callsite_kernels
from pvmmu.modes import Native, Nested, get_mode
from pvmmu.modes.known_modes import mode_variants
from pvmmu.panels.controls import Checks, Sliders, cost_choice
from pvmmu.panels.history import State
from pvmmu.panels.kit import Picture, Spots, guarded, table_html, tip
from pvmmu.panels.panel import Panel
from pvmmu.replay import replay
from pvmmu.search import (
    DesignSpace,
    Draws,
    Intrusiveness,
    Search,
    Weights,
    best_within,
    contributions,
    search,
)
from pvmmu.search.answers import nondominated, objectives

#: What the weights of intrusiveness are called, and their first values.
PARTS: Final = {"hooks": 1, "call_sites": 0, "files": 0}
#: Which of the hooks that are offered the backend of a mode overrides.
BACKEND_TITLES: Final = (("picks what pays", "free"), ("uses all it is offered", "all"))
_NARROW: Final = {"width": "270px"}
_SLIM: Final = {"description_width": "110px"}


class _Modes(Checks):
    """Check boxes of modes; one that was not searched yet is searched when a state names it."""

    def __init__(self, boxes: dict[str, W.Checkbox], missing: Callable[[str], None]) -> None:
        super().__init__(boxes)
        self._missing = missing

    def set(self, names: list[str]) -> None:
        """Check these boxes and no others."""
        for name in names:
            if name not in self.widgets:
                self._missing(name)
        super().set(names)


class SearchPanel(Panel):
    """A panel over `pvmmu.search`: the lattice of hook sets and the best one within a budget.

    Parameters
    ----------
    found : Search
        Counts of all hook sets.
    modes : sequence of str
        Checked at first; those offered are the modes of the search that hooks matter to.
    costs : str
        Cost table at first.
    vary : sequence of str, optional
        As for `DesignSpace`.
    streams : sequence of str, optional
        Names of the traces of the search (`pvmmu.load_trace`), for modes that it has
        not and for replays; default: the names that the search has.
    """

    def __init__(
        self, found: Search, modes: tuple[str, ...] = ("direct",), costs: str = "xen-2026",
        vary: tuple[str, ...] | None = None, *, streams: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.found, self.vary, self._streams = found, vary, tuple(streams)
        self.figure = SearchFigure()
        self.picture = Picture(
            self.figure.figure, "hook sets: cycles against intrusiveness; what each hook is worth"
        )
        self.spots = Spots(self.picture, self.show_hook)
        self._boards: dict[tuple[str, ...], DesignSpace] = {}
        self._last: dict[tuple[str, ...], State] = {}
        self._laid: tuple[Any, ...] = ()
        self.current: DesignSpace
        self._make_controls(modes, costs)
        controls = {
            "modes": self._modes, "workloads": self._weights, "costs": self.costs,
            "backend": self.backend, "intrusiveness": self._parts, "kernel": self.kernel,
            "against": self.against, "budget": self.budget,
        }  # fmt: skip
        self.begin(controls, self._rows())

    def _make_controls(self, modes: Iterable[str], costs: str) -> None:
        layout = W.Layout(**_NARROW)
        offered = [
            m for m in self.found.modes
            if any(c.partition.relevant_hooks for (_, at), c in self.found.cells.items() if at == m)
        ]  # fmt: skip

        def slider(name: str, value: int, most: int) -> W.IntSlider:
            return W.IntSlider(value, 0, most, description=name, layout=layout, style=_SLIM)

        self.modes = {m: self._mode_box(m, m in modes) for m in offered}
        self.weights = {t: slider(t, 1, 5) for t in self.found.traces}
        self.parts = {name: slider(name.replace("_", " "), v, 5) for name, v in PARTS.items()}
        self._modes = _Modes(self.modes, self.add_mode)
        self._weights, self._parts = Sliders(self.weights), Sliders(self.parts)
        kernels, kw = callsite_kernels(), {"layout": layout, "style": _SLIM}
        self.kernel = W.Dropdown(options=kernels, value=kernels[-1], description="counted in", **kw)
        self.costs = cost_choice(costs, **kw)
        self.backend = W.Dropdown(options=BACKEND_TITLES, description="each backend", **kw)
        names = [("nothing", ""), *((i.title, n) for n, i in interfaces().items())]
        self.against = W.Dropdown(options=names, description="against", **kw)
        self.budget = W.IntSlider(0, 0, 1, description="budget", layout=W.Layout(width="560px"))
        self.more = W.Dropdown(layout=layout)
        self._offer_modes()
        self.more.observe(lambda change: self._add(change["new"]), "value")
        self.status, self.table, self.worth = W.HTML(), W.HTML(), W.HTML()

    def _mode_box(self, mode: str, checked: bool) -> W.Checkbox:
        box = W.Checkbox(checked, description=mode, indent=False, layout=W.Layout(**_NARROW))
        tip(box, mode_variants().get(mode, mode))
        return box

    def _offer_modes(self) -> None:
        """Offer every mode that hooks matter in.

        The list stays as it is when one has been searched: a front end sends a place in the list,
        and one that was sent while a search ran would mean another mode.
        """
        spared = (Native.name, Nested.name)
        others = [(t, m) for m, t in mode_variants().items() if m.split(":")[0] not in spared]
        self.more.options = [("add a mode ...", ""), *others]

    def _rows(self) -> list[W.Widget]:
        def box(title: str, *children: Any) -> W.VBox:
            return W.VBox([W.HTML(f"<b>{title}</b>"), *children], layout=W.Layout(width="300px"))

        self._served = W.VBox(list(self.modes.values()))
        head = W.HBox(
            [
                box("modes to serve", self._served, self.more, self.backend, self.costs),
                box("workloads, by weight", *self.weights.values()),
                box("what makes a hook intrusive", *self.parts.values(), self.kernel, self.against),
            ]
        )
        return [head, self.budget, self.picture.widget, self.status, self.table, self.worth]

    def whole_figure(self) -> Figure:
        """Return the figure with all that moves in it."""
        figure: Figure = self.figure.whole()
        return figure

    # ------------------------------------------------------------------ modes on demand
    def _traces(self) -> list[Trace]:
        """Return the traces of the search.

        Raises
        ------
        SearchError
            One cannot be had, or is another one now.
        """
        known = self.found.provenance.get("traces", {})
        loaded = [load_trace(name) for name in self._streams or self.found.traces]
        for trace in loaded:
            if known.get(trace.name, trace.fingerprint) != trace.fingerprint:
                raise SearchError(f"trace {trace.name!r} is not the one that was searched")
        return loaded

    def add_mode(self, mode: str) -> None:
        """Search `mode` (see `pvmmu.modes.get_mode`) and offer it.

        Raises
        ------
        PvmmuError
            There is no such mode, no hook matters in it, or a trace cannot be had.
        """
        spec = get_mode(mode).spec
        if spec not in self.found.modes:
            more = search(self._traces(), [spec], self.found.space, progress=False)
            if not any(c.partition.relevant_hooks for c in more.cells.values()):
                raise SearchError(f"no hook matters in mode {spec}")
            self.found = replace(self.found, cells={**self.found.cells, **more.cells})
        box = self._mode_box(spec, False)
        box.observe(lambda _: self._redraw(), "value")
        self.modes[spec] = self._modes.widgets[spec] = box
        self._served.children = (*self._served.children, box)

    @guarded
    def _add(self, mode: str) -> None:
        if not mode:
            return
        spec = get_mode(mode).spec
        if spec not in self.modes:
            self.messages.say(f"searching {mode} ...")
            self.add_mode(mode)
        self.modes[spec].value = True
        self.more.value = ""

    # ------------------------------------------------------------------ the board
    def board(self) -> DesignSpace:
        """Return the board of what the panel shows.

        Raises
        ------
        PvmmuError
            No mode is checked, no workload has a weight, or no set works in all modes.
        """
        state = self.state()
        modes = tuple(state["modes"])
        if not modes:
            raise SearchError("check a mode")
        key = *modes, state["backend"]
        if key not in self._boards:
            self._boards[key] = DesignSpace(
                self.found, modes, costs=state["costs"], vary=self.vary, draws=Draws(0),
                backend=state["backend"],
            )  # fmt: skip
        b, last = self._boards[key], self._last.get(key, {})
        intrusiveness = Intrusiveness(state["kernel"], Weights(**state["intrusiveness"]))
        # what has not changed is not computed again
        b = b.revised(
            state["workloads"],
            state["costs"] if state["costs"] != last.get("costs") else None,
            intrusiveness if intrusiveness != b.intrusiveness else None,
        )
        self._boards[key], self._last[key] = b, state
        return b

    def _before(self, name: str) -> None:
        if name == "budget":
            self._lattice()

    # ------------------------------------------------------------------ pictures and numbers
    def _draw(self, state: State, before: State) -> None:
        moved = {name for name in state if state[name] != before.get(name)}
        if moved - {"budget", "against"}:
            self._lattice()
        self._choice()

    def _lattice(self) -> None:
        """Compute and draw the lattice, and fit the budget to it."""
        self.current = b = self.board()
        mode = b.modes[0]
        worth = contributions(b, mode).loc[b.names]
        self.figure.show_lattice(b, np.flatnonzero(nondominated(objectives(b))), worth, mode)
        works = b.least[np.isfinite(b.performance_by_class)]
        least, most = int(np.ceil(works.min())), int(np.ceil(works.max()))
        fits = least <= self.budget.value <= most and self.budget.max > 1
        before, self._quiet = self._quiet, True
        try:
            self.budget.max, self.budget.min = max(most, self.budget.min), least
            self.budget.max = most
            if not fits:
                self.budget.value = most
        finally:
            self._quiet = before
        if (laid := (mode, *b.names)) != self._laid:
            self._laid = laid
            spots = {n: (box, f"what {n} does") for n, box in self.figure.rows(b.names).items()}
            self.spots.show(spots)

    def _choice(self) -> None:
        """Find and draw the best set within the budget, and the one to compare with."""
        b = self.current
        best = best_within(b, self.budget.value)
        self.chosen = hooks = HookSet(best["mask"])
        title = (
            f"best within {self.budget.value}: {best['n_hooks']} hooks, at most "
            f"{best['regret']:.1%} over the best of each mode ({best['cycles']:,.0f} cycles per "
            "operation)"
        )
        other = interfaces()[self.against.value].hooks if self.against.value else None
        self.figure.show_choice(b, hooks, self.budget.value, title, other)
        self.picture.put(self.figure.png())
        ties = len(best["tied_with"])
        others = f"; {ties} {'other ties' if ties == 1 else 'others tie'}" if ties else ""
        self.status.value = (
            f"<b>{html.escape(best['hooks'])}</b>{others}<br>required: "
            f"{', '.join(b.required) or 'nothing'}; "
            f"and, as the least that works: {', '.join(b.completion) or 'nothing'}"
        )
        self.table.value = "" if other is None else self._against(hooks, other)
        self.worth.value = ""

    def _against(self, hooks: HookSet, other: HookSet) -> str:
        """Return a table of both sets, with the hooks in which they differ."""
        b = self.current
        table = pd.DataFrame({"chosen": b.cycles_of(hooks), self.against.value: b.cycles_of(other)})
        table.loc["intrusiveness"] = [b.intrusiveness.of(hooks), b.intrusiveness.of(other)]
        signs = [*(f"+{h}" for h in hooks - other), *(f"-{h}" for h in other - hooks)]
        note = f"cycles per operation by mode; hooks that differ: {' '.join(signs) or 'none'}"
        return table_html(table.round(2), note)

    @guarded
    def show_hook(self, name: str) -> None:
        """Tell what the chosen set enters and costs with a hook and without, stream by stream.

        Parameters
        ----------
        name : str
            A bar: a hook, or some that belong together, joined by ``+``.
        """
        mode, hook = self.current.modes[0], HookSet.parse(name)
        rows = {}
        for trace in self._traces():
            row: dict[str, Any] = {"operations covered": _covered(trace, hook)}
            for title, hooks in (("with", self.chosen | hook), ("without", self.chosen - hook)):
                counts = replay(trace, hooks, mode)
                works = counts.infeasible is None
                row[f"entries {title}"] = counts.entries if works else "cannot run"
                row[f"cycles {title}"] = round(counts.cycles(self.costs.value)) if works else ""
            rows[trace.name] = row
        table = pd.DataFrame.from_dict(rows, orient="index")
        self.worth.value = table_html(table, f"the chosen set with {name} and without, in {mode}")


def _covered(trace: Trace, hooks: HookSet) -> int:
    """Return how many rows of a trace some hooks cover."""
    operations = {int(op) for h in hooks for op in catalogue()[h].operations}
    return int(np.isin(trace["op"], list(operations)).sum())
