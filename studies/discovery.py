"""What if the poison is known in part only, or has to be found first?

Nobody hands over the whole forget set. Either a share of the poison is known, and the rest stays
among the retained samples; or no poison is known, and the samples that a detector flags are
forgotten. A method's setting is chosen where half of the poison is known, on draws that are never
judged. Detectors read no true label.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import jax
import numpy as np

from datar import Dataset
from foundation.base.checks import require, require_whole
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job, Runs, random_key, values_of
from foundation.engine.runner import require_list, require_names
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
from protocol import Fit, Sets, inputs_of_sets, runs_of, tensors_to_params
from studies.config import Config, parse_poisons
from studies.contenders import Decayed
from studies.detectors import DETECTORS, Detection, folds_of
from studies.families import model_words
from studies.methods import METHODS
from studies.oracles import CHOICE_DRAWS, Case, Choice, cases, choice_of
from studies.rows import place_of, placed, why_not

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF = 50  # percent of the poison that is known where settings are chosen
PARTS = ("validation", "poisoned", "known", "hidden", "attack")  # see `judged`
RECALLS = np.linspace(0, 1, 21)
FULL = "full"  # retrain without the forget set for as many epochs as the teacher


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
        require_names("methods", self.methods, METHODS)
        require(0 <= self.decay < np.inf, "decay", self.decay, "0 or more")
        require_whole("runs", self.runs)


# ---- jobs ----


def judged(fit: Fit, arrays: Arrays, dataset: Dataset, sets: list[Sets] | None = None) -> Arrays:
    """Judge the models of a fit: accuracy (runs, len(PARTS)), diverged (runs,), size ().

    validation: on the validation set. poisoned, known, hidden: on poisoned samples (all, the known,
    the others) before the poison. attack: share of validation samples with a backdoor's trigger on
    which the attack succeeds. NaN where there are no samples, or none before the poison.
    """
    mask = arrays["mask"].astype(bool)
    known = arrays["known"].astype(bool)
    n = mask.shape[1]
    right = (arrays["logit"] > 0) == (arrays["label"] > 0)
    of_sample = {"poisoned": mask, "known": mask & known, "hidden": mask & ~known}
    right_on_clean = right[:, n : 2 * n]
    right_on_validation = right[:, 2 * n :]
    scores = {name: _mean(right_on_clean, chosen) for name, chosen in of_sample.items()}
    if not fit.knows_truth(dataset):
        scores = dict.fromkeys(scores, np.full(len(mask), np.nan))
    scores["validation"] = right_on_validation.mean(axis=1)
    sets = sets or fit.sets(dataset)
    scores["attack"] = _attack(fit, arrays, sets)
    accuracy = np.stack([scores[part] for part in PARTS], axis=1)
    return {"accuracy": accuracy, **{name: arrays[name] for name in ("diverged", "size")}}


def _mean(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mean of the chosen values of each row, NaN where none is chosen: (runs,)."""
    counts = chosen.sum(axis=1)
    sums = (values & chosen).sum(axis=1)
    means = sums / np.maximum(counts, 1)
    return np.where(counts > 0, means, np.nan)


def _attack(fit: Fit, arrays: Arrays, sets: list[Sets]) -> np.ndarray:
    """Share of samples with the trigger that get the attacker's label: (runs,).

    NaN where the poison has no trigger.
    """
    if sets[0].draw.attack is None:
        return np.full(len(sets), np.nan)
    params = tensors_to_params(fit.model, arrays)
    shares = []
    for i, sets_of_run in enumerate(sets):
        key = random_key(fit.seed, "attack", fit.runs[i])
        x, y = sets_of_run.draw.attack
        params_of_run = jax.tree.map(lambda leaf, i=i: leaf[i], params)
        logits = logits_of(fit.model, params_of_run, fit.model.prepare(x), key)
        succeeds = (np.asarray(logits) > 0) == (y > 0)
        shares.append(np.mean(succeeds))
    return np.array(shares)


@dataclass(frozen=True, kw_only=True)
class Untouched(Runs):
    """Judge teachers as they are: nothing is done about the poison."""

    start: Fit

    @property
    def needs(self) -> tuple[Job, ...]:
        """The teachers."""
        return (self.start,)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """See judged."""
        return judged(self.start, inputs[0], dataset)


@dataclass(frozen=True, kw_only=True)
class Partly(Fit):
    """Run a method under its chosen setting where a part of the poison is known; judge the models.

    choice None: the method has its setting already. start None: parameters are fresh.
    """

    choice: Choice | None = None

    @property
    def needs(self) -> tuple[Job, ...]:
        """The teachers and the choice of the setting, if there are any."""
        return tuple(job for job in (self.start, self.choice) if job)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """See judged."""
        fit = self.plain(inputs)
        starts = inputs[:1] if self.start else ()
        return judged(fit, fit.perform(dataset, *starts), dataset)

    def plain(self, inputs: tuple[Arrays, ...]) -> Fit:
        """Return the training under the chosen setting."""
        values = values_of(self, Fit) | {"record": "logits"}
        if self.choice:
            choice = inputs[1] if self.start else inputs[0]
            values["method"] = self.choice.candidates[int(choice["chosen"])]
        return Fit(**values)


@dataclass(frozen=True, kw_only=True)
class Found(Partly):
    """Forget the samples that a detector flagged, right or wrong; keep the start if none is."""

    detection: Detection
    detector: str

    @property
    def needs(self) -> tuple[Job, ...]:
        """The jobs that Partly needs, and the detection."""
        return (*super().needs, self.detection)

    @property
    def kind(self) -> tuple:
        return (*super().kind, "found")

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """See judged."""
        *_, detection = inputs
        flagged = detection["found"][:, DETECTORS.index(self.detector)]  # (runs, n)
        whole = self.plain(inputs)
        results = []
        for i, sets_of_run in enumerate(self.sets(dataset)):
            draw = _forgetting(sets_of_run, flagged[i])
            sets = [sets_of_run._replace(draw=draw)]
            is_flagged = bool(flagged[i].any())
            fit = replace(whole, block=self.runs[i], size=1, retains=is_flagged)
            teachers = [_of_run(inputs[0], i)] if self.start else []
            if teachers and not is_flagged:
                (arrays,) = teachers
            else:
                masks, block_of_run = inputs_of_sets(fit.model, sets, fit.forgets)
                arrays = fit.trained(masks, block_of_run, *teachers)
            results.append(judged(fit, arrays, dataset, sets))
        joined = {}
        for name in ("accuracy", "diverged"):
            joined[name] = np.concatenate([result[name] for result in results])
        return joined | {"size": results[0]["size"]}


def _of_run(arrays: Arrays, i: int) -> Arrays:
    """Take the arrays of one run of a job; i: its place among the runs."""
    of_run = {}
    for name, array in arrays.items():
        of_run[name] = array[i : i + 1] if np.ndim(array) else array
    return of_run


def _forgetting(sets: Sets, flagged: np.ndarray) -> Poisoned:
    """Make the flagged samples the forget set of a poisoned training set; flagged: (n,) mask."""
    draw = sets.draw
    return draw._replace(
        known=flagged,
        forget_clean=sets.clean.take(flagged),
        forget_poisoned=draw.split.take(flagged),
    )


# ---- what is computed ----


def known_cases(config: Config, dataset: Dataset) -> Iterator[tuple[str, Case, Training]]:
    """Label, case and training of the methods, for each poison and model of the stage.

    The MLP comes with and without weight decay.
    """
    families = tuple(name for name in config.evaluated if name != "quadratic")
    most_poisons = 1 if dataset.given else None  # the data's own poison stands for all
    for poison in config.discovery.poisons[:most_poisons]:
        shares = {"unlearn_labels": 0, "unlearn_features": 0, "unlearn_others": (poison,)}
        of_poison = replace(config, evaluated=families, **shares)
        draws = [CHOICE_DRAWS[0]]
        for case, unlearn in cases(of_poison, dataset, draws, config.selection_runs):
            yield case.model.label, case, unlearn
            if case.model.family == "MLP":
                decayed = replace(case, trainer=Decayed(config.discovery.decay))
                yield f"{case.model.label}, weight decay", decayed, unlearn


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan methods at each known share of the poison, detectors, and to forget what they flag."""
    for label, case, unlearn in known_cases(config, dataset):
        arms = arms_of_case(config, dataset, label, case, unlearn)
        for block in config.blocks(config.discovery.runs):
            yield from _rows_of_block(config, arms, block)


class Arms(NamedTuple):
    """Methods that are compared on one model and poison, with their choices and titles."""

    label: str
    case: Case
    methods: dict[str, tuple[Method, Choice | None]]  # retraining in full among them
    titles: dict[str, str]


def arms_of_case(
    config: Config, dataset: Dataset, label: str, case: Case, unlearn: Training
) -> Arms:
    """Collect the methods that can run on the model, with the choice of each one's setting.

    Settings are chosen where half of the poison is known.
    """
    names = config.discovery.methods or config.methods
    methods = {}
    for name in names:
        method = config.method(name, training=unlearn)
        if not why_not(method, case.model, dataset, case.poison):
            methods[name] = method
    half_known = replace(case.poison, known_percent=HALF)
    half = replace(case, poison=half_known)
    arms = {FULL: (case.training_method, None)}
    titles = {"teacher": "Nothing", FULL: "Retrain in full"}
    for name, method in methods.items():
        choice = choice_of(config, half, method, dataset)
        arms[name] = (method, choice)
        titles[name] = method.title or name
    return Arms(label, case, arms, titles)


def _rows_of_block(config: Config, arms: Arms, block: int) -> Iterator[Row]:
    """Plan one block of teachers: known shares of the poison, detection, and forgetting."""
    case = arms.case
    poison = arms.case.poison

    def row(study: str, job: Runs, table, unlearner: str = "", **place) -> Row:
        coordinates = model_words(case.model)
        if unlearner:
            place["unlearner"] = unlearner
            coordinates["title"] = ("unlearner", arms.titles[unlearner])
        at = place_of(arms.label, poison) | place
        shown = config.shown(job.runs, config.discovery.runs)
        return Row(study, job, at, table, shown, coordinates)

    teacher = _fit(config, case, case.training_method, block)
    runs = runs_of(teacher)
    untouched = Untouched(start=teacher, **runs)
    yield row("discovery", untouched, shares_table, "teacher", known_percent=0)
    for share, (name, (method, choice)) in itertools.product(
        config.discovery.known, arms.methods.items()
    ):
        if share == 0 and (method.needs_forget or name == FULL):
            continue  # no sample is known to be poisoned: nothing to forget, or to leave out
        known = replace(poison, known_percent=share)
        job = _partly(teacher, Partly, name, method, choice, known)
        yield row("discovery", job, shares_table, name, known_percent=share)
    detection = Detection(teacher=teacher, folds=tuple(folds_of(teacher)), **runs)
    yield row("detection", detection, detection_table)
    yield row("detected", untouched, shares_table, "teacher", detector=DETECTORS[0])
    detected_arms = itertools.product(DETECTORS, arms.methods.items())
    for detector, (name, (method, choice)) in detected_arms:
        if name == FULL or detector == "cross_validation":
            finding = {"detection": detection, "detector": detector}
            job = _partly(teacher, Found, name, method, choice, poison, **finding)
            yield row("detected", job, shares_table, name, detector=detector)


def _fit(config: Config, case: Case, method: Method, block: int) -> Fit:
    """Train a block of teachers, each on its own draw of the poison."""
    return Fit(
        data=case.data,
        model=case.model,
        poison=case.poison,
        method=method,
        seed=case.seed,
        block=block,
        size=config.block,
        side_by_side=case.side_by_side,
        one_program=case.one_program,
    )


def _partly(
    teacher: Fit,
    kind: type[Partly],
    name: str,
    method: Method,
    choice: Choice | None,
    poison: Poison,
    **further,
) -> Partly:
    """Run a method from a block of teachers, or retrain in full, from fresh parameters.

    further: fields that only this kind of job has.
    """
    values = values_of(teacher) | {
        "method": method,
        "poison": poison,
        "start": None if name == FULL else teacher,
        "record": "end",
        "retains": poison.known_percent > 0,
        "choice": choice,
    }
    return kind(**values | further)


def shares_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (…, run, split), NaN where a run diverged; diverged (…, run). Splits: PARTS."""
    accuracy = np.round(arrays["accuracy"].astype(float), 6)
    diverged = arrays["diverged"].astype(float)
    table = xr.Dataset(
        {"accuracy": (("run", "split"), accuracy), "diverged": ("run", diverged)},
        {"run": list(row.job.runs), "split": list(PARTS)},
    )
    table["accuracy"] = table.accuracy.where(table.diverged == 0)
    size = [int(arrays["size"])]
    return placed(table, row).assign_coords(size=("model", size))


def detection_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Compare suspicion and flagged samples with the poison: (…, run, detector).

    average_precision: of the ranking by suspicion. found_share: flagged share of the training set.
    found_precision, found_recall: of the flagged samples. precision: (…, run, detector, recall), of
    the ranking. poisoned_share: (…, run).
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve

    flagged = arrays["found"].astype(bool)
    poisoned = arrays["poisoned"].astype(bool)
    average = np.full(flagged.shape[:2], np.nan)
    precision = np.full((*average.shape, len(RECALLS)), np.nan)
    for i, j in np.ndindex(*average.shape):
        suspicion = arrays["suspicion"][i, j]
        average[i, j] = average_precision_score(poisoned[i], suspicion)
        curve, recall, _ = precision_recall_curve(poisoned[i], suspicion)
        best = [curve[recall >= least].max() for least in RECALLS]
        precision[i, j] = best
    right = (flagged & poisoned[:, None]).sum(axis=2)
    precision_of_flagged = right / np.maximum(flagged.sum(axis=2), 1)
    scores = {
        "average_precision": average,
        "found_share": flagged.mean(axis=2),
        "found_precision": np.where(flagged.any(axis=2), precision_of_flagged, np.nan),
        "found_recall": right / poisoned.sum(axis=1)[:, None],
    }
    dims = ("run", "detector")
    variables = {name: (dims, values) for name, values in scores.items()}
    variables["precision"] = (("run", "detector", "recall"), precision)
    variables["poisoned_share"] = ("run", poisoned.mean(axis=1))
    coords = {"run": list(row.job.runs), "detector": list(DETECTORS), "recall": RECALLS}
    table = xr.Dataset(variables, coords)
    size = [int(arrays["size"])]
    return placed(table, row).assign_coords(size=("model", size))


# ---- what is shown: tables ----


# measures and their column heads; on poisoned samples: clean inputs, true labels
JUDGED = {"validation": "validation", "poisoned": "acc. poisoned", "attack": "attack"}
AGAINST_NOTHING = {f"difference in {name}": head for name, head in JUDGED.items()}


def known_shares(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of every method at each known share of the poison, and above doing nothing."""
    runs = accuracies(read[data, preset, "discovery"], *JUDGED)
    return pd.concat([over_runs(runs), _above_nothing(runs, "known_percent")], ignore_index=True)


def detected(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of every method that forgets flagged samples, and above doing nothing."""
    runs = accuracies(read[data, preset, "detected"], *JUDGED)
    return pd.concat([over_runs(runs), _above_nothing(runs, "detector")], ignore_index=True)


def _above_nothing(runs: pd.DataFrame, axis: str) -> pd.DataFrame:
    """Every method minus the teacher as it is, by run.

    The teacher stands at one place of the axis, and is compared at all places.
    """
    is_teacher = runs.unlearner == "teacher"
    teachers = runs[is_teacher].drop(columns=axis)
    return difference(runs[~is_teacher], teachers, "title")


def detections(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Average precision of each ranking; share, precision and recall of the flagged samples."""
    names = {
        "average_precision": "average precision",
        "found_share": "found",
        "found_precision": "precision",
        "found_recall": "recall",
        "poisoned_share": "poisoned",
    }
    results = read[data, preset, "detection"]
    frame = results[list(names)].to_dataframe().reset_index()
    frame = frame.dropna(subset=["average_precision"])
    keys = ["family", "size", "model", "poison", "alpha_percent", "detector", "run"]
    runs = frame.melt(keys, list(names), "measure", "accuracy")
    runs = runs.dropna(subset=["accuracy"])
    return over_runs(runs.assign(measure=runs.measure.map(names)))


def some_shares(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """`known_shares` where none, half and all of the poison is known."""
    return known_shares(read, data, preset).query("known_percent in (0, 50, 100)")


def detected_by_folds(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """`detected` where cross-validation flagged what is forgotten."""
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
    "the share of the poison that is known; attack: success of a backdoor. n = {n} runs; teacher: "
    "nothing is done",
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
    "counts: found and poisoned are shares of the training set; mean of {n} runs",
)
DETECTED = StudyTable(
    frame=detected,
    file="detected",
    rows=(*ROWS, "unlearner"),
    columns=("measure", "detector"),
    head="{measure}, {detector}",
    measures=AGAINST_NOTHING,
    title="Detect, then forget: accuracy above that of doing nothing, paired by run, where the "
    "samples are forgotten that a detector found; n = {n} runs",
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
    """Parts of which a poison has accuracies; the attack where the poison has a trigger."""
    accuracy = results.accuracy.sel(poison=poison, alpha_percent=alpha)
    return [name for name in PART_NAMES if accuracy.sel(split=name).count()]


def _noises_and_parts(results: xr.Dataset) -> list[tuple[str, float, str]]:
    """Every poison and share of the study, with each part that it has accuracies of."""
    from foundation.report.drawing import noises_of

    rows = []
    for noise in noises_of(results):
        rows += [(*noise, part) for part in _parts_of(results, *noise)]
    return rows


def shares_figure(results: xr.Dataset) -> Figure:
    """Draw accuracy of every method against the known share of the poison.

    Line across: nothing is done.
    """
    from foundation.report.drawing import finished, panels_for, poison_words

    rows = _noises_and_parts(results)
    places = itertools.product(rows, ordered(results, "model"))
    panels = panels_for(places, "known share of the poison (%)", rows=len(rows))
    for axis, ((poison, alpha, part), model) in panels:
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
    """Draw a line for each method, and one across for the teacher as it is."""
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
    """Draw precision against recall of each ranking of training samples; line across: chance."""
    from foundation.report.drawing import PALETTE, finished, noises_of, panels_for, poison_words

    detector_styles = {
        "loss": (PALETTE[7], "--"),
        "cross_validation": (PALETTE[4], "-"),
        "influence": (PALETTE[2], ":"),
    }
    noises = noises_of(results.rename(average_precision="accuracy"))
    places = itertools.product(noises, ordered(results, "model"))
    panels = panels_for(places, "recall", "precision", rows=len(noises))
    for axis, ((poison, alpha), model) in panels:
        cell = results.sel(model=model, poison=poison, alpha_percent=alpha)
        axis.axhline(cell.poisoned_share.mean(), color="0.6", linewidth=0.8, label="chance")
        for name, (colour, line) in detector_styles.items():
            runs = cell.precision.sel(detector=name).dropna("run")
            intervals = [
                metrics.bootstrap_interval(runs.sel(recall=recall).values) for recall in runs.recall
            ]
            ends = np.array(intervals).T  # (2, recalls)
            label = name.replace("_", " ")
            mean = runs.mean("run")
            axis.plot(runs.recall, mean, color=colour, linestyle=line, label=label)
            axis.fill_between(runs.recall, *ends, color=colour, alpha=0.2, linewidth=0)
        axis.set(ylim=(-0.03, 1.03))
        axis.set_title(f"{model}\n{poison_words(poison, alpha)}")
    text = (
        f"mean of {results.sizes['run']} runs, band: 95 % bootstrap interval; chance: the share "
        "that is poisoned"
    )
    return finished(text, legend=True)


def detected_figure(results: xr.Dataset) -> Figure:
    """Draw accuracy above doing nothing where cross-validation flags the samples to forget.

    By method, a mark for each model.
    """
    from foundation.report.drawing import (
        draw_dot,
        finished,
        grid_for,
        model_styles,
        plt,
        poison_words,
    )

    forgotten = results.accuracy.sel(detector="cross_validation", drop=True)
    # the teacher stands at one of the detectors
    nothing = results.accuracy.sel(unlearner="teacher").mean("detector")
    titles = method_titles(results)
    styles = model_styles(results, ordered(results, "model"))
    names = [name for name in ordered(results, "unlearner") if name != "teacher"]
    for axis, (poison, alpha, part) in grid_for(_noises_and_parts(results), most=2):
        axis.axhline(0, color="0.6", linewidth=0.8)
        for place, (model, style) in enumerate(styles.items()):
            colour, _, marker = style
            at = {"model": model, "poison": poison, "alpha_percent": alpha, "split": part}
            above = forgotten.sel(at) - nothing.sel(at)
            from_left = place / max(len(styles) - 1, 1)  # 0 to 1
            aside = 0.6 * (from_left - 0.5)
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
    two_classes=True,
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
