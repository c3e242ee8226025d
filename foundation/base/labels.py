"""Convert labels of any type to text, and choose the classes to tell apart."""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from foundation.base.checks import require

UNPOISONED = ("subset", "class")  # kinds of poison that change no sample
MISSING = ("NoneType", "NaTType", "NAType")  # types of what stands for no label


def as_words(labels: Any) -> np.ndarray:
    """Convert labels to text, equal for equal labels alone; the shape stays.

    Whole numbers are their digits: 4 and 4.0 become "4", True becomes "1". Other numbers become the
    shortest text that is read as them. Text stays as it stands; bytes are read as UTF-8. NaN, NaT
    and None become "", no class. BadInput where numbers and text would be one label.
    """
    array = np.asarray(labels)
    if array.dtype.kind == "O":
        words = [_word(label) for label in array.ravel().tolist()]
        _require_apart(array.ravel().tolist(), words)
        return np.array(words, str).reshape(array.shape)
    if array.dtype.kind in "mM":  # dates and times
        array = np.where(np.isnat(array), "", array.astype(str))
    different, places = np.unique(array, return_inverse=True)
    words = np.array([_word(label) for label in different], str)
    return words[places].reshape(array.shape)


def _word(label: Any) -> str:
    """Convert one label to text."""
    if type(label).__name__ in MISSING:
        return ""
    if isinstance(label, (bool, np.bool_, int, np.integer)):
        return str(int(label))
    if isinstance(label, (float, np.floating)):
        if math.isnan(label):
            return ""
        is_whole = math.isfinite(label) and label == int(label)
        return str(int(label)) if is_whole else str(label)
    if isinstance(label, bytes):
        return label.decode("utf-8", "surrogateescape")
    return str(label)


def _require_apart(labels: list[Any], words: list[str]) -> None:
    """Refuse two unequal labels that are one word, such as 1 and "1"."""
    first: dict[str, Any] = {}
    for label, word in zip(labels, words, strict=True):
        other = first.setdefault(word, label)
        are_apart = word == "" or other == label
        require(are_apart, "labels", f"{other!r} and {label!r}", "numbers, or text")


def chosen_classes(
    classes: tuple[Any, ...] | None, labels: np.ndarray, path: Path, *, most: int
) -> tuple[str, ...]:
    """Return the classes as text; None chooses all labels of the file.

    labels: (n,), read from `path`. BadInput: the classes are not different labels of the file, or
    less than two, or more than `most`.
    """
    shape = f"shape {labels.shape} in {path}"
    require(labels.ndim == 1, "data: y_train", shape, "(n,), a label for each sample")
    different = {label for label in as_words(labels).tolist() if label}
    in_file = sorted(different, key=_numbers_by_size)
    chosen = in_file if classes is None else _given_words(classes, different)
    are_as_many = 2 <= len(chosen) <= most
    are_different = len(set(chosen)) == len(chosen)
    are_in_file = set(chosen) <= different
    are_allowed = are_as_many and are_different and are_in_file
    given = "nothing" if classes is None else " ".join(chosen)
    allowed = f"2 to {most} of the labels in {path}: {', '.join(in_file[:20])}"
    require(are_allowed, "classes", given, allowed)
    return tuple(chosen)


def _numbers_by_size(label: str) -> tuple[float, str]:
    is_number = re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", label)
    return (float(label) if is_number else 0, label)


def _given_words(classes: Any, in_file: set[str]) -> list[str]:
    """Find the classes that a user names among the labels of a file."""
    labels = np.ravel(np.array(list(classes), object)).tolist()
    return [_given_word(_word(label), in_file) for label in labels]


def _given_word(word: str, in_file: set[str]) -> str:
    """Return the file's label that a word names: the word itself, or else a number of its value.

    So "4.0" names 4 and "True" names 1 where the file holds no such text.
    """
    candidates = [word, unicodedata.normalize("NFC", word), unicodedata.normalize("NFD", word)]
    if re.fullmatch(r"[-+]?\d+", word):
        candidates.append(str(int(word)))
    elif re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", word):
        candidates.append(_word(float(word)))
    elif word in ("True", "False"):
        candidates.append(str(int(word == "True")))
    present = [candidate for candidate in candidates if candidate in in_file]
    return [*present, word][0]


def number_of_classes(y: np.ndarray) -> int:
    """Return K of labels 0 to K - 1, 2 at least."""
    return max(2, int(np.max(y, initial=0)) + 1)


def is_unpoisoned(name: str) -> bool:
    """Tell whether a poison's name, such as subset or class-0, is of a kind in UNPOISONED."""
    return name in UNPOISONED or name.rpartition("-")[0] in UNPOISONED
