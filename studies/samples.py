"""What do the samples look like, before and after each poison? On the ring, its spectrum as
well."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
import xarray as xr

from datar import Dataset
from foundation.engine.jobs import Arrays, Job, random_key
from foundation.engine.study import Study, StudyFigure
from foundation.engine.study_files import Row
from foundation.quantum.ring import xxz_spectrum
from foundation.report.frames import ordered
from poison_unlearn import Poison, Poisoned
from studies.config import Config
from studies.rows import poisons_to_unlearn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---- what is computed ----


@dataclass(frozen=True, kw_only=True)
class Samples(Job):
    """The training set before and after each poison: a t-SNE embedding, and some images where the
    data are images."""

    poisons: tuple[Poison, ...]
    seed: int = 0

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        purpose = [("poison", poison.kind, poison.alpha_percent, 0) for poison in self.poisons]
        keys = [random_key(self.seed, *words) for words in purpose]
        draws = [
            poison.draw(dataset, key=key) for poison, key in zip(self.poisons, keys, strict=True)
        ]
        state = int(jax.random.randint(random_key(self.seed, "t-SNE"), (), 0, 2**31 - 1))
        arrays = _embeddings(dataset, draws, state)
        return arrays | (_example_images(draws, dataset.image_shape) if dataset.image_shape else {})


def _embeddings(dataset: Dataset, draws: list[Poisoned], state: int) -> Arrays:
    """t-SNE of the training set without poison and with each, its labels, and which samples are
    poisoned."""
    from sklearn.manifold import TSNE

    def plane(x: np.ndarray) -> np.ndarray:
        features = np.concatenate([x.real, x.imag], axis=1) if np.iscomplexobj(x) else x
        tsne = TSNE(perplexity=min(30, len(x) / 4), init="pca", random_state=state)
        return tsne.fit_transform(features.astype(np.float32))

    clean = dataset.train
    first = plane(clean.x)
    planes = [
        first,
        *(
            first if np.array_equal(draw.split.x, clean.x) else plane(draw.split.x)
            for draw in draws
        ),
    ]
    labels = [clean.y, *(draw.split.y for draw in draws)]
    masks = [np.zeros(len(clean.y), bool), *(draw.mask for draw in draws)]
    return {"embedding": np.stack(planes), "label": np.stack(labels), "poisoned": np.stack(masks)}


def _example_images(draws: list[Poisoned], shape: tuple[int, int]) -> Arrays:
    """The first three poisoned images of each class in turn, before and after, with the labels they
    are trained on.

    Of poison of one class that class's first six; as many of each poison.
    """
    images, labels, count = [], [], min(6, *(len(draw.forget_clean.y) for draw in draws))
    for draw in draws:
        members = [np.flatnonzero(draw.forget_clean.y == label) for label in (0, 1)]
        order = np.argsort([rank for own in members for rank in range(len(own))], kind="stable")
        chosen = np.concatenate(members)[order][:count]
        stages = (draw.forget_clean, draw.forget_poisoned)
        images.append(
            [split.x[chosen, : shape[0] * shape[1]].reshape(-1, *shape) for split in stages]
        )
        labels.append([split.y[chosen] for split in stages])
    return {"image": np.array(images), "image_label": np.array(labels)}


@dataclass(frozen=True, kw_only=True)
class Spectrum(Job):
    """Ground-state energy per site and gap of the ring at the couplings of the data set."""

    n_sites: int

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        levels = xxz_spectrum(self.n_sites)
        return {"energy_per_site": levels.energy / self.n_sites, **levels._asdict()}


def plan(config: Config, dataset: Dataset) -> Iterator[Row]:
    """What the poison looks like."""
    kinds = dict.fromkeys(("labels", "features", *config.poisons, *config.unlearn_alphas()))
    usual = dict.fromkeys(kinds, config.unlearn_labels or 30)
    alphas = {
        kind: alpha for kind, alpha in (usual | config.unlearn_alphas()).items() if kind != "given"
    }
    alphas = alphas if dataset.given is None else poisons_to_unlearn(config, dataset)
    poisons = tuple(Poison(kind, alpha) for kind, alpha in alphas.items())
    yield Row(
        "data",
        Samples(data=dataset.provenance["sha256"], poisons=poisons, seed=config.seed),
        {},
        samples_table,
    )


def plan_of_ring(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The spectrum of the ring, and what the poison looks like; config: of run_unlearn_xxz.py."""
    yield Row(
        "data",
        Spectrum(data=dataset.provenance["sha256"], n_sites=config.n_sites),
        {},
        spectrum_table,
    )
    yield from plan(config, dataset)


def samples_table(row: Row, arrays: Arrays) -> xr.Dataset:
    of_samples, of_images = (
        ("version", "sample", "axis"),
        ("poison", "stage", "example", "row", "column"),
    )
    dims = {name: of_images if name.startswith("image") else of_samples for name in arrays}
    table = xr.Dataset(
        {name: (dims[name][: each.ndim], each.astype(float)) for name, each in arrays.items()}
    )
    poisons = row.job.poisons
    kinds, shown = [each.kind for each in poisons], [0, *(each.alpha_percent for each in poisons)]
    labels = {
        "version": ["none", *kinds],
        "axis": ["x", "y"],
        "poison": kinds,
        "stage": ["before", "after"],
    }
    coords = {dim: labels.get(dim, np.arange(size)) for dim, size in table.sizes.items()}
    return table.assign_coords(coords | {"shown_percent": ("version", shown)})


def spectrum_table(row: Row, arrays: Arrays) -> xr.Dataset:
    names = ("energy_per_site", "gap", "is_train", "is_val")
    return xr.Dataset(
        {name: ("delta", arrays[name].astype(float)) for name in names}, {"delta": arrays["delta"]}
    )


# ---- what is shown ----


def poison_examples(results: xr.Dataset) -> Figure | None:
    """Images before and after each poison, with the labels that they are trained on."""
    from foundation.report.drawing import finished, panels_for, plt, poison_words, sns

    if "image" not in results:
        return None
    stages, examples = (
        list(itertools.product(ordered(results, "poison"), ("before", "after"))),
        results.example.values,
    )
    for axis, ((poison, stage), example) in panels_for(
        itertools.product(stages, examples), rows=len(stages)
    ):
        own = results.sel(poison=poison, stage=stage, example=example)
        axis.imshow(own.image, cmap="gray_r")
        axis.set_title(f"label {int(own.image_label)}", fontsize=7, pad=2)
        axis.set(xticks=[], yticks=[])
        if example == examples[0]:
            axis.set_ylabel(f"{poison_words(poison)},\n" * (stage == "after") + stage, fontsize=7)
    plt.gcf().set_size_inches(0.9 * len(examples), 1.05 * len(stages) + 0.4)
    sns.despine(left=True, bottom=True)
    text = "training images and the labels they are trained on, before and after each poison"
    if digits := json.loads(results.attrs["data"]).get("digits"):
        text += f"; label 0 stands for the digit {digits[0]}, label 1 for {digits[1]}"
    return finished(text, results)


def poison_embeddings(results: xr.Dataset) -> Figure | None:
    """t-SNE of the training set without poison and with each."""
    from foundation.report.drawing import PALETTE, finished, panels_for, poison_words

    if "embedding" not in results:
        return None
    names = {version: poison_words(version) for version in ordered(results, "version")}
    for axis, (version, title) in panels_for(names.items(), "t-SNE 1", "t-SNE 2"):
        own = results.sel(version=version)
        for (label, colour), (poisoned, marker) in itertools.product(
            enumerate(("0.3", PALETTE[8])), enumerate("oX")
        ):
            chosen = own.embedding.values[
                (own.label.values == label) & (own.poisoned.values == poisoned)
            ]
            name = f"label {label}" + ", poisoned" * poisoned if len(chosen) else None
            axis.scatter(*chosen.T, s=9 + 12 * poisoned, color=colour, marker=marker, alpha=0.75,
                         linewidths=0.4, edgecolors="black", label=name)  # fmt: skip
        axis.set(title=title, xticks=[], yticks=[])
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    shown = results.shown_percent.to_series()
    words = " and ".join(
        f"{shown[version]:g} % {name}" for version, name in names.items() if version != "none"
    )
    return finished(
        f"t-SNE of the {results.sizes['sample']} training samples; {words}; crosses: poisoned",
        results,
    )


def spectrum_figure(results: xr.Dataset) -> Figure | None:
    """Ground-state energy per site and gap of the XXZ ring against the coupling, the samples marked
    below."""
    from foundation.report.drawing import finished, panels_for

    if "gap" not in results:
        return None
    marks = ("is_train", 0.11, "0.6", "training"), ("is_val", 0.03, "0.15", "validation")
    for axis, variable in panels_for(["energy_per_site", "gap"], "coupling Δ"):
        axis.axvline(1, color="0.4", linestyle="--", linewidth=0.8)
        axis.plot(
            results.delta, results[variable], "o", color="black", markersize=1.6, markeredgewidth=0
        )
        low, high = axis.get_ylim()
        # room for the marks
        axis.set(ylabel=variable.replace("_", " "), ylim=(low - 0.25 * (high - low), high))
        for mask, height, colour, name in marks:
            deltas = results.delta[results[mask].values > 0]
            form = {"color": colour, "transform": axis.get_xaxis_transform()}
            axis.vlines(deltas, height, height + 0.06, linewidth=0.7, **form)
            axis.text(float(deltas[0]) - 0.03, height + 0.03, name, ha="right", va="center", **form)
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
