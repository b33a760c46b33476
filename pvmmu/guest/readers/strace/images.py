"""Images: the life of a process from one execve to the next, and the touches known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from pvmmu.guest.readers.strace.files import executable
from pvmmu.guest.readers.strace.lines import CLONES, EXECS, EXITS
from pvmmu.guest.readers.strace.memory import Change
from pvmmu.guest.readers.strace.placing import Placed, place
from pvmmu.guest.readers.strace.recorded import Recorded
from pvmmu.guest.readers.strace.touches import Lackey


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


def images_of(r: Recorded) -> Images:
    """Return the images of a recording."""
    out, of = Images(), dict[int, int]()
    for i, call in enumerate(r.calls):
        life = r.lives.of[i]
        if call.name in EXECS and call.result == 0:
            of[life] = out.new(i, Image(executable(call)))
            continue
        if life not in of:
            of[life] = out.new(i, Image(""))
        change = _change(r, i)
        if change is not None:
            mine = out.all[of[life]]
            out.place[i] = (of[life], len(mine.changes))
            mine.changes.append(change)
        if i in r.lives.child:
            same = of[life]
            of[r.lives.child[i]] = (
                same if r.shares_memory(i) else out.new(i, Image(out.all[same].path, forked=True))
            )
    return out


def _change(r: Recorded, index: int) -> Change | None:
    """Return what a call changes; None for others and those that failed."""
    call = r.calls[index]
    if call.name in EXITS:
        return Change("exit", 0, 0, 0)
    if call.name in CLONES and index in r.lives.child:
        return Change("clone", 0, 0, 0)
    return r.changes[index]


def touches_of(images: Images, lackeys: Sequence[Lackey]) -> dict[int, Placed]:
    """Return the touches of each image whose program has a lackey trace."""
    traces = {PurePosixPath(x.command).name: x for x in lackeys}
    out = {}
    for i, image in enumerate(images.all):
        lackey = traces.get(PurePosixPath(image.path).name)
        if lackey is not None and not image.forked:
            out[i] = place(lackey, image.changes)
    return out
