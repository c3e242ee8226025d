"""One function per figure, from result files alone.

    python figures.py results        # redraw every figure below the folder, beside its data

Each function takes a study as `storage.read_dataset` gives it and returns a matplotlib Figure.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

import storage

PALETTE = sns.color_palette("colorblind")
METHOD_STYLE = {  # colour and line of each method, the same in all figures
    "retrain": (PALETTE[0], "-"),
    "cf": (PALETTE[2], "--"),
    "scrub": (PALETTE[1], "-."),
    "ga": (PALETTE[3], ":"),
}
METHOD_NAMES = {"retrain": "Retrain", "cf": "Fine-tune", "scrub": "Scrub", "ga": "Gradient ascent"}
SPLIT_STYLE = {"train": (PALETTE[7], "--", "s"), "validation": (PALETTE[0], "-", "o")}
POISON_NAMES = {"labels": "flipped labels", "features": "randomised features"}
PANEL = (3.3, 2.5)  # inches: a panel is readable at a print column's width


def use_style() -> None:
    """Seaborn's styling, set in this one place."""
    sns.set_theme(context="paper", style="ticks", palette="colorblind", font_scale=0.95)
    plt.rcParams.update({"figure.dpi": 110, "savefig.dpi": 200, "axes.spines.top": False, "axes.spines.right": False,
                         "figure.constrained_layout.use": True, "pdf.fonttype": 42})  # fmt: skip


# ---- noise sweep ----


def noise_sweep(results: xr.Dataset) -> Figure:
    """Train and validation accuracy against the poisoned share: a row for each poison, a column for each model.

    The counterpart of arXiv:2508.02422, Fig. 2c and 2d.
    """
    poisons, models = _labels(results, "poison"), _labels(results, "model")
    figure, axes = _panels(len(poisons), len(models))
    for row, poison in enumerate(poisons):
        for column, model in enumerate(models):
            axis = axes[row, column]
            for split, (colour, line, marker) in SPLIT_STYLE.items():
                curve = results.accuracy.sel(model=model, poison=poison, split=split).dropna("alpha_percent", how="all")
                _band(axis, curve.alpha_percent, curve.transpose("run", ...), colour, line, split, marker=marker)
            axis.set(title=f"{model}, {POISON_NAMES[poison]}", ylim=(-0.03, 1.03))
            if row == len(poisons) - 1:
                axis.set_xlabel("poisoned share of the training set α (%)")
            if column == 0:
                axis.set_ylabel("accuracy")
    axes[0, 0].legend(frameon=False)
    return _caption(figure, results, "train: against the labels trained on; " + _band_words(results))


# ---- unlearning ----


def unlearning_curves(results: xr.Dataset) -> Figure:
    """Validation and forgetting accuracy against the epoch of unlearning, a row for each model and poison.

    Forgetting accuracy is taken against the poisoned labels (low is good), as published, and against the true
    ones. The counterpart of arXiv:2508.02422, Fig. 3.
    """
    rows = [(model, poison) for model in _labels(results, "model") for poison in _labels(results, "poison")
            if results.accuracy.sel(model=model, poison=poison).notnull().any()]  # fmt: skip
    columns = {
        "validation": "validation accuracy",
        "forget_poisoned": "forgetting accuracy,\nas poisoned",
        "forget_clean": "forgetting accuracy,\nclean",
    }
    figure, axes = _panels(len(rows), len(columns))
    for row, (model, poison) in enumerate(rows):
        for axis, (split, name) in zip(axes[row], columns.items(), strict=True):
            for method in METHOD_STYLE:
                if method in results.method:
                    _unlearning_curve(axis, results, model, poison, method, split)
            axis.set(ylabel=name, title=f"{model}, {POISON_NAMES[poison]}", ylim=(-0.03, 1.03))
            if row == len(rows) - 1:
                axis.set_xlabel("epoch of unlearning")
    axes[0, 0].legend(frameon=False, loc="lower right")
    return _caption(figure, results, _band_words(results))


def _unlearning_curve(axis, results: xr.Dataset, model: str, poison: str, method: str, split: str) -> None:
    curve = results.accuracy.sel({"model": model, "poison": poison, "method": method, "split": split}).dropna(
        "epoch", how="all"
    )
    if curve.size:
        colour, line = METHOD_STYLE[method]
        _band(axis, curve.epoch, curve.transpose("run", "epoch"), colour, line, METHOD_NAMES[method])


# ---- weight maps ----


def weight_maps(results: xr.Dataset) -> Figure:
    """Final validation accuracy over the weights of scrub (heat map) and of gradient ascent (line)."""
    rows = [(model, poison) for model in _labels(results, "model") for poison in _labels(results, "poison")
            if results.accuracy.sel(model=model, poison=poison).notnull().any()]  # fmt: skip
    figure, axes = _panels(len(rows), 2)
    for row, (model, poison) in enumerate(rows):
        cells = results.accuracy.sel(model=model, poison=poison)
        title = f"{model}, {POISON_NAMES[poison]}"
        if "scrub" in results.method:
            _heat_map(axes[row, 0], cells.sel({"method": "scrub"}).mean("run"))
            axes[row, 0].set_title(f"Scrub: {title}")
        if "ga" in results.method:
            line = cells.sel({"method": "ga", "kl_weight": 0.0})
            _band(axes[row, 1], line.forget_weight, line.transpose("run", ...), *METHOD_STYLE["ga"], None, marker="o")
            axes[row, 1].set(title=f"Gradient ascent: {title}", ylabel="validation accuracy", ylim=(-0.03, 1.03))
        axes[row, 1].set_xlabel("forget weight")
    return _caption(figure, results, "heat map: mean; line: " + _band_words(results))


def _heat_map(axis, cells: xr.DataArray) -> None:
    table = cells.transpose("kl_weight", "forget_weight")
    names = [[f"{weight:g}" for weight in table[dim].values] for dim in table.dims]
    sns.heatmap(table.values, ax=axis, vmin=0, vmax=1, cmap="cividis", xticklabels=names[1], yticklabels=names[0],
                cbar_kws={"label": "validation accuracy"})  # fmt: skip
    axis.invert_yaxis()
    axis.set(xlabel="forget weight", ylabel="KL weight")


# ---- parts ----


def _panels(n_rows: int, n_columns: int) -> tuple[Figure, np.ndarray]:
    use_style()
    width, height = PANEL
    figure, axes = plt.subplots(n_rows, n_columns, figsize=(width * n_columns, height * n_rows + 0.3), squeeze=False)
    return figure, axes


def _band(axis, x, runs: xr.DataArray, colour, line: str, label: str | None, *, marker: str | None = None) -> None:
    """Mean over the leading run axis with a band of one standard deviation."""
    mean = runs.mean("run").values
    axis.plot(x.values, mean, color=colour, linestyle=line, marker=marker, markersize=3.5, label=label)
    if runs.sizes["run"] > 1:
        deviation = runs.std("run", ddof=1).values
        axis.fill_between(x.values, mean - deviation, mean + deviation, color=colour, alpha=0.2, linewidth=0)


def _band_words(results: xr.Dataset) -> str:
    n = results.sizes["run"]
    return f"mean of n = {n} runs, band: ± 1 standard deviation" if n > 1 else "n = 1 run"


def _caption(figure: Figure, results: xr.Dataset, text: str) -> Figure:
    figure.supxlabel(text, fontsize=7.5, color="0.3")
    return figure


def _labels(results: xr.Dataset, dim: str) -> list[str]:
    order = {"labels": "0", "features": "1"}
    return sorted(map(str, results[dim].values), key=lambda label: order.get(label, label))


# ---- files ----

FIGURES: dict[str, Callable[[xr.Dataset], Figure]] = {
    "noise_sweep": noise_sweep,
    "unlearning": unlearning_curves,
    "weight_map": weight_maps,
}


def save_all(folder: str | Path) -> list[Path]:
    """Draw every study in the folder as PNG and PDF beside its data; returns the paths of the PNGs."""
    return [path for study in FIGURES for path in _save(Path(folder) / f"{study}.nc", FIGURES[study])]


def _save(data: Path, draw: Callable[[xr.Dataset], Figure]) -> Iterator[Path]:
    if data.is_file():
        figure = draw(storage.read_dataset(data))
        for suffix in (".png", ".pdf"):
            figure.savefig(data.with_suffix(suffix))
        plt.close(figure)
        yield data.with_suffix(".png")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        print("usage: python figures.py FOLDER (a folder with results)", file=sys.stderr)
        sys.exit(2)
    for subfolder in sorted({path.parent for path in Path(sys.argv[1]).rglob("*.nc") if "chunks" not in path.parts}):
        for written in save_all(subfolder):
            print(written)
