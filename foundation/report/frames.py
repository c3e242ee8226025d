"""Tidy frames from result files.

A row of a frame is one number: what it is of (data, preset, model, poison, unlearner, alpha_percent
...), its measure, value (the mean over n runs, unless the measure says otherwise), sd over the
runs, and the ends low and high of the value's 95 % bootstrap interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from foundation.base import storage
from foundation.measures import metrics

ORDER = {  # in which labels are read; others come behind, as they stand in the files
    "preset": ("published", "paper", "corrected"),
    "family": ("MLP", "QNN", "Logistic", "Quadratic", "Trivial"),
    "poison": ("labels", "one_class", "features"),
    "version": ("none", "labels", "features"),
    "endpoint": ("published", "selected", "last", "equal fit"),
    "unlearner": ("start", "teacher", "oracle", "full", "retrain", "cf", "scrub", "ga"),
    "detector": ("loss", "cross_validation", "influence"),
}
VERDICTS = ("within", "above", "undecided")  # a number in a frame is a place in it
SOURCES = ("paper", "corrected")  # the presets that FINDINGS.md compares
Make = Callable[["ResultFiles", str, str], pd.DataFrame]  # a tidy frame of a data set and a preset


class ResultFiles:
    """The studies below a folder, `studies[data set, preset, study]`, each read when it is first
    asked for."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.paths = {
            (*path.parts[-3:-1], path.stem): path for path in self.folder.glob("*/*/*.nc")
        }
        self._read = cache(storage.read_dataset)
        self._made = cache(
            lambda make, data, preset: make(self, data, preset).assign(data=data, preset=preset)
        )

    def __getitem__(self, key: tuple[str, str, str]) -> xr.Dataset:
        if key not in self.paths:
            raise ValueError(f"{self.folder} has no {'/'.join(key)}.nc, which the tables need")
        return self._read(self.paths[key])

    def gather(self, make: Make, *data: str, presets: Sequence[str] = SOURCES) -> pd.DataFrame:
        """What `make` gives of these data sets and presets, as one frame."""
        return pd.concat(
            [self._made(make, name, preset) for name in data for preset in presets],
            ignore_index=True,
        )


def rank(dim: str, label: str | float) -> float:
    """Numbers stand by their size; labels that have an order in it, and the others as they come."""
    return (*ORDER.get(dim, ()), label).index(label) if isinstance(label, str) else label


def ordered(results: xr.Dataset, dim: str) -> list[str]:
    """The labels along an axis in reading order: models by family and size, published poisons and
    methods first."""
    names = list(map(str, results[dim].values))
    if dim != "model":
        return sorted(names, key=partial(rank, dim))
    places = zip(results["family"].values, results["size"].values, names, strict=True)
    return [
        name for *_, name in sorted(places, key=lambda place: (rank("family", place[0]), place))
    ]


def one_of_each_family(results: xr.Dataset, models: Iterable[str]) -> list[str]:
    """Of these models the largest MLP, the smallest QNN, and all of the other families."""
    members = {"MLP": [], "QNN": [], "": []}
    for model in filter(set(models).__contains__, ordered(results, "model")):
        members.get(results.family.sel(model=model).item(), members[""]).append(model)
    return [*members["MLP"][-1:], *members["QNN"][:1], *members[""]]


def method_titles(results: xr.Dataset) -> dict[str, str]:
    """What each method is called, in reading order; with its name behind a title that two of them
    share."""
    titles = results.title.to_series().astype(str)[ordered(results, "unlearner")]
    if "reads_truth" in results.coords:
        titles += np.where(results.reads_truth.to_series()[titles.index] > 0, " †", "")
    return titles.where(
        ~titles.duplicated(keep=False), titles + " (" + titles.index + ")"
    ).to_dict()


def count_of_runs(results: xr.Dataset) -> str:
    """How many runs the models have, in words: 20, or 5 to 20; "" for a study of means."""
    if "run" not in results.dims:
        return ""
    return " to ".join(map(str, sorted(set(fewest_and_most_runs(results)))))


def fewest_and_most_runs(results: xr.Dataset) -> tuple[int, int]:
    runs = every_run(results)
    counts = runs.groupby([name for name in ("model", "unlearner") if name in runs]).run.nunique()
    return (counts.min(), counts.max()) if len(counts) else (results.sizes["run"],) * 2


def poisoned_counts(results: xr.Dataset) -> str:
    """How many samples are poisoned at each share in turn, in words: 0, 24, 40 or 42; "" for other
    studies."""
    if "poisoned_count" not in results:
        return ""
    counts = (
        results.poisoned_count.to_series().dropna().astype(int).groupby("alpha_percent").unique()
    )
    return ", ".join(" or ".join(map(str, sorted(own))) for own in counts)


# ---- tidy frames ----

KEYS = (  # noqa: SIM905 - labels in the order of a frame's columns; axes that a study of one's own has stand before the measure
    "group family size model sites ring_split encoding samples pair endpoint poison gauge "
    "unlearner title minus alpha_percent known_percent detector noise trained shots measure"
).split()
# axes of a study's numbers that are none of the places where they stand
NO_LABELS = ("run", "split", "epoch")
DESCRIBED_BY = {"model": ["family", "size"], "title": ["unlearner"]}


def every_run(results: xr.Dataset) -> pd.DataFrame:
    """A row for each run of a study: its labels, what the file says of them, and its numbers; none
    that diverged.

    attrs["axes"]: the axes along which the study's numbers have a place; `tidy` keeps what stands
    at different places apart.
    """
    main = next(
        results[name] for name in ("trace", "average_precision", "accuracy") if name in results
    )
    names = [
        name
        for name, array in results.data_vars.items()
        if array.dims == main.dims and name != "diverged"
    ]
    results = results[names].sel(
        {dim: ordered(results, dim) for dim in ("model", *ORDER) if dim in main.dims}
    )
    if "title" in results.coords:
        results = results.assign_coords(title=("unlearner", list(method_titles(results).values())))
    runs = results.to_dataframe().dropna(subset=[main.name]).reset_index()
    runs.attrs["axes"] = tuple(dim for dim in main.dims if dim not in NO_LABELS)
    return runs


def accuracies(results: xr.Dataset, *splits: str) -> pd.DataFrame:
    return every_run(results[["accuracy"]].sel(split=list(splits))).rename(
        columns={"split": "measure"}
    )


def labels_of(runs: pd.DataFrame) -> list[str]:
    """The columns that say what a row is of: KEYS, and the axes of the study's numbers that are not
    among these."""
    *known, measure = KEYS
    axes = [axis for axis in runs.attrs.get("axes", ()) if axis not in KEYS]
    return [name for name in (*known, *axes, measure) if name in runs]


def tidy(
    runs: pd.DataFrame,
    numbers: Callable[[pd.DataFrame], Iterable[tuple]],
    *,
    over: Sequence[str] = (),
) -> pd.DataFrame:
    """The numbers of each combination of labels: (value, sd, low, high), behind the measure where
    that is none.

    over: axes over which they are taken together, beside the runs.
    """
    keys = [key for key in labels_of(runs) if key not in over]
    groups = runs.groupby(keys, sort=False, dropna=False)
    rows = [(*labels, *row, own.run.nunique()) for labels, own in groups for row in numbers(own)]
    return pd.DataFrame(
        rows, columns=list(dict.fromkeys([*keys, "measure", "value", "sd", "low", "high", "n"]))
    )


def over_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean accuracy over the runs of each combination of labels, as a tidy frame."""
    return tidy(
        runs,
        lambda of: [
            (of.accuracy.mean(), of.accuracy.std(), *metrics.bootstrap_interval(of.accuracy))
        ],
    )


def difference(left: pd.DataFrame, right: pd.DataFrame, label: str = "minus") -> pd.DataFrame:
    """The mean difference left - right by run, where the labels of both agree; this label of right
    is its `minus`."""
    right = right.rename(columns={label: "minus", "accuracy": "theirs"}).drop(
        columns=DESCRIBED_BY.get(label, [])
    )
    pairs = left.merge(right[[*labels_of(right), "run", "theirs"]])
    pairs.attrs.update(left.attrs)  # not every version of pandas does
    return over_runs(
        pairs.assign(
            accuracy=pairs.accuracy - pairs.theirs, measure="difference in " + pairs.measure
        )
    )


def circuit_minus_others(runs: pd.DataFrame) -> pd.DataFrame:
    """The first QNN minus every other model, by run; nothing where there is no QNN."""
    runs = runs.drop(columns="group", errors="ignore")
    is_circuit = runs.model.isin(runs[runs.family == "QNN"].model[:1])
    return difference(runs[is_circuit], runs[~is_circuit], "model")


def circuit_beside(runs: pd.DataFrame) -> pd.DataFrame:
    """The first QNN minus every other model, by run, as a measure of that model, to stand beside
    its own accuracy."""
    minus = circuit_minus_others(runs)
    return minus.assign(model=minus.minus, measure="QNN minus it").drop(columns="minus")


def models_and_poisons(results: xr.Dataset) -> list[tuple[str, str]]:
    """The pairs of model and poison that the study holds."""
    pairs = itertools.product(ordered(results, "model"), ordered(results, "poison"))
    return [
        (model, poison)
        for model, poison in pairs
        if results.accuracy.sel(model=model, poison=poison).count()
    ]


def truth_words(results: xr.Dataset) -> str:
    """What the mark behind a method's title means, where one has it."""
    marked = (results.get("reads_truth", xr.DataArray(0)) > 0).any()
    return "†: reads what the poison replaced" if marked else ""
