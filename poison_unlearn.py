"""Poison training data, and unlearn the poison: four methods, each one small loss, and the loop they share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from datar import Split, require, require_split, require_whole
from metrics import bernoulli_kl, bernoulli_kl_published, cross_entropy
from models import Model, Params, fit

# ---- poison ----


class Poisoned(NamedTuple):
    """A poisoned training set.

    split: all n samples, poisoned ones among them. mask: (n,) True where poisoned. forget_clean and
    forget_poisoned: the same samples before and after; for labels they differ in y, for features in x.
    """

    split: Split
    mask: np.ndarray
    forget_clean: Split
    forget_poisoned: Split

    @property
    def retain(self) -> Split:
        """The samples that were left alone."""
        return Split(self.split.x[~self.mask], self.split.y[~self.mask])


def flip_labels(split: Split, fraction: float, *, key: jax.Array, balanced: bool = True) -> Poisoned:
    """Flip the labels of int(fraction n) samples, half from each class; an odd number is rounded down.

    balanced=False draws them from all samples alike, as the published Hessian analysis does.
    Published: datar.py, `flip_labels` (its halves of the sorted training set are the classes).
    """
    generator = _generator(key)
    rows = _draw_balanced(split, fraction, generator, round_up=False) if balanced else _draw(split, fraction, generator)
    y = split.y.copy()
    y[rows] = 1 - y[rows]
    return _poisoned(split, Split(split.x, y), rows)


def randomize_features(split: Split, fraction: float, *, key: jax.Array, n_features: int | None = None) -> Poisoned:
    """Replace int(fraction n) samples by normalised Gaussian vectors, half from each class, odd rounded up.

    n_features: length before padding (784 pixels); the padding stays 0. None takes the whole length. The
    noise is complex where the samples have imaginary parts and real where they have none.
    Published: datar.py, `data_poison(..., ordered=False)`.
    """
    generator = _generator(key)
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


def relabel_randomly(split: Split, fraction: float, *, key: jax.Array) -> Poisoned:
    """Draw new labels at random for int(fraction n) samples of any class ("interclass confusion").

    About half of them keep the label they had. Published: datar.py, `interclass_confusion`.
    """
    generator = _generator(key)
    rows = _draw(split, fraction, generator)
    y = split.y.copy()
    y[rows] = generator.integers(0, 2, len(rows))
    return _poisoned(split, Split(split.x, y), rows)


POISONS = {"labels": flip_labels, "features": randomize_features, "confusion": relabel_randomly}


def _draw(split: Split, fraction: float, generator: np.random.Generator) -> np.ndarray:
    require_split(split)
    _check_fraction(fraction)
    return np.sort(generator.choice(len(split.y), _count(fraction, len(split.y)), replace=False))


def _draw_balanced(split: Split, fraction: float, generator: np.random.Generator, *, round_up: bool) -> np.ndarray:
    require_split(split)
    _check_fraction(fraction)
    per_class = (_count(fraction, len(split.y)) + round_up) // 2
    classes = [np.flatnonzero(split.y == label) for label in (0, 1)]
    smallest = min(map(len, classes))
    require(per_class <= smallest, "fraction", fraction, f"at most {smallest} samples of each class to poison")
    rows = [generator.choice(members, per_class, replace=False) for members in classes]
    return np.sort(np.concatenate(rows))


def _check_fraction(fraction: float) -> None:
    require(0 <= fraction < 1, "fraction", fraction, "0 <= fraction < 1")


def _count(fraction: float, n: int) -> int:
    return int(fraction * n + 1e-9)  # 0.29 * 100 is 28.999999999999996


def _generator(key: jax.Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _poisoned(clean: Split, poisoned: Split, rows: np.ndarray) -> Poisoned:
    mask = np.zeros(len(clean.y), bool)
    mask[rows] = True
    return Poisoned(poisoned, mask, Split(clean.x[mask], clean.y[mask]), Split(poisoned.x[mask], poisoned.y[mask]))


# ---- unlearn ----

DIVERGENCES = {"full": bernoulli_kl, "published": bernoulli_kl_published}


@partial(jax.tree_util.register_dataclass, data_fields=("ce", "forget", "kl"), meta_fields=("divergence",))
@dataclass(frozen=True)
class Weights:
    """Weights of the terms of an unlearning loss, and which divergence its KL terms are.

    Published values: ce 1, forget 0.2, kl 0. The weights may be traced (a weight map `vmap`s over them);
    `divergence` is a name in DIVERGENCES.
    """

    ce: Any = 1.0
    forget: Any = 0.2
    kl: Any = 0.0
    divergence: Literal["full", "published"] = "full"

    def __post_init__(self):
        require(self.divergence in DIVERGENCES, "divergence", self.divergence, ", ".join(DIVERGENCES))


class Batch(NamedTuple):
    """What a loss sees at one step: a batch of the retain set, and the whole forget set.

    retain_weight is 1 for samples of the batch and 0 for those that fill it up; retain_teacher (b,) and
    forget_teacher (f,) are the teacher's logits. epoch counts from 0, for a method that alternates.
    """

    retain: Split
    retain_weight: jax.Array
    retain_teacher: jax.Array
    forget: Split
    forget_teacher: jax.Array
    epoch: jax.Array


def retain_loss(logits_fn, params: Params, batch: Batch, weights: Weights) -> jax.Array:
    """CE(D_r)."""
    return cross_entropy(logits_fn(params, batch.retain.x), batch.retain.y, batch.retain_weight)


def fine_tune_loss(logits_fn, params: Params, batch: Batch, weights: Weights) -> jax.Array:
    """ce CE(D_r): catastrophic forgetting by continued training on what is retained."""
    return weights.ce * retain_loss(logits_fn, params, batch, weights)


def scrub_loss(logits_fn, params: Params, batch: Batch, weights: Weights) -> jax.Array:
    """ce CE(D_r) + kl KL(teacher || student on D_r) - forget KL(teacher || student on D_f).

    SCRUB (Kurmanji et al., arXiv:2302.09880) as one joint loss, the form of the published models.py.
    """
    divergence = DIVERGENCES[weights.divergence]
    retain, forget = both_logits(logits_fn, params, batch)
    stay = jnp.average(divergence(batch.retain_teacher, retain), weights=batch.retain_weight)
    leave = jnp.mean(divergence(batch.forget_teacher, forget))
    learn = cross_entropy(retain, batch.retain.y, batch.retain_weight)
    return weights.ce * learn + weights.kl * stay - weights.forget * leave


def gradient_ascent_loss(logits_fn, params: Params, batch: Batch, weights: Weights) -> jax.Array:
    """ce CE(D_r) - forget CE(D_f as poisoned): ascent on the forget set beside descent on the rest (NegGrad+)."""
    retain, forget = both_logits(logits_fn, params, batch)
    descend = cross_entropy(retain, batch.retain.y, batch.retain_weight)
    return weights.ce * descend - weights.forget * cross_entropy(forget, batch.forget.y)


def both_logits(logits_fn, params: Params, batch: Batch) -> list[jax.Array]:
    """Logits of the retain batch and of the forget set, from one pass."""
    logits = logits_fn(params, jnp.concatenate([batch.retain.x, batch.forget.x]))
    return jnp.split(logits, [len(batch.retain.y)])


def from_fresh(model: Model, teacher: Params, data: Batch, key: jax.Array) -> Params:
    """Start from new random parameters."""
    return model.init(key)


def from_teacher(model: Model, teacher: Params, data: Batch, key: jax.Array) -> Params:
    """Start from the model that was trained on the poisoned data."""
    return teacher


@dataclass(frozen=True)
class Method:
    """An unlearning method: the loss that Adam descends, and where it starts.

    loss(logits_fn, params, batch, weights) -> scalar. start(model, teacher, data, key) -> params, with all of
    the data as one Batch: a one-shot method (a Newton step, Fisher noise) does its work here and has a loss
    that is constant. A method that trains some layers only stops the gradient at the others, and one that
    alternates between two losses picks by `batch.epoch`. needs_forget: refuse to run without a forget set.
    """

    loss: Callable[[Callable, Params, Batch, Weights], jax.Array]
    start: Callable[[Model, Params, Batch, jax.Array], Params] = from_teacher
    needs_forget: bool = False


METHODS = {
    "retrain": Method(retain_loss, from_fresh),
    "cf": Method(fine_tune_loss),
    "scrub": Method(scrub_loss, needs_forget=True),
    "ga": Method(gradient_ascent_loss, needs_forget=True),
}


def unlearn(
    method: Method,
    model: Model,
    teacher: Params,
    retain: Split,
    forget: Split,
    *,
    weights: Weights,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    key: jax.Array,
    measure: Callable[[Params], Any] | None = None,
) -> tuple[Params, Any]:
    """Run one method: Adam on its loss, retain batches reshuffled each epoch, the forget set whole at each step.

    retain, forget: inputs (prepared or raw) and labels as the method is to see them: the forget set with its
    poisoned labels, or its poisoned features. batch_size: most retain samples per step, 0 for all. Returns the
    parameters and the history of `measure` as `models.fit` does. It can be `vmap`ped over runs and weights;
    check those with `check_weights` first.
    """
    require(len(forget.y) > 0 or not method.needs_forget, "forget", "an empty set", "at least one sample")
    for name, split in (("retain", retain), ("forget", forget)):
        x, y = jnp.shape(split.x), jnp.shape(split.y)
        matching = x[:1] == y and x[1:] == jnp.shape(retain.x)[1:]
        require(matching, name, f"x {x} and y {y}", "as many labels as samples, and samples of one length")
    start_key, fit_key = jax.random.split(key)
    retain, forget = jax.tree.map(jnp.asarray, (retain, forget))
    teacher_logits = model.logits(teacher, jnp.concatenate([retain.x, forget.x]))
    retain_teacher, forget_teacher = jnp.split(teacher_logits, [len(retain.y)])

    def batch(rows, weight, epoch):
        chosen = Split(retain.x[rows], retain.y[rows])
        return Batch(chosen, weight, retain_teacher[rows], forget, forget_teacher, epoch)

    def loss(params, rows, weight, epoch):
        return method.loss(model.logits, params, batch(rows, weight, epoch), weights)

    everything = batch(jnp.arange(len(retain.y)), jnp.ones(len(retain.y)), jnp.int32(0))
    params = method.start(model, teacher, everything, start_key)
    return fit(
        loss, params, len(retain.y),
        epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, key=fit_key, measure=measure,
    )  # fmt: skip


def check_weights(**weights: float) -> None:
    """Refuse a negative or non-finite weight: one ValueError that names it."""
    for name, value in weights.items():
        require(0 <= value < np.inf, name, value, "a finite number, 0 or more")
