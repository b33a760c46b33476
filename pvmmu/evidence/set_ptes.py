"""What the bracket of ``set_ptes`` did to Xen's guests; what one in ``filemap_map_pages`` would do.

From Linux 6.6 (bcc6cc832573) to 6.14 ``set_ptes()``, and so each ``set_pte_at()``, had a lazy MMU
bracket around its loop; 691ee97e1a9d took it out, since brackets must not nest. What did that cost?
The answer has two sides: a bracket holds the entries of one folio, so that it batches where folios
are large and holds one entry where they are small; and within the bracket of a fork it nests, where
its end sends what the fork had queued (``xen_leave_lazy_mmu`` flushes always).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pandas as pd

from pvmmu.costs import CostTable, get_costs
from pvmmu.evidence.truth.design_space_files import BASE, BRACKETS, shipped_designs
from pvmmu.guest.rewrite import bracket_fault_around, with_set_ptes
from pvmmu.guest.trace import Trace
from pvmmu.hooks import HookSet
from pvmmu.replay import replay

#: Pages of the folios that are taken as large: what one fault maps.
LARGE: Final = 16
#: Name of what the recorded kernels do: no bracket in ``set_ptes``.
TODAY: Final = "6.15 and later"
BEFORE: Final = "6.6 to 6.14"
BEFORE_LARGE: Final = f"6.6 to 6.14, folios of {LARGE} pages"
BRACKET: Final = "a bracket in filemap_map_pages"
BOTH: Final = "both, nested (7.0's rule)"
#: What kernels do, or might: the stream that each would make of a recorded one.
KERNELS: Final[dict[str, Callable[[Trace], Trace]]] = {
    TODAY: lambda trace: trace,
    BEFORE: with_set_ptes,
    BEFORE_LARGE: lambda trace: with_set_ptes(trace, LARGE),
    BRACKET: bracket_fault_around,
    BOTH: lambda trace: with_set_ptes(bracket_fault_around(trace)),
}
#: Prices of paging, in instructions.
COSTS: Final = "xen-4.17-instructions"
#: Bit of the measured guest's mask: a bracket in filemap_map_pages.
_BRACKETED: Final = next(bit for bit, what in BRACKETS.items() if what.startswith("fault-around"))


def set_ptes_table(
    traces: Sequence[Trace], hooks: HookSet | str = "linux-6.1", mode: str = "direct",
    costs: CostTable | str = COSTS,
) -> pd.DataFrame:  # fmt: skip
    """Replay streams as kernels with and without the bracket of ``set_ptes`` would make them.

    Parameters
    ----------
    traces : sequence of Trace
        Recorded streams of kernels without it (6.1; 6.12.24 and later), folios of one page.
    hooks : HookSet or str
        Hooks of the guest.
    mode : str
        Paging mode.
    costs : CostTable or str
        Prices; those of the default were measured, in instructions.

    Returns
    -------
    DataFrame
        One row per stream and kernel (`KERNELS`): ``stream``, ``kernel``, ``entries`` (to the
        hypervisor), ``more`` (share of today's entries, negative where fewer), ``price`` (of
        paging, in the table's unit) and ``price_more`` (share of today's).
    """
    table, rows = get_costs(costs), []
    for trace in traces:
        counts = {name: replay(make(trace), hooks, mode) for name, make in KERNELS.items()}
        today = counts[TODAY]
        for name, c in counts.items():
            rows.append(
                {
                    "stream": trace.name, "kernel": name, "entries": c.entries,
                    "more": c.entries / today.entries - 1, "price": c.cycles(table),
                    "price_more": c.cycles(table) / today.cycles(table) - 1,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def set_ptes_finding(table: pd.DataFrame) -> str:
    """Return what `set_ptes_table` (its `table`) found, in sentences."""
    more, price = (
        table.pivot(index="stream", columns="kernel", values=v) for v in ("more", "price_more")
    )
    worst = more[BEFORE].idxmax()

    def without(of: pd.DataFrame, kernel: str) -> str:
        """What there is without the bracket, of what there is with it."""
        change = 1 / (1 + of[kernel]) - 1
        return f"{change.min():+.0%} to {change.max():+.0%}"

    return (
        "Taking the bracket out of set_ptes (691ee97e1a9d) changed Xen's entries by "
        f"{without(more, BEFORE)} where folios have one page (most on {worst}: within a fork's "
        "bracket the inner end had sent each entry by itself), and the price of paging by "
        f"{without(price, BEFORE)}; where the page cache has folios of {LARGE} pages, by "
        f"{without(more, BEFORE_LARGE)} and {without(price, BEFORE_LARGE)}. A bracket in "
        f"filemap_map_pages would spare {-more[BRACKET].max():.0%} to {-more[BRACKET].min():.0%} "
        f"of the entries and {-price[BRACKET].max():.0%} to {-price[BRACKET].min():.0%} of the "
        "price, whatever the folios, as long as no bracket in set_ptes ends inside it"
    )


def measured_bracket() -> pd.DataFrame:
    """Return what a bracket in ``filemap_map_pages`` was measured to save whole programs.

    Returns
    -------
    DataFrame
        By ``program``: ``native``, ``xen`` and ``bracketed`` (instructions of an iteration: of the
        kernel without Xen, on Xen, and with the bracket), ``spared`` (share of what Xen adds),
        ``of_all`` (share of the whole program), ``predicted`` (instructions that a replay of the
        program's stream says are spared, at the prices of `COSTS`), ``measured`` (that were).

    Notes
    -----
    Linux 6.1.192 on Xen 4.17, one vCPU; the least of several iterations
    (``data/truth/designs/README.md``).
    """
    table = shipped_designs().instructions
    table = table[table["workload"].str.startswith("cmd_") & (table["run"] == 1)]
    native = table[table["environment"] == "native"].set_index("workload")["min"]
    guest = table[table["environment"] == "xen-pv"].pivot(
        index="workload", columns="hooks", values="min"
    )
    xen, bracketed = guest[BASE], guest[BASE | _BRACKETED]
    out = pd.DataFrame({"native": native, "xen": xen, "bracketed": bracketed})
    out["spared"] = (xen - bracketed) / (xen - native)
    out["of_all"] = (xen - bracketed) / xen
    prices = get_costs(COSTS)
    streams = {name: Trace.load(shipped_designs().streams[name]) for name in out.index}
    out["predicted"] = {
        name: replay(trace, "linux-6.1", "direct").cycles(prices)
        - replay(bracket_fault_around(trace), "linux-6.1", "direct").cycles(prices)
        for name, trace in streams.items()
    }
    out["measured"] = xen - bracketed
    return out.rename_axis("program")
