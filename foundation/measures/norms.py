"""Norms of samples of any size, where plain squares would vanish or overflow."""

from __future__ import annotations

import numpy as np

Axes = int | tuple[int, ...]


def norms(x: np.ndarray, axes: Axes) -> np.ndarray:
    """Return the Euclidean norms along some axes, which stay with length 1.

    Where numbers along the axes are far from 1, norms are float64: those of float32 samples of
    1e-30 or 1e30 are as exact as those of ordinary ones.
    """
    near_one, exponents = near_1(x, axes)
    squares = (near_one.conj() * near_one).real
    roots = np.sqrt(squares.sum(axis=axes, keepdims=True))
    return roots if exponents is None else np.ldexp(roots.astype(np.float64), exponents)


def near_1(x: np.ndarray, axes: Axes) -> tuple[np.ndarray, np.ndarray | None]:
    """Divide what is far from 1 along some axes by a power of two, which rounds nothing.

    Returns the quotients and the powers' exponents, which keep the axes with length 1: x and None
    where all is between 1e-3 and 1e3, or 0; else float64 or complex128.
    """
    largest = np.abs(x).max(axis=axes, keepdims=True)
    is_ordinary = (largest == 0) | ((largest > 1e-3) & (largest < 1e3))
    if is_ordinary.all():
        return x, None
    _, exponents = np.frexp(largest.astype(np.float64))
    exponents = np.where(is_ordinary, 0, exponents)
    if not np.iscomplexobj(x):
        return np.ldexp(x.astype(np.float64), -exponents), exponents
    wide = x.astype(np.complex128)
    near_one = np.ldexp(wide.real, -exponents) + 1j * np.ldexp(wide.imag, -exponents)
    return near_one, exponents
