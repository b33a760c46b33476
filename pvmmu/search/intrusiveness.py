"""Intrusiveness: what a hook set asks of the kernel that carries it, as one number.

Hooks, members of the ops structure, call sites in generic code, files of mm/ touched; and what
maintainers ask about: files outside of arch/x86, users in mainline, what bare hardware pays at each
call site, what generic code has to promise. The user weighs them; two weightings are data
(``data/hooks/intrusion.toml``): `Weights.of`. All but files are sums over the hooks; a file touched
by two hooks counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pvmmu._jit import kernel
from pvmmu.hooks import HookSet
from pvmmu.hooks.burden import burden, outside_files, weighting
from pvmmu.hooks.callsites import callsites, files_touched


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
    outside : float
        Of each file outside of arch/x86 that the commits which brought the hooks touched.
    single_user : float
        Of each hook that at most one backend in mainline fills in.
    native_bytes : float
        Of each byte of code at the call sites, generic and x86, on bare hardware.
    promises : float
        Of each thing that generic code must keep to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    hooks: float = Field(1.0, ge=0, allow_inf_nan=False)
    members: float = Field(0.0, ge=0, allow_inf_nan=False)
    call_sites: float = Field(0.0, ge=0, allow_inf_nan=False)
    files: float = Field(0.0, ge=0, allow_inf_nan=False)
    outside: float = Field(0.0, ge=0, allow_inf_nan=False)
    single_user: float = Field(0.0, ge=0, allow_inf_nan=False)
    native_bytes: float = Field(0.0, ge=0, allow_inf_nan=False)
    promises: float = Field(0.0, ge=0, allow_inf_nan=False)

    @classmethod
    def of(cls, name: str) -> Weights:
        """Return the weights of a weighting by `name`: ``hooks`` counts hooks, ``maintainers``
        what patches are asked about.

        Raises
        ------
        HookError
            There is none of that name.
        """
        return cls(**{"hooks": 0.0, **weighting(name)})


@dataclass(frozen=True)
class Intrusiveness:
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
        w, n = self.weights, self.describe(hooks)
        return float(
            w.hooks * n["hooks"] + w.members * n["members"] + w.call_sites * n["call_sites"]
            + w.files * n["files"] + w.outside * n["outside"] + w.promises * n["promises"]
            + w.single_user * n["single_user"] + w.native_bytes * n["native_bytes"]
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
        every, w = HookSet.every(), self.weights
        files = set().union(*(files_touched(h, self.kernel) for h in every)) if w.files else set()
        price = dict.fromkeys(sorted(files), w.files)
        if w.outside:
            price |= {commit: w.outside * n for commit, n in outside_files(every).items()}
        number = {name: i for i, name in enumerate(price)}

        def shared(hooks: HookSet) -> np.ndarray:
            out = np.zeros(len(price), np.bool_)
            touched = {f for h in hooks for f in files_touched(h, self.kernel)}
            out[[number[f] for f in (*touched, *outside_files(hooks)) if f in number]] = True
            return out

        rest = Intrusiveness(self.kernel, w.model_copy(update={"files": 0.0, "outside": 0.0}))
        alone = np.array([rest.of(p) for p in players])
        touched = np.array([shared(p) for p in players]).reshape(len(players), len(price))
        prices = np.array([*price.values()], np.float64)
        out: np.ndarray = _sums(alone, touched, shared(base), rest.of(base), prices)
        return out

    def describe(self, hooks: HookSet) -> dict[str, int]:
        """Return what `hooks` consist of, by the names of `Weights`: numbers, not weighed."""
        files = set().union(*(files_touched(h, self.kernel) for h in hooks))
        asked, sites = {h: burden(h) for h in hooks}, callsites(hooks, self.kernel)
        calls = (sites["generic"] + sites["x86"]).to_dict()
        return {
            "hooks": len(hooks), "members": hooks.members,
            "call_sites": int(sites["generic"].sum()), "files": len(files),
            "outside": sum(outside_files(hooks).values()),
            "single_user": sum(len(b.users) < 2 for b in asked.values()),
            "native_bytes": sum(b.site_bytes * int(calls[h]) for h, b in asked.items()),
            "promises": sum(len(b.promises) for b in asked.values()),
        }  # fmt: skip


@kernel
def _sums(alone, touched, base_files, base, prices):  # type: ignore[no-untyped-def]
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
    for f in range(prices.shape[0]):
        for s in range(1 << n):
            if files[s, f]:
                out[s] += prices[f]
    return out
