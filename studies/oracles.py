"""The stage evaluation: oracles, the choice of hyper-parameters, the null arm, and how far methods are from oracles.

An oracle is the teacher's own training on the retained samples alone. On each draw of the poison there are N teachers,
N models of each method, a null arm to each (the teachers, trained for as many further steps on the poisoned data) and
3 N oracles: halves A and B, and as many that stand in a method's place.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from datar import Dataset, Split
from foundation.base.checks import require
from foundation.engine.jobs import Arrays, Job, Runs, random_key
from foundation.engine.study_files import Row
from foundation.measures import forgetting as evaluation
from foundation.measures.forgetting import MEASURES, PRIMARY, Measure, Models, Parts
from foundation.measures.metrics import cross_entropy
from models import Model, Params, Training, logits_of
from poison_unlearn import Descent, FineTune, Method, OneShot, Poison, Retrain, Task
from protocol import SPLITS, Block, Fit, block_inputs, narrowed, runs_of
from studies.experiments import FAMILIES, Config, are_side_by_side, model_words, poisons_to_unlearn, scores_table
from studies.methods import METHODS, Newton

MOST_RUNS = 10  # of one job
HELD_OUT = 20  # percent of the retained samples, on the draws on which something is chosen
LEAST_HELD_OUT = 10  # samples: with fewer nothing is chosen, and the first setting of each method is taken
CHOICE_DRAWS = (1000, 1001)  # which are never judged
RELEARN_STEPS = 200  # at most
EXAMPLES = 4  # forget samples whose logits a study's file holds
TRAINER = Retrain()
ORACLES = {"A": 0, "B": 1, "oracle": 2}  # groups of N

# ---- jobs ----


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all models of one draw of the poison share: data, model, poison, the training of teachers and oracles."""

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
                data=self.data, model=self.model, poison=self.poison, method=method, seed=self.seed, draw=self.draw,
                block=group * self.blocks + block, size=math.ceil(self.n / self.blocks),
                side_by_side=self.side_by_side, held_out_percent=held_out, **own,
            )
            for block in range(self.blocks)
        ]  # fmt: skip

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
            Chosen(**_fields(teacher) | {"method": method, "start": teacher, "retains": not null}, choice=choice)
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
    """Which setting of a method is the best where a fifth of the retained samples is held out, on draws of its own.

    The one with the largest smaller of held-out accuracy and forgetting, means over runs and draws. Forgetting is 1 -
    accuracy on the poisoned labels; or, where the poison changes inputs, 1 - AUC of telling held-out samples from the
    forget set by their larger loss. The first of equals; one that diverged in any run is no choice.
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
        return tuple(job for method, draw in pairs for job in replace(self.case, draw=draw).unlearned(method))

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """accuracy, forgetting (settings, draws, runs), chosen ()."""
        if not self.is_asked:
            return {"chosen": np.array(0)}
        shape = (len(self.candidates), len(CHOICE_DRAWS), -1)
        parts = np.array([_utility_and_forgetting(arrays) for arrays in inputs])  # (jobs, 2, runs)
        utility, forgetting = (parts[:, i].reshape(shape)[..., : self.case.n] for i in (0, 1))
        score = np.minimum(utility.mean(axis=(1, 2)), forgetting.mean(axis=(1, 2)))
        return {"accuracy": utility, "forgetting": forgetting, "chosen": np.argmax(np.nan_to_num(score, nan=-1))}


def _utility_and_forgetting(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Held-out accuracy and forgetting of each run of a job, NaN where it diverged: (runs,) each."""
    accuracy, lost = arrays["accuracy"], arrays["diverged"]
    n = arrays["mask"].shape[1]
    forgetting = 1 - accuracy[:, SPLITS.index("forget_poisoned")].astype(float)
    if np.array_equal(arrays["label"][:, :n], arrays["label"][:, n : 2 * n]):  # the poison is in the inputs
        loss = np.logaddexp(0, -evaluation.signs(arrays["label"]) * arrays["logit"].astype(float))
        losses = [(own[2 * n :], own[:n][known]) for own, known in zip(loss, arrays["known"], strict=True)]
        forgetting = np.array([1 - evaluation.attack_auc(*own) if np.isfinite(own[0]).all() else 0 for own in losses])
    utility = accuracy[:, SPLITS.index("validation")].astype(float)
    return tuple(np.where(lost, np.nan, each) for each in (utility, forgetting))


@dataclass(frozen=True, kw_only=True)
class Chosen(Fit):
    """A block of runs of a method under the setting that was chosen; or of its null arm, if it is no such method."""

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
        return Fit(**own | {"method": method}).perform(dataset, *starts) | {"chosen": choice["chosen"]}


def split_sizes(poison: Poison, dataset: Dataset) -> tuple[int, int]:
    """How many samples are retained, and how many are to be forgotten: the same on every draw."""
    known = poison.draw(dataset, key=0).known
    return int((~known).sum()), int(known.sum())


def _null_of(method: Method, n_retain: int, n_forget: int) -> FineTune:
    """Training on all samples for as many steps as the method takes, to the nearest epoch; one for one of one step."""
    null = FineTune(training=method.training)
    steps = method.training.epochs * method.steps(n_retain) if isinstance(method, Descent) else 1
    epochs = max(round(steps / null.steps(n_retain + n_forget)), 1)
    return replace(null, training=replace(method.training, epochs=epochs))


@dataclass(frozen=True, kw_only=True)
class Relearn(Runs):
    """How many steps of training on the poisoned forget set models need until its loss is that of the teachers."""

    start: Fit
    case: Case

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start, *self.case.teachers())

    @property
    def kind(self) -> tuple:
        return (type(self).__name__, self.data, self.case.model.label, self.case.poison.kind)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """steps (runs,): RELEARN_STEPS + 1 where they were not enough, 0 for models that did not unlearn."""
        own, *teachers = inputs
        losses, lost = (np.concatenate([arrays[name] for arrays in teachers]) for name in ("loss", "diverged"))
        target = losses[: self.case.n, SPLITS.index("forget_poisoned")][~lost[: self.case.n].astype(bool)].mean()
        _, block = block_inputs(self.case.oracles()[0], dataset)
        params = narrowed(self.case.model, own, block)
        keys = jnp.stack([random_key(self.seed, "relearn", run) for run in self.runs])
        rate = self.case.training.learning_rate
        steps = _relearn(self.case.model, rate, block.forget, params, keys, target, self.case.side_by_side)
        return {"steps": np.asarray(steps)}


@partial(jax.jit, static_argnames=("model", "side_by_side"))
def _relearn(
    model: Model, rate: float, forget: Split, params: Params, keys: jax.Array, target: float, side_by_side: bool
) -> jax.Array:
    """(runs,), after how many of Adam's steps on the whole forget set (runs, f, ...) its loss is at most the target."""
    optimizer = optax.adam(rate)

    def one_run(arguments):
        own, start, key = arguments
        loss = jax.value_and_grad(lambda params: cross_entropy(logits_of(model, params, own.x, key), own.y))

        def goes_on(carry):
            *_, value, _, count = carry
            return (value > target) & (count <= RELEARN_STEPS)

        def step(carry):
            params, state, _, gradient, count = carry
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, *loss(params), count + 1

        return jax.lax.while_loop(goes_on, step, (start, optimizer.init(start), *loss(start), 0))[-1]

    arguments = (forget, params, keys)
    return jax.vmap(one_run)(arguments) if side_by_side else jax.lax.map(one_run, arguments)


@dataclass(frozen=True, kw_only=True)
class Score(Job):
    """All measures of one arm against half B of the oracles: of a method and its null, of teachers, of more oracles."""

    case: Case
    choice: Choice | None = None  # the method's; None: no method is judged
    arm: str = ""  # then what: teacher or oracle
    measures: tuple[tuple[str, Measure], ...] = tuple(MEASURES.items())

    def groups(self) -> dict[str, list[Fit]]:
        """The jobs of the arms that are compared."""
        case, choice = self.case, self.choice
        own = case.chosen(choice) if choice else case.teachers() if self.arm == "teacher" else case.oracles(self.arm)
        null = {"null": case.chosen(choice, null=True)} if choice else {}
        return {"models": own, "floor": case.oracles("A"), "oracles": case.oracles("B")} | null

    @property
    def needs(self) -> tuple[Job, ...]:
        jobs = [job for group in self.groups().values() for job in group]
        return (*jobs, *(Relearn(start=job, case=self.case, **runs_of(job)) for job in jobs))

    @property
    def title(self) -> str:
        return f"score {self.case.model.label} {self.case.poison.kind}"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """What `evaluation.scores` gives of each measure, (measures,) each; p (), of the primary one.

        true_positive (101,): of U-LiRA's attack at RATES. lost (): runs of the arms that diverged, which are left out.
        angles (): those that move the logits, of a circuit.
        """
        half = len(inputs) // 2
        arrays = list(zip(inputs[:half], inputs[half:], strict=True))
        sizes = [len(group) for group in self.groups().values()]
        ends = np.cumsum(sizes)
        arms = {
            name: _models(self.case, arrays[end - size : end])
            for name, size, end in zip(self.groups(), sizes, ends, strict=True)
        }
        lost = sum(self.case.n - arm.count for arm in arms.values())
        found = {"lost": np.array(lost), "angles": np.array(_acting_angles(self.case.model))}
        parts = _parts(inputs[0])
        if "null" in arms and arms["null"].count < 4:  # which says nothing of the method
            del arms["null"]
        if min(arm.count for arm in arms.values()) < 4:  # nothing can be said of them
            return found | {name: np.full(len(self.measures), np.nan) for name in evaluation.SCORES} | {
                "p": np.array(np.nan), "true_positive": np.full(len(RATES), np.nan)}  # fmt: skip
        nothing = dict.fromkeys(evaluation.SCORES, np.nan)
        can = [_truth_is_known(dataset) or not measure.needs_truth for _, measure in self.measures]
        rows = [
            evaluation.scores(measure, parts=parts, **arms) if own else nothing
            for (_, measure), own in zip(self.measures, can, strict=True)
        ]
        found |= {name: np.array([row[name] for row in rows]) for name in evaluation.SCORES}
        own = [arms[name] for name in ("models", "floor", "oracles")]
        found["p"] = np.array(evaluation.permutation_p(dict(self.measures)[PRIMARY], *own, parts))
        attack = (arms[name].z[:, parts.forget] for name in ("models", "oracles"))
        found["true_positive"] = np.interp(RATES, *evaluation.roc(*evaluation.likelihood_ratios(*attack)))
        return found


def _truth_is_known(dataset: Dataset) -> bool:
    """Whether it is known what the samples were before the poison: data that came with it may not say."""
    train, given = dataset.train, dataset.given
    return given is None or not all(map(np.array_equal, train, given.clean))


RATES = np.linspace(0, 1, 101)  # false positive ones, of the ROC curves that are kept


def _models(case: Case, blocks: list[tuple[Arrays, Arrays]]) -> Models:
    """What the n models of an arm say, from their jobs and those of Relearn; without those that diverged."""
    kept = [~np.asarray(arrays["diverged"], bool) for arrays, _ in blocks]
    z, clean = (np.concatenate([_signed_logits(arrays, clean=before) for arrays, _ in blocks]) for before in (0, 1))
    steps = np.concatenate([again["steps"] for _, again in blocks]).astype(float)
    models = Models(z, clean, steps, np.arange(len(z)))
    return models.take(np.flatnonzero(np.concatenate(kept)[: case.n]))


def _signed_logits(arrays: Arrays, *, clean: bool = False) -> np.ndarray:
    """z of the training set as poisoned, or as it was before, and of the validation set, by their true labels.

    (runs, n + v).
    """
    return evaluation.signed(
        arrays["logit"][:, _seen(arrays, clean=clean)], arrays["label"][0, _seen(arrays, clean=True)]
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


def _acting_angles(model: Model) -> int:
    """How many angles of a circuit move its logits; 0 for other models."""
    if getattr(model, "family", "") != "QNN":
        return 0
    model, key = replace(model, shots=0), jax.random.key(0)
    params = jax.random.normal(key, jnp.shape(model.init(key)))
    state = jax.random.normal(key, (1, 2**model.n_qubits))
    state = state / jnp.linalg.norm(state)
    gradient = jax.jit(jax.grad(lambda params: model.logits(params, model.prepare(state))[0]))(params)
    return int(np.sum(np.abs(np.asarray(gradient)) > 1e-6))


@dataclass(frozen=True, kw_only=True)
class LinearResponse(Runs):
    """What teachers' logits would do if the forget set were taken out, by linear response: influence functions.

    A Newton step towards the minimum of CE(D_r), damped as in the method newton, and the change of each logit to first
    order in it. At a minimum of the loss over all samples it is that of Koh and Liang (arXiv:1703.04730) for a group;
    elsewhere what is left of that loss's gradient is in it as well.
    """

    start: Fit

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.start,)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """predicted, stepped (runs, n + v): the change of z to first order, and what the whole step does."""
        fit = replace(self.start, start=self.start, method=Newton())  # the retained samples, and the same draw
        _, block = block_inputs(fit, dataset)
        params = narrowed(fit.model, inputs[0], block)
        keys = jnp.stack([random_key(self.seed, "linear response", run) for run in self.runs])
        changes = _linear_response(fit.model, block, params, keys, _seen(inputs[0]))
        true = inputs[0]["label"][0, _seen(inputs[0], clean=True)]
        return {name: np.asarray(each) * evaluation.signs(true) for name, each in changes.items()}


@partial(jax.jit, static_argnames="model")
def _linear_response(
    model: Model, block: Block, params: Params, keys: jax.Array, seen: np.ndarray
) -> dict[str, jax.Array]:
    def one_run(arguments):
        own, start, key = arguments
        x = jnp.concatenate([own.inputs, block.validation])[block.measured[seen]]
        task = Task(model, start, own.retain, own.forget, own.forget_clean, start)
        after, _ = Newton()(task, key)
        step = jax.tree.map(jnp.subtract, after, start)
        before, predicted = jax.jvp(lambda params: logits_of(model, params, x, key), (start,), (step,))
        return {"predicted": predicted, "stepped": logits_of(model, after, x, key) - before}

    return jax.lax.map(one_run, (block._replace(validation=None, measured=None, columns=None), params, keys))


@dataclass(frozen=True, kw_only=True)
class Response(Job):
    """The change of each logit by linear response beside the true one: that of oracles against teachers."""

    case: Case

    @property
    def needs(self) -> tuple[Job, ...]:
        teachers = self.case.teachers()
        linear = [LinearResponse(start=job, **runs_of(job)) for job in teachers]
        return (*teachers, *self.case.oracles("A"), *linear)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """predicted, stepped, true (n + v,): mean changes of z over models; forget, retain, validation (n + v,) masks.

        correlation, agreement (3, 3): Pearson's of predicted with true, and with stepped, on each of those parts, and
        its 95 % bounds by halves of the models. share (3, 3): the mean predicted change over the mean true one.
        """
        blocks = self.case.blocks
        teachers, oracles, linear = inputs[:blocks], inputs[blocks : 2 * blocks], inputs[2 * blocks :]
        arms = {"teachers": teachers, "oracles": oracles}
        z = {name: np.concatenate([_signed_logits(each) for each in own])[: self.case.n] for name, own in arms.items()}
        z |= {name: np.concatenate([each[name] for each in linear])[: self.case.n] for name in ("predicted", "stepped")}
        lost = {name: np.concatenate([each["diverged"] for each in own])[: self.case.n] for name, own in arms.items()}
        lost |= dict.fromkeys(("predicted", "stepped"), lost["teachers"])
        arms = {name: _bare(own[~lost[name]]) for name, own in z.items()}
        parts = _parts(inputs[0])
        chosen = (parts.forget, parts.retain, parts.validation)

        def changes(own: dict[str, Models]) -> dict[str, np.ndarray]:
            mean = {name: models.z.mean(axis=0) for name, models in own.items()}
            return {
                "true": mean["oracles"] - mean["teachers"],
                "predicted": mean["predicted"],
                "stepped": mean["stepped"],
            }

        def numbers(own: dict[str, Models]) -> np.ndarray:
            true, predicted, stepped = changes(own).values()
            alike = [[np.corrcoef(predicted[part], other[part])[0, 1] for part in chosen] for other in (true, stepped)]
            return np.array([*alike, [predicted[part].mean() / true[part].mean() for part in chosen]])

        found = numbers(arms)
        pairs = dict.fromkeys(("predicted", "stepped"), "teachers")
        low, high = evaluation.half_sample_interval(numbers, arms, found, pairs=pairs)
        low[:2], high[:2] = np.maximum(low[:2], -1), np.minimum(high[:2], 1)
        bounded = np.stack([found, low, high], axis=-1)  # (numbers, parts, 3)
        masks = dict(zip(PARTS, chosen, strict=True))
        named = dict(zip(("correlation", "agreement", "share"), bounded, strict=True))
        return changes(arms) | masks | named | {"size": inputs[0]["size"]}


PARTS = ("forget", "retain", "validation")


def _bare(z: np.ndarray) -> Models:
    """Models of which only the logits matter."""
    return Models(z, z, np.zeros(len(z)), np.arange(len(z)))


# ---- studies ----


def cases(config: Config, dataset: Dataset, draws: Iterable[int], n: int) -> Iterator[tuple[Case, Training]]:
    """Each model and poison on each draw, and how that model's methods are trained."""
    own, epochs = replace(config, unlearn_hidden=config.evaluated_hidden), config.epochs_of_families("oracle_epochs")
    for name, (kind, alpha) in itertools.product(config.evaluated, poisons_to_unlearn(config, dataset).items()):
        protocol, model = getattr(config, FAMILIES[name].trained_as), FAMILIES[name].unlearning(own, dataset)
        training = replace(protocol.teacher, epochs=epochs.get(name, protocol.teacher.epochs))
        for draw in list(draws)[: 1 if kind == "given" else None]:  # what the data came with is one draw
            yield Case(
                data=dataset.provenance["sha256"], seed=config.seed, model=model, poison=Poison(kind, alpha),
                training=training, draw=draw, n=n, side_by_side=are_side_by_side(protocol),
            ), protocol.unlearn  # fmt: skip


def epochs(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Accuracies of oracles trained longer and longer, with a fifth of the retained samples held out."""
    runs = min(config.runs, 5)
    for (case, _), count in itertools.product(cases(config, dataset, CHOICE_DRAWS, runs), config.epoch_grid):
        own = replace(case, training=replace(case.training, epochs=count))
        for job in own.oracles():
            place = {"model": case.model.label, "poison": case.poison.kind, "epochs": count, "draw": case.draw}
            yield Row("epochs", job, place, scores_table, own.shown(job), model_words(case.model))


def evaluation_study(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Choices of hyper-parameters into selection; teachers, oracles, methods and their scores into evaluation."""
    for case, unlearn in cases(config, dataset, range(config.draws), config.teachers):
        methods = {name: config.method(name, training=unlearn) for name in config.methods}
        yield from judged_rows(config, case, methods, dataset, "evaluation", "selection")


def benchmark(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The same of all methods, in files of its own, on an equal budget of gradients and with further MLPs.

    All take the teacher's batches: a whole batch at every step, as published, leaves ten or twenty steps of the budget.
    """
    yield from _on_a_budget(config, dataset, config.benchmarked or tuple(METHODS), [0], "benchmark")


def finalists(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The same of the best of them on more draws of the poison."""
    require(config.finalists, "--finalists", "nothing", f"methods that it is to compare, out of {', '.join(METHODS)}")
    yield from _on_a_budget(config, dataset, config.finalists, range(config.draws), "finalists")


def _on_a_budget(
    config: Config, dataset: Dataset, names: Iterable[str], draws: Iterable[int], study: str
) -> Iterator[Row]:
    for case, unlearn in _benchmarked(config, dataset, draws):
        sizes, training = split_sizes(case.poison, dataset), replace(unlearn, batch_size=case.training.batch_size)
        methods = {name: config.method(name, training=training) for name in names}
        methods = {name: _within(config.budget, method, case, *sizes) for name, method in methods.items()}
        yield from judged_rows(config, case, methods, dataset, study, "benchmark_selection")


def _benchmarked(config: Config, dataset: Dataset, draws: Iterable[int]) -> Iterator[tuple[Case, Training]]:
    """The cases of the benchmark: each of its MLPs, other models once; its poisons, or the one the data came with."""
    configs = [replace(config, evaluated_hidden=widths) for widths in config.benchmarked_hidden]
    every = dict(pair for own in configs for pair in cases(own, dataset, draws, config.teachers))
    yield from (pair for pair in every.items() if pair[0].poison.kind in (*config.benchmarked_poisons, "given"))


def _within(budget: float, method: Method, case: Case, n_retain: int, n_forget: int) -> Method:
    """The method with as many epochs as an oracle's gradients times the budget allow, at least one.

    A method of one step has one, for its null arm; one that does not say what it takes keeps its own.
    """

    def trained(epochs: int) -> Method:
        return replace(method, training=replace(method.training, epochs=epochs))

    if isinstance(method, OneShot):
        return trained(1)
    if math.isnan(method.gradients(n_retain, n_forget)):
        return method
    most = budget * Retrain(training=case.training).gradients(n_retain, 0)
    count = bisect_right(range(1, 10**5), most, key=lambda epochs: trained(epochs).gradients(n_retain, n_forget))
    return trained(max(count, 1))


def judged_rows(
    config: Config, case: Case, methods: dict[str, Method], dataset: Dataset, study: str, selection: str
) -> Iterator[Row]:
    """Rows of one case: of teachers and oracles, and of these methods where they can run on its model."""
    place, able = {"model": case.model.label, "poison": case.poison.kind}, {"": []}  # by why they cannot
    for name, method in methods.items():
        able.setdefault(method.why_not(case.model), []).append(name)
    left_out = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in able.items() if reason)
    model = model_words(case.model) | {"left_out": ("model", left_out)}
    choices = {name: choice_of(config, case, methods[name], dataset) for name in able[""]}
    for name, choice in choices.items():
        if case.draw == 0 and choice.is_asked:
            yield Row(selection, choice, place | {"unlearner": name}, choice_table, None, model)
    for name in ("teacher", "oracle", *choices):
        score = Score(
            data=case.data, case=case, choice=choices.get(name), arm="" if name in choices else name,
            measures=tuple(MEASURES.items()),
        )  # fmt: skip
        at, method = place | {"unlearner": name, "draw": case.draw}, methods.get(name)
        words = model | {
            "title": ("unlearner", (method.title or name) if method else name),
            "reads_truth": ("unlearner", float(method.reads_truth if method else False)),
        }
        for job in score.groups()["models"]:
            yield Row(study, job, at, arm_table, case.shown(job), words)
        yield Row(study, score, at, score_table, None, words)


def influence(config: Config, dataset: Dataset) -> Iterator[Row]:
    """The change of each logit by linear response beside the true one, on the first draw of the poison."""
    for case, _ in _benchmarked(config, dataset, [0]):
        if getattr(case.model, "is_random", False):
            continue  # what is drawn has no derivative to go by
        place = {"model": case.model.label, "poison": case.poison.kind}
        job = Response(data=case.data, case=case)
        yield Row("influence", job, place, response_table, None, model_words(case.model))


def choice_of(config: Config, case: Case, method: Method, dataset: Dataset) -> Choice:
    """The choice among a method's settings; of one where too few samples are held out, or there is no other draw."""
    settings, held_out = method.settings(), round(split_sizes(case.poison, dataset)[0] * HELD_OUT / 100)
    can = held_out >= LEAST_HELD_OUT and case.poison.kind != "given"
    choosing = replace(case, draw=CHOICE_DRAWS[0], n=config.selection_runs)
    return Choice(data=case.data, case=choosing, candidates=settings if can else settings[:1])


# ---- their tables ----


def response_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """predicted, stepped, true (…, sample), member (poison, of, sample); three numbers (…, of, bound): see Response."""
    coords = {axis: [label] for axis, label in row.place.items()}
    table = xr.Dataset(coords=coords | {"of": list(PARTS), "bound": ["value", "low", "high"]})
    for name in ("predicted", "stepped", "true"):
        table[name] = (*row.place, "sample"), arrays[name][None, None].astype(np.float32)
    for name in ("correlation", "agreement", "share"):
        table[name] = (*row.place, "of", "bound"), arrays[name][None, None]
    table["member"] = ("poison", "of", "sample"), np.stack([arrays[name] for name in PARTS])[None].astype(np.int8)
    table = table.assign_coords(sample=np.arange(table.sizes["sample"]))
    return table.assign_coords(size=("model", [int(arrays["size"])]))


def choice_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (held out), forgetting (…, setting, draw, run), chosen (…); setting_words: what each setting is."""
    settings, dims = row.job.candidates, (*row.place, "setting", "draw", "run")
    runs = range(row.job.case.n)
    coords = {axis: [label] for axis, label in row.place.items()}
    coords |= {"setting": np.arange(len(settings)), "draw": list(CHOICE_DRAWS), "run": list(runs)}
    table = xr.Dataset({name: (dims, arrays[name][None, None, None]) for name in ("accuracy", "forgetting")}, coords)
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


def arm_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy, loss, diverged as of other studies; gradients (…): of single samples, of one run; z of some samples."""
    job, known = row.job, arrays["known"][0].astype(bool)
    table = scores_table(row, arrays).drop_vars("loss")
    method = job.choice.candidates[int(arrays["chosen"])] if isinstance(job, Chosen) else job.method
    n_forget = int(known.sum()) if job.forgets else 0
    gradients = float(method.cost(job.model, len(known) - n_forget, n_forget))
    table["gradients"] = tuple(row.place), np.full((1,) * len(row.place), gradients)
    z = _signed_logits(arrays)[:, np.flatnonzero(known)[:EXAMPLES]]
    dims = (*row.place, "run", "example")
    table["z"] = dims, z[(None,) * len(row.place)].astype(np.float32)
    return table.assign_coords(example=np.arange(z.shape[1]))


def score_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """What `evaluation.scores` gives (…, measure); p, lost, angles (…); true_positive (…, false_positive)."""
    coords = {axis: [label] for axis, label in row.place.items()}
    names = [name for name, _ in row.job.measures]
    expand = (None,) * len(row.place)
    table = xr.Dataset(coords=coords | {"measure": names, "false_positive": RATES})
    for name, array in arrays.items():
        dims = {0: (), 1: ("false_positive",) if name == "true_positive" else ("measure",)}[array.ndim]
        table[name] = (*row.place, *dims), np.asarray(array, float)[expand]
    return table.assign_coords(measure_title=("measure", [measure.title for _, measure in row.job.measures]))
