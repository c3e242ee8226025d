"""Which models contend with the published ones, once all are tuned on noisy labels?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from datar import Dataset
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.runner import require_names
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import (
    ResultFiles,
    accuracies,
    circuit_beside,
    count_of_runs,
    one_of_each_family,
    ordered,
    over_runs,
)
from studies.config import Config
from studies.tuning import CONTENDERS, ESTIMATORS, estimate_rows, tuned_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class ControlsFlags(Flags):
    """Of the stage controls."""

    contenders: tuple[str, ...] = ()
    """What contends, names in studies.tuning.CONTENDERS and ESTIMATORS; none: all."""

    AXES = ("contenders",)

    def check(self, config: Config) -> None:
        require_names("contenders", self.contenders, (*CONTENDERS, *ESTIMATORS))


# ---- what is computed ----


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Train every contender with the setting and epochs that held-out noisy samples choose."""
    noises = config.poisons_of("noises").values()
    for name in config.controls.contenders or (*CONTENDERS, *ESTIMATORS):
        if name in ESTIMATORS:
            yield from estimate_rows(config, dataset, name, "controls", noises, config.runs)
        else:
            contender = CONTENDERS[name]
            runs = min(contender.runs or config.runs, config.runs)
            poisons = contender.contends(config, dataset)
            yield from tuned_rows(config, dataset, contender, "controls", poisons, runs)


# ---- what is shown ----


def contests(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Return each tuned contender's validation accuracy, QNN minus it, and its chosen epoch."""
    results = read[data, preset, "controls"]
    runs = accuracies(results, "validation")
    means = over_runs(runs)
    minus = circuit_beside(runs)
    groups = results.group.to_series().to_dict()
    minus = minus.assign(group=minus.model.map(groups))
    chosen = results.chosen_epoch.rename("value").to_series().dropna().reset_index()
    chosen = chosen.assign(measure="epoch", group=chosen.model.map(groups), n=0)
    return pd.concat([means, minus, chosen], ignore_index=True)


def figure(results: xr.Dataset) -> Figure | None:
    """Draw validation accuracies of all tuned contenders with their intervals, the best on top."""
    from foundation.report.drawing import (
        FAMILY_STYLE,
        MARKERS,
        SPARE_STYLE,
        draw_dot,
        finished,
        grid_for,
        matplotlib,
        noises_of,
        poison_words,
    )

    families = results.family.to_series()
    groups = results.group.to_series()
    distinct_groups = dict.fromkeys(groups)
    markers = dict(zip(distinct_groups, itertools.cycle(MARKERS), strict=False))
    shown = families[ordered(results, "model")]
    colours = {name: FAMILY_STYLE.get(name, SPARE_STYLE)[0] for name in shown}
    counts = []  # how many contenders each panel shows
    for axis, (poison, alpha) in grid_for(noises_of(results), "validation accuracy", most=2):
        at = {"poison": poison, "alpha_percent": alpha, "split": "validation"}
        accuracy = results.accuracy.sel(at).dropna("model", how="all")
        names = accuracy.mean("run").to_series().sort_values().index
        counts.append(len(names))
        for row, name in enumerate(names):
            runs = accuracy.sel(model=name).dropna("run").values
            colour = colours[families[name]]
            marker = markers[groups[name]]
            draw_dot(axis, row, runs, (colour, marker), across=True, line_on_top=True)
        axis.set_yticks(range(len(names)), labels=names, fontsize=7)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        axis.set_title(poison_words(poison, alpha))
    _add_legend_and_fit_heights(markers, colours, counts)
    text = (
        f"mean of n = {count_of_runs(results)} runs, each with a training set of its own, and its "
        "95 % bootstrap interval; setting and epoch of each chosen on held-out noisy samples; "
        "colour: family, mark: group"
    )
    return finished(text, results, legend=True)


def published_and_tuned(published: xr.Dataset, tuned: xr.Dataset) -> Figure | None:
    """Draw the published models as published, and below them what was tuned on noisy labels.

    A panel for each share of flipped labels above 0 that both studies have; None without one.
    Tuned: the same models, their settings and epochs chosen on noisy held-out samples, and
    the trivial estimators.
    """
    from foundation.report.drawing import FAMILY_STYLE, draw_dot, finished, grid_for, poison_words

    groups = tuned.group.to_series()
    names = [name for name in groups.index if groups[name] == "published"]
    estimators = [name for name in groups.index if groups[name] == "trivial"]
    models = [name for name in one_of_each_family(tuned, names) if name in published.model]
    lines = [(f"{name}, as published", published, name) for name in models]  # from top to bottom
    lines += [(f"{name}, stopped on noisy labels", tuned, name) for name in models]
    lines += [(name, tuned, name) for name in estimators]
    shares = [set(study.alpha_percent.values.tolist()) for study in (published, tuned)]
    panels = sorted(set.intersection(*shares) - {0})
    if not panels or not all("labels" in study.poison for study in (published, tuned)):
        return None
    labels, *_ = zip(*reversed(lines), strict=True)
    at = {"poison": "labels", "split": "validation"}
    lowest = float(published.accuracy.sel(model=models, alpha_percent=panels, **at).min()) - 0.02
    for axis, alpha in grid_for(panels, "validation accuracy", most=len(panels)):
        for row, (_, study, name) in enumerate(reversed(lines)):
            accuracy = study.accuracy.sel(**at, model=name, alpha_percent=alpha)
            runs = accuracy.dropna("run").values
            colour, _, marker = FAMILY_STYLE[tuned.family.sel(model=name).item()]
            if len(runs):
                draw_dot(axis, row, runs, (colour, marker), across=True, line_on_top=True, size=5)
        shown = labels if alpha == panels[0] else [""] * len(lines)
        axis.set_yticks(range(len(lines)), labels=shown)
        axis.set_xlim(lowest, 1.02)
        axis.axhline(len(lines) - len(models) - 0.5, color="0.7", linewidth=0.8)
        axis.set_title(poison_words("labels", alpha))
    runs_tuned = count_of_runs(tuned.sel(model=[*models, *estimators]))
    text = (
        f"mean and 95 % bootstrap interval; above the line n = {count_of_runs(published)} runs "
        f"with the published settings and epochs, below it n = {runs_tuned} runs of models whose "
        "settings and epochs held-out noisy samples chose, and of estimators that need no training"
    )
    return finished(text, published, tuned)


def _add_legend_and_fit_heights(
    markers: dict[str, str], colours: dict[str, tuple], counts: list[int]
) -> None:
    """Add marks and colours to the legend, and make panels as high as they have contenders.

    counts: how many contenders each panel shows; two panels stand side by side.
    """
    from foundation.report.drawing import plt

    figure = plt.gcf()
    axis = figure.axes[0]
    for group, marker in markers.items():
        axis.plot([], [], marker, color="0.3", markersize=4, label=group)
    for name, colour in colours.items():
        axis.plot([], [], "-", color=colour, linewidth=3, label=name)
    rows = []  # how many contenders the fuller panel of each row shows
    for first in range(0, len(counts), 2):
        rows.append(max(counts[first : first + 2]))
    axis.get_gridspec().set_height_ratios(rows)
    height = 0.15 * sum(rows) + 0.7 * len(rows) + 0.4
    figure.set_size_inches(figure.get_figwidth() * 1.15, height)


TABLE = StudyTable(
    name="contests",
    frame=contests,
    rows=("poison", "alpha_percent", "group", "model"),
    title="Validation accuracy of every contender, setting and epoch chosen on held-out noisy "
    "samples; n = {n} runs with training sets of their own; QNN minus it: the published circuit's "
    "accuracy less its own, paired by run",
)


# ---- what is claimed ----


def tuned_contenders(read: ResultFiles, data: str, kind: str, alpha: int) -> pd.DataFrame:
    """Return the validation accuracy of each run of each tuned contender under a poison.

    kind: of the poison. alpha: its share in percent.
    """
    runs = accuracies(read[data, "corrected", "controls"], "validation")
    return runs.query("poison == @kind and alpha_percent == @alpha")


STUDY = Study(
    name="controls",
    two_classes=True,
    question="what contends with the published models, tuned on noisy labels",
    plan=plan,
    flags=ControlsFlags(),
    quick={
        "contenders": (
            "mlp",
            "qnn",
            "logistic_decay",
            "qnn_product",
            "class_mean",
            "neighbours",
            "threshold",
        )
    },
    tables=(TABLE,),
    figures=(
        StudyFigure(name="contests", draw=figure),
        StudyFigure(
            name="published_and_tuned",
            draw=published_and_tuned,
            files=("paper/noise_sweep", "corrected/controls"),
        ),
    ),
)
