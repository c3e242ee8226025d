"""What users bring: their containers, labels, files, masks, circuits and machines. Each case has the right value."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import random_split
from hypothesis import given
from hypothesis import strategies as st

import landscape
import metrics
from checks import BadInput
from datar import Dataset, Split, load_mnist, load_npz
from models import MLP, QNN, QuadraticForm, train
from poison_unlearn import METHODS, Poison, flip_labels, randomize_features, relabel_randomly, unlearn

KEY = jax.random.key(0)
SPLIT = random_split(8, 4)
NETWORK, CIRCUIT = MLP(4, (3,)), QNN(2, 1)
ONE_EPOCH = {"epochs": 1, "batch_size": 0, "learning_rate": 0.1, "key": KEY}

ENTRIES = {  # every public function that takes a split
    "train": lambda split: train(NETWORK, split, **ONE_EPOCH),
    "retain": lambda split: unlearn(METHODS["ga"], NETWORK, NETWORK.init(KEY), split, SPLIT, key=KEY),
    "forget": lambda split: unlearn(METHODS["ga"], NETWORK, NETWORK.init(KEY), SPLIT, split, key=KEY),
    "forget_clean": lambda split: unlearn(
        METHODS["scrub"], NETWORK, NETWORK.init(KEY), SPLIT, SPLIT, key=KEY, forget_clean=split
    ),
    "flip_labels": lambda split: flip_labels(split, 0.5, key=0),
    "relabel_randomly": lambda split: relabel_randomly(split, 0.5, key=0),
    "randomize_features": lambda split: randomize_features(split, 0.5, key=0),
    "loss_function": lambda split: landscape.loss_function(NETWORK, split),
    "Dataset train": lambda split: Dataset(split, SPLIT, "toy", 4, {"sha256": "toy"}),
    "Dataset val": lambda split: Dataset(SPLIT, split, "toy", 4, {"sha256": "toy"}),
}
entries = pytest.mark.parametrize("enter", ENTRIES.values(), ids=ENTRIES)


# ---- labels ----


@entries
@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (SPLIT.y * 2 - 1, "-1"),
        (np.where(SPLIT.y, 9, 1), "9"),
        (SPLIT.y + 1, "2"),
        (SPLIT.y * 0.5, "0.5"),
        (np.where(SPLIT.y, "1", "0"), "'"),
        (np.where(SPLIT.y, np.nan, 0.0), "nan"),
        (pd.Categorical.from_codes(SPLIT.y, ["cat", "dog"]), "'"),
        (pd.Series(SPLIT.y, dtype="Int64").mask(SPLIT.y == 1), "nan|NA"),
    ],
    ids=["signs", "digits", "one and two", "halves", "text", "NaN", "categories", "missing"],
)
def test_labels_other_than_0_and_1_are_refused_wherever_they_enter(enter, labels, said):
    with pytest.raises(BadInput, match=rf"\.y: got labels such as .*{said}.*, allowed: 0 and 1") as refusal:
        enter(Split(SPLIT.x, labels))
    assert "\n" not in str(refusal.value)


@entries
@pytest.mark.parametrize(
    "labels",
    [SPLIT.y.tolist(), tuple(SPLIT.y.tolist()), jnp.asarray(SPLIT.y), SPLIT.y.astype(bool), SPLIT.y.astype(float),
     SPLIT.y.astype(">i8"), pd.Series(SPLIT.y, index=[4, 5, 6, 7, 0, 1, 2, 3]), pd.Series(SPLIT.y, dtype="Int64"),
     pd.Series(SPLIT.y.astype(bool)), pd.Series(SPLIT.y, dtype="category")],
    ids=["list", "tuple", "jax", "bool", "float", "big-endian", "index", "Int64", "bools", "category"],
)  # fmt: skip
def test_labels_of_any_container_are_taken_by_position(enter, labels):
    enter(Split(SPLIT.x, labels))


@pytest.mark.parametrize("poison", [flip_labels, relabel_randomly])
def test_a_series_is_poisoned_where_the_mask_says(poison):
    poisoned = poison(Split(SPLIT.x, pd.Series(SPLIT.y, index=[4, 5, 6, 7, 0, 1, 2, 3])), 0.5, key=3)
    expected = poison(SPLIT, 0.5, key=3)
    np.testing.assert_array_equal(poisoned.split.y, expected.split.y)
    np.testing.assert_array_equal(poisoned.mask, expected.mask)
    assert not (poisoned.split.y != SPLIT.y)[~poisoned.mask].any()


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_split_of_one_class_is_no_data_set(name):
    one = Split(SPLIT.x, SPLIT.y * 0)
    with pytest.raises(BadInput, match=rf"{name}\.y: got labels 0 alone, allowed: samples of both classes"):
        Dataset(**({"train": SPLIT, "val": SPLIT} | {name: one}), name="toy", n_features=4, provenance={})


@pytest.mark.parametrize("measure", [metrics.accuracy, metrics.cross_entropy])
def test_measures_refuse_labels_that_are_none(measure):
    for labels in ([-1.0, 1.0], [1, 9], [1, 2]):
        with pytest.raises(ValueError, match=r"labels: got"):
            measure(jnp.ones(2), np.array(labels))
    assert np.isfinite(measure(jnp.ones(2), np.array([0.5, 1.0])))  # soft labels are labels


# ---- samples ----


@entries
@given(
    kind=st.sampled_from(
        ["f2", "f4", "f8", ">f4", "i1", "u1", "i8", "bool", "object", "list", "frame", "Float64", "jax"]
    ),
    width=st.integers(1, 6),
)
def test_samples_of_any_dtype_and_container_enter(enter, kind, width):
    """Of the width that the network has; of any other it is refused in one line, where there is a network."""
    x = np.arange(8 * width).reshape(8, width) % 3 + 1.0
    made = {"list": x.tolist(), "frame": pd.DataFrame(x, index=range(8, 0, -1)), "jax": jnp.asarray(x),
            "Float64": pd.DataFrame(x).astype("Float64")}  # fmt: skip
    split = Split(made[kind] if kind in made else x.astype(kind), SPLIT.y)
    try:
        enter(split)
    except BadInput as refusal:
        assert width != 4 and "\n" not in str(refusal)


@pytest.mark.parametrize("kind", ["i4", "u1", "bool", "f2", "f8", "list"])
def test_noise_has_norm_1_whatever_the_samples_were(kind):
    x = np.arange(32).reshape(8, 4) + 1
    split = Split(x.tolist() if kind == "list" else x.astype(kind), SPLIT.y)
    poisoned = randomize_features(split, 0.5, key=0)
    assert poisoned.split.x.dtype.kind == "f" and poisoned.mask.sum() == 4
    np.testing.assert_allclose(np.linalg.norm(poisoned.split.x[poisoned.mask], axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(
        poisoned.split.x[~poisoned.mask], x.astype(bool if kind == "bool" else float)[~poisoned.mask]
    )


@entries
@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.where(np.arange(32).reshape(8, 4) == 5, np.nan, 1.0), r"\.x: got NaN or infinite"),
        (np.where(np.arange(32).reshape(8, 4) == 5, np.inf, 1.0), r"\.x: got NaN or infinite"),
        (np.full((8, 4), 1e300), r"\.x: got a value of 1e\+300"),
        (np.ma.masked_less(SPLIT.x, 0.1), "masked"),
        (np.full((8, 4), "text"), r"\.x: got dtype"),
        (np.full((8, 4), {}), r"\.x: got objects"),
        (np.full((8, 4), None), r"\.x: got NaN"),
        (np.full((8, 4), np.datetime64("2020-01-01")), r"\.x: got dtype"),
        ([[1, 2, 3, 4]] * 7 + [[1]], r"\.x: got no array"),
        (SPLIT.x[:, 0], r"got x \(8,\)"),
        (SPLIT.x[:7], r"got x \(7, 4\)"),
    ],
    ids=["NaN", "infinite", "huge", "masked", "text", "objects", "None", "dates", "ragged", "flat", "too few"],
)
def test_samples_that_are_no_numbers_are_refused_wherever_they_enter(enter, x, said):
    with pytest.raises(BadInput, match=said) as refusal:
        enter(Split(x, SPLIT.y))
    assert "\n" not in str(refusal.value)


def test_a_validation_set_of_another_width():
    with pytest.raises(BadInput, match=r"val\.x: got 3 features, allowed: the 4 of train\.x"):
        Dataset(SPLIT, Split(SPLIT.x[:, :3], SPLIT.y), "toy", 4, {})


@pytest.mark.parametrize("shape", [(8, 32, 32), (8, 28, 28), (8, 784), (8, 6), (1024,), (8, 4, 4, 64)])
@pytest.mark.parametrize("model", [QNN(10, 3), QNN(10, 6), QNN(10, 3, "xy", "cnot")], ids=lambda model: model.label)
def test_images_are_no_states(model, shape):
    """(n, 32, 32) has the shape of the density matrices of 10 qubits and depth 3."""
    x = np.random.default_rng(0).random(shape)
    params = model.init(KEY)
    calls = [lambda: model.logits(params, x), lambda: model.prepare(x)]
    if len(shape) > 1:
        calls.append(lambda: train(model, Split(x, SPLIT.y), **ONE_EPOCH))
    for call in calls:
        with pytest.raises(BadInput, match=r"x: got .*allowed: ?.*"):
            call()


def test_states_and_what_prepare_makes_of_them_give_one_logit():
    model = QNN(10, 3)
    x = random_split(8, 1024, complex_states=True).x
    params = 30 * model.init(KEY)
    np.testing.assert_allclose(model.logits(params, model.prepare(x)), model.logits(params, x), atol=2e-5)
    assert model.prepare(model.prepare(x)).shape == (8, 32, 32)


@pytest.mark.parametrize("model", [NETWORK, CIRCUIT, QuadraticForm(4, 2)], ids=lambda model: model.label)
@pytest.mark.parametrize("width", [1, 3, 5, 6])
def test_models_name_the_width_that_they_read(model, width):
    with pytest.raises(BadInput, match=r"x: got .*allowed: \(n, 4\)"):
        model.logits(model.init(KEY), np.ones((2, width)))


# ---- MNIST and files ----


@pytest.mark.parametrize("digits", [[4, 9], (4, 9), np.array([4, 9]), (np.int64(4), np.uint8(9)), pd.Series([4, 9])])
def test_digits_of_any_container(digits):
    data = load_mnist(digits=digits, source="embedded", per_class=5)
    assert data.provenance["digits"] == [4, 9] and all(type(digit) is int for digit in data.provenance["digits"])


@pytest.mark.parametrize("digits", [[4], "49", (4, 4), (4.0, 9), (True, 9), (4, 10), [[4, 9], [1, 2]], None])
def test_digits_that_are_none(digits):
    with pytest.raises(BadInput, match=r"digits: got .*allowed: two different digits, such as"):
        load_mnist(digits=digits, source="embedded")


def mnist_like(path, **changes):
    images = np.random.default_rng(0).integers(1, 255, (40, 28, 28))
    arrays = {"x_train": images, "y_train": np.arange(40) % 2, "x_test": images, "y_test": np.arange(40) % 2}
    np.savez(path, **(arrays | changes))
    return path


def test_a_file_without_the_digits_says_which_it_has(tmp_path):
    with pytest.raises(BadInput, match=r"digits: got .*9.*allowed: two of the labels in file a.npz: 0, 1"):
        load_mnist(path=mnist_like(tmp_path / "a.npz"), per_class=5)
    data = load_mnist(path=tmp_path / "a.npz", digits=(0, 1), per_class=5)
    assert len(data.train.y) == 10 and len(data.val.y) == 40


@pytest.mark.parametrize("pixel", [-1.0, np.nan, np.inf, 1e30])
@pytest.mark.parametrize("part", ["train", "test"])
def test_pixels_that_are_none(tmp_path, pixel, part):
    images = np.ones((40, 28, 28))
    images[3, 2, 1] = pixel
    with pytest.raises(BadInput, match=f"data: x_{part}: got NaN, infinite, huge or negative pixels"):
        load_mnist(path=mnist_like(tmp_path / "a.npz", **{f"x_{part}": images}), digits=(0, 1), per_class=5)


def own_file(path, *, shape=(6,), labels=("cat", "dog"), part="val", n=24, kind=float, **more):
    """Two well separated classes with any labels."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, size in (("train", n), (part, 12)):
        y = np.arange(size) % 2
        x = (
            generator.normal(size=(size, *shape)) * 0.1
            + 2
            + 2 * y.reshape(-1, *[1] * len(shape)) * (np.indices(shape).sum(axis=0) % 2)
        )
        arrays |= {f"x_{split}": x.astype(kind), f"y_{split}": np.array([labels[each] for each in y])}
    np.savez(path, **(arrays | more))
    return path


@given(
    labels=st.lists(st.one_of(st.integers(-5, 300), st.text("abcdé ", min_size=1)), min_size=2, max_size=2)
    .filter(lambda pair: type(pair[0]) is type(pair[1]) and pair[0] != pair[1]),
    width=st.integers(1, 70),
    part=st.sampled_from(["val", "test"]),
    kind=st.sampled_from(["f4", "f8", "i4"]),
)  # fmt: skip
def test_any_two_classes_of_any_width(tmp_path_factory, labels, width, part, kind):
    path = own_file(tmp_path_factory.mktemp("own") / "mine.npz", shape=(width,), labels=labels, part=part, kind=kind)
    for classes in (tuple(labels), tuple(labels[::-1])):
        data = load_npz(path, classes=classes)
        assert data.n_features == width and data.name == "mine" and data.image_shape is None
        padded = data.train.x.shape[1]
        assert padded >= max(width, 2) and padded & (padded - 1) == 0 and padded < 2 * max(width, 2)
        np.testing.assert_allclose(np.linalg.norm(data.train.x, axis=1), 1, rtol=1e-5)
        np.testing.assert_array_equal(
            data.train.y, np.arange(24) % 2 if classes == tuple(labels) else 1 - np.arange(24) % 2
        )


def test_labels_are_one_word_whatever_their_type(tmp_path):
    for labels, classes in (
        ((3.0, 7.0), (3, 7)),
        ((3, 7), ("3", "7")),
        ((False, True), (0, 1)),
        ((b"a", b"b"), ("a", "b")),
    ):
        assert load_npz(own_file(tmp_path / "m.npz", labels=labels), classes=classes).train.y.tolist() == [0, 1] * 12


def test_samples_of_other_classes_are_left_out(tmp_path):
    y = np.array(["cat", "dog", "cow"] * 8)
    path = own_file(tmp_path / "m.npz", y_train=y, y_val=y[:12])
    data = load_npz(path, classes=("cow", "cat"))
    np.testing.assert_array_equal(data.train.y, (y[y != "dog"] == "cat").astype(int))
    with pytest.raises(BadInput, match=r"classes: got nothing, allowed: two of the labels in .*: cat, cow, dog"):
        load_npz(path)


def test_images_keep_their_shape_and_complex_states_their_phase(tmp_path):
    data = load_npz(own_file(tmp_path / "m.npz", shape=(5, 4)))
    assert data.image_shape == (5, 4) and data.train.x.shape == (24, 32) and data.n_features == 20
    columns = load_npz(tmp_path / "m.npz", encoding="columnwise").train.x[:, :20].reshape(-1, 5, 4)
    np.testing.assert_allclose(np.linalg.norm(columns, axis=1), 1, rtol=1e-5)
    states = np.exp(1j * np.arange(24 * 6)).reshape(24, 6)
    data = load_npz(own_file(tmp_path / "m.npz", x_train=states))
    assert data.train.x.dtype == np.complex64
    np.testing.assert_allclose(data.train.x[:, :6], states / np.sqrt(6), atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_train": np.ones((24, 6)) * np.nan}, "data: x_train: got NaN"),
        ({"x_val": np.ones((12, 5))}, r"data: x_val: got samples of shape \(5,\), allowed: \(6,\)"),
        ({"x_val": np.ones((12, 9))}, r"data: x_val: got samples of shape \(9,\), allowed: \(6,\)"),
        ({"x_train": np.ones((23, 6))}, r"data: x_train: got shape \(23, 6\)"),
        ({"x_train": np.ones(24)}, r"data: x_train: got shape \(24,\)"),
        ({"x_train": np.zeros((24, 6))}, "a sample of zeros"),
        ({"y_val": np.array(["cat"] * 12)}, "data: y_val: got labels .cat., allowed: samples of both"),
        ({"y_train": np.array([["cat"], ["dog"]] * 12)}, r"data: y_train: got shape \(24, 1\)"),
        ({"poison_mask": np.ones(23)}, r"poison_mask: got shape \(23,\)"),
        ({"poison_mask": np.ones(24)}, "poison_mask: got 24 of 24 samples, allowed: some"),
        ({"poison_mask": np.zeros(24)}, "poison_mask: got 0 of 24 samples, allowed: some"),
        ({"poison_mask": np.arange(24)}, "poison_mask: got values"),
        ({"poison_mask": np.arange(24) < 3, "known_mask": np.arange(24) > 3}, "known_mask: got samples that"),
    ],
)  # fmt: skip
def test_a_file_of_ones_own_that_will_not_do(tmp_path, changes, said):
    path = own_file(tmp_path / "m.npz", **changes)
    with pytest.raises(BadInput, match=said) as refusal:
        load_npz(path)
    assert "\n" not in str(refusal.value)


def test_a_mask_of_ones_own_is_the_poison(tmp_path):
    mask, known = np.isin(np.arange(24), [0, 3, 8, 9]), np.isin(np.arange(24), [3, 8])
    y = np.array(["cat", "dog"] * 12)
    noisy = np.where(mask, np.where(y == "cat", "dog", "cat"), y)
    path = own_file(tmp_path / "m.npz", y_train=noisy, y_clean=y, poison_mask=mask, known_mask=known)
    poisoned = Poison("given", 16).draw(load_npz(path), key=0)
    np.testing.assert_array_equal(poisoned.mask, mask)
    np.testing.assert_array_equal(poisoned.known, known)
    np.testing.assert_array_equal(poisoned.split.y, noisy == "dog")
    np.testing.assert_array_equal(poisoned.forget_clean.y, (y == "dog")[known])
    np.testing.assert_array_equal(poisoned.forget_poisoned.y, (noisy == "dog")[known])
    assert Poison("given", 16, 50).draw(load_npz(path), key=0).known.sum() == 1
    with pytest.raises(BadInput, match=r"poison: got given, allowed: data with a poison_mask"):
        Poison("given", 16).draw(Dataset(SPLIT, SPLIT, "toy", 4, {}), key=0)


def test_another_mask_is_other_data(tmp_path):
    hashes = set()
    for first in (None, 0, 1):
        mask = {} if first is None else {"poison_mask": np.arange(24) == first}
        hashes.add(load_npz(own_file(tmp_path / "m.npz", **mask)).provenance["sha256"])
    assert len(hashes) == 3
