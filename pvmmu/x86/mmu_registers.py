"""What else MMUs do: CR3 is loaded, an entry is stored (SDM vol. 3A §4.4.1, §4.5.2)."""

from __future__ import annotations

import numpy as np

from pvmmu._jit import part
from pvmmu.x86.mmu_state import PCID, PCIDE, PDPTES, ROOT, ROOT_MASK, SECOND_ROOT
from pvmmu.x86.plan import LEVELS, READ, REGISTER, TABLE_RESERVED
from pvmmu.x86.walk_kernel import reset
from pvmmu.x86.walk_second import walk_second
from pvmmu.x86.walk_state import EXIT, OUT, OUTSIDE

_Z, _ONE, _3 = (np.uint64(i) for i in (0, 1, 3))
_32, _LOW = np.uint64(0xFFFF_FFFF), np.uint64(0xFFF)


@part
def load_cr3(words, first, second, control, cpus, cpu, value, s):  # type: ignore[no-untyped-def]
    """Another root table (SDM vol. 3A §4.5.2); PAE paging also loads the PDPTE registers (§4.4.1).

    False if the PDPTEs cannot be loaded.
    """
    cpus[cpu, ROOT] = value & control[ROOT_MASK]
    cpus[cpu, PCID] = value & _LOW if control[PCIDE] else _Z
    if first[LEVELS, REGISTER] == _Z:
        return True
    reset(s.work, np.uint64(cpu))
    at = walk_second(words, second, control[SECOND_ROOT], cpus[cpu, ROOT], np.int64(READ), _3, s)
    wrong = s.work[OUT, EXIT] | s.work[OUT, OUTSIDE] != _Z
    if wrong or at >> _3 > np.uint64(words.size - 4):
        return False
    for i in range(4):
        entry = words[(at >> _3) + np.uint64(i)]
        if entry & _ONE != _Z and entry & first[LEVELS, TABLE_RESERVED] != _Z:
            return False
        cpus[cpu, PDPTES + i] = entry
    return True


@part
def store_entry(words, at, value, width):  # type: ignore[no-untyped-def]
    """The kernel writes an entry of 4 or 8 bytes."""
    if width == np.uint64(4):
        shift = (at & np.uint64(4)) << _3
        words[at >> _3] = (words[at >> _3] & ~(_32 << shift)) | (value & _32) << shift
    else:
        words[at >> _3] = value
