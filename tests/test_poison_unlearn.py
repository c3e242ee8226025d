"""Poisons: counts, balance, partition. Methods: formulas, degenerate equivalences, and methods of one's own."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
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

from datar import Split
from metrics import cross_entropy
from models import MLP, QNN, train
from poison_unlearn import (
    DIVERGENCES,
    METHODS,
    POISONS,
    Batch,
    Method,
    Weights,
    check_weights,
    fine_tune_loss,
    flip_labels,
    gradient_ascent_loss,
    randomize_features,
    relabel_randomly,
    retain_loss,
    scrub_loss,
    unlearn,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(3)
each_poison = pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)

# ---- poisons ----


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
def test_as_many_features_become_noise_as_asked_half_from_each_class(fraction, per_class, key, is_complex, length):
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


@pytest.mark.parametrize(("fraction", "n", "count"), [(0.29, 100, 28), (0.3, 10, 2), (0.1, 10, 0), (0.5, 12, 6)])
def test_an_odd_number_of_flips_is_rounded_down(fraction, n, count):
    """0.29 of 100 is 29, not the 28.999999999999996 of floating point, and so 28; 3 of 10 become 2."""
    assert flip_labels(random_split(n, 2), fraction, key=KEY).mask.sum() == count


@pytest.mark.parametrize(("fraction", "n", "count"), [(0.29, 100, 30), (0.3, 10, 4), (0.1, 10, 2), (0.0, 10, 0)])
def test_an_odd_number_of_noisy_samples_is_rounded_up(fraction, n, count):
    assert randomize_features(random_split(n, 2), fraction, key=KEY).mask.sum() == count


@each_poison
@given(fractions, st.integers(2, 20), keys)
def test_what_is_retained_and_what_is_to_forget_are_all_of_the_data(poison, fraction, per_class, key):
    """Retained samples are untouched; forgotten ones come clean and poisoned, and only x or only y differs."""
    split = random_split(2 * per_class, 4)
    before = jax.tree.map(np.copy, split)
    poisoned = poison(split, fraction, key=key)
    assert_trees_equal(split, before)  # the caller's data are not written to
    mask = poisoned.mask
    assert mask.dtype == bool and mask.shape == (2 * per_class,)
    for part, whole, rows in (
        (poisoned.retain, split, ~mask),
        (poisoned.retain, poisoned.split, ~mask),
        (poisoned.forget_clean, split, mask),
        (poisoned.forget_poisoned, poisoned.split, mask),
    ):
        assert_trees_equal(part, Split(whole.x[rows], whole.y[rows]))
    same = "y" if poison is randomize_features else "x"
    clean, dirty = (getattr(forget, same) for forget in (poisoned.forget_clean, poisoned.forget_poisoned))
    np.testing.assert_array_equal(clean, dirty)
    assert [leaf.dtype for leaf in poisoned.split] == [leaf.dtype for leaf in split]


@each_poison
def test_a_key_gives_one_draw_and_another_key_another(poison):
    split = random_split(40, 4)
    first, again, other = (poison(split, 0.5, key=jax.random.key(seed)) for seed in (0, 0, 1))
    assert_trees_equal(first, again)
    assert (first.mask != other.mask).any()


def test_every_sample_is_as_likely_to_be_poisoned():
    """3 of each class of 10 over 400 keys: each sample is expected 120 times, with deviation 9.2."""
    split = random_split(20, 2)
    counts = sum(flip_labels(split, 0.3, key=jax.random.key(seed)).mask.astype(int) for seed in range(400))
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
    """Components have mean 0 and variance 1 / d (half of it in either part), and are uncorrelated."""
    noise = randomize_features(random_split(2000, 16, complex_states=is_complex), 0.99, key=KEY).forget_poisoned.x
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
        poison(random_split(10, 4), fraction, key=KEY)


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
    for poison, extra in ((flip_labels, {}), (randomize_features, {"n_features": mnist.n_features})):
        poisoned = poison(mnist.train, 0.3, key=KEY, **extra)
        assert np.bincount(mnist.train.y[poisoned.mask]).tolist() == [75, 75]
        assert poisoned.retain.x.shape == (350, 1024) and not poisoned.split.x[:, 784:].any()


# ---- losses ----

WEIGHTS = [Weights(), Weights(0.7, 0.3, 0.5), Weights(1.0, 0.4, 0.2, "published"), Weights(0.0, 1.0, 0.0)]
LOSSES = [retain_loss, fine_tune_loss, scrub_loss, gradient_ascent_loss]
each_weights = pytest.mark.parametrize("weights", WEIGHTS, ids=str)


def linear(params, x):
    return x @ params


def make_batch(teacher, x, y):
    """5 samples to retain, of which the last fills the batch up, and the others to forget."""
    retain, forget, weight = Split(x[:5], y[:5]), Split(x[5:], y[5:]), jnp.array([1.0, 1, 1, 1, 0])
    return Batch(retain, weight, linear(teacher, x[:5]), forget, linear(teacher, x[5:]), jnp.int32(0))


def loss_case(seed=0):
    """Parameters of a linear model, of its teacher, and a batch."""
    params, teacher = np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float32)
    return params, teacher, make_batch(teacher, *random_split(9, 3, seed=seed))


def expected_loss(loss, params, batch, weights):
    """The formulas of the table in plain NumPy; the sample that fills the batch up is left out."""

    def p(logits):
        return 1 / (1 + np.exp(-np.asarray(logits, float)))

    def ce(split, rows):
        q = p(linear(params, split.x[rows]))
        return -np.mean(np.where(split.y[rows] == 1, np.log(q), np.log(1 - q)))

    def kl(teacher, x):
        p_teacher, q = p(teacher), p(linear(params, x))
        first = p_teacher * np.log(p_teacher / q)
        second = (1 - p_teacher) * np.log((1 - p_teacher) / (1 - q))
        return np.mean(first + second * (weights.divergence == "full"))

    retain, everything = slice(0, 4), slice(None)
    learn = ce(batch.retain, retain)
    stay, leave = kl(batch.retain_teacher[retain], batch.retain.x[retain]), kl(batch.forget_teacher, batch.forget.x)
    return {
        retain_loss: learn,
        fine_tune_loss: weights.ce * learn,
        scrub_loss: weights.ce * learn + weights.kl * stay - weights.forget * leave,
        gradient_ascent_loss: weights.ce * learn - weights.forget * ce(batch.forget, everything),
    }[loss]


@each_weights
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_losses_are_the_formulas_of_the_table(loss, weights):
    for seed in range(3):
        params, _, batch = loss_case(seed)
        actual = loss(linear, params, batch, weights)
        assert jnp.shape(actual) == ()
        np.testing.assert_allclose(actual, expected_loss(loss, params, batch, weights), rtol=1e-4, atol=1e-6)


@each_weights
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_gradients_are_finite_differences_of_the_formulas(loss, weights):
    params, _, batch = loss_case()
    gradient = jax.grad(lambda params: loss(linear, params, batch, weights))(params)
    steps = 1e-5 * np.eye(3)
    up, down = ([expected_loss(loss, params + sign * step, batch, weights) for step in steps] for sign in (1, -1))
    np.testing.assert_allclose(gradient, (np.array(up) - down) / 2e-5, rtol=1e-3, atol=1e-5)


def test_at_the_teacher_scrub_starts_where_cf_is():
    """Both divergences are 0 there, and stationary."""
    _, teacher, batch = loss_case()
    for weights in (Weights(1.0, 0.4, 0.7), Weights(1.0, 0.0, 0.0)):
        value, gradient = jax.value_and_grad(scrub_loss, argnums=1)(linear, teacher, batch, weights)
        expected, slope = jax.value_and_grad(fine_tune_loss, argnums=1)(linear, teacher, batch, weights)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


def test_published_divergence_drives_what_is_forgotten_to_class_0():
    """Without its second term, leaving the teacher is the same as lowering every logit of the forget set."""
    logits = np.random.default_rng(0).normal(size=9).astype(np.float32)
    batch = make_batch(logits, np.eye(9, dtype=np.float32), np.arange(9) % 2)  # a parameter is a sample's logit
    for divergence, down in (("published", True), ("full", False)):
        slopes = jax.grad(scrub_loss, argnums=1)(linear, logits + 1, batch, Weights(0.0, 1.0, 0.0, divergence))
        assert not slopes[:5].any()
        assert (
            np.all(slopes[5:] > 0) == down
        )  # a descent lowers them; the full one takes them on, away from the teacher


@pytest.mark.parametrize(("name", "value"), [("forget", -0.1), ("kl", np.nan), ("ce", np.inf), ("kl", -np.inf)])
def test_weights_that_are_negative_or_not_finite_are_refused_by_name(name, value):
    with refused(f"^{name}.*{value}"):
        check_weights(**{"ce": 1.0, "forget": 0.2, "kl": 0.0, name: value})
    check_weights(ce=1.0, forget=0.0, kl=2)


def test_weights_start_from_the_published_values():
    assert Weights() == Weights(ce=1.0, forget=0.2, kl=0.0, divergence="full")
    assert set(DIVERGENCES) == {"full", "published"}
    assert jax.tree.leaves(Weights(1.0, 2.0, 3.0)) == [1.0, 2.0, 3.0]  # the divergence is no array


# ---- unlearning ----

NETWORK, CIRCUIT = MLP(8, (5,)), QNN(3, 2)
each_model = pytest.mark.parametrize("model", [NETWORK, CIRCUIT], ids=lambda model: model.label)
only_cf = Weights(1.0, 0.0, 0.0)


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


@partial(jax.jit, static_argnames=("method", "model", "epochs", "measure"))
def run(method, model, teacher, sets, weights=only_cf, *, epochs=6, key=KEY, measure=None):
    """A method for a few epochs of three batches (10, 10 and 8 of 28 samples)."""
    return unlearn(
        method, model, teacher, *sets,
        weights=weights, epochs=epochs, batch_size=10, learning_rate=0.05, key=key, measure=measure,
    )  # fmt: skip


def final(name, *arguments, **options):
    return run(METHODS[name], *arguments, **options)[0]


@each_model
@pytest.mark.parametrize("name", ["scrub", "ga"])
def test_without_their_extra_weights_scrub_and_ga_are_cf(name, model, sets, teachers):
    teacher, (x, _) = teachers[model], random_split(30, 8, seed=9)
    expected, actual = (model.logits(final(n, model, teacher, sets), x) for n in ("cf", name))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-4)
    moved = model.logits(final(name, model, teacher, sets, Weights(1.0, 0.4, 0.3)), x)
    assert np.abs(moved - expected).max() > 0.05 < np.abs(expected - model.logits(teacher, x)).max()


def test_ga_unlearns_the_forget_set_and_cf_learns_the_retain_set(sets, teachers):
    """Cross-entropy of each set, before and after."""

    def losses(params):
        return np.array([cross_entropy(NETWORK.logits(params, x), y) for x, y in sets])

    start = losses(teachers[NETWORK])
    cf = losses(final("cf", NETWORK, teachers[NETWORK], sets))
    ga = losses(final("ga", NETWORK, teachers[NETWORK], sets, Weights(1.0, 0.5, 0.0)))
    assert cf[0] < start[0]
    assert ga[1] > cf[1] > start[1]


def test_scrub_moves_away_on_the_forget_set_and_stays_on_the_retain_set(sets, teachers):
    """Mean distance of the student's logits from the teacher's on each set: three weightings side by side."""
    teacher = teachers[NETWORK]

    def distances(weights):
        params = final("scrub", NETWORK, teacher, sets, weights)
        return jnp.stack([jnp.abs(NETWORK.logits(params, x) - NETWORK.logits(teacher, x)).mean() for x, _ in sets])

    weights = Weights(jnp.ones(3), jnp.array([0.0, 0.8, 0.0]), jnp.array([0.0, 0.0, 8.0]))
    plain, leaving, staying = jax.vmap(distances)(weights)
    assert leaving[1] > plain[1] and staying[0] < 0.7 * plain[0]


def test_a_weight_map_side_by_side_equals_its_cells(sets, teachers):
    forget = jnp.array([0.0, 0.3])
    together = jax.vmap(lambda f: final("ga", NETWORK, teachers[NETWORK], sets, Weights(1.0, f, 0.0)))(forget)
    for cell, weight in enumerate(forget):
        single = final("ga", NETWORK, teachers[NETWORK], sets, Weights(1.0, weight, 0.0))
        assert_trees_equal(jax.tree.map(lambda leaf, cell=cell: leaf[cell], together), single, atol=1e-5)


def test_retraining_knows_neither_teacher_nor_forget_set(sets, teachers):
    retain, forget = sets
    expected = final("retrain", NETWORK, teachers[NETWORK], sets)
    others = jax.tree.map(lambda leaf: leaf + 1, teachers[NETWORK]), (retain, Split(-forget.x, 1 - forget.y))
    assert_trees_equal(final("retrain", NETWORK, *others), expected)
    assert trees_differ(final("retrain", NETWORK, teachers[NETWORK], sets, key=jax.random.key(4)), expected)


def test_cf_does_not_read_the_forget_set(sets, teachers):
    retain, forget = sets
    other = retain, Split(-forget.x, 1 - forget.y)
    actual, expected = (final("cf", NETWORK, teachers[NETWORK], both) for both in (other, sets))
    assert_trees_equal(actual, expected)


@pytest.mark.parametrize("name", METHODS)
def test_methods_start_from_the_teacher_but_retrain_from_fresh_parameters(name, sets, teachers):
    start = final(name, NETWORK, teachers[NETWORK], sets, epochs=0)
    if name == "retrain":
        assert all(not bias.any() for _, bias in start)
    else:
        assert_trees_equal(start, teachers[NETWORK])


def itself(params):
    return params


def test_history_starts_before_the_first_epoch_and_ends_after_the_last(sets, teachers):
    end, history = run(METHODS["ga"], NETWORK, teachers[NETWORK], sets, epochs=2, measure=itself)
    first, *_, last = (jax.tree.map(lambda leaf, point=point: leaf[point], history) for point in range(3))
    assert_trees_equal(first, teachers[NETWORK])
    assert_trees_equal(last, end)
    assert {len(leaf) for leaf in jax.tree.leaves(history)} == {3}


@pytest.mark.parametrize("name", ["scrub", "ga"])
def test_methods_that_read_the_forget_set_refuse_an_empty_one(name, sets, teachers):
    with refused("^forget.*empty"):
        final(name, NETWORK, teachers[NETWORK], (sets[0], jax.tree.map(lambda leaf: leaf[:0], sets[1])))


@each_model
@pytest.mark.parametrize("name", ["retrain", "cf"])
def test_the_others_do_without_a_forget_set(name, model, sets, teachers):
    empty = sets[0], jax.tree.map(lambda leaf: leaf[:0], sets[1])
    params = final(name, model, teachers[model], empty, epochs=1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_nothing_to_retain_is_refused(sets, teachers):
    with refused("^n_samples"):
        final("cf", NETWORK, teachers[NETWORK], (jax.tree.map(lambda leaf: leaf[:0], sets[0]), sets[1]))


def test_numpy_arrays_will_do(sets, teachers):
    """As a user calls it, with a Split as `flip_labels` returns it."""
    retain, forget = jax.tree.map(np.asarray, sets)
    settings = {"weights": only_cf, "epochs": 6, "batch_size": 10, "learning_rate": 0.05, "key": KEY}
    params, _ = unlearn(METHODS["ga"], NETWORK, teachers[NETWORK], retain, forget, **settings)
    assert_trees_equal(params, final("ga", NETWORK, teachers[NETWORK], sets), atol=1e-5)


# ---- methods of one's own ----


@dataclasses.dataclass(frozen=True)
class Scale:
    """A model whose logit is its one parameter times the first feature."""

    def logits(self, params, x):
        return params * x[:, 0]


def test_a_batch_holds_what_it_says(sets):
    """Retain samples with their own labels and teacher logits, and the forget set whole.

    The labels say the sign of the first feature and the teacher's logit is that feature, so the loss's slope
    is 0 and Adam doesn't move - unless a label or a teacher logit belongs to another sample.
    """
    shapes = set()

    def mismatch(logits_fn, params, batch, weights):
        shapes.add((batch.retain.x.shape, batch.retain_weight.shape, batch.forget.x.shape, batch.forget_teacher.shape))
        off_label = jnp.abs(batch.retain.y - (batch.retain.x[:, 0] > 0)) @ batch.retain_weight
        off_teacher = jnp.abs(batch.retain_teacher - batch.retain.x[:, 0]) @ batch.retain_weight
        return params * (off_label + off_teacher + jnp.abs(batch.forget_teacher - batch.forget.x[:, 0]).sum())

    assert run(Method(mismatch), Scale(), jnp.float32(1), sets)[0] == 1
    assert shapes == {((10, 8), (10,), (12, 8), (12,))}
    assert run(Method(mismatch), Scale(), jnp.float32(2), sets)[0] != 2
    shuffled = Split(sets[0].x, sets[0].y[::-1]), sets[1]
    assert run(Method(mismatch), Scale(), jnp.float32(1), shuffled)[0] != 1


def test_a_one_shot_newton_step(sets):
    """All of its work in `start`; a loss that is constant leaves it alone. Against the step in NumPy."""
    damping, model = 0.05, MLP(8, ())

    def newton_step(model, teacher, data, key):
        flat, unravel = jax.flatten_util.ravel_pytree(teacher)

        def loss(flat):
            return cross_entropy(model.logits(unravel(flat), data.retain.x), data.retain.y)

        hessian = jax.hessian(loss)(flat) + damping * jnp.eye(len(flat))
        return unravel(flat - jnp.linalg.solve(hessian, jax.grad(loss)(flat)))

    method = Method(lambda logits_fn, params, batch, weights: 0.0, newton_step)
    teacher = [(jnp.linspace(-1, 1, 8)[None], jnp.array([0.3]))]
    ((weights, bias),), history = run(method, model, teacher, sets, measure=itself)

    x, y = (np.asarray(leaf, float) for leaf in sets[0])
    theta, design = np.append(np.linspace(-1, 1, 8), 0.3), np.append(x, np.ones((len(x), 1)), axis=1)
    p = 1 / (1 + np.exp(-design @ theta))
    hessian = design.T @ (design * (p * (1 - p))[:, None]) / len(x) + damping * np.eye(9)
    expected = theta - np.linalg.solve(hessian, design.T @ (p - y) / len(x))
    np.testing.assert_allclose(np.append(weights, bias), expected, rtol=1e-3, atol=1e-4)
    assert all((leaf == leaf[0]).all() for leaf in jax.tree.leaves(history))


def test_unlearning_with_the_last_layer_only(sets, teachers):
    def last_layer_loss(logits_fn, params, batch, weights):
        *frozen, last = params
        return retain_loss(logits_fn, [*jax.lax.stop_gradient(frozen), last], batch, weights)

    teacher = teachers[NETWORK]
    (*frozen, last), _ = run(Method(last_layer_loss), NETWORK, teacher, sets)
    assert_trees_equal(frozen, teacher[:-1])
    assert trees_differ(last, teacher[-1])


def test_alternating_between_two_losses(sets, teachers):
    """By `batch.epoch`: nothing in epoch 0, descent on the retain set in epoch 1."""

    def from_epoch_1(logits_fn, params, batch, weights):
        return jnp.where(batch.epoch == 1, retain_loss(logits_fn, params, batch, weights), 0.0)

    _, history = run(Method(from_epoch_1), NETWORK, teachers[NETWORK], sets, epochs=2, measure=itself)
    points = [jax.tree.map(lambda leaf, point=point: leaf[point], history) for point in range(3)]
    assert_trees_equal(points[1], points[0])
    assert trees_differ(points[2], points[1])


def test_an_unknown_divergence_is_refused():
    with refused("divergence"):
        Weights(divergence="nope")
