"""The QNN's circuits: the ansatz in TensorCircuit, and its fast evaluation.

`ansatz`, gate by gate, is the definition; everything else here is an implementation of it and is tested
against it. Qubit 0 is the most significant bit and R_P(theta) = exp(-i theta P / 2), TensorCircuit's
conventions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, reduce
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import tensorcircuit

Rotations = Literal["xyx", "xy"]
Entangler = Literal["rzz", "cnot"]

BLOCK_QUBITS = 4  # qubits whose rotations are multiplied out into one matrix: 16 x 16 was fastest
PASS = 12  # multiplications per amplitude that a pass over the states costs as much time as (measured, 2 cores)


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
    folded: int | None = None,
) -> jax.Array:
    """<Z> on the last qubit after the ansatz, for a batch of states.

    params: (depth, n_qubits, parameters_per_qubit) real angles.
    states: (n, 2**n_qubits) real or complex amplitudes; those that are not normalised give <psi|U'ZU|psi>. Or
        (n, d, d), what `reduce_states` made of them.
    folded: how many of the last layers go into the observable (RZZ ring only); None counts what is cheapest.
    Returns (n,) real. This is the one place that says how the circuit is evaluated.

    With an RZZ ring the measured Z has a light cone: going backwards, its support grows by one qubit on each
    side a layer. So the last layers are folded into a small Heisenberg-picture matrix, once for all samples,
    and only the first ones act on the states. A CNOT ring has no cone (one ring turns Z on the last qubit into
    Z on all of them): there the states are evolved through all layers.
    """
    depth, n_qubits, _ = params.shape
    if entangler == "cnot":
        return _last_z(evolve(params, states, rotations=rotations, entangler=entangler))
    if states.ndim == 3:
        observable = heisenberg_observable(params, depth, rotations=rotations)[0, 0]
        return jnp.tensordot(states, _pack(observable), 2)
    folded = cheapest_fold(len(states), n_qubits, depth) if folded is None else folded
    return _cone_expectation(params, states, rotations, folded)


def _last_z(states: jax.Array) -> jax.Array:
    probabilities = states.real**2 + states.imag**2
    return probabilities[:, 0::2].sum(axis=1) - probabilities[:, 1::2].sum(axis=1)


# ---- all layers on the states ----


def evolve(
    params: jax.Array, states: jax.Array, *, rotations: Rotations = "xyx", entangler: Entangler = "rzz"
) -> jax.Array:
    """The states after the ansatz, layer by layer: (n, 2**n_qubits) complex.

    A layer's rotations are applied as a few Kronecker blocks, its RZZ ring as one elementwise phase and its
    CNOT ring as one permutation, under a scan over layers so that the compile time does not grow with depth.
    """
    entangle = _rzz_ring if entangler == "rzz" else _cnot_ring
    return _evolve(rotation_gates(params, rotations), params[..., -1], states, entangle)


def _evolve(gates: jax.Array, bonds: jax.Array, states: jax.Array, entangle: Callable) -> jax.Array:
    def layer(states, layer_gates_and_bonds):
        layer_gates, layer_bonds = layer_gates_and_bonds
        return entangle(_rotate(layer_gates, states), layer_bonds), None

    return jax.lax.scan(layer, states.astype(gates.dtype), (gates, bonds))[0]


def _rotate(gates: jax.Array, states: jax.Array) -> jax.Array:
    n, n_qubits = len(states), len(gates)
    blocks = [kronecker(part) for part in jnp.split(gates, np.cumsum(_block_sizes(n_qubits))[:-1])]
    states = states.reshape(n, *(len(block) for block in blocks))
    for block in blocks:  # acting on axis 1 and moving it to the end leaves the next block's axis in its place
        states = jnp.einsum("nb...,ab->n...a", states, block)
    return states.reshape(n, -1)


def _block_sizes(n_qubits: int) -> list[int]:
    n_blocks = -(-n_qubits // BLOCK_QUBITS)
    return [len(part) for part in np.array_split(np.arange(n_qubits), n_blocks)]


def _rzz_ring(states: jax.Array, bonds: jax.Array) -> jax.Array:
    return states * _ring_phases(bonds, tuple(range(len(bonds))))


def _cnot_ring(states: jax.Array, bonds: jax.Array) -> jax.Array:
    return states[:, cnot_permutation(len(bonds))]


# ---- the light cone of the measured Z ----


def light_cone(n_qubits: int, layers: int) -> tuple[int, ...]:
    """The qubits on which Z of the last one acts after `layers` rotations and the RZZ rings between them.

    In ring order; each ring adds a neighbour on either side until the cone is the whole ring.
    """
    layers = min(layers, n_qubits // 2 + 1)
    return tuple((n_qubits - layers + place) % n_qubits for place in range(min(2 * layers - 1, n_qubits)))


def heisenberg_observable(params: jax.Array, folded: int, *, rotations: Rotations = "xyx") -> jax.Array:
    """Z of the last qubit, evolved backwards through the last `folded` layers: (a, b, d, d) on its light cone.

    d is the dimension of light_cone(n_qubits, folded). If a layer remains in front, its ring and its rotations
    of the cone's qubits are taken in as well. That ring couples the cone to its neighbours, in which it is
    diagonal: the observable is one matrix for each of the a basis states of the left and the b of the right
    neighbour (1 where there is none).
    """
    return _heisenberg_observable(rotation_gates(params, rotations), params[..., -1], folded)


def _heisenberg_observable(gates: jax.Array, bonds: jax.Array, folded: int) -> jax.Array:
    depth, n_qubits = bonds.shape
    cone = light_cone(n_qubits, 1)
    observable = _undo_rotations(jnp.diag(jnp.array([1, -1], gates.dtype)), gates[-1], cone)
    front, layer = depth - folded, depth - 2  # layers before `front` are not folded
    while layer >= front and len(cone) < n_qubits:
        register = light_cone(n_qubits, depth - layer)
        blocks = _undo_ring(observable, bonds[layer], cone, register)
        observable = _undo_rotations(_direct_sum(blocks), gates[layer], register)
        cone, layer = register, layer - 1
    if layer >= front:  # the cone holds the whole ring and grows no more

        def undo_layer(observable, gates_and_bonds):
            layer_gates, layer_bonds = gates_and_bonds
            return _undo_rotations(_undo_ring(observable, layer_bonds, cone, cone)[0, 0], layer_gates, cone), None

        rest = gates[front : layer + 1], bonds[front : layer + 1]
        observable = jax.lax.scan(undo_layer, observable, rest, reverse=True)[0]
    if front == 0:
        return observable[None, None]
    blocks = _undo_ring(observable, bonds[front - 1], cone, light_cone(n_qubits, folded + 1))
    return _undo_rotations(blocks, gates[front - 1], cone)


def _undo_rotations(observable: jax.Array, gates: jax.Array, qubits: tuple[int, ...]) -> jax.Array:
    unitary = kronecker(gates[np.array(qubits)])
    return unitary.conj().T @ observable @ unitary


def _undo_ring(observable: jax.Array, bonds: jax.Array, cone: tuple[int, ...], register: tuple[int, ...]) -> jax.Array:
    """Conjugate by the RZZ ring: (d, d) on the cone -> (a, b, d, d), diagonal in the register's other qubits."""
    n_left, n_right = len(register) > len(cone), len(register) > len(cone) + 1
    phases = _ring_phases(bonds, register).reshape(2**n_left, -1, 2**n_right)
    return jnp.einsum("aib,ij,ajb->abij", phases.conj(), observable, phases)


def _direct_sum(blocks: jax.Array) -> jax.Array:
    """(a, b, d, d) blocks -> the matrix on left neighbour, cone, right neighbour: (a d b, a d b)."""
    a, b, d, _ = blocks.shape
    return jnp.einsum("abij,ac,bf->aibcjf", blocks, jnp.eye(a), jnp.eye(b)).reshape(a * d * b, a * d * b)


def _cone_expectation(params: jax.Array, states: jax.Array, rotations: Rotations, folded: int) -> jax.Array:
    n, (depth, n_qubits, _) = len(states), params.shape
    gates, bonds = rotation_gates(params, rotations), params[..., -1]
    observable = _heisenberg_observable(gates, bonds, folded)
    a, b, d, _ = observable.shape

    first = light_cone(n_qubits, folded + (folded < depth))[0]  # qubits from here on: left, cone, right, rest
    gates, bonds = jnp.roll(gates, -first, axis=1), jnp.roll(bonds, -first, axis=1)
    states = states.reshape(n, 2**first, -1).swapaxes(1, 2).reshape(n, -1)
    front = depth - folded - 1  # layers that act on the states whole
    if front > 0:
        states = _evolve(gates[:front], bonds[:front], states, _rzz_ring)
    states = states.reshape(n, a, d, b, -1).transpose(1, 3, 2, 0, 4).reshape(a * b, -1)
    if a * b > 1:  # of the last layer in front, the rotations of the cone's neighbours are left
        states = kronecker(gates[front, np.array([0, len(light_cone(n_qubits, folded)) + 1])[: 1 + (b > 1)]]) @ states
    vectors = _real_vector(states.reshape(a, b, d, -1))  # (a, b, 2 d, n * rest)
    return _quadratic_form(_real_matrix(observable), vectors).reshape(n, -1).sum(axis=1)


@jax.custom_jvp
def _quadratic_form(matrices: jax.Array, vectors: jax.Array) -> jax.Array:
    """Sum over blocks of v'Mv, M symmetric: (a, b, k, k), (a, b, k, m) -> (m,). Its gradient reuses M v."""
    return jnp.einsum("abkm,abkm->m", vectors, matrices @ vectors)


@_quadratic_form.defjvp
def _quadratic_form_jvp(primals, tangents):
    (matrices, vectors), (matrices_dot, vectors_dot) = primals, tangents
    products = matrices @ vectors
    change = 2 * jnp.einsum("abkm,abkm->m", products, vectors_dot)
    change += jnp.einsum("abkm,abkl,ablm->m", vectors, matrices_dot, vectors)
    return jnp.einsum("abkm,abkm->m", vectors, products), change


def _real_matrix(matrix: jax.Array) -> jax.Array:
    """A Hermitian matrix as the real symmetric one that acts on (Re v, Im v): real products run twice as fast."""
    top = jnp.concatenate([matrix.real, -matrix.imag], axis=-1)
    return jnp.concatenate([top, jnp.concatenate([matrix.imag, matrix.real], axis=-1)], axis=-2)


def _real_vector(vectors: jax.Array) -> jax.Array:
    return jnp.concatenate([vectors.real, vectors.imag], axis=-2)


def cheapest_fold(n_samples: int, n_qubits: int, depth: int) -> int:
    """How many of the last layers to fold into the observable: the number that counts fewest multiplications.

    Weighed for one step of value and gradient: a forward layer costs its products three times (forward, and
    backward to states and to gates), the quadratic form twice, thanks to its reuse; each pass over the states
    costs as much as `PASS` multiplications per amplitude in memory traffic.
    """
    amplitudes = n_samples * 2**n_qubits
    saturated = n_qubits // 2 + 1
    blocks = _block_sizes(n_qubits)
    layer = 3 * (sum(2**size for size in blocks) + (len(blocks) + 1) * PASS)

    def cost(folded: int) -> float:
        per_amplitude = layer * max(depth - folded - 1, 0) + 3 * (4 + PASS) * (folded < depth)
        d = 2 ** len(light_cone(n_qubits, folded))
        grown = [2 ** len(light_cone(n_qubits, layers)) for layers in range(1, folded + 1)]
        in_front = 4 * d**3 * (folded < depth)
        return amplitudes * (per_amplitude + 2 * (d + PASS)) + 6 * (sum(size**3 for size in grown) + in_front)

    return min({*range(1, min(depth, saturated) + 1), depth}, key=cost)


# ---- states reduced to the cone ----


def reduced_dimension(n_qubits: int, depth: int) -> int:
    """The dimension of the register that the whole circuit's light cone covers."""
    return 2 ** len(light_cone(n_qubits, depth))


def reduce_states(states: jax.Array, depth: int) -> jax.Array:
    """Each state's density matrix on the light cone of `depth` layers, packed real: (n, 2**n_qubits) -> (n, d, d).

    The upper triangle with the diagonal holds Re rho, the lower one Im rho: d**2 numbers are all of it. With
    them an expectation is one scalar product with the observable, and no state is evolved.
    """
    n, n_qubits = len(states), int(np.log2(states.shape[1]))
    cone = light_cone(n_qubits, depth)
    rolled = states.reshape(n, 2 ** cone[0], -1).swapaxes(1, 2).reshape(n, 2 ** len(cone), -1)
    density = jnp.einsum("nir,njr->nij", rolled, rolled.conj())
    return jnp.where(_upper(density), density.real, density.imag)


def _pack(observable: jax.Array) -> jax.Array:
    """The real matrix whose scalar product with a packed density matrix is tr(O rho), for Hermitian O."""
    twice = 2 - jnp.eye(len(observable))
    return twice * jnp.where(_upper(observable), observable.real, observable.imag)


def _upper(matrix: jax.Array) -> np.ndarray:
    return np.triu(np.ones(matrix.shape[-2:], bool))


# ---- gates ----


def rotation_gates(angles: jax.Array, rotations: Rotations) -> jax.Array:
    """The product of a qubit's rotations, from TensorCircuit's gates: (..., angles) -> (..., 2, 2)."""
    gates = tensorcircuit_on_jax().gates

    def one_qubit(thetas):
        matrices = [getattr(gates, f"r{axis}_gate")(thetas[i]).tensor for i, axis in enumerate(rotations)]
        return reduce(lambda product, gate: gate @ product, matrices)

    return jax.vmap(one_qubit)(angles.reshape(-1, angles.shape[-1])).reshape(*angles.shape[:-1], 2, 2)


def kronecker(gates: jax.Array) -> jax.Array:
    """The Kronecker product of (q, 2, 2) gates, the first the most significant: (2**q, 2**q)."""
    return reduce(jnp.kron, gates)


def _ring_phases(angles: jax.Array, register: tuple[int, ...]) -> jax.Array:
    """Diagonal of the RZZ bonds (q, q+1) that lie within the register: (2**len(register),) complex."""
    phases = jnp.asarray(bond_signs(len(angles), register), angles.dtype) @ angles / 2
    return jax.lax.complex(jnp.cos(phases), -jnp.sin(phases))


@cache
def bond_signs(n_qubits: int, register: tuple[int, ...]) -> np.ndarray:
    """Eigenvalue of each ring bond Z_q Z_{q+1} in the register's basis states: (2**len(register), n_qubits).

    +1 or -1; 0 for bonds that are not within the register.
    """
    signs = 1 - 2 * basis_bits(len(register))
    place = {qubit: index for index, qubit in enumerate(register)}
    bonds = np.zeros((len(signs), n_qubits))
    for qubit in register:
        neighbour = (qubit + 1) % n_qubits
        if neighbour in place:
            bonds[:, qubit] = signs[:, place[qubit]] * signs[:, place[neighbour]]
    return bonds


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
