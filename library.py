"""What one does with trained models: encode new samples, predict, and take models out of studies.

Data come from `datar`, models and `train` from `models`, poisons, methods and `unlearn` from
`poison_unlearn`; this module is what comes after. `studies.estimator` wraps all of it
for scikit-learn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from datar import Dataset, Split, encode, require_split
from foundation.base.checks import listed, require
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays
from foundation.engine.runner import Settings, arrays_of_run
from foundation.engine.study import Study
from foundation.report.claims import of_values
from models import Model, Params, logits_of, require_labels, require_params
from protocol import tensors_to_params

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["accuracy", "compare", "encode", "predict", "predict_proba", "trained_model"]


# ---- predictions ----


def logits(
    model: Model, params: Params, x: ArrayLike, *, key: jax.Array | None = None
) -> np.ndarray:
    """Return the logits (n,) of encoded samples x (n, d); (n, K) of more than two classes.

    params: of one model, without an axis over runs. key: of the shots, for a circuit that is read
    with shots. Raises BadInput where parameters or samples do not fit the model.
    """
    require_params(model, params)
    if getattr(model, "is_random", False):
        require(key is not None, "key", None, f"a key for the shots of {model.label}")
    return np.asarray(logits_of(model, params, model.prepare(np.asarray(x)), key))


def predict_proba(
    model: Model, params: Params, x: ArrayLike, *, key: jax.Array | None = None
) -> np.ndarray:
    """Return the probabilities of the classes, (n, K), of encoded samples; see `logits`."""
    values = logits(model, params, x, key=key)
    if values.ndim == 2:
        return np.asarray(jax.nn.softmax(values, axis=1))
    of_class_1 = np.asarray(jax.nn.sigmoid(values))
    return np.stack([1 - of_class_1, of_class_1], axis=1)


def predict(
    model: Model, params: Params, x: ArrayLike, *, key: jax.Array | None = None
) -> np.ndarray:
    """Return the predicted classes (n,), int32 of 0 to K - 1, of encoded samples; see `logits`."""
    values = logits(model, params, x, key=key)
    classes = values.argmax(axis=1) if values.ndim == 2 else values > 0
    return classes.astype(np.int32)


def accuracy(model: Model, params: Params, split: Split, *, key: jax.Array | None = None) -> float:
    """Return the share of a split's samples whose label is predicted; see `logits`."""
    split = require_split(split)
    require_labels(model, split.y, "split.y")
    return float(np.mean(predict(model, params, split.x, key=key) == split.y))


# ---- models of studies ----


class Trained(NamedTuple):
    """A model of a study, after its training."""

    model: Model
    params: Params
    arrays: Arrays  # of the run: logits, labels, masks (see protocol.Fit.perform)


def trained_model(
    config: Settings,
    dataset: Dataset,
    studies: Iterable[Study],
    stage: str,
    *,
    run: int = 0,
    **place: Any,
) -> Trained:
    """Return a model that a study trained, from its file or computed anew, with the same bits.

    config, dataset, studies: as `run_studies` takes them. place: labels along the axes of the
    study's file that single out one row, such as model="MLP[16,4]", poison="labels",
    unlearner="cf". A job that OUT/jobs lacks, as in a clone, is computed and kept there. Raises
    BadInput where the study plans no such row or several, or where its jobs train no model.
    """
    job, arrays = arrays_of_run(config, dataset, studies, stage, run=run, place=place)
    model = getattr(job, "model", None)
    has_params = any(name.startswith("params") for name in arrays)
    allowed = "stages whose jobs keep a model's parameters, such as unlearning"
    require(model is not None and has_params, "stage", stage, allowed)
    return Trained(model, tensors_to_params(model, arrays), arrays)


# ---- comparisons ----


def compare(
    results: xr.Dataset, first: str, second: str, *, split: str = "validation"
) -> pd.DataFrame:
    """Compare two methods, models or other labels of one axis, run by run.

    results: a study file with `accuracy` by run. split: on which samples, such as "validation" or
    "forget_poisoned"; of curves the last epoch counts.

    Returns a row for each combination of the other labels that both have: the mean difference in
    accuracy, first minus second, its 95 % interval by Student's t (low, high), the two-sided
    p-value of sign flips (exact up to 13 runs, else from 9,999 flips), and the number of runs n.
    Five runs cannot give a p below 1/16. p is not corrected for the number of rows.
    """
    require("accuracy" in results, "results", "a study without accuracies", "one with them")
    found = results.accuracy
    splits = found["split"].values.tolist()
    require(split in splits, "split", split, ", ".join(splits))
    found = found.sel(split=split)
    if "epoch" in found.dims:
        found = found.isel(epoch=-1)
    axes = [axis for axis in found.dims if axis != "run"]
    labels = {axis: found[axis].values.tolist() for axis in axes}
    holding = [axis for axis in axes if {first, second} <= set(labels[axis])]
    allowed = "two labels of one axis: " + "; ".join(
        f"{axis} {listed(labels[axis], 20)}" for axis in axes
    )
    require(len(holding) == 1 and first != second, "labels", f"{first}, {second}", allowed)
    (axis,) = holding
    difference = found.sel({axis: first}) - found.sel({axis: second})
    others = [other for other in axes if other != axis]
    rows = []
    for place in itertools.product(*(labels[other] for other in others)):
        of_runs = difference.sel(dict(zip(others, place, strict=True))).values
        of_runs = of_runs[np.isfinite(of_runs)]
        if len(of_runs):
            mean = of_values("", of_runs)
            rows.append((*place, mean.value, *mean.interval(), mean.p, mean.n))
    return pd.DataFrame(rows, columns=[*others, "difference", "low", "high", "p", "n"])
