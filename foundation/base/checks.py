"""Check inputs, refuse bad ones in one line, and print on any terminal.

A refusal names the argument, its value and what is allowed.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, TextIO

import numpy as np

LARGEST = 1e18  # a sample's values stay below it, so that its norm fits a float32


class BadInput(ValueError):
    """An argument, a flag or a data file that cannot be used; its message is one line."""


def require(holds: bool, argument: str, value: object, allowed: str) -> None:
    """Raise BadInput, in one line, unless the condition holds."""
    if not holds:
        raise BadInput(f"{argument}: got {value}, allowed: {allowed}")


def is_number(value: object) -> bool:
    """Tell whether a value is a real number of Python or NumPy; True and False are none."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number of Python or NumPy; True and False are none."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def require_whole(argument: str, value: object, least: int = 1) -> None:
    """Refuse all but whole numbers of at least `least`."""
    is_allowed = is_whole(value) and value >= least
    require(is_allowed, argument, value, f"whole numbers, {least} or more")


def as_numbers(values: Any, argument: str) -> np.ndarray:
    """Convert values to an array of real or complex numbers of at least single precision.

    Values of pandas are taken by position. BadInput: a value is no number, not finite, or at
    least LARGEST.
    """
    array = as_array(values, argument)
    if array.dtype == object:  # pandas' nullable columns, and columns of mixed types
        try:
            array = array.astype(float)
        except (TypeError, ValueError):
            require(False, argument, "objects that are no numbers", "numbers")
    if array.dtype.kind == "V" and array.dtype.names is None:  # JAX's 8- and 16-bit floats
        array = array.astype(np.float32)
    require(array.dtype.kind in "biufc", argument, f"dtype {array.dtype}", "numbers")
    real = "f4" if array.itemsize <= 4 else "f8"
    complex_ = "c8" if array.itemsize <= 8 else "c16"
    types = {"b": "f4", "i": "f4", "u": "f4", "f": real, "c": complex_}
    array = array.astype(types[array.dtype.kind], copy=False)  # in the machine's byte order
    is_finite = bool(np.isfinite(array).all())
    require(is_finite, argument, "NaN or infinite values", "finite numbers")
    largest = float(np.abs(array).max(initial=0))
    allowed = f"numbers below {LARGEST:.0e}"
    require(largest < LARGEST, argument, f"a value of {largest:.1g}", allowed)
    return array


def as_array(values: Any, argument: str) -> np.ndarray:
    """Convert lists, JAX arrays and pandas columns to NumPy; BadInput if values would be lost."""
    is_masked = np.ma.is_masked(values)
    require(not is_masked, argument, "a masked array with values left out", "all values")
    require(values is not None, argument, "None", "arrays of numbers")
    is_sparse = type(values).__module__.startswith("scipy.sparse")
    require(not is_sparse, argument, "a sparse matrix", "dense arrays: its .toarray()")
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:  # for example rows of different lengths
        reason = first_line(error)
        raise BadInput(f"{argument}: got no array ({reason}), allowed: arrays of numbers") from None


def listed(values: Any, most: int = 5) -> str:
    """List the first `most` different values, for a message; "none" where there are no values."""
    texts = [
        repr(value) if isinstance(value, str) else str(value)
        for value in np.asarray(values).tolist()
    ]
    different = list(dict.fromkeys(texts))
    shown = different[:most]
    if len(different) > most:
        shown.append("…")
    return ", ".join(shown) or "none"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's type where it has none."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


# the context in which `check` raises BadInput; the command line sets its own
refusing: ContextVar[Callable] = ContextVar("refusing", default=nullcontext)


class Checked:
    """A dataclass whose `check` raises BadInput for bad values.

    On the command line the program ends with the error's one line.
    """

    def __post_init__(self):
        with refusing.get()():
            self.check()


def plain(value: Any) -> Any:
    """Convert NumPy scalars to Python's types, and lists and arrays to tuples.

    The result can be hashed and stored.
    """
    if isinstance(value, np.generic):
        return value.item()
    is_sequence = isinstance(value, (list, tuple)) or (
        hasattr(value, "__array__") and np.ndim(value)
    )
    is_named_tuple = hasattr(value, "_fields")
    if is_sequence and not is_named_tuple:
        return tuple(map(plain, value))
    return value


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


def _spelled(error: UnicodeError) -> tuple[str, int]:
    """Return the spelling of the character that cannot be encoded, and where to go on."""
    character = error.object[error.start]
    spelling = SPELLED.get(character, "?")
    return spelling, error.start + 1


codecs.register_error("spelled", _spelled)


@contextmanager
def any_terminal() -> Iterator[None]:
    """Let the block print on streams of any encoding and into closed pipes.

    A character that the encoding lacks is spelled out: α as alpha.
    """
    before = sys.stdout, sys.stderr
    streams = [stream and _Stream(stream) for stream in before]
    sys.stdout, sys.stderr = streams
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
        encoded = text.encode(encoding, "spelled")
        self._unless_closed(self._stream.write, encoded.decode(encoding))
        return len(text)

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    def _unless_closed(self, call: Callable, *arguments: str) -> None:
        try:
            call(*arguments)
        except BrokenPipeError:  # closed by "| head": drop the output, go on with the work
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
