"""One function per figure, from result files alone.

    python figures.py results        # redraw every figure below the folder, beside its data

Each function takes a study as `storage.read_dataset` gives it and returns a matplotlib Figure.
"""

from __future__ import annotations

import io
import json
import re
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

import storage

PALETTE = sns.color_palette("colorblind")
FAMILY_STYLE = {  # colour, line and marker of each kind of model, in all figures; methods have colours of their own
    "MLP": (PALETTE[0], "-", "o"),
    "QNN": (PALETTE[1], "--", "s"),
    "Logistic": (PALETTE[9], ":", "D"),
    "Quadratic": (PALETTE[5], "-.", "^"),
}
SPARE_STYLE = (PALETTE[7], (0, (1, 3)), "v")  # of models and methods that a user added
METHOD_STYLE = {  # colour and line of each method
    "retrain": ("0.15", "-"),
    "cf": (PALETTE[2], "--"),
    "scrub": (PALETTE[4], "-."),
    "ga": (PALETTE[3], ":"),
}
METHOD_NAMES = {"retrain": "Retrain", "cf": "Fine-tune", "scrub": "Scrub", "ga": "Gradient ascent"}
LABEL_COLOURS = ("0.3", PALETTE[8])  # of the two classes
POISON_NAMES = {"labels": "flipped labels", "features": "randomised features"}
FORGET_NAMES = {  # what the two forgetting accuracies are, for each poison
    "labels": {"forget_poisoned": "poisoned labels", "forget_clean": "true labels"},
    "features": {"forget_poisoned": "poisoned inputs, true labels", "forget_clean": "clean inputs, true labels"},
}
GAUGE_STYLE = {  # towards what the model's colour is mixed, line and marker under each gauge
    "fixed": ((0, 0, 0), 0.0, "-", "o"),
    "random_sign": ((1, 1, 1), 0.45, "-.", "^"),
    "random_phase": ((0, 0, 0), 0.6, ":", "D"),
}
PRESET_NAMES = {"paper": "published choices", "corrected": "corrected choices"}
MOST_BANDS = 4  # lines of one panel; the bands of more hide each other
MARKERS = "osD^vPX*<>"
PANEL = (3.3, 2.5)  # inches: a panel is readable at a print column's width


def family_style(model: str) -> tuple:
    """Colour, line and marker of a model, by its kind."""
    return FAMILY_STYLE.get(model.split("[")[0], SPARE_STYLE)


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
    poisons, models = _labels(results, "poison"), _labels(results, "model")
    models = [model for model in models if all(_holds(results, model, poison) for poison in poisons)] or models
    figure, axes = _panels(len(models), len(poisons))
    for row, model in zip(axes, models, strict=True):
        colour, _, _ = family_style(model)
        for axis, poison in zip(row, poisons, strict=True):
            for split, style in {"train": ("0.6", "--", "s"), "validation": (colour, "-", "o")}.items():
                curve = results.accuracy.sel(model=model, poison=poison, split=split).dropna("alpha_percent", how="all")
                _band(axis, curve.alpha_percent, curve.transpose("run", ...), *style[:2], split, marker=style[2])
            axis.set(title=f"{model}, {POISON_NAMES[poison]}", ylim=(-0.03, 1.03))
            axis.legend(frameon=False, loc="lower left")
        row[0].set_ylabel("accuracy")
    for axis in axes[-1]:
        axis.set_xlabel("poisoned share of the training set α (%)")
    return _caption(figure, results, "train: against the labels trained on; " + _band_words(results))


def presets_side_by_side(by_preset: dict[str, xr.Dataset]) -> Figure:
    """Validation accuracy against the share of flipped labels, a panel for each preset, a line for each model.

    by_preset: the noise sweeps by the names of their presets. Of several MLPs the largest is drawn.
    """
    figure, axes = _panels(1, len(by_preset))
    named: set[str] = set()
    for axis, (preset, results) in zip(axes[0], by_preset.items(), strict=True):
        for model in _one_of_each_family(results):
            curve = results.accuracy.sel(model=model, poison="labels", split="validation")
            curve = curve.dropna("alpha_percent", how="all")
            colour, line, marker = family_style(model)
            label = None if model in named else model
            _band(axis, curve.alpha_percent, curve.transpose("run", ...), colour, line, label, marker=marker)
            named.add(model)
        axis.set(title=f"{PRESET_NAMES.get(preset, preset)}, n = {results.sizes['run']}", ylim=(-0.03, 1.03),
                 xlabel="flipped share of the training labels α (%)")  # fmt: skip
    axes[0, 0].set_ylabel("validation accuracy")
    figure.legend(frameon=False, loc="outside right upper")
    figure.set_figwidth(figure.get_figwidth() + 1.3)
    return _caption(figure, by_preset.values(), "mean of n runs, band: ± 1 standard deviation")


def _one_of_each_family(results: xr.Dataset) -> list[str]:
    """The models whose labels were flipped: the largest MLP, the shallowest QNN, and the controls."""
    held = [model for model in _labels(results, "model") if _holds(results, model, "labels")]
    mlps = sorted((model for model in held if model.startswith("MLP")), key=_size)[-1:]
    qnns = sorted((model for model in held if model.startswith("QNN")), key=_size)[:1]
    return [*mlps, *qnns, *(model for model in held if not model.startswith(("MLP", "QNN")))]


def model_sizes(results: xr.Dataset) -> Figure | None:
    """Validation accuracy against the share of flipped labels, one line for each MLP and each QNN, large ones dark.

    Logistic regression counts as the smallest MLP, the quadratic form as a circuit. None where no labels were flipped.
    """
    models = [model for model in _labels(results, "model") if _holds(results, model, "labels")]
    prefixes = {"MLP": ("MLP", "Logistic"), "QNN": ("QNN", "Quadratic")}
    families = {name: [model for model in models if model.startswith(prefix)] for name, prefix in prefixes.items()}
    families = {name: sorted(members, key=_size, reverse=True) for name, members in families.items() if members}
    if not families:
        return None
    figure, axes = _panels(1, max(len(families), 1))
    for axis, (name, members) in zip(axes[0], families.items(), strict=False):
        shades = sns.color_palette("blend:#08306b,#9ecae1" if name == "MLP" else "blend:#7f2704,#fdae61", len(members))
        for model, shade, marker in zip(members, shades, MARKERS, strict=False):
            curve = results.accuracy.sel(model=model, poison="labels", split="validation")
            curve = curve.dropna("alpha_percent", how="all")
            shaded = model.startswith(name) and len(members) > 1
            colour, line = (shade, "-") if shaded else family_style(model)[:2]
            runs = curve.transpose("run", ...) if len(members) <= MOST_BANDS else curve.mean("run").expand_dims("run")
            _band(axis, curve.alpha_percent, runs, colour, line, model, marker=marker)
        axis.set(ylim=(-0.03, 1.03), xlabel="flipped share of the training labels α (%)")
        axis.legend(frameon=False, loc="lower left")
    axes[0, 0].set_ylabel("validation accuracy")
    crowded = f"; no bands where there are more than {MOST_BANDS} lines"
    none = crowded if max(map(len, families.values())) > MOST_BANDS else ""
    return _caption(figure, results, _band_words(results) + none)


def _size(model: str) -> list[int]:
    """Widths or depth out of a model's label, to sort by."""
    return [int(number) for number in re.findall(r"\d+", model)]


def gauge_control(results: xr.Dataset) -> Figure:
    """Validation accuracy of the MLP against the share of flipped labels under each gauge, and of the QNN."""
    figure, axes = _panels(1, 1)
    axis = axes[0, 0]
    for model in _labels(results, "model"):
        quantum = model.startswith("QNN")
        for gauge, (towards, share, line, marker) in GAUGE_STYLE.items():
            if gauge not in results.gauge or not results.accuracy.sel(model=model, gauge=gauge).notnull().any():
                continue
            curve = results.accuracy.sel(model=model, gauge=gauge, split="validation")
            curve = curve.dropna("alpha_percent", how="all").transpose("run", ...)
            own, own_line, own_marker = family_style(model)
            colour = tuple((1 - share) * np.array(matplotlib.colors.to_rgb(own)) + share * np.array(towards))
            label = f"{model}, any gauge" if quantum else f"{model}, {gauge.replace('_', ' ')}"
            line, marker = (own_line, own_marker) if quantum else (line, marker)
            _band(axis, curve.alpha_percent, curve, colour, line, label, marker=marker)
    axis.set(ylim=(-0.03, 1.03), xlabel="flipped share of the training labels α (%)", ylabel="validation accuracy")
    figure.legend(frameon=False, loc="outside right upper")
    figure.set_figwidth(1.7 * PANEL[0])
    text = _band_words(results) + "; the same flips, first parameters and batches under each gauge"
    if any(model.startswith("QNN") for model in _labels(results, "model")):
        text += ". The QNN was trained once: what it reads is the same under all gauges"
    return _caption(figure, results, text)


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
    poisons, stages, n = _labels(results, "poison"), ("before", "after"), results.sizes["example"]
    rows = [(poison, stage) for poison in poisons for stage in stages]
    figure, axes = plt.subplots(len(rows), n, figsize=(0.9 * n, 1.05 * len(rows) + 0.4), squeeze=False)
    for row, (poison, stage) in zip(axes, rows, strict=True):
        own = results.sel(poison=poison, stage=stage)
        for axis, example in zip(row, results.example.values, strict=True):
            axis.imshow(own.image.sel(example=example), cmap="gray_r")
            axis.set_title(f"label {int(own.image_label.sel(example=example))}", fontsize=7, pad=2)
            axis.set(xticks=[], yticks=[])
            sns.despine(ax=axis, left=True, bottom=True)
        row[0].set_ylabel(f"{POISON_NAMES[poison]},\n{stage}" if stage == "after" else stage, fontsize=7)
    digits = json.loads(results.attrs["data"])["digits"]
    text = (
        "training images and the labels they are trained on, before and after each poison; label 0 stands for the "
        f"digit {digits[0]}, label 1 for {digits[1]}"
    )
    return _caption(figure, results, text)


def poison_embeddings(results: xr.Dataset) -> Figure | None:
    """t-SNE of the training set without poison and with each; None where it was not computed."""
    if "embedding" not in results:
        return None
    versions = [version for version in ("none", *POISON_NAMES) if version in results.version]
    figure, axes = _panels(1, len(versions))
    for axis, version in zip(axes[0], versions, strict=True):
        own = results.sel(version=version)
        for label, colour in enumerate(LABEL_COLOURS):
            for poisoned, marker in ((0, "o"), (1, "X")):
                chosen = own.embedding.values[(own.label.values == label) & (own.poisoned.values == poisoned)]
                name = f"label {label}" + (", poisoned" if poisoned else "") if len(chosen) else None
                axis.scatter(*chosen.T, s=9 + 12 * poisoned, color=colour, marker=marker, alpha=0.75,
                             linewidths=0.4, edgecolors="black", label=name)  # fmt: skip
        axis.set(title=POISON_NAMES.get(version, "no poison"), xticks=[], yticks=[], xlabel="t-SNE 1")
    axes[0, 0].set_ylabel("t-SNE 2")
    axes[0, -1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    shares = json.loads(results.attrs["chunks"])["poison"]["identity"]["poison_alphas"]
    words = " and ".join(f"{shares[poison]} % {POISON_NAMES[poison]}" for poison in versions if poison in shares)
    return _caption(
        figure, results, f"t-SNE of the {results.sizes['sample']} training samples; {words}; crosses: poisoned"
    )


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
    for row, (model, poison) in enumerate(rows):
        forgetting = {split: f"forgetting accuracy,\n{name}" for split, name in FORGET_NAMES[poison].items()}
        columns = {"validation": "validation accuracy"} | forgetting
        for axis, (split, name) in zip(axes[row], columns.items(), strict=True):
            for method in _methods(results):
                _unlearning_curve(axis, results, model, poison, method, split)
            axis.set(ylabel=name, title=f"{model}, {POISON_NAMES[poison]}", ylim=(-0.03, 1.03))
            if row == len(rows) - 1:
                axis.set_xlabel("epoch of unlearning")
    axes[0, 0].legend(frameon=False, loc="lower right")
    return _caption(figure, results, _band_words(results) + _same_runs(results))


def _methods(results: xr.Dataset) -> list[str]:
    """The file's methods, those of the paper first."""
    held = list(map(str, results.method.values))
    return [method for method in METHOD_STYLE if method in held] + [name for name in held if name not in METHOD_STYLE]


def _same_runs(results: xr.Dataset) -> str:
    """A sentence on runs that nothing random tells apart; empty where there are none."""
    config = json.loads(results.attrs["config"])
    held = {model.split("[")[0].lower() for model in _labels(results, "model")}
    whole = [name.upper() for name in ("mlp", "qnn") if name in held and config[name]["unlearn"]["batch_size"] == 0]
    if config["independent_teachers"] or not whole:
        return ""
    return (
        f". One teacher and full batches: {' and '.join(whole)} runs of all methods but Retrain are the same, "
        "apart from rounding"
    )


def _unlearning_curve(axis, results: xr.Dataset, model: str, poison: str, method: str, split: str) -> None:
    curve = results.accuracy.sel({"model": model, "poison": poison, "method": method, "split": split}).dropna(
        "epoch", how="all"
    )
    if curve.size:
        colour, line = METHOD_STYLE.get(method, SPARE_STYLE[:2])
        _band(axis, curve.epoch, curve.transpose("run", "epoch"), colour, line, METHOD_NAMES.get(method, method))


# ---- weight maps ----


def weight_maps(results: xr.Dataset) -> Figure | None:
    """Final validation accuracy over the weights of scrub (heat map) and of gradient ascent (line).

    None where all diverged.
    """
    rows = _rows(results)
    if not rows:
        return None
    cross = _cell_of_curves(results)
    figure, axes = _panels(len(rows), 2)
    means = results.accuracy.mean("run")
    limits = np.floor(20 * float(means.min())) / 20, np.ceil(20 * float(means.max())) / 20  # to .05, in all panels
    for row, (model, poison) in enumerate(rows):
        cells = results.accuracy.sel(model=model, poison=poison)
        title = f"{model}, {POISON_NAMES[poison]}"
        if "scrub" in results.method:
            _heat_map(axes[row, 0], means.sel({"model": model, "poison": poison, "method": "scrub"}), limits)
            axes[row, 0].plot(*cross, "x", color="white", markersize=6, markeredgewidth=1.4)
            axes[row, 0].set_title(f"Scrub\n{title}")
        if "ga" in results.method:
            line = cells.sel({"method": "ga", "kl_weight": 0.0})
            _band(axes[row, 1], line.forget_weight, line.transpose("run", ...), *METHOD_STYLE["ga"], None, marker="o")
            axes[row, 1].set(title=f"Gradient ascent\n{title}", ylabel="validation accuracy", ylim=(-0.03, 1.03))
        axes[row, 1].set_xlabel("forget weight")
    words = ", cross: weights of the unlearning curves" if len(cross[0]) else ""
    return _caption(figure, results, f"heat map: mean{words}; line: {_band_words(results)}")


def _cell_of_curves(results: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Column and row of the cell with the weights of the unlearning curves; both empty where the map lacks it."""
    config = json.loads(results.attrs["config"])
    held = [np.isclose(results[dim].values, config[dim]) for dim in ("kl_weight", "forget_weight")]
    return np.nonzero(np.outer(*held))[::-1]


def _heat_map(axis, cells: xr.DataArray, limits: tuple[float, float]) -> None:
    table = cells.transpose("kl_weight", "forget_weight")
    names = [[f"{weight:g}" for weight in table[dim].values] for dim in table.dims]
    image = axis.imshow(table.values, vmin=limits[0], vmax=limits[1], cmap="cividis", origin="lower", aspect="auto")
    axis.figure.colorbar(image, ax=axis, label="validation accuracy")
    axis.set(xlabel="forget weight", ylabel="KL weight", xticks=range(len(names[1])), xticklabels=names[1],
             yticks=range(len(names[0])), yticklabels=names[0])  # fmt: skip
    sns.despine(ax=axis, left=True, bottom=True)


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
    for place, model in enumerate(models):
        colour, marker = _landscape_style(models, model)
        own = results.sel(model=model)
        ratios = own.trace / float(own.trace.sel(alpha_percent=alphas[0]).median())
        for at, alpha in enumerate(alphas):
            finite = np.isfinite(ratios.sel(alpha_percent=alpha).values)
            values = ratios.sel(alpha_percent=alpha).values[finite]
            dead = own.dead.sel(alpha_percent=alpha).values[finite] > 0
            centre = at + (place - (len(models) - 1) / 2) * width
            x = centre + width * generator.uniform(-0.25, 0.25, len(values))
            label = model if at == 0 else None
            axis.plot(x[~dead], values[~dead], marker, color=colour, markersize=3, alpha=0.7, label=label)
            axis.plot(x[dead], values[dead], marker, color=colour, markersize=4.5, fillstyle="none")
            if not len(values):
                continue
            low, high = _median_interval(values)
            axis.vlines(centre, low, high, color="black", linewidth=0.9)
            axis.hlines(np.median(values), centre - 0.35 * width, centre + 0.35 * width, color="black", linewidth=1.4)
    axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axis.set(yscale="log", xlabel="flipped share of the training labels α (%)", xticks=range(len(alphas)),
             xticklabels=[str(alpha) for alpha in alphas],
             ylabel=f"trace of the Hessian\nover its median at α = {alphas[0]} %")  # fmt: skip
    figure.legend(frameon=False, loc="outside right upper")
    figure.set_figwidth(1.9 * PANEL[0])
    n_dead = int(results.dead.sum())
    text = (
        f"n = {results.sizes['run']} runs, a dot each; bars: median and its 95 % bootstrap interval, that at "
        f"α = {alphas[0]} % held fixed. Hollow: {n_dead} run{'s' * (n_dead != 1)} whose network died (its logit is the "
        "same for all images)"
    )
    return _caption(figure, results, text)


def _median_interval(runs: np.ndarray) -> np.ndarray:
    """95 % percentile interval of the median of (n,) values."""
    draws = np.random.default_rng(0).integers(len(runs), size=(2000, len(runs)))
    return np.percentile(np.median(runs[draws], axis=1), [2.5, 97.5])


def _landscape_style(models: list[str], model: str) -> tuple:
    """Colour and marker of a model; those of the second circuit are darker and different."""
    colour, _, marker = family_style(model)
    second = model.startswith("QNN") and model != next(name for name in models if name.startswith("QNN"))
    return ("#7f4f00", "^") if second else (colour, marker)


def hessian_spectra(results: xr.Dataset) -> Figure | None:
    """Eigenvalues of the Hessian in descending order without poison and with the most of it, a panel for each model.

    None where all diverged.
    """
    models, alphas = _landscape_models(results), results.alpha_percent.values
    if not models:
        return None
    figure, axes = _panels(1, len(models))
    limits = float(results.eigenvalues.min()), float(results.eigenvalues.max())
    for axis, model in zip(axes[0], models, strict=True):
        for alpha, colour in ((alphas[0], "0.45"), (alphas[-1], _landscape_style(models, model)[0])):
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
        f"thin: each of n = {results.sizes['run']} runs, thick: their median at each rank. Exact; of a network, the "
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
    directions = ("random", "eigenvectors")
    use_style()
    n_columns = len(alphas) * len(directions)
    figure, axes = plt.subplots(
        len(models), n_columns, figsize=(1.65 * n_columns + 1.6, 1.75 * len(models) + 0.6), squeeze=False
    )
    for row, model in zip(axes, models, strict=True):
        for place, direction in enumerate(directions):
            own = row[place * len(alphas) : (place + 1) * len(alphas)]
            _slices_of_model(figure, own, results.sel(model=model, direction=direction, alpha_percent=alphas))
            if row[0] is axes[0, 0]:
                for axis, alpha in zip(own, alphas, strict=True):
                    axis.set_title(
                        f"{'random' if direction == 'random' else 'top eigenvectors'}\nα = {alpha} %", fontsize=8
                    )
        row[0].set_ylabel(model)
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
    steps = (1,) if levels[-1] > 100 * levels[0] else (1, 2, 5) if levels[-1] > 10 * levels[0] else (1, 2, 3, 4, 5, 7)
    ticks = sorted({step * 10.0**power for step in steps for power in range(-3, 3)})
    ticks = [tick for tick in ticks if levels[0] <= tick <= levels[-1]]
    bar = figure.colorbar(drawn, ax=list(axes), label="loss (nats)", ticks=ticks, shrink=0.8)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in ticks])
    bar.minorticks_off()


def _landscape_models(results: xr.Dataset) -> list[str]:
    """Networks with hidden layers, then circuits, then logistic regression; none that diverged without poison."""
    families = ("MLP", "QNN", "Logistic")
    clean = results.trace.sel(alpha_percent=results.alpha_percent[0])
    models = [model for model in _labels(results, "model") if clean.sel(model=model).notnull().any()]
    return sorted(models, key=lambda model: [model.startswith(family) for family in families][::-1])


# ---- parts ----


def _panels(n_rows: int, n_columns: int) -> tuple[Figure, np.ndarray]:
    use_style()
    width, height = PANEL
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(width * n_columns, height * n_rows + 0.3), squeeze=False)
    return figure, axes


def _band(axis, x, runs: xr.DataArray, colour, line: str, label: str | None, *, marker: str | None = None) -> None:
    """Mean over the leading run axis with a band of one standard deviation, as far as accuracies go."""
    mean = runs.mean("run").values
    axis.plot(x.values, mean, color=colour, linestyle=line, marker=marker, markersize=3.5, label=label)
    if runs.sizes["run"] > 1:
        deviation = runs.std("run", ddof=1).values
        low, high = np.clip([mean - deviation, mean + deviation], 0, 1)
        axis.fill_between(x.values, low, high, color=colour, alpha=0.2, linewidth=0)


def _band_words(results: xr.Dataset) -> str:
    n = results.sizes["run"]
    return f"mean of n = {n} runs, band: ± 1 standard deviation" if n > 1 else "n = 1 run"


def _caption(figure: Figure, results: xr.Dataset | Iterable[xr.Dataset], text: str) -> Figure:
    """The text, and how many trainings of the study or studies diverged, below the figure."""
    studies = [results] if isinstance(results, xr.Dataset) else results
    diverged = sum(int(study.diverged.sum()) for study in studies if "diverged" in study)
    text += f"; {diverged} trainings that diverged are left out" if diverged else ""
    lines = textwrap.wrap(text, int(18 * figure.get_figwidth()))  # characters of this size to the inch
    figure.set_figheight(figure.get_figheight() + 0.14 * (len(lines) - 1))
    figure.supxlabel("\n".join(lines), fontsize=7.5, color="0.3")
    return figure


def _holds(results: xr.Dataset, model: str, poison: str) -> bool:
    return poison in results.poison and bool(results.accuracy.sel(model=model, poison=poison).notnull().any())


def _rows(results: xr.Dataset) -> list[tuple[str, str]]:
    """The pairs of model and poison that the study holds."""
    models, poisons = _labels(results, "model"), _labels(results, "poison")
    return [(model, poison) for model in models for poison in poisons if _holds(results, model, poison)]


def _labels(results: xr.Dataset, dim: str) -> list[str]:
    order = {"labels": "0", "features": "1"}
    return sorted(map(str, results[dim].values), key=lambda label: order.get(label, label))


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


FIGURES: dict[str, tuple[str, Callable[[xr.Dataset], Figure | None]]] = {  # file name: study, function
    "spectrum": ("data", xxz_spectrum),
    "noise_sweep": ("noise_sweep", noise_sweep),
    "model_sizes": ("noise_sweep", model_sizes),
    "unlearning": ("unlearning", unlearning_curves),
    "weight_map": ("weight_map", weight_maps),
    "gauge": ("gauge", gauge_control),
    "poison_examples": ("data", poison_examples),
    "poison_embeddings": ("data", poison_embeddings),
    "hessian_traces": ("landscape", hessian_traces),
    "hessian_spectra": ("landscape", hessian_spectra),
    "loss_slices": ("landscape", loss_slices),
}


def save_all(folder: str | Path) -> list[Path]:
    """Draw every study in the folder as PNG and PDF beside its data; returns the paths of the PNGs."""
    matplotlib.use("Agg")  # files need no screen
    written = []
    for name, (study, draw) in FIGURES.items():
        data = Path(folder) / f"{study}.nc"
        if data.is_file():
            figure = draw(storage.read_dataset(data))
            if figure is None:  # the study holds nothing of the kind
                continue
            written.append(_save(figure, Path(folder), name))
    return written


def save_comparison(folder: str | Path) -> list[Path]:
    """Draw the published choices beside the corrected ones where a data set's folder has both; paths as `save_all`."""
    matplotlib.use("Agg")
    sweeps = {preset: Path(folder) / preset / "noise_sweep.nc" for preset in ("paper", "corrected")}
    if not all(path.is_file() for path in sweeps.values()):
        return []
    results = {preset: storage.read_dataset(path) for preset, path in sweeps.items()}
    if not all(_one_of_each_family(sweep) for sweep in results.values()):
        return []
    figure = presets_side_by_side(results)
    return [_save(figure, Path(folder), "presets")]


def _save(figure: Figure, folder: Path, name: str) -> Path:
    """Write a figure as PNG and PDF and close it; returns the path of the PNG."""
    with storage.replacing(folder / f"{name}.png") as temporary:
        temporary.write_bytes(_png(figure, dpi=200))
    figure.set_layout_engine("none")  # laid out once is enough
    with storage.replacing(folder / f"{name}.pdf") as temporary:
        figure.savefig(temporary, format="pdf")
    plt.close(figure)
    return folder / f"{name}.png"


def main() -> int:
    folder = storage.folder_argument(__doc__)
    try:
        with ProcessPoolExecutor() as pool:
            folders = storage.result_folders(folder)
            tasks = [pool.submit(save_all, each) for each in folders]
            tasks += [pool.submit(save_comparison, each) for each in sorted({path.parent for path in folders})]
            for task in tasks:
                print(*task.result(), sep="\n", end="\n" if task.result() else "")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
