"""The protocol of a block of runs: draw the poison, train the teacher, unlearn, measure.

Read from top to bottom: `Drawn` says which samples are poisoned, and which samples a run is trained
and validated on; `Fit` is a block of runs as a job; `run_block` trains all runs of a block, or
makes teachers unlearn, and measures them. A run without jobs and files takes `inputs_of_sets`,
`run_keys` and `run_block`; run_example.py does so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from datar import Dataset, Split, redraw
from foundation.base.checks import require
from foundation.engine.jobs import Arrays, Job, Runs, random_key
from foundation.measures import metrics
from models import Model, Params, shapes_of
from poison_unlearn import Method, Poison, Poisoned, Task

SPLITS = ("validation", "retain", "forget_poisoned", "forget_clean", "train")

# ---- the data of a run ----


class Sets(NamedTuple):
    """The data of one run."""

    draw: Poisoned  # the training set
    clean: Split  # the training set before it was poisoned
    val: Split  # the validation set


@dataclass(frozen=True, kw_only=True)
class Drawn(Runs):
    """A block of runs, and how the data of each run are drawn; the same data for every model."""

    poison: Poison
    draw: int | None = None  # of the poison, one for all runs; None: each run has its own
    held_out_percent: int = 0  # of the samples below, as they stand, in place of the validation set
    held_out_of: Literal["retained", "all"] = "retained"
    redrawn: bool = False  # each run draws training and validation set anew from both together
    samples: int = 0  # of a training set that is drawn anew; 0: as many as there are
    fold: int | None = (
        None  # which of the shares that are held out in turn; None: one drawn by chance
    )

    @property
    def numbers(self) -> list[int]:
        """The draw of each run."""
        return list(self.runs) if self.draw is None else [self.draw] * self.size

    def draws(self, dataset: Dataset) -> list[Poisoned]:
        """The poisoned training set of each run, before anything is held out."""
        return [sets.draw for sets in replace(self, held_out_percent=0).sets(dataset)]

    def sets(self, dataset: Dataset) -> list[Sets]:
        """The data of each run; one object for all runs of one draw."""
        drawn = {number: self._sets(dataset, number) for number in dict.fromkeys(self.numbers)}
        return [drawn[number] for number in self.numbers]

    def _sets(self, dataset: Dataset, number: int) -> Sets:
        if self.redrawn:
            purpose = "training set", *([self.samples] if self.samples else [])
            key = random_key(self.seed, *purpose, number)
            dataset = redraw(
                dataset,
                self.samples or len(dataset.train.y),
                seed=np.asarray(jax.random.key_data(key)),
            )
        draw = self.poison.draw(dataset, key=poison_key(self.seed, self.poison, number))
        clean = dataset.given.clean if self.poison.kind == "given" else dataset.train
        sets = Sets(draw, clean, dataset.val)
        return self._hold_out(sets, self._kept(draw, number)) if self.held_out_percent else sets

    def kept(self, dataset: Dataset) -> np.ndarray:
        """(runs, n), which samples of each run's training set are not held out."""
        draws = zip(self.draws(dataset), self.numbers, strict=True)
        return np.stack([self._kept(draw, number) for draw, number in draws])

    def _kept(self, draw: Poisoned, number: int) -> np.ndarray:
        """(n,), which training samples are not held out."""
        key = random_key(self.seed, "held out", self.poison.kind, self.poison.alpha_percent, number)
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)))
        chosen = np.flatnonzero(~draw.known | (self.held_out_of == "all"))
        count = round(len(chosen) * self.held_out_percent / 100)
        words = f"{self.held_out_percent} % of {len(chosen)} samples"
        require(0 < count < len(chosen), "held_out_percent", words, "some of them and not all")
        if self.fold is None:
            held = generator.choice(chosen, count, replace=False)
        else:
            held = np.array_split(
                generator.permutation(chosen), round(100 / self.held_out_percent)
            )[self.fold]
        return ~np.isin(np.arange(len(draw.mask)), held)

    @staticmethod
    def _hold_out(sets: Sets, kept: np.ndarray) -> Sets:
        """Move the training samples that are not kept to the validation set, in place of what it
        held."""
        draw, clean, _ = sets
        split, forgotten = Split(draw.split.x[kept], draw.split.y[kept]), kept[draw.known]
        forget = [
            Split(part.x[forgotten], part.y[forgotten])
            for part in (draw.forget_clean, draw.forget_poisoned)
        ]
        held = Split(draw.split.x[~kept], draw.split.y[~kept])
        return Sets(
            Poisoned(split, draw.mask[kept], draw.known[kept], *forget),
            Split(clean.x[kept], clean.y[kept]),
            held,
        )


def poison_key(seed: int, poison: Poison, number: int) -> jax.Array:
    """The key of the poison's random choices: of draw `number`, or of run `number` where each run
    has its own."""
    return random_key(seed, "poison", poison.kind, poison.alpha_percent, number)


def run_keys(
    seed: int, model: Model, poison: Poison, runs: Iterable[int], *,
    generation: int = 0, kind: Literal["fit", "oracle"] = "fit", draw: int | None = None,
) -> jax.Array:  # fmt: skip
    """(runs,) keys of trainings: first parameters, batches and whatever else a model or a method
    draws.

    generation: 0 for a teacher, 1 for what starts from one. Methods that start from one teacher
    share their keys. kind: an oracle, trained afresh without the forget set, shares nothing with a
    teacher. draw: that of all runs.
    """
    of_draw = () if draw is None else ("draw", draw)
    purpose = (kind, generation, model.label, poison.kind, poison.alpha_percent, *of_draw)
    return jnp.stack([random_key(seed, *purpose, run) for run in runs])


# ---- a block of runs as a job ----


@dataclass(frozen=True, kw_only=True)
class Fit(Drawn):
    """A block of runs: models trained by a method on poisoned data, from fresh parameters or from
    another job's.

    record: what is kept; end: accuracy and loss of each of SPLITS; logits: the logit of each sample
    and the parameters, too; curves: accuracies and losses before and after each epoch as well, or
    after those that are `measured`.
    """

    model: Model
    method: Method
    start: Fit | None = (
        # whose parameters are the teachers; None: train on all samples, poisoned ones among them
        None
    )
    teacher_run: int | None = (
        None  # the run of `start` that teaches all runs; None: each run has its own teacher
    )
    side_by_side: bool = True  # the runs are one batch
    record: Literal["end", "logits", "curves"] = "logits"
    retains: bool | None = (
        None  # trained on the retained samples alone; None: those that start from others are
    )
    # epochs after which curves are measured, ascending; (): before and after each
    measured: tuple[int, ...] = ()

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start,) if self.start else ()

    @property
    def kind(self) -> tuple:
        retained = (
            (self.poison.kind, self.poison.alpha_percent, self.poison.known_percent)
            if self.forgets
            else ()
        )
        sizes = (self.samples, self.held_out_percent)
        own = (
            self.model.label,
            type(self.method),
            self.method.training,
            self.record,
            self.measured,
        )
        return (self.data, *own, *sizes, *retained)

    @property
    def title(self) -> str:
        return (
            f"{type(self.method).__name__} {self.model.label} {self.poison.kind} "
            f"{self.poison.alpha_percent} %"
        )

    @property
    def forgets(self) -> bool:
        """Whether the forget set is left out of what it is trained on."""
        return bool(self.start) if self.retains is None else self.retains

    @property
    def generation(self) -> int:
        """How many jobs it starts from, one after the other."""
        return 1 + self.start.generation if self.start else 0

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """accuracy, loss (runs, [epochs + 1,] splits), diverged (runs,), size (), and what `record`
        says.

        logit, label: (runs, n + n + v) of the training set as poisoned, the training set before,
        the validation set. mask, known: (runs, n), which training samples are poisoned, and which
        of them are the forget set.
        """
        return self.trained(*block_inputs(self, dataset), *inputs)

    def trained(self, masks: Arrays, block: Block, *inputs: Arrays) -> Arrays:
        """What `perform` returns, from the data of the block."""
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
        how = (self.side_by_side, self.record, self.measured)
        values = run_block(self.model, self.method, block, teachers, keys, *how)
        values["diverged"] = np.asarray(values["diverged"]) | _has_no_loss(
            np.asarray(values["loss"])
        )
        params = values.pop("params")
        values["size"] = sum(leaf.size for leaf in jax.tree.leaves(params)) // self.size
        tensors = {
            f"params{keystr(path)}": np.asarray(leaf)
            for path, leaf in tree_leaves_with_path(params)
        }
        return values if self.record == "end" or self.measured else values | tensors | masks

    def _teachers(self, tensors: Arrays) -> Params:
        chosen = (
            range(self.size)
            if self.teacher_run is None
            else [self.teacher_run - self.start.runs[0]] * self.size
        )
        return jax.tree.map(
            lambda leaf: leaf[np.array(chosen)], tensors_to_params(self.model, tensors)
        )


def runs_of(job: Runs) -> dict:
    """Which runs of which data a job has: fields of another job that goes with it."""
    return {name: getattr(job, name) for name in ("data", "seed", "block", "size")}


def tensors_to_params(model: Model, tensors: Arrays) -> Params:
    """The model's pytree from named arrays (with any leading axes): "params", followed by the place
    of a leaf."""
    return tree_map_with_path(
        lambda path, _: jnp.asarray(tensors[f"params{keystr(path)}"]), shapes_of(model)
    )


def narrowed(model: Model, arrays: Arrays, block: Block) -> Params:
    """The parameters of a job's runs, for the inputs of a block."""
    params = tensors_to_params(model, arrays)
    return params if block.columns is None else model.narrow(params, block.columns)


def _has_no_loss(loss: np.ndarray) -> np.ndarray:
    """(runs,), whether the last loss on one of the splits that always hold samples is NaN or
    infinite."""
    last = loss.reshape(len(loss), -1, len(SPLITS))[:, -1]
    return ~np.isfinite(last[:, [SPLITS.index("validation"), SPLITS.index("train")]]).all(axis=1)


# ---- what a block is trained and measured on ----


class Block(NamedTuple):
    """The data of a block of runs, prepared for the model.

    Arrays have a leading axis over runs, unless their shape is said. n + n + v samples are
    measured: the training set as poisoned, the training set before it was poisoned, the validation
    set.
    """

    retain: Split
    forget: Split
    forget_clean: Split
    # training inputs as poisoned; those before, if they differ; the run's validation set, if it has
    # one
    inputs: jax.Array
    # (v, ...) the validation set that all runs share; (0, ...) where each has its own
    validation: jax.Array
    # (n + n + v,), where among inputs and validation the measured samples stand
    measured: jax.Array
    labels: jax.Array  # of the measured samples
    member: jax.Array  # (runs, len(SPLITS), n + n + v), which of them belong to each split
    columns: jax.Array | None  # features to which a network's inputs are cut; None: all


def block_inputs(job: Fit, dataset: Dataset) -> tuple[Arrays, Block]:
    """What `inputs_of_sets` returns, for the runs of a job; the last two are kept."""
    place = (job.model, job.forgets, *(getattr(job, each.name) for each in fields(Drawn)))
    _recent[place] = _recent.pop(place, None) or inputs_of_sets(
        job.model, job.sets(dataset), job.forgets
    )
    if len(_recent) > 2:
        del _recent[next(iter(_recent))]
    return _recent[place]


# the last two: jobs of one kind follow each other on a process
_recent: dict[tuple, tuple[Arrays, Block]] = {}


def inputs_of_sets(model: Model, sets: list[Sets], forgets: bool) -> tuple[Arrays, Block]:
    """Which samples of each run are what, as `Fit.perform` names them; and the data of the block.

    forgets: whether the forget set is left out of what is trained on. BadInput where it is empty,
    or all there is.
    """
    draws, _, vals = zip(*sets, strict=True)
    known = np.stack([draw.known for draw in draws])
    if forgets:
        words = f"{known[0].sum()} of {len(known[0])} samples to forget"
        require(known.any() and not known.all(), "poison", words, "some of the samples, not all")
    differ = any(not np.array_equal(draw.split.x, clean.x) for draw, clean, _ in sets)
    inputs, validation, columns = _prepared(model, sets, differ)
    n, v = len(known[0]), len(vals[0].y)
    places = [np.arange(n), np.arange(n) + differ * n, np.arange(v) + (1 + differ) * n]
    measured = np.concatenate(places)
    labels = [np.concatenate([draw.split.y, clean.y, val.y]) for draw, clean, val in sets]

    def taken(chosen: np.ndarray, first: int = 0) -> Split:
        rows = [first + np.flatnonzero(samples) for samples in chosen]
        x = [of_run[measured[samples]] for of_run, samples in zip(inputs, rows, strict=True)]
        y = [of_run[samples] for of_run, samples in zip(labels, rows, strict=True)]
        return Split(np.stack(x), np.stack(y))

    forgotten = known if forgets else np.zeros_like(known)
    block = Block(
        retain=taken(~forgotten),
        forget=taken(forgotten),
        forget_clean=taken(forgotten, n),
        inputs=np.stack(inputs),
        validation=validation,
        measured=measured,
        labels=np.stack(labels),
        member=_membership(known, v),
        columns=columns,
    )
    masks = {
        "mask": np.stack([draw.mask for draw in draws]),
        "known": known,
        "label": np.stack(labels).astype(np.int8),
    }
    return masks, jax.tree.map(jnp.asarray, block)


def _prepared(
    model: Model, sets: list[Sets], differ: bool
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray | None]:
    """The inputs of each run, the validation set that all share, and the features that are kept.

    differ: whether the poison changes inputs. Features that are 0 in all samples are left out for a
    network: weights that lead from zeros never move and never matter. Of an XXZ state's 8192
    features 924 are kept if it is real, else 1848.
    """
    first = sets[0].val
    shared = all(val is first for _, _, val in sets)
    of_runs = []
    for draw, clean, val in sets:
        parts = [draw.split.x, *[clean.x] * differ, *[val.x] * (not shared)]
        of_runs.append(np.asarray(model.prepare(np.concatenate(parts))))
    validation = np.asarray(model.prepare(first.x)) if shared else of_runs[0][:0]
    if not hasattr(model, "narrow"):
        return of_runs, validation, None
    used = np.any([np.any(x != 0, axis=0) for x in (*of_runs, validation)], axis=0)
    if used.all():
        return of_runs, validation, None
    columns = np.flatnonzero(used)
    return [x[:, columns] for x in of_runs], validation[:, columns], columns


def _membership(known: np.ndarray, n_val: int) -> np.ndarray:
    """Which of the measured samples belong to each split: (runs, len(SPLITS), n + n + v)."""
    none, outside = np.zeros_like(known), np.zeros((len(known), n_val), bool)
    members = {
        "train": (~none, none, outside),
        "retain": (~known, none, outside),
        "forget_poisoned": (known, none, outside),
        "forget_clean": (none, known, outside),
        "validation": (none, none, ~outside),
    }
    return np.stack([np.concatenate(members[name], axis=1) for name in SPLITS], axis=1).astype(
        np.float32
    )


# ---- train or unlearn, and measure ----


class Measured(NamedTuple):
    """A measure that is asked after some epochs alone; see models.fit."""

    function: Callable[[Params], Any]
    at: tuple[int, ...]

    def __call__(self, params: Params) -> Any:
        return self.function(params)


def _run_block(
    model: Model, method: Method, block: Block, teachers: Params | None, keys: jax.Array,
    side_by_side: bool, record: str, measured: tuple[int, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """Train all runs of a block and measure them; everything returned has a leading axis over runs.

    teachers: the parameters to unlearn from, with an axis over runs; None: training starts from
    fresh parameters, and the method is `Retrain`. accuracy, loss: of each of SPLITS, along the
    epochs for the record "curves"; logit: of all measured samples; params, at the end; diverged:
    whether any of these is not finite.
    """
    columns = block.columns

    def narrow(params: Params) -> Params:
        return params if columns is None else model.narrow(params, columns)

    def one_run(arguments):
        own, teacher, key = arguments
        fresh_key, method_key, measure_key = jax.random.split(key, 3)
        fresh = model.init(fresh_key)
        start = fresh if teacher is None or method.is_fresh else teacher
        teacher = fresh if teacher is None else teacher
        task = Task(model, narrow(teacher), own.retain, own.forget, own.forget_clean, narrow(fresh))
        measure = partial(_measure, task, own, block, measure_key)

        def point(params):
            return measure(params)[0]

        curve = Measured(point, measured) if measured else point
        # Here it trains, or unlearns.
        params, curves = method(task, method_key, curve if record == "curves" else None)
        scores, logits = measure(params)
        finite = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves((params, logits))]
        kept = (scores if curves is None else curves) | {"diverged": ~jnp.stack(finite).all()}
        kept["params"] = params if columns is None else model.widen(params, columns, start)
        return kept if record == "end" or measured else kept | {"logit": logits}

    of_runs = block._replace(validation=None, measured=None, columns=None)  # with an axis over runs
    arguments = (of_runs, teachers, keys)
    return jax.vmap(one_run)(arguments) if side_by_side else jax.lax.map(one_run, arguments)


def _measure(
    task: Task, own: Block, block: Block, key: jax.Array, params: Params
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Accuracy and loss of each of SPLITS, and the logit of each measured sample, of one run.

    own: the run's part of the block.
    """
    x = jnp.concatenate([own.inputs, block.validation])
    logits = task.logits(params, x, key)[block.measured]  # (n + n + v,)
    sizes = own.member.sum(axis=1)
    of_sample = {
        "accuracy": jax.vmap(metrics.accuracy),
        "loss": jax.vmap(metrics.cross_entropy),
    }
    scores = {
        name: own.member @ measure(logits, own.labels) / sizes
        for name, measure in of_sample.items()
    }
    return scores, logits


# Compiled under the function's own name, by which processes find the programs that earlier ones
# have compiled.
run_block = jax.jit(_run_block, static_argnames=("model", "side_by_side", "record", "measured"))
