"""Further unlearning methods beside the published four; an import puts them into METHODS.

Written from the papers' formulas. All depart from the papers in two ways: no data augmentation, and
the whole forget set at every step. Two classes have one logit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import landscape
from datar import Split
from foundation.base.checks import require, require_whole
from foundation.measures.metrics import cross_entropy, kl_divergence
from models import Model, Params, n_classes_of, shapes_of, size_of
from poison_unlearn import (
    METHODS,
    Batch,
    Descent,
    FineTune,
    Measure,
    OneShot,
    Task,
    both_logits,
    retain_loss,
)

EXACT = 600  # parameters up to which a Hessian is computed whole


def hold(params: Params, moving: Params) -> Params:
    """Stop the gradient of parameters that are not moving, so that Adam leaves them alone."""

    def held(leaf: jax.Array, moves: jax.Array) -> jax.Array:
        return jnp.where(moves, leaf, jax.lax.stop_gradient(leaf))

    return jax.tree.map(held, params, moving)


# ---- by descent ----


@dataclass(frozen=True)
class Ascent(Descent):
    """-CE(D_f as poisoned) alone: gradient ascent without a retain term (arXiv:2406.01257).

    For few epochs: the grid takes a tenth and a 25th of the epochs of its training. An epoch has as
    many steps as an epoch over the retained samples.
    """

    title = "Ascent alone"
    needs_forget = True
    grid = (
        {"epochs": 0.1},
        {"epochs": 0.1, "rate": 0.25},
        {"epochs": 0.04},
        {"epochs": 0.04, "rate": 4.0},
    )

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        logits = task.logits(params, batch.forget.x, batch.key)
        return -cross_entropy(logits, batch.forget.y)

    def gradients(self, n_retain: int, n_forget: int) -> int:
        return self.training.epochs * self.steps(n_retain) * n_forget


@dataclass(frozen=True)
class LastLayers(FineTune):
    """CE(D_r) from the teacher in the last k layers alone, others held (CF-k, arXiv:2201.06640).

    The last layers of a circuit are next to the measurement. With all layers it is fine-tuning.
    """

    k: int = 1

    title = "CF-k"

    def check(self) -> None:
        """Refuse k below 1."""
        super().check()
        require_whole("k", self.k)

    def why_not(self, model: Model) -> str:
        """Name what the model lacks: layers, or others than the last k."""
        if not hasattr(model, "last_layers"):
            return "it has no layers"
        try:
            model.last_layers(shapes_of(model), self.k + 1)
        except ValueError:
            return "it has no other layers"
        return ""

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        last_layers = task.model.last_layers(params, self.k)
        return retain_loss(task, hold(params, last_layers), batch)


@dataclass(frozen=True)
class FreshLastLayers(LastLayers):
    """CE(D_r) in the last k layers alone, from fresh parameters there (EU-k, arXiv:2201.06640)."""

    title = "EU-k"

    def start(self, task: Task) -> Params:
        """Take the last k layers from fresh parameters."""
        last_layers = task.model.last_layers(task.teacher, self.k)
        return jax.tree.map(jnp.where, last_layers, task.fresh, task.teacher)


def softened_kl(teacher: jax.Array, student: jax.Array, temperature: float) -> jax.Array:
    """τ² KL(teacher || student) of each sample, of logits over τ; τ² keeps the gradient's size."""
    return temperature**2 * kl_divergence(teacher / temperature, student / temperature)


def other_labels(labels: jax.Array, n_classes: int, key: jax.Array) -> jax.Array:
    """Draw for each sample one of the labels that it does not have: (n,); of two, the other one."""
    if n_classes == 2:
        return 1 - labels
    return (labels + jax.random.randint(key, labels.shape, 1, n_classes)) % n_classes


def error_of(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of samples, of logits (n,) or (n, K), whose class is not the label."""
    if logits.ndim == 2:
        return jnp.mean(jnp.argmax(logits, axis=1) != labels)
    return jnp.mean((logits > 0) != (labels > 0))


@dataclass(frozen=True)
class ScrubAlternating(Descent):
    """SCRUB as published (arXiv:2302.09880): epochs that max KL(T || s on D_f) and min α KL(T || s
    on D_r) + γ CE(D_r).

    `ascents` epochs of the first kind alternate with the second kind; then the second kind alone.
    rewind: return the epoch whose error on D_f is nearest to the error of the last epoch on a
    held-out fifth of the retained samples. "flipped", for flipped labels: the held-out labels are
    flipped as well. "plain", for other poisons: they stay as they are. "none": return the last
    epoch. No true label is read. The paper's code runs over batches of the forget set. The defaults
    are those of the paper's large scale.
    """

    ascents: int = 2
    alpha: float = 0.001
    gamma: float = 0.99
    temperature: float = 4.0
    rewind: Literal["flipped", "plain", "none"] = "flipped"

    title = "SCRUB+R"
    needs_forget = True
    map_over = ("alpha", "gamma")
    small = {"alpha": 0.5, "gamma": 1.0, "temperature": 2.0}  # noqa: RUF012 - their small scale
    grid = ({}, {"rate": 4.0}, small, {"rate": 4.0, **small})

    def check(self) -> None:
        """Refuse values outside their ranges."""
        super().check()
        require_whole("ascents", self.ascents, 0)
        require(self.temperature > 0, "temperature", self.temperature, "a positive number")
        is_known = self.rewind in ("flipped", "plain", "none")
        require(is_known, "rewind", self.rewind, "flipped, plain, none")

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        def leave() -> jax.Array:
            forget = task.logits(params, batch.forget.x, batch.key)
            away = softened_kl(batch.forget_teacher, forget, self.temperature)
            return -jnp.mean(away)

        def stay() -> jax.Array:
            retain = task.logits(params, batch.retain.x, batch.key)
            kept = softened_kl(batch.retain_teacher, retain, self.temperature)
            learn = cross_entropy(retain, batch.retain.y, batch.retain_weight)
            near = jnp.average(kept, weights=batch.retain_weight)
            return self.alpha * near + self.gamma * learn

        alternates = batch.epoch < 2 * self.ascents
        is_even = batch.epoch % 2 == 0
        return jax.lax.cond(alternates & is_even, leave, stay)

    def _held_out(self, n_retain: int) -> int:
        return 0 if self.rewind == "none" else max(n_retain // 5, 1)

    def gradients(self, n_retain: int, n_forget: int) -> int:
        n = n_retain - self._held_out(n_retain)
        epochs = self.training.epochs
        ascents = min(self.ascents, (epochs + 1) // 2)
        of_ascents = ascents * self.steps(n) * n_forget
        return of_ascents + (epochs - ascents) * n

    def _split(self, task: Task, key: jax.Array) -> tuple[Task, Split]:
        """Hold out some of the retained samples, with flipped labels if rewind says so."""
        retain = task.retain
        order = jax.random.permutation(jax.random.fold_in(key, 2), len(retain.y))
        held, kept = jnp.split(order, [self._held_out(len(order))])
        labels = retain.y[held]
        x = retain.x[held]
        if self.rewind == "flipped":
            labels = other_labels(labels, n_classes_of(task.model), jax.random.fold_in(key, 3))
        rest = task._replace(retain=retain.take(kept))
        return rest, Split(x, labels)

    def __call__(
        self, task: Task, key: jax.Array, measure: Measure | None = None
    ) -> tuple[Params, Any]:
        if self.rewind == "none":
            return super().__call__(task, key, measure)
        rest, held_out = self._split(task, key)

        def errors(params: Params) -> tuple:
            def error(split: Split) -> jax.Array:
                logits = task.logits(params, split.x, key)
                return error_of(logits, split.y)

            measured = error(task.forget), error(held_out)
            return params, *measured, measure(params) if measure else None

        _, histories = super().__call__(rest, key, errors)
        of_params, of_forget_set, of_held_out, history = histories
        distances = jnp.abs(of_forget_set[1:] - of_held_out[-1])
        place = 1 + jnp.argmin(distances)  # not the teacher
        params = jax.tree.map(lambda leaves: leaves[place], of_params)
        if measure:  # its last entry is of the parameters that are returned

            def with_last(values: jax.Array) -> jax.Array:
                return values.at[-1].set(values[place])

            history = jax.tree.map(with_last, history)
        return params, history


@dataclass(frozen=True)
class SalUn(Descent):
    """CE(D_r) + CE(D_f, labels drawn uniformly), in the weights on which the forget set acts most.

    SalUn (arXiv:2310.12508): the `share` of the weights with the largest |grad CE(D_f)| at the
    teacher moves, among weights whose gradient is not 0. Labels are drawn anew at each step. Of
    more than two classes, as in the paper, a sample never gets the label that it has; of two, both
    are drawn alike, for the other one would be the true label. With share 1 it is random labelling.
    """

    share: float = 0.5

    title = "SalUn"
    needs_forget = True
    map_over = ("share",)
    grid = ({}, {"rate": 4.0}, {"rate": 16.0}, {"rate": 4.0, "share": 0.1})

    def check(self) -> None:
        """Refuse shares outside (0, 1]."""
        super().check()
        require(0 < self.share <= 1, "share", self.share, "a share above 0, at most 1")

    def before(self, task: Task, key: jax.Array) -> Params:
        """Mask of the weights that move."""

        def loss(params: Params) -> jax.Array:
            return cross_entropy(task.logits(params, task.forget.x, key), task.forget.y)

        gradient = jax.grad(loss)(task.teacher)
        size = jax.tree.map(jnp.abs, gradient)
        flat, _ = ravel_pytree(size)
        positive = jnp.where(flat > 0, flat, jnp.nan)
        least = jnp.nanquantile(positive, 1 - self.share)
        return jax.tree.map(lambda leaf: (leaf > 0) & (leaf >= least), size)

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        retain, forget = both_logits(task, hold(params, batch.before), batch)
        if forget.ndim == 2:
            labels = other_labels(batch.forget.y, forget.shape[1], batch.key)
        else:
            labels = jax.random.bernoulli(batch.key, 0.5, forget.shape).astype(forget.dtype)
        learn = cross_entropy(retain, batch.retain.y, batch.retain_weight)
        return learn + cross_entropy(forget, labels)


OF_MORE_CLASSES = ("random_labels", "boundary_shrink")


def why_not_two(model: Model) -> str:
    """Say why a model of two classes is not relabelled; "" for more."""
    return "of two classes the other label undoes a flip" if n_classes_of(model) == 2 else ""


@dataclass(frozen=True)
class RandomLabels(Descent):
    """CE(D_r) + CE(D_f, other labels), from the teacher (arXiv:2010.10981), of more than two
    classes.

    A sample's other label is drawn uniformly, anew at each step, from those that it does not have.
    """

    title = "Random labels"
    needs_forget = True
    grid = ({}, {"rate": 4.0}, {"rate": 16.0}, {"rate": 0.25})

    def why_not(self, model: Model) -> str:
        """Refuse models of two classes."""
        return why_not_two(model)

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        retain, forget = both_logits(task, params, batch)
        labels = other_labels(batch.forget.y, n_classes_of(task.model), batch.key)
        learn = cross_entropy(retain, batch.retain.y, batch.retain_weight)
        return learn + cross_entropy(forget, labels)


@dataclass(frozen=True)
class BoundaryShrink(Ascent):
    """CE(D_f, the nearest other class) alone, from the teacher (arXiv:2303.11570), of more than two
    classes.

    A sample is moved by `step` of its norm along the gradient of the teacher's cross-entropy, and
    gets its norm back; its nearest other class is the most probable one there that is not its
    label. The paper moves every pixel by the gradient's sign, which a complex amplitude lacks. No
    retained sample is read, and so it is for few epochs.
    """

    step: float = 0.2

    title = "Boundary shrink"
    map_over = ("step",)

    def check(self) -> None:
        """Refuse steps that are no positive number."""
        super().check()
        require(0 < self.step < math.inf, "step", self.step, "a positive number")

    def why_not(self, model: Model) -> str:
        """Refuse models of two classes."""
        return why_not_two(model)

    def before(self, task: Task, key: jax.Array) -> jax.Array:
        """Nearest other classes of the forget set, (f,)."""
        x, labels = task.forget

        def loss(x: jax.Array) -> jax.Array:
            return cross_entropy(task.logits(task.teacher, x, key), labels)

        def over(numbers: jax.Array, norm: jax.Array) -> jax.Array:
            return numbers / jnp.where(norm > 0, norm, 1)

        def norms(x: jax.Array) -> jax.Array:
            return jnp.linalg.norm(x, axis=1, keepdims=True)

        away = jnp.conj(jax.grad(loss)(x))
        moved = x + self.step * norms(x) * over(away, norms(away))
        logits = task.logits(task.teacher, norms(x) * over(moved, norms(moved)), key)
        is_label = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
        return jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=1)

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        logits = task.logits(params, batch.forget.x, batch.key)
        return cross_entropy(logits, batch.before)


@dataclass(frozen=True)
class BadTeacher(Descent):
    """KL_τ(teacher || s) on D_r and KL_τ(fresh || s) on D_f, mean over both (arXiv:2205.08096)."""

    temperature: float = 1.0

    title = "Bad teacher"
    map_over = ("temperature",)
    grid = ({}, {"rate": 4.0}, {"rate": 16.0}, {"rate": 0.25})

    def check(self) -> None:
        """Refuse temperatures that are not positive."""
        super().check()
        require(self.temperature > 0, "temperature", self.temperature, "a positive number")

    def before(self, task: Task, key: jax.Array) -> jax.Array:
        """Logits of the incompetent teacher on the forget set."""
        return task.logits(task.fresh, task.forget.x, key)

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        retain, forget = both_logits(task, params, batch)
        kept = softened_kl(batch.retain_teacher, retain, self.temperature) * batch.retain_weight
        left = softened_kl(batch.before, forget, self.temperature)
        total = kept.sum() + left.sum()
        return total / (batch.retain_weight.sum() + len(forget))

    def gradients(self, n_retain: int, n_forget: int) -> int:
        of_epoch = n_retain + self.steps(n_retain) * n_forget
        return self.training.epochs * of_epoch


@dataclass(frozen=True)
class Sparse(FineTune):
    """CE(D_r) + l1 |θ|₁ from the teacher: fine-tuning towards sparse weights (arXiv:2304.04934)."""

    l1: float = 5e-4

    title = "ℓ1-sparse"
    grid = ({}, {"rate": 4.0}, {"rate": 4.0, "l1": 5e-3}, {"rate": 16.0})

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        # jnp.sign is 0 at 0: a weight of 0 has no slope
        signs = jax.lax.stop_gradient(jax.tree.map(jnp.sign, params))
        norms = jax.tree.map(jnp.vdot, signs, params)
        size = sum(jax.tree.leaves(norms))
        return retain_loss(task, params, batch) + self.l1 * size


@dataclass(frozen=True)
class Repair(Descent):
    """Mean CE on D_r and on D_f as before the poison: an upper bound, for it reads the truth.

    With two classes, to relabel the forget set "to another class" is this method.
    """

    title = "Repair"
    needs_forget = True
    reads_truth = True
    grid = ({}, {"rate": 4.0}, {"rate": 16.0}, {"rate": 0.25})

    def forget_set(self, task: Task) -> Split:
        """Return the forget set as it was before the poison."""
        return task.forget_clean

    def loss(self, task: Task, params: Params, batch: Batch) -> jax.Array:
        x = jnp.concatenate([batch.retain.x, batch.forget.x])
        logits = task.logits(params, x, batch.key)
        weight_of_retained = batch.retain_weight
        ones = jnp.ones(len(batch.forget.y), weight_of_retained.dtype)
        weight = jnp.concatenate([weight_of_retained, ones])
        labels = jnp.concatenate([batch.retain.y, batch.forget.y])
        return cross_entropy(logits, labels, weight)


# ---- in one step ----


def squared_gradients(task: Task, split: Split, key: jax.Array) -> Params:
    """Diagonal empirical Fisher information of the teacher: mean squared gradient over samples."""

    def add(total: Params, sample: tuple) -> tuple[Params, None]:
        x, y = sample

        def loss(params: Params) -> jax.Array:
            return cross_entropy(task.logits(params, x[None], key), y[None])

        gradient = jax.grad(loss)(task.teacher)
        total = jax.tree.map(lambda sum_, slope: sum_ + slope**2, total, gradient)
        return total, None

    zeros = jax.tree.map(jnp.zeros_like, task.teacher)
    total, _ = jax.lax.scan(add, zeros, (split.x, split.y))
    return jax.tree.map(lambda leaf: leaf / len(split.y), total)


@dataclass(frozen=True)
class SelectiveDampening(OneShot):
    """θ_i <- min(λ F_D / F_f, 1) θ_i where F_f > α F_D; F: diagonal Fisher information of D_f, D.

    SSD (arXiv:2308.07707). D is all of the training set. Squared gradients are taken for each
    sample. An angle outside the light cone has F = 0 and stays. D holds D_f, so that F_f is at most
    n / n_f times F_D: where a third of the samples is to be forgotten, the paper's α of 10 changes
    nothing. The grid starts at 2.5.
    """

    alpha: float = 10.0
    dampening: float = 1.0

    title = "SSD"
    needs_forget = True
    grid = ({"alpha": 2.5}, {"alpha": 1.5}, {"alpha": 1.1}, {"alpha": 1.1, "dampening": 0.3})

    def check(self) -> None:
        """Refuse negative values; alpha may be infinite."""
        require(self.alpha >= 0, "alpha", self.alpha, "a number, 0 or more; inf changes nothing")
        is_usable = 0 <= self.dampening < math.inf
        require(is_usable, "dampening", self.dampening, "a finite number, 0 or more")

    def step(self, task: Task, key: jax.Array) -> Params:
        """Dampen the parameters on which the forget set acts most."""
        fisher_of_forget = squared_gradients(task, task.forget, key)
        fisher_of_retain = squared_gradients(task, task.retain, key)
        n_forget = len(task.forget.y)
        share = n_forget / (n_forget + len(task.retain.y))

        def dampened(theta: jax.Array, of_forget: jax.Array, of_retain: jax.Array) -> jax.Array:
            of_all = share * of_forget + (1 - share) * of_retain
            least = jnp.where(of_all > 0, self.alpha * of_all, 0)
            chosen = of_forget > least
            wanted = self.dampening * of_all
            ratio = wanted / jnp.where(of_forget > 0, of_forget, 1)
            factor = jnp.minimum(ratio, 1)
            return jnp.where(chosen, factor * theta, theta)

        return jax.tree.map(dampened, task.teacher, fisher_of_forget, fisher_of_retain)

    def gradients(self, n_retain: int, n_forget: int) -> int:
        return n_retain + n_forget


@dataclass(frozen=True)
class FisherNoise(OneShot):
    """θ + N(0, strength / F_r), with 1 / F_r at most `most`: noise where the retained samples feel
    it least.

    Fisher forgetting (arXiv:1911.04933, with the clamp of its code). Here F_r takes the labels of
    the samples, not the probabilities of the model, and each weight has a variance of its own, not
    averaged over rows. A parameter with F_r = 0 stays: an angle outside the light cone, a weight of
    a dead neuron.
    """

    strength: float = 1e-5
    most: float = 1e3

    title = "Fisher noise"
    grid = ({}, {"strength": 1e-4}, {"strength": 1e-3}, {"strength": 1e-2})

    def step(self, task: Task, key: jax.Array) -> Params:
        """Add noise to the teacher's parameters."""
        noise_key, key = jax.random.split(key)
        flat, unravel = ravel_pytree(task.teacher)
        fisher, _ = ravel_pytree(squared_gradients(task, task.retain, key))
        acts = fisher > 0
        inverse = 1 / jnp.where(acts, fisher, 1)
        variance = self.strength * jnp.minimum(inverse, self.most)
        normal = jax.random.normal(noise_key, flat.shape, flat.dtype)
        noise = jnp.where(acts, jnp.sqrt(variance) * normal, 0)
        return unravel(flat + noise)

    def gradients(self, n_retain: int, n_forget: int) -> int:
        return n_retain


DAMPINGS = tuple(10.0**power for power in range(-6, 2))  # in units of the largest eigenvalue


@dataclass(frozen=True)
class Newton(OneShot):
    """One damped Newton step on CE(D_r) from the teacher: θ - (H + μ λ_max)^-1 grad CE(D_r).

    Up to EXACT parameters H is the exact Hessian, its eigenvalues by their absolute value. Above, H
    is Gauss-Newton's matrix, solved as n × n in place of p × p: with J (n, p) the gradients of the
    logits, W = p (1 - p) and r = p - y, (J'WJ/n + μ)^-1 J'r/n = J' (μ + W JJ'/n)^-1 r/n. The
    damping μ is the one of DAMPINGS with the least CE(D_r); the teacher stays where none lowers it.
    """

    title = "Newton"
    grid = ({},)

    def why_not(self, model: Model) -> str:
        """Refuse models whose logits are drawn, and large ones of more than two classes."""
        if getattr(model, "is_random", False):
            return "its logits are drawn"
        is_large = size_of(shapes_of(model)) > EXACT
        if is_large and n_classes_of(model) > 2:
            return f"it has more than two classes and more than {EXACT} parameters"
        return ""

    def step(self, task: Task, key: jax.Array) -> Params:
        """Take the best of the damped steps, or none."""
        flat, unravel = ravel_pytree(task.teacher)
        retain = task.retain

        def loss(flat: jax.Array) -> jax.Array:
            return cross_entropy(logits(flat), retain.y)

        def logits(flat: jax.Array) -> jax.Array:
            return task.logits(unravel(flat), retain.x, key)

        steps = newton_steps(task.model, task.teacher, retain, logits, exact=EXACT)
        losses = jax.lax.map(lambda step: loss(flat - step), steps)
        finite_losses = jnp.where(jnp.isfinite(losses), losses, jnp.inf)
        best = jnp.argmin(finite_losses)
        is_better = jnp.nanmin(losses) < loss(flat)
        return unravel(jnp.where(is_better, flat - steps[best], flat))

    def cost(self, model: Model, n_retain: int, n_forget: int) -> int:
        """Gradients of the loss and of the logits; with the exact Hessian a product a parameter."""
        size = size_of(shapes_of(model))
        products = size if size <= EXACT else 0
        return n_retain * (2 + products)


def newton_steps(
    model: Model,
    params: Params,
    split: Split,
    logits: Callable[[jax.Array], jax.Array],
    *,
    exact: int,
) -> jax.Array:
    """Newton steps (H + μ λ_max)^-1 grad CE, one for each damping: (len(DAMPINGS), p).

    Of more than two classes H is the exact Hessian, whatever its size.

    logits: flat parameters -> logits of the split. exact: H is the Hessian up to this number of
    parameters; above, Gauss-Newton's matrix, by the kernel JJ'.
    """
    flat, _ = ravel_pytree(params)
    n = len(split.y)
    if n_classes_of(model) > 2:
        gradient = jax.grad(lambda flat: cross_entropy(logits(flat), split.y))(flat)
        return damped_steps(landscape.hessian(model, params, split), gradient)
    p = jax.nn.sigmoid(logits(flat))
    residual = p - split.y
    gradient = jax.vjp(logits, flat)[1](residual / n)[0]
    if flat.size <= exact:
        return damped_steps(landscape.hessian(model, params, split), gradient)
    jacobian, root, values, vectors = landscape.gauss_newton(logits, flat, p)
    coordinates = vectors.T @ (residual / root / n)

    def step(damping: float) -> jax.Array:
        damped = jnp.maximum(values, 0) + damping * values[-1]
        solution = vectors @ (coordinates / damped)
        return jacobian.T @ (root * solution)

    return jnp.stack([step(damping) for damping in DAMPINGS])


def damped_steps(hessian: jax.Array, gradient: jax.Array) -> jax.Array:
    """Steps (|H| + μ λ_max)^-1 g, one for each damping: (len(DAMPINGS), p).

    λ_max: the largest |eigenvalue|. A step is 0 along eigenvectors whose eigenvalue is 0 to
    rounding, and for parameters whose row of H is 0 to rounding: angles outside the light cone.
    """
    values, vectors = jnp.linalg.eigh(hessian)
    size = jnp.abs(values)
    largest_of_rows = jnp.abs(hessian).max(axis=1)
    is_no_zero = size > 1e-6 * size.max()
    coordinates = jnp.where(is_no_zero, vectors.T @ gradient, 0)
    acts = largest_of_rows > 1e-6 * largest_of_rows.max()

    def step(damping: float) -> jax.Array:
        damped = size + damping * size.max()
        return acts * (vectors @ (coordinates / damped))

    return jnp.stack([step(damping) for damping in DAMPINGS])


METHODS.update(
    ascent=Ascent(),
    cf_k=LastLayers(),
    eu_k=FreshLastLayers(),
    scrub_alternating=ScrubAlternating(),
    salun=SalUn(),
    bad_teacher=BadTeacher(),
    ssd=SelectiveDampening(),
    fisher_noise=FisherNoise(),
    newton=Newton(),
    l1_sparse=Sparse(),
    repair=Repair(),
    random_labels=RandomLabels(),
    boundary_shrink=BoundaryShrink(),
)
