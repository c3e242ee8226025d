"""Did it forget? How far are unlearned models from oracles, on what budget, and how long are
oracles to be trained?"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import xarray as xr

from datar import Dataset
from foundation.base.checks import require
from foundation.engine.runner import require_list
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.measures.forgetting import PRIMARY
from foundation.report.frames import ResultFiles, accuracies, models_and_poisons, ordered, over_runs
from poison_unlearn import Method, OneShot, Retrain
from studies.config import Config
from studies.families import model_words
from studies.judging import (
    benchmarked_cases,
    forgetting_attack,
    forgetting_cost,
    forgetting_logits,
    forgetting_scores,
    judged_rows,
    table_of,
)
from studies.methods import METHODS
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
        doubled = all(after == 2 * before for before, after in itertools.pairwise(self.grid))
        allowed = "numbers of epochs, each twice the one before, such as 50 100 200"
        require(min(self.grid) > 0 and doubled, "grid", " ".join(map(str, self.grid)), allowed)


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
            for name in getattr(self, flag):
                require(name in METHODS, flag, name, ", ".join(METHODS))
        require(0 < self.budget < np.inf, "budget", self.budget, "a positive number, such as 0.25")


# ---- what is computed ----


def plan_epochs(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Accuracies of oracles trained longer and longer, with a fifth of the retained samples held
    out."""
    runs = min(config.runs, 5)
    for (case, _), count in itertools.product(
        cases(config, dataset, CHOICE_DRAWS, runs), config.epochs.grid
    ):
        own = replace(case, training=replace(case.training, epochs=count))
        for job in own.oracles():
            place = {
                "model": case.model.label,
                "poison": case.poison.kind,
                "epochs": count,
                "draw": case.draw,
            }
            yield Row("epochs", job, place, scores_table, own.shown(job), model_words(case.model))


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Choices of hyper-parameters into selection; teachers, oracles, methods and their scores into
    evaluation."""
    for case, unlearn in cases(config, dataset, range(config.draws), config.teachers):
        methods = {name: config.method(name, training=unlearn) for name in config.methods}
        yield from judged_rows(config, case, methods, dataset, "evaluation", "selection")


def plan_benchmark(config: Config, dataset: Dataset) -> Iterator[Row]:
    """All methods beside oracles, on an equal budget of gradients and with further MLPs.

    All take the teacher's batches: a whole batch at every step, as published, leaves ten or twenty
    steps of the budget.
    """
    yield from _on_a_budget(
        config, dataset, config.benchmark.methods or tuple(METHODS), [0], "benchmark"
    )


def plan_finalists(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The best methods of the benchmark on more draws of the poison."""
    require(
        config.benchmark.finalists,
        "--benchmark.finalists",
        "nothing",
        f"methods that it is to compare, out of {', '.join(METHODS)}",
    )
    yield from _on_a_budget(
        config, dataset, config.benchmark.finalists, range(config.draws), "finalists"
    )


def _on_a_budget(
    config: Config, dataset: Dataset, names: Iterable[str], draws: Iterable[int], study: str
) -> Iterator[Row]:
    for case, unlearn in benchmarked_cases(config, dataset, draws):
        sizes, training = (
            split_sizes(case.poison, dataset),
            replace(unlearn, batch_size=case.training.batch_size),
        )
        methods = {name: config.method(name, training=training) for name in names}
        methods = {
            name: _within(config.benchmark.budget, method, case, *sizes)
            for name, method in methods.items()
        }
        yield from judged_rows(config, case, methods, dataset, study, "benchmark_selection")


def _within(budget: float, method: Method, case: Case, n_retain: int, n_forget: int) -> Method:
    """The method with as many epochs as an oracle's gradients times the budget allow, at least one.

    A method of one step has one, for its null arm; one that does not say what it takes keeps its
    own.
    """

    def trained(epochs: int) -> Method:
        return replace(method, training=replace(method.training, epochs=epochs))

    if isinstance(method, OneShot):
        return trained(1)
    if math.isnan(method.gradients(n_retain, n_forget)):
        return method
    most = budget * Retrain(training=case.training).gradients(n_retain, 0)
    count = bisect_right(
        range(1, 10**5), most, key=lambda epochs: trained(epochs).gradients(n_retain, n_forget)
    )
    return trained(max(count, 1))


def plan_equal_steps(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The stage evaluation, on one draw, with as many steps for retraining as teacher and method
    take together."""
    for case, unlearn in cases(config, dataset, [0], config.teachers):
        n_retain, n_forget = split_sizes(case.poison, dataset)
        retrain = Retrain(training=case.training)
        steps = case.training.epochs * retrain.steps(n_retain + n_forget)
        steps += unlearn.epochs * Retrain(training=unlearn).steps(n_retain)
        longer = replace(case.training, epochs=round(steps / retrain.steps(n_retain)))
        trainings = {name: longer if METHODS[name].is_fresh else unlearn for name in config.methods}
        methods = {
            name: config.method(name, training=training) for name, training in trainings.items()
        }
        yield from judged_rows(
            config, case, methods, dataset, "equal_steps", "equal_steps_selection"
        )


# ---- what is shown ----


def oracle_epochs(results: xr.Dataset) -> pd.DataFrame:
    """The epoch count that the rule finds for each model and poison: model, poison, epochs (NaN:
    none of those tried).

    The first at which doubling it moves the oracles' mean accuracies on held-out, retained and
    forget samples by less than their standard deviation over seeds (within draws), each.
    """
    splits = ["validation", "retain", "forget_clean"]
    accuracy = results.accuracy.sel(split=splits)
    means, deviations = (
        accuracy.mean(("draw", "run")),
        np.sqrt(accuracy.var("run", ddof=1).mean("draw")),
    )
    doubled = means.reindex(epochs=2 * means["epochs"].values).assign_coords(
        epochs=means["epochs"].values
    )
    moved = abs(doubled - means)
    settled = ((moved < deviations) | (moved == 0)).all("split") & moved.notnull().all("split")
    rows = []
    for model, poison in itertools.product(ordered(results, "model"), ordered(results, "poison")):
        own = settled.sel(model=model, poison=poison)
        found = own.epochs.values[own.values]
        rows.append(
            (
                results.family.sel(model=model).item(),
                model,
                poison,
                found[0] if len(found) else np.nan,
            )
        )
    return pd.DataFrame(rows, columns=["family", "model", "poison", "epochs"])


def accuracies_over_epochs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of oracles after each number of epochs, and the number that the rule finds."""
    results = read[data, preset, "epochs"]
    runs = accuracies(results, "validation", "retain", "forget_clean")
    # of either draw
    runs = runs.assign(run=runs.run + runs.draw * (runs.run.max() + 1)).drop(columns="draw")
    curves = over_runs(
        runs[runs.measure == "validation"].rename(columns={"epochs": "alpha_percent"})
    )
    found = oracle_epochs(results).rename(columns={"epochs": "value"}).assign(measure="rule")
    curves = curves.assign(measure=curves.alpha_percent.map("{} epochs".format)).drop(
        columns="alpha_percent"
    )
    return pd.concat([curves, found], ignore_index=True).assign(n=curves.n.max())


def best_methods(results: xr.Dataset, count: int = 5) -> list[str]:
    """Those of the benchmark's methods that end nearest to the oracles: by the mean over models of
    the rank of W1.

    Those that read the truth aside; a method has no rank on a model on which it cannot run or
    diverged.
    """
    own = results.distance.sel(measure=PRIMARY).mean("draw").where(results.reads_truth == 0)
    own = own.drop_sel(unlearner=["teacher", "oracle"]).stack(place=("model", "poison"))
    ranks = own.to_series().unstack("unlearner").rank(axis="columns").mean()
    return list(ranks.sort_values(kind="stable").index[:count])


def rankings(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Kendall's τ between the draws' rankings of the methods by their distance from the oracles:
    mean over pairs."""
    from scipy.stats import kendalltau  # half a second, in every process that imports this module

    results = read[data, preset, "evaluation"]
    methods = [name for name in ordered(results, "unlearner") if name not in ("teacher", "oracle")]
    distance = results.distance.sel(measure=PRIMARY, unlearner=methods)
    rows = []
    for model, poison in models_and_poisons(results):
        own = (
            distance.sel(model=model, poison=poison)
            .dropna("unlearner", how="all")
            .transpose("draw", "unlearner")
            .values
        )
        pairs = (
            [kendalltau(*pair).statistic for pair in itertools.combinations(own, 2)]
            if own.shape[1] > 1
            else []
        )
        family = results.family.sel(model=model).item()
        rows += [(family, model, poison, "τ", float(np.mean(pairs)) if pairs else np.nan, len(own))]
    return pd.DataFrame(
        rows, columns=["family", "model", "poison", "measure", "value", "n"]
    ).assign(sd=np.nan, low=np.nan, high=np.nan)


def epochs_figure(results: xr.Dataset) -> Figure | None:
    """Accuracies of oracles against how long they are trained: a row for each poison, a column for
    each model."""
    from foundation.report.drawing import PALETTE, draw_curve, finished, panels_for, poison_words

    rows = models_and_poisons(results)
    if not rows:
        return None
    poisons = list(dict.fromkeys(poison for _, poison in rows))
    pairs = [(model, poison) for poison in poisons for model in ordered(results, "model")]
    chosen = oracle_epochs(results).set_index(["model", "poison"]).epochs
    styles = {
        "retain": ("retained", ("0.6", "-", "s")),
        "validation": ("held out", (PALETTE[0], "--", "o")),
        "forget_clean": ("forget set, true labels", (PALETTE[1], "-.", "^")),
    }
    least = float(results.accuracy.sel(split=list(styles)).mean(("draw", "run")).min())
    for axis, (model, poison) in panels_for(pairs, "epochs", "accuracy", rows=len(poisons)):
        for split, (name, style) in styles.items():
            runs = _over_draws(results.accuracy.sel(model=model, poison=poison, split=split))
            draw_curve(axis, runs, style, name)
        rule = {"color": PALETTE[3], "linestyle": ":", "label": "found by the rule"}
        axis.axvline(chosen[model, poison], **rule)
        title = f"{model}, {poison_words(poison)}"
        axis.set(xscale="log", title=title, ylim=(least - 0.01, 1.005))
        ticks = results["epochs"].values
        axis.set_xticks(ticks, labels=map(str, ticks), minor=False)
        axis.minorticks_off()
    draws, runs = results.sizes["draw"], results.sizes["run"]
    text = (
        "oracles: the teacher's training on the retained samples alone, a fifth of which is held "
        f"out; mean of {runs} seeds on each of {draws} draws of the poison, band: ± 1 standard "
        "deviation. The rule: the first count at which doubling it moves no accuracy by as much as "
        "its standard deviation over seeds"
    )
    return finished(text, results, legend=True)


def _over_draws(accuracy: xr.DataArray) -> xr.DataArray:
    """The runs of all draws along one axis, run."""
    runs = accuracy.stack(each=("draw", "run")).dropna("epochs", how="all")
    return runs.reset_index("each").drop_vars(["draw", "run"]).rename(each="run")


TABLE = table_of(
    "evaluation",
    "Distance from the oracles on the forget set, n = {n} models of each kind, mean over the draws "
    "of the poison. W1: "
    "Wasserstein distance of the logits, with its 95 % interval; floor: that of half A of the "
    "oracles, and the mean "
    "over random halves; null arm: that of teachers trained on with the poison for as many steps; "
    "p: above the floor, "
    "after Holm, the largest of the draws; verdict: where the draws agree (a dash: so few models "
    "cannot give one); "
    "perfect: KLoM 0, ε 0, AUC .5, relearn 1, gap 0; cost: gradients over an oracle's",
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
            "= {n} runs on two "
            "draws; rule: the first count at which doubling it moves no accuracy by as much as its "
            "standard deviation "
            "over seeds",
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
            "collapsed: runs that end "
            "on validation no better than naming one class. n = {n} models of each kind",
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
            "evaluation and benchmark. "
            "n = {n} models of each kind",
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
            "and method take "
            "together. n = {n} models of each kind",
        ),
    ),
    figures=(StudyFigure(name="equal_steps_scores", draw=forgetting_scores),),
)
