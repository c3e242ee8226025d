"""One function per figure of the studies that are not on the record yet, from result files alone.

Each function takes a study as `storage.read_dataset` gives it and returns a matplotlib Figure, or None where the study
holds nothing of the kind or all of it diverged. What a model is comes from the file's coordinates family and size, what
a method is called from title; those that a user added are drawn beside the others.
"""

from __future__ import annotations

import itertools
import json

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from foundation.measures import metrics
from foundation.measures.forgetting import MEASURES, PRIMARY
from foundation.report.drawing import (
    ALPHA_LABEL,
    FAMILY_STYLE,
    GRID,
    MARKERS,
    MOST_BANDS,
    PALETTE,
    PANEL,
    POISON_NAMES,
    PRESET_NAMES,
    SPARE_STYLE,
    arm_styles,
    band_words,
    draw_curve,
    draws_words,
    finished,
    grid_for,
    log_ticks,
    method_styles,
    mixed,
    model_styles,
    noises_of,
    panels_for,
)
from foundation.report.frames import (
    count_of_runs,
    method_titles,
    models_and_poisons,
    one_of_each_family,
    ordered,
)
from studies import tables

FORGET_NAMES = {  # what the two forgetting accuracies are, for each poison
    "labels": {"forget_poisoned": "poisoned labels", "forget_clean": "true labels"},
    "features": {"forget_poisoned": "poisoned inputs, true labels", "forget_clean": "clean inputs, true labels"},
}
OWN_FORGET_NAMES = {"forget_poisoned": "as poisoned", "forget_clean": "as before"}  # for a poison that a user added
WEIGHT_NAMES = {"forget": "forget weight", "kl": "KL weight"}
GAUGE_STYLE = {  # towards what the model's colour is mixed, how far, line and marker under each gauge
    "fixed": ("black", 0.0, "-", "o"),
    "random_sign": ("white", 0.45, "-.", "^"),
    "random_phase": ("black", 0.6, ":", "D"),
}


def _flipped(results: xr.Dataset) -> list[str]:
    return [model for model, poison in models_and_poisons(results) if poison == "labels"]


# ---- figures ----


def noise_sweep(results: xr.Dataset) -> plt.Figure:
    """Train and validation accuracy against the poisoned share: a row for each model, a column for each poison.

    Only models that were given all the poisons of the file. The counterpart of arXiv:2508.02422, Fig. 2c and 2d.
    """
    poisons, every, rows = ordered(results, "poison"), ordered(results, "model"), models_and_poisons(results)
    models = [model for model in every if all((model, poison) in rows for poison in poisons)] or every
    places, xlabel = itertools.product(models, poisons), "poisoned share of the training set α (%)"
    for axis, (model, poison) in panels_for(places, xlabel, "accuracy", rows=len(models)):
        colour, _, _ = model_styles(results, [model])[model]
        for split, style in {"train": ("0.6", "--", "s"), "validation": (colour, "-", "o")}.items():
            draw_curve(axis, results.accuracy.sel(model=model, poison=poison, split=split), style, split)
        axis.set(title=f"{model}, {POISON_NAMES.get(poison, poison)}")
        axis.legend(frameon=False, loc="lower left")
    others = [model for model in every if model not in models]
    left_out = f"; not drawn, given fewer poisons: {', '.join(others)}" if others else ""
    return finished(f"train: against the labels trained on; {band_words(results)}{left_out}", results)


def presets_side_by_side(by_preset: dict[str, xr.Dataset]) -> plt.Figure | None:
    """Validation accuracy against the share of flipped labels, a panel for each preset, a line for each model.

    by_preset: the noise sweeps by the names of their presets. Of several MLPs the largest, of QNNs the smallest.
    """
    if not all(map(_flipped, by_preset.values())):
        return None
    for axis, (preset, results) in panels_for(by_preset.items(), ALPHA_LABEL, "validation accuracy"):
        _curves_of_flipped(axis, results, one_of_each_family(results, _flipped(results)))
        axis.set(title=f"{PRESET_NAMES.get(preset, preset)}, n = {count_of_runs(results)}")
    return finished("mean of n runs, band: ± 1 standard deviation", *by_preset.values(), legend=True)


def model_sizes(results: xr.Dataset) -> plt.Figure | None:
    """Validation accuracy against the share of flipped labels, a panel for each family, large models dark."""
    groups: dict[str, list[str]] = {"MLP": [], "QNN": []}
    for model in _flipped(results):
        family = results.family.sel(model=model).item()
        groups.setdefault({"Logistic": "MLP", "Quadratic": "QNN"}.get(family, family), []).append(model)
    panels = [models for name, models in groups.items() if len(models) > (name not in ("MLP", "QNN"))]
    if not panels:
        return None
    for axis, models in panels_for(panels, ALPHA_LABEL, "validation accuracy"):
        _curves_of_flipped(axis, results, models, bands=len(models) <= MOST_BANDS)
        axis.legend(frameon=False, loc="lower left")
    return finished(band_words(results, max(map(len, panels))), results)


def _curves_of_flipped(axis, results: xr.Dataset, models: list[str], *, bands: bool = True) -> None:
    for model, style in model_styles(results, models).items():
        runs = results.accuracy.sel(model=model, poison="labels", split="validation")
        draw_curve(axis, runs, style, model, bands=bands)


def gauge_control(results: xr.Dataset) -> plt.Figure:
    """Validation accuracy against the share of flipped labels under each gauge, a line for each model and gauge."""
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
                axis, own.sel(gauge=gauge), style, f"{model}, {'any gauge' if alone else gauge.replace('_', ' ')}"
            )
    once = f". {' and '.join(free)}: trained once, what it reads is the same under all gauges" if free else ""
    text = f"{band_words(results)}; the same flips, first parameters and batches under each gauge{once}"
    return finished(text, results, legend=True)


def xxz_spectrum(results: xr.Dataset) -> plt.Figure | None:
    """Ground-state energy per site and gap of the XXZ ring against the coupling, the samples marked below."""
    if "gap" not in results:
        return None
    marks = ("is_train", 0.11, "0.6", "training"), ("is_val", 0.03, "0.15", "validation")
    for axis, variable in panels_for(["energy_per_site", "gap"], "coupling Δ"):
        axis.axvline(1, color="0.4", linestyle="--", linewidth=0.8)
        axis.plot(results.delta, results[variable], "o", color="black", markersize=1.6, markeredgewidth=0)
        low, high = axis.get_ylim()
        axis.set(ylabel=variable.replace("_", " "), ylim=(low - 0.25 * (high - low), high))  # room for the marks
        for mask, height, colour, name in marks:
            deltas = results.delta[results[mask].values > 0]
            form = {"color": colour, "transform": axis.get_xaxis_transform()}
            axis.vlines(deltas, height, height + 0.06, linewidth=0.7, **form)
            axis.text(float(deltas[0]) - 0.03, height + 0.03, name, ha="right", va="center", **form)
        axis.set_xlim(left=-0.6)
    text = (f"XXZ ring of {json.loads(results.attrs['data'])['n_sites']} sites in units of its exchange (Pauli "
            "matrices). Dashed: the transition at Δ = 1, to its left the critical phase (label 0), to its right the "
            f"antiferromagnetic one (label 1). Marks: the {int(results.is_train.sum())} training and "
            f"{int(results.is_val.sum())} validation states. Exact diagonalisation, no error bars")  # fmt: skip
    return finished(text, results)


def poison_examples(results: xr.Dataset) -> plt.Figure | None:
    """Images before and after each poison, with the labels that they are trained on."""
    if "image" not in results:
        return None
    stages, examples = list(itertools.product(ordered(results, "poison"), ("before", "after"))), results.example.values
    for axis, ((poison, stage), example) in panels_for(itertools.product(stages, examples), rows=len(stages)):
        own = results.sel(poison=poison, stage=stage, example=example)
        axis.imshow(own.image, cmap="gray_r")
        axis.set_title(f"label {int(own.image_label)}", fontsize=7, pad=2)
        axis.set(xticks=[], yticks=[])
        if example == examples[0]:
            axis.set_ylabel(f"{POISON_NAMES.get(poison, poison)},\n" * (stage == "after") + stage, fontsize=7)
    plt.gcf().set_size_inches(0.9 * len(examples), 1.05 * len(stages) + 0.4)
    sns.despine(left=True, bottom=True)
    text = "training images and the labels they are trained on, before and after each poison"
    if digits := json.loads(results.attrs["data"]).get("digits"):
        text += f"; label 0 stands for the digit {digits[0]}, label 1 for {digits[1]}"
    return finished(text, results)


def poison_embeddings(results: xr.Dataset) -> plt.Figure | None:
    """t-SNE of the training set without poison and with each."""
    if "embedding" not in results:
        return None
    names = {version: POISON_NAMES.get(version, version) for version in ordered(results, "version")}
    for axis, (version, title) in panels_for(names.items(), "t-SNE 1", "t-SNE 2"):
        own = results.sel(version=version)
        for (label, colour), (poisoned, marker) in itertools.product(enumerate(("0.3", PALETTE[8])), enumerate("oX")):
            chosen = own.embedding.values[(own.label.values == label) & (own.poisoned.values == poisoned)]
            name = f"label {label}" + ", poisoned" * poisoned if len(chosen) else None
            axis.scatter(*chosen.T, s=9 + 12 * poisoned, color=colour, marker=marker, alpha=0.75,
                         linewidths=0.4, edgecolors="black", label=name)  # fmt: skip
        axis.set(title=title, xticks=[], yticks=[])
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    shown = results.shown_percent.to_series()
    words = " and ".join(f"{shown[version]:g} % {name}" for version, name in names.items() if version != "none")
    return finished(f"t-SNE of the {results.sizes['sample']} training samples; {words}; crosses: poisoned", results)


def unlearning_curves(results: xr.Dataset) -> plt.Figure | None:
    """Validation and forgetting accuracy against the epoch of unlearning, a row for each model and poison.

    Forgetting accuracy is, of flipped labels, against the poisoned (low is good, as published) and the true ones; of
    randomised features, on poisoned and clean inputs, with true labels. The counterpart of arXiv:2508.02422, Fig. 3.
    """
    rows, titles, styles = models_and_poisons(results), method_titles(results), method_styles(results)
    if not rows:
        return None
    places = itertools.product(rows, ("validation", "forget_poisoned", "forget_clean"))
    for axis, ((model, poison), split) in panels_for(places, "epoch of unlearning", rows=len(rows)):
        name = FORGET_NAMES.get(poison, OWN_FORGET_NAMES).get(split)
        name = f"forgetting accuracy,\n{name}" if name else "validation accuracy"
        axis.set(ylabel=name, title=f"{model}, {POISON_NAMES.get(poison, poison)}")
        for method, style in styles.items():
            runs = results.accuracy.sel(model=model, poison=poison, split=split, unlearner=method)
            if runs.count():
                draw_curve(axis, runs, (*style, None), titles[method], bands=len(styles) <= MOST_BANDS)
    text, config = band_words(results, len(styles)), json.loads(results.attrs["config"])
    held = [name for name in ("MLP", "QNN") if name in results.family.values]
    whole = [name for name in held if not config[name.lower()]["unlearn"]["batch_size"]]
    if whole and not config["independent_teachers"]:  # nothing random tells their runs apart
        text += f". One teacher and full batches: {' and '.join(whole)} runs of all methods but Retrain are the same"
        text += ", apart from rounding"
    return finished(text, results, legend=True)


def weight_maps(results: xr.Dataset) -> plt.Figure | None:
    """Final validation accuracy over each method's weights: a heat map over two of them, a line over one."""
    rows, titles, styles = models_and_poisons(results), method_titles(results), method_styles(results)
    if not rows:
        return None
    means = results.accuracy.mean("run")
    limits = np.floor(20 * float(means.min())) / 20, np.ceil(20 * float(means.max())) / 20  # to .05, in all panels
    for axis, ((model, poison), method) in panels_for(itertools.product(rows, titles), rows=len(rows)):
        own = results.sel(model=model, poison=poison, unlearner=method)
        own = own.dropna("first", how="all", subset=["accuracy"]).dropna("second", how="all", subset=["accuracy"])
        first, second = (WEIGHT_NAMES.get(name.item(), name.item()) for name in (own.first_name, own.second_name))
        axis.set(xlabel=first, ylabel=second or "validation accuracy")
        axis.set_title(f"{titles[method]}\n{model}, {POISON_NAMES.get(poison, poison)}")
        if not own.accuracy.size:
            axis.set_axis_off()
        elif second:
            _heat_map(axis, own, limits)
        else:
            draw_curve(axis, own.accuracy[{"second": 0}], (*styles[method], "o"))
    words = ", cross: weights of the unlearning curves" * any(axis.images and axis.lines for axis in plt.gcf().axes)
    return finished(f"heat map: mean{words}; line: {band_words(results)}", results)


def _heat_map(axis, own: xr.Dataset, limits: tuple[float, float]) -> None:
    """One method's map, with a cross at the weights of its unlearning curves where it holds those."""
    cells = own.accuracy.mean("run").transpose("second", "first")
    image = axis.imshow(cells, vmin=limits[0], vmax=limits[1], cmap="cividis", origin="lower", aspect="auto")
    axis.figure.colorbar(image, ax=axis, label="validation accuracy")
    x, y = ([f"{weight:g}" for weight in cells[dim].values] for dim in ("first", "second"))
    axis.set(xticks=range(len(x)), xticklabels=x, yticks=range(len(y)), yticklabels=y)
    sns.despine(ax=axis, left=True, bottom=True)
    cross = [np.flatnonzero(np.isclose(cells[dim], own[f"{dim}_default"])) for dim in ("first", "second")]
    if all(map(len, cross)):
        axis.plot(*cross, "x", color="white", markersize=6, markeredgewidth=1.4)


def oracle_epochs(results: xr.Dataset) -> plt.Figure | None:
    """Accuracies of oracles against how long they are trained: a row for each poison, a column for each model."""
    rows = models_and_poisons(results)
    if not rows:
        return None
    poisons = list(dict.fromkeys(poison for _, poison in rows))
    pairs = [(model, poison) for poison in poisons for model in ordered(results, "model")]
    chosen = tables.oracle_epochs(results).set_index(["model", "poison"]).epochs
    styles = {"retain": ("retained", ("0.6", "-", "s")), "validation": ("held out", (PALETTE[0], "--", "o")),
              "forget_clean": ("forget set, true labels", (PALETTE[1], "-.", "^"))}  # fmt: skip
    least = float(results.accuracy.sel(split=list(styles)).mean(("draw", "run")).min())
    for axis, (model, poison) in panels_for(pairs, "epochs", "accuracy", rows=len(poisons)):
        for split, (name, style) in styles.items():
            own = results.accuracy.sel(model=model, poison=poison, split=split).stack(each=("draw", "run"))
            own = own.dropna("epochs", how="all").reset_index("each").drop_vars(["draw", "run"]).rename(each="run")
            draw_curve(axis, own, style, name)
        axis.axvline(chosen[model, poison], color=PALETTE[3], linestyle=":", label="found by the rule")
        axis.set(xscale="log", title=f"{model}, {POISON_NAMES.get(poison, poison)}", ylim=(least - 0.01, 1.005))
        ticks = results["epochs"].values
        axis.set_xticks(ticks, labels=map(str, ticks), minor=False)
        axis.minorticks_off()
    draws, runs = results.sizes["draw"], results.sizes["run"]
    text = ("oracles: the teacher's training on the retained samples alone, a fifth of which is held out; mean of "
            f"{runs} seeds on each of {draws} draws of the poison, band: ± 1 standard deviation. The rule: the first "
            "count at which doubling it moves no accuracy by as much as its standard deviation over seeds")  # fmt: skip
    return finished(text, results, legend=True)


def forgetting_scores(results: xr.Dataset) -> plt.Figure | None:
    """Distance of every arm from the oracles by every measure, in units of the floor: a heat map for each model."""
    rows, titles = models_and_poisons(results), method_titles(results)
    if not rows:
        return None
    measures = [name for name in MEASURES if name in results.measure.values]
    measures += [name for name in results.measure.values if name not in measures]
    ratio = (results.distance / results.unit.where(results.unit > 0)).mean("draw", skipna=False).sel(measure=measures)
    norm = matplotlib.colors.LogNorm(1, np.nanmax([10.0, float(ratio.max())]))
    columns = min(len(rows), GRID if len(titles) < 10 else 2)  # wide panels
    panels = list(grid_for(rows, most=columns))
    for index, (axis, (model, poison)) in enumerate(panels):
        cells = ratio.sel(model=model, poison=poison, unlearner=list(titles)).transpose("measure", "unlearner").values
        image = axis.imshow(cells, cmap="cividis", norm=norm, aspect="auto")
        for (row, column), cell in np.ndenumerate(cells):
            words = _in_a_cell(cell)
            bright = not cell > 0 or norm(cell) > 0.6
            axis.text(column, row, words, ha="center", va="center", fontsize=5.5, color="black" if bright else "white")
        axis.set_title(f"{model}\n{POISON_NAMES.get(poison, poison)}")
        axis.set_xticks(range(len(titles)), labels=titles.values(), rotation=60, ha="right")
        names = results.measure_title.sel(measure=measures).values if index % columns == 0 else [""] * len(measures)
        axis.set_yticks(range(len(measures)), labels=names)
        axis.tick_params(length=0)
        sns.despine(ax=axis, left=True, bottom=True)
    figure = plt.gcf()
    figure.set_size_inches((0.35 * len(titles) + 0.2) * columns + 1.4, 3.3 * -(-len(rows) // columns) + 0.6)
    figure.colorbar(image, ax=figure.axes, label="distance from the oracles over the floor", shrink=0.7)
    others = ", or a method that cannot run there" if "left_out" in results.coords and any(results.left_out) else ""
    text = ("distance of each arm from perfect unlearning, over that of one half of the oracles from the other (mean "
            f"over random halves); {draws_words(results)}. 1: as far as oracles are from each other; dash: no floor, "
            f"all oracles give one value{others}")  # fmt: skip
    return finished(text, results)


def _in_a_cell(number: float) -> str:
    """0.86, 53, 541, 2e4; a dash for NaN."""
    if np.isnan(number):
        return "–"
    if number < 100:
        return f"{number:.2g}"
    return f"{number:.0f}" if number < 1e4 else f"{number:.0e}".replace("e+0", "e")


def forgetting_logits(results: xr.Dataset) -> plt.Figure | None:
    """Logits, signed by the true label, of some forget samples in every arm, on the first draw of the poison."""
    rows, titles, styles = models_and_poisons(results), method_titles(results), arm_styles(results)
    if not rows:
        return None
    examples = results.example.values[:3]
    generator = np.random.default_rng(0)  # scatters the dots sideways
    pairs = itertools.product(rows, examples)
    for axis, ((model, poison), example) in panels_for(pairs, "signed logit", rows=len(rows)):
        own = results.z.sel(model=model, poison=poison, example=example)[{"draw": 0}]
        for place, arm in enumerate(reversed(titles)):
            values = own.sel(unlearner=arm).dropna("run").values
            colour, _ = styles[arm]
            axis.plot(
                values, place + generator.uniform(-0.25, 0.25, len(values)), "o", color=colour, markersize=2, alpha=0.7
            )
            if len(values):
                axis.vlines(np.median(values), place - 0.38, place + 0.38, color="black", linewidth=1.2)
        axis.axvline(0, color="0.7", linewidth=0.8, zorder=0)
        shown = list(reversed(titles.values())) if example == examples[0] else [""] * len(titles)
        axis.set_yticks(range(len(titles)), labels=shown)
        axis.set_title(f"{model}, {POISON_NAMES.get(poison, poison)},\nforget sample {example + 1}", fontsize=7.5)
    text = (f"logits of the first {len(examples)} samples of the forget set, positive where they are for the true "
            f"label; a dot for each of n = {count_of_runs(results)} models, bar: median; first draw")  # fmt: skip
    return finished(text, results)


def forgetting_attack(results: xr.Dataset) -> plt.Figure | None:
    """ROC of U-LiRA's attack, which tells unlearned models from oracles by their logits on the forget set."""
    rows, titles, styles = models_and_poisons(results), method_titles(results), arm_styles(results)
    if not rows:
        return None
    for axis, (model, poison) in grid_for(rows, "false positive rate", "true positive rate"):
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, zorder=0)
        for arm, title in titles.items():
            curve = results.true_positive.sel(model=model, poison=poison, unlearner=arm).mean("draw")
            colour, line = styles[arm]
            axis.plot(curve.false_positive, curve, color=colour, linestyle=line, label=title)
        axis.axvline(0.05, color="0.8", linewidth=0.8, zorder=0)
        axis.set(title=f"{model}, {POISON_NAMES.get(poison, poison)}", xlim=(0, 1), ylim=(0, 1))
    text = (f"likelihood-ratio attack on the forget set; {draws_words(results)}; oracle: further oracles in a "
            "method's place (the floor); vertical line: 5 % false positives")  # fmt: skip
    return finished(text, results, legend=True)


def forgetting_cost(results: xr.Dataset) -> plt.Figure | None:
    """Distance from the oracles of every arm, by its cost, which stands beside its name; the line is the floor."""
    rows, titles, styles = models_and_poisons(results), method_titles(results), arm_styles(results)
    if not rows:
        return None
    data = tables.over_draws(results)
    for axis, place in grid_for(rows, "W1 on the forget set", most=2):
        own = data[(data.model == place[0]) & (data.poison == place[1])].set_index(["unlearner", "measure"])
        floor = own.value["oracle", f"{PRIMARY} unit"] if ("oracle", f"{PRIMARY} unit") in own.index else np.nan
        axis.axvline(floor, color="0.6", linestyle="--", linewidth=0.9)
        costs = {arm: 0.0 if arm == "teacher" else own.value[arm, "cost"]
                 for arm in titles if {(arm, PRIMARY), (arm, "cost")} <= set(own.index)}  # fmt: skip
        arms = sorted(costs, key=costs.get, reverse=True)
        for row, arm in enumerate(arms):
            point, colour = own.loc[(arm, PRIMARY)], styles[arm][0]
            axis.hlines(row, point.low, point.high, color=colour, linewidth=1)
            axis.plot(point.value, row, "o", color=colour, markersize=4)
        axis.set_yticks(range(len(arms)), labels=[f"{titles[arm]}  {costs[arm]:.2f}" for arm in arms], fontsize=7)
        axis.set(title=f"{place[0]}\n{POISON_NAMES.get(place[1], place[1])}", xscale="log")
        axis.xaxis.set_major_locator(log_ticks(*axis.get_xlim(), numticks=5))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    figure, down = plt.gcf(), -(-len(rows) // 2)
    figure.set_size_inches(figure.get_figwidth() * 1.1, max(0.16 * len(titles) + 0.85, 1.65) * down + 0.4)
    text = (f"W1 distance of the logits from half of the oracles; {draws_words(results)}; bars: 95 % intervals "
            "(half-sampling, conditional on the draws). Behind each name: its gradients over those of an oracle's "
            "training (the teacher: none). Dashed: the floor, one half of the oracles from the other")  # fmt: skip
    return finished(text, results)


def linear_response(results: xr.Dataset) -> plt.Figure | None:
    """The change of each logit that linear response predicts against the true one, for each model and poison."""
    pairs = list(itertools.product(ordered(results, "model"), ordered(results, "poison")))
    marks = {"validation": ("0.75", "."), "retain": ("0.35", "o"), "forget": (PALETTE[3], "^")}
    for axis, place in grid_for(pairs, "predicted change of z", "true change of z"):
        own, words = results.sel(model=place[0], poison=place[1]), []
        for part, (colour, marker) in marks.items():
            chosen = own.member.sel(of=part).values == 1
            axis.plot(own.predicted[chosen], own.true[chosen], marker, color=colour, markersize=2, label=part)
            value, low, high = own.correlation.sel(of=part, bound=tables.BOUNDS).values
            words.append(f"{part} {value:.2f} [{low:.2f}, {high:.2f}]")
        axis.axline((0, 0), slope=1, color="0.6", linewidth=0.8, zorder=0)
        behind = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
        axis.text(0.03, 0.97, "\n".join(reversed(words)), transform=axis.transAxes, va="top", fontsize=6.5, bbox=behind)
        axis.set_title(f"{place[0]}, {POISON_NAMES.get(place[1], place[1])}")
    text = ("z: logit signed by the true label, a dot for each sample; true: mean over oracles less mean over "
            "teachers; predicted: first order in a damped Newton step towards the minimum on the retained samples "
            "(influence functions). Numbers: Pearson's correlation, 95 % interval by halves of the models")  # fmt: skip
    return finished(text, results, legend=True)


def dynamics(results: xr.Dataset) -> plt.Figure | None:
    """Clean against noisy: validation accuracy over the fit of the noisy labels, along one long training."""
    places = noises_of(results)
    chosen, models = tables.selected_epochs(results), ordered(results, "model")
    styles, last = model_styles(results, models), results.epoch.values[-1]
    for axis, (poison, alpha) in grid_for(
        places, "accuracy on the noisy training labels", "validation accuracy", most=3
    ):
        axis.axvline(1 - alpha / 100, color="0.8", linewidth=0.8, zorder=0)
        for model, (colour, line, marker) in styles.items():
            own = results.accuracy.sel(model=model, poison=poison, alpha_percent=alpha).mean("run")
            own = own.dropna("epoch", how="all")
            x, y = (own.sel(split=split) for split in ("train", "validation"))
            axis.plot(x[1:], y[1:], color=colour, linestyle=line, linewidth=1, label=model)
            ends = {"published_epochs": int(results.published_epochs.sel(model=model))}
            ends |= {"selected": int(chosen[model, poison, alpha]), "last": int(last)}
            for fill, epoch in zip(("none", "full", "left"), ends.values(), strict=True):
                axis.plot(x.sel(epoch=epoch), y.sel(epoch=epoch), marker, color=colour, fillstyle=fill, ms=4)
        axis.set_title(f"{POISON_NAMES.get(poison, poison)}, {alpha} %")
    text = (f"means of n = {count_of_runs(results)} runs, each with a training set of its own, after epoch 1 to {last}"
            "; grey: a perfect model's fit of the noisy labels. Hollow: after the published epochs; full: at the epoch "
            "that held-out noisy samples select; half: after the last")  # fmt: skip
    return finished(text, results, legend=True)


def contests(results: xr.Dataset) -> plt.Figure | None:
    """Validation accuracy of every contender as it was tuned, a dot each with its interval, the best above."""
    groups = dict(zip(dict.fromkeys(results.group.values.tolist()), itertools.cycle(MARKERS), strict=False))
    family = results.family.to_series()
    colours = {name: FAMILY_STYLE.get(name, SPARE_STYLE)[0] for name in family[ordered(results, "model")]}
    counts = []  # of contenders, by panel
    for axis, (poison, alpha) in grid_for(noises_of(results), "validation accuracy", most=2):
        own = results.accuracy.sel(poison=poison, alpha_percent=alpha, split="validation").dropna("model", how="all")
        names = own.mean("run").to_series().sort_values().index
        counts.append(len(names))
        for row, name in enumerate(names):
            runs = own.sel(model=name).dropna("run").values
            group, colour = results.group.sel(model=name).item(), colours[family[name]]
            low, high = metrics.bootstrap_interval(runs)
            axis.plot(runs.mean(), row, groups[group], color=colour, markersize=4)
            axis.hlines(row, low, high, color=colour, linewidth=1)
        axis.set_yticks(range(len(names)), labels=names, fontsize=7)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(4))
        axis.set_title(f"{POISON_NAMES.get(poison, poison)}, {alpha} %")
    figure = plt.gcf()
    axis = figure.axes[0]
    for group, marker in groups.items():
        axis.plot([], [], marker, color="0.3", markersize=4, label=group)
    for name, colour in colours.items():
        axis.plot([], [], "-", color=colour, linewidth=3, label=name)
    rows = [max(counts[place : place + 2]) for place in range(0, len(counts), 2)]
    axis.get_gridspec().set_height_ratios(rows)
    figure.set_size_inches(figure.get_figwidth() * 1.15, 0.15 * sum(rows) + 0.7 * len(rows) + 0.4)
    text = (f"mean of n = {count_of_runs(results)} runs, each with a training set of its own, and its 95 % bootstrap "
            "interval; setting and epoch of each chosen on held-out noisy samples; colour: family, mark: "
            "group")  # fmt: skip
    return finished(text, results, legend=True)


def digit_pairs(results: xr.Dataset) -> plt.Figure | None:
    """The QNN minus every other model, of each pair of digits: a heat map each."""
    models = ordered(results, "model")
    circuit = next((model for model in models if results.family.sel(model=model) == "QNN"), None)
    others = [model for model in models if model != circuit]
    if circuit is None or not others:
        return None
    pairs = [tuple(map(int, pair.split())) for pair in results.pair.values]
    digits = sorted({digit for pair in pairs for digit in pair})
    accuracy = results.accuracy.sel(split="validation").isel(poison=0, alpha_percent=0)
    minus = {other: accuracy.sel(model=circuit) - accuracy.sel(model=other) for other in others}
    limit = max(float(abs(own.mean("run")).max()) for own in minus.values())
    for axis, other in grid_for(others, most=3):
        cells = np.full((len(digits), len(digits)), np.nan)
        for pair, own in zip(pairs, minus[other].transpose("pair", "run").values, strict=True):
            row, column = map(digits.index, reversed(pair))
            cells[row, column] = np.nanmean(own)
            low, high = metrics.bootstrap_interval(own)
            if low > 0 or high < 0:
                axis.plot(column, row, ".", color="black", markersize=2)
        image = axis.imshow(cells, cmap="RdBu", vmin=-limit, vmax=limit)
        axis.set(xticks=range(len(digits)), yticks=range(len(digits)), xticklabels=digits, yticklabels=digits)
        axis.set_title(f"{circuit} −\n{other}")
        sns.despine(ax=axis, left=True, bottom=True)
    plt.gcf().colorbar(image, ax=plt.gcf().axes, label="difference of validation accuracy", shrink=0.7)
    place = f"{POISON_NAMES[accuracy.poison.item()]}, {int(accuracy.alpha_percent)} %"
    text = (f"{place}: mean of n = {count_of_runs(results)} runs, paired by run, for every pair of digits; dots: the "
            "95 % bootstrap interval excludes 0")  # fmt: skip
    return finished(text, results)


def ring_splits(results: xr.Dataset) -> plt.Figure | None:
    """Validation accuracy of every model on each ring: a row for each poison and share, dots with intervals."""
    rings = results.accuracy.stack(ring=("sites", "ring_split")).dropna("ring", how="all").ring.values
    names = [f"{sites}, {split.replace('_', ' ')}" for sites, split in rings]
    styles = model_styles(results, ordered(results, "model"))
    places = noises_of(results)
    for axis, (poison, alpha) in grid_for(places, ylabel="validation accuracy", most=3):
        for place, (model, (colour, _, marker)) in enumerate(styles.items()):
            for at, (sites, split) in enumerate(rings):
                runs = results.accuracy.sel(model=model, poison=poison, alpha_percent=alpha, split="validation")
                runs = runs.sel(sites=sites, ring_split=split).dropna("run").values
                if len(runs):
                    x = at + (place - (len(styles) - 1) / 2) * 0.7 / len(styles)
                    axis.plot(x, runs.mean(), marker, color=colour, markersize=3, label=model)
                    axis.vlines(x, *metrics.bootstrap_interval(runs), color=colour, linewidth=0.9)
        axis.set_xticks(range(len(names)), labels=names, rotation=60, ha="right")
        axis.set_title(f"{POISON_NAMES.get(poison, poison)}, {alpha} %")
    text = (f"sites, and where the validation states stand: among the training states (interleaved, published), nearer "
            f"to the transition (far), farther from it (near), at larger Δ (one sided). Mean of n = "
            f"{count_of_runs(results)} runs and its 95 % bootstrap interval over runs, states held fixed")  # fmt: skip
    return finished(text, results, legend=True)


def hessian_traces(results: xr.Dataset) -> plt.Figure | None:
    """The Hessian's trace over its clean median: a dot for each run, median and interval (arXiv:2508.02422, Fig. 4)."""
    models, alphas = _landscape_models(results), results.alpha_percent.values
    if not models:
        return None
    ylabel, width = f"trace of the Hessian\nover its median at α = {alphas[0]} %", 0.8 / len(models)
    ((axis, styles),) = panels_for([model_styles(results, models)], ALPHA_LABEL, ylabel)
    generator = np.random.default_rng(0)  # scatters the dots sideways
    for place, (model, (colour, _, marker)) in enumerate(styles.items()):
        clean = float(results.trace.sel(model=model)[{"alpha_percent": 0}].median())
        for at, alpha in enumerate(alphas):
            runs = results.sel(model=model, alpha_percent=alpha).dropna("run", subset=["trace"])
            ratios, dead = runs.trace.values / clean, runs.dead.values > 0
            mid = at + (place - (len(models) - 1) / 2) * width
            x = mid + width * generator.uniform(-0.25, 0.25, len(ratios))
            axis.plot(x[~dead], ratios[~dead], marker, color=colour, markersize=3, alpha=0.7, label="" if at else model)
            axis.plot(x[dead], ratios[dead], marker, color=colour, markersize=4.5, fillstyle="none")
            if len(ratios):
                axis.vlines(mid, *metrics.bootstrap_interval(ratios, np.median), color="black", linewidth=0.9)
                axis.hlines(np.median(ratios), mid - 0.35 * width, mid + 0.35 * width, color="black", linewidth=1.4)
    axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axis.set(yscale="log", xticks=range(len(alphas)), xticklabels=map(str, alphas))
    plt.gcf().set_figwidth(1.4 * PANEL[0])
    n_dead = int(results.dead.sum())
    text = (f"n = {count_of_runs(results)} runs, a dot each; bars: median and its 95 % bootstrap interval, that at α = "
            f"{alphas[0]} % held fixed. Hollow: {n_dead} run{'s' * (n_dead != 1)} whose network died (its logit is the "
            "same for all images)")  # fmt: skip
    return finished(text, results, legend=True)


def hessian_spectra(results: xr.Dataset) -> plt.Figure | None:
    """Eigenvalues of the Hessian in descending order without poison and with the most of it, a panel for each model."""
    models, alphas = _landscape_models(results), results.alpha_percent.values
    if not models:
        return None
    for axis, (model, style) in panels_for(model_styles(results, models).items(), "rank", "eigenvalue"):
        for alpha, colour in ((alphas[0], "0.45"), (alphas[-1], style[0])):
            spectra = results.eigenvalues.sel(model=model, alpha_percent=alpha).dropna("rank", how="all")
            axis.plot(spectra["rank"] + 1, spectra.transpose("rank", "run"), color=colour, linewidth=0.4, alpha=0.35)
            axis.plot(spectra["rank"] + 1, spectra.median("run"), color=colour, linewidth=1.5, label=f"α = {alpha} %")
        axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.set(title=model, xscale="log", ylim=2 * np.nanquantile(results.eigenvalues, (0, 1)))
        axis.legend(frameon=False)
    text = (f"thin: each of n = {count_of_runs(results)} runs, thick: their median at each rank. Exact; of a network, "
            "the directions that no image reaches, in which the loss is flat, are left out")  # fmt: skip
    return finished(text, results)


def loss_slices(results: xr.Dataset) -> plt.Figure | None:
    """The loss on planes through trained models, clean beside poisoned."""
    if "slice_loss" not in results:
        return None
    sliced = results.assign(slice_loss=results.slice_loss.where(np.isfinite(results.slice_loss)))
    sliced = sliced.dropna("alpha_percent", how="all", subset=["slice_loss"])
    models = [model for model in _landscape_models(results) if sliced.slice_loss.sel(model=model).count()]
    if not models:
        return None
    alphas, names = sliced.alpha_percent.values, {"random": "random", "eigenvectors": "top eigenvectors"}
    panels = panels_for(itertools.product(models, names, alphas), rows=len(models))
    pairs = np.reshape([axis for axis, _ in panels], (-1, len(alphas)))
    plt.gcf().set_size_inches(1.65 * len(names) * len(alphas) + 1.6, 1.75 * len(models) + 0.6)
    for (model, direction), axes in zip(itertools.product(models, names), pairs, strict=True):
        own = sliced.sel(model=model, direction=direction)  # in the same colours, with one bar
        low, high = np.fmax((own.slice_loss.min(), own.slice_loss.max()), (1e-3, 2e-3))
        levels, norm = np.geomspace(low, high, 16), matplotlib.colors.LogNorm(low, high)
        for axis, alpha in zip(axes, alphas, strict=True):
            plane, radius = own.slice_loss.sel(alpha_percent=alpha), own.slice_radius.sel(alpha_percent=alpha).item()
            plane = np.clip(plane.transpose("second", "first").values, low, high)
            offsets = np.linspace(-radius, radius, len(plane))
            drawn = axis.contourf(offsets, offsets, plane, levels=levels, cmap="cividis", norm=norm)
            axis.plot(0, 0, "+", color="white", markersize=6)
            axis.set(aspect="equal")
            axis.set_title(f"{names[direction]}\nα = {alpha} %" * (model == models[0]), fontsize=8)
        axes[0].set_ylabel(model * (direction == "random"))
        ticks = log_ticks(low, high)
        plt.colorbar(drawn, ax=list(axes), label="loss (nats)", ticks=ticks, format="%g", shrink=0.8).minorticks_off()
    text = ("one run of each, cross: its trained parameters; loss on the images of the Hessian. Random directions are "
            "in units of the filters' norms for a network and of 1 rad root mean square for a circuit, eigenvectors "
            "(of the two largest eigenvalues) in Euclidean length")  # fmt: skip
    return finished(text, results)


def _landscape_models(results: xr.Dataset) -> list[str]:
    """The models in reading order; none that diverged without poison."""
    clean = results.trace[{"alpha_percent": 0}]
    return [model for model in ordered(results, "model") if clean.sel(model=model).count()]


# ---- poison that is partly known, or has to be found ----

PART_NAMES = {"validation": "validation accuracy", "poisoned": "accuracy on poisoned samples", "attack": "success of "
              "the attack"}  # fmt: skip
DETECTOR_STYLE = {"loss": (PALETTE[7], "--"), "cross_validation": (PALETTE[4], "-"), "influence": (PALETTE[2], ":")}


def _parts_of(results: xr.Dataset, poison: str, alpha: float) -> list[str]:
    """What is drawn of a poison: the success of the attack where there is one."""
    own = results.accuracy.sel(poison=poison, alpha_percent=alpha)
    return [name for name in PART_NAMES if own.sel(split=name).count()]


def known_shares(results: xr.Dataset) -> plt.Figure:
    """Accuracy of every method against the share of the poison that is known; the line across: nothing is done."""
    titles, styles, models = method_titles(results), method_styles(results), ordered(results, "model")
    rows = [(*noise, part) for noise in noises_of(results) for part in _parts_of(results, *noise)]
    for axis, ((poison, alpha, part), model) in panels_for(
        itertools.product(rows, models), "known share of the poison (%)", rows=len(rows)
    ):
        own = results.accuracy.sel(model=model, poison=poison, alpha_percent=alpha, split=part)
        nothing = own.sel(unlearner="teacher").mean().item()
        axis.axhline(nothing, color="0.15", linewidth=0.8, linestyle=(0, (1, 2)), label=titles["teacher"])
        for name, (colour, line) in styles.items():
            mean = own.sel(unlearner=name).mean("run").dropna("known_percent")
            if name != "teacher" and mean.size:
                axis.plot(mean.known_percent, mean, color=colour, linestyle=line, marker=".", label=titles[name])
        name = f"{POISON_NAMES.get(poison, poison)}, {alpha} %"
        axis.set(title=f"{model}\n{name}", xticks=results.known_percent.values, ylabel=PART_NAMES[part])
    text = (f"mean of n = {count_of_runs(results)} runs; what is not known stays among the retained samples; accuracy "
            "on poisoned samples: all of them, clean, by their true labels")  # fmt: skip
    return finished(text, results, legend=True)


def detection(results: xr.Dataset) -> plt.Figure:
    """Precision against recall of each ranking of the training samples; the line across: chance."""
    noises = noises_of(results.rename(average_precision="accuracy"))
    places = itertools.product(noises, ordered(results, "model"))
    for axis, ((poison, alpha), model) in panels_for(places, "recall", "precision", rows=len(noises)):
        own = results.sel(model=model, poison=poison, alpha_percent=alpha)
        axis.axhline(own.poisoned_share.mean(), color="0.6", linewidth=0.8, label="chance")
        for name, (colour, line) in DETECTOR_STYLE.items():
            runs = own.precision.sel(detector=name).dropna("run")
            ends = np.array([metrics.bootstrap_interval(runs.sel(recall=at).values) for at in runs.recall]).T
            label = name.replace("_", " ")
            axis.plot(runs.recall, runs.mean("run"), color=colour, linestyle=line, label=label)
            axis.fill_between(runs.recall, *ends, color=colour, alpha=0.2, linewidth=0)
        axis.set(ylim=(-0.03, 1.03), title=f"{model}\n{POISON_NAMES.get(poison, poison)}, {alpha} %")
    text = f"mean of {results.sizes['run']} runs, band: 95 % bootstrap interval; chance: the share that is poisoned"
    return finished(text, legend=True)


def detected(results: xr.Dataset) -> plt.Figure:
    """Detect by cross-validation, then forget: accuracy above that of doing nothing, by method, a mark each model."""
    own = results.sel(detector="cross_validation", drop=True)
    nothing = results.accuracy.sel(unlearner="teacher").mean("detector")  # it stands at one of them
    titles, styles = method_titles(results), model_styles(results, ordered(results, "model"))
    names = [name for name in ordered(results, "unlearner") if name != "teacher"]
    rows = [(*noise, part) for noise in noises_of(results) for part in _parts_of(results, *noise)]
    for axis, (poison, alpha, part) in grid_for(rows, most=2):
        axis.axhline(0, color="0.6", linewidth=0.8)
        for place, (model, (colour, _, marker)) in enumerate(styles.items()):
            at = {"model": model, "poison": poison, "alpha_percent": alpha, "split": part}
            above = own.accuracy.sel(at) - nothing.sel(at)
            gains = [above.sel(unlearner=name).dropna("run").values for name in names]
            gains = {i: gain for i, gain in enumerate(gains) if len(gain)}
            x = np.array(list(gains)) + 0.6 * (place / max(len(styles) - 1, 1) - 0.5)
            ends = np.array([metrics.bootstrap_interval(gain) for gain in gains.values()]).T
            axis.vlines(x, *ends, color=colour, linewidth=1)
            axis.plot(x, [gain.mean() for gain in gains.values()], marker, color=colour, markersize=4, label=model)
        axis.set_xticks(range(len(names)), labels=[titles[name] for name in names], rotation=40, ha="right")
        axis.set(
            title=f"{POISON_NAMES.get(poison, poison)}, {alpha} %",
            ylabel=f"{PART_NAMES[part]}\nabove nothing".replace("accuracy on", "accuracy on\n"),
        )
    plt.gcf().set_figwidth(plt.gcf().get_figwidth() * 1.4)
    text = (f"differences paired by run, mean of n = {count_of_runs(results)} runs and its 95 % bootstrap interval; "
            "found: as many samples as confident learning counts, no true label is read")  # fmt: skip
    return finished(text, results, legend=True)


# ---- a device ----


def devices(results: xr.Dataset) -> plt.Figure:
    """Validation accuracy of circuits against their noise, a mark for each number of shots."""
    noises, trained = (results[name].to_series() for name in ("noise", "trained"))
    order = {name: (trained[name] != "exact", noises[name] != "none", noises[name]) for name in noises.index}
    models = sorted(order, key=order.get)
    names = [noises[name].replace(",", "\n") + ("\n" + trained[name]) * (trained[name] != "exact") for name in models]
    counts = results.shots.values
    for axis, alpha in panels_for(results.alpha_percent.values, "", "validation accuracy"):
        for place, shots in enumerate(counts):
            own = results.accuracy.sel(alpha_percent=alpha, shots=shots)
            runs = {i: own.sel(model=name).dropna("run").values for i, name in enumerate(models)}
            runs = {i: each for i, each in runs.items() if len(each)}
            x = np.array(list(runs)) + 0.5 * (place / max(len(counts) - 1, 1) - 0.5)
            ends = np.array([metrics.bootstrap_interval(each) for each in runs.values()]).reshape(-1, 2).T
            colour, label = mixed(PALETTE[1], "black", place / len(counts)), f"{shots} shots" if shots else "exact"
            axis.vlines(x, *ends, color=colour, linewidth=1)
            means = [each.mean() for each in runs.values()]
            axis.plot(x, means, MARKERS[place], color=colour, markersize=4, label=label)
        axis.set_xticks(range(len(models)), labels=names, fontsize=6)
        axis.set_title(f"{alpha} % of the labels flipped")
    plt.gcf().set_figwidth(plt.gcf().get_figwidth() * 1.3)
    text = (f"mean of n = {count_of_runs(results)} runs and its 95 % bootstrap interval; trained with exactly computed "
            "noise, or from shots where that is said, and read with shots; preparing the states is taken to be without "
            "noise, and would take far more gates than the circuit")  # fmt: skip
    return finished(text, results, legend=True)


def presets(*sweeps: xr.Dataset) -> plt.Figure | None:
    """`presets_side_by_side` of the noise sweeps under PRESET_NAMES."""
    return presets_side_by_side(dict(zip(PRESET_NAMES, sweeps, strict=True)))
