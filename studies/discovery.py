"""What if the poison is known in part only, or has to be found first?

Nobody hands over the whole forget set. A share of the poison is known, the rest stays among the
retained samples; or none is, and the samples that look poisoned are forgotten. A method's setting
is chosen where HALF of the poison is known, on draws that are never judged; what is found is
decided without a single true label.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset
from foundation.base.checks import require, require_whole
from foundation.engine.jobs import Arrays, Job, Runs, random_key
from foundation.engine.runner import require_list
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.measures import metrics
from foundation.report.frames import (
    ResultFiles,
    accuracies,
    count_of_runs,
    difference,
    method_titles,
    ordered,
    over_runs,
)
from models import Training, logits_of
from poison_unlearn import Method, Poison, Poisoned
from protocol import (
    Fit,
    Sets,
    inputs_of_sets,
    runs_of,
    tensors_to_params,
)
from studies.config import Config, parse_poisons
from studies.contenders import Decayed
from studies.detectors import DETECTORS, FOLDS, Detection
from studies.families import model_words
from studies.methods import METHODS
from studies.oracles import CHOICE_DRAWS, Case, Choice, cases, choice_of
from studies.rows import place_of, placed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF = 50  # percent of the poison that is known where settings are chosen
# as how many parts of the training set what is found is counted, so that few programs are compiled
PARTS = ("validation", "poisoned", "known", "hidden", "attack")
RECALLS = np.linspace(0, 1, 21)
FULL = "full"  # retraining as long as the teacher was trained, on what is left


@dataclass(frozen=True, kw_only=True)
class DiscoveryFlags(Flags):
    """Of the stage discovery."""

    poisons: tuple[str, ...] = ("labels=10", "labels=30")
    """Poisons, each with its share in percent."""
    known: tuple[int, ...] = (0, 25, 50, 75, 100)
    """Shares of the poison that are known, in percent; what is not known stays among the retained
    samples."""
    methods: tuple[str, ...] = ()
    """Methods; none: --methods."""
    decay: float = 0.01
    """Weight decay of the regularised MLP."""
    runs: int = 10
    """Repetitions."""

    AXES = ("poisons", "known", "methods", "runs")

    def check(self, config: Config) -> None:
        require_list("poisons", self.poisons)
        parse_poisons("poisons", self.poisons)
        require_list("known", self.known)
        for percent in self.known:
            require(0 <= percent <= 100, "known", percent, "whole percents of the poison, 0 to 100")
        for name in self.methods:
            require(name in METHODS, "methods", name, ", ".join(METHODS))
        require(0 <= self.decay < np.inf, "decay", self.decay, "0 or more")
        require_whole("runs", self.runs)


# ---- jobs ----


def judged(fit: Fit, arrays: Arrays, dataset: Dataset, sets: list[Sets] | None = None) -> Arrays:
    """accuracy (runs, len(PARTS)), diverged (runs,), size () of the models of a fit, from what it
    recorded.

    Of validation; by true labels, on clean inputs, of all poisoned samples and of those that are
    known and not; and on how many validation samples with a backdoor's trigger the attack succeeds.
    NaN where there are none.
    """
    n, mask, known = (
        arrays["mask"].shape[1],
        arrays["mask"].astype(bool),
        arrays["known"].astype(bool),
    )
    right = (arrays["logit"] > 0) == (arrays["label"] > 0)
    of_sample = {"poisoned": mask, "known": mask & known, "hidden": mask & ~known}
    found = {name: _mean(right[:, n : 2 * n], chosen) for name, chosen in of_sample.items()}
    found["validation"] = right[:, 2 * n :].mean(axis=1)
    found["attack"] = _attack(fit, arrays, sets or fit.sets(dataset))
    accuracy = np.stack([found[part] for part in PARTS], axis=1)
    return {"accuracy": accuracy, **{name: arrays[name] for name in ("diverged", "size")}}


def _mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The mean of the chosen values of each row, NaN where none is: (runs,)."""
    counts = chosen.sum(axis=1)
    return np.where(counts > 0, (values & chosen).sum(axis=1) / np.maximum(counts, 1), np.nan)


def _attack(fit: Fit, arrays: Arrays, sets: list[Sets]) -> np.ndarray:
    """(runs,), the share of samples with the trigger that get the label it is to give; NaN without
    a trigger."""
    if sets[0].draw.attack is None:
        return np.full(len(sets), np.nan)
    params, found = tensors_to_params(fit.model, arrays), []
    for i, own in enumerate(sets):
        key = random_key(fit.seed, "attack", fit.runs[i])
        x, y = own.draw.attack
        logits = logits_of(
            fit.model, jax.tree.map(lambda leaf, i=i: leaf[i], params), fit.model.prepare(x), key
        )
        found.append(np.mean((np.asarray(logits) > 0) == (y > 0)))
    return np.array(found)


@dataclass(frozen=True, kw_only=True)
class Untouched(Runs):
    """Teachers as they are, judged: what doing nothing gives."""

    start: Fit

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start,)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """See judged."""
        return judged(self.start, inputs[0], dataset)


@dataclass(frozen=True, kw_only=True)
class Partly(Fit):
    """A block of runs of a method under the setting that was chosen, judged where a part of the
    poison is known.

    Without a choice under the setting that it has; from fresh parameters where there is no start.
    """

    choice: Choice | None = None

    @property
    def needs(self) -> tuple[Job, ...]:
        return tuple(job for job in (self.start, self.choice) if job)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """See judged."""
        fit = self.plain(inputs)
        return judged(fit, fit.perform(dataset, *inputs[: bool(self.start)]), dataset)

    def plain(self, inputs: tuple[Arrays, ...]) -> Fit:
        """The training under the chosen setting."""
        own = {each.name: getattr(self, each.name) for each in fields(Fit)} | {"record": "logits"}
        if self.choice:
            own["method"] = self.choice.candidates[int(inputs[bool(self.start)]["chosen"])]
        return Fit(**own)


@dataclass(frozen=True, kw_only=True)
class Found(Partly):
    """Partly, where the samples that a detector found are forgotten, right or wrong; a run that
    found none stays."""

    detection: Detection
    detector: str

    @property
    def needs(self) -> tuple[Job, ...]:
        return (*super().needs, self.detection)

    @property
    def kind(self) -> tuple:
        return (*super().kind, "found")

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """See judged."""
        found = inputs[-1]["found"][:, DETECTORS.index(self.detector)]
        teacher = inputs[0] if self.start else None
        whole, runs = self.plain(inputs), []
        for i, own in enumerate(self.sets(dataset)):
            sets = [own._replace(draw=_forgetting(own, found[i]))]
            alone = {
                name: each[i : i + 1] if np.ndim(each) else each
                for name, each in (teacher or {}).items()
            }
            fit = replace(whole, block=self.runs[i], size=1, retains=bool(found[i].any()))
            stays = teacher and not fit.retains
            arrays = (
                alone
                if stays
                else fit.trained(
                    *inputs_of_sets(fit.model, sets, fit.forgets), *([alone] if teacher else [])
                )
            )
            runs.append(judged(fit, arrays, dataset, sets))
        joined = {
            name: np.concatenate([each[name] for each in runs]) for name in ("accuracy", "diverged")
        }
        return joined | {"size": runs[0]["size"]}


def _forgetting(sets: Sets, found: np.ndarray) -> Poisoned:
    """A poisoned training set of which these samples are to be forgotten."""
    split, clean = sets.draw.split, sets.clean
    forget = [type(part)(part.x[found], part.y[found]) for part in (clean, split)]
    return Poisoned(split, sets.draw.mask, found, *forget, sets.draw.attack)


# ---- what is computed ----


def known_cases(config: Config, dataset: Dataset) -> Iterator[tuple[str, Case, Training]]:
    """Label, case and training of the methods of each poison and model of the stage."""
    names = [name for name in config.evaluated if name != "quadratic"]
    for word in config.discovery.poisons[: 1 if dataset.given else None]:
        shares = {"unlearn_labels": 0, "unlearn_features": 0, "unlearn_others": (word,)}
        own = replace(config, evaluated=tuple(names), **shares)
        for case, unlearn in cases(own, dataset, [CHOICE_DRAWS[0]], config.selection_runs):
            yield case.model.label, case, unlearn
            if case.model.family == "MLP":
                decayed = replace(case, trainer=Decayed(config.discovery.decay))
                yield f"{case.model.label}, weight decay", decayed, unlearn


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Methods against the known share of the poison; what detectors find; and forgetting what they
    found."""
    for label, case, unlearn in known_cases(config, dataset):
        arms = arms_of_case(config, dataset, label, case, unlearn)
        for block in config.blocks(config.discovery.runs):
            yield from _rows_of_block(config, arms, block)


class Arms(NamedTuple):
    """What is compared on one model and poison: methods with their choices, and their titles."""

    label: str
    case: Case
    methods: dict[str, tuple[Method, Choice | None]]  # retraining in full among them
    titles: dict[str, str]


def arms_of_case(
    config: Config, dataset: Dataset, label: str, case: Case, unlearn: Training
) -> Arms:
    """The methods that can run on the model; settings are chosen where half of the poison is known."""
    names = config.discovery.methods or config.methods
    methods = {name: config.method(name, training=unlearn) for name in names}
    methods = {name: method for name, method in methods.items() if not method.why_not(case.model)}
    half = replace(case, poison=replace(case.poison, known_percent=HALF))
    chosen = {name: choice_of(config, half, method, dataset) for name, method in methods.items()}
    arms = {FULL: (case.training_method, None)}
    arms |= {name: (method, chosen[name]) for name, method in methods.items()}
    titles = {"teacher": "Nothing", FULL: "Retrain in full"}
    titles |= {name: method.title or name for name, method in methods.items()}
    return Arms(label, case, arms, titles)


def _rows_of_block(config: Config, arms: Arms, block: int) -> Iterator[Row]:
    """Rows of one block of teachers: known shares of the poison, detection, and forgetting."""
    case, poison = arms.case, arms.case.poison
    runs_shown = config.discovery.runs

    def row(study: str, job: Runs, table, unlearner: str = "", **place) -> Row:
        words = model_words(case.model)
        if unlearner:
            place["unlearner"], words["title"] = unlearner, ("unlearner", arms.titles[unlearner])
        at = place_of(arms.label, poison) | place
        return Row(study, job, at, table, config.shown(job.runs, runs_shown), words)

    teacher = _fit(config, case, case.training_method, block)
    runs = runs_of(teacher)
    untouched = Untouched(start=teacher, **runs)
    yield row("discovery", untouched, shares_table, "teacher", known_percent=0)
    for share, (name, (method, choice)) in itertools.product(
        config.discovery.known, arms.methods.items()
    ):
        if share == 0 and (method.needs_forget or name == FULL):
            continue  # there is nothing to forget, and nothing to leave out
        known = replace(poison, known_percent=share)
        job = _partly(teacher, Partly, name, method, choice, known)
        yield row("discovery", job, shares_table, name, known_percent=share)
    detection = Detection(teacher=teacher, folds=tuple(_folds(teacher)), **runs)
    yield row("detection", detection, detection_table)
    yield row("detected", untouched, shares_table, "teacher", detector=DETECTORS[0])
    for detector, (name, (method, choice)) in itertools.product(DETECTORS, arms.methods.items()):
        if name == FULL or detector == "cross_validation":
            finding = {"detection": detection, "detector": detector}
            job = _partly(teacher, Found, name, method, choice, poison, **finding)
            yield row("detected", job, shares_table, name, detector=detector)


def _fit(config: Config, case: Case, method: Method, block: int) -> Fit:
    """A block of teachers, each on its own draw of the poison."""
    return Fit(
        data=case.data,
        model=case.model,
        poison=case.poison,
        method=method,
        seed=case.seed,
        block=block,
        size=config.block,
        side_by_side=case.side_by_side,
    )


def _folds(teacher: Fit) -> Iterator[Fit]:
    """The same training on all folds but one, in turn, measured on that one."""
    for fold in range(FOLDS):
        yield replace(teacher, held_out_percent=100 // FOLDS, held_out_of="all", fold=fold)


def _partly(
    teacher: Fit,
    kind: type[Partly],
    name: str,
    method: Method,
    choice: Choice | None,
    poison: Poison,
    **own,
) -> Partly:
    """A block of runs of a method, or of retraining in full, which starts afresh."""
    fit = {each.name: getattr(teacher, each.name) for each in fields(Fit)}
    fit |= {
        "method": method,
        "poison": poison,
        "start": None if name == FULL else teacher,
        "record": "end",
    }
    return kind(**fit | {"retains": poison.known_percent > 0, "choice": choice, **own})


def shares_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (…, run, split), diverged (…, run): a split is one of PARTS; NaN of runs that
    diverged."""
    table = xr.Dataset(
        {"accuracy": (("run", "split"), np.round(arrays["accuracy"].astype(float), 6)),
         "diverged": ("run", arrays["diverged"].astype(float))},
        {"run": list(row.job.runs), "split": list(PARTS)},
    )  # fmt: skip
    table["accuracy"] = table.accuracy.where(table.diverged == 0)
    return placed(table, row).assign_coords(size=("model", [int(arrays["size"])]))


def detection_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """What ranking and finding are worth: (…, run, detector), and precision (…, run, detector,
    recall).

    average_precision; found_share of the training set, and the precision and recall of what was
    found.
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    found, poisoned = arrays["found"].astype(bool), arrays["poisoned"].astype(bool)
    average = np.full(found.shape[:2], np.nan)
    precision = np.full((*found.shape[:2], len(RECALLS)), np.nan)
    for i, j in np.ndindex(*average.shape):
        average[i, j] = average_precision_score(poisoned[i], arrays["suspicion"][i, j])
        curve, recall, _ = precision_recall_curve(poisoned[i], arrays["suspicion"][i, j])
        precision[i, j] = [curve[recall >= least].max() for least in RECALLS]
    right = (found & poisoned[:, None]).sum(axis=2)
    each = {
        "average_precision": average,
        "found_share": found.mean(axis=2),
        "found_precision": np.where(
            found.any(axis=2), right / np.maximum(found.sum(axis=2), 1), np.nan
        ),
        "found_recall": right / poisoned.sum(axis=1)[:, None],
    }
    table = xr.Dataset(
        {name: (("run", "detector"), values) for name, values in each.items()}
        | {
            "precision": (("run", "detector", "recall"), precision),
            "poisoned_share": ("run", poisoned.mean(axis=1)),
        },
        {"run": list(row.job.runs), "detector": list(DETECTORS), "recall": RECALLS},
    )
    return placed(table, row).assign_coords(size=("model", [int(arrays["size"])]))


# ---- what is shown: tables ----


# by true labels, clean inputs
JUDGED = {
    "validation": "validation",
    "poisoned": "acc. poisoned",
    "attack": "attack",
}
AGAINST_NOTHING = {f"difference in {name}": words for name, words in JUDGED.items()}


def known_shares(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of every method against the known share of the poison, and what they are above
    doing nothing."""
    runs = accuracies(read[data, preset, "discovery"], *JUDGED)
    return pd.concat([over_runs(runs), _above_nothing(runs, "known_percent")], ignore_index=True)


def detected(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The same where a detector found what is forgotten."""
    runs = accuracies(read[data, preset, "detected"], *JUDGED)
    return pd.concat([over_runs(runs), _above_nothing(runs, "detector")], ignore_index=True)


def _above_nothing(runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Every method minus the teacher as it is, by run; the teacher stands at one place of the axis
    alone."""
    is_teacher = runs.unlearner == "teacher"
    return difference(runs[~is_teacher], runs[is_teacher].drop(columns=axis), "title")


def detections(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """What each ranking and what was found by it are worth: average precision, share, precision,
    recall."""
    names = {
        "average_precision": "average precision",
        "found_share": "found",
        "found_precision": "precision",
        "found_recall": "recall",
        "poisoned_share": "poisoned",
    }
    results = read[data, preset, "detection"]
    frame = results[list(names)].to_dataframe().reset_index().dropna(subset=["average_precision"])
    keys = ["family", "size", "model", "poison", "alpha_percent", "detector", "run"]
    runs = frame.melt(keys, list(names), "measure", "accuracy").dropna(subset=["accuracy"])
    return over_runs(runs.assign(measure=runs.measure.map(names)))


def some_shares(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """`known_shares` where none of the poison is known, half, and all of it."""
    return known_shares(read, data, preset).query("known_percent in (0, 50, 100)")


def detected_by_folds(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """`detected` where cross-validation found what is forgotten."""
    return detected(read, data, preset).query("detector == 'cross_validation'")


ROWS = ("poison", "alpha_percent", "model")
KNOWN = StudyTable(
    frame=known_shares,
    rows=(*ROWS, "unlearner"),
    columns=("measure", "known_percent"),
    head="{measure}, {known_percent} % known",
    measures=JUDGED,
    spread=(),
    title="Accuracy on validation samples and, by true labels, on all poisoned samples, against "
    "the share of the poison "
    "that is known; attack: success of a backdoor. n = {n} runs; teacher: nothing is done",
    findings=None,
)
ABOVE_NOTHING = StudyTable(
    name="above-nothing",
    frame=some_shares,
    rows=(*ROWS, "title"),
    columns=("known_percent", "measure"),
    head="{measure}, {known_percent} % known",
    measures=AGAINST_NOTHING,
)
DETECTION = StudyTable(
    name="detection",
    file="detection",
    frame=detections,
    rows=(*ROWS, "detector"),
    title="How well poisoned samples are found by rank, and as many of them as confident learning "
    "counts: found and "
    "poisoned are shares of the training set; mean of {n} runs",
)
DETECTED = StudyTable(
    frame=detected,
    file="detected",
    rows=(*ROWS, "unlearner"),
    columns=("measure", "detector"),
    head="{measure}, {detector}",
    measures=AGAINST_NOTHING,
    title="Detect, then forget: accuracy above that of doing nothing, paired by run, where the "
    "samples are forgotten "
    "that a detector found; n = {n} runs",
    findings=None,
)
BY_FOLDS = StudyTable(
    name="detected",
    file="detected",
    frame=detected_by_folds,
    rows=(*ROWS, "title"),
    measures=AGAINST_NOTHING,
)

# ---- what is shown: figures ----

PART_NAMES = {
    "validation": "validation accuracy",
    "poisoned": "accuracy on poisoned samples",
    "attack": "success of the attack",
}


def _parts_of(results: xr.Dataset, poison: str, alpha: float) -> list[str]:
    """What is drawn of a poison: the success of the attack where there is one."""
    own = results.accuracy.sel(poison=poison, alpha_percent=alpha)
    return [name for name in PART_NAMES if own.sel(split=name).count()]


def shares_figure(results: xr.Dataset) -> Figure:
    """Accuracy of every method against the share of the poison that is known; the line across:
    nothing is done."""
    from foundation.report.drawing import finished, noises_of, panels_for, poison_words

    noises, models = noises_of(results), ordered(results, "model")
    rows = [(*noise, part) for noise in noises for part in _parts_of(results, *noise)]
    places, xlabel = itertools.product(rows, models), "known share of the poison (%)"
    for axis, ((poison, alpha, part), model) in panels_for(places, xlabel, rows=len(rows)):
        at = {"model": model, "poison": poison, "alpha_percent": alpha, "split": part}
        _draw_methods(axis, results, results.accuracy.sel(at))
        axis.set(
            title=f"{model}\n{poison_words(poison, alpha)}",
            xticks=results.known_percent.values,
            ylabel=PART_NAMES[part],
        )
    text = (
        f"mean of n = {count_of_runs(results)} runs; what is not known stays among the retained "
        "samples; accuracy on poisoned samples: all of them, clean, by their true labels"
    )
    return finished(text, results, legend=True)


def _draw_methods(axis: Axes, results: xr.Dataset, accuracy: xr.DataArray) -> None:
    """A line for each method against the known share, and one across for the teacher as it is."""
    from foundation.report.drawing import method_styles

    titles = method_titles(results)
    nothing = accuracy.sel(unlearner="teacher").mean().item()
    form = {"color": "0.15", "linewidth": 0.8, "linestyle": (0, (1, 2))}
    axis.axhline(nothing, label=titles["teacher"], **form)
    for name, (colour, line) in method_styles(results).items():
        mean = accuracy.sel(unlearner=name).mean("run").dropna("known_percent")
        if name != "teacher" and mean.size:
            form = {"color": colour, "linestyle": line, "marker": "."}
            axis.plot(mean.known_percent, mean, label=titles[name], **form)


def detection_figure(results: xr.Dataset) -> Figure:
    """Precision against recall of each ranking of the training samples; the line across: chance."""
    from foundation.report.drawing import PALETTE, finished, noises_of, panels_for, poison_words

    detector_styles = {
        "loss": (PALETTE[7], "--"),
        "cross_validation": (PALETTE[4], "-"),
        "influence": (PALETTE[2], ":"),
    }
    noises = noises_of(results.rename(average_precision="accuracy"))
    places = itertools.product(noises, ordered(results, "model"))
    for axis, ((poison, alpha), model) in panels_for(
        places, "recall", "precision", rows=len(noises)
    ):
        own = results.sel(model=model, poison=poison, alpha_percent=alpha)
        axis.axhline(own.poisoned_share.mean(), color="0.6", linewidth=0.8, label="chance")
        for name, (colour, line) in detector_styles.items():
            runs = own.precision.sel(detector=name).dropna("run")
            ends = np.array(
                [metrics.bootstrap_interval(runs.sel(recall=at).values) for at in runs.recall]
            ).T
            label = name.replace("_", " ")
            axis.plot(runs.recall, runs.mean("run"), color=colour, linestyle=line, label=label)
            axis.fill_between(runs.recall, *ends, color=colour, alpha=0.2, linewidth=0)
        axis.set(ylim=(-0.03, 1.03), title=f"{model}\n{poison_words(poison, alpha)}")
    text = (
        f"mean of {results.sizes['run']} runs, band: 95 % bootstrap interval; chance: the share "
        "that is poisoned"
    )
    return finished(text, legend=True)


def detected_figure(results: xr.Dataset) -> Figure:
    """Detect by cross-validation, then forget: accuracy above that of doing nothing, by method, a
    mark each model."""
    from foundation.report.drawing import (
        draw_dot,
        finished,
        grid_for,
        model_styles,
        noises_of,
        plt,
        poison_words,
    )

    found = results.accuracy.sel(detector="cross_validation", drop=True)
    nothing = results.accuracy.sel(unlearner="teacher").mean("detector")  # it stands at one of them
    titles, styles = method_titles(results), model_styles(results, ordered(results, "model"))
    names = [name for name in ordered(results, "unlearner") if name != "teacher"]
    rows = [(*noise, part) for noise in noises_of(results) for part in _parts_of(results, *noise)]
    for axis, (poison, alpha, part) in grid_for(rows, most=2):
        axis.axhline(0, color="0.6", linewidth=0.8)
        for place, (model, (colour, _, marker)) in enumerate(styles.items()):
            at = {"model": model, "poison": poison, "alpha_percent": alpha, "split": part}
            above = found.sel(at) - nothing.sel(at)
            aside = 0.6 * (place / max(len(styles) - 1, 1) - 0.5)
            for column, name in enumerate(names):
                gains = above.sel(unlearner=name).dropna("run").values
                if len(gains):
                    draw_dot(axis, column + aside, gains, (colour, marker), label=model)
        shown = [titles[name] for name in names]
        axis.set_xticks(range(len(names)), labels=shown, rotation=40, ha="right")
        ylabel = f"{PART_NAMES[part]}\nabove nothing".replace("accuracy on", "accuracy on\n")
        axis.set(title=poison_words(poison, alpha), ylabel=ylabel)
    plt.gcf().set_figwidth(plt.gcf().get_figwidth() * 1.4)
    text = (
        f"differences paired by run, mean of n = {count_of_runs(results)} runs and its 95 % "
        "bootstrap interval; found: as many samples as confident learning counts, no true label is "
        "read"
    )
    return finished(text, results, legend=True)


STUDY = Study(
    name="discovery",
    question="what if the poison is partly known, or has to be found",
    plan=plan,
    flags=DiscoveryFlags(),
    quick={
        "poisons": ("labels=30",),
        "known": (0, 50, 100),
        "methods": ("retrain", "cf", "scrub", "ga"),
        "runs": 2,
    },
    tables=(KNOWN, ABOVE_NOTHING, DETECTION, DETECTED, BY_FOLDS),
    figures=(
        StudyFigure(name="known_shares", draw=shares_figure),
        StudyFigure(name="detection", draw=detection_figure, files=("detection",)),
        StudyFigure(name="detected", draw=detected_figure, files=("detected",)),
    ),
)
