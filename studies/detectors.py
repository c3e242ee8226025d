"""Which training samples look poisoned, by each of DETECTORS; no true label is read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from datar import Dataset
from foundation.engine.jobs import Arrays, Job, Runs, random_key
from foundation.measures.forgetting import signs
from models import Model, Params, logits_of
from protocol import Block, Fit, block_inputs, narrowed

FOLDS = 5  # of the cross-validation
STEPS = 20
DAMPING = 0.01  # of the self-influence, times the largest eigenvalue
DETECTORS = ("loss", "cross_validation", "influence")


@dataclass(frozen=True, kw_only=True)
class Detection(Runs):
    """How suspicious every training sample looks, by each of DETECTORS, and which would be taken
    out.

    loss: of the teacher. cross_validation: of models trained on the other folds, which is the
    self-confidence of confident learning (Northcutt et al., arXiv:1911.00068). influence: of a
    sample on its own loss under the teacher (Koh and Liang, arXiv:1703.04730), by Gauss-Newton's
    matrix. As many are taken out as confident learning counts.
    """

    teacher: Fit
    folds: tuple[Fit, ...]

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.teacher, *self.folds)

    @property
    def title(self) -> str:
        return (
            f"detection {self.teacher.model.label} {self.teacher.poison.kind} "
            f"{self.teacher.poison.alpha_percent} %"
        )

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """suspicion, found (runs, detectors, n); counted (runs,); poisoned (runs, n); size ()."""
        teacher, *folds = inputs
        mask = teacher["mask"].astype(bool)
        n, label = mask.shape[1], teacher["label"][:, : mask.shape[1]]
        held = np.full(mask.shape, np.nan)
        for job, arrays in zip(self.folds, folds, strict=True):
            held[~job.kept(dataset)] = arrays["logit"][:, 2 * arrays["mask"].shape[1] :].ravel()
        held = np.nan_to_num(held, nan=0.0)  # of models that diverged: they say nothing
        influence = self._influence(dataset, teacher)
        ranks = [-signs(label) * teacher["logit"][:, :n], -signs(label) * held, influence]
        suspicion = np.nan_to_num(np.stack(ranks, axis=1), nan=0.0)
        counted = np.array([_labels_in_doubt(*own) for own in zip(label, held, strict=True)])
        counts = np.round(counted * STEPS / n) * n // STEPS
        place = np.argsort(np.argsort(-suspicion, axis=2, kind="stable"), axis=2)
        found = place < counts[:, None, None]
        own = {
            "suspicion": suspicion.astype(np.float32),
            "found": found,
            "counted": counted,
            "poisoned": mask,
        }
        return own | {"size": teacher["size"]}

    def _influence(self, dataset: Dataset, teacher: Arrays) -> np.ndarray:
        fit = self.teacher
        masks, block = block_inputs(fit, dataset)
        params = narrowed(fit.model, teacher, block)
        keys = jnp.stack([random_key(fit.seed, "influence", run) for run in fit.runs])
        return np.asarray(_self_influence(fit.model, masks["mask"].shape[1], block, params, keys))


def _labels_in_doubt(labels: np.ndarray, logits: np.ndarray) -> int:
    """How many labels confident learning takes for wrong, by the logits of models that have not
    seen them."""
    from cleanlab.filter import find_label_issues  # which takes seconds, and is asked here alone

    p = 1 / (1 + np.exp(-logits.astype(float)))
    return int(find_label_issues(labels.astype(int), np.stack([1 - p, p], axis=1), n_jobs=1).sum())


@partial(jax.jit, static_argnames=("model", "n"))
def _self_influence(
    model: Model, n: int, block: Block, params: Params, keys: jax.Array
) -> jax.Array:
    """(runs, n), the logarithm of r² J (J'WJ/n + μ)^-1 J' of each sample, r its residual, J its
    logit's gradient.

    With W = p (1 - p) on the diagonal and K = W^½ J J' W^½ / n the middle is n K (K + μ)^-1 / W,
    and r² / W the odds that the model gives the other label.
    """

    def one_run(arguments):
        own, start, key = arguments
        flat, unravel = ravel_pytree(start)
        x, y = own.inputs[:n], own.labels[:n]

        def logits(flat):
            return logits_of(model, unravel(flat), x, key)

        p = jax.nn.sigmoid(logits(flat))
        root = jnp.sqrt(jnp.maximum(p * (1 - p), 1e-6))
        jacobian = jax.jacrev(logits)(flat)
        values, vectors = jnp.linalg.eigh(root[:, None] * (jacobian @ jacobian.T) * root / n)
        share = jnp.maximum(values, 0) / (jnp.maximum(values, 0) + DAMPING * values[-1])
        leverage = n * (vectors**2) @ share
        return jnp.log(jnp.maximum(leverage, 1e-12)) - logits(flat) * jnp.where(y > 0, 1, -1)

    return jax.lax.map(
        one_run, (block._replace(validation=None, measured=None, columns=None), params, keys)
    )
