"""What a design adds to a whole program: instructions beyond those that it executes natively.

    today = whole_program(trace, "linux-6.1", "direct")
    print(today.text())                  # natively ... instructions; under ... it adds 110 %
    print(today.change(better).text())   # takes 9 points off, or: no measurable difference

The native instructions of recorded programs ship as data (``data/truth/programs.csv``), with what
else they pay for: system calls, context switches, entries read. Prices are measured ones. A change
is a share of all that the program executes under its design, and below `MATERIAL` it is none.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.costs import CostTable, get_costs
from pvmmu.errors import CostError, ModeError, Unsupported, did_you_mean
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import Op
from pvmmu.hooks import HookSet
from pvmmu.modes.events import EVENTS, Event, column
from pvmmu.paths import data_path
from pvmmu.replay.compare import Comparison
from pvmmu.replay.counts import replay

#: Share of the whole below which a difference is not worth a word.
MATERIAL: Final = 0.02
#: The measured table of each mode.
TABLES: Final[Mapping[str, str]] = {
    "direct": "xen-4.17-instructions",
    "shadow": "kvm-6.1-shadow-instructions",
    "nested": "kvm-6.1-nested-instructions",
}
#: Category, as figures colour it, of what is priced beside events.
_CATEGORIES: Final = {
    "system_calls": "hypercall", "switches": "hypercall", "exits": "trap", "entries_read": "store",
    "set_pte": "store", "pte_wrprotect": "store", "pte_clear_young": "store",
    "modify_prot_commit": "store", "release_pte": "work", "release_pmd": "work",
    "release_pud": "work", "pgd_free": "work", "sub_update_va_mapping": "work",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What changes from one design to another, as a share of the whole.

    Parameters
    ----------
    points : float
        Percentage points of the native instructions that the other design takes off; negative
        if it adds.
    share : float
        The same as a share (0 to 1) of all that the program executes under the first design.
    """

    points: float
    share: float

    @property
    def material(self) -> bool:
        """Whether it is worth a word: at least `MATERIAL` of the whole."""
        return abs(self.share) >= MATERIAL

    def text(self) -> str:
        """Return it in words."""
        if not self.material:
            return (
                f"no measurable difference ({self.points:.1f} points, {abs(self.share):.1%} of "
                f"the whole)"
            )
        word = "takes {:.0f} points off" if self.points > 0 else "adds {:.0f} points"
        return f"{word.format(abs(self.points))} ({abs(self.share):.0%} of the whole program)"


@dataclass(frozen=True)
class Whole:
    """A program under a design.

    Parameters
    ----------
    program, hooks, mode : str
        Names.
    native : float
        Instructions that an iteration executes natively.
    parts : Series of float64[key]
        Instructions that the design adds, by what they are for: names of events, operations, and
        context.
    error : float
        Relative error of their sum that 95 % of unseen programs stay within.
    """

    program: str
    hooks: str
    mode: str
    native: float
    parts: pd.Series
    error: float

    @property
    def added(self) -> float:
        """Instructions that the design adds."""
        return float(self.parts.sum())

    @property
    def share(self) -> float:
        """What it adds, relative to the native instructions (1 is as much again)."""
        return self.added / self.native

    @property
    def range(self) -> tuple[float, float]:
        """Least and greatest `share` by the table's error."""
        return self.share * (1 - self.error), self.share * (1 + self.error)

    def by_category(self) -> pd.Series:
        """Return what is added, relative to the native instructions, by category of figures."""
        names = {column(e): info.category for e, info in EVENTS.items()} | _CATEGORIES
        shares: pd.Series = (self.parts / self.native).groupby(names.__getitem__).sum()
        return shares

    def change(self, other: Whole) -> Change:
        """Return what changes from this design to the `other` one.

        Raises
        ------
        ModeError
            They are of different programs.
        """
        if self.program != other.program:
            raise ModeError(f"{self.program} and {other.program} are different programs")
        less = self.added - other.added
        return Change(100 * less / self.native, less / (self.native + self.added))

    def text(self) -> str:
        """Return it in words: instructions, and what is added in percent."""
        low, high = self.range
        return (
            f"natively {self.program} executes {self.native:,.0f} instructions; under {self.hooks} "
            f"in mode {self.mode} it executes {self.share:.0%} more ({low:.0%} to {high:.0%})"
        )


def known_programs() -> pd.DataFrame:
    """Return the programs whose native instructions are known.

    Returns
    -------
    DataFrame
        By name: ``native`` (instructions of an iteration), ``system_calls``, ``switches``,
        ``entries_read``.
    """
    return _programs().copy()


@functools.cache
def _programs() -> pd.DataFrame:
    return pd.read_csv(data_path("truth", "programs.csv"), index_col="program")


def whole_program(
    trace: Trace, hooks: HookSet | str, mode: str = "direct", costs: CostTable | str | None = None
) -> Whole:
    """Return what a design adds to a recorded program.

    Parameters
    ----------
    trace : Trace
        Its stream, under the name of a known program (see `known_programs`).
    hooks : HookSet or str
        The design's hooks; see `HookSet.parse`.
    mode : str
        Its paging mode.
    costs : CostTable or str, optional
        Prices in instructions; default: the measured ones of the mode.

    Returns
    -------
    Whole
        In instructions.

    Raises
    ------
    CostError
        Nothing is known of the program's native instructions, or of prices in this mode.
    Unsupported
        The design cannot run.
    """
    programs = _programs()
    if trace.name not in programs.index:
        hint = did_you_mean(trace.name, programs.index)
        raise CostError(f"no native instructions are known of {trace.name!r}{hint}")
    hooks = HookSet.parse(hooks)
    counts = replay(trace, hooks, mode)
    table = get_costs(costs or _table_of(mode))
    if counts.infeasible is not None:
        raise Unsupported(f"{hooks.short} in {mode}: {counts.status}")
    known = programs.loc[trace.name]
    parts = table.parts(things(trace, counts.low) | known.drop("native").to_dict())
    error = table.error[1] if table.error else 0.0
    return Whole(trace.name, hooks.short, mode, float(known["native"]), parts, error)


def change_of_run(c: Comparison) -> Change | None:
    """Return what the first design of a comparison changes of the whole run, against the second.

    Parameters
    ----------
    c : Comparison
        Of at least two designs.

    Returns
    -------
    Change or None
        None where that is not known: a program whose native instructions were not measured, a mode
        other than ``direct``, a design that cannot run.
    """
    a, b = c.designs[:2]
    runs = all(k.infeasible is None for k in c.counts[:2])
    if {a.mode, b.mode} != {"direct"} or not runs or c.trace.name not in _programs().index:
        return None
    before, after = (whole_program(c.trace, d.hooks, d.mode) for d in (b, a))
    return before.change(after)


def _table_of(mode: str) -> str:
    name = mode.partition(":")[0]
    if name not in TABLES:
        raise CostError(f"no prices in instructions were measured for mode {mode!r}")
    return TABLES[name]


def things(trace: Trace, counts: np.ndarray) -> dict[str, float]:
    """Return how often everything happened that a table may price, by name.

    Parameters
    ----------
    trace : Trace
        The stream: its operations count, whatever carries them.
    counts : int64[N_EVENTS]
        Of its replay.
    """
    ops = np.bincount(trace["op"], minlength=max(Op) + 1)
    out = {o.name.lower(): float(ops[o]) for o in Op}
    return out | {column(e): float(counts[e]) for e in Event}
