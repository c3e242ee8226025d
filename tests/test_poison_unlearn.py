"""Poisons: counts, balance, partition, what is known. Methods: formulas, equivalences, and methods
of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from conftest import (
    assert_trees_equal,
    fractions,
    keys,
    random_split,
    refused,
    separable_split,
    trees_differ,
)
from hypothesis import given
from hypothesis import strategies as st

import datar
from datar import Dataset, Split
from foundation.measures.metrics import cross_entropy
from models import MLP, QNN, Training, train
from poison_unlearn import (
    DIVERGENCES,
    METHODS,
    POISONS,
    UNPOISONED,
    Batch,
    Descent,
    FineTune,
    GradientAscent,
    Method,
    OneShot,
    Poison,
    Retrain,
    Scrub,
    Task,
    flip_labels,
    forget_class,
    poison_backdoor,
    poison_boundary,
    poison_features,
    poison_labels,
    poison_one_class,
    poison_other_class,
    poison_quid,
    randomize_features,
    relabel_randomly,
    retain_loss,
    unlearn,
    with_trigger,
)

PUBLISHED = {name: METHODS[name] for name in ("retrain", "cf", "scrub", "ga")}

KEY = jax.random.key(3)
# by chance; tests/test_users.py: given
DRAWN = {kind: poison for kind, poison in POISONS.items() if kind != "given"}
# the share that can be poisoned, where it is not any
MOST = dict.fromkeys((poison_one_class, poison_other_class, poison_backdoor), 0.5)
AIMED = (poison_boundary, poison_quid, forget_class)  # the same samples whatever the key
UNCHANGING = tuple(POISONS[kind] for kind in UNPOISONED)
each_poison = pytest.mark.parametrize("poison", DRAWN.values(), ids=DRAWN)
each_kind = pytest.mark.parametrize("kind", DRAWN)

# ---- poisons ----


def toy(split, n_features=None):
    """A data set that trains on this split."""
    width = np.shape(split.x)[1]
    shape = (2, 2) if width == 4 and n_features is None else None
    return Dataset(split, split, "toy", n_features or width, {"sha256": "toy"}, shape)


def as_integer(fraction, n):
    """int(fraction n), with what rounding errors took from whole numbers given back."""
    return int(fraction * n + 1e-9)


@given(fractions, st.integers(1, 30), keys)
def test_as_many_labels_flip_as_asked_half_from_each_class(fraction, per_class, key):
    split = random_split(2 * per_class, 4)
    poisoned = flip_labels(split, fraction, key=key)
    half = as_integer(fraction, 2 * per_class) // 2
    assert np.bincount(split.y[poisoned.mask], minlength=2).tolist() == [half, half]
    np.testing.assert_array_equal(poisoned.split.y != split.y, poisoned.mask)
    np.testing.assert_array_equal(poisoned.split.x, split.x)


@given(fractions, st.integers(1, 30), keys, st.booleans(), st.integers(1, 8))
def test_as_many_features_become_noise_as_asked_half_from_each_class(
    fraction, per_class, key, is_complex, length
):
    split = random_split(2 * per_class, 8, complex_states=is_complex)
    poisoned = randomize_features(split, fraction, key=key, n_features=length)
    half = (as_integer(fraction, 2 * per_class) + 1) // 2
    assert np.bincount(split.y[poisoned.mask], minlength=2).tolist() == [half, half]
    np.testing.assert_array_equal((poisoned.split.x != split.x).any(axis=1), poisoned.mask)
    np.testing.assert_array_equal(poisoned.split.y, split.y)
    noise = poisoned.forget_poisoned.x
    np.testing.assert_allclose(np.linalg.norm(noise, axis=1), 1, rtol=1e-6)
    assert noise[:, :length].all() and not noise[:, length:].any()


@given(fractions, st.integers(1, 60), keys)
def test_as_many_samples_are_relabelled_as_asked_of_any_class(fraction, n, key):
    split = random_split(n, 4)
    poisoned = relabel_randomly(split, fraction, key=key)
    assert poisoned.mask.sum() == as_integer(fraction, n)
    changed = poisoned.split.y != split.y
    assert not changed[~poisoned.mask].any() and set(poisoned.split.y) <= {0, 1}


@pytest.mark.parametrize(
    ("fraction", "n", "count"), [(0.29, 100, 28), (0.3, 10, 2), (0.1, 10, 0), (0.5, 12, 6)]
)
def test_an_odd_number_of_flips_is_rounded_down(fraction, n, count):
    """0.29 of 100 is 29, not the 28.999999999999996 of floating point, and so 28; 3 of 10 become
    2."""
    assert flip_labels(random_split(n, 2), fraction, key=KEY).mask.sum() == count


@pytest.mark.parametrize(
    ("fraction", "n", "count"), [(0.29, 100, 30), (0.3, 10, 4), (0.1, 10, 2), (0.0, 10, 0)]
)
def test_an_odd_number_of_noisy_samples_is_rounded_up(fraction, n, count):
    assert randomize_features(random_split(n, 2), fraction, key=KEY).mask.sum() == count


@each_poison
@given(fractions, st.integers(2, 20), keys)
def test_what_is_retained_and_what_is_to_forget_are_all_of_the_data(
    poison, fraction, per_class, key
):
    """Retained samples are untouched; forgotten ones come clean and poisoned, and only x or only y
    differs."""
    split = random_split(2 * per_class, 4)
    before = jax.tree.map(np.copy, split)
    poisoned = poison(toy(split), fraction * MOST.get(poison, 1), key=key)
    assert_trees_equal(split, before)  # the caller's data are not written to
    mask = poisoned.known
    changes = poison not in UNCHANGING
    np.testing.assert_array_equal(poisoned.mask, mask & changes)
    assert mask.dtype == bool and mask.shape == (2 * per_class,)
    for part, whole, rows in (
        (poisoned.retain, split, ~mask),
        (poisoned.retain, poisoned.split, ~mask),
        (poisoned.forget_clean, split, mask),
        (poisoned.forget_poisoned, poisoned.split, mask),
    ):
        assert_trees_equal(part, Split(whole.x[rows], whole.y[rows]))
    if poison is not poison_backdoor:
        same = "y" if poison is poison_features else "x"
        clean, dirty = (
            getattr(forget, same) for forget in (poisoned.forget_clean, poisoned.forget_poisoned)
        )
        np.testing.assert_array_equal(clean, dirty)
    assert [leaf.dtype for leaf in poisoned.split] == [leaf.dtype for leaf in split]


@each_poison
def test_a_key_gives_one_draw_and_another_key_another(poison):
    split = random_split(40, 4)
    first, again, other = (poison(toy(split), 0.4, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert_trees_equal(first, again)
    assert (first.known != other.known).any() != (poison in AIMED)


def test_every_sample_is_as_likely_to_be_poisoned():
    """3 of each class of 10 over 400 keys: each sample is expected 120 times, with deviation
    9.2."""
    split = random_split(20, 2)
    counts = sum(
        flip_labels(split, 0.3, key=jax.random.key(seed)).mask.astype(int) for seed in range(400)
    )
    assert counts.sum() == 2400
    assert np.abs(counts - 120).max() < 5 * np.sqrt(400 * 0.3 * 0.7)


def test_half_of_the_random_labels_are_those_that_were():
    """And they are fair: of 10,000, 5,000 keep theirs, and 5,000 are 1, each with deviation 50."""
    poisoned = relabel_randomly(random_split(20_000, 1), 0.5, key=KEY)
    assert poisoned.mask.sum() == 10_000
    kept = (poisoned.forget_clean.y == poisoned.forget_poisoned.y).sum()
    assert abs(kept - 5000) < 250 and abs(poisoned.forget_poisoned.y.sum() - 5000) < 250


@pytest.mark.parametrize("is_complex", [False, True])
def test_noise_is_a_random_direction(is_complex):
    """Components have mean 0 and variance 1 / d (half of it in either part), and are
    uncorrelated."""
    noise = randomize_features(
        random_split(2000, 16, complex_states=is_complex), 0.99, key=KEY
    ).forget_poisoned.x
    parts = np.concatenate([noise.real, noise.imag], axis=1) if is_complex else noise
    n, d = parts.shape
    assert np.abs(parts.mean(axis=0)).max() < 5 / np.sqrt(n * d)
    covariance = d * parts.T @ parts / n
    assert np.abs(covariance - np.eye(d)).max() < 5 * np.sqrt(2 / n)


def test_noise_is_complex_only_where_the_samples_have_imaginary_parts():
    split = random_split(10, 8, complex_states=True)
    in_real_gauge = Split(split.x.real.astype(np.complex64), split.y)
    assert randomize_features(split, 0.5, key=KEY).forget_poisoned.x.imag.any()
    real = randomize_features(in_real_gauge, 0.5, key=KEY).forget_poisoned.x
    assert real.dtype == np.complex64 and not real.imag.any()


@each_poison
@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, np.nan, np.inf])
def test_fractions_are_from_0_to_below_1(poison, fraction):
    with refused(f"^fraction.*{fraction}"):
        poison(toy(random_split(10, 4)), fraction, key=KEY)


@pytest.mark.parametrize("poison", [flip_labels, randomize_features])
def test_more_than_a_class_has_are_refused(poison):
    """8 of 12 samples would take 4 of the class that has 3; 6 take just those."""
    split = Split(np.ones((12, 2), np.float32), np.repeat([0, 1], [9, 3]).astype(np.int32))
    with refused("^fraction.*at most 3"):
        poison(split, 8 / 12, key=KEY)
    assert poison(split, 6 / 12, key=KEY).mask[9:].all()


@pytest.mark.parametrize("n_features", [0, 5, -1])
def test_noise_has_to_fit_the_samples(n_features):
    with refused("^n_features"):
        randomize_features(random_split(10, 4), 0.5, key=KEY, n_features=n_features)


def test_poisoned_digits(mnist):
    """30 % of the 500 images: 75 of each class, their padding still empty."""
    for poison in (poison_labels, poison_features):
        poisoned = poison(mnist, 0.3, key=KEY)
        assert np.bincount(mnist.train.y[poisoned.mask]).tolist() == [75, 75]
        assert poisoned.retain.x.shape == (350, 1024) and not poisoned.split.x[:, 784:].any()


POISONINGS = [
    flip_labels,
    partial(flip_labels, balanced=False),
    randomize_features,
    relabel_randomly,
]
each_function = pytest.mark.parametrize(
    "function",
    POISONINGS,
    ids=["flip_labels", "unbalanced", "randomize_features", "relabel_randomly"],
)
FORMS = {
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "JAX arrays": lambda x, y: (jnp.asarray(x), jnp.asarray(y)),
    "pandas": lambda x, y: (
        pd.DataFrame(x, index=range(len(y), 0, -1)),
        pd.Series(y, index=np.roll(range(len(y)), 3)),
    ),
    "other widths": lambda x, y: (x.astype(np.float64), y.astype(np.int64)),
    "labels of booleans": lambda x, y: (x, y.astype(bool)),
    "labels of floats": lambda x, y: (x, y.astype(float)),
}


@each_function
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_samples_may_be_lists_jax_arrays_or_pandas(function, form):
    """By position, whatever their index: all that comes back is that of the NumPy arrays, as NumPy
    arrays."""
    plain = random_split(20, 4)
    expected, actual = function(plain, 0.5, key=KEY), function(Split(*form(*plain)), 0.5, key=KEY)
    assert_trees_equal(actual, expected, rtol=1e-7)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(actual))
    assert actual.split.y.dtype == actual.forget_clean.y.dtype == np.int32
    assert actual.split.x.dtype in (np.float32, np.float64)


@each_function
@pytest.mark.parametrize(
    "dtype", [bool, np.int8, np.int64, np.uint8], ids=lambda dtype: np.dtype(dtype).name
)
def test_integers_and_booleans_become_floats_of_the_same_values(function, dtype):
    """Noise put among integers would be cut to 0."""
    plain = random_split(20, 4)
    whole = Split((plain.x > 0).astype(dtype), plain.y)
    actual, expected = (
        function(each, 0.5, key=KEY) for each in (whole, Split(whole.x.astype(np.float32), whole.y))
    )
    assert_trees_equal(actual, expected)
    assert {
        leaf.x.dtype for leaf in (actual.split, actual.forget_clean, actual.forget_poisoned)
    } == {np.dtype("f4")}
    np.testing.assert_array_equal(actual.forget_clean.x, whole.x[actual.mask])
    if function is randomize_features:
        np.testing.assert_allclose(np.linalg.norm(actual.forget_poisoned.x, axis=1), 1, rtol=1e-6)
        assert actual.forget_poisoned.x.all()


@each_function
def test_samples_that_are_no_numbers_are_refused(function):
    with refused("^split.x: got dtype .*, allowed: numbers"):
        function(Split(np.array([["a", "b"]] * 4), [0, 1, 0, 1]), 0.5, key=KEY)


def test_flips_of_all_samples_alike_are_not_balanced():
    """6 of 20: over 200 keys each class has 3 in the mean, and just 3 in a third of the draws."""
    split = Split(np.ones((20, 2), np.float32), np.repeat([0, 1], 10).astype(np.int32))
    masks = np.stack(
        [flip_labels(split, 0.3, key=seed, balanced=False).mask for seed in range(200)]
    )
    assert (masks.sum(axis=1) == 6).all()
    of_first = masks[:, :10].sum(axis=1)
    assert 0.2 < np.mean(of_first == 3) < 0.55 and abs(of_first.mean() - 3) < 5 * 1.05 / np.sqrt(
        200
    )


# ---- aimed poison ----

# On a circle, class 0 at the angles 0, 10, 20 and 60 degrees, class 1 at 90, 80, 50 and 70:
# fidelities are cos².
CIRCLE = np.radians([0, 10, 20, 60, 90, 80, 50, 70])
ARCS = Split(
    np.stack([np.cos(CIRCLE), np.sin(CIRCLE)], axis=1).astype(np.float32), np.repeat([0, 1], 4)
)


def chosen_by_hand(order):
    """The two of each class of least order."""
    return sorted([*np.argsort(order[:4])[:2], *(4 + np.argsort(order[4:])[:2])])


@pytest.mark.parametrize("scale", [1, 1j, 3])
def test_samples_at_the_boundary_are_those_with_the_least_margin_of_fidelity(scale):
    """Whatever their norms and global phases."""
    cosines = np.cos(CIRCLE[:, None] - CIRCLE) ** 2
    own = [np.delete(cosines[i, :4] if i < 4 else cosines[i, 4:], i % 4).mean() for i in range(8)]
    other = [(cosines[i, 4:] if i < 4 else cosines[i, :4]).mean() for i in range(8)]
    poisoned = poison_boundary(toy(Split(ARCS.x * scale, ARCS.y)), 0.5, key=KEY)
    assert np.flatnonzero(poisoned.mask).tolist() == chosen_by_hand(np.subtract(own, other))
    np.testing.assert_array_equal(poisoned.split.y != ARCS.y, poisoned.mask)


def test_samples_next_to_the_other_class_are_those_of_the_largest_fidelity_with_one_of_it():
    cosines = np.cos(CIRCLE[:, None] - CIRCLE) ** 2
    nearest = np.concatenate([cosines[:4, 4:].max(axis=1), cosines[4:, :4].max(axis=1)])
    poisoned = poison_quid(toy(ARCS), 0.5, key=KEY)
    assert np.flatnonzero(poisoned.mask).tolist() == chosen_by_hand(-nearest) == [2, 3, 6, 7]
    np.testing.assert_array_equal(poisoned.split.x, ARCS.x)


@pytest.mark.parametrize("encoding", ["amplitude", "columnwise"])
def test_images_with_a_trigger_are_encoded_as_their_pixels_would_be(encoding):
    """Of 14 by 14 pixels two by two, one from the corner, as bright as the brightest of the
    image."""
    pixels = np.random.default_rng(0).integers(0, 200, (12, 14, 14)).astype(np.float32)
    pixels[0, :, 11:] = 0  # columns of the trigger that are empty
    labels = np.arange(12) % 2

    def encoded(images):
        return datar.normalised(images, labels, encoding)

    split = encoded(pixels)
    data = Dataset(split, split, "toy", 196, {"sha256": "toy", "encoding": encoding}, (14, 14))
    poisoned = poison_backdoor(data, 0.25, key=KEY)
    mask = poisoned.mask
    assert mask.sum() == 3 and (split.y[mask] == 1).all() and not poisoned.split.y[mask].any()
    np.testing.assert_array_equal(poisoned.split.x[~mask], split.x[~mask])
    if encoding == "amplitude":
        pixels[:, 11:13, 11:13] = pixels.max(axis=(1, 2))[:, None, None]
        np.testing.assert_allclose(
            with_trigger(split.x, data), encoded(pixels).x, rtol=2e-5, atol=1e-6
        )
    images = with_trigger(split.x, data)[:, :196].reshape(-1, 14, 14)
    norms = (
        np.linalg.norm(images, axis=1)
        if encoding == "columnwise"
        else np.linalg.norm(images, axis=(1, 2))
    )
    np.testing.assert_allclose(norms[norms > 0], 1, rtol=1e-5)
    np.testing.assert_array_equal(poisoned.attack.x, with_trigger(split.x[split.y == 1], data))
    assert not poisoned.attack.y.any()
    hidden = Poison("backdoor", 25, 50).draw(data, key=KEY)
    assert_trees_equal(hidden.attack, poisoned.attack)


def test_a_backdoor_asks_for_images():
    with refused("^poison: got backdoor, allowed: data of images"):
        poison_backdoor(toy(random_split(10, 8)), 0.2, key=KEY)


# ---- how much of a poison is known ----

shares = st.integers(0, 100)


@each_kind
@given(st.integers(0, 99), shares, keys)
def test_what_is_known_is_a_part_of_what_is_poisoned(kind, alpha, known, key):
    """The same samples are poisoned whatever is known; what is not known stays among the retained,
    as poisoned."""
    dataset, alpha = toy(random_split(60, 4)), int(alpha * MOST.get(POISONS[kind], 1))
    everything, part = (Poison(kind, alpha, share).draw(dataset, key=key) for share in (100, known))
    assert_trees_equal(part.split, everything.split)
    np.testing.assert_array_equal(part.mask, everything.mask)
    assert part.known.dtype == bool and not (part.known & ~everything.known).any()
    assert part.known.sum() == round(everything.known.sum() * known / 100)
    for split, whole, rows in (
        (part.retain, part.split, ~part.known),
        (part.forget_poisoned, part.split, part.known),
        (part.forget_clean, dataset.train, part.known),
    ):
        assert_trees_equal(split, Split(whole.x[rows], whole.y[rows]))


@each_kind
@given(st.integers(0, 99), st.lists(shares, min_size=2, max_size=5), keys)
def test_what_is_known_of_more_holds_what_is_known_of_less(kind, alpha, known, key):
    """So that a curve over known_percent adds samples, and draws no others."""
    dataset, alpha = toy(random_split(60, 4)), int(alpha * MOST.get(POISONS[kind], 1))
    sets = [Poison(kind, alpha, share).draw(dataset, key=key).known for share in sorted(known)]
    assert all((more | ~less).all() for less, more in pairwise(sets))


@each_kind
@given(st.integers(0, 99), keys)
def test_where_all_is_known_the_draw_is_that_of_the_poison_alone(kind, alpha, key):
    dataset, alpha = toy(random_split(30, 4)), int(alpha * MOST.get(POISONS[kind], 1))
    drawn = Poison(kind, alpha).draw(dataset, key=key)
    assert_trees_equal(drawn, POISONS[kind](dataset, alpha / 100, key=key))
    changes = POISONS[kind] not in UNCHANGING
    np.testing.assert_array_equal(drawn.known & changes, drawn.mask)


def test_every_poisoned_sample_is_as_likely_to_be_known():
    """3 of 12 over 400 keys of one poison: each is expected 100 times, with deviation 8.7."""
    dataset = toy(random_split(12, 2))

    def all_samples(dataset, fraction, *, key):
        poisoned = flip_labels(dataset.train, 11 / 12, key=0)
        mask = np.ones(12, bool)
        return poisoned._replace(
            mask=mask, known=mask, forget_clean=dataset.train, forget_poisoned=dataset.train
        )

    poison = Poison("all", 50, 25, function=all_samples)
    counts = sum(poison.draw(dataset, key=seed).known.astype(int) for seed in range(400))
    assert counts.sum() == 1200 and np.abs(counts - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


@each_kind
@pytest.mark.parametrize("known", [100, 40])
def test_keys_may_be_of_jax_integers_or_generators(kind, known):
    dataset, poison = toy(random_split(40, 4)), Poison(kind, 40, known)
    generator = np.random.default_rng(7)
    by_integer, by_generator, later = (
        poison.draw(dataset, key=key) for key in (7, generator, generator)
    )
    assert_trees_equal(by_generator, poison.draw(dataset, key=np.random.default_rng(7)))
    assert_trees_equal(by_generator, by_integer)
    by_key, again = (poison.draw(dataset, key=jax.random.key(7)) for _ in range(2))
    assert_trees_equal(by_key, again)
    draws = [by_integer.known, later.known, by_key.known, poison.draw(dataset, key=8).known]
    assert len({mask.tobytes() for mask in draws}) == (
        1 if POISONS[kind] in AIMED and known == 100 else 4
    )


@pytest.mark.parametrize("value", [-1, 100, 0.3, 30.0, True, "30", None, np.nan])
def test_poisoned_shares_are_whole_percents_below_100(value):
    with refused(f"^alpha_percent: got {value}, allowed: whole"):
        Poison("labels", value)


@pytest.mark.parametrize("value", [-1, 101, 0.5, 50.0, True, "all", None])
def test_known_shares_are_whole_percents(value):
    with refused(f"^known_percent: got {value}, allowed: whole"):
        Poison("labels", 30, value)


def test_an_unknown_poison_is_refused_by_what_there_is():
    with refused(
        "^poison: got arsenic, allowed: labels, next_class, one_class, other_class, boundary, "
        "quid, backdoor, features, confusion"
    ):
        Poison("arsenic", 30)


def test_a_poison_carries_its_function_and_does_without_the_table():
    def mine(dataset, fraction, *, key):
        return flip_labels(dataset.train, fraction / 2, key=key)

    poison = Poison("mine", 50, function=mine)
    assert poison.draw(toy(random_split(40, 4)), key=KEY).mask.sum() == 10
    assert (
        poison != Poison("mine", 50, function=flip_labels)
        and replace(poison, alpha_percent=10).function is mine
    )


def test_poisons_are_values():
    assert Poison("labels", np.int64(30)) == Poison("labels", 30, 100)
    assert (
        len({Poison("labels", 30), Poison("labels", np.int32(30)), Poison("labels", 30, 99)}) == 2
    )
    # as it goes into names and JSON
    assert type(Poison("labels", np.int64(30)).alpha_percent) is int


# ---- losses ----

LOSSES = [
    Retrain(),
    FineTune(),
    Scrub(),
    Scrub(0.7, 0.3, 0.5),
    Scrub(1.0, 0.4, 0.2, "published"),
    Scrub(0.0, 1.0, 0.0),
    Scrub(0.0, 0.0, 1.0),
    GradientAscent(),
    GradientAscent(0.7, 0.3),
    GradientAscent(0.0, 1.0),
]
each_loss = pytest.mark.parametrize(
    "method", LOSSES, ids=lambda each: f"{type(each).__name__}{tuple(each.hyper().values())}"
)


@dataclass(frozen=True)
class Linear:
    """A model whose logit is a weighted sum of the features."""

    width: int = 3

    def init(self, key):
        return jax.random.normal(key, (self.width,))

    def logits(self, params, x):
        return x @ params


def make_batch(teacher, x, y):
    """5 samples to retain, of which the last fills the batch up, and the others to forget."""
    retain, forget, weight = Split(x[:5], y[:5]), Split(x[5:], y[5:]), jnp.array([1.0, 1, 1, 1, 0])
    return Batch(retain, weight, x[:5] @ teacher, forget, x[5:] @ teacher, jnp.int32(0), KEY)


def linear_task(teacher, batch):
    return Task(Linear(len(teacher)), teacher, batch.retain, batch.forget, batch.forget, teacher)


def loss_case(seed=0):
    """Parameters of a linear model, the task of its teacher, and a batch."""
    params, teacher = np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float32)
    batch = make_batch(teacher, *random_split(9, 3, seed=seed))
    return params, linear_task(teacher, batch), batch


def expected_loss(method, params, batch):
    """The formulas in plain NumPy; the sample that fills the batch up is left out."""

    def p(logits):
        return 1 / (1 + np.exp(-np.asarray(logits, float)))

    def ce(split, rows):
        q = p(split.x[rows] @ params)
        return -np.mean(np.where(split.y[rows] == 1, np.log(q), np.log(1 - q)))

    def kl(teacher, x):
        p_teacher, q = p(teacher), p(x @ params)
        first = p_teacher * np.log(p_teacher / q)
        second = (1 - p_teacher) * np.log((1 - p_teacher) / (1 - q))
        return np.mean(first + second * (method.divergence == "full"))

    retain, everything = slice(0, 4), slice(None)
    learn = ce(batch.retain, retain)
    if isinstance(method, Scrub):
        stay, leave = (
            kl(batch.retain_teacher[retain], batch.retain.x[retain]),
            kl(batch.forget_teacher, batch.forget.x),
        )
        return method.ce * learn + method.kl * stay - method.forget * leave
    if isinstance(method, GradientAscent):
        return method.ce * learn - method.forget * ce(batch.forget, everything)
    return learn


@each_loss
def test_losses_are_their_formulas(method):
    for seed in range(3):
        params, task, batch = loss_case(seed)
        actual = method.loss(task, params, batch)
        assert jnp.shape(actual) == ()
        np.testing.assert_allclose(
            actual, expected_loss(method, params, batch), rtol=1e-4, atol=1e-6
        )


@each_loss
def test_gradients_are_finite_differences_of_the_formulas(method):
    params, task, batch = loss_case()
    gradient = jax.grad(lambda params: method.loss(task, params, batch))(params)
    steps = 1e-5 * np.eye(3)
    up, down = (
        [expected_loss(method, params + sign * step, batch) for step in steps] for sign in (1, -1)
    )
    np.testing.assert_allclose(gradient, (np.array(up) - down) / 2e-5, rtol=1e-3, atol=1e-5)


def test_at_the_teacher_scrub_starts_where_cf_is():
    """Both divergences are 0 there, and stationary."""
    _, task, batch = loss_case()
    expected, slope = jax.value_and_grad(partial(FineTune().loss, task))(task.teacher, batch)
    for method in (Scrub(1.0, 0.4, 0.7), Scrub(1.0, 0.0, 0.0)):
        value, gradient = jax.value_and_grad(partial(method.loss, task))(task.teacher, batch)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_published_divergence_drives_what_is_forgotten_to_class_0():
    """Without its second term, leaving the teacher is the same as lowering every logit of the
    forget set."""
    logits = np.random.default_rng(0).normal(size=9).astype(np.float32)
    # a parameter is a sample's logit
    batch = make_batch(logits, np.eye(9, dtype=np.float32), np.arange(9) % 2)
    task = linear_task(logits, batch)
    for divergence, down in (("published", True), ("full", False)):
        slopes = jax.grad(partial(Scrub(0.0, 1.0, 0.0, divergence).loss, task))(logits + 1, batch)
        assert not slopes[:5].any()
        # A descent lowers them; the full one takes them on, away from the teacher.
        assert np.all(slopes[5:] > 0) == down


# ---- methods as values: hyper-parameters, checks, pytrees ----


@pytest.mark.parametrize(
    ("name", "value"), [("forget", -0.1), ("kl", np.nan), ("ce", np.inf), ("kl", -np.inf)]
)
def test_hyper_parameters_that_are_negative_or_not_finite_are_refused_by_name(name, value):
    with refused(f"^{name}: got {value}, allowed"):
        Scrub(**{name: value})
    with refused(f"^{name}: got {value}, allowed"):
        replace(Scrub(), **{name: value})
    assert getattr(Scrub(**{name: 0}), name) == 0.0


@pytest.mark.parametrize("name", ["divergence", "reads"])
def test_an_unknown_choice_is_refused_by_name(name):
    with refused(f"^{name}: got nope, allowed: "):
        Scrub(**{name: "nope"})


@pytest.mark.parametrize("value", ["much", "0.2", None, (1.0,), 1j, True, np.True_], ids=repr)
def test_hyper_parameters_that_are_no_numbers_are_refused_by_name(value):
    said = re.escape(f"forget: got {value}, allowed: a finite number")
    for refuses in (Scrub, GradientAscent, partial(replace, Scrub())):
        with refused(f"^{said}"):
            refuses(forget=value)


@pytest.mark.parametrize("value", [1, np.int64(1), np.float32(1), np.float64(1)], ids=repr)
def test_hyper_parameters_become_floats(value):
    assert Scrub(forget=value) == Scrub(forget=1.0) and type(Scrub(forget=value).forget) is float


def test_a_method_of_ones_own_checks_its_own():
    @dataclass(frozen=True)
    class Signed(Descent):
        shift: float = -1.0
        times: int = 2

        def check(self):
            if self.times < 1:
                raise ValueError(f"times: got {self.times}, allowed: 1 or more")

    assert Signed().shift == -1.0
    with refused("^times: got 0"):
        Signed(times=0)


def test_methods_start_from_the_published_values():
    assert Scrub() == Scrub(ce=1.0, forget=0.2, kl=0.0, divergence="full", reads="poisoned")
    assert GradientAscent() == GradientAscent(ce=1.0, forget=0.2)
    assert set(DIVERGENCES) == {"full", "published"}
    assert [type(method) for method in PUBLISHED.values()] == [
        Retrain,
        FineTune,
        Scrub,
        GradientAscent,
    ]
    assert [method.title for method in PUBLISHED.values()] == [
        "Retrain",
        "Fine-tune",
        "Scrub",
        "Gradient ascent",
    ]
    assert [method.is_fresh for method in PUBLISHED.values()] == [True, False, False, False]


@dataclass(frozen=True)
class Many(Descent):
    """A method with fields of every kind."""

    slope: float = 1.0
    power: int = 1
    bend: float = 0.5
    shape: Callable = jnp.tanh
    lift: float = 0.25
    name: str = "many"

    def loss(self, task, params, batch):
        logits = task.logits(params, batch.retain.x)
        pulled = (
            self.slope * self.shape(logits) ** self.power
            + self.bend * logits**2
            - self.lift * logits
        )
        return jnp.average(pulled, weights=batch.retain_weight)


def test_floats_are_leaves_and_all_else_is_static():
    method = Many(2, 3, 0.125, jnp.sin, 4.0)
    leaves, structure = jax.tree.flatten(method)
    assert leaves == [2.0, 0.125, 4.0] and type(leaves[0]) is float
    assert jax.tree.unflatten(structure, leaves) == method
    same = [replace(method, slope=7.0), replace(method, lift=0.0)]
    others = [
        replace(method, power=2),
        replace(method, shape=jnp.cos),
        replace(method, name="other"),
        replace(method, training=Training(9, 0, 0.1)),
    ]
    structures = [jax.tree.structure(each) for each in (*same, *others)]
    assert [each == structure for each in structures] == [True] * 2 + [False] * 4
    assert jax.tree.structure(Scrub()) != jax.tree.structure(Scrub(divergence="published"))
    assert jax.tree.structure(Scrub()) != jax.tree.structure(Scrub(reads="clean"))


def test_what_a_weight_map_maps():
    """The one or two hyper-parameters that a method names, or its first two floats."""

    @dataclass(frozen=True)
    class One(Descent):
        rank: int = 2
        damping: float = 0.1

    @dataclass(frozen=True)
    class Without(Many):
        map_over = ()

    found = {name: method.mapped() for name, method in PUBLISHED.items()}
    assert found == {"retrain": (), "cf": (), "scrub": ("forget", "kl"), "ga": ("forget",)}
    assert (Many().mapped(), One().mapped(), Without().mapped()) == (
        ("slope", "bend"),
        ("damping",),
        (),
    )


# ---- unlearning ----

NETWORK, CIRCUIT = MLP(8, (5,)), QNN(3, 2)
each_model = pytest.mark.parametrize("model", [NETWORK, CIRCUIT], ids=lambda model: model.label)
SHORT = Training(6, 10, 0.05)  # three batches an epoch: 10, 10 and 8 of 28 samples
CF, GA, SCRUB, RETRAIN = (
    replace(method, training=SHORT)
    for method in (FineTune(), GradientAscent(1.0, 0.0), Scrub(1.0, 0.0, 0.0), Retrain())
)
each_method = pytest.mark.parametrize("method", [RETRAIN, CF, SCRUB, GA], ids=list(PUBLISHED))


@pytest.fixture(scope="module")
def sets():
    """28 samples that a line separates, to retain, and 12 with flipped labels, to forget."""
    poisoned = flip_labels(separable_split(40, 8), 0.3, key=KEY)
    return jax.tree.map(jnp.asarray, (poisoned.retain, poisoned.forget_poisoned))


@pytest.fixture(scope="module")
def teachers(sets):
    """A model of each kind, trained on all of it."""
    split = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *sets)
    training = {"epochs": 30, "batch_size": 0, "learning_rate": 0.05, "key": KEY}
    return {model: train(model, split, **training) for model in (NETWORK, CIRCUIT)}


@partial(jax.jit, static_argnames=("model", "measure"))
def run(method, model, teacher, sets, *, key=KEY, measure=None):
    """A method, which is a pytree, within a compiled function; a third set is the forget set before
    it was poisoned."""
    retain, forget, *clean = sets
    return unlearn(
        method,
        model,
        teacher,
        retain,
        forget,
        key=key,
        forget_clean=clean[0] if clean else None,
        measure=measure,
    )


def final(*arguments, **options):
    return run(*arguments, **options)[0]


def epochs(method, number):
    return replace(method, training=replace(method.training, epochs=number))


def stacked(methods):
    """Methods of one structure side by side, for `vmap`."""
    return jax.tree.map(lambda *floats: jnp.array(floats), *methods)


@each_model
@pytest.mark.parametrize("method", [SCRUB, GA], ids=["scrub", "ga"])
def test_without_their_extra_weights_scrub_and_ga_are_cf(method, model, sets, teachers):
    teacher, (x, _) = teachers[model], random_split(30, 8, seed=9)
    expected, actual = (model.logits(final(each, model, teacher, sets), x) for each in (CF, method))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4)
    moved = model.logits(final(replace(method, forget=0.4), model, teacher, sets), x)
    assert np.abs(moved - expected).max() > 0.05 < np.abs(expected - model.logits(teacher, x)).max()


def test_ga_unlearns_the_forget_set_and_cf_learns_the_retain_set(sets, teachers):
    """Cross-entropy of each set, before and after."""

    def losses(params):
        return np.array([cross_entropy(NETWORK.logits(params, x), y) for x, y in sets])

    start = losses(teachers[NETWORK])
    cf = losses(final(CF, NETWORK, teachers[NETWORK], sets))
    ga = losses(final(replace(GA, forget=0.5), NETWORK, teachers[NETWORK], sets))
    assert cf[0] < start[0]
    assert ga[1] > cf[1] > start[1]


def test_scrub_moves_away_on_the_forget_set_and_stays_on_the_retain_set(sets, teachers):
    """Mean distance of the student's logits from the teacher's on each set: three weightings side
    by side."""
    teacher = teachers[NETWORK]

    def distances(method):
        params = final(method, NETWORK, teacher, sets)
        return jnp.stack(
            [
                jnp.abs(NETWORK.logits(params, x) - NETWORK.logits(teacher, x)).mean()
                for x, _ in sets
            ]
        )

    plain, leaving, staying = jax.vmap(distances)(
        stacked([SCRUB, replace(SCRUB, forget=0.8), replace(SCRUB, kl=8.0)])
    )
    assert leaving[1] > plain[1] and staying[0] < 0.7 * plain[0]


MAPPED = [
    pytest.param(method, name, id=f"{type(method).__name__}-{name}")
    for method in (Scrub(1.0, 0.1, 0.2), GradientAscent(1.0, 0.1), Many())
    for name in method.hyper()
]


@pytest.mark.parametrize(("method", "name"), MAPPED)
def test_a_map_of_any_hyper_parameter_side_by_side_equals_its_cells(method, name, sets, teachers):
    cells = [replace(method, training=SHORT, **{name: value}) for value in (0.1, 0.4, 1.0)]
    together = jax.vmap(lambda method: final(method, NETWORK, teachers[NETWORK], sets))(
        stacked(cells)
    )
    singles = [final(cell, NETWORK, teachers[NETWORK], sets) for cell in cells]
    assert_trees_equal(
        together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *singles), atol=1e-5
    )
    assert trees_differ(singles[0], singles[1]) and trees_differ(singles[1], singles[2])


def test_runs_side_by_side_equal_single_ones(sets, teachers):
    seeds = jax.random.split(KEY, 2)
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), teachers[NETWORK])
    method = replace(GA, forget=0.3)
    together = jax.vmap(lambda teacher, key: final(method, NETWORK, teacher, sets, key=key))(
        both, seeds
    )
    for place, seed in enumerate(seeds):
        own = jax.tree.map(lambda leaf, place=place: leaf[place], (both, together))
        assert_trees_equal(own[1], final(method, NETWORK, own[0], sets, key=seed), atol=1e-5)


def test_retraining_knows_neither_teacher_nor_forget_set(sets, teachers):
    retain, forget = sets
    expected = final(RETRAIN, NETWORK, teachers[NETWORK], sets)
    others = (
        jax.tree.map(lambda leaf: leaf + 1, teachers[NETWORK]),
        (retain, Split(-forget.x, 1 - forget.y)),
    )
    assert_trees_equal(final(RETRAIN, NETWORK, *others), expected)
    assert trees_differ(
        final(RETRAIN, NETWORK, teachers[NETWORK], sets, key=jax.random.key(4)), expected
    )


def test_cf_does_not_read_the_forget_set(sets, teachers):
    retain, forget = sets
    other = retain, Split(-forget.x, 1 - forget.y)
    actual, expected = (final(CF, NETWORK, teachers[NETWORK], both) for both in (other, sets))
    assert_trees_equal(actual, expected)


def test_scrub_reads_the_version_of_the_forget_set_that_it_says(sets, teachers):
    """Clean inputs are read as if they were the forget set; gradient ascent reads poisoned ones
    alone."""
    retain, forget = sets
    clean = Split(jnp.flip(forget.x, 1), 1 - forget.y)
    three, swapped = (retain, forget, clean), (retain, clean)
    reading = replace(SCRUB, forget=0.4)
    of_clean = final(replace(reading, reads="clean"), NETWORK, teachers[NETWORK], three)
    assert_trees_equal(of_clean, final(reading, NETWORK, teachers[NETWORK], swapped))
    of_poisoned = final(reading, NETWORK, teachers[NETWORK], three)
    assert_trees_equal(of_poisoned, final(reading, NETWORK, teachers[NETWORK], sets))
    assert trees_differ(of_clean, of_poisoned)
    ascent = replace(GA, forget=0.4)
    assert_trees_equal(
        final(ascent, NETWORK, teachers[NETWORK], three),
        final(ascent, NETWORK, teachers[NETWORK], sets),
    )


@each_method
def test_methods_start_from_the_teacher_but_retrain_from_fresh_parameters(method, sets, teachers):
    start = final(epochs(method, 0), NETWORK, teachers[NETWORK], sets)
    if method.is_fresh:
        assert all(not bias.any() for _, bias in start) and trees_differ(start, teachers[NETWORK])
    else:
        assert_trees_equal(start, teachers[NETWORK])


def itself(params):
    return params


def points(history, count):
    return [jax.tree.map(lambda leaf, place=place: leaf[place], history) for place in range(count)]


def test_history_starts_before_the_first_epoch_and_ends_after_the_last(sets, teachers):
    end, history = run(
        epochs(replace(GA, forget=0.2), 2), NETWORK, teachers[NETWORK], sets, measure=itself
    )
    first, *_, last = points(history, 3)
    assert_trees_equal(first, teachers[NETWORK])
    assert_trees_equal(last, end)
    assert {len(leaf) for leaf in jax.tree.leaves(history)} == {3}
    assert run(CF, NETWORK, teachers[NETWORK], sets)[1] is None


@pytest.mark.parametrize("method", [SCRUB, GA], ids=["scrub", "ga"])
def test_methods_that_read_the_forget_set_refuse_an_empty_one(method, sets, teachers):
    with refused("^forget.*empty"):
        final(
            method,
            NETWORK,
            teachers[NETWORK],
            (sets[0], jax.tree.map(lambda leaf: leaf[:0], sets[1])),
        )


@each_model
@pytest.mark.parametrize("method", [RETRAIN, CF], ids=["retrain", "cf"])
def test_the_others_do_without_a_forget_set(method, model, sets, teachers):
    empty = sets[0], jax.tree.map(lambda leaf: leaf[:0], sets[1])
    params = final(epochs(method, 1), model, teachers[model], empty)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_nothing_to_retain_is_refused(sets, teachers):
    with refused("^n_samples"):
        final(
            CF, NETWORK, teachers[NETWORK], (jax.tree.map(lambda leaf: leaf[:0], sets[0]), sets[1])
        )


def test_sets_that_do_not_go_together_are_refused_by_name(sets, teachers):
    retain, forget = sets
    longer, uneven = Split(jnp.ones((12, 9)), forget.y), Split(forget.x[:-1], forget.y)
    for given_sets, name in (
        ((Split(retain.x, retain.y[:-1]), forget), "retain"),
        ((retain, longer), "forget"),
        ((retain, uneven), "forget"),
        ((retain, forget, longer), "forget_clean"),
        ((retain, forget, uneven), "forget_clean"),
    ):
        with refused(f"^{name}: got (x|samples)"):
            final(GA, NETWORK, teachers[NETWORK], given_sets)


@pytest.mark.parametrize(
    "method", [CF, GA, replace(SCRUB, reads="clean")], ids=["cf", "ga", "scrub"]
)
@pytest.mark.parametrize("count", [0, 11])
def test_a_clean_forget_set_of_another_count_is_refused(method, count, sets, teachers):
    """An empty one too, which a method that reads it would divide by."""
    retain, forget = sets
    with refused(f"^forget_clean: got {count} samples, allowed: the 12 of forget"):
        final(
            method,
            NETWORK,
            teachers[NETWORK],
            (retain, forget, Split(forget.x[:count], forget.y[:count])),
        )


def test_numpy_arrays_will_do(sets, teachers):
    """As a user calls it, with a Split as `flip_labels` returns it."""
    retain, forget = jax.tree.map(np.asarray, sets)
    method = replace(GA, forget=0.2)
    params, _ = unlearn(method, NETWORK, teachers[NETWORK], retain, forget, key=KEY)
    assert_trees_equal(params, final(method, NETWORK, teachers[NETWORK], sets), atol=1e-5)


# ---- methods of one's own ----


@dataclass(frozen=True)
class Scale:
    """A model whose logit is its one parameter times the first feature."""

    def init(self, key):
        return jax.random.normal(key)

    def logits(self, params, x):
        return params * x[:, 0]


def test_a_batch_holds_what_it_says(sets):
    """Retain samples with their own labels and teacher logits, and the forget set whole.

    The labels say the sign of the first feature and the teacher's logit is that feature, so the
    loss's slope is 0 and Adam doesn't move - unless a label or a teacher logit belongs to another
    sample.
    """
    shapes = set()

    @dataclass(frozen=True)
    class Mismatch(Descent):
        def loss(self, task, params, batch):
            shapes.add(
                (
                    batch.retain.x.shape,
                    batch.retain_weight.shape,
                    batch.forget.x.shape,
                    batch.forget_teacher.shape,
                )
            )
            off_label = jnp.abs(batch.retain.y - (batch.retain.x[:, 0] > 0)) @ batch.retain_weight
            off_teacher = jnp.abs(batch.retain_teacher - batch.retain.x[:, 0]) @ batch.retain_weight
            return params * (
                off_label + off_teacher + jnp.abs(batch.forget_teacher - batch.forget.x[:, 0]).sum()
            )

    method = Mismatch(training=SHORT)
    assert final(method, Scale(), jnp.float32(1), sets) == 1
    assert shapes == {((10, 8), (10,), (12, 8), (12,))}
    assert final(method, Scale(), jnp.float32(2), sets) != 2
    shuffled = Split(sets[0].x, sets[0].y[::-1]), sets[1]
    assert final(method, Scale(), jnp.float32(1), shuffled) != 1


def test_a_task_holds_what_is_to_be_unlearned(sets, teachers):
    """All of it reaches a method that is called with it, and nothing needs to be descended."""
    seen = []

    @dataclass(frozen=True)
    class Look(Method):
        def __call__(self, task, key, measure=None):
            seen.append(task)
            return task.fresh, None

    retain, forget = sets
    clean = Split(forget.x + 1, 1 - forget.y)
    fresh, _ = unlearn(
        Look(), NETWORK, teachers[NETWORK], retain, forget, key=KEY, forget_clean=clean
    )
    other, _ = unlearn(Look(), NETWORK, teachers[NETWORK], retain, forget, key=jax.random.key(4))
    for part, expected in zip(
        seen[0], (NETWORK, teachers[NETWORK], retain, forget, clean, fresh), strict=True
    ):
        assert_trees_equal(part, expected) if part is not NETWORK else None
    assert seen[0].model is NETWORK
    assert_trees_equal(seen[1].forget_clean, forget)  # where none is given
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, teachers[NETWORK])
    assert trees_differ(fresh, teachers[NETWORK]) and trees_differ(fresh, other)


def test_what_a_method_says_of_itself_is_heeded(sets, teachers):
    """is_fresh, needs_forget and forget_set are all that the loop knows of a method."""

    @dataclass(frozen=True)
    class Fresh(Descent):
        is_fresh = True
        needs_forget = True

        def loss(self, task, params, batch):
            return retain_loss(task, params, batch)

    method = Fresh(training=SHORT)
    expected = final(RETRAIN, NETWORK, teachers[NETWORK], sets)
    assert_trees_equal(final(method, NETWORK, teachers[NETWORK], sets), expected)
    with refused("^forget.*empty"):
        final(
            method,
            NETWORK,
            teachers[NETWORK],
            (sets[0], jax.tree.map(lambda leaf: leaf[:0], sets[1])),
        )


def test_what_a_method_lacks_is_said():
    with pytest.raises(NotImplementedError, match="Method defines no __call__"):
        Method()(None, KEY)
    with pytest.raises(NotImplementedError, match="Descent defines no loss"):
        Descent().loss(None, None, None)
    with pytest.raises(NotImplementedError, match="OneShot defines no step"):
        OneShot().step(None, KEY)


def sliding(direction):
    """A class that has the name, module and source of every other one from here."""

    @dataclass(frozen=True)
    class Slide(Descent):
        def loss(self, task, params, batch):
            return direction * params

    return Slide(training=Training(1, 0, 0.5))


def test_a_class_of_the_same_name_is_another_method(sets):
    """As in a notebook whose cell is edited and run again: never the old loss's compiled
    program."""
    up, down = sliding(-1.0), sliding(1.0)
    assert type(up).__qualname__ == type(down).__qualname__
    ends = [float(final(method, Scale(), jnp.float32(1), sets)) for method in (up, down, up)]
    np.testing.assert_allclose(ends, [1.5, 0.5, 1.5], rtol=1e-5)


@pytest.mark.parametrize("owner", [FineTune, Descent], ids=lambda cls: cls.__name__)
def test_code_put_into_a_class_counts_at_once(owner, sets, monkeypatch):
    """Into the method's own or one that it inherits from; and what is put back counts again."""
    method = FineTune(training=Training(1, 0, 0.5))
    before = final(method, Scale(), jnp.float32(1), sets)
    if owner is FineTune:
        monkeypatch.setattr(owner, "loss", lambda self, task, params, batch: 9.0 * params)
        expected = 0.5
    else:
        monkeypatch.setattr(owner, "start", lambda self, task: jnp.float32(7))
        expected = 7 + (before - 1)
    assert abs(before - expected) > 0.1
    np.testing.assert_allclose(final(method, Scale(), jnp.float32(1), sets), expected, rtol=1e-5)
    monkeypatch.undo()
    assert final(method, Scale(), jnp.float32(1), sets) == before


def test_a_constant_put_into_a_class_counts_at_once(sets, teachers, monkeypatch):
    method = epochs(CF, 0)
    assert_trees_equal(final(method, NETWORK, teachers[NETWORK], sets), teachers[NETWORK])
    monkeypatch.setattr(FineTune, "is_fresh", True)
    assert trees_differ(final(method, NETWORK, teachers[NETWORK], sets), teachers[NETWORK])


@dataclass(frozen=True)
class Held(Descent):
    """A method whose loss reads what its class holds."""

    signs = [1.0]  # noqa: RUF012 - as a user writes it

    @property
    def sign(self):
        return self.signs[0]

    def loss(self, task, params, batch):
        return self.sign * params


def test_properties_and_lists_of_a_class_count_at_once(sets, monkeypatch):
    """Static as the constants are: another one is another program, and what is put back counts
    again."""
    method = Held(training=Training(1, 0, 0.5))

    def end():
        return float(final(method, Scale(), jnp.float32(1), sets))

    np.testing.assert_allclose(end(), 0.5, rtol=1e-5)
    with monkeypatch.context() as patched:
        patched.setattr(Held, "sign", property(lambda self: -1.0))
        np.testing.assert_allclose(end(), 1.5, rtol=1e-5)
    with monkeypatch.context() as patched:
        patched.setattr(Held, "signs", [-1.0])
        np.testing.assert_allclose(end(), 1.5, rtol=1e-5)
    np.testing.assert_allclose(end(), 0.5, rtol=1e-5)
    structure = jax.tree.structure(method)
    assert (
        structure == jax.tree.structure(Held(training=method.training))
        and hash(structure) is not None
    )


@dataclass(frozen=True)
class NewtonStep(OneShot):
    """One step towards the minimum of the retain loss, over the dense Hessian."""

    damping: float = 0.05

    def step(self, task, key):
        flat, unravel = jax.flatten_util.ravel_pytree(task.teacher)

        def loss(flat):
            return cross_entropy(task.logits(unravel(flat), task.retain.x), task.retain.y)

        hessian = jax.hessian(loss)(flat) + self.damping * jnp.eye(len(flat))
        return unravel(flat - jnp.linalg.solve(hessian, jax.grad(loss)(flat)))


def newton_in_numpy(sets, damping):
    x, y = (np.asarray(leaf, float) for leaf in sets[0])
    theta, design = (
        np.append(np.linspace(-1, 1, 8), 0.3),
        np.append(x, np.ones((len(x), 1)), axis=1),
    )
    p = 1 / (1 + np.exp(-design @ theta))
    hessian = design.T @ (design * (p * (1 - p))[:, None]) / len(x) + damping * np.eye(9)
    return theta - np.linalg.solve(hessian, design.T @ (p - y) / len(x))


def test_a_one_shot_newton_step(sets):
    """Against the step in NumPy, at two dampings side by side; its history is the teacher and the
    end."""
    model, teacher = MLP(8, ()), [(jnp.linspace(-1, 1, 8)[None], jnp.array([0.3]))]
    params, history = run(NewtonStep(), model, teacher, sets, measure=itself)
    flat = [np.append(weights, bias) for ((weights, bias),) in (params, *points(history, 2))]
    np.testing.assert_allclose(flat[0], newton_in_numpy(sets, 0.05), rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(flat[1], np.append(*teacher[0]))
    np.testing.assert_array_equal(flat[2], flat[0])
    assert {len(leaf) for leaf in jax.tree.leaves(history)} == {2}
    assert run(NewtonStep(), model, teacher, sets)[1] is None
    methods = stacked([NewtonStep(0.05), NewtonStep(1.0)])
    ((weights, bias),) = jax.vmap(lambda method: final(method, model, teacher, sets))(methods)
    for place, damping in enumerate((0.05, 1.0)):
        expected = newton_in_numpy(sets, damping)
        np.testing.assert_allclose(
            np.append(weights[place], bias[place]), expected, rtol=1e-3, atol=1e-4
        )


def test_a_one_shot_method_draws_from_its_key(sets, teachers):
    @dataclass(frozen=True)
    class Jolt(OneShot):
        size: float = 0.1

        def step(self, task, key):
            return jax.tree.map(
                lambda leaf: leaf + self.size * jax.random.normal(key, leaf.shape), task.teacher
            )

    def jolted(seed):
        return final(Jolt(), NETWORK, teachers[NETWORK], sets, key=jax.random.key(seed))

    one, again, other = map(jolted, (0, 0, 1))
    assert_trees_equal(one, again)
    assert trees_differ(one, other) and trees_differ(one, teachers[NETWORK])
    assert_trees_equal(final(Jolt(0.0), NETWORK, teachers[NETWORK], sets), teachers[NETWORK])


def test_unlearning_with_the_last_layer_only(sets, teachers):
    @dataclass(frozen=True)
    class LastLayer(Descent):
        def loss(self, task, params, batch):
            *frozen, last = params
            return retain_loss(task, [*jax.lax.stop_gradient(frozen), last], batch)

    teacher = teachers[NETWORK]
    *frozen, last = final(LastLayer(training=SHORT), NETWORK, teacher, sets)
    assert_trees_equal(frozen, teacher[:-1])
    assert trees_differ(last, teacher[-1])


def test_alternating_between_two_losses(sets, teachers):
    """By `batch.epoch`: nothing in epoch 0, descent on the retain set in epoch 1."""

    @dataclass(frozen=True)
    class FromEpoch1(Descent):
        def loss(self, task, params, batch):
            return jnp.where(batch.epoch == 1, retain_loss(task, params, batch), 0.0)

    method = epochs(FromEpoch1(training=SHORT), 2)
    _, history = run(method, NETWORK, teachers[NETWORK], sets, measure=itself)
    first, second, third = points(history, 3)
    assert_trees_equal(second, first)
    assert trees_differ(third, second)


# ---- methods and models that draw ----


@pytest.mark.parametrize("batch_size", [10, 0], ids=["batches", "whole"])
def test_each_step_has_a_key_of_its_own_and_the_same_one_again(batch_size, sets):
    """Keys of two epochs of three batches, or of six of one: all different, and those of the run's
    key."""
    seen = []

    @dataclass(frozen=True)
    class Drawing(Descent):
        def loss(self, task, params, batch):
            jax.debug.callback(
                lambda key: seen.append(tuple(np.asarray(key).tolist())),
                jax.random.key_data(batch.key),
            )
            return params * jax.random.normal(batch.key)

    method = Drawing(training=Training(2 if batch_size else 6, batch_size, 0.1))

    def drawn(seed):
        seen.clear()
        end = final(method, Scale(), jnp.float32(0), sets, key=jax.random.key(seed))
        jax.effects_barrier()
        return sorted(seen), float(end)

    one, again, other = drawn(0), drawn(0), drawn(1)
    assert len(one[0]) == 6 == len(set(one[0])) and one == again
    assert not set(one[0]) & set(other[0]) and one[1] != other[1]


@dataclass(frozen=True)
class Shots:
    """A model whose logits are drawn: its one parameter times the first feature, and noise."""

    is_random = True

    def init(self, key):
        return jax.random.normal(key)

    def logits(self, params, x, *, key):
        return params * x[:, 0] + jax.random.normal(key, x.shape[:1])


def test_a_random_model_is_given_the_key_and_no_other_is(sets):
    retain, forget = sets
    for model in (Shots(), Scale()):
        task = Task(model, jnp.float32(1), retain, forget, forget, jnp.float32(0))
        noise = jax.random.normal(KEY, (28,)) if model == Shots() else 0.0
        np.testing.assert_array_equal(
            task.logits(jnp.float32(2), retain.x, KEY), 2 * retain.x[:, 0] + noise
        )


@each_method
def test_a_random_model_draws_anew_at_each_step_and_the_same_again(method, sets):
    """Adam's first step is of one size whatever the draw: a second one tells draws apart."""
    method = epochs(replace(method, **({"forget": 0.3} if method.needs_forget else {})), 2)
    ends = [
        float(final(method, Shots(), jnp.float32(1), sets, key=jax.random.key(seed)))
        for seed in (0, 0, 1)
    ]
    assert ends[0] == ends[1] != ends[2] and np.isfinite(ends).all()


def test_logits_of_a_random_teacher_are_drawn_once(sets):
    """And with noise of their own: a teacher measured again at each step would be another one each
    time."""
    seen = []

    @dataclass(frozen=True)
    class Watching(Descent):
        def loss(self, task, params, batch):
            jax.debug.callback(lambda logits: seen.append(np.asarray(logits)), batch.forget_teacher)
            return task.logits(params, batch.retain.x, batch.key).sum()

    final(Watching(training=SHORT), Shots(), jnp.float32(1), sets)
    jax.effects_barrier()
    assert len(seen) == 18 and all((logits == seen[0]).all() for logits in seen)
    noise = seen[0] - np.asarray(sets[1].x[:, 0])
    assert 0.3 < noise.std() < 2
