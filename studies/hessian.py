"""How does poison roughen the loss?

Hessians, their spectra, and slices of the loss, after training on flipped labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.model_selection import train_test_split

import landscape
from datar import Dataset, Split
from foundation.base.checks import require
from foundation.base.later import pandas as pd
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Runs, random_key
from foundation.engine.runner import Percent, Settings, require_list, require_percent
from foundation.engine.study import Flags, Study, StudyFigure, StudyTable
from foundation.engine.study_files import Row
from foundation.measures import metrics
from foundation.report.frames import (
    SOURCES,
    ResultFiles,
    accuracies,
    count_of_runs,
    every_run,
    ordered,
    over_runs,
    tidy,
)
from models import MLP, QNN, Model, Params, Training, size_of, train
from poison_unlearn import flip_labels
from studies.families import Widths, build_mlp, build_qnn, model_words, parse_widths
from studies.rows import AS_PUBLISHED, placed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from foundation.report.claims import Claim


Name = Literal["mlp", "qnn", "unlearning_qnn", "logistic"]


@dataclass(frozen=True, kw_only=True)
class HessianConfig(Settings):
    """Which models are trained on flipped labels, and how: flags of run_hessian.py."""

    models: tuple[Name, ...] = ("mlp", "qnn", "unlearning_qnn", "logistic")
    """mlp: of the widths --hidden. qnn: of --depth layers with RX, RY rotations and a CNOT ring.
    Two controls: unlearning_qnn, the circuit of the unlearning study (RX, RY, RX, RZZ ring, 6
    layers), and logistic regression."""
    alphas: tuple[Percent, ...] = (0, 20, 30, 40)
    """Shares of flipped labels, in percent, drawn from all samples alike. The ratios are taken to
    that of 0."""
    hidden: Widths = "8,2"
    """Hidden widths of the MLP, comma-separated."""
    depth: int = 5
    """Layers of the QNN."""
    training: Training

    AXES = (*Settings.AXES, "hidden", "depth")

    def check(self):
        super().check()
        parse_widths(self.hidden)
        require(self.depth >= 1, "--depth", self.depth, "1 or more")


@dataclass(frozen=True, kw_only=True)
class LandscapeFlags(Flags):
    """Of the stage landscape: what is measured around trained models."""

    held_out: int = 150
    """Images that each run keeps from training, as many of each class as there are on average."""
    loss_samples: int = 100
    """Images among those held out over which the loss of the landscape is taken, with their true
    labels."""
    lanczos_steps: int = 80
    """Hessian-vector products for the extreme eigenvalues of the MLP and of logistic regression."""
    extremes: int = 5
    """Eigenvalues of either end that Lanczos looks for, 2 or more."""
    slice_alphas: tuple[Percent, ...] = (0, 40)
    """Shares of flipped labels of which the first run that has not died is sliced, in percent."""
    slice_points: int = 21
    """Points along each side of a slice, an odd number."""
    mlp_radii: tuple[float, float] = (1.0, 3.0)
    """How far a slice reaches: along random directions, in units of the filters' norms; along
    eigenvectors, in Euclidean length of the parameters."""
    qnn_radii: tuple[float, float] = (0.3, 1.5)
    """How far a slice of a QNN reaches: along random directions, in radians root mean square over
    the angles; along eigenvectors, in Euclidean length."""

    def check(self, config: HessianConfig) -> None:
        require(self.held_out >= 2, "held_out", self.held_out, "2 or more")
        are_held_out = 1 <= self.loss_samples <= self.held_out
        require(are_held_out, "loss_samples", self.loss_samples, f"1 to {self.held_out}")
        is_odd = self.slice_points >= 3 and self.slice_points % 2 == 1
        require(is_odd, "slice_points", self.slice_points, "an odd number, 3 or more")
        for name in ("mlp_radii", "qnn_radii"):
            for radius in getattr(self, name):
                require(0 < radius < np.inf, name, radius, "positive numbers")
        most = self.lanczos_steps // 2
        allowed = f"2 to {most}, half of --landscape.lanczos-steps"
        require(2 <= self.extremes <= most, "extremes", self.extremes, allowed)
        if self.slice_alphas:
            require_list("slice_alphas", self.slice_alphas)
        for alpha in self.slice_alphas:
            require_percent("slice_alphas", alpha)


BUILDERS = {
    "mlp": lambda config, dataset: build_mlp(dataset, config.hidden),
    "qnn": lambda config, dataset: replace(
        build_qnn(dataset, config.depth), rotations="xy", entangler="cnot"
    ),
    "unlearning_qnn": lambda config, dataset: build_qnn(dataset, 6),
    "logistic": lambda config, dataset: build_mlp(dataset, "none"),
}


# ---- the job ----


@dataclass(frozen=True, kw_only=True)
class Landscape(Runs):
    """Train models on flipped labels, each run on a split of its own; measure the loss around them.

    held_out, loss_samples, lanczos_steps, extremes: see LandscapeFlags. slices: (points, radius
    along random directions, radius along eigenvectors), of slices through the first run that has
    not died; None for no slices.
    """

    model: Model
    alpha_percent: int
    training: Training
    held_out: int
    loss_samples: int
    lanczos_steps: int
    extremes: int
    slices: tuple[int, float, float] | None = None

    @property
    def kind(self) -> tuple:
        return ("Landscape", self.model.label)

    @property
    def title(self) -> str:
        return f"Landscape {self.model.label} {self.alpha_percent} %"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return the arrays of `measure` for each run, and those of `slices` of one run."""
        draws = [draw(self, dataset, run) for run in self.runs]
        params = self._train(draws)
        measurements = []
        top_vectors = []
        for run, params_of_run, data in zip(self.runs, params, draws, strict=True):
            key = self.key(run, "lanczos")
            measurement, vectors = measure(self, params_of_run, data, key)
            measurements.append(measurement)
            top_vectors.append(vectors)
        arrays = {}
        for name in measurements[0]:
            arrays[name] = np.stack([measurement[name] for measurement in measurements])
        arrays["size"] = size_of(params[0])
        if self.slices:
            # the first of the runs that neither diverged nor died, if there is one
            states = [(of_run["diverged"], of_run["dead"]) for of_run in measurements]
            place = states.index(min(states))
            run = self.runs[place]
            loss_split = draws[place].loss
            key = self.key(run, "slice")
            arrays |= slices(self, params[place], loss_split, top_vectors[place], key)
            arrays["slice_run"] = run
        return arrays

    def _train(self, draws: list[Draw]) -> list[Params]:
        """Train a model on each draw."""
        training_sets = [data.train for data in draws]
        splits = jax.tree.map(lambda *leaves: np.stack(leaves), *training_sets)
        keys = jnp.stack([self.key(run) for run in self.runs])
        trained = _train_runs(self.model, self.training, splits, keys)
        arrays = jax.tree.map(np.asarray, trained)
        return [jax.tree.map(itemgetter(place), arrays) for place in range(self.size)]

    def key(self, run: int, *use: str) -> jax.Array:
        """Return the key of a run's random choices of one use."""
        return random_key(self.seed, "landscape", *use, self.model.label, self.alpha_percent, run)


@partial(jax.jit, static_argnames=("model", "training"))
def _train_runs(model: Model, training: Training, splits: Split, keys: jax.Array) -> Params:
    """Train the runs of a block: networks side by side, circuits one after the other."""

    def one_run(arguments):
        return train(model, arguments[0], **training.keywords(), key=arguments[1])

    if isinstance(model, MLP):
        return jax.vmap(one_run)((splits, keys))
    return jax.lax.map(one_run, (splits, keys))


def plan(config: HessianConfig, dataset: Dataset) -> Iterator[Row]:
    """Plan the landscapes around trained models, for each model and share of flipped labels."""
    n = len(dataset.train.y)
    flags = config.landscape
    allowed = f"at most {n - 2} of the {n} training images"
    require(flags.held_out <= n - 2, "--landscape.held-out", flags.held_out, allowed)
    names = ("held_out", "loss_samples", "lanczos_steps", "extremes")
    shared = {name: getattr(flags, name) for name in names}
    shared |= {"training": config.training, "seed": config.seed}
    shared |= {"data": dataset.provenance["sha256"], "size": config.block}
    cells = itertools.product(config.models, config.alphas, config.blocks())
    for name, alpha, block in cells:
        model = BUILDERS[name](config, dataset)
        radii = flags.mlp_radii if isinstance(model, MLP) else flags.qnn_radii
        is_sliced = block == 0 and alpha in flags.slice_alphas
        sliced = (flags.slice_points, *radii) if is_sliced else None
        job = Landscape(model=model, alpha_percent=alpha, slices=sliced, block=block, **shared)
        place = {"model": model.label, "alpha_percent": alpha}
        shown = config.shown(job.runs)
        yield Row("landscape", job, place, landscape_table, shown, model_words(model))


AXES = {  # of a variable, behind the axes model, alpha_percent and run
    "accuracy": ("split",),
    "eigenvalues": ("rank",),
    "extreme": ("place",),
    "extreme_error": ("place",),
    "slice_loss": ("direction", "first", "second"),
    "slice_radius": ("direction",),
}
LABELS = {"split": ["train", "held_out"], "direction": ["random", "eigenvectors"]}


def landscape_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """All arrays: (model, alpha_percent, run, ...), those of slices without the axis run."""
    variables = {}
    for name, array in arrays.items():
        if name != "size":
            of_run = () if name.startswith("slice") else ("run",)
            dims = (*of_run, *AXES.get(name, ()))
            variables[name] = dims, np.asarray(array, np.float64)
    table = xr.Dataset(variables)
    coords = {axis: np.arange(n) for axis, n in table.sizes.items()}
    coords["run"] = list(row.job.runs)
    for axis, labels in LABELS.items():
        if axis in coords:
            coords[axis] = labels
    size = float(arrays["size"])
    table = placed(table.assign_coords(coords), row)
    return table.assign_coords(size=("model", [size]))


# ---- one run ----


class Draw(NamedTuple):
    """Data of one run: poisoned training set, held-out images, and the images of the loss.

    The images of the loss are some of those held out.
    """

    train: Split
    held_out: Split
    loss: Split


def draw(job: Landscape, dataset: Dataset, run: int) -> Draw:
    """Draw a stratified split of the training images and the flips of one run.

    Neither depends on the model.
    """
    whole = dataset.train
    split_key = random_key(job.seed, "landscape", "split", run)
    state = jax.random.randint(split_key, (), 0, 2**31 - 1)
    kept, held_out = train_test_split(
        np.arange(len(whole.y)), test_size=job.held_out, stratify=whole.y, random_state=int(state)
    )
    order = jax.random.permutation(
        random_key(job.seed, "landscape", "loss samples", run), job.held_out
    )
    chosen = np.sort(np.asarray(order)[: job.loss_samples])
    poisoned = flip_labels(
        whole.take(kept),
        job.alpha_percent / 100,
        key=random_key(job.seed, "landscape", "flips", job.alpha_percent, run),
        balanced=False,
    )
    return Draw(
        poisoned.split,
        whole.take(held_out),
        whole.take(held_out[chosen]),
    )


def measure(
    job: Landscape, params: Params, draw: Draw, key: jax.Array
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Measure a trained model: values by their names in the result file, and top two eigenvectors.

    trace_complex: the trace over real and imaginary angles of the published analysis, for its
    circuit; NaN for all other models. eigenvalues: descending, all of a QNN's, and all of a
    network's that are not exactly 0 (`landscape.row_space`). extreme: eigenvalues that Lanczos
    found at both ends, NaN for a QNN. diverged: whether the Hessian is not finite; then all other
    values are NaN.
    """
    model = job.model
    dense = _dense_hessian(model, params, draw.loss)
    diverged = not np.isfinite(np.asarray(dense)).all()
    if diverged:  # zeros give arrays of the right shapes, which are filled with NaN below
        params = jax.tree.map(np.zeros_like, params)
        dense = _dense_hessian(model, params, draw.loss)
    in_double = np.asarray(dense, np.float64)
    eigenvalues, vectors = np.linalg.eigh(in_double)
    published = isinstance(model, QNN) and model.entangler == "cnot"
    trace_complex = landscape.complex_trace(model, params, draw.loss) if published else np.nan
    if isinstance(model, MLP):
        trace, error = landscape.hessian_trace(model, params, draw.loss)
        extremes = landscape.extreme_eigenvalues(
            model, params, draw.loss, k=job.extremes, steps=job.lanczos_steps, key=key
        )
        top = np.asarray(extremes.vectors)[:-3:-1]
        dead = landscape.dead(model, params, draw.loss)
        dead_relus = landscape.dead_relus(model, params, draw.loss)
    else:
        trace = eigenvalues.sum()
        error = 0
        nothing = np.full((2, 2 * job.extremes), np.nan)
        extremes = landscape.Extremes(*nothing, None)
        top = vectors.T[:-3:-1]
        dead = dead_relus = 0  # a circuit has no ReLUs
    values = {
        "trace": trace,
        "trace_error": error,
        "trace_complex": trace_complex,
        "eigenvalues": eigenvalues[::-1],
        "extreme": extremes.values,
        "extreme_error": extremes.errors,
        "dead": dead,
        "dead_relus": dead_relus,
        "accuracy": _accuracies(model, params, draw.train, draw.held_out),
    }
    lost = np.nan if diverged else 0.0
    for name, value in values.items():
        values[name] = np.asarray(value, np.float64) + lost
    return values | {"diverged": np.float64(diverged)}, top


@partial(jax.jit, static_argnames="model")
def _accuracies(model: Model, params: Params, *splits: Split) -> jax.Array:
    """Accuracy on each of the splits: (splits,). Logits of all splits are computed together."""
    x = jnp.concatenate([split.x for split in splits])
    logits = model.logits(params, x)
    sizes = [len(split.y) for split in splits]
    ends = np.cumsum(sizes)[:-1]
    parts = zip(jnp.split(logits, ends), splits, strict=True)
    by_split = [metrics.accuracy(of_split, split.y) for of_split, split in parts]
    return jnp.stack(by_split)


def _dense_hessian(model: Model, params: Params, split: Split) -> jax.Array:
    """The whole Hessian of a QNN, and the part of a network's that is not exactly 0."""
    if isinstance(model, MLP):
        return landscape.hessian(*landscape.row_space(model, params, split))
    return landscape.hessian(model, params, split)


def slices(
    job: Landscape, params: Params, split: Split, top: np.ndarray, key: jax.Array
) -> dict[str, np.ndarray]:
    """Loss over two planes: along random directions, and along the top two eigenvectors."""
    random = landscape.filter_normalised_directions(job.model, params, key=key)
    points, *radii = job.slices
    planes = []
    for plane, radius in zip((random, top), radii, strict=True):
        directions = jnp.asarray(plane, random.dtype)
        planes.append(
            landscape.loss_slice(job.model, params, split, directions, radius=radius, points=points)
        )
    return {
        "slice_loss": np.stack([plane.loss for plane in planes]),
        "slice_radius": np.asarray(radii),
    }


# ---- what is shown: tables ----


def traces_and_ratios(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Hessian traces and their ratios to the clean traces: medians, and the published mean.

    The smallest α is clean. A model without clean runs has no row.
    """
    results = read[data, preset, "landscape"]
    runs = every_run(results)
    held_out = accuracies(results, "held_out").assign(measure="held out")
    smallest = results.alpha_percent.values[0]
    clean = runs[runs.alpha_percent == smallest].set_index(["model", "run"])
    no_spread = (np.nan, np.nan, np.nan)

    def traces(of_alpha: pd.DataFrame) -> Iterator[tuple]:
        clean_runs = clean.loc[of_alpha.model.iloc[0]]
        poisoned, clean_runs = of_alpha.set_index("run").align(clean_runs)
        for name, suffix in {"trace": "", "trace_complex": " over Re, Im"}.items():
            median = poisoned[name].median()
            interval = metrics.bootstrap_interval(poisoned[name], np.median)
            yield f"trace{suffix}", median, np.nan, *interval
            ratio, *interval = metrics.ratio_interval(poisoned[name], clean_runs[name])
            yield f"ratio{suffix}", ratio, np.nan, *interval
        scaled = poisoned.trace / clean_runs.trace.mean()
        yield "mean ratio", scaled.mean(), scaled.std(), np.nan, np.nan
        yield "dead", poisoned.dead.sum(), *no_spread
        yield "off", poisoned.dead_relus.mean(), *no_spread

    models = clean.index.unique("model")
    runs = runs[runs.model.isin(models)]
    held_out = held_out[held_out.model.isin(models)]
    return pd.concat([tidy(runs, traces), over_runs(held_out)], ignore_index=True)


PUBLISHED_TRACES = {  # heissian.ipynb: means of 5 seeds, the clean one and the ratios
    ("MLP[8,2]", "trace"): "0.19", ("QNN[depth=5,xy,cnot]", "trace over Re, Im"): "6.2",
    ("MLP[8,2]", "ratio"): "tens", ("QNN[depth=5,xy,cnot]", "ratio over Re, Im"): "near 1",
}  # fmt: skip


def traces_beside_published(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Traces at the smallest α and ratios at larger α, beside those of the paper's notebook."""
    tidy = traces_and_ratios(read, data, preset)
    places = zip(tidy.model, tidy.measure, strict=True)
    published = [PUBLISHED_TRACES.get(place, "–") for place in places]
    alphas = tidy.alpha_percent.astype(str)
    quantity = tidy.measure + ", α = " + alphas + " %"
    tidy = tidy.assign(published=published, quantity=quantity)
    is_clean = tidy.alpha_percent == tidy.alpha_percent.min()
    tidy = tidy[is_clean == tidy.measure.str.startswith("trace")]
    is_complex = tidy.measure.str.contains("Re, Im")
    is_published = tidy.published != "–"
    return tidy[~is_complex | is_published]


TABLE = StudyTable(
    frame=traces_and_ratios,
    rows=("model", "alpha_percent"),
    spread=("ratio", "mean ratio"),
    measures={
        "trace": "trace",
        "trace over Re, Im": "Re, Im",
        "ratio": "ratio",
        "mean ratio": "mean ± std",
        "dead": "dead",
        "off": "off",
        "held out": "held out",
    },
    title="Trace of the loss's Hessian against α in percent, median of n = {n} runs. Re, Im: over "
    "the real and imaginary parts of a circuit's angles, as published; ratio: of the trace's "
    "median to that at the smallest α, with its 95 % bootstrap interval; mean ± std: of the trace "
    "over the mean of those, as published; dead: runs whose logit is the same for all images; off: "
    "ReLUs that are off for all images, mean; held out: accuracy on the images held out, with "
    "their true labels",
    findings=None,
)
BESIDE_PUBLISHED = StudyTable(
    name="landscape",
    frame=traces_beside_published,
    rows=("model", "quantity", "published"),
    columns=("preset",),
    head="{preset}, n = {n}",
    measures={name: name for name in ("trace", "ratio", "trace over Re, Im", "ratio over Re, Im")},
    presets=SOURCES,
)

# ---- what is shown: figures ----


def hessian_traces(results: xr.Dataset) -> Figure | None:
    """Draw the Hessian's trace over its clean median: a dot for each run, median and interval.

    The counterpart of arXiv:2508.02422, Fig. 4.
    """
    from foundation.report.drawing import (
        ALPHA_LABEL,
        PANEL,
        finished,
        model_styles,
        panels_for,
        plt,
    )

    models, alphas = _landscape_models(results), results.alpha_percent.values
    if not models:
        return None
    ylabel = f"trace of the Hessian\nover its median at α = {alphas[0]} %"
    width = 0.8 / len(models)
    styles = model_styles(results, models)
    ((axis, _),) = panels_for([styles], ALPHA_LABEL, ylabel)
    generator = np.random.default_rng(0)  # scatters the dots sideways
    for place, (model, style) in enumerate(styles.items()):
        clean_traces = results.trace.sel(model=model)[{"alpha_percent": 0}]
        clean = float(clean_traces.median())
        from_middle = place - (len(models) - 1) / 2
        for column, alpha in enumerate(alphas):
            runs = results.sel(model=model, alpha_percent=alpha).dropna("run", subset=["trace"])
            ratios = runs.trace.values / clean
            dead = runs.dead.values > 0
            middle = column + from_middle * width
            x = middle + width * generator.uniform(-0.25, 0.25, len(ratios))
            label = "" if column else model  # once in the legend
            _draw_runs(axis, x, ratios, dead, style, label)
            _draw_median(axis, middle, ratios, 0.35 * width)
    axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    axis.set(yscale="log", xticks=range(len(alphas)), xticklabels=map(str, alphas))
    plt.gcf().set_figwidth(1.4 * PANEL[0])
    n_dead = int(results.dead.sum())
    text = (
        f"n = {count_of_runs(results)} runs, a dot each; bars: median and its 95 % bootstrap "
        f"interval, that at α = {alphas[0]} % held fixed. Hollow: {n_dead} "
        f"run{'s' * (n_dead != 1)} whose network died (its logit is the same for all images)"
    )
    return finished(text, results, legend=True)


def _draw_runs(
    axis: Axes, x: np.ndarray, values: np.ndarray, dead: np.ndarray, style: tuple, label: str
) -> None:
    """Draw a dot for each run, hollow where the network is dead; style: of `model_styles`."""
    colour, _, marker = style
    form = {"color": colour, "markersize": 3, "alpha": 0.7, "label": label}
    hollow = {"color": colour, "markersize": 4.5, "fillstyle": "none"}
    alive = ~dead
    axis.plot(x[alive], values[alive], marker, **form)
    axis.plot(x[dead], values[dead], marker, **hollow)


def _draw_median(axis: Axes, x: float, values: np.ndarray, half: float) -> None:
    """Draw the median as a bar of twice the half width, and its 95 % bootstrap interval.

    Draws nothing where there are no values.
    """
    if not len(values):
        return
    ends = metrics.bootstrap_interval(values, np.median)
    median = np.median(values)
    axis.vlines(x, *ends, color="black", linewidth=0.9)
    axis.hlines(median, x - half, x + half, color="black", linewidth=1.4)


def hessian_spectra(results: xr.Dataset) -> Figure | None:
    """Draw the Hessian's eigenvalues by rank, at the smallest and the largest share of poison."""
    from foundation.report.drawing import finished, model_styles, panels_for

    models, alphas = _landscape_models(results), results.alpha_percent.values
    if not models:
        return None
    smallest = alphas[0]
    largest = alphas[-1]
    limits = 2 * np.nanquantile(results.eigenvalues, (0, 1))
    styles = model_styles(results, models)
    for axis, (model, style) in panels_for(styles.items(), "rank", "eigenvalue"):
        for alpha, colour in ((smallest, "0.45"), (largest, style[0])):
            spectra = results.eigenvalues.sel(model=model, alpha_percent=alpha)
            spectra = spectra.dropna("rank", how="all")
            ranks = spectra["rank"] + 1
            runs = spectra.transpose("rank", "run")
            median = spectra.median("run")
            axis.plot(ranks, runs, color=colour, linewidth=0.4, alpha=0.35)
            axis.plot(ranks, median, color=colour, linewidth=1.5, label=f"α = {alpha} %")
        axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.set(title=model, xscale="log", ylim=limits)
        axis.legend(frameon=False)
    text = (
        f"thin: each of n = {count_of_runs(results)} runs, thick: their median at each rank. "
        "Exact; of a network, the directions that no image reaches, in which the loss is flat, are "
        "left out"
    )
    return finished(text, results)


def loss_slices(results: xr.Dataset) -> Figure | None:
    """Draw the loss on planes through trained models, clean beside poisoned."""
    from foundation.report.drawing import finished, panels_for, plt

    if "slice_loss" not in results:
        return None
    is_finite = np.isfinite(results.slice_loss)
    sliced = results.assign(slice_loss=results.slice_loss.where(is_finite))
    sliced = sliced.dropna("alpha_percent", how="all", subset=["slice_loss"])
    dims = [dim for dim in sliced.slice_loss.dims if dim != "model"]
    finite = sliced.slice_loss.count(dims)
    models = [model for model in _landscape_models(results) if finite.sel(model=model)]
    if not models:
        return None
    names = {"random": "random", "eigenvectors": "top eigenvectors"}
    alphas = sliced.alpha_percent.values
    panels = panels_for(itertools.product(models, names, alphas), rows=len(models))
    all_axes = [axis for axis, _ in panels]
    pairs = np.reshape(all_axes, (-1, len(alphas)))
    width = 1.65 * len(names) * len(alphas) + 1.6
    height = 1.75 * len(models) + 0.6
    plt.gcf().set_size_inches(width, height)
    places = itertools.product(models, names)
    for (model, direction), axes in zip(places, pairs, strict=True):
        _draw_planes(axes, sliced.sel(model=model, direction=direction))
        axes[0].set_ylabel(model * (direction == "random"))
        for axis, alpha in zip(axes, alphas, strict=True):
            title = f"{names[direction]}\nα = {alpha} %" if model == models[0] else ""
            axis.set_title(title, fontsize=8)
    text = (
        "one run of each, cross: its trained parameters; loss on the images of the Hessian. Random "
        "directions are in units of the filters' norms for a network and of 1 rad root mean square "
        "for a circuit, eigenvectors (of the two largest eigenvalues) in Euclidean length"
    )
    return finished(text, results)


def _draw_planes(axes: Sequence[Axes], sliced: xr.Dataset) -> None:
    """Draw the slices at each share of flipped labels, in one scale of colours with one bar."""
    from foundation.report.drawing import log_ticks, matplotlib, plt

    ends = (sliced.slice_loss.min(), sliced.slice_loss.max())
    low, high = np.fmax(ends, (1e-3, 2e-3))
    levels = np.geomspace(low, high, 16)
    norm = matplotlib.colors.LogNorm(low, high)
    for axis, alpha in zip(axes, sliced.alpha_percent.values, strict=True):
        at_alpha = sliced.sel(alpha_percent=alpha)
        plane = at_alpha.slice_loss.transpose("second", "first").values
        radius = at_alpha.slice_radius.item()
        offsets = np.linspace(-radius, radius, len(plane))
        form = {"levels": levels, "cmap": "cividis", "norm": norm}
        clipped = np.clip(plane, low, high)
        drawn = axis.contourf(offsets, offsets, clipped, **form)
        axis.plot(0, 0, "+", color="white", markersize=6)
        axis.set(aspect="equal")
    bar = {"label": "loss (nats)", "ticks": log_ticks(low, high), "format": "%g", "shrink": 0.8}
    plt.colorbar(drawn, ax=list(axes), **bar).minorticks_off()


def _landscape_models(results: xr.Dataset) -> list[str]:
    """The models in reading order, without those that diverged in all clean runs."""
    clean = results.trace[{"alpha_percent": 0}]
    return [model for model in ordered(results, "model") if clean.sel(model=model).count()]


# ---- what is claimed ----


def roughens(read: ResultFiles, data: str, alpha: int) -> Claim:
    """log10 of the trace's ratio to the clean trace, MLP minus QNN; control: MLP minus logistic.

    The loss of logistic regression is convex: poison cannot roughen it, its confidence alone rises.
    """
    from foundation.report.claims import Claim, of_family, paired

    results = read[data, "corrected", "landscape"]
    logarithm = np.log10(results.trace)
    log_ratio = logarithm.sel(alpha_percent=alpha) - logarithm.sel(alpha_percent=0)
    described = {name: results[name] for name in ("family", "size")}
    runs = every_run(log_ratio.rename("accuracy").to_dataset().assign_coords(described))
    mlp, circuit, convex = (of_family(runs, family) for family in ("MLP", "QNN", "Logistic"))
    effect, control = (
        paired(f"log10 of the ratio, MLP − {name}", mlp, other, ceiling=np.inf)
        for name, other in (("QNN", circuit), ("logistic regression", convex))
    )
    statement = "Poison roughens the loss of the MLP and not that of the QNN: trace of the Hessian"
    return Claim(
        whose="the paper's",
        source="Fig. 4",
        setting=AS_PUBLISHED,
        statement=f"{statement}, {alpha} %",
        effect=effect,
        controls=(control,),
        margin=0.0,
    )


STUDY = Study(
    name="landscape",
    two_classes=True,
    question="how does poison roughen the loss",
    plan=plan,
    flags=LandscapeFlags(),
    quick={"loss_samples": 50, "slice_points": 9},
    tables=(TABLE, BESIDE_PUBLISHED),
    figures=tuple(
        StudyFigure(name=draw.__name__, draw=draw)
        for draw in (hessian_traces, hessian_spectra, loss_slices)
    ),
)
