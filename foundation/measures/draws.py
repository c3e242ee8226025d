"""Random choices among samples: out of all, as many out of each class, or out of one class."""

from __future__ import annotations

import jax
import numpy as np

from foundation.base.checks import is_number, is_whole, require
from foundation.base.labels import number_of_classes

Key = jax.Array | int | np.random.Generator  # a key of JAX, or what NumPy's default_rng takes


def generator_of(key: Key) -> np.random.Generator:
    """Return NumPy's generator that a key stands for."""
    if isinstance(key, jax.Array):
        return np.random.default_rng(np.asarray(jax.random.key_data(key)))
    is_seed = isinstance(key, (int, np.integer)) and key >= 0
    is_usable = isinstance(key, np.random.Generator) or is_seed
    allowed = "a key of JAX, a whole number of 0 or more, or a generator of NumPy"
    require(is_usable, "key", key, allowed)
    return np.random.default_rng(key)


def check_fraction(fraction: float) -> None:
    """Refuse what is no share of the samples."""
    is_share = is_number(fraction) and 0 <= fraction < 1
    require(is_share, "fraction", fraction, "0 <= fraction < 1 (0.3 is 30 percent)")


def count_of(fraction: float, n: int) -> int:
    """Return int(fraction n)."""
    check_fraction(fraction)
    return int(fraction * n + 1e-9)  # 0.29 * 100 is 28.999999999999996


def of_all(y: np.ndarray, fraction: float, generator: np.random.Generator) -> np.ndarray:
    """Draw int(fraction n) of n samples, whatever their class: a mask (n,)."""
    mask = np.zeros(len(y), bool)
    mask[generator.choice(len(y), count_of(fraction, len(y)), replace=False)] = True
    return mask


def of_each_class(
    y: np.ndarray, fraction: float, generator: np.random.Generator, *, round_up: bool = False
) -> np.ndarray:
    """Draw int(fraction n) of n samples with labels y, as many of each class: a mask (n,).

    What does not divide by the number of classes is rounded down, or up.
    """
    mask = np.zeros(len(y), bool)
    count = count_of(fraction, len(y))
    n_classes = number_of_classes(y)
    groups = [np.flatnonzero(y == label) for label in range(n_classes)]
    count_of_group = (count + (n_classes - 1) * round_up) // n_classes
    smallest = min(map(len, groups))
    allowed = f"at most {smallest} samples of each class to poison"
    require(count_of_group <= smallest, "fraction", fraction, allowed)
    for group in groups:
        mask[generator.choice(group, count_of_group, replace=False)] = True
    return mask


def of_class(
    y: np.ndarray, fraction: float, generator: np.random.Generator, label: int, name: str = ""
) -> np.ndarray:
    """Draw int(fraction n) of n samples with labels y, all of them of one class: a mask (n,).

    name: of the class, for messages.
    """
    members = np.flatnonzero(y == label)
    count = count_of(fraction, len(y))
    allowed = f"at most {len(members)} samples, those of {name or f'class {label}'}, to poison"
    require(count <= len(members), "fraction", fraction, allowed)
    return np.isin(np.arange(len(y)), generator.choice(members, count, replace=False))


def other_labels(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Draw for each of n samples a label that is not its own, all equally likely: (n,)."""
    n_classes = number_of_classes(y)
    if n_classes == 2:
        return 1 - y
    return ((y + generator.integers(1, n_classes, len(y))) % n_classes).astype(y.dtype)


def require_class(label: int, y: np.ndarray) -> None:
    """Refuse what is the number of none of the classes of labels y."""
    n_classes = number_of_classes(y)
    is_class = is_whole(label) and 0 <= label < n_classes
    require(is_class, "label", label, f"0 to {n_classes - 1}, the numbers of the classes")
