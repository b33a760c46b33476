"""Which modes can be counted under all hook sets at once, and by what.

Nothing of this is a mode's business: one without an engine is replayed class by class. An engine
must equal those replays (tests/search/test_search.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from pvmmu.guest.trace import Trace
from pvmmu.modes.all_sets.direct import count_direct
from pvmmu.modes.all_sets.shadow import count_shadow
from pvmmu.modes.base import Mode
from pvmmu.modes.direct import Direct
from pvmmu.modes.partition import Branch
from pvmmu.modes.shadow import Shadow
from pvmmu.modes.shadow.kvm_pvmmu import KvmPvmmu

#: (trace, branch) -> least and most of all its classes, int64[class, N_EVENTS] each in the order
#: of `Partition.feasible`; None where they cannot be counted at once.
Engine = Callable[[Trace, Branch], tuple[np.ndarray, np.ndarray] | None]


def engine(mode: Mode) -> Engine | None:
    """Return what counts all classes of a branch of `mode` at once; None if nothing does."""
    if isinstance(mode, Direct):
        return partial(count_direct, mode)
    if isinstance(mode, Shadow | KvmPvmmu):
        return partial(count_shadow, mode)
    return None
