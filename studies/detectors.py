"""Which training samples look poisoned by each of DETECTORS? No true label is read."""

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
# The number of flagged samples is rounded to a multiple of the training set's size over STEPS, so
# that few programs are compiled.
STEPS = 20
DAMPING = 0.01  # of the self-influence, times the largest eigenvalue
DETECTORS = ("loss", "cross_validation", "influence")


@dataclass(frozen=True, kw_only=True)
class Detection(Runs):
    """Rate how suspicious each training sample is by each of DETECTORS; flag the most suspicious.

    loss: the loss of the teacher. cross_validation: the loss of models trained on the other folds,
    which is the self-confidence of confident learning (Northcutt et al., arXiv:1911.00068).
    influence: of a sample on its own loss under the teacher (Koh and Liang, arXiv:1703.04730), by
    Gauss-Newton's matrix. Confident learning counts how many samples are flagged.
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
        held = np.nan_to_num(held, nan=0.0)  # a model that diverged says nothing
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
    """Count the labels that confident learning takes for wrong.

    logits: of models that were not trained on the samples.
    """
    from cleanlab.filter import find_label_issues  # takes seconds to import, and is used here alone

    p = 1 / (1 + np.exp(-logits.astype(float)))
    probabilities = np.stack([1 - p, p], axis=1)  # (n, classes)
    is_wrong = find_label_issues(labels.astype(int), probabilities, n_jobs=1)
    return int(is_wrong.sum())


@partial(jax.jit, static_argnames=("model", "n"))
def _self_influence(
    model: Model, n: int, block: Block, params: Params, keys: jax.Array
) -> jax.Array:
    """Logarithm of the self-influence r² J (J'WJ/n + μ)^-1 J' of each sample: (runs, n).

    r: the sample's residual. J: the gradient of its logit. With W = p (1 - p) on the diagonal and
    K = W^½ J J' W^½ / n, the factor J (...)^-1 J' is n K (K + μ)^-1 / W, and r² / W is the odds
    that the model gives the other label.
    """

    def one_run(arguments):
        data, params_of_run, key = arguments
        flat, unravel = ravel_pytree(params_of_run)
        x = data.inputs[:n]
        y = data.labels[:n]

        def logits(flat):
            return logits_of(model, unravel(flat), x, key)

        p = jax.nn.sigmoid(logits(flat))
        root = jnp.sqrt(jnp.maximum(p * (1 - p), 1e-6))
        jacobian = jax.jacrev(logits)(flat)
        root_of_rows = root[:, None]
        gram = jacobian @ jacobian.T  # (n, n)
        kernel = root_of_rows * gram * root / n
        values, vectors = jnp.linalg.eigh(kernel)
        share = jnp.maximum(values, 0) / (jnp.maximum(values, 0) + DAMPING * values[-1])
        leverage = n * (vectors**2) @ share
        log_leverage = jnp.log(jnp.maximum(leverage, 1e-12))
        log_odds = logits(flat) * jnp.where(y > 0, 1, -1)  # of the sample's label
        return log_leverage - log_odds

    training_data = block._replace(validation=None, measured=None, columns=None)
    return jax.lax.map(one_run, (training_data, params, keys))
