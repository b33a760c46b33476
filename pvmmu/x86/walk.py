"""Page walks: translation, faults, accessed and dirty flags, references (SDM vol. 3A ch. 4).

`walk_many` and `walk_nested_many` translate arrays of millions of accesses. For a single access
with each entry and check shown, see `pvmmu.x86.explain`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pvmmu.x86.errors import WalkError
from pvmmu.x86.formats import PAE, PAE_IN_MEMORY, Format
from pvmmu.x86.lanes import LANES
from pvmmu.x86.plan import (
    FETCH,
    NO_PLAN,
    READ,
    WRITE,
    first_plan,
    second_plan,
)
from pvmmu.x86.registers import Ept, Npt, Registers
from pvmmu.x86.walk_arguments import accesses_of, check_owned, check_words
from pvmmu.x86.walk_run import Accesses, Exits, Results, walk_blocks, walk_run
from pvmmu.x86.walk_second import walk_second
from pvmmu.x86.walk_state import (
    EXIT,
    MAX_UPDATES,
    OUT,
    OUTSIDE,
    Scratch,
    new_scratch,
)

_CHUNK = 4096  # most accesses that are walked one by one before blocks are tried again


@dataclass(frozen=True)
class Walks:
    """What a processor makes of an array of accesses; one element for each, unless said otherwise.

    Attributes
    ----------
    vector : uint8[n]
        0, 13 (#GP: the address is not canonical) or 14 (#PF).
    error_code : int64[n]
        Of a page fault (SDM vol. 3A §4.7; bit 31, RMP: APM vol. 2 §8.4.2); -1 if there is none.
    pa : uint64[n]
        Physical address (bytes); 0 if there is no translation.
    page_shift : uint8[n]
        The page has ``2 ** page_shift`` bytes; 0 if there is no translation.
    level : uint8[n]
        Level of the last entry read (of the guest's tables, in a nested walk): 1 is the page
        table; 0 if none was read.
    references : uint8[n]
        Entries read from memory.
    update_access : int64[m]
        Accessed and dirty flags that the processor sets: which access ...
    update_pa : uint64[m]
        ... the physical address of the entry (bytes) ...
    update_value : uint64[m]
        ... and the new entry. The entries of an access are in order of their addresses. In a
        one-dimensional walk an access that faults sets no flags.
    """

    vector: npt.NDArray[np.uint8]
    error_code: npt.NDArray[np.int64]
    pa: npt.NDArray[np.uint64]
    page_shift: npt.NDArray[np.uint8]
    level: npt.NDArray[np.uint8]
    references: npt.NDArray[np.uint8]
    update_access: npt.NDArray[np.int64]
    update_pa: npt.NDArray[np.uint64]
    update_value: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class NestedWalks(Walks):
    """What a processor in guest mode makes of an array of accesses.

    The attributes of `Walks`, where ``pa`` is host-physical, ``page_shift`` the smaller of guest's
    and host's, and flags of the second dimension are set even if the guest then faults.

    Attributes
    ----------
    exit_reason : uint16[n]
        0; 48 (EPT violation) or 49 (EPT misconfiguration), SDM vol. 3C app. C; 0x400 (#NPF), APM
        vol. 2 app. C.
    exit_qualification : uint64[n]
        Exit qualification (SDM vol. 3C table 27-7) or EXITINFO1 (APM vol. 2 §15.25.6).
    gpa : uint64[n]
        Guest-physical address that failed; the access's own if it succeeds.
    """

    exit_reason: npt.NDArray[np.uint16]
    exit_qualification: npt.NDArray[np.uint64]
    gpa: npt.NDArray[np.uint64]


def walk_many(
    words: npt.NDArray[np.uint64],
    registers: Registers,
    va: npt.ArrayLike,
    access: npt.ArrayLike = READ,
    user: npt.ArrayLike = True,
    ac: npt.ArrayLike = False,
    *,
    apply: bool = False,
    owned: npt.ArrayLike | None = None,
) -> Walks:
    """Translate linear addresses.

    Parameters
    ----------
    words : uint64[m]
        Physical memory: element *i* holds the bytes 8 *i* to 8 *i* + 7.
    registers : Registers
        Control registers.
    va : uint64[n]
        Linear addresses; below 2**32 in 32-bit and PAE paging.
    access, user, ac : int[n] or int
        0 read, 1 write, 2 fetch; 3 and 4: read and write of a shadow stack (CET); 5 and 6: implicit
        read and write, the processor's own (a supervisor's, whatever the mode); whether in user
        mode; EFLAGS.AC (matters under SMAP).
    apply : bool
        Write accessed and dirty flags to `words`, so that each access sees those of the accesses
        before it. Otherwise `words` is left alone and each access starts from the same tables.
    owned : bool[frames], optional
        AMD, SEV-SNP, of the host: frames that the reverse map assigns to a guest or to firmware.
        Writes to them, and to a 2-MiB page with one of them, are RMP violations (APM §15.36.10).

    Returns
    -------
    Walks

    Raises
    ------
    WalkError
        An argument has a wrong type, shape or value, or a table lies outside of `words`; the
        message names the access. Flags written until then stay written.

    Notes
    -----
    `words` must be writable, even if it is not written to. A crash dump can be mapped with
    ``numpy.memmap(path, numpy.uint64, "c")``.
    """
    _check(words, registers)
    fmt = registers.format
    pdptes = np.array(registers.pdptes or load_pdptes(words, registers), np.uint64)
    accesses = accesses_of(fmt, registers, va, access, user, ac)
    exits = _exits(0)
    results, updates = _run(
        words, first_plan(registers), registers.root, pdptes, None, accesses, exits, apply,
        check_owned(owned, registers),
    )  # fmt: skip
    return Walks(*results, *updates)


def walk_nested_many(
    words: npt.NDArray[np.uint64],
    registers: Registers,
    second: Ept | Npt,
    va: npt.ArrayLike,
    access: npt.ArrayLike = READ,
    user: npt.ArrayLike = True,
    ac: npt.ArrayLike = False,
    *,
    apply: bool = False,
) -> NestedWalks:
    """Translate linear addresses of a guest, each of its references through a second dimension.

    Parameters
    ----------
    words : uint64[m]
        Host-physical memory.
    registers : Registers
        The guest's; addresses in its tables are guest-physical.
    second : Ept or Npt
        The second dimension.
    va, access, user, ac, apply
        As of `walk_many`.

    Returns
    -------
    NestedWalks

    Raises
    ------
    WalkError
        As of `walk_many`.

    Notes
    -----
    A walk of 4-KiB pages makes (g+1)(h+1)-1 references, g and h being the levels in memory.
    """
    _check(words, registers, second)
    fmt = guest_format(registers, second)
    pdptes = np.array(registers.pdptes or load_pdptes(words, registers, second), np.uint64)
    accesses = accesses_of(fmt, registers, va, access, user, ac)
    exits = _exits(accesses.va.size)
    results, updates = _run(
        words, first_plan(registers, fmt), registers.root, pdptes, second, accesses, exits, apply
    )
    return NestedWalks(*results, *updates, *exits)


def _exits(n: int) -> Exits:
    """Room for what nested walks add; pages of zeros cost nothing until they are written."""
    return Exits(np.zeros(n, np.uint16), np.zeros(n, np.uint64), np.empty(n, np.uint64))


def guest_format(registers: Registers, second: Ept | Npt | None) -> Format:
    """Format of the tables of a guest with `registers`: under AMD's nested paging (`second`) PDPTEs
    are read from memory (APM vol. 2 §15.25.10).
    """
    fmt = registers.format
    return PAE_IN_MEMORY if fmt is PAE and isinstance(second, Npt) else fmt


def load_pdptes(
    words: npt.NDArray[np.uint64], registers: Registers, second: Ept | Npt | None = None
) -> tuple[int, int, int, int]:
    """Return the PDPTEs that MOV to CR3 loads; zeros where the format has none in registers.

    Raises
    ------
    WalkError
        They lie outside of memory, are not mapped by the second dimension, or have reserved bits.
    """
    if guest_format(registers, second) is not PAE:
        return 0, 0, 0, 0
    at = registers.root
    if second is not None:
        s = new_scratch()
        root = np.uint64(second.root)
        at = int(
            walk_second(words, second_plan(second), root, np.uint64(at), READ, np.uint64(3), s)
        )
        if s.work[OUT, EXIT] or s.work[OUT, OUTSIDE]:
            raise WalkError(f"CR3 {registers.cr3:#x}: the second dimension does not map its table")
    if at // 8 + 4 > words.size:
        raise WalkError(f"CR3 {registers.cr3:#x}: PDPTEs at {at:#x} are outside of the memory")
    a, b, c, d = (int(e) for e in words[at // 8 : at // 8 + 4])
    registers.check_pdptes((a, b, c, d))
    return a, b, c, d


def _run(
    words: npt.NDArray[np.uint64],
    first: Any,
    root: int,
    pdptes: np.ndarray,
    second: Ept | Npt | None,
    accesses: Accesses,
    exits: Exits,
    apply: bool,
    owned: np.ndarray | None = None,
) -> tuple[Results, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Walk in lockstep as far as that goes, one by one otherwise."""
    n = accesses.va.size
    plan = NO_PLAN if second is None else second_plan(second)
    second_root = np.uint64(0 if second is None else second.root)
    results = Results(
        np.empty(n, np.uint8),
        np.empty(n, np.int64),
        np.empty(n, np.uint64),
        np.empty(n, np.uint8),
        np.empty(n, np.uint8),
        np.empty(n, np.uint8),
    )
    s, parts, i = new_scratch(owned=owned), [np.empty((0, 3), np.uint64)], 0
    # kinds of access that blocks know
    last = WRITE if isinstance(second, Ept) and second.mode_based_execute else FETCH
    plain = owned is None and not (n and int(accesses.access.max()) > last)
    stretch = LANES if plain else _CHUNK
    tables = words, first, np.uint64(root), pdptes, plan, second_root, accesses
    updates = np.empty((min(_CHUNK, n) * MAX_UPDATES, 3), np.uint64)
    while i < n:
        done = int(walk_blocks(*tables, i, results, exits.gpa, s)) if plain else i
        # one by one where blocks do not get on, and longer each time
        stretch = LANES if done > i else min(2 * stretch, _CHUNK)
        end, i = min(done + stretch, n), done
        while i < end:
            i, used = walk_run(*tables, i, end, bool(apply), results, exits, updates, s)
            parts.append(updates[:used].copy())
            if s.work[OUT, OUTSIDE]:
                raise _outside(words, accesses, i, s)
    access, pa, value = np.concatenate(parts).T.copy()
    return results, (access.astype(np.int64), pa, value)


def _outside(words: np.ndarray, accesses: Accesses, i: int, s: Scratch) -> WalkError:
    at = int(s.work[OUT, OUTSIDE]) & ~1
    return WalkError(
        f"access {i} (va {int(accesses.va[i]):#x}): the entry at {at:#x} is outside of the memory "
        f"({8 * words.size:#x} bytes)"
    )


def _check(words: Any, registers: Any, second: Any = READ) -> None:
    check_words(words)
    if not isinstance(registers, Registers):
        raise WalkError(f"registers must be Registers, not {type(registers).__name__}")
    if second is not READ and not isinstance(second, Ept | Npt):
        raise WalkError(f"second must be Ept or Npt, not {type(second).__name__}")
