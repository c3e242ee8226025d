"""How many purely random labels does each model fit, if it is trained for long?

A model that fits few of them cannot learn much poison either: what it resists, it fails to fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from datar import Dataset, Split
from foundation.base.checks import require_whole
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.runner import require_list
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import ResultFiles, accuracies, ordered, over_runs
from poison_unlearn import Poison, Poisoned, Retrain, as_poisoned
from studies.config import Config
from studies.families import model_words
from studies.rows import rows_of_blocks
from studies.tuning import control_fit, models_of_controls

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class CapacityFlags(Flags):
    """Of the stage capacity: random labels."""

    samples: tuple[int, ...] = (10, 20, 50, 100, 200, 400)
    """Numbers of samples with random labels, trained for --long-epochs."""
    runs: int = 5
    """Repetitions."""

    AXES = ("samples", "runs")

    def check(self, config: Config) -> None:
        """Refuse numbers of samples or runs below 1."""
        require_list("samples", self.samples)
        for count in self.samples:
            require_whole("samples", count)
        require_whole("runs", self.runs)


# ---- what is computed ----


def random_labels(dataset: Dataset, fraction: float, *, key: Any) -> Poisoned:
    """Permute the labels, so that classes keep their sizes; all samples count as poisoned."""
    train = dataset.train
    seed = key
    if isinstance(key, jax.Array):
        seed = np.asarray(jax.random.key_data(key))
    generator = np.random.default_rng(seed)
    relabelled = Split(train.x, generator.permutation(train.y))
    mask = np.ones(len(train.y), bool)
    return as_poisoned(train, relabelled, mask)


RANDOM = Poison("random labels", 0, function=random_labels)


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan a long training of every model on each number of samples with random labels."""
    flags = config.capacity
    for (protocol, model), count in itertools.product(
        models_of_controls(config, dataset), flags.samples
    ):
        method = Retrain(training=replace(protocol.sweep, epochs=config.long_epochs))
        fit = control_fit(config, dataset, protocol, model, method, RANDOM)
        place = {"model": model.label, "samples": count}
        job = replace(fit, samples=count, record="end")
        coords = model_words(model)
        yield from rows_of_blocks(config, "capacity", job, place, coords, flags.runs)


# ---- what is shown ----


def accuracy_on_random_labels(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy of each model on the random labels that it was trained on, mean over runs."""
    return over_runs(accuracies(read[data, preset, "capacity"], "train"))


def figure(results: xr.Dataset) -> Figure:
    """Draw accuracy on the random labels against the number of samples, a line for each model."""
    from foundation.report.drawing import band_words, draw_curve, finished, model_styles, panels_for

    styles = model_styles(results, ordered(results, "model"))
    ((axis, _),) = panels_for([styles], "training samples", "accuracy")
    for model, style in styles.items():
        draw_curve(axis, results.accuracy.sel(model=model, split="train"), style, model)
    axis.set(xscale="log", ylim=(0.45, 1.03))
    text = f"on random labels that were trained on; {band_words(results)}"
    return finished(text, results, legend=True)


TABLE = StudyTable(
    frame=accuracy_on_random_labels,
    rows=("model",),
    columns=("samples",),
    head="{samples}",
    title="Accuracy on so many samples with purely random labels, after a long training on them, "
    "mean of n = {n} runs",
    findings={"head": "{samples} samples"},
)

STUDY = Study(
    name="capacity",
    two_classes=True,
    question="how many purely random labels does a model fit",
    plan=plan,
    flags=CapacityFlags(),
    quick={"samples": (20, 60), "runs": 2},
    tables=(TABLE,),
    figures=(StudyFigure(name="capacity", draw=figure),),
)
