"""Families of models, as --models names them: how they are built and how they are trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from datar import Dataset
from foundation.base.checks import require
from foundation.engine.runner import Settings, flag_name
from foundation.quantum import device as hardware
from foundation.quantum.device import Noise
from models import MLP, QNN, Model, Training
from studies.quadratic import QuadraticForm


@dataclass(frozen=True)
class Protocol:
    """How a family of models is trained in each study."""

    sweep: Training
    teacher: Training
    unlearn: Training
    side_by_side: bool
    """Whether the runs of a block are one batch; a matter of speed and memory (results agree to
    rounding)."""


Widths = Annotated[str, tyro.conf.arg(metavar="WIDTHS")]


@dataclass(frozen=True, kw_only=True)
class ModelFlags(Settings):
    """Which models are trained, how large they are, and how they are trained."""

    models: tuple[str, ...] = ("mlp", "qnn")
    """Families of models: mlp, qnn, logistic (regression), or quadratic (a bounded quadratic form
    of low rank)."""
    hidden: tuple[Widths, ...] = ("64,16",)
    """Hidden widths of each MLP of the noise sweep: 64,16 is one network of two layers, 64 16 are
    two networks of one layer each, and "none" is logistic regression."""
    label_hidden: tuple[Widths, ...] = ()
    """Hidden widths of further MLPs, of which the noise sweep flips labels only."""
    unlearn_hidden: Widths = "64,16"
    """Hidden widths of the MLP that unlearns."""
    depth: int = 6
    """Layers of the QNN."""
    shots: int = 0
    """Shots from which the QNN's expectations are drawn, and their gradients; 0: exact. With shots
    or noise the states must have norm 1."""
    gradient: hardware.Gradient = "parameter_shift"
    """How gradients are taken from shots: parameter_shift runs two circuits for each angle, spsa
    two in all."""
    p1: float = 0.0
    """Depolarising noise of the QNN: the probability that a Pauli acts after a rotation, exactly
    computed."""
    p2: float = 0.0
    """The same after an entangling gate, on its two qubits."""
    readout: float = 0.0
    """The probability that the measured bit is read as the other one."""
    mlp: Protocol
    qnn: Protocol

    AXES = (*Settings.AXES, "hidden", "label_hidden", "unlearn_hidden", "depth")

    def check(self):
        super().check()
        require(self.depth >= 1, "--depth", self.depth, "1 or more")
        require(
            self.shots >= 0, "--shots", self.shots, "a number of shots, or 0 for exact expectations"
        )
        for name in ("p1", "p2", "readout"):
            value = getattr(self, name)
            require(0 <= value <= 1, flag_name(name), value, "a probability, 0 to 1")
        self.check_lists("hidden")
        self.check_names("models", FAMILIES)
        for widths in (*self.hidden, *self.label_hidden, self.unlearn_hidden):
            parse_widths(widths)

    def device(self) -> dict[str, Any]:
        """Return the QNN's shots, gradient and noise for `build_qnn`; {} for an exact QNN."""
        options: dict[str, Any] = {}
        if self.shots:
            options |= {"shots": self.shots, "gradient": self.gradient}
        noise = Noise(self.p1, self.p2, self.readout)
        if noise.label:
            options["noise"] = noise
        return options

    def protocol(self, family: str) -> Protocol:
        """Say how a family of models is trained."""
        return getattr(self, FAMILIES[family].trained_as)


# ---- building models ----


def parse_widths(text: str) -> tuple[int, ...]:
    """Parse hidden widths: "64,16" gives (64, 16), "none" gives (); BadInput for anything else."""
    if text == "none":
        return ()
    is_valid = isinstance(text, str) and bool(re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text))
    require(
        is_valid,
        "--hidden",
        repr(text),
        'a string for each network: its widths, such as "64,16", or "none"',
    )
    return tuple(int(width) for width in text.split(","))


def build_mlp(dataset: Dataset, widths: str) -> MLP:
    """Build an MLP for a data set; widths: comma-separated, such as 64,16, or none."""
    x = dataset.train.x
    numbers_per_entry = 2 if np.iscomplexobj(x) else 1  # real and imaginary part
    return MLP(x.shape[1] * numbers_per_entry, parse_widths(widths), dataset.n_classes)


def build_qnn(dataset: Dataset, depth: int, **device: Any) -> QNN:
    """Build the QNN for these samples; device: its shots, noise and kind of gradient.

    Raises BadInput if the samples are no amplitudes of qubits.
    """
    width = dataset.train.x.shape[1]
    if device:
        hardware.require_normalised(dataset.train.x)
    are_amplitudes = width > 1 and width & (width - 1) == 0
    require(are_amplitudes, "train.x", f"{width} features",
            "a power of two, the amplitudes of qubits (datar.pad fills up with zeros)")  # fmt: skip
    return QNN(int(np.log2(width)), depth, n_classes=dataset.n_classes, **device)


def build_quadratic(dataset: Dataset) -> QuadraticForm:
    """Build the quadratic form of the published rank for a data set."""
    x = dataset.train.x
    width = x.shape[1]
    rank = min(QuadraticForm.rank, width)
    is_complex = np.iscomplexobj(x)
    return QuadraticForm(width, rank, is_complex, dataset.n_classes)


class Family(NamedTuple):
    """Models of one kind, under a name that --models knows."""

    sweep: Callable[[ModelFlags, Dataset], list[Model]]  # builds the models of the noise sweep
    unlearning: Callable[[ModelFlags, Dataset], Model]  # builds the model that unlearns
    # the flag of the configuration that holds the family's protocol: mlp or qnn
    trained_as: str = "qnn"
    # builds further models of the noise sweep, which see flipped labels only
    labels_only: Callable[[ModelFlags, Dataset], list[Model]] = lambda *_: []


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
        lambda _, dataset: [build_mlp(dataset, "none")],
        lambda _, dataset: build_mlp(dataset, "none"),
        "mlp",
    ),
    "quadratic": Family(
        lambda _, dataset: [build_quadratic(dataset)], lambda _, dataset: build_quadratic(dataset)
    ),
}


def model_words(model: Model) -> dict[str, tuple[str, Any]]:
    """Return the family of a model as a coordinate along the axis model of a study's file."""
    return {"family": ("model", getattr(model, "family", type(model).__name__))}
