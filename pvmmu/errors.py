"""Errors that a user can act on: one line that names the file, row, field or value at fault."""

from __future__ import annotations

from collections.abc import Iterable


class PvmmuError(Exception):
    """Base of every error that pvmmu raises for wrong input."""


class TraceError(PvmmuError, ValueError):
    """A trace breaks a rule of the vocabulary; the message names the row."""


class RecordingError(PvmmuError, ValueError):
    """A recording cannot be read; the message names the file and line."""


class HookError(PvmmuError, ValueError):
    """A hook name or hook catalogue is wrong; the message suggests the nearest name."""


class CostError(PvmmuError, ValueError):
    """A cost table is wrong; the message names the file and the path of the field."""


class ModeError(PvmmuError, ValueError):
    """A paging mode, backend or policy does not exist or does not fit the trace."""


class SearchError(PvmmuError, ValueError):
    """A search or a stored sweep cannot be done, read or written; the message says why."""


class MeasurementError(PvmmuError, ValueError):
    """A table of measurements cannot be used; the message names file, line and field."""


class ProfileError(PvmmuError, ValueError):
    """A kernel profile or program is wrong; the message names the file and the field."""


class GuestError(PvmmuError, ValueError):
    """A modelled program asks for what cannot be done; the message names call and address."""


class Unsupported(PvmmuError):
    """A replay would need what the trace does not know; the message names the row."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a hint for an error's message: that of `names` nearest to `name`; empty if none is."""
    import difflib

    near = difflib.get_close_matches(name, list(names), 1, 0.4)
    return f"; did you mean {near[0]!r}?" if near else ""
