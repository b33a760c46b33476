"""What page-table isolation (PTI) and PCID cost a guest whose tables are shadowed."""

from __future__ import annotations

import itertools
from typing import Any, Final

import pandas as pd

from pvmmu.evidence.truth.shadow_summary import predict

#: Programs of the measurements, with a size, and hypervisors.
PROGRAMS: Final = (("pipe_pingpong_roundtrip", 0), ("fork_exit", 0), ("madv_dontneed_touch", 64))
ENVIRONMENTS: Final = ("kvm-shadow", "xen-pvh-shadow")
#: Variant of the platform -> what readers call it.
PLATFORMS: Final = {"base": "plain", "pti": "PTI", "pcid": "PCID", "pti,pcid": "PTI and PCID"}


def isolation_table() -> pd.DataFrame:
    """Return what programs of the measurements cost a shadow guest on each platform.

    Returns
    -------
    DataFrame
        By ``program``, ``environment`` and ``platform``: ``exits`` for one iteration, and of them
        ``cr3`` (loads and reads of CR3); ``resync`` (tables brought back into sync).
    """
    rows: list[dict[str, Any]] = []
    for (name, n), environment in itertools.product(PROGRAMS, ENVIRONMENTS):
        for variant, platform in PLATFORMS.items():
            found = predict((environment, name, n, variant), 0)
            rows.append(
                {
                    "program": f"{name}.{n}", "environment": environment, "platform": platform,
                    "exits": found["mmu_exits"],
                    "cr3": found["exit_write_cr3"] + found["exit_read_cr3"],
                    "resync": found["resync"],
                }
            )  # fmt: skip
    return pd.DataFrame(rows).set_index(["program", "environment", "platform"])
