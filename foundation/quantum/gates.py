"""What circuits are made of: rotations, the diagonal of the bonds, permutations, light cones.

The conventions are TensorCircuit's: qubit 0 is the most significant bit, and R_P(theta) =
exp(-i theta P / 2).
"""

from __future__ import annotations

from functools import cache, partial, reduce
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Rotations = Literal["xyx", "xy"]
Entangler = Literal["rzz", "cnot"]

# (q, 2, 2) gates -> their Kronecker product (2**q, 2**q), the first gate most significant
kronecker = partial(reduce, jnp.kron)


def rotation_gates(angles: jax.Array, rotations: Rotations) -> jax.Array:
    """The product of a qubit's rotations, the first acting first: (..., angles) -> (..., 2, 2).

    angles: in radians, those of `rotations` first; a bond's angle behind them is not read.
    """
    gates = []
    for position, axis in enumerate(rotations):
        angle = angles[..., position]
        gates.append(_rotation(angle, axis))
    return reduce(lambda product, gate: gate @ product, gates)


def _rotation(angle: jax.Array, axis: str) -> jax.Array:
    """exp(-i angle P / 2) about the axis x or y: (...) -> (..., 2, 2)."""
    cosine = jnp.cos(angle / 2)
    sine = jnp.sin(angle / 2)
    if axis == "x":
        upper = lower = jax.lax.complex(jnp.zeros_like(sine), -sine)
    else:
        upper = -sine + 0j
        lower = sine + 0j
    elements = jnp.stack([cosine + 0j, upper, lower, cosine + 0j], axis=-1)
    return elements.reshape(*angle.shape, 2, 2)


def ring_phases(angles: jax.Array, register: tuple[int, ...]) -> jax.Array:
    """Diagonal of the RZZ bonds (q, q+1) within the register: (2**len(register),) complex.

    angles: (n_qubits,) in radians, of the bond that starts from each qubit of the ring. register:
    some of the qubits, the first of them most significant; they need not be neighbours.
    """
    signs = jnp.asarray(bond_signs(len(angles), register), angles.dtype)
    phases = signs @ angles / 2
    return jax.lax.complex(jnp.cos(phases), -jnp.sin(phases))


@cache
def bond_signs(n_qubits: int, register: tuple[int, ...]) -> np.ndarray:
    """Z_q Z_{q+1} of each bond in the register's basis states: (2**len(register), n_qubits).

    0 for bonds that lead out of the register.
    """
    signs = 1 - 2 * basis_bits(len(register))
    bonds = np.zeros((len(signs), n_qubits))
    for place, qubit in enumerate(register):
        neighbour = (qubit + 1) % n_qubits
        if neighbour in register:
            neighbour_sign = signs[:, register.index(neighbour)]
            bonds[:, qubit] = signs[:, place] * neighbour_sign
    return bonds


@cache
def cnot_permutation(n_qubits: int, *, closed: bool = True) -> np.ndarray:
    """The CNOT ring, or line, as indices p (2**n_qubits,): the state after it is state[p].

    JAX keeps a copy of a constant array, in the width of the precision that uses it first. int32 is
    the same in both precisions.
    """
    bits = basis_bits(n_qubits).copy()
    n_bonds = n_qubits if closed else n_qubits - 1
    for qubit in range(n_bonds):
        neighbour = (qubit + 1) % n_qubits
        bits[:, neighbour] ^= bits[:, qubit]
    place_values = 1 << np.arange(n_qubits)[::-1]
    images = bits @ place_values
    return np.argsort(images).astype(np.int32)


def basis_bits(n_qubits: int) -> np.ndarray:
    """The bits of 0 ... 2**n_qubits - 1, most significant first: (2**n_qubits, n_qubits).

    Row i holds the basis state of amplitude i.
    """
    shifts = np.arange(n_qubits)[::-1]
    indices = np.arange(2**n_qubits)
    shifted = indices[:, None] >> shifts
    return shifted & 1


def light_cone(n_qubits: int, layers: int, measured: int = 1) -> tuple[int, ...]:
    """The qubits, in ring order, to which `layers` layers of rotations spread Z of the last ones.

    measured: how many of the last qubits are measured. Each of the RZZ rings between the rotations
    adds a neighbour on either side, until the cone is the whole ring; where one qubit is left, it
    comes first.
    """
    unmeasured = n_qubits - measured
    steps = min(layers - 1, (unmeasured + 1) // 2)
    first = unmeasured - steps
    size = min(measured + 2 * steps, n_qubits)
    return tuple((first + place) % n_qubits for place in range(size))
