"""Does the MLP see the gauge, the global phase of each ground state, which no measurement sees?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

import pandas as pd
import xarray as xr

from datar import Dataset, Gauge
from foundation.base.checks import require_whole
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import ResultFiles, accuracies, difference, ordered, over_runs
from poison_unlearn import Poison
from studies.config import Config
from studies.contests import against_circuit
from studies.families import FAMILIES, model_words
from studies.rows import scores_table, training_job

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
    """The ground states under each gauge; config: of run_unlearn_xxz.py."""
    return {gauge: replace(config, gauge=gauge).load() for gauge in get_args(Gauge)}


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The noise sweep with flipped labels under each gauge: the same masks, first parameters and
    batches.

    A QNN is trained under the first gauge alone: its logits are the same under all (tested to
    1e-5).
    """
    models = [
        (name, model) for name in config.models for model in FAMILIES[name].sweep(config, dataset)
    ]
    for (family, model), (gauge, states) in itertools.product(
        models, under_each_gauge(config, dataset).items()
    ):
        if family == "qnn" and gauge != "fixed":
            continue
        protocol = config.protocol(family)
        for alpha, block in itertools.product(
            config.alphas, config.blocks(config.gauge_control.runs)
        ):
            poison = Poison("labels", alpha)
            job = training_job(config, states, protocol.sweep, protocol, model, poison, block)
            place = {"model": model.label, "gauge": gauge, "alpha_percent": alpha}
            shown = config.shown(job.runs, config.gauge_control.runs)
            yield Row("gauge", job, place, scores_table, shown, model_words(model))


# ---- what is shown ----


def gauges(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy under each gauge."""
    return over_runs(under_gauges(read[data, preset, "gauge"]))


def under_gauges(results: xr.Dataset) -> pd.DataFrame:
    """Every run's validation accuracy; a model that was trained under one gauge only is said to be
    under any."""
    runs = accuracies(results, "validation")
    alone = (runs.groupby("model").gauge.transform("nunique") == 1) & (results.sizes["gauge"] > 1)
    return runs.assign(gauge=runs.gauge.str.replace("_", " ").mask(alone, "any gauge"))


def paired_gauges(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Models that see no gauge minus those that do, in the fixed one; and fixed gauge minus random
    phase."""
    runs = under_gauges(read[data, preset, "gauge"])
    under = {name: own.drop(columns="gauge") for name, own in runs.groupby("gauge")}
    across = difference(under["any gauge"], under["fixed"], "model").assign(
        minus=lambda tidy: tidy.minus + ", fixed"
    )
    within = difference(under["fixed"], under["random phase"]).assign(minus="random phase")
    within = within.assign(model=within.model + ", fixed")
    return pd.concat([across, within], ignore_index=True).assign(poison="labels")


# towards what the model's colour is mixed, how far, line and marker under each gauge
GAUGE_STYLE = {
    "fixed": ("black", 0.0, "-", "o"),
    "random_sign": ("white", 0.45, "-.", "^"),
    "random_phase": ("black", 0.6, ":", "D"),
}


def figure(results: xr.Dataset) -> Figure:
    """Validation accuracy against the share of flipped labels under each gauge, a line for each
    model and gauge."""
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

    ((axis, styles),) = panels_for(
        [model_styles(results, ordered(results, "model"))], ALPHA_LABEL, "validation accuracy"
    )
    free = []
    for model, (colour, *form) in styles.items():
        own = results.accuracy.sel(model=model).dropna("gauge", how="all").sel(split="validation")
        alone = own.sizes["gauge"] == 1 < results.sizes["gauge"]
        free += [model] * alone
        for gauge in own.gauge.values:
            towards, share, *under = GAUGE_STYLE.get(gauge, ("white", 0.7, *SPARE_STYLE[1:]))
            style = (colour, *form) if alone else (mixed(colour, towards, share), *under)
            draw_curve(
                axis,
                own.sel(gauge=gauge),
                style,
                f"{model}, {'any gauge' if alone else gauge.replace('_', ' ')}",
            )
    once = (
        f". {' and '.join(free)}: trained once, what it reads is the same under all gauges"
        if free
        else ""
    )
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
    "95 % bootstrap "
    "interval; any gauge: sees none, and is trained once",
    findings={"head": "{model}, {gauge}, n = {n}"},
    presets=("paper",),
)
PAIRED = StudyTable(
    name="paired-gauge", frame=paired_gauges, rows=ALPHA, columns=("model", "minus"),
    head="{model} − {minus}, n = {n}", presets=("paper",),
)  # fmt: skip


# ---- what is claimed ----


def under_the_gauge(read: ResultFiles, alpha: int) -> Claim:
    """The ring with the published random phase; control: the same states, flips and batches in a
    fixed gauge."""
    from foundation.report.claims import Claim, first_of, of_model, paired

    runs = under_gauges(read["xxz", "paper", "gauge"]).query("alpha_percent == @alpha")
    circuit = of_model(runs, first_of(runs, "QNN"))
    mlp = of_model(runs, first_of(runs, "MLP"))
    by_gauge = {name: mlp[mlp.gauge == name] for name in ("random phase", "fixed")}
    effect, control = (paired(f"QNN − MLP, {name}", circuit, own) for name, own in by_gauge.items())
    statement = (
        f"The QNN resists poison that the MLP learns: the ring as published, {alpha} % of the "
        "labels flipped"
    )
    return Claim(
        "the paper's", statement, effect, (control, *against_circuit(read, "xxz", "labels", alpha))
    )


STUDY = Study(
    name="gauge",
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
