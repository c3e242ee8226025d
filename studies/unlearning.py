"""How does accuracy move along each method, and where does it end over two hyper-parameters?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datar import Dataset
from foundation.base.checks import require
from foundation.base.labels import is_unpoisoned
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
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
from poison_unlearn import Method
from protocol import OF_CLASS, Fit
from studies.config import Config
from studies.families import FAMILIES, model_words
from studies.oracles import null_of, split_sizes
from studies.rows import (
    AS_PUBLISHED,
    NULL_ARM,
    for_poison,
    has_nothing_to_repair,
    poisons_to_unlearn,
    require_divergence,
    require_truth,
    scores_table,
    training_job,
    unlearning_job,
)

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
    """Plan the unlearning curves of each model, poison and method; methods share the teachers.

    Beside the methods stands the null arm: the teachers, trained on with the poison.
    """
    for teacher, method, place, coordinates in unlearning_cases(config, dataset, null_arm=True):
        coordinates["alpha_percent"] = ("poison", teacher.poison.alpha_percent)
        retains = False if place["unlearner"] == NULL_ARM else None
        for block in config.blocks():
            job = unlearning_job(config, teacher, method, block, record="curves")
            job = replace(job, retains=retains)
            yield Row("unlearning", job, place, curves_table, config.shown(job.runs), coordinates)


def plan_map(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan the final validation accuracy over the one or two hyper-parameters that a method maps.

    A job for each cell of the map and block of runs.
    """
    runs = min(config.weight_map.runs or config.runs, config.runs)
    for teacher, method, place, coordinates in unlearning_cases(config, dataset):
        names = method.mapped()
        if not names:
            continue
        for axis, name in itertools.zip_longest(("first", "second"), names, fillvalue=""):
            default = getattr(method, name) if name else 0.0
            coordinates[f"{axis}_name"] = ("unlearner", name)
            coordinates[f"{axis}_default"] = ("unlearner", default)
        for cell in itertools.product(config.weight_map.weights, repeat=len(names)):
            changed = replace(method, **dict(zip(names, cell, strict=True)))
            first, second = (*cell, 0.0)[:2]  # 0 where the map has one axis
            at = place | {"first": first, "second": second}
            for block in config.blocks(runs):
                job = unlearning_job(config, teacher, changed, block, record="end")
                shown = config.shown(job.runs, runs)
                yield Row("weight_map", job, at, cell_table, shown, coordinates)


def unlearning_cases(
    config: Config, dataset: Dataset, *, null_arm: bool = False
) -> Iterator[tuple[Fit, Method, dict, dict]]:
    """Teacher (block 0), method, place and coordinates of each model, poison and method.

    null_arm: whether fine-tuning's null arm stands behind the methods, as NULL_ARM. Place and
    coordinates are those of a Row. Raises BadInput for a share that poisons no sample, or all of
    them, before anything is trained.
    """
    poisons = poisons_to_unlearn(config, dataset)
    for poison in poisons:
        known = poison.draw(dataset, key=0).known
        n = len(known)
        allowed = f"a share that poisons some of {n} samples and not all, or 0 to leave it out"
        is_part = known.any() and not known.all()
        require(is_part, f"--unlearn-{poison.name}", poison.alpha_percent, allowed)
    names = (*config.methods, NULL_ARM) if null_arm else config.methods
    for family, poison, name in itertools.product(config.models, poisons, names):
        model = FAMILIES[family].unlearning(config, dataset)
        protocol = config.protocol(family)
        teacher = training_job(config, dataset, protocol.teacher, protocol, model, poison, 0)
        if name == NULL_ARM:
            fine_tuning = config.method("cf", training=protocol.unlearn)
            method = null_of(fine_tuning, *split_sizes(poison, dataset))
            title = NULL_ARM
        else:
            method = config.method(name, training=protocol.unlearn)
            if has_nothing_to_repair(method, poison):
                continue
            require_truth(method, dataset, name)
            require_divergence(method, dataset)
            method = for_poison(method, poison)
            title = method.title or name
        place = {"model": model.label, "poison": poison.name, "unlearner": name}
        coordinates = model_words(model) | {
            "title": ("unlearner", title),
            "fresh": ("unlearner", float(method.is_fresh)),
        }
        yield teacher, method, place, coordinates


def curves_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """The curves, and the logits (…, run, sample[, class]) at their end.

    There is an axis class of more than two classes. part: the set of a sample: train, train_clean,
    or validation, of which KEPT_VALIDATION are held. poisoned, known: NaN of validation samples.
    """
    table = scores_table(row, arrays)
    n = arrays["mask"].shape[1]
    most = 2 * n + KEPT_VALIDATION
    logits = arrays["logit"][:, :most].astype(np.float16)
    n_validation = logits.shape[1] - 2 * n
    axes_of_place = (None,) * len(row.place)
    axes = ("run", "sample", "class")[: logits.ndim]
    table["logit"] = (*row.place, *axes), logits[axes_of_place]
    if "class" in axes:
        table = table.assign_coords({"class": np.arange(logits.shape[-1])})
    dims = ("poison", "run", "sample")
    behind = ((0, 0), (0, n_validation))
    masks = {"poisoned": arrays["mask"], "known": arrays["known"]}
    for name, mask in masks.items():
        of_training = np.tile(mask, 2).astype(float)
        padded = np.pad(of_training, behind, constant_values=np.nan)
        table[name] = dims, padded[None]
    if "label" in arrays:  # not in results that an earlier version kept
        labels = arrays["label"][None, :, : logits.shape[1]]
        table["label"] = dims, labels.astype(float)
    part = np.repeat(["train", "train_clean", "validation"], [n, n, n_validation])
    return table.assign_coords(sample=np.arange(len(part)), part=("sample", part))


def cell_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (…, run): on the validation set, at the end."""
    table = scores_table(row, arrays)
    table = table.assign(accuracy=table.accuracy.sel(split="validation"))
    return table.drop_vars(["split", "loss"])


# ---- what is shown: tables ----


def ends_and_stability(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of teachers (start) and after each method, and how stable validation accuracy is.

    std: over runs, at the end. drop: the largest fall within a run, median.
    """
    results = read[data, preset, "unlearning"]
    splits = ("validation", OF_CLASS, "forget_poisoned", "forget_clean", "retain")
    runs = accuracies(results, *(name for name in splits if name in results.split.values))
    has_no_poison = runs.poison.map(is_unpoisoned) & (runs.measure == "forget_clean")
    runs = runs[~has_no_poison]
    validation = runs[runs.measure == "validation"].drop(columns="measure")
    ends = over_runs(ends_of_methods(runs))
    if "forget_clean" not in runs.measure.values:  # not known: a column of dashes
        numbers = dict.fromkeys(("value", "sd", "low", "high"), np.nan)
        unknown = ends[ends.measure == "forget_poisoned"].assign(measure="forget_clean", **numbers)
        ends = pd.concat([ends, unknown], ignore_index=True)
    stability = tidy(validation, _stability)
    return pd.concat([ends, stability], ignore_index=True)


def ends_of_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """Keep the last epoch of each method, behind the teachers as method `start`.

    The teachers are epoch 0 of the first method that starts from them.
    """
    last_epoch = runs.groupby(["model", "poison", "unlearner"]).epoch.transform("max")
    ends = runs[runs.epoch == last_epoch]
    teachers = runs[(runs.epoch == 0) & (runs.fresh == 0)]
    first_method = teachers.groupby(["model", "poison"]).unlearner.transform("first")
    starts = teachers[teachers.unlearner == first_method]
    starts = starts.assign(unlearner="start", title="start")
    return pd.concat([starts, ends], ignore_index=True)


def _stability(runs: pd.DataFrame) -> Iterator[tuple]:
    curves = runs.pivot(index="run", columns="epoch", values="accuracy").values
    at_end = curves[:, -1]
    deviation, *interval = metrics.spread(at_end)
    if len(curves) <= 2:
        interval = (np.nan, np.nan)
    yield "std", deviation, np.nan, *interval
    drop = np.median(metrics.largest_drop(curves))
    yield "drop", drop, np.nan, np.nan, np.nan


def weight_maps(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Lowest and highest cell (mean over runs) of each map, and the share of cells near Retrain.

    Retrain is the mean over the runs of the map; NaN where there is no study of it.
    """
    results = read[data, preset, "weight_map"]
    keys = ["model", "poison", "run"]
    retrain = pd.DataFrame(columns=[*keys, "accuracy"])
    if (data, preset, "unlearning") in read.paths:
        ends_of_all = ends_of_methods(accuracies(read[data, preset, "unlearning"], "validation"))
        retrain = ends_of_all.query("unlearner == 'retrain'")

    def of_map(runs: pd.DataFrame) -> Iterator[tuple]:
        place = runs[["model", "poison", "unlearner"]].iloc[0].to_dict()
        cells = results.accuracy.sel(place).mean("run")
        diverged = (results.diverged.sel(place) > 0).any("run")
        ends = retrain.merge(runs[keys].drop_duplicates()).accuracy
        near = np.nan
        if len(ends):
            near = metrics.share_near(cells, ends.mean(), diverged=diverged)
        values = {"lowest": cells.min(), "highest": cells.max(), "near Retrain": near}
        for measure, value in values.items():
            yield measure, float(value), np.nan, np.nan, np.nan

    return tidy(every_run(results), of_map, over=("first", "second"))


def paired_methods(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Every method minus fine-tuning, and minus retraining, by run."""
    runs = accuracies(read[data, preset, "unlearning"], "validation", "forget_poisoned")
    ends = ends_of_methods(runs)
    differences = []
    for name in ("cf", "retrain"):
        reference = ends[ends.unlearner == name]
        others = ends[~ends.unlearner.isin(("start", name))]
        differences.append(difference(others, reference, "title"))
    return pd.concat(differences, ignore_index=True)


TABLE = StudyTable(
    frame=ends_and_stability,
    rows=("model", "poison", "unlearner"),
    measures={
        "validation": "valid",
        OF_CLASS: "v.class",
        "forget_poisoned": "f.pois",
        "forget_clean": "f.clean",
        "retain": "retain",
        "std": "std",
        "drop": "drop",
    },
    spread=("std",),
    title="Unlearning: accuracy, mean of n = {n} runs. f.pois, f.clean: on the forget set, for "
    "labels against the poisoned (low is good) and the true ones, for features on poisoned and "
    "clean inputs; std: of valid across runs, with its 95 % bootstrap interval from 3 runs on; "
    "drop: largest fall of valid below its best within a run, median",
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
    "Retrain: the share of cells within .05 of it",
    findings={
        "rows": ("poison", "model", "title"),
        "columns": ("preset", "measure"),
        "head": "{measure}, {preset}",
    },
    presets=SOURCES,
)

# ---- what is shown: figures ----

FORGET_NAMES = {  # of the two forgetting accuracies, for each poison
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
    """Draw validation and forgetting accuracy against the epoch, a row for each model and poison.

    Forgetting accuracy under flipped labels: against the poisoned labels (low is good, as
    published) and against the true ones. Under randomised features: on poisoned and on clean
    inputs, with true labels. A split without values has no panel. The counterpart of
    arXiv:2508.02422, Fig. 3.
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

    rows = models_and_poisons(results)
    titles = method_titles(results)
    styles = method_styles(results)
    if not rows:
        return None
    n_methods = len([name for name in styles if name != NULL_ARM])
    panels = panels_for(_panels(results), "epoch of unlearning", rows=len(rows))
    for axis, (model, poison, split, name) in panels:
        if not split:
            axis.set_axis_off()
            continue
        axis.set(ylabel=name, title=f"{model}, {poison_words(poison)}")
        for method, style in styles.items():
            runs = results.accuracy.sel(model=model, poison=poison, split=split, unlearner=method)
            bands = n_methods <= MOST_BANDS and method != NULL_ARM
            without_marker = (*style, None)
            if runs.count():
                draw_curve(axis, runs, without_marker, titles[method], bands=bands)
    null = "; null arm: trained on with the poison, no band" if NULL_ARM in styles else ""
    text = band_words(results, n_methods) + null + _equal_runs_words(results)
    return finished(text, results, legend=True)


def _panels(results: xr.Dataset) -> list[tuple[str, str, str, str]]:
    """Return model, poison, split and the split's name for each panel, row by row; "": no panel."""
    rows = []
    for model, poison in models_and_poisons(results):
        names = {"validation": "validation accuracy"}
        if is_unpoisoned(poison):
            names[OF_CLASS] = "validation accuracy,\nclass to be forgotten"
            names["forget_poisoned"] = "forgetting accuracy"
        else:
            of_kind = FORGET_NAMES.get(poison, OWN_FORGET_NAMES)
            names |= {split: f"forgetting accuracy,\n{name}" for split, name in of_kind.items()}
        of_poison = results.accuracy.sel(poison=poison)
        shown = [name for name in names if name in results.split.values]
        shown = [name for name in shown if of_poison.sel(split=name).count()]
        rows.append([(model, poison, split, names[split]) for split in shown])
    most = max(map(len, rows))
    return [panel for row in rows for panel in row + [(*row[0][:2], "", "")] * (most - len(row))]


def _equal_runs_words(results: xr.Dataset) -> str:
    """Say of which families all runs are equal: nothing random tells their runs apart."""
    config = json.loads(results.attrs["config"])
    families = [name for name in ("MLP", "QNN") if name in results.family.values]
    full_batch = []
    for name in families:
        unlearn = config[name.lower()]["unlearn"]
        if not unlearn["batch_size"]:
            full_batch.append(name)
    if not full_batch or config["independent_teachers"]:
        return ""
    return (
        f". One teacher and full batches: {' and '.join(full_batch)} runs of all methods but "
        "Retrain are the same, apart from rounding"
    )


def map_figure(results: xr.Dataset) -> Figure | None:
    """Draw final validation accuracy over a method's weights: a heat map of two, a line of one."""
    from foundation.report.drawing import (
        band_words,
        draw_curve,
        finished,
        method_styles,
        panels_for,
        plt,
        poison_words,
    )

    rows = models_and_poisons(results)
    titles = method_titles(results)
    styles = method_styles(results)
    if not rows:
        return None
    means = results.accuracy.mean("run")
    # of the colours in all panels, rounded to .05
    lowest = np.floor(20 * float(means.min())) / 20
    highest = np.ceil(20 * float(means.max())) / 20
    panels = panels_for(itertools.product(rows, titles), rows=len(rows))
    for axis, ((model, poison), method) in panels:
        of_method = results.sel(model=model, poison=poison, unlearner=method)
        for axis_name in ("first", "second"):
            of_method = of_method.dropna(axis_name, how="all", subset=["accuracy"])
        names = [of_method.first_name.item(), of_method.second_name.item()]
        first, second = (WEIGHT_NAMES.get(name, name) for name in names)
        axis.set(xlabel=first, ylabel=second or "validation accuracy")
        axis.set_title(f"{titles[method]}\n{model}, {poison_words(poison)}")
        if not of_method.accuracy.size:
            axis.set_axis_off()
        elif second:
            _heat_map(axis, of_method, (lowest, highest))
        else:
            runs = of_method.accuracy[{"second": 0}]
            draw_curve(axis, runs, (*styles[method], "o"))
    axes = plt.gcf().axes
    has_cross = any(axis.images and axis.lines for axis in axes)
    cross = ", cross: weights of the unlearning curves" if has_cross else ""
    return finished(f"heat map: mean{cross}; line: {band_words(results)}", results)


def _heat_map(axis: Axes, of_method: xr.Dataset, limits: tuple[float, float]) -> None:
    """Draw the map of one method, with a cross at the default weights where the map holds them.

    The unlearning curves have these weights.
    """
    from foundation.report.drawing import sns

    cells = of_method.accuracy.mean("run").transpose("second", "first")
    image = axis.imshow(
        cells, vmin=limits[0], vmax=limits[1], cmap="cividis", origin="lower", aspect="auto"
    )
    axis.figure.colorbar(image, ax=axis, label="validation accuracy")
    first = [f"{weight:g}" for weight in cells["first"].values]
    second = [f"{weight:g}" for weight in cells["second"].values]
    axis.set(xticks=range(len(first)), xticklabels=first)
    axis.set(yticks=range(len(second)), yticklabels=second)
    sns.despine(ax=axis, left=True, bottom=True)
    cross = []
    for dim in ("first", "second"):
        is_default = np.isclose(cells[dim], of_method[f"{dim}_default"])
        cross.append(np.flatnonzero(is_default))
    if all(map(len, cross)):
        axis.plot(*cross, "x", color="white", markersize=6, markeredgewidth=1.4)


# ---- what is claimed ----


def forgets_by_its_term(
    read: ResultFiles, data: str, method: str, measure: str, place: str
) -> Claim:
    """A method with a forget term minus the QNN's teacher; control: minus fine-tuning.

    Fine-tuning has no forget term. measure: a split; forgetting counts as minus its accuracy.
    """
    from foundation.report.claims import Claim, first_of, paired

    results = read[data, "corrected", "unlearning"]
    runs = ends_of_methods(accuracies(results, measure)).query("poison == 'labels'")
    runs = runs[runs.model == first_of(runs, "QNN")].set_index("unlearner")
    is_accuracy = measure == "validation"
    scores = runs.assign(accuracy=runs.accuracy if is_accuracy else -runs.accuracy)
    ceiling = 1.0 if is_accuracy else 0.0
    title = runs.loc[method].title.iloc[0]
    effect, control = (
        paired(f"{title} − {name}", scores.loc[method], scores.loc[other], ceiling=ceiling)
        for name, other in (("teacher", "start"), ("Fine-tune", "cf"))
    )
    aim = "restore its accuracy" if is_accuracy else "make it forget the poisoned labels"
    return Claim(
        whose="ours",
        source="what the methods of Fig. 3 add to fine-tuning",
        setting=AS_PUBLISHED,
        statement=f"It takes the forget term of {title} to {aim}: the QNN, {place}, 30 %",
        effect=effect,
        controls=(control,),
    )


def stable_over_weights(read: ResultFiles, data: str, method: str, place: str) -> Claim:
    """Share of a run's weight map within .05 of its Retrain, QNN minus MLP; control: within .02."""
    from foundation.report.claims import Claim, of_family, paired

    maps = read[data, "corrected", "weight_map"]
    at_end = read[data, "corrected", "unlearning"].accuracy.isel(epoch=-1)
    retrain = at_end.sel(unlearner="retrain", poison="labels", split="validation", drop=True)
    cells = maps.accuracy.sel(unlearner=method, poison="labels", drop=True)
    distance = abs(cells - retrain)  # of the runs that both have
    differences = []
    for tolerance in (0.05, 0.02):
        near = (distance <= tolerance).where(distance.notnull()).mean(("first", "second"))
        runs = near.rename("accuracy").to_dataframe().reset_index()
        circuit, mlp = (of_family(runs, family) for family in ("QNN", "MLP"))
        label = f"share within {digits(tolerance)} of Retrain, QNN − {mlp.model.iloc[0]}"
        differences.append(paired(label, circuit, mlp))
    return Claim(
        whose="the paper's",
        source="Fig. 3",
        setting=AS_PUBLISHED,
        statement=f"The QNN is more stable over the weights of {method_titles(maps)[method]}: "
        f"{place}",
        effect=differences[0],
        controls=(differences[1],),
    )


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
