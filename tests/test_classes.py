"""More than two classes: losses, readouts and measures, against one logit and against NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused
from jax.flatten_util import ravel_pytree
from sklearn.datasets import load_digits
from test_poison_unlearn import random_split

import landscape
import library
from datar import Dataset, Split, encode, load_mnist, redraw
from foundation.base.labels import number_of_classes
from foundation.measures import forgetting, metrics
from foundation.measures.forgetting import MEASURES, OF_CLASSES, Models, Parts
from foundation.quantum import circuits
from models import MLP, QNN, Training, train
from poison_unlearn import POISONS, UNPOISONED, Batch, Poison, Scrub, Task, unlearn
from studies import methods
from studies.contenders import GeneralisedCE, Smoothed
from studies.methods import (
    METHODS,
    BadTeacher,
    BoundaryShrink,
    Newton,
    RandomLabels,
    ScrubAlternating,
    other_labels,
)
from studies.oracles import classes_of, signed_logits
from studies.quadratic import QuadraticForm
from studies.rows import for_poison

K = 5
KEY = jax.random.key(3)


def split_of(n=60, d=16, n_classes=K, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return Split(x, np.arange(n) % n_classes)


def data_of(n_classes=K, n=60):
    train, val = split_of(n, n_classes=n_classes), split_of(2 * n_classes, n_classes=n_classes)
    return Dataset(train, val, "classes", 16, {}).identified()


# ---- losses ----


@pytest.mark.parametrize("scale", [1, 30])
def test_two_logits_are_one_logit(scale):
    """Logits (0, z) give loss, gradient, accuracy, KL and margin of the logit z."""
    generator = np.random.default_rng(0)
    z, other = scale * generator.normal(size=(2, 40)).astype(np.float32)
    y = generator.integers(0, 2, 40)
    weight = generator.random(40)

    def pair(z):
        return jnp.stack([jnp.zeros_like(z), z], axis=1)

    def of_pair(z):
        return metrics.cross_entropy(pair(z), y, weight)

    def of_one(z):
        return metrics.cross_entropy(z, y, weight)

    np.testing.assert_allclose(of_pair(z), of_one(z), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(of_pair)(z), jax.grad(of_one)(z), rtol=1e-4, atol=1e-6)
    assert metrics.accuracy(pair(z), y) == metrics.accuracy(z, y)
    two, one = metrics.kl_divergence(pair(z), pair(other)), metrics.kl_divergence(z, other)
    np.testing.assert_allclose(two, one, rtol=1e-3, atol=1e-5)
    found = metrics.margins(np.asarray(pair(z)), y)
    np.testing.assert_allclose(found, forgetting.signed(z[None], y)[0], rtol=1e-5, atol=1e-5)


def test_measures_of_classes_are_those_of_numpy():
    """Loss, accuracy, margin and KL of five classes, from probabilities written out."""
    generator = np.random.default_rng(1)
    logits, other = generator.normal(size=(2, 30, K)).astype(np.float32)
    y = generator.integers(0, K, 30)
    p, q = (np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for each in (logits, other))
    of_label = p[np.arange(30), y]
    np.testing.assert_allclose(metrics.log_losses(logits, y), -np.log(of_label), rtol=1e-5)
    np.testing.assert_array_equal(metrics.hits(logits, y), p.argmax(axis=1) == y)
    odds = np.log(of_label / (1 - of_label))
    np.testing.assert_allclose(metrics.margins(logits, y), odds, rtol=1e-4, atol=1e-5)
    divergence = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(metrics.kl_divergence(logits, other), divergence, rtol=1e-3)


def test_diverged_logits_are_no_class():
    logits = np.full((3, K), np.nan, np.float32)
    assert np.isnan(metrics.accuracy(logits, [0, 1, 2]))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1, 5], r"labels: got labels such as 5(\.0)?, allowed: 0 to 4"),
        ([0, 1], r"labels: got shape \(2,\), allowed: \(3,\)"),
        ([0.5, 1, 2], "labels: got labels such as 0.5"),
    ],
)
def test_labels_of_no_class_are_refused(labels, said):
    with refused(said):
        metrics.cross_entropy(np.zeros((3, K)), labels)


def test_one_column_of_logits_is_no_class():
    with refused(r"logits: got shape \(3, 1\)"):
        metrics.accuracy(np.zeros((3, 1)), [0, 0, 0])


# ---- models ----


@pytest.mark.parametrize("entangler", ["rzz", "cnot"])
@pytest.mark.parametrize("n_qubits", [2, 3, 5])
def test_readouts_are_those_of_the_plain_circuit(n_qubits, entangler):
    """Values and gradients, for every number of classes and every number of folded layers."""
    generator = np.random.default_rng(n_qubits)
    depth = 3
    shape = (depth, n_qubits, circuits.parameters_per_qubit("xyx", entangler))
    params = jnp.asarray(generator.normal(size=shape), jnp.float32)
    states = generator.normal(size=(2, 2, 2**n_qubits)).astype(np.float32)
    states = jax.lax.complex(*states)
    amplitudes = jax.vmap(lambda state: circuits.ansatz(params, state, entangler=entangler).state())

    def plain(params, n_classes, weights):
        def of_state(state):
            amplitudes = circuits.ansatz(params, state, entangler=entangler).state()
            size = 2 ** circuits.measured_qubits(n_classes)
            return (jnp.abs(amplitudes) ** 2).reshape(-1, size).sum(axis=0)[:n_classes]

        return jnp.vdot(weights, jax.vmap(of_state)(states))

    norms = float((jnp.abs(amplitudes(states)) ** 2).sum(axis=1).max())
    for n_classes in sorted({2, 3, 2**n_qubits - 1, 2**n_qubits}):
        weights = jnp.asarray(generator.normal(size=(2, n_classes)), jnp.float32)
        expected = jax.value_and_grad(plain)(params, n_classes, weights)
        for folded in (None, 1, 2, 3) if entangler == "rzz" else (None,):

            def fast(params, n_classes=n_classes, weights=weights, folded=folded):
                options = {"entangler": entangler, "folded": folded}
                found = circuits.probabilities(params, states, n_classes, **options)
                return jnp.vdot(weights, found)

            for found, wanted in zip(jax.value_and_grad(fast)(params), expected, strict=True):
                np.testing.assert_allclose(found, wanted, rtol=0, atol=3e-5 * norms)


def test_two_outcomes_are_those_of_z():
    params = 0.3 * jax.random.normal(KEY, (4, 5, 4))
    states = jnp.asarray(split_of(7, 32).x)
    first, second = circuits.probabilities(params, states, 2).T
    np.testing.assert_allclose(first - second, circuits.expectation(params, states), atol=1e-6)
    model = QNN(5, 4)
    logits = 5.0 * jnp.stack([second, first], axis=1)  # K / 2 = 1; class 1 is the bit 0
    y = np.arange(7) % 2
    expected = metrics.cross_entropy(model.logits(params, states), y)
    np.testing.assert_allclose(metrics.cross_entropy(logits, y), expected, rtol=1e-5)


def test_logits_are_half_k_times_the_published_scale():
    model = QNN(3, 2, n_classes=5)
    params = jax.random.normal(KEY, (2, 3, 4))
    x = split_of(4, 8).x
    amplitudes = np.stack([np.asarray(model.circuit(params, state).state()) for state in x])
    expected = 5 * 5 / 2 * np.abs(amplitudes[:, :5]) ** 2
    np.testing.assert_allclose(model.logits(params, x), expected, atol=1e-5)


def test_an_ansatz_of_ones_own_has_the_same_readouts():
    model = QNN(4, 2, n_classes=6)
    own = QNN(4, ansatz=circuits.ansatz, shape=(2, 4, 4), n_classes=6)
    params = jax.random.normal(KEY, (2, 4, 4))
    x = split_of(3).x
    np.testing.assert_allclose(own.logits(params, x), model.logits(params, x), atol=1e-5)
    assert model.logits(params, x).shape == (3, 6)


def test_more_classes_than_bit_strings_are_refused():
    with refused("n_classes: got 9, allowed: 2 to 8, the bit strings of 3 qubits"):
        QNN(3, n_classes=9)


MODELS = (MLP(16, (6,), K), MLP(16, (), K), QNN(4, 2, n_classes=K), QuadraticForm(16, 3, False, K))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.label)
def test_models_learn_classes(model):
    """Of the samples of a small set most; so chance is no explanation."""
    split = split_of(20)
    params = train(model, split, epochs=200, batch_size=0, learning_rate=0.05, key=KEY)
    assert library.logits(model, params, split.x).shape == (20, K)
    assert library.accuracy(model, params, split) > 0.55
    of_classes = library.predict_proba(model, params, split.x)
    np.testing.assert_allclose(of_classes.sum(axis=1), 1, atol=1e-5)
    predicted = library.predict(model, params, split.x)
    np.testing.assert_array_equal(of_classes.argmax(axis=1), predicted)


def test_labels_of_more_classes_than_the_model_has_are_refused():
    with refused("split.y: got labels such as 4, allowed: 0 to 1, the n_classes of MLP"):
        train(MLP(16, (2,)), split_of(), epochs=1, batch_size=0, learning_rate=0.1, key=KEY)


# ---- methods ----


@pytest.mark.parametrize("model", [MODELS[0], MODELS[2]], ids=lambda model: model.label)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_unlearns_classes(name, model):
    method = METHODS[name]
    if method.why_not(model):
        assert name in ("cf_k", "eu_k")
        return
    method = replace(method, training=Training(2, 0, 0.01))
    drawn = Poison("labels", 30).draw(data_of(), key=0)
    teacher = model.init(KEY)
    params, _ = unlearn(
        method,
        model,
        teacher,
        drawn.retain,
        drawn.forget_poisoned,
        key=KEY,
        forget_clean=drawn.forget_clean,
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def drawn_task(model, n_classes=K):
    """A teacher, fresh parameters, and a third of the labels flipped."""
    drawn = Poison("labels", 30).draw(data_of(n_classes), key=0)
    retain, forget, clean = (
        Split(jnp.asarray(each.x), jnp.asarray(each.y))
        for each in (drawn.retain, drawn.forget_poisoned, drawn.forget_clean)
    )
    teacher, fresh = model.init(jax.random.key(7)), model.init(jax.random.key(8))
    return Task(model, teacher, retain, forget, clean, fresh)


def probabilities_of(model, params, split, temperature=1.0):
    logits = np.asarray(model.logits(params, split.x), float) / temperature
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def loss_of(method, task, params, epoch):
    """The method's loss at one step, on all samples."""
    retain, forget = (task.logits(task.teacher, each.x) for each in (task.retain, task.forget))
    weight = jnp.ones(len(task.retain.y))
    before = method.before(task, KEY)
    batch = Batch(task.retain, weight, retain, task.forget, forget, epoch, KEY, before)
    return float(method.loss(task, params, batch))


def test_losses_of_five_classes_are_those_of_numpy():
    """SCRUB's two turns, bad teaching, smoothed labels and the generalised cross-entropy."""
    model = MODELS[1]
    task, params = drawn_task(model), model.init(jax.random.key(9))

    def of(split, temperature=1.0, own=params):
        return probabilities_of(model, own, split, temperature)

    def kl(split, temperature):
        p, q = of(split, temperature, task.teacher), of(split, temperature)
        return temperature**2 * (p * np.log(p / q)).sum(axis=1)

    of_label = of(task.retain)[np.arange(len(task.retain.y)), np.asarray(task.retain.y)]
    ce = -np.log(of_label).mean()
    mean_of_all = -np.log(of(task.retain)).mean()
    left = of(task.forget, 2.0, task.fresh)
    away = 4 * (left * np.log(left / of(task.forget, 2.0))).sum(axis=1)
    n = len(task.retain.y) + len(task.forget.y)
    expected = {
        ScrubAlternating(temperature=2.0): {0: -kl(task.forget, 2.0).mean()},
        ScrubAlternating(alpha=0.5, gamma=0.9, temperature=2.0): {
            1: 0.5 * kl(task.retain, 2.0).mean() + 0.9 * ce
        },
        BadTeacher(temperature=2.0): {0: (kl(task.retain, 2.0).sum() + away.sum()) / n},
        Smoothed(smoothing=0.2): {0: 0.8 * ce + 0.2 * mean_of_all},
        GeneralisedCE(q=0.7): {0: ((1 - of_label**0.7) / 0.7).mean()},
    }
    for method, values in expected.items():
        for epoch, value in values.items():
            found = loss_of(method, task, params, jnp.asarray(epoch))
            assert found == pytest.approx(value, rel=2e-4), method


@pytest.mark.parametrize("model", [MODELS[1], QNN(3, 2, n_classes=3)], ids=lambda own: own.label)
def test_newtons_step_of_classes_is_that_of_the_exact_hessian(model):
    """The best of the damped steps, with NumPy's eigenvalues of JAX's Hessian of the loss."""
    n_classes = model.n_classes
    width = 16 if isinstance(model, MLP) else 8
    split = split_of(30, width, n_classes)
    params = model.init(jax.random.key(5))
    flat, unravel = ravel_pytree(params)

    def loss(flat):
        return metrics.cross_entropy(model.logits(unravel(flat), split.x), split.y)

    hessian = np.asarray(jax.hessian(loss)(flat), float)
    found = np.asarray(landscape.hessian(model, params, split))
    np.testing.assert_allclose(found, hessian, atol=2e-5)
    values, vectors = np.linalg.eigh(hessian)
    gradient = np.asarray(jax.grad(loss)(flat), float)
    size = np.abs(values)
    kept = np.where(size > 1e-6 * size.max(), vectors.T @ gradient, 0)
    steps = [vectors @ (kept / (size + mu * size.max())) for mu in methods.DAMPINGS]
    losses = [float(loss(flat - jnp.asarray(step, jnp.float32))) for step in steps]
    task = Task(model, params, split, split, split, params)
    after = ravel_pytree(Newton()(task, KEY)[0])[0]
    assert min(losses) < float(loss(flat))
    assert float(loss(after)) == pytest.approx(min(losses), rel=1e-3)


@pytest.mark.parametrize("kind", [float, complex])
def test_the_nearest_other_class_is_across_the_nearest_boundary(kind):
    """Of a linear model of three classes in the plane, whose boundaries are three rays.

    Samples lie in class 0, on the side of class 1 or of class 2; a step crosses no boundary, or
    it does: the nearest other class is the same.
    """
    thirds = 2 * np.pi * np.arange(3) / 3
    weights = np.stack([np.cos(thirds), np.sin(thirds)], axis=1)  # logit k: along direction k
    angles = np.array([0.2, 0.9, -0.3, -1.0])
    x = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [3], [2], [1]]
    if kind is complex:
        x = x.astype(np.complex64)
        weights = np.concatenate([weights, np.zeros_like(weights)], axis=1)
    model = MLP(weights.shape[1], (), 3)
    params = ((jnp.asarray(weights, jnp.float32), jnp.zeros(3)),)
    split = Split(jnp.asarray(x, jnp.result_type(np.float32, x)), jnp.zeros(4, int))
    task = Task(model, params, split, split, split, params)
    for step in (0.01, 0.5):
        found = BoundaryShrink(step=step).before(task, KEY)
        np.testing.assert_array_equal(found, [1, 1, 2, 2])


@pytest.mark.parametrize(("name", "reads"), [("boundary_shrink", False), ("cf", True)])
def test_boundary_shrink_reads_no_retained_sample(name, reads):
    drawn = Poison("labels", 30).draw(data_of(), key=0)
    model = MODELS[0]
    method = replace(METHODS[name], training=Training(2, 0, 0.01))
    retain, teacher = drawn.retain, model.init(KEY)
    ends = [
        unlearn(method, model, teacher, each, drawn.forget_poisoned, key=KEY)[0]
        for each in (retain, Split(retain.x[::-1].copy(), retain.y))
    ]
    pairs = zip(*map(jax.tree.leaves, ends), strict=True)
    assert any(not np.array_equal(first, second) for first, second in pairs) is reads


def test_random_labels_are_never_the_samples_own():
    """The loss at one step, with NumPy's cross-entropy and the labels that the key draws."""
    drawn = Poison("labels", 30).draw(data_of(), key=0)
    model = MODELS[1]
    params = model.init(KEY)
    retain, forget = drawn.retain, drawn.forget_poisoned
    task = Task(model, params, retain, forget, forget, params)
    weight = jnp.ones(len(retain.y))
    batch = Batch(retain, weight, None, forget, None, jnp.asarray(0), KEY)
    labels = other_labels(jnp.asarray(forget.y), K, KEY)
    assert (np.asarray(labels) != forget.y).all() and len(set(np.asarray(labels).tolist())) == K

    def ce(split, labels):
        logits = np.asarray(model.logits(params, split.x), float)
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return -np.log(p[np.arange(len(labels)), labels]).mean()

    expected = ce(retain, retain.y) + ce(forget, np.asarray(labels))
    assert float(RandomLabels().loss(task, params, batch)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["random_labels", "boundary_shrink"])
def test_two_classes_are_not_relabelled(name):
    assert "of two classes" in METHODS[name].why_not(MLP(4, ()))
    assert not METHODS[name].why_not(MLP(4, (), 3))


def test_the_published_divergence_is_of_two_classes():
    drawn = Poison("labels", 30).draw(data_of(), key=0)
    model = MODELS[1]
    with refused("divergence: got published, allowed: full, of more than two classes"):
        method = Scrub(divergence="published", training=Training(1, 0, 0.01))
        unlearn(method, model, model.init(KEY), drawn.retain, drawn.forget_poisoned, key=KEY)


# ---- poisons ----

KINDS = [kind for kind in POISONS if kind not in ("given", "backdoor")]


@pytest.mark.parametrize("kind", KINDS)
def test_poisons_of_classes_keep_what_they_say(kind):
    data = data_of()
    drawn = Poison(kind, 15).draw(data, key=0)
    if kind in UNPOISONED:
        assert not drawn.mask.any() and drawn.split is data.train
        return
    assert drawn.mask.any()
    if kind == "features":
        np.testing.assert_array_equal(drawn.split.y, data.train.y)
    elif kind != "confusion":
        assert (drawn.split.y != data.train.y)[drawn.mask].all()
        assert number_of_classes(drawn.split.y) == K


def test_flips_go_to_every_other_class_alike():
    """1,000 flips to four other classes: each is expected 250 times, with deviation 14."""
    train = split_of(5000, 2)
    data = Dataset(train, split_of(10, 2), "many", 2, {}).identified()
    drawn = Poison("labels", 20).draw(data, key=1)
    assert drawn.mask.sum() == 1000
    moved = (drawn.forget_poisoned.y - drawn.forget_clean.y) % K
    counts = np.bincount(moved, minlength=K)
    assert counts[0] == 0 and np.abs(counts[1:] - 250).max() < 5 * 14
    of_classes = np.bincount(drawn.forget_clean.y)
    np.testing.assert_array_equal(of_classes, 200)


def test_a_poison_may_aim_at_a_class():
    drawn = Poison("one_class", 10, label=3).draw(data_of(), key=0)
    assert set(drawn.forget_clean.y) == {3} and 3 not in drawn.forget_poisoned.y
    assert Poison("class", label=2).name == "class-2"
    with refused("label: got 5, allowed: 0 to 4"):
        Poison("class", label=5).draw(data_of(), key=0)
    with refused("label: got 1, allowed: none for labels"):
        Poison("labels", 10, label=1)


def test_the_next_class_is_one_further():
    drawn = Poison("next_class", 30).draw(data_of(), key=0)
    np.testing.assert_array_equal(drawn.forget_poisoned.y, (drawn.forget_clean.y + 1) % K)
    np.testing.assert_array_equal(np.bincount(drawn.forget_clean.y), [3] * K)
    two = data_of(2)
    both = [Poison(kind, 30).draw(two, key=4).split.y for kind in ("labels", "next_class")]
    np.testing.assert_array_equal(*both)


def test_a_subset_has_no_flipped_labels_to_rewind_to():
    method = METHODS["scrub_alternating"]
    assert for_poison(method, Poison("subset", 10)).rewind == "plain"
    assert for_poison(method, Poison("labels", 10)).rewind == "flipped"
    assert for_poison(replace(method, rewind="none"), Poison("subset", 10)).rewind == "none"


# ---- data ----


def test_digits_are_classes_in_the_order_given():
    data = load_mnist(digits=(7, 0, 3), per_class=4, source="embedded")
    assert data.n_classes == 3 and data.provenance["digits"] == [7, 0, 3]
    np.testing.assert_array_equal(data.train.y, np.repeat([0, 1, 2], 4))
    alone = load_mnist(digits=(7, 3), per_class=4, source="embedded")
    np.testing.assert_array_equal(data.train.x[-4:], alone.train.x[-4:])


def test_small_digits_are_those_of_scikit_learn():
    """8 × 8 pixels, 6 qubits; the first of each digit train, and all others validate."""
    loaded = load_digits()
    data = load_mnist(digits=(3, 8, 0), per_class=20, source="8x8")
    assert data.name == "digits8x8" and data.train.x.shape == (60, 64)
    assert data.image_shape == (8, 8)
    chosen = loaded.target == 8
    np.testing.assert_array_equal(np.bincount(data.train.y), [20] * 3)
    images = loaded.data[chosen][:20]
    norms = np.linalg.norm(images, axis=1, keepdims=True)
    np.testing.assert_allclose(
        data.train.x[data.train.y == 1].sum(axis=0),
        (images / norms).sum(axis=0),
        rtol=1e-5,
        atol=1e-6,
    )
    assert len(data.val.y) == np.isin(loaded.target, (3, 8, 0)).sum() - 60
    np.testing.assert_allclose(encode(data, images), images / norms, atol=1e-6)


@pytest.mark.parametrize(
    ("per_class", "said"),
    [
        (174, "per_class: got 174, allowed: 1 to 173: of the 174 images of a digit"),
        (500, "per_class: got 500, allowed: at most 174 images of a 8"),
    ],
)
def test_more_small_digits_than_there_are_are_refused(per_class, said):
    with refused(said):
        load_mnist(digits=(8, 1), per_class=per_class, source="8x8")


def test_without_a_copy_fashion_mnist_is_one_line(monkeypatch):
    def fail(module):
        raise OSError("no network")

    monkeypatch.setattr("foundation.base.mnist._loaded", fail)
    with refused("source: Keras' Fashion-MNIST cannot be had \\(no network\\); offline, --data"):
        load_mnist(source="fashion")


def test_fashion_mnist_is_loaded_from_keras(monkeypatch):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (40, 28, 28), np.uint8)
    sets = ((images, np.arange(40) % 10), (images[:20], np.arange(20) % 10))
    monkeypatch.setattr("foundation.base.mnist._loaded", lambda module: sets)
    data = load_mnist(digits=(9, 2, 4), per_class=3, source="fashion")
    assert (data.name, data.n_classes, len(data.val.y)) == ("fashion", 3, 6)
    assert data.provenance["source"] == "fashion"


def test_redrawn_sets_keep_the_shares_of_classes():
    data = data_of(n=60)
    again = redraw(data, 30, seed=0)
    np.testing.assert_array_equal(np.bincount(again.train.y), [6] * K)
    uneven = redraw(data, 32, seed=0)
    assert sorted(np.bincount(uneven.train.y).tolist()) == [6, 6, 6, 7, 7]
    assert len(redraw(data, 7, seed=0).train.y) == 7


@pytest.mark.parametrize("kind", [np.int64, np.bool_, np.float32])
def test_objects_that_are_numbers_are_labels(kind):
    labels = np.array([kind(0), kind(1)] * 6, object)
    x = split_of(12).x
    data = Dataset(Split(x, labels), Split(x, labels), "objects", 16, {})
    np.testing.assert_array_equal(data.train.y, [0, 1] * 6)


def test_labels_that_no_byte_holds_are_refused():
    """A job keeps labels in eight bits."""
    train = split_of(2 * 129, 4, 129)
    with refused("train.y: got labels such as 128, allowed: whole numbers, 0 to 127"):
        Dataset(train, train, "many", 4, {})


class OneLogit:
    """A model that says it has three classes, and has one logit."""

    label, family, n_classes = "OneLogit", "Own", 3

    def init(self, key):
        return jax.random.normal(key, (16,))

    def prepare(self, x):
        return jnp.asarray(x)

    def logits(self, params, x):
        return x @ params


def test_a_model_of_another_number_of_logits_is_refused():
    allowed = r"allowed: \(2, 3\), of the n_classes = 3 of OneLogit"
    with refused(r"model: got logits of shape \(2,\) of 2 samples, " + allowed):
        train(
            OneLogit(),
            split_of(12, n_classes=3),
            epochs=1,
            batch_size=0,
            learning_rate=0.1,
            key=KEY,
        )


def test_accuracy_on_labels_of_no_class_is_refused():
    model = MLP(16, ())
    with refused("split.y: got labels such as 9, allowed: 0 to 1"):
        library.accuracy(model, model.init(KEY), Split(split_of(2).x, np.array([0, 9])))


def test_traced_labels_between_classes_are_refused():
    """They would be rounded down."""
    with refused("labels: got float32, allowed: whole numbers"):
        jax.jit(metrics.cross_entropy)(jnp.zeros((3, K)), jnp.asarray([0.0, 1.85, 2.0]))


@pytest.mark.parametrize("labels", [[0, 2], [0, 1, 3]])
def test_a_class_without_samples_is_refused(labels):
    split = random_split(12, 4)
    split = Split(split.x, np.resize(labels, 12))
    with refused(r"train.y: got labels .* alone, allowed: samples of each class of train.y, 0 to"):
        Dataset(split, split, "gap", 4, {})


# ---- measures ----


def arrays_of(logits, y, n, known):
    """What a Fit keeps of runs with these logits (runs, n + n + v, K)."""
    mask = np.zeros((len(logits), n), bool)
    return {
        "logit": logits,
        "label": np.tile(y, (len(logits), 1)),
        "mask": mask,
        "known": np.tile(known, (len(logits), 1)),
    }


def test_margins_and_hits_are_read_off_a_jobs_logits():
    generator = np.random.default_rng(2)
    n, v = 6, 4
    logits = generator.normal(size=(3, 2 * n + v, K)).astype(np.float32)
    y = generator.integers(0, K, 2 * n + v)
    arrays = arrays_of(logits, y, n, np.arange(n) < 2)
    places = np.r_[0:n, 2 * n : 2 * n + v]
    labels = y[np.r_[n : 2 * n, 2 * n : 2 * n + v]]
    p = np.exp(logits[:, places]) / np.exp(logits[:, places]).sum(axis=2, keepdims=True)
    of_label = np.take_along_axis(p, labels[None, :, None], axis=2)[..., 0]
    expected = np.log(of_label) - np.log1p(-of_label)
    np.testing.assert_allclose(signed_logits(arrays), expected, rtol=1e-4, atol=1e-5)
    hit, clean_hit, probability = classes_of(arrays)
    np.testing.assert_array_equal(hit, p.argmax(axis=2) == labels)
    clean = logits[:, n:].argmax(axis=2) == labels
    np.testing.assert_array_equal(clean_hit, clean)
    assert (clean_hit != hit).any()
    np.testing.assert_allclose(probability, p, rtol=1e-5)


def models_of(probability, labels):
    """Models (N, s, K) of these probabilities."""
    logits = np.log(probability)
    z = metrics.margins(logits, labels)
    hit = logits.argmax(axis=2) == labels
    numbers = np.arange(len(z))
    return Models(z, z, numbers + 1.0, numbers, hit, hit, probability)


def test_total_variation_sees_where_probability_goes():
    """Two models with the same margins, whose mass goes to other classes."""
    first = np.array([0.4, 0.5, 0.1])
    other = np.array([0.4, 0.1, 0.5])
    labels = np.zeros(4, int)
    left, right = (models_of(np.tile(p, (6, 4, 1)), labels) for p in (first, other))
    parts = Parts(*np.ones((4, 4), bool))
    assert MEASURES["w1"].function(left, right, parts) == pytest.approx(0, abs=1e-12)
    assert OF_CLASSES["tv"].function(left, right, parts) == pytest.approx(0.4)
    assert OF_CLASSES["tv"].function(left, left, parts) == 0
    assert left.take(np.arange(3)).probability.shape == (3, 4, 3)


def test_a_class_may_be_right_with_less_than_half():
    """Accuracy is of the largest probability, not of a positive margin."""
    models = models_of(np.tile([0.4, 0.3, 0.3], (4, 2, 1)), np.zeros(2, int))
    assert (models.z < 0).all()
    np.testing.assert_array_equal(
        forgetting.accuracies(models, Parts(*np.ones((4, 2), bool))), [1, 1, 1]
    )


def test_to_lower_the_logit_of_a_class_is_not_to_forget_it():
    """A model that gives a class's samples to the classes that it took for the next best is as far
    from the label as an oracle, which gives them to another one; total variation tells them apart.
    """
    labels = np.zeros(4, int)
    teacher, oracle = np.array([0.9, 0.07, 0.03]), np.array([0.01, 0.09, 0.9])
    lowered = np.log(teacher) - np.array([8, 0, 0])
    lowered = np.exp(lowered) / np.exp(lowered).sum()
    lowered = np.concatenate([oracle[:1], lowered[1:] / lowered[1:].sum() * (1 - oracle[0])])
    arms = [models_of(np.tile(p, (6, 4, 1)), labels) for p in (lowered, oracle, teacher)]
    parts = Parts(*np.ones((4, 4), bool))
    w1, tv = MEASURES["w1"].function, OF_CLASSES["tv"].function
    assert w1(arms[0], arms[1], parts) == pytest.approx(0, abs=1e-9)
    assert w1(arms[2], arms[1], parts) > 5
    assert tv(arms[0], arms[1], parts) == pytest.approx(0.603)
    assert tv(arms[2], arms[1], parts) == pytest.approx(0.89)
