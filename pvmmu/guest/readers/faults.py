"""Page faults that perf has recorded: who, when, at which address.

Known are the text of ``perf script`` for the tracepoints ``exceptions:page_fault_user`` and
``page_fault_kernel`` (``address=... error_code=...``) and for the event ``page-faults`` with ``-d``
(``-F pid,tid,time,event,addr``), and ``perf trace -F all``, which writes a file and an offset in
place of the addresses of files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pvmmu.errors import RecordingError
from pvmmu.guest.linux.faults import FETCH, READ, WRITE
from pvmmu.guest.readers.text_files import text_lines
from pvmmu.x86 import bits

#: How an access was made: not told.
UNKNOWN: Final = -1
_MAX_LINE: Final = 1 << 16
_USER_END: Final = 1 << 47
_SCRIPT: Final = re.compile(
    r"\s*(?:(?P<comm>\S.*?)\s+)??(?P<pid>\d{1,10})(?:/(?P<tid>\d{1,10}))?\s+(?:\[\d+\]\s+)?"
    r"(?P<time>\d{1,12}\.\d{1,9}):\s+(?:\d+\s+)?(?P<event>\S*page[-_]fault\S*?):\s*(?P<rest>.*)$"
)
_TRACEPOINT: Final = re.compile(
    r"address=(?:0x)?([0-9a-f]{1,16})\b.*?error_code=(?:0x)?([0-9a-f]+)"
)
_ADDRESS: Final = re.compile(r"([0-9a-f]{1,16})(?:\s+[0-9a-f]{1,16})*\s*$")
_TRACE: Final = re.compile(
    r"\s*(?P<time>\d{1,12}\.\d{1,6}) \([^)]*\): (?:(?P<comm>.*?)/(?P<tid>\d{1,10}) )?"
    r"(?:maj|min)fault \[.*\] => (?P<where>.*?)(?P<at>0x[0-9a-f]{1,16}) \((?P<how>..)\)$"
)
#: Of perf trace: memory whose addresses are written as such.
_ANONYMOUS: Final = ("", "//anon@", "[heap]@", "[stack]@", "anon_inode")


@dataclass(frozen=True)
class Fault:
    """A page fault.

    Parameters
    ----------
    time : float
        Seconds, of a clock that the recording tells.
    at : int
        Address (bytes), or offset in `path`.
    kind : int
        READ, WRITE or FETCH of `pvmmu.guest.linux.faults`; `UNKNOWN`.
    path : str
        The file that is mapped there, where the address itself is not told.
    """

    time: float
    at: int
    kind: int = UNKNOWN
    path: str = ""


@dataclass
class Faults:
    """The page faults of a recording.

    Parameters
    ----------
    path : Path
        Its file.
    of : dict of int to list of Fault
        Thread -> its faults in order; -1 where the recording names none.
    names : dict of int to str
        Thread -> the name that it had last.
    """

    path: Path
    of: dict[int, list[Fault]]
    names: dict[int, str]

    def __len__(self) -> int:
        return sum(map(len, self.of.values()))


def read_faults(path: Path) -> Faults:
    """Read page faults of perf (text, plain or compressed).

    Raises
    ------
    RecordingError
        The file cannot be read, holds no fault, or no addresses; names file and line.
    """
    out = Faults(path, {}, {})
    for number, line in text_lines(path, "utf-8", _MAX_LINE, "replace"):
        text = line.rstrip()
        if m := _SCRIPT.match(text):
            fault = _of_script(path, number, m)
        elif m := _TRACE.match(text):
            where, at = m["where"], int(m["at"], 16)
            known = where in _ANONYMOUS or where.startswith("[")
            kind = FETCH if m["how"][0] == "x" and not known else UNKNOWN
            fault = Fault(
                float(m["time"]) / 1000, at, kind, "" if known else where.removesuffix("@")
            )
        else:
            continue  # banners, call chains, system calls
        if fault is None:
            continue
        groups = m.groupdict()
        tid = int(groups.get("tid") or groups.get("pid") or -1)
        out.of.setdefault(tid, []).append(fault)
        out.names[tid] = groups.get("comm") or ""
    if not out.of:
        raise RecordingError(
            f"{path}: no page fault of perf in it (perf record -e page-faults -c 1 -d ..., then "
            "perf script -F pid,tid,time,event,addr)"
        )
    return out


def _of_script(path: Path, number: int, m: re.Match[str]) -> Fault | None:
    """Return the fault of a line of perf script; None for one at a kernel address."""
    time, rest = float(m["time"]), m["rest"]
    if t := _TRACEPOINT.search(rest):
        code = int(t[2], 16)
        kind = WRITE if code & bits.PF_WR else FETCH if code & bits.PF_ID else READ
        return Fault(time, int(t[1], 16), kind) if int(t[1], 16) < _USER_END else None
    a = _ADDRESS.match(rest)
    if a is None:
        raise RecordingError(
            f"{path}:{number}: page faults without addresses: record with perf record -d, and "
            "print with perf script -F pid,tid,time,event,addr"
        )
    return Fault(time, int(a[1], 16)) if int(a[1], 16) < _USER_END else None
