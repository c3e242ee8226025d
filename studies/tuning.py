"""Contenders of the published models, and their tuning without a single clean label.

Every run draws its training set anew. Epochs and hyper-parameters are chosen on runs that are never
judged, by the loss on a held-out fifth of their poisoned training set, with its noisy labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from datar import Dataset
from foundation.base.later import xarray as xr
from foundation.engine.jobs import Arrays, Job, values_of
from foundation.engine.study_files import Row
from models import MLP, QNN, Model, Training
from poison_unlearn import Method, Poison, Retrain
from protocol import SPLITS, Drawn, Fit, Sets
from studies.config import Config
from studies.contenders import (
    BoundedMLP,
    Decayed,
    FrozenQNN,
    FullQuadratic,
    GeneralisedCE,
    LearnedScaleQNN,
    NearestMean,
    Neighbours,
    ProjectedLinear,
    Reflection,
    ScaledQNN,
    Smoothed,
    ThresholdOnZZ,
)
from studies.families import FAMILIES, Protocol, build_mlp, build_qnn, build_quadratic, model_words
from studies.oracles import HELD_OUT, setting_words
from studies.rows import are_side_by_side, place_of, placed, rows_of_blocks

if TYPE_CHECKING:
    from foundation.base.later import pandas as pd
    from foundation.report.claims import Evidence

TUNING = 1000  # the first of the runs on which settings are chosen, and which are never judged
POINTS = 15  # how many epochs of a long training are measured, before rounding
VALIDATION = SPLITS.index("validation")


# ---- jobs ----


def control_fit(
    config: Config, data: Dataset, protocol: Protocol, model: Model, method: Method, poison: Poison
) -> Fit:
    """Return a contender's first block of runs, each with a training set drawn anew."""
    return Fit(
        data=data.provenance["sha256"], model=model, poison=poison, method=method, seed=config.seed,
        size=config.block, side_by_side=are_side_by_side(protocol), redrawn=True, record="curves",
    )  # fmt: skip


def tuning_fits(fit: Fit, runs: int) -> list[Fit]:
    """Return the blocks of tuning runs, with a fifth of the poisoned training set held out."""
    first = TUNING // fit.size
    count = -(-runs // fit.size)
    return [held_out_block(fit, block) for block in range(first, first + count)]


def held_out_block(fit: Fit, block: int) -> Fit:
    """Return a block of runs with a fifth of the poisoned training set held out."""
    return replace(fit, block=block, held_out_percent=HELD_OUT, held_out_of="all")


@dataclass(frozen=True, kw_only=True)
class Tuning(Job):
    """Choose a contender's setting and epoch by the least loss on held-out noisy samples.

    The loss is the mean over tuning runs. A setting is out of the choice from the epoch on at which
    one of its runs diverged.
    """

    # the blocks of runs of each setting; all are measured after equal epochs
    trials: tuple[tuple[Fit, ...], ...]

    @property
    def needs(self) -> tuple[Job, ...]:
        """The blocks of all settings."""
        return tuple(itertools.chain.from_iterable(self.trials))

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return loss (settings, epochs, runs), and the chosen setting () and epoch ()."""
        losses_of_jobs = [arrays["loss"][:, :, VALIDATION].T for arrays in inputs]  # (epochs, runs)
        jobs_of_settings = np.split(np.array(losses_of_jobs), len(self.trials))
        loss = np.stack([np.concatenate(losses, axis=1) for losses in jobs_of_settings])
        are_finite = np.isfinite(loss).all(axis=2)
        means = np.where(are_finite, loss.mean(axis=2), np.inf)
        setting, point = np.unravel_index(np.argmin(means), means.shape)
        first_block, *_ = self.trials[setting]
        epoch = first_block.measured[point]
        return {"loss": loss, "setting": np.array(setting), "epoch": np.array(epoch)}


@dataclass(frozen=True, kw_only=True)
class Tuned(Fit):
    """A block of runs of a contender under the setting and for the epochs that its tuning chose.

    model and method: of the contender's first setting.
    """

    tuning: Tuning

    @property
    def needs(self) -> tuple[Job, ...]:
        """The tuning."""
        return (self.tuning,)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return the arrays of a Fit, and the chosen setting () and epoch ()."""
        (tuning,) = inputs
        setting = tuning["setting"]
        epoch = tuning["epoch"]
        trial, *_ = self.tuning.trials[int(setting)]
        training = replace(trial.method.training, epochs=int(epoch))
        fit = Fit(
            **values_of(self, Drawn),
            model=trial.model,
            method=replace(trial.method, training=training),
            record="end",
            side_by_side=self.side_by_side,
        )
        return fit.perform(dataset) | {"setting": setting, "epoch": epoch}


@dataclass(frozen=True, kw_only=True)
class Estimate(Drawn):
    """A block of runs of an estimator that is not trained by gradients, under its best setting.

    The best of several settings has the largest accuracy on held-out noisy samples, as the mean
    over the tuning runs.
    """

    candidates: tuple[Any, ...]  # settings of an estimator of contenders.py
    tuning_runs: int

    @property
    def title(self) -> str:
        """Estimator and poison."""
        return f"{self.candidates[0].label} {self.poison.name} {self.poison.alpha_percent} %"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """Return accuracy and loss (runs, splits), diverged (runs,), size () and setting ().

        The loss is NaN. setting: the number of the best setting.
        """
        setting = self._chosen(dataset) if len(self.candidates) > 1 else 0
        estimator = self.candidates[setting]
        accuracy = np.array([split_accuracies(estimator, sets) for sets in self.sets(dataset)])
        return {
            "loss": np.full_like(accuracy, np.nan),
            "diverged": np.zeros(self.size, bool),
            "accuracy": accuracy,
            "size": np.array(0),
            "setting": np.array(setting),
        }

    def _chosen(self, dataset: Dataset) -> int:
        """Return the number of the setting with the largest accuracy on held-out samples."""
        tuning = replace(
            self,
            block=TUNING // self.tuning_runs,
            size=self.tuning_runs,
            held_out_percent=HELD_OUT,
            held_out_of="all",
        )
        scores = []  # (settings, tuning runs)
        for estimator in self.candidates:
            accuracies = [split_accuracies(estimator, sets) for sets in tuning.sets(dataset)]
            scores.append([of_run[VALIDATION] for of_run in accuracies])
        return int(np.mean(scores, axis=1).argmax())


def split_accuracies(estimator: Any, sets: Sets) -> list[float]:
    """Fit an estimator and return its accuracy on each of SPLITS, NaN on an empty one."""
    draw = sets.draw
    fitted = estimator.fit(*draw.split)
    splits = {
        "validation": sets.val,
        "train": draw.split,
        "retain": draw.retain,
        "forget_poisoned": draw.forget_poisoned,
        "forget_clean": draw.forget_clean,
    }
    accuracies = []
    for name in SPLITS:
        x, y = splits[name]
        if len(y):
            is_right = fitted.predict(x) == y
            accuracies.append(float(np.mean(is_right)))
        else:
            accuracies.append(np.nan)
    return accuracies


# ---- contenders ----


Build = Callable[[Config, Dataset], Model]
Trial = tuple[Model, Method]  # a setting of a contender
Trials = Callable[[Config, Dataset, Training], list[Trial]]
FACTORS = (0.1, 1 / 3, 1.0, 3.0)  # multiples of the published learning rate that are tried


class Contender(NamedTuple):
    """A model that contends with the published ones, in as many settings as other contenders."""

    group: str
    trials: Trials  # its settings, from its training
    family: str = "mlp"  # the family whose protocol it takes: mlp or qnn
    # builds the model of which it is a variant; None: the model of its first trial
    named: Build | None = None
    label: str = ""  # stands behind the name of that model
    only: tuple[str, ...] = ()  # the --noises under which it contends; (): all
    runs: int = 0  # at most so many; 0: all
    data: str = ""  # the only data set on which it makes sense; "": any

    def contends(self, config: Config, dataset: Dataset) -> list[Poison]:
        """List the poisons under which it contends on a data set."""
        if self.data not in ("", dataset.name):
            return []
        poisons = config.poisons_of("noises")
        noises = self.only or tuple(poisons)
        return [poison for noise, poison in poisons.items() if noise in noises]


def _rates(build: Build, factor: float = 1.0) -> Trials:
    """Try a model at each of FACTORS times `factor` times its family's learning rate."""

    def trials(config: Config, dataset: Dataset, training: Training) -> list[Trial]:
        settings = []
        for multiple in FACTORS:
            rate = training.learning_rate * factor * multiple
            method = Retrain(training=replace(training, learning_rate=rate))
            settings.append((build(config, dataset), method))
        return settings

    return trials


def _losses(build: Build, *methods: Method) -> Trials:
    """Try a model under the loss of each of these methods."""

    def trials(config: Config, dataset: Dataset, training: Training) -> list[Trial]:
        settings = []
        for method in methods:
            trained = replace(method, training=training)
            settings.append((build(config, dataset), trained))
        return settings

    return trials


def _models(*builds: Build) -> Trials:
    """Try each of these models, trained as its family is."""

    def trials(config: Config, dataset: Dataset, training: Training) -> list[Trial]:
        return [(build(config, dataset), Retrain(training=training)) for build in builds]

    return trials


def _largest(config: Config, dataset: Dataset) -> MLP:
    """Build the first MLP of the noise sweep, the published one."""
    return build_mlp(dataset, config.hidden[0])


def _small(config: Config, dataset: Dataset) -> MLP:
    return build_mlp(dataset, config.evaluated_hidden)


def _logistic(config: Config, dataset: Dataset) -> MLP:
    return build_mlp(dataset, "none")


def _bounded(config: Config, dataset: Dataset, bound: float) -> BoundedMLP:
    mlp = _largest(config, dataset)
    return BoundedMLP(mlp.n_features, mlp.hidden, bound=bound)


def _linear(config: Config, dataset: Dataset) -> ProjectedLinear:
    return ProjectedLinear(_logistic(config, dataset).n_features)


def _qnn(config: Config, dataset: Dataset, depth: int = 0) -> QNN:
    return build_qnn(dataset, depth or config.depth, **config.device())


def _variant(config: Config, dataset: Dataset, kind: type[QNN], **options: Any) -> QNN:
    """Build a circuit of another kind, of the published size."""
    published = _qnn(config, dataset)
    return kind(published.n_qubits, published.depth, **options)


def _quadratic(config: Config, dataset: Dataset) -> Model:
    return build_quadratic(dataset)


def _full(config: Config, dataset: Dataset) -> FullQuadratic:
    x = dataset.train.x
    return FullQuadratic(x.shape[1], is_complex=np.iscomplexobj(x))


def _reflection(config: Config, dataset: Dataset) -> Reflection:
    return Reflection(dataset.train.x.shape[1])


# the noises under which contenders that take long are trained
HARD = ("labels=30", "one_class=20")
ONE = ("labels=30",)
CLASSIC, CIRCUIT, WITHOUT, TRIVIAL = "careful classic", "circuit", "no circuit", "trivial"
DECAYED = [Decayed(decay) for decay in (1e-4, 1e-3, 1e-2, 1e-1)]
SMOOTHED = [Smoothed(share) for share in (0.1, 0.3, 0.5, 0.8)]
GENERALISED = [GeneralisedCE(q) for q in (0.3, 0.7, 0.9, 1.0)]  # 1: the mean absolute error
BOUNDED = [partial(_bounded, bound=bound) for bound in (1.0, 2.0, 5.0, 20.0)]
SCALED = [partial(_variant, kind=ScaledQNN, logit_scale=scale) for scale in (1.0, 5.0, 20.0)]
PRODUCT, LAST = (
    partial(_variant, kind=FrozenQNN, trained=trained) for trained in ("rotations", "last layer")
)
DEEP, DEEPER = (partial(_qnn, depth=depth) for depth in (12, 20))

CONTENDERS: dict[str, Contender] = {
    "mlp": Contender("published", _rates(_largest)),
    "mlp_small": Contender("published", _rates(_small)),
    "qnn": Contender("published", _rates(_qnn), "qnn"),
    "logistic": Contender(CLASSIC, _rates(_logistic)),
    "linear": Contender(CLASSIC, _rates(_linear)),
    "logistic_decay": Contender(
        CLASSIC, _losses(_logistic, *DECAYED), named=_logistic, label=", weight decay"
    ),
    "mlp_decay": Contender(
        CLASSIC, _losses(_largest, *DECAYED), named=_largest, label=", weight decay"
    ),
    "mlp_smoothed": Contender(
        CLASSIC, _losses(_largest, *SMOOTHED), named=_largest, label=", smoothed labels"
    ),
    "mlp_gce": Contender(
        CLASSIC, _losses(_largest, *GENERALISED), named=_largest, label=", GCE and MAE"
    ),
    "mlp_bounded": Contender(CLASSIC, _models(*BOUNDED), named=_largest, label=", bounded"),
    "quadratic": Contender(WITHOUT, _rates(_quadratic), "qnn"),
    "quadratic_full": Contender(
        WITHOUT, _rates(_full, 1 / 16), "qnn", only=ONE, runs=5, data="mnist"
    ),
    "reflection": Contender(WITHOUT, _rates(_reflection), "qnn", only=ONE, runs=5, data="mnist"),
    "qnn_scale": Contender(
        CIRCUIT,
        _models(*SCALED, partial(_variant, kind=LearnedScaleQNN)),
        "qnn",
        _qnn,
        ", any scale",
        HARD,
    ),
    "qnn_product": Contender(CIRCUIT, _rates(PRODUCT), "qnn", _qnn, ", no entanglers", HARD),
    "qnn_last": Contender(CIRCUIT, _rates(LAST), "qnn", _qnn, ", last layer alone", HARD),
    # Deeper circuits on the ring are trained in the stage depths.
    "qnn_12": Contender(CIRCUIT, _rates(DEEP), "qnn", only=ONE, runs=5, data="mnist"),
    "qnn_20": Contender(CIRCUIT, _rates(DEEPER), "qnn", only=ONE, runs=5, data="mnist"),
}
# estimators, each with the only data set on which it makes sense; "": any
ESTIMATORS: dict[str, tuple[Any, str]] = {
    "class_mean": (NearestMean(), ""),
    "neighbours": (Neighbours(), ""),
    "threshold": (ThresholdOnZZ(), "xxz"),
}


# ---- rows ----


def epochs_measured(last: int, *others: int, points: int = POINTS) -> tuple[int, ...]:
    """Return the epochs at which a training is measured, ascending.

    They are 0, `points` epochs from 1 to `last`, even in the logarithm and rounded, and the others,
    with `last` in place of any later one.
    """
    even = np.geomspace(1, last, points).round().astype(int)
    bounded = [min(epoch, last) for epoch in others]
    return tuple(sorted({0, *even.tolist(), *bounded}))


def models_of_controls(config: Config, dataset: Dataset) -> Iterator[tuple[Protocol, Model]]:
    """Yield each model of the controls with its protocol.

    Models are the MLPs of the noise sweep, and one model of each other family.
    """
    for family in config.evaluated:
        for model in FAMILIES[family].sweep(config, dataset):
            # An MLP without hidden layers is logistic regression: it counts as that family alone.
            if (model.family == "Logistic") == (family == "logistic"):
                yield config.protocol(family), model


def published_rows(
    config: Config,
    data: Dataset,
    study: str,
    poisons: Iterable[Poison],
    runs: int,
    *,
    redrawn: bool,
    **place: Any,
) -> Iterator[Row]:
    """Yield the rows of every model after the published number of epochs, on a data set."""
    for (protocol, model), poison in _product(models_of_controls(config, data), poisons):
        method = Retrain(training=protocol.sweep)
        fit = control_fit(config, data, protocol, model, method, poison)
        at = place | place_of(model.label, poison)
        job = replace(fit, record="end", redrawn=redrawn)
        yield from rows_of_blocks(config, study, job, at, model_words(model), runs)


def tuned_rows(
    config: Config,
    data: Dataset,
    contender: Contender,
    study: str,
    poisons: Iterable[Poison],
    runs: int,
    **place: Any,
) -> Iterator[Row]:
    """Yield the rows of a contender's tuning on a data set, and of its tuned runs."""
    protocol = getattr(config, contender.family)
    training = replace(protocol.sweep, epochs=config.control_epochs)
    for poison in poisons:
        trials = contender.trials(config, data, training)
        first_model, first_method = trials[0]
        tuning = tuning_of(config, data, protocol, trials, poison)
        named = contender.named(config, data) if contender.named else first_model
        at = place | place_of(named.label + contender.label, poison)
        coords = model_words(first_model) | {"group": ("model", contender.group)}
        yield Row(study, tuning, at, tuning_table, None, coords)
        fit = control_fit(config, data, protocol, first_model, first_method, poison)
        tuned = Tuned(**values_of(fit) | {"record": "end"}, tuning=tuning)
        yield from rows_of_blocks(config, study, tuned, at, coords, runs)


def tuning_of(
    config: Config,
    data: Dataset,
    protocol: Protocol,
    trials: list[Trial],
    poison: Poison,
    block: int | None = None,
) -> Tuning:
    """Return the choice by held-out samples of a block of runs; None: of the tuning runs."""
    measured = epochs_measured(config.control_epochs, protocol.sweep.epochs)
    blocks_of_trials = []
    for model, method in trials:
        fit = control_fit(config, data, protocol, model, method, poison)
        fit = replace(fit, measured=measured)
        if block is None:
            blocks = tuning_fits(fit, config.tuning_runs)
        else:
            blocks = [held_out_block(fit, block)]
        blocks_of_trials.append(tuple(blocks))
    return Tuning(data=data.provenance["sha256"], trials=tuple(blocks_of_trials))


def estimate_rows(
    config: Config, data: Dataset, name: str, study: str, poisons: Iterable[Poison], runs: int, *,
    redrawn: bool = True, **place: Any,
) -> Iterator[Row]:  # fmt: skip
    """Yield the rows of an estimator that is not trained by gradients."""
    estimator, only_data = ESTIMATORS[name]
    if only_data not in ("", data.name):
        return
    coords = {"family": ("model", estimator.family), "group": ("model", TRIVIAL)}
    for poison in poisons:
        at = place | place_of(estimator.label, poison)
        first = Estimate(
            data=data.provenance["sha256"], poison=poison, seed=config.seed, size=config.block,
            redrawn=redrawn, candidates=estimator.settings(), tuning_runs=config.tuning_runs,
        )  # fmt: skip
        yield from rows_of_blocks(config, study, first, at, coords, runs)


def estimate_as_is(config: Config, data: Dataset, estimator: Any, poison: Poison) -> Estimate:
    """Return the first block of runs of an estimator in its one setting, nothing chosen."""
    return Estimate(
        data=data.provenance["sha256"], poison=poison, seed=config.seed, size=config.block,
        redrawn=True, candidates=(estimator,), tuning_runs=1,
    )  # fmt: skip


def main_models(config: Config, data: Dataset) -> Iterator[tuple[Protocol, Model]]:
    """Yield the largest MLP, the QNN and logistic regression for a data set."""
    for build, protocol in ((_largest, config.mlp), (_qnn, config.qnn), (_logistic, config.mlp)):
        yield protocol, build(config, data)


def _product(pairs: Iterable[Any], values: Iterable[Any]) -> Iterator[tuple]:
    values = list(values)
    return ((pair, value) for pair in pairs for value in values)


def tuning_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Tabulate held_out_loss (…, setting, epoch, trial), chosen_setting and chosen_epoch (…).

    setting_words (…, setting): each setting's description.
    """
    trials = row.job.trials
    blocks = trials[0]
    coords = {
        "setting": np.arange(len(trials)),
        "epoch": list(blocks[0].measured),
        "trial": [run for fit in blocks for run in fit.runs],
    }
    loss = arrays["loss"].astype(np.float32)
    table = xr.Dataset({"held_out_loss": (list(coords), loss)}, coords)
    for name in ("setting", "epoch"):
        table[f"chosen_{name}"] = (), float(arrays[name])
    descriptions = []
    for fit, *_ in trials:
        descriptions.append(f"{fit.model.label}: {setting_words(fit.method)}")
    table["setting_words"] = "setting", np.array(descriptions, object)
    return placed(table, row)


# ---- what is claimed of them ----


def circuit_minus_mlps(runs: pd.DataFrame, words: str = "") -> tuple[Evidence, Evidence]:
    """Compare the published QNN with the published MLP, and with that MLP under weight decay.

    words: behind the names of what is compared.
    """
    from foundation.report.claims import first_of, of_family, of_model, paired

    published = runs[runs.group == "published"]
    circuit = of_family(published, "QNN")
    mlp = first_of(published, "MLP")
    plain, decayed = (
        paired(f"QNN − {name}{words}", circuit, of_model(runs, name))
        for name in (mlp, f"{mlp}, weight decay")
    )
    return plain, decayed
