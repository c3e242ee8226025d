"""The studies: noise sweep, unlearning curves, weight maps, and what the poison looks like.

A study is a function from configuration and data to chunks: it says what a chunk computes and knows nothing of files.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
import xarray as xr

import metrics
from datar import Dataset, Split, require
from models import MLP, QNN, Model, Params, QuadraticForm, train
from poison_unlearn import METHODS, POISONS, Poisoned, Weights, check_weights, unlearn
from runner import (
    Checked,
    Chunk,
    Computed,
    Percent,
    Settings,
    Study,
    flag_name,
    random_key,
    shared_identity,
    slug,
)

POISONED = ("labels", "features")  # the poisons of the studies
SPLITS = ("validation", "retain", "forget_poisoned", "forget_clean", "train")

# ---- configuration ----


@dataclass(frozen=True)
class Training(Checked):
    """How a model is trained."""

    epochs: int
    """Passes over the training data."""
    batch_size: int
    """Samples per step; 0 takes all of them."""
    learning_rate: float
    """Of Adam."""

    def check(self):
        require(self.epochs >= 0, "epochs", self.epochs, "0 or more")
        require(self.batch_size >= 0, "batch-size", self.batch_size, "1 or more, or 0 for all")
        require(0 < self.learning_rate < np.inf, "learning-rate", self.learning_rate, "a positive number")

    def keywords(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Protocol(Checked):
    """How a family of models is trained in each study."""

    sweep: Training
    teacher: Training
    unlearn: Training
    parallel: int
    """Runs computed side by side in one batch; a matter of speed and memory (results agree to rounding)."""

    def check(self):
        require(self.parallel >= 1, "parallel", self.parallel, "1 or more")


Widths = Annotated[str, tyro.conf.arg(metavar="WIDTHS")]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """What to poison, train and unlearn. The flags of both unlearning scripts; their presets are its instances."""

    stages: tuple[Literal["data", "noise_sweep", "unlearning", "weight_map"], ...] = (
        "data", "noise_sweep", "unlearning", "weight_map",
    )  # fmt: skip
    """Studies to run; data: what the poison looks like."""
    models: tuple[str, ...] = ("mlp", "qnn")
    """Families of models: mlp, qnn, or quadratic (a control, the QNN's function class without a circuit)."""
    poisons: tuple[Literal["labels", "features"], ...] = ("labels", "features")
    """Poisons of the noise sweep."""
    alphas: tuple[Percent, ...] = tuple(range(0, 100, 10))
    """Poisoned shares of the noise sweep, in percent."""
    hidden: tuple[Widths, ...] = ("64,16",)
    """Hidden widths of each MLP of the noise sweep, comma-separated; "none" is logistic regression."""
    label_hidden: tuple[Widths, ...] = ()
    """Hidden widths of further MLPs, of which the noise sweep flips labels only."""
    unlearn_hidden: Widths = "64,16"
    """Hidden widths of the MLP that unlearns."""
    depth: int = 6
    """Layers of the QNN."""
    unlearn_labels: Percent = 30
    """Share of flipped labels to unlearn, in percent; 0 skips it."""
    unlearn_features: Percent = 0
    """Share of randomised samples to unlearn, in percent; 0 skips it."""
    methods: tuple[str, ...] = ("retrain", "cf", "scrub", "ga")
    """Unlearning methods of the unlearning curves: names in poison_unlearn.METHODS."""
    ce_weight: float = 1.0
    """Weight of the cross-entropy on the retain set (cf, scrub, ga)."""
    forget_weight: float = 0.2
    """Weight of the forget term (scrub, ga) in the unlearning curves."""
    kl_weight: float = 0.0
    """Weight of the divergence on the retain set (scrub) in the unlearning curves."""
    map_weights: tuple[float, ...] = tuple(i / 10 for i in range(10))
    """Grid of both weights in the weight maps."""
    weight_map_runs: int = 0
    """Repetitions of each cell of the weight maps where --runs is larger; 0: as many as --runs."""
    kl: Literal["full", "published"] = "published"
    """Divergence of scrub: the full Bernoulli KL, or its first term alone as in the published code."""
    scrub_forget: Literal["clean", "poisoned"] = "clean"
    """Which version of poisoned features scrub's forget term reads (published: clean)."""
    independent_teachers: bool = False
    """Draw poison and train a teacher anew for each unlearning run (published: one for all of them)."""
    mlp: Protocol
    qnn: Protocol

    def check(self):
        super().check()
        require(self.depth >= 1, "--depth", self.depth, "1 or more")
        require(self.weight_map_runs >= 0, "--weight-map-runs", self.weight_map_runs, "1 or more, or 0 for --runs")
        self.check_lists("methods", "poisons", "hidden", "map_weights")
        self.check_percents("unlearn_labels", "unlearn_features")
        for flag, names, known in (("--methods", self.methods, METHODS), ("--models", self.models, FAMILIES)):
            for name in names:
                require(name in known, flag, name, ", ".join(known))
        check_weights(**{flag_name(name): getattr(self, name) for name in ("ce_weight", "forget_weight", "kl_weight")})
        for weight in self.map_weights:
            check_weights(**{"--map-weights": weight})
        for text in (*self.hidden, *self.label_hidden, self.unlearn_hidden):
            parse_widths(text)

    def protocol(self, model: Model) -> Protocol:
        """How a model is trained: a network as the MLP, all others as the QNN."""
        return self.mlp if isinstance(model, MLP) else self.qnn

    def unlearn_alphas(self) -> dict[str, int]:
        """{poison: percent} of what the unlearning studies unlearn."""
        alphas = {"labels": self.unlearn_labels, "features": self.unlearn_features}
        return {poison: alpha for poison, alpha in alphas.items() if alpha}


def parse_widths(text: str) -> tuple[int, ...]:
    """ "64,16" -> (64, 16); "none" -> ()."""
    if text == "none":
        return ()
    require(bool(re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text)), "--hidden", text, 'widths such as "64,16", or "none"')
    return tuple(int(width) for width in text.split(","))


def draw_poison(config: Config, dataset: Dataset, poison: str, alpha_percent: int, run: int) -> Poisoned:
    """The poisoned training set of one run; the same for every model."""
    key = random_key(config.seed, "poison", poison, alpha_percent, run)
    extra = {"n_features": dataset.n_features} if poison == "features" else {}
    return POISONS[poison](dataset.train, alpha_percent / 100, key=key, **extra)


# ---- the models of a study ----


def build_mlp(dataset: Dataset, widths: str) -> MLP:
    x = dataset.train.x
    return MLP(x.shape[1] * (2 if np.iscomplexobj(x) else 1), parse_widths(widths))


def build_qnn(dataset: Dataset, depth: int) -> QNN:
    return QNN(int(np.log2(dataset.train.x.shape[1])), depth)


def build_quadratic(dataset: Dataset) -> QuadraticForm:
    return QuadraticForm(dataset.train.x.shape[1], is_complex=np.iscomplexobj(dataset.train.x))


class Family(NamedTuple):
    """Models of one kind, by the name that --models knows: those of the noise sweep, and the one that unlearns."""

    sweep: Callable[[Config, Dataset], list[Model]]
    unlearning: Callable[[Config, Dataset], Model]


FAMILIES: dict[str, Family] = {
    "mlp": Family(
        lambda config, dataset: [build_mlp(dataset, widths) for widths in config.hidden],
        lambda config, dataset: build_mlp(dataset, config.unlearn_hidden),
    ),
    "qnn": Family(
        lambda config, dataset: [build_qnn(dataset, config.depth)],
        lambda config, dataset: build_qnn(dataset, config.depth),
    ),
    "quadratic": Family(
        lambda config, dataset: [build_quadratic(dataset)],
        lambda config, dataset: build_quadratic(dataset),
    ),
}


def sweep_models(config: Config, dataset: Dataset) -> list[Model]:
    return [model for name in config.models for model in FAMILIES[name].sweep(config, dataset)]


def unlearning_models(config: Config, dataset: Dataset) -> list[Model]:
    return [FAMILIES[name].unlearning(config, dataset) for name in config.models]


def map_runs(function: Callable, arguments: Any, *, parallel: int) -> Any:
    """`function` over the leading axis of `arguments`, `parallel` runs at a time."""
    n = len(jax.tree.leaves(arguments)[0])
    if parallel >= n:
        return jax.vmap(function)(arguments)
    return jax.lax.map(function, arguments, batch_size=parallel if parallel > 1 else None)


# ---- noise sweep ----


def noise_sweep(config: Config, dataset: Dataset) -> list[Chunk]:
    """Train on data of which a share alpha is poisoned; a chunk for each model, poison and alpha."""
    swept = [(model, poison) for model in sweep_models(config, dataset) for poison in config.poisons]
    if "mlp" in config.models and "labels" in config.poisons:
        swept += [(build_mlp(dataset, widths), "labels") for widths in config.label_hidden]
    return [sweep_chunk(config, dataset, model, poison, alpha) for model, poison in swept for alpha in config.alphas]


SWEEP_AXES = {"model": ("training", "parallel", "own_model"), "poison": (), "alpha_percent": ()}


def sweep_chunk(config: Config, dataset: Dataset, model: Model, poison: str, alpha: int) -> Chunk:
    """One point of the noise sweep, for all runs."""

    def compute() -> Computed:
        values, diverged = sweep_accuracy(config, dataset, model, poison, alpha, config.runs)
        coords = {
            "model": [model.label], "poison": [poison], "alpha_percent": [alpha],
            "run": np.arange(config.runs), "split": ["train", "validation"],
        }  # fmt: skip
        return Computed(without_diverged(labelled(coords, accuracy=values), diverged), {})

    identity = shared_identity(config, dataset) | sweep_identity(config, model, poison, alpha)
    return Chunk("noise_sweep", slug(model.label, poison, alpha), identity, compute, config.runs, axes=SWEEP_AXES)


def sweep_identity(config: Config, model: Model, poison: str, alpha: int) -> dict[str, Any]:
    """What `sweep_accuracy` depends on, beside data, seed and runs."""
    protocol = config.protocol(model)
    return model_identity(model) | {
        "poison": poison, "alpha_percent": alpha, "training": protocol.sweep.keywords(), "parallel": protocol.parallel,
    }  # fmt: skip


def model_identity(model: Model) -> dict[str, Any]:
    """What tells a model from all others: its label, and of a model or ansatz that a user added all its fields too.

    Not the code of its methods: whoever edits that has to start with --fresh.
    """
    known = isinstance(model, (MLP, QNN, QuadraticForm)) and getattr(model, "ansatz", None) is None
    own = {} if known else {"own_model": re.sub(r" at 0x[0-9a-f]+", "", repr(model))}  # a function's address
    return {"model": model.label} | own


def sweep_accuracy(
    config: Config, dataset: Dataset, model: Model, poison: str, alpha: int, runs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy of models trained on poisoned data, on their training and the validation split: (runs, 2).

    And which of them diverged, (runs,).
    """
    protocol = config.protocol(model)
    poisoned = [draw_poison(config, dataset, poison, alpha, run).split for run in range(runs)]
    keys = [random_key(config.seed, "noise_sweep", model.label, poison, alpha, run) for run in range(runs)]
    if isinstance(model, MLP):
        model = trimmed(model, *(split.x for split in poisoned), dataset.val.x)
    splits = stack(model, poisoned)
    params = train_runs(model, protocol.sweep, protocol.parallel, splits, jnp.stack(keys))
    accuracy = np.asarray(_score_runs(model, protocol.parallel, params, splits, dataset.val))
    return accuracy, diverged_runs(params) | np.isnan(accuracy).any(axis=1)


def diverged_runs(params: Params) -> np.ndarray:
    """Which runs ended with a parameter that is no finite number: (runs,) from parameters with that leading axis."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    return np.any([~np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves], axis=0)


def without_diverged(results: xr.Dataset, diverged: np.ndarray) -> xr.Dataset:
    """The results with the variable `diverged`, 1 for the trainings that did; their accuracies become NaN, their
    losses are kept: they show when it happened.

    diverged: one for each training, in the order of the accuracy's axes other than epoch and split.
    """
    over = [dim for dim in results.accuracy.dims if dim not in ("epoch", "split")]
    marks = xr.DataArray(np.reshape(diverged, [results.sizes[dim] for dim in over]).astype(float), dims=over)
    return results.assign(accuracy=results.accuracy.where(marks == 0), diverged=marks)


@dataclass(frozen=True)
class Trimmed:
    """An MLP that is given some of its features only; the others have to be zero in all samples.

    Weights that lead from zeros never move and never matter, so it is the same network, from the same first
    weights, at a fraction of the work: of the 8192 numbers of an XXZ ground state 924 are not zero when it is
    real, and 1848 when it is not.
    """

    mlp: MLP
    features: tuple[int, ...]

    def init(self, key: jax.Array) -> Params:
        (weights, biases), *others = self.mlp.init(key)
        return [(weights[:, np.array(self.features)], biases), *others]

    def prepare(self, x: jax.Array) -> jax.Array:
        return self.mlp.prepare(x)[:, np.array(self.features)]

    def logits(self, params: Params, x: jax.Array) -> jax.Array:
        return self.mlp.logits(params, x)


def trimmed(mlp: MLP, *inputs: np.ndarray) -> MLP | Trimmed:
    """The MLP without the features that are zero in all of the inputs."""
    used = np.any([np.any(np.asarray(mlp.prepare(x)) != 0, axis=0) for x in inputs], axis=0)
    return mlp if used.all() else Trimmed(mlp, tuple(np.flatnonzero(used).tolist()))


def stack(model: Model, splits: list[Split]) -> Split:
    """Splits of equal size as one with a leading axis, their inputs prepared for the model."""
    return Split(jnp.stack([model.prepare(split.x) for split in splits]), np.stack([split.y for split in splits]))


@partial(jax.jit, static_argnames=("model", "training", "parallel"))
def train_runs(model: Model, training: Training, parallel: int, splits: Split, keys: jax.Array) -> Params:
    def one_run(arguments):
        return train(model, arguments[0], **training.keywords(), key=arguments[1])

    return map_runs(one_run, (splits, keys), parallel=parallel)


@partial(jax.jit, static_argnames=("model", "parallel"))
def _score_runs(model: Model, parallel: int, params: Params, splits: Split, val: Split) -> jax.Array:
    """Accuracy of each run on its training split and on the validation split: (runs, 2)."""
    val_inputs = model.prepare(val.x)

    def one_run(arguments):
        own, split = arguments
        scores = [(split.x, split.y), (val_inputs, val.y)]
        return jnp.stack([metrics.accuracy(model.logits(own, x), y) for x, y in scores])

    return map_runs(one_run, (params, splits), parallel=parallel)


def labelled(coords: dict[str, Any], **values: jax.Array) -> xr.Dataset:
    """Arrays under full coordinates; axes of length 1 are put in where the values lack them."""
    shape = [len(labels) for labels in coords.values()]
    arrays = {name: (list(coords), np.asarray(array, np.float64).reshape(shape)) for name, array in values.items()}
    return xr.Dataset(arrays, coords)


# ---- what the poison looks like ----

EXAMPLES = 6  # images shown of each poison


def poison_samples(config: Config, dataset: Dataset) -> list[Chunk]:
    """The training set before and after each poison: a t-SNE embedding, and some images where the data are images."""
    alphas = {poison: config.unlearn_alphas().get(poison) or config.unlearn_labels or 30 for poison in POISONED}
    identity = shared_identity(config, dataset) | {"poison_alphas": alphas}

    def compute() -> Computed:
        draws = {poison: draw_poison(config, dataset, poison, alpha, 0) for poison, alpha in alphas.items()}
        parts = [_embeddings(config, dataset, draws)]
        if dataset.n_features == 784:
            parts.append(_example_images(draws))
        return Computed(xr.merge(parts), {})

    return [Chunk("data", "poison", identity, compute, trainings=0, axes={"poison_alphas": ()})]


def _embeddings(config: Config, dataset: Dataset, draws: dict[str, Poisoned]) -> xr.Dataset:
    """t-SNE of the training set without poison and with each, its labels, and which samples are poisoned."""
    from sklearn.manifold import TSNE

    state = int(jax.random.randint(random_key(config.seed, "t-SNE"), (), 0, 2**31 - 1))
    n = len(dataset.train.y)
    splits = {"none": dataset.train} | {poison: draw.split for poison, draw in draws.items()}
    masks = {"none": np.zeros(n, bool)} | {poison: draw.mask for poison, draw in draws.items()}
    planes = {}
    for poison, split in splits.items():
        same = [seen for seen in planes if np.array_equal(splits[seen].x, split.x)]
        features = np.concatenate([split.x.real, split.x.imag], axis=1) if np.iscomplexobj(split.x) else split.x
        tsne = TSNE(perplexity=min(30, n / 4), init="pca", random_state=state)
        planes[poison] = planes[same[0]] if same else tsne.fit_transform(features.astype(np.float32))
    arrays = {
        "embedding": (("version", "sample", "axis"), np.stack(list(planes.values()))),
        "label": (("version", "sample"), np.stack([split.y for split in splits.values()])),
        "poisoned": (("version", "sample"), np.stack(list(masks.values()))),
    }
    coords = {"version": list(splits), "sample": np.arange(n), "axis": ["x", "y"]}
    return xr.Dataset({name: (dims, array.astype(float)) for name, (dims, array) in arrays.items()}, coords)


def _example_images(draws: dict[str, Poisoned]) -> xr.Dataset:
    """The first poisoned images of both classes in turn, before and after, with the labels they are trained on."""
    images, labels = [], []
    for draw in draws.values():
        members = [np.flatnonzero(draw.forget_clean.y == label)[: EXAMPLES // 2] for label in (0, 1)]
        chosen = np.stack(members, axis=1).ravel()
        stages = (draw.forget_clean, draw.forget_poisoned)
        images.append([split.x[chosen, :784].reshape(-1, 28, 28) for split in stages])
        labels.append([split.y[chosen] for split in stages])
    dims = ("poison", "stage", "example", "row", "column")
    coords = {
        "poison": list(draws), "stage": ["before", "after"], "example": np.arange(len(chosen)),
        "row": np.arange(28), "column": np.arange(28),
    }  # fmt: skip
    return xr.Dataset(
        {"image": (dims, np.array(images, float)), "image_label": (dims[:3], np.array(labels, float))}, coords
    )


# ---- unlearning ----


class Unlearnable(NamedTuple):
    """All that the unlearning of one poison needs, with a leading axis over draws of the poison.

    retain, forget: what the method reads. measured: every sample that is measured, each with the label it is
    measured against: the poisoned training set, the clean version of the forget set, the validation set.
    member: (draws, len(SPLITS), n) of 0 and 1, which of them belong to each of SPLITS.
    """

    retain: Split
    forget: Split
    measured: Split
    member: np.ndarray


def unlearning(config: Config, dataset: Dataset) -> list[Chunk]:
    """Unlearning curves: a chunk for each model, poison and method, behind the teacher they share."""
    _require_poison(config, dataset)
    if config.forget_weight == 0 and "ga" in config.methods:
        print("note: with --forget-weight 0, ga is fine-tuning (cf)", file=sys.stderr)
    return [
        _unlearning_chunk(config, dataset, model, poison, alpha, method)
        for model in unlearning_models(config, dataset)
        for poison, alpha in config.unlearn_alphas().items()
        for method in config.methods
    ]


def weight_map(config: Config, dataset: Dataset) -> list[Chunk]:
    """Final validation accuracy over both weights: a chunk for ga and one for each kl_weight of scrub."""
    _require_poison(config, dataset)
    rows = [("ga", 0.0), *(("scrub", kl_weight) for kl_weight in config.map_weights)]
    return [
        _weight_map_chunk(config, dataset, model, poison, alpha, *row)
        for model in unlearning_models(config, dataset)
        for poison, alpha in config.unlearn_alphas().items()
        for row in rows
    ]


def _require_poison(config: Config, dataset: Dataset) -> None:
    """Refuse shares that poison no sample, or all of them, before anything is trained."""
    for poison, alpha in config.unlearn_alphas().items():
        mask = draw_poison(config, dataset, poison, alpha, 0).mask
        allowed = f"a share that poisons some of {len(mask)} samples and not all, or 0 to leave it out"
        require(mask.any() and not mask.all(), f"--unlearn-{poison}", alpha, allowed)


def _draws(config: Config) -> int:
    return config.runs if config.independent_teachers else 1


def _teacher_chunk(config: Config, dataset: Dataset, model: Model, poison: str, alpha: int) -> Chunk:
    """The models trained on the poisoned data, one for each draw of it."""
    training = config.protocol(model).teacher
    parallel = config.protocol(model).parallel
    identity = shared_identity(config, dataset) | {
        **model_identity(model), "poison": poison, "alpha_percent": alpha,
        "teacher_training": training.keywords(), "independent_teachers": config.independent_teachers,
        "parallel": parallel,
    }  # fmt: skip

    def compute() -> Computed:
        draws = range(_draws(config))
        splits = stack(model, [draw_poison(config, dataset, poison, alpha, draw).split for draw in draws])
        keys = jnp.stack([random_key(config.seed, "teacher", model.label, poison, alpha, draw) for draw in draws])
        return Computed(None, params_to_tensors(train_runs(model, training, parallel, splits, keys)))

    name = slug(model.label, poison, alpha)
    return Chunk("teacher", name, identity, compute, _draws(config), axes=_UNLEARNING_AXES)


_UNLEARNING_AXES = {
    "model": ("teacher_training", "unlearn_training", "parallel", "own_model"),
    "poison": ("alpha_percent",),
    "method": ("kl", "scrub_forget"),
    "kl_weight": (),
}


def _unlearning_identity(teacher: Chunk, config: Config, model: Model, poison: str, method: str) -> dict[str, Any]:
    protocol = config.protocol(model)
    reads = {"scrub_forget": config.scrub_forget, "kl": config.kl} if method == "scrub" else {}
    return teacher.identity | reads | {"method": method, "unlearn_training": protocol.unlearn.keywords()}


def _unlearning_chunk(config: Config, dataset: Dataset, model: Model, poison: str, alpha: int, method: str) -> Chunk:
    protocol = config.protocol(model)
    teacher = _teacher_chunk(config, dataset, model, poison, alpha)
    weights = Weights(config.ce_weight, config.forget_weight, config.kl_weight, config.kl)
    identity = _unlearning_identity(teacher, config, model, poison, method) | {
        "weights": [weights.ce, weights.forget, weights.kl]
    }

    def compute(teacher_tensors: dict[str, np.ndarray]) -> Computed:
        data = _unlearnable(config, dataset, model, poison, alpha, method)
        params, history = _unlearn_runs(
            method, model, protocol.unlearn, protocol.parallel,
            tensors_to_params(model, teacher_tensors), data, weights,
            _unlearning_keys(config, model, poison, alpha, method), config.independent_teachers,
        )  # fmt: skip
        coords = {
            "model": [model.label], "poison": [poison], "method": [method], "run": np.arange(config.runs),
            "epoch": np.arange(protocol.unlearn.epochs + 1), "split": list(SPLITS),
        }  # fmt: skip
        diverged = diverged_runs(params) | np.isnan(history["accuracy"][:, -1]).any(axis=1)
        return Computed(without_diverged(labelled(coords, **history), diverged), params_to_tensors(params))

    return Chunk(
        "unlearning", slug(model.label, poison, method), identity, compute, config.runs, teacher,
        axes=_UNLEARNING_AXES, agrees_with=("teacher", "weight_map"),
    )  # fmt: skip


def _weight_map_chunk(
    config: Config, dataset: Dataset, model: Model, poison: str, alpha: int, method: str, kl_weight: float
) -> Chunk:
    protocol = config.protocol(model)
    teacher = _teacher_chunk(config, dataset, model, poison, alpha)
    grid = np.asarray(config.map_weights)
    runs = min(config.weight_map_runs or config.runs, config.runs)
    identity = _unlearning_identity(teacher, config, model, poison, method) | {
        "ce_weight": config.ce_weight, "kl_weight": kl_weight, "map_weights": list(config.map_weights),
    }  # fmt: skip
    if runs != config.runs:
        identity["weight_map_runs"] = runs

    def compute(teacher_tensors: dict[str, np.ndarray]) -> Computed:
        data = _unlearnable(config, dataset, model, poison, alpha, method)
        values, diverged = _map_weights(
            method, model, protocol.unlearn, protocol.parallel,
            tensors_to_params(model, teacher_tensors), data, dataset.val,
            Weights(config.ce_weight, jnp.asarray(grid), kl_weight, config.kl),
            _unlearning_keys(config, model, poison, alpha, method)[:runs], config.independent_teachers,
        )  # fmt: skip
        coords = {
            "model": [model.label], "poison": [poison], "method": [method], "kl_weight": [kl_weight],
            "forget_weight": grid, "run": np.arange(runs),
        }  # fmt: skip
        return Computed(without_diverged(labelled(coords, accuracy=values), diverged), {})

    name = slug(model.label, poison, method, f"kl={kl_weight:g}")
    return Chunk(
        "weight_map", name, identity, compute, runs * len(grid), teacher,
        axes=_UNLEARNING_AXES, agrees_with=("teacher", "unlearning"),
    )  # fmt: skip


def _unlearning_keys(config: Config, model: Model, poison: str, alpha: int, method: str) -> jax.Array:
    purpose = ("unlearning", model.label, poison, alpha, method)
    return jnp.stack([random_key(config.seed, *purpose, run) for run in range(config.runs)])


def _unlearnable(config: Config, dataset: Dataset, model: Model, poison: str, alpha: int, method: str) -> Unlearnable:
    """The data of an unlearning study for each draw of the poison, prepared for the model."""
    reads_clean = method == "scrub" and config.scrub_forget == "clean"
    draws = [draw_poison(config, dataset, poison, alpha, draw) for draw in range(_draws(config))]
    n_val = len(dataset.val.y)
    return Unlearnable(
        retain=stack(model, [draw.retain for draw in draws]),
        forget=stack(model, [draw.forget_clean if reads_clean else draw.forget_poisoned for draw in draws]),
        measured=stack(model, [_joined(draw.split, draw.forget_clean, dataset.val) for draw in draws]),
        member=np.stack([_membership(draw.mask, n_val) for draw in draws]),
    )


def _joined(*splits: Split) -> Split:
    return Split(*map(np.concatenate, zip(*splits, strict=True)))


def _membership(mask: np.ndarray, n_val: int) -> np.ndarray:
    """Which samples of training set, clean forget set, validation set belong to each split: (len(SPLITS), n)."""
    part = np.repeat(["train", "forget_clean", "validation"], [len(mask), mask.sum(), n_val])
    poisoned = np.pad(mask, (0, len(part) - len(mask)))
    members = {name: part == name for name in part}
    members |= {"forget_poisoned": poisoned, "retain": members["train"] & ~poisoned}
    return np.stack([members[name] for name in SPLITS]).astype(np.float32)


@partial(jax.jit, static_argnames=("method", "model", "training", "parallel", "independent"))
def _unlearn_runs(
    method: str, model: Model, training: Training, parallel: int,
    teachers: Params, data: Unlearnable, weights: Weights, keys: jax.Array, independent: bool,
) -> tuple[Params, dict[str, jax.Array]]:  # fmt: skip
    """Final parameters, and accuracy and loss of each run before and after each epoch: (runs, epochs + 1, splits)."""

    def one_run(arguments):
        run, key = arguments
        teacher, own = jax.tree.map(lambda array: array[run if independent else 0], (teachers, data))

        def measure(params):
            logits = model.logits(params, own.measured.x)
            of_sample = {"accuracy": jax.vmap(metrics.accuracy), "loss": jax.vmap(metrics.cross_entropy)}
            sizes = own.member.sum(axis=1)
            return {name: own.member @ of(logits, own.measured.y) / sizes for name, of in of_sample.items()}

        return unlearn(METHODS[method], model, teacher, own.retain, own.forget,
                       weights=weights, **training.keywords(), key=key, measure=measure)  # fmt: skip

    return map_runs(one_run, (jnp.arange(len(keys)), keys), parallel=parallel)


@partial(jax.jit, static_argnames=("method", "model", "training", "parallel", "independent"))
def _map_weights(
    method: str, model: Model, training: Training, parallel: int,
    teachers: Params, data: Unlearnable, val: Split, weights: Weights, keys: jax.Array, independent: bool,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Final validation accuracy for each forget weight and run, and which of them diverged: (cells, runs)."""
    val_inputs = model.prepare(val.x)

    def one_run(arguments):
        run, key, forget_weight = arguments
        teacher, own = jax.tree.map(lambda array: array[run if independent else 0], (teachers, data))
        params, _ = unlearn(METHODS[method], model, teacher, own.retain, own.forget,
                            weights=dataclasses.replace(weights, forget=forget_weight),
                            **training.keywords(), key=key)  # fmt: skip
        accuracy = metrics.accuracy(model.logits(params, val_inputs), val.y)
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
        return accuracy, ~finite | jnp.isnan(accuracy)

    n_cells, n_runs = len(weights.forget), len(keys)
    runs, cells = jnp.tile(jnp.arange(n_runs), n_cells), jnp.repeat(weights.forget, n_runs)
    values = map_runs(one_run, (runs, keys[runs], cells), parallel=parallel)
    return jax.tree.map(lambda array: array.reshape(n_cells, n_runs), values)


STUDIES: dict[str, Study] = {
    "data": poison_samples,
    "noise_sweep": noise_sweep,
    "unlearning": unlearning,
    "weight_map": weight_map,
}


# ---- parameters on disk ----


def params_to_tensors(params: Params) -> dict[str, np.ndarray]:
    """A pytree as named arrays; "params" where it is a single one."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path) or "params": np.asarray(leaf) for path, leaf in leaves}


def tensors_to_params(model: Model, tensors: dict[str, np.ndarray]) -> Params:
    """The model's pytree from named arrays (with any leading axes)."""
    template = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(tensors[jax.tree_util.keystr(path) or "params"]), template
    )
