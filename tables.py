"""Tables from result files alone: what a script ends with, and those of the README.

    python tables.py results                 # the README's tables, in Markdown
    python tables.py results --csv FOLDER    # their numbers, and those of every run, as CSV files

A table is a tidy frame and its layout. A row of the frame is one number: what it is of (data, preset, model, poison,
unlearner, alpha_percent ...), its measure, value (the mean over n runs, unless the measure says otherwise), sd over
the runs, and the ends low and high of the value's 95 % bootstrap interval.
"""

from __future__ import annotations

import argparse
import codecs
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
import xarray as xr

import metrics
import storage

ORDER = {  # in which labels are read; others come behind, as they stand in the files
    "preset": ("published", "paper", "corrected"),
    "family": ("MLP", "QNN", "Logistic", "Quadratic"),
    "poison": ("labels", "features"),
    "version": ("none", "labels", "features"),
    "unlearner": ("start", "retrain", "cf", "scrub", "ga"),
}
SOURCES = ("paper", "corrected")  # the presets that the README compares


# ---- studies ----


class Studies:
    """The studies below a folder, `studies[data set, preset, study]`, each read when it is first asked for."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._studies: dict[tuple[str, str, str], xr.Dataset] = {}
        self._frames: dict[tuple[Make, str, str], pd.DataFrame] = {}

    def path(self, data: str, preset: str, study: str) -> Path:
        return self.folder / data / preset / f"{study}.nc"

    def __contains__(self, key: tuple[str, str, str]) -> bool:
        return self.path(*key).is_file()

    def __getitem__(self, key: tuple[str, str, str]) -> xr.Dataset:
        if key not in self._studies:
            if key not in self:
                raise ValueError(f"{self.folder} has no {'/'.join(key)}.nc, which the tables need")
            self._studies[key] = storage.read_dataset(self.path(*key))
        return self._studies[key]

    def gather(self, make: Make, *data: str, presets: Sequence[str] = SOURCES) -> pd.DataFrame:
        """What `make` gives of these data sets and presets, as one frame."""
        keys = [(make, name, preset) for name in data for preset in presets]
        for key in keys:
            if key not in self._frames:
                self._frames[key] = make(self, *key[1:]).assign(data=key[1], preset=key[2])
        return pd.concat([self._frames[key] for key in keys], ignore_index=True)


Make = Callable[[Studies, str, str], pd.DataFrame]


def ordered(results: xr.Dataset, dim: str) -> list[str]:
    """The labels along an axis in reading order: models by family and size, published poisons and methods first."""
    names = list(map(str, results[dim].values))
    if dim != "model":
        return sorted(names, key=lambda name: _rank(dim, name))
    places = zip(map(str, results["family"].values), map(float, results["size"].values), names, strict=True)
    return [name for *_, name in sorted(places, key=lambda place: (_rank("family", place[0]), place))]


def _rank(dim: str, name: str) -> int:
    known = ORDER.get(dim, ())
    return known.index(name) if name in known else len(known)


def one_of_each_family(results: xr.Dataset, models: Iterable[str]) -> list[str]:
    """Of these models the largest MLP, the smallest QNN, and all of the other families."""
    models = set(models)
    members = {name: [] for name in ("MLP", "QNN", "")}
    for model in (model for model in ordered(results, "model") if model in models):
        members.get(results.family.sel(model=model).item(), members[""]).append(model)
    return [*members["MLP"][-1:], *members["QNN"][:1], *members[""]]


def method_titles(results: xr.Dataset) -> dict[str, str]:
    """What each method is called, in reading order; with its name behind a title that two of them share."""
    titles = {name: str(results.title.sel(unlearner=name).item()) for name in ordered(results, "unlearner")}
    given = list(titles.values())
    return {name: title if given.count(title) == 1 else f"{title} ({name})" for name, title in titles.items()}


def count_of_runs(results: xr.Dataset) -> str:
    """How many runs the models have, in words: 20, or 5 to 20."""
    held = _main(results).notnull()
    counts = held.any([dim for dim in held.dims if dim not in ("model", "run")]).sum("run").values
    some = counts[counts > 0] if counts.any() else [results.sizes["run"]]
    return " to ".join(map(str, dict.fromkeys((min(some), max(some)))))


def _main(results: xr.Dataset) -> xr.DataArray:
    return results["trace" if "trace" in results else "accuracy"]


# ---- tidy frames ----

KEYS = ["family", "size", "model", "poison", "gauge", "unlearner", "title", "minus", "alpha_percent", "measure"]
NUMBERS = ["value", "sd", "low", "high", "n"]


def every_run(results: xr.Dataset, main: xr.DataArray | None = None) -> pd.DataFrame:
    """A row for each run of a study: its labels, what the file says of them, and its numbers; none that diverged.

    main: the variable whose axes are those of a row; the study's own where None.
    """
    main = _main(results) if main is None else main
    names = [name for name, array in results.data_vars.items() if array.dims == main.dims and name != "diverged"]
    results = results[names].sel({dim: ordered(results, dim) for dim in ("model", *ORDER) if dim in main.dims})
    if "title" in results.coords:
        results = results.assign_coords(title=("unlearner", list(method_titles(results).values())))
    return results.to_dataframe().dropna(subset=[main.name]).reset_index()


def _accuracies(results: xr.Dataset, *splits: str) -> pd.DataFrame:
    """Every run's accuracies on these splits, which are its measures."""
    chosen = results.sel(split=list(splits))
    return every_run(chosen, chosen.accuracy).rename(columns={"split": "measure"})


def over_runs(runs: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """The mean of a column over the runs of each combination of labels, as a tidy frame."""
    return _tidy(runs, lambda own: [(own[value].mean(), own[value].std(), *metrics.bootstrap_interval(own[value]))])


def difference(left: pd.DataFrame, right: pd.DataFrame, value: str = "accuracy") -> pd.DataFrame:
    """The mean difference left - right over the runs of the same number, where the labels that both have agree."""
    shared = [key for key in (*KEYS, "run") if key in left and key in right]
    pairs = left.merge(right[[*(key for key in (*KEYS, "run", value) if key in right)]], on=shared)

    def paired(own: pd.DataFrame) -> list[tuple]:
        ours, theirs = own[f"{value}_x"], own[f"{value}_y"]  # as merge names them
        mean, low, high = metrics.paired_interval(ours, theirs)
        return [(mean, (ours - theirs).std(), low, high)]

    return _tidy(pairs, paired).assign(measure=lambda tidy: "difference in " + tidy.measure)


def _tidy(runs: pd.DataFrame, numbers: Callable[[pd.DataFrame], Iterable[tuple]]) -> pd.DataFrame:
    """A tidy frame of the numbers, (value, sd, low, high), of each combination of labels.

    Where the measure is no label of the runs, it stands in front of them.
    """
    keys = [key for key in KEYS if key in runs]
    rows = [
        (*labels, *row, own.run.nunique())
        for labels, own in runs.groupby(keys, sort=False, dropna=False)
        for row in numbers(own)
    ]
    measure = [] if "measure" in keys else ["measure"]
    return pd.DataFrame(rows, columns=[*keys, *measure, *NUMBERS])


def sweep(read: Studies, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy of the noise sweep."""
    return over_runs(_accuracies(read[data, preset, "noise_sweep"], "validation"))


def gauges(read: Studies, data: str, preset: str) -> pd.DataFrame:
    """Validation accuracy under each gauge."""
    return over_runs(_under_gauges(read[data, preset, "gauge"]))


def _under_gauges(results: xr.Dataset) -> pd.DataFrame:
    """Every run's validation accuracy; a model that was trained under one gauge only is said to be under any."""
    runs = _accuracies(results, "validation")
    alone = (runs.groupby("model").gauge.transform("nunique") == 1) & (results.sizes["gauge"] > 1)
    return runs.assign(gauge=runs.gauge.str.replace("_", " ").mask(alone, "any gauge"))


def unlearning(read: Studies, data: str, preset: str) -> pd.DataFrame:
    """Accuracies of teachers (start) and after each method; std over runs and largest drop (median) of validation."""
    runs = _accuracies(read[data, preset, "unlearning"], "validation", "forget_poisoned", "forget_clean", "retain")
    validation = runs[runs.measure == "validation"].drop(columns="measure")
    return pd.concat([over_runs(_ends(runs)), _tidy(validation, _stability)], ignore_index=True)


def _ends(runs: pd.DataFrame) -> pd.DataFrame:
    """The last epoch of each method; and the first of one that starts from the teacher, as `start`."""
    last = runs[runs.epoch == runs.groupby(["model", "poison", "unlearner"]).epoch.transform("max")]
    teachers = runs[(runs.epoch == 0) & (runs.fresh == 0)]
    one = teachers.unlearner == teachers.groupby(["model", "poison"]).unlearner.transform("first")
    return pd.concat([teachers[one].assign(unlearner="start", title="start"), last], ignore_index=True)


def _stability(own: pd.DataFrame) -> Iterator[tuple]:
    curves = own.pivot(index="run", columns="epoch", values="accuracy").values
    deviation, *interval = metrics.spread(curves[:, -1])
    yield "std", deviation, np.nan, *(interval if len(curves) > 2 else (np.nan, np.nan))
    yield "drop", np.median(metrics.largest_drop(curves)), np.nan, np.nan, np.nan


def weight_maps(read: Studies, data: str, preset: str) -> pd.DataFrame:
    """Lowest and highest cell (mean over runs) of each map, and the share of it near Retrain in the same runs."""
    results = read[data, preset, "weight_map"]
    place = ["model", "poison", "unlearner"]
    retrain = pd.DataFrame(columns=[*place, "run", "accuracy"])
    if (data, preset, "unlearning") in read:
        ends = _ends(_accuracies(read[data, preset, "unlearning"], "validation"))
        retrain = ends[ends.unlearner == "retrain"]

    def of_map(own: pd.DataFrame) -> Iterator[tuple]:
        here = own[place].iloc[0].to_dict()
        cells, diverged = results.accuracy.sel(here).mean("run"), (results.diverged.sel(here) > 0).any("run")
        same = (retrain.model == here["model"]) & (retrain.poison == here["poison"]) & retrain.run.isin(own.run)
        near = metrics.share_near(cells, retrain[same].accuracy.mean(), diverged=diverged) if same.any() else np.nan
        for measure, value in {"lowest": cells.min(), "highest": cells.max(), "near Retrain": near}.items():
            yield measure, float(value), np.nan, np.nan, np.nan

    return _tidy(every_run(results), of_map)


def landscape(read: Studies, data: str, preset: str) -> pd.DataFrame:
    """Hessian traces and their ratios to the clean ones: medians, and the published mean. No row without clean ones."""
    results = read[data, preset, "landscape"]
    runs, held_out = every_run(results), _accuracies(results, "held_out")
    clean = runs[runs.alpha_percent == results.alpha_percent.values[0]].set_index(["model", "run"])

    def of_model(own: pd.DataFrame) -> Iterator[tuple]:
        yield from _traces(own.set_index("run"), clean.loc[own.model.iloc[0]])

    traces = _tidy(runs[runs.model.isin(clean.index.unique("model"))], of_model)
    held_out = held_out[held_out.model.isin(traces.model)]
    return pd.concat([traces, over_runs(held_out.assign(measure="held out"))], ignore_index=True)


def _traces(own: pd.DataFrame, clean: pd.DataFrame) -> Iterator[tuple]:
    own, clean = own.align(clean)
    for name, words in {"trace": "", "trace_complex": " over Re, Im"}.items():
        trace = own[name].values
        yield f"trace{words}", pd.Series(trace).median(), np.nan, *metrics.bootstrap_interval(trace, np.median)
        ratio, *interval = metrics.ratio_interval(trace, clean[name].values)
        yield f"ratio{words}", ratio, np.nan, *interval
    scaled = own.trace / clean.trace.mean()
    yield "mean ratio", scaled.mean(), scaled.std(), np.nan, np.nan
    yield "dead", own.dead.sum(), np.nan, np.nan, np.nan
    yield "off", own.dead_relus.mean(), np.nan, np.nan, np.nan


# ---- layout ----


@dataclass(frozen=True)
class Table:
    """A tidy frame, and how it is laid out: which of its columns name a row of the table, and which a column."""

    tidy: pd.DataFrame
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    head: str  # above a column: a format of its labels, and of n, the most runs of any number below
    measures: dict[str, str] | None = None  # those that are shown, in this order, by these names; None: all
    bare: tuple[str, ...] = ()  # measures whose intervals are not shown
    title: str = ""  # a format of n, the count of runs

    def cells(self) -> pd.DataFrame:
        """The text of all cells, between the names of the rows and the heads of the columns."""
        shown = self.measures or {name: name for name in self.tidy.measure.unique()}
        frame = self.tidy[self.tidy.measure.isin(shown)]
        frame = frame.sort_values("measure", key=lambda names: names.map(list(shown).index), kind="stable")
        frame = frame.assign(cell=list(map(self._cell, frame.itertuples())), measure=frame.measure.map(shown))
        for name in (*self.rows, *self.columns):
            frame[name] = pd.Categorical(frame[name], _reading_order(frame, name), ordered=True)
        wide = frame.pivot(index=list(self.rows), columns=list(self.columns), values="cell").fillna("–")
        wide = wide.sort_index().sort_index(axis=1)
        n = frame.groupby(list(self.columns), observed=True).n.max()
        labels = [dict(zip(self.columns, key if len(self.columns) > 1 else (key,), strict=True)) for key in wide]
        heads = [self.head.format(**own, n=n[key]) for own, key in zip(labels, wide, strict=True)]
        return wide.set_axis(heads, axis=1).rename_axis(index=[NAMES.get(name, name) for name in self.rows])

    def _cell(self, row) -> str:
        """A number with its interval, or what else is known of its spread; the number alone where all runs gave it."""
        write = FORMATS.get(row.measure, partial(digits, sign="+" * row.measure.startswith("difference")))
        if row.measure in self.bare or np.isnan(row.value):
            return write(row.value)
        if np.isnan(row.low):
            return write(row.value) + (f" ± {write(row.sd)}" if np.isfinite(row.sd) else " (n = 1)" * (row.n == 1))
        return write(row.value) + f" [{write(row.low)}, {write(row.high)}]" * (row.high - row.low > 1e-12)


def _reading_order(frame: pd.DataFrame, name: str) -> list:
    """Numbers by size, labels that have an order in it (titles that of their methods), others as they come."""
    dim = "unlearner" if name == "title" else name
    known = dict(zip(frame[name], frame[dim], strict=True))
    return sorted(known, key=lambda label: _rank(dim, known[label]) if isinstance(label, str) else label)


NAMES = {"alpha_percent": "α in percent", "title": "unlearner", "runs": "n", "quantity": "median",
         "published": "published (mean)"}  # fmt: skip


def digits(value: float, *, sign: str = "") -> str:
    """An accuracy as the tables show it: .912, with the sign "+" a difference, +.012; a dash for NaN."""
    return re.sub(r"^([+-]?)0\.", r"\1.", f"{value:{sign}.3f}") if np.isfinite(value) else "–"


def _significant(count: int) -> Callable[[float], str]:
    """Digits without an exponent: 330, 0.97."""
    return lambda value: f"{float(f'{value:.{count}g}'):g}" if np.isfinite(value) else "–"


FORMATS = {
    "near Retrain": lambda share: f"{100 * share:.0f} %" if np.isfinite(share) else "–",
    "trace": _significant(3),
    "ratio": _significant(2),
    "trace over Re, Im": _significant(3),
    "ratio over Re, Im": _significant(2),
    "mean ratio": _significant(2),
    "dead": "{:.0f}".format,
    "off": "{:.1f}".format,
}


def markdown(table: Table) -> str:
    frame = table.cells().reset_index()
    lines = [list(frame), ["---"] * frame.shape[1], *frame.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain(table: Table, width: int) -> str:
    """For a terminal or a log: in parts of at most that many characters, each with the names of the rows."""
    return table.cells().to_string(line_width=width, sparsify=False)


# ---- what a script ends with ----


def report(folder: Path, stages: tuple[str, ...]) -> None:
    """What a script ends with: a table for each of its stages, and the figures beside the results."""
    print_summary(folder, stages)
    import figures  # matplotlib is not needed before there is something to draw

    written = figures.save_all(folder)
    say(f"results and {len(written)} figures in {folder}")


def print_summary(folder: Path, stages: tuple[str, ...]) -> None:
    """Print the table of each of the stages, from the files in OUT/DATA/PRESET, with n and what the errors are."""
    data, preset = Path(folder).resolve().parts[-2:]
    read = Studies(Path(folder).resolve().parents[1])
    for study, make, layout in dict.fromkeys(SUMMARIES[stage] for stage in stages if stage in SUMMARIES):
        if (data, preset, study) in read:
            table, results = layout(read.gather(make, data, presets=[preset])), read[data, preset, study]
            say(*textwrap.wrap(table.title.format(n=count_of_runs(results)), 100), "")
            say(plain(table, shutil.get_terminal_size().columns if sys.stdout.isatty() else 120), "")
            say(*_diverged(results))


def _diverged(results: xr.Dataset) -> list[str]:
    """A line that counts the trainings that diverged, for each combination with any; nothing where all went well."""
    if "diverged" not in results or not (results.diverged > 0).any():
        return []
    where = results.diverged.fillna(0).sum("run").stack(place=[dim for dim in results.diverged.dims if dim != "run"])
    counts = [f"{' '.join(map(str, np.atleast_1d(place.place.item())))}: {int(place)}" for place in where if place > 0]
    total = int(results.diverged.count())
    return [f"diverged, and left out of all means: {int(where.sum())} of {total} trainings ({'; '.join(counts)})", ""]


SPELLED = {"α": "alpha", "Δ": "Delta", "±": "+-", "–": "-", "−": "-", "×": "x", "⟨": "<", "⟩": ">", "…": "..."}


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print lines to a stream, stdout where None, whatever its encoding: alpha where it has no α."""
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    for line in lines:
        print(str(line).encode(encoding, "spelled").decode(encoding), file=file)


def _spell(error: UnicodeEncodeError) -> tuple[str, int]:
    return "".join(SPELLED.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("spelled", _spell)


Summary = tuple[str, Make, Callable[[pd.DataFrame], Table]]  # a study, its tidy frame, and the layout of that
SUMMARIES: dict[str, Summary] = {  # by stage
    "noise_sweep": ("noise_sweep", sweep, partial(
        Table, rows=("model", "poison"), columns=("alpha_percent",), head="{alpha_percent}", bare=("validation",),
        title="Noise sweep: validation accuracy against α in percent, mean of n = {n} runs",
    )),
    "unlearning": ("unlearning", unlearning, partial(
        Table, rows=("model", "poison", "unlearner"), columns=("measure",), head="{measure}",
        measures={"validation": "valid", "forget_poisoned": "f.pois", "forget_clean": "f.clean", "retain": "retain",
                  "std": "std", "drop": "drop"},
        bare=("validation", "forget_poisoned", "forget_clean", "retain", "drop"),
        title="Unlearning: accuracy, mean of n = {n} runs. f.pois, f.clean: on the forget set, for labels against the "
        "poisoned (low is good) and the true ones, for features on poisoned and clean inputs; std: of valid across "
        "runs, with its 95 % bootstrap interval from 3 runs on; drop: largest fall of valid below its best within a "
        "run, median",
    )),
    "weight_map": ("weight_map", weight_maps, partial(
        Table, rows=("model", "poison", "unlearner"), columns=("measure",), head="{measure}",
        title="Weight maps: final validation accuracy of the cells, mean of n = {n} runs; near Retrain: the share of "
        "cells within .05 of it",
    )),
    "gauge": ("gauge", gauges, partial(
        Table, rows=("alpha_percent",), columns=("model", "gauge"), head="{model}, {gauge}",
        title="Gauge control: validation accuracy against α in percent, mean of n = {n} runs with its 95 % bootstrap "
        "interval; any gauge: sees none, and is trained once",
    )),
    "landscape": ("landscape", landscape, partial(
        Table, rows=("model", "alpha_percent"), columns=("measure",), head="{measure}",
        measures={"trace": "trace", "trace over Re, Im": "Re, Im", "ratio": "ratio", "mean ratio": "mean ± std",
                  "dead": "dead", "off": "off", "held out": "held out"},
        bare=("trace", "trace over Re, Im", "dead", "off", "held out"),
        title="Trace of the loss's Hessian against α in percent, median of n = {n} runs. Re, Im: over the real and "
        "imaginary parts of a circuit's angles, as published; ratio: of the trace's median to that at the smallest α, "
        "with its 95 % bootstrap interval; mean ± std: of the trace over the mean of those, as published; dead: runs "
        "whose logit is the same for all images; off: ReLUs that are off for all images, mean; held out: accuracy on "
        "the images held out, with their true labels",
    )),
}  # fmt: skip
SUMMARIES["depths"] = SUMMARIES["noise_sweep"]  # the stage adds models to that study


# ---- the README's tables ----

PUBLISHED = {  # arXiv:2508.02422: mean validation accuracy, MNIST, flipped labels, at alpha = 0, 10, ... 90 %, n = 5
    "MLP[64,16]": (0.993, 0.922, 0.809, 0.731, 0.619, 0.511, 0.384, 0.258, 0.161, 0.080),
    "QNN[depth=6]": (0.980, 0.953, 0.922, 0.888, 0.795, 0.477, 0.198, 0.091, 0.072, 0.051),
}
PUBLISHED_SD = {("QNN[depth=6]", 30): 0.037, ("QNN[depth=6]", 60): 0.065}  # where it is known
PUBLISHED_TRACES = {  # heissian.ipynb: means of 5 seeds, the clean one and the ratios
    ("MLP[8,2]", "trace"): "0.19",
    ("MLP[8,2]", "ratio"): "tens",
    ("QNN[depth=5,xy,cnot]", "trace over Re, Im"): "6.2",
    ("QNN[depth=5,xy,cnot]", "ratio over Re, Im"): "near 1",
}


def _published() -> pd.DataFrame:
    """The published means, and their standard deviations where they are known, as a tidy frame."""
    rows = [
        (model, 10 * place, mean, PUBLISHED_SD.get((model, 10 * place)))
        for model, means in PUBLISHED.items()
        for place, mean in enumerate(means)
    ]
    frame = pd.DataFrame(rows, columns=["model", "alpha_percent", "value", "sd"])
    return frame.assign(data="mnist", preset="published", poison="labels", measure="validation", n=5)


def _flipped(tidy: pd.DataFrame) -> pd.DataFrame:
    return tidy[tidy.poison == "labels"]


def _main_models(read: Studies, poison: str, *data: str) -> pd.DataFrame:
    """The sweeps with a poison, in each file of the largest MLP, the smallest QNN, and all of the other families."""
    frames = []
    for key in [(name, preset) for name in data for preset in SOURCES]:
        own = read.gather(sweep, key[0], presets=key[1:])
        own = own[own.poison == poison]
        frames.append(own[own.model.isin(one_of_each_family(read[*key, "noise_sweep"], own.model))])
    return pd.concat(frames, ignore_index=True)


def _against_alpha(tidy: pd.DataFrame, *columns: str, head: str) -> Table:
    return Table(tidy, ("alpha_percent",), columns, head + ", n = {n}")


def _at_alphas(tidy: pd.DataFrame, alphas: Sequence[int], *rows: str) -> Table:
    """A column for each of these shares; `runs`, which may name a row, are the most behind any number of a model."""
    tidy = tidy.assign(runs=tidy.groupby(["data", "preset", "model"]).n.transform("max"))
    return Table(tidy[tidy.alpha_percent.isin(alphas)], rows, ("alpha_percent",), "α = {alpha_percent} %")


def mnist_table(read: Studies) -> Table:
    ours = _flipped(read.gather(sweep, "mnist"))
    tidy = pd.concat([_published(), ours[ours.model.isin(PUBLISHED)]], ignore_index=True)
    return _against_alpha(tidy, "model", "preset", head="{model} {preset}")


def xxz_table(read: Studies) -> Table:
    words = {"fixed": "fixed gauge", "random_phase": "random phase", "random_sign": "random sign"}
    gauge = {preset: json.loads(read["xxz", preset, "noise_sweep"].attrs["data"])["gauge"] for preset in SOURCES}
    choices = {preset: f"{preset} ({words[name]})" for preset, name in gauge.items()}
    tidy = _main_models(read, "labels", "xxz")
    return _against_alpha(tidy.assign(choices=tidy.preset.map(choices)), "model", "choices", head="{model} {choices}")


def unlearning_table(read: Studies, data: str) -> Table:
    measures = {"validation": "validation", "forget_poisoned": "forgetting"}
    rows, columns = ("poison", "model", "title"), ("preset", "measure")
    return Table(read.gather(unlearning, data), rows, columns, "{measure}, {preset}, n = {n}", measures)


def landscape_table(read: Studies) -> Table:
    """Traces and ratios; over real and imaginary parts where that was published."""
    tidy = read.gather(landscape, "hessian")
    published = [PUBLISHED_TRACES.get(place, "–") for place in zip(tidy.model, tidy.measure, strict=True)]
    tidy = tidy.assign(published=published, quantity=tidy.measure + ", α = " + tidy.alpha_percent.astype(str) + " %")
    tidy = tidy[(tidy.alpha_percent == tidy.alpha_percent.min()) == tidy.measure.str.startswith("trace")]
    tidy = tidy[~tidy.measure.str.contains("Re, Im") | (tidy.published != "–")]
    measures = {name: name for name in ("trace", "ratio", "trace over Re, Im", "ratio over Re, Im")}
    return Table(tidy, ("model", "quantity", "published"), ("preset",), "{preset}, n = {n}", measures)


def paired_models_table(read: Studies, data: str) -> Table:
    """Validation accuracy with flipped labels: the smallest QNN minus each other model, on the same draws."""
    runs = _flipped(_accuracies(read[data, "corrected", "noise_sweep"], "validation"))
    circuits = runs[runs.family == "QNN"].model.unique()
    if not len(circuits):
        raise ValueError(f"{read.path(data, 'corrected', 'noise_sweep')} has no QNN to compare with")
    own = runs.model.isin(circuits[:1])
    others = runs[~own].rename(columns={"model": "minus"}).drop(columns=["family", "size"])
    tidy = difference(runs[own], others).assign(data=data, preset="corrected")
    return _against_alpha(tidy, "model", "minus", head="{model} − {minus}")


def paired_unlearning_table(read: Studies) -> Table:
    """Final validation and forgetting accuracy: each method minus Fine-tune and minus Retrain, on the same draws."""
    frames = []
    for data, reference in [(data, reference) for data in ("mnist", "xxz") for reference in ("cf", "retrain")]:
        ends = _ends(_accuracies(read[data, "corrected", "unlearning"], "validation", "forget_poisoned"))
        others = ends[ends.unlearner == reference].rename(columns={"title": "minus"}).drop(columns="unlearner")
        ends = ends[~ends.unlearner.isin(("start", reference))]
        frames.append(difference(ends, others).assign(data=data, preset="corrected"))
    measures = {"difference in validation": "validation", "difference in forget_poisoned": "forgetting"}
    rows, columns = ("data", "poison", "model", "title"), ("minus", "measure")
    return Table(pd.concat(frames, ignore_index=True), rows, columns, "{measure} − {minus}, n = {n}", measures)


def paired_gauge_table(read: Studies) -> Table:
    """Models that see no gauge minus those that do, in the fixed one; and fixed gauge minus random phase."""
    runs = _under_gauges(read["xxz", "paper", "gauge"])
    under = {name: own.drop(columns="gauge") for name, own in runs.groupby("gauge")}
    others = under["fixed"].rename(columns={"model": "minus"}).drop(columns=["family", "size"])
    across = difference(under["any gauge"], others).assign(minus=lambda tidy: tidy.minus + ", fixed")
    within = difference(under["fixed"], under["random phase"]).assign(minus="random phase")
    tidy = pd.concat([across, within.assign(model=within.model + ", fixed")], ignore_index=True)
    tidy = tidy.assign(data="xxz", preset="paper", poison="labels")
    return _against_alpha(tidy, "model", "minus", head="{model} − {minus}")


README_TABLES: dict[str, Callable[[Studies], Table]] = {
    "mnist": mnist_table,
    "controls": lambda read: _against_alpha(
        _flipped(read.gather(sweep, "mnist", presets=["corrected"])), "model", head="{model}"
    ),
    "paired-mnist": partial(paired_models_table, data="mnist"),
    "features": lambda read: _at_alphas(
        _main_models(read, "features", "mnist", "xxz"), (0, 30, 60, 80, 90), "data", "model", "preset", "runs"
    ),
    "unlearning-mnist": partial(unlearning_table, data="mnist"),
    "paired-unlearning": paired_unlearning_table,
    "xxz": xxz_table,
    "paired-xxz": partial(paired_models_table, data="xxz"),
    "gauge": lambda read: _against_alpha(
        read.gather(gauges, "xxz", presets=["paper"]), "model", "gauge", head="{model}, {gauge}"
    ),
    "paired-gauge": paired_gauge_table,
    "sizes": lambda read: _at_alphas(
        _flipped(read.gather(sweep, "xxz")), (0, 20, 30, 40), "data", "preset", "runs", "model"
    ),
    "unlearning-xxz": partial(unlearning_table, data="xxz"),
    "maps": lambda read: Table(
        read.gather(weight_maps, "mnist", "xxz"), ("data", "poison", "model", "title"), ("preset", "measure"),
        "{measure}, {preset}",
    ),
    "landscape": landscape_table,
}  # fmt: skip


def readme_tables(folder: str | Path) -> dict[str, str]:
    """The tables of the README in Markdown, by name, from the result files of the paper and corrected presets."""
    read = Studies(folder)
    return {name: markdown(make(read)) for name, make in README_TABLES.items()}


def _made(read: Studies) -> dict[str, Table]:
    """The README's tables that the files allow, by name; the others are named on stderr."""
    made = {}
    for name, make in README_TABLES.items():
        try:
            made[name] = make(read)
        except (ValueError, OSError) as error:
            say(f"no table {name}: {error}", file=sys.stderr)
        except (KeyError, AttributeError) as error:
            say(f"no table {name}: a file of {read.folder} is old, or not whole ({error})", file=sys.stderr)
    return made


def write_csv(folder: str | Path, tables: dict[str, Table], out: Path) -> list[Path]:
    """Write the numbers of tables and, of each study below the folder, those of every run; returns the paths."""
    frames = {name: [table.tidy] for name, table in tables.items()}
    for path in (path for below in storage.result_folders(folder) for path in sorted(below.glob("*.nc"))):
        results = storage.read_dataset(path)
        if "model" in results.dims:
            labels = {"data": path.parent.parent.name, "preset": path.parent.name}
            frames.setdefault(f"runs-{path.stem}", []).append(every_run(results).assign(**labels))
    for name, parts in frames.items():
        with storage.replacing(out / f"{name}.csv") as temporary:
            pd.concat(parts, ignore_index=True).set_index(["data", "preset"]).to_csv(temporary)
    return [out / f"{name}.csv" for name in frames]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder with results")
    parser.add_argument("--csv", type=Path, metavar="OUT", help="write CSV files into this folder, and print no tables")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.exit(2, f"error: FOLDER: got {arguments.folder}, allowed: a folder with results\n")
    tables = _made(Studies(arguments.folder))
    try:
        if arguments.csv:
            say(f"{len(write_csv(arguments.folder, tables, arguments.csv))} files in {arguments.csv}")
        else:
            say(*(f"{name}\n\n{markdown(table)}\n" for name, table in tables.items()))
    except (ValueError, OSError, KeyError) as error:
        say(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if len(tables) == len(README_TABLES) else 2


if __name__ == "__main__":
    sys.exit(main())
