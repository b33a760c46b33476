"""The one visual language: a colour means what carried an operation, and nothing else.

The colours are those of Okabe and Ito, told apart by colour-blind readers; each has a hatch, so
that a figure makes its point in black and white, too.
"""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pvmmu.files import whole_file

#: Category of events -> colour.
CATEGORY_COLOURS: Final = {
    "hypercall": "#0072B2",
    "batched": "#56B4E9",
    "trap": "#E69F00",
    "emulation": "#D55E00",
    "flush": "#009E73",
    "store": "#BBBBBB",
    "walk": "#CC79A7",
    "work": "#777777",
}
CATEGORY_HATCHES: Final = {
    "hypercall": "", "batched": "....", "trap": "////", "emulation": "xxxx", "flush": "----",
    "store": "", "walk": "++++", "work": "\\\\\\\\",
}  # fmt: skip
#: Readable names of the categories.
CATEGORY_NAMES: Final = {
    "hypercall": "hypercalls",
    "batched": "requests that shared a call",
    "trap": "faults and traps",
    "emulation": "emulated writes and instructions",
    "flush": "TLB flushes",
    "store": "plain stores",
    "walk": "walk references",
    "work": "entries checked",
}
#: Width of a figure: 12 cm in print.
PRINT_WIDTH_IN: Final = 12 / 2.54
#: Greatest width of a figure, and least size of text in it: 6 points at 12 cm.
WIDE: Final = 6.0
SMALL: Final = 7.7
#: Dots per inch on screen.
SCREEN_DPI: Final = 125
_STYLE: Final[dict[Any, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "pvmmu",  # and the file the same at every run
    "pdf.fonttype": 42,
    "figure.dpi": SCREEN_DPI,
}
FORMATS: Final = ("png", "svg", "pdf")


def style() -> Any:
    """Return a context in which matplotlib draws in the package's style."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


class StyledFigure(Figure):
    """A figure with a canvas of its own that notebooks show as a picture, without pyplot."""

    def _repr_png_(self) -> tuple[bytes, dict[str, str]]:
        """Return the picture, and its title for readers who do not see it."""
        return png_bytes(self), {"alt": " ".join(self.get_suptitle().split())}


def wrapped(text: str, width_in: float, size: float = 9.0) -> str:
    """Return a text in lines that fit a width; a letter is about half as wide as high.

    Parameters
    ----------
    text : str
        Without line breaks.
    width_in : float
        In inches: that of a figure for a title, of which a twentieth is margin.
    size : float
        In points.
    """
    return textwrap.fill(text, max(8, int(0.95 * width_in * 72 / (0.565 * size))))


def new_figure(width_in: float = WIDE, height_in: float = 3.6) -> Figure:
    """Return an empty figure in the package's style.

    Parameters
    ----------
    width_in, height_in : float
        Size in inches, at `SCREEN_DPI` dots per inch on screen.
    """
    with style():
        figure = StyledFigure(figsize=(width_in, height_in))
        FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Return `figure` as PNG."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", pil_kwargs={"compress_level": 1})
    return buffer.getvalue()


def save_figure(
    figure: Figure, path: str | os.PathLike[str], formats: Iterable[str] = FORMATS
) -> list[Path]:
    """Write a figure in some formats, byte-identical whenever it is the same figure.

    Parameters
    ----------
    figure : Figure
        What to write.
    path : path-like
        Target without suffix.
    formats : iterable of str
        ``png`` (at 300 dots per inch), ``svg``, ``pdf``.

    Returns
    -------
    list of Path
        The files.

    Raises
    ------
    PvmmuError
        The target cannot be written.
    """
    stem, out = Path(path), []
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    for fmt in formats:
        target = stem.with_name(f"{stem.name}.{fmt}")
        page = io.BytesIO()  # matplotlib's PDF writer hides a full disk behind another error
        with style():
            figure.savefig(page, format=fmt, dpi=300, metadata=metadata[fmt])
        with whole_file(target) as tmp:
            tmp.write_bytes(page.getvalue())
        out.append(target)
    return out
