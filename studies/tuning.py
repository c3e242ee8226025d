"""Models that contend with the published ones, and how they are tuned without a single clean label.

Every run draws its training set anew. Epochs and hyper-parameters are chosen on runs that are never
judged, by the loss on a fifth of their poisoned training set, with its noisy labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from datar import Dataset
from foundation.engine.jobs import Arrays, Job
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
from studies.rows import are_side_by_side, place_of, scores_table

TUNING = 1000  # the first of the runs on which something is chosen, which are never judged
POINTS = 15  # of a long training, at which it is measured
VALIDATION = SPLITS.index("validation")


# ---- jobs ----


def control_fit(
    config: Config, data: Dataset, protocol: Protocol, model: Model, method: Method, poison: Poison
) -> Fit:
    """The first block of a contender: models trained on all samples of training sets drawn anew."""
    return Fit(
        data=data.provenance["sha256"], model=model, poison=poison, method=method, seed=config.seed,
        size=config.block, side_by_side=are_side_by_side(protocol), redrawn=True, record="curves",
    )  # fmt: skip


def tuning_fits(fit: Fit, runs: int) -> list[Fit]:
    """The runs on which is chosen: further ones, with a fifth of the poisoned samples held out, as
    they stand."""
    blocks = range(TUNING // fit.size, TUNING // fit.size + -(-runs // fit.size))
    return [
        replace(fit, block=block, held_out_percent=HELD_OUT, held_out_of="all") for block in blocks
    ]


@dataclass(frozen=True, kw_only=True)
class Tuning(Job):
    """Which setting of a contender, and which epoch of its training, has the least loss on held-out
    noisy samples.

    The mean over runs that are never judged; a setting of which a run diverged by then is no
    choice.
    """

    # the runs of each setting; all measured after the same epochs
    trials: tuple[tuple[Fit, ...], ...]

    @property
    def needs(self) -> tuple[Job, ...]:
        return tuple(fit for trial in self.trials for fit in trial)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """loss (settings, epochs, runs), setting, epoch ()."""
        loss = [each["loss"][:, :, VALIDATION].T for each in inputs]  # (epochs, runs)
        loss = np.stack(
            [np.concatenate(own, axis=1) for own in np.split(np.array(loss), len(self.trials))]
        )
        means = np.where(np.isfinite(loss).all(axis=2), loss.mean(axis=2), np.inf)
        setting, point = np.unravel_index(np.argmin(means), means.shape)
        epoch = self.trials[setting][0].measured[point]
        return {"loss": loss, "setting": np.array(setting), "epoch": np.array(epoch)}


@dataclass(frozen=True, kw_only=True)
class Tuned(Fit):
    """A block of runs of a contender under the setting, and for as many epochs, as its tuning
    chose.

    model and method are those of its first setting.
    """

    tuning: Tuning

    @property
    def needs(self) -> tuple[Job, ...]:
        return (self.tuning,)

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """As a Fit does; and setting, epoch (), what was chosen."""
        chosen = {name: inputs[0][name] for name in ("setting", "epoch")}
        trial = self.tuning.trials[int(chosen["setting"])][0]
        training = replace(trial.method.training, epochs=int(chosen["epoch"]))
        own = {each.name: getattr(self, each.name) for each in fields(Drawn)}
        method = replace(trial.method, training=training)
        fit = Fit(
            **own, model=trial.model, method=method, record="end", side_by_side=self.side_by_side
        )
        return fit.perform(dataset) | chosen


@dataclass(frozen=True, kw_only=True)
class Estimate(Drawn):
    """A block of runs of an estimator that is not trained by gradients, under the setting with the
    best held-out score.

    Of several settings that with the most held-out noisy samples right, over as many runs as others
    are tuned on.
    """

    candidates: tuple[Any, ...]  # of contenders.py
    tuning_runs: int

    @property
    def title(self) -> str:
        return f"{self.candidates[0].label} {self.poison.kind} {self.poison.alpha_percent} %"

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """accuracy, loss (runs, splits) as of a Fit, the latter NaN; diverged (runs,), size (),
        setting ()."""
        setting = self._chosen(dataset) if len(self.candidates) > 1 else 0
        accuracy = np.array([_right(self.candidates[setting], sets) for sets in self.sets(dataset)])
        nothing = {"loss": np.full_like(accuracy, np.nan), "diverged": np.zeros(self.size, bool)}
        return nothing | {"accuracy": accuracy, "size": np.array(0), "setting": np.array(setting)}

    def _chosen(self, dataset: Dataset) -> int:
        tuning = replace(
            self,
            block=TUNING // self.tuning_runs,
            size=self.tuning_runs,
            held_out_percent=HELD_OUT,
            held_out_of="all",
        )
        scores = [
            [_right(each, sets)[VALIDATION] for sets in tuning.sets(dataset)]
            for each in self.candidates
        ]
        return int(np.mean(scores, axis=1).argmax())


def _right(estimator: Any, sets: Sets) -> list[float]:
    """The accuracy of an estimator on each of SPLITS."""
    draw, val = sets.draw, sets.val
    fitted = estimator.fit(*draw.split)
    splits = {
        "validation": val,
        "train": draw.split,
        "retain": draw.retain,
        "forget_poisoned": draw.forget_poisoned,
        "forget_clean": draw.forget_clean,
    }
    return [
        float(np.mean(fitted.predict(x) == y)) if len(y) else np.nan
        for x, y in map(splits.get, SPLITS)
    ]


# ---- contenders ----


Trial = tuple[Model, Method]
FACTORS = (0.1, 1 / 3, 1.0, 3.0)  # of the published learning rate


class Contender(NamedTuple):
    """What contends with the published models, in as many settings as every other."""

    group: str
    trials: Callable[[Config, Dataset, Training], list[Trial]]  # given how its family is trained
    family: str = "mlp"  # whose protocol it takes: mlp or qnn
    named: Callable[[Config, Dataset], Model] | None = (
        None  # the model that it is a variant of; None: its first one
    )
    label: str = ""  # behind the name of that model
    only: tuple[str, ...] = ()  # on which of --noises; (): all
    runs: int = 0  # at most so many; 0: all
    data: str = ""  # the only data set on which it makes sense

    def contends(self, config: Config, dataset: Dataset) -> list[Poison]:
        """The poisons on which it does."""
        if self.data not in ("", dataset.name):
            return []
        return [
            poison
            for word, poison in config.poisons_of("noises").items()
            if not self.only or word in self.only
        ]


def _rates(
    build: Callable[[Config, Dataset], Model], factor: float = 1.0
) -> Callable[..., list[Trial]]:
    """The model at each of FACTORS times its family's learning rate, and times another factor."""

    def trials(config: Config, dataset: Dataset, training: Training) -> list[Trial]:
        rates = [training.learning_rate * factor * each for each in FACTORS]
        return [
            (build(config, dataset), Retrain(training=replace(training, learning_rate=rate)))
            for rate in rates
        ]

    return trials


def _losses(
    build: Callable[[Config, Dataset], Model], *methods: Method
) -> Callable[..., list[Trial]]:
    """The model under each of these losses."""

    def trials(config: Config, dataset: Dataset, training: Training) -> list[Trial]:
        return [(build(config, dataset), replace(method, training=training)) for method in methods]

    return trials


def _models(*builds: Callable[[Config, Dataset], Model]) -> Callable[..., list[Trial]]:
    """Each of these models, as its family is trained."""
    return lambda config, dataset, training: [
        (build(config, dataset), Retrain(training=training)) for build in builds
    ]


def _largest(config: Config, dataset: Dataset) -> MLP:
    """The first MLP of the noise sweep: the published one."""
    return build_mlp(dataset, config.hidden[0])


def _small(config: Config, dataset: Dataset) -> MLP:
    return build_mlp(dataset, config.evaluated_hidden)


def _logistic(config: Config, dataset: Dataset) -> MLP:
    return build_mlp(dataset, "none")


def _bounded(config: Config, dataset: Dataset, bound: float) -> BoundedMLP:
    own = _largest(config, dataset)
    return BoundedMLP(own.n_features, own.hidden, bound=bound)


def _linear(config: Config, dataset: Dataset) -> ProjectedLinear:
    return ProjectedLinear(_logistic(config, dataset).n_features)


def _qnn(config: Config, dataset: Dataset, depth: int = 0) -> QNN:
    return build_qnn(dataset, depth or config.depth, **config.device())


def _variant(config: Config, dataset: Dataset, kind: type[QNN], **own: Any) -> QNN:
    """A circuit of another kind, of the published size."""
    usual = _qnn(config, dataset)
    return kind(usual.n_qubits, usual.depth, **own)


def _quadratic(config: Config, dataset: Dataset) -> Model:
    return build_quadratic(dataset)


def _full(config: Config, dataset: Dataset) -> FullQuadratic:
    return FullQuadratic(dataset.train.x.shape[1], is_complex=np.iscomplexobj(dataset.train.x))


def _reflection(config: Config, dataset: Dataset) -> Reflection:
    return Reflection(dataset.train.x.shape[1])


HARD = ("labels=30", "one_class=20")  # where what takes long contends
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
    # on the ring: the stage depths
    "qnn_12": Contender(CIRCUIT, _rates(DEEP), "qnn", only=ONE, runs=5, data="mnist"),
    "qnn_20": Contender(CIRCUIT, _rates(DEEPER), "qnn", only=ONE, runs=5, data="mnist"),
}
ESTIMATORS: dict[str, tuple[Any, str]] = {  # and the only data set on which it makes sense
    "class_mean": (NearestMean(), ""),
    "neighbours": (Neighbours(), ""),
    "threshold": (ThresholdOnZZ(), "xxz"),
}


# ---- rows ----


def epochs_measured(last: int, *others: int, points: int = POINTS) -> tuple[int, ...]:
    """Epochs at which a training is measured: 0, about evenly in the logarithm, and these others
    before its end."""
    even = np.geomspace(1, last, points).round().astype(int)
    return tuple(sorted({0, *even.tolist(), *(min(each, last) for each in others)}))


def models_of_controls(config: Config, dataset: Dataset) -> Iterator[tuple[Protocol, Model]]:
    """Each model of the controls, the MLPs of the noise sweep and of all other families one, with
    its protocol."""
    for name in config.evaluated:
        for model in FAMILIES[name].sweep(config, dataset):
            # which an MLP of no hidden layers is
            if (model.family == "Logistic") == (name == "logistic"):
                yield config.protocol(name), model


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
    """Every model after the published number of epochs, on a data set."""
    for (protocol, model), poison in _product(models_of_controls(config, data), poisons):
        fit = control_fit(config, data, protocol, model, Retrain(training=protocol.sweep), poison)
        for block in config.blocks(runs):
            job = replace(fit, record="end", redrawn=redrawn, block=block)
            at = place | place_of(model.label, poison)
            yield Row(
                study, job, at, scores_table, config.shown(job.runs, runs), model_words(model)
            )


def tuned_rows(
    config: Config,
    data: Dataset,
    contender: Contender,
    study: str,
    poisons: Iterable[Poison],
    runs: int,
    **place: Any,
) -> Iterator[Row]:
    """The tuning of a contender on a data set, and its runs as they were tuned."""
    for poison in poisons:
        protocol = getattr(config, contender.family)
        training = replace(protocol.sweep, epochs=config.control_epochs)
        trials = contender.trials(config, data, training)
        fits = [
            control_fit(config, data, protocol, model, method, poison) for model, method in trials
        ]
        measured = epochs_measured(config.control_epochs, protocol.sweep.epochs)
        fits = [tuning_fits(replace(fit, measured=measured), config.tuning_runs) for fit in fits]
        tuning = Tuning(data=data.provenance["sha256"], trials=tuple(map(tuple, fits)))
        named = contender.named(config, data) if contender.named else trials[0][0]
        at = place | place_of(named.label + contender.label, poison)
        words = model_words(trials[0][0]) | {"group": ("model", contender.group)}
        yield Row(study, tuning, at, tuning_table, None, words)
        first = replace(control_fit(config, data, protocol, *trials[0], poison), record="end")
        first = Tuned(
            **{each.name: getattr(first, each.name) for each in fields(Fit)}, tuning=tuning
        )
        for block in config.blocks(runs):
            job = replace(first, block=block)
            yield Row(study, job, at, scores_table, config.shown(job.runs, runs), words)


def estimate_rows(
    config: Config, data: Dataset, name: str, study: str, poisons: Iterable[Poison], runs: int, *,
    redrawn: bool = True, **place: Any,
) -> Iterator[Row]:  # fmt: skip
    """The runs of an estimator that is not trained by gradients."""
    estimator, only = ESTIMATORS[name]
    for poison in poisons if only in ("", data.name) else ():
        words = {"family": ("model", estimator.family), "group": ("model", TRIVIAL)}
        job = Estimate(
            data=data.provenance["sha256"], poison=poison, seed=config.seed, size=config.block,
            redrawn=redrawn, candidates=estimator.settings(), tuning_runs=config.tuning_runs,
        )  # fmt: skip
        for block in config.blocks(runs):
            own = replace(job, block=block)
            at = place | place_of(estimator.label, poison)
            yield Row(study, own, at, scores_table, config.shown(own.runs, runs), words)


def _product(pairs: Iterable[Any], values: Iterable[Any]) -> Iterator[tuple]:
    values = list(values)
    return ((pair, value) for pair in pairs for value in values)


def tuning_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """held_out_loss (…, setting, epoch, trial), chosen_epoch, chosen_setting (…), setting_words (…,
    setting)."""
    trials, expand = row.job.trials, (None,) * len(row.place)
    dims = (*row.place, "setting", "epoch", "trial")
    runs = [run for fit in trials[0] for run in fit.runs]
    coords = {axis: [label] for axis, label in row.place.items()}
    coords |= {
        "setting": np.arange(len(trials)),
        "epoch": list(trials[0][0].measured),
        "trial": runs,
    }
    table = xr.Dataset({"held_out_loss": (dims, arrays["loss"].astype(np.float32)[expand])}, coords)
    for name in ("setting", "epoch"):
        table[f"chosen_{name}"] = tuple(row.place), arrays[name].astype(float)[expand]
    words = np.array(
        [f"{fit.model.label}: {setting_words(fit.method)}" for fit, *_ in trials], object
    )
    return table.assign(setting_words=((*row.place, "setting"), words[expand]))
