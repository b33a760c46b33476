"""Cost tables: cycles per event for a processor and a hypervisor, every figure with its source.

A table is a TOML file (``data/costs/*.toml``, or one of your own), and nothing else holds a price::

    title = "Xen PV on a Pentium 4 of 2006"
    cpu = "Intel Pentium 4 672, 3.8 GHz"
    mhz = 3800
    [events.mmu_update]
    value = 600
    unit = "cycles"            # or ns, us
    kind = "prior"             # measured, published, secondary, prior
    range = [300, 1200]        # required of a prior
    source = "no published figure; bracketed by ..."

Figures are per event of `pvmmu.modes.events`; one that costs nothing must be named in ``free``.

A table may build on another (``like = "p4-2006"``, or ``like = "mine.toml"``, a file beside it): it
takes every figure that it does not give itself. With ::

    [scale]
    factor = 0.6
    range = [0.4, 1.0]
    source = "cost of an exit on both processors: ..."

the figures taken over are multiplied by the factor, and are priors over the product of the ranges.
A figure may say that its true value lies where another one's does (``follows = "mmu_update"``):
both are the same unknown, and vary together when `pvmmu.replay.sensitivity` varies them.
"""

from __future__ import annotations

from pvmmu.costs.calibration import calibrate
from pvmmu.costs.files import cost_names, get_costs
from pvmmu.costs.table import Cost, CostTable, Measurement

__all__ = ["Cost", "CostTable", "Measurement", "calibrate", "cost_names", "get_costs"]
