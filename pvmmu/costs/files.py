"""Cost tables in files: those that ship with the package, and your own."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from pvmmu.costs.processor import in_cycles
from pvmmu.costs.table import STRICT, Cost, CostTable, NonNegative
from pvmmu.errors import CostError, did_you_mean
from pvmmu.files import read_toml, whole_file
from pvmmu.paths import data_path


def cost_names() -> list[str]:
    """Return the names of the tables that ship with the package."""
    return sorted(p.stem for p in data_path("costs").glob("*.toml"))


def get_costs(table: str | os.PathLike[str] | CostTable) -> CostTable:
    """Return a cost table: `table` is a name, a path that ends in ``.toml``, or the table itself.

    ``TABLE@PROCESSOR`` is a table in instructions in cycles of a processor; ``+xpti`` behind it
    adds what XPTI costs; see `pvmmu.costs.processor`.

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
    name, at, processor = str(table).partition("@")
    if at:
        cpu, plus, option = processor.partition("+")
        if plus and option != "xpti":
            raise CostError(f"cost table {str(table)!r}: {option!r} is no option (there is xpti)")
        return in_cycles(get_costs(name), cpu, xpti=bool(plus))
    path = data_path("costs", f"{table}.toml")
    if not path.is_file():
        hint = did_you_mean(str(table), cost_names())
        raise CostError(f"no cost table is named {str(table)!r}{hint}")
    return _shipped(path)


@functools.cache
def _shipped(path: Path) -> CostTable:
    return _load(path)


def write_costs(doc: Mapping[str, Any], path: Path) -> None:
    """Write the document `doc` of a table (strings, numbers, tables of them) to `path`, as TOML.

    Raises
    ------
    CostError
        The file cannot be written; there is none, or what was there before.
    """
    lines = [f"{k} = {_toml(v)}" for k, v in doc.items() if not isinstance(v, dict)]
    for section, table in doc.items():
        if section == "free":
            lines += ["", "[free]", *(f"{k} = {_toml(v)}" for k, v in table.items())]
        elif isinstance(table, dict):
            for name, fields in table.items():
                lines += ["", f"[{section}.{name}]"]
                lines += [f"{k} = {_toml(v)}" for k, v in fields.items()]
    with whole_file(path, CostError) as tmp:
        tmp.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def copy_costs(path: Path, folder: Path) -> str:
    """Copy a table of one's own into a folder; return its name there.

    What it takes from another file of one's own (``like``) is written into the copy.

    Parameters
    ----------
    path : Path
        The table.
    folder : Path
        It is there already.

    Raises
    ------
    CostError
        It breaks a rule or cannot be read; or a copy with what it takes cannot be written.
    OSError
        A plain copy cannot be written.
    """
    table, like = _load(path), str(read_toml(path, CostError).get("like", ""))
    if like.endswith(".toml"):
        doc = table.model_dump(exclude_none=True, exclude_defaults=True, exclude={"name", "like"})
        write_costs(doc | {"notes": f"{table.notes} Built on {like}.".strip()}, folder / path.name)
    else:
        shutil.copyfile(path, folder / path.name)
    return path.name


def _load(path: Path, above: tuple[Path, ...] = ()) -> CostTable:
    if path.resolve() in above:
        raise CostError(f"{path}: like: a table cannot build on itself")
    doc = read_toml(path, CostError)
    try:
        return CostTable(name=path.stem, **_inherited(doc, path, (*above, path.resolve())))
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


def _inherited(doc: dict[str, Any], path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the document of a table with the figures of the one that it builds on: one that ships,
    or a file beside it. `above` are the files that build on it, itself among them.
    """
    if "like" not in doc:
        if "scale" in doc:
            raise CostError(f"{path}: scale: there is nothing to scale without 'like'")
        return doc
    if doc["like"] == path.stem:
        raise CostError(f"{path}: like: a table cannot build on itself")
    beside = path.parent / doc["like"]
    base = _load(beside, above) if beside.suffix == ".toml" else get_costs(doc["like"])
    events = doc.get("events", {})
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
