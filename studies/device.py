"""The stage hardware: would the QNN survive a device? Gate noise in training, shots in reading, and what it costs.

The circuits are trained with exactly computed noise, and read with shots; one of them is trained from shots as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from datar import Dataset
from foundation.base.checks import require
from foundation.engine.jobs import Arrays, Job, Runs, random_key
from foundation.engine.study_files import Row
from foundation.quantum import device as hardware
from foundation.quantum.device import Noise
from models import QNN, logits_of
from poison_unlearn import Poison
from protocol import Fit, runs_of, tensors_to_params
from studies.experiments import Config, build_qnn, model_words, placed, training_job, unlearning_job

EXACT = 0  # shots: the expectations themselves


@dataclass(frozen=True, kw_only=True)
class Reading(Runs):
    """Accuracy on the validation set of trained circuits that are read with so many shots; EXACT: without any."""

    start: Fit
    shots: int

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start,)

    @property
    def title(self) -> str:
        return f"reading {self.start.model.label}"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """accuracy, diverged (runs,), size ()."""
        model = replace(self.start.model, shots=self.shots)
        params, found = tensors_to_params(model, inputs[0]), []
        for i, sets in enumerate(self.start.sets(dataset)):
            key = random_key(self.seed, "reading", model.label, self.shots, self.runs[i])
            x, y = sets.val
            found.append(np.mean((np.asarray(logits_of(model, params[i], model.prepare(x), key)) > 0) == y))
        return {"accuracy": np.array(found), **{name: inputs[0][name] for name in ("diverged", "size")}}


def parse_noise(word: str) -> Noise | None:
    """ "p1=1e-4,p2=1e-3" -> Noise; "none" -> None."""
    if word == "none":
        return None
    allowed = "none, or p1=…,p2=…,readout=… with some of them"
    pairs = [part.partition("=") for part in word.split(",")]
    names = [name for name, _, _ in pairs]
    require(set(names) <= {"p1", "p2", "readout"} and len(set(names)) == len(names), "--device-noise", word, allowed)
    try:
        values = {name: float(text) for name, _, text in pairs}
    except ValueError:
        values = {}
    require(bool(values), "--device-noise", word, allowed)
    return Noise(**values)


def devices(config: Config, dataset: Dataset) -> dict[str, QNN]:
    """The circuits of the stage that are trained with noise, by their words."""
    found = {}
    for word in config.device_noise:
        noise = parse_noise(word)
        device = {"noise": noise} if noise else {}
        found[word] = build_qnn(dataset, config.depth, **device)
    return found


def study(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Validation accuracy of circuits under noise and shots, at some shares of flipped labels, and after unlearning."""
    hardware.require_normalised(dataset.train.x)
    shots, circuits = (EXACT, *config.device_shots), devices(config, dataset)
    for (word, model), alpha in itertools.product(circuits.items(), config.device_alphas):
        yield from _rows(config, dataset, word, model, alpha, shots)
    if config.device_trained_shots:
        drawn = build_qnn(dataset, config.depth, shots=config.device_trained_shots)
        yield from _rows(config, dataset, "none", drawn, config.unlearn_labels, (EXACT, config.device_trained_shots))
    for word, model in circuits.items():
        yield from _unlearning_rows(config, dataset, word, model, shots)


def _rows(config: Config, dataset: Dataset, word: str, model: QNN, alpha: int, shots: tuple[int, ...]) -> Iterator[Row]:
    for block in config.blocks(config.device_runs):
        fit = training_job(config, dataset, config.qnn.sweep, config.qnn, model, Poison("labels", alpha), block)
        for count in shots:
            place = {"model": model.label, "alpha_percent": alpha, "shots": count}
            yield _reading(config, "hardware", fit, count, place, _words(model, word, dataset, fit))


def _unlearning_rows(config: Config, dataset: Dataset, word: str, model: QNN, shots: tuple[int, ...]) -> Iterator[Row]:
    poison = Poison("labels", config.unlearn_labels)
    teacher = training_job(config, dataset, config.qnn.teacher, config.qnn, model, poison, 0)
    for name, block in itertools.product(config.methods, config.blocks(config.device_runs)):
        method = config.method(name, training=config.qnn.unlearn)
        fit = unlearning_job(config, teacher, method, block, record="logits")
        for count in shots:
            place = {"model": model.label, "unlearner": name, "shots": count}
            words = _words(model, word, dataset, fit) | {"title": ("unlearner", method.title or name)}
            yield _reading(config, "hardware_unlearning", fit, count, place, words)


def _reading(config: Config, name: str, fit: Fit, shots: int, place: dict, words: dict) -> Row:
    job = Reading(start=fit, shots=shots, **runs_of(fit))
    return Row(name, job, place, reading_table, config.shown(job.runs, config.device_runs), words)


def _words(model: QNN, word: str, dataset: Dataset, fit: Fit) -> dict:
    """Of each model its noise, and how many circuits its training would run on a device, by parameter shift."""
    n, shots = len(dataset.train.y), model.shots or 1024
    executions = hardware.executions(n, len(model.acting_angles), shots) * fit.method.training.epochs
    trained = f"{model.shots} shots" if model.shots else "exact"
    own = {"noise": word, "trained": trained, "executions": float(executions)}
    return model_words(model) | {name: ("model", value) for name, value in own.items()}


def reading_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy, diverged (…, run): on the validation set."""
    table = xr.Dataset(
        {"accuracy": ("run", np.round(arrays["accuracy"].astype(float), 6)),
         "diverged": ("run", arrays["diverged"].astype(float))},
        {"run": list(row.job.runs)},
    )  # fmt: skip
    table["accuracy"] = table.accuracy.where(table.diverged == 0)
    return placed(table, row).assign_coords(size=("model", [int(arrays["size"])]))
