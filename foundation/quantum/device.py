"""What a device adds to an expectation: noise on gates and readout, exactly, and finite shots.

The measured Z is evolved backwards through gates and channels, once for all samples, as the real
coefficients of its Pauli strings on the light cone: there a depolarising channel is a factor.
Gradients of sampled expectations are sampled as well, by the parameter-shift rule or SPSA.
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

from foundation.base.checks import require
from foundation.quantum.circuits import (
    Entangler,
    Rotations,
    in_order,
    light_cone,
    packed_expectation,
    rotation_gates,
)

Gradient = Literal["parameter_shift", "spsa"]
PAULIS = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
PAIRS = np.einsum("pij,qkl->pqikjl", PAULIS, PAULIS).reshape(16, 4, 4)
SPSA_STEP = 0.1  # radians


@dataclass(frozen=True)
class Noise:
    """Depolarising noise after each gate, and readout error: probabilities.

    p1, p2: that one of the Paulis other than the identity, each as likely, acts after a rotation,
    or after an entangler on its two qubits. readout: that the measured bit is read as the other
    one.
    """

    p1: float = 0.0
    p2: float = 0.0
    readout: float = 0.0

    def __post_init__(self):
        for name in ("p1", "p2", "readout"):
            value = getattr(self, name)
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            require(number and 0 <= value <= 1, name, value, "a probability, 0 to 1")
            object.__setattr__(self, name, float(value))

    @property
    def words(self) -> str:
        """Those that are not 0, such as p1=0.0001,p2=0.001."""
        return ",".join(
            f"{name}={getattr(self, name):g}"
            for name in ("p1", "p2", "readout")
            if getattr(self, name)
        )


# ---- the observable under noise ----


def register(n_qubits: int, layers: int, entangler: Entangler) -> tuple[int, ...]:
    """The qubits that the measured Z reaches, in ring order; with a CNOT ring all of them."""
    return light_cone(n_qubits, layers) if entangler == "rzz" else tuple(range(n_qubits))


def noisy_observable(
    params: jax.Array, noise: Noise, *, rotations: Rotations = "xyx", entangler: Entangler = "rzz"
) -> jax.Array:
    """The observable whose expectation in the input state is the mean of what a noisy device reads:
    (d, d) complex.

    params: (depth, n_qubits, angles) of `circuits.ansatz`. It acts on the qubits of
    `register(n_qubits, depth, …)`, the first the most significant.
    """
    depth, n_qubits, _ = params.shape
    qubits = register(n_qubits, 1, entangler)
    strings = jnp.zeros((4,) * len(qubits), params.dtype)
    strings = strings.at[(0,) * (len(qubits) - 1) + (3,)].set(1 - 2 * noise.readout)
    gates, factor = rotation_gates(params, rotations), (1 - 4 * noise.p1 / 3) ** len(rotations)
    damped = jnp.asarray([1, factor, factor, factor], params.dtype)
    for layer in reversed(range(depth)):
        wider = register(n_qubits, depth - layer, entangler)
        left, right = _grown(qubits, wider)
        # I on the qubits that are new
        strings = strings.reshape((1,) * left + strings.shape + (1,) * right)
        strings, qubits = jnp.pad(strings, [(0, 4 - size) for size in strings.shape]), wider
        for qubit in reversed(range(n_qubits)):
            bond = _entangled(params[layer, qubit, -1], entangler)
            strings = _through_bond(strings, bond, qubit, qubits, n_qubits, noise.p2)
        turns = _transfer(gates[layer][np.array(qubits)]) * damped
        strings = _through_rotations(strings, turns)
    return _matrix(strings)


def _grown(qubits: tuple[int, ...], wider: tuple[int, ...]) -> tuple[int, int]:
    """How many qubits were added on the left and on the right of a register in ring order."""
    left = wider.index(qubits[0])
    return left, len(wider) - left - len(qubits)


def _transfer(gates: jax.Array) -> jax.Array:
    """Of rotations (q, 2, 2) their matrices on Paulis, U'QU = Σ_P T_PQ P: (q, 4, 4) real."""
    paulis = jnp.asarray(PAULIS, gates.dtype)
    turned = jnp.einsum("nji,qjk,nkl->nqil", gates.conj(), paulis, gates)
    return jnp.einsum("pij,nqji->npq", paulis, turned).real / 2


@cache
def _parts(entangler: Entangler) -> np.ndarray:
    """(3, 16, 16): what of an entangler's matrix on pairs of Paulis is constant, goes with cos θ
    and with sin θ."""
    if entangler == "cnot":
        gates = [np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])] * 3
    else:
        zz = np.diag([1, -1, -1, 1])
        gates = [np.diag(np.exp(-0.5j * angle * np.diag(zz))) for angle in (0, np.pi / 2, np.pi)]
    zero, quarter, half = [
        np.einsum("pij,jk,qkl,li->pq", PAIRS, gate.conj().T, PAIRS, gate).real / 4 for gate in gates
    ]
    constant = (zero + half) / 2
    return np.stack([constant, zero - constant, quarter - constant])


def _entangled(angle: jax.Array, entangler: Entangler) -> jax.Array:
    """(16, 16), the entangler's matrix on pairs of Paulis."""
    constant, cosine, sine = jnp.asarray(_parts(entangler), angle.dtype)
    return (
        constant + jnp.cos(angle) * cosine + jnp.sin(angle) * sine
        if entangler == "rzz"
        else constant
    )


def _through_bond(
    strings: jax.Array,
    matrix: jax.Array,
    qubit: int,
    qubits: tuple[int, ...],
    n_qubits: int,
    p2: float,
) -> jax.Array:
    """Backwards through the noise on the bond (qubit, qubit + 1) and through its gate.

    Of a bond that leads out of the register the gate commutes with what stands there, I or Z; its
    noise acts.
    """
    ends = [end for end in (qubit, (qubit + 1) % n_qubits) if end in qubits]
    damped = 1 - 16 * p2 / 15
    if len(ends) == 1:
        shape = [1] * strings.ndim
        shape[qubits.index(ends[0])] = 4
        return strings * jnp.asarray([1, damped, damped, damped], strings.dtype).reshape(shape)
    if not ends:
        return strings
    # noise first, going backwards
    matrix = matrix * jnp.asarray([1] + [damped] * 15, strings.dtype)
    first, second = map(qubits.index, ends)
    k = strings.ndim
    if second == first + 1:
        return jnp.einsum("pq,aqb->apb", matrix, strings.reshape(4**first, 16, -1)).reshape(
            (4,) * k
        )
    apart = strings.reshape(4, -1, 4)  # the closing bond: from the last place to the first
    return jnp.einsum("cdab,bma->dmc", matrix.reshape(4, 4, 4, 4), apart).reshape((4,) * k)


def _through_rotations(strings: jax.Array, turns: jax.Array) -> jax.Array:
    """Every qubit's Paulis turned, two qubits in one product."""
    return _on_pairs(strings, list(turns)).reshape(strings.shape)


def _on_pairs(strings: jax.Array, maps: list[jax.Array]) -> jax.Array:
    """A map (4, 4) on each axis of strings (4, 4, …): the values, in the order of the axes."""
    k, flat = strings.ndim, strings.reshape(-1)
    for place in range(0, k, 2):
        pair = maps[place : place + 2]
        block = pair[0] if len(pair) == 1 else jnp.kron(*pair)
        flat = jnp.einsum("pq,aqb->apb", block, flat.reshape(4**place, len(block), -1)).reshape(-1)
    return flat


def _matrix(strings: jax.Array) -> jax.Array:
    """Σ c_P P: (4,) * k real -> (2**k, 2**k) complex."""
    k = strings.ndim
    elements = jnp.asarray(
        PAULIS.transpose(1, 2, 0).reshape(4, 4), jnp.result_type(strings.dtype, 1j)
    )
    # of each qubit its row and column
    flat = _on_pairs(strings.astype(elements.dtype), [elements] * k)
    rows, columns = range(0, 2 * k, 2), range(1, 2 * k, 2)
    return flat.reshape((2,) * 2 * k).transpose(*rows, *columns).reshape(2**k, 2**k)


def noisy_expectation(
    params: jax.Array,
    states: jax.Array,
    noise: Noise,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> jax.Array:
    """The mean of what a noisy device reads of Z on the last qubit, for a batch of states: (n,)
    real.

    states: (n, 2**n_qubits) normalised amplitudes, or (n, d, d), what `circuits.reduce_states` made
    of them.
    """
    depth, n_qubits, _ = params.shape
    observable = noisy_observable(params, noise, rotations=rotations, entangler=entangler)
    if states.ndim == 3:
        return packed_expectation(states, observable)
    rolled = in_order(states, register(n_qubits, depth, entangler))
    if not jnp.iscomplexobj(rolled):
        return jnp.sum(rolled * jnp.einsum("ij,njr->nir", observable.real, rolled), axis=(1, 2))
    return jnp.sum(rolled.conj() * jnp.einsum("ij,njr->nir", observable, rolled), axis=(1, 2)).real


def require_normalised(states: jax.Array) -> None:
    """Refuse what is no quantum state: amplitudes, or packed density matrices, without norm 1."""
    states = np.asarray(states)  # not JAX's: it would trace them within whatever is being traced
    diagonal = np.diagonal(states, axis1=1, axis2=2) if states.ndim == 3 else np.abs(states) ** 2
    norms = np.sqrt(diagonal.sum(axis=1))
    spread = f"{norms.min():.3g} to {norms.max():.3g}" if len(norms) else "none"
    require(
        bool((np.abs(norms - 1) < 1e-3).all()),
        "x",
        f"samples of norm {spread}",
        "norm 1, of quantum states (amplitude encoding), where there are shots or noise",
    )


# ---- shots ----


@cache
def acting_angles(
    n_qubits: int, depth: int, rotations: Rotations, entangler: Entangler
) -> np.ndarray:
    """(angles, 3), the places of the angles that move <Z>: those within the light cone."""
    places = []
    for layer in range(depth):
        inside, before = (
            set(register(n_qubits, depth - layer - k, entangler)) if depth - layer - k else set()
            for k in (0, 1)
        )
        places += [
            (layer, qubit, turn) for qubit in sorted(inside) for turn in range(len(rotations))
        ]
        bonds = range(n_qubits) if entangler == "rzz" and before else ()
        ends = {qubit: {qubit, (qubit + 1) % n_qubits} for qubit in bonds}
        places += [
            (layer, qubit, len(rotations))
            for qubit in bonds
            if ends[qubit] <= inside and ends[qubit] & before
        ]
    return np.array(places)


def executions(
    n_samples: int, n_angles: int, shots: int, gradient: Gradient = "parameter_shift"
) -> int:
    """How often the circuit is run for one step's loss and gradient."""
    return n_samples * shots * (1 + 2 * (n_angles if gradient == "parameter_shift" else 1))


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
    """What so many shots give of the expectations of states, (n,): 2 k / shots - 1, k binomial.

    Its gradient with respect to params is one that a device gives: from further shots, of circuits
    whose angles are shifted by ±π/2 one by one (arXiv:1803.00745), or all at once by ±SPSA_STEP in
    random directions (SPSA).
    """
    return _sampled(
        expectation, shots, _Places(places), gradient, params, states, jax.random.key_data(key)
    )


class _Places:
    """Places of angles as a static argument: equal where they are."""

    def __init__(self, places: np.ndarray):
        self.places = places

    def __eq__(self, other) -> bool:
        return isinstance(other, _Places) and np.array_equal(self.places, other.places)

    def __hash__(self) -> int:
        return hash(self.places.tobytes())


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _sampled(expectation, shots, places, gradient, params, states, key_data):
    return _shots(expectation(params, states), shots, jax.random.wrap_key_data(key_data))


def _shots(expectation: jax.Array, shots: int, key: jax.Array) -> jax.Array:
    p = jnp.clip((1 + expectation) / 2, 0, 1)
    return 2 * jax.random.binomial(key, shots, p, dtype=expectation.dtype) / shots - 1


def _forward(expectation, shots, places, gradient, params, states, key_data):
    value = _sampled(expectation, shots, places, gradient, params, states, key_data)
    return value, (params, states, key_data)


def _backward(expectation, shots, places, gradient, kept, cotangent):
    params, states, key_data = kept
    key = jax.random.fold_in(jax.random.wrap_key_data(key_data), 1)  # shots of their own
    index = tuple(places.places.T)

    def difference(arguments):
        """The cotangent times half the difference of the sampled expectations at params ± shift."""
        shift, own = arguments
        ends = [
            _shots(expectation(params + sign * shift, states), shots, jax.random.fold_in(own, k))
            for k, sign in enumerate((1, -1))
        ]
        return cotangent @ (ends[0] - ends[1]) / 2

    if gradient == "spsa":
        signs = jax.random.rademacher(
            jax.random.fold_in(key, 2), (len(places.places),), params.dtype
        )
        slope = (
            difference((jnp.zeros_like(params).at[index].set(SPSA_STEP * signs), key)) / SPSA_STEP
        )
        found = slope * signs
    else:
        keys = jax.random.split(key, len(places.places))

        def of_angle(arguments):
            place, own = arguments
            return difference((jnp.zeros_like(params).at[tuple(place)].set(math.pi / 2), own))

        found = jax.lax.map(of_angle, (jnp.asarray(places.places), keys))
    return (
        jnp.zeros_like(params).at[index].set(found),
        jnp.zeros_like(states),
        np.zeros(key_data.shape, jax.dtypes.float0),
    )


_sampled.defvjp(_forward, _backward)
