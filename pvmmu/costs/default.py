"""Which prices fit a kernel and a mode, and which are of another era."""

from __future__ import annotations

import re
from typing import Final

from pvmmu.costs.files import get_costs
from pvmmu.costs.table import CostTable

#: Kernel releases from which on prices are those of an era: Xen PV and software, shadow and nested.
_ERAS: Final = (
    ((5, 0), {"": "xen-2026", "shadow": "epyc-2020-svm", "nested": "epyc-2020-svm"}),
    ((2, 6, 30), {"": "nehalem-2009", "shadow": "nehalem-2009-vtx", "nested": "nehalem-2009-vtx"}),
    (
        (2, 6, 23),
        {"": "core2-2007", "shadow": "core2-2007-vtx", "nested": "core2-2007-vtx",
         "kvm-pvmmu": "core2-2007-vtx", "lguest": "core2-2007-lguest"},
    ),
    (
        (),
        {"": "p4-2006", "shadow": "p4-2006-vtx", "nested": "core2-2007-vtx", "vmi": "p4-2006-bt"},
    ),
)  # fmt: skip
#: Years in which kernels came: first release of a row -> year.
_YEARS: Final = (
    ((7, 0), 2026), ((6, 18), 2025), ((6, 12), 2024), ((6, 6), 2023), ((6, 0), 2022),
    ((5, 0), 2019), ((4, 0), 2015), ((3, 0), 2011), ((2, 6, 30), 2009), ((2, 6, 27), 2008),
    ((2, 6, 20), 2007),
    ((2, 6, 17), 2006), ((), 2005),
)  # fmt: skip
#: Years between a kernel and prices from which on they are an anachronism.
_FAR: Final = 8


def _release(kernel: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", kernel.split("-")[0])[:3])


def default_costs(kernel: str, mode: str = "direct") -> str:
    """Return the name of the table in cycles that fits a kernel's era and a mode.

    Parameters
    ----------
    kernel : str
        Its release, such as ``6.1.192``.
    mode : str
        See `pvmmu.modes.get_mode`.
    """
    release, name = _release(kernel), mode.partition(":")[0]
    for first, tables in _ERAS:
        if release >= first:
            return tables.get(name, tables[""])
    raise AssertionError("the last era has no beginning")


def anachronism(table: CostTable | str, kernel: str) -> str:
    """Return a remark if the prices are of another era than a kernel; empty if they are not.

    Parameters
    ----------
    table : CostTable or str
        Prices.
    kernel : str
        Its release.
    """
    costs = get_costs(table)
    year = next(year for first, year in _YEARS if _release(kernel) >= first)
    if costs.unit == "instructions" or abs(costs.year - year) < _FAR:
        return ""
    return f"anachronism: prices of {costs.year}, a kernel of {year}"
