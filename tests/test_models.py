"""Models against Keras and the plain circuit; training against loops in Python."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import (
    assert_trees_equal,
    random_split,
    refused,
    run_python,
    separable_split,
    trees_differ,
)

from datar import Split
from foundation.measures.metrics import accuracy
from foundation.quantum import circuits
from models import MLP, QNN, Training, fit, train
from studies.quadratic import QuadraticForm

DOUBLE = jax.config.jax_enable_x64  # set in the process that test_double_precision starts
TOLERANCE = 1e-10 if DOUBLE else 1e-5

KEY = jax.random.key(7)
MODELS = [MLP(8, ()), MLP(8, (5, 3)), QNN(3, 2), QNN(3, 2, "xy", "cnot")]
each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.label)


# ---- the MLP ----


def test_mlp_starts_with_glorot_uniform_weights_and_no_biases():
    """|w| < sqrt(6 / (fan_in + fan_out)), filling that range, with a third of its square as
    variance."""
    params = MLP(200, (64, 16)).init(KEY)
    assert [weights.shape for weights, _ in params] == [(64, 200), (16, 64), (1, 16)]
    for weights, biases in params:
        bound = np.sqrt(6 / sum(weights.shape))
        assert biases.shape == weights.shape[:1] and not biases.any()
        assert np.abs(weights).max() <= bound
        standard_error = bound**2 * np.sqrt(4 / 45 / weights.size)
        assert abs(np.mean(np.square(weights)) - bound**2 / 3) < 5 * standard_error
        assert abs(np.mean(weights)) < 5 * bound / np.sqrt(3 * weights.size)
    assert np.abs(params[0][0]).max() > 0.99 * np.sqrt(6 / 264)
    assert trees_differ(params, MLP(200, (64, 16)).init(jax.random.key(8)))


def test_mlp_is_matrix_products_with_relu_between():
    model, (x, _) = MLP(8, (5, 3)), random_split(6, 8)
    # biases of 0 would hide themselves
    params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(KEY))
    (w1, b1), (w2, b2), (w3, b3) = (tuple(map(np.asarray, layer)) for layer in params)
    expected = [w3[0] @ np.maximum(w2 @ np.maximum(w1 @ row + b1, 0) + b2, 0) + b3[0] for row in x]
    np.testing.assert_allclose(model.logits(params, x), expected, rtol=1e-4, atol=1e-6)


def test_mlp_without_hidden_layers_is_linear():
    model, (x, _) = MLP(8, ()), random_split(6, 8)
    ((weights, bias),) = params = [(jnp.arange(8.0)[None], jnp.array([0.5]))]
    np.testing.assert_allclose(model.logits(params, x), x @ weights[0] + bias, rtol=1e-5)
    assert [leaf.shape for leaf in jax.tree.leaves(model.init(KEY))] == [(1, 8), (1,)]


def test_mlp_reads_complex_states_as_real_and_imaginary_parts():
    model, (x, _) = MLP(16, (4,)), random_split(6, 8, complex_states=True)
    params = model.init(KEY)
    parts = np.concatenate([x.real, x.imag], axis=1)
    np.testing.assert_array_equal(model.prepare(x), parts)
    np.testing.assert_array_equal(model.logits(params, x), model.logits(params, parts))
    # it sees the global phase
    assert trees_differ(model.logits(params, x), model.logits(params, 1j * x))


def test_mlp_and_its_training_are_those_of_keras():
    """`to_keras` gives the same logits, and Keras, trained on full batches from there, the same
    parameters.

    Keras adds 1e-7 where Adam divides and Optax 1e-8; here Keras gets 1e-8 too.
    """
    from tensorflow import keras

    split = separable_split(20, 8)
    for model in (MLP(8, ()), MLP(8, (5, 3))):
        params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(KEY))
        np.testing.assert_allclose(
            model.to_keras(params)(split.x)[:, 0],
            model.logits(params, split.x),
            rtol=1e-5,
            atol=1e-6,
        )
    start, end = (
        train(model, split, epochs=epochs, batch_size=0, learning_rate=0.05, key=KEY)
        for epochs in (0, 5)
    )
    assert_trees_equal(start, model.init(jax.random.split(KEY)[0]), rtol=1e-6)  # no epochs, no step
    network = model.to_keras(start)
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    network.compile(optimizer=keras.optimizers.Adam(0.05, epsilon=1e-8), loss=loss)
    network.fit(split.x, split.y[:, None], epochs=5, batch_size=20, shuffle=False, verbose=0)
    for ours, theirs in zip(jax.tree.leaves(end), network.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs.T, rtol=1e-3, atol=1e-4)
    assert trees_differ(start, end)


@pytest.mark.parametrize("floatx", ["float16", "bfloat16", "float64"])
def test_a_users_keras_json_changes_no_logit(floatx):
    from tensorflow import keras

    x, _ = separable_split(20, 8)
    model = MLP(8, (5, 3))
    params = jax.tree.map(lambda leaf: leaf + 0.1, model.init(KEY))
    before = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        network = model.to_keras(params)
    finally:
        keras.config.set_floatx(before)
    np.testing.assert_allclose(network(x)[:, 0], model.logits(params, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("hidden", [(), (5,)])
def test_a_narrow_mlp_trains_as_the_wide_one_where_the_other_features_are_0(hidden):
    """The weights on features that are 0 everywhere stay what they were."""
    model, columns = MLP(8, hidden), np.array([1, 3, 4])
    x, y = random_split(10, 8)
    x[:, np.setdiff1d(np.arange(8), columns)] = 0
    x, y = jnp.asarray(x), jnp.asarray(y)

    def trained(params, x):
        def loss(params, rows, weight, epoch, key):
            return jnp.average(jnp.square(model.logits(params, x[rows]) - y[rows]), weights=weight)

        return fit(loss, params, 10, epochs=5, batch_size=4, learning_rate=0.05, key=KEY)[0]

    wide = model.init(KEY)
    narrow = model.narrow(wide, columns)
    np.testing.assert_array_equal(narrow[0][0], wide[0][0][:, columns])
    assert_trees_equal(model.widen(narrow, columns, wide), wide)
    back = model.widen(trained(narrow, x[:, columns]), columns, wide)
    assert_trees_equal(back, trained(wide, x), rtol=1e-4, atol=1e-6)
    assert trees_differ(back, wide)


def test_narrow_and_widen_work_on_many_runs_at_once():
    """Under vmap and jit with the columns of each run, and on parameters stacked over runs."""
    model, columns = MLP(8, (5,)), np.array([[1, 3, 4], [0, 1, 7]])
    runs = jax.vmap(model.init)(jax.random.split(KEY, 2))

    @jax.jit
    @jax.vmap
    def there_and_back(params, columns):
        narrow = jax.tree.map(lambda leaf: leaf + 1, model.narrow(params, columns))
        return model.widen(narrow, columns, params)

    moved = there_and_back(runs, columns)
    for run in range(2):
        expected = np.array(runs[0][0][run])
        expected[:, columns[run]] += 1
        np.testing.assert_allclose(moved[0][0][run], expected, rtol=1e-6)
        np.testing.assert_allclose(moved[1][0][run], runs[1][0][run] + 1, rtol=1e-6)
    np.testing.assert_array_equal(
        model.narrow(runs, columns[0])[0][0], runs[0][0][:, :, columns[0]]
    )
    assert_trees_equal(model.widen(model.narrow(runs, columns[0]), columns[0], runs), runs)


# ---- the QNN ----


def test_qnn_starts_near_zero():
    params = QNN(10, 12).init(KEY)
    assert params.shape == (12, 10, 4)
    assert abs(np.mean(params)) < 5 * 0.01 / np.sqrt(params.size)
    assert abs(np.std(params) - 0.01) < 5 * 0.01 / np.sqrt(2 * params.size)
    assert QNN(4, 3, "xy", "cnot").init(KEY).shape == (3, 4, 2)


@pytest.mark.parametrize(
    "model", [QNN(2, 2), QNN(2, 1, "xy", "cnot")], ids=lambda model: model.label
)
def test_qnn_logit_is_five_times_z_of_the_circuit_that_can_be_drawn(model):
    (x, _), params = random_split(3, 4, complex_states=True), 40 * model.init(KEY)
    logits = model.logits(params, x)
    for state, logit in zip(x, logits, strict=True):
        z = model.circuit(params, state).expectation_ps(z=[model.n_qubits - 1])
        np.testing.assert_allclose(logit, 5 * z.real, rtol=0, atol=5e-5)
    assert np.abs(logits).max() > 0.05
    names = [gate["name"] for gate in model.circuit(params).to_qir()]
    assert len(names) == model.depth * model.n_qubits * (len(model.rotations) + 1)
    assert names.count(model.entangler) == model.depth * model.n_qubits
    drawing = model.circuit(params).tex()
    assert drawing.count("lstick") == model.n_qubits and drawing.count("gate{rx}") == names.count(
        "rx"
    )


def hardware_efficient(params, inputs):
    """RY on each qubit, a chain of CZ, RX on each qubit."""
    circuit = circuits.tensorcircuit_on_jax().Circuit(2, inputs=inputs)
    for qubit in range(2):
        circuit.ry(qubit, theta=params[0, qubit])
    circuit.cz(0, 1)
    for qubit in range(2):
        circuit.rx(qubit, theta=params[1, qubit])
    return circuit


def test_an_ansatz_of_ones_own():
    """Against its matrices by hand: a QNN with it evaluates, differentiates, trains and draws like
    any other."""
    model, split = QNN(2, ansatz=hardware_efficient, shape=(2, 2)), separable_split(16, 4)
    params = 40 * model.init(KEY)
    assert params.shape == (2, 2) and model.label == "QNN[hardware_efficient]"

    def ry(angle):
        return np.array(
            [[np.cos(angle / 2), -np.sin(angle / 2)], [np.sin(angle / 2), np.cos(angle / 2)]]
        )

    def rx(angle):
        return np.array(
            [
                [np.cos(angle / 2), -1j * np.sin(angle / 2)],
                [-1j * np.sin(angle / 2), np.cos(angle / 2)],
            ]
        )

    (a, b), (c, d) = np.asarray(params, float)
    unitary = np.kron(rx(c), rx(d)) @ np.diag([1, 1, 1, -1]) @ np.kron(ry(a), ry(b))
    probabilities = np.abs(split.x @ unitary.T) ** 2
    np.testing.assert_allclose(
        model.logits(params, split.x), 5 * probabilities @ [1, -1, 1, -1], rtol=0, atol=1e-5
    )
    np.testing.assert_array_equal(model.prepare(split.x), split.x)
    trained = train(model, split, epochs=40, batch_size=0, learning_rate=0.1, key=KEY)
    assert accuracy(model.logits(trained, split.x), split.y) > accuracy(
        model.logits(params, split.x), split.y
    )
    assert len(model.circuit(params).to_qir()) == 5


OWN = """
import jax, numpy as np
from datar import Split
from models import QNN, train

def mine(params, inputs):
    import tensorcircuit
    circuit = tensorcircuit.Circuit(2, inputs=inputs)
    circuit.rx(1, theta=params[0])
    return circuit

model = QNN(2, ansatz=mine, shape=(1,))
split = Split(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 1]))

def run(key):
    return train(model, split, epochs=2, batch_size=3, learning_rate=0.1, key=key)

params = run(jax.random.key(0))
expected = 5 * np.cos(params[0]) * np.array([1, -1, 1, -1])
np.testing.assert_allclose(model.logits(params, split.x), expected, rtol=1e-5)
many = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 2))
assert many.shape == (2, 1) and np.isfinite(many).all()
"""


@pytest.mark.skipif(DOUBLE, reason="a process of its own")
def test_an_ansatz_of_ones_own_needs_no_backend_to_be_set():
    process = run_python("-c", OWN)
    assert process.returncode == 0, process.stderr[-3000:]


# ---- what they have in common ----


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (MLP(8, (5, 3)), 3),
        (MLP(8, ()), 1),
        (QNN(3, 2), 2),
        (QNN(2, ansatz=hardware_efficient, shape=(2, 2)), 2),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_the_last_layers_are_those_next_to_the_output(model, layers):
    """The mask has the structure of the parameters and goes with those of one run and of many."""
    params = model.init(KEY)
    runs = jax.vmap(model.init)(jax.random.split(KEY, 3))
    for k in range(1, layers + 1):
        mask = model.last_layers(params, k)
        chosen = jax.tree.map(lambda keep, leaf: np.broadcast_to(keep, leaf.shape), mask, params)
        if isinstance(model, MLP):
            kept = [all(leaf.all() for leaf in layer) for layer in chosen]
            none = [not any(leaf.any() for leaf in layer) for layer in chosen]
        else:
            kept, none = [layer.all() for layer in chosen], [not layer.any() for layer in chosen]
        assert kept == [False] * (layers - k) + [True] * k and none == [not each for each in kept]
        of_runs = jax.tree.map(
            lambda keep, leaf: np.broadcast_to(keep, leaf.shape), model.last_layers(runs, k), runs
        )
        assert_trees_equal(jax.tree.map(lambda leaf: leaf[1], of_runs), chosen)
    for k in (0, layers + 1):
        with refused("k: got"):
            model.last_layers(params, k)


@each_model
@pytest.mark.parametrize("complex_states", [False, True])
def test_prepared_inputs_are_what_raw_ones_are_turned_into(model, complex_states):
    (x, _), model = (
        random_split(5, 8, complex_states=complex_states),
        _widened(model, complex_states),
    )
    params, inputs = model.init(KEY), model.prepare(x)
    np.testing.assert_array_equal(model.prepare(inputs), inputs)
    assert model.logits(params, x).shape == (5,)
    np.testing.assert_allclose(
        model.logits(params, inputs), model.logits(params, x), rtol=0, atol=1e-5
    )


def _widened(model, complex_states):
    return MLP(16, model.hidden) if complex_states and isinstance(model, MLP) else model


@each_model
def test_equal_models_are_one_to_jax(model):
    """Frozen, and equal and hashed by their fields: a second instance does not compile anew."""
    again = type(model)(**vars(model))
    assert again == model and hash(again) == hash(model)
    with pytest.raises(AttributeError):
        model.depth = 1
    assert_trees_equal(again.init(KEY), model.init(KEY))


@pytest.mark.parametrize(
    ("model", "label"),
    [
        (MLP(1024, (64, 16)), "MLP[64,16]"),
        (MLP(1024, (8,)), "MLP[8]"),
        (MLP(1024, ()), "Logistic"),
        (QNN(), "QNN[depth=6]"),
        (QNN(10, 5, "xy", "cnot"), "QNN[depth=5,xy,cnot]"),
        (QNN(10, 5, "xyx", "cnot"), "QNN[depth=5,xyx,cnot]"),
        (QuadraticForm(1024), "Quadratic[rank=16]"),
    ],
)
def test_labels(model, label):
    assert model.label == label
    assert model.family == label.split("[")[0]


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (MLP, {"n_features": 0}),
        (MLP, {"hidden": (8, 0)}),
        (QNN, {"n_qubits": 1}),
        (QNN, {"depth": 0}),
        (QNN, {"rotations": "xyz"}),
        (QNN, {"entangler": "cz"}),
        (QNN, {"shape": (2, 2)}),
        (QNN, {"ansatz": hardware_efficient}),
        (partial(QuadraticForm, 4), {"rank": 5}),
        (partial(QuadraticForm, 4), {"rank": 0}),
        (QuadraticForm, {"n_features": 0}),
    ],
)
def test_invalid_arguments_are_refused_by_name(kind, arguments):
    (name,) = arguments
    with refused("shape" if name == "ansatz" else name):
        kind(**arguments)


def test_samples_that_do_not_fit_the_register_are_refused():
    with refused(r"shape \(2, 8\), allowed: \(n, 16\)"):
        QNN(4).prepare(np.zeros((2, 8), np.float32))


# ---- training ----


TRAINED = [MLP(8, (5, 3)), QNN(3, 2)]
each_trained = pytest.mark.parametrize("model", TRAINED, ids=lambda model: model.label)


def batches(key, n_samples, epochs, batch_size):
    """The rows of each step, in the order in which `fit` draws them: batches of one size but for
    the last."""
    n_steps = -(-n_samples // batch_size)
    size = -(-n_samples // n_steps)
    for epoch in range(epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), n_samples))
        yield from (order[start : start + size] for start in range(0, n_samples, size))


def assert_same_function(model, actual, expected, *, atol):
    """Two parameter sets give the same logits.

    The parameters themselves say less: Adam moves an angle that has no effect by its rounding
    errors.
    """
    x, _ = random_split(20, 8, seed=5)
    np.testing.assert_allclose(
        model.logits(actual, x), model.logits(expected, x), rtol=0, atol=atol
    )


@each_trained
def test_training_is_a_plain_loop_over_batches(model):
    """Against Optax in a Python loop, with batches of 4 from 10 samples: the last of an epoch holds
    2."""
    split = random_split(10, 8)
    params = train(model, split, epochs=3, batch_size=4, learning_rate=0.05, key=KEY)

    init_key, fit_key = jax.random.split(KEY)
    start, optimizer = model.init(init_key), optax.adam(0.05)

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            p = jax.nn.sigmoid(model.logits(params, x))
            return -jnp.mean(y * jnp.log(p) + (1 - y) * jnp.log(1 - p))

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    expected, state = start, jax.jit(optimizer.init)(start)
    for rows in batches(fit_key, 10, 3, 4):
        expected, state = step(expected, state, split.x[rows], split.y[rows])
    assert_same_function(model, params, expected, atol=2e-4)
    assert np.abs(model.logits(expected, split.x) - model.logits(start, split.x)).max() > 0.02


@pytest.mark.parametrize("batch_size", [0, 4])
def test_logistic_regression_is_adam_by_hand(batch_size):
    """Adam in NumPy and double precision on the gradient X'(p - y) / n."""
    x, y = separable_split(10, 8)
    init_key, fit_key = jax.random.split(KEY)
    design = np.append(x, np.ones((10, 1)), axis=1).astype(float)

    def gradients(theta):
        for rows in batches(fit_key, 10, 6, batch_size or 10):
            residual = 1 / (1 + np.exp(-design[rows] @ theta)) - y[rows]
            yield design[rows].T @ residual / len(rows)

    model = MLP(8, ())
    theta = np.append(np.asarray(model.init(init_key)[0][0], float), 0.0)
    adam(theta, gradients(theta), rate=0.1)
    ((weights, bias),) = train(
        model, Split(x, y), epochs=6, batch_size=batch_size, learning_rate=0.1, key=KEY
    )
    np.testing.assert_allclose(np.append(weights, bias), theta, rtol=1e-3, atol=1e-4)


def adam(theta, gradients, *, rate):
    """Move theta in place (Kingma & Ba, arXiv:1412.6980, algorithm 1); each gradient is asked for
    in its turn."""
    mean, square = np.zeros_like(theta), np.zeros_like(theta)
    for step, gradient in enumerate(gradients, start=1):
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        theta -= rate * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    return theta


@pytest.mark.parametrize(
    ("n", "batch_size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 8, [5, 4]), (6, 1, [1] * 6), (7, 0, [7]), (7, 12, [7])],
)
def test_each_sample_is_in_one_batch_of_an_epoch(n, batch_size, sizes):
    """One parameter for each sample, whose gradient is 1 in the step that the sample is in and 0 in
    all others.

    Adam then moves it by an amount that tells the step, so the final parameters tell the batches. A
    sample that fills up a batch would show twice.
    """
    params, _ = fit(
        lambda params, rows, weight, epoch, key: params[rows] @ weight, jnp.zeros(n), n,
        epochs=1, batch_size=batch_size, learning_rate=1.0, key=KEY,
    )  # fmt: skip
    in_step = adam(np.zeros(len(sizes)), np.eye(len(sizes)), rate=1.0)
    distance = np.abs(np.asarray(params)[:, None] - in_step)
    assert distance.min(axis=1).max() < 1e-3 < np.diff(np.sort(in_step), prepend=-9).min() / 2
    assert np.bincount(distance.argmin(axis=1), minlength=len(sizes)).tolist() == sizes


def test_a_sample_of_the_last_incomplete_batch_counts():
    model, (x, y) = MLP(8, ()), random_split(10, 8)
    run = partial(train, model, epochs=1, batch_size=4, learning_rate=0.05, key=KEY)
    *_, last = batches(jax.random.split(KEY)[1], 10, 1, 4)
    assert len(last) == 2
    for row in last:
        flipped = y.copy()
        flipped[row] = 1 - y[row]
        assert trees_differ(run(Split(x, y)), run(Split(x, flipped)))


def test_batches_are_reshuffled_each_epoch_and_by_key():
    """A parameter for each epoch and sample, moved from the step on in which the sample is: its
    place shows."""

    @jax.jit
    def places(key):
        _, history = fit(
            lambda params, rows, weight, epoch, key: params[epoch, rows[0]], jnp.zeros((3, 6)), 6,
            epochs=3, batch_size=1, learning_rate=1.0, key=key, measure=lambda params: params,
        )  # fmt: skip
        return jnp.stack([jnp.argsort(history[epoch + 1, epoch]) for epoch in range(3)])

    orders = np.concatenate([places(KEY), places(jax.random.key(8))])
    assert len({tuple(order) for order in orders}) == 6
    np.testing.assert_array_equal(places(KEY), orders[:3])


def test_a_batch_larger_than_the_data_is_all_of_it():
    run = partial(train, MLP(8, (3,)), random_split(10, 8), epochs=2, learning_rate=0.05, key=KEY)
    assert_trees_equal(run(batch_size=999), run(batch_size=0))


@each_trained
def test_same_key_same_bits_and_vmapped_runs_equal_single_ones(model):
    """Runs that differ in data and key, side by side and one by one."""
    splits, keys = [random_split(10, 8, seed=seed) for seed in range(3)], jax.random.split(KEY, 3)
    one_run = partial(train, model, epochs=4, batch_size=4, learning_rate=0.05)
    single = [one_run(split, key=key) for split, key in zip(splits, keys, strict=True)]
    assert_trees_equal(one_run(splits[0], key=keys[0]), single[0])
    assert trees_differ(one_run(splits[0], key=keys[1]), single[0])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *splits)
    together = jax.jit(jax.vmap(lambda split, key: one_run(split, key=key)))(stacked, keys)
    for run, expected in enumerate(single):
        assert_same_function(
            model, jax.tree.map(lambda leaf, run=run: leaf[run], together), expected, atol=1e-4
        )


def test_history_goes_from_the_start_to_the_end():
    """epochs + 1 points, and point k is where a training of k epochs ends."""
    model, split = MLP(8, (3,)), Split(*map(jnp.asarray, random_split(10, 8)))

    def loss(params, rows, weight, epoch, key):
        return jnp.average(
            jnp.square(model.logits(params, split.x[rows]) - split.y[rows]), weights=weight
        )

    run = partial(fit, loss, model.init(KEY), 10, batch_size=4, learning_rate=0.05, key=KEY)
    end, history = run(epochs=3, measure=lambda params: params)
    assert {len(leaf) for leaf in jax.tree.leaves(history)} == {4}
    assert_trees_equal(jax.tree.map(lambda leaf: leaf[0], history), model.init(KEY))
    assert_trees_equal(jax.tree.map(lambda leaf: leaf[-1], history), end)
    after_one, unmeasured = run(epochs=1)
    assert unmeasured is None
    assert_trees_equal(jax.tree.map(lambda leaf: leaf[1], history), after_one, atol=1e-6)
    assert trees_differ(after_one, end)


def test_each_step_has_a_key_of_its_own():
    """The same in each training of one key, and none of those that the order of the batches is
    drawn from."""
    seen = []

    def loss(params, rows, weight, epoch, key):
        jax.debug.callback(
            lambda data: seen.append(tuple(np.asarray(data).tolist())), jax.random.key_data(key)
        )
        return params.sum()

    for key in (KEY, KEY, jax.random.key(8)):
        fit(loss, jnp.zeros(1), 6, epochs=3, batch_size=2, learning_rate=1.0, key=key)
        jax.effects_barrier()
    first, again, other = (set(seen[start : start + 9]) for start in (0, 9, 18))
    assert first == again and len(first | other) == 18
    orders = [jax.random.fold_in(KEY, epoch) for epoch in range(3)]
    taken = [key for order in orders for key in (order, *jax.random.split(order))]
    assert not first & {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in taken}


def test_the_loss_is_told_the_epoch():
    end, _ = fit(lambda params, rows, weight, epoch, key: params[epoch], jnp.zeros(5), 4,
                 epochs=3, batch_size=2, learning_rate=1.0, key=KEY)  # fmt: skip
    np.testing.assert_array_equal(end != 0, [True, True, True, False, False])


@each_trained
def test_compile_time_does_not_grow_with_epochs_or_steps(model):
    """The program that is compiled is as long for 200 epochs of 6 steps as for 2 of 2."""

    def length(epochs, batch_size):
        split = random_split(12, 8)
        run = partial(train, model, split, epochs=epochs, batch_size=batch_size, learning_rate=0.05)
        return len(str(jax.make_jaxpr(lambda key: run(key=key))(KEY)).splitlines())

    assert length(200, 2) == length(2, 6)


@pytest.mark.parametrize("n_samples", [0, -1])
def test_nothing_to_train_on_is_refused(n_samples):
    with refused("n_samples"):
        fit(
            lambda *_: 0.0,
            jnp.zeros(1),
            n_samples,
            epochs=1,
            batch_size=1,
            learning_rate=0.1,
            key=KEY,
        )


@dataclass(frozen=True)
class Noisy:
    """A model whose logits are drawn: a linear one with a standard normal added."""

    is_random = True

    def init(self, key):
        return jnp.zeros(4)

    def prepare(self, x):
        return jnp.asarray(x)

    def logits(self, params, x, *, key):
        return x @ params + jax.random.normal(key, x.shape[:1])


def test_a_random_model_is_given_keys():
    """In each step the one that `fit` hands to the loss."""
    (x, y), options = separable_split(6, 4), {"epochs": 3, "batch_size": 0, "learning_rate": 0.1}
    params = train(Noisy(), Split(x, y), **options, key=KEY)

    def loss(params, rows, weight, epoch, key):
        logits = x[rows] @ params + jax.random.normal(key, (6,))
        return jnp.mean(jax.nn.softplus(logits) - y[rows] * logits)

    x, y = jnp.asarray(x), jnp.asarray(y)
    expected, _ = fit(loss, jnp.zeros(4), 6, **options, key=jax.random.split(KEY)[1])
    np.testing.assert_allclose(params, expected, rtol=1e-5)


@dataclass(frozen=True)
class Parabola:
    """A model of one's own: x'diag(params)x."""

    n_features: int

    def init(self, key):
        return jax.random.normal(key, (self.n_features,))

    def prepare(self, x):
        return jnp.asarray(x)

    def logits(self, params, x):
        return jnp.square(x) @ params


@pytest.mark.parametrize("is_complex", [False, True])
def test_a_quadratic_form_is_bounded_and_blind_to_a_global_phase(is_complex):
    """logit = 5 x'Ox with the eigenvalues tanh(values) of O, the vectors as NumPy's QR makes them
    orthonormal."""
    model = QuadraticForm(8, 3, is_complex)
    params = jax.tree.map(lambda leaf: 100 * leaf, model.init(KEY))
    x, _ = random_split(50, 8, complex_states=is_complex)
    basis = np.asarray(params["basis"][0] + (1j * params["basis"][1] if is_complex else 0))
    vectors, _ = np.linalg.qr(basis.conj().T)  # (8, 3)
    operator = vectors @ np.diag(np.tanh(params["values"])) @ vectors.conj().T
    expected = 5 * np.einsum("ni,ij,nj->n", x.conj(), operator, x).real
    assert np.linalg.norm(operator, 2) < 1 and np.abs(expected).max() > 0.5
    np.testing.assert_allclose(model.logits(params, x), expected, atol=1e-5)
    turned = (x * np.exp(1j * np.arange(50))[:, None]).astype(np.complex64) if is_complex else -x
    np.testing.assert_allclose(model.logits(params, turned), expected, atol=1e-5)


def by_lapack(model, params, x):
    """The same logits by the Cholesky factor of the Gram matrix and a triangular solve."""
    basis = jax.lax.complex(*params["basis"]) if model.is_complex else params["basis"][0]
    root = jnp.linalg.cholesky(basis @ basis.conj().T)
    overlaps = jax.scipy.linalg.solve_triangular(root, basis @ x.T, lower=True)
    return model.scale * jnp.tanh(params["values"]) @ (overlaps * overlaps.conj()).real


@pytest.mark.parametrize(
    "model",
    [QuadraticForm(6, 1), QuadraticForm(30, 16, is_complex=True), QuadraticForm(60, 20)],
    ids=repr,
)
def test_quadratic_forms_agree_with_those_by_lapack(model):
    """Values, gradients and products with the Hessian."""
    params = jax.tree.map(lambda leaf: 20 * leaf, model.init(KEY))
    x = model.prepare(random_split(5, model.n_features, complex_states=model.is_complex).x)

    def all_of(logits, params):
        def weighted(params):
            values = logits(params, x)
            return values @ jnp.arange(1.0, 6.0), values

        value, gradient = jax.value_and_grad(weighted, has_aux=True)(params)
        bend = jax.jvp(jax.grad(lambda params: jnp.sin(weighted(params)[0])), (params,), (params,))[
            1
        ]
        return value[1], gradient, bend

    programs = [
        jax.jit(partial(all_of, logits)).lower(params)
        for logits in (model.logits, partial(by_lapack, model))
    ]
    assert ["lapack" in program.as_text() for program in programs] == [False, True]
    found, expected = (program.compile()(params) for program in programs)
    assert_trees_equal(found[0], expected[0], atol=TOLERANCE)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1:]))
    assert_trees_equal(found[1:], expected[1:], atol=20 * TOLERANCE * scale)


MANY_FORMS = """
from concurrent.futures import ThreadPoolExecutor
import jax, numpy as np
from datar import Split
from models import train
from studies.quadratic import QuadraticForm

model = QuadraticForm(256, is_complex=True)
x = np.random.default_rng(0).normal(size=(60, 512)).astype(np.float32).view(np.complex64) / 16
split = Split(x, (x[:, 0].real > 0).astype(np.int32))
keys = jax.random.split(jax.random.key(0), 5)

def five(epochs):
    options = {"epochs": epochs, "batch_size": 0, "learning_rate": 0.01}
    return jax.vmap(lambda key: train(model, split, **options, key=key))(keys)["basis"]

with ThreadPoolExecutor(2) as threads:
    for basis in threads.map(five, (300, 301)):
        assert np.isfinite(basis).all()
"""


@pytest.mark.skipif(DOUBLE, reason="a process of its own")
def test_many_quadratic_forms_train_in_a_pool_of_two_threads():
    """Two threads of Python at once: with batches of LAPACK calls they wait for each other for ever
    (jaxlib 0.10.2)."""
    process = run_python("-c", MANY_FORMS, timeout=120, PJRT_NPROC="2")
    assert process.returncode == 0, process.stderr[-3000:]


@pytest.mark.parametrize(
    "model",
    [Parabola(4), MLP(4, (6,)), QNN(2, 2, "xy"), QuadraticForm(4, 4)],
    ids=lambda model: type(model).__name__,
)
def test_training_learns_what_can_be_learned(model):
    """Whether the first half of the amplitudes outweighs the second."""
    x, _ = random_split(64, 4)
    y = (np.square(x) @ [1, -1, 1, -1] > 0).astype(np.int32)
    params = train(model, Split(x, y), epochs=100, batch_size=16, learning_rate=0.1, key=KEY)
    assert accuracy(model.logits(params, x), y) > 0.9


def test_logistic_regression_learns_the_digits(mnist):
    model = MLP(1024, ())
    params = train(model, mnist.train, epochs=20, batch_size=128, learning_rate=0.05, key=KEY)
    assert accuracy(model.logits(params, mnist.val.x), mnist.val.y) > 0.97


@pytest.mark.parametrize(("argument", "value"), [("batch_size", -1), ("epochs", -1)])
def test_training_that_makes_no_sense_is_refused_by_name(argument, value):
    options = {"epochs": 1, "batch_size": 2, "learning_rate": 0.1, "key": jax.random.key(0)} | {
        argument: value
    }
    with refused(argument):
        train(MLP(4, ()), random_split(4, 4), **options)


def test_a_training_is_checked_and_hashable():
    training = Training(epochs=0, batch_size=0, learning_rate=1.0)
    words = {"epochs": 0, "batch_size": 0, "learning_rate": 1.0, "optimizer": None}
    assert training.keywords() == words
    assert hash(training) == hash(Training(0, 0, 1.0))
    bad = {"epochs": -1, "batch-size": 2.5, "learning-rate": float("nan")}
    for name, value in bad.items():
        with refused(f"{name}: got {value}"):
            Training(**training.keywords() | {name.replace("-", "_"): value})
    allowed = "allowed: a function of the learning rate: optax.sgd"
    for wrong in (optax.sgd(0.1), "sgd", optax.lbfgs, lambda: None, 3):
        with refused(rf"optimizer: got .*, {allowed}"):
            replace(training, optimizer=wrong)
    momentum = partial(optax.sgd, momentum=0.9)
    assert {replace(training, optimizer=momentum): 1}


# ---- precision ----


@pytest.mark.skipif(not DOUBLE, reason="in double precision")
@pytest.mark.parametrize(
    "model", [*MODELS, QuadraticForm(8, 3, is_complex=True)], ids=lambda model: model.label
)
def test_double_precision_all_the_way(model):
    """Parameters, logits and training, on data in single precision; a QNN is its plain circuit to
    1e-10."""
    split = random_split(6, 8, complex_states=isinstance(model, QuadraticForm))
    run = partial(
        train,
        model,
        Split(model.prepare(split.x), split.y),
        batch_size=4,
        learning_rate=0.05,
        key=KEY,
    )
    for params in (run(epochs=0), run(epochs=2)):
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}
        assert (
            model.logits(params, split.x).dtype
            == model.logits(params, model.prepare(split.x)).dtype
            == np.float64
        )
    if not isinstance(model, QNN):
        return
    params = 40 * model.init(KEY)
    plain = [
        5 * model.circuit(params, state).expectation_ps(z=[model.n_qubits - 1]).real
        for state in split.x
    ]
    assert plain[0].dtype == np.float64
    for x in (split.x, model.prepare(split.x)):
        np.testing.assert_allclose(model.logits(params, x), plain, rtol=0, atol=1e-10)


@pytest.mark.skipif(not DOUBLE, reason="in double precision")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_weights_of_samples_follow_the_parameters_in_double_precision(dtype):
    seen = set()

    def loss(params, rows, weight, epoch, key):
        seen.add(weight.dtype)
        return params @ weight

    params, _ = fit(
        loss, jnp.zeros(3, dtype), 7, epochs=1, batch_size=3, learning_rate=0.1, key=KEY
    )
    assert seen == {params.dtype} == {np.dtype(dtype)}
