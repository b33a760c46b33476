"""From instructions to cycles: a processor's clock per instruction, and what it takes beyond them.

A table in instructions and a processor (``data/costs/processors/*.toml``) make a table in cycles:
instructions times CPI, plus for each event what the hardware does by itself: an exception and its
IRET, SYSCALL and SYSRET, a CR3 load, INVLPG and the refill, an exit of a virtual machine. With XPTI
(Xen 4.10.1 and later, on processors with Meltdown) each entry of a 64-bit PV guest loads CR3 twice.

Such a table is named ``xen-4.17-instructions@skylake-2017``, or ``...@skylake-2017+xpti``.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, Field, model_validator

from pvmmu.costs.table import STRICT, Cost, CostTable, NonNegative
from pvmmu.errors import CostError, did_you_mean
from pvmmu.files import read_toml, validated
from pvmmu.paths import data_path

#: What the hardware does by itself in each event, and how often.
_CALL: Final = {"syscall": 1}
_TRAP: Final = {"exception": 1}
_EXIT: Final = {"exit": 1}
BEYOND: Final[dict[str, dict[str, int]]] = {
    "mmu_update": _CALL, "update_va_mapping": _CALL, "mmuext_op": _CALL, "multicall": _CALL,
    "continuation": _CALL, "page_fault": {"exception": 1, "syscall": 1}, "pte_emulation": _TRAP,
    "privop_emulation": _TRAP, "tlb_flush": {"cr3_load": 1}, "tlb_flush_one": {"invlpg": 1,
    "refill": 1}, "system_calls": {"syscall": 2, "exception": 1}, "switches": {"syscall": 4},
}  # fmt: skip
_BEYOND_VM: Final[dict[str, dict[str, int]]] = {
    name: _EXIT for name in ("page_fault", "shadow_fault", "pte_emulation", "cr3_write_exit",
                             "cr3_read_exit", "invlpg_exit", "exits")
}  # fmt: skip
#: Entries of a PV guest to Xen, each of which loads CR3 twice under XPTI.
_PV_ENTRIES: Final = (
    "mmu_update", "update_va_mapping", "mmuext_op", "multicall", "continuation", "page_fault",
    "pte_emulation", "privop_emulation", "system_calls",
)  # fmt: skip


class Figure(BaseModel):
    """A figure of a processor: instructions' clocks, or cycles.

    Parameters
    ----------
    value : float
        In cycles (or cycles per instruction).
    kind : str
        As of a `Cost`.
    range : (float, float)
        Plausible values.
    source : str
        Where it comes from.
    """

    model_config = STRICT
    value: NonNegative
    kind: Literal["measured", "published", "secondary", "prior"]
    range: tuple[NonNegative, NonNegative]
    source: Annotated[str, Field(min_length=3)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.range[0] <= self.value <= self.range[1]:
            raise ValueError(f"value {self.value:g} is outside its range {list(self.range)}")
        return self


class Processor(BaseModel):
    """What a processor makes of instructions.

    Parameters
    ----------
    name, title : str
        For readers.
    year : int
        When it came.
    mhz : float
        Its clock.
    cpi : Figure
        Cycles per instruction.
    beyond : dict of str to Figure
        Cycles beyond the instructions: ``syscall``, ``exception``, ``cr3_load``, ``invlpg``,
        ``refill``, ``exit``.
    """

    model_config = STRICT
    name: str = ""
    title: str
    year: int
    mhz: Annotated[float, Field(gt=0)]
    cpi: Figure
    beyond: dict[str, Figure]


def processor_names() -> list[str]:
    """Return the names of the processors that ship with the package."""
    return sorted(p.stem for p in data_path("costs", "processors").glob("*.toml"))


@functools.cache
def get_processor(name: str) -> Processor:
    """Return a processor by its name.

    Parameters
    ----------
    name : str
        One of `processor_names`.

    Raises
    ------
    CostError
        There is none of that name, or its file breaks a rule (named, with the field).
    """
    path = data_path("costs", "processors", f"{name}.toml")
    if not path.is_file():
        hint = did_you_mean(name, processor_names())
        raise CostError(f"no processor is named {name!r}{hint}")
    return validated(Processor, read_toml(path, CostError) | {"name": name}, path, CostError)


def in_cycles(table: CostTable, processor: Processor | str, *, xpti: bool = False) -> CostTable:
    """Return a table in cycles.

    Parameters
    ----------
    table : CostTable
        In instructions.
    processor : Processor or str
        What executes them.
    xpti : bool
        Xen hides itself from its 64-bit PV guests: two more CR3 loads for each entry.

    Returns
    -------
    CostTable
        Its figures are priors where the processor's are; ranges are the sums of both ends.

    Raises
    ------
    CostError
        `table` is not in instructions, or the processor lacks a figure.
    """
    if table.unit != "instructions":
        raise CostError(f"cost table {table.name!r} is in cycles already")
    cpu = get_processor(processor) if isinstance(processor, str) else processor
    direct = "mmu_update" in table.events
    beyond = BEYOND if direct else _BEYOND_VM
    sections: dict[str, dict[str, Any]] = {"events": {}, "operations": {}, "context": {}}
    for section, figures in sections.items():
        for name, cost in getattr(table, section).items():
            extra = dict(beyond.get(name, {}))
            if xpti and direct and name in _PV_ENTRIES:
                extra["cr3_load"] = extra.get("cr3_load", 0) + 2
            figures[name] = _cost(cost, extra, cpu)
    free = dict(table.free)
    for name, extra in beyond.items():  # no instructions of their own, but the hardware's work
        if name in free and any(part in ("invlpg", "cr3_load") for part in extra):
            del free[name]
            nothing = Cost(value=0.0, unit="instructions", kind="measured", source="priced with "
                           "its call", range=(0.0, 0.0))  # fmt: skip
            sections["events"][name] = _cost(nothing, extra, cpu)
    return CostTable(
        name=f"{table.name}@{cpu.name}{'+xpti' if xpti else ''}",
        title=f"{table.title}; in cycles of {cpu.title}", cpu=cpu.title,
        hypervisor=table.hypervisor, year=cpu.year, mhz=cpu.mhz, free=free,
        notes=f"Instructions of {table.name} times CPI, and what the processor takes beyond them. "
        f"CPI: {cpu.cpi.source}.", **sections,
    )  # fmt: skip


def _cost(cost: Cost, extra: dict[str, int], cpu: Processor) -> Cost:
    """Return a price in cycles."""
    missing = sorted(set(extra) - set(cpu.beyond))
    if missing:
        raise CostError(f"processor {cpu.name!r} has no figure for {missing[0]!r}")
    low, high = cost.range or (cost.value, cost.value)
    parts = [(n, cpu.beyond[name]) for name, n in extra.items()]
    text = "".join(f"; {n} x {name} of the processor" for name, n in extra.items())
    return Cost(
        value=cost.value * cpu.cpi.value + sum(n * f.value for n, f in parts),
        unit="cycles",
        kind="prior",
        range=(
            low * cpu.cpi.range[0] + sum(n * f.range[0] for n, f in parts),
            high * cpu.cpi.range[1] + sum(n * f.range[1] for n, f in parts),
        ),
        source=f"{cost.value:,.0f} instructions ({cost.source}){text}",
        follows=cost.follows,
    )
