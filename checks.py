"""Refuse what cannot be used: one line that names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from contextvars import ContextVar

import numpy as np


class BadInput(ValueError):
    """An argument, a flag or a data file that cannot be used; its message is one line."""


def require(holds: bool, argument: str, value: object, allowed: str) -> None:
    """Raise BadInput, a ValueError of one line, as all of the project's input checks do."""
    if not holds:
        raise BadInput(f"{argument}: got {value}, allowed: {allowed}")


def require_whole(argument: str, value: object, least: int = 1) -> None:
    """Refuse all but whole numbers of at least `least`."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    require(whole and value >= least, argument, value, f"whole numbers, {least} or more")


refusing: ContextVar[Callable] = ContextVar("refusing", default=nullcontext)  # what a check's BadInput is raised within


class Checked:
    """A dataclass whose `check` raises BadInput for bad values; on a command line that is one line, and the end."""

    def __post_init__(self):
        with refusing.get()():
            self.check()
