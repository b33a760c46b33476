"""A sweep on disk: a Parquet dataset that a killed run leaves whole and the next one continues.

    folder/manifest.json     what is swept, by which model
    folder/traces/*.parquet  the traces, for workers in other processes
    folder/parts/*.parquet   one file for each job, complete or not there at all
    folder/lock              held by the process that writes

A part appears under its name in one step, when it is complete, and its name is a function of what
it holds; so a job is done if its part is there, and doing it twice changes nothing. Workers write
parts themselves: those in other processes or on other machines must see the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import pvmmu
from pvmmu._jit import fingerprint
from pvmmu.errors import SearchError
from pvmmu.files import unwritable, whole_file
from pvmmu.guest.trace import Trace
from pvmmu.modes.events import Event, column
from pvmmu.paths import data_path
from pvmmu.search.shards import Shard, count_shard

FORMAT: Final = 1
#: Estimated operations of a job, of about a second.
JOB_OPERATIONS: Final = 20_000_000
#: Replays of the whole trace that counting a plan at once is worth.
_PLAN_REPLAYS: Final = 50
_META: Final = b"pvmmu.part"
_held: set[Path] = set()


@dataclass(frozen=True)
class Job:
    """Shards whose rows make one part of the dataset.

    Parameters
    ----------
    number : int
        Place in the sweep.
    shards : tuple of Shard
        Its work, in order.
    key : str
        Of model, traces, modes and hook sets: names the part.
    """

    number: int
    shards: tuple[Shard, ...] = field(repr=False)
    key: str

    def __len__(self) -> int:
        return sum(map(len, self.shards))

    @property
    def name(self) -> str:
        """Name of the part's file."""
        return f"part-{self.number:06d}-{self.key}.parquet"


def model_id() -> str:
    """Return a fingerprint of all that counts depend on, but for traces and hook sets."""
    h = hashlib.sha256(fingerprint("modes").encode())
    h.update(data_path("hooks", "hooks.toml").read_bytes())
    return h.hexdigest()[:16]


def jobs_of(shards: Sequence[Shard], size: int = JOB_OPERATIONS) -> list[Job]:
    """Return `shards` as jobs of `size` operations (about a second), in order."""
    groups: list[list[Shard]] = [[]]
    room = size
    for shard in shards:
        cost = _operations(shard)
        if groups[-1] and cost > room:
            groups.append([])
            room = size
        groups[-1].append(shard)
        room -= cost
    model = model_id()
    return [Job(i, tuple(g), _key(model, g)) for i, g in enumerate(groups) if g]


def _operations(shard: Shard) -> int:
    assert isinstance(shard.trace, Trace)
    replays = _PLAN_REPLAYS if shard.branch else sum(not c.infeasible for c in shard.classes)
    return len(shard.trace) * replays


def _key(model: str, shards: Sequence[Shard]) -> str:
    h = hashlib.sha256(f"{FORMAT} {model}".encode())
    for s in shards:
        assert isinstance(s.trace, Trace)
        h.update(f"{s.trace.fingerprint} {s.mode.spec} ".encode())
        h.update(np.array([c.hooks.mask for c in s.classes], np.int64).tobytes())
        h.update(np.array([c.size for c in s.classes], np.int64).tobytes())
    return h.hexdigest()[:16]


# ---------------------------------------------------------------------- the folder
class Store:
    """A folder that holds, or will hold, a sweep.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    jobs : list of Job
        The whole sweep.
    """

    def __init__(self, folder: Path, jobs: list[Job]) -> None:
        self.folder, self.jobs = folder, jobs
        self.parts = folder / "parts"

    @contextmanager
    def writing(self) -> Iterator[list[Job]]:
        """Hold the folder for writing; yield the jobs that are left to do.

        Raises
        ------
        SearchError
            Another process writes here, the folder holds another sweep or one by another model,
            or cannot be written.
        """
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("a+", encoding="ascii") as lock:
                self._take(lock)
                try:
                    self._prepare()
                    yield [self._by_path(j) for j in self.jobs if not self.has(j)]
                finally:
                    _held.discard(self.folder.resolve())
        except OSError as e:
            raise unwritable(self.folder, e, SearchError) from None

    def has(self, job: Job) -> bool:
        """Whether `job` is done."""
        return (self.parts / job.name).is_file()

    def _take(self, lock: TextIO) -> None:
        """Lock the folder: against other processes, and against this one."""
        try:
            if self.folder.resolve() in _held:
                raise BlockingIOError
            # a lock of the process: unlike flock it is not passed on to children that survive it
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            who = lock.read().strip()
            raise SearchError(
                f"{self.folder}: another sweep writes here{f' (process {who})' if who else ''}"
            ) from None
        _held.add(self.folder.resolve())
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()

    def _prepare(self) -> None:
        manifest, path = self.manifest(), self.folder / "manifest.json"
        if path.exists():
            check_manifest(self.folder, manifest)
        else:
            with whole_file(path, SearchError) as tmp:
                tmp.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        for old in self.parts.glob(".*"):  # halves of a run that was killed
            old.unlink(missing_ok=True)
        (self.folder / "traces").mkdir(exist_ok=True)
        for trace in {s.trace for j in self.jobs for s in j.shards if isinstance(s.trace, Trace)}:
            if not self._trace_path(trace).exists():
                trace.save(self._trace_path(trace))

    def manifest(self) -> dict[str, Any]:
        """Return what the folder holds: design, model, versions."""
        traces: dict[str, str] = {}
        modes: dict[str, None] = {}
        for shard in (s for j in self.jobs for s in j.shards):
            assert isinstance(shard.trace, Trace)
            traces[shard.trace.name] = shard.trace.fingerprint
            modes[shard.mode.spec] = None
        keys = hashlib.sha256(" ".join(j.name for j in self.jobs).encode()).hexdigest()[:16]
        return {
            "format": FORMAT, "model": model_id(), "pvmmu": pvmmu.__version__,
            "traces": traces, "modes": list(modes), "jobs": len(self.jobs),
            "classes": sum(map(len, self.jobs)), "design": keys, "seeds": [],
        }  # fmt: skip

    def _trace_path(self, trace: Trace) -> Path:
        return self.folder / "traces" / f"{trace.fingerprint}.parquet"

    def _by_path(self, job: Job) -> Job:
        """Return a job whose traces are files."""
        shards = (
            replace(s, trace=self._trace_path(s.trace).resolve())
            for s in job.shards if isinstance(s.trace, Trace)
        )  # fmt: skip
        return replace(job, shards=tuple(shards))

    def rows(self) -> pa.Table:
        """Return the rows of the jobs that are done, in order."""
        return read_parts([self.parts / j.name for j in self.jobs if self.has(j)])


def check_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise `SearchError` unless a folder holds the sweep of a manifest."""
    path = folder / "manifest.json"
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        model, design, form = old["model"], old["design"], old["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SearchError(f"{path}: not the manifest of a sweep") from None
    if form != FORMAT or model != manifest["model"]:
        raise SearchError(
            f"{folder}: was swept by another model ({model}, not {manifest['model']}); "
            "its rows and new ones do not mix: take another folder"
        )
    if design != manifest["design"]:
        raise SearchError(
            f"{folder}: holds another sweep (of {', '.join(old['traces'])} in "
            f"{', '.join(old['modes'])}, {old['classes']:,} classes); take another folder"
        )


# ---------------------------------------------------------------------- the parts
def write_job(folder: Path, job: Job) -> int:
    """Do `job` and write its part into `folder`; return the number of rows.

    Runs in a worker, whose clock, place and pace do not matter.

    Raises
    ------
    SearchError
        The part cannot be written.
    """
    table = pa.concat_tables([_rows(s) for s in job.shards])
    meta = {_META: json.dumps({"format": FORMAT, "key": job.key}).encode()}
    with whole_file(folder / "parts" / job.name, SearchError) as tmp:
        pq.write_table(table.replace_schema_metadata(meta), tmp, compression="zstd")
    return len(table)


def _rows(shard: Shard) -> pa.Table:
    """Return the rows of a shard."""
    counts = count_shard(shard)
    trace = shard.trace.stem if isinstance(shard.trace, Path) else shard.trace.fingerprint
    columns: dict[str, Any] = {
        "trace": pa.array([trace] * len(shard)),
        "mode": pa.array([shard.mode.spec] * len(shard)),
        "mask": np.array([c.hooks.mask for c in shard.classes], np.int64),
        "hook_sets": np.array([c.size for c in shard.classes], np.int64),
        "status": pa.array(counts.status, pa.string()),
    }
    for e in Event:
        columns[column(e)] = counts.low[:, e]
        columns[f"{column(e)}_high"] = counts.high[:, e]
    return pa.table(columns)


def read_parts(paths: Sequence[Path]) -> pa.Table:
    """Return the rows of some parts, in order.

    Raises
    ------
    SearchError
        A part is damaged, or not what its name says.
    """
    tables = []
    for path in paths:
        try:
            table = pq.read_table(path)
            key = str(json.loads((table.schema.metadata or {})[_META])["key"])
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as e:
            raise SearchError(f"{path}: not a part of a sweep ({type(e).__name__})") from None
        if not path.stem.endswith(key):
            raise SearchError(f"{path}: holds another part ({key})")
        tables.append(table.replace_schema_metadata(None))
    if any(t.schema != tables[0].schema for t in tables):
        raise SearchError(f"{paths[0].parent}: parts of different columns")
    return pa.concat_tables(tables) if tables else pa.table({"mask": pa.array([], pa.int64())})
