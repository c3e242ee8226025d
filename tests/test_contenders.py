"""Each contender against NumPy, its limits, and training; the estimators against cases by hand."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_equal, random_split, refused, trees_differ

from datar import Split, load_xxz
from foundation.engine import keys
from foundation.measures.metrics import accuracy
from models import MLP, QNN, Training, train
from poison_unlearn import Batch, Retrain, Task, unlearn
from studies.contenders import (
    BoundedMLP,
    Decayed,
    FrozenQNN,
    FullQuadratic,
    GeneralisedCE,
    LearnedScaleQNN,
    NearestMean,
    Neighbours,
    ProjectedLinear,
    Reflection,
    ScaledQNN,
    Smoothed,
    ThresholdOnZZ,
    _inverse_root_by_blocks,
    ring_correlation,
)
from studies.methods import LastLayers
from studies.quadratic import QuadraticForm

KEY = jax.random.key(5)
MODELS = [
    BoundedMLP(4, (6,)),
    ProjectedLinear(4, 10),
    ScaledQNN(2, 2, logit_scale=20),
    LearnedScaleQNN(2, 2),
    FrozenQNN(2, 2),
    FrozenQNN(2, 2, trained="rotations"),
    FullQuadratic(4),
    FullQuadratic(4, is_complex=True),
    Reflection(4),
]
METHODS = [Decayed(), Smoothed(), GeneralisedCE()]
ESTIMATORS = [NearestMean(), Neighbours(), ThresholdOnZZ()]
each_model = pytest.mark.parametrize("model", MODELS, ids=repr)


def two_states(n, *, complex_states=False):
    """Samples near e_0, class 0, and near e_3, class 1."""
    noise, y = random_split(n, 4, complex_states=complex_states)
    return Split(noise * np.float32(0.3) + np.eye(4, dtype=np.float32)[3 * y], y)


@partial(jax.jit, static_argnums=0)
def logits_of(model, params, x):
    """Compiled as one program, and once: op by op the circuits and loops take most of the time."""
    return model.logits(params, x)


@partial(jax.jit, static_argnums=0)
def operator_of(model, params):
    return model.operator(params)


# ---- all models ----


@each_model
def test_each_model_learns_an_easy_task(model):
    """With the loop that trains all models, from fresh parameters, on labels that these are on the
    wrong side of."""
    x, y = two_states(20)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    fresh = logits_of(model, model.init(jax.random.split(KEY)[0]), x)  # what `train` starts from
    y = 1 - y if accuracy(fresh, y) > 0.5 else y
    params = train(model, Split(x, y), epochs=40, batch_size=0, learning_rate=0.1, key=KEY)
    assert accuracy(logits_of(model, params, x), y) > 0.95


@each_model
def test_each_model_reads_complex_states_and_what_it_has_prepared(model):
    """A quadratic form of the amplitudes does not see a global phase, other models do."""
    if isinstance(model, (BoundedMLP, ProjectedLinear)):
        model = replace(model, n_features=8)
    x, _ = random_split(7, 4, complex_states=True)
    params = jax.tree.map(lambda leaf: 3 * leaf, model.init(KEY))
    logits = logits_of(model, params, x)
    assert logits.shape == (7,) and logits.dtype == np.float32 and np.ptp(logits) > 1e-5
    np.testing.assert_allclose(
        logits_of(model, params, model.prepare(x)), logits, rtol=1e-4, atol=1e-6
    )
    assert_trees_equal(model.prepare(model.prepare(x)), model.prepare(x))
    turned = logits_of(model, params, np.exp(1j).astype(np.complex64) * x)
    assert np.allclose(turned, logits, rtol=1e-3, atol=1e-5) == (
        model.family in ("QNN", "Quadratic")
    )


@pytest.mark.parametrize(
    "model", [BoundedMLP(4), ProjectedLinear(4), FullQuadratic(4), Reflection(4), ScaledQNN(2)]
)
def test_samples_of_another_width_are_refused(model):
    with refused("x: got"):
        logits_of(model, model.init(KEY), np.ones((3, 6), np.float32))


@pytest.mark.parametrize("held", [*MODELS, *METHODS, *ESTIMATORS], ids=repr)
def test_each_contender_can_be_sent_to_another_process_and_named(held):
    copy = pickle.loads(pickle.dumps(held))
    assert copy == held and hash(copy) == hash(held)
    assert keys.describe(copy) == keys.describe(held)
    json.dumps(keys.describe(held))


def test_names_tell_contenders_apart():
    others = [
        BoundedMLP(4, (6,), bound=1),
        ProjectedLinear(4, 10, 1),
        ProjectedLinear(4, 10, seed=1),
        ScaledQNN(2, 2),
    ]
    models = [*MODELS, *others, MLP(4, (6,)), QNN(2, 2)]
    assert len({json.dumps(keys.describe(model)) for model in models}) == len(models)
    assert keys.describe(BoundedMLP(4, (6,), bound=5)) == keys.describe(MODELS[0])
    assert [model.label for model in models if not isinstance(model, FullQuadratic)] == [
        "MLP[6],bound=5",
        "Linear[10 projections]",
        "QNN[depth=2],scale=20",
        "QNN[depth=2],scale=learned",
        "QNN[depth=2],trained=last layer",
        "QNN[depth=2],trained=rotations",
        "Quadratic[reflection]",
        "MLP[6],bound=1",
        "Linear[10 projections,bound=1]",
        "Linear[10 projections,seed=1]",
        "QNN[depth=2],scale=5",
        "MLP[6]",
        "QNN[depth=2]",
    ]
    assert {model.family for model in models} == {"MLP", "Logistic", "QNN", "Quadratic"}


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True, "5"])
def test_bounds_and_scales_that_make_no_sense_are_refused(value):
    for name, model in (("bound", BoundedMLP), ("logit_scale", ScaledQNN)):
        with refused(f"{name}: got {value}"):
            model(**{name: value})
    with refused("bound"):
        ProjectedLinear(4, bound=value)


# ---- bounded logits ----


@pytest.mark.parametrize("bound", [1.0, 5.0, 20.0])
def test_bounded_logits_are_the_mlps_through_tanh(bound):
    x, _ = random_split(60, 8)
    plain, model = MLP(8, (5, 3)), BoundedMLP(8, (5, 3), bound=bound)
    assert_trees_equal(model.init(KEY), plain.init(KEY))
    params = jax.tree.map(lambda leaf: 20 * leaf + 0.1, plain.init(KEY))
    logits, unbounded = (np.asarray(logits_of(each, params, x)) for each in (model, plain))
    np.testing.assert_allclose(logits, bound * np.tanh(unbounded / bound), rtol=1e-5)
    assert np.abs(unbounded).max() > 100 and 0.99 * bound < np.abs(logits).max() <= bound


def test_a_large_bound_bounds_nothing():
    x, _ = random_split(20, 8)
    plain, model = MLP(8, (5,)), BoundedMLP(8, (5,), bound=1e5)
    params = plain.init(KEY)
    np.testing.assert_allclose(logits_of(model, params, x), logits_of(plain, params, x), rtol=1e-5)
    gradients = [
        jax.jit(jax.grad(lambda params, model=model: jnp.sum(logits_of(model, params, x))))(params)
        for model in (model, plain)
    ]
    assert_trees_equal(*gradients, rtol=1e-4, atol=1e-6)


def test_the_bounded_mlp_in_keras_is_bounded():
    x, _ = random_split(9, 8)
    model = BoundedMLP(8, (5,), bound=1.0)
    params = jax.tree.map(lambda leaf: 10 * leaf + 0.1, model.init(KEY))
    found = np.asarray(model.to_keras(params)(x))[:, 0]
    np.testing.assert_allclose(found, logits_of(model, params, x), rtol=1e-4, atol=1e-5)
    assert np.abs(found).max() > 0.9


@pytest.mark.parametrize("complex_states", [False, True])
def test_a_linear_model_of_projections_is_that_of_numpy(complex_states):
    """s tanh((w'Px + b) / s), P from the seed; P is no parameter, and the same within a program."""
    x, _ = random_split(30, 6, complex_states=complex_states)
    rows = np.concatenate([x.real, x.imag], axis=1) if complex_states else x
    width = rows.shape[1]
    model = ProjectedLinear(width, 20, 2.0, seed=3)
    projection = np.asarray(jax.random.normal(jax.random.key(3), (20, width))) / np.sqrt(width)
    params = (20 * model.init(KEY)[0], jnp.float32(0.7))
    expected = 2 * np.tanh((rows @ projection.T @ np.asarray(params[0]) + 0.7) / 2)
    assert 1.9 < np.abs(expected).max() <= 2
    np.testing.assert_allclose(logits_of(model, params, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(model.logits)(params, x), expected, rtol=1e-4, atol=1e-5)
    assert [leaf.shape for leaf in jax.tree.leaves(model.init(KEY))] == [(20,), ()]
    assert trees_differ(replace(model, seed=4).projection, model.projection)


def test_the_projection_has_variance_one_over_the_features():
    squares = np.square(ProjectedLinear(1024).projection)
    assert squares.shape == (135, 1024)
    assert abs(1024 * squares.mean() - 1) < 5 * np.sqrt(2 / squares.size)


def test_a_projection_is_first_drawn_within_a_program():
    """And is a number thereafter, no tracer that has leaked."""
    model = ProjectedLinear(4, 3, seed=11)
    params, x = model.init(KEY), random_split(5, 4).x
    within = jax.jit(jax.vmap(model.logits, (0, None)))(
        jax.tree.map(lambda leaf: leaf[None], params), x
    )
    np.testing.assert_allclose(within[0], logits_of(model, params, x), rtol=1e-5, atol=1e-7)


# ---- circuits ----

X, _ = random_split(12, 8)
ANGLES = 60 * QNN(3, 2).init(KEY)  # of order 1


@pytest.mark.parametrize("scale", [1, 5.0, 20])
def test_a_scaled_qnn_is_the_qnn_times_scale_over_5(scale):
    model = ScaledQNN(3, 2, logit_scale=scale)
    assert_trees_equal(model.init(KEY), QNN(3, 2).init(KEY))
    logits = logits_of(QNN(3, 2), ANGLES, X)
    assert np.abs(logits).max() > 0.5
    np.testing.assert_allclose(logits_of(model, ANGLES, X), scale / 5 * logits, rtol=1e-5)


def test_a_learned_scale_starts_at_the_qnn_and_is_trained():
    plain, model = QNN(3, 2), LearnedScaleQNN(3, 2)
    start = model.init(KEY)
    assert_trees_equal(start["angles"], plain.init(KEY))
    np.testing.assert_allclose(
        logits_of(model, start, X), logits_of(plain, plain.init(KEY), X), rtol=1e-6
    )
    params = {"angles": ANGLES, "log_scale": jnp.log(20.0)}
    expected = logits_of(ScaledQNN(3, 2, logit_scale=20), ANGLES, X)
    np.testing.assert_allclose(logits_of(model, params, X), expected, rtol=1e-5)
    slope = jax.jit(jax.grad(lambda params: logits_of(model, params, X)[0]))(params)["log_scale"]
    np.testing.assert_allclose(slope, expected[0], rtol=1e-5)
    split = Split(X, np.asarray(expected > 0, np.int32))  # of a separable task: it rises
    end = train(model, split, epochs=40, batch_size=0, learning_rate=0.1, key=KEY)
    assert end["log_scale"] > np.log(5) + 0.5
    assert model.to_openqasm(params) == plain.to_openqasm(ANGLES)


def test_the_last_layers_with_a_learned_scale():
    """The angles of the last layer and the scale move, the others stay the teacher's."""
    model, split = LearnedScaleQNN(3, 2), Split(X, random_split(12, 8).y)
    teacher = {"angles": ANGLES, "log_scale": jnp.log(5.0)}
    mask = model.last_layers(teacher, 1)
    assert jax.tree.structure(mask) == jax.tree.structure(teacher)
    np.testing.assert_array_equal(mask["angles"], [[[False]], [[True]]])
    method = LastLayers(k=1, training=Training(3, 0, 0.1))
    after, _ = unlearn(method, model, teacher, split, split, key=KEY)
    np.testing.assert_array_equal(after["angles"][0], ANGLES[0])
    assert (
        trees_differ(after["angles"][1], ANGLES[1]) and after["log_scale"] != teacher["log_scale"]
    )


FROZEN = [FrozenQNN(3, 2), FrozenQNN(3, 2, trained="rotations")]


def moving(model):
    """(2, 3, 4), True for the angles that are trained."""
    trained = np.zeros((2, 3, 4), bool)
    trained[(-1,) if model.trained == "last layer" else (..., slice(3))] = True
    return trained


@pytest.mark.parametrize("model", FROZEN, ids=repr)
def test_frozen_angles_have_no_gradient_and_stay(model):
    """Under a penalty on all angles, too; the logits are the QNN's at the same angles."""
    trained, start = moving(model), model.init(KEY)
    np.testing.assert_array_equal(np.broadcast_to(model.moving(start), start.shape), trained)
    params = start + 0.3
    logits = logits_of(QNN(3, 2), params, X)
    assert np.abs(logits).max() > 0.1
    np.testing.assert_allclose(logits_of(model, params, X), logits, rtol=1e-5, atol=1e-6)
    squares = [
        lambda params, each=each: jnp.sum(logits_of(each, params, X) ** 2)
        for each in (model, QNN(3, 2))
    ]
    gradient, free = (np.asarray(jax.jit(jax.grad(each))(params)) for each in squares)
    assert np.all(gradient[~trained] == 0) and np.abs(free[~trained]).max() > 1e-3
    np.testing.assert_allclose(gradient[trained], free[trained], rtol=1e-3, atol=1e-5)
    split = Split(X, random_split(12, 8).y)
    task = Task(model, start, *3 * [Split(model.prepare(X), jnp.asarray(split.y))], start)
    after = np.asarray(Decayed(decay=0.1, training=Training(4, 0, 0.1))(task, KEY)[0])
    np.testing.assert_array_equal(after[~trained], start[~trained])
    assert np.abs(after - start)[trained].max() > 0.1


def test_what_is_frozen_is_random_or_zero():
    layers, rotations = (
        FrozenQNN(8, 6, trained=trained).init(KEY) for trained in ("last layer", "rotations")
    )
    random = np.asarray(layers[:-1]).ravel()
    assert 0 <= random.min() < 0.1 and 6.2 < random.max() < 2 * np.pi
    assert abs(random.mean() - np.pi) < 5 * 2 * np.pi / np.sqrt(12 * random.size)
    assert 0 < np.abs(layers[-1]).max() < 0.06
    assert (
        not rotations[..., -1].any()
        and 0 < np.abs(rotations[..., :3]).min() < np.abs(rotations).max() < 0.06
    )
    assert trees_differ(layers[:-1], FrozenQNN(8, 6).init(jax.random.key(6))[:-1])


def test_without_entanglers_only_the_last_qubit_is_read():
    """<Z> of its reduced state after the product of its own rotations, in NumPy."""
    model = FrozenQNN(3, 3, trained="rotations")
    angles = np.asarray(60 * model.init(KEY), float)
    paulis = {"x": np.array([[0, 1], [1, 0]]), "y": np.array([[0, -1j], [1j, 0]])}
    unitary = np.eye(2)
    for layer in angles[:, -1]:
        for axis, angle in zip("xyx", layer, strict=False):
            unitary = (
                np.cos(angle / 2) * np.eye(2) - 1j * np.sin(angle / 2) * paulis[axis]
            ) @ unitary
    observable = unitary.conj().T @ np.diag([1, -1]) @ unitary
    pairs = X.reshape(12, 4, 2)
    expected = 5 * np.einsum("nai,ij,naj->n", pairs, observable, pairs).real
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits_of(model, angles.astype(np.float32), X), expected, atol=1e-5)


def test_parts_that_cannot_be_trained_are_refused():
    with refused("trained: got first layer, allowed: last layer, rotations"):
        FrozenQNN(3, 2, trained="first layer")
    with refused("trained"):
        FrozenQNN(3, 2, "xy", "cnot", trained="rotations")


# ---- quadratic forms ----


def dense(model, params, x):
    """5 x'Ox in NumPy."""
    return 5 * np.einsum("ni,ij,nj->n", x.conj(), np.asarray(operator_of(model, params)), x).real


@pytest.mark.parametrize("complex_states", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("factor", [1, 3000])
def test_the_full_form_is_that_of_numpy(is_complex, complex_states, factor):
    """Inside the ball O is (A + A') / 2; outside it is that over its norm."""
    model = FullQuadratic(6, is_complex)
    x, _ = random_split(30, 6, complex_states=complex_states)
    params = factor * model.init(KEY)
    matrix = np.asarray(params[0] + 1j * params[1] if is_complex else params)
    symmetric = (matrix + matrix.conj().T) / 2
    norm = np.linalg.norm(symmetric, 2)
    assert (norm > 1) == (factor > 1)
    np.testing.assert_allclose(
        operator_of(model, params), symmetric / max(1, norm), rtol=1e-2, atol=1e-6
    )
    np.testing.assert_allclose(
        logits_of(model, params, x), dense(model, params, x), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("n_features", [16, 200])
def test_the_norm_of_random_forms_exceeds_1_by_little(n_features, is_complex):
    model = FullQuadratic(n_features, is_complex)
    for seed in range(3):
        operator = operator_of(model, 1000 * model.init(jax.random.key(seed)))
        assert 0.999 < np.linalg.norm(operator, 2) < 1.02


@pytest.mark.parametrize("spectrum", ["flat", "one above", "plus and minus", "a reflection"])
def test_the_norm_of_other_spectra(spectrum):
    n = 256
    values = {
        "flat": np.linspace(-1, 1, n),
        "one above": np.append(np.linspace(-1, 1, n - 1), -1.05),
        "plus and minus": np.append(np.linspace(-0.9, 0.9, n - 2), [1, -1]),
        "a reflection": np.resize([1, -1], n),
    }[spectrum]
    for seed in range(3):
        basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
        operator = operator_of(
            FullQuadratic(n), jnp.asarray(30 * (basis * values) @ basis.T, jnp.float32)
        )
        assert 0.999 < np.linalg.norm(operator, 2) < 1.02


@pytest.mark.parametrize("is_complex", [False, True])
def test_the_norm_stays_within_the_bound_as_it_is_trained(is_complex):
    """On random labels, which drive it against the bound."""
    model = FullQuadratic(48, is_complex)
    split = random_split(60, 48, complex_states=is_complex)
    params = train(model, split, epochs=60, batch_size=30, learning_rate=0.02, key=KEY)
    assert 0.999 < np.linalg.norm(operator_of(model, params), 2) < 1.02
    assert accuracy(logits_of(model, params, split.x), split.y) > 0.9


@pytest.mark.parametrize("is_complex", [False, True])
def test_the_gradient_through_the_norm_is_that_of_the_exact_norm(is_complex):
    """Where the largest eigenvalue stands alone."""
    model = FullQuadratic(8, is_complex)
    x, _ = random_split(5, 8, complex_states=True)
    params = model.init(KEY) * 3000
    params = params.at[(0, 0, 0) if is_complex else (0, 0)].add(-60)

    def by_eigenvalues(params):
        matrix = jax.lax.complex(*params) if is_complex else params
        symmetric = (matrix + matrix.conj().T) / 2
        operator = symmetric / jnp.abs(jnp.linalg.eigvalsh(symmetric)).max()
        return 5 * jnp.einsum("ni,ij,nj->n", x.conj(), operator, x).real

    found, expected = (
        jax.jit(jax.grad(lambda params, f=f: f(params) @ jnp.arange(1.0, 6)))(params)
        for f in (lambda params: logits_of(model, params, x), by_eigenvalues)
    )
    assert np.abs(expected).max() > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_a_form_of_zero_has_a_finite_gradient():
    model, x = FullQuadratic(4), two_states(5).x
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(logits_of(model, params, x))))(
        jnp.zeros((4, 4))
    )
    np.testing.assert_allclose(gradient, 5 * x.T @ x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_features", [2, 10, 70])
@pytest.mark.parametrize("complex_states", [False, True])
def test_a_reflection_is_one(n_features, complex_states):
    """O² = 1, O = O', trace 0; the logit is 5 x'Ox, with the projector by NumPy's QR."""
    model = Reflection(n_features)
    params = model.init(KEY)
    operator = np.asarray(operator_of(model, params))
    np.testing.assert_allclose(operator @ operator, np.eye(n_features), atol=2e-5)
    np.testing.assert_allclose(operator, operator.conj().T, atol=2e-6)
    assert abs(np.trace(operator)) < 1e-3
    # (n_features, n_features / 2)
    rows, _ = np.linalg.qr(np.asarray(params[0] + 1j * params[1]).conj().T)
    np.testing.assert_allclose(operator, 2 * rows @ rows.conj().T - np.eye(n_features), atol=1e-5)
    x, _ = random_split(20, n_features, complex_states=complex_states)
    np.testing.assert_allclose(logits_of(model, params, x), dense(model, params, x), atol=1e-4)
    assert np.abs(dense(model, params, x)).max() > 0.2


def test_a_reflection_of_an_odd_width_is_refused():
    with refused("n_features: got 7"):
        Reflection(7)


@pytest.mark.parametrize("size", [20, 45])
def test_the_inverse_root_by_blocks_is_that_of_numpy(size):
    """Its values, and its gradient by LAPACK's Cholesky factor."""
    factor = jax.lax.complex(*jax.random.normal(KEY, (2, size, 2 * size))) / np.sqrt(2 * size)
    gram = factor @ factor.conj().T
    expected = np.linalg.inv(np.linalg.cholesky(np.asarray(gram, complex)))
    np.testing.assert_allclose(_inverse_root_by_blocks(gram), expected, atol=1e-5)
    weights = jax.random.normal(jax.random.key(1), (size, size))

    def weighted(root, factor):
        return jnp.sum(weights * (root(factor @ factor.conj().T) @ factor)[:, :size].real)

    def by_lapack(gram):
        return jax.scipy.linalg.solve_triangular(
            jnp.linalg.cholesky(gram), jnp.eye(size, dtype=gram.dtype), lower=True
        )

    gradients = [jax.jit(jax.grad(lambda factor, root=root: weighted(root, factor)))(factor)
                 for root in (_inverse_root_by_blocks, by_lapack)]  # fmt: skip
    np.testing.assert_allclose(*gradients, atol=1e-4 * np.abs(gradients[1]).max())


# ---- losses ----

D, N = 5, 12
LOGISTIC = MLP(D, ())
PARAMS = [(3 * LOGISTIC.init(KEY)[0][0], jnp.array([0.4]))]
SPLIT = random_split(N, D)
WEIGHT = np.arange(N) % 3 / 2  # 0, 0.5, 1
INPUTS = np.concatenate([SPLIT.x, np.ones((N, 1))], axis=1).astype(float)
THETA = np.append(np.asarray(PARAMS[0][0], float), 0.4)
LOGITS = INPUTS @ THETA
P = 1 / (1 + np.exp(-LOGITS))
P_GIVEN = np.where(SPLIT.y, P, 1 - P)


def mean(values):
    return np.average(values, axis=0, weights=WEIGHT)


def ce(labels):
    return mean(-labels * np.log(P) - (1 - labels) * np.log(1 - P))


def ce_slope(labels):
    return mean((P - labels)[:, None] * INPUTS)


SMOOTH = 0.7 * SPLIT.y + 0.15
LOSSES = {  # the method, its value, its gradient
    "decayed": (
        Decayed(decay=0.2),
        ce(SPLIT.y) + 0.2 * np.sum(THETA[:-1] ** 2),
        ce_slope(SPLIT.y) + 0.4 * THETA * (np.arange(D + 1) < D),
    ),
    "smoothed": (Smoothed(smoothing=0.3), ce(SMOOTH), ce_slope(SMOOTH)),
    "generalised": (
        GeneralisedCE(q=0.7),
        mean((1 - P_GIVEN**0.7) / 0.7),
        mean((P_GIVEN**0.7 * (P - SPLIT.y))[:, None] * INPUTS),
    ),
    "mae": (
        GeneralisedCE(q=1),
        mean(np.abs(P - SPLIT.y)),
        mean((P * (1 - P) * (1 - 2 * SPLIT.y))[:, None] * INPUTS),
    ),
}


def value_and_gradient(method, params=PARAMS, split=SPLIT, model=LOGISTIC, weight=WEIGHT):
    split = Split(*map(jnp.asarray, split))
    task = Task(model, params, split, split, split, params)
    batch = Batch(
        split,
        jnp.asarray(weight),
        jnp.zeros(len(weight)),
        split,
        jnp.zeros(len(weight)),
        jnp.int32(0),
        KEY,
    )
    return jax.jit(jax.value_and_grad(lambda params: method.loss(task, params, batch)))(params)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_those_of_numpy(name):
    method, expected, slope = LOSSES[name]
    value, gradient = value_and_gradient(method)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(
        np.concatenate([leaf.ravel() for leaf in gradient[0]]), slope, atol=2e-6
    )


def test_a_generalised_ce_of_a_small_q_is_ce():
    """To first order in q: (1 - p^q) / q = -log p - q log² p / 2 + …"""
    plain, slope = value_and_gradient(Retrain())
    distances = []
    for q in (1e-2, 1e-4):
        value, gradient = value_and_gradient(GeneralisedCE(q=q))
        distances.append(plain - value)
        assert_trees_equal(gradient, slope, atol=10 * q)
    np.testing.assert_allclose(distances[0], 5e-3 * mean(np.log(P_GIVEN) ** 2), rtol=0.05)
    assert abs(distances[1]) < 1e-3


@pytest.mark.parametrize("q", [0.01, 0.7, 1.0])
def test_a_generalised_ce_is_finite_at_any_logit(q):
    """Of a sure and wrong sample it is 1 / q where CE has no bound, and its slope is 0 in single
    precision."""
    split = Split(np.array([[1.0], [-1.0]], np.float32), np.array([0, 1], np.int32))
    params = [(jnp.array([[1e6]]), jnp.zeros(1))]
    value, gradient = value_and_gradient(GeneralisedCE(q=q), params, split, MLP(1, ()), np.ones(2))
    np.testing.assert_allclose(value, 1 / q, rtol=1e-5)
    assert_trees_equal(gradient, [(np.zeros((1, 1)), np.zeros(1))])


def test_labels_between_0_and_1_weigh_both_classes():
    halves = Split(SPLIT.x, np.full(N, 0.25, np.float32))
    one, zero = (np.average((1 - p**0.7) / 0.7, weights=WEIGHT) for p in (P, 1 - P))
    value, _ = value_and_gradient(GeneralisedCE(q=0.7), split=halves)
    np.testing.assert_allclose(value, 0.25 * one + 0.75 * zero, rtol=1e-5)


SHORT = Training(4, 5, 0.02)


def test_a_weight_of_0_is_retraining_bit_for_bit():
    """And one above 0 is not."""
    model, split = MLP(D, (4, 3)), SPLIT
    teacher = model.init(jax.random.key(1))
    empty = Split(split.x[:0], split.y[:0])

    @jax.jit
    def run(method):
        return unlearn(method, model, teacher, split, empty, key=KEY)[0]

    retrained = run(Retrain(training=SHORT))
    assert trees_differ(retrained, teacher)
    for method in (Decayed, Smoothed):
        assert_trees_equal(run(method(0, training=SHORT)), retrained)
        assert trees_differ(run(method(0.1, training=SHORT)), retrained)


@pytest.mark.parametrize(
    ("model", "decayed"),
    [
        (MLP(8, (3,)), [True, False, True, False]),
        (ProjectedLinear(8, 4), [True, False]),
        (QNN(3, 2), [True]),
        (LearnedScaleQNN(3, 2), [True, False]),
        (QuadraticForm(8, 3), [True, False]),
        (FullQuadratic(8), [True]),
        (Reflection(8), [True]),
    ],
    ids=lambda value: getattr(value, "label", ""),
)
def test_what_decays(model, decayed):
    """Weights and not biases, angles and not the scale: 2 decay θ of each is added to the
    gradient."""
    params = jax.tree.map(lambda leaf: leaf + 0.3, model.init(KEY))
    x, y = random_split(6, 8)
    (_, with_decay), (_, without) = (
        value_and_gradient(method, params, Split(x, y), model, np.ones(6))
        for method in (Decayed(decay=0.5), Retrain())
    )
    leaves = zip(*map(jax.tree.leaves, (with_decay, without, params)), decayed, strict=True)
    for found, expected, leaf, is_decayed in leaves:
        np.testing.assert_allclose(found, expected + is_decayed * leaf, atol=2e-6)


def test_hyper_parameters_that_make_no_sense_are_refused():
    for method, name, values in (
        (Smoothed, "smoothing", (-0.1, 1.1)),
        (GeneralisedCE, "q", (0, 1.01, -0.5)),
        (Decayed, "decay", (-1, float("inf"))),
    ):
        for value in values:
            with refused(f"{name}: got"):
                method(value)
    assert Smoothed(1).smoothing == GeneralisedCE(1).q == 1


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_losses_map_over_their_number(method):
    """It is a leaf, and side by side is as one by one."""
    ((name, value),) = method.hyper().items()
    assert (
        jax.tree.leaves(method) == [value]
        and method.is_fresh
        and not method.needs_forget
        and method.title
    )
    values = jnp.array([value, value / 2])
    together = jax.vmap(lambda value: value_and_gradient(jax.tree.map(lambda _: value, method)))(
        values
    )
    for place, single in enumerate((value, value / 2)):
        expected = value_and_gradient(replace(method, **{name: single}))
        assert_trees_equal(
            jax.tree.map(lambda leaf, place=place: leaf[place], together), expected, atol=1e-6
        )


# ---- estimators ----


def test_the_nearest_mean_by_hand():
    """Means (1, 0) and (3, 4): the midpoint (2, 2), and the boundary at a right angle to (2, 4)."""
    fitted = NearestMean().fit(np.array([[0, 0], [2, 0], [3, 3], [3, 5]]), np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(
        fitted.predict(np.array([[2, 1.9], [2, 2.1], [6, 0.1], [-6, 5.9]])), [0, 1, 1, 0]
    )


def test_neighbours_by_hand():
    """On a line; three neighbours outvote the nearest; more than there are samples are all of
    them."""
    x, y = np.array([[0.0], [1], [2], [10], [11]]), np.array([1, 0, 0, 1, 1])
    at = np.array([[-1.0], [2.5], [9]])
    for k, expected in ((1, [1, 0, 1]), (3, [0, 0, 1]), (5, [1, 1, 1]), (31, [1, 1, 1])):
        np.testing.assert_array_equal(Neighbours(k).fit(x, y).predict(at), expected)
    with refused("k: got 0"):
        Neighbours(0)


@pytest.mark.parametrize("estimator", [NearestMean(), Neighbours(3)], ids=repr)
def test_complex_inputs_are_their_parts(estimator):
    """The classes differ in the imaginary part alone."""
    split = Split(*random_split(20, 3, complex_states=True))
    x = split.x.real + 1j * (np.abs(split.x.imag) + 1) * np.where(split.y, 1, -1)[:, None]
    parts = np.concatenate([x.real, x.imag], axis=1)
    predicted = estimator.fit(x, split.y).predict(x)
    np.testing.assert_array_equal(predicted, split.y)
    np.testing.assert_array_equal(predicted, estimator.fit(parts, split.y).predict(parts))


def test_settings_of_estimators():
    assert [each.k for each in Neighbours().settings()] == [1, 5, 15, 31]
    assert {each.label for each in Neighbours().settings()} == {"nearest neighbours"}
    assert [each.settings() for each in (NearestMean(), ThresholdOnZZ())] == [
        (NearestMean(),),
        (ThresholdOnZZ(),),
    ]
    assert {each.family for each in ESTIMATORS} == {"Trivial"}


def test_correlations_by_hand():
    """|0000>, |0101>, |0011>, |0001>; a superposition, not normalised, has the mean, whatever its
    phases."""
    states = np.zeros((5, 16), complex)
    for row, place in enumerate((0b0000, 0b0101, 0b0011, 0b0001)):
        states[row, place] = 1
    states[4, [0b0000, 0b0101]] = 2, 2j
    np.testing.assert_allclose(ring_correlation(states)[:, 0], [1, -1, 0, 0, 0], atol=1e-12)
    states[4, 0b0101] = 4j
    np.testing.assert_allclose(ring_correlation(states)[4], -0.6, atol=1e-12)


def test_the_correlation_is_that_of_the_plain_operators():
    x, _ = random_split(5, 32, complex_states=True)
    z, total = np.diag([1.0, -1]), 0
    for site in range(5):
        factors = [z if each in (site, (site + 1) % 5) else np.eye(2) for each in range(5)]
        operator = np.eye(1)
        for factor in factors:
            operator = np.kron(operator, factor)
        total = total + np.einsum("ni,ij,nj->n", x.conj(), operator, x).real / 5
    np.testing.assert_allclose(ring_correlation(x)[:, 0], total, atol=1e-6)


def test_a_threshold_on_the_correlation_is_one_on_the_coupling():
    """It falls with Δ all along the data, so the stump is right on the states that are held out."""
    data = load_xxz(n_sites=6, gauge="random_phase")
    for split in (data.train, data.val):
        assert np.all(np.diff(ring_correlation(split.x)[:, 0]) < 0)
    fitted = ThresholdOnZZ().fit(*data.train)
    np.testing.assert_array_equal(fitted.predict(data.val.x), data.val.y)
    upside_down = ThresholdOnZZ().fit(data.train.x, 1 - data.train.y)
    np.testing.assert_array_equal(upside_down.predict(data.val.x), 1 - data.val.y)


@pytest.mark.parametrize("width", [1, 2, 6, 12])
def test_widths_that_are_no_ring_are_refused(width):
    with refused(r"x: got shape \(4, "):
        ThresholdOnZZ().fit(np.ones((4, width)), np.array([0, 1, 0, 1]))


def test_states_of_norm_0_are_refused():
    with refused("x: got a state of norm 0"):
        ring_correlation(np.zeros((2, 4)))
