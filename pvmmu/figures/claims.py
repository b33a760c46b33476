"""Claims, predictions and omissions as pictures."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from pvmmu.evidence.claims import CLAIMS, ClaimResult
from pvmmu.evidence.unmerged import WHAT_IFS, omission_finding
from pvmmu.figures.style import SMALL, WIDE, new_figure, style, wrapped


def claims_finding(verdicts: pd.DataFrame) -> str:
    """Return how many claims hold in the table `verdicts`, in a sentence."""
    n = verdicts["verdict"].value_counts()
    rest = {"depend on prices that nobody published": n.get("depends on prices", 0)}
    rest["on how they are read"] = n.get("depends on the reading", 0)
    left = "".join(f", {number} {words}" for words, number in rest.items() if number)
    return f"{n.get('holds', 0)} of {len(verdicts)} claims hold, {n.get('fails', 0)} fail{left}"


def claims_figure(verdicts: Mapping[str, ClaimResult], title: str) -> Figure:
    """Draw the ratios that verdicts rest on: a dot for each stream, with the range of its costs.

    Parameters
    ----------
    verdicts : mapping of str to ClaimResult
        By claim; those that rest on no ratio are left out.
    title : str
        The finding.
    """
    shown = {k: v for k, v in verdicts.items() if {"ratio", "low"} <= set(v.table.columns)}
    figure = new_figure(WIDE, 1.3 + 0.42 * len(shown))
    height = figure.get_figheight()
    with style():
        axes = figure.subplots()
        for i, verdict in enumerate(shown.values()):
            rows = verdict.table[verdict.table["ratio"].notna()]
            places = i + np.linspace(-0.28, 0.28, len(rows)) if len(rows) > 1 else [i]
            for y, (_, row) in zip(places, rows.iterrows(), strict=True):
                axes.plot([row["low"], row["high"]], [y, y], color="#777777", linewidth=0.9)
                filled = "black" if row["word"] == "stable" else "white"
                axes.plot([row["ratio"]], [y], "o", ms=3.2, color="black", mfc=filled, mew=0.7)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(len(shown) - 0.5, -0.5)
        labels = [wrapped(CLAIMS[name].text, 1.95, SMALL) for name in shown]
        axes.set_yticks(range(len(shown)), labels, fontsize=SMALL)
        axes.grid(axis="y", visible=False)
        for i, verdict in enumerate(shown.values()):
            axes.annotate(
                wrapped(f"{verdict.said} (if {verdict.rule})", 1.0, SMALL), (1.01, i),
                xycoords=("axes fraction", "data"), va="center", fontsize=SMALL,
            )  # fmt: skip
        axes.set_xlabel(
            "cycles with, of those without (logarithmic);\na dot a stream, filled where stable; "
            "line: 90 % of draws"
        )
        text = wrapped(title, WIDE)
        figure.suptitle(text, fontsize=9, x=0.02, y=1 - 0.07 / height, ha="left", va="top")
        figure.subplots_adjust(
            left=0.34, right=0.83, top=1 - 0.5 / height, bottom=0.65 / height
        )  # fmt: skip
    return figure


def predictions_figure(table: pd.DataFrame) -> Figure:
    """Draw predicted ratios with their ranges against published ones.

    Parameters
    ----------
    table : DataFrame
        Of `pvmmu.evidence.history.compared`.
    """
    figure = new_figure(WIDE, 1.15 + 0.33 * len(table))
    height = figure.get_figheight()
    with style():
        axes = figure.subplots()
        for i, row in enumerate(table.itertuples()):
            axes.plot([row.low, row.high], [i, i], color="#777777", linewidth=1.2)
            axes.plot([row.predicted], [i], "o", color="black", ms=4)
            axes.plot([row.published], [i], "x", color="black", ms=6, mew=1.4)
            axes.annotate(
                f"× {row.predicted / row.published:.2f}", (1.01, i),
                xycoords=("axes fraction", "data"), va="center", fontsize=SMALL,
            )  # fmt: skip
        twice = table.duplicated(["group", "workload"], keep=False)
        labels = [
            (f"{r.workload.split()[0]}, {r.config}" if two else _where(r.workload, r.group))
            + ("" if r.verified == "yes" else " *")
            for r, two in zip(table.itertuples(), twice, strict=True)
        ]
        axes.set_yticks(range(len(table)), labels, fontsize=SMALL)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.axvline(1, color="black", linewidth=0.8)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(
            "ratio, logarithmic (dot, line: predicted; cross: published;\n"
            "×: predicted, of published; *: not read in the publication)"
        )
        title = _predictions_finding(table)
        figure.suptitle(
            wrapped(title, WIDE), fontsize=9, x=0.02, y=1 - 0.07 / height, ha="left", va="top"
        )
        figure.subplots_adjust(left=0.41, right=0.91, top=1 - 0.45 / height, bottom=0.62 / height)
    return figure


def _where(workload: str, group: str) -> str:
    return wrapped(f"{workload}, {group.split(' lmbench')[0]}", 2.4, SMALL)


def _predictions_finding(table: pd.DataFrame) -> str:
    """Return how many published ratios lie where they were predicted, in a sentence."""
    sure, wide = table[table["verified"] == "yes"], (table["high"] / table["low"]).median()
    return (
        f"{int(table['agrees'].sum())} of {len(table)} published ratios lie where predicted "
        f"(in ranges whose ends are {wide:.1f}-fold apart, median); of the {len(sure)} that were "
        f"read in the publication, {int(sure['agrees'].sum())}"
    )


def omissions_figure(table: pd.DataFrame) -> Figure:
    """Draw what each omission costs on each stream: darker is more.

    Parameters
    ----------
    table : DataFrame
        Of `pvmmu.evidence.unmerged.what_if`.
    """
    names = [name for name in WHAT_IFS if name in set(table["change"])]
    streams = list(dict.fromkeys(table["stream"]))
    saved = table.pivot(index="change", columns="stream", values="saved").loc[names, streams]
    figure = new_figure(WIDE, 1.2 + 0.3 * len(names))
    height = figure.get_figheight()
    with style():
        axes = figure.subplots()
        limit = max(float(saved.to_numpy().max()), 0.01)
        axes.imshow(saved.to_numpy(), cmap="Greys", vmin=0, vmax=1.3 * limit, aspect="auto")
        for i, name in enumerate(names):
            for j, stream in enumerate(streams):
                value = saved.loc[name, stream]
                text = "–" if abs(value) < 0.0005 else f"{value:.1%}"
                dark = value > 0.75 * limit
                axes.text(
                    j, i, text, ha="center", va="center", fontsize=SMALL,
                    color="white" if dark else "black",
                )  # fmt: skip
        axes.set_xticks(range(len(streams)), streams)
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.set_xlabel("share of the cycles of paging (not of run time) that it would save")
        title = wrapped(omission_finding(table), WIDE)
        figure.suptitle(title, fontsize=9, x=0.02, y=1 - 0.07 / height, ha="left", va="top")
        figure.subplots_adjust(left=0.28, right=0.98, top=1 - 0.65 / height, bottom=0.5 / height)
    return figure
