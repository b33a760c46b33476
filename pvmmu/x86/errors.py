"""Errors of the hardware model: one line that names the field, access or value at fault."""

from pvmmu.errors import PvmmuError


class WalkError(PvmmuError, ValueError):
    """Registers, memory or accesses that no page walk can be made with; names what is wrong."""


class TlbError(PvmmuError, ValueError):
    """A TLB, one of its operations or the accesses given to it; names what is wrong."""


class GeometryError(PvmmuError, ValueError):
    """A TLB geometry is wrong; the message names the file and the path of the field."""
