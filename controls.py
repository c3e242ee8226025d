"""Controls: does a model resist poison by more than it fails to fit the noisy labels, and does it take a circuit?

Every run draws its training set anew. Epochs and hyper-parameters are chosen on runs that are never judged, by the loss
on a fifth of their poisoned training set, with its noisy labels: no clean label takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import xarray as xr

from datar import Dataset
from experiments import FAMILIES, Config, Fit, are_side_by_side, model_words, scores_table
from jobs import Arrays
from models import Model, Training
from poison_unlearn import Method, Poison, Retrain
from results import Row

HELD_OUT = 20  # percent of the poisoned training set, where something is chosen
TUNING = 1000  # the first of the runs on which something is chosen, which are never judged
POINTS = 15  # of a long training, at which it is measured


def epochs_measured(config: Config, training: Training) -> tuple[int, ...]:
    """Epochs at which a long training is measured: 0, about evenly in the logarithm, and those of the noise sweep."""
    last = config.long_epochs
    even = np.geomspace(1, last, POINTS).round().astype(int)
    return tuple(sorted({0, *even.tolist(), min(training.epochs, last)}))


def models_of_controls(config: Config, dataset: Dataset) -> Iterator[tuple[str, Model]]:
    """Name of the family and model: each MLP of the noise sweep, and the other families' models once."""
    for name in config.evaluated:
        for model in FAMILIES[name].sweep(config, dataset):
            if (model.family == "Logistic") == (name == "logistic"):  # which an MLP of no hidden layers is
                yield name, model


def control_fit(config: Config, dataset: Dataset, family: str, model: Model, method: Method, poison: Poison) -> Fit:
    """Its first block: models trained on all samples of training sets drawn anew."""
    side_by_side = are_side_by_side(getattr(config, FAMILIES[family].trained_as))
    return Fit(
        data=dataset.provenance["sha256"], model=model, poison=poison, method=method, seed=config.seed,
        size=config.block, side_by_side=side_by_side, redrawn=True, record="curves",
    )  # fmt: skip


def tuning_fits(fit: Fit, runs: int) -> list[Fit]:
    """The same on runs of their own, with a fifth of the poisoned samples held out, as they stand."""
    blocks = range(TUNING // fit.size, TUNING // fit.size + -(-runs // fit.size))
    held_out = {"held_out_percent": HELD_OUT, "held_out_of": "all"}
    return [replace(fit, block=block, **held_out) for block in blocks]


# ---- dynamics ----


def dynamics(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Every model along one long training, and the held-out loss by which an epoch of it is chosen."""
    for family, model in models_of_controls(config, dataset):
        training = getattr(config, FAMILIES[family].trained_as).sweep
        method = Retrain(training=replace(training, epochs=config.long_epochs))
        words = model_words(model) | {"published_epochs": ("model", min(training.epochs, config.long_epochs))}
        for poison in config.poisons_of_controls():
            place = {"model": model.label, "poison": poison.kind, "alpha_percent": poison.alpha_percent}
            fit = control_fit(config, dataset, family, model, method, poison)
            fit = replace(fit, measured=epochs_measured(config, training))
            for job in tuning_fits(fit, config.tuning_runs):
                yield Row("dynamics", job, place, held_out_table, None, words)
            for block in config.blocks():
                job = replace(fit, block=block)
                yield Row("dynamics", job, place, scores_table, config.shown(job.runs), words)


def held_out_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """held_out_loss (…, epoch, trial): on held-out samples with their noisy labels, of runs that are never judged."""
    loss = scores_table(row, arrays).loss.sel(split="validation", drop=True).rename(run="trial")
    return loss.rename("held_out_loss").to_dataset()


STUDIES = {"dynamics": dynamics}
