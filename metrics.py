"""What is measured of a model: pure functions of logits and labels, and statistics over runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats


def cross_entropy(logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean binary cross-entropy in nats, from logits, not clipped.

    logits: (n,). labels: (n,) of 0 and 1, or one for all. weight: (n,) weights of the mean, None for equal ones.
    """
    _check_shapes(logits, labels)
    return jnp.average(jax.nn.softplus(logits) - labels * logits, weights=weight)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of samples whose class (1 where the logit is positive) is the label; NaN where a logit is NaN."""
    _check_shapes(logits, labels)
    return jnp.mean(jnp.where(jnp.isnan(logits), jnp.nan, (logits > 0) == (labels > 0)))


def _check_shapes(logits: jax.Array, labels: jax.Array) -> None:
    """(n, 1) logits against (n,) labels would broadcast to a wrong number."""
    if jnp.ndim(labels) and jnp.shape(logits) != jnp.shape(labels):
        raise ValueError(f"labels: got shape {jnp.shape(labels)}, allowed: that of the logits, {jnp.shape(logits)}")


def bernoulli_kl(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """KL(teacher || student) of each sample in nats, p log(p/q) + (1-p) log((1-p)/(1-q)), from logits (n,)."""
    return _kl_term(teacher, student) + _kl_term(-teacher, -student)


def bernoulli_kl_published(teacher: jax.Array, student: jax.Array) -> jax.Array:
    """The first term alone, p log(p/q): what `kl_divergence` of the published models.py computes.

    It is no divergence: it falls without bound as q rises to 1, whatever p is.
    """
    return _kl_term(teacher, student)


def _kl_term(teacher: jax.Array, student: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(teacher) * (jax.nn.log_sigmoid(teacher) - jax.nn.log_sigmoid(student))


# ---- over runs: NumPy, on finished results ----


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    return values[np.isfinite(values)]


def bootstrap_interval(
    values: np.ndarray, statistic=np.mean, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of (n,) values.

    Percentile and not BCa, whose acceleration cannot be estimated from five runs; with five runs even this
    one is too narrow (its 95 % holds about 83 %). Equal values give the interval of width 0 that they are. NaN
    values, runs that diverged, are left out; NaN bounds for fewer than two others.
    """
    values = _finite(values)
    if len(values) < 2:
        return float("nan"), float("nan")
    if np.ptp(values) == 0:
        return float(statistic(values)), float(statistic(values))
    result = stats.bootstrap(
        (values,), statistic, confidence_level=level, n_resamples=9999, method="percentile", rng=seed
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def spread(final_accuracy: np.ndarray) -> tuple[float, float, float]:
    """Stability across runs: (standard deviation, lower, upper bound of its 95 % bootstrap interval)."""
    values = _finite(final_accuracy)
    if len(values) < 2:
        return float("nan"), float("nan"), float("nan")
    return (float(np.std(values, ddof=1)), *bootstrap_interval(values, _sample_std))


def _sample_std(values: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.std(values, ddof=1, axis=axis)


def largest_drop(curve: np.ndarray) -> np.ndarray:
    """Stability within a run: the largest fall of (..., epochs + 1) curves below their running best."""
    curve = np.asarray(curve, float)
    return (np.maximum.accumulate(curve, axis=-1) - curve).max(axis=-1)


def share_near(
    accuracy_map: np.ndarray, reference: float, *, tolerance: float = 0.05, diverged: np.ndarray | None = None
) -> float:
    """Stability over the weights: the share of the map's cells within `tolerance` of the reference.

    NaN cells (weights that were not tried) do not count, but for those that are True in `diverged`: they are not near.
    """
    cells = np.asarray(accuracy_map, float)
    lost = np.zeros(cells.shape, bool) if diverged is None else np.asarray(diverged, bool)
    near = (np.abs(cells - reference) <= tolerance) & ~lost
    tried = np.isfinite(cells) | lost
    return float(near.sum() / tried.sum()) if tried.any() else float("nan")


def ratio_interval(
    noisy: np.ndarray, clean: np.ndarray, statistic=np.median, *, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """statistic(noisy) / statistic(clean) of (n,) values by run, and its percentile bootstrap interval.

    Runs are resampled, both their values at once: run r has the same images in both. The median by default: traces
    are heavy-tailed, and a mean over five runs is the largest of them. Runs of which either is NaN, which diverged,
    are left out; NaN bounds for fewer than two others.
    """
    pairs = np.stack([np.asarray(noisy, float), np.asarray(clean, float)])
    noisy, clean = pairs[:, np.isfinite(pairs).all(axis=0)]

    def ratio(noisy: np.ndarray, clean: np.ndarray, axis: int = -1) -> np.ndarray:
        return statistic(noisy, axis=axis) / statistic(clean, axis=axis)

    if len(noisy) < 2:
        return (float(ratio(noisy, clean)) if len(noisy) else float("nan")), float("nan"), float("nan")
    result = stats.bootstrap(
        (noisy, clean), ratio, confidence_level=level, n_resamples=9999, method="percentile",
        vectorized=True, paired=True, rng=seed,
    )  # fmt: skip
    return float(ratio(noisy, clean)), *map(float, result.confidence_interval)
