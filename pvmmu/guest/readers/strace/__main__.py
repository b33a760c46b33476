"""Command line: ``python -m pvmmu.guest.readers.strace FILE [--lackey FILE] -o DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from pvmmu.errors import PvmmuError
from pvmmu.guest.readers.strace.assumed import ASSUMPTIONS
from pvmmu.guest.readers.strace.reader import read_strace
from pvmmu.guest.readers.strace.touches import thin


def main(
    argv: Sequence[str] | None = None, prog: str = "python -m pvmmu.guest.readers.strace"
) -> int:
    """Make a trace of a recording, or a lackey trace smaller; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Run the system calls of a recorded program (strace -f -o FILE) "
        "on the guest model and write the MMU operations as a trace (Parquet).",
    )  # fmt: skip
    parser.add_argument("file", type=Path, metavar="FILE", help="strace, or a lackey trace to thin")
    parser.add_argument(
        "--lackey", type=Path, action="append", default=[], metavar="FILE",
        help="what a program touched (repeat for others)",
    )  # fmt: skip
    parser.add_argument("--kernel", default="6.1", help="kernel profile (default %(default)s)")
    parser.add_argument("--assume", default="data", choices=ASSUMPTIONS, help="touches elsewhere")
    parser.add_argument("--thin", type=Path, metavar="OUT", help="write FILE (lackey) smaller")
    parser.add_argument("-o", "--out", type=Path, default=Path(), help="folder for the trace")
    args = parser.parse_args(argv)
    try:
        if args.thin:
            print(thin(args.file, args.thin))
            return 0
        trace = read_strace(args.file, args.kernel, lackey=args.lackey, assume=args.assume)
        target = trace.save(args.out / f"{trace.name}.parquet")
    except PvmmuError as e:
        print(f"{prog}: {e}", file=sys.stderr)
        return 2
    print(f"{target}: {len(trace):,} operations")
    print("\n".join(f"  {note}" for note in trace.provenance.notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
