"""What all panels are made of: a picture of fixed size, a place for errors, a matrix of hooks."""

from __future__ import annotations

import functools
import html
import math
import numbers
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
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
.pvmmu-idle > * { opacity: 0.5; }
.pvmmu-differs .widget-label-basic { font-weight: bold; text-decoration: underline; }
.pvmmu-hooks input:focus-visible { outline: 2px solid var(--jp-brand-color1, #0072B2); }
.pvmmu-panel .widget-box, .pvmmu-panel .widget-gridbox { overflow: visible; }
.pvmmu-panel .pvmmu-picture { position: relative; overflow: hidden; flex: 0 0 auto; max-width: 100%;
  container-type: inline-size; }
.pvmmu-spot, .pvmmu-spot:hover { position: absolute; background: transparent; min-width: 0;
  padding: 0; margin: 0; border: 0; box-shadow: none; cursor: pointer; }
.pvmmu-spot:hover { outline: 2px solid #000; outline-offset: -1px; }
.pvmmu-spot.jupyter-button:focus-visible { outline: 3px solid #000 !important;
  outline-offset: -2px; box-shadow: 0 0 0 2px #fff; }
.pvmmu-alt { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
.pvmmu-stale img { opacity: 0.25; }
.pvmmu-unshown { position: absolute; left: 0; right: 0; top: 0; margin: 0; padding: 4px 8px;
  background: var(--jp-layout-color0, #fff); border: 1px solid var(--jp-error-color1, #D55E00); }
[class*="pvmmu-tip-"] { position: relative; }
[class*="pvmmu-tip-"]:hover::after, [class*="pvmmu-tip-"]:focus-within::after {
  position: absolute; z-index: 20; left: 8px; top: 100%; width: max-content; max-width: 320px;
  white-space: normal; pointer-events: none; padding: 2px 6px; font-size: 12px; line-height: 1.3;
  color: var(--jp-ui-font-color0, #000); background: var(--jp-layout-color0, #fff);
  border: 1px solid var(--jp-border-color1, #999); }
.pvmmu-wrong { color: var(--jp-error-color1, #D55E00); font-weight: bold; }
.pvmmu-table { overflow-x: auto; max-width: 100%; }
.pvmmu-table table { font-size: 12px; line-height: 1.35; border-collapse: collapse; }
.pvmmu-table th, .pvmmu-table td { padding: 0 8px; text-align: right; }
.pvmmu-table tr > :first-child { text-align: left; }
.pvmmu-table tbody tr:nth-child(odd) { background: var(--jp-rendermime-table-row-background); }
</style>"""
_P = ParamSpec("_P")
#: Texts of `tip`, by the class of the widget.
_TIPS: dict[str, str] = {}


def tip(widget: Any, text: str) -> None:
    """Explain a widget where the mouse or the focus is on it.

    The ``tooltip`` of ipywidgets 8.1 is dropped where a widget has a description, so the style
    sheet says it (`style_sheet`).
    """
    name = f"pvmmu-tip-{zlib.crc32(text.encode()):08x}"
    _TIPS[name] = text
    widget.tooltip = text
    widget.add_class(name)


def style_sheet() -> str:
    """Return the style sheet of a panel, with what the widgets made so far say of themselves."""
    rules = []
    for name, text in _TIPS.items():
        said = (
            text.replace("\\", "\\\\").replace('"', '\\"').replace("<", "\\3c ").replace("\n", " ")
        )
        rules.append(f'.{name}:hover::after, .{name}:focus-within::after {{ content: "{said}"; }}')
    return STYLE.replace("</style>", "\n".join([*rules, "</style>"]))


class Picture:
    """A figure in a box of its size; showing it again replaces the picture, nothing moves.

    Where there is less room the box is narrower, and all in it smaller.

    Parameters
    ----------
    figure : Figure
        Its size fixes that of the box (`pvmmu.figures.style.SCREEN_DPI`).
    alt : str
        What it shows, for readers who do not see it; the title of the figure follows.

    Attributes
    ----------
    image, widget : Image, Box
        The picture; it with the places in it that can be chosen.
    caption : HTML
        What is read to those who do not see it (``Image`` has no alternative text).
    """

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure = figure
        width, height = figure.get_size_inches() * DPI
        size = W.Layout(width="100%", height=_of(width, height), object_fit="contain")
        self.image = W.Image(format="png", layout=size)
        self._alt, self.caption = alt, W.HTML()
        self._unshown = W.HTML(layout=W.Layout(display="none"))
        self._unshown.add_class("pvmmu-unshown")
        self.widget = W.Box(layout=W.Layout(width=f"{round(width)}px"))
        self.widget.add_class("pvmmu-picture")
        self.lay_over([])

    def show(self) -> None:
        """Draw the figure as it is now."""
        self.put(png_bytes(self.figure))

    def put(self, png: bytes) -> None:
        """Show a picture of the figure, and say what is in it."""
        self.image.value = png
        title = " ".join(self.figure.get_suptitle().split())
        said = html.escape(f"{self._alt}: {title}" if title else self._alt, quote=True)
        self.caption.value = f'<span class="pvmmu-alt" role="img" aria-label="{said}"></span>'
        self._unshown.layout.display = "none"
        self.widget.remove_class("pvmmu-stale")

    def leave_stale(self, why: str) -> None:
        """Dim the picture: it is not of what is chosen, for a reason that is told over it."""
        self._unshown.value = f'<span class="pvmmu-wrong">not shown: {html.escape(why)}</span>'
        self._unshown.layout.display = ""
        self.widget.add_class("pvmmu-stale")

    def lay_over(self, widgets: Sequence[W.Widget]) -> None:
        """Lay some widgets over the picture."""
        self.widget.children = (self.image, self.caption, self._unshown, *widgets)


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
            self._picture.lay_over(self._buttons)
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
