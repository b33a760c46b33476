"""Cost tables in files: those that ship with the package, and your own."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from pvmmu.costs.table import STRICT, Cost, CostTable, NonNegative
from pvmmu.errors import CostError, did_you_mean
from pvmmu.files import read_toml
from pvmmu.paths import data_path


def cost_names() -> list[str]:
    """Return the names of the tables that ship with the package."""
    return sorted(p.stem for p in data_path("costs").glob("*.toml"))


def get_costs(table: str | os.PathLike[str] | CostTable) -> CostTable:
    """Return a cost table: `table` is a name, a path that ends in ``.toml``, or the table itself.

    Raises
    ------
    CostError
        There is none of that name, or the file breaks a rule; names the file and the field.
    """
    if isinstance(table, CostTable):
        return table
    path = Path(table)
    if path.suffix == ".toml":
        return _load(path)
    path = data_path("costs", f"{table}.toml")
    if not path.is_file():
        hint = did_you_mean(str(table), cost_names())
        raise CostError(f"no cost table is named {str(table)!r}{hint}")
    return _shipped(path)


@functools.cache
def _shipped(path: Path) -> CostTable:
    return _load(path)


def _load(path: Path) -> CostTable:
    doc = read_toml(path, CostError)
    try:
        return CostTable(name=path.stem, **_inherited(doc, path))
    except ValidationError as e:
        first = e.errors()[0]
        parts = (["scale"] if e.title == "_Scale" else []) + [str(part) for part in first["loc"]]
        where = ".".join(parts) or "table"
        message = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        shown = "" if isinstance(given, dict) or "named" in message else f", not {given!r}"
        raise CostError(f"{path}: {where}: {message}{shown}") from None
    except TypeError as e:
        raise CostError(f"{path}: {e}") from None


class _Scale(BaseModel):
    """What the figures of another table are multiplied by."""

    model_config = STRICT
    factor: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    range: tuple[NonNegative, NonNegative]
    source: Annotated[str, Field(min_length=3)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not 0 < self.range[0] <= self.factor <= self.range[1]:
            raise ValueError(f"factor {self.factor:g} is outside its range {list(self.range)}")
        return self

    def apply(self, cost: Cost, base: str) -> dict[str, Any]:
        """Return a figure of another processor as a prior of this one."""
        low, high = cost.range or (cost.value, cost.value)
        return {
            "value": cost.value * self.factor,
            "unit": cost.unit,
            "kind": "prior",
            "range": (low * self.range[0], high * self.range[1]),
            "source": f"{base}, times {self.factor:g} ({self.source}); there: {cost.source}",
            "follows": cost.follows,
        }


def _inherited(doc: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the document of a table with the figures of the one that it builds on."""
    if "like" not in doc:
        if "scale" in doc:
            raise CostError(f"{path}: scale: there is nothing to scale without 'like'")
        return doc
    if doc["like"] == path.stem:
        raise CostError(f"{path}: like: a table cannot build on itself")
    base, events = get_costs(doc["like"]), doc.get("events", {})
    scale = _Scale(**doc.pop("scale")) if "scale" in doc else None
    taken = {
        name: scale.apply(cost, base.name) if scale else cost.model_dump()
        for name, cost in base.events.items()
        if name not in events and name not in doc.get("free", {})
    }
    for figure in taken.values():
        if figure["follows"] in events:  # the unknown that it shared is one no longer
            figure["follows"] = ""
    free = {k: v for k, v in base.free.items() if k not in events}
    return doc | {"events": taken | events, "free": free | doc.get("free", {})}
