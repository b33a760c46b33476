"""Compiling everything beforehand, announced, once for each version of the package."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np

from pvmmu._jit import cache_dir
from pvmmu.x86.accesses import pages
from pvmmu.x86.examples import ExampleSpace
from pvmmu.x86.geometry import make_geometry
from pvmmu.x86.mmu import Mmu
from pvmmu.x86.mmu_events import Event, make_events
from pvmmu.x86.reach import MissStream, Reach
from pvmmu.x86.tlb import Tlb
from pvmmu.x86.walk import walk_many, walk_nested_many

_MARK: Final = "x86-compiled"


def _walks() -> None:
    space = ExampleSpace()
    va = np.full(3, space.places["a page"], np.uint64)
    native, nested = space.dimension("native"), space.dimension("nested")
    walk_many(native.words, native.registers, va)
    if nested.second is not None:
        walk_nested_many(nested.words, nested.registers, nested.second, va)


def _tlbs() -> None:
    few = pages(np.arange(1 << 17, dtype=np.uint64) << np.uint64(12))
    for sets in (16, 1):  # two first levels, and the two kernels that they suit
        tlb = Tlb(make_geometry((sets, 4), (128, 12)))
        tlb.run(few)
        tlb.run(pages(np.zeros(1 << 17, np.uint64)))
        tlb.levels(pages(np.zeros(2, np.uint64)))
        tlb.load_cr3(1)
        tlb.invlpg(0)
    Reach().add(MissStream(16, 4).of(few))


def _mmus() -> None:
    space = ExampleSpace()
    for way in ("native", "nested"):
        d = space.dimension(way)
        mmu = Mmu(d.words.copy(), d.registers, "skylake", second=d.second, validate=True)
        mmu.access(space.places["a page"])
        mmu.run(make_events([Event.INVLPG, Event.PROMISE], 0, 4096))


_PARTS: Final[dict[str, Callable[[], None]]] = {
    "walks": _walks, "TLBs and reach": _tlbs, "MMUs": _mmus,
}  # fmt: skip


def warm_up(say: Callable[[str], object] | None = None) -> float:
    """Compile the kernels of `pvmmu.x86`, unless this version's are on disk already.

    Parameters
    ----------
    say : callable, optional
        Is told what happens, in lines; ``print`` to standard error by default. Nothing is said if
        there is nothing to compile.

    Returns
    -------
    float
        Seconds that it took, 0 if there was nothing to do.
    """
    folder = cache_dir("x86")
    mark = None if folder is None else Path(folder) / _MARK
    if mark is not None and mark.exists():
        return 0.0
    tell = say or (lambda line: print(line, file=sys.stderr, flush=True))
    tell("compiling pvmmu.x86, once for this version ...")
    start = time.perf_counter()
    for name, compile_part in _PARTS.items():
        compile_part()
        tell(f"  {name}: {time.perf_counter() - start:.0f} s")
    if mark is not None:
        mark.touch()
    return time.perf_counter() - start
