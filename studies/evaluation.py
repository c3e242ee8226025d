"""How far are unlearned models from oracles, on which budget, and how long do oracles train?"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datar import Dataset
from foundation.base.checks import require
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.runner import require_list, require_names
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.measures.forgetting import PRIMARY
from foundation.report.frames import ResultFiles, accuracies, models_and_poisons, ordered, over_runs
from poison_unlearn import Method, OneShot, Retrain
from studies.config import Config
from studies.families import model_words
from studies.judging import benchmarked_cases, judged_rows, table_of
from studies.judging_figures import (
    forgetting_attack,
    forgetting_cost,
    forgetting_logits,
    forgetting_scores,
)
from studies.methods import METHODS, OF_MORE_CLASSES
from studies.oracles import CHOICE_DRAWS, Case, cases, split_sizes
from studies.rows import scores_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class EpochsFlags(Flags):
    """Of the stage epochs."""

    grid: tuple[int, ...] = (50, 100, 200, 400, 800, 1600)
    """Epochs that are tried, each twice the one before."""

    AXES = ("grid",)

    def check(self, config: Config) -> None:
        require_list("grid", self.grid)
        pairs = itertools.pairwise(self.grid)
        doubled = all(after == 2 * before for before, after in pairs)
        allowed = "numbers of epochs, each twice the one before, such as 50 100 200"
        grid = " ".join(map(str, self.grid))
        require(min(self.grid) > 0 and doubled, "grid", grid, allowed)


@dataclass(frozen=True, kw_only=True)
class BenchmarkFlags(Flags):
    """Of the stages benchmark and finalists."""

    methods: tuple[str, ...] = ()
    """Methods of the benchmark; none: all."""
    finalists: tuple[str, ...] = ()
    """The best of them, of the stage finalists, on --draws draws of the poison."""
    budget: float = 0.25
    """How many gradients of single samples a method may take, over those of an oracle. It sets the
    epochs, at least one; methods of one step take what they take."""

    AXES = ("methods", "finalists")

    def check(self, config: Config) -> None:
        for flag in ("methods", "finalists"):
            require_names(flag, getattr(self, flag), METHODS)
        require(0 < self.budget < np.inf, "budget", self.budget, "a positive number, such as 0.25")


# ---- what is computed ----


def plan_epochs(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Train oracles longer and longer, with a fifth of the retained samples held out."""
    runs = min(config.runs, 5)
    cases_of_draws = cases(config, dataset, CHOICE_DRAWS, runs)
    for (case, _), epochs in itertools.product(cases_of_draws, config.epochs.grid):
        training = replace(case.training, epochs=epochs)
        case = replace(case, training=training)
        place = {
            "model": case.model.label,
            "poison": case.poison.name,
            "epochs": epochs,
            "draw": case.draw,
        }
        coords = model_words(case.model)
        for job in case.oracles():
            yield Row("epochs", job, place, scores_table, case.shown(job), coords)


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Compare all configured methods with oracles.

    Choices of hyper-parameters go into the file selection; teachers, oracles, methods and their
    scores go into the file evaluation.
    """
    draws = range(config.draws)
    for case, unlearn in cases(config, dataset, draws, config.teachers):
        methods = {name: config.method(name, training=unlearn) for name in config.methods}
        yield from judged_rows(config, case, methods, dataset, "evaluation", "selection")


def plan_benchmark(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Compare all methods with oracles, on an equal budget of gradients and with further MLPs.

    All methods take the teacher's batches: with whole batches, as published, the budget would last
    for ten or twenty steps.
    """
    every = [name for name in METHODS if dataset.n_classes > 2 or name not in OF_MORE_CLASSES]
    names = config.benchmark.methods or every
    yield from _on_a_budget(config, dataset, names, [0], "benchmark")


def plan_finalists(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Compare the best methods of the benchmark with oracles, on more draws of the poison."""
    names = config.benchmark.finalists
    allowed = f"methods that it is to compare, out of {', '.join(METHODS)}"
    require(names, "--benchmark.finalists", "nothing", allowed)
    yield from _on_a_budget(config, dataset, names, range(config.draws), "finalists")


def _on_a_budget(
    config: Config, dataset: Dataset, names: Iterable[str], draws: Iterable[int], study: str
) -> Iterator[Row]:
    budget = config.benchmark.budget
    for case, unlearn in benchmarked_cases(config, dataset, draws):
        n_retain, n_forget = split_sizes(case.poison, dataset)
        training = replace(unlearn, batch_size=case.training.batch_size)
        methods = {}
        for name in names:
            method = config.method(name, training=training)
            methods[name] = _within(budget, method, case, n_retain, n_forget)
        yield from judged_rows(config, case, methods, dataset, study, "benchmark_selection")


def _within(budget: float, method: Method, case: Case, n_retain: int, n_forget: int) -> Method:
    """Set a method's epochs to the most that the budget allows, at least one.

    budget: the gradients that the method may take over those of an oracle. A method of one step
    gets one epoch, for its null arm; a method of unknown cost keeps its epochs.
    """

    def trained(epochs: int) -> Method:
        return replace(method, training=replace(method.training, epochs=epochs))

    if isinstance(method, OneShot):
        return trained(1)
    if math.isnan(method.gradients(n_retain, n_forget)):
        return method

    def gradients(epochs: int) -> float:
        return trained(epochs).gradients(n_retain, n_forget)

    most = budget * Retrain(training=case.training).gradients(n_retain, 0)
    epochs = bisect_right(range(1, 10**5), most, key=gradients)
    return trained(max(epochs, 1))


def plan_equal_steps(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Compare methods with oracles after equal total steps, on one draw of the poison.

    Retraining gets as many steps as teacher and unlearning method take together.
    """
    for case, unlearn in cases(config, dataset, [0], config.teachers):
        n_retain, n_forget = split_sizes(case.poison, dataset)
        retrain = Retrain(training=case.training)
        steps = case.training.epochs * retrain.steps(n_retain + n_forget)
        steps += unlearn.epochs * Retrain(training=unlearn).steps(n_retain)
        epochs = round(steps / retrain.steps(n_retain))
        longer = replace(case.training, epochs=epochs)
        methods = {}
        for name in config.methods:
            training = longer if METHODS[name].is_fresh else unlearn
            methods[name] = config.method(name, training=training)
        yield from judged_rows(
            config, case, methods, dataset, "equal_steps", "equal_steps_selection"
        )


# ---- what is shown ----


def oracle_epochs(results: xr.Dataset) -> pd.DataFrame:
    """Find how many epochs suffice for oracles: family, model, poison, epochs (NaN: no count does).

    The rule takes the first count at which doubling it moves the mean accuracies on held-out,
    retained and forget samples each by less than its standard deviation over seeds (within draws).
    Forget samples do not count where their true labels are not known.
    """
    splits = ["validation", "retain", "forget_clean"]
    accuracy = results.accuracy.sel(split=splits)
    means = accuracy.mean(("draw", "run"))
    deviations = np.sqrt(accuracy.var("run", ddof=1).mean("draw"))
    counts = means["epochs"].values
    doubled = means.reindex(epochs=2 * counts).assign_coords(epochs=counts)
    moved = abs(doubled - means)
    is_small = (moved < deviations) | (moved == 0)
    is_unknown = accuracy.isnull().all(("epochs", "draw", "run"))
    has_validation = moved.sel(split="validation").notnull()
    settled = (is_small | is_unknown).all("split") & has_validation
    models = ordered(results, "model")
    poisons = ordered(results, "poison")
    rows = []
    for model, poison in itertools.product(models, poisons):
        settled_counts = counts[settled.sel(model=model, poison=poison).values]
        epochs = settled_counts[0] if len(settled_counts) else np.nan
        family = results.family.sel(model=model).item()
        rows.append((family, model, poison, epochs))
    return pd.DataFrame(rows, columns=["family", "model", "poison", "epochs"])


def accuracies_over_epochs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Average the oracles' accuracy after each count of epochs.

    Measure rule: the count of `oracle_epochs`.
    """
    results = read[data, preset, "epochs"]
    runs = accuracies(results, "validation", "retain", "forget_clean")
    # The mean is over the runs of both draws, so that each run needs a number of its own.
    runs_of_draw = runs.run.max() + 1
    numbers = runs.run + runs.draw * runs_of_draw
    runs = runs.assign(run=numbers).drop(columns="draw")
    held_out = runs[runs.measure == "validation"]
    # over_runs keeps the counts apart under the name of a label that it knows.
    curves = over_runs(held_out.rename(columns={"epochs": "alpha_percent"}))
    titles = curves.alpha_percent.map("{} epochs".format)
    curves = curves.assign(measure=titles).drop(columns="alpha_percent")
    rule = oracle_epochs(results).rename(columns={"epochs": "value"}).assign(measure="rule")
    tidy = pd.concat([curves, rule], ignore_index=True)
    return tidy.assign(n=curves.n.max())


def best_methods(results: xr.Dataset, count: int = 5) -> list[str]:
    """Name the benchmark's methods nearest to the oracles, by their mean rank in W1 over models.

    Methods that read the truth are left out. A method has no rank on a model on which it cannot run
    or diverged.
    """
    distance = results.distance.sel(measure=PRIMARY).mean("draw")
    distance = distance.where(results.reads_truth == 0)
    distance = distance.drop_sel(unlearner=["teacher", "oracle"])
    table = distance.stack(place=("model", "poison")).to_series().unstack("unlearner")
    ranks = table.rank(axis="columns").mean()
    return list(ranks.sort_values(kind="stable").index[:count])


def rankings(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Compare the draws' rankings of the methods by distance from the oracles: Kendall's τ.

    Mean over pairs of draws; NaN if there is no pair, or one method alone.
    """
    from scipy.stats import kendalltau  # half a second, in every process that imports this module

    results = read[data, preset, "evaluation"]
    methods = [name for name in ordered(results, "unlearner") if name not in ("teacher", "oracle")]
    distance = results.distance.sel(measure=PRIMARY, unlearner=methods)
    rows = []
    for model, poison in models_and_poisons(results):
        known = distance.sel(model=model, poison=poison).dropna("unlearner", how="all")
        distances = known.transpose("draw", "unlearner").values
        n_draws, n_methods = distances.shape
        pairs = itertools.combinations(distances, 2) if n_methods > 1 else ()
        taus = [kendalltau(*pair).statistic for pair in pairs]
        mean = float(np.mean(taus)) if taus else np.nan
        family = results.family.sel(model=model).item()
        rows.append((family, model, poison, "τ", mean, n_draws))
    frame = pd.DataFrame(rows, columns=["family", "model", "poison", "measure", "value", "n"])
    return frame.assign(sd=np.nan, low=np.nan, high=np.nan)


def epochs_figure(results: xr.Dataset) -> Figure | None:
    """Draw accuracies of oracles over epochs: a row for each poison, a column for each model."""
    from foundation.report.drawing import PALETTE, draw_curve, finished, panels_for, poison_words

    rows = models_and_poisons(results)
    if not rows:
        return None
    poisons = list(dict.fromkeys(poison for _, poison in rows))
    models = ordered(results, "model")
    pairs = [(model, poison) for poison in poisons for model in models]
    chosen = oracle_epochs(results).set_index(["model", "poison"]).epochs
    styles = {
        "retain": ("retained", ("0.6", "-", "s")),
        "validation": ("held out", (PALETTE[0], "--", "o")),
        "forget_clean": ("forget set, true labels", (PALETTE[1], "-.", "^")),
    }
    means = results.accuracy.sel(split=list(styles)).mean(("draw", "run"))
    least = float(means.min())
    panels = panels_for(pairs, "epochs", "accuracy", rows=len(poisons))
    for axis, (model, poison) in panels:
        for split, (label, style) in styles.items():
            runs = _over_draws(results.accuracy.sel(model=model, poison=poison, split=split))
            if runs.count():
                draw_curve(axis, runs, style, label)
        rule = {"color": PALETTE[3], "linestyle": ":", "label": "found by the rule"}
        axis.axvline(chosen[model, poison], **rule)
        title = f"{model}, {poison_words(poison)}"
        axis.set(xscale="log", title=title, ylim=(least - 0.01, 1.005))
        ticks = results["epochs"].values
        axis.set_xticks(ticks, labels=map(str, ticks), minor=False)
        axis.minorticks_off()
    draws = results.sizes["draw"]
    runs = results.sizes["run"]
    text = (
        "oracles: the teacher's training on the retained samples alone, a fifth of which is held "
        f"out; mean of {runs} seeds on each of {draws} draws of the poison, band: ± 1 standard "
        "deviation. The rule: the first count at which doubling it moves no accuracy by as much as "
        "its standard deviation over seeds"
    )
    return finished(text, results, legend=True)


def _over_draws(accuracy: xr.DataArray) -> xr.DataArray:
    """Put the runs of all draws along one axis, run."""
    runs = accuracy.stack(run_of_draw=("draw", "run")).dropna("epochs", how="all")
    return runs.reset_index("run_of_draw").drop_vars(["draw", "run"]).rename(run_of_draw="run")


TABLE = table_of(
    "evaluation",
    "Distance from the oracles on the forget set, n = {n} models of each kind, mean over the draws "
    "of the poison. W1: Wasserstein distance of the logits, with its 95 % interval; floor: that of "
    "half A of the oracles, and the mean over random halves; null arm: that of teachers trained on "
    "with the poison for as many steps; p: above the floor, after Holm, the largest of the draws; "
    "verdict: where the draws agree (a dash: so few models cannot give one); perfect: KLoM 0, AUC "
    ".5, relearn 1, gap 0, ε as near to 0 as so few models show; ≥: ε at its largest, log N; cost: "
    "gradients over an oracle's",
)
RANKINGS = StudyTable(name="rankings", frame=rankings, rows=("poison", "model"))
STUDY = Study(
    name="evaluation",
    question="how far are unlearned models from oracles",
    plan=plan,
    tables=(TABLE, RANKINGS),
    figures=(
        StudyFigure(name="forgetting_scores", draw=forgetting_scores),
        StudyFigure(name="forgetting_logits", draw=forgetting_logits),
        StudyFigure(name="forgetting_attack", draw=forgetting_attack),
        StudyFigure(name="forgetting_cost", draw=forgetting_cost),
    ),
)

EPOCHS = Study(
    name="epochs",
    question="how long are oracles to be trained",
    plan=plan_epochs,
    flags=EpochsFlags(),
    tables=(
        StudyTable(
            frame=accuracies_over_epochs,
            rows=("poison", "model"),
            title="Oracles: accuracy on held-out retained samples after so many epochs, mean of n "
            "= {n} runs on two draws; rule: the first count at which doubling it moves no accuracy "
            "by as much as its standard deviation over seeds",
        ),
    ),
    figures=(StudyFigure(name="oracle_epochs", draw=epochs_figure),),
)

BENCHMARK = Study(
    name="benchmark",
    question="how far are those of all methods on an equal budget",
    plan=plan_benchmark,
    flags=BenchmarkFlags(),
    tables=(
        table_of(
            "benchmark",
            "All methods on an equal budget of gradients; columns as of the stage evaluation; "
            "collapsed: runs that end on validation no better than naming one class. n = {n} "
            "models of each kind",
            collapsed=True,
        ),
    ),
    figures=(
        StudyFigure(name="benchmark_scores", draw=forgetting_scores),
        StudyFigure(name="benchmark_cost", draw=forgetting_cost),
    ),
)

FINALISTS = Study(
    name="finalists",
    question="how far are those of its best methods on more draws",
    plan=plan_finalists,
    flags=BENCHMARK.flags,
    group=BENCHMARK.name,
    tables=(
        table_of(
            "finalists",
            "The best of the methods on {draws} draws of the poison; columns as of the stages "
            "evaluation and benchmark. n = {n} models of each kind",
            collapsed=True,
        ),
    ),
)

EQUAL_STEPS = Study(
    name="equal_steps",
    question="how far are methods after equal total steps",
    plan=plan_equal_steps,
    tables=(
        table_of(
            "equal_steps",
            "As the stage evaluation, on one draw, with as many steps for retraining as teacher "
            "and method take together. n = {n} models of each kind",
        ),
    ),
    figures=(StudyFigure(name="equal_steps_scores", draw=forgetting_scores),),
)
