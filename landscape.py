"""The loss landscape around trained parameters: Hessians, their traces, spectra, and loss slices.

The loss is the mean cross-entropy of a split, in nats. Vectors over the p parameters are
flat, (p,), in the order of `jax.flatten_util.ravel_pytree(params)`. Estimates come with their
errors, exact numbers with an error of 0 or none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp

from datar import Split
from foundation.base.checks import require, require_whole
from foundation.measures.metrics import cross_entropy
from foundation.quantum import circuits
from models import MLP, QNN, Model, Params, prepared

COLUMNS = 16  # Hessian columns, or points of a slice, that are computed at once
SAMPLES = 25  # samples whose gradients or states are held at once

Estimate = tuple[jax.Array, jax.Array]  # a number and its error


def loss_function(model: Model, split: Split) -> Callable[[Params], jax.Array]:
    """params -> mean cross-entropy of the model's logits on the split."""
    require(len(split.y) > 0, "split", "no samples", "at least one")
    split = prepared(model, split, "split")
    return lambda params: cross_entropy(model.logits(params, split.x), split.y)


@partial(jax.jit, static_argnames="model")
def dead(model: Model, params: Params, split: Split) -> jax.Array:
    """Whether all samples have equal logits, bit for bit.

    Such a network is dead: in some layer, all ReLUs are off for all samples.
    """
    logits = model.logits(params, split.x)
    return jnp.all(logits == logits[0])


@partial(jax.jit, static_argnames="model")
def dead_relus(model: MLP, params: Params, split: Split) -> jax.Array:
    """How many hidden neurons of the network are off for every sample."""
    activity = model.prepare(split.x)
    count = 0
    for weights, bias in params[:-1]:
        activity = jax.nn.relu(activity @ weights.T + bias)
        is_off = jnp.all(activity == 0, axis=0)
        count += jnp.sum(is_off)
    return count


# ---- the Hessian ----


@partial(jax.jit, static_argnames="model")
def hessian(model: Model, params: Params, split: Split) -> jax.Array:
    """The dense Hessian of the loss, for models of up to some thousand parameters: (p, p).

    Computed by p Hessian-vector products, or, for the project's ansatz on states, by
    `_circuit_hessian`; symmetric. Pass an MLP with more inputs than samples through `row_space`
    first.
    """
    has_circuit = isinstance(model, QNN) and model.ansatz is None and model.n_classes == 2
    if has_circuit and jnp.ndim(split.x) == 2:
        matrix = _circuit_hessian(model, params, split)
    else:
        product, flat = _linear_product(model, params, split)
        zeros = jnp.zeros_like(flat)

        def column(index: jax.Array) -> jax.Array:
            unit = zeros.at[index].set(1)
            return product(unit)

        matrix = jax.lax.map(column, jnp.arange(flat.size), batch_size=COLUMNS)
    return (matrix + matrix.T) / 2


def hessian_trace(model: Model, params: Params, split: Split) -> Estimate:
    """The trace of the Hessian and its error, which is 0: the trace is exact up to rounding.

    The logit z of a ReLU network is piecewise linear in any single weight. So almost everywhere its
    Hessian has the diagonal of the Gauss-Newton matrix: tr H = (1/n) sum_i p_i (1 - p_i)
    |grad z_i|^2, with p = sigmoid(z).
    """
    if isinstance(model, MLP) and model.n_classes == 2:
        trace = _gauss_newton_trace(model, params, split)
    else:
        trace = jnp.trace(hessian(model, params, split))
    return trace, jnp.zeros_like(trace)


@partial(jax.jit, static_argnames="model")
def complex_trace(model: QNN, params: jax.Array, split: Split) -> jax.Array:
    """The trace over real and imaginary parts of all angles, which the published analysis reports.

    Published as tr H: heissian.ipynb, `get_qnn_hessian`. But the angles are real: an angle a + i b
    turns a rotation about P into exp(-i a P / 2) exp(b P / 2), which is no circuit. With phi, T_j,
    z and s of `_circuit_hessian`,

        (d_a z)^2 + (d_b z)^2 = 4 s^2 |<Z phi|T_j>|^2,     (d_a^2 + d_b^2) z = 4 s <T_j|Z|T_j>.

    split: states (n, 2**n_qubits). Returns a scalar, exact to rounding.
    """
    shape = jnp.shape(split.x)
    has_circuit = model.ansatz is None and model.n_classes == 2
    require(
        has_circuit and len(shape) == 2,
        "split",
        f"x of shape {shape}",
        "states (n, 2**n_qubits) of two classes for the project's ansatz",
    )
    sign = _signs(params, split)

    def contribution(
        output: jax.Array, inputs: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> jax.Array:
        every_angle = np.arange(params.size)
        tangents = _shifted_states(model, params, inputs, every_angle) / 2
        overlaps = jnp.einsum("jsd,sd->js", tangents, sign * output.conj())
        squared_overlaps = jnp.abs(overlaps) ** 2
        slopes = 4 * model.scale**2 * squared_overlaps.sum(axis=0)  # (samples,)
        squared_amplitudes = jnp.abs(tangents) ** 2
        bends = 4 * model.scale * squared_amplitudes.sum(axis=0) @ sign  # (samples,)
        logits = model.scale * (jnp.abs(output) ** 2 @ sign)
        p = jax.nn.sigmoid(logits)
        from_slopes = p * (1 - p) * slopes
        from_bends = (p - labels) * bends
        return weights @ (from_slopes + from_bends)

    return _over_samples(contribution, model, params, split)


def row_space(model: MLP, params: Params, split: Split) -> tuple[MLP, Params, Split]:
    """The network on the r = min(n, d) coordinates of the row space of x, (n, d).

    Logits and nonzero eigenvalues are unchanged. With x = x' Q', Q (d, r) orthonormal, the first
    layer acts on x' through W Q. On the (d - r) fan_out directions orthogonal to Q the Hessian is
    0. MLP (8, 2) on 100 images: 829 parameters in place of 8,221.
    """
    (weights, bias), *rest = params
    weights, x = _in_row_space(weights, model.prepare(split.x))
    small_model = MLP(x.shape[1], model.hidden, model.n_classes)
    small_params = [(weights, bias), *rest]
    return small_model, small_params, Split(x, split.y)


@jax.jit
def _in_row_space(weights: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights (fan_out, d) and samples (n, d) in an orthonormal basis of the samples' row space."""
    basis, _ = jnp.linalg.qr(x.T)  # (d, r)
    return weights @ basis, x @ basis


def _linear_product(model: Model, params: Params, split: Split) -> tuple[Callable, jax.Array]:
    """The function v -> H v, and the flat parameters (p,).

    The gradient is linearised once, for many products inside one compiled function.
    """
    flat, unflatten = ravel_pytree(params)
    loss = loss_function(model, split)
    gradient = jax.grad(lambda flat: loss(unflatten(flat)))
    _, product = jax.linearize(gradient, flat)
    return product, flat


def gauss_newton(
    logits: Callable[[jax.Array], jax.Array], flat: jax.Array, p: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Diagonalise K = W^½ J J' W^½ / n, which has the spectrum of Gauss-Newton's matrix J'WJ / n.

    K is (n, n) where J'WJ is (parameters, parameters). J: the gradients of the logits; W: p (1 - p)
    on the diagonal, at least 1e-6. logits: flat parameters -> (n,). p: their sigmoid. Returns J,
    the diagonal (n,) of W^½, and the eigenvalues, ascending, and eigenvectors of K.
    """
    root = jnp.sqrt(jnp.maximum(p * (1 - p), 1e-6))
    jacobian = jax.jacrev(logits)(flat)
    root_of_rows = root[:, None]
    gram = jacobian @ jacobian.T
    kernel = root_of_rows * gram * root / len(p)
    values, vectors = jnp.linalg.eigh(kernel)
    return jacobian, root, values, vectors


@partial(jax.jit, static_argnames="model")
def _gauss_newton_trace(model: Model, params: Params, split: Split) -> jax.Array:
    x = model.prepare(split.x)

    def slope_squared(sample: jax.Array) -> jax.Array:
        def logit(params: Params) -> jax.Array:
            return model.logits(params, sample[None])[0]

        gradient = jax.grad(logit)(params)
        leaves = jax.tree.leaves(gradient)
        return sum(jnp.sum(leaf**2) for leaf in leaves)

    p = jax.nn.sigmoid(model.logits(params, x))
    curvatures = p * (1 - p)
    slopes_squared = jax.lax.map(slope_squared, x, batch_size=SAMPLES)
    return jnp.mean(curvatures * slopes_squared)


def _circuit_hessian(model: QNN, params: jax.Array, split: Split) -> jax.Array:
    """The Hessian from amplitudes, several times cheaper than by columns.

    It takes 16 p 2**n_qubits bytes a sample. With U the circuit, phi = U psi and z = s <phi|Z|phi>,

        d_j z     = 2 s Re <Z phi|T_j>                                  T_j = (d_j U) psi
        d_j d_k z = 2 s Re (<T_j|Z|T_k> - <A_k|T_j>), k not before j,   A_k = (d_k U) U'Z phi

    because d_j d_k U = (d_k U) U' (d_j U) where gate k acts after gate j, and (d_k U) U' is
    anti-Hermitian. Every gate is a Pauli rotation, so d_j U is half of U with angle j shifted by
    pi: no state is differentiated. The chain rule through the cross-entropy gives H = (1/n) sum
    p (1 - p) dz dz' + (p - y) ddz.
    """
    sign = _signs(params, split)
    acting = _acting_angles(model)

    def undo(states: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The states before a layer, twice: as carry and as output of a scan.

        JAX pulls back by the transpose, which for a unitary is the conjugate of the inverse.
        """
        _, pull_back = jax.vjp(partial(_layer, model, angles), states)
        before = pull_back(states.conj())[0].conj()
        return before, before

    def contribution(
        output: jax.Array, inputs: jax.Array, labels: jax.Array, weights: jax.Array
    ) -> jax.Array:
        measured = sign * output  # (samples, 2**n_qubits)
        _, returned = jax.lax.scan(undo, measured, params, reverse=True)
        # inputs of each layer, on the way from psi and from U'Z phi
        inputs = jnp.concatenate([inputs, returned], axis=1)
        derivatives = _real(_shifted_states(model, params, inputs, acting)) / 2
        # T and A, each (acting, samples, 2 * 2**n_qubits)
        tangents, adjoints = jnp.split(derivatives, 2, axis=1)
        overlaps = jnp.einsum("jsd,sd->sj", tangents, _real(measured))
        gradients = 2 * model.scale * overlaps
        expectations = jnp.einsum("sd,sd->s", _real(measured), _real(output))
        p = jax.nn.sigmoid(model.scale * expectations)
        residuals = weights * (p - labels)  # slopes of the loss in the logits
        second = _second_derivatives(tangents, adjoints, residuals, sign)
        by_angle = gradients.T
        curvatures = weights * p * (1 - p)  # of the loss in the logits
        gauss_newton = (by_angle * curvatures) @ gradients
        return gauss_newton + 2 * model.scale * second

    blocks = _over_samples(contribution, model, params, split)
    matrix = jnp.zeros((params.size, params.size))
    places = jnp.ix_(acting, acting)
    return matrix.at[places].set(blocks)


def _second_derivatives(
    tangents: jax.Array, adjoints: jax.Array, residuals: jax.Array, sign: jax.Array
) -> jax.Array:
    """The sum over samples of residuals (samples,) times d_j d_k z / (2 s): (acting, acting).

    tangents, adjoints: T and A of `_circuit_hessian`, (acting, samples, 2 * 2**n_qubits) each.
    """
    n_angles, n_samples, _ = tangents.shape
    weighted_tangents = residuals[:, None] * tangents
    weighted = weighted_tangents.reshape(n_angles, -1)
    # [k, j], where gate k is not before gate j: weighted sum over samples of Re <A_k|T_j>
    flat_adjoints = adjoints.reshape(n_angles, -1)
    later = jnp.tril(flat_adjoints @ weighted.T)
    signed = weighted * jnp.tile(sign, 2 * n_samples)
    flat_tangents = tangents.reshape(n_angles, -1)
    second = signed @ flat_tangents.T
    return second - (later + jnp.tril(later, -1).T)


def _signs(params: jax.Array, split: Split) -> jax.Array:
    """The diagonal of Z on the last qubit: (2**n_qubits,)."""
    of_last_qubit = jnp.array([1, -1], params.dtype)
    n_amplitudes = jnp.shape(split.x)[1]
    return jnp.resize(of_last_qubit, n_amplitudes)


def _over_samples(contribution: Callable, model: QNN, params: jax.Array, split: Split) -> jax.Array:
    """The sum of contribution(output, inputs, labels, weights) over blocks of k samples.

    output: (k, 2**n_qubits), the states after the circuit. inputs: (depth, k, 2**n_qubits), the
    states that enter each layer. labels, weights: (k,); the weights of all blocks add up to 1.
    """
    n = len(split.y)
    n_blocks = -(-n // SAMPLES)
    size = -(-n // n_blocks)
    rows = jnp.resize(jnp.arange(n), (n_blocks, size))  # the last block is filled up, with weight 0
    is_sample = jnp.arange(n_blocks * size) < n
    weights = is_sample.reshape(n_blocks, size) / n
    dtype = jnp.result_type(params, 1j)
    states = jnp.asarray(split.x).astype(dtype)[rows]

    def of_block(block: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        block_states, block_labels, block_weights = block

        def layer(states: jax.Array, angles: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _layer(model, angles, states), states

        output, inputs = jax.lax.scan(layer, block_states, params)
        return contribution(output, inputs, block_labels, block_weights)

    labels = jnp.asarray(split.y)[rows]
    return jax.lax.map(of_block, (states, labels, weights)).sum(axis=0)


def _layer(model: QNN, angles: jax.Array, states: jax.Array) -> jax.Array:
    return circuits.evolve(
        angles[None], states, rotations=model.rotations, entangler=model.entangler
    )


def _shifted_states(
    model: QNN, params: jax.Array, inputs: jax.Array, angles: np.ndarray
) -> jax.Array:
    """The states after the circuit with one angle shifted by pi: (len(angles), k, 2**n_qubits).

    angles: flat indices. inputs: (depth, k, 2**n_qubits), the states that enter each layer; the
    circuit is run from the layer of the shifted angle on.
    """

    def shifted(index: jax.Array) -> jax.Array:
        flat = params.reshape(-1)
        flat = flat.at[index].add(jnp.pi)
        moved = flat.reshape(params.shape)
        first = index // params[0].size

        def layer(number: jax.Array, states: jax.Array) -> jax.Array:
            return _layer(model, moved[number], states)

        return jax.lax.fori_loop(first, len(params), layer, inputs[first])

    return jax.lax.map(shifted, jnp.asarray(angles))


def _acting_angles(model: QNN) -> np.ndarray:
    """Flat indices of the angles on which the logit depends, in the order in which their gates act.

    With an RZZ ring, these are the rotations within the light cone of the measured Z and the bonds
    that touch the cone of the layers behind them. In the Hessian, the rows of other angles are 0.
    """
    layers, qubits, positions = model.acting_angles.T
    # a layer's gates act position by position, the bonds last
    by_time = np.lexsort((qubits, positions, layers))
    n_angles = circuits.parameters_per_qubit(model.rotations, model.entangler)
    shape = model.depth, model.n_qubits, n_angles
    indices = np.ravel_multi_index((layers, qubits, positions), shape)
    return indices[by_time]


def _real(states: jax.Array) -> jax.Array:
    """Complex states (..., d) as real vectors (..., 2 d).

    Their scalar products are the real parts of the complex ones.
    """
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
    """The k lowest and k highest eigenvalues of the Hessian and their vectors, by Lanczos.

    By matfree, from a random start, with all vectors reorthogonalised. steps: Hessian-vector
    products, at most p. A degenerate eigenvalue, such as 0, is found once. Where fewer than 2 k
    different eigenvalues exist (a dead network has 0 and p (1 - p)), the inner places are NaN. The
    error is the residual |H v - value v| plus the rounding of a product. It does not tell whether
    an eigenvalue further out was missed; more steps would find it.
    """
    product, flat = _linear_product(model, params, split)
    require_whole("steps", steps, 2)
    require_whole("k", k)
    steps = min(steps, flat.size)
    half = steps // 2
    require(k <= half, "k", k, f"1 to {half}, half of the Lanczos steps")
    start = jax.random.normal(key, flat.shape, flat.dtype)
    basis, tridiagonal, reached = _lanczos(product, start, steps)
    values, coordinates = jnp.linalg.eigh(tridiagonal)
    ends = np.r_[:k, steps - k : steps]
    values = values[ends]
    coordinates = coordinates[:, ends]
    share_reached = reached @ coordinates**2
    values = jnp.where(share_reached > 0.5, values, jnp.nan)
    vectors = coordinates.T @ basis
    vectors /= jnp.linalg.norm(vectors, axis=1, keepdims=True)
    products = jax.lax.map(product, vectors)
    differences = products - values[:, None] * vectors
    residuals = jnp.linalg.norm(differences, axis=1)
    eps = jnp.finfo(flat.dtype).eps
    rounding = 16 * eps * jnp.abs(tridiagonal).max()
    return Extremes(values, residuals + rounding, vectors)


def _lanczos(
    product: Callable, start: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tridiagonalise H on orthonormal Krylov vectors.

    Returns the vectors (steps, p), H in their basis (steps, steps), and which vectors were reached
    (steps,). Where the coupling to the next vector falls to the square root of rounding, the Krylov
    space is exhausted (a dead network's Hessian has rank one) and further vectors are noise. They
    are set to 0, and their diagonal elements to the Rayleigh quotient of the start, which is inside
    the spectrum.
    """
    tridiagonalise = decomp.tridiag_sym(steps, reortho="full", materialize=False, custom_vjp=False)
    basis, (diagonal, coupling), *_ = tridiagonalise(product, start)
    sizes = jnp.abs(diagonal[:-1]) + coupling
    scale = jax.lax.cummax(sizes)
    eps = jnp.finfo(start.dtype).eps
    # NaN, from 0 / 0 in an exhausted space, compares False
    is_coupled = coupling > jnp.sqrt(eps) * scale
    reached = jnp.cumprod(is_coupled) > 0
    coupling = jnp.where(reached, coupling, 0)
    reached = jnp.concatenate([jnp.array([True]), reached])
    diagonal = jnp.where(reached, diagonal, diagonal[0])
    upper = jnp.diag(diagonal) + jnp.diag(coupling, 1)
    tridiagonal = upper + jnp.diag(coupling, -1)
    return jnp.where(reached[:, None], basis, 0), tridiagonal, reached


# ---- slices ----


@partial(jax.jit, static_argnames=("model", "number"))
def filter_normalised_directions(
    model: Model, params: Params, *, key: jax.Array, number: int = 2
) -> jax.Array:
    """Random directions through the parameters on the model's own scale: (number, p).

    MLP: filter normalisation (Li et al., 1712.09913, section 4). A direction's entries at a
    neuron's incoming weights get the norm of these weights. A bias, a filter of one entry, moves by
    plus or minus itself (Li et al. leave biases out). So a network has the slice of its rescaled
    copies, with one layer multiplied by c and the weights of the next divided by c.

    QNN: the scale of every angle is the radian. A direction moves all angles by 1 rad root mean
    square.
    """
    require_whole("number", number)
    flat, unflatten = ravel_pytree(params)
    shape = number, flat.size
    drawn = jax.random.normal(key, shape, flat.dtype)
    if not isinstance(model, MLP):
        mean_squares = jnp.mean(drawn**2, axis=1, keepdims=True)
        return drawn / jnp.sqrt(mean_squares)

    def normalised(row: jax.Array) -> jax.Array:
        direction = jax.tree.map(_with_filter_norms, unflatten(row), params)
        return ravel_pytree(direction)[0]

    return jax.vmap(normalised)(drawn)


def _with_filter_norms(direction: jax.Array, leaf: jax.Array) -> jax.Array:
    """Scale a direction to the norm of each filter.

    A filter is a row of (fan_out, fan_in) weights or of (fan_out,) biases.
    """
    rows = direction.reshape(len(leaf), -1)
    filters = leaf.reshape(len(leaf), -1)
    filter_norms = jnp.linalg.norm(filters, axis=1, keepdims=True)
    row_norms = jnp.linalg.norm(rows, axis=1, keepdims=True)
    scale = filter_norms / row_norms
    return (rows * scale).reshape(leaf.shape)


class Slice(NamedTuple):
    """The loss over a plane.

    first, second: offsets (points,) along the two directions. loss: (points, points) in nats.
    """

    first: jax.Array
    second: jax.Array
    loss: jax.Array


@partial(jax.jit, static_argnames=("model", "points"))
def loss_slice(
    model: Model, params: Params, split: Split, directions: jax.Array, *, radius: float, points: int
) -> Slice:
    """The loss over the plane through params along two directions, at offsets -radius to radius.

    loss[i, j] is taken at params + first[i] directions[0] + second[j] directions[1]. directions:
    (2, p), such as two rows of `Extremes.vectors`. points: odd, so that the centre is params.
    """
    require_whole("points", points)
    require(points % 2 == 1, "points", points, "odd numbers, so that the centre is one of them")
    flat, unflatten = ravel_pytree(params)
    p = flat.size
    shape = jnp.shape(directions)
    require(shape == (2, p), "directions", f"shape {shape}", f"(2, {p})")
    loss = loss_function(model, split)
    half = points // 2
    steps = jnp.arange(points) - half
    offsets = radius * steps / max(half, 1)
    grid = jnp.meshgrid(offsets, offsets, indexing="ij")
    plane = jnp.stack(grid, axis=-1).reshape(-1, 2)
    # one point at a time for circuits: many circuits in one batch crash jaxlib 0.10.2
    batch_size = COLUMNS if isinstance(model, MLP) else None

    def loss_at(point: jax.Array) -> jax.Array:
        moved = flat + point @ directions
        return loss(unflatten(moved))

    values = jax.lax.map(loss_at, plane, batch_size=batch_size)
    return Slice(offsets, offsets, values.reshape(points, points))
