"""Text files that others wrote, perhaps compressed: how they are opened, and what can go wrong."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from pvmmu.errors import RecordingError

#: How files of a suffix are opened; others are plain.
OPENERS: Final[dict[str, Callable[..., IO[Any]]]] = {".gz": gzip.open, ".xz": lzma.open}


@contextlib.contextmanager
def reading(path: Path, done: Callable[[], str]) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one clear error.

    Parameters
    ----------
    path : Path
        The file.
    done : callable
        Returns how far reading has come, for errors (``"line 7"``).

    Raises
    ------
    RecordingError
        The file is missing, cut short, no data of its suffix, or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise RecordingError(f"{path}: no such file") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as e:
        reason = "is cut short" if isinstance(e, EOFError) else f"is not {path.suffix[1:]} data"
        raise RecordingError(f"{path}: {reason} (after {done()})") from None
    except OSError as e:
        raise RecordingError(f"{path}: cannot be read ({e.strerror or e})") from None


def text_lines(path: Path, encoding: str, longest: int) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of each line, or of each piece of a line that is too long.

    Parameters
    ----------
    path : Path
        Text, ``.gz`` or ``.xz``.
    encoding : str
        ``"ascii"`` or ``"utf-8"``.
    longest : int
        Most characters of a piece: memory stays bounded whatever the file holds.

    Raises
    ------
    RecordingError
        As for `reading`; or the file is no text, which names file and line.
    """
    number = 0
    with reading(path, lambda: f"line {number}"):
        try:
            with OPENERS.get(path.suffix, open)(path, "rt", encoding=encoding) as f:
                while line := f.readline(longest):
                    number += 1
                    yield number, line
        except UnicodeDecodeError:
            raise RecordingError(f"{path}:{number + 1}: not text") from None
