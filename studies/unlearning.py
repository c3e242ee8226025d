"""How do accuracies move along the methods, and where do these end over two of their
hyper-parameters?"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset
from foundation.base.checks import require
from foundation.engine.jobs import Arrays
from foundation.engine.runner import require_list
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.measures import metrics
from foundation.report.frames import (
    SOURCES,
    ResultFiles,
    accuracies,
    difference,
    every_run,
    method_titles,
    models_and_poisons,
    over_runs,
    tidy,
)
from foundation.report.layout import digits
from poison_unlearn import Method, Poison
from protocol import Fit
from studies.config import Config
from studies.families import FAMILIES, model_words
from studies.rows import poisons_to_unlearn, scores_table, training_job, unlearning_job

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim

KEPT_VALIDATION = 500  # validation samples whose logits a study's file holds


@dataclass(frozen=True, kw_only=True)
class WeightMapFlags(Flags):
    """Of the stage weight_map."""

    weights: tuple[float, ...] = tuple(i / 10 for i in range(10))
    """Grid of the hyper-parameters."""
    runs: int = 0
    """Repetitions of each cell where --runs is larger; 0: as many as --runs."""

    AXES = ("weights", "runs")

    def check(self, config: Config) -> None:
        require_list("weights", self.weights)
        for weight in self.weights:
            require(0 <= weight < np.inf, "weights", weight, "finite numbers, 0 or more")
        require(self.runs >= 0, "runs", self.runs, "1 or more, or 0 for --runs")


# ---- what is computed ----


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Unlearning curves of each model, poison and method, behind the teachers they share."""
    for teacher, method, place, words in unlearning_cases(config, dataset):
        words["alpha_percent"] = ("poison", teacher.poison.alpha_percent)
        for block in config.blocks():
            job = unlearning_job(config, teacher, method, block, record="curves")
            yield Row("unlearning", job, place, curves_table, config.shown(job.runs), words)


def plan_map(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Final validation accuracy over the one or two hyper-parameters that a method maps: a job for
    each cell."""
    runs = min(config.weight_map.runs or config.runs, config.runs)
    for teacher, method, place, words in unlearning_cases(config, dataset):
        names = method.mapped()
        for axis, name in itertools.zip_longest(("first", "second"), names, fillvalue=""):
            words[f"{axis}_name"] = ("unlearner", name)
            words[f"{axis}_default"] = ("unlearner", getattr(method, name) if name else 0.0)
        for cell in (
            itertools.product(config.weight_map.weights, repeat=len(names)) if names else ()
        ):
            changed = replace(method, **dict(zip(names, cell, strict=True)))
            at = place | dict(zip(("first", "second"), (*cell, 0.0), strict=False))
            for block in config.blocks(runs):
                job = unlearning_job(config, teacher, changed, block, record="end")
                yield Row("weight_map", job, at, cell_table, config.shown(job.runs, runs), words)


def unlearning_cases(config: Config, dataset: Dataset) -> Iterator[tuple[Fit, Method, dict, dict]]:
    """Teacher (its block 0), method, place and words of each model, poison and method.

    Refuses shares that poison no sample, or all of them, before anything is trained.
    """
    poisons = poisons_to_unlearn(config, dataset)
    for kind, alpha in poisons.items():
        known = Poison(kind, alpha).draw(dataset, key=0).known
        allowed = (
            f"a share that poisons some of {len(known)} samples and not all, or 0 to leave it out"
        )
        require(known.any() and not known.all(), f"--unlearn-{kind}", alpha, allowed)
    for each, (kind, alpha), name in itertools.product(
        config.models, poisons.items(), config.methods
    ):
        model, protocol = FAMILIES[each].unlearning(config, dataset), config.protocol(each)
        teacher = training_job(
            config, dataset, protocol.teacher, protocol, model, Poison(kind, alpha), 0
        )
        method = config.method(name, training=protocol.unlearn)
        own = {
            "title": ("unlearner", method.title or name),
            "fresh": ("unlearner", float(method.is_fresh)),
        }
        yield (
            teacher,
            method,
            {"model": model.label, "poison": kind, "unlearner": name},
            model_words(model) | own,
        )


def curves_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """The curves, and the logit of every measured sample at their end, with which samples are
    what."""
    table = scores_table(row, arrays)
    n = arrays["mask"].shape[1]
    logits = arrays["logit"][:, : 2 * n + KEPT_VALIDATION].astype(np.float16)
    counts = [n, n, logits.shape[1] - 2 * n]
    table["logit"] = (*row.place, "run", "sample"), logits[(None,) * len(row.place)]
    for name, mask in (("poisoned", arrays["mask"]), ("known", arrays["known"])):
        padded = np.pad(
            np.tile(mask, 2).astype(float), ((0, 0), (0, counts[2])), constant_values=np.nan
        )
        table[name] = ("poison", "run", "sample"), padded[None]
    if "label" in arrays:  # not in results that an earlier version kept
        table["label"] = (
            ("poison", "run", "sample"),
            arrays["label"][None, :, : logits.shape[1]].astype(float),
        )
    part = np.repeat(["train", "train_clean", "validation"], counts)
    return table.assign_coords(sample=np.arange(len(part)), part=("sample", part))


def cell_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (…, run): on the validation set, at the end."""
    table = scores_table(row, arrays)
    return table.assign(accuracy=table.accuracy.sel(split="validation")).drop_vars(
        ["split", "loss"]
    )


# ---- what is shown: tables ----


def ends_and_stability(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of teachers (start) and after each method; std over runs and largest drop (median)
    of validation."""
    runs = accuracies(
        read[data, preset, "unlearning"], "validation", "forget_poisoned", "forget_clean", "retain"
    )
    validation = runs[runs.measure == "validation"].drop(columns="measure")
    return pd.concat(
        [over_runs(ends_of_methods(runs)), tidy(validation, _stability)], ignore_index=True
    )


def ends_of_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """The last epoch of each method; and the first of one that starts from the teacher, as
    `start`."""
    last = runs[runs.epoch == runs.groupby(["model", "poison", "unlearner"]).epoch.transform("max")]
    teachers = runs[(runs.epoch == 0) & (runs.fresh == 0)]
    one = teachers.unlearner == teachers.groupby(["model", "poison"]).unlearner.transform("first")
    return pd.concat(
        [teachers[one].assign(unlearner="start", title="start"), last], ignore_index=True
    )


def _stability(own: pd.DataFrame) -> Iterator[tuple]:
    curves = own.pivot(index="run", columns="epoch", values="accuracy").values
    deviation, *interval = metrics.spread(curves[:, -1])
    yield "std", deviation, np.nan, *(interval if len(curves) > 2 else (np.nan, np.nan))
    yield "drop", np.median(metrics.largest_drop(curves)), np.nan, np.nan, np.nan


def weight_maps(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Lowest and highest cell (mean over runs) of each map, and the share of it near Retrain in the
    same runs."""
    results, same = read[data, preset, "weight_map"], ["model", "poison", "run"]
    retrain = pd.DataFrame(columns=[*same, "accuracy"])
    if (data, preset, "unlearning") in read.paths:
        retrain = ends_of_methods(accuracies(read[data, preset, "unlearning"], "validation")).query(
            "unlearner == 'retrain'"
        )

    def of_map(own: pd.DataFrame) -> Iterator[tuple]:
        here = own[["model", "poison", "unlearner"]].iloc[0].to_dict()
        cells, diverged = (
            results.accuracy.sel(here).mean("run"),
            (results.diverged.sel(here) > 0).any("run"),
        )
        ends = retrain.merge(own[same].drop_duplicates()).accuracy
        near = metrics.share_near(cells, ends.mean(), diverged=diverged) if len(ends) else np.nan
        for measure, value in {
            "lowest": cells.min(),
            "highest": cells.max(),
            "near Retrain": near,
        }.items():
            yield measure, float(value), np.nan, np.nan, np.nan

    return tidy(every_run(results), of_map, over=("first", "second"))


def paired_methods(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Every method minus fine-tuning, and minus retraining, by run."""
    ends = ends_of_methods(
        accuracies(read[data, preset, "unlearning"], "validation", "forget_poisoned")
    )
    parts = [
        (~ends.unlearner.isin(("start", name)), ends.unlearner == name)
        for name in ("cf", "retrain")
    ]
    return pd.concat(
        [difference(ends[own], ends[other], "title") for own, other in parts], ignore_index=True
    )


TABLE = StudyTable(
    frame=ends_and_stability,
    rows=("model", "poison", "unlearner"),
    measures={
        "validation": "valid",
        "forget_poisoned": "f.pois",
        "forget_clean": "f.clean",
        "retain": "retain",
        "std": "std",
        "drop": "drop",
    },
    spread=("std",),
    title="Unlearning: accuracy, mean of n = {n} runs. f.pois, f.clean: on the forget set, for "
    "labels against the "
    "poisoned (low is good) and the true ones, for features on poisoned and clean inputs; std: of "
    "valid across "
    "runs, with its 95 % bootstrap interval from 3 runs on; drop: largest fall of valid below its "
    "best within a "
    "run, median",
    findings={
        "rows": ("poison", "model", "title"),
        "columns": ("preset", "measure"),
        "head": "{measure}, {preset}, n = {n}",
        "spread": None,
        "measures": {"validation": "validation", "forget_poisoned": "forgetting"},
    },
    presets=SOURCES,
)
PAIRED = StudyTable(
    name="paired-unlearning",
    frame=paired_methods,
    rows=("poison", "model", "title"),
    columns=("minus", "measure"),
    head="{measure} − {minus}, n = {n}",
    measures={
        "difference in validation": "validation",
        "difference in forget_poisoned": "forgetting",
    },
)
MAP_TABLE = StudyTable(
    name="maps",
    frame=weight_maps,
    rows=("model", "poison", "unlearner"),
    title="Weight maps: final validation accuracy of the cells, mean of n = {n} runs; near "
    "Retrain: the share of "
    "cells within .05 of it",
    findings={
        "rows": ("poison", "model", "title"),
        "columns": ("preset", "measure"),
        "head": "{measure}, {preset}",
    },
    presets=SOURCES,
)

# ---- what is shown: figures ----

FORGET_NAMES = {  # what the two forgetting accuracies are, for each poison
    "labels": {"forget_poisoned": "poisoned labels", "forget_clean": "true labels"},
    "features": {
        "forget_poisoned": "poisoned inputs, true labels",
        "forget_clean": "clean inputs, true labels",
    },
}
# for a poison that a user added
OWN_FORGET_NAMES = {
    "forget_poisoned": "as poisoned",
    "forget_clean": "as before",
}
WEIGHT_NAMES = {"forget": "forget weight", "kl": "KL weight"}


def unlearning_curves(results: xr.Dataset) -> Figure | None:
    """Validation and forgetting accuracy against the epoch of unlearning, a row for each model and
    poison.

    Forgetting accuracy is, of flipped labels, against the poisoned (low is good, as published) and
    the true ones; of randomised features, on poisoned and clean inputs, with true labels. The
    counterpart of arXiv:2508.02422, Fig. 3.
    """
    from foundation.report.drawing import (
        MOST_BANDS,
        band_words,
        draw_curve,
        finished,
        method_styles,
        panels_for,
        poison_words,
    )

    rows, titles, styles = (
        models_and_poisons(results),
        method_titles(results),
        method_styles(results),
    )
    if not rows:
        return None
    places = itertools.product(rows, ("validation", "forget_poisoned", "forget_clean"))
    for axis, ((model, poison), split) in panels_for(places, "epoch of unlearning", rows=len(rows)):
        name = FORGET_NAMES.get(poison, OWN_FORGET_NAMES).get(split)
        name = f"forgetting accuracy,\n{name}" if name else "validation accuracy"
        axis.set(ylabel=name, title=f"{model}, {poison_words(poison)}")
        for method, style in styles.items():
            runs = results.accuracy.sel(model=model, poison=poison, split=split, unlearner=method)
            if runs.count():
                draw_curve(
                    axis, runs, (*style, None), titles[method], bands=len(styles) <= MOST_BANDS
                )
    text, config = band_words(results, len(styles)), json.loads(results.attrs["config"])
    held = [name for name in ("MLP", "QNN") if name in results.family.values]
    whole = [name for name in held if not config[name.lower()]["unlearn"]["batch_size"]]
    if whole and not config["independent_teachers"]:  # nothing random tells their runs apart
        text += (
            f". One teacher and full batches: {' and '.join(whole)} runs of all methods but "
            "Retrain are the same"
        )
        text += ", apart from rounding"
    return finished(text, results, legend=True)


def map_figure(results: xr.Dataset) -> Figure | None:
    """Final validation accuracy over each method's weights: a heat map over two of them, a line
    over one."""
    from foundation.report.drawing import (
        band_words,
        draw_curve,
        finished,
        method_styles,
        panels_for,
        plt,
        poison_words,
    )

    rows, titles, styles = (
        models_and_poisons(results),
        method_titles(results),
        method_styles(results),
    )
    if not rows:
        return None
    means = results.accuracy.mean("run")
    # to .05, in all panels
    limits = (np.floor(20 * float(means.min())) / 20, np.ceil(20 * float(means.max())) / 20)
    for axis, ((model, poison), method) in panels_for(
        itertools.product(rows, titles), rows=len(rows)
    ):
        own = results.sel(model=model, poison=poison, unlearner=method)
        for axis_name in ("first", "second"):
            own = own.dropna(axis_name, how="all", subset=["accuracy"])
        names = [own.first_name.item(), own.second_name.item()]
        first, second = (WEIGHT_NAMES.get(name, name) for name in names)
        axis.set(xlabel=first, ylabel=second or "validation accuracy")
        axis.set_title(f"{titles[method]}\n{model}, {poison_words(poison)}")
        if not own.accuracy.size:
            axis.set_axis_off()
        elif second:
            _heat_map(axis, own, limits)
        else:
            draw_curve(axis, own.accuracy[{"second": 0}], (*styles[method], "o"))
    has_cross = any(axis.images and axis.lines for axis in plt.gcf().axes)
    words = ", cross: weights of the unlearning curves" * has_cross
    return finished(f"heat map: mean{words}; line: {band_words(results)}", results)


def _heat_map(axis: Axes, own: xr.Dataset, limits: tuple[float, float]) -> None:
    """One method's map, with a cross at the weights of its unlearning curves where it holds
    those."""
    from foundation.report.drawing import sns

    cells = own.accuracy.mean("run").transpose("second", "first")
    image = axis.imshow(
        cells, vmin=limits[0], vmax=limits[1], cmap="cividis", origin="lower", aspect="auto"
    )
    axis.figure.colorbar(image, ax=axis, label="validation accuracy")
    x, y = ([f"{weight:g}" for weight in cells[dim].values] for dim in ("first", "second"))
    axis.set(xticks=range(len(x)), xticklabels=x, yticks=range(len(y)), yticklabels=y)
    sns.despine(ax=axis, left=True, bottom=True)
    cross = [
        np.flatnonzero(np.isclose(cells[dim], own[f"{dim}_default"])) for dim in ("first", "second")
    ]
    if all(map(len, cross)):
        axis.plot(*cross, "x", color="white", markersize=6, markeredgewidth=1.4)


# ---- what is claimed ----


def forgets_by_its_term(
    read: ResultFiles, data: str, method: str, measure: str, place: str
) -> Claim:
    """What a method with a forget term does to the QNN's teacher; control: fine-tuning, which has
    none."""
    from foundation.report.claims import Claim, first_of, paired

    results = read[data, "corrected", "unlearning"]
    runs = ends_of_methods(accuracies(results, measure)).query("poison == 'labels'")
    runs = runs[runs.model == first_of(runs, "QNN")].set_index("unlearner")
    sign = 1 if measure == "validation" else -1
    sides = {
        name: runs.loc[name].assign(accuracy=lambda own: sign * own.accuracy)
        for name in (method, "start", "cf")
    }
    title = runs.loc[method].title.iloc[0]
    effect, control = (paired(f"{title} − {word}", sides[method], sides[name]) for name, word in
                       (("start", "teacher"), ("cf", "Fine-tune")))  # fmt: skip
    what = (
        "restore its accuracy" if measure == "validation" else "make it forget the poisoned labels"
    )
    statement = f"It takes the forget term of {title} to {what}: the QNN, {place}, 30 %"
    return Claim("the paper's", statement, effect, (control,))


def stable_over_weights(read: ResultFiles, data: str, method: str, place: str) -> Claim:
    """The share of a weight map near Retrain, the QNN's less the MLP's; control: nearer than .02 in
    place of .05."""
    from foundation.report.claims import Claim, Evidence

    maps, ends = read[data, "corrected", "weight_map"], read[data, "corrected", "unlearning"]
    at_end = ends.accuracy.isel(epoch=-1)
    retrain = at_end.sel(unlearner="retrain", poison="labels", split="validation")
    cells = maps.accuracy.sel(unlearner=method, poison="labels")

    family = maps.family.to_series()
    names = [next(name for name in family.index if family[name] == each) for each in ("QNN", "MLP")]
    runs = [run for run in cells.run.values if run in retrain.run.values]
    both = []
    for name in names:
        of_map = cells.sel(model=name, run=runs).transpose("run", ...).values
        both.append((of_map, retrain.sel(model=name, run=runs).values))

    def difference_of_shares(chosen: np.ndarray, tolerance: float) -> float:
        """QNN minus MLP, of means over these of the runs."""
        circuit, mlp = (_share_near(*pair, chosen, tolerance) for pair in both)
        return circuit - mlp

    generator, differences = np.random.default_rng(0), []
    n = len(runs)
    for tolerance in (0.05, 0.02):
        resampled = [generator.integers(n, size=n) for _ in range(400)]
        drawn = [difference_of_shares(chosen, tolerance) for chosen in resampled]
        low, high = np.percentile(drawn, (2.5, 97.5))
        words = f"share within {digits(tolerance)} of Retrain, QNN − {names[1]}"
        value = difference_of_shares(np.arange(n), tolerance)
        differences.append(Evidence(words, value, low, high, n, np.nan))
    statement = f"The QNN is more stable over the weights of {method_titles(maps)[method]}: {place}"
    return Claim("the paper's", statement, differences[0], (differences[1],))


def _share_near(
    of_map: np.ndarray, retrain: np.ndarray, chosen: np.ndarray, tolerance: float
) -> float:
    """The share of a map's cells near Retrain, both as means over the chosen runs (runs, ...)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a cell that was not tried has no mean
        cells, reference = np.nanmean(of_map[chosen], axis=0), np.nanmean(retrain[chosen])
        return metrics.share_near(cells, reference, tolerance=tolerance)


STUDY = Study(
    name="unlearning",
    question="how do accuracies move along the methods",
    plan=plan,
    tables=(TABLE, PAIRED),
    figures=(StudyFigure(name="unlearning", draw=unlearning_curves),),
)
WEIGHT_MAP = Study(
    name="weight_map",
    question="where do methods end over two of their hyper-parameters",
    plan=plan_map,
    flags=WeightMapFlags(),
    corrected={"runs": 5},  # of 110 cells each: the maps are most of the work
    quick={"weights": (0.0, 0.4, 0.8)},
    tables=(MAP_TABLE,),
    figures=(StudyFigure(name="weight_map", draw=map_figure),),
    reads=("unlearning",),
)
