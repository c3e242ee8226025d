"""Noise and shots: held to TensorCircuit's density matrices, to the noiseless circuit, and to
binomial statistics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import refused

from datar import Split, load_mnist
from foundation.quantum import circuits
from foundation.quantum import device as hardware
from foundation.quantum.device import PAIRS, PAULIS, Noise, noisy_expectation
from models import QNN, train

NOISE = Noise(0.03, 0.07, 0.02)
# Compiled whole: operation by operation, each is a program of its own.
noisy = jax.jit(noisy_expectation, static_argnames=("noise", "rotations", "entangler"))
ANSATZE = [("xyx", "rzz"), ("xy", "rzz"), ("xyx", "cnot"), ("xy", "cnot")]


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def random_states(n, n_qubits, seed):
    generator = np.random.default_rng(seed)
    states = generator.normal(size=(n, 2**n_qubits)) + 1j * generator.normal(size=(n, 2**n_qubits))
    return states / np.linalg.norm(states, axis=1, keepdims=True)


def angles(n_qubits, depth, rotations="xyx", entangler="rzz", seed=0):
    shape = (depth, n_qubits, circuits.parameters_per_qubit(rotations, entangler))
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def noisy_circuit(params, state, noise, rotations, entangler):
    """Gate by gate and channel by channel, by TensorCircuit."""
    depth, n, _ = params.shape
    circuit = circuits.tensorcircuit_on_jax().DMCircuit(n, inputs=jnp.asarray(state, complex))
    one = [
        np.sqrt(1 - noise.p1) * PAULIS[0],
        *(np.sqrt(noise.p1 / 3) * pauli for pauli in PAULIS[1:]),
    ]
    two = [np.sqrt(1 - noise.p2) * PAIRS[0], *(np.sqrt(noise.p2 / 15) * pair for pair in PAIRS[1:])]
    for layer in range(depth):
        for qubit in range(n):
            for place, axis in enumerate(rotations):
                getattr(circuit, f"r{axis}")(qubit, theta=params[layer, qubit, place])
                circuit.general_kraus(one, qubit)
        for qubit in range(n):
            bond = qubit, (qubit + 1) % n
            circuit.rzz(
                *bond, theta=params[layer, qubit, -1]
            ) if entangler == "rzz" else circuit.cnot(*bond)
            circuit.general_kraus(two, *bond)
    return circuit


@partial(jax.jit, static_argnums=(2, 3, 4))
def by_density_matrix(params, state, noise, rotations, entangler):
    """A noisy device's mean reading of Z on the last qubit."""
    circuit = noisy_circuit(params, state, noise, rotations, entangler)
    return (1 - 2 * noise.readout) * circuit.expectation_ps(z=[params.shape[1] - 1]).real


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def outcomes_by_density_matrix(params, state, noise, rotations, entangler, measured):
    """Probabilities with which a noisy device reads the bit strings of the last qubits."""
    density = noisy_circuit(params, state, noise, rotations, entangler).densitymatrix()
    of_strings = jnp.diagonal(density).real.reshape((-1,) + (2,) * measured).sum(axis=0)
    flips = jnp.asarray([[1 - noise.readout, noise.readout], [noise.readout, 1 - noise.readout]])
    for axis in range(measured):
        of_strings = jnp.moveaxis(jnp.tensordot(flips, of_strings, (1, axis)), 0, axis)
    return of_strings.reshape(-1)


@pytest.mark.parametrize(
    ("n_qubits", "depth", "rotations", "entangler"),
    [
        (2, 2, "xyx", "rzz"),
        (3, 2, "xyx", "rzz"),
        (5, 2, "xy", "rzz"),
        (2, 2, "xyx", "cnot"),
        (4, 1, "xy", "cnot"),
    ],
)
def test_a_noisy_expectation_is_that_of_density_matrices(n_qubits, depth, rotations, entangler):
    """Cones that are the ring and cones that are not; values and gradients."""
    params = angles(n_qubits, depth, rotations, entangler)
    (state,) = random_states(1, n_qubits, seed=1)

    def ours(params):
        return noisy(
            params, jnp.asarray(state)[None], NOISE, rotations=rotations, entangler=entangler
        )[0]

    def theirs(params):
        return by_density_matrix(params, state, NOISE, rotations, entangler)

    assert ours(params) == pytest.approx(float(theirs(params)), abs=1e-10)
    if n_qubits == 2:
        np.testing.assert_allclose(
            jax.jit(jax.grad(ours))(params), jax.jit(jax.grad(theirs))(params), atol=1e-10
        )


def test_six_qubits_in_a_cone_of_three():
    params = angles(6, 2)
    states = random_states(1, 6, seed=2)
    expected = [by_density_matrix(params, state, NOISE, "xyx", "rzz") for state in states]
    np.testing.assert_allclose(noisy(params, jnp.asarray(states), NOISE), expected, atol=1e-10)
    reduced = circuits.reduce_states(jnp.asarray(states), 2)
    np.testing.assert_allclose(noisy(params, reduced, NOISE), expected, atol=1e-10)


@pytest.mark.parametrize(("rotations", "entangler"), ANSATZE)
@pytest.mark.parametrize(("n_qubits", "depth", "real"), [(2, 3, True), (5, 2, False), (6, 4, True)])
def test_without_noise_it_is_the_circuit(rotations, entangler, n_qubits, depth, real):
    params = angles(n_qubits, depth, rotations, entangler, seed=depth)
    states = random_states(3, n_qubits, seed=n_qubits)
    states = states.real / np.linalg.norm(states.real, axis=1, keepdims=True) if real else states
    how = {"rotations": rotations, "entangler": entangler}
    expected = jax.jit(partial(circuits.expectation, **how))(params, jnp.asarray(states))
    np.testing.assert_allclose(
        noisy(params, jnp.asarray(states), Noise(), **how), expected, atol=1e-10
    )


@pytest.mark.parametrize(
    "noise", [Noise(p1=0.75), Noise(p2=15 / 16), Noise(readout=0.5)], ids=lambda own: own.label
)
def test_noise_that_leaves_nothing_leaves_nothing(noise):
    """A Pauli or none, each as likely, after every gate; a bit that is read by a coin."""
    states = jnp.asarray(random_states(4, 4, seed=3))
    np.testing.assert_allclose(noisy(angles(4, 2), states, noise), 0, atol=1e-12)


def test_readout_alone_is_a_factor():
    states = jnp.asarray(random_states(4, 4, seed=3))
    expected = 0.9 * circuits.expectation(angles(4, 2), states)
    np.testing.assert_allclose(
        noisy(angles(4, 2), states, Noise(readout=0.05)), expected, atol=1e-12
    )


# ---- more than two classes ----


@pytest.mark.parametrize(
    ("n_qubits", "depth", "n_outcomes", "entangler"),
    [(2, 2, 3, "rzz"), (3, 1, 4, "rzz"), (4, 2, 3, "rzz"), (3, 2, 8, "rzz"), (3, 2, 4, "cnot")],
)
def test_noisy_outcomes_are_those_of_density_matrices(n_qubits, depth, n_outcomes, entangler):
    """Cones that are the ring and cones that are not; values and gradients."""
    params = angles(n_qubits, depth, entangler=entangler)
    (state,) = random_states(1, n_qubits, seed=1)
    measured = circuits.measured_qubits(n_outcomes)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=n_outcomes))
    found = jax.jit(
        hardware.noisy_probabilities, static_argnums=(2, 3), static_argnames="entangler"
    )

    def ours(params):
        of_state = found(params, jnp.asarray(state)[None], NOISE, n_outcomes, entangler=entangler)
        return of_state[0] @ weights

    def theirs(params):
        every = outcomes_by_density_matrix(params, state, NOISE, "xyx", entangler, measured)
        return every[:n_outcomes] @ weights

    value, gradient = jax.jit(jax.value_and_grad(ours))(params)
    expected, slope = jax.jit(jax.value_and_grad(theirs))(params)
    assert float(value) == pytest.approx(float(expected), abs=1e-10)
    np.testing.assert_allclose(gradient, slope, atol=1e-10)


def test_without_noise_outcomes_are_the_circuits():
    params, states = angles(4, 3), jnp.asarray(random_states(3, 4, seed=8))
    expected = circuits.probabilities(params, states, 5)
    found = hardware.noisy_probabilities(params, states, Noise(), 5)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    two = hardware.noisy_probabilities(params, states, NOISE, 2)
    np.testing.assert_allclose(two[:, 0] - two[:, 1], noisy(params, states, NOISE), atol=1e-10)
    np.testing.assert_allclose(two.sum(axis=1), 1, atol=1e-10)


def test_shots_of_three_classes_are_multinomial():
    """4,000 draws at 50 shots: means within 5 standard errors, covariances of one measurement."""
    model, states = QNN(3, 2, shots=50, n_classes=3), jnp.asarray(random_states(1, 3, seed=5))
    params, scale = angles(3, 2), 7.5
    exact = np.asarray(QNN(3, 2, n_classes=3).logits(params, states)[0]) / scale
    assert 0.01 < exact.sum() < 0.99  # a fourth bit string takes the rest
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = jax.jit(jax.vmap(lambda key: model.logits(params, states, key=key)[0]))
    drawn = np.asarray(draw(keys)) / scale
    covariance = (np.diag(exact) - np.outer(exact, exact)) / 50
    assert (np.abs(drawn.mean(axis=0) - exact) < 5 * np.sqrt(np.diag(covariance) / 4000)).all()
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.1 * covariance.max())
    np.testing.assert_allclose(drawn * 50, np.round(drawn * 50), atol=1e-6)


def test_shifted_gradients_of_three_classes_have_the_mean_that_they_should():
    model, bare = (QNN(3, 2, n_classes=3, noise=NOISE, shots=shots) for shots in (64, 0))
    params, states = angles(3, 2), jnp.asarray(random_states(2, 3, seed=6))
    y = jnp.asarray([0, 2])

    def loss(params, model, **key):
        return (model.logits(params, states, **key)[jnp.arange(2), y] * jnp.asarray([1, -2])).sum()

    exact = np.asarray(jax.jit(jax.grad(lambda params: loss(params, bare)))(params))
    of_key = jax.grad(lambda params, key: loss(params, model, key=key))
    keys = jax.random.split(jax.random.key(1), 1500)
    drawn = np.asarray(jax.jit(jax.vmap(of_key, (None, 0)))(params, keys))
    spread = drawn.std(axis=0) / np.sqrt(1500)
    assert (np.abs(drawn.mean(axis=0) - exact) < 5 * spread + 1e-12).all()
    places = {tuple(place) for place in model.acting_angles.tolist()}
    assert places >= {tuple(place) for place in np.argwhere(np.abs(exact) > 1e-9).tolist()}


# ---- which angles act ----


@pytest.mark.parametrize(("rotations", "entangler"), ANSATZE)
@pytest.mark.parametrize(("n_qubits", "depth"), [(2, 2), (5, 3), (6, 2)])
def test_the_angles_that_act_are_those_with_a_gradient(n_qubits, depth, rotations, entangler):
    params = angles(n_qubits, depth, rotations, entangler)
    states = jnp.asarray(random_states(2, n_qubits, seed=4))
    how = {"rotations": rotations, "entangler": entangler}
    gradient = jax.jit(jax.grad(lambda params: circuits.expectation(params, states, **how).sum()))(
        params
    )
    found = {
        tuple(place)
        for place in hardware.acting_angles(n_qubits, depth, rotations, entangler).tolist()
    }
    moving = {tuple(place) for place in np.argwhere(np.abs(gradient) > 1e-12).tolist()}
    assert moving <= found and (moving == found or entangler == "cnot")


def test_the_published_circuit_has_135():
    assert len(QNN().acting_angles) == 135


# ---- shots ----


def test_shots_are_binomial():
    """4,000 draws at 100 shots: the mean within 5 standard errors, the variance (1 - z²) / 100
    within a tenth."""
    model, states = QNN(3, 2, shots=100), jnp.asarray(random_states(1, 3, seed=5))
    params = angles(3, 2)
    exact = float(QNN(3, 2).logits(params, states)[0]) / 5
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = (
        np.asarray(jax.jit(jax.vmap(lambda key: model.logits(params, states, key=key)[0]))(keys))
        / 5
    )
    variance = (1 - exact**2) / 100
    assert abs(drawn.mean() - exact) < 5 * np.sqrt(variance / 4000)
    assert drawn.var() == pytest.approx(variance, rel=0.1)
    # whole counts
    np.testing.assert_allclose((drawn + 1) * 50, np.round((drawn + 1) * 50), atol=1e-6)


@pytest.mark.parametrize("noise", [None, NOISE], ids=["exact", "noisy"])
def test_gradients_by_parameter_shift_have_the_mean_and_the_variance_that_they_should(noise):
    """Of a weighted sum over samples: of each angle (f+ - f-) / 2, two binomials; of those that are
    idle nothing."""
    shots, weights = 64, jnp.asarray([0.7, -0.4])
    model, bare = QNN(4, 2, shots=shots, noise=noise), QNN(4, 2, noise=noise)
    params, states = angles(4, 2), jnp.asarray(random_states(2, 4, seed=6))

    def weighted(model, params, **key):
        return weights @ model.logits(params, states, **key) / 5

    exact = np.asarray(jax.jit(jax.grad(lambda params: weighted(bare, params)))(params))
    expectation = jax.jit(lambda params: bare.logits(params, states) / 5)
    keys = jax.random.split(jax.random.key(1), 1500)
    drawn = np.asarray(
        jax.jit(
            jax.vmap(jax.grad(lambda params, key: weighted(model, params, key=key)), (None, 0))
        )(params, keys)
    )
    variance = np.zeros_like(exact)
    for place in map(tuple, model.acting_angles):
        for sign in (1, -1):
            shifted = np.asarray(expectation(params.at[place].add(sign * np.pi / 2)))
            variance[place] += (np.asarray(weights) ** 2 * (1 - shifted**2)).sum() / shots / 4
    assert (np.abs(drawn.mean(axis=0) - exact) < 5 * np.sqrt(variance / 1500) + 1e-12).all()
    acting = variance > 0
    np.testing.assert_allclose(drawn.var(axis=0)[acting], variance[acting], rtol=0.25)


def test_spsa_points_along_the_gradient_in_the_mean():
    """To the order of its step; two circuits in place of two for each angle."""
    model = QNN(3, 1, shots=2000, gradient="spsa")
    params, states = angles(3, 1), jnp.asarray(random_states(2, 3, seed=7))
    keys = jax.random.split(jax.random.key(2), 3000)
    loss = lambda params, key: model.logits(params, states, key=key).sum() / 5  # noqa: E731
    drawn = np.asarray(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(params, keys))
    exact = np.asarray(
        jax.jit(jax.grad(lambda params: QNN(3, 1).logits(params, states).sum() / 5))(params)
    )
    spread = drawn.std(axis=0) / np.sqrt(3000)
    assert (np.abs(drawn.mean(axis=0) - exact) < 5 * spread + 0.01 * np.abs(exact).max()).all()
    assert hardware.executions(10, 135, 100, "spsa") == 3000
    assert hardware.executions(10, 135, 100) == 271_000


def test_a_model_with_shots_and_noise_learns():
    """Two classes that one qubit tells apart, from 200 shots of noisy gates."""
    generator = np.random.default_rng(0)
    y = np.arange(40) % 2
    turn = np.where(y == 1, 0.3, np.pi - 0.3) + 0.1 * generator.normal(size=40)
    x = np.stack([np.cos(turn / 2), np.sin(turn / 2), 0 * turn, 0 * turn], axis=1).astype(
        np.float32
    )
    model = QNN(2, 1, shots=200, noise=Noise(0.001, 0.01, 0.01))
    params = train(
        model,
        Split(x, y.astype(np.int32)),
        epochs=60,
        batch_size=20,
        learning_rate=0.1,
        key=jax.random.key(0),
    )
    logits = model.logits(params, model.prepare(x), key=jax.random.key(1))
    assert np.mean((np.asarray(logits) > 0) == y) > 0.95


# ---- what makes no sense ----


def test_states_that_are_none_are_refused_in_one_line():
    images = load_mnist(source="embedded", per_class=20, encoding="columnwise")
    for model in (QNN(shots=100), QNN(noise=NOISE)):
        with refused("^x: got samples of norm 2.* to .*, allowed: norm 1, of quantum states"):
            model.prepare(images.train.x)
    QNN().prepare(images.train.x)  # as published


@pytest.mark.parametrize(
    ("named", "call"),
    [
        ("shots", lambda: QNN(shots=-1)),
        ("shots", lambda: QNN(shots=1.5)),
        ("p1", lambda: Noise(p1=1.5)),
        ("readout", lambda: Noise(readout=float("nan"))),
        ("gradient", lambda: QNN(shots=9, gradient="guess")),
        ("key", lambda: QNN(2, 1, shots=9).logits(jnp.zeros((1, 2, 4)), jnp.eye(4)[:2])),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(named, call):
    with refused(f"^{named}: got "):
        call()


def test_labels_say_what_the_device_is():
    model = QNN(shots=1024, noise=Noise(1e-4, 1e-3, 0.01))
    assert model.label == "QNN[depth=6,shots=1024,p1=0.0001,p2=0.001,readout=0.01]"
    assert QNN().label == "QNN[depth=6]" and not QNN().is_random and model.is_random
