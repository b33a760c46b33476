"""Undo, reset, and a panel's state as a line of text to copy into a mail and to paste back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import ipywidgets as W

from pvmmu.panels.kit import tip

State = dict[str, Any]
#: States that can be undone.
_KEPT: Final = 200


class History:
    """What a panel has shown, with buttons for the way back.

    Parameters
    ----------
    restore : callable
        Shows a state (a dictionary, or the text of one).

    Attributes
    ----------
    widget : HBox
        Undo, Reset, the line of text, how long a redraw took. A text that is pasted there is shown
        on Enter.
    """

    def __init__(self, restore: Callable[[Any], None]) -> None:
        self._restore, self._states = restore, list[State]()
        self.undo_button = W.Button(
            description="Undo", icon="undo", layout=W.Layout(width="84px"), disabled=True
        )
        self.reset_button = W.Button(
            description="Reset", icon="refresh", layout=W.Layout(width="84px"), disabled=True
        )
        self.line = W.Text(
            description="state", continuous_update=False, layout=W.Layout(flex="1 1 300px"),
            style={"description_width": "36px"},
        )  # fmt: skip
        tip(self.line, "copy this into a mail; paste another one and press Enter")
        self.undo_button.on_click(lambda _: self.undo())
        self.reset_button.on_click(lambda _: self.reset())
        self.line.observe(self._on_line, "value")
        self.clock = W.Label(layout=W.Layout(width="110px"))
        self.widget = W.HBox([self.undo_button, self.reset_button, self.line, self.clock])

    def note(self, state: State) -> None:
        """Remember a state that is shown now."""
        if not self._states or self._states[-1] != state:
            self._states = [*self._states, dict(state)]
            del self._states[1:-_KEPT]  # the first one is what Reset shows
        self._tell()

    def took(self, milliseconds: float) -> None:
        """Say how long the kernel took to show it."""
        self.clock.value = f"{milliseconds:.0f} ms"

    def undo(self) -> None:
        """Show the state before this one; what stands in the line and is none goes first."""
        if len(self._states) > 1 and not self._foreign():
            self._states.pop()
        if self._states:
            self._restore(self._states[-1])
        self._tell()

    def reset(self) -> None:
        """Show the first state; that can be undone."""
        if self._states:
            self._restore(self._states[0])
        self._tell()

    def _foreign(self) -> bool:
        """Whether the line holds something else than the state that is shown."""
        return bool(self._states) and self.line.value != json.dumps(self._states[-1])

    def _tell(self) -> None:
        text = json.dumps(self._states[-1]) if self._states else ""
        if self.line.value != text:
            self.line.value = text
        self.undo_button.disabled = len(self._states) < 2
        self.reset_button.disabled = len(self._states) < 2

    def _on_line(self, change: dict[str, Any]) -> None:
        if change["new"].strip() and self._foreign():
            self._restore(change["new"])
        if self._foreign():  # it was no state: both buttons put that right
            self.undo_button.disabled = self.reset_button.disabled = False
