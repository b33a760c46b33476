"""Rebuilding operations from a recording of a real Xen PV guest.

The public face is `pvmmu.guest.readers.xen.recording`.

``text`` reads lines, ``state`` holds what is known so far, ``entries``, ``spaces`` and ``flushes``
handle the events, ``identity`` says who is who, ``teardown`` infers what left no record.
"""
