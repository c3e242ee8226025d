"""Controls of "quantum models resist poison": contenders of the published MLP and QNN.

Models that share one property of the QNN (a bounded logit, few parameters, a quadratic form of the
amplitudes) or lack one (entanglers, trained layers, the fixed scale). Losses that are made for
noisy labels. Estimators that train nothing by gradients. A claim about circuits has to hold against
each contender.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from foundation.base.checks import as_numbers, is_number, require, require_whole
from foundation.measures.metrics import cross_entropy, log_losses
from foundation.quantum import circuits
from models import MLP, QNN, Params, as_inputs
from poison_unlearn import Batch, Retrain, Task, retain_loss
from studies.quadratic import inverse_root


def _positive(model: Any, name: str) -> None:
    """Require a positive, finite number and keep it as a float: 5 and 5.0 are one model."""
    value = getattr(model, name)
    is_positive = is_number(value) and 0 < value < math.inf
    require(is_positive, name, value, "a positive, finite number")
    object.__setattr__(model, name, float(value))


# ---- models: bounded logits ----


@dataclass(frozen=True)
class BoundedMLP(MLP):
    """The MLP with logit s tanh(z / s), s the bound: the QNN's ±5, without a circuit."""

    bound: float = 5.0  # that of the QNN

    def __post_init__(self):
        super().__post_init__()
        _positive(self, "bound")

    @property
    def label(self) -> str:
        """That of the MLP, and the bound."""
        return f"{super().label},bound={self.bound:g}"

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Compute logits (n,) within the bound."""
        logits = super().logits(params, x)
        return self.bound * jnp.tanh(logits / self.bound)

    def to_keras(self, params: Params) -> Any:
        """Build the network as a keras.Model whose output is the bounded logit."""
        from tensorflow import keras

        network = super().to_keras(params)
        logit = network.outputs[0]
        bounded = self.bound * keras.ops.tanh(logit / self.bound)
        return keras.Model(network.inputs[0], bounded)


@dataclass(frozen=True)
class ProjectedLinear:
    """logit = s tanh((w'Px + b) / s): a linear model on fixed random projections P of the inputs.

    P, (width, n_features), has independent normal entries of variance 1 / n_features, drawn from
    the seed in JAX's present precision. P is no parameter. P multiplies the weights, not the
    inputs: equal logits for fewer products.
    """

    n_features: int  # 2 d for complex inputs of length d, (Re x, Im x)
    width: int = 135  # the angles that act on <Z> in the QNN of depth 6 on 10 qubits
    bound: float = 5.0  # that of the QNN
    seed: int = 0

    family = "Logistic"

    def __post_init__(self):
        require_whole("n_features", self.n_features)
        require_whole("width", self.width)
        require_whole("seed", self.seed, 0)
        _positive(self, "bound")

    @property
    def label(self) -> str:
        """Its width, and what differs from the defaults."""
        bound = "" if self.bound == 5 else f",bound={self.bound:g}"
        seed = f",seed={self.seed}" if self.seed else ""
        return f"Linear[{self.width} projections{bound}{seed}]"

    @property
    def projection(self) -> np.ndarray:
        """P, (width, n_features)."""
        dtype = np.dtype(jnp.result_type(float))
        return _projection(self.seed, self.width, self.n_features, dtype)

    def init(self, key: jax.Array) -> Params:
        """(weights (width,), bias ()): Glorot-uniform and 0, as the MLP's last layer."""
        glorot = jax.nn.initializers.glorot_uniform()
        weights = glorot(key, (self.width, 1))
        return weights[:, 0], jnp.zeros(())

    def prepare(self, x: jax.Array) -> jax.Array:
        """Check inputs (n, n_features); complex ones become (Re x, Im x)."""
        x = MLP(self.n_features, ()).prepare(x)
        fits = x.shape[1] == self.n_features
        require(fits, "x", f"shape {x.shape}", f"(n, {self.n_features})")
        return x

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Compute logits (n,) within the bound."""
        weights, bias = params
        x = self.prepare(x)
        linear = x @ (weights @ self.projection) + bias
        return self.bound * jnp.tanh(linear / self.bound)


@lru_cache(maxsize=8)
def _projection(seed: int, width: int, n_features: int, dtype: np.dtype) -> np.ndarray:
    with jax.ensure_compile_time_eval():  # drawn once, a constant of programs that are traced
        normal = jax.random.normal(jax.random.key(seed), (width, n_features), dtype)
        return np.asarray(normal / math.sqrt(n_features))


# ---- models: circuits ----


@dataclass(frozen=True)
class ScaledQNN(QNN):
    """The QNN with logit = logit_scale <Z>."""

    logit_scale: float = 5.0  # published

    def __post_init__(self):
        super().__post_init__()
        _positive(self, "logit_scale")

    @property
    def scale(self) -> float:
        """Its logit per unit of <Z>."""
        return self.logit_scale

    @property
    def label(self) -> str:
        """That of the QNN, and the scale."""
        return f"{super().label},scale={self.logit_scale:g}"


@dataclass(frozen=True)
class LearnedScaleQNN(QNN):
    """The QNN with logit = exp(log_scale) <Z>, whose scale is trained with the angles.

    `circuit` takes params["angles"].
    """

    @property
    def label(self) -> str:
        """That of the QNN, with the scale learned."""
        return f"{super().label},scale=learned"

    def init(self, key: jax.Array) -> Params:
        """angles: as the QNN's. log_scale: (), the published log 5."""
        angles = super().init(key)
        log_scale = jnp.array(math.log(self.scale), jnp.result_type(float))
        return {"angles": angles, "log_scale": log_scale}

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Compute logits (n,) at the scale among the parameters."""
        factor = jnp.exp(params["log_scale"]) / self.scale
        return factor * super().logits(params["angles"], x)

    def last_layers(self, params: Params, k: int) -> Params:
        """True for the last k layers of the circuit, and for the scale, which acts after them."""
        return {"angles": super().last_layers(params["angles"], k), "log_scale": True}

    def to_openqasm(self, params: Params) -> str:
        """Write the circuit as OpenQASM 2, without the scale."""
        return super().to_openqasm(params["angles"])


Trained = Literal["last layer", "rotations"]


@dataclass(frozen=True)
class FrozenQNN(QNN):
    """The QNN with a part of its angles frozen; trained: the part that is not.

    "last layer", which is next to the measurement: the angles of all other layers are uniform in
    [0, 2π). Of the trained angles only the last qubit's rotations act, for RZZ commutes with Z: <Z>
    becomes n·σ of that qubit, n free, behind a random circuit. "rotations": the RZZ angles are 0,
    so that there are no entanglers, and again only the last qubit's rotations act. Frozen angles
    are parameters without a gradient. Code that changes parameters by other means than Adam on the
    logits can use `hold` to leave them alone.
    """

    trained: Trained = "last layer"

    def __post_init__(self):
        super().__post_init__()
        parts = get_args(Trained)
        require(self.trained in parts, "trained", self.trained, ", ".join(parts))
        has_bonds = self.ansatz is None and self.entangler == "rzz"
        is_possible = self.trained == "last layer" or has_bonds
        require(is_possible, "trained", self.trained, "last layer, without RZZ angles")

    @property
    def label(self) -> str:
        """That of the QNN, and the trained part."""
        return f"{super().label},trained={self.trained}"

    def init(self, key: jax.Array) -> Params:
        """Draw the angles as the QNN does, and freeze some of them."""
        start_key, frozen_key = jax.random.split(key)
        angles = super().init(start_key)
        frozen = 0.0
        if self.trained == "last layer":
            frozen = jax.random.uniform(frozen_key, angles.shape, maxval=2 * math.pi)
        return jnp.where(self.moving(angles), angles, frozen)

    def moving(self, params: Params) -> np.ndarray:
        """Mask of the angles that are trained, of the shape of params or with axes of length 1."""
        if self.trained == "last layer":
            return self.last_layers(params, 1)
        per_qubit = circuits.parameters_per_qubit(self.rotations, self.entangler)
        is_rotation = np.arange(per_qubit) < per_qubit - 1  # the last angle is that of RZZ
        return is_rotation[None, None]

    def hold(self, params: Params) -> Params:
        """Stop the gradient of the frozen angles."""
        return jnp.where(self.moving(params), params, jax.lax.stop_gradient(params))

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Compute logits (n,); frozen angles have no gradient."""
        return super().logits(self.hold(params), x)


# ---- models: the function class of circuits ----


@dataclass(frozen=True)
class _Quadratic:
    """logit = 5 x'Ox with an operator of norm at most 1."""

    n_features: int

    family = "Quadratic"
    scale = 5.0  # that of the QNN

    def __post_init__(self):
        require_whole("n_features", self.n_features)

    def prepare(self, x: jax.Array) -> jax.Array:
        x = as_inputs(x)
        fits = x.shape[1:] == (self.n_features,)
        require(fits, "x", f"shape {x.shape}", f"(n, {self.n_features})")
        return x


@dataclass(frozen=True)
class FullQuadratic(_Quadratic):
    """logit = 5 x'Ox with any symmetric O of spectral norm at most 1, Hermitian where `is_complex`.

    O = S / max(1, ‖S‖), S = (A + A') / 2. ‖S‖ is estimated from below, by |Sv| for the unit vector
    v that 32 steps of Lanczos' iteration find from a constant random start. So the bound holds to
    the accuracy of the iteration: ‖O‖ < 1.02 for all random and trained matrices met. (40 plain
    power iterations took longer, and training found matrices with ‖O‖ of 1.03.) The gradient takes
    v as constant, which is exact at the eigenvector. The Z of every circuit, of any depth, is among
    these O: for real x its real part is enough, for complex x with `is_complex`.
    """

    is_complex: bool = False

    label = "Quadratic[full]"

    def init(self, key: jax.Array) -> Params:
        """A: (n_features, n_features), or (2, ...) real and imaginary parts; from N(0, 0.01^2 /
        n_features)."""
        shape = (2,) * self.is_complex + (self.n_features,) * 2
        scale = 0.01 / math.sqrt(self.n_features)
        return scale * jax.random.normal(key, shape)

    def operator(self, params: Params) -> jax.Array:
        """O, (n_features, n_features)."""
        symmetric = self._symmetric(params)
        return symmetric / jnp.maximum(1, _spectral_norm(symmetric))

    def _symmetric(self, params: Params) -> jax.Array:
        matrix = jax.lax.complex(*params) if self.is_complex else params
        return (matrix + matrix.conj().T) / 2

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Compute logits (n,) of inputs (n, n_features)."""
        x = self.prepare(x)
        symmetric = self._symmetric(params)
        acting = symmetric if jnp.iscomplexobj(x) else symmetric.real
        products = x.conj() * (x @ acting.T)
        forms = jnp.sum(products, axis=1).real  # (n,)
        return self.scale * forms / jnp.maximum(1, _spectral_norm(symmetric))


KRYLOV, SQUARINGS = 32, 10


def _spectral_norm(symmetric: jax.Array) -> jax.Array:
    """Estimate the largest |eigenvalue| from below, by |Sv| for a unit vector v.

    v is the extreme Ritz vector of a Krylov space of 32 dimensions, by Lanczos' iteration with full
    orthogonalisation. v is found by squaring the projected matrix, not by LAPACK, for the reason in
    `quadratic.inverse_root`. v'Sv would vanish where v mixes an eigenvalue and its negative.
    """
    fixed = jax.lax.stop_gradient(symmetric)
    n = len(symmetric)
    start = np.random.default_rng(0).normal(size=n)
    start = jnp.asarray(start / np.linalg.norm(start), symmetric.dtype)

    def extend(k: int, basis: jax.Array) -> jax.Array:
        image = fixed @ basis[k - 1]
        fresh = image - basis.T @ (basis.conj() @ image)
        fresh = fresh - basis.T @ (basis.conj() @ fresh)
        size = jnp.linalg.norm(fresh)
        is_new = size > 1e-4 * jnp.linalg.norm(image)  # else the space is exhausted: a row of zeros
        unit = fresh / jnp.where(is_new, size, 1)
        return basis.at[k].set(jnp.where(is_new, unit, 0))

    def square(_: int, power: jax.Array) -> jax.Array:
        return _unit(power @ power)

    basis = jnp.zeros((KRYLOV, n), symmetric.dtype)
    basis = basis.at[0].set(start)
    basis = jax.lax.fori_loop(1, KRYLOV, extend, basis)  # orthonormal rows
    projected = basis.conj() @ (fixed @ basis.T)  # (KRYLOV, KRYLOV)
    power = jax.lax.fori_loop(0, SQUARINGS, square, _unit(projected))
    largest = jnp.linalg.norm(power, axis=0).argmax()
    column = power[:, largest]
    vector = _unit(basis.T @ column)
    direction = _unit(fixed @ vector)
    return jnp.vdot(direction, symmetric @ vector).real


def _unit(array: jax.Array) -> jax.Array:
    norm = jnp.linalg.norm(array)
    return array / jnp.maximum(norm, jnp.finfo(array.dtype).tiny)


@dataclass(frozen=True)
class Reflection(_Quadratic):
    """logit = 5 x'V'(Z ⊗ 1)Vx with a free unitary V: a circuit of any depth, whatever its gates.

    V'(Z ⊗ 1)V = 2 Q'Q - 1, with Q the first n_features / 2 rows of V. Q = R B, with B any complex
    matrix of Q's shape and R the inverse of the Cholesky factor of B B': the rows of Q are
    orthonormal. For real x only Re O matters, whose norm is at most 1; O is kept complex, as a
    circuit's is.
    """

    label = "Quadratic[reflection]"

    def __post_init__(self):
        super().__post_init__()
        require(self.n_features % 2 == 0, "n_features", self.n_features, "even numbers")

    def init(self, key: jax.Array) -> Params:
        """B: (2, n_features / 2, n_features), real and imaginary parts.

        V is then uniform among the unitaries.
        """
        shape = (2, self.n_features // 2, self.n_features)
        return jax.random.normal(key, shape) / math.sqrt(self.n_features)

    def operator(self, params: Params) -> jax.Array:
        """O, (n_features, n_features)."""
        rows, root = self._rows(params)
        orthonormal = root @ rows
        return 2 * orthonormal.conj().T @ orthonormal - jnp.eye(self.n_features)

    def _rows(self, params: Params) -> tuple[jax.Array, jax.Array]:
        """Return B and R."""
        rows = jax.lax.complex(*params)
        gram = rows @ rows.conj().T
        return rows, _inverse_root_by_blocks(gram)

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Compute logits (n,) of inputs (n, n_features)."""
        x = self.prepare(x)
        rows, root = self._rows(params)
        overlaps = (x @ rows.T) @ root.T  # (n, n_features / 2)
        return self.scale * (2 * _squares(overlaps) - _squares(x))


def _squares(x: jax.Array) -> jax.Array:
    """(n,) squared norms of rows."""
    return jnp.sum((x * x.conj()).real, axis=1)


SMALL = 32  # rows that are eliminated one by one; 16 to 64 take as long


def _inverse_root_by_blocks(gram: jax.Array) -> jax.Array:
    """Compute `quadratic.inverse_root` by halves, nearly all in matrix products.

    512 rows take 18 ms in place of 660.
    """
    if len(gram) <= SMALL:
        return inverse_root(gram)
    half = len(gram) // 2
    upper = _inverse_root_by_blocks(gram[:half, :half])
    mixed = gram[half:, :half] @ upper.conj().T
    rest = gram[half:, half:] - mixed @ mixed.conj().T
    lower = _inverse_root_by_blocks(rest)
    zeros = jnp.zeros_like(mixed.T)
    below = -(lower @ mixed) @ upper
    return jnp.block([[upper, zeros], [below, lower]])


# ---- losses: methods that start anew ----


@dataclass(frozen=True)
class Decayed(Retrain):
    """CE(D_r) + decay |W|²: an L2 penalty in the loss, whose gradient passes through Adam.

    Not Loshchilov and Hutter's decoupled decay. W are the parameters with the most axes: the
    weights of an MLP without its biases, all angles of a circuit without its learned scale. Angles
    that a model freezes stay frozen. The penalty does not restrict a `Reflection`: only the span of
    its rows counts.
    """

    decay: float = 1e-3

    title = "weight decay"

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        trained = task.model.hold(params) if hasattr(task.model, "hold") else params
        leaves = jax.tree.leaves(trained)
        most_axes = max(map(jnp.ndim, leaves))
        weights = [leaf for leaf in leaves if jnp.ndim(leaf) == most_axes]
        size = sum(jnp.sum(jnp.square(leaf)) for leaf in weights)
        return retain_loss(task, params, batch) + self.decay * size


@dataclass(frozen=True)
class Smoothed(Retrain):
    """CE(D_r) with labels (1 - smoothing) y + smoothing / 2 (Szegedy et al., arXiv:1512.00567).

    Of K classes a label's weight is 1 - smoothing, and smoothing / K goes to each of the K.
    """

    smoothing: float = 0.1

    title = "label smoothing"

    def check(self) -> None:
        """Refuse shares above 1."""
        super().check()
        require(self.smoothing <= 1, "smoothing", self.smoothing, "0 to 1")

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        logits = task.logits(params, batch.retain.x, batch.key)
        if logits.ndim == 2:
            of_all = jax.nn.logsumexp(logits, axis=1) - logits.mean(axis=1)
            smooth = jnp.average(of_all, weights=batch.retain_weight)
            learn = cross_entropy(logits, batch.retain.y, batch.retain_weight)
            return (1 - self.smoothing) * learn + self.smoothing * smooth
        given = (1 - self.smoothing) * batch.retain.y
        labels = given + self.smoothing / 2
        return cross_entropy(logits, labels, batch.retain_weight)


@dataclass(frozen=True)
class GeneralisedCE(Retrain):
    """The mean of (1 - p_y^q) / q, p_y the probability of the given label (Zhang and Sabuncu,
    arXiv:1805.07836).

    q -> 0 is CE, q = 1 the mean absolute error 1 - p_y. Without the paper's truncation and pruning.
    A label between 0 and 1 weighs the terms of both classes, as in CE.
    """

    q: float = 0.7  # the paper's

    title = "generalised CE"

    def check(self) -> None:
        """Refuse q outside (0, 1]."""
        super().check()
        require(0 < self.q <= 1, "q", self.q, "above 0, up to 1")

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        logits = task.logits(params, batch.retain.x, batch.key)
        y = batch.retain.y

        def loss(signed: jax.Array) -> jax.Array:
            """(1 - p^q) / q of the class towards which the logits are signed."""
            return -jnp.expm1(self.q * jax.nn.log_sigmoid(signed)) / self.q

        if logits.ndim == 2:
            losses = -jnp.expm1(-self.q * log_losses(logits, y)) / self.q
            return jnp.average(losses, weights=batch.retain_weight)
        opposite = -logits
        loss_of_ones = loss(logits)
        loss_of_zeros = loss(opposite)
        losses = y * loss_of_ones + (1 - y) * loss_of_zeros
        return jnp.average(losses, weights=batch.retain_weight)


# ---- estimators: nothing is trained by gradients ----


@dataclass(frozen=True)
class NearestMean:
    """Nearest-class-mean classifier; complex inputs are (Re x, Im x), as an MLP reads them."""

    label = "nearest class mean"
    family = "Trivial"

    def settings(self) -> tuple[NearestMean, ...]:
        """Itself: it has no hyper-parameter."""
        return (self,)

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """A scikit-learn estimator whose predict(x) gives labels of raw features."""
        from sklearn.neighbors import NearestCentroid

        # scikit-learn warns of features that never vary
        with warnings.catch_warnings(), np.errstate(invalid="ignore"):
            warnings.simplefilter("ignore", UserWarning)
            return _fitted(_real_rows, NearestCentroid(), x, y)


@dataclass(frozen=True)
class Neighbours:
    """k-nearest-neighbours classifier; a tie goes to class 0.

    All training samples vote where there are fewer than k. Complex inputs are (Re x, Im x), as an
    MLP reads them.
    """

    k: int = 5

    label = "nearest neighbours"
    family = "Trivial"

    def __post_init__(self):
        require_whole("k", self.k)

    def settings(self) -> tuple[Neighbours, ...]:
        """1, 5, 15 and 31 neighbours."""
        return tuple(replace(self, k=k) for k in (1, 5, 15, 31))

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """A scikit-learn estimator whose predict(x) gives labels of raw features."""
        from sklearn.neighbors import KNeighborsClassifier

        classifier = KNeighborsClassifier(min(self.k, len(y)))
        return _fitted(_real_rows, classifier, x, y)


@dataclass(frozen=True)
class ThresholdOnZZ:
    """Decision stump on the mean of <Z_i Z_{i+1}> over a ring: threshold and direction are fitted.

    In the ground states of `datar.load_xxz` the mean falls with Δ, so that it is a threshold on Δ.
    """

    label = "threshold on ZZ"
    family = "Trivial"

    def settings(self) -> tuple[ThresholdOnZZ, ...]:
        """Itself: it has no hyper-parameter."""
        return (self,)

    def fit(self, x: np.ndarray, y: np.ndarray) -> Any:
        """A scikit-learn estimator whose predict(x) gives labels of amplitudes (n, 2**L)."""
        from sklearn.tree import DecisionTreeClassifier

        stump = DecisionTreeClassifier(max_depth=1, random_state=0)
        return _fitted(ring_correlation, stump, x, y)


def ring_correlation(x: np.ndarray) -> np.ndarray:
    """Mean over i of <Z_i Z_{i+1 mod L}> in each state: (n, 1).

    x: (n, 2**L) amplitudes of any norm but 0. Raises BadInput for other x.
    """
    x = as_numbers(x, "x")
    size = x.shape[1] if x.ndim == 2 else 0
    require(
        size >= 4 and size & (size - 1) == 0,
        "x",
        f"shape {x.shape}",
        "(n, 2**L) amplitudes of 2 sites or more",
    )
    n_sites = size.bit_length() - 1
    # (2**L, L), neighbours side by side in either order
    bits = np.arange(size)[:, None] >> np.arange(n_sites) & 1
    are_unequal = bits ^ np.roll(bits, 1, axis=1)
    correlation = np.mean(1.0 - 2 * are_unequal, axis=1)
    probabilities = np.square(np.abs(x.astype(np.complex128)))
    norms = probabilities.sum(axis=1, keepdims=True)
    require(bool((norms > 0).all()), "x", "a state of norm 0", "states")
    return probabilities @ correlation[:, None] / norms


def _real_rows(x: np.ndarray) -> np.ndarray:
    """(n, d) real features, or (n, 2 d) of complex ones."""
    x = as_numbers(x, "x")
    require(x.ndim == 2, "x", f"shape {x.shape}", "(n, d); flatten images to rows")
    if np.iscomplexobj(x):
        return np.concatenate([x.real, x.imag], axis=1)
    return x


def _fitted(
    features: Callable[[np.ndarray], np.ndarray], estimator: Any, x: np.ndarray, y: np.ndarray
) -> Any:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    return make_pipeline(FunctionTransformer(features), estimator).fit(x, np.asarray(y))
