"""The kernel that uses the hardware: its MMU operations, recorded or modelled."""
