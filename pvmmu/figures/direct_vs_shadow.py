"""Direct paging beside shadow paging: entries to the hypervisor, measured and predicted."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pvmmu.evidence.truth.direct_vs_shadow import SIDES
from pvmmu.figures.style import SMALL, WIDE, new_figure, style, wrapped

#: Environment -> marker, how dark, and how far below the workload's line.
_MARKS = {
    "direct": ("D", "#000000", -0.28),
    "kvm-shadow": ("o", "#555555", 0.0),
    "xen-pvh-shadow": ("^", "#888888", 0.28),
}


def direct_vs_shadow_figure(table: pd.DataFrame) -> Figure:
    """Return a row for each workload: filled what was measured, open what is predicted.

    Parameters
    ----------
    table : DataFrame
        From `pvmmu.evidence.truth.direct_vs_shadow`.
    """
    names = list(dict.fromkeys(table["workload"]))
    figure = new_figure(WIDE, 0.47 * len(names) + 1.3)
    with style():
        axes = figure.subplots()
        for side, (marker, ink, below) in _MARKS.items():
            rows = table[table["side"] == side].set_index("workload").loc[names]
            y = [i + below for i in range(len(names))]
            axes.plot(rows["measured"], y, ls="", marker=marker, color=ink, ms=4)
            axes.plot(
                rows["predicted"], y, ls="", marker=marker, color=ink, ms=9, mfc="none", mew=0.8
            )
            for value, other, at in zip(rows["measured"], rows["predicted"], y, strict=True):
                shown = other if pd.isna(value) else value
                beside, end = (1.3, "left") if side == "direct" else (1 / 1.3, "right")
                axes.text(
                    beside * shown, at, f"{shown:,.0f}", ha=end, va="center_baseline",
                    fontsize=SMALL, color=ink,
                )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(1, 2.2 * table[["measured", "predicted"]].max().max())
        axes.set_yticks(range(len(names)), [wrapped(n, 1.9, 8) for n in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("entries to the hypervisor for one iteration (logarithmic)")
        handles = [
            Line2D([], [], marker=m, ls="", color=ink, ms=5, label=SIDES[side])
            for side, (m, ink, _) in _MARKS.items()
        ]
        handles.append(
            Line2D([], [], marker="s", ls="", color="#333333", mfc="none", ms=8, label="predicted")
        )
        figure.legend(
            handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=SMALL,
            bbox_to_anchor=(0.55, 0.0),
        )  # fmt: skip
        height = figure.get_figheight()
        figure.suptitle(
            wrapped(_title(table), WIDE),
            x=0.02,
            y=1 - 0.07 / height,
            ha="left",
            va="top",
            fontsize=9,
        )
        figure.subplots_adjust(left=0.34, right=0.98, top=1 - 0.5 / height, bottom=0.95 / height)
    return figure


def _title(table: pd.DataFrame) -> str:
    wide = table.pivot(index="workload", columns="side", values="predicted")
    fewer = int((wide[["kvm-shadow", "xen-pvh-shadow"]].max(axis=1) < wide["direct"]).sum())
    return (
        f"An unmodified guest's shadow makes fewer entries than today's direct hooks in {fewer} "
        f"of {len(wide)} workloads, but dearer ones: hypercalls on one side, exits on the other"
    )
