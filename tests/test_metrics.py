"""Metrics against scikit-learn, SciPy and brute force."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.metrics import log_loss

from foundation.measures import metrics
from foundation.measures.metrics import (
    accuracy,
    bernoulli_kl,
    bernoulli_kl_published,
    bootstrap_interval,
    cross_entropy,
    ratio_interval,
)

logits = hnp.arrays(np.float32, 12, elements=st.floats(-12, 12, width=32))
labels = hnp.arrays(np.int32, 12, elements=st.integers(0, 1))
curves = hnp.arrays(float, st.integers(1, 12), elements=st.floats(0, 1))


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, float)))


# ---- of logits and labels ----


@given(logits, labels, hnp.arrays(np.float32, 12, elements=st.sampled_from([0.0, 0.5, 1.0, 2.0])))
def test_cross_entropy_is_scikit_learns_log_loss(z, y, weight):
    weight[0] = 1
    np.testing.assert_allclose(
        cross_entropy(z, y), log_loss(y, sigmoid(z), labels=[0, 1]), rtol=1e-5, atol=1e-6
    )
    weighted = log_loss(y, sigmoid(z), labels=[0, 1], sample_weight=weight)
    np.testing.assert_allclose(cross_entropy(z, y, weight), weighted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("logit", "label", "expected"), [(1e4, 1, 0), (-1e4, 0, 0), (1e4, 0, 1e4), (-1e4, 1, 1e4)]
)
def test_cross_entropy_is_neither_clipped_nor_infinite(logit, label, expected):
    value, gradient = jax.value_and_grad(lambda z: cross_entropy(z[None], jnp.array([label])))(
        jnp.float32(logit)
    )
    assert value == expected
    assert gradient == (expected > 0) * np.sign(logit)


@given(logits, labels)
def test_accuracy_counts(z, y):
    assert accuracy(z, y) == pytest.approx(
        np.mean([(logit > 0) == label for logit, label in zip(z, y, strict=True)])
    )


def test_a_logit_of_zero_is_class_0():
    np.testing.assert_allclose(accuracy(jnp.zeros(4), jnp.array([0, 0, 0, 1])), 0.75)


@given(logits, logits)
def test_kl_is_scipys_entropy(teacher, student):
    p, q = (np.stack([sigmoid(z), sigmoid(-z)]) for z in (teacher, student))
    actual = bernoulli_kl(teacher, student)
    np.testing.assert_allclose(actual, stats.entropy(p, q), rtol=1e-3, atol=3e-6)
    assert np.all(np.asarray(actual) >= -3e-6)
    np.testing.assert_allclose(
        bernoulli_kl_published(teacher, student), p[0] * np.log(p[0] / q[0]), rtol=1e-3, atol=3e-6
    )


@given(logits)
def test_kl_is_zero_where_equal_and_only_there(z):
    np.testing.assert_array_equal(bernoulli_kl(z, z), 0)
    moved = np.clip(z, -4, 4)
    assert np.all(np.asarray(bernoulli_kl(moved, moved + 0.5)) > 1e-4)


def test_published_kl_is_no_divergence():
    """p log(p/q) alone: negative where q > p, and lower the nearer q is to 1, whatever p is."""
    student = jnp.array([-1.0, 0.0, 1.0, 5.0])
    values = bernoulli_kl_published(jnp.zeros(4), student)
    np.testing.assert_allclose(values, 0.5 * np.log(0.5 / sigmoid(student)), rtol=1e-5, atol=1e-7)
    assert np.all(np.diff(values) < 0) and values[-1] < 0 < values[0]


@pytest.mark.parametrize("divergence", [bernoulli_kl, bernoulli_kl_published])
def test_kl_and_its_gradient_stay_finite(divergence):
    for teacher, student in itertools.product((-1e4, 0.0, 1e4), repeat=2):
        value, slope = jax.value_and_grad(lambda z, t=teacher: divergence(jnp.float32(t), z))(
            jnp.float32(student)
        )
        assert np.isfinite(value) and np.isfinite(slope)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labelled", [np.int32, np.float32, np.float64, bool])
def test_the_precision_is_that_of_the_logits(dtype, labelled):
    """In 64-bit mode too: whole labels make no double of a single, and no single of a double."""
    with jax.enable_x64(True):
        z, y = np.linspace(-3, 3, 5).astype(dtype), np.array([0, 1, 0, 1, 1]).astype(labelled)
        weight = np.arange(5, dtype=np.float64)
        values = [
            cross_entropy(z, y),
            cross_entropy(z, y, weight),
            cross_entropy(z, 0.5),
            accuracy(z, y),
            *bernoulli_kl(z, 2 * z),
            *bernoulli_kl_published(z, 2 * z),
        ]
        assert {value.dtype for value in values} == {np.dtype(dtype)}
        assert abs(values[0] - log_loss(y, sigmoid(z))) < (1e-15 if dtype == np.float64 else 1e-6)


# ---- over runs ----


@pytest.mark.parametrize(("n", "lowest", "highest"), [(5, 0.78, 0.88), (40, 0.90, 0.98)])
def test_bootstrap_interval_covers_the_mean_as_often_as_documented(n, lowest, highest):
    """95 % for many runs, about 83 % for five; n = 400 draws, standard error 0.011 to 0.019."""
    samples = np.random.default_rng(0).normal(3, 2, (400, n))
    bounds = np.array(
        [bootstrap_interval(sample, seed=seed) for seed, sample in enumerate(samples)]
    )
    covered = np.mean((bounds[:, 0] <= 3) & (bounds[:, 1] >= 3))
    assert lowest <= covered <= highest


def test_bootstrap_interval_narrows_with_the_level_and_depends_on_its_seed_alone():
    values = np.random.default_rng(1).normal(size=10)
    low, high = bootstrap_interval(values)
    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values)
    narrow = bootstrap_interval(values, level=0.5)
    assert low < narrow[0] < narrow[1] < high
    assert bootstrap_interval(values, np.median) != (low, high)


@pytest.mark.parametrize("values", [[0.25, 0.25], [0.25] * 5])
def test_equal_values_have_an_interval_of_no_width(values):
    assert bootstrap_interval(np.array(values)) == (0.25, 0.25)


@pytest.mark.parametrize("values", [[], [0.25], [0.25, np.nan]])
def test_fewer_than_two_values_have_no_interval(values):
    assert np.isnan(bootstrap_interval(np.array(values))).all()


def test_spread_is_the_sample_deviation_within_its_interval():
    values = np.array([0.90, 0.92, 0.97, 0.93, 0.88])
    deviation, low, high = metrics.spread(values)
    assert deviation == pytest.approx(np.sqrt(np.sum((values - values.mean()) ** 2) / 4))
    assert 0 <= low < deviation < high
    assert metrics.spread(np.full(5, 0.5)) == (0, 0, 0)
    assert np.isnan(metrics.spread(np.array([0.5]))).all()


@given(curves)
def test_largest_drop_is_that_of_all_pairs(curve):
    pairs = itertools.combinations_with_replacement(range(len(curve)), 2)
    assert metrics.largest_drop(curve) == max(curve[i] - curve[j] for i, j in pairs)
    assert metrics.largest_drop(np.sort(curve)) == 0


def test_largest_drop_is_taken_along_the_last_axis():
    batch = np.random.default_rng(2).random((2, 3, 7))
    expected = [[metrics.largest_drop(curve) for curve in rows] for rows in batch]
    np.testing.assert_array_equal(metrics.largest_drop(batch), expected)


@given(
    hnp.arrays(float, (3, 4), elements=st.one_of(st.just(np.nan), st.floats(0, 1))), st.floats(0, 1)
)
def test_share_near_counts_the_cells_that_were_tried(cells, reference):
    tried = [cell for cell in cells.flat if not np.isnan(cell)]
    share = metrics.share_near(cells, reference)
    if tried:
        assert share == pytest.approx(
            sum(abs(cell - reference) <= 0.05 for cell in tried) / len(tried)
        )
    else:
        assert np.isnan(share)
    assert not tried or metrics.share_near(cells, reference, tolerance=2) == 1


def test_cells_that_diverged_are_not_near():
    cells, diverged = np.array([0.9, np.nan, np.nan, np.nan]), np.array([False, True, True, False])
    assert metrics.share_near(cells, 0.9, diverged=diverged) == pytest.approx(1 / 3)
    assert metrics.share_near(np.full(2, np.nan), 0.9, diverged=np.ones(2, bool)) == 0


def test_ratio_interval():
    generator = np.random.default_rng(0)
    clean, noisy = generator.lognormal(0, 0.5, 40), generator.lognormal(1, 0.5, 40)
    ratio, low, high = ratio_interval(noisy, clean)
    assert ratio == np.median(noisy) / np.median(clean)
    assert low < np.e < high
    np.testing.assert_allclose(ratio_interval(10 * noisy, clean), np.array([ratio, low, high]) * 10)
    assert ratio_interval([2, 2, 2], [1, 1, 1]) == (2, 2, 2)
    assert ratio_interval([1, 3], [2, 4], np.mean)[0] == 2 / 3
    assert ratio_interval(clean, clean) == (1, 1, 1)
    left_out = ratio_interval([2.0, np.nan, 5.0], [1.0, 3.0, np.nan])
    assert left_out[0] == 2 and np.isnan(left_out[1:]).all()


def test_the_ratio_of_runs_that_go_together_is_sharper():
    """Both values of a run are resampled at once: what they have in common cancels."""
    generator = np.random.default_rng(0)
    clean = generator.lognormal(0, 1, 20)
    noisy = 3 * clean * generator.lognormal(0, 0.05, 20)
    _, low, high = ratio_interval(noisy, clean)
    _, loose_low, loose_high = ratio_interval(generator.permutation(noisy), clean)
    assert 2 < low < 3 < high < 4 and high - low < (loose_high - loose_low) / 2


# ---- pairs of runs ----


def test_what_a_draw_does_to_both_cancels():
    """Twenty draws that move accuracies by .1, of which one method keeps .02 more: only the pairs
    show it."""
    generator = np.random.default_rng(0)
    draws = generator.normal(0.7, 0.1, 20)
    left, right = (
        draws + 0.02 + generator.normal(0, 0.005, 20),
        draws + generator.normal(0, 0.005, 20),
    )
    low, high = bootstrap_interval(left - right)
    assert 0.01 < low < 0.02 < high < 0.03
    overlap = bootstrap_interval(left)[0] < bootstrap_interval(right)[1]
    assert overlap


@pytest.mark.parametrize(("n", "lowest", "highest"), [(5, 0.78, 0.88), (20, 0.88, 0.97)])
def test_the_interval_of_differences_covers_as_often_as_that_of_one_mean(n, lowest, highest):
    """n = 400 draws, standard error 0.011 to 0.019."""
    generator = np.random.default_rng(1)
    common, left, right = generator.normal(0, [[[5]], [[1]], [[1]]], (3, 400, n))
    differences = (common + left + 1) - (common + right)
    bounds = np.array(
        [bootstrap_interval(values, seed=seed) for seed, values in enumerate(differences)]
    )
    assert lowest <= np.mean((bounds[:, 0] <= 1) & (bounds[:, 1] >= 1)) <= highest


def test_intervals_are_scipys():
    """The same draws and the same percentiles as scipy.stats.bootstrap."""
    generator = np.random.default_rng(2)
    left, right = generator.lognormal(size=(2, 9))
    options = {"n_resamples": metrics.RESAMPLES, "method": "percentile", "rng": 0}
    for statistic in (np.mean, np.median):
        expected = stats.bootstrap((left,), statistic, **options).confidence_interval
        assert bootstrap_interval(left, statistic) == pytest.approx(tuple(expected), rel=1e-12)
    ratio = lambda a, b, axis: np.median(a, axis=axis) / np.median(b, axis=axis)  # noqa: E731
    expected = stats.bootstrap(
        (left, right), ratio, paired=True, vectorized=True, **options
    ).confidence_interval
    assert ratio_interval(left, right)[1:] == pytest.approx(tuple(expected), rel=1e-12)
