"""When each mechanism of a mode takes effect: the facts behind soundness, in one place.

A mode says what carries each row (`Outcome.mechanism`); this says what that means for the entry:
does it change at once, or when a queue is sent; is the queue opened, closed or sent; and is an
operation that natively is one access to the entry one here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Final

import numpy as np

from pvmmu.guest.promises import READS
from pvmmu.guest.vocabulary import N_OPS, Op
from pvmmu.modes.base import Mode
from pvmmu.modes.custom import Becomes, CustomMode
from pvmmu.modes.direct.kernel import Mechanism as Direct
from pvmmu.modes.lguest_kernel import Mechanism as Lguest
from pvmmu.modes.shadow.kvm_pvmmu_kernel import Mechanism as KvmPvmmu
from pvmmu.modes.shadow.mechanisms import Mechanism as Shadow
from pvmmu.modes.vmi_kernel import Mechanism as Vmi


class Effect(IntFlag):
    """What a mechanism means for the entry that its operation is about, and for the queue."""

    NOW = 1  # the entry changes at once, whatever waits
    WAITS = 2  # the hypervisor changes it when the queue is sent: in a bracket it waits
    TOLD = 4  # it changes at once; a shadow of it does when the queue is sent
    OPENS = 8  # from here on updates wait
    CLOSES = 16  # ... up to here: the queue is sent
    SENDS = 32  # the queue is sent, and stays open
    APART = 64  # a read and a later write of the entry stand for what natively is one access
    PEEKS = 128  # a protection change begins with a read only, and leaves the entry as it is


_NONE: Final = Effect(0)
#: Effects of the mechanisms of a mode; those not named have none on entries and queue.
_EFFECTS: Final[Mapping[str, Mapping[IntEnum, Effect]]] = {
    # The entry is written by Xen (do_mmu_update, do_update_va_mapping) when the multicall buffer is
    # flushed; a store that traps is emulated at once and leaves the buffer as it is.
    "direct": {
        **dict.fromkeys((Direct.STORE, Direct.LOCKED, Direct.TRAP), Effect.NOW),
        **dict.fromkeys(
            (
                Direct.MMU_UPDATE,
                Direct.MMU_UPDATE_TWICE,
                Direct.UPDATE_VA,
                Direct.UPDATE_VA_FLUSH,
                Direct.UPDATE_IF_CLEARS,
                Direct.UPDATE_IF_CLEARS_TWICE,
            ),
            Effect.WAITS,
        ),
        Direct.LAZY_BRACKET: Effect.OPENS,
        Direct.LAZY_BRACKET_END: Effect.CLOSES,
        **dict.fromkeys(
            (
                Direct.PIN,
                Direct.UNPIN,
                Direct.PIN_ROOT,
                Direct.UNPIN_ROOT,
                Direct.SWITCH_BRACKET_END,
            ),
            Effect.SENDS,
        ),
    },
    # KVM writes the guest's entry when it takes the record (kvm_pv_mmu_write).
    "kvm-pvmmu": {
        Shadow.STORE: Effect.NOW,
        KvmPvmmu.RECORD: Effect.WAITS,
        KvmPvmmu.BRACKET: Effect.OPENS,
        KvmPvmmu.BRACKET_END: Effect.CLOSES,
    },
    "shadow": {
        Shadow.STORE: Effect.NOW,
        Shadow.CALL_STORE: Effect.WAITS,
        Shadow.BRACKET: Effect.OPENS,
        Shadow.BRACKET_END: Effect.CLOSES,
    },
    # VMI and lguest: the table is the guest's own memory; the call that tells of it waits.
    "vmi": {
        **dict.fromkeys((Vmi.STORE, Vmi.LOCKED), Effect.NOW),
        **dict.fromkeys((Vmi.SET_PXE, Vmi.UPDATE_PXE), Effect.TOLD),
        Vmi.LAZY_BRACKET: Effect.OPENS,
        Vmi.LAZY_BRACKET_END: Effect.CLOSES,
        **dict.fromkeys(
            (
                Vmi.PAGE_CALL,
                Vmi.CLONE_CALL,
                Vmi.FLUSH_CALL,
                Vmi.IPI_CALL,
                Vmi.SWITCH_BRACKET_END,
            ),
            Effect.SENDS,
        ),
    },
    "lguest": {
        **dict.fromkeys((Lguest.STORE, Lguest.LOCKED), Effect.NOW),
        **dict.fromkeys((Lguest.TELL, Lguest.TELL_WITHOUT_ADDRESS, Lguest.TELL_TABLE), Effect.TOLD),
        Lguest.BRACKET: Effect.OPENS,
        Lguest.BRACKET_END: Effect.CLOSES,
    },
}
_OF_CUSTOM: Final[Mapping[IntEnum, Effect]] = {
    **dict.fromkeys((Becomes.STORE, Becomes.TRAP), Effect.NOW),
    Becomes.UPDATE: Effect.WAITS,
    Becomes.CALL: Effect.SENDS,
    Becomes.BRACKET: Effect.OPENS,
    Becomes.END: Effect.CLOSES,
}
#: What an update of the mode does in one access: mmu_update with MMU_PT_UPDATE_PRESERVE_AD is a
#: compare-and-exchange that keeps A and D (Xen 4.17 xen/arch/x86/pv/mm.h: update_intpte); no call
#: of any interface returns the old entry.
_PRESERVES: Final[Mapping[str, tuple[tuple[IntEnum, tuple[Op, ...]], ...]]] = {
    "direct": ((Direct.MMU_UPDATE, (Op.PTE_WRPROTECT, Op.MODIFY_PROT_COMMIT)),),
}


def effects_table(mode: Mode) -> np.ndarray:
    """Return what each mechanism of a mode means for each operation.

    Parameters
    ----------
    mode : Mode
        A paging mode. One that this module does not know has no queue.

    Returns
    -------
    uint8[N_OPS, 256]
        Sums of `Effect`, by operation and mechanism (`Outcome.mechanism`). Where the end of a
        protection change is `Effect.APART` it loses something only if its begin was a peek: else
        the entry was not present meanwhile.
    """
    known = _OF_CUSTOM if isinstance(mode, CustomMode) else _EFFECTS.get(mode.name, {})
    out = np.zeros((N_OPS, 256), np.uint8)
    for mechanism, effect in known.items():
        out[:, mechanism] = effect
        if effect & Effect.WAITS:
            out[[*READS, Op.MODIFY_PROT_COMMIT], mechanism] = effect | Effect.APART
    if known:
        begins = out[Op.MODIFY_PROT_START]
        changes = int(Effect.NOW | Effect.WAITS | Effect.TOLD)
        begins[begins & changes == 0] |= np.uint8(Effect.PEEKS)
    for kept, ops in _PRESERVES.get(mode.name, ()):
        out[list(ops), kept] = known[kept]
    return out
