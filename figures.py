"""One function per figure, from result files alone.

    python figures.py results        # redraw every figure below the folder, beside its data

Each function takes a study as `storage.read_dataset` gives it and returns a matplotlib Figure, or None where the study
holds nothing of the kind. What a model is comes from the file's coordinates family and size, what a method is called
from title; those that a user added are drawn beside the others.
"""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import sys
import textwrap
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

import metrics
import storage
from checks import any_terminal
from tables import count_of_runs, method_titles, one_of_each_family, ordered

PALETTE = sns.color_palette("colorblind")
FAMILY_STYLE = {  # colour, line and marker of each kind of model, in all figures; methods have colours of their own
    "MLP": (PALETTE[0], "-", "o"),
    "QNN": (PALETTE[1], "--", "s"),
    "Logistic": (PALETTE[9], ":", "D"),
    "Quadratic": (PALETTE[5], "-.", "^"),
}
METHOD_STYLE = {  # colour and line of each method
    "retrain": ("0.15", "-"),
    "cf": (PALETTE[2], "--"),
    "scrub": (PALETTE[4], "-."),
    "ga": (PALETTE[3], ":"),
}
SPARE_STYLE = (PALETTE[6], (0, (1, 3)), "v")  # of families that a user added
SPARE_COLOURS = (PALETTE[7], PALETTE[8], PALETTE[6], PALETTE[5], PALETTE[9], PALETTE[0])  # of methods, in turn
SPARE_LINES = ((0, (1, 3)), (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (8, 2, 2, 2)), "-")
LABEL_COLOURS = ("0.3", PALETTE[8])  # of the two classes
POISON_NAMES = {"labels": "flipped labels", "features": "randomised features", "none": "no poison"}
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
PRESET_NAMES = {"paper": "published choices", "corrected": "corrected choices"}
MOST_BANDS = 4  # lines of one panel; the bands of more hide each other
MARKERS = "osD^vPX*<>"
PANEL = (3.3, 2.5)  # inches: a panel is readable at a print column's width
ALPHA_LABEL = "flipped share of the training labels α (%)"


def model_styles(results: xr.Dataset, models: Iterable[str]) -> dict[str, tuple]:
    """Colour, line and marker of each of these models, by its family; of several the later are darker."""
    of_model = {model: FAMILY_STYLE.get(_family(results, model), SPARE_STYLE) for model in models}
    styles = dict(of_model)
    for style in dict.fromkeys(of_model.values()):
        alike = [model for model in of_model if of_model[model] == style]
        shares = np.linspace(-0.5, 0.6, len(alike)) if len(alike) > 2 else (0, 0.45)
        for place, (model, share) in enumerate(zip(alike, shares, strict=False)):
            colour = _mixed(style[0], "white" if share < 0 else "black", abs(share))
            styles[model] = (colour, style[1], MARKERS[(MARKERS.index(style[2]) + 3 * place) % len(MARKERS)])
    return styles


def method_styles(results: xr.Dataset) -> dict[str, tuple]:
    """Colour and line of each method of a study, in reading order."""
    spare = zip(itertools.cycle(SPARE_COLOURS), itertools.cycle(SPARE_LINES), strict=False)
    return {name: METHOD_STYLE.get(name) or next(spare) for name in ordered(results, "unlearner")}


def _mixed(colour, towards, share: float) -> tuple:
    left, right = (np.array(matplotlib.colors.to_rgb(each)) for each in (colour, towards))
    return tuple((1 - share) * left + share * right)


def use_style() -> None:
    """Seaborn's styling, set in this one place."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=0.95)
    plt.rcParams.update({"figure.dpi": 110, "axes.spines.top": False, "axes.spines.right": False,
                         "figure.constrained_layout.use": True, "pdf.fonttype": 42})  # fmt: skip


# ---- noise sweep ----


def noise_sweep(results: xr.Dataset) -> Figure:
    """Train and validation accuracy against the poisoned share: a row for each model, a column for each poison.

    Only models that were given all the poisons of the file. The counterpart of arXiv:2508.02422, Fig. 2c and 2d.
    """
    poisons, every, rows = ordered(results, "poison"), ordered(results, "model"), _rows(results)
    models = [model for model in every if all((model, poison) in rows for poison in poisons)] or every
    figure, axes = _panels(len(models), len(poisons))
    for row, model in zip(axes, models, strict=True):
        ((colour, _, _),) = model_styles(results, [model]).values()
        for axis, poison in zip(row, poisons, strict=True):
            for split, style in {"train": ("0.6", "--", "s"), "validation": (colour, "-", "o")}.items():
                _against_alpha(axis, results.accuracy.sel(model=model, poison=poison, split=split), style, split)
            axis.set(title=f"{model}, {_poison_name(poison)}")
            axis.legend(frameon=False, loc="lower left")
        row[0].set_ylabel("accuracy")
    for axis in axes[-1]:
        axis.set_xlabel("poisoned share of the training set α (%)")
    others = ", ".join(model for model in every if model not in models)
    left_out = f"; not drawn, given fewer poisons: {others}" if others else ""
    return _caption(figure, results, f"train: against the labels trained on; {_band_words(results)}{left_out}")


def presets_side_by_side(by_preset: dict[str, xr.Dataset]) -> Figure | None:
    """Validation accuracy against the share of flipped labels, a panel for each preset, a line for each model.

    by_preset: the noise sweeps by the names of their presets. Of several MLPs the largest, of QNNs the smallest.
    """
    if not all(map(_flipped, by_preset.values())):
        return None
    figure, axes = _panels(1, len(by_preset))
    for axis, (preset, results) in zip(axes[0], by_preset.items(), strict=True):
        for model, style in model_styles(results, one_of_each_family(results, _flipped(results))).items():
            _against_alpha(axis, results.accuracy.sel(model=model, poison="labels", split="validation"), style, model)
        axis.set(title=f"{PRESET_NAMES.get(preset, preset)}, n = {count_of_runs(results)}", xlabel=ALPHA_LABEL)
    axes[0, 0].set_ylabel("validation accuracy")
    _legend_beside(figure)
    return _caption(figure, by_preset.values(), "mean of n runs, band: ± 1 standard deviation")


def model_sizes(results: xr.Dataset) -> Figure | None:
    """Validation accuracy against the share of flipped labels, a panel for each family, large models dark.

    Logistic regression stands beside MLPs, the quadratic form beside circuits.
    """
    groups: dict[str, list[str]] = {"MLP": [], "QNN": []}
    for model in _flipped(results):
        family = _family(results, model)
        groups.setdefault({"Logistic": "MLP", "Quadratic": "QNN"}.get(family, family), []).append(model)
    groups = {name: models for name, models in groups.items() if len(models) > (name not in ("MLP", "QNN"))}
    if not groups:
        return None
    figure, axes = _panels(1, len(groups))
    for axis, models in zip(axes[0], groups.values(), strict=True):
        for model, style in model_styles(results, models).items():
            curve = results.accuracy.sel(model=model, poison="labels", split="validation")
            _against_alpha(axis, curve, style, model, bands=len(models) <= MOST_BANDS)
        axis.set(xlabel=ALPHA_LABEL)
        axis.legend(frameon=False, loc="lower left")
    axes[0, 0].set_ylabel("validation accuracy")
    return _caption(figure, results, _band_words(results, max(map(len, groups.values()))))


def gauge_control(results: xr.Dataset) -> Figure:
    """Validation accuracy against the share of flipped labels under each gauge, a line for each model and gauge."""
    figure, axes = _panels(1, 1)
    free = []
    for model, (colour, line, marker) in model_styles(results, ordered(results, "model")).items():
        held = [str(gauge) for gauge in results.accuracy.sel(model=model).dropna("gauge", how="all").gauge.values]
        alone = len(held) == 1 < results.sizes["gauge"]
        free += [model] * alone
        for gauge in held:
            towards, share, own_line, own_marker = GAUGE_STYLE.get(gauge, ("white", 0.7, *SPARE_STYLE[1:]))
            style = (colour, line, marker) if alone else (_mixed(colour, towards, share), own_line, own_marker)
            label = f"{model}, {'any gauge' if alone else gauge.replace('_', ' ')}"
            _against_alpha(axes[0, 0], results.accuracy.sel(model=model, gauge=gauge, split="validation"), style, label)
    axes[0, 0].set(xlabel=ALPHA_LABEL, ylabel="validation accuracy")
    _legend_beside(figure)
    text = _band_words(results) + "; the same flips, first parameters and batches under each gauge"
    once = f". {' and '.join(free)}: trained once, what it reads is the same under all gauges" if free else ""
    return _caption(figure, results, text + once)


# ---- data ----


def xxz_spectrum(results: xr.Dataset) -> Figure | None:
    """Ground-state energy per site and gap of the XXZ ring against the coupling, the samples marked below.

    None where the data are no spin ring.
    """
    if "gap" not in results:
        return None
    figure, axes = _panels(1, 2)
    for axis, (variable, name) in zip(
        axes[0], {"energy_per_site": "energy per site", "gap": "gap"}.items(), strict=True
    ):
        axis.axvline(1, color="0.4", linestyle="--", linewidth=0.8)
        axis.plot(results.delta, results[variable], "o", color="black", markersize=1.6, markeredgewidth=0)
        low, high = axis.get_ylim()
        axis.set(xlabel="coupling Δ", ylabel=name, ylim=(low - 0.25 * (high - low), high))  # room for the marks
        _mark_samples(axis, results, "is_train", 0.11, "0.6", "training")
        _mark_samples(axis, results, "is_val", 0.03, "0.15", "validation")
    text = (
        f"XXZ ring of {json.loads(results.attrs['data'])['n_sites']} sites in units of its exchange (Pauli matrices). "
        "Dashed: the transition at Δ = 1, to its left the critical phase (label 0), to its right the antiferromagnetic "
        f"one (label 1). Marks: the {int(results.is_train.sum())} training and {int(results.is_val.sum())} validation "
        "states. Exact diagonalisation, no error bars"
    )
    return _caption(figure, results, text)


def poison_examples(results: xr.Dataset) -> Figure | None:
    """Images before and after each poison, with the labels that they are trained on; None where there are no images."""
    if "image" not in results:
        return None
    use_style()
    poisons, stages, n = ordered(results, "poison"), ("before", "after"), results.sizes["example"]
    rows = [(poison, stage) for poison in poisons for stage in stages]
    figure, axes = plt.subplots(len(rows), n, figsize=(0.9 * n, 1.05 * len(rows) + 0.4), squeeze=False)
    for row, (poison, stage) in zip(axes, rows, strict=True):
        own = results.sel(poison=poison, stage=stage)
        for axis, example in zip(row, results.example.values, strict=True):
            axis.imshow(own.image.sel(example=example), cmap="gray_r")
            axis.set_title(f"label {int(own.image_label.sel(example=example))}", fontsize=7, pad=2)
            axis.set(xticks=[], yticks=[])
            sns.despine(ax=axis, left=True, bottom=True)
        row[0].set_ylabel(f"{_poison_name(poison)},\n{stage}" if stage == "after" else stage, fontsize=7)
    text = "training images and the labels they are trained on, before and after each poison"
    classes = json.loads(results.attrs["data"]).get("digits")
    if classes:
        text += f"; label 0 stands for the digit {classes[0]}, label 1 for {classes[1]}"
    return _caption(figure, results, text)


def poison_embeddings(results: xr.Dataset) -> Figure | None:
    """t-SNE of the training set without poison and with each; None where it was not computed."""
    if "embedding" not in results:
        return None
    versions = ordered(results, "version")
    figure, axes = _panels(1, len(versions))
    for axis, version in zip(axes[0], versions, strict=True):
        own = results.sel(version=version)
        for label, colour in enumerate(LABEL_COLOURS):
            for poisoned, marker in ((0, "o"), (1, "X")):
                chosen = own.embedding.values[(own.label.values == label) & (own.poisoned.values == poisoned)]
                name = f"label {label}" + (", poisoned" if poisoned else "") if len(chosen) else None
                axis.scatter(*chosen.T, s=9 + 12 * poisoned, color=colour, marker=marker, alpha=0.75,
                             linewidths=0.4, edgecolors="black", label=name)  # fmt: skip
        axis.set(title=_poison_name(version), xticks=[], yticks=[], xlabel="t-SNE 1")
    axes[0, 0].set_ylabel("t-SNE 2")
    axes[0, -1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    shown = results.shown_percent.to_series()
    words = " and ".join(f"{shown[version]:g} % {_poison_name(version)}" for version in versions if version != "none")
    text = f"t-SNE of the {results.sizes['sample']} training samples; {words}; crosses: poisoned"
    return _caption(figure, results, text)


def _mark_samples(axis, results: xr.Dataset, mask: str, height: float, colour, name: str) -> None:
    """A row of ticks at a height in axes coordinates, with its name."""
    chosen = results.delta[results[mask].values > 0]
    place = axis.get_xaxis_transform()
    axis.vlines(chosen, height, height + 0.06, color=colour, linewidth=0.7, transform=place)
    axis.text(float(chosen[0]) - 0.03, height + 0.03, name, color=colour, ha="right", va="center", transform=place)
    axis.set_xlim(left=-0.6)


# ---- unlearning ----


def unlearning_curves(results: xr.Dataset) -> Figure | None:
    """Validation and forgetting accuracy against the epoch of unlearning, a row for each model and poison.

    Flipped labels: forgetting accuracy is taken against the poisoned labels (low is good), as published, and
    against the true ones. Randomised features: on the poisoned inputs and on the clean ones, both with the true
    labels. None where all diverged. The counterpart of arXiv:2508.02422, Fig. 3.
    """
    rows = _rows(results)
    if not rows:
        return None
    figure, axes = _panels(len(rows), 3)
    titles, styles = method_titles(results), method_styles(results)
    for row, (model, poison) in zip(axes, rows, strict=True):
        names = FORGET_NAMES.get(poison, OWN_FORGET_NAMES)
        forgetting = {split: f"forgetting accuracy,\n{name}" for split, name in names.items()}
        for axis, (split, name) in zip(row, ({"validation": "validation accuracy"} | forgetting).items(), strict=True):
            own = results.accuracy.sel(model=model, poison=poison, split=split)
            for method, style in styles.items():
                curves = own.sel(unlearner=method).dropna("epoch", how="all").transpose("run", "epoch")
                if curves.size:
                    bands = len(styles) <= MOST_BANDS
                    _band(axis, curves.epoch, curves, (*style, None), titles[method], bands=bands)
            axis.set(ylabel=name, title=f"{model}, {_poison_name(poison)}", ylim=(-0.03, 1.03))
    for axis in axes[-1]:
        axis.set_xlabel("epoch of unlearning")
    _legend_beside(figure)
    return _caption(figure, results, _band_words(results, len(styles)) + _same_runs(results))


def _same_runs(results: xr.Dataset) -> str:
    """A sentence on runs that nothing random tells apart; empty where there are none."""
    config = json.loads(results.attrs["config"])
    held = {str(family).lower() for family in results["family"].values}
    whole = [name.upper() for name in ("mlp", "qnn") if name in held and config[name]["unlearn"]["batch_size"] == 0]
    if config["independent_teachers"] or not whole:
        return ""
    return (
        f". One teacher and full batches: {' and '.join(whole)} runs of all methods but Retrain are the same, "
        "apart from rounding"
    )


# ---- weight maps ----


def weight_maps(results: xr.Dataset) -> Figure | None:
    """Final validation accuracy over each method's weights: a heat map over two of them, a line over one.

    A row for each model and poison, a column for each method. None where all diverged.
    """
    rows, titles, styles = _rows(results), method_titles(results), method_styles(results)
    if not rows:
        return None
    figure, axes = _panels(len(rows), len(titles))
    means = results.accuracy.mean("run")
    limits = np.floor(20 * float(means.min())) / 20, np.ceil(20 * float(means.max())) / 20  # to .05, in all panels
    crossed = False
    for row, (model, poison) in zip(axes, rows, strict=True):
        for axis, (method, title) in zip(row, titles.items(), strict=True):
            own = results.sel(model=model, poison=poison, unlearner=method)
            own = own.dropna("first", how="all", subset=["accuracy"]).dropna("second", how="all", subset=["accuracy"])
            names = [WEIGHT_NAMES.get(name.item(), name.item()) for name in (own.first_name, own.second_name)]
            axis.set(xlabel=names[0], ylabel=names[1] or "validation accuracy")
            axis.set_title(f"{title}\n{model}, {_poison_name(poison)}")
            if not own.accuracy.size:
                axis.set_axis_off()
            elif names[1]:
                crossed |= _heat_map(axis, own, limits)
            else:
                line = own.accuracy.isel(second=0).transpose("run", "first")
                _band(axis, line["first"], line, (*styles[method], "o"))
                axis.set_ylim(-0.03, 1.03)
    words = ", cross: weights of the unlearning curves" if crossed else ""
    return _caption(figure, results, f"heat map: mean{words}; line: {_band_words(results)}")


def _heat_map(axis, own: xr.Dataset, limits: tuple[float, float]) -> bool:
    """One method's map, with a cross at the weights of its unlearning curves; whether it holds those."""
    cells = own.accuracy.mean("run").transpose("second", "first")
    image = axis.imshow(cells, vmin=limits[0], vmax=limits[1], cmap="cividis", origin="lower", aspect="auto")
    axis.figure.colorbar(image, ax=axis, label="validation accuracy")
    x, y = ([f"{weight:g}" for weight in cells[dim].values] for dim in ("first", "second"))
    axis.set(xticks=range(len(x)), xticklabels=x, yticks=range(len(y)), yticklabels=y)
    sns.despine(ax=axis, left=True, bottom=True)
    cross = [np.flatnonzero(np.isclose(cells[dim], own[f"{dim}_default"])) for dim in ("first", "second")]
    if not all(map(len, cross)):
        return False
    axis.plot(*cross, "x", color="white", markersize=6, markeredgewidth=1.4)
    return True


# ---- landscape ----


def hessian_traces(results: xr.Dataset) -> Figure | None:
    """Trace of the Hessian over the median trace without poison: a dot for each run, a bar for median and interval.

    None where all diverged. The counterpart of arXiv:2508.02422, Fig. 4.
    """
    models = _landscape_models(results)
    if not models:
        return None
    figure, axes = _panels(1, 1)
    axis, alphas = axes[0, 0], results.alpha_percent.values
    width = 0.8 / len(models)
    generator = np.random.default_rng(0)  # scatters the dots sideways
    for place, (model, (colour, _, marker)) in enumerate(model_styles(results, models).items()):
        own = results.sel(model=model)
        clean = float(own.trace.isel(alpha_percent=0).median())
        for at, alpha in enumerate(alphas):
            runs = own.sel(alpha_percent=alpha).dropna("run", subset=["trace"])
            ratios, dead = runs.trace.values / clean, runs.dead.values > 0
            centre = at + (place - (len(models) - 1) / 2) * width
            x = centre + width * generator.uniform(-0.25, 0.25, len(ratios))
            axis.plot(x[~dead], ratios[~dead], marker, color=colour, markersize=3, alpha=0.7, label="" if at else model)
            axis.plot(x[dead], ratios[dead], marker, color=colour, markersize=4.5, fillstyle="none")
            if len(ratios):
                ends = centre - 0.35 * width, centre + 0.35 * width
                axis.vlines(centre, *metrics.bootstrap_interval(ratios, np.median), color="black", linewidth=0.9)
                axis.hlines(np.median(ratios), *ends, color="black", linewidth=1.4)
    axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axis.set(yscale="log", xlabel=ALPHA_LABEL, xticks=range(len(alphas)),
             xticklabels=[str(alpha) for alpha in alphas],
             ylabel=f"trace of the Hessian\nover its median at α = {alphas[0]} %")  # fmt: skip
    figure.set_figwidth(1.4 * PANEL[0])
    _legend_beside(figure)
    n_dead = int(results.dead.sum())
    text = (
        f"n = {count_of_runs(results)} runs, a dot each; bars: median and its 95 % bootstrap interval, that at "
        f"α = {alphas[0]} % held fixed. Hollow: {n_dead} run{'s' * (n_dead != 1)} whose network died (its logit is the "
        "same for all images)"
    )
    return _caption(figure, results, text)


def hessian_spectra(results: xr.Dataset) -> Figure | None:
    """Eigenvalues of the Hessian in descending order without poison and with the most of it, a panel for each model.

    None where all diverged.
    """
    models, alphas = _landscape_models(results), results.alpha_percent.values
    if not models:
        return None
    figure, axes = _panels(1, len(models))
    styles = model_styles(results, models)
    limits = float(results.eigenvalues.min()), float(results.eigenvalues.max())
    for axis, model in zip(axes[0], models, strict=True):
        for alpha, colour in ((alphas[0], "0.45"), (alphas[-1], styles[model][0])):
            spectra = results.eigenvalues.sel(model=model, alpha_percent=alpha).dropna("rank", how="all")
            rank = spectra["rank"].values + 1
            axis.plot(rank, spectra.transpose("rank", "run").values, color=colour, linewidth=0.4, alpha=0.35)
            axis.plot(rank, spectra.median("run").values, color=colour, linewidth=1.5, label=f"α = {alpha} %")
        axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.set(title=model, xscale="log", xlabel="rank")
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.set_ylim(2 * limits[0], 2 * limits[1])
        axis.legend(frameon=False)
    axes[0, 0].set_ylabel("eigenvalue")
    text = (
        f"thin: each of n = {count_of_runs(results)} runs, thick: their median at each rank. Exact; of a network, the "
        "directions that no image reaches, in which the loss is flat, are left out"
    )
    return _caption(figure, results, text)


def loss_slices(results: xr.Dataset) -> Figure | None:
    """The loss on planes through trained models, clean beside poisoned; None where there are no slices."""
    if "slice_loss" not in results:
        return None
    results = results.assign(slice_loss=results.slice_loss.where(np.isfinite(results.slice_loss)))
    sliced = results.slice_loss.dropna("alpha_percent", how="all")
    models = [model for model in _landscape_models(results) if sliced.sel(model=model).notnull().any()]
    if not models:
        return None
    alphas = sliced.alpha_percent.values
    names = {"random": "random", "eigenvectors": "top eigenvectors"}
    use_style()
    size = 1.65 * len(names) * len(alphas) + 1.6, 1.75 * len(models) + 0.6
    figure, axes = plt.subplots(len(models), len(names) * len(alphas), figsize=size, squeeze=False)
    for axis, (name, alpha) in zip(axes[0], itertools.product(names.values(), alphas), strict=True):
        axis.set_title(f"{name}\nα = {alpha} %", fontsize=8)
    for row, model in zip(axes, models, strict=True):
        row[0].set_ylabel(model)
        for direction, own in zip(names, np.split(row, len(names)), strict=True):
            _slices_of_model(figure, own, results.sel(model=model, direction=direction, alpha_percent=alphas))
    text = (
        "one run of each, cross: its trained parameters; loss on the images of the Hessian. Random directions are in "
        "units of the filters' norms for a network and of 1 rad root mean square for a circuit, eigenvectors (of the "
        "two largest eigenvalues) in Euclidean length"
    )
    return _caption(figure, results, text)


def _slices_of_model(figure: Figure, axes: np.ndarray, slices: xr.Dataset) -> None:
    """The slices of one model along one pair of directions, in the same colours, with their bar."""
    low, high = slices.slice_loss.min().item(), slices.slice_loss.max().item()
    if not np.isfinite(low):  # diverged
        for axis in axes:
            axis.set(xticks=[], yticks=[])
        return
    levels = np.geomspace(max(low, 1e-3), max(high, 2e-3), 16)
    norm = matplotlib.colors.LogNorm(levels[0], levels[-1])
    for axis, alpha in zip(axes, slices.alpha_percent.values, strict=True):
        own = slices.sel(alpha_percent=alpha)
        plane = np.clip(own.slice_loss.transpose("second", "first").values, levels[0], levels[-1])
        offsets = np.linspace(-own.slice_radius.item(), own.slice_radius.item(), len(plane))
        drawn = axis.contourf(offsets, offsets, plane, levels=levels, cmap="cividis", norm=norm)
        axis.plot(0, 0, "+", color="white", markersize=6)
        axis.set(aspect="equal")
    ticks = matplotlib.ticker.LogLocator(subs=(1,) if levels[-1] > 100 * levels[0] else (1, 2, 5))
    bar = figure.colorbar(drawn, ax=list(axes), label="loss (nats)", ticks=ticks, format="%g", shrink=0.8)
    bar.minorticks_off()


def _landscape_models(results: xr.Dataset) -> list[str]:
    """The models in reading order; none that diverged without poison."""
    clean = results.trace.sel(alpha_percent=results.alpha_percent[0])
    return [model for model in ordered(results, "model") if clean.sel(model=model).notnull().any()]


# ---- parts ----


def _panels(n_rows: int, n_columns: int) -> tuple[Figure, np.ndarray]:
    use_style()
    width, height = PANEL
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(width * n_columns, height * n_rows + 0.3), squeeze=False)
    return figure, axes


def _against_alpha(axis, runs: xr.DataArray, style: tuple, label: str | None, *, bands: bool = True) -> None:
    """An accuracy (alpha_percent, run) against the poisoned share, where there is any."""
    runs = runs.dropna("alpha_percent", how="all").transpose("run", "alpha_percent")
    _band(axis, runs.alpha_percent, runs, style, label, bands=bands)
    axis.set_ylim(-0.03, 1.03)


def _band(
    axis, x: xr.DataArray, runs: xr.DataArray, style: tuple, label: str | None = None, *, bands: bool = True
) -> None:
    """Mean over the leading run axis with a band of one standard deviation, as far as accuracies go."""
    colour, line, marker = style
    mean = runs.mean("run").values
    axis.plot(x.values, mean, color=colour, linestyle=line, marker=marker, markersize=3.5, label=label)
    if bands and runs.sizes["run"] > 1:
        deviation = runs.std("run", ddof=1).values
        low, high = np.clip([mean - deviation, mean + deviation], 0, 1)
        axis.fill_between(x.values, low, high, color=colour, alpha=0.2, linewidth=0)


def _band_words(results: xr.Dataset, most_lines: int = 1) -> str:
    n = count_of_runs(results)
    none = f"; no bands where there are more than {MOST_BANDS} lines" if most_lines > MOST_BANDS else ""
    return "n = 1 run" if n == "1" else f"mean of n = {n} runs, band: ± 1 standard deviation{none}"


def _legend_beside(figure: Figure) -> None:
    """One legend for all panels, to their right: each label once."""
    found: dict[str, object] = {}
    for axis in figure.axes:
        found = dict(zip(*axis.get_legend_handles_labels()[::-1], strict=True)) | found
    figure.legend(found.values(), found.keys(), frameon=False, loc="outside right upper")
    figure.set_figwidth(figure.get_figwidth() + 0.4 + 0.065 * max(map(len, found), default=0))


def _caption(figure: Figure, results: xr.Dataset | Iterable[xr.Dataset], text: str) -> Figure:
    """The text, and how many trainings of the study or studies diverged, below the figure."""
    studies = [results] if isinstance(results, xr.Dataset) else results
    diverged = sum(int(study.diverged.sum()) for study in studies if "diverged" in study)
    text += f"; {diverged} trainings that diverged are left out" if diverged else ""
    lines = textwrap.wrap(text, int(18 * figure.get_figwidth()))  # characters of this size to the inch
    figure.set_figheight(figure.get_figheight() + 0.14 * (len(lines) - 1))
    figure.supxlabel("\n".join(lines), fontsize=7.5, color="0.3")
    return figure


def _flipped(results: xr.Dataset) -> list[str]:
    return [model for model, poison in _rows(results) if poison == "labels"]


def _rows(results: xr.Dataset) -> list[tuple[str, str]]:
    """The pairs of model and poison that the study holds."""
    places = itertools.product(ordered(results, "model"), ordered(results, "poison"))
    held = results.accuracy.notnull()
    return [(model, poison) for model, poison in places if held.sel(model=model, poison=poison).any()]


def _family(results: xr.Dataset, model: str) -> str:
    return str(results["family"].sel(model=model).item())


def _poison_name(poison: str) -> str:
    return POISON_NAMES.get(poison, poison)


# ---- files ----


def image(figure: Figure):
    """The figure as an image that a notebook shows; the figure is closed."""
    from IPython.display import Image

    content = _png(figure, dpi=110)
    plt.close(figure)
    return Image(content)


def _png(figure: Figure, *, dpi: int) -> bytes:
    """The figure in 256 colours, a third of the size: figures and notebooks are kept in git."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png", dpi=dpi)
    PIL.Image.open(full).convert("RGB").quantize(256, dither=PIL.Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


FIGURES: dict[str, tuple[Callable[..., Figure | None], tuple[str, ...]]] = {  # file name: function, its studies
    "spectrum": (xxz_spectrum, ("data",)),
    "noise_sweep": (noise_sweep, ("noise_sweep",)),
    "model_sizes": (model_sizes, ("noise_sweep",)),
    "unlearning": (unlearning_curves, ("unlearning",)),
    "weight_map": (weight_maps, ("weight_map",)),
    "gauge": (gauge_control, ("gauge",)),
    "poison_examples": (poison_examples, ("data",)),
    "poison_embeddings": (poison_embeddings, ("data",)),
    "hessian_traces": (hessian_traces, ("landscape",)),
    "hessian_spectra": (hessian_spectra, ("landscape",)),
    "loss_slices": (loss_slices, ("landscape",)),
    "presets": (
        lambda *sweeps: presets_side_by_side(dict(zip(PRESET_NAMES, sweeps, strict=True))),
        tuple(f"{preset}/noise_sweep" for preset in PRESET_NAMES),
    ),
}


def save_all(folder: str | Path) -> list[Path]:
    """Draw every study in the folder as PNG and PDF beside its data; returns the paths of the PNGs.

    In the folder of a data set that is `presets`. A figure that fails is named on stderr, and the others follow.
    """
    return [path for path in _save_all(Path(folder)) if path]


def _save_all(folder: Path) -> list[Path | None]:
    """As `save_all`, with None for each figure that failed. A full disk fails all of them, and is raised."""
    matplotlib.use("Agg")  # files need no screen
    paths: list[Path | None] = []
    for name, (draw, studies) in FIGURES.items():
        files = [folder / f"{study}.nc" for study in studies]
        if not all(path.is_file() for path in files):
            continue
        try:
            figure = draw(*map(storage.read_dataset, files))
            paths += [_save(figure, folder, name)] if figure else []
        except OSError:
            raise
        except Exception as error:
            print(f"no figure {folder / name}: {type(error).__name__}: {error}", file=sys.stderr)
            paths.append(None)
        plt.close("all")
    return paths


def _save(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure as PNG and PDF; returns the path of the PNG."""
    with storage.replacing(folder / f"{name}.png") as temporary:
        temporary.write_bytes(_png(figure, dpi=200))
    figure.set_layout_engine("none")  # laid out once is enough
    with storage.replacing(folder / f"{name}.pdf") as temporary:
        figure.savefig(temporary, format="pdf")
    return folder / f"{name}.png"


@any_terminal()
def main() -> int:
    folder = storage.folder_argument(__doc__)
    below = storage.result_folders(folder)
    drawn: list[Path | None] = []
    try:
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:  # JAX is not to be forked
            for paths in pool.map(_save_all, [*below, *sorted({path.parent for path in below})]):
                print(*filter(None, paths), sep="\n")
                drawn += paths
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 2 if None in drawn else 0


if __name__ == "__main__":
    sys.exit(main())
