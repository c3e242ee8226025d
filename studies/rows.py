"""What studies share: jobs of one training, and the tables of their numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from datar import Dataset
from foundation.engine.jobs import Arrays
from foundation.engine.keys import backend
from foundation.engine.study_files import Row
from models import Model, Training
from poison_unlearn import Method, Poison, Retrain
from protocol import SPLITS, Fit
from studies.config import Config
from studies.families import Protocol

# ---- what is poisoned ----


def given_percent(dataset: Dataset) -> int:
    """The share of the poison that the data came with, in whole percents of 1 to 99."""
    return int(np.clip(round(100 * dataset.given.mask.mean()), 1, 99))


def poisons_to_unlearn(config: Config, dataset: Dataset) -> dict[str, int]:
    """{poison: percent} of what the unlearning studies unlearn: the configuration's, or what the
    data came with."""
    return config.unlearn_alphas() if dataset.given is None else {"given": given_percent(dataset)}


def place_of(model: str, poison: Poison) -> dict[str, Any]:
    """Where numbers of a model on poisoned data stand in a study's file; model: its label."""
    return {"model": model, "poison": poison.kind, "alpha_percent": poison.alpha_percent}


# ---- trainings ----


def training_job(
    config: Config,
    dataset: Dataset,
    training: Training,
    protocol: Protocol,
    model: Model,
    poison: Poison,
    block: int,
) -> Fit:
    """Models trained on the poisoned data, one for each run of a block."""
    return Fit(
        data=dataset.provenance["sha256"],
        model=model,
        poison=poison,
        method=Retrain(training=training),
        seed=config.seed,
        block=block,
        size=config.block,
        side_by_side=are_side_by_side(protocol),
    )


def are_side_by_side(protocol: Protocol) -> bool:
    """Whether runs are one batch: as the protocol says, and on an accelerator."""
    return protocol.side_by_side or backend() != "cpu"


def unlearning_job(config: Config, teacher: Fit, method: Method, block: int, *, record: str) -> Fit:
    """A block of runs of one method, behind its teachers: one for each run, or the first of all
    (published)."""
    own = config.independent_teachers
    teacher = replace(teacher, block=block if own else 0)
    shared = {} if own else {"draw": 0, "teacher_run": 0}
    return replace(teacher, method=method, start=teacher, block=block, record=record, **shared)


# ---- the tables of their numbers ----


def scores_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Accuracy and loss over the row's place, run, epoch where there are curves, and split; which
    runs diverged.

    Accuracies of runs that diverged are NaN; their losses are kept: they show when it happened.
    """
    _, *epochs, _ = arrays["accuracy"].shape
    at = {"epoch": getattr(row.job, "measured", ()) or np.arange(*epochs)} if epochs else {}
    coords = (
        {"run": list(row.job.runs)}
        | {axis: list(each) for axis, each in at.items()}
        | {"split": list(SPLITS)}
    )
    scores = {
        "accuracy": np.round(arrays["accuracy"].astype(float), 6),
        "loss": arrays["loss"].astype(float),
    }
    table = xr.Dataset({name: (list(coords), values) for name, values in scores.items()}, coords)
    table["diverged"] = "run", arrays["diverged"].astype(float)
    table["accuracy"] = table.accuracy.where(table.diverged == 0)
    return placed(table, row).assign_coords(size=("model", [int(arrays["size"])]))


def placed(table: xr.Dataset, row: Row) -> xr.Dataset:
    """The table with an axis of one label for each of the row's place."""
    return table.expand_dims([*row.place]).assign_coords(
        {axis: [label] for axis, label in row.place.items()}
    )
