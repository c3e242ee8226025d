"""Figures of how far unlearned models are from oracles; several studies are judged so."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.measures.forgetting import MEASURES, PRIMARY
from foundation.report.frames import count_of_runs, method_titles, models_and_poisons
from studies.judging import draws_of, over_draws

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def forgetting_scores(results: xr.Dataset) -> Figure | None:
    """Draw distances of all arms from the oracles, over the floor: a heat map for each model."""
    from foundation.report.drawing import (
        GRID,
        finished,
        grid_for,
        matplotlib,
        plt,
        poison_words,
        sns,
    )

    rows = models_and_poisons(results)
    titles = method_titles(results)
    if not rows:
        return None
    ratio = _distances_over_floor(results, list(titles))
    most = np.nanmax([10.0, float(ratio.max())])
    norm = matplotlib.colors.LogNorm(1, most)
    columns = min(len(rows), GRID if len(titles) < 10 else 2)  # panels of many arms are wide
    panels = list(grid_for(rows, most=columns))
    for index, (axis, (model, poison)) in enumerate(panels):
        cells = ratio.sel(model=model, poison=poison).transpose("measure", "unlearner").values
        image = _draw_cells(axis, cells, norm)
        axis.set_title(f"{model}\n{poison_words(poison)}")
        axis.set_xticks(range(len(titles)), labels=titles.values(), rotation=60, ha="right")
        names = results.measure_title.sel(measure=ratio.measure.values).values
        is_first_column = index % columns == 0
        labels = names if is_first_column else [""] * len(names)
        axis.set_yticks(range(len(names)), labels=labels)
        axis.tick_params(length=0)
        sns.despine(ax=axis, left=True, bottom=True)
    figure = plt.gcf()
    lines = -(-len(rows) // columns)
    width_of_panel = 0.35 * len(titles) + 0.2
    figure.set_size_inches(width_of_panel * columns + 1.4, 3.3 * lines + 0.6)
    label = "distance from the oracles over the floor"
    figure.colorbar(image, ax=figure.axes, label=label, shrink=0.7)
    return finished(_text_of_scores(results), results)


def _text_of_scores(results: xr.Dataset) -> str:
    from foundation.report.drawing import draws_words

    some_left_out = "left_out" in results.coords and any(results.left_out)
    others = ", or a method that cannot run there" * bool(some_left_out)
    return (
        "distance of each arm from perfect unlearning, over that of one half of the oracles from "
        f"the other (mean over random halves); {draws_words(results)}. 1: as far as oracles are "
        f"from each other; dash: no floor, all oracles give one value{others}"
    )


def _distances_over_floor(results: xr.Dataset, arms: list[str]) -> xr.DataArray:
    """Divide the distances of these arms by the floor; NaN if an arm or a floor has no distance.

    Measures stand in the order of MEASURES; other measures of the file stand behind them.
    """
    measures = [name for name in MEASURES if name in results.measure.values]
    measures += [name for name in results.measure.values if name not in measures]
    ratio = results.distance / results.unit.where(results.unit > 0)
    over = ratio.mean("draw", skipna=False)
    if "poison" in ratio.dims:
        are_one = [draws_of(results, poison) == 1 for poison in results.poison.values]
        over = over.where(~xr.DataArray(are_one, dims="poison"), ratio.isel(draw=0, drop=True))
    return over.sel(measure=measures, unlearner=arms)


def _draw_cells(axis: Axes, cells: np.ndarray, norm: Any) -> Any:
    """Draw a heat map with the number in each cell; return the image, for the colour bar."""
    image = axis.imshow(cells, cmap="cividis", norm=norm, aspect="auto")
    for (row, column), cell in np.ndenumerate(cells):
        is_bright = not cell > 0 or norm(cell) > 0.6
        form = {"fontsize": 5.5, "color": "black" if is_bright else "white"}
        axis.text(column, row, _in_a_cell(cell), ha="center", va="center", **form)
    return image


def _in_a_cell(number: float) -> str:
    """Write a number briefly: 0.86, 53, 541, 2e4; a dash for NaN."""
    if np.isnan(number):
        return "–"
    if number < 100:
        return f"{number:.2g}"
    if number < 1e4:
        return f"{number:.0f}"
    return f"{number:.0e}".replace("e+0", "e")


def forgetting_logits(results: xr.Dataset) -> Figure | None:
    """Draw signed logits of three forget samples in every arm, on the first draw of the poison."""
    from foundation.report.drawing import arm_styles, finished, panels_for, poison_words

    rows = models_and_poisons(results)
    titles = method_titles(results)
    styles = arm_styles(results)
    if not rows:
        return None
    first_draw = results.z.isel(draw=0)
    examples = results.example.values[:3]
    generator = np.random.default_rng(0)  # scatters the dots sideways
    pairs = itertools.product(rows, examples)
    panels = panels_for(pairs, "signed logit", rows=len(rows))
    for axis, ((model, poison), example) in panels:
        logits = first_draw.sel(model=model, poison=poison, example=example)
        for place, arm in enumerate(reversed(titles)):
            values = logits.sel(unlearner=arm).dropna("run").values
            dots = {"color": styles[arm][0], "markersize": 2, "alpha": 0.7}
            scatter = generator.uniform(-0.25, 0.25, len(values))
            axis.plot(values, place + scatter, "o", **dots)
            if len(values):
                median = np.median(values)
                axis.vlines(median, place - 0.38, place + 0.38, color="black", linewidth=1.2)
        axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        labels = [""] * len(titles)
        if example == examples[0]:
            labels = list(reversed(titles.values()))
        axis.set_yticks(range(len(titles)), labels=labels)
        title = f"{model}, {poison_words(poison)},\nforget sample {example + 1}"
        axis.set_title(title, fontsize=7.5)
    text = (
        f"logits of the first {len(examples)} samples of the forget set, positive where they are "
        f"for the true label; a dot for each of n = {count_of_runs(results)} models, bar: median; "
        "first draw"
    )
    return finished(text, results)


def forgetting_attack(results: xr.Dataset) -> Figure | None:
    """Draw ROC curves of U-LiRA's attack, which tells unlearned models from oracles.

    The attack reads their logits on the forget set.
    """
    from foundation.report.drawing import arm_styles, draws_words, finished, grid_for, poison_words

    rows = models_and_poisons(results)
    titles = method_titles(results)
    styles = arm_styles(results)
    if not rows:
        return None
    for axis, (model, poison) in grid_for(rows, "false positive rate", "true positive rate"):
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        for arm, title_of_arm in titles.items():
            rates = results.true_positive.sel(model=model, poison=poison, unlearner=arm)
            curve = rates.mean("draw")
            colour, line = styles[arm]
            axis.plot(curve.false_positive, curve, color=colour, linestyle=line, label=title_of_arm)
        axis.axvline(0.05, color="0.8", linewidth=0.8, zorder=0)
        title = f"{model}, {poison_words(poison)}"
        axis.set(title=title, xlim=(0, 1), ylim=(0, 1))
    text = (
        f"likelihood-ratio attack on the forget set; {draws_words(results)}; oracle: further "
        "oracles in a method's place (the floor); vertical line: 5 % false positives"
    )
    return finished(text, results, legend=True)


def forgetting_cost(results: xr.Dataset) -> Figure | None:
    """Draw distances of all arms from the oracles, in the order of their costs."""
    from foundation.report.drawing import (
        arm_styles,
        draws_words,
        finished,
        grid_for,
        log_ticks,
        matplotlib,
        plt,
        poison_words,
    )

    rows = models_and_poisons(results)
    titles = method_titles(results)
    styles = arm_styles(results)
    if not rows:
        return None
    data = over_draws(results)
    for axis, (model, poison) in grid_for(rows, "W1 on the forget set", most=2):
        is_shown = (data.model == model) & (data.poison == poison)
        numbers = data[is_shown].set_index(["unlearner", "measure"])
        _draw_distances(axis, numbers, titles, styles)
        axis.set(title=f"{model}\n{poison_words(poison)}", xscale="log")
        axis.xaxis.set_major_locator(log_ticks(*axis.get_xlim(), numticks=5))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    figure = plt.gcf()
    lines = -(-len(rows) // 2)
    height_of_panel = max(0.16 * len(titles) + 0.85, 1.65)
    height = height_of_panel * lines + 0.4
    figure.set_size_inches(figure.get_figwidth() * 1.1, height)
    text = (
        f"W1 distance of the logits from half of the oracles; {draws_words(results)}; bars: 95 % "
        "intervals (half-sampling, conditional on the draws). Behind each name: its gradients over "
        "those of an oracle's training (the teacher: none). Dashed: the floor, one half of the "
        "oracles from the other"
    )
    return finished(text, results)


def _draw_distances(
    axis: Axes, numbers: pd.DataFrame, titles: dict[str, str], styles: dict[str, tuple]
) -> None:
    """Draw the distance of each arm with its interval, its cost behind its name, and the floor.

    numbers: indexed by unlearner and measure.
    """
    floor = numbers.value.get(("oracle", f"{PRIMARY} unit"), np.nan)
    axis.axvline(floor, color="0.6", linestyle="--", linewidth=0.9)
    costs = _costs_of_arms(numbers, titles)
    labels = []
    for row, (arm, cost) in enumerate(costs.items()):
        distance = numbers.loc[(arm, PRIMARY)]
        colour = styles[arm][0]
        axis.hlines(row, distance.low, distance.high, color=colour, linewidth=1)
        axis.plot(distance.value, row, "o", color=colour, markersize=4)
        labels.append(f"{titles[arm]}  {cost:.2f}")
    axis.set_yticks(range(len(costs)), labels=labels, fontsize=7)


def _costs_of_arms(numbers: pd.DataFrame, arms: Iterable[str]) -> dict[str, float]:
    """Return the cost of each arm that has a distance, the dearest first; teachers cost nothing.

    numbers: indexed by unlearner and measure.
    """
    there = set(numbers.index)
    costs = {}
    for arm in arms:
        if (arm, PRIMARY) in there and (arm, "cost") in there:
            costs[arm] = 0.0 if arm == "teacher" else numbers.value[arm, "cost"]
    return dict(sorted(costs.items(), key=lambda pair: pair[1], reverse=True))
