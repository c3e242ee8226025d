"""The circuits against the plain TensorCircuit circuit, against PennyLane, and against what is
known of them."""

from __future__ import annotations

import itertools
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import run_python
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from foundation.quantum import many_qubits
from foundation.quantum.circuits import (
    ansatz,
    evolve,
    expectation,
    layers_to_fold,
    parameters_per_qubit,
    reduce_states,
    reduced_dimension,
    tensorcircuit_on_jax,
)
from foundation.quantum.gates import bond_signs, cnot_permutation, light_cone, rotation_gates

DOUBLE = jax.config.jax_enable_x64  # set in the process that test_double_precision starts
TOLERANCE = 1e-10 if DOUBLE else 1e-5  # relative to the squared norm

TWO_VARIANTS = [("xyx", "rzz"), ("xy", "cnot")]
VARIANTS = [(rotations, entangler) for rotations in ("xyx", "xy") for entangler in ("rzz", "cnot")]
SIZES = {  # (n_qubits, depth, folded layers): together 2 to 10 qubits and depths 1 to 8
    ("xyx", "rzz"): [
        (2, 1, None),
        (10, 2, 1),
        (2, 8, 3),
        (3, 2, None),
        (4, 5, 2),
        (5, 4, 4),
        (9, 6, 3),
    ],
    ("xy", "rzz"): [(3, 3, 2), (6, 7, None), (8, 1, None), (5, 4, 1)],
    ("xy", "cnot"): [(2, 2, None), (10, 2, None), (5, 5, None), (8, 3, None), (4, 8, None)],
    ("xyx", "cnot"): [(4, 1, None), (7, 2, None)],
}
PLAIN_CASES = [  # few and small: gate by gate, each takes seconds
    (2, 2, "xyx", "rzz"),
    (2, 2, "xy", "cnot"),
    (3, 2, "xy", "rzz"),
    (3, 1, "xyx", "cnot"),
]
CASES = [
    (*size, *variant)
    for variant, sizes in SIZES.items()
    for size in (sizes[::3] if DOUBLE else sizes)
]
PLAIN_CASES = PLAIN_CASES[:2] if DOUBLE else PLAIN_CASES


def draw(n_qubits, depth, rotations="xyx", entangler="rzz", *, n=3, complex_states=True):
    """Angles of all sizes, and states with norms from 0.2 to 5."""
    generator = np.random.default_rng([n_qubits, depth, len(rotations), len(entangler)])
    params = generator.uniform(
        -np.pi, np.pi, (depth, n_qubits, parameters_per_qubit(rotations, entangler))
    )
    states = generator.normal(size=(n, 2**n_qubits)) + 1j * complex_states * generator.normal(
        size=(n, 2**n_qubits)
    )
    states *= np.geomspace(0.2, 5, n)[:, None] / np.linalg.norm(states, axis=1, keepdims=True)
    states = states if complex_states else states.real
    return jnp.asarray(params), jnp.asarray(states)


def squared_norms(states):
    return np.linalg.norm(np.asarray(states, complex), axis=1) ** 2


def sample_weights(n):
    """A different weight for each sample, so that a gradient which mixes samples up is seen."""
    return np.arange(1, n + 1) / n


def value_and_gradient(function, params, states, *, compiled):
    """The values of each state, and the gradient of their weighted sum."""

    def weighted(params):
        values = function(params, states)
        return values @ sample_weights(len(states)), values

    gradient_of = jax.grad(weighted, has_aux=True)
    gradient, values = (jax.jit(gradient_of) if compiled else gradient_of)(params)
    return np.asarray(values), np.asarray(gradient)


def fast(rotations, entangler, folded=None):
    return lambda params, states: expectation(
        params, states, rotations=rotations, entangler=entangler, folded=folded
    )


def plain(rotations, entangler):
    """<Z> of the last qubit from the plain TensorCircuit circuit, gate by gate."""

    def one_state(params, state):
        circuit = ansatz(params, state, rotations=rotations, entangler=entangler)
        return circuit.expectation_ps(z=[params.shape[1] - 1]).real

    return jax.vmap(one_state, in_axes=(None, 0))


def pennylane_value_and_gradient(params, states, rotations, entangler):
    """The same in double precision from PennyLane's own gates, state preparation and
    differentiation."""
    import pennylane as qml
    from pennylane import numpy as differentiable

    depth, n_qubits, _ = params.shape
    norms = squared_norms(states)
    normalised = np.asarray(states, complex) / np.sqrt(norms)[:, None]
    gates = {"x": qml.RX, "y": qml.RY}

    @qml.qnode(
        qml.device("default.qubit", wires=n_qubits), interface="autograd", diff_method="backprop"
    )
    def circuit(params):
        qml.StatePrep(normalised, wires=range(n_qubits))
        for layer in range(depth):
            for qubit in range(n_qubits):
                for position, axis in enumerate(rotations):
                    gates[axis](params[layer, qubit, position], wires=qubit)
            for qubit in range(n_qubits):
                bond = [qubit, (qubit + 1) % n_qubits]
                qml.CNOT(wires=bond) if entangler == "cnot" else qml.IsingZZ(
                    params[layer, qubit, -1], wires=bond
                )
        return qml.expval(qml.PauliZ(n_qubits - 1))

    angles = differentiable.array(np.asarray(params, float), requires_grad=True)
    gradient = qml.grad(lambda params: (sample_weights(len(norms)) * norms) @ circuit(params))(
        angles
    )
    return norms * circuit(angles), gradient


# ---- the definition, from two sides ----


@pytest.mark.parametrize(("n_qubits", "depth", "folded", "rotations", "entangler"), CASES)
def test_agrees_with_pennylane(n_qubits, depth, folded, rotations, entangler):
    """Whatever the number of layers that are folded into the observable."""
    variant = rotations, entangler
    params, states = draw(n_qubits, depth, *variant, complex_states=depth % 2 == 0)
    values, gradient = value_and_gradient(fast(*variant, folded), params, states, compiled=True)
    expected, expected_gradient = pennylane_value_and_gradient(params, states, *variant)
    assert values.dtype == (np.float64 if DOUBLE else np.float32)
    norms = squared_norms(states)
    np.testing.assert_allclose(values / norms, expected / norms, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=TOLERANCE * norms.sum())


@pytest.mark.parametrize(("n_qubits", "depth", "rotations", "entangler"), PLAIN_CASES)
def test_agrees_with_the_plain_circuit(n_qubits, depth, rotations, entangler):
    variant = rotations, entangler
    params, states = draw(n_qubits, depth, *variant)
    values, gradient = value_and_gradient(fast(*variant), params, states, compiled=True)
    expected, expected_gradient = value_and_gradient(
        plain(*variant), params, states, compiled=False
    )
    norms = squared_norms(states)
    np.testing.assert_allclose(values / norms, expected / norms, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=TOLERANCE * norms.sum())


@pytest.mark.skipif(DOUBLE, reason="half a minute")
def test_ten_qubits_agree_with_the_plain_circuit():
    params, states = draw(10, 3, n=2)
    expected = plain("xyx", "rzz")(params, states)
    np.testing.assert_allclose(
        fast("xyx", "rzz")(params, states),
        expected,
        rtol=0,
        atol=TOLERANCE * squared_norms(states).max(),
    )


BLOCK_CASES = [  # (n_qubits, depth, all angles times), with columns that do and do not fill blocks
    (9, 4, 1, "xyx", "rzz"),  # W and its neighbours alone, and qubits outside the cone
    (9, 5, 0, "xyx", "rzz"),  # no angle at all
    (9, 6, 1, "xy", "rzz"),  # cones of 9, 9 and 7 qubits
    (8, 8, 1e-3, "xyx", "rzz"),  # layers on the whole ring
    (6, 3, 1, "xyx", "cnot"),
    (5, 2, 0, "xy", "cnot"),
]
BLOCK_CASES = BLOCK_CASES[1::3] if DOUBLE else BLOCK_CASES


@pytest.fixture
def in_blocks(monkeypatch):
    """Few qubits in the way of many, in blocks of two columns."""
    for name, value in (("LEAST_QUBITS", 2), ("LEAST_DEPTH", 1)):
        monkeypatch.setattr(many_qubits, name, {"rzz": value, "cnot": value})
    monkeypatch.setattr(many_qubits, "BLOCK", 1)
    monkeypatch.setattr(many_qubits, "LEAST_COLUMNS", 2)


@pytest.mark.parametrize(("n_qubits", "depth", "scale", "rotations", "entangler"), BLOCK_CASES)
def test_states_in_blocks_agree_with_pennylane(
    in_blocks, n_qubits, depth, scale, rotations, entangler
):
    """At every angle, zero included; real states and complex ones."""
    variant = rotations, entangler
    params, states = draw(n_qubits, depth, *variant, complex_states=depth % 2 == 0)
    params = params * scale
    values, gradient = value_and_gradient(fast(*variant), params, states, compiled=True)
    expected, expected_gradient = pennylane_value_and_gradient(params, states, *variant)
    norms = squared_norms(states)
    np.testing.assert_allclose(values / norms, expected / norms, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=TOLERANCE * norms.sum())


def test_states_in_blocks_have_the_same_hessian(in_blocks):
    params, states = draw(7, 4)
    direction = jnp.ones_like(params)

    def product(folded):
        def weighted(params):
            values = expectation(params, states, folded=folded)
            return values @ sample_weights(len(states))

        return jax.jit(lambda: jax.jvp(jax.grad(weighted), (params,), (direction,))[1])()

    tolerance = 10 * TOLERANCE * squared_norms(states).sum()
    np.testing.assert_allclose(product(None), product(3), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("n_qubits", "depth", "entangler"), [(13, 6, "rzz"), (14, 1, "cnot")])
def test_many_qubits_go_in_blocks_as_few_do_in_one(n_qubits, depth, entangler, monkeypatch):
    """The numbers of qubits from which on blocks are used."""
    params, states = draw(n_qubits, depth, "xyx", entangler, n=2, complex_states=False)
    assert many_qubits.are_many(n_qubits, depth, entangler)
    assert not many_qubits.are_many(n_qubits - 1, depth, entangler)
    assert not many_qubits.are_many(13, 5, "rzz")
    in_blocks = []
    for name in ("after_rzz_rings", "after_cnot_rings"):
        blocks = getattr(many_qubits, name)
        called = lambda *args, blocks=blocks: in_blocks.append(blocks) or blocks(*args)  # noqa: E731
        monkeypatch.setattr(many_qubits, name, called)
    values = fast("xyx", entangler)(params, states)
    assert len(in_blocks) == 1
    monkeypatch.setattr(many_qubits, "are_many", lambda *_: False)
    expected = fast("xyx", entangler)(params, states)
    assert len(in_blocks) == 1
    tolerance = TOLERANCE * squared_norms(states).max()
    np.testing.assert_allclose(values, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(("rotations", "entangler"), VARIANTS)
def test_evolve_is_the_state_of_the_plain_circuit(rotations, entangler):
    params, states = draw(3, 2, rotations, entangler, n=2)
    evolved = evolve(params, states, rotations=rotations, entangler=entangler)
    for state, after in zip(states, evolved, strict=True):
        expected = ansatz(params, state, rotations=rotations, entangler=entangler).state()
        np.testing.assert_allclose(after, expected, rtol=0, atol=TOLERANCE * np.linalg.norm(state))


def test_the_plain_circuit_starts_from_zero_without_inputs():
    params, _ = draw(3, 1)
    zero = jnp.zeros(8, complex).at[0].set(1)
    np.testing.assert_allclose(
        ansatz(params).state(), ansatz(params, zero).state(), rtol=0, atol=TOLERANCE
    )


# ---- properties ----


evolve_compiled = jax.jit(evolve, static_argnames=("rotations", "entangler"))
expectation_compiled = jax.jit(expectation, static_argnames=("rotations", "entangler"))


@given(
    angles=hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-10, 10, width=32)),
    amplitudes=hnp.arrays(np.float32, (2, 2, 8), elements=st.floats(-10, 10, width=32)),
    variant=st.sampled_from(TWO_VARIANTS),
)
def test_any_circuit_keeps_norms_and_bounds_the_expectation(angles, amplitudes, variant):
    rotations, entangler = variant
    angles = angles[..., : parameters_per_qubit(rotations, entangler)]
    states = (amplitudes[0] + 1j * amplitudes[1]).astype(np.complex64)
    norms = squared_norms(states)
    after = squared_norms(evolve_compiled(angles, states, rotations=rotations, entangler=entangler))
    np.testing.assert_allclose(after, norms, rtol=1e-5, atol=1e-30)
    values = expectation_compiled(angles, states, rotations=rotations, entangler=entangler)
    assert np.all(np.abs(values) <= norms * (1 + 1e-5))


@given(modulus=st.floats(0.125, 8), phase=st.floats(-4, 4), variant=st.sampled_from(TWO_VARIANTS))
def test_a_factor_counts_squared_and_a_phase_does_not(modulus, phase, variant):
    rotations, entangler = variant
    params, states = draw(3, 2, rotations, entangler, n=2)
    values = expectation_compiled(params, states, rotations=rotations, entangler=entangler)
    scaled = (modulus * np.exp(1j * phase) * states).astype(np.complex64)
    actual = expectation_compiled(params, scaled, rotations=rotations, entangler=entangler)
    np.testing.assert_allclose(
        actual, modulus**2 * values, rtol=0, atol=1e-5 * squared_norms(scaled).max()
    )


@pytest.mark.parametrize(("n_qubits", "rotations"), [(2, "xyx"), (5, "xy")])
def test_the_last_rzz_layer_has_no_effect(n_qubits, rotations):
    params, states = draw(n_qubits, 2, rotations)
    _, gradient = value_and_gradient(fast(rotations, "rzz"), params, states, compiled=True)
    scale = squared_norms(states).sum()
    np.testing.assert_allclose(gradient[-1, :, -1], 0, atol=1e-6 * scale)
    assert np.abs(gradient[-2, :, -1]).max() > 1e-3 * scale  # the one before it has
    assert np.abs(gradient[-1, -1, 0]) > 1e-3 * scale


@pytest.mark.parametrize("n_qubits", [2, 5])
def test_without_angles_only_the_ring_is_left(n_qubits):
    """RZZ(0) is the identity and Z measures the last bit; after a ring of CNOTs the last qubit
    holds the parity of all bits."""
    _, states = draw(n_qubits, 1)
    # column 0 is the last qubit
    bits = (np.arange(2**n_qubits)[:, None] >> np.arange(n_qubits)) & 1
    probabilities, scale = np.abs(np.asarray(states, complex)) ** 2, squared_norms(states).max()
    for angles, entangler, measured in (
        (jnp.zeros((3, n_qubits, 4)), "rzz", bits[:, 0]),
        (jnp.zeros((1, n_qubits, 3)), "cnot", bits.sum(axis=1) % 2),
    ):
        values = expectation_compiled(angles, states, entangler=entangler)
        np.testing.assert_allclose(
            values, probabilities @ (1 - 2 * measured), rtol=0, atol=1e-5 * scale
        )


@pytest.mark.parametrize(("n_qubits", "entangler", "folded"), [(3, "rzz", 1), (2, "cnot", None)])
def test_hessian_follows_the_parameter_shift_rule(n_qubits, entangler, folded):
    """d2<Z> / da db is a quarter of the signed sum of four values at shifts of +-pi/2: no autodiff
    in it."""
    params, states = draw(n_qubits, 2, "xy", entangler, n=1)
    states = states / np.sqrt(squared_norms(states))[:, None]
    flat = np.asarray(params).ravel()

    def value(flat):
        return fast("xy", entangler, folded)(flat.reshape(params.shape), states)[0]

    shifts = np.pi / 2 * np.eye(len(flat), dtype=np.float32)
    rows, columns = shifts[:, None], shifts[None]
    # ++, +-, -+, --
    corners = np.stack([flat + a * rows + b * columns for a in (1, -1) for b in (1, -1)])
    values = jax.jit(jax.vmap(value))(corners.reshape(-1, len(flat))).reshape(corners.shape[:-1])
    expected = np.tensordot([0.25, -0.25, -0.25, 0.25], values, 1)
    np.testing.assert_allclose(jax.jit(jax.hessian(value))(flat), expected, rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.05


@pytest.mark.parametrize(("rotations", "entangler"), TWO_VARIANTS)
def test_samples_and_runs_do_not_mix(rotations, entangler):
    """A batch equals its samples one by one, and vmap over parameters equals a loop over them."""
    _, states = draw(3, 2, rotations, entangler, n=5)
    generator = np.random.default_rng(1)
    runs = generator.normal(size=(2, 2, 3, parameters_per_qubit(rotations, entangler))).astype(
        np.float32
    )
    batched = jax.jit(jax.vmap(fast(rotations, entangler), in_axes=(0, None)))(runs, states)
    single = expectation_compiled
    expected = [
        [
            single(params, state[None], rotations=rotations, entangler=entangler)[0]
            for state in states
        ]
        for params in runs
    ]
    np.testing.assert_allclose(batched, expected, rtol=0, atol=1e-6 * squared_norms(states).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_dtypes_of_states(dtype):
    """NumPy arrays of any real or complex type will do, and the answer is real in single
    precision."""
    params, states = draw(3, 2, complex_states=False)
    values = expectation(params, np.asarray(states, dtype))
    assert values.dtype == jnp.float32
    np.testing.assert_allclose(
        values, expectation(params, states.astype(complex)), rtol=0, atol=1e-5 * 25
    )


# ---- the light cone ----


@pytest.mark.parametrize("n_qubits", range(2, 13))
def test_the_light_cone_grows_by_the_neighbours(n_qubits):
    """Against the closure, ring by ring; in ring order, so that the measured qubit's neighbours are
    its ends."""
    reached = {n_qubits - 1}
    for layers in range(1, 9):
        cone = light_cone(n_qubits, layers)
        assert set(cone) == reached and len(cone) == len(reached)
        assert all((qubit + 1) % n_qubits == after for qubit, after in itertools.pairwise(cone))
        assert reduced_dimension(n_qubits, layers) == 2 ** len(reached)
        reached |= {(qubit + step) % n_qubits for qubit in reached for step in (1, -1)}


@pytest.mark.parametrize(("n_qubits", "depth"), [(2, 1), (5, 2)])
def test_reduced_states_are_partial_traces_and_give_the_same_expectation(n_qubits, depth):
    """Re rho in the upper triangle and Im rho in the lower, against tracing the other qubits
    out."""
    params, states = draw(n_qubits, depth)
    cone, packed = light_cone(n_qubits, depth), np.asarray(reduce_states(states, depth))
    rest = [qubit for qubit in range(n_qubits) if qubit not in cone]
    for state, actual in zip(np.asarray(states), packed, strict=True):
        matrix = state.reshape((2,) * n_qubits).transpose(*cone, *rest).reshape(2 ** len(cone), -1)
        density = matrix @ matrix.conj().T
        unpacked = (
            np.triu(actual)
            + np.triu(actual, 1).T
            - 1j * (np.tril(actual, -1).T - np.tril(actual, -1))
        )
        np.testing.assert_allclose(unpacked.conj(), density.conj(), rtol=0, atol=1e-4)
    values, gradient = value_and_gradient(
        fast("xyx", "rzz"), params, jnp.asarray(packed), compiled=True
    )
    expected, expected_gradient = value_and_gradient(
        fast("xyx", "rzz"), params, states, compiled=True
    )
    scale = squared_norms(states).sum()
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-5 * scale)


def test_small_rings_are_folded_whole_and_large_ones_in_part():
    assert [layers_to_fold(n_qubits, 6) for n_qubits in (2, 7, 8, 12)] == [6, 6, 4, 4]
    assert [layers_to_fold(10, depth) for depth in (1, 4, 20)] == [1, 4, 4]


# ---- gates ----


@pytest.mark.parametrize("rotations", ["xyx", "xy"])
def test_rotation_gates_agree_with_those_of_tensorcircuit(rotations):
    """And with their product, the first one acting first."""
    angles = np.random.default_rng(0).uniform(-7, 7, (2, 3, len(rotations)))
    found = rotation_gates(jnp.asarray(angles), rotations)
    assert found.shape == (2, 3, 2, 2)
    gates = tensorcircuit_on_jax().gates
    for place in itertools.product(range(2), range(3)):
        matrices = [
            getattr(gates, f"r{axis}_gate")(a).tensor
            for axis, a in zip(rotations, angles[place], strict=True)
        ]
        expected = reduce(lambda product, gate: gate @ product, matrices)
        np.testing.assert_allclose(found[place], expected, rtol=0, atol=TOLERANCE)


# ---- the ring ----


@pytest.mark.parametrize("n_qubits", range(2, 7))
def test_bond_signs_are_products_of_pauli_z(n_qubits):
    """The diagonal of Z_q Z_{q+1} as a Kronecker product; two qubits have two bonds, both between
    the two.

    On a register of some of the qubits, bonds that lead out of it count 0.
    """
    z, one = np.array([1, -1]), np.array([1, 1])
    for start in range(n_qubits):
        for length in range(1, n_qubits + 1):
            register = tuple((start + place) % n_qubits for place in range(length))
            signs = bond_signs(n_qubits, register)
            assert signs.shape == (2**length, n_qubits)
            for qubit in range(n_qubits):
                bond = {qubit, (qubit + 1) % n_qubits}
                diagonal = reduce(np.kron, [z if place in bond else one for place in register])
                np.testing.assert_array_equal(signs[:, qubit], diagonal * (bond <= set(register)))


@pytest.mark.parametrize("n_qubits", range(2, 8))
def test_cnot_permutation_is_the_ring_of_cnots(n_qubits):
    """Against the ring in TensorCircuit, and against flipping bits of each basis state by hand."""
    circuit = tensorcircuit_on_jax().Circuit(
        n_qubits, inputs=jnp.arange(2**n_qubits, dtype=complex)
    )
    for qubit in range(n_qubits):
        circuit.cnot(qubit, (qubit + 1) % n_qubits)
    permutation = cnot_permutation(n_qubits)
    np.testing.assert_allclose(np.arange(2**n_qubits)[permutation], circuit.state())
    for before in range(2**n_qubits):
        bits = [int(bit) for bit in f"{before:0{n_qubits}b}"]
        for qubit in range(n_qubits):
            bits[(qubit + 1) % n_qubits] ^= bits[qubit]
        after = int("".join(map(str, bits)), 2)
        assert permutation[after] == before


@pytest.mark.parametrize(
    ("rotations", "entangler", "count"),
    [("xyx", "rzz", 4), ("xyx", "cnot", 3), ("xy", "rzz", 3), ("xy", "cnot", 2)],
)
def test_parameters_per_qubit_are_all_used(rotations, entangler, count):
    """Every angle moves the state, those of the last RZZ layer too, and there are no more of
    them."""
    assert parameters_per_qubit(rotations, entangler) == count
    params, states = draw(2, 2, rotations, entangler, n=1)

    def parts(params):
        evolved = evolve(params, states, rotations=rotations, entangler=entangler)[0]
        return jnp.concatenate([evolved.real, evolved.imag])

    jacobian = jax.jit(jax.jacfwd(parts))(params)
    assert np.all(np.abs(jacobian).max(axis=0) > 1e-4)


def test_both_precisions_in_one_process():
    """What was compiled in one is no hindrance in the other, for a circuit evaluated step by
    step."""
    params, states = np.ones((2, 3, 3)), np.ones((1, 8)) / np.sqrt(8)
    compiled = jax.jit(partial(expectation, states=states, entangler="cnot"))
    in_one = compiled(jnp.asarray(params))
    with jax.enable_x64(not DOUBLE):
        in_other = expectation(jnp.asarray(params), states, entangler="cnot")
    assert {in_one.dtype, in_other.dtype} == {np.dtype("float32"), np.dtype("float64")}
    np.testing.assert_allclose(in_one, in_other, atol=1e-6)


# ---- what an import does to the process ----

LATE = """
import os, jax
jax.config.update("jax_enable_x64", {double})
before = dict(os.environ)
import sys, numpy as np
from foundation.quantum import circuits
assert dict(os.environ) == before
values = circuits.expectation(np.ones((2, 3, 4)) * jax.numpy.ones(4), np.ones((1, 8)))
assert "tensorcircuit" not in sys.modules
for double in ({double}, not {double}, {double}):
    jax.config.update("jax_enable_x64", double)
    state = circuits.ansatz(jax.numpy.ones((2, 3, 4)), np.ones(8)).state()
    assert jax.config.jax_enable_x64 == double
    assert state.dtype == ("complex128" if double else "complex64")
with jax.enable_x64(not {double}):
    state = circuits.ansatz(jax.numpy.ones((2, 3, 4)), np.ones(8)).state()
    assert state.dtype == ("complex64" if {double} else "complex128")
assert jax.config.jax_enable_x64 == {double}
assert values.dtype == ("float64" if {double} else "float32")
"""


@pytest.mark.skipif(DOUBLE, reason="in a process of its own")
@pytest.mark.parametrize("double", [True, False])
def test_tensorcircuit_comes_late_and_follows_the_precision_of_jax(double):
    """Neither importing circuits nor TensorCircuit's own import changes the environment or JAX's
    64-bit mode."""
    process = run_python("-c", LATE.format(double=double))
    assert process.returncode == 0, process.stderr[-3000:]
