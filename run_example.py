"""The protocol as one plain loop: poison, train the teacher, unlearn by four methods, measure.

    python run_example.py        # under a minute on 2 cores, no network, no files

MNIST 1 vs 9 with flipped labels, and the XXZ ring of 8 sites with randomised features; an MLP and a
QNN each, small. Prints one table for each and exits non-zero if a step failed. A study `unlearning`
of one run with these settings (a teacher for each run, --optimization-level 0) gives the numbers
bit for bit: it calls the same compiled training, on one thread, with the same keys.
"""

import argparse
import sys
from dataclasses import replace

import numpy as np

from datar import Dataset, load_mnist, load_xxz
from foundation.base.checks import any_terminal
from foundation.engine.runner import compute_here, one_line_errors
from models import MLP, QNN, Model, Training
from poison_unlearn import METHODS, Poison, Retrain
from protocol import SPLITS, Sets, inputs_of_sets, poison_key, run_block, run_keys

SEED = 0
METHODS_SHOWN = ("retrain", "cf", "scrub", "ga")
SHOWN = ("validation", "forget_poisoned", "forget_clean", "retain")  # splits in the table
# by name; accuracy and loss: (runs, epochs + 1, len(SPLITS)), before the first and after each epoch
Curves = dict[str, np.ndarray]


def poison_train_unlearn(
    dataset: Dataset,
    poison: Poison,
    model: Model,
    training: Training,
    unlearning: Training,
    *,
    side_by_side: bool,
) -> dict[str, Curves]:
    """Compute run 0: the curves of each method, all of which start from one teacher."""
    # Draw the poison.
    draw = poison.draw(dataset, key=poison_key(SEED, poison, 0))
    sets = [Sets(draw, dataset.train, dataset.val)]

    # Train the teacher on all samples, poisoned samples included.
    _, everything = inputs_of_sets(model, sets, forgets=False)
    keys = run_keys(SEED, model, poison, [0])
    teacher = run_block(
        model, Retrain(training=training), everything, None, keys, side_by_side, "logits"
    )

    # Unlearn: each method gets the forget set, the retained samples and the teacher. Measure after
    # each epoch.
    _, parts = inputs_of_sets(model, sets, forgets=True)
    keys = run_keys(SEED, model, poison, [0], generation=1)
    curves = {}
    for name in METHODS_SHOWN:
        method = replace(METHODS[name], training=unlearning)
        curves[name] = run_block(
            model, method, parts, teacher["params"], keys, side_by_side, "curves"
        )
    return curves


def problems_of(curves: dict[str, Curves]) -> list[str]:
    """Name missing accuracies, and a teacher that did not learn to tell the classes apart."""
    problems = []
    for name, curves_of_method in curves.items():
        if not np.isfinite(curves_of_method["accuracy"]).all():
            problems.append(f"accuracies of {name} are missing")
    of_teacher = curves["cf"]["accuracy"][0, 0]  # (len(SPLITS),)
    start = float(of_teacher[SPLITS.index("validation")])
    if not start >= 0.6:  # NaN is a problem, too
        problems.append(f"validation accuracy {start:.3f} before unlearning, expected above 0.6")
    return problems


def print_table(model: Model, curves: dict[str, Curves]) -> None:
    """Print a line for the teacher and for each method, at its last epoch."""
    accuracies = {"teacher": curves["cf"]["accuracy"][0, 0]}
    for name, curves_of_method in curves.items():
        title = METHODS[name].title
        accuracies[title] = curves_of_method["accuracy"][0, -1]
    for name, accuracy in accuracies.items():
        shown = [accuracy[SPLITS.index(split)] for split in SHOWN]
        values = (f"{value:>16.3f}" for value in shown)
        print(f"{model.label:<14}{name:<16}", *values, sep="")


@any_terminal()
def main() -> int:
    """Poison, train, unlearn and print, for a network and a circuit on two data sets."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    compute_here(optimization_level=0)  # compiling takes nearly all of the time
    mnist = load_mnist(source="embedded")
    ring = load_xxz(n_sites=8)
    # model, training of the teacher and of the methods, whether the runs of a block are one batch
    mnist_runs = [
        (MLP(1024, (16, 4)), Training(100, 128, 0.01), Training(20, 0, 0.001), True),
        (QNN(10, depth=3), Training(15, 256, 0.03), Training(8, 256, 0.03), False),
    ]
    ring_runs = [
        (MLP(512, (64, 16)), Training(100, 32, 0.01), Training(25, 0, 0.01), True),
        (QNN(8, depth=2), Training(60, 32, 0.03), Training(25, 0, 0.01), True),
    ]
    mnist_name = "MNIST 1 vs 9, 30 % of the labels flipped"
    ring_name = "XXZ ring of 8 sites, features of 50 % randomised"
    problems = []
    for name, dataset, poison, runs in (
        (mnist_name, mnist, Poison("labels", 30), mnist_runs),
        (ring_name, ring, Poison("features", 50), ring_runs),
    ):
        heads = (f"{split:>16}" for split in SHOWN)
        print(f"\n{name}: accuracy\n{'':<30}", *heads, sep="")
        for model, training, unlearning, side_by_side in runs:
            curves = poison_train_unlearn(
                dataset, poison, model, training, unlearning, side_by_side=side_by_side
            )
            print_table(model, curves)
            heading = f"{name}, {model.label}"
            problems += [f"{heading}: {problem}" for problem in problems_of(curves)]
    if problems:
        print("\n".join(problems), file=sys.stderr)
    else:
        print("\nall steps passed")
    return int(bool(problems))


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
