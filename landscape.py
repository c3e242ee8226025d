"""The loss landscape around trained parameters: Hessians, their traces and spectra, and slices of
the loss.

The loss is the mean binary cross-entropy of a split, in nats. Vectors over the p parameters are
flat, (p,), in the order of `jax.flatten_util.ravel_pytree(params)`. What is estimated comes with
its error, what is exact with 0 or none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp, stochtrace

from datar import Split
from foundation.base.checks import require, require_whole
from foundation.measures.metrics import cross_entropy
from foundation.quantum import circuits
from models import MLP, QNN, Model, Params, prepared

COLUMNS = 16  # Hessian columns, or points of a slice, that are computed at once
SAMPLES = 25  # samples whose gradients or states are held at once

Estimate = tuple[jax.Array, jax.Array]  # a number and its error


def loss_function(model: Model, split: Split) -> Callable[[Params], jax.Array]:
    """params -> mean binary cross-entropy of the model's logits on the split."""
    require(len(split.y) > 0, "split", "no samples", "at least one")
    split = prepared(model, split, "split")
    return lambda params: cross_entropy(model.logits(params, split.x), split.y)


@partial(jax.jit, static_argnames="model")
def dead(model: Model, params: Params, split: Split) -> jax.Array:
    """Whether the logit is the same, bit for bit, for every sample: all ReLUs of some layer are off
    for all."""
    logits = model.logits(params, split.x)
    return jnp.all(logits == logits[0])


@partial(jax.jit, static_argnames="model")
def dead_relus(model: MLP, params: Params, split: Split) -> jax.Array:
    """How many hidden neurons of the network are off for every sample."""
    activity, count = model.prepare(split.x), 0
    for weights, bias in params[:-1]:
        activity = jax.nn.relu(activity @ weights.T + bias)
        count += jnp.sum(jnp.all(activity == 0, axis=0))
    return count


# ---- the Hessian ----


@partial(jax.jit, static_argnames="model")
def hessian(model: Model, params: Params, split: Split) -> jax.Array:
    """The Hessian of the loss, dense: (p, p), symmetric. For models of up to some thousand
    parameters.

    From p Hessian-vector products, or from states where there is a circuit of the project's and
    states to run it on. An MLP with more inputs than samples goes through `row_space` first.
    """
    if isinstance(model, QNN) and model.ansatz is None and jnp.ndim(split.x) == 2:
        matrix = _circuit_hessian(model, params, split)
    else:
        product, flat = _linear_product(model, params, split)
        zeros = jnp.zeros_like(flat)
        matrix = jax.lax.map(
            lambda i: product(zeros.at[i].set(1)), jnp.arange(flat.size), batch_size=COLUMNS
        )
    return (matrix + matrix.T) / 2


def hessian_vector_product(
    model: Model, params: Params, split: Split
) -> Callable[[jax.Array], jax.Array]:
    """v -> H v, both (p,), by forward over reverse differentiation: about the cost of three
    gradients."""
    return partial(_product, model, params, split)


def hessian_trace(model: Model, params: Params, split: Split) -> Estimate:
    """The trace of the Hessian and its error, which is 0: exact up to rounding.

    The logit z of a ReLU network is piecewise linear in any single weight, so that almost
    everywhere the diagonal of its Hessian is the Gauss-Newton one: tr H = (1/n) sum_i p_i (1 - p_i)
    |grad z_i|^2, with p = sigmoid(z).
    """
    is_mlp = isinstance(model, MLP)
    trace = (
        _gauss_newton_trace(model, params, split)
        if is_mlp
        else jnp.trace(hessian(model, params, split))
    )
    return trace, jnp.zeros_like(trace)


@partial(jax.jit, static_argnames="model")
def complex_trace(model: QNN, params: jax.Array, split: Split) -> jax.Array:
    """The trace over the real and the imaginary part of every angle, which the published analysis
    takes for tr H.

    Published: heissian.ipynb, `get_qnn_hessian`. The angles are real: an angle a + i b turns a
    rotation about P into exp(-i a P / 2) exp(b P / 2), which is no circuit. With phi, T_j and z as
    in `_circuit_hessian`,

        (d_a z)^2 + (d_b z)^2 = 4 s^2 |<Z phi|T_j>|^2,     (d_a^2 + d_b^2) z = 4 s <T_j|Z|T_j>.

    split: states (n, 2**n_qubits). Returns a scalar, exact to rounding.
    """
    shape, own = jnp.shape(split.x), model.ansatz is None
    require(
        own and len(shape) == 2,
        "split",
        f"x of shape {shape}",
        "states (n, 2**n_qubits) for the project's ansatz",
    )
    sign = _signs(params, split)

    def contribution(
        output: jax.Array, inputs: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> jax.Array:
        tangents = _shifted_states(model, params, inputs, np.arange(params.size)) / 2
        overlaps = jnp.einsum("jsd,sd->js", tangents, sign * output.conj())
        slopes = 4 * model.scale**2 * (jnp.abs(overlaps) ** 2).sum(axis=0)  # (samples,)
        bends = 4 * model.scale * (jnp.abs(tangents) ** 2).sum(axis=0) @ sign
        p = jax.nn.sigmoid(model.scale * (jnp.abs(output) ** 2 @ sign))
        return weights @ (p * (1 - p) * slopes + (p - labels) * bends)

    return _over_samples(contribution, model, params, split)


def row_space(model: MLP, params: Params, split: Split) -> tuple[MLP, Params, Split]:
    """The same network on the r = min(n, d) coordinates of the row space of x, (n, d): same logits,
    same spectrum.

    With x = x' Q', Q (d, r) orthonormal, the first layer acts on x' through W Q. The Hessian is 0
    on the directions orthogonal to Q, (d - r) fan_out of them. MLP (8, 2) on 100 images: 829
    parameters in place of 8,221.
    """
    (weights, bias), *rest = params
    weights, x = _in_row_space(weights, model.prepare(split.x))
    return MLP(x.shape[1], model.hidden), [(weights, bias), *rest], Split(x, split.y)


@jax.jit
def _in_row_space(weights: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights (fan_out, d) and samples (n, d) in an orthonormal basis of the samples' row space."""
    basis, _ = jnp.linalg.qr(x.T)  # (d, r)
    return weights @ basis, x @ basis


@partial(jax.jit, static_argnames="model")
def _product(model: Model, params: Params, split: Split, vector: jax.Array) -> jax.Array:
    return _linear_product(model, params, split)[0](vector)


def _linear_product(model: Model, params: Params, split: Split) -> tuple[Callable, jax.Array]:
    """v -> H v with the gradient linearised once, for many products inside one compiled function;
    and params flat."""
    flat, unflatten = ravel_pytree(params)
    loss = loss_function(model, split)
    return jax.linearize(jax.grad(lambda flat: loss(unflatten(flat))), flat)[1], flat


@partial(jax.jit, static_argnames="model")
def _gauss_newton_trace(model: Model, params: Params, split: Split) -> jax.Array:
    x = model.prepare(split.x)

    def slope_squared(sample: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda params: model.logits(params, sample[None])[0])(params)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))

    p = jax.nn.sigmoid(model.logits(params, x))
    return jnp.mean(p * (1 - p) * jax.lax.map(slope_squared, x, batch_size=SAMPLES))


def _circuit_hessian(model: QNN, params: jax.Array, split: Split) -> jax.Array:
    """The Hessian from amplitudes, several times cheaper than by columns; 16 p 2**n_qubits bytes a
    sample.

    With U the circuit, phi = U psi and z = s <phi|Z|phi>,

        d_j z     = 2 s Re <Z phi|T_j>                                  T_j = (d_j U) psi
        d_j d_k z = 2 s Re (<T_j|Z|T_k> - <A_k|T_j>), k not before j,   A_k = (d_k U) U'Z phi

    because d_j d_k U = (d_k U) U' (d_j U) where gate k acts after gate j, and (d_k U) U' is
    anti-Hermitian. Every gate is a Pauli rotation, so d_j U is half of U with angle j shifted by
    pi: no state is differentiated. The chain rule through the cross-entropy does the rest, H =
    (1/n) sum p (1 - p) dz dz' + (p - y) ddz.
    """
    sign = _signs(params, split)
    acting = _acting_angles(model)

    def undo(states: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The inverse of a layer, as a scan wants it. JAX pulls back by the transpose of a
        unitary."""
        _, pull_back = jax.vjp(partial(_layer, model, angles), states)
        before = pull_back(states.conj())[0].conj()
        return before, before

    def contribution(
        output: jax.Array, inputs: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> jax.Array:
        measured = sign * output  # (samples, 2**n_qubits)
        _, returned = jax.lax.scan(undo, measured, params, reverse=True)
        # of each layer, on the way from psi and from U'Z phi
        inputs = jnp.concatenate([inputs, returned], axis=1)
        derivatives = _real(_shifted_states(model, params, inputs, acting)) / 2
        # T and A, each (acting, samples, 2 * 2**n_qubits)
        tangents, adjoints = jnp.split(derivatives, 2, axis=1)
        gradients = 2 * model.scale * jnp.einsum("jsd,sd->sj", tangents, _real(measured))
        p = jax.nn.sigmoid(model.scale * jnp.einsum("sd,sd->s", _real(measured), _real(output)))
        weighted = ((weights * (p - labels))[:, None] * tangents).reshape(len(acting), -1)
        # [k, j], gate k not before gate j
        later = jnp.tril(adjoints.reshape(len(acting), -1) @ weighted.T)
        second = (weighted * jnp.tile(sign, 2 * len(labels))) @ tangents.reshape(len(acting), -1).T
        second -= later + jnp.tril(later, -1).T
        return (gradients.T * (weights * p * (1 - p))) @ gradients + 2 * model.scale * second

    blocks = _over_samples(contribution, model, params, split)
    return jnp.zeros((params.size, params.size)).at[jnp.ix_(acting, acting)].set(blocks)


def _signs(params: jax.Array, split: Split) -> jax.Array:
    """The diagonal of Z on the last qubit: (2**n_qubits,)."""
    return jnp.resize(jnp.array([1, -1], params.dtype), jnp.shape(split.x)[1])


def _over_samples(contribution: Callable, model: QNN, params: jax.Array, split: Split) -> jax.Array:
    """The sum of contribution(output, inputs, labels, weights) over blocks of k samples; all
    weights add up to 1.

    output: (k, 2**n_qubits), the states after the circuit. inputs: (depth, k, 2**n_qubits), what
    enters each layer.
    """
    n = len(split.y)
    n_blocks = -(-n // SAMPLES)
    size = -(-n // n_blocks)
    rows = jnp.resize(jnp.arange(n), (n_blocks, size))  # the last block is filled up, with weight 0
    weights = (jnp.arange(n_blocks * size) < n).reshape(n_blocks, size) / n
    states = jnp.asarray(split.x).astype(jnp.result_type(params, 1j))[rows]

    def of_block(block: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        through = jax.lax.scan(
            lambda states, angles: (_layer(model, angles, states), states), block[0], params
        )
        return contribution(*through, *block[1:])

    return jax.lax.map(of_block, (states, jnp.asarray(split.y)[rows], weights)).sum(axis=0)


def _layer(model: QNN, angles: jax.Array, states: jax.Array) -> jax.Array:
    return circuits.evolve(
        angles[None], states, rotations=model.rotations, entangler=model.entangler
    )


def _shifted_states(
    model: QNN, params: jax.Array, inputs: jax.Array, angles: np.ndarray
) -> jax.Array:
    """The states after the circuit with one angle (a flat index) shifted by pi: (len(angles), k,
    2**n_qubits).

    inputs: (depth, k, 2**n_qubits), the states that enter each layer; those before the shift stay
    as they are.
    """

    def shifted(index: jax.Array) -> jax.Array:
        moved = params.reshape(-1).at[index].add(jnp.pi).reshape(params.shape)
        first = index // params[0].size
        return jax.lax.fori_loop(
            first, len(params), lambda at, states: _layer(model, moved[at], states), inputs[first]
        )

    return jax.lax.map(shifted, jnp.asarray(angles))


def _acting_angles(model: QNN) -> np.ndarray:
    """Flat indices of the angles on which the logit depends, in the order in which their gates act.

    With an RZZ ring those are the rotations within the light cone of the measured Z and the bonds
    that touch the cone of the layers behind them; the rows of all others in the Hessian are 0.
    """
    n_angles = circuits.parameters_per_qubit(model.rotations, model.entangler)
    acts = np.ones((model.depth, model.n_qubits, n_angles), bool)
    if model.entangler == "rzz":
        cone = np.zeros((model.depth + 1, model.n_qubits), bool)  # of all layers from this one on
        for layer in range(model.depth):
            cone[layer, list(circuits.light_cone(model.n_qubits, model.depth - layer))] = True
        acts[..., :-1] = cone[:-1, :, None]
        acts[..., -1] = cone[1:] | np.roll(cone[1:], -1, axis=1)
    by_time = np.arange(acts.size).reshape(acts.shape).swapaxes(1, 2).ravel()
    return by_time[acts.ravel()[by_time]]


def _real(states: jax.Array) -> jax.Array:
    """(..., d) complex -> (..., 2 d) real, whose scalar product is the real part of the complex
    one."""
    return jnp.concatenate([states.real, states.imag], axis=-1)


# ---- spectra without the matrix ----


class Extremes(NamedTuple):
    """Both ends of a spectrum, ascending: the k lowest eigenvalues, then the k highest, (2 k,).

    errors: an eigenvalue lies within this distance of each value. vectors: (2 k, p) of norm 1.
    """

    values: jax.Array
    errors: jax.Array
    vectors: jax.Array


@partial(jax.jit, static_argnames=("model", "k", "steps"))
def extreme_eigenvalues(
    model: Model, params: Params, split: Split, *, k: int, steps: int = 80, key: jax.Array
) -> Extremes:
    """The k lowest and k highest eigenvalues of the Hessian and their vectors, by Lanczos
    (matfree).

    steps: Hessian-vector products, at most p, from a random start; all vectors are
    reorthogonalised. Of an
    eigenvalue that is several times there, such as 0, one copy is found; where fewer than 2 k
    different ones
    exist (a dead network has 0 and p (1 - p)), the inner places are NaN. The error is the residual
    |H v - value v| and the rounding of a product. A missed eigenvalue further out has no bound;
    more steps find it.
    """
    product, flat = _linear_product(model, params, split)
    require_whole("steps", steps, 2)
    require_whole("k", k)
    steps = min(steps, flat.size)
    require(k <= steps // 2, "k", k, f"1 to {steps // 2}, half of the Lanczos steps")
    basis, tridiagonal, reached = _lanczos(
        product, jax.random.normal(key, flat.shape, flat.dtype), steps
    )
    values, coordinates = jnp.linalg.eigh(tridiagonal)
    ends = np.r_[:k, steps - k : steps]
    values, coordinates = values[ends], coordinates[:, ends]
    values = jnp.where(reached @ coordinates**2 > 0.5, values, jnp.nan)
    vectors = coordinates.T @ basis
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    residuals = jnp.linalg.norm(jax.lax.map(product, vectors) - values[:, None] * vectors, axis=1)
    rounding = 16 * jnp.finfo(flat.dtype).eps * jnp.abs(tridiagonal).max()
    return Extremes(values, residuals + rounding, vectors)


@partial(jax.jit, static_argnames=("model", "probes"))
def estimated_trace(
    model: Model, params: Params, split: Split, *, probes: int = 100, key: jax.Array
) -> Estimate:
    """The trace of the Hessian by Hutchinson's estimator with random signs (matfree), and its
    standard error.

    It shares nothing with `hessian_trace` but the model: a check on it, and the way for models
    without an exact one.
    """
    require_whole("probes", probes, 2)  # one has no standard error
    product, flat = _linear_product(model, params, split)
    sampler = stochtrace.sampler_signs(flat, num=probes)
    estimator = stochtrace.estimator_monte_carlo_mean_and_sem(
        stochtrace.monte_carlo_trace(), sampler
    )
    mean, error = estimator(product, key)
    # matfree divides the variance by n, not n - 1
    return mean, error * np.sqrt(probes / (probes - 1))


def _lanczos(
    product: Callable, start: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Orthonormal Krylov vectors (steps, p), H in them, tridiagonal (steps, steps), and which were
    reached (steps,).

    Where the coupling to the next vector falls to the square root of rounding, the Krylov space is
    exhausted (a dead network's Hessian has rank one) and what follows is noise. It is cut off:
    vectors 0, and the Rayleigh quotient of the start, which is inside the spectrum, on the
    diagonal.
    """
    tridiagonalise = decomp.tridiag_sym(steps, reortho="full", materialize=False, custom_vjp=False)
    basis, (diagonal, coupling), *_ = tridiagonalise(product, start)
    scale = jax.lax.cummax(jnp.abs(diagonal[:-1]) + coupling)
    # 0 / 0 compares False
    reached = jnp.cumprod(coupling > jnp.sqrt(jnp.finfo(start.dtype).eps) * scale) > 0
    coupling = jnp.where(reached, coupling, 0)
    reached = jnp.concatenate([jnp.array([True]), reached])
    diagonal = jnp.where(reached, diagonal, diagonal[0])
    tridiagonal = jnp.diag(diagonal) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1)
    return jnp.where(reached[:, None], basis, 0), tridiagonal, reached


# ---- slices ----


@partial(jax.jit, static_argnames=("model", "number"))
def filter_normalised_directions(
    model: Model, params: Params, *, key: jax.Array, number: int = 2
) -> jax.Array:
    """Random directions through the parameters on the model's own scale: (number, p).

    MLP: filter normalisation (Li et al., 1712.09913, section 4): what belongs to a neuron's
    incoming weights gets their norm, and a bias, a filter of one entry, moves by plus or minus
    itself (Li et al. leave biases out). So the slice is the same for two networks of one function,
    a layer multiplied by c and the weights of the next divided by c.

    QNN: an angle's scale is the radian, whatever it is; a direction moves all angles by 1 rad root
    mean square.
    """
    require_whole("number", number)
    flat, unflatten = ravel_pytree(params)
    drawn = jax.random.normal(key, (number, flat.size), flat.dtype)
    if not isinstance(model, MLP):
        return drawn / jnp.sqrt(jnp.mean(drawn**2, axis=1, keepdims=True))
    return jax.vmap(
        lambda each: ravel_pytree(jax.tree.map(_with_filter_norms, unflatten(each), params))[0]
    )(drawn)


def _with_filter_norms(direction: jax.Array, leaf: jax.Array) -> jax.Array:
    """A direction scaled filter by filter; a filter is a row, of (fan_out, fan_in) weights or
    (fan_out,) biases."""
    rows, filters = (array.reshape(len(leaf), -1) for array in (direction, leaf))
    scale = jnp.linalg.norm(filters, axis=1, keepdims=True) / jnp.linalg.norm(
        rows, axis=1, keepdims=True
    )
    return (rows * scale).reshape(leaf.shape)


class Slice(NamedTuple):
    """The loss over a plane: offsets (points,) along each of two directions, loss (points, points)
    in nats."""

    first: jax.Array
    second: jax.Array
    loss: jax.Array


@partial(jax.jit, static_argnames=("model", "points"))
def loss_slice(
    model: Model, params: Params, split: Split, directions: jax.Array, *, radius: float, points: int
) -> Slice:
    """loss[i, j] at params + first[i] directions[0] + second[j] directions[1], offsets from -radius
    to radius.

    directions: (2, p), such as two rows of `Extremes.vectors`. points: odd, so that the centre is
    params.
    """
    require_whole("points", points)
    require(points % 2 == 1, "points", points, "odd numbers, so that the centre is one of them")
    flat, unflatten = ravel_pytree(params)
    shape = jnp.shape(directions)
    require(shape == (2, flat.size), "directions", f"shape {shape}", f"(2, {flat.size})")
    loss = loss_function(model, split)
    offsets = radius * (jnp.arange(points) - points // 2) / max(points // 2, 1)
    plane = jnp.stack(jnp.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)
    # many circuits in one batch crash jaxlib 0.10.2
    together = COLUMNS if isinstance(model, MLP) else None
    values = jax.lax.map(
        lambda at: loss(unflatten(flat + at @ directions)), plane, batch_size=together
    )
    return Slice(offsets, offsets, values.reshape(points, points))
