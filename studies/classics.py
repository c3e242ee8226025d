"""Kernel machines, ridge regression and boosted trees of scikit-learn, as contenders.

A support vector machine on the fidelities of the encoded states is the quantum embedding without a
circuit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foundation.base.checks import is_number, require, require_whole


@dataclass(frozen=True)
class FidelitySVM:
    """Support vector machine with kernel |⟨x|x'⟩|² of normalised states."""

    c: float = 1.0  # the bound of its dual variables

    label = "fidelity-kernel SVM"
    family = "Kernel"

    def __post_init__(self):
        _require_positive("c", self.c)

    def settings(self) -> tuple[FidelitySVM, ...]:
        """C of .1, 1, 10 and 100."""
        return tuple(replace(self, c=c) for c in (0.1, 1.0, 10.0, 100.0))

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """A scikit-learn estimator whose predict(x) gives labels of amplitudes (n, d)."""
        from sklearn.svm import SVC

        return _fitted(_unit_rows, SVC(C=self.c, kernel=fidelity), x, y)


def fidelity(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """|⟨x|x'⟩|² of rows (Re x, Im x), (n, 2 d) and (m, 2 d): (n, m)."""
    half = left.shape[1] // 2
    turned = np.concatenate([right[:, half:], -right[:, :half]], axis=1)
    return (left @ right.T) ** 2 + (left @ turned.T) ** 2


@dataclass(frozen=True)
class RadialSVM:
    """Support vector machine with a radial kernel; its width is scikit-learn's "scale"."""

    c: float = 1.0

    label = "radial-kernel SVM"
    family = "Kernel"

    def __post_init__(self):
        _require_positive("c", self.c)

    def settings(self) -> tuple[RadialSVM, ...]:
        """C of .1, 1, 10 and 100."""
        return tuple(replace(self, c=c) for c in (0.1, 1.0, 10.0, 100.0))

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """A scikit-learn estimator whose predict(x) gives labels of raw features."""
        from sklearn.svm import SVC

        return _fitted(_rows, SVC(C=self.c), x, y)


@dataclass(frozen=True)
class Ridge:
    """Ridge regression on labels of -1 and 1."""

    penalty: float = 1.0

    label = "ridge"
    family = "Logistic"

    def __post_init__(self):
        _require_positive("penalty", self.penalty)

    def settings(self) -> tuple[Ridge, ...]:
        """Penalties of .01, .1, 1 and 10."""
        return tuple(replace(self, penalty=penalty) for penalty in (0.01, 0.1, 1.0, 10.0))

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """A scikit-learn estimator whose predict(x) gives labels of raw features."""
        from sklearn.linear_model import RidgeClassifier

        return _fitted(_rows, RidgeClassifier(alpha=self.penalty), x, y)


@dataclass(frozen=True)
class BoostedTrees:
    """Gradient-boosted decision trees by histograms, without early stopping."""

    rounds: int = 100

    label = "boosted trees"
    family = "Trees"

    def __post_init__(self):
        require_whole("rounds", self.rounds)

    def settings(self) -> tuple[BoostedTrees, ...]:
        """10, 30, 100 and 300 rounds."""
        return tuple(replace(self, rounds=rounds) for rounds in (10, 30, 100, 300))

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """A scikit-learn estimator whose predict(x) gives labels of raw features."""
        from sklearn.ensemble import HistGradientBoostingClassifier

        trees = HistGradientBoostingClassifier(
            max_iter=self.rounds, early_stopping=False, random_state=0
        )
        return _fitted(_rows, trees, x, y)


def _require_positive(name: str, value: float) -> None:
    is_positive = is_number(value) and 0 < value < math.inf
    require(is_positive, name, value, "a positive, finite number")


def _rows(x: np.ndarray) -> np.ndarray:
    """(n, d) real features, or (Re x, Im x), (n, 2 d)."""
    x = np.asarray(x)
    return np.concatenate([x.real, x.imag], axis=1) if np.iscomplexobj(x) else x


def _unit_rows(x: np.ndarray) -> np.ndarray:
    """(Re x, Im x) of norm 1, (n, 2 d)."""
    rows = _rows(np.asarray(x, complex))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _fitted(features: Callable, estimator: Any, x: np.ndarray, y: np.ndarray) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    return make_pipeline(FunctionTransformer(features), estimator).fit(x, y)


CLASSICS = {
    "kernel": FidelitySVM(),
    "radial": RadialSVM(),
    "ridge": Ridge(),
    "trees": BoostedTrees(),
}
