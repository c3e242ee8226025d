"""What do the samples look like before and after each poison? What is the ring's spectrum?"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from datar import Dataset
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job, random_key
from foundation.engine.study import Study, StudyFigure
from foundation.engine.study_files import Row
from foundation.quantum.ring import xxz_spectrum
from foundation.report.frames import ordered
from poison_unlearn import Poison, Poisoned
from protocol import poison_key
from studies.config import Config
from studies.rows import poisons_to_unlearn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---- what is computed ----


@dataclass(frozen=True, kw_only=True)
class Samples(Job):
    """t-SNE of the training set before and after each poison, with example images of image data."""

    poisons: tuple[Poison, ...]
    seed: int = 0

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return embedding, label and poisoned, and of images image and image_label.

        embedding: (versions, n, 2). label, poisoned: (versions, n). The first version has no
        poison. image: (poisons, 2, images, height, width). image_label: (poisons, 2, images).
        """
        draws = []
        for poison in self.poisons:
            key = poison_key(self.seed, poison, 0)
            draws.append(poison.draw(dataset, key=key))
        key = random_key(self.seed, "t-SNE")
        state = int(jax.random.randint(key, (), 0, 2**31 - 1))
        arrays = _embeddings(dataset, draws, state)
        if dataset.image_shape:
            arrays |= _example_images(draws, dataset.image_shape)
        return arrays


def _embeddings(dataset: Dataset, draws: list[Poisoned], state: int) -> Arrays:
    """Embed the training set without poison and with each poison by t-SNE.

    embedding: (versions, n, 2). label, poisoned: (versions, n). The first version has no poison.
    """
    from sklearn.manifold import TSNE

    def plane(x: np.ndarray) -> np.ndarray:
        is_complex = np.iscomplexobj(x)
        features = np.concatenate([x.real, x.imag], axis=1) if is_complex else x
        perplexity = min(30, len(x) / 4)
        tsne = TSNE(perplexity=perplexity, init="pca", random_state=state)
        return tsne.fit_transform(features.astype(np.float32))

    clean = dataset.train
    clean_plane = plane(clean.x)
    planes = [clean_plane]
    for draw in draws:
        has_clean_inputs = np.array_equal(draw.split.x, clean.x)
        planes.append(clean_plane if has_clean_inputs else plane(draw.split.x))
    labels = [clean.y, *(draw.split.y for draw in draws)]
    no_poison = np.zeros(len(clean.y), bool)
    masks = [no_poison, *(draw.mask for draw in draws)]
    of_versions = {"embedding": planes, "label": labels, "poisoned": masks}
    return {name: np.stack(arrays) for name, arrays in of_versions.items()}


def _example_images(draws: list[Poisoned], shape: tuple[int, int]) -> Arrays:
    """Take poisoned images before and after each poison, with the labels trained on.

    Classes alternate: of two there are three images each, of one that a poison hits six. Every
    poison gets as many images as the poison with the fewest. image: (poisons, 2, images, *shape).
    image_label: (poisons, 2, images).
    """
    images = []
    labels = []
    counts = [len(draw.forget_clean.y) for draw in draws]
    count = min(6, *counts)
    n_pixels = shape[0] * shape[1]
    for draw in draws:
        true_labels = draw.forget_clean.y
        members = [np.flatnonzero(true_labels == label) for label in np.unique(true_labels)]
        ranks = [rank for of_class in members for rank in range(len(of_class))]
        alternating = np.argsort(ranks, kind="stable")
        chosen = np.concatenate(members)[alternating][:count]
        stages = (draw.forget_clean, draw.forget_poisoned)
        pixels = [split.x[chosen, :n_pixels] for split in stages]
        images.append([rows.reshape(-1, *shape) for rows in pixels])
        labels.append([split.y[chosen] for split in stages])
    return {"image": np.array(images), "image_label": np.array(labels)}


@dataclass(frozen=True, kw_only=True)
class Spectrum(Job):
    """Ground-state energy per site and gap of the ring at each coupling of the data set."""

    n_sites: int

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return the arrays of `xxz_spectrum`, and energy_per_site."""
        levels = xxz_spectrum(self.n_sites)
        energy_per_site = levels.energy / self.n_sites
        return {"energy_per_site": energy_per_site, **levels._asdict()}


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan the samples before and after each poison.

    A poison that is not unlearned gets the share of flipped labels, or 30 %.
    """
    unlearned = [each for each in poisons_to_unlearn(config, dataset) if each.changes]
    poisons = {}
    if dataset.given is None:
        kinds = ("labels", "features", *config.poisons)
        share = config.unlearn_labels or 30
        poisons = {kind: Poison(kind, share) for kind in kinds if kind != "given"}
    poisons |= {poison.name: poison for poison in unlearned}
    poisons = tuple(poisons.values())
    job = Samples(data=dataset.provenance["sha256"], poisons=poisons, seed=config.seed)
    yield Row("data", job, {}, samples_table)


def plan_of_ring(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Plan the spectrum of the ring, and the samples before and after each poison.

    config: of run_unlearn_xxz.py.
    """
    job = Spectrum(data=dataset.provenance["sha256"], n_sites=config.n_sites)
    yield Row("data", job, {}, spectrum_table)
    yield from plan(config, dataset)


def samples_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate the arrays of Samples over version and sample, images over poison and stage."""
    dims_of_samples = ("version", "sample", "axis")
    dims_of_images = ("poison", "stage", "example", "row", "column")
    variables = {}
    for name, array in arrays.items():
        most_dims = dims_of_images if name.startswith("image") else dims_of_samples
        dims = most_dims[: array.ndim]
        variables[name] = (dims, array.astype(float))
    table = xr.Dataset(variables)
    names = [poison.name for poison in row.job.poisons]
    shown = [0, *(poison.alpha_percent for poison in row.job.poisons)]
    labels = {
        "version": ["none", *names],
        "axis": ["x", "y"],
        "poison": names,
        "stage": ["before", "after"],
    }
    coords = {}
    for dim, size in table.sizes.items():
        coords[dim] = labels.get(dim, np.arange(size))
    coords["shown_percent"] = ("version", shown)
    return table.assign_coords(coords)


def spectrum_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate the arrays of Spectrum over the coupling delta."""
    names = ("energy_per_site", "gap", "is_train", "is_val")
    variables = {name: ("delta", arrays[name].astype(float)) for name in names}
    return xr.Dataset(variables, {"delta": arrays["delta"]})


# ---- what is shown ----


def poison_examples(results: xr.Dataset) -> Figure | None:
    """Draw images before and after each poison, with the labels trained on."""
    from foundation.report.drawing import finished, panels_for, plt, poison_words, sns

    if "image" not in results:
        return None
    stages = list(itertools.product(ordered(results, "poison"), ("before", "after")))
    examples = results.example.values
    panels = panels_for(itertools.product(stages, examples), rows=len(stages))
    for axis, ((poison, stage), example) in panels:
        sample = results.sel(poison=poison, stage=stage, example=example)
        axis.imshow(sample.image, cmap="gray_r")
        axis.set_title(f"label {int(sample.image_label)}", fontsize=7, pad=2)
        axis.set(xticks=[], yticks=[])
        if example == examples[0]:
            title = f"{poison_words(poison)},\nafter" if stage == "after" else stage
            axis.set_ylabel(title, fontsize=7)
    width = 0.9 * len(examples)
    height = 1.05 * len(stages) + 0.4
    plt.gcf().set_size_inches(width, height)
    sns.despine(left=True, bottom=True)
    text = "training images and the labels they are trained on, before and after each poison"
    data = json.loads(results.attrs["data"])
    if digits := data.get("digits"):
        kind = "class" if data.get("source") == "fashion" else "digit"
        text += f"; label 0 stands for the {kind} {digits[0]}"
        text += "".join(f", label {k} for {digits[k]}" for k in range(1, len(digits)))
    return finished(text, results)


def poison_embeddings(results: xr.Dataset) -> Figure | None:
    """Draw the t-SNE of the training set without poison and with each poison."""
    from foundation.report.drawing import PALETTE, finished, panels_for, poison_words, sns

    if "embedding" not in results:
        return None
    n_classes = int(results.label.max()) + 1
    colours = ("0.3", PALETTE[8]) if n_classes == 2 else sns.color_palette("husl", n_classes)
    names = {version: poison_words(version) for version in ordered(results, "version")}
    for axis, (version, title) in panels_for(names.items(), "t-SNE 1", "t-SNE 2"):
        embedded = results.sel(version=version)
        for (label, colour), (poisoned, marker) in itertools.product(
            enumerate(colours), enumerate("oX")
        ):
            has_label = embedded.label.values == label
            is_drawn = has_label & (embedded.poisoned.values == poisoned)
            points = embedded.embedding.values[is_drawn]  # (samples, 2)
            name = f"label {label}, poisoned" if poisoned else f"label {label}"
            name = name if len(points) else None  # no entry in the legend
            form = {"color": colour, "marker": marker, "alpha": 0.75, "edgecolors": "black"}
            axis.scatter(*points.T, s=9 + 12 * poisoned, linewidths=0.4, label=name, **form)
        axis.set(title=title, xticks=[], yticks=[])
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    shown = results.shown_percent.to_series()
    shares = []
    for version, name in names.items():
        if version != "none":
            shares.append(f"{shown[version]:g} % {name}")
    n = results.sizes["sample"]
    text = f"t-SNE of the {n} training samples; {' and '.join(shares)}; crosses: poisoned"
    return finished(text, results)


def spectrum_figure(results: xr.Dataset) -> Figure | None:
    """Draw energy per site and gap of the ring's ground states against the coupling.

    Marks below the curves: couplings of the training and of the validation states.
    """
    from foundation.report.drawing import finished, panels_for

    if "gap" not in results:
        return None
    marks = ("is_train", 0.11, "0.6", "training"), ("is_val", 0.03, "0.15", "validation")
    for axis, variable in panels_for(["energy_per_site", "gap"], "coupling Δ"):
        axis.axvline(1, color="0.4", linestyle="--", linewidth=0.8)
        dots = {"color": "black", "markersize": 1.6, "markeredgewidth": 0}
        axis.plot(results.delta, results[variable], "o", **dots)
        low, high = axis.get_ylim()
        room = 0.25 * (high - low)  # below the curve, for the marks
        ylabel = variable.replace("_", " ")
        axis.set(ylabel=ylabel, ylim=(low - room, high))
        for mask, height, colour, name in marks:
            deltas = results.delta[results[mask].values > 0]
            form = {"color": colour, "transform": axis.get_xaxis_transform()}
            axis.vlines(deltas, height, height + 0.06, linewidth=0.7, **form)
            left = float(deltas[0]) - 0.03
            axis.text(left, height + 0.03, name, ha="right", va="center", **form)
        axis.set_xlim(left=-0.6)
    text = (
        f"XXZ ring of {json.loads(results.attrs['data'])['n_sites']} sites in units of its "
        "exchange (Pauli matrices). Dashed: the transition at Δ = 1, to its left the critical "
        "phase (label 0), to its right the antiferromagnetic one (label 1). Marks: the "
        f"{int(results.is_train.sum())} training and {int(results.is_val.sum())} validation "
        "states. Exact diagonalisation, no error bars"
    )
    return finished(text, results)


FIGURES = tuple(
    StudyFigure(name=draw.__name__, draw=draw, files=("data",))
    for draw in (poison_examples, poison_embeddings)
)
STUDY = Study(name="data", question="what does the poison look like", plan=plan, figures=FIGURES)
OF_RING = Study(
    name="data",
    question="which states are there, and what does the poison look like",
    plan=plan_of_ring,
    figures=(StudyFigure(name="spectrum", draw=spectrum_figure, files=("data",)), *FIGURES),
)
