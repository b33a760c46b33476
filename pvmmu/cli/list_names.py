"""``pvmmu list``: what there is by name, with a line each."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from pvmmu.cli import common
from pvmmu.costs import get_costs
from pvmmu.costs.files import cost_names
from pvmmu.guest.linux.profile import load_profile, profile_names
from pvmmu.guest.load_trace import load_trace, trace_names
from pvmmu.guest.readers.memory.memory_trace import memory_trace_names
from pvmmu.guest.workloads.loop import WORKLOADS
from pvmmu.hooks import catalogue, interfaces
from pvmmu.modes import get_mode, mode_names

Rows = Iterator[tuple[str, str]]


def _first(text: str) -> str:
    """Return the first sentence of a text, on one line."""
    line = " ".join(text.split())
    return line.split(". ")[0].rstrip(".")


def _hooks() -> Rows:
    for name, hook in catalogue().items():
        yield name, f"since {hook.merged}, {hook.level}: {_first(hook.meaning)}"


def _interfaces() -> Rows:
    for name, interface in interfaces().items():
        yield name, f"{len(interface.hooks)} hooks"


def _modes() -> Rows:
    for name in mode_names():
        yield name, get_mode(name).title


def _costs() -> Rows:
    for name in cost_names():
        yield name, _first(get_costs(name).title)


def _traces() -> Rows:
    for name in trace_names():
        trace = load_trace(name)
        p = trace.provenance
        yield name, f"{len(trace):,} operations, Linux {p.kernel}, {p.platform.guest}"


def _workloads() -> Rows:
    for name, workload in WORKLOADS.items():
        text = _first(workload.function.__doc__ or "")
        yield f"{name}.{workload.n}@6.1", text


def _kernels() -> Rows:
    for name in profile_names():
        yield name, f"{load_profile(name).kernel}, {load_profile(name).arch}"


def _memory() -> Rows:
    for name in memory_trace_names():
        yield name, "a memory trace, for pvmmu tlb"


KINDS: Final[dict[str, Callable[[], Rows]]] = {
    "hooks": _hooks, "interfaces": _interfaces, "modes": _modes, "costs": _costs,
    "traces": _traces, "workloads": _workloads, "kernels": _kernels, "memory": _memory,
}  # fmt: skip


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu list") -> int:
    """Run the command."""
    p = argparse.ArgumentParser(prog=prog, description="Names, with a line each.")
    p.add_argument("kind", choices=KINDS, help="what to list")
    p.add_argument("--json", action="store_true", help="print one JSON document")
    args = p.parse_args(argv)
    rows = list(KINDS[args.kind]())
    if args.json:
        common.print_json([{"name": name, "text": text} for name, text in rows])
    else:
        width = max(len(name) for name, _ in rows)
        print("\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows))
    return 0
