"""Whose calls they are: the lives of processes and threads, from birth to end.

Numbers of processes are used again, begin in the middle of a recording (``-p``), stand for other
ones in a PID namespace, or are never heard of (no ``-f``). Here each task has a number of its own.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from pvmmu.guest.readers.strace.lines import CLONES, EXECS, EXITS, Call


@dataclass
class Life:
    """A task of a recording.

    Parameters
    ----------
    pid : int
        Its number in the recording; 0 where none stands there.
    first : int
        Index of its first call.
    heard : bool
        Whether any line is of it.
    born : bool
        Whether a call of the recording makes it.
    ended : bool
        Whether its end is seen.
    begins : str
        Name of its first call.
    """

    pid: int
    first: int
    heard: bool = True
    born: bool = False
    ended: bool = False
    begins: str = ""


@dataclass
class Lives:
    """The tasks of a recording.

    Parameters
    ----------
    calls : list of Call
        In the order in which they take effect: a task is made before its first call.
    of : list of int
        For each call: index of its task among `all`.
    all : list of Life
        In order of their first call, then those that are never heard of.
    child : dict of int to int
        Index of a call that makes a task -> index of that among `all`.
    last : list of int
        Index of the last call of each task.
    renumbered : int
        Tasks that were known by another number where they were made (PID namespaces).
    """

    calls: list[Call]
    of: list[int]
    all: list[Life]
    child: dict[int, int] = field(default_factory=dict)
    last: list[int] = field(default_factory=list)
    renumbered: int = 0


def lives_of(calls: Sequence[Call], superseded: Set[int] = frozenset()) -> Lives:
    """Tell the tasks of a recording apart.

    Parameters
    ----------
    calls : sequence of Call
        In order.
    superseded : set of int
        Threads whose calls go on under another number (execve of a thread).
    """
    whose, lives = _told_apart(calls)
    births = [
        i for i, c in enumerate(calls)
        if c.name in CLONES and (c.result is None or c.result > 0)
    ]  # fmt: skip
    child = _matched(calls, births, lives)
    renumbered = _renumber(calls, births, lives, child)
    for i in births:
        if i not in child and calls[i].result is not None:
            child[i] = len(lives)
            pid = int(calls[i].result or 0)
            known = pid in superseded
            lives.append(Life(pid, i, heard=known, born=True, ended=known))
    return _in_order(list(calls), whose, lives, child, renumbered)


def _told_apart(calls: Sequence[Call]) -> tuple[list[int], list[Life]]:
    """Return the task of each call: a number begins another one after its end."""
    lives: list[Life] = []
    now: dict[int, int] = {}
    whose = []
    for i, call in enumerate(calls):
        mine = now.get(call.pid)
        if call.name == "+++":
            mine = now.pop(call.pid, -1)
            if mine >= 0:
                lives[mine].ended = True
            whose.append(mine)
            continue
        if mine is None or (lives[mine].ended and call.name not in EXITS):
            mine = now[call.pid] = len(lives)
            lives.append(Life(call.pid, i, begins=call.name))
        if call.name in EXITS:
            lives[mine].ended = True
        whose.append(mine)
    return whose, lives


def _matched(calls: Sequence[Call], births: Sequence[int], lives: list[Life]) -> dict[int, int]:
    """Return the task that each call has made, as far as their numbers tell."""
    by_pid: dict[int, list[int]] = {}
    for n, life in enumerate(lives):
        by_pid.setdefault(life.pid, []).append(n)
    child: dict[int, int] = {}
    for i in births:
        same = by_pid.get(calls[i].result or 0, ())
        free = [n for n in same if not lives[n].born and calls[i].result]
        after = [n for n in free if lives[n].first > i]
        # ``-z`` writes the call when it has returned: perhaps behind lines of the child
        before = [n for n in free if 0 < lives[n].first < i and lives[n].begins not in EXECS]
        before = before or [n for n in free if 0 < lives[n].first < i]
        chosen = after[0] if after else before[-1] if before else -1
        if chosen >= 0:
            child[i], lives[chosen].born = chosen, True
    return child


def _renumber(
    calls: Sequence[Call], births: Sequence[int], lives: list[Life], child: dict[int, int]
) -> int:
    """Match tasks that nobody made with calls whose child is not heard of, in order."""
    waiting = [i for i in births if i not in child]
    count = 0
    for n, life in enumerate(lives):
        if life.born or life.first == 0 or not waiting or waiting[0] > life.first:
            continue
        i = waiting.pop(0)
        child[i], life.born = n, True
        count += 1
    return count


def _in_order(
    calls: list[Call], whose: list[int], lives: list[Life], child: dict[int, int], renumbered: int
) -> Lives:
    """Put calls that make a task before that one's first call."""
    late = {i: lives[n].first for i, n in child.items() if lives[n].heard and lives[n].first < i}
    if not late:
        return Lives(calls, whose, lives, child, _last(whose, lives), renumbered)
    order = sorted(range(len(calls)), key=lambda i: (late[i] - 0.5) if i in late else i)
    place = {old: new for new, old in enumerate(order)}
    for life in lives:
        life.first = place[life.first]
    whose = [whose[i] for i in order]
    return Lives(
        [calls[i] for i in order], whose, lives, {place[i]: n for i, n in child.items()},
        _last(whose, lives), renumbered,
    )  # fmt: skip


def _last(whose: Sequence[int], lives: Sequence[Life]) -> list[int]:
    """Return the index of the last call of each task; -1 for those never heard of."""
    last = [-1] * len(lives)
    for i, n in enumerate(whose):
        if n >= 0:
            last[n] = i
    return last
