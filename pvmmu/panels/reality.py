"""The panel of the model against reality: which measurements, how tight a tolerance."""

from __future__ import annotations

from typing import Final

import ipywidgets as W
import pandas as pd

from pvmmu.figures.reality import RealityFigure
from pvmmu.panels.history import State
from pvmmu.panels.kit import Picture, table_html
from pvmmu.panels.panel import Panel

#: Shares of the tolerance that may be asked for.
TIGHTER: Final = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]
_ALL: Final = "all"


class RealityPanel(Panel):
    """A panel over measured figures: workload and tolerance in; agreement and what differs out.

    Parameters
    ----------
    measured : DataFrame
        Of `pvmmu.evidence.truth.shipped_measurements`.
    """

    def __init__(self, measured: pd.DataFrame) -> None:
        super().__init__()
        self.measured, self.figure = measured, RealityFigure(list(measured["table"].unique()))
        self.picture = Picture(self.figure.figure, "predicted against measured figures")
        self.workload = W.Dropdown(
            options=[_ALL, *sorted(measured["workload"].unique())], description="workload"
        )
        self.share = W.SelectionSlider(
            options=TIGHTER, value=1.0, description="tolerance times",
            layout=W.Layout(width="420px"),
            style={"description_width": "110px"},
        )  # fmt: skip
        self.table = W.HTML()
        self.begin(
            {"workload": self.workload, "tolerance": self.share},
            [W.HBox([self.workload, self.share]), self.picture.widget, self.table],
        )

    def _draw(self, state: State, before: State) -> None:
        rows = self.measured
        if self.workload.value != _ALL:
            rows = rows[rows["workload"] == self.workload.value]
        far = rows["difference"].abs() > self.share.value * rows["tolerance"] + 1e-9
        rows = rows.assign(verdict=far.map({True: "DIFFERS", False: "ok"}))
        self.figure.show(rows, self.share.value)
        self.picture.show()
        worst = rows[far].sort_values("difference", key=abs, ascending=False).head(10)
        columns = ["counter", "measured", "predicted", "difference", "tolerance"]
        note = f"{far.sum():,} of {len(rows):,} differ by more; the largest:"
        self.table.value = table_html(worst[columns].reset_index(drop=True), note)
