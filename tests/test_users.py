"""What users bring: their containers, labels, files, masks, circuits and machines. Each case has
the right value."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from conftest import ONE_THREAD, ROOT, random_split, run_python
from hypothesis import given
from hypothesis import strategies as st

import landscape
import run_unlearn_mnist
from datar import Dataset, Split, load_mnist, load_npz, require_split
from foundation.base import storage
from foundation.base.checks import BadInput
from foundation.base.places import cache_folder
from foundation.engine import keys, runner
from foundation.engine import study_files as results
from foundation.engine.programs import Programs, private_folder
from foundation.engine.study import Study, by_name
from foundation.measures import metrics
from models import MLP, QNN, Training, train
from poison_unlearn import (
    METHODS,
    Poison,
    Retrain,
    flip_labels,
    randomize_features,
    relabel_randomly,
    unlearn,
)
from protocol import Fit, tensors_to_params
from studies.quadratic import QuadraticForm
from studies.unlearning import WeightMapFlags

KEY = jax.random.key(0)
STUDIES = by_name(run_unlearn_mnist.STUDIES)
SPLIT = random_split(8, 4)
NETWORK, CIRCUIT = MLP(4, (3,)), QNN(2, 1)
ONE_EPOCH = {"epochs": 1, "batch_size": 0, "learning_rate": 0.1, "key": KEY}

ENTRIES = {  # every public function that takes a split
    "train": lambda split: train(NETWORK, split, **ONE_EPOCH),
    "retain": lambda split: unlearn(
        METHODS["ga"], NETWORK, NETWORK.init(KEY), split, SPLIT, key=KEY
    ),
    "forget": lambda split: unlearn(
        METHODS["ga"], NETWORK, NETWORK.init(KEY), SPLIT, split, key=KEY
    ),
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
        (SPLIT.y * 0.5, "0.5"),
        (SPLIT.y + 1000, "1000"),
        (np.where(SPLIT.y, "1", "0"), "'"),
        (np.where(SPLIT.y, np.nan, 0.0), "nan"),
        (pd.Categorical.from_codes(SPLIT.y, ["cat", "dog"]), "'"),
        (pd.Series(SPLIT.y, dtype="Int64").mask(SPLIT.y == 1), "nan|NA"),
    ],
    ids=["signs", "halves", "large", "text", "NaN", "categories", "missing"],
)
def test_labels_that_are_no_numbers_of_classes_are_refused_wherever_they_enter(enter, labels, said):
    with pytest.raises(
        BadInput, match=rf"\.y: got labels such as .*{said}.*, allowed: whole numbers, 0 to 127"
    ) as refusal:
        enter(Split(SPLIT.x, labels))
    assert "\n" not in str(refusal.value)


@entries
@pytest.mark.parametrize("labels", [(1, 9), (1, 2)])
def test_labels_of_classes_that_are_not_there_are_refused_wherever_they_enter(enter, labels):
    """By a model of two classes, and by what takes samples of every class."""
    with pytest.raises(BadInput, match="class") as refusal:
        enter(Split(SPLIT.x, np.where(SPLIT.y, labels[1], labels[0])))
    assert "\n" not in str(refusal.value)


@entries
@pytest.mark.parametrize(
    "labels",
    [
        SPLIT.y.tolist(),
        tuple(SPLIT.y.tolist()),
        jnp.asarray(SPLIT.y),
        SPLIT.y.astype(bool),
        SPLIT.y.astype(float),
        SPLIT.y.astype(">i8"),
        pd.Series(SPLIT.y, index=[4, 5, 6, 7, 0, 1, 2, 3]),
        pd.Series(SPLIT.y, dtype="Int64"),
        pd.Series(SPLIT.y.astype(bool)),
        pd.Series(SPLIT.y, dtype="category"),
    ],
    ids=[
        "list",
        "tuple",
        "jax",
        "bool",
        "float",
        "big-endian",
        "index",
        "Int64",
        "bools",
        "category",
    ],
)
def test_labels_of_any_container_are_taken_by_position(enter, labels):
    enter(Split(SPLIT.x, labels))


@pytest.mark.parametrize("poison", [flip_labels, relabel_randomly])
def test_a_series_is_poisoned_where_the_mask_says(poison):
    poisoned = poison(
        Split(SPLIT.x, pd.Series(SPLIT.y, index=[4, 5, 6, 7, 0, 1, 2, 3])), 0.5, key=3
    )
    expected = poison(SPLIT, 0.5, key=3)
    np.testing.assert_array_equal(poisoned.split.y, expected.split.y)
    np.testing.assert_array_equal(poisoned.mask, expected.mask)
    assert not (poisoned.split.y != SPLIT.y)[~poisoned.mask].any()


@pytest.mark.parametrize("name", ["train", "val"])
def test_a_split_of_one_class_is_no_data_set(name):
    one = Split(SPLIT.x, SPLIT.y * 0)
    with pytest.raises(
        BadInput, match=rf"{name}\.y: got labels 0 alone, allowed: samples of both classes"
    ):
        Dataset(
            **({"train": SPLIT, "val": SPLIT} | {name: one}),
            name="toy",
            n_features=4,
            provenance={},
        )


@pytest.mark.parametrize("measure", [metrics.accuracy, metrics.cross_entropy])
def test_measures_refuse_labels_that_are_none(measure):
    for labels in ([-1.0, 1.0], [1, 9], [1, 2]):
        with pytest.raises(ValueError, match=r"labels: got"):
            measure(jnp.ones(2), np.array(labels))
    # soft labels are labels
    assert np.isfinite(metrics.cross_entropy(jnp.ones(2), np.array([0.5, 1.0])))


# ---- samples ----


@entries
@given(
    kind=st.sampled_from(
        [
            "f2",
            "f4",
            "f8",
            ">f4",
            "i1",
            "u1",
            "i8",
            "bool",
            "object",
            "list",
            "frame",
            "Float64",
            "jax",
        ]
    ),
    width=st.integers(1, 6),
)
def test_samples_of_any_dtype_and_container_enter(enter, kind, width):
    """Of the width that the network has; of any other it is refused in one line, where there is a
    network."""
    x = np.arange(8 * width).reshape(8, width) % 3 + 1.0
    made = {
        "list": x.tolist(),
        "frame": pd.DataFrame(x, index=range(8, 0, -1)),
        "jax": jnp.asarray(x),
        "Float64": pd.DataFrame(x).astype("Float64"),
    }
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
    np.testing.assert_allclose(
        np.linalg.norm(poisoned.split.x[poisoned.mask], axis=1), 1, rtol=1e-6
    )
    np.testing.assert_array_equal(
        poisoned.split.x[~poisoned.mask],
        x.astype(bool if kind == "bool" else float)[~poisoned.mask],
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
    ids=[
        "NaN",
        "infinite",
        "huge",
        "masked",
        "text",
        "objects",
        "None",
        "dates",
        "ragged",
        "flat",
        "too few",
    ],
)
def test_samples_that_are_no_numbers_are_refused_wherever_they_enter(enter, x, said):
    with pytest.raises(BadInput, match=said) as refusal:
        enter(Split(x, SPLIT.y))
    assert "\n" not in str(refusal.value)


def test_a_validation_set_of_another_width():
    with pytest.raises(BadInput, match=r"val\.x: got 3 features, allowed: the 4 of train\.x"):
        Dataset(SPLIT, Split(SPLIT.x[:, :3], SPLIT.y), "toy", 4, {})


@pytest.mark.parametrize(
    "shape", [(8, 32, 32), (8, 28, 28), (8, 784), (8, 6), (1024,), (8, 4, 4, 64)]
)
@pytest.mark.parametrize(
    "model", [QNN(10, 3), QNN(10, 6), QNN(10, 3, "xy", "cnot")], ids=lambda model: model.label
)
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
    np.testing.assert_allclose(
        model.logits(params, model.prepare(x)), model.logits(params, x), atol=2e-5
    )
    assert model.prepare(model.prepare(x)).shape == (8, 32, 32)


@pytest.mark.parametrize(
    "model", [NETWORK, CIRCUIT, QuadraticForm(4, 2)], ids=lambda model: model.label
)
@pytest.mark.parametrize("width", [1, 3, 5, 6])
def test_models_name_the_width_that_they_read(model, width):
    with pytest.raises(BadInput, match=r"x: got .*allowed: \(n, 4\)"):
        model.logits(model.init(KEY), np.ones((2, width)))


# ---- MNIST and files ----


@pytest.mark.parametrize(
    "digits", [[4, 9], (4, 9), np.array([4, 9]), (np.int64(4), np.uint8(9)), pd.Series([4, 9])]
)
def test_digits_of_any_container(digits):
    data = load_mnist(digits=digits, source="embedded", per_class=5)
    assert data.provenance["digits"] == [4, 9] and all(
        type(digit) is int for digit in data.provenance["digits"]
    )


@pytest.mark.parametrize(
    "digits", [[4], "49", (4, 4), (4.0, 9), (True, 9), (4, 10), (1, 2, 1), None]
)
def test_digits_that_are_none(digits):
    said = r"digits: got .*allowed: two or more different digits, such as"
    with pytest.raises(BadInput, match=said):
        load_mnist(digits=digits, source="embedded")


def mnist_like(path, **changes):
    images = np.random.default_rng(0).integers(1, 255, (40, 28, 28))
    arrays = {
        "x_train": images,
        "y_train": np.arange(40) % 2,
        "x_test": images,
        "y_test": np.arange(40) % 2,
    }
    np.savez(path, **(arrays | changes))
    return path


def test_a_file_without_the_digits_says_which_it_has(tmp_path):
    with pytest.raises(BadInput, match=r"digits: got .*9.*allowed: labels in file a.npz: 0, 1"):
        load_mnist(path=mnist_like(tmp_path / "a.npz"), per_class=5)
    data = load_mnist(path=tmp_path / "a.npz", digits=(0, 1), per_class=5)
    assert len(data.train.y) == 10 and len(data.val.y) == 40


@pytest.mark.parametrize("pixel", [-1.0, np.nan, np.inf, 1e30])
@pytest.mark.parametrize("part", ["train", "test"])
def test_pixels_that_are_none(tmp_path, pixel, part):
    images = np.ones((40, 28, 28))
    images[3, 2, 1] = pixel
    with pytest.raises(
        BadInput, match=f"data: x_{part}: got NaN, infinite, huge or negative pixels"
    ):
        load_mnist(
            path=mnist_like(tmp_path / "a.npz", **{f"x_{part}": images}), digits=(0, 1), per_class=5
        )


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
        arrays |= {
            f"x_{split}": x.astype(kind),
            f"y_{split}": np.array([labels[each] for each in y]),
        }
    np.savez(path, **(arrays | more))
    return path


@given(
    labels=st.lists(
        st.one_of(st.integers(-5, 300), st.text("abcdé ", min_size=1)), min_size=2, max_size=2
    ).filter(lambda pair: type(pair[0]) is type(pair[1]) and pair[0] != pair[1]),
    width=st.integers(1, 70),
    part=st.sampled_from(["val", "test"]),
    kind=st.sampled_from(["f4", "f8", "i4"]),
)
def test_any_two_classes_of_any_width(tmp_path_factory, labels, width, part, kind):
    path = own_file(
        tmp_path_factory.mktemp("own") / "mine.npz",
        shape=(width,),
        labels=labels,
        part=part,
        kind=kind,
    )
    for classes in (tuple(labels), tuple(labels[::-1])):
        data = load_npz(path, classes=classes)
        assert data.n_features == width and data.name == "mine" and data.image_shape is None
        padded = data.train.x.shape[1]
        assert padded >= max(width, 4) and padded & (padded - 1) == 0 and padded < 2 * max(width, 4)
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
        assert (
            load_npz(own_file(tmp_path / "m.npz", labels=labels), classes=classes).train.y.tolist()
            == [0, 1] * 12
        )


def test_samples_of_other_classes_are_left_out(tmp_path):
    y = np.array(["cat", "dog", "cow"] * 8)
    path = own_file(tmp_path / "m.npz", y_train=y, y_val=y[:12])
    data = load_npz(path, classes=("cow", "cat"))
    np.testing.assert_array_equal(data.train.y, (y[y != "dog"] == "cat").astype(int))
    of_all = load_npz(path)
    assert of_all.n_classes == 3 and of_all.provenance["classes"] == ["cat", "cow", "dog"]
    np.testing.assert_array_equal(of_all.train.y, np.unique(y, return_inverse=True)[1])
    with pytest.raises(
        BadInput, match=r"classes: got cow, allowed: 2 to 128 of the labels in .*: cat, cow, dog"
    ):
        load_npz(path, classes=("cow",))


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
        ({"y_val": np.array(["cat"] * 12)}, "data: y_val: got labels .cat., allowed: samples of "
                                            "both"),
        ({"y_train": np.array([["cat"], ["dog"]] * 12)}, r"data: y_train: got shape \(24, 1\)"),
        ({"poison_mask": np.ones(23)}, r"poison_mask: got shape \(23,\)"),
        ({"poison_mask": np.ones(24)}, "poison_mask: got 24 of 24 samples, allowed: some"),
        ({"poison_mask": np.zeros(24)}, "poison_mask: got 0 of 24 samples, allowed: some"),
        ({"poison_mask": np.arange(24)}, "poison_mask: got values"),
        ({"poison_mask": np.arange(24) < 3, "known_mask": np.arange(24) > 3}, "known_mask: got "
                                                                              "samples outside"),
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
    path = own_file(
        tmp_path / "m.npz", y_train=noisy, y_clean=y, poison_mask=mask, known_mask=known
    )
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


# ---- settings of a notebook ----


def test_numbers_of_numpy_and_lists_are_stored_as_pythons_own():
    config = replace(
        run_unlearn_mnist.QUICK,
        alphas=np.arange(0, 60, 30),
        runs=np.int64(3),
        seed=np.uint32(7),
        out="elsewhere",
        digits=np.array([4, 9]),
        models=["mlp"],
        hidden=["3"],
        weight_map=WeightMapFlags(weights=np.linspace(0, 0.5, 2)),
        unlearn_labels=np.int8(30),
    )
    assert (
        config.alphas == (0, 30)
        and config.digits == (4, 9)
        and config.weight_map.weights == (0.0, 0.5)
    )
    assert (
        type(config.alphas[0]) is int
        and type(config.runs) is int
        and type(config.weight_map.weights[1]) is float
    )
    assert config.out == Path("elsewhere") and config.models == ("mlp",)
    json.dumps([config.alphas, config.runs, config.seed, config.digits, config.unlearn_labels])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"alphas": (0.3,)}, "--alphas: got 0.3, allowed: whole percents, 0 to 99"),
        ({"alphas": (0.0, 30)}, "--alphas: got 0.0, allowed: whole percents"),
        ({"alphas": (np.float32(30),)}, "--alphas: got 30.0, allowed: whole percents"),
        ({"alphas": (True,)}, "--alphas: got True, allowed: whole percents"),
        ({"alphas": 30}, "--alphas: got 30, allowed: a tuple"),
        ({"alphas": ("30",)}, "--alphas: got 30, allowed: whole percents"),
        ({"unlearn_labels": 0.3}, "--unlearn-labels: got 0.3, allowed: whole percents"),
        ({"models": "mlp"}, "--models: got 'mlp', allowed: a tuple"),
        ({"runs": 2.5}, "--runs: got 2.5, allowed: whole numbers"),
        ({"seed": "1"}, "--seed: got 1, allowed: whole numbers"),
        ({"hidden": (64, 16)}, "--hidden: got 64, allowed: a string for each network: its widths, "
                               "such as .64,16."),
        ({"hidden": ("64 16",)}, "--hidden: got '64 16', allowed: a string for each network"),
        ({"hidden": "64,16"}, "--hidden: got '64,16', allowed: a tuple"),
        ({"unlearn_hidden": 16}, "--hidden: got 16, allowed: a string"),
        ({"digits": [4]}, "--digits: got .*allowed: two or more different digits"),
        ({"classes": ("cat", "dog")}, "--classes: got cat dog, allowed: with --data"),
        ({"classes": ("cat",), "data": "a.npz"}, "--classes: got cat, allowed: two or more "
                                                 "different labels"),
        ({"per_class": -1}, "--per-class: got -1"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_one_line(changes, said):
    with pytest.raises(BadInput, match=said) as refusal:
        replace(run_unlearn_mnist.QUICK, **changes)
    assert "\n" not in str(refusal.value)


def rows(dataset, stage="noise_sweep", **changes):
    config = replace(run_unlearn_mnist.QUICK, models=("mlp",), **changes)
    return list(STUDIES[stage].plan(config, dataset))


def test_shares_that_poison_no_sample_or_too_many_are_refused_by_flag():
    small = Dataset(random_split(82, 4), SPLIT, "toy", 4, {"sha256": "toy"})
    with pytest.raises(
        BadInput, match=r"--alphas: got 1, allowed: 0, or shares that poison some of 82 samples"
    ):
        rows(small, alphas=(0, 1))
    assert [
        row.place["alpha_percent"] for row in rows(small, alphas=(0, 3), poisons=("labels",))
    ] == [0, 3]
    uneven = Dataset(
        Split(small.train.x, (np.arange(82) < 8).astype(int)), SPLIT, "toy", 4, {"sha256": "toy"}
    )
    with pytest.raises(
        BadInput, match=r"--alphas: got 90 \(labels: fraction: got 0.9, allowed: at most 8 samples"
    ):
        rows(uneven, alphas=(0, 90))


def test_six_features_are_no_qubits():
    data = Dataset(random_split(8, 6), random_split(8, 6), "toy", 6, {"sha256": "toy"})
    with pytest.raises(
        BadInput, match=r"train.x: got 6 features, allowed: a power of two.*datar.pad"
    ):
        list(STUDIES["noise_sweep"].plan(replace(run_unlearn_mnist.QUICK, models=("qnn",)), data))


def test_poison_that_the_data_came_with_is_what_is_swept_and_unlearned(tmp_path):
    path = own_file(tmp_path / "m.npz", poison_mask=np.arange(24) < 5)
    for stage in ("noise_sweep", "unlearning", "weight_map"):
        places = [row.place["poison"] for row in rows(load_npz(path), stage)]
        assert places and set(places) == {"given"}
    assert {row.job.poison.alpha_percent for row in rows(load_npz(path))} == {21}


def test_a_loss_that_is_no_number_is_a_training_that_diverged():
    """At a rate of 1e18 parameters and logits are finite, and the loss is not."""
    training = Training(epochs=2, batch_size=0, learning_rate=1e18)
    job = Fit(
        data="toy", model=MLP(4, (3, 3)), poison=Poison(), method=Retrain(training=training), size=2
    )
    data = Dataset(SPLIT, SPLIT, "toy", 4, {"sha256": "toy"})
    values = job.perform(data)
    lost = ~np.isfinite(np.asarray(values["loss"])[:, [0, -1]]).all(axis=1)
    assert lost.any()
    np.testing.assert_array_equal(np.asarray(values["diverged"]).astype(bool)[lost], True)
    fine = replace(job, method=Retrain(training=replace(training, learning_rate=0.1)))
    assert not np.asarray(fine.perform(data)["diverged"]).any()


# ---- circuits from elsewhere ----

QASM = """OPENQASM 2.0;
include "qelib1.inc";
qreg q[3];
ry(0.3) q[0];
u3(0.1,0.2,0.3) q[1];
h q[2];
cx q[0],q[1];
rzz(0.7) q[1],q[2];
cp(0.4) q[0],q[2];
rx(-1.1) q[2];
"""


def test_a_circuit_of_openqasm_is_that_circuit_and_trains():
    pytest.importorskip("qiskit")
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import Operator

    model = QNN.from_openqasm(QASM, "mine")
    assert (
        model.n_qubits == 3
        and model.label == "QNN[mine]"
        and model.shape == model.ansatz.angles.shape
    )
    states = random_split(4, 8, complex_states=True).x
    # qubit 0 the most significant
    unitary = Operator(QuantumCircuit.from_qasm_str(QASM).reverse_bits()).data
    z = np.kron(np.ones(4), [1, -1])
    expected = 5 * (np.abs(states @ unitary.T) ** 2) @ z
    np.testing.assert_allclose(
        model.logits(jnp.asarray(model.ansatz.angles), states), expected, atol=2e-5
    )
    params = train(
        model,
        random_split(12, 8, complex_states=True),
        epochs=3,
        batch_size=0,
        learning_rate=0.1,
        key=KEY,
    )
    assert (
        params.shape == model.shape
        and np.isfinite(params).all()
        and float(jnp.abs(params).max()) > 0.05
    )
    assert keys.describe(model) == keys.describe(QNN.from_openqasm(QASM, "mine"))
    assert keys.describe(model) != keys.describe(
        QNN.from_openqasm(QASM.replace("cx q[0]", "cx q[2]"), "mine")
    )


@pytest.mark.parametrize(
    "model", [QNN(3, 2), QNN(3, 2, "xy", "cnot")], ids=lambda model: model.label
)
def test_our_circuit_goes_out_as_openqasm_and_comes_back(model):
    pytest.importorskip("qiskit")
    params = 50 * model.init(KEY)
    back = QNN.from_openqasm(model.to_openqasm(params))
    states = random_split(4, 8, complex_states=True).x
    angles = jnp.asarray(back.ansatz.angles)
    np.testing.assert_allclose(back.logits(angles, states), model.logits(params, states), atol=2e-5)


def test_a_circuit_of_pennylane_comes_by_openqasm():
    pytest.importorskip("qiskit")
    import pennylane as qml

    @qml.qnode(qml.device("default.qubit", wires=2))
    def node(weights, state):
        qml.RY(weights[0], 0)
        qml.Rot(*weights[1:4], 1)
        qml.CNOT([0, 1])
        return qml.expval(qml.Z(1))

    weights = np.array([0.4, 0.1, -0.8, 0.3])
    model = QNN.from_openqasm(
        qml.to_openqasm(node, wires=range(2), measure_all=False)(weights, None)
    )
    zero = np.eye(4)[:1]
    np.testing.assert_allclose(
        model.logits(jnp.asarray(model.ansatz.angles), zero)[0], 5 * node(weights, None), atol=2e-5
    )


HEAD = 'OPENQASM 2.0;\ninclude "qelib1.inc";\nqreg q[3];\n'
ONE = (
    "u1(0.3) p(0.3) u2(0.3,-1.2) u3(0.3,1.1,-0.4) u(0.3,1.1,-0.4)",
    "rx(0.3) ry(0.3) rz(0.3) id x y z",
    "h s sdg t sx sxdg",
)
TWO = (
    "cx cy cz ch swap csx",
    "cp(0.3) cu1(0.3) cu3(0.3,1.1,-0.4) cu(0.3,1.1,-0.4,0.7)",
    "crx(0.3) cry(0.3) crz(0.3) rzz(0.3)",
)
OWN_GATE = "gate mine(a,b) x1,x2 { rx(a) x2; cu1(b/2) x1,x2; h x1; }\n"
GATES = {
    **{words: [f"{word} q[1];" for word in words.split()] for words in ONE},
    **{words: [f"{word} q[2],q[0];" for word in words.split()] for words in TWO},
    "ccx cswap rccx": [f"{word} q[2],q[0],q[1];" for word in ("ccx", "cswap", "rccx")],
    "its own": [f"{OWN_GATE}mine(0.4,1.2) q[2],q[0];\nbarrier q;"],
}


@pytest.mark.parametrize("words", GATES.values(), ids=GATES)
def test_every_gate_of_openqasm_is_that_gate(words):
    """Some gates in one circuit, rotations of each qubit between any two; and the slope along a
    direction in which all angles move."""
    pytest.importorskip("qiskit")
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import Operator

    turned = "".join(f"ry({0.3 + qubit}) q[{qubit}];rx(0.7) q[{qubit}];" for qubit in range(3))
    text = HEAD + turned.join(["", *words, ""])
    states = random_split(3, 8, complex_states=True).x
    unitary = Operator(QuantumCircuit.from_qasm_str(text).reverse_bits()).data
    probabilities = np.abs(states @ unitary.T) ** 2
    for measured in (None, 0, 1):
        model = QNN.from_openqasm(text, measured=measured)
        z = 1 - 2 * ((np.arange(8) >> (2 - (2 if measured is None else measured))) & 1)
        angles = jnp.asarray(model.ansatz.angles)
        found = model.logits(angles, states)
        np.testing.assert_allclose(found, 5 * probabilities @ z, atol=3e-5)

    def total(params):
        return model.logits(params, states).sum()

    direction = np.random.default_rng(0).normal(size=angles.shape)
    direction /= np.linalg.norm(direction)
    ahead, behind = total(angles + 1e-2 * direction), total(angles - 1e-2 * direction)
    slope = jax.grad(total)(angles) @ direction
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-2, atol=2e-2)


def test_the_qubit_that_the_text_measures_is_the_one_that_is_read():
    pytest.importorskip("qiskit")
    text = HEAD + "creg c[1];ry(0.7) q[0];ry(0.2) q[1];measure q[0]->c[0];"
    model, zero = QNN.from_openqasm(text), np.eye(8)[:1]
    np.testing.assert_allclose(
        model.logits(jnp.asarray(model.ansatz.angles), zero), 5 * np.cos(0.7), atol=1e-5
    )
    model = QNN.from_openqasm(text, measured=1)
    np.testing.assert_allclose(
        model.logits(jnp.asarray(model.ansatz.angles), zero), 5 * np.cos(0.2), atol=1e-5
    )
    with pytest.raises(BadInput, match="measured: got 3, allowed: 0 to 2"):
        QNN.from_openqasm(text, measured=3)


@pytest.mark.parametrize(
    ("line", "said"),
    [("opaque foo(a) q0; foo(0.1) q[0]; rx(.1) q[2];", "foo"),
     ("creg c[1]; rx(.1) q[2]; if(c==1) x q[2];", "if_else|x"),
     ("rx(.3) q[2]; reset q[2];", "reset"),
     ("creg c[1]; h q[2]; measure q[2]->c[0]; h q[2];", "h behind a measurement"),
     ("rx(1e400) q[0];", "finite angles|infinity|inf")],
)  # fmt: skip
def test_instructions_that_are_no_gates_are_refused_by_name(line, said):
    pytest.importorskip("qiskit")
    with pytest.raises(BadInput, match=rf"^OpenQASM: got [^\n]*({said})"):
        QNN.from_openqasm(HEAD + line)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, wrong, x: model.logits(wrong, x),
        lambda model, wrong, x: model.to_openqasm(wrong),
        lambda model, wrong, x: unlearn(
            METHODS["cf"], model, wrong, random_split(4, 8), random_split(2, 8), key=KEY
        ),
    ],
    ids=["logits", "to_openqasm", "unlearn"],
)
@pytest.mark.parametrize("shape", [(5, 3, 4), (2, 3, 3), (2,), ()])
def test_parameters_of_another_shape_are_refused(call, shape):
    with pytest.raises(BadInput, match=r"(params|teacher): got shape.*allowed"):
        call(QNN(3, 2), jnp.zeros(shape), np.eye(8, dtype=np.float32)[:2])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: train(NETWORK, tuple(SPLIT), **ONE_EPOCH | {"key": 5}), "key: got 5"),
        (lambda: train(NETWORK, 3, **ONE_EPOCH), "split: got int"),
        (
            lambda: train(NETWORK, SPLIT, **ONE_EPOCH | {"learning_rate": "0.1"}),
            "learning_rate: got 0.1",
        ),
        (
            lambda: unlearn(
                "ga", MLP(8, ()), None, random_split(4, 8), random_split(2, 8), key=KEY
            ),
            "method: got 'ga'",
        ),
        (lambda: flip_labels(7, 0.3, key=0), "split: got int"),
        (lambda: flip_labels(SPLIT, 0.3, key=None), "key: got None"),
        (lambda: flip_labels(SPLIT, 0.3, key=-1), "key: got -1"),
        (lambda: randomize_features(SPLIT, 0.3, key="a"), "key: got a"),
        (lambda: metrics.bootstrap_interval(np.arange(5), level=95), "level: got 95"),
        (lambda: metrics.ratio_interval(np.arange(5), np.arange(4)), "values: got shapes"),
        (lambda: metrics.largest_drop([]), "curve: got shape"),
        (lambda: metrics.accuracy([1.0, -1.0], [0.3, 0.7]), "labels: got labels such as 0.3"),
        (
            lambda: metrics.cross_entropy(np.ones(2), np.ma.masked_array([0, 1], mask=[1, 0])),
            "labels: got a masked",
        ),
        (lambda: metrics.accuracy(np.ones(2), ["a", "b"]), "labels: got dtype"),
    ],
)
def test_what_the_library_is_called_with_is_refused_by_name(call, said):
    with pytest.raises(BadInput, match=f"({said}).*allowed"):
        call()


def test_lists_are_logits_and_labels():
    assert float(metrics.accuracy([2.0, -1.0, 3], [1, 0, 0])) == pytest.approx(2 / 3)
    expected = np.mean(np.log1p(np.exp(np.array([-2.0, -1.0]))))
    assert float(metrics.cross_entropy([2, -1], (1, 0))) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_short_floats_of_jax_are_samples(kind):
    found = require_split(Split(jnp.eye(4, dtype=kind), [0, 1, 0, 1])).x
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.eye(4))


def test_sparse_matrices_are_refused_with_the_way_out():
    with pytest.raises(BadInput, match=r"x: got a sparse matrix, allowed: .*toarray"):
        require_split(Split(scipy.sparse.eye_array(4, format="csr"), [0, 1, 0, 1]))


# ---- files again ----


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"known_mask": np.ones(24, bool)}, "known_mask without poison_mask"),
        ({"y_clean": np.zeros(24)}, "y_clean without poison_mask"),
        ({"Poison_mask": np.arange(24) < 4}, "Poison_mask.*allowed: poison_mask"),
        (
            {"poison_mask": np.arange(24) < 4, "x_clean": np.ones((24, 5))},
            r"x_clean: got shape \(24, "
            r"5\)",
        ),
        (
            {"poison_mask": np.arange(24) < 4, "known_mask": np.zeros(24, bool)},
            "known_mask: got 0 of 4",
        ),
        (
            {"y_train": np.array(["cat", "dog"] * 12, object)},
            "y_train: got Python objects.*to_numpy",
        ),
        ({"x_train": np.array([[1.0] * 6] * 24, object)}, "x_train: got Python objects.*to_numpy"),
    ],
)
def test_keys_that_do_not_go_together_are_refused_by_name(tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        load_npz(own_file(tmp_path / "own.npz", **changes))


@pytest.mark.parametrize("classes", [(3, 7), ("3", "7"), (3.0, 7.0), ("3.0", "7.0"), [b"3", b"7"]])
def test_samples_without_a_label_belong_to_no_class(tmp_path, classes):
    labels = np.where(np.arange(24) % 2, 7.0, 3.0)
    labels[5] = np.nan
    path = own_file(tmp_path / "nan.npz", labels=(3.0, 7.0), y_train=labels)
    assert len(load_npz(path, classes=classes).train.y) == len(load_npz(path).train.y) == 23


def test_true_and_false_and_letters_of_two_parts(tmp_path):
    path = own_file(tmp_path / "b.npz", labels=(False, True))
    for classes in (("False", "True"), (False, True), (0, 1)):
        assert load_npz(path, classes=classes).train.y[:2].tolist() == [0, 1]
    path = own_file(tmp_path / "nfd.npz", labels=("Ma\u0308dchen", "Junge"))
    assert load_npz(path, classes=("M\u00e4dchen", "Junge")).train.y[:2].tolist() == [0, 1]


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_narrow_data_are_for_every_model(tmp_path, width):
    path = own_file(tmp_path / "narrow.npz", shape=(width,))
    found = load_npz(path)
    assert found.train.x.shape[1] == max(4, 2 ** int(np.ceil(np.log2(width))))
    for family in ("mlp", "qnn", "quadratic"):
        config = replace(run_unlearn_mnist.QUICK, models=(family,), stages=("noise_sweep",))
        assert STUDIES["noise_sweep"].plan(config, found)


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--alphas", "0.3"], "error: --alphas: got 0.3, allowed:"), (["mine.npz"], "mine.npz"),
     (["--mlp.sweep.learning-rate", "-1"], "error: --mlp.sweep.learning-rate: got -1.0"),
     (["--preset", "none"], "'none'"), (["--workers", "1.5"], "error: --workers: got 1.5"),
     (["--out", "y" * 300], "error: --out: got a name of 300 bytes"),
     (["--digits", "4", "9", "--data", "x.npz", "--classes", "3", "4"], "not both"),
     (["--preset", "quick", "--per-class", "500"], "error: per_class: got 500, allowed: 1 to 499")],
)  # fmt: skip
def test_a_command_line_that_cannot_be_read_is_one_line(monkeypatch, capsys, flags, said):
    monkeypatch.setattr(sys, "argv", ["run_unlearn_mnist.py", *flags, "--plan"])
    with pytest.raises(SystemExit) as end:
        run_unlearn_mnist.main()
    error = capsys.readouterr().err
    assert (
        end.value.code == 2
        and error.count("\n") == 1
        and error.startswith("error: ")
        and said in error
    )


@pytest.mark.parametrize(
    "text", ["", "qreg q[2]", "OPENQASM 2.0;\nqreg q[2];\nno q[0];", QASM + "if(c==1) x q[0];"]
)
def test_text_that_is_no_circuit_is_one_line(text):
    pytest.importorskip("qiskit")
    with pytest.raises(BadInput, match=r"OpenQASM: got .*allowed") as refusal:
        QNN.from_openqasm(text)
    assert "\n" not in str(refusal.value)


def test_without_qiskit_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "qiskit", None)
    monkeypatch.setitem(sys.modules, "qiskit.circuit", None)
    with pytest.raises(BadInput, match="pip install qiskit"):
        QNN.from_openqasm(QASM)


# ---- machines ----


def run(*arguments, cwd, **environment):
    """A script of the project in a process of its own; a variable of None is not set."""
    own = {name: value for name, value in (os.environ | environment).items() if value is not None}
    own = {name: value for name, value in own.items() if name not in ONE_THREAD}
    command = [sys.executable, str(ROOT / arguments[0]), *map(str, arguments[1:])]
    return subprocess.run(
        command, cwd=cwd, env=own, capture_output=True, text=True, errors="replace", timeout=300
    )


SMALL = (  # noqa: SIM905 - as one types them
    "--preset quick --models mlp --stages noise_sweep --hidden 2 --runs 2 --workers 1"
).split()


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """A folder with blanks and umlauts, a study of two of one's own classes in it, and what was
    printed in ASCII."""
    folder = tmp_path_factory.mktemp("für mich allein")
    own_file(folder / "Häuser und Bäume.npz", labels=("Haus", "Bäume"), n=40)
    flags = (
        "--data",
        "Häuser und Bäume.npz",
        "--classes",
        "Haus",
        "Bäume",
        "--alphas",
        *range(0, 95, 5),
    )
    done = run(
        "run_unlearn_mnist.py", *SMALL, *flags, cwd=folder, PYTHONIOENCODING="ascii", HOME=None
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_any_folder_any_encoding_and_all_columns(computed):
    folder, done = computed
    assert "alpha in percent" in done.stdout and "Traceback" not in done.stderr
    heads = [
        re.findall(r"\d+", line)
        for line in done.stdout.splitlines()
        if re.fullmatch(r" +\d[\d\s\\]+", line)
    ]
    assert [int(word) for words in heads for word in words] == list(range(0, 95, 5))
    assert max(map(len, done.stdout.splitlines())) <= 122 and "..." not in done.stdout
    assert len(list(folder.glob("results/*/*/noise_sweep.png"))) == 1
    assert "poisoned samples: 0, 2, 4, 6," in " ".join(done.stdout.split())


def test_what_was_trained_comes_out_in_a_line(computed):
    (path,) = computed[0].glob("results/*/*/noise_sweep.nc")
    arrays = results.job_arrays(path, run=1, model="MLP[2]", poison="labels", alpha_percent=30)
    data = load_npz(computed[0] / "Häuser und Bäume.npz", classes=("Haus", "Bäume"))
    model = MLP(8, (2,))
    params = tensors_to_params(model, arrays)
    validation = slice(2 * len(data.train.y), None)
    np.testing.assert_allclose(
        model.logits(params, data.val.x), arrays["logit"][validation], atol=1e-5
    )
    np.testing.assert_array_equal(arrays["label"][validation], data.val.y)
    stored = storage.read_dataset(path).accuracy.sel(
        model="MLP[2]", poison="labels", alpha_percent=30, split="validation", run=1
    )
    assert float(stored) == pytest.approx(
        ((arrays["logit"] > 0) == arrays["label"])[validation].mean(), abs=1e-6
    )
    with pytest.raises(BadInput, match=r"place: got run 9 of .*allowed: what .* holds, such as"):
        results.job_arrays(path, run=9, model="MLP[2]", poison="labels", alpha_percent=30)


def test_a_closed_pipe_ends_no_work(computed):
    code = (
        f"{sys.executable} {ROOT / 'run_unlearn_mnist.py'} {' '.join(SMALL)} --alphas 0 --out "
        "piped 2>&1 | head -n 1"
    )
    done = subprocess.run(
        ["bash", "-c", code], cwd=computed[0], capture_output=True, text=True, timeout=300
    )
    assert (
        "Traceback" not in done.stdout + done.stderr
        and len(list(computed[0].glob("piped/*/*/*.png"))) > 0
    )


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    done = run("run_unlearn_mnist.py", *SMALL, "--alphas", 0, cwd=tmp_path, JAX_PLATFORMS="tpu")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: JAX_PLATFORMS: got tpu, allowed: a device that is there" in done.stderr


@pytest.mark.parametrize(
    "reason", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock here")]
)
def test_a_file_system_without_locks_is_named_before_anything_is_computed(
    tmp_path, monkeypatch, reason
):
    def refuse(*arguments, **keywords):
        raise reason

    monkeypatch.setattr(results.FileLock, "acquire", refuse)
    monkeypatch.setattr(runner, "compute", lambda *_, **__: pytest.fail("computed first"))
    config = replace(
        run_unlearn_mnist.QUICK, models=("mlp",), stages=("noise_sweep",), out=tmp_path
    )
    with pytest.raises(
        BadInput, match=r"--out: got .*allowed: a file system with locks \((No locks|no flock)"
    ):
        runner.run_studies(
            config,
            Dataset(SPLIT, SPLIT, "toy", 4, {"sha256": "toy"}),
            [Study(name="noise_sweep", question="?", plan=one_row)],
        )


def one_row(config, dataset):
    return rows(dataset, alphas=(0,), poisons=("labels",))[:1]


def test_a_user_without_a_home_has_a_cache_all_the_same(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    folder = cache_folder()
    assert folder == cache_folder() and folder.parent.stat().st_mode & 0o777 == 0o700


def damaged(entries, how):
    """Each entry replaced, rotated, truncated or with one bit flipped."""
    contents = [path.read_bytes() for path in entries]
    if how == "rotated":
        contents = contents[1:] + contents[:1]
    for path, content in zip(entries, contents, strict=True):
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        spoiled = {"truncated": content[:middle], "flipped": flipped, "replaced": b"nonsense"}
        path.write_bytes(spoiled.get(how, content))


@pytest.mark.parametrize("how", ["rotated", "truncated", "flipped", "replaced"])
def test_a_program_is_the_one_of_its_name_or_none(tmp_path, how):
    programs = Programs(tmp_path)
    for name in ("a", "b", "c"):
        programs.put(name, name.encode() * 100)
    assert programs.get("a") == b"a" * 100 and programs.get("d") is None
    damaged(sorted(tmp_path.glob("*.program")), how)
    assert [programs.get(name) for name in ("a", "b", "c")] == [None] * 3
    assert not list(tmp_path.glob("*.program"))
    programs.put("a", b"new")
    assert programs.get("a") == b"new"


def test_the_folder_of_programs_is_the_users_alone(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "programs"
    folder.mkdir(mode=0o777)
    assert private_folder(folder) == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert private_folder(folder) is None
    assert "it belongs to another user" in capsys.readouterr().err


CHANGED = """
import jax, numpy as np
from pathlib import Path
from foundation.engine.programs import use_checked_programs
from models import train
from test_users import NETWORK, ONE_EPOCH, SPLIT, damaged

use_checked_programs()
cache = Path({cache!r})
for kind in ("first", "rotated", "flipped", "truncated"):
    damaged(sorted(cache.glob("*.program")), kind)
    jax.clear_caches()
    params = train(NETWORK, SPLIT, **ONE_EPOCH)
    numbers = np.concatenate([np.ravel(value) for value in jax.tree.leaves(params)])
    entries = sorted(path.name for path in cache.glob("*.program"))
    print(kind, len(entries), hash((numbers.tobytes(), *entries)))
"""


def test_programs_that_were_changed_in_the_cache_are_compiled_again(tmp_path):
    """The right numbers, and whole entries afterwards."""
    cache = tmp_path / "cache of mine"
    code = "import sys; sys.path.insert(0, 'tests')\n" + CHANGED.format(cache=str(cache))
    done = run_python("-c", code, JAX_COMPILATION_CACHE_DIR=str(cache))
    assert done.returncode == 0, done.stderr
    kinds, numbers, hashes = zip(*(line.split() for line in done.stdout.splitlines()), strict=True)
    assert kinds == ("first", "rotated", "flipped", "truncated")
    assert int(numbers[0]) > 1 and len(set(numbers)) == len(set(hashes)) == 1
