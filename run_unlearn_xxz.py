"""Poison and unlearn the two phases of the XXZ spin ring with an MLP and a QNN.

    python run_unlearn_xxz.py --preset quick                   # all studies, small: two minutes, mostly compiling
    python run_unlearn_xxz.py --preset paper                   # the published study: 2,684 trainings, 11 min on 2 cores
    python run_unlearn_xxz.py --preset corrected               # its flaws mended, 20 runs: 4,600 trainings, 32 min
    python run_unlearn_xxz.py --preset paper --stages depths   # QNNs of 5, 6 and 7 layers, into noise_sweep.nc
    python run_unlearn_xxz.py --preset paper --stages gauge    # the gauge control, 20 runs: 4 min

The ground states are computed, no file is needed. Writes OUT/xxz/PRESET/*.nc, the figures beside them
(arXiv:2508.02422, Figs. 2d and 3b), and prints a closing table. Started again, it does only what is missing.
"""

import sys
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from datar import Dataset, Gauge, load_xxz, require, xxz_spectrum
from experiments import (
    STUDIES,
    SWEEP_AXES,
    Config,
    Protocol,
    Training,
    build_qnn,
    labelled,
    poison_samples,
    sweep_accuracy,
    sweep_chunk,
    sweep_identity,
    sweep_models,
    without_diverged,
)
from models import QNN, Model
from runner import Chunk, Computed, one_line_errors, parse_command_line, run_studies, shared_identity, slug, stoppable
from tables import SUMMARIES, report

Stage = Literal["data", "noise_sweep", "unlearning", "weight_map", "depths", "gauge"]


@dataclass(frozen=True, kw_only=True)
class XxzConfig(Config):
    """Poison and unlearn the two phases of the XXZ spin ring with an MLP and a QNN."""

    stages: tuple[Stage, ...] = ("data", "noise_sweep", "unlearning", "weight_map")
    """Studies to run. data: energies and gaps; depths: deeper QNNs, joining the noise sweep; gauge: the noise
    sweep with flipped labels under each gauge. The last two are run only where they are named."""
    gauge: Gauge = "random_phase"
    """Global phase of each ground state, which the MLP can see: none (real, of a fixed sign), a random sign, or
    a random complex phase like that of the published states."""
    n_sites: int = 12
    """Sites of the ring, an even number; the QNN has as many qubits."""
    depths: tuple[int, ...] = (5, 6, 7)
    """Layers of the QNNs of the stage depths."""
    gauge_runs: int = 20
    """Repetitions of the stage gauge."""

    def check(self):
        super().check()
        require(self.gauge_runs >= 1, "--gauge-runs", self.gauge_runs, "1 or more")
        require(min(self.depths, default=0) >= 1, "--depths", self.depths, "numbers of layers, 1 or more")


PAPER = XxzConfig(
    gauge="random_phase",  # the published states carry an arbitrary complex phase
    hidden=("64,16",),  # run_unlearn_xxz.py
    label_hidden=("32,8", "16,4", "8,4", "8,2"),  # run_unlearn_xxz.py
    unlearn_hidden="64,16",  # run_unlearn_xxz.py
    depth=4,  # run_unlearn_xxz.py
    depths=(5, 6, 7),  # test_xxz.ipynb
    unlearn_labels=30,  # run_unlearn_xxz.py
    unlearn_features=80,  # run_unlearn_xxz.py, for the MLP; for the QNN ours
    kl="published",  # models.py
    scrub_forget="clean",  # run_unlearn_xxz.py
    independent_teachers=False,  # run_unlearn_xxz.py
    mlp=Protocol(
        sweep=Training(epochs=400, batch_size=32, learning_rate=0.01),  # run_unlearn_xxz.py
        teacher=Training(epochs=400, batch_size=32, learning_rate=0.01),  # run_unlearn_xxz.py
        unlearn=Training(epochs=50, batch_size=0, learning_rate=0.01),  # run_unlearn_xxz.py
        parallel=5,  # ours
    ),
    qnn=Protocol(
        sweep=Training(epochs=200, batch_size=32, learning_rate=0.03),  # run_unlearn_xxz.py
        teacher=Training(epochs=200, batch_size=32, learning_rate=0.03),  # run_unlearn_xxz.py
        unlearn=Training(epochs=50, batch_size=0, learning_rate=0.005),  # run_unlearn_xxz.py
        parallel=5,  # ours
    ),
)
CORRECTED = replace(
    PAPER,
    preset="corrected",
    gauge="fixed",  # no measurement sees the phase, so no model should
    kl="full",  # one term of the KL is no divergence
    scrub_forget="poisoned",  # forget what was learned, not what it replaced
    independent_teachers=True,  # one teacher for all hides the largest source of spread
    runs=20,  # five are too few for an interval of a spread
    weight_map_runs=5,  # of 110 cells each: the maps are most of the work
    hidden=("64,16", "none"),  # and logistic regression, a control of the capacity
)
QUICK = replace(
    CORRECTED,
    preset="quick",
    runs=2,
    alphas=(0, 30, 60),
    hidden=("64,16",),
    label_hidden=("8,4",),
    unlearn_features=30,  # as many as flipped labels: both poisons run the same compiled programs
    map_weights=(0.0, 0.4, 0.8),
    gauge_runs=5,
    mlp=Protocol(
        sweep=Training(epochs=100, batch_size=32, learning_rate=0.01),
        teacher=Training(epochs=100, batch_size=32, learning_rate=0.01),
        unlearn=Training(epochs=25, batch_size=0, learning_rate=0.01),
        parallel=2,  # divides every number of runs: a rest would be compiled anew
    ),
    qnn=Protocol(
        sweep=Training(epochs=60, batch_size=32, learning_rate=0.03),
        teacher=Training(epochs=60, batch_size=32, learning_rate=0.03),
        unlearn=Training(epochs=25, batch_size=0, learning_rate=0.01),
        parallel=2,
    ),
)
PRESETS = {"paper": PAPER, "corrected": CORRECTED, "quick": QUICK}


def load(config: XxzConfig, gauge: Gauge) -> Dataset:
    """The ground states under a gauge, from the configuration's source."""
    return load_xxz(n_sites=config.n_sites, path=config.data, gauge=gauge, seed=config.seed)


# ---- the stages that only this data set has ----


def spectrum(config: XxzConfig, dataset: Dataset) -> list[Chunk]:
    """Ground-state energy and gap of the ring at the couplings of the data set, and what the poison looks like."""

    def compute() -> Computed:
        levels = xxz_spectrum(config.n_sites)
        values = {
            "energy_per_site": levels.energy / config.n_sites, "gap": levels.gap,
            "is_train": levels.is_train, "is_val": levels.is_val,
        }  # fmt: skip
        return Computed(labelled({"delta": levels.delta}, **values), {})

    return [
        Chunk("data", "spectrum", shared_identity(config, dataset), compute, trainings=0, axes={"poison_alphas": ()}),
        *poison_samples(config, dataset),
    ]


def depths(config: XxzConfig, dataset: Dataset) -> list[Chunk]:
    """Deeper QNNs against flipped labels: further models of the noise sweep."""
    models = [build_qnn(dataset, depth) for depth in config.depths]
    return [sweep_chunk(config, dataset, model, "labels", alpha) for model in models for alpha in config.alphas]


def gauge_control(config: XxzConfig, dataset: Dataset) -> list[Chunk]:
    """The noise sweep with flipped labels under each gauge: the same masks, first parameters and batches.

    The QNN is trained under the first gauge alone: its logits are the same under all (tested to 1e-5).
    """
    under = {name: load(config, name) for name in get_args(Gauge)}
    return [
        _gauge_chunk(config, dataset, name, under[name], model, alpha)
        for model in sweep_models(config, dataset)
        for name in (list(under)[:1] if isinstance(model, QNN) else under)
        for alpha in config.alphas
    ]


def _gauge_chunk(config: XxzConfig, dataset: Dataset, name: Gauge, states: Dataset, model: Model, alpha: int) -> Chunk:
    own = {"gauge": name, "gauge_data": states.provenance["sha256"], "gauge_runs": config.gauge_runs}
    identity = shared_identity(config, dataset) | sweep_identity(config, model, "labels", alpha) | own

    def compute() -> Computed:
        values, diverged = sweep_accuracy(config, states, model, "labels", alpha, config.gauge_runs)
        coords = {
            "model": [model.label], "gauge": [name], "alpha_percent": [alpha],
            "run": np.arange(config.gauge_runs), "split": ["train", "validation"],
        }  # fmt: skip
        return Computed(without_diverged(labelled(coords, accuracy=values), diverged), {})

    axes = SWEEP_AXES | {"gauge": ("gauge_data",)}
    return Chunk("gauge", slug(model.label, name, alpha), identity, compute, config.gauge_runs, axes=axes)


def main() -> int:
    config = parse_command_line(PRESETS, __doc__)
    with one_line_errors(), stoppable():
        dataset = load(config, config.gauge)
        folder = run_studies(config, dataset, STUDIES | {"data": spectrum, "depths": depths, "gauge": gauge_control})
        own_summaries = {"depths": SUMMARIES["noise_sweep"]}
        report(folder, config.stages, SUMMARIES | own_summaries)
    return 0


if __name__ == "__main__":
    sys.exit(main())
