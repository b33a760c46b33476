"""Text files that others wrote, perhaps compressed: how they are opened, and what can go wrong."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from pvmmu.errors import RecordingError

#: Endings of compressed files, and how their content begins.
COMPRESSED: Final[dict[str, bytes]] = {
    ".gz": b"\x1f\x8b",
    ".xz": b"\xfd7zXZ\x00",
    ".bz2": b"BZh",
    ".zst": b"\x28\xb5\x2f\xfd",
}
_STANDARD: Final[dict[str, Callable[..., IO[Any]]]] = {
    ".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open,
}  # fmt: skip


def compression(head: bytes) -> str:
    """Return the ending (``".gz"``) that the first bytes of a file stand for; empty if none."""
    return next((name for name, magic in COMPRESSED.items() if head.startswith(magic)), "")


def without_compression(name: str) -> str:
    """Return the name of a file without the ending that tells how it is compressed."""
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return name


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file to read what was compressed, if it is, and close it.

    Parameters
    ----------
    path : Path
        Plain, or compressed as gzip, xz, bzip2 or zstd: its content tells, not its name.

    Yields
    ------
    content, raw : binary file
        What to read; the file itself, whose position tells how far reading has come.
    """
    with path.open("rb") as raw:
        kind = compression(raw.peek(8))
        if not kind:
            yield raw, raw
            return
        if kind == ".zst":
            import pyarrow as pa

            stream: Any = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
            with io.BufferedReader(stream) as f:
                yield f, raw
            return
        with _STANDARD[kind](raw, "rb") as f:
            yield f, raw


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
        The file is missing, cut short, no data of its kind, or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise RecordingError(f"{path}: no such file") from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as e:
        reason = "is cut short" if isinstance(e, EOFError) else "is damaged where it is compressed"
        raise RecordingError(f"{path}: {reason} (after {done()})") from None
    except OSError as e:
        reason = e.strerror or str(e).split("\n")[0]
        if "Truncated compressed stream" in reason:
            raise RecordingError(f"{path}: is cut short (after {done()})") from None
        raise RecordingError(f"{path}: cannot be read ({reason})") from None


def text_lines(
    path: Path, encoding: str, longest: int, errors: str = "strict"
) -> Iterator[tuple[int, str]]:
    """Yield number, from 1, and text of each line, or of each piece of a line that is too long.

    Parameters
    ----------
    path : Path
        Text, plain or compressed (see `opened`).
    encoding : str
        ``"ascii"`` or ``"utf-8"``.
    longest : int
        Most characters of a piece: memory stays bounded whatever the file holds.
    errors : str
        What bytes of another encoding become, as for `str`.

    Raises
    ------
    RecordingError
        As for `reading`; or the file is no text, which names file and line.
    """
    number = 0
    with reading(path, lambda: f"line {number}"):
        try:
            with opened(path) as (content, _):
                f = io.TextIOWrapper(content, encoding, errors, newline="\n")
                while line := f.readline(longest):
                    number += 1
                    yield number, line
        except UnicodeDecodeError:
            raise RecordingError(f"{path}:{number + 1}: not text") from None
