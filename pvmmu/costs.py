"""Cost tables: cycles per event for a processor and a hypervisor, every figure with its source.

A table is a TOML file (``data/costs/*.toml``, or one of your own)::

    title = "Xen PV on a Pentium 4 of 2006"
    cpu = "Intel Pentium 4 672, 3.8 GHz"
    mhz = 3800
    [events.mmu_update]
    value = 600
    unit = "cycles"            # or ns, us
    kind = "prior"             # measured, published, secondary, prior
    range = [300, 1200]        # required of a prior
    source = "no published figure; bracketed by ..."

Figures are per event of `pvmmu.modes.events`; one left out costs nothing, which the file must say
in ``free``.
"""

from __future__ import annotations

import difflib
import functools
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from pvmmu.errors import CostError
from pvmmu.modes.events import EVENTS, N_EVENTS, Event, column
from pvmmu.paths import data_path

_STRICT = ConfigDict(extra="forbid", frozen=True)
_EVENT_OF = {column(e): e for e in EVENTS}
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Cost(BaseModel):
    """The price of one event.

    Parameters
    ----------
    value : float
        In `unit`, not negative.
    unit : str
        ``cycles``, ``ns`` or ``us``.
    kind : str
        ``measured`` (by code in this repository, or its truth), ``published``, ``secondary`` (a
        published figure read in somebody else's notes) or ``prior``.
    source : str
        Where it comes from.
    range : (float, float) or None
        Plausible values, in `unit`; required of a prior.
    """

    model_config = _STRICT
    value: NonNegative
    unit: Literal["cycles", "ns", "us"]
    kind: Literal["measured", "published", "secondary", "prior"]
    source: Annotated[str, Field(min_length=3)]
    range: tuple[NonNegative, NonNegative] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "prior" and self.range is None:
            raise ValueError("a prior needs a range")
        if self.range is not None and not self.range[0] <= self.value <= self.range[1]:
            raise ValueError(f"value {self.value:g} is outside its range {list(self.range)}")
        return self


class CostTable(BaseModel):
    """Prices of events on one processor under one hypervisor.

    Parameters
    ----------
    name : str
        Name of the file without suffix.
    title, cpu, notes : str
        For readers.
    year : int
        Of the processor.
    mhz : float
        Clock, to convert times to cycles.
    events : dict of str to Cost
        By the event's column name.
    free : dict of str to str
        Events that cost nothing here, and why.
    """

    model_config = _STRICT
    name: str = ""
    title: str
    cpu: str
    year: int
    mhz: Annotated[float, Field(gt=0)]
    notes: str = ""
    events: dict[str, Cost]
    free: dict[str, str] = {}

    @field_validator("events", "free")
    @classmethod
    def _known(cls, table: dict[str, Any]) -> dict[str, Any]:
        for name in table:
            if name not in _EVENT_OF:
                near = difflib.get_close_matches(name, _EVENT_OF, 1, 0.4)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"no event is named {name!r}{hint}")
        return table

    @model_validator(mode="after")
    def _complete(self) -> Self:
        both = set(self.events) & set(self.free)
        if both:
            raise ValueError(f"{min(both)!r} is priced and free")
        return self

    def _cycles(self, value: float, unit: str) -> float:
        return value * {"cycles": 1.0, "ns": self.mhz / 1000, "us": self.mhz}[unit]

    @functools.cached_property
    def vector(self) -> np.ndarray:
        """float64[N_EVENTS]: cycles per event, NaN for an event that has no price."""
        out = np.full(N_EVENTS, np.nan)
        for name, cost in self.events.items():
            out[_EVENT_OF[name]] = self._cycles(cost.value, cost.unit)
        for name in self.free:
            out[_EVENT_OF[name]] = 0.0
        return out

    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the least and greatest price of each event (float64[N_EVENTS]).

        They differ from `vector` only where a figure has a range.
        """
        low, high = self.vector.copy(), self.vector.copy()
        for name, cost in self.events.items():
            if cost.range:
                low[_EVENT_OF[name]] = self._cycles(cost.range[0], cost.unit)
                high[_EVENT_OF[name]] = self._cycles(cost.range[1], cost.unit)
        return low, high

    def price(self, counts: np.ndarray) -> float:
        """Return the cycles of some counts.

        Parameters
        ----------
        counts : int64[N_EVENTS]
            Of a replay.

        Raises
        ------
        CostError
            An event occurred that the table does not price.
        """
        self.require(counts)
        return float(np.nansum(np.where(counts > 0, counts * self.vector, 0.0)))

    def require(self, counts: np.ndarray) -> None:
        """Raise `CostError` if an event with a count (int64[..., N_EVENTS]) has no price."""
        total = counts.reshape(-1, N_EVENTS).sum(axis=0)
        missing = np.flatnonzero((total > 0) & np.isnan(self.vector))
        if len(missing):
            name = column(Event(int(missing[0])))
            raise CostError(f"cost table {self.name!r} has no price for {name!r}")

    def frame(self) -> pd.DataFrame:
        """Return the table for readers: value, unit, cycles, range, kind, source per event."""
        rows = [
            {
                "event": name, "value": c.value, "unit": c.unit,
                "cycles": self._cycles(c.value, c.unit),
                "low": self._cycles(c.range[0], c.unit) if c.range else np.nan,
                "high": self._cycles(c.range[1], c.unit) if c.range else np.nan,
                "kind": c.kind, "source": c.source,
            }
            for name, c in self.events.items()
        ]  # fmt: skip
        return pd.DataFrame(rows).set_index("event")


def cost_names() -> list[str]:
    """Return the names of the tables that ship with the package."""
    return sorted(p.stem for p in data_path("costs").glob("*.toml"))


def get_costs(table: str | os.PathLike[str] | CostTable) -> CostTable:
    """Return a cost table by name, from a TOML file, or as it is.

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
        near = difflib.get_close_matches(str(table), cost_names(), 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise CostError(f"no cost table is named {str(table)!r}{hint}")
    return _shipped(path)


@functools.cache
def _shipped(path: Path) -> CostTable:
    return _load(path)


def _load(path: Path) -> CostTable:
    try:
        doc = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise CostError(f"{path}: cannot be read ({e.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise CostError(f"{path}: not TOML ({e})") from None
    try:
        return CostTable(name=path.stem, **doc)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "table"
        message = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        shown = "" if isinstance(given, dict) or "named" in message else f", not {given!r}"
        raise CostError(f"{path}: {where}: {message}{shown}") from None
    except TypeError as e:
        raise CostError(f"{path}: {e}") from None
