"""What all panels are made of: a picture of fixed size, a place for errors, a matrix of hooks."""

from __future__ import annotations

import functools
import html
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec

import ipywidgets as W
from matplotlib.figure import Figure

from pvmmu.errors import PvmmuError
from pvmmu.figures.style import png_bytes
from pvmmu.hooks import NO_HOOKS, HookSet, catalogue, interfaces

DPI = 100
_CSS = """<style>
.pvmmu-hooks .widget-checkbox label { font-size: 12px; }
.pvmmu-never .widget-label-basic { font-style: italic; }
.pvmmu-idle { opacity: 0.45; }
.pvmmu-differs .widget-label-basic { font-weight: bold; text-decoration: underline; }
.pvmmu-hooks input:focus-visible { outline: 2px solid var(--jp-brand-color1, #0072B2); }
</style>"""
_P = ParamSpec("_P")


class Picture:
    """A figure in a box of fixed size; showing it again replaces the picture, nothing moves.

    Parameters
    ----------
    figure : Figure
        Its size fixes that of the box (100 dots per inch).
    alt : str
        For readers who do not see it.
    """

    def __init__(self, figure: Figure, alt: str) -> None:
        self.figure = figure
        width, height = (f"{round(x * DPI)}px" for x in figure.get_size_inches())
        self.widget = W.Image(
            format="png", layout=W.Layout(width=width, height=height, object_fit="contain")
        )
        self.widget.alt = alt

    def show(self) -> None:
        """Draw the figure as it is now."""
        self.widget.value = png_bytes(self.figure)


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
            self.line.value = (
                f'<span style="color:#D55E00">&#9888; {html.escape(str(error))}</span>'
            )
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


class HookMatrix:
    """Check boxes for all hooks, grouped by level, and presets of the past.

    Parameters
    ----------
    changed : callable
        Called without arguments when the set has changed, once for a preset.
    value : HookSet
        Checked at first.
    """

    def __init__(self, changed: Callable[[], None], value: HookSet = NO_HOOKS) -> None:
        self._changed, self._quiet = changed, False
        self.boxes = {name: self._box(name) for name in catalogue()}
        self.presets = W.Dropdown(
            options=[
                ("preset ...", ""),
                *((f"{n}: {i.title}", n) for n, i in interfaces().items()),
            ],
            layout=W.Layout(width="98%"),
        )
        self.presets.observe(self._on_preset, "value")
        groups = [
            ("low-level", [n for n, h in catalogue().items() if h.level == "low"]),
            ("high-level", [n for n, h in catalogue().items() if h.level == "high"]),
        ]
        self.widget = W.VBox(
            [W.HTML(_CSS), self.presets, *(self._group(title, names) for title, names in groups)],
            layout=W.Layout(width="520px", flex="0 0 auto"),
        )
        self.widget.add_class("pvmmu-hooks")
        self.value = value

    def _box(self, name: str) -> W.Checkbox:
        hook = catalogue()[name]
        box = W.Checkbox(
            description=name, indent=False, layout=W.Layout(width="168px", margin="0 4px 0 0")
        )
        used = ", ".join(hook.implementers) or "nobody"
        since = f"since {hook.merged}" if hook.was_merged else "never merged"
        box.tooltip = f"{hook.meaning}. {since}; used by {used}."
        if not hook.was_merged:
            box.add_class("pvmmu-never")
        box.observe(self._on_box, "value")
        return box

    def _group(self, title: str, names: Sequence[str]) -> W.VBox:
        grid = W.GridBox(
            [self.boxes[n] for n in names],
            layout=W.Layout(grid_template_columns="repeat(3, 172px)", grid_gap="0px"),
        )
        return W.VBox([W.HTML(f"<b>{title}</b>"), grid])

    @property
    def value(self) -> HookSet:
        """The hooks that are checked."""
        return HookSet.of(*(n for n, b in self.boxes.items() if b.value))

    @value.setter
    def value(self, hooks: HookSet) -> None:
        self._quiet = True
        try:
            for name, box in self.boxes.items():
                box.value = name in hooks
        finally:
            self._quiet = False
        self._changed()

    def dim(self, idle: Iterable[str]) -> None:
        """Grey out the hooks that do not matter here."""
        idle = set(idle)
        for name, box in self.boxes.items():
            (box.add_class if name in idle else box.remove_class)("pvmmu-idle")

    def mark(self, other: HookSet) -> None:
        """Underline the hooks in which the set differs from another one."""
        for name, box in self.boxes.items():
            differs = box.value != (name in other)
            (box.add_class if differs else box.remove_class)("pvmmu-differs")

    def _on_box(self, change: dict[str, Any]) -> None:
        if not self._quiet:
            self._changed()

    def _on_preset(self, change: dict[str, Any]) -> None:
        if change["new"]:
            self.value = interfaces()[change["new"]].hooks
            self.presets.value = ""
