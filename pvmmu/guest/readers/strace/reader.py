"""Reader of ``strace -f``: the guest model makes the MMU operations of the recorded calls."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tqdm.auto import tqdm

from pvmmu.errors import GuestError, RecordingError, did_you_mean
from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.profile import Profile
from pvmmu.guest.readers.faults import read_faults
from pvmmu.guest.readers.strace.assumed import ASSUMPTIONS
from pvmmu.guest.readers.strace.files import files_of
from pvmmu.guest.readers.strace.folders import read_folder, siblings
from pvmmu.guest.readers.strace.images import images_of, touches_of
from pvmmu.guest.readers.strace.recorded import recorded
from pvmmu.guest.readers.strace.run import Run
from pvmmu.guest.readers.strace.touches import read_lackey
from pvmmu.guest.readers.strace.transcript import Transcript
from pvmmu.guest.readers.text_files import without_compression
from pvmmu.guest.trace import Platform, Trace
from pvmmu.paths import data_path

_SUFFIX: Final = ".strace"


def read_strace(
    path: str | os.PathLike[str],
    kernel: str | Profile = "6.1",
    platform: Platform | None = None,
    *,
    lackey: Sequence[str | os.PathLike[str]] | None = None,
    assume: str = "data",
    frames: int = 1 << 20,
    touches: bool = False,
    faults: str | os.PathLike[str] | None = None,
) -> Trace:
    """Return the MMU operations that a recorded program makes its kernel do.

    Parameters
    ----------
    path : path-like
        Output of ``strace -f``, of whatever form, plain or compressed; a folder of ``strace -ff``,
        or what the names of its files have in common. With at least the calls of
        ``-e trace=memory,process,open,openat``.
    kernel : str or Profile
        Kernel profile of the guest.
    platform : Platform, optional
        What the guest sees; by default bare hardware.
    lackey : sequence of path-like, optional
        What programs touched: traces of ``valgrind --tool=lackey --trace-mem=yes
        --trace-syscalls=yes --child-silent-after-fork=yes``, one for each program, used for each
        run of the program of its command. By default the files ``NAME.*.lackey*`` beside
        ``NAME.strace``.
    assume : str
        Key of `ASSUMPTIONS`: what is touched where no lackey trace tells. The trace's notes say
        which processes that concerns.
    frames : int
        Memory of the guest, in frames of 4 KiB.
    touches : bool
        Whether touches become rows (for TLB models).
    faults : path-like, optional
        Page faults of the same run, of perf (`pvmmu.guest.readers.faults`): they are what is
        touched, nothing is assumed. By default the file ``NAME.faults`` (or ``.faults.gz`` ...)
        beside ``NAME.strace``.

    Returns
    -------
    Trace
        One vCPU; processes run in the order of the recording's lines.

    Raises
    ------
    RecordingError
        A file cannot be read, has a line of another form, or asks for what the kernel model
        cannot do; names file and line.
    """
    path = Path(path)
    if assume not in ASSUMPTIONS:
        raise RecordingError(f"assume={assume!r} is none of {', '.join(ASSUMPTIONS)}")
    several = path.is_dir() or not path.exists()
    transcript = read_folder(path) if several and siblings(path) else Transcript(path)
    if not several or not transcript.calls:
        transcript.read()
    r = recorded(transcript)
    if lackey is None:
        lackey = sorted(path.parent.glob(f"{glob.escape(_stem(path))}.*.lackey*"))
    images = images_of(r)
    told = touches_of(images, [read_lackey(p) for p in lackey])
    guest = Guest(kernel, platform, frames, touches=touches)
    if faults is None:
        faults = next(iter(sorted(path.parent.glob(f"{glob.escape(_stem(path))}.faults*"))), None)
    seen = None if faults is None else read_faults(Path(faults))
    run = Run(r, guest, files_of(r), images, told, assume, seen)
    call = r.calls[0]
    try:
        for i, call in enumerate(
            tqdm(r.calls, desc=path.name, unit=" calls", delay=1, disable=None, leave=False)
        ):
            run.feed(i, call)
        run.finish()
    except GuestError as e:
        what = call.name or "system call"
        raise RecordingError(f"{path}:{call.number}: {what}: {e}") from None
    return guest.trace(_stem(path), run.notes(), run.assumptions())


def _stem(path: Path) -> str:
    return without_compression(path.name).removesuffix(_SUFFIX)


def example_names() -> list[str]:
    """Return the names of the recordings that ship with the package."""
    return sorted(_stem(p) for p in data_path("strace").glob(f"*{_SUFFIX}*"))


def read_example(name: str, kernel: str | Profile = "6.1", **options: Any) -> Trace:
    """Return a recording that ships with the package, with its lackey traces.

    Parameters
    ----------
    name : str
        Of `example_names`.
    kernel, **options
        As for `read_strace`.

    Raises
    ------
    RecordingError
        There is none of that name.
    """
    return read_strace(example_path(name), kernel, **options)


def example_path(name: str) -> Path:
    """Return the file of the recording called `name` that ships with the package.

    Raises
    ------
    RecordingError
        There is none of that name; the message lists the nearest.
    """
    found = [p for p in data_path("strace").glob(f"*{_SUFFIX}*") if _stem(p) == name]
    if not found:
        hint = did_you_mean(name, example_names())
        raise RecordingError(f"no strace recording is named {name!r}{hint}")
    return found[0]
