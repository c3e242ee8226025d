"""The models, behind one interface, and the loop that trains all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np

from datar import Split, as_split, require_split
from foundation.base.checks import Checked, first_line, require, require_whole
from foundation.base.later import optax
from foundation.measures.metrics import cross_entropy
from foundation.quantum import circuits, device

Params = Any  # a pytree of real arrays
# of a learning rate, makes optax' GradientTransformation: optax.sgd, a partial of it, one's own
Optimizer = Callable[[Any], Any]


class Model(Protocol):
    """The interface of a model: p = sigmoid(logit), class 1 where logit > 0.

    Of K > 2 classes p = softmax(logits), and the class is that of the largest. A model must be
    hashable for JAX, as a frozen dataclass is. Optional members: `n_classes`, 2 without it;
    `last_layers(params, k)`, a mask with the structure of params that is True for the last k
    layers; `is_random = True` where the logits are drawn (shots), so that `logits` also gets
    `key=`.
    """

    label: str  # name in results and figures
    family: str  # colour and row in them: MLP, Logistic, QNN, Quadratic, or a word of your own

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""

    def prepare(self, x: jax.Array) -> jax.Array:
        """Convert a data set's x, once, to the model's inputs; prepared inputs stay as they are."""

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Logits (n,) of prepared inputs or raw x; (n, K) of more than two classes."""


def n_classes_of(model: Model) -> int:
    """The number of classes that a model tells apart."""
    return getattr(model, "n_classes", 2)


def name_of(model: Model) -> str:
    """A model's label, or its class, for messages."""
    return getattr(model, "label", type(model).__name__)


def require_labels(model: Model, labels: np.ndarray, argument: str) -> None:
    """Refuse labels that are the number of none of the model's classes."""
    largest = np.max(labels, initial=0)
    n_classes = n_classes_of(model)
    allowed = f"0 to {n_classes - 1}, the n_classes of {name_of(model)}"
    require(largest < n_classes, argument, f"labels such as {largest}", allowed)


def require_classes(model: Model, labels: np.ndarray, x: jax.Array, argument: str) -> None:
    """Refuse labels of no class, and a model without one logit or K for a prepared sample.

    The models of this file have the right shape by construction, and are not traced for it.
    """
    require_labels(model, labels, argument)
    if isinstance(model, (MLP, QNN)):
        return
    n_classes = n_classes_of(model)
    expected = (2,) if n_classes == 2 else (2, n_classes)
    inputs = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = jax.eval_shape(partial(logits_of, model), shapes_of(model), inputs, key)
    got = f"logits of shape {found.shape} of 2 samples"
    allowed = f"{expected}, of the n_classes = {n_classes} of {name_of(model)}"
    require(found.shape == expected, "model", got, allowed)


def logits_of(model: Model, params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """The model's logits: (n,) or (n, K). The key is passed on only where they are random."""
    if getattr(model, "is_random", False):
        return model.logits(params, x, key=key)
    return model.logits(params, x)


@dataclass(frozen=True)
class MLP:
    """ReLU network with one output logit; Glorot-uniform weights and zero biases, as in Keras.

    Of more than two classes it has a logit for each.
    """

    n_features: int = 1024  # 2 d for complex inputs of length d, (Re x, Im x)
    hidden: tuple[int, ...] = (64, 16)  # () is logistic regression
    n_classes: int = 2

    def __post_init__(self):
        require_whole("n_features", self.n_features)
        require_whole("n_classes", self.n_classes, 2)
        require(isinstance(self.hidden, tuple), "hidden", self.hidden, "a tuple of widths")
        for width in self.hidden:
            require_whole("hidden", width)

    @property
    def label(self) -> str:
        """Its hidden widths, as MLP[16,4]; Logistic without any."""
        return f"MLP[{','.join(map(str, self.hidden))}]" if self.hidden else "Logistic"

    @property
    def _n_logits(self) -> int:
        return 1 if self.n_classes == 2 else self.n_classes

    @property
    def family(self) -> str:
        """MLP, or Logistic without hidden layers."""
        return "MLP" if self.hidden else "Logistic"

    def init(self, key: jax.Array) -> Params:
        """[(weights (fan_out, fan_in), biases (fan_out,)), ...] from the input to the logits."""
        widths = (self.n_features, *self.hidden, self._n_logits)
        glorot = jax.nn.initializers.glorot_uniform()
        keys = jax.random.split(key, len(widths) - 1)
        layers = []
        for layer_key, fan_in, fan_out in zip(keys, widths[:-1], widths[1:], strict=True):
            # Each neuron's weights are a row: with Keras' (fan_in, fan_out), XLA takes twice as
            # long for the gradient.
            weights = glorot(layer_key, (fan_in, fan_out)).T
            layers.append((weights, jnp.zeros(fan_out)))
        return layers

    def prepare(self, x: jax.Array) -> jax.Array:
        """Check inputs (n, d); complex ones become (n, 2 d), (Re x, Im x)."""
        x = as_inputs(x)
        allowed = f"(n, {self.n_features}); flatten images to rows"
        require(x.ndim == 2, "x", f"shape {x.shape}", allowed)
        if jnp.iscomplexobj(x):
            return jnp.concatenate([x.real, x.imag], axis=1)
        return x

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """Compute logits (n,) of inputs (n, d), or (n, K) of more than two classes."""
        activity = self.prepare(x)
        first_weights, _ = params[0]
        width = first_weights.shape[1]
        fits = activity.shape[1:] == (width,)
        require(fits, "x", f"shape {activity.shape}", f"(n, {width})")
        *hidden, (weights, bias) = params
        for hidden_weights, hidden_bias in hidden:
            activity = jax.nn.relu(activity @ hidden_weights.T + hidden_bias)
        outputs = activity @ weights.T + bias  # (n, 1) or (n, K)
        return outputs[:, 0] if self.n_classes == 2 else outputs

    def last_layers(self, params: Params, k: int) -> Params:
        """True for the weights and biases of the last k layers."""
        return [(kept, kept) for kept in _last(k, len(params))]

    def narrow(self, params: Params, columns: jax.Array) -> Params:
        """Keep only the first layer's weights on the features `columns`.

        Weights on features that are 0 in all samples get no gradient.
        """
        (weights, bias), *rest = params
        return [(jnp.asarray(weights)[..., columns], bias), *rest]

    def widen(self, narrow: Params, columns: jax.Array, wide: Params) -> Params:
        """Undo `narrow`: take the weights on features other than `columns` from `wide`."""
        (weights, bias), *rest = narrow
        wide_weights, _ = wide[0]
        weights = jnp.asarray(wide_weights).at[..., columns].set(weights)
        return [(weights, bias), *rest]

    def to_keras(self, params: Params) -> Any:
        """The network as a keras.Model whose output is the logit (apply a sigmoid for p).

        Of more than two classes it has a logit for each (apply a softmax).
        """
        from tensorflow import keras

        # a user's keras.json may ask for float16
        inputs = keras.Input((self.n_features,), dtype="float32")
        dense = partial(keras.layers.Dense, dtype="float32")
        hidden = [dense(width, activation="relu") for width in self.hidden]
        network = keras.Sequential([inputs, *hidden, dense(self._n_logits)])
        network.set_weights([array.T for layer in params for array in layer])
        return network


@dataclass(frozen=True)
class QNN:
    """Hardware-efficient circuit on amplitude-encoded data, with logit = 5 <Z> of the last qubit.

    Of K > 2 classes the logit of class k is 5 K / 2 times the probability of the bit string k on
    the last ceil(log2 K) qubits: one measurement serves all classes. Two classes read so would
    differ by 5 <Z>. Source: arXiv:2508.02422.

    With shots, each call draws expectations and gradients anew, with the `key=` of `logits`. With
    noise, expectations are a noisy device's mean readings. Shots and noise both need states of norm
    1.
    """

    n_qubits: int = 10
    depth: int = 6
    rotations: circuits.Rotations = "xyx"
    entangler: circuits.Entangler = "rzz"
    # your own circuit, (params, inputs) -> tensorcircuit.Circuit; simulated gate by gate
    ansatz: Callable | None = None
    shape: tuple[int, ...] | None = None  # of the params of your own ansatz, layers first
    shots: int = 0  # shots per expectation; 0 computes it exactly
    noise: device.Noise | None = None  # of gates and readout
    # rule for gradients of drawn expectations: parameter_shift runs 2 circuits per angle, spsa 2
    # circuits in all
    gradient: device.Gradient = "parameter_shift"
    n_classes: int = 2

    family = "QNN"
    scale = 5.0  # published, models.py, `y_pred`: logit per unit of <Z>

    def __post_init__(self):
        require_whole("n_qubits", self.n_qubits, 2)
        require_whole("depth", self.depth)
        require(self.rotations in ("xyx", "xy"), "rotations", self.rotations, "xyx, xy")
        require(self.entangler in ("rzz", "cnot"), "entangler", self.entangler, "rzz, cnot")
        has_ansatz = self.ansatz is not None
        has_shape = self.shape is not None
        require(has_ansatz == has_shape, "shape", self.shape, "given with ansatz, and only then")
        require_whole("shots", self.shots, 0)
        is_known = self.gradient in get_args(device.Gradient)
        require(is_known, "gradient", self.gradient, "parameter_shift, spsa")
        allowed = "None, with an ansatz of one's own"
        require(self.noise is None or not has_ansatz, "noise", self.noise, allowed)
        require_whole("n_classes", self.n_classes, 2)
        most = 2**self.n_qubits
        allowed = f"2 to {most}, the bit strings of {self.n_qubits} qubits"
        require(self.n_classes <= most, "n_classes", self.n_classes, allowed)
        allowed = "spsa, with shots of an ansatz of one's own"
        shifts_own = self.shots and has_ansatz and self.gradient != "spsa"
        require(not shifts_own, "gradient", self.gradient, allowed)

    @property
    def is_random(self) -> bool:
        """Whether the logits are drawn."""
        return self.shots > 0

    @property
    def label(self) -> str:
        """What differs from the published circuit, as QNN[depth=6,shots=128]."""
        if self.ansatz is None:
            parts = [f"depth={self.depth}"]
            if (self.rotations, self.entangler) != ("xyx", "rzz"):
                parts += [self.rotations, self.entangler]
        else:
            name = getattr(self.ansatz, "name", "ansatz")
            parts = [getattr(self.ansatz, "__name__", name)]
        if self.shots:
            parts.append(f"shots={self.shots}")
            if self.gradient == "spsa":
                parts.append("spsa")
        if self.noise and self.noise.label:
            parts.append(self.noise.label)
        return f"QNN[{','.join(parts)}]"

    def init(self, key: jax.Array) -> Params:
        """Angles in radians from N(0, 0.01^2), as published.

        Their shape is (depth, n_qubits, angles per qubit and layer), or `shape`.
        """
        return 0.01 * jax.random.normal(key, self._params_shape)

    @property
    def _params_shape(self) -> tuple[int, ...]:
        per_qubit = circuits.parameters_per_qubit(self.rotations, self.entangler)
        return self.shape or (self.depth, self.n_qubits, per_qubit)

    def _require_params(self, params: Params) -> None:
        shape = jnp.shape(params)
        allowed = f"{self._params_shape}, as init gives them"
        require(shape == self._params_shape, "params", f"shape {shape}", allowed)

    def prepare(self, x: jax.Array) -> jax.Array:
        """Amplitudes (n, 2**n_qubits), or density matrices (n, d, d) for a small light cone."""
        x = self._checked(x)
        if x.ndim == 2 and self._reduced:
            return circuits.reduce_states(x, self.depth)
        return x

    @property
    def _reduced(self) -> int:
        """The dimension of the density matrices that `prepare` makes, 0 for none.

        They pay off where they are not much larger than the states: XXZ at depth 4, 7 of 12 qubits,
        128 x 128.
        """
        has_cone = self.ansatz is None and self.entangler == "rzz" and self.n_classes == 2
        if not has_cone:
            return 0
        dimension = circuits.reduced_dimension(self.n_qubits, self.depth)
        return dimension if dimension**2 <= 4 * 2**self.n_qubits else 0

    def _checked(self, x: jax.Array) -> jax.Array:
        """Check and return x: states of these qubits, or density matrices from `prepare`.

        Images are refused, whatever their shape.
        """
        x = as_inputs(x)
        size = 2**self.n_qubits
        fits = x.ndim == 2 and x.shape[1] == size
        if x.ndim == 3 and self._reduced:
            matrix_shape = (self._reduced, self._reduced)
            fits = x.shape[1:] == matrix_shape and circuits.are_packed(x)
        amplitudes = f"(n, {size}) amplitudes of {self.n_qubits} qubits"
        allowed = f"{amplitudes} (flatten images; datar.pad fills up with zeros)"
        require(fits, "x", f"shape {x.shape}", allowed)
        needs_norm = self.shots or self.noise
        if needs_norm and not isinstance(x, jax.core.Tracer):
            device.require_normalised(x)
        return x

    def logits(self, params: Params, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Logits (n,), or (n, K) of more than two classes.

        key: a key of JAX, which is read only where there are shots.
        """
        x = self._checked(x)
        self._require_params(params)
        scale = self.scale * self.n_classes / 2
        read = self._expectation if self.n_classes == 2 else self._probabilities
        if not self.shots:
            return scale * read(params, x)
        require(key is not None, "key", key, "a key of JAX, from which the shots are drawn")
        expectation = device.sampled(
            read,
            params,
            x,
            key,
            shots=self.shots,
            places=self.acting_angles,
            gradient=self.gradient,
        )
        return scale * expectation

    def _expectation(self, params: Params, x: jax.Array) -> jax.Array:
        """<Z> of the last qubit, or a noisy device's mean reading of it: (n,)."""
        if self.ansatz is not None:
            last = [self.n_qubits - 1]

            def expectation(state: jax.Array) -> jax.Array:
                return self.circuit(params, state).expectation_ps(z=last).real

            return jax.vmap(expectation)(x)
        gates = {"rotations": self.rotations, "entangler": self.entangler}
        if self.noise:
            return device.noisy_expectation(params, x, self.noise, **gates)
        return circuits.expectation(params, x, **gates)

    def _probabilities(self, params: Params, x: jax.Array) -> jax.Array:
        """Probabilities of the classes' bit strings, or those that a noisy device reads: (n, K)."""
        gates = {"rotations": self.rotations, "entangler": self.entangler}
        if self.noise:
            return device.noisy_probabilities(params, x, self.noise, self.n_classes, **gates)
        if self.ansatz is None:
            return circuits.probabilities(params, x, self.n_classes, **gates)
        size = 2 ** circuits.measured_qubits(self.n_classes)

        def probabilities(state: jax.Array) -> jax.Array:
            amplitudes = self.circuit(params, state).state()
            of_all = amplitudes.real**2 + amplitudes.imag**2
            return of_all.reshape(-1, size).sum(axis=0)[: self.n_classes]

        return jax.vmap(probabilities)(x)

    @property
    def acting_angles(self) -> np.ndarray:
        """Places in params of the angles that move the logits: (angles, axes of params).

        An ansatz of one's own has all of its angles among them.
        """
        if self.ansatz is not None:
            all_angles = np.ones(self.shape, bool)
            return np.argwhere(all_angles)
        measured = circuits.measured_qubits(self.n_classes)
        gates = (self.rotations, self.entangler, measured)
        return device.acting_angles(self.n_qubits, self.depth, *gates)

    def last_layers(self, params: Params, k: int) -> Params:
        """True for the last k layers of the circuit, next to the measurement: (depth, 1, ...)."""
        depth, *others = self.shape or params.shape[-3:]
        ones = [1] * len(others)
        return _last(k, depth).reshape(depth, *ones)

    def circuit(self, params: Params, inputs: jax.Array | None = None) -> Any:
        """The tensorcircuit.Circuit. `.tex()` gives LaTeX; `.draw()` needs qiskit."""
        # an ansatz of one's own may import TensorCircuit without setting it to JAX
        circuits.tensorcircuit_on_jax()
        if self.ansatz is not None:
            return self.ansatz(params, inputs)
        gates = {"rotations": self.rotations, "entangler": self.entangler}
        return circuits.ansatz(params, inputs, **gates)

    @classmethod
    def from_openqasm(cls, text: str, name: str = "OpenQASM", measured: int | None = None) -> QNN:
        """A QNN with the circuit of an OpenQASM 2 text, each angle trained from N(0, 0.01^2).

        The text's own angles are in `ansatz.angles`. measured: the qubit whose Z is read; None
        takes the qubit that the text measures where it measures exactly one, else the last qubit.
        """
        ansatz = circuits.OpenQasm(text, name, measured)
        got = f"a circuit of {ansatz.n_qubits} qubits"
        require(ansatz.n_qubits > 1, "OpenQASM", got, "2 or more")
        return cls(ansatz.n_qubits, ansatz=ansatz, shape=ansatz.angles.shape)

    def to_openqasm(self, params: Params) -> str:
        """The circuit with these parameters as OpenQASM 2.

        It contains no preparation of the input states, which are the data.
        """
        self._require_params(params)
        return circuits.to_openqasm(self.circuit(params))


def as_inputs(x: jax.Array) -> jax.Array:
    """Inputs as a real or complex array in at least JAX's present precision."""
    x = jnp.asarray(x)
    dtype = jnp.promote_types(x.dtype, jnp.result_type(float))
    return x.astype(dtype)


def _last(k: int, layers: int) -> np.ndarray:
    """Mask of the last k layers: (layers,)."""
    is_allowed = k in range(1, layers + 1)
    require(is_allowed, "k", k, f"1 to {layers}, the number of layers")
    return np.arange(layers) >= layers - k


# ---- training ----


@dataclass(frozen=True)
class Training(Checked):
    """How a model is trained."""

    epochs: int  # Passes over the training data.
    batch_size: int  # Samples per step; 0 takes all of them.
    learning_rate: float  # Of Adam, or of the optimizer.
    optimizer: Optimizer | None = None  # Makes optax' transformation of the rate; None: Adam.

    def check(self):
        """Refuse values that no training can have."""
        check_training(**self.keywords(), joint="-")  # as flags are written

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of `train` and `fit`."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self)}


def prepared(model: Model, split: Split, argument: str) -> Split:
    """Check a split and convert its x to the model's inputs.

    Of a split that is being traced only the shapes are checked, and it is returned as it is.
    """
    split = as_split(split, argument)
    if any(isinstance(array, jax.core.Tracer) for array in split):
        x_shape = jnp.shape(split.x)
        y_shape = jnp.shape(split.y)
        shapes = f"x {x_shape} and y {y_shape}"
        require(x_shape[:1] == y_shape, argument, shapes, "as many labels as samples")
        return split
    split = require_split(split, argument)
    x = model.prepare(split.x)
    require_classes(model, split.y, x, f"{argument}.y")
    return Split(x, jnp.asarray(split.y))


def require_key(key: Any) -> None:
    """Refuse a value that is no random key of JAX."""
    is_key = False
    if isinstance(key, jax.Array):
        is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        is_key = is_typed or key.dtype == jnp.uint32
    require(is_key, "key", repr(key)[:60], "a key such as jax.random.key(0)")


def shapes_of(model: Model) -> Params:
    """The structure of the model's parameters, with shapes for arrays; starts no backend."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))


def size_of(params: Params) -> int:
    """Count the numbers in a pytree of parameters, or of their shapes."""
    leaves = jax.tree.leaves(params)
    return sum(leaf.size for leaf in leaves)


def require_params(model: Model, params: Params, argument: str = "params") -> None:
    """Refuse parameters without the structure and shapes that the model's `init` gives."""
    is_model = callable(getattr(model, "init", None))
    require(is_model, "model", type(model).__name__, "a model, such as an MLP or a QNN")
    shapes = jax.tree.map(jnp.shape, params)
    allowed = jax.tree.map(jnp.shape, shapes_of(model))
    require(shapes == allowed, argument, f"shapes {shapes}", f"{allowed}, as init gives them")


def check_training(
    epochs: int,
    batch_size: int,
    learning_rate: float,
    optimizer: Optimizer | None = None,
    *,
    joint: str = "_",
) -> None:
    """Refuse values that no training can use; a learning rate that is being traced passes.

    batch_size 0: all samples at once. joint: between the words of the names in messages, "-" for
    flags, as in batch-size.
    """
    require_whole("epochs", epochs, 0)
    require_whole(f"batch{joint}size", batch_size, 0)
    if not isinstance(learning_rate, jax.core.Tracer):
        numbers = int, float, np.number, jax.Array, np.ndarray
        is_scalar = isinstance(learning_rate, numbers) and jnp.ndim(learning_rate) == 0
        holds = is_scalar and 0 < learning_rate < math.inf
        require(holds, f"learning{joint}rate", learning_rate, "positive, finite numbers")
    if optimizer is not None:
        _check_optimizer(optimizer)


def _check_optimizer(optimizer: Any) -> None:
    """Refuse what makes no transformation of a gradient and parameters alone."""
    word = getattr(optimizer, "__name__", type(optimizer).__name__)
    allowed = "a function of the learning rate: optax.sgd, partial(optax.sgd, momentum=0.9)"
    is_function = callable(optimizer) and isinstance(optimizer, Hashable)
    require(is_function, "optimizer", word, allowed)
    number = jax.ShapeDtypeStruct((), np.float32)

    def step(rate: Any, param: Any) -> Any:
        transformation = optimizer(rate)
        return transformation.update(param, transformation.init(param), param)

    try:
        jax.eval_shape(step, number, number)  # starts no backend
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        require(False, "optimizer", f"{word} ({reason})", allowed)


def train(
    model: Model,
    split: Split,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: jax.Array,
    optimizer: Optimizer | None = None,
) -> Params:
    """Minimise the mean cross-entropy on `split` with Adam, from fresh parameters.

    split: prepared or raw inputs and labels. batch_size: most samples per step, 0 for all. key:
    gives both the first parameters and the order of the batches. optimizer: see Training. `vmap`
    over `split` or `key` trains many runs at once.
    """
    check_training(epochs, batch_size, learning_rate, optimizer)
    require_key(key)
    return _train(
        model,
        prepared(model, split, "split"),
        key,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        optimizer=optimizer,
    )


@partial(jax.jit, static_argnames=("model", "epochs", "batch_size", "optimizer"))
def _train(model: Model, split: Split, key: jax.Array, **training: Any) -> Params:
    init_key, fit_key = jax.random.split(key)

    def loss(params, rows, weight, epoch, key):
        logits = logits_of(model, params, split.x[rows], key)
        return cross_entropy(logits, split.y[rows], weight)

    fresh_params = model.init(init_key)
    params, _ = fit(loss, fresh_params, len(split.y), **training, key=fit_key)
    return params


def fit(
    loss: Callable[..., jax.Array],
    params: Params,
    n_samples: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: jax.Array,
    optimizer: Optimizer | None = None,
    measure: Callable[[Params], Any] | None = None,
) -> tuple[Params, Any]:
    """Run Adam, or `optimizer`, on `loss(params, rows, weight, epoch, key)` over shuffled batches.

    rows: indices in 0 ... n_samples - 1, shuffled anew in each epoch; slice(None) where one batch
    holds all samples. weight: the weights of these rows. epoch: its number. key: a new key at
    each step.

    An epoch is cut into the fewest batches of at most `batch_size` samples (0: all). Batches are of
    equal size; the last is filled up with rows of weight 0. 350 samples at 256 make 175 + 175.

    Returns the last parameters and the stacked values of `measure(params)` before epoch 0, 1, ...
    and after the last epoch: (epochs + 1, ...), or None without `measure`. A measure with an
    attribute `at`, ascending numbers of epochs, is called only after these numbers of epochs:
    (len(at), ...).
    """
    require_whole("n_samples", n_samples)
    check_training(epochs, batch_size, learning_rate, optimizer)
    transformation = (optimizer or optax.adam)(learning_rate)
    n_steps = math.ceil(n_samples / batch_size) if batch_size else 1
    size = math.ceil(n_samples / n_steps)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    is_sample = jnp.arange(n_steps * size) < n_samples
    weights = is_sample.astype(dtype).reshape(n_steps, size)
    # the epochs' orders take the numbers 0, 1, ...
    key_of_steps = jax.random.fold_in(key, np.uint32(2**32 - 1))

    def step(carry, batch):
        params, state, epoch = carry
        rows, weight, index = batch
        step_key = jax.random.fold_in(jax.random.fold_in(key_of_steps, epoch), index)
        gradient = jax.grad(loss)(params, rows, weight, epoch, step_key)
        updates, state = transformation.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state, epoch), None

    def one_epoch(carry):
        if n_steps == 1:  # the order within a whole batch does not matter; no sample is copied
            batch = slice(None), weights[0], 0
            (params, state, epoch), _ = step(carry, batch)
        else:
            epoch_key = jax.random.fold_in(key, carry[2])
            batches = _shuffled(n_samples, weights, epoch_key)
            (params, state, epoch), _ = jax.lax.scan(step, carry, batches)
        return params, state, epoch + 1

    carry = params, transformation.init(params), jnp.int32(0)
    if at := getattr(measure, "at", None):
        return _measured_at(at, one_epoch, carry, epochs, measure)

    def measure_and_train(carry, _):  # both in one scan body, so that `measure` is compiled once
        measured = measure(carry[0]) if measure else None
        carry = jax.lax.cond(carry[2] < epochs, one_epoch, lambda carry: carry, carry)
        return carry, measured

    (params, _, _), history = jax.lax.scan(measure_and_train, carry, length=epochs + 1)
    return params, history


def _shuffled(
    n_samples: int, weights: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An epoch's batches for `fit`, in random order: rows, weights (steps, size), and numbers."""
    order = jax.random.permutation(key, n_samples)
    rows = jnp.resize(order, weights.shape)
    return rows, weights, jnp.arange(len(weights))


def _measured_at(
    at: tuple[int, ...],
    one_epoch: Callable[[Any], Any],
    carry: tuple[Params, Any, jax.Array],
    epochs: int,
    measure: Callable[[Params], Any],
) -> tuple[Params, Any]:
    """Finish `fit` with a measure that is called only after the numbers of epochs in `at`.

    carry: parameters, the optimizer's state, and the epoch.
    """

    def train_to(carry, epoch):
        return jax.lax.while_loop(lambda carry: carry[2] < epoch, one_epoch, carry)

    def train_and_measure(carry, epoch):
        carry = train_to(carry, epoch)
        return carry, measure(carry[0])

    carry, history = jax.lax.scan(train_and_measure, carry, jnp.array(at))
    params, _, _ = train_to(carry, epochs)
    return params, history
