"""The panel of page walks: any address, in any format, walked in three ways."""

from __future__ import annotations

import functools
import html
from typing import Any

import ipywidgets as W

from pvmmu.errors import PvmmuError
from pvmmu.figures.walks import WalkFigure, finding
from pvmmu.panels.controls import Line
from pvmmu.panels.history import State
from pvmmu.panels.kit import Picture, guarded
from pvmmu.panels.panel import Panel
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


class WalkPanel(Panel):
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
        super().__init__()
        self.figure = WalkFigure()
        self.picture = Picture(self.figure.figure, "entries that a page walk reads")
        kw: dict[str, Any] = {
            "layout": W.Layout(width="310px"),
            "style": {"description_width": "60px"},
        }
        ways = [(text, name) for name, text in _WAYS.items()]
        self.format = W.Dropdown(options=list(FORMATS), value=fmt, description="format", **kw)
        self.way = W.Dropdown(options=ways, value=way, description="walk", **kw)
        self.second = W.Dropdown(options=list(SECONDS), value=second, description="second", **kw)
        self.place = W.Dropdown(options=[place], value=place, description="page", **kw)
        self.address = Line(_address, "", description="address", **kw)
        self.access = W.Dropdown(options=list(KINDS), value=access, description="access", **kw)
        self.user = W.Checkbox(value=True, description="user mode", indent=False)
        self.ac = W.Checkbox(value=False, description="EFLAGS.AC", indent=False)
        self.table, self.finding = W.HTML(), W.HTML()
        self._offer_places()
        self._name_address()
        for control in (self.format, self.second):
            control.observe(lambda _: self._other_space(), "value")
        self.place.observe(lambda _: self._other_place(), "value")
        controls = {
            "format": self.format, "walk": self.way, "second": self.second, "page": self.place,
            "address": self.address, "access": self.access, "user": self.user, "ac": self.ac,
        }  # fmt: skip
        rows = [
            W.HBox([self.format, self.way, self.second]),
            W.HBox([self.place, self.address, self.access]),
            W.HBox([self.user, self.ac]),
        ]
        self.begin(controls, [*rows, self.picture.widget, self.finding, self.table])

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

    @guarded
    def _other_space(self) -> None:
        if not self._quiet:
            self.quietly(self._offer_places, self._name_address)

    @guarded
    def _other_place(self) -> None:
        if not self._quiet:
            self.quietly(self._name_address)

    def _before(self, name: str) -> None:
        if name == "page":
            self._offer_places()

    # ------------------------------------------------------------------ the walk
    def walk(self) -> Walk:
        """Return the walk that is shown."""
        return self.space.walk(
            _address(self.address.value),
            self.access.value,
            self.user.value,
            self.ac.value,
            self.way.value,
        )

    def _draw(self, state: State, before: State) -> None:
        walk = self.walk()
        self.second.disabled = self.way.value == "native"
        self.figure.show(walk)
        self.picture.show()
        self.finding.value = f"<b>{html.escape(finding(walk))}</b>"
        self.table.value = f"<pre style='line-height:1.25'>{html.escape(str(walk))}</pre>"


def _address(text: str) -> int:
    try:
        return int(text.replace("_", ""), 0)
    except (ValueError, AttributeError):
        raise PvmmuError(f"{text!r} is no address (such as 0x7f1234567abc)") from None
