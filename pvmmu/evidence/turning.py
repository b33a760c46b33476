"""What would make direct paging cheaper than an unmodified guest's shadow, where forks are many?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from pvmmu.evidence.proposals import TODAY, Proposal, proposals
from pvmmu.guest.trace import Trace
from pvmmu.replay import replay

#: Changes tried, the least first.
CHANGES: Final = (
    Proposal("hooked get_and_clear", "ptep_get_and_clear"),
    Proposal("hooked wrprotect", "ptep_set_wrprotect"),
    Proposal("fault-around in a bracket", "", ("fault-around",)),
    Proposal("both", "ptep_set_wrprotect", ("fault-around",)),
)
#: Shadow paging of today, with what its guests hook.
SHADOWS: Final = {"KVM 6.1": ("none", "shadow"), "Xen 4.17": ("exit_mmap", "shadow:code=xen-4.17")}


def turning(traces: Sequence[Trace], what: Sequence[Proposal] = CHANGES) -> pd.DataFrame:
    """Return entries under direct paging, today's and with changes, and under shadow paging.

    Parameters
    ----------
    traces : sequence of Trace
        Streams; the shadow sides replay them without hooks that need direct paging.
    what : sequence of Proposal
        Changes to direct paging's interface.

    Returns
    -------
    DataFrame
        By trace: ``today``, a column for each change, and one for each of `SHADOWS`.
    """
    changed = proposals(traces, what=what).pivot(index="trace", columns="proposal")["entries"]
    out = changed.loc[[t.name for t in traces], [p.name for p in what]]
    out.insert(0, "today", [replay(t, TODAY, "direct").entries for t in traces])
    for name, design in SHADOWS.items():
        out[name] = [replay(t, *design).entries for t in traces]
    return out.rename_axis(columns=None)


def turning_finding(table: pd.DataFrame) -> str:
    """Return on how many streams of `table` (rows; columns: backends and shadows, entries) direct
    paging makes no more entries than either shadow.
    """
    shadow = table[list(SHADOWS)].min(axis=1)
    direct = table.drop(columns=list(SHADOWS))
    turned = {name: int((entries <= shadow).sum()) for name, entries in direct.items()}
    parts = ", ".join(f"{n} ({name})" for name, n in turned.items())
    today = np.exp(np.log(direct["today"] / shadow).mean())
    return (
        f"Direct paging makes {today:.1f} times the entries of the better shadow today; it makes "
        f"no more on so many of {len(table)} streams: {parts}"
    )
