"""What a script ends with, from result files alone: its tables and figures; and the tables of the README.

    python tables.py results        # the README's tables, in Markdown

Each summary function takes the studies of a folder, {name: dataset}, and returns a title and a table for the terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
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
        started = [method for method in methods if method in METHODS and METHODS[method].start is from_teacher]
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
    rows = [
        [*place, *(digits(end) for end in ends), share]
        for place in _present(results.accuracy, "model", "poison", "method")
        for *ends, share in [_map_range(results, curves, *place)]
    ]
    title = f"Weight maps: final validation accuracy of the cells, mean of n = {results.sizes['run']} runs"
    return title, make_table(["model", "poison", "method", "lowest", "highest", "within 0.05 of retrain"], rows)


def _map_range(
    results: xr.Dataset, curves: xr.Dataset | None, model: str, poison: str, method: str
) -> tuple[float, float, str]:
    """Lowest and highest cell of a weight map, and the share of it within 0.05 of retraining in the same runs."""
    place = {"model": model, "poison": poison, "method": method}
    cells = results.accuracy.sel(place).mean("run").values
    diverged = (results.diverged.sel(place) > 0).any("run").values
    retrain = _retrain_accuracy(curves, model, poison, results.run.values)
    near = metrics.share_near(cells, retrain, diverged=diverged) if np.isfinite(retrain) else np.nan
    share = f"{100 * near:.0f} %" if np.isfinite(near) else "-"
    return float(np.fmin.reduce(cells, axis=None)), float(np.fmax.reduce(cells, axis=None)), share


def gauge_summary(studies: dict[str, xr.Dataset]) -> tuple[str, rich.table.Table]:
    """Mean validation accuracy against alpha, with its interval, a column for each model and gauge."""
    results = studies["gauge"]
    columns = {name.replace(", ", "\n"): cells for name, cells in _gauge_columns(results).items()}
    rows = [[str(alpha), *cells] for alpha, *cells in zip(results.alpha_percent.values, *columns.values(), strict=True)]
    title = (
        f"Gauge control: validation accuracy against α in percent, mean of n = {results.sizes['run']} runs with\n"
        "its 95 % bootstrap interval; the QNN sees no gauge and is trained once"
    )
    return title, make_table(["α", *columns], rows)


def _gauge_columns(results: xr.Dataset) -> dict[str, list[str]]:
    """{model and gauge: validation accuracy at each share of flipped labels}."""
    accuracy = results.accuracy.sel(split="validation")
    return {
        f"{model}, {'any gauge' if model.startswith('QNN') else gauge.replace('_', ' ')}": _down(
            accuracy.sel(model=model, gauge=gauge)
        )
        for model, gauge in _present(accuracy, "model", "gauge")
    }


def landscape_summary(studies: dict[str, xr.Dataset]) -> tuple[str, rich.table.Table]:
    """Hessian traces and their ratios to those without poison: medians with intervals, and the published mean ± std."""
    results = studies["landscape"]
    rows = []
    for model in results.model.values:
        own = results.sel(model=model).dropna("alpha_percent", how="all", subset=["trace"])
        alphas = own.alpha_percent.values
        if len(alphas) and alphas[0] == results.alpha_percent[0]:  # else there is no clean trace to take ratios to
            rows += [_trace_row(own.sel(alpha_percent=alpha), own.isel(alpha_percent=0)) for alpha in alphas]
    runs, first = results.sizes["run"], results.alpha_percent.values[0]
    title = (
        f"Trace of the loss's Hessian against α in percent, median of n = {runs} runs. Re, Im: over the real and\n"
        "imaginary parts of a circuit's angles, as published; ratio: of the trace's median to that at\n"
        f"α = {first}, with its 95 % bootstrap interval; mean ± std: of the trace over the mean of those, as\n"
        "published; dead: runs whose logit is the same for all images; off: ReLUs that are off for all images,\n"
        "mean; held out: accuracy on the images held out, with their true labels"
    )
    return title, make_table(["model", "α", "trace", "Re, Im", "ratio", "mean ± std", "dead", "off", "held out"], rows)


def _trace_row(at: xr.Dataset, clean: xr.Dataset) -> list[str]:
    """A row of the landscape's table, from the runs of one model at some α and at the first."""
    ratio, low, high = metrics.ratio_interval(at.trace.values, clean.trace.values)
    spread = at.trace.dropna("run").values / clean.trace.mean().item()
    complex_trace = at.trace_complex.median().item()
    return [
        at.model.item(), str(at.alpha_percent.item()), f"{at.trace.median().item():.3g}",
        f"{complex_trace:.3g}" if np.isfinite(complex_trace) else "-", f"{ratio:.2g} [{low:.2g}, {high:.2g}]",
        f"{spread.mean():.2g} ± {spread.std(ddof=min(1, len(spread) - 1)):.2g}",
        f"{int(at.dead.sum())} of {at.sizes['run']}", f"{at.dead_relus.mean().item():.1f}",
        _mean(at.accuracy.sel(split="held_out")),
    ]  # fmt: skip


def _retrain_accuracy(curves: xr.Dataset | None, model: str, poison: str, runs: np.ndarray) -> float:
    """Mean final validation accuracy of these runs of retraining; NaN where it was not run."""
    wanted = (model, poison, "retrain")
    if curves is None or wanted not in _present(curves.accuracy, "model", "poison", "method"):
        return np.nan
    ends = _curves(curves, *wanted).sel(split="validation").isel(epoch=-1)
    return float(ends.sel(run=np.intersect1d(runs, ends.run.values)).mean())


Summary = tuple[str, Callable[[dict[str, xr.Dataset]], tuple[str, "rich.table.Table"]]]
SUMMARIES: dict[str, Summary] = {
    "noise_sweep": ("noise_sweep", sweep_summary),
    "unlearning": ("unlearning", unlearning_summary),
    "weight_map": ("weight_map", weight_map_summary),
    "gauge": ("gauge", gauge_summary),
    "landscape": ("landscape", landscape_summary),
}


def _present(array: xr.DataArray, *dims: str) -> list[tuple[str, ...]]:
    """The combinations of labels along `dims` that hold any value; methods in their own order."""
    order = {name: place for place, name in enumerate(METHODS)}
    others = [dim for dim in array.dims if dim not in dims]
    counts = array.count(others).stack(combination=dims)
    present = [tuple(np.atleast_1d(labels)) for labels in counts.combination.values[counts.values > 0].tolist()]
    return sorted(present, key=lambda labels: tuple((order.get(label, len(order)), label) for label in labels))


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


# ---- the README's tables ----

PUBLISHED = {  # arXiv:2508.02422: mean validation accuracy, MNIST, flipped labels, at alpha = 0, 10, ... 90 %, n = 5
    "MLP[64,16]": (0.993, 0.922, 0.809, 0.731, 0.619, 0.511, 0.384, 0.258, 0.161, 0.080),
    "QNN[depth=6]": (0.980, 0.953, 0.922, 0.888, 0.795, 0.477, 0.198, 0.091, 0.072, 0.051),
}
SOURCES = ("paper", "corrected")


class Studies(dict[tuple[str, str, str], xr.Dataset]):
    """The studies below a folder, by data set, preset and name."""

    def __init__(self, folder: Path):
        self.folder = folder
        super().__init__(
            ((path.parent.parent.name, path.parent.name, path.stem), storage.read_dataset(path))
            for preset in SOURCES
            for path in sorted(folder.glob(f"*/{preset}/*.nc"))
        )

    def __missing__(self, key: tuple[str, str, str]) -> xr.Dataset:
        raise ValueError(f"{self.folder} has no {'/'.join(key)}.nc, which the tables need")

    def presets(self, data: str, study: str) -> dict[str, xr.Dataset]:
        return {preset: self[data, preset, study] for preset in SOURCES}


def readme_tables(folder: Path) -> dict[str, str]:
    """The tables of the README in Markdown, by name, from the result files of the paper and corrected presets."""
    read = Studies(Path(folder))
    return {
        "mnist": _mnist_table(read),
        "controls": _controls_table(read),
        "unlearning-mnist": _unlearning_table(read.presets("mnist", "unlearning")),
        "features": _features_table(read),
        "xxz": _xxz_table(read),
        "gauge": _gauge_table(read["xxz", "paper", "gauge"]),
        "sizes": _sizes_table(read),
        "unlearning-xxz": _unlearning_table(read.presets("xxz", "unlearning")),
        "maps": _maps_table(read),
        "landscape": _landscape_table(read),
    }


def _mnist_table(read: Studies) -> str:
    columns = {}
    for model, means in PUBLISHED.items():
        columns[f"{model} published, n = 5"] = [digits(mean) for mean in means]
        for preset, results in read.presets("mnist", "noise_sweep").items():
            columns |= _sweep_column(results, model, preset)
    return _against_alpha(range(0, 100, 10), columns)


def _controls_table(read: Studies) -> str:
    results = read["mnist", "corrected", "noise_sweep"]
    columns = {}
    for model in ("QNN[depth=6]", "Logistic", "Quadratic[rank=16]", "MLP[16,4]", "MLP[64,16]"):
        columns |= _sweep_column(results, model, "")
    return _against_alpha(results.alpha_percent.values, columns)


def _xxz_table(read: Studies) -> str:
    columns = {}
    for model in ("MLP[64,16]", "QNN[depth=4]", "Logistic"):
        for preset, gauge in (("paper", "random phase"), ("corrected", "fixed gauge")):
            results = read["xxz", preset, "noise_sweep"]
            if model in results.model:
                columns |= _sweep_column(results, model, f"{preset} ({gauge})")
    return _against_alpha(results.alpha_percent.values, columns)


def _features_table(read: Studies) -> str:
    """Randomised features: validation accuracy of the models of both data sets and presets."""
    models = {"mnist": ("MLP[64,16]", "QNN[depth=6]"), "xxz": ("MLP[64,16]", "QNN[depth=4]")}
    rows = [
        (data, preset, model, results.accuracy.sel(poison="features"))
        for data in models
        for model in models[data]
        for preset, results in read.presets(data, "noise_sweep").items()
    ]
    return _at_some_alphas(rows, (0, 30, 60, 80, 90))


def _sizes_table(read: Studies) -> str:
    """Flipped labels: validation accuracy of every network and circuit of the XXZ sweeps."""
    rows = []
    for preset, results in read.presets("xxz", "noise_sweep").items():
        accuracy = results.accuracy.sel(poison="labels")
        models = [str(model) for model in results.model.values if accuracy.sel(model=model).notnull().any()]
        order = sorted(models, key=lambda name: (not name.startswith("MLP"), len(name), name))
        rows += [("xxz", preset, model, accuracy) for model in order]
    return _at_some_alphas(rows, (0, 20, 30, 40))


def _at_some_alphas(rows: Iterable[tuple[str, str, str, xr.DataArray]], alphas: Sequence[int]) -> str:
    """A row for each data set, preset and model, a column for each share."""
    lines = []
    for data, preset, model, accuracy in rows:
        curve = accuracy.sel(model=model, split="validation")
        cells = [with_interval(curve.sel(alpha_percent=alpha).values) for alpha in alphas]
        lines.append([data, f"{preset}, n = {accuracy.sizes['run']}", model, *cells])
    return _markdown(["data", "preset", "model", *(f"α = {alpha} %" for alpha in alphas)], lines)


def _sweep_column(results: xr.Dataset, model: str, words: str) -> dict[str, list[str]]:
    """{name: cells}: validation accuracy of a model at each share of flipped labels."""
    curve = results.accuracy.sel(model=model, poison="labels", split="validation").dropna("alpha_percent", how="all")
    name = f"{model} {words}".strip()
    return {f"{name}, n = {results.sizes['run']}": _down(curve)}


def _down(curve: xr.DataArray) -> list[str]:
    return [with_interval(curve.sel(alpha_percent=alpha).values) for alpha in curve.alpha_percent.values]


def _against_alpha(alphas: Iterable[int], columns: dict[str, list[str]]) -> str:
    return _markdown(["α in percent", *columns], zip(alphas, *columns.values(), strict=True))


def _gauge_table(results: xr.Dataset) -> str:
    columns = {f"{name}, n = {results.sizes['run']}": cells for name, cells in _gauge_columns(results).items()}
    return _against_alpha(results.alpha_percent.values, columns)


def _unlearning_table(studies: dict[str, xr.Dataset]) -> str:
    """Validation and forgetting accuracy before (start) and after each method, of both presets."""
    from figures import METHOD_NAMES  # which loads matplotlib

    both = list(studies.values())
    rows = []
    for model, poison in sorted({pair for study in both for pair in _present(study.accuracy, "model", "poison")}):
        rows.append([poison, model, "start", *_ends(both, model, poison, "cf", 0)])
        rows += [[poison, model, METHOD_NAMES[name], *_ends(both, model, poison, name, -1)] for name in METHOD_NAMES]
    measured = [
        f"{name}, {preset}, n = {results.sizes['run']}"
        for preset, results in studies.items()
        for name in ("validation", "forgetting")
    ]
    return _markdown(["poison", "model", "method", *measured], rows)


def _ends(studies: list[xr.Dataset], model: str, poison: str, method: str, epoch: int) -> list[str]:
    """Validation and forgetting accuracy at an epoch, of each study; a dash where it has none."""
    cells = []
    for results in studies:
        for split in ("validation", "forget_poisoned"):
            held = (model, poison, method) in _present(results.accuracy, "model", "poison", "method")
            at = _curves(results, model, poison, method).isel(epoch=epoch).sel(split=split).values if held else None
            cells.append("–" if at is None else with_interval(at))
    return cells


def _maps_table(read: Studies) -> str:
    """Stability over the weights: range of each map's cells, and the share of it that ends near retraining."""
    from figures import METHOD_NAMES

    rows = []
    for data in ("mnist", "xxz"):
        maps, curves = read.presets(data, "weight_map"), read.presets(data, "unlearning")
        for place in _present(maps["paper"].accuracy, "model", "poison", "method"):
            model, poison, method = place
            cells = []
            for preset in SOURCES:
                low, high, share = _map_range(maps[preset], curves[preset], *place)
                cells += [f"{digits(low)} to {digits(high)}", share]
            rows.append([data, poison, model, METHOD_NAMES[method], *cells])
    measured = [f"{name}, {preset}" for preset in SOURCES for name in ("cells", "near Retrain")]
    return _markdown(["data", "poison", "model", "method", *measured], rows)


def _landscape_table(read: Studies) -> str:
    """Medians of traces and their ratios, and what was published of them; of its QNN the trace that it takes, too."""
    studies = read.presets("hessian", "landscape")
    published = {
        ("MLP[8,2]", "trace"): ("0.19", "tens"),
        ("QNN[depth=5,xy,cnot]", "trace_complex"): ("6.2", "near 1"),
    }  # heissian.ipynb: means of 5 seeds
    rows = []
    for model in studies["paper"].model.values:
        for trace in ("trace", "trace_complex") if (model, "trace_complex") in published else ("trace",):
            rows += _trace_rows(studies.values(), model, trace, published.get((model, trace), ("–", "–")))
    counts = [f"{preset}, n = {results.sizes['run']}" for preset, results in studies.items()]
    return _markdown(["model", "median", "published (mean)", *counts], rows)


def _trace_rows(
    studies: Iterable[xr.Dataset], model: str, trace: str, published: tuple[str, str]
) -> Iterable[list[str]]:
    """A model's trace without poison, and for each share of it the ratio, in each of the studies."""
    over = {"trace": "", "trace_complex": " over Re, Im"}[trace]
    traces = [results[trace].sel(model=model) for results in studies]
    yield [model, f"trace{over}, α = 0", published[0], *map(_clean_trace, traces)]
    for alpha in traces[0].alpha_percent.values[1:]:
        yield [model, f"ratio{over}, α = {alpha} %", published[1], *(_trace_ratio(values, alpha) for values in traces)]


def _clean_trace(traces: xr.DataArray) -> str:
    values = traces.isel(alpha_percent=0).values
    low, high = metrics.bootstrap_interval(values, np.median)
    return f"{_two_digits(np.nanmedian(values))} [{_two_digits(low)}, {_two_digits(high)}]"


def _two_digits(value: float) -> str:
    """Two significant digits, without an exponent: 330, 0.97."""
    return f"{float(f'{value:.2g}'):g}"


def _trace_ratio(traces: xr.DataArray, alpha: int) -> str:
    noisy, clean = traces.sel(alpha_percent=alpha).values, traces.isel(alpha_percent=0).values
    return "{} [{}, {}]".format(*map(_two_digits, metrics.ratio_interval(noisy, clean)))


def with_interval(values: np.ndarray) -> str:
    """Mean and its 95 % bootstrap interval; the mean alone where all values are the same, and of n = 1."""
    low, high = metrics.bootstrap_interval(values)
    alone = " (n = 1)" if np.isnan(low) else ""
    return digits(np.nanmean(values)) + (f" [{digits(low)}, {digits(high)}]" if low < high else alone)


def _markdown(columns: list[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def main() -> int:
    folder = storage.folder_argument(__doc__)
    try:
        for name, table in readme_tables(folder).items():
            print(f"{name}\n\n{table}\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyError as missing:
        print(f"error: a file below {folder} lacks {missing}: of an older version, or not whole", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
