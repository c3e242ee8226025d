"""Does the MLP see the gauge: the global phase of each ground state, which no measurement sees?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from datar import Dataset, Gauge
from foundation.base.checks import require_whole
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import ResultFiles, accuracies, difference, ordered, over_runs
from poison_unlearn import Poison
from studies.config import Config
from studies.families import FAMILIES, model_words
from studies.rows import states_table, training_job

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim


@dataclass(frozen=True, kw_only=True)
class GaugeFlags(Flags):
    """Of the stage gauge: the noise sweep under each gauge."""

    runs: int = 20
    """Repetitions."""

    AXES = ("runs",)

    def check(self, config: Config) -> None:
        require_whole("runs", self.runs)


# ---- what is computed ----


def under_each_gauge(config: Config, dataset: Dataset) -> dict[Gauge, Dataset]:
    """Load the ground states under each gauge; config: of run_unlearn_xxz.py."""
    return {gauge: replace(config, gauge=gauge).load() for gauge in get_args(Gauge)}


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan the noise sweep with flipped labels under each gauge.

    Masks, first parameters and batches do not depend on the gauge. A QNN is trained under the fixed
    gauge alone: its logits do not depend on the gauge (tested to 1e-5).
    """
    models = []
    for name in config.models:
        models += [(name, model) for model in FAMILIES[name].sweep(config, dataset)]
    states_by_gauge = under_each_gauge(config, dataset)
    n_runs = config.gauge_control.runs
    places = itertools.product(models, states_by_gauge.items())
    for (family, model), (gauge, states) in places:
        if family == "qnn" and gauge != "fixed":
            continue
        protocol = config.protocol(family)
        for alpha, block in itertools.product(config.alphas, config.blocks(n_runs)):
            poison = Poison("labels", alpha)
            job = training_job(config, states, protocol.sweep, protocol, model, poison, block)
            place = {"model": model.label, "gauge": gauge, "alpha_percent": alpha}
            shown = config.shown(job.runs, n_runs)
            yield Row("gauge", job, place, states_table, shown, model_words(model))


# ---- what is shown ----


def gauges(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of each model under each gauge."""
    return over_runs(under_gauges(read[data, preset, "gauge"]))


def under_gauges(results: xr.Dataset) -> pd.DataFrame:
    """Validation accuracy of every run; "any gauge" where a model was trained under one only."""
    runs = accuracies(results, "validation")
    n_gauges = runs.groupby("model").gauge.transform("nunique")
    is_any = (n_gauges == 1) & (results.sizes["gauge"] > 1)
    names = runs.gauge.str.replace("_", " ")
    return runs.assign(gauge=names.mask(is_any, "any gauge"))


def paired_gauges(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Subtract accuracies by run, across models and within a model.

    Across: models that see no gauge minus models that see it, in the fixed gauge. Within: fixed
    gauge minus random phase.
    """
    runs = under_gauges(read[data, preset, "gauge"])
    by_gauge = runs.groupby("gauge")
    under = {gauge: part.drop(columns="gauge") for gauge, part in by_gauge}
    across = difference(under["any gauge"], under["fixed"], "model")
    across = across.assign(minus=across.minus + ", fixed")
    within = difference(under["fixed"], under["random phase"]).assign(minus="random phase")
    within = within.assign(model=within.model + ", fixed")
    return pd.concat([across, within], ignore_index=True).assign(poison="labels")


# under each gauge: the colour that the model's is mixed with, its share, the line, the marker
GAUGE_STYLE = {
    "fixed": ("black", 0.0, "-", "o"),
    "random_sign": ("white", 0.45, "-.", "^"),
    "random_phase": ("black", 0.6, ":", "D"),
}


def figure(results: xr.Dataset) -> Figure:
    """Draw validation accuracy against the share of flipped labels, by model and gauge."""
    from foundation.report.drawing import (
        ALPHA_LABEL,
        SPARE_STYLE,
        band_words,
        draw_curve,
        finished,
        mixed,
        model_styles,
        panels_for,
    )

    styles = model_styles(results, ordered(results, "model"))
    ((axis, _),) = panels_for([styles], ALPHA_LABEL, "validation accuracy")
    spare = ("white", 0.7, *SPARE_STYLE[1:])
    trained_once = []
    for model, style_of_model in styles.items():
        trained = results.accuracy.sel(model=model).dropna("gauge", how="all")
        runs = trained.sel(split="validation")
        is_any = runs.sizes["gauge"] == 1 < results.sizes["gauge"]
        if is_any:
            trained_once.append(model)
        for gauge in runs.gauge.values:
            towards, share, *form = GAUGE_STYLE.get(gauge, spare)
            style_of_gauge = (mixed(style_of_model[0], towards, share), *form)
            style = style_of_model if is_any else style_of_gauge
            name = "any gauge" if is_any else gauge.replace("_", " ")
            runs_of_gauge = runs.sel(gauge=gauge)
            draw_curve(axis, runs_of_gauge, style, f"{model}, {name}")
    names = " and ".join(trained_once)  # "" where all models were trained under every gauge
    once = f". {names}: trained once, what it reads is the same under all gauges" if names else ""
    text = (
        f"{band_words(results)}; the same flips, first parameters and batches under each "
        f"gauge{once}"
    )
    return finished(text, results, legend=True)


ALPHA = ("alpha_percent",)
TABLE = StudyTable(
    frame=gauges,
    rows=ALPHA,
    columns=("model", "gauge"),
    head="{model}, {gauge}",
    title="Gauge control: validation accuracy against α in percent, mean of n = {n} runs with its "
    "95 % bootstrap interval; any gauge: sees none, and is trained once",
    findings={"head": "{model}, {gauge}, n = {n}"},
    presets=("paper",),
)
PAIRED = StudyTable(
    name="paired-gauge", frame=paired_gauges, rows=ALPHA, columns=("model", "minus"),
    head="{model} − {minus}, n = {n}", presets=("paper",),
)  # fmt: skip


# ---- what is claimed ----


def under_the_gauge(read: ResultFiles, alpha: int) -> Claim:
    """QNN against MLP on the ring with the published random phase of each state.

    Control: the same with a random sign, with equal states, flips and batches. The fixed gauge
    answers another sentence, which has rows of its own.
    """
    from foundation.report.claims import Claim, first_of, paired_on_states

    results = read["xxz", "paper", "gauge"].sel(alpha_percent=alpha)
    runs = accuracies(results, "validation")
    circuit, mlp = (results.sel(model=first_of(runs, family)) for family in ("QNN", "MLP"))
    circuit = circuit.sel(gauge="fixed")
    effect, control = (
        paired_on_states(f"QNN − MLP, {name}", circuit, mlp.sel(gauge=gauge))
        for gauge, name in (("random_phase", "random phase"), ("random_sign", "random sign"))
    )
    return Claim(
        whose="the paper's",
        source="Fig. 2d",
        setting="as published",
        statement="The QNN resists poison that the MLP learns: the ring as published, "
        f"{alpha} % of the labels flipped",
        effect=effect,
        controls=(control,),
    )


STUDY = Study(
    name="gauge",
    two_classes=True,
    question="does the MLP see the gauge",
    plan=plan,
    flags=GaugeFlags(),
    group="gauge_control",
    quick={"runs": 4},
    tables=(TABLE, PAIRED),
    figures=(StudyFigure(name="gauge", draw=figure),),
    data=under_each_gauge,
    reads=("controls",),
)
