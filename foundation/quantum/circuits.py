"""The QNN's circuits: the ansatz in TensorCircuit, and its fast evaluation.

`ansatz` defines the circuit gate by gate, and the tests hold all other functions here to it. The
conventions are TensorCircuit's: qubit 0 is the most significant bit, and R_P(theta) =
exp(-i theta P / 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import jax
import jax.numpy as jnp
import numpy as np

from foundation.quantum import many_qubits
from foundation.quantum.gates import (
    Entangler,
    Rotations,
    cnot_permutation,
    kronecker,
    light_cone,
    ring_phases,
    rotation_gates,
)
from foundation.quantum.openqasm import OpenQasm as OpenQasm
from foundation.quantum.openqasm import tensorcircuit_on_jax
from foundation.quantum.openqasm import to_openqasm as to_openqasm

if TYPE_CHECKING:
    import tensorcircuit

BLOCK_QUBITS = 4  # qubits whose rotations are multiplied out into one matrix: 16 x 16 was fastest
LARGEST_V = 7  # most qubits of the matrix V that acts on the states before the folded layers
# last layers that go into the observable: 4 was fastest at 10 and 12 qubits, depths 5 to 12,
# batches of 28 to 325
FOLDED = 4
# the same where 2, 3, 4 or more of the last qubits are measured: at 10 qubits, depth 6 and batches
# of 256 the fastest, 10 classes in 1.9 times the time of two (11.9 times with all layers folded)
FOLDED_OF_MORE = (3, 2, 2, 1)


def parameters_per_qubit(rotations: Rotations, entangler: Entangler) -> int:
    """Number of angles per qubit and layer: one for each rotation and one for an RZZ bond."""
    return len(rotations) + (entangler == "rzz")


def ansatz(
    params: jax.Array,
    inputs: jax.Array | None = None,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> tensorcircuit.Circuit:
    """Build the circuit gate by gate.

    Each layer rotates every qubit about the axes of `rotations` in turn. Then RZZ(theta) or CNOT
    acts on each bond (q, q+1 mod n_qubits) of the ring, q = 0 first (arXiv:2508.02422; models.py,
    `build_ansatz`).

    params: (depth, n_qubits, parameters_per_qubit) angles in radians.
    inputs: (2**n_qubits,) amplitudes, not necessarily normalised; None is |0...0>.
    """
    depth, n_qubits, _ = params.shape
    circuit = tensorcircuit_on_jax().Circuit(n_qubits, inputs=inputs)
    for layer in range(depth):
        for qubit in range(n_qubits):
            for position, axis in enumerate(rotations):
                rotate = getattr(circuit, f"r{axis}")
                rotate(qubit, theta=params[layer, qubit, position])
        for qubit in range(n_qubits):
            neighbour = (qubit + 1) % n_qubits
            if entangler == "rzz":
                angle = params[layer, qubit, len(rotations)]
                circuit.rzz(qubit, neighbour, theta=angle)
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
    """<Z> on the last qubit after the ansatz, for a batch of states: (n,) real.

    params: (depth, n_qubits, parameters_per_qubit) real angles.
    states: (n, 2**n_qubits) real or complex amplitudes, or (n, d, d) density matrices from
        `reduce_states`. Amplitudes need no norm of 1: the result is <psi|U'ZU|psi>.
    folded: number of last layers that go into the observable (RZZ ring only); None takes a fast
        number.

    No other function decides how the circuit is evaluated. With an RZZ ring the measured Z has a
    light cone: going backwards, each layer adds one qubit on either side of its support. So the
    last layers are folded into a small Heisenberg-picture matrix, once for all samples, and only
    the first layers act on the states. A CNOT ring turns Z on the last qubit into Z on all qubits:
    there the states are evolved through all layers. States of many qubits go through the layers in
    blocks (`many_qubits`).
    """
    _check(params, states, rotations, entangler)
    depth, n_qubits, _ = params.shape
    gates, bonds, states = _operands(params, states, rotations)
    are_many = len(states) > 0 and many_qubits.are_many(n_qubits, depth, entangler)
    in_blocks = are_many and folded is None
    if entangler == "cnot" and in_blocks:
        return many_qubits.after_cnot_rings(gates, states)
    if entangler == "cnot":
        columns = _columns(states.astype(gates.dtype))
        columns = _evolve(gates, bonds, columns, entangler, close=False)
        probabilities = (columns**2).sum(axis=0)
        last_is_0 = probabilities[0::2].sum(axis=0)
        last_is_1 = probabilities[1::2].sum(axis=0)
        return last_is_0 - last_is_1
    if states.ndim == 3:
        w = _half_observable(gates, bonds, depth)[0, 0]
        doubled = 2 * w.conj().T @ w
        identity = jnp.eye(w.shape[1], dtype=w.dtype)
        return packed_expectation(states, doubled - identity)
    if in_blocks:
        w = _half_observable(gates, bonds, many_qubits.FOLDED)
        return many_qubits.after_rzz_rings(gates, bonds, states, w)
    if folded is None:
        folded = layers_to_fold(n_qubits, depth)
    return _cone_expectation(gates, bonds, states, folded)


def probabilities(
    params: jax.Array,
    states: jax.Array,
    n_outcomes: int,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
    folded: int | None = None,
) -> jax.Array:
    """Probabilities of the first bit strings of the last qubits after the ansatz: (n, n_outcomes).

    Outcome k is the bit string k of the last ceil(log2(n_outcomes)) qubits, the last one its lowest
    bit. Two outcomes are those of Z: `expectation` is the first minus the second. Amplitudes need
    no norm of 1. Arguments as of `expectation`; states (n, 2**n_qubits).
    """
    _check(params, states, rotations, entangler)
    depth, n_qubits, _ = params.shape
    most = 2**n_qubits
    if not 2 <= n_outcomes <= most or states.ndim != 2:
        got = f"{n_outcomes} of states of shape {states.shape}"
        raise ValueError(f"n_outcomes: got {got}, allowed: 2 to {most} of states (n, {most})")
    gates, bonds, states = _operands(params, states, rotations)
    if entangler == "cnot":
        columns = _columns(states.astype(gates.dtype))
        columns = _evolve(gates, bonds, columns, entangler, close=True)
        measured = measured_qubits(n_outcomes)
        by_outcome = (columns**2).reshape(-1, 2**measured, len(states))
        return by_outcome.sum(axis=0)[:n_outcomes].T
    if folded is None:
        folded = layers_to_fold(n_qubits, depth, measured_qubits(n_outcomes))
    return _cone_probabilities(gates, bonds, states, folded, n_outcomes).T


def measured_qubits(n_outcomes: int) -> int:
    """The number of qubits of which so many bit strings can be told apart, 1 at least."""
    return max((n_outcomes - 1).bit_length(), 1)


def _operands(
    params: jax.Array, states: jax.Array, rotations: Rotations
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gates, bonds, and states in the precision of both."""
    gates = rotation_gates(params, rotations)
    states = jnp.asarray(states)
    states = states.astype(jnp.promote_types(states.dtype, gates.real.dtype))
    return gates, params[..., -1], states


def _check(params: jax.Array, states: jax.Array, rotations: str, entangler: str) -> None:
    """Raise ValueError where a name is unknown or the shapes are not those of one circuit."""
    for name, value, allowed in (
        ("rotations", rotations, get_args(Rotations)),
        ("entangler", entangler, get_args(Entangler)),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: got {value}, allowed: {', '.join(allowed)}")
    angles = parameters_per_qubit(rotations, entangler)
    if params.ndim != 3 or params.shape[2] != angles:
        raise ValueError(f"params: got shape {params.shape}, allowed: (depth, n_qubits, {angles})")
    depth, n_qubits, _ = params.shape
    shapes = [(2**n_qubits,)]
    if entangler == "rzz":
        dimension = reduced_dimension(n_qubits, depth)
        shapes.append((dimension, dimension))
    if states.shape[1:] not in shapes:
        lengths_of_shapes = [", ".join(map(str, shape)) for shape in shapes]
        allowed = " or ".join(f"(n, {lengths})" for lengths in lengths_of_shapes)
        raise ValueError(f"states: got shape {states.shape}, allowed: {allowed}")


# ---- all layers on the states ----


def evolve(
    params: jax.Array,
    states: jax.Array,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> jax.Array:
    """The states after the ansatz: (n, 2**n_qubits) complex."""
    gates = rotation_gates(params, rotations)
    bonds = params[..., -1]
    columns = _columns(states.astype(gates.dtype))
    real, imaginary = _evolve(gates, bonds, columns, entangler)
    return jax.lax.complex(real, imaginary).T


def _evolve(
    gates: jax.Array, bonds: jax.Array, columns: jax.Array, entangler: Entangler, *, close=True
) -> jax.Array:
    """Apply all layers to (2, 2**n_qubits, n) real columns, the real and the imaginary parts.

    The layers run in a scan, so that the compile time does not grow with depth. The ring is cut
    into two halves, and a layer is one matrix on each half: the rotations and the bonds within it.
    Two bonds join the halves: the inner one, from the last qubit of the first half to the first
    qubit of the second, and the closing one, from the last qubit of the ring to the first. A bond
    is diagonal in the qubit that it starts from. So the second half has two matrices, one for each
    value of the qubit before it, with the inner bond in them; and in the next layer the first half
    has two, one for each value of the ring's last qubit, with the closing bond in them. No product
    is spent on entangling.

    close: apply the last layer's closing bond, which no measurement of the last qubit sees.
    """
    n_qubits = bonds.shape[1]
    n = columns.shape[-1]
    first, second, closing = _half_layers(gates, bonds, entangler)
    # dimensions of the halves without their last qubits
    d = first.shape[-1] // 4
    e = second.shape[-1] // 4
    # axes (last, re|im, I, s, J, n): I of d and J of e states, s the last qubit of the first half
    by_qubits = columns.reshape(2, d, 2, e, 2, n)
    halves = by_qubits.transpose(4, 0, 1, 2, 3, 5)

    def on_first(matrices, halves):
        flat = halves.reshape(2, 4 * d, e * n)
        return (matrices @ flat).reshape(2, 2, d, 2, e, n)

    def layer(halves, matrices):
        on_first_half, on_second_half = matrices
        # axes (s, re|im, J, last, I, n)
        halves = on_first(on_first_half, halves).transpose(3, 1, 4, 0, 2, 5)
        flat = halves.reshape(2, 4 * e, d * n)
        halves = (on_second_half @ flat).reshape(2, 2, e, 2, d, n)
        return halves.transpose(3, 1, 4, 0, 2, 5), None

    halves, _ = jax.lax.scan(layer, halves, (first, second))
    if close:
        halves = on_first(closing, halves)
    return halves.transpose(1, 2, 3, 4, 0, 5).reshape(2, 2**n_qubits, n)


def _half_layers(
    gates: jax.Array, bonds: jax.Array, entangler: Entangler
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each layer as real matrices on the halves of the ring, of d and e basis states.

    Returns (depth, 2, 2 d, 2 d) on the first half, by the value of the last qubit; (depth, 2, 2 e,
    2 e) on the second half, by the value of the first half's last qubit; and (2, 2 d, 2 d), the
    last layer's closing bond, on the first half.
    """
    n_qubits = bonds.shape[1]
    k = n_qubits // 2
    gates_of_first = gates[:, :k]
    gates_of_second = gates[:, k:]
    multiplied_out = jax.vmap(kronecker)
    first = multiplied_out(gates_of_first)[:, None]
    second = multiplied_out(gates_of_second)[:, None]
    identity = jnp.eye(2**k, dtype=gates.dtype)[None]
    if entangler == "rzz":
        within = jax.vmap(ring_phases, (0, None))
        closing = _bond_phases(bonds[:, -1], k)
        before_first_layer = jnp.ones_like(closing[:1])
        before = jnp.concatenate([before_first_layer, closing[:-1]])
        first_phases = within(bonds, tuple(range(k)))
        first = first_phases[:, None, :, None] * first
        first = first * before[:, :, None]
        qubits_of_second = tuple(range(k, n_qubits))
        second_phases = within(bonds, qubits_of_second)[:, None]
        inner_bonds = bonds[:, k - 1]
        inner = _bond_phases(inner_bonds, n_qubits - k)
        second = (second_phases * inner)[..., None] * second
        closing = closing[-1][..., None] * identity
    else:
        first = first[:, :, cnot_permutation(k, closed=False)]
        has_ring_before = jnp.arange(len(bonds)) > 0
        by_layer = has_ring_before[:, None, None, None]
        before = jnp.where(by_layer, _flip_first(first, -1), first)
        first = jnp.concatenate([first, before], axis=1)
        second = jnp.concatenate([second, _flip_first(second, -2)], axis=1)
        second = second[:, :, cnot_permutation(n_qubits - k, closed=False)]
        closing = jnp.concatenate([identity, _flip_first(identity, -1)])
    return tuple(_real_matrix(matrix, of_real=False) for matrix in (first, second, closing))


def _bond_phases(angles: jax.Array, k: int) -> jax.Array:
    """Diagonals of RZZ between an outer qubit and the first of k: (depth,) -> (depth, 2, 2**k).

    The axis of 2 is the value of the outer qubit.
    """
    signs_of_ends = [[1, -1], [-1, 1]]
    signs = np.kron(signs_of_ends, np.ones(2 ** (k - 1)))
    by_layer = angles[:, None, None]
    phases = by_layer * jnp.asarray(signs, angles.dtype) / 2
    return jax.lax.complex(jnp.cos(phases), -jnp.sin(phases))


def _flip_first(matrix: jax.Array, axis: int) -> jax.Array:
    """Apply X of the first qubit to a matrix's rows (axis -2) or columns (axis -1)."""
    half = matrix.shape[axis] // 2
    return jnp.roll(matrix, half, axis)


# ---- the light cone of the measured Z ----


def _half_observable(
    gates: jax.Array, bonds: jax.Array, folded: int, n_outcomes: int = 1
) -> jax.Array:
    """W = <0|U on the cone of the last `folded` layers: (a, b, d/2, d).

    U is the product of the folded layers and <0| the bra of the measured qubit, so that <Z> =
    2 |W psi|^2 - |psi|^2. W has half the rows of U'ZU and costs one product less than a
    conjugation. If a layer remains in front, W takes in the ring of that layer and its rotations of
    the cone's qubits. The ring couples the cone to its neighbours and is diagonal in them: W is one
    matrix for each of the a basis states of the left neighbour and the b of the right neighbour (1
    where there is no neighbour).

    n_outcomes: of more than one, the bras of so many bit strings of the last qubits take the place
    of <0|. The number of the bit string is the fastest of W's rows, (a, b, rows, d).
    """
    depth, n_qubits = bonds.shape
    front = depth - folded
    foremost = max(front - 1, 0)  # the first layer that W takes in
    layer = depth - 2
    measured = measured_qubits(n_outcomes)
    cone = light_cone(n_qubits, 1, measured)
    if n_outcomes == 1:
        rows = gates[-1, cone[0], :1]
    else:
        rows = kronecker(gates[-1, np.array(cone)])[:n_outcomes]
    while layer >= foremost and len(cone) < n_qubits:
        register = light_cone(n_qubits, depth - layer, measured)
        blocks = _times_ring(rows, bonds[layer], cone, register)
        blocks = _times_rotations(blocks, gates[layer], cone)
        if layer < front:
            return blocks
        rows = _times_neighbours(blocks, gates[layer], register)
        cone = register
        layer = layer - 1
    if layer >= foremost:  # the cone holds the whole ring and grows no more

        def times_layer(rows, gates_and_bonds):
            layer_gates, layer_bonds = gates_and_bonds
            rows = _times_ring(rows, layer_bonds, cone, cone)[0, 0]
            return _times_rotations(rows, layer_gates, cone), None

        taken = slice(foremost, layer + 1)
        layers = gates[taken], bonds[taken]
        rows, _ = jax.lax.scan(times_layer, rows, layers, reverse=True)
    return rows[None, None]


def _times_ring(
    rows: jax.Array, bonds: jax.Array, cone: tuple[int, ...], register: tuple[int, ...]
) -> jax.Array:
    """Multiply rows by the RZZ ring: (h, d) on the cone -> (a, b, h, d).

    The ring is diagonal in the cone's neighbours in the register: a and b count their states.
    """
    has_left = len(register) > len(cone)
    has_right = len(register) > len(cone) + 1
    phases = ring_phases(bonds, register)
    in_ring_order = phases.reshape(2**has_left, -1, 2**has_right)
    by_neighbours = in_ring_order.transpose(0, 2, 1)
    return rows * by_neighbours[:, :, None]


def _times_rotations(
    rows: jax.Array, gates: jax.Array, qubits: tuple[int, ...] | list[int]
) -> jax.Array:
    """Multiply rows (..., 2**len(qubits)) by the qubits' rotations, in a few Kronecker blocks."""
    transposed = gates[np.array(qubits)].swapaxes(-1, -2)
    n_blocks = -(-len(qubits) // BLOCK_QUBITS)
    sizes = [len(part) for part in np.array_split(qubits, n_blocks)]
    gates_of_blocks = jnp.split(transposed, np.cumsum(sizes)[:-1])
    blocks = [kronecker(gates_of_block) for gates_of_block in gates_of_blocks]
    dimensions = [len(block) for block in blocks]
    product = rows.reshape(-1, *dimensions)
    # acting on axis 1 and moving it to the end leaves the next block's axis in its place
    for block in blocks:
        product = jnp.einsum("nb...,ab->n...a", product, block)
    return product.reshape(rows.shape)


def _times_neighbours(blocks: jax.Array, gates: jax.Array, register: tuple[int, ...]) -> jax.Array:
    """Multiply blocks by the neighbours' rotations: (a, b, h, d) -> (a b h, a d b)."""
    a, b, _, d = blocks.shape
    left = _neighbour_gate(gates, register[0], a)
    right = _neighbour_gate(gates, register[-1], b)
    rows = jnp.einsum("abhj,al,br->abhljr", blocks, left, right)
    return rows.reshape(-1, a * d * b)


def _neighbour_gate(gates: jax.Array, qubit: int, n_states: int) -> jax.Array:
    """The rotations of a neighbour with 2 basis states; the 1 x 1 identity where it has 1."""
    if n_states > 1:
        return gates[qubit]
    return jnp.eye(1, dtype=gates.dtype)


def _cone_expectation(
    gates: jax.Array, bonds: jax.Array, states: jax.Array, folded: int
) -> jax.Array:
    """<Z> = 2 |W V psi|^2 - |psi|^2 of each state, with V on few qubits and W on the cone: (n,)."""
    probabilities = states.real**2 + states.imag**2
    norms = probabilities.sum(axis=1)
    return 2 * _cone_probabilities(gates, bonds, states, folded, 1) - norms


def _cone_probabilities(
    gates: jax.Array, bonds: jax.Array, states: jax.Array, folded: int, n_outcomes: int
) -> jax.Array:
    """|W V psi|^2 of each outcome and state, with V on few qubits and W on the cone.

    Returns (n_outcomes, n), or (n,) of one outcome.
    """
    depth, n_qubits = bonds.shape
    cone = light_cone(n_qubits, folded, measured_qubits(n_outcomes))
    front = depth - folded - 1  # the layer of which W holds the cone's part
    n_outside = n_qubits - len(cone)
    first_outside = cone[-1] + 1
    outside = [(first_outside + place) % n_qubits for place in range(n_outside)]
    w = _half_observable(gates, bonds, folded, n_outcomes)
    # Where V stays small, the layer before `front` is taken apart between W and V: its bonds within
    # the cone and the rotations of the cone's inner qubits commute with its other gates. Elsewhere
    # that layer acts on the states.
    v_qubits = n_qubits - max(len(cone) - 2, 0)
    takes_apart = front > 0 and n_outside > 0 and v_qubits <= LARGEST_V
    n_evolved = max(front, 0) - takes_apart
    columns = _columns(states.astype(gates.dtype) if n_evolved else states)
    if n_evolved:
        columns = _evolve(gates[:n_evolved], bonds[:n_evolved], columns, "rzz")
    a, b, _, _ = w.shape
    left_neighbour = outside[-1:] if a > 1 else []
    right_neighbour = outside[:1] if b > 1 else []
    acted = left_neighbour + right_neighbour  # the qubits on which V acts
    passive = [qubit for qubit in outside if qubit not in acted]
    v = kronecker(gates[front, np.array(acted)]) if acted else None
    edges = []
    inner = list(cone)
    if takes_apart:
        ends = [cone[0], cone[-1]]
        edges = list(dict.fromkeys(ends))  # a cone of one qubit has one
        inner = [qubit for qubit in cone if qubit not in edges]
        acted = acted + edges + passive
        passive = []
        layer_gates = gates[front - 1]
        layer_bonds = bonds[front - 1]
        w, v = _layer_apart(w, v, layer_gates, layer_bonds, cone, edges + inner, acted)
    columns = _reordered(columns, acted + inner + passive)
    return _projected_norms(w, v, columns, edges, inner, passive, n_outcomes)


def _reordered(columns: jax.Array, qubits: list[int]) -> jax.Array:
    """Columns (1 or 2, 2**n_qubits, n) with the qubits in the given order."""
    n_parts, _, n = columns.shape
    order = [1 + qubit for qubit in qubits]
    axes = (2,) * len(qubits)
    by_qubit = columns.reshape(n_parts, *axes, n)
    return by_qubit.transpose(0, *order, -1).reshape(columns.shape)


def _projected_norms(
    w: jax.Array,
    v: jax.Array | None,
    columns: jax.Array,
    edges: list[int],
    inner: list[int],
    passive: list[int],
    n_outcomes: int,
) -> jax.Array:
    """|W V psi|^2 of each outcome and sample, by real products: (n_outcomes, n), or (n,) of one.

    The samples stand in columns.

    columns: (1 or 2, 2**n_qubits, n), ordered as V's qubits, inner, passive. v: None where no gate
    acts before W.
    """
    a, b, h, d = w.shape
    n_parts, _, n = columns.shape
    n_neighbours = a * b
    n_edges = 2 ** len(edges)
    n_inner = 2 ** len(inner)
    n_passive = n * 2 ** len(passive)
    of_real = n_parts == 1 and v is None
    if v is not None:
        v_by_neighbours = v.reshape(n_neighbours, -1, v.shape[1])
        v_matrix = _real_matrix(v_by_neighbours, of_real=n_parts == 1)
        flat = columns.reshape(-1, n_inner * n_passive)
        product = v_matrix @ flat
        columns = product.reshape(n_neighbours, 2 * n_edges, -1, n_inner, n_passive)
        columns = columns.swapaxes(2, 3)  # qubits out of W's reach become columns
    w_by_neighbours = w.reshape(n_neighbours, h, d)
    w_matrix = _real_matrix(w_by_neighbours, of_real=of_real)
    n_rows = (2 - of_real) * n_edges * n_inner
    flat = columns.reshape(n_neighbours, n_rows, -1)
    projected = w_matrix @ flat
    if n_outcomes == 1:
        return (projected**2).reshape(-1, n).sum(axis=0)
    by_outcome = (projected**2).reshape(-1, n_outcomes, projected.shape[-1] // n, n)
    return by_outcome.sum(axis=(0, 2))


def _layer_apart(
    w: jax.Array, v: jax.Array, gates: jax.Array, bonds: jax.Array,
    cone: tuple[int, ...], inside: list[int], acted: list[int],
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Multiply W by the layer's gates within the cone and V by its gates on `acted`.

    inside: the cone's qubits in the order that W's columns get.
    """
    inner = [qubit for qubit in inside if qubit not in acted]
    # the bond of a cone of two qubits, both of them on V's side, is V's
    with_bonds = w if len(cone) == 2 else w * ring_phases(bonds, cone)
    by_qubit = with_bonds.reshape(-1, *(2,) * len(cone))
    order = [1 + cone.index(qubit) for qubit in inside]
    ordered = by_qubit.transpose(0, *order)
    rows = ordered.reshape(-1, 2 ** len(inner))
    if inner:
        rows = _times_rotations(rows, gates, inner)
    phases = ring_phases(bonds, tuple(acted))[:, None]
    layer = phases * kronecker(gates[np.array(acted)])
    w = rows.reshape(w.shape)
    product = v @ layer.reshape(len(v), -1)
    return w, product.reshape(layer.shape)


def _columns(states: jax.Array) -> jax.Array:
    """States (n, 2**n_qubits) as real columns (1 or 2, 2**n_qubits, n).

    The axis of 2 holds the real and the imaginary part of complex states.
    """
    states = states.T
    if jnp.iscomplexobj(states):
        return jnp.stack([states.real, states.imag])
    return states[None]


def _real_matrix(matrix: jax.Array, *, of_real: bool) -> jax.Array:
    """The real matrix that maps (Re v, Im v), or a real v, to (Re, Im) of the product matrix @ v.

    Real products run twice as fast.
    """
    on_real = jnp.concatenate([matrix.real, matrix.imag], axis=-2)
    if of_real:
        return on_real
    on_imaginary = jnp.concatenate([-matrix.imag, matrix.real], axis=-2)
    return jnp.concatenate([on_real, on_imaginary], axis=-1)


def layers_to_fold(n_qubits: int, depth: int, measured: int = 1) -> int:
    """Number of last layers to fold: a fast number, or all where so many reach the whole ring."""
    folded = FOLDED if measured == 1 else FOLDED_OF_MORE[min(measured - 2, 3)]
    reaches_all = len(light_cone(n_qubits, folded, measured)) == n_qubits
    return depth if reaches_all else min(depth, folded)


# ---- states reduced to the cone ----


def reduced_dimension(n_qubits: int, depth: int) -> int:
    """The dimension of the register that the whole circuit's light cone covers."""
    return 2 ** len(light_cone(n_qubits, depth))


def reduce_states(states: jax.Array, depth: int) -> jax.Array:
    """Reduce states to packed density matrices: (n, 2**n_qubits) -> (n, d, d) real.

    They are density matrices on the light cone of `depth` layers. The upper triangle with the
    diagonal holds Re rho, the lower one Im rho: these d**2 numbers determine rho. An expectation is
    then one scalar product with the observable, and no state is evolved.
    """
    n_qubits = int(np.log2(states.shape[1]))
    cone = light_cone(n_qubits, depth)
    rolled = in_order(states, cone)
    densities = jnp.einsum("nir,njr->nij", rolled, rolled.conj())
    return _pack(densities)


def in_order(states: jax.Array, qubits: tuple[int, ...]) -> jax.Array:
    """Move neighbouring qubits to the front: (n, 2**n_qubits) -> (n, 2**len(qubits), other states).

    qubits: neighbours on the ring, in ring order.
    """
    n = len(states)
    split = states.reshape(n, 2 ** qubits[0], -1)
    rolled = split.swapaxes(1, 2)
    return rolled.reshape(n, 2 ** len(qubits), -1)


def packed_expectation(states: jax.Array, observable: jax.Array) -> jax.Array:
    """tr(rho O) of packed density matrices (n, d, d) and a Hermitian observable O (d, d): (n,)."""
    # a packed matrix holds each pair once
    twice = 2 - jnp.eye(len(observable), dtype=observable.real.dtype)
    return jnp.tensordot(states, twice * _pack(observable), 2)


def are_packed(matrices: jax.Array) -> bool:
    """Whether matrices (n, d, d) may come from `reduce_states`: |rho_ij|^2 <= rho_ii rho_jj.

    Images fail this test. Matrices that are being traced pass it: their values are unknown.
    """
    if isinstance(matrices, jax.core.Tracer):
        return True
    # NumPy, not JAX, which would trace them where a function around this one is being traced
    matrices = np.asarray(matrices)
    real = np.triu(matrices, 1)  # of rho_ij, i < j
    imaginary = np.tril(matrices, -1).swapaxes(1, 2)
    squares = real**2 + imaginary**2
    diagonal = np.diagonal(matrices, axis1=1, axis2=2)  # (n, d)
    traces = diagonal.sum(axis=1)
    products = diagonal[:, :, None] * diagonal[:, None, :]
    bound = products + 1e-6 * traces[:, None, None] ** 2
    is_no_diagonal_negative = (diagonal >= 0).all()
    are_squares_bounded = (squares <= bound).all()
    are_traces_positive = (traces > 0).all()
    return bool(is_no_diagonal_negative & are_squares_bounded & are_traces_positive)


def _pack(matrices: jax.Array) -> jax.Array:
    """Pack Hermitian matrices (..., d, d) into real ones: Im below the diagonal, Re elsewhere."""
    everywhere = np.ones(matrices.shape[-2:], bool)
    is_upper = np.triu(everywhere)
    return jnp.where(is_upper, matrices.real, matrices.imag)
