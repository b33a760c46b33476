"""Oopses of Linux: what a kernel prints of a page fault that it did not expect, explained.

`text.read_oopses` finds address, error code, registers and entries in a log; `explain.explain`
walks the entries as the processor did, and says which is to blame and what the log cannot tell.
"""
