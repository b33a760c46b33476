"""The panel of oopses: paste what a kernel printed, see the walk and what is to blame."""

from __future__ import annotations

import html
from typing import Any

import ipywidgets as W

from pvmmu.errors import PvmmuError
from pvmmu.figures.walks import WalkFigure
from pvmmu.guest.oops.explain import Explanation, explain
from pvmmu.guest.oops.text import OopsError, read_oopses
from pvmmu.panels.history import State
from pvmmu.panels.kit import Picture
from pvmmu.panels.panel import Panel

#: Shown at first: a page fault on a reserved bit, of a Ryzen with memory encryption
#: (https://lore.kernel.org/all/1591570155.2tn9o40h95.none@localhost/, June 2020).
EXAMPLE = """BUG: unable to handle page fault for address: ffffb2b582cc2000
#PF: supervisor write access in kernel mode
#PF: error_code(0x000b) - reserved bit violation
PGD 3fd03b067 P4D 3fd03b067 PUD 3fd03c067 PMD 3f8822067 PTE 8000273942ab2163
CR0: 0000000080050033 CR3: 00000003b6731000 CR4: 00000000003406e0
"""


class _Log(W.Textarea):
    """A text that has a page fault in it before a state sets it."""

    def set(self, value: str) -> None:
        """Set the text.

        Raises
        ------
        OopsError
            There is no page fault in it.
        """
        read_oopses(value)
        self.value = value


class OopsPanel(Panel):
    """A panel over `pvmmu.guest.oops`: the text of an oops in; the walk and an explanation out.

    Parameters
    ----------
    text : str
        What to show at first.
    """

    def __init__(self, text: str = EXAMPLE) -> None:
        super().__init__()
        self.figure = WalkFigure()
        self.picture = Picture(self.figure.figure, "the walk of an oops")
        self.text = _Log(
            value=text, continuous_update=False, layout=W.Layout(width="98%", height="130px")
        )
        self.number = W.BoundedIntText(
            value=1, min=1, max=999, description="fault", layout=W.Layout(width="140px"),
            style={"description_width": "50px"},
        )  # fmt: skip
        self.finding, self.table = W.HTML(), W.HTML()
        controls: dict[str, Any] = {"text": self.text, "fault": self.number}
        rows = [self.text, W.HBox([self.number, self.finding])]
        self.begin(controls, [*rows, self.picture.widget, self.table])

    def explanation(self) -> Explanation:
        """Return what is shown.

        Raises
        ------
        PvmmuError
            The text has no page fault, or not so many.
        """
        found = read_oopses(self.text.value)
        if self.number.value > len(found):
            raise OopsError(f"there is no fault {self.number.value}: the text has {len(found)}")
        return explain(found[self.number.value - 1])

    def _draw(self, state: State, before: State) -> None:
        x = self.explanation()
        if x.walk is None:
            raise PvmmuError("no page-table entries are printed: there is no walk to draw")
        self.figure.show(x.walk)
        self.picture.show()
        self.finding.value = f"<b>{html.escape(x.blame)}</b>"
        self.table.value = f"<pre style='line-height:1.25'>{html.escape(str(x))}</pre>"
