"""Named workloads, by the guest model: those that were measured, and mixes like whole programs."""

from pvmmu.guest.workloads import mixes as mixes, shadow_wl as shadow_wl, wl as wl, wl_smp as wl_smp
from pvmmu.guest.workloads.loop import BEGIN, END, WORKLOADS, Loop, Workload, workload
from pvmmu.guest.workloads.run import XEN_PV, run_workload

__all__ = ["BEGIN", "END", "WORKLOADS", "XEN_PV", "Loop", "Workload", "run_workload", "workload"]
