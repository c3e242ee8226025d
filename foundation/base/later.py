"""Packages that take long to import, imported when they are first used.

`from foundation.base.later import pandas as pd` binds a name that behaves as the package does.
Without them `--help` takes .7 of the time (measured beside commit 31ba00d).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class Later:
    """A package that is imported when one of its names is asked for.

    It is pickled by its name, because functions of studies may be sent to other processes with the
    names that they use.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or attribute == "_name":  # asked by copy, inspect, doctest
            raise AttributeError(attribute)
        # found in the module each time: a name kept here would be part of the keys of results
        module = importlib.import_module(self._name)
        return getattr(module, attribute)

    def __repr__(self) -> str:
        return f"<{self._name}, imported when it is used>"

    def __reduce__(self) -> tuple[type[Later], tuple[str]]:
        return Later, (self._name,)


if TYPE_CHECKING:
    import optax
    import pandas
    import xarray
else:
    optax = Later("optax")
    pandas = Later("pandas")
    xarray = Later("xarray")
