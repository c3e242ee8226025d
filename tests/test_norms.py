"""Norms hold for every size that a type can hold."""

import numpy as np
import pytest
from conftest import random_split
from hypothesis import given
from hypothesis import strategies as st

from datar import Dataset, Split
from foundation.measures.norms import near_1, norms
from poison_unlearn import POISONS, with_trigger

SCALES = st.integers(-120, 120).map(lambda exponent: 2.0**exponent)


@given(SCALES, st.booleans(), st.sampled_from([1, (1, 2)]))
def test_norms_are_those_of_exact_numbers(scale, is_complex, axes):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(3, 4, 5)) + 1j * is_complex * generator.normal(size=(3, 4, 5))
    x = (x if is_complex else x.real).astype(np.complex64 if is_complex else np.float32)
    x[0, :, 1] = 0
    exact = np.linalg.norm(x.astype(np.complex256 if is_complex else np.float128), axis=axes)
    scaled = (x * x.real.dtype.type(scale)).astype(x.dtype)  # a power of two rounds nothing
    found = norms(scaled, axes)
    expected = np.expand_dims(exact, axes) * np.float128(scale)
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-6, atol=0)


def test_ordinary_numbers_are_left_as_they_are():
    x = np.array([[0.5, -900.0], [0.0, 0.0]], np.float32)
    same, exponents = near_1(x, 1)
    assert same is x and exponents is None and norms(x, 1).dtype == np.float32


def data_at(scale: float) -> Dataset:
    """Images of 7 x 7 pixels, all multiplied by one power of two."""
    x, y = random_split(24, 49)
    split = Split((np.abs(x) * np.float32(scale)).astype(np.float32), y)
    return Dataset(split, split, "toy", 49, {}, image_shape=(7, 7))


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-43, 2.0**60])
@pytest.mark.parametrize("kind", ["boundary", "quid", "backdoor"])
def test_a_poison_does_not_depend_on_the_scale_of_the_samples(kind, scale):
    """Samples in SI units of 1e-13 or 1e-30 are chosen and patched as those of norm 1."""
    expected = POISONS[kind](data_at(1.0), 0.25, key=3)
    found = POISONS[kind](data_at(scale), 0.25, key=3)
    np.testing.assert_array_equal(found.mask, expected.mask)
    ratio = np.float32(scale)
    np.testing.assert_allclose(found.split.x / ratio, expected.split.x, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**-43, 1.0, 2.0**60])
def test_the_trigger_keeps_every_norm(scale):
    data = data_at(scale)
    before = np.linalg.norm(data.train.x.astype(np.float64), axis=1)
    after = np.linalg.norm(with_trigger(data.train.x, data).astype(np.float64), axis=1)
    np.testing.assert_allclose(after, before, rtol=1e-5)
