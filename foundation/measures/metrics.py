"""Metrics of models: pure functions of logits and labels, and statistics over runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from foundation.base.checks import as_array, as_numbers, listed, require

# ---- functions of logits and labels: JAX, in the precision of the logits ----


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """Mean cross-entropy in nats, from logits, not clipped.

    Of two classes, logits: (n,), labels: (n,) of 0 and 1, or one label for all samples. Of K
    classes, logits: (n, K), labels: (n,) of 0 to K - 1. weight: (n,) weights of the mean, None for
    equal weights.
    """
    if jnp.ndim(logits) == 2:
        return jnp.average(log_losses(logits, labels), weights=weight)
    logits, labels, dtype = _checked(logits, labels)
    logits = jnp.asarray(logits, dtype)
    labels = jnp.asarray(labels, dtype)
    if weight is not None:
        weight = jnp.asarray(weight, dtype)
    entropies = jax.nn.softplus(logits) - labels * logits  # (n,)
    return jnp.average(entropies, weights=weight)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of samples whose class is the label; NaN where a logit is NaN.

    Of two classes, logits (n,), the class is 1 where the logit is positive, else 0. Of K classes,
    logits (n, K), it is that of the largest logit, the first of equal ones.
    """
    if jnp.ndim(logits) == 2:
        return jnp.mean(hits(logits, labels))
    logits, labels, dtype = _checked(logits, labels)
    if not isinstance(labels, jax.core.Tracer):
        are_hard = bool(np.isin(labels, (0, 1)).all())
        require(
            are_hard,
            "labels",
            f"labels such as {listed(labels)}",
            "0 and 1, where accuracy is asked for",
        )
    correct = jnp.asarray((logits > 0) == (labels > 0), dtype)
    is_nan = jnp.isnan(logits)
    return jnp.mean(jnp.where(is_nan, jnp.nan, correct))


def _checked(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jnp.dtype]:
    """Logits and labels as arrays, and the dtype of results. BadInput where they do not fit.

    Without the check of shapes, (n, 1) logits against (n,) labels would give a wrong number.
    """
    if not isinstance(logits, jax.Array):
        logits = as_array(logits, "logits")  # NaN is allowed: a training may have diverged
        require(logits.dtype.kind in "biuf", "logits", f"dtype {logits.dtype}", "real numbers")
    if not isinstance(labels, jax.core.Tracer):
        labels = as_numbers(labels, "labels")
        if np.iscomplexobj(labels):
            outside = labels
        else:
            is_inside = (labels >= 0) & (labels <= 1)
            outside = labels[~is_inside]
        require(
            not outside.size, "labels", f"labels such as {listed(outside)}", "0 and 1, or between"
        )
    labels_shape = jnp.shape(labels)
    logits_shape = jnp.shape(logits)
    fits = not labels_shape or logits_shape == labels_shape
    require(fits, "labels", f"shape {labels_shape}", f"that of the logits, {logits_shape}")
    return logits, labels, jnp.result_type(logits, 1.0)


def log_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy of each sample in nats, from logits (n, K) and labels (n,) of 0 to K - 1."""
    logits, labels = _checked_classes(logits, labels)
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return jax.nn.logsumexp(logits, axis=1) - of_label


def hits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """1 where the largest of K logits is the label's, else 0; NaN where a logit is NaN: (n,).

    logits: (n, K). labels: (n,) of 0 to K - 1.
    """
    logits, labels = _checked_classes(logits, labels)
    correct = (jnp.argmax(logits, axis=1) == labels).astype(logits.dtype)
    return jnp.where(jnp.isnan(logits).any(axis=1), jnp.nan, correct)


def _checked_classes(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits (n, K), in at least JAX's present precision, and whole labels (n,) of 0 to K - 1."""
    if not isinstance(logits, jax.Array):
        logits = as_array(logits, "logits")  # NaN is allowed: a training may have diverged
        require(logits.dtype.kind in "biuf", "logits", f"dtype {logits.dtype}", "real numbers")
    n, n_classes = jnp.shape(logits)
    require(n_classes > 1, "logits", f"shape {(n, n_classes)}", "(n,), or (n, K) of K classes")
    shape = jnp.shape(labels)
    require(shape == (n,), "labels", f"shape {shape}", f"({n},), one for each of the logits' rows")
    if isinstance(labels, jax.core.Tracer):
        is_whole = jnp.issubdtype(labels.dtype, jnp.integer)
        require(is_whole, "labels", f"{labels.dtype}", "whole numbers, of more than two classes")
    else:
        labels = as_numbers(labels, "labels")
        outside = labels[~np.isin(labels, range(n_classes))]
        allowed = f"0 to {n_classes - 1}, the numbers of the classes"
        require(not outside.size, "labels", f"labels such as {listed(outside)}", allowed)
    dtype = jnp.result_type(logits, 1.0)
    return jnp.asarray(logits, dtype), jnp.asarray(labels, jnp.int32)


def margins(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The logit of the label's probability, log p / (1 - p): positive where p is more than half.

    It is the label's logit minus the logsumexp of the others; of logits (0, z) it is z for class 1
    and -z for class 0. logits: (..., n, K). labels: (n,) or (..., n), of 0 to K - 1. Returns (...,
    n).
    """
    logits = as_array(logits, "logits").astype(float)
    labels = as_array(labels, "labels")
    fits = labels.shape in (logits.shape[-2:-1], logits.shape[:-1])
    allowed = f"one for each row of the logits, {logits.shape[-2:]}"
    require(logits.ndim > 1 and fits, "labels", f"shape {labels.shape}", allowed)
    is_label = labels[..., None] == np.arange(logits.shape[-1])
    of_label = np.where(is_label, logits, 0).sum(axis=-1)
    others = np.where(is_label, -np.inf, logits)
    most = others.max(axis=-1, keepdims=True)
    total = np.exp(others - most).sum(axis=-1)
    return of_label - np.log(total) - most[..., 0]


def kl_divergence(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """KL(teacher || student) of each sample, from logits (n,) of two classes or (n, K): (n,)."""
    if jnp.ndim(teacher) == 1:
        return bernoulli_kl(teacher, student)
    log_p = jax.nn.log_softmax(teacher, axis=1)
    log_q = jax.nn.log_softmax(student, axis=1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=1)


def bernoulli_kl(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """KL(teacher || student) of each sample, from logits (n,): (n,) in nats.

    KL = p log(p/q) + (1-p) log((1-p)/(1-q)), with p the teacher's and q the student's probability.
    """
    of_class_1 = bernoulli_kl_published(teacher, student)
    of_class_0 = bernoulli_kl_published(-teacher, -student)
    return of_class_1 + of_class_0


def bernoulli_kl_published(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """The first term of the KL divergence alone, p log(p/q), from logits (n,).

    The published models.py computes it as `kl_divergence`. It is no divergence: as q rises to 1, it
    falls below 0 for every p < 1. There is none of more than two classes.
    """
    allowed = "full, of more than two classes (--hyper scrub.divergence=full)"
    require(jnp.ndim(teacher) < 2, "divergence", "published", allowed)
    p = jax.nn.sigmoid(teacher)
    log_ratio = jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student)
    return p * log_ratio


# ---- statistics over runs: NumPy, on finished results ----

RESAMPLES = 9999
Statistic = Callable[..., np.ndarray]  # of an array along `axis`, as np.mean and np.median are


def bootstrap_interval(
    values: np.ndarray, statistic: Statistic = np.mean, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of (n,) values.

    Not BCa: its acceleration cannot be estimated from five runs. With five runs the percentile
    interval is too narrow as well (95 % intervals cover about 83 %). Equal values give an interval
    of width 0. NaN values, from runs that diverged, are left out; fewer than two other values give
    NaN bounds.
    """
    return _over_runs(statistic, values, level=level, seed=seed)[1:]


def ratio_interval(
    noisy: np.ndarray,
    clean: np.ndarray,
    statistic: Statistic = np.median,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """statistic(noisy) / statistic(clean) of (n,) values, and its percentile bootstrap interval.

    Run r has the same images in both. The default is the median: traces are heavy-tailed, so that
    the largest of five runs dominates their mean. Runs with a NaN on either side are left out;
    fewer than two other runs give NaN bounds.
    """

    def ratio(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
        return statistic(a, axis=axis) / statistic(b, axis=axis)

    return _over_runs(ratio, noisy, clean, level=level, seed=seed)


def spread(final_accuracy: np.ndarray) -> tuple[float, float, float]:
    """Stability across runs: the standard deviation, and the bounds of its 95 % bootstrap interval.

    All three are NaN for fewer than two finite values.
    """
    n_finite = np.isfinite(final_accuracy).sum()
    if n_finite > 1:
        return _over_runs(partial(np.std, ddof=1), final_accuracy)
    return np.nan, np.nan, np.nan


def _over_runs(
    estimate: Statistic, *columns: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """estimate(*columns) of columns (n,) by run, and its percentile bootstrap interval.

    All values of a run are resampled together.
    """
    require(0 < level < 1, "level", level, "a share between 0 and 1, such as 0.95")
    columns = [np.asarray(as_array(column, "values"), float) for column in columns]
    shapes = {column.shape for column in columns}
    require(
        len(shapes) == 1 and columns[0].ndim == 1,
        "values",
        f"shapes {listed(list(map(str, shapes)))}",
        "(n,) values by run, as many of each",
    )
    runs = np.stack(columns)
    runs = runs[:, np.isfinite(runs).all(axis=0)]
    n = runs.shape[1]
    value = np.nan
    if n:
        value = float(estimate(*runs, axis=-1))
    if n < 2:
        return value, np.nan, np.nan
    resampled_runs = runs[:, _draws(n, seed)]  # (columns, RESAMPLES, n)
    estimates = estimate(*resampled_runs, axis=-1)
    percentages = [50 * (1 - level), 50 * (1 + level)]
    low, high = np.percentile(estimates, percentages)
    return value, float(low), float(high)


@lru_cache(maxsize=8)
def _draws(n: int, seed: int) -> np.ndarray:
    """(RESAMPLES, n) numbers of runs, drawn with replacement."""
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def largest_drop(curve: np.ndarray) -> np.ndarray:
    """Stability within a run: the largest fall of a curve (..., epochs + 1) below its running best.

    Returns (...).
    """
    curve = np.asarray(as_array(curve, "curve"), float)
    require(
        curve.ndim > 0 and curve.shape[-1] > 0,
        "curve",
        f"shape {curve.shape}",
        "(..., epochs + 1) values",
    )
    running_best = np.maximum.accumulate(curve, axis=-1)
    return (running_best - curve).max(axis=-1)


def share_near(
    accuracy_map: np.ndarray,
    reference: float,
    *,
    tolerance: float = 0.05,
    diverged: np.ndarray | None = None,
) -> float:
    """Stability over the weights: the share of the map's cells within `tolerance` of the reference.

    NaN cells (weights that were not tried) do not count. Cells that are True in `diverged` count as
    tried and not near.
    """
    cells = np.asarray(accuracy_map, float)
    lost = np.zeros(cells.shape, bool)
    if diverged is not None:
        lost = np.asarray(diverged, bool)
    is_close = np.abs(cells - reference) <= tolerance
    near = is_close & ~lost
    tried = np.isfinite(cells) | lost
    if not tried.any():
        return float("nan")
    return float(near.sum() / tried.sum())
