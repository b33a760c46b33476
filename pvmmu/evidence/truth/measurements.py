"""Tables of counts per iteration: which kind a file is, and who compares it."""

from __future__ import annotations

import csv
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pandas as pd

from pvmmu.errors import MeasurementError
from pvmmu.evidence.truth import kernel_counts, shadow_summary, xen_summary

#: Columns that a kind of table has, and what compares it.
_KINDS: Final[dict[frozenset[str], Callable[[Path, pd.DataFrame], pd.DataFrame]]] = {
    xen_summary.COLUMNS: xen_summary.compare,
    kernel_counts.COLUMNS: kernel_counts.compare,
    shadow_summary.COLUMNS: shadow_summary.compare,
}


def is_measurement(path: Path) -> bool:
    """Return whether a file's name says that it is a table."""
    return path.name.endswith((".csv", ".csv.gz", ".csv.xz"))


def compare_measurements(path: Path) -> pd.DataFrame:
    """Compare every row of a table with the model.

    Parameters
    ----------
    path : Path
        A table of one of the known schemas.

    Returns
    -------
    DataFrame
        One row per measured figure: ``counter``, ``measured``, ``predicted``, ``difference``,
        ``tolerance``, ``verdict`` (``ok`` or ``DIFFERS``), ``note``.

    Raises
    ------
    MeasurementError
        The file cannot be read, has another schema, or a row that the model does not know; the
        message names file, line and field.
    """
    return compare_table(path, read_table(path))


def read_table(path: Path) -> pd.DataFrame:
    """Return a table as it is: all fields text.

    Raises
    ------
    MeasurementError
        The file cannot be read, or a row has more fields than the head.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, EOFError, csv.Error, lzma.LZMAError) as e:
        raise MeasurementError(f"{path}: {str(e).strip()}") from None
    # a row with more fields than the head: pandas takes the first ones for names of rows
    if not isinstance(table.index, pd.RangeIndex):
        raise MeasurementError(
            f"{path}:2: more than the {table.shape[1]} fields that the head names"
        )
    return table


def compare_table(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """Compare a table that has been read; see `compare_measurements`."""
    for columns, compare in _KINDS.items():
        if columns <= set(table.columns):
            return compare(path, table)
    wanted = " or ".join(", ".join(sorted(columns)) for columns in _KINDS)
    raise MeasurementError(f"{path}: no known table; one has the columns {wanted}")
