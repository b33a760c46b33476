"""Whole programs by instructions executed, native = 1: what each way of paging adds, and why."""

from __future__ import annotations

from typing import Final

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pvmmu.evidence.truth.native_one import native_one_finding
from pvmmu.figures.style import (
    CATEGORY_COLOURS,
    CATEGORY_HATCHES,
    SMALL,
    WIDE,
    new_figure,
    style,
    wrapped,
)
from pvmmu.replay.whole import Whole

#: What the categories hold here, in the order of the bars.
NAMES: Final = {
    "hypercall": "calls (and system calls, switches)",
    "batched": "requests",
    "trap": "faults and exits",
    "emulation": "emulated writes",
    "store": "entries made and translated by the guest",
    "work": "tables typed, walked; shadows made, synced",
}
_BAR, _GAP = 0.8, 0.9


def native_one_figure(rows: list[tuple[str, Whole, float]]) -> Figure:
    """Return a bar for each program and design: predicted, with a dot for what was measured.

    Parameters
    ----------
    rows : list of (str, Whole, float)
        From `pvmmu.evidence.truth.native_one.native_one`.
    """
    programs = list(dict.fromkeys(w.program for _, w, _ in rows))
    height = 0.21 * len(rows) + 0.24 * len(programs) + 1.9
    figure = new_figure(WIDE, height)
    with style():
        axes = figure.subplots()
        ticks: list[tuple[float, str]] = []
        y, last = 0.0, ""
        for name, whole, measured in rows:
            y += _GAP if last and whole.program != last else 0.0
            if whole.program != last:
                axes.text(
                    0.0, y - 0.62, whole.program, fontsize=SMALL, va="bottom", weight="bold",
                )  # fmt: skip
                y += 0.1
            last = whole.program
            axes.barh(y, 1, _BAR, color="white", edgecolor="#999999", linewidth=0.6)
            if not ticks:
                axes.text(0.5, y, "native", ha="center", va="center_baseline", fontsize=SMALL)
            left, shares = 1.0, whole.by_category()
            for category in NAMES:
                width = float(shares.get(category, 0.0))
                axes.barh(
                    y, width, _BAR, left=left, color=CATEGORY_COLOURS[category],
                    hatch=CATEGORY_HATCHES[category], edgecolor="white", linewidth=0,
                )  # fmt: skip
                left += width
            axes.plot(1 + measured, y, "o", color="black", ms=3.5)
            axes.text(
                max(left, 1 + measured) + 0.06, y, f"{1 + measured:.2f}", va="center_baseline",
                fontsize=SMALL,
            )  # fmt: skip
            ticks.append((y, name))
            y += 1
        axes.set_yticks([t for t, _ in ticks], [name for _, name in ticks], fontsize=SMALL)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(y - 0.4, -1.3)
        axes.set_xlim(0, 1.12 * max(1 + max(m, w.share) for _, w, m in rows))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("instructions executed, native = 1")
        handles: list[Patch | Line2D] = [
            Patch(
                facecolor=CATEGORY_COLOURS[c], hatch=CATEGORY_HATCHES[c], edgecolor="white", label=n
            )
            for c, n in NAMES.items()
        ]
        handles.append(
            Line2D([], [], marker="o", ls="", color="black", ms=3.5, label="measured (its number)")
        )
        figure.legend(
            handles=handles, loc="lower left", ncols=2, frameon=False, fontsize=SMALL,
            bbox_to_anchor=(0.02, 0.0),
        )  # fmt: skip
        figure.suptitle(
            wrapped(native_one_finding(rows), WIDE), x=0.02, y=1 - 0.07 / height, ha="left",
            va="top", fontsize=9,
        )  # fmt: skip
        figure.subplots_adjust(left=0.2, right=0.97, top=1 - 0.55 / height, bottom=1.15 / height)
    return figure
