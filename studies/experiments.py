"""The studies: noise sweep, unlearning curves, weight maps, and what the poison looks like.

A study is a function from a configuration and data to rows: jobs, and where their numbers stand in the study's file.
All trainings are one kind of job, `Fit`, and differ in model, poison, method and the job they start from.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
import xarray as xr

from datar import Dataset
from foundation.base.checks import BadInput, require
from foundation.engine.jobs import Arrays, Job, random_key
from foundation.engine.keys import backend
from foundation.engine.runner import Percent, Settings, flag_name
from foundation.engine.study_files import Row
from foundation.quantum import device as hardware
from foundation.quantum.device import Noise
from models import MLP, QNN, Model, QuadraticForm, Training
from poison_unlearn import POISONS, Method, Poison, Poisoned, Retrain
from protocol import SPLITS, Fit
from studies.methods import METHODS

KEPT_VALIDATION = 500  # validation samples whose logits a study's file holds


# ---- configuration, and the models it names ----


@dataclass(frozen=True)
class Protocol:
    """How a family of models is trained in each study."""

    sweep: Training
    teacher: Training
    unlearn: Training
    side_by_side: bool
    """Whether the runs of a block are one batch; a matter of speed and memory (results agree to rounding)."""


def method_lines() -> str:
    """What each method does, in a line: the first sentence of its docstring."""
    first = {name: (type(method).__doc__ or "").split("\n\n")[0] for name, method in METHODS.items()}
    return "Unlearning methods:\n" + "\n".join(f"{name}: {' '.join(line.split())}" for name, line in first.items())


MethodNames = Annotated[tuple[str, ...], tyro.conf.arg(help=method_lines())]
QUICK_STAGES = {  # of the presets quick
    "stages": ("data", "noise_sweep", "unlearning", "weight_map", "evaluation"),
    "evaluated": ("mlp", "qnn"),
    "oracle_epochs": (),  # trained as the other teachers there
    "teachers": 4,
    "draws": 1,
    "selection_runs": 0,  # the hyper-parameters of the other stages
    "noises": ("labels=30",),
    "long_epochs": 40,
    "contenders": ("mlp", "qnn", "logistic_decay", "qnn_product", "class_mean", "neighbours", "threshold"),
    "control_epochs": 20,
    "tuning_runs": 2,
    "matched_samples": 60,
    "discovered": ("labels=30",),
    "known": (0, 50, 100),
    "discovery_methods": ("retrain", "cf", "scrub", "ga"),
    "discovery_runs": 2,
    "device_noise": ("none", "p1=1e-4,p2=1e-2,readout=0.03"),
    "device_shots": (128,),
    "device_trained_shots": 0,
    "device_alphas": (0, 30),
    "device_runs": 2,
}
Widths = Annotated[str, tyro.conf.arg(metavar="WIDTHS")]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """What to poison, train and unlearn. The flags of both unlearning scripts; their presets are its instances."""

    stages: tuple[str, ...] = ("data", "noise_sweep", "unlearning", "weight_map")
    """Studies to run."""
    models: tuple[str, ...] = ("mlp", "qnn")
    """Families of models: mlp, qnn, logistic (regression), or quadratic (a bounded quadratic form of low rank)."""
    poisons: tuple[str, ...] = ("labels", "features")
    """Poisons of the noise sweep: names in poison_unlearn.POISONS."""
    alphas: tuple[Percent, ...] = tuple(range(0, 100, 10))
    """Poisoned shares of the noise sweep, in percent."""
    hidden: tuple[Widths, ...] = ("64,16",)
    """Hidden widths of each MLP of the noise sweep: 64,16 is one network of two layers, 64 16 are two networks of one
    layer each, and "none" is logistic regression."""
    label_hidden: tuple[Widths, ...] = ()
    """Hidden widths of further MLPs, of which the noise sweep flips labels only."""
    unlearn_hidden: Widths = "64,16"
    """Hidden widths of the MLP that unlearns."""
    depth: int = 6
    """Layers of the QNN."""
    shots: int = 0
    """Shots from which the QNN's expectations are drawn, and their gradients; 0: exact. With shots or noise the states
    must have norm 1."""
    gradient: hardware.Gradient = "parameter_shift"
    """How gradients are taken from shots: parameter_shift runs two circuits for each angle, spsa two in all."""
    p1: float = 0.0
    """Depolarising noise of the QNN: the probability that a Pauli acts after a rotation, exactly computed."""
    p2: float = 0.0
    """The same after an entangling gate, on its two qubits."""
    readout: float = 0.0
    """The probability that the measured bit is read as the other one."""
    unlearn_labels: Percent = 30
    """Share of flipped labels to unlearn, in percent; 0 skips it."""
    unlearn_features: Percent = 0
    """Share of randomised samples to unlearn, in percent; 0 skips it."""
    unlearn_others: tuple[str, ...] = ()
    """Further poisons to unlearn, each with its share in percent, such as backdoor=10."""
    methods: MethodNames = ("retrain", "cf", "scrub", "ga")
    hyper: tuple[str, ...] = ()
    """Hyper-parameters of methods, such as scrub.forget=0.4 or scrub.divergence=full."""
    map_weights: tuple[float, ...] = tuple(i / 10 for i in range(10))
    """Grid of the hyper-parameters in the weight maps."""
    weight_map_runs: int = 0
    """Repetitions of each cell of the weight maps where --runs is larger; 0: as many as --runs."""
    evaluated: tuple[str, ...] = ("mlp", "qnn", "logistic", "quadratic")
    """Families of models of the stages evaluation, epochs, benchmark, finalists and influence."""
    evaluated_hidden: Widths = "16,4"
    """Hidden widths of the MLP of the stages evaluation and epochs."""
    teachers: int = 20
    """N of the stage evaluation: teachers, and models of each method, on one draw of the poison; of oracles there are
    three times as many."""
    draws: int = 3
    """Draws of the poison on which evaluation and finalists judge; hyper-parameters are chosen on two others."""
    oracle_epochs: tuple[str, ...] = ()
    """Epochs of teachers and oracles of that stage, by family, such as mlp=200; others: those of teachers elsewhere."""
    epoch_grid: tuple[int, ...] = (50, 100, 200, 400, 800, 1600)
    """Epochs that the stage epochs tries, each twice the one before."""
    benchmarked: tuple[str, ...] = ()
    """Methods of the stage benchmark, names in METHODS; none: all."""
    benchmarked_hidden: tuple[Widths, ...] = ("16,4", "64,16")
    """Hidden widths of each MLP of the stages benchmark, finalists and influence."""
    benchmarked_poisons: tuple[str, ...] = ("labels",)
    """Poisons of those stages, out of those that are unlearned."""
    finalists: tuple[str, ...] = ()
    """Methods of the stage finalists: the best of the benchmark, on --draws draws of the poison."""
    budget: float = 0.25
    """How many gradients of single samples a method of the stages benchmark and finalists may take, over those of an
    oracle. It sets the epochs, at least one; methods of one step take what they take."""
    selection_runs: int = 5
    """Runs of each setting of a method on each draw on which hyper-parameters are chosen; 0: the first is taken."""
    noises: tuple[str, ...] = ("labels=0", "labels=20", "labels=30", "labels=40", "one_class=20")
    """Poisons of the controls, each with its share in percent."""
    long_epochs: int = 1000
    """Epochs of the stage dynamics."""
    contenders: tuple[str, ...] = ()
    """What contends in the stage controls, names in controls.CONTENDERS and ESTIMATORS; none: all."""
    control_epochs: int = 200
    """Most epochs of a contender; how many it gets is chosen."""
    matched_samples: int = 24
    """Training samples of the stages memorising and matched_fit: so few that every model fits noisy labels of them."""
    matched_epochs: tuple[str, ...] = ()
    """Epochs of teachers and oracles of the stage matched_fit, by family, as tables.matched_epochs finds them from the
    stage memorising; others: --oracle-epochs."""
    tuning_runs: int = 5
    """Runs of each setting of which a fifth of the poisoned training set is held out, with its noisy labels, to choose
    epochs and hyper-parameters of the controls."""
    discovered: tuple[str, ...] = ("labels=10", "labels=30")
    """Poisons of the stage discovery, each with its share in percent."""
    known: tuple[int, ...] = (0, 25, 50, 75, 100)
    """Shares of the poison that are known there, in percent; what is not known stays among the retained samples."""
    discovery_methods: tuple[str, ...] = ()
    """Methods of that stage; none: --methods."""
    discovery_decay: float = 0.01
    """Weight decay of its regularised MLP."""
    discovery_runs: int = 10
    """Repetitions of that stage."""
    device_noise: tuple[str, ...] = ("none", "p1=1e-4,p2=1e-3", "p1=1e-4,p2=1e-2", "p1=1e-4,p2=1e-3,readout=0.01",
                                     "p1=1e-4,p2=1e-2,readout=0.03")  # fmt: skip
    """Noise of the stage hardware: none, or p1=…,p2=…,readout=…, each word a circuit of its own."""
    device_shots: tuple[int, ...] = (128, 1024, 8192)
    """Shots with which its circuits are read."""
    device_trained_shots: int = 1024
    """Shots from which one of its circuits is trained, at --unlearn-labels; 0: none."""
    device_alphas: tuple[Percent, ...] = (0, 30, 40)
    """Its shares of flipped labels, in percent."""
    device_runs: int = 5
    """Repetitions of that stage."""
    independent_teachers: bool = False
    """Draw poison and train a teacher anew for each unlearning run (published: one for all of them)."""
    mlp: Protocol
    qnn: Protocol
    choices: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The preset's own hyper-parameters, before those of --hyper."""

    AXES = (
        *Settings.AXES,
        "poisons",
        "hidden",
        "label_hidden",
        "unlearn_hidden",
        "depth",
        "methods",
        "map_weights",
        "weight_map_runs",
        "evaluated",
        "evaluated_hidden",
        "draws",
        "epoch_grid",
        "benchmarked",
        "benchmarked_hidden",
        "benchmarked_poisons",
        "finalists",
        "noises",
        "contenders",
        "discovered",
        "known",
        "discovery_methods",
        "discovery_runs",
        "device_noise",
        "device_shots",
        "device_trained_shots",
        "device_alphas",
        "device_runs",
    )

    def check(self):
        super().check()
        require(self.depth >= 1, "--depth", self.depth, "1 or more")
        require(self.shots >= 0, "--shots", self.shots, "a number of shots, or 0 for exact expectations")
        for name in ("p1", "p2", "readout"):
            value = getattr(self, name)
            require(0 <= value <= 1, flag_name(name), value, "a probability, 0 to 1")
        require(self.weight_map_runs >= 0, "--weight-map-runs", self.weight_map_runs, "1 or more, or 0 for --runs")
        self.check_lists("methods", "poisons", "hidden", "map_weights")
        self.check_percents("unlearn_labels", "unlearn_features")
        require(0 < self.budget < np.inf, "--budget", self.budget, "a positive number, such as 0.25")
        counts = {"teachers": 4, "draws": 1, "selection_runs": 0, "long_epochs": 1, "tuning_runs": 1,
                  "control_epochs": 1, "discovery_runs": 1, "device_runs": 1,
                  "device_trained_shots": 0,
                  "matched_samples": 10}  # fmt: skip
        for name, least in counts.items():
            value = getattr(self, name)
            require(value >= least, flag_name(name), value, f"{least} or more")
        self.check_lists("evaluated", "epoch_grid", "benchmarked_hidden", "noises", "known",
                         "discovered", "device_noise", "device_shots", "device_alphas")  # fmt: skip
        require(min(self.device_shots) > 0, "--device-shots", " ".join(map(str, self.device_shots)),
                "numbers of shots, 1 or more")  # fmt: skip
        require(0 <= self.discovery_decay < np.inf, "--discovery-decay", self.discovery_decay, "0 or more")
        for flag in ("noises", "unlearn_others", "discovered"):
            self.poisons_of(flag)
        kinds = [word.partition("=")[0] for word in self.unlearn_others]
        own = {"labels": self.unlearn_labels, "features": self.unlearn_features}
        once = len(set(kinds)) == len(kinds) and not any(own.get(kind) for kind in kinds)
        require(once, "--unlearn-others", " ".join(self.unlearn_others), "every kind of poison in one share alone")
        for percent in self.known:
            require(0 <= percent <= 100, "--known", percent, "whole percents of the poison, 0 to 100")
        doubled = all(after == 2 * before for before, after in itertools.pairwise(self.epoch_grid))
        require(min(self.epoch_grid) > 0 and doubled, "--epoch-grid", " ".join(map(str, self.epoch_grid)),
                "numbers of epochs, each twice the one before, such as 50 100 200")  # fmt: skip
        for flag in ("oracle_epochs", "matched_epochs"):
            self.epochs_of_families(flag)
        tables = dict.fromkeys(("methods", "benchmarked", "finalists", "discovery_methods"), METHODS)
        tables |= dict.fromkeys(("models", "evaluated"), FAMILIES)
        tables |= dict.fromkeys(("poisons", "benchmarked_poisons"), POISONS)
        for flag, known in tables.items():
            for name in getattr(self, flag):
                require(name in known, flag_name(flag), name, ", ".join(known))
        for weight in self.map_weights:
            require(0 <= weight < np.inf, "--map-weights", weight, "finite numbers, 0 or more")
        widths = (*self.hidden, *self.label_hidden, self.unlearn_hidden, self.evaluated_hidden)
        for text in (*widths, *self.benchmarked_hidden):
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
        return replace(method, **changes)

    def device(self) -> dict[str, Any]:
        """What the QNN has of a device, for `build_qnn`; nothing where it is exact."""
        found = {"shots": self.shots, "gradient": self.gradient} if self.shots else {}
        noise = Noise(self.p1, self.p2, self.readout)
        return found | ({"noise": noise} if noise.words else {})

    def epochs_of_families(self, flag: str) -> dict[str, int]:
        """{family: epochs} of a flag: of teachers and oracles of a stage."""
        found = {}
        for word in getattr(self, flag):
            name, _, epochs = word.partition("=")
            whole = name in FAMILIES and re.fullmatch(r"[1-9]\d{0,5}", epochs)
            require(bool(whole), flag_name(flag), word, f"FAMILY=EPOCHS with a family of {', '.join(FAMILIES)}")
            found[name] = int(epochs)
        return found

    def poisons_of(self, flag: str) -> dict[str, Poison]:
        """The poisons that a flag names, such as labels=30, by its words."""
        found, allowed = {}, ", ".join(kind for kind in POISONS if kind != "given")
        for word in getattr(self, flag):
            kind, _, percent = word.partition("=")
            good = kind in POISONS and kind != "given" and re.fullmatch(r"\d{1,2}", percent)
            require(bool(good), flag_name(flag), word, f"POISON=PERCENT with a poison of {allowed}, 0 to 99")
            found[word] = Poison(kind, int(percent))
        return found

    def unlearn_alphas(self) -> dict[str, int]:
        """{poison: percent} of what the unlearning studies unlearn."""
        alphas = {"labels": self.unlearn_labels, "features": self.unlearn_features}
        alphas |= {poison.kind: poison.alpha_percent for poison in self.poisons_of("unlearn_others").values()}
        return {poison: alpha for poison, alpha in alphas.items() if alpha}


def _assign(method: Method, word: str, name: str, text: str) -> Method:
    """The method with a hyper-parameter of which the value is given as text."""
    types = {each.name: each.type for each in fields(method) if each.name != "training"}
    require(name in types, "--hyper", word, f"the fields {', '.join(types) or 'of another method: it has none'}")
    kind = types[name] if isinstance(types[name], str) else types[name].__name__
    kinds = {"float": float, "int": int, "bool": lambda text: {"true": True, "false": False}[text.lower()]}
    try:
        return replace(method, **{name: kinds.get(kind, str)(text)})
    except (ValueError, KeyError) as error:
        reason = str(error) if ", allowed:" in str(error) else f"{name}: got {text or 'nothing'}, allowed: a {kind}"
        raise BadInput(f"--hyper {word}: {reason}") from None


def parse_widths(text: str) -> tuple[int, ...]:
    """ "64,16" -> (64, 16); "none" -> ()."""
    if text == "none":
        return ()
    good = isinstance(text, str) and bool(re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text))
    require(good, "--hidden", repr(text), 'a string for each network: its widths, such as "64,16", or "none"')
    return tuple(int(width) for width in text.split(","))


def build_mlp(dataset: Dataset, widths: str) -> MLP:
    x = dataset.train.x
    return MLP(x.shape[1] * (2 if np.iscomplexobj(x) else 1), parse_widths(widths))


def build_qnn(dataset: Dataset, depth: int, **device: Any) -> QNN:
    """The QNN for these samples; device: its shots, noise and kind of gradient."""
    width = dataset.train.x.shape[1]
    if device:
        hardware.require_normalised(dataset.train.x)
    require(width & (width - 1) == 0 and width > 1, "train.x", f"{width} features",
            "a power of two, the amplitudes of qubits (datar.pad fills up with zeros)")  # fmt: skip
    return QNN(int(np.log2(width)), depth, **device)


def build_quadratic(dataset: Dataset) -> QuadraticForm:
    width = dataset.train.x.shape[1]
    return QuadraticForm(width, min(QuadraticForm.rank, width), is_complex=np.iscomplexobj(dataset.train.x))


class Family(NamedTuple):
    """Models of one kind, by the name that --models knows."""

    sweep: Callable[[Config, Dataset], list[Model]]  # of the noise sweep
    unlearning: Callable[[Config, Dataset], Model]  # the one that unlearns
    trained_as: str = "qnn"  # the flag of the configuration that says how they are trained, mlp or qnn
    labels_only: Callable[[Config, Dataset], list[Model]] = lambda *_: []  # of the sweep, where labels are flipped


FAMILIES: dict[str, Family] = {
    "mlp": Family(
        lambda config, dataset: [build_mlp(dataset, widths) for widths in config.hidden],
        lambda config, dataset: build_mlp(dataset, config.unlearn_hidden),
        "mlp",
        lambda config, dataset: [build_mlp(dataset, widths) for widths in config.label_hidden],
    ),
    "qnn": Family(
        lambda config, dataset: [build_qnn(dataset, config.depth, **config.device())],
        lambda config, dataset: build_qnn(dataset, config.depth, **config.device()),
    ),
    "logistic": Family(
        lambda _, dataset: [build_mlp(dataset, "none")], lambda _, dataset: build_mlp(dataset, "none"), "mlp"
    ),
    "quadratic": Family(lambda _, dataset: [build_quadratic(dataset)], lambda _, dataset: build_quadratic(dataset)),
}


def model_words(model: Model) -> dict[str, tuple[str, Any]]:
    """What figures and tables have to know of a model: a coordinate along the model axis."""
    return {"family": ("model", getattr(model, "family", type(model).__name__))}


# ---- noise sweep ----


def swept_poisons(config: Config, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """{poison: percents} of the noise sweep: the configuration's, or the poison that the data came with.

    Refuses shares of which no sample is poisoned, or that one of the classes is too small for.
    """
    if dataset.given is not None:
        return {"given": (given_percent(dataset),)}
    for kind, alpha in itertools.product(config.poisons, config.alphas):
        try:
            count = Poison(kind, alpha).draw(dataset, key=0).mask.sum()
        except BadInput as error:
            raise BadInput(f"--alphas: got {alpha} ({kind}: {error})") from None
        n = len(dataset.train.y)
        require(count > 0 or alpha == 0, "--alphas", alpha, f"0, or shares that poison some of {n} samples")
    return dict.fromkeys(config.poisons, config.alphas)


def given_percent(dataset: Dataset) -> int:
    """The share of the poison that the data came with, in whole percents of 1 to 99."""
    return int(np.clip(round(100 * dataset.given.mask.mean()), 1, 99))


def poisons_to_unlearn(config: Config, dataset: Dataset) -> dict[str, int]:
    """{poison: percent} of what the unlearning studies unlearn: the configuration's, or what the data came with."""
    return config.unlearn_alphas() if dataset.given is None else {"given": given_percent(dataset)}


def noise_sweep(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Train on data of which a share alpha is poisoned."""
    poisons = swept_poisons(config, dataset)
    for name in config.models:
        family = FAMILIES[name]
        swept = [(model, poison) for model in family.sweep(config, dataset) for poison in poisons]
        if "labels" in poisons:
            swept += [(model, "labels") for model in family.labels_only(config, dataset)]
        for model, poison in swept:
            own = replace(config, alphas=poisons[poison])
            yield from sweep_rows(own, dataset, getattr(config, family.trained_as), model, poison)


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
        seed=config.seed, block=block, size=config.block,
        side_by_side=are_side_by_side(protocol),
    )  # fmt: skip


def are_side_by_side(protocol: Protocol) -> bool:
    """Whether runs are one batch: as the protocol says, and on an accelerator."""
    return protocol.side_by_side or backend() != "cpu"


def sweep_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy, loss (…, run, split), diverged (…, run), and how many samples are poisoned."""
    count = (("poison", "alpha_percent"), [[float(arrays["mask"][0].sum())]])
    return scores_table(row, arrays).assign(poisoned_count=count)


def scores_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """Accuracy and loss over the row's place, run, epoch where there are curves, and split; which runs diverged.

    Accuracies of runs that diverged are NaN; their losses are kept: they show when it happened.
    """
    _, *epochs, _ = arrays["accuracy"].shape
    at = {"epoch": getattr(row.job, "measured", ()) or np.arange(*epochs)} if epochs else {}
    coords = {"run": list(row.job.runs)} | {axis: list(each) for axis, each in at.items()} | {"split": list(SPLITS)}
    scores = {"accuracy": np.round(arrays["accuracy"].astype(float), 6), "loss": arrays["loss"].astype(float)}
    table = xr.Dataset({name: (list(coords), values) for name, values in scores.items()}, coords)
    table["diverged"] = "run", arrays["diverged"].astype(float)
    table["accuracy"] = table.accuracy.where(table.diverged == 0)
    return placed(table, row).assign_coords(size=("model", [int(arrays["size"])]))


def placed(table: xr.Dataset, row: Row) -> xr.Dataset:
    """The table with an axis of one label for each of the row's place."""
    return table.expand_dims([*row.place]).assign_coords({axis: [label] for axis, label in row.place.items()})


# ---- unlearning ----


def unlearning(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Unlearning curves of each model, poison and method, behind the teachers they share."""
    for teacher, method, place, words in unlearning_cases(config, dataset):
        words["alpha_percent"] = ("poison", teacher.poison.alpha_percent)
        for block in config.blocks():
            job = unlearning_job(config, teacher, method, block, record="curves")
            yield Row("unlearning", job, place, curves_table, config.shown(job.runs), words)


def weight_map(config: Config, dataset: Dataset) -> Iterator[Row]:
    """Final validation accuracy over the one or two hyper-parameters that a method maps: a job for each cell."""
    runs = min(config.weight_map_runs or config.runs, config.runs)
    for teacher, method, place, words in unlearning_cases(config, dataset):
        names = method.mapped()
        for axis, name in itertools.zip_longest(("first", "second"), names, fillvalue=""):
            words[f"{axis}_name"] = ("unlearner", name)
            words[f"{axis}_default"] = ("unlearner", getattr(method, name) if name else 0.0)
        for cell in itertools.product(config.map_weights, repeat=len(names)) if names else ():
            changed = replace(method, **dict(zip(names, cell, strict=True)))
            at = place | dict(zip(("first", "second"), (*cell, 0.0), strict=False))
            for block in config.blocks(runs):
                job = unlearning_job(config, teacher, changed, block, record="end")
                yield Row("weight_map", job, at, cell_table, config.shown(job.runs, runs), words)


def unlearning_cases(config: Config, dataset: Dataset) -> Iterator[tuple[Fit, Method, dict, dict]]:
    """Teacher (its block 0), method, place and words of each model, poison and method.

    Refuses shares that poison no sample, or all of them, before anything is trained.
    """
    poisons = poisons_to_unlearn(config, dataset)
    for kind, alpha in poisons.items():
        known = Poison(kind, alpha).draw(dataset, key=0).known
        allowed = f"a share that poisons some of {len(known)} samples and not all, or 0 to leave it out"
        require(known.any() and not known.all(), f"--unlearn-{kind}", alpha, allowed)
    for each, (kind, alpha), name in itertools.product(config.models, poisons.items(), config.methods):
        family = FAMILIES[each]
        model, protocol = family.unlearning(config, dataset), getattr(config, family.trained_as)
        teacher = training_job(config, dataset, protocol.teacher, protocol, model, Poison(kind, alpha), 0)
        method = config.method(name, training=protocol.unlearn)
        own = {"title": ("unlearner", method.title or name), "fresh": ("unlearner", float(method.is_fresh))}
        yield teacher, method, {"model": model.label, "poison": kind, "unlearner": name}, model_words(model) | own


def unlearning_job(config: Config, teacher: Fit, method: Method, block: int, *, record: str) -> Fit:
    """A block of runs of one method, behind its teachers: one for each run, or the first of all (published)."""
    own = config.independent_teachers
    teacher = replace(teacher, block=block if own else 0)
    shared = {} if own else {"draw": 0, "teacher_run": 0}
    return replace(teacher, method=method, start=teacher, block=block, record=record, **shared)


def curves_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """The curves, and the logit of every measured sample at their end, with which samples are what."""
    table = scores_table(row, arrays)
    n = arrays["mask"].shape[1]
    logits = arrays["logit"][:, : 2 * n + KEPT_VALIDATION].astype(np.float16)
    counts = [n, n, logits.shape[1] - 2 * n]
    table["logit"] = (*row.place, "run", "sample"), logits[(None,) * len(row.place)]
    for name, mask in (("poisoned", arrays["mask"]), ("known", arrays["known"])):
        padded = np.pad(np.tile(mask, 2).astype(float), ((0, 0), (0, counts[2])), constant_values=np.nan)
        table[name] = ("poison", "run", "sample"), padded[None]
    if "label" in arrays:  # not in results that an earlier version kept
        table["label"] = ("poison", "run", "sample"), arrays["label"][None, :, : logits.shape[1]].astype(float)
    part = np.repeat(["train", "train_clean", "validation"], counts)
    return table.assign_coords(sample=np.arange(len(part)), part=("sample", part))


def cell_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """accuracy (…, run): on the validation set, at the end."""
    table = scores_table(row, arrays)
    return table.assign(accuracy=table.accuracy.sel(split="validation")).drop_vars(["split", "loss"])


# ---- what the poison looks like ----


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

    def plane(x: np.ndarray) -> np.ndarray:
        features = np.concatenate([x.real, x.imag], axis=1) if np.iscomplexobj(x) else x
        tsne = TSNE(perplexity=min(30, len(x) / 4), init="pca", random_state=state)
        return tsne.fit_transform(features.astype(np.float32))

    clean = dataset.train
    first = plane(clean.x)
    planes = [first, *(first if np.array_equal(draw.split.x, clean.x) else plane(draw.split.x) for draw in draws)]
    labels = [clean.y, *(draw.split.y for draw in draws)]
    masks = [np.zeros(len(clean.y), bool), *(draw.mask for draw in draws)]
    return {"embedding": np.stack(planes), "label": np.stack(labels), "poisoned": np.stack(masks)}


def _example_images(draws: list[Poisoned], shape: tuple[int, int]) -> Arrays:
    """The first three poisoned images of each class in turn, before and after, with the labels they are trained on.

    Of poison of one class that class's first six; as many of each poison.
    """
    images, labels, count = [], [], min(6, *(len(draw.forget_clean.y) for draw in draws))
    for draw in draws:
        members = [np.flatnonzero(draw.forget_clean.y == label) for label in (0, 1)]
        order = np.argsort([rank for own in members for rank in range(len(own))], kind="stable")
        chosen = np.concatenate(members)[order][:count]
        stages = (draw.forget_clean, draw.forget_poisoned)
        images.append([split.x[chosen, : shape[0] * shape[1]].reshape(-1, *shape) for split in stages])
        labels.append([split.y[chosen] for split in stages])
    return {"image": np.array(images), "image_label": np.array(labels)}


def poison_samples(config: Config, dataset: Dataset) -> Iterator[Row]:
    """What the poison looks like."""
    kinds = dict.fromkeys(("labels", "features", *config.poisons, *config.unlearn_alphas()))
    usual = dict.fromkeys(kinds, config.unlearn_labels or 30)
    alphas = {kind: alpha for kind, alpha in (usual | config.unlearn_alphas()).items() if kind != "given"}
    alphas = alphas if dataset.given is None else poisons_to_unlearn(config, dataset)
    poisons = tuple(Poison(kind, alpha) for kind, alpha in alphas.items())
    yield Row("data", Samples(data=dataset.provenance["sha256"], poisons=poisons, seed=config.seed), {}, samples_table)


def samples_table(row: Row, arrays: Arrays) -> xr.Dataset:
    of_samples, of_images = ("version", "sample", "axis"), ("poison", "stage", "example", "row", "column")
    dims = {name: of_images if name.startswith("image") else of_samples for name in arrays}
    table = xr.Dataset({name: (dims[name][: each.ndim], each.astype(float)) for name, each in arrays.items()})
    poisons = row.job.poisons
    kinds, shown = [each.kind for each in poisons], [0, *(each.alpha_percent for each in poisons)]
    labels = {"version": ["none", *kinds], "axis": ["x", "y"], "poison": kinds, "stage": ["before", "after"]}
    coords = {dim: labels.get(dim, np.arange(size)) for dim, size in table.sizes.items()}
    return table.assign_coords(coords | {"shown_percent": ("version", shown)})
