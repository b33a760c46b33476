"""The stream of a program of one's own, without a hypervisor: ``strace -f`` and the guest model.

`strace` tells which system calls a program made; the guest model runs them and makes the MMU
operations of a Linux kernel. What the program touched comes from valgrind's lackey, or from a
stated assumption.

>>> trace = read_strace("sort.strace", lackey=["sort.lackey.gz"])
"""

from pvmmu.guest.readers.strace.assumed import ASSUMPTIONS
from pvmmu.guest.readers.strace.reader import example_names, read_example, read_strace
from pvmmu.guest.readers.strace.touches import thin

__all__ = ["ASSUMPTIONS", "example_names", "read_example", "read_strace", "thin"]
