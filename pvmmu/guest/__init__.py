"""The kernel that uses the hardware: its MMU operations, recorded or modelled.

A `Trace` never changes once it is made: whoever has one may keep what was computed of it. The model
of the kernel is `guest.linux`, programs are `guest.workloads`, files are read by `guest.readers`.
"""
