"""Images: the life of a process from one execve to the next, and the touches known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pvmmu.guest.readers.strace.files import executable
from pvmmu.guest.readers.strace.lines import Call
from pvmmu.guest.readers.strace.memory import MEMORY, Change, change_of
from pvmmu.guest.readers.strace.placing import Placed, place
from pvmmu.guest.readers.strace.touches import CLONES, EXITS, Lackey


@dataclass
class Image:
    """What one process and its threads ask for between two execs.

    Parameters
    ----------
    path : str
        Of the executable; empty where no execve tells.
    changes : list of Change
        Changes of memory that succeeded; ``clone`` and ``exit``, too.
    forked : bool
        A copy of another process: no trace of a program tells what it touches.
    """

    path: str
    changes: list[Change] = field(default_factory=list)
    forked: bool = False


@dataclass
class Images:
    """The images of a recording.

    Parameters
    ----------
    all : list of Image
        In order of their beginning.
    place : dict of int to (int, int)
        Index of a call -> number of its image, position among that one's changes.
    begun : dict of int to int
        Index of an execve (or of the call that made a process) -> number of the image.
    """

    all: list[Image] = field(default_factory=list)
    place: dict[int, tuple[int, int]] = field(default_factory=dict)
    begun: dict[int, int] = field(default_factory=dict)

    def new(self, index: int, image: Image) -> int:
        """Add an image that begins with a call."""
        self.all.append(image)
        self.begun[index] = len(self.all) - 1
        return len(self.all) - 1


def shares_memory(call: Call) -> bool:
    """Whether a new task uses the memory of its parent."""
    return call.name == "vfork" or "CLONE_VM" in call.arguments


def images_of(path: Path, calls: Sequence[Call]) -> Images:
    """Return the images of a recording."""
    out, of = Images(), dict[int, int]()
    for i, call in enumerate(calls):
        if call.name in ("execve", "execveat") and call.result == 0:
            of[call.pid] = out.new(i, Image(executable(call)))
            continue
        if call.pid not in of:
            of[call.pid] = out.new(i, Image(""))
        change = _change(path, call)
        if change is not None:
            mine = out.all[of[call.pid]]
            out.place[i] = (of[call.pid], len(mine.changes))
            mine.changes.append(change)
        if call.name in CLONES and call.result is not None and call.result > 0:
            same = of[call.pid]
            of[call.result] = (
                same if shares_memory(call)
                else out.new(i, Image(out.all[same].path, forked=True))
            )  # fmt: skip
    return out


def _change(path: Path, call: Call) -> Change | None:
    """Return what a call changes; None for others and those that failed."""
    if call.name in EXITS:
        return Change("exit", 0, 0, 0)
    if call.result is None or call.result < 0:
        return None
    if call.name in MEMORY:
        return change_of(path, call)
    return Change("clone", 0, 0, 0) if call.name in CLONES else None


def touches_of(images: Images, lackeys: Sequence[Lackey]) -> dict[int, Placed]:
    """Return the touches of each image whose program has a lackey trace."""
    traces = {PurePosixPath(x.command).name: x for x in lackeys}
    out = {}
    for i, image in enumerate(images.all):
        lackey = traces.get(PurePosixPath(image.path).name)
        if lackey is not None and not image.forked:
            out[i] = place(lackey, image.changes)
    return out
