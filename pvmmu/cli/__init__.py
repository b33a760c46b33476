"""The command ``pvmmu``: what the notebooks do, for scripts.

A command is a module with a ``main(argv, prog)``, named in `_COMMANDS`; what it prints is computed
by the rooms below.

Exit status: 0 done; 1 the answer is no (a design cannot run, counters disagree, a notebook fails);
2 wrong input, told in one line; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, NamedTuple

import pvmmu
from pvmmu.errors import PvmmuError, did_you_mean

__all__ = ["main"]


class _Command(NamedTuple):
    module: str
    help: str


COMMANDS: Final = {
    "app": _Command("pvmmu.cli.app", "the panel alone in a browser, without cells of code"),
    "lab": _Command("pvmmu.cli.lab", "copy the notebooks to a folder and open JupyterLab there"),
    "notebooks": _Command(
        "pvmmu.cli.run_notebooks", "run every notebook; write executed copies and figures"
    ),
    "replay": _Command("pvmmu.cli.replay", "what a trace costs under a hook set, in a mode"),
    "compare": _Command("pvmmu.cli.compare", "two designs on one trace, operation by operation"),
    "sweep": _Command("pvmmu.cli.sweep", "all designs of some traces and modes, as a table"),
    "oops": _Command(
        "pvmmu.cli.oops", "a kernel's oops: which entry is to blame, and for which CPU"
    ),
    "costs": _Command("pvmmu.cli.costs", "cost tables; fit one to measured instructions"),
    "report": _Command("pvmmu.cli.report", "plain text for a mailing list"),
    "proposal": _Command("pvmmu.cli.proposal", "a folder to send: text, figures, data, notebook"),
    "tlb": _Command("pvmmu.cli.tlb", "TLB misses of a memory trace: processors, miss curve, walks"),
    "list": _Command(
        "pvmmu.cli.list_names", "names of hooks, modes, costs, traces ..., a line each"
    ),
    "truth": _Command(
        "pvmmu.evidence.truth.__main__", "recordings of real guests against the model"
    ),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {c.help}" for name, c in COMMANDS.items()]
    return "\n".join(
        [
            "usage: pvmmu COMMAND [ARGUMENT...]   (pvmmu COMMAND --help tells more)",
            "",
            "Which MMU operations should a guest kernel hook? Replays recorded operations under",
            "any set of hooks and any paging mode.",
            "",
            *lines,
            "",
            "A TRACE is a name (pvmmu list traces), a workload on a modelled kernel (such as",
            "fork.64@6.18), or a file of any name, - for standard input: strace -f of a program,",
            "a folder of strace -ff, a merged Xen recording, Parquet of pvmmu; also compressed.",
            "",
            "exit status: 0 done; 1 the answer is no (a design cannot run, counters disagree, a",
            "notebook fails); 2 wrong input; 130 stopped by Ctrl-C",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        Words after ``pvmmu``; those of this process by default.

    Returns
    -------
    int
        Exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-V", "--version"):
        print(f"pvmmu {pvmmu.__version__}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if words else 2
    name, *rest = words
    if name not in COMMANDS:
        hint = did_you_mean(name, COMMANDS) or f" (there are {', '.join(COMMANDS)})"
        print(f"pvmmu: no command {name!r}{hint}", file=sys.stderr)
        return 2
    return _guarded(import_module(COMMANDS[name].module).main, rest, f"pvmmu {name}")


def _guarded(command: Callable[..., int], words: Sequence[str], prog: str) -> int:
    """Run a command; wrong input is one line, a closed pipe and Ctrl-C are no tracebacks."""
    try:
        status = command(words, prog=prog)
        sys.stdout.flush()
    except PvmmuError as e:
        print(f"{prog}: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: stopped", file=sys.stderr)
        return 130
    except OSError as e:
        if isinstance(e, BrokenPipeError):
            status = 0
        else:
            print(f"{prog}: output cannot be written ({e.strerror or e})", file=sys.stderr)
            status = 2
        # the reader has gone (head), or the disk is full: nothing more can be said, even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
