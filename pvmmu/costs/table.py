"""What a cost table holds: prices of events, each with unit, kind, source and range."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pvmmu.errors import CostError, did_you_mean
from pvmmu.modes.events import EVENTS, N_EVENTS, Event, column

STRICT = ConfigDict(extra="forbid", frozen=True)
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
    follows : str
        The event whose price is the same unknown: both lie at the same place of their ranges.
    """

    model_config = STRICT
    value: NonNegative
    unit: Literal["cycles", "ns", "us"]
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
        Clock, to convert times to cycles.
    events : dict of str to Cost
        By the event's column name.
    free : dict of str to str
        Events that cost nothing here, and why.
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
    mhz: Annotated[float, Field(gt=0)]
    notes: str = ""
    events: dict[str, Cost]
    free: dict[str, str] = {}
    measurements: dict[str, Measurement] = {}

    @field_validator("events", "free")
    @classmethod
    def _known(cls, table: dict[str, Any]) -> dict[str, Any]:
        for name in table:
            if name not in _EVENT_OF:
                raise ValueError(f"no event is named {name!r}{did_you_mean(name, _EVENT_OF)}")
        return table

    @model_validator(mode="after")
    def _complete(self) -> Self:
        both = set(self.events) & set(self.free)
        if both:
            raise ValueError(f"{min(both)!r} is priced and free")
        for name, cost in self.events.items():
            leader = self.events.get(cost.follows) if cost.follows else None
            if cost.follows and (leader is None or leader.range is None or leader.follows):
                raise ValueError(
                    f"{name!r} follows {cost.follows!r}, which has no range of its own"
                )
            if cost.follows and cost.range is None:
                raise ValueError(f"{name!r} follows {cost.follows!r} but has no range")
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
        """Raise `CostError` if an event in `counts` (int64[..., N_EVENTS]) has no price."""
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
