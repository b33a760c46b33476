"""The panel of TLB reach: sliders over geometries, answered from one pass over a real trace."""

from __future__ import annotations

import functools

import ipywidgets as W
import numpy as np
import pandas as pd

from pvmmu.figures.reach import ReachFigure
from pvmmu.guest.readers.memory.memory_trace import load_memory_trace, memory_trace_names
from pvmmu.panels.blit import MovingPicture
from pvmmu.panels.history import State
from pvmmu.panels.kit import table_html
from pvmmu.panels.panel import Panel
from pvmmu.x86.accesses import Pages, pages
from pvmmu.x86.reach import MissStream, Reach, first_data_levels

_ACCESSES = 2_000_000
_SYNTHETIC_ACCESSES = 500_000
_SETS = [1 << i for i in range(11)]
_WAYS = list(range(1, 17))
_SEED = 20240607
#: Traces that are made up: they miss where the real ones are too small to.
SYNTHETIC = {
    "uniform": "made up: 4,096 pages, each as likely",
    "zipf": "made up: 32,768 pages, the n-th with a weight of 1/n",
}


@functools.lru_cache(maxsize=4)
def accesses_of(name: str) -> Pages:
    """Return the data accesses of a trace that ships with the package, or of a made-up one."""
    if name not in SYNTHETIC:
        return load_memory_trace(name).pages(fetches=False, limit=_ACCESSES)
    rng = np.random.default_rng(_SEED)
    if name == "uniform":
        numbers = rng.integers(0, 4096, _SYNTHETIC_ACCESSES)
    else:
        weight = 1 / np.arange(1, 32769)
        numbers = rng.choice(32768, _SYNTHETIC_ACCESSES, p=weight / weight.sum())
    return pages(numbers.astype(np.uint64) << np.uint64(12))


@functools.lru_cache(maxsize=8)
def reach_of(name: str) -> Reach:
    """Return the misses of all geometries of a trace."""
    return Reach().add(accesses_of(name))


@functools.lru_cache(maxsize=256)
def behind(name: str, sets: int, ways: int) -> Reach:
    """Return the misses of all second levels behind a first one."""
    return Reach(sizes=False).add(MissStream(sets, ways).of(accesses_of(name)))


class ReachPanel(Panel):
    """A panel over `Reach`: a trace and the geometry of two levels in; misses out.

    Parameters
    ----------
    trace : str
        A trace that ships with the package, ``"uniform"`` or ``"zipf"``.
    l1, l2 : (int, int)
        Sets and ways of both levels at first.
    """

    def __init__(
        self, trace: str = "cc1", l1: tuple[int, int] = (16, 4), l2: tuple[int, int] = (128, 12)
    ) -> None:
        super().__init__()
        self.figure = ReachFigure()
        self.picture = MovingPicture(
            self.figure.figure, self.figure.moving, "misses against entries of two TLB levels"
        )
        self.trace = W.Dropdown(
            options=[*memory_trace_names(), *SYNTHETIC], value=trace, description="trace"
        )
        named = {
            name: _slider(name, options, value)
            for name, options, value in (
                ("1st: sets", _SETS, l1[0]), ("1st: ways", _WAYS, l1[1]),
                ("2nd: sets", _SETS, l2[0]), ("2nd: ways", _WAYS, l2[1]),
            )
        }  # fmt: skip
        self.sliders = a, b, c, d = list(named.values())
        self.finding, self.table = W.HTML(), W.HTML()
        self.begin(
            {"trace": self.trace, **named},
            [self.trace, W.HBox([a, b]), W.HBox([c, d]), self.picture.widget, self.finding,
             self.table],
        )  # fmt: skip

    def _draw(self, state: State, before: State) -> None:
        name, *values = state.values()
        l1, l2 = (values[0], values[1]), (values[2], values[3])
        reach, second = reach_of(name), behind(name, *l1)
        self.figure.show_geometry(name, reach, second, l1, l2)
        if before.get("trace") == name:
            self.picture.move()
        else:
            self.figure.show_trace(reach, first_data_levels())
            self.picture.show()
        misses = reach.misses(*l1)
        self.finding.value = (
            f"{reach.accesses:,} accesses to {reach.pages:,} pages; "
            f"{l1[0] * l1[1]} entries: {misses:,} misses; "
            f"{l2[0] * l2[1]} behind them: {second.misses(*l2):,} walks"
        )
        shipped = {
            cpu: {"entries": sets * ways, "misses": reach.misses(sets, ways)}
            for cpu, (sets, ways) in first_data_levels().items()
        }
        table = pd.DataFrame.from_dict(shipped, orient="index")
        more = table.assign(change=table["misses"] - misses)
        self.table.value = table_html(more, "first levels that were built, against this one")


def _slider(text: str, options: list[int], value: int) -> W.SelectionSlider:
    # not an IntSlider: a front end writes values back that are off its grid
    return W.SelectionSlider(
        options=options, value=value, description=text, layout=W.Layout(width="420px"),
        style={"description_width": "70px"},
    )  # fmt: skip
