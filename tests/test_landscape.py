"""The landscape against dense matrices, finite differences, the parameter-shift rule and ARPACK."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_split, refused
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh

from datar import Split
from foundation.measures.metrics import cross_entropy
from foundation.quantum.circuits import ansatz
from landscape import (
    complex_trace,
    dead,
    extreme_eigenvalues,
    filter_normalised_directions,
    hessian,
    hessian_trace,
    loss_function,
    loss_slice,
    row_space,
)
from models import MLP, QNN, train

DOUBLE = jax.config.jax_enable_x64  # set in the process that test_double_precision starts
only_double = pytest.mark.skipif(not DOUBLE, reason="finite differences need double precision")
TOLERANCE = 1e-10 if DOUBLE else 2e-5

KEY = jax.random.key(0)
MLPS = [(5, ()), (30, (8, 2)), (7, (5, 4, 3))]  # (n_features, hidden)
# (n_qubits, depth, rotations, entangler): light cones smaller than the ring, as large, and
# saturated
QNNS = [
    (2, 1, "xyx", "rzz"),
    (6, 2, "xyx", "rzz"),
    (3, 3, "xy", "rzz"),
    (3, 2, "xyx", "cnot"),
    (10, 5, "xy", "cnot"),
    (10, 6, "xyx", "rzz"),
]
# what the stochastic tests share, compiled once: (n_features, hidden, n)
NETWORK = (10, (6, 3), 30)
LANCZOS = {"k": 2, "steps": 60}


@pytest.fixture(scope="module")
def trained(mnist):
    """MLP (8, 2) trained on the embedded images, and 100 held-out images."""
    model = MLP(1024, (8, 2))
    params = train(
        model, mnist.train, epochs=30, batch_size=32, learning_rate=0.01, key=jax.random.key(1)
    )
    held_out = Split(mnist.val.x[::5], mnist.val.y[::5])
    assert not dead(model, params, held_out)
    return model, params, held_out


def mlp_case(n_features, hidden, n=12):
    """A network with biases, on inputs as large as its weights."""
    model = MLP(n_features, hidden)
    flat, unflatten = ravel_pytree(model.init(KEY))
    split = random_split(n, n_features, seed=n_features)
    params = unflatten(flat + jax.random.normal(KEY, flat.shape) / 2)
    return model, params, Split(split.x.astype(flat.dtype) * n_features**0.5, split.y)


def qnn_case(n_qubits, depth, rotations, entangler, n=10):
    """Angles of all sizes, and states that are complex at even depths and not normalised."""
    model = QNN(n_qubits, depth, rotations, entangler)
    generator = np.random.default_rng([n_qubits, depth])
    params = jnp.asarray(generator.uniform(-np.pi, np.pi, model.init(KEY).shape))
    split = random_split(n, 2**n_qubits, seed=depth, complex_states=depth % 2 == 0)
    return model, params, Split(split.x * generator.uniform(0.3, 1.5, (n, 1)), split.y)


def reverse_over_reverse(model, params, split):
    """The obvious Hessian, of a model small enough for it."""
    flat, unflatten = ravel_pytree(params)
    loss = loss_function(model, split)
    return jax.jit(jax.jacrev(jax.jacrev(lambda flat: loss(unflatten(flat)))))(flat)


def finite_differences(model, params, split, step):
    """Central differences of the gradient: (p, p), one row per parameter that moves."""
    flat, unflatten = ravel_pytree(params)
    gradient = jax.jit(
        lambda flat: ravel_pytree(jax.grad(loss_function(model, split))(unflatten(flat)))[0]
    )
    moves = step * np.eye(flat.size)
    return np.array(
        [(gradient(flat + move) - gradient(flat - move)) / (2 * step) for move in moves]
    )


def shift_rule(model, params, split, rows, columns):
    """Entries [rows, columns] of the Hessian from logits at shifted angles: no differentiation.

    d_j z = (z(+) - z(-)) / 2 and d_j d_k z = (z(++) - z(+-) - z(-+) + z(--)) / 4 with shifts of
    pi/2, and the chain rule through the cross-entropy.
    """
    flat = params.ravel()
    one, other = np.pi / 2 * np.eye(flat.size)[rows], np.pi / 2 * np.eye(flat.size)[columns]
    shifts = np.stack(
        [one, -one, other, -other, one + other, one - other, other - one, -one - other], axis=1
    )

    def logits(shift):
        return model.logits((flat + shift).reshape(params.shape), split.x)

    z = jax.jit(lambda shifts: jax.lax.map(logits, shifts, batch_size=64))(
        shifts.reshape(-1, flat.size)
    )
    z = np.moveaxis(np.asarray(z, float).reshape(len(rows), 8, -1), 1, 0)  # (8, pairs, n)
    slopes = (z[0] - z[1]) / 2 * (z[2] - z[3]) / 2
    bends = (z[4] - z[5] - z[6] + z[7]) / 4
    p = np.asarray(
        jax.jit(lambda params: jax.nn.sigmoid(model.logits(params, split.x)))(params), float
    )
    return (slopes * p * (1 - p) + bends * (p - split.y)).mean(axis=1)


def assert_close(actual, expected, tolerance=TOLERANCE):
    """Equal to a tolerance relative to the largest entry."""
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * max(1e-3, np.abs(expected).max())
    )


# ---- the Hessian and its trace ----


@pytest.mark.parametrize("case", MLPS)
def test_mlp_hessian_agrees_with_reverse_over_reverse(case):
    expected = reverse_over_reverse(*mlp_case(*case))
    assert_close(hessian(*mlp_case(*case)), expected)
    trace, error = hessian_trace(*mlp_case(*case))
    np.testing.assert_allclose(
        trace, np.trace(expected), rtol=0, atol=TOLERANCE * np.abs(np.diag(expected)).sum()
    )
    assert error == 0


@pytest.mark.parametrize("case", QNNS)
def test_qnn_hessian_agrees_with_the_parameter_shift_rule(case):
    """All entries of the small ones; of the large ones some on the diagonal and some anywhere."""
    model, params, split = qnn_case(*case)
    rows, columns = np.triu_indices(params.size)
    if len(rows) > 400:
        chosen = np.random.default_rng(0).choice(params.size, (2, 60))
        rows, columns = (
            np.concatenate([chosen[0], chosen[0]]),
            np.concatenate([chosen[0], chosen[1]]),
        )
    matrix = np.asarray(jax.jit(lambda params: hessian(model, params, split))(params))
    np.testing.assert_array_equal(matrix, matrix.T)
    assert_close(matrix[rows, columns], shift_rule(model, params, split, rows, columns))


def hessian_vector_product(model, params, split):
    """The function v -> H v, both (p,), by reverse-over-reverse differentiation."""
    flat, unravel = ravel_pytree(params)
    loss = loss_function(model, split)

    @jax.jit
    def product(vector):
        slope = lambda flat: jax.grad(lambda flat: loss(unravel(flat)))(flat) @ vector  # noqa: E731
        return jax.grad(slope)(flat)

    return product


@only_double
@pytest.mark.parametrize("case", [mlp_case(*MLPS[1]), qnn_case(*QNNS[2]), qnn_case(*QNNS[3])])
def test_hessian_agrees_with_finite_differences(case):
    expected = finite_differences(*case, step=1e-5)
    assert_close(hessian(*case), expected, 1e-7)
    vector = np.random.default_rng(0).normal(size=len(expected))
    assert_close(hessian_vector_product(*case)(vector), expected @ vector, 1e-7)


def test_qnn_trace_is_the_sum_of_its_eigenvalues():
    case = qnn_case(*QNNS[1])
    trace, error = hessian_trace(*case)
    eigenvalues = np.linalg.eigvalsh(np.asarray(hessian(*case), float))
    assert error == 0
    np.testing.assert_allclose(
        trace, eigenvalues.sum(), rtol=0, atol=TOLERANCE * np.abs(eigenvalues).sum()
    )


@pytest.mark.parametrize("case", QNNS[:4])
def test_complex_trace_agrees_with_the_plain_circuit_at_complex_angles(case):
    """The published Hessian as published: over (Re, Im) of angles given to TensorCircuit as complex
    numbers."""
    model, params, split = qnn_case(*case)
    sign = np.resize([1, -1], 2**model.n_qubits)

    def loss(parts):
        angles = jax.lax.complex(*parts.reshape(2, *params.shape))
        circuit = {"rotations": model.rotations, "entangler": model.entangler}
        states = jax.vmap(lambda state: ansatz(angles, state, **circuit).state())(
            jnp.asarray(split.x)
        )
        return cross_entropy(model.scale * (jnp.abs(states) ** 2 @ sign), split.y)

    parts = jnp.concatenate([params.ravel(), jnp.zeros(params.size)])
    diagonal = np.diag(jax.jit(jax.hessian(loss))(parts))
    np.testing.assert_allclose(
        complex_trace(model, params, split), diagonal.sum(), atol=TOLERANCE * np.abs(diagonal).sum()
    )
    real = hessian_trace(model, params, split)[0]
    np.testing.assert_allclose(
        real, diagonal[: params.size].sum(), atol=TOLERANCE * np.abs(diagonal).sum()
    )


def test_complex_trace_refuses_what_it_cannot_take():
    model, params, split = qnn_case(*QNNS[0])
    with refused("split: got x of shape"):
        complex_trace(model, params, Split(model.prepare(split.x), split.y))


def test_reduced_states_and_a_circuit_of_ones_own_have_hessians():
    model, params, split = qnn_case(*QNNS[0])
    expected = hessian(model, params, split)
    prepared = Split(model.prepare(split.x), split.y)
    assert prepared.x.ndim == 3
    assert_close(hessian(model, params, prepared), expected)
    own = QNN(2, ansatz=lambda params, inputs: model.circuit(params, inputs), shape=params.shape)
    assert_close(hessian(own, params, split), expected)


def test_a_hessian_is_compiled_once_for_all_runs():
    model, params, split = qnn_case(*QNNS[0])
    hessian(model, params, split)
    compiled = hessian._cache_size()
    hessian(QNN(*QNNS[0]), params + 1, Split(split.x[::-1], 1 - split.y))
    assert hessian._cache_size() == compiled


def test_mlp_trace_is_the_dense_trace_of_8221_parameters(trained):
    product = hessian_vector_product(*trained)
    n_parameters = ravel_pytree(trained[1])[0].size
    assert n_parameters == 8221

    def entry(i):
        return product(jnp.zeros(n_parameters).at[i].set(1))[i]

    diagonal = jax.lax.map(entry, jnp.arange(n_parameters), batch_size=64)
    trace, _ = hessian_trace(*trained)
    np.testing.assert_allclose(trace, np.sum(diagonal, dtype=float), rtol=1e-4)


def test_traces_of_many_runs_at_once():
    model, params, split = mlp_case(*NETWORK)
    runs = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), params)
    together = jax.vmap(lambda params: hessian_trace(model, params, split)[0])(runs)
    alone = [
        hessian_trace(model, jax.tree.map(lambda leaf, run=run: leaf[run], runs), split)[0]
        for run in range(3)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


# ---- spectra ----


def test_the_row_space_keeps_logits_and_spectrum():
    model, params, split = mlp_case(*MLPS[1])
    reduced, reduced_params, reduced_split = row_space(model, params, split)
    assert reduced == MLP(12, model.hidden)
    assert_close(reduced.logits(reduced_params, reduced_split.x), model.logits(params, split.x))
    eigenvalues, kept = (
        np.linalg.eigvalsh(np.asarray(hessian(*each), float))
        for each in ((model, params, split), (reduced, reduced_params, reduced_split))
    )
    zeros = np.zeros(len(eigenvalues) - len(kept))
    assert_close(np.sort(np.concatenate([kept, zeros])), eigenvalues)


def test_extreme_eigenvalues_of_8221_parameters(trained):
    """Against the dense matrix of the row space, which has all non-zero eigenvalues, and against
    ARPACK."""
    found = extreme_eigenvalues(*trained, k=3, key=KEY)
    dense = np.linalg.eigvalsh(np.asarray(hessian(*row_space(*trained)), float))
    dense = np.sort(np.concatenate([dense, np.zeros(8221 - len(dense))]))
    product = hessian_vector_product(*trained)
    operator = LinearOperator(
        (8221, 8221), lambda v: np.asarray(product(jnp.asarray(v, jnp.float32).ravel()), float)
    )
    arpack = np.sort(
        eigsh(
            operator, k=6, which="BE", v0=np.ones(8221), ncv=80, tol=1e-4, return_eigenvectors=False
        )
    )
    for reference in (dense[[0, 1, 2, -3, -2, -1]], arpack):
        assert np.all(np.abs(found.values - reference) <= found.errors)
    assert np.all(found.errors < 1e-3 * dense[-1])
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.eye(6), atol=1e-3)
    for value, error, vector in zip(*found, strict=True):
        assert np.linalg.norm(product(vector) - value * vector) <= 1.01 * error


def test_extreme_eigenvalues_agree_with_dense():
    case = mlp_case(*NETWORK)
    dense = np.linalg.eigvalsh(np.asarray(hessian(*case), float))
    found = extreme_eigenvalues(*case, **LANCZOS, key=KEY)
    assert np.all(np.abs(found.values - dense[[0, 1, -2, -1]]) <= found.errors)
    assert np.all(found.errors < 1e-3 * dense[-1])


def test_too_few_steps_show_in_the_error():
    case = mlp_case(*NETWORK)
    dense = np.linalg.eigvalsh(np.asarray(hessian(*case), float))
    rough = extreme_eigenvalues(*case, k=1, steps=3, key=KEY)
    assert np.all(np.abs(rough.values[:, None] - dense).min(axis=1) <= rough.errors)
    assert np.all(rough.errors > 1e-3 * dense[-1])
    with refused("k: got 3, allowed: 1 to 2"):
        extreme_eigenvalues(*case, k=3, steps=5, key=KEY)


def test_the_hessian_of_a_dead_network():
    """It is p (1 - p) in the last bias and 0 elsewhere."""
    model, params, split = dead_case()
    p = jax.nn.sigmoid(params[-1][1][0])
    values, errors, _ = extreme_eigenvalues(model, params, split, **LANCZOS, key=KEY)
    np.testing.assert_allclose(values, [0, np.nan, np.nan, p * (1 - p)], atol=1e-6)
    assert np.all(errors[::3] < 1e-5)
    np.testing.assert_allclose(hessian_trace(model, params, split)[0], p * (1 - p), rtol=1e-6)


def test_the_same_key_gives_the_same_bits():
    case = mlp_case(*NETWORK)

    def draws(key):
        yield extreme_eigenvalues(*case, **LANCZOS, key=key).vectors[-1]
        yield filter_normalised_directions(*case[:2], key=key)

    for first, again, other in zip(draws(KEY), draws(KEY), draws(jax.random.key(1)), strict=True):
        np.testing.assert_array_equal(first, again)
        assert np.any(first != other)


# ---- slices ----


def test_directions_have_the_norms_of_the_filters():
    model, params, _ = mlp_case(*NETWORK)
    _, unflatten = ravel_pytree(params)
    directions = filter_normalised_directions(model, params, key=KEY, number=3)
    assert directions.shape == (3, 91)
    for direction in directions:
        for layer, moved in zip(params, unflatten(direction), strict=True):
            np.testing.assert_allclose(
                np.linalg.norm(moved[0], axis=1), np.linalg.norm(layer[0], axis=1), rtol=1e-5
            )
            np.testing.assert_allclose(np.abs(moved[1]), np.abs(layer[1]), rtol=1e-5)


def test_slices_of_rescaled_networks_are_the_same():
    """Filter normalisation takes out the scale that a ReLU network can shift from layer to
    layer."""
    model, params, split = mlp_case(6, (4,))
    (inner, inner_bias), (outer, bias) = params
    rescaled = [(8 * inner, 8 * inner_bias), (outer / 8, bias)]
    losses = [
        loss_slice(
            model,
            each,
            split,
            filter_normalised_directions(model, each, key=KEY),
            radius=0.5,
            points=7,
        ).loss
        for each in (params, rescaled)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_directions_of_a_qnn_are_in_radians():
    model, params, _ = qnn_case(*QNNS[1])
    first, second = filter_normalised_directions(model, params, key=KEY)
    np.testing.assert_allclose([np.mean(first**2), np.mean(second**2)], 1, rtol=1e-5)
    assert abs(first @ second) / params.size < 0.5


@pytest.mark.parametrize("case", [mlp_case(6, (4,)), qnn_case(*QNNS[0])])
def test_a_slice_is_the_loss_at_its_points(case):
    model, params, split = case
    flat, unflatten = ravel_pytree(params)
    directions = filter_normalised_directions(model, params, key=KEY)
    first, second, loss = loss_slice(model, params, split, directions, radius=0.5, points=7)
    np.testing.assert_allclose(first, np.linspace(-0.5, 0.5, 7), atol=1e-7)
    np.testing.assert_array_equal(first, second)
    assert loss.shape == (7, 7)
    loss_at = jax.jit(loss_function(model, split))
    np.testing.assert_allclose(loss[3, 3], loss_at(params), rtol=1e-6)
    for i, j in [(0, 0), (6, 1), (2, 5)]:
        here = unflatten(flat + first[i] * directions[0] + second[j] * directions[1])
        np.testing.assert_allclose(loss[i, j], loss_at(here), rtol=1e-5)


def test_slices_without_a_centre_are_refused():
    model, params, split = mlp_case(5, ())
    directions = filter_normalised_directions(model, params, key=KEY)
    with refused("points: got 4, allowed: odd numbers"):
        loss_slice(model, params, split, directions, radius=1.0, points=4)
    with refused(r"directions: got shape \(1, 6\), allowed: \(2, 6\)"):
        loss_slice(model, params, split, directions[:1], radius=1.0, points=5)


# ---- dead networks ----


def dead_case():
    model, params, split = mlp_case(*NETWORK)
    return model, [params[0], (params[1][0], params[1][1] - 100), params[2]], split


def test_a_dead_network_is_recognised():
    assert dead(*dead_case())
    model, params, split = mlp_case(*NETWORK)
    assert not dead(model, params, split)
    half_dead = [(params[0][0], params[0][1].at[0].add(-100)), *params[1:]]
    assert not dead(model, half_dead, split)
