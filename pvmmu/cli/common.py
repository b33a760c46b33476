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
from pvmmu.costs import CostTable, get_costs
from pvmmu.costs.default import anachronism, default_costs
from pvmmu.guest.load_trace import Reading, trace_names
from pvmmu.guest.readers.strace import ASSUMPTIONS
from pvmmu.guest.trace import Trace
from pvmmu.modes.events import Event, column
from pvmmu.replay import Counts

HOOKS, MODE = "linux-6.1", "direct"
TRACE = "name, WORKLOAD.N@KERNEL, or any file (- for standard input)"


def costs_of(given: str | None, trace: Trace, mode: str) -> CostTable:
    """Return the cost table that was `given`, or the one that fits the trace's era and the mode."""
    return get_costs(given or default_costs(trace.provenance.kernel, mode))


def add_costs(p: argparse.ArgumentParser) -> None:
    """Add ``--costs`` to a command's options."""
    p.add_argument(
        "--costs", help="cost table (pvmmu costs list; default: that of the kernel's era and mode)"
    )


class ListTraces(argparse.Action):
    """``--list``: print the names of the traces that ship with the package, and end."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kw: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, help="list the shipped traces", **kw)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print and end."""
        print("\n".join(trace_names()))
        parser.exit()


class Options(argparse.ArgumentParser):
    """A parser of a command that takes traces, and how recorded system calls are read."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description)
        self.add_argument("--list", action=ListTraces)
        own = self.add_argument_group("recordings of system calls (strace)")
        own.add_argument(
            "--assume", choices=ASSUMPTIONS, default=Reading.assume,
            help="what is touched where nothing tells: none and all are bounds "
            "(default %(default)s)",
        )  # fmt: skip
        own.add_argument("--kernel", default=Reading.kernel, metavar="K",
                         help="kernel that runs the calls (default %(default)s)")  # fmt: skip
        own.add_argument(
            "--frames", type=_frames, default=Reading.frames, metavar="N",
            help="memory of the guest in frames of 4 KiB (default %(default)s)",
        )  # fmt: skip

    def parsed(self, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Reading]:
        """Return the arguments, and how recordings are read."""
        args = self.parse_args(argv)
        return args, Reading(args.kernel, args.assume, args.frames)


def _frames(text: str) -> int:
    """Return a number of frames."""
    if not text.isdigit() or not 64 <= int(text) <= 1 << 28:
        raise argparse.ArgumentTypeError(f"64 to 2**28 frames, not {text!r}")
    return int(text)


def given(name: str, how: Reading) -> tuple[str, ...]:
    """Return the words that tell a command of a trace again."""
    plain = Reading()
    words = [name]
    for option in ("assume", "kernel", "frames"):
        value = getattr(how, option)
        if value != getattr(plain, option):
            words += [f"--{option}", str(value)]
    return tuple(words)


def assumed(trace: Trace) -> str:
    """Return a line that tells what a trace rests on; empty if on nothing."""
    return f"assumed: {'; '.join(trace.provenance.assumptions)}" * bool(
        trace.provenance.assumptions
    )


def parser(prog: str, description: str) -> Options:
    """Return a parser of the commands' kind, with ``--json``."""
    p = Options(prog, description)
    p.add_argument("--json", action="store_true", help="print one JSON document")
    return p


def document(counts: Counts, trace: Trace, costs: CostTable) -> dict[str, Any]:
    """Return what is known of a replay, for JSON."""
    out: dict[str, Any] = {
        "trace": trace.name, "trace_fingerprint": trace.fingerprint, "operations": len(trace),
        "hooks": counts.hooks, "mode": counts.mode, "status": counts.status,
        "counterfactual": counts.counterfactual, "soundness": counts.verdict.to_json(),
    }  # fmt: skip
    if counts.infeasible is not None:
        return out | {"row": counts.infeasible.row}
    low, high = costs.bounds()
    return out | {
        "exact": counts.exact, "assumptions": list(counts.assumptions),
        "notes": list(trace.provenance.notes), "entries": counts.entries,
        "events": counts.series().to_dict(),
        "events_most": {column(e): int(counts.high[e]) for e in Event if counts.high[e]},
        "costs": costs.name, "unit": costs.unit,
        "anachronism": anachronism(costs, trace.provenance.kernel),
        "cycles": counts.cycles(costs),
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
