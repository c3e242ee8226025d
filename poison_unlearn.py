"""Poison training data, and unlearn the poison: methods with their hyper-parameters, one loop."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datar import Dataset, Split, require_split, with_trigger
from foundation.base.checks import is_number, listed, require, require_whole
from foundation.base.labels import UNPOISONED, number_of_classes
from foundation.measures import draws
from foundation.measures.draws import Key, generator_of
from foundation.measures.metrics import bernoulli_kl_published, cross_entropy, kl_divergence
from foundation.measures.norms import norms
from models import Model, Params, Training, fit, logits_of, prepared, require_key, require_params

Measure = Callable[[Params], Any]
DIVERGENCES = {"full": kl_divergence, "published": bernoulli_kl_published}

# ---- poison ----


class Poisoned(NamedTuple):
    """A poisoned training set, or one of which a part is to be forgotten as it is."""

    split: Split  # all n samples, poisoned samples included
    mask: np.ndarray  # (n,) True where poisoned
    known: np.ndarray  # (n,) True in the forget set, where the poison is identified
    forget_clean: Split  # the forget set before it was poisoned
    forget_poisoned: Split  # the forget set as it stands in split
    # of a backdoor: validation samples with the trigger, and the labels that the trigger aims at
    attack: Split | None = None
    # of a class that is to be forgotten: (v,) True for the validation samples of it
    of_class: np.ndarray | None = None

    @property
    def retain(self) -> Split:
        """The samples that are not known to be poisoned."""
        return self.split.take(~self.known)


@dataclass(frozen=True)
class Poison:
    """A kind of poison, its share of the training set, and the share of it that is known.

    It carries its function, so that it works in a process whose POISONS lack its name. Of the kinds
    UNPOISONED, samples are to be forgotten as they are.
    """

    kind: str = "labels"  # a name in POISONS
    alpha_percent: int = 0  # the poisoned share of the training samples, in whole percent
    known_percent: int = 100  # the identified share of the poisoned samples, in whole percent
    function: Callable[..., Poisoned] | None = field(default=None, repr=False)
    # the class that a kind aims at, 0 to K - 1; None: the kind's own, or it aims at none
    label: int | None = field(default=None, kw_only=True)

    def __post_init__(self):
        for name, most in (("alpha_percent", 99), ("known_percent", 100)):
            value = getattr(self, name)
            require_whole(name, value, 0)
            require(value <= most, name, value, f"whole percents, 0 to {most}")
            object.__setattr__(self, name, int(value))
        if self.function is None:
            require(self.kind in POISONS, "poison", self.kind, ", ".join(POISONS))
            object.__setattr__(self, "function", POISONS[self.kind])
        if self.label is not None:
            aims = "label" in inspect.signature(self.function).parameters
            require(aims, "label", self.label, f"none for {self.kind}, which aims at no class")
            require_whole("label", self.label, 0)
            object.__setattr__(self, "label", int(self.label))

    @property
    def name(self) -> str:
        """Its kind, and the class that it was told to aim at, as in class-3."""
        return self.kind if self.label is None else f"{self.kind}-{self.label}"

    @property
    def changes(self) -> bool:
        """Whether it changes samples; else they are to be forgotten as they are."""
        return self.kind not in UNPOISONED

    def draw(self, dataset: Dataset, *, key: Key) -> Poisoned:
        """Poison the training set of `dataset`."""
        aim = {} if self.label is None else {"label": self.label}
        poisoned = self.function(dataset, self.alpha_percent / 100, key=key, **aim)
        if self.known_percent == 100:
            return poisoned
        # a stream apart from that of the draw, and equal for all known shares
        generator = generator_of(key).spawn(1)[0]
        places = np.flatnonzero(poisoned.known)
        shuffled = generator.permutation(places)
        count = round(len(shuffled) * self.known_percent / 100)
        known = np.zeros_like(poisoned.mask)
        known[shuffled[:count]] = True
        chosen = known[poisoned.known]
        return poisoned._replace(
            known=known,
            forget_clean=poisoned.forget_clean.take(chosen),
            forget_poisoned=poisoned.forget_poisoned.take(chosen),
        )


def flip_labels(split: Split, fraction: float, *, key: Key, balanced: bool = True) -> Poisoned:
    """Flip the labels of int(fraction n) samples, as many of each class, odd numbers rounded down.

    Of more than two classes each gets a label drawn from the others. balanced=False draws from all
    samples whatever their class, as the published Hessian analysis does. Published: datar.py,
    `flip_labels` (halves of the sorted training set are the classes).
    """
    split, generator = _training_set(split), generator_of(key)
    draw = draws.of_each_class if balanced else draws.of_all
    mask = draw(split.y, fraction, generator)
    return _relabelled(split, mask, draws.other_labels(split.y, generator))


def randomize_features(
    split: Split, fraction: float, *, key: Key, n_features: int | None = None
) -> Poisoned:
    """Replace int(fraction n) samples by normalised Gaussian vectors, as many of each class.

    Odd numbers are rounded up. n_features: length before padding (784 pixels), None for the whole
    length; the padding stays 0. The noise is complex if any sample has an imaginary part, else
    real. Published: datar.py, `data_poison(..., ordered=False)`.
    """
    split, generator = _training_set(split), generator_of(key)
    mask = draws.of_each_class(split.y, fraction, generator, round_up=True)
    shape = f"shape {split.x.shape}"
    require(split.x.ndim == 2, "split.x", shape, "(n, d); flatten images to rows")
    padded_length = split.x.shape[1]
    length = padded_length if n_features is None else n_features
    require_whole("n_features", length)
    require(length <= padded_length, "n_features", n_features, f"1 to {padded_length}")
    count = mask.sum()
    noise = generator.standard_normal((count, length))
    if np.iscomplexobj(split.x) and np.any(split.x.imag):
        noise = noise + 1j * generator.standard_normal((count, length))
    x = split.x.copy()
    x[mask] = 0
    lengths = np.linalg.norm(noise, axis=1, keepdims=True)
    x[mask, :length] = noise / lengths
    return as_poisoned(split, Split(x, split.y), mask)


def relabel_randomly(split: Split, fraction: float, *, key: Key) -> Poisoned:
    """Draw labels at random for int(fraction n) samples (published: `interclass_confusion`)."""
    split, generator = _training_set(split), generator_of(key)
    mask = draws.of_all(split.y, fraction, generator)
    y = split.y.copy()
    y[mask] = generator.integers(0, number_of_classes(split.y), mask.sum())
    return as_poisoned(split, Split(split.x, y), mask)


def poison_labels(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flip labels, as many in each class."""
    return flip_labels(dataset.train, fraction, key=key)


def poison_next_class(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flip labels to the next class, k to k + 1 and the last to 0, as many in each class."""
    split, generator = _training_set(dataset.train), generator_of(key)
    mask = draws.of_each_class(split.y, fraction, generator)
    return _relabelled(split, mask, (split.y + 1) % number_of_classes(split.y))


def poison_features(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Replace samples by noise; the padding stays 0."""
    return randomize_features(dataset.train, fraction, key=key, n_features=dataset.n_features)


def confuse_labels(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Draw random labels."""
    return relabel_randomly(dataset.train, fraction, key=key)


def poison_as_given(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Return the poison that the data came with (`poison_mask` in an .npz), whatever the share."""
    draws.check_fraction(fraction)
    allowed = f"data with a poison_mask ({dataset.name} has none)"
    require(dataset.given is not None, "poison", "given", allowed)
    mask, known, clean = dataset.given
    train = dataset.train
    return Poisoned(train, mask, known, clean.take(known), train.take(known))


def poison_one_class(dataset: Dataset, fraction: float, *, key: Key, label: int = 1) -> Poisoned:
    """Flip int(fraction n) labels, all of them `label`: a bias that no majority cures."""
    split, generator = _training_set(dataset.train), generator_of(key)
    draws.require_class(label, split.y)
    mask = draws.of_class(split.y, fraction, generator, label)
    return _relabelled(split, mask, draws.other_labels(split.y, generator))


def poison_other_class(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flip int(fraction n) labels, all of them 0."""
    return poison_one_class(dataset, fraction, key=key, label=0)


def poison_boundary(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flip the labels nearest to the boundary between the classes, as many in each class.

    A sample's margin is its mean fidelity |<x|x'>|² with the others of its class minus that with
    all other classes; the samples of the least margin are chosen, without the key.
    """
    fidelity, share_class = _fidelities(dataset.train)
    n_of_class = share_class.sum(axis=1) - 1  # without the sample itself
    n_of_other = (~share_class).sum(axis=1)
    sums_of_class = (fidelity * share_class).sum(axis=1) - np.diag(fidelity)
    sums_of_other = (fidelity * ~share_class).sum(axis=1)
    margin = sums_of_class / np.maximum(n_of_class, 1) - sums_of_other / n_of_other
    return _flip_first(dataset.train, fraction, margin, key)


def poison_quid(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Flip the labels of samples most similar to one of the other class, as many in each class.

    After QUID (arXiv:2411.14412), which gives random samples the label of the class whose states
    are farthest. With two classes that is a plain flip, so the aim lies in the choice of samples:
    of the largest fidelity |<x|x'>|² with one of another class. The key draws labels of K > 2.
    """
    fidelity, share_class = _fidelities(dataset.train)
    largest = np.where(share_class, -1, fidelity).max(axis=1)
    return _flip_first(dataset.train, fraction, -largest, key)


def poison_backdoor(dataset: Dataset, fraction: float, *, key: Key, label: int = 0) -> Poisoned:
    """Put a bright square into int(fraction n) images of other classes and label them `label`.

    After BadNets (arXiv:1708.06733). The square, in a corner, is as bright as the brightest pixel;
    its side is a seventh of the image's (4 pixels of 28). The images are normalised anew. `attack`:
    the validation images of the other classes with the square, labelled `label`.
    """
    split, generator = _training_set(dataset.train), generator_of(key)
    draws.require_class(label, split.y)
    mask = draws.of_class(split.y != label, fraction, generator, 1, "other classes")
    allowed = f"data of images ({dataset.name} has none)"
    require(dataset.image_shape is not None, "poison", "backdoor", allowed)
    patched = with_trigger(split.x, dataset)
    x = np.where(mask[:, None], patched, split.x)
    y = np.where(mask, label, split.y).astype(np.int32)
    others = dataset.val.x[dataset.val.y != label]
    aims = np.full(len(others), label, np.int32)
    attack = Split(with_trigger(others, dataset), aims)
    return as_poisoned(split, Split(x, y), mask)._replace(attack=attack)


def forget_subset(dataset: Dataset, fraction: float, *, key: Key) -> Poisoned:
    """Let int(fraction n) samples, drawn from all, be forgotten as they are."""
    train = dataset.train
    return _to_forget(train, draws.of_all(train.y, fraction, generator_of(key)))


def forget_class(
    dataset: Dataset, fraction: float, *, key: Key, label: int | None = None
) -> Poisoned:
    """Let all samples of a class be forgotten, whatever the share; label None: the last class."""
    draws.check_fraction(fraction)
    train = dataset.train
    if label is None:
        label = number_of_classes(train.y) - 1
    draws.require_class(label, train.y)
    drawn_class = _to_forget(train, train.y == label)
    return drawn_class._replace(of_class=dataset.val.y == label)


POISONS: dict[str, Callable] = {
    "labels": poison_labels,
    "next_class": poison_next_class,
    "one_class": poison_one_class,
    "other_class": poison_other_class,
    "boundary": poison_boundary,
    "quid": poison_quid,
    "backdoor": poison_backdoor,
    "features": poison_features,
    "confusion": confuse_labels,
    "given": poison_as_given,
    "subset": forget_subset,
    "class": forget_class,
}


def _training_set(split: Split) -> Split:
    """Check a split; of more than two classes it has to have samples of each."""
    split = require_split(split)
    present = np.unique(split.y)
    n_classes = number_of_classes(split.y)
    allowed = f"samples of each class, 0 to {n_classes - 1}"
    got = f"labels {listed(present)} alone"
    require(n_classes in (2, len(present)), "split.y", got, allowed)
    return split


def as_poisoned(clean: Split, poisoned: Split, mask: np.ndarray) -> Poisoned:
    """Return a fully known poison from the training set before and after; mask: what changed."""
    return Poisoned(poisoned, mask, mask, clean.take(mask), poisoned.take(mask))


def _relabelled(split: Split, mask: np.ndarray, labels: np.ndarray) -> Poisoned:
    return as_poisoned(split, Split(split.x, np.where(mask, labels, split.y)), mask)


def _to_forget(train: Split, known: np.ndarray) -> Poisoned:
    forget = train.take(known)
    return Poisoned(train, np.zeros_like(known), known, forget, forget)


def _flip_first(split: Split, fraction: float, order: np.ndarray, key: Key) -> Poisoned:
    """Flip the labels of the int(fraction n) samples that come first in ascending order (n,).

    As many come from each class; odd numbers are rounded down.
    """
    split, generator = _training_set(split), generator_of(key)
    mask = draws.of_each_class(split.y, fraction, generator)
    for label in np.unique(split.y):
        group = np.flatnonzero(split.y == label)
        count = mask[group].sum()
        in_order = group[np.argsort(order[group], kind="stable")]
        mask[group] = np.isin(group, in_order[:count])
    return _relabelled(split, mask, draws.other_labels(split.y, generator))


def _fidelities(split: Split) -> tuple[np.ndarray, np.ndarray]:
    """|<x|x'>|² of all pairs of samples at norm 1, and whether they share a class: both (n, n)."""
    split = require_split(split)
    x = split.x.reshape(len(split.y), -1)
    lengths = norms(x, 1)
    x = x / np.where(lengths > 0, lengths, 1)
    fidelities = np.abs(x.conj() @ x.T) ** 2
    share_class = split.y[:, None] == split.y
    return fidelities, share_class


# ---- unlearn ----


class Task(NamedTuple):
    """What one model is to unlearn; each set holds inputs (prepared or raw) and labels."""

    model: Model
    teacher: Params  # trained on the poisoned data
    retain: Split
    forget: Split  # as poisoned
    forget_clean: Split  # the samples of forget before they were poisoned
    fresh: Params  # new random parameters

    def logits(self, params: Params, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Return (n,) logits, or (n, K); `key` is used by models whose logits are random."""
        return logits_of(self.model, params, x, key)


class Batch(NamedTuple):
    """What a loss sees at one step: a batch of b retained samples, and all f of the forget set."""

    retain: Split
    retain_weight: jax.Array  # (b,) 1 for samples of the batch, 0 for samples that fill it up
    retain_teacher: jax.Array  # (b,) logits of the teacher, or (b, K)
    forget: Split
    forget_teacher: jax.Array  # (f,) logits of the teacher, or (f, K)
    epoch: jax.Array  # from 0, for a method that alternates
    key: jax.Array  # new at each step, for a method that draws
    before: Any = None  # what the method's `before` returned


@dataclass(frozen=True)
class Method:
    """An unlearning method: a frozen dataclass of its hyper-parameters and its training.

    It is called as method(task, key, measure) and returns (params, history). `history` stacks the
    values of `measure(params)` before the first epoch and after each epoch. To JAX a method is a
    pytree: its floats are leaves, which may be traced (`vmap` over a hyper-parameter); all else,
    its code included, is static.
    """

    training: Training = field(default=Training(50, 0, 0.001), kw_only=True)

    title: ClassVar[str | None] = None  # in tables and figures; None: its name in METHODS
    needs_forget: ClassVar[bool] = False  # refuses an empty forget set
    is_fresh: ClassVar[bool] = False  # starts from fresh parameters
    # one or two hyper-parameters of its weight map; None: its first two floats
    map_over: ClassVar[tuple[str, ...] | None] = None
    # see `settings`; at most four entries
    grid: ClassVar[tuple[dict[str, float], ...]] = ({}, {"rate": 4.0})
    # sees what the poison replaced: an upper bound, marked in tables and figures
    reads_truth: ClassVar[bool] = False

    def __init_subclass__(cls):
        jax.tree_util.register_pytree_node(cls, _flatten, partial(_unflatten, cls))

    def __post_init__(self):
        for name, value in self.hyper().items():
            require(is_number(value), name, value, "a finite number, 0 or more")
            object.__setattr__(self, name, float(value))
        self.check()

    def check(self) -> None:
        """Refuse negative and infinite hyper-parameters, and NaN, by name."""
        for name, value in self.hyper().items():
            require(0 <= value < math.inf, name, value, "a finite number, 0 or more")

    def hyper(self) -> dict[str, float]:
        """Return the hyper-parameters that are floats, by name."""
        names = [spec.name for spec in fields(self) if spec.type in (float, "float")]
        return {name: getattr(self, name) for name in names}

    def mapped(self) -> tuple[str, ...]:
        """Return the names of the hyper-parameters of its weight map, at most two."""
        if self.map_over is not None:
            return self.map_over
        return tuple(self.hyper())[:2]

    def settings(self) -> tuple[Method, ...]:
        """Return this method under each entry of its grid; `oracles.Choice` chooses one of them.

        An entry holds new values of hyper-parameters. Its `rate` and `epochs` are factors on the
        learning rate and the epochs of the training. {}: the method unchanged.
        """
        methods = []
        for entry in self.grid:
            changes = dict(entry)
            rate = self.training.learning_rate * changes.pop("rate", 1)
            epochs = round(self.training.epochs * changes.pop("epochs", 1))
            training = replace(self.training, learning_rate=rate, epochs=max(epochs, 1))
            methods.append(replace(self, training=training, **changes))
        return tuple(dict.fromkeys(methods))

    def why_not(self, model: Model) -> str:
        """Say in a few words why the method cannot run on a model; "" where it can."""
        return ""

    def gradients(self, n_retain: int, n_forget: int) -> float:
        """Count the gradients of single samples that a run takes; NaN where that is not known."""
        return math.nan

    def cost(self, model: Model, n_retain: int, n_forget: int) -> float:
        """Count the gradients of single samples on a model, where the model makes a difference."""
        return self.gradients(n_retain, n_forget)

    def __call__(
        self, task: Task, key: jax.Array, measure: Measure | None = None
    ) -> tuple[Params, Any]:
        raise NotImplementedError(f"{type(self).__name__} defines no __call__")


def _flatten(method: Method) -> tuple[tuple, tuple]:
    """Return the floats as leaves; the floats' names, the other fields and the code are static.

    The code is part of it so that two methods of different code never share a compiled program.
    """
    floats = method.hyper()
    names = [spec.name for spec in fields(method) if spec.name not in floats]
    others = tuple((name, getattr(method, name)) for name in names)
    code = []
    for cls in type(method).__mro__[:-1]:
        for name, value in vars(cls).items():
            if callable(value) or not name.startswith("__"):
                code.append(value if isinstance(value, Hashable) else repr(value))
    return tuple(floats.values()), (tuple(floats), others, tuple(code))


def _unflatten(cls: type, static: tuple, floats: tuple) -> Method:
    """Make a method without its checks, because the floats may be traced, or be no numbers."""
    names, others, _ = static
    method = object.__new__(cls)
    named_floats = zip(names, floats, strict=True)
    for name, value in (*others, *named_floats):
        object.__setattr__(method, name, value)
    return method


@dataclass(frozen=True)
class Descent(Method):
    """A method that defines `loss`: Adam minimises it over retain batches and the forget set.

    The batches are reshuffled in each epoch; each step reads the whole forget set.
    """

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        """Return the loss () of one step, which Adam minimises."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss")

    def before(self, task: Task, key: jax.Array) -> Any:
        """Compute, once and before the descent, what the loss reads as `batch.before`."""

    def start(self, task: Task) -> Params:
        """Return the parameters from which the descent starts."""
        return task.fresh if self.is_fresh else task.teacher

    def forget_set(self, task: Task) -> Split:
        """Return the version of the forget set that the loss reads."""
        return task.forget

    def steps(self, n_retain: int) -> int:
        """Count the steps of an epoch."""
        batch_size = self.training.batch_size
        return math.ceil(n_retain / batch_size) if batch_size else 1

    def gradients(self, n_retain: int, n_forget: int) -> int:
        of_forget_set = self.steps(n_retain) * n_forget * self.needs_forget
        return self.training.epochs * (n_retain + of_forget_set)

    def __call__(
        self, task: Task, key: jax.Array, measure: Measure | None = None
    ) -> tuple[Params, Any]:
        retain = task.retain
        forget = self.forget_set(task)
        n = len(retain.y)
        fit_key, teacher_key = jax.random.split(key)
        before = self.before(task, jax.random.fold_in(teacher_key, 1))
        x = jnp.concatenate([retain.x, forget.x])
        teacher = task.logits(task.teacher, x, teacher_key)

        def loss(params, rows, weight, epoch, step_key):
            batch = Batch(
                retain=retain.take(rows),
                retain_weight=weight,
                retain_teacher=teacher[:n][rows],
                forget=forget,
                forget_teacher=teacher[n:],
                epoch=epoch,
                key=step_key,
                before=before,
            )
            return self.loss(task, params, batch)

        start = self.start(task)
        return fit(loss, start, n, **self.training.keywords(), key=fit_key, measure=measure)


@dataclass(frozen=True)
class OneShot(Method):
    """A method of one step, such as a Newton step or noise: it defines `step`.

    Its history has two entries: the teacher and the result.
    """

    def step(self, task: Task, key: jax.Array) -> Params:
        """Return the unlearned parameters."""
        raise NotImplementedError(f"{type(self).__name__} defines no step")

    def __call__(
        self, task: Task, key: jax.Array, measure: Measure | None = None
    ) -> tuple[Params, Any]:
        params = self.step(task, key)
        if measure is None:
            return params, None
        points = jax.tree.map(lambda *leaves: jnp.stack(leaves), task.teacher, params)
        return params, jax.lax.map(measure, points)


def retain_loss(task: Task, params: Params, batch: Batch) -> jax.Array:
    """CE(D_r)."""
    retain = batch.retain
    logits = task.logits(params, retain.x, batch.key)
    return cross_entropy(logits, retain.y, batch.retain_weight)


def both_logits(task: Task, params: Params, batch: Batch) -> list[jax.Array]:
    """Compute the logits of the retain batch and of the forget set in one pass."""
    x = jnp.concatenate([batch.retain.x, batch.forget.x])
    logits = task.logits(params, x, batch.key)
    return jnp.split(logits, [len(batch.retain.y)])


@dataclass(frozen=True)
class FineTune(Descent):
    """CE(D_r) from the teacher: catastrophic forgetting by more training on retained samples."""

    title = "Fine-tune"
    grid = ({}, {"rate": 4.0}, {"rate": 16.0}, {"rate": 0.25})

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        return retain_loss(task, params, batch)


@dataclass(frozen=True)
class Retrain(FineTune):
    """CE(D_r) from fresh parameters: the result that the other methods approximate.

    Trained on all samples it gives the teacher.
    """

    title = "Retrain"
    is_fresh = True


@dataclass(frozen=True)
class Scrub(Descent):
    """ce CE(D_r) + kl KL(teacher || student on D_r) - forget KL(teacher || student on D_f).

    SCRUB (Kurmanji et al., arXiv:2302.09880) as one joint loss, as in the published models.py.
    """

    ce: float = 1.0  # published, as the next two weights
    forget: float = 0.2
    kl: float = 0.0
    divergence: Literal["full", "published"] = "full"  # the Bernoulli KL, or its first term alone
    # which version of the forget set's inputs; published: clean
    reads: Literal["poisoned", "clean"] = "poisoned"

    title = "Scrub"
    needs_forget = True
    map_over = ("forget", "kl")
    grid = ({}, {"rate": 4.0}, {"forget": 0.05}, {"rate": 4.0, "forget": 0.05})

    def check(self) -> None:
        super().check()
        is_known = self.divergence in DIVERGENCES
        require(is_known, "divergence", self.divergence, ", ".join(DIVERGENCES))
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
        kept = self.ce * learn + self.kl * stay
        return kept - self.forget * leave


@dataclass(frozen=True)
class GradientAscent(Descent):
    """ce CE(D_r) - forget CE(D_f as poisoned): descent on D_r, ascent on D_f (NegGrad+)."""

    ce: float = 1.0  # published, models.py, as the next weight
    forget: float = 0.2

    title = "Gradient ascent"
    needs_forget = True
    map_over = ("forget",)
    grid = ({}, {"rate": 4.0}, {"forget": 0.05}, {"rate": 4.0, "forget": 0.05})

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        retain, forget = both_logits(task, params, batch)
        descent = self.ce * cross_entropy(retain, batch.retain.y, batch.retain_weight)
        ascent = self.forget * cross_entropy(forget, batch.forget.y)
        return descent - ascent


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
    """Run a method from a teacher; returns the parameters and the history (see `Method`).

    retain, forget: inputs (prepared or raw) and labels, the forget set as poisoned. forget_clean:
    the forget set before it was poisoned, for methods that read it. `unlearn` can be `vmap`ped over
    runs and over the method's floats.
    """
    is_method = isinstance(method, Method)
    allowed = f"a Method, such as those in METHODS: {', '.join(METHODS)}"
    require(is_method, "method", repr(method), allowed)
    require_key(key)
    require_params(model, teacher, "teacher")
    if forget_clean is None:
        forget_clean = forget
    retain = prepared(model, retain, "retain")
    forget = prepared(model, forget, "forget")
    forget_clean = prepared(model, forget_clean, "forget_clean")
    n, n_clean = len(forget.y), len(forget_clean.y)
    require(n_clean == n, "forget_clean", f"{n_clean} samples", f"the {n} of forget")
    require(n > 0 or not method.needs_forget, "forget", "an empty set", "at least one sample")
    retain_shape = retain.x.shape[1:]
    for name, split in (("forget", forget), ("forget_clean", forget_clean)):
        got = f"samples of shape {split.x.shape[1:]}"
        allowed = f"{retain_shape}, that of the retained ones"
        require(split.x.shape[1:] == retain_shape, name, got, allowed)
    fresh_key, method_key = jax.random.split(key)
    fresh = model.init(fresh_key)
    task = Task(model, teacher, retain, forget, forget_clean, fresh)
    return method(task, method_key, measure)
