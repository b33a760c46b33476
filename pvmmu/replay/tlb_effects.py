"""A design with the TLB in the account: what its flushes cost afterwards, and whether it is safe.

A replay counts events of a hypervisor. Here the same design runs on modelled processors: stores and
flushes take effect when the design lets them (a queued one at the end of its bracket), flushes that
the hypervisor adds are made, those that it spares are not; the program's touches then hit or miss.
A use of a translation that a promised flush should have removed makes a design *harmful*.

With several vCPUs FLUSH_OTHERS is taken as the flush of each CPU that stands behind it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.guest.trace import Flag, Op, Trace
from pvmmu.guest.vocabulary import ENTRY_OPS
from pvmmu.hooks import HookSet
from pvmmu.modes import get_mode
from pvmmu.modes.events import SENDS, Event
from pvmmu.modes.outcome import Infeasible, Outcome
from pvmmu.replay.hardware import FLUSHES, on_hardware
from pvmmu.x86.geometry import Geometry
from pvmmu.x86.mmu import Mmu
from pvmmu.x86.mmu_events import Count

#: Operations that read the entry which they change.
_READS: Final = (Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG, Op.PTE_RMW,
                 Op.MODIFY_PROT_START)  # fmt: skip
#: Operations whose own flush is in the trace.
_OWN: Final = (*FLUSHES, Op.LOAD_CR3, Op.FLUSH_OTHERS)


def design_on_hardware(
    trace: Trace, hooks: str | HookSet, mode: str, geometry: Geometry | str = "skylake"
) -> Mmu | Infeasible:
    """Run a trace under a design on processors with TLBs.

    Parameters
    ----------
    trace : Trace
        As for `pvmmu.replay.hardware.on_hardware`.
    hooks, mode : str or HookSet, str
        The design.
    geometry : Geometry or str
        TLBs of all CPUs.

    Returns
    -------
    Mmu or Infeasible
        Its counts, or why the design cannot run.
    """
    hooks = HookSet.parse(hooks) if isinstance(hooks, str) else hooks
    outcome = get_mode(mode).run(trace, hooks, log=True)
    if isinstance(outcome, Infeasible):
        return outcome
    return on_hardware(trace, geometry, **when(trace, outcome))


def when(trace: Trace, outcome: Outcome) -> dict[str, np.ndarray]:
    """Return which rows of `trace` do not happen in `outcome`, and when the others take effect.

    Returns
    -------
    dict
        ``without`` (bool[row]), ``effect`` (int64[row]) and ``flushed`` (int64[n]), as
        `pvmmu.replay.hardware.on_hardware` takes them.
    """
    log, delays = outcome.log, outcome.delays
    waits = np.isin(outcome.mechanism, list(delays.waits))
    sends = np.isin(log[:, 1], SENDS)
    sends &= ~np.isin(outcome.mechanism[log[:, 0]], list(delays.apart))
    effect = np.arange(len(trace))
    for cpu in range(trace.platform.vcpus):
        sent = np.unique(log[sends & (log[:, 3] == cpu), 0])
        here = waits & (trace["cpu"] == cpu)
        at = np.searchsorted(sent, np.flatnonzero(here))
        effect[here] = np.r_[sent, len(trace)][at]
    added = log[log[:, 1] == Event.TLB_FLUSH, 0]
    added = np.unique(added[~np.isin(trace["op"][added], _OWN)])
    nothing = [i for i, name in outcome.names.items() if name == "nothing"]
    spared = np.isin(trace["op"], list(FLUSHES)) & np.isin(outcome.mechanism, nothing)
    behind_a_call = spared & (trace["flags"] & Flag.NATIVE_ONLY != 0)
    return {"without": spared & ~behind_a_call, "effect": effect, "flushed": added}


def noticed(trace: Trace, outcome: Outcome) -> pd.DataFrame:
    """Return where a guest could notice the order of effect: an entry is used that still waits.

    A trapped write takes effect at once, and a read finds what memory holds, while an earlier
    update of the same entry is still in a queue. Writes that overtake updates of other entries
    (`Event.REORDERED_WRITE`) go unnoticed under the locks of both tables.

    Parameters
    ----------
    trace : Trace
        The operations.
    outcome : Outcome
        Of a mode's ``run``, with its log.

    Returns
    -------
    DataFrame
        One row for each such use: ``row``, ``op``, ``waiting`` (row of the update that it misses),
        ``sent`` (row at which that is sent).
    """
    effect = when(trace, outcome)["effect"]
    entry = np.isin(trace["op"], [int(o) for o in ENTRY_OPS])
    rows = np.flatnonzero(entry & (trace["table"] >= 0) & (trace["index"] >= 0))
    rows = rows[np.lexsort((rows, trace["index"][rows], trace["table"][rows]))]
    before, after = rows[:-1], rows[1:]
    same = np.ones(len(after), np.bool_)
    for column in ("table", "index"):
        same &= trace[column][before] == trace[column][after]
    uses = np.isin(trace["op"][after], _READS) | (effect[after] == after)
    unwritten = ~np.isin(outcome.mechanism[before], list(outcome.delays.written))
    found = same & uses & (effect[before] > after) & unwritten
    op = [Op(o).name for o in trace["op"][after[found]]]
    out = {"row": after[found], "op": op, "waiting": before[found], "sent": effect[before[found]]}
    return pd.DataFrame(out).sort_values("row", ignore_index=True)


def tlb_account(
    trace: Trace, designs: Iterable[tuple[str, str]], geometry: Geometry | str = "skylake"
) -> pd.DataFrame:
    """Return what designs' flushes cost afterwards.

    Parameters
    ----------
    trace : Trace
        As for `design_on_hardware`.
    designs : iterable of (str, str)
        Hook sets and modes.
    geometry : Geometry or str
        TLBs of all CPUs.

    Returns
    -------
    DataFrame
        One row per design: ``hooks``, ``mode``, ``status``, and of all CPUs together ``accesses``,
        ``walks``, ``references`` (entries read by walks), ``harmful`` and ``stale_but_benign``.
    """
    out = []
    for hooks, mode in designs:
        mmu = design_on_hardware(trace, hooks, mode, geometry)
        row: dict[str, object] = {"hooks": hooks, "mode": mode, "status": "ok"}
        if isinstance(mmu, Infeasible):
            row["status"] = f"infeasible: {mmu.reason}"
        else:
            n = mmu.counts()
            benign = (Count.STALE_WINDOW, Count.STALE_LAZY, Count.STALE_UPGRADED, Count.STALE_AGED)
            row |= {
                "accesses": n[Count.ACCESSES], "walks": n[Count.WALKS],
                "references": n[Count.REFERENCES], "harmful": mmu.harmful,
                "stale_but_benign": sum(n[c] for c in benign),
            }  # fmt: skip
        out.append(row)
    return pd.DataFrame(out)
