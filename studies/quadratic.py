"""A bounded quadratic form of low rank, as a control of the circuit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from foundation.base.checks import require, require_whole
from models import Params, as_inputs


@dataclass(frozen=True)
class QuadraticForm:
    """Bounded quadratic form without a circuit: logit = 5 x'Ox, with O of low rank and norm < 1.

    O = sum_k tanh(c_k) |v_k><v_k| over `rank` orthonormal vectors, complex ones where `is_complex`.
    It is a control: a QNN is a bounded quadratic form of the amplitudes too, but with an operator
    of full rank, so that neither class of functions contains the other. The quadratic form of full
    dimension is `contenders.FullQuadratic`.
    """

    n_features: int
    rank: int = 16
    is_complex: bool = False
    n_classes: int = 2  # of more than two, each has its own values c_k on one basis

    family = "Quadratic"
    scale = 5.0  # as for the QNN

    def __post_init__(self):
        require_whole("n_features", self.n_features)
        require_whole("rank", self.rank)
        require_whole("n_classes", self.n_classes, 2)
        allowed = f"1 to {self.n_features}, the number of features"
        require(self.rank <= self.n_features, "rank", self.rank, allowed)

    @property
    def label(self) -> str:
        """Its rank, as Quadratic[rank=16]."""
        return f"Quadratic[rank={self.rank}]"

    def init(self, key: jax.Array) -> Params:
        """Random basis and values.

        basis: (2, rank, n_features) real and imaginary parts, or (1, rank, n_features) real.
        values: (rank,), the c_k; (K, rank) of more than two classes.
        """
        basis_key, values_key = jax.random.split(key)
        shape = (1 + self.is_complex, self.rank, self.n_features)
        basis = jax.random.normal(basis_key, shape)
        of_classes = () if self.n_classes == 2 else (self.n_classes,)
        values = jax.random.normal(values_key, (*of_classes, self.rank))
        return {"basis": basis / math.sqrt(self.n_features), "values": 0.01 * values}

    def prepare(self, x: jax.Array) -> jax.Array:
        """Check inputs (n, n_features), real or complex."""
        x = as_inputs(x)
        fits = x.shape[1:] == (self.n_features,)
        require(fits, "x", f"shape {x.shape}", f"(n, {self.n_features})")
        return x

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Compute logits (n,) of inputs (n, n_features), or (n, K) of more than two classes."""
        x = self.prepare(x)
        basis = params["basis"]
        basis = jax.lax.complex(*basis) if self.is_complex else basis[0]
        root = inverse_root(basis @ basis.conj().T)  # root @ basis has orthonormal rows
        overlaps = (x @ basis.T) @ root.T  # (n, rank); (rank, n) would take three times as long
        squares = (overlaps * overlaps.conj()).real
        return self.scale * squares @ jnp.tanh(params["values"]).T


@jax.custom_jvp
def inverse_root(gram: jax.Array) -> jax.Array:
    """R, lower triangular, with R G R' = 1: the inverse of G's Cholesky factor, by elimination.

    Not by LAPACK: in a pool of two threads, batches of its calls in a scan deadlock (jaxlib
    0.10.2).
    """
    size = len(gram)

    def eliminate(k: int, rows: jax.Array) -> jax.Array:
        row = rows[k]
        pivot = row * jax.lax.rsqrt(rows[k, k].real)
        is_below = jnp.arange(size) > k
        factors = jnp.where(is_below, pivot[:size].conj(), 0)
        eliminated = rows - factors[:, None] * pivot
        return eliminated.at[k].set(pivot)

    identity = jnp.eye(size, dtype=gram.dtype)
    rows = jnp.concatenate([gram, identity], axis=1)
    return jax.lax.fori_loop(0, size, eliminate, rows)[:, size:]


@inverse_root.defjvp
def inverse_root_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """dR = -low(R dG R') R; low takes the lower triangle and half of the diagonal."""
    root = inverse_root(*primals)
    moved = root @ tangents[0] @ root.conj().T
    triangle = jnp.tril(moved)
    diagonal = jnp.diag(jnp.diagonal(moved))
    lower = triangle - diagonal / 2
    return root, -lower @ root
