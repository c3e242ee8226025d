"""What a script ends with, from result files alone: its tables and figures.

Each summary function takes the studies of a folder, {name: dataset}, and returns a title and a table for the terminal.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

import metrics
import storage
from poison_unlearn import METHODS, from_teacher

if TYPE_CHECKING:
    import rich.table


def report(folder: Path, stages: tuple[str, ...], summaries: dict[str, Summary] | None = None) -> None:
    """What a script ends with: a table for each of its stages, and the figures beside the results."""
    print_summary(folder, stages, summaries)
    import figures  # matplotlib is not needed before there is something to draw

    written = figures.save_all(folder)
    print(f"results and {len(written)} figures in {folder}")


def print_summary(folder: Path, stages: tuple[str, ...], summaries: dict[str, Summary] | None = None) -> None:
    """Print a table for each of the stages, from the files in the folder, with n and what the errors are.

    summaries: stage -> the study that it fills and the function that makes its table; SUMMARIES where None.
    """
    from rich.console import Console

    console = Console(width=max(Console().width, 104), soft_wrap=True)  # the widest table; a log has no width
    summaries = summaries or SUMMARIES
    results = {path.stem: storage.read_dataset(path) for path in sorted(folder.glob("*.nc"))}
    for study, summarise in dict.fromkeys(summaries[stage] for stage in stages if stage in summaries):
        if study in results:
            title, table = summarise(results)
            wide = max(console.width, 120)  # a narrow screen wraps lines; a narrow table would lose digits
            text = (title, table, *_diverged(results[study]))
            console.print(*text, sep="\n", markup=False, highlight=False, width=wide)


def _diverged(results: xr.Dataset) -> list[str]:
    """A line that counts the trainings that diverged, for each combination with any; nothing where all went well."""
    if "diverged" not in results or not (results.diverged > 0).any():
        return []
    where = results.diverged.fillna(0).sum("run").stack(place=[dim for dim in results.diverged.dims if dim != "run"])
    counts = [f"{' '.join(map(str, np.atleast_1d(place.place.item())))}: {int(place)}" for place in where if place > 0]
    total = int(results.diverged.count())
    return [f"diverged, and left out of all means: {int(where.sum())} of {total} trainings ({'; '.join(counts)})", ""]


def make_table(columns: list[str], rows: list[list[str]]) -> rich.table.Table:
    """A table for the terminal: names to the left, numbers to the right."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        named = column in ("model", "poison", "method")
        table.add_column(column, justify="left" if named else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def sweep_summary(studies: dict[str, xr.Dataset]) -> tuple[str, rich.table.Table]:
    """Mean validation accuracy of each model and poison against alpha."""
    results = studies["noise_sweep"]
    accuracy = results.accuracy.sel(split="validation")
    alphas = results.alpha_percent.values
    rows = [
        [model, poison, *(_mean(accuracy.sel(model=model, poison=poison, alpha_percent=alpha)) for alpha in alphas)]
        for model, poison in _present(accuracy, "model", "poison")
    ]
    title = f"Noise sweep: validation accuracy against α in percent, mean of n = {results.sizes['run']} runs"
    return title, make_table(["model", "poison", *map(str, alphas)], rows)


def unlearning_summary(studies: dict[str, xr.Dataset]) -> tuple[str, rich.table.Table]:
    """Accuracies before and after each method, and its stability across and within runs."""
    results = studies["unlearning"]
    rows = []
    for model, poison in _present(results.accuracy, "model", "poison"):
        methods = [method for *_, method in _present(results.accuracy.sel(model=[model], poison=[poison]), "method")]
        started = [method for method in methods if METHODS[method].start is from_teacher]
        if started:
            start = _curves(results, model, poison, started[0]).isel(epoch=0)
            rows.append([model, poison, "start", *_accuracies(start), "", ""])
        rows += [[model, poison, method, *_outcome(_curves(results, model, poison, method))] for method in methods]
    title = (
        f"Unlearning: accuracy, mean of n = {results.sizes['run']} runs. f.pois, f.clean: on the forget set, for\n"
        "labels against the poisoned (low is good) and the true ones, for features on poisoned and clean inputs;\n"
        "std: of valid across runs, with its 95 % bootstrap interval from 3 runs on; drop: largest fall of valid\n"
        "below its best within a run, median"
    )
    names = ["valid", "f.pois", "f.clean", "retain", "std", "drop"]
    return title, make_table(["model", "poison", "method", *names], rows)


def _outcome(curves: xr.DataArray) -> list[str]:
    """Final accuracies of (run, epoch, split) curves, standard deviation across runs, largest drop within one."""
    validation = curves.sel(split="validation").dropna("run", how="all").transpose("run", "epoch").values
    deviation, low, high = metrics.spread(validation[:, -1])
    across = digits(deviation) + (f" [{digits(low)}, {digits(high)}]" if len(validation) > 2 else "")
    return [*_accuracies(curves.isel(epoch=-1)), across, digits(np.median(metrics.largest_drop(validation)))]


def _accuracies(values: xr.DataArray) -> list[str]:
    return [_mean(values.sel(split=split)) for split in ("validation", "forget_poisoned", "forget_clean", "retain")]


def weight_map_summary(studies: dict[str, xr.Dataset]) -> tuple[str, rich.table.Table]:
    """Stability over the weights: how much of each map ends within 0.05 of retraining."""
    results, curves = studies["weight_map"], studies.get("unlearning")
    rows = []
    for model, poison, method in _present(results.accuracy, "model", "poison", "method"):
        cells = _select(results, model, poison, method).mean("run").values
        retrain = _retrain_accuracy(curves, model, poison)
        near = metrics.share_near(cells, retrain) if np.isfinite(retrain) else np.nan
        share = f"{100 * near:.0f} %" if np.isfinite(near) else "-"
        rows.append([model, poison, method, digits(np.nanmin(cells)), digits(np.nanmax(cells)), share])
    title = f"Weight maps: final validation accuracy of the cells, mean of n = {results.sizes['run']} runs"
    return title, make_table(["model", "poison", "method", "lowest", "highest", "within 0.05 of retrain"], rows)


def landscape_summary(studies: dict[str, xr.Dataset]) -> tuple[str, rich.table.Table]:
    """Hessian traces and their ratios to those without poison: medians with intervals, and the published mean ± std."""
    results = studies["landscape"]
    rows = []
    for model in results.model.values:
        own = results.sel(model=model).dropna("alpha_percent", how="all", subset=["trace"])
        alphas = own.alpha_percent.values
        if not len(alphas) or alphas[0] != results.alpha_percent[0]:  # no clean trace to take ratios to
            continue
        for alpha in alphas:
            at, clean = own.sel(alpha_percent=alpha), own.isel(alpha_percent=0)
            ratio, low, high = metrics.ratio_interval(at.trace.values, clean.trace.values)
            spread = at.trace.dropna("run").values / clean.trace.mean().item()
            rows.append([
                str(model), str(alpha), f"{at.trace.median().item():.3g}", f"{ratio:.2g} [{low:.2g}, {high:.2g}]",
                f"{spread.mean():.2g} ± {spread.std(ddof=min(1, len(spread) - 1)):.2g}",
                f"{int(at.dead.sum())} of {at.sizes['run']}", f"{at.dead_relus.mean().item():.1f}",
                _mean(at.accuracy.sel(split="held_out")),
            ])  # fmt: skip
    title = (
        f"Trace of the loss's Hessian against α in percent, n = {results.sizes['run']} runs. ratio: of its median to\n"
        f"that at α = {results.alpha_percent.values[0]}, with its 95 % bootstrap interval; mean ± std: of the "
        "trace over the mean of those, as\npublished; dead: runs whose logit is the same for all images; off: ReLUs "
        "that are off for all images, mean;\nheld out: accuracy on the images held out, with their true labels"
    )
    return title, make_table(["model", "α", "trace", "ratio", "mean ± std", "dead", "off", "held out"], rows)


def _retrain_accuracy(curves: xr.Dataset | None, model: str, poison: str) -> float:
    """Mean final validation accuracy of retraining; NaN where it was not run."""
    wanted = (model, poison, "retrain")
    if curves is None or wanted not in _present(curves.accuracy, "model", "poison", "method"):
        return np.nan
    return float(_curves(curves, *wanted).sel(split="validation").isel(epoch=-1).mean())


Summary = tuple[str, Callable[[dict[str, xr.Dataset]], tuple[str, "rich.table.Table"]]]
SUMMARIES: dict[str, Summary] = {
    "noise_sweep": ("noise_sweep", sweep_summary),
    "unlearning": ("unlearning", unlearning_summary),
    "weight_map": ("weight_map", weight_map_summary),
    "landscape": ("landscape", landscape_summary),
}


def _present(array: xr.DataArray, *dims: str) -> list[tuple[str, ...]]:
    """The combinations of labels along `dims` that hold any value; methods in their own order."""
    order = {name: place for place, name in enumerate(METHODS)}
    others = [dim for dim in array.dims if dim not in dims]
    counts = array.count(others).stack(combination=dims)
    present = [tuple(np.atleast_1d(labels)) for labels in counts.combination.values[counts.values > 0].tolist()]
    return sorted(present, key=lambda labels: tuple(order.get(label, label) for label in labels))


def _curves(results: xr.Dataset, model: str, poison: str, method: str) -> xr.DataArray:
    """(run, epoch, split) of one method, without the epochs that only other models have."""
    return _select(results, model, poison, method).dropna("epoch", how="all")


def _select(results: xr.Dataset, model: str, poison: str, method: str) -> xr.DataArray:
    return results.accuracy.sel(
        {"model": model, "poison": poison, "method": method}
    )  # sel(method=) means another thing


def _mean(values: xr.DataArray) -> str:
    return digits(float(values.mean()))


def digits(value: float, places: int = 3) -> str:
    """An accuracy as the tables show it: .912, or - for NaN."""
    return f"{value:.{places}f}".removeprefix("0") if np.isfinite(value) else "-"
