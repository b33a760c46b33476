"""What all panels are made of: a picture of fixed size, a place for errors, a matrix of hooks."""

from __future__ import annotations

import functools
import html
import math
import numbers
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec

import ipywidgets as W
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.transforms import BboxBase

from pvmmu.errors import PvmmuError
from pvmmu.figures.style import SCREEN_DPI as DPI, png_bytes

#: Style sheet of all panels; colours of text and ground are those of the theme.
STYLE = """<style>
.pvmmu-hooks .widget-checkbox label { font-size: 12px; }
.pvmmu-never .widget-label-basic { font-style: italic; }
.pvmmu-idle { opacity: 0.45; }
.pvmmu-differs .widget-label-basic { font-weight: bold; text-decoration: underline; }
.pvmmu-hooks input:focus-visible { outline: 2px solid var(--jp-brand-color1, #0072B2); }
.pvmmu-picture { position: relative; overflow: hidden; flex: 0 0 auto; max-width: 100%;
  container-type: inline-size; }
.pvmmu-spot, .pvmmu-spot:hover { position: absolute; background: transparent; min-width: 0;
  padding: 0; margin: 0; border: 0; box-shadow: none; cursor: pointer; }
.pvmmu-spot:hover, .pvmmu-spot:focus-visible { outline: 2px solid #000; outline-offset: -1px; }
.pvmmu-wrong { color: var(--jp-error-color1, #D55E00); font-weight: bold; }
.pvmmu-table table { font-size: 12px; line-height: 1.35; border-collapse: collapse; }
.pvmmu-table th, .pvmmu-table td { padding: 0 8px; text-align: right; }
.pvmmu-table tr > :first-child { text-align: left; }
.pvmmu-table tbody tr:nth-child(odd) { background: var(--jp-rendermime-table-row-background); }
</style>"""
_P = ParamSpec("_P")


class Picture:
    """A figure in a box of its size; showing it again replaces the picture, nothing moves.

    Where there is less room the box is narrower, and all in it smaller.

    Parameters
    ----------
    figure : Figure
        Its size fixes that of the box (`pvmmu.figures.style.SCREEN_DPI`).
    alt : str
        For readers who do not see it.

    Attributes
    ----------
    image, widget : Image, Box
        The picture; it with the places in it that can be chosen.
    """

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure = figure
        width, height = figure.get_size_inches() * DPI
        size = W.Layout(width="100%", height=_of(width, height), object_fit="contain")
        self.image = W.Image(format="png", layout=size)
        self.image.alt = alt
        self.widget = W.Box([self.image], layout=W.Layout(width=f"{round(width)}px"))
        self.widget.add_class("pvmmu-picture")

    def show(self) -> None:
        """Draw the figure as it is now."""
        self.image.value = png_bytes(self.figure)


class Spots:
    """Places in a picture that can be chosen, with the mouse or by Tab and Enter.

    Parameters
    ----------
    picture : Picture
        What they lie over.
    chosen : callable
        Called with the key of a place that is chosen.
    """

    def __init__(self, picture: Picture, chosen: Callable[[Any], None]) -> None:
        self._picture, self._chosen = picture, chosen
        self._buttons: list[W.Button] = []
        self._keys: list[Any] = []

    def show(self, places: Mapping[Any, tuple[BboxBase, str]]) -> None:
        """Lay out the places.

        Parameters
        ----------
        places : mapping of key to (Bbox, str)
            Where, in dots from the figure's lower left corner; what to say of it.
        """
        missing = len(places) - len(self._buttons)
        for i in range(len(self._buttons), len(self._buttons) + max(0, missing)):
            button = W.Button()
            button.add_class("pvmmu-spot")
            button.on_click(lambda _, i=i: self.choose(self._keys[i]))
            self._buttons.append(button)
        if missing > 0:
            self._picture.widget.children = (self._picture.image, *self._buttons)
        self._keys = list(places)
        whole, height = self._picture.figure.get_size_inches() * DPI
        for i, button in enumerate(self._buttons):
            with button.layout.hold_sync():
                button.layout.display = "" if i < len(places) else "none"
                if i < len(places):
                    box, button.tooltip = places[self._keys[i]]
                    at, size = (box.x0, height - box.y1), (box.width, box.height)
                    button.layout.left, button.layout.top = (_of(whole, x) for x in at)
                    button.layout.width, button.layout.height = (_of(whole, x) for x in size)

    def choose(self, key: Any) -> None:
        """Choose a place."""
        self._chosen(key)


def _of(width: float, length: float) -> str:
    """Return a length as a share of the width that the box of a picture has on screen."""
    return f"{100 * length / width:.2f}cqw"


def button(text: str, icon: str, act: Callable[[], None], width: str, tooltip: str) -> W.Button:
    """Return a button that calls `act`."""
    made = W.Button(description=text, icon=icon, tooltip=tooltip, layout=W.Layout(width=width))
    made.on_click(lambda _: act())
    return made


def table_html(table: pd.DataFrame, note: str = "") -> str:
    """Return a table for a widget, in the colours of the theme, with a line above it.

    Parameters
    ----------
    table : DataFrame
        Numbers are grouped by thousands; what is missing stays empty.
    note : str
        Plain text.
    """
    shown = table.map(_cell)
    head = f"<i>{html.escape(note)}</i>" if note else ""
    return f'{head}<div class="pvmmu-table">{shown.to_html(border=0)}</div>'


def _cell(value: Any) -> str:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:,.6g}"
    return "" if value is None else str(value)


class Messages:
    """Where a panel says what went wrong, and that it did well.

    Wrong input (a `PvmmuError`) is one line. Anything else is a defect: its traceback goes into an
    output area, where a reader sees it and a test that scans the saved widgets finds it.
    """

    def __init__(self) -> None:
        self.line = W.HTML(layout=W.Layout(min_height="24px"))
        self.defects = W.Output()
        self.widget = W.VBox([self.line, self.defects])

    def say(self, text: str) -> None:
        """Show a line of news."""
        self.line.value = f"<span>{html.escape(text)}</span>"

    def complain(self, error: Exception) -> None:
        """Show an error."""
        if isinstance(error, PvmmuError):
            self.line.value = f'<span class="pvmmu-wrong">&#9888; {html.escape(str(error))}</span>'
            return
        self.defects.outputs = (
            {
                "output_type": "error",
                "ename": type(error).__name__,
                "evalue": str(error),
                "traceback": traceback.format_exception(error),
            },
        )

    def clear(self) -> None:
        """Forget errors and news."""
        self.line.value = ""
        if self.defects.outputs:
            self.defects.outputs = ()


def guarded(
    callback: Callable[Concatenate[Any, _P], None],
) -> Callable[Concatenate[Any, _P], None]:
    """Decorate a callback of a panel: an exception is shown in its ``messages``, never lost."""

    @functools.wraps(callback)
    def call(panel: Any, /, *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            callback(panel, *args, **kwargs)
        except Exception as e:
            panel.messages.complain(e)

    return call
