"""What all workloads share: the measured loop and the registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pvmmu.guest.linux.guest import Guest
from pvmmu.guest.linux.process import Process
from pvmmu.guest.trace import Trace

#: Values of marks around the measured iterations of a trace that has more.
BEGIN, END = 1000, 1001


class Loop:
    """The measured loop of a workload: iterations to warm up, then those that become the trace.

    Parameters
    ----------
    guest : Guest
        Where it runs.
    process : Process
        The program's first process.
    n : int
        Size, in the workload's own unit.
    iterations, warm : int
        Measured ones, and those before.
    whole : bool
        The trace begins with the program's start, and marks `BEGIN` and `END` bound the measured
        iterations (for hypervisors that must warm up, too).

    Attributes
    ----------
    trace : Trace or None
        Of the measured iterations, once they are done.
    variant : str
        Ending of the names of what the program does (`Program.does`), where threads change it.
    """

    def __init__(
        self,
        guest: Guest,
        process: Process,
        n: int,
        iterations: int = 1,
        warm: int = 3,
        whole: bool = False,
    ) -> None:
        self.guest, self.process, self.n = guest, process, n
        self.iterations, self.warm, self.whole = iterations, warm, whole
        self.trace: Trace | None = None
        self.source = ""
        self.variant = ""
        self._live = False

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each iteration, negative while warming up."""
        for i in range(-self.warm, self.iterations):
            if i == 0:
                self.process.does("call")
                self.process.does("marked")  # by the mark of the beginning
                if self.whole:
                    self.guest.mark(BEGIN, self.process.cpu)
                else:
                    self.guest.begin()
                self._live = True
            yield i
        if self.whole:
            self.guest.mark(END, self.process.cpu)
        self.trace = self.guest.trace(self.source)

    def phase(self, number: int, process: Process | None = None) -> None:
        """Mark the start of phase `number` as a recorder's program does: by a call.

        It is made by `process`, by default the workload's own.
        """
        if self._live:
            p = process or self.process
            p.does("call")
            self.guest.run(p)
            self.guest.mark(number, p.cpu)
            p.does("marked")


@dataclass(frozen=True)
class Workload:
    """A named program of memory operations.

    Parameters
    ----------
    name : str
        As in the program that was measured.
    suite : str
        ``wl`` (measured under Xen PV), ``shadow`` (measured under shadow and nested paging) or
        ``mix`` (whole programs).
    function : callable
        Does set-up and loop.
    unit : str
        Of n.
    n : int
        Default size.
    vcpus : int
        CPUs that it needs.
    program : str
        Name of what the first process runs (`pvmmu.guest.linux.program`).
    about : str
        One line for readers.
    """

    name: str
    suite: str
    function: Callable[[Loop], None]
    unit: str = "pages"
    n: int = 16
    vcpus: int = 1
    program: str = "wl"
    about: str = ""


WORKLOADS: Final[dict[str, Workload]] = {}


def workload(
    suite: str,
    unit: str = "pages",
    n: int = 16,
    vcpus: int = 1,
    program: str = "wl",
    name: str = "",
) -> Callable[[Callable[[Loop], None]], Callable[[Loop], None]]:
    """Return a decorator that registers a function as a workload.

    Parameters
    ----------
    suite : str
        Group in lists of workloads.
    unit : str
        What its size counts.
    n, vcpus : int
        Default size; CPUs that it needs.
    program : str
        What it runs (`pvmmu.guest.linux.program.load_program`).
    name : str
        By default the function's own, without a leading underscore.
    """

    def register(function: Callable[[Loop], None]) -> Callable[[Loop], None]:
        key = name or function.__name__.strip("_")
        about = (function.__doc__ or "").splitlines()[0]
        if key in WORKLOADS:
            raise ValueError(f"two workloads are named {key}")
        WORKLOADS[key] = Workload(key, suite, function, unit, n, vcpus, program, about)
        return function

    return register
