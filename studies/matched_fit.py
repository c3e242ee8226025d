"""How far are methods from oracles if all models fit the poison of few samples equally?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datar import Dataset, subset
from foundation.base.checks import require_whole
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import ResultFiles, accuracies, circuit_minus_others, over_runs
from studies.config import Config, parse_epochs
from studies.families import model_words
from studies.judging import judged_rows, table_of
from studies.judging_figures import forgetting_scores
from studies.oracles import CHOICE_DRAWS, cases
from studies.rows import AS_PUBLISHED, scores_table
from studies.tuning import POINTS, epochs_measured

if TYPE_CHECKING:
    from foundation.report.claims import Claim


@dataclass(frozen=True, kw_only=True)
class MatchedFlags(Flags):
    """Of the stages memorising and matched_fit."""

    samples: int = 24
    """Training samples: so few that every model fits noisy labels of them."""
    epochs: tuple[str, ...] = ()
    """Epochs of teachers and oracles of the stage matched_fit, by family, such as mlp=15, as
    studies.matched_fit.matched_epochs finds them from the stage memorising; others:
    --oracle-epochs."""

    def check(self, config: Config) -> None:
        require_whole("samples", self.samples, least=10)
        parse_epochs("epochs", self.epochs)


# ---- what is computed ----


def matched_data(config: Config, dataset: Dataset) -> dict[str, Dataset]:
    """Return few samples, so that every model can fit their poison."""
    return {"few": subset(dataset, config.matched.samples, seed=config.seed)}


def plan_memorising(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Measure along a long training how well teachers fit the poison of few samples.

    The draws of the poison are those that are never judged.
    """
    few = matched_data(config, dataset)["few"]
    without_features = replace(config, unlearn_features=0)
    for case, _ in cases(without_features, few, CHOICE_DRAWS, config.tuning_runs):
        training = replace(case.training, epochs=config.long_epochs)
        measured = epochs_measured(config.long_epochs, points=4 * POINTS)
        place = {"model": case.model.label, "poison": case.poison.kind, "draw": case.draw}
        coords = model_words(case.model)
        for fit in replace(case, training=training).teachers():
            job = replace(fit, held_out_percent=0, record="curves", measured=measured)
            yield Row("memorising", job, place, scores_table, case.shown(job), coords)


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Compare methods with oracles on few samples, of which all teachers fit the poison equally.

    There is one draw of the poison.
    """
    few = matched_data(config, dataset)["few"]
    matched = replace(config, oracle_epochs=config.matched.epochs, unlearn_features=0)
    for case, unlearn in cases(matched, few, [0], config.teachers):
        methods = {name: config.method(name, training=unlearn) for name in config.methods}
        yield from judged_rows(config, case, methods, few, "matched_fit", "matched_selection")


# ---- what is shown ----


# The fit that teachers are to reach, as accuracy on the poisoned labels. If a model ends below it,
# the fit of the model that ends with the least takes its place.
MEMORISED = 0.9


def memorising(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Average teachers' accuracy on the poisoned labels after up to six of the measured epochs.

    Measure rule: the epoch of `matched_epochs`.
    """
    results = read[data, preset, "memorising"]
    runs = accuracies(results, "forget_poisoned")
    # The mean is over the runs of both draws, so that each run needs a number of its own.
    runs_of_draw = runs.run.max() + 1
    numbers = runs.run + runs.draw * runs_of_draw
    runs = runs.assign(run=numbers).drop(columns="draw")
    epochs = np.unique(runs.epoch)[::-1]  # the last first
    step = max(len(epochs) // 8, 1)
    late_epochs = epochs[::step][:6]
    late = runs[runs.epoch.isin(late_epochs)]
    titles = late.epoch.map("{:.0f} epochs".format)
    shown = over_runs(late.assign(measure=titles))
    rule = matched_epochs(results).assign(measure="rule", n=shown.n.max())
    return pd.concat([shown, rule], ignore_index=True)


def matched_epochs(results: xr.Dataset) -> pd.DataFrame:
    """Find for each model the epoch from which on its teachers fit the poison as all models can.

    The fit to reach is MEMORISED, or the least final accuracy of a model on the poisoned labels;
    accuracies are means over draws and runs. There is no epoch if the fit to reach is below one
    half, which a model that guesses has.
    """
    accuracy = results.accuracy.sel(split="forget_poisoned")
    mean = accuracy.mean(("draw", "run")).dropna("epoch", how="all")
    target = np.minimum(mean.isel(epoch=-1).min("model"), MEMORISED)
    mean = mean.where(target >= 0.5)
    epochs_below = mean.epoch.where(mean < target)
    last_below = epochs_below.max("epoch").fillna(-1)
    is_from_there_on = (mean.epoch > last_below) & mean.notnull()
    epochs = mean.epoch.where(is_from_there_on).min("epoch")
    frame = epochs.rename("value").to_series().reset_index()
    return frame.assign(family=frame.model.map(results.family.to_series()))


def paired_fits(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Subtract every other model's accuracy from the QNN's, for each method and for oracles."""
    # The study has one draw.
    runs = accuracies(read[data, preset, "matched_fit"], "validation").drop(columns="draw")
    return circuit_minus_others(runs)


TABLE = table_of(
    "matched_fit",
    "As the stage evaluation, on one draw, of few samples whose poison all teachers fit equally. n "
    "= {n} models of each kind",
)
PAIRED = StudyTable(
    name="paired-fit",
    frame=paired_fits,
    rows=("title",),
    columns=("minus",),
    head="QNN − {minus}, n = {n}",
)


# ---- what is claimed ----


def unlearns_better(read: ResultFiles, data: str, method: str, place: str) -> Claim:
    """Claim that the QNN has a larger validation accuracy than the MLP after a method.

    Control: the same with teachers that fit the poison equally. place: what the data set is called.
    """
    from foundation.report.claims import Claim, first_of, of_model, paired

    compared = {"evaluation": "teachers as they are", "matched_fit": "teachers of equal fit"}
    differences = []
    for study, teachers in compared.items():
        runs = accuracies(read[data, "corrected", study], "validation")
        runs = runs[(runs.poison == "labels") & (runs.unlearner == method)]
        circuit, mlp = (first_of(runs, family) for family in ("QNN", "MLP"))
        label = f"QNN − {mlp}, {teachers}"
        differences.append(paired(label, of_model(runs, circuit), of_model(runs, mlp)))
    return Claim(
        whose="the paper's",
        source="abstract: more amenable to forgetting",
        setting=AS_PUBLISHED,
        statement=f"After {runs.title.iloc[0]} the QNN is more accurate than the MLP: "
        f"{place}, 30 %",
        effect=differences[0],
        controls=(differences[1],),
    )


STUDY = Study(
    name="matched_fit",
    question="how far are methods of models that fit it equally",
    plan=plan,
    flags=MatchedFlags(),
    group="matched",
    quick={"samples": 60},
    tables=(TABLE, PAIRED),
    figures=(StudyFigure(name="matched_fit_scores", draw=forgetting_scores),),
    data=matched_data,
    reads=("evaluation",),
)

MEMORISING = Study(
    name="memorising",
    question="when have models learned the poison of few samples",
    plan=plan_memorising,
    flags=STUDY.flags,
    group=STUDY.group,
    tables=(
        StudyTable(
            frame=memorising,
            rows=("poison", "model"),
            title="Accuracy of teachers on the poisoned labels of few samples after so many "
            "epochs, n = {n} runs on two draws; rule: the epoch from which on they have nine "
            "tenths of them, or as many as the model that ends with the fewest",
        ),
    ),
    data=matched_data,
)
