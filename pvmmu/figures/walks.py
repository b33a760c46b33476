"""Page walks drawn: which part of the address chooses which entry, and what each reference costs.

A column for each level of the (guest's) tables and one for the page itself. The row at the bottom
holds the entries of these tables; above each stand the entries of the second dimension that had to
be read to get at it. A one-dimensional walk is the bottom row alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pvmmu.figures.style import CATEGORY_COLOURS, SMALL, WIDE, new_figure, style, wrapped
from pvmmu.x86 import bits
from pvmmu.x86.checks import Reference
from pvmmu.x86.explain import Walk
from pvmmu.x86.formats import Format, Level
from pvmmu.x86.walk import guest_format

_WALK, _FAULT = CATEGORY_COLOURS["walk"], CATEGORY_COLOURS["trap"]
_PALE: Final = "#F2DCE8"  # the second dimension: the colour of a walk, lighter
_INK, _FAINT = "#222222", "#999999"
_GAP: Final = 0.06
_HEAD: Final = 0.55  # height of the address field above a column
_NOTES: Final = {
    "native": "the kernel's own tables",
    "shadow": "the hypervisor's tables; the guest's are not read",
    "nested": "the guest's tables, through a second dimension",
}
_FLAGS: Final = {bits.A: "A", bits.D: "D"}
_SECOND_FLAGS: Final = {bits.EPT_A: "A", bits.EPT_D: "D"}


@dataclass(frozen=True)
class _Column:
    """One level of the tables, or the page."""

    field: str
    index: str
    own: Reference | None
    second: tuple[Reference, ...]
    name: str


def _columns(walk: Walk) -> list[_Column]:
    fmt = guest_format(walk.registers, walk.second)
    own = {r.level: r for r in walk.path if r.dimension == 1}
    leaf = min(own) if own and walk.page_shift else 0
    shown = [x for x in fmt.levels if not leaf or x.number >= leaf]
    out = [_column(walk, x, own.get(x.number)) for x in shown]
    shift = next(x.shift for x in fmt.levels if x.number == (leaf or 1))
    offset = f"{walk.va & (1 << shift) - 1:#x}"
    return [*out, _Column(f"{shift - 1}:0", offset, None, _second(walk, 0), "the page")]


def _column(walk: Walk, level: Level, own: Reference | None) -> _Column:
    top = level.shift + level.bits - 1
    index = walk.va >> level.shift & (1 << level.bits) - 1
    return _Column(
        f"{top}:{level.shift}", str(index), own, _second(walk, level.number), level.entry
    )


def _second(walk: Walk, guest_level: int) -> tuple[Reference, ...]:
    return tuple(r for r in walk.path if r.dimension == 2 and r.guest_level == guest_level)


class _Drawing:
    """One walk in some axes."""

    def __init__(self, axes: Axes, walk: Walk, compact: bool) -> None:
        self.axes, self.walk, self.compact = axes, walk, compact
        self.columns = _columns(walk)
        self.depth = len(walk.second.format.levels) if walk.second else 0
        self.updates = dict(walk.updates)
        failed = walk.vector or walk.exit_reason
        self.failed = walk.path[-1] if failed and walk.path else None
        self.small = 0.5 if self.depth else 0.0

    def draw(self) -> None:
        a, height = self.axes, 1 + self.depth * self.small
        a.set_axis_off()
        top = height + (0 if self.compact else _HEAD + 0.1)
        a.set_xlim(-0.02, len(self.columns) + 0.02)
        a.set_ylim(-0.05, top)
        for i, c in enumerate(self.columns):
            if not self.compact:
                self._field(i, c, height + 0.08)
            for k in range(self.depth):
                y = height - (k + 1) * self.small
                self._entry(i, y, self.small, c.second[k] if k < len(c.second) else None, c)
            if i == len(self.columns) - 1:
                self._page(i)
            else:
                self._entry(i, 0, 1, c.own, c)

    def _box(self, i: int, y: float, h: float, **looks: Any) -> None:
        gap = _GAP / 2
        self.axes.add_patch(
            Rectangle((i + gap, y + gap * h), 1 - 2 * gap, h * (1 - 2 * gap), **looks)
        )

    def _text(self, x: float, y: float, text: str, size: float = SMALL, **looks: Any) -> None:
        self.axes.text(x, y, text, fontsize=size, **{"va": "center", "color": _INK, **looks})

    def _field(self, i: int, c: _Column, y: float) -> None:
        self._box(i, y, _HEAD, facecolor="white", edgecolor=_FAINT, linewidth=0.8)
        self._text(i + 0.5, y + 0.68 * _HEAD, f"bits {c.field}", SMALL, ha="center", color=_FAINT)
        self._text(i + 0.5, y + 0.3 * _HEAD, c.index, 8, ha="center", family="DejaVu Sans Mono")

    def _entry(self, i: int, y: float, h: float, r: Reference | None, c: _Column) -> None:
        if r is None:
            self._box(i, y, h, facecolor="none", edgecolor="#CCCCCC", linewidth=0.6, linestyle=":")
            return
        wrong = self.failed is not None and r is self.failed
        own = r.dimension == 1
        face = _FAULT if wrong else (_WALK if own else _PALE)
        hatch = "//" if wrong else ""
        self._box(i, y, h, facecolor=face, edgecolor="white", hatch=hatch, linewidth=0.5)
        if self.compact:
            text = str(r.number or "register")
            self._text(i + 0.5, y + h / 2, text, SMALL, ha="center")
        elif own:
            self._own(i, r)
        else:
            self._text(i + 0.07, y + h / 2, f"{r.number}", SMALL, weight="bold")
            self._text(i + 0.24, y + 0.66 * h, r.name.removeprefix("nested "))
            self._text(i + 0.24, y + 0.32 * h, f"{r.entry:x}{self._sets(r)}")

    def _own(self, i: int, r: Reference) -> None:
        where = f"at {r.address:#x}" if r.number else f"register {r.address}"
        self._text(i + 0.07, 0.86, f"{r.number or ''}", 9, weight="bold")
        self._text(i + 0.27, 0.86, r.name, 8, weight="bold")
        self._text(i + 0.07, 0.64, where)
        self._text(i + 0.07, 0.44, f"{r.entry:#x}")
        self._text(i + 0.07, 0.24, f"{r.flags}{self._sets(r)}")

    def _sets(self, r: Reference) -> str:
        """Flags that this walk sets in an entry."""
        new = self.updates.get(r.address, r.entry) & ~r.entry if r.number else 0
        ept = r.dimension == 2 and self.walk.second and self.walk.second.format.bad_types
        names = _SECOND_FLAGS if ept else _FLAGS
        found = " ".join(name for bit, name in names.items() if new & bit)
        return f" +{found}" if found else ""

    def _page(self, i: int) -> None:
        found = bool(self.walk.page_shift)
        line = "-" if found else ":"
        edge = _INK if found else "#CCCCCC"
        self._box(i, 0, 1, facecolor="white", edgecolor=edge, linewidth=1.0, linestyle=line)
        if self.compact:
            self._text(i + 0.5, 0.5, "page", SMALL, ha="center", color=edge)
        else:
            self._text(i + 0.1, 0.8, "the page", 8, weight="bold", color=edge)
            self._text(i + 0.1, 0.5, f"{self.walk.pa:#x}" if found else "not reached", color=edge)


def _heading(walk: Walk, fmt: Format) -> str:
    who = "user" if walk.user else "supervisor"
    under = f" under {walk.second.format.name}" if walk.second else ""
    return f"{who} {walk.access} of {walk.va:#x}, {fmt.name} paging{under}"


class WalkFigure:
    """The anatomy of one walk, redrawn in place.

    Attributes
    ----------
    figure : Figure
        Of fixed size.
    """

    def __init__(self) -> None:
        self.figure: Figure = new_figure(WIDE, 5.0)
        with style():
            self.title = self.figure.suptitle("", x=0.02, y=0.985, ha="left", va="top", fontsize=9)
            self.remark = self.figure.text(0.02, 0.925, "", fontsize=SMALL, color="#555555")
            self.axes = self.figure.add_axes((0.015, 0.02, 0.97, 0.88))

    def show(self, walk: Walk) -> None:
        """Draw `walk` (of `pvmmu.x86.walk_one`)."""
        with style():
            self.axes.clear()
            _Drawing(self.axes, walk, compact=False).draw()
            self.title.set_text(finding(walk))
            self.remark.set_text(_heading(walk, guest_format(walk.registers, walk.second)))


def finding(walk: Walk) -> str:
    """Return one line: what comes of `walk`, and after how many references."""
    n = walk.references
    return f"{walk.verdict}, after {n} reference{'s' * (n != 1)}"


def three_ways_figure(walks: Mapping[str, Walk]) -> Figure:
    """Draw walks of the same address side by side: native, shadow, nested.

    Parameters
    ----------
    walks : mapping
        What to call it -> walk. Widths are in proportion to the columns.
    """
    figure = new_figure(WIDE, 3.9)
    with style():
        widths = [len(_columns(w)) for w in walks.values()]
        axes = figure.subplots(1, len(walks), width_ratios=widths, squeeze=False)[0]
        tallest = max(1 + 0.5 * _depth(w) for w in walks.values())
        for a, (name, walk) in zip(axes, walks.items(), strict=True):
            _Drawing(a, walk, compact=True).draw()
            a.set_ylim(-0.05, tallest)
            for i, c in enumerate(_columns(walk)):
                name_of = c.name.removeprefix("the ")
                a.text(i + 0.62, -0.06, name_of, ha="right", va="top", rotation=60, fontsize=SMALL)
            n = walk.references
            a.text(0, -0.95, f"{name}: {n} references", fontsize=8.5, weight="bold")
            note = wrapped(_NOTES.get(name, ""), WIDE / len(walks), SMALL)
            a.text(0, -1.05, note, fontsize=SMALL, color="#555555", va="top")
        parts = [f"{w.references} {name}" for name, w in walks.items()]
        figure.suptitle(
            f"References to reach one page: {', '.join(parts)}", x=0.02, ha="left", fontsize=9
        )
        key = (
            "dark: entries of the tables that CR3 names; pale: of the second dimension, to find "
            "each of them; numbers: the order in which they are read"
        )
        figure.text(0.02, 0.02, wrapped(key, WIDE, SMALL), fontsize=SMALL, color="#555555")
        figure.subplots_adjust(left=0.02, right=0.98, top=0.9, bottom=0.43, wspace=0.08)
    return figure


def _depth(walk: Walk) -> int:
    return len(walk.second.format.levels) if walk.second else 0
