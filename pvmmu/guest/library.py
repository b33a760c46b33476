"""What ships with the package: recorded traces, hooks, cost tables, ground truth."""

from __future__ import annotations

from pathlib import Path

from pvmmu.errors import TraceError, did_you_mean
from pvmmu.guest.readers.strace.reader import example_names, example_path, read_strace
from pvmmu.guest.readers.xen.recording import read_recording
from pvmmu.guest.trace import Trace
from pvmmu.paths import data_path

__all__ = ["data_path", "load_trace", "trace_names", "trace_path"]


def trace_names() -> list[str]:
    """Return the names of the traces that ship with the package."""
    return sorted(p.stem for p in data_path("traces").glob("*.parquet"))


def trace_path(name: str) -> Path:
    """Return the file of the trace called `name` that ships with the package.

    Raises
    ------
    TraceError
        There is none of that name; the message lists the nearest.
    """
    path = data_path("traces") / f"{name}.parquet"
    if not path.is_file():
        hint = did_you_mean(name, trace_names())
        raise TraceError(f"no trace named {name!r} ships with pvmmu{hint}")
    return path


def load_trace(name: str | Path) -> Trace:
    """Return a trace by name (see `trace_names`), from a Parquet file, or from a recording.

    Parameters
    ----------
    name : str or Path
        A name; or a file: ``.parquet``, ``.strace`` (`pvmmu.guest.readers.strace`; a shipped one
        if there is no such file) or ``.txt`` (`pvmmu.guest.readers.xen.recording`), the latter two
        plain or compressed (``.gz``, ``.xz``).

    Raises
    ------
    TraceError, RecordingError
        No such trace, or the file is none.
    """
    path, text = Path(name), str(name)
    plain = text.removesuffix(".gz").removesuffix(".xz")
    if text.endswith(".parquet"):
        return Trace.load(path)
    if plain.endswith(".strace"):
        known = not path.exists() and plain.removesuffix(".strace") in example_names()
        return read_strace(example_path(plain.removesuffix(".strace")) if known else path)
    if plain.endswith(".txt"):
        return read_recording(path)
    return Trace.load(trace_path(text))
