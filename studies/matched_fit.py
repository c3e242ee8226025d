"""How far are methods from oracles if all models fit the poison equally, as they do of few
samples?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset, subset
from foundation.base.checks import require_whole
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import ResultFiles, accuracies, circuit_minus_others, over_runs
from studies.config import Config, parse_epochs
from studies.families import model_words
from studies.judging import forgetting_scores, judged_rows, table_of
from studies.oracles import CHOICE_DRAWS, cases
from studies.rows import scores_table
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
    """The few samples of which every model fits some poison."""
    return {"few": subset(dataset, config.matched.samples, seed=config.seed)}


def plan_memorising(config: Config, dataset: Dataset) -> Iterator[Row]:
    """How well teachers fit the poison of few samples along a long training, on draws that are not
    judged."""
    few = matched_data(config, dataset)["few"]
    for case, _ in cases(
        replace(config, unlearn_features=0), few, CHOICE_DRAWS, config.tuning_runs
    ):
        training = replace(case.training, epochs=config.long_epochs)
        measured = epochs_measured(config.long_epochs, points=4 * POINTS)
        for fit in replace(case, training=training).teachers():
            job = replace(fit, held_out_percent=0, record="curves", measured=measured)
            place = {"model": case.model.label, "poison": case.poison.kind, "draw": case.draw}
            yield Row(
                "memorising", job, place, scores_table, case.shown(job), model_words(case.model)
            )


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The stage evaluation on few samples, on one draw, with teachers that fit the poison
    equally."""
    few, own = (
        matched_data(config, dataset)["few"],
        {"oracle_epochs": config.matched.epochs, "unlearn_features": 0},
    )
    for case, unlearn in cases(replace(config, **own), few, [0], config.teachers):
        methods = {name: config.method(name, training=unlearn) for name in config.methods}
        yield from judged_rows(config, case, methods, few, "matched_fit", "matched_selection")


# ---- what is shown ----


MEMORISED = 0.9  # of the poisoned labels, or as many as the model has that ends with the fewest


def memorising(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracy of teachers on the poisoned labels of few samples; the epoch from which on they fit
    them equally."""
    runs = accuracies(read[data, preset, "memorising"], "forget_poisoned")
    runs = runs.assign(run=runs.run + runs.draw * (runs.run.max() + 1)).drop(columns="draw")
    some = np.unique(runs.epoch)[::-1]
    late = runs[runs.epoch.isin(some[:: max(len(some) // 8, 1)][:6])]
    shown = over_runs(late.assign(measure=late.epoch.map("{:.0f} epochs".format)))
    found = matched_epochs(read[data, preset, "memorising"])
    return pd.concat([shown, found.assign(measure="rule", n=shown.n.max())], ignore_index=True)


def matched_epochs(results: xr.Dataset) -> pd.DataFrame:
    """The epoch from which on teachers have as many of the poisoned labels as all of them can have.

    That is MEMORISED, or what the model has at its end that then has the fewest; means over draws
    and runs. No epoch where that is less than half: a model that guesses has as many.
    """
    mean = (
        results.accuracy.sel(split="forget_poisoned")
        .mean(("draw", "run"))
        .dropna("epoch", how="all")
    )
    least = np.minimum(mean.isel(epoch=-1).min("model"), MEMORISED)
    mean = mean.where(least >= 0.5)
    # the last one at which it has fewer
    after = mean.epoch.where(mean < least).max("epoch").fillna(-1)
    first = (
        mean.epoch.where((mean.epoch > after) & mean.notnull())
        .min("epoch")
        .rename("value")
        .to_series()
        .reset_index()
    )
    return first.assign(family=first.model.map(results.family.to_series()))


def paired_fits(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The QNN minus each other model where all fit the poison equally, their oracles as well."""
    # there is one
    runs = accuracies(read[data, preset, "matched_fit"], "validation").drop(columns="draw")
    return circuit_minus_others(runs)


TABLE = table_of(
    "matched_fit",
    "As the stage evaluation, on one draw, of few samples whose poison all teachers fit equally. n "
    "= {n} models of each "
    "kind",
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
    """Validation accuracy of the QNN less the MLP's after a method.

    Controls: teachers that fit the poison equally, and the QNN less a quadratic form without a
    circuit among these.
    """
    from foundation.report.claims import Claim, first_of, of_model, paired

    found = []
    parts = {
        "evaluation": ("teachers as they are", ["MLP"]),
        "matched_fit": ("teachers stopped at as much poison", ["MLP", "Quadratic"]),
    }
    for study, (words, families) in parts.items():
        runs = accuracies(read[data, "corrected", study], "validation").query(
            "poison == 'labels' and draw == 0"
        )
        runs = runs[runs.unlearner == method]
        circuit = of_model(runs, first_of(runs, "QNN"))
        for other in (first_of(runs, family) for family in families):
            found.append(paired(f"QNN − {other}, {words}", circuit, of_model(runs, other)))
    statement = f"After {runs.title.iloc[0]} the QNN is more accurate than the MLP: {place}, 30 %"
    return Claim("the paper's", statement, found[0], tuple(found[1:]))


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
            "epochs, n = {n} runs on two "
            "draws; rule: the epoch from which on they have nine tenths of them, or as many as the "
            "model that ends with "
            "the fewest",
        ),
    ),
    data=matched_data,
)
