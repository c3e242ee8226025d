"""Oracles, the choice of hyper-parameters, and the null arm: what unlearned models are compared
with.

An oracle is the teacher's own training on the retained samples alone. On each draw of the poison
there are N teachers, N models of each method, a null arm to each (the teachers, trained for as many
further steps on the poisoned data) and 3 N oracles: halves A and B, and as many that stand in a
method's place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from datar import Dataset, Split
from foundation.engine.jobs import Arrays, Job, Runs, random_key
from foundation.engine.study_files import Row
from foundation.measures import forgetting as evaluation
from foundation.measures.forgetting import Parts
from foundation.measures.metrics import cross_entropy
from models import Model, Params, Training, logits_of
from poison_unlearn import Descent, FineTune, Method, Poison, Retrain
from protocol import SPLITS, Fit, block_inputs, narrowed
from studies.config import Config
from studies.families import FAMILIES
from studies.rows import are_side_by_side, poisons_to_unlearn

MOST_RUNS = 10  # of one job
HELD_OUT = 20  # percent of the retained samples, on the draws on which something is chosen
LEAST_HELD_OUT = (
    10  # samples: with fewer nothing is chosen, and the first setting of each method is taken
)
CHOICE_DRAWS = (1000, 1001)  # which are never judged
RELEARN_STEPS = 200  # at most
TRAINER = Retrain()
ORACLES = {"A": 0, "B": 1, "oracle": 2}  # groups of N


# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all models of one draw of the poison share: data, model, poison, the training of
    teachers and oracles."""

    data: str
    seed: int
    model: Model
    poison: Poison
    training: Training
    draw: int
    n: int  # models of each kind
    side_by_side: bool = True
    trainer: Method = TRAINER  # how teachers and oracles are trained, but for `training`

    @property
    def blocks(self) -> int:
        """How many jobs compute the models of a kind."""
        return math.ceil(self.n / MOST_RUNS)

    def fits(self, method: Method, *, group: int = 0, **own) -> list[Fit]:
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
                held_out_percent=held_out,
                **own,
            )
            for block in range(self.blocks)
        ]

    @property
    def training_method(self) -> Method:
        """What trains teachers and oracles."""
        return replace(self.trainer, training=self.training)

    def teachers(self) -> list[Fit]:
        return self.fits(self.training_method)

    def oracles(self, group: str = "A") -> list[Fit]:
        return self.fits(self.training_method, group=ORACLES[group], retains=True)

    def unlearned(self, method: Method) -> list[Fit]:
        return [replace(teacher, method=method, start=teacher) for teacher in self.teachers()]

    def chosen(self, choice: Choice, *, null: bool = False) -> list[Fit]:
        """Models of a method under its best setting; null: their null arm."""
        method = FineTune(training=choice.candidates[0].training) if null else choice.candidates[0]
        return [
            Chosen(
                **_fields(teacher) | {"method": method, "start": teacher, "retains": not null},
                choice=choice,
            )
            for teacher in self.teachers()
        ]

    def shown(self, job: Runs) -> range:
        """Those of a job's runs that count: n of each group."""
        first = job.block // self.blocks * self.blocks * job.size
        return range(job.runs.start, min(job.runs.stop, first + self.n))


def _fields(job: Job) -> dict:
    return {each.name: getattr(job, each.name) for each in fields(job)}


@dataclass(frozen=True, kw_only=True)
class Choice(Job):
    """Which setting of a method is the best where a fifth of the retained samples is held out, on
    draws of its own.

    The one with the largest smaller of held-out accuracy and forgetting, means over runs and draws.
    Forgetting is 1 - accuracy on the poisoned labels; or, where the poison changes inputs, 1 - AUC
    of telling held-out samples from the forget set by their larger loss. The first of equals; one
    that diverged in any run is no choice.
    """

    case: Case  # of which n runs on each draw are asked
    candidates: tuple[Method, ...]

    @property
    def is_asked(self) -> bool:
        """Whether there is anything to choose."""
        return len(self.candidates) > 1 and self.case.n > 0

    @property
    def needs(self) -> tuple[Job, ...]:
        pairs = itertools.product(self.candidates, CHOICE_DRAWS) if self.is_asked else ()
        return tuple(
            job for method, draw in pairs for job in replace(self.case, draw=draw).unlearned(method)
        )

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """accuracy, forgetting (settings, draws, runs), chosen ()."""
        if not self.is_asked:
            return {"chosen": np.array(0)}
        shape = (len(self.candidates), len(CHOICE_DRAWS), -1)
        parts = np.array([_utility_and_forgetting(arrays) for arrays in inputs])  # (jobs, 2, runs)
        utility, forgetting = (parts[:, i].reshape(shape)[..., : self.case.n] for i in (0, 1))
        score = np.minimum(utility.mean(axis=(1, 2)), forgetting.mean(axis=(1, 2)))
        return {
            "accuracy": utility,
            "forgetting": forgetting,
            "chosen": np.argmax(np.nan_to_num(score, nan=-1)),
        }


def _utility_and_forgetting(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Held-out accuracy and forgetting of each run of a job, NaN where it diverged: (runs,)
    each."""
    accuracy, lost = arrays["accuracy"], arrays["diverged"]
    n = arrays["mask"].shape[1]
    forgetting = 1 - accuracy[:, SPLITS.index("forget_poisoned")].astype(float)
    # the poison is in the inputs
    if np.array_equal(arrays["label"][:, :n], arrays["label"][:, n : 2 * n]):
        loss = np.logaddexp(0, -evaluation.signs(arrays["label"]) * arrays["logit"].astype(float))
        losses = [
            (own[2 * n :], own[:n][known]) for own, known in zip(loss, arrays["known"], strict=True)
        ]
        forgetting = np.array(
            [1 - evaluation.attack_auc(*own) if np.isfinite(own[0]).all() else 0 for own in losses]
        )
    utility = accuracy[:, SPLITS.index("validation")].astype(float)
    return tuple(np.where(lost, np.nan, each) for each in (utility, forgetting))


@dataclass(frozen=True, kw_only=True)
class Chosen(Fit):
    """A block of runs of a method under the setting that was chosen; or of its null arm, if it is
    no such method."""

    choice: Choice

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start, self.choice)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """As a Fit does; and chosen (), which setting."""
        *starts, choice = inputs
        method = self.choice.candidates[int(choice["chosen"])]
        method = method if self.retains else _null_of(method, *split_sizes(self.poison, dataset))
        own = {name: value for name, value in _fields(self).items() if name != "choice"}
        return Fit(**own | {"method": method}).perform(dataset, *starts) | {
            "chosen": choice["chosen"]
        }


def split_sizes(poison: Poison, dataset: Dataset) -> tuple[int, int]:
    """How many samples are retained, and how many are to be forgotten: the same on every draw."""
    known = poison.draw(dataset, key=0).known
    return int((~known).sum()), int(known.sum())


def _null_of(method: Method, n_retain: int, n_forget: int) -> FineTune:
    """Training on all samples for as many steps as the method takes, to the nearest epoch; one for
    one of one step."""
    null = FineTune(training=method.training)
    steps = method.training.epochs * method.steps(n_retain) if isinstance(method, Descent) else 1
    epochs = max(round(steps / null.steps(n_retain + n_forget)), 1)
    return replace(null, training=replace(method.training, epochs=epochs))


@dataclass(frozen=True, kw_only=True)
class Relearn(Runs):
    """How many steps of training on the poisoned forget set models need until its loss is that of
    the teachers."""

    start: Fit
    case: Case

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start, *self.case.teachers())

    @property
    def kind(self) -> tuple:
        return (type(self).__name__, self.data, self.case.model.label, self.case.poison.kind)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """steps (runs,): RELEARN_STEPS + 1 where they were not enough, 0 for models that did not
        unlearn."""
        own, *teachers = inputs
        losses, lost = (
            np.concatenate([arrays[name] for arrays in teachers]) for name in ("loss", "diverged")
        )
        target = losses[: self.case.n, SPLITS.index("forget_poisoned")][
            ~lost[: self.case.n].astype(bool)
        ].mean()
        _, block = block_inputs(self.case.oracles()[0], dataset)
        params = narrowed(self.case.model, own, block)
        keys = jnp.stack([random_key(self.seed, "relearn", run) for run in self.runs])
        rate = self.case.training.learning_rate
        steps = _relearn(
            self.case.model, rate, block.forget, params, keys, target, self.case.side_by_side
        )
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
    """(runs,), after how many of Adam's steps on the whole forget set (runs, f, ...) its loss is at
    most the target."""
    optimizer = optax.adam(rate)

    def one_run(arguments):
        own, start, key = arguments
        loss = jax.value_and_grad(
            lambda params: cross_entropy(logits_of(model, params, own.x, key), own.y)
        )

        def goes_on(carry):
            *_, value, _, count = carry
            return (value > target) & (count <= RELEARN_STEPS)

        def step(carry):
            params, state, _, gradient, count = carry
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, *loss(params), count + 1

        return jax.lax.while_loop(goes_on, step, (start, optimizer.init(start), *loss(start), 0))[
            -1
        ]

    arguments = (forget, params, keys)
    return jax.vmap(one_run)(arguments) if side_by_side else jax.lax.map(one_run, arguments)


# ---- what jobs say of the samples ----


def _signed_logits(arrays: Arrays, *, clean: bool = False) -> np.ndarray:
    """z of the training set as poisoned, or as it was before, and of the validation set, by their
    true labels.

    (runs, n + v).
    """
    return evaluation.signed(
        arrays["logit"][:, _seen(arrays, clean=clean)],
        arrays["label"][0, _seen(arrays, clean=True)],
    )


def _seen(arrays: Arrays, *, clean: bool = False) -> np.ndarray:
    """Which of the measured samples those are: (n + v,)."""
    n, first = arrays["mask"].shape[1], arrays["mask"].shape[1] * clean
    return np.r_[first : first + n, 2 * n : arrays["logit"].shape[1]]


def _parts(arrays: Arrays) -> Parts:
    """Which of those samples are what."""
    mask, known = (arrays[name][0].astype(bool) for name in ("mask", "known"))
    n_val = arrays["logit"].shape[1] - 2 * len(mask)
    train, val = np.zeros(len(mask), bool), np.ones(n_val, bool)
    padded = [np.concatenate([own, ~val]) for own in (known, mask, ~known)]
    return Parts(*padded, np.concatenate([train, val]))


# ---- cases and choices ----


def cases(
    config: Config, dataset: Dataset, draws: Iterable[int], n: int
) -> Iterator[tuple[Case, Training]]:
    """Each model and poison on each draw, and how that model's methods are trained."""
    own, epochs = (
        replace(config, unlearn_hidden=config.evaluated_hidden),
        config.epochs_of_families("oracle_epochs"),
    )
    for name, (kind, alpha) in itertools.product(
        config.evaluated, poisons_to_unlearn(config, dataset).items()
    ):
        protocol, model = config.protocol(name), FAMILIES[name].unlearning(own, dataset)
        training = replace(protocol.teacher, epochs=epochs.get(name, protocol.teacher.epochs))
        # what the data came with is one draw
        for draw in list(draws)[: 1 if kind == "given" else None]:
            yield (
                Case(
                    data=dataset.provenance["sha256"],
                    seed=config.seed,
                    model=model,
                    poison=Poison(kind, alpha),
                    training=training,
                    draw=draw,
                    n=n,
                    side_by_side=are_side_by_side(protocol),
                ),
                protocol.unlearn,
            )


def choice_of(config: Config, case: Case, method: Method, dataset: Dataset) -> Choice:
    """The choice among a method's settings; of one where too few samples are held out, or there is
    no other draw."""
    settings, held_out = (
        method.settings(),
        round(split_sizes(case.poison, dataset)[0] * HELD_OUT / 100),
    )
    can = held_out >= LEAST_HELD_OUT and case.poison.kind != "given"
    choosing = replace(case, draw=CHOICE_DRAWS[0], n=config.selection_runs)
    return Choice(data=case.data, case=choosing, candidates=settings if can else settings[:1])


def choice_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (held out), forgetting (…, setting, draw, run), chosen (…); setting_words: what each
    setting is."""
    settings, dims = row.job.candidates, (*row.place, "setting", "draw", "run")
    runs = range(row.job.case.n)
    coords = {axis: [label] for axis, label in row.place.items()}
    coords |= {"setting": np.arange(len(settings)), "draw": list(CHOICE_DRAWS), "run": list(runs)}
    table = xr.Dataset(
        {name: (dims, arrays[name][None, None, None]) for name in ("accuracy", "forgetting")},
        coords,
    )
    table["diverged"] = table.accuracy.isnull().astype(float)
    table["chosen"] = tuple(row.place), np.full((1, 1, 1), float(arrays["chosen"]))
    differ = len({method.training.epochs for method in settings}) > 1
    words = [[[[setting_words(method, epochs=differ) for method in settings]]]]
    return table.assign(setting_words=((*row.place, "setting"), np.array(words, object)))


def setting_words(method: Method, *, epochs: bool = False) -> str:
    """rate 0.004, forget 0.2; with its epochs before."""
    numbers = {"epochs": method.training.epochs} if epochs else {}
    numbers |= {"rate": method.training.learning_rate, **method.hyper()}
    return ", ".join(f"{name} {value:g}" for name, value in numbers.items())
