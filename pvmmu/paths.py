"""Where data and notebooks are: beside the package in a checkout, inside it when installed."""

from __future__ import annotations

from pathlib import Path

from pvmmu.errors import PvmmuError

_PACKAGE = Path(__file__).parent


def data_path(*parts: str) -> Path:
    """Return a path within the package's data, from its `parts`.

    Raises
    ------
    PvmmuError
        The data are not there (a broken installation).
    """
    return _beside("data").joinpath(*parts)


def notebooks_path() -> Path:
    """Return the folder of the notebooks that ship with the package.

    Raises
    ------
    PvmmuError
        It is not there (a broken installation).
    """
    return _beside("notebooks")


def _beside(name: str) -> Path:
    for root in (_PACKAGE / name, _PACKAGE.parent / name):
        if root.is_dir():
            return root
    raise PvmmuError(f"the {name} of pvmmu are missing ({_PACKAGE / name}): reinstall the package")
