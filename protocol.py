"""The protocol of a block of runs: draw the poison, train the teacher, unlearn, measure.

Read from top to bottom: `Drawn` draws the poison, the training set and the validation set of each
run; `Fit` is a block of runs as a job; `run_block` trains all runs of a block, or makes their
teachers unlearn, and measures them. A run without jobs and files calls `inputs_of_sets`, `run_keys`
and `run_block`, as run_example.py does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from datar import Dataset, Split, redraw
from foundation.base.checks import require
from foundation.engine.jobs import Arrays, Job, Runs, keys_of_runs, random_key, values_of
from foundation.measures import metrics
from models import Model, Params, logits_of, require_classes, shapes_of, size_of
from poison_unlearn import Method, Poison, Poisoned, Task

SPLITS = ("validation", "retain", "forget_poisoned", "forget_clean", "train")
# the validation samples of a class that is to be forgotten, which validation then leaves out
OF_CLASS = "validation_of_class"


def splits_of(poison: Poison) -> tuple[str, ...]:
    """Return the names of the sets on which models are measured."""
    return (*SPLITS, OF_CLASS) if poison.kind == "class" else SPLITS


# ---- the data of a run ----


class Sets(NamedTuple):
    """The data of one run."""

    draw: Poisoned  # the training set
    clean: Split  # the training set before it was poisoned
    val: Split  # the validation set


@dataclass(frozen=True, kw_only=True)
class Drawn(Runs):
    """A block of runs, and how the data of each run are drawn; all models get equal data."""

    poison: Poison
    draw: int | None = None  # the number of the draw of all runs; None: each run has its own draw
    # share of the samples `held_out_of`, as poisoned, that replace the validation set
    held_out_percent: int = 0
    held_out_of: Literal["retained", "all"] = "retained"
    redrawn: bool = False  # each run redraws its training and validation sets from both together
    samples: int = 0  # size of a redrawn training set; 0: as many as there are
    # which share is held out, of those that are held out in turn; None: a share drawn at random
    fold: int | None = None

    @property
    def numbers(self) -> list[int]:
        """The number of each run's draw."""
        if self.draw is None:
            return list(self.runs)
        return [self.draw] * self.size

    def draws(self, dataset: Dataset) -> list[Poisoned]:
        """Draw the poisoned training set of each run, before anything is held out."""
        return [sets.draw for sets in replace(self, held_out_percent=0).sets(dataset)]

    def sets(self, dataset: Dataset) -> list[Sets]:
        """Draw the data of each run; runs of one draw share one object."""
        different = dict.fromkeys(self.numbers)
        drawn = {number: self._sets(dataset, number) for number in different}
        return [drawn[number] for number in self.numbers]

    def _sets(self, dataset: Dataset, number: int) -> Sets:
        if self.redrawn:
            dataset = self._redrawn(dataset, number)
        key = poison_key(self.seed, self.poison, number)
        draw = self.poison.draw(dataset, key=key)
        clean = dataset.given.clean if self.poison.kind == "given" else dataset.train
        sets = Sets(draw, clean, dataset.val)
        if not self.held_out_percent:
            return sets
        kept = self._kept(draw, number)
        return self._hold_out(sets, kept)

    def _redrawn(self, dataset: Dataset, number: int) -> Dataset:
        """Draw training and validation set from all samples of both."""
        size = len(dataset.train.y)
        purpose = ["training set"]
        if self.samples:
            size = self.samples
            purpose.append(size)
        key = random_key(self.seed, *purpose, number)
        seed = np.asarray(jax.random.key_data(key))
        return redraw(dataset, size, seed=seed)

    def kept(self, dataset: Dataset) -> np.ndarray:
        """(runs, n), True for samples of a run's training set that are not held out."""
        draws = zip(self.draws(dataset), self.numbers, strict=True)
        return np.stack([self._kept(draw, number) for draw, number in draws])

    def _kept(self, draw: Poisoned, number: int) -> np.ndarray:
        """(n,), True for training samples that are not held out."""
        key = random_key(self.seed, "held out", self.poison.kind, self.poison.alpha_percent, number)
        seed = np.asarray(jax.random.key_data(key))
        generator = np.random.default_rng(seed)
        may_be_held_out = ~draw.known | (self.held_out_of == "all")
        candidates = np.flatnonzero(may_be_held_out)
        n = len(candidates)
        count = round(n * self.held_out_percent / 100)
        got = f"{self.held_out_percent} % of {n} samples"
        require(0 < count < n, "held_out_percent", got, "some of them and not all")
        if self.fold is None:
            held_out = generator.choice(candidates, count, replace=False)
        else:
            shuffled = generator.permutation(candidates)
            n_folds = round(100 / self.held_out_percent)
            held_out = np.array_split(shuffled, n_folds)[self.fold]
        samples = np.arange(len(draw.mask))
        return ~np.isin(samples, held_out)

    def knows_truth(self, dataset: Dataset) -> bool:
        """Whether the training set before its poison is known."""
        return dataset.truth_is_known or self.poison.kind != "given"

    @staticmethod
    def _hold_out(sets: Sets, kept: np.ndarray) -> Sets:
        """Replace the validation set by the training samples that are not kept."""
        draw, clean, _ = sets
        forgotten = kept[draw.known]  # of the forget set, what is kept
        remaining = Poisoned(
            split=draw.split.take(kept),
            mask=draw.mask[kept],
            known=draw.known[kept],
            forget_clean=draw.forget_clean.take(forgotten),
            forget_poisoned=draw.forget_poisoned.take(forgotten),
        )
        held_out = draw.split.take(~kept)
        if draw.of_class is not None:
            of_class = np.isin(held_out.y, draw.forget_clean.y)
            remaining = remaining._replace(of_class=of_class)
        return Sets(remaining, clean.take(kept), held_out)


def poison_key(seed: int, poison: Poison, number: int) -> jax.Array:
    """Return the key of the poison's random choices.

    number: of the draw, or of the run where each run has its own draw.
    """
    return random_key(seed, "poison", poison.kind, poison.alpha_percent, number)


def run_keys(
    seed: int, model: Model, poison: Poison, runs: Iterable[int], *,
    generation: int = 0, kind: Literal["fit", "oracle"] = "fit", draw: int | None = None,
) -> jax.Array:  # fmt: skip
    """Return the (runs,) keys of trainings: of first parameters, batches and all other draws.

    generation: 0 for a teacher, 1 for a method that starts from a teacher. Methods that start from
    one teacher share their keys. kind: an oracle (retrained without the forget set) shares no key
    with a teacher. draw: the number of the draw of all runs, if they share one.
    """
    of_draw = () if draw is None else ("draw", draw)
    of_poison = (poison.kind, poison.alpha_percent)
    purpose = (kind, generation, model.label, *of_poison, *of_draw)
    return keys_of_runs(seed, *purpose, runs=runs)


# ---- a block of runs as a job ----


@dataclass(frozen=True, kw_only=True)
class Fit(Drawn):
    """A block of runs: models trained by a method, from fresh parameters or from another job's.

    record: what is kept. "end": accuracy and loss of each of SPLITS; "logits": the logit of each
    sample and the parameters, too; "curves": in addition accuracies and losses before the first
    epoch and after each epoch, or after the epochs `measured`.
    """

    model: Model
    method: Method
    # the job whose parameters are the teachers; None: train on all samples, poisoned ones included
    start: Fit | None = None
    # the run of `start` that teaches all runs; None: each run has its own teacher
    teacher_run: int | None = None
    side_by_side: bool = True  # the runs are one batch
    record: Literal["end", "logits", "curves"] = "logits"
    # whether it trains on the retained samples alone; None: only if it starts from teachers
    retains: bool | None = None
    # epochs after which curves are measured, ascending; (): before the first and after each
    measured: tuple[int, ...] = ()
    # whether trainings share compiled programs where they can, whatever is recorded
    one_program: bool = False

    @property
    def needs(self) -> tuple[Job, ...]:
        """The job of the teachers, if there is one."""
        return (self.start,) if self.start else ()

    @property
    def kind(self) -> tuple:
        """What of the job makes another compiled program."""
        record = "any" if self.one_program else self.record
        training = (type(self.method), self.method.training, record, self.measured)
        sizes = (self.samples, self.held_out_percent)
        retained = ()
        if self.forgets:
            poison = self.poison
            kind = "any" if self.one_program else poison.name
            retained = (kind, poison.alpha_percent, poison.known_percent)
        return (self.data, self.model.label, *training, *sizes, *retained)

    @property
    def title(self) -> str:
        """Method, model and poison."""
        trained = f"{type(self.method).__name__} {self.model.label}"
        return f"{trained} {self.poison.name} {self.poison.alpha_percent} %"

    @property
    def forgets(self) -> bool:
        """Whether the forget set is left out of the training."""
        return bool(self.start) if self.retains is None else self.retains

    @property
    def generation(self) -> int:
        """The number of jobs before this job along the chain of `start`."""
        return 1 + self.start.generation if self.start else 0

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Train models, or let those of `start` unlearn, and measure them; returns arrays by name.

        inputs: the arrays of `start`, if there is one. accuracy, loss: (runs, [epochs + 1,]
        splits), of `splits_of`, NaN where the split is empty or not known. diverged: (runs,). size:
        (), the number of a model's parameters. Further arrays as `record` says. logit, label:
        (runs, n + n + v), first of the n training samples as poisoned, then of the n training
        samples before they were poisoned, then of the v validation samples; logit: (runs, n + n +
        v, K) of more than two classes. mask, known: (runs, n), which training samples are poisoned,
        and which are the forget set.
        """
        values = self.trained(*block_inputs(self, dataset), *inputs)
        return values if self.knows_truth(dataset) else _without_truth(values)

    def trained(self, masks: Arrays, block: Block, *inputs: Arrays) -> Arrays:
        """Return the arrays of `perform`, from the data of the block."""
        kind = "oracle" if self.forgets and not self.start else "fit"
        keys = run_keys(
            self.seed,
            self.model,
            self.poison,
            self.runs,
            generation=self.generation,
            kind=kind,
            draw=self.draw,
        )
        teachers = self._teachers(*inputs) if inputs else None
        data = (self.model, self.method, block, teachers, keys)
        options = (self.side_by_side, self.record)
        if self.one_program and not self.measured:
            values = run_block_by_one_program(*data, *options)
        else:
            values = run_block(*data, *options, self.measured)
        has_no_loss = _has_no_loss(np.asarray(values["loss"]))
        values["diverged"] = np.asarray(values["diverged"]) | has_no_loss
        params = values.pop("params")
        values["size"] = size_of(params) // self.size
        if self.record == "end" or self.measured:
            return values
        tensors = {}
        for path, leaf in tree_leaves_with_path(params):
            tensors[f"params{keystr(path)}"] = np.asarray(leaf)
        return values | tensors | masks

    def _teachers(self, tensors: Arrays) -> Params:
        """Take each run's teacher from the parameters of `start`."""
        teachers = np.arange(self.size)
        if self.teacher_run is not None:
            teachers[:] = self.teacher_run - self.start.runs[0]
        params = tensors_to_params(self.model, tensors)
        return jax.tree.map(lambda leaf: leaf[teachers], params)


def _without_truth(values: Arrays) -> Arrays:
    """Put NaN in place of accuracy and loss on samples as they were before the poison."""
    is_known = np.array(SPLITS) != "forget_clean"  # data with a poison of their own have no others
    scores = {name: np.where(is_known, values[name], np.nan) for name in ("accuracy", "loss")}
    return values | scores


def runs_of(job: Runs) -> dict:
    """Return the fields that name a job's runs and data, for a second job of the same runs."""
    return {name: getattr(job, name) for name in ("data", "seed", "block", "size")}


def tensors_to_params(model: Model, tensors: Arrays) -> Params:
    """Build the model's pytree from arrays named "params" + the path of a leaf.

    Leading axes of the arrays are kept.
    """

    def leaf_at(path: tuple, _: Any) -> jax.Array:
        return jnp.asarray(tensors[f"params{keystr(path)}"])

    return tree_map_with_path(leaf_at, shapes_of(model))


def narrowed(model: Model, arrays: Arrays, block: Block) -> Params:
    """Return the parameters of a job's runs, cut to the features of a block's inputs."""
    params = tensors_to_params(model, arrays)
    return params if block.columns is None else model.narrow(params, block.columns)


def _has_no_loss(loss: np.ndarray) -> np.ndarray:
    """(runs,), True where the last validation or training loss is NaN or infinite."""
    last = loss.reshape(len(loss), -1, loss.shape[-1])[:, -1]
    never_empty = [SPLITS.index("validation"), SPLITS.index("train")]
    return ~np.isfinite(last[:, never_empty]).all(axis=1)


# ---- the data of a block ----


class Block(NamedTuple):
    """The data of a block of runs, prepared for the model.

    Arrays have a leading axis over runs, unless their shape is given. n + n + v samples are
    measured: the training set as poisoned, the training set before it was poisoned, the validation
    set.
    """

    retain: Split
    forget: Split
    forget_clean: Split
    # of the training set as poisoned; of the clean training set, if inputs differ; of the run's
    # validation set, if it has one of its own
    inputs: jax.Array
    # (v, ...) the validation set that all runs share; (0, ...) where each run has its own
    validation: jax.Array
    # (n + n + v,) positions of the measured samples among inputs and validation together
    measured: jax.Array
    labels: jax.Array  # of the measured samples
    member: jax.Array  # (runs, splits, n + n + v), 1 for the measured samples of a split
    columns: jax.Array | None  # features to which a network's inputs are cut; None: all


def block_inputs(job: Fit, dataset: Dataset) -> tuple[Arrays, Block]:
    """Call `inputs_of_sets` for the runs of a job; keeps the last two results."""
    values = values_of(job, Drawn)
    place = (job.model, job.forgets, job.one_program, *values.values())
    # taken out and put back, so that it is the newest
    result = _recent.pop(place, None)
    if result is None:
        sets = job.sets(dataset)
        result = inputs_of_sets(job.model, sets, job.forgets, differ=job.one_program)
    _recent[place] = result
    if len(_recent) > 2:
        oldest = next(iter(_recent))
        del _recent[oldest]
    return result


# two results, because jobs of one kind follow each other in a process
_recent: dict[tuple, tuple[Arrays, Block]] = {}


def inputs_of_sets(
    model: Model, sets: list[Sets], forgets: bool, *, differ: bool = False
) -> tuple[Arrays, Block]:
    """Return masks and labels of all samples, named as in `Fit.perform`, and the data of the block.

    forgets: whether the forget set is left out of the training. differ: whether the clean training
    set gets inputs of its own even where the poison keeps all inputs. BadInput where the forget set
    is empty or holds all samples.
    """
    draws, _, vals = zip(*sets, strict=True)
    known = np.stack([draw.known for draw in draws])
    n = len(known[0])
    v = len(vals[0].y)
    if forgets:
        got = f"{known[0].sum()} of {n} samples to forget"
        require(known.any() and not known.all(), "poison", got, "some of the samples, not all")
    differ = differ or _inputs_differ(sets)
    inputs, validation, columns = _prepared(model, sets, differ)
    measured = _measured_positions(n, v, differ)
    labels = [np.concatenate((draw.split.y, clean.y, val.y)) for draw, clean, val in sets]
    require_classes(model, np.concatenate(labels), inputs[0], "labels")

    def training_samples(chosen: np.ndarray, first: int = 0) -> Split:
        """Take chosen (runs, n) training samples; first: 0 for them as poisoned, n for clean."""
        x, y = [], []
        for x_of_run, y_of_run, chosen_of_run in zip(inputs, labels, chosen, strict=True):
            rows = first + np.flatnonzero(chosen_of_run)
            x.append(x_of_run[measured[rows]])
            y.append(y_of_run[rows])
        return Split(np.stack(x), np.stack(y))

    forgotten = known if forgets else np.zeros_like(known)
    block = Block(
        retain=training_samples(~forgotten),
        forget=training_samples(forgotten),
        forget_clean=training_samples(forgotten, n),
        inputs=np.stack(inputs),
        validation=validation,
        measured=measured,
        labels=np.stack(labels),
        member=_membership(known, v, draws),
        columns=columns,
    )
    masks = {
        "mask": np.stack([draw.mask for draw in draws]),
        "known": known,
        "label": np.stack(labels).astype(np.int8),
    }
    return masks, jax.tree.map(jnp.asarray, block)


def _inputs_differ(sets: list[Sets]) -> bool:
    """Whether the poison changes inputs."""
    are_equal = (np.array_equal(draw.split.x, clean.x) for draw, clean, _ in sets)
    return not all(are_equal)


def _measured_positions(n: int, v: int, differ: bool) -> np.ndarray:
    """(n + n + v,) positions of the measured samples among inputs and validation set together.

    differ: whether the poison changes inputs, so that the clean training set has inputs of its own.
    """
    first_clean = n if differ else 0
    first_val = first_clean + n
    poisoned = np.arange(n)
    validation = first_val + np.arange(v)
    return np.concatenate([poisoned, first_clean + poisoned, validation])


def _prepared(
    model: Model, sets: list[Sets], differ: bool
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray | None]:
    """Return the inputs of each run, the validation set that all runs share, and the kept features.

    differ: whether the poison changes inputs. A network's inputs are cut to the features that are
    not 0 in all samples, because weights that lead from zeros get no gradient and change no logit.
    Of an XXZ state's 8192 features 924 are kept if it is real, else 1848.
    """
    first_val = sets[0].val
    is_shared = all(sets_of_run.val is first_val for sets_of_run in sets)
    inputs = []
    for draw, clean, val in sets:
        parts = [draw.split.x]
        if differ:
            parts.append(clean.x)
        if not is_shared:
            parts.append(val.x)
        inputs.append(np.asarray(model.prepare(np.concatenate(parts))))
    validation = inputs[0][:0]
    if is_shared:
        validation = np.asarray(model.prepare(first_val.x))
    if not hasattr(model, "narrow"):
        return inputs, validation, None
    all_inputs = (*inputs, validation)
    is_used_in_each = [np.any(x != 0, axis=0) for x in all_inputs]
    is_used = np.any(is_used_in_each, axis=0)
    if is_used.all():
        return inputs, validation, None
    columns = np.flatnonzero(is_used)
    inputs = [x[:, columns] for x in inputs]
    return inputs, validation[:, columns], columns


def _membership(known: np.ndarray, n_val: int, draws: Sequence[Poisoned]) -> np.ndarray:
    """1 for the measured samples that belong to a split: (runs, splits, n + n + v)."""
    no_train = np.zeros_like(known)
    no_val = np.zeros((len(known), n_val), bool)
    forgets_class = draws[0].of_class is not None
    of_class = np.stack([draw.of_class for draw in draws]) if forgets_class else no_val
    # each split's share of the poisoned training set, the clean training set, the validation set
    members = {
        "train": (~no_train, no_train, no_val),
        "retain": (~known, no_train, no_val),
        "forget_poisoned": (known, no_train, no_val),
        "forget_clean": (no_train, known, no_val),
        "validation": (no_train, no_train, ~of_class),
        OF_CLASS: (no_train, no_train, of_class),
    }
    names = (*SPLITS, OF_CLASS) if forgets_class else SPLITS
    of_splits = [np.concatenate(members[name], axis=1) for name in names]
    return np.stack(of_splits, axis=1).astype(np.float32)


# ---- train or unlearn, and measure ----


class Measured(NamedTuple):
    """A measure that is called after the epochs `at` only; see models.fit."""

    function: Callable[[Params], Any]
    at: tuple[int, ...]

    def __call__(self, params: Params) -> Any:
        return self.function(params)


def _run_block(
    model: Model, method: Method, block: Block, teachers: Params | None, keys: jax.Array,
    side_by_side: bool, record: str, measured: tuple[int, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train all runs of a block and measure them; all arrays get a leading axis over runs.

    teachers: the parameters to unlearn from, with an axis over runs. None: training starts from
    fresh parameters, and the method is `Retrain`.

    Returns accuracy and loss of each of SPLITS, along the epochs for the record "curves"; logit, of
    all measured samples; params, at the end; diverged, whether a parameter or logit is not finite.
    """

    def one_run(run, teacher, key):
        task, start, method_key, measure_key = _begun(model, method, block, run, teacher, key)
        x = jnp.concatenate([run.inputs, block.validation])
        measure = partial(_measure, model, run, x, block.measured, measure_key)

        def point(params):
            return measure(params)[0]

        curve = Measured(point, measured) if measured else point
        # Here it trains, or unlearns.
        params, curves = method(task, method_key, curve if record == "curves" else None)
        scores, logits = measure(params)
        leaves = jax.tree.leaves((params, logits))
        finite = [jnp.isfinite(leaf).all() for leaf in leaves]
        values = scores if curves is None else curves
        values = values | {"diverged": ~jnp.stack(finite).all()}
        values["params"] = _widened(model, block, params, start)
        return values if record == "end" or measured else values | {"logit": logits}

    return _over_runs(one_run, side_by_side, block, teachers, keys)


def _begun(
    model: Model, method: Method, block: Block, run: Block, teacher: Params | None, key: jax.Array
) -> tuple[Task, Params, jax.Array, jax.Array]:
    """Return a run's task, its first parameters, and the keys of its method and its measures.

    run: its part of the block. teacher: its parameters, None where training starts from fresh ones.
    The task has the used features alone; the first parameters have all.
    """
    columns = block.columns

    def narrow(params: Params) -> Params:
        return params if columns is None else model.narrow(params, columns)

    fresh_key, method_key, measure_key = jax.random.split(key, 3)
    fresh = model.init(fresh_key)
    start = fresh if teacher is None or method.is_fresh else teacher
    teacher = fresh if teacher is None else teacher
    narrow_teacher = narrow(teacher)
    narrow_fresh = narrow(fresh)
    parts = (run.retain, run.forget, run.forget_clean)
    task = Task(model, narrow_teacher, *parts, narrow_fresh)
    return task, start, method_key, measure_key


def _widened(model: Model, block: Block, params: Params, start: Params) -> Params:
    """Return parameters of all features, those of unused ones as they were at the start.

    params: of the used features. start: of all features.
    """
    return params if block.columns is None else model.widen(params, block.columns, start)


def _over_runs(one_run: Callable, side_by_side: bool, block: Block, *arrays: Any) -> Any:
    """Call `one_run(run, *arrays)` for each run of a block, and stack what it returns.

    arrays: pytrees with an axis over runs, or None. side_by_side: all runs are one batch; else one
    run follows the other, which fills a core as well where a run has large matrices.
    """
    # only the arrays with an axis over runs
    runs = block._replace(validation=None, measured=None, columns=None)
    arguments = (runs, *arrays)
    if side_by_side:
        return jax.vmap(one_run)(*arguments)
    return jax.lax.map(lambda each: one_run(*each), arguments)


def _measure(
    model: Model, run: Block, x: jax.Array, measured: jax.Array, key: jax.Array, params: Params
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Measure one run: accuracy and loss of each of SPLITS, and logits of the measured samples.

    run: the run's part of the block; x: all of its inputs; measured: positions among x.
    """
    logits = logits_of(model, params, x, key)[measured]  # (n + n + v,) or (n + n + v, K)
    measures = {
        "accuracy": jax.vmap(metrics.accuracy),
        "loss": jax.vmap(metrics.cross_entropy),
    }
    if logits.ndim == 2:
        measures = {"accuracy": metrics.hits, "loss": metrics.log_losses}
    sizes = run.member.sum(axis=1)
    scores = {}
    for name, measure in measures.items():
        of_samples = measure(logits, run.labels)
        scores[name] = run.member @ of_samples / sizes
    return scores, logits


# Jitted under the function's own name, by which a process finds programs compiled earlier.
run_block = jax.jit(_run_block, static_argnames=("model", "side_by_side", "record", "measured"))


# ---- the same by one program for all records ----


def run_block_by_one_program(
    model: Model, method: Method, block: Block, teachers: Params | None, keys: jax.Array,
    side_by_side: bool, record: str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Do what `run_block` does by one program that trains and one that measures.

    Both are compiled once for all records. The first returns the parameters before each epoch, of
    which the second measures those that the record asks for. Methods that start from fresh
    parameters share the first with trainings without teachers.

    Short trainings are done sooner so: their programs take longer to compile than to run, and the
    measures are most of a program that records curves. Numbers agree to rounding with those of
    `run_block`, which paper and corrected take; keys of results tell the two apart.
    """
    if teachers is None and method.is_fresh:
        teachers = fresh_block(model, keys)
    result = train_block(model, method, block, teachers, keys, side_by_side)
    used, params, history = jax.device_get(result)
    of_measures = block._replace(retain=None, forget=None, forget_clean=None)

    def measure(params):
        scores = measure_block(model, of_measures, params, keys, side_by_side)
        return jax.device_get(scores)

    values, logits = measure(used)
    leaves = jax.tree.leaves(history)  # none, where the method keeps no history
    if record == "curves" and leaves:
        points = []
        for place in range(leaves[0].shape[1]):
            at_place = jax.tree.map(lambda leaf, place=place: leaf[:, place], history)
            points.append(measure(at_place)[0])
        values = {name: np.stack([each[name] for each in points], axis=1) for name in values}
    finite = [
        np.isfinite(leaf).reshape(len(leaf), -1).all(axis=1)
        for leaf in jax.tree.leaves((params, logits))
    ]
    values = values | {"diverged": ~np.all(finite, axis=0), "params": params}
    return values if record == "end" else values | {"logit": logits}


@partial(jax.jit, static_argnames="model")
def fresh_block(model: Model, keys: jax.Array) -> Params:
    """Return the fresh parameters of all runs, as `train_block` draws them from the same keys."""
    return jax.vmap(lambda key: model.init(jax.random.split(key, 3)[0]))(keys)


@partial(jax.jit, static_argnames=("model", "side_by_side"))
def train_block(
    model: Model, method: Method, block: Block, teachers: Params | None, keys: jax.Array,
    side_by_side: bool,
) -> tuple[Params, Params, Params]:  # fmt: skip
    """Return the last parameters of all runs, twice, and those before each epoch and at the end.

    The first and third are of the used features alone, the second of all. The third have an axis
    over epochs behind that over runs.
    """

    def one_run(run, teacher, key):
        task, start, method_key, _ = _begun(model, method, block, run, teacher, key)
        params, history = method(task, method_key, lambda params: params)
        return params, _widened(model, block, params, start), history

    return _over_runs(one_run, side_by_side, block, teachers, keys)


@partial(jax.jit, static_argnames=("model", "side_by_side"))
def measure_block(
    model: Model, block: Block, params: Params, keys: jax.Array, side_by_side: bool
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Return the scores of all runs with these parameters, and their logits.

    params: of the used features, with an axis over runs. Scores: accuracy and loss (runs, splits).
    Logits: (runs, n + n + v), of the measured samples. keys: those of `train_block`.
    """

    def one_run(run, params, key):
        measure_key = jax.random.split(key, 3)[2]
        x = jnp.concatenate([run.inputs, block.validation])
        return _measure(model, run, x, block.measured, measure_key, params)

    return _over_runs(one_run, side_by_side, block, params, keys)
