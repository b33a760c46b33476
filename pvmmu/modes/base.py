"""What every paging mode offers to replay and sweep."""

from __future__ import annotations

from typing import ClassVar, Protocol

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.trace import Trace
from pvmmu.guest.vocabulary import Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.outcome import Infeasible, Outcome
from pvmmu.modes.partition import Partition, Space


class Mode(Protocol):
    """A paging mode: how the hypervisor virtualizes the guest's tables."""

    name: ClassVar[str]
    title: ClassVar[str]

    @property
    def spec(self) -> str:
        """Text that `pvmmu.modes.get_mode` turns into this mode again."""

    def relevant_hooks(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to `trace`, if only its feasibility."""

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition the hook sets of `space` into classes that `trace` cannot tell apart."""

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome | Infeasible:
        """Replay `trace` under `hooks`; return what happened, or why it cannot be.

        With `log`, the outcome tells row by row (`Outcome.log`).
        """


def covered_hooks(trace: Trace, names: tuple[str, ...]) -> HookSet:
    """Return those of the hooks called `names` that cover an operation of `trace`."""
    present = {Op(o) for o in np.unique(trace["op"])}
    return HookSet.of(*(n for n in names if present & set(catalogue()[n].operations)))


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return `value` if it is among the `allowed`; `what` it is a value of is named in the error.

    Raises
    ------
    ModeError
        It is not; lists what is.
    """
    if value not in allowed:
        raise ModeError(f"{what} {value!r} does not exist; there are {', '.join(allowed)}")
    return value
