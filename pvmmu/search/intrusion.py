"""Intrusiveness: what a hook set asks of the kernel that carries it, as one number.

Hooks, members of the ops structure, call sites in generic code and files of mm/ touched, weighed by
the user. All but the files are sums over the hooks; a file touched by two hooks counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pvmmu._jit import kernel
from pvmmu.hooks import HookSet
from pvmmu.hooks.callsites import files_touched, generic_calls


class Weights(BaseModel):
    """Weights of what makes a hook set intrusive; each not negative.

    Parameters
    ----------
    hooks : float
        Of each hook.
    members : float
        Of each member of the ops structure.
    call_sites : float
        Of each call in generic code.
    files : float
        Of each file of mm/ with such a call.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    hooks: float = Field(1.0, ge=0, allow_inf_nan=False)
    members: float = Field(0.0, ge=0, allow_inf_nan=False)
    call_sites: float = Field(0.0, ge=0, allow_inf_nan=False)
    files: float = Field(0.0, ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class Intrusion:
    """Intrusiveness of any hook set.

    Parameters
    ----------
    kernel : str
        Whose call sites are counted; see `pvmmu.hooks.callsites.callsite_kernels`.
    weights : Weights
        What counts how much.
    """

    kernel: str = "6.18.35"
    weights: Weights = field(default_factory=Weights)

    def of(self, hooks: HookSet) -> float:
        """Return the intrusiveness of `hooks` (points: what `describe` counts, weighted)."""
        w = self.weights
        files = len(set().union(*(files_touched(h, self.kernel) for h in hooks)))
        return float(
            w.hooks * len(hooks) + w.members * hooks.members
            + w.call_sites * generic_calls(hooks, self.kernel) + w.files * files
        )  # fmt: skip

    def cube(self, players: Sequence[HookSet], base: HookSet) -> np.ndarray:
        """Return the intrusiveness of every set.

        Parameters
        ----------
        players : sequence of HookSet
            What varies; disjoint.
        base : HookSet
            What every set contains.

        Returns
        -------
        float64[2**len(players)]
            Bit *i* of the index is ``players[i]``.
        """
        names = sorted(set().union(*(files_touched(h, self.kernel) for h in HookSet.every())))
        number = {name: i for i, name in enumerate(names)}

        def files(hooks: HookSet) -> np.ndarray:
            out = np.zeros(len(names), np.bool_)
            out[[number[f] for h in hooks for f in files_touched(h, self.kernel)]] = True
            return out

        rest = Intrusion(self.kernel, self.weights.model_copy(update={"files": 0.0}))
        alone = np.array([rest.of(p) for p in players])
        touched = np.array([files(p) for p in players]).reshape(len(players), len(names))
        out: np.ndarray = _sums(alone, touched, files(base), rest.of(base), self.weights.files)
        return out

    def describe(self, hooks: HookSet) -> dict[str, int]:
        """Return what `hooks` consist of: hooks, members, call sites, files."""
        files = set().union(*(files_touched(h, self.kernel) for h in hooks))
        return {
            "hooks": len(hooks), "members": hooks.members,
            "call_sites": generic_calls(hooks, self.kernel), "files": len(files),
        }  # fmt: skip


@kernel
def _sums(alone, touched, base_files, base, per_file):  # type: ignore[no-untyped-def]
    """Add up over all sets, each from the one without its highest member."""
    n = alone.shape[0]
    out, files = np.empty(1 << n), np.zeros((1 << n, base_files.shape[0]), np.bool_)
    out[0], files[0] = base, base_files
    for i in range(n):
        for s in range(1 << i):
            t = s | (1 << i)
            out[t] = out[s] + alone[i]
            for f in range(base_files.shape[0]):
                files[t, f] = files[s, f] or touched[i, f]
    if per_file > 0:
        for s in range(1 << n):
            out[s] += per_file * files[s].sum()
    return out
