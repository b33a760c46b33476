"""What varies in a design space: hooks, or bundles of hooks that come together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from pvmmu.errors import SearchError
from pvmmu.hooks import HookSet

#: Hooks that may vary at once: a lattice of four million sets.
MAX_PLAYERS: Final = 22


def candidates(
    vary: Sequence[str | HookSet] | None, relevant_hooks: HookSet, fixed: HookSet
) -> list[HookSet]:
    """Return what varies, checked."""
    if vary is None:
        players = [HookSet.of(name) for name in relevant_hooks - fixed]
    else:
        players = [HookSet.parse(v) - fixed for v in vary]
        players = [p for p in players if p]
    seen = HookSet(0)
    for p in players:
        if seen & p:
            raise SearchError(f"balance: {next(iter(seen & p))!r} varies twice")
        seen |= p
    if len(players) > MAX_PLAYERS:
        raise SearchError(
            f"balance: {len(players)} hooks vary, the most is {MAX_PLAYERS}; "
            "name those that matter, or bundles (vary=), or hooks always there (always=)"
        )
    return players


def sets_of_hooks(players: list[HookSet], names: list[str]) -> np.ndarray:
    """Return for each set of players the set of their hooks: int64[2**players]."""
    out = np.zeros(1, np.int64)
    for p in players:
        bits = sum(1 << i for i, name in enumerate(names) if name in p)
        out = np.concatenate([out, out + bits])
    return out
