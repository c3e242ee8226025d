"""The QNN's circuits: the ansatz in TensorCircuit, and its fast evaluation.

`ansatz`, gate by gate, is the definition, against which all else here is tested. Qubit 0 is the
most significant bit and R_P(theta) = exp(-i theta P / 2), TensorCircuit's conventions.
"""

from __future__ import annotations

from functools import cache, partial, reduce
from typing import TYPE_CHECKING, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from foundation.quantum.openqasm import OpenQasm as OpenQasm
from foundation.quantum.openqasm import tensorcircuit_on_jax
from foundation.quantum.openqasm import to_openqasm as to_openqasm

if TYPE_CHECKING:
    import tensorcircuit

Rotations = Literal["xyx", "xy"]
Entangler = Literal["rzz", "cnot"]

BLOCK_QUBITS = 4  # qubits whose rotations are multiplied out into one matrix: 16 x 16 was fastest
LARGEST_V = 7  # qubits of the largest matrix that acts on the states in front of the folded layers
FOLDED = (
    4  # layers in the observable: fastest at 10 and 12 qubits, depths 5 to 12, batches of 28 to 325
)

# of (q, 2, 2) gates, the first the most significant: (2**q, 2**q)
kronecker = partial(reduce, jnp.kron)


def parameters_per_qubit(rotations: Rotations, entangler: Entangler) -> int:
    """How many angles a qubit has in each layer: its rotations, and one RZZ bond where there is
    one."""
    return len(rotations) + (entangler == "rzz")


def ansatz(
    params: jax.Array,
    inputs: jax.Array | None = None,
    *,
    rotations: Rotations = "xyx",
    entangler: Entangler = "rzz",
) -> tensorcircuit.Circuit:
    """The circuit, gate by gate.

    Each layer rotates every qubit about the axes of `rotations` in turn, then closes a ring of
    RZZ(theta) or CNOT on the bonds (q, q+1 mod n_qubits), q = 0 first (arXiv:2508.02422; models.py,
    `build_ansatz`).

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
    states: (n, 2**n_qubits) real or complex amplitudes; those that are not normalised give
        <psi|U'ZU|psi>. Or (n, d, d), what `reduce_states` made of them.
    folded: how many of the last layers go into the observable (RZZ ring only); None takes what is
    fast.
    Returns (n,) real. This is the one place that says how the circuit is evaluated.

    With an RZZ ring the measured Z has a light cone: going backwards, its support grows by one
    qubit on each side a layer. So the last layers are folded into a small Heisenberg-picture
    matrix, once for all samples, and only the first ones act on the states. A CNOT ring turns Z on
    the last qubit into Z on all of them: there the states are evolved through all layers.
    """
    _check(params, states, rotations, entangler)
    depth, n_qubits, _ = params.shape
    gates, bonds = rotation_gates(params, rotations), params[..., -1]
    states = jnp.asarray(states)
    states = states.astype(jnp.promote_types(states.dtype, gates.real.dtype))
    if entangler == "cnot":
        columns = _evolve(
            gates, bonds, _columns(states.astype(gates.dtype)), entangler, close=False
        )
        probabilities = (columns**2).sum(axis=0)
        return probabilities[0::2].sum(axis=0) - probabilities[1::2].sum(axis=0)
    if states.ndim == 3:
        w = _half_observable(gates, bonds, depth)[0, 0]
        return packed_expectation(states, 2 * w.conj().T @ w - jnp.eye(w.shape[1], dtype=w.dtype))
    folded = layers_to_fold(n_qubits, depth) if folded is None else folded
    return _cone_expectation(gates, bonds, states, folded)


def _check(params: jax.Array, states: jax.Array, rotations: str, entangler: str) -> None:
    """ValueError where the shapes are not those of one circuit."""
    for name, value, allowed in (
        ("rotations", rotations, Rotations),
        ("entangler", entangler, Entangler),
    ):
        if value not in get_args(allowed):
            raise ValueError(f"{name}: got {value}, allowed: {', '.join(get_args(allowed))}")
    angles = parameters_per_qubit(rotations, entangler)
    if params.ndim != 3 or params.shape[2] != angles:
        raise ValueError(f"params: got shape {params.shape}, allowed: (depth, n_qubits, {angles})")
    depth, n_qubits, _ = params.shape
    shapes = [(2**n_qubits,), (reduced_dimension(n_qubits, depth),) * 2][: 1 + (entangler == "rzz")]
    if states.shape[1:] not in shapes:
        allowed = " or ".join(f"(n, {', '.join(map(str, shape))})" for shape in shapes)
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
    gates, bonds = rotation_gates(params, rotations), params[..., -1]
    real, imaginary = _evolve(gates, bonds, _columns(states.astype(gates.dtype)), entangler)
    return jax.lax.complex(real, imaginary).T


def _evolve(
    gates: jax.Array, bonds: jax.Array, columns: jax.Array, entangler: Entangler, *, close=True
) -> jax.Array:
    """All layers on (2, 2**n_qubits, n) real columns, under a scan so that the compile time does
    not grow with depth.

    The ring is cut into two halves, and a layer is one matrix on each: its rotations and what
    entangles the half. Of the two bonds between them, the inner one enters the matrices of the
    second half, one for either value of the qubit before it; the closing one those of the first
    half in the next layer, by the value of the last qubit. So no product is spent on entangling.
    close: apply the last layer's closing bond, which no measurement of the last qubit sees.
    """
    n_qubits, n = bonds.shape[1], columns.shape[-1]
    first, second, closing = _half_layers(gates, bonds, entangler)
    d, e = first.shape[-1] // 4, second.shape[-1] // 4  # of a half without its last qubit
    # (last, re|im, I, s, J, n)
    halves = columns.reshape(2, d, 2, e, 2, n).transpose(4, 0, 1, 2, 3, 5)

    def on_first(matrices, halves):
        return (matrices @ halves.reshape(2, 4 * d, e * n)).reshape(2, 2, d, 2, e, n)

    def layer(halves, matrices):
        on_first_half, on_second_half = matrices
        # (s, re|im, J, last, I, n)
        halves = on_first(on_first_half, halves).transpose(3, 1, 4, 0, 2, 5)
        halves = (on_second_half @ halves.reshape(2, 4 * e, d * n)).reshape(2, 2, e, 2, d, n)
        return halves.transpose(3, 1, 4, 0, 2, 5), None

    halves = jax.lax.scan(layer, halves, (first, second))[0]
    halves = on_first(closing, halves) if close else halves
    return halves.transpose(1, 2, 3, 4, 0, 5).reshape(2, 2**n_qubits, n)


def _half_layers(
    gates: jax.Array, bonds: jax.Array, entangler: Entangler
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Real matrices on either half of the ring, for both values of a qubit of the other half.

    (depth, 2, 2 d, 2 d) by the last qubit, (depth, 2, 2 e, 2 e) by that of the first half; closing
    bond (2, 2 d, 2 d).
    """
    n_qubits = bonds.shape[1]
    k = n_qubits // 2
    first, second = (jax.vmap(kronecker)(half)[:, None] for half in (gates[:, :k], gates[:, k:]))
    one = jnp.eye(2**k, dtype=gates.dtype)[None]
    if entangler == "rzz":
        within = jax.vmap(_ring_phases, (0, None))
        closing = _bond_phases(bonds[:, -1], k)
        before = jnp.concatenate([jnp.ones_like(closing[:1]), closing[:-1]])
        first = within(bonds, tuple(range(k)))[:, None, :, None] * first * before[:, :, None]
        inner = within(bonds, tuple(range(k, n_qubits)))[:, None] * _bond_phases(
            bonds[:, k - 1], n_qubits - k
        )
        second = inner[..., None] * second
        closing = closing[-1][..., None] * one
    else:
        first = first[:, :, cnot_permutation(k, closed=False)]
        before = jnp.where(
            (jnp.arange(len(bonds)) > 0)[:, None, None, None], _flip_first(first, -1), first
        )
        first = jnp.concatenate([first, before], axis=1)
        second = jnp.concatenate([second, _flip_first(second, -2)], axis=1)
        second = second[:, :, cnot_permutation(n_qubits - k, closed=False)]
        closing = jnp.concatenate([one, _flip_first(one, -1)])
    return tuple(_real_matrix(matrix, of_real=False) for matrix in (first, second, closing))


def _bond_phases(angles: jax.Array, k: int) -> jax.Array:
    """Diagonal of RZZ between a qubit outside, in either state, and the first of k: (depth,) ->
    (depth, 2, 2**k)."""
    signs = np.kron([[1, -1], [-1, 1]], np.ones(2 ** (k - 1)))
    phases = angles[:, None, None] * jnp.asarray(signs, angles.dtype) / 2
    return jax.lax.complex(jnp.cos(phases), -jnp.sin(phases))


def _flip_first(matrix: jax.Array, axis: int) -> jax.Array:
    """X of the first qubit on the matrix' rows or columns."""
    return jnp.roll(matrix, matrix.shape[axis] // 2, axis)


# ---- the light cone of the measured Z ----


def light_cone(n_qubits: int, layers: int) -> tuple[int, ...]:
    """The qubits on which Z of the last one acts after `layers` rotations and the RZZ rings between
    them.

    In ring order; each ring adds a neighbour on either side until the cone is the whole ring.
    """
    layers = min(layers, n_qubits // 2 + 1)
    return tuple(
        (n_qubits - layers + place) % n_qubits for place in range(min(2 * layers - 1, n_qubits))
    )


def _half_observable(gates: jax.Array, bonds: jax.Array, folded: int) -> jax.Array:
    """W = <0|U, with which <Z> = 2 |W psi|^2 - |psi|^2: (a, b, d/2, d) on the cone of the last
    `folded` layers.

    U is those layers and <0| the bra of the measured qubit: half the rows of U'ZU, and one product
    less than a conjugation. If a layer remains in front, its ring and its rotations of the cone's
    qubits are taken in as well. That ring couples the cone to its neighbours, in which it is
    diagonal: W is one matrix for each of the a basis states of the left and the b of the right
    neighbour (1 where there is none).
    """
    depth, n_qubits = bonds.shape
    front = depth - folded
    cone, layer, last = light_cone(n_qubits, 1), depth - 2, max(front - 1, 0)
    rows = gates[-1, cone[0], :1]
    while layer >= last and len(cone) < n_qubits:
        register = light_cone(n_qubits, depth - layer)
        blocks = _times_rotations(
            _times_ring(rows, bonds[layer], cone, register), gates[layer], cone
        )
        if layer < front:
            return blocks
        rows = _times_neighbours(blocks, gates[layer], register)
        cone, layer = register, layer - 1
    if layer >= last:  # the cone holds the whole ring and grows no more

        def times_layer(rows, gates_and_bonds):
            layer_gates, layer_bonds = gates_and_bonds
            return _times_rotations(
                _times_ring(rows, layer_bonds, cone, cone)[0, 0], layer_gates, cone
            ), None

        taken = slice(last, layer + 1)
        rows = jax.lax.scan(times_layer, rows, (gates[taken], bonds[taken]), reverse=True)[0]
    return rows[None, None]


def _times_ring(
    rows: jax.Array, bonds: jax.Array, cone: tuple[int, ...], register: tuple[int, ...]
) -> jax.Array:
    """Times the RZZ ring: (h, d) on the cone -> (a, b, h, d), diagonal in the register's other
    qubits."""
    n_left, n_right = len(register) > len(cone), len(register) > len(cone) + 1
    phases = _ring_phases(bonds, register).reshape(2**n_left, -1, 2**n_right)
    return rows * phases.transpose(0, 2, 1)[:, :, None]


def _times_rotations(
    rows: jax.Array, gates: jax.Array, qubits: tuple[int, ...] | list[int]
) -> jax.Array:
    """Rows (..., 2**len(qubits)) times the rotations of these qubits, as a few Kronecker blocks."""
    transposed = gates[np.array(qubits)].swapaxes(-1, -2)
    sizes = [len(part) for part in np.array_split(qubits, -(-len(qubits) // BLOCK_QUBITS))]
    blocks = [kronecker(part) for part in jnp.split(transposed, np.cumsum(sizes)[:-1])]
    product = rows.reshape(-1, *(len(block) for block in blocks))
    # acting on axis 1 and moving it to the end leaves the next block's axis in its place
    for block in blocks:
        product = jnp.einsum("nb...,ab->n...a", product, block)
    return product.reshape(rows.shape)


def _times_neighbours(blocks: jax.Array, gates: jax.Array, register: tuple[int, ...]) -> jax.Array:
    """Blocks times the rotations of the neighbours: (a, b, h, d) -> (a b h, a d b) on the
    register."""
    a, b, _, d = blocks.shape
    left = gates[register[0]] if a > 1 else jnp.eye(1, dtype=gates.dtype)
    right = gates[register[-1]] if b > 1 else jnp.eye(1, dtype=gates.dtype)
    return jnp.einsum("abhj,al,br->abhljr", blocks, left, right).reshape(-1, a * d * b)


def _cone_expectation(
    gates: jax.Array, bonds: jax.Array, states: jax.Array, folded: int
) -> jax.Array:
    """2 |W V psi|^2 - |psi|^2: V acts on few qubits, W on the cone; real products, with the samples
    in columns."""
    n, (depth, n_qubits) = len(states), bonds.shape
    norms = (states.real**2 + states.imag**2).sum(axis=1)
    cone = light_cone(n_qubits, folded)
    front = depth - folded - 1  # the layer of which W holds the cone's part
    outside = [(cone[-1] + 1 + place) % n_qubits for place in range(n_qubits - len(cone))]
    w = _half_observable(gates, bonds, folded)
    a, b, h, d = w.shape
    # The layer before is taken apart between W and V, where V stays small: its bonds within the
    # cone and the rotations of the cone's inner qubits commute with the rest of it. Else it acts on
    # the states.
    apart = front > 0 and len(cone) < n_qubits and n_qubits - max(len(cone) - 2, 0) <= LARGEST_V
    n_evolved = max(front, 0) - apart
    x = _columns(states.astype(gates.dtype) if n_evolved else states)
    x = _evolve(gates[:n_evolved], bonds[:n_evolved], x, "rzz") if n_evolved else x
    acted = outside[-1:] * (a > 1) + outside[:1] * (b > 1)  # the neighbours
    passive = [qubit for qubit in outside if qubit not in acted]
    v = kronecker(gates[front, np.array(acted)]) if acted else None
    edges, inner = [], list(cone)
    if apart:
        edges = list(dict.fromkeys([cone[0], cone[-1]]))
        inner = [qubit for qubit in cone if qubit not in edges]
        w, v = _layer_apart(
            w, v, gates[front - 1], bonds[front - 1], cone, edges + inner, acted + edges + passive
        )
        acted, passive = acted + edges + passive, []
    order = [1 + qubit for qubit in acted + inner + passive]
    x = x.reshape(len(x), *(2,) * n_qubits, n).transpose(0, *order, -1).reshape(x.shape)
    e, i, p = 2 ** len(edges), 2 ** len(inner), n * 2 ** len(passive)
    of_real = len(x) == 1 and not acted
    if acted:
        front_matrix = _real_matrix(v.reshape(a * b, -1, v.shape[1]), of_real=len(x) == 1)
        x = (front_matrix @ x.reshape(-1, i * p)).reshape(a * b, 2 * e, -1, i, p)
        x = x.swapaxes(2, 3)  # qubits out of W's reach become columns
    observable = _real_matrix(w.reshape(a * b, h, d), of_real=of_real)
    y = observable @ x.reshape(a * b, (2 - of_real) * e * i, -1)
    return 2 * (y**2).reshape(-1, n).sum(axis=0) - norms


def _layer_apart(
    w: jax.Array, v: jax.Array, gates: jax.Array, bonds: jax.Array,
    cone: tuple[int, ...], inside: list[int], acted: list[int],
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """W times what the layer does within the cone, columns in the order `inside`; V times what it
    does on `acted`."""
    inner = [qubit for qubit in inside if qubit not in acted]
    rows = (w * _ring_phases(bonds, cone)).reshape(-1, *(2,) * len(cone))
    rows = rows.transpose(0, *(1 + cone.index(qubit) for qubit in inside)).reshape(
        -1, 2 ** len(inner)
    )
    rows = _times_rotations(rows, gates, inner) if inner else rows
    layer = _ring_phases(bonds, tuple(acted))[:, None] * kronecker(gates[np.array(acted)])
    return rows.reshape(w.shape), (v @ layer.reshape(len(v), -1)).reshape(layer.shape)


def _columns(states: jax.Array) -> jax.Array:
    """(n, 2**n_qubits) -> (1 or 2, 2**n_qubits, n): real and, of complex states, imaginary
    parts."""
    states = states.T
    return jnp.stack([states.real, states.imag]) if jnp.iscomplexobj(states) else states[None]


def _real_matrix(matrix: jax.Array, *, of_real: bool) -> jax.Array:
    """What gives (Re, Im) of the product from (Re v, Im v), or from v real: real products run twice
    as fast."""
    columns = jnp.concatenate([matrix.real, matrix.imag], axis=-2)
    if of_real:
        return columns
    return jnp.concatenate(
        [columns, jnp.concatenate([-matrix.imag, matrix.real], axis=-2)], axis=-1
    )


def layers_to_fold(n_qubits: int, depth: int) -> int:
    """FOLDED, or all where the cone is the whole ring by then."""
    return depth if len(light_cone(n_qubits, FOLDED)) == n_qubits else min(depth, FOLDED)


# ---- states reduced to the cone ----


def reduced_dimension(n_qubits: int, depth: int) -> int:
    """The dimension of the register that the whole circuit's light cone covers."""
    return 2 ** len(light_cone(n_qubits, depth))


def reduce_states(states: jax.Array, depth: int) -> jax.Array:
    """Each state's density matrix on the light cone of `depth` layers, packed real: (n,
    2**n_qubits) -> (n, d, d).

    The upper triangle with the diagonal holds Re rho, the lower one Im rho: d**2 numbers are all of
    it. With them an expectation is one scalar product with the observable, and no state is evolved.
    """
    cone = light_cone(int(np.log2(states.shape[1])), depth)
    rolled = in_order(states, cone)
    return _pack(jnp.einsum("nir,njr->nij", rolled, rolled.conj()))


def in_order(states: jax.Array, qubits: tuple[int, ...]) -> jax.Array:
    """States with these neighbours on the ring in front: (n, 2**n_qubits) -> (n, 2**len(qubits),
    all others)."""
    n = len(states)
    return states.reshape(n, 2 ** qubits[0], -1).swapaxes(1, 2).reshape(n, 2 ** len(qubits), -1)


def packed_expectation(states: jax.Array, observable: jax.Array) -> jax.Array:
    """tr(rho O) of what `reduce_states` gives, (n, d, d), and a Hermitian observable (d, d):
    (n,)."""
    # a packed matrix holds each pair once
    twice = 2 - jnp.eye(len(observable), dtype=observable.real.dtype)
    return jnp.tensordot(states, twice * _pack(observable), 2)


def are_packed(matrices: jax.Array) -> bool:
    """Whether (n, d, d) may come from `reduce_states`: |rho_ij|^2 <= rho_ii rho_jj, which fails for
    images.

    Of matrices that are being traced nothing is known.
    """
    if isinstance(matrices, jax.core.Tracer):
        return True
    # not JAX's: it would trace them within whatever is being traced
    matrices = np.asarray(matrices)
    # (n, d, d): |rho_ij|^2, i < j
    squares = np.triu(matrices, 1) ** 2 + np.tril(matrices, -1).swapaxes(1, 2) ** 2
    diagonal = np.diagonal(matrices, axis1=1, axis2=2)  # (n, d)
    bound = (
        diagonal[:, :, None] * diagonal[:, None, :]
        + 1e-6 * diagonal.sum(axis=1)[:, None, None] ** 2
    )
    return bool((diagonal >= 0).all() & (squares <= bound).all() & (diagonal.sum(axis=1) > 0).all())


def _pack(matrices: jax.Array) -> jax.Array:
    """Hermitian matrices (..., d, d) as real ones: the real part in the upper triangle with the
    diagonal, then Im."""
    return jnp.where(np.triu(np.ones(matrices.shape[-2:], bool)), matrices.real, matrices.imag)


# ---- gates ----


def rotation_gates(angles: jax.Array, rotations: Rotations) -> jax.Array:
    """The product of a qubit's rotations, the first one acting first: (..., angles) -> (..., 2,
    2)."""
    gates = [_rotation(angles[..., position], axis) for position, axis in enumerate(rotations)]
    return reduce(lambda product, gate: gate @ product, gates)


def _rotation(angle: jax.Array, axis: str) -> jax.Array:
    """exp(-i angle P / 2) about the axis x or y: (...) -> (..., 2, 2)."""
    cosine, sine = jnp.cos(angle / 2), jnp.sin(angle / 2)
    up, down = (
        (jax.lax.complex(jnp.zeros_like(sine), -sine),) * 2
        if axis == "x"
        else (-sine + 0j, sine + 0j)
    )
    return jnp.stack([cosine + 0j, up, down, cosine + 0j], axis=-1).reshape(*angle.shape, 2, 2)


def _ring_phases(angles: jax.Array, register: tuple[int, ...]) -> jax.Array:
    """Diagonal of the RZZ bonds (q, q+1) that lie within the register: (2**len(register),)
    complex."""
    phases = jnp.asarray(bond_signs(len(angles), register), angles.dtype) @ angles / 2
    return jax.lax.complex(jnp.cos(phases), -jnp.sin(phases))


@cache
def bond_signs(n_qubits: int, register: tuple[int, ...]) -> np.ndarray:
    """Z_q Z_{q+1} of each bond in the register's basis states, 0 where it leads out:
    (2**len(register), n_qubits)."""
    signs = 1 - 2 * basis_bits(len(register))
    bonds = np.zeros((len(signs), n_qubits))
    for place, qubit in enumerate(register):
        neighbour = (qubit + 1) % n_qubits
        if neighbour in register:
            bonds[:, qubit] = signs[:, place] * signs[:, register.index(neighbour)]
    return bonds


@cache
def cnot_permutation(n_qubits: int, *, closed: bool = True) -> np.ndarray:
    """The CNOT ring, or line, as an index permutation p: state after = state before [p],
    (2**n_qubits,) int32.

    JAX keeps its own copy of a constant array, of the width of the precision that it is first used
    in; 32 bits are the same in both.
    """
    bits = basis_bits(n_qubits).copy()
    for qubit in range(n_qubits if closed else n_qubits - 1):
        bits[:, (qubit + 1) % n_qubits] ^= bits[:, qubit]
    return np.argsort(bits @ (1 << np.arange(n_qubits)[::-1])).astype(np.int32)


def basis_bits(n_qubits: int) -> np.ndarray:
    """The bits of 0 ... 2**n_qubits - 1, most significant first: (2**n_qubits, n_qubits)."""
    return (np.arange(2**n_qubits)[:, None] >> np.arange(n_qubits)[::-1]) & 1
