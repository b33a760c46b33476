"""The parts of a line of strace: who, when, which call, what it returned.

Known forms: output to a file (``-o``: a PID in front) or to the terminal (``[pid N]``, or nothing
for a single process), with names of processes (``-Y``), times (``-t``, ``-tt``, ``-ttt``, ``-r``,
``-T``), numbers of calls (``-n``), instruction pointers (``-i``) and paths of descriptors (``-y``),
numbers in place of words (``-X raw``) or beside them (``-X verbose``).
"""

from __future__ import annotations

import re
from typing import Final

#: What stands before the call: PID (of ``-o``, of a terminal), time.
LEADER: Final = re.compile(
    r"(?:(\d{1,7})(?:<[^\n]{0,64}?>)?(?=\s)\s+|\[pid\s+(\d{1,10})(?:<[^\n]{0,64}?>)?\]\s+)?"
    r"(?:\s*(\d\d:\d\d:\d\d(?:\.\d+)?|\+?\d{1,12}\.\d{3,9}|\d{8,12})"
    r"(?:\s\(\+\s*\d+(?:\.\d+)?\))?(?=\s)\s+)?"
    r"(?:\[\s*(?:\d+|\?+)\]\s+)?(?:\[(?:[0-9a-f]{8,16}|\?+)\]\s+)?"
)
#: Arguments and result of a call that is complete, after its name.
ENDED: Final = re.compile(r"\((.*)\)\s*=\s+(-?\d\w*|\?)(.*)$", re.DOTALL)
#: The rest of a call, however it ends.
TAIL: Final = re.compile(r"(.*)\)\s*=\s+(-?\d\w*|\?)(.*)$", re.DOTALL)
NAME: Final = re.compile(r"[a-z_]\w*(?=\()", re.ASCII)
UNFINISHED: Final = re.compile(r"\((.*?),?\s*<(?:unfinished|detached) \.\.\.>\)?(?:\s+=\s+\?)?$")
RESUMED: Final = re.compile(r"<\.\.\.\s+(?:(\S+)\s+)?resumed>\s?(.*)$", re.DOTALL)
END: Final = re.compile(r"\+\+\+ (?:exited with|killed by) .*\+\+\+$")
SUPERSEDED: Final = re.compile(r"\+\+\+ superseded by execve in pid (\d{1,10}) \+\+\+$")
SIGNAL: Final = re.compile(r"--- .*---$|--- SIG\w+ ")
#: What strace says of processes, alone on a line or in the middle of one.
ATTACHED: Final = re.compile(
    r"(?:strace: )?Process (\d{1,10}) (attached|detached|suspended|resumed)\b.*$", re.DOTALL
)
PERSONALITY: Final = re.compile(r"(?:strace: )?\[ Process PID=\d+ runs in (.{1,24}?) mode\. \]$")
#: Stack traces (``-k``), and other remarks of strace.
REMARK: Final = re.compile(r" > \S|strace: |<ptrace\(|<pid changed to |PANIC: |\^C$|<detached ")
#: The summary of ``-C``.
SUMMARY: Final = re.compile(r"% time\s+seconds\s+usecs/call")
SUMMARY_LINE: Final = re.compile(
    r"[-\s]+$|\s*\d+\.\d\d\s+\d+\.\d+(\s+\d+)+(\s+\w+)?$|\s*-?\d+\.\d+\s.*total$"
)
#: A child's number in the tracer's PID namespace (``--pidns-translation``).
TRANSLATED: Final = re.compile(r"/\* (\d{1,10}) in strace's PID NS \*/")

MEMORY: Final = frozenset({
    "mmap", "mmap2", "old_mmap", "mmap_pgoff", "munmap", "mprotect", "pkey_mprotect", "madvise",
    "mremap", "brk", "mlock", "mlock2", "mlockall", "munlockall", "shmat", "shmdt", "shmget",
    "map_shadow_stack",
})  # fmt: skip
#: Names under which a process makes another one, becomes another program, waits, or ends.
CLONES: Final = frozenset({"clone", "clone3", "fork", "vfork"})
EXECS: Final = frozenset({"execve", "execveat"})
WAITS: Final = frozenset({"wait4", "waitpid", "waitid"})
EXITS: Final = frozenset({"exit", "_exit", "exit_group"})
OPENS: Final = frozenset({"open", "openat", "openat2", "creat", "memfd_create"})
#: Calls that take effect when they begin: what their child does may be written before they return.
EARLY: Final = CLONES | EXECS
#: Calls that are looked into; others have no effect on memory.
KNOWN: Final = MEMORY | CLONES | EXECS | WAITS | EXITS | OPENS
#: Known ones in the middle of a line, after what the program itself has written there.
INSIDE: Final = re.compile(rf"(?:\[pid\s+\d{{1,10}}\]\s+)?\b(?:{'|'.join(sorted(KNOWN))})\(")


class Call:
    """A system call, several without effect on memory, or the end of a process.

    Parameters
    ----------
    number : int
        Line in the file, from 1.
    pid : int
        Of the caller; 0 where the file names none.
    name : str
        Of the call; empty for calls without effect on memory, ``+++`` for the end of a process.
    arguments : str
        As written.
    result : int or None
        What it returned; None if it did not (``?``, or the recording ends before).
    time : str
        When it began, as written; empty if the file does not tell.

    Attributes
    ----------
    count : int
        How many calls it stands for.
    """

    __slots__ = ("arguments", "count", "name", "number", "pid", "result", "time")

    def __init__(
        self, number: int, pid: int, name: str, arguments: str, result: int | None = None,
        time: str = "",
    ) -> None:  # fmt: skip
        self.number, self.pid, self.name = number, pid, name
        self.arguments, self.result, self.time = arguments, result, time
        self.count = 1

    def __repr__(self) -> str:
        return f"<Call {self.number}: {self.pid} {self.name}({self.arguments}) = {self.result}>"


def result_of(text: str) -> int | None:
    """Return what a call returned; None for ``?``, and for what is no number."""
    try:
        return None if text == "?" else int(text, 0)
    except ValueError:
        return None


def child_of(result: int | None, rest: str) -> int | None:
    """Return the number of a child as the recording's lines have it.

    `result` is what the call returned, `rest` what is written behind it.
    """
    m = TRANSLATED.search(rest)
    return int(m[1]) if m else result


def seconds(time: str) -> float | None:
    """Return a time of day or of the epoch in seconds; None for none, and for differences (-r)."""
    if ":" in time:
        hours, minutes, rest = time.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(rest)
    if not time or time.startswith("+") or float(time) < 1e8:
        return None
    return float(time)
