"""Folders of measured designs: one real guest kernel, its hooks switched at run time.

::

    designs.csv        hooks,design,changes,outcome,evidence            what became of each
    counts.csv.gz      hooks,workload,run,iterations,event,count        what Xen counted
    instructions.csv   environment,hooks,workload,run,iterations,min,median,mean
    raw/RUN.WORKLOAD.txt.gz                                             recordings under the base
    streams/WORKLOAD.parquet                                            the same, as traces

Any of them may lack rows or be absent. ``hooks`` is the kernel's mask (`BITS`); ``design`` says the
same in our names; ``changes`` names brackets that Linux 6.1 does not have.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pandas as pd

from pvmmu.errors import HookError, MeasurementError
from pvmmu.evidence.truth.measurements import read_table
from pvmmu.guest.rewrite import bracket_fault_around, bracket_vmap
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.paths import data_path

#: The mask of Linux 6.1 as it is.
BASE: Final = 0x7C1FF
#: Hooks that each bit of a mask stands for (set_pte_at: none of its own since 5.10).
BITS: Final[Mapping[int, tuple[str, ...]]] = {
    0x1: ("set_pte",),
    0x2: ("lazy_mmu",),
    0x4: ("ptep_modify_prot",),
    0x8: ("flush_tlb_user",),
    0x10: ("flush_tlb_one_user",),
    0x20: ("read_cr2",),
    0x40: ("context_switch",),
    0x80: ("exit_mmap",),
    0x100: ("dup_mmap", "activate_mm"),
    0x200: ("ptep_set_wrprotect",),
    0x400: ("ptep_get_and_clear",),
    0x800: ("ptep_test_and_clear_young",),
    0x4000: ("set_pmd",),
    0x8000: ("set_pud",),
    0x10000: ("set_p4d",),
    0x20000: ("alloc_pte",),
    0x40000: ("release_pte",),
}
#: Bits that are no hook but brackets, and the words of the column ``changes``.
BRACKETS: Final[Mapping[int, str]] = {
    0x1000: "fault-around in a bracket",
    0x2000: "vmap in a bracket",
}
_REWRITES: Final = dict(
    zip(BRACKETS.values(), (bracket_fault_around, bracket_vmap), strict=True)
)  # fmt: skip
#: What can become of a design, best first.
OUTCOMES: Final = ("runs", "warns", "corrupts", "crashes", "dies")

DESIGNS, COUNTS, INSTRUCTIONS = "designs.csv", "counts.csv", "instructions.csv"
RAW, STREAMS = "raw", "streams"
_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    DESIGNS: ("hooks", "design", "changes", "outcome", "evidence"),
    COUNTS: ("hooks", "workload", "run", "iterations", "event", "count"),
    INSTRUCTIONS: ("environment", "hooks", "workload", "run", "iterations", "min", "median",
                   "mean"),
}  # fmt: skip
_WHOLE: Final = ("run", "iterations", "count")
_NUMBERS: Final = ("min", "median", "mean")
_PACKING: Final = ("", ".gz", ".xz")


@dataclass(frozen=True)
class MeasuredDesign:
    """A design of the measured space.

    Parameters
    ----------
    mask : int
        The kernel's; see `BITS` and `BRACKETS`.
    outcome : str
        What became of it, one of `OUTCOMES`; empty: not said.
    evidence : str
        How that was seen.
    """

    mask: int
    outcome: str = ""
    evidence: str = ""

    @functools.cached_property
    def hooks(self) -> HookSet:
        """Its hooks: those of Linux 6.1, each bit's taken away or added."""
        out = HookSet.parse("linux-6.1")
        for bit, names in BITS.items():
            some = HookSet.of(*names)
            out = out | some if self.mask & bit else out - some
        return out

    @property
    def brackets(self) -> tuple[str, ...]:
        """Brackets that it has and Linux 6.1 has not: some values of `BRACKETS`."""
        return tuple(text for bit, text in BRACKETS.items() if self.mask & bit)

    def stream(self, trace: Trace) -> Trace:
        """Return what its kernel asks for where Linux 6.1 asked for `trace`: other brackets."""
        for text in self.brackets:
            trace = _REWRITES[text](trace)
        return trace

    @property
    def name(self) -> str:
        """For tables: ``linux-6.1 -set_pte -set_pte_at; fault-around in a bracket``."""
        base = HookSet.parse("linux-6.1")
        words = [f" +{h}" for h in self.hooks - base] + [f" -{h}" for h in base - self.hooks]
        return "; ".join(("linux-6.1" + "".join(words), *self.brackets))


@dataclass(frozen=True)
class DesignFolder:
    """What a folder of measured designs says.

    Parameters
    ----------
    path : Path
        The folder.
    designs : dict of int to MeasuredDesign
        By mask: all that any file names.
    counts : DataFrame
        ``hooks`` (int mask), ``workload``, ``run``, ``iterations``, ``event``, ``count`` (over all
        iterations); empty if there is no such file.
    instructions : DataFrame
        ``environment``, ``hooks`` (int mask; -1 natively), ``workload``, ``run``, ``iterations``,
        ``min``, ``median``, ``mean`` (instructions per iteration); empty if there is no such file.
    streams : dict of str to Path
        Recordings or traces under the base, by workload (`pvmmu.guest.load_trace.load_trace`).
    """

    path: Path
    designs: dict[int, MeasuredDesign]
    counts: pd.DataFrame
    instructions: pd.DataFrame
    streams: dict[str, Path] = field(default_factory=dict)


def shipped_designs() -> DesignFolder:
    """Return the measured designs that ship with the package (``data/truth/designs``)."""
    return read_designs(data_path("truth", "designs"))


def read_designs(folder: Path | str) -> DesignFolder:
    """Read a folder of measured designs.

    Parameters
    ----------
    folder : Path or str
        See the module.

    Raises
    ------
    MeasurementError
        There is no such folder, none of the three tables is in it, or a field of one is wrong; the
        message names file, line and field.
    """
    path = Path(folder)
    if not path.is_dir():
        raise MeasurementError(f"{path}: no such folder")
    found = {name: _find(path, name) for name in _COLUMNS}
    if not any(found.values()):
        wanted = ", ".join(_COLUMNS)
        raise MeasurementError(f"{path}: no measured designs: none of {wanted} is in it")
    tables = {name: _read(name, at) for name, at in found.items()}
    designs = _designs(found[DESIGNS], tables[DESIGNS])
    for name in (COUNTS, INSTRUCTIONS):
        for mask in sorted(set(tables[name]["hooks"]) - {-1} - designs.keys()):
            designs[mask] = MeasuredDesign(mask)
    streams = {at.stem: at for at in sorted((path / STREAMS).glob("*.parquet"))}
    for at in sorted((path / RAW).glob("*.txt*")):
        match = re.fullmatch(r"[^.]+\.(.+)\.txt(\.gz|\.xz)?", at.name)
        if match is None:
            raise MeasurementError(f"{at}: a stream is named RUN.WORKLOAD.txt.gz")
        streams[match[1]] = at
    return DesignFolder(path, designs, tables[COUNTS], tables[INSTRUCTIONS], streams)


def _find(folder: Path, name: str) -> Path | None:
    """Return the file of a table, plain or compressed; None if there is none."""
    return next((p for end in _PACKING if (p := folder / f"{name}{end}").is_file()), None)


def _read(name: str, path: Path | None) -> pd.DataFrame:
    """Return a table with numbers for numbers; an empty one if there is no file."""
    columns = _COLUMNS[name]
    if path is None:
        return pd.DataFrame({c: pd.Series(dtype=_dtype(c)) for c in columns})
    table = read_table(path)
    missing = [c for c in columns if c not in table]
    if missing:
        raise MeasurementError(f"{path}:1: column {missing[0]!r} is missing")
    native = table["environment"] == "native" if name == INSTRUCTIONS else None
    table["hooks"] = _masks(path, table["hooks"], native)
    for column in columns:
        if column in (*_WHOLE, *_NUMBERS):
            table[column] = _numbers(path, table[column])
    if "iterations" in table and (table["iterations"] < 1).any():
        row = (table["iterations"] < 1).idxmax()
        raise MeasurementError(f"{path}:{row + 2}: iterations='0': none were counted")
    return table[list(columns)]


def _dtype(column: str) -> str:
    if column in _NUMBERS:
        return "float64"
    return "int64" if column in ("hooks", *_WHOLE) else "object"


def _numbers(path: Path, column: pd.Series) -> pd.Series:
    """Return a column as whole numbers, or as numbers."""
    whole = column.name in _WHOLE
    wrong = ~column.str.fullmatch(r"\d{1,18}" if whole else r"\d{1,18}(\.\d*)?([eE][+-]?\d\d?)?")
    if wrong.any():
        row = wrong.idxmax()
        kind = "whole number" if whole else "number"
        raise MeasurementError(f"{path}:{row + 2}: {column.name}={column[row]!r}: no {kind}")
    return column.astype("int64" if whole else "float64")


def _masks(path: Path, column: pd.Series, native: pd.Series | None) -> pd.Series:
    """Return masks as numbers; -1 where a row is of a kernel without hypervisor."""
    known = functools.reduce(int.__or__, (*BITS, *BRACKETS))
    number: dict[str, int] = {}
    for text in column.unique():
        at = f"{path}:{(column == text).idxmax() + 2}: hooks={text!r}"
        if text == "-" and native is not None and native[column == text].all():
            number[text] = -1
        elif not re.fullmatch(r"0x[0-9a-fA-F]{1,8}", text):
            raise MeasurementError(f"{at}: no mask such as {BASE:#x}")
        elif unknown := int(text, 16) & ~known:
            raise MeasurementError(
                f"{at}: bit {unknown & -unknown:#x} is no hook (all: {known:#x})"
            )
        else:
            number[text] = int(text, 16)
    return column.map(number).astype("int64")


def _designs(path: Path | None, table: pd.DataFrame) -> dict[int, MeasuredDesign]:
    """Return the designs of a table; mask and names must say the same."""
    out: dict[int, MeasuredDesign] = {}
    for row in table.itertuples():
        where = f"{path}:{row.Index + 2}"
        mask, outcome = int(row.hooks), str(row.outcome)
        if mask in out:
            raise MeasurementError(f"{where}: hooks={mask:#x}: the design is there twice")
        if outcome not in OUTCOMES:
            known = ", ".join(OUTCOMES)
            raise MeasurementError(f"{where}: outcome={outcome!r}: none of {known}")
        design = out[mask] = MeasuredDesign(mask, outcome, str(row.evidence))
        try:
            named = HookSet.parse(str(row.design))
        except HookError as e:
            raise MeasurementError(f"{where}: design={row.design!r}: {e}") from None
        if named != design.hooks:
            differ = ", ".join(named ^ design.hooks)
            raise MeasurementError(f"{where}: design and hooks={mask:#x} differ in {differ}")
        changes = tuple(filter(None, (c.strip() for c in str(row.changes).split(";"))))
        if set(changes) != set(design.brackets):
            raise MeasurementError(
                f"{where}: changes={row.changes!r}: hooks={mask:#x} says "
                f"{'; '.join(design.brackets)!r}"
            )
    return out
