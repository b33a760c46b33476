"""Cells as Parquet files: a row for each feasible class, the partition in the file's metadata."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pvmmu.errors import SearchError
from pvmmu.files import whole_file
from pvmmu.hooks import HookSet
from pvmmu.modes.events import Event, column
from pvmmu.modes.partition import Branch, HookGroup, Partition, Setting, Space
from pvmmu.search.cells import Cell

_META: Final = b"pvmmu.cell"
FORMAT: Final = 2

#: What files of another make lead to.
_FOREIGN: Final = (
    KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError,
)  # fmt: skip


def cell_name(trace_fingerprint: str, mode: str) -> str:
    """Return the name of a cell's file."""
    key = hashlib.sha256(f"{trace_fingerprint} {mode}".encode()).hexdigest()[:16]
    return f"{key}.cell.parquet"


def write_cell(cell: Cell, folder: Path, provenance: dict[str, Any]) -> Path:
    """Write a cell, whole or not at all.

    Raises
    ------
    OSError
        The folder cannot be written.
    """
    masks, sizes = cell.partition.masks_and_sizes()
    columns: dict[str, Any] = {"mask": masks, "hook_sets": sizes}
    columns["status"] = pa.array([cell.failed.get(i, "ok") for i in range(len(cell))]).cast(
        pa.dictionary(pa.int32(), pa.string())
    )
    for i, e in enumerate(cell.events.tolist()):
        columns[column(Event(e))] = cell.low[:, i]
        if not cell.exact:
            columns[f"{column(Event(e))}_high"] = cell.high[:, i]
    meta = {
        "format": FORMAT, "trace": cell.trace, "trace_fingerprint": cell.trace_fingerprint,
        "mode": cell.mode, "kernel": cell.kernel, "operations": cell.operations,
        "exact": cell.exact, "partition": _to_plain(cell.partition), "provenance": provenance,
    }  # fmt: skip
    table = pa.table(columns).replace_schema_metadata({_META: json.dumps(meta).encode()})
    path = folder / cell_name(cell.trace_fingerprint, cell.mode)
    with whole_file(path, SearchError) as tmp:
        pq.write_table(table, tmp, compression="zstd")
    return path


def read_cell(path: Path) -> tuple[Cell, dict[str, Any]]:
    """Read a cell and its provenance.

    Raises
    ------
    SearchError
        No such file, or it is none of ours.
    """
    try:
        table = pq.read_table(path)
        meta = json.loads((table.schema.metadata or {})[_META])
        form = meta["format"]
        cell = _cell(table, meta) if form == FORMAT else None
    except (OSError, pa.ArrowException, *_FOREIGN) as e:
        raise SearchError(f"{path}: not a cell of a search ({_in_a_line(e)})") from None
    if cell is None:
        raise SearchError(f"{path}: format {form}; this version reads {FORMAT}")
    return cell, dict(meta.get("provenance") or {})


def _in_a_line(e: Exception) -> str:
    return f"{type(e).__name__}: {e}".splitlines()[0]


def _cell(table: pa.Table, meta: dict[str, Any]) -> Cell:
    """Make a cell of what a file holds."""
    events = [e for e in Event if column(e) in table.column_names]

    def matrix(suffix: str) -> np.ndarray:
        columns = [table[column(e) + suffix].to_numpy() for e in events]
        return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.int32)

    high = matrix("" if meta["exact"] else "_high")
    status = table["status"].to_pylist()
    partition = _from_plain(meta["partition"])
    if partition.n != len(table):
        raise ValueError(f"{len(table)} rows for {partition.n} classes")
    trace, fingerprint, mode, kernel = (
        str(meta[name]) for name in ("trace", "trace_fingerprint", "mode", "kernel")
    )
    return Cell(
        trace, fingerprint, mode, kernel, int(meta["operations"]), partition,
        np.array(events, np.int64), high if meta["exact"] else matrix(""), high,
        {i: str(s) for i, s in enumerate(status) if s != "ok"},
    )  # fmt: skip


def _to_plain(partition: Partition) -> dict[str, Any]:
    """Return a partition as JSON takes it."""
    return {
        "free": partition.space.free.mask, "always": partition.space.always.mask,
        "read": partition.read.mask, "pinning": _group_to_plain(partition.pinning),
        "branches": [
            {"setting": _setting_to_plain(p.setting),
             "groups": [_group_to_plain(s) for s in p.groups]}
            for p in partition.branches
        ],
    }  # fmt: skip


def _setting_to_plain(c: Setting) -> list[Any]:
    return [c.hooks.mask, c.size, c.infeasible]


def _group_to_plain(s: HookGroup) -> dict[str, Any]:
    settings = [_setting_to_plain(c) for c in s.settings]
    return {"free": s.free, "settings": settings, "setting_of": s.setting_of.tolist()}


def _from_plain(d: dict[str, Any]) -> Partition:
    branches = tuple(
        Branch(_setting(p["setting"]), tuple(map(_group, p["groups"]))) for p in d["branches"]
    )
    space = Space(HookSet(d["free"]), HookSet(d["always"]))
    pinning = _group(d["pinning"])
    if len(branches) != len(pinning.settings):
        raise ValueError(f"{len(branches)} branches for {len(pinning.settings)} settings")
    return Partition(space, HookSet(d["read"]), pinning, branches)


def _setting(c: list[Any]) -> Setting:
    mask, size, infeasible = c
    return Setting(HookSet(mask), int(size), str(infeasible))


def _group(d: dict[str, Any]) -> HookGroup:
    free, settings = HookSet.of(*d["free"]), tuple(map(_setting, d["settings"]))
    setting_of = np.array(d["setting_of"], np.int16)
    if setting_of.shape != (2 ** len(d["free"]),) or len(free) != len(d["free"]):
        raise ValueError(f"a group of {len(d['free'])} hooks has {setting_of.size} subsets")
    if not 0 <= setting_of.min() <= setting_of.max() < len(settings):
        raise ValueError(f"a group has {len(settings)} settings, not {setting_of.max() + 1}")
    return HookGroup(tuple(d["free"]), settings, setting_of)
