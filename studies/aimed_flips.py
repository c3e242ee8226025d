"""How do models fare where the flipped labels are of one class, or at the boundary?

Labels that are flipped at random and evenly are outvoted by their neighbours; these are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datar import Dataset
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.runner import require_list
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import (
    ResultFiles,
    accuracies,
    circuit_beside,
    count_of_runs,
    ordered,
    over_runs,
)
from poison_unlearn import Retrain
from studies.classics import CLASSICS
from studies.config import Config, parse_poisons
from studies.contenders import NearestMean
from studies.families import build_mlp, model_words
from studies.rows import AS_PUBLISHED, flipped_words, place_of, rows_of_blocks
from studies.tuning import control_fit, estimate_as_is, main_models

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim

ESTIMATORS = (NearestMean(), CLASSICS["kernel"])


@dataclass(frozen=True, kw_only=True)
class AimedFlags(Flags):
    """Of the stage aimed_flips."""

    kinds: tuple[str, ...] = (
        *("one_class=20", "other_class=20", "boundary=20", "quid=20"),
        *("one_class=30", "other_class=30", "boundary=30", "quid=30"),
    )
    """Poisons, each with its share in percent."""
    runs: int = 20
    """Repetitions, each with a training set of its own; at most --runs."""

    AXES = ("kinds", "runs")

    def check(self, config: Config) -> None:
        require_list("kinds", self.kinds)
        parse_poisons("kinds", self.kinds)


# ---- what is computed ----


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan models after the published epochs, and estimators as they are, under each poison."""
    flags = config.aimed_flips
    runs = min(flags.runs, config.runs)
    for poison in parse_poisons("kinds", flags.kinds).values():
        small = (config.mlp, build_mlp(dataset, config.evaluated_hidden))
        for protocol, model in dict.fromkeys((*main_models(config, dataset), small)):
            method = Retrain(training=protocol.sweep)
            fit = control_fit(config, dataset, protocol, model, method, poison)
            job = replace(fit, record="end")
            place = place_of(model.label, poison)
            yield from rows_of_blocks(config, "aimed_flips", job, place, model_words(model), runs)
        for estimator in ESTIMATORS:
            job = estimate_as_is(config, dataset, estimator, poison)
            place = place_of(estimator.label, poison)
            coords = {"family": ("model", estimator.family)}
            yield from rows_of_blocks(config, "aimed_flips", job, place, coords, runs)


# ---- what is shown ----


def aimed(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Average each model's validation accuracy, and the QNN's minus it, by run."""
    runs = accuracies(read[data, preset, "aimed_flips"], "validation")
    return pd.concat([over_runs(runs), circuit_beside(runs)], ignore_index=True)


def figure(results: xr.Dataset) -> Figure | None:
    """Draw validation accuracies, a panel for each poison and a row for each model."""
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
    for axis, (poison, alpha) in grid_for(noises_of(results), "validation accuracy", most=2):
        at = {"poison": poison, "alpha_percent": alpha, "split": "validation"}
        for row, name in enumerate(names):
            runs = results.accuracy.sel(at).sel(model=name).dropna("run").values
            colour, _, mark = FAMILY_STYLE.get(results.family.sel(model=name).item(), SPARE_STYLE)
            if len(runs):
                draw_dot(axis, row, runs, (colour, mark), across=True, line_on_top=True)
        axis.set_yticks(range(len(names)), labels=names, fontsize=7)
        axis.set_title(poison_words(poison, alpha))
    text = (
        f"mean of n = {count_of_runs(results)} runs, each with a training set of its own, and its "
        "95 % bootstrap interval; models after the published epochs"
    )
    return finished(text, results)


TABLE = StudyTable(
    frame=aimed,
    rows=("poison", "alpha_percent", "model"),
    title="Validation accuracy where flipped labels are of class 1 (one_class), of class 0 "
    "(other_class), or those nearest to the other class by two measures (boundary, quid), after "
    "the published epochs, and the QNN minus it; n = {n} runs with training sets of their own",
)


# ---- what is claimed ----


def resists(read: ResultFiles, data: str, kind: str, alpha: int, place: str) -> Claim:
    """Claim that the QNN is ahead of the MLP under flips of this kind, after the published epochs.

    Control: the smallest MLP, for a large one learns more.
    """
    from foundation.report.claims import Claim, of_family, of_model, paired

    runs = accuracies(read[data, "corrected", "aimed_flips"], "validation").query(
        "poison == @kind and alpha_percent == @alpha"
    )
    circuit = of_family(runs, "QNN")
    networks = runs[runs.family == "MLP"]
    smallest = networks.model[networks["size"].idxmin()]
    effect, control = (
        paired(f"QNN − {mlp.model.iloc[0]}, published epochs", circuit, mlp)
        for mlp in (of_family(runs, "MLP"), of_model(runs, smallest))
    )
    is_of_a_class = kind == "other_class"
    return Claim(
        whose="ours",
        source=f"{'balanced' if is_of_a_class else 'random'} flips are the easy case",
        setting=AS_PUBLISHED,
        statement="The QNN resists poison that the MLP learns: "
        + flipped_words(place, alpha, kind),
        effect=effect,
        controls=(control,),
    )


STUDY = Study(
    name="aimed_flips",
    two_classes=True,
    question="how do models fare where the flipped labels are of one class or at the boundary",
    plan=plan,
    flags=AimedFlags(),
    quick={"kinds": ("one_class=30", "boundary=30"), "runs": 2},
    tables=(TABLE,),
    figures=(StudyFigure(name="aimed_flips", draw=figure),),
)
