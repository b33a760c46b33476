"""The exhaustive engine: cells for all traces and modes, counted in shards by an executor."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pandas as pd

import pvmmu
from pvmmu._jit import fingerprint
from pvmmu.costs import CostTable
from pvmmu.errors import SearchError
from pvmmu.files import unwritable
from pvmmu.guest.excerpts import excerpts
from pvmmu.guest.load_trace import load_trace
from pvmmu.guest.trace import Trace
from pvmmu.modes import Mode, get_mode, mode_names
from pvmmu.modes.partition import Space
from pvmmu.search.cells import Cell
from pvmmu.search.files import read_cell, write_cell
from pvmmu.search.shards import count_shard, run, shards_of
from pvmmu.search.verdicts import Verdicts, judge_all, witnesses

#: Modes worth searching beside the defaults: other backends and policies of the past.
VARIANTS: Final = (
    "direct:backend=2.6.27", "direct:stores=batched", "direct:stores=refuse",
    "direct:backend=2.6.27,stores=batched",
)  # fmt: skip
#: Files of the streams that a search is judged by, beside its cells.
_JUDGED_BY: Final = "streams.parquet"


def all_modes() -> list[str]:
    """Return the texts of all registered modes, and variants of the past."""
    return [*mode_names(), *VARIANTS]


@dataclass(frozen=True)
class Search:
    """All hook sets in all modes on all traces.

    Parameters
    ----------
    space : Space
        The hook sets.
    cells : mapping of (str, str) to Cell
        By trace and mode.
    provenance : dict
        Versions and fingerprints.
    streams : tuple of Trace
        Those searched, or excerpts of them: designs are judged by them, and by all shipped ones.
    """

    space: Space
    cells: Mapping[tuple[str, str], Cell]
    provenance: dict[str, Any] = field(default_factory=dict)
    streams: tuple[Trace, ...] = field(default=(), repr=False)
    _witnesses: list[Trace] = field(default_factory=list, repr=False, compare=False)
    _judged: dict[str, Verdicts] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, key: tuple[str, str]) -> Cell:
        """Return the cell of a trace and a mode.

        Raises
        ------
        SearchError
            The search has none.
        """
        key = key[0], get_mode(key[1]).spec
        if key not in self.cells:
            raise SearchError(
                f"trace {key[0]!r} in mode {key[1]!r} was not searched; there are "
                f"{', '.join(self.traces)} in {', '.join(self.modes)}"
            )
        return self.cells[key]

    @property
    def traces(self) -> list[str]:
        """Names of the traces."""
        return list(dict.fromkeys(t for t, _ in self.cells))

    @property
    def modes(self) -> list[str]:
        """Texts of the modes."""
        return list(dict.fromkeys(m for _, m in self.cells))

    def verdicts(self, mode: Mode | str) -> Verdicts:
        """Return the verdict on every hook set in `mode`, on all streams together (kept).

        Raises
        ------
        SearchError
            The search has no streams to judge by.
        """
        mode = get_mode(mode)
        if mode.spec not in self._judged:
            if not self._witnesses:
                self._witnesses.extend(witnesses(self.streams))
            self._judged[mode.spec] = judge_all(mode, self._witnesses, self.space)
        return self._judged[mode.spec]

    @property
    def designs(self) -> int:
        """Number of designs: hook sets times traces times modes."""
        return self.space.size * len(self.cells)

    @property
    def nbytes(self) -> int:
        """Bytes of all counts."""
        return sum(c.low.nbytes + (0 if c.exact else c.high.nbytes) for c in self.cells.values())

    def cycles(self, costs: CostTable | str) -> dict[tuple[str, str], np.ndarray]:
        """Return cycles of everything by `costs`: float64[class] for each cell."""
        return {key: cell.cycles(costs) for key, cell in self.cells.items()}

    def summary(self) -> pd.DataFrame:
        """Return a row for each cell: classes, share of hook sets that can run, required hooks."""
        rows = []
        for (trace, mode), cell in self.cells.items():
            _, sizes = cell.partition.masks_and_sizes()
            rows.append(
                {
                    "trace": trace, "mode": mode, "operations": cell.operations,
                    "classes": len(cell), "hook_sets": self.space.size,
                    "feasible": int(sizes.sum()), "failed": len(cell.failed), "exact": cell.exact,
                    "required": " ".join(cell.partition.required),
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    # ------------------------------------------------------------------ files
    def save(self, folder: str | Path) -> Path:
        """Write a Parquet file for each cell into `folder`.

        Raises
        ------
        SearchError
            The folder cannot be made or written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for cell in self.cells.values():
                write_cell(cell, folder, self.provenance)
            for number, trace in enumerate(excerpts(self.streams)):
                trace.save(folder / f"{number:02d}.{_JUDGED_BY}")
        except OSError as e:
            raise unwritable(folder, e, SearchError) from None
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote into `folder`.

        Raises
        ------
        SearchError
            No such folder, none of these files in it, or they are of different searches.
        """
        files = sorted(Path(folder).glob("*.cell.parquet"))
        if not files:
            raise SearchError(f"{folder}: no search was saved here")
        cells: dict[tuple[str, str], Cell] = {}
        provenance: dict[str, Any] = {}
        for path in files:
            cell, provenance = read_cell(path)
            cells[cell.trace, cell.mode] = cell
        spaces = {c.partition.space for c in cells.values()}
        if len(spaces) > 1:
            raise SearchError(f"{folder}: holds searches of different hook sets")
        streams = [Trace.load(p) for p in sorted(Path(folder).glob(f"*.{_JUDGED_BY}"))]
        return cls(spaces.pop(), cells, provenance, tuple(streams))


def search(
    traces: Iterable[Trace | str],
    modes: Iterable[Mode | str],
    space: Space | None = None,
    *,
    executor: Executor | None = None,
    progress: bool | None = None,
) -> Search:
    """Count every hook set in every mode on every trace.

    Parameters
    ----------
    traces : iterable of Trace or str
        Traces, or names of those that ship with the package.
    modes : iterable of Mode or str
        Paging modes (`all_modes` lists them).
    space : Space, optional
        The hook sets; default: every set of the catalogue.
    executor : concurrent.futures.Executor, optional
        Where shards are counted; default: threads of this process (kernels release the GIL).
    progress : bool, optional
        Show a bar with rate and remaining time; default: for more than a second of work.

    Raises
    ------
    PvmmuError
        A trace or mode does not exist.
    """
    loaded = [t if isinstance(t, Trace) else load_trace(t) for t in traces]
    chosen, space = [get_mode(m) for m in modes], space or Space.all()
    todo = [(t, m, m.classes(t, space)) for t, m in itertools.product(loaded, chosen)]
    parts = [list(shards_of(*one)) for one in todo]
    counts = dict(run([s for part in parts for s in part], count_shard, executor, progress))
    cells, done = {}, 0
    for (trace, mode, partition), part in zip(todo, parts, strict=True):
        mine = [counts.pop(done + i) for i in range(len(part))]
        cells[trace.name, mode.spec] = Cell.of(trace, mode, partition, mine)
        done += len(part)
    return Search(space, cells, provenance_of(loaded), tuple(loaded))


def provenance_of(traces: Iterable[Trace]) -> dict[str, Any]:
    """Return what a result of `traces` depends on: versions, sources, traces."""
    return {
        "pvmmu": pvmmu.__version__,
        "model": fingerprint(),
        "traces": {t.name: t.fingerprint for t in traces},
    }
