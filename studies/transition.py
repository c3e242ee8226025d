"""Is the fall of accuracy at one half of flipped labels a transition, and whose?

Every learner that treats the classes alike crosses one half at α = 50 %. What can differ is how
steeply: accuracy against α, finely around 50 %, for training sets of several sizes and images of
several sizes, beside the mean of each class.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from datar import Dataset, Split
from foundation.base.checks import require, require_whole
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.runner import Percent, require_list
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.report.frames import ResultFiles, accuracies, ordered, over_runs
from poison_unlearn import Poison, Retrain
from protocol import Drawn
from studies.config import Config
from studies.contenders import NearestMean
from studies.families import model_words
from studies.rows import AS_PUBLISHED, place_of, rows_of_blocks
from studies.tuning import control_fit, estimate_as_is, main_models

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim

SIDES = {6: 8, 8: 16}  # pixels on a side of images of so many qubits
PADDED = 32  # pixels on a side, before images are pooled


@dataclass(frozen=True, kw_only=True)
class TransitionFlags(Flags):
    """Of the stage transition."""

    samples: tuple[int, ...] = (50, 100, 200, 500, 1000, 2000)
    """Sizes of the training sets, of images as they are."""
    qubits: tuple[int, ...] = (6, 8)
    """Qubits of images that are pooled, beside the images as they are, with training sets of the
    usual size."""
    shares: tuple[Percent, ...] = (30, 40, 44, 46, 48, 50, 52, 54, 56, 60, 70)
    """Shares of flipped labels, in percent."""
    runs: int = 12
    """Repetitions, each with a training set of its own."""

    AXES = ("samples", "qubits", "shares", "runs")

    def check(self, config: Config) -> None:
        for name in ("samples", "shares"):
            require_list(name, getattr(self, name))
        for count in self.samples:
            require_whole("samples", count, 2)
        for count in self.qubits:
            require(count in SIDES, "qubits", count, " or ".join(map(str, SIDES)))
        require_whole("runs", self.runs)


# ---- data ----


def images_of_sizes(config: Config, dataset: Dataset) -> dict[int, Dataset]:
    """Return the images as they are, by the number of qubits, and pooled to fewer pixels.

    Data that are no images of 28 × 28 amplitude-encoded pixels are not pooled.
    """
    own = int(np.log2(dataset.train.x.shape[1]))
    sizes = {own: dataset}
    is_pooled = dataset.image_shape == (28, 28) and config.encoding == "amplitude"
    for qubits in config.transition.qubits if is_pooled else ():
        splits = [_pooled(split, SIDES[qubits]) for split in (dataset.train, dataset.val)]
        words = {"pooled": SIDES[qubits]}
        sizes[qubits] = replace(
            dataset,
            train=splits[0],
            val=splits[1],
            n_features=SIDES[qubits] ** 2,
            image_shape=(SIDES[qubits],) * 2,
            provenance=dataset.provenance | words,
        ).identified()
    return sizes


def _pooled(split: Split, side: int) -> Split:
    """Average blocks of pixels of images of norm 1, with a margin of 0, and normalise anew."""
    margin = (PADDED - 28) // 2
    images = split.x[:, : 28 * 28].reshape(-1, 28, 28)
    images = np.pad(images, ((0, 0), (margin, margin), (margin, margin)))
    block = PADDED // side
    rows = images.reshape(-1, side, block, side, block).mean(axis=(2, 4)).reshape(-1, side**2)
    return Split(rows / np.linalg.norm(rows, axis=1, keepdims=True), split.y)


# ---- what is computed ----


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan models after the published epochs, and the class mean, at each share of flips."""
    flags = config.transition
    sizes = images_of_sizes(config, dataset)
    own, *pooled = sizes
    n_samples = len(dataset.train.y) + len(dataset.val.y)
    possible = [count for count in flags.samples if count < n_samples]
    settings = [(own, count) for count in possible]
    settings += [(qubits, len(dataset.train.y)) for qubits in pooled]
    for (qubits, count), alpha in itertools.product(settings, flags.shares):
        poison = Poison("labels", alpha)
        images = sizes[qubits]
        for protocol, model in main_models(config, images):
            method = Retrain(training=protocol.sweep)
            fit = control_fit(config, images, protocol, model, method, poison)
            job = replace(fit, record="end")
            yield from _rows(config, job, model.label, qubits, count, model_words(model))
        mean = NearestMean()
        job = estimate_as_is(config, images, mean, poison)
        coords = {"family": ("model", mean.family)}
        yield from _rows(config, job, mean.label, qubits, count, coords)


def _rows(
    config: Config, job: Drawn, label: str, qubits: int, count: int, coords: dict
) -> Iterator[Row]:
    """Yield the rows of a model, by its label, on so many qubits and samples."""
    place = {"qubits": qubits, "samples": count, **place_of(label, job.poison)}
    job = replace(job, samples=count)
    runs = config.transition.runs
    yield from rows_of_blocks(config, "transition", job, place, coords, runs)


# ---- what is shown ----


def fitted(alpha: np.ndarray, accuracy: np.ndarray) -> tuple[float, float, float]:
    """Fit 1/2 + a tanh((c − α) / w) by least squares; return −a/w, c and w.

    alpha: shares (n,), accuracy: (n,). −a/w is the slope at c; for MLPs that learn all labels,
    whose accuracy is 1 − α, it is −1. c and w are shares. w is at least the smallest distance of
    two shares: a narrower step between them fits as well as another. NaN where the fit fails.
    """
    from scipy.optimize import OptimizeWarning, curve_fit

    def curve(x: np.ndarray, a: float, c: float, w: float) -> np.ndarray:
        return 0.5 + a * np.tanh((c - x) / w)

    least_width = np.diff(np.sort(alpha)).min(initial=1)
    bounds = ([0, 0, least_width], [2, 1, 5])  # a line is a curve of large a and w
    start = (0.45, 0.5, max(0.1, 2 * least_width))
    # tight, so that processors agree on the digits that are shown
    until = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14, "max_nfev": 20_000}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)  # three shares leave no covariance
        try:
            (a, c, w), _ = curve_fit(curve, alpha, accuracy, start, bounds=bounds, **until)
        except (RuntimeError, ValueError):
            return np.nan, np.nan, np.nan
    return -a / w, c, w


MEASURES = ("slope", "crossing", "width")
PLACE = ["family", "size", "model", "qubits", "samples"]


def fits_of_runs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Return slope, critical share and width of each run's curve, as measures."""
    fits = read.gather(_fits_of_runs, data, presets=(preset,))
    fits.attrs["axes"] = ("model", "qubits", "samples")
    return fits


def _fits_of_runs(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The frame of `fits_of_runs`, of a thousand fits, which `read` keeps."""
    runs = accuracies(read[data, preset, "transition"], "validation")
    rows = []
    for labels, curve in runs.groupby([*PLACE, "run"], sort=False, dropna=False):
        ordered_curve = curve.sort_values("alpha_percent")
        numbers = fitted(ordered_curve.alpha_percent.values / 100, ordered_curve.accuracy.values)
        rows += [(*labels, *pair) for pair in zip(MEASURES, numbers, strict=True)]
    frame = pd.DataFrame(rows, columns=[*PLACE, "run", "measure", "accuracy"])
    return frame.dropna(subset="accuracy")


def transitions(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Average slope, crossing and width over the runs of each model and size."""
    return over_runs(fits_of_runs(read, data, preset))


def exponents(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Fit slope ∝ samples^γ of each run, over the sizes of the images as they are."""
    slopes = _slopes(read, data, preset)
    rows = []
    for labels, of_run in slopes.groupby(["family", "size", "model", "run"], sort=False):
        if of_run.samples.nunique() > 1:
            logarithms = np.log(of_run.samples), np.log(of_run.accuracy)
            rows.append((*labels, np.polyfit(*logarithms, 1)[0]))
    frame = pd.DataFrame(rows, columns=["family", "size", "model", "run", "accuracy"])
    frame.attrs["axes"] = ("model",)
    return over_runs(frame.assign(measure="exponent"))


def _slopes(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Return how steeply each run's accuracy falls, a positive number, of images as they are."""
    fits = fits_of_runs(read, data, preset)
    slopes = fits[(fits.measure == "slope") & (fits.qubits == fits.qubits.max())]
    return slopes.assign(accuracy=-slopes.accuracy)


def figure(results: xr.Dataset) -> Figure | None:
    """Draw accuracy against the share of flipped labels, a panel for each size."""
    from foundation.report.drawing import band_words, draw_curve, finished, grid_for, model_styles

    styles = model_styles(results, ordered(results, "model"))
    validation = results.accuracy.sel(split="validation", poison="labels")
    panels = []
    for qubits, samples in itertools.product(results.qubits.values, results.samples.values):
        if validation.sel(qubits=qubits, samples=samples).notnull().any():
            panels.append((qubits, samples))
    titles = ("α, the share of flipped labels in percent", "validation accuracy")
    for axis, (qubits, samples) in grid_for(panels, *titles, most=3):
        for model, style in styles.items():
            runs = validation.sel(qubits=qubits, samples=samples, model=model)
            if runs.notnull().any():
                draw_curve(axis, runs, style, model)
        axis.axvline(50, color="0.8", linewidth=0.8, zorder=0)
        axis.axhline(0.5, color="0.8", linewidth=0.8, zorder=0)
        axis.set_title(f"{qubits} qubits, {samples} samples")
    text = f"runs with training sets of their own; {band_words(results)}"
    return finished(text, results, legend=True)


TABLE = StudyTable(
    frame=transitions,
    rows=("qubits", "samples", "model"),
    title="Fall of the validation accuracy around one half of flipped labels, 1/2 + a tanh((c − α) "
    "/ w): slope −a/w at the crossing c, width w; mean of n = {n} runs with training sets of their "
    "own",
)
EXPONENTS = StudyTable(
    name="transition-exponents",
    frame=exponents,
    rows=("model",),
    title="Exponent γ of the slope, ∝ samples^γ, n = {n} runs",
)


# ---- what is claimed ----


def steeper(read: ResultFiles, data: str, place: str) -> Claim:
    """Claim that the QNN crosses one half more steeply than the MLP, as at a transition.

    Control: the QNN's slope minus that of the nearest class mean, a learner without a parameter.
    """
    from foundation.report.claims import Claim, of_family, of_model, paired

    runs = _slopes(read, data, "corrected").query("samples == 500")
    circuit, mlp = (of_family(runs, family) for family in ("QNN", "MLP"))
    mean = of_model(runs, NearestMean.label)
    effect, control = (
        paired(f"slope at one half, QNN − {name}", circuit, other, ceiling=np.inf)
        for name, other in (("MLP", mlp), (NearestMean.label, mean))
    )
    return Claim(
        whose="the paper's",
        source="abstract: a critical point",
        setting=AS_PUBLISHED,
        statement="The QNN's response to flipped labels is like a phase transition, which that of "
        f"other learners is not: {place}",
        effect=effect,
        controls=(control,),
        margin=0.0,
    )


STUDY = Study(
    name="transition",
    two_classes=True,
    question="is the fall at one half of flipped labels a transition, and whose",
    plan=plan,
    flags=TransitionFlags(),
    quick={"samples": (50, 200), "qubits": (6,), "shares": (30, 45, 50, 55, 70), "runs": 2},
    tables=(TABLE, EXPONENTS),
    figures=(StudyFigure(name="transition", draw=figure),),
    data=images_of_sizes,
)
