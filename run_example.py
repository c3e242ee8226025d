"""Smoke test: poison, train, unlearn and evaluate, small, with both models and all four methods.

    python run_example.py        # under a minute on 2 cores, no network

Prints one table and exits non-zero if a step failed.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import storage
from datar import load_mnist
from experiments import SPLITS, print_summary, run_studies
from run_unlearn_mnist import QUICK

EXAMPLE = replace(
    QUICK,
    stages=("unlearning",),
    runs=1,
    mlp=replace(QUICK.mlp, unlearn=replace(QUICK.mlp.unlearn, epochs=20)),
    qnn=replace(
        QUICK.qnn,
        teacher=replace(QUICK.qnn.teacher, epochs=15, learning_rate=0.03),
        unlearn=replace(QUICK.qnn.unlearn, epochs=8, learning_rate=0.03),
    ),
)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_mnist(encoding=EXAMPLE.encoding, source=EXAMPLE.source)
        results = run_studies(replace(EXAMPLE, out=Path(folder)), dataset)
        print_summary(results, EXAMPLE.stages)
        return check(storage.read_dataset(results / "unlearning.nc"))


def check(results) -> int:
    """0 if every number is there and the teachers learned to tell the digits apart, else 1 with what is wrong."""
    problems = []
    for model in results.model.values:
        accuracy = results.accuracy.sel(model=model, poison="labels").dropna("epoch", how="all")
        start = float(accuracy.sel({"method": "cf", "split": "validation"}).isel(epoch=0, run=0))
        if int(accuracy.isnull().sum()) or accuracy.sizes["split"] != len(SPLITS):
            problems.append(f"{model}: accuracies are missing")
        if start < 0.6:
            problems.append(f"{model}: validation accuracy {start:.3f} before unlearning, expected above 0.6")
    print("\n".join(problems) or "all steps passed", file=sys.stderr if problems else sys.stdout)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
