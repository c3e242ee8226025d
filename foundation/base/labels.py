"""Labels of any kind as words, and the two that are to be told apart."""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from foundation.base.checks import require

NO_NUMBERS = {"True": "1", "False": "0", "None": "", "NaT": "", "<NA>": ""}


def as_words(labels: Any) -> np.ndarray:
    """Labels as words: 4, 4.0, "4.0" and b"4" are "4"; True and "True" are "1"; NaN and None are
    "", no class."""
    array = np.asarray(labels)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    different, places = np.unique(array.astype(str), return_inverse=True)
    words = np.array([as_word(label) for label in different.tolist()], str)
    return words[places].reshape(array.shape)


def as_word(label: str) -> str:
    """One label as a word."""
    label = unicodedata.normalize("NFC", label)
    with suppress(ValueError, OverflowError):
        number = float(label)
        return "" if number != number else str(int(number)) if number == int(number) else label
    return NO_NUMBERS.get(label, label)


def two_classes(classes: tuple[Any, Any] | None, labels: np.ndarray, path: Path) -> tuple[str, str]:
    """The two labels as words; None: those of the file, which then has two. BadInput otherwise."""
    require(
        labels.ndim == 1,
        "data: y_train",
        f"shape {labels.shape} in {path}",
        "(n,), a label for each sample",
    )
    different = {word for word in as_words(labels).tolist() if word}
    there = sorted(different, key=_numbers_by_size)
    words = there if classes is None else _given_words(classes)
    allowed = f"two of the labels in {path}: {', '.join(there[:20])}"
    good = len(words) == 2 == len(set(words)) and set(words) <= different
    require(good, "classes", "nothing" if classes is None else " ".join(words), allowed)
    return tuple(words)


def _numbers_by_size(word: str) -> tuple[float, str]:
    return (float(word) if re.fullmatch(r"-?[\d.]+", word) else 0, word)


def _given_words(classes: Any) -> list[str]:
    labels = np.ravel(np.array(list(classes), object)).tolist()
    return [as_word(_text(label)) for label in labels]


def _text(label: Any) -> str:
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
