"""A paging mode as a table: what each kind of row becomes, hooked or not.

    class Announced(TableMode):
        name, title = "announced", "shadow with announcements"
        mechanisms = Mechanism                       # an IntEnum of what carries a row
        rules = {
            Op.SET_PTE: Rule(("set_pte", "set_pte_at"), Mechanism.CALL, Mechanism.TRAP),
            Op.MODIFY_PROT_COMMIT: As(Op.SET_PTE),   # carried as a store is
            Op.ALLOC_PTE: Rule(("alloc_pte",), Mechanism.CALL, Cannot("no table is announced")),
            Op.FAULT: Mechanism.FAULT,               # whatever is hooked
        }

        def count(self, trace, mechanism, times, log): ...

A kind that has no rule costs nothing (mechanism 0). From the table follow: which hooks a mode
reads, which of them act together, what carries each row, why a design cannot run, the classes of
hook sets on a trace, the mode's text and the names of its mechanisms.

Where a design cannot run for several reasons, a replay names that of the first row; a class names
them in the catalogue's order of hooks, then in the order of kinds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar, Final

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import Flag, Op
from pvmmu.hooks import NO_HOOKS, HookSet, catalogue
from pvmmu.modes.base import covered_hooks
from pvmmu.modes.classes import make_partition
from pvmmu.modes.outcome import AT_ONCE, Delays, Infeasible, Outcome, counts_of_rows, outcome
from pvmmu.modes.partition import Partition, Space

#: No kind of any table.
_SPARED_KIND: Final = np.int64(-1)


@dataclass(frozen=True)
class Cannot:
    """A design for which this is the rule cannot run, for a `reason` of one clause."""

    reason: str


@dataclass(frozen=True)
class As:
    """The row is carried as one of another `kind`, a key of the table."""

    kind: int


@dataclass(frozen=True)
class Rule:
    """What a kind of row becomes.

    Parameters
    ----------
    hooks : tuple of str
        Any one of them hooks it.
    hooked, unhooked : int, As, Cannot or Rule
        A mechanism; or as above; or a rule again.
    """

    hooks: tuple[str, ...]
    hooked: Step
    unhooked: Step


Step = int | As | Cannot | Rule
Table = Mapping[int, Step]


class TableMode:
    """A mode whose `rules` say what each kind of row becomes; see the module.

    Attributes
    ----------
    name, title : str
        Of the mode: in texts, and in lists for readers.
    rules : mapping of int to int, As, Cannot or Rule
        Kind of a row (an `Op`, unless `kinds` tells more apart) -> what it becomes.
    mechanisms : type of IntEnum
        What a row may become; 0 is nothing.
    delays : Delays
        Which of them may wait in a queue.
    needs : mapping of str to str
        Hooks without which no trace can be replayed, and why.
    spares : tuple of str
        Of ``flush_tlb_multi`` and ``exit_mmap``, whose native implementation is rows of the trace
        (`Flag.NATIVE_ONLY`): those with which these rows are nothing.
    pins : tuple of str
        Hooks that change the kinds of rows, beside what the table says of them.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    rules: ClassVar[Table] = {}
    mechanisms: ClassVar[type[IntEnum]]
    delays: ClassVar[Delays] = AT_ONCE
    needs: ClassVar[Mapping[str, str]] = {}
    spares: ClassVar[tuple[str, ...]] = ()
    pins: ClassVar[tuple[str, ...]] = ()

    def kinds(self, trace: Trace, pins: HookSet) -> np.ndarray:
        """Return the kind of each row: its operation, unless the mode tells more apart.

        Parameters
        ----------
        trace : Trace
            The operations.
        pins : HookSet
            Those of the hooks `pins` that are there.

        Returns
        -------
        unsigned int[row]
        """
        return trace["op"]

    def spared(self, trace: Trace, hook: str, kinds: np.ndarray) -> np.ndarray:
        """Return the rows that are nothing where a hook of `spares` is there: bool[row]."""
        return native_rows_of(trace, hook)

    def pinned_as(self, trace: Trace, pins: HookSet) -> Hashable:
        """Return what the hooks `pins` that are there change; equal where they change the same."""
        return None

    def also(self, trace: Trace, hooks: HookSet, carried: Mapping[int, Step]) -> Hashable:
        """Return what some hooks change beside the mechanisms of kinds, `carried`."""
        return None

    def prepared(self, trace: Trace) -> Trace:
        """Return the trace whose rows are carried: `trace`, unless the mode adds some to it."""
        return trace

    def rules_on(self, trace: Trace) -> Table:
        """Return the table on the platform of `trace`."""
        return self.rules

    def every_table(self, trace: Trace) -> Iterable[Table]:
        """Return the tables on all platforms: hooks are grouped alike on all traces."""
        return (self.rules_on(trace),)

    def refuses(self, trace: Trace) -> str:
        """Return why no guest like that of `trace` can run, if so."""
        return ""

    def count(
        self, trace: Trace, mechanism: np.ndarray, times: np.ndarray, log: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Carry the rows.

        Parameters
        ----------
        trace : Trace
            The operations.
        mechanism : uint8[row]
            What carries each.
        times : int64[row]
            How often each is made.
        log : bool
            Keep what happens row by row.

        Returns
        -------
        int64[N_EVENTS + 2], int64[n, 4]
            Counts and log (`pvmmu.modes.counters`).
        """
        raise NotImplementedError

    @property
    def spec(self) -> str:
        """Text of the mode: its name, and the parameters that differ from the default."""
        fields: tuple[dataclasses.Field[object], ...] = (
            dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        )
        given = [(f.name, getattr(self, f.name), f.default) for f in fields]
        return self.name + "".join(f":{k}={v}" for k, v, default in given if v != default)

    @property
    def names(self) -> dict[int, str]:
        """Names of the mechanisms, for readers."""
        return {int(m): m.name.lower().replace("_", " ") for m in self.mechanisms}

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to `trace`, if only its feasibility."""
        names = tuple(n for group in self.groups(trace) for n in group if n not in self.needs)
        return covered_hooks(trace, (*names, *self.pins)) | HookSet.of(*self.needs)

    def groups(self, trace: Trace) -> tuple[tuple[str, ...], ...]:
        """Return the hooks of the table in groups that share no kind of row, in their order."""
        found = [{name} for name in (*self.needs, *self.spares)]
        for mine in (
            hooks_of(rules, kind) - set(self.pins)
            for rules in self.every_table(trace) for kind in rules
        ):  # fmt: skip
            joined = [g for g in found if g & mine]
            rest = [g for g in found if not g & mine]
            found = [*rest, mine.union(*joined)] if mine else found
        bit = {name: h.bit for name, h in catalogue().items()}
        found = [g - set(self.pins) for g in found if g - set(self.pins)]
        ordered = (tuple(sorted(g, key=bit.__getitem__)) for g in found)
        return tuple(sorted(ordered, key=lambda g: bit[g[0]]))

    def mechanism_table(self, trace: Trace, hooks: HookSet) -> tuple[np.ndarray, dict[int, str]]:
        """Return the mechanism of each kind, and why some kinds cannot be carried.

        Returns
        -------
        table : uint8[kind]
        broken : dict of int to str
            Kind -> reason.
        """
        rules = self.rules_on(trace)
        table, broken = np.zeros(max(rules, default=0) + 256, np.uint8), {}
        for kind in rules:
            step = resolve(rules, kind, hooks)
            if isinstance(step, Cannot):
                broken[int(kind)] = step.reason
            else:
                table[kind] = step
        return table, broken

    def mechanism_of_rows(self, trace: Trace, hooks: HookSet) -> np.ndarray | Infeasible:
        """Return what carries each row, uint8[row], or why one cannot be carried."""
        reason = self.refuses(trace)
        lacks = next((why for name, why in self.needs.items() if name not in hooks), reason)
        if reason or lacks:
            return Infeasible(reason or lacks)
        trace = self.prepared(trace)
        kinds = self.kinds(trace, hooks & HookSet.of(*self.pins))
        table, broken = self.mechanism_table(trace, hooks)
        out: np.ndarray = table[kinds]
        cannot = np.isin(kinds, list(broken)) if broken else None
        for name in self.spares:
            if name in hooks:
                spared = self.spared(trace, name, kinds)
                out[spared] = 0
                if cannot is not None:
                    cannot[spared] = False
        if cannot is not None and cannot.any():
            row = int(cannot.argmax())
            return Infeasible(broken[int(kinds[row])], row)
        return out

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay `trace` under `hooks`; return what happened, or why it cannot be.

        With `log`, the outcome tells row by row (`Outcome.log`).
        """
        mechanism = self.mechanism_of_rows(trace, hooks)
        if isinstance(mechanism, Infeasible):
            return mechanism
        runs = [self.count(trace, mechanism, times, log) for times in counts_of_rows(trace)]
        return outcome(runs, mechanism, self.names, self.delays)

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition the hook sets of `space` into classes that `trace` cannot tell apart."""
        rules, refused = self.rules_on(trace), self.refuses(trace)
        groups = self.groups(trace)
        met: dict[HookSet, list[int]] = {}

        def signature(pins: HookSet, group: Sequence[str], subset: HookSet) -> object:
            if group is self.pins:
                return self.pinned_as(trace, subset)
            if refused:
                return Infeasible(refused)
            for name in group:
                if name in self.needs and name not in subset:
                    return Infeasible(self.needs[name])
            if pins not in met:
                met[pins] = self._kinds_met(trace, pins)
            mine, hooks, first = set(group), pins | subset, group is groups[0]
            kinds = [
                k
                for k in met[pins]
                if hooks_of(rules, k) & mine or (first and not hooks_of(rules, k) - set(self.pins))
            ]
            steps = [resolve(rules, k, hooks) for k in kinds]
            bad = next((s for s in steps if isinstance(s, Cannot)), None)
            if bad:
                return Infeasible(bad.reason)
            spared = [
                n in subset and bool(native_rows_of(trace, n).any())
                for n in group
                if n in self.spares
            ]
            also = self.also(trace, subset, dict(zip(kinds, steps, strict=True)))
            return tuple(steps), tuple(spared), also

        return make_partition(space, self.pins, groups, signature)

    def _kinds_met(self, trace: Trace, pins: HookSet) -> list[int]:
        """Return the kinds that occur and have a rule."""
        trace = self.prepared(trace)
        kinds = self.kinds(trace, pins)
        for name in self.spares:
            if name in pins:
                kinds = np.where(self.spared(trace, name, kinds), _SPARED_KIND, kinds)
        rules = self.rules_on(trace)
        return [k for k in np.unique(kinds).tolist() if k in rules]


def native_rows_of(trace: Trace, hook: str) -> np.ndarray:
    """Return the rows that only a kernel without a hook has: bool[row] (kept with the trace)."""
    key = f"native rows of {hook}"
    if key not in trace.derived:
        behind = (trace["flags"] & Flag.NATIVE_ONLY) != 0
        load = trace["op"] == Op.LOAD_CR3
        trace.derived[key] = behind & (load if hook == "exit_mmap" else ~load)
    out: np.ndarray = trace.derived[key]
    return out


def resolve(rules: Table, kind: int, hooks: HookSet) -> int | Cannot:
    """Return what a kind of row becomes under some hooks: a mechanism, or why it cannot."""
    step = rules[kind]
    while isinstance(step, Rule | As):
        if isinstance(step, As):
            step = rules[step.kind]
        else:
            step = step.hooked if any(n in hooks for n in step.hooks) else step.unhooked
    return step


def hooks_of(rules: Table, kind: int) -> set[str]:
    """Return the hooks that may change what a kind of row becomes."""

    def of(step: Step) -> set[str]:
        if isinstance(step, As):
            return of(rules[step.kind])
        if isinstance(step, Rule):
            return {*step.hooks, *of(step.hooked), *of(step.unhooked)}
        return set()

    return of(rules[kind])


def hooks_read(rules: Table) -> HookSet:
    """Return the hooks that a table reads."""
    return HookSet.of(*(name for kind in rules for name in hooks_of(rules, kind)))


def no_hooks(rules: Table) -> dict[int, int]:
    """Return what each kind becomes where nothing is hooked; kinds that cannot be are left out."""
    steps = {kind: resolve(rules, kind, NO_HOOKS) for kind in rules}
    return {int(k): int(s) for k, s in steps.items() if not isinstance(s, Cannot)}
