"""Poison training data, and unlearn the poison: methods that own their numbers, and the loop they share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from checks import require, require_whole
from datar import Dataset, Split, require_split
from metrics import bernoulli_kl, bernoulli_kl_published, cross_entropy
from models import Model, Params, Training, fit, prepared

# ---- poison ----


class Poisoned(NamedTuple):
    """A poisoned training set.

    split: all n samples, poisoned ones among them. mask: (n,) True where poisoned. known: (n,) True where that is
    identified: the forget set. forget_clean and forget_poisoned: its samples before and after; for labels they differ
    in y, for features in x. What is poisoned but not known stays among the retained samples.
    """

    split: Split
    mask: np.ndarray
    known: np.ndarray
    forget_clean: Split
    forget_poisoned: Split

    @property
    def retain(self) -> Split:
        """The samples that are not known to be poisoned."""
        return Split(self.split.x[~self.known], self.split.y[~self.known])


@dataclass(frozen=True)
class Poison:
    """What to poison, and how much of it is known.

    kind: a name in POISONS. alpha_percent: whole percent of the training samples. known_percent: of the poisoned ones,
    the share that is identified. The poison carries its function, so that it works where the table lacks its name.
    """

    kind: str = "labels"
    alpha_percent: int = 0
    known_percent: int = 100
    function: Callable[..., Poisoned] | None = field(default=None, repr=False)

    def __post_init__(self):
        for name, most in (("alpha_percent", 99), ("known_percent", 100)):
            value = getattr(self, name)
            require_whole(name, value, 0)
            require(value <= most, name, value, f"whole percents, 0 to {most}")
            object.__setattr__(self, name, int(value))
        if self.function is None:
            require(self.kind in POISONS, "poison", self.kind, ", ".join(POISONS))
            object.__setattr__(self, "function", POISONS[self.kind])

    def draw(self, dataset: Dataset, *, key: Key) -> Poisoned:
        """Poison the training set of `dataset`."""
        poisoned = self.function(dataset, self.alpha_percent / 100, key=key)
        if self.known_percent == 100:
            return poisoned
        generator = _generator(key).spawn(1)[0]  # another stream than that of the draw, the same for all shares
        rows = np.flatnonzero(poisoned.known)
        chosen = np.sort(generator.permutation(len(rows))[: round(len(rows) * self.known_percent / 100)])
        known = np.zeros_like(poisoned.mask)
        known[rows[chosen]] = True
        of_forget = [Split(part.x[chosen], part.y[chosen]) for part in poisoned[3:]]
        return Poisoned(poisoned.split, poisoned.mask, known, *of_forget)


Key = jax.Array | int | np.random.Generator  # of JAX, or what NumPy's default_rng takes


def flip_labels(split: Split, fraction: float, *, key: Key, balanced: bool = True) -> Poisoned:
    """Flip the labels of int(fraction n) samples, half from each class; an odd number is rounded down.

    balanced=False draws them from all samples alike, as the published Hessian analysis does.
    Published: datar.py, `flip_labels` (its halves of the sorted training set are the classes).
    """
    split, generator = require_split(split), _generator(key)
    rows = _draw_balanced(split, fraction, generator, round_up=False) if balanced else _draw(split, fraction, generator)
    y = split.y.copy()
    y[rows] = 1 - y[rows]
    return _poisoned(split, Split(split.x, y), rows)


def randomize_features(split: Split, fraction: float, *, key: Key, n_features: int | None = None) -> Poisoned:
    """Replace int(fraction n) samples by normalised Gaussian vectors, half from each class, odd rounded up.

    n_features: length before padding (784 pixels); the padding stays 0. None takes the whole length. The
    noise is complex where the samples have imaginary parts and real where they have none.
    Published: datar.py, `data_poison(..., ordered=False)`.
    """
    split, generator = require_split(split), _generator(key)
    require(split.x.ndim == 2, "split.x", f"shape {split.x.shape}", "(n, d); flatten images to rows")
    rows = _draw_balanced(split, fraction, generator, round_up=True)
    length = split.x.shape[1] if n_features is None else n_features
    require_whole("n_features", length)
    require(length <= split.x.shape[1], "n_features", n_features, f"1 to {split.x.shape[1]}")
    noise = generator.standard_normal((len(rows), length))
    if np.iscomplexobj(split.x) and np.any(split.x.imag):
        noise = noise + 1j * generator.standard_normal((len(rows), length))
    x = split.x.copy()
    x[rows] = 0
    x[rows, :length] = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return _poisoned(split, Split(x, split.y), rows)


def relabel_randomly(split: Split, fraction: float, *, key: Key) -> Poisoned:
    """Draw new labels at random for int(fraction n) samples of any class ("interclass confusion").

    About half of them keep the label they had. Published: datar.py, `interclass_confusion`.
    """
    split, generator = require_split(split), _generator(key)
    rows = _draw(split, fraction, generator)
    y = split.y.copy()
    y[rows] = generator.integers(0, 2, len(rows))
    return _poisoned(split, Split(split.x, y), rows)


def poison_labels(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flipped labels, as many in each class."""
    return flip_labels(dataset.train, fraction, key=key)


def poison_features(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Samples replaced by noise, the padding left 0."""
    return randomize_features(dataset.train, fraction, key=key, n_features=dataset.n_features)


def confuse_labels(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Labels drawn anew at random."""
    return relabel_randomly(dataset.train, fraction, key=key)


def poison_given(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """The poison that the data set came with (`poison_mask` of an .npz); its share is what it is."""
    _check_fraction(fraction)
    require(dataset.given is not None, "poison", "given", f"data with a poison_mask ({dataset.name} has none)")
    mask, known, clean = dataset.given
    forget = [Split(part.x[known], part.y[known]) for part in (clean, dataset.train)]
    return Poisoned(dataset.train, mask, known, *forget)


POISONS: dict[str, Callable[..., Poisoned]] = {
    "labels": poison_labels,
    "features": poison_features,
    "confusion": confuse_labels,
    "given": poison_given,
}


def _draw(split: Split, fraction: float, generator: np.random.Generator) -> np.ndarray:
    _check_fraction(fraction)
    return np.sort(generator.choice(len(split.y), _count(fraction, len(split.y)), replace=False))


def _draw_balanced(split: Split, fraction: float, generator: np.random.Generator, *, round_up: bool) -> np.ndarray:
    _check_fraction(fraction)
    per_class = (_count(fraction, len(split.y)) + round_up) // 2
    classes = [np.flatnonzero(split.y == label) for label in (0, 1)]
    smallest = min(map(len, classes))
    require(per_class <= smallest, "fraction", fraction, f"at most {smallest} samples of each class to poison")
    rows = [generator.choice(members, per_class, replace=False) for members in classes]
    return np.sort(np.concatenate(rows))


def _check_fraction(fraction: float) -> None:
    number = isinstance(fraction, (int, float, np.number)) and not isinstance(fraction, bool)
    require(number and 0 <= fraction < 1, "fraction", fraction, "0 <= fraction < 1 (0.3 is 30 percent)")


def _count(fraction: float, n: int) -> int:
    return int(fraction * n + 1e-9)  # 0.29 * 100 is 28.999999999999996


def _generator(key: Key) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)) if isinstance(key, jax.Array) else key)


def _poisoned(clean: Split, poisoned: Split, rows: np.ndarray) -> Poisoned:
    mask = np.zeros(len(clean.y), bool)
    mask[rows] = True
    return Poisoned(poisoned, mask, mask, *(Split(part.x[mask], part.y[mask]) for part in (clean, poisoned)))


# ---- unlearn ----

DIVERGENCES = {"full": bernoulli_kl, "published": bernoulli_kl_published}


class Task(NamedTuple):
    """What is to be unlearned by one model.

    teacher: the parameters trained on the poisoned data. retain, forget: inputs (prepared or raw) and labels, the
    forget set as poisoned; forget_clean: its samples as they were. fresh: new random parameters.
    """

    model: Model
    teacher: Params
    retain: Split
    forget: Split
    forget_clean: Split
    fresh: Params

    def logits(self, params: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """(n,) logits; `key` reaches models that are random."""
        random = {"key": key} if getattr(self.model, "is_random", False) else {}
        return self.model.logits(params, x, **random)


class Batch(NamedTuple):
    """What a loss sees at one step: a batch of the retain set, and the whole forget set.

    retain_weight is 1 for samples of the batch and 0 for those that fill it up; retain_teacher (b,) and
    forget_teacher (f,) are the teacher's logits. epoch counts from 0, for a method that alternates; key is new at each
    step, for one that draws.
    """

    retain: Split
    retain_weight: jax.Array
    retain_teacher: jax.Array
    forget: Split
    forget_teacher: jax.Array
    epoch: jax.Array
    key: jax.Array


Measure = Callable[[Params], Any]


@dataclass(frozen=True)
class Method:
    """An unlearning method: a frozen dataclass whose fields are its hyper-parameters, and how it is trained.

    Called as method(task, key, measure) -> (params, history), `history` being what `measure(params)` gave before the
    first epoch, after each and so after the last, stacked. To JAX a method is a pytree: its floats are leaves, which
    may be traced (`vmap` over a hyper-parameter), and all else is static, its own code included.

    title: its name in tables and figures; None for that in METHODS. needs_forget: refuse an empty forget set.
    is_fresh: it starts from new parameters. map_over: the one or two hyper-parameters of its weight map; None for the
    first two floats.
    """

    training: Training = field(default=Training(50, 0, 0.001), kw_only=True)

    title: ClassVar[str | None] = None
    needs_forget: ClassVar[bool] = False
    is_fresh: ClassVar[bool] = False
    map_over: ClassVar[tuple[str, ...] | None] = None

    def __init_subclass__(cls):
        jax.tree_util.register_pytree_node(cls, _flatten, lambda static, floats: _unflatten(cls, static, floats))

    def __post_init__(self):
        for name, value in self.hyper().items():
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            require(number, name, value, "a finite number, 0 or more")
            object.__setattr__(self, name, float(value))
        self.check()

    def check(self) -> None:
        """Refuse hyper-parameters that make no sense, by name: those that are negative or not finite."""
        for name, value in self.hyper().items():
            require(0 <= value < math.inf, name, value, "a finite number, 0 or more")

    def hyper(self) -> dict[str, float]:
        """The hyper-parameters that are floats, by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if _is_float(each)}

    def mapped(self) -> tuple[str, ...]:
        """The hyper-parameters of its weight map, at most two."""
        return tuple(self.hyper())[:2] if self.map_over is None else self.map_over

    def __call__(self, task: Task, key: jax.Array, measure: Measure | None = None) -> tuple[Params, Any]:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


def _is_float(each: dataclasses.Field) -> bool:
    return each.type in (float, "float")


def _flatten(method: Method) -> tuple[tuple, tuple]:
    """Its floats; and its other fields with all that its classes hold, so that no two codes share a program."""
    own = dataclasses.fields(method)
    static = tuple((each.name, getattr(method, each.name)) for each in own if not _is_float(each))
    held = [(name, part) for cls in type(method).__mro__[:-1] for name, part in vars(cls).items()]
    code = tuple(part for name, part in held if callable(part) or not name.startswith("__"))
    return tuple(method.hyper().values()), (static, tuple(map(_hashable, code)))


def _hashable(value: Any) -> Any:
    return value if isinstance(value, Hashable) else repr(value)


def _unflatten(cls: type, static: tuple, floats: tuple) -> Method:
    """Without the checks: the floats may be traced, or no numbers at all."""
    method = object.__new__(cls)
    names = [each.name for each in dataclasses.fields(cls) if _is_float(each)]
    for name, value in (*static[0], *zip(names, floats, strict=True)):
        object.__setattr__(method, name, value)
    return method


@dataclass(frozen=True)
class Descent(Method):
    """A method that descends a loss with Adam: it defines `loss` alone.

    Retain batches are reshuffled each epoch, the forget set is whole at each step.
    """

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def start(self, task: Task) -> Params:
        """Where the descent starts."""
        return task.fresh if self.is_fresh else task.teacher

    def forget_set(self, task: Task) -> Split:
        """Which version of the forget set the loss reads."""
        return task.forget

    def __call__(self, task: Task, key: jax.Array, measure: Measure | None = None) -> tuple[Params, Any]:
        retain, forget = task.retain, self.forget_set(task)
        fit_key, teacher_key = jax.random.split(key)
        n = len(retain.y)
        teacher = task.logits(task.teacher, jnp.concatenate([retain.x, forget.x]), teacher_key)

        def loss(params, rows, weight, epoch, step_key):
            chosen = Split(retain.x[rows], retain.y[rows])
            batch = Batch(chosen, weight, teacher[:n][rows], forget, teacher[n:], epoch, step_key)
            return self.loss(task, params, batch)

        return fit(loss, self.start(task), n, **self.training.keywords(), key=fit_key, measure=measure)


@dataclass(frozen=True)
class OneShot(Method):
    """A method of one step, such as a Newton step or noise: it defines `step` alone; its history has two entries."""

    def step(self, task: Task, key: jax.Array) -> Params:
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def __call__(self, task: Task, key: jax.Array, measure: Measure | None = None) -> tuple[Params, Any]:
        params = self.step(task, key)
        points = jax.tree.map(lambda *leaves: jnp.stack(leaves), task.teacher, params)
        return params, jax.lax.map(measure, points) if measure else None


def retain_loss(task: Task, params: Params, batch: Batch) -> jax.Array:
    """CE(D_r)."""
    return cross_entropy(task.logits(params, batch.retain.x, batch.key), batch.retain.y, batch.retain_weight)


def both_logits(task: Task, params: Params, batch: Batch) -> list[jax.Array]:
    """Logits of the retain batch and of the forget set, from one pass."""
    logits = task.logits(params, jnp.concatenate([batch.retain.x, batch.forget.x]), batch.key)
    return jnp.split(logits, [len(batch.retain.y)])


@dataclass(frozen=True)
class Retrain(Descent):
    """CE(D_r) from fresh parameters: what the others approximate. Over all samples it trains the teacher."""

    title = "Retrain"
    is_fresh = True

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        return retain_loss(task, params, batch)


@dataclass(frozen=True)
class FineTune(Descent):
    """CE(D_r) from the teacher: catastrophic forgetting by continued training on what is retained."""

    title = "Fine-tune"

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        return retain_loss(task, params, batch)


@dataclass(frozen=True)
class Scrub(Descent):
    """ce CE(D_r) + kl KL(teacher || student on D_r) - forget KL(teacher || student on D_f).

    SCRUB (Kurmanji et al., arXiv:2302.09880) as one joint loss, the form of the published models.py, whose weights are
    the defaults. divergence: the full Bernoulli KL, or its first term alone as in the published code. reads: which
    version of the forget set's inputs (published: clean).
    """

    ce: float = 1.0
    forget: float = 0.2
    kl: float = 0.0
    divergence: Literal["full", "published"] = "full"
    reads: Literal["poisoned", "clean"] = "poisoned"

    title = "Scrub"
    needs_forget = True
    map_over = ("forget", "kl")

    def check(self) -> None:
        super().check()
        require(self.divergence in DIVERGENCES, "divergence", self.divergence, ", ".join(DIVERGENCES))
        require(self.reads in ("poisoned", "clean"), "reads", self.reads, "poisoned, clean")

    def forget_set(self, task: Task) -> Split:
        return task.forget_clean if self.reads == "clean" else task.forget

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        divergence = DIVERGENCES[self.divergence]
        retain, forget = both_logits(task, params, batch)
        stay = jnp.average(divergence(batch.retain_teacher, retain), weights=batch.retain_weight)
        leave = jnp.mean(divergence(batch.forget_teacher, forget))
        learn = cross_entropy(retain, batch.retain.y, batch.retain_weight)
        return self.ce * learn + self.kl * stay - self.forget * leave


@dataclass(frozen=True)
class GradientAscent(Descent):
    """ce CE(D_r) - forget CE(D_f as poisoned): ascent on the forget set beside descent on the rest (NegGrad+).

    Weights: those of the published models.py.
    """

    ce: float = 1.0
    forget: float = 0.2

    title = "Gradient ascent"
    needs_forget = True
    map_over = ("forget",)

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        retain, forget = both_logits(task, params, batch)
        descend = cross_entropy(retain, batch.retain.y, batch.retain_weight)
        return self.ce * descend - self.forget * cross_entropy(forget, batch.forget.y)


METHODS: dict[str, Method] = {
    "retrain": Retrain(),
    "cf": FineTune(),
    "scrub": Scrub(),
    "ga": GradientAscent(),
}


def unlearn(
    method: Method,
    model: Model,
    teacher: Params,
    retain: Split,
    forget: Split,
    *,
    key: jax.Array,
    forget_clean: Split | None = None,
    measure: Measure | None = None,
) -> tuple[Params, Any]:
    """Run one method from a teacher; returns the parameters and the history of `measure` (see `Method`).

    retain, forget: inputs (prepared or raw) and labels, the forget set as poisoned; forget_clean: the same samples
    before, for methods that read them. It can be `vmap`ped over runs and over the method's floats.
    """
    given = {"retain": retain, "forget": forget, "forget_clean": forget if forget_clean is None else forget_clean}
    retain, forget, forget_clean = (prepared(model, split, name) for name, split in given.items())
    require(len(forget_clean.y) == len(forget.y), "forget_clean", f"{len(forget_clean.y)} samples",
            f"the {len(forget.y)} of forget")  # fmt: skip
    require(len(forget.y) > 0 or not method.needs_forget, "forget", "an empty set", "at least one sample")
    for name, split in (("forget", forget), ("forget_clean", forget_clean)):
        own, others = jnp.shape(split.x)[1:], jnp.shape(retain.x)[1:]
        require(own == others, name, f"samples of shape {own}", f"{others}, that of the retained ones")
    fresh_key, method_key = jax.random.split(key)
    retain, forget, forget_clean = jax.tree.map(jnp.asarray, (retain, forget, forget_clean))
    return method(Task(model, teacher, retain, forget, forget_clean, model.init(fresh_key)), method_key, measure)
