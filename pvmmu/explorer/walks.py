"""The panel of page walks: any address, in any format, walked in three ways."""

from __future__ import annotations

import functools
import html
from typing import Any

import ipywidgets as W

from pvmmu.errors import PvmmuError
from pvmmu.explorer.kit import Messages, Picture, guarded
from pvmmu.figures.walks import WalkFigure, finding
from pvmmu.x86.examples import FORMATS, SECONDS, ExampleSpace
from pvmmu.x86.explain import Walk
from pvmmu.x86.plan import KINDS

_WAYS = {
    "native": "native: the kernel's own tables",
    "shadow": "shadow: the hypervisor's tables",
    "nested": "nested: through a second dimension",
}


@functools.lru_cache(maxsize=8)
def _space(fmt: str, second: str) -> ExampleSpace:
    return ExampleSpace(fmt, second)


class WalkPanel:
    """A panel over `walk_one`: format, way, address and access in; entries and checks out.

    Parameters
    ----------
    fmt, second, way : str
        What to show at first (`pvmmu.x86.examples`).
    place : str
        The page.
    access : {"read", "write", "fetch"}
        What is done to it.
    """

    def __init__(
        self,
        fmt: str = "4-level",
        way: str = "nested",
        place: str = "a page",
        access: str = "read",
        second: str = "EPT, 4 levels",
    ) -> None:
        self.messages, self.figure = Messages(), WalkFigure()
        self.picture = Picture(self.figure.figure, "entries that a page walk reads")
        self.redraws, self._quiet = 0, False
        self._shown: tuple[Any, ...] = ()
        kw: dict[str, Any] = {
            "layout": W.Layout(width="310px"),
            "style": {"description_width": "60px"},
        }
        ways = [(text, name) for name, text in _WAYS.items()]
        self.format = W.Dropdown(options=list(FORMATS), value=fmt, description="format", **kw)
        self.way = W.Dropdown(options=ways, value=way, description="walk", **kw)
        self.second = W.Dropdown(options=list(SECONDS), value=second, description="second", **kw)
        self.place = W.Dropdown(options=[place], value=place, description="page", **kw)
        self.address = W.Text(description="address", continuous_update=False, **kw)
        self.access = W.Dropdown(options=list(KINDS), value=access, description="access", **kw)
        self.user = W.Checkbox(value=True, description="user mode", indent=False)
        self.ac = W.Checkbox(value=False, description="EFLAGS.AC", indent=False)
        self.table = W.HTML()
        self._offer_places()
        self._name_address()
        for control in (self.way, self.access, self.user, self.ac, self.address):
            control.observe(lambda _: self._redraw(), "value")
        for control in (self.format, self.second):
            control.observe(lambda _: self._other_space(), "value")
        self.place.observe(lambda _: self._other_place(), "value")
        self.view = self._view()
        self._redraw()

    def _view(self) -> W.VBox:
        rows = [
            W.HBox([self.format, self.way, self.second]),
            W.HBox([self.place, self.address, self.access]),
            W.HBox([self.user, self.ac]),
        ]
        return W.VBox([*rows, self.picture.widget, self.messages.widget, self.table])

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(self.view)

    # ------------------------------------------------------------------ the address
    @property
    def space(self) -> ExampleSpace:
        """What is walked."""
        return _space(self.format.value, self.second.value)

    def _offer_places(self) -> None:
        """The pages that there are in this format."""
        places, before = self.space.places, self.place.value
        self.place.options = list(places)
        self.place.value = before if before in places else "a page"

    def _name_address(self) -> None:
        self.address.value = f"{self.space.places[self.place.value]:#x}"

    def _quietly(self, *steps: Any) -> None:
        """Change several controls, and draw once."""
        self._quiet = True
        try:
            for step in steps:
                step()
        finally:
            self._quiet = False
        self._redraw()

    @guarded
    def _other_space(self) -> None:
        self._quietly(self._offer_places, self._name_address)

    @guarded
    def _other_place(self) -> None:
        if not self._quiet:
            self._quietly(self._name_address)

    def _va(self) -> int:
        try:
            return int(self.address.value.replace("_", ""), 0)
        except ValueError:
            raise PvmmuError(
                f"{self.address.value!r} is no address (such as 0x7f1234567abc)"
            ) from None

    # ------------------------------------------------------------------ the walk
    def walk(self) -> Walk:
        """Return the walk that is shown."""
        return self.space.walk(
            self._va(), self.access.value, self.user.value, self.ac.value, self.way.value
        )

    @guarded
    def _redraw(self) -> None:
        state = (
            self.format.value, self.way.value, self.second.value, self.address.value,
            self.access.value, self.user.value, self.ac.value,
        )  # fmt: skip
        if self._quiet or state == self._shown:
            return
        self._shown = state
        self.messages.clear()
        walk = self.walk()
        self.second.disabled = self.way.value == "native"
        self.figure.show(walk)
        self.picture.show()
        self.redraws += 1
        self.messages.say(finding(walk))
        self.table.value = f"<pre style='line-height:1.25'>{html.escape(str(walk))}</pre>"
