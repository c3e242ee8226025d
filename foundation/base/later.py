"""Packages that take long to import, imported when they are first used.

`from foundation.base.later import pandas as pd` binds a name that behaves as the package does.
Without them a script says what its flags are in half the time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class Later:
    """A package that is imported when one of its names is asked for."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        module = importlib.import_module(self._name)
        value = getattr(module, attribute)
        vars(self)[attribute] = value  # found at once from now on
        return value


if TYPE_CHECKING:
    import optax
    import pandas
    import xarray
else:
    optax = Later("optax")
    pandas = Later("pandas")
    xarray = Later("xarray")
