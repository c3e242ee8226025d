"""MLP and QNN behind one interface, and the one loop that trains anything.

A model is a frozen dataclass with

    init(key) -> params            fresh parameters: a pytree of real arrays
    prepare(x) -> inputs           what the model reads, made once from a data set's x
    logits(params, x) -> (n,)      of prepared inputs or raw x; p = sigmoid(logit), class 1 where logit > 0
    label                          its name in results and figures

A model of your own needs no more than these; it must be hashable, so that JAX can compile for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

import circuits
from datar import Split, require, require_whole
from metrics import cross_entropy

if TYPE_CHECKING:
    import keras
    import tensorcircuit

Params = Any  # a pytree of real arrays


@dataclass(frozen=True)
class MLP:
    """ReLU network with one output logit, Glorot-uniform weights and zero biases as in Keras.

    `hidden=()` is logistic regression. Complex inputs of length d count as 2 d features, (Re x, Im x).
    """

    n_features: int = 1024
    hidden: tuple[int, ...] = (64, 16)

    def __post_init__(self):
        require_whole("n_features", self.n_features)
        require(isinstance(self.hidden, tuple), "hidden", self.hidden, "a tuple of widths")
        for width in self.hidden:
            require_whole("hidden", width)

    @property
    def label(self) -> str:
        return f"MLP[{','.join(map(str, self.hidden))}]" if self.hidden else "Logistic"

    def init(self, key: jax.Array) -> Params:
        """[(weights (fan_out, fan_in), biases (fan_out,)), ...] from the input to the logit.

        A row for each neuron: XLA takes half as long for the gradient as with Keras' (fan_in, fan_out).
        """
        widths = (self.n_features, *self.hidden, 1)
        keys = jax.random.split(key, len(widths) - 1)
        glorot = jax.nn.initializers.glorot_uniform()
        layers = zip(keys, widths[:-1], widths[1:], strict=True)
        return [(glorot(k, (fan_in, fan_out)).T, jnp.zeros(fan_out)) for k, fan_in, fan_out in layers]

    def prepare(self, x: jax.Array) -> jax.Array:
        """(n, d) real, or (n, 2 d) from complex x."""
        x = jnp.asarray(x)
        return jnp.concatenate([x.real, x.imag], axis=1) if jnp.iscomplexobj(x) else x

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        activity = self.prepare(x)
        width = params[0][0].shape[1]
        require(activity.ndim == 2 and activity.shape[1] == width, "x", f"shape {activity.shape}", f"(n, {width})")
        *hidden, (weights, bias) = params
        for hidden_weights, hidden_bias in hidden:
            activity = jax.nn.relu(activity @ hidden_weights.T + hidden_bias)
        return (activity @ weights.T + bias)[:, 0]

    def to_keras(self, params: Params) -> keras.Model:
        """The same network as a Keras model whose output is the logit (apply a sigmoid for p)."""
        from tensorflow import keras

        layers = [keras.layers.Dense(width, activation="relu") for width in self.hidden]
        network = keras.Sequential([keras.Input((self.n_features,)), *layers, keras.layers.Dense(1)])
        network.set_weights([array.T for layer in params for array in layer])
        return network


@dataclass(frozen=True)
class QNN:
    """Hardware-efficient circuit on amplitude-encoded data; logit = 5 <Z> of the last qubit.

    Parameters start from N(0, 0.01^2) (arXiv:2508.02422; models.py, `QNN` and `y_pred`). `ansatz` puts a
    circuit of your own in place of `circuits.ansatz`: a function (params, inputs) -> tensorcircuit.Circuit,
    with `shape` the shape of its params. It is simulated gate by gate.
    """

    n_qubits: int = 10
    depth: int = 6
    rotations: circuits.Rotations = "xyx"
    entangler: circuits.Entangler = "rzz"
    ansatz: Callable[[jax.Array, jax.Array], tensorcircuit.Circuit] | None = None
    shape: tuple[int, ...] | None = None

    scale = 5.0  # published: logit per unit of <Z>

    def __post_init__(self):
        require_whole("n_qubits", self.n_qubits, 2)
        require_whole("depth", self.depth)
        require(self.rotations in ("xyx", "xy"), "rotations", self.rotations, "xyx, xy")
        require(self.entangler in ("rzz", "cnot"), "entangler", self.entangler, "rzz, cnot")
        require((self.ansatz is None) == (self.shape is None), "shape", self.shape, "given with ansatz, and only then")

    @property
    def label(self) -> str:
        if self.ansatz is not None:
            return f"QNN[{getattr(self.ansatz, '__name__', 'ansatz')}]"
        variant = "" if (self.rotations, self.entangler) == ("xyx", "rzz") else f",{self.rotations},{self.entangler}"
        return f"QNN[depth={self.depth}{variant}]"

    def init(self, key: jax.Array) -> Params:
        """(depth, n_qubits, angles per qubit and layer) in radians, or `shape`."""
        per_qubit = circuits.parameters_per_qubit(self.rotations, self.entangler)
        return 0.01 * jax.random.normal(key, self.shape or (self.depth, self.n_qubits, per_qubit))

    def prepare(self, x: jax.Array) -> jax.Array:
        """The amplitudes (n, 2**n_qubits), or (n, d, d) density matrices where the light cone is small.

        Worth it where they are not much larger than the states: XXZ at depth 4, 7 of 12 qubits, 128 x 128.
        """
        if x.ndim == 3:
            return x
        require(x.shape[-1] == 2**self.n_qubits, "x", f"samples of length {x.shape[-1]}", f"{2**self.n_qubits}")
        has_cone = self.ansatz is None and self.entangler == "rzz"
        if has_cone and circuits.reduced_dimension(self.n_qubits, self.depth) ** 2 <= 4 * 2**self.n_qubits:
            return circuits.reduce_states(jnp.asarray(x), self.depth)
        return jnp.asarray(x)

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        if self.ansatz is not None:
            return self.scale * jax.vmap(partial(self._plain_expectation, params))(x)
        return self.scale * circuits.expectation(params, x, rotations=self.rotations, entangler=self.entangler)

    def circuit(self, params: Params, inputs: jax.Array | None = None) -> tensorcircuit.Circuit:
        """The TensorCircuit circuit, to run or to draw: `.tex()` gives LaTeX, `.draw()` needs qiskit."""
        if self.ansatz is not None:
            return self.ansatz(params, inputs)
        return circuits.ansatz(params, inputs, rotations=self.rotations, entangler=self.entangler)

    def _plain_expectation(self, params: Params, state: jax.Array) -> jax.Array:
        return self.circuit(params, state).expectation_ps(z=[self.n_qubits - 1]).real


@dataclass(frozen=True)
class QuadraticForm:
    """logit = 5 x'Ox with an operator of norm below 1: the QNN's function class, without a circuit.

    O = sum_k tanh(c_k) |v_k><v_k| over `rank` orthonormal vectors, complex ones where `is_complex`. A control of
    the capacity: whatever a QNN owes to being a bounded quadratic form of the amplitudes, this has too.
    """

    n_features: int
    rank: int = 16
    is_complex: bool = False

    scale = 5.0  # that of the QNN

    def __post_init__(self):
        require_whole("n_features", self.n_features)
        require_whole("rank", self.rank)
        require(self.rank <= self.n_features, "rank", self.rank, f"1 to {self.n_features}, the number of features")

    @property
    def label(self) -> str:
        return f"Quadratic[rank={self.rank}]"

    def init(self, key: jax.Array) -> Params:
        """basis: (2, rank, n_features) real and imaginary parts, or (1, ...) real ones. values: (rank,), the c_k."""
        basis_key, values_key = jax.random.split(key)
        basis = jax.random.normal(basis_key, (1 + self.is_complex, self.rank, self.n_features))
        return {
            "basis": basis / math.sqrt(self.n_features),
            "values": 0.01 * jax.random.normal(values_key, (self.rank,)),
        }

    def prepare(self, x: jax.Array) -> jax.Array:
        shape = jnp.shape(x)
        require(len(shape) == 2 and shape[1] == self.n_features, "x", f"shape {shape}", f"(n, {self.n_features})")
        return jnp.asarray(x)

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """The vectors are made orthonormal by the Cholesky factor of their Gram matrix."""
        basis = jax.lax.complex(*params["basis"]) if self.is_complex else params["basis"][0]
        root = jnp.linalg.cholesky(basis @ basis.conj().T)
        overlaps = jax.scipy.linalg.solve_triangular(root, basis @ x.T, lower=True)  # (rank, n)
        return self.scale * jnp.tanh(params["values"]) @ (overlaps * overlaps.conj()).real


Model = MLP | QNN | QuadraticForm


# ---- training ----


def train(
    model: Model,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: jax.Array,
) -> Params:
    """Minimise the mean binary cross-entropy on `split` with Adam, from fresh parameters.

    split: prepared or raw inputs and labels. batch_size: most samples per step, 0 for all. One key gives both the
    first parameters and the order of the batches. `vmap` over `split` or `key` trains many runs at once.
    """
    check_training(epochs, batch_size, learning_rate)
    samples, labels = jnp.shape(split.x)[:1], jnp.shape(split.y)
    require(samples == labels, "split", f"{samples} samples and {labels} labels", "as many labels as samples")
    return _train(model, split, epochs, batch_size, learning_rate, key)


@partial(jax.jit, static_argnames=("model", "epochs", "batch_size"))
def _train(model: Model, split: Split, epochs: int, batch_size: int, learning_rate: float, key: jax.Array) -> Params:
    init_key, fit_key = jax.random.split(key)

    def loss(params, rows, weight, epoch):
        return cross_entropy(model.logits(params, split.x[rows]), split.y[rows], weight)

    params, _ = fit(
        loss, model.init(init_key), len(split.y),
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, key=fit_key,
    )  # fmt: skip
    return params


def check_training(epochs: int, batch_size: int, learning_rate: float) -> None:
    """Refuse what no training can be run with; a learning rate that is being traced passes."""
    require_whole("epochs", epochs, 0)
    require_whole("batch_size", batch_size, 0)
    if not isinstance(learning_rate, jax.core.Tracer):
        require(0 < learning_rate < math.inf, "learning_rate", learning_rate, "positive, finite numbers")


def fit(
    loss: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array],
    params: Params,
    n_samples: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: jax.Array,
    measure: Callable[[Params], Any] | None = None,
) -> tuple[Params, Any]:
    """Run Adam on `loss(params, rows, weight, epoch)` over reshuffled batches of the rows 0 ... n_samples - 1.

    Each epoch is cut into the fewest batches of at most `batch_size` samples (0: all), of equal size but for
    the last, which is filled up with rows of weight 0: 350 samples at 256 make 175 + 175, not 256 + 94.
    Returns the last parameters and what `measure(params)` gave before epoch 0, 1, ... and after
    the last, stacked: (epochs + 1, ...), or None without `measure`.
    """
    require_whole("n_samples", n_samples)
    check_training(epochs, batch_size, learning_rate)
    optimizer = optax.adam(learning_rate)
    n_steps = math.ceil(n_samples / batch_size) if batch_size else 1
    size = math.ceil(n_samples / n_steps)
    weights = (jnp.arange(n_steps * size) < n_samples).astype(jnp.float32).reshape(n_steps, size)

    def step(carry, batch):
        params, state, epoch = carry
        gradient = jax.grad(loss)(params, *batch, epoch)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state, epoch), None

    def one_epoch(carry):
        order = jax.random.permutation(jax.random.fold_in(key, carry[2]), n_samples)
        rows = jnp.resize(order, (n_steps, size))
        params, state, epoch = jax.lax.scan(step, carry, (rows, weights))[0]
        return params, state, epoch + 1

    def measure_and_train(carry, _):  # one scan body holds both, so that `measure` is compiled once
        measured = measure(carry[0]) if measure else None
        return jax.lax.cond(carry[2] < epochs, one_epoch, lambda carry: carry, carry), measured

    carry = params, optimizer.init(params), jnp.int32(0)
    (params, _, _), history = jax.lax.scan(measure_and_train, carry, length=epochs + 1)
    return params, history
