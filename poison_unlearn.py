"""Poison training data, and unlearn the poison: methods that own their numbers, and the loop they
share."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datar import Dataset, Split, require_split
from foundation.base.checks import require, require_whole
from foundation.measures.metrics import bernoulli_kl, bernoulli_kl_published, cross_entropy
from models import Model, Params, Training, fit, logits_of, prepared, require_key, require_params

Key = jax.Array | int | np.random.Generator  # of JAX, or what NumPy's default_rng takes
Measure = Callable[[Params], Any]
DIVERGENCES = {"full": bernoulli_kl, "published": bernoulli_kl_published}

# ---- poison ----


class Poisoned(NamedTuple):
    """A poisoned training set."""

    split: Split  # all n samples, poisoned ones among them
    mask: np.ndarray  # (n,) True where poisoned
    known: np.ndarray  # (n,) True where that is identified: the forget set; all others are retained
    forget_clean: Split  # the forget set as it was before
    forget_poisoned: Split  # and as it is in split
    attack: Split | None = (
        None  # of a backdoor: validation samples with the trigger, and the labels it is to give
    )

    @property
    def retain(self) -> Split:
        """The samples that are not known to be poisoned."""
        return Split(self.split.x[~self.known], self.split.y[~self.known])


@dataclass(frozen=True)
class Poison:
    """What to poison, and how much of it is known. It carries its function: it works where POISONS
    lacks its name."""

    kind: str = "labels"  # a name in POISONS
    alpha_percent: int = 0  # of the training samples, in whole percent
    known_percent: int = 100  # of the poisoned ones, the share that is identified
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
        # another stream than that of the draw, the same for all shares
        generator = _generator(key).spawn(1)[0]
        rows = generator.permutation(np.flatnonzero(poisoned.known))
        known = np.zeros_like(poisoned.mask)
        known[rows[: round(len(rows) * self.known_percent / 100)]] = True
        chosen = known[poisoned.known]
        forget = [
            Split(part.x[chosen], part.y[chosen])
            for part in (poisoned.forget_clean, poisoned.forget_poisoned)
        ]
        return Poisoned(*poisoned[:2], known, *forget, poisoned.attack)


def flip_labels(split: Split, fraction: float, *, key: Key, balanced: bool = True) -> Poisoned:
    """Flip the labels of int(fraction n) samples, half from each class; an odd number is rounded
    down.

    balanced=False draws them from all samples alike, as the published Hessian analysis does.
    Published: datar.py, `flip_labels` (its halves of the sorted training set are the classes).
    """
    split, mask, _ = _draw(split, fraction, key, balanced=balanced)
    return as_poisoned(split, Split(split.x, np.where(mask, 1 - split.y, split.y)), mask)


def randomize_features(
    split: Split, fraction: float, *, key: Key, n_features: int | None = None
) -> Poisoned:
    """Replace int(fraction n) samples by normalised Gaussian vectors, half from each class, odd
    rounded up.

    n_features: length before padding (784 pixels), None for all; the padding stays 0. The noise is
    complex where the samples have imaginary parts and real where they have none. Published:
    datar.py, `data_poison(..., ordered=False)`.
    """
    split, mask, generator = _draw(split, fraction, key, round_up=True)
    require(
        split.x.ndim == 2, "split.x", f"shape {split.x.shape}", "(n, d); flatten images to rows"
    )
    length = split.x.shape[1] if n_features is None else n_features
    require_whole("n_features", length)
    require(length <= split.x.shape[1], "n_features", n_features, f"1 to {split.x.shape[1]}")
    noise = generator.standard_normal((mask.sum(), length))
    if np.iscomplexobj(split.x) and np.any(split.x.imag):
        noise = noise + 1j * generator.standard_normal((mask.sum(), length))
    x = split.x.copy()
    x[mask] = 0
    x[mask, :length] = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    return as_poisoned(split, Split(x, split.y), mask)


def relabel_randomly(split: Split, fraction: float, *, key: Key) -> Poisoned:
    """Draw new labels at random for int(fraction n) samples of any class ("interclass confusion").

    About half of them keep the label they had. Published: datar.py, `interclass_confusion`.
    """
    split, mask, generator = _draw(split, fraction, key, balanced=False)
    y = split.y.copy()
    y[mask] = generator.integers(0, 2, mask.sum())
    return as_poisoned(split, Split(split.x, y), mask)


def poison_labels(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flipped labels, as many in each class."""
    return flip_labels(dataset.train, fraction, key=key)


def poison_features(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Samples replaced by noise, the padding left 0."""
    return randomize_features(dataset.train, fraction, key=key, n_features=dataset.n_features)


def confuse_labels(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Labels drawn anew at random."""
    return relabel_randomly(dataset.train, fraction, key=key)


def poison_as_given(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """The poison that the data came with (`poison_mask` in an .npz), whatever the share."""
    _check_fraction(fraction)
    require(
        dataset.given is not None,
        "poison",
        "given",
        f"data with a poison_mask ({dataset.name} has none)",
    )
    mask, known, clean = dataset.given
    forget = [Split(part.x[known], part.y[known]) for part in (clean, dataset.train)]
    return Poisoned(dataset.train, mask, known, *forget)


def poison_one_class(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flipped labels of int(fraction n) samples of class 1 alone: a bias that no majority cures."""
    split, mask = _draw_ones(dataset.train, fraction, key)
    return as_poisoned(split, Split(split.x, np.where(mask, 0, split.y)), mask)


def poison_boundary(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flipped labels of the samples nearest to the boundary between the classes, as many in each
    class.

    Those of the least mean fidelity |<x|x'>|² with the others of their class over that with the
    other class: an aim that takes no model, and the same samples whatever the key.
    """
    fidelity, same = _fidelities(dataset.train)
    with_own = (fidelity * same).sum(axis=1) - np.diag(fidelity)
    margin = with_own / np.maximum(same.sum(axis=1) - 1, 1) - (fidelity * ~same).sum(axis=1) / (
        ~same
    ).sum(axis=1)
    return _flip_first(dataset.train, fraction, margin, key)


def poison_quid(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flipped labels of the samples with the most similar state in the other class, as many in each
    class.

    After QUID (arXiv:2411.14412), which gives samples chosen at random the label of the class whose
    encoded states are farthest. With two classes that is a plain flip; what is left of the aim is
    whose label: those of the largest fidelity |<x|x'>|² with a sample of the other class. The same
    samples whatever the key.
    """
    fidelity, same = _fidelities(dataset.train)
    return _flip_first(dataset.train, fraction, -np.where(same, -1, fidelity).max(axis=1), key)


def poison_backdoor(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """A bright square in the corner of int(fraction n) images of class 1, and the label 0 (BadNets,
    arXiv:1708.06733).

    It is as bright as the image's brightest pixel, its side a seventh of the image's (4 pixels of
    28), and the images are normalised anew. `attack`: the validation images of class 1 with the
    square, labelled 0.
    """
    split, mask = _draw_ones(dataset.train, fraction, key)
    require(
        dataset.image_shape is not None,
        "poison",
        "backdoor",
        f"data of images ({dataset.name} has none)",
    )
    ones = dataset.val.x[dataset.val.y == 1]
    x = np.where(mask[:, None], with_trigger(split.x, dataset), split.x)
    attack = Split(with_trigger(ones, dataset), np.zeros(len(ones), np.int32))
    return as_poisoned(split, Split(x, np.where(mask, 0, split.y)), mask)._replace(attack=attack)


def with_trigger(x: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Encoded images (n, d) of a data set with the backdoor's square, as they would be encoded: (n,
    d)."""
    height, width = dataset.image_shape
    side = max(min(height, width) // 7, 1)
    images = x[:, : height * width].reshape(-1, height, width)
    # what has norm 1: a column, or all
    axis = 1 if dataset.provenance.get("encoding") == "columnwise" else (1, 2)

    def norm(images: np.ndarray) -> np.ndarray:
        return np.sqrt((np.abs(images) ** 2).sum(axis=axis, keepdims=True))

    brightest = np.abs(images).max(axis=axis, keepdims=True)
    bright = np.where(brightest > 0, brightest, 1)  # an empty column
    rows, columns = (np.arange(size) for size in (height, width))
    inside = [
        (each >= size - 1 - side) & (each < size - 1)
        for each, size in ((rows, height), (columns, width))
    ]
    patched = np.where(inside[0][:, None] & inside[1], bright, images)
    patched = patched * (
        np.where(norm(images) > 0, norm(images), 1) / np.maximum(norm(patched), 1e-12)
    )
    found = x.copy()
    found[:, : height * width] = patched.reshape(len(x), -1)
    return found


POISONS: dict[str, Callable] = {
    "labels": poison_labels,
    "one_class": poison_one_class,
    "boundary": poison_boundary,
    "quid": poison_quid,
    "backdoor": poison_backdoor,
    "features": poison_features,
    "confusion": confuse_labels,
    "given": poison_as_given,
}


def _check_fraction(fraction: float) -> None:
    number = isinstance(fraction, (int, float, np.number)) and not isinstance(fraction, bool)
    require(
        number and 0 <= fraction < 1, "fraction", fraction, "0 <= fraction < 1 (0.3 is 30 percent)"
    )


def _draw(
    split: Split, fraction: float, key: Key, *, balanced: bool = True, round_up: bool = False
) -> tuple:
    """The split, checked; int(fraction n) of its samples as a mask, half from each class or any;
    and the generator."""
    split, generator = require_split(split), _generator(key)
    _check_fraction(fraction)
    mask = np.zeros(len(split.y), bool)
    count = int(fraction * len(mask) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    groups = (
        [np.flatnonzero(split.y == label) for label in (0, 1)]
        if balanced
        else [np.arange(len(mask))]
    )
    of_each, smallest = (count + round_up) // len(groups), min(map(len, groups))
    require(
        of_each <= smallest,
        "fraction",
        fraction,
        f"at most {smallest} samples of each class to poison",
    )
    for group in groups:
        mask[generator.choice(group, of_each, replace=False)] = True
    return split, mask, generator


def _draw_ones(split: Split, fraction: float, key: Key) -> tuple[Split, np.ndarray]:
    """The split, checked; int(fraction n) of its samples of class 1 as a mask."""
    split = require_split(split)
    _check_fraction(fraction)
    own, count = np.flatnonzero(split.y == 1), int(fraction * len(split.y) + 1e-9)
    require(
        count <= len(own),
        "fraction",
        fraction,
        f"at most {len(own)} samples, those of class 1, to poison",
    )
    return split, np.isin(
        np.arange(len(split.y)), _generator(key).choice(own, count, replace=False)
    )


def _flip_first(split: Split, fraction: float, order: np.ndarray, key: Key) -> Poisoned:
    """Labels flipped of the int(fraction n) samples of the least order, half from each class, odd
    rounded down."""
    split, mask, _ = _draw(split, fraction, key)
    for label in (0, 1):
        group = np.flatnonzero(split.y == label)
        first = group[np.argsort(order[group], kind="stable")[: mask[group].sum()]]
        mask[group] = np.isin(group, first)
    return as_poisoned(split, Split(split.x, np.where(mask, 1 - split.y, split.y)), mask)


def _fidelities(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """(n, n), |<x|x'>|² of all pairs of samples, with norm 1, and which pairs are of one class."""
    split = require_split(split)
    x = split.x.reshape(len(split.y), -1)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return np.abs(x.conj() @ x.T) ** 2, split.y[:, None] == split.y


def _generator(key: Key) -> np.random.Generator:
    if isinstance(key, jax.Array):
        return np.random.default_rng(np.asarray(jax.random.key_data(key)))
    seed = isinstance(key, np.random.Generator) or (isinstance(key, (int, np.integer)) and key >= 0)
    require(seed, "key", key, "a key of JAX, a whole number of 0 or more, or a generator of NumPy")
    return np.random.default_rng(key)


def as_poisoned(clean: Split, poisoned: Split, mask: np.ndarray) -> Poisoned:
    """A poison, all of it known: the training set before and after, and which samples changed, (n,)
    bool."""
    return Poisoned(
        poisoned, mask, mask, *(Split(part.x[mask], part.y[mask]) for part in (clean, poisoned))
    )


# ---- unlearn ----


class Task(NamedTuple):
    """What is to be unlearned by one model; each set is inputs (prepared or raw) and labels."""

    model: Model
    teacher: Params  # trained on the poisoned data
    retain: Split
    forget: Split  # as poisoned
    forget_clean: Split  # the same samples as they were
    fresh: Params  # new random ones

    def logits(self, params: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """(n,) logits; `key` reaches models that are random."""
        return logits_of(self.model, params, x, key)


class Batch(NamedTuple):
    """What a loss sees at one step: a batch of b retained samples, and all f of the forget set."""

    retain: Split
    retain_weight: jax.Array  # (b,) 1 for samples of the batch, 0 for those that fill it up
    retain_teacher: jax.Array  # (b,) logits
    forget: Split
    forget_teacher: jax.Array  # (f,) logits
    epoch: jax.Array  # from 0, for a method that alternates
    key: jax.Array  # new at each step, for one that draws
    own: Any = None  # what the method's `before` gave


@dataclass(frozen=True)
class Method:
    """An unlearning method: a frozen dataclass whose fields are its hyper-parameters, and how it is
    trained.

    Called as method(task, key, measure) -> (params, history), `history` being what
    `measure(params)` gave before the first epoch, after each and so after the last, stacked. To JAX
    a method is a pytree: its floats are leaves, which may be traced (`vmap` over a
    hyper-parameter), and all else is static, its own code included.
    """

    training: Training = field(default=Training(50, 0, 0.001), kw_only=True)

    title: ClassVar[str | None] = None  # in tables and figures; None for its name in METHODS
    needs_forget: ClassVar[bool] = False  # an empty forget set is refused
    is_fresh: ClassVar[bool] = False  # it starts from new parameters
    map_over: ClassVar[tuple[str, ...] | None] = (
        None  # one or two for its weight map; None for the first two floats
    )
    # see `settings`; at most four
    grid: ClassVar[tuple[dict[str, float], ...]] = ({}, {"rate": 4.0})
    reads_truth: ClassVar[bool] = (
        False  # it sees what the poison replaced: an upper bound, marked as such
    )

    def __init_subclass__(cls):
        jax.tree_util.register_pytree_node(cls, _flatten, partial(_unflatten, cls))

    def __post_init__(self):
        for name, value in self.hyper().items():
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            require(number, name, value, "a finite number, 0 or more")
            object.__setattr__(self, name, float(value))
        self.check()

    def check(self) -> None:
        """Refuse hyper-parameters that make no sense, by name: those that are negative or not
        finite."""
        for name, value in self.hyper().items():
            require(0 <= value < math.inf, name, value, "a finite number, 0 or more")

    def hyper(self) -> dict[str, float]:
        """The hyper-parameters that are floats, by name."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.type in (float, "float")
        }

    def mapped(self) -> tuple[str, ...]:
        """The hyper-parameters of its weight map, at most two."""
        return tuple(self.hyper())[:2] if self.map_over is None else self.map_over

    def settings(self) -> tuple[Method, ...]:
        """Itself under each entry of its grid, among which the stage evaluation chooses.

        An entry names hyper-parameters, and `rate` and `epochs`, factors on those of its training;
        {}: as it is.
        """
        found = []
        for entry in self.grid:
            changes = {
                name: value for name, value in entry.items() if name not in ("rate", "epochs")
            }
            rate = self.training.learning_rate * entry.get("rate", 1)
            epochs = max(round(self.training.epochs * entry.get("epochs", 1)), 1)
            training = replace(self.training, learning_rate=rate, epochs=epochs)
            found.append(replace(self, training=training, **changes))
        return tuple(dict.fromkeys(found))

    def why_not(self, model: Model) -> str:
        """Why it cannot run on a model, in a few words; "" where it can."""
        return ""

    def gradients(self, n_retain: int, n_forget: int) -> float:
        """How many gradients of single samples a run takes; NaN for a method that does not say."""
        return math.nan

    def cost(self, model: Model, n_retain: int, n_forget: int) -> float:
        """The same on a model, where that makes a difference."""
        return self.gradients(n_retain, n_forget)

    def __call__(
        self, task: Task, key: jax.Array, measure: Measure | None = None
    ) -> tuple[Params, Any]:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


def _flatten(method: Method) -> tuple[tuple, tuple]:
    """Its floats; and its other fields with all that its classes hold, so that no two codes share a
    program."""
    floats = method.hyper()
    others = tuple(
        (each.name, getattr(method, each.name))
        for each in fields(method)
        if each.name not in floats
    )
    held = [(name, part) for cls in type(method).__mro__[:-1] for name, part in vars(cls).items()]
    code = [part for name, part in held if callable(part) or not name.startswith("__")]
    code = tuple(part if isinstance(part, Hashable) else repr(part) for part in code)
    return tuple(floats.values()), (tuple(floats), others, code)


def _unflatten(cls: type, static: tuple, floats: tuple) -> Method:
    """Without the checks: the floats may be traced, or no numbers at all."""
    method = object.__new__(cls)
    for name, value in (*static[1], *zip(static[0], floats, strict=True)):
        object.__setattr__(method, name, value)
    return method


@dataclass(frozen=True)
class Descent(Method):
    """A method that defines `loss` alone: Adam descends it over reshuffled retain batches and the
    whole forget set."""

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def before(self, task: Task, key: jax.Array) -> Any:
        """What the loss finds as `batch.own`: computed once, before the descent."""

    def start(self, task: Task) -> Params:
        """Where the descent starts."""
        return task.fresh if self.is_fresh else task.teacher

    def forget_set(self, task: Task) -> Split:
        """Which version of the forget set the loss reads."""
        return task.forget

    def steps(self, n_retain: int) -> int:
        """Of an epoch."""
        return math.ceil(n_retain / self.training.batch_size) if self.training.batch_size else 1

    def gradients(self, n_retain: int, n_forget: int) -> int:
        return self.training.epochs * (
            n_retain + self.steps(n_retain) * n_forget * self.needs_forget
        )

    def __call__(
        self, task: Task, key: jax.Array, measure: Measure | None = None
    ) -> tuple[Params, Any]:
        retain, forget = task.retain, self.forget_set(task)
        fit_key, teacher_key = jax.random.split(key)
        n, own = len(retain.y), self.before(task, jax.random.fold_in(teacher_key, 1))
        teacher = task.logits(task.teacher, jnp.concatenate([retain.x, forget.x]), teacher_key)

        def loss(params, rows, weight, epoch, step_key):
            chosen = Split(retain.x[rows], retain.y[rows])
            batch = Batch(
                chosen, weight, teacher[:n][rows], forget, teacher[n:], epoch, step_key, own
            )
            return self.loss(task, params, batch)

        return fit(
            loss, self.start(task), n, **self.training.keywords(), key=fit_key, measure=measure
        )


@dataclass(frozen=True)
class OneShot(Method):
    """A method of one step, such as a Newton step or noise: it defines `step` alone; its history
    has two entries."""

    def step(self, task: Task, key: jax.Array) -> Params:
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def __call__(
        self, task: Task, key: jax.Array, measure: Measure | None = None
    ) -> tuple[Params, Any]:
        params = self.step(task, key)
        points = jax.tree.map(lambda *leaves: jnp.stack(leaves), task.teacher, params)
        return params, jax.lax.map(measure, points) if measure else None


def retain_loss(task: Task, params: Params, batch: Batch) -> jax.Array:
    """CE(D_r)."""
    return cross_entropy(
        task.logits(params, batch.retain.x, batch.key), batch.retain.y, batch.retain_weight
    )


def both_logits(task: Task, params: Params, batch: Batch) -> list[jax.Array]:
    """Logits of the retain batch and of the forget set, from one pass."""
    logits = task.logits(params, jnp.concatenate([batch.retain.x, batch.forget.x]), batch.key)
    return jnp.split(logits, [len(batch.retain.y)])


@dataclass(frozen=True)
class FineTune(Descent):
    """CE(D_r) from the teacher: catastrophic forgetting by continued training on what is
    retained."""

    title = "Fine-tune"
    grid = ({}, {"rate": 4.0}, {"rate": 16.0}, {"rate": 0.25})

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        return retain_loss(task, params, batch)


@dataclass(frozen=True)
class Retrain(FineTune):
    """CE(D_r) from fresh parameters: what the others approximate. Over all samples it trains the
    teacher."""

    title = "Retrain"
    is_fresh = True


@dataclass(frozen=True)
class Scrub(Descent):
    """ce CE(D_r) + kl KL(teacher || student on D_r) - forget KL(teacher || student on D_f).

    SCRUB (Kurmanji et al., arXiv:2302.09880) as one joint loss, the form of the published
    models.py.
    """

    ce: float = 1.0  # the three weights: published
    forget: float = 0.2
    kl: float = 0.0
    divergence: Literal["full", "published"] = "full"  # the Bernoulli KL, or its first term alone
    reads: Literal["poisoned", "clean"] = (
        "poisoned"  # which version of the forget set's inputs; published: clean
    )

    title = "Scrub"
    needs_forget = True
    map_over = ("forget", "kl")
    grid = ({}, {"rate": 4.0}, {"forget": 0.05}, {"rate": 4.0, "forget": 0.05})

    def check(self) -> None:
        super().check()
        require(
            self.divergence in DIVERGENCES, "divergence", self.divergence, ", ".join(DIVERGENCES)
        )
        require(self.reads in ("poisoned", "clean"), "reads", self.reads, "poisoned, clean")

    @property
    def reads_truth(self) -> bool:
        return self.reads == "clean"

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
    """ce CE(D_r) - forget CE(D_f as poisoned): ascent on the forget set beside descent on the rest
    (NegGrad+)."""

    ce: float = 1.0  # both weights: published, models.py
    forget: float = 0.2

    title = "Gradient ascent"
    needs_forget = True
    map_over = ("forget",)
    grid = ({}, {"rate": 4.0}, {"forget": 0.05}, {"rate": 4.0, "forget": 0.05})

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
    """Run one method from a teacher; returns the parameters and the history of `measure` (see
    `Method`).

    retain, forget: inputs (prepared or raw) and labels, the forget set as poisoned; forget_clean:
    the same samples before, for methods that read them. It can be `vmap`ped over runs and over the
    method's floats.
    """
    is_method = isinstance(method, Method)
    require(
        is_method,
        "method",
        repr(method),
        f"a Method, such as those in METHODS: {', '.join(METHODS)}",
    )
    require_key(key)
    require_params(model, teacher, "teacher")
    given = {
        "retain": retain,
        "forget": forget,
        "forget_clean": forget if forget_clean is None else forget_clean,
    }
    retain, forget, forget_clean = (prepared(model, split, name) for name, split in given.items())
    n, n_clean = len(forget.y), len(forget_clean.y)
    require(n_clean == n, "forget_clean", f"{n_clean} samples", f"the {n} of forget")
    require(n > 0 or not method.needs_forget, "forget", "an empty set", "at least one sample")
    for name, split in (("forget", forget), ("forget_clean", forget_clean)):
        own, others = split.x.shape[1:], retain.x.shape[1:]
        require(
            own == others, name, f"samples of shape {own}", f"{others}, that of the retained ones"
        )
    fresh_key, method_key = jax.random.split(key)
    return method(
        Task(model, teacher, retain, forget, forget_clean, model.init(fresh_key)),
        method_key,
        measure,
    )
