"""KVM's pv mmu (2008): shadow paging as before, and hypercalls for the stores that are hooked.

The host write-protects the tables that it shadows, so nothing must be told: an unhooked write
traps. A hooked store is a record of 24 bytes for ``KVM_HC_MMU_OP``, its table shadowed or not; in a
lazy MMU bracket records wait in a queue of 1,024 bytes. The host takes at most 512 bytes of a call
and says how many it used, and the guest calls again for the rest: a full queue of 42 stores is two
hypercalls. A flush is a record of 8 bytes and waits, too; the release of a table is a call of its
own that takes nothing along.

What the shadows do is a simple generation of KVM's code (``shadow``):

* ``2.6.27``: each write to a shadowed table is emulated and fills its entry; the third one in a row
  to the same table, with no fault between, makes the host forget the table;
* ``2.6.28``: a table of PTEs goes out of sync at its first unhooked write, until the next flush.

A table is shadowed from the first access through it. Loads of CR3, INVLPG and flushes of global
entries are not hooked: they exit. The shadow is simpler than KVM's (no limit of pages, no roots):
this mode is about the queue.

Source: Linux v2.6.27 arch/x86/kernel/kvm.c, arch/x86/kvm/mmu.c (kvm_pv_mmu_op, kvm_mmu_pte_write),
include/asm-x86/kvm_para.h; v2.6.28-rc4 arch/x86/kvm/mmu.c (kvm_unsync_page).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pvmmu.errors import ModeError
from pvmmu.guest.ops import Trace
from pvmmu.guest.vocabulary import N_OPS, RMW_OPS, SET_UPPER_OPS, Op
from pvmmu.hooks import HookSet, catalogue
from pvmmu.modes.base import Outcome, choice, counts_of_rows, covered_hooks, outcome
from pvmmu.modes.classes import Partition, Space, partition
from pvmmu.modes.kvm_pvmmu_kernel import ROW, Carrier, run_kvm
from pvmmu.modes.tally import new_counts, new_log
from pvmmu.modes.telling import STORES, TABLES, names_of, upper_hooks

#: Bytes of the guest's queue (MMU_QUEUE_SIZE), and of the host's buffer (kvm_pv_mmu_op_buffer).
QUEUE, BUFFER = 1024, 512
#: Greatest queue that the kernel has room for.
LARGEST: Final = 32768
SHADOWS: Final = ("2.6.27", "2.6.28")
_NAMES: Final = names_of(Carrier)
_RELEASED: Final = {op: names for op, names in TABLES.items() if op.name.startswith("RELEASE")}
_TRAPPED: Final = (Op.LOAD_CR3, Op.FLUSH_ONE, Op.FLUSH_KERNEL, Op.READ_CR3)
#: The hooks that this mode reads, in groups that act independently of each other.
SWITCHES: Final = (
    ("set_pte", "set_pte_at", "set_ptes", "ptep_modify_prot"), ("pte_clear",), ("set_pmd",),
    ("set_pud",), ("set_p4d",), ("release_pte",), ("release_pmd",), ("release_pud",),
    ("flush_tlb_user",), ("lazy_mmu",),
)  # fmt: skip
HOOKS: Final = tuple(name for switch in SWITCHES for name in switch)


@dataclass(frozen=True)
class KvmPvmmu:
    """Shadow paging with hypercalls for stores.

    Parameters
    ----------
    shadow : str
        Generation of the shadow code: ``2.6.27`` or ``2.6.28`` (tables out of sync).
    queue, buffer : int
        Bytes that wait in the guest, and that the host takes of a call.

    Raises
    ------
    ModeError
        No such generation, or no room for a record.
    """

    shadow: str = SHADOWS[0]
    queue: int = QUEUE
    buffer: int = BUFFER
    name: ClassVar[str] = "kvm-pvmmu"

    def __post_init__(self) -> None:
        choice("kvm-pvmmu mode: shadow", self.shadow, SHADOWS)
        for what, value in (("queue", self.queue), ("buffer", self.buffer)):
            if not isinstance(value, int) or not 24 <= value <= LARGEST:
                raise ModeError(
                    f"kvm-pvmmu mode: {what} must be 24 to {LARGEST} bytes, not {value!r}"
                )

    @property
    def spec(self) -> str:
        """``kvm-pvmmu``, followed by the parameters that differ from the default."""
        given = (
            ("shadow", self.shadow, SHADOWS[0]), ("queue", self.queue, QUEUE),
            ("buffer", self.buffer, BUFFER),
        )  # fmt: skip
        return "kvm-pvmmu" + "".join(f":{k}={v}" for k, v, default in given if v != default)

    def levers(self, trace: Trace) -> HookSet:
        """Return the hooks that change what happens to this trace."""
        return covered_hooks(trace, HOOKS)

    def classes(self, trace: Trace, space: Space) -> Partition:
        """Partition hook sets into classes that this mode carries alike on a trace."""
        present = {int(o) for o in np.unique(trace["op"])}

        def signature(_: HookSet, switch: Sequence[str], subset: HookSet) -> object:
            table = carrier_table(subset)
            covered = {int(op) for name in switch for op in catalogue()[name].operations}
            return tuple(int(table[op]) for op in sorted(covered & present))

        return partition(space, (), SWITCHES, signature)

    def run(self, trace: Trace, hooks: HookSet, log: bool = False) -> Outcome:
        """Replay a trace under a hook set: all of them can run."""
        carrier = carrier_table(hooks)[trace["op"]]
        rows, tables, pages, regions = _rows(trace)
        out_of_sync = np.bool_(self.shadow == "2.6.28")
        runs = []
        for times in counts_of_rows(trace):
            runs.append((new_counts(), new_log(6 * len(trace) + 64 if log else 0)))
            sizes = np.array([tables, pages, regions, self.queue, self.buffer], np.int64)
            run_kvm(rows, carrier, times, sizes, out_of_sync, *runs[-1])
        return outcome(runs, carrier, _NAMES)


def carrier_table(hooks: HookSet) -> np.ndarray:
    """Return the carrier of each operation, uint8[N_OPS]."""
    out, have = np.zeros(N_OPS, np.uint8), set(hooks)
    told = Carrier.RECORD if have & set(STORES[Op.SET_PTE]) else Carrier.WRITE
    out[Op.SET_PTE] = out[Op.MODIFY_PROT_COMMIT] = told
    out[[int(o) for o in RMW_OPS]] = Carrier.WRITE
    out[Op.PTE_CLEAR] = Carrier.RECORD if "pte_clear" in have else Carrier.WRITE
    out[Op.MODIFY_PROT_START] = Carrier.WRITE
    if "ptep_modify_prot" in have:
        out[Op.MODIFY_PROT_START], out[Op.MODIFY_PROT_COMMIT] = Carrier.NOTHING, Carrier.RECORD
    for op in SET_UPPER_OPS:
        hooked = have & set(upper_hooks(op))
        out[op] = Carrier.UPPER_RECORD if hooked else Carrier.UPPER_WRITE
    for op, names in _RELEASED.items():
        out[op] = Carrier.RELEASE if have & set(names) else Carrier.NOTHING
    out[[int(o) for o in _TRAPPED]] = Carrier.EXIT
    out[Op.LOAD_CR3] = out[Op.FLUSH_KERNEL] = Carrier.EXIT_FLUSH
    out[Op.FLUSH_USER] = Carrier.FLUSH_RECORD if "flush_tlb_user" in have else Carrier.EXIT_FLUSH
    out[Op.SEND_IPI], out[Op.FAULT], out[Op.TOUCH] = Carrier.IPI, Carrier.FAULT, Carrier.TOUCH
    if "lazy_mmu" in have:
        out[[Op.LAZY_ENTER, Op.LAZY_RESUME]] = Carrier.BRACKET
        out[[Op.LAZY_LEAVE, Op.LAZY_PAUSE]] = Carrier.BRACKET_END
    return out


def _rows(trace: Trace) -> tuple[np.ndarray, int, int, int]:
    """Return the rows as the loop reads them, and numbers of tables, pages and regions."""
    if "kvm rows" not in trace.derived:
        reach = 22 if trace.platform.levels == 2 else 21
        rows = np.zeros(len(trace), ROW)
        tables, rows["table"] = np.unique(trace["table"], return_inverse=True)
        rows["table"][trace["table"] < 0] = -1
        rows["cpu"], rows["present"] = trace["cpu"], (trace["value"] & 1) != 0
        pages, rows["page"] = _numbered(trace, 12)
        regions, rows["region"] = _numbered(trace, reach)
        trace.derived["kvm rows"] = (rows, len(tables), pages, regions)
    out: tuple[np.ndarray, int, int, int] = trace.derived["kvm rows"]
    return out


def _numbered(trace: Trace, shift: int) -> tuple[int, np.ndarray]:
    place = (trace["va"] >> np.uint64(shift)).astype(np.int64)
    key = np.stack([trace["mm"].astype(np.int64), place], axis=1)
    found, number = np.unique(key, axis=0, return_inverse=True)
    return len(found), number.reshape(-1)
