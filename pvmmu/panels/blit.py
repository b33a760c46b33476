"""A picture of which only some parts move: redrawn in a few milliseconds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, cast

from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pvmmu.figures.style import style
from pvmmu.panels.kit import Picture


class MovingPicture(Picture):
    """A picture whose background is drawn once, and kept while other parts of it move.

    Parameters
    ----------
    figure : Figure
        Its size fixes that of the box.
    moving : sequence of Artist
        What moves, drawn over everything else in this order; their axes may not change.
    alt : str
        For readers who do not see it.
    """

    def __init__(self, figure: Figure, moving: Sequence[Artist], alt: str) -> None:
        super().__init__(figure, alt)
        self._moving, self._background = list(moving), cast(Any, None)

    @property
    def _canvas(self) -> FigureCanvasAgg:
        return cast(FigureCanvasAgg, self.figure.canvas)

    def show(self) -> None:
        """Draw everything as it is now."""
        for artist in self._moving:
            artist.set_animated(True)
        with style():
            self._canvas.draw()
        for artist in self._moving:  # a file of the figure shows them
            artist.set_animated(False)
        self._background = self._canvas.copy_from_bbox(self.figure.bbox)
        self.move()

    def move(self) -> None:
        """Draw the parts that move; the rest is as `show` has left it."""
        if self._background is None:
            self.show()
            return
        self._canvas.restore_region(self._background)
        with style():
            for artist in self._moving:
                self.figure.draw_artist(artist)
        buffer = io.BytesIO()
        size = self._canvas.get_width_height()
        picture = Image.frombuffer("RGBA", size, self._canvas.buffer_rgba())
        picture.convert("RGB").save(buffer, format="png", compress_level=1)
        self.put(buffer.getvalue())
