"""How does poison roughen the loss? Hessians, spectra and slices of the loss after training on
flipped labels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from sklearn.model_selection import train_test_split

import landscape
from datar import Dataset, Split
from foundation.base.checks import require
from foundation.engine.jobs import Arrays, Runs, random_key
from foundation.engine.runner import Percent, Settings, require_list
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
from models import MLP, QNN, Model, Params, Training, train
from poison_unlearn import flip_labels
from studies.families import Widths, build_mlp, build_qnn, model_words, parse_widths

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
        require(
            1 <= self.loss_samples <= self.held_out,
            "loss_samples",
            self.loss_samples,
            f"1 to {self.held_out}",
        )
        is_odd = self.slice_points >= 3 and self.slice_points % 2 == 1
        require(is_odd, "slice_points", self.slice_points, "an odd number, 3 or more")
        for name in ("mlp_radii", "qnn_radii"):
            for radius in getattr(self, name):
                require(0 < radius < np.inf, name, radius, "positive numbers")
        most = self.lanczos_steps // 2
        require(
            2 <= self.extremes <= most,
            "extremes",
            self.extremes,
            f"2 to {most}, half of --landscape.lanczos-steps",
        )
        if self.slice_alphas:
            require_list("slice_alphas", self.slice_alphas)
        for alpha in self.slice_alphas:
            require(
                0 <= alpha < 100,
                "slice_alphas",
                alpha,
                "whole percents, 0 to 99 (not shares: 30, not 0.3)",
            )


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
    """A block of runs: models trained on flipped labels of splits of their own, and the loss around
    them.

    Fields as the flags of the same names. slices: points, and radii along random directions and
    eigenvectors, of the slices through the first run that has not died; None for no slices.
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
        draws = [draw(self, dataset, run) for run in self.runs]
        splits = jax.tree.map(lambda *leaves: np.stack(leaves), *(each.train for each in draws))
        keys = jnp.stack([self.key(run) for run in self.runs])
        trained = jax.tree.map(np.asarray, _train_runs(self.model, self.training, splits, keys))
        params = [
            jax.tree.map(lambda leaf, place=place: leaf[place], trained)
            for place in range(self.size)
        ]
        runs = zip(params, draws, self.runs, strict=True)
        measured, tops = zip(
            *(measure(self, own, data, self.key(run, "lanczos")) for own, data, run in runs),
            strict=True,
        )
        arrays = {name: np.stack([each[name] for each in measured]) for name in measured[0]}
        arrays["size"] = sum(leaf.size for leaf in jax.tree.leaves(params[0]))
        if self.slices:
            place = min(
                range(self.size), key=lambda own: (measured[own]["diverged"], measured[own]["dead"])
            )
            key = self.key(self.runs[place], "slice")
            arrays |= slices(self, params[place], draws[place].loss, tops[place], key) | {
                "slice_run": self.runs[place]
            }
        return arrays

    def key(self, run: int, *use: str) -> jax.Array:
        return random_key(self.seed, "landscape", *use, self.model.label, self.alpha_percent, run)


@partial(jax.jit, static_argnames=("model", "training"))
def _train_runs(model: Model, training: Training, splits: Split, keys: jax.Array) -> Params:
    """The runs of a block, networks side by side and circuits one after the other."""

    def one_run(arguments):
        return train(model, arguments[0], **training.keywords(), key=arguments[1])

    return (
        jax.vmap(one_run)((splits, keys))
        if isinstance(model, MLP)
        else jax.lax.map(one_run, (splits, keys))
    )


def plan(config: HessianConfig, dataset: Dataset) -> Iterator[Row]:
    """Landscapes around trained models, for each model and share of flipped labels."""
    n, flags = len(dataset.train.y), config.landscape
    require(
        flags.held_out <= n - 2,
        "--landscape.held-out",
        flags.held_out,
        f"at most {n - 2} of the {n} training images",
    )
    names = ("held_out", "loss_samples", "lanczos_steps", "extremes")
    shared = {name: getattr(flags, name) for name in names} | {
        "training": config.training,
        "seed": config.seed,
    }
    shared |= {"data": dataset.provenance["sha256"], "size": config.block}
    for name, alpha, block in itertools.product(config.models, config.alphas, config.blocks()):
        model = BUILDERS[name](config, dataset)
        radii = flags.mlp_radii if isinstance(model, MLP) else flags.qnn_radii
        sliced = (
            (flags.slice_points, *radii) if block == 0 and alpha in flags.slice_alphas else None
        )
        job = Landscape(model=model, alpha_percent=alpha, slices=sliced, block=block, **shared)
        place = {"model": model.label, "alpha_percent": alpha}
        yield Row(
            "landscape", job, place, landscape_table, config.shown(job.runs), model_words(model)
        )


AXES = {  # of a variable, behind model, share of flipped labels and run
    "accuracy": ("split",),
    "eigenvalues": ("rank",),
    "extreme": ("place",),
    "extreme_error": ("place",),
    "slice_loss": ("direction", "first", "second"),
    "slice_radius": ("direction",),
}
LABELS = {"split": ["train", "held_out"], "direction": ["random", "eigenvectors"]}


def landscape_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """All arrays under the model and the share of flipped labels, those of each run along the
    runs."""
    values = {}
    for name, array in arrays.items():
        dims = (() if name.startswith("slice") else ("run",)) + AXES.get(name, ())
        values[name] = (
            ("model", "alpha_percent", *dims),
            np.asarray(array, np.float64)[None, None],
        )
    size = values.pop("size")
    table = xr.Dataset(values)
    counted = {axis: np.arange(n) for axis, n in table.sizes.items()} | {"run": list(row.job.runs)}
    own = {axis: [label] for axis, label in row.place.items()} | {
        "size": ("model", size[1].ravel())
    }
    return table.assign_coords(
        counted | {axis: LABELS[axis] for axis in LABELS if axis in counted} | own
    )


# ---- one run ----


class Draw(NamedTuple):
    """The data of one run: poisoned training set, held-out images, and those of them that make the
    loss."""

    train: Split
    held_out: Split
    loss: Split


def draw(job: Landscape, dataset: Dataset, run: int) -> Draw:
    """A stratified split of the training images and the flips of one run; the same for every
    model."""
    x, y = dataset.train
    split_key = random_key(job.seed, "landscape", "split", run)
    state = int(jax.random.randint(split_key, (), 0, 2**31 - 1))
    kept, held_out = train_test_split(
        np.arange(len(y)), test_size=job.held_out, stratify=y, random_state=state
    )
    order = jax.random.permutation(
        random_key(job.seed, "landscape", "loss samples", run), job.held_out
    )
    chosen = np.sort(np.asarray(order)[: job.loss_samples])
    poisoned = flip_labels(
        Split(x[kept], y[kept]),
        job.alpha_percent / 100,
        key=random_key(job.seed, "landscape", "flips", job.alpha_percent, run),
        balanced=False,
    )
    return Draw(
        poisoned.split,
        Split(x[held_out], y[held_out]),
        Split(x[held_out[chosen]], y[held_out[chosen]]),
    )


def measure(
    job: Landscape, params: Params, draw: Draw, key: jax.Array
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Everything that is kept of a trained model, by the names in the result file; and the top two
    eigenvectors.

    trace_complex: that of the published analysis, over real and imaginary angles, for its circuit;
    NaN for all others. eigenvalues: descending, all of a QNN's and all that are not exactly 0 of a
    network's (`landscape.row_space`). extreme: those that Lanczos found at both ends, NaN for a
    QNN. diverged: whether the Hessian is not finite; then all the rest is NaN.
    """
    model = job.model
    dense = _dense_hessian(model, params, draw.loss)
    diverged = not np.isfinite(np.asarray(dense)).all()
    if diverged:  # what is measured of any finite parameters has the shapes to be filled
        params = jax.tree.map(np.zeros_like, params)
        dense = _dense_hessian(model, params, draw.loss)
    eigenvalues, vectors = np.linalg.eigh(np.asarray(dense, np.float64))
    published = isinstance(model, QNN) and model.entangler == "cnot"
    trace_complex = landscape.complex_trace(model, params, draw.loss) if published else np.nan
    if isinstance(model, MLP):
        trace, error = landscape.hessian_trace(model, params, draw.loss)
        found = landscape.extreme_eigenvalues(
            model, params, draw.loss, k=job.extremes, steps=job.lanczos_steps, key=key
        )
        top = np.asarray(found.vectors)[:-3:-1]
        dead, dead_relus = (
            count(model, params, draw.loss) for count in (landscape.dead, landscape.dead_relus)
        )
    else:
        trace, error = eigenvalues.sum(), 0
        found = landscape.Extremes(*np.full((2, 2 * job.extremes), np.nan), None)
        top = vectors.T[:-3:-1]
        dead = dead_relus = 0  # a circuit has no ReLUs
    values = {
        "trace": trace,
        "trace_error": error,
        "trace_complex": trace_complex,
        "eigenvalues": eigenvalues[::-1],
        "extreme": found.values,
        "extreme_error": found.errors,
        "dead": dead,
        "dead_relus": dead_relus,
        "accuracy": _accuracies(model, params, draw.train, draw.held_out),
    }
    lost = np.nan if diverged else 0.0
    values = {name: np.asarray(value, np.float64) + lost for name, value in values.items()}
    return values | {"diverged": np.float64(diverged)}, top


@partial(jax.jit, static_argnames="model")
def _accuracies(model: Model, params: Params, *splits: Split) -> jax.Array:
    """The accuracy on each of the splits, whose logits are computed together."""
    logits = model.logits(params, jnp.concatenate([split.x for split in splits]))
    ends = np.cumsum([len(split.y) for split in splits])[:-1]
    parts = zip(jnp.split(logits, ends), splits, strict=True)
    return jnp.stack([metrics.accuracy(own, split.y) for own, split in parts])


def _dense_hessian(model: Model, params: Params, split: Split) -> jax.Array:
    """All of a QNN's Hessian, and that part of a network's that is not exactly 0."""
    if isinstance(model, MLP):
        return landscape.hessian(*landscape.row_space(model, params, split))
    return landscape.hessian(model, params, split)


def slices(
    job: Landscape, params: Params, split: Split, top: np.ndarray, key: jax.Array
) -> dict[str, np.ndarray]:
    """The loss over two planes: along random directions, and along the eigenvectors of the two
    largest eigenvalues."""
    random = landscape.filter_normalised_directions(job.model, params, key=key)
    points, *radii = job.slices
    planes = [
        landscape.loss_slice(
            job.model, params, split, jnp.asarray(plane, random.dtype), radius=radius, points=points
        )
        for plane, radius in zip((random, top), radii, strict=True)
    ]
    return {
        "slice_loss": np.stack([plane.loss for plane in planes]),
        "slice_radius": np.asarray(radii),
    }


# ---- what is shown: tables ----


def traces_and_ratios(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """Hessian traces and their ratios to the clean ones: medians, and the published mean. No row
    without clean ones."""
    results = read[data, preset, "landscape"]
    runs, held_out = every_run(results), accuracies(results, "held_out").assign(measure="held out")
    clean = runs[runs.alpha_percent == results.alpha_percent.values[0]].set_index(["model", "run"])

    def traces(own: pd.DataFrame) -> Iterator[tuple]:
        own, usual = own.set_index("run").align(clean.loc[own.model.iloc[0]])
        for name, words in {"trace": "", "trace_complex": " over Re, Im"}.items():
            yield (
                f"trace{words}",
                own[name].median(),
                np.nan,
                *metrics.bootstrap_interval(own[name], np.median),
            )
            ratio, *interval = metrics.ratio_interval(own[name], usual[name])
            yield f"ratio{words}", ratio, np.nan, *interval
        scaled = own.trace / usual.trace.mean()
        yield "mean ratio", scaled.mean(), scaled.std(), np.nan, np.nan
        yield "dead", own.dead.sum(), np.nan, np.nan, np.nan
        yield "off", own.dead_relus.mean(), np.nan, np.nan, np.nan

    runs, held_out = (
        each[each.model.isin(clean.index.unique("model"))] for each in (runs, held_out)
    )
    return pd.concat([tidy(runs, traces), over_runs(held_out)], ignore_index=True)


PUBLISHED_TRACES = {  # heissian.ipynb: means of 5 seeds, the clean one and the ratios
    ("MLP[8,2]", "trace"): "0.19", ("QNN[depth=5,xy,cnot]", "trace over Re, Im"): "6.2",
    ("MLP[8,2]", "ratio"): "tens", ("QNN[depth=5,xy,cnot]", "ratio over Re, Im"): "near 1",
}  # fmt: skip


def traces_beside_published(read: ResultFiles, data: str, preset: str) -> pd.DataFrame:
    """The traces at the smallest α, and the ratios at the others, beside what the paper's notebook
    has."""
    tidy = traces_and_ratios(read, data, preset)
    published = [
        PUBLISHED_TRACES.get(place, "–") for place in zip(tidy.model, tidy.measure, strict=True)
    ]
    tidy = tidy.assign(
        published=published,
        quantity=tidy.measure + ", α = " + tidy.alpha_percent.astype(str) + " %",
    )
    tidy = tidy[
        (tidy.alpha_percent == tidy.alpha_percent.min()) == tidy.measure.str.startswith("trace")
    ]
    return tidy[~tidy.measure.str.contains("Re, Im") | (tidy.published != "–")]


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
    "the real and "
    "imaginary parts of a circuit's angles, as published; ratio: of the trace's median to that at "
    "the smallest α, "
    "with its 95 % bootstrap interval; mean ± std: of the trace over the mean of those, as "
    "published; dead: runs "
    "whose logit is the same for all images; off: ReLUs that are off for all images, mean; held "
    "out: accuracy on "
    "the images held out, with their true labels",
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
    """The Hessian's trace over its clean median: a dot for each run, median and interval
    (arXiv:2508.02422, Fig. 4)."""
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
    ylabel, width = f"trace of the Hessian\nover its median at α = {alphas[0]} %", 0.8 / len(models)
    ((axis, styles),) = panels_for([model_styles(results, models)], ALPHA_LABEL, ylabel)
    generator = np.random.default_rng(0)  # scatters the dots sideways
    for place, (model, (colour, _, marker)) in enumerate(styles.items()):
        clean = float(results.trace.sel(model=model)[{"alpha_percent": 0}].median())
        for column, alpha in enumerate(alphas):
            runs = results.sel(model=model, alpha_percent=alpha).dropna("run", subset=["trace"])
            ratios, dead = runs.trace.values / clean, runs.dead.values > 0
            middle = column + (place - (len(models) - 1) / 2) * width
            x = middle + width * generator.uniform(-0.25, 0.25, len(ratios))
            form = {
                "color": colour,
                "markersize": 3,
                "alpha": 0.7,
                "label": "" if column else model,
            }
            axis.plot(x[~dead], ratios[~dead], marker, **form)
            axis.plot(x[dead], ratios[dead], marker, color=colour, markersize=4.5, fillstyle="none")
            if len(ratios):
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


def _draw_median(axis: Axes, x: float, values: np.ndarray, half: float) -> None:
    """The median as a bar of twice the half width, and its 95 % bootstrap interval."""
    ends, median = metrics.bootstrap_interval(values, np.median), np.median(values)
    axis.vlines(x, *ends, color="black", linewidth=0.9)
    axis.hlines(median, x - half, x + half, color="black", linewidth=1.4)


def hessian_spectra(results: xr.Dataset) -> Figure | None:
    """Eigenvalues of the Hessian in descending order without poison and with the most of it, a
    panel for each model."""
    from foundation.report.drawing import finished, model_styles, panels_for

    models, alphas = _landscape_models(results), results.alpha_percent.values
    if not models:
        return None
    for axis, (model, style) in panels_for(
        model_styles(results, models).items(), "rank", "eigenvalue"
    ):
        for alpha, colour in ((alphas[0], "0.45"), (alphas[-1], style[0])):
            spectra = results.eigenvalues.sel(model=model, alpha_percent=alpha).dropna(
                "rank", how="all"
            )
            axis.plot(
                spectra["rank"] + 1,
                spectra.transpose("rank", "run"),
                color=colour,
                linewidth=0.4,
                alpha=0.35,
            )
            axis.plot(
                spectra["rank"] + 1,
                spectra.median("run"),
                color=colour,
                linewidth=1.5,
                label=f"α = {alpha} %",
            )
        axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.set(title=model, xscale="log", ylim=2 * np.nanquantile(results.eigenvalues, (0, 1)))
        axis.legend(frameon=False)
    text = (
        f"thin: each of n = {count_of_runs(results)} runs, thick: their median at each rank. "
        "Exact; of a network, the directions that no image reaches, in which the loss is flat, are "
        "left out"
    )
    return finished(text, results)


def loss_slices(results: xr.Dataset) -> Figure | None:
    """The loss on planes through trained models, clean beside poisoned."""
    from foundation.report.drawing import finished, panels_for, plt

    if "slice_loss" not in results:
        return None
    sliced = results.assign(slice_loss=results.slice_loss.where(np.isfinite(results.slice_loss)))
    sliced = sliced.dropna("alpha_percent", how="all", subset=["slice_loss"])
    finite = sliced.slice_loss.count([dim for dim in sliced.slice_loss.dims if dim != "model"])
    models = [model for model in _landscape_models(results) if finite.sel(model=model)]
    if not models:
        return None
    names = {"random": "random", "eigenvectors": "top eigenvectors"}
    alphas = sliced.alpha_percent.values
    panels = panels_for(itertools.product(models, names, alphas), rows=len(models))
    pairs = np.reshape([axis for axis, _ in panels], (-1, len(alphas)))
    plt.gcf().set_size_inches(1.65 * len(names) * len(alphas) + 1.6, 1.75 * len(models) + 0.6)
    for (model, direction), axes in zip(itertools.product(models, names), pairs, strict=True):
        _draw_planes(axes, sliced.sel(model=model, direction=direction))
        axes[0].set_ylabel(model * (direction == "random"))
        for axis, alpha in zip(axes, alphas, strict=True):
            title = f"{names[direction]}\nα = {alpha} %" * (model == models[0])
            axis.set_title(title, fontsize=8)
    text = (
        "one run of each, cross: its trained parameters; loss on the images of the Hessian. Random "
        "directions are in units of the filters' norms for a network and of 1 rad root mean square "
        "for a circuit, eigenvectors (of the two largest eigenvalues) in Euclidean length"
    )
    return finished(text, results)


def _draw_planes(axes: Sequence[Axes], sliced: xr.Dataset) -> None:
    """The slices at each share of flipped labels in the same colours, with one bar."""
    from foundation.report.drawing import log_ticks, matplotlib, plt

    low, high = np.fmax((sliced.slice_loss.min(), sliced.slice_loss.max()), (1e-3, 2e-3))
    levels, norm = np.geomspace(low, high, 16), matplotlib.colors.LogNorm(low, high)
    for axis, alpha in zip(axes, sliced.alpha_percent.values, strict=True):
        own = sliced.sel(alpha_percent=alpha)
        plane, radius = own.slice_loss.transpose("second", "first").values, own.slice_radius.item()
        offsets = np.linspace(-radius, radius, len(plane))
        form = {"levels": levels, "cmap": "cividis", "norm": norm}
        drawn = axis.contourf(offsets, offsets, np.clip(plane, low, high), **form)
        axis.plot(0, 0, "+", color="white", markersize=6)
        axis.set(aspect="equal")
    bar = {"label": "loss (nats)", "ticks": log_ticks(low, high), "format": "%g", "shrink": 0.8}
    plt.colorbar(drawn, ax=list(axes), **bar).minorticks_off()


def _landscape_models(results: xr.Dataset) -> list[str]:
    """The models in reading order; none that diverged without poison."""
    clean = results.trace[{"alpha_percent": 0}]
    return [model for model in ordered(results, "model") if clean.sel(model=model).count()]


# ---- what is claimed ----


def roughens(read: ResultFiles, data: str, alpha: int) -> Claim:
    """log10 of the trace's ratio to the clean one, the MLP's less the QNN's; control: logistic
    regression's.

    Its loss is convex and has nothing to roughen: what its ratio rises by is confidence alone.
    """
    from foundation.report.claims import Claim, first_of, of_model, paired

    results = read[data, "corrected", "landscape"]
    traces = results.trace
    ratio = np.log10(traces.sel(alpha_percent=alpha) / traces.sel(alpha_percent=0))
    runs = every_run(ratio.rename("accuracy").to_dataset().assign_coords(
        {name: results[name] for name in ("family", "size")}))  # fmt: skip
    mlp, circuit, convex = (
        of_model(runs, first_of(runs, family)) for family in ("MLP", "QNN", "Logistic")
    )
    effect, control = (paired(f"log10 of the ratio, MLP − {name}", mlp, other) for name, other in
                       (("QNN", circuit), ("logistic regression", convex)))  # fmt: skip
    statement = (
        "Poison roughens the loss of the MLP and not that of the QNN: trace of the Hessian, "
        f"{alpha} %"
    )
    return Claim("the paper's", statement, effect, (control,), margin=0.0)


STUDY = Study(
    name="landscape",
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
