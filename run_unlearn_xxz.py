"""Poison and unlearn the two phases of the XXZ spin ring with an MLP and a QNN.

    python run_unlearn_xxz.py --preset quick      # the main studies, small: one to two minutes
    python run_unlearn_xxz.py --preset paper      # as published: 2,680 trainings, 6 min on 2 cores
    python run_unlearn_xxz.py --preset corrected  # flaws mended, 20 runs: 4,500 trainings, 12 min
    python run_unlearn_xxz.py --preset corrected --stages evaluation  # did it forget? 25 min
    python run_unlearn_xxz.py --preset paper --stages depths   # QNNs of 5, 6 and 7 layers
    python run_unlearn_xxz.py --preset paper --stages gauge    # the gauge control, 20 runs

The ground states are computed, no file is needed. Writes OUT/xxz/PRESET/*.nc, the figures beside
them (arXiv:2508.02422, Figs. 2d and 3b), and prints a closing table. Started again, it does only
what is missing.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datar import Dataset, Gauge, load_xxz
from foundation.base.checks import any_terminal
from foundation.engine.command_line import parse_command_line
from foundation.engine.runner import (
    config_class,
    one_line_errors,
    preset_values,
    stoppable,
)
from foundation.engine.study import Study
from foundation.report.closing import run_and_report
from models import Training
from studies import (
    aimed_flips,
    capacity,
    contests,
    device,
    discovery,
    dynamics,
    evaluation,
    gauge,
    influence,
    matched_fit,
    noise_sweep,
    own_labels,
    samples,
    splits,
    unlearning,
)
from studies.config import QUICK as QUICK_FLAGS
from studies.config import Config
from studies.families import Protocol


@dataclass(frozen=True, kw_only=True)
class XxzFlags(Config):
    """Poison and unlearn the two phases of the XXZ spin ring with an MLP and a QNN."""

    gauge: Gauge = "random_phase"
    """Global phase of each ground state, which the MLP can see: none (real, of a fixed sign), a
    random sign, or a random complex phase like that of the published states."""
    n_sites: int = 12
    """Sites of the ring, an even number; the QNN has as many qubits."""

    def load(self) -> Dataset:
        """Load the ground states under the configured gauge, computed or from --data."""
        return load_xxz(n_sites=self.n_sites, path=self.data, gauge=self.gauge, seed=self.seed)

    def pool(self) -> Dataset | None:
        """Load the ground states half a step further in Δ, which are none of the data set's."""
        if self.data:
            return None
        return load_xxz(n_sites=self.n_sites, gauge=self.gauge, seed=self.seed, shift=0.005)


STUDIES = (
    samples.OF_RING,
    noise_sweep.STUDY,
    unlearning.STUDY,
    unlearning.WEIGHT_MAP,
    evaluation.EPOCHS,
    evaluation.STUDY,
    evaluation.BENCHMARK,
    evaluation.FINALISTS,
    influence.STUDY,
    dynamics.STUDY,
    contests.STUDY,
    own_labels.STUDY,
    aimed_flips.STUDY,
    capacity.STUDY,
    evaluation.EQUAL_STEPS,
    matched_fit.MEMORISING,
    matched_fit.STUDY,
    matched_fit.EQUAL_FIT,
    discovery.STUDY,
    device.STUDY,
    noise_sweep.DEPTHS,
    gauge.STUDY,
    splits.STUDY,
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
# chosen by evaluation.best_methods from the stage benchmark
BEST = ("cf", "ga", "scrub", "l1_sparse", "cf_k")
DISCOVERING = ("retrain", "cf", "scrub", "ga", "l1_sparse", "cf_k", "newton", "eu_k")
CORRECTED = replace(
    PAPER,
    preset="corrected",
    **preset_values(PAPER, STUDIES, "corrected"),
    benchmark=replace(PAPER.benchmark, finalists=BEST),
    capacity=replace(PAPER.capacity, samples=(10, 20, 40, 80, 160)),  # of 166 states
    matched=replace(PAPER.matched, samples=40),  # half of the training set
    equal_fit=replace(PAPER.equal_fit, samples=(24,)),
    # decay: chosen on noisy labels, stage controls
    discovery=replace(PAPER.discovery, methods=DISCOVERING, decay=1e-4),
    gauge="fixed",  # no measurement sees the phase, so no model should
    # one term of the KL alone is no divergence; the poisoned version is what the teacher learned
    choices=("scrub.divergence=full", "scrub.reads=poisoned"),
    independent_teachers=True,  # one teacher for all hides the largest source of spread
    runs=20,  # five are too few for an interval of a spread
    # chosen by the rule of the stage epochs
    oracle_epochs=("mlp=50", "qnn=100", "logistic=100", "quadratic=50"),
    control_epochs=400,  # published for the MLP
    hidden=("64,16", "none"),  # none: logistic regression, a control of the capacity
)
QUICK_MLP = replace(PAPER.mlp.sweep, epochs=100)
QUICK_QNN = replace(PAPER.qnn.sweep, epochs=60)
QUICK_UNLEARN = Training(epochs=25, batch_size=0, learning_rate=0.01)
QUICK = replace(
    CORRECTED,
    preset="quick",
    runs=2,
    block=2,
    **QUICK_FLAGS,
    **preset_values(CORRECTED, STUDIES, "quick"),
    # because compiling takes longer than computing
    optimization_level=1,
    one_program=True,
    alphas=(0, 30, 60),
    # one network in all studies, and as many features as labels: they share compiled programs
    hidden=("16,4",),
    label_hidden=("8,4",),
    unlearn_hidden="16,4",
    unlearn_features=30,
    mlp=replace(PAPER.mlp, sweep=QUICK_MLP, teacher=QUICK_MLP, unlearn=QUICK_UNLEARN),
    qnn=replace(PAPER.qnn, sweep=QUICK_QNN, teacher=QUICK_QNN, unlearn=QUICK_UNLEARN),
)
PRESETS = XxzConfig.presets = {"paper": PAPER, "corrected": CORRECTED, "quick": QUICK}


def run(config: XxzConfig, studies: Sequence[Study] = STUDIES) -> Path | None:
    """Load the data of a configuration, and do `run_and_report`."""
    dataset = config.load()
    data_word = dataset.provenance["sha256"][:8] if config.data else ""
    return run_and_report(config, dataset, studies, data_word=data_word)


@any_terminal()
def main() -> int:
    """Compute what the command line asks for."""
    config, studies = parse_command_line(PRESETS, STUDIES, __doc__)
    with one_line_errors(), stoppable():
        run(config, studies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
