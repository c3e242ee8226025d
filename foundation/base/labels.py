"""Convert labels of any type to text, and choose the two classes to tell apart."""

from __future__ import annotations

import math
import re
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from foundation.base.checks import require

NO_NUMBERS = {"True": "1", "False": "0", "None": "", "NaT": "", "<NA>": ""}


def as_words(labels: Any) -> np.ndarray:
    """Convert labels to text, equal for equal labels; the shape stays.

    4, 4.0, "4.0" and b"4" become "4"; True and "True" become "1"; NaN and None become "", no class.
    """
    array = np.asarray(labels)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    different, places = np.unique(array.astype(str), return_inverse=True)
    texts = [as_word(label) for label in different.tolist()]
    labels_as_text = np.array(texts, str)[places]
    return labels_as_text.reshape(array.shape)


def as_word(label: str) -> str:
    """Convert the text of one label to its standard form, as as_words does."""
    label = unicodedata.normalize("NFC", label)
    with suppress(ValueError, OverflowError):  # not a number, or infinite
        number = float(label)
        if math.isnan(number):
            return ""
        is_whole = number == int(number)
        return str(int(number)) if is_whole else label
    return NO_NUMBERS.get(label, label)


def two_classes(classes: tuple[Any, Any] | None, labels: np.ndarray, path: Path) -> tuple[str, str]:
    """Return the two classes as text; None chooses the two labels of the file.

    labels: (n,), read from `path`. BadInput: the classes are not two different labels of the file.
    """
    shape = f"shape {labels.shape} in {path}"
    require(labels.ndim == 1, "data: y_train", shape, "(n,), a label for each sample")
    different = {label for label in as_words(labels).tolist() if label}
    in_file = sorted(different, key=_numbers_by_size)
    chosen = in_file if classes is None else _given_words(classes)
    are_two = len(chosen) == 2
    are_different = len(set(chosen)) == len(chosen)
    are_in_file = set(chosen) <= different
    are_allowed = are_two and are_different and are_in_file
    given = "nothing" if classes is None else " ".join(chosen)
    allowed = f"two of the labels in {path}: {', '.join(in_file[:20])}"
    require(are_allowed, "classes", given, allowed)
    return tuple(chosen)


def _numbers_by_size(label: str) -> tuple[float, str]:
    is_number = re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", label)
    return (float(label) if is_number else 0, label)


def _given_words(classes: Any) -> list[str]:
    labels = np.ravel(np.array(list(classes), object)).tolist()
    return [as_word(_text(label)) for label in labels]


def _text(label: Any) -> str:
    return label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
