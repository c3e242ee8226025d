"""Which training samples look poisoned by each of DETECTORS? No true label is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import landscape
from datar import Dataset
from foundation.engine.jobs import Arrays, Job, Runs, keys_of_runs
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
        """The teacher, and the trainings without each fold."""
        return (self.teacher, *self.folds)

    @property
    def title(self) -> str:
        """Model and poison."""
        return (
            f"detection {self.teacher.model.label} {self.teacher.poison.kind} "
            f"{self.teacher.poison.alpha_percent} %"
        )

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return suspicion, found (runs, detectors, n); counted (runs,); poisoned (runs, n); size.

        found: the flagged samples. counted: how many labels confident learning takes for wrong.
        """
        teacher, *folds = inputs
        mask = teacher["mask"].astype(bool)
        n = mask.shape[1]
        labels = teacher["label"][:, :n]
        logits = teacher["logit"][:, :n]
        held_out_logits = self._held_out_logits(dataset, folds, shape=mask.shape)
        suspicions = [
            -signs(labels) * logits,
            -signs(labels) * held_out_logits,
            self._influence(dataset, teacher),
        ]
        suspicion = np.nan_to_num(np.stack(suspicions, axis=1), nan=0.0)
        pairs = zip(labels, held_out_logits, strict=True)
        counted = np.array([_labels_in_doubt(*pair) for pair in pairs])
        counts = np.round(counted * STEPS / n) * n // STEPS
        order = np.argsort(-suspicion, axis=2, kind="stable")
        rank = np.argsort(order, axis=2)
        return {
            "suspicion": suspicion.astype(np.float32),
            "found": rank < counts[:, None, None],
            "counted": counted,
            "poisoned": mask,
            "size": teacher["size"],
        }

    def _held_out_logits(
        self, dataset: Dataset, folds: list[Arrays], shape: tuple[int, int]
    ) -> np.ndarray:
        """Take each training sample's logit from the fold that was not trained on it: (runs, n).

        0 where that model diverged, which says nothing.
        """
        logits = np.full(shape, np.nan)
        for job, arrays in zip(self.folds, folds, strict=True):
            first = 2 * arrays["mask"].shape[1]  # of the validation set: the samples held out
            logits[~job.kept(dataset)] = arrays["logit"][:, first:].ravel()
        return np.nan_to_num(logits, nan=0.0)

    def _influence(self, dataset: Dataset, teacher: Arrays) -> np.ndarray:
        fit = self.teacher
        masks, block = block_inputs(fit, dataset)
        n = masks["mask"].shape[1]
        params = narrowed(fit.model, teacher, block)
        keys = keys_of_runs(fit.seed, "influence", runs=fit.runs)
        return np.asarray(_self_influence(fit.model, n, block, params, keys))


def _labels_in_doubt(labels: np.ndarray, logits: np.ndarray) -> int:
    """Count the labels that confident learning takes for wrong.

    logits: of models that were not trained on the samples.
    """
    from cleanlab.filter import find_label_issues  # takes seconds to import, and is used here alone

    p = 1 / (1 + np.exp(-logits.astype(float)))
    probabilities = np.stack([1 - p, p], axis=1)  # (n, classes)
    is_wrong = find_label_issues(labels.astype(int), probabilities, n_jobs=1)
    return int(is_wrong.sum())


def folds_of(teacher: Fit) -> Iterator[Fit]:
    """Repeat the teacher's training without each fold in turn, measured on the fold left out."""
    for fold in range(FOLDS):
        yield replace(teacher, held_out_percent=100 // FOLDS, held_out_of="all", fold=fold)


@partial(jax.jit, static_argnames=("model", "n"))
def _self_influence(
    model: Model, n: int, block: Block, params: Params, keys: jax.Array
) -> jax.Array:
    """Logarithm of the self-influence r² J (J'WJ/n + μ)^-1 J' of each sample: (runs, n).

    r: the sample's residual. J: the gradient of its logit. With W and K of
    `landscape.gauss_newton`, the factor J (...)^-1 J' is n K (K + μ)^-1 / W, and r² / W is the odds
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
        _, _, values, vectors = landscape.gauss_newton(logits, flat, p)
        share = jnp.maximum(values, 0) / (jnp.maximum(values, 0) + DAMPING * values[-1])
        leverage = n * (vectors**2) @ share
        log_leverage = jnp.log(jnp.maximum(leverage, 1e-12))
        log_odds = logits(flat) * jnp.where(y > 0, 1, -1)  # of the sample's label
        return log_leverage - log_odds

    training_data = block._replace(validation=None, measured=None, columns=None)
    return jax.lax.map(one_run, (training_data, params, keys))
