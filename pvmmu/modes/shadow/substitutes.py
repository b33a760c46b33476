"""Which operations would have left the same state behind, had they been carried otherwise.

A hook puts a call in the place of a store. To ordinary memory both do the same; so they do to a
table whose writes are always trapped, as what KVM does with the new value does not depend on how it
learnt of it. If that holds for all operations that a hook covers, then a replay with the hook goes
through the same states as one without; the same is true of any number of such hooks together, by
induction over the rows.

One thing differs: a trap clears the count of writes to the top-level table in use, where that is
counted. It does not matter as long as no top-level table is given up for too many writes; with more
hooks the counts are greater, so a replay in which it never happens speaks for those with fewer.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pvmmu._jit import kernel
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.shadow.links import find, shadowed_above
from pvmmu.modes.shadow.rules import Flood, Rule
from pvmmu.modes.shadow.state import WRITABLE, view

STORE_OPS: Final = (
    Op.SET_PTE, Op.PTE_CLEAR, Op.PTE_GET_AND_CLEAR, Op.PTE_WRPROTECT, Op.PTE_CLEAR_YOUNG,
    Op.MODIFY_PROT_START, Op.MODIFY_PROT_COMMIT, Op.SET_PMD, Op.SET_PUD, Op.SET_P4D, Op.SET_PGD,
)  # fmt: skip
RELEASE_OPS: Final = (Op.RELEASE_PTE, Op.RELEASE_PMD, Op.RELEASE_PUD, Op.RELEASE_P4D)
_FIRST_RELEASE: Final = int(min(RELEASE_OPS))
_LAST_RELEASE: Final = int(max(RELEASE_OPS))
_COUNTED, _OUT_OF_SYNC = int(Rule.COUNTED), int(Rule.OUT_OF_SYNC)
_FLOOD, _LIMIT, _PER_PAGE = int(Rule.FLOOD), int(Rule.FLOOD_LIMIT), int(Flood.PER_PAGE)
_LEVELS = 0
#: Columns of what is seen: operations that would have left another state; stores to a table whose
#: writes are trapped, each an emulation unless it is hooked.
DIFFERS, TRAPPED = range(2)
#: Row of what is seen: writes that gave up a top-level table.
ANY: Final = 0
#: Where nothing is to be watched.
UNSEEN: Final = np.zeros((0, 2), np.int64)

assert not any(_FIRST_RELEASE <= op <= _LAST_RELEASE for op in STORE_OPS)


@kernel
def watch(m, kind, table, twin, seen):  # type: ignore[no-untyped-def]
    """Note what a row would have done if it were carried otherwise.

    Parameters
    ----------
    m : int
        `State.address`, before the row.
    kind, table, twin : int
        Of the row; `kind` is an `Op` of `STORE_OPS` or `RELEASE_OPS`.
    seen : int64[N_OPS, 2]
        Receives it; see `DIFFERS`, `ANY`.
    """
    s = view(m)
    if s.mapped[table] == WRITABLE and s.first[table] < 0 and twin < 0:
        return
    if _FIRST_RELEASE <= kind <= _LAST_RELEASE:
        if s.first[table] >= 0:
            seen[kind, DIFFERS] += 1
        return
    trapped = s.mapped[table] != WRITABLE and s.first[table] >= 0
    if trapped and s.rules[_OUT_OF_SYNC] != 0:
        trapped = shadowed_above(s.m, table)
    if twin >= 0 or s.rules[_COUNTED] or not trapped:
        seen[kind, DIFFERS] += 1
    else:
        seen[kind, TRAPPED] += 1
        if s.rules[_FLOOD] == _PER_PAGE and _gives_up(s.m, table):
            seen[ANY, DIFFERS] += 1


@kernel
def _gives_up(m, table):  # type: ignore[no-untyped-def]
    """Whether one more write gives up a top-level table."""
    s = view(m)
    top = find(s, table, s.shape[_LEVELS])
    return top >= 0 and s.pages[top].flood + 1 >= s.rules[_LIMIT]
