"""The studies: noise sweep, unlearning curves, weight maps, and what the poison looks like.

A study is a function from a configuration and data to rows: jobs, and where their numbers stand in the study's file.
All trainings are one kind of job, `Fit`, and differ in model, poison, method and the job they start from.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
import xarray as xr

import metrics
from checks import BadInput, require
from datar import Dataset, Split
from jobs import Arrays, Job, Runs, random_key
from models import MLP, QNN, Model, Params, QuadraticForm, Training
from poison_unlearn import METHODS, POISONS, Method, Poison, Poisoned, Retrain, Task
from results import Row
from runner import Percent, Settings, flag_name

SPLITS = ("validation", "retain", "forget_poisoned", "forget_clean", "train")
KEPT_VALIDATION = 500  # validation samples whose logits a study's file holds

# ---- the job of all trainings ----


@dataclass(frozen=True, kw_only=True)
class Fit(Runs):
    """A block of runs: models trained by a method on poisoned data, from fresh parameters or from another job's.

    start: the job whose parameters are the teachers; None trains on all samples, poisoned ones among them. draw: the
    draw of the poison that all runs have, None for one of each run's own. teacher_run: the run of `start` that teaches
    all runs, None for the same run. side_by_side: whether the runs are one batch. record: what is kept; end: accuracy
    and loss of each of SPLITS; logits: the logit of each sample and the parameters, too; curves: accuracies and losses
    before and after each epoch as well.
    """

    model: Model
    poison: Poison
    method: Method
    start: Fit | None = None
    draw: int | None = None
    teacher_run: int | None = None
    side_by_side: bool = True
    record: Literal["end", "logits", "curves"] = "logits"

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start,) if self.start else ()

    @property
    def kind(self) -> tuple:
        retained = (self.poison.kind, self.poison.alpha_percent, self.poison.known_percent) if self.start else ()
        return (self.data, self.model.label, type(self.method), self.method.training, self.record, *retained)

    @property
    def title(self) -> str:
        return f"{type(self.method).__name__} {self.model.label} {self.poison.kind} {self.poison.alpha_percent} %"

    @property
    def generation(self) -> int:
        """How many jobs it starts from, one after the other."""
        return 1 + self.start.generation if self.start else 0

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """accuracy, loss (runs, [epochs + 1,] splits), diverged (runs,), size (), and what `record` says.

        logit: (runs, n + n + v) of the training set as poisoned, the training set before, the validation set.
        mask, known: (runs, n), which training samples are poisoned, and which of them are the forget set.
        """
        own = (self.data, self.model, self.poison, self.seed, self.runs, self.draw, self.start is None)
        masks, block = _cached(own, lambda: _block_inputs(self, dataset))
        teachers = self._teachers(*inputs) if inputs else None
        keys = jnp.stack([random_key(self.seed, *self._purpose(), run) for run in self.runs])
        values = _run_block(self.model, self.method, block, teachers, keys, self.side_by_side, self.record)
        values["diverged"] = np.asarray(values["diverged"]) | _has_no_loss(np.asarray(values["loss"]))
        params = values.pop("params")
        values["size"] = sum(leaf.size for leaf in jax.tree.leaves(params)) // self.size
        if self.record == "end":
            return values
        return values | params_to_tensors(params) | masks

    def _purpose(self) -> tuple[str | int, ...]:
        """What the random choices of a run are for; methods that start from one teacher share them."""
        draw = () if self.draw is None else ("draw", self.draw)
        return ("fit", self.generation, self.model.label, self.poison.kind, self.poison.alpha_percent, *draw)

    def _teachers(self, tensors: Arrays) -> Params:
        chosen = range(self.size) if self.teacher_run is None else [self.teacher_run - self.start.runs[0]] * self.size
        return jax.tree.map(lambda leaf: leaf[np.array(chosen)], tensors_to_params(self.model, tensors))

    def draws(self, dataset: Dataset) -> list[Poisoned]:
        """The poisoned training set of each run; the same for every model."""
        purpose = ("poison", self.poison.kind, self.poison.alpha_percent)
        if self.draw is not None:
            return [self.poison.draw(dataset, key=random_key(self.seed, *purpose, self.draw))] * self.size
        return [self.poison.draw(dataset, key=random_key(self.seed, *purpose, run)) for run in self.runs]


class Block(NamedTuple):
    """The data of a block of runs, prepared for the model.

    retain, forget, forget_clean: what a method reads, with a leading axis over runs. inputs: (runs, n or 2 n, ...),
    the training set as poisoned and, where its inputs differ, before. validation: (v, ...). measured: where among
    inputs and validation the n + n + v measured samples stand: training set as poisoned and before, validation.
    labels: of those. member: (runs, len(SPLITS), n + n + v), which of those belong to each split. columns: of a
    network, the features that are not zero in all samples, to which all inputs are cut; None where all are in use.
    """

    retain: Split
    forget: Split
    forget_clean: Split
    inputs: jax.Array
    validation: jax.Array
    measured: jax.Array
    labels: jax.Array
    member: jax.Array
    columns: jax.Array | None


def _block_inputs(job: Fit, dataset: Dataset) -> tuple[Arrays, Block]:
    draws, clean, val = job.draws(dataset), dataset.train, dataset.val
    known = np.stack([draw.known for draw in draws])
    if job.start:
        require(known.any() and not known.all(), "poison", _words(job.poison, known[0]), "some of the samples, not all")
    differ = any(not np.array_equal(draw.split.x, clean.x) for draw in draws)
    joined = [np.concatenate([draw.split.x, clean.x][: 1 + differ]) for draw in draws]
    prepare = _preparation(job.model, [*joined, val.x])
    inputs = np.stack([prepare(x) for x in joined])
    n, v, m = len(clean.y), len(val.y), inputs.shape[1]
    measured = np.concatenate([np.arange(n), np.arange(n) + m - n, np.arange(v) + m])
    labels = np.stack([np.concatenate([draw.split.y, clean.y, val.y]) for draw in draws])

    def taken(rows: list[np.ndarray]) -> Split:
        """Some of the measured training samples of each run."""
        pairs = [(own[measured[chosen]], y[chosen]) for own, y, chosen in zip(inputs, labels, rows, strict=True)]
        return Split(*map(np.stack, zip(*pairs, strict=True)))

    retained, forgotten = (~known, known) if job.start else (np.ones_like(known), np.zeros_like(known))
    rows = [np.flatnonzero(each) for each in forgotten]
    parts = taken([np.flatnonzero(each) for each in retained]), taken(rows), taken([n + each for each in rows])
    member = np.stack([_membership(each, v) for each in known])
    columns = getattr(prepare, "columns", None)
    block = Block(*parts, inputs, np.asarray(prepare(val.x)), measured, labels, member, columns)
    masks = {"mask": np.stack([draw.mask for draw in draws]), "known": known}
    return masks, jax.tree.map(jnp.asarray, block)


def _has_no_loss(loss: np.ndarray) -> np.ndarray:
    """(runs,), whether the last loss on one of the splits that always hold samples is NaN or infinite."""
    last = loss.reshape(len(loss), -1, len(SPLITS))[:, -1]
    return ~np.isfinite(last[:, [SPLITS.index("validation"), SPLITS.index("train")]]).all(axis=1)


def _words(poison: Poison, known: np.ndarray) -> str:
    return f"{poison.kind} {poison.alpha_percent} %, {int(known.sum())} of {len(known)} samples to forget"


class Narrow(NamedTuple):
    """Prepare inputs for a network and leave out the features that are zero in all samples.

    Weights that lead from zeros never move and never matter, so it is the same network at a fraction of the work: of
    the 8192 numbers of an XXZ ground state 924 are not zero when it is real, and 1848 when it is not.
    """

    model: Model
    columns: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.prepare(x))[:, self.columns]


def _preparation(model: Model, inputs: list[np.ndarray]) -> Callable[[np.ndarray], np.ndarray | jax.Array]:
    """How a model's inputs are made ready: narrow for models that can be narrowed, where that leaves features out."""
    if not hasattr(model, "narrow"):
        return model.prepare
    used = np.any([np.any(np.asarray(model.prepare(x)) != 0, axis=0) for x in inputs], axis=0)
    return model.prepare if used.all() else Narrow(model, np.flatnonzero(used))


def _membership(known: np.ndarray, n_val: int) -> np.ndarray:
    """Which of the measured samples belong to each split: (len(SPLITS), n + n + v)."""
    part = np.repeat(["train", "train_clean", "validation"], [len(known), len(known), n_val])
    forgotten = np.pad(np.tile(known, 2), (0, n_val))
    members = {
        "train": part == "train",
        "retain": (part == "train") & ~forgotten,
        "forget_poisoned": (part == "train") & forgotten,
        "forget_clean": (part == "train_clean") & forgotten,
        "validation": part == "validation",
    }
    return np.stack([members[name] for name in SPLITS]).astype(np.float32)


_recent: OrderedDict[tuple, Any] = OrderedDict()


def _cached(key: tuple, build: Callable[[], Any], *, keep: int = 2) -> Any:
    """What `build` gave for this key before, of the last few: jobs of one kind follow each other on a process."""
    if key not in _recent:
        _recent[key] = build()
        while len(_recent) > keep:
            _recent.popitem(last=False)
    _recent.move_to_end(key)
    return _recent[key]


@partial(jax.jit, static_argnames=("model", "side_by_side", "record"))
def _run_block(
    model: Model, method: Method, block: Block, teachers: Params | None, keys: jax.Array,
    side_by_side: bool, record: str,
) -> dict[str, Any]:  # fmt: skip
    """Train all runs of a block and measure them; everything returned has a leading axis over runs."""
    columns = block.columns
    narrow = (lambda params: params) if columns is None else (lambda params: model.narrow(params, columns))

    def one_run(arguments):
        own, teacher, key = arguments
        fresh_key, method_key, measure_key = jax.random.split(key, 3)
        fresh = model.init(fresh_key)
        from_fresh = teacher is None or method.is_fresh
        teacher = fresh if teacher is None else teacher
        task = Task(model, narrow(teacher), own["retain"], own["forget"], own["forget_clean"], narrow(fresh))
        x = jnp.concatenate([own["inputs"], block.validation])

        def measure(params):
            logits = task.logits(params, x, measure_key)[block.measured]
            of_sample = {"accuracy": jax.vmap(metrics.accuracy), "loss": jax.vmap(metrics.cross_entropy)}
            sizes = own["member"].sum(axis=1)
            scores = {name: own["member"] @ of(logits, own["labels"]) / sizes for name, of in of_sample.items()}
            return scores, logits

        params, curves = method(task, method_key, (lambda params: measure(params)[0]) if record == "curves" else None)
        scores, logits = measure(params)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((params, logits))]
        kept = scores if curves is None else curves
        kept = kept | {"diverged": ~jnp.stack(finite).all()}
        if columns is not None:
            params = model.widen(params, columns, fresh if from_fresh else teacher)
        return kept | {"params": params} | ({} if record == "end" else {"logit": logits})

    own = {name: getattr(block, name) for name in ("retain", "forget", "forget_clean", "inputs", "labels", "member")}
    arguments = (own, teachers, keys)
    return jax.vmap(one_run)(arguments) if side_by_side else jax.lax.map(one_run, arguments)


# ---- parameters as named arrays ----


def params_to_tensors(params: Params) -> dict[str, np.ndarray]:
    """A pytree as named arrays: "params", followed by the place of a leaf where there are several."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {f"params{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}


def tensors_to_params(model: Model, tensors: Arrays) -> Params:
    """The model's pytree from named arrays (with any leading axes)."""
    template = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(tensors[f"params{jax.tree_util.keystr(path)}"]), template
    )


# ---- configuration ----


@dataclass(frozen=True)
class Protocol:
    """How a family of models is trained in each study."""

    sweep: Training
    teacher: Training
    unlearn: Training
    side_by_side: bool
    """Whether the runs of a block are one batch; a matter of speed and memory (results agree to rounding)."""


Widths = Annotated[str, tyro.conf.arg(metavar="WIDTHS")]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """What to poison, train and unlearn. The flags of both unlearning scripts; their presets are its instances."""

    stages: tuple[Literal["data", "noise_sweep", "unlearning", "weight_map"], ...] = (
        "data", "noise_sweep", "unlearning", "weight_map",
    )  # fmt: skip
    """Studies to run; data: what the poison looks like."""
    models: tuple[str, ...] = ("mlp", "qnn")
    """Families of models: mlp, qnn, or quadratic (a bounded quadratic form of low rank, a control)."""
    poisons: tuple[str, ...] = ("labels", "features")
    """Poisons of the noise sweep: names in poison_unlearn.POISONS."""
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
    """Unlearning methods: names in poison_unlearn.METHODS."""
    hyper: tuple[str, ...] = ()
    """Hyper-parameters of methods, such as scrub.forget=0.4 or scrub.divergence=full."""
    map_weights: tuple[float, ...] = tuple(i / 10 for i in range(10))
    """Grid of the hyper-parameters in the weight maps."""
    weight_map_runs: int = 0
    """Repetitions of each cell of the weight maps where --runs is larger; 0: as many as --runs."""
    independent_teachers: bool = False
    """Draw poison and train a teacher anew for each unlearning run (published: one for all of them)."""
    mlp: Protocol
    qnn: Protocol
    choices: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The preset's own hyper-parameters, before those of --hyper."""

    AXES = (*Settings.AXES, "poisons", "hidden", "label_hidden", "unlearn_hidden", "depth", "methods", "map_weights",
            "weight_map_runs")  # fmt: skip

    def check(self):
        super().check()
        require(self.depth >= 1, "--depth", self.depth, "1 or more")
        require(self.weight_map_runs >= 0, "--weight-map-runs", self.weight_map_runs, "1 or more, or 0 for --runs")
        self.check_lists("methods", "poisons", "hidden", "map_weights")
        self.check_percents("unlearn_labels", "unlearn_features")
        tables = {"methods": METHODS, "models": FAMILIES, "poisons": POISONS}
        for flag, known in tables.items():
            for name in getattr(self, flag):
                require(name in known, flag_name(flag), name, ", ".join(known))
        for weight in self.map_weights:
            require(0 <= weight < np.inf, "--map-weights", weight, "finite numbers, 0 or more")
        for text in (*self.hidden, *self.label_hidden, self.unlearn_hidden):
            parse_widths(text)
        for name in {word.partition(".")[0] for word in self.hyper}:
            require(name in METHODS, "--hyper", name, f"METHOD.FIELD=VALUE with a method of {', '.join(METHODS)}")
        for name in METHODS:
            self.method(name)

    def method(self, name: str, **changes: Any) -> Method:
        """The method of this name with the configuration's hyper-parameters."""
        method = METHODS[name]
        for word in (*self.choices, *self.hyper):
            owner, _, assignment = word.partition(".")
            if owner == name:
                method = _assign(method, word, *assignment.partition("=")[::2])
        return dataclasses.replace(method, **changes)

    def unlearn_alphas(self) -> dict[str, int]:
        """{poison: percent} of what the unlearning studies unlearn."""
        alphas = {"labels": self.unlearn_labels, "features": self.unlearn_features}
        return {poison: alpha for poison, alpha in alphas.items() if alpha}


def _assign(method: Method, word: str, name: str, text: str) -> Method:
    """The method with a hyper-parameter of which the value is given as text."""
    fields = {each.name: each.type for each in dataclasses.fields(method) if each.name != "training"}
    require(name in fields, "--hyper", word, f"the fields {', '.join(fields) or 'of another method: it has none'}")
    kinds = {"float": float, "int": int, "bool": lambda text: {"true": True, "false": False}[text.lower()]}
    kind = fields[name] if isinstance(fields[name], str) else fields[name].__name__
    try:
        return dataclasses.replace(method, **{name: kinds.get(kind, str)(text)})
    except (ValueError, KeyError) as error:
        reason = str(error) if ", allowed:" in str(error) else f"{name}: got {text or 'nothing'}, allowed: a {kind}"
        raise BadInput(f"--hyper {word}: {reason}") from None


def parse_widths(text: str) -> tuple[int, ...]:
    """ "64,16" -> (64, 16); "none" -> ()."""
    if text == "none":
        return ()
    require(bool(re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text)), "--hidden", text, 'widths such as "64,16", or "none"')
    return tuple(int(width) for width in text.split(","))


# ---- the models of a study ----


def build_mlp(dataset: Dataset, widths: str) -> MLP:
    x = dataset.train.x
    return MLP(x.shape[1] * (2 if np.iscomplexobj(x) else 1), parse_widths(widths))


def build_qnn(dataset: Dataset, depth: int) -> QNN:
    return QNN(int(np.log2(dataset.train.x.shape[1])), depth)


def build_quadratic(dataset: Dataset) -> QuadraticForm:
    return QuadraticForm(dataset.train.x.shape[1], is_complex=np.iscomplexobj(dataset.train.x))


class Family(NamedTuple):
    """Models of one kind, by the name that --models knows: those of the noise sweep, and the one that unlearns.

    trained_as: the flag of the configuration that says how they are trained, mlp or qnn. labels_only: further models
    of the sweep, of which labels are flipped only.
    """

    sweep: Callable[[Config, Dataset], list[Model]]
    unlearning: Callable[[Config, Dataset], Model]
    trained_as: str = "qnn"
    labels_only: Callable[[Config, Dataset], list[Model]] = lambda config, dataset: []


FAMILIES: dict[str, Family] = {
    "mlp": Family(
        lambda config, dataset: [build_mlp(dataset, widths) for widths in config.hidden],
        lambda config, dataset: build_mlp(dataset, config.unlearn_hidden),
        "mlp",
        lambda config, dataset: [build_mlp(dataset, widths) for widths in config.label_hidden],
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


def model_words(model: Model) -> dict[str, tuple[str, Any]]:
    """What figures and tables have to know of a model: a coordinate along the model axis."""
    return {"family": ("model", getattr(model, "family", type(model).__name__))}


# ---- noise sweep ----


def noise_sweep(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Train on data of which a share alpha is poisoned."""
    for name in config.models:
        family = FAMILIES[name]
        swept = [(model, poison) for model in family.sweep(config, dataset) for poison in config.poisons]
        if "labels" in config.poisons:
            swept += [(model, "labels") for model in family.labels_only(config, dataset)]
        for model, poison in swept:
            yield from sweep_rows(config, dataset, getattr(config, family.trained_as), model, poison)


def sweep_rows(config: Config, dataset: Dataset, protocol: Protocol, model: Model, poison: str) -> Iterator[Row]:
    """One curve of the noise sweep."""
    for alpha, block in itertools.product(config.alphas, config.blocks()):
        job = training_job(config, dataset, protocol.sweep, protocol, model, Poison(poison, alpha), block)
        place = {"model": model.label, "poison": poison, "alpha_percent": alpha}
        yield Row("noise_sweep", job, place, sweep_table, config.shown(job.runs), model_words(model))


def training_job(
    config: Config, dataset: Dataset, training: Training, protocol: Protocol, model: Model, poison: Poison, block: int
) -> Fit:
    """Models trained on the poisoned data, one for each run of a block."""
    return Fit(
        data=dataset.provenance["sha256"], model=model, poison=poison, method=Retrain(training=training),
        seed=config.seed, block=block, size=config.block, side_by_side=protocol.side_by_side,
    )  # fmt: skip


def sweep_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy, loss (…, run, split), diverged (…, run), and how many samples are poisoned."""
    table = scores_table(row, arrays)
    axes = [axis for axis in ("poison", "alpha_percent") if axis in row.place]
    counts = np.full([1] * len(axes), float(arrays["mask"][0].sum()))
    return table.assign(poisoned_count=(axes, counts))


def scores_table(row: Row, arrays: Arrays, axes: tuple[str, ...] = ()) -> xr.Dataset:
    """Accuracy and loss over the row's place, run, `axes` and split, and which runs diverged.

    Accuracies of runs that diverged are NaN; their losses are kept: they show when it happened.
    """
    coords = {axis: [label] for axis, label in row.place.items()} | {"run": list(row.job.runs)}
    dims = [*coords, *axes, "split"]
    shape = [1] * len(row.place)
    exact = {"accuracy": np.round(arrays["accuracy"].astype(float), 6), "loss": arrays["loss"].astype(float)}
    values = {name: (dims, array.reshape(*shape, *array.shape)) for name, array in exact.items()}
    diverged = arrays["diverged"].reshape(*shape, -1).astype(float)
    counted = {axis: np.arange(arrays["accuracy"].shape[1]) for axis in axes}
    table = xr.Dataset(values, coords | counted | {"split": list(SPLITS)}).assign(diverged=(list(coords), diverged))
    table = table.assign_coords(size=("model", [int(arrays["size"])]))
    return table.assign(accuracy=table.accuracy.where(table.diverged == 0))


# ---- unlearning ----


def unlearning(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Unlearning curves of each model, poison and method, behind the teachers they share."""
    _require_poison(config, dataset)
    for (model, protocol), (kind, alpha), name in itertools.product(
        unlearning_models(config, dataset), config.unlearn_alphas().items(), config.methods
    ):
        method = config.method(name, training=protocol.unlearn)
        for block in config.blocks():
            job = unlearning_job(config, dataset, protocol, model, Poison(kind, alpha), method, block, record="curves")
            place = {"model": model.label, "poison": kind, "unlearner": name}
            words = model_words(model) | method_words(name, method) | {"alpha_percent": ("poison", alpha)}
            yield Row("unlearning", job, place, curves_table, config.shown(job.runs), words)


def weight_map(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Final validation accuracy over the one or two hyper-parameters that a method maps: a job for each cell."""
    _require_poison(config, dataset)
    runs = min(config.weight_map_runs or config.runs, config.runs)
    for (model, protocol), (kind, alpha), name in itertools.product(
        unlearning_models(config, dataset), config.unlearn_alphas().items(), config.methods
    ):
        method = config.method(name, training=protocol.unlearn)
        words = model_words(model) | method_words(name, method) | map_words(method)
        for cell in map_cells(method, config.map_weights):
            changed = dataclasses.replace(method, **cell)
            place = {"model": model.label, "poison": kind, "unlearner": name, **map_place(cell)}
            for block in config.blocks(runs):
                poison = Poison(kind, alpha)
                job = unlearning_job(config, dataset, protocol, model, poison, changed, block, record="end")
                yield Row("weight_map", job, place, cell_table, config.shown(job.runs, runs), words)


def unlearning_models(config: Config, dataset: Dataset) -> list[tuple[Model, Protocol]]:
    families = [FAMILIES[name] for name in config.models]
    return [(family.unlearning(config, dataset), getattr(config, family.trained_as)) for family in families]


def unlearning_job(
    config: Config, dataset: Dataset, protocol: Protocol, model: Model, poison: Poison, method: Method, block: int,
    *, record: str,
) -> Fit:  # fmt: skip
    """A block of runs of one method, behind its teachers: one for each run, or the first of all (published)."""
    own = config.independent_teachers
    teacher = training_job(config, dataset, protocol.teacher, protocol, model, poison, block if own else 0)
    shared = {} if own else {"draw": 0, "teacher_run": 0}
    return dataclasses.replace(teacher, method=method, start=teacher, block=block, record=record, **shared)


def map_cells(method: Method, grid: tuple[float, ...]) -> list[dict[str, float]]:
    """The cells of a method's weight map, as changes of its hyper-parameters; none where it maps nothing."""
    names = method.mapped()
    cells = itertools.product(grid, repeat=len(names)) if names else ()
    return [dict(zip(names, values, strict=True)) for values in cells]


def map_place(cell: dict[str, float]) -> dict[str, float]:
    return dict(zip(("first", "second"), (*cell.values(), 0.0), strict=False))


def map_words(method: Method) -> dict[str, tuple[str, Any]]:
    """Names and usual values of the hyper-parameters on the axes of a method's weight map."""
    names = [*method.mapped(), "", ""][:2]
    usual = [getattr(method, name) if name else 0.0 for name in names]
    pairs = {"first_name": names[0], "second_name": names[1], "first_default": usual[0], "second_default": usual[1]}
    return {name: ("unlearner", value) for name, value in pairs.items()}


def method_words(name: str, method: Method) -> dict[str, tuple[str, Any]]:
    return {"title": ("unlearner", method.title or name), "fresh": ("unlearner", float(method.is_fresh))}


def curves_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """The curves, and the logit of every measured sample at their end, with which samples are what."""
    table = scores_table(row, arrays, ("epoch",))
    n, places = arrays["mask"].shape[1], list(row.place)
    samples = arrays["logit"][:, : 2 * n + KEPT_VALIDATION].astype(np.float16)
    part = np.repeat(["train", "train_clean", "validation"], [n, n, samples.shape[1] - 2 * n])
    marks = {name: np.full((1, *samples.shape), np.nan) for name in ("poisoned", "known")}
    for name, mask in (("poisoned", arrays["mask"]), ("known", arrays["known"])):
        marks[name][0, :, : 2 * n] = np.tile(mask, 2)
    return table.assign(
        logit=((*places, "run", "sample"), samples.reshape(*[1] * len(places), *samples.shape)),
        **{name: (("poison", "run", "sample"), mark) for name, mark in marks.items()},
    ).assign_coords(sample=np.arange(samples.shape[1]), part=("sample", part))


def cell_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (…, run): on the validation set, at the end."""
    table = scores_table(row, arrays)
    return table.assign(accuracy=table.accuracy.sel(split="validation")).drop_vars(["split", "loss"])


def _require_poison(config: Config, dataset: Dataset) -> None:
    """Refuse shares that poison no sample, or all of them, before anything is trained."""
    for kind, alpha in config.unlearn_alphas().items():
        mask = Poison(kind, alpha).draw(dataset, key=0).known
        allowed = f"a share that poisons some of {len(mask)} samples and not all, or 0 to leave it out"
        require(mask.any() and not mask.all(), f"--unlearn-{kind}", alpha, allowed)


# ---- what the poison looks like ----

EXAMPLES = 6  # images shown of each poison


@dataclass(frozen=True, kw_only=True)
class Samples(Job):
    """The training set before and after each poison: a t-SNE embedding, and some images where the data are images."""

    poisons: tuple[Poison, ...]
    seed: int = 0

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        purpose = [("poison", poison.kind, poison.alpha_percent, 0) for poison in self.poisons]
        keys = [random_key(self.seed, *words) for words in purpose]
        draws = [poison.draw(dataset, key=key) for poison, key in zip(self.poisons, keys, strict=True)]
        state = int(jax.random.randint(random_key(self.seed, "t-SNE"), (), 0, 2**31 - 1))
        arrays = _embeddings(dataset, draws, state)
        return arrays | (_example_images(draws, dataset.image_shape) if dataset.image_shape else {})


def _embeddings(dataset: Dataset, draws: list[Poisoned], state: int) -> Arrays:
    """t-SNE of the training set without poison and with each, its labels, and which samples are poisoned."""
    from sklearn.manifold import TSNE

    n = len(dataset.train.y)
    splits = [dataset.train, *(draw.split for draw in draws)]
    planes: list[np.ndarray] = []
    for split in splits:
        same = [plane for plane, other in zip(planes, splits, strict=False) if np.array_equal(other.x, split.x)]
        features = np.concatenate([split.x.real, split.x.imag], axis=1) if np.iscomplexobj(split.x) else split.x
        tsne = TSNE(perplexity=min(30, n / 4), init="pca", random_state=state)
        planes.append(same[0] if same else tsne.fit_transform(features.astype(np.float32)))
    masks = [np.zeros(n, bool), *(draw.mask for draw in draws)]
    return {"embedding": np.stack(planes), "label": np.stack([s.y for s in splits]), "poisoned": np.stack(masks)}


def _example_images(draws: list[Poisoned], shape: tuple[int, int]) -> Arrays:
    """The first poisoned images of both classes in turn, before and after, with the labels they are trained on."""
    images, labels = [], []
    for draw in draws:
        members = [np.flatnonzero(draw.forget_clean.y == label)[: EXAMPLES // 2] for label in (0, 1)]
        chosen = np.stack([each[: min(map(len, members))] for each in members], axis=1).ravel()
        stages = (draw.forget_clean, draw.forget_poisoned)
        images.append([split.x[chosen, : shape[0] * shape[1]].reshape(-1, *shape) for split in stages])
        labels.append([split.y[chosen] for split in stages])
    return {"image": np.array(images), "image_label": np.array(labels)}


def poison_samples(config: Config, dataset: Dataset) -> Iterator[Row]:
    """What the poison looks like."""
    alphas = {kind: config.unlearn_alphas().get(kind) or config.unlearn_labels or 30 for kind in ("labels", "features")}
    poisons = tuple(Poison(kind, alpha) for kind, alpha in alphas.items())
    yield Row("data", Samples(data=dataset.provenance["sha256"], poisons=poisons, seed=config.seed), {}, samples_table)


def samples_table(row: Row, arrays: Arrays) -> xr.Dataset:
    dims = {
        "embedding": ("version", "sample", "axis"), "label": ("version", "sample"), "poisoned": ("version", "sample"),
        "image": ("poison", "stage", "example", "row", "column"), "image_label": ("poison", "stage", "example"),
    }  # fmt: skip
    table = xr.Dataset({name: (dims[name], array.astype(float)) for name, array in arrays.items()})
    kinds = [poison.kind for poison in row.job.poisons]
    labels = {"version": ["none", *kinds], "axis": ["x", "y"], "poison": kinds, "stage": ["before", "after"]}
    coords = {dim: labels.get(dim, np.arange(size)) for dim, size in table.sizes.items()}
    shares = [0, *(poison.alpha_percent for poison in row.job.poisons)]
    return table.assign_coords(coords | {"shown_percent": ("version", shares)})


Study = Callable[[Any, Dataset], Iterator[Row]]  # from a configuration (of Settings) and data
STUDIES: dict[str, Study] = {
    "data": poison_samples,
    "noise_sweep": noise_sweep,
    "unlearning": unlearning,
    "weight_map": weight_map,
}
