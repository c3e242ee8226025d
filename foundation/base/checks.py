"""What is said to users: refusals in one line that names argument, value and what is allowed, on
any terminal."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TextIO

import numpy as np

LARGEST = 1e18  # of a sample's values: its norm is still a float32


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


def as_numbers(values: Any, argument: str) -> np.ndarray:
    """Finite real or complex numbers of at least single precision, whatever holds them: pandas by
    position."""
    array = as_array(values, argument)
    if array.dtype == object:  # pandas' nullable columns, and columns of several kinds
        try:
            array = array.astype(float)
        except (TypeError, ValueError):
            require(False, argument, "objects that are no numbers", "numbers")
    if array.dtype.kind == "V" and array.dtype.names is None:  # JAX's short floats
        array = array.astype(np.float32)
    require(array.dtype.kind in "biufc", argument, f"dtype {array.dtype}", "numbers")
    kinds = {"b": "f4", "i": "f4", "u": "f4", "f": "f4" if array.itemsize <= 4 else "f8",
             "c": "c8" if array.itemsize <= 8 else "c16"}  # fmt: skip
    array = array.astype(kinds[array.dtype.kind], copy=False)  # of the machine's byte order, too
    finite = bool(np.isfinite(array).all())
    require(finite, argument, "NaN or infinite values", "finite numbers")
    largest = float(np.abs(array).max(initial=0))
    require(
        largest < LARGEST, argument, f"a value of {largest:.1g}", f"numbers below {LARGEST:.0e}"
    )
    return array


def as_array(values: Any, argument: str) -> np.ndarray:
    """NumPy's view of lists, JAX arrays and pandas columns, refused where something would be
    lost."""
    require(
        not np.ma.is_masked(values), argument, "a masked array with values left out", "all values"
    )
    require(values is not None, argument, "None", "arrays of numbers")
    sparse = type(values).__module__.startswith("scipy.sparse")
    require(not sparse, argument, "a sparse matrix", "dense arrays: its .toarray()")
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # rows of several lengths, ...
        raise BadInput(
            f"{argument}: got no array ({first_line(error)}), allowed: arrays of numbers"
        ) from None


def listed(values: Any, most: int = 5) -> str:
    """The first different ones of some values, for a message."""
    words = list(
        dict.fromkeys(
            repr(value) if isinstance(value, str) else str(value)
            for value in np.asarray(values).tolist()
        )
    )
    return ", ".join([*words[:most], *(["…"] if len(words) > most else [])]) or "none"


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


# what a check's BadInput is raised within
refusing: ContextVar[Callable] = ContextVar("refusing", default=nullcontext)


class Checked:
    """A dataclass whose `check` raises BadInput for bad values; on a command line that is one line,
    and the end."""

    def __post_init__(self):
        with refusing.get()():
            self.check()


def plain(value: Any) -> Any:
    """NumPy's scalars as Python's own; lists and arrays as tuples, so that they can be hashed and
    stored."""
    if isinstance(value, np.generic):
        return value.item()
    is_sequence = isinstance(value, (list, tuple)) or (
        hasattr(value, "__array__") and np.ndim(value)
    )
    return tuple(map(plain, value)) if is_sequence and not hasattr(value, "_fields") else value


# ---- any terminal ----

SPELLED = {
    "α": "alpha",
    "Δ": "Delta",
    "±": "+-",
    "–": "-",
    "−": "-",
    "×": "x",
    "⟨": "<",
    "⟩": ">",
    "…": "...",
}
codecs.register_error(
    "spelled", lambda error: (SPELLED.get(error.object[error.start], "?"), error.start + 1)
)


@contextmanager
def any_terminal() -> Iterator[None]:
    """Output of the block goes to streams of any encoding (alpha where there is no α); a closed
    pipe ends nothing."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Stream(stream) for stream in before)
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        sys.stdout, sys.stderr = before


class _Stream:
    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._unless_closed(self._stream.write, text.encode(encoding, "spelled").decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, call: Callable, *arguments: str) -> None:
        try:
            call(*arguments)
        # of "| head": what is still to be said is dropped, the work goes on
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
