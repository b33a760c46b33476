"""The panel over a search: modes, workloads, weights, prices and a budget in; front and set out."""

from __future__ import annotations

import html
import time
from typing import Any

import ipywidgets as W
import numpy as np

from pvmmu.balance import Balance, Draws, Intrusion, Weights, best_within, contributions
from pvmmu.balance.answers import nondominated, objectives
from pvmmu.callsites import callsite_kernels
from pvmmu.costs import cost_names
from pvmmu.errors import SearchError
from pvmmu.explorer.kit import DPI, Messages, guarded
from pvmmu.figures.search_panel import SearchFigure
from pvmmu.hooks import HookSet
from pvmmu.search import Search

#: What the weights of intrusiveness are called, and their first values.
PARTS = {"hooks": 1, "call_sites": 0, "files": 0}


class SearchPanel:
    """A panel over `pvmmu.balance`: the lattice of hook sets and the best one within a budget.

    Parameters
    ----------
    found : Search
        Counts of all hook sets.
    modes : sequence of str
        Checked at first; those offered are the modes of the search that hooks matter to.
    costs : str
        Cost table at first.
    vary : sequence of str, optional
        As for `Balance`.
    """

    def __init__(
        self, found: Search, modes: tuple[str, ...] = ("direct",), costs: str = "xen-2022",
        vary: tuple[str, ...] | None = None,
    ) -> None:  # fmt: skip
        self.found, self.vary = found, vary
        self.messages, self.figure = Messages(), SearchFigure()
        self.redraws, self.kernel_ms = 0, 0.0
        self._boards: dict[tuple[str, ...], Balance] = {}
        self._last: dict[tuple[str, ...], dict[str, Any]] = {}
        self._shown: tuple[Any, ...] = ()
        self._quiet = False
        self._make_controls(modes, costs)
        self.view = self._view()
        self._redraw()

    def _make_controls(self, modes: tuple[str, ...], costs: str) -> None:
        offered = [
            m for m in self.found.modes
            if any(c.partition.levers for (_, mode), c in self.found.cells.items() if mode == m)
        ]  # fmt: skip
        narrow = W.Layout(width="270px")
        slim = {"description_width": "110px"}

        def slider(name: str, value: int, most: int) -> W.IntSlider:
            return W.IntSlider(value, 0, most, description=name, layout=narrow, style=slim)

        self.modes = {
            m: W.Checkbox(m in modes, description=m, indent=False, layout=narrow) for m in offered
        }
        self.weights = {t: slider(t, 1, 5) for t in self.found.traces}
        self.parts = {name: slider(name.replace("_", " "), v, 5) for name, v in PARTS.items()}
        kernels = callsite_kernels()
        self.kernel = W.Dropdown(options=kernels, value=kernels[-1], description="counted in",
                                 layout=narrow, style=slim)  # fmt: skip
        self.costs = W.Dropdown(options=cost_names(), value=costs, description="costs",
                                layout=narrow, style=slim)  # fmt: skip
        self.budget = W.IntSlider(0, 0, 1, description="budget", layout=W.Layout(width="560px"))
        self.picture = W.Image(
            format="png",
            layout=W.Layout(
                width=f"{round(self.figure.figure.get_figwidth() * DPI)}px",
                height=f"{round(self.figure.figure.get_figheight() * DPI)}px",
            ),
        )
        self.picture.alt = "hook sets: cycles against intrusiveness; what each hook is worth"
        self.status = W.HTML()
        for control in (*self.modes.values(), *self.weights.values(), *self.parts.values(),
                        self.kernel, self.costs, self.budget):  # fmt: skip
            control.observe(lambda _: self._redraw(), "value")

    def _view(self) -> W.VBox:
        def box(title: str, *children: Any) -> W.VBox:
            return W.VBox([W.HTML(f"<b>{title}</b>"), *children], layout=W.Layout(width="300px"))

        head = W.HBox(
            [
                box("modes to serve", *self.modes.values(), self.costs),
                box("workloads, by weight", *self.weights.values()),
                box("what makes a hook intrusive", *self.parts.values(), self.kernel),
            ]
        )
        return W.VBox([head, self.budget, self.picture, self.status, self.messages.widget])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view)

    # ------------------------------------------------------------------ state
    def state(self) -> dict[str, Any]:
        """Return what the panel shows."""
        return {
            "modes": [m for m, box in self.modes.items() if box.value],
            "workloads": {t: s.value for t, s in self.weights.items()},
            "costs": self.costs.value,
            "intrusion": {name: s.value for name, s in self.parts.items()},
            "kernel": self.kernel.value,
            "budget": self.budget.value,
        }

    def board(self) -> Balance:
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
        if modes not in self._boards:
            self._boards[modes] = Balance(
                self.found, modes, costs=state["costs"], vary=self.vary, draws=Draws(0)
            )
        b, last = self._boards[modes], self._last.get(modes, {})
        intrusion = Intrusion(state["kernel"], Weights(**state["intrusion"]))
        # what has not changed is not computed again
        b = b.revised(
            state["workloads"],
            state["costs"] if state["costs"] != last.get("costs") else None,
            intrusion if intrusion != b.intrusion else None,
        )
        self._boards[modes], self._last[modes] = b, state
        return b

    # ------------------------------------------------------------------ pictures and numbers
    @guarded
    def _redraw(self) -> None:
        if self._quiet:
            return
        state = self.state()
        budget = state.pop("budget")
        if (state, budget) == self._shown:
            return
        start = time.perf_counter()
        self.messages.clear()
        if not self._shown or state != self._shown[0]:
            self._lattice()
        self._choice()
        self._shown = state, self.budget.value
        self.redraws += 1
        self.kernel_ms = 1000 * (time.perf_counter() - start)

    def _lattice(self) -> None:
        """Compute and draw the lattice, and fit the budget to it."""
        self._shown = ()
        self.current = b = self.board()
        mode = b.modes[0]
        worth = contributions(b, mode).loc[b.names]
        self.figure.show_lattice(b, np.flatnonzero(nondominated(objectives(b))), worth, mode)
        works = b.least[np.isfinite(b.performance_by_class)]
        self._quiet = True
        try:
            least, most = int(np.ceil(works.min())), int(np.ceil(works.max()))
            fits = least <= self.budget.value <= most and self.budget.max > 1
            self.budget.max, self.budget.min = max(most, self.budget.min), least
            self.budget.max = most
            if not fits:
                self.budget.value = most
        finally:
            self._quiet = False

    def _choice(self) -> None:
        """Find and draw the best set within the budget."""
        b = self.current
        best = best_within(b, self.budget.value)
        hooks = HookSet(best["mask"])
        title = (
            f"best within {self.budget.value}: {best['n_hooks']} hooks, at most "
            f"{best['regret']:.1%} over the best of each mode ({best['cycles']:,.0f} cycles per "
            "operation)"
        )
        self.figure.show_choice(b, hooks, self.budget.value, title)
        self.picture.value = self.figure.png()
        others = f"; {len(best['ties'])} others tie" if best["ties"] else ""
        self.status.value = (
            f"<b>{html.escape(best['hooks'])}</b>{others}<br>required: {', '.join(b.required)}; "
            f"and, as the least that works: {', '.join(b.completion) or 'nothing'}"
        )
