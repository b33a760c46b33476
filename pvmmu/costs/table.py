"""What a cost table holds: prices of events, each with unit, kind, source and range."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import pandas as pd
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from pvmmu.errors import CostError, did_you_mean
from pvmmu.guest.vocabulary import Op
from pvmmu.modes.events import EVENTS, N_EVENTS, Event, column

STRICT = ConfigDict(extra="forbid", frozen=True)
_EVENT_OF = {column(e): e for e in EVENTS}
_OPERATIONS = {op.name.lower() for op in Op}
#: What a program pays for beside its operations on the MMU; see `pvmmu.guest.readers.xen.context`.
CONTEXT: Final = ("system_calls", "switches", "entries_read", "exits")
#: What the keys of sections that are not of events name.
_KEYS: Final = {
    "operations": ("operation", tuple(sorted(_OPERATIONS))), "context": ("context", CONTEXT),
}  # fmt: skip
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Cost(BaseModel):
    """The price of one event.

    Parameters
    ----------
    value : float
        In `unit`, not negative.
    unit : str
        ``cycles``, ``ns`` or ``us``; or ``instructions``, in a table of nothing else.
    kind : str
        ``measured`` (by code in this repository, or its truth), ``published``, ``secondary`` (a
        published figure read in somebody else's notes) or ``prior``.
    source : str
        Where it comes from.
    range : (float, float) or None
        Plausible values, in `unit`; required of a prior.
    follows : str
        The event whose price is the same unknown: both lie at the same place of their ranges.
    """

    model_config = STRICT
    value: NonNegative
    unit: Literal["cycles", "ns", "us", "instructions"]
    kind: Literal["measured", "published", "secondary", "prior"]
    source: Annotated[str, Field(min_length=3)]
    range: tuple[NonNegative, NonNegative] | None = None
    follows: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "prior" and self.range is None:
            raise ValueError("a prior needs a range")
        if self.range is not None and not self.range[0] <= self.value <= self.range[1]:
            raise ValueError(f"value {self.value:g} is outside its range {list(self.range)}")
        return self


class Measurement(BaseModel):
    """How long a whole operation of the kernel took on some machine; no price of an event.

    Parameters
    ----------
    value, spread : float
        Median of the repetitions and half the distance between their quartiles, in `unit`.
    unit : str
        ``ns``.
    meaning : str
        What was timed.
    """

    model_config = STRICT
    value: NonNegative
    spread: NonNegative
    unit: Literal["ns"] = "ns"
    meaning: str


def _check_followers(section: dict[str, Cost]) -> None:
    """A figure follows one with a range, beside it, that follows none itself."""
    for name, cost in section.items():
        leader = section.get(cost.follows) if cost.follows else None
        if cost.follows and (leader is None or leader.range is None or leader.follows):
            raise ValueError(f"{name!r} follows {cost.follows!r}, which has no range of its own")
        if cost.follows and cost.range is None:
            raise ValueError(f"{name!r} follows {cost.follows!r} but has no range")


class CostTable(BaseModel):
    """Prices of events on one processor under one hypervisor.

    Parameters
    ----------
    name : str
        Name of the file without suffix.
    title, cpu, hypervisor, notes : str
        For readers.
    like : str
        Table from which the figures not given were taken.
    year : int
        Of the processor.
    mhz : float
        Clock, to convert times to cycles; a table in instructions needs none.
    events : dict of str to Cost
        By the event's column name.
    free : dict of str to str
        Events that cost nothing here, and why.
    operations : dict of str to Cost
        By the name of an operation (lower case): what it costs whatever carries it.
    context : dict of str to Cost
        What a program pays for beside its operations on the MMU: ``system_calls``, ``switches``,
        ``entries_read``, ``exits``.
    error : (float, float) or None
        Of a fitted table: relative error of what it predicts for whole programs that were not in
        the fit, median and 95th percentile.
    measurements : dict of str to Measurement
        Whole operations that were timed on this machine.
    """

    model_config = STRICT
    name: str = ""
    title: str
    cpu: str
    hypervisor: str = ""
    like: str = ""
    year: int
    mhz: Annotated[float, Field(gt=0)] | None = None
    notes: str = ""
    events: dict[str, Cost] = {}
    free: dict[str, str] = {}
    operations: dict[str, Cost] = {}
    context: dict[str, Cost] = {}
    error: tuple[NonNegative, NonNegative] | None = None
    measurements: dict[str, Measurement] = {}

    @field_validator("events", "free", "operations", "context")
    @classmethod
    def _known(cls, table: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        kind, known = _KEYS.get(str(info.field_name), ("event", tuple(_EVENT_OF)))
        for name in table:
            if name not in known:
                raise ValueError(f"no {kind} is named {name!r}{did_you_mean(name, known)}")
        return table

    @model_validator(mode="after")
    def _complete(self) -> Self:
        both = set(self.events) & set(self.free)
        if both:
            raise ValueError(f"{min(both)!r} is priced and free")
        for section in (self.events, self.operations, self.context):
            _check_followers(section)
        units = {c.unit for s in (self.events, self.operations, self.context) for c in s.values()}
        if "instructions" in units and len(units) > 1:
            raise ValueError("a table in instructions has no figures in other units")
        if self.mhz is None and self.unit == "cycles":
            raise ValueError("mhz: a table in cycles needs a clock")
        return self

    @property
    def unit(self) -> str:
        """``instructions`` or ``cycles``: what `vector` and `price` count."""
        for section in (self.events, self.operations, self.context):
            for cost in section.values():
                return "instructions" if cost.unit == "instructions" else "cycles"
        return "cycles"

    def _cycles(self, value: float, unit: str) -> float:
        return value * ((self.mhz or 0.0) / {"ns": 1000, "us": 1}[unit] if unit in ("ns", "us")
                        else 1.0)  # fmt: skip

    @functools.cached_property
    def vector(self) -> np.ndarray:
        """float64[N_EVENTS]: cycles (instructions, see `unit`) per event, NaN without a price."""
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
        """Return the cycles (or instructions, see `unit`) of some counts.

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
        """Raise `CostError` if an event in `counts` (int64[..., N_EVENTS]) has no price."""
        total = counts.reshape(-1, N_EVENTS).sum(axis=0)
        missing = np.flatnonzero((total > 0) & np.isnan(self.vector))
        if len(missing):
            name = column(Event(int(missing[0])))
            raise CostError(f"cost table {self.name!r} has no price for {name!r}")

    def parts(self, counts: Mapping[str, float]) -> pd.Series:
        """Return what each of some counts costs, in the table's `unit`: float64[key].

        Parameters
        ----------
        counts : mapping of str to float
            By the names of events, operations and context; what has no price here costs nothing,
            but for events.

        Raises
        ------
        CostError
            An event occurred that the table does not price.
        """
        priced = {**self.events, **self.operations, **self.context}
        out = {}
        for key, count in counts.items():
            if count and key in _EVENT_OF and key not in self.events and key not in self.free:
                raise CostError(f"cost table {self.name!r} has no price for {key!r}")
            if count and key in priced:
                out[key] = float(count) * self._cycles(priced[key].value, priced[key].unit)
        return pd.Series(out, dtype=float)

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
