"""Would the QNN survive a device? Gate noise in training, shots in reading, and what it costs.

Circuits are trained with exactly computed noise and read with shots. One circuit is trained from
shots as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from datar import Dataset
from foundation.base.checks import require, require_whole
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job, Runs, random_key
from foundation.engine.runner import Percent, require_list, require_percent
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.quantum import device as hardware
from foundation.quantum.device import Noise
from foundation.report.frames import ResultFiles, count_of_runs, difference, every_run, over_runs
from models import QNN, logits_of
from poison_unlearn import Poison
from protocol import Fit, runs_of, tensors_to_params
from studies.config import Config
from studies.families import build_qnn, model_words
from studies.rows import placed, training_job, unlearning_job

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXACT = 0  # shots: expectations are read without sampling


@dataclass(frozen=True, kw_only=True)
class HardwareFlags(Flags):
    """Of the stage hardware."""

    noise: tuple[str, ...] = (
        "none",
        "p1=1e-4,p2=1e-3",
        "p1=1e-4,p2=1e-2",
        "p1=1e-4,p2=1e-3,readout=0.01",
        "p1=1e-4,p2=1e-2,readout=0.03",
    )
    """Noise: none, or p1=…,p2=…,readout=…, each word a circuit of its own."""
    shots: tuple[int, ...] = (128, 1024, 8192)
    """Shots with which the circuits are read."""
    trained_shots: int = 1024
    """Shots from which one of the circuits is trained, at --unlearn-labels; 0: none."""
    alphas: tuple[Percent, ...] = (0, 30, 40)
    """Shares of flipped labels, in percent."""
    runs: int = 5
    """Repetitions."""

    AXES = ("noise", "shots", "trained_shots", "alphas", "runs")

    def check(self, config: Config) -> None:
        for name in ("noise", "shots", "alphas"):
            require_list(name, getattr(self, name))
        for word in self.noise:
            parse_noise(word)
        given = " ".join(map(str, self.shots))
        require(min(self.shots) > 0, "shots", given, "numbers of shots, 1 or more")
        require(self.trained_shots >= 0, "trained_shots", self.trained_shots, "0 or more")
        for alpha in self.alphas:
            require_percent("alphas", alpha)
        require_whole("runs", self.runs)


def parse_noise(word: str) -> Noise | None:
    """Parse "p1=1e-4,p2=1e-3" to Noise, and "none" to None; BadInput for other words."""
    if word == "none":
        return None
    allowed = "none, or p1=…,p2=…,readout=… with some of them"
    pairs = [part.partition("=") for part in word.split(",")]
    names = [name for name, _, _ in pairs]
    are_known = set(names) <= {"p1", "p2", "readout"}
    differ = len(set(names)) == len(names)
    require(are_known and differ, "noise", word, allowed)
    try:
        values = {name: float(text) for name, _, text in pairs}
    except ValueError:
        values = {}
    require(bool(values), "noise", word, allowed)
    return Noise(**values)


# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class Reading(Runs):
    """Validation accuracy of trained circuits that are read with a number of shots, or EXACT."""

    start: Fit
    shots: int

    @property
    def needs(self) -> tuple[Job, ...]:
        """The trained circuits."""
        return (self.start,)

    @property
    def title(self) -> str:
        """The circuit."""
        return f"reading {self.start.model.label}"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return accuracy, diverged (runs,), size ()."""
        (trained,) = inputs
        model = replace(self.start.model, shots=self.shots)
        params = tensors_to_params(model, trained)
        accuracies = []
        for i, sets in enumerate(self.start.sets(dataset)):
            key = random_key(self.seed, "reading", model.label, self.shots, self.runs[i])
            x, y = sets.val
            logits = logits_of(model, params[i], model.prepare(x), key)
            is_right = (np.asarray(logits) > 0) == y
            accuracies.append(np.mean(is_right))
        return {
            "accuracy": np.array(accuracies),
            "diverged": trained["diverged"],
            "size": trained["size"],
        }


# ---- what is computed ----


def devices(config: Config, dataset: Dataset) -> dict[str, QNN]:
    """Circuits that are trained under each noise of the stage, by the words of --hardware.noise."""
    circuits = {}
    for word in config.hardware.noise:
        noise = parse_noise(word)
        device = {"noise": noise} if noise else {}
        circuits[word] = build_qnn(dataset, config.depth, **device)
    return circuits


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan circuits under noise and shots: at shares of flipped labels, and after unlearning."""
    hardware.require_normalised(dataset.train.x)
    shots = (EXACT, *config.hardware.shots)
    circuits = devices(config, dataset)
    cells = itertools.product(circuits.items(), config.hardware.alphas)
    for (word, model), alpha in cells:
        yield from _rows(config, dataset, word, model, alpha, shots)
    trained_shots = config.hardware.trained_shots
    if trained_shots:
        from_shots = build_qnn(dataset, config.depth, shots=trained_shots)
        alpha = config.unlearn_labels
        read_with = (EXACT, trained_shots)
        yield from _rows(config, dataset, "none", from_shots, alpha, read_with)
    for word, model in circuits.items():
        yield from _unlearning_rows(config, dataset, word, model, shots)


def _rows(
    config: Config, dataset: Dataset, word: str, model: QNN, alpha: int, shots: tuple[int, ...]
) -> Iterator[Row]:
    poison = Poison("labels", alpha)
    training = config.qnn.sweep
    for block in config.blocks(config.hardware.runs):
        fit = training_job(config, dataset, training, config.qnn, model, poison, block)
        coordinates = _coordinates(model, word, dataset, fit)
        for count in shots:
            place = {"model": model.label, "alpha_percent": alpha, "shots": count}
            yield _reading(config, "hardware", fit, count, place, coordinates)


def _unlearning_rows(
    config: Config, dataset: Dataset, word: str, model: QNN, shots: tuple[int, ...]
) -> Iterator[Row]:
    poison = Poison("labels", config.unlearn_labels)
    training = config.qnn.teacher
    teacher = training_job(config, dataset, training, config.qnn, model, poison, 0)
    blocks = config.blocks(config.hardware.runs)
    for name, block in itertools.product(config.methods, blocks):
        method = config.method(name, training=config.qnn.unlearn)
        fit = unlearning_job(config, teacher, method, block, record="logits")
        coordinates = _coordinates(model, word, dataset, fit)
        coordinates["title"] = ("unlearner", method.title or name)
        for count in shots:
            place = {"model": model.label, "unlearner": name, "shots": count}
            yield _reading(config, "hardware_unlearning", fit, count, place, coordinates)


def _reading(
    config: Config, study: str, fit: Fit, shots: int, place: dict, coordinates: dict
) -> Row:
    job = Reading(start=fit, shots=shots, **runs_of(fit))
    shown = config.shown(job.runs, config.hardware.runs)
    return Row(study, job, place, reading_table, shown, coordinates)


def _coordinates(model: QNN, noise: str, dataset: Dataset, fit: Fit) -> dict:
    """Coordinates of a row along its model: noise, trained, executions.

    executions: runs of the circuit that the training would take on a device, by parameter shift.
    """
    n = len(dataset.train.y)
    shots = model.shots or 1024
    per_epoch = hardware.executions(n, len(model.acting_angles), shots)
    executions = float(per_epoch * fit.method.training.epochs)
    trained = f"{model.shots} shots" if model.shots else "exact"
    values = {"noise": noise, "trained": trained, "executions": executions}
    along_model = {name: ("model", value) for name, value in values.items()}
    return model_words(model) | along_model


def reading_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy, diverged (…, run): on the validation set."""
    accuracy = np.round(arrays["accuracy"].astype(float), 6)
    diverged = arrays["diverged"].astype(float)
    table = xr.Dataset(
        {"accuracy": ("run", accuracy), "diverged": ("run", diverged)},
        {"run": list(row.job.runs)},
    )
    table["accuracy"] = table.accuracy.where(table.diverged == 0)
    size = [int(arrays["size"])]
    return placed(table, row).assign_coords(size=("model", size))


# ---- what is shown ----

ON_A_DEVICE = (
    "exact: expectations without shots; on a device the amplitudes have to be prepared first: 2ⁿ − "
    "2 CNOTs and 2ⁿ − 1 rotations for n qubits with real amplitudes (quant-ph/0407010): 1,022 and "
    "1,023 for an image, beside 60 RZZ and 180 rotations of the circuit"
)


def above_bare(
    read: ResultFiles, data: str, preset: str, *, study: str = "hardware"
) -> pd.DataFrame:
    """Validation accuracy by circuit and shots, and above that of the circuit without noise."""
    results = read[data, preset, study]
    runs = every_run(results[["accuracy"]]).assign(measure="validation")
    is_bare = (runs.noise == "none") & (runs.trained == "exact")
    bare = runs[is_bare].drop(columns=["noise", "trained"])
    above = difference(runs[~is_bare], bare, "model")
    return pd.concat([over_runs(runs), above], ignore_index=True)


def figure(results: xr.Dataset) -> Figure:
    """Draw validation accuracy of circuits against their noise, a mark for each number of shots."""
    from foundation.report.drawing import (
        MARKERS,
        PALETTE,
        draw_dot,
        finished,
        mixed,
        panels_for,
        plt,
    )

    names = _circuits_in_order(results)
    counts = results.shots.values
    for axis, alpha in panels_for(results.alpha_percent.values, "", "validation accuracy"):
        for place, shots in enumerate(counts):
            colour = mixed(PALETTE[1], "black", place / len(counts))
            style = (colour, MARKERS[place])
            from_left = place / max(len(counts) - 1, 1)  # 0 to 1
            aside = 0.5 * (from_left - 0.5)
            for column, name in enumerate(names):
                accuracy = results.accuracy.sel(alpha_percent=alpha, shots=shots, model=name)
                runs = accuracy.dropna("run").values
                label = f"{shots} shots" if shots else "exact"
                if len(runs):
                    draw_dot(axis, column + aside, runs, style, label=label)
        axis.set_xticks(range(len(names)), labels=names.values(), fontsize=6)
        axis.set_title(f"{alpha} % of the labels flipped")
    plt.gcf().set_figwidth(plt.gcf().get_figwidth() * 1.3)
    text = (
        f"mean of n = {count_of_runs(results)} runs and its 95 % bootstrap interval; trained with "
        "exactly computed noise, or from shots where that is said, and read with shots; preparing "
        "the states is taken to be without noise, and would take far more gates than the circuit"
    )
    return finished(text, results, legend=True)


def _circuits_in_order(results: xr.Dataset) -> dict[str, str]:
    """{circuit: label of its tick}: exactly trained circuits first, without noise first."""
    noises = results.noise.to_series()
    trained = results.trained.to_series()

    def order(name: str) -> tuple[bool, bool, str]:
        is_from_shots = trained[name] != "exact"
        is_noisy = noises[name] != "none"
        return is_from_shots, is_noisy, noises[name]

    labels = {}
    for name in sorted(noises.index, key=order):
        behind = "" if trained[name] == "exact" else f"\n{trained[name]}"
        labels[name] = noises[name].replace(",", "\n") + behind
    return labels


DEVICES = {"validation": "validation", "difference in validation": "above"}
BY_SHOTS = {
    "columns": ("measure", "shots"),
    "head": "{measure}, {shots} shots",
    "measures": DEVICES,
}
TABLE = StudyTable(
    frame=above_bare,
    rows=("alpha_percent", "noise", "trained"),
    title="Validation accuracy of circuits with noise on gates and readout, n = {n} runs; above: "
    "less that of the "
    "circuit without noise, paired by run. 0 shots, " + ON_A_DEVICE,
    **BY_SHOTS,
)
UNLEARNED = StudyTable(
    name="hardware-unlearning",
    file="hardware_unlearning",
    frame=partial(above_bare, study="hardware_unlearning"),
    rows=("noise", "unlearner"),
    title="The same after unlearning, n = {n} runs",
    findings={"rows": ("noise", "title")},
    **BY_SHOTS,
)

STUDY = Study(
    name="hardware",
    two_classes=True,
    question="what do noise and shots do to circuits",
    plan=plan,
    flags=HardwareFlags(),
    quick={
        "noise": ("none", "p1=1e-4,p2=1e-2,readout=0.03"),
        "shots": (128,),
        "trained_shots": 0,
        "alphas": (0, 30),
        "runs": 2,
    },
    tables=(TABLE, UNLEARNED),
    figures=(StudyFigure(name="devices", draw=figure),),
)
