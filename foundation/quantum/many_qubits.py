"""<Z> of circuits of many qubits: states go through the layers in blocks that fit into the cache.

The qubits that a light cone leaves out, and the samples, are columns of a matrix whose rows are the
basis states of the other qubits. The rotations of a few neighbouring qubits are one matrix, which
acts on the rows where they stand, as a batch of real products; the RZZ ring is a diagonal. A block
of columns goes through all layers, and does so again for the gradient, so that no state is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from foundation.quantum.gates import (
    Entangler,
    cnot_permutation,
    kronecker,
    light_cone,
    ring_phases,
)

# Measured at 12 to 18 qubits and depths 4 to 12: below these, the ways of `circuits` are faster.
LEAST_QUBITS = {"rzz": 13, "cnot": 14}
LEAST_DEPTH = {"rzz": 6, "cnot": 1}
FOLDED = 3  # last layers that go into the observable
GROUP = 4  # most qubits whose rotations are one matrix
BLOCK = 2**17  # amplitudes of a block, unless it has LEAST_COLUMNS columns
LEAST_COLUMNS = 16


def are_many(n_qubits: int, depth: int, entangler: Entangler) -> bool:
    """Whether blocks are faster than the ways of `circuits`.

    One core of an AMD EPYC, a step of value and gradient at depth 6: .56 of the time at 13 qubits,
    .45 at 14, .27 at 16; at 12 qubits 1.9 times as long. CNOT rings: .87 at 14 and .61 at 16.
    """
    return n_qubits >= LEAST_QUBITS[entangler] and depth >= LEAST_DEPTH[entangler]


def after_cnot_rings(gates: jax.Array, states: jax.Array) -> jax.Array:
    """<Z> on the last qubit after all layers of rotations and CNOT rings: (n,).

    gates: (depth, n_qubits, 2, 2), the product of each qubit's rotations. states: (n, 2**n_qubits)
    real or complex amplitudes.
    """
    n_qubits = gates.shape[1]
    ring = tuple(range(n_qubits))
    groups = _groups(ring)
    matrices = jax.vmap(lambda of_layer: _matrices(of_layer, groups))(gates)
    permutation = cnot_permutation(n_qubits)

    def layer(columns, of_layer):
        return _rotate(columns, of_layer, groups)[:, permutation], None

    def of_block(columns):
        columns, _ = jax.lax.scan(layer, _as_complex(columns), matrices)
        probabilities = (columns**2).sum(axis=0)
        last_is_0, last_is_1 = probabilities.reshape(-1, 2, columns.shape[2]).sum(axis=0)
        return last_is_0 - last_is_1

    return _by_blocks(of_block, states, ring)


def after_rzz_rings(
    gates: jax.Array, bonds: jax.Array, states: jax.Array, w: jax.Array
) -> jax.Array:
    """<Z> = 2 |W psi|^2 - |psi|^2 with psi after the layers in front of W: (n,).

    gates: (depth, n_qubits, 2, 2), the product of each qubit's rotations, of all layers.
    bonds: (depth, n_qubits), the angle of the bond that starts from each qubit, of all layers.
    states: (n, 2**n_qubits) real or complex amplitudes.
    w: (a, b, h, d), the last FOLDED layers, as `circuits` folds them. W holds the cone's part of
    the layer before these, whose neighbours' rotations are left to psi.
    """
    depth, n_qubits = bonds.shape
    front = depth - FOLDED
    cones = [light_cone(n_qubits, depth - layer) for layer in range(front + 1)]
    register = _from_outside(cones)
    n_whole = sum(len(cone) == n_qubits for cone in cones[: front - 1])
    groups = _groups(register)
    layers_on_ring = (
        jax.vmap(lambda of_layer: _matrices(of_layer, groups))(gates[:n_whole]),
        jax.vmap(lambda angles: ring_phases(angles, register))(bonds[:n_whole]),
    )
    narrower = []
    for layer in range(n_whole, front - 1):
        narrower.append(_Layer.of(gates[layer], bonds[layer], register, cones[layer]))
    neighbours = _Layer.of(gates[front - 1], None, register, cones[front - 1], cones[front])
    n_neighbours = w.shape[0] * w.shape[1]
    w_matrix = _stacked(w.reshape(n_neighbours, *w.shape[2:]))

    def on_whole_ring(columns, of_layer):
        matrices, phases = of_layer
        return _phased(_rotate(columns, matrices, groups), phases), None

    def of_block(columns):
        if n_whole:  # these layers are alike, and compiled once
            columns, _ = jax.lax.scan(on_whole_ring, _as_complex(columns), layers_on_ring)
        for layer in (*narrower, neighbours):
            columns = layer(columns)
        n_parts, _, n = columns.shape
        by_neighbours = columns.reshape(n_parts, -1, n_neighbours, w.shape[3], n)
        projected = _combined(_products(w_matrix, by_neighbours))
        return (projected**2).reshape(-1, n).sum(axis=0)

    norms = (states.real**2 + states.imag**2).sum(axis=1)
    return 2 * _by_blocks(of_block, states, register) - norms


def _from_outside(cones: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The qubits of the widest cone, in an order in which each further cone stands last.

    cones: from the widest to the innermost, which stands in ring order.
    """
    qubits = []
    for cone, inner in zip(cones, [*cones[1:], ()], strict=True):
        qubits += [qubit for qubit in cone if qubit not in inner]
    return tuple(qubits)


# ---- layers on columns ----

Groups = list[tuple[tuple[int, ...], int]]


class _Layer(NamedTuple):
    """A layer on the last qubits of a register: rotations, then the ring.

    It is called with columns (1 or 2, rows, n) and returns columns (2, rows, n).
    """

    matrices: list[jax.Array]
    groups: Groups
    phases: jax.Array | None  # of the ring, on these qubits' basis states

    @classmethod
    def of(
        cls, gates: jax.Array, bonds: jax.Array | None, register: tuple[int, ...],
        cone: tuple[int, ...], without: tuple[int, ...] = (),
    ) -> _Layer:  # fmt: skip
        """The rotations of a cone without some of its qubits, and the ring's bonds within it.

        gates: (n_qubits, 2, 2). bonds: (n_qubits,), None where W holds the ring. register: all
        qubits that are rows, of which the cone's are the last.
        """
        first = len(register) - len(cone)
        of_cone = register[first:]
        rotated = tuple(qubit for qubit in of_cone if qubit not in without)
        groups = _groups(rotated, first)
        phases = None if bonds is None else ring_phases(bonds, of_cone)
        return cls(_matrices(gates, groups), groups, phases)

    def __call__(self, columns: jax.Array) -> jax.Array:
        columns = _rotate(columns, self.matrices, self.groups)
        return columns if self.phases is None else _phased(columns, self.phases)


def _groups(qubits: Sequence[int], first: int = 0) -> Groups:
    """Cut neighbours in a register into groups; first: the place of the first of them.

    Beside each group stands the number of basis states of all qubits before it.
    """
    n_groups = -(-len(qubits) // GROUP)
    groups = []
    for group in np.array_split(qubits, n_groups):
        groups.append((tuple(map(int, group)), 2**first))
        first += len(group)
    return groups


def _matrices(gates: jax.Array, groups: Groups) -> list[jax.Array]:
    """Multiply out the rotations (n_qubits, 2, 2) of each group of k qubits: (2**k, 2**k) each."""
    return [kronecker(gates[np.array(qubits)]) for qubits, _ in groups]


def _rotate(columns: jax.Array, matrices: list[jax.Array], groups: Groups) -> jax.Array:
    """Act with each group's matrix on columns (1 or 2, rows, n): (2, rows, n).

    The axis of 2 holds the real and the imaginary part; real columns have the real part alone.
    """
    _, n_rows, n = columns.shape
    for matrix, (_, before) in zip(matrices, groups, strict=True):
        by_group = columns.reshape(len(columns), before, len(matrix), -1)
        columns = _combined(_products(_stacked(matrix), by_group)).reshape(2, n_rows, n)
    return columns


def _phased(columns: jax.Array, phases: jax.Array) -> jax.Array:
    """Multiply columns (2, rows, n) by phases (d,) of the basis states of the last qubits.

    The qubits before these have no part in it: the phases repeat for each of their states.
    """
    _, n_rows, n = columns.shape
    real, imaginary = columns.reshape(2, -1, len(phases), n)
    cosine = phases.real[:, None]
    sine = phases.imag[:, None]
    parts = [cosine * real - sine * imaginary, cosine * imaginary + sine * real]
    return jnp.stack(parts).reshape(2, n_rows, n)


def _as_complex(columns: jax.Array) -> jax.Array:
    """Columns with a part for the imaginary numbers, which are 0 where there was none."""
    has_both = len(columns) == 2
    return columns if has_both else jnp.concatenate([columns, jnp.zeros_like(columns)])


def _stacked(matrix: jax.Array) -> jax.Array:
    """The real part of a matrix above its imaginary part: (..., h, d) -> (..., 2 h, d).

    Real products run twice as fast as complex ones, and the parts of the columns stay where they
    are: the four products of a complex one are added up behind it (`_combined`).
    """
    return jnp.concatenate([matrix.real, matrix.imag], axis=-2)


def _products(stacked: jax.Array, columns: jax.Array) -> jax.Array:
    """`stacked @ columns` for columns (parts, ..., d, n), one product for each place of the batch.

    A product with one matrix for the whole batch would move the states twice.
    """
    batch = columns.shape[:-2]
    matrices = jnp.broadcast_to(stacked, (*batch, *stacked.shape[-2:]))
    axes = tuple(range(len(batch)))
    contracted = ((len(batch) + 1,), (len(batch),))
    return jax.lax.dot_general(matrices, columns, (contracted, (axes, axes)))


def _combined(products: jax.Array) -> jax.Array:
    """The parts of a complex product, from `_products`: (1 or 2, ..., 2 h, n) -> (2, ..., h, n)."""
    real_rows, imaginary_rows = jnp.split(products, 2, axis=-2)
    if len(products) == 1:
        return jnp.concatenate([real_rows, imaginary_rows])
    real = real_rows[0] - imaginary_rows[1]
    imaginary = real_rows[1] + imaginary_rows[0]
    return jnp.stack([real, imaginary])


# ---- blocks ----


def _by_blocks(
    of_block: Callable[[jax.Array], jax.Array], states: jax.Array, register: tuple[int, ...]
) -> jax.Array:
    """Sum a function of columns over the columns of each state: (n,).

    states: (n, 2**n_qubits). of_block: (1 or 2, 2**len(register), columns) -> (columns,), 0 where
    a column is 0, because the last block is filled up with zeros. register: the qubits that are
    rows, the first of them the most significant; the others are columns.
    """
    n, dimension = states.shape
    n_qubits = dimension.bit_length() - 1
    passive = [qubit for qubit in range(n_qubits) if qubit not in register]
    parts = jnp.stack([states.real, states.imag] if jnp.iscomplexobj(states) else [states])
    by_qubit = parts.reshape(len(parts), n, *(2,) * n_qubits)
    order = [2 + qubit for qubit in (*register, *passive)]
    columns = by_qubit.transpose(0, *order, 1).reshape(len(parts), 2 ** len(register), -1)
    count = columns.shape[2]
    n_blocks = -(-count // max(BLOCK >> len(register), LEAST_COLUMNS))
    size = -(-count // n_blocks)
    filled_up = jnp.pad(columns, ((0, 0), (0, 0), (0, n_blocks * size - count)))
    blocks = filled_up.reshape(*columns.shape[:2], n_blocks, size).transpose(2, 0, 1, 3)
    values = jax.lax.map(jax.checkpoint(of_block), blocks)
    return values.reshape(-1)[:count].reshape(-1, n).sum(axis=0)
