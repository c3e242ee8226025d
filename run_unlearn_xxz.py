"""Poison and unlearn the two phases of the XXZ spin ring with an MLP and a QNN.

    python run_unlearn_xxz.py --preset quick                   # the main studies, small: two minutes, mostly compiling
    python run_unlearn_xxz.py --preset paper                   # the published study: 2,680 trainings, 6 min on 2 cores
    python run_unlearn_xxz.py --preset corrected               # its flaws mended, 20 runs: 4,500 trainings, 12 min
    python run_unlearn_xxz.py --preset corrected --stages evaluation   # did it forget? oracles and scores: 25 min
    python run_unlearn_xxz.py --preset paper --stages depths   # QNNs of 5, 6 and 7 layers, into noise_sweep.nc
    python run_unlearn_xxz.py --preset paper --stages gauge    # the gauge control, 20 runs

The ground states are computed, no file is needed. Writes OUT/xxz/PRESET/*.nc, the figures beside them
(arXiv:2508.02422, Figs. 2d and 3b), and prints a closing table. Started again, it does only what is missing.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import xarray as xr

from datar import Dataset, Gauge, load_xxz
from foundation.base.checks import any_terminal, require
from foundation.engine.jobs import Arrays, Job
from foundation.engine.runner import (
    config_class,
    one_line_errors,
    parse_command_line,
    quick_values,
    run_studies,
    stoppable,
)
from foundation.engine.study import Study
from foundation.engine.study_files import Row
from foundation.quantum.ring import COUPLINGS, MAX_SITES, RingSplit, xxz_points, xxz_spectrum
from foundation.report.closing import report
from models import Training
from poison_unlearn import Poison
from studies import capacity, controls, experiments, registered, reports
from studies.experiments import FAMILIES, Config, Protocol


@dataclass(frozen=True, kw_only=True)
class XxzFlags(Config):
    """Poison and unlearn the two phases of the XXZ spin ring with an MLP and a QNN."""

    gauge: Gauge = "random_phase"
    """Global phase of each ground state, which the MLP can see: none (real, of a fixed sign), a random sign, or
    a random complex phase like that of the published states."""
    n_sites: int = 12
    """Sites of the ring, an even number; the QNN has as many qubits."""
    depths: tuple[int, ...] = (5, 6, 7)  # test_xxz.ipynb
    """Layers of the QNNs of the stage depths."""
    gauge_runs: int = 20
    """Repetitions of the stage gauge."""
    sizes: tuple[int, ...] = (8, 10, 14)
    """Sites of further rings of the stage splits."""

    AXES = (*Config.AXES, "depths", "gauge_runs", "sizes")

    def check(self):
        super().check()
        require(self.gauge_runs >= 1, "--gauge-runs", self.gauge_runs, "1 or more")
        for n_sites in self.sizes:
            require(n_sites in range(4, MAX_SITES + 1, 2), "--sizes", n_sites, f"even numbers from 4 to {MAX_SITES}")
        require(min(self.depths, default=0) >= 1, "--depths", self.depths, "numbers of layers, 1 or more")


def load(config: XxzFlags, gauge: Gauge) -> Dataset:
    """The ground states under a gauge, from the configuration's source."""
    return load_xxz(n_sites=config.n_sites, path=config.data, gauge=gauge, seed=config.seed)


# ---- the stages that only this data set has ----


@dataclass(frozen=True, kw_only=True)
class Spectrum(Job):
    """Ground-state energy per site and gap of the ring at the couplings of the data set."""

    n_sites: int

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        levels = xxz_spectrum(self.n_sites)
        return {"energy_per_site": levels.energy / self.n_sites, **levels._asdict()}


def spectrum(config: XxzFlags, dataset: Dataset) -> Iterator[Row]:
    """The spectrum of the ring, and what the poison looks like."""
    yield Row("data", Spectrum(data=dataset.provenance["sha256"], n_sites=config.n_sites), {}, spectrum_table)
    yield from experiments.poison_samples(config, dataset)


def spectrum_table(row: Row, arrays: Arrays) -> xr.Dataset:
    names = ("energy_per_site", "gap", "is_train", "is_val")
    return xr.Dataset({name: ("delta", arrays[name].astype(float)) for name in names}, {"delta": arrays["delta"]})


def depths(config: XxzFlags, dataset: Dataset) -> Iterator[Row]:
    """Deeper QNNs against flipped labels: further models of the noise sweep."""
    for depth in config.depths:
        model = experiments.build_qnn(dataset, depth, **config.device())
        yield from experiments.sweep_rows(config, dataset, config.qnn, model, "labels")


def gauge_control(config: XxzFlags, dataset: Dataset) -> Iterator[Row]:
    """The noise sweep with flipped labels under each gauge: the same masks, first parameters and batches.

    A QNN is trained under the first gauge alone: its logits are the same under all (tested to 1e-5).
    """
    models = [(name, model) for name in config.models for model in FAMILIES[name].sweep(config, dataset)]
    for (family, model), (gauge, states) in itertools.product(models, under_each_gauge(config, dataset).items()):
        if family == "qnn" and gauge != "fixed":
            continue
        protocol = getattr(config, FAMILIES[family].trained_as)
        for alpha, block in itertools.product(config.alphas, config.blocks(config.gauge_runs)):
            poison = Poison("labels", alpha)
            job = experiments.training_job(config, states, protocol.sweep, protocol, model, poison, block)
            place = {"model": model.label, "gauge": gauge, "alpha_percent": alpha}
            shown = config.shown(job.runs, config.gauge_runs)
            yield Row("gauge", job, place, experiments.scores_table, shown, experiments.model_words(model))


@dataclass(frozen=True, kw_only=True)
class Fidelity(Job):
    """How near each validation state is to the training states, and where its coupling stands."""

    split: RingSplit

    def perform(self, dataset: Dataset, *inputs: Arrays) -> Arrays:
        """fidelity, delta (v,): the largest |<validation|training>|^2 over training states of norm 1, and the Δ."""
        overlaps = dataset.val.x.astype(complex) @ dataset.train.x.astype(complex).conj().T  # (v, n)
        return {"fidelity": (np.abs(overlaps) ** 2).max(axis=1), "delta": COUPLINGS[xxz_points(self.split)[1]]}


def splits(config: XxzFlags, dataset: Dataset) -> Iterator[Row]:
    """Every model on rings whose validation states are not among near-copies, and on other sizes."""
    poisons = [*config.poisons_of("noises").values()]
    for (n_sites, split), states in rings(config, dataset).items():
        place = {"sites": n_sites, "ring_split": split}
        yield Row("splits", Fidelity(data=states.provenance["sha256"], split=split), place, fidelity_table)
        yield from controls.published_rows(config, states, "splits", poisons, config.runs, redrawn=False, **place)
        for name in controls.ESTIMATORS:
            yield from controls.estimate_rows(
                config, states, name, "splits", poisons, config.runs, redrawn=False, **place
            )


def fidelity_table(row: Row, arrays: Arrays) -> xr.Dataset:
    """fidelity, delta (sites, ring_split, state)."""
    coords = {axis: [label] for axis, label in row.place.items()} | {"state": np.arange(len(arrays["delta"]))}
    return xr.Dataset({name: (list(coords), array[None, None].astype(float)) for name, array in arrays.items()}, coords)


def rings(config: XxzFlags, dataset: Dataset) -> dict[tuple[int, RingSplit], Dataset]:
    """The rings of the stage splits: every split at the size of the study, the published one at the others."""
    own = [(config.n_sites, split) for split in get_args(RingSplit)]
    others = [(n_sites, "interleaved") for n_sites in config.sizes if n_sites != config.n_sites]
    return {
        (n_sites, split): load_xxz(n_sites=n_sites, gauge=config.gauge, seed=config.seed, split=split)
        for n_sites, split in (*own, *others)
    }


def under_each_gauge(config: XxzFlags, dataset: Dataset) -> dict[Gauge, Dataset]:
    return {gauge: load(config, gauge) for gauge in get_args(Gauge)}


STUDIES = (
    reports.registered("data", "which states are there, and what does the poison look like", spectrum),
    *registered.EARLIER,
    capacity.STUDY,
    *registered.LATER,
    Study(
        name="depths",
        question="do deeper QNNs resist as well, beside those of the noise sweep",
        plan=depths,
        tables=registered.NOISE_SWEEP.tables,
    ),
    reports.registered("gauge", "does the MLP see the gauge", gauge_control, data=under_each_gauge),
    reports.registered("splits", "does it hold far from the training states, and at other sizes", splits, data=rings),
)
XxzConfig = config_class("XxzConfig", XxzFlags, STUDIES, module=__name__)

PAPER = XxzConfig(
    gauge="random_phase",  # the published states carry an arbitrary complex phase
    hidden=("64,16",),  # run_unlearn_xxz.py
    label_hidden=("32,8", "16,4", "8,4", "8,2"),  # run_unlearn_xxz.py
    unlearn_hidden="64,16",  # run_unlearn_xxz.py
    depth=4,  # run_unlearn_xxz.py
    unlearn_labels=30,  # run_unlearn_xxz.py
    unlearn_features=80,  # run_unlearn_xxz.py, for the MLP; for the QNN ours
    choices=("scrub.divergence=published", "scrub.reads=clean"),  # models.py, run_unlearn_xxz.py
    independent_teachers=False,  # run_unlearn_xxz.py
    mlp=Protocol(
        sweep=Training(epochs=400, batch_size=32, learning_rate=0.01),  # run_unlearn_xxz.py
        teacher=Training(epochs=400, batch_size=32, learning_rate=0.01),  # run_unlearn_xxz.py
        unlearn=Training(epochs=50, batch_size=0, learning_rate=0.01),  # run_unlearn_xxz.py
        side_by_side=True,  # ours
    ),
    qnn=Protocol(
        sweep=Training(epochs=200, batch_size=32, learning_rate=0.03),  # run_unlearn_xxz.py
        teacher=Training(epochs=200, batch_size=32, learning_rate=0.03),  # run_unlearn_xxz.py
        unlearn=Training(epochs=50, batch_size=0, learning_rate=0.005),  # run_unlearn_xxz.py
        side_by_side=True,  # ours
    ),
)
CORRECTED = replace(
    PAPER,
    preset="corrected",
    gauge="fixed",  # no measurement sees the phase, so no model should
    choices=("scrub.divergence=full", "scrub.reads=poisoned"),  # one KL term is no divergence; forget what was learned
    independent_teachers=True,  # one teacher for all hides the largest source of spread
    runs=20,  # five are too few for an interval of a spread
    weight_map_runs=5,  # of 110 cells each: the maps are most of the work
    oracle_epochs=("mlp=50", "qnn=100", "logistic=100", "quadratic=50"),  # by the rule of the stage epochs
    capacity=replace(PAPER.capacity, samples=(10, 20, 40, 80, 160)),  # of 166 states
    matched_samples=40,  # half of the training set
    control_epochs=400,  # the MLP's published ones
    finalists=("cf", "ga", "scrub", "l1_sparse", "cf_k"),  # by tables.best_methods of the stage benchmark
    discovery_methods=("retrain", "cf", "scrub", "ga", "l1_sparse", "cf_k", "newton", "eu_k"),
    discovery_decay=1e-4,  # chosen on noisy labels by the stage controls
    hidden=("64,16", "none"),  # and logistic regression, a control of the capacity
)
QUICK_MLP, QUICK_QNN = replace(PAPER.mlp.sweep, epochs=100), replace(PAPER.qnn.sweep, epochs=60)
QUICK_UNLEARN = Training(epochs=25, batch_size=0, learning_rate=0.01)
QUICK = replace(
    CORRECTED,
    preset="quick",
    runs=2,
    block=2,
    **experiments.QUICK_STAGES,
    **quick_values(CORRECTED, STUDIES),
    optimization_level=1,  # compiles for longer than it computes
    alphas=(0, 30, 60),
    hidden=("64,16",),
    label_hidden=("8,4",),
    unlearn_features=30,  # as many as flipped labels: both poisons run the same compiled programs
    map_weights=(0.0, 0.4, 0.8),
    gauge_runs=4,
    sizes=(8,),
    mlp=replace(PAPER.mlp, sweep=QUICK_MLP, teacher=QUICK_MLP, unlearn=QUICK_UNLEARN),
    qnn=replace(PAPER.qnn, sweep=QUICK_QNN, teacher=QUICK_QNN, unlearn=QUICK_UNLEARN),
)
PRESETS = XxzConfig.presets = {"paper": PAPER, "corrected": CORRECTED, "quick": QUICK}


@any_terminal()
def main() -> int:
    config = parse_command_line(PRESETS, __doc__)
    with one_line_errors(), stoppable():
        dataset = load(config, config.gauge)
        data_word = dataset.provenance["sha256"][:8] if config.data else ""
        folder = run_studies(config, dataset, STUDIES, data_word=data_word)
        if folder:  # with --plan nothing was computed
            report(folder, STUDIES, config.stages)
    return 0


if __name__ == "__main__":
    from run_unlearn_xxz import main  # by its name, so that the processes that compute find its jobs

    sys.exit(main())
