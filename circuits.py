"""The QNN's circuits: the ansatz in TensorCircuit, and its fast evaluation.

`ansatz`, gate by gate, is the definition; everything else here is an implementation of it and is tested
against it. Qubit 0 is the most significant bit and R_P(theta) = exp(-i theta P / 2), TensorCircuit's
conventions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
LARGEST_V = 7  # qubits of the largest matrix that acts on the states in front of the folded layers
LAYER, PRODUCT, PASS = 55.0, 0.06, 8.0  # ns per amplitude (a complex multiplication, a pass), there and back


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
    gates, bonds = rotation_gates(params, rotations), params[..., -1]
    if states.ndim == 3:
        w = _half_observable(gates, bonds, depth)[0, 0]
        return jnp.tensordot(states, _pack(2 * w.conj().T @ w - jnp.eye(w.shape[1])), 2)
    folded = cheapest_fold(len(states), n_qubits, depth) if folded is None else folded
    return _cone_expectation(gates, bonds, jnp.asarray(states), folded)


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


def _half_observable(gates: jax.Array, bonds: jax.Array, folded: int) -> jax.Array:
    """W = <0|U, with which <Z> = 2 |W psi|^2 - |psi|^2: (a, b, d/2, d) on the cone of the last `folded` layers.

    U is those layers and <0| the bra of the measured qubit: half the rows of U'ZU, and one product less than a
    conjugation. If a layer remains in front, its ring and its rotations of the cone's qubits are taken in as
    well. That ring couples the cone to its neighbours, in which it is diagonal: W is one matrix for each of the
    a basis states of the left and the b of the right neighbour (1 where there is none).
    """
    depth, n_qubits = bonds.shape
    front = depth - folded
    cone = light_cone(n_qubits, 1)
    rows = gates[-1, cone[0], :1]
    layer = depth - 2
    while layer >= max(front - 1, 0) and len(cone) < n_qubits:
        register = light_cone(n_qubits, depth - layer)
        blocks = _times_rotations(_times_ring(rows, bonds[layer], cone, register), gates[layer], cone)
        if layer < front:
            return blocks
        rows = _times_neighbours(blocks, gates[layer], register)
        cone, layer = register, layer - 1
    if layer >= max(front - 1, 0):  # the cone holds the whole ring and grows no more

        def times_layer(rows, gates_and_bonds):
            layer_gates, layer_bonds = gates_and_bonds
            return _times_rotations(_times_ring(rows, layer_bonds, cone, cone)[0, 0], layer_gates, cone), None

        taken = slice(max(front - 1, 0), layer + 1)
        rows = jax.lax.scan(times_layer, rows, (gates[taken], bonds[taken]), reverse=True)[0]
    return rows[None, None]


def _times_ring(rows: jax.Array, bonds: jax.Array, cone: tuple[int, ...], register: tuple[int, ...]) -> jax.Array:
    """Times the RZZ ring: (h, d) on the cone -> (a, b, h, d), diagonal in the register's other qubits."""
    n_left, n_right = len(register) > len(cone), len(register) > len(cone) + 1
    phases = _ring_phases(bonds, register).reshape(2**n_left, -1, 2**n_right)
    return rows * phases.transpose(0, 2, 1)[:, :, None]


def _times_rotations(rows: jax.Array, gates: jax.Array, qubits: Sequence[int]) -> jax.Array:
    """Rows (..., 2**len(qubits)) times the rotations of these qubits."""
    transposed = gates[np.array(qubits)].swapaxes(-1, -2)
    return _rotate(transposed, rows.reshape(-1, rows.shape[-1])).reshape(rows.shape)


def _times_neighbours(blocks: jax.Array, gates: jax.Array, register: tuple[int, ...]) -> jax.Array:
    """Blocks times the rotations of the neighbours: (a, b, h, d) -> (a b h, a d b) on the register."""
    a, b, _, d = blocks.shape
    left = gates[register[0]] if a > 1 else jnp.eye(1)
    right = gates[register[-1]] if b > 1 else jnp.eye(1)
    return jnp.einsum("abhj,al,br->abhljr", blocks, left, right).reshape(-1, a * d * b)


def _cone_expectation(gates: jax.Array, bonds: jax.Array, states: jax.Array, folded: int) -> jax.Array:
    """2 |W V psi|^2 - |psi|^2: V acts on few qubits, W on the cone; real products, with the samples in columns."""
    n, (depth, n_qubits) = len(states), bonds.shape
    norms = (states.real**2 + states.imag**2).sum(axis=1)
    cone, front = light_cone(n_qubits, folded), depth - folded - 1  # W holds the cone's part of layer `front`
    outside = [(cone[-1] + 1 + place) % n_qubits for place in range(n_qubits - len(cone))]
    w = _half_observable(gates, bonds, folded)
    a, b, h, d = w.shape
    apart = takes_apart(n_qubits, depth, folded)
    n_evolved = max(front, 0) - apart
    if n_evolved:
        states = _evolve(gates[:n_evolved], bonds[:n_evolved], states, _rzz_ring)

    acted = outside[-1:] * (a > 1) + outside[:1] * (b > 1)  # the neighbours
    passive = [qubit for qubit in outside if qubit not in acted]
    v = kronecker(gates[front, np.array(acted)]) if acted else None
    edges, inner = [], list(cone)
    if apart:
        edges = list(dict.fromkeys([cone[0], cone[-1]]))
        inner = [qubit for qubit in cone if qubit not in edges]
        w, v = _layer_apart(w, v, gates[front - 1], bonds[front - 1], cone, edges + inner, acted + edges + passive)
        acted, passive = acted + edges + passive, []

    x = _columns(states, acted + inner + passive)
    e, i, p = 2 ** len(edges), 2 ** len(inner), n * 2 ** len(passive)
    if acted:
        x = _real_matrix(v.reshape(a * b, -1, v.shape[1]), of_real=len(x) == 1) @ x.reshape(-1, i * p)
        x = x.reshape(a * b, 2 * e, -1, i, p).swapaxes(2, 3)  # qubits out of W's reach become columns
    of_real = len(x) == 1 and not acted
    y = _real_matrix(w.reshape(a * b, h, d), of_real=of_real) @ x.reshape(a * b, (2 - of_real) * e * i, -1)
    return 2 * (y**2).reshape(-1, n).sum(axis=0) - norms


def takes_apart(n_qubits: int, depth: int, folded: int) -> bool:
    """Whether the layer before those that W takes in is taken apart between W and V; else it acts on the states.

    Its bonds within the cone and the rotations of the cone's inner qubits commute with the rest of it.
    """
    cone = len(light_cone(n_qubits, folded))
    acted = n_qubits - max(cone - 2, 0)
    return folded + 1 < depth and cone < n_qubits and acted <= LARGEST_V


def _layer_apart(
    w: jax.Array, v: jax.Array, gates: jax.Array, bonds: jax.Array,
    cone: tuple[int, ...], inside: list[int], acted: list[int],
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """W times what the layer does within the cone, columns in the order `inside`; V times what it does on `acted`."""
    inner = [qubit for qubit in inside if qubit not in acted]
    rows = (w * _ring_phases(bonds, cone)).reshape(-1, *(2,) * len(cone))
    rows = rows.transpose(0, *(1 + cone.index(qubit) for qubit in inside)).reshape(-1, 2 ** len(inner))
    rows = _times_rotations(rows, gates, inner) if inner else rows
    layer = _ring_phases(bonds, tuple(acted))[:, None] * kronecker(gates[np.array(acted)])
    return rows.reshape(w.shape), (v @ layer.reshape(len(v), -1)).reshape(layer.shape)


def _columns(states: jax.Array, order: list[int]) -> jax.Array:
    """(n, 2**n_qubits) -> (1 or 2, 2**n_qubits, n): real and, if complex, imaginary parts, the qubits in `order`."""
    parts = jnp.stack([states.real, states.imag]) if jnp.iscomplexobj(states) else states[None]
    cube = parts.reshape(*parts.shape[:2], *(2,) * len(order))
    return cube.transpose(0, *(2 + qubit for qubit in order), 1).reshape(len(parts), -1, len(states))


def _real_matrix(matrix: jax.Array, *, of_real: bool) -> jax.Array:
    """What gives (Re, Im) of the product from (Re v, Im v), or from v real: real products run twice as fast."""
    columns = jnp.concatenate([matrix.real, matrix.imag], axis=-2)
    if of_real:
        return columns
    return jnp.concatenate([columns, jnp.concatenate([-matrix.imag, matrix.real], axis=-2)], axis=-1)


def cheapest_fold(n_samples: int, n_qubits: int, depth: int) -> int:
    """How many of the last layers to fold into W: the number that is counted to take the least time.

    Weighed for one step of value and gradient over complex states, in nanoseconds as measured on 2 cores: W has
    the cost of a layer on as many states as it has rows.
    """
    saturated = n_qubits // 2 + 1

    def cost(folded: int) -> float:
        cone = len(light_cone(n_qubits, folded))
        n_neighbours = min(n_qubits - cone, 2) if folded < depth else 0
        apart = takes_apart(n_qubits, depth, folded)
        acted = n_qubits - max(cone - 2, 0) if apart else n_neighbours
        n_evolved = max(depth - folded - 1, 0) - apart
        products = PRODUCT * (2**cone + 2 * 2**acted) + PASS * (1 + (acted > 0))
        w_elements = 2 ** (n_neighbours + 2 * cone - 1)
        return 2**n_qubits * n_samples * (n_evolved * LAYER + products) + w_elements * LAYER * max(
            1, folded - saturated
        )

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
