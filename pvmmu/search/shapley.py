"""What each hook contributes: exact values over the lattice of the hook sets that work.

A hook's contribution is its marginal effect, averaged over all orders in which the hooks can be
added one by one such that every set on the way works. Where all sets work these are the Shapley
values; where some do not, those of the game with restricted cooperation (Faigle and Kern, The
Shapley value for cooperative games under precedence constraints, 1992). Either way they sum to the
effect of all hooks together. Interactions are second differences averaged in the same way; where
all sets work, the Shapley interaction index (Grabisch and Roubens, 1999).

Nothing is sampled: sets are visited once each, so that n hooks take about n 2**n steps (pairs:
n**2 2**n).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pvmmu._jit import kernel
from pvmmu.errors import SearchError


@dataclass(frozen=True)
class Orders:
    """In how many orders the hooks can be added, such that every set on the way works.

    Parameters
    ----------
    works : bool[2**n]
        The set works.
    up, down : float64[2**n]
        Share of the orders of a set's own (of the missing) hooks that lead from the least set to it
        (from it to the greatest).
    """

    works: np.ndarray
    up: np.ndarray
    down: np.ndarray

    @classmethod
    def of(cls, works: np.ndarray) -> Orders:
        """Count orders.

        Parameters
        ----------
        works : bool[2**n]
            Bit *i* of the index is hook *i*.

        Raises
        ------
        SearchError
            No order leads from the least set to the greatest.
        """
        n = hooks_in(works)
        up, down = _orders(works, n)
        if not down[0] > 0:
            raise SearchError("the hooks cannot be added one by one: some set on every way fails")
        return cls(works, up, down)

    @property
    def share(self) -> float:
        """Share of all orders that work."""
        return float(self.down[0])


def hooks_in(cube: np.ndarray) -> int:
    """Return n of an array of 2**n elements.

    Raises
    ------
    SearchError
        It has another length.
    """
    n = len(cube).bit_length() - 1
    if len(cube) != 1 << n:
        raise SearchError(f"a lattice has a power of two of sets, not {len(cube)}")
    return n


def contributions(value: np.ndarray, orders: Orders) -> np.ndarray:
    """Return the contribution of each hook.

    Parameters
    ----------
    value : float64[2**n]
        Of each set; what it is where the set does not work is of no account.
    orders : Orders
        Of the sets that work.

    Returns
    -------
    float64[n]
        They sum to the value of the greatest set less that of the least.
    """
    n = _checked(value, orders)
    out: np.ndarray = _contributions(value, orders.works, orders.up, orders.down, n)
    return out


def interactions(value: np.ndarray, orders: Orders) -> np.ndarray:
    """Return how much two hooks are worth together beyond what each is worth without the other.

    Parameters
    ----------
    value, orders
        As for `contributions`.

    Returns
    -------
    float64[n, n]
        Symmetric, zero on the diagonal; NaN for two hooks that cannot be added one after the other
        in either order.
    """
    n = _checked(value, orders)
    out: np.ndarray = _interactions(value, orders.works, orders.up, orders.down, n)
    return out


def _checked(value: np.ndarray, orders: Orders) -> int:
    n = hooks_in(orders.works)
    if value.shape != orders.works.shape:
        raise SearchError(f"{len(value)} values for {len(orders.works)} sets")
    if not np.isfinite(value[orders.works]).all():
        raise SearchError("a set that works has no value")
    return n


@kernel
def _orders(works, n):  # type: ignore[no-untyped-def]
    size = 1 << n
    up, down = np.zeros(size), np.zeros(size)
    up[0], down[size - 1] = works[0], works[size - 1]
    for s in range(1, size):
        if works[s]:
            total, members = 0.0, 0
            for i in range(n):
                if s >> i & 1:
                    members += 1
                    total += up[s ^ (1 << i)]
            up[s] = total / members
    for s in range(size - 2, -1, -1):
        if works[s]:
            total, missing = 0.0, 0
            for i in range(n):
                if not s >> i & 1:
                    missing += 1
                    total += down[s | (1 << i)]
            down[s] = total / missing
    return up, down


@kernel
def _weights(n, step):  # type: ignore[no-untyped-def]
    """Share of all orders of n hooks that pass a given set of m and then add `step` given hooks.

    m! (n - m - step)! / n!, for each m; for two hooks in either order it is twice that.
    """
    out = np.zeros(n - step + 1)
    for m in range(n - step + 1):
        w = 1.0
        for j in range(step):
            w /= n - j
        for j in range(m):  # times m! (n - step - m)! / (n - step)!
            w *= (j + 1.0) / (n - step - j)
        out[m] = w
    return out


@kernel
def _members(s):  # type: ignore[no-untyped-def]
    count = 0
    while s:
        s &= s - 1
        count += 1
    return count


@kernel
def _contributions(value, works, up, down, n):  # type: ignore[no-untyped-def]
    out, weights, total = np.zeros(n), _weights(n, 1), down[0]
    for s in range(1 << n):
        if works[s] and up[s] > 0:
            w = up[s] * weights[min(_members(s), n - 1)] / total
            for i in range(n):
                t = s | (1 << i)
                if t != s and down[t] > 0:
                    out[i] += w * down[t] * (value[t] - value[s])
    return out


@kernel
def _interactions(value, works, up, down, n):  # type: ignore[no-untyped-def]
    total, weight = np.zeros((n, n)), np.zeros((n, n))
    if n < 2:
        return total
    weights = _weights(n, 2)
    for s in range(1 << n):
        if not works[s] or up[s] == 0:
            continue
        w = up[s] * weights[min(_members(s), n - 2)]
        for i in range(n):
            a = s | (1 << i)
            if a == s or not works[a]:
                continue
            for j in range(i + 1, n):
                b, both = s | (1 << j), s | (1 << i) | (1 << j)
                if b != s and works[b] and down[both] > 0:
                    d = w * down[both]
                    weight[i, j] += d
                    total[i, j] += d * (value[both] - value[a] - value[b] + value[s])
    for i in range(n):
        for j in range(i + 1, n):
            total[i, j] = total[i, j] / weight[i, j] if weight[i, j] > 0 else np.nan
            total[j, i] = total[i, j]
    return total
