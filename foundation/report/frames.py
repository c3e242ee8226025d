"""Tidy frames from result files.

A row of a frame is one number: its labels (data, preset, model, poison, unlearner, alpha_percent
...), its measure, value (the mean over n runs, unless the measure says otherwise), sd over the
runs, and the ends low and high of the value's 95 % bootstrap interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from foundation.base import storage
from foundation.base.labels import UNPOISONED
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.measures import metrics

ORDER = {  # reading order of labels; other labels follow in the order of the files
    "preset": ("published", "paper", "corrected"),
    "family": ("MLP", "QNN", "Logistic", "Quadratic", "Trivial"),
    "poison": (
        *("labels", "next_class", "one_class", "other_class", "boundary", "quid", "features"),
        *UNPOISONED,
    ),
    "version": ("none", "labels", "features"),
    "endpoint": ("published", "selected", "last", "equal fit"),
    "unlearner": ("start", "teacher", "oracle", "null arm", "full", "retrain", "cf", "scrub", "ga"),
    "detector": ("loss", "cross_validation", "influence"),
}
# a frame holds a verdict as its index in this tuple
VERDICTS = ("within", "above", "undecided", "not testable")
SOURCES = ("paper", "corrected")  # the presets that FINDINGS.md compares
# (result files, data set, preset) -> a tidy frame
Make = Callable[["ResultFiles", str, str], "pd.DataFrame"]


class ResultFiles:
    """The study files below a folder, `files[data set, preset, study]`, read on first use."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.paths: dict[tuple[str, str, str], Path] = {}
        for path in self.folder.glob("*/*/*.nc"):
            data, preset = path.parts[-3:-1]
            self.paths[data, preset, path.stem] = path
        self._read = cache(storage.read_dataset)
        self._frame = cache(self._make_frame)

    def _make_frame(self, make: Make, data: str, preset: str) -> pd.DataFrame:
        return make(self, data, preset).assign(data=data, preset=preset)

    def __getitem__(self, key: tuple[str, str, str]) -> xr.Dataset:
        if key not in self.paths:
            raise ValueError(f"{self.folder} has no {'/'.join(key)}.nc, which the tables need")
        return self._read(self.paths[key])

    def gather(self, make: Make, *data: str, presets: Sequence[str] = SOURCES) -> pd.DataFrame:
        """Concatenate the frames that `make` returns for these data sets and presets."""
        places = itertools.product(data, presets)
        frames = [self._frame(make, name, preset) for name, preset in places]
        return pd.concat(frames, ignore_index=True)


def rank(dim: str, label: str | float) -> float:
    """Return a sort key: numbers unchanged, labels by their place in ORDER, other labels last."""
    if not isinstance(label, str):
        return label
    known = ORDER.get(dim, ())
    return known.index(label) if label in known else len(known)


def ordered(results: xr.Dataset, dim: str) -> list[str]:
    """Return the labels along an axis in reading order, see ORDER; models by family, then size."""
    names = list(map(str, results[dim].values))
    if dim != "model":
        return sorted(names, key=partial(rank, dim))
    families = results["family"].values
    sizes = results["size"].values

    def family_first(model: tuple) -> tuple:
        return rank("family", model[0]), model

    models = sorted(zip(families, sizes, names, strict=True), key=family_first)
    return [name for _, _, name in models]


def one_of_each_family(results: xr.Dataset, models: Iterable[str]) -> list[str]:
    """Choose from models the largest MLP, the smallest QNN and all models of other families."""
    wanted = set(models)
    mlps = []
    circuits = []
    others = []
    lists = {"MLP": mlps, "QNN": circuits}
    for model in ordered(results, "model"):
        if model in wanted:
            family = results.family.sel(model=model).item()
            lists.get(family, others).append(model)
    return [*mlps[-1:], *circuits[:1], *others]


def method_titles(results: xr.Dataset) -> dict[str, str]:
    """Return the title of each method, in reading order; shared titles get the methods' names."""
    titles = results.title.to_series().astype(str)[ordered(results, "unlearner")]
    if "reads_truth" in results.coords:
        reads_truth = results.reads_truth.to_series()[titles.index] > 0
        titles += np.where(reads_truth, " †", "")
    is_shared = titles.duplicated(keep=False)
    titles_with_names = titles + " (" + titles.index + ")"
    return titles.where(~is_shared, titles_with_names).to_dict()


def count_of_runs(results: xr.Dataset) -> str:
    """Say how many runs the models have: 20, or 5 to 20; "" for a study of means."""
    if "run" not in results.dims:
        return ""
    counts = sorted(set(fewest_and_most_runs(results)))
    return " to ".join(map(str, counts))


def fewest_and_most_runs(results: xr.Dataset) -> tuple[int, int]:
    """Count the runs of the model or method with the fewest runs, and with the most."""
    runs = every_run(results)
    axes = [name for name in ("model", "unlearner") if name in runs]
    counts = runs.groupby(axes).run.nunique()
    if len(counts):
        return counts.min(), counts.max()
    n_runs = results.sizes["run"]
    return n_runs, n_runs


def poisoned_counts(results: xr.Dataset) -> str:
    """Say how many samples are poisoned at each share: 0, 24, 40 or 42; "" for other studies."""
    if "poisoned_count" not in results:
        return ""
    counts = results.poisoned_count.to_series().dropna().astype(int)
    counts_of_shares = counts.groupby("alpha_percent").unique()
    texts = [" or ".join(map(str, sorted(different))) for different in counts_of_shares]
    return ", ".join(texts)


# ---- tidy frames ----

# labels in the order of a frame's columns; axes of a user's own study stand before the measure
KEYS = (  # noqa: SIM905
    "group family size model sites ring_split encoding samples pair endpoint poison gauge "
    "unlearner title minus alpha_percent known_percent detector noise trained shots measure"
).split()
NO_LABELS = ("run", "split", "epoch")  # axes of a study's numbers that are no labels
DESCRIBED_BY = {"model": ["family", "size"], "title": ["unlearner"]}  # columns that go with a label


def every_run(results: xr.Dataset) -> pd.DataFrame:
    """Return a row for each run of a study: its labels, coordinates and numbers.

    Runs that diverged are left out. attrs["axes"]: the labelled axes of the study's numbers, by
    which `tidy` groups them.
    """
    main = next(
        results[name] for name in ("trace", "average_precision", "accuracy") if name in results
    )
    names = [
        name
        for name, array in results.data_vars.items()
        if array.dims == main.dims and name != "diverged"
    ]
    dims = [dim for dim in ("model", *ORDER) if dim in main.dims]
    order = {dim: ordered(results, dim) for dim in dims}
    results = results[names].sel(order)
    if "title" in results.coords:
        titles = list(method_titles(results).values())
        results = results.assign_coords(title=("unlearner", titles))
    runs = results.to_dataframe().dropna(subset=[main.name]).reset_index()
    axes = [dim for dim in main.dims if dim not in NO_LABELS]
    runs.attrs["axes"] = tuple(axes)
    return runs


def accuracies(results: xr.Dataset, *splits: str) -> pd.DataFrame:
    """Return every run's accuracy on these splits, one row each, named as measures."""
    runs = every_run(results[["accuracy"]].sel(split=list(splits)))
    return runs.rename(columns={"split": "measure"})


def labels_of(runs: pd.DataFrame) -> list[str]:
    """Return the columns that label a row: KEYS, and other axes of the study's numbers."""
    *known, measure = KEYS
    axes_of_study = runs.attrs.get("axes", ())
    axes = [axis for axis in axes_of_study if axis not in KEYS]
    labels = (*known, *axes, measure)
    return [label for label in labels if label in runs]


def tidy(
    runs: pd.DataFrame,
    numbers: Callable[[pd.DataFrame], Iterable[tuple]],
    *,
    over: Sequence[str] = (),
) -> pd.DataFrame:
    """Compute the numbers of each combination of labels, as a tidy frame.

    numbers: the rows of one combination from its runs: (value, sd, low, high), preceded by the
    measure where it is none of the labels. over: axes that are pooled, beside the runs.
    """
    keys = [key for key in labels_of(runs) if key not in over]
    rows = []
    for labels, group in runs.groupby(keys, sort=False, dropna=False):
        for numbers_of_group in numbers(group):
            rows.append((*labels, *numbers_of_group, group.run.nunique()))
    columns = dict.fromkeys([*keys, "measure", "value", "sd", "low", "high", "n"])
    return pd.DataFrame(rows, columns=list(columns))


def over_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Average the accuracy over the runs of each combination of labels, as a tidy frame."""

    def mean_and_interval(group: pd.DataFrame) -> list[tuple]:
        accuracy = group.accuracy
        interval = metrics.bootstrap_interval(accuracy)
        return [(accuracy.mean(), accuracy.std(), *interval)]

    return tidy(runs, mean_and_interval)


def difference(left: pd.DataFrame, right: pd.DataFrame, label: str = "minus") -> pd.DataFrame:
    """Average left - right over runs, where the labels of both agree.

    label: a column in which the two differ; right's label stands in the column `minus`.
    """
    right = right.rename(columns={label: "minus", "accuracy": "theirs"})
    right = right.drop(columns=DESCRIBED_BY.get(label, []))
    pairs = left.merge(right[[*labels_of(right), "run", "theirs"]])
    pairs.attrs.update(left.attrs)  # merge keeps them in some versions of pandas only
    differences = pairs.accuracy - pairs.theirs
    return over_runs(pairs.assign(accuracy=differences, measure="difference in " + pairs.measure))


def circuit_minus_others(runs: pd.DataFrame) -> pd.DataFrame:
    """Average the first QNN minus every other model, by run; an empty frame without a QNN."""
    runs = runs.drop(columns="group", errors="ignore")
    circuits = runs[runs.family == "QNN"].model
    is_circuit = runs.model.isin(circuits[:1])
    return difference(runs[is_circuit], runs[~is_circuit], "model")


def circuit_beside(runs: pd.DataFrame) -> pd.DataFrame:
    """Average the first QNN minus every other model, by run, as a measure of the other model."""
    minus = circuit_minus_others(runs)
    return minus.assign(model=minus.minus, measure="QNN minus it").drop(columns="minus")


def models_and_poisons(results: xr.Dataset) -> list[tuple[str, str]]:
    """List the pairs of model and poison that the study holds."""
    pairs = itertools.product(ordered(results, "model"), ordered(results, "poison"))
    return [
        (model, poison)
        for model, poison in pairs
        if results.accuracy.sel(model=model, poison=poison).count()
    ]


def truth_words(results: xr.Dataset) -> str:
    """Explain the mark behind methods' titles; "" where no method has it."""
    is_marked = (results.get("reads_truth", xr.DataArray(0)) > 0).any()
    return "†: reads what the poison replaced" if is_marked else ""
