"""How far unlearned models are from oracles: scores, rows, tables, figures of several studies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from datar import Dataset
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job
from foundation.engine.study import StudyTable
from foundation.engine.study_files import Row
from foundation.measures import forgetting
from foundation.measures.forgetting import (
    MEASURES,
    OF_CLASS,
    OF_CLASSES,
    OF_POISONED,
    PRIMARY,
    SIGNIFICANT,
    STANDARD,
    Measure,
    Models,
    Parts,
    holm,
    smallest_p,
    verdict,
)
from foundation.report.frames import (
    VERDICTS,
    ResultFiles,
    fewest_and_most_runs,
    method_titles,
    models_and_poisons,
)
from models import Training, n_classes_of
from poison_unlearn import Method
from protocol import Fit, runs_of
from studies.config import Config
from studies.families import model_words
from studies.oracles import (
    Case,
    Choice,
    Chosen,
    Relearn,
    cases,
    choice_of,
    choice_table,
    classes_of,
    parts_of,
    signed_logits,
)
from studies.rows import for_poison, placed, scores_table, why_not

EXAMPLES = 4  # forget samples whose logits a study's file holds


# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class Score(Job):
    """All measures of one arm against half B of the oracles.

    The arm is a method with its null arm, teachers, or further oracles.
    """

    case: Case
    choice: Choice | None = None  # the method's setting; None: the arm is teachers or oracles
    arm: str = ""  # teacher or oracle, if no method is judged
    measures: tuple[tuple[str, Measure], ...] = STANDARD

    def groups(self) -> dict[str, list[Fit]]:
        """Return the jobs of each arm that is compared."""
        case = self.case
        if self.choice:
            models = case.chosen(self.choice)
        elif self.arm == "teacher":
            models = case.teachers()
        else:
            models = case.oracles(self.arm)
        groups = {"models": models, "floor": case.oracles("A"), "oracles": case.oracles("B")}
        if self.choice:
            groups["null"] = case.chosen(self.choice, null=True)
        return groups

    @property
    def needs(self) -> tuple[Job, ...]:
        """The models of all arms, then their relearning."""
        jobs = list(itertools.chain.from_iterable(self.groups().values()))
        relearned = [Relearn(start=job, case=self.case, **runs_of(job)) for job in jobs]
        return (*jobs, *relearned)

    @property
    def title(self) -> str:
        """Model and poison."""
        return f"score {self.case.model.label} {self.case.poison.name}"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return the `forgetting.scores` of all measures, (measures,) each, and p () of PRIMARY.

        true_positive (101,): true positive rates of U-LiRA's attack at RATES. lost (): how many
        runs diverged, in all arms; they are left out. angles (): how many angles of a circuit move
        its logits. Scores are NaN if an arm, other than the null arm, has fewer than four runs
        left.
        """
        arms = self._arms(inputs)
        lost = sum(self.case.n - arm.count for arm in arms.values())
        # a circuit's angles that move its logits; other models have none
        angles = len(getattr(self.case.model, "acting_angles", ()))
        counts = {"lost": np.array(lost), "angles": np.array(angles)}
        # A null arm whose runs diverged is no reason to leave the method unscored.
        if "null" in arms and arms["null"].count < FEWEST:
            del arms["null"]
        if min(arm.count for arm in arms.values()) < FEWEST:
            no_scores = np.full(len(self.measures), np.nan)
            no_rates = np.full(len(RATES), np.nan)
            missing = dict.fromkeys(forgetting.SCORES, no_scores)
            return counts | missing | {"p": np.array(np.nan), "true_positive": no_rates}
        parts = parts_of(inputs[0], self.case.poison)
        scores = self._scores(arms, parts, dataset.truth_is_known)
        primary = dict(self.measures)[PRIMARY]
        models = arms["models"]
        oracles = arms["oracles"]
        p = forgetting.permutation_p(primary, models, arms["floor"], oracles, parts)
        z = models.z[:, parts.forget]
        z_of_oracles = oracles.z[:, parts.forget]
        attack = forgetting.likelihood_ratios(z, z_of_oracles)
        true_positive = np.interp(RATES, *forgetting.roc(*attack))
        return counts | scores | {"p": np.array(p), "true_positive": true_positive}

    def _arms(self, inputs: tuple[Arrays, ...]) -> dict[str, Models]:
        """Gather the models of each arm of `groups`; inputs: the arrays of `needs`."""
        half = len(inputs) // 2
        pairs = list(zip(inputs[:half], inputs[half:], strict=True))  # a job and its Relearn job
        arms = {}
        first = 0
        for name, group in self.groups().items():
            last = first + len(group)
            arms[name] = gathered(self.case, pairs[first:last])
            first = last
        return arms

    def _scores(
        self, arms: dict[str, Models], parts: Parts, truth_is_known: bool
    ) -> dict[str, np.ndarray]:
        """Score each measure: (measures,) each; NaN where a measure needs labels not known."""
        rows = []
        for _, measure in self.measures:
            if truth_is_known or not measure.needs_truth:
                rows.append(forgetting.scores(measure, parts=parts, **arms))
            else:
                rows.append(dict.fromkeys(forgetting.SCORES, np.nan))
        return {name: np.array([row[name] for row in rows]) for name in forgetting.SCORES}


FEWEST = 4  # runs of an arm that are scored


RATES = np.linspace(0, 1, 101)  # false positive rates of the ROC curves in a study's file


def gathered(case: Case, blocks: list[tuple[Arrays, Arrays]]) -> Models:
    """Gather the n models of an arm, without those that diverged.

    blocks: the arrays of each job of the arm, and those of its Relearn job.
    """
    fits = [fit for fit, _ in blocks]
    z = np.concatenate([signed_logits(fit) for fit in fits])
    clean = np.concatenate([signed_logits(fit, clean=True) for fit in fits])
    steps = np.concatenate([relearn["steps"] for _, relearn in blocks])
    models = Models(z, clean, steps.astype(float), np.arange(len(z)))
    if fits[0]["logit"].ndim > 2:
        of_classes = [classes_of(fit) for fit in fits]
        hit, clean_hit, probability = map(np.concatenate, zip(*of_classes, strict=True))
        models = models._replace(hit=hit, clean_hit=clean_hit, probability=probability)
    diverged = np.concatenate([fit["diverged"] for fit in fits]).astype(bool)
    return models.take(np.flatnonzero(~diverged[: case.n]))


# ---- rows ----


def judged_rows(
    config: Config,
    case: Case,
    methods: dict[str, Method],
    dataset: Dataset,
    study: str,
    selection: str,
) -> Iterator[Row]:
    """Yield the rows of one case: teachers, oracles, and the methods that can run on its model.

    study: the file of arms and scores. selection: the file of choices of hyper-parameters.
    """
    place = {"model": case.model.label, "poison": case.poison.name}
    names_by_reason = {"": []}  # methods by why they cannot run on the model; "": they can
    methods = {name: for_poison(method, case.poison) for name, method in methods.items()}
    for name, method in methods.items():
        reason = why_not(method, case.model, dataset, case.poison)
        names_by_reason.setdefault(reason, []).append(name)
    able = names_by_reason.pop("")
    reasons = []
    for reason, names in names_by_reason.items():
        reasons.append(f"{', '.join(names)}: {reason}")
    coords_of_model = model_words(case.model) | {"left_out": ("model", "; ".join(reasons))}
    choices = {}
    for name in able:
        choices[name] = choice_of(config, case, methods[name], dataset)
    for name, choice in choices.items():
        if case.draw == 0 and choice.is_asked:
            at = place | {"unlearner": name}
            yield Row(selection, choice, at, choice_table, None, coords_of_model)
    for name in ("teacher", "oracle", *choices):
        score = Score(
            data=case.data,
            case=case,
            choice=choices.get(name),
            arm="" if name in choices else name,
            measures=measures_of(case),
        )
        at = place | {"unlearner": name, "draw": case.draw}
        method = methods.get(name)  # None: teachers or oracles
        title = (method.title or name) if method else name
        reads_truth = float(method.reads_truth) if method else 0.0
        coords = coords_of_model | {
            "title": ("unlearner", title),
            "reads_truth": ("unlearner", reads_truth),
        }
        for job in score.groups()["models"]:
            yield Row(study, job, at, arm_table, case.shown(job), coords)
        yield Row(study, score, at, score_table, None, coords)


def measures_of(case: Case) -> tuple[tuple[str, Measure], ...]:
    """Return the measures, by name, that are defined for a model and what it is to forget."""
    measures = dict(MEASURES)
    if not case.poison.changes:
        measures = {name: each for name, each in MEASURES.items() if name not in OF_POISONED}
    if case.poison.kind == "class":
        measures |= OF_CLASS
    if n_classes_of(case.model) > 2:
        measures |= OF_CLASSES
    return tuple(measures.items())


def benchmarked_cases(
    config: Config, dataset: Dataset, draws: Iterable[int]
) -> Iterator[tuple[Case, Training]]:
    """Yield the cases of the benchmark, each with the training of its methods.

    They are those of each of the benchmark's MLPs and of every other model, once, with the
    benchmark's poisons or the poison that the data came with.
    """
    training_of = {}  # by case: cases of models other than MLPs are equal for all widths
    for widths in config.benchmarked_hidden:
        config_of_widths = replace(config, evaluated_hidden=widths)
        training_of |= dict(cases(config_of_widths, dataset, draws, config.teachers))
    kinds = (*config.benchmarked_poisons, "given")
    for case, training in training_of.items():
        if case.poison.kind in kinds:
            yield case, training


def arm_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate accuracy (…, run, split), diverged (…, run), gradients (…) and z (…, run, example).

    gradients: how many gradients of single samples one run takes. z: signed logits of the first
    EXAMPLES samples of the forget set.
    """
    job = row.job
    known = arrays["known"][0].astype(bool)
    method = job.method
    if isinstance(job, Chosen):
        method = job.choice.candidates[int(arrays["chosen"])]
    n_forget = int(known.sum()) if job.forgets else 0
    n_retain = len(known) - n_forget
    gradients = float(method.cost(job.model, n_retain, n_forget))
    examples = np.flatnonzero(known)[:EXAMPLES]
    z = signed_logits(arrays)[:, examples].astype(np.float32)
    variables = {"gradients": ((), gradients), "z": (("run", "example"), z)}
    table = xr.Dataset(variables, coords={"example": np.arange(len(examples))})
    scores = scores_table(row, arrays).drop_vars("loss")
    return scores.assign(placed(table, row))


def score_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate the arrays of a Score: `forgetting.SCORES` (…, measure); p, lost and angles (…).

    true_positive (…, false_positive).
    """
    names = [name for name, _ in row.job.measures]
    titles = [measure.title for _, measure in row.job.measures]
    table = xr.Dataset(coords={"measure": names, "false_positive": RATES})
    for name, array in arrays.items():
        axis = "false_positive" if name == "true_positive" else "measure"
        axes = (axis,) if array.ndim else ()
        table[name] = axes, np.asarray(array, float)
    return placed(table, row).assign_coords(measure_title=("measure", titles))


# ---- tables ----


def judged(read: ResultFiles, data: str, preset: str, *, study: str) -> pd.DataFrame:
    """Average every measure of every arm over the draws, with verdict, p, cost and collapsed runs.

    low and high: of the mean over these draws, from the half-sample bounds in each. verdict: a
    place in VERDICTS; undecided unless all draws agree.
    """
    return over_draws(read[data, preset, study])


ARM = ["model", "poison", "unlearner"]  # the labels of an arm
CLOSE = 1e-6  # what rounding takes from the largest ε that so many models can have


def over_draws(results: xr.Dataset) -> pd.DataFrame:
    """Return the frame of `judged` from the results of a study."""
    dims = (*ARM, "draw", "measure")
    names = [name for name, array in results.data_vars.items() if array.dims == dims]
    rows = results[names].to_dataframe().reset_index()
    rows = rows.dropna(subset=["value"])
    fewest_runs, _ = fewest_and_most_runs(results)
    largest = np.log(fewest_runs) - CLOSE
    means = _means(rows)
    is_at_cap = (means.measure == "epsilon") & (means.value >= largest)
    means = means.assign(at_least=is_at_cap)
    verdicts = _verdicts(rows, results)
    frames = [means, verdicts, _costs(results), _collapsed(results)]
    tidy = pd.concat(frames, ignore_index=True)
    missing = _without_numbers(tidy, results)
    tidy = pd.concat([tidy, missing.assign(measure=PRIMARY)], ignore_index=True)
    families = results.family.to_series().to_dict()
    return tidy.assign(
        family=tidy.model.map(families), title=tidy.unlearner.map(method_titles(results))
    )


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Average the measures of each arm over the draws.

    Gain, floor, null, perfect and unit are rows of their own, named behind the measure.
    """
    keys = [*ARM, "measure"]
    groups = rows.groupby(keys, sort=False)
    means = groups.mean(numeric_only=True)
    counts = groups.size()
    labels = [rows[key] for key in keys]
    frames = {}  # by what stands behind the measure's name
    for name, suffix in {"value": "", "gain": " gain"}.items():
        low = f"{name}_low"
        high = f"{name}_high"
        deviations = rows[[low, high]].sub(rows[name], axis=0)
        sums = (deviations**2).groupby(labels, sort=False).sum()
        bounds = np.sqrt(sums).div(counts, axis=0)
        columns = {"value": means[name], "sd": groups[name].std()}
        columns["low"] = means[name] - bounds[low]
        columns["high"] = means[name] + bounds[high]
        frames[suffix] = pd.DataFrame(columns)
    is_distance = groups.value.min() >= 0  # a distance has no bound below 0
    values = frames[""]
    clipped = values.low.clip(lower=0)
    values["low"] = values.low.mask(is_distance, clipped)
    for name in ("floor", "null", "perfect", "unit"):
        frames[f" {name}"] = means[name].to_frame("value")
    tidy = []
    for suffix, frame in frames.items():
        frame = frame.assign(n=counts).reset_index()
        tidy.append(frame.assign(measure=frame.measure + suffix))
    return pd.concat(tidy)


def _verdicts(rows: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """Return the verdict of each arm, and its p after Holm, the largest over the draws.

    An arm that is missing on one of the poison's draws is undecided. A verdict is NaN if no p could
    be significant with so few models over so many rows.
    """
    p_values = results.p.to_dataframe().reset_index()
    rows = rows[rows.measure == PRIMARY].merge(p_values)
    teachers = rows[rows.unlearner == "teacher"][["model", "poison", "draw", "excess"]]
    rows = rows.merge(
        teachers.rename(columns={"excess": "teacher_excess"}), on=["model", "poison", "draw"]
    )
    rows["holm"] = rows.groupby("draw").p.transform(holm)
    excess = (rows.excess, rows.excess_high, rows.teacher_excess)
    verdicts_of_rows = map(verdict, rows.holm, *excess)
    rows["verdict"] = list(verdicts_of_rows)
    fewest_runs, _ = fewest_and_most_runs(results)
    most_rows = rows.groupby("draw").size().max()
    attainable = most_rows * smallest_p(int(fewest_runs)) < SIGNIFICANT
    numbers = []
    for arm, rows_of_arm in rows.groupby(ARM, sort=False):
        verdicts = rows_of_arm.verdict
        count = len(rows_of_arm)
        agree = verdicts.nunique() == 1 and count == draws_of(results, arm[1])
        agreed = verdicts.iloc[0] if agree else "undecided"
        number = VERDICTS.index(agreed) if attainable else np.nan
        numbers.append((*arm, "verdict", number, count))
        numbers.append((*arm, "p", rows_of_arm.holm.max(), count))
    return pd.DataFrame(numbers, columns=[*ARM, "measure", "value", "n"])


def draws_of(results: xr.Dataset, poison: str) -> int:
    """Return how many draws of a poison a file is of: a class is drawn once, as a whole."""
    kind, _, _ = poison.partition("-")
    return 1 if kind == "class" else results.sizes["draw"]


def _costs(results: xr.Dataset) -> pd.DataFrame:
    """Return the costs of each arm: cost, seconds and executions.

    cost: its gradients over those of an oracle. seconds: of one training. executions: of a circuit,
    if gradients are taken by parameter shift.
    """
    means_of_draws = results[["gradients", "angles"]].mean("draw")
    means = means_of_draws.to_dataframe().dropna().reset_index()
    oracle = means[means.unlearner == "oracle"].set_index(["model", "poison"]).gradients
    seconds_of: dict[tuple, list[float]] = {}  # of one training, in each job of an arm
    for address, entry in json.loads(results.attrs["jobs"]).items():
        place = json.loads(address)[0]
        if entry["trainings"]:
            arm = tuple(place[label] for label in ARM)
            seconds = entry["seconds"] / entry["trainings"]
            seconds_of.setdefault(arm, []).append(seconds)
    numbers = []
    for row in means.itertuples():
        arm = (row.model, row.poison, row.unlearner)
        cost = row.gradients / oracle[row.model, row.poison]
        numbers.append((*arm, "cost", cost))
        if arm in seconds_of:
            seconds = float(np.mean(seconds_of[arm]))
            numbers.append((*arm, "seconds", seconds))
        if row.angles:
            executions = 2 * row.angles * row.gradients
            numbers.append((*arm, "executions", executions))
    frame = pd.DataFrame(numbers, columns=[*ARM, "measure", "value"])
    return frame.assign(n=[draws_of(results, poison) for poison in frame.poison])


def _without_numbers(tidy: pd.DataFrame, results: xr.Dataset) -> pd.DataFrame:
    """Return the arms (model, poison, unlearner) that have no row in the tidy frame.

    They cannot run on the model, or all of their runs diverged.
    """
    places = itertools.product(models_and_poisons(results), results.unlearner.values)
    arms = [(model, poison, unlearner) for (model, poison), unlearner in places]
    with_numbers = set(tidy[ARM].itertuples(index=False, name=None))
    return pd.DataFrame([arm for arm in arms if arm not in with_numbers], columns=ARM)


def _collapsed(results: xr.Dataset) -> pd.DataFrame:
    """Count the runs of each arm whose validation accuracy is a constant guess's: collapsed."""
    accuracy = results.accuracy.sel(split="validation")
    has_runs = accuracy.notnull().any(("draw", "run"))
    data = json.loads(results.attrs["data"])
    n_classes = len(data.get("digits") or data.get("classes") or "01")
    count = (accuracy < COLLAPSED / n_classes).sum(("draw", "run")).where(has_runs)
    return count.rename("value").to_series().dropna().reset_index().assign(measure="collapsed")


# A run that names one class for every sample is right on the share of that class: the larger class
# is .53 of the 2,144 images, .50 of the 84 states. In units of one class of equal ones.
COLLAPSED = 1.1


FORGETTING = {  # column heads of the table of the stage evaluation, by measure
    "w1": "W1",
    "w1 floor": "floor",
    "w1 unit": "random halves",
    "w1 null": "null arm",
    "p": "p",
    "verdict": "verdict",
    "klom": "KLoM",
    "epsilon": "ε",
    "auc": "AUC",
    "relearn": "relearn",
    "gap": "gap",
    "cost": "cost",
}
COLLAPSE = {"collapsed": "collapsed"}


def table_of(study: str, title: str, *, collapsed: bool = False) -> StudyTable:
    """Make the table of a judged study; collapsed: with a column of collapsed runs."""
    measures = FORGETTING | (COLLAPSE if collapsed else {})
    further = {"tow": "ToW", "tpr": "TPR", "corrective": "acc. poisoned", "seconds": "seconds"}
    all_measures = FORGETTING | further | (COLLAPSE if study != "evaluation" else {})
    return StudyTable(
        frame=partial(judged, study=study),
        rows=("poison", "model", "unlearner"),
        measures=measures,
        spread=("w1",),
        title=title,
        findings={"rows": ("poison", "model", "title"), "measures": all_measures},
    )
