"""Intrusiveness: how often, and in how many files, a kernel calls what a hook covers."""

from __future__ import annotations

import functools

import pandas as pd

from pvmmu.errors import HookError
from pvmmu.hooks.catalogue import HookSet, catalogue, release_number
from pvmmu.paths import data_path


@functools.cache
def _callsite_table() -> pd.DataFrame:
    table = pd.read_csv(data_path("hooks", "callsites.csv"), keep_default_na=False)
    table["kernel"] = table["kernel"].str.removeprefix("v")
    return table


def callsite_kernels() -> list[str]:
    """Return the kernels whose call sites were counted, oldest first."""
    return sorted(_callsite_table()["kernel"].unique(), key=release_number)


def callsites(hooks: HookSet | str, kernel: str = "6.18.35") -> pd.DataFrame:
    """Count where the hooks of a set are called.

    Parameters
    ----------
    hooks : HookSet or str
        The set.
    kernel : str
        One of `callsite_kernels`.

    Returns
    -------
    DataFrame
        Index: hook. Columns: ``generic`` (mm/, other generic code and generic headers), ``x86``
        (core and Xen), ``files`` (number of files in mm/), ``members`` (of the ops structure).

    Notes
    -----
    Counted as text with comments stripped, definitions excluded; take them as +-2
    (data/hooks/README.md).
    """
    rows = {name: _counted(name, kernel) for name in HookSet.parse(hooks)}
    _of_kernel(kernel)  # also for no hook at all
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["generic", "x86", "files", "members"]
    ).rename_axis("hook")


@functools.cache
def _counted(name: str, kernel: str) -> dict[str, int]:
    """Count where a hook is called."""
    hook, table = catalogue()[name], _of_kernel(kernel)
    found = table.loc[table.index.isin(hook.accessors)]
    generic = found[["mm_dir", "kernel_fs_lib_generic", "generic_headers"]].to_numpy().sum()
    return {
        "generic": int(generic),
        "x86": int(found[["x86_core", "x86_xen"]].to_numpy().sum()),
        "files": len(files_touched(name, kernel)),
        "members": len(hook.members),
    }


@functools.cache
def files_touched(hook: str, kernel: str = "6.18.35") -> frozenset[str]:
    """Return the files of mm/ that call what a hook covers.

    Parameters
    ----------
    hook : str
        Name in the catalogue.
    kernel : str
        One of `callsite_kernels`.
    """
    table = _of_kernel(kernel)
    found = table.loc[table.index.isin(catalogue()[hook].accessors), "files_mm"]
    return frozenset(f for cell in found for f in cell.split())


def _of_kernel(kernel: str) -> pd.DataFrame:
    table = _callsite_table()
    if kernel not in set(table["kernel"]):
        have = ", ".join(callsite_kernels())
        raise HookError(f"call sites of Linux {kernel} were not counted; there are {have}")
    return table[table["kernel"] == kernel].set_index("name")
