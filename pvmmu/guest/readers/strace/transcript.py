"""Lines of strace in all its forms: calls in the order in which they take effect.

A terminal has more than strace's lines: what the program writes, in front of lines, within and
between them; a call that is cut by a remark goes on behind it. What is left out is counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tqdm.auto import tqdm

from pvmmu.errors import RecordingError
from pvmmu.guest.readers.strace.lines import (
    ATTACHED,
    CLONES,
    EARLY,
    END,
    ENDED,
    EXECS,
    INSIDE,
    KNOWN,
    LEADER,
    NAME,
    PERSONALITY,
    REMARK,
    RESUMED,
    SIGNAL,
    SUMMARY,
    SUMMARY_LINE,
    SUPERSEDED,
    TAIL,
    UNFINISHED,
    Call,
    child_of,
    result_of,
)
from pvmmu.guest.readers.text_files import text_lines

_MAX_LINE: Final = 1 << 20
#: Modes of processes that are read: other ones are other architectures.
_MODES: Final = ("64 bit", "32 bit", "x32")


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield number and text of the lines of a file that are not empty.

    Raises
    ------
    RecordingError
        The file is missing, cut short, or a line does not end.
    """
    for number, line in text_lines(path, "utf-8", _MAX_LINE, "replace"):
        if len(line) == _MAX_LINE:
            raise RecordingError(f"{path}:{number}: a line of {_MAX_LINE} bytes or more")
        text = line.rstrip()
        if text:
            yield number, text


def read_calls(path: str | os.PathLike[str]) -> list[Call]:
    """Return the calls of the recording `path` (as `Transcript.read`)."""
    return Transcript(Path(path)).read()


class Transcript:
    """A recording of strace.

    Parameters
    ----------
    path : Path
        Text, plain or compressed.

    Attributes
    ----------
    calls : list of Call
        In the order in which they take effect.
    left_out : Counter
        What was not read, and how often.
    modes : set of str
        Modes in which processes ran, as far as strace tells (``"32 bit"``).
    attached, heard : set of int
        Processes to which strace says it attached; of which there is a line.
    known_as : dict of int to int
        Number by which the first process was known later -> 0, by which it is known here.
    superseded : set of int
        Threads that went on under the number of their process, as another program.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.calls: list[Call] = []
        self.left_out: Counter[str] = Counter()
        self.modes: set[str] = set()
        self.attached: set[int] = set()
        self.heard: set[int] = set()
        self.superseded: set[int] = set()
        self._waiting: dict[int, Call] = {}
        self._cut: dict[int, Call] = {}  # begun, and neither ended nor unfinished so far
        self._alive: dict[int, None] = {}
        self.known_as: dict[int, int] = {}
        self._last_cut = 0
        self._summary = False
        self._quiet: Call | None = None

    def read(self) -> list[Call]:
        """Read all of it.

        Raises
        ------
        RecordingError
            The file is missing, cut short, or a line does not end; or no line of it is one of
            strace. Names file and line.
        """
        lines = numbered_lines(self.path)
        for number, text in tqdm(
            lines, desc=self.path.name, unit=" lines", delay=1, disable=None, leave=False
        ):
            self._line(number, text)
        if self._cut:
            self.left_out["calls that are cut"] += len(self._cut)
        if not self.calls:
            raise RecordingError(f"{self.path}: no system call in it")
        return self.calls

    # ------------------------------------------------------------------ a line
    def _line(self, number: int, text: str) -> None:
        m = LEADER.match(text)
        assert m is not None  # all of it is optional
        rest = text[m.end() :]
        n = NAME.match(rest)
        if n is None:
            self._other(number, text, m, rest)
            return
        name = n[0]
        if "Process " in rest and (a := ATTACHED.search(rest)):
            rest = rest[: a.start()]
            self._attach(a)
        found = m[1] or m[2]
        pid = self._who(int(found) if found else None)
        if name in KNOWN:
            self._call(number, pid, name, rest[len(name) :], m[3] or "")
        elif " = " in rest:
            self._uneventful(number, pid, m[3] or "")
        elif rest.endswith("...>"):
            self._waiting[pid] = Call(number, pid, name, "", None, m[3] or "")
        else:
            self._begin(pid, Call(number, pid, name, rest[len(name) :], None, m[3] or ""))

    def _call(self, number: int, pid: int, name: str, rest: str, time: str) -> None:
        """Read a call that is looked into, of which `rest` stands behind its name."""
        if m := ENDED.match(rest):
            call = Call(number, pid, name, m[1], result_of(m[2]), time)
            self.calls.append(call)
            self._returned(call, m[3])
        elif m := UNFINISHED.match(rest):
            call = self._waiting[pid] = Call(number, pid, name, m[1], None, time)
            if name in EARLY:
                self.calls.append(call)
        else:
            self._begin(pid, Call(number, pid, name, rest, None, time))
            return
        self._quiet = None
        self._cut.pop(pid, None)

    def _uneventful(self, number: int, pid: int, time: str) -> None:
        """Count a call without effect on memory."""
        if self._quiet is not None and self._quiet.pid == pid:
            self._quiet.count += 1
            return
        self._quiet = Call(number, pid, "", "", 0, time)
        self.calls.append(self._quiet)

    def _begin(self, pid: int, call: Call) -> None:
        """Note a call whose end must still come, on other lines."""
        if pid in self._cut:
            self.left_out["calls that are cut"] += 1
        self._cut[pid], self._last_cut = call, pid

    def _returned(self, call: Call, rest: str) -> None:
        """Note a process that a call has made; `rest` stands behind its result."""
        if call.name in CLONES and call.result is not None and call.result > 0:
            call.result = child_of(call.result, rest)
            if not self.attached:  # else strace says whom it hears
                self._alive[int(call.result or 0)] = None

    # ------------------------------------------------------------------ other lines
    def _other(self, number: int, text: str, leader, rest: str) -> None:  # type: ignore[no-untyped-def]
        """Read a line that does not begin a call."""
        found = leader[1] or leader[2]
        said = int(found) if found else None
        if m := RESUMED.match(rest):
            self._resume(number, said, m[1], m[2])
        elif END.match(rest):
            self._end(number, self._who(said), leader[3] or "")
        elif SIGNAL.match(rest):
            pass
        elif m := SUPERSEDED.match(rest):
            self._supersede(self._who(said), int(m[1]))
        elif m := ATTACHED.match(rest):
            self._attach(m)
        elif m := PERSONALITY.search(rest):
            self._mode(number, m[1])
        elif SUMMARY.match(rest) or (self._summary and SUMMARY_LINE.match(text)):
            self._summary = True
            self.left_out["lines of a summary (-C)"] += 1
        elif found is None and self._goes_on(text):
            pass
        elif REMARK.match(text) or REMARK.match(rest):
            kind = "lines of stacks (-k)" if text.startswith(" > ") else "remarks of strace"
            self.left_out[kind] += 1
        elif m := INSIDE.search(text):  # behind what the program has written without an end of line
            self.left_out["lines of the program's own output"] += 1
            self._line(number, text[m.start() :])
        else:
            self.left_out["lines of the program's own output"] += 1

    def _goes_on(self, text: str) -> bool:
        """Whether a line is the rest of a call that was cut by another line; then read it."""
        call = self._cut.get(self._last_cut)
        if call is None:
            return False
        if a := ATTACHED.search(text):
            self._attach(a)
            text = text[: a.start()]
        whole = call.arguments + text
        if not (ENDED.match(whole) or UNFINISHED.match(whole)):
            return False
        del self._cut[self._last_cut]
        if call.name in KNOWN:
            self._call(call.number, call.pid, call.name, whole, call.time)
        elif ENDED.match(whole):
            self._uneventful(call.number, call.pid, call.time)
        else:
            self._waiting[call.pid] = call
        return True

    def _resume(self, number: int, said: int | None, name: str | None, rest: str) -> None:
        """Add the rest of a call's arguments, and its result."""
        pid = self._resumes(said, name)
        if a := ATTACHED.search(rest):
            self._attach(a)
            rest = rest[: a.start()]
        call = self._waiting.get(pid)
        if call is None or (name not in (None, "????") and call.name != name):
            self.left_out["calls whose beginning was not seen"] += 1
            return
        m = TAIL.match(rest)
        if m is None:
            if "<unfinished" not in rest:  # cut by a remark
                self._cut[pid], self._last_cut = self._waiting.pop(pid), pid
                call.arguments = f"({call.arguments}, {rest}"
            return
        del self._waiting[pid]
        if call.name not in KNOWN:
            self._uneventful(call.number, pid, call.time)
            return
        self._quiet = None
        parts = (call.arguments, m[1])
        call.arguments = ", ".join(x.strip(" ,") for x in parts if x.strip(" ,"))
        call.result, call.pid = result_of(m[2]), pid
        if call.name not in EARLY:
            call.number = number
            self.calls.append(call)
        self._returned(call, m[3])

    def _end(self, number: int, pid: int, time: str) -> None:
        self.calls.append(Call(number, pid, "+++", "", None, time))
        self._quiet = None
        self._alive.pop(pid, None)
        self._waiting.pop(pid, None)
        self._cut.pop(pid, None)

    def _supersede(self, leader: int, thread: int) -> None:
        """Let the execve of a thread go on under the number of its process."""
        thread = self.known_as.get(thread, thread)
        call = self._waiting.pop(thread, None)
        self._alive.pop(thread, None)
        self.superseded.add(thread)
        if call is not None and call.name in EXECS:
            call.pid = leader
            self._waiting[leader] = call

    def _mode(self, number: int, mode: str) -> None:
        if mode not in _MODES:
            raise RecordingError(
                f"{self.path}:{number}: a process in {mode} mode: not a program of x86, and this "
                "is a model of x86 page tables"
            )
        self.modes.add(mode)

    # ------------------------------------------------------------------ whose line it is
    def _attach(self, m) -> None:  # type: ignore[no-untyped-def]
        pid = int(m[1])
        if m[2] == "attached":
            self.attached.add(pid)
            if pid not in self.known_as:
                self._alive.setdefault(pid)
        elif m[2] == "detached":
            self._alive.pop(self.known_as.get(pid, pid), None)

    def _who(self, said: int | None) -> int:
        """Return the process of a line that names one, or none."""
        if said is None:
            if len(self._alive) == 1:
                return next(iter(self._alive))
            self._alive.setdefault(0)
            return 0
        self.heard.add(said)
        if said in self._alive:
            return said
        if said in self.known_as:
            return self.known_as[said]
        unnamed = 0 in self._alive and 0 not in self.known_as.values()
        if unnamed and (self.attached or not self._makes_another()):
            self.known_as[said] = 0  # the first process, whose number stood nowhere so far
            return 0
        self._alive[said] = None
        return said

    def _makes_another(self) -> bool:
        """Whether the first process is making another, which may be heard of at once."""
        return any(0 in x and x[0].name in CLONES for x in (self._waiting, self._cut))

    def _resumes(self, said: int | None, name: str | None) -> int:
        if said is None and len(self._alive) != 1:
            asleep = [p for p, c in self._waiting.items() if c.name == name]
            if len(asleep) == 1:
                return asleep[0]
        mine = self._waiting.get(0)
        if said is not None and said not in self._alive and mine is not None and mine.name == name:
            self.known_as.setdefault(said, 0)
        return self._who(said)
