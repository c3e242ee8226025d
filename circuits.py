"""The QNN's circuits: the ansatz in TensorCircuit, and its fast evaluation.

`ansatz`, gate by gate, is the definition; everything else here is an implementation of it and is tested
against it. Qubit 0 is the most significant bit and R_P(theta) = exp(-i theta P / 2), TensorCircuit's
conventions.
"""

from __future__ import annotations

from functools import cache, partial, reduce
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import tensorcircuit

Rotations = Literal["xyx", "xy"]
Entangler = Literal["rzz", "cnot"]

BLOCK_QUBITS = 4  # qubits whose rotations are multiplied out into one matrix: 16 x 16 was fastest


@cache
def tensorcircuit_on_jax():
    """TensorCircuit with its JAX backend set, imported at first use (it costs seconds)."""
    import tensorcircuit

    tensorcircuit.set_backend("jax")
    return tensorcircuit


def parameters_per_qubit(rotations: Rotations, entangler: Entangler) -> int:
    """How many angles a qubit has in each layer: its rotations, and one RZZ bond where there is one."""
    return len(rotations) + (entangler == "rzz")


def ansatz(
    params: jax.Array,
    inputs: jax.Array | None = None,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> tensorcircuit.Circuit:
    """The circuit, gate by gate.

    Each layer rotates every qubit about the axes of `rotations` in turn, then closes a ring of RZZ(theta) or
    CNOT on the bonds (q, q+1 mod n_qubits), q = 0 first (arXiv:2508.02422; models.py, `build_ansatz`).

    params: (depth, n_qubits, parameters_per_qubit) angles in radians.
    inputs: (2**n_qubits,) amplitudes, not necessarily normalised; None is |0...0>.
    """
    depth, n_qubits, _ = params.shape
    circuit = tensorcircuit_on_jax().Circuit(n_qubits, inputs=inputs)
    for layer in range(depth):
        for qubit in range(n_qubits):
            for position, axis in enumerate(rotations):
                getattr(circuit, f"r{axis}")(qubit, theta=params[layer, qubit, position])
        for qubit in range(n_qubits):
            neighbour = (qubit + 1) % n_qubits
            if entangler == "rzz":
                circuit.rzz(qubit, neighbour, theta=params[layer, qubit, len(rotations)])
            else:
                circuit.cnot(qubit, neighbour)
    return circuit


def expectation(
    params: jax.Array,
    states: jax.Array,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> jax.Array:
    """<Z> on the last qubit after the ansatz, for a batch of states.

    params: (depth, n_qubits, parameters_per_qubit) real angles.
    states: (n, 2**n_qubits) real or complex amplitudes; those that are not normalised give <psi|U'ZU|psi>.
    Returns (n,) real. This is the one place that says how the circuit is evaluated.
    """
    evolved = evolve(params, states, rotations=rotations, entangler=entangler)  # (n, 2**n_qubits)
    probabilities = evolved.real**2 + evolved.imag**2
    return probabilities[:, 0::2].sum(axis=1) - probabilities[:, 1::2].sum(axis=1)


def evolve(
    params: jax.Array, states: jax.Array, *, rotations: Rotations = "xyx", entangler: Entangler = "rzz"
) -> jax.Array:
    """The states after the ansatz, layer by layer: (n, 2**n_qubits) complex.

    A layer's rotations are applied as a few Kronecker blocks, its RZZ ring as one elementwise phase and its
    CNOT ring as one permutation, under a scan over layers so that the compile time does not grow with depth.
    """
    n_qubits = params.shape[1]
    entangle = partial(_rzz_ring, n_qubits=n_qubits) if entangler == "rzz" else partial(_cnot_ring, n_qubits=n_qubits)

    def layer(states, angles):  # angles (n_qubits, parameters_per_qubit)
        gates = rotation_gates(angles[:, : len(rotations)], rotations)
        return entangle(_rotate(gates, states), angles[:, -1]), None

    states = states.astype(jnp.result_type(params, 1j))
    return jax.lax.scan(layer, states, params)[0]


def rotation_gates(angles: jax.Array, rotations: Rotations) -> jax.Array:
    """The product of each qubit's rotations, from TensorCircuit's gates: (q, len(rotations)) -> (q, 2, 2)."""
    gates = tensorcircuit_on_jax().gates

    def one_qubit(thetas):
        matrices = [getattr(gates, f"r{axis}_gate")(thetas[i]).tensor for i, axis in enumerate(rotations)]
        return reduce(lambda product, gate: gate @ product, matrices)

    return jax.vmap(one_qubit)(angles)


def kronecker(gates: jax.Array) -> jax.Array:
    """The Kronecker product of (q, 2, 2) gates, the first the most significant: (2**q, 2**q)."""
    return reduce(jnp.kron, gates)


def _rotate(gates: jax.Array, states: jax.Array) -> jax.Array:
    n, n_qubits = len(states), len(gates)
    n_blocks = -(-n_qubits // BLOCK_QUBITS)
    blocks = [kronecker(part) for part in _split_evenly(gates, n_blocks)]
    states = states.reshape(n, *(len(block) for block in blocks))
    for block in blocks:  # acting on axis 1 and moving it to the end leaves the next block's axis in its place
        states = jnp.einsum("nb...,ab->n...a", states, block)
    return states.reshape(n, -1)


def _split_evenly(gates: jax.Array, n_blocks: int) -> list[jax.Array]:
    sizes = [len(part) for part in np.array_split(np.arange(len(gates)), n_blocks)]
    return jnp.split(gates, np.cumsum(sizes)[:-1])


def _rzz_ring(states: jax.Array, angles: jax.Array, *, n_qubits: int) -> jax.Array:
    phases = jnp.asarray(bond_signs(n_qubits), angles.dtype) @ angles  # (2**n_qubits,)
    return states * jax.lax.complex(jnp.cos(phases / 2), -jnp.sin(phases / 2))


def _cnot_ring(states: jax.Array, _: jax.Array, *, n_qubits: int) -> jax.Array:
    return states[:, cnot_permutation(n_qubits)]


@cache
def bond_signs(n_qubits: int) -> np.ndarray:
    """Eigenvalue of Z_q Z_{q+1 mod n} in each basis state: (2**n_qubits, n_qubits) of +1 and -1."""
    bits = basis_bits(n_qubits)
    signs = 1 - 2 * bits.astype(np.int8)
    return signs * np.roll(signs, -1, axis=1)


@cache
def cnot_permutation(n_qubits: int) -> np.ndarray:
    """The CNOT ring as an index permutation p: state after = state before [p], (2**n_qubits,)."""
    bits = basis_bits(n_qubits).copy()
    for qubit in range(n_qubits):
        bits[:, (qubit + 1) % n_qubits] ^= bits[:, qubit]
    image = bits @ (1 << np.arange(n_qubits)[::-1])
    return np.argsort(image)


def basis_bits(n_qubits: int) -> np.ndarray:
    """The bits of 0 ... 2**n_qubits - 1, most significant first: (2**n_qubits, n_qubits)."""
    return (np.arange(2**n_qubits)[:, None] >> np.arange(n_qubits)[::-1]) & 1
