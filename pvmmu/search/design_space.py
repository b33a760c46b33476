"""The board on which interfaces compete: hook sets, their price in each mode, their regret."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from pvmmu.costs import CostTable
from pvmmu.errors import SearchError
from pvmmu.hooks import NO_HOOKS, HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.soundness import Level
from pvmmu.search.candidates import candidates, sets_of_hooks
from pvmmu.search.cells import Cell
from pvmmu.search.cheapest_subset import BACKENDS, Offers
from pvmmu.search.engine import Search
from pvmmu.search.intrusiveness import Intrusiveness
from pvmmu.search.pricing import Costs, Draws, Prices, tables_of, weights_of


class DesignSpace:
    """Hook sets in some modes, on a mix of workloads, under prices.

    Parameters
    ----------
    found : Search
        Counts of all hook sets.
    modes : sequence of str
        Modes that the interface has to serve.
    workloads : mapping of str to float, optional
        Weight of each trace: its share in the operations of the mix. Default: all alike.
    costs : str, CostTable, or mapping of mode to either
        Prices; one table for all modes, or each mode under its own hypervisor's.
    vary : sequence of str or HookSet, optional
        What may be there or not: hooks, or bundles of them (``"activate_mm+dup_mmap"``). Default:
        every hook that changes something in one of the modes and that none of them requires.
    always : HookSet or str
        Hooks that every set contains, beside those required.
    intrusiveness : Intrusiveness
        How intrusiveness is counted.
    draws : Draws
        How prices are varied within their ranges to test answers.
    backend : str
        ``free``: the backend of a mode overrides those of the offered hooks that pay, and leaves
        the others native, as pv_ops allow; ``all``: it uses all that it is offered
        (`pvmmu.search.cheapest_subset`).
    admit : str
        The worst verdict with which a design may compete: ``sound``, ``sound on one CPU``, ``needs
        a new call``, ``warns`` or ``corrupts``. Designs are judged on all shipped streams together.

    Attributes
    ----------
    base : HookSet
        What every set contains: `always`, what the modes require, and the least of what else makes
        a set work in all of them (`completion`).
    players : tuple of HookSet
        What varies; bit *i* of a set's number is ``players[i]``.

    Raises
    ------
    SearchError
        A weight is wrong, too much varies, or no set works in all the modes.
    CostError
        An event occurs that a cost table does not price.
    """

    def __init__(
        self, found: Search, modes: Sequence[str], workloads: Mapping[str, float] | None = None,
        costs: Costs | Mapping[str, Costs] = "p4-2006", *,
        vary: Sequence[str | HookSet] | None = None, always: HookSet | str = NO_HOOKS,
        intrusiveness: Intrusiveness | None = None, draws: Draws | None = None,
        backend: str = BACKENDS[0], admit: str = Level.SOUND.words,
    ) -> None:  # fmt: skip
        self.found, self.intrusiveness, self.backend = (
            found,
            intrusiveness or Intrusiveness(),
            backend,
        )
        self.admit = Level.parse(admit)
        self._known: dict[int, list[int]] = {}
        self.modes = [get_mode(m).spec for m in modes]
        self.workloads = weights_of(found, workloads)
        if not self.modes:
            raise SearchError("balance: no mode is named")
        self.cells: dict[str, list[Cell]] = {
            m: [found[trace, m] for trace in self.workloads] for m in self.modes
        }
        self.prices = Prices(self.cells, tables_of(costs, self.modes), draws or Draws())
        judged = {m: found.verdicts(m) for m in self.modes}
        partitions = [c.partition for cells in self.cells.values() for c in cells]
        partitions += [v.partition for v in judged.values()]
        self.required = HookSet(0)
        for p in partitions:
            self.required |= p.required | p.space.always
        fixed = self.required | HookSet.parse(always)
        relevant_hooks, elsewhere = HookSet(0), HookSet(0)
        for p in (c.partition for cells in self.cells.values() for c in cells):
            relevant_hooks |= p.relevant_hooks
        for v in judged.values():
            elsewhere |= v.partition.relevant_hooks - relevant_hooks
        self._offers = {
            m: Offers(
                [c.partition for c in cells], backend,
                (judged[m].partition, judged[m].admits(self.admit)),
            )
            for m, cells in self.cells.items()
        }  # fmt: skip
        players = candidates(vary, relevant_hooks, fixed)
        varies = HookSet(sum(p.mask for p in players))
        self._settle(players, [HookSet.of(n) for n in elsewhere - fixed - varies], fixed)

    def _settle(self, players: list[HookSet], elsewhere: list[HookSet], fixed: HookSet) -> None:
        """Find the least addition with which a set works everywhere, and what is left to vary.

        What only streams `elsewhere` need, none of these workloads, is added or not; it does not
        vary.
        """
        optional, players = players, [*players, *elsewhere]
        joint, rows = self._joint(players, fixed)
        works = np.asarray((rows >= 0).all(axis=1))[joint]
        if not works.any():
            raise SearchError(
                f"balance: no hook set works in all of {', '.join(self.modes)}; look at them apart"
            )
        intrusiveness = self.intrusiveness.cube(players, fixed)
        least = int(np.flatnonzero(works)[np.argmin(intrusiveness[works])])
        taken = [p for i, p in enumerate(players) if least >> i & 1]
        self.completion = HookSet(sum(p.mask for p in taken))
        self.base = fixed | self.completion
        self.players = tuple(p for p in optional if p not in taken)
        self.joint, self._rows = self._joint(list(self.players), self.base)
        self.intrusiveness_of_sets = self.intrusiveness.cube(self.players, self.base)

    def _joint(self, players: list[HookSet], base: HookSet) -> tuple[np.ndarray, np.ndarray]:
        """Return the joint class of every set, and the class of each joint class in each mode.

        Returns
        -------
        int32[2**players], int32[joint class, mode]
        """
        names = [name for p in players for name in p]
        spread = sets_of_hooks(players, names)
        joint, rows = np.zeros(2 ** len(players), np.int64), np.zeros((1, 0), np.int32)
        for offers in self._offers.values():
            kinds = offers.partition.n + 1
            codes, keys = pd.factorize(joint * kinds + offers.cube(names, base)[spread] + 1)
            joint = codes.astype(np.int64)
            rows = np.column_stack([rows[keys // kinds], (keys % kinds - 1).astype(np.int32)])
        return joint.astype(np.int32), rows

    def revised(
        self, workloads: Mapping[str, float] | None = None,
        costs: Costs | Mapping[str, Costs] | None = None,
        intrusiveness: Intrusiveness | None = None,
    ) -> DesignSpace:  # fmt: skip
        """Return a board of the same sets under other weights or prices, at slider speed.

        Parameters
        ----------
        workloads : mapping of str to float, optional
            Other weights of the same traces; zero is allowed, as long as one is not.
        costs, intrusiveness : optional
            As for `DesignSpace`.

        Raises
        ------
        SearchError
            A weight is wrong, or of a workload that is not on this board; a mode has no prices.
        """
        out = copy.copy(self)
        for name in self.__dict__.keys() & _computed(type(self)):
            del out.__dict__[name]
        if workloads is not None:
            known = weights_of(self.found, workloads)
            if set(known) - set(self.workloads):
                raise SearchError("balance: a workload that is not on this board has a weight")
            out.workloads = {t: known.get(t, 0.0) for t in self.workloads}
        if costs is not None:
            out.prices = Prices(self.cells, tables_of(costs, self.modes), self.prices.draws)
        if intrusiveness is not None:
            out.intrusiveness = intrusiveness
            out.intrusiveness_of_sets = intrusiveness.cube(self.players, self.base)
        return out

    # ------------------------------------------------------------------ sets
    def hooks(self, number: int) -> HookSet:
        """Return the hook set of `number`, whose bit *i* says that player *i* is in it."""
        chosen = (p.mask for i, p in enumerate(self.players) if number >> i & 1)
        return HookSet(self.base.mask | sum(chosen))

    def number(self, hooks: HookSet) -> int:
        """Return the number of the set of those players that `hooks` contains."""
        return sum(1 << i for i, p in enumerate(self.players) if p <= hooks)

    @property
    def names(self) -> list[str]:
        """Names of the players."""
        return ["+".join(p) for p in self.players]

    # ------------------------------------------------------------------ performance
    def cycles_of_classes(self, draw: int | None = None) -> np.ndarray:
        """Return cycles per operation of the mix: float64[mode, joint class], NaN if infeasible.

        Parameters
        ----------
        draw : int, optional
            Number of a draw of prices; default: the values of the tables.
        """
        costs = self._costs(draw)
        return np.array([cost[classes] for cost, classes in zip(costs, self._rows.T, strict=True)])

    def _costs(self, draw: int | None) -> list[np.ndarray]:
        """Return cycles per operation of the classes of each mode; the last is NaN: cannot run."""
        if draw is None:
            return [cost[:, 0] for cost in self._nominal]
        return [cost[:, draw] for cost in self._drawn]

    @cached_property
    def _nominal(self) -> list[np.ndarray]:
        """float64[class + 1, 1] for each mode, at the values of the tables."""
        return [self._priced(mode, self.prices.nominal) for mode in self.modes]

    @cached_property
    def _drawn(self) -> list[np.ndarray]:
        """float64[class + 1, draw] for each mode."""
        return [self._priced(mode, self.prices.drawn) for mode in self.modes]

    def _priced(self, mode: str, of: Callable[[str, Cell], np.ndarray]) -> np.ndarray:
        prices = [
            of(mode, cell) * (weight / cell.operations)
            for cell, weight in zip(self.cells[mode], self.workloads.values(), strict=True)
        ]
        return np.vstack(
            [self._offers[mode].least(prices), np.full((1, prices[0].shape[1]), np.nan)]
        )

    @cached_property
    def by_class(self) -> np.ndarray:
        """`cycles_of_classes` at the values of the tables: float64[mode, joint class]."""
        return self.cycles_of_classes()

    def cycles(self, mode: str, draw: int | None = None) -> np.ndarray:
        """Return cycles per operation of every set in `mode`: float64[set], NaN if infeasible.

        `draw` is the number of a draw of prices; None takes the values of the tables.
        """
        table = self.by_class if draw is None else self.cycles_of_classes(draw)
        out: np.ndarray = table[self._mode(mode)][self.joint]
        return out

    def _mode(self, mode: str) -> int:
        spec = get_mode(mode).spec
        if spec not in self.modes:
            raise SearchError(f"mode {mode!r} is not on this board ({', '.join(self.modes)})")
        return self.modes.index(spec)

    def cycles_of(self, hooks: HookSet | str, draw: int | None = None) -> pd.Series:
        """Return cycles per operation of `hooks`, any set, by mode; NaN where it cannot run
        (`draw`: as in `cycles`).
        """
        costs = zip(self._costs(draw), self._classes_of(HookSet.parse(hooks)), strict=True)
        return pd.Series([cost[number] for cost, number in costs], index=self.modes, name="cycles")

    def _classes_of(self, hooks: HookSet) -> list[int]:
        """Return the class of a hook set in each mode; -1 where it cannot run."""
        if hooks.mask not in self._known:
            self._known[hooks.mask] = [int(o.cube((), hooks)[0]) for o in self._offers.values()]
        return self._known[hooks.mask]

    @cached_property
    def native(self) -> pd.Series:
        """Cycles per operation of the same guests on bare hardware, at the prices of each mode.

        NaN if the search has no native mode.
        """
        rows = {m: self._native_at(self.prices.tables[m]) for m in self.modes}
        return pd.Series(rows, name="native")

    def _native_at(self, costs: CostTable) -> float:
        cells = [self.found.cells.get((trace, "native")) for trace in self.workloads]
        return sum(
            weight * (np.nan if cell is None else float(cell.cycles(costs)[0]) / cell.operations)
            for cell, weight in zip(cells, self.workloads.values(), strict=True)
        )

    def verdict_of(self, hooks: HookSet | str) -> str:
        """Return how well `hooks` work if all of them are used: the worst over the modes."""
        hooks = HookSet.parse(hooks)
        return max(self.found.verdicts(m).level_of(hooks) for m in self.modes).words

    # ------------------------------------------------------------------ flexibility
    @cached_property
    def best(self) -> pd.Series:
        """Least cycles per operation that any set on the board reaches in each mode."""
        return pd.Series(np.nanmin(self.by_class, axis=1), index=self.modes, name="best")

    @cached_property
    def regret_by_class(self) -> np.ndarray:
        """float64[mode, joint class]: cycles over the mode's best, less one; inf: cannot run."""
        return regrets(self.by_class)

    @property
    def regret(self) -> np.ndarray:
        """float64[set]: greatest regret over the modes (minimax is its least value)."""
        out: np.ndarray = self.regret_by_class.max(axis=0)[self.joint]
        return out

    def served(self, within: float) -> np.ndarray:
        """Return in how many modes each set is `within` a share of the mode's best: int64[set]."""
        out: np.ndarray = (self.regret_by_class <= within + 1e-12).sum(axis=0)[self.joint]
        return out

    @cached_property
    def performance_by_class(self) -> np.ndarray:
        """float64[joint class]: mean over the modes of cycles per operation."""
        mean: np.ndarray = self.by_class.mean(axis=0)
        return mean

    # ------------------------------------------------------------------ three objectives
    @cached_property
    def least(self) -> np.ndarray:
        """float64[joint class]: least intrusiveness of its sets."""
        out = np.full(len(self._rows), np.inf)
        np.minimum.at(out, self.joint, self.intrusiveness_of_sets)
        return out

    def members(self, joint_class: int) -> list[HookSet]:
        """Return the least intrusive sets of `joint_class`, which tie."""
        mine = (self.joint == joint_class) & (self.intrusiveness_of_sets == self.least[joint_class])
        return [self.hooks(int(i)) for i in np.flatnonzero(mine)]


def _computed(kind: type) -> set[str]:
    """Names of the cached properties of a class: what follows from the rest."""
    return {name for name, what in vars(kind).items() if isinstance(what, cached_property)}


def regrets(cycles: np.ndarray) -> np.ndarray:
    """Return cycles over the least of their mode, less one: float64[mode, ...]; NaN becomes inf."""
    best = np.nanmin(cycles, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(best > 0, cycles / best, np.where(cycles > 0, np.inf, 1.0)) - 1
    return np.where(np.isnan(cycles), np.inf, ratio)
