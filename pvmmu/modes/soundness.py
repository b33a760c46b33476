"""Which designs keep their pages: two images of each page-table entry, replayed.

A design can be counted and priced and yet not work. What takes effect at once overtakes what waits
in a queue: the entry as the kernel believes it to be, and as the hardware has it, differ until the
queue is sent. A design is judged on a stream by the first row at which that shows:

==============  ============================================================  ==================
lost update     what took effect at once is overwritten by an older update    corrupts
                of the same entry, which waited
stale read      generic mm reads, or the processor walks, an entry whose      warns
                update waits; or its lock is released meanwhile
A/D loss        a read and a later write stand for one atomic access, and     sound on one CPU
                another CPU may set the dirty bit in between
no such call    the same on a guest of several CPUs: it takes a call that     needs a new call
                returns the old entry, and no interface has one
dies            the design cannot run (`pvmmu.modes.outcome.Infeasible`)         dies
==============  ============================================================  ==================

Whether a queue happens to be full and is sent early depends on what else waits, so it does not
count: updates wait until their bracket ends. A mode without a queue has nothing that waits.

Measured (data/truth/designs): 45 hook sets of a real Linux 6.1 on a real Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum, unique
from typing import Final

import numpy as np

from pvmmu.errors import TraceError
from pvmmu.guest.promises import Promises, promises
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import N_OPS, Evidence, Op
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.base import Mode
from pvmmu.modes.effects import effects_table
from pvmmu.modes.outcome import Infeasible, Outcome
from pvmmu.modes.soundness_kernel import (
    APART,
    LOSES_DIRTY,
    LOST,
    READ_BACK,
    READS,
    STALE,
    UNLOCKS,
    WALKS,
    first_conflicts,
)


@unique
class Level(IntEnum):
    """How well a design works, best first."""

    SOUND = 0
    SOUND_ON_ONE_CPU = 1
    NEEDS_A_NEW_CALL = 2
    WARNS = 3
    CORRUPTS = 4
    DIES = 5

    @property
    def words(self) -> str:
        """For readers: ``sound on one CPU``."""
        return self.name.lower().replace("_", " ").replace("cpu", "CPU")

    @classmethod
    def parse(cls, words: str | Level) -> Level:
        """Return the level of that name, as `words` spells it.

        Raises
        ------
        TraceError
            There is none.
        """
        if isinstance(words, Level):
            return words
        for level in cls:
            if level.words == words:
                return level
        raise TraceError(f"no verdict {words!r} (there are {', '.join(x.words for x in cls)})")


@unique
class Kind(Enum):
    """What is wrong with a design; the value is the verdict that follows."""

    LOST_UPDATE = Level.CORRUPTS
    STALE_READ = Level.WARNS
    NO_SUCH_CALL = Level.NEEDS_A_NEW_CALL
    AD_LOSS = Level.SOUND_ON_ONE_CPU
    DIES = Level.DIES

    @property
    def words(self) -> str:
        """For readers: ``lost update``."""
        return "A/D loss" if self is Kind.AD_LOSS else self.name.lower().replace("_", " ")


@dataclass(frozen=True)
class Finding:
    """The first row of a stream that shows what is wrong.

    Parameters
    ----------
    kind : Kind
        What is wrong.
    trace : str
        Name of the stream.
    row, other : int
        Row that shows it, and the other row of the conflict (the update that waits); -1 none.
    operation, other_operation : str
        What they do, such as ``SET_PTE by move_page_tables``; empty where there is no row.
    reason : str
        One sentence.
    evidence : Evidence
        How it is known: `Evidence.INFERRED` where the trace does not record the read.
    """

    kind: Kind
    trace: str
    row: int
    other: int
    operation: str
    other_operation: str
    reason: str
    evidence: Evidence = Evidence.RECORDED


@dataclass(frozen=True)
class Verdict:
    """Whether a design works.

    Parameters
    ----------
    level : Level
        The worst of what was found.
    findings : tuple of Finding
        The first of each kind, worst first; empty where all is sound.
    """

    level: Level
    findings: tuple[Finding, ...] = ()

    @property
    def sound(self) -> bool:
        """Whether nothing at all was found."""
        return self.level == Level.SOUND

    @property
    def words(self) -> str:
        """The verdict for readers, such as ``corrupts``."""
        return self.level.words

    @property
    def reason(self) -> str:
        """Why, in one sentence; empty where all is sound."""
        return self.findings[0].reason if self.findings else ""

    @property
    def text(self) -> str:
        """Verdict and reason in one line."""
        return f"{self.words}: {self.reason}" if self.findings else self.words

    def to_json(self) -> dict[str, object]:
        """Return verdict and findings for JSON."""
        return {
            "verdict": self.words,
            "findings": [
                {
                    "kind": f.kind.words, "trace": f.trace, "row": f.row, "other_row": f.other,
                    "operation": f.operation, "other_operation": f.other_operation,
                    "reason": f.reason, "evidence": f.evidence.name.lower(),
                }
                for f in self.findings
            ],
        }  # fmt: skip


#: A table for rows whose effect is known: it is its own "mechanism".
_ITSELF: Final = np.tile(np.arange(256, dtype=np.uint8), (N_OPS, 1))
_NO_OLD_ENTRY: Final = "no call of the interface returns the old entry"


def soundness(trace: Trace, hooks: HookSet | str, mode: Mode | str) -> Verdict:
    """Judge a design on a stream.

    Parameters
    ----------
    trace : Trace
        Operations of the guest.
    hooks : HookSet or str
        What its kernel calls through the ops structure; see `HookSet.parse`.
    mode : Mode or str
        How the hypervisor virtualizes paging; see `pvmmu.modes.get_mode`.
    """
    hooks, mode = HookSet.parse(hooks), get_mode(mode)
    return judge(trace, mode, mode.run(trace, hooks))


def soundness_over(traces: Iterable[Trace], hooks: HookSet | str, mode: Mode | str) -> Verdict:
    """Judge a design on many streams together: the worst verdict, with the first of each kind.

    Parameters
    ----------
    traces : iterable of Trace
        Operations of guests.
    hooks, mode
        As for `soundness`.
    """
    hooks, mode = HookSet.parse(hooks), get_mode(mode)
    return worst(judge(trace, mode, mode.run(trace, hooks)) for trace in traces)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of `verdicts`, with the first finding of each kind."""
    found: dict[Kind, Finding] = {}
    for verdict in verdicts:
        for finding in verdict.findings:
            found.setdefault(finding.kind, finding)
    return _verdict(list(found.values()))


def judge(trace: Trace, mode: Mode, outcome: Outcome | Infeasible) -> Verdict:
    """Judge a design on a stream that was replayed already.

    Parameters
    ----------
    trace : Trace
        Operations of the guest.
    mode : Mode
        The paging mode.
    outcome : Outcome or Infeasible
        What its ``run`` returned for `trace`.
    """
    if isinstance(outcome, Infeasible):
        row = outcome.row
        what = _operation(trace, row)
        return _verdict([Finding(Kind.DIES, trace.name, row, -1, what, "", outcome.reason)])
    table = effects_table(mode)
    return _verdict(_conflicts(trace, table, outcome.mechanism) if table.any() else [])


def judge_effects(trace: Trace, effect: np.ndarray) -> Verdict:
    """Judge a stream of which is known what each row means for its entry.

    Parameters
    ----------
    trace : Trace
        Operations of the guest.
    effect : uint8[row]
        Sums of `pvmmu.modes.effects.Effect`.
    """
    return _verdict(_conflicts(trace, _ITSELF, effect))


def _verdict(found: list[Finding]) -> Verdict:
    found = sorted(found, key=lambda f: -f.kind.value)
    return Verdict(found[0].kind.value if found else Level.SOUND, tuple(found))


def _conflicts(trace: Trace, table: np.ndarray, mechanism: np.ndarray) -> list[Finding]:
    """Return where the two images differ and it shows."""
    relied = promises(trace)
    first = first_conflicts(
        table, trace["op"], mechanism, reliance(trace), relied.entry, trace["value"], trace["cpu"],
        relied.entries, trace.platform.vcpus,
    )  # fmt: skip
    out = []
    row, other = first[LOST].tolist()
    if row >= 0:
        a, b = _operation(trace, other), _operation(trace, row)
        why = f"{b} takes effect at once and is overwritten by the older {a}, which waits"
        out.append(Finding(Kind.LOST_UPDATE, trace.name, row, other, b, a, why))
    row, other = first[STALE].tolist()
    if row >= 0:
        out.append(_stale_read(trace, relied, row, other))
    row = int(first[APART, 0])
    if row >= 0:
        out.append(_dirty_loss(trace, row))
    return out


def reliance(trace: Trace) -> np.ndarray:
    """Return what the kernel relies on at each row as the kernel of this module takes it (kept).

    Returns
    -------
    uint8[row]
        Sums of `READS` and so on of `pvmmu.modes.soundness_kernel`.
    """
    if "reliance" not in trace.derived:
        p = promises(trace)
        trace.derived["reliance"] = (
            p.reads * READS + p.read_back * READ_BACK + p.walks * WALKS + p.unlocks * UNLOCKS
            + p.loses_dirty * LOSES_DIRTY
        ).astype(np.uint8)  # fmt: skip
    out: np.ndarray = trace.derived["reliance"]
    return out


def _stale_read(trace: Trace, relied: Promises, row: int, other: int) -> Finding:
    a, b = _operation(trace, other), _operation(trace, row)
    evidence = Evidence(int(trace["evidence"][row]))
    if row == other and relied.read_back[row]:
        why = f"generic mm reads an entry back while {a} of it waits"
        evidence = Evidence.INFERRED
    elif relied.reads[row]:
        why = f"{b} reads an entry of which {a} waits"
    elif relied.walks[row]:
        why = f"{b} walks to an entry of which {a} waits"
    else:
        why = f"the page-table lock is released while {a} waits"
        evidence = Evidence.INFERRED
    return Finding(Kind.STALE_READ, trace.name, row, other, b, a, why, evidence)


def _dirty_loss(trace: Trace, row: int) -> Finding:
    """Return the loss of a dirty bit: harmless on one CPU."""
    b = _operation(trace, row)
    evidence = Evidence(int(trace["evidence"][row]))
    if trace.platform.vcpus > 1:
        why = f"{b} of a live entry: {_NO_OLD_ENTRY}"
        return Finding(Kind.NO_SUCH_CALL, trace.name, row, -1, b, "", why, evidence)
    why = f"{b} of a live entry is a read and a write: a dirty bit set in between is lost"
    return Finding(Kind.AD_LOSS, trace.name, row, -1, b, "", why, evidence)


def _operation(trace: Trace, row: int) -> str:
    """Name the operation of a row and its caller; empty where there is no row."""
    if row < 0:
        return ""
    caller = int(trace["caller"][row])
    by = f" by {trace.callers[caller]}" if caller >= 0 else ""
    return f"{Op(int(trace['op'][row])).name}{by}"
