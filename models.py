"""Models behind one interface, and the one loop that trains anything."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from datar import Split, as_split, require_split
from foundation.base.checks import Checked, require, require_whole
from foundation.measures.metrics import cross_entropy
from foundation.quantum import circuits
from foundation.quantum import device as hardware

Params = Any  # a pytree of real arrays


class Model(Protocol):
    """What can be trained; p = sigmoid(logit), class 1 where logit > 0. Hashable for JAX, as a
    frozen dataclass is.

    Optional: `last_layers(params, k)`, a mask of the structure of params that is True for the last
    k layers; and `is_random = True` where the logits are drawn (shots): `logits` is then given
    `key=` as well.
    """

    label: str  # its name in results and figures
    family: str  # its colour and row there: MLP, Logistic, QNN, Quadratic, or a word of your own

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""

    def prepare(self, x: jax.Array) -> jax.Array:
        """What the model reads, made once from a data set's x; prepared inputs stay as they are."""

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        """(n,), of prepared inputs or raw x."""


def logits_of(model: Model, params: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
    """The model's logits, (n,); the key is passed on only where they are random."""
    return (
        model.logits(params, x, key=key)
        if getattr(model, "is_random", False)
        else model.logits(params, x)
    )


@dataclass(frozen=True)
class MLP:
    """ReLU network with one output logit, Glorot-uniform weights and zero biases as in Keras."""

    n_features: int = 1024  # 2 d for complex inputs of length d, (Re x, Im x)
    hidden: tuple[int, ...] = (64, 16)  # () is logistic regression

    def __post_init__(self):
        require_whole("n_features", self.n_features)
        require(isinstance(self.hidden, tuple), "hidden", self.hidden, "a tuple of widths")
        for width in self.hidden:
            require_whole("hidden", width)

    @property
    def label(self) -> str:
        return f"MLP[{','.join(map(str, self.hidden))}]" if self.hidden else "Logistic"

    @property
    def family(self) -> str:
        return "MLP" if self.hidden else "Logistic"

    def init(self, key: jax.Array) -> Params:
        """[(weights (fan_out, fan_in), biases (fan_out,)), ...] from the input to the logit."""
        widths = (self.n_features, *self.hidden, 1)
        glorot = jax.nn.initializers.glorot_uniform()
        layers = zip(jax.random.split(key, len(widths) - 1), widths[:-1], widths[1:], strict=True)
        # Transposed to a row for each neuron: XLA takes half as long for the gradient as with
        # Keras' (fan_in, fan_out).
        return [
            (glorot(k, (fan_in, fan_out)).T, jnp.zeros(fan_out)) for k, fan_in, fan_out in layers
        ]

    def prepare(self, x: jax.Array) -> jax.Array:
        x = _as_inputs(x)
        require(
            x.ndim == 2, "x", f"shape {x.shape}", f"(n, {self.n_features}); flatten images to rows"
        )
        return jnp.concatenate([x.real, x.imag], axis=1) if jnp.iscomplexobj(x) else x

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        activity = self.prepare(x)
        width = params[0][0].shape[1]
        require(activity.shape[1:] == (width,), "x", f"shape {activity.shape}", f"(n, {width})")
        *hidden, (weights, bias) = params
        for hidden_weights, hidden_bias in hidden:
            activity = jax.nn.relu(activity @ hidden_weights.T + hidden_bias)
        return (activity @ weights.T + bias)[:, 0]

    def last_layers(self, params: Params, k: int) -> Params:
        """True for the weights and biases of the last k layers."""
        return [(kept, kept) for kept in _last(k, len(params))]

    def narrow(self, params: Params, columns: jax.Array) -> Params:
        """Without the weights on features other than these: where those are 0, they get no
        gradient."""
        (weights, bias), *rest = params
        return [(jnp.asarray(weights)[..., columns], bias), *rest]

    def widen(self, narrow: Params, columns: jax.Array, wide: Params) -> Params:
        """What `narrow` has become, with the weights of `wide` on all other features."""
        (weights, bias), *rest = narrow
        return [(jnp.asarray(wide[0][0]).at[..., columns].set(weights), bias), *rest]

    def to_keras(self, params: Params) -> Any:
        """The same network as a keras.Model whose output is the logit (apply a sigmoid for p)."""
        from tensorflow import keras

        layers = [keras.layers.Dense(width, activation="relu") for width in self.hidden]
        network = keras.Sequential(
            [keras.Input((self.n_features,)), *layers, keras.layers.Dense(1)]
        )
        network.set_weights([array.T for layer in params for array in layer])
        return network


@dataclass(frozen=True)
class QNN:
    """Hardware-efficient circuit on amplitude-encoded data; logit = 5 <Z> of the last qubit
    (arXiv:2508.02422).

    With shots the expectations are drawn anew at each call, for which `logits` takes `key=`, and so
    are their gradients; with noise they are what a noisy device gives in the mean. Both ask for
    states of norm 1.
    """

    n_qubits: int = 10
    depth: int = 6
    rotations: circuits.Rotations = "xyx"
    entangler: circuits.Entangler = "rzz"
    ansatz: Callable | None = (
        None  # of your own, (params, inputs) -> tensorcircuit.Circuit; simulated gate by gate
    )
    shape: tuple[int, ...] | None = None  # of its params, layers first
    shots: int = 0  # from which an expectation is taken; 0: exact
    noise: hardware.Noise | None = None  # of gates and readout
    gradient: hardware.Gradient = (
        "parameter_shift"  # of what is drawn; spsa asks for two circuits in place of 2 angles
    )

    family = "QNN"
    scale = 5.0  # published, models.py, `y_pred`: logit per unit of <Z>

    def __post_init__(self):
        require_whole("n_qubits", self.n_qubits, 2)
        require_whole("depth", self.depth)
        require(self.rotations in ("xyx", "xy"), "rotations", self.rotations, "xyx, xy")
        require(self.entangler in ("rzz", "cnot"), "entangler", self.entangler, "rzz, cnot")
        require(
            (self.ansatz is None) == (self.shape is None),
            "shape",
            self.shape,
            "given with ansatz, and only then",
        )
        require_whole("shots", self.shots, 0)
        require(
            self.gradient in get_args(hardware.Gradient),
            "gradient",
            self.gradient,
            "parameter_shift, spsa",
        )
        require(
            self.noise is None or self.ansatz is None,
            "noise",
            self.noise,
            "None, with an ansatz of one's own",
        )
        drawn = self.shots and self.ansatz is not None and self.gradient != "spsa"
        require(not drawn, "gradient", self.gradient, "spsa, with shots of an ansatz of one's own")

    @property
    def is_random(self) -> bool:
        """Whether the logits are drawn."""
        return self.shots > 0

    @property
    def label(self) -> str:
        drawn = f",shots={self.shots}{',spsa' * (self.gradient == 'spsa')}" if self.shots else ""
        device = drawn + (f",{self.noise.words}" if self.noise and self.noise.words else "")
        if self.ansatz is not None:
            return (
                f"QNN[{getattr(self.ansatz, '__name__', getattr(self.ansatz, 'name', 'ansatz'))}"
                f"{device}]"
            )
        variant = (
            ""
            if (self.rotations, self.entangler) == ("xyx", "rzz")
            else f",{self.rotations},{self.entangler}"
        )
        return f"QNN[depth={self.depth}{variant}{device}]"

    def init(self, key: jax.Array) -> Params:
        """(depth, n_qubits, angles per qubit and layer) or `shape`: radians from N(0, 0.01^2), as
        published."""
        return 0.01 * jax.random.normal(key, self._params_shape)

    @property
    def _params_shape(self) -> tuple[int, ...]:
        per_qubit = circuits.parameters_per_qubit(self.rotations, self.entangler)
        return self.shape or (self.depth, self.n_qubits, per_qubit)

    def _require_params(self, params: Params) -> None:
        require(jnp.shape(params) == self._params_shape, "params", f"shape {jnp.shape(params)}",
                f"{self._params_shape}, as init gives them")  # fmt: skip

    def prepare(self, x: jax.Array) -> jax.Array:
        """The amplitudes (n, 2**n_qubits), or (n, d, d) density matrices where the light cone is
        small."""
        x = self._checked(x)
        return circuits.reduce_states(x, self.depth) if x.ndim == 2 and self._reduced else x

    @property
    def _reduced(self) -> int:
        """The dimension of the density matrices that `prepare` makes, 0 for none.

        Worth it where they are not much larger than the states: XXZ at depth 4, 7 of 12 qubits, 128
        x 128.
        """
        has_cone = self.ansatz is None and self.entangler == "rzz"
        dimension = circuits.reduced_dimension(self.n_qubits, self.depth) if has_cone else 0
        return dimension if dimension**2 <= 4 * 2**self.n_qubits else 0

    def _checked(self, x: jax.Array) -> jax.Array:
        """States of these qubits or what `prepare` made of them; images, whatever their shape, are
        refused."""
        x, size = _as_inputs(x), 2**self.n_qubits
        fits = x.ndim == 2 and x.shape[1] == size
        if x.ndim == 3 and self._reduced:
            fits = x.shape[1:] == (self._reduced,) * 2 and circuits.are_packed(x)
        require(
            fits,
            "x",
            f"shape {x.shape}",
            f"(n, {size}) amplitudes of {self.n_qubits} qubits (flatten images; datar.pad fills up "
            "with zeros)",
        )
        if (self.shots or self.noise) and not isinstance(x, jax.core.Tracer):
            hardware.require_normalised(x)
        return x

    def logits(self, params: Params, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """(n,). key: of JAX, where there are shots; else it is not read."""
        x = self._checked(x)
        self._require_params(params)
        if not self.shots:
            return self.scale * self._expectation(params, x)
        require(key is not None, "key", key, "a key of JAX, from which the shots are drawn")
        read = hardware.sampled(
            self._expectation,
            params,
            x,
            key,
            shots=self.shots,
            places=self.acting_angles,
            gradient=self.gradient,
        )
        return self.scale * read

    def _expectation(self, params: Params, x: jax.Array) -> jax.Array:
        """<Z> of the last qubit, or what a noisy device reads of it in the mean: (n,)."""
        if self.ansatz is not None:
            last = [self.n_qubits - 1]
            return jax.vmap(lambda state: self.circuit(params, state).expectation_ps(z=last).real)(
                x
            )
        how = {"rotations": self.rotations, "entangler": self.entangler}
        if self.noise:
            return hardware.noisy_expectation(params, x, self.noise, **how)
        return circuits.expectation(params, x, **how)

    @property
    def acting_angles(self) -> np.ndarray:
        """(angles, axes), the places in params of those that move the logits; of an ansatz of one's
        own all."""
        if self.ansatz is not None:
            return np.argwhere(np.ones(self.shape, bool))
        return hardware.acting_angles(self.n_qubits, self.depth, self.rotations, self.entangler)

    def last_layers(self, params: Params, k: int) -> Params:
        """True for the last k layers of the circuit, those next to the measurement: (depth, 1,
        ...)."""
        depth, *others = self.shape or params.shape[-3:]
        return _last(k, depth).reshape(depth, *(1 for _ in others))

    def circuit(self, params: Params, inputs: jax.Array | None = None) -> Any:
        """The tensorcircuit.Circuit, to run or to draw: `.tex()` gives LaTeX, `.draw()` needs
        qiskit."""
        circuits.tensorcircuit_on_jax()  # an ansatz of one's own imports TensorCircuit as it comes
        ansatz = self.ansatz or partial(
            circuits.ansatz, rotations=self.rotations, entangler=self.entangler
        )
        return ansatz(params, inputs)

    @classmethod
    def from_openqasm(cls, text: str, name: str = "OpenQASM", measured: int | None = None) -> QNN:
        """The circuit of an OpenQASM 2 text, each angle trained from N(0, 0.01^2); the text's:
        `ansatz.angles`.

        measured: the qubit whose Z is read; None is the one that the text measures where that is
        one, else the last.
        """
        ansatz = circuits.OpenQasm(text, name, measured)
        require(
            ansatz.n_qubits > 1, "OpenQASM", f"a circuit of {ansatz.n_qubits} qubits", "2 or more"
        )
        return cls(ansatz.n_qubits, ansatz=ansatz, shape=ansatz.angles.shape)

    def to_openqasm(self, params: Params) -> str:
        """The circuit with these parameters as OpenQASM 2, without its inputs (the states are the
        data)."""
        self._require_params(params)
        return circuits.to_openqasm(self.circuit(params))


@dataclass(frozen=True)
class QuadraticForm:
    """logit = 5 x'Ox with an operator of norm below 1 and low rank: a bounded quadratic form,
    without a circuit.

    O = sum_k tanh(c_k) |v_k><v_k| over `rank` orthonormal vectors, complex ones where `is_complex`.
    A control of what a QNN owes to being a bounded quadratic form of the amplitudes. Its class
    neither contains the QNN's, whose operator has full rank, nor is contained in it; that at full
    dimension is `contenders.FullQuadratic`.
    """

    n_features: int
    rank: int = 16
    is_complex: bool = False

    family = "Quadratic"
    scale = 5.0  # that of the QNN

    def __post_init__(self):
        require_whole("n_features", self.n_features)
        require_whole("rank", self.rank)
        require(
            self.rank <= self.n_features,
            "rank",
            self.rank,
            f"1 to {self.n_features}, the number of features",
        )

    @property
    def label(self) -> str:
        return f"Quadratic[rank={self.rank}]"

    def init(self, key: jax.Array) -> Params:
        """basis: (2, rank, n_features) real and imaginary parts, or (1, ...) real ones. values:
        (rank,), the c_k."""
        basis_key, values_key = jax.random.split(key)
        basis = jax.random.normal(basis_key, (1 + self.is_complex, self.rank, self.n_features))
        values = jax.random.normal(values_key, (self.rank,))
        return {"basis": basis / math.sqrt(self.n_features), "values": 0.01 * values}

    def prepare(self, x: jax.Array) -> jax.Array:
        x = _as_inputs(x)
        require(
            x.shape[1:] == (self.n_features,), "x", f"shape {x.shape}", f"(n, {self.n_features})"
        )
        return x

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        x = self.prepare(x)
        basis = jax.lax.complex(*params["basis"]) if self.is_complex else params["basis"][0]
        root = _inverse_root(basis @ basis.conj().T)  # root @ basis has orthonormal rows
        overlaps = (x @ basis.T) @ root.T  # (n, rank); (rank, n) would take three times as long
        return self.scale * (overlaps * overlaps.conj()).real @ jnp.tanh(params["values"])


@jax.custom_jvp
def _inverse_root(gram: jax.Array) -> jax.Array:
    """R, lower triangular, with R G R' = 1: the inverse of G's Cholesky factor, by elimination.

    Not by LAPACK: batches of its calls in a scan wait for each other for ever in a pool of two
    threads (jaxlib 0.10.2).
    """
    size = len(gram)

    def eliminate(k: int, rows: jax.Array) -> jax.Array:
        pivot = rows[k] * jax.lax.rsqrt(rows[k, k].real)
        factors = jnp.where(jnp.arange(size) > k, pivot[:size].conj(), 0)
        return (rows - factors[:, None] * pivot).at[k].set(pivot)

    rows = jnp.concatenate([gram, jnp.eye(size, dtype=gram.dtype)], axis=1)
    return jax.lax.fori_loop(0, size, eliminate, rows)[:, size:]


@_inverse_root.defjvp
def _inverse_root_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    """dR = -low(R dG R') R, with low the lower triangle and half the diagonal."""
    root = _inverse_root(*primals)
    moved = root @ tangents[0] @ root.conj().T
    return root, -(jnp.tril(moved) - jnp.diag(jnp.diagonal(moved)) / 2) @ root


def _as_inputs(x: jax.Array) -> jax.Array:
    """Real or complex, in at least JAX's present precision."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.result_type(float)))


def _last(k: int, layers: int) -> np.ndarray:
    """(layers,), True for the last k."""
    require(k in range(1, layers + 1), "k", k, f"1 to {layers}, the number of layers")
    return np.arange(layers) >= layers - k


# ---- training ----


@dataclass(frozen=True)
class Training(Checked):
    """How a model is trained."""

    epochs: int  # Passes over the training data.
    batch_size: int  # Samples per step; 0 takes all of them.
    learning_rate: float  # Of Adam.

    def check(self):
        check_training(**self.keywords(), joint="-")  # as flags are written

    def keywords(self) -> dict[str, Any]:
        """For `train` and `fit`."""
        return asdict(self)


def prepared(model: Model, split: Split, argument: str) -> Split:
    """The split as the model reads it, once it has been checked; of one that is being traced, the
    shapes."""
    split = as_split(split, argument)
    if any(isinstance(each, jax.core.Tracer) for each in split):
        x, y = jnp.shape(split.x), jnp.shape(split.y)
        require(x[:1] == y, argument, f"x {x} and y {y}", "as many labels as samples")
        return split
    split = require_split(split, argument)
    return Split(model.prepare(split.x), jnp.asarray(split.y))


def require_key(key: Any) -> None:
    """Refuse what is no random key of JAX."""
    is_key = isinstance(key, jax.Array) and (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32
    )
    require(is_key, "key", repr(key)[:60], "a key such as jax.random.key(0)")


def shapes_of(model: Model) -> Params:
    """The structure of the model's parameters, with shapes in place of numbers; it starts no
    backend."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0)))


def require_params(model: Model, params: Params, argument: str = "params") -> None:
    """Refuse parameters that are not of the structure and shapes of the model's own."""
    shapes = [jax.tree.map(jnp.shape, each) for each in (params, shapes_of(model))]
    require(
        shapes[0] == shapes[1], argument, f"shapes {shapes[0]}", f"{shapes[1]}, as init gives them"
    )


def check_training(epochs: int, batch_size: int, learning_rate: float, *, joint: str = "_") -> None:
    """Refuse what no training can be run with; a learning rate that is being traced passes."""
    require_whole("epochs", epochs, 0)
    require_whole(f"batch{joint}size", batch_size, 0)
    if not isinstance(learning_rate, jax.core.Tracer):
        is_number = isinstance(learning_rate, (int, float, np.number, jax.Array, np.ndarray))
        holds = is_number and jnp.ndim(learning_rate) == 0 and 0 < learning_rate < math.inf
        require(holds, f"learning{joint}rate", learning_rate, "positive, finite numbers")


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

    split: prepared or raw inputs and labels. batch_size: most samples per step, 0 for all. One key
    gives both the first parameters and the order of the batches. `vmap` over `split` or `key`
    trains many runs at once.
    """
    check_training(epochs, batch_size, learning_rate)
    require_key(key)
    return _train(
        model,
        prepared(model, split, "split"),
        key,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
    )


@partial(jax.jit, static_argnames=("model", "epochs", "batch_size"))
def _train(model: Model, split: Split, key: jax.Array, **training: Any) -> Params:
    init_key, fit_key = jax.random.split(key)

    def loss(params, rows, weight, epoch, key):
        return cross_entropy(logits_of(model, params, split.x[rows], key), split.y[rows], weight)

    return fit(loss, model.init(init_key), len(split.y), **training, key=fit_key)[0]


def fit(
    loss: Callable[..., jax.Array],
    params: Params,
    n_samples: int,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: jax.Array,
    measure: Callable[[Params], Any] | None = None,
) -> tuple[Params, Any]:
    """Run Adam on `loss(params, rows, weight, epoch, key)` over reshuffled batches of the rows 0
    ... n_samples - 1.

    An epoch is cut into the fewest batches of at most `batch_size` samples (0: all), of equal size
    but for the last, filled up with rows of weight 0: 350 samples at 256 make 175 + 175. Where one
    batch holds all, its rows are slice(None). Each step has a key of its own. Returns the last
    parameters and what `measure(params)` gave before epoch 0, 1, ... and after the last, stacked:
    (epochs + 1, ...), or None without `measure`. A measure with `at`, ascending numbers of epochs,
    is asked after so many of them alone: (len(at), ...).
    """
    require_whole("n_samples", n_samples)
    check_training(epochs, batch_size, learning_rate)
    optimizer = optax.adam(learning_rate)
    n_steps = math.ceil(n_samples / batch_size) if batch_size else 1
    size = math.ceil(n_samples / n_steps)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    weights = (jnp.arange(n_steps * size) < n_samples).astype(dtype).reshape(n_steps, size)
    # Of the steps; 0, 1, ... are those of the epochs' orders.
    draws = jax.random.fold_in(key, np.uint32(2**32 - 1))

    def step(carry, batch):
        params, state, epoch = carry
        rows, weight, index = batch
        step_key = jax.random.fold_in(jax.random.fold_in(draws, epoch), index)
        updates, state = optimizer.update(
            jax.grad(loss)(params, rows, weight, epoch, step_key), state, params
        )
        return (optax.apply_updates(params, updates), state, epoch), None

    def one_epoch(carry):
        if n_steps == 1:  # the order of a whole batch is of no consequence, and no sample is copied
            (params, state, epoch), _ = step(carry, (slice(None), weights[0], 0))
        else:
            order = jax.random.permutation(jax.random.fold_in(key, carry[2]), n_samples)
            batches = jnp.resize(order, (n_steps, size)), weights, jnp.arange(n_steps)
            (params, state, epoch), _ = jax.lax.scan(step, carry, batches)
        return params, state, epoch + 1

    carry = params, optimizer.init(params), jnp.int32(0)
    if at := getattr(measure, "at", None):
        return _measured_at(at, one_epoch, carry, epochs, measure)

    def measure_and_train(carry, _):  # one scan body holds both, so that `measure` is compiled once
        measured = measure(carry[0]) if measure else None
        return jax.lax.cond(carry[2] < epochs, one_epoch, lambda carry: carry, carry), measured

    (params, _, _), history = jax.lax.scan(measure_and_train, carry, length=epochs + 1)
    return params, history


def _measured_at(
    at: tuple[int, ...],
    one_epoch: Callable[[Any], Any],
    carry: tuple[Params, Any, jax.Array],
    epochs: int,
    measure: Callable[[Params], Any],
) -> tuple[Params, Any]:
    """`fit`, measured after these numbers of epochs alone; carry: parameters, state, the epoch."""

    def train_to(carry, epoch):
        return jax.lax.while_loop(lambda carry: carry[2] < epoch, one_epoch, carry)

    def train_and_measure(carry, epoch):
        carry = train_to(carry, epoch)
        return carry, measure(carry[0])

    carry, history = jax.lax.scan(train_and_measure, carry, jnp.array(at))
    return train_to(carry, epochs)[0], history
