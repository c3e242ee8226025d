"""What does a learner choose from its own noisy labels? Every contender as is, by own and by pooled
labels.

*as is*: the published setting, or the library's defaults. *own*: each run chooses its setting and
epoch by the loss on a fifth of its own noisy training set, and is trained anew on all of it.
*pooled*: one choice for all runs, by further training sets of samples that no run is judged on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from datar import Dataset, Split, redraw
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job, values_of
from foundation.engine.runner import require_names
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import (
    ResultFiles,
    accuracies,
    circuit_minus_others,
    count_of_runs,
    ordered,
    over_runs,
)
from models import Training
from poison_unlearn import Poison
from protocol import SPLITS, Drawn, Fit
from studies.classics import CLASSICS
from studies.config import Config
from studies.families import Protocol, model_words
from studies.oracles import HELD_OUT
from studies.rows import flipped_words, place_of, placed, rows_of_blocks, scores_table
from studies.tuning import (
    CONTENDERS,
    ESTIMATORS,
    TRIVIAL,
    TUNING,
    VALIDATION,
    Contender,
    Trial,
    Tuned,
    circuit_minus_mlps,
    control_fit,
    estimate_as_is,
    split_accuracies,
    tuning_of,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim

CHOICES = ("as is", "own", "pooled")
NETWORKS = (
    "mlp",
    "mlp_small",
    "qnn",
    "logistic",
    "linear",
    "logistic_decay",
    "mlp_decay",
    "mlp_smoothed",
    "mlp_gce",
    "mlp_bounded",
    "quadratic",
)
OTHERS = {name: estimator for name, (estimator, _) in ESTIMATORS.items() if name != "threshold"}
OTHERS |= CLASSICS
# of the samples, how many the pooled choice has to itself, in percent
POOL = 40


@dataclass(frozen=True, kw_only=True)
class OwnFlags(Flags):
    """Of the stage own_labels."""

    contenders: tuple[str, ...] = ()
    """What contends, names in studies.own_labels.NETWORKS and OTHERS; none: all."""

    AXES = ("contenders",)

    def check(self, config: Config) -> None:
        require_names("contenders", self.contenders, (*NETWORKS, *OTHERS))


# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class OwnTuned(Tuned):
    """A block of runs of a contender, each under the setting and for the epochs of its own choice.

    tuning: its trials are of the same runs.
    """

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return the arrays of a Fit, and the chosen setting and epoch of each run, (runs,)."""
        (tuning,) = inputs
        settings, points = chosen_by_runs(tuning["loss"])
        trials = self.tuning.trials
        measured = trials[0][0].measured
        values: Arrays = {}
        for setting in np.unique(settings):
            trial = trials[setting][0]
            fit = Fit(
                **values_of(self, Drawn),
                model=trial.model,
                method=trial.method,
                record="curves",
                measured=measured,
                side_by_side=self.side_by_side,
            )
            found = fit.perform(dataset)
            for run in np.flatnonzero(settings == setting):
                for name in ("accuracy", "loss"):
                    curve = found[name][run]  # (epochs, splits)
                    values.setdefault(name, np.empty((self.size, curve.shape[1]), curve.dtype))
                    values[name][run] = curve[points[run]]
            values.setdefault("size", found["size"])
        losses = values["loss"][:, [VALIDATION, SPLITS.index("train")]]
        diverged = ~np.isfinite(losses).all(axis=1)
        epochs = np.array(measured)[points]
        return values | {"diverged": diverged, "setting": settings, "epoch": epochs}


def chosen_by_runs(loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the setting and the point of the least loss of each run, (runs,) both.

    loss: (settings, points, runs) on samples that a run held out. A setting is out of a run's
    choice where it diverged.
    """
    n_points, n_runs = loss.shape[1:]
    finite = np.where(np.isfinite(loss), loss, np.inf).reshape(-1, n_runs)
    return np.divmod(finite.argmin(axis=0), n_points)


@dataclass(frozen=True, kw_only=True)
class HeldOut(Drawn):
    """The accuracy of each setting of an estimator on the noisy samples that runs hold out."""

    candidates: tuple[Any, ...]  # settings of an estimator

    @property
    def title(self) -> str:
        """Estimator and poison."""
        return f"{self.candidates[0].label} {self.poison.name} {self.poison.alpha_percent} %"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return score (settings, runs)."""
        scores = []
        for candidate in self.candidates:
            of_runs = [split_accuracies(candidate, sets) for sets in self.sets(dataset)]
            scores.append([accuracies[VALIDATION] for accuracies in of_runs])
        return {"score": np.array(scores)}


@dataclass(frozen=True, kw_only=True)
class Picked(Drawn):
    """A block of runs of an estimator under the setting of the largest accuracy on noisy samples.

    by_run: each run takes the setting that is best on its own samples, else all take the one that
    is best on average. The first of equally good ones is taken.
    """

    held_out: HeldOut
    by_run: bool

    @property
    def needs(self) -> tuple[Job, ...]:
        """The accuracies of all settings."""
        return (self.held_out,)

    @property
    def title(self) -> str:
        """Estimator and poison."""
        return self.held_out.title

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return the arrays of an Estimate, with setting (runs,)."""
        (held_out,) = inputs
        score = held_out["score"]
        if not self.by_run:
            score = np.repeat(score.mean(axis=1, keepdims=True), self.size, axis=1)
        settings = score.argmax(axis=0)
        candidates = self.held_out.candidates
        accuracy = np.array([
            split_accuracies(candidates[setting], sets)
            for setting, sets in zip(settings, self.sets(dataset), strict=True)
        ])  # fmt: skip
        return {
            "accuracy": accuracy,
            "loss": np.full_like(accuracy, np.nan),
            "diverged": np.zeros(self.size, bool),
            "size": np.array(0),
            "setting": settings,
        }


# ---- data ----


def judged_and_pool(config: Config, dataset: Dataset) -> dict[str, Dataset]:
    """Return the samples on which runs are drawn and judged, and the pool of pooled choices.

    The pool is the configuration's. Where that has none the samples are divided; training sets of
    both parts have as many samples as the data set's own, and where those do not suffice for two
    such sets in the pool there is none, and all are judged.
    """
    pool = config.pool() if dataset.given is None else None
    if pool is not None and pool.name == dataset.name:
        return {"judged": dataset, "pool": pool}
    n_train = len(dataset.train.y)
    n_samples = n_train + len(dataset.val.y)
    n_judged = n_samples - n_samples * POOL // 100
    if dataset.given is not None or n_samples - n_judged < 2 * n_train:
        return {"judged": dataset}
    judged = redraw(dataset, n_judged, seed=config.seed)
    parts = {"judged": judged.train, "pool": judged.val}
    return {name: _of_samples(dataset, samples, n_train) for name, samples in parts.items()}


def _of_samples(dataset: Dataset, samples: Split, n_train: int) -> Dataset:
    """Return a data set of these samples, n_train of which are its training set."""
    by_class = np.argsort(samples.y, kind="stable")
    halves = [samples.take(by_class[first::2]) for first in (0, 1)]  # both classes in each
    dealt = redraw(replace(dataset, train=halves[0], val=halves[1]), n_train, seed=0)
    sizes = {"n_train": len(dealt.train.y), "n_val": len(dealt.val.y)}
    return replace(dealt, provenance=dealt.provenance | sizes).identified()


# ---- what is computed ----


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan every contender as is, by its own labels and, where there is a pool, by pooled ones."""
    data = judged_and_pool(config, dataset)
    poisons = config.poisons_of("noises").values()
    names = config.own_labels.contenders or (*NETWORKS, *OTHERS)
    for name, poison in itertools.product(names, poisons):
        if name in OTHERS:
            yield from _estimator_rows(config, data, OTHERS[name], poison)
        else:
            yield from _network_rows(config, data, CONTENDERS[name], poison)


def _network_rows(
    config: Config, data: dict[str, Dataset], contender: Contender, poison: Poison
) -> Iterator[Row]:
    """Yield the rows of a model that is trained by gradients."""
    judged = data["judged"]
    protocol: Protocol = getattr(config, contender.family)
    longest = replace(protocol.sweep, epochs=config.control_epochs)
    trials = contender.trials(config, judged, longest)
    named = contender.named(config, judged) if contender.named else trials[0][0]
    coords = model_words(trials[0][0]) | {"group": ("model", contender.group)}
    place = place_of(named.label + contender.label, poison)

    if contender.named is None:  # no variant of another
        as_is = _published(contender.trials(config, judged, protocol.sweep), protocol.sweep)
        fit = control_fit(config, judged, protocol, *as_is, poison)
        yield from rows_of_blocks(
            config, "own_labels", replace(fit, record="end"), place | {"choice": "as is"}, coords
        )

    fit = control_fit(config, judged, protocol, *trials[0], poison)
    for block in config.blocks():
        tuning = tuning_of(config, judged, protocol, trials, poison, block)
        job = OwnTuned(**values_of(fit) | {"record": "end", "block": block}, tuning=tuning)
        shown = config.shown(job.runs)
        yield Row("own_labels", job, place | {"choice": "own"}, own_table, shown, coords)

    if "pool" in data:
        tuning = tuning_of(config, data["pool"], protocol, trials, poison)
        tuned = Tuned(**values_of(fit) | {"record": "end"}, tuning=tuning)
        yield from rows_of_blocks(config, "own_labels", tuned, place | {"choice": "pooled"}, coords)


def _published(trials: list[Trial], training: Training) -> Trial:
    """Return the setting whose learning rate is nearest to the published one."""

    def distance(trial: Trial) -> float:
        _, method = trial
        return abs(np.log(method.training.learning_rate / training.learning_rate))

    return min(trials, key=distance)


def _estimator_rows(
    config: Config, data: dict[str, Dataset], estimator: Any, poison: Poison
) -> Iterator[Row]:
    """Yield the rows of an estimator that is not trained by gradients."""
    judged = data["judged"]
    coords = {
        "family": ("model", estimator.family),
        "group": ("model", TRIVIAL if estimator.family == "Trivial" else "classic"),
    }
    place = place_of(estimator.label, poison)
    as_is = estimate_as_is(config, judged, estimator, poison)
    of_judged = values_of(as_is, Drawn)
    yield from rows_of_blocks(config, "own_labels", as_is, place | {"choice": "as is"}, coords)
    candidates = estimator.settings()
    if len(candidates) == 1:
        return
    kept_back = {"held_out_percent": HELD_OUT, "held_out_of": "all", "candidates": candidates}
    for block in config.blocks():
        held_out = HeldOut(**of_judged | kept_back | {"block": block})
        job = Picked(**of_judged | {"block": block}, held_out=held_out, by_run=True)
        shown = config.shown(job.runs)
        yield Row("own_labels", job, place | {"choice": "own"}, scores_table, shown, coords)
    if "pool" in data:
        runs = config.tuning_runs
        of_pool = of_judged | {"data": data["pool"].provenance["sha256"], "size": runs}
        of_pool["block"] = TUNING // runs  # as of the networks: no draw is that of a judged run
        held_out = HeldOut(**of_pool | kept_back)
        picked = Picked(**of_judged, held_out=held_out, by_run=False)
        yield from rows_of_blocks(
            config, "own_labels", picked, place | {"choice": "pooled"}, coords
        )


def own_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate the scores, and chosen_setting and chosen_epoch (…, run) of each run."""
    table = xr.Dataset(coords={"run": list(row.job.runs)})
    for name in ("setting", "epoch"):
        table[f"chosen_{name}"] = "run", arrays[name].astype(float)
    return scores_table(row, arrays).assign(placed(table, row))


# ---- what is shown ----


def by_choice(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Return each contender's validation accuracy under each choice, and its median epoch."""
    results = read[data, preset, "own_labels"]
    means = over_runs(accuracies(results, "validation"))
    epochs = results.chosen_epoch.median("run").rename("value").to_series().dropna().reset_index()
    families = results.family.to_series().to_dict()
    epochs = epochs.assign(measure="epoch", family=epochs.model.map(families), n=0)
    return pd.concat([means, epochs], ignore_index=True)


def minus_others(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Subtract every other contender's accuracy from the QNN's under the same choice, by run."""
    return circuit_minus_others(accuracies(read[data, preset, "own_labels"], "validation"))


def figure(results: xr.Dataset) -> Figure | None:
    """Draw validation accuracies, a row for each contender and a mark for each choice."""
    from foundation.report.drawing import (
        FAMILY_STYLE,
        SPARE_STYLE,
        draw_dot,
        finished,
        grid_for,
        noises_of,
        poison_words,
    )

    names = ordered(results, "model")[::-1]
    marks = dict(zip(CHOICES, ("o", "s", "^"), strict=True))
    for axis, (poison, alpha) in grid_for(noises_of(results), "validation accuracy", most=2):
        for row, name in enumerate(names):
            colour = FAMILY_STYLE.get(results.family.sel(model=name).item(), SPARE_STYLE)[0]
            for place, (choice, mark) in enumerate(marks.items()):
                if choice not in results.choice:
                    continue
                at = {"model": name, "poison": poison, "alpha_percent": alpha, "choice": choice}
                runs = results.accuracy.sel(**at, split="validation").dropna("run").values
                if len(runs):
                    height = row + 0.25 * (1 - place)
                    draw_dot(axis, height, runs, (colour, mark), across=True, line_on_top=True)
        axis.set_yticks(range(len(names)), labels=names, fontsize=7)
        axis.set_title(poison_words(poison, alpha))
        for choice, mark in marks.items():
            if choice in results.choice:
                axis.plot([], [], mark, color="0.3", markersize=4, label=choice)
    text = (
        f"mean of n = {count_of_runs(results)} runs, each with a training set of its own, and its "
        "95 % bootstrap interval; as is: published settings, or a library's defaults; own: chosen "
        "by each run's own noisy labels; pooled: by those of further training sets"
    )
    return finished(text, results, legend=True)


TABLE = StudyTable(
    frame=by_choice,
    rows=("poison", "alpha_percent", "model"),
    columns=("choice", "measure"),
    head="{choice}: {measure}",
    title="Validation accuracy of every contender as is, with setting and epoch chosen by each "
    "run's own noisy labels, and by those of further training sets; epoch: the median; n = {n} "
    "runs with training sets of their own",
)
PAIRED = StudyTable(
    name="paired-own",
    frame=minus_others,
    rows=("poison", "alpha_percent", "minus"),
    columns=("model", "choice"),
    head="{model} − it, {choice}, n = {n}",
)


# ---- what is claimed ----


def ahead_by_own_labels(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """Claim that the QNN is ahead of the MLP if both choose by each run's own noisy labels.

    Control: the MLP with weight decay, which chooses so as well.
    """
    from foundation.report.claims import Claim

    runs = accuracies(read[data, "corrected", "own_labels"], "validation").query(
        "poison == 'labels' and alpha_percent == @alpha and choice == 'own'"
    )
    effect, decayed = circuit_minus_mlps(runs)
    return Claim(
        whose="ours",
        source="a learner has its own labels alone",
        setting="own labels",
        statement="Chosen by each run's own noisy labels, the QNN is ahead of the MLP: "
        + flipped_words(place, alpha),
        effect=effect,
        controls=(decayed,),
    )


def ahead_of_the_embedding(read: ResultFiles, data: str, alpha: int, place: str) -> Claim:
    """Claim that the QNN as published is ahead of a support vector machine on the fidelities.

    Its kernel is that of the states that enter the circuit. Control: the machine by own labels.
    """
    from foundation.report.claims import Claim, of_family, of_model, paired

    runs = accuracies(read[data, "corrected", "own_labels"], "validation").query(
        "poison == 'labels' and alpha_percent == @alpha"
    )
    circuit = of_family(runs, "QNN")
    machine = of_model(runs, "fidelity-kernel SVM")
    effect, control = (
        paired(
            f"QNN − fidelity-kernel SVM, {choice}",
            circuit[circuit.choice == choice],
            machine[machine.choice == choice],
        )
        for choice in ("as is", "own")
    )
    return Claim(
        whose="ours",
        source="the embedding without a circuit",
        setting="as is",
        statement="The QNN resists poison that a kernel machine on the same states learns: "
        + flipped_words(place, alpha),
        effect=effect,
        controls=(control,),
    )


STUDY = Study(
    name="own_labels",
    two_classes=True,
    question="what does a learner choose from its own noisy labels",
    plan=plan,
    flags=OwnFlags(),
    quick={"contenders": ("mlp", "mlp_decay", "qnn", "class_mean", "kernel")},
    tables=(TABLE, PAIRED),
    figures=(StudyFigure(name="own_labels", draw=figure),),
    data=judged_and_pool,
)
