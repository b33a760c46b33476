"""What the commands share: their options, and JSON that every reader takes."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

import pvmmu
from pvmmu._jit import fingerprint
from pvmmu.costs import CostTable
from pvmmu.errors import ModeError
from pvmmu.guest.load_trace import trace_names
from pvmmu.guest.trace import Trace
from pvmmu.modes.events import Event, column
from pvmmu.replay import Counts
from pvmmu.replay.compare import Design

HOOKS, MODE, COSTS = "linux-6.1", "direct", "p4-2006"
TRACE = "name, WORKLOAD.N@KERNEL, .parquet file, or recording"


class ListTraces(argparse.Action):
    """``--list``: print the names of the traces that ship with the package, and end."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kw: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="list the shipped traces", **kw)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and end."""
        print("\n".join(trace_names()))
        parser.exit()


def parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return a parser of the commands' kind."""
    p = argparse.ArgumentParser(prog=prog, description=description, epilog=epilog)
    p.add_argument("--list", action=ListTraces)
    p.add_argument("--json", action="store_true", help="print one JSON document")
    return p


def design(text: str) -> Design:
    """Return a design from ``MODE=HOOKS``.

    Raises
    ------
    ModeError, HookError
        It is none; names the part at fault.
    """
    mode, equals, hooks = text.rpartition("=")
    if not equals or not hooks:
        raise ModeError(f"{text!r} is no design; write MODE=HOOKS, such as direct=linux-6.1")
    return Design.of(hooks, mode)


def document(counts: Counts, trace: Trace, costs: CostTable) -> dict[str, Any]:
    """Return what is known of a replay, for JSON."""
    out: dict[str, Any] = {
        "trace": trace.name, "trace_fingerprint": trace.fingerprint, "operations": len(trace),
        "hooks": counts.hooks, "mode": counts.mode, "status": counts.status,
        "counterfactual": counts.counterfactual,
    }  # fmt: skip
    if counts.infeasible is not None:
        return out | {"row": counts.infeasible.row}
    low, high = costs.bounds()
    return out | {
        "exact": counts.exact, "entries": counts.entries,
        "events": counts.series().to_dict(),
        "events_most": {column(e): int(counts.high[e]) for e in Event if counts.high[e]},
        "costs": costs.name, "cycles": counts.cycles(costs),
        "cycles_low": float(np.nansum(counts.low * low)),
        "cycles_high": float(np.nansum(counts.high * high)),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Return what a result depends on besides its arguments."""
    return {"pvmmu": pvmmu.__version__, "model": fingerprint()}


def print_json(value: Any) -> None:
    """Print a JSON document; what is not a number in JSON (NaN) is null."""
    print(json.dumps(_plain(value), indent=1, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
