"""What is measured of a model: pure functions of logits and labels, and statistics over runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from foundation.base.checks import as_array, as_numbers, listed, require

# ---- of logits and labels: JAX, in the precision of the logits ----


def cross_entropy(
    logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None
) -> jax.Array:
    """Mean binary cross-entropy in nats, from logits, not clipped.

    logits: (n,). labels: (n,) of 0 and 1, or one for all. weight: (n,) weights of the mean, None
    for equal ones.
    """
    logits, labels, dtype = _checked(logits, labels)
    logits, labels = jnp.asarray(logits, dtype), jnp.asarray(labels, dtype)
    weight = None if weight is None else jnp.asarray(weight, dtype)
    return jnp.average(jax.nn.softplus(logits) - labels * logits, weights=weight)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of samples whose class (1 where the logit is positive) is the label; NaN where a logit
    is NaN."""
    logits, labels, dtype = _checked(logits, labels)
    if not isinstance(labels, jax.core.Tracer):
        hard = bool(np.isin(labels, (0, 1)).all())
        require(
            hard,
            "labels",
            f"labels such as {listed(labels)}",
            "0 and 1, where accuracy is asked for",
        )
    right = jnp.asarray((logits > 0) == (labels > 0), dtype)
    return jnp.mean(jnp.where(jnp.isnan(logits), jnp.nan, right))


def _checked(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array, jnp.dtype]:
    """Both as arrays, and the type of the logits; (n, 1) logits against (n,) labels would give a
    wrong number."""
    if not isinstance(logits, jax.Array):
        logits = as_array(logits, "logits")  # NaN among them: of a training that diverged
        require(logits.dtype.kind in "biuf", "logits", f"dtype {logits.dtype}", "real numbers")
    if not isinstance(labels, jax.core.Tracer):
        labels = as_numbers(labels, "labels")
        outside = (
            labels[~((labels >= 0) & (labels <= 1))] if not np.iscomplexobj(labels) else labels
        )
        require(
            not outside.size, "labels", f"labels such as {listed(outside)}", "0 and 1, or between"
        )
    fits = not jnp.ndim(labels) or jnp.shape(logits) == jnp.shape(labels)
    require(
        fits, "labels", f"shape {jnp.shape(labels)}", f"that of the logits, {jnp.shape(logits)}"
    )
    return logits, labels, jnp.result_type(logits, 1.0)


def bernoulli_kl(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """KL(teacher || student) of each sample in nats, p log(p/q) + (1-p) log((1-p)/(1-q)), from
    logits (n,)."""
    return bernoulli_kl_published(teacher, student) + bernoulli_kl_published(-teacher, -student)


def bernoulli_kl_published(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """The first term alone, p log(p/q): what `kl_divergence` of the published models.py computes.

    It is no divergence: it falls without bound as q rises to 1, whatever p is.
    """
    return jax.nn.sigmoid(teacher) * (jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student))


# ---- over runs: NumPy, on finished results ----

RESAMPLES = 9999
Statistic = Callable[..., np.ndarray]  # of an array along `axis`, as np.mean and np.median are


def bootstrap_interval(
    values: np.ndarray, statistic: Statistic = np.mean, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of (n,) values.

    Percentile and not BCa, whose acceleration cannot be estimated from five runs; with five runs
    even this one is too narrow (its 95 % holds about 83 %). Equal values give the interval of width
    0 that they are. NaN values, runs that diverged, are left out; NaN bounds for fewer than two
    others.
    """
    return _over_runs(statistic, values, level=level, seed=seed)[1:]


def paired_interval(
    left: np.ndarray,
    right: np.ndarray,
    statistic: Statistic = np.mean,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """statistic(left - right) of (n,) values by run, and its percentile bootstrap interval.

    Run r of both has the same poison: what that does to both cancels, which two separate intervals
    would not show. Runs of which either is NaN are left out; NaN bounds for fewer than two others.
    """
    return _over_runs(
        lambda a, b, axis: statistic(a - b, axis=axis), left, right, level=level, seed=seed
    )


def ratio_interval(
    noisy: np.ndarray,
    clean: np.ndarray,
    statistic: Statistic = np.median,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """statistic(noisy) / statistic(clean) of (n,) values by run, and its percentile bootstrap
    interval.

    Run r has the same images in both. The median by default: traces are heavy-tailed, and a mean
    over five runs is the largest of them. Runs of which either is NaN are left out; NaN bounds for
    fewer than two others.
    """
    return _over_runs(
        lambda a, b, axis: statistic(a, axis=axis) / statistic(b, axis=axis),
        noisy,
        clean,
        level=level,
        seed=seed,
    )


def spread(final_accuracy: np.ndarray) -> tuple[float, float, float]:
    """Stability across runs: (standard deviation, lower, upper bound of its 95 % bootstrap
    interval)."""
    n = np.isfinite(final_accuracy).sum()
    return (
        _over_runs(partial(np.std, ddof=1), final_accuracy) if n > 1 else (np.nan, np.nan, np.nan)
    )


def _over_runs(
    estimate: Statistic, *columns: np.ndarray, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """estimate(*columns) of columns by run and its percentile bootstrap interval; all values of a
    run go together."""
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
    value = float(estimate(*runs, axis=-1)) if n else np.nan
    if n < 2:
        return value, np.nan, np.nan
    resampled = estimate(*runs[:, _draws(n, seed)], axis=-1)
    low, high = np.percentile(resampled, [50 * (1 - level), 50 * (1 + level)])
    return value, float(low), float(high)


@lru_cache(maxsize=8)
def _draws(n: int, seed: int) -> np.ndarray:
    """(RESAMPLES, n) numbers of runs, drawn with replacement."""
    return np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))


def largest_drop(curve: np.ndarray) -> np.ndarray:
    """Stability within a run: the largest fall of (..., epochs + 1) curves below their running
    best."""
    curve = np.asarray(as_array(curve, "curve"), float)
    require(
        curve.ndim > 0 and curve.shape[-1] > 0,
        "curve",
        f"shape {curve.shape}",
        "(..., epochs + 1) values",
    )
    return (np.maximum.accumulate(curve, axis=-1) - curve).max(axis=-1)


def share_near(
    accuracy_map: np.ndarray,
    reference: float,
    *,
    tolerance: float = 0.05,
    diverged: np.ndarray | None = None,
) -> float:
    """Stability over the weights: the share of the map's cells within `tolerance` of the reference.

    NaN cells (weights that were not tried) do not count, but for those that are True in `diverged`:
    they are not near.
    """
    cells = np.asarray(accuracy_map, float)
    lost = np.zeros(cells.shape, bool) if diverged is None else np.asarray(diverged, bool)
    near = (np.abs(cells - reference) <= tolerance) & ~lost
    tried = np.isfinite(cells) | lost
    return float(near.sum() / tried.sum()) if tried.any() else float("nan")
