"""Oracles and null arms, with which unlearned models are compared, and the choice of
hyper-parameters.

An oracle is trained as a teacher is, but on the retained samples alone. Each draw of the poison has
N teachers, N models of each method, a null arm for each method and 3 N oracles. A null arm is the
teachers, trained on the poisoned data for as many further steps as the method takes. N oracles are
half A, N are half B, and N stand in a method's place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from datar import Dataset, Split
from foundation.base.later import optax
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job, Runs, keys_of_runs, values_of
from foundation.engine.study_files import Row
from foundation.measures import forgetting
from foundation.measures.forgetting import Parts
from foundation.measures.metrics import cross_entropy, margins
from models import Model, Params, Training, logits_of
from poison_unlearn import Descent, FineTune, Method, Poison, Retrain
from protocol import SPLITS, Fit, block_inputs, narrowed
from studies.config import Config
from studies.families import FAMILIES
from studies.rows import are_side_by_side, placed, poisons_to_unlearn

MOST_RUNS = 10  # of one job
HELD_OUT = 20  # percent of the retained samples, on CHOICE_DRAWS
# With fewer held-out samples nothing is chosen: the first setting of each method is taken.
LEAST_HELD_OUT = 10
# Hyper-parameters are chosen on these draws of the poison, and models are never judged on them.
CHOICE_DRAWS = (1000, 1001)
RELEARN_STEPS = 200  # at most
TRAINER = Retrain()
ORACLES = {"A": 0, "B": 1, "oracle": 2}  # the number of each group of N oracles


# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class Case:
    """One draw of the poison: its data, its model, and how teachers and oracles are trained."""

    data: str
    seed: int
    model: Model
    poison: Poison
    training: Training
    draw: int
    n: int  # teachers, models of each method, and oracles of each group
    side_by_side: bool = True
    trainer: Method = TRAINER  # trains teachers and oracles, with `training` in place of its own
    most_runs: int = MOST_RUNS  # most runs of a job
    one_program: bool = False  # as of a Fit

    @property
    def blocks(self) -> int:
        """Count the jobs that compute n models."""
        return math.ceil(self.n / self.most_runs)

    def fits(self, method: Method, *, group: int = 0, **fields_of_fit: Any) -> list[Fit]:
        """Return the jobs in which a method trains n models; group: a value of ORACLES."""
        held_out = HELD_OUT if self.draw in CHOICE_DRAWS else 0
        return [
            Fit(
                data=self.data,
                model=self.model,
                poison=self.poison,
                method=method,
                seed=self.seed,
                draw=self.draw,
                block=group * self.blocks + block,
                size=math.ceil(self.n / self.blocks),
                side_by_side=self.side_by_side,
                one_program=self.one_program,
                held_out_percent=held_out,
                **fields_of_fit,
            )
            for block in range(self.blocks)
        ]

    @property
    def training_method(self) -> Method:
        """The method that trains teachers and oracles."""
        return replace(self.trainer, training=self.training)

    def teachers(self) -> list[Fit]:
        """Return the jobs of models trained on all samples, poisoned ones included."""
        return self.fits(self.training_method)

    def oracles(self, group: str = "A") -> list[Fit]:
        """Return the jobs of models trained on the retained samples; group: one of ORACLES."""
        return self.fits(self.training_method, group=ORACLES[group], retains=True)

    def unlearned(self, method: Method) -> list[Fit]:
        """Return the jobs in which the teachers unlearn by a method."""
        return [replace(teacher, method=method, start=teacher) for teacher in self.teachers()]

    def chosen(self, choice: Choice, *, null: bool = False) -> list[Fit]:
        """Models of a method under its chosen setting; null: the null arm of these models."""
        method = choice.candidates[0]
        if null:
            fine_tuning = FineTune(training=method.training)
            if not choice.is_asked and getattr(type(method), "steps", None) is Descent.steps:
                # one null arm for all methods that take as many steps
                choice = replace(choice, candidates=(fine_tuning,))
            method = fine_tuning
        jobs = []
        for teacher in self.teachers():
            values = values_of(teacher) | {"method": method, "start": teacher, "retains": not null}
            jobs.append(Chosen(**values, choice=choice))
        return jobs

    def shown(self, job: Runs) -> range:
        """The runs of a job that count: the first n of each group."""
        group = job.block // self.blocks
        first = group * self.blocks * job.size
        last = min(job.runs.stop, first + self.n)
        return range(job.runs.start, last)


@dataclass(frozen=True, kw_only=True)
class Choice(Job):
    """Choose a method's setting on CHOICE_DRAWS, with a fifth of the retained samples held out.

    A setting scores min(held-out accuracy, forgetting), both averaged over runs and draws. The
    setting with the largest score is chosen, the first of equal ones; a setting that diverged in a
    run is never chosen. Forgetting is 1 - accuracy on the poisoned labels, or on a class that is to
    be forgotten. If labels stay else, forgetting is 1 - AUC of telling held-out samples from the
    forget set by their larger loss.
    """

    case: Case  # its n runs are trained on each draw
    candidates: tuple[Method, ...]

    @property
    def is_asked(self) -> bool:
        """Whether there are settings to choose among, and runs to choose by."""
        return len(self.candidates) > 1 and self.case.n > 0

    @property
    def needs(self) -> tuple[Job, ...]:
        """The models of each setting on each of CHOICE_DRAWS."""
        if not self.is_asked:
            return ()
        jobs = []
        for method, draw in itertools.product(self.candidates, CHOICE_DRAWS):
            case = replace(self.case, draw=draw)
            jobs += case.unlearned(method)
        return tuple(jobs)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return accuracy and forgetting (settings, draws, runs), and chosen (), a place."""
        if not self.is_asked:
            return {"chosen": np.array(0)}
        shape = (len(self.candidates), len(CHOICE_DRAWS), -1)
        is_class = self.case.poison.kind == "class"
        both = [_utility_and_forgetting(arrays, is_class) for arrays in inputs]
        by_job = np.array(both)  # (jobs, 2, runs)
        runs = slice(self.case.n)
        utility = by_job[:, 0].reshape(shape)[..., runs]
        forgotten = by_job[:, 1].reshape(shape)[..., runs]
        mean_utility = utility.mean(axis=(1, 2))
        mean_forgotten = forgotten.mean(axis=(1, 2))
        score = np.minimum(mean_utility, mean_forgotten)
        chosen = np.argmax(np.nan_to_num(score, nan=-1))
        return {"accuracy": utility, "forgetting": forgotten, "chosen": chosen}


def _utility_and_forgetting(arrays: Arrays, is_class: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return held-out accuracy and forgetting of a job's runs: (runs,) each, NaN if diverged.

    is_class: whether a class is to be forgotten.
    """
    accuracy = arrays["accuracy"].astype(float)
    labels = arrays["label"]
    n = arrays["mask"].shape[1]
    poisoned_labels = labels[:, :n]
    true_labels = labels[:, n : 2 * n]
    poison_keeps_labels = np.array_equal(poisoned_labels, true_labels)
    if poison_keeps_labels and not is_class:
        forgotten = _failures_of_loss_attack(arrays)
    else:
        forgotten = 1 - accuracy[:, SPLITS.index("forget_poisoned")]
    utility = accuracy[:, SPLITS.index("validation")]
    diverged = arrays["diverged"]
    utility = np.where(diverged, np.nan, utility)
    forgotten = np.where(diverged, np.nan, forgotten)
    return utility, forgotten


def _failures_of_loss_attack(arrays: Arrays) -> np.ndarray:
    """Return 1 - AUC of telling held-out samples from the forget set by their larger loss: (runs,).

    0 for a run whose held-out losses are not finite.
    """
    n = arrays["mask"].shape[1]
    logits = arrays["logit"].astype(float)  # (runs, n + n + v), or (runs, n + n + v, K)
    if logits.ndim > 2:
        losses = np.logaddexp(0, -margins(logits, arrays["label"]))
    else:
        losses = np.logaddexp(0, -forgetting.signs(arrays["label"]) * logits)
    failures = []
    for loss, known in zip(losses, arrays["known"], strict=True):
        held_out = loss[2 * n :]
        forget = loss[:n][known]
        if np.isfinite(held_out).all():
            failures.append(1 - forgetting.attack_auc(held_out, forget))
        else:
            failures.append(0)
    return np.array(failures)


@dataclass(frozen=True, kw_only=True)
class Chosen(Fit):
    """A block of runs of a method under the chosen setting, or of the null arm of that method.

    It is the null arm unless it `retains`.
    """

    choice: Choice

    @property
    def needs(self) -> tuple[Job, ...]:
        """The teachers, and the choice."""
        return (self.start, self.choice)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return the arrays of a Fit, and chosen (), the number of the chosen setting."""
        *starts, choice = inputs
        chosen = choice["chosen"]
        method = self.choice.candidates[int(chosen)]
        if not self.retains:
            method = null_of(method, *split_sizes(self.poison, dataset))
        values = values_of(self) | {"method": method}
        del values["choice"]
        arrays = Fit(**values).perform(dataset, *starts)
        return arrays | {"chosen": chosen}


def split_sizes(poison: Poison, dataset: Dataset) -> tuple[int, int]:
    """Count the retained and the forget samples, which are as many on every draw."""
    known = poison.draw(dataset, key=0).known
    return int((~known).sum()), int(known.sum())


def null_of(method: Method, n_retain: int, n_forget: int) -> FineTune:
    """Return fine-tuning on all samples for as many steps as the method takes.

    The steps are rounded to epochs, at least one; a method that does not descend counts as one
    step.
    """
    null = FineTune(training=method.training)
    steps = 1
    if isinstance(method, Descent):
        steps = method.training.epochs * method.steps(n_retain)
    steps_of_epoch = null.steps(n_retain + n_forget)
    epochs = max(round(steps / steps_of_epoch), 1)
    return replace(null, training=replace(method.training, epochs=epochs))


@dataclass(frozen=True, kw_only=True)
class Relearn(Runs):
    """Count the steps of training on the poisoned forget set until its loss is the teachers'."""

    start: Fit
    case: Case

    @property
    def needs(self) -> tuple[Job, ...]:
        """The models, and the teachers whose loss is the target."""
        return (self.start, *self.case.teachers())

    @property
    def kind(self) -> tuple:
        """Model and poison."""
        return (type(self).__name__, self.data, self.case.model.label, self.case.poison.name)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return steps (runs,): 0 for models that did not unlearn.

        RELEARN_STEPS + 1 if RELEARN_STEPS steps are not enough.
        """
        case = self.case
        arrays, *teachers = inputs
        losses = np.concatenate([teacher["loss"] for teacher in teachers])
        diverged = np.concatenate([teacher["diverged"] for teacher in teachers]).astype(bool)
        losses_of_forget_set = losses[: case.n, SPLITS.index("forget_poisoned")]
        target = losses_of_forget_set[~diverged[: case.n]].mean()
        _, block = block_inputs(case.oracles()[0], dataset)
        params = narrowed(case.model, arrays, block)
        keys = keys_of_runs(self.seed, "relearn", runs=self.runs)
        rate = case.training.learning_rate
        steps = _relearn(case.model, rate, block.forget, params, keys, target, case.side_by_side)
        return {"steps": np.asarray(steps)}


@partial(jax.jit, static_argnames=("model", "side_by_side"))
def _relearn(
    model: Model,
    rate: float,
    forget: Split,
    params: Params,
    keys: jax.Array,
    target: float,
    side_by_side: bool,
) -> jax.Array:
    """Count Adam's steps on the whole forget set until its loss is at most the target: (runs,).

    forget: (runs, f, ...).
    """
    optimizer = optax.adam(rate)

    def one_run(arguments):
        forget_of_run, start, key = arguments
        loss = jax.value_and_grad(
            lambda params: cross_entropy(
                logits_of(model, params, forget_of_run.x, key), forget_of_run.y
            )
        )

        def goes_on(carry):
            *_, is_reached, count = carry
            return ~is_reached & (count <= RELEARN_STEPS)

        def step(carry):  # the loss stands here alone, so that it is compiled once
            params, state, _, count = carry
            value, gradient = loss(params)
            is_reached = ~(value > target)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, is_reached, count + ~is_reached

        first = (start, optimizer.init(start), jnp.array(False), 0)
        *_, count = jax.lax.while_loop(goes_on, step, first)
        return count

    arguments = (forget, params, keys)
    if side_by_side:
        return jax.vmap(one_run)(arguments)
    return jax.lax.map(one_run, arguments)


# ---- the measured samples of a job ----


def signed_logits(arrays: Arrays, *, clean: bool = False) -> np.ndarray:
    """Return z, logits signed by the true labels, of training and validation set: (runs, n + v).

    Of more than two classes they are the margins of the true labels. clean: of the training set
    before the poison, not as poisoned.
    """
    logits = arrays["logit"][:, measured_places(arrays, clean=clean)]
    labels = true_labels(arrays)
    return margins(logits, labels) if logits.ndim > 2 else forgetting.signed(logits, labels)


def classes_of(arrays: Arrays) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what more than two classes say of training and validation set.

    (runs, n + v) whether the largest logit is the true label's, of the samples as poisoned and as
    they were before the poison, and (runs, n + v, K) the probabilities as poisoned.
    """
    labels = true_labels(arrays)
    versions = [arrays["logit"][:, measured_places(arrays, clean=clean)] for clean in (False, True)]
    hit, clean_hit = (logits.argmax(axis=-1) == labels for logits in versions)
    weights = np.exp(versions[0] - versions[0].max(axis=-1, keepdims=True))
    return hit, clean_hit, weights / weights.sum(axis=-1, keepdims=True)


def true_labels(arrays: Arrays) -> np.ndarray:
    """Return the true labels of training and validation set: (n + v,)."""
    return arrays["label"][0, measured_places(arrays, clean=True)]


def measured_places(arrays: Arrays, *, clean: bool = False) -> np.ndarray:
    """Return the places of training and validation set among the measured samples: (n + v,).

    clean: of the training set before the poison, not as poisoned.
    """
    n = arrays["mask"].shape[1]
    first = n * clean
    training = np.arange(first, first + n)
    validation = np.arange(2 * n, arrays["logit"].shape[1])
    return np.concatenate([training, validation])


def parts_of(arrays: Arrays, poison: Poison) -> Parts:
    """Return the masks of the parts of training and validation set: (n + v,) each."""
    mask = arrays["mask"][0].astype(bool)
    known = arrays["known"][0].astype(bool)
    labels = true_labels(arrays)
    n = len(mask)
    no_training_sample = np.zeros(n, bool)
    no_validation_sample = np.zeros(len(labels) - n, bool)
    of_class = no_validation_sample
    if poison.kind == "class":
        of_class = np.isin(labels[n:], labels[:n][known])
    return Parts(
        forget=np.concatenate([known, no_validation_sample]),
        poisoned=np.concatenate([mask, no_validation_sample]),
        retain=np.concatenate([~known, no_validation_sample]),
        validation=np.concatenate([no_training_sample, ~of_class]),
        of_class=np.concatenate([no_training_sample, of_class]),
    )


# ---- cases and choices ----


def cases(
    config: Config, dataset: Dataset, draws: Iterable[int], n: int
) -> Iterator[tuple[Case, Training]]:
    """Yield the case of each model and poison on each draw, and the training of its methods."""
    evaluated = replace(config, unlearn_hidden=config.evaluated_hidden)
    epochs_of = config.epochs_of_families("oracle_epochs")
    poisons = poisons_to_unlearn(config, dataset)
    for family, poison in itertools.product(config.evaluated, poisons):
        protocol = config.protocol(family)
        model = FAMILIES[family].unlearning(evaluated, dataset)
        epochs = epochs_of.get(family, protocol.teacher.epochs)
        training = replace(protocol.teacher, epochs=epochs)
        # A poison that the data came with is one draw, and so is a class.
        most_draws = 1 if poison.kind in ("given", "class") else None
        for draw in list(draws)[:most_draws]:
            yield (
                Case(
                    data=dataset.provenance["sha256"],
                    seed=config.seed,
                    model=model,
                    poison=poison,
                    training=training,
                    draw=draw,
                    n=n,
                    side_by_side=are_side_by_side(protocol),
                    most_runs=config.block if config.one_program else MOST_RUNS,
                    one_program=config.one_program,
                ),
                protocol.unlearn,
            )


def choice_of(config: Config, case: Case, method: Method, dataset: Dataset) -> Choice:
    """Return the choice among a method's settings.

    Only the first setting is a candidate if too few samples are held out, or if the poison came
    with the data and so has no other draw.
    """
    settings = method.settings()
    n_retain, _ = split_sizes(case.poison, dataset)
    n_held_out = round(n_retain * HELD_OUT / 100)
    can_choose = n_held_out >= LEAST_HELD_OUT and case.poison.kind != "given"
    candidates = settings if can_choose else settings[:1]
    case_of_choice = replace(case, draw=CHOICE_DRAWS[0], n=config.selection_runs)
    return Choice(data=case.data, case=case_of_choice, candidates=candidates)


def choice_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate held-out accuracy and forgetting (…, setting, draw, run), and chosen (…).

    setting_words (…, setting): each setting's description.
    """
    settings = row.job.candidates
    coords = {
        "setting": np.arange(len(settings)),
        "draw": list(CHOICE_DRAWS),
        "run": list(range(row.job.case.n)),
    }
    variables = {name: (list(coords), arrays[name]) for name in ("accuracy", "forgetting")}
    table = xr.Dataset(variables, coords)
    table["diverged"] = table.accuracy.isnull().astype(float)
    table["chosen"] = (), float(arrays["chosen"])
    epochs_differ = len({method.training.epochs for method in settings}) > 1
    descriptions = [setting_words(method, epochs=epochs_differ) for method in settings]
    table["setting_words"] = "setting", np.array(descriptions, object)
    return placed(table, row)


def setting_words(method: Method, *, epochs: bool = False) -> str:
    """Describe a setting, as in "rate 0.004, forget 0.2"; epochs: its epochs stand first."""
    numbers = {"epochs": method.training.epochs} if epochs else {}
    numbers |= {"rate": method.training.learning_rate, **method.hyper()}
    descriptions = [f"{name} {value:g}" for name, value in numbers.items()]
    return ", ".join(descriptions)
