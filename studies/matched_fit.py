"""How do models unlearn if all of them fit the poison of few samples equally?

How far from oracles, on one draw of the poison; and how accurate they are, on many draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datar import Dataset, subset
from foundation.base.checks import require, require_whole
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job, values_of
from foundation.engine.runner import require_list
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import (
    ResultFiles,
    accuracies,
    circuit_minus_others,
    method_titles,
    ordered,
    over_runs,
)
from models import Training
from poison_unlearn import FineTune, Poison
from protocol import SPLITS, Fit
from studies.config import Config, parse_epochs
from studies.families import model_words
from studies.judging import judged_rows, table_of
from studies.judging_figures import forgetting_scores
from studies.oracles import CHOICE_DRAWS, Case, cases, null_of, split_sizes
from studies.rows import AS_PUBLISHED, NULL_ARM, placed, scores_table, why_not
from studies.tuning import POINTS, epochs_measured
from studies.unlearning import ends_of_methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim, Evidence


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


@dataclass(frozen=True, kw_only=True)
class EqualFitFlags(Flags):
    """Of the stage equal_fit."""

    samples: tuple[int, ...] = (24, 100)
    """Sizes of the training sets."""
    draws: int = 12
    """Draws of the poison for each size."""
    runs: int = 5
    """Models of each kind on each draw."""

    AXES = ("samples", "draws", "runs")

    def check(self, config: Config) -> None:
        require_list("samples", self.samples)
        for count in self.samples:
            require_whole("samples", count, least=10)
        require_whole("draws", self.draws)
        require_whole("runs", self.runs)


# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class FitChoice(Job):
    """Find for each model the epoch from which on its teachers fit the poison as all models can."""

    fits: tuple[tuple[Fit, ...], ...]  # of each model: long trainings of these teachers

    @property
    def needs(self) -> tuple[Job, ...]:
        """The trainings of all models."""
        return tuple(itertools.chain.from_iterable(self.fits))

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return epochs (models,), by `epochs_of_equal_fit` of any fit."""
        place = SPLITS.index("forget_poisoned")
        curves = iter([arrays["accuracy"][..., place] for arrays in inputs])  # (runs, epochs) each
        means = []
        for fits_of_model in self.fits:
            of_model = np.concatenate([next(curves) for _ in fits_of_model])
            means.append(of_model.mean(axis=0))
        counts = np.array(self.fits[0][0].measured)
        epochs = epochs_of_equal_fit(np.array(means), counts, least=0.0)
        return {"epochs": np.where(np.isfinite(epochs), epochs, counts[-1]).astype(int)}


@dataclass(frozen=True, kw_only=True)
class EqualTeacher(Fit):
    """A block of teachers that are trained for the epochs of equal fit."""

    choice: FitChoice
    place: int  # of the model in the choice

    @property
    def needs(self) -> tuple[Job, ...]:
        """The choice of epochs."""
        return (self.choice,)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return the arrays of a Fit, and the number of its epochs ()."""
        (choice,) = inputs
        epochs = int(choice["epochs"][self.place])
        training = replace(self.method.training, epochs=epochs)
        values = values_of(self, Fit) | {"method": replace(self.method, training=training)}
        return Fit(**values).perform(dataset) | {"epochs": np.array(epochs)}


# The fit that teachers are to reach, as accuracy on the poisoned labels. If a model ends below it,
# the fit of the model that ends with the least takes its place.
MEMORISED = 0.9


def epochs_of_equal_fit(fit: np.ndarray, counts: np.ndarray, least: float = 0.5) -> np.ndarray:
    """Return the epoch from which on each model fits the poison as all models can: (models,).

    fit: accuracy on the poisoned labels (models, epochs), after `counts` (epochs,). It falls while
    a model learns the true labels, and rises again where it learns the poisoned ones. The fit to
    reach is MEMORISED, or the least final one of a model; a model that is never below takes the
    epoch of its least fit. NaN if the fit to reach is below `least`, and for a model without
    numbers.
    """
    target = min(np.nanmin(fit[:, -1]), MEMORISED)
    is_below = fit < target
    since_last_below = np.argmax(is_below[:, ::-1], axis=1)
    of_least = np.argmin(np.nan_to_num(fit, nan=np.inf), axis=1)
    first = np.where(is_below.any(axis=1), len(counts) - since_last_below, of_least)
    is_found = np.isfinite(fit).all(axis=1) & (target >= least)
    return np.where(is_found, counts[np.minimum(first, len(counts) - 1)], np.nan)


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
        place = {"model": case.model.label, "poison": case.poison.name, "draw": case.draw}
        coords = model_words(case.model)
        for job in _long_training(config, case):
            yield Row("memorising", job, place, scores_table, case.shown(job), coords)


def _long_training(config: Config, case: Case) -> list[Fit]:
    """Return the jobs of a case's teachers, trained for long and measured often."""
    training = replace(case.training, epochs=config.long_epochs)
    recorded = {
        "held_out_percent": 0,
        "record": "curves",
        "measured": epochs_measured(config.long_epochs, points=4 * POINTS),
    }
    return [replace(fit, **recorded) for fit in replace(case, training=training).teachers()]


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Compare methods with oracles on few samples, of which all teachers fit the poison equally.

    There is one draw of the poison.
    """
    few = matched_data(config, dataset)["few"]
    matched = replace(config, oracle_epochs=config.matched.epochs, unlearn_features=0)
    for case, unlearn in cases(matched, few, [0], config.teachers):
        methods = {name: config.method(name, training=unlearn) for name in config.methods}
        yield from judged_rows(config, case, methods, few, "matched_fit", "matched_selection")


def fitted_data(config: Config, dataset: Dataset) -> dict[tuple[int, int], Dataset]:
    """Return a subset of the samples for each size and draw, by both."""
    flags = config.equal_fit
    most = len(dataset.train.y)
    for count in flags.samples:
        require(count < most, "--equal-fit.samples", count, f"fewer than the {most} samples")
    places = itertools.product(flags.samples, range(flags.draws))
    return {
        (count, draw): subset(dataset, count, seed=(config.seed, draw)) for count, draw in places
    }


def plan_equal_fit(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Unlearn with teachers of equal fit, on many draws of few samples and of their poison.

    On each draw all models are trained until they fit its poison as the one does that ends with the
    least. Methods have their default settings, each family its published training. The null arm is
    trained on with the poison for as many steps as fine-tuning takes.
    """
    without_features = replace(config, unlearn_features=0)
    for (count, draw), few in fitted_data(config, dataset).items():
        compared: dict[Poison, list[tuple[Case, Training]]] = {}
        for case, unlearn in cases(without_features, few, [draw], config.equal_fit.runs):
            compared.setdefault(case.poison, []).append((case, unlearn))
        for poison, pairs in compared.items():
            trainings = [tuple(_long_training(config, case)) for case, _ in pairs]
            choice = FitChoice(data=few.provenance["sha256"], fits=tuple(trainings))
            for place, (case, unlearn) in enumerate(pairs):
                at = {"samples": count, "model": case.model.label, "poison": poison.kind}
                for fit in case.teachers():
                    teacher = EqualTeacher(**values_of(fit), choice=choice, place=place)
                    for name, title, job in _arms(config, teacher, unlearn, few):
                        labels = at | {"unlearner": name, "draw": draw}
                        coords = model_words(case.model) | {"title": ("unlearner", title)}
                        yield Row("equal_fit", job, labels, fitted_table, case.shown(job), coords)


def fitted_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate scores, and trained_epochs (…) of teachers."""
    table = scores_table(row, arrays)
    if "epochs" not in arrays:
        return table
    own = xr.Dataset({"trained_epochs": ((), float(arrays["epochs"]))})
    return table.assign(placed(own, row))


def _arms(
    config: Config, teacher: EqualTeacher, unlearn: Training, few: Dataset
) -> Iterator[tuple[str, str, Fit]]:
    """Yield name, title and job of teachers, null arm and each method that the model allows."""
    yield "teacher", "teacher", teacher
    start = values_of(teacher, Fit) | {"start": teacher}
    null = null_of(FineTune(training=unlearn), *split_sizes(teacher.poison, few))
    yield NULL_ARM, NULL_ARM, Fit(**start | {"method": null, "retains": False})
    for name in config.methods:
        method = config.method(name, training=unlearn)
        if not why_not(method, teacher.model, few, teacher.poison):
            yield name, method.title or name, Fit(**start | {"method": method})


# ---- what is shown ----


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
    found = xr.apply_ufunc(
        epochs_of_equal_fit,
        mean,
        mean.epoch,
        input_core_dims=[["model", "epoch"], ["epoch"]],
        output_core_dims=[["model"]],
        vectorize=True,
    )
    frame = found.rename("value").to_series().reset_index()
    return frame.assign(family=frame.model.map(results.family.to_series()))


def paired_fits(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Subtract every other model's accuracy from the QNN's, for each method and for oracles."""
    # The study has one draw.
    runs = accuracies(read[data, preset, "matched_fit"], "validation").drop(columns="draw")
    return circuit_minus_others(runs)


def equal_fits(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Average accuracies over draws of the poison, after each method that starts at equal fit."""
    measures = ("validation", "forget_poisoned", "forget_clean")
    runs = accuracies(read[data, preset, "equal_fit"], *measures)
    return over_runs(_means_of_draws(runs))


def _means_of_draws(runs: pd.DataFrame) -> pd.DataFrame:
    """Average the models of each draw, and let draws stand for runs."""
    labels = [name for name in runs if name not in ("run", "accuracy")]
    means = runs.groupby(labels, sort=False, dropna=False).accuracy.mean().reset_index()
    return means.rename(columns={"draw": "run"})


def equal_fit_figure(results: xr.Dataset) -> Figure | None:
    """Draw accuracies after each method, a panel for each size and set, a colour for each model."""
    from foundation.report.drawing import draw_dot, finished, grid_for, model_styles

    models = model_styles(results, ordered(results, "model"))
    names = ordered(results, "unlearner")[::-1]
    titles = method_titles(results)
    splits = {
        "validation": "validation",
        "forget_poisoned": "forget set, poisoned labels",
        "forget_clean": "forget set, true labels",
    }
    panels = itertools.product(results.samples.values, results.poison.values, splits)
    means = results.accuracy.mean("run")  # over the models of a draw
    for axis, (samples, poison, split) in grid_for(list(panels), "accuracy", most=3):
        for row, name in enumerate(names):
            for place, (model, (colour, _, mark)) in enumerate(models.items()):
                at = {"samples": samples, "poison": poison, "split": split}
                draws = means.sel(at | {"unlearner": name, "model": model}).dropna("draw").values
                if len(draws):
                    height = row + 0.18 * ((len(models) - 1) / 2 - place)
                    draw_dot(axis, height, draws, (colour, mark), across=True, line_on_top=True)
        axis.set_yticks(range(len(names)), labels=[titles[name] for name in names])
        axis.set_title(f"{samples} samples: {splits[split]}")
        for model, (colour, _, mark) in models.items():
            axis.plot([], [], mark, color=colour, markersize=4, label=model)
    text = (
        f"mean of {results.sizes['draw']} draws of samples and poison and its 95 % bootstrap "
        "interval; on each draw teachers are trained until all fit the poisoned labels equally"
    )
    return finished(text, results, legend=True)


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


EQUAL_FITS = StudyTable(
    frame=equal_fits,
    rows=("samples", "poison", "model", "unlearner"),
    title="Teachers that fit the poison of few samples equally, and what methods make of them: "
    "accuracy on the validation set and on the poisoned samples by the labels trained on and by "
    "their true ones; mean of n = {n} draws of the samples and their poison",
)


# ---- what is claimed ----


EQUAL = 0.1  # the largest difference of two fits, means over draws, that are called equal


def unlearns_better(read: ResultFiles, data: str, method: str, measure: str, place: str) -> Claim:
    """Claim that the QNN is ahead of the MLP after a method, by accuracy or by forgetting.

    Controls: the same with teachers that fit the poison of few samples equally, of each size.
    measure: a split; forgetting counts as minus its accuracy. place: what the data set is called.
    Raises ValueError where the fits of a size differ by more than EQUAL.
    """
    from foundation.report.claims import Claim, of_family, paired

    is_accuracy = measure == "validation"

    def difference(runs: pd.DataFrame, of_method: str, words: str) -> Evidence:
        runs = runs[(runs.poison == "labels") & (runs.unlearner == of_method)]
        runs = runs.assign(accuracy=runs.accuracy if is_accuracy else -runs.accuracy)
        circuit, mlp = (of_family(runs, family) for family in ("QNN", "MLP"))
        name = f"QNN − {mlp.model.iloc[0]}, {words}"
        return paired(name, circuit, mlp, ceiling=1.0 if is_accuracy else 0.0)

    at_end = ends_of_methods(accuracies(read[data, "corrected", "unlearning"], measure))
    results = read[data, "corrected", "equal_fit"]
    of_sizes = dict(list(accuracies(results, measure).groupby("samples")))
    fits = accuracies(results, "forget_poisoned")
    for count in of_sizes:
        gap = difference(fits[fits.samples == count], "teacher", "fit").value
        if abs(gap) > EQUAL:
            raise ValueError(f"teachers of {count} samples differ by {abs(gap):.2f} in fit")
    title = method_titles(results)[method]
    gain = "more accurate" if is_accuracy else "further from the poisoned labels"
    return Claim(
        whose="the paper's",
        source="abstract: more amenable to forgetting",
        setting=AS_PUBLISHED,
        statement=f"After {title} the QNN is {gain} than the MLP: {place}, 30 %",
        effect=difference(at_end, method, "teachers as they are"),
        controls=tuple(
            difference(runs, method, f"equal fit of {count} samples")
            for count, runs in of_sizes.items()
        ),
    )


STUDY = Study(
    name="matched_fit",
    two_classes=True,
    question="how far are methods of models that fit it equally",
    plan=plan,
    flags=MatchedFlags(),
    group="matched",
    quick={"samples": 60},
    tables=(TABLE, PAIRED),
    figures=(StudyFigure(name="matched_fit_scores", draw=forgetting_scores),),
    data=matched_data,
)

MEMORISING = Study(
    name="memorising",
    two_classes=True,
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

EQUAL_FIT = Study(
    name="equal_fit",
    two_classes=True,
    question="how do methods fare from teachers of equal fit, over many draws",
    plan=plan_equal_fit,
    flags=EqualFitFlags(),
    quick={"samples": (24,), "draws": 2, "runs": 2},
    tables=(EQUAL_FITS,),
    figures=(StudyFigure(name="equal_fit", draw=equal_fit_figure),),
    data=fitted_data,
    reads=("unlearning",),
)
