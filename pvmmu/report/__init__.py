"""The proposal bundle: a folder to send to a mailing list, and to make again from its state.

>>> state = State.of("fork.64", ["direct=linux-6.1 +ptep_set_wrprotect", "direct=linux-6.1"])
>>> write_bundle(state, "my-proposal")
"""

from pvmmu.report.bundle import remake, write_bundle
from pvmmu.report.results import Results, results
from pvmmu.report.state import State, load_state, read_state

__all__ = ["Results", "State", "load_state", "read_state", "remake", "results", "write_bundle"]
