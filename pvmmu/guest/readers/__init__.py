"""Traces from files: recordings of Xen PV guests, straces, memory traces."""
