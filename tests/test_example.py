"""run_example.py: the plain loop gives, bit for bit, what a study of one run gives."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import run_python

import run_example
import run_unlearn_mnist
from foundation.engine.runner import run_studies
from foundation.engine.study_files import job_arrays
from models import MLP, QNN, Training
from poison_unlearn import Poison
from studies.families import Protocol

MODELS = {  # by family, the model, and how teacher and methods are trained
    "mlp": (MLP(1024, (4,)), Training(3, 128, 0.01), Training(2, 0, 0.01), True),
    "qnn": (QNN(10, depth=1), Training(2, 256, 0.03), Training(2, 256, 0.03), False),
}


@pytest.mark.parametrize("family", MODELS)
def test_the_plain_loop_is_a_study_of_one_run(family, mnist, in_this_process, tmp_path):
    model, training, unlearning, side_by_side = MODELS[family]
    protocol = Protocol(
        sweep=training, teacher=training, unlearn=unlearning, side_by_side=side_by_side
    )
    config = replace(
        run_unlearn_mnist.QUICK,
        stages=("unlearning",),
        models=(family,),
        unlearn_hidden="4",
        depth=1,
        runs=1,
        block=1,
        out=tmp_path,
        **{family: protocol},
    )
    folder = run_studies(config, mnist, run_unlearn_mnist.STUDIES)
    curves = run_example.poison_train_unlearn(
        mnist, Poison("labels", 30), model, training, unlearning, side_by_side=side_by_side
    )
    assert list(curves) == list(config.methods)
    for name, arrays in curves.items():
        place = {"model": model.label, "poison": "labels", "unlearner": name}
        studied = job_arrays(folder / "unlearning.nc", **place)
        for key in ("accuracy", "loss", "logit"):
            np.testing.assert_array_equal(
                np.asarray(arrays[key])[0], studied[key], err_msg=f"{name} {key}"
            )


def test_what_is_wrong_is_named():
    good = {"accuracy": np.full((1, 3, 5), 0.9)}
    bad = {"accuracy": np.full((1, 3, 5), np.nan)}
    assert run_example.problems_of({"cf": good, "ga": good}) == []
    assert run_example.problems_of({"cf": good, "ga": bad}) == ["accuracies of ga are missing"]
    assert (
        "expected above 0.6"
        in run_example.problems_of({"cf": {"accuracy": np.full((1, 3, 5), 0.5)}})[0]
    )


def test_the_example_passes():
    done = run_python("run_example.py")
    assert done.returncode == 0, done.stderr
    words = ("teacher", "Retrain", "Fine-tune", "Scrub", "Gradient ascent", "all steps passed")
    assert all(word in done.stdout for word in words), done.stdout
