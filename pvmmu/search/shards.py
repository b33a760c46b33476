"""Work of a search, cut in pieces of seconds that any executor can run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor as Threads,
    wait,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol, TypeVar

from tqdm.auto import tqdm

from pvmmu.errors import SearchError
from pvmmu.guest.trace import Trace
from pvmmu.modes.all_sets.counting import ClassCounts, count_classes, count_one_by_one
from pvmmu.modes.all_sets.engines import engine
from pvmmu.modes.base import Mode
from pvmmu.modes.partition import HookClass, Partition

#: Operations replayed by one shard, if its classes are replayed one by one.
SHARD_OPERATIONS: Final = 2_000_000
#: Shards handed to the executor at a time: enough for many workers, few enough to keep their
#: arguments in memory.
IN_FLIGHT: Final = 1_024


@dataclass(frozen=True)
class Shard:
    """Classes of hook sets to count in one mode on one trace.

    Parameters
    ----------
    trace : Trace or Path
        The operations, or a file of them that every worker can read.
    mode : Mode
        The mode.
    classes : tuple of HookClass
        The classes.
    branch : (Partition, int) or None
        They are all feasible classes of this branch, which the mode may count at once.
    """

    trace: Trace | Path
    mode: Mode
    classes: tuple[HookClass, ...] = field(repr=False)
    branch: tuple[Partition, int] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.classes)


def all_shards_of(trace: Trace, mode: Mode, partition: Partition) -> Iterator[Shard]:
    """Yield shards of `trace` in `mode` for all classes of `partition`, branch by branch."""
    for number in range(len(partition.branches)):
        bad = tuple(partition.infeasible(number))
        if bad:
            yield Shard(trace, mode, bad)
        yield from _shards_of_branch(trace, mode, partition, number)


def shards_of(trace: Trace, mode: Mode, partition: Partition) -> Iterator[Shard]:
    """Yield shards of `trace` in `mode` for all feasible classes of `partition`, in their order."""
    for number in range(len(partition.branches)):
        yield from _shards_of_branch(trace, mode, partition, number)


def _shards_of_branch(
    trace: Trace, mode: Mode, partition: Partition, number: int
) -> Iterator[Shard]:
    classes = tuple(partition.feasible(number))
    if classes and engine(mode) is not None:
        yield Shard(trace, mode, classes, (partition, number))
    else:
        yield from shards_of_list(trace, mode, classes)


def shards_of_list(trace: Trace, mode: Mode, classes: Sequence[HookClass]) -> Iterator[Shard]:
    """Yield shards of `trace` in `mode` for some `classes`, which are replayed one by one."""
    size = max(1, SHARD_OPERATIONS // len(trace))
    for i in range(0, len(classes), size):
        yield Shard(trace, mode, tuple(classes[i : i + size]))


def count_shard(shard: Shard) -> ClassCounts:
    """Count the classes of `shard`."""
    trace = shard.trace if isinstance(shard.trace, Trace) else _trace_at(shard.trace)
    if shard.branch is None:
        return count_one_by_one(trace, shard.mode, list(shard.classes))
    return count_classes(trace, shard.mode, *shard.branch)


@functools.lru_cache(maxsize=4)
def _trace_at(path: Path) -> Trace:
    """Read a trace once in each worker."""
    return Trace.load(path)


class Sized(Protocol):
    """Work whose length is the number of its classes."""

    def __len__(self) -> int: ...


W = TypeVar("W", bound=Sized)
R = TypeVar("R")


def run(
    items: Sequence[W],
    work: Callable[[W], R],
    executor: Executor | None = None,
    progress: bool | None = None,
    done: int = 0,
) -> Iterator[tuple[int, R]]:
    """Do some work; yield each result with its number as soon as it is there.

    Parameters
    ----------
    items : sequence
        The work, such as shards.
    work : callable
        What to do with each; executors of other processes need to find it by name.
    executor : concurrent.futures.Executor, optional
        Default: threads of this process.
    progress : bool, optional
        Show a bar with rate and remaining time; default: for more than a second of work.
    done : int
        Classes done before, for the bar.

    Raises
    ------
    SearchError
        Workers died, so that the work cannot be done.
    """
    pool = executor or Threads()
    bar = tqdm(
        total=done + sum(map(len, items)), initial=done, unit="class", delay=1,
        disable=progress is False, leave=False,
    )  # fmt: skip
    left = iter(enumerate(items))
    pending: dict[Future[R], int] = {}
    try:
        while True:
            for i, item in left:
                pending[pool.submit(work, item)] = i
                if len(pending) >= IN_FLIGHT:
                    break
            if not pending:
                return
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                i = pending.pop(future)
                result = future.result()
                bar.update(len(items[i]))
                yield i, result
    except (BrokenExecutor, CancelledError) as e:
        why = str(e).split(". ")[0] or type(e).__name__
        raise SearchError(f"the workers died ({why})") from None
    finally:
        bar.close()
        for future in pending:
            future.cancel()
        if executor is None:
            pool.shutdown(wait=True, cancel_futures=True)
