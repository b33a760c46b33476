"""What a recording says, ready to be run: tasks, changes of memory, files, what is not known."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.strace.lines import CLONES, MEMORY, Call
from pvmmu.guest.readers.strace.lives import Life, Lives, lives_of
from pvmmu.guest.readers.strace.memory import Change, change_of, clone_flags
from pvmmu.guest.readers.strace.transcript import Transcript

#: End of user addresses of x86-64 with four levels: above them is another architecture.
_USER_END = 1 << 47
#: Loaders of other architectures: their names tell whose program it is.
_OTHERS = {
    "ld-linux-aarch64": "AArch64", "ld-linux-armhf": "ARM", "ld-linux-riscv": "RISC-V",
    "ld64.so": "PowerPC or s390x", "ld-linux-mips": "MIPS", "ld-musl-aarch64": "AArch64",
    "ld-musl-arm": "ARM", "ld-musl-riscv": "RISC-V", "aarch64-linux-gnu/": "AArch64",
    "arm-linux-gnueabi": "ARM", "riscv64-linux-gnu/": "RISC-V", "powerpc64le-linux": "PowerPC",
    "s390x-linux-gnu/": "s390x", "ld-linux-loongarch": "LoongArch", "mips64el-linux": "MIPS",
}  # fmt: skip


@dataclass
class Recorded:
    """A recording of strace.

    Parameters
    ----------
    path : Path
        Its file, for messages.
    calls : list of Call
        In the order in which they take effect.
    changes : list of Change or None
        What each of them changes in memory.
    flags : dict of int to frozenset of str
        Flags of calls that make a task, by index.
    lives : Lives
        Whose calls they are.
    left_out : Counter
        What was not read, and how often.
    narrow : bool
        It has programs of 32 bits.
    known_as : dict of int to int
        As of `Transcript`.
    """

    path: Path
    calls: list[Call]
    changes: list[Change | None]
    flags: dict[int, frozenset[str]]
    lives: Lives
    left_out: Counter[str] = field(default_factory=Counter)
    narrow: bool = False
    known_as: dict[int, int] = field(default_factory=dict)

    def shares_memory(self, index: int) -> bool:
        """Whether the task that a call makes uses the memory of its parent."""
        return "CLONE_VM" in self.flags[index]

    def life(self, index: int) -> Life:
        """Return the task of a call."""
        return self.lives.all[self.lives.of[index]]


def recorded(transcript: Transcript) -> Recorded:
    """Return what a transcript, which was read, says.

    Raises
    ------
    RecordingError
        Arguments are of another form, or the program is one of another architecture; names file
        and line.
    """
    lives = lives_of(transcript.calls, transcript.superseded)
    path, calls = transcript.path, lives.calls
    out = Recorded(
        path, calls, [None] * len(calls), {}, lives, transcript.left_out,
        bool(transcript.modes & {"32 bit", "x32"}), transcript.known_as,
    )  # fmt: skip
    silent = transcript.attached - transcript.heard
    if silent:
        out.left_out["processes to which strace attached, never heard of"] = len(silent)
    for i, call in enumerate(calls):
        if call.name in MEMORY:
            if call.name in ("mmap2", "old_mmap"):
                out.narrow = True
            if call.result is not None and call.result >= 0:
                change = out.changes[i] = change_of(path, call)
                if change.result >= _USER_END and change.kind in ("mmap", "brk", "mremap"):
                    raise _foreign(path, call, f"{call.name} returned {change.result:#x}")
        elif call.name in CLONES:
            out.flags[i] = clone_flags(call)
        elif call.name in ("open", "openat", "execve"):
            for word, name in _OTHERS.items():
                if word in call.arguments and (call.result or 0) >= 0:
                    raise _foreign(path, call, f"{word.rstrip('/')} is of {name}")
    return out


def _foreign(path: Path, call: Call, why: str) -> RecordingError:
    return RecordingError(
        f"{path}:{call.number}: {why}: not a program of x86, and this is a model of x86 page tables"
    )
