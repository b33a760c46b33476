"""Figures of a search: the lattice at a glance, hook sets as dots, contributions, regret.

Colour means what carried an operation, and nothing here is about that: flexibility is a shade of
grey, sign is filled or open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import StrMethodFormatter

from pvmmu.figures.style import SMALL, WIDE, new_figure, style, wrapped
from pvmmu.hooks import HookSet, catalogue
from pvmmu.search import DesignSpace

INK: Final = "#222222"
_PALE, _MID = "#DDDDDD", "#888888"
#: Regret that is drawn darkest and palest.
_SHADES: Final = (0.0, 1.0)
#: Interactions below this share of the strongest are not drawn.
_FAINT: Final = 0.003


def shade(regret: np.ndarray) -> np.ndarray:
    """Return a grey for each regret, float64[n]: dark where it is small, pale from 100 % on."""
    low, high = _SHADES
    share = (np.nan_to_num(regret, posinf=high) - low) / (high - low)
    greys: np.ndarray = 0.15 + 0.7 * np.clip(share, 0, 1)
    return greys


def lattice_figure(
    b: DesignSpace, front: pd.DataFrame, standing: pd.DataFrame | None = None
) -> Figure:
    """Draw every hook set that serves all modes: cycles against intrusiveness.

    Parameters
    ----------
    b : DesignSpace
        The board.
    front : DataFrame
        Of `pvmmu.search.front`.
    standing : DataFrame, optional
        Of `pvmmu.search.compare_interfaces`: interfaces to name, where they run in all modes.
    """
    figure = new_figure(WIDE, 4.2)
    with style():
        axes = figure.subplots()
        works = np.isfinite(b.performance_by_class)
        regret = b.regret_by_class.max(axis=0)[works]
        order = np.argsort(-regret)  # the flexible ones on top
        axes.scatter(
            b.least[works][order], b.performance_by_class[works][order], s=7, lw=0,
            c=shade(regret[order]), cmap="gray", vmin=0, vmax=1,
        )  # fmt: skip
        line = front.sort_values("intrusiveness")
        axes.plot(line["intrusiveness"], line["cycles"], "o", ms=5, mfc="none", mec=INK, mew=1.1)
        _name_interfaces(axes, standing)
        axes.set_xlabel(_intrusion_label(b))
        axes.set_ylabel(f"cycles per operation, mean of {_list(b.modes)}")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        _key_of_shades(axes)
        title = wrapped(lattice_finding(b, front), WIDE)
        figure.suptitle(title, fontsize=9, x=0.02, y=0.985, ha="left", va="top")
        figure.subplots_adjust(left=0.1, right=0.98, top=0.89, bottom=0.12)
    return figure


def lattice_finding(b: DesignSpace, front: pd.DataFrame) -> str:
    """Return the finding of `lattice_figure`, from the same board `b` and table `front`."""
    sets = int(np.isfinite(b.performance_by_class)[b.joint].sum())
    best, least = front.iloc[0], front.sort_values("intrusiveness").iloc[0]
    return (
        f"{sets:,} hook sets serve all modes, {len(front)} points are on the front: from "
        f"{least['n_hooks']} hooks at {least['cycles']:,.0f} cycles to {best['n_hooks']} at "
        f"{best['cycles']:,.0f}"
    )


def _intrusion_label(b: DesignSpace) -> str:
    parts = {name.replace("_", " "): weight for name, weight in b.intrusiveness.weights}
    used = [f"{n:g} x {k}" if n != 1 else k for k, n in parts.items() if n]
    return f"intrusiveness: {' + '.join(used)} (Linux {b.intrusiveness.kernel})"


def _list(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} modes"


def _name_interfaces(axes: Axes, standing: pd.DataFrame | None) -> None:
    if standing is None:
        return
    runs = standing[np.isfinite(standing["worst"])]
    for _, same in runs.groupby(["intrusiveness", "cycles"]):
        x, y = same["intrusiveness"].iloc[0], same["cycles"].iloc[0]
        axes.plot([x], [y], "D", ms=5, color=INK)
        axes.annotate(
            "\n".join(same.index), (x, y), xytext=(-1, 6), textcoords="offset points",
            fontsize=SMALL, ha="right",
        )  # fmt: skip


def _key_of_shades(axes: Axes) -> None:
    for k, (regret, text) in enumerate(((0.0, "best in every mode"), (0.5, "50 % over"),
                                        (1.0, "100 % and more"))):  # fmt: skip
        y = 0.95 - 0.05 * k
        axes.scatter([0.72], [y], s=18, c=shade(np.array([regret])), cmap="gray", vmin=0, vmax=1,
                     transform=axes.transAxes, lw=0)  # fmt: skip
        axes.text(0.735, y, text, transform=axes.transAxes, fontsize=SMALL, va="center")


def dot_matrix_figure(sets: Mapping[str, HookSet], values: Mapping[str, str], title: str) -> Figure:
    """Draw hook sets as columns of dots: a filled dot is a hook in use.

    Parameters
    ----------
    sets : mapping of str to HookSet
        By name; the columns, in order.
    values : mapping of str to str
        What to write above each column.
    title : str
        The finding.
    """
    used = HookSet(0)
    for s in sets.values():
        used |= s
    names = [n for n in catalogue() if n in used]
    common = [n for n in names if all(n in s for s in sets.values())]
    rows = [n for n in names if n not in common]
    width = min(WIDE, 2.2 + 0.42 * len(sets))
    tight = (width - 1.8) / len(sets) < 0.4
    figure = new_figure(width, 1.6 + 0.3 * tight + 0.17 * max(1, len(rows)))
    height = figure.get_figheight()
    with style():
        axes = figure.subplots()
        _draw_dots(axes, list(sets.values()), rows)
        short = max(map(len, sets)) <= 4
        turn: dict[str, Any] = {} if short else {"rotation": 40, "ha": "right"}
        axes.set_xticks(range(len(sets)), list(sets), fontsize=SMALL, **turn)
        for i, name in enumerate(sets):
            axes.text(
                i, -0.9, values.get(name, ""), ha="center", fontsize=SMALL,
                rotation=90 if tight else 0, va="bottom",
            )  # fmt: skip
        figure.suptitle(wrapped(title, width, 8.5), fontsize=8.5, x=0.02, y=1 - 0.06 / height,
                        ha="left", va="top")  # fmt: skip
        figure.text(
            0.02, 0.06 / height, _common_text(common, figure.get_figwidth()), fontsize=SMALL
        )
        figure.subplots_adjust(
            left=1.5 / figure.get_figwidth(), right=0.98, top=1 - (0.62 + 0.3 * tight) / height,
            bottom=(0.65 if short else 1.15) / height,
        )  # fmt: skip
    return figure


def _common_text(common: Sequence[str], width: float) -> str:
    return wrapped(f"in all of them: {', '.join(common) or 'nothing'}", width, SMALL)


def _draw_dots(axes: Axes, sets: Sequence[HookSet], rows: Sequence[str]) -> None:
    """Draw a dot for each set and hook, a line joining those in use."""
    for i, s in enumerate(sets):
        inside = [k for k, name in enumerate(rows) if name in s]
        axes.plot([i] * len(rows), range(len(rows)), "o", ms=4.5, color=_PALE, mew=0)
        if inside:
            axes.plot([i, i], [inside[0], inside[-1]], color=INK, lw=0.8)
            axes.plot([i] * len(inside), inside, "o", ms=4.5, color=INK, mew=0)
    axes.set_yticks(range(len(rows)), rows, fontsize=SMALL)
    axes.set_ylim(len(rows) - 0.5, -0.6)
    axes.set_xlim(-0.6, len(sets) - 0.4)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def contribution_figure(tables: Sequence[pd.DataFrame], least: float = 0.002) -> Figure:
    """Draw what each hook is worth: bars with the range over the draws of prices.

    Parameters
    ----------
    tables : sequence of DataFrame
        Of `pvmmu.search.contributions`, one for each mode.
    least : float
        Hooks below this share of the effect in every mode are left out, and counted in a note.
    """
    worth = sum(t["value"] / t["value"].abs().sum() for t in tables)
    order = worth.fillna(0).sort_values(ascending=False)
    shares = pd.concat([t["share"].abs() for t in tables], axis=1).max(axis=1).fillna(0)
    rows = [n for n in order.index if shares[n] >= least]
    figure = new_figure(2.1 + 2.7 * len(tables), 1.15 + 0.2 * max(3, len(rows)))
    height = figure.get_figheight()
    with style():
        grid = figure.subplots(1, len(tables), sharey=True, squeeze=False)[0]
        for axes, table in zip(grid, tables, strict=True):
            _bars_of(axes, table.loc[rows])
            axes.set_title(table.attrs["mode"], fontsize=8)
            axes.set_xlabel("cycles per operation spared")
        grid[0].set_yticks(range(len(rows)), rows, fontsize=SMALL)
        grid[0].set_ylim(len(rows) - 0.4, -0.6)
        title = wrapped(contribution_finding(tables), figure.get_figwidth())
        figure.suptitle(title, fontsize=9, x=0.02, y=1 - 0.08 / height,
                        ha="left", va="top")  # fmt: skip
        idle = len(order) - len(rows)
        note = "bar: average over all orders; line: 5 to 95 % of the draws of prices; | alone first"
        note += f", + last of all; not shown: {idle} hooks worth less"
        figure.text(
            0.02, 0.05 / height, wrapped(note, figure.get_figwidth(), SMALL), fontsize=SMALL
        )
        figure.subplots_adjust(
            left=1.5 / figure.get_figwidth(), right=0.97, top=1 - 0.55 / height,
            bottom=0.7 / height, wspace=0.08,
        )  # fmt: skip
    return figure


def _bars_of(axes: Axes, table: pd.DataFrame) -> None:
    y = np.arange(len(table))
    axes.barh(y, table["value"], 0.6, color="#BBBBBB")
    if "p5" in table:
        axes.hlines(y, table["p5"], table["p95"], color=INK, lw=1.2)
    axes.plot(table["first"], y, "|", color=INK, ms=7)
    axes.plot(table["last"], y, "+", color=INK, ms=5)
    axes.axvline(0, color=INK, lw=0.8)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def contribution_finding(tables: Sequence[pd.DataFrame]) -> str:
    """Return the finding of `contribution_figure`, from the same `tables`."""
    parts = []
    for t in tables:
        if len(t) and t.attrs["all"] > t.attrs["base"]:
            more = t.attrs["all"] / t.attrs["base"] - 1
            parts.append(f"All together cost {more:.0%} more than none ({t.attrs['mode']})")
        elif len(t):
            share = f"{t['share'].iloc[0]:.0%} of the effect"
            parts.append(f"Worth most: {t.index[0]} ({share}, {t.attrs['mode']})")
    return "; ".join(parts)


def interaction_figure(pairs: pd.DataFrame, mode: str, hooks: int = 12) -> Figure:
    """Draw the interactions of hooks as squares: filled where two need each other.

    Parameters
    ----------
    pairs : DataFrame
        Of `pvmmu.search.interactions`.
    mode : str
        For the title.
    hooks : int
        How many hooks to show, those with the strongest interactions.
    """
    strength = pairs.abs().max().sort_values(ascending=False)
    names = list(strength.index[strength > _FAINT * strength.iloc[0]][:hooks]) or list(
        pairs.index[:2]
    )
    part = pairs.loc[names, names]
    side = 0.27 * len(names)
    figure = new_figure(2.1 + side, 2.3 + side)
    with style():
        axes = figure.subplots()
        most = float(np.nanmax(np.abs(part.to_numpy()))) or 1.0
        for i in range(len(names)):
            for j in range(i):
                value = part.iloc[i, j]
                if np.isfinite(value) and abs(value) > _FAINT * most:
                    _square(axes, j, i, value / most)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=SMALL)
        axes.set_yticks(range(len(names)), names, fontsize=SMALL)
        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.grid(visible=False)
        figure.suptitle(wrapped(_interaction_finding(part, mode), figure.get_figwidth(), 8.5),
                        fontsize=8.5, x=0.02, ha="left", va="top", y=0.985)  # fmt: skip
        width, height = figure.get_size_inches()
        figure.text(0.02, 0.01, "filled: worth more together; open: one does the other's work",
                    fontsize=SMALL)  # fmt: skip
        figure.subplots_adjust(left=1.6 / width, right=0.97, top=1 - 0.75 / height,
                               bottom=1.4 / height)  # fmt: skip
    return figure


def _square(axes: Axes, x: float, y: float, value: float) -> None:
    side = 0.9 * np.sqrt(abs(value))
    axes.add_patch(
        Rectangle((x - side / 2, y - side / 2), side, side, lw=0.9, ec=INK,
                  fc=INK if value > 0 else "white")
    )  # fmt: skip


def _interaction_finding(pairs: pd.DataFrame, mode: str) -> str:
    """Return the finding of `interaction_figure`."""
    flat = pairs.where(np.triu(np.ones(pairs.shape, bool), 1)).stack()  # noqa: PD013
    if flat.empty or not flat.abs().max() > 0:
        return f"{mode}: no two hooks depend on each other"
    low, high = flat.idxmin(), flat.idxmax()
    text = f"{mode}: {low[0]} and {low[1]} do each other's work ({flat.min():,.0f} cycles)"
    if flat.max() > 0.01 * abs(flat.min()):
        text += f"; {high[0]} and {high[1]} need each other (+{flat.max():,.0f})"
    return text
