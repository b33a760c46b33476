"""The `Trace`: a validated, immutable array of MMU operations.

Its words are in `pvmmu.guest.vocabulary`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pvmmu.errors import TraceError
from pvmmu.files import whole_file
from pvmmu.guest.provenance import Mm, Platform, Provenance, from_json, to_json
from pvmmu.guest.validate import validate
from pvmmu.guest.vocabulary import COLUMNS, OPS, Evidence, Flag, Op

__all__ = [
    "COLUMNS", "OPS", "Evidence", "Flag", "Mm", "Op", "Platform", "Provenance", "Trace",
    "TraceBuilder",
]  # fmt: skip

_META = b"pvmmu.trace"
_NAMED = {"op": Op, "evidence": Evidence, "place": Evidence}


class Trace:
    """MMU operations in program order, one row each.

    Parameters
    ----------
    columns : mapping of str to array_like
        One-dimensional, of one length; names and dtypes as in `COLUMNS`. A missing column takes its
        default.
    mms : sequence of Mm
        Address spaces; element 0 is init_mm.
    callers : sequence of str
        Names that the column ``caller`` indexes.
    provenance : Provenance
        Source, kernel, recorder, platform.

    Raises
    ------
    TraceError
        A row names an unknown address space, an entry outside its table, ..., or a lazy bracket is
        left open; the message names the row.

    Notes
    -----
    The arrays are read-only. Two traces are equal if rows, address spaces and provenance are.
    """

    def __init__(
        self,
        columns: Mapping[str, Any],
        mms: tuple[Mm, ...],
        callers: tuple[str, ...],
        provenance: Provenance,
    ) -> None:
        self.mms, self.callers, self.provenance = tuple(mms), tuple(callers), provenance
        self._columns = _typed(columns)
        validate(self._columns, len(self.mms), len(self.callers), provenance.platform)
        for a in self._columns.values():
            a.setflags(write=False)

    def __len__(self) -> int:
        return len(self._columns["op"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trace) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        p = self.provenance
        return f"<Trace {p.source}: {len(self):,} operations, Linux {p.kernel}, {p.platform.guest}>"

    @property
    def platform(self) -> Platform:
        """What the guest saw."""
        return self.provenance.platform

    @property
    def name(self) -> str:
        """Short name for tables, from the source: ``xen1-both.fork.16.txt.gz`` is ``fork.16``."""
        name = re.sub(r"\.txt(\.gz|\.xz)?$|\.parquet$", "", Path(self.provenance.source).name)
        return re.sub(r"^(xen\d+-both\.)?(cmd_)?", "", name)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex, 16 digits) of rows, callers, address spaces and provenance."""
        h = hashlib.sha256(to_json(self.provenance, self.mms, self.callers).encode())
        for name in COLUMNS:
            h.update(self._columns[name].tobytes())
        return h.hexdigest()[:16]

    @cached_property
    def derived(self) -> dict[Any, Any]:
        """What other modules computed of this trace, kept with it (a trace never changes)."""
        return {}

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a DataFrame, operations, callers and evidence as categories."""
        out = {}
        for name, a in self._columns.items():
            if name in _NAMED:
                kinds = _NAMED[name]
                order = sorted(kinds, key=int)
                codes = np.searchsorted([int(k) for k in order], a)
                out[name] = pd.Categorical.from_codes(codes, [k.name for k in order])
            elif name == "caller":
                out[name] = pd.Categorical.from_codes(a, list(self.callers))
            else:
                out[name] = a
        return pd.DataFrame(out)

    def select(self, rows: slice | np.ndarray) -> Self:
        """Return a trace of some `rows` (a slice, bool[row] or int64[n]); address spaces stay."""
        columns = {name: a[rows] for name, a in self._columns.items()}
        return type(self)(columns, self.mms, self.callers, self.provenance)

    def phases(self) -> Iterator[tuple[str, slice]]:
        """Yield ``(label, rows)`` for each stretch between the recorder's marks."""
        at = np.flatnonzero(self["op"] == Op.MARK)
        for start, stop in zip(at, [*at[1:], len(self)], strict=True):
            yield f"P{self['value'][start]}", slice(int(start), int(stop))

    # ------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the trace to `path` as Parquet, whole or not at all.

        Raises
        ------
        TraceError
            The target cannot be written.
        """
        path = Path(path)
        table = pa.Table.from_pandas(self.to_frame(), preserve_index=False)
        meta = {_META: to_json(self.provenance, self.mms, self.callers).encode()}
        table = table.replace_schema_metadata(meta)
        with whole_file(path, TraceError) as tmp:
            pq.write_table(table, tmp, compression="zstd", compression_level=19)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read the trace that `save` wrote to `path`.

        Raises
        ------
        TraceError
            The file is missing, no Parquet, or not a trace of this format.
        """
        path = Path(path)
        try:
            table = pq.read_table(path)
            frame = table.select([c for c in table.column_names if c in COLUMNS]).to_pandas()
        except (OSError, pa.ArrowException, UnicodeDecodeError) as e:
            reason = "no such file" if isinstance(e, FileNotFoundError) else "not a Parquet file"
            raise TraceError(f"{path}: {reason}") from None
        meta = (table.schema.metadata or {}).get(_META)
        if meta is None:
            raise TraceError(f"{path}: a Parquet file, but not a pvmmu trace (no provenance)")
        provenance, mms, callers = from_json(meta, str(path))
        missing = set(COLUMNS) - set(frame.columns)
        if missing:
            raise TraceError(f"{path}: column {min(missing)!r} is missing")
        columns = {name: frame[name].to_numpy() for name in COLUMNS if name not in _NAMED}
        for name, kinds in _NAMED.items():
            columns[name] = _codes(frame[name], {k.name: int(k) for k in kinds}, name, path)
        number = {c: i for i, c in enumerate(callers)}
        columns["caller"] = _codes(frame["caller"], number, "caller", path)
        return cls(columns, mms, callers, provenance)


class TraceBuilder:
    """Collects rows, then makes a `Trace`.

    Examples
    --------
    >>> b = TraceBuilder()
    >>> mm = b.mm("a process")
    >>> b.add(Op.SET_PTE, mm=mm, table=7, index=3, va=0x3000, value=0x1067)
    >>> len(b.build(Provenance("an example")))
    1
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, int]] = []
        self._mms: list[Mm] = [Mm("init_mm", older=True)]

    def mm(self, label: str, **kw: Any) -> int:
        """Add an address space and return its index."""
        self._mms.append(Mm(label, **kw))
        return len(self._mms) - 1

    def add(self, op: Op, *, caller: str | None = None, **columns: int) -> None:
        """Append one row; columns not given take their default."""
        self._rows.append({"op": int(op), "caller": caller, **columns})  # type: ignore[dict-item]

    def build(self, provenance: Provenance) -> Trace:
        """Return the trace of the rows so far."""
        callers = tuple(sorted({str(r["caller"]) for r in self._rows if r["caller"] is not None}))
        code = {c: i for i, c in enumerate(callers)}
        columns = {
            name: [r.get(name, default) for r in self._rows]
            for name, (_, default, _) in COLUMNS.items()
        }
        columns["caller"] = [code.get(c, -1) for c in columns["caller"]]  # type: ignore[call-overload]
        return Trace(columns, tuple(self._mms), callers, provenance)


def _typed(columns: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Cast to the documented dtypes; a value that does not fit is named with its row."""
    unknown = set(columns) - set(COLUMNS)
    if unknown:
        raise TraceError(f"unknown column {min(unknown)!r}; a trace has {', '.join(COLUMNS)}")
    n = len(columns["op"]) if "op" in columns else 0
    out = {}
    for name, (dtype, default, _) in COLUMNS.items():
        column = (
            _cast(name, columns[name], dtype) if name in columns else np.full(n, default, dtype)
        )
        if column.shape != (n,):
            raise TraceError(f"column {name!r} has shape {column.shape}, the trace has {n} rows")
        out[name] = column
    return out


def _cast(name: str, values: Any, dtype: np.dtype) -> np.ndarray:
    """Return a copy of `values` as `dtype`, provided that every value fits."""
    given = values if isinstance(values, np.ndarray) else np.array(values, dtype=object)
    if given.dtype == dtype:
        return given.copy()
    lo, hi = np.iinfo(dtype).min, np.iinfo(dtype).max
    for row, v in enumerate(given.tolist()):
        if not isinstance(v, int):
            raise TraceError(f"row {row}: {name} = {v!r} is not a whole number")
        if not lo <= v <= hi:
            raise TraceError(f"row {row}: {name} = {v} does not fit {dtype}")
    return given.astype(dtype)


def _codes(column: pd.Series, code: dict[str, int], name: str, path: Path) -> np.ndarray:
    """Names back to numbers; -1 for a missing caller."""
    values = column.astype(object)
    unknown = set(values.dropna()) - set(code)
    if unknown:
        raise TraceError(f"{path}: unknown {name} {min(map(str, unknown))!r}")
    numbers: np.ndarray = values.map(code).fillna(-1).to_numpy(dtype=np.int64)
    return numbers
