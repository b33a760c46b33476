"""What every panel is: controls whose values are a line of text, one redraw for each change."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import ipywidgets as W
from matplotlib.figure import Figure
from traitlets import TraitError

from pvmmu.errors import PvmmuError
from pvmmu.figures.style import save_figure
from pvmmu.files import whole_file
from pvmmu.hooks import HookSet
from pvmmu.panels.history import History, State
from pvmmu.panels.kit import Messages, button, guarded, style_sheet


class Control(Protocol):
    """What a user changes: a widget, or several that hold one value together."""

    @property
    def value(self) -> Any:
        """What is chosen."""

    def observe(self, handler: Callable[[Any], None], names: str, /) -> None:
        """Call `handler` when the value has changed."""


class Panel:
    """Base of all panels: state as text, undo and reset, errors in place, the time of a redraw.

    A panel makes its figure and its controls, and hands these to `begin`; whenever one changes,
    `_draw` is called once, with the state to show.

    Parameters
    ----------
    folder : path-like
        Where Export writes.

    Attributes
    ----------
    view : VBox
        What a notebook shows.
    messages : Messages
        Where errors go.
    history : History
        Undo, reset, the line of text.
    redraws : int
        How often something was drawn.
    kernel_ms : float
        How long the last redraw took, in milliseconds.
    """

    view: W.VBox
    figure: Any  # of pvmmu.figures
    picture: Any  # a `Picture`

    def __init__(self, folder: str | Path = "export") -> None:
        self.folder_box = W.Text(
            value=str(folder), description="into", layout=W.Layout(width="240px"),
            style={"description_width": "32px"},
        )  # fmt: skip
        self.messages, self.history = Messages(), History(self.restore)
        self.redraws, self.kernel_ms = 0, 0.0
        self._controls: dict[str, Control] = {}
        self._drawn: State = {}
        self._tried: State | None = None
        self._quiet = True

    def begin(
        self, controls: Mapping[str, Control], rows: Sequence[W.Widget],
        more: Sequence[W.Widget] = (),
    ) -> None:  # fmt: skip
        """Draw for the first time, and from now on whenever a control changes.

        Parameters
        ----------
        controls : mapping of str to Control
            By their names in the state, in the order in which a state sets them.
        rows : sequence of Widget
            From top to bottom; undo, state and messages come below.
        more : sequence of Widget
            Buttons beside Export.
        """
        self._controls = dict(controls)
        for control in self._controls.values():
            control.observe(lambda _: self._redraw(), "value")
        export = button("Export", "download", self.export, "100px", "what is shown, as files")
        foot = W.HBox([*more, export, self.folder_box])
        self._style = W.HTML()
        self.view = W.VBox([self._style, *rows, self.history.widget, foot, self.messages.widget])
        self.view.add_class("pvmmu-panel")
        self._quiet = False
        self._redraw()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view)

    # ------------------------------------------------------------------ state
    def state(self) -> State:
        """Return what the panel shows, in values that JSON has; `restore` takes it."""
        return {name: _plain(control.value) for name, control in self._controls.items()}

    @guarded
    def restore(self, state: str | Mapping[str, Any]) -> None:
        """Show a state again, whole or not at all.

        Parameters
        ----------
        state : str or mapping
            From `state`, as it is or as JSON.
        """
        self.messages.clear()
        before, values = self.state(), self._read(_document(state))
        self._quiet = True
        try:
            self._set(values)
        except Exception:
            self._set(before)
            raise
        finally:
            self._quiet = False
        self._redraw()

    def _read(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the values of the controls in a document.

        Raises
        ------
        PvmmuError
            One is missing, or there is something else: it is of another panel.
        """
        missing = [name for name in self._controls if name not in document]
        other = [str(name) for name in document if name not in self._controls]
        if missing or other:
            what = f"{missing[0]!r} is missing" if missing else f"it has no {other[0]!r}"
            raise PvmmuError(f"not the state of this panel: {what}")
        return document

    def _set(self, values: Mapping[str, Any]) -> None:
        for name, control in self._controls.items():
            self._before(name)
            _put(name, control, values[name])

    def _before(self, name: str) -> None:
        """Called before a state sets a control, for one whose range depends on those before it."""

    # ------------------------------------------------------------------ export
    @guarded
    def export(self) -> None:
        """Write what is shown into the folder that the panel names."""
        self.messages.clear()
        folder = Path(self.folder_box.value)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise PvmmuError(f"{folder}: cannot be made ({e.strerror or e})") from None
        self.messages.say("written: " + ", ".join(map(str, self.write(folder))))

    def whole_figure(self) -> Figure:
        """Return the figure as a file shows it."""
        figure: Figure = self.figure.figure
        return figure

    def write(self, folder: Path) -> list[Path]:
        """Write figure (PNG, SVG, PDF) and state into a folder that is there; return the files.

        Raises
        ------
        PvmmuError
            The folder cannot be written.
        """
        stem = folder / type(self).__name__.removesuffix("Panel").lower()
        state = stem.with_suffix(".json")
        files = save_figure(self.whole_figure(), stem)
        with whole_file(state) as tmp:
            tmp.write_text(json.dumps(self.state(), indent=1) + "\n", encoding="utf-8")
        return [*files, state]

    # ------------------------------------------------------------------ drawing
    def quietly(self, *steps: Callable[[], Any]) -> None:
        """Change several controls, and draw once."""
        before, self._quiet = self._quiet, True
        try:
            for step in steps:
                step()
        finally:
            self._quiet = before
        self._redraw()

    @guarded
    def _redraw(self) -> None:
        """Draw the state, unless it is being set or was tried last."""
        state = self.state()
        if self._quiet or state == self._tried:
            return
        start, self._tried, drawn = time.perf_counter(), state, self._drawn
        self.messages.clear()
        self._drawn = {}
        try:
            self._draw(state, drawn)
            self._drawn = self._tried = self.state()  # drawing may have fitted a control
        except Exception as e:
            self.picture.leave_stale(str(e))
            raise
        finally:
            self.history.note(self._tried)
            self._style.value = style_sheet()
        self.redraws += 1
        self.kernel_ms = 1000 * (time.perf_counter() - start)
        self.history.took(self.kernel_ms)

    def _draw(self, state: State, before: State) -> None:
        """Show a state; `before` is the one that was drawn last, empty if that failed."""
        raise NotImplementedError


def _plain(value: Any) -> Any:
    return value.short if isinstance(value, HookSet) else value


def _document(state: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(state, str):
        try:
            state = json.loads(state)
        except ValueError as e:
            raise PvmmuError(f"not the state of a panel: {e}") from None
    if not isinstance(state, Mapping):
        raise PvmmuError("not the state of a panel: it must begin with {")
    return state


def _put(name: str, control: Any, value: Any) -> None:
    """Set a control.

    Raises
    ------
    PvmmuError
        The value does not fit; names control and value.
    """
    try:
        control.set(value) if hasattr(control, "set") else setattr(control, "value", value)
    except PvmmuError as e:
        raise PvmmuError(f"state: {name}: {e}") from None
    except (TraitError, TypeError, ValueError, AttributeError):
        raise PvmmuError(f"state: {name}: {value!r} is not to be had here") from None
    if value is None or (isinstance(value, int | float) and control.value != value):
        raise PvmmuError(f"state: {name}: {value!r} is out of range")
