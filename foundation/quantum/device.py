"""Expectations on a noisy device: exact noise on gates and readout, and finite shots.

What is measured, Z or the bit strings of a few qubits, is evolved backwards through gates and
channels, once for all samples, as the real coefficients of its Pauli strings on the light cone. A
depolarising channel multiplies them by a factor. Gradients of what is drawn are drawn too, by the
parameter-shift rule or SPSA.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from foundation.base.checks import is_number, require
from foundation.quantum.circuits import in_order, measured_qubits, packed_expectation
from foundation.quantum.gates import Entangler, Rotations, kronecker, light_cone, rotation_gates

Gradient = Literal["parameter_shift", "spsa"]
_I = [[1, 0], [0, 1]]
_X = [[0, 1], [1, 0]]
_Y = [[0, -1j], [1j, 0]]
_Z = [[1, 0], [0, -1]]
PAULIS = np.array([_I, _X, _Y, _Z])
PAIRS = np.einsum("pij,qkl->pqikjl", PAULIS, PAULIS).reshape(16, 4, 4)
SPSA_STEP = 0.1  # radians


@dataclass(frozen=True)
class Noise:
    """Probabilities of depolarising noise after each gate, and of a readout error.

    p1: a Pauli other than the identity acts after a rotation, each of them equally likely. p2: a
    pair of Paulis other than the identity acts after an entangler, on its two qubits. readout: a
    measured bit is read flipped.
    """

    p1: float = 0.0
    p2: float = 0.0
    readout: float = 0.0

    def __post_init__(self):
        for name in ("p1", "p2", "readout"):
            value = getattr(self, name)
            is_probability = is_number(value) and 0 <= value <= 1
            require(is_probability, name, value, "a probability, 0 to 1")
            object.__setattr__(self, name, float(value))

    @property
    def label(self) -> str:
        """The probabilities that are not 0, such as p1=0.0001,p2=0.001."""
        probabilities = {"p1": self.p1, "p2": self.p2, "readout": self.readout}
        not_0 = [f"{name}={value:g}" for name, value in probabilities.items() if value]
        return ",".join(not_0)


# ---- the observable under noise ----


def register(
    n_qubits: int, layers: int, entangler: Entangler, measured: int = 1
) -> tuple[int, ...]:
    """The qubits that the measured Z reaches, in ring order; with a CNOT ring all qubits.

    measured: how many of the last qubits are measured.
    """
    return light_cone(n_qubits, layers, measured) if entangler == "rzz" else tuple(range(n_qubits))


def noisy_observable(
    params: jax.Array, noise: Noise, *, rotations: Rotations = "xyx", entangler: Entangler = "rzz"
) -> jax.Array:
    """The observable whose expectation in the input state is a noisy device's mean reading: (d, d).

    params: (depth, n_qubits, angles) of `circuits.ansatz`. The observable is complex and acts on
    the qubits of `register(n_qubits, depth, …)`, the first the most significant.
    """
    _, n_qubits, _ = params.shape
    qubits = register(n_qubits, 1, entangler)
    strings = jnp.zeros((4,) * len(qubits), params.dtype)
    z_on_last = (0,) * (len(qubits) - 1) + (3,)
    contrast = 1 - 2 * noise.readout
    strings = strings.at[z_on_last].set(contrast)
    return _matrix(_from_the_end(strings, params, noise, 1, rotations, entangler))


def noisy_outcomes(
    params: jax.Array,
    noise: Noise,
    n_outcomes: int,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> jax.Array:
    """The observables whose expectations are the probabilities that a noisy device reads.

    (n_outcomes, d, d): of the first bit strings of the last qubits, as of
    `circuits.probabilities`. They act on the qubits of `register(n_qubits, depth, …, measured)`.
    """
    _, n_qubits, _ = params.shape
    measured = measured_qubits(n_outcomes)
    n_others = len(register(n_qubits, 1, entangler, measured)) - measured
    contrast = 1 - 2 * noise.readout
    read = np.array([[1, 0, 0, contrast], [1, 0, 0, -contrast]]) / 2  # the bits 0 and 1
    strings = np.ones((1, 1))  # outcomes, coefficients
    for kinds in [np.array([[1, 0, 0, 0]])] * n_others + [read] * measured:
        strings = np.kron(strings, kinds)
    axes = (4,) * (n_others + measured)
    strings = jnp.asarray(strings[:n_outcomes].reshape(-1, *axes), params.dtype)

    def observable(of_outcome: jax.Array) -> jax.Array:
        return _matrix(_from_the_end(of_outcome, params, noise, measured, rotations, entangler))

    return jax.vmap(observable)(strings)


def _from_the_end(
    strings: jax.Array,
    params: jax.Array,
    noise: Noise,
    measured: int,
    rotations: Rotations,
    entangler: Entangler,
) -> jax.Array:
    """Evolve Pauli strings on the last layer's register backwards to the input: (4,) * k."""
    depth, n_qubits, _ = params.shape
    qubits = register(n_qubits, 1, entangler, measured)
    gates = rotation_gates(params, rotations)
    factor = (1 - 4 * noise.p1 / 3) ** len(rotations)
    damping = jnp.asarray([1, factor, factor, factor], params.dtype)
    for layer in reversed(range(depth)):
        wider = register(n_qubits, depth - layer, entangler, measured)
        left, right = _grown(qubits, wider)
        qubits = wider
        # the strings have I on the qubits that are new
        shape = (1,) * left + strings.shape + (1,) * right
        padding = [(0, 4 - size) for size in shape]
        strings = jnp.pad(strings.reshape(shape), padding)
        for qubit in reversed(range(n_qubits)):
            bond = _entangled(params[layer, qubit, -1], entangler)
            strings = _through_bond(strings, bond, qubit, qubits, n_qubits, noise.p2)
        gates_of_register = gates[layer][np.array(qubits)]
        transfers = _transfer(gates_of_register) * damping
        strings = _through_rotations(strings, transfers)
    return strings


def _grown(qubits: tuple[int, ...], wider: tuple[int, ...]) -> tuple[int, int]:
    """How many qubits a wider register, in ring order, adds on the left and on the right."""
    left = wider.index(qubits[0])
    return left, len(wider) - left - len(qubits)


def _transfer(gates: jax.Array) -> jax.Array:
    """Matrices T of rotations U (q, 2, 2) on Paulis, U'QU = Σ_P T_PQ P: (q, 4, 4) real."""
    paulis = jnp.asarray(PAULIS, gates.dtype)
    turned = jnp.einsum("nji,qjk,nkl->nqil", gates.conj(), paulis, gates)
    return jnp.einsum("pij,nqji->npq", paulis, turned).real / 2


@cache
def _parts(entangler: Entangler) -> np.ndarray:
    """Constant, cos θ and sin θ parts of an entangler's matrix on pairs of Paulis: (3, 16, 16)."""
    if entangler == "cnot":
        cnot = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
        gates = [cnot] * 3
    else:
        zz = np.array([1, -1, -1, 1])  # its diagonal
        gates = []
        for angle in (0, np.pi / 2, np.pi):
            phases = -0.5j * angle * zz
            gates.append(np.diag(np.exp(phases)))
    matrices = []
    for gate in gates:
        transfer = np.einsum("pij,jk,qkl,li->pq", PAIRS, gate.conj().T, PAIRS, gate)
        matrices.append(transfer.real / 4)
    zero, quarter, half = matrices  # at θ = 0, π/2 and π
    constant = (zero + half) / 2
    return np.stack([constant, zero - constant, quarter - constant])


def _entangled(angle: jax.Array, entangler: Entangler) -> jax.Array:
    """The entangler's matrix on pairs of Paulis: (16, 16)."""
    constant, cosine, sine = jnp.asarray(_parts(entangler), angle.dtype)
    if entangler == "rzz":
        return constant + jnp.cos(angle) * cosine + jnp.sin(angle) * sine
    return constant


def _through_bond(
    strings: jax.Array,
    matrix: jax.Array,
    qubit: int,
    qubits: tuple[int, ...],
    n_qubits: int,
    p2: float,
) -> jax.Array:
    """Evolve Pauli strings backwards through the noise on bond (qubit, qubit + 1) and its gate.

    The gate of a bond that leads out of the register commutes with the Pauli at its inner end, I or
    Z: only the noise of that bond acts.
    """
    neighbour = (qubit + 1) % n_qubits
    ends = [end for end in (qubit, neighbour) if end in qubits]
    factor = 1 - 16 * p2 / 15
    if len(ends) == 1:
        shape = [1] * strings.ndim
        shape[qubits.index(ends[0])] = 4
        damping = jnp.asarray([1, factor, factor, factor], strings.dtype)
        return strings * damping.reshape(shape)
    if not ends:
        return strings
    # noise first, going backwards
    damping = jnp.asarray([1] + [factor] * 15, strings.dtype)
    matrix = matrix * damping
    first, second = map(qubits.index, ends)
    shape = (4,) * strings.ndim
    if second == first + 1:
        by_pair = strings.reshape(4**first, 16, -1)
        return jnp.einsum("pq,aqb->apb", matrix, by_pair).reshape(shape)
    apart = strings.reshape(4, -1, 4)  # the closing bond: from the last place to the first
    by_end = matrix.reshape(4, 4, 4, 4)
    return jnp.einsum("cdab,bma->dmc", by_end, apart).reshape(shape)


def _through_rotations(strings: jax.Array, transfers: jax.Array) -> jax.Array:
    """Evolve Pauli strings backwards through each qubit's rotations: transfers (q, 4, 4)."""
    return _on_pairs(strings, list(transfers)).reshape(strings.shape)


def _on_pairs(strings: jax.Array, maps: list[jax.Array]) -> jax.Array:
    """Apply a map (4, 4) to each axis of strings (4, 4, …), two in one product: (4**q,) values."""
    flat = strings.reshape(-1)
    for place in range(0, strings.ndim, 2):
        block = kronecker(maps[place : place + 2])
        by_pair = flat.reshape(4**place, len(block), -1)
        flat = jnp.einsum("pq,aqb->apb", block, by_pair).reshape(-1)
    return flat


def _matrix(strings: jax.Array) -> jax.Array:
    """The sum Σ c_P P of Pauli strings: (4,) * k real coefficients -> (2**k, 2**k) complex."""
    k = strings.ndim
    dtype = jnp.result_type(strings.dtype, 1j)
    elements = jnp.asarray(PAULIS.transpose(1, 2, 0).reshape(4, 4), dtype)
    flat = _on_pairs(strings.astype(elements.dtype), [elements] * k)
    rows_and_columns = flat.reshape((2,) * 2 * k)  # row and column of each qubit in turn
    rows = range(0, 2 * k, 2)
    columns = range(1, 2 * k, 2)
    ordered = rows_and_columns.transpose(*rows, *columns)
    return ordered.reshape(2**k, 2**k)


def noisy_expectation(
    params: jax.Array,
    states: jax.Array,
    noise: Noise,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> jax.Array:
    """A noisy device's mean reading of Z on the last qubit, for a batch of states: (n,) real.

    states: (n, 2**n_qubits) normalised amplitudes, or (n, d, d) density matrices from
    `circuits.reduce_states`.
    """
    depth, n_qubits, _ = params.shape
    observable = noisy_observable(params, noise, rotations=rotations, entangler=entangler)
    if states.ndim == 3:
        return packed_expectation(states, observable)
    rolled = in_order(states, register(n_qubits, depth, entangler))
    return _mean(rolled, observable)


def noisy_probabilities(
    params: jax.Array,
    states: jax.Array,
    noise: Noise,
    n_outcomes: int,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> jax.Array:
    """Probabilities with which a noisy device reads the first bit strings: (n, n_outcomes).

    states: (n, 2**n_qubits) normalised amplitudes. Bit strings as of `circuits.probabilities`.
    """
    depth, n_qubits, _ = params.shape
    gates = {"rotations": rotations, "entangler": entangler}
    observables = noisy_outcomes(params, noise, n_outcomes, **gates)
    qubits = register(n_qubits, depth, entangler, measured_qubits(n_outcomes))
    rolled = in_order(states, qubits)
    return jax.vmap(_mean, (None, 0), 1)(rolled, observables)


def _mean(rolled: jax.Array, observable: jax.Array) -> jax.Array:
    """Expectations (n,) of an observable (d, d) in states (n, d, rest)."""
    if not jnp.iscomplexobj(rolled):
        observed = jnp.einsum("ij,njr->nir", observable.real, rolled)
        return jnp.sum(rolled * observed, axis=(1, 2))
    bras = rolled.conj()
    observed = jnp.einsum("ij,njr->nir", observable, rolled)
    return jnp.sum(bras * observed, axis=(1, 2)).real


def require_normalised(states: jax.Array) -> None:
    """Refuse amplitudes (n, 2**n_qubits), or packed density matrices (n, d, d), without norm 1."""
    # NumPy, not JAX, which would trace them where a function around this one is being traced
    states = np.asarray(states)
    if states.ndim == 3:
        probabilities = np.diagonal(states, axis1=1, axis2=2)
    else:
        probabilities = np.abs(states) ** 2
    norms = np.sqrt(probabilities.sum(axis=1))
    are_normalised = bool((np.abs(norms - 1) < 1e-3).all())
    spread = "none"
    if len(norms):
        spread = f"{norms.min():.3g} to {norms.max():.3g}"
    require(
        are_normalised,
        "x",
        f"samples of norm {spread}",
        "norm 1, of quantum states (amplitude encoding), where there are shots or noise",
    )


# ---- shots ----


@cache
def acting_angles(
    n_qubits: int, depth: int, rotations: Rotations, entangler: Entangler, measured: int = 1
) -> np.ndarray:
    """Places in params of the angles that move what is measured: (angles, 3).

    They are those within its light cone.

    measured: how many of the last qubits are measured.
    """
    places = []
    positions = range(len(rotations))
    for layer in range(depth):
        n_behind = depth - layer - 1  # layers that act after this one
        cone = set(register(n_qubits, n_behind + 1, entangler, measured))
        behind = register(n_qubits, n_behind, entangler, measured) if n_behind else ()
        cone_behind = set(behind)
        for qubit in sorted(cone):
            places += [(layer, qubit, position) for position in positions]
        bonds = range(n_qubits) if entangler == "rzz" and cone_behind else ()
        for qubit in bonds:
            ends = {qubit, (qubit + 1) % n_qubits}
            if ends <= cone and ends & cone_behind:
                places.append((layer, qubit, len(rotations)))
    return np.array(places)


def executions(
    n_samples: int, n_angles: int, shots: int, gradient: Gradient = "parameter_shift"
) -> int:
    """How often the circuit is run for one step's loss and gradient, whatever is read off it."""
    n_shifts = n_angles if gradient == "parameter_shift" else 1
    return n_samples * shots * (1 + 2 * n_shifts)


def sampled(
    expectation: Callable[[jax.Array, jax.Array], jax.Array],
    params: jax.Array,
    states: jax.Array,
    key: jax.Array,
    *,
    shots: int,
    places: np.ndarray,
    gradient: Gradient = "parameter_shift",
) -> jax.Array:
    """Estimates of the states' expectations from shots, (n,): 2 k / shots - 1 with k binomial.

    Where `expectation` returns probabilities (n, outcomes), which may leave others out, the
    estimates are the shares of the shots, (n, outcomes): one measurement serves all.

    The gradient with respect to params is estimated as a device would, from further shots. Their
    circuits have angles shifted by ±π/2 one by one (arXiv:1803.00745), or all at once by ±SPSA_STEP
    in random directions (SPSA).
    """
    key_data = jax.random.key_data(key)
    return _sampled(expectation, shots, _Places(places), gradient, params, states, key_data)


class _Places:
    """Places of angles as a static argument, which JAX compares and hashes by value."""

    def __init__(self, places: np.ndarray):
        self.places = places

    def __eq__(self, other) -> bool:
        return isinstance(other, _Places) and np.array_equal(self.places, other.places)

    def __hash__(self) -> int:
        return hash(self.places.tobytes())


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _sampled(expectation, shots, places, gradient, params, states, key_data):
    exact = expectation(params, states)
    return _shots(exact, shots, jax.random.wrap_key_data(key_data))


def _shots(expectation: jax.Array, shots: int, key: jax.Array) -> jax.Array:
    if expectation.ndim == 2:
        shares = jnp.clip(expectation, 0, 1)
        rest = jnp.clip(1 - shares.sum(axis=1, keepdims=True), 0, 1)
        every = jnp.concatenate([shares, rest], axis=1)
        every = every / every.sum(axis=1, keepdims=True)
        counts = jax.random.multinomial(key, shots, every, dtype=expectation.dtype)
        return counts[:, :-1] / shots
    probability = jnp.clip((1 + expectation) / 2, 0, 1)
    counts = jax.random.binomial(key, shots, probability, dtype=expectation.dtype)
    return 2 * counts / shots - 1


def _forward(expectation, shots, places, gradient, params, states, key_data):
    value = _sampled(expectation, shots, places, gradient, params, states, key_data)
    return value, (params, states, key_data)


def _backward(expectation, shots, places, gradient, kept, cotangent):
    params, states, key_data = kept
    # the gradient's shots are drawn independently of the value's
    key = jax.random.fold_in(jax.random.wrap_key_data(key_data), 1)
    index = tuple(places.places.T)
    n_angles = len(places.places)

    def difference(arguments):
        """The cotangent times half the difference of the sampled expectations at params ± shift."""
        shift, shots_key = arguments
        sampled_ends = []
        for k, sign in enumerate((1, -1)):
            exact = expectation(params + sign * shift, states)
            key_of_end = jax.random.fold_in(shots_key, k)
            sampled_ends.append(_shots(exact, shots, key_of_end))
        plus, minus = sampled_ends
        return cotangent.reshape(-1) @ (plus - minus).reshape(-1) / 2

    if gradient == "spsa":
        signs_key = jax.random.fold_in(key, 2)
        signs = jax.random.rademacher(signs_key, (n_angles,), params.dtype)
        unshifted = jnp.zeros_like(params)
        shift = unshifted.at[index].set(SPSA_STEP * signs)
        slope = difference((shift, key)) / SPSA_STEP
        slopes = slope * signs
    else:
        keys = jax.random.split(key, n_angles)

        def of_angle(arguments):
            place, shots_key = arguments
            unshifted = jnp.zeros_like(params)
            shift = unshifted.at[tuple(place)].set(math.pi / 2)
            return difference((shift, shots_key))

        places_of_angles = jnp.asarray(places.places)
        slopes = jax.lax.map(of_angle, (places_of_angles, keys))
    of_params = jnp.zeros_like(params).at[index].set(slopes)
    of_states = jnp.zeros_like(states)
    of_key = np.zeros(key_data.shape, jax.dtypes.float0)
    return of_params, of_states, of_key


_sampled.defvjp(_forward, _backward)
