"""``pvmmu oops``: a kernel's oops, explained."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pvmmu.errors import PvmmuError
from pvmmu.guest.oops.explain import Explanation, explain
from pvmmu.guest.oops.text import OopsError, read_oopses

_TOP = 64 << 20  # bytes of a log that are read


def main(argv: Sequence[str] | None = None, prog: str = "pvmmu oops") -> int:
    """Explain the page faults in a log.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments.
    prog : str
        Name in messages.

    Returns
    -------
    int
        0; 1 if a log contradicts the manual, so that no MAXPHYADDR gives its code.
    """
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("file", help="a log or a part of one; - reads standard input")
    parser.add_argument("--json", action="store_true", help="facts for a program, a line a fault")
    parser.add_argument("--figure", metavar="FILE", help="draw the (first) walk: .png, .svg, .pdf")
    options = parser.parse_args(argv)
    found = [explain(oops) for oops in read_oopses(_text(options.file))]
    if options.json:
        print("\n".join(json.dumps(_facts(x)) for x in found))
    else:
        print("\n\n".join(map(str, found)))
    if options.figure:
        _draw(found, options.figure)
    return int(any(x.walk is not None and not x.holds for x in found))


def _text(name: str) -> str:
    try:
        with sys.stdin.buffer if name == "-" else open(name, "rb") as f:
            data = f.read(_TOP)
    except OSError as e:
        raise OopsError(f"{name}: {e.strerror}") from None
    return data.decode("utf-8", "replace")


def _facts(x: Explanation) -> dict[str, Any]:
    o = x.oops
    return {
        "line": o.line, "address": o.address, "error_code": o.error_code, "format": x.format,
        "entries": o.entries, "maxphyaddr": list(x.holds), "blame": x.blame,
        "assumed": list(x.assumed), "contradictions": list(x.contradictions),
        "unknown": list(x.unknown),
    }  # fmt: skip


def _draw(found: Sequence[Explanation], path: str) -> None:
    from pvmmu.figures.walks import WalkFigure

    walks = [x.walk for x in found if x.walk is not None]
    if not walks:
        raise PvmmuError("no entries are printed: there is no walk to draw")
    figure = WalkFigure()
    figure.show(walks[0])
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise PvmmuError(f"{path}: figures are .png, .svg or .pdf")
    figure.figure.savefig(path)
