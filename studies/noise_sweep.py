"""How does accuracy fall with the poisoned share of the training set?

Of models of all sizes, and of deeper QNNs.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from datar import Dataset
from foundation.base.checks import BadInput, require
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays
from foundation.engine.runner import require_list
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import (
    SOURCES,
    ResultFiles,
    accuracies,
    count_of_runs,
    difference,
    models_and_poisons,
    one_of_each_family,
    ordered,
    over_runs,
)
from models import Model
from poison_unlearn import Poison
from studies.config import Config
from studies.families import FAMILIES, Protocol, build_qnn, model_words
from studies.rows import AS_PUBLISHED, flipped_words, given_percent, states_table, training_job

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim


@dataclass(frozen=True, kw_only=True)
class DepthsFlags(Flags):
    """Of the stage depths: deeper QNNs."""

    layers: tuple[int, ...] = (5, 6, 7)  # test_xxz.ipynb
    """Layers of the QNNs."""

    AXES = ("layers",)

    def check(self, config: Config) -> None:
        require_list("layers", self.layers)
        require(min(self.layers) >= 1, "layers", self.layers, "numbers of layers, 1 or more")


# ---- what is computed ----


def swept_poisons(config: Config, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """{poison: percents} of the noise sweep; the data's own poison where the data came with one.

    Raises BadInput for a share that poisons no sample, or that a class is too small for.
    """
    if dataset.given is not None:
        return {"given": (given_percent(dataset),)}
    for kind, alpha in itertools.product(config.poisons, config.alphas):
        try:
            count = Poison(kind, alpha).draw(dataset, key=0).mask.sum()
        except BadInput as error:
            raise BadInput(f"--alphas: got {alpha} ({kind}: {error})") from None
        n = len(dataset.train.y)
        require(
            count > 0 or alpha == 0,
            "--alphas",
            alpha,
            f"0, or shares that poison some of {n} samples",
        )
    return dict.fromkeys(config.poisons, config.alphas)


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan trainings on data of which a share alpha is poisoned."""
    poisons = swept_poisons(config, dataset)
    for name in config.models:
        family = FAMILIES[name]
        models = family.sweep(config, dataset)
        swept = list(itertools.product(models, poisons))
        if "labels" in poisons:
            swept += [(model, "labels") for model in family.labels_only(config, dataset)]
        for model, poison in swept:
            at_alphas = replace(config, alphas=poisons[poison])
            yield from sweep_rows(at_alphas, dataset, config.protocol(name), model, poison)


def sweep_rows(
    config: Config, dataset: Dataset, protocol: Protocol, model: Model, poison: str
) -> Iterator[Row]:
    """Plan one curve of the noise sweep: a model under a poison, at all of config.alphas."""
    for alpha, block in itertools.product(config.alphas, config.blocks()):
        job = training_job(
            config, dataset, protocol.sweep, protocol, model, Poison(poison, alpha), block
        )
        place = {"model": model.label, "poison": poison, "alpha_percent": alpha}
        shown = config.shown(job.runs)
        yield Row("noise_sweep", job, place, sweep_table, shown, model_words(model))


def plan_depths(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan deeper QNNs under flipped labels: further models of the noise sweep."""
    for depth in config.depths.layers:
        model = build_qnn(dataset, depth, **config.device())
        yield from sweep_rows(config, dataset, config.qnn, model, "labels")


def sweep_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate what `states_table` does, and poisoned_count (poison, alpha_percent)."""
    count = float(arrays["mask"][0].sum())
    variable = (("poison", "alpha_percent"), [[count]])
    return states_table(row, arrays).assign(poisoned_count=variable)


# ---- what is shown: tables ----


def sweep(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of the noise sweep."""
    return over_runs(accuracies(read[data, preset, "noise_sweep"], "validation"))


def flipped(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of the noise sweep under flipped labels."""
    return sweep(read, data, preset).query("poison == 'labels'")


def some_alphas(tidy: pd.DataFrame, *alphas: int) -> pd.DataFrame:
    """Keep the rows at these shares; add `runs`, the largest n of each model, which names rows."""
    tidy = tidy.assign(runs=tidy.groupby("model").n.transform("max"))
    return tidy[tidy.alpha_percent.isin(alphas)]


def main_models(
    read: ResultFiles, data: str, preset: str, *, poison: str = "labels"
) -> pd.DataFrame:
    """Validation accuracy of the largest MLP, the smallest QNN and all models of other families."""
    tidy = sweep(read, data, preset).query("poison == @poison")
    models = one_of_each_family(read[data, preset, "noise_sweep"], tidy.model)
    return tidy[tidy.model.isin(models)]


def with_gauges(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of the main models under flipped labels, with the gauge of the states."""
    titles = {"fixed": "fixed gauge", "random_phase": "random phase", "random_sign": "random sign"}
    results = read[data, preset, "noise_sweep"]
    gauge = json.loads(results.attrs["data"])["gauge"]
    tidy = main_models(read, data, preset)
    return tidy.assign(choices=f"{preset} ({titles[gauge]})")


def paired_models(
    read: ResultFiles, data: str, preset: str, *, poison: str = "labels"
) -> pd.DataFrame:
    """The smallest QNN minus each other model, by run."""
    runs = accuracies(read[data, preset, "noise_sweep"], "validation").query("poison == @poison")
    circuits = runs[runs.family == "QNN"].model.unique()
    if not len(circuits):
        raise ValueError(f"{read.paths[data, preset, 'noise_sweep']} has no QNN to compare with")
    is_smallest = runs.model == circuits[0]
    return difference(runs[is_smallest], runs[~is_smallest], "model")


def paired_depths(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The smallest QNN minus each deeper one, by run."""
    return paired_models(read, data, preset).query("minus.str.startswith('QNN')")


FEATURE_ALPHAS = (0, 30, 60, 80, 90)


def features(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of the main models under randomised features."""
    return some_alphas(main_models(read, data, preset, poison="features"), *FEATURE_ALPHAS)


def paired_features(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The smallest QNN minus the published MLP, by run."""
    tidy = paired_models(read, data, preset, poison="features")
    return some_alphas(tidy[tidy.minus == "MLP[64,16]"], *FEATURE_ALPHAS)


def sizes(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of models of all sizes at some shares of flipped labels."""
    return some_alphas(flipped(read, data, preset), 0, 20, 30, 40)


ALPHA = ("alpha_percent",)
TABLE = StudyTable(
    frame=sweep,
    rows=("model", "poison"),
    columns=ALPHA,
    head="{alpha_percent}",
    spread=(),
    title="Noise sweep: validation accuracy against α in percent, mean of n = {n} runs; poisoned "
    "samples: {poisoned}",
    findings=None,
)
AT_ALPHAS = {"columns": ALPHA, "head": "α = {alpha_percent} %"}
MINUS = {"rows": ALPHA, "columns": ("model", "minus"), "head": "{model} − {minus}, n = {n}"}
FLIPPED = StudyTable(
    name="flipped", frame=flipped, rows=ALPHA, columns=("model",), head="{model}, n = {n}"
)
PAIRED = StudyTable(name="paired-models", frame=paired_models, **MINUS)
DEPTHS_TABLE = StudyTable(name="paired-depths", frame=paired_depths, presets=("paper",), **MINUS)
FEATURES = StudyTable(
    name="features", frame=features, rows=("model", "preset", "runs"), presets=SOURCES, **AT_ALPHAS
)
PAIRED_FEATURES = StudyTable(
    name="paired-features",
    frame=paired_features,
    rows=("model", "minus", "preset", "runs"),
    presets=SOURCES,
    **AT_ALPHAS,
)
CHOICES = StudyTable(
    name="choices",
    frame=with_gauges,
    rows=ALPHA,
    columns=("model", "choices"),
    head="{model} {choices}, n = {n}",
    presets=SOURCES,
)
SIZES = StudyTable(
    name="sizes",
    frame=sizes,
    rows=("data", "preset", "runs", "model"),
    presets=SOURCES,
    **AT_ALPHAS,
)

# ---- what is shown: figures ----


def sweep_figure(results: xr.Dataset) -> Figure:
    """Draw train and validation accuracy against the poisoned share, models by poisons.

    Leaves out models that were not given all the poisons of the file, and names them. The
    counterpart of arXiv:2508.02422, Fig. 2c and 2d.
    """
    from foundation.report.drawing import (
        band_words,
        draw_curve,
        finished,
        model_styles,
        panels_for,
        poison_words,
    )

    poisons = ordered(results, "poison")
    all_models = ordered(results, "model")
    trained = models_and_poisons(results)
    models = []
    for model in all_models:
        if all((model, poison) in trained for poison in poisons):
            models.append(model)
    models = models or all_models
    places = itertools.product(models, poisons)
    xlabel = "poisoned share of the training set α (%)"
    panels = panels_for(places, xlabel, "accuracy", rows=len(models))
    for axis, (model, poison) in panels:
        colour, _, _ = model_styles(results, [model])[model]
        styles = {"train": ("0.6", "--", "s"), "validation": (colour, "-", "o")}
        for split, style in styles.items():
            runs = results.accuracy.sel(model=model, poison=poison, split=split)
            draw_curve(axis, runs, style, split)
        axis.set(title=f"{model}, {poison_words(poison)}")
        axis.legend(frameon=False, loc="lower left")
    others = [model for model in all_models if model not in models]
    left_out = f"; not drawn, given fewer poisons: {', '.join(others)}" if others else ""
    text = f"train: against the labels trained on; {band_words(results)}{left_out}"
    return finished(text, results)


def presets_side_by_side(by_preset: dict[str, xr.Dataset]) -> Figure | None:
    """Draw validation accuracy against the share of flipped labels, a panel for each preset.

    by_preset: {preset: its noise sweep}. Lines: the largest MLP, the smallest QNN and all models of
    other families. None where a sweep has no flipped labels.
    """
    from foundation.report.drawing import ALPHA_LABEL, PRESET_NAMES, finished, panels_for

    if not all(map(_with_flips, by_preset.values())):
        return None
    for axis, (preset, results) in panels_for(
        by_preset.items(), ALPHA_LABEL, "validation accuracy"
    ):
        _curves_of_flipped(axis, results, one_of_each_family(results, _with_flips(results)))
        name = PRESET_NAMES.get(preset, preset)
        axis.set(title=f"{name}, n = {count_of_runs(results)}")
    return finished(
        "mean of n runs, band: ± 1 standard deviation", *by_preset.values(), legend=True
    )


def presets(*sweeps: xr.Dataset) -> Figure | None:
    """Draw `presets_side_by_side` of noise sweeps that stand in the order of PRESET_NAMES."""
    from foundation.report.drawing import PRESET_NAMES

    return presets_side_by_side(dict(zip(PRESET_NAMES, sweeps, strict=True)))


def model_sizes(results: xr.Dataset) -> Figure | None:
    """Draw validation accuracy against the share of flipped labels, large models dark.

    A panel for the MLPs with logistic regression, one for the QNNs with the quadratic forms, and
    one for each other family of two models or more.
    """
    from foundation.report.drawing import ALPHA_LABEL, MOST_BANDS, band_words, finished, panels_for

    groups: dict[str, list[str]] = {"MLP": [], "QNN": []}
    for model in _with_flips(results):
        family = results.family.sel(model=model).item()
        group = {"Logistic": "MLP", "Quadratic": "QNN"}.get(family, family)
        groups.setdefault(group, []).append(model)
    panels = []
    for group, models in groups.items():
        fewest = 1 if group in ("MLP", "QNN") else 2
        if len(models) >= fewest:
            panels.append(models)
    if not panels:
        return None
    for axis, models in panels_for(panels, ALPHA_LABEL, "validation accuracy"):
        _curves_of_flipped(axis, results, models, bands=len(models) <= MOST_BANDS)
        axis.legend(frameon=False, loc="lower left")
    return finished(band_words(results, max(map(len, panels))), results)


def _curves_of_flipped(
    axis: Axes, results: xr.Dataset, models: list[str], *, bands: bool = True
) -> None:
    from foundation.report.drawing import draw_curve, model_styles

    for model, style in model_styles(results, models).items():
        runs = results.accuracy.sel(model=model, poison="labels", split="validation")
        draw_curve(axis, runs, style, model, bands=bands)


def _with_flips(results: xr.Dataset) -> list[str]:
    return [model for model, poison in models_and_poisons(results) if poison == "labels"]


# ---- what is claimed ----


def resists(
    read: ResultFiles,
    data: str,
    alpha: int,
    place: str,
    whose: str,
    source: str,
    published: dict[str, tuple[float, ...]] | None = None,
) -> Claim:
    """Claim that the QNN is ahead of the largest MLP under flipped labels.

    Control: the smallest MLP, for a large one learns more. place: the name of the data set.
    published: the paper's accuracies at 0, 10, ... 90 %, by model.
    """
    from foundation.report.claims import Claim, first_of, paired_on_states

    results = read[data, "corrected", "noise_sweep"].sel(poison="labels", alpha_percent=alpha)
    runs = accuracies(results, "validation")
    circuit, largest = (first_of(runs, family) for family in ("QNN", "MLP"))
    networks = runs[runs.family == "MLP"]
    smallest = networks.model[networks["size"].idxmin()]
    effect, control = (
        paired_on_states(f"QNN − {mlp}", results.sel(model=circuit), results.sel(model=mlp))
        for mlp in (largest, smallest)
    )
    published_effect = None
    if published:
        published_effect = published[circuit][alpha // 10] - published[largest][alpha // 10]
    return Claim(
        whose=whose,
        source=source,
        setting=AS_PUBLISHED,
        statement=f"The QNN resists poison that the MLP learns: {flipped_words(place, alpha)}",
        effect=effect,
        controls=(control,),
        published=published_effect,
    )


def features_claim(read: ResultFiles, data: str, alpha: int, place: str, whose: str) -> Claim:
    """QNN against MLP under randomised features; control: the corrected choices, 20 runs."""
    from foundation.report.claims import Claim, first_of, paired_on_states

    differences = []
    for preset in SOURCES:
        results = read[data, preset, "noise_sweep"].sel(poison="features", alpha_percent=alpha)
        runs = accuracies(results, "validation")
        circuit, mlp = (first_of(runs, family) for family in ("QNN", "MLP"))
        sides = (results.sel(model=circuit), results.sel(model=mlp))
        differences.append(paired_on_states(f"QNN − {mlp}, {preset}", *sides))
    return Claim(
        whose=whose,
        source="Fig. 2d" if whose == "the paper's" else "the other data set",
        setting="as published, beside corrected choices",
        statement=f"The QNN resists randomised features better than the MLP: {place}, {alpha} %",
        effect=differences[0],
        controls=(differences[1],),
    )


STUDY = Study(
    name="noise_sweep",
    question="how does accuracy fall with the poisoned share",
    plan=plan,
    tables=(TABLE, FLIPPED, PAIRED, FEATURES, PAIRED_FEATURES, CHOICES, SIZES),
    figures=(
        StudyFigure(name="noise_sweep", draw=sweep_figure),
        StudyFigure(name="model_sizes", draw=model_sizes),
        StudyFigure(
            name="presets", draw=presets, files=("paper/noise_sweep", "corrected/noise_sweep")
        ),
    ),
)
DEPTHS = Study(
    name="depths",
    question="do deeper QNNs resist as well, beside those of the noise sweep",
    plan=plan_depths,
    flags=DepthsFlags(),
    tables=(replace(TABLE, file="noise_sweep"), replace(DEPTHS_TABLE, file="noise_sweep")),
)
