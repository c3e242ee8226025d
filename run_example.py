"""Smoke test: poison, train, unlearn and evaluate, small, with both models and all four methods.

    python run_example.py        # under a minute on 2 cores, no network

MNIST at 10 qubits with flipped labels, the XXZ ring of 8 sites with randomised features. Prints one table for
each and exits non-zero if a step failed.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

import run_unlearn_mnist
import run_unlearn_xxz
from datar import load_mnist, load_xxz
from foundation.base import storage
from foundation.base.checks import any_terminal
from foundation.engine.runner import run_studies
from studies.experiments import SPLITS, STUDIES, Config
from studies.tables import print_summary

SMALL = {"stages": ("unlearning",), "runs": 1, "block": 1, "optimization_level": 0}  # compiling takes nearly all time
QUICK = run_unlearn_mnist.QUICK
MNIST = replace(
    QUICK,
    **SMALL,
    depth=3,
    mlp=replace(QUICK.mlp, unlearn=replace(QUICK.mlp.unlearn, epochs=20)),
    qnn=replace(
        QUICK.qnn,
        teacher=replace(QUICK.qnn.teacher, epochs=15, learning_rate=0.03),
        unlearn=replace(QUICK.qnn.unlearn, epochs=8, learning_rate=0.03),
    ),
)
XXZ = replace(run_unlearn_xxz.QUICK, **SMALL, n_sites=8, depth=2, unlearn_labels=0, unlearn_features=50)


@any_terminal()
def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    datasets = {
        "MNIST 1 vs 9": (MNIST, load_mnist(encoding=MNIST.encoding, source=MNIST.source)),
        f"XXZ ring of {XXZ.n_sites} sites": (XXZ, load_xxz(n_sites=XXZ.n_sites, gauge=XXZ.gauge)),
    }
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (config, dataset) in datasets.items():
            results = run_studies(replace(config, out=Path(folder)), dataset, STUDIES)
            print(f"\n{name}")
            print_summary(results, config.stages)
            found = check(storage.read_dataset(results / "unlearning.nc"), config)
            problems += [f"{name}, {problem}" for problem in found]
    print("\n".join(problems) or "all steps passed", file=sys.stderr if problems else sys.stdout)
    return int(bool(problems))


def check(results: xr.Dataset, config: Config) -> list[str]:
    """What is wrong: accuracies that are missing, and teachers that did not learn to tell the classes apart."""
    problems = []
    (poison,) = config.unlearn_alphas()
    for model in results.model.values:
        accuracy = results.accuracy.sel(model=model, poison=poison).dropna("epoch", how="all")
        start = float(accuracy.sel(unlearner="cf", split="validation").isel(epoch=0, run=0))
        present = set(accuracy.unlearner.values) == set(config.methods) and set(accuracy.split.values) == set(SPLITS)
        if not present or not np.isfinite(accuracy).all():
            problems.append(f"{model}: accuracies are missing")
        if start < 0.6:
            problems.append(f"{model}: validation accuracy {start:.3f} before unlearning, expected above 0.6")
    return problems


if __name__ == "__main__":
    sys.exit(main())
